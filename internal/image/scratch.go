package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// Scratch returns the path of an empty, sparse ext4 file system of size bytes,
// made once and kept. A machine gets its own copy of it: a qcow2 overlay where
// the driver can, CopySparse otherwise. Nobody writes to this one.
//
// It has no journal: a scratch disk never outlives its machine.
func Scratch(ctx context.Context, dir string, size int64) (string, error) {
	const mib = 1 << 20
	if size < 64*mib {
		return "", fmt.Errorf("scratch disk of %s: at least 64 MiB are needed", bytesText(size))
	}
	size = (size + mib - 1) / mib * mib
	s, err := openStore(dir, nil)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "scratch", "ext4-1-"+strconv.FormatInt(size/mib, 10)+"M.img")
	if info, err := os.Stat(path); err == nil && info.Size() == size {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", s.full(err)
	}
	unlock, err := s.lock(ctx, nil)
	if err != nil {
		return "", err
	}
	defer unlock()
	if info, err := os.Stat(path); err == nil && info.Size() == size {
		return path, nil
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "scratch-")
	if err != nil {
		return "", s.full(err)
	}
	defer os.Remove(f.Name())
	err = f.Truncate(size)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return "", s.full(err)
	}
	mkfs := tool{argv: []string{"mkfs.ext4", "-q", "-F", "-m", "0", "-L", "scratch",
		"-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,root_owner=0:0", f.Name()}}
	if _, err := mkfs.run(ctx); err != nil {
		return "", s.full(fmt.Errorf("scratch disk: %w", err))
	}
	if err := os.Chmod(f.Name(), 0o444); err != nil {
		return "", err
	}
	return path, os.Rename(f.Name(), path)
}

// CopySparse copies a file so that holes stay holes: by sharing its blocks
// where the file system can (reflink), else by copying only what is data. dst
// must not exist.
func CopySparse(dst, src string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := out.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			err = errors.Join(fmt.Errorf("copying %s: %w", src, err), os.Remove(dst))
		}
	}()
	const ficlone = 0x40049409
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, out.Fd(), ficlone, in.Fd()); errno == 0 {
		return nil
	}
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	const seekData, seekHole = 3, 4
	for end := int64(0); ; {
		start, err := in.Seek(end, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return nil // only a hole from here on
		} else if err != nil {
			return err
		}
		if end, err = in.Seek(start, seekHole); err != nil {
			return err
		}
		if _, err := in.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, end-start); err != nil {
			return err
		}
	}
}
