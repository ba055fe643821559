package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Dial opens a stream to a socket of the machine by its name, for example [Engine].
// It is open at once as far as the caller can see: what the agent has against it (no
// such socket, nobody listens) is the error of the first Read, an *Error. The
// connection has no deadlines; Close ends it, and so does the end of ctx.
func (c *Client) Dial(ctx context.Context, socket string) (net.Conn, error) {
	var e encoder
	e.string(socket)
	s, err := c.open(ctx, opDial, e.b, nil, false)
	if err != nil {
		return nil, err
	}
	conn := &streamConn{c: c, s: s, name: socket, closed: make(chan struct{})}
	conn.forget = context.AfterFunc(ctx, func() { conn.end(context.Cause(ctx)) })
	return conn, nil
}

// streamConn is a stream as a net.Conn. One goroutine may read while another writes.
type streamConn struct {
	c      *Client
	s      *stream
	name   string
	forget func() bool

	readMu sync.Mutex
	b      batch
	data   []byte // of b, not yet read
	over   error  // why there is nothing more

	writeMu sync.Mutex
	buf     []byte

	once   sync.Once
	why    error // set before closed
	closed chan struct{}
}

func (k *streamConn) Read(p []byte) (int, error) {
	k.readMu.Lock()
	defer k.readMu.Unlock()
	for len(k.data) == 0 {
		if k.over != nil {
			return 0, k.over
		}
		select {
		case <-k.closed:
			return 0, k.why
		default:
		}
		if k.b.cost > 0 {
			k.c.grant(k.s, k.b.cost)
			k.b.cost = 0
		}
		select {
		case <-k.closed:
			return 0, k.why
		case <-k.s.in.ready:
		}
		end, ok := k.s.in.take(&k.b)
		switch {
		case ok && end != nil:
			k.over = k.reason(io.EOF)
			if k.over == net.ErrClosed {
				k.over = io.EOF // at the other end
			}
		case ok:
			k.data = k.b.buf
		}
	}
	n := copy(p, k.data)
	k.data = k.data[n:]
	return n, nil
}

func (k *streamConn) Write(p []byte) (int, error) {
	k.writeMu.Lock()
	defer k.writeMu.Unlock()
	if k.buf == nil {
		k.buf = make([]byte, headerSize+MaxPayload)
	}
	done := 0
	for done < len(p) {
		n := copy(k.buf[headerSize:], p[done:])
		if err := k.c.send(k.s, k.buf[:headerSize+n], false); err != nil {
			return done, k.reason(err)
		}
		done += n
	}
	return done, nil
}

// reason is why a Write failed: not that the stream has ended, but what ended it.
func (k *streamConn) reason(err error) error {
	select {
	case <-k.closed:
		return k.why
	default:
	}
	k.s.in.mu.Lock()
	defer k.s.in.mu.Unlock()
	if f := k.s.in.final; f != nil {
		return cmp.Or(f.err, net.ErrClosed)
	}
	return err
}

func (k *streamConn) Close() error {
	k.forget()
	k.end(net.ErrClosed)
	return nil
}

func (k *streamConn) end(why error) {
	k.once.Do(func() {
		k.why = why
		close(k.closed)
		k.c.cancel(k.s)
	})
}

type socketAddr string

func (socketAddr) Network() string  { return "guest" }
func (a socketAddr) String() string { return string(a) }

func (k *streamConn) LocalAddr() net.Addr  { return socketAddr("host") }
func (k *streamConn) RemoteAddr() net.Addr { return socketAddr(k.name) }

func (k *streamConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (k *streamConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (k *streamConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// dial serves a stream to one of the agent's sockets until it is closed there, or the
// host wants no more of it.
func (v *serving) dial(name string) error {
	path, ok := v.sess.server.opts.Sockets[name]
	if !ok {
		return fmt.Errorf("there is no socket called %q", name)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer afterCancel(v, func() { conn.Close() })()
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		v.consume(func(p []byte) error {
			_, err := conn.Write(p)
			return err
		})
	}()
	_, err = io.Copy(v, conn)
	conn.Close()
	v.cancel() // what still comes from the host has nowhere to go
	<-fed
	if errors.Is(err, net.ErrClosed) {
		err = errCancelled
	}
	return err
}
