// Package pool hands out machines. Whoever has a job claims a [Lease]: a fresh
// machine, its agent connected, with its own clock, entropy, name and network.
// After the job the lease is released and the machine thrown away: one machine,
// one job, whatever the job has done to it.
//
//	Claim ─▶ queue (FIFO, by the host's means) ─▶ warm machine, or a new clone ─▶ network, identity ─▶ Lease
//	                                                  ▲
//	            image + driver + CPUs + memory ─▶ template ─▶ clones made ahead, first command done
//
// # Where the time goes
//
// Booting takes seconds, cloning a template tens of milliseconds, and the first
// command in an emulated clone as much again, since nothing of it is translated
// yet. So a template is booted once per image, driver and size, and kept on disk
// (package image holds the directory and its lock, so that two processes make
// one). Machines are cloned from it ahead of the claim and run a first command
// there. What is left for the claim is the network's stack and one exchange with
// the agent, a few milliseconds.
//
// A warm machine's network cable is plugged in, with nobody at the other end:
// the policy is the claimant's, and the network is made from it at the claim.
//
// # Containers
//
// A request with Containers has a kind of its own, whose template has the container
// engine running: the agent starts it when somebody connects to its socket (package
// guest/boot), which is done in the template, and asked of it often enough that a
// clone has nothing left to load. All machines of an image have the engine's disk.
//
// # Means
//
// The pool promises no more CPUs and memory than Config.Means says, counted as the
// guests see them. Claims beyond that wait in the order in which they came; one
// that could never be met fails at once with [machine.ErrTooLarge]. A warm machine uses
// only what is left over, and gives way.
//
// # Nothing left behind
//
// Each machine's directory carries a record with its owner and its delete-by
// time (package vm). The pool removes what dead processes left when it is made
// and every minute from then on, and ends a lease whose time is over. Close ends
// everything and waits for it.
//
// # Goroutines
//
// One sweeps; one a machine waits for its end; one a leased machine serves its
// network; one at a time makes warm machines. All end before Close returns.
package pool

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/vm"
)

// Config says what a [Pool] hands out, and how much of it.
type Config struct {
	// Driver makes the machines.
	Driver vm.Driver

	// Image is what machines boot from where a request names none. It may be nil
	// if every request names one. Images is the directory of those that requests
	// name.
	Image  *image.Image
	Images string

	// RunDir holds the machines' directories while they live, CacheDir what may
	// be used again (scratch disks). Both must exist. Where RunDir is in
	// memory (tmpfs), machines live below CacheDir, for what a job writes to its
	// disk would fill it.
	RunDir, CacheDir string

	CPUs       int   // of a machine, where a request does not say; 2
	MemoryMiB  int   // likewise; 1024
	ScratchMiB int64 // size of a machine's own disk, sparse; 14336

	// Means is what all leased machines may have together; a zero field asks
	// the host: twice its CPUs, three quarters of its memory.
	Means machine.Means

	Max  int // leases at once; 0 is no limit but Means
	Warm int // machines kept ready of each kind that has been asked for; 0 none

	// Touch is run as root in each machine before it is handed out, so that a
	// job's first command is not the first of all; nil is a small shell script,
	// empty is none.
	Touch []string

	// Log hears about machines made, lost and found; nil discards.
	Log *slog.Logger
}

// defaultTouch brings in what the first step of nearly every job needs. In an
// image without a shell nothing is run.
var defaultTouch = []string{"/bin/bash", "-e", "-c", "/bin/echo ready; /bin/cat </dev/null"}

// templateTouchLimit bounds templateTouch: what has not been read by then is not
// worth waiting for, least of all on a host that slow.
const templateTouchLimit = 20 * time.Second

// templateTouch is run once, in the template, so that programs are in its page
// cache, which all clones share.
const templateTouch = `for c in bash sh env cat mkdir git tar python3 node /opt/hearth/node20/bin/node /opt/hearth/node24/bin/node; do
	command -v "$c" >/dev/null && "$c" --version </dev/null >/dev/null 2>&1; done; true`

// HostMeans returns the default of Config.Means. CPUs are counted twice, since a job
// rarely keeps all of its own busy.
func HostMeans() machine.Means {
	m := machine.Means{CPUs: 2 * runtime.NumCPU(), MemoryMiB: 4096}
	var si syscall.Sysinfo_t
	if syscall.Sysinfo(&si) == nil {
		m.MemoryMiB = int(uint64(si.Totalram) * uint64(si.Unit) / (1 << 20) * 3 / 4)
	}
	return m
}

// Pool hands out machines. Safe for concurrent use.
type Pool struct {
	cfg      Config
	log      *slog.Logger
	machines string                    // directory of machine directories
	source   func(*image.Image) source // but for tests, the image itself

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	wake   chan struct{} // for the filler; holds at most one

	mu        sync.Mutex
	closed    bool
	kinds     map[string]*kind
	waiting   []*waiter
	used      machine.Means
	leases    map[*Lease]struct{}
	bases     map[string]*base // what machines begin as, by its name
	warmMiB   int
	lastClaim time.Time
	past      []machine.Session // released, newest last; bounded
	stats     machine.Stats
}

// waiter is a claim that waits for means.
type waiter struct {
	cpus, memory int
	granted      chan struct{}
	ok           bool // granted; guarded by Pool.mu
}

// New returns a pool. It checks the drivers and removes what dead processes
// left, but makes no machine: see [Pool.Prepare].
func New(cfg Config) (*Pool, error) {
	return newPool(cfg, func(i *image.Image) source { return i })
}

func newPool(cfg Config, src func(*image.Image) source) (*Pool, error) {
	if cfg.Driver == nil {
		return nil, errors.New("pool: no driver")
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 2
	}
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = 1024
	}
	if cfg.ScratchMiB == 0 {
		cfg.ScratchMiB = 14336
	}
	host := HostMeans()
	if cfg.Means.CPUs == 0 {
		cfg.Means.CPUs = host.CPUs
	}
	if cfg.Means.MemoryMiB == 0 {
		cfg.Means.MemoryMiB = host.MemoryMiB
	}
	p := &Pool{cfg: cfg, source: src, log: cfg.Log, kinds: map[string]*kind{}, leases: map[*Lease]struct{}{}, bases: map[string]*base{},
		wake: make(chan struct{}, 1)}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if p.machines, err = machinesDir(cfg); err != nil {
		return nil, fmt.Errorf("pool: %w", err)
	}
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	p.sweep()
	p.wg.Go(p.sweeper)
	p.wg.Go(p.filler)
	return p, nil
}

func machinesDir(cfg Config) (string, error) {
	base := cfg.RunDir
	const tmpfs, ramfs = 0x01021994, 0x858458f6
	var st syscall.Statfs_t
	if err := syscall.Statfs(base, &st); err != nil {
		return "", fmt.Errorf("%s: %w", base, err)
	}
	if st.Type == tmpfs || st.Type == ramfs {
		base = cfg.CacheDir
	}
	dir, err := filepath.Abs(filepath.Join(base, "machines"))
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o700)
}

// Reap removes the machines that dead processes left below the directories of
// cfg, and those whose time is over. New and the pool's sweeper do the same; it
// is there for programs that want to clean up or show without a pool.
func Reap(ctx context.Context, cfg Config) ([]vm.Reaped, error) {
	var all []vm.Reaped
	var errs []error
	for _, base := range []string{cfg.RunDir, cfg.CacheDir} {
		if base == "" {
			continue
		}
		r, err := vm.Reap(ctx, filepath.Join(base, "machines"), reapGrace)
		all, errs = append(all, r...), append(errs, err)
	}
	return all, errors.Join(errs...)
}

// reapGrace is how long a machine's directory may be without a record: the time
// between making it and starting the machine.
const reapGrace = time.Minute

func (p *Pool) sweep() {
	reaped, err := vm.Reap(p.ctx, p.machines, reapGrace)
	for _, r := range reaped {
		p.log.Info("removed what was left of a machine", "machine", r.ID, "reason", r.Reason, "killed", r.Killed)
	}
	if err != nil && p.ctx.Err() == nil {
		p.log.Warn("cannot remove what is left of a machine", "err", err)
	}
}

func (p *Pool) sweeper() {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.sweep()
		case <-p.ctx.Done():
			return
		}
	}
}

// newID returns an identifier for a machine.
func newID() string {
	var b [6]byte
	rand.Read(b[:])
	return "m" + hex.EncodeToString(b[:])
}

// complete fills in a request's defaults and checks it.
func (p *Pool) complete(r machine.Request) (machine.Request, *kind, error) {
	if r.CPUs == 0 {
		r.CPUs = p.cfg.CPUs
	}
	if r.MemoryMiB == 0 {
		r.MemoryMiB = p.cfg.MemoryMiB
	}
	if r.From != nil {
		if err := p.origin(r.From.Origin); err != nil {
			return r, nil, err
		}
		o := r.From.Origin
		r.Image, r.CPUs, r.MemoryMiB, r.Containers = o.Image, o.CPUs, o.MemoryMiB, o.Containers
	}
	img := p.cfg.Image
	if r.Image != "" && (img == nil || img.ID != r.Image) {
		var err error
		if img, err = image.Open(p.cfg.Images, r.Image); err != nil {
			if r.From != nil {
				err = fmt.Errorf("%w: image %s: %w", machine.ErrOrigin, r.Image, err)
			}
			return r, nil, err
		}
	}
	if r.Deadline.IsZero() {
		r.Deadline = time.Now().Add(machine.MaxLease)
	}
	if img == nil {
		return r, nil, errors.New("no image: the pool has none and the request names none")
	}
	m := p.cfg.Means
	if r.CPUs < 1 || r.MemoryMiB < 64 {
		return r, nil, fmt.Errorf("a machine of %d CPUs and %d MiB makes no sense", r.CPUs, r.MemoryMiB)
	}
	if r.CPUs > m.CPUs || r.MemoryMiB > m.MemoryMiB {
		return r, nil, fmt.Errorf("%w: a machine of %d CPUs and %d MiB is wanted, all of them together may have %d and %d", machine.ErrTooLarge, r.CPUs,
			r.MemoryMiB, m.CPUs, m.MemoryMiB)
	}
	key := fmt.Sprintf("%s/%s/%d/%d", p.cfg.Driver.Name(), img.ID, r.CPUs, r.MemoryMiB)
	if r.Containers {
		if img.Engine == "" {
			return r, nil, fmt.Errorf("%w: image %s has no container engine: %s", machine.ErrNoContainers, img.Name, img.NoEngine())
		}
		key += "/containers"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return r, nil, machine.ErrClosed
	}
	k := p.kinds[key]
	if k == nil {
		k = &kind{pool: p, key: key, driver: p.cfg.Driver, img: img, src: p.source(img), cpus: r.CPUs, memory: r.MemoryMiB,
			containers: r.Containers, tmpl: make(chan struct{}, 1)}
		p.kinds[key] = k
	}
	return r, k, nil
}

// enter begins an operation that Close cancels and waits for.
func (p *Pool) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, machine.ErrClosed
	}
	p.wg.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(p.ctx, func() { cancel(machine.ErrClosed) })
	return ctx, func() { stop(); cancel(nil); p.wg.Done() }, nil
}

// Prepare makes what claims like r will need and do not have to wait for: the
// template, and Config.Warm machines, one after the other. It returns when the
// template is there; machines follow in the background.
func (p *Pool) Prepare(ctx context.Context, r machine.Request) error {
	ctx, leave, err := p.enter(ctx)
	if err != nil {
		return fmt.Errorf("prepare machines: %w", err)
	}
	defer leave()
	_, k, err := p.complete(r)
	if err != nil {
		return fmt.Errorf("prepare machines: %w", err)
	}
	if _, err := k.template(ctx); err != nil {
		return fmt.Errorf("prepare machines: %w", err)
	}
	p.mu.Lock()
	k.wanted = true
	p.mu.Unlock()
	p.refill()
	return nil
}

// Claim returns a machine of the requested kind, ready for its first command.
// It waits for means, in the order of the claims, as long as ctx allows. An
// error is never the job's fault.
func (p *Pool) Claim(ctx context.Context, r machine.Request) (machine.Machine, error) {
	l, err := p.claim(ctx, r)
	if err != nil {
		return nil, err // not l: a nil *Lease would be a Machine that is not nil
	}
	return l, nil
}

func (p *Pool) claim(ctx context.Context, r machine.Request) (*Lease, error) {
	asked := time.Now()
	ctx, leave, err := p.enter(ctx)
	if err != nil {
		return nil, fmt.Errorf("claim a machine: %w", err)
	}
	defer leave()
	r, k, err := p.complete(r)
	if err != nil {
		return nil, fmt.Errorf("claim a machine: %w", err)
	}
	if err := p.admit(ctx, r); err != nil {
		return nil, fmt.Errorf("claim a machine: %w", err)
	}
	admitted := time.Now()
	l, err := p.lease(ctx, r, k)
	if err != nil {
		p.giveBack(r)
		p.refill()
		p.mu.Lock()
		p.stats.Lost++
		p.mu.Unlock()
		return nil, fmt.Errorf("claim a machine: %w", err)
	}
	p.mu.Lock()
	l.session.Waited = admitted.Sub(asked)
	l.session.Ready = time.Since(asked)
	p.mu.Unlock()
	p.refill()
	return l, nil
}

// admit waits until the request's share of the means is free, and takes it.
func (p *Pool) admit(ctx context.Context, r machine.Request) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	w := &waiter{cpus: r.CPUs, memory: r.MemoryMiB, granted: make(chan struct{})}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return machine.ErrClosed
	}
	p.waiting = append(p.waiting, w)
	if r.Waits != nil {
		r.Waits()
	}
	p.grantLocked()
	if r.NoWait && !w.ok {
		p.dropLocked(w)
		used := p.used
		p.mu.Unlock()
		return fmt.Errorf("%w: leased machines have %d CPUs and %d MiB of %d and %d", machine.ErrBusy, used.CPUs, used.MemoryMiB, p.cfg.Means.CPUs,
			p.cfg.Means.MemoryMiB)
	}
	p.mu.Unlock()
	var err error
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
		err = fmt.Errorf("waiting for means: %w", context.Cause(ctx))
	case <-p.ctx.Done():
		err = machine.ErrClosed
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.ok { // granted at the same moment: give it back
		p.freeLocked(r)
	} else {
		p.dropLocked(w)
		p.grantLocked() // those behind it may be smaller
	}
	return err
}

func (p *Pool) dropLocked(w *waiter) {
	p.waiting = slices.DeleteFunc(p.waiting, func(x *waiter) bool { return x == w })
}

// grantLocked lets in those at the head of the queue for whom there is room.
// Nobody overtakes: a large machine would wait for ever.
func (p *Pool) grantLocked() {
	for len(p.waiting) > 0 && !p.closed {
		w := p.waiting[0]
		if p.used.CPUs+w.cpus > p.cfg.Means.CPUs || p.used.MemoryMiB+w.memory > p.cfg.Means.MemoryMiB ||
			p.cfg.Max > 0 && p.stats.Leased >= p.cfg.Max {
			return
		}
		p.used.CPUs += w.cpus
		p.used.MemoryMiB += w.memory
		p.stats.Leased++
		w.ok = true
		close(w.granted)
		p.waiting = p.waiting[1:]
	}
}

func (p *Pool) freeLocked(r machine.Request) {
	p.used.CPUs -= r.CPUs
	p.used.MemoryMiB -= r.MemoryMiB
	p.stats.Leased--
	p.grantLocked()
}

func (p *Pool) giveBack(r machine.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.freeLocked(r)
}

// Close refuses new claims, ends all machines, leased ones included, and waits
// for everything that the pool has started.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	leases := make([]*Lease, 0, len(p.leases))
	for l := range p.leases {
		leases = append(leases, l)
	}
	var warm []*instance
	for _, k := range p.kinds {
		warm = append(warm, k.warm...)
		k.warm = nil
	}
	p.warmMiB = 0
	p.mu.Unlock()
	p.cancel(machine.ErrClosed)

	var errs []error
	for _, l := range leases {
		errs = append(errs, l.Release(ctx))
	}
	for _, i := range warm {
		errs = append(errs, i.close(ctx))
	}
	done := make(chan struct{})
	go func() { p.wg.Wait(); close(done) }() // ends when they do, which Close may be too impatient to see
	select {
	case <-done:
	case <-ctx.Done():
		return errors.Join(append(errs, fmt.Errorf("close the pool: %w", context.Cause(ctx)))...)
	}
	p.mu.Lock()
	for _, k := range p.kinds {
		if k.release != nil {
			k.release()
			k.release = nil
		}
	}
	p.mu.Unlock()
	return errors.Join(errs...)
}
