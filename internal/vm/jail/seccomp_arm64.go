package jail

// forks: clone is the only call that starts a process here.
var forks []uintptr
