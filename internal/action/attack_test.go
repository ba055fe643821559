package action

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/git/gittest"
)

// An action's repository, and one that is checked out beside the run's own, is
// somebody's: its attributes named filters and encodings for the checkout on the
// host, and a stand-in's directory may be a repository of any kind.
func TestAttackActionRepository(t *testing.T) {
	p, dir := gittest.New(t), t.TempDir()
	inner := filepath.Join(dir, "inner")
	p.Bare(inner)
	repo := filepath.Join(dir, "o", "r")
	gittest.Repository(t, repo)
	for name, text := range gittest.Tree(t, inner) {
		gittest.Write(t, repo+"/bare/"+name, text)
	}
	gittest.Write(t, repo+"/action.yml", "runs: {using: node20, main: main.js}\n")
	gittest.Write(t, repo+"/.gitmodules", "[submodule \"s\"]\n\tpath = s\n\turl = ext::"+p.Program+"\n\tupdate = !"+p.Program+"\n")
	gittest.Git(t, repo, "update-index", "--add", "--cacheinfo", "160000,"+strings.Repeat("1", 40)+",s")
	gittest.Git(t, repo, "-c", "core.attributesFile=/dev/null", "add", "-A", "action.yml", ".gitmodules", "bare")
	gittest.Git(t, repo, "commit", "-qm", "hostile")
	gittest.Git(t, repo, "tag", "v2")
	p.Arm(repo+"/.git", "")
	// The server's end runs what the server's config says, on the server.
	gittest.Write(t, repo+"/.git/config", "[core]\n\trepositoryformatversion = 0\n\tbare = false\n")
	p.Runs()
	want := gittest.Tree(t, repo)
	check := func(what string, got map[string]string) {
		t.Helper()
		for name, text := range want {
			if got[name] != text {
				t.Errorf("%s: %s is %q", what, name, got[name])
			}
		}
	}
	r := NewResolver(Config{Dir: t.TempDir(), Server: "file://" + dir})
	ref, err := ParseRef("o/r@v2")
	if err != nil {
		t.Fatal(err)
	}
	tree, err := r.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, src, err := tree.Load(t.Context(), ""); err != nil || !strings.Contains(string(src), "node20") {
		t.Errorf("%s %v", src, err)
	}
	check("the action", untar(t, func(w io.Writer) error { return tree.Tar(t.Context(), w) }))
	for _, req := range []CheckoutRequest{{Ref: "v2", Depth: 1}, {Ref: "main"}} {
		check("checked out", untar(t, func(w io.Writer) error { _, err := r.Checkout(t.Context(), "o", "r", req, w); return err }))
	}
	for _, stand := range []string{repo, inner} {
		p.Arm(repo+"/.git", "")
		over := NewResolver(Config{Dir: t.TempDir(), Offline: true, Overrides: map[string]string{"o/r": stand}})
		tree, err := over.Resolve(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		got := untar(t, func(w io.Writer) error { return tree.Tar(t.Context(), w) })
		for name, text := range gittest.Files {
			if got[name] != text {
				t.Errorf("%s: %s is %q", stand, name, got[name])
			}
		}
		tree.Load(t.Context(), "")
	}
}

// A token goes to the server that it is for and to no other, and to nothing that
// people read.
func TestAttackTokenInErrors(t *testing.T) {
	r := NewResolver(Config{Dir: t.TempDir(), Server: "file://" + t.TempDir(), Token: "tok-5e6f7a8b"})
	ref, err := ParseRef("o/r@v1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resolve(t.Context(), ref); err == nil || strings.Contains(err.Error(), "tok-") {
		t.Errorf("%v", err)
	}
	filepath.WalkDir(r.cfg.Dir, func(name string, e os.DirEntry, err error) error {
		if b, _ := os.ReadFile(name); strings.Contains(string(b), "tok-") {
			t.Errorf("the token is in %s", name)
		}
		return err
	})
}
