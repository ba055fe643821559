package hold

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/history"
)

// The stream of an exec: frames of kind 1 | length 4 | payload.

const protocol = "hearth-exec"

const (
	frameStdin  = 'i' // client → holder: input, within the credit
	frameEOF    = 'e' // client → holder: no more input
	frameSignal = 's' // client → holder: a signal's name
	frameResize = 'w' // client → holder: rows 2, columns 2
	frameStdout = 'o' // holder → client
	frameStderr = 'r' // holder → client
	frameCredit = 'c' // holder → client: so many bytes of input more, 4
	frameExpect = 'p' // holder → client, the first if it comes: a history.Expectation
	frameResult = 'x' // holder → client, the last: a result
)

const (
	maxFrame = 64 << 10
	window   = 256 << 10 // of input, bytes
)

// request begins an exec.
type request struct {
	Argv    []string      `json:"argv"`
	Env     []string      `json:"env,omitempty"`
	Dir     string        `json:"dir,omitempty"`
	User    string        `json:"user,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
	Stdin   bool          `json:"stdin,omitempty"`
	TTY     *guest.TTY    `json:"tty,omitempty"`
	InStep  bool          `json:"in_step,omitempty"` // in the environment and directory of the step that failed
	// Learn has the command learned from, in this repository's memory; Secrets are
	// values that must not be remembered.
	Learn   string   `json:"learn,omitempty"`
	Secrets []string `json:"secrets,omitempty"`

	expected func(history.Expectation) // the client's
}

type result struct {
	Exit      guest.Exit      `json:"exit"`
	Fault     *Fault          `json:"fault,omitempty"`
	Explained *ci.Explanation `json:"explained,omitempty"`
}

// frames writes frames, whole ones, from several goroutines.
type frames struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frames) send(kind byte, p []byte) error {
	b := make([]byte, 5, 5+len(p))
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:], uint32(len(p)))
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.w.Write(append(b, p...))
	return err
}

func (f *frames) result(e guest.Exit, err error, explained *ci.Explanation) error {
	b, _ := json.Marshal(result{e, wrap(err), explained})
	return f.send(frameResult, b)
}

type frameWriter struct {
	f    *frames
	kind byte
}

func (f *frames) writer(kind byte) io.Writer { return frameWriter{f, kind} }

func (w frameWriter) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		k := min(maxFrame, len(p)-n)
		if err := w.f.send(w.kind, p[n:n+k]); err != nil {
			return n, err
		}
		n += k
	}
	return len(p), nil
}

// next reads a frame into buf, which it may grow up to the largest frame.
func next(r *bufio.Reader, buf []byte) (kind byte, p, grown []byte, err error) {
	var h [5]byte
	if _, err = io.ReadFull(r, h[:]); err != nil {
		return 0, nil, buf, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > maxFrame {
		return 0, nil, buf, fmt.Errorf("hold: a frame of %d bytes", n)
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	p = buf[:n]
	if _, err = io.ReadFull(r, p); err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return h[0], p, buf, err
}

// receive takes a client's frames until it is gone, which is an error unless the
// command has ended.
func receive(r *bufio.Reader, in *input, p *guest.Process) error {
	var buf []byte
	for {
		kind, payload, grown, err := next(r, buf)
		if err != nil {
			return fmt.Errorf("the command's client is gone: %w", err)
		}
		buf = grown
		switch kind {
		case frameStdin:
			if in == nil || !in.put(payload) {
				return fmt.Errorf("hold: input beyond its credit")
			}
		case frameEOF:
			if in != nil {
				in.close(io.EOF)
			}
		case frameSignal:
			p.Signal(string(payload)) // of a command that has ended: nothing
		case frameResize:
			if len(payload) == 4 {
				p.Resize(guest.TTY{Rows: binary.BigEndian.Uint16(payload), Cols: binary.BigEndian.Uint16(payload[2:])})
			}
		default:
			return fmt.Errorf("hold: a frame of kind %q", kind)
		}
	}
}

// input is a command's standard input between the connection and the agent. It
// holds at most window bytes, and grants as many as were taken.
type input struct {
	out  *frames
	mu   sync.Mutex
	cond *sync.Cond
	buf  []byte
	err  error // after buf
}

func newInput(out *frames) *input {
	in := &input{out: out}
	in.cond = sync.NewCond(&in.mu)
	return in
}

func (in *input) put(p []byte) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.buf)+len(p) > window {
		return false
	}
	if in.err == nil {
		in.buf = append(in.buf, p...)
	}
	in.cond.Signal()
	return true
}

// close ends the input; the first reason counts.
func (in *input) close(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err == nil {
		in.err = err
	}
	if err != io.EOF {
		in.buf = nil
	}
	in.cond.Broadcast()
}

func (in *input) Read(p []byte) (int, error) {
	in.mu.Lock()
	for len(in.buf) == 0 && in.err == nil {
		in.cond.Wait()
	}
	n := copy(p, in.buf)
	in.buf = in.buf[n:]
	if len(in.buf) == 0 {
		in.buf = nil
	}
	err := in.err
	in.mu.Unlock()
	if n == 0 {
		return 0, err
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	in.out.send(frameCredit, b[:]) // a client that is gone needs none
	return n, nil
}
