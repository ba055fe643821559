package action

import (
	"testing"

	"github.com/hearth-ci/hearth/internal/git/gittest"
)

// A tag that was moved is of no consequence to who has locked it.
func TestResolveALockedCommit(t *testing.T) {
	top := t.TempDir()
	at := top + "/o/act"
	gittest.Git(t, "", "init", "-q", "-b", "main", at)
	gittest.Git(t, at, "config", "uploadpack.allowAnySHA1InWant", "true")
	commit := func(text string) string {
		gittest.Write(t, at+"/action.yml", text)
		gittest.Git(t, at, "add", "-A")
		gittest.Git(t, at, "commit", "-qm", text)
		gittest.Git(t, at, "tag", "-f", "v1")
		return gittest.Git(t, at, "rev-parse", "HEAD")
	}
	reviewed := commit("reviewed")
	moved := commit("moved")
	r := NewResolver(Config{Dir: t.TempDir(), Server: "file://" + top})
	ref := Ref{Owner: "o", Repo: "act", Ref: "v1"}
	for want, c := range map[string]string{reviewed: reviewed, moved: ""} {
		ref.Commit = c
		tree, err := r.Resolve(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		b, err := tree.ReadFile(t.Context(), "action.yml", 100)
		if err != nil || tree.SHA != want || tree.Ref != "v1" || string(b) != map[string]string{reviewed: "reviewed", moved: "moved"}[want] {
			t.Errorf("%q: %s %s %q %v", c, tree.Ref, tree.SHA, b, err)
		}
	}
}
