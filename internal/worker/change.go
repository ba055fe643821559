package worker

import (
	"path"
	"strings"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// maxChanged bounds how many paths of an event are looked at.
const maxChanged = 3000

// Change is what the commit of an event changed, as far as its payload tells, and
// files, if they are known otherwise (by hand, or by asking). How much fails depends
// on it more than on anything but history.
func Change(event expr.Value, h *workflow.Happening) learn.Change {
	c := learn.Change{Files: -1, Added: -1, Deleted: -1, Source: -1, Test: -1, Doc: -1, Config: -1}
	var files []string
	listed := false
	if h != nil && h.FilesKnown {
		files, listed = h.ChangedFiles, true
	}
	if pr := event.Get("pull_request"); pr.AsMap() != nil {
		c.Parent, c.Author = pr.At("base", "sha").AsString(), pr.At("user", "login").AsString()
		for key, to := range map[string]*int{"changed_files": &c.Files, "additions": &c.Added, "deletions": &c.Deleted} {
			if v := pr.Get(key); v.Kind() == expr.KindNumber {
				*to = int(min(max(v.AsNumber(), 0), 1e9))
			}
		}
	} else {
		if before := event.Get("before").AsString(); strings.Trim(before, "0") != "" {
			c.Parent = before
		}
		author := event.At("head_commit", "author")
		if c.Author = author.Get("username").AsString(); c.Author == "" {
			c.Author = author.Get("email").AsString()
		}
		seen := map[string]bool{}
		for _, commit := range event.Get("commits").AsArray() {
			for _, key := range [...]string{"added", "removed", "modified"} {
				list := commit.Get(key)
				listed = listed || list.Kind() == expr.KindArray
				for _, v := range list.AsArray() {
					if s := v.AsString(); len(seen) < maxChanged && !seen[s] && (h == nil || !h.FilesKnown) {
						seen[s] = true
						files = append(files, s)
					}
				}
			}
		}
	}
	if listed {
		c.Source, c.Test, c.Doc, c.Config = 0, 0, 0, 0
		if c.Files < 0 {
			c.Files = len(files)
		}
		for _, f := range files[:min(len(files), maxChanged)] {
			*kindOf(f, &c)++
		}
	}
	c.Known = listed || max(c.Files, c.Added, c.Deleted) >= 0
	return c
}

// kindOf is the count that a path belongs to.
func kindOf(name string, c *learn.Change) *int {
	low := strings.ToLower(name)
	base := path.Base(low)
	ext := path.Ext(base)
	stem := strings.TrimSuffix(base, ext)
	for part := range strings.SplitSeq(path.Dir(low), "/") {
		switch part {
		case "test", "tests", "spec", "specs", "__tests__", "testdata", "fixtures", "e2e":
			return &c.Test
		case "doc", "docs":
			return &c.Doc
		case ".github", ".circleci", ".gitlab":
			return &c.Config
		}
	}
	switch {
	case strings.HasSuffix(stem, "_test"), strings.HasSuffix(stem, ".test"), strings.HasSuffix(stem, "_spec"), strings.HasSuffix(stem, ".spec"),
		strings.HasPrefix(stem, "test_"):
		return &c.Test
	}
	switch ext {
	case ".md", ".rst", ".adoc", ".txt":
		return &c.Doc
	case ".yml", ".yaml", ".json", ".toml", ".ini", ".cfg", ".conf", ".lock", ".xml", ".properties", ".mod", ".sum":
		return &c.Config
	}
	switch stem {
	case "dockerfile", "makefile", "gemfile", "rakefile", "license", ".gitignore", ".editorconfig":
		return &c.Config
	}
	return &c.Source
}
