package guest

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	// ErrLost says that contact with the agent was lost before its final message: nobody knows how what was asked
	// for ended. It is an infrastructure error, whatever the cause it is wrapped with.
	ErrLost = errors.New("guest: lost contact with the agent")
	// ErrUnresponsive is the cause when the agent answered nothing for too long.
	ErrUnresponsive = errors.New("guest: the agent does not answer")
	// ErrVersion says that the agent speaks another version of the protocol: rebuild the image.
	ErrVersion = errors.New("guest: the agent speaks another version of the protocol")
	// ErrClosed is the cause after Close.
	ErrClosed = errors.New("guest: client closed")
)

// Option changes what Connect does by default.
type Option func(*Client)

// WithHeartbeat sets how long the agent may be silent while something is asked
// of it before it is pinged (default 10 s). After six times as long without a byte from it the connection
// is given up with ErrUnresponsive. 0 switches it off. A client with nothing
// outstanding sends nothing, so a machine may be paused then.
func WithHeartbeat(d time.Duration) Option { return func(c *Client) { c.heartbeat = d } }

// Client is the host's end of a connection to an agent. Its methods may be
// called from many goroutines; up to MaxStreams requests run at a time, others
// wait. When the connection breaks, every call returns an error that wraps
// ErrLost, and the client is of no further use: Connect again.
type Client struct {
	conn      net.Conn
	tag       uint32
	info      Info
	heartbeat time.Duration

	writeMu sync.Mutex
	slots   chan struct{} // one token a stream

	mu      sync.Mutex
	streams map[uint32]*stream
	last    uint32 // stream number
	err     error

	heard atomic.Int64 // when the agent last said something; ns since start
	start time.Time

	dead chan struct{} // closed when err is set
	wg   sync.WaitGroup
}

// stream is one request on its way.
type stream struct {
	id  uint32
	op  op
	in  inbox
	out credits
}

// Connect opens a connection to the agent by dial and says hello; while that
// fails it dials again, until a whole exchange succeeded or ctx is done. So it
// may be called before the machine has booted. It gives up at once only when the
// agent speaks another version (ErrVersion).
//
// dial returns the byte stream to the agent; Connect closes it when it is of no use, Client.Close otherwise.
func Connect(ctx context.Context, dial func(context.Context) (net.Conn, error), opts ...Option) (*Client, error) {
	wait := time.Millisecond
	for {
		conn, err := dial(ctx)
		if err == nil {
			var c *Client
			if c, err = connect(ctx, conn, opts); err == nil {
				return c, nil
			}
			if errors.Is(err, ErrVersion) {
				return nil, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("guest: connecting to the agent: %w (last try: %w)", context.Cause(ctx), err)
		case <-time.After(wait):
		}
		wait = min(wait*2, 100*time.Millisecond)
	}
}

// New says hello on conn, which it closes if that fails, and does not try again.
func New(ctx context.Context, conn net.Conn, opts ...Option) (*Client, error) {
	return connect(ctx, conn, opts)
}

func connect(ctx context.Context, conn net.Conn, opts []Option) (*Client, error) {
	br := bufio.NewReaderSize(conn, 64<<10)
	tag, info, err := greet(ctx, conn, br)
	if err != nil {
		conn.Close()
		return nil, err
	}
	c := &Client{
		conn:      conn,
		tag:       tag,
		info:      info,
		heartbeat: 10 * time.Second,
		slots:     make(chan struct{}, MaxStreams),
		streams:   map[uint32]*stream{},
		start:     time.Now(),
		dead:      make(chan struct{}),
	}
	for _, o := range opts {
		o(c)
	}
	c.wg.Go(func() { c.fail(c.read(br)) })
	if c.heartbeat > 0 {
		c.wg.Go(c.watch)
	}
	return c, nil
}

// greet says hello and reads the answer. It repeats the hello on the same
// connection, preceded by as many zeros as the agent may still take for the rest
// of a former host's frame (package comment), before it gives the connection up.
func greet(ctx context.Context, conn net.Conn, br *bufio.Reader) (tag uint32, info Info, err error) {
	past := time.Unix(1, 0)
	var deadlines sync.Mutex // so that the deadline of a done context is the last one set
	deadline := func(t time.Time) {
		deadlines.Lock()
		defer deadlines.Unlock()
		if ctx.Err() == nil {
			conn.SetDeadline(t)
		}
	}
	stop := context.AfterFunc(ctx, func() {
		deadlines.Lock()
		defer deadlines.Unlock()
		conn.SetDeadline(past)
	})
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		conn.SetDeadline(time.Time{})
	}()
	for i, patience := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		var n nonce
		for !n.valid() {
			rand.Read(n[:])
		}
		var b []byte
		if i > 0 {
			b = make([]byte, MaxPayload+headerSize, MaxPayload+headerSize+helloSize)
		}
		deadline(time.Now().Add(patience))
		if _, err = conn.Write(hello{nonce: n, version: ProtocolVersion}.append(b)); err != nil {
			break
		}
		var version uint16
		var raw []byte
		version, raw, err = readWelcome(br, n, maxStale)
		if err == nil {
			if version != ProtocolVersion {
				return 0, Info{}, fmt.Errorf("%w: it says %d, we say %d; rebuild the image", ErrVersion, version, ProtocolVersion)
			}
			info, err = decodeInfo(raw)
			return n.tag(), info, err
		}
		if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return 0, Info{}, fmt.Errorf("guest: hello: %w", err)
}

// Hello is what the agent said about itself when the connection began.
func (c *Client) Hello() Info { return c.info }

// Done is closed when the connection is over; Err says why.
func (c *Client) Done() <-chan struct{} { return c.dead }

// Err is nil while the connection stands, and wraps ErrLost afterwards.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection; what is outstanding fails. The agent kills the
// processes of the connection's Execs.
func (c *Client) Close() error {
	c.fail(ErrClosed)
	c.wg.Wait()
	return nil
}

// fail ends the connection once.
func (c *Client) fail(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = fmt.Errorf("%w: %w", ErrLost, cause)
	close(c.dead)
	c.conn.Close()
	for id, s := range c.streams {
		s.in.finish(final{err: c.err})
		s.out.close(c.err)
		delete(c.streams, id)
	}
}

// read dispatches what the agent sends until the connection breaks.
func (c *Client) read(br *bufio.Reader) error {
	fr := &frameReader{r: br, tag: c.tag}
	for {
		h, p, err := fr.next()
		if err == errResync {
			return violation("frame with a wrong tag")
		}
		if err != nil {
			return err
		}
		c.heard.Store(int64(time.Since(c.start)))
		if h.kind == kindPong {
			continue
		}
		c.mu.Lock()
		s := c.streams[h.stream]
		if s != nil && (h.kind == kindResult || h.kind == kindError) {
			delete(c.streams, h.stream)
		}
		c.mu.Unlock()
		if s == nil {
			return violation("frame for stream %d, which is not open", h.stream)
		}
		switch h.kind {
		case kindData:
			if s.op != opExec && h.ch != chanOut || h.ch != chanOut && h.ch != chanErr {
				return violation("data on channel %d of %v", h.ch, s.op)
			}
			err = s.in.put(h.ch, p, h.flags&flagEnd != 0)
		case kindCredit:
			if len(p) != 4 {
				return violation("credit of %d bytes", len(p))
			}
			err = s.out.grant(binary.BigEndian.Uint32(p))
		case kindResult:
			s.in.finish(final{result: append([]byte{}, p...)})
			s.out.close(errStreamEnded)
			<-c.slots
		case kindError:
			said, malformed := decodeError(s.op, p)
			if malformed != nil {
				err = fmt.Errorf("%w: %w", ErrLost, malformed)
				s.in.finish(final{err: err})
			} else {
				s.in.finish(final{err: said})
			}
			s.out.close(errStreamEnded)
			<-c.slots
		default:
			return violation("a frame of kind %d from the agent", h.kind)
		}
		if err != nil {
			return err
		}
	}
}

// errStreamEnded ends a sender whose stream has its final message.
var errStreamEnded = errors.New("guest: stream ended")

// watch pings a silent agent while something is asked of it, and gives it up.
func (c *Client) watch() {
	t := time.NewTicker(c.heartbeat)
	defer t.Stop()
	for {
		select {
		case <-c.dead:
			return
		case <-t.C:
		}
		c.mu.Lock()
		busy := len(c.streams) > 0
		c.mu.Unlock()
		silent := time.Since(c.start) - time.Duration(c.heard.Load())
		switch {
		case !busy || silent < c.heartbeat:
		case silent > 6*c.heartbeat:
			c.fail(fmt.Errorf("%w for %v", ErrUnresponsive, silent.Round(time.Second)))
		default:
			// If the lock is taken, a write is on its way: either it ends, or the silence does.
			if c.writeMu.TryLock() {
				c.writeLocked(header{kind: kindPing}, nil)
				c.writeMu.Unlock()
			}
		}
	}
}

// write sends one frame. buf has headerSize bytes of room before the payload.
func (c *Client) write(h header, buf []byte) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	return c.writeLocked(h, buf)
}

func (c *Client) writeLocked(h header, buf []byte) error {
	if buf == nil {
		buf = make([]byte, headerSize)
	}
	h.tag = c.tag
	h.length = uint32(len(buf) - headerSize)
	h.put(buf)
	if c.heartbeat > 0 {
		c.conn.SetWriteDeadline(time.Now().Add(6 * c.heartbeat))
	}
	if _, err := c.conn.Write(buf); err != nil {
		// Half a frame may have gone: there is no way on.
		c.fail(err)
		return c.Err()
	}
	return nil
}

// message returns a frame's buffer with payload p.
func message(p ...byte) []byte {
	return append(make([]byte, headerSize, headerSize+len(p)), p...)
}

// open sends a request. Data that the stream's window certainly allows may go
// with it, in the same write; end says that there will be no more.
func (c *Client) open(ctx context.Context, o op, request []byte, data []byte, end bool) (*stream, error) {
	if len(request) > MaxRequest {
		// As if the agent had refused it: it is what was asked that cannot be.
		return nil, &Error{Op: o.String(), Errno: syscall.E2BIG, Start: o == opExec,
			Text: fmt.Sprintf("the request has %d bytes, at most %d are possible", len(request), MaxRequest)}
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	select {
	case c.slots <- struct{}{}:
	default:
		select {
		case c.slots <- struct{}{}:
		case <-c.dead:
			return nil, c.Err()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	s := &stream{op: o}
	s.in.init()
	s.out.init()

	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, c.err
	}
	for ok := true; ok; _, ok = c.streams[c.last] {
		c.last = c.last%(1<<31-1) + 1
	}
	s.id = c.last
	if len(c.streams) == 0 {
		c.heard.Store(int64(time.Since(c.start)))
	}
	c.streams[s.id] = s
	c.mu.Unlock()

	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	frames := make([]byte, 0, headerSize+min(len(request), MaxPayload)+headerSize+len(data))
	for more := true; more; {
		n := min(len(request), MaxPayload)
		more = n < len(request)
		h := header{tag: c.tag, stream: s.id, kind: kindOpen, ch: uint8(o), length: uint32(n)}
		if more {
			h.flags = flagMore
		}
		frames = appendFrame(frames, h, request[:n])
		request = request[n:]
	}
	for len(data) > 0 || end {
		n, err := s.out.take(len(data))
		if err != nil {
			break
		}
		h := header{tag: c.tag, stream: s.id, kind: kindData, length: uint32(n)}
		if end && n == len(data) {
			h.flags, end = flagEnd, false
		}
		frames = appendFrame(frames, h, data[:n])
		data = data[n:]
	}
	if c.heartbeat > 0 {
		c.conn.SetWriteDeadline(time.Now().Add(6 * c.heartbeat))
	}
	if _, err := c.conn.Write(frames); err != nil {
		c.fail(err)
		return nil, c.Err()
	}
	return s, nil
}

func appendFrame(b []byte, h header, p []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, headerSize)...)
	h.put(b[at:])
	return append(b, p...)
}

// cancel tells the agent that nobody wants the stream's result. The stream ends when the agent says so.
func (c *Client) cancel(s *stream) {
	s.in.abandon()
	s.out.close(errStreamEnded)
	c.write(header{stream: s.id, kind: kindCancel}, nil)
}

// call sends a request and returns its result; data that come before the result
// go to sink in the calling goroutine (none are expected if it is nil).
func (c *Client) call(ctx context.Context, o op, request []byte, sink func(p []byte) error) ([]byte, error) {
	s, err := c.open(ctx, o, request, nil, false)
	if err != nil {
		return nil, err
	}
	return c.finish(ctx, s, sink)
}

func (c *Client) finish(ctx context.Context, s *stream, sink func(p []byte) error) ([]byte, error) {
	var b batch
	for {
		select {
		case <-s.in.ready:
		case <-ctx.Done():
			c.cancel(s)
			return nil, context.Cause(ctx)
		}
		end, ok := s.in.take(&b)
		if !ok {
			continue
		}
		if end != nil {
			return end.result, end.err
		}
		err := b.each(func(_ uint8, p []byte, _ bool) error {
			if sink == nil {
				return violation("data before the result of %v", s.op)
			}
			return sink(p)
		})
		if errors.Is(err, ErrProtocol) {
			c.fail(err)
			return nil, c.Err()
		}
		if err != nil {
			c.cancel(s)
			return nil, err
		}
		c.grant(s, b.cost)
	}
}

// grant returns a consumed batch's credit to the agent.
func (c *Client) grant(s *stream, cost int) {
	if n := s.in.release(cost); n > 0 {
		c.write(header{stream: s.id, kind: kindCredit}, binary.BigEndian.AppendUint32(message(), n))
	}
}

// send copies data to the stream's channel 0 as credit allows, in the calling goroutine.
// buf has headerSize bytes of room before the data.
func (c *Client) send(s *stream, buf []byte, end bool) error {
	for {
		n, err := s.out.take(len(buf) - headerSize)
		if err != nil {
			return err
		}
		var flags uint16
		if end && n == len(buf)-headerSize {
			flags = flagEnd
		}
		if err := c.write(header{stream: s.id, kind: kindData, flags: flags}, buf[:headerSize+n]); err != nil {
			return err
		}
		if n == len(buf)-headerSize {
			return nil
		}
		buf = buf[n:] // the header of the next frame overwrites data that have been sent
	}
}

// decoded turns a malformed result into the end of the connection: an agent that sends one is not our agent.
func decoded[T any](c *Client, v T, err error) (T, error) {
	if err != nil {
		c.fail(err)
		return v, c.Err()
	}
	return v, nil
}
