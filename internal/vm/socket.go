package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// The kernel takes 107 bytes as the path of a unix socket, and a cache or a
// test's directory is easily deeper. Through an open directory any depth works.

// DialUnix connects to the unix stream socket at path, however long that is. A
// symbolic link in its place is refused: a socket may lie in a directory of a
// monitor's, which could have it point to another of the host's.
func DialUnix(ctx context.Context, path string) (*net.UnixConn, error) {
	const oPath = 0x200000 // O_PATH
	fd, err := syscall.Open(path, oPath|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFSOCK {
		return nil, fmt.Errorf("connect to %s: it is no socket", path)
	}
	var nd net.Dialer
	c, err := nd.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return c.(*net.UnixConn), nil
}

// ListenUnix listens on a new unix stream socket at path, however long that is.
// Closing the listener does not remove the file.
func ListenUnix(path string) (*net.UnixListener, error) {
	short, dir, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: short})
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

func shorten(path string) (short string, dir *os.File, err error) {
	dir, err = os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), dir, nil
}
