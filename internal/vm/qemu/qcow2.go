package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
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
