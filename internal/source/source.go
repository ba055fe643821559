// Package source hands out a run's own repository, for actions/checkout: the
// working tree of a directory ([Dir]), or a commit as GitHub packs it ([Archive]).
//
// What it writes is a tar archive of a working tree with its .git directory, so
// that the usual git commands work in the machine, offline. Nothing of the
// host's git configuration, hooks, stashes, other branches or credentials gets
// into it: the .git directory is made anew, in a temporary directory, with just
// the history that was asked for.
//
// For the tree of a Dir, git itself says which files belong to it: those that
// are tracked and those that are not ignored, as they are now, uncommitted
// changes included. A directory that is no repository of its own (an example
// inside another project) is given a history of one commit.
package source

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/action"
)

// Dir is a directory on this host.
type Dir struct {
	Root       string // absolute
	Repository string // owner/name, for the remote's address
	Server     string // https://github.com
	Branch     string // branch that HEAD is on; "" where it is on none
}

// Git runs git in a directory, with nothing of the user's configuration that
// could run programs, and returns what it printed.
func Git(ctx context.Context, dir string, args ...string) (string, error) {
	return git(ctx, dir, nil, args...)
}

func git(ctx context.Context, dir string, stdin []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "protocol.ext.allow=never", "-c", "safe.directory=*", "-c", "gc.auto=0"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "GIT_") }), "GIT_TERMINAL_PROMPT=0", "LC_ALL=C", "GIT_OPTIONAL_LOCKS=0")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", errors.New("git is not installed: apt-get install git")
		}
		text := strings.TrimSpace(errs.String())
		if len(text) > 500 {
			text = "…" + text[len(text)-500:]
		}
		return "", fmt.Errorf("git %s: %w: %s", args[0], err, text)
	}
	return out.String(), nil
}

// IsRepository reports whether dir is the top of a git repository with at least
// one commit.
func IsRepository(ctx context.Context, dir string) bool {
	top, err := Git(ctx, dir, "rev-parse", "--show-toplevel")
	if err != nil {
		return false
	}
	a, err1 := filepath.EvalSymlinks(strings.TrimRight(top, "\n"))
	b, err2 := filepath.EvalSymlinks(dir)
	if err1 != nil || err2 != nil || a != b {
		return false
	}
	_, err = Git(ctx, dir, "rev-parse", "--verify", "-q", "HEAD^{commit}")
	return err == nil
}

// Checkout writes the working tree, or another commit of the repository.
func (d *Dir) Checkout(ctx context.Context, req action.CheckoutRequest, w io.Writer) (sha string, err error) {
	own := req.Ref == "" || req.Ref == d.Branch || req.Ref == "refs/heads/"+d.Branch
	if IsRepository(ctx, d.Root) {
		out, err := Git(ctx, d.Root, "rev-parse", "--verify", "HEAD^{commit}")
		if err != nil {
			return "", fmt.Errorf("checkout: %w", err)
		}
		r := action.Repository{Dir: d.Root, Name: d.Repository, Server: d.Server, SHA: strings.TrimSpace(out), WorkTree: true}
		if d.Branch != "" {
			r.Ref = "refs/heads/" + d.Branch
		}
		if own {
			req.Ref = ""
		}
		return r.Checkout(ctx, req, w)
	}
	if !own {
		return "", &action.InputError{Msg: fmt.Sprintf("%s is no git repository with a commit: there is no ref %q", d.Root, req.Ref)}
	}
	temp, err := os.MkdirTemp("", "hearth-checkout-")
	if err != nil {
		return "", fmt.Errorf("checkout: %w", err)
	}
	defer os.RemoveAll(temp)
	return d.bare(ctx, temp, w)
}

// finish gives the new repository its remote and takes the samples out.
func (d *Dir) finish(ctx context.Context, temp string) error {
	os.RemoveAll(filepath.Join(temp, ".git", "hooks"))
	if d.Repository == "" {
		return nil
	}
	_, err := Git(ctx, temp, "remote", "add", "origin", strings.TrimRight(d.Server, "/")+"/"+d.Repository)
	return err
}

// bare makes a history of one commit for a directory without any.
func (d *Dir) bare(ctx context.Context, temp string, w io.Writer) (string, error) {
	branch := d.Branch
	if branch == "" {
		branch = "main"
	}
	if _, err := Git(ctx, temp, "init", "-q", "--initial-branch="+branch); err != nil {
		return "", err
	}
	names, err := d.names(ctx)
	if err != nil {
		return "", err
	}
	list := strings.Join(names, "\x00")
	if _, err := git(ctx, d.Root, []byte(list), "--work-tree="+d.Root, "--git-dir="+filepath.Join(temp, ".git"), "add", "-f", "--pathspec-from-file=-", "--pathspec-file-nul"); err != nil && len(names) > 0 {
		return "", err
	}
	// A fixed author and date: the same tree is the same commit.
	tree, err := Git(ctx, temp, "write-tree")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "git", "commit-tree", "-m", "The working tree of "+filepath.Base(d.Root), strings.TrimSpace(tree))
	cmd.Dir = temp
	cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=hearth", "GIT_AUTHOR_EMAIL=hearth@localhost", "GIT_AUTHOR_DATE=2001-01-01T00:00:00Z",
		"GIT_COMMITTER_NAME=hearth", "GIT_COMMITTER_EMAIL=hearth@localhost", "GIT_COMMITTER_DATE=2001-01-01T00:00:00Z", "GIT_DIR="+filepath.Join(temp, ".git"))
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git commit-tree: %w", err)
	}
	sha := strings.TrimSpace(string(out))
	if _, err := Git(ctx, temp, "update-ref", "refs/heads/"+branch, sha); err != nil {
		return "", err
	}
	if err := d.finish(ctx, temp); err != nil {
		return "", err
	}
	t := tar.NewWriter(w)
	if err := d.files(ctx, t); err != nil {
		return "", err
	}
	if err := addGit(t, temp); err != nil {
		return "", err
	}
	return sha, t.Close()
}

// Commit returns the name that the commit of a directory without history will
// have in the machine: it follows from the files.
func (d *Dir) Commit(ctx context.Context) (string, error) {
	if IsRepository(ctx, d.Root) {
		out, err := Git(ctx, d.Root, "rev-parse", "HEAD")
		return strings.TrimSpace(out), err
	}
	return d.Checkout(ctx, action.CheckoutRequest{}, io.Discard)
}

// names lists the files that belong to the tree, relative to Root.
func (d *Dir) names(ctx context.Context) ([]string, error) {
	// The --others of an untracked directory that is a repository itself is the
	// directory's name with a slash: not ours.
	out, err := Git(ctx, d.Root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ".")
	if err != nil {
		if _, inside := Git(ctx, d.Root, "rev-parse", "--git-dir"); inside == nil {
			return nil, err
		}
		return d.walk()
	}
	var names []string
	for n := range strings.SplitSeq(out, "\x00") {
		if n != "" && !strings.HasSuffix(n, "/") {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return slices.DeleteFunc(names, func(n string) bool {
		info, err := os.Lstat(filepath.Join(d.Root, filepath.FromSlash(n)))
		return err != nil || info.IsDir() // deleted, or a submodule
	}), nil
}

// walk lists everything, for a directory that git knows nothing of.
func (d *Dir) walk() ([]string, error) {
	var names []string
	err := filepath.WalkDir(d.Root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if e.Name() == ".git" {
				return fs.SkipDir
			}
			return nil
		}
		if !e.Type().IsRegular() && e.Type() != fs.ModeSymlink {
			return nil
		}
		rel, err := filepath.Rel(d.Root, p)
		names = append(names, filepath.ToSlash(rel))
		return err
	})
	return names, err
}

func (d *Dir) files(ctx context.Context, t *tar.Writer) error {
	names, err := d.names(ctx)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(d.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, n := range names {
		if err := addFile(t, root, n); err != nil {
			return err
		}
	}
	return nil
}

// addGit adds the .git directory of dir.
func addGit(t *tar.Writer, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".git", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: p + "/", Mode: 0o755})
		}
		return addFile(t, root, p)
	})
}

func addFile(t *tar.Writer, root *os.Root, name string) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, ModTime: info.ModTime(), Format: tar.FormatPAX}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
		if h.Linkname, err = root.Readlink(name); err != nil {
			return err
		}
		return t.WriteHeader(h)
	case !info.Mode().IsRegular():
		return nil
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h.Typeflag, h.Mode = tar.TypeReg, 0o644
	if info.Mode()&0o111 != 0 {
		h.Mode = 0o755
	}
	h.Size = info.Size()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	// The file may grow or shrink while we read it.
	n, err := io.Copy(t, io.LimitReader(f, h.Size))
	if err == nil && n < h.Size {
		_, err = io.CopyN(t, zeros{}, h.Size-n)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
