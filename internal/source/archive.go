package source

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/hearth-ci/hearth/internal/action"
)

// MaxArchive bounds what a commit's archive may unpack to, in bytes.
const MaxArchive = 4 << 30

// Archive is a commit as GitHub packs it: a gzipped tar with everything under
// one directory.
type Archive struct {
	SHA        string
	Branch     string // where the commit is on one
	Repository string
	Server     string
	// Open fetches the archive of a commit.
	Open func(ctx context.Context, sha string) (io.ReadCloser, error)
}

// Checkout writes the commit. History is one commit: an archive has none.
func (a *Archive) Checkout(ctx context.Context, req action.CheckoutRequest, w io.Writer) (string, error) {
	if r := req.Ref; r != "" && r != a.SHA && r != a.Branch && r != "refs/heads/"+a.Branch {
		return "", &action.InputError{Msg: fmt.Sprintf("only the run's own commit %s can be checked out here, not %q", a.SHA, r)}
	}
	dir, err := os.MkdirTemp("", "hearth-archive-")
	if err != nil {
		return "", fmt.Errorf("checkout: %w", err)
	}
	defer os.RemoveAll(dir)
	body, err := a.Open(ctx, a.SHA)
	if err != nil {
		return "", fmt.Errorf("checkout: %w", err)
	}
	err = Unpack(body, dir, MaxArchive)
	body.Close()
	if err != nil {
		return "", fmt.Errorf("checkout: archive of %s: %w", a.SHA, err)
	}
	d := Dir{Root: dir, Branch: a.Branch, Repository: a.Repository, Server: a.Server}
	if _, err := d.Checkout(ctx, action.CheckoutRequest{}, w); err != nil {
		return "", err
	}
	// The commit object is made anew and has a name of its own; what the run is
	// about is the one that was asked for.
	return a.SHA, nil
}

// Unpack writes a gzipped tar, without its top directory, below dir. Names that
// lead out of it are an error, whatever way they try.
func Unpack(r io.Reader, dir string, max int64) error {
	z, err := gzip.NewReader(r)
	if err != nil {
		return fmt.Errorf("not gzip: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	t := tar.NewReader(z)
	left, files := max, 0
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		_, name, _ := strings.Cut(path.Clean(h.Name), "/")
		if name == "" || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if !filepath.IsLocal(h.Name) || !filepath.IsLocal(name) || name == ".git" || strings.HasPrefix(name, ".git/") {
			return fmt.Errorf("the name %q is not one of a commit", h.Name)
		}
		if files++; files > 1_000_000 {
			return errors.New("more than a million files")
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o755)
		case tar.TypeReg:
			if left -= h.Size; left < 0 {
				return fmt.Errorf("it unpacks to more than %d bytes", max)
			}
			if err = root.MkdirAll(path.Dir(name), 0o755); err == nil {
				err = writeFile(root, name, t, h.Mode)
			}
		case tar.TypeSymlink:
			if err = root.MkdirAll(path.Dir(name), 0o755); err == nil {
				err = root.Symlink(h.Linkname, name)
			}
		default:
			return fmt.Errorf("%q is of a kind that commits do not hold", h.Name)
		}
		if err != nil {
			return err
		}
	}
}

func writeFile(root *os.Root, name string, r io.Reader, mode int64) error {
	perm := os.FileMode(0o644)
	if mode&0o111 != 0 {
		perm = 0o755
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
