// Package desk is what a server puts between the conductors of its runs and its
// workers: the queue.
//
//	conductor ─▶ Handed ─▶ queue ─▶ Desk.Take ─▶ Work: claim, heartbeats, records, end
//	                                   │  the worker of this process
//	                                   └─ package remote ══ HTTP ══ Work, on another host
//
// A [Handed] is the [conduct.Executor] of one run: it puts a job into the queue and
// waits for what becomes of it. A worker is [Work] over a [Counter]: the [Desk] itself
// in the server's process, package remote's client anywhere else. Both go through one
// loop, so that what it promises (a fence, a cancellation that arrives, a job that is
// given back) holds for both.
package desk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/worker"
)

// ErrStopping is the cause with which a server that stops ends what its grace
// was not enough for. It is no end of the job: nothing is recorded about it, and
// whoever takes the run up again finds it in the queue.
var ErrStopping = errors.New("the server stops")

// Remote begins the names that workers on other hosts have in the queue.
const Remote = "remote/"

// Records is where an attempt's records go. *store.Recorder is one.
type Records interface {
	ci.Sink
	// ForAttempt returns the sink of one attempt at a job; those of older
	// attempts are refused from then on.
	ForAttempt(jobKey string, attempt int) ci.Sink
	// Flush makes what was emitted last. The error says that nothing is taken any more.
	Flush() error
}

// Desk is where the conductors of a server hand their jobs in, and where workers
// take them up, by way of the queue: it decides who
// runs what and when, and sees that a job whose worker was lost goes to another
// one. What a job needs besides its row in the queue (the plan, the secrets, the
// record) stays in memory here; a server that starts again puts it there again
// from the stored plan before the queue gives the job out.
type Desk struct {
	Queue *queue.Queue
	// Ended says how a job ended that no conductor of this process knows; ok is
	// false while it has not.
	Ended func(ctx context.Context, jobID string) (c ci.Conclusion, ok bool, err error)
	// Attempt reads how far a job is in the queue: "queued", "claimed", "done",
	// "lost", or "" if it never was in it, and its last attempt.
	Attempt func(ctx context.Context, jobID string) (state string, attempt int, err error)
	// Holder reads the same, and the worker that has it.
	Holder func(ctx context.Context, jobID string) (state string, attempt int, worker string, err error)
	Log    *slog.Logger

	requeued, given atomic.Int64 // jobs whose workers were lost, that wait again or are lost

	mu   sync.Mutex
	jobs map[string]*handed // by job id
}

// handed is a job that a conductor waits for.
type handed struct {
	task    conduct.Task
	of      *Handed
	records Records
	base    ci.Record            // what every record of the job says
	done    chan conduct.Outcome // holds one

	mu        sync.Mutex
	attempt   *Attempt // that runs
	cancelled error
}

// Handed is one run's way to the desk. It is a [conduct.Executor].
type Handed struct {
	Desk    *Desk
	RunID   string
	Records Records
	// ID finds the id of a job of the run by its key.
	ID func(ctx context.Context, key string) (string, error)
	// Run runs an attempt in this process; its records go to sink.
	Run func(ctx context.Context, sink ci.Sink, t conduct.Task) conduct.Outcome
	// Runner is what runs an attempt, but for its machine and what else belongs to the
	// host that it runs on: what a worker elsewhere is told. nil runs here only.
	Runner func(sink ci.Sink) *worker.Runner
	// CPUs and MemoryMiB are what a machine of the run's has; 0 is its host's default.
	CPUs, MemoryMiB int
}

// Execute puts the job into the queue and waits for what becomes of it.
func (h *Handed) Execute(ctx context.Context, t conduct.Task) conduct.Outcome {
	job := t.Job
	d := h.Desk
	lost := func(err error) conduct.Outcome {
		return conduct.Outcome{Conclusion: ci.Failure, Infrastructure: true, Reason: err.Error()}
	}
	keep := context.WithoutCancel(ctx)
	id, err := h.ID(keep, job.Key)
	if err != nil {
		return lost(fmt.Errorf("the job is not on record: %w", err))
	}
	own := t
	own.Waits = nil // it has waited
	me := &handed{task: own, of: h, records: h.Records, done: make(chan conduct.Outcome, 1),
		base: ci.Record{Run: h.RunID, Job: job.ID, JobKey: job.Key, Name: job.Name}}
	d.mu.Lock()
	if d.jobs == nil {
		d.jobs = map[string]*handed{}
	}
	d.jobs[id] = me
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.jobs, id)
		d.mu.Unlock()
	}()
	fresh, err := d.Queue.Add(keep, queue.Item{JobID: id, Labels: job.Labels, CPUs: h.CPUs, MemoryMiB: h.MemoryMiB})
	if err != nil {
		return lost(err)
	}
	if t.Waits != nil {
		t.Waits()
	}
	if !fresh {
		// It was in the queue of a process that is gone. Unless it ended there,
		// it will come out again.
		state, attempt, err := d.Attempt(keep, id)
		switch {
		case err != nil:
			return lost(err)
		case state == "done" || state == "lost":
			return me.told(attempt, lost(errors.New("the server stopped before the job's end was on record")))
		}
		d.Queue.Wake()
	}
	select {
	case out := <-me.done:
		return out
	case <-ctx.Done():
	}
	cause := context.Cause(ctx)
	if errors.Is(cause, ErrStopping) {
		me.end(cause)
		return conduct.Outcome{Conclusion: ci.Cancelled, Reason: cause.Error()}
	}
	now, err := d.Queue.Cancel(keep, id, cause.Error())
	if err != nil {
		d.Log.Error("cancelling a job", "job", id, "err", err)
	}
	if now {
		_, attempt, err := d.Attempt(keep, id)
		if err != nil {
			d.Log.Error("cancelling a job", "job", id, "err", err)
		}
		return me.told(attempt, conduct.Outcome{Conclusion: ci.Cancelled, Reason: cause.Error()})
	}
	me.end(cause)
	return <-me.done
}

// end stops the attempt that runs now, and keeps another from starting.
func (m *handed) end(cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cancelled = cause
	if m.attempt != nil {
		m.attempt.stop(cause)
	}
}

// lost ends the attempt that runs now, whose lease has ended.
func (m *handed) lost() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.attempt != nil {
		m.attempt.stop(queue.ErrLost)
		m.attempt = nil
	}
}

// conclude hands the outcome to who waits for it; the first one counts.
func (m *handed) conclude(out conduct.Outcome) {
	select {
	case m.done <- out:
	default:
	}
}

// told records the end of a job as of an attempt, so that it is not refused as
// that of an older one.
func (m *handed) told(attempt int, out conduct.Outcome) conduct.Outcome {
	if out.Told {
		return out
	}
	rec := m.base
	rec.Type, rec.Conclusion, rec.Reason, rec.Infrastructure, rec.Outputs = ci.JobFinished, out.Conclusion, out.Reason, out.Infrastructure, out.Outputs
	rec.DurationMS = new(int64(0))
	m.records.ForAttempt(m.task.Job.Key, max(attempt, 1)).Emit(rec)
	out.Told = true
	return out
}

// Expired is how many jobs lost their workers so far: those that wait for another one,
// and those that were lost with them.
func (d *Desk) Expired() (requeued, lost int64) { return d.requeued.Load(), d.given.Load() }

// Watch sees that jobs go on whose workers were lost, until ctx ends.
func (d *Desk) Watch(ctx context.Context) { d.Queue.Watch(ctx, d.expired) }

func (d *Desk) find(id string) *handed {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.jobs[id]
}

// Take waits for a job that the worker can take, and claims it. It is a [Counter].
func (d *Desk) Take(ctx context.Context, o queue.Offer) (Job, error) {
	a, err := d.Claim(ctx, o)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Claim is Take, for whoever hands the job on to a worker elsewhere.
func (d *Desk) Claim(ctx context.Context, o queue.Offer) (*Attempt, error) {
	for {
		c, err := d.Queue.Claim(ctx, o)
		if err != nil {
			return nil, err
		}
		keep := context.WithoutCancel(ctx)
		if me := d.find(c.JobID); me != nil {
			return d.begin(c, me), nil
		}
		if err := d.strange(keep, c); err != nil && !errors.Is(err, queue.ErrLost) {
			return nil, err
		}
	}
}

// strange ends the claim of a job that no conductor of this process waits for.
func (d *Desk) strange(ctx context.Context, c *queue.Claim) error {
	conclusion, ok, err := d.Ended(ctx, c.JobID)
	switch {
	case err != nil:
		return errors.Join(err, c.Release(ctx, 5*time.Second, "its end is not known"))
	case ok:
		return c.Finish(ctx, conclusion, "")
	}
	// Its run is about to be taken up, or another process has it.
	return c.Release(ctx, time.Second, "no conductor here")
}

// Errors of [Desk.Resume].
var (
	// ErrOver says that the job has ended.
	ErrOver = errors.New("the job has ended")
	// ErrElsewhere says that no conductor of this process waits for the job: its run is
	// about to be taken up, or another server has it.
	ErrElsewhere = errors.New("no conductor of this server waits for the job")
)

// Resume takes up an attempt that was claimed in an earlier process, by this worker. The
// error is queue.ErrLost where the attempt is not the worker's (any more), ErrOver or
// ErrElsewhere.
func (d *Desk) Resume(ctx context.Context, worker, jobID string, attempt int) (*Attempt, error) {
	if !ci.ValidID(jobID) || attempt < 1 {
		return nil, queue.ErrLost
	}
	state, now, holder, err := d.Holder(ctx, jobID)
	if err != nil {
		return nil, err
	}
	mine := now == attempt && holder == worker
	if !mine || state == "lost" || state == "queued" || state == "" {
		return nil, queue.ErrLost
	}
	c := d.Queue.Resume(jobID, attempt)
	conclusion, ended, err := d.Ended(ctx, jobID)
	if err != nil {
		return nil, err
	}
	if ended || state == "done" {
		if state == "claimed" {
			err = c.Finish(ctx, conclusion, "")
		}
		return nil, cmp.Or(err, ErrOver)
	}
	me := d.find(jobID)
	if me == nil {
		return nil, ErrElsewhere
	}
	return d.begin(c, me), nil
}

// begin puts a claim into its worker's hands.
func (d *Desk) begin(c *queue.Claim, me *handed) *Attempt {
	a := &Attempt{desk: d, claim: c, me: me}
	a.ctx, a.stop = context.WithCancelCause(context.Background())
	me.mu.Lock()
	me.attempt = a
	if me.cancelled != nil {
		a.stop(me.cancelled)
	}
	me.mu.Unlock()
	a.sink = me.records.ForAttempt(me.task.Job.Key, c.Attempt)
	return a
}

// Attempt is a claimed attempt at a job of this desk. It is a [Job].
type Attempt struct {
	desk  *Desk
	claim *queue.Claim
	me    *handed
	sink  ci.Sink
	ctx   context.Context // ends, with its cause, when the job is to
	stop  context.CancelCauseFunc
}

// Fence is the job's id and the number of the attempt.
func (a *Attempt) Fence() (string, int) { return a.claim.JobID, a.claim.Attempt }

// Task is what is to be run.
func (a *Attempt) Task() conduct.Task { return a.me.task }

// Runner is what a worker elsewhere is told of how to run it; nil: it runs here only.
func (a *Attempt) Runner() *worker.Runner {
	if a.me.of.Runner == nil {
		return nil
	}
	return a.me.of.Runner(a)
}

// Ends is closed when the job is to end; Cause says why: [queue.ErrLost], [ErrStopping],
// or who cancelled it.
func (a *Attempt) Ends() <-chan struct{} { return a.ctx.Done() }

// Cause is nil until Ends is closed.
func (a *Attempt) Cause() error { return context.Cause(a.ctx) }

// Renew is one heartbeat, as of [queue.Claim].
func (a *Attempt) Renew(ctx context.Context) error { return a.claim.Renew(ctx) }

// Hold implements [Job].
func (a *Attempt) Hold(ctx context.Context, fn func(context.Context) error) error {
	return a.claim.Hold(ctx, func(held context.Context) error {
		both, stop := context.WithCancelCause(held)
		defer stop(nil)
		defer context.AfterFunc(a.ctx, func() { stop(context.Cause(a.ctx)) })()
		return fn(both)
	})
}

// Run implements [Job].
func (a *Attempt) Run(ctx context.Context, sink ci.Sink) conduct.Outcome {
	return a.me.of.Run(ctx, sink, a.me.task)
}

// Flush makes what was emitted last, whatever becomes of this process; after an error
// it is to be emitted again, in another.
func (a *Attempt) Flush() error { return a.me.records.Flush() }

// Emit records what the attempt tells. Older attempts are not heard.
func (a *Attempt) Emit(r ci.Record) { a.sink.Emit(r) }

// Finish implements [Job].
func (a *Attempt) Finish(ctx context.Context, out conduct.Outcome) error {
	a.leave()
	out = a.me.told(a.claim.Attempt, out)
	a.me.conclude(out)
	if err := a.claim.Finish(ctx, out.Conclusion, out.Reason); err != nil && !errors.Is(err, queue.ErrLost) {
		return err
	}
	return nil
}

// Release implements [Job].
func (a *Attempt) Release(ctx context.Context, reason string) error {
	a.leave()
	return a.claim.Release(ctx, 0, reason)
}

// Ended implements [Job].
func (a *Attempt) Ended(ctx context.Context) (bool, error) {
	_, ok, err := a.desk.Ended(ctx, a.claim.JobID)
	return ok, err
}

func (a *Attempt) leave() {
	a.me.mu.Lock()
	defer a.me.mu.Unlock()
	if a.me.attempt == a {
		a.me.attempt = nil
	}
}

// expired ends the jobs that were lost with their last worker.
func (d *Desk) expired(e queue.Expired) {
	d.requeued.Add(int64(len(e.Requeued)))
	d.given.Add(int64(len(e.Lost)))
	for _, id := range e.Requeued {
		d.find(id).lost()
		d.Log.Warn("a job's worker was lost; the job waits for another", "job", id)
	}
	for _, id := range e.Lost {
		me := d.find(id)
		if me == nil {
			continue
		}
		_, attempt, err := d.Attempt(context.Background(), id)
		if err != nil {
			d.Log.Error("a lost job", "job", id, "err", err)
		}
		me.lost()
		out := conduct.Outcome{Conclusion: ci.Failure, Infrastructure: true,
			Reason: fmt.Sprintf("lost: its worker stopped answering, in attempt %d, the last one", attempt)}
		me.mu.Lock()
		if me.cancelled != nil {
			out = conduct.Outcome{Conclusion: ci.Cancelled, Reason: cmp.Or(me.cancelled.Error(), "cancelled")}
		}
		me.mu.Unlock()
		me.conclude(me.told(attempt, out))
	}
}
