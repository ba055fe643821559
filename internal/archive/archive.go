// Package archive copies files between this host and a machine, as tar archives.
// Pack writes what is ours; Unpack reads what a guest sent, which is hostile. Each is
// how archives of any other making are read.
package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// Pack writes the file or directory src to w as an archive whose one top entry is
// called name. Devices, pipes and sockets are left out; symbolic links stay links.
func Pack(w io.Writer, src, name string) error {
	t := tar.NewWriter(w)
	src = filepath.Clean(src)
	st, err := os.Stat(src) // a link that is named itself is followed
	if err != nil {
		return err
	}
	root, only := src, "."
	if !st.IsDir() {
		real, err := filepath.EvalSymlinks(src)
		if err != nil {
			return err
		}
		root, only = filepath.Dir(real), filepath.Base(real)
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	err = fs.WalkDir(r.FS(), only, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		as := name
		if only == "." {
			as = path.Join(name, p)
		}
		return pack(t, r, p, as)
	})
	if err != nil {
		return err
	}
	return t.Close()
}

func pack(t *tar.Writer, r *os.Root, p, as string) error {
	st, err := r.Lstat(p)
	if err != nil {
		return err
	}
	target := ""
	switch st.Mode().Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if target, err = r.Readlink(p); err != nil {
			return err
		}
	default:
		return nil
	}
	h, err := tar.FileInfoHeader(st, target)
	if err != nil {
		return err
	}
	h.Name, h.Format = as, tar.FormatPAX
	if !validUTF8(h.Name) || !validUTF8(h.Linkname) {
		h.Format = tar.FormatGNU // PAX has UTF-8 only
	}
	h.ModTime = h.ModTime.Truncate(time.Second)
	h.AccessTime, h.ChangeTime, h.Uname, h.Gname = time.Time{}, time.Time{}, "", ""
	if st.IsDir() {
		h.Name += "/"
	}
	if !st.Mode().IsRegular() {
		return t.WriteHeader(h)
	}
	f, err := r.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(t, io.LimitReader(f, h.Size))
	if err == nil && n < h.Size {
		err = fmt.Errorf("%s became shorter while it was copied", f.Name())
	}
	return err
}

func validUTF8(s string) bool { return strings.ToValidUTF8(s, "") == s }

// Limits of what Unpack takes from a guest.
const (
	maxEntries = 1 << 20
	maxName    = 4096
)

// ErrLeftOut says that some of an archive was not unpacked because it must not be;
// all else was.
var ErrLeftOut = errors.New("left out")

// Unpack writes an archive whose one top entry is called name below dir, where that
// entry is called as. The archive is a hostile guest's word: nothing is written
// outside of dir/as, existing files are replaced and not written through, there are
// no devices, no set-user-id bits, no owner but us, and links that point outside of
// what is copied are left out (ErrLeftOut, with their names).
func Unpack(r io.Reader, dir, name, as string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	in := &counter{r: r}
	r = in
	u := &unpacking{root: root, in: in, name: name, as: as, links: map[string]bool{}}
	err = Each(r, Limits{Entries: maxEntries}, func(h *tar.Header, r io.Reader) error {
		if err := u.entry(h, r); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("the archive from the VM: %w", err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	for i := len(u.dirs) - 1; i >= 0; i-- { // their files are in
		d := u.dirs[i]
		if st, err := root.Lstat(d.name); err != nil || !st.IsDir() {
			continue // the archive replaced it
		}
		root.Chtimes(d.name, d.mod, d.mod)
		if err := root.Chmod(d.name, d.mode); err != nil {
			return err
		}
	}
	if u.left != nil {
		return fmt.Errorf("%w: %s", ErrLeftOut, strings.Join(u.left, ", "))
	}
	return nil
}

type unpacking struct {
	root     *os.Root
	name, as string
	in       *counter
	written  int64
	dirs     []dirMode
	links    map[string]bool // symbolic ones, that were made
	left     []string
	count    int
}

// counter counts what was read of the archive, grown what was written of it: never
// more, or a few bytes could fill the disk (a sparse file's holes).
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

type grown struct {
	w io.Writer
	u *unpacking
}

func (g *grown) Write(p []byte) (int, error) {
	if g.u.written += int64(len(p)); g.u.written > g.u.in.n {
		return 0, errors.New("it is larger than what the machine sent")
	}
	return g.w.Write(p)
}

type dirMode struct {
	name string
	mode fs.FileMode
	mod  time.Time
}

func (u *unpacking) leave(name, why string) {
	if u.count++; u.count <= 20 {
		u.left = append(u.left, fmt.Sprintf("%q %s", name, why))
	} else {
		u.left[19] = fmt.Sprintf("and %d more", u.count-19)
	}
}

// rename gives an entry of the archive its place below dir.
func (u *unpacking) rename(name string) (string, error) {
	if len(name) > maxName {
		return "", errors.New("its name is too long")
	}
	name = path.Clean(name)
	rest, ok := strings.CutPrefix(name, u.name)
	if !ok || rest != "" && rest[0] != '/' {
		return "", errors.New("it is not below what was asked for")
	}
	name = filepath.FromSlash(u.as + rest)
	if !filepath.IsLocal(name) {
		return "", errors.New("it leads out of the directory")
	}
	return name, nil
}

func (u *unpacking) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := u.rename(h.Name)
	if err != nil {
		return err
	}
	for up := filepath.Dir(name); up != "."; up = filepath.Dir(up) {
		if u.links[up] {
			return errors.New("it lies behind a link of the same archive")
		}
	}
	delete(u.links, name)
	mode := h.FileInfo().Mode().Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		st, err := u.root.Lstat(name)
		if err == nil && !st.IsDir() {
			if err = u.root.Remove(name); err == nil {
				err = fs.ErrNotExist
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = u.root.Mkdir(name, 0o700)
		}
		if err != nil {
			return err
		}
		u.dirs = append(u.dirs, dirMode{name, mode, h.ModTime})
		return nil
	case tar.TypeReg:
		var f *os.File
		err := u.replace(name, func() (err error) {
			f, err = u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			return err
		})
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.Copy(&grown{f, u}, r); err != nil {
			return err
		}
		if err := f.Chmod(mode); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		return u.root.Chtimes(name, h.ModTime, h.ModTime)
	case tar.TypeSymlink:
		// Harmless now, but not for whoever writes to it later.
		if !u.inside(name, h.Linkname) {
			u.leave(h.Name, "is a link out of what is copied, to "+h.Linkname)
			return nil
		}
		u.links[name] = true
		return u.replace(name, func() error { return u.root.Symlink(h.Linkname, name) })
	case tar.TypeLink:
		target, err := u.rename(h.Linkname)
		if err != nil {
			u.leave(h.Name, "is a link out of what is copied, to "+h.Linkname)
			return nil
		}
		// Only to a file: the other name of a link could be written through.
		if st, err := u.root.Lstat(target); err != nil || !st.Mode().IsRegular() {
			u.leave(h.Name, "is a link to no file")
			return nil
		}
		return u.replace(name, func() error { return u.root.Link(target, name) })
	}
	u.leave(h.Name, "is neither file, directory nor link")
	return nil
}

// inside says whether the link name leads to something below as, whatever other
// links it leads through: it goes up only at its beginning, from a directory that
// is none, and a link that it comes to later is inside itself.
func (u *unpacking) inside(name, target string) bool {
	if target == "" || filepath.IsAbs(target) || name == u.as {
		return false
	}
	down := false
	for p := range strings.SplitSeq(target, "/") {
		if p == ".." && down {
			return false
		}
		down = down || p != ".." && p != "." && p != ""
	}
	rel, err := filepath.Rel(u.as, filepath.Join(filepath.Dir(name), target))
	return err == nil && filepath.IsLocal(rel)
}

// replace makes something in the place of whatever was there.
func (u *unpacking) replace(name string, make func() error) error {
	err := make()
	if errors.Is(err, fs.ErrExist) {
		if err := u.root.Remove(name); err != nil {
			return err
		}
		err = make()
	}
	return err
}
