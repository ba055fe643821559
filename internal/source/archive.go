package source

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strings"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/archive"
	"github.com/hearth-ci/hearth/internal/git"
)

// MaxArchive bounds what a commit's archive may unpack to, in bytes.
const MaxArchive = 4 << 30

const (
	maxFiles = 1_000_000
	maxNames = 64 << 20 // bytes of all names
)

// Archive is a commit as GitHub packs it: a gzipped tar with everything under
// one directory. It is never unpacked on this host: its files go straight into a
// git directory, and from there into the machine.
type Archive struct {
	SHA        string
	Branch     string // where the commit is on one
	Repository string
	Server     string
	// Open fetches the archive of a commit.
	Open func(ctx context.Context, sha string) (io.ReadCloser, error)
	// Commit fetches what a commit is; nil is not known.
	Commit func(ctx context.Context, sha string) (*git.Commit, error)
	// Token makes a token that may read the repository, for its history; it stays
	// on this host. nil is none: there is no history then.
	Token func(ctx context.Context) (string, error)
}

// Checkout writes the commit. Without history it comes as an archive: it is the very
// commit, name and all, if the archive holds its tree as it is. A repository's
// attributes can make GitHub leave files out or change them, and submodules are not in
// an archive: then the commit is fetched from the server, as more history and tags
// are. What cannot be fetched is said in the step's log, and the commit is one of our
// own, with the archive's files.
func (a *Archive) Checkout(ctx context.Context, req action.CheckoutRequest, w io.Writer) (string, error) {
	if len(req.Within) > 0 {
		return "", action.ErrNotHere
	}
	if r := req.Ref; r != "" && r != a.SHA && r != a.Branch && r != "refs/heads/"+a.Branch {
		return "", &action.InputError{Msg: fmt.Sprintf("only the run's own commit %s can be checked out here, not %q", a.SHA, r)}
	}
	if req.Depth != 1 || req.Tags {
		sha, err := a.fetch(ctx, req, w)
		failed, ok := errors.AsType[*unserved](err)
		if !ok || ctx.Err() != nil {
			return sha, err
		}
		req.Say("The history that was asked for (fetch-depth: %d, fetch-tags: %v) could not be fetched from %s: %v. The commit comes alone.", req.Depth, req.Tags,
			a.Server, failed.err)
	}
	return importing(func(g git.Dir) (string, error) {
		own, tree, err := g.Import(ctx, "The tree of "+a.SHA+"\n", func(ctx context.Context, fn func(git.Content) error) error {
			body, err := a.Open(ctx, a.SHA)
			if err != nil {
				return err
			}
			defer body.Close()
			if err := each(body, MaxArchive, fn); err != nil {
				return fmt.Errorf("archive of %s: %w", a.SHA, err)
			}
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("checkout: %w", err)
		}
		large, err := a.large(ctx, req)
		if err != nil {
			return "", err
		}
		c := git.Checkout{From: g, Ours: true, SHA: a.SHA, Origin: origin(a.Server, a.Repository), Note: req.Note, Modules: req.Modules, LFS: large}
		if c.Shallow, err = a.adopt(ctx, g, tree); err != nil {
			if ctx.Err() != nil {
				return "", context.Cause(ctx)
			}
			if errors.Is(err, errDiffers) || errors.Is(err, git.ErrNotRebuilt) {
				again := req
				again.Depth, again.Tags = 1, false
				sha, ferr := a.fetch(ctx, again, w)
				failed, ok := errors.AsType[*unserved](ferr)
				if !ok {
					return sha, ferr
				}
				if req.Modules != nil {
					return "", &action.InputError{Msg: fmt.Sprintf("the submodules of %s are not known: an archive does not name them, and the commit could not be fetched from %s: %v",
						a.SHA, a.Server, failed)}
				}
				err = fmt.Errorf("%w; and the commit could not be fetched from %s: %w", err, a.Server, failed)
			}
			c.SHA = own
			req.Say("HEAD is %s and not %s: the archive of the commit is not the commit itself (%v). The files are those of the archive.", own, a.SHA, err)
		}
		if a.Branch != "" && !git.ObjectID(req.Ref) {
			c.Ref = "refs/heads/" + a.Branch
		}
		return a.SHA, writing(ctx, c, w)
	})
}

// writing writes a checkout; that a file of Git LFS is not to be had is told the author.
func writing(ctx context.Context, c git.Checkout, w io.Writer) error {
	err := c.Write(ctx, w)
	if large, ok := errors.AsType[*git.LFSError](err); ok {
		err = &action.InputError{Msg: large.Error()}
	}
	return err
}

// large is what brings files of Git LFS, with the token that reads the history.
func (a *Archive) large(ctx context.Context, req action.CheckoutRequest) (_ *git.LFS, err error) {
	if req.LFS && a.Token != nil {
		if req.Token, err = a.Token(ctx); err != nil {
			return nil, &action.InputError{Msg: fmt.Sprintf("Git LFS: there is no token for it: %v", err)}
		}
	}
	return req.Large("", origin(a.Server, a.Repository)), nil
}

// unserved is a history that could not be had.
type unserved struct{ err error }

func (e *unserved) Error() string { return e.err.Error() }

// errDiffers says that an archive holds other files than its commit.
var errDiffers = errors.New("the files in it are not those of the commit: the repository's attributes change archives, or it has submodules")

// fetch writes the commit with what it comes from, fetched with a token.
func (a *Archive) fetch(ctx context.Context, req action.CheckoutRequest, w io.Writer) (string, error) {
	from := git.Remote{URL: origin(a.Server, a.Repository)}
	if a.Token == nil || from.URL == "" {
		return "", &unserved{errors.New("there is no token for it")}
	}
	var err error
	if from.Token, err = a.Token(ctx); err != nil {
		return "", &unserved{err}
	}
	return importing(func(g git.Dir) (string, error) {
		flags, specs := git.History(a.SHA, req.Depth, req.Tags)
		if err := g.Fetch(ctx, from, flags, specs...); err != nil {
			return "", &unserved{err}
		}
		req.Token = from.Token
		c := git.Checkout{From: g, Ours: true, SHA: a.SHA, Depth: req.Depth, Tags: req.Tags, Origin: from.URL, Note: req.Note, Modules: req.Modules,
			LFS: req.Large("", from.URL)}
		if a.Branch != "" && !git.ObjectID(req.Ref) {
			c.Ref = "refs/heads/" + a.Branch
		}
		return a.SHA, writing(ctx, c, w)
	})
}

// adopt makes the commit itself over the tree that the archive gave. Its parents
// are not there if it has any.
func (a *Archive) adopt(ctx context.Context, g git.Dir, tree string) (parents bool, err error) {
	if a.Commit == nil {
		return false, errors.New("what else it holds is not known")
	}
	c, err := a.Commit(ctx, a.SHA)
	if err != nil {
		return false, err
	}
	if c.SHA != a.SHA {
		return false, fmt.Errorf("GitHub speaks of %.40q", c.SHA)
	}
	if c.Tree == "" {
		return false, errors.New("GitHub does not tell its tree")
	}
	if c.Tree != tree {
		return false, errDiffers
	}
	object, err := c.Object()
	if err != nil {
		return false, err
	}
	sha, err := g.Adopt(ctx, object)
	if err == nil && sha != a.SHA {
		err = git.ErrNotRebuilt
	}
	return len(c.Parents) > 0, err
}

// each calls fn with the files of a gzipped tar, without its top directory. Names
// that lead out of it are an error, whatever way they try.
func each(r io.Reader, max int64, fn func(git.Content) error) error {
	z, err := gzip.NewReader(r)
	if err != nil {
		return fmt.Errorf("not gzip: %w", err)
	}
	return archive.Each(z, archive.Limits{Entries: maxFiles, Names: maxNames, Bytes: max}, func(h *tar.Header, r io.Reader) error {
		_, name, _ := strings.Cut(path.Clean(h.Name), "/")
		if name == "" || h.Typeflag == tar.TypeXGlobalHeader {
			return nil
		}
		if !filepath.IsLocal(h.Name) || !filepath.IsLocal(name) {
			return fmt.Errorf("the name %.80q is not one of a commit", h.Name)
		}
		c := git.Content{File: git.File{Name: name, Mode: git.Regular}, Size: h.Size, Reader: r}
		switch h.Typeflag {
		case tar.TypeDir:
			return nil // of files, or of a submodule
		case tar.TypeReg:
			if h.Mode&0o111 != 0 {
				c.Mode = git.Executable
			}
		case tar.TypeSymlink:
			c.Mode, c.Link = git.Symlink, h.Linkname
		default:
			return fmt.Errorf("%.80q is of a kind that commits do not hold", h.Name)
		}
		return fn(c)
	})
}
