package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/hearth-ci/hearth/internal/guest"
)

const (
	portName  = "hearth.agent"
	vsockPort = 1024
	// hostGone is how long a port may be without a host before what it ran is
	// ended. One host often follows another at once, as after a restore.
	hostGone = 2 * time.Second
)

// servePort serves the virtio-serial port. It returns if there is none.
func (m *machine) servePort(ctx context.Context, server *guest.Server) error {
	var dev string
	err := await(10*time.Second, func() (bool, error) {
		if _, err := os.Stat("/sys/class/virtio-ports"); err != nil {
			return false, fmt.Errorf("no virtio-serial device: %w", err)
		}
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			if b, _ := os.ReadFile(n); strings.TrimSpace(string(b)) == portName {
				dev = "/dev/" + filepath.Base(filepath.Dir(n))
			}
		}
		return dev != "", err
	})
	if err != nil {
		return fmt.Errorf("virtio-serial port %s: %w", portName, err)
	}
	p := &port{}
	if err := await(10*time.Second, func() (bool, error) {
		var err error
		p.File, err = os.OpenFile(dev, os.O_RDWR|syscall.O_NONBLOCK, 0)
		if errors.Is(err, syscall.ENXIO) || errors.Is(err, os.ErrNotExist) {
			return false, nil // it is there before it works
		}
		return err == nil, err
	}); err != nil {
		return err
	}
	if p.raw, err = p.SyscallConn(); err != nil {
		return err
	}
	m.logf("serving %s (%s)", dev, portName)
	for {
		if err := server.Serve(ctx, p); err != nil {
			m.logf("%s: %v", dev, err)
			if ctx.Err() != nil {
				return err
			}
			// Whatever it was, the port is the only way to be reached. Not at once: it may last.
			time.Sleep(time.Second)
		}
	}
}

// port is a virtio-serial port as a connection. A port without a host reads as end of
// file, again and again; here a Read waits for a host instead. When a host has
// gone for a while, one Read says so with io.EOF.
type port struct {
	*os.File
	raw  syscall.RawConn
	host bool // something was read since the last io.EOF
}

func (p *port) Read(b []byte) (n int, err error) {
	waiting := false
	// The callback runs when epoll (edge-triggered) says that something about the port
	// has changed, so that waiting costs nothing, with a host or without.
	rawErr := p.raw.Read(func(fd uintptr) bool {
		for {
			n, err = syscall.Read(int(fd), b)
			switch {
			case err == syscall.EINTR:
				continue
			case err == syscall.EAGAIN:
				return false
			case err == nil && n == 0:
				if p.host && !waiting {
					waiting = true
					p.SetReadDeadline(time.Now().Add(hostGone))
				}
				return false
			}
			return true
		}
	})
	if waiting {
		p.SetReadDeadline(time.Time{})
	}
	if rawErr != nil {
		if waiting && errors.Is(rawErr, os.ErrDeadlineExceeded) {
			p.host = false
			return 0, io.EOF
		}
		return 0, rawErr
	}
	if err != nil {
		return 0, &os.PathError{Op: "read", Path: p.Name(), Err: err}
	}
	p.host = true
	return n, nil
}

func (p *port) LocalAddr() net.Addr  { return &net.UnixAddr{Name: p.Name(), Net: "port"} }
func (p *port) RemoteAddr() net.Addr { return &net.UnixAddr{Name: "host", Net: "port"} }

// serveVsock serves connections to the vsock port. It returns if there is no vsock.
func (m *machine) serveVsock(ctx context.Context, server *guest.Server) error {
	l, err := listenVsock(vsockPort)
	if err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	m.logf("serving vsock port %d", vsockPort)
	for {
		conn, err := l.accept()
		if err != nil {
			return fmt.Errorf("vsock: %w", err)
		}
		go func() {
			defer conn.Close()
			if err := server.Serve(ctx, conn); err != nil {
				m.logf("vsock connection: %v", err)
			}
		}()
	}
}

// vsockListener accepts connections from the host. The net package knows no vsock.
type vsockListener struct{ f *os.File }

// sockaddrVM is struct sockaddr_vm.
type sockaddrVM struct {
	family   uint16
	reserved uint16
	port     uint32
	cid      uint32
	flags    uint8
	zero     [3]uint8
}

const (
	afVsock = 40
	cidAny  = 1<<32 - 1
)

func listenVsock(port uint32) (*vsockListener, error) {
	if _, err := os.Stat("/dev/vsock"); err != nil {
		return nil, err
	}
	fd, err := syscall.Socket(afVsock, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	sa := sockaddrVM{family: afVsock, port: port, cid: cidAny}
	if _, _, e := syscall.Syscall(syscall.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa)); e != 0 {
		syscall.Close(fd)
		return nil, e
	}
	if err := syscall.Listen(fd, 16); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	return &vsockListener{os.NewFile(uintptr(fd), "vsock")}, nil
}

func (l *vsockListener) accept() (net.Conn, error) {
	raw, err := l.f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd uintptr
	var e syscall.Errno
	if err := raw.Read(func(lfd uintptr) bool {
		for {
			fd, _, e = syscall.Syscall6(syscall.SYS_ACCEPT4, lfd, 0, 0, syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0, 0)
			if e != syscall.EINTR && e != syscall.ECONNABORTED {
				return e != syscall.EAGAIN
			}
		}
	}); err != nil {
		return nil, err
	}
	if e != 0 {
		return nil, e
	}
	return vsockConn{os.NewFile(fd, "vsock connection")}, nil
}

type vsockConn struct{ *os.File }

func (c vsockConn) LocalAddr() net.Addr  { return &net.UnixAddr{Name: "guest", Net: "vsock"} }
func (c vsockConn) RemoteAddr() net.Addr { return &net.UnixAddr{Name: "host", Net: "vsock"} }
