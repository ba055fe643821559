// Package vmtest holds what every VM driver must do, as tests ([Run]), and a
// driver without machines that does it too ([Fake]), for the tests of whoever
// uses drivers.
//
// The suite sees a driver as the pool does: through vm's interfaces and through
// guest.Connect. What a driver does not offer (snapshots, say) is not tested
// and is listed, so that nobody takes silence for a pass.
package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/jail"
)

// Suite is what the tests need to know about a driver.
type Suite struct {
	Driver vm.Driver

	// Spec is a machine that boots to the agent. ID and Dir are set by the
	// suite, and DiskImage is copied for each machine.
	Spec vm.Spec

	// DiskImage is a raw image for a writable disk; its copy becomes the last of
	// Spec.Disks, called "scratch".
	DiskImage string

	// Tool is the path inside the guest of the program built by [BuildTool].
	Tool string

	// Disk and Memory name a file or device inside a machine whose contents are
	// on the writable disk, and one whose contents are in memory.
	Disk, Memory func(vm.Machine) string

	// Kill ends a machine's VMM behind the driver's back; nil kills the process
	// that vm.Process names.
	Kill func(vm.Machine)

	// StreamsEnd says that a snapshot of a machine that goes on ends its streams.
	StreamsEnd bool

	// Writable names the directories, as seen in the jail, that a VMM may write to;
	// most need none.
	Writable []string

	// OnHost says that "guests" run in this process, so that host names, clocks
	// and generators are the host's own.
	OnHost bool

	allowed map[string]bool // directories that a machine has files of
}

// limit is how long anything may take: an emulated boot on a busy machine, with
// plenty to spare.
const limit = 2 * time.Minute

// BuildTool builds the suite's program for the guest and returns its path.
func BuildTool(t testing.TB) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "tool")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "github.com/hearth-ci/hearth/internal/vm/vmtest/testdata/tool")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the guest's tool: %v\n%s", err, msg)
	}
	return out
}

// Run tests a driver.
func Run(t *testing.T, s Suite) {
	s.allowed = map[string]bool{}
	for _, f := range []string{s.Spec.Kernel, s.Spec.Initrd} {
		s.allowed[filepath.Dir(f)] = true
	}
	for _, d := range s.Spec.Disks {
		s.allowed[filepath.Dir(d.Path)] = true
	}
	if err := s.Driver.Probe(t.Context()); err != nil {
		t.Fatalf("Probe: %v", err)
	}
	t.Run("Life", s.life)
	t.Run("Poweroff", s.poweroff)
	t.Run("Killed", s.killed)
	t.Run("Cancel", s.cancel)
	t.Run("BadSpec", s.badSpec)
	t.Run("DeleteBy", s.deleteBy)
	t.Run("LongPath", s.longPath)
	if !s.Driver.Capabilities().Snapshots {
		t.Logf("driver %s restores no snapshots: not tested", s.Driver.Name())
		return
	}
	t.Run("Template", s.template)
}

// dir makes a machine's directory. It must be gone when the test ends.
func (s *Suite) dir(t *testing.T, id string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "machines", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

var counter struct {
	sync.Mutex
	n int
}

func newID() string {
	counter.Lock()
	defer counter.Unlock()
	counter.n++
	return fmt.Sprintf("t%d-%d", os.Getpid(), counter.n)
}

// spec returns a machine of its own.
func (s *Suite) spec(t *testing.T) vm.Spec {
	t.Helper()
	spec := s.Spec
	spec.ID = newID()
	spec.Dir = s.dir(t, spec.ID)
	if s.DiskImage != "" {
		b, err := os.ReadFile(s.DiskImage)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(spec.Dir, "scratch.img")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		spec.Disks = append(spec.Disks[:len(spec.Disks):len(spec.Disks)], vm.Disk{ID: "scratch", Path: path})
	}
	return spec
}

// track closes m when the test ends and checks that nothing is left of it.
func (s *Suite) track(t *testing.T, m vm.Machine, dir string) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
		gone(t, m.ID(), dir)
	})
}

// gone checks that nothing is left of a machine.
func gone(t *testing.T, id, dir string) {
	t.Helper()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("machine %s: its directory is left: %v", id, err)
	}
	if p := processes(id); len(p) > 0 {
		t.Errorf("machine %s: processes are left: %q", id, p)
	}
}

// processes returns the command lines that carry hearth and the machine's id,
// as every VMM's must.
func processes(id string) []string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if c := string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})); strings.Contains(c, "hearth-"+id+" ") {
			found = append(found, c)
		}
	}
	return found
}

func (s *Suite) start(t *testing.T, spec vm.Spec) vm.Machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	m, err := s.Driver.Start(ctx, spec)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	s.allowed[spec.Dir] = true
	s.track(t, m, spec.Dir)
	return m
}

// up starts a machine and connects to its agent. On a host that is busy at the
// wrong moment a kernel may measure its timers wrongly and give up; that is not
// the driver's doing, and the machine is started again.
func (s *Suite) up(t *testing.T, spec vm.Spec) (vm.Machine, *guest.Client, vm.Spec) {
	t.Helper()
	for try := 1; ; try++ {
		m := s.start(t, spec)
		c, err := tryConnect(t, m)
		if err == nil {
			return m, c, spec
		}
		if try == 3 {
			t.Fatalf("connect: %v", vm.Explain(m, "connect", err))
		}
		t.Logf("the machine did not come up and is started again: %v", vm.Explain(m, "connect", err))
		if err := m.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		again := s.spec(t)
		again.Template, again.DeleteBy, again.Console = spec.Template, spec.DeleteBy, spec.Console
		spec = again
	}
}

func connect(t *testing.T, m vm.Machine, opts ...guest.Option) *guest.Client {
	t.Helper()
	c, err := tryConnect(t, m, opts...)
	if err != nil {
		t.Fatalf("connect: %v", vm.Explain(m, "connect", err))
	}
	return c
}

func tryConnect(t *testing.T, m vm.Machine, opts ...guest.Option) (*guest.Client, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var over sync.WaitGroup
	defer over.Wait()
	stop := make(chan struct{})
	defer close(stop)
	ended := make(chan error, 1)
	go func() { ended <- m.Wait() }() // ends with the machine
	over.Go(func() {
		select {
		case err := <-ended:
			t.Logf("machine ended: %v", err)
			cancel()
		case <-stop:
		}
	})
	c, err := guest.Connect(ctx, m.Dial, opts...)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c, nil
}

// do runs the tool and returns what it printed.
func (s *Suite) do(t *testing.T, c *guest.Client, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var out, errs bytes.Buffer
	x, err := c.Exec(ctx, guest.Cmd{Argv: append([]string{s.Tool}, args...), Stdout: &out, Stderr: &errs, User: s.user(), Dir: "/"})
	if err != nil || !x.OK() {
		t.Fatalf("%q: %v, %v: %s", args, x, err, errs.String())
	}
	return strings.TrimSpace(out.String())
}

func (s *Suite) user() string {
	if s.OnHost {
		return ""
	}
	return "root"
}

func (s *Suite) life(t *testing.T) {
	spec := s.spec(t)
	var console bytes.Buffer
	spec.Console = &console
	m, c, spec := s.up(t, spec)
	if m.ID() != spec.ID {
		t.Errorf("ID is %q, want %q", m.ID(), spec.ID)
	}
	if r, err := vm.ReadRecord(spec.Dir); err != nil || r.ID != spec.ID || !r.Owner.Alive() {
		t.Errorf("record: %+v, %v", r, err)
	}
	if s.Driver.Capabilities().Process && len(processes(spec.ID)) == 0 {
		t.Errorf("process %d does not carry hearth-%s in its command line", m.Pid(), spec.ID)
	}
	s.walls(t, m)
	if got := s.do(t, c, "echo", "hello", "there"); got != "hello there" {
		t.Errorf("echo printed %q", got)
	}
	x, err := c.Exec(t.Context(), guest.Cmd{Argv: []string{s.Tool, "exit", "7"}, User: s.user(), Dir: "/"})
	if err != nil || x.Code != 7 {
		t.Errorf("exit 7: %v, %v", x, err)
	}
	s.do(t, c, "put", s.Disk(m), "on the disk")
	if got := s.do(t, c, "get", s.Disk(m)); got != "on the disk" {
		t.Errorf("disk holds %q", got)
	}

	// One stream at a time: the next ends the one before.
	c2 := connect(t, m)
	if got := s.do(t, c2, "echo", "again"); got != "again" {
		t.Errorf("second connection: %q", got)
	}
	select {
	case <-c.Done():
	case <-time.After(30 * time.Second):
		t.Error("the first connection is still open beside the second")
	}

	if s.Driver.Capabilities().Pause {
		s.pauseResume(t, m, c2)
	}

	// Close, from several sides at once, and again.
	waited := make(chan error, 1)
	go func() { waited <- m.Wait() }()
	var closing sync.WaitGroup
	for range 3 {
		closing.Go(func() {
			if err := m.Close(context.Background()); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
	closing.Wait()
	if err := m.Close(t.Context()); err != nil {
		t.Errorf("Close again: %v", err)
	}
	if err := <-waited; err != nil {
		t.Errorf("Wait after Close: %v", err)
	}
	if _, err := m.Dial(t.Context()); !errors.Is(err, vm.ErrClosed) {
		t.Errorf("Dial after Close: %v", err)
	}
	// Who talks to the guest adds this to an error: a boot that fails says why.
	if last := m.Tail(); last == "" && console.Len() > 0 {
		t.Errorf("the guest printed %d bytes, and the machine knows none of them", console.Len())
	}
	gone(t, spec.ID, spec.Dir)
}

// walls looks at the VMM from outside, as it runs: what stands around it, and
// that nothing of the host's came along.
func (s *Suite) walls(t *testing.T, m vm.Machine) jail.Walls {
	t.Helper()
	if !s.Driver.Capabilities().Process {
		t.Logf("driver %s has no process of its own on the host: its walls are not tested", s.Driver.Name())
		return jail.Walls{}
	}
	report := jail.Look(t.Context(), jail.Policy{})
	w, err := jail.Inspect(m.Pid())
	if err != nil {
		t.Errorf("the VMM's walls: %v", err)
		return w
	}
	if report.Missing != nil {
		t.Logf("SKIPPED, NOT PASSED: this host allows no jail: %v", report.Missing)
		return w
	}
	if err := w.Check(); err != nil {
		t.Errorf("the VMM's walls: %v", err)
	}
	for _, dir := range w.Writable {
		if !slices.Contains(s.Writable, dir) {
			t.Errorf("the VMM may write to %s; mounts: %q", dir, w.Mounts)
		}
	}
	for _, f := range w.Files {
		if dir := filepath.Dir(f); strings.HasPrefix(f, "/") && !strings.HasPrefix(f, "/dev/") && f != "/" && !s.allowed[dir] && !strings.HasPrefix(f, "/memfd:") {
			t.Errorf("the VMM has %s open", f)
		}
	}
	switch {
	case report.NoGroup != nil:
		t.Logf("SKIPPED, NOT PASSED: limits by cgroup: %v", report.NoGroup)
	case w.CGroup == "":
		t.Error("the VMM is in our own cgroup")
	default:
		for _, f := range []string{"memory.max", "pids.max", "cpu.max"} {
			if v := w.Limit(f); v == "" || strings.HasPrefix(v, "max") {
				t.Errorf("cgroup %s: %s is %q", w.CGroup, f, v)
			}
		}
	}
	return w
}

func (s *Suite) pauseResume(t *testing.T, p vm.Machine, c *guest.Client) {
	if err := p.Pause(t.Context()); err != nil {
		t.Fatalf("Pause: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	if _, err := c.Ping(ctx); err == nil {
		t.Error("a paused machine answers")
	}
	cancel()
	if err := p.Resume(t.Context()); err != nil {
		t.Fatalf("Resume: %v", err)
	}
	if got := s.do(t, c, "echo", "awake"); got != "awake" {
		t.Errorf("after Resume: %q", got)
	}
}

func (s *Suite) poweroff(t *testing.T) {
	m, c, _ := s.up(t, s.spec(t))
	if err := c.Poweroff(t.Context()); err != nil {
		t.Fatalf("Poweroff: %v", err)
	}
	if err := wait(t, m); err != nil {
		t.Errorf("Wait after the guest powered off: %v", err)
	}
}

// wait is Wait with a limit.
func wait(t *testing.T, m vm.Machine) error {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- m.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(limit):
		t.Fatal("Wait does not return")
		return nil
	}
}

func (s *Suite) kill(t *testing.T, m vm.Machine) {
	t.Helper()
	if s.Kill != nil {
		s.Kill(m)
		return
	}
	p, err := os.FindProcess(m.Pid())
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// killed ends the VMM in the middle of a command.
func (s *Suite) killed(t *testing.T) {
	m, c, _ := s.up(t, s.spec(t))
	out := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := c.Exec(context.Background(), guest.Cmd{Argv: []string{s.Tool, "sleep"}, Stdout: &first{seen: out}, User: s.user(), Dir: "/"})
		ended <- err
	}()
	select {
	case <-out:
	case <-time.After(limit):
		t.Fatal("the command does not start")
	}
	s.kill(t, m)
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a command whose machine died has a result")
		}
	case <-time.After(5 * time.Second): // long before a heartbeat would notice
		t.Error("Exec does not notice that the machine is dead")
	}
	if err := wait(t, m); err == nil {
		t.Error("Wait calls a killed machine fine")
	} else if !strings.Contains(err.Error(), m.ID()) {
		t.Errorf("the error does not name the machine: %v", err)
	}
	if _, err := m.Dial(t.Context()); err == nil {
		t.Error("Dial of a dead machine succeeds")
	}
}

// first closes seen at the first Write.
type first struct {
	once sync.Once
	seen chan struct{}
}

func (f *first) Write(p []byte) (int, error) {
	f.once.Do(func() { close(f.seen) })
	return len(p), nil
}

func (s *Suite) cancel(t *testing.T) {
	over, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("changed my mind")
	cancel(cause)
	spec := s.spec(t)
	if m, err := s.Driver.Start(over, spec); err == nil {
		m.Close(context.Background())
		t.Error("Start with a dead context succeeds")
	} else if !errors.Is(err, cause) {
		t.Errorf("Start with a dead context: %v", err)
	}
	// And in the middle, at several moments.
	for _, after := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond} {
		spec := s.spec(t)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		m, err := s.Driver.Start(ctx, spec)
		if err == nil {
			<-ctx.Done() // has no hold on it any more
			select {
			case err := <-ended(m):
				t.Errorf("the machine ended with its Start's context: %v", err)
			case <-time.After(20 * time.Millisecond):
			}
			if err := m.Close(context.Background()); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		cancel()
		if p := processes(spec.ID); len(p) > 0 {
			t.Errorf("cancelled after %v: processes are left: %q", after, p)
		}
	}
}

func ended(m vm.Machine) <-chan error {
	c := make(chan error, 1)
	go func() { c <- m.Wait() }()
	return c
}

func (s *Suite) badSpec(t *testing.T) {
	for name, change := range map[string]func(*vm.Spec){
		"no id":         func(s *vm.Spec) { s.ID = "" },
		"id with space": func(s *vm.Spec) { s.ID = "a b" },
		"no memory":     func(s *vm.Spec) { s.MemoryMiB = 0 },
		"no dir":        func(s *vm.Spec) { s.Dir = "" },
		"absent dir":    func(s *vm.Spec) { s.Dir += "-not" },
		"absent disk":   func(s *vm.Spec) { s.Disks = append(s.Disks, vm.Disk{ID: "x", Path: "/nowhere/at/all"}) },
		"absent net":    func(s *vm.Spec) { s.Net = "/nowhere/at/all.sock" },
		"disk format":   func(s *vm.Spec) { s.Disks = append(s.Disks, vm.Disk{ID: "x", Path: "/dev/null", Format: "vhd"}) },
	} {
		spec := s.spec(t)
		change(&spec)
		m, err := s.Driver.Start(t.Context(), spec)
		if err == nil {
			t.Errorf("%s: Start succeeds", name)
			m.Close(context.Background())
		}
	}
}

// deleteBy lets a machine's time pass and reaps.
func (s *Suite) deleteBy(t *testing.T) {
	spec, other := s.spec(t), s.spec(t)
	other.Dir = filepath.Join(filepath.Dir(spec.Dir), other.ID)
	if err := os.MkdirAll(other.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	spec.DeleteBy = time.Now().Add(-time.Second)
	other.DeleteBy = time.Now().Add(time.Hour)
	m, keep := s.start(t, spec), s.start(t, other)
	reaped, err := vm.Reap(t.Context(), filepath.Dir(spec.Dir), time.Hour)
	if err != nil || len(reaped) != 1 || reaped[0].ID != spec.ID {
		t.Fatalf("Reap: %+v, %v; want %s only", reaped, err, spec.ID)
	}
	if s.Driver.Capabilities().Process {
		if err := wait(t, m); err == nil {
			t.Error("Wait calls a reaped machine fine")
		}
	}
	gone(t, spec.ID, spec.Dir)
	select {
	case err := <-ended(keep):
		t.Errorf("the machine whose time is not over ended: %v", err)
	default:
	}
}

func (s *Suite) longPath(t *testing.T) {
	spec := s.spec(t)
	spec.Dir = filepath.Join(spec.Dir, strings.Repeat("deep/", 30))
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, c, _ := s.up(t, spec)
	if _, err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// template snapshots a machine and does to its clones what can be done to them.
func (s *Suite) template(t *testing.T) {
	spec := s.spec(t)
	spec.Template = true
	m, c, _ := s.up(t, spec)
	s.do(t, c, "put", s.Disk(m), "template's disk")
	s.do(t, c, "put", s.Memory(m), "template's memory")
	c.Close()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in-the-way"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Snapshot(t.Context(), dir); err == nil {
		t.Fatal("Snapshot into a directory that is not empty succeeds")
	}
	dir = t.TempDir()
	if err := m.Snapshot(t.Context(), dir); err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	if err := wait(t, m); err != nil {
		t.Errorf("Wait of a template after its snapshot: %v", err)
	}
	if err := m.Close(t.Context()); err != nil {
		t.Errorf("Close of a template after its snapshot: %v", err)
	}
	before := contents(t, dir)
	t.Run("Clones", func(t *testing.T) { s.clones(t, dir) })
	t.Run("Rewind", func(t *testing.T) { s.rewind(t, dir) })
	for name, sum := range contents(t, dir) {
		if sum != before[name] {
			t.Errorf("%s of the snapshot was changed by its clones", name)
		}
	}
	t.Run("Refused", func(t *testing.T) { s.refused(t, dir) })
	t.Run("Hung", func(t *testing.T) { s.hung(t, dir) })
}

func (s *Suite) restore(t *testing.T, dir string) vm.Machine {
	t.Helper()
	id := newID()
	spec := vm.Spec{ID: id, Dir: s.dir(t, id), Net: s.Spec.Net}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	m, err := s.Driver.Restore(ctx, dir, spec)
	if err != nil {
		t.Fatalf("Restore: %v", err)
	}
	s.allowed[spec.Dir], s.allowed[dir] = true, true
	s.track(t, m, spec.Dir)
	return m
}

// clones makes three of one snapshot and looks for what they share.
func (s *Suite) clones(t *testing.T, dir string) {
	type clone struct {
		m vm.Machine
		c *guest.Client
	}
	var all []clone
	for range 3 {
		m := s.restore(t, dir)
		all = append(all, clone{m, connect(t, m)})
	}
	// Each is another user, or in another user namespace.
	var users []jail.Walls
	for _, c := range all {
		users = append(users, s.walls(t, c.m))
	}
	if w := users; w[0].UID != 0 && !w[0].NewUser && (w[0].UID == w[1].UID || w[1].UID == w[2].UID || w[0].UID == w[2].UID) {
		t.Errorf("clones share a user: %d, %d, %d", w[0].UID, w[1].UID, w[2].UID)
	}
	random := map[string]int{}
	for i, c := range all {
		if err := c.c.Resume(t.Context(), guest.Identity{Hostname: fmt.Sprintf("clone-%d", i), Time: time.Now(),
			Entropy: fmt.Appendf(nil, "%064d", i)}); err != nil {
			t.Fatalf("Resume: %v", err)
		}
		if d, m := s.do(t, c.c, "get", s.Disk(c.m)), s.do(t, c.c, "get", s.Memory(c.m)); d != "template's disk" || m != "template's memory" {
			t.Errorf("clone %d has %q and %q of its template", i, d, m)
		}
		s.do(t, c.c, "put", s.Disk(c.m), fmt.Sprintf("disk of %d", i))
		s.do(t, c.c, "put", s.Memory(c.m), fmt.Sprintf("memory of %d", i))
		random[s.do(t, c.c, "random")] = i
	}
	if len(random) != len(all) {
		t.Errorf("%d clones drew %d different random numbers", len(all), len(random))
	}
	for i, c := range all {
		if got, want := s.do(t, c.c, "get", s.Disk(c.m)), fmt.Sprintf("disk of %d", i); got != want {
			t.Errorf("clone %d reads %q from its disk", i, got)
		}
		if got, want := s.do(t, c.c, "get", s.Memory(c.m)), fmt.Sprintf("memory of %d", i); got != want {
			t.Errorf("clone %d reads %q from its memory", i, got)
		}
		if s.OnHost {
			continue
		}
		if got, want := s.do(t, c.c, "hostname"), fmt.Sprintf("clone-%d", i); got != want {
			t.Errorf("clone %d is called %q", i, got)
		}
		ms, err := strconv.ParseInt(s.do(t, c.c, "time"), 10, 64)
		if d := time.Since(time.UnixMilli(ms)); err != nil || d.Abs() > 10*time.Second {
			t.Errorf("clone %d is %v off", i, d)
		}
	}
}

// rewind snapshots a clone while it runs, lets it go on, and goes back.
func (s *Suite) rewind(t *testing.T, dir string) {
	m := s.restore(t, dir)
	c := connect(t, m)
	s.do(t, c, "put", s.Disk(m), "first")
	s.do(t, c, "put", s.Memory(m), "one")
	shot := t.TempDir()
	if err := m.Snapshot(t.Context(), shot); err != nil {
		t.Fatalf("Snapshot of a clone: %v", err)
	}
	// It goes on, on the same connection where there is a choice.
	if s.StreamsEnd {
		select {
		case <-c.Done():
		case <-time.After(5 * time.Second): // long before a heartbeat would notice
			t.Error("the stream that the snapshot ended is still open")
		}
		c = connect(t, m)
	}
	s.do(t, c, "put", s.Disk(m), "second")
	s.do(t, c, "put", s.Memory(m), "two")
	for range 2 {
		b := s.restore(t, shot)
		bc := connect(t, b)
		if d, mem := s.do(t, bc, "get", s.Disk(b)), s.do(t, bc, "get", s.Memory(b)); d != "first" || mem != "one" {
			t.Errorf("restored: %q and %q, want first and one", d, mem)
		}
		s.do(t, bc, "put", s.Disk(b), "other")
	}
	if d, mem := s.do(t, c, "get", s.Disk(m)), s.do(t, c, "get", s.Memory(m)); d != "second" || mem != "two" {
		t.Errorf("the original has %q and %q, want second and two", d, mem)
	}
	// A snapshot that fails leaves the machine running.
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Snapshot(over, t.TempDir()); err == nil {
		t.Error("Snapshot with a dead context succeeds")
	}
	if s.StreamsEnd && c.Err() != nil {
		c = connect(t, m)
	}
	if got := s.do(t, c, "echo", "still here"); got != "still here" {
		t.Errorf("after a failed snapshot: %q", got)
	}
}

// refused damages a snapshot in many ways.
func (s *Suite) refused(t *testing.T, dir string) {
	r := s.Driver
	try := func(t *testing.T, dir string, change func(*vm.Spec)) error {
		id := newID()
		spec := vm.Spec{ID: id, Dir: s.dir(t, id), Net: s.Spec.Net}
		if change != nil {
			change(&spec)
		}
		m, err := r.Restore(t.Context(), dir, spec)
		if err == nil {
			m.Close(context.Background())
		}
		if p := processes(id); len(p) > 0 {
			t.Errorf("processes are left: %q", p)
		}
		return err
	}
	if err := try(t, t.TempDir(), nil); !errors.Is(err, vm.ErrSnapshot) {
		t.Errorf("empty directory: %v", err)
	}
	if err := try(t, filepath.Join(dir, "not"), nil); !errors.Is(err, vm.ErrSnapshot) {
		t.Errorf("absent directory: %v", err)
	}
	if err := try(t, dir, func(spec *vm.Spec) { spec.MemoryMiB = s.Spec.MemoryMiB + 64 }); err == nil {
		t.Error("another size of memory than the snapshot's: Restore succeeds")
	}
	if err := try(t, dir, func(spec *vm.Spec) { spec.CPUs = s.Spec.CPUs + 1 }); err == nil {
		t.Error("another number of CPUs than the snapshot's: Restore succeeds")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		for damage, do := range map[string]func(path string) error{
			"removed":   os.Remove,
			"cut short": func(p string) error { return cut(p) },
			"flipped":   flip,
		} {
			bad := t.TempDir()
			for _, f := range entries {
				from, to := filepath.Join(dir, f.Name()), filepath.Join(bad, f.Name())
				if f.Name() != name {
					err = os.Link(from, to)
				} else {
					err = vm.CopySparse(t.Context(), to, from)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := do(filepath.Join(bad, name)); err != nil {
				t.Fatal(err)
			}
			err = s.Driver.Verify(t.Context(), bad)
			if !errors.Is(err, vm.ErrSnapshot) {
				t.Errorf("%s %s: %v", name, damage, err)
			}
			if damage != "flipped" {
				if err := try(t, bad, nil); !errors.Is(err, vm.ErrSnapshot) {
					t.Errorf("%s %s: Restore: %v", name, damage, err)
				}
			}
		}
	}
}

func cut(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.Truncate(path, fi.Size()/2)
}

// flip changes one byte in the middle.
func flip(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], fi.Size()/2); err != nil {
		return err
	}
	b[0] ^= 0x80
	_, err = f.WriteAt(b[:], fi.Size()/2)
	return err
}

// hung stops a machine for good: the host's client must notice.
func (s *Suite) hung(t *testing.T, dir string) {
	m := s.restore(t, dir)
	if !s.Driver.Capabilities().Pause {
		t.Logf("driver %s cannot pause: not tested", s.Driver.Name())
		return
	}
	c := connect(t, m, guest.WithHeartbeat(time.Second))
	ended := make(chan error, 1)
	out := make(chan struct{})
	go func() {
		_, err := c.Exec(context.Background(), guest.Cmd{Argv: []string{s.Tool, "sleep"}, Stdout: &first{seen: out}, User: s.user(), Dir: "/"})
		ended <- err
	}()
	select {
	case <-out:
	case err := <-ended:
		t.Fatalf("the command ended before it began: %v", err)
	case <-time.After(limit):
		t.Fatal("the command does not start")
	}
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a command in a hung machine has a result")
		}
	case <-time.After(limit):
		t.Error("Exec waits for ever for a hung machine")
	}
}

// contents returns the modification time and size of each file, which is what a
// clone that wrote to its template would change.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		m[e.Name()] = fmt.Sprint(fi.Size(), fi.ModTime().UnixNano())
	}
	return m
}
