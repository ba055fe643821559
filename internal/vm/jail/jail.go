// Package jail starts a program behind walls: a virtual machine monitor that a
// guest has taken over should find nothing around it.
//
// # Walls
//
// A program in a jail has a user of its own on this host (as root), or a user
// namespace (as anybody else); no capabilities, and no way to gain any
// (no_new_privs, an empty bounding set); process, mount, network, IPC, host name
// and cgroup namespaces of its own; a root directory that holds the program, its
// libraries and what [Cmd.See] names, read-only, and no /proc; an empty
// environment; a seccomp filter that takes away what a monitor never needs
// (starting processes, mounting, tracing, sockets other than unix ones, … see
// seccomp.go); limits on core dumps, files, processes; and, where the host has
// cgroup v2 with controllers, limits on memory, processes, processor and disk
// (cgroup.go). [Inspect] reads from /proc which of them a process has.
//
// # Files go in as open files
//
// Nothing of the host's file system has to be readable, or writable, to the
// jail's user, and no file changes its owner: Hearth opens what the program is to
// have. Some programs insist on a path, and on opening it themselves; for these
// there is [Cmd.Open]. The kernel stops the program's open and asks us (seccomp's
// user notification), and we put the open file in its place. So a template's
// memory can be opened "for reading and writing", as QEMU wants it for a private
// mapping, while the file that it gets is open for reading only: no clone can
// write to what all clones share.
//
// # How
//
// The kernel wants some of this done by the process itself before it becomes the
// program: mounts, limits, the filter. So a process is started from our own
// executable, under another name ([Arg0]), in the new namespaces; an init function
// of this package (child.go) recognises the name, builds the walls, and executes
// the program. That works in every executable which has this package linked in,
// tests and other people's programs included, takes two milliseconds, and leaves
// one process: the program is our child, has the process id that we know, and dies
// with the thread that started it. Inside its namespace it is process 1, so that
// whatever it might have started dies with it.
//
// # Best and required
//
// Not every host allows everything: user namespaces may be switched off, a
// container may forbid namespaces even to root. What can be had is found out once
// ([Look]); a machine then runs with that, and `hearth doctor` says what is
// missing. [Policy.Require] refuses instead. The cgroup is not among what is
// required: it bounds what a machine uses, and many hosts have none.
package jail

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Policy says what jails are to be like. The zero value takes the best that can
// be had.
type Policy struct {
	// Require refuses to start a program where a wall is missing.
	Require bool

	// UIDBase is the first of the [UIDs] users that jails have, one each, where
	// hearth runs as root; [DefaultUIDBase] if 0. No account may be among them.
	UIDBase int
}

func (p Policy) base() int {
	if p.UIDBase == 0 {
		return DefaultUIDBase
	}
	return p.UIDBase
}

// Check reports what is wrong with a policy.
func (p Policy) Check() error {
	if b := p.base(); b < 1000 || b > 1<<31-1-UIDs {
		return fmt.Errorf("users for machines from %d: want the first of %d that no account has, from 1000 to %d", b, UIDs, 1<<31-1-UIDs)
	}
	return nil
}

// Available reports what keeps this host from a whole jail, where the policy
// requires one; nil otherwise.
func (p Policy) Available() error {
	if err := p.Check(); err != nil || !p.Require {
		return err
	}
	if _, missing := have(); missing != nil {
		return fmt.Errorf("%w: %w; %s", ErrMissing, missing, Remedy)
	}
	return nil
}

// Remedy is what mends a missing jail.
const Remedy = "run hearth as root, or allow user namespaces: `sysctl -w user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1 " +
	"kernel.apparmor_restrict_unprivileged_userns=0` (those that exist); or set jail to best, to run without"

// Limits are what a program may use.
type Limits struct {
	MemoryMiB int   // all of its memory, of the cgroup; 0 is no limit
	CPUs      int   // processors' worth of time, of the cgroup; 0 is no limit
	Tasks     int   // processes and threads; 0 is 256
	FileSize  int64 // bytes that a file may grow to; 0 is no limit
}

// Openings says which opens of the program [Cmd.Open] is asked about.
type Openings int

// Asking costs a program's every open some 20 µs.
const (
	OpenNone    Openings = iota
	OpenWriting          // those for reading and writing
	OpenAll
)

// Mount is a directory of the host that a jail sees, and may write to.
type Mount struct{ Source, Target string }

// Cmd is a program to run behind walls. Fill in, Start, Wait.
type Cmd struct {
	Policy Policy
	Name   string   // of the machine; names the cgroup
	Args   []string // Args[0] is the program's absolute path

	// Dir is an existing directory of the caller's own, over which the child
	// mounts its new root. Nothing is left in it.
	Dir string

	See    []string // files and directories that it finds at their own paths, read-only
	Mounts []Mount  // directories that it may write to; they must be its user's: see [Cmd.Own]
	WorkIn string   // its working directory; "/" if empty

	Files    []*os.File          // become its files 3, 4, …
	Open     map[string]*os.File // by the path that the program opens; /jail/… by convention
	Openings Openings
	Builds   bool // its walls itself, as root, with the user [Cmd.Own] names: Firecracker's jailer
	KeepNet  bool // the network namespace of the calling thread, instead of an empty one

	Stdout, Stderr io.Writer
	Limits         Limits

	cmd    *exec.Cmd
	cgroup *cgroup
	lease  *uidLease
	opener *opener
	looked func(pid int) // called when the walls stand and the program has not begun
}

// Arg0 is the name under which our executable builds a jail.
const Arg0 = "hearth-jail"

// order is what the child is told. It is sent as JSON.
type order struct {
	Argv     []string
	UID      int // to become, with the group of the same number; 0 stays
	Root     string
	See      []string
	Mounts   []Mount
	WorkIn   string
	Files    int // beside the standard ones
	Openings Openings
	Builds   bool
	Wait     bool // for us, when the walls stand
	Limits   []limit
	CGroup   bool // a namespace for it
}

type limit struct {
	Resource int
	Value    uint64
}

// Own gives the jail its user, and names it: a directory of [Cmd.Mounts] has to
// belong to it before Start. It is 0 where the user does not change.
func (c *Cmd) Own() (uid int, err error) {
	if c.lease != nil {
		return c.lease.uid, nil
	}
	if level, _ := have(); os.Geteuid() != 0 || level == User {
		return 0, nil
	}
	if c.lease, err = takeUID(c.Policy.base()); err != nil {
		return 0, err
	}
	return c.lease.uid, nil
}

// Start starts the program. It returns when it has been executed, or with what
// went wrong. The program dies with the thread that Start was called on: call it,
// and Wait, from a goroutine that has locked its own.
func (c *Cmd) Start() (err error) {
	if err := c.Policy.Available(); err != nil {
		return err
	}
	level, _ := have()
	defer func() {
		if err != nil {
			c.release()
			c.opener = nil // not in release: after the program's end Offer may still be called
		}
	}()
	if _, err := c.Own(); err != nil {
		return err
	}
	o := order{Argv: c.Args, See: c.See, Mounts: c.Mounts, WorkIn: c.WorkIn, Files: len(c.Files), Openings: c.Openings, Wait: c.looked != nil}
	if c.lease != nil {
		o.UID = c.lease.uid
	}
	if c.Builds {
		if level != Own {
			return errors.New("jail: a program that builds its own walls takes root")
		}
		o.Builds = true
	}
	if level == Bare {
		for _, m := range c.Mounts {
			if m.Target == c.WorkIn {
				o.WorkIn = m.Source
			}
		}
	}
	attr := &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setsid:    true, // Ctrl-C is for hearth, and no terminal is theirs
	}
	level.apply(attr, c.KeepNet)
	if level != Bare {
		o.Root = c.Dir
	}
	o.Limits = rlimits(c.Limits, level)
	// That there is no place for cgroups is no reason not to run, and Look says why.
	if _, err := cgroupParent(); err == nil {
		if c.cgroup, err = newCgroup(c.Name, c.Limits, c.Dir); err != nil {
			return fmt.Errorf("jail: %w", err)
		}
		o.CGroup = level != Bare
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("jail: socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "jail"), os.NewFile(uintptr(fds[1]), "jail")
	defer ours.Close()
	defer theirs.Close()
	c.cmd = &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        []string{Arg0, fmt.Sprint(3 + len(c.Files))},
		Env:         []string{}, // ours may hold secrets
		Dir:         "/",
		Stdout:      c.Stdout,
		Stderr:      c.Stderr,
		ExtraFiles:  append(append([]*os.File(nil), c.Files...), theirs),
		SysProcAttr: attr,
	}
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("jail: %w", err)
	}
	theirs.Close()
	// The child waits for its order, so that nothing of it is outside.
	if err := c.cgroup.enter(c.Pid()); err != nil {
		c.cmd.Process.Kill()
		c.cmd.Wait()
		return fmt.Errorf("jail: %w", err)
	}
	if err := c.handshake(ours, o); err != nil {
		c.cmd.Process.Kill()
		c.cmd.Wait()
		return err
	}
	return nil
}

// handshake tells the child what to build and follows it until it has become the
// program. The child's end closes with that.
func (c *Cmd) handshake(control *os.File, o order) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	fd := int(control.Fd())
	// A child is not the program yet, but it may hang in a mount.
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30})
	if err := unix.Sendmsg(fd, b, nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("jail: tell the child: %w", err)
	}
	for {
		buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
		n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECONNRESET) || err == nil && n == 0:
			if c.Openings != OpenNone && c.opener == nil {
				return errors.New("jail: the child ended before it was ready")
			}
			return nil
		case err != nil:
			return fmt.Errorf("jail: hear from the child: %w", err)
		}
		if text := string(buf[:n]); text != readyWord {
			return fmt.Errorf("jail: %w", childError(text))
		}
		if c.looked != nil {
			c.looked(c.Pid())
		}
		if oobn > 0 {
			listener, err := passedFile(oob[:oobn])
			if err != nil {
				return err
			}
			c.opener = serveOpens(listener, c.Open)
		}
		if o.Wait {
			if err := unix.Sendmsg(fd, []byte(readyWord), nil, nil, unix.MSG_NOSIGNAL); err != nil {
				return fmt.Errorf("jail: tell the child: %w", err)
			}
		}
	}
}

// childError is what the child said, with the error number it may have named.
type childError string

func (e childError) Error() string { _, s, _ := strings.Cut(string(e), " "); return s }

func (e childError) Is(target error) bool {
	var n int
	errno, ok := target.(syscall.Errno)
	if _, err := fmt.Sscanf(string(e), "%d ", &n); err == nil && n != 0 {
		if ok {
			return syscall.Errno(n) == errno
		}
		return syscall.Errno(n).Is(target)
	}
	return false
}

func passedFile(oob []byte) (*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return nil, errors.New("jail: unreadable message from the child")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("jail: unreadable message from the child")
	}
	unix.SetNonblock(fds[0], true)
	return os.NewFile(uintptr(fds[0]), "seccomp"), nil
}

// Pid is the program's process id, as the host sees it.
func (c *Cmd) Pid() int { return c.cmd.Process.Pid }

// Kill ends the program; Wait tells when it is gone.
func (c *Cmd) Kill() error {
	if c == nil || c.cmd == nil || c.cmd.Process == nil {
		return nil
	}
	return c.cmd.Process.Kill()
}

// Offer replaces [Cmd.Open] while the program runs. When it returns, no file of
// the earlier offer is looked at any more.
func (c *Cmd) Offer(files map[string]*os.File) { c.opener.offer(files) }

// Settled says that the program has opened all it needs: none of its later opens
// gets anything.
func (c *Cmd) Settled() { c.opener.close() }

// Wait waits for the program's end, and gives back what its jail took.
func (c *Cmd) Wait() error {
	err := c.cmd.Wait()
	c.release()
	return err
}

func (c *Cmd) release() {
	c.opener.close()
	c.cgroup.remove()
	c.lease.release()
	c.cgroup, c.lease = nil, nil
}

// ErrMissing says that the host does not allow a wall that is required.
var ErrMissing = errors.New("machines are to run behind walls that this host does not allow")

// Level is how much of a jail a host allows.
type Level int

// The levels.
const (
	Unknown Level = iota
	Own           // root: a user of its own, and namespaces
	User          // a user namespace, and the others in it
	Bare          // no namespaces
)

// userInside is who one is in a user namespace.
const userInside = 1000

const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

func (l Level) apply(a *syscall.SysProcAttr, keepNet bool) {
	switch l {
	case User:
		a.Cloneflags = unix.CLONE_NEWUSER
		// Not as its root: even without capabilities that is more than nobody.
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: userInside, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: userInside, HostID: os.Getegid(), Size: 1}}
		a.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SETPCAP} // until the walls stand
		fallthrough
	case Own:
		a.Cloneflags |= namespaces
		if !keepNet {
			a.Cloneflags |= unix.CLONE_NEWNET
		}
	}
}

var found struct {
	once    sync.Once
	level   Level
	missing error
}

// have finds out what this host allows, once.
func have() (Level, error) {
	found.once.Do(func() {
		levels := []Level{User}
		if os.Geteuid() == 0 {
			levels = []Level{Own, User}
		}
		for _, l := range levels {
			err := try(l)
			if err == nil {
				found.level, found.missing = l, nil
				return
			}
			if found.missing == nil {
				found.missing = fmt.Errorf("namespaces: %w", err)
				if l == User {
					found.missing = fmt.Errorf("user namespaces: %w", err)
				}
			}
		}
		found.level = Bare
	})
	return found.level, found.missing
}

// Privileged reports whether jails are made with root's privileges here.
func Privileged() bool { l, _ := have(); return l == Own }

// tryArg asks the child to build and to leave it at that.
const tryArg = "\x00try"

// try builds an empty jail.
func try(l Level) (err error) {
	dir, err := os.MkdirTemp("", "hearth-jail-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return onThread(func() error {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		ours, theirs := os.NewFile(uintptr(fds[0]), "jail"), os.NewFile(uintptr(fds[1]), "jail")
		defer ours.Close()
		attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		l.apply(attr, false)
		c := &Cmd{Openings: OpenAll}
		c.cmd = &exec.Cmd{Path: "/proc/self/exe", Args: []string{Arg0, "3"}, Env: []string{}, Dir: "/", ExtraFiles: []*os.File{theirs}, SysProcAttr: attr}
		err = c.cmd.Start()
		theirs.Close()
		if err != nil {
			return err
		}
		err = c.handshake(ours, order{Argv: []string{tryArg}, Root: dir, Openings: OpenAll})
		c.opener.close()
		if err != nil {
			c.cmd.Process.Kill()
			c.cmd.Wait()
			return err
		}
		return c.cmd.Wait()
	})
}

// Report says what a host allows, for people and for tests.
type Report struct {
	Level   Level
	Missing error  // why there are no namespaces, or nil
	Walls   Walls  // as seen around a jail that was made to look at
	Fault   error  // why there is none of any kind, or nil
	CGroup  string // where the cgroups of jails are made
	NoGroup error  // why there are none, or nil
	UIDBase int    // the first user of jails; 0 where they have our own
}

// Look makes a jail, looks at it from outside, and says what there is.
func Look(ctx context.Context, p Policy) Report {
	var r Report
	r.Level, r.Missing = have()
	if os.Geteuid() == 0 {
		r.UIDBase = p.base()
	}
	r.CGroup, r.NoGroup = cgroupParent()
	p.Require = false
	dir, err := os.MkdirTemp("", "hearth-jail-")
	if err != nil {
		r.Fault = err
		return r
	}
	defer os.RemoveAll(dir)
	r.Fault = errors.New("it ended before it could be looked at")
	c := &Cmd{Policy: p, Name: "look", Args: []string{tryArg}, Dir: dir, Openings: OpenAll}
	c.looked = func(pid int) { r.Walls, r.Fault = Inspect(pid) }
	if err := onThread(func() error {
		if err := c.Start(); err != nil {
			return err
		}
		return c.Wait()
	}); err != nil {
		r.Fault = err
	}
	return r
}

// onThread runs f on a thread that nothing else uses meanwhile.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- f()
	}()
	return <-done
}

// MaxFiles is how many files what runs in a jail may have open.
const MaxFiles = 1024

// rlimits are those that hold without a cgroup.
func rlimits(l Limits, level Level) []limit {
	tasks := uint64(l.Tasks)
	if tasks == 0 {
		tasks = 256
	}
	all := []limit{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_NOFILE, MaxFiles},
		{unix.RLIMIT_MEMLOCK, 64 << 10},
		{unix.RLIMIT_MSGQUEUE, 0},
	}
	if level != Bare { // without a user or a namespace of its own, all that its user runs would count
		all = append(all, limit{unix.RLIMIT_NPROC, tasks})
	}
	if l.FileSize > 0 {
		all = append(all, limit{unix.RLIMIT_FSIZE, uint64(l.FileSize)})
	}
	return all
}
