package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// Scratch returns the path of an empty, sparse ext4 file system of size bytes,
// made once and kept. A machine gets its own copy of it: a qcow2 overlay where
// the driver can, vm.CopySparse otherwise. Nobody writes to this one.
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
