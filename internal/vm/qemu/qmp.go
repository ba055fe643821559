package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxQMPLine bounds one message of QEMU's. The largest that we ask for are a few
// kilobytes.
const maxQMPLine = 1 << 20

// qmpError is QEMU's refusal of a command.
type qmpError struct {
	Command string `json:"-"`
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *qmpError) Error() string { return fmt.Sprintf("qemu: %s: %s", e.Command, e.Desc) }

// event is something that QEMU tells without having been asked.
type event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// message is anything that QEMU may send: a greeting, an event, or the answer
// to the command with the same id.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       uint64          `json:"id"`
	Return   json.RawMessage `json:"return"`
	Err      *qmpError       `json:"error"`
	event
}

// readMessage reads one message, one line of JSON. QEMU is trusted more than
// the guest, but a QEMU that the guest has taken over is not, so the size is
// bounded.
func readMessage(r *bufio.Reader) (message, error) {
	var m message
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxQMPLine {
			return m, fmt.Errorf("qmp: message longer than %d bytes", maxQMPLine)
		}
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) && len(line) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return m, err
		}
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("qmp: not a message: %w", err)
	}
	return m, nil
}

// qmp is a connection to QEMU's monitor. One goroutine, run by the caller of
// serve, reads; any number may call.
type qmp struct {
	conn    net.Conn
	onEvent func(event) // called from serve, must not block

	writing sync.Mutex // before mu

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan message
	err     error // why serve ended; no call can succeed any more
	ended   chan struct{}
}

func newQMP(conn net.Conn, onEvent func(event)) *qmp {
	return &qmp{conn: conn, onEvent: onEvent, pending: map[uint64]chan message{}, ended: make(chan struct{})}
}

// serve reads until the connection ends.
func (q *qmp) serve() {
	r := bufio.NewReader(q.conn)
	var err error
	for {
		var m message
		if m, err = readMessage(r); err != nil {
			break
		}
		switch {
		case m.event.Name != "":
			q.onEvent(m.event)
		case m.Greeting != nil:
		default:
			q.mu.Lock()
			c := q.pending[m.ID]
			delete(q.pending, m.ID)
			q.mu.Unlock()
			if c != nil {
				c <- m // has room
			}
		}
	}
	q.mu.Lock()
	q.err = fmt.Errorf("qemu's monitor is gone: %w", err)
	q.mu.Unlock()
	close(q.ended)
	q.conn.Close()
}

// command is one QMP command. File, if set, is sent along with it.
type command struct {
	Execute   string   `json:"execute"`
	Arguments any      `json:"arguments,omitempty"`
	ID        uint64   `json:"id"`
	File      *os.File `json:"-"`
}

// call runs commands in order, sent together so that they cost one round trip,
// and returns the result of the last. The first refusal is the error; QEMU has
// tried the later ones all the same.
func (q *qmp) call(ctx context.Context, commands ...command) (json.RawMessage, error) {
	replies := make([]chan message, len(commands))
	q.mu.Lock()
	if q.err != nil {
		defer q.mu.Unlock()
		return nil, q.err
	}
	for i := range commands {
		q.next++
		commands[i].ID = q.next
		replies[i] = make(chan message, 1)
		q.pending[q.next] = replies[i]
	}
	q.mu.Unlock()
	// Not under mu, which serve needs to take answers meanwhile.
	werr := q.sendAll(commands)
	defer func() {
		q.mu.Lock()
		for i := range commands {
			delete(q.pending, commands[i].ID)
		}
		q.mu.Unlock()
	}()
	if werr != nil {
		return nil, fmt.Errorf("qmp: send: %w", werr)
	}
	var last json.RawMessage
	var first error
	for i, c := range replies {
		select {
		case m := <-c:
			if m.Err != nil && first == nil {
				m.Err.Command = commands[i].Execute
				first = m.Err
			}
			last = m.Return
		case <-q.ended:
			// An answer may have come just before the end.
			select {
			case m := <-c:
				if m.Err == nil {
					last = m.Return
					continue
				}
			default:
			}
			return nil, fmt.Errorf("%s: %w", commands[i].Execute, q.err)
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", commands[i].Execute, context.Cause(ctx))
		}
	}
	return last, first
}

func (q *qmp) sendAll(commands []command) error {
	q.writing.Lock() // a file belongs to the command beside it
	defer q.writing.Unlock()
	// A QEMU that does not read its monitor at all is lost, and so is the rest of
	// a command of which it has read half.
	q.conn.SetWriteDeadline(time.Now().Add(writeLimit))
	for i := range commands {
		if err := q.send(&commands[i]); err != nil {
			q.conn.Close()
			return err
		}
	}
	return nil
}

const writeLimit = 20 * time.Second

func (q *qmp) send(c *command) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if c.File != nil {
		u, ok := q.conn.(*net.UnixConn)
		if !ok {
			return errors.New("this connection cannot carry a file")
		}
		n, _, err := u.WriteMsgUnix(b, syscall.UnixRights(int(c.File.Fd())), nil)
		if err == nil && n < len(b) {
			_, err = q.conn.Write(b[n:])
		}
		return err
	}
	_, err = q.conn.Write(b)
	return err
}
