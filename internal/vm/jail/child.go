package jail

import (
	"encoding/json"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readyWord is what child and parent tell each other.
const readyWord = "ready"

// init makes a jail of a process that was started to be one, and never returns
// there. Everything it needs is initialised by then, since an imported package is
// initialised before the one that imports it; hardly anything else is, which is
// what makes it quick.
func init() {
	if len(os.Args) != 2 || os.Args[0] != Arg0 {
		return
	}
	runtime.LockOSThread()
	fd, err := strconv.Atoi(os.Args[1])
	if err != nil {
		os.Exit(127)
	}
	c := &child{control: fd}
	unix.CloseOnExec(fd)
	c.build()
	os.Exit(127)
}

// child is the process that becomes the program.
type child struct {
	control int
	order   order
}

// fail tells the parent and ends.
func (c *child) fail(what string, err error) {
	n := 0
	if e, ok := err.(unix.Errno); ok {
		n = int(e)
	} else if e, ok := err.(*os.PathError); ok {
		if e, ok := e.Err.(unix.Errno); ok {
			n = int(e)
		}
	}
	unix.Sendmsg(c.control, []byte(strconv.Itoa(n)+" "+what+": "+err.Error()), nil, nil, unix.MSG_NOSIGNAL)
	os.Exit(127)
}

func (c *child) must(what string, err error) {
	if err != nil {
		c.fail(what, err)
	}
}

func (c *child) build() {
	buf := make([]byte, 256<<10)
	n, err := c.hear(buf)
	c.must("hear what to build", err)
	c.must("read what to build", json.Unmarshal(buf[:n], &c.order))
	o := &c.order
	testing := len(o.Argv) == 1 && o.Argv[0] == tryArg

	if o.Builds {
		c.attend()
	}
	if o.Root != "" {
		c.hostname()
		if o.CGroup {
			// Not by clone, which would root it in the cgroup of the parent.
			c.must("cgroup namespace", unix.Unshare(unix.CLONE_NEWCGROUP))
		}
		c.root()
	}
	if o.WorkIn != "" {
		c.must("working directory", unix.Chdir(o.WorkIn))
	}
	c.limits()
	// What is open beside what was given closes with exec: nothing of the host's
	// comes along by mistake.
	c.must("close what is open", closeFrom(3+o.Files))

	c.dropBounding()
	if o.UID != 0 {
		// Of this thread alone, which is the one that exec leaves.
		c.raw("groups", unix.SYS_SETGROUPS, 0, 0, 0)
		c.raw("group", unix.SYS_SETRESGID, uintptr(o.UID), uintptr(o.UID), uintptr(o.UID))
		c.raw("user", unix.SYS_SETRESUID, uintptr(o.UID), uintptr(o.UID), uintptr(o.UID))
	}
	c.dropAll()
	c.must("no new privileges", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	// Another user has lost the parent's death signal.
	c.must("death signal", unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0))

	listener := c.ready(buf)
	if testing {
		os.Exit(0)
	}
	if listener >= 0 {
		unix.CloseOnExec(listener)
	}
	c.fail("execute "+o.Argv[0], execute(o.Argv))
}

// hostname gives the namespace a name that says nothing. A service of systemd's
// with ProtectHostname must not; then it has the host's.
func (c *child) hostname() {
	if err := unix.Sethostname([]byte("jail")); err != unix.EPERM {
		c.must("host name", err)
	}
}

func (c *child) limits() {
	o := &c.order
	for _, l := range o.Limits {
		// Where ours is lower, so is theirs.
		var now unix.Rlimit
		c.must("limits", unix.Getrlimit(l.Resource, &now))
		v := min(l.Value, now.Max)
		c.must("limits", unix.Setrlimit(l.Resource, &unix.Rlimit{Cur: v, Max: v}))
	}
}

// ready installs the filter and says so.
func (c *child) ready(buf []byte) (listener int) {
	o := &c.order
	var oob []byte
	listener, err := installFilter(o.Openings, o.Builds)
	c.must("seccomp filter", err)
	if listener >= 0 {
		oob = unix.UnixRights(listener)
	}
	if err := unix.Sendmsg(c.control, []byte(readyWord), oob, nil, unix.MSG_NOSIGNAL); err != nil {
		os.Exit(127) // nobody is there
	}
	// The parent may have died before there was a death signal; then its end is
	// closed.
	state, err := pollNow(c.control)
	c.must("look at the parent", err)
	if state&unix.POLLHUP != 0 {
		os.Exit(127)
	}
	if o.Wait {
		n, err := c.hear(buf)
		c.must("hear the parent", err)
		if string(buf[:n]) != readyWord {
			os.Exit(127) // it is gone
		}
	}
	return listener
}

// hear waits for the parent's next word.
func (c *child) hear(buf []byte) (n int, err error) {
	for {
		n, _, _, _, err = unix.Recvmsg(c.control, buf, nil, 0)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// pollNow says what may be done with a file without waiting. A signal interrupts
// even that, and Go's scheduler sends them to whatever has run for ten
// milliseconds, which a jail on a slow machine has.
func pollNow(fd int) (events int16, err error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return p[0].Revents, err
		}
	}
}

// attend starts a program that builds its own walls, which takes privileges and
// makes it lose our death signal, and stays as process 1 of the namespace: with
// it everything in there dies.
func (c *child) attend() {
	o := &c.order
	c.must("private mounts", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	c.hostname()
	if o.CGroup {
		c.must("cgroup namespace", unix.Unshare(unix.CLONE_NEWCGROUP))
	}
	c.limits()
	c.must("close what is open", closeFrom(3+o.Files))
	c.must("no new privileges", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	if listener := c.ready(make([]byte, 64)); listener >= 0 {
		unix.Close(listener)
	}
	files := []uintptr{0, 1, 2}
	for n := range o.Files {
		files = append(files, uintptr(3+n))
	}
	pid, err := syscall.ForkExec(o.Argv[0], o.Argv, &syscall.ProcAttr{Dir: "/", Env: []string{}, Files: files})
	if err != nil {
		c.fail("execute "+o.Argv[0], err)
	}
	unix.Close(c.control)
	// Waiting takes no privileges. (A program with C in it cannot drop them like
	// this; nobody but us is left in this one.)
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&none[0])), 0)
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			os.Exit(127)
		case got != pid:
		case status.Signaled():
			os.Exit(128 + int(status.Signal()))
		default:
			os.Exit(status.ExitStatus())
		}
	}
}

// execute replaces the process by the program. Not syscall.Exec, which takes the
// limit on open files for Go's and sets it back.
func execute(argv []string) error {
	p, err := unix.BytePtrFromString(argv[0])
	if err != nil {
		return err
	}
	args, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return err
	}
	env := []*byte{nil}
	_, _, e := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&env[0])))
	runtime.KeepAlive(p)
	runtime.KeepAlive(args)
	return e
}

func (c *child) raw(what string, nr, a, b, d uintptr) {
	if _, _, e := unix.RawSyscall(nr, a, b, d); e != 0 {
		c.fail(what, e)
	}
}

// closeFrom marks every file from n on to be closed by exec.
func closeFrom(n int) error {
	err := unix.CloseRange(uint(n), ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC)
	if err == unix.EINVAL {
		err = unix.CloseRange(uint(n), 1<<31-1, unix.CLOSE_RANGE_CLOEXEC)
	}
	return err
}

// dropBounding empties the set of capabilities that could ever be gained.
func (c *child) dropBounding() {
	unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for n := range uintptr(64) {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0)
		if err == unix.EINVAL {
			break // the kernel knows no more
		}
		if err == unix.EPERM && c.order.Root == "" {
			break // nothing to drop it with: it holds for whoever started us as well
		}
		c.must("bounding set", err)
	}
}

// dropAll gives the capabilities up that this thread still has.
func (c *child) dropAll() {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	c.raw("capabilities", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&none[0])), 0)
}

// root builds the file system and moves into it.
func (c *child) root() {
	o := &c.order
	// What is mounted here stays here.
	c.must("private mounts", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	// Before the new root hides what lies under it.
	opened := make([]int, len(o.Mounts))
	for i, m := range o.Mounts {
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		c.must("take "+m.Source, err)
		opened[i] = fd
	}
	c.must("new root", unix.Mount("jail", o.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=1m,nr_inodes=4k,mode=0755"))
	made := map[string]bool{"/": true, ".": true}
	for _, see := range append(o.See, "/dev/null", "/dev/urandom") {
		var st unix.Stat_t
		if unix.Stat(see, &st) != nil {
			continue // not everything exists everywhere; what is missed says so
		}
		to := o.Root + path.Clean("/"+see)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			c.mkdir(made, to)
		} else {
			c.mkdir(made, path.Dir(to))
			fd, err := unix.Open(to, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o444)
			c.must("make "+to, err)
			unix.Close(fd)
		}
		c.must("show "+see, unix.Mount(see, to, "", unix.MS_BIND, ""))
	}
	for i, m := range o.Mounts {
		to := o.Root + path.Clean("/"+m.Target)
		c.mkdir(made, to)
		c.must("show "+m.Source, unix.MoveMount(opened[i], "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH))
		unix.Close(opened[i])
	}
	c.must("read-only root", unix.MountSetattr(unix.AT_FDCWD, o.Root, unix.AT_RECURSIVE,
		&unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}))
	for _, m := range o.Mounts {
		c.must("writable "+m.Target, unix.MountSetattr(unix.AT_FDCWD, o.Root+path.Clean("/"+m.Target), 0,
			&unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY, Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}))
	}
	c.must("enter "+o.Root, unix.Chdir(o.Root))
	switch err := unix.PivotRoot(".", "."); err {
	case nil:
		c.must("leave the old root", unix.Unmount(".", unix.MNT_DETACH))
	case unix.EINVAL:
		// The first root of a system, an initramfs, cannot be left; cover it.
		c.must("cover the old root", unix.Mount(".", "/", "", unix.MS_MOVE, ""))
		c.must("change root", unix.Chroot("."))
	default:
		c.fail("change root", err)
	}
	c.must("enter the new root", unix.Chdir("/"))
}

// mkdir makes a directory below the new root, and those above it.
func (c *child) mkdir(made map[string]bool, dir string) {
	if made[dir] || !strings.HasPrefix(dir, c.order.Root+"/") {
		return
	}
	c.mkdir(made, path.Dir(dir))
	if err := unix.Mkdir(dir, 0o755); err != nil && err != unix.EEXIST {
		c.fail("make "+dir, err)
	}
	made[dir] = true
}
