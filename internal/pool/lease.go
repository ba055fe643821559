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
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/vm"
)

// State is where a session is in its life.
type State string

// The states of a session, in the order in which they are reached.
const (
	Created   State = "created"   // leased; nothing has run yet
	Executing State = "executing" // Begin was called
	Completed State = "completed" // End, with success
	Failed    State = "failed"    // End, without; or the machine was lost
	Released  State = "released"  // the machine is gone
)

// Session is the record of one lease.
type Session struct {
	ID        string        `json:"id"` // the machine's as well
	State     State         `json:"state"`
	Outcome   State         `json:"outcome,omitempty"` // Completed or Failed, once released
	Reason    string        `json:"reason,omitempty"`  // of a failure
	Driver    string        `json:"driver"`
	Image     string        `json:"image"`
	Labels    []string      `json:"labels,omitempty"`
	CPUs      int           `json:"cpus"`
	MemoryMiB int           `json:"memory_mib"`
	Warm      bool          `json:"warm"`   // it was ready before it was asked for
	Waited    time.Duration `json:"waited"` // for means, ns
	Ready     time.Duration `json:"ready"`  // from the claim to the lease, ns
	Leased    time.Time     `json:"leased"`
	Started   time.Time     `json:"started,omitzero"`
	Ended     time.Time     `json:"ended,omitzero"`
	Released  time.Time     `json:"released,omitzero"`
	DeleteBy  time.Time     `json:"delete_by"`
	Usage     guest.Usage   `json:"usage,omitzero"` // of the machine, when the work ended
}

// Stats counts what a pool has done.
type Stats struct {
	Leased  int   `json:"leased"`  // now
	Waiting int   `json:"waiting"` // claims that wait for means, now
	Warm    int   `json:"warm"`    // machines that are ready, now
	Used    Means `json:"used"`
	Means   Means `json:"means"`

	Claims    int `json:"claims"`    // that were met
	WarmHits  int `json:"warm_hits"` // of them, by a machine that was ready
	Made      int `json:"made"`      // machines made ahead
	Completed int `json:"completed"` // sessions
	Failed    int `json:"failed"`    // sessions, lost machines included
	Lost      int `json:"lost"`      // claims that failed, and machines that died under a lease
}

// keepPast is how many released sessions a pool remembers.
const keepPast = 200

// Stats returns the counts as they are now.
func (p *Pool) Stats() Stats {
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
func (p *Pool) Sessions() []Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := slices.Clone(p.past)
	for l := range p.leases {
		out = append(out, l.session)
	}
	slices.SortStableFunc(out, func(a, b Session) int { return a.Leased.Compare(b.Leased) })
	return out
}

// Lease is the right to one machine until it is released.
type Lease struct {
	pool    *Pool
	kind    *kind
	request Request
	net     *network.Network
	cables  sync.WaitGroup // goroutines that serve the network
	expiry  *time.Timer
	lost    chan struct{} // closed when the machine ended and nobody had asked for it

	course chan struct{} // held by whoever replaces or ends the machine

	mu       sync.Mutex
	inst     *instance
	lostErr  error
	released bool
	shots    int

	session Session // guarded by Pool.mu
}

// lease turns an admitted request into a lease.
func (p *Pool) lease(ctx context.Context, r Request, k *kind) (*Lease, error) {
	if err := k.hold(); err != nil {
		return nil, err
	}
	l, warm, err := p.ready(ctx, r, k)
	if err != nil {
		return nil, err
	}
	i := l.inst
	now := time.Now()
	l.session = Session{
		ID: i.id, State: Created, Driver: l.kind.driver.Name(), Image: r.Image.ID, Labels: r.Labels, CPUs: r.CPUs, MemoryMiB: r.MemoryMiB,
		Warm: warm, Leased: now, DeleteBy: r.Deadline,
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		l.net.Close()
		l.cables.Wait()
		return nil, errors.Join(ErrClosed, i.closeSoon(ctx))
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
func (p *Pool) ready(ctx context.Context, r Request, k *kind) (l *Lease, warm bool, err error) {
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

// begin gives the machine its network and its identity.
func (l *Lease) begin(ctx context.Context, i *instance, warm bool) error {
	// Beside the claim, which a busy disk must not hold up: until then the record
	// says what a machine that waits has, which is enough to find it by.
	i.writing.Go(func() {
		if err := vm.WriteRecord(i.dir, l.kind.driver.Name(), vm.Spec{ID: i.id, DeleteBy: l.request.Deadline}, pid(i.machine)); err != nil {
			l.pool.log.Warn("cannot write down until when a machine may live", "machine", i.id, "err", err)
		}
	})
	id := l.identity(i)
	if warm { // it has had one of its own since it was made
		id = guest.Identity{Time: time.Now(), Hostname: l.request.Hostname}
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

// identity is what a clone of this lease is from now on.
func (l *Lease) identity(i *instance) guest.Identity {
	if h := l.request.Hostname; h != "" {
		return identity(h)
	}
	return identity("hearth-" + i.id)
}

func pid(m vm.Machine) int {
	if p, ok := m.(vm.Process); ok {
		return p.Pid()
	}
	return 0
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

// Network is the machine's network; it stays the same over a Rollback.
func (l *Lease) Network() *network.Network { return l.net }

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
	if l.session.State == Created {
		l.session.State, l.session.Started = Executing, time.Now()
	}
}

// End records how the work ended, and what it used as far as the agent still
// tells; reason is for a failure.
func (l *Lease) End(ctx context.Context, ok bool, reason string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	usage, err := l.Client().Usage(ctx)
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	s := &l.session
	if s.State != Created && s.State != Executing {
		return
	}
	if err == nil {
		s.Usage = usage
	}
	s.Ended, s.State, s.Reason = time.Now(), Completed, reason
	if !ok {
		s.State = Failed
	}
}

// Session is the lease's record as it is now.
func (l *Lease) Session() Session {
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	return l.session
}

// Checkpoint is a moment of a lease's machine that it can go back to. It is
// valid until the lease is released.
type Checkpoint struct {
	lease *Lease
	dir   string
}

// Bytes is what the checkpoint takes on disk.
func (c *Checkpoint) Bytes() int64 {
	var n int64
	filepath.WalkDir(c.dir, func(_ string, e os.DirEntry, err error) error {
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
func (l *Lease) Snapshot(ctx context.Context) (*Checkpoint, error) {
	i, err := l.take(ctx)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	defer func() { <-l.course }()
	s, ok := i.machine.(vm.Snapshotter)
	if _, can := l.kind.driver.(vm.Restorer); !ok || !can {
		return nil, fmt.Errorf("checkpoint: driver %s cannot", l.kind.driver.Name())
	}
	l.mu.Lock()
	l.shots++
	n := l.shots
	l.mu.Unlock()
	// Beside the machine, under the same record, so that it is found when the
	// lease is not released in order.
	outer := filepath.Join(l.pool.machines, fmt.Sprintf("%s-c%d", l.session.ID, n))
	c := &Checkpoint{lease: l, dir: filepath.Join(outer, "snapshot")}
	err = os.MkdirAll(c.dir, 0o700)
	if err == nil {
		err = vm.WriteRecord(outer, l.kind.driver.Name(), vm.Spec{ID: filepath.Base(outer), DeleteBy: l.request.Deadline}, 0)
	}
	if err == nil {
		err = s.Snapshot(ctx, c.dir)
		err = errors.Join(err, i.reconnect(ctx))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("checkpoint: %w", err), os.RemoveAll(outer))
	}
	return c, nil
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
func (l *Lease) Rollback(ctx context.Context, c *Checkpoint) error {
	if c.lease != l {
		return errors.New("rollback: the checkpoint is another lease's")
	}
	old, err := l.take(ctx)
	if err != nil {
		return fmt.Errorf("rollback: %w", err)
	}
	defer func() { <-l.course }()
	r := l.kind.driver.(vm.Restorer) // Snapshot has checked
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
		return r.Restore(ctx, c.dir, s)
	})
	if err != nil {
		return fmt.Errorf("rollback: %w", err) // the machine is as it was
	}
	l.mu.Lock()
	l.inst = i
	l.mu.Unlock()
	l.watch(i)
	err = old.closeSoon(ctx)
	l.cables.Wait() // its cable is out; the next may go in
	l.plug(i)
	if err == nil {
		err = l.resume(ctx, i, l.identity(i))
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
	i, shots, lost := l.inst, l.shots, l.lostErr
	l.mu.Unlock()
	l.expiry.Stop()
	var errs []error
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	errs = append(errs, i.close(ending))
	l.net.Close()
	l.cables.Wait()
	for n := range shots {
		errs = append(errs, os.RemoveAll(filepath.Join(l.pool.machines, fmt.Sprintf("%s-c%d", l.session.ID, n+1))))
	}
	p := l.pool
	p.mu.Lock()
	s := &l.session
	s.Outcome = s.State
	if s.State == Created || s.State == Executing {
		s.Outcome = Failed
		if s.Reason == "" {
			s.Reason = "released before its work had ended"
		}
	}
	if lost != nil {
		s.Outcome, s.Reason = Failed, lost.Error()
	}
	if s.Outcome == Failed {
		p.stats.Failed++
	} else {
		p.stats.Completed++
	}
	s.State, s.Released = Released, time.Now()
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
