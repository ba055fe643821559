package firecracker

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Devices in a machine's network namespace. The names are in its snapshots.
const (
	tapName    = "tap0"   // Firecracker's
	cableName  = "cable0" // ours
	bridgeName = "br0"    // between the two
)

// maxFrame is the longest Ethernet frame that either side may send.
const maxFrame = 14 + 65535

// enterNetwork moves the calling thread, which must be locked and must never be
// used for anything else again, to a new network namespace, puts the devices in
// it, and returns the open cable: a frame a read, a frame a write. The devices
// go with the namespace, once nobody is left in it.
func enterNetwork() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("the machine's network: a network namespace takes root, or CAP_SYS_ADMIN and CAP_NET_ADMIN: "+
				"run hearth with them, or use --driver qemu, which needs none: %w", err)
		}
		return nil, fmt.Errorf("the machine's network: new namespace: %w", err)
	}
	f, err := makeDevices()
	if err != nil {
		return nil, fmt.Errorf("the machine's network: %w", err)
	}
	return f, nil
}

// ProbeNetwork implements [vm.Driver].
func (d *Driver) ProbeNetwork(ctx context.Context) error {
	if _, _, err := d.find(ctx); err != nil {
		return err
	}
	tried := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		f, err := enterNetwork()
		if err == nil {
			f.Close()
		}
		tried <- err
	}()
	return <-tried
}

func makeDevices() (_ *os.File, err error) {
	// The host's kernel has no part in this network: without this it would
	// announce itself to the guest. A kernel without IPv6 has no such file.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	theirs, err := openTap(tapName)
	if err != nil {
		return nil, err
	}
	// It stays when we let go of it, for Firecracker to take by its name.
	err = unix.IoctlSetInt(theirs, unix.TUNSETPERSIST, 1)
	unix.Close(theirs)
	if err != nil {
		return nil, fmt.Errorf("keep %s: %w", tapName, err)
	}
	ours, err := openTap(cableName)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unix.Close(ours)
		}
	}()
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(s)
	name, err := unix.NewIfreq(bridgeName)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCBRADDBR, name); err != nil {
		if errors.Is(err, unix.ENOPKG) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
			return nil, fmt.Errorf("bridge: %w: run `modprobe bridge`", err)
		}
		return nil, fmt.Errorf("bridge: %w", err)
	}
	for _, n := range []string{tapName, cableName} {
		dev, err := unix.NewIfreq(n)
		if err != nil {
			return nil, err
		}
		if err := unix.IoctlIfreq(s, unix.SIOCGIFINDEX, dev); err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		br, err := unix.NewIfreq(bridgeName)
		if err != nil {
			return nil, err
		}
		br.SetUint32(dev.Uint32())
		if err := unix.IoctlIfreq(s, unix.SIOCBRADDIF, br); err != nil {
			return nil, fmt.Errorf("put %s into the bridge: %w", n, err)
		}
	}
	for _, n := range []string{tapName, cableName, bridgeName} {
		dev, err := unix.NewIfreq(n)
		if err != nil {
			return nil, err
		}
		dev.SetUint16(unix.IFF_UP)
		if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, dev); err != nil {
			return nil, fmt.Errorf("bring up %s: %w", n, err)
		}
	}
	return os.NewFile(uintptr(ours), cableName), nil
}

const tunDevice = "/dev/net/tun"

// openTap makes a tap in the calling thread's network namespace.
func openTap(name string) (int, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			return -1, fmt.Errorf("%s: %w: run `modprobe tun`", tunDevice, err)
		}
		return -1, fmt.Errorf("%s: %w", tunDevice, err)
	}
	dev, err := unix.NewIfreq(name)
	if err == nil {
		dev.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, dev)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make tap %s: %w", name, err)
	}
	return fd, nil
}

// cable carries frames between a tap, one a read or write, and a stream, each
// behind its length in four bytes, big-endian.
type cable struct {
	tap    io.ReadWriteCloser
	stream io.ReadWriteCloser
	pull   sync.Once
	wg     sync.WaitGroup
}

// plugIn starts carrying, until either side ends or unplug is called.
func plugIn(tap, stream io.ReadWriteCloser) *cable {
	c := &cable{tap: tap, stream: stream}
	for _, carry := range []func() error{c.out, c.in} {
		c.wg.Go(func() {
			carry()
			c.end()
		})
	}
	return c
}

func (c *cable) end() {
	c.pull.Do(func() {
		c.tap.Close()
		c.stream.Close()
	})
}

// unplug ends the cable and returns when nothing of it runs.
func (c *cable) unplug() {
	c.end()
	c.wg.Wait()
}

// out carries what the guest sends. Where nobody takes it, it piles up in the
// tap, which loses what is too much.
func (c *cable) out() error {
	b := make([]byte, 4+maxFrame)
	for {
		n, err := c.tap.Read(b[4:])
		if err != nil {
			return err
		}
		binary.BigEndian.PutUint32(b, uint32(n))
		if _, err := c.stream.Write(b[:4+n]); err != nil {
			return err
		}
	}
}

var errFrame = errors.New("a frame is too long")

// in carries what is meant for the guest.
func (c *cable) in() error {
	r := bufio.NewReaderSize(c.stream, 64<<10)
	b := make([]byte, maxFrame)
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > maxFrame {
			return errFrame
		}
		if _, err := io.ReadFull(r, b[:n]); err != nil {
			return err
		}
		// A frame that the tap refuses (it is too short, its queue is full) is a
		// frame lost, which networks do.
		if _, err := c.tap.Write(b[:n]); err != nil && errors.Is(err, os.ErrClosed) {
			return err
		}
	}
}
