package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/vm"
)

// keepPast is how many released sessions a pool remembers.
const keepPast = 200

// Stats returns the counts as they are now.
func (p *Pool) Stats() machine.Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Waiting, s.Used, s.Means = len(p.waiting), p.used, p.cfg.Means
	for _, k := range p.kinds {
		s.Warm += len(k.warm)
	}
	return s
}

// Sessions returns the sessions there are and the last that were, oldest first.
func (p *Pool) Sessions() []machine.Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := slices.Clone(p.past)
	for l := range p.leases {
		out = append(out, l.session)
	}
	slices.SortStableFunc(out, func(a, b machine.Session) int { return a.Leased.Compare(b.Leased) })
	return out
}

// Lease is the right to one machine until it is released.
type Lease struct {
	pool    *Pool
	kind    *kind
	request machine.Request
	net     *network.Network
	cables  sync.WaitGroup // goroutines that serve the network
	expiry  *time.Timer
	lost    chan struct{} // closed when the machine ended and nobody had asked for it

	course chan struct{} // held by whoever replaces or ends the machine

	mu       sync.Mutex
	inst     *instance
	lostErr  error
	released bool
	shots    int // tried
	points   points
	base     *base // what the machine began as; nil is the template

	session machine.Session // guarded by Pool.mu
}

// lease turns an admitted request into a lease.
func (p *Pool) lease(ctx context.Context, r machine.Request, k *kind) (*Lease, error) {
	if err := k.hold(); err != nil {
		return nil, err
	}
	var l *Lease
	warm := false
	var err error
	if r.From != nil {
		l, err = p.begun(ctx, r, k)
	} else {
		l, warm, err = p.ready(ctx, r, k)
	}
	if err != nil {
		return nil, err
	}
	i := l.inst
	now := time.Now()
	l.session = machine.Session{
		ID: i.id, State: machine.Created, Driver: l.kind.driver.Name(), Image: l.kind.img.ID, Labels: r.Labels, CPUs: r.CPUs, MemoryMiB: r.MemoryMiB,
		Warm: warm, Leased: now, DeleteBy: r.Deadline,
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		l.net.Close()
		l.cables.Wait()
		return nil, errors.Join(machine.ErrClosed, i.closeSoon(ctx), p.letGo(l.base))
	}
	p.leases[l] = struct{}{}
	p.stats.Claims++
	if warm {
		p.stats.WarmHits++
	}
	p.mu.Unlock()
	l.watch(i)
	l.expiry = time.AfterFunc(time.Until(r.Deadline), l.expire)
	return l, nil
}

// ready returns a lease whose machine is: one that waits, or a new one.
func (p *Pool) ready(ctx context.Context, r machine.Request, k *kind) (l *Lease, warm bool, err error) {
	try := func(i *instance) (*Lease, error) {
		l := &Lease{pool: p, kind: k, request: r, inst: i, lost: make(chan struct{}), course: make(chan struct{}, 1)}
		err := l.begin(ctx, i, warm)
		if err == nil {
			return l, nil
		}
		if l.net != nil {
			l.net.Close()
		}
		l.cables.Wait()
		return nil, errors.Join(err, i.closeSoon(ctx))
	}
	for {
		p.mu.Lock()
		k.wanted = p.cfg.Warm > 0
		p.lastClaim = time.Now()
		var i *instance
		if len(k.warm) > 0 {
			i = k.warm[0]
			k.warm = k.warm[1:]
			p.warmMiB -= k.memory
		}
		p.mu.Unlock()
		p.refill() // what does not fit beside us any more gives way
		if warm = i != nil; !warm {
			break
		}
		if !i.usable() {
			i.closeSoon(ctx)
			continue
		}
		l, err := try(i)
		if err == nil || ctx.Err() != nil {
			return l, true, err
		}
		// It may have died while it waited, or at this very moment.
		p.log.Warn("a machine that was ready is not", "machine", i.id, "err", err)
	}
	i, err := k.make(ctx, false)
	if err != nil {
		return nil, false, err
	}
	l, err = try(i)
	return l, false, err
}

// begun returns a lease whose machine begins as another was.
func (p *Pool) begun(ctx context.Context, r machine.Request, k *kind) (*Lease, error) {
	b, err := p.unpacked(ctx, r.From, k)
	if err != nil {
		return nil, err
	}
	i, err := p.assemble(ctx, restoreLimit, func(ctx context.Context, id, dir string) (vm.Machine, error) {
		s := k.spec(id, dir)
		s.Kernel, s.Initrd, s.Cmdline = "", "", ""
		s.DeleteBy = r.Deadline
		return k.driver.Restore(ctx, b.snapshot(), s)
	})
	if err != nil {
		return nil, errors.Join(err, p.letGo(b))
	}
	l := &Lease{pool: p, kind: k, request: r, inst: i, lost: make(chan struct{}), course: make(chan struct{}, 1), base: b}
	if err := l.begin(ctx, i, false); err != nil {
		if l.net != nil {
			l.net.Close()
		}
		l.cables.Wait()
		return nil, errors.Join(err, i.closeSoon(ctx), p.letGo(b))
	}
	return l, nil
}

// begin gives the machine its network and its identity.
func (l *Lease) begin(ctx context.Context, i *instance, warm bool) error {
	// Beside the claim, which a busy disk must not hold up: until then the record
	// says what a machine that waits has, which is enough to find it by.
	i.writing.Go(func() {
		if err := vm.WriteRecord(i.dir, l.kind.driver.Name(), vm.Spec{ID: i.id, DeleteBy: l.request.Deadline}, i.machine.Pid()); err != nil {
			l.pool.log.Warn("cannot write down until when a machine may live", "machine", i.id, "err", err)
		}
	})
	id := guest.Identity{Time: time.Now()}
	if !warm { // else it has had one of its own since it was made
		id = identity(i.id)
	}
	var resumed sync.WaitGroup
	var resumeErr error
	resumed.Go(func() { resumeErr = l.resume(ctx, i, id) })
	n, err := network.New(l.request.Network)
	resumed.Wait()
	l.net = n
	if err = errors.Join(err, resumeErr); err != nil {
		return err
	}
	l.plug(i)
	return nil
}

func (l *Lease) plug(i *instance) {
	if i.cable == nil {
		return
	}
	cable := i.cable
	l.cables.Go(func() {
		if err := l.net.ServeFrames(cable); err != nil {
			l.pool.log.Debug("a machine's network ended", "machine", i.id, "err", err)
		}
	})
}

func (l *Lease) resume(ctx context.Context, i *instance, id guest.Identity) error {
	ctx, cancel := context.WithTimeout(ctx, restoreLimit)
	defer cancel()
	return i.explain("resume", i.client.Resume(ctx, id))
}

// watch hears of the machine's end.
func (l *Lease) watch(i *instance) {
	l.pool.wg.Go(func() {
		<-i.done
		l.mu.Lock()
		mine := l.inst == i && !l.released
		if mine && l.lostErr == nil {
			l.lostErr = i.ended()
			close(l.lost)
		}
		l.mu.Unlock()
		if mine {
			l.pool.mu.Lock()
			l.pool.stats.Lost++
			l.pool.mu.Unlock()
		}
	})
}

// expire ends a machine whose time is over.
func (l *Lease) expire() {
	l.mu.Lock()
	i := l.inst
	if l.released || l.lostErr != nil {
		l.mu.Unlock()
		return
	}
	l.lostErr = fmt.Errorf("machine %s has reached the end of its time, %s", i.id, l.request.Deadline.Format(time.RFC3339))
	close(l.lost)
	l.mu.Unlock()
	l.pool.log.Warn("ending a machine whose time is over", "machine", i.id)
	i.closeSoon(l.pool.ctx)
}

// ID names the lease and its machine.
func (l *Lease) ID() string { return l.session.ID }

// Client is the connection to the agent. After Rollback it is another one, and
// after Snapshot it may be.
func (l *Lease) Client() *guest.Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inst.agent()
}

// Machine is the machine itself. After Rollback it is another one.
func (l *Lease) Machine() vm.Machine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inst.machine
}

// SetStep says which step connections belong to from now on.
func (l *Lease) SetStep(number int) { l.net.SetStep(number) }

// Lost is closed when the machine has ended by itself or its time was over; Err
// then says why.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Err is nil while the machine is not lost.
func (l *Lease) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lostErr
}

// fateLimit is how long the end of a machine may take to be known after its
// connection has ended.
const fateLimit = time.Second

// Fate says in one line how the machine ended, "" if it lives. Whoever has just
// lost contact with its agent asks: the end is known a moment later.
func (l *Lease) Fate() string {
	t := time.NewTimer(fateLimit)
	defer t.Stop()
	select {
	case <-l.lost:
	case <-t.C:
		return ""
	}
	err := l.Err()
	var known *vm.Error
	if errors.As(err, &known) {
		err = known.Err // without what the machine printed: that is in the log
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text
}

// Begin records that work starts.
func (l *Lease) Begin() {
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	l.session.Begin()
}

// End records how the work ended, and what it used as far as the agent still
// tells; reason is for a failure.
func (l *Lease) End(ctx context.Context, ok bool, reason string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	usage, _ := l.Client().Usage(ctx) // zero of a machine that does not tell any more
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	l.session.End(ok, reason, usage)
}

// Session is the lease's record as it is now.
func (l *Lease) Session() machine.Session {
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	return l.session
}

// size is what a directory takes on disk.
func size(dir string) (n int64) {
	filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil {
			return nil // what is gone takes nothing
		}
		if info, err := e.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				n += st.Blocks * 512 // a sparse file is larger than what it takes
			}
		}
		return nil
	})
	return n
}

// checkpoint is where a checkpoint of this lease is: a directory beside the
// machine's, under a record as it has, so that it is found when the lease is not
// released in order.
func (l *Lease) checkpoint(id string) string { return filepath.Join(l.pool.machines, id, "snapshot") }

// take holds the machine's course.
func (l *Lease) take(ctx context.Context) (*instance, error) {
	select {
	case l.course <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		<-l.course
		return nil, vm.ErrClosed
	}
	if l.lostErr != nil {
		<-l.course
		return nil, l.lostErr
	}
	return l.inst, nil
}

// Snapshot writes down the machine as it is now, while it runs. Nothing should
// be running in it that minds existing twice: call it between two steps. With
// some drivers it ends the connection to the agent, and so what runs over it;
// Client is a new one then.
func (l *Lease) Snapshot(ctx context.Context) (machine.Checkpoint, error) {
	i, err := l.take(ctx)
	if err != nil {
		return machine.Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	defer func() { <-l.course }()
	if !l.kind.driver.Capabilities().Snapshots {
		return machine.Checkpoint{}, fmt.Errorf("checkpoint: driver %s cannot: %w", l.kind.driver.Name(), errors.ErrUnsupported)
	}
	l.mu.Lock()
	l.shots++
	id := fmt.Sprintf("%s-c%d", l.session.ID, l.shots)
	l.mu.Unlock()
	dir := l.checkpoint(id)
	outer := filepath.Dir(dir)
	err = os.MkdirAll(dir, 0o700)
	if err == nil {
		err = vm.WriteRecord(outer, l.kind.driver.Name(), vm.Spec{ID: id, DeleteBy: l.request.Deadline}, 0)
	}
	if err == nil {
		err = i.machine.Snapshot(ctx, dir)
		err = errors.Join(err, i.reconnect(ctx))
	}
	if err != nil {
		return machine.Checkpoint{}, errors.Join(fmt.Errorf("checkpoint: %w", err), os.RemoveAll(outer))
	}
	l.mu.Lock()
	l.points.add(id)
	l.mu.Unlock()
	return machine.Checkpoint{ID: id, Bytes: size(dir)}, nil
}

// reconnect connects to the agent again if the connection has ended.
func (i *instance) reconnect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoreLimit)
	defer cancel()
	old := i.agent()
	pinging, stop := context.WithTimeout(ctx, restoreLimit/4)
	defer stop()
	if _, err := old.Ping(pinging); err == nil {
		return nil
	}
	old.Close()
	return i.connect(ctx)
}

// Rollback puts the lease's machine back to c: a new machine, a new Client, the
// same network. Streams of the old client end with an error. When it fails the
// lease is lost.
func (l *Lease) Rollback(ctx context.Context, c machine.Checkpoint) error {
	old, err := l.take(ctx)
	if err != nil {
		return fmt.Errorf("rollback: %w", err)
	}
	defer func() { <-l.course }()
	l.mu.Lock()
	mine := l.points.find(c.ID) != nil
	l.mu.Unlock()
	if !mine {
		return errors.New("rollback: the checkpoint is another machine's")
	}
	lose := func(err error) error {
		err = fmt.Errorf("rollback: %w", err)
		l.mu.Lock()
		if l.lostErr == nil {
			l.lostErr = err
			close(l.lost)
		}
		l.mu.Unlock()
		return err
	}
	i, err := l.pool.assemble(ctx, restoreLimit, func(ctx context.Context, id, dir string) (vm.Machine, error) {
		s := l.kind.spec(id, dir)
		s.Kernel, s.Initrd, s.Cmdline = "", "", ""
		s.DeleteBy = l.request.Deadline
		return l.kind.driver.Restore(ctx, l.checkpoint(c.ID), s)
	})
	if err != nil {
		return fmt.Errorf("rollback: %w", err) // the machine is as it was
	}
	l.mu.Lock()
	l.inst = i
	l.points.from = c.ID
	l.mu.Unlock()
	l.watch(i)
	err = errors.Join(old.closeSoon(ctx), l.discard())
	l.cables.Wait() // its cable is out; the next may go in
	l.plug(i)
	if err == nil {
		err = l.resume(ctx, i, identity(l.session.ID)) // under its old name
	}
	if err != nil {
		return lose(err)
	}
	return nil
}

// Release ends the machine and gives its means back. It is safe to call more
// than once, and after the machine was lost.
func (l *Lease) Release(ctx context.Context) error {
	l.course <- struct{}{}
	defer func() { <-l.course }()
	l.mu.Lock()
	if l.released {
		l.mu.Unlock()
		return nil
	}
	l.released = true
	i, points, lost := l.inst, l.points.all, l.lostErr
	l.mu.Unlock()
	l.expiry.Stop()
	var errs []error
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	errs = append(errs, i.close(ending))
	l.net.Close()
	l.cables.Wait()
	for _, x := range points {
		errs = append(errs, os.RemoveAll(filepath.Dir(l.checkpoint(x.id))))
	}
	p := l.pool
	errs = append(errs, p.letGo(l.base))
	p.mu.Lock()
	s := &l.session
	s.Release(lost)
	if s.Outcome == machine.Failed {
		p.stats.Failed++
	} else {
		p.stats.Completed++
	}
	delete(p.leases, l)
	p.past = append(p.past, *s)
	if len(p.past) > keepPast {
		p.past = slices.Delete(p.past, 0, len(p.past)-keepPast)
	}
	p.freeLocked(l.request)
	p.mu.Unlock()
	p.refill()
	return errors.Join(errs...)
}
