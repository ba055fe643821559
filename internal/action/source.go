package action

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/hearth-ci/hearth/internal/git"
)

// CheckoutRequest is what actions/checkout asks for.
type CheckoutRequest struct {
	Ref   string // branch, tag, commit or full ref; "" is the run's own
	Depth int    // commits of history; 0 is all of it, with all branches and tags
	Tags  bool   // tags, too
	// Note takes sentences for the step's log: what came otherwise than asked for.
	// It may be nil.
	Note func(string)
	// Modules takes the submodules of what is checked out, whose directories are empty;
	// nil is nobody who asks. Within leads from the repository to one of them, which is
	// then what is checked out; [ErrNotHere] says that it has to come from elsewhere.
	Modules func([]git.Module)
	Within  []git.Module
	// LFS brings what pointers of Git LFS stand for. Token may read it; "" asks as nobody.
	LFS   bool
	Token string
}

// ErrNotHere says that a submodule's repository is not at hand.
var ErrNotHere = errors.New("the submodule's repository is not at hand")

// Large is what brings files of Git LFS for the request, nil for nothing. objects is
// the directory lfs/objects of a repository of this host, "" for none, url is where the
// repository is.
func (r CheckoutRequest) Large(objects, url string) *git.LFS {
	if !r.LFS {
		return nil
	}
	return &git.LFS{Objects: objects, Remote: git.Remote{URL: url, Token: r.Token}}
}

// Say hands a sentence to Note, if there is one.
func (r CheckoutRequest) Say(format string, args ...any) {
	if r.Note != nil {
		r.Note(fmt.Sprintf(format, args...))
	}
}

// Checkout writes another repository, through its mirror: a working tree with its
// .git directory, as a tar archive.
func (r *Resolver) Checkout(ctx context.Context, owner, repo string, req CheckoutRequest, w io.Writer) (string, error) {
	if r == nil {
		return "", inputError("checking out other repositories is switched off")
	}
	if r.cfg.From != nil {
		return r.cfg.From.Checkout(ctx, owner, repo, req, w)
	}
	server := r.cfg.Server + "/" + owner + "/" + repo
	w2 := want{ref: req.Ref, depth: req.Depth, tags: req.Tags || req.Depth == 0}
	forms := []string{req.Ref}
	if req.Ref != "" && !git.ObjectID(req.Ref) && !strings.HasPrefix(req.Ref, "refs/") {
		// A branch comes before a tag of the same name.
		forms = []string{"refs/heads/" + req.Ref, "refs/tags/" + req.Ref}
	}
	var t *Tree
	for _, w2.ref = range forms {
		var err error
		if t, err = r.mirror(ctx, owner, repo, w2); err == nil {
			break
		}
		if _, input := errors.AsType[*InputError](err); !input || w2.ref == forms[len(forms)-1] {
			return "", err
		}
	}
	c := git.Checkout{From: git.At(t.dir), SHA: t.SHA, Depth: req.Depth, Tags: req.Tags, Origin: server, Note: req.Note, Modules: req.Modules,
		LFS: req.Large("", server)}
	if c.Ref = t.head; strings.HasPrefix(w2.ref, "refs/") {
		c.Ref = w2.ref
	}
	err := c.Write(ctx, w)
	if large, ok := errors.AsType[*git.LFSError](err); ok {
		err = inputError("%v", large)
	}
	return t.SHA, err
}

// tarDir writes a directory as a tar archive. skip leaves out entries of its top.
func tarDir(ctx context.Context, dir string, w io.Writer, skip func(name string) bool) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	t := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if name == "." {
			return nil
		}
		if skip != nil && skip(name) {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		link := ""
		if fi.Mode()&fs.ModeSymlink != 0 {
			if link, err = root.Readlink(name); err != nil {
				return err
			}
		} else if !fi.IsDir() && !fi.Mode().IsRegular() {
			return nil
		}
		h, err := tar.FileInfoHeader(fi, link)
		if err != nil {
			return err
		}
		h.Name = name
		if fi.IsDir() {
			h.Name += "/"
		}
		// Whose it is here means nothing there.
		h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if !fi.Mode().IsRegular() {
			return nil
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		// A file that grows meanwhile is cut, one that shrinks is an error.
		_, err = io.CopyN(t, f, h.Size)
		return err
	})
	if err != nil {
		return err
	}
	return t.Close()
}
