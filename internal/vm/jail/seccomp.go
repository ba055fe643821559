package jail

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The filter is a list of what is taken away, not of what is left: which calls a
// monitor makes changes with its version and its libraries, and Firecracker has a
// list of its own, while what none of them ever makes does not change. QEMU's own
// sandbox comes on top of it.

// forbidden are calls that fail with "not permitted".
var forbidden = []uintptr{
	// the file system's shape
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR, unix.SYS_SWAPON, unix.SYS_SWAPOFF,
	unix.SYS_QUOTACTL, unix.SYS_ACCT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_FANOTIFY_INIT,
	// other namespaces and other processes
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP,
	unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD, unix.SYS_PROCESS_MADVISE, unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES,
	// other programs
	unix.SYS_EXECVEAT,
	// the kernel and its tools, where most of its holes were
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_SYSLOG, unix.SYS_PERSONALITY, unix.SYS_LOOKUP_DCOOKIE,
	unix.SYS_CLOCK_SETTIME, unix.SYS_SETTIMEOFDAY, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
	unix.SYS_VHANGUP,
}

// newNamespace are the flags of clone that make a namespace.
const newNamespace = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]

// Offsets in what a filter sees of a call.
const (
	atNumber = 0
	atArch   = 4
	atArgs   = 16 // 8 bytes each, little endian
)

func arg(n int) uint32 { return uint32(atArgs + 8*n) }

// program is a filter in the making.
type program []unix.SockFilter

func (p *program) stmt(code uint16, k uint32) { *p = append(*p, unix.SockFilter{Code: code, K: k}) }

func (p *program) load(off uint32) { p.stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, off) }

func (p *program) ret(k uint32) { p.stmt(unix.BPF_RET|unix.BPF_K, k) }

func (p *program) jump(op uint16, k uint32, yes, no uint8) {
	*p = append(*p, unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: yes, Jf: no, K: k})
}

func fails(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }

// filter is what a jail's program may ask of the kernel. One that builds its own
// walls is asked about its opens, and may do the rest.
func filter(o Openings, builds bool) []unix.SockFilter {
	var p program
	p.load(atArch)
	p.jump(unix.BPF_JEQ, auditArch, 1, 0)
	p.ret(unix.SECCOMP_RET_KILL_PROCESS)
	p.load(atNumber)
	if builds {
		p.openings(o)
		p.ret(unix.SECCOMP_RET_ALLOW)
		return p
	}
	if runtime.GOARCH == "amd64" {
		// The same calls by other numbers.
		const x32 = 0x40000000
		p.jump(unix.BPF_JGE, x32, 0, 1)
		p.ret(unix.SECCOMP_RET_KILL_PROCESS)
	}
	for _, nr := range append(forbidden[:len(forbidden):len(forbidden)], forks...) {
		p.jump(unix.BPF_JEQ, uint32(nr), 0, 1)
		p.ret(fails(unix.EPERM))
	}
	// What clone3 is to do lies in memory, where a filter does not see it; C
	// libraries then use clone.
	p.jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1)
	p.ret(fails(unix.ENOSYS))
	// Threads only.
	p.jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 5)
	p.load(arg(0))
	p.jump(unix.BPF_JSET, newNamespace, 1, 0)
	p.jump(unix.BPF_JSET, unix.CLONE_THREAD, 1, 0)
	p.ret(fails(unix.EPERM))
	p.ret(unix.SECCOMP_RET_ALLOW)
	p.jump(unix.BPF_JEQ, unix.SYS_SOCKET, 0, 4)
	p.load(arg(0))
	p.jump(unix.BPF_JEQ, unix.AF_UNIX, 1, 0)
	p.ret(fails(unix.EAFNOSUPPORT))
	p.ret(unix.SECCOMP_RET_ALLOW)
	// Nothing may be typed into a terminal.
	p.jump(unix.BPF_JEQ, unix.SYS_IOCTL, 0, 4)
	p.load(arg(1))
	p.jump(unix.BPF_JEQ, unix.TIOCSTI, 0, 1)
	p.ret(fails(unix.EPERM))
	p.ret(unix.SECCOMP_RET_ALLOW)
	p.openings(o)
	p.ret(unix.SECCOMP_RET_ALLOW)
	return p
}

// openings asks about opens, with the call's number loaded.
func (p *program) openings(o Openings) {
	switch o {
	case OpenAll:
		for _, nr := range opens {
			p.jump(unix.BPF_JEQ, uint32(nr), 0, 1)
			p.ret(unix.SECCOMP_RET_USER_NOTIF)
		}
	case OpenWriting:
		p.jump(unix.BPF_JEQ, unix.SYS_OPENAT, 0, 4)
		p.load(arg(2))
		p.stmt(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, unix.O_ACCMODE)
		p.jump(unix.BPF_JEQ, unix.O_RDWR, 0, 1)
		p.ret(unix.SECCOMP_RET_USER_NOTIF)
	}
}

// installFilter sets the calling thread's filter. The listener, where opens are
// asked about, hears them; -1 otherwise.
func installFilter(o Openings, builds bool) (listener int, err error) {
	f := filter(o, builds)
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	var flags uintptr
	if o != OpenNone {
		flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	}
	fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(f)
	if e != 0 {
		return -1, e
	}
	if o == OpenNone {
		return -1, nil
	}
	return int(fd), nil
}
