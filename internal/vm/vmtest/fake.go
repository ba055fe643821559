package vmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/vm"
)

// Fake is a driver without machines: the agent runs in this process, commands
// run on this host as this user, and a machine's memory is a file. It passes
// the conformance suite, so that whoever uses drivers can be tested in
// milliseconds. The zero Fake is usable; set its fields before use.
type Fake struct {
	// StartDelay is how long Start and Restore take.
	StartDelay time.Duration

	// FailStart, if set, is asked before each Start and Restore.
	FailStart func(spec vm.Spec) error

	mu       sync.Mutex
	machines []*FakeMachine
}

var _ vm.Driver = (*Fake)(nil)

// MemoryFile is the name of the file in a fake machine's directory that stands
// for its memory.
const MemoryFile = "memory"

// Name is "fake".
func (f *Fake) Name() string { return "fake" }

// Capabilities implements [vm.Driver].
func (f *Fake) Capabilities() vm.Capabilities { return vm.Capabilities{Snapshots: true, Pause: true} }

// Probe always succeeds.
func (f *Fake) Probe(context.Context) error { return nil }

// ProbeNetwork does as well.
func (f *Fake) ProbeNetwork(context.Context) error { return nil }

// Fingerprint implements [vm.Driver].
func (f *Fake) Fingerprint(context.Context, vm.Spec) (string, error) { return "fake-1", nil }

// Machines returns all that were started and are not closed.
func (f *Fake) Machines() []*FakeMachine {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*FakeMachine
	for _, m := range f.machines {
		select {
		case <-m.done:
		default:
			out = append(out, m)
		}
	}
	return out
}

// Start implements [vm.Driver].
func (f *Fake) Start(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	if err := spec.Check(); err != nil {
		return nil, err
	}
	return f.start(ctx, spec)
}

func (f *Fake) start(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if _, err := os.Stat(spec.Dir); err != nil {
		return nil, err
	}
	for _, d := range spec.Disks {
		if _, err := os.Stat(d.Path); err != nil {
			return nil, err
		}
	}
	if f.FailStart != nil {
		if err := f.FailStart(spec); err != nil {
			return nil, &vm.Error{Machine: spec.ID, Op: "start", Err: err}
		}
	}
	select {
	case <-time.After(f.StartDelay):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	memory := filepath.Join(spec.Dir, MemoryFile)
	if _, err := os.Stat(memory); err != nil {
		if err := os.WriteFile(memory, make([]byte, 4096), 0o600); err != nil {
			return nil, err
		}
	}
	if err := vm.WriteRecord(spec.Dir, f.Name(), spec, 0); err != nil {
		return nil, err
	}
	m := &FakeMachine{spec: spec, done: make(chan struct{}), gate: make(chan struct{})}
	close(m.gate)
	m.ctx, m.stop = context.WithCancel(context.Background())
	if spec.Net != "" {
		c, err := vm.DialUnix(ctx, spec.Net)
		if err != nil {
			return nil, &vm.Error{Machine: spec.ID, Op: "start", Err: err}
		}
		m.wg.Go(func() { io.Copy(io.Discard, c) })
		context.AfterFunc(m.ctx, func() { c.Close() })
	}
	m.server = guest.NewServer(guest.Options{Release: "fake", System: fakeSystem{m}})
	go m.run()
	f.mu.Lock()
	f.machines = append(f.machines, m)
	f.mu.Unlock()
	return m, nil
}

// fakeFile is a file of a fake snapshot. Restore looks at its size only, as real
// drivers do; what is in it is for Verify.
type fakeFile struct {
	Size int
	Sum  uint32 // CRC-32
}

// fakeManifest describes a fake's snapshot.
type fakeManifest struct {
	CPUs, MemoryMiB int
	Files           map[string]fakeFile // by name
	Disks           []vm.Disk           // Path is a name in the snapshot for writable ones
}

func (f *Fake) manifest(dir string, deep bool) (*fakeManifest, error) {
	bad := func(err error) (*fakeManifest, error) {
		return nil, fmt.Errorf("%w: %s: %w", vm.ErrSnapshot, dir, err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "manifest"))
	if err != nil {
		return bad(err)
	}
	// Its own sum comes first, so that no damage goes unseen.
	var sum uint32
	if len(b) < 9 {
		return bad(errors.New("manifest is cut short"))
	}
	if _, err := fmt.Sscanf(string(b[:8]), "%08x", &sum); err != nil || crc32.ChecksumIEEE(b[8:]) != sum {
		return bad(errors.New("manifest is damaged"))
	}
	var s fakeManifest
	if err := json.Unmarshal(b[8:], &s); err != nil {
		return bad(err)
	}
	for name, want := range s.Files {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return bad(err)
		}
		if len(b) != want.Size || deep && crc32.ChecksumIEEE(b) != want.Sum {
			return bad(fmt.Errorf("%s is damaged", name))
		}
	}
	return &s, nil
}

// Verify implements [vm.Driver].
func (f *Fake) Verify(_ context.Context, dir string) error {
	_, err := f.manifest(dir, true)
	return err
}

// Restore implements [vm.Driver].
func (f *Fake) Restore(ctx context.Context, dir string, spec vm.Spec) (vm.Machine, error) {
	s, err := f.manifest(dir, false)
	if err != nil {
		return nil, err
	}
	if spec.CPUs != 0 && spec.CPUs != s.CPUs || spec.MemoryMiB != 0 && spec.MemoryMiB != s.MemoryMiB {
		return nil, fmt.Errorf("machine %s: the snapshot has another size", spec.ID)
	}
	spec.CPUs, spec.MemoryMiB, spec.Kernel, spec.Disks = s.CPUs, s.MemoryMiB, "none", nil
	for _, d := range s.Disks {
		if !d.ReadOnly {
			own := filepath.Join(spec.Dir, "disk-"+d.ID)
			if err := copyFile(own, filepath.Join(dir, d.Path)); err != nil {
				return nil, err
			}
			d.Path = own
		}
		spec.Disks = append(spec.Disks, d)
	}
	if err := copyFile(filepath.Join(spec.Dir, MemoryFile), filepath.Join(dir, MemoryFile)); err != nil {
		return nil, err
	}
	if err := spec.Check(); err != nil {
		return nil, err
	}
	return f.start(ctx, spec)
}

func copyFile(dst, src string) error {
	b, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	return os.WriteFile(dst, b, 0o600)
}

// FakeMachine is a machine of [Fake]'s.
type FakeMachine struct {
	spec   vm.Spec
	server *guest.Server
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
	done   chan struct{}

	mu       sync.Mutex
	err      error
	gate     chan struct{} // closed while the machine runs
	paused   bool
	conn     net.Conn
	identity guest.Identity
	closed   bool
}

var (
	_ vm.Machine   = (*FakeMachine)(nil)
	_ guest.System = fakeSystem{}
)

// ID implements [vm.Machine].
func (m *FakeMachine) ID() string { return m.spec.ID }

// Spec returns what the machine was started with.
func (m *FakeMachine) Spec() vm.Spec { return m.spec }

// Identity returns the last identity that the machine was given.
func (m *FakeMachine) Identity() guest.Identity {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.identity
}

// Pid implements [vm.Machine]: there is no process.
func (m *FakeMachine) Pid() int { return 0 }

// Tail implements [vm.Machine]: there is no console, and nothing on it.
func (m *FakeMachine) Tail() string { return "" }

// run ends when everything of the machine has.
func (m *FakeMachine) run() {
	<-m.ctx.Done()
	m.wg.Wait()
	m.server.Close()
	close(m.done)
}

// Kill ends the machine as if something had gone wrong with it.
func (m *FakeMachine) Kill() {
	m.shut(&vm.Error{Machine: m.spec.ID, Op: "run", Err: errors.New("killed by a test")})
}

// shut begins the machine's end.
func (m *FakeMachine) shut(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		return
	}
	m.err = err
	if m.paused {
		close(m.gate)
		m.paused = false
	}
	m.stop() // the agent's end of the stream closes; what it has said can still be read
}

// Wait implements [vm.Machine].
func (m *FakeMachine) Wait() error {
	<-m.done
	return m.err
}

// Close implements [vm.Machine].
func (m *FakeMachine) Close(ctx context.Context) error {
	m.shut(nil)
	select {
	case <-m.done:
	case <-ctx.Done():
		return &vm.Error{Machine: m.spec.ID, Op: "close", Err: context.Cause(ctx)}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return os.RemoveAll(m.spec.Dir)
}

// Dial implements [vm.Machine].
func (m *FakeMachine) Dial(ctx context.Context) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		err := m.err
		if err == nil {
			err = vm.ErrClosed
		}
		return nil, &vm.Error{Machine: m.spec.ID, Op: "dial", Err: err}
	}
	if m.conn != nil {
		m.conn.Close()
	}
	// A socket, not net.Pipe: like a machine's channel it takes some bytes while
	// nobody reads.
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, &vm.Error{Machine: m.spec.ID, Op: "dial", Err: err}
	}
	m.conn = ours
	m.wg.Go(func() {
		defer theirs.Close()
		m.server.Serve(m.ctx, gated{theirs, m})
	})
	return ours, nil
}

func socketPair() (a, b net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "agent")
		c, e := net.FileConn(f)
		f.Close()
		conns[i], err = c, errors.Join(err, e)
	}
	return conns[0], conns[1], err
}

// gated is the guest's end of a connection: nothing moves while the machine is
// paused.
type gated struct {
	net.Conn
	m *FakeMachine
}

func (g gated) wait() {
	g.m.mu.Lock()
	gate := g.m.gate
	g.m.mu.Unlock()
	<-gate
}

func (g gated) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	g.wait()
	return n, err
}

func (g gated) Write(p []byte) (int, error) {
	g.wait()
	return g.Conn.Write(p)
}

// Pause implements [vm.Machine].
func (m *FakeMachine) Pause(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		return vm.ErrClosed
	}
	if !m.paused {
		m.paused, m.gate = true, make(chan struct{})
	}
	return nil
}

// Resume implements [vm.Machine].
func (m *FakeMachine) Resume(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paused {
		m.paused = false
		close(m.gate)
	}
	return nil
}

// Snapshot implements [vm.Machine].
func (m *FakeMachine) Snapshot(ctx context.Context, dir string) error {
	fail := func(err error) error { return &vm.Error{Machine: m.spec.ID, Op: "snapshot", Err: err} }
	if err := ctx.Err(); err != nil {
		return fail(context.Cause(ctx))
	}
	if m.ctx.Err() != nil {
		return fail(vm.ErrClosed)
	}
	if e, err := os.ReadDir(dir); err != nil || len(e) > 0 {
		return fail(fmt.Errorf("%s is not an empty directory: %w", dir, errors.Join(err)))
	}
	s := fakeManifest{CPUs: m.spec.CPUs, MemoryMiB: m.spec.MemoryMiB, Files: map[string]fakeFile{}}
	add := func(name, from string) error {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		s.Files[name] = fakeFile{len(b), crc32.ChecksumIEEE(b)}
		return os.WriteFile(filepath.Join(dir, name), b, 0o600)
	}
	if err := add(MemoryFile, filepath.Join(m.spec.Dir, MemoryFile)); err != nil {
		return fail(err)
	}
	for _, d := range m.spec.Disks {
		if !d.ReadOnly {
			name := "disk-" + d.ID
			if err := add(name, d.Path); err != nil {
				return fail(err)
			}
			d.Path = name
		}
		s.Disks = append(s.Disks, d)
	}
	b, err := json.Marshal(s)
	if err == nil {
		b = append(fmt.Appendf(nil, "%08x", crc32.ChecksumIEEE(b)), b...)
		err = os.WriteFile(filepath.Join(dir, "manifest"), b, 0o600)
	}
	if err != nil {
		return fail(err)
	}
	if m.spec.Template {
		m.shut(nil)
	}
	return nil
}

// fakeSystem is what the agent may do to its machine.
type fakeSystem struct{ m *FakeMachine }

func (s fakeSystem) Resume(id guest.Identity) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if id.Hostname == "" { // keeps the one it has
		id.Hostname = s.m.identity.Hostname
	}
	s.m.identity = id
	return nil
}

func (s fakeSystem) Poweroff() { s.m.shut(nil) }
