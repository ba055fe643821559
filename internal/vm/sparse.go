package vm

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"syscall"
)

const (
	seekData  = 3          // SEEK_DATA
	seekHole  = 4          // SEEK_HOLE
	ioctlCopy = 0x40049409 // FICLONE
)

// CopySparse copies a file to dst, which must not exist, without filling its holes; where the file system can
// share blocks between files, nothing is copied at all.
func CopySparse(ctx context.Context, dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, out.Fd(), ioctlCopy, in.Fd()); e == 0 {
		return out.Close()
	}
	if err := out.Truncate(fi.Size()); err != nil {
		return err
	}
	err = extents(ctx, in, fi.Size(), func(off, n int64) error {
		if _, err := in.Seek(off, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(off, io.SeekStart); err != nil {
			return err
		}
		_, err := io.CopyN(out, in, n) // copy_file_range where possible
		return err
	}, nil)
	if err != nil {
		return err
	}
	return out.Close()
}

// extents calls data and hole for the parts of f, in order, each at most 16 MiB.
func extents(ctx context.Context, f *os.File, size int64, data, hole func(off, n int64) error) error {
	const step = 16 << 20
	part := func(fn func(off, n int64) error, from, to int64) error {
		for fn != nil && from < to {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			n := min(step, to-from)
			if err := fn(from, n); err != nil {
				return err
			}
			from += n
		}
		return nil
	}
	for at := int64(0); at < size; {
		start, err := f.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) {
			start = size // a hole to the end
		} else if err != nil {
			return part(data, at, size) // this file system knows no holes
		}
		start = min(start, size)
		if err := part(hole, at, start); err != nil {
			return err
		}
		if start == size {
			return nil
		}
		end, err := f.Seek(start, seekHole)
		if err != nil || end > size {
			end = size
		}
		if err := part(data, start, end); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// SumFile returns the CRC-32C of a file's contents. It guards against a damaged
// disk, not against a person: whoever can write here can write anything.
func SumFile(ctx context.Context, name string) (sum uint32, size int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	buf := make([]byte, 1<<20)
	zero := make([]byte, 1<<20)
	err = extents(ctx, f, fi.Size(), func(off, n int64) error {
		for n > 0 {
			k := min(n, int64(len(buf)))
			if _, err := f.ReadAt(buf[:k], off); err != nil {
				return err
			}
			sum = crc32.Update(sum, table, buf[:k])
			off, n = off+k, n-k
		}
		return nil
	}, func(_, n int64) error {
		for n > 0 {
			k := min(n, int64(len(zero)))
			sum = crc32.Update(sum, table, zero[:k])
			n -= k
		}
		return nil
	})
	return sum, fi.Size(), err
}
