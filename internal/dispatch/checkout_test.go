package dispatch

import (
	"bytes"
	"context"
	"maps"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/git/gittest"
	"github.com/hearth-ci/hearth/internal/worker"
)

// A fork's pull request whose tree looked like a repository ran commands on the
// host, as root: its archive was unpacked and git run in it. What arrives now is the
// whole tree, at the very commit, and nothing of it was run.
func TestAttackTreeOfACommit(t *testing.T) {
	p, dir := gittest.New(t), t.TempDir()
	bare := dir + "/bare"
	p.Bare(bare)
	p.Bare(bare + "/sub/deeper")
	files := gittest.Tree(t, bare)
	files[".github/workflows/ci.yml"] = passes
	repo := dir + "/repo"
	gittest.Git(t, "", "init", "-q", repo)
	for name, text := range files {
		gittest.Write(t, repo+"/"+name, text)
	}
	gittest.Write(t, repo+"/.git/info/attributes", "* !filter !diff !merge !ident !working-tree-encoding\n")
	gittest.Git(t, repo, "add", "-A")
	gittest.Git(t, repo, "commit", "-qm", "hostile")
	p.Runs()
	sha := gittest.Git(t, repo, "rev-parse", "HEAD")
	when := gittest.Git(t, repo, "log", "-1", "--format=%aI")

	var mu sync.Mutex
	var got bytes.Buffer
	var problem error
	var notes []string
	s := newSite(t, func(c *Config) {
		c.Run = func(ctx context.Context, r *worker.Runner, _ conduct.Task) conduct.Outcome {
			mu.Lock()
			defer mu.Unlock()
			_, problem = r.Source.Checkout(ctx, action.CheckoutRequest{Depth: 1, Note: func(s string) { notes = append(notes, s) }}, &got)
			return conduct.Outcome{Conclusion: ci.Success}
		}
	})
	who := map[string]any{"name": "t", "email": "t@x", "date": when}
	s.gh.Commit(hello, sha, files)
	s.gh.Object(hello, sha, map[string]any{"message": "hostile", "tree": map[string]any{"sha": gittest.Git(t, repo, "rev-parse", "HEAD^{tree}")},
		"author": who, "committer": who})
	s.gh.Changes(hello, sha, "main.go")
	s.deliver("push", s.push(map[string]any{"after": sha, "head_commit.id": sha}))
	s.ended(1)
	mu.Lock()
	defer mu.Unlock()
	if problem != nil {
		t.Fatal(problem)
	}
	to := t.TempDir()
	cmd := exec.Command("tar", "-x", "-C", to)
	cmd.Stdin = &got
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if arrived := gittest.Tree(t, to); !maps.Equal(arrived, files) {
		t.Errorf("%d of %d files arrived whole", len(arrived), len(files))
	}
	if head := gittest.Git(t, to, "rev-parse", "HEAD"); head != sha {
		t.Errorf("HEAD is %s and not %s: %q", head, sha, notes)
	}
	for _, n := range notes {
		if !strings.Contains(n, "Git LFS") {
			t.Error(n)
		}
	}
}
