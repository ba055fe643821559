package image

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"strings"
)

// cpioWriter writes the "newc" cpio format, the one the kernel's initramfs
// unpacker reads. Everything belongs to root and carries the time stamp 0, so
// that equal contents make equal archives: the initrd's hash is part of an
// image's identity.
type cpioWriter struct {
	w      *bufio.Writer
	offset int64
	inode  uint32
	err    error
}

// File type bits of a mode in the archive.
const (
	cpioDir  = 0o040000
	cpioChar = 0o020000
	cpioReg  = 0o100000
)

func newCPIOWriter(w io.Writer) *cpioWriter {
	return &cpioWriter{w: bufio.NewWriterSize(w, 1<<16)}
}

// Dir adds a directory. Its parent must have been added before it.
func (c *cpioWriter) Dir(name string) { c.entry(name, cpioDir|0o755, 0, 0, nil) }

// Char adds a character device.
func (c *cpioWriter) Char(name string, perm, major, minor uint32) {
	c.entry(name, cpioChar|perm, major, minor, nil)
}

// File adds a regular file.
func (c *cpioWriter) File(name string, perm uint32, data []byte) {
	c.entry(name, cpioReg|perm, 0, 0, data)
}

// Close writes the trailer and reports the first error there was.
func (c *cpioWriter) Close() error {
	c.inode = math.MaxUint32 // the trailer's inode wraps to 0
	c.entry("TRAILER!!!", 0, 0, 0, nil)
	// The kernel wants nothing after the trailer; padding to a sector keeps
	// loaders that read whole sectors from seeing the end cut off.
	c.pad(512)
	if c.err != nil {
		return c.err
	}
	return c.w.Flush()
}

func (c *cpioWriter) entry(name string, mode, major, minor uint32, data []byte) {
	name = strings.TrimPrefix(name, "/")
	if c.err == nil && (name == "" || strings.ContainsRune(name, 0)) {
		c.err = fmt.Errorf("cpio: bad name %q", name)
	}
	if c.err == nil && len(data) > math.MaxUint32 {
		c.err = fmt.Errorf("cpio: %s: %d bytes do not fit the format", name, len(data))
	}
	c.inode++
	links := 1
	if mode&cpioDir == cpioDir {
		links = 2
	}
	// magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor,
	// rdevmajor, rdevminor, namesize (with its NUL), check
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.inode, mode, 0, 0, links, 0, uint32(len(data)), 0, 0, major, minor, len(name)+1, 0))
	c.write([]byte(name + "\x00"))
	c.pad(4)
	c.write(data)
	c.pad(4)
}

func (c *cpioWriter) pad(to int64) {
	if n := -c.offset & (to - 1); n > 0 {
		c.write(make([]byte, n))
	}
}

func (c *cpioWriter) write(p []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(p)
	c.offset += int64(n)
	c.err = err
}
