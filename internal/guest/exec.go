package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Cmd is a command to run in the guest.
type Cmd struct {
	// Argv[0] is a path, or a name looked up in PATH of Env.
	Argv []string
	// Env is the environment, "NAME=value". The agent adds PATH, HOME, USER,
	// LOGNAME and SHELL where they are missing.
	Env []string
	// Dir is the working directory; "" is the user's home.
	Dir string
	// User runs the command: a name of the guest's /etc/passwd or "uid:gid".
	// "" is the image's user for jobs ("runner"); "root" is root.
	User string
	// Stdin is copied to the command; nil is /dev/null. When the command ends
	// before it, a Read that is under way is not waited for.
	Stdin io.Reader
	// Stdout and Stderr take the output, in the goroutine that called Exec or
	// Wait, one Write at a time; nil discards. If a Write fails the command is
	// stopped and the error returned. A slow Write stops the command at its pipe.
	Stdout, Stderr io.Writer
	// Timeout ends the command (Exit.TimedOut); 0 is none. It is kept in the
	// guest, and by the host with some slack, in case the agent does not.
	Timeout time.Duration
	// Grace is the time between the signal that asks the command to end
	// (StopSignal) and SIGKILL, at a timeout or when the context is done; 0 is DefaultGrace.
	Grace time.Duration
	// StopSignal is what asks the command to end: "" is SIGTERM.
	StopSignal string
	// Urge, when the context is done, is when SIGTERM follows another StopSignal;
	// 0 is never. It is within the Grace.
	Urge time.Duration
	// Linger is how long output is awaited once the command has ended, while
	// something that it started holds its pipes and is silent; 0 is half a second, and
	// five are the most there is.
	Linger time.Duration
	// TTY runs the command on a terminal; its whole output goes to Stdout.
	TTY *TTY
}

// DefaultGrace is the grace of a Cmd that names none.
const DefaultGrace = 5 * time.Second

// hostSlack is how much longer than the guest the host waits before it calls the agent hung.
const hostSlack = 30 * time.Second

// TTY is a terminal's size in characters.
type TTY struct{ Rows, Cols uint16 }

// Process is a command that was started.
type Process struct {
	c   *Client
	s   *stream
	cmd Cmd
	ctx context.Context

	inErr chan error    // why Stdin could not be read, if so; sent before the command is stopped for it
	inEnd chan struct{} // closed when feed has returned

	mu      sync.Mutex
	reading bool // feed is inside a Read of Stdin
	ended   bool // and shall not begin another
}

// Exec runs a command and returns how it ended. A non-zero exit is not an error:
// an error says that the command could not be run (*Error), that what it wrote or read failed on
// the host, or that nobody knows how it ended (ErrLost).
//
// When ctx is done the command's processes get SIGTERM, after the grace SIGKILL;
// Exec then returns Exit with Cancelled and no error, once the guest has said that they ended.
func (c *Client) Exec(ctx context.Context, cmd Cmd) (Exit, error) {
	p, err := c.Start(ctx, cmd)
	if err != nil {
		return Exit{}, err
	}
	return p.Wait()
}

// Start starts a command; Wait must be called, and soon: it is what consumes the
// output. That the command cannot be started is what Wait returns.
func (c *Client) Start(ctx context.Context, cmd Cmd) (*Process, error) {
	if len(cmd.Argv) == 0 || cmd.Argv[0] == "" {
		return nil, errors.New("guest: exec: no command")
	}
	if cmd.Grace <= 0 {
		cmd.Grace = DefaultGrace
	}
	spec := execSpec{
		argv: cmd.Argv, env: cmd.Env, dir: cmd.Dir, user: cmd.User,
		stdin: cmd.Stdin != nil, timeout: cmd.Timeout, grace: cmd.Grace, stopSignal: cmd.StopSignal, linger: cmd.Linger,
	}
	if cmd.TTY != nil {
		spec.tty, spec.rows, spec.cols = true, cmd.TTY.Rows, cmd.TTY.Cols
	}
	s, err := c.open(ctx, opExec, spec.encode(), nil, false)
	if err != nil {
		return nil, err
	}
	p := &Process{c: c, s: s, cmd: cmd, ctx: ctx, inEnd: make(chan struct{}), inErr: make(chan error, 1)}
	if cmd.Stdin != nil {
		go p.feed()
	} else {
		close(p.inEnd)
	}
	return p, nil
}

// feed copies Stdin. Wait waits for it, except for a Read that does not return.
func (p *Process) feed() {
	defer close(p.inEnd)
	buf := make([]byte, headerSize+MaxPayload)
	for {
		p.mu.Lock()
		if p.ended {
			p.mu.Unlock()
			return
		}
		p.reading = true
		p.mu.Unlock()
		n, err := p.cmd.Stdin.Read(buf[headerSize:])
		p.mu.Lock()
		p.reading = false
		p.mu.Unlock()
		if n > 0 {
			if p.c.send(p.s, buf[:headerSize+n], false) != nil {
				return // the command has ended, or the connection has
			}
		}
		if err != nil {
			if err != io.EOF {
				p.inErr <- fmt.Errorf("guest: exec: reading its input: %w", err)
				p.stop(p.cmd.StopSignal)
			}
			p.c.send(p.s, buf[:headerSize], true)
			return
		}
	}
}

// Signal sends a signal ("SIGINT") to the command's process group.
func (p *Process) Signal(name string) error {
	if _, ok := signalNumber(name); !ok {
		return fmt.Errorf("guest: no signal is called %q", name)
	}
	return p.c.write(header{stream: p.s.id, kind: kindSignal}, message([]byte(name)...))
}

// Resize tells the command's terminal its new size.
func (p *Process) Resize(t TTY) error {
	b := binary.BigEndian.AppendUint16(message(), t.Rows)
	return p.c.write(header{stream: p.s.id, kind: kindResize}, binary.BigEndian.AppendUint16(b, t.Cols))
}

func (p *Process) stop(signal string) error {
	var e encoder
	e.b = message()
	e.string(signal)
	e.int(int64(p.cmd.Grace))
	return p.c.write(header{stream: p.s.id, kind: kindStop}, e.b)
}

// Wait copies the output until the command has ended and returns how.
func (p *Process) Wait() (Exit, error) {
	exit, err := p.wait()
	if p.cmd.Stdin != nil {
		p.s.out.close(errStreamEnded)
		p.mu.Lock()
		p.ended = true
		reading := p.reading
		p.mu.Unlock()
		if !reading { // a Read may last for ever
			<-p.inEnd
		}
		select {
		case inErr := <-p.inErr:
			err = errors.Join(err, inErr)
		default:
		}
	}
	return exit, err
}

func (p *Process) wait() (Exit, error) {
	var (
		b        batch
		writeErr error
		done     = p.ctx.Done()
		limit    <-chan time.Time
		urge     <-chan time.Time
		stopped  bool
	)
	if p.cmd.Timeout > 0 {
		t := time.NewTimer(p.cmd.Timeout + p.cmd.Grace + lingerMax + hostSlack)
		defer t.Stop()
		limit = t.C
	}
	stop := func() {
		if stopped {
			return
		}
		stopped, done = true, nil
		p.stop(p.cmd.StopSignal)
		t := time.NewTimer(p.cmd.Grace + lingerMax + hostSlack)
		limit = t.C // a timer nobody refers to is collected
		if p.cmd.Urge > 0 {
			urge = time.After(p.cmd.Urge)
		}
	}
	for {
		select {
		case <-p.s.in.ready:
		case <-done:
			stop()
			continue
		case <-urge:
			urge = nil
			p.stop("SIGTERM")
			continue
		case <-limit:
			p.c.fail(fmt.Errorf("%w: no final message for a command that had to end", ErrUnresponsive))
			return Exit{}, p.c.Err()
		}
		end, ok := p.s.in.take(&b)
		if !ok {
			continue
		}
		if end != nil {
			if end.err != nil {
				return Exit{}, end.err
			}
			exit, err := decodeExit(end.result)
			if exit, err = decoded(p.c, exit, err); err != nil {
				return Exit{}, err
			}
			return exit, writeErr
		}
		err := b.each(func(ch uint8, data []byte, _ bool) error {
			w := p.cmd.Stdout
			if ch == chanErr {
				w = p.cmd.Stderr
			}
			if w == nil || len(data) == 0 || writeErr != nil {
				return nil
			}
			_, err := w.Write(data)
			return err
		})
		if err != nil {
			writeErr = fmt.Errorf("guest: exec: writing its output: %w", err)
			stop()
		}
		p.c.grant(p.s, b.cost)
	}
}

// StartFailed says whether err means that a command could not be started (no such
// program, no such directory, no such user): the command's fault, not the machine's.
func StartFailed(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Start
}
