package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// After the command has ended, something it left running may hold its pipes. What it
// wrote is waited for while it keeps coming, for so long at most; execSpec.linger is
// a longer lingerIdle.
const (
	lingerIdle = 500 * time.Millisecond
	lingerMax  = 5 * time.Second
)

type stopReason uint8

const (
	stopNone stopReason = iota
	stopTimeout
	stopCancelled
)

// execution is an exec being served. It has up to four parts: the process, a
// pump for each of its output pipes, and the feeder of its input. The last of
// the first three to end sends the final message.
type execution struct {
	v     *serving
	spec  execSpec
	start time.Time

	mu      sync.Mutex
	parts   int // process and pumps still going
	pid     int // 0 until started
	exited  bool
	exitAt  time.Time
	status  status
	outs    []*pump
	stdin   *os.File // our end of the input pipe, or the terminal
	stopped stopReason
	targets []member // who was asked to end
	killer  *time.Timer
	timeout *time.Timer
	done    bool
}

// pump copies one pipe of the command to the host.
type pump struct {
	f    *os.File
	ch   uint8
	left int // bytes that were in the pipe when the command ended and have not been sent
}

func newExecution(v *serving, spec execSpec) *execution {
	return &execution{v: v, spec: spec}
}

// run starts the command and becomes the pump of its output.
func (e *execution) run() {
	first, err := e.begin()
	if errors.Is(err, errCancelled) { // before it had begun
		e.v.result(Exit{Code: 128 + int(syscall.SIGTERM), Signal: "SIGTERM", Cancelled: true}.encode())
		return
	}
	if err != nil {
		e.v.fail(err, true)
		return
	}
	e.pump(first)
}

// begin starts the command. Everything opened here is closed on failure; nothing else has begun then.
func (e *execution) begin() (first *pump, err error) {
	s := e.v.sess.server
	id, err := s.users.lookup(e.spec.user, s.opts.Runner)
	if err != nil {
		return nil, err
	}
	if len(e.spec.argv) == 0 {
		return nil, errors.New("no command")
	}
	env := completeEnv(e.spec.env, id, s.environment(id))
	dir := e.spec.dir
	if dir == "" {
		dir = id.home
		if _, err := os.Stat(dir); err != nil {
			dir = "/"
		}
	}
	path, err := lookPath(e.spec.argv[0], dir, env)
	if err != nil {
		return nil, err
	}

	var ours []*os.File
	var theirs []int
	defer func() {
		for _, fd := range theirs {
			syscall.Close(fd)
		}
		if err != nil {
			for _, f := range ours {
				f.Close()
			}
		}
	}()
	sys := &syscall.SysProcAttr{Setsid: true, Credential: id.credential()}
	var files []uintptr
	if e.spec.tty {
		master, slave, err := openTerminal(TTY{e.spec.rows, e.spec.cols}, id)
		if err != nil {
			return nil, fmt.Errorf("terminal: %w", err)
		}
		ours, theirs = append(ours, master), append(theirs, slave)
		files = []uintptr{uintptr(slave), uintptr(slave), uintptr(slave)}
		sys.Setctty, sys.Ctty = true, 0
		e.outs = []*pump{{f: master, ch: chanOut}}
		e.stdin = master
	} else {
		files = make([]uintptr, 3)
		if e.spec.stdin {
			r, w, err := pipe()
			if err != nil {
				return nil, err
			}
			ours, theirs = append(ours, ourEnd(w, "stdin")), append(theirs, r)
			if err := own(r, id); err != nil {
				return nil, err
			}
			files[0] = uintptr(r)
			e.stdin = ours[len(ours)-1]
		} else {
			fd, err := syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("/dev/null: %w", err)
			}
			theirs = append(theirs, fd)
			files[0] = uintptr(fd)
		}
		for i, name := range []string{"stdout", "stderr"} {
			r, w, err := pipe()
			if err != nil {
				return nil, err
			}
			f := ourEnd(r, name)
			ours, theirs = append(ours, f), append(theirs, w)
			if err := own(w, id); err != nil {
				return nil, err
			}
			files[1+i] = uintptr(w)
			e.outs = append(e.outs, &pump{f: f, ch: chanOut + uint8(i)})
		}
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped != stopNone {
		return nil, errCancelled
	}
	e.start = time.Now()
	e.parts = 1 + len(e.outs)
	pid, err := s.procs.start(path, e.spec.argv, &syscall.ProcAttr{Dir: dir, Env: env, Files: files, Sys: sys}, e.exit)
	if err != nil {
		return nil, startError(path, dir, err)
	}
	e.pid = pid
	if e.spec.timeout > 0 {
		e.timeout = time.AfterFunc(e.spec.timeout, func() { e.stop(e.spec.stopSignal, e.spec.grace, stopTimeout) })
	}
	if e.spec.stdin {
		e.v.sess.wg.Go(e.feed)
	}
	for _, p := range e.outs[1:] {
		e.v.sess.wg.Go(func() { e.pump(p) })
	}
	return e.outs[0], nil
}

// startError says which of the things a start needs was missing; the system says only what was wrong.
func startError(path, dir string, err error) error {
	if st, e := os.Stat(dir); e != nil {
		return fmt.Errorf("working directory: %w", e)
	} else if !st.IsDir() {
		return &fs.PathError{Op: "working directory", Path: dir, Err: syscall.ENOTDIR}
	}
	if err == syscall.ENOENT {
		if _, e := os.Stat(path); e == nil {
			return &fs.PathError{Op: "start", Path: path, Err: fmt.Errorf("its interpreter is missing: %w", err)}
		}
	}
	return &fs.PathError{Op: "start", Path: path, Err: err}
}

// linger is how long a silent pipe is read after the command's end.
func (e *execution) linger() time.Duration {
	return min(max(e.spec.linger, lingerIdle), lingerMax)
}

// pump copies a pipe until its end, or until the command has ended and only others hold it.
func (e *execution) pump(p *pump) {
	room := e.v.sess.server.buffers.Get().(*[headerSize + MaxPayload]byte)
	defer e.v.sess.server.buffers.Put(room)
	buf := room[:]
	for {
		e.mu.Lock()
		exited, left := e.exited, p.left
		e.mu.Unlock()
		if exited {
			if left <= 0 && time.Since(e.exitAt) > lingerMax {
				break
			}
			p.f.SetReadDeadline(e.exitAt.Add(max(time.Since(e.exitAt)+lingerIdle, e.linger())))
		}
		n, err := p.f.Read(buf[headerSize:])
		if n > 0 {
			if e.v.send(p.ch, buf[:headerSize+n]) != nil {
				break
			}
			e.mu.Lock()
			p.left -= n
			e.mu.Unlock()
		}
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			e.mu.Lock()
			p.f.Close()
			p.f = nil
			e.mu.Unlock()
			break
		}
	}
	e.ended(p)
}

// exit is called when the process has ended.
func (e *execution) exit(st status) {
	e.mu.Lock() // begin holds it until everything is in place
	e.exited, e.exitAt, e.status = true, time.Now(), st
	if e.timeout != nil {
		e.timeout.Stop()
	}
	// Only after a pump has seen e.exited does it set a deadline itself; one that is reading now needs it from here.
	for _, p := range e.outs {
		if p.f != nil && e.parts > 1 {
			p.left = buffered(p.f)
			p.f.SetReadDeadline(e.exitAt.Add(e.linger()))
		}
	}
	e.mu.Unlock()
	e.ended(nil)
}

// ended is called by each part at its end; the last one reports.
func (e *execution) ended(p *pump) {
	e.mu.Lock()
	if p != nil && p.f != nil && !e.spec.tty {
		// Somebody still writes to it, who shall not die of a closed pipe because we stop listening.
		e.v.sess.server.drains.add(p.f)
		p.f = nil
	}
	if e.parts--; e.parts > 0 {
		e.mu.Unlock()
		return
	}
	e.done = true
	if e.killer != nil && e.killer.Stop() {
		e.v.sess.wg.Done()
	}
	x := Exit{
		TimedOut:  e.stopped == stopTimeout,
		Cancelled: e.stopped == stopCancelled,
		Duration:  e.exitAt.Sub(e.start),
		UserTime:  time.Duration(e.status.ru.Utime.Nano()),
		SysTime:   time.Duration(e.status.ru.Stime.Nano()),
		MaxRSS:    e.status.ru.Maxrss << 10,
	}
	e.mu.Unlock()
	if ws := e.status.ws; ws.Signaled() {
		x.Signal, x.Code = signalName(ws.Signal()), 128+int(ws.Signal())
	} else {
		x.Code = ws.ExitStatus()
	}
	e.v.result(x.encode())
	e.v.once.Do(func() { close(e.v.cancelled) }) // ends the feeder
	if e.stdin != nil {
		e.stdin.Close()
	}
}

// feed copies the host's input to the command.
func (e *execution) feed() {
	err := e.v.consume(func(p []byte) error {
		_, err := e.stdin.Write(p)
		return err
	})
	if err == nil && e.spec.tty {
		e.stdin.Write([]byte{4}) // end of file, as a terminal says it
		return
	}
	if !e.spec.tty {
		e.stdin.Close()
	}
}

// stop asks the command's processes to end and kills them after the grace. It may come at any time, and twice.
func (e *execution) stop(name string, grace time.Duration, why stopReason) {
	sig, ok := signalNumber(name)
	if !ok {
		sig = syscall.SIGTERM
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done {
		return
	}
	if e.stopped == stopNone && !e.exited {
		e.stopped = why
	}
	if e.pid == 0 {
		return // begin will see it
	}
	if e.exited {
		for _, p := range e.outs { // whoever lingers need not
			if p.f != nil {
				p.f.SetReadDeadline(time.Unix(1, 0))
			}
		}
		return
	}
	if grace <= 0 || sig == syscall.SIGKILL {
		e.killLocked()
		return
	}
	e.targets = members(e.pid)
	e.v.sess.server.procs.signal(e.pid, sig)
	for _, m := range e.targets {
		if m.pid != e.pid {
			m.kill(sig)
		}
	}
	if e.killer == nil {
		e.v.sess.wg.Add(1)
		e.killer = time.AfterFunc(grace, func() {
			defer e.v.sess.wg.Done()
			e.mu.Lock()
			defer e.mu.Unlock()
			if !e.done {
				e.killLocked()
			}
		})
	}
}

// killLocked ends what is left of the command's processes. Those they start meanwhile are found in
// another round: what is dead is no longer there to start more.
func (e *execution) killLocked() {
	procs := e.v.sess.server.procs
	targets := e.targets
	for range 4 {
		targets = append(targets, members(e.pid)...)
		procs.signal(e.pid, syscall.SIGKILL)
		for _, m := range targets {
			m.kill(syscall.SIGKILL)
		}
		if len(targets) == 0 {
			return
		}
		targets = nil
	}
}

func (e *execution) signal(s syscall.Signal) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pid != 0 && !e.exited {
		e.v.sess.server.procs.signal(e.pid, s)
	}
}

func (e *execution) resize(t TTY) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.spec.tty && e.stdin != nil && !e.done {
		setSize(e.stdin, t)
	}
}

// pipe returns a pipe of plain descriptors.
func pipe() (r, w int, err error) {
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		return 0, 0, fmt.Errorf("pipe: %w", err)
	}
	return p[0], p[1], nil
}

// own gives a pipe to the command's user: who opens /dev/stdout opens the pipe anew,
// and has to be allowed to.
func own(fd int, id identity) error {
	if id.credential() == nil {
		return nil
	}
	if err := syscall.Fchown(fd, id.uid, id.gid); err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	return nil
}

// ourEnd makes an end of a pipe a file whose reads and writes can be interrupted; the command's end stays blocking.
func ourEnd(fd int, name string) *os.File {
	syscall.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var e syscall.Errno
	if err := raw.Control(func(fd uintptr) {
		_, _, e = syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(arg))
	}); err != nil {
		return err
	}
	if e != 0 {
		return e
	}
	return nil
}

// buffered returns how many bytes can be read from f at once.
func buffered(f *os.File) int {
	var n int32
	if ioctl(f, syscall.TIOCINQ, unsafe.Pointer(&n)) != nil { // FIONREAD
		return 0
	}
	return int(n)
}

// openTerminal opens a new terminal and returns both its ends.
func openTerminal(size TTY, id identity) (master *os.File, slave int, err error) {
	fd, err := syscall.Open("/dev/ptmx", syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, &fs.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	master = os.NewFile(uintptr(fd), "terminal")
	var number, unlock int32
	if err = ioctl(master, syscall.TIOCGPTN, unsafe.Pointer(&number)); err == nil {
		err = ioctl(master, syscall.TIOCSPTLCK, unsafe.Pointer(&unlock))
	}
	if err == nil {
		path := fmt.Sprintf("/dev/pts/%d", number)
		if slave, err = syscall.Open(path, syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0); err == nil {
			if id.credential() != nil {
				syscall.Fchown(slave, id.uid, 5)
			}
			if size.Rows > 0 && size.Cols > 0 {
				setSize(master, size)
			}
			return master, slave, nil
		}
		err = &fs.PathError{Op: "open", Path: path, Err: err}
	}
	master.Close()
	return nil, 0, err
}

func setSize(f *os.File, t TTY) error {
	ws := [4]uint16{t.Rows, t.Cols}
	return ioctl(f, syscall.TIOCSWINSZ, unsafe.Pointer(&ws))
}

// completeEnv adds what every command expects to find.
func completeEnv(env []string, id identity, more []string) []string {
	have := map[string]bool{}
	for _, kv := range env {
		k, _, _ := strings.Cut(kv, "=")
		have[k] = true
	}
	env = env[:len(env):len(env)]
	for _, kv := range append(more[:len(more):len(more)],
		"PATH="+systemPath, "HOME="+id.home, "USER="+id.name, "LOGNAME="+id.name, "SHELL="+id.shell,
	) {
		if k, _, _ := strings.Cut(kv, "="); !have[k] {
			have[k] = true
			env = append(env, kv)
		}
	}
	return env
}

// maxEnvironment bounds the file of [Options].Environment.
const maxEnvironment = 64 << 10

// environment reads what every command's environment has, and has programs looked
// for where a user's own tools (pip) put theirs first. A file that is not there, or is
// no such file, says nothing.
func (s *Server) environment(id identity) (env []string) {
	if s.opts.Environment == "" {
		return nil
	}
	f, err := os.OpenFile(s.opts.Environment, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a job may make a pipe of it
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	path := systemPath
	defer func() {
		if id.uid != 0 && len(id.home) > 1 {
			path = id.home + "/.local/bin:" + path
		}
		env = append(env, "PATH="+path)
	}()
	b, err := io.ReadAll(io.LimitReader(f, maxEnvironment))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if k, v, ok := strings.Cut(line, "="); ok && k != "" && !strings.HasPrefix(line, "#") && !strings.Contains(line, "\x00") {
			if v = strings.Trim(v, `"`); k == "PATH" {
				path = v // an imported image knows where its programs are
				continue
			}
			env = append(env, k+"="+v)
		}
	}
	return env
}

// lookPath finds a program as execvp would, in the command's own PATH and directory.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v // the last one counts
		}
	}
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		p := filepath.Join(d, name)
		var st syscall.Stat_t
		if syscall.Stat(p, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFREG && st.Mode&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%q: not found in PATH (%s): %w", name, path, syscall.ENOENT)
}

// drains empties pipes that commands left in the hands of others.
type drains struct {
	mu     sync.Mutex
	files  map[*os.File]bool
	closed bool
	wg     sync.WaitGroup
}

// maxDrains bounds them; a job that leaves more behind gets closed pipes.
const maxDrains = 256

func (d *drains) add(f *os.File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || len(d.files) >= maxDrains {
		f.Close()
		return
	}
	if d.files == nil {
		d.files = map[*os.File]bool{}
	}
	d.files[f] = true
	d.wg.Go(func() {
		f.SetReadDeadline(time.Time{})
		buf := make([]byte, 4096)
		for {
			if _, err := f.Read(buf); err != nil {
				break
			}
		}
		f.Close()
		d.mu.Lock()
		delete(d.files, f)
		d.mu.Unlock()
	})
}

func (d *drains) close() {
	d.mu.Lock()
	d.closed = true
	for f := range d.files {
		f.Close()
	}
	d.mu.Unlock()
	d.wg.Wait()
}

// floor runs a command n times and returns how long each took, as 8 bytes each.
func (s *Server) floor(ctx context.Context, argv []string, n int) ([]byte, error) {
	if len(argv) == 0 || n < 1 || n > maxBenchRuns {
		return nil, fmt.Errorf("a command and 1 to %d runs, please", maxBenchRuns)
	}
	id, err := s.users.lookup("", s.opts.Runner)
	if err != nil {
		return nil, err
	}
	env := completeEnv(nil, id, s.environment(id))
	path, err := lookPath(argv[0], "/", env)
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	fd := null.Fd()
	attr := &syscall.ProcAttr{Dir: "/", Env: env, Files: []uintptr{fd, fd, fd},
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: id.credential()}}
	var out []byte
	ended := make(chan status, 1)
	for range n {
		if ctx.Err() != nil {
			return nil, errCancelled
		}
		start := time.Now()
		if _, err := s.procs.start(path, argv, attr, func(st status) { ended <- st }); err != nil {
			return nil, startError(path, "/", err)
		}
		<-ended
		out = binary.BigEndian.AppendUint64(out, uint64(time.Since(start)))
	}
	return out, nil
}
