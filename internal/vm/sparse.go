package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"syscall"
)

const (
	seekData  = 3          // SEEK_DATA
	seekHole  = 4          // SEEK_HOLE
	ioctlCopy = 0x40049409 // FICLONE
)

// FileSum is what is known of a file's contents.
type FileSum struct {
	Size int64  `json:"size"`
	Sum  uint32 `json:"crc32c"` // of [SumFile]'s kind
}

// CopySparse copies a file to dst, which must not exist, without filling its
// holes; where the file system can share blocks between files, nothing is copied at
// all. When it fails, there is no dst.
func CopySparse(ctx context.Context, dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	return create(dst, func(out *os.File) error {
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, out.Fd(), ioctlCopy, in.Fd()); e == 0 {
			return nil
		}
		_, err := copyBlocks(ctx, out, in)
		return err
	})
}

// CopySum copies an open file to dst as CopySparse does, and sums it up on the way.
func CopySum(ctx context.Context, dst string, in *os.File) (f FileSum, err error) {
	err = create(dst, func(out *os.File) error {
		f, err = copyBlocks(ctx, out, in)
		return err
	})
	return f, err
}

// create makes a file that is there if write has succeeded. It is not synced: what
// is lost with the host is made again.
func create(name string, write func(*os.File) error) error {
	out, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(write(out), out.Close())
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(name))
	}
	return nil
}

// SumFile sums a file up: a CRC-32C over the offset and the contents of each block
// that holds more than zeros. So it takes no time for holes, of which a disk is
// full, and is the same whether zeros are a hole or not. It guards against a
// damaged disk, not against a person: whoever can write here can write anything.
func SumFile(ctx context.Context, name string) (FileSum, error) {
	in, err := os.Open(name)
	if err != nil {
		return FileSum{}, err
	}
	defer in.Close()
	return copyBlocks(ctx, nil, in)
}

// block is the unit in which files are read and compared with nothing.
const block = 256 << 10

// copyBlocks copies what of in is not zero to out, which is empty and may be nil,
// and sums in up.
func copyBlocks(ctx context.Context, out, in *os.File) (FileSum, error) {
	fi, err := in.Stat()
	if err != nil {
		return FileSum{}, err
	}
	f := FileSum{Size: fi.Size()}
	if out != nil {
		if err := out.Truncate(f.Size); err != nil {
			return f, err
		}
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	buf, zero := make([]byte, block), make([]byte, block)
	for at := int64(0); at < f.Size; {
		if ctx.Err() != nil {
			return f, context.Cause(ctx)
		}
		start, err := in.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) {
			break // a hole to the end
		} else if err != nil {
			start = at // this file system knows no holes
		}
		end, err := in.Seek(start, seekHole)
		if err != nil {
			end = f.Size
		}
		at = start / block * block
		for ; at < end; at += block {
			if ctx.Err() != nil {
				return f, context.Cause(ctx)
			}
			b := buf[:min(block, f.Size-at)]
			if _, err := in.ReadAt(b, at); err != nil {
				return f, err
			}
			if bytes.Equal(b, zero[:len(b)]) {
				continue
			}
			var offset [8]byte
			binary.BigEndian.PutUint64(offset[:], uint64(at))
			f.Sum = crc32.Update(crc32.Update(f.Sum, table, offset[:]), table, b)
			if out == nil {
				continue
			}
			if _, err := out.WriteAt(b, at); err != nil {
				return f, err
			}
		}
	}
	return f, nil
}
