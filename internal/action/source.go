package action

import (
	"archive/tar"
	"context"
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
	t, err := r.mirror(ctx, owner, repo, req.Ref, req.Depth)
	if err != nil {
		return "", err
	}
	ref := ""
	if req.Ref != "" && !git.ObjectID(req.Ref) {
		ref = "refs/heads/" + strings.TrimPrefix(req.Ref, "refs/heads/")
	}
	if req.Tags && req.Depth != 0 {
		req.Say("fetch-tags is not used for %s/%s: of another repository only what was asked for is kept.", owner, repo)
	}
	c := git.Checkout{From: git.At(t.dir), SHA: t.SHA, Ref: ref, Depth: req.Depth, Origin: r.cfg.Server + "/" + owner + "/" + repo, Note: req.Note}
	return t.SHA, c.Write(ctx, w)
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
