package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/git"
)

func run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, name, text string) {
	t.Helper()
	os.MkdirAll(filepath.Dir(name), 0o755)
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// repository has two commits on main, a tag, a branch, and a working tree with
// a change, a new file, an ignored one and a deleted one.
func repository(t *testing.T) *Dir {
	dir := t.TempDir()
	run(t, dir, "git", "init", "-q", "-b", "main")
	write(t, dir+"/a.txt", "one")
	write(t, dir+"/gone.txt", "x")
	write(t, dir+"/.gitignore", "*.o\n")
	run(t, dir, "git", "add", ".")
	run(t, dir, "git", "commit", "-qm", "first")
	run(t, dir, "git", "tag", "v1")
	run(t, dir, "git", "branch", "side")
	write(t, dir+"/a.txt", "two")
	run(t, dir, "git", "commit", "-qam", "second")
	write(t, dir+"/a.txt", "three")
	write(t, dir+"/a file\nwith newline", "odd")
	write(t, dir+"/x.o", "ignored")
	os.Remove(dir + "/gone.txt")
	os.Symlink("a.txt", dir+"/link")
	write(t, dir+"/.git/hooks/post-checkout", "#!/bin/sh\ntouch /tmp/owned\n")
	os.Chmod(dir+"/.git/hooks/post-checkout", 0o755)
	run(t, dir, "git", "config", "user.signingkey", "secret-of-the-host")
	return &Dir{Root: dir, Repository: "octo/hello", Server: "https://github.com", Branch: "main"}
}

func checkout(t *testing.T, s interface {
	Checkout(context.Context, action.CheckoutRequest, io.Writer) (string, error)
}, req action.CheckoutRequest) (dir, sha string) {
	t.Helper()
	var b bytes.Buffer
	sha, err := s.Checkout(context.Background(), req, &b)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	cmd := exec.Command("tar", "-x", "-C", dir)
	cmd.Stdin = &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	return dir, sha
}

func TestWorkingTree(t *testing.T) {
	d := repository(t)
	dir, sha := checkout(t, d, action.CheckoutRequest{Depth: 1})
	if got := run(t, dir, "git", "rev-parse", "HEAD"); got != sha || got != run(t, d.Root, "git", "rev-parse", "HEAD") {
		t.Errorf("HEAD is %s, said %s", got, sha)
	}
	if b, _ := os.ReadFile(dir + "/a.txt"); string(b) != "three" {
		t.Errorf("a.txt is %q", b)
	}
	if b, _ := os.ReadFile(dir + "/a file\nwith newline"); string(b) != "odd" {
		t.Errorf("the odd name has %q", b)
	}
	if l, _ := os.Readlink(dir + "/link"); l != "a.txt" {
		t.Errorf("link is %q", l)
	}
	for _, no := range []string{"x.o", "gone.txt", ".git/hooks/post-checkout"} {
		if _, err := os.Lstat(filepath.Join(dir, no)); err == nil {
			t.Errorf("%s came along", no)
		}
	}
	if b, _ := os.ReadFile(dir + "/.git/config"); strings.Contains(string(b), "secret-of-the-host") {
		t.Error("the host's configuration came along")
	}
	if got := run(t, dir, "git", "log", "--format=%s"); got != "second" {
		t.Errorf("depth 1 has %q", got)
	}
	if got := run(t, dir, "git", "status", "--porcelain", "a.txt"); got != "M a.txt" {
		t.Errorf("status %q", got)
	}
	if got := run(t, dir, "git", "branch", "--show-current"); got != "main" {
		t.Errorf("on %q", got)
	}
	if got := run(t, dir, "git", "remote", "get-url", "origin"); got != "https://github.com/octo/hello" {
		t.Errorf("origin %q", got)
	}
}

func TestOtherRefs(t *testing.T) {
	d := repository(t)
	for _, ref := range []string{"v1", "side", "refs/heads/side", "refs/tags/v1", run(t, d.Root, "git", "rev-parse", "v1")} {
		dir, _ := checkout(t, d, action.CheckoutRequest{Ref: ref, Depth: 1})
		if b, _ := os.ReadFile(dir + "/a.txt"); string(b) != "one" {
			t.Errorf("%s: a.txt is %q", ref, b)
		}
		if got := run(t, dir, "git", "status", "--porcelain"); got != "" {
			t.Errorf("%s: not clean: %q", ref, got)
		}
	}
	dir, _ := checkout(t, d, action.CheckoutRequest{Depth: 0, Tags: true})
	if got := run(t, dir, "git", "log", "--format=%s"); got != "second\nfirst" {
		t.Errorf("history %q", got)
	}
	if got := run(t, dir, "git", "tag"); got != "v1" {
		t.Errorf("tags %q", got)
	}
	for _, ref := range []string{"nowhere", "--upload-pack=touch /tmp/owned", "a..b", "x y"} {
		_, err := d.Checkout(context.Background(), action.CheckoutRequest{Ref: ref}, io.Discard)
		var in *action.InputError
		if !errors.As(err, &in) {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

func TestDirectoryInsideAnotherRepository(t *testing.T) {
	outer := repository(t)
	inner := filepath.Join(outer.Root, "examples", "x")
	write(t, inner+"/main.c", "int main;")
	write(t, inner+"/main.o", "ignored by the outer .gitignore")
	write(t, inner+"/own.x", "ignored")
	write(t, inner+"/.gitignore", "*.x\n")
	d := &Dir{Root: inner}
	dir, sha := checkout(t, d, action.CheckoutRequest{})
	if _, err := os.Stat(dir + "/main.c"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/main.o"); err != nil {
		t.Error("the .gitignore of a directory above has a say")
	}
	if _, err := os.Stat(dir + "/own.x"); err == nil {
		t.Error("a file that its own .gitignore ignores came along")
	}
	if got := run(t, dir, "git", "rev-parse", "HEAD"); got != sha {
		t.Errorf("%s, said %s", got, sha)
	}
	if got := run(t, dir, "git", "status", "--porcelain"); got != "" {
		t.Errorf("not clean: %q", got)
	}
	if again, err := d.Commit(context.Background()); err != nil || again != sha {
		t.Errorf("the same tree is another commit: %s, %v", again, err)
	}
	plain := &Dir{Root: t.TempDir()}
	write(t, plain.Root+"/f", "x")
	if dir, _ := checkout(t, plain, action.CheckoutRequest{}); run(t, dir, "git", "ls-files") != "f" {
		t.Error("a plain directory is not taken whole")
	}
}

func packed(t *testing.T, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = 1
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			w.Write([]byte("x"))
		}
	}
	w.Close()
	z.Close()
	return b.Bytes()
}

func TestArchive(t *testing.T) {
	body := packed(t,
		&tar.Header{Typeflag: tar.TypeDir, Name: "octo-hello-abc/", Mode: 0o755},
		&tar.Header{Typeflag: tar.TypeReg, Name: "octo-hello-abc/run.sh", Mode: 0o775},
		&tar.Header{Typeflag: tar.TypeSymlink, Name: "octo-hello-abc/link", Linkname: "run.sh"})
	a := &Archive{SHA: strings.Repeat("ab", 20), Branch: "main", Repository: "octo/hello", Server: "https://github.com",
		Open: func(context.Context, string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }}
	dir, sha := checkout(t, a, action.CheckoutRequest{Depth: 1})
	if info, err := os.Stat(dir + "/run.sh"); err != nil || info.Mode()&0o100 == 0 || sha != a.SHA {
		t.Errorf("%v %v %s", info, err, sha)
	}
	if _, err := a.Checkout(context.Background(), action.CheckoutRequest{Ref: "other"}, io.Discard); err == nil {
		t.Error("another ref was accepted")
	}
}

// noneBehindLinks fails if an entry of an archive lies behind a link of it.
func noneBehindLinks(t *testing.T, what string, b io.Reader) {
	var links, names []string
	r := tar.NewReader(b)
	for {
		h, err := r.Next()
		if err != nil {
			break
		}
		if names = append(names, h.Name); h.Typeflag == tar.TypeSymlink {
			links = append(links, h.Name)
		}
	}
	for _, l := range links {
		for _, n := range names {
			if strings.HasPrefix(n, l+"/") {
				t.Errorf("%s: %s is behind a link", what, n)
			}
		}
	}
}

func TestHostileArchives(t *testing.T) {
	// In a tree the last one of a name is it: there is nothing to write through.
	link := map[string]bool{"through a link": true, "over a link": true}
	for name, h := range map[string][]*tar.Header{
		"up":               {{Typeflag: tar.TypeReg, Name: "top/../../evil"}},
		"git directory":    {{Typeflag: tar.TypeReg, Name: "top/.git/config"}},
		"through a link":   {{Typeflag: tar.TypeSymlink, Name: "top/d", Linkname: "/tmp"}, {Typeflag: tar.TypeReg, Name: "top/d/evil"}},
		"over a link":      {{Typeflag: tar.TypeSymlink, Name: "top/f", Linkname: "/tmp/evil"}, {Typeflag: tar.TypeReg, Name: "top/f"}},
		"a device":         {{Typeflag: tar.TypeChar, Name: "top/null"}},
		"a hard link":      {{Typeflag: tar.TypeLink, Name: "top/h", Linkname: "/etc/passwd"}},
		"larger than told": {{Typeflag: tar.TypeReg, Name: "top/a"}, {Typeflag: tar.TypeReg, Name: "top/b"}, {Typeflag: tar.TypeReg, Name: "top/c"}},
	} {
		body := packed(t, h...)
		read := func(c git.Content) error { _, err := io.Copy(io.Discard, c.Reader); return err }
		if err := each(bytes.NewReader(body), 2, read); name == "larger than told" && err == nil {
			t.Errorf("%s: read", name)
		}
		a := &Archive{SHA: strings.Repeat("ab", 20), Open: func(context.Context, string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }}
		var b bytes.Buffer
		_, err := a.Checkout(t.Context(), action.CheckoutRequest{Depth: 1}, &b)
		if err == nil && !link[name] && name != "larger than told" {
			t.Errorf("%s: checked out", name)
		}
		if err == nil {
			noneBehindLinks(t, name, &b)
		}
	}
	if each(strings.NewReader("no gzip"), 1, nil) == nil {
		t.Error("no gzip was read")
	}
	if _, err := os.Lstat("/tmp/evil"); err == nil {
		t.Error("something got out")
	}
}

// The temporary directory may lie inside the tree that is read.
func TestTemporaryDirectoryInTheTree(t *testing.T) {
	d := &Dir{Root: t.TempDir()}
	write(t, d.Root+"/sub/f", "x")
	os.Mkdir(d.Root+"/tmp", 0o755)
	t.Setenv("TMPDIR", d.Root+"/tmp")
	if dir, _ := checkout(t, d, action.CheckoutRequest{}); run(t, dir, "git", "ls-files") != "sub/f" {
		t.Errorf("the tree has %q", run(t, dir, "git", "ls-files"))
	}
}

// Repositories in every form that git leaves them in.
func TestForms(t *testing.T) {
	for name, c := range map[string]struct {
		make func(d *Dir)
		want string // of a.txt
	}{
		"a linked working tree": {func(d *Dir) {
			tree := filepath.Join(t.TempDir(), "tree")
			run(t, d.Root, "git", "worktree", "add", "-q", "-b", "other", tree, "v1")
			d.Root, d.Branch = tree, "other"
		}, "one"},
		"packed": {func(d *Dir) { run(t, d.Root, "git", "gc", "-q"); run(t, d.Root, "git", "pack-refs", "--all") }, "three"},
		"an index in two parts": {func(d *Dir) {
			run(t, d.Root, "git", "update-index", "--split-index")
			write(t, d.Root+"/more", "x")
			run(t, d.Root, "git", "add", "more")
		}, "three"},
		"a sparse checkout": {func(d *Dir) {
			write(t, d.Root+"/in/f", "x")
			run(t, d.Root, "git", "add", "in")
			run(t, d.Root, "git", "commit", "-qam", "third")
			run(t, d.Root, "git", "sparse-checkout", "set", "--no-cone", "/in/")
			if _, err := os.Stat(d.Root + "/a.txt"); err == nil {
				t.Fatal("it is not sparse")
			}
		}, "three"},
		"a conflict": {func(d *Dir) {
			run(t, d.Root, "git", "commit", "-qam", "ours")
			run(t, d.Root, "git", "checkout", "-q", "side")
			write(t, d.Root+"/a.txt", "theirs")
			run(t, d.Root, "git", "commit", "-qam", "theirs")
			run(t, d.Root, "git", "checkout", "-q", "main")
			exec.Command("git", "-C", d.Root, "-c", "user.name=a", "-c", "user.email=a@b", "merge", "-q", "side").Run()
			write(t, d.Root+"/a.txt", "resolved")
		}, "resolved"},
		"no ref at all": {func(d *Dir) { run(t, d.Root, "git", "checkout", "-q", "--detach"); d.Branch = "" }, "three"},
		"borrowed objects": {func(d *Dir) {
			to := filepath.Join(t.TempDir(), "clone")
			run(t, d.Root, "git", "clone", "-q", "--shared", "-b", "main", d.Root, to)
			d.Root = to
		}, "two"},
		"a shallow one": {func(d *Dir) {
			to := filepath.Join(t.TempDir(), "clone")
			run(t, d.Root, "git", "clone", "-q", "--depth=1", "-b", "main", "file://"+d.Root, to)
			d.Root = to
		}, "two"},
		"another hash": {func(d *Dir) {
			d.Root = t.TempDir()
			run(t, d.Root, "git", "init", "-q", "-b", "main", "--object-format=sha256")
			write(t, d.Root+"/a.txt", "long")
			run(t, d.Root, "git", "add", ".")
			run(t, d.Root, "git", "commit", "-qm", "first")
		}, "long"},
		"no commit yet": {func(d *Dir) {
			d.Root = t.TempDir()
			run(t, d.Root, "git", "init", "-q")
			write(t, d.Root+"/a.txt", "new")
		}, "new"},
	} {
		t.Run(name, func(t *testing.T) {
			d := repository(t)
			c.make(d)
			for _, depth := range []int{1, 0} {
				dir, sha := checkout(t, d, action.CheckoutRequest{Depth: depth})
				if b, _ := os.ReadFile(dir + "/a.txt"); string(b) != c.want {
					t.Errorf("depth %d: a.txt is %q", depth, b)
				}
				if name != "no commit yet" && sha != run(t, d.Root, "git", "rev-parse", "HEAD") || sha != run(t, dir, "git", "rev-parse", "HEAD") {
					t.Errorf("depth %d: HEAD is %s", depth, sha)
				}
				run(t, dir, "git", "fsck", "--no-progress", "--connectivity-only")
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := repository(t).Checkout(ctx, action.CheckoutRequest{}, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// An annotated tag stays one.
func TestAnnotatedTag(t *testing.T) {
	d := repository(t)
	run(t, d.Root, "git", "tag", "-a", "-m", "annotated", "v2", "v1")
	dir, sha := checkout(t, d, action.CheckoutRequest{Ref: "v2", Depth: 0})
	if run(t, dir, "git", "cat-file", "-t", "v2") != "tag" || sha != run(t, d.Root, "git", "rev-parse", "v1") {
		t.Error("the tag is not what it was")
	}
}

// What is in Git LFS comes as a pointer, and that is said.
func TestPointersAreSaid(t *testing.T) {
	d := repository(t)
	write(t, d.Root+"/big.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:"+strings.Repeat("0", 64)+"\nsize 9\n")
	var said []string
	if _, err := d.Checkout(t.Context(), action.CheckoutRequest{Depth: 1, Note: func(s string) { said = append(said, s) }}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if len(said) != 1 || !strings.Contains(said[0], "1 file, for instance \"big.bin\"") {
		t.Errorf("%q", said)
	}
}

// A run of a tag has the tag's tree, whatever lies in the directory.
func TestTreeOfTheRunsTag(t *testing.T) {
	d := repository(t)
	d.At = "refs/tags/v1"
	for _, ref := range []string{"", "refs/tags/v1"} {
		dir, sha := checkout(t, d, action.CheckoutRequest{Ref: ref, Depth: 1})
		if b, _ := os.ReadFile(dir + "/a.txt"); string(b) != "one" || sha != run(t, d.Root, "git", "rev-parse", "v1^{commit}") {
			t.Errorf("%q: a.txt is %q at %s", ref, b, sha)
		}
	}
	// Another branch can be asked for.
	dir, _ := checkout(t, d, action.CheckoutRequest{Ref: "main", Depth: 1})
	if b, _ := os.ReadFile(dir + "/a.txt"); string(b) == "one" {
		t.Errorf("main: a.txt is %q", b)
	}
}
