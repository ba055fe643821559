package desk_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/desk"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/store"
)

// counter is a desk over a real store, with one job.
type counter struct {
	t     *testing.T
	store *store.Store
	queue *queue.Queue
	desk  *desk.Desk
	rec   *store.Recorder
	run   ci.Run
	job   ci.Job
	grace time.Duration
}

func newCounter(t *testing.T) *counter {
	t.Helper()
	ctx := t.Context()
	s, err := store.Open(ctx, filepath.Join(t.TempDir(), "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{t: t, store: s, queue: queue.New(s, queue.Config{Lease: 300 * time.Millisecond, Poll: 10 * time.Millisecond, Attempts: 2})}
	run, jobs, err := s.CreateRun(ctx, ci.Run{Repository: "o/r", File: "f"}, []ci.Job{{Key: "a", Job: "a", Name: "a"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.run, c.job = run, jobs[0]
	if c.rec, err = s.Recorder(context.Background(), run.ID); err != nil {
		t.Fatal(err)
	}
	c.desk = &desk.Desk{Queue: c.queue, Log: slog.New(slog.DiscardHandler),
		Ended: func(ctx context.Context, id string) (ci.Conclusion, bool, error) {
			j, err := s.Job(ctx, id)
			return j.Conclusion, j.Status == ci.Completed, err
		},
		Attempt: func(ctx context.Context, id string) (string, int, error) {
			state, n, _, _, err := s.QueueState(ctx, id)
			return state, n, err
		},
		Holder: func(ctx context.Context, id string) (string, int, string, error) {
			state, n, worker, _, err := s.QueueState(ctx, id)
			return state, n, worker, err
		},
	}
	t.Cleanup(func() { c.rec.Close(); s.Close() })
	return c
}

// work starts workers until the test ends.
func (c *counter) work(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { c.desk.Watch(ctx) })
		w := &desk.Worker{Counter: c.desk, Offer: queue.Offer{Worker: "w", Labels: []string{"linux"}}, Slots: 1, Grace: c.grace, Log: c.desk.Log}
		w.Work(ctx)
	}()
	stop = func() { cancel(); <-done }
	c.t.Cleanup(stop)
	return stop
}

func (c *counter) execute(ctx context.Context, run func(context.Context, ci.Sink) conduct.Outcome) conduct.Outcome {
	h := &desk.Handed{Desk: c.desk, RunID: c.run.ID, Records: c.rec,
		ID:  func(context.Context, string) (string, error) { return c.job.ID, nil },
		Run: func(ctx context.Context, s ci.Sink, _ conduct.Task) conduct.Outcome { return run(ctx, s) },
	}
	return h.Execute(ctx, conduct.Task{Job: &plan.Job{Key: "a", ID: "a", Name: "a", Labels: []string{"linux"}}})
}

// ended is how the job ended on record.
func (c *counter) ended() store.StoredJob {
	c.t.Helper()
	j, err := c.store.Job(c.t.Context(), c.job.ID)
	if err != nil || j.Status != ci.Completed {
		c.t.Fatalf("%+v, %v", j, err)
	}
	return j
}

func TestDeskRuns(t *testing.T) {
	c := newCounter(t)
	c.work(t.Context())
	out := c.execute(t.Context(), func(context.Context, ci.Sink) conduct.Outcome {
		return conduct.Outcome{Conclusion: ci.Success, Outputs: map[string]string{"k": "v"}}
	})
	if out.Conclusion != ci.Success || !out.Told || c.ended().Conclusion != ci.Success || c.ended().Outputs["k"] != "v" {
		t.Errorf("%+v, %+v", out, c.ended())
	}
}

func TestDeskCancelsWhatWaits(t *testing.T) {
	c := newCounter(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("nobody wants it"))
	out := c.execute(ctx, func(context.Context, ci.Sink) conduct.Outcome {
		t.Error("it ran")
		return conduct.Outcome{}
	})
	if j := c.ended(); out.Conclusion != ci.Cancelled || j.Conclusion != ci.Cancelled || j.Reason != "nobody wants it" {
		t.Errorf("%+v, %+v", out, j)
	}
}

func TestDeskCancelsWhatRuns(t *testing.T) {
	c := newCounter(t)
	c.work(t.Context())
	ctx, cancel := context.WithCancelCause(t.Context())
	out := c.execute(ctx, func(ctx context.Context, _ ci.Sink) conduct.Outcome {
		cancel(errors.New("a newer one came"))
		<-ctx.Done()
		return conduct.Outcome{Conclusion: ci.Cancelled, Reason: context.Cause(ctx).Error()}
	})
	if j := c.ended(); out.Conclusion != ci.Cancelled || j.Reason != "a newer one came" {
		t.Errorf("%+v, %+v", out, j)
	}
}

// A worker that stops answering loses the job: another gets it, and what the
// first one still says does not count. When the last attempt is lost, so is the
// job: red, and not its own doing.
func TestDeskLosesWorkers(t *testing.T) {
	for _, deaths := range []int{1, 2} {
		c := newCounter(t)
		if _, err := c.queue.Add(t.Context(), queue.Item{JobID: c.job.ID, Labels: []string{"linux"}}); err != nil {
			t.Fatal(err)
		}
		var ghosts []ci.Sink
		die := func() {
			claim, err := c.queue.Claim(t.Context(), queue.Offer{Worker: "ghost", Labels: []string{"linux"}})
			if err != nil {
				t.Fatal(err)
			}
			ghosts = append(ghosts, c.rec.ForAttempt("a", claim.Attempt))
		}
		die()
		for range deaths - 1 {
			for {
				e, err := c.queue.Expire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if len(e.Requeued) > 0 {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			die()
		}
		c.work(t.Context())
		var ran atomic.Int32
		out := c.execute(t.Context(), func(_ context.Context, s ci.Sink) conduct.Outcome {
			ran.Add(1)
			ghosts[0].Emit(ci.Record{Type: ci.JobFinished, JobKey: "a", Conclusion: ci.Failure, Reason: "a ghost's word"})
			return conduct.Outcome{Conclusion: ci.Success}
		})
		j := c.ended()
		switch deaths {
		case 1:
			if out.Conclusion != ci.Success || j.Conclusion != ci.Success || j.Attempt != 2 || ran.Load() != 1 {
				t.Errorf("%+v, %+v", out, j)
			}
		case 2:
			if out.Conclusion != ci.Failure || !out.Infrastructure || !j.Infrastructure || !strings.Contains(j.Reason, "lost") || ran.Load() != 0 {
				t.Errorf("%+v, %+v", out, j)
			}
		}
	}
}

// A worker that lives and has lost its lease (it was suspended, the database was
// away) stops what it does and has no say any more: the attempt after it counts.
func TestDeskLosesItsLease(t *testing.T) {
	c := newCounter(t)
	c.work(t.Context())
	var attempts atomic.Int32
	out := c.execute(t.Context(), func(ctx context.Context, s ci.Sink) conduct.Outcome {
		if attempts.Add(1) > 1 {
			return conduct.Outcome{Conclusion: ci.Success, Outputs: map[string]string{"by": "the second"}}
		}
		// To everybody else the lease has run out.
		if requeued, _, err := c.store.QueueExpire(context.Background(), "", time.Now().Add(time.Second)); err != nil || len(requeued) != 1 {
			t.Errorf("%v, %v", requeued, err)
		}
		<-ctx.Done()
		if cause := context.Cause(ctx); !errors.Is(cause, queue.ErrLost) {
			t.Errorf("it ended with %v", cause)
		}
		s.Emit(ci.Record{Type: ci.JobFinished, JobKey: "a", Conclusion: ci.Failure, Reason: "a zombie's word"})
		return conduct.Outcome{Conclusion: ci.Failure, Reason: "a zombie's word"}
	})
	if j := c.ended(); out.Conclusion != ci.Success || j.Conclusion != ci.Success || j.Attempt != 2 || j.Outputs["by"] != "the second" || attempts.Load() != 2 {
		t.Errorf("%+v, %+v, %d attempts", out, j, attempts.Load())
	}
}

// Workers that are to stop give back what does not end in time, unrecorded.
func TestDeskStops(t *testing.T) {
	c := newCounter(t)
	c.grace = time.Millisecond
	stop := c.work(t.Context())
	ctx, cancel := context.WithCancelCause(t.Context())
	running := make(chan struct{})
	result := make(chan conduct.Outcome)
	go func() {
		result <- c.execute(ctx, func(ctx context.Context, s ci.Sink) conduct.Outcome {
			close(running)
			<-ctx.Done()
			s.Emit(ci.Record{Type: ci.JobFinished, JobKey: "a", Conclusion: ci.Cancelled})
			return conduct.Outcome{Conclusion: ci.Cancelled, Told: true}
		})
	}()
	<-running
	stop()
	cancel(desk.ErrStopping)
	<-result
	j, err := c.store.Job(t.Context(), c.job.ID)
	if err != nil || j.Status == ci.Completed {
		t.Errorf("%+v, %v", j, err)
	}
	if state, attempt, _, _, err := c.store.QueueState(t.Context(), c.job.ID); state != "queued" || attempt != 1 || err != nil {
		t.Errorf("in the queue: %s, attempt %d, %v", state, attempt, err)
	}
}
