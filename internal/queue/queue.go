// Package queue hands planned jobs to workers, each to one at a time.
//
// A job waits with the labels it asks for; a worker claims with the labels it
// has, and gets the first job whose labels are among them (higher priority
// first, then older). A claim is a lease: it ends unless the worker's heartbeat
// renews it, and then the job goes back into the queue or, when its attempts
// are used up, is lost. Each claim raises the job's attempt by one, and (job,
// attempt) is the fence of every write about it: a worker that was slow, cut off
// or suspended finds out that it is not its job any more, and can change
// nothing.
//
// The answer to a heartbeat carries the reason to stop where somebody has
// cancelled the job. Renewing is asked of the store with deadlines of the
// caller's clock; all processes on one database are taken to have about the same
// time, within a small part of a lease.
//
// A worker on another host has a claim through a server, and renews it there; a
// [Keeper] holds it in the same way.
//
// The queue itself is a table of the store (package store), which is reached
// through the [Store] interface. Nothing runs by itself here but what [Work]
// and [Keeper.Hold] start, and they wait for it.
package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// Store is what a queue needs of a store. *store.Store has it.
type Store interface {
	QueueAdd(ctx context.Context, it Item, now time.Time, maxAttempts int) (bool, error)
	QueueClaim(ctx context.Context, o Offer, now, lease time.Time) (jobID string, attempt int, ok bool, err error)
	QueueRenew(ctx context.Context, jobID string, attempt int, lease time.Time) (held bool, cancel string, err error)
	QueueFinish(ctx context.Context, jobID string, attempt int, conclusion ci.Conclusion, reason string) (held bool, err error)
	QueueRelease(ctx context.Context, jobID string, attempt int, available time.Time, reason string) (held bool, err error)
	QueueExpire(ctx context.Context, owner string, now time.Time) (requeued, lost []string, err error)
	QueueGrace(ctx context.Context, prefix string, lease time.Time) error
	QueueCancel(ctx context.Context, jobID, reason string) (was string, err error)
}

// ErrLost is the cause with which a held claim's context ends when its lease was
// lost: somebody else may have the job by now.
var ErrLost = errors.New("the lease on the job was lost")

// CancelledError is the cause with which a held claim's context ends when the
// job was cancelled.
type CancelledError struct{ Reason string }

func (e *CancelledError) Error() string { return "cancelled: " + e.Reason }

// Config sets a [Queue] up. The zero Config is usable.
type Config struct {
	Lease time.Duration // how long a claim lasts without a heartbeat; 0: 20 s
	// Attempts is how often a job may be claimed before it is lost; 0: 2.
	Attempts int
	// Poll is how often a worker looks for jobs, and the queue for leases that
	// have ended, without being woken; 0: 1 s.
	Poll time.Duration
	// Owner is the server whose queue this is, where several share a store: it gives
	// out the jobs of the runs that it drives, and takes back no others. "" gives out
	// all.
	Owner string
	Now   func() time.Time // nil: time.Now
	Log   *slog.Logger     // nil: silent
}

// Queue is the queue over one store. It is safe for concurrent use.
type Queue struct {
	store Store
	cfg   Config

	mu   sync.Mutex
	wake chan struct{} // closed and replaced when something was put in
	last int64         // moment of the newest entry, ms
}

// New makes a queue.
func New(s Store, cfg Config) *Queue {
	if cfg.Lease <= 0 {
		cfg.Lease = 20 * time.Second
	}
	if cfg.Attempts <= 0 {
		cfg.Attempts = 2
	}
	if cfg.Poll <= 0 {
		cfg.Poll = time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Queue{store: s, cfg: cfg, wake: make(chan struct{})}
}

// Item is a job that is to be run.
type Item struct {
	JobID    string
	Labels   []string  // what the runner must have; at least one; case does not count
	Priority float64   // higher is earlier
	After    time.Time // not before; zero: at once
	// CPUs and MemoryMiB are what its machine has; 0 is what any worker can give.
	CPUs, MemoryMiB int
	Owner           string // set by Add
}

// Offer is who asks for a job.
type Offer struct {
	Worker string // its name, for people and for [Queue.Grace]
	Labels []string
	// CPUs and MemoryMiB are the most that a machine of its may have; 0 is no bound: a
	// job that wants more than there is fails there, and says so.
	CPUs, MemoryMiB int
	Owner           string // set by TryClaim
}

// Add puts a job in. It reports false, and changes nothing, if the job was put
// in before, whatever has become of it since.
func (q *Queue) Add(ctx context.Context, it Item) (bool, error) {
	if !ci.ValidID(it.JobID) {
		return false, fmt.Errorf("queue: %q is no job id", it.JobID)
	}
	if len(it.Labels) == 0 {
		return false, fmt.Errorf("queue: job %s asks for no labels: every runner would fit", it.JobID)
	}
	now := q.now()
	if it.After.IsZero() {
		it.After = q.cfg.Now()
	}
	it.Owner = q.cfg.Owner
	ok, err := q.store.QueueAdd(ctx, it, now, q.cfg.Attempts)
	if err != nil {
		return false, fmt.Errorf("queue: %w", err)
	}
	if ok {
		q.Wake()
	}
	return ok, nil
}

// Owner is the server whose queue this is; "" is none.
func (q *Queue) Owner() string { return q.cfg.Owner }

// Own makes it a server's queue, before it is used.
func (q *Queue) Own(owner string) { q.cfg.Owner = owner }

// now is the moment of an entry, later than that of the entry before it: jobs
// come out in the order in which they were put in, those of one millisecond too.
func (q *Queue) now() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.cfg.Now().UnixMilli()
	if now <= q.last {
		now = q.last + 1
	}
	q.last = now
	return time.UnixMilli(now)
}

// Wake makes workers of this process look now.
func (q *Queue) Wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	close(q.wake)
	q.wake = make(chan struct{})
}

func (q *Queue) woken() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.wake
}

// Cancel asks that a job stop. now is true if it had not been claimed and so has
// ended already: then nobody else will write its end. A claimed job hears of it
// with its next heartbeat. A job that has ended stays as it is.
func (q *Queue) Cancel(ctx context.Context, jobID, reason string) (now bool, err error) {
	was, err := q.store.QueueCancel(ctx, jobID, reason)
	if err != nil {
		return false, fmt.Errorf("queue: %w", err)
	}
	return was == "queued", nil
}

// Claim is one attempt at a job that its holder owns until the lease ends.
type Claim struct {
	q       *Queue
	JobID   string
	Attempt int // from 1: the fence
}

// TryClaim claims a job that fits, if there is one; nil otherwise.
func (q *Queue) TryClaim(ctx context.Context, o Offer) (*Claim, error) {
	now := q.cfg.Now()
	o.Owner = q.cfg.Owner
	id, attempt, ok, err := q.store.QueueClaim(ctx, o, now, now.Add(q.cfg.Lease))
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	if !ok {
		return nil, nil
	}
	return &Claim{q: q, JobID: id, Attempt: attempt}, nil
}

// Resume is a claim that was made before, by an earlier process perhaps: whether it is
// held still its next heartbeat says.
func (q *Queue) Resume(jobID string, attempt int) *Claim {
	return &Claim{q: q, JobID: jobID, Attempt: attempt}
}

// Lease is how long a claim lasts without a heartbeat.
func (q *Queue) Lease() time.Duration { return q.cfg.Lease }

// Poll is how often a worker looks for jobs without being woken.
func (q *Queue) Poll() time.Duration { return q.cfg.Poll }

// Claim waits for a job that fits. The error is the cause of ctx's end, or the
// store's.
func (q *Queue) Claim(ctx context.Context, o Offer) (*Claim, error) {
	for {
		woken := q.woken() // before looking, or what comes meanwhile is missed
		c, err := q.TryClaim(ctx, o)
		if err != nil || c != nil {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-woken:
		case <-time.After(q.cfg.Poll):
		}
	}
}

// Renew is one heartbeat. It returns [ErrLost] if the claim is not the holder's
// any more, a *[CancelledError] if the job is to stop (the lease is prolonged
// all the same), and any other error if the store could not be asked.
func (c *Claim) Renew(ctx context.Context) error {
	held, cancel, err := c.q.store.QueueRenew(ctx, c.JobID, c.Attempt, c.q.cfg.Now().Add(c.q.cfg.Lease))
	switch {
	case err != nil:
		return fmt.Errorf("queue: %w", err)
	case !held:
		return ErrLost
	case cancel != "":
		return &CancelledError{Reason: cancel}
	}
	return nil
}

// Finish ends the job for good. ErrLost: it was somebody else's by then, and
// nothing was written.
func (c *Claim) Finish(ctx context.Context, conclusion ci.Conclusion, reason string) error {
	if !conclusion.Valid() {
		return fmt.Errorf("queue: job %s cannot finish with conclusion %q", c.JobID, conclusion)
	}
	held, err := c.q.store.QueueFinish(ctx, c.JobID, c.Attempt, conclusion, reason)
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	if !held {
		return ErrLost
	}
	return nil
}

// Release gives the job back, to be claimed again after a while: the worker
// cannot run it, for no fault of the job's.
func (c *Claim) Release(ctx context.Context, after time.Duration, reason string) error {
	held, err := c.q.store.QueueRelease(ctx, c.JobID, c.Attempt, c.q.cfg.Now().Add(after), reason)
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	if !held {
		return ErrLost
	}
	c.q.Wake()
	return nil
}

// Hold runs fn while heartbeats keep the claim. fn's context ends with [ErrLost]
// as its cause when the lease is lost (at the latest when it has run out without
// the store answering), and with a *[CancelledError] when the job is cancelled;
// in the second case the heartbeats go on until fn has returned, so that it can
// clean up. Hold returns when fn has.
func (c *Claim) Hold(ctx context.Context, fn func(context.Context) error) error {
	k := Keeper{Job: c.JobID, Renew: c.Renew, Every: c.q.cfg.Lease / 3, Answer: c.q.cfg.Lease / 3, Patience: c.q.cfg.Lease, Now: c.q.cfg.Now, Log: c.q.cfg.Log}
	return k.Hold(ctx, fn)
}

// Keeper keeps a claim while its job runs, whoever it is renewed with.
type Keeper struct {
	Job string // its id, for the log
	// Renew is one heartbeat, and answers as [Claim.Renew] does; any other error that
	// is a [Stopper] ends the job, too.
	Renew func(ctx context.Context) error
	// Every is the time between heartbeats; 0 is none, where Renew waits for news.
	Every time.Duration
	// Answer is how long a heartbeat may take.
	Answer time.Duration
	// Patience is how long the job goes on while no heartbeat is answered.
	Patience time.Duration
	Now      func() time.Time // nil: time.Now
	Log      *slog.Logger
}

// Stopper is an error of a heartbeat that says why the job is to end: its Cause.
type Stopper interface {
	error
	Cause() error
}

// Cause is the error itself.
func (e *CancelledError) Cause() error { return e }

// unanswered is how long the next heartbeat waits after one that had no answer, where
// nothing else paces them.
const unanswered = 250 * time.Millisecond

// Hold runs fn, as [Claim.Hold] does.
func (k Keeper) Hold(ctx context.Context, fn func(context.Context) error) error {
	if k.Now == nil {
		k.Now = time.Now
	}
	held, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	// What fn has ended no heartbeat need wait for.
	beating, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	pause := func(d time.Duration) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-beating.Done():
			return false
		case <-t.C:
			return true
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		until := k.Now().Add(k.Patience)
		for beating.Err() == nil {
			if k.Every > 0 && !pause(k.Every) {
				return
			}
			// The job may be winding up after its context has ended; its lease is
			// kept for that.
			hb, cancel := context.WithTimeout(beating, k.Answer)
			asked := k.Now()
			err := k.Renew(hb)
			cancel()
			var told Stopper
			switch {
			case err == nil:
				until = asked.Add(k.Patience)
			case errors.Is(err, ErrLost):
				stop(ErrLost)
				return
			case errors.As(err, &told):
				until = asked.Add(k.Patience)
				stop(told.Cause())
			case beating.Err() != nil:
				return
			default:
				k.Log.Warn("a heartbeat failed", "job", k.Job, "err", err)
				if !k.Now().Before(until) {
					stop(ErrLost)
					return
				}
				if k.Every == 0 && !pause(unanswered) {
					return
				}
			}
		}
	})
	err := fn(held)
	end()
	wg.Wait()
	return err
}

// Expired are the jobs whose workers were lost.
type Expired struct {
	Requeued []string // job ids; they wait for another worker
	Lost     []string // they had used up their attempts, or were cancelled: their end is for the caller to write
}

// Expire takes back the claims whose lease has ended.
func (q *Queue) Expire(ctx context.Context) (Expired, error) {
	requeued, lost, err := q.store.QueueExpire(ctx, q.cfg.Owner, q.cfg.Now())
	if err != nil {
		return Expired{}, fmt.Errorf("queue: %w", err)
	}
	if len(requeued) > 0 {
		q.Wake()
	}
	return Expired{Requeued: requeued, Lost: lost}, nil
}

// Grace gives the workers whose names begin with prefix another lease for what they
// hold: nobody was there whom they could have told that they live.
func (q *Queue) Grace(ctx context.Context, prefix string) error {
	if err := q.store.QueueGrace(ctx, prefix, q.cfg.Now().Add(q.cfg.Lease)); err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	return nil
}

// Watch takes back claims that have ended, of all workers, and calls expired with
// them, which may be nil, until ctx ends.
func (q *Queue) Watch(ctx context.Context, expired func(Expired)) {
	t := time.NewTicker(q.cfg.Poll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		e, err := q.Expire(ctx)
		if err != nil {
			if ctx.Err() == nil {
				q.cfg.Log.Error("leases that have ended could not be taken back", "err", err)
			}
			continue
		}
		if expired != nil && len(e.Requeued)+len(e.Lost) > 0 {
			expired(e)
		}
	}
}

// Work takes what take hands out and runs each in fn, at most n at once, until ctx
// ends; it returns when all of them have. take waits for something to do; after an
// error of its it is asked again a poll later.
func Work[T any](ctx context.Context, n int, poll time.Duration, log *slog.Logger, take func(context.Context) (T, error), fn func(context.Context, T)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, max(n, 1))
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c, err := take(ctx)
		if err != nil {
			<-slots
			if ctx.Err() != nil {
				return
			}
			log.Error("claiming a job failed; trying again", "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(poll):
			}
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			fn(ctx, c)
		})
	}
}
