package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// The kernel takes 107 bytes as the path of a unix socket, and a cache or a
// test's directory is easily deeper. Through an open directory any depth works.

// DialUnix connects to the unix stream socket at path, however long that is.
func DialUnix(ctx context.Context, path string) (*net.UnixConn, error) {
	short, dir, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var nd net.Dialer
	c, err := nd.DialContext(ctx, "unix", short)
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
