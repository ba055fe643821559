package jail

import "golang.org/x/sys/unix"

// forks start a process, beside clone. ioperm, iopl and modify_ldt are this
// processor's own.
var forks = []uintptr{unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_IOPERM, unix.SYS_IOPL, unix.SYS_MODIFY_LDT}

// opens are the calls that open a file by its name.
var opens = []uintptr{unix.SYS_OPENAT, unix.SYS_OPEN}
