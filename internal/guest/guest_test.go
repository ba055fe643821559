package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

func TestMain(m *testing.M) {
	if os.Getenv("GUEST_TEST_INIT") != "" {
		serveAsInit()
		return
	}
	before := openFiles()
	code := m.Run()
	fuzzing := flag.Lookup("test.fuzz").Value.String() != "" // that engine keeps goroutines and files of its own
	if code == 0 && !fuzzing {
		code = leaks(before)
	}
	os.Exit(code)
}

func openFiles() int {
	d, _ := os.ReadDir("/proc/self/fd")
	return len(d)
}

// leaks says what the tests left: goroutines, files, children.
func leaks(files int) int {
	var what string
	for range 100 {
		what = ""
		if n := runtime.NumGoroutine(); n > 1 {
			buf := make([]byte, 1<<20)
			what += fmt.Sprintf("%d goroutines are left:\n%s\n", n, buf[:runtime.Stack(buf, true)])
		}
		if n := openFiles(); n > files+2 { // the poller's own
			what += fmt.Sprintf("%d files are open, %d before\n", n, files)
		}
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid())); len(bytes.TrimSpace(b)) > 0 {
			what += fmt.Sprintf("children are left: %s\n", b)
		}
		if what == "" {
			return 0
		}
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Fprint(os.Stderr, "LEAK: ", what)
	return 1
}

// serveHere returns a client of a server on this host, both ended with the test.
func serveHere(t testing.TB, opts Options) *Client {
	t.Helper()
	dial := serverHere(t, opts)
	c, err := Connect(t.Context(), dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// serverHere runs a server whose connections are Unix sockets, until the end of the test.
func serverHere(t testing.TB, opts Options) func(context.Context) (net.Conn, error) {
	t.Helper()
	s := NewServer(opts)
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		served.Wait()
		s.Close()
	})
	return func(context.Context) (net.Conn, error) {
		host, agent, err := socketPair()
		if err != nil {
			return nil, err
		}
		served.Go(func() {
			defer agent.Close()
			s.Serve(ctx, agent)
		})
		return host, nil
	}
}

func socketPair() (a, b net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conns[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			return nil, nil, err
		}
	}
	return conns[0], conns[1], nil
}

// run runs a shell script and returns its output and how it ended.
func run(t testing.TB, c *Client, script string, change ...func(*Cmd)) (string, Exit) {
	t.Helper()
	var out bytes.Buffer
	cmd := Cmd{Argv: []string{"sh", "-c", script}, Stdout: &out, Stderr: &out, Dir: "/", Timeout: 30 * time.Second}
	for _, f := range change {
		f(&cmd)
	}
	exit, err := c.Exec(t.Context(), cmd)
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out.String(), exit
}

func TestExec(t *testing.T) {
	c := serveHere(t, Options{Release: "test"})
	if h := c.Hello(); h.Release != "test" || h.PID != os.Getpid() || h.Version != ProtocolVersion || h.CPUs < 1 || h.Memory < 1 {
		t.Errorf("Hello = %+v", h)
	}
	var out, errs bytes.Buffer
	exit, err := c.Exec(t.Context(), Cmd{
		Argv: []string{"sh", "-c", `cat; echo "$A" >&2; pwd; exit 3`}, Env: []string{"A=b c"}, Dir: "/tmp",
		Stdin: strings.NewReader("hello\n"), Stdout: &out, Stderr: &errs, Timeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	if exit.Code != 3 || exit.Signal != "" || exit.OK() || exit.Duration <= 0 || exit.MaxRSS <= 0 {
		t.Errorf("exit = %+v", exit)
	}
	if out.String() != "hello\n/tmp\n" || errs.String() != "b c\n" {
		t.Errorf("out %q, err %q", &out, &errs)
	}
}

func TestExecEnds(t *testing.T) {
	c := serveHere(t, Options{})
	for _, tt := range []struct {
		script string
		want   Exit
	}{
		{"true", Exit{}},
		{"exit 77", Exit{Code: 77}},
		{"kill -SEGV $$", Exit{Code: 139, Signal: "SIGSEGV"}},
		{"kill -KILL $$", Exit{Code: 137, Signal: "SIGKILL"}},
	} {
		_, got := run(t, c, tt.script)
		got.Duration, got.UserTime, got.SysTime, got.MaxRSS = 0, 0, 0, 0
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.script, got, tt.want)
		}
	}
}

func TestExecCannotStart(t *testing.T) {
	c := serveHere(t, Options{})
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	os.WriteFile(script, []byte("#!/no/such/shell\n"), 0o755)
	for _, tt := range []struct {
		name string
		cmd  Cmd
		is   error
		text string
	}{
		{"no program", Cmd{Argv: []string{"/no/such/program"}}, fs.ErrNotExist, "/no/such/program"},
		{"not in PATH", Cmd{Argv: []string{"no-such-program"}}, fs.ErrNotExist, "PATH"},
		{"PATH of the command", Cmd{Argv: []string{"sh"}, Env: []string{"PATH=/nowhere"}}, fs.ErrNotExist, "/nowhere"},
		{"no directory", Cmd{Argv: []string{"true"}, Dir: "/no/such/dir"}, fs.ErrNotExist, "working directory"},
		{"a file as directory", Cmd{Argv: []string{"true"}, Dir: script}, syscall.ENOTDIR, "working directory"},
		{"no user", Cmd{Argv: []string{"true"}, User: "nobody-at-all"}, nil, "nobody-at-all"},
		{"no interpreter", Cmd{Argv: []string{script}}, fs.ErrNotExist, "interpreter"},
		{"not executable", Cmd{Argv: []string{"/etc/passwd"}}, fs.ErrPermission, "/etc/passwd"},
	} {
		_, err := c.Exec(t.Context(), tt.cmd)
		if !StartFailed(err) || errors.Is(err, ErrLost) || !strings.Contains(fmt.Sprint(err), tt.text) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%s: %v is not %v", tt.name, err, tt.is)
		}
	}
	if _, err := c.Exec(t.Context(), Cmd{}); err == nil {
		t.Error("an empty command was run")
	}
}

// A machine's environment file is beneath what a command is given; whatever a job
// makes of it, commands start.
func TestExecEnvironmentFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "environment")
	c := serveHere(t, Options{Environment: file})
	say := func() string {
		t.Helper()
		out, _ := run(t, c, `echo "$A|$B|$X|$HOME"`, func(cmd *Cmd) { cmd.Env = []string{"X=1", "HOME=/else"} })
		return strings.TrimSpace(out)
	}
	if got := say(); got != "||1|/else" {
		t.Error(got)
	}
	if err := os.WriteFile(file, []byte("# no\nA=a b\nB=\"c\"\nX=2\nnonsense\n=x\nA=again\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := say(); got != "a b|c|1|/else" {
		t.Error(got)
	}
	if err := os.WriteFile(file, []byte("PATH=\"/odd:/usr/bin:/bin\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, _ := run(t, c, `echo "$PATH"`); !strings.HasSuffix(strings.TrimSpace(out), "/odd:/usr/bin:/bin") {
		t.Errorf("PATH of the file: %s", out)
	}
	os.Remove(file)
	if err := syscall.Mkfifo(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := say(); got != "||1|/else" {
		t.Errorf("of a pipe: %s", got)
	}
}

func TestExecEnvironment(t *testing.T) {
	c := serveHere(t, Options{})
	out, _ := run(t, c, `echo "$PATH|$HOME|$USER|$X"`, func(cmd *Cmd) { cmd.Env = []string{"X=1", "HOME=/else"} })
	if want := systemPath + "|/else|"; !strings.HasPrefix(out, want) || !strings.HasSuffix(out, "|1\n") {
		t.Errorf("%q", out)
	}
	if os.Geteuid() == 0 {
		out, _ = run(t, c, `id -u; id -g; id -G; echo $HOME $USER`, func(cmd *Cmd) { cmd.User = "nobody" })
		want, _ := exec.Command("sh", "-c", `id -u nobody; id -g nobody; id -G nobody; getent passwd nobody | cut -d: -f6 | tr '\n' ' '; echo nobody`).Output()
		if out != string(want) {
			t.Errorf("as nobody: %q, want %q", out, want)
		}
		if out, _ = run(t, c, `id -u; id -g`, func(cmd *Cmd) { cmd.User = "12345:54321" }); out != "12345\n54321\n" {
			t.Errorf("as 12345:54321: %q", out)
		}
	}
	// Larger than a frame: arguments of 300 kB.
	long := strings.Repeat("x", 100_000)
	out, _ = run(t, c, `echo ${#A} ${#B} ${#C}`, func(cmd *Cmd) { cmd.Env = []string{"A=" + long, "B=" + long, "C=" + long} })
	if out != "100000 100000 100000\n" {
		t.Errorf("large environment: %q", out)
	}
	if _, err := c.Exec(t.Context(), Cmd{Argv: []string{"true", strings.Repeat("x", MaxRequest)}}); err == nil || c.Err() != nil {
		t.Errorf("a request that is too large: %v; connection: %v", err, c.Err())
	}
}

func TestExecOutput(t *testing.T) {
	c := serveHere(t, Options{})
	t.Run("order and bytes", func(t *testing.T) {
		out, _ := run(t, c, `printf 'a\377\000b'; sleep 0.01; printf 'no newline' >&2`)
		if out != "a\xff\x00bno newline" {
			t.Errorf("%q", out)
		}
	})
	t.Run("large", func(t *testing.T) {
		const size = 100 << 20
		h := sha256.New()
		exit, err := c.Exec(t.Context(), Cmd{Argv: []string{"sh", "-c", fmt.Sprintf("head -c %d /dev/zero", size)}, Stdout: h})
		if err != nil || !exit.OK() {
			t.Fatal(exit, err)
		}
		want := sha256.New()
		io.CopyN(want, zeros{}, size)
		if !bytes.Equal(h.Sum(nil), want.Sum(nil)) {
			t.Error("not what was printed")
		}
	})
	t.Run("two streams", func(t *testing.T) {
		var out, errs counter
		exit, err := c.Exec(t.Context(), Cmd{Argv: []string{"sh", "-c", "head -c 5000000 /dev/zero & head -c 7000000 /dev/zero >&2; wait"}, Stdout: &out,
			Stderr: &errs})
		if err != nil || !exit.OK() || out.n != 5000000 || errs.n != 7000000 {
			t.Error(exit, err, out.n, errs.n)
		}
	})
	t.Run("discarded", func(t *testing.T) {
		if exit, err := c.Exec(t.Context(), Cmd{Argv: []string{"head", "-c", "5000000", "/dev/zero"}}); err != nil || !exit.OK() {
			t.Error(exit, err)
		}
	})
	t.Run("writer fails", func(t *testing.T) {
		full := errors.New("disk full")
		for _, timeout := range []time.Duration{0, time.Minute} {
			_, err := c.Exec(context.Background(), Cmd{Argv: []string{"yes"}, Timeout: timeout, Stdout: writerFunc(func([]byte) (int, error) { return 0, full })})
			if !errors.Is(err, full) || errors.Is(err, ErrLost) {
				t.Error(err)
			}
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type counter struct{ n int }

func (c *counter) Write(p []byte) (int, error) { c.n += len(p); return len(p), nil }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A command with endless output and a consumer that does not take it must stop at its
// own pipe: neither memory nor other requests notice.
func TestExecBackPressure(t *testing.T) {
	c := serveHere(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	blocked, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	ended := make(chan Exit, 1)
	go func() {
		exit, _ := c.Exec(ctx, Cmd{Argv: []string{"yes"}, Grace: time.Second, Stdout: writerFunc(func(p []byte) (int, error) {
			once.Do(func() { close(blocked); <-release })
			return len(p), nil
		})})
		ended <- exit
	}()
	<-blocked
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 20 {
		if out, _ := run(t, c, "echo still here"); out != "still here\n" {
			t.Fatal(out)
		}
	}
	if got, err := c.ReadFile(t.Context(), "/etc/passwd", 1<<20); err != nil || len(got) == 0 {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 32<<20 {
		t.Errorf("heap grew by %d bytes", grown)
	}
	cancel()
	close(release)
	if exit := <-ended; !exit.Cancelled || exit.Signal != "SIGTERM" {
		t.Errorf("%+v", exit)
	}
}

func TestExecStdin(t *testing.T) {
	c := serveHere(t, Options{})
	t.Run("large", func(t *testing.T) {
		const size = 20 << 20
		out, exit := run(t, c, "wc -c", func(cmd *Cmd) { cmd.Stdin = io.LimitReader(zeros{}, size) })
		if strings.TrimSpace(out) != strconv.Itoa(size) || !exit.OK() {
			t.Error(out, exit)
		}
	})
	t.Run("both ways", func(t *testing.T) {
		const size = 20 << 20
		var out counter
		exit, err := c.Exec(t.Context(), Cmd{Argv: []string{"cat"}, Stdin: io.LimitReader(zeros{}, size), Stdout: &out})
		if err != nil || !exit.OK() || out.n != size {
			t.Error(exit, err, out.n)
		}
	})
	t.Run("not read", func(t *testing.T) {
		if _, exit := run(t, c, "exit 4", func(cmd *Cmd) { cmd.Stdin = zeros{} }); exit.Code != 4 {
			t.Error(exit)
		}
	})
	t.Run("fails", func(t *testing.T) {
		bad := errors.New("bad disk")
		_, err := c.Exec(t.Context(), Cmd{Argv: []string{"cat"}, Stdin: io.MultiReader(strings.NewReader("x"), errReader{bad}), Grace: time.Second})
		if !errors.Is(err, bad) {
			t.Error(err)
		}
	})
	t.Run("none", func(t *testing.T) {
		if out, _ := run(t, c, "cat; echo end"); out != "end\n" {
			t.Error(out)
		}
	})
	t.Run("never ends", func(t *testing.T) {
		r, w := io.Pipe()
		defer w.Close()
		if _, exit := run(t, c, "exit 5", func(cmd *Cmd) { cmd.Stdin = r }); exit.Code != 5 {
			t.Error(exit)
		}
	})
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestExecTimeout(t *testing.T) {
	c := serveHere(t, Options{})
	quick := func(cmd *Cmd) { cmd.Timeout, cmd.Grace = 100*time.Millisecond, 10*time.Second }
	t.Run("by SIGTERM", func(t *testing.T) {
		_, exit := run(t, c, "sleep 100 & wait", quick)
		if !exit.TimedOut || exit.Signal != "SIGTERM" || exit.OK() {
			t.Errorf("%+v", exit)
		}
	})
	t.Run("says goodbye", func(t *testing.T) {
		out, exit := run(t, c, `trap 'echo bye; exit 0' TERM; sleep 100 & wait`, quick)
		if !exit.TimedOut || out != "bye\n" || exit.OK() {
			t.Errorf("%q %+v", out, exit)
		}
	})
	t.Run("by SIGKILL", func(t *testing.T) {
		_, exit := run(t, c, `trap '' TERM; while :; do sleep 0.01; done`, quick, func(cmd *Cmd) { cmd.Grace = 100 * time.Millisecond })
		if !exit.TimedOut || exit.Signal != "SIGKILL" {
			t.Errorf("%+v", exit)
		}
	})
	t.Run("by a signal of its own", func(t *testing.T) {
		_, exit := run(t, c, "sleep 100", quick, func(cmd *Cmd) { cmd.StopSignal = "SIGINT" })
		if !exit.TimedOut || exit.Signal != "SIGINT" {
			t.Errorf("%+v", exit)
		}
	})
}

// alive says which of the processes whose numbers a file lists still live.
func alive(t *testing.T, file string) (pids []int) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for f := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		if s := statFields(pid); s != nil && s[0] != "Z" {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestExecKillsGrandchildren(t *testing.T) {
	c := serveHere(t, Options{})
	file := filepath.Join(t.TempDir(), "pids")
	// One in the process group, one in a group of its own, one in a session of its own; all hold the pipes and ignore SIGTERM.
	script := `trap '' TERM
sleep 1000 & echo $! >>` + file + `
sh -c 'set -m; sleep 1000 & echo $! >>` + file + `; wait' &
setsid sh -c 'echo $$ >>` + file + `; while :; do sleep 1; done' &
while [ $(wc -l <` + file + `) -lt 3 ]; do sleep 0.01; done
echo ready; wait`
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	exit, err := c.Exec(ctx, Cmd{Argv: []string{"sh", "-c", script}, Grace: 50 * time.Millisecond,
		Stdout: writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })})
	if err != nil {
		t.Fatal(err)
	}
	if !exit.Cancelled || exit.Signal != "SIGKILL" {
		t.Errorf("%+v", exit)
	}
	waitFor(t, func() bool { return len(alive(t, file)) == 0 })
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("it did not happen within 5 s")
}

// What a command leaves running holds its pipes. The result does not wait for it, and it
// must be able to go on writing.
func TestExecLeavesDaemon(t *testing.T) {
	t.Parallel()
	c := serveHere(t, Options{})
	dir := t.TempDir()
	start := time.Now()
	out, exit := run(t, c, `cd `+dir+`; (while [ ! -e stop ]; do echo noise; sleep 0.01; done; echo fine >done) & echo started`)
	if !exit.OK() || !strings.Contains(out, "started\n") {
		t.Errorf("%q %+v", out, exit)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
	os.WriteFile(filepath.Join(dir, "stop"), nil, 0o644)
	waitFor(t, func() bool { b, _ := os.ReadFile(filepath.Join(dir, "done")); return string(b) == "fine\n" })
}

// What was written before the end arrives, although something else holds the pipe and the consumer is slow.
func TestExecOutputBeforeEndArrives(t *testing.T) {
	t.Parallel()
	c := serveHere(t, Options{})
	var out counter
	exit, err := c.Exec(t.Context(), Cmd{
		Argv: []string{"sh", "-c", "sleep 2 & head -c 1000000 /dev/zero"},
		Stdout: writerFunc(func(p []byte) (int, error) {
			time.Sleep(10 * time.Millisecond)
			return out.Write(p)
		}),
	})
	if err != nil || !exit.OK() || out.n != 1000000 {
		t.Error(exit, err, out.n)
	}
}

func TestExecCancel(t *testing.T) {
	c := serveHere(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	exit, err := c.Exec(ctx, Cmd{Argv: []string{"sh", "-c", "echo up; sleep 100"},
		Stdout: writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })})
	if err != nil || !exit.Cancelled || exit.OK() || exit.Signal != "SIGTERM" {
		t.Error(exit, err)
	}
	if _, err := c.Exec(ctx, Cmd{Argv: []string{"true"}}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestExecSignal(t *testing.T) {
	c := serveHere(t, Options{})
	up := make(chan struct{})
	var out bytes.Buffer
	p, err := c.Start(t.Context(), Cmd{
		Argv: []string{"sh", "-c", `trap 'echo usr1; exit 9' USR1; echo up; while :; do sleep 0.01; done`},
		Stdout: writerFunc(func(b []byte) (int, error) {
			if out.Len() == 0 {
				close(up)
			}
			return out.Write(b)
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-up; p.Signal("SIGUSR1") }()
	exit, err := p.Wait()
	if err != nil || exit.Code != 9 || out.String() != "up\nusr1\n" {
		t.Error(exit, err, out.String())
	}
	if err := p.Signal("SIGNONSENSE"); err == nil {
		t.Error("no such signal")
	}
}

func TestExecTerminal(t *testing.T) {
	c := serveHere(t, Options{})
	var out bytes.Buffer
	exit, err := c.Exec(t.Context(), Cmd{
		Argv: []string{"sh", "-c", `test -t 0 && test -t 1 && test -t 2 && stty size; read x; echo "got $x"; exit 6`},
		TTY:  &TTY{Rows: 33, Cols: 77}, Stdin: strings.NewReader("typed\n"), Stdout: &out,
	})
	if err != nil || exit.Code != 6 {
		t.Fatal(exit, err)
	}
	if s := out.String(); !strings.Contains(s, "33 77\r\n") || !strings.Contains(s, "got typed\r\n") {
		t.Errorf("%q", s)
	}
	// The window is resized; ctrl-C comes through the line discipline.
	r, w := io.Pipe()
	defer w.Close()
	out.Reset()
	sized := make(chan struct{})
	p, err := c.Start(t.Context(), Cmd{
		Argv: []string{"sh", "-c", `trap 'stty size' WINCH; trap 'echo int; exit 8' INT; echo up; while :; do sleep 0.02; done`},
		TTY:  &TTY{Rows: 10, Cols: 20}, Stdin: r,
		Stdout: writerFunc(func(b []byte) (int, error) {
			out.Write(b)
			if strings.Contains(out.String(), "44 55") {
				select {
				case <-sized:
				default:
					close(sized)
				}
			}
			return len(b), nil
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			p.Resize(TTY{Rows: 44, Cols: 55})
			select {
			case <-sized:
				w.Write([]byte{3})
				return
			case <-time.After(50 * time.Millisecond):
				p.Resize(TTY{Rows: 1, Cols: 1}) // until the trap is set no change is seen
			}
		}
	}()
	exit, err = p.Wait()
	if err != nil || exit.Code != 8 || !strings.Contains(out.String(), "int") {
		t.Error(exit, err, out.String())
	}
}

func TestManyAtOnce(t *testing.T) {
	c := serveHere(t, Options{})
	var wg sync.WaitGroup
	for i := range MaxStreams + 20 {
		wg.Go(func() {
			var out bytes.Buffer
			exit, err := c.Exec(t.Context(), Cmd{Argv: []string{"sh", "-c", "cat; exit " + strconv.Itoa(i%100)},
				Stdin: strings.NewReader(strconv.Itoa(i)), Stdout: &out})
			if err != nil || exit.Code != i%100 || out.String() != strconv.Itoa(i) {
				t.Error(i, exit, err, out.String())
			}
		})
	}
	wg.Wait()
}

func TestPingFloorUsageSync(t *testing.T) {
	c := serveHere(t, Options{})
	if d, err := c.Ping(t.Context()); err != nil || d <= 0 {
		t.Error(d, err)
	}
	d, err := c.Floor(t.Context(), []string{"true"}, 5)
	if err != nil || len(d) != 5 || d[0] <= 0 {
		t.Error(d, err)
	}
	if _, err := c.Floor(t.Context(), []string{"true"}, maxBenchRuns+1); err == nil {
		t.Error("too many runs")
	}
	if _, err := c.Floor(t.Context(), []string{"/no/such"}, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	u, err := c.Usage(t.Context())
	if err != nil || u.MemTotal <= 0 || u.MemAvailable <= 0 || u.CPUUser <= 0 || u.CPUIdle <= 0 || u.DiskTotal <= 0 || u.Uptime <= 0 || u.Processes <= 0 ||
		u.AgentMemory <= 0 {
		t.Errorf("%+v %v", u, err)
	}
	if err := c.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	// This server is no machine's.
	if err := c.Poweroff(t.Context()); err == nil {
		t.Error("powered the host off")
	}
	if err := c.Resume(t.Context(), Identity{Hostname: "x"}); err == nil {
		t.Error("renamed the host")
	}
	if c.Err() != nil {
		t.Error(c.Err())
	}
}

type fakeSystem struct {
	id  Identity
	off chan struct{}
}

func (f *fakeSystem) Resume(id Identity) error {
	f.id = id
	if id.Hostname == "bad" {
		return errors.New("bad name")
	}
	return nil
}
func (f *fakeSystem) Poweroff() { close(f.off) }

func TestResumePoweroff(t *testing.T) {
	sys := &fakeSystem{off: make(chan struct{})}
	c := serveHere(t, Options{System: sys})
	id := Identity{Hostname: "h", Time: time.Unix(1, 5), Entropy: []byte{1, 2, 0}, MachineID: "m", BootID: "b",
		IP: "10.0.2.15/24", Gateway: "10.0.2.2", DNS: "10.0.2.3", MAC: "aa:bb:cc:dd:ee:ff"}
	if err := c.Resume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(sys.id) != fmt.Sprint(id) {
		t.Errorf("%+v", sys.id)
	}
	if err := c.Resume(t.Context(), Identity{Hostname: "bad"}); err == nil || !strings.Contains(err.Error(), "bad name") {
		t.Error(err)
	}
	if err := c.Poweroff(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-sys.off
}

// serveAsInit is what TestReapAll runs in a process of its own: a server that takes every orphan's status.
func serveAsInit() {
	const setChildSubreaper = 36
	if _, _, e := syscall.RawSyscall(syscall.SYS_PRCTL, setChildSubreaper, 1, 0); e != 0 {
		panic(e)
	}
	conn, err := net.FileConn(os.NewFile(3, "conn"))
	if err != nil {
		panic(err)
	}
	s := NewServer(Options{ReapAll: true})
	s.Serve(context.Background(), conn)
}

// As a machine's first process the server waits for orphans, and still learns how its own children ended.
func TestReapAll(t *testing.T) {
	host, agent, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	f, err := agent.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "GUEST_TEST_INIT=1")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	agent.Close()
	c, err := New(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer c.Close()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			// Two orphans each, one of which outlives the command.
			_, exit := run(t, c, "(sleep 0.01 >/dev/null 2>&1 &) ; (true &) ; exit "+strconv.Itoa(i))
			if exit.Code != i {
				t.Error(i, exit)
			}
		})
	}
	wg.Wait()
	waitFor(t, func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		return err == nil && len(bytes.TrimSpace(b)) == 0
	})
	// And after there was nobody left to wait for:
	if _, exit := run(t, c, "exit 3"); exit.Code != 3 {
		t.Error(exit)
	}
}

// The field of siginfo_t that waitid reads is where it is read.
func TestWaitid(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid, err := waitid(pPID, cmd.Process.Pid)
	if err != nil || pid != cmd.Process.Pid {
		t.Error(pid, err, unsafe.Sizeof(pid))
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func BenchmarkExec(b *testing.B) {
	c := serveHere(b, Options{})
	for b.Loop() {
		if exit, err := c.Exec(b.Context(), Cmd{Argv: []string{"/bin/true"}}); err != nil || !exit.OK() {
			b.Fatal(exit, err)
		}
	}
}

func BenchmarkFloor(b *testing.B) {
	c := serveHere(b, Options{})
	for b.Loop() {
		if _, err := c.Floor(b.Context(), []string{"/bin/true"}, 1); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOutput(b *testing.B) {
	c := serveHere(b, Options{})
	b.SetBytes(64 << 20)
	for b.Loop() {
		if exit, err := c.Exec(b.Context(), Cmd{Argv: []string{"head", "-c", "67108864", "/dev/zero"}}); err != nil || !exit.OK() {
			b.Fatal(exit, err)
		}
	}
}

// A command's user may open its pipes anew, by every name they have.
func TestExecOwnsItsPipes(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can run commands as somebody else")
	}
	c := serveHere(t, Options{})
	script := `cd / && echo a > /dev/stdout && echo b | tee /dev/stderr && echo c > /proc/self/fd/1 && exec 3>&1 && echo d > /dev/fd/3 && cat /dev/stdin`
	var out, errs strings.Builder
	exit, err := c.Exec(t.Context(), Cmd{Argv: []string{"sh", "-c", script}, User: "65534:65534", Stdin: strings.NewReader("e\n"), Stdout: &out, Stderr: &errs})
	if err != nil || !exit.OK() || out.String() != "a\nb\nc\nd\ne\n" || errs.String() != "b\n" {
		t.Errorf("%v %v %q %q", exit, err, out.String(), errs.String())
	}
}

// What a command leaves running may go on writing for a while: as long as is asked.
func TestExecLinger(t *testing.T) {
	c := serveHere(t, Options{})
	script := "(sleep 1.2; echo late) & echo now"
	if out, _ := run(t, c, script); out != "now\n" {
		t.Errorf("%q", out)
	}
	if out, _ := run(t, c, script, func(cmd *Cmd) { cmd.Linger = 5 * time.Second }); out != "now\nlate\n" {
		t.Errorf("%q", out)
	}
}

// A command that does not heed its signal gets SIGTERM, and is killed in the end.
func TestExecUrge(t *testing.T) {
	c := serveHere(t, Options{})
	for script, want := range map[string]struct{ out, signal string }{
		`trap '' INT; trap 'echo term; exit 3' TERM; echo up; while :; do sleep 0.02; done`: {"up\nterm\n", ""},
		`trap '' INT TERM; echo up; while :; do sleep 0.02; done`:                           {"up\n", "SIGKILL"},
		`trap 'echo int; exit 3' INT; echo up; while :; do sleep 0.02; done`:                {"up\nint\n", ""},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		var out strings.Builder
		exit, err := c.Exec(ctx, Cmd{Argv: []string{"sh", "-c", script}, StopSignal: "SIGINT", Urge: 300 * time.Millisecond, Grace: 600 * time.Millisecond,
			Stdout: writerFunc(func(p []byte) (int, error) { cancel(); return out.Write(p) })})
		if err != nil || out.String() != want.out || exit.Signal != want.signal || !exit.Cancelled {
			t.Errorf("%s: %+v %v %q", script, exit, err, out.String())
		}
	}
}
