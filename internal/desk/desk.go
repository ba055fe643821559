// Package desk is what a server puts between the conductors of its runs and its
// workers: the queue. A [Handed] is the [conduct.Executor] of one run: it puts a
// job into the queue and waits for what becomes of it; [Desk.Work] claims jobs and
// runs them.
package desk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/queue"
)

// ErrStopping is the cause with which a server that stops ends what its grace
// was not enough for. It is no end of the job: nothing is recorded about it, and
// whoever takes the run up again finds it in the queue.
var ErrStopping = errors.New("the server stops")

// Records is where an attempt's records go. *store.Recorder is one.
type Records interface {
	ci.Sink
	// ForAttempt returns the sink of one attempt at a job; those of older
	// attempts are refused from then on.
	ForAttempt(jobKey string, attempt int) ci.Sink
}

// Desk is where the conductors of a server hand their jobs in, and where the
// workers of the same process take them up, by way of the queue: it decides who
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
	// Grace is how long jobs may go on when Work's context ends.
	Grace time.Duration
	Log   *slog.Logger

	mu   sync.Mutex
	jobs map[string]*handed // by job id
}

// handed is a job that a conductor waits for.
type handed struct {
	key     string
	records Records
	base    ci.Record // what every record of the job says
	execute func(ctx context.Context, sink ci.Sink) conduct.Outcome
	done    chan conduct.Outcome // holds one

	mu        sync.Mutex
	stop      context.CancelCauseFunc // of the attempt that runs
	cancelled error
}

// Handed is one run's way to the desk. It is an [Executor].
type Handed struct {
	Desk    *Desk
	RunID   string
	Records Records
	// ID finds the id of a job of the run by its key.
	ID func(ctx context.Context, key string) (string, error)
	// Run runs an attempt whose records go to sink.
	Run func(ctx context.Context, sink ci.Sink, t conduct.Task) conduct.Outcome
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
	me := &handed{
		key: job.Key, records: h.Records, done: make(chan conduct.Outcome, 1),
		base: ci.Record{Run: h.RunID, Job: job.ID, JobKey: job.Key, Name: job.Name},
		execute: func(attempt context.Context, sink ci.Sink) conduct.Outcome {
			own := t
			own.Waits = nil // it has waited
			return h.Run(attempt, sink, own)
		},
	}
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
	fresh, err := d.Queue.Add(keep, queue.Item{JobID: id, Labels: job.Labels})
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
	if m.stop != nil {
		m.stop(cause)
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
	m.records.ForAttempt(m.key, max(attempt, 1)).Emit(rec)
	out.Told = true
	return out
}

// Work claims jobs that fit the labels and runs at most n at once, until ctx
// ends; then it claims no more, lets what runs go on for Grace, and puts back
// what has not ended by then. It returns when nothing runs any more.
func (d *Desk) Work(ctx context.Context, name string, labels []string, n int) error {
	return d.Queue.Work(ctx, name, labels, n, d.attempt, d.expired)
}

func (d *Desk) find(id string) *handed {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.jobs[id]
}

// attempt runs one claim. held ends with queue.ErrLost or a cancellation, as
// Claim.Hold says, or when Work is to stop.
func (d *Desk) attempt(held context.Context, c *queue.Claim) error {
	keep := context.WithoutCancel(held)
	me := d.find(c.JobID)
	if me == nil {
		conclusion, ok, err := d.Ended(keep, c.JobID)
		switch {
		case err != nil:
			return errors.Join(err, c.Release(keep, 5*time.Second, "its end is not known"))
		case ok:
			return c.Finish(keep, conclusion, "")
		}
		// Its run is about to be taken up, or another process has it.
		return c.Release(keep, time.Second, "no conductor here")
	}
	ctx, stop := context.WithCancelCause(keep)
	defer stop(nil)
	me.mu.Lock()
	me.stop = stop
	if me.cancelled != nil {
		stop(me.cancelled)
	}
	me.mu.Unlock()
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ended:
			return
		case <-held.Done():
		}
		cause := context.Cause(held)
		var cancelled *queue.CancelledError
		if errors.Is(cause, queue.ErrLost) || errors.As(cause, &cancelled) {
			stop(cause)
			return
		}
		t := time.NewTimer(d.Grace)
		defer t.Stop()
		select {
		case <-ended:
		case <-t.C:
			stop(ErrStopping)
		}
	})
	attempt := me.records.ForAttempt(me.key, c.Attempt)
	// Who lost the job, or only pauses it, has nothing more to say about it.
	void := func() bool {
		cause := context.Cause(ctx)
		return errors.Is(cause, queue.ErrLost) || errors.Is(cause, ErrStopping)
	}
	out := me.execute(ctx, ci.SinkFunc(func(r ci.Record) {
		if !void() {
			attempt.Emit(r)
		}
	}))
	close(ended)
	wg.Wait()
	me.mu.Lock()
	me.stop = nil
	me.mu.Unlock()
	if void() {
		// What was on record before the order to stop came is the job's end.
		_, ok, err := d.Ended(keep, c.JobID)
		if lost := errors.Is(context.Cause(ctx), queue.ErrLost); lost && !ok {
			return errors.Join(err, fmt.Errorf("attempt %d was given up: %w", c.Attempt, queue.ErrLost))
		} else if !ok {
			return errors.Join(err, c.Release(keep, 0, "the server stopped"))
		}
	}
	out = me.told(c.Attempt, out)
	me.conclude(out)
	if err := c.Finish(keep, out.Conclusion, out.Reason); err != nil && !errors.Is(err, queue.ErrLost) {
		return err
	}
	return nil
}

// expired ends the jobs that were lost with their last worker.
func (d *Desk) expired(e queue.Expired) {
	for _, id := range e.Requeued {
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
