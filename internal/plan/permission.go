package plan

import (
	"maps"
	"slices"

	"github.com/hearth-ci/hearth/internal/workflow"
)

// Permissions is what a job's token may do: scope to "read" or "write". A scope
// that is not there is refused. "metadata" is always readable.
type Permissions map[string]string

// tokenScopes are all scopes but metadata and id-token, with the highest level each has.
var tokenScopes = [...]struct{ name, max string }{
	{"actions", "write"},
	{"artifact-metadata", "write"},
	{"attestations", "write"},
	{"checks", "write"},
	{"contents", "write"},
	{"deployments", "write"},
	{"discussions", "write"},
	{"issues", "write"},
	{"models", "read"},
	{"packages", "write"},
	{"pages", "write"},
	{"pull-requests", "write"},
	{"repository-projects", "write"},
	{"security-events", "write"},
	{"statuses", "write"},
}

const idToken = "id-token" // write or nothing: reading it means nothing

func level(s string) int {
	switch s {
	case "read":
		return 1
	case "write":
		return 2
	}
	return 0
}

func lower(a, b string) string {
	if level(a) <= level(b) {
		return a
	}
	return b
}

// Allows reports whether the token may do this ("read" or "write") to a scope.
func (p Permissions) Allows(scope, want string) bool {
	return level(want) > 0 && level(p[scope]) >= level(want)
}

// all gives every scope a level.
func all(lvl string) Permissions {
	p := Permissions{"metadata": "read"}
	for _, s := range tokenScopes {
		p[s.name] = lower(lvl, s.max)
	}
	return p
}

// defaultPermissions is what a token may do when no file says.
func defaultPermissions(policy string) Permissions {
	if policy == "read" {
		return Permissions{"contents": "read", "packages": "read", "metadata": "read"}
	}
	return all("write")
}

// requested is what a permissions block asks for.
func requested(p *workflow.Permissions) Permissions {
	switch p.All {
	case "read-all":
		return all("read")
	case "write-all":
		out := all("write")
		out[idToken] = "write"
		return out
	}
	out := Permissions{"metadata": "read"}
	for scope, lvl := range p.Scopes {
		if level(lvl) > 0 {
			out[scope] = lvl
		}
	}
	return out
}

// within lowers p to what limit allows. A nil limit allows everything.
func (p Permissions) within(limit Permissions) Permissions {
	if limit == nil {
		return p
	}
	out := make(Permissions, len(p))
	for scope, lvl := range p {
		if l := lower(lvl, limit[scope]); level(l) > 0 {
			out[scope] = l
		}
	}
	return out
}

// readOnly takes every right to write away.
func (p Permissions) readOnly() Permissions {
	out := make(Permissions, len(p))
	for scope, lvl := range p {
		if scope != idToken && level(lvl) > 0 {
			out[scope] = "read"
		}
	}
	return out
}

// Scopes lists the scopes of p in order.
func (p Permissions) Scopes() []string { return slices.Sorted(maps.Keys(p)) }
