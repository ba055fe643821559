// Package oci turns the layers of a container image into one tree, as a runtime would
// have stacked them, for a machine to boot from. Nothing is unpacked: what the layers
// hold is indexed, and their contents stay in one file until the tree is written
// (package erofs).
//
// # Stacking
//
// A later layer's entry takes the place of an earlier one's; a directory over a
// directory only changes its owner, mode and times. ".wh.NAME" takes NAME of the layers
// below away and ".wh..wh..opq" all of a directory's, wherever in their layer they
// stand: what the same layer brings stays. A hard link is another name for the file
// that its target is at that moment, which a later layer may replace without it. Paths
// go through symbolic links of the tree, never out of it.
//
// # Trust
//
// Layers are hostile. Names, links, numbers and sizes are checked, entries, depth and
// bytes are bounded each and in sum, and each layer's content is compared with the
// digest that the image's configuration has for it.
package oci

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/hearth-ci/hearth/internal/image/erofs"
)

// Limits of an image.
const (
	MaxBytes   = 32 << 30 // of all layers, uncompressed
	MaxEntries = 3_000_000
	MaxLayers  = 200

	maxPath  = 4096
	maxDepth = 200
	maxLinks = 40 // symbolic links on one path
)

// Layer is one layer of an image: its tar archive, and the sum that it must have.
type Layer struct {
	Open   func() (io.ReadCloser, error)
	SHA256 string // hex, of the uncompressed archive; "" is not compared
}

// Tree is an image's file system.
type Tree struct {
	Root *erofs.Inode

	spool   *os.File // what the layers' files hold, one after the other
	at      int64
	layer   map[*erofs.Inode]map[string]int // of each directory, in which layer its names were put
	entries int
}

// An Error says what is wrong with an image.
type Error struct {
	Layer int // from 1, 0 is the image
	Path  string
	Text  string
}

func (e *Error) Error() string {
	s := e.Text
	if e.Path != "" {
		s = fmt.Sprintf("%.200q: %s", e.Path, s)
	}
	if e.Layer > 0 {
		s = fmt.Sprintf("layer %d: %s", e.Layer, s)
	}
	return s
}

// Stack reads the layers, the lowest first. Their contents go to spool, which the
// tree reads from as long as it is used.
func Stack(layers []Layer, spool *os.File) (*Tree, error) {
	if len(layers) > MaxLayers {
		return nil, &Error{Text: fmt.Sprintf("it has %d layers, the most are %d", len(layers), MaxLayers)}
	}
	t := &Tree{Root: directory(), spool: spool, layer: map[*erofs.Inode]map[string]int{}}
	for n, l := range layers {
		if err := t.add(n+1, l); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func directory() *erofs.Inode {
	return &erofs.Inode{Mode: erofs.Directory | 0o755, Children: map[string]*erofs.Inode{}}
}

func (t *Tree) add(n int, l Layer) error {
	r, err := l.Open()
	if err != nil {
		return fmt.Errorf("layer %d: %w", n, err)
	}
	defer r.Close()
	sum := sha256.New()
	in := io.TeeReader(&limited{r: r, left: MaxBytes - t.at}, sum)
	tr := tar.NewReader(in)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return &Error{n, "", "its archive: " + err.Error()}
		}
		if t.entries++; t.entries > MaxEntries {
			return &Error{n, h.Name, fmt.Sprintf("the image has more than %d entries", MaxEntries)}
		}
		if err := t.entry(n, h, tr); err != nil {
			if e, ok := errors.AsType[*Error](err); ok {
				e.Layer, e.Path = n, h.Name
			}
			return err
		}
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // what is behind the archive's end belongs to the sum
		return &Error{n, "", err.Error()}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); l.SHA256 != "" && got != l.SHA256 {
		return &Error{n, "", fmt.Sprintf("its content has the sum %s, the image says %s", got, l.SHA256)}
	}
	return nil
}

// limited ends with an error beyond what is left.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("the image has more than %d GiB", MaxBytes>>30)
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

func bad(format string, args ...any) error { return &Error{Text: fmt.Sprintf(format, args...)} }

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

func (t *Tree) entry(n int, h *tar.Header, content io.Reader) error {
	if len(h.Name) > maxPath || strings.ContainsRune(h.Name, 0) {
		return bad("its path is unusable")
	}
	clean := path.Clean("/" + h.Name)
	if clean == "/" {
		if h.Typeflag == tar.TypeDir {
			describe(t.Root, h)
		}
		return nil
	}
	dir, err := t.directory(n, path.Dir(clean))
	if err != nil {
		return err
	}
	base := path.Base(clean)
	if len(base) > 255 {
		return bad("its name is too long")
	}
	switch {
	case base == opaque:
		t.clear(n, dir)
		return nil
	case strings.HasPrefix(base, whiteout+whiteout):
		return nil // of a storage driver, for itself
	case strings.HasPrefix(base, whiteout):
		name := strings.TrimPrefix(base, whiteout)
		if name == "" || name == "." || name == ".." {
			return bad("it takes nothing away")
		}
		if c := dir.Children[name]; c == nil {
			return nil
		} else if t.layer[dir][name] < n {
			delete(dir.Children, name)
		} else if c.Type() == erofs.Directory {
			t.clear(n, c)
		}
		return nil
	}
	var i *erofs.Inode
	switch h.Typeflag {
	case tar.TypeDir:
		if old := dir.Children[base]; old != nil && old.Type() == erofs.Directory {
			describe(old, h)
			t.put(n, dir, base, old)
			return nil
		}
		i = directory()
	case tar.TypeReg:
		if h.Size < 0 || h.Size > MaxBytes-t.at { // a sparse file says what it likes
			return bad("the image has more than %d GiB", MaxBytes>>30)
		}
		i = &erofs.Inode{Mode: erofs.Regular, Size: h.Size}
		at := t.at
		copied, err := io.Copy(t.spool, content)
		if err != nil {
			return fmt.Errorf("keeping what the image holds: %w", err)
		}
		if copied != h.Size {
			return bad("it has %d bytes, of %d", copied, h.Size)
		}
		t.at += copied
		i.Open = func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(t.spool, at, copied)), nil }
	case tar.TypeLink:
		target, err := t.lookup(path.Clean("/"+h.Linkname), false)
		if err != nil {
			return err
		}
		if target == nil || target.Type() == erofs.Directory {
			return bad("it is a link to %.200q, which is no file of the image", h.Linkname)
		}
		t.put(n, dir, base, target)
		return nil
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) >= maxPath || strings.ContainsRune(h.Linkname, 0) {
			return bad("it is a symbolic link to nothing that can be")
		}
		i = &erofs.Inode{Mode: erofs.Symlink, Target: h.Linkname}
	case tar.TypeChar, tar.TypeBlock:
		i = &erofs.Inode{Mode: erofs.CharDevice, Major: uint32(h.Devmajor), Minor: uint32(h.Devminor)}
		if h.Typeflag == tar.TypeBlock {
			i.Mode = erofs.BlockDevice
		}
		if h.Devmajor < 0 || h.Devmajor > 4095 || h.Devminor < 0 || h.Devminor > 1<<20-1 {
			return bad("there is no device %d:%d", h.Devmajor, h.Devminor)
		}
	case tar.TypeFifo:
		i = &erofs.Inode{Mode: erofs.FIFO}
	default:
		return bad("it is of a type %q that no image has", h.Typeflag)
	}
	describe(i, h)
	t.put(n, dir, base, i)
	return nil
}

// describe takes owner, mode, times and attributes from a header.
func describe(i *erofs.Inode, h *tar.Header) {
	i.Mode = i.Type() | uint32(h.Mode)&0o7777
	if i.Type() == erofs.Symlink {
		i.Mode |= 0o777
	}
	i.UID, i.GID, i.MTime = uint32(h.Uid), uint32(h.Gid), h.ModTime
	i.Attrs = nil
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok {
			continue
		}
		for _, kind := range []string{"user.", "security.capability", "security.ima", "system.posix_acl_access", "system.posix_acl_default"} {
			if name == kind || strings.HasSuffix(kind, ".") && strings.HasPrefix(name, kind) {
				if i.Attrs == nil {
					i.Attrs = map[string]string{}
				}
				i.Attrs[name] = v
			}
		}
	}
}

func (t *Tree) put(n int, dir *erofs.Inode, name string, i *erofs.Inode) {
	dir.Children[name] = i
	m := t.layer[dir]
	if m == nil {
		m = map[string]int{}
		t.layer[dir] = m
	}
	m[name] = n
}

// clear takes away what layers below n have put into a directory.
func (t *Tree) clear(n int, dir *erofs.Inode) {
	for name, c := range dir.Children {
		switch {
		case t.layer[dir][name] < n:
			delete(dir.Children, name)
		case c.Type() == erofs.Directory:
			t.clear(n, c)
		}
	}
}

// directory finds the directory at an absolute path, through links, and makes what of
// it is missing; what stands in the way and is no directory goes.
func (t *Tree) directory(n int, p string) (*erofs.Inode, error) {
	at, stack := t.Root, []*erofs.Inode{}
	todo := strings.Split(strings.Trim(p, "/"), "/")
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(stack) > 0 {
				at, stack = stack[len(stack)-1], stack[:len(stack)-1]
			}
			continue
		}
		c := at.Children[name]
		if c != nil && c.Type() == erofs.Symlink {
			if links++; links > maxLinks {
				return nil, bad("its path goes through more than %d links", maxLinks)
			}
			if strings.HasPrefix(c.Target, "/") {
				at, stack = t.Root, nil
			}
			todo = append(strings.Split(c.Target, "/"), todo...)
			continue
		}
		if c == nil || c.Type() != erofs.Directory {
			if t.entries++; t.entries > MaxEntries {
				return nil, bad("the image has more than %d entries", MaxEntries)
			}
			c = directory()
			t.put(n, at, name, c)
		}
		if stack = append(stack, at); len(stack) > maxDepth {
			return nil, bad("it lies in more than %d directories", maxDepth)
		}
		at = c
	}
	return at, nil
}

// lookup finds what stands at an absolute path, nil if nothing does. A symbolic link
// at its end is followed or is it.
func (t *Tree) lookup(p string, follow bool) (*erofs.Inode, error) {
	at, stack := t.Root, []*erofs.Inode{}
	todo := strings.Split(strings.Trim(p, "/"), "/")
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(stack) > 0 {
				at, stack = stack[len(stack)-1], stack[:len(stack)-1]
			}
			continue
		}
		c := at.Children[name]
		if c == nil {
			return nil, nil
		}
		if c.Type() == erofs.Symlink && (follow || len(todo) > 0) {
			if links++; links > maxLinks {
				return nil, bad("its path goes through more than %d links", maxLinks)
			}
			if strings.HasPrefix(c.Target, "/") {
				at, stack = t.Root, nil
			}
			todo = append(strings.Split(c.Target, "/"), todo...)
			continue
		}
		stack = append(stack, at)
		at = c
	}
	return at, nil
}
