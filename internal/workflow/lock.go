package workflow

import (
	"fmt"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"
)

// LockFile is where a repository locks the actions of its workflows to commits: the
// file that `gh actions-lock` writes.
const LockFile = ".github/workflows/actions.lock"

// MaxLock bounds it, in bytes.
const MaxLock = 1 << 20

// Locks are the workflow files that are locked, by their paths, and of each the commits
// of what it may use, by "owner/repo@ref", the repository in small letters. A workflow
// that is not among them is not locked.
type Locks map[string]map[string]string

var lockedCommit = regexp.MustCompile(`^(?:sha1-)?([0-9a-f]{40})$|^(?:sha256-)?([0-9a-f]{64})$`)

// ParseLock reads a lock file, of version v0.0.1 or v0.0.2. A file that is not read as
// one is an error: what it locks is not known, and must not run unlocked.
func ParseLock(src []byte) (Locks, []Diagnostic) {
	root, bad := loadYAML(LockFile, src)
	if bad != nil {
		return nil, []Diagnostic{*bad}
	}
	fail := func(n *yaml.Node, format string, args ...any) (Locks, []Diagnostic) {
		return nil, []Diagnostic{{File: LockFile, Pos: Pos{Line: n.Line, Col: n.Column}, Severity: Error, Message: fmt.Sprintf(format, args...),
			Hint: "gh actions-lock writes the file anew"}}
	}
	if root == nil || root.Kind != yaml.MappingNode {
		return nil, []Diagnostic{{File: LockFile, Pos: Pos{Line: 1, Col: 1}, Severity: Error, Message: "the lock file is no mapping"}}
	}
	if v := child(root, "version"); v == nil || v.Value != "v0.0.1" && v.Value != "v0.0.2" {
		return fail(root, "the lock file is of no version that is known: v0.0.1, v0.0.2")
	}
	commits := map[string]string{}
	if deps := child(root, "dependencies"); deps != nil {
		if deps.Kind != yaml.MappingNode {
			return fail(deps, "dependencies: expected a mapping")
		}
		for i := 0; i+1 < len(deps.Content); i += 2 {
			name, commit := deps.Content[i], child(deps.Content[i+1], "commit")
			if commit == nil {
				return fail(name, "%.200s has no commit", name.Value)
			}
			m := lockedCommit.FindStringSubmatch(strings.ToLower(commit.Value))
			if m == nil {
				return fail(commit, "%.80q is not the name of a commit", commit.Value)
			}
			commits[lockKey(name.Value)] = m[1] + m[2]
		}
	}
	locks := Locks{}
	files := child(root, "workflows")
	if files == nil {
		return locks, nil
	}
	if files.Kind != yaml.MappingNode {
		return fail(files, "workflows: expected a mapping")
	}
	for i := 0; i+1 < len(files.Content); i += 2 {
		locks[files.Content[i].Value] = commits
	}
	return locks, nil
}

// lockKey is what a dependency is looked up by: v0.0.1 has the commit in its name.
func lockKey(name string) string {
	name, _, _ = strings.Cut(name, ":sha")
	repository, ref, _ := strings.Cut(name, "@")
	return strings.ToLower(repository) + "@" + ref
}

// child is the value of a key of a mapping, nil if there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}
