package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/pool"
	"github.com/hearth-ci/hearth/internal/vm"
)

// VMOptions say what to measure machines with.
type VMOptions struct {
	Driver           vm.Driver
	Image            *image.Image
	RunDir, CacheDir string // as in pool.Config
	CPUs, MemoryMiB  int    // of a machine; 1 and 512
	Clones           int    // kept at once; 50
	Rounds           int    // of most figures; 20
	Progress         func(what string)
}

// The targets, for a host without KVM (software emulation) and two CPUs.
const (
	targetCold     = 4000.0 // ms
	targetRestore  = 110.0  // ms
	targetClaim    = 15.0   // ms
	targetOverhead = 2.0    // ms
	targetClones   = 7.0    // s for 50
	targetPrivate  = 30.0   // MB
	targetIdle     = 1.0    // % of a core
)

// VM measures a driver: how long machines take to come, what a command costs,
// and what many of them weigh.
func VM(ctx context.Context, o VMOptions) (*Report, error) {
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.MemoryMiB == 0 {
		o.MemoryMiB = 512
	}
	if o.Clones == 0 {
		o.Clones = 50
	}
	if o.Rounds == 0 {
		o.Rounds = 20
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	dir, err := os.MkdirTemp(o.RunDir, "bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	b := &vmBench{VMOptions: o, dir: dir, report: NewReport()}
	stop, err := b.sink()
	if err != nil {
		return nil, err
	}
	defer stop()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"cold boots", b.cold},
		{"restores", b.restores},
		{"commands", b.commands},
		{"clones", b.clones},
		{"warm claims", b.claims},
	} {
		o.Progress(step.what)
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("bench %s: %w", step.what, err)
		}
	}
	return b.report, nil
}

type vmBench struct {
	VMOptions
	dir      string
	net      string // the sink's socket
	template string
	report   *Report
	n        atomic.Int64
}

// sink is a network at which all machines' cables end: they have the device,
// and nobody answers.
func (b *vmBench) sink() (stop func(), err error) {
	b.net = filepath.Join(b.dir, "net.sock")
	l, err := vm.ListenUnix(b.net)
	if err != nil {
		return nil, err
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { // until its machine has ended
				defer c.Close()
				io.Copy(io.Discard, c)
			})
		}
	})
	return func() { l.Close(); all.Wait() }, nil
}

// subject is one machine under measurement.
type subject struct {
	vm.Machine
	client *guest.Client
}

func (b *vmBench) next() (id, dir string, err error) {
	id = fmt.Sprintf("bench-%d-%d", os.Getpid(), b.n.Add(1))
	dir = filepath.Join(b.dir, id)
	return id, dir, os.Mkdir(dir, 0o700)
}

// connect completes a machine, or ends it.
func connect(ctx context.Context, m vm.Machine) (*subject, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := guest.Connect(ctx, m.Dial)
	if err != nil {
		return nil, errors.Join(vm.Explain(m, "connect", err), m.Close(context.WithoutCancel(ctx)))
	}
	return &subject{m, c}, nil
}

func (m *subject) end(ctx context.Context) error {
	m.client.Close()
	return m.Close(context.WithoutCancel(ctx))
}

func (b *vmBench) boot(ctx context.Context) (*subject, error) {
	id, dir, err := b.next()
	if err != nil {
		return nil, err
	}
	s := pool.Spec(b.Image, b.CPUs, b.MemoryMiB)
	s.ID, s.Dir, s.Net, s.Template = id, dir, b.net, true
	if b.Image.Base != "" {
		empty, err := image.Scratch(ctx, filepath.Join(b.CacheDir, "scratch"), 8<<30)
		if err != nil {
			return nil, err
		}
		own := filepath.Join(dir, "scratch.img")
		if err := vm.CopySparse(ctx, own, empty); err != nil {
			return nil, err
		}
		s.Disks = append(s.Disks, vm.Disk{ID: "scratch", Path: own})
	}
	m, err := b.Driver.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	return connect(ctx, m)
}

// cold boots, and snapshots what it booted; the last becomes the template.
func (b *vmBench) cold(ctx context.Context) error {
	var boots, snapshots []float64
	const rounds = 4
	for i := range rounds {
		begin := time.Now()
		m, err := b.boot(ctx)
		if err != nil {
			return err
		}
		boots = append(boots, millis(time.Since(begin)))
		// What the pool does before it snapshots, so that clones are alike.
		if _, err := m.client.Exec(ctx, guest.Cmd{Argv: b.shell("true"), User: "root", Dir: "/"}); err != nil {
			return errors.Join(err, m.end(ctx))
		}
		m.client.Sync(ctx)
		if !b.Driver.Capabilities().Snapshots {
			if err := m.end(ctx); err != nil {
				return err
			}
			continue
		}
		out := filepath.Join(b.dir, fmt.Sprintf("template-%d", i))
		if err := os.Mkdir(out, 0o700); err != nil {
			return errors.Join(err, m.end(ctx))
		}
		m.client.Close()
		begin = time.Now()
		if err := m.Snapshot(ctx, out); err != nil {
			return errors.Join(err, m.end(ctx))
		}
		snapshots = append(snapshots, millis(time.Since(begin)))
		if err := m.end(ctx); err != nil {
			return err
		}
		if b.template != "" {
			os.RemoveAll(b.template)
		}
		b.template = out
	}
	b.report.Add("cold boot to ready", "ms", targetCold, boots)
	if len(snapshots) > 0 {
		b.report.Add("snapshot of a template", "ms", 0, snapshots)
	}
	return nil
}

// shell is a command that every image with a root file system has.
func (b *vmBench) shell(script string) []string {
	if b.Image.Base == "" {
		return []string{"/init", "version"}
	}
	return []string{"/bin/bash", "-c", script}
}

func (b *vmBench) restore(ctx context.Context) (*subject, error) {
	id, dir, err := b.next()
	if err != nil {
		return nil, err
	}
	m, err := b.Driver.Restore(ctx, b.template, vm.Spec{ID: id, Dir: dir, Net: b.net})
	if err != nil {
		return nil, err
	}
	return connect(ctx, m)
}

func (b *vmBench) restores(ctx context.Context) error {
	if b.template == "" {
		return nil
	}
	var reply, command, live []float64
	for i := range b.Rounds {
		begin := time.Now()
		m, err := b.restore(ctx)
		if err != nil {
			return err
		}
		reply = append(reply, millis(time.Since(begin)))
		if _, err := m.client.Exec(ctx, guest.Cmd{Argv: b.shell("echo hi"), User: "root", Dir: "/"}); err != nil {
			return errors.Join(err, m.end(ctx))
		}
		command = append(command, millis(time.Since(begin)))
		if i < 3 {
			out := filepath.Join(b.dir, fmt.Sprintf("live-%d", i))
			if err := os.Mkdir(out, 0o700); err != nil {
				return errors.Join(err, m.end(ctx))
			}
			begin := time.Now()
			if err := m.Snapshot(ctx, out); err != nil {
				return errors.Join(err, m.end(ctx))
			}
			live = append(live, millis(time.Since(begin)))
			os.RemoveAll(out)
		}
		if err := m.end(ctx); err != nil {
			return err
		}
	}
	b.report.Add("restore to first reply", "ms", targetRestore, reply)
	b.report.Add("restore to first command's end (cold)", "ms", 0, command)
	b.report.Add("snapshot of a running clone", "ms", 0, live)
	return nil
}

// commands measures what a command costs, and moves files.
func (b *vmBench) commands(ctx context.Context) error {
	var m *subject
	var err error
	if b.template != "" {
		m, err = b.restore(ctx)
	} else {
		m, err = b.boot(ctx)
	}
	if err != nil {
		return err
	}
	defer m.end(ctx)
	argv := []string{"/bin/true"}
	if b.Image.Base == "" {
		argv = []string{"/init", "version"}
	}
	n := 10 * b.Rounds
	exec := func() (time.Duration, error) {
		begin := time.Now()
		x, err := m.client.Exec(ctx, guest.Cmd{Argv: argv, User: "root", Dir: "/"})
		if err == nil && !x.OK() {
			err = fmt.Errorf("%q: %s", argv, x)
		}
		return time.Since(begin), err
	}
	// The emulator translates code when it first runs: not what is measured.
	for range 30 {
		if _, err := exec(); err != nil {
			return err
		}
	}
	var trips, floor, over []float64
	// In turns, so that what else the host does falls on both.
	for range 10 {
		f, err := m.client.Floor(ctx, argv, n/10)
		if err != nil {
			return err
		}
		for _, d := range f {
			floor = append(floor, millis(d))
		}
		for range n / 10 {
			d, err := exec()
			if err != nil {
				return err
			}
			trips = append(trips, millis(d))
		}
	}
	b.report.Add("exec round trip", "ms", 0, trips)
	b.report.Add("the same fork and exec, timed in the guest", "ms", 0, floor)
	base := b.report.Figures[len(b.report.Figures)-1].P50
	for _, t := range trips {
		over = append(over, t-base)
	}
	b.report.Add("exec overhead over that floor", "ms", targetOverhead, over)

	const size = 32 << 20
	data := bytes.Repeat([]byte("hearth"), size/6)
	var in, out []float64
	for range 4 {
		begin := time.Now()
		if err := m.client.WriteFile(ctx, "/tmp/bench", data, 0o600, "root"); err != nil {
			return err
		}
		in = append(in, float64(len(data))/1e6/time.Since(begin).Seconds())
		begin = time.Now()
		if _, err := m.client.ReadFile(ctx, "/tmp/bench", size); err != nil {
			return err
		}
		out = append(out, float64(len(data))/1e6/time.Since(begin).Seconds())
	}
	b.report.Add("file to the guest", "MB/s", 0, in)
	b.report.Add("file from the guest", "MB/s", 0, out)
	return nil
}

// clones makes many, and weighs them.
func (b *vmBench) clones(ctx context.Context) (err error) {
	if b.template == "" {
		return nil
	}
	var all []*subject
	defer func() {
		for _, m := range all {
			err = errors.Join(err, m.end(ctx))
		}
	}()
	begin := time.Now()
	var mu sync.Mutex
	var workers sync.WaitGroup
	work := make(chan struct{}, b.Clones)
	for range b.Clones {
		work <- struct{}{}
	}
	close(work)
	for range runtime.NumCPU() {
		workers.Go(func() {
			for range work {
				m, e := b.restore(ctx)
				mu.Lock()
				if e != nil {
					err = errors.Join(err, e)
				} else {
					all = append(all, m)
				}
				failed := err != nil
				mu.Unlock()
				if failed {
					return
				}
			}
		})
	}
	workers.Wait()
	if err != nil {
		return err
	}
	took := time.Since(begin).Seconds()
	target := targetClones * float64(b.Clones) / 50
	b.report.Add(fmt.Sprintf("%d clones, all kept", b.Clones), "s", target, []float64{took})
	b.report.Add("clones a second", "1/s", 0, []float64{float64(b.Clones) / took})
	var private, idle []float64
	ticks := func(m *subject) (float64, bool) {
		return cpuSeconds(m.Pid())
	}
	// Let what a restore leaves to be done be done.
	if err := pause(ctx, 2*time.Second); err != nil {
		return err
	}
	before := make([]float64, len(all))
	for i, m := range all {
		before[i], _ = ticks(m)
	}
	begin = time.Now()
	if err := pause(ctx, 5*time.Second); err != nil {
		return err
	}
	for i, m := range all {
		t, ok := ticks(m)
		if !ok {
			continue
		}
		idle = append(idle, 100*(t-before[i])/time.Since(begin).Seconds())
		if kb, err := privateKB(m.Pid()); err == nil {
			private = append(private, float64(kb)/1000)
		}
	}
	if len(idle) > 0 {
		b.report.Add("idle clone's private memory", "MB", targetPrivate, private)
		b.report.Add("idle clone's CPU", "% of a core", targetIdle, idle)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// cpuSeconds is how much CPU time a process has used.
func cpuSeconds(pid int) (float64, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0, false
	}
	user, err1 := strconv.ParseFloat(f[11], 64)
	system, err2 := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100, err1 == nil && err2 == nil // USER_HZ is 100 everywhere
}

// privateKB is the memory that only this process has and that cannot be read
// from a file again.
func privateKB(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Private_Dirty:"); ok {
			return strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
		}
	}
	return 0, errors.New("no Private_Dirty in smaps_rollup")
}

// claims measures the pool.
func (b *vmBench) claims(ctx context.Context) (err error) {
	p, err := pool.New(pool.Config{Driver: b.Driver, Image: b.Image, RunDir: b.dir, CacheDir: b.CacheDir, CPUs: b.CPUs, MemoryMiB: b.MemoryMiB, Warm: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close(context.WithoutCancel(ctx))) }()
	if err := p.Prepare(ctx, machine.Request{}); err != nil {
		return err
	}
	echo := []string{"/bin/echo", "hi"}
	if b.Image.Base == "" {
		echo = b.shell("")
	}
	var claims, firsts, scripts []float64
	for n := range 2 * b.Rounds {
		for p.Stats().Warm == 0 {
			if err := pause(ctx, 5*time.Millisecond); err != nil {
				return err
			}
		}
		// The machine is ready; let the host be as well.
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
		begin := time.Now()
		l, err := p.Claim(ctx, machine.Request{})
		if err != nil {
			return err
		}
		claims = append(claims, millis(time.Since(begin)))
		w := &firstByte{begin: begin}
		argv, into := echo, &firsts
		if n%2 == 1 {
			argv, into = b.shell("echo hi"), &scripts
		}
		_, err = l.Client().Exec(ctx, guest.Cmd{Argv: argv, User: "root", Dir: "/", Stdout: w})
		err = errors.Join(err, l.Release(ctx))
		if err != nil {
			return err
		}
		*into = append(*into, millis(w.took))
	}
	b.report.Add("claim of a warm machine", "ms", 0, claims)
	b.report.Add("warm claim to first byte of echo", "ms", targetClaim, firsts)
	b.report.Add("warm claim to first byte of a bash script", "ms", 0, scripts)
	return nil
}

type firstByte struct {
	begin time.Time
	took  time.Duration
}

func (f *firstByte) Write(p []byte) (int, error) {
	if f.took == 0 && len(p) > 0 {
		f.took = time.Since(f.begin)
	}
	return len(p), nil
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
