// Package erofs writes read-only file systems of Linux's EROFS, uncompressed, from a
// tree that is only described: no file has to lie on this machine with the owner,
// the mode or the device number that it is to have, so that neither root nor a
// namespace is needed, and nothing of a foreign image is ever unpacked onto the host.
//
// # What is written
//
//	block 0      superblock, at byte 1024
//	block 1 …    inodes (64 bytes each, extended form), their attributes behind them
//	then         the blocks of directories, links and files, each from a new block
//
// Everything is plain: no compression, no tail packing, no shared attributes. The
// kernel has read that since 5.4, every architecture alike. An image is the same bytes
// for the same tree.
package erofs

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	blockSize = 4096
	slot      = 32 // inodes are numbered in these
	inodeSize = 64

	magic = 0xE0F5E1E2

	maxName  = 255
	maxValue = 1<<16 - 1 // of an attribute
	maxAttrs = 64 << 10  // of one inode, bytes
)

// The types of inodes, as in st_mode.
const (
	TypeMask    = 0o170000
	FIFO        = 0o010000
	CharDevice  = 0o020000
	Directory   = 0o040000
	BlockDevice = 0o060000
	Regular     = 0o100000
	Symlink     = 0o120000
)

// Inode is a file, a directory, a link, a device. One that stands under several names
// is several hard links.
type Inode struct {
	Mode     uint32 // type and permissions, as in st_mode
	UID, GID uint32
	MTime    time.Time
	Target   string            // of a symbolic link
	Major    uint32            // of a device
	Minor    uint32            // likewise
	Attrs    map[string]string // extended attributes by full name; those of unknown kinds are refused
	Size     int64             // of a regular file
	// Open gives a regular file's content, Size bytes; it is called once.
	Open func() (io.ReadCloser, error)
	// Children of a directory, by name.
	Children map[string]*Inode

	seen   bool
	parent *Inode
	links  int
	nid    uint64
	block  uint32
	length int64 // of what its blocks hold
}

// Type is the type bits of Mode.
func (i *Inode) Type() uint32 { return i.Mode & TypeMask }

// attribute kinds, in the order in which a name is looked for.
var kinds = []struct {
	prefix string
	index  byte
}{{"user.", 1}, {"system.posix_acl_access", 2}, {"system.posix_acl_default", 3}, {"trusted.", 4}, {"security.", 6}}

// fileTypes of directory entries.
var fileTypes = map[uint32]byte{Regular: 1, Directory: 2, CharDevice: 3, BlockDevice: 4, FIFO: 5, Symlink: 7}

// Write writes a file system with the tree below root to w. What it is given is
// trusted to be bounded; names, sizes and targets are checked, and an error names the
// path.
func Write(w io.Writer, root *Inode, id [16]byte) error {
	if root.Type() != Directory {
		return errors.New("erofs: the root is no directory")
	}
	wr := &writer{}
	root.parent = root
	if err := wr.place("", root, 0); err != nil {
		return err
	}
	meta := int64(wr.meta)
	next := 1 + (meta+blockSize-1)/blockSize
	for _, i := range wr.all {
		var err error
		switch i.Type() {
		case Directory:
			i.length = directorySize(i)
		case Symlink:
			i.length = int64(len(i.Target))
		case Regular:
			i.length = i.Size
		default:
			continue
		}
		if i.length == 0 {
			continue
		}
		blocks := (i.length + blockSize - 1) / blockSize
		if next+blocks > 1<<32-1 {
			return errors.New("erofs: the file system would have more than 16 TiB")
		}
		i.block = uint32(next)
		if next += blocks; err != nil {
			return err
		}
	}
	out := &counting{w: bufio.NewWriterSize(w, 1<<20)}
	if err := out.super(root, uint32(next), uint64(len(wr.all)), id); err != nil {
		return err
	}
	for _, i := range wr.all {
		if err := out.pad(blockSize + int64(i.nid)*slot); err != nil {
			return err
		}
		if _, err := out.Write(i.head()); err != nil {
			return err
		}
	}
	for n, i := range wr.all {
		if i.block == 0 {
			continue
		}
		if err := out.pad(int64(i.block) * blockSize); err != nil {
			return err
		}
		if err := out.data(i); err != nil {
			return fmt.Errorf("erofs: %s: %w", wr.paths[n], err)
		}
	}
	if err := out.pad(next * blockSize); err != nil {
		return err
	}
	return out.w.Flush()
}

// writer gives inodes their places.
type writer struct {
	all   []*Inode
	paths []string // of all, the first of each
	meta  uint64   // bytes of the inodes so far
}

const maxDepth = 1000

func (w *writer) place(path string, i *Inode, depth int) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("erofs: %s: %s", cmp.Or(path, "/"), fmt.Sprintf(format, args...))
	}
	if i.links++; i.seen {
		if i.Type() == Directory {
			return bad("a directory stands in two places")
		}
		return nil
	}
	i.seen = true
	switch t := i.Type(); {
	case fileTypes[t] == 0:
		return bad("mode %o has no type that is known", i.Mode)
	case t == Symlink && (i.Target == "" || len(i.Target) >= blockSize || strings.ContainsRune(i.Target, 0)):
		return bad("a symbolic link to %d bytes", len(i.Target))
	case t == Regular && (i.Size < 0 || i.Size > 0 && i.Open == nil):
		return bad("a file of %d bytes without content", i.Size)
	case depth > maxDepth:
		return bad("directories in one another, more than %d", maxDepth)
	}
	attrs, err := i.attributes()
	if err != nil {
		return bad("%v", err)
	}
	// The 64 bytes of an inode stay within a block.
	if in := w.meta % blockSize; in+inodeSize > blockSize {
		w.meta += blockSize - in
	}
	i.nid = w.meta / slot
	if len(w.all) == 0 && i.nid > 1<<16-1 {
		return bad("the root has no number")
	}
	w.meta += (inodeSize + uint64(len(attrs)) + slot - 1) / slot * slot
	w.all, w.paths = append(w.all, i), append(w.paths, cmp.Or(path, "/"))
	for _, name := range slices.Sorted(maps.Keys(i.Children)) {
		c := i.Children[name]
		if i.Type() != Directory || name == "" || name == "." || name == ".." || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
			return bad("%q is no name for a file in it", name)
		}
		if c.Type() == Directory {
			i.links++ // its ".."
			c.parent = i
		}
		if err := w.place(path+"/"+name, c, depth+1); err != nil {
			return err
		}
	}
	if i.Type() == Directory {
		i.links++ // "."
	}
	return nil
}

// attributes are the bytes behind the inode.
func (i *Inode) attributes() ([]byte, error) {
	if len(i.Attrs) == 0 {
		return nil, nil
	}
	b := make([]byte, 12) // nothing shared
	for _, name := range slices.Sorted(maps.Keys(i.Attrs)) {
		value := i.Attrs[name]
		found := false
		for _, k := range kinds {
			rest, ok := strings.CutPrefix(name, k.prefix)
			if !ok || strings.HasSuffix(k.prefix, ".") != (rest != "") {
				continue
			}
			if len(rest) > maxName || len(value) > maxValue {
				return nil, fmt.Errorf("the extended attribute %.40q is too long", name)
			}
			b = append(b, byte(len(rest)), k.index)
			b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
			b = append(append(b, rest...), value...)
			for len(b)%4 != 0 {
				b = append(b, 0)
			}
			found = true
			break
		}
		if !found {
			return nil, fmt.Errorf("the extended attribute %.40q is of no kind that is known", name)
		}
	}
	if len(b) > maxAttrs {
		return nil, fmt.Errorf("%d bytes of extended attributes", len(b))
	}
	return b, nil
}

// head is the inode as it is written, with its attributes.
func (i *Inode) head() []byte {
	attrs, _ := i.attributes() // checked by place
	b := make([]byte, inodeSize, inodeSize+len(attrs))
	le := binary.LittleEndian
	le.PutUint16(b[0:], 1) // extended, plain
	if len(attrs) > 0 {
		le.PutUint16(b[2:], uint16(1+(len(attrs)-12)/4))
	}
	le.PutUint16(b[4:], uint16(i.Mode))
	le.PutUint64(b[8:], uint64(i.length))
	switch i.Type() {
	case CharDevice, BlockDevice:
		le.PutUint32(b[16:], i.Minor&0xff|i.Major<<8|i.Minor&^0xff<<12)
	default:
		le.PutUint32(b[16:], i.block)
	}
	le.PutUint32(b[20:], uint32(i.nid)+1)
	le.PutUint32(b[24:], i.UID)
	le.PutUint32(b[28:], i.GID)
	if !i.MTime.IsZero() {
		le.PutUint64(b[32:], uint64(i.MTime.Unix()))
		le.PutUint32(b[40:], uint32(i.MTime.Nanosecond()))
	}
	le.PutUint32(b[44:], uint32(i.links))
	return append(b, attrs...)
}

// names are a directory's entries in order, "." and ".." among them.
func names(i *Inode) []string {
	out := slices.Collect(maps.Keys(i.Children))
	out = append(out, ".", "..")
	slices.Sort(out)
	return out
}

const direntSize = 12

// blocksOf cuts a directory's entries into blocks.
func blocksOf(i *Inode) (blocks [][]string) {
	used := 0
	for _, n := range names(i) {
		need := direntSize + len(n)
		if used+need > blockSize || len(blocks) == 0 {
			blocks, used = append(blocks, nil), 0
		}
		last := len(blocks) - 1
		blocks[last] = append(blocks[last], n)
		used += need
	}
	return blocks
}

func blockLength(names []string) (n int) {
	for _, x := range names {
		n += direntSize + len(x)
	}
	return n
}

func directorySize(i *Inode) int64 {
	b := blocksOf(i)
	return int64(len(b)-1)*blockSize + int64(blockLength(b[len(b)-1]))
}

// counting writes on, and knows where it is.
type counting struct {
	w *bufio.Writer
	n int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

var zeros [blockSize]byte

// pad writes zeros up to an offset.
func (c *counting) pad(to int64) error {
	for c.n < to {
		if _, err := c.Write(zeros[:min(to-c.n, blockSize)]); err != nil {
			return err
		}
	}
	if c.n > to {
		return fmt.Errorf("erofs: at %d, past %d", c.n, to)
	}
	return nil
}

func (c *counting) super(root *Inode, blocks uint32, inodes uint64, id [16]byte) error {
	if err := c.pad(1024); err != nil {
		return err
	}
	b := make([]byte, 128)
	le := binary.LittleEndian
	le.PutUint32(b[0:], magic)
	b[12] = 12 // 1<<12 bytes a block
	le.PutUint16(b[14:], uint16(root.nid))
	le.PutUint64(b[16:], inodes)
	le.PutUint32(b[36:], blocks)
	le.PutUint32(b[40:], 1) // where the inodes begin
	copy(b[48:], id[:])
	_, err := c.Write(b)
	return err
}

// data writes what an inode's blocks hold.
func (c *counting) data(i *Inode) error {
	switch i.Type() {
	case Symlink:
		_, err := io.WriteString(c, i.Target)
		return err
	case Regular:
		r, err := i.Open()
		if err != nil {
			return err
		}
		defer r.Close()
		n, err := io.Copy(c, io.LimitReader(r, i.Size))
		if err == nil && n != i.Size {
			err = fmt.Errorf("%d bytes, of %d", n, i.Size)
		}
		return err
	}
	le := binary.LittleEndian
	blocks := blocksOf(i)
	for k, in := range blocks {
		var heads, text []byte
		at := direntSize * len(in)
		for _, n := range in {
			child := i.Children[n]
			switch n {
			case ".":
				child = i
			case "..":
				child = i.parent
			}
			heads = le.AppendUint64(heads, child.nid)
			heads = le.AppendUint16(heads, uint16(at+len(text)))
			heads = append(heads, fileTypes[child.Type()], 0)
			text = append(text, n...)
		}
		if _, err := c.Write(append(heads, text...)); err != nil {
			return err
		}
		if k < len(blocks)-1 {
			if err := c.pad((int64(i.block) + int64(k) + 1) * blockSize); err != nil {
				return err
			}
		}
	}
	return nil
}
