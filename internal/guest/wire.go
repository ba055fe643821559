package guest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Bounds of the protocol; both ends hold each other to them.
const (
	// ProtocolVersion is what this package speaks. An agent that speaks another one is refused.
	ProtocolVersion = 2
	// MaxPayload is the largest payload of a frame in bytes.
	MaxPayload = 32<<10 - headerSize
	// Window is what may be on its way on a stream in one direction, in bytes, headers included.
	Window = 256 << 10
	// MaxStreams is the number of requests a connection carries at a time.
	MaxStreams = 128
	// MaxRequest is the largest request in bytes (an Exec with its arguments and environment).
	MaxRequest = 4 << 20

	headerSize    = 16
	helloSize     = 16 + 16 + 2 + 2 + 4
	maxInfo       = 4 << 10
	maxErrorText  = 1 << 10
	maxStale      = 64 << 20 // bytes of a former connection the host is willing to skip
	maxBenchRuns  = 2000
	maxNameLength = 4096
)

// Why these magics: no text, no tar and no ELF contains them, and they differ from the first byte on.
const (
	hostMagic  = "\xf5HearthHost\x00\r\n\x1a\xfe"
	guestMagic = "\xf6HearthGuest\r\n\x1a\xfe"
)

// ErrProtocol says that the other end broke the protocol; the connection is over.
var ErrProtocol = errors.New("guest: protocol violation")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// kind is what a frame is.
type kind uint8

const (
	kindOpen   kind = 1  // host: a request; channel is the op; flagMore: the payload goes on in the next frame
	kindData   kind = 2  // both: bytes on a channel; flagEnd: the last ones
	kindCredit kind = 3  // both: 4 bytes, how much more may be sent
	kindSignal kind = 4  // host: name of a signal for an exec's process group
	kindStop   kind = 5  // host: end an exec (signal, grace in ns)
	kindResize kind = 6  // host: rows, columns of an exec's terminal
	kindCancel kind = 7  // host: nobody wants the result any more
	kindResult kind = 8  // guest: final, it was done
	kindError  kind = 9  // guest: final, it could not be done
	kindPing   kind = 10 // host: stream 0
	kindPong   kind = 11 // guest: stream 0
)

const (
	flagMore uint16 = 1
	flagEnd  uint16 = 2
)

// Channels of kindData.
const (
	chanIn  uint8 = 0
	chanOut uint8 = 1
	chanErr uint8 = 2
)

// op is what a request asks for. The numbers are the protocol: never reuse one.
type op uint8

const (
	opExec      op = 1
	opReadFile  op = 2
	opWriteFile op = 3
	opTarIn     op = 4
	opTarOut    op = 5
	opMkdir     op = 6
	opRemove    op = 7
	opStat      op = 8
	opResume    op = 9
	opUsage     op = 10
	opSync      op = 11
	opPoweroff  op = 12
	opPing      op = 13
	opFloor     op = 14
	opDial      op = 15
)

type header struct {
	tag    uint32
	stream uint32
	length uint32
	kind   kind
	ch     uint8
	flags  uint16
}

func (h header) put(b []byte) {
	binary.BigEndian.PutUint32(b[0:], h.tag)
	binary.BigEndian.PutUint32(b[4:], h.stream)
	binary.BigEndian.PutUint32(b[8:], h.length)
	b[12], b[13] = byte(h.kind), h.ch
	binary.BigEndian.PutUint16(b[14:], h.flags)
}

func parseHeader(b []byte) header {
	return header{
		tag:    binary.BigEndian.Uint32(b[0:]),
		stream: binary.BigEndian.Uint32(b[4:]),
		length: binary.BigEndian.Uint32(b[8:]),
		kind:   kind(b[12]),
		ch:     b[13],
		flags:  binary.BigEndian.Uint16(b[14:]),
	}
}

// nonce is the host's choice for one connection. Its first four bytes are the connection's tag.
type nonce [16]byte

func (n nonce) tag() uint32 { return binary.BigEndian.Uint32(n[:4]) }

// valid says whether the tag can be told from padding and from both magics.
func (n nonce) valid() bool {
	return n.tag() != 0 && n[0] != hostMagic[0] && n[0] != guestMagic[0]
}

// hello is the host's first message.
type hello struct {
	nonce   nonce
	version uint16
}

func (h hello) append(b []byte) []byte {
	start := len(b)
	b = append(b, hostMagic...)
	b = append(b, h.nonce[:]...)
	b = binary.BigEndian.AppendUint16(b, h.version)
	b = binary.BigEndian.AppendUint16(b, 0)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[start:]))
}

// parseHello reads helloSize bytes that begin with the magic.
func parseHello(b []byte) (hello, bool) {
	if len(b) != helloSize || string(b[:16]) != hostMagic ||
		binary.BigEndian.Uint32(b[36:]) != crc32.ChecksumIEEE(b[:36]) {
		return hello{}, false
	}
	h := hello{nonce: nonce(b[16:32]), version: binary.BigEndian.Uint16(b[32:])}
	return h, h.nonce.valid()
}

// seekHello skips bytes until a whole hello was read.
func seekHello(r *bufio.Reader) (hello, error) {
	for {
		if err := seek(r, []byte(hostMagic), -1); err != nil {
			return hello{}, err
		}
		b, err := r.Peek(helloSize)
		if err != nil {
			return hello{}, err
		}
		if h, ok := parseHello(b); ok {
			_, err := r.Discard(helloSize)
			return h, err
		}
		if _, err := r.Discard(1); err != nil {
			return hello{}, err
		}
	}
}

// welcome is the agent's answer: guestMagic, nonce, version, length, info, checksum.
func appendWelcome(b []byte, n nonce, version uint16, info []byte) []byte {
	start := len(b)
	b = append(b, guestMagic...)
	b = append(b, n[:]...)
	b = binary.BigEndian.AppendUint16(b, version)
	b = binary.BigEndian.AppendUint16(b, uint16(len(info)))
	b = append(b, info...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[start:]))
}

// readWelcome skips at most limit bytes to the answer to n and returns the
// agent's protocol version and its encoded Info.
func readWelcome(r *bufio.Reader, n nonce, limit int) (version uint16, info []byte, err error) {
	want := append([]byte(guestMagic), n[:]...)
	if err := seek(r, want, limit); err != nil {
		return 0, nil, err
	}
	head, err := r.Peek(36)
	if err != nil {
		return 0, nil, err
	}
	version = binary.BigEndian.Uint16(head[32:])
	length := int(binary.BigEndian.Uint16(head[34:]))
	if length > maxInfo {
		return 0, nil, violation("welcome of %d bytes", length)
	}
	whole, err := r.Peek(36 + length + 4)
	if err != nil {
		return 0, nil, err
	}
	if crc32.ChecksumIEEE(whole[:36+length]) != binary.BigEndian.Uint32(whole[36+length:]) {
		return 0, nil, violation("welcome with a wrong checksum")
	}
	info = bytes.Clone(whole[36 : 36+length])
	_, err = r.Discard(len(whole))
	return version, info, err
}

// seek advances r to the next occurrence of pattern, over at most limit bytes (none if negative).
// An error of the underlying reader leaves what was read in r, so that a deadline can be tried again.
func seek(r *bufio.Reader, pattern []byte, limit int) error {
	skipped := 0
	for {
		if _, err := r.Peek(len(pattern)); err != nil {
			return err
		}
		b, _ := r.Peek(r.Buffered())
		if i := bytes.Index(b, pattern); i >= 0 {
			_, err := r.Discard(i)
			return err
		}
		n := len(b) - len(pattern) + 1
		if skipped += n; limit >= 0 && skipped > limit {
			return violation("more than %d bytes before the welcome", limit)
		}
		if _, err := r.Discard(n); err != nil {
			return err
		}
	}
}

// encoder appends values; decoder reads them back and remembers the first error.
type encoder struct{ b []byte }

func (e *encoder) uint(v uint64)   { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)     { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) string(s string) { e.uint(uint64(len(s))); e.b = append(e.b, s...) }
func (e *encoder) bytes(s []byte)  { e.uint(uint64(len(s))); e.b = append(e.b, s...) }
func (e *encoder) bool(v bool) {
	if v {
		e.b = append(e.b, 1)
	} else {
		e.b = append(e.b, 0)
	}
}
func (e *encoder) strings(s []string) {
	e.uint(uint64(len(s)))
	for _, v := range s {
		e.string(v)
	}
}

type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = violation("message: %s", what)
	}
	d.b = nil
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) raw() []byte {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail("string longer than the message")
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) string() string { return string(d.raw()) }

func (d *decoder) bool() bool {
	if len(d.b) == 0 || d.b[0] > 1 {
		d.fail("bad boolean")
		return false
	}
	v := d.b[0] == 1
	d.b = d.b[1:]
	return v
}

func (d *decoder) strings() []string {
	n := d.uint()
	if n > uint64(len(d.b)) { // each takes at least its length byte
		d.fail("list longer than the message")
		return nil
	}
	if n == 0 {
		return nil
	}
	v := make([]string, 0, n)
	for range n {
		v = append(v, d.string())
	}
	return v
}

// end returns the first error; bytes left over are one.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("bytes left over")
	}
	return d.err
}

// frameReader reads frames of one connection.
type frameReader struct {
	r    *bufio.Reader
	tag  uint32
	head [headerSize]byte
	body [MaxPayload]byte
}

// errResync is what a frameReader returns when no frame of its connection begins here.
var errResync = errors.New("guest: frame of another connection")

// next returns the next frame; the payload is valid until the following call.
// It leaves the reader before the header when that is none of this connection (errResync).
func (f *frameReader) next() (header, []byte, error) {
	head, err := f.r.Peek(4)
	if err != nil {
		return header{}, nil, eof(err, len(head))
	}
	if binary.BigEndian.Uint32(head) != f.tag {
		return header{}, nil, errResync
	}
	if _, err := io.ReadFull(f.r, f.head[:]); err != nil {
		return header{}, nil, eof(err, 1)
	}
	h := parseHeader(f.head[:])
	if h.length > MaxPayload {
		return h, nil, violation("frame of %d bytes", h.length)
	}
	if _, err := io.ReadFull(f.r, f.body[:h.length]); err != nil {
		return h, nil, eof(err, 1)
	}
	return h, f.body[:h.length], nil
}

// eof turns an end of file in the middle of something into the error it is.
func eof(err error, have int) error {
	if err == io.EOF && have > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}
