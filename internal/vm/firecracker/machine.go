package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
)

// Names in a machine's directory.
const (
	apiName     = "api.sock"
	vsockName   = "vsock.sock"
	consoleName = "console.log"
	logName     = "log.pipe"
)

// machine is one Firecracker process. It implements [vm.Machine],
// [vm.Snapshotter], [vm.Pauser] and [vm.Process].
type machine struct {
	driver  *Driver
	spec    vm.Spec
	version version // as the process itself says

	cmd     *exec.Cmd
	api     *client
	console vm.Console // the guest's, on Firecracker's standard output
	log     vm.Console // Firecracker's
	logPipe *os.File
	network net.Conn // to Spec.Net, or nil

	// operation is held by whoever stops, continues or snapshots the machine.
	operation chan struct{}
	stopped   bool // by Pause; guarded by operation

	done    chan struct{} // closed when Firecracker has been reaped
	exitErr error         // valid then

	mu      sync.Mutex
	closing bool     // the end is wanted
	conn    net.Conn // the one stream that is open
	closed  bool     // Dir is removed
	final   error    // what Close returned then
}

var (
	_ vm.Machine     = (*machine)(nil)
	_ vm.Snapshotter = (*machine)(nil)
	_ vm.Pauser      = (*machine)(nil)
	_ vm.Process     = (*machine)(nil)
)

// dying is how long a process may take to end after its connections have.
const dying = 500 * time.Millisecond

// launch starts a Firecracker, waits until its API answers, and has prepare
// make a running machine of it. When it fails, nothing is left running.
func (d *Driver) launch(ctx context.Context, spec vm.Spec, op string, prepare func(*machine, context.Context) error) (_ *machine, err error) {
	m := &machine{driver: d, spec: spec, operation: make(chan struct{}, 1), done: make(chan struct{})}
	fail := func(err error) (*machine, error) {
		return nil, &vm.Error{Machine: spec.ID, Op: op, Err: err, Tail: m.tail()}
	}
	binary, _, err := d.find(ctx)
	if err != nil {
		return fail(err)
	}
	if spec.Net != "" {
		c, err := vm.DialUnix(ctx, spec.Net)
		if err != nil {
			return fail(fmt.Errorf("the machine's network: %w", err))
		}
		m.network = c
	}
	drop := func() {
		if m.network != nil {
			m.network.Close()
		}
		if m.logPipe != nil {
			m.logPipe.Close()
		}
		if m.console.File != nil {
			m.console.File.Close()
		}
	}
	m.console.Also = spec.Console
	if m.console.File, err = os.OpenFile(filepath.Join(spec.Dir, consoleName), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600); err == nil {
		if m.logPipe, err = makeFIFO(filepath.Join(spec.Dir, logName)); err == nil {
			err = vm.WriteRecord(spec.Dir, d.Name(), spec, 0)
		}
	}
	if err != nil {
		drop()
		return fail(err)
	}
	m.api = newClient(filepath.Join(spec.Dir, apiName))
	m.cmd = exec.Command(binary, "--id", "hearth-"+strings.ReplaceAll(spec.ID, "_", "-"), "--api-sock", apiName,
		// From its first line on, so that its standard output is the guest's alone.
		"--log-path", logName, "--level", "Warning")
	m.cmd.Dir = spec.Dir
	m.cmd.Stdout = &m.console
	m.cmd.Stderr = &m.log
	m.cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"} // ours may hold secrets
	m.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // Ctrl-C is for hearth, which then ends its machines in order
	}
	started := make(chan error, 1)
	go m.run(started)
	if err := <-started; err != nil {
		drop()
		return fail(err)
	}
	defer func() {
		if err == nil {
			return
		}
		// Where it died of itself, that is the reason, and known a moment after the
		// connection broke.
		if f := (*Fault)(nil); !errors.As(err, &f) && ctx.Err() == nil {
			select {
			case <-m.done:
			case <-ctx.Done():
			case <-time.After(dying):
			}
		}
		m.end()
		<-m.done
		// The tail is complete only now.
		e := &vm.Error{Machine: spec.ID, Op: op, Err: err}
		if x := (*vm.Error)(nil); ctx.Err() == nil && errors.As(m.exitErr, &x) {
			e.Err = x.Err
			if errors.Is(err, vm.ErrSnapshot) {
				e.Err = fmt.Errorf("%w: %w", vm.ErrSnapshot, x.Err)
			}
		}
		e.Tail = m.tail()
		err = e
	}()
	if err := vm.WriteRecord(spec.Dir, d.Name(), spec, m.cmd.Process.Pid); err != nil {
		return nil, err
	}
	// An answer that is being waited for does not come if the process dies: its
	// end closes the connection.
	if m.version, err = m.api.ready(ctx, m.done); err != nil {
		return nil, err
	}
	if m.version.before(1, 12) {
		return nil, fmt.Errorf("it says that it is Firecracker %s: at least 1.12 is needed", m.version)
	}
	if err := prepare(m, ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// run starts Firecracker and waits for it. The kernel sends Firecracker its
// death signal when the *thread* that started it ends, and the thread's network
// namespace is Firecracker's, so this goroutine keeps its thread to itself
// until Firecracker is gone.
func (m *machine) run(started chan<- error) {
	runtime.LockOSThread()
	var plugged *cable
	if m.network != nil {
		// Never unlocked: the thread ends with this goroutine, and with it its
		// namespace.
		tap, err := enterNetwork()
		if err != nil {
			started <- err
			return
		}
		plugged = plugIn(tap, m.network)
	} else {
		defer runtime.UnlockOSThread()
	}
	if err := m.cmd.Start(); err != nil {
		if plugged != nil {
			plugged.unplug()
		}
		started <- err
		return
	}
	var readers sync.WaitGroup
	readers.Go(func() {
		buf := make([]byte, 16<<10)
		for {
			n, err := m.logPipe.Read(buf)
			m.log.Write(buf[:n])
			if err != nil {
				return
			}
		}
	})
	started <- nil
	err := m.cmd.Wait()
	// We hold both ends of the pipe, so that it does not end by itself; what is in
	// it is read at once.
	m.logPipe.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	readers.Wait()
	m.logPipe.Close()
	m.console.File.Close()
	if plugged != nil {
		plugged.unplug()
	}
	m.api.close()

	m.mu.Lock()
	conn := m.conn
	if !m.closing {
		if reason := m.ending(err); reason != nil {
			m.exitErr = &vm.Error{Machine: m.spec.ID, Op: "run", Err: reason, Tail: m.tail()}
		}
	}
	m.mu.Unlock()
	close(m.done)
	if conn != nil {
		conn.Close()
	}
}

// ending says what an unwanted end means; nil if the guest powered off. A guest
// that resets, which is how it powers off here, and how a kernel ends that
// panicked, makes Firecracker exit with success.
func (m *machine) ending(err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil && m.console.Contains("Kernel panic"):
		return errors.New("the guest's kernel panicked")
	case err == nil && m.console.Contains("hearth-guest: FATAL: "):
		return errors.New("the guest could not go on")
	case err == nil:
		return nil
	case errors.As(err, &exit) && exitReasons[exit.ExitCode()] != "":
		return fmt.Errorf("firecracker ended: %s (%w)", exitReasons[exit.ExitCode()], err)
	}
	return fmt.Errorf("firecracker ended: %w", err)
}

// exitReasons are those of Firecracker's exit codes that have one.
var exitReasons = map[int]string{
	148: "it made a system call that its seccomp filter forbids",
	149: "bus error (SIGBUS): a file behind the machine's memory or disk became shorter, or the disk is full",
	150: "segmentation fault (SIGSEGV)",
	151: "a file grew beyond its limit (SIGXFSZ)",
	152: "bad configuration",
	153: "bad arguments",
	154: "it was told to end (SIGXCPU)",
	156: "it was told to end (SIGHUP)",
	157: "illegal instruction (SIGILL)",
}

func (m *machine) tail() string {
	s := m.log.Tail()
	if c := m.console.Tail(); c != "" {
		if s != "" {
			s += "\n"
		}
		s += c
	}
	return s
}

// end kills Firecracker. m.done tells when it is gone.
func (m *machine) end() {
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	m.cmd.Process.Kill()
}

func (m *machine) ID() string { return m.spec.ID }

// Pid implements [vm.Process].
func (m *machine) Pid() int {
	select {
	case <-m.done:
		return 0
	default:
		return m.cmd.Process.Pid
	}
}

func (m *machine) Wait() error {
	<-m.done
	return m.exitErr
}

// gone says why nothing can be asked of the machine any more, or nil.
func (m *machine) gone() error {
	m.mu.Lock()
	closing := m.closing
	m.mu.Unlock()
	if closing {
		return vm.ErrClosed
	}
	select {
	case <-m.done:
		if m.exitErr != nil {
			return m.exitErr
		}
		return vm.ErrClosed
	default:
		return nil
	}
}

// Dial implements [vm.Machine]. It fails as long as the agent does not listen.
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &vm.Error{Machine: m.spec.ID, Op: "dial", Err: err}
	}
	if err := m.gone(); err != nil {
		return fail(err)
	}
	m.mu.Lock()
	old := m.conn
	m.conn = nil
	m.mu.Unlock()
	if old != nil {
		old.Close() // one stream at a time, with every driver
	}
	conn, err := dialVsock(ctx, filepath.Join(m.spec.Dir, vsockName), agentPort)
	if err != nil {
		if g := m.gone(); g != nil {
			err = g
		}
		e := &vm.Error{Machine: m.spec.ID, Op: "dial", Err: err, Tail: m.tail()}
		return nil, e
	}
	m.mu.Lock()
	other := m.conn
	m.conn = conn
	m.mu.Unlock()
	if other != nil {
		other.Close()
	}
	if err := m.gone(); err != nil { // it ended while we connected, and may not have seen conn
		conn.Close()
		return fail(err)
	}
	return conn, nil
}

func (m *machine) Close(ctx context.Context) error {
	m.end()
	select {
	case <-m.done:
	case <-ctx.Done():
		return &vm.Error{Machine: m.spec.ID, Op: "close", Err: fmt.Errorf("process %d has been killed but is not gone: %w", m.cmd.Process.Pid, context.Cause(ctx))}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.closed = true
		if err := os.RemoveAll(m.spec.Dir); err != nil {
			m.final = &vm.Error{Machine: m.spec.ID, Op: "close", Err: err}
		}
	}
	return m.final
}

// begin takes the right to change the machine's course.
func (m *machine) begin(ctx context.Context, op string) error {
	if err := m.gone(); err != nil {
		return &vm.Error{Machine: m.spec.ID, Op: op, Err: err}
	}
	select {
	case m.operation <- struct{}{}:
		return nil
	case <-m.done:
		return &vm.Error{Machine: m.spec.ID, Op: op, Err: m.gone()}
	case <-ctx.Done():
		return &vm.Error{Machine: m.spec.ID, Op: op, Err: context.Cause(ctx)}
	}
}

func (m *machine) finish() { <-m.operation }

// Pause implements [vm.Pauser].
func (m *machine) Pause(ctx context.Context) error { return m.course(ctx, "pause", "Paused", true) }

// Resume implements [vm.Pauser].
func (m *machine) Resume(ctx context.Context) error { return m.course(ctx, "resume", "Resumed", false) }

func (m *machine) course(ctx context.Context, op, state string, stopped bool) error {
	if err := m.begin(ctx, op); err != nil {
		return err
	}
	defer m.finish()
	if err := m.setState(ctx, state); err != nil {
		return m.explain(op, err)
	}
	m.stopped = stopped
	return nil
}

func (m *machine) setState(ctx context.Context, state string) error {
	return m.api.call(ctx, "PATCH", "/vm", apiVM{State: state}, nil)
}

// explain makes an error of a machine. Where Firecracker has died in between,
// that is the reason, whatever the symptom was.
func (m *machine) explain(op string, err error) error {
	var f *Fault
	if !errors.As(err, &f) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		select {
		case <-m.done:
			if x := (*vm.Error)(nil); errors.As(m.exitErr, &x) {
				err = x.Err
			}
		case <-time.After(dying):
		}
	}
	return &vm.Error{Machine: m.spec.ID, Op: op, Err: err, Tail: m.tail()}
}
