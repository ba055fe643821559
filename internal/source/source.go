// Package source hands out a run's own repository, for actions/checkout: the
// working tree of a directory ([Dir]), or a commit as GitHub packs it ([Archive]).
//
// What it writes is a tar archive of a working tree with its .git directory, so
// that the usual git commands work in the machine, offline. Nothing of the
// host's git configuration, hooks, stashes, other branches or credentials gets
// into it: package git makes the .git directory anew, with just the history that
// was asked for, and runs nothing that a tree or a repository says.
//
// For the tree of a Dir, git itself says which files belong to it: those that
// are tracked and those that are not ignored, as they lie there now, uncommitted
// changes included; no filter and no attribute has a say. A directory that is no
// repository of its own (an example inside another project, an unpacked archive)
// is taken as it is, but for what its own .gitignore files ignore, and given a
// history of one commit. What lies above a directory never counts.
//
// The files that tell `hearth run` secrets, variables and inputs stay on the host
// unless they are tracked: [Private].
package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/git"
)

// Dir is a directory on this host.
type Dir struct {
	Root       string // absolute
	Repository string // owner/name, for the remote's address
	Server     string // https://github.com
	Branch     string // branch that HEAD is on; "" where it is on none
	// At is the ref that the run is of where that is not what lies in Root: a tag that was
	// pushed or released. Its commit's tree is checked out, not the working tree.
	At string
	// Stay are further files that stay on this host unless they are tracked.
	Stay []string

	mu   sync.Mutex
	tree string // see Tree
	torn bool   // two checkouts differed
}

// Tree names what was checked out of the run's own ref so far: the same files have
// the same name. It is "" before that, and where the files changed in between.
func (d *Dir) Tree() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.torn {
		return ""
	}
	return d.tree
}

func (d *Dir) checkedOut(tree string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.torn = d.torn || d.tree != "" && d.tree != tree
	d.tree = tree
}

// named passes files on, and makes a name of them as they go by.
func named(files git.Source, sum hash.Hash) git.Source {
	return func(ctx context.Context, fn func(git.Content) error) error {
		return files(ctx, func(c git.Content) error {
			fmt.Fprintf(sum, "%q %v %d %q\n", c.Name, c.Mode, c.Size, c.Link)
			if c.Reader != nil {
				c.Reader = io.TeeReader(c.Reader, sum)
			}
			return fn(c)
		})
	}
}

// Private says whether a file of a working tree is one of those that tell `hearth
// run` secrets, variables and inputs, wherever in the tree it lies.
func Private(name string) bool {
	switch path.Base(name) {
	case ".secrets", ".vars", ".env", ".input":
		return true
	}
	return false
}

// Checkout writes the working tree, or another commit of the repository.
func (d *Dir) Checkout(ctx context.Context, req action.CheckoutRequest, w io.Writer) (sha string, err error) {
	if len(req.Within) > 0 {
		return d.module(ctx, req, w)
	}
	r, err := git.Open(ctx, d.Root)
	if errors.Is(err, git.ErrNoRepository) {
		return d.plain(ctx, req, w)
	}
	if err != nil {
		return "", fmt.Errorf("checkout: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	c := git.Checkout{From: r.Dir(), SHA: r.Head, Depth: req.Depth, Tags: req.Tags, Origin: d.origin(), Note: req.Note, Modules: req.Modules,
		LFS: req.Large(r.Large(), d.origin())}
	if d.Branch != "" {
		c.Ref = "refs/heads/" + d.Branch
	}
	if d.At != "" && req.Ref == "" {
		req.Ref = d.At
	}
	sum := sha256.New()
	if d.At == "" && d.own(req.Ref) || strings.EqualFold(req.Ref, r.Head) {
		c.Files = func(ctx context.Context, fn func(git.Content) error) error {
			files, err := r.Files(ctx)
			if err != nil {
				return err
			}
			return r.Dir().ReadDisk(ctx, d.Root, d.leave(files), fn)
		}
		c.Files = named(c.Files, sum)
	} else {
		var ok bool
		if !action.ValidRef(req.Ref) {
			return "", &action.InputError{Msg: fmt.Sprintf("'%s' is not the name of a branch, tag or commit", req.Ref)}
		}
		if c.Ref, c.SHA, ok = r.Ref(ctx, req.Ref); !ok {
			return "", &action.InputError{Msg: fmt.Sprintf("A branch or tag with the name '%s' could not be found", req.Ref)}
		}
	}
	// A commit that was asked for by its id is checked out detached.
	if git.ObjectID(req.Ref) {
		c.Ref = ""
	}
	if err := writing(ctx, c, w); err != nil {
		if _, input := errors.AsType[*action.InputError](err); input {
			return "", err
		}
		if r.Partial {
			err = fmt.Errorf("%w (%s is a partial clone: what it lacks is not fetched for it; `git fetch --refetch --no-filter` brings all of it)", err, d.Root)
		}
		return "", fmt.Errorf("check out %s of %s: %w", c.SHA, d.Root, err)
	}
	switch {
	case c.Files != nil:
		d.checkedOut(fmt.Sprintf("tree:%x", sum.Sum(nil)[:16]))
	case d.At != "" && req.Ref == d.At:
		d.checkedOut(c.SHA)
	}
	return c.SHA, nil
}

// module writes a submodule as it lies in the working tree, changes included, or, if
// another commit of the repository was asked for, the commit that this names. It has to
// be a submodule of the user's making, with its git directory where `git submodule` puts
// it: a directory of a tree can say that it is the working tree of any repository.
func (d *Dir) module(ctx context.Context, req action.CheckoutRequest, w io.Writer) (string, error) {
	top, err := git.Open(ctx, d.Root)
	if errors.Is(err, git.ErrNoRepository) {
		return "", action.ErrNotHere
	}
	if err != nil {
		return "", fmt.Errorf("checkout: %w", err)
	}
	live := d.At == "" && d.own(req.Ref) || strings.EqualFold(req.Ref, top.Head)
	if err := top.Close(); err != nil {
		return "", err
	}
	m := req.Within[len(req.Within)-1]
	var below []string
	for _, in := range req.Within {
		below = append(below, in.Path)
	}
	r, err := top.Module(ctx, path.Join(below...))
	if errors.Is(err, git.ErrNoRepository) {
		return "", action.ErrNotHere
	}
	if err != nil {
		return "", fmt.Errorf("submodule %s: %w", m.Path, err)
	}
	defer r.Close()
	c := git.Checkout{From: r.Dir(), SHA: m.SHA, Depth: req.Depth, Origin: m.URL, Note: req.Note, Modules: req.Modules}
	if live {
		if c.SHA = r.Head; r.Head != m.SHA {
			req.Say("The submodule %s is at %s in the working tree, and not at %s.", m.Path, r.Head, m.SHA)
		}
		sub := &Dir{Root: r.Root, Stay: d.Stay}
		c.Files = func(ctx context.Context, fn func(git.Content) error) error {
			files, err := r.Files(ctx)
			if err != nil {
				return err
			}
			return r.Dir().ReadDisk(ctx, r.Root, sub.leave(files), fn)
		}
	} else if _, _, ok := r.Ref(ctx, m.SHA); !ok {
		return "", action.ErrNotHere
	}
	if err := c.Write(ctx, w); err != nil {
		return "", fmt.Errorf("check out the submodule %s: %w", m.Path, err)
	}
	return c.SHA, nil
}

// own says whether a ref is the run's own.
func (d *Dir) own(ref string) bool {
	return ref == "" || ref == d.Branch || ref == "refs/heads/"+d.Branch
}

// origin is the address of the remote.
func (d *Dir) origin() string { return origin(d.Server, d.Repository) }

func origin(server, repository string) string {
	if repository == "" {
		return ""
	}
	if server == "" {
		server = "https://github.com"
	}
	return strings.TrimRight(server, "/") + "/" + repository
}

// leave takes out what stays on this host.
func (d *Dir) leave(files []git.File) []git.File {
	stay := map[string]bool{}
	for _, s := range d.Stay {
		stay[real(s)] = true
	}
	root := real(d.Root)
	return slices.DeleteFunc(files, func(f git.File) bool {
		return !f.Tracked && (Private(f.Name) || stay[filepath.Join(root, filepath.FromSlash(f.Name))])
	})
}

// real is a path without links, where that can be found out.
func real(p string) string {
	if r, err := filepath.EvalSymlinks(p); err == nil {
		return r
	}
	return p
}

// plain makes a history of one commit for a directory without any.
func (d *Dir) plain(ctx context.Context, req action.CheckoutRequest, w io.Writer) (sha string, err error) {
	if !d.own(req.Ref) {
		return "", &action.InputError{Msg: fmt.Sprintf("%s is no git repository with a commit: there is no ref %q", d.Root, req.Ref)}
	}
	return importing(func(g git.Dir) (string, error) {
		sha, err := d.commit(ctx, g)
		if err != nil {
			return "", fmt.Errorf("checkout: %w", err)
		}
		d.checkedOut(sha)
		c := git.Checkout{From: g, Ours: true, SHA: sha, Ref: "refs/heads/" + d.branch(), Origin: d.origin(), Note: req.Note, Modules: req.Modules,
			LFS: req.Large("", d.origin())}
		return sha, writing(ctx, c, w)
	})
}

func (d *Dir) branch() string {
	if d.Branch == "" {
		return "main"
	}
	return d.Branch
}

// commit makes the commit of a directory without history.
func (d *Dir) commit(ctx context.Context, g git.Dir) (sha string, err error) {
	files, err := git.Plain(ctx, d.Root)
	if err != nil {
		return "", err
	}
	sha, _, err = g.Import(ctx, "The working tree of "+filepath.Base(d.Root)+"\n", func(ctx context.Context, fn func(git.Content) error) error {
		return g.ReadDisk(ctx, d.Root, d.leave(files), fn)
	})
	return sha, err
}

// importing runs fn with a git directory that is gone afterwards.
func importing(fn func(git.Dir) (string, error)) (_ string, err error) {
	g, err := git.Temp()
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(g.Path())) }()
	return fn(g)
}

// Commit returns the name that the commit of a directory without history will have
// in the machine: it follows from the files.
func (d *Dir) Commit(ctx context.Context) (string, error) {
	return importing(func(g git.Dir) (string, error) { return d.commit(ctx, g) })
}
