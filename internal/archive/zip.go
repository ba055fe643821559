package archive

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	// maxDirectory bounds what a zip archive says of itself, which is held in memory:
	// some hundred thousand entries.
	maxDirectory = 32 << 20

	// An archive may unpack to so many times what it takes, and so much in any case.
	maxRatio  = 100
	freeRatio = 64 << 20
)

// openZip reads what a hostile zip archive says of itself, which is bounded.
func openZip(r io.ReaderAt, size int64) (*zip.Reader, error) {
	budget := &budget{r: r, left: maxDirectory}
	z, err := zip.NewReader(budget, size)
	if errors.Is(err, errDirectory) || budget.spent {
		return nil, errDirectory
	}
	if err != nil {
		return nil, fmt.Errorf("no zip archive: %w", err)
	}
	budget.left = -1 // contents are not held
	return z, nil
}

// EachZipped calls fn with the regular files of a zip archive that was made in a
// machine, in its order: their names, valid paths below the archive's root, and
// their contents, of which whoever reads them has to say how much is enough.
func EachZipped(r io.ReaderAt, size int64, fn func(name string, r io.Reader) error) error {
	z, err := openZip(r, size)
	if err != nil {
		return err
	}
	for _, f := range z.File {
		if !f.Mode().IsRegular() || !fs.ValidPath(f.Name) {
			continue
		}
		in, err := f.Open()
		if err != nil {
			continue // of a method that nobody knows
		}
		err = fn(f.Name, in)
		in.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// Unzip writes a zip archive of size bytes that was made in a machine into dir, which
// must be there, and should be empty: it is a hostile guest's word. Nothing is written
// outside of dir, nothing that is there is replaced or written through; links, devices
// and names that lead elsewhere are left out (ErrLeftOut, with their names), and an
// archive that unpacks to far more than it takes is given up.
func Unzip(r io.ReaderAt, size int64, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	z, err := openZip(r, size)
	if err != nil {
		return err
	}
	u := &unpacking{root: root}
	most := max(size, size*maxRatio) // overflows to less than size only beyond any disk
	left := most + freeRatio
	for _, f := range z.File {
		if err := u.zipped(f, &left); err != nil {
			return fmt.Errorf("%q: %w", f.Name, err)
		}
	}
	if u.left != nil {
		return fmt.Errorf("%w: %s", ErrLeftOut, strings.Join(u.left, ", "))
	}
	return nil
}

var errDirectory = fmt.Errorf("the zip archive's directory has more than %d MiB", maxDirectory>>20)

// budget ends the reading of an archive's directory that is too large.
type budget struct {
	r     io.ReaderAt
	left  int64 // -1 is no limit
	spent bool
}

func (b *budget) ReadAt(p []byte, off int64) (int, error) {
	if b.left >= 0 {
		if b.left -= int64(len(p)); b.left < 0 {
			b.left, b.spent = 0, true
			return 0, errDirectory
		}
	}
	return b.r.ReadAt(p, off)
}

var errTooLarge = fmt.Errorf("the archive unpacks to more than %d times what it takes", maxRatio)

func (u *unpacking) zipped(f *zip.File, left *int64) error {
	if len(f.Name) > maxName {
		return errors.New("its name is too long")
	}
	name := filepath.FromSlash(strings.TrimSuffix(f.Name, "/"))
	mode := f.Mode()
	switch {
	case !filepath.IsLocal(name) || strings.ContainsAny(f.Name, "\\\x00"):
		u.leave(f.Name, "leads out of the directory")
		return nil
	case strings.HasSuffix(f.Name, "/") || mode.IsDir():
		return u.root.MkdirAll(name, 0o755)
	case !mode.IsRegular():
		u.leave(f.Name, "is neither file nor directory")
		return nil
	}
	if err := u.root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	in, err := f.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600|mode.Perm()&0o755)
	if errors.Is(err, fs.ErrExist) {
		return errors.New("it is there already, or twice in the archive")
	}
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(in, *left+1))
	err = errors.Join(err, out.Close())
	if *left -= n; *left < 0 {
		return errors.Join(errTooLarge, u.root.Remove(name))
	}
	return err
}
