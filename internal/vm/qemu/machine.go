package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/jail"
	"github.com/hearth-ci/hearth/internal/vm/vmm"
)

// Names in a machine's directory.
const (
	agentName   = "agent.sock"
	consoleName = "console.log"
)

// machine is one QEMU process. It implements [vm.Machine].
type machine struct {
	*vmm.Life
	driver *Driver
	layout layout

	qmp       *qmp
	conEnd    net.Conn
	memory    *os.File // of a template, until Snapshot has copied it or Close
	migration chan string

	mu    sync.Mutex
	fault error  // why we ended it although nobody had asked for it
	over  string // what the guest said about its end: SHUTDOWN's reason
}

var _ vm.Machine = (*machine)(nil)

// launch is what a boot and a restore do differently.
type launch struct {
	args     []string
	incoming *os.File          // the state to begin with; closed by whoever launches
	open     map[string]string // what QEMU opens, and what it gets: paths
	openings jail.Openings
}

// launch starts a QEMU and waits until its monitor answers. When it fails,
// nothing is left running.
func (d *Driver) launch(ctx context.Context, spec vm.Spec, l layout, start launch) (_ *machine, err error) {
	m := &machine{Life: vmm.NewLife(spec), driver: d, migration: make(chan string, 16)}
	fail := func(op string, err error) (*machine, error) {
		return nil, m.Error(op, err)
	}
	if start.incoming != nil {
		defer start.incoming.Close()
	}
	var files []*os.File // QEMU's
	release := func() {
		for _, f := range files {
			if f != m.memory {
				f.Close()
			}
		}
		files = nil
	}
	defer release()
	defer func() {
		if err != nil && m.memory != nil {
			m.memory.Close()
		}
	}()
	qmpConn, qmpFile, err := socketPair("qmp")
	if err != nil {
		return fail("start", err)
	}
	files = append(files, qmpFile)
	open := map[string]*os.File{}
	defer func() {
		for _, f := range open {
			if f != m.memory {
				f.Close()
			}
		}
	}()
	conConn, conFile, err := socketPair("console")
	if err != nil {
		qmpConn.Close()
		return fail("start", err)
	}
	files = append(files, conFile)
	drop := func() { qmpConn.Close(); conConn.Close() }
	agent, err := listenAgent(filepath.Join(spec.Dir, agentName))
	if err != nil {
		drop()
		return fail("start", err)
	}
	files = append(files, agent)
	if spec.Net != "" {
		f, err := dialNet(ctx, spec.Net)
		if err != nil {
			drop()
			return fail("start", err)
		}
		l.NetFD, l.HasNet = fdMonitor+len(files), true
		files = append(files, f)
	}
	if l.Shared {
		if m.memory, err = memfd(int64(l.MemoryMiB) << 20); err != nil {
			drop()
			return fail("start", err)
		}
		m.Release = func() { m.memory.Close() }
		open[memoryPath] = m.memory
	}
	inFD := fdMonitor + len(files)
	if start.incoming != nil {
		files = append(files, start.incoming)
		start.args = append(start.args, "-incoming", "defer")
	}
	limits := jail.Limits{MemoryMiB: spec.MemoryMiB, CPUs: spec.CPUs, FileSize: int64(spec.MemoryMiB) << 20}
	for i := range l.Drives {
		d := &l.Drives[i]
		d.Images = slices.Clone(d.Images)
		for n := range d.Images {
			mode := os.O_RDONLY
			if n == 0 && !d.ReadOnly {
				mode = os.O_RDWR
				size, err := virtualSize(d.Images[n].Path, d.Images[n].Format)
				if err != nil {
					drop()
					return fail("start", fmt.Errorf("disk %s: %w", d.ID, err))
				}
				limits.FileSize = max(limits.FileSize, size)
			}
			f, err := os.OpenFile(d.Images[n].Path, mode, 0)
			if err != nil {
				drop()
				return fail("start", fmt.Errorf("disk %s: %w", d.ID, err))
			}
			d.Images[n].fd = fdMonitor + len(files)
			files = append(files, f)
		}
	}
	limits.FileSize += limits.FileSize/8 + 1<<30 // what describes the contents
	if l.Accel == kvm {
		start.open[vmm.KVMDevice] = d.device
	}
	for name, path := range start.open {
		mode := os.O_RDONLY
		if name == vmm.KVMDevice {
			mode = os.O_RDWR
		}
		if open[name], err = os.OpenFile(path, mode, 0); err != nil {
			drop()
			return fail("start", err)
		}
	}
	if m.Console.File, err = os.OpenFile(filepath.Join(spec.Dir, consoleName), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600); err != nil {
		drop()
		return fail("start", err)
	}
	m.Console.Also = spec.Console
	m.layout, m.conEnd = l, conConn
	m.qmp = newQMP(qmpConn, m.event)

	binary, _, err := d.find(ctx)
	var see []string
	if err == nil {
		see, err = d.files(ctx)
	}
	if err == nil {
		err = vm.WriteRecord(spec.Dir, d.Name(), spec, 0)
	}
	if err != nil {
		drop()
		m.Console.File.Close()
		return fail("start", err)
	}
	m.Cmd = &jail.Cmd{
		Policy: d.cfg.Jail, Name: spec.ID, Dir: spec.Dir, See: see,
		Args: append(append([]string{binary}, l.args()...), start.args...), Files: files,
		Open: open, Openings: start.openings, Limits: limits,
		Stdout: &m.Log, Stderr: &m.Log,
	}
	started := make(chan error, 1)
	go m.run(started)
	err = <-started
	release() // as long as we had them, too, no end of a socket would tell the end of QEMU
	if err != nil {
		drop()
		m.Console.File.Close()
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: run `sudo apt-get install qemu-system-x86`", err)
		}
		return fail("start", err)
	}
	defer func() {
		if err != nil {
			if ctx.Err() == nil {
				// Its monitor goes a moment before QEMU, which knows why.
				select {
				case <-m.Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
			m.End()
			<-m.Done()
			// The tail is complete only now.
			var e *vm.Error
			if errors.As(err, &e) {
				e.Tail = m.Tail()
				if x := (*vm.Error)(nil); ctx.Err() == nil && errors.As(m.Wait(), &x) && !errors.Is(e.Err, vm.ErrSnapshot) {
					e.Err = x.Err
				}
			}
		}
	}()
	if err := vm.WriteRecord(spec.Dir, d.Name(), spec, m.Cmd.Pid()); err != nil {
		return fail("start", err)
	}
	if start.incoming != nil {
		if err := m.load(ctx, inFD); err != nil {
			return fail("restore", err)
		}
	} else if _, err := m.qmp.call(ctx, command{Execute: "qmp_capabilities"}); err != nil {
		return fail("start", err)
	}
	m.Cmd.Settled()
	return m, nil
}

// run starts QEMU and waits for it. The kernel sends QEMU its death signal when
// the *thread* that started it ends, so this goroutine keeps its thread to
// itself until QEMU is gone.
func (m *machine) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := m.Cmd.Start(); err != nil {
		started <- err
		return
	}
	var readers sync.WaitGroup
	readers.Go(m.qmp.serve)
	readers.Go(func() {
		buf := make([]byte, 16<<10)
		for {
			n, err := m.conEnd.Read(buf)
			m.Console.Write(buf[:n])
			if err != nil {
				return
			}
		}
	})
	started <- nil
	err := m.Cmd.Wait()
	readers.Wait() // both ended with QEMU's ends of their sockets
	m.conEnd.Close()
	m.Console.File.Close()

	m.Ended(m.ending(err))
}

// ending says what an unwanted end means; nil if the guest powered off.
func (m *machine) ending(err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.fault != nil:
		return m.fault
	case err == nil && m.over == "guest-shutdown":
		return nil
	case err == nil && m.over == "guest-reset" && m.Console.Died() != "":
		return fmt.Errorf("the guest could not go on: %s", m.Console.Died())
	case err == nil && m.over == "guest-reset": // which is how the agent powers off on every driver
		return nil
	case err == nil:
		return fmt.Errorf("qemu ended without being asked (%s)", orUnknown(m.over))
	}
	return fmt.Errorf("qemu ended: %w", err)
}

func orUnknown(s string) string {
	if s == "" {
		return "no reason given"
	}
	return s
}

// socketPair returns our end of a socket pair as a connection and QEMU's as a
// file.
func socketPair(name string) (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	ours := os.NewFile(uintptr(fds[0]), name)
	defer ours.Close()
	theirs := os.NewFile(uintptr(fds[1]), name)
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c, theirs, nil
}

// memfd makes an anonymous file, all hole, of size bytes.
func memfd(size int64) (*os.File, error) {
	name := []byte("hearth-memory\x00")
	fd, _, e := syscall.Syscall(sysMemfdCreate, uintptr(unsafe.Pointer(&name[0])), mfdCloexec, 0)
	if e != 0 {
		return nil, fmt.Errorf("memory for a template: %w", e)
	}
	f := os.NewFile(fd, "hearth-memory")
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, fmt.Errorf("memory for a template: %w", err)
	}
	return f, nil
}

const mfdCloexec = 1 // MFD_CLOEXEC

// event hears from QEMU.
func (m *machine) event(e event) {
	switch e.Name {
	case "SHUTDOWN":
		var d struct {
			Reason string `json:"reason"`
		}
		json.Unmarshal(e.Data, &d)
		m.mu.Lock()
		m.over = d.Reason
		m.mu.Unlock()
	case "BLOCK_IO_ERROR":
		// QEMU stops a guest whose disk cannot be written because the host's is
		// full. To go on would be for a person; a machine for one job ends.
		var d struct {
			Action  string `json:"action"`
			NoSpace bool   `json:"nospace"`
			Node    string `json:"node-name"`
			Reason  string `json:"reason"`
		}
		json.Unmarshal(e.Data, &d)
		if d.Action != "stop" {
			return
		}
		err := fmt.Errorf("a disk of the machine (%s) cannot be written: %s", strings.TrimSuffix(vm.LastLines(d.Node, 1), "-disk"), vm.LastLines(d.Reason, 1))
		if d.NoSpace {
			err = fmt.Errorf("the host's disk is full: %w", syscall.ENOSPC)
		}
		m.mu.Lock()
		if m.fault == nil {
			m.fault = err
		}
		m.mu.Unlock()
		m.Cmd.Kill()
	case "MIGRATION":
		var d struct {
			Status string `json:"status"`
		}
		json.Unmarshal(e.Data, &d)
		select {
		case m.migration <- d.Status:
		default: // a migration has fewer states than there is room
		}
	}
}

// Pid implements [vm.Machine].
func (m *machine) Pid() int {
	select {
	case <-m.Done():
		return 0
	default:
		return m.Cmd.Pid()
	}
}

// Dial implements [vm.Machine].
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	return m.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
		return vm.DialUnix(ctx, filepath.Join(m.Spec.Dir, agentName))
	})
}

// Pause implements [vm.Machine].
func (m *machine) Pause(ctx context.Context) error { return m.course(ctx, "pause", "stop", true) }

// Resume implements [vm.Machine].
func (m *machine) Resume(ctx context.Context) error { return m.course(ctx, "resume", "cont", false) }

func (m *machine) course(ctx context.Context, op, cmd string, stopped bool) error {
	if err := m.Begin(ctx, op); err != nil {
		return err
	}
	defer m.Finish()
	if _, err := m.qmp.call(ctx, command{Execute: cmd}); err != nil {
		return m.Error(op, err)
	}
	m.Stopped = stopped
	return nil
}
