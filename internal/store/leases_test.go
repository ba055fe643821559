package store_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/store/storetest"
)

// lapse is a lease that is over when the next statement is.
const lapse = time.Millisecond

func TestLease(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		ctx := t.Context()
		a, b := open(), open()
		take := func(s *store.Store, owner string, length time.Duration) (store.Lease, bool) {
			t.Helper()
			l, got, err := s.TakeLease(ctx, "O/R", owner, length)
			ok(t, err)
			return l, got
		}
		first, got := take(a, "a", time.Minute)
		if again, same := take(a, "a", time.Minute); !got || !same || again != first || first.Repository != "o/r" || first.Fence != 1 {
			t.Fatalf("%+v, then %+v", first, again)
		}
		if _, got := take(b, "b", time.Minute); got {
			t.Fatal("two have it")
		}
		if held := must[[]store.Lease](t)(a.RenewLeases(ctx, "a", lapse)); len(held) != 1 || held[0] != first {
			t.Fatalf("renewed: %v", held)
		}
		time.Sleep(5 * lapse)
		second, got := take(b, "b", time.Minute)
		if !got || second.Fence != 2 {
			t.Fatalf("%v %+v", got, second)
		}
		if held := must[[]store.Lease](t)(a.RenewLeases(ctx, "a", time.Minute)); len(held) != 0 {
			t.Fatalf("the first holder renewed %v", held)
		}
		ok(t, a.ReleaseLease(ctx, first, "a")) // it is not its own to give
		if _, got := take(a, "a", time.Minute); got {
			t.Fatal("the first holder gave it away")
		}
		ok(t, b.ReleaseLease(ctx, second, "b"))
		if l, got := take(a, "a", lapse); !got || l.Fence != 3 {
			t.Fatalf("%v %+v", got, l)
		}
		// Who lost it and has it again is not who had it before.
		time.Sleep(5 * lapse)
		if l, got := take(a, "a", time.Minute); !got || l.Fence != 4 {
			t.Fatalf("%v %+v", got, l)
		}
	})
}

// Whatever a server writes about a run that has changed hands is refused.
func TestAttackZombieServer(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		ctx := t.Context()
		a, b := open(), open()
		old, _, err := a.TakeLease(ctx, "o/r", "a", time.Minute)
		ok(t, err)
		run, jobs, err := a.Under(old).CreateRun(ctx, ci.Run{Repository: "o/r", File: "f"}, []ci.Job{{Key: "j", Job: "j"}}, []byte("plan"))
		ok(t, err)
		if fresh, err := a.QueueAdd(ctx, queue.Item{JobID: jobs[0].ID, Labels: []string{"l"}, Owner: "a"}, time.Now(), 2); err != nil || !fresh {
			t.Fatal(fresh, err)
		}
		zombie, err := a.Under(old).Recorder(context.WithoutCancel(ctx), run.ID)
		ok(t, err)
		zombie.Emit(ci.Record{Type: ci.JobStarted, Job: "j"})
		zombie.Emit(ci.Record{Type: ci.LogLine, Job: "j", Step: 1, Text: "before"})
		flushed(t, a, run.ID, jobs[0].ID, 1)
		_, err = a.RenewLeases(ctx, "a", lapse)
		ok(t, err)
		time.Sleep(5 * lapse)
		mine, got, err := b.TakeLease(ctx, "o/r", "b", time.Minute)
		if err != nil || !got {
			t.Fatal(got, err)
		}
		ok(t, b.Under(mine).Adopt(ctx, run.ID, "b"))
		next, err := b.Under(mine).Recorder(context.WithoutCancel(ctx), run.ID)
		ok(t, err)
		next.Emit(ci.Record{Type: ci.LogLine, Job: "j", Step: 1, Text: "after"})
		flushed(t, b, run.ID, jobs[0].ID, 2)

		for _, r := range []ci.Record{{Type: ci.LogLine, Job: "j", Step: 1, Text: "zombie"}, {Type: ci.JobFinished, Job: "j", Conclusion: ci.Failure},
			{Type: ci.RunFinished, Conclusion: ci.Failure}} {
			zombie.Emit(r)
		}
		if ok(t, zombie.Close()); zombie.Refused() != 2 {
			t.Errorf("%d records were refused, want the two that are no lines", zombie.Refused())
		}
		for what, err := range map[string]error{
			"a plan":           a.Under(old).SetPlan(ctx, run.ID, []byte("zombie")),
			"a note":           a.Under(old).SetFact(ctx, "check", "x", "zombie"),
			"dropping a note":  a.Under(old).DropFact(ctx, "check", "x"),
			"adopting its run": a.Under(old).Adopt(ctx, run.ID, "a"),
			"a job put in": func() error {
				_, err := a.QueueAdd(ctx, queue.Item{JobID: jobs[0].ID, Labels: []string{"l"}, Owner: "a"}, time.Now(), 2)
				return err
			}(),
			"a run": func() error {
				_, _, err := a.Under(old).CreateRun(ctx, ci.Run{Repository: "o/r", File: "f"}, nil, nil)
				return err
			}(),
		} {
			if !errors.Is(err, store.ErrFenced) {
				t.Errorf("%s: %v", what, err)
			}
		}
		ours := queue.Offer{Worker: "w", Labels: []string{"l"}, Owner: "a"}
		if _, _, got, err := a.QueueClaim(ctx, ours, time.Now(), time.Now().Add(time.Minute)); err != nil || got {
			t.Errorf("it was given another's job: %v", err)
		}
		theirs := queue.Offer{Worker: "w", Labels: []string{"l"}, Owner: "b"}
		if _, _, got, err := b.QueueClaim(ctx, theirs, time.Now().Add(time.Second), time.Now().Add(-time.Minute)); err != nil || !got {
			t.Errorf("the new owner was not given its job: %v", err)
		}
		if back, lost, err := a.QueueExpire(ctx, "a", time.Now()); err != nil || len(back)+len(lost) != 0 {
			t.Errorf("it took back another's job: %v %v %v", back, lost, err)
		}
		next.Emit(ci.Record{Type: ci.JobFinished, Job: "j", Conclusion: ci.Success})
		next.Emit(ci.Record{Type: ci.RunFinished, Conclusion: ci.Success})
		ok(t, next.Close())
		if got := must[ci.Run](t)(a.Run(ctx, run.ID)); got.Conclusion != ci.Success {
			t.Errorf("%+v", got)
		}
		if text := must[[]byte](t)(a.Plan(ctx, run.ID)); string(text) != "plan" {
			t.Errorf("plan %s", text)
		}
		var lines []string
		for l, err := range a.Log(ctx, store.LogQuery{Run: run.ID}) {
			ok(t, err)
			lines = append(lines, l.Text)
		}
		if strings.Join(lines, " ") != "before after" {
			t.Errorf("log: %q", lines)
		}
		if files, _ := filepath.Glob(filepath.Join(a.LogDir(), run.ID, "*.ndjson")); len(files) != 1 {
			t.Errorf("log files: %v", files)
		}
	})
}

// flushed waits until a log has so many lines on record.
func flushed(t *testing.T, s *store.Store, run, job string, n int64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, lines, err := s.LogSize(t.Context(), run, job); err == nil && lines == n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the log has not %d lines", n)
		}
	}
}

// Of two servers that are asked at the same moment one gets a repository's events.
func TestEventsOfOneRepositoryGoToOneServer(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		ctx := t.Context()
		stores := []*store.Store{open(), open()}
		for range 20 {
			_, _, err := stores[0].AddEvent(ctx, ci.Event{Name: "push", Repository: "o/r"}, store.EventPending, "")
			ok(t, err)
		}
		took := make([]int, len(stores))
		var wg sync.WaitGroup
		for i, s := range stores {
			wg.Go(func() {
				for range 40 {
					if _, _, got, err := s.TakeEvent(ctx, string(rune('a'+i)), time.Minute, time.Now(), time.Minute); err != nil {
						t.Error(err)
					} else if got {
						took[i]++
					}
				}
			})
		}
		wg.Wait()
		if took[0]+took[1] != 20 || took[0] != 0 && took[1] != 0 {
			t.Errorf("taken: %v", took)
		}
	})
}

// The events that a dead server had taken are handed out when its lease is over, not
// when their hold is.
func TestEventsOfADeadServer(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		ctx := t.Context()
		a, b := open(), open()
		for range 2 {
			_, _, err := a.AddEvent(ctx, ci.Event{Name: "push", Repository: "o/r"}, store.EventPending, "")
			ok(t, err)
		}
		for range 2 {
			if _, _, got, err := a.TakeEvent(ctx, "a", lapse, time.Now(), time.Hour); err != nil || !got {
				t.Fatal(got, err)
			}
		}
		time.Sleep(5 * lapse)
		for i := range 3 {
			if _, _, got, err := b.TakeEvent(ctx, "b", time.Minute, time.Now(), time.Hour); err != nil || got != (i < 2) {
				t.Fatal(i, got, err)
			}
		}
	})
}

// What one process records wakes those who watch in another.
func TestWatchOverProcesses(t *testing.T) {
	dsn, logs := storetest.PostgreSQL(t), t.TempDir()
	var stores []*store.Store
	for range 2 {
		s, err := store.Open(t.Context(), dsn, store.WithLogs(logs))
		ok(t, err)
		t.Cleanup(func() { s.Close() })
		stores = append(stores, s)
	}
	run, _ := newRun(t, stores[0], "o/r", "j")
	rec := must[*store.Recorder](t)(stores[0].Recorder(context.WithoutCancel(t.Context()), run.ID))
	changed, stop := stores[1].Watch(run.ID)
	defer stop()
	events, stopEvents := stores[1].Watch(store.EventsChanged)
	defer stopEvents()
	for _, c := range []<-chan struct{}{changed, events} { // it listens
		<-c
	}
	for what, do := range map[string]func() <-chan struct{}{
		"a record": func() <-chan struct{} { rec.Emit(ci.Record{Type: ci.JobStarted, Job: "j"}); return changed },
		"a line":   func() <-chan struct{} { rec.Emit(ci.Record{Type: ci.LogLine, Job: "j", Text: "x"}); return changed },
		"an event": func() <-chan struct{} {
			_, _, err := stores[0].AddEvent(t.Context(), ci.Event{Name: "push", Repository: "o/r"}, store.EventPending, "")
			ok(t, err)
			return events
		},
	} {
		select {
		case <-do():
		case <-time.After(10 * time.Second):
			t.Errorf("%s wakes nobody", what)
		}
	}
	ok(t, rec.Close())
	if _, err := os.Stat(logs); err != nil {
		t.Error(err)
	}
}

// A process that was suspended within a transaction does not hold up the others.
func TestAttackSuspendedTransaction(t *testing.T) {
	s, err := store.Open(t.Context(), storetest.PostgreSQL(t), store.WithLogs(t.TempDir()))
	ok(t, err)
	defer s.Close()
	var bound string
	ok(t, store.QueryForTest(s, "SHOW idle_in_transaction_session_timeout", &bound))
	if bound != "8s" {
		t.Errorf("a transaction may be idle for %s", bound)
	}
}

func TestQueueDepths(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		ctx, s := t.Context(), open()
		_, jobs := newRun(t, s, "o/r", "a", "b", "c", "d")
		at := time.Now().Add(-time.Minute)
		for i, labels := range [][]string{{"l"}, {"l"}, {"m"}, {"n"}} {
			if _, err := s.QueueAdd(ctx, queue.Item{JobID: jobs[i].ID, Labels: labels}, at.Add(time.Duration(i)*time.Second), 2); err != nil {
				t.Fatal(err)
			}
		}
		for _, label := range []string{"m", "n"} {
			id, attempt, got, err := s.QueueClaim(ctx, queue.Offer{Worker: "w", Labels: []string{label}}, time.Now(), time.Now().Add(time.Minute))
			if err != nil || !got {
				t.Fatal(got, err)
			}
			if label == "n" {
				if _, err := s.QueueFinish(ctx, id, attempt, ci.Success, ""); err != nil {
					t.Fatal(err)
				}
			}
		}
		got := map[string]store.QueueDepth{}
		for _, d := range must[[]store.QueueDepth](t)(s.QueueDepths(ctx)) {
			got[strings.Join(d.Labels, ",")+" "+d.State] = d
		}
		if l := got["l queued"]; len(got) != 2 || l.Jobs != 2 || l.Oldest < 59*time.Second || l.Oldest > 2*time.Minute || got["m claimed"].Jobs != 1 {
			t.Errorf("%+v", got)
		}
	})
}
