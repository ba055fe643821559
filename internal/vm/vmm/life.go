package vmm

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/jail"
)

// Life is that of a machine whose VMM runs in a jail, from before its start to after
// its end: who may do what with it when. A driver's machine embeds one, which makes
// most of a [vm.Machine]. Whoever starts the process waits for it and calls Ended.
type Life struct {
	Spec    vm.Spec
	Cmd     *jail.Cmd
	Console vm.Console // the guest's
	Log     vm.Console // the VMM's own

	// Stopped says that Pause has; for whoever has begun an operation.
	Stopped bool
	// Release, if set, lets go of what the machine held beside its directory: called
	// once, by Close.
	Release func()

	operation chan struct{} // held by whoever changes the machine's course
	done      chan struct{} // closed when the VMM has been reaped
	err       error         // valid then

	mu      sync.Mutex
	closing bool     // the end is wanted
	conn    net.Conn // the one stream to the agent that is open
	closed  bool     // Dir is removed
	final   error    // what Close returned then
}

// NewLife returns that of a machine that is not running yet.
func NewLife(spec vm.Spec) *Life {
	return &Life{Spec: spec, operation: make(chan struct{}, 1), done: make(chan struct{})}
}

// ID implements [vm.Machine].
func (l *Life) ID() string { return l.Spec.ID }

// Tail implements [vm.Machine].
func (l *Life) Tail() string {
	s := l.Log.Tail()
	if c := l.Console.Tail(); c != "" {
		if s != "" {
			s += "\n"
		}
		s += c
	}
	return s
}

// Error returns the machine's, with what was printed last.
func (l *Life) Error(op string, err error) *vm.Error {
	return &vm.Error{Machine: l.Spec.ID, Op: op, Err: err, Tail: l.Tail()}
}

// refused is an error about the machine's life, to which what was printed adds nothing.
func (l *Life) refused(op string, err error) error {
	return &vm.Error{Machine: l.Spec.ID, Op: op, Err: err}
}

// Done is closed when the VMM has ended.
func (l *Life) Done() <-chan struct{} { return l.done }

// Wait implements [vm.Machine].
func (l *Life) Wait() error {
	<-l.done
	return l.err
}

// End kills the VMM. Done tells when it is gone.
func (l *Life) End() {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	l.Cmd.Kill()
}

// Ended says that the VMM has been reaped, and why where nobody had asked for it;
// a nil reason is a guest that powered off.
func (l *Life) Ended(reason error) {
	l.mu.Lock()
	if !l.closing && reason != nil {
		l.err = l.Error("run", reason)
	}
	conn := l.conn
	l.mu.Unlock()
	close(l.done)
	if conn != nil {
		conn.Close()
	}
}

// Gone says why nothing can be asked of the machine any more, or nil.
func (l *Life) Gone() error {
	l.mu.Lock()
	closing := l.closing
	l.mu.Unlock()
	if closing {
		return vm.ErrClosed
	}
	select {
	case <-l.done:
		if l.err != nil {
			return l.err
		}
		return vm.ErrClosed
	default:
		return nil
	}
}

// Begin takes the right to change the machine's course; Finish gives it back.
func (l *Life) Begin(ctx context.Context, op string) error {
	if err := l.Gone(); err != nil {
		return l.refused(op, err)
	}
	select {
	case l.operation <- struct{}{}:
		return nil
	case <-l.done:
		return l.refused(op, l.Gone())
	case <-ctx.Done():
		return l.refused(op, context.Cause(ctx))
	}
}

// Finish ends what Begin began.
func (l *Life) Finish() { <-l.operation }

// Connect makes the one stream to the agent that there is, ending the one before.
func (l *Life) Connect(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	if err := l.Gone(); err != nil {
		return nil, l.refused("dial", err)
	}
	l.HangUp() // QEMU takes the next only after this one
	conn, err := dial(ctx)
	if err != nil {
		if gone := l.Gone(); gone != nil {
			err = gone
		}
		return nil, l.Error("dial", err)
	}
	l.swap(conn)
	if err := l.Gone(); err != nil { // it ended while we connected, and may not have seen conn
		conn.Close()
		return nil, l.refused("dial", err)
	}
	return conn, nil
}

// HangUp ends the stream to the agent.
func (l *Life) HangUp() { l.swap(nil) }

func (l *Life) swap(conn net.Conn) {
	l.mu.Lock()
	old := l.conn
	l.conn = conn
	l.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

// Close implements [vm.Machine].
func (l *Life) Close(ctx context.Context) error {
	l.End()
	select {
	case <-l.done:
	case <-ctx.Done():
		return l.refused("close", fmt.Errorf("process %d has been killed but is not gone: %w", l.Cmd.Pid(), context.Cause(ctx)))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		if l.Release != nil {
			l.Release()
		}
		if err := os.RemoveAll(l.Spec.Dir); err != nil {
			l.final = l.refused("close", err)
		}
	}
	return l.final
}
