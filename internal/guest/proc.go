package guest

import (
	"os"
	"strconv"
	"sync"
	"syscall"
	"unsafe"
)

// processes starts children and learns how they ended.
//
// The first process of a machine also inherits every orphan and has to wait for
// it. Waiting for "any child" takes the status of our own children too, so in that mode one goroutine
// waits for all: it looks (WNOWAIT) who has ended, and under the lock, which a
// start holds until the child is on record, it takes the status and passes it
// on. Nothing else in that process may wait. Elsewhere (tests, a server on a host) each child is waited for by itself.
type processes struct {
	all bool

	mu     sync.Mutex
	cond   sync.Cond
	exits  map[int]func(status)
	starts int // how many children there ever were
	closed bool
	wg     sync.WaitGroup
}

// status is how a child ended.
type status struct {
	ws syscall.WaitStatus
	ru syscall.Rusage
}

func newProcesses(all bool) *processes {
	p := &processes{all: all, exits: map[int]func(status){}}
	p.cond.L = &p.mu
	if all {
		p.wg.Go(p.reap)
	}
	return p
}

// start starts a program and calls exited, in another goroutine, once it has ended.
func (p *processes) start(path string, argv []string, attr *syscall.ProcAttr, exited func(status)) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, err
	}
	p.exits[pid] = exited
	p.starts++
	if p.all {
		p.cond.Signal()
	} else {
		p.wg.Go(func() { p.wait(pid) })
	}
	return pid, nil
}

// signal sends a signal to pid's group while pid is known to be our child.
func (p *processes) signal(pid int, s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exits[pid] != nil {
		syscall.Kill(-pid, s)
	}
}

// wait waits for one child.
func (p *processes) wait(pid int) {
	// WNOWAIT first: the pid must stay ours until it is off the record.
	for {
		if _, err := waitid(pPID, pid); err != syscall.EINTR {
			break
		}
	}
	p.collect(pid)
}

// reap waits for all children, for ever; it ends after close when there are none.
func (p *processes) reap() {
	for {
		p.mu.Lock()
		starts := p.starts
		p.mu.Unlock()
		pid, err := waitid(pALL, 0)
		switch err {
		case nil:
			p.collect(pid)
		case syscall.ECHILD:
			p.mu.Lock()
			for p.starts == starts && !p.closed {
				p.cond.Wait()
			}
			done := p.closed && p.starts == starts
			p.mu.Unlock()
			if done {
				return
			}
		}
	}
}

// collect takes the status of an ended child and passes it on.
func (p *processes) collect(pid int) {
	var st status
	p.mu.Lock()
	for {
		_, err := syscall.Wait4(pid, &st.ws, 0, &st.ru)
		if err != syscall.EINTR {
			break
		}
	}
	exited := p.exits[pid]
	delete(p.exits, pid)
	p.mu.Unlock()
	if exited != nil {
		exited(st)
	}
}

// close waits for the children that are left; they have been killed. Those inherited are not waited for.
func (p *processes) close() {
	p.mu.Lock()
	p.closed = true
	p.cond.Signal()
	p.mu.Unlock()
	if !p.all {
		p.wg.Wait()
	}
}

const (
	pALL    = 0
	pPID    = 1
	wnowait = 0x01000000
	wexited = 4
)

// waitid returns the pid of a child that has ended, which it leaves to be waited for.
func waitid(idtype, id int) (int, error) {
	var info [128]byte // siginfo_t
	_, _, e := syscall.Syscall6(syscall.SYS_WAITID, uintptr(idtype), uintptr(id),
		uintptr(unsafe.Pointer(&info)), wexited|wnowait, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(*(*int32)(unsafe.Pointer(&info[16]))), nil // si_pid
}

// member is a process as killTree knows it: the start time tells it from a later one with its number.
type member struct {
	pid   int
	start string
}

// members returns the processes of the session that pid leads, their
// descendants, and the descendants' sessions, as far as they can be seen now.
func members(leader int) []member {
	type proc struct {
		member
		ppid, sid int
	}
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var procs []proc
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil || pid == os.Getpid() {
			continue
		}
		if f := statFields(pid); f != nil {
			ppid, _ := strconv.Atoi(f[1])
			sid, _ := strconv.Atoi(f[3])
			procs = append(procs, proc{member{pid, f[19]}, ppid, sid})
		}
	}
	in := map[int]bool{}
	sessions := map[int]bool{leader: true}
	var found []member
	for again := true; again; {
		again = false
		for _, p := range procs {
			if !in[p.pid] && (p.pid == leader || sessions[p.sid] || in[p.ppid]) {
				in[p.pid], sessions[p.sid], again = true, true, true
				found = append(found, p.member)
			}
		}
	}
	return found
}

// statFields returns the fields of /proc/PID/stat after the name: state, ppid, pgrp, session, …
func statFields(pid int) []string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	for i := len(b) - 1; i >= 0; i-- { // the name may hold anything, parentheses too
		if b[i] == ')' {
			f := fields(string(b[i+1:]))
			if len(f) < 20 {
				return nil
			}
			return f
		}
	}
	return nil
}

// fields is strings.Fields for ASCII spaces, up to as many as are used here.
func fields(s string) []string {
	f := make([]string, 0, 52)
	start := -1
	for i := 0; i <= len(s); i++ {
		if i == len(s) || s[i] == ' ' || s[i] == '\n' {
			if start >= 0 {
				f = append(f, s[start:i])
				start = -1
			}
		} else if start < 0 {
			start = i
		}
	}
	return f
}

// kill signals m if it is still the process it was.
func (m member) kill(s syscall.Signal) {
	if f := statFields(m.pid); f != nil && f[19] == m.start {
		syscall.Kill(m.pid, s)
	}
}

// signalNames are the signals a host may name, in Linux' numbering for amd64 and arm64.
func signalNumber(name string) (syscall.Signal, bool) {
	for n, s := range signalNames {
		if s == name && n > 0 {
			return syscall.Signal(n), true
		}
	}
	return 0, false
}

func signalName(s syscall.Signal) string {
	if int(s) > 0 && int(s) < len(signalNames) {
		return signalNames[s]
	}
	return "SIG" + strconv.Itoa(int(s))
}

var signalNames = [...]string{
	1: "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE",
	"SIGKILL", "SIGUSR1", "SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT",
	"SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU",
	"SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS",
}
