package network

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// maxFrame is the longest Ethernet frame taken from a machine: the longest IP
// packet and its header.
const maxFrame = 14 + 65535

// errFrame says that the other side does not speak the frame protocol.
var errFrame = errors.New("network: bad frame")

// A link carries Ethernet frames to and from a machine.
type link interface {
	// readFrame returns the next frame. It is valid until the next call.
	readFrame() ([]byte, error)
	// writeFrame sends a frame given in parts; it may wait for flush.
	writeFrame(parts ...[]byte) error
	flush() error
	Close() error
}

// streamLink is a byte stream with each frame behind its length in four bytes,
// big-endian: QEMU's -netdev stream.
type streamLink struct {
	r   *bufio.Reader
	w   *bufio.Writer
	c   io.Closer
	buf []byte
}

func newStreamLink(rwc io.ReadWriteCloser) *streamLink {
	return &streamLink{r: bufio.NewReaderSize(rwc, 64<<10), w: bufio.NewWriterSize(rwc, 64<<10), c: rwc, buf: make([]byte, 2048)}
}

func (l *streamLink) readFrame() ([]byte, error) {
	var header [4]byte
	if _, err := io.ReadFull(l.r, header[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(header[:])
	if n > maxFrame {
		return nil, fmt.Errorf("%w: %d bytes long", errFrame, n)
	}
	if int(n) > len(l.buf) {
		l.buf = make([]byte, maxFrame)
	}
	if _, err := io.ReadFull(l.r, l.buf[:n]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return l.buf[:n], nil
}

func (l *streamLink) writeFrame(parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	var header [4]byte
	binary.BigEndian.PutUint32(header[:], uint32(n))
	if _, err := l.w.Write(header[:]); err != nil {
		return err
	}
	for _, p := range parts {
		if _, err := l.w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

func (l *streamLink) flush() error { return l.w.Flush() }
func (l *streamLink) Close() error { return l.c.Close() }

// datagramLink is a descriptor that carries one frame a read and a write: a tap.
type datagramLink struct {
	rw  io.ReadWriteCloser
	in  []byte
	out []byte
}

func (l *datagramLink) readFrame() ([]byte, error) {
	n, err := l.rw.Read(l.in)
	return l.in[:n], err
}

func (l *datagramLink) writeFrame(parts ...[]byte) error {
	l.out = l.out[:0]
	for _, p := range parts {
		l.out = append(l.out, p...)
	}
	_, err := l.rw.Write(l.out)
	return err
}

func (l *datagramLink) flush() error { return nil }
func (l *datagramLink) Close() error { return l.rw.Close() }

// acceptFrame reports whether a frame from the machine is for the stack. What
// is dropped here could do no harm there, but would be answered in misleading
// ways: a stack that takes every address for its own also answers a ping to
// every address, and one guest must not pretend to be several.
func acceptFrame(f []byte) bool {
	if len(f) < 14 {
		return false
	}
	payload := f[14:]
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0806: // ARP, Ethernet and IPv4
		if len(payload) < 28 || binary.BigEndian.Uint16(payload) != 1 || binary.BigEndian.Uint16(payload[2:]) != 0x0800 {
			return false
		}
		sender, target := netip.AddrFrom4([4]byte(payload[14:18])), netip.AddrFrom4([4]byte(payload[24:28]))
		// Linux probes with sender 0.0.0.0 before it takes an address.
		return (sender == Guest || sender.IsUnspecified()) && target != Guest && Subnet.Contains(target) || sender == Guest && target == Guest
	case 0x0800: // IPv4
		if len(payload) < 20 || payload[0]>>4 != 4 || payload[0]&0xf < 5 {
			return false
		}
		src, dst := netip.AddrFrom4([4]byte(payload[12:16])), netip.AddrFrom4([4]byte(payload[16:20]))
		if src != Guest {
			return false
		}
		switch payload[9] {
		case 1: // ICMP: only what is really here can be pinged
			return dst == Gateway || dst == DNS
		case 6, 17:
			return true
		}
	}
	return false
}
