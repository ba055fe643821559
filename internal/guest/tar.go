package guest

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
)

// ownersOfArchive is the user of TarIn that keeps the archive's own.
const ownersOfArchive = "tar"

// tarIn unpacks what the host sends below dir.
func (v *serving) tarIn(dir, user string) error {
	s := v.sess.server
	u := &unpacker{keep: user == ownersOfArchive}
	if !u.keep {
		id, err := s.users.lookup(user, s.opts.Runner)
		if err != nil {
			return err
		}
		u.id = id
	}
	owner := u.id
	owner.own = owner.own || u.keep
	if err := mkdirAll(dir, 0o755, owner); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u.root = root
	defer u.close()
	in := &input{v: v}
	if err := u.unpack(tar.NewReader(in)); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in) // what follows the end of the archive
	return err
}

// unpacker unpacks one archive. Everything goes through root, so no entry and no
// symbolic link leads out of it.
type unpacker struct {
	root *os.Root
	id   identity
	keep bool

	dir     *os.Root // the directory of the last entry: archives come directory by directory
	dirName string
	times   []dirTime // of directories, set last, since their files change them
}

type dirTime struct {
	name string
	mod  time.Time
}

func (u *unpacker) close() {
	if u.dir != nil {
		u.dir.Close()
		u.dir = nil
	}
}

func (u *unpacker) unpack(r *tar.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		if err := u.entry(h, r, buf); err != nil {
			return fmt.Errorf("archive: %q: %w", h.Name, err)
		}
	}
	for i := len(u.times) - 1; i >= 0; i-- {
		t := u.times[i]
		u.root.Chtimes(t.name, t.mod, t.mod)
	}
	return nil
}

func (u *unpacker) entry(h *tar.Header, r io.Reader, buf []byte) error {
	if len(h.Name) > maxNameLength {
		return syscall.ENAMETOOLONG
	}
	name := path.Clean(strings.TrimLeft(h.Name, "/"))
	if !filepath.IsLocal(name) {
		return errors.New("leads out of the directory")
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if name == "." {
		if h.Typeflag == tar.TypeDir {
			return nil
		}
		return errors.New("is no name for a file")
	}
	parent, base := path.Split(name)
	dir, err := u.parent(path.Clean(parent))
	if err != nil {
		return err
	}
	mode := h.FileInfo().Mode()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := dir.Mkdir(base, 0o700); err != nil {
			if st, e := dir.Lstat(base); e != nil || !st.IsDir() {
				if !errors.Is(err, fs.ErrExist) {
					return err
				}
				if err := dir.Remove(base); err != nil {
					return err
				}
				if err := dir.Mkdir(base, 0o700); err != nil {
					return err
				}
			}
		}
		u.times = append(u.times, dirTime{name, h.ModTime})
		if err := u.own(dir, base, h); err != nil {
			return err
		}
		return dir.Chmod(base, mode)
	case tar.TypeReg:
		f, err := create(dir, base)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.CopyBuffer(struct{ io.Writer }{f}, r, buf); err != nil {
			return err
		}
		if u.keep || !u.id.own {
			uid, gid := u.owner(h)
			if err := f.Chown(uid, gid); err != nil {
				return err
			}
		}
		if err := f.Chmod(mode); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		return dir.Chtimes(base, h.ModTime, h.ModTime)
	case tar.TypeSymlink:
		if err := again(dir, base, func() error { return dir.Symlink(h.Linkname, base) }); err != nil {
			return err
		}
		return u.own(dir, base, h)
	case tar.TypeLink:
		target := path.Clean(strings.TrimLeft(h.Linkname, "/"))
		if !filepath.IsLocal(target) {
			return errors.New("is a link out of the directory")
		}
		return again(u.root, name, func() error { return u.root.Link(target, name) })
	}
	return fmt.Errorf("is of a type (%q) that is not unpacked", h.Typeflag)
}

// create makes a new file, in the place of whatever was there: neither through a symbolic link nor into a file
// with other names.
func create(dir *os.Root, base string) (f *os.File, err error) {
	err = again(dir, base, func() error {
		f, err = dir.OpenFile(base, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		return err
	})
	return f, err
}

// again calls make, and once more without what was in its place.
func again(dir *os.Root, name string, make func() error) error {
	err := make()
	if errors.Is(err, fs.ErrExist) {
		if err := dir.Remove(name); err != nil {
			return err
		}
		err = make()
	}
	return err
}

// parent opens the directory an entry lies in, and makes it if the archive did not.
func (u *unpacker) parent(name string) (*os.Root, error) {
	if name == "." {
		return u.root, nil
	}
	if u.dir != nil && u.dirName == name {
		return u.dir, nil
	}
	u.close()
	dir, err := u.root.OpenRoot(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := u.makeParents(name); err != nil {
			return nil, err
		}
		dir, err = u.root.OpenRoot(name)
	}
	if err != nil {
		return nil, err
	}
	u.dir, u.dirName = dir, name
	return dir, nil
}

func (u *unpacker) makeParents(name string) error {
	if up := path.Dir(name); up != "." {
		if err := u.makeParents(up); err != nil {
			return err
		}
	}
	if err := u.root.Mkdir(name, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return u.own(u.root, name, nil)
}

func (u *unpacker) owner(h *tar.Header) (uid, gid int) {
	if u.keep && h != nil {
		return h.Uid, h.Gid
	}
	return u.id.uid, u.id.gid
}

func (u *unpacker) own(dir *os.Root, name string, h *tar.Header) error {
	if !u.keep && u.id.own || u.keep && h == nil {
		return nil
	}
	uid, gid := u.owner(h)
	return dir.Lchown(name, uid, gid)
}

// tarOut packs paths below dir and sends the archive.
func (v *serving) tarOut(dir string, paths []string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	w := tar.NewWriter(v)
	p := &packer{root: root, w: w, buf: make([]byte, MaxPayload), links: map[inode]string{}}
	for _, name := range paths {
		name = filepath.Clean(name)
		if !filepath.IsLocal(name) {
			return fmt.Errorf("%q leads out of %s", name, dir)
		}
		if err := p.add(name); err != nil {
			return err
		}
	}
	return w.Close()
}

type inode struct{ dev, ino uint64 }

type packer struct {
	root  *os.Root
	w     *tar.Writer
	buf   []byte
	links map[inode]string // files with several names, by the name they were packed with
}

func (p *packer) add(name string) error {
	st, err := p.root.Lstat(name)
	if err != nil {
		return err
	}
	target := ""
	switch st.Mode().Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if target, err = p.root.Readlink(name); err != nil {
			return err
		}
	default:
		return nil // devices, pipes and sockets mean nothing elsewhere
	}
	h, err := tar.FileInfoHeader(st, target)
	if err != nil {
		return err
	}
	h.Name = filepath.ToSlash(name)
	h.Format = tar.FormatPAX // any name, any size; times to the nanosecond are not kept
	h.ModTime = h.ModTime.Truncate(time.Second)
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.Uname, h.Gname = "", ""
	if !utf8.ValidString(h.Name) || !utf8.ValidString(h.Linkname) {
		h.Format = tar.FormatGNU // PAX has UTF-8 only
	}
	switch {
	case st.IsDir():
		h.Name += "/"
		if err := p.w.WriteHeader(h); err != nil {
			return err
		}
		d, err := p.root.Open(name)
		if err != nil {
			return err
		}
		names, err := d.Readdirnames(-1)
		d.Close()
		if err != nil {
			return err
		}
		slices.Sort(names)
		for _, n := range names {
			err := p.add(filepath.Join(name, n))
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // gone meanwhile
				return err
			}
		}
		return nil
	case st.Mode().IsRegular():
		if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Nlink > 1 {
			key := inode{uint64(sys.Dev), sys.Ino}
			if first, ok := p.links[key]; ok {
				h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
				return p.w.WriteHeader(h)
			}
			p.links[key] = h.Name
		}
		return p.file(name, h)
	}
	return p.w.WriteHeader(h)
}

// file packs a regular file as large as it was; one that shrinks meanwhile is padded, one that grows is cut.
func (p *packer) file(name string, h *tar.Header) error {
	f, err := p.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return err
	} else if !st.Mode().IsRegular() {
		return fmt.Errorf("%q has become %v", name, st.Mode().Type())
	}
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	left := h.Size
	for left > 0 {
		n, err := f.Read(p.buf[:min(int64(len(p.buf)), left)])
		if err == io.EOF {
			n, err = int(min(int64(len(p.buf)), left)), nil
			clear(p.buf[:n])
		}
		if err != nil {
			return err
		}
		if _, err := p.w.Write(p.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}
