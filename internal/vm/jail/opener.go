package jail

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the kernel and the listener tell each other (linux/seccomp.h).
type (
	notification struct {
		id    uint64
		pid   uint32
		flags uint32
		nr    int32
		arch  uint32
		ip    uint64
		args  [6]uint64
	}
	answer struct {
		id    uint64
		value int64
		err   int32
		flags uint32
	}
	addition struct {
		id       uint64
		flags    uint32
		src      uint32
		dst      uint32
		dstFlags uint32
	}
)

const (
	ioctlReceive = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	ioctlSend    = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
	ioctlAdd     = 0x40182103 // SECCOMP_IOCTL_NOTIF_ADDFD

	flagContinue = 1 // SECCOMP_USER_NOTIF_FLAG_CONTINUE
	flagSend     = 2 // SECCOMP_ADDFD_FLAG_SEND
)

// opener answers a program's opens.
type opener struct {
	mu    sync.Mutex
	files map[string]*os.File

	ready sync.WaitGroup
	file  *os.File
	once  sync.Once
}

// offer changes what can be opened.
func (o *opener) offer(files map[string]*os.File) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.files = files
}

// serveOpens answers until close, or until the program has ended.
func serveOpens(listener *os.File, files map[string]*os.File) *opener {
	o := &opener{file: listener, files: files}
	o.ready.Go(o.serve)
	return o
}

func (o *opener) close() {
	if o == nil {
		return
	}
	o.once.Do(func() {
		o.file.Close()
		o.ready.Wait()
	})
}

func (o *opener) serve() {
	conn, err := o.file.SyscallConn()
	if err != nil {
		return
	}
	for {
		var n notification
		var fatal error
		err := conn.Read(func(fd uintptr) bool {
			// Receiving waits even where the file does not.
			state, err := pollNow(int(fd))
			if err != nil || state == 0 {
				return false
			}
			if state&unix.POLLIN == 0 {
				fatal = errors.New("nobody is left")
				return true
			}
			n = notification{}
			if e := ioctl(fd, ioctlReceive, unsafe.Pointer(&n)); e != 0 && e != unix.ENOENT && e != unix.EINTR {
				fatal = e
			}
			return true
		})
		if err != nil || fatal != nil {
			return
		}
		if n.id == 0 {
			continue
		}
		path, flags := n.args[1], n.args[2]
		if uintptr(n.nr) != unix.SYS_OPENAT { // open, which has no directory before the path
			path, flags = n.args[0], n.args[1]
		}
		name := readString(int(n.pid), uintptr(path), unix.PathMax)
		conn.Control(func(fd uintptr) {
			// As long as it takes: whoever changes the offer may close the files then.
			o.mu.Lock()
			defer o.mu.Unlock()
			file := o.files[name]
			if file == nil {
				a := answer{id: n.id, flags: flagContinue}
				ioctl(fd, ioctlSend, unsafe.Pointer(&a))
				return
			}
			again, err := reopen(file)
			if err == nil {
				a := addition{id: n.id, flags: flagSend, src: uint32(again), dstFlags: uint32(flags) & unix.O_CLOEXEC}
				if e := ioctl(fd, ioctlAdd, unsafe.Pointer(&a)); e != 0 {
					err = e
				}
				unix.Close(again)
			}
			if err != nil {
				a := answer{id: n.id, err: -int32(unix.EACCES)}
				ioctl(fd, ioctlSend, unsafe.Pointer(&a))
			}
		})
	}
}

// reopen opens a file once more, for what it is open for: who opens a file
// twice, as QEMU does its kernel, expects to be at its beginning both times. What
// is no regular file is handed over as it is: a tap device belongs to the network
// namespace that it was opened in.
func reopen(f *os.File) (int, error) {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	}
	return unix.Open("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), flags&(unix.O_ACCMODE|unix.O_APPEND)|unix.O_CLOEXEC, 0)
}

func ioctl(fd, request uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
	return e
}

// readString reads a string that ends in a zero out of a process's memory, up to
// limit bytes with that.
func readString(pid int, at uintptr, limit int) string {
	buf := make([]byte, limit)
	n := 0
	// A page at a time: the string may lie at the end of what is mapped.
	for n < limit {
		k := min(limit-n, int(4096-(at+uintptr(n))%4096))
		local := []unix.Iovec{{Base: &buf[n], Len: uint64(k)}}
		got, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: at + uintptr(n), Len: k}}, 0)
		if err != nil {
			return ""
		}
		if i := bytes.IndexByte(buf[n:n+got], 0); i >= 0 {
			return string(buf[:n+i])
		}
		if got == 0 {
			return ""
		}
		n += got
	}
	return ""
}
