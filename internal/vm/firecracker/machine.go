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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/jail"
	"github.com/hearth-ci/hearth/internal/vm/vmm"
)

// Names in a machine's directory.
const (
	boxName     = "box" // what Firecracker may write to; see below
	consoleName = "console.log"
	logName     = "log.pipe"
)

// Names in Firecracker's own directory, which belongs to its user: nothing in
// there is to be trusted. The jailer makes one of its own, further down.
const (
	apiName   = "api.sock"
	vsockName = "vsock.sock"
	loadName  = "state" // of the snapshot to begin with
)

// What Firecracker opens, and gets from us: see jail.Cmd.Open. Disks are opened by
// their relative names, which are in snapshots. The state of a snapshot it also
// looks at by its name, so that this is in its own directory, a copy to be read.
const (
	kernelPath = "/jail/kernel"
	initrdPath = "/jail/initrd"
	statePath  = "/jail/state"
	memoryPath = "/jail/memory"
	logPath    = "/jail/log"
)

// inside is where Firecracker finds its directory.
const inside = "/machine"

// machine is one Firecracker process. It implements [vm.Machine].
type machine struct {
	*vmm.Life
	driver  *Driver
	version version // as the process itself says

	box     string // Firecracker's own directory
	uid     int    // whose it is, or 0
	vmm     int    // its process, which is not the jail's where there is the jailer
	api     *client
	logPipe *os.File
	network net.Conn // to Spec.Net, or nil
}

var _ vm.Machine = (*machine)(nil)

// dying is how long a process may take to end after its connections have.
const dying = 500 * time.Millisecond

// launch starts a Firecracker, waits until its API answers, and has prepare
// make a running machine of it; open are the files it opens on the way. When it
// fails, nothing is left running.
func (d *Driver) launch(ctx context.Context, spec vm.Spec, op string, open map[string]string, prepare func(*machine, context.Context) error) (_ *machine,
	err error) {
	m := &machine{Life: vmm.NewLife(spec), driver: d}
	fail := func(err error) (*machine, error) {
		return nil, m.Error(op, err)
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
		if m.Console.File != nil {
			m.Console.File.Close()
		}
	}
	m.Console.Also = spec.Console
	if m.Console.File, err = os.OpenFile(filepath.Join(spec.Dir, consoleName), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600); err == nil {
		if m.logPipe, err = makeFIFO(filepath.Join(spec.Dir, logName)); err == nil {
			err = vm.WriteRecord(spec.Dir, d.Name(), spec, 0)
		}
	}
	if err != nil {
		drop()
		return fail(err)
	}
	files, size, err := m.files(open)
	if err == nil {
		err = m.wallIn(ctx, binary, files, size)
	}
	if err != nil {
		drop()
		closeAll(files)
		return fail(err)
	}
	m.api = newClient(filepath.Join(m.box, apiName))
	started := make(chan error, 1)
	go m.run(started)
	if err := <-started; err != nil {
		drop()
		closeAll(files)
		return fail(err)
	}
	defer func() {
		// It has opened what it needs, or is over.
		m.Cmd.Offer(nil)
		closeAll(files)
	}()
	defer func() {
		if err == nil {
			return
		}
		// Where it died of itself, that is the reason, and known a moment after the
		// connection broke.
		if f := (*Fault)(nil); !errors.As(err, &f) && ctx.Err() == nil {
			select {
			case <-m.Done():
			case <-ctx.Done():
			case <-time.After(dying):
			}
		}
		m.End()
		<-m.Done()
		// The tail is complete only now.
		e := &vm.Error{Machine: spec.ID, Op: op, Err: err}
		if x := (*vm.Error)(nil); ctx.Err() == nil && errors.As(m.Wait(), &x) {
			e.Err = x.Err
			if errors.Is(err, vm.ErrSnapshot) {
				e.Err = fmt.Errorf("%w: %w", vm.ErrSnapshot, x.Err)
			}
		}
		e.Tail = m.Tail()
		err = e
	}()
	if err := vm.WriteRecord(spec.Dir, d.Name(), spec, m.Cmd.Pid()); err != nil {
		return nil, err
	}
	// An answer that is being waited for does not come if the process dies: its
	// end closes the connection.
	if m.version, err = m.api.ready(ctx, m.Done()); err != nil {
		return nil, err
	}
	if m.version.before(1, 12) {
		return nil, fmt.Errorf("it says that it is Firecracker %s: at least 1.12 is needed", m.version)
	}
	m.vmm = m.Cmd.Pid()
	if m.Cmd.Builds {
		if m.vmm, err = listener(ctx, filepath.Join(m.box, apiName)); err == nil {
			err = vm.WriteRecord(spec.Dir, d.Name(), spec, m.vmm)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := prepare(m, ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// files opens what Firecracker will open, by the name that it opens it by, and
// says how large the largest of them may become.
func (m *machine) files(open map[string]string) (files map[string]*os.File, size int64, err error) {
	files = map[string]*os.File{logPath: m.logPipe}
	add := func(name, path string, mode int) error {
		f, err := os.OpenFile(path, mode, 0o600)
		if err == nil {
			files[name] = f
		}
		return err
	}
	size = int64(m.Spec.MemoryMiB) << 20
	for name, path := range open {
		if err := add(name, path, os.O_RDONLY); err != nil {
			return files, 0, err
		}
	}
	for name, path := range m.driver.open {
		if err := add(name, path, os.O_RDWR|os.O_APPEND|os.O_CREATE); err != nil {
			return files, 0, err
		}
	}
	for _, d := range m.Spec.Disks {
		mode := os.O_RDWR
		if fi, err := os.Stat(d.Path); err == nil && !d.ReadOnly {
			size = max(size, fi.Size())
		}
		if d.ReadOnly {
			mode = os.O_RDONLY
		}
		if err := add(diskName(d.ID), d.Path, mode); err != nil {
			return files, 0, fmt.Errorf("disk %s: %w", d.ID, err)
		}
	}
	if err := add(vmm.KVMDevice, vmm.KVMDevice, os.O_RDWR); err != nil && !errors.Is(err, os.ErrNotExist) {
		return files, 0, err
	}
	return files, size + size/8 + 1<<30, nil
}

// closeAll closes what files has opened; the pipe of the log is the machine's.
func closeAll(files map[string]*os.File) {
	for name, f := range files {
		if name != logPath {
			f.Close()
		}
	}
}

// wallIn prepares the jail: the jailer's where there is one that can be used, and
// otherwise our own.
func (m *machine) wallIn(ctx context.Context, binary string, files map[string]*os.File, size int64) error {
	id := "hearth-" + strings.ReplaceAll(m.Spec.ID, "_", "-")
	api := []string{"--api-sock", apiName,
		// From its first line on, so that its standard output is the guest's alone.
		"--log-path", logPath, "--level", "Warning"}
	c := &jail.Cmd{
		Policy: m.driver.cfg.Jail, Name: m.Spec.ID, Dir: m.Spec.Dir,
		Open: files, Openings: jail.OpenAll, KeepNet: m.network != nil,
		Limits: jail.Limits{MemoryMiB: m.Spec.MemoryMiB, CPUs: m.Spec.CPUs, FileSize: size},
		Stdout: &m.Console, Stderr: &m.Log,
	}
	m.Cmd = c
	uid, err := c.Own()
	if err != nil {
		return err
	}
	m.uid = uid
	m.box = filepath.Join(m.Spec.Dir, boxName)
	if jailer := m.driver.jailer(); jailer != "" {
		c.Builds = true
		// It would raise the limit of open files to its own default, which takes a
		// capability that root may be without.
		files := uint64(jail.MaxFiles)
		var now unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err == nil {
			files = min(files, now.Max)
		}
		c.Args = append([]string{jailer, "--id", id, "--resource-limit", "no-file=" + strconv.FormatUint(files, 10), "--exec-file", binary, "--uid",
			strconv.Itoa(uid), "--gid", strconv.Itoa(uid),
			"--chroot-base-dir", m.box, "--"}, api...)
		if err := os.Mkdir(m.box, 0o700); err != nil {
			return err
		}
		m.box = filepath.Join(m.box, filepath.Base(binary), id, "root")
		return nil
	}
	if c.See, err = jail.Needs(ctx, append([]string{binary}, m.driver.also...)...); err != nil {
		return err
	}
	c.Args = append([]string{binary, "--id", id}, api...)
	c.Mounts, c.WorkIn = []jail.Mount{{Source: m.box, Target: inside}}, inside
	err = os.Mkdir(m.box, 0o700)
	if err == nil && uid != 0 {
		err = os.Chown(m.box, uid, uid)
	}
	return err
}

// listener returns the process that listens on a socket.
func listener(ctx context.Context, path string) (int, error) {
	c, err := vm.DialUnix(ctx, path)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		return 0, e
	}
	if err != nil {
		return 0, fmt.Errorf("whose the API is: %w", err)
	}
	return int(cred.Pid), nil
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
		if err == nil {
			// What it attaches to its tap belongs to the namespace that it was opened in.
			m.Cmd.Open[tunDevice], err = os.OpenFile(tunDevice, os.O_RDWR|syscall.O_NONBLOCK, 0)
		}
		if err != nil {
			started <- err
			return
		}
		plugged = plugIn(tap, m.network)
	} else {
		defer runtime.UnlockOSThread()
	}
	if err := m.Cmd.Start(); err != nil {
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
			m.Log.Write(buf[:n])
			if err != nil {
				return
			}
		}
	})
	started <- nil
	err := m.Cmd.Wait()
	// We hold both ends of the pipe, so that it does not end by itself; what is in
	// it is read at once.
	m.logPipe.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	readers.Wait()
	m.logPipe.Close()
	m.Console.File.Close()
	if plugged != nil {
		plugged.unplug()
	}
	m.api.close()

	m.Ended(m.ending(err))
}

// ending says what an unwanted end means; nil if the guest powered off. A guest
// that resets, which is how it powers off here, and how a kernel ends that
// panicked, makes Firecracker exit with success.
func (m *machine) ending(err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil && m.Console.Contains("Kernel panic"):
		return errors.New("the guest's kernel panicked")
	case err == nil && m.Console.Contains("hearth-guest: FATAL: "):
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
	137: "it was killed (SIGKILL)", // as the process above the jailer's tells it
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

// Pid implements [vm.Machine].
func (m *machine) Pid() int {
	select {
	case <-m.Done():
		return 0
	default:
		return m.vmm
	}
}

// Dial implements [vm.Machine]. It fails as long as the agent does not listen.
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	return m.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
		return dialVsock(ctx, filepath.Join(m.box, vsockName), agentPort)
	})
}

// Pause implements [vm.Machine].
func (m *machine) Pause(ctx context.Context) error { return m.course(ctx, "pause", "Paused", true) }

// Resume implements [vm.Machine].
func (m *machine) Resume(ctx context.Context) error { return m.course(ctx, "resume", "Resumed", false) }

func (m *machine) course(ctx context.Context, op, state string, stopped bool) error {
	if err := m.Begin(ctx, op); err != nil {
		return err
	}
	defer m.Finish()
	if err := m.setState(ctx, state); err != nil {
		return m.explain(op, err)
	}
	m.Stopped = stopped
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
		case <-m.Done():
			if x := (*vm.Error)(nil); errors.As(m.Wait(), &x) {
				err = x.Err
			}
		case <-time.After(dying):
		}
	}
	return m.Error(op, err)
}
