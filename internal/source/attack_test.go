package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/git"
	"github.com/hearth-ci/hearth/internal/git/gittest"
)

// requests are what a workflow may ask for of a tree; other refs only where there
// are some.
var requests = map[string]action.CheckoutRequest{
	"depth 1": {Depth: 1}, "all": {Depth: 0, Tags: true}, "a tag": {Ref: "v1", Depth: 1}, "a branch": {Ref: "side", Depth: 0},
}

// whole checks that files of gittest.Files are in a tree, below prefix.
func whole(t *testing.T, got map[string]string, prefix string) {
	t.Helper()
	for name, text := range gittest.Files {
		if got[prefix+name] != text {
			t.Errorf("%s is %q", prefix+name, got[prefix+name])
		}
	}
}

// A tree that holds HEAD, objects/, refs/, index and a config (git checks it in
// without a word) was taken for a repository; the config's core.fsmonitor, filters
// and hooks then ran on the host, as whoever ran Hearth: root, in serve, by a pull
// request of a fork.
func TestAttackEmbeddedBareRepository(t *testing.T) {
	for name, build := range map[string]func(p *gittest.Trap, root string) (prefix string){
		"the top is one":     func(p *gittest.Trap, root string) string { p.Bare(root); return "" },
		"a directory is one": func(p *gittest.Trap, root string) string { p.Bare(root + "/x"); return "x/" },
		"beside a dead .git": func(p *gittest.Trap, root string) string { p.Bare(root); os.Mkdir(root+"/.git", 0o755); return "" },
		"a .git inside":      func(p *gittest.Trap, root string) string { armed(p, root+"/x"); return "x/" },
		"a .git file inside": func(p *gittest.Trap, root string) string { pointing(p, root); return "x/" },
		"a linked .git inside": func(p *gittest.Trap, root string) string {
			p.Bare(root + "/evil")
			gittest.Write(t, root+"/x/a.txt", "text\n")
			os.Symlink("../evil", root+"/x/.git")
			return "evil/"
		},
		"a tree with filters": func(p *gittest.Trap, root string) string {
			for n, text := range gittest.Files {
				gittest.Write(t, root+"/"+n, text)
			}
			gittest.Write(t, root+"/.gitmodules", "[submodule \"s\"]\n\tpath = s\n\turl = ext::"+p.Program+"\n\tupdate = !"+p.Program+"\n")
			gittest.Write(t, root+"/.gitconfig", p.Config(""))
			return ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, root := gittest.New(t), t.TempDir()
			prefix := build(p, root)
			d := &Dir{Root: root, Branch: "main"}
			dir, sha := checkout(t, d, action.CheckoutRequest{Depth: 1})
			got := gittest.Tree(t, dir)
			whole(t, got, prefix)
			want := gittest.Tree(t, root)
			for n := range got {
				if _, ok := want[n]; !ok {
					t.Errorf("%s came from nowhere", n)
				}
			}
			if again, err := d.Commit(t.Context()); err != nil || again != sha {
				t.Errorf("%s %v, checked out %s", again, err, sha)
			}
			if _, err := d.Checkout(t.Context(), action.CheckoutRequest{Ref: "v1"}, io.Discard); err == nil {
				t.Error("it has refs")
			}
		})
	}
}

// armed is a repository whose .git is hostile.
func armed(p *gittest.Trap, dir string) {
	gittest.Repository(p.T(), dir)
	p.Arm(dir+"/.git", "")
}

// pointing is a directory x whose .git is a file that points to a hostile one.
func pointing(p *gittest.Trap, root string) {
	p.Bare(root + "/evil")
	for n, text := range gittest.Files {
		gittest.Write(p.T(), root+"/x/"+n, text)
	}
	gittest.Write(p.T(), root+"/x/.git", "gitdir: ../evil\n")
}

// Where a directory has a .git, as a directory, a file or a link, it is a repository
// of the user's own, and its history and files are served; but what its config,
// hooks and attributes name is not run, whatever is asked for. All of it used to be
// obeyed but hooks and fsmonitor.
func TestAttackRepositoryConfig(t *testing.T) {
	for name, build := range map[string]func(p *gittest.Trap, root string){
		"a directory": armed,
		"a file": func(p *gittest.Trap, root string) {
			gittest.Repository(t, root)
			p.Bare(root + ".evil")
			os.RemoveAll(root + "/.git")
			gittest.Write(t, root+"/.git", "gitdir: "+root+".evil\n")
		},
		"a link": func(p *gittest.Trap, root string) {
			gittest.Repository(t, root)
			os.Rename(root+"/.git", root+".evil")
			p.Arm(root+".evil", "")
			os.Symlink(root+".evil", root+"/.git")
		},
		"a linked working tree": func(p *gittest.Trap, root string) {
			gittest.Repository(t, root+".main")
			gittest.Git(t, root+".main", "worktree", "add", "-q", "-b", "other", root)
			p.Arm(root+".main/.git", "[extensions]\n\tworktreeConfig = true\n")
			gittest.Write(t, root+".main/.git/worktrees/001/config.worktree", p.Config(""))
		},
		"a submodule in it": func(p *gittest.Trap, root string) {
			gittest.Repository(t, root)
			gittest.Repository(t, root+"/s")
			gittest.Git(t, root, "-c", "advice.addEmbeddedRepo=false", "add", "s")
			gittest.Git(t, root, "commit", "-qm", "submodule")
			p.Arm(root+"/s/.git", "")
			p.Arm(root+"/.git", "")
		},
		"a replaced object": func(p *gittest.Trap, root string) {
			gittest.Repository(t, root)
			other := gittest.Git(t, root, "commit-tree", "-m", "another", "HEAD^{tree}")
			gittest.Git(t, root, "replace", "HEAD", other)
			p.Arm(root+"/.git", "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, root := gittest.New(t), filepath.Join(t.TempDir(), "001")
			build(p, root)
			d := &Dir{Root: root, Branch: "main"}
			for name, req := range requests {
				dir, sha := checkout(t, d, req)
				whole(t, gittest.Tree(t, dir), "")
				// A git of the machine agrees; it has no filters.
				if got := gittest.Git(t, dir, "rev-parse", "HEAD"); got != sha {
					t.Errorf("%s: HEAD is %s, said %s", name, got, sha)
				}
				if b, _ := os.ReadFile(dir + "/.git/config"); bytes.Contains(b, []byte(p.Program)) {
					t.Errorf("%s: the host's config came along:\n%s", name, b)
				}
			}
		})
	}
}

// A partial clone's remote is asked for what is missing; its address may be a
// program (ext::), or its uploadpack.
func TestAttackPromisorRemote(t *testing.T) {
	p, root := gittest.New(t), t.TempDir()
	armed(p, root)
	p.Arm(root+"/.git", "[extensions]\n\tpartialClone = origin\n[core]\n\trepositoryformatversion = 1\n")
	blob := gittest.Git(t, root, "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "hash-object", "--no-filters", "a.txt")
	p.Runs()
	if err := os.Remove(filepath.Join(root, ".git/objects", blob[:2], blob[2:])); err != nil {
		t.Fatal(err)
	}
	d := &Dir{Root: root, Branch: "main"}
	for name, req := range requests {
		if _, err := d.Checkout(t.Context(), req, io.Discard); err == nil || !strings.Contains(err.Error(), "partial clone") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A job's own commit names hostile things in its tree; GitHub's archive of it was
// unpacked into a directory and git run there. Now it is never unpacked.
func TestAttackArchive(t *testing.T) {
	p, root := gittest.New(t), t.TempDir()
	p.Bare(root)
	p.Bare(root + "/sub/bare")
	var b bytes.Buffer
	pack(t, &b, gittest.Tree(t, root))
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	seen := 0
	a := &Archive{SHA: strings.Repeat("ab", 20), Branch: "main", Open: func(context.Context, string) (io.ReadCloser, error) {
		return io.NopCloser(io.TeeReader(&b, writerFunc(func(chunk []byte) {
			// While it comes in, none of it lies about as files.
			filepath.WalkDir(temp, func(name string, _ os.DirEntry, _ error) error {
				if seen++; filepath.Base(name) == "a.txt" {
					t.Error("the archive is unpacked on the host")
				}
				return nil
			})
		}))), nil
	}}
	dir, _ := checkout(t, a, action.CheckoutRequest{Depth: 1})
	if got, want := gittest.Tree(t, dir), gittest.Tree(t, root); !maps.Equal(got, want) {
		t.Errorf("%d files of %d arrived", len(got), len(want))
	}
	if left, _ := os.ReadDir(temp); seen == 0 || len(left) != 0 {
		t.Errorf("%d left in the temporary directory, %d seen", len(left), seen)
	}
	for _, name := range []string{".git/config", "sub/.GIT/config", "sub/../../../x", ".git", "sub/.git"} {
		b.Reset()
		pack(t, &b, map[string]string{name: "x"})
		if _, err := a.Checkout(t.Context(), action.CheckoutRequest{Depth: 1}, io.Discard); err == nil {
			t.Errorf("a file %s was taken", name)
		}
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// pack is an archive as GitHub makes them.
func pack(t *testing.T, w io.Writer, files map[string]string) {
	t.Helper()
	z := gzip.NewWriter(w)
	tw := tar.NewWriter(z)
	for name, text := range files {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "top/" + name, Mode: 0o664, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(tw, text)
	}
	if err := errors.Join(tw.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
}

// Anybody's `git init` in /tmp, with an exclude of everything, dropped all files
// from every checkout of an archive, and from every plain directory below it.
func TestAttackParentIgnores(t *testing.T) {
	outer := t.TempDir()
	gittest.Git(t, "", "init", "-q", outer)
	gittest.Write(t, outer+"/.gitignore", "*\n")
	gittest.Write(t, outer+"/.git/info/exclude", "*\n")
	t.Setenv("TMPDIR", outer)
	p, inner := gittest.New(t), outer+"/inner"
	p.Arm(outer+"/.git", "")
	for n, text := range gittest.Files {
		gittest.Write(t, inner+"/"+n, text)
	}
	dir, _ := checkout(t, &Dir{Root: inner}, action.CheckoutRequest{Depth: 1})
	whole(t, gittest.Tree(t, dir), "")
	var b bytes.Buffer
	pack(t, &b, gittest.Files)
	a := &Archive{SHA: strings.Repeat("ab", 20), Open: func(context.Context, string) (io.ReadCloser, error) { return io.NopCloser(&b), nil }}
	dir, _ = checkout(t, a, action.CheckoutRequest{Depth: 1})
	whole(t, gittest.Tree(t, dir), "")
	// A repository there is its own: neither does a directory above ignore in it.
	own := outer + "/own"
	gittest.Repository(t, own)
	gittest.Write(t, own+"/new", "new")
	dir, _ = checkout(t, &Dir{Root: own, Branch: "main"}, action.CheckoutRequest{Depth: 1})
	if got := gittest.Tree(t, dir); got["new"] != "new" {
		t.Errorf("%v", got)
	}
}

// Variables of the environment can be all that a config is.
func TestAttackEnvironment(t *testing.T) {
	p, root, evil := gittest.New(t), t.TempDir(), t.TempDir()
	gittest.Repository(t, root)
	p.Bare(evil)
	want := gittest.Git(t, root, "rev-parse", "HEAD")
	gittest.Write(t, evil+"/.gitconfig", p.Config("")+"[safe]\n\tdirectory = *\n")
	gittest.Write(t, evil+"/git/config", p.Config(""))
	for k, v := range map[string]string{
		"GIT_DIR": evil, "GIT_WORK_TREE": evil, "GIT_INDEX_FILE": evil + "/index", "GIT_OBJECT_DIRECTORY": evil + "/objects", "GIT_CONFIG_GLOBAL": evil + "/config",
		"GIT_CONFIG_SYSTEM": evil + "/config", "GIT_CONFIG_PARAMETERS": "'core.fsmonitor'='" + p.Program + "'", "GIT_EXTERNAL_DIFF": p.Program,
		"GIT_SSH_COMMAND":   p.Program,
		"GIT_PROXY_COMMAND": p.Program, "GIT_ASKPASS": p.Program, "GIT_PAGER": p.Program, "GIT_EDITOR": p.Program, "PAGER": p.Program, "EDITOR": p.Program,
		"GIT_CONFIG_COUNT": "1",
		"GIT_CONFIG_KEY_0": "core.fsmonitor", "GIT_CONFIG_VALUE_0": p.Program, "GIT_TEMPLATE_DIR": evil, "GIT_NAMESPACE": "x", "GIT_TRACE": evil + "/trace",
		"GIT_ALTERNATE_OBJECT_DIRECTORIES": evil + "/objects", "HOME": evil, "XDG_CONFIG_HOME": evil,
	} {
		t.Setenv(k, v)
	}
	d := &Dir{Root: root, Branch: "main"}
	for name, req := range requests {
		dir, sha := checkout(t, d, req)
		whole(t, gittest.Tree(t, dir), "")
		if req.Ref == "" && sha != want {
			t.Errorf("%s: %s", name, sha)
		}
	}
	if _, err := os.Stat(evil + "/trace"); err == nil {
		t.Error("git was traced")
	}
}

// A repository of another user's says what that user wants; git refuses it, and
// safe.directory=* had switched that off.
func TestAttackForeignRepository(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	p, root := gittest.New(t), t.TempDir()
	armed(p, root)
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("SUDO_UID", "")
	d := &Dir{Root: root, Branch: "main"}
	for _, what := range []string{root, root + "/.git"} {
		os.Remove(home + "/.gitconfig")
		if err := os.Lchown(what, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		foreign := func() bool {
			_, err := d.Checkout(t.Context(), action.CheckoutRequest{Depth: 1}, io.Discard)
			_, is := errors.AsType[*git.ForeignError](err)
			if is && !strings.Contains(err.Error(), "git config --global --add safe.directory "+root) {
				t.Error(err)
			}
			return is
		}
		if !foreign() {
			t.Errorf("%s of another user's was read", what)
		}
		for value, safe := range map[string]bool{root: true, root + "x": false, "*": true, filepath.Dir(root) + "/*": true, "": false} {
			gittest.Write(t, home+"/.gitconfig", "[safe]\n\tdirectory = "+value+"\n")
			if foreign() == safe {
				t.Errorf("%s: safe.directory = %q: safe is %v", what, value, !safe)
			}
		}
		t.Setenv("SUDO_UID", "12345")
		os.Remove(home + "/.gitconfig")
		if foreign() {
			t.Error("the repository of who called sudo was not read")
		}
		t.Setenv("SUDO_UID", "")
		os.Lchown(what, 0, 0)
	}
}

// Secrets, variables and inputs for `hearth run` lay in the machine of every job,
// for any action to read, unless an ignore file named them.
func TestAttackSecretsInTheTree(t *testing.T) {
	private := []string{".secrets", ".vars", ".env", ".input", "sub/.secrets", "sub/.env"}
	for _, repository := range []bool{false, true} {
		root := t.TempDir()
		gittest.Write(t, root+"/f", "x")
		if repository {
			gittest.Repository(t, root)
		}
		for _, n := range append(private, "named") {
			gittest.Write(t, root+"/"+n, "TOKEN=hunter2")
		}
		d := &Dir{Root: root, Branch: "main", Stay: []string{root + "/named"}}
		dir, _ := checkout(t, d, action.CheckoutRequest{Depth: 1})
		for name, text := range gittest.Tree(t, dir) {
			if strings.Contains(text, "hunter2") {
				t.Errorf("repository %v: %s is in the machine", repository, name)
			}
		}
		if !repository {
			continue
		}
		gittest.Git(t, root, "add", "-f", ".env", "named")
		dir, _ = checkout(t, d, action.CheckoutRequest{Depth: 1})
		got := gittest.Tree(t, dir)
		if got[".env"] == "" || got["named"] == "" {
			t.Error("a tracked file stayed here")
		}
		if got[".secrets"] != "" {
			t.Error("an untracked one did not")
		}
	}
}

// A file of the tree may be replaced by a link to one of the host's, or lie behind
// one, between two looks at it.
func TestAttackLinksOutOfTheTree(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	gittest.Repository(t, root)
	gittest.Write(t, outside+"/b.txt", "of the host")
	os.RemoveAll(root + "/sub")
	if err := os.Symlink(outside, root+"/sub"); err != nil {
		t.Fatal(err)
	}
	dir, _ := checkout(t, &Dir{Root: root, Branch: "main"}, action.CheckoutRequest{Depth: 1})
	for name, text := range gittest.Tree(t, dir) {
		if text == "of the host" {
			t.Errorf("%s is a file of the host's", name)
		}
	}
	if to, _ := os.Readlink(dir + "/sub"); to != outside {
		t.Errorf("the link is %q", to)
	}
}
