package store_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/store"
)

var errDisk = errors.New("the disk is full")

// TestEveryStatementFails: whichever statement of a call fails, the call says so,
// and what it was to do can be done after. Each call is repeated with its first
// statement failing, its second, and so on, until none does.
func TestEveryStatementFails(t *testing.T) {
	ctx := t.Context()
	path, logs := filepath.Join(t.TempDir(), "hearth.db"), t.TempDir()
	whole, err := store.Open(ctx, path)
	ok(t, err)
	ok(t, whole.Close())
	var mu sync.Mutex
	left, fired := -1, false
	s := store.Failing(t, path, logs, func() error {
		mu.Lock()
		defer mu.Unlock()
		if left--; left == 0 {
			fired = true
			return errDisk
		}
		return nil
	})
	defer s.Close()
	now := time.UnixMilli(1_800_000_000_000)
	var event store.StoredEvent
	// What was taken although the answer was lost comes again when its hold is over.
	later := time.Now()
	take := func() (err error) {
		later = later.Add(time.Hour)
		event, _, _, err = s.TakeEvent(ctx, "s", time.Minute, later, time.Minute)
		return err
	}
	var run ci.Run
	var jobs []ci.Job
	ignore := func(_ any, err error) error { return err }
	knowledge := store.Knowledge{Nodes: []store.Node{{Repository: "o/r", ID: "n"}}, Edges: []store.Edge{{Repository: "o/r", Src: "n", Kind: "k", Dst: "m"}},
		Models: []store.Model{{Key: "m", Body: []byte("b")}}}
	prediction := func(step int) store.Prediction {
		return store.Prediction{Repository: "o/r", Run: run.ID, JobKey: "a", Step: step, Identity: "i", Made: now,
			Prediction: ci.Prediction{PFail: 0.5, Reasons: []string{"x"}}}
	}
	record := func(recs ...ci.Record) error {
		r, err := s.Recorder(ctx, run.ID)
		if err != nil {
			return err
		}
		for _, rec := range recs {
			rec.Run, rec.Time = run.ID, now
			r.Emit(rec)
		}
		err = r.Err()
		return errors.Join(err, r.Close())
	}
	for _, c := range []struct {
		name string
		call func() error
	}{
		{"add an event", func() error {
			_, _, err := s.AddEvent(ctx, ci.Event{Name: "push", Delivery: "d", Repository: "o/r", Payload: []byte("{}")}, "", "")
			return err
		}},
		{"add it again", func() error {
			_, fresh, err := s.AddEvent(ctx, ci.Event{Name: "push", Delivery: "d"}, "", "")
			if err == nil && fresh {
				return errors.New("it is fresh")
			}
			return err
		}},
		{"take it", take},
		{"release it", func() error { return s.ReleaseEvent(ctx, event.ID, event.Tries, time.Now(), "later") }},
		{"take it again", take},
		{"finish it", func() error { return s.FinishEvent(ctx, event.ID, event.Tries, store.EventFailed, "") }},
		{"read it", func() error { return ignore(s.Event(ctx, event.ID)) }},
		{"list events", func() error { return ignore(s.Events(ctx, 5)) }},
		{"events that were handled", func() error { return ignore(s.HandledEvents(ctx)) }},
		{"empty events", func() error { return s.EmptyEvents(ctx, []string{event.ID}) }},
		{"number a run", func() error { return ignore(s.NumberRun(ctx, "o/r", "f")) }},
		{"create a run", func() (err error) {
			run, jobs, err = s.CreateRun(ctx, ci.Run{Repository: "o/r", File: "f"}, []ci.Job{{Key: "a", Job: "a"}, {Key: "b", Job: "b"}}, []byte("{}"))
			return err
		}},
		{"read the run", func() error { return ignore(s.Run(ctx, run.ID)) }},
		{"its plan", func() error { return ignore(s.Plan(ctx, run.ID)) }},
		{"set its plan", func() error { return s.SetPlan(ctx, run.ID, []byte("{}")) }},
		{"its jobs", func() error { return ignore(s.Jobs(ctx, run.ID)) }},
		{"a job", func() error { return ignore(s.Job(ctx, jobs[0].ID)) }},
		{"runs", func() error { return ignore(s.Runs(ctx, store.RunFilter{})) }},
		{"runs under way", func() error { return ignore(s.Unfinished(ctx)) }},
		{"put a job in", func() error {
			return ignore(s.QueueAdd(ctx, queue.Item{JobID: jobs[0].ID, Labels: []string{"l"}, After: now}, now, 2))
		}},
		{"claim it", func() error {
			_, _, _, err := s.QueueClaim(ctx, queue.Offer{Worker: "w", Labels: []string{"l"}}, now, now.Add(time.Minute))
			return err
		}},
		{"renew it", func() error { _, _, err := s.QueueRenew(ctx, jobs[0].ID, 1, now.Add(time.Minute)); return err }},
		{"its state", func() error { _, _, _, _, err := s.QueueState(ctx, jobs[0].ID); return err }},
		{"release the job", func() error { return ignore(s.QueueRelease(ctx, jobs[0].ID, 1, now, "")) }},
		{"claim it again", func() error {
			_, _, _, err := s.QueueClaim(ctx, queue.Offer{Worker: "w", Labels: []string{"l"}}, now, now.Add(time.Minute))
			return err
		}},
		{"expire it", func() error { _, _, err := s.QueueExpire(ctx, "", now.Add(time.Hour)); return err }},
		{"cancel it", func() error { return ignore(s.QueueCancel(ctx, jobs[0].ID, "")) }},
		{"finish another", func() error { return ignore(s.QueueFinish(ctx, jobs[1].ID, 1, ci.Success, "")) }},
		{"record a run that starts", func() error { return record(ci.Record{Type: ci.RunStarted}) }},
		{"a job that starts", func() error { return record(ci.Record{Type: ci.JobStarted, JobKey: "a"}) }},
		{"a job that nobody knew", func() error { return record(ci.Record{Type: ci.JobQueued, JobKey: "late", Name: "late"}) }},
		{"a step that starts", func() error {
			return record(ci.Record{Type: ci.StepStarted, JobKey: "a", Step: 1, Name: "s", Command: "c"})
		}},
		{"a line", func() error {
			return record(ci.Record{Type: ci.LogLine, JobKey: "a", Step: 1, Stream: "stdout", Text: "line"})
		}},
		{"a step that ends", func() error {
			return record(ci.Record{Type: ci.StepFinished, JobKey: "a", Step: 1, Conclusion: ci.Failure, Outputs: map[string]string{"o": "v"}})
		}},
		{"its steps", func() error { return ignore(s.Steps(ctx, jobs[0].ID)) }},
		{"the tail of its log", func() error { return ignore(s.LogTail(ctx, run.ID, "a", 5)) }},
		{"its log from the start", func() error { return ignore(s.LogFrom(ctx, run.ID, "a", 0, 5)) }},
		{"how long it is", func() error { _, _, err := s.LogSize(ctx, run.ID, jobs[0].ID); return err }},
		{"its log", func() error {
			for _, err := range s.Log(ctx, store.LogQuery{Run: run.ID, Job: "a"}) {
				if err != nil {
					return err
				}
			}
			return nil
		}},
		{"predict", func() error { return s.AddPredictions(ctx, []store.Prediction{prediction(0), prediction(1)}) }},
		{"predictions", func() error { return ignore(s.Predictions(ctx, run.ID)) }},
		{"a failure", func() error {
			_, _, err := s.AddHit(ctx, store.Signature{ID: "s", Text: "t"}, store.Hit{Run: run.ID, JobKey: "a", Step: 1, Repository: "o/r", Identity: "i", At: now})
			return err
		}},
		{"a decision", func() error {
			return s.AddDecision(ctx, store.Decision{Repository: "o/r", Run: run.ID, JobKey: "a", Step: 1, At: now, Policy: "act"})
		}},
		{"decisions", func() error { return ignore(s.Decisions(ctx, "", 5)) }},
		{"signature", func() error { return ignore(s.Signature(ctx, "o/r", "s")) }},
		{"signatures", func() error { return ignore(s.Signatures(ctx, "o/r", 5)) }},
		{"hits", func() error { return ignore(s.Hits(ctx, "o/r", "s", 5)) }},
		{"hits of the run", func() error { return ignore(s.RunHits(ctx, run.ID)) }},
		{"a lesson", func() error {
			return s.PutLesson(ctx, store.Lesson{Repository: "o/r", Identity: "i", Signature: "s", Text: "t", Created: now, Expires: now.Add(time.Hour)})
		}},
		{"lessons", func() error { return ignore(s.Lessons(ctx, "o/r", now)) }},
		{"a lesson is shown", func() error { return s.LessonShown(ctx, "o/r", "i", "s") }},
		{"learn", func() error {
			return s.Learn(ctx, "f", func(l *store.Learning) error {
				if _, err := l.Records(10); err != nil {
					return err
				}
				if _, err := l.Run(run.ID); err != nil {
					return err
				}
				if _, _, err := l.StepCommand(run.ID, "a", 1); err != nil {
					return err
				}
				if _, err := l.ClosePrediction(run.ID, "a", 0, store.Ended{At: now, As: ci.Failure, Failed: true, Counts: true, Took: time.Second}); err != nil {
					return err
				}
				if _, err := l.RecentHits("o/r", "i", 5); err != nil {
					return err
				}
				if err := l.CloseDecision(run.ID, "a", 1, 1, true, time.Second); err != nil {
					return err
				}
				if _, err := l.NextPassed(run.ID, "a", 1, 1); err != nil {
					return err
				}
				if err := l.CountRetry("o/r", "s", true); err != nil {
					return err
				}
				if err := l.Fixed("o/r", "s", "c", "f"); err != nil {
					return err
				}
				if _, err := l.Changed(0); err != nil {
					return err
				}
				return l.Save(knowledge, 1)
			})
		}},
		{"what was learned", func() error {
			return s.Learn(ctx, "f", func(l *store.Learning) error {
				k, err := l.Changed(0)
				if err == nil && (len(k.Nodes) != 1 || len(k.Edges) != 1 || len(k.Models) != 1) {
					return errors.New("not all of it")
				}
				return err
			})
		}},
		{"forget", func() error {
			return s.Learn(ctx, "f", func(l *store.Learning) error { return l.Forget(knowledge.Nodes, knowledge.Edges, []string{"m"}) })
		}},
		{"progress", func() error { _, _, _, err := s.Progress(ctx, "f"); return err }},
		{"predictions that came out", func() error { return ignore(s.ClosedPredictions(ctx, "", 5)) }},
		{"fold them", func() error { return ignore(s.FoldPredictions(ctx, 0)) }},
		{"their totals", func() error { return ignore(s.PredictionTotals(ctx, "")) }},
		{"set a fact", func() error { return s.SetFact(ctx, "s", "k", "v") }},
		{"a fact", func() error { return ignore(s.Fact(ctx, "s", "k")) }},
		{"facts", func() error { return ignore(s.Facts(ctx, "s")) }},
		{"drop it", func() error { return s.DropFact(ctx, "s", "k") }},
		{"records", func() error { return ignore(s.Records(ctx, 0, 5)) }},
		{"records of the run", func() error { return ignore(s.RunRecords(ctx, run.ID, 0, 5)) }},
		{"head", func() error { return ignore(s.Head(ctx)) }},
		{"a job that ends", func() error { return record(ci.Record{Type: ci.JobFinished, JobKey: "a", Conclusion: ci.Failure}) }},
		{"the run ends", func() error { return record(ci.Record{Type: ci.RunFinished, Conclusion: ci.Failure}) }},
		{"completed runs", func() error { return ignore(s.CompletedRuns(ctx)) }},
		{"space", func() error { return ignore(s.Space(ctx)) }},
		{"remove the run", func() error { return s.RemoveRun(ctx, run.ID) }},
		{"what is being removed", func() error { return ignore(s.Removing(ctx)) }},
		{"finish removing it", func() error { return s.FinishRemovals(ctx) }},
		{"lessons that are over", func() error { return s.DropExpiredLessons(ctx, now.Add(2*time.Hour)) }},
		{"replay the event", func() error { return s.ReplayEvent(ctx, event.ID) }},
		{"remove it", func() error { return s.RemoveEvents(ctx, []string{event.ID}) }},
	} {
		for n := 1; ; n++ {
			mu.Lock()
			left, fired = n, false
			mu.Unlock()
			err := c.call()
			mu.Lock()
			left = -1
			failed := fired
			mu.Unlock()
			if !failed {
				if err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				if n == 1 {
					t.Errorf("%s: nothing failed", c.name)
				}
				break
			}
			if !errors.Is(err, errDisk) {
				t.Errorf("%s: its step %d failed, and it says %v", c.name, n, err)
			}
			if n > 200 {
				t.Fatalf("%s: does not end", c.name)
			}
		}
	}
	if _, err := s.Run(ctx, run.ID); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the run is there: %v", err)
	}
	if left, err := s.Removing(ctx); err != nil || left != 0 {
		t.Errorf("%v: %d", err, left)
	}
	if err := s.Ping(ctx); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Ping(ctx); err == nil {
		t.Error("a ping that was not sent was answered")
	}
}
