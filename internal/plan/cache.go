package plan

import (
	"cmp"

	"github.com/hearth-ci/hearth/internal/workflow"
)

// UsualCacheMode is what jobs may do with caches that say nothing of it: what whoever
// is not trusted can bring about reads only, since what it saved others would restore.
func UsualCacheMode(event string) string {
	switch event {
	case "pull_request_target", "issue_comment", "issues", "discussion", "discussion_comment", "fork", "watch":
		return "read"
	}
	return "write"
}

// CacheWrites reports whether a mode lets entries be saved.
func CacheWrites(mode string) bool { return mode == "write" || mode == "write-only" }

func cacheReads(mode string) bool { return mode == "write" || mode == "read" }

// NarrowCacheMode is what both modes allow; "" allows everything.
func NarrowCacheMode(a, b string) string {
	if a == "" || b == "" {
		return cmp.Or(a, b)
	}
	switch reads, writes := cacheReads(a) && cacheReads(b), CacheWrites(a) && CacheWrites(b); {
	case reads && writes:
		return "write"
	case reads:
		return "read"
	case writes:
		return "write-only"
	}
	return "none"
}

// cacheMode is what a job in an instance may do with caches: what it says, or its file,
// and no more than its caller, who has what is usual if nobody has said anything.
func (p *planner) cacheMode(c *Call, def *workflow.Job) string {
	said := cmp.Or(def.CacheMode, p.run.Files[c.File].Workflow.CacheMode)
	switch {
	case c.Level == 1:
		return said
	case said == "":
		return c.CacheMode
	}
	return NarrowCacheMode(said, cmp.Or(c.CacheMode, UsualCacheMode(p.run.Event)))
}
