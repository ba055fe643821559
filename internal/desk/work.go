package desk

import (
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

// Counter is where a worker gets its jobs: a [Desk] in the worker's own process, or a
// connection to the server that has one.
type Counter interface {
	// Take waits for a job that the worker can take, and claims it. The error is the
	// cause of ctx's end, or why there is nothing to be had now.
	Take(ctx context.Context, o queue.Offer) (Job, error)
}

// Job is a claimed attempt at a job, in the hands of its worker.
type Job interface {
	// Fence is the job's id and the number of the attempt: what every write says.
	Fence() (jobID string, attempt int)
	// Hold runs fn while the claim is kept. fn's context ends when the job is to: the
	// cause is queue.ErrLost when it is the worker's no more, [ErrStopping] when its
	// conductor stops, else who cancelled it. Hold returns when fn has.
	Hold(ctx context.Context, fn func(context.Context) error) error
	// Run runs the job in a machine of the worker's; what it tells goes to sink.
	Run(ctx context.Context, sink ci.Sink) conduct.Outcome
	// Emit records what the attempt tells. It may block.
	Emit(r ci.Record)
	// Finish ends the job for good, once all that was emitted is on record. That it was
	// somebody else's by then is no error: nothing was written.
	Finish(ctx context.Context, out conduct.Outcome) error
	// Release gives the job back, to be claimed again.
	Release(ctx context.Context, reason string) error
	// Ended reports whether the job's end is on record.
	Ended(ctx context.Context) (bool, error)
}

// Worker is one that takes jobs from a counter.
type Worker struct {
	Counter Counter
	Offer   queue.Offer
	Slots   int // jobs at once; 0 is 1
	// Grace is how long jobs may go on when Work's context ends.
	Grace time.Duration
	// Poll is how long it waits after a Counter has failed.
	Poll time.Duration
	Log  *slog.Logger
}

// Work takes jobs and runs them until ctx ends; then it takes no more, lets what runs
// go on for Grace, and puts back what has not ended by then. It returns when nothing
// runs any more.
func (w *Worker) Work(ctx context.Context) {
	queue.Work(ctx, w.Slots, w.Poll, w.Log, func(ctx context.Context) (Job, error) { return w.Counter.Take(ctx, w.Offer) },
		func(ctx context.Context, j Job) {
			id, attempt := j.Fence()
			err := j.Hold(context.WithoutCancel(ctx), func(held context.Context) error { return w.attempt(ctx, held, j) })
			if err != nil {
				w.Log.Error("a job could not be run", "job", id, "attempt", attempt, "err", err)
			}
		})
}

// attempt runs one claim while it is held. work ends when the worker is to stop.
func (w *Worker) attempt(work, held context.Context, j Job) error {
	keep := context.WithoutCancel(held)
	ctx, stop := context.WithCancelCause(held)
	defer stop(nil)
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ended:
			return
		case <-work.Done():
		}
		t := time.NewTimer(w.Grace)
		defer t.Stop()
		select {
		case <-ended:
		case <-t.C:
			stop(ErrStopping)
		}
	})
	// Who lost the job, or only pauses it, has nothing more to say about it.
	void := func() bool {
		cause := context.Cause(ctx)
		return errors.Is(cause, queue.ErrLost) || errors.Is(cause, ErrStopping)
	}
	out := j.Run(ctx, ci.SinkFunc(func(r ci.Record) {
		if !void() {
			j.Emit(r)
		}
	}))
	close(ended)
	wg.Wait()
	if void() {
		// What was on record before the order to stop came is the job's end.
		ok, err := j.Ended(keep)
		if lost := errors.Is(context.Cause(ctx), queue.ErrLost); lost && !ok {
			_, attempt := j.Fence()
			return errors.Join(err, fmt.Errorf("attempt %d was given up: %w", attempt, queue.ErrLost))
		} else if !ok {
			return errors.Join(err, j.Release(keep, "the worker stopped"))
		}
	}
	return j.Finish(keep, out)
}
