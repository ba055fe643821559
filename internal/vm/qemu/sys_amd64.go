package qemu

// sysMemfdCreate is the number of the system call, which package syscall is too
// old to know.
const sysMemfdCreate = 319
