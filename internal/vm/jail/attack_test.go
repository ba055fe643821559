package jail_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearth-ci/hearth/internal/vm/jail"
)

// TestMain is also the program in the jail: what a guest would do that has taken
// over its monitor. It gets its orders, one JSON line, as file 3 and answers on
// standard output.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "attack" {
		var a attack
		if err := json.NewDecoder(os.NewFile(3, "orders")).Decode(&a); err != nil {
			fmt.Println(err)
			os.Exit(3)
		}
		json.NewEncoder(os.Stdout).Encode(a.run())
		os.Exit(0)
	}
	if len(os.Args) == 2 && os.Args[1] == "victim" {
		time.Sleep(10 * time.Minute)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// attack is what to try.
type attack struct {
	Read, Write []string // paths
	Connect     string   // host:port
	Unix        string   // name of an abstract socket
	Kill        int
	Open        string // for reading and writing, by the way through Cmd.Open
	Eat         int    // MiB of memory to fill, before the rest
	Multiply    bool   // start threads for ever, before the rest
	Wait        bool   // then until killed
}

// result says what came of it; what is empty or nil failed, as it should.
type result struct {
	Succeeded []string
	Opened    string // what was in Open's file
	Wrote     bool   // into Open's file
	Threads   int    // that could be started
	Files     []string
	PID       int
}

func (a attack) run() (r result) {
	yes := func(what string, err error) {
		if err == nil {
			r.Succeeded = append(r.Succeeded, what)
		}
	}
	r.PID = os.Getpid()
	var all [][]byte
	for range a.Eat {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
	runtime.KeepAlive(all)
	for a.Multiply {
		go func() {
			runtime.LockOSThread()
			os.Stdout.WriteString("thread\n")
			for {
				time.Sleep(time.Hour)
			}
		}()
		runtime.Gosched()
	}
	for _, p := range a.Read {
		_, err := os.ReadFile(p)
		yes("read "+p, err)
		_, err = os.ReadDir(p)
		yes("list "+p, err)
	}
	for _, p := range a.Write {
		yes("write "+p, os.WriteFile(p, []byte("x"), 0o600))
		yes("remove "+p, os.Remove(p))
	}
	if a.Connect != "" {
		c, err := net.DialTimeout("tcp", a.Connect, time.Second)
		yes("connect to "+a.Connect, err)
		if err == nil {
			c.Close()
		}
		c, err = net.Dial("unix", a.Unix)
		yes("connect to the abstract socket "+a.Unix, err)
		if err == nil {
			c.Close()
		}
	}
	if a.Kill != 0 {
		yes("signal a process of the host", syscall.Kill(a.Kill, 0))
		yes("trace a process of the host", syscall.PtraceAttach(a.Kill))
		yes("signal everything", syscall.Kill(-1, 0))
		var b [1]byte
		_, err := unix.ProcessVMReadv(a.Kill, []unix.Iovec{{Base: &b[0], Len: 1}}, []unix.RemoteIovec{{Base: 4096, Len: 1}}, 0)
		yes("read another's memory", err)
	}
	yes("mount", unix.Mount("x", "/dev", "tmpfs", 0, ""))
	yes("unmount", unix.Unmount("/dev/null", unix.MNT_DETACH))
	yes("make the root writable", unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	yes("make a namespace", unix.Unshare(unix.CLONE_NEWUSER))
	yes("make a device", unix.Mknod("/disk", unix.S_IFBLK|0o600, 8<<8))
	yes("change root", unix.Chroot("/dev"))
	yes("become root", syscall.Setresuid(0, 0, 0))
	yes("set the host name", unix.Sethostname([]byte("x")))
	yes("load a program into the kernel", errno(unix.SYS_BPF, 5, 0, 0))
	yes("listen to the kernel", errno(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0))
	yes("make a raw socket", socket(unix.AF_INET, unix.SOCK_RAW))
	yes("make a netlink socket", socket(unix.AF_NETLINK, unix.SOCK_RAW))
	yes("make a packet socket", socket(unix.AF_PACKET, unix.SOCK_RAW))
	yes("start a process", exec.Command("/proc/self/exe").Start())
	_, err := syscall.ForkExec(os.Args[0], []string{"x"}, &syscall.ProcAttr{})
	yes("start itself", err)
	yes("dump core", func() error {
		var l unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_CORE, &l); l.Max != 0 {
			return nil
		}
		return unix.EPERM
	}())
	for fd := range 32 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			r.Files = append(r.Files, fmt.Sprintf("%d:%o", fd, st.Mode&unix.S_IFMT))
		}
	}
	if a.Open != "" {
		if f, err := os.OpenFile(a.Open, os.O_RDWR, 0); err == nil {
			b := make([]byte, 64)
			n, _ := f.Read(b)
			r.Opened = string(b[:n])
			if _, err := f.WriteAt([]byte("!"), 0); err == nil {
				r.Wrote = true
			}
			if m, err := unix.Mmap(int(f.Fd()), 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
				m[0] = '!'
				r.Wrote = true
			}
			if m, err := unix.Mmap(int(f.Fd()), 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE); err == nil {
				m[0] = '!' // into its own copy: that is what it may do
			} else {
				r.Opened = "no private mapping: " + err.Error()
			}
		}
	}
	if a.Wait {
		json.NewEncoder(os.Stdout).Encode(r)
		for {
			time.Sleep(time.Hour)
		}
	}
	return r
}

func errno(nr, a, b, c uintptr) error {
	if _, _, e := unix.Syscall(nr, a, b, c); e != 0 {
		return e
	}
	return nil
}

func socket(family, kind int) error {
	fd, err := unix.Socket(family, kind, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// command is a jail with the attack in it.
func command(t *testing.T, a attack) *jail.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	needs, err := jail.Needs(t.Context(), self)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(w).Encode(a); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() { r.Close() })
	return &jail.Cmd{Name: "attack", Args: []string{self, "attack"}, Dir: t.TempDir(), See: needs, Files: []*os.File{r}}
}

// locked runs f on a thread of its own, as a driver does.
func locked(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// run runs an attack to its end.
func run(t *testing.T, c *jail.Cmd) (r result) {
	t.Helper()
	var out, errs strings.Builder
	c.Stdout, c.Stderr = &out, &errs
	locked(func() {
		if err := c.Start(); err != nil {
			t.Error(err)
			return
		}
		if err := c.Wait(); err != nil {
			t.Errorf("%v: %s %s", err, out.String(), errs.String())
		}
	})
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil && !t.Failed() {
		t.Fatalf("%q: %v", out.String(), err)
	}
	return r
}

// walled skips where the host allows no jail. In a test that starts itself again
// as another user it must not.
func walled(t *testing.T) jail.Report {
	t.Helper()
	r := jail.Look(t.Context(), jail.Policy{})
	if r.Missing != nil {
		if os.Getenv(againVariable) != "" {
			t.Fatalf("%v", r.Missing)
		}
		t.Skipf("SKIPPED, NOT PASSED: %v", r.Missing)
	}
	return r
}

// TestAttackFromInside is a guest that has broken out of its machine and is now
// the monitor's process. Before there were jails it was root on the host.
func TestAttackFromInside(t *testing.T) {
	walled(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	abstract := fmt.Sprintf("@hearth-test-%d", os.Getpid())
	ul, err := net.Listen("unix", abstract)
	if err != nil {
		t.Fatal(err)
	}
	defer ul.Close()
	victim := exec.Command("/proc/self/exe", "victim")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer victim.Wait()
	defer victim.Process.Kill()
	database := filepath.Join(t.TempDir(), "hearth.db")
	other := filepath.Join(t.TempDir(), "machines", "other")
	open := filepath.Join(t.TempDir(), "open") // anybody's
	for _, d := range []string{other, open} {
		if err := os.MkdirAll(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(open, 0o777)
	for _, f := range []string{database, filepath.Join(other, "disk"), filepath.Join(open, "file")} {
		if err := os.WriteFile(f, []byte("secret"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	c := command(t, attack{
		Read: []string{"/etc/shadow", "/etc/passwd", "/root", "/home", "/proc/1/environ", "/proc/self/environ", "/proc", "/sys", "/var", "/dev/vda", "/dev/mem",
			"/dev/kvm", "/dev/net/tun", database, other, filepath.Join(other, "disk"), filepath.Join(open, "file"), "/bin/sh"},
		Write:   []string{"/x", "/tmp/x", "/dev/x", filepath.Join(open, "x"), filepath.Join(open, "file"), "/dev/shm/x"},
		Connect: l.Addr().String(), Unix: abstract, Kill: victim.Process.Pid,
	})
	r := run(t, c)
	if len(r.Succeeded) > 0 {
		t.Errorf("in the jail one can:\n%s", strings.Join(r.Succeeded, "\n"))
	}
	if r.PID != 1 {
		t.Errorf("it is process %d of its namespace", r.PID)
	}
	// Standard input is /dev/null, output and errors are pipes, 3 are the orders;
	// Go's own poller makes two more.
	if want := []string{"0:20000", "1:10000", "2:10000", "3:10000"}; len(r.Files) < 4 || !slices.Equal(r.Files[:4], want) || len(r.Files) > 6 {
		t.Errorf("it has these files: %v; want %v", r.Files, want)
	}
}

// TestAttackSharedFile writes to what many machines share: the memory of their
// template, which QEMU opens for writing.
func TestAttackSharedFile(t *testing.T) {
	walled(t)
	name := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(name, []byte("template"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []jail.Openings{jail.OpenWriting, jail.OpenAll} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c := command(t, attack{Open: "/jail/memory"})
		c.Open, c.Openings = map[string]*os.File{"/jail/memory": f}, o
		if r := run(t, c); r.Opened != "template" || r.Wrote {
			t.Errorf("openings %d: it read %q, wrote: %v", o, r.Opened, r.Wrote)
		}
		if b, err := os.ReadFile(name); string(b) != "template" {
			t.Errorf("openings %d: the file now holds %q, %v", o, b, err)
		}
	}
}

// TestAttackOwnerKilled kills the owner of a jail in the way that leaves it no
// time; nothing may go on running behind it.
func TestAttackOwnerKilled(t *testing.T) {
	if os.Getenv("HEARTH_TEST_OWN") != "" {
		c := command(t, attack{Wait: true})
		locked(func() {
			if err := c.Start(); err != nil {
				fmt.Println(err)
				return
			}
			fmt.Println("pid", c.Pid())
			c.Wait()
		})
		return
	}
	walled(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestAttackOwnerKilled$")
	cmd.Env = append(os.Environ(), "HEARTH_TEST_OWN=1", "TMPDIR="+t.TempDir()) // what it leaves goes with the test
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(out, "pid %d\n", &pid); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) { // no child of ours: nothing tells
		// Whoever inherits it may take its time to bury it.
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err != nil || strings.Contains(string(b), "State:\tZ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d has outlived its owner", pid)
		}
	}
}

// bomb runs an attack that should not get to its end, and returns what it said
// and how it ended.
func bomb(t *testing.T, a attack, l jail.Limits) (said string, ended error) {
	t.Helper()
	c := command(t, a)
	c.Limits = l
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	locked(func() {
		if err := c.Start(); err != nil {
			t.Error(err)
			return
		}
		ended = c.Wait()
	})
	return out.String(), ended
}

// TestAttackThreads starts threads without end. They are counted for the jail's
// own user, or user namespace, so that neither the host nor another machine runs
// out of them.
func TestAttackThreads(t *testing.T) {
	walled(t)
	said, ended := bomb(t, attack{Multiply: true}, jail.Limits{Tasks: 64})
	if ended == nil || !strings.Contains(said, "failed to create new OS thread") && !strings.Contains(said, "pthread_create failed") {
		t.Errorf("it ended: %v, with %.500s", ended, said)
	}
	if n := strings.Count(said, "thread\n"); n < 8 || n > 64 {
		t.Errorf("it got %d threads, of 64", n)
	}
}

// TestAttackMemory fills memory beyond what its machine has: the host's own is not
// touched.
func TestAttackMemory(t *testing.T) {
	report := walled(t)
	if report.NoGroup != nil {
		if os.Getenv(againVariable) == nestedMachine {
			t.Fatal(report.NoGroup)
		}
		t.Skipf("SKIPPED here, done by TestNested: %v", report.NoGroup)
	}
	// A machine of 1 MiB, and what a monitor may take.
	said, ended := bomb(t, attack{Eat: 1500}, jail.Limits{MemoryMiB: 1})
	if e := (*exec.ExitError)(nil); !errors.As(ended, &e) || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended: %v, with %.500s", ended, said)
	}
	if left, _ := filepath.Glob(report.CGroup + "/hearth-*"); len(left) > 0 {
		t.Errorf("cgroups are left: %q", left)
	}
}

// TestWalls looks at a jail from outside.
func TestWalls(t *testing.T) {
	report := walled(t)
	var out strings.Builder
	seen := make(chan struct{}, 64)
	t.Setenv("HEARTH_TEST_SECRET", "hunter2")
	var uids []int
	for range 2 {
		c := command(t, attack{Wait: true})
		c.Stdout = writerFunc(func(p []byte) { out.Write(p); seen <- struct{}{} })
		started := make(chan error)
		ended := make(chan struct{})
		go locked(func() {
			defer close(ended)
			err := c.Start()
			started <- err
			if err == nil {
				c.Wait()
			}
		})
		if err := <-started; err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Kill(); <-ended })
		<-seen
		w, err := jail.Inspect(c.Pid())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Check(); err != nil {
			t.Error(err)
		}
		if w.Bounding != 0 {
			t.Errorf("it could gain capabilities: %#x", w.Bounding)
		}
		if len(w.Writable) > 0 {
			t.Errorf("writable: %q", w.Writable)
		}
		if report.NoGroup == nil && w.CGroup == "" {
			t.Error("it has no cgroup of its own")
		}
		if os.Geteuid() == 0 && (w.UID < jail.DefaultUIDBase || w.UID >= jail.DefaultUIDBase+jail.UIDs) {
			t.Errorf("its user is %d", w.UID)
		}
		uids = append(uids, w.UID)
	}
	if os.Geteuid() == 0 && uids[0] == uids[1] {
		t.Errorf("two machines are the same user, %d", uids[0])
	}
	// The walls are seen, not assumed: we have none of them.
	w, err := jail.Inspect(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Check(); err == nil {
		t.Error("a process without a jail passes for one in a jail")
	}
}

// TestInterrupted builds jails in processes that are hardly left in peace: Go's
// scheduler interrupts what has run for ten milliseconds, which on a slow machine
// is most of the building.
func TestInterrupted(t *testing.T) {
	walled(t)
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(lists) == 0 {
		t.Skipf("SKIPPED, NOT PASSED: this kernel does not list the children of a process: %v", err)
	}
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		sent := 0
		defer func() { stopped <- sent }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			lists, _ := filepath.Glob("/proc/self/task/*/children")
			for _, name := range lists {
				b, _ := os.ReadFile(name)
				for pid := range strings.FieldsSeq(string(b)) {
					if n, err := strconv.Atoi(pid); err == nil && filepath.Base(comm(n)) == "exe" {
						for range 200 {
							syscall.Kill(n, syscall.SIGURG)
							sent++
						}
					}
				}
			}
		}
	}()
	for range 40 {
		if run(t, command(t, attack{})); t.Failed() {
			break
		}
	}
	close(stop)
	if sent := <-stopped; sent < 1000 {
		t.Errorf("%d interruptions prove nothing", sent)
	}
}

// comm is what the kernel calls a process; one that is to become a jail was
// started as /proc/self/exe.
func comm(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(b))
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// againVariable says that the tests run as somebody else, or somewhere else.
const (
	againVariable = "HEARTH_TEST_AGAIN"
	nestedMachine = "nested"
)

// TestUnprivileged runs the other tests as somebody who is not root.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("everything here already runs without root")
	}
	dir, err := os.MkdirTemp("", "hearth-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	b, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "test"), b, 0o755)
	}
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.Mkdir(filepath.Join(dir, "tmp"), 0o700), os.Chown(filepath.Join(dir, "tmp"), 65534, 65534))
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "test"), "-test.v", "-test.run=^(TestAttack.*|TestWalls)$")
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + filepath.Join(dir, "tmp"), againVariable + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil && strings.Contains(string(out), "user namespaces: ") {
		t.Skipf("SKIPPED, NOT PASSED: this host has no user namespaces for everybody:\n%s", out)
	}
	if err != nil {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// TestErrors starts what cannot be started; the error says what it was.
func TestErrors(t *testing.T) {
	walled(t)
	c := command(t, attack{})
	c.Args = []string{"/nowhere"}
	locked(func() {
		if err := c.Start(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "execute /nowhere") {
			t.Errorf("a program that is not there: %v", err)
		}
	})
	c = command(t, attack{})
	c.Mounts = []jail.Mount{{Source: "/nowhere", Target: "/m"}}
	locked(func() {
		if err := c.Start(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "take /nowhere") {
			t.Errorf("a directory that is not there: %v", err)
		}
	})
	c = command(t, attack{})
	c.Policy.UIDBase = 10
	locked(func() {
		if err := c.Start(); os.Geteuid() == 0 && err == nil {
			t.Error("a range of users that holds accounts: Start succeeds")
		} else if err == nil {
			c.Wait()
		}
	})
}
