package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"syscall"
)

const (
	seekData  = 3          // SEEK_DATA
	seekHole  = 4          // SEEK_HOLE
	ioctlCopy = 0x40049409 // FICLONE
)

// copySparse copies a file without filling its holes; where the file system can
// share blocks between files, nothing is copied at all.
func copySparse(ctx context.Context, dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, out.Fd(), ioctlCopy, in.Fd()); e == 0 {
		return out.Close()
	}
	if _, err := copyBlocks(ctx, out, in); err != nil {
		return err
	}
	return out.Close() // not synced: what is lost with the host is made again
}

// copySum copies an open file to dst as copySparse does, and sums it up on the
// way.
func copySum(ctx context.Context, dst string, in *os.File) (file, error) {
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return file{}, err
	}
	defer out.Close()
	f, err := copyBlocks(ctx, out, in)
	if err != nil {
		return f, err
	}
	return f, out.Close()
}

// sumFile sums up a file.
func sumFile(ctx context.Context, name string) (file, error) {
	in, err := os.Open(name)
	if err != nil {
		return file{}, err
	}
	defer in.Close()
	return copyBlocks(ctx, nil, in)
}

// block is the unit in which files are read and compared with nothing.
const block = 256 << 10

// copyBlocks copies what of in is not zero to out, which is empty and may be
// nil, and returns in's size and sum: a CRC-32C over the offset and the contents
// of each block that holds more than zeros. So the sum takes no time for holes,
// of which a disk is full, and is the same whether zeros are a hole or not. It
// guards against a damaged disk, not against a person: whoever can write here
// can write anything.
func copyBlocks(ctx context.Context, out, in *os.File) (file, error) {
	fi, err := in.Stat()
	if err != nil {
		return file{}, err
	}
	f := file{Size: fi.Size()}
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
