package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
)

// arpRequest is a whole frame: who has target, tell sender.
func arpRequest(sender, target netip.Addr) []byte {
	f := append([]byte("\xff\xff\xff\xff\xff\xff\x52\x54\x00\x12\x34\x56\x08\x06"), 0, 1, 8, 0, 6, 4, 0, 1)
	s, t := sender.As4(), target.As4()
	f = append(append(f, "\x52\x54\x00\x12\x34\x56"...), s[:]...)
	return append(append(f, 0, 0, 0, 0, 0, 0), t[:]...)
}

// ipFrame is an IPv4 frame with a header and a payload.
func ipFrame(src, dst string, proto byte, payload []byte) []byte {
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	f := []byte("\x52\x55\x0a\x00\x02\x02\x52\x54\x00\x12\x34\x56\x08\x00")
	f = append(f, 0x45, 0, byte((20+len(payload))>>8), byte(20+len(payload)), 0, 1, 0, 0, 64, proto, 0, 0)
	f = append(append(append(f, s[:]...), d[:]...), payload...)
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(f[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(f[24:], ^uint16(sum+sum>>16))
	return f
}

// datagramPair returns a descriptor and the other end of it.
func datagramPair(t *testing.T) (int, net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[1]), "guest")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return fds[0], c
}

func TestAcceptFrame(t *testing.T) {
	syn := make([]byte, 20)
	for name, c := range map[string]struct {
		frame []byte
		want  bool
	}{
		"arp for the gateway":        {arpRequest(Guest, Gateway), true},
		"arp probe":                  {arpRequest(netip.IPv4Unspecified(), DNS), true},
		"arp from somebody else":     {arpRequest(netip.MustParseAddr("10.0.2.99"), Gateway), false},
		"arp that takes the gateway": {arpRequest(Gateway, Gateway), false},
		"arp for elsewhere":          {arpRequest(Guest, netip.MustParseAddr("8.8.8.8")), false},
		"gratuitous arp":             {arpRequest(Guest, Guest), true},
		"arp cut off":                {arpRequest(Guest, Gateway)[:41], false},
		"tcp":                        {ipFrame("10.0.2.15", "1.1.1.1", 6, syn), true},
		"udp":                        {ipFrame("10.0.2.15", "1.1.1.1", 17, syn), true},
		"spoofed":                    {ipFrame("10.0.2.16", "1.1.1.1", 6, syn), false},
		"from the gateway":           {ipFrame("10.0.2.2", "1.1.1.1", 6, syn), false},
		"from a public address":      {ipFrame("8.8.8.8", "10.0.2.15", 6, syn), false},
		"ping of the gateway":        {ipFrame("10.0.2.15", "10.0.2.2", 1, syn), true},
		"ping of the world":          {ipFrame("10.0.2.15", "8.8.8.8", 1, syn), false},
		"igmp":                       {ipFrame("10.0.2.15", "224.0.0.22", 2, syn), false},
		"sctp":                       {ipFrame("10.0.2.15", "1.1.1.1", 132, syn), false},
		"ipv6":                       {append([]byte("\x33\x33\x00\x00\x00\x02\x52\x54\x00\x12\x34\x56\x86\xdd"), make([]byte, 40)...), false},
		"ipv4 cut off":               {ipFrame("10.0.2.15", "1.1.1.1", 6, nil)[:33], false},
		"ipv4 with version 6":        {append([]byte("\x52\x55\x0a\x00\x02\x02\x52\x54\x00\x12\x34\x56\x08\x00\x60"), make([]byte, 40)...), false},
		"empty":                      {nil, false},
		"header only":                {make([]byte, 14), false},
	} {
		if got := acceptFrame(c.frame); got != c.want {
			t.Errorf("%s: accepted %v", name, got)
		}
	}
}

type readWriteCloser struct {
	io.Reader
	io.Writer
}

func (readWriteCloser) Close() error { return nil }

func TestStreamLink(t *testing.T) {
	var wire bytes.Buffer
	out := newStreamLink(readWriteCloser{nil, &wire})
	big := bytes.Repeat([]byte("x"), maxFrame)
	for _, f := range [][]byte{[]byte("one"), {}, big} {
		if err := out.writeFrame(f[:len(f)/2], f[len(f)/2:]); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.flush(); err != nil {
		t.Fatal(err)
	}
	in := newStreamLink(readWriteCloser{bytes.NewReader(wire.Bytes()), nil})
	for _, want := range [][]byte{[]byte("one"), {}, big} {
		if got, err := in.readFrame(); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, %v; want %d", len(got), err, len(want))
		}
	}
	if _, err := in.readFrame(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	for name, data := range map[string]string{"length cut off": "\x00\x00", "frame cut off": "\x00\x00\x00\x05abc",
		"nothing after the length": "\x00\x00\x00\x05"} {
		if _, err := newStreamLink(readWriteCloser{bytes.NewReader([]byte(data)), nil}).readFrame(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := newStreamLink(readWriteCloser{bytes.NewReader([]byte("\xff\xff\xff\xff")), nil}).readFrame(); !errors.Is(err, errFrame) {
		t.Errorf("4 GB: %v", err)
	}
}

// FuzzFrames feeds a whole network with what a hostile guest may send: it must
// neither panic nor hang.
func FuzzFrames(f *testing.F) {
	frame := func(parts ...[]byte) []byte {
		var out []byte
		for _, p := range parts {
			out = append(binary.BigEndian.AppendUint32(out, uint32(len(p))), p...)
		}
		return out
	}
	syn := []byte("\x04\x00\x00\x50\x00\x00\x00\x01\x00\x00\x00\x00\x50\x02\xff\xff\x00\x00\x00\x00")
	f.Add(frame(arpRequest(Guest, Gateway)))
	f.Add(frame(arpRequest(Guest, Gateway), ipFrame("10.0.2.15", "10.0.2.2", 6, syn)))
	f.Add(frame(ipFrame("10.0.2.15", "10.0.2.3", 17, []byte("\x04\x00\x00\x35\x00\x08\x00\x00"))))
	f.Add(frame(ipFrame("10.0.2.15", "1.1.1.1", 17, []byte("\x04\x00\x00\x35\x00\x08\x00\x00"))))
	f.Add(frame(ipFrame("10.0.2.15", "10.0.2.2", 1, []byte("\x08\x00\xf7\xff\x00\x00\x00\x00"))))
	f.Add([]byte("\x00\x01\x00\x00"))
	f.Add(frame(nil, make([]byte, 13), make([]byte, 14)))
	w := &world{}
	n, err := New(Config{Dial: w.dial, Resolve: w.resolve, Limits: Limits{Connections: 8}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(n.Close)
	f.Fuzz(func(t *testing.T, wire []byte) {
		if err := n.serve(newStreamLink(readWriteCloser{bytes.NewReader(wire), io.Discard})); err == nil {
			return
		} else if !errors.Is(err, errFrame) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
	})
}
