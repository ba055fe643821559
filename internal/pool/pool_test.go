package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/machine/machinetest"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/vmtest"
)

// shelf keeps templates in a directory.
type shelf struct {
	mu    sync.Mutex
	dir   string
	made  int
	drops int
	held  int
}

func (s *shelf) Template(ctx context.Context, key string, create func(ctx context.Context, dir string) error) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := filepath.Join(s.dir, strings.ReplaceAll(key, "/", "_"))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(s.dir, "tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := create(ctx, tmp); err != nil {
		return "", err
	}
	s.made++
	return dir, os.Rename(tmp, dir)
}

func (s *shelf) DropTemplate(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drops++
	return os.RemoveAll(filepath.Join(s.dir, strings.ReplaceAll(key, "/", "_")))
}

func (s *shelf) Hold() (func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held++
	return func() { s.mu.Lock(); s.held--; s.mu.Unlock() }, nil
}

func (s *shelf) counts() (made, drops, held int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.made, s.drops, s.held
}

// rig is a pool on fake machines.
type rig struct {
	*Pool
	fake  *vmtest.Fake
	shelf *shelf
	log   *bytes.Buffer
}

func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	s := &shelf{dir: t.TempDir()}
	t.Cleanup(func() { // after the pool's own
		if _, _, held := s.counts(); held != 0 {
			t.Errorf("the image is held %d times", held)
		}
	})
	return rigOn(t, s, change)
}

func rigOn(t *testing.T, s *shelf, change func(*Config)) *rig {
	t.Helper()
	before := runtime.NumGoroutine()
	r := &rig{fake: &vmtest.Fake{}, shelf: s, log: &bytes.Buffer{}}
	cfg := Config{
		Driver: r.fake, Image: &image.Image{ID: "test", Name: "test", Kernel: "none"},
		RunDir: t.TempDir(), CacheDir: t.TempDir(), CPUs: 1, MemoryMiB: 64,
		Means: machine.Means{CPUs: 4, MemoryMiB: 64 * 8}, Touch: []string{},
		Log: slog.New(slog.NewTextHandler(r.log, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	p, err := newPool(cfg, func(*image.Image) source { return s })
	if err != nil {
		t.Fatal(err)
	}
	r.Pool = p
	t.Cleanup(func() {
		if err := p.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
		if m := r.fake.Machines(); len(m) > 0 {
			t.Errorf("%d machines are left", len(m))
		}
		if left, _ := os.ReadDir(p.machines); len(left) > 0 {
			t.Errorf("left in the machines' directory: %v", left)
		}
		for range 200 { // what ends by itself, soon
			if runtime.NumGoroutine() <= before {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		buf := make([]byte, 64<<10)
		t.Errorf("goroutines are left: %d, before %d\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
	})
	return r
}

func (r *rig) claim(t *testing.T, q machine.Request) *Lease {
	t.Helper()
	l, err := r.Pool.claim(t.Context(), q)
	if err != nil {
		t.Fatalf("Claim: %v", err)
	}
	return l
}

func release(t *testing.T, l *Lease) {
	t.Helper()
	if err := l.Release(t.Context()); err != nil {
		t.Errorf("Release: %v", err)
	}
}

// until waits for a condition that a goroutine brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: never", what)
		}
	}
}

func echo(t *testing.T, l *Lease) {
	t.Helper()
	var out bytes.Buffer
	x, err := l.Client().Exec(t.Context(), guest.Cmd{Argv: []string{"/bin/echo", "hi"}, Stdout: &out})
	if err != nil || !x.OK() || out.String() != "hi\n" {
		t.Errorf("echo: %v, %v, %q", x, err, out.String())
	}
}

func TestSession(t *testing.T) {
	r := newRig(t, nil)
	l := r.claim(t, machine.Request{Labels: []string{"ubuntu-latest"}})
	if s := l.Session(); s.State != machine.Created || s.Warm || s.Driver != "fake" || s.Labels[0] != "ubuntu-latest" {
		t.Errorf("session: %+v", s)
	}
	l.Begin()
	if s := l.Session(); s.State != machine.Executing {
		t.Errorf("after Begin: %s", s.State)
	}
	echo(t, l)
	l.End(t.Context(), true, "")
	if s := l.Session(); s.State != machine.Completed {
		t.Errorf("after End: %s", s.State)
	}
	rec, err := vm.ReadRecord(filepath.Join(r.machines, l.ID()))
	until(t, "record", func() bool {
		rec, err = vm.ReadRecord(filepath.Join(r.machines, l.ID()))
		return err == nil && rec.DeleteBy.Equal(l.request.Deadline)
	})
	release(t, l)
	release(t, l)
	if _, err := os.Stat(filepath.Join(r.machines, l.ID())); err == nil {
		t.Error("the machine's directory is left")
	}
	if err := l.Client().Sync(t.Context()); err == nil {
		t.Error("the client works after Release")
	}
	failed := r.claim(t, machine.Request{})
	failed.Begin()
	failed.End(t.Context(), false, "exit 1")
	release(t, failed)
	release(t, r.claim(t, machine.Request{})) // given back without a word
	var got []string
	for _, s := range r.Sessions() {
		got = append(got, string(s.State)+"/"+string(s.Outcome))
	}
	if want := "[released/completed released/failed released/failed]"; fmt.Sprint(got) != want {
		t.Errorf("sessions: %v, want %s", got, want)
	}
	if s := r.Stats(); s.Leased != 0 || s.Claims != 3 || s.Completed != 1 || s.Failed != 2 || s.Used != (machine.Means{}) {
		t.Errorf("stats: %+v", s)
	}
	if made, _, _ := r.shelf.counts(); made != 1 {
		t.Errorf("%d templates for one kind", made)
	}
}

func TestWarm(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Warm = 2 })
	if err := r.Prepare(t.Context(), machine.Request{}); err != nil {
		t.Fatal(err)
	}
	until(t, "two warm machines", func() bool { return r.Stats().Warm == 2 })
	a := r.claim(t, machine.Request{})
	b := r.claim(t, machine.Request{})
	if !a.Session().Warm || !b.Session().Warm {
		t.Error("a claim did not get the machine that was ready")
	}
	ia, ib := a.Machine().(*vmtest.FakeMachine).Identity(), b.Machine().(*vmtest.FakeMachine).Identity()
	if ib.Hostname != "hearth-"+b.ID() {
		t.Errorf("host name %q", ib.Hostname)
	}
	if time.Since(ia.Time).Abs() > time.Minute {
		t.Errorf("clock: %v", ia.Time)
	}
	until(t, "two more", func() bool { return r.Stats().Warm == 2 })
	// One that died while it waited is passed over.
	for _, m := range r.fake.Machines() {
		if m.ID() != a.ID() && m.ID() != b.ID() {
			m.Kill()
		}
	}
	c := r.claim(t, machine.Request{})
	echo(t, c)
	for _, l := range []*Lease{a, b, c} {
		release(t, l)
	}
}

func TestIdentities(t *testing.T) {
	r := newRig(t, nil)
	seen := map[string]string{}
	for range 3 {
		l := r.claim(t, machine.Request{})
		id := l.Machine().(*vmtest.FakeMachine).Identity()
		for name, v := range map[string]string{"machine id": id.MachineID, "boot id": id.BootID, "host name": id.Hostname, "entropy": string(id.Entropy)} {
			if v == "" || seen[v] != "" {
				t.Errorf("%s %q is empty or another's %s", name, v, seen[v])
			}
			seen[v] = name
		}
		if len(id.Entropy) < 32 || len(id.BootID) != 36 || len(id.MachineID) != 32 {
			t.Errorf("identity: %+v", id)
		}
		release(t, l)
	}
}

func TestMeansAreGivenInOrder(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Means.CPUs = 2 })
	first := r.claim(t, machine.Request{CPUs: 2})
	if _, err := r.Claim(t.Context(), machine.Request{CPUs: 3}); !errors.Is(err, machine.ErrTooLarge) || !strings.Contains(err.Error(), "3 CPUs") {
		t.Errorf("more than there is: %v", err)
	}
	if _, err := r.Claim(t.Context(), machine.Request{MemoryMiB: 1 << 20}); !errors.Is(err, machine.ErrTooLarge) {
		t.Errorf("more memory than there is: %v", err)
	}
	if _, err := r.Claim(t.Context(), machine.Request{NoWait: true}); !errors.Is(err, machine.ErrBusy) {
		t.Errorf("NoWait: %v", err)
	}
	got := make(chan string, 3)
	var wg sync.WaitGroup
	leases := map[string]*Lease{}
	var mu sync.Mutex
	ask := func(name string, cpus int) {
		n := r.Stats().Waiting
		wg.Go(func() {
			l, err := r.Pool.claim(t.Context(), machine.Request{CPUs: cpus})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			mu.Lock()
			leases[name] = l
			mu.Unlock()
			got <- name
		})
		until(t, name+" waits", func() bool { return r.Stats().Waiting == n+1 })
	}
	ask("large", 2)
	ask("small", 1) // must not overtake
	// One that gives up lets those behind it through, and counts for nothing.
	ctx, cancel := context.WithCancelCause(t.Context())
	gaveUp := errors.New("gave up")
	cancel(gaveUp)
	if _, err := r.Claim(ctx, machine.Request{}); !errors.Is(err, gaveUp) {
		t.Errorf("a dead context: %v", err)
	}
	release(t, first)
	if name := <-got; name != "large" {
		t.Errorf("%s came first", name)
	}
	select {
	case name := <-got:
		t.Errorf("%s got means that are not there", name)
	case <-time.After(20 * time.Millisecond):
	}
	mu.Lock()
	l := leases["large"]
	mu.Unlock()
	release(t, l)
	if name := <-got; name != "small" {
		t.Errorf("%s came second", name)
	}
	wg.Wait()
	release(t, leases["small"])
}

func TestGivingUpLetsOthersThrough(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Means.CPUs = 2 })
	one := r.claim(t, machine.Request{CPUs: 1})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := r.Pool.claim(ctx, machine.Request{CPUs: 2}); !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
	})
	until(t, "the large one waits", func() bool { return r.Stats().Waiting == 1 })
	small := make(chan *Lease, 1)
	wg.Go(func() {
		l, err := r.Pool.claim(t.Context(), machine.Request{CPUs: 1})
		if err != nil {
			t.Error(err)
		}
		small <- l
	})
	until(t, "the small one waits behind it", func() bool { return r.Stats().Waiting == 2 })
	cancel()
	release(t, <-small)
	wg.Wait()
	release(t, one)
}

func TestWarmMachinesGiveWay(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Warm, c.Means.MemoryMiB = 2, 256 })
	if err := r.Prepare(t.Context(), machine.Request{}); err != nil {
		t.Fatal(err)
	}
	until(t, "two warm machines", func() bool { return r.Stats().Warm == 2 })
	l := r.claim(t, machine.Request{MemoryMiB: 256})
	until(t, "none is warm beside a machine that takes everything", func() bool { return r.Stats().Warm == 0 && len(r.fake.Machines()) == 1 })
	release(t, l)
}

func TestMax(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Max = 1 })
	l := r.claim(t, machine.Request{})
	if _, err := r.Claim(t.Context(), machine.Request{NoWait: true}); !errors.Is(err, machine.ErrBusy) {
		t.Errorf("a second lease of one: %v", err)
	}
	release(t, l)
	release(t, r.claim(t, machine.Request{NoWait: true}))
}

func TestLost(t *testing.T) {
	r := newRig(t, nil)
	l := r.claim(t, machine.Request{})
	l.Begin()
	ended := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		_, err := l.Client().Exec(context.Background(), guest.Cmd{Argv: []string{"/bin/sh", "-c", "echo x; sleep 1000"}, Stdout: closer(started)})
		ended <- err
	}()
	<-started
	l.Machine().(*vmtest.FakeMachine).Kill()
	if err := <-ended; err == nil {
		t.Error("a command whose machine died has a result")
	}
	<-l.Lost()
	if err := l.Err(); err == nil || !strings.Contains(err.Error(), l.ID()) {
		t.Errorf("Err: %v", err)
	}
	if _, err := l.Snapshot(t.Context()); err == nil {
		t.Error("a checkpoint of a lost machine")
	}
	release(t, l)
	if s := r.Sessions()[0]; s.Outcome != machine.Failed || s.Reason == "" {
		t.Errorf("session: %+v", s)
	}
	until(t, "counted", func() bool { return r.Stats().Lost == 1 })
}

type closer chan struct{}

func (c closer) Write(p []byte) (int, error) { close(c); return len(p), nil }

func TestDeadline(t *testing.T) {
	r := newRig(t, nil)
	l := r.claim(t, machine.Request{Deadline: time.Now().Add(30 * time.Millisecond)})
	<-l.Lost()
	if err := l.Err(); err == nil || !strings.Contains(err.Error(), "end of its time") {
		t.Errorf("Err: %v", err)
	}
	until(t, "its machine is gone", func() bool { return len(r.fake.Machines()) == 0 })
	release(t, l)
}

func TestRollback(t *testing.T) {
	r := newRig(t, nil)
	var mu sync.Mutex
	l := r.claim(t, machine.Request{Network: network.Config{Record: func(network.Connection) { mu.Lock(); defer mu.Unlock() }}})
	memory := func() string {
		return filepath.Join(l.Machine().(*vmtest.FakeMachine).Spec().Dir, vmtest.MemoryFile)
	}
	write := func(s string) {
		if err := os.WriteFile(memory(), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before")
	c, err := l.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	write("after")
	old, net, id := l.Client(), l.net, l.ID()
	for range 2 {
		if err := l.Rollback(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(memory()); string(b) != "before" {
			t.Errorf("after a rollback: %q", b)
		}
		echo(t, l)
		write("after")
	}
	if host := r.fake.Machines()[0].Identity().Hostname; host != "hearth-"+id {
		t.Errorf("after a rollback it calls itself %s", host)
	}
	if old == l.Client() || net != l.net || id != l.ID() {
		t.Error("want another client, the same network and the same id")
	}
	select {
	case <-old.Done():
	default:
		t.Error("the old client lives")
	}
	select {
	case <-l.Lost():
		t.Errorf("the lease counts as lost: %v", l.Err())
	default:
	}
	if n := len(r.fake.Machines()); n != 1 {
		t.Errorf("%d machines for one lease", n)
	}
	other := r.claim(t, machine.Request{})
	if err := other.Rollback(t.Context(), c); err == nil {
		t.Error("a rollback to another lease's checkpoint")
	}
	release(t, other)
	release(t, l)
	if err := l.Rollback(t.Context(), c); err == nil {
		t.Error("a rollback after Release")
	}
}

func TestDamagedTemplate(t *testing.T) {
	s := &shelf{dir: t.TempDir()}
	damage := func(how func([]byte) []byte) {
		files, _ := filepath.Glob(filepath.Join(s.dir, "*", vmtest.MemoryFile))
		if len(files) != 1 {
			t.Fatalf("templates: %v", files)
		}
		b, err := os.ReadFile(files[0])
		if err == nil {
			err = os.WriteFile(files[0], how(b), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Run("between processes", func(t *testing.T) {
		r := rigOn(t, s, nil)
		release(t, r.claim(t, machine.Request{}))
		damage(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }) // Restore does not see that
		r2 := rigOn(t, s, nil)
		l := r2.claim(t, machine.Request{})
		echo(t, l)
		release(t, l)
		if made, drops, _ := s.counts(); made != 2 || drops != 1 {
			t.Errorf("made %d, dropped %d", made, drops)
		}
		if !strings.Contains(r2.log.String(), "damaged") {
			t.Error("nothing was said")
		}
		damage(func([]byte) []byte { return []byte("nonsense") }) // and while a process uses it
		release(t, r2.claim(t, machine.Request{}))
		if made, drops, _ := s.counts(); made != 3 || drops != 2 {
			t.Errorf("made %d, dropped %d", made, drops)
		}
	})
}

func TestTwoPoolsAtOnce(t *testing.T) {
	s := &shelf{dir: t.TempDir()}
	run, cache := t.TempDir(), t.TempDir()
	same := func(c *Config) { c.RunDir, c.CacheDir, c.Warm = run, cache, 1 }
	a, b := rigOn(t, s, same), rigOn(t, s, same)
	var wg sync.WaitGroup
	for _, r := range []*rig{a, b, a, b} {
		wg.Go(func() {
			l, err := r.Pool.claim(t.Context(), machine.Request{})
			if err != nil {
				t.Error(err)
				return
			}
			r.sweep() // must leave the other's alone
			echo(t, l)
			if err := l.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made, _, _ := s.counts(); made != 1 {
		t.Errorf("%d templates", made)
	}
	for _, r := range []*rig{a, b} {
		if err := r.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if _, _, held := s.counts(); held != 0 {
		t.Errorf("the image is held %d times", held)
	}
}

func TestFailures(t *testing.T) {
	boom := errors.New("boom")
	r := newRig(t, func(c *Config) { c.Touch = []string{"/bin/false"} })
	r.fake.FailStart = func(s vm.Spec) error {
		if s.Template {
			return boom
		}
		return nil
	}
	if _, err := r.Claim(t.Context(), machine.Request{}); !errors.Is(err, boom) {
		t.Errorf("no template: %v", err)
	}
	r.fake.FailStart = nil
	if _, err := r.Claim(t.Context(), machine.Request{}); err == nil || !strings.Contains(err.Error(), "first command") {
		t.Errorf("a first command that fails: %v", err)
	}
	if _, err := r.Claim(t.Context(), machine.Request{Network: network.Config{Policy: network.Policy{Mode: 99}}}); err == nil {
		t.Error("a network policy that makes no sense")
	}
	if s := r.Stats(); s.Used != (machine.Means{}) || s.Leased != 0 {
		t.Errorf("means are lost: %+v", s)
	}
}

// The pool is a host of machines like any other.
func TestHost(t *testing.T) {
	machinetest.Run(t, machinetest.Suite{
		New: func(t *testing.T, most int) machine.Host {
			return newRig(t, func(c *Config) { c.Means.CPUs = most })
		},
		Kill: func(m machine.Machine) { m.(*Lease).Machine().(*vmtest.FakeMachine).Kill() },
	})
}

// bare hides everything but the driver's first duty.
type bare struct{ vm.Driver }

func (bare) Name() string                  { return "bare" }
func (bare) Capabilities() vm.Capabilities { return vm.Capabilities{} }

func TestDriverWithoutSnapshots(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Driver = bare{c.Driver} })
	l := r.claim(t, machine.Request{})
	echo(t, l)
	if made, _, _ := r.shelf.counts(); made != 0 {
		t.Error("a template for a driver that has none")
	}
	if _, err := l.Snapshot(t.Context()); err == nil {
		t.Error("a checkpoint on a driver that cannot restore")
	}
	release(t, l)
}

func TestClose(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Warm, c.Means.CPUs = 1, 1 })
	l := r.claim(t, machine.Request{})
	waiting := make(chan error, 1)
	go func() {
		_, err := r.Claim(context.Background(), machine.Request{})
		waiting <- err
	}()
	until(t, "one waits", func() bool { return r.Stats().Waiting == 1 })
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-waiting; !errors.Is(err, machine.ErrClosed) {
		t.Errorf("waiting at Close: %v", err)
	}
	if _, err := r.Claim(t.Context(), machine.Request{}); !errors.Is(err, machine.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := l.Client().Sync(t.Context()); err == nil {
		t.Error("a leased machine has survived Close")
	}
	release(t, l)
}

func TestLeftovers(t *testing.T) {
	run := t.TempDir()
	dir := filepath.Join(run, "machines", "mdead")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	record := `{"id":"mdead","driver":"qemu","owner":{"pid":1,"start":1,"boot":"another"}}`
	if err := os.WriteFile(filepath.Join(dir, vm.RecordName), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *Config) { c.RunDir = run })
	if _, err := os.Stat(dir); err == nil {
		t.Error("what a dead process left is still there")
	}
	if !strings.Contains(r.log.String(), "mdead") {
		t.Error("nothing was said about it")
	}
}

// An image without a container engine is no machine with one, and the error says what
// to do; a machine without containers is claimed all the same.
func TestNoContainers(t *testing.T) {
	r := newRig(t, nil)
	_, err := r.Claim(t.Context(), machine.Request{Containers: true})
	if !errors.Is(err, machine.ErrNoContainers) || !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "hearth image build") {
		t.Errorf("%v", err)
	}
	if err := r.claim(t, machine.Request{}).Release(t.Context()); err != nil {
		t.Error(err)
	}
	if s := r.Stats(); s.Leased != 0 || s.Used.CPUs != 0 {
		t.Errorf("means are not given back: %+v", s)
	}
}
