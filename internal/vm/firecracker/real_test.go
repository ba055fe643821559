package firecracker_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/image/imagetest"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/firecracker"
	"github.com/hearth-ci/hearth/internal/vm/firecracker/nested"
	"github.com/hearth-ci/hearth/internal/vm/jail"
	"github.com/hearth-ci/hearth/internal/vm/vmtest"
)

// kitVariable names a directory with what TestFirecracker needs (kernel, initrd)
// where the test runs inside a nested machine, which cannot build it.
const kitVariable = "HEARTH_FIRECRACKER_KIT"

// jailerVariable says there that machines are to be started by the jailer.
const jailerVariable = "HEARTH_FIRECRACKER_JAILER"

// cacheDir is where Hearth keeps what it has fetched.
func cacheDir(t *testing.T) string {
	t.Helper()
	if home := os.Getenv("HEARTH_HOME"); home != "" {
		return filepath.Join(home, "cache")
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "hearth")
}

// TestFirecracker runs the suite that every driver passes on the real
// Firecracker: here, where KVM works, and in a nested machine where not.
func TestFirecracker(t *testing.T) {
	if kit := os.Getenv(kitVariable); kit != "" {
		// Of all hosts that tests run on, this one surely has cgroup v2.
		if err := syscall.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil && !errors.Is(err, syscall.EBUSY) {
			t.Fatal(err)
		}
		if r := jail.Look(t.Context(), jail.Policy{}); r.NoGroup != nil || r.Missing != nil || r.Fault != nil {
			t.Fatalf("the walls of the nested machine: %+v", r)
		}
		d := firecracker.New(firecracker.Config{Kernel: filepath.Join(kit, "kernel"), ProbeTimeout: 2 * time.Minute})
		jailer, err := d.Jailer(t.Context())
		if err != nil || (jailer != "") != (os.Getenv(jailerVariable) != "") {
			t.Fatalf("the jailer: %q, %v", jailer, err)
		}
		began := time.Now()
		if err := d.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("probe: %v", time.Since(began).Round(time.Millisecond))
		all(t, d, filepath.Join(kit, "kernel"), filepath.Join(kit, "initrd"))
		return
	}
	d := firecracker.New(firecracker.Config{CacheDir: cacheDir(t)})
	if _, err := d.Version(t.Context()); errors.Is(err, firecracker.ErrNotInstalled) {
		t.Skipf("SKIPPED, NOT PASSED: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	img := imagetest.Boot(t, imagetest.Agent(t))
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := img.Extend(t.Context(), initrd, image.Extra{Files: map[string]string{"/tool": vmtest.BuildTool(t)}}); err != nil {
		t.Fatal(err)
	}
	v, err := d.Verdict(t.Context(), img.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(v)
	if v.KVM {
		all(t, d, img.Kernel, initrd)
		return
	}
	binary, err := d.Binary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// One part after the other, each within the time that an emulated machine in an
	// emulated machine is good for; HEARTH_FIRECRACKER_ONLY=Figures, say, for one.
	parts := []string{"^Figures$", "^Refusals$", "^Suite$/^[^T]", "^Suite$/^T"}
	if only := os.Getenv("HEARTH_FIRECRACKER_ONLY"); only != "" {
		parts = []string{only}
	}
	inside(t, nested.Config{Image: img, CacheDir: cacheDir(t), Files: map[string]string{
		"/kit/test": testBinary(t), "/kit/kernel": img.Kernel, "/kit/initrd": initrd, "/usr/bin/firecracker": binary,
	}}, nil, parts)
}

// TestFirecrackerJailer runs the part of the same that says most (life, death,
// a snapshot, clones, walls) on a Firecracker that its own jailer has started, in a nested
// machine with a root file system, which the jailer wants.
func TestFirecrackerJailer(t *testing.T) {
	if os.Getenv(kitVariable) != "" {
		return // TestFirecracker is run there
	}
	d := firecracker.New(firecracker.Config{CacheDir: cacheDir(t)})
	binary, err := d.Binary(t.Context())
	if errors.Is(err, firecracker.ErrNotInstalled) {
		t.Skipf("SKIPPED, NOT PASSED: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	jailer := filepath.Join(filepath.Dir(binary), "jailer")
	if _, err := os.Stat(jailer); err != nil {
		t.Skipf("SKIPPED, NOT PASSED: there is no jailer beside Firecracker: %v", err)
	}
	agent := imagetest.Agent(t)
	small := imagetest.Boot(t, agent)
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := small.Extend(t.Context(), initrd, image.Extra{Files: map[string]string{"/tool": vmtest.BuildTool(t)}}); err != nil {
		t.Fatal(err)
	}
	only := os.Getenv("HEARTH_FIRECRACKER_ONLY")
	if only == "" {
		only = "^Suite$/^(Life|Killed|Template)$/^(Clones)?$"
	}
	inside(t, nested.Config{Image: imagetest.Build(t, agent), Root: true, CacheDir: cacheDir(t), Files: map[string]string{
		"/kit/test": testBinary(t), "/kit/kernel": small.Kernel, "/kit/initrd": initrd, "/usr/bin/firecracker": binary, "/usr/bin/jailer": jailer,
	}}, []string{jailerVariable + "=1"}, []string{only})
}

// testBinary builds this package's tests so that they need nothing around them.
func testBinary(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "test")
	cmd := exec.Command("go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", out, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the tests: %v\n%s", err, msg)
	}
	return out
}

// lostLimit is how many nested machines a test may lose before it has failed.
const lostLimit = 4

// inside runs parts of TestFirecracker in a nested machine. What is skipped in there
// has not passed. The outer machine, whose processor emulates another one, is
// sometimes not heard of again on a busy host: that says nothing of what is tested,
// and the part that it was lost in is tried in another machine.
func inside(t *testing.T, cfg nested.Config, env, parts []string) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("SKIPPED, NOT PASSED: KVM does not work here, and qemu-system-x86_64, which would emulate it, is not installed: apt-get install qemu-system-x86")
	}
	for lost := 0; len(parts) > 0; {
		n, err := insideOnce(t, cfg, env, parts)
		parts = parts[n:]
		if err == nil {
			continue
		}
		lost++
		mayBeLost(t, lost, err, parts[0])
	}
}

// mayBeLost fails the test, unless err says that a nested machine was lost, the
// lost-th, and another one may try.
func mayBeLost(t *testing.T, lost int, err error, what string) {
	t.Helper()
	if t.Failed() || lost == lostLimit || !errors.Is(err, guest.ErrLost) && !errors.Is(err, errNoKVM) {
		t.Fatalf("nested machine: %v", err)
	}
	t.Logf("THE NESTED MACHINE WAS LOST, AND %s IS RUN IN ANOTHER ONE: %v", what, err)
}

// insideOnce runs parts in one machine, and returns how many came to an end and why
// the machine could not be used for the next one.
func insideOnce(t *testing.T, cfg nested.Config, env, parts []string) (ended int, err error) {
	m, err := nested.Start(t.Context(), cfg)
	if err != nil {
		return 0, err
	}
	defer func() {
		if cerr := m.Close(context.Background()); cerr != nil {
			t.Error(cerr)
		}
	}()
	t.Logf("nested machine: agent after %v", m.Boot.Round(10*time.Millisecond))
	for _, part := range parts {
		r, w := io.Pipe()
		read := make(chan struct{})
		ran, noKVM := false, false
		go func() {
			defer close(read)
			for s := bufio.NewScanner(r); s.Scan(); {
				line := s.Text()
				t.Log("| " + line)
				noKVM = noKVM || strings.Contains(line, saysNoKVM)
				ran = ran || strings.Contains(line, "--- PASS: TestFirecracker/")
				if strings.Contains(line, "--- SKIP") {
					t.Error("a test was skipped in the nested machine")
				}
			}
			io.Copy(io.Discard, r)
		}()
		began := time.Now()
		x, err := m.Exec(t.Context(), guest.Cmd{Argv: []string{"/kit/test", "-test.v", "-test.run=^TestFirecracker$/" + part, "-test.timeout=10m"},
			Env: append(env, kitVariable+"=/kit", "PATH=/usr/bin:/bin", "HOME=/root"), Dir: "/", User: "root", Stdout: w, Stderr: w})
		w.Close()
		<-read
		if err != nil {
			return ended, err
		}
		if !x.OK() && !ran && noKVM {
			return ended, errNoKVM
		}
		ended++
		switch {
		case !x.OK():
			t.Errorf("nested tests: %s: %v", part, x)
		case !ran:
			t.Errorf("nested tests: nothing is called %s", part)
		}
		t.Logf("nested tests: %s: %v", part, time.Since(began).Round(time.Second))
	}
	return ended, nil
}

func all(t *testing.T, d *firecracker.Driver, kernel, initrd string) {
	t.Run("Figures", func(t *testing.T) { figures(t, d, kernel, initrd) })
	t.Run("Refusals", func(t *testing.T) { refusals(t, d) })
	t.Run("Suite", func(t *testing.T) { suite(t, d, kernel, initrd) })
}

// wired is a machine with a network and a connected agent.
type wired struct {
	vm.Machine
	agent *guest.Client
	took  time.Duration // from the call until the agent answered
}

// wire has start start a machine whose network has one service inside.
func wire(t *testing.T, id string, start func(vm.Spec) (vm.Machine, error)) *wired {
	t.Helper()
	spec := vm.Spec{ID: id, Dir: filepath.Join(t.TempDir(), id), CPUs: 1, MemoryMiB: 128, Cmdline: "quiet mitigations=off"}
	if err := os.Mkdir(spec.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	spec.Net = filepath.Join(spec.Dir, "net.sock")
	l, err := vm.ListenUnix(spec.Net)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n, err := network.New(network.Config{Services: map[uint16]http.Handler{80: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "service for "+id)
	})}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	began := time.Now()
	m, err := start(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var cable sync.WaitGroup
	cable.Go(func() { n.ServeFrames(conn) })
	t.Cleanup(cable.Wait)
	t.Cleanup(n.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := guest.Connect(ctx, m.Dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &wired{m, c, time.Since(began)}
}

func (w *wired) run(t *testing.T, argv ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	x, err := w.agent.Exec(t.Context(), guest.Cmd{Argv: argv, Stdout: &out, Stderr: &errs, User: "root", Dir: "/", Timeout: time.Minute})
	if err != nil || !x.OK() {
		t.Fatalf("%q: %v, %v: %s", argv, x, err, errs.String())
	}
	return strings.TrimSpace(out.String())
}

// figures boots a machine with a network, makes a template of it and two
// clones, and says how long each took. The clones' networks are their own.
func figures(t *testing.T, d *firecracker.Driver, kernel, initrd string) {
	service := func(w *wired) {
		if got, want := w.run(t, "/tool", "http", network.Gateway.String()+":80"), "service for "+w.ID(); got != want {
			t.Errorf("the machine got %q from its network, want %q", got, want)
		}
	}
	first := wire(t, "first", func(s vm.Spec) (vm.Machine, error) {
		s.Kernel, s.Initrd, s.Template = kernel, initrd, true
		s.Cmdline += fmt.Sprintf(" hearth.net=%s/%d,%s,%s", network.Guest, network.Subnet.Bits(), network.Gateway, network.DNS)
		return d.Start(t.Context(), s)
	})
	t.Logf("FIGURE cold boot, process to agent: %v", first.took.Round(time.Millisecond))
	service(first)
	dir := t.TempDir()
	began := time.Now()
	if err := first.Machine.Snapshot(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	t.Logf("FIGURE snapshot of 128 MiB, checksums included: %v", time.Since(began).Round(time.Millisecond))
	for i := range 2 {
		clone := wire(t, fmt.Sprintf("clone%d", i), func(s vm.Spec) (vm.Machine, error) { return d.Restore(t.Context(), dir, s) })
		began := time.Now()
		if got := clone.run(t, "/tool", "echo", "hello"); got != "hello" {
			t.Errorf("%q", got)
		}
		t.Logf("FIGURE restore, process to agent: %v; first command %v", clone.took.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		began = time.Now()
		clone.run(t, "/tool", "echo", "hello")
		t.Logf("FIGURE second command: %v", time.Since(began).Round(time.Millisecond))
		service(clone)
	}
}

// TestFirecrackerRefusals needs a KVM that runs fifty bytes, which is more hosts
// than can boot a kernel; the others run it nested, in TestFirecracker.
func TestFirecrackerRefusals(t *testing.T) {
	if os.Getenv(kitVariable) != "" {
		return
	}
	d := firecracker.New(firecracker.Config{CacheDir: cacheDir(t)})
	switch err := d.Probe(t.Context()); {
	case errors.Is(err, firecracker.ErrNotInstalled):
		t.Skipf("SKIPPED, NOT PASSED: %v", err)
	case errors.Is(err, firecracker.ErrNoKVM):
		t.Skipf("SKIPPED here, done by TestFirecracker in a nested machine: %v", err)
	case err != nil:
		t.Fatal(err)
	}
	refusals(t, d)
}

// refusals is what the real Firecracker says to what cannot work, and what is
// left of it when it or its owner dies. The guest is a program that sleeps.
func refusals(t *testing.T, d *firecracker.Driver) {
	home := t.TempDir()
	kernel, text := filepath.Join(home, "kernel"), filepath.Join(home, "text")
	if err := os.WriteFile(kernel, firecracker.SleepProgram(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(text, []byte("This is no kernel.\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := func(t *testing.T, id string) vm.Spec {
		dir := filepath.Join(t.TempDir(), id)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		return vm.Spec{ID: id, Dir: dir, Kernel: kernel, CPUs: 1, MemoryMiB: 64}
	}
	gone := func(t *testing.T, id string) {
		t.Helper()
		if left := firecracker.Processes(id); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
	fault := func(t *testing.T, err error, path, words string) {
		t.Helper()
		var f *firecracker.Fault
		if !errors.As(err, &f) || f.Path != path || !strings.Contains(f.Message, words) {
			t.Errorf("%v; want a fault of %s that says %q", err, path, words)
		}
	}
	t.Run("NoKernel", func(t *testing.T) {
		s := spec(t, "nokernel")
		s.Kernel = text
		_, err := d.Boot(t.Context(), s)
		fault(t, err, "/actions", "ernel")
		gone(t, s.ID)
	})
	t.Run("Disk", func(t *testing.T) {
		s := spec(t, "nodisk")
		s.Disks = []vm.Disk{{ID: "dir", Path: home}}
		_, err := d.Boot(t.Context(), s)
		if err == nil || !strings.Contains(err.Error(), "is a directory") {
			t.Errorf("a disk that is a directory: %v", err)
		}
		gone(t, s.ID)
	})
	// A machine, its snapshot, and what can be wrong with that.
	s := spec(t, "sleeper")
	m, err := d.Boot(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close(context.Background())
	dir := t.TempDir()
	if err := m.Snapshot(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	restore := func(t *testing.T, dir string) error {
		s := spec(t, "restored")
		s.Kernel, s.CPUs, s.MemoryMiB = "", 0, 0
		m, err := d.Restore(t.Context(), dir, s)
		if err == nil {
			m.Close(context.Background())
		}
		gone(t, s.ID)
		return err
	}
	t.Run("Restore", func(t *testing.T) {
		if err := restore(t, dir); err != nil {
			t.Error(err)
		}
	})
	t.Run("State", func(t *testing.T) {
		// As from a driver that has the sum of what it wrote, and wrote rubbish.
		bad := t.TempDir()
		if err := os.CopyFS(bad, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		firecracker.Rewrite(t, bad, "state", []byte("This is no state.\n"))
		err := restore(t, bad)
		fault(t, err, "/snapshot/load", "")
		if !errors.Is(err, vm.ErrSnapshot) {
			t.Errorf("it is no vm.ErrSnapshot: %v", err)
		}
	})
	t.Run("Killed", func(t *testing.T) {
		p, err := os.FindProcess(m.Pid())
		if err == nil {
			err = p.Kill()
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("Wait: %v", err)
		}
		if err := m.Snapshot(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("Snapshot: %v", err)
		}
		gone(t, "sleeper")
	})
	t.Run("OwnerDies", func(t *testing.T) {
		binary, err := d.Binary(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		firecracker.OwnerDies(t, binary, fmt.Sprintf("real-orphan-%d", os.Getpid()))
	})
}

// suite is what every driver passes.
func suite(t *testing.T, d *firecracker.Driver, kernel, initrd string) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	writable := []string{"/machine"} // its sockets
	if j, err := d.Jailer(t.Context()); err != nil {
		t.Fatal(err)
	} else if j != "" {
		writable = []string{"/"} // the jailer's directory of the machine
	}
	vmtest.Run(t, vmtest.Suite{
		Driver:     d,
		Spec:       vm.Spec{Kernel: kernel, Initrd: initrd, Cmdline: "quiet mitigations=off", CPUs: 1, MemoryMiB: 128},
		DiskImage:  disk,
		Tool:       "/tool",
		Disk:       func(vm.Machine) string { return "/dev/vda" },
		Memory:     func(vm.Machine) string { return "/run/note" },
		StreamsEnd: true,
		Writable:   writable,
	})
}
