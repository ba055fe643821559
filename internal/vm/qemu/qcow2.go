package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// A qcow2 overlay is made by hand: 256 KiB of mostly zeros, instead of a
// process (qemu-img) that takes longer than restoring a machine.

const (
	qcowMagic      = 0x514649fb // "QFI\xfb"
	qcowCluster    = 64 << 10
	qcowHeaderSize = 112
)

// createOverlay writes to name a qcow2 image that shows what the image backing
// holds until it is written to. backing must be an absolute path and must never
// change.
func createOverlay(name, backing, format string) error {
	size, err := virtualSize(backing, format)
	if err != nil {
		return err
	}
	if len(backing) > 1023 {
		return fmt.Errorf("path of the disk below is too long for qcow2 (%d > 1023 bytes): %s", len(backing), backing)
	}
	// One entry of the L1 table covers a cluster of L2 entries of 8 bytes.
	perL1 := int64(qcowCluster) * (qcowCluster / 8)
	entries := (size + perL1 - 1) / perL1
	l1Clusters := max((entries*8+qcowCluster-1)/qcowCluster, 1)
	// Layout, in clusters: header, refcount table, refcount block, L1 table.
	used := 3 + l1Clusters
	if used > qcowCluster/2 {
		return fmt.Errorf("disk of %d bytes is too large", size)
	}
	var head [qcowCluster]byte
	be := binary.BigEndian
	be.PutUint32(head[0:], qcowMagic)
	be.PutUint32(head[4:], 3)                       // version
	be.PutUint64(head[8:], qcowHeaderSize+16)       // offset of the backing file's name
	be.PutUint32(head[16:], uint32(len(backing)))   // its length
	be.PutUint32(head[20:], 16)                     // cluster_bits
	be.PutUint64(head[24:], uint64(size))           // virtual size
	be.PutUint32(head[36:], uint32(entries))        // entries of the L1 table
	be.PutUint64(head[40:], 3*qcowCluster)          // L1 table
	be.PutUint64(head[48:], 1*qcowCluster)          // refcount table
	be.PutUint32(head[56:], 1)                      // its clusters
	be.PutUint32(head[96:], 4)                      // refcount_order: 16 bits
	be.PutUint32(head[100:], qcowHeaderSize)        // header_length
	be.PutUint32(head[qcowHeaderSize:], 0xe2792aca) // extension: format of the backing file
	be.PutUint32(head[qcowHeaderSize+4:], uint32(len(format)))
	nameAt := qcowHeaderSize + 8 + (len(format)+7)/8*8 + 8 // and the end-of-extensions mark
	copy(head[qcowHeaderSize+8:], format)
	be.PutUint64(head[8:], uint64(nameAt))
	copy(head[nameAt:], backing)

	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	var refTable [8]byte
	be.PutUint64(refTable[:], 2*qcowCluster)
	refs := make([]byte, 2*used)
	for i := range used {
		be.PutUint16(refs[2*i:], 1)
	}
	for _, w := range []struct {
		b  []byte
		at int64
	}{{head[:nameAt+len(backing)], 0}, {refTable[:], qcowCluster}, {refs, 2 * qcowCluster}} {
		if _, err := f.WriteAt(w.b, w.at); err != nil {
			return err
		}
	}
	if err := f.Truncate(used * qcowCluster); err != nil {
		return err
	}
	return f.Close()
}

// virtualSize returns how large a disk the guest sees in an image.
func virtualSize(name, format string) (int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	switch format {
	case "raw":
		fi, err := f.Stat()
		if err != nil {
			return 0, err
		}
		if fi.Mode().IsRegular() {
			return fi.Size(), nil
		}
		return f.Seek(0, io.SeekEnd)
	case "qcow2":
		var h [32]byte
		if _, err := io.ReadFull(f, h[:]); err != nil || binary.BigEndian.Uint32(h[:]) != qcowMagic {
			return 0, fmt.Errorf("%s is not a qcow2 image", name)
		}
		size := binary.BigEndian.Uint64(h[24:])
		if size > 1<<50 {
			return 0, fmt.Errorf("%s: absurd size %d", name, size)
		}
		return int64(size), nil
	}
	return 0, errors.New("unknown disk format " + format)
}

// chain returns the images of a disk, from the one that the guest sees down, as
// their headers name them. It is for images that no machine has written to.
func chain(path, format string) ([]image, error) {
	var all []image
	for {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		if format == "" {
			format = "raw"
		}
		all = append(all, image{Path: abs, Format: format})
		if format != "qcow2" {
			return all, nil
		}
		if len(all) > maxChain {
			return nil, fmt.Errorf("%s: more than %d images, one upon the other", all[0].Path, maxChain)
		}
		if path, format, err = below(abs); err != nil || path == "" {
			return all, err
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(abs), path)
		}
	}
}

const maxChain = 64

// below reads which image a qcow2 image stands on; "" if on none.
func below(name string) (path, format string, err error) {
	f, err := os.Open(name)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	head := make([]byte, qcowCluster)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) || n < 104 || binary.BigEndian.Uint32(head) != qcowMagic {
		return "", "", fmt.Errorf("%s: the image is not in qcow2 format", name)
	}
	head = head[:n]
	be := binary.BigEndian
	at, size := be.Uint64(head[8:]), be.Uint32(head[16:])
	if at == 0 || size == 0 {
		return "", "", nil
	}
	if size > 1023 || at > uint64(n) || at+uint64(size) > uint64(n) {
		return "", "", fmt.Errorf("%s: damaged qcow2 header", name)
	}
	path = string(head[at : at+uint64(size)])
	e := 72
	if be.Uint32(head[4:]) >= 3 {
		e = int(min(be.Uint32(head[100:]), qcowCluster))
	}
	for e+8 <= n {
		kind, size := be.Uint32(head[e:]), int(min(be.Uint32(head[e+4:]), qcowCluster))
		if kind == 0 || e+8+size > n {
			break
		}
		if kind == 0xe2792aca {
			format = string(head[e+8 : e+8+size])
		}
		e += 8 + (size+7)/8*8
	}
	switch format {
	case "raw", "qcow2":
		return path, format, nil
	}
	return "", "", fmt.Errorf("%s: it does not say that the image below it is raw or qcow2, but %q", name, format)
}
