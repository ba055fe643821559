package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// echo listens in a directory of the test's and sends back what it gets.
func echo(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	return path
}

func TestDial(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	c := serveHere(t, Options{Sockets: map[string]string{"echo": echo(t), "gone": gone}})

	conn, err := c.Dial(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, 3<<20) // more than windows hold
	rand.Read(sent)
	go conn.Write(sent)
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%v; the same bytes: %v", err, bytes.Equal(got, sent))
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(got); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}

	for name, want := range map[string]error{"gone": syscall.ENOENT, "/etc/passwd": nil, Engine: nil} {
		conn, err := c.Dial(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = conn.Read(got)
		if said, ok := errors.AsType[*Error](err); !ok || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v (%v)", name, err, said)
		}
		if _, err := conn.Write([]byte("x")); err == nil || errors.Is(err, errStreamEnded) {
			t.Errorf("%s: writing: %v", name, err)
		}
		conn.Close()
	}
}

// The end of a context, of the other side and of the connection each end a stream, and nothing stays.
func TestDialEnds(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 8)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	c := serveHere(t, Options{Sockets: map[string]string{"s": filepath.Join(dir, "s")}})

	ctx, cancel := context.WithCancelCause(t.Context())
	conn, err := c.Dial(ctx, "s")
	if err != nil {
		t.Fatal(err)
	}
	far := <-accepted
	why := errors.New("enough")
	cancel(why)
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, why) {
		t.Errorf("after the context's end: %v", err)
	}
	far.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the socket hears %v of it", err)
	}
	far.Close()
	conn.Close()

	conn, err = c.Dial(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	far = <-accepted
	io.WriteString(far, "bye")
	far.Close()
	if b, err := io.ReadAll(conn); string(b) != "bye" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	conn.Close()
	if err := conn.SetDeadline(time.Now()); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("SetDeadline: %v", err)
	}

	// As many as there can be, again and again: none is left over.
	for range 2 * MaxStreams {
		conn, err := c.Dial(t.Context(), "s")
		if err != nil {
			t.Fatal(err)
		}
		(<-accepted).Close()
		io.Copy(io.Discard, conn)
		conn.Close()
	}
	conn, err = c.Dial(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	far = <-accepted
	c.Close()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("after the client's end: %v", err)
	}
	conn.Close()
	far.Close()
}
