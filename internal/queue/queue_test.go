package queue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/store/storetest"
)

// clock is a time that the test sets.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func addJobs(t *testing.T, s *store.Store, q *queue.Queue, n int, labels ...string) []string {
	t.Helper()
	var jobs []ci.Job
	for i := range n {
		jobs = append(jobs, ci.Job{Key: fmt.Sprint("j", i), Job: fmt.Sprint("j", i)})
	}
	_, jobs, err := s.CreateRun(t.Context(), ci.Run{Repository: "o/r", File: t.Name()}, jobs, nil)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, j := range jobs {
		if ok, err := q.Add(t.Context(), queue.Item{JobID: j.ID, Labels: labels}); err != nil || !ok {
			t.Fatalf("add: %v %v", ok, err)
		}
		ids = append(ids, j.ID)
	}
	return ids
}

func TestQueue(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		a, b := open(), open()
		for _, c := range []struct {
			name string
			test func(*testing.T, *store.Store, *store.Store)
		}{
			{"labels", testLabels}, {"order", testOrder}, {"order of one moment", testMoment}, {"two workers race", testRace}, {"a killed worker", testKilled},
			{"heartbeat", testHeartbeat}, {"cancel", testCancel}, {"release", testRelease}, {"sizes", testSizes}, {"grace", testGrace}, {"given back", testGivenBack},
		} {
			t.Run(c.name, func(t *testing.T) { c.test(t, a, b) })
		}
	})
}

func claim(t *testing.T, q *queue.Queue, worker string, labels ...string) *queue.Claim {
	t.Helper()
	c, err := q.TryClaim(t.Context(), queue.Offer{Worker: worker, Labels: labels})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What is put in at one moment comes out in the order in which it was put in,
// not in that of the ids.
func testMoment(t *testing.T, a, _ *store.Store) {
	q := queue.New(a, queue.Config{Now: (&clock{t: time.UnixMilli(1_800_000_000_000)}).now})
	ids := addJobs(t, a, q, 1, "moment")
	var more []ci.Job
	for i := range 8 {
		more = append(more, ci.Job{Key: fmt.Sprint("k", i), Job: fmt.Sprint("k", i)})
	}
	_, more, err := a.CreateRun(t.Context(), ci.Run{Repository: "o/r", File: t.Name()}, more, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range slices.Backward(more) {
		if _, err := q.Add(t.Context(), queue.Item{JobID: j.ID, Labels: []string{"moment"}}); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, j.ID)
	}
	for i, id := range ids {
		if c := claim(t, q, "w", "moment"); c == nil || c.JobID != id {
			t.Fatalf("%d: %+v, want %s", i, c, id)
		}
	}
}

func testLabels(t *testing.T, a, b *store.Store) {
	q := queue.New(a, queue.Config{})
	ids := addJobs(t, a, q, 1, "Self-Hosted", "gpu")
	for _, labels := range [][]string{nil, {"gpu"}, {"self-hosted", "gpuX"}} {
		if c := claim(t, q, "w", labels...); c != nil {
			t.Fatalf("a runner with %q got a job that wants self-hosted and gpu", labels)
		}
	}
	c := claim(t, queue.New(b, queue.Config{}), "w", "linux", "GPU", "self-hosted")
	if c == nil || c.JobID != ids[0] || c.Attempt != 1 {
		t.Fatalf("%+v", c)
	}
	if err := c.Finish(t.Context(), ci.Success, ""); err != nil {
		t.Fatal(err)
	}
	if ok, err := q.Add(t.Context(), queue.Item{JobID: ids[0], Labels: []string{"x"}}); err != nil || ok {
		t.Fatalf("a finished job was put in again: %v %v", ok, err)
	}
	if _, err := q.Add(t.Context(), queue.Item{JobID: ci.NewID()}); err == nil {
		t.Fatal("a job without labels was taken")
	}
}

// A worker gets no job whose machine it cannot hold; one without a bound gets any.
func testSizes(t *testing.T, a, _ *store.Store) {
	q := queue.New(a, queue.Config{})
	id := ci.NewID()
	if _, err := q.Add(t.Context(), queue.Item{JobID: id, Labels: []string{"sized"}, CPUs: 8, MemoryMiB: 4096}); err != nil {
		t.Fatal(err)
	}
	for _, o := range []queue.Offer{{CPUs: 7, MemoryMiB: 1 << 20}, {CPUs: 64, MemoryMiB: 4095}, {CPUs: 1}} {
		o.Labels = []string{"sized"}
		if c, err := q.TryClaim(t.Context(), o); c != nil || err != nil {
			t.Errorf("%+v got %+v, %v", o, c, err)
		}
	}
	if c, err := q.TryClaim(t.Context(), queue.Offer{Labels: []string{"sized"}, CPUs: 8, MemoryMiB: 4096}); err != nil || c == nil || c.JobID != id {
		t.Errorf("%+v, %v", c, err)
	}
	other := ci.NewID()
	if _, err := q.Add(t.Context(), queue.Item{JobID: other, Labels: []string{"sized"}, CPUs: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if c := claim(t, q, "w", "sized"); c == nil || c.JobID != other {
		t.Errorf("%+v", c)
	}
}

// A server that starts gives workers elsewhere time to say that they live, and no others.
func testGrace(t *testing.T, a, _ *store.Store) {
	clk := &clock{t: time.Now()}
	q := queue.New(a, queue.Config{Now: clk.now, Lease: 20 * time.Second})
	ids := addJobs(t, a, q, 2, "grace")
	claim(t, q, "remote/east/1", "grace")
	claim(t, q, "serve-1", "grace")
	clk.pass(10 * time.Minute)
	if err := q.Grace(t.Context(), "remote/"); err != nil {
		t.Fatal(err)
	}
	e, err := q.Expire(t.Context())
	if err != nil || slices.Contains(e.Requeued, ids[0]) || !slices.Contains(e.Requeued, ids[1]) { // with what other tests left
		t.Errorf("%+v, %v", e, err)
	}
	clk.pass(21 * time.Second)
	if e, err = q.Expire(t.Context()); err != nil || !slices.Equal(e.Requeued, ids[:1]) {
		t.Errorf("%+v, %v", e, err)
	}
}

// A claim that was given back is none of the attempts that a job may have.
func testGivenBack(t *testing.T, a, _ *store.Store) {
	clk := &clock{t: time.Now()}
	q := queue.New(a, queue.Config{Now: clk.now, Lease: time.Second, Attempts: 2})
	addJobs(t, a, q, 1, "back")
	for range 3 {
		if err := claim(t, q, "w", "back").Release(t.Context(), 0, "stopping"); err != nil {
			t.Fatal(err)
		}
		clk.pass(time.Second)
	}
	claim(t, q, "w", "back")
	clk.pass(2 * time.Second)
	if e, err := q.Expire(t.Context()); err != nil || len(e.Requeued) != 1 || len(e.Lost) != 0 {
		t.Errorf("lost once: %+v, %v", e, err)
	}
	claim(t, q, "w", "back")
	clk.pass(2 * time.Second)
	if e, err := q.Expire(t.Context()); err != nil || len(e.Lost) != 1 {
		t.Errorf("lost twice: %+v, %v", e, err)
	}
}

func testOrder(t *testing.T, a, _ *store.Store) {
	clk := &clock{t: time.UnixMilli(1_700_000_000_000)}
	q := queue.New(a, queue.Config{Now: clk.now})
	add := func(prio float64, after time.Duration) string {
		id := ci.NewID()
		if _, err := q.Add(t.Context(), queue.Item{JobID: id, Labels: []string{"order"}, Priority: prio, After: clk.now().Add(after)}); err != nil {
			t.Fatal(err)
		}
		clk.pass(time.Second)
		return id
	}
	later, old, young, urgent := add(9, time.Hour), add(0, 0), add(0, 0), add(5, 0)
	for i, want := range []string{urgent, old, young} {
		if c := claim(t, q, "w", "order"); c == nil || c.JobID != want {
			t.Fatalf("claim %d is %+v, want %s", i, c, want)
		}
	}
	if c := claim(t, q, "w", "order"); c != nil {
		t.Fatal("a job was handed out before its time")
	}
	clk.pass(time.Hour)
	if c := claim(t, q, "w", "order"); c == nil || c.JobID != later {
		t.Fatalf("%+v", c)
	}
}

// testRace: two processes, each with several workers, never get one job twice.
func testRace(t *testing.T, a, b *store.Store) {
	const jobs = 60
	ids := addJobs(t, a, queue.New(a, queue.Config{}), jobs, "race")
	var mu sync.Mutex
	got := map[string]int{}
	var wg sync.WaitGroup
	for i, s := range []*store.Store{a, b, a, b} {
		q := queue.New(s, queue.Config{})
		wg.Go(func() {
			for {
				c, err := q.TryClaim(t.Context(), queue.Offer{Worker: fmt.Sprint("w", i), Labels: []string{"race"}})
				if err != nil {
					t.Error(err)
					return
				}
				if c == nil {
					return
				}
				mu.Lock()
				got[c.JobID]++
				mu.Unlock()
				if err := c.Finish(t.Context(), ci.Success, ""); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if got[id] != 1 {
			t.Errorf("job %s was handed out %d times", id, got[id])
		}
	}
}

func testKilled(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	clk := &clock{t: time.UnixMilli(1_700_000_000_000)}
	cfg := queue.Config{Lease: 20 * time.Second, Attempts: 2, Now: clk.now}
	qa, qb := queue.New(a, cfg), queue.New(b, cfg)
	ids := addJobs(t, a, qa, 1, "killed")
	first := claim(t, qa, "a", "killed")
	clk.pass(19 * time.Second)
	if e, err := qb.Expire(ctx); err != nil || len(e.Requeued)+len(e.Lost) != 0 {
		t.Fatalf("taken back too soon: %+v %v", e, err)
	}
	clk.pass(2 * time.Second)
	if e, err := qb.Expire(ctx); err != nil || len(e.Requeued) != 1 {
		t.Fatalf("%+v %v", e, err)
	}
	second := claim(t, qb, "b", "killed")
	if second == nil || second.JobID != ids[0] || second.Attempt != 2 {
		t.Fatalf("%+v", second)
	}
	// The first worker was only slow. Whatever it does now is refused.
	if err := first.Renew(ctx); !errors.Is(err, queue.ErrLost) {
		t.Errorf("renew: %v", err)
	}
	if err := first.Finish(ctx, ci.Success, ""); !errors.Is(err, queue.ErrLost) {
		t.Errorf("finish: %v", err)
	}
	if err := first.Release(ctx, 0, ""); !errors.Is(err, queue.ErrLost) {
		t.Errorf("release: %v", err)
	}
	clk.pass(21 * time.Second)
	e, err := qa.Expire(ctx)
	if err != nil || len(e.Lost) != 1 || e.Lost[0] != ids[0] {
		t.Fatalf("after the last attempt: %+v %v", e, err)
	}
	if err := second.Finish(ctx, ci.Success, ""); !errors.Is(err, queue.ErrLost) {
		t.Errorf("a lost job became green: %v", err)
	}
	if c := claim(t, qa, "a", "killed"); c != nil {
		t.Errorf("a lost job was handed out: %+v", c)
	}
}

func testHeartbeat(t *testing.T, a, _ *store.Store) {
	q := queue.New(a, queue.Config{Lease: 3 * time.Second})
	if _, err := q.Expire(t.Context()); err != nil { // what other tests left, with clocks of their own
		t.Fatal(err)
	}
	addJobs(t, a, q, 1, "beat")
	c := claim(t, q, "w", "beat")
	err := c.Hold(t.Context(), func(ctx context.Context) error {
		// Outlive the lease, with real heartbeats.
		deadline := time.Now().Add(3500 * time.Millisecond)
		for time.Now().Before(deadline) {
			if e, err := q.Expire(ctx); err != nil || len(e.Requeued) > 0 {
				return fmt.Errorf("expired under heartbeat: %+v %v", e, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
		return c.Finish(ctx, ci.Success, "")
	})
	if err != nil {
		t.Fatal(err)
	}
}

func testCancel(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	q := queue.New(a, queue.Config{Lease: 3 * time.Second})
	other := queue.New(b, queue.Config{})
	ids := addJobs(t, a, q, 2, "cancel")
	if now, err := other.Cancel(ctx, ids[1], "push"); err != nil || !now {
		t.Fatalf("cancel of a waiting job: %v %v", now, err)
	}
	c := claim(t, q, "w", "cancel")
	if c.JobID != ids[0] {
		t.Fatalf("a cancelled job was handed out")
	}
	err := c.Hold(ctx, func(held context.Context) error {
		if now, err := other.Cancel(ctx, ids[0], "newer push"); err != nil || now {
			return fmt.Errorf("cancel of a running job: %v %v", now, err)
		}
		<-held.Done()
		var cancelled *queue.CancelledError
		if !errors.As(context.Cause(held), &cancelled) || cancelled.Reason != "newer push" {
			return fmt.Errorf("cause %w", context.Cause(held))
		}
		// The claim is still ours to end.
		return c.Finish(ctx, ci.Cancelled, cancelled.Reason)
	})
	if err != nil {
		t.Fatal(err)
	}
	if now, err := other.Cancel(ctx, ids[0], "again"); err != nil || now {
		t.Fatalf("cancel of a finished job: %v %v", now, err)
	}
}

func testRelease(t *testing.T, a, _ *store.Store) {
	clk := &clock{t: time.UnixMilli(1_700_000_000_000)}
	q := queue.New(a, queue.Config{Now: clk.now})
	addJobs(t, a, q, 1, "release")
	c := claim(t, q, "w", "release")
	if err := c.Release(t.Context(), time.Minute, "no room"); err != nil {
		t.Fatal(err)
	}
	if c := claim(t, q, "w", "release"); c != nil {
		t.Fatal("handed out before its time")
	}
	clk.pass(time.Minute)
	if c := claim(t, q, "w", "release"); c == nil || c.Attempt != 2 {
		t.Fatalf("%+v", c)
	}
}

// silent is a store whose heartbeats fail, and then never get through again.
type silent struct {
	queue.Store
}

func (silent) QueueRenew(ctx context.Context, _ string, _ int, _ time.Time) (bool, string, error) {
	<-ctx.Done()
	return false, "", ctx.Err()
}

func (silent) QueueClaim(context.Context, queue.Offer, time.Time, time.Time) (string, int, bool, error) {
	return "x", 1, true, nil
}

// TestHoldEndsWithTheLease: a worker that cannot reach the database stops when
// its lease has run out, since another may have the job from then on.
func TestHoldEndsWithTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.New(silent{}, queue.Config{Lease: 30 * time.Second})
		c, err := q.TryClaim(t.Context(), queue.Offer{Worker: "w", Labels: nil})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err = c.Hold(t.Context(), func(ctx context.Context) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
		if !errors.Is(err, queue.ErrLost) {
			t.Errorf("%v", err)
		}
		if d := time.Since(start); d < 30*time.Second || d > 45*time.Second {
			t.Errorf("held for %v with a lease of 30 s", d)
		}
	})
}

// work runs a worker as a process has it: its jobs held, and leases that have ended
// taken back meanwhile.
func work(q *queue.Queue, ctx context.Context, labels []string, n int, fn func(context.Context, *queue.Claim) error, expired func(queue.Expired)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { q.Watch(ctx, expired) })
	queue.Work(ctx, n, q.Poll(), slog.New(slog.DiscardHandler),
		func(ctx context.Context) (*queue.Claim, error) {
			return q.Claim(ctx, queue.Offer{Worker: "w", Labels: labels})
		},
		func(ctx context.Context, c *queue.Claim) {
			c.Hold(ctx, func(ctx context.Context) error { return fn(ctx, c) })
		})
	return nil
}

func TestWork(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	q := queue.New(s, queue.Config{Poll: 50 * time.Millisecond})
	ctx, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	running, most, ran := 0, 0, 0
	var wg sync.WaitGroup
	wg.Go(func() {
		err := work(q, ctx, []string{"l"}, 2, func(ctx context.Context, c *queue.Claim) error {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			err := c.Finish(ctx, ci.Success, "")
			mu.Lock()
			running--
			if ran++; ran == 7 {
				stop()
			}
			mu.Unlock()
			return err
		}, nil)
		if err != nil {
			t.Error(err)
		}
	})
	addJobs(t, s, q, 7, "l")
	wg.Wait()
	if ran != 7 || most > 2 {
		t.Errorf("ran %d, %d at once", ran, most)
	}
}
