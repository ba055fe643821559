package store_test

import (
	"context"
	"errors"
	"fmt"
	"math"
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

// TestConformance is what every database has to pass. One server serves all of
// it; each part uses rows of its own.
func TestConformance(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		a, b := open(), open()
		for _, c := range []struct {
			name string
			test func(*testing.T, *store.Store, *store.Store)
		}{
			{"events", testEvents}, {"bodies", testBodies}, {"runs", testRuns}, {"recorder", testRecorder}, {"terminal once", testTerminalOnce},
			{"attempt fence", testAttemptFence}, {"step retry", testStepRetry}, {"taken up again", testTakenUpAgain}, {"matrix cell late", testLateCell},
			{"hostile text", testHostileText}, {"no conclusion", testNoConclusion},
			{"log windows", testLogWindows},
			{"run lists", testRunLists}, {"trends", testTrends},
			{"cursor order", testCursorOrder}, {"learn once", testLearnOnce}, {"queue", testQueueTable},
			{"predictions", testPredictions}, {"folded predictions", testFoldedPredictions}, {"signatures", testSignatures}, {"lessons", testLessons},
			{"decisions", testDecisions},
			{"facts", testFacts}, {"tests", testTests}, {"watch", testWatch},
		} {
			t.Run(c.name, func(t *testing.T) { c.test(t, a, b) })
		}
	})
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newRun(t *testing.T, s *store.Store, repo string, keys ...string) (ci.Run, []ci.Job) {
	t.Helper()
	var jobs []ci.Job
	for _, k := range keys {
		jobs = append(jobs, ci.Job{Key: k, Job: strings.Fields(k)[0], Name: k, Labels: []string{"ubuntu-latest"}})
	}
	run, jobs, err := s.CreateRun(t.Context(), ci.Run{Repository: repo, File: ".github/workflows/ci.yml", Workflow: "CI", Event: "push", SHA: "abc",
		Ref: "refs/heads/main"}, jobs, []byte(`{"version":1}`))
	ok(t, err)
	return run, jobs
}

func testEvents(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	payload := []byte("{\"x\":\"\\u0000\"}\xff")
	id, fresh, err := a.AddEvent(ctx, ci.Event{Name: "push", Delivery: "d-1", Repository: "o/r", Payload: payload}, "", "")
	ok(t, err)
	again, fresh2, err := b.AddEvent(ctx, ci.Event{Name: "push", Delivery: "d-1", Repository: "o/r", Payload: []byte("other")}, "", "")
	ok(t, err)
	if !fresh || fresh2 || again != id {
		t.Fatalf("a replayed delivery: fresh %v then %v, id %s then %s", fresh, fresh2, id, again)
	}
	for range 2 { // no delivery id: each is new
		if _, fresh, err := a.AddEvent(ctx, ci.Event{Name: "local"}, store.EventNoted, ""); err != nil || !fresh {
			t.Fatalf("event without delivery: %v %v", fresh, err)
		}
	}
	now := time.Now()
	e, lease, took, err := a.TakeEvent(ctx, "a", time.Minute, now, time.Minute)
	ok(t, err)
	if !took || e.ID != id || string(e.Payload) != string(payload) || e.Tries != 1 {
		t.Fatalf("took %v %+v", took, e)
	}
	if _, _, took, err := b.TakeEvent(ctx, "b", time.Minute, now, time.Minute); err != nil || took {
		t.Fatalf("a held event was handed out again (%v, %v)", took, err)
	}
	if _, _, took, err := b.TakeEvent(ctx, "b", time.Minute, now.Add(2*time.Minute), time.Minute); err != nil || took {
		t.Fatalf("an event of another server's repository was handed out (%v, %v)", took, err)
	}
	ok(t, a.ReleaseLease(ctx, lease, "a"))
	e2, _, took, err := b.TakeEvent(ctx, "b", time.Minute, now.Add(2*time.Minute), time.Minute) // its holder is dead
	ok(t, err)
	if !took || e2.Tries != 2 {
		t.Fatalf("took %v %+v", took, e2)
	}
	if err := a.FinishEvent(ctx, id, e.Tries, store.EventDone, ""); !errors.Is(err, store.ErrFenced) {
		t.Fatalf("the dead holder finished it: %v", err)
	}
	ok(t, b.FinishEvent(ctx, id, e2.Tries, store.EventDone, "1 run"))
	got := must[store.StoredEvent](t)(a.Event(ctx, id))
	if got.State != store.EventDone || got.Detail != "1 run" {
		t.Fatalf("%+v", got)
	}
	if all := must[[]store.StoredEvent](t)(a.Events(ctx, 10)); len(all) != 3 {
		t.Fatalf("%d events", len(all))
	}
}

// A body is known by what it is, not by the delivery id that it comes with, and
// what was refused keeps no payload but may come once more.
func testBodies(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	add := func(s *store.Store, delivery, body string, state store.EventState) (string, bool, error) {
		return s.AddEvent(ctx, ci.Event{Name: "push", Delivery: delivery, Repository: "o/bodies", Payload: []byte(body)}, state, "why")
	}
	event := func(delivery, body string, state store.EventState) store.StoredEvent {
		t.Helper()
		id, fresh, err := add(a, delivery, body, state)
		ok(t, err)
		if !fresh {
			t.Fatalf("%s is not new", delivery)
		}
		return must[store.StoredEvent](t)(b.Event(ctx, id))
	}
	no := event("b-1", "one", store.EventRefused)
	if no.Payload != nil || no.Detail != "why" || no.State != store.EventRefused {
		t.Fatalf("refused: %+v", no)
	}
	if err := a.ReplayEvent(ctx, no.ID); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("a refused event is handled again: %v", err)
	}
	if _, fresh, err := add(b, "b-1", "one", store.EventRefused); err != nil || fresh {
		t.Fatalf("refused twice: %v, %v", fresh, err)
	}
	// Redelivered, and now it may: a body that was only refused is not seen before.
	if e := event("b-1", "one", store.EventPending); e.ID != no.ID || string(e.Payload) != "one" || e.Again {
		t.Fatalf("taken after all: %+v", e)
	}
	if e := event("b-2", "two", store.EventPending); e.Again {
		t.Fatalf("%+v", e)
	}
	if e := event("b-3", "one", store.EventPending); !e.Again {
		t.Fatalf("the body of b-1 under another id: %+v", e)
	}
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		_, _, err = add(a, fmt.Sprintf("b-many-%d", n), "one", store.EventPending)
	}
	if !errors.Is(err, store.ErrTooMany) || n > 40 {
		t.Fatalf("%d of one body wait: %v", n, err)
	}
	for range n + 2 {
		e, _, took, err := a.TakeEvent(ctx, "a", time.Minute, time.Now().Add(time.Hour), time.Minute)
		if err != nil || !took {
			t.Fatal(took, err)
		}
		ok(t, a.FinishEvent(ctx, e.ID, e.Tries, store.EventRefused, "a replay"))
		if e = must[store.StoredEvent](t)(b.Event(ctx, e.ID)); e.Payload != nil {
			t.Fatalf("%+v", e)
		}
	}
}

func testRuns(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	r1, jobs := newRun(t, a, "o/runs", "z", "a", "m (1, 2)")
	r2, _ := newRun(t, b, "o/runs", "z")
	if r1.Number != 1 || r2.Number != 2 {
		t.Fatalf("numbers %d, %d", r1.Number, r2.Number)
	}
	back := must[[]store.StoredJob](t)(b.Jobs(ctx, r1.ID))
	if len(back) != 3 || back[0].Key != "z" || back[1].Key != "a" || back[2].ID != jobs[2].ID || back[2].Labels[0] != "ubuntu-latest" {
		t.Fatalf("jobs %+v", back)
	}
	got := must[ci.Run](t)(a.Run(ctx, r1.ID))
	if got.SHA != "abc" || got.Status != ci.Queued || got.Created.UnixMilli() != r1.Created.UnixMilli() {
		t.Fatalf("%+v", got)
	}
	if got := must[ci.Run](t)(a.Run(ctx, r2.ID[:20])); got.ID != r2.ID {
		t.Fatalf("by prefix: %+v", got)
	}
	if _, err := a.Run(ctx, "nothere"); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	if list := must[[]ci.Run](t)(a.Runs(ctx, store.RunFilter{Repository: "o/runs", Workflow: "CI", Status: ci.Queued, Limit: 1})); len(list) != 1 ||
		list[0].ID != r2.ID {
		t.Fatalf("%+v", list)
	}
	if plan := must[[]byte](t)(a.Plan(ctx, r1.ID)); string(plan) != `{"version":1}` {
		t.Fatalf("plan %s", plan)
	}
}

func testRecorder(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	run, jobs := newRun(t, a, "o/rec", "build", "test (1)")
	var tapped []ci.Record
	rec := must[*store.Recorder](t)(a.Recorder(ctx, run.ID, ci.SinkFunc(func(r ci.Record) { tapped = append(tapped, r) })))
	rec.Emit(ci.Record{Type: ci.RunStarted})
	rec.Emit(ci.Record{Type: ci.JobStarted, Job: "build"})
	rec.Emit(ci.Record{Type: ci.StepStarted, Job: "build", Step: 1, Name: "Compile", Command: "make"})
	rec.Emit(ci.Record{Type: ci.LogLine, Job: "build", Step: 1, Stream: "stdout", Text: "one"})
	rec.Emit(ci.Record{Type: ci.LogLine, Job: "test", JobKey: "test (1)", Step: 1, Stream: "stdout", Text: "other job"})
	rec.Emit(ci.Record{Type: ci.LogLine, Job: "build", Step: 2, Stream: "stdout", Text: "two"})
	rec.Emit(ci.Record{Type: ci.LogLine, Job: "build", Step: 1, Stream: "stderr", Text: "three"})
	rec.Emit(ci.Record{Type: ci.StepFinished, Job: "build", Step: 1, Outcome: ci.Failure, Conclusion: ci.Success, ExitCode: new(2), DurationMS: new(int64(5))})
	// What was printed before a step's end can be read the moment its end can.
	var texts []string
	for l, err := range b.Log(ctx, store.LogQuery{Run: run.ID, Job: "build", Step: 1}) {
		ok(t, err)
		texts = append(texts, l.Text)
	}
	if strings.Join(texts, " ") != "one three" {
		t.Fatalf("log of step 1: %q", texts)
	}
	rec.Emit(ci.Record{Type: ci.StepFinished, Job: "build", Step: 3, StepID: "x", Name: "Never", Conclusion: ci.Skipped})
	rec.Emit(ci.Record{Type: ci.JobFinished, Job: "build", Conclusion: ci.Success, Outputs: map[string]string{"v": "1"}})
	rec.Emit(ci.Record{Type: ci.JobFinished, JobKey: "test (1)", Conclusion: ci.Failure, Reason: "lost", Infrastructure: true})
	rec.Emit(ci.Record{Type: ci.RunFinished, Conclusion: ci.Failure})
	ok(t, rec.Close())
	for i, r := range tapped {
		if r.Seq != int64(i+1) || r.Run != run.ID || r.V != ci.RecordVersion {
			t.Fatalf("record %d has number %d", i+1, r.Seq)
		}
	}
	steps := must[[]ci.Step](t)(b.Steps(ctx, jobs[0].ID))
	if len(steps) != 2 || steps[0].Outcome != ci.Failure || steps[0].Conclusion != ci.Success || steps[0].ExitCode != 2 || steps[0].Command != "make" ||
		steps[1].Conclusion != ci.Skipped || steps[1].Number != 3 {
		t.Fatalf("steps %+v", steps)
	}
	back := must[[]store.StoredJob](t)(b.Jobs(ctx, run.ID))
	if back[0].Outputs["v"] != "1" || back[0].Conclusion != ci.Success || !back[1].Infrastructure || back[1].Reason != "lost" || back[0].Started.IsZero() {
		t.Fatalf("jobs %+v", back)
	}
	if got := must[ci.Run](t)(b.Run(ctx, run.ID)); got.Conclusion != ci.Failure || got.Status != ci.Completed || got.Finished.IsZero() {
		t.Fatalf("run %+v", got)
	}
	recs := must[[]store.StoredRecord](t)(b.RunRecords(ctx, run.ID, 0, 100))
	if len(recs) != len(tapped)-4 {
		t.Fatalf("%d records in the event log, want all but the 4 log lines of %d", len(recs), len(tapped))
	}
	if _, lines, err := b.LogSize(ctx, run.ID, jobs[0].ID); err != nil || lines != 3 {
		t.Fatalf("%d lines, %v", lines, err)
	}
	for _, err := range b.Log(ctx, store.LogQuery{Run: run.ID, Job: "nope"}) {
		if !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "build, test (1)") {
			t.Fatalf("log of an unknown job: %v", err)
		}
	}
}

func testTerminalOnce(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	run, _ := newRun(t, a, "o/once", "j")
	r1 := must[*store.Recorder](t)(a.Recorder(ctx, run.ID))
	r1.Emit(ci.Record{Type: ci.JobFinished, Job: "j", Conclusion: ci.Failure})
	r1.Emit(ci.Record{Type: ci.JobFinished, Job: "j", Conclusion: ci.Success})
	r1.Emit(ci.Record{Type: ci.JobStarted, Job: "j"})
	r1.Emit(ci.Record{Type: ci.RunFinished, Conclusion: ci.Failure})
	r1.Emit(ci.Record{Type: ci.RunFinished, Conclusion: ci.Success})
	r1.Emit(ci.Record{Type: ci.RunStarted})
	if n := r1.Refused(); n != 4 {
		t.Errorf("%d refused, want 4", n)
	}
	ok(t, r1.Close())
	if got := must[ci.Run](t)(b.Run(ctx, run.ID)); got.Conclusion != ci.Failure || got.Status != ci.Completed {
		t.Errorf("run %+v", got)
	}
	if j := must[[]store.StoredJob](t)(b.Jobs(ctx, run.ID))[0]; j.Conclusion != ci.Failure {
		t.Errorf("job %+v", j)
	}
	recs := must[[]store.StoredRecord](t)(b.RunRecords(ctx, run.ID, 0, 100))
	if len(recs) != 2 || recs[1].Seq != 2 {
		t.Errorf("refused records are in the log: %+v", recs)
	}
}

func testAttemptFence(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	run, _ := newRun(t, a, "o/fence", "j")
	rec := must[*store.Recorder](t)(a.Recorder(ctx, run.ID))
	first := rec.ForAttempt("j", 1)
	first.Emit(ci.Record{Type: ci.JobStarted, Job: "j"})
	first.Emit(ci.Record{Type: ci.StepStarted, Job: "j", Step: 1, Name: "s"})
	second := rec.ForAttempt("j", 2)
	second.Emit(ci.Record{Type: ci.JobStarted, Job: "j"})
	first.Emit(ci.Record{Type: ci.LogLine, Job: "j", Text: "from the grave"})
	first.Emit(ci.Record{Type: ci.JobFinished, Job: "j", Conclusion: ci.Success})
	second.Emit(ci.Record{Type: ci.StepStarted, Job: "j", Step: 1, Name: "s"})
	second.Emit(ci.Record{Type: ci.StepFinished, Job: "j", Step: 1, Conclusion: ci.Failure})
	second.Emit(ci.Record{Type: ci.JobFinished, Job: "j", Conclusion: ci.Failure})
	if rec.Refused() != 2 {
		t.Errorf("%d refused, want 2", rec.Refused())
	}
	ok(t, rec.Close())
	// Another process with an old attempt is refused by the row itself.
	run2, jobs2 := newRun(t, a, "o/fence", "j")
	ra := must[*store.Recorder](t)(a.Recorder(ctx, run2.ID))
	rb := must[*store.Recorder](t)(b.Recorder(ctx, run2.ID))
	rb.ForAttempt("j", 2).Emit(ci.Record{Type: ci.JobStarted, Job: "j"})
	ra.ForAttempt("j", 1).Emit(ci.Record{Type: ci.JobFinished, Job: "j", Conclusion: ci.Success})
	if ra.Refused() != 1 {
		t.Error("an old attempt of another process was not refused")
	}
	ok(t, ra.Close())
	ok(t, rb.Close())
	if j := must[store.StoredJob](t)(b.Job(ctx, jobs2[0].ID)); j.Status != ci.InProgress || j.Attempt != 2 {
		t.Errorf("job %+v", j)
	}
}

func testStepRetry(t *testing.T, a, _ *store.Store) {
	ctx := t.Context()
	run, jobs := newRun(t, a, "o/retry", "j")
	rec := must[*store.Recorder](t)(a.Recorder(ctx, run.ID))
	rec.Emit(ci.Record{Type: ci.StepStarted, Job: "j", Step: 1, Name: "s"})
	rec.Emit(ci.Record{Type: ci.StepFinished, Job: "j", Step: 1, Conclusion: ci.Failure, Attempt: 1})
	rec.Emit(ci.Record{Type: ci.StepFinished, Job: "j", Step: 1, Conclusion: ci.Success, Attempt: 1})
	rec.Emit(ci.Record{Type: ci.StepStarted, Job: "j", Step: 1, Name: "s", Attempt: 2})
	rec.Emit(ci.Record{Type: ci.StepFinished, Job: "j", Step: 1, Conclusion: ci.Success, Attempt: 2})
	if rec.Refused() != 1 {
		t.Errorf("%d refused, want 1", rec.Refused())
	}
	ok(t, rec.Close())
	if st := must[[]ci.Step](t)(a.Steps(ctx, jobs[0].ID)); len(st) != 1 || st[0].Conclusion != ci.Success {
		t.Errorf("steps %+v", st)
	}
}

func testTakenUpAgain(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	run, jobs := newRun(t, a, "o/again", "j")
	r1 := must[*store.Recorder](t)(a.Recorder(ctx, run.ID))
	r1.Emit(ci.Record{Type: ci.JobStarted, Job: "j"})
	r1.Emit(ci.Record{Type: ci.LogLine, Job: "j", Step: 1, Text: "a"})
	ok(t, r1.Close())
	// The process died in the middle of a line.
	name := filepath.Join(a.LogDir(), run.ID, jobs[0].ID+".ndjson")
	f := must[*os.File](t)(os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0))
	must[int](t)(f.WriteString(`{"v":1,"seq":3,"ty`))
	ok(t, f.Close())
	r2 := must[*store.Recorder](t)(b.Recorder(ctx, run.ID))
	r2.Emit(ci.Record{Type: ci.LogLine, Job: "j", Step: 1, Text: "b"})
	r2.Emit(ci.Record{Type: ci.JobFinished, Job: "j", Conclusion: ci.Failure, Reason: "lost"})
	ok(t, r2.Close())
	var got []string
	for l, err := range b.Log(ctx, store.LogQuery{Run: run.ID}) {
		ok(t, err)
		got = append(got, fmt.Sprint(l.Seq, l.Text))
	}
	if fmt.Sprint(got) != "[2a 3b]" {
		t.Errorf("log %v", got)
	}
	if _, lines, _ := b.LogSize(ctx, run.ID, jobs[0].ID); lines != 2 {
		t.Errorf("%d lines", lines)
	}
}

func testLateCell(t *testing.T, a, _ *store.Store) {
	ctx := t.Context()
	run, _ := newRun(t, a, "o/late", "j")
	rec := must[*store.Recorder](t)(a.Recorder(ctx, run.ID))
	rec.Emit(ci.Record{Type: ci.JobQueued, Job: "m", JobKey: "m (1)", Name: "m (1)"})
	rec.Emit(ci.Record{Type: ci.JobFinished, Job: "m", JobKey: "m (1)", Conclusion: ci.Success})
	ok(t, rec.Close())
	if jobs := must[[]store.StoredJob](t)(a.Jobs(ctx, run.ID)); len(jobs) != 2 || jobs[1].Key != "m (1)" || jobs[1].Conclusion != ci.Success {
		t.Errorf("jobs %+v", jobs)
	}
}

func testHostileText(t *testing.T, a, _ *store.Store) {
	ctx := t.Context()
	run, jobs := newRun(t, a, "o/hostile", "j")
	rec := must[*store.Recorder](t)(a.Recorder(ctx, run.ID))
	bad := "\x00\xff'; DROP TABLE runs; --\n\u2028"
	rec.Emit(ci.Record{Type: ci.StepStarted, Job: "j", Step: 1, Name: bad, Command: bad})
	rec.Emit(ci.Record{Type: ci.LogLine, Job: "j", Step: 1, Text: bad})
	rec.Emit(ci.Record{Type: ci.AnnotationRec, Job: "j", Step: 1, Message: bad, File: "../../etc/passwd"})
	rec.Emit(ci.Record{Type: ci.JobFinished, Job: "j", Conclusion: ci.Failure, Reason: bad, Outputs: map[string]string{bad: bad}})
	ok(t, rec.Close())
	if st := must[[]ci.Step](t)(a.Steps(ctx, jobs[0].ID)); len(st) != 1 || !strings.Contains(st[0].Command, "DROP TABLE") {
		t.Errorf("%+v", st)
	}
	n := 0
	for l, err := range a.Log(ctx, store.LogQuery{Run: run.ID, Job: "j"}) {
		ok(t, err)
		if !strings.Contains(l.Text, "DROP TABLE") {
			t.Errorf("%q", l.Text)
		}
		n++
	}
	if n != 1 {
		t.Errorf("%d lines", n)
	}
}

func testNoConclusion(t *testing.T, a, _ *store.Store) {
	ctx := t.Context()
	run, _ := newRun(t, a, "o/none", "j")
	rec := must[*store.Recorder](t)(a.Recorder(ctx, run.ID))
	rec.Emit(ci.Record{Type: ci.JobFinished, Job: "j"})
	if err := rec.Close(); err == nil {
		t.Error("a job finished without a conclusion")
	}
	if j := must[[]store.StoredJob](t)(a.Jobs(ctx, run.ID))[0]; j.Status == ci.Completed {
		t.Errorf("%+v", j)
	}
}

// testCursorOrder: whoever follows by cursor while two processes write sees
// every record, once, in order.
func testCursorOrder(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	start := must[int64](t)(a.Head(ctx))
	const n = 60
	var wg sync.WaitGroup
	for _, s := range []*store.Store{a, b} {
		for range 2 {
			run, _ := newRun(t, s, "o/cursor", "j")
			wg.Go(func() {
				rec, err := s.Recorder(ctx, run.ID)
				if err != nil {
					t.Error(err)
					return
				}
				for range n {
					rec.Emit(ci.Record{Type: ci.AnnotationRec, Job: "j"})
				}
				if err := rec.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	at, seen := start, 0
	for last := false; ; {
		recs := must[[]store.StoredRecord](t)(b.Records(ctx, at, 17))
		for _, r := range recs {
			if r.Cursor != at+1 {
				t.Fatalf("after %d came %d", at, r.Cursor)
			}
			at = r.Cursor
			seen++
		}
		if len(recs) == 0 {
			if last {
				break
			}
			select {
			case <-done:
				last = true
			default:
			}
		}
	}
	if seen != 4*n {
		t.Errorf("saw %d of %d records", seen, 4*n)
	}
}

func testLearnOnce(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	run, _ := newRun(t, a, "o/learn", "j")
	rec := must[*store.Recorder](t)(a.Recorder(ctx, run.ID))
	for range 100 {
		rec.Emit(ci.Record{Type: ci.AnnotationRec, Job: "j"})
	}
	ok(t, rec.Close())
	seen := make([]map[int64]bool, 2)
	var wg sync.WaitGroup
	for i, s := range []*store.Store{a, b} {
		seen[i] = map[int64]bool{}
		wg.Go(func() {
			for {
				n := 0
				err := s.Learn(ctx, "test", func(l *store.Learning) error {
					recs, err := l.Records(7)
					if err != nil || len(recs) == 0 {
						return err
					}
					n = len(recs)
					for _, r := range recs {
						seen[i][r.Cursor] = true
					}
					last := recs[n-1].Cursor
					return l.Save(store.Knowledge{Models: []store.Model{{Key: fmt.Sprint("m", last), Body: []byte{0, 255}, Last: 1}},
						Nodes: []store.Node{{ID: "n", Kind: "step", Text: "t", OK: float64(last)}}, Edges: []store.Edge{{Src: "n", Kind: "k", Dst: "m", OK: .5}}}, last)
				})
				if err != nil {
					t.Error(err)
					return
				}
				if n == 0 {
					return
				}
			}
		})
	}
	wg.Wait()
	head := must[int64](t)(a.Head(ctx))
	if end, cursor, version, err := b.Progress(ctx, "test"); err != nil || end != head || cursor != head || version == 0 {
		t.Errorf("followed to %d of %d, version %d, %v", cursor, head, version, err)
	}
	for c := int64(1); c <= head; c++ {
		if seen[0][c] == seen[1][c] {
			t.Fatalf("record %d was learned from by %v and %v", c, seen[0][c], seen[1][c])
		}
	}
	// A transaction that fails leaves nothing.
	boom := errors.New("boom")
	err := a.Learn(ctx, "test", func(l *store.Learning) error {
		ok(t, l.Save(store.Knowledge{Models: []store.Model{{Key: "never"}}}, head+5))
		return boom
	})
	if !errors.Is(err, boom) {
		t.Error(err)
	}
	var version int64
	ok(t, b.Learn(ctx, "test", func(l *store.Learning) error {
		if l.Cursor != head {
			t.Errorf("cursor %d after a rollback", l.Cursor)
		}
		version = l.Version
		k, err := l.Changed(l.Version - 1)
		if err != nil {
			return err
		}
		if len(k.Models) != 1 || len(k.Nodes) != 1 || len(k.Edges) != 1 || k.Models[0].Body[1] != 255 || k.Nodes[0].OK != float64(head) {
			t.Errorf("changed: %+v", k)
		}
		return l.Forget([]store.Node{{ID: "n"}}, k.Edges, []string{k.Models[0].Key})
	}))
	ok(t, a.Learn(ctx, "test", func(l *store.Learning) error {
		k, err := l.Changed(version - 1)
		if len(k.Models)+len(k.Nodes)+len(k.Edges) != 0 {
			t.Errorf("not forgotten: %+v", k)
		}
		return err
	}))
}

func testQueueTable(t *testing.T, a, b *store.Store) {
	ctx, now := t.Context(), time.UnixMilli(1_700_000_000_000)
	run, jobs := newRun(t, a, "o/queue", "j")
	id := jobs[0].ID
	added := must[bool](t)(a.QueueAdd(ctx, queue.Item{JobID: id, Labels: []string{"Linux", "it's"}, After: now}, now, 2))
	again := must[bool](t)(b.QueueAdd(ctx, queue.Item{JobID: id, Labels: []string{"linux"}, After: now}, now, 2))
	if !added || again {
		t.Fatalf("added %v then %v", added, again)
	}
	if _, _, got, err := a.QueueClaim(ctx, queue.Offer{Worker: "w", Labels: []string{"linux"}}, now, now.Add(time.Minute)); err != nil || got {
		t.Fatalf("claimed without the labels: %v %v", got, err)
	}
	jid, attempt, got, err := a.QueueClaim(ctx, queue.Offer{Worker: "w", Labels: []string{"LINUX", "it's", "more"}}, now, now.Add(time.Minute))
	ok(t, err)
	if !got || jid != id || attempt != 1 {
		t.Fatal(jid, attempt, got)
	}
	requeued, lost, err := b.QueueExpire(ctx, "", now.Add(2*time.Minute))
	ok(t, err)
	if len(requeued) != 1 || len(lost) != 0 {
		t.Fatal(requeued, lost)
	}
	_, attempt, got, err = b.QueueClaim(ctx, queue.Offer{Worker: "w2", Labels: []string{"linux", "it's"}}, now.Add(2*time.Minute), now.Add(3*time.Minute))
	ok(t, err)
	if !got || attempt != 2 {
		t.Fatal(attempt, got)
	}
	if held := must[bool](t)(a.QueueFinish(ctx, id, 1, ci.Success, "")); held {
		t.Fatal("a dead claim was finished")
	}
	if j := must[store.StoredJob](t)(a.Job(ctx, id)); j.Attempt != 2 || j.RunID != run.ID {
		t.Fatalf("%+v", j)
	}
	if _, lost, err := a.QueueExpire(ctx, "", now.Add(4*time.Minute)); err != nil || len(lost) != 1 {
		t.Fatal(lost, err)
	}
}

func testPredictions(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	run, _ := newRun(t, a, "o/pred", "j")
	p := store.Prediction{Run: run.ID, JobKey: "j", Step: 1, Identity: "id", Made: time.Now(),
		Prediction: ci.Prediction{PFail: .25, Low: .1, High: .5, Seen: 9, Reasons: []string{"why"}}}
	ok(t, a.AddPredictions(ctx, []store.Prediction{p}))
	p.PFail = .9
	ok(t, b.AddPredictions(ctx, []store.Prediction{p})) // too late: the first one stays
	ok(t, a.Learn(ctx, "p", func(l *store.Learning) error {
		first, err := l.ClosePrediction(run.ID, "j", 1, store.Ended{time.Now(), ci.Failure, true, true, time.Second})
		ok(t, err)
		second, err := l.ClosePrediction(run.ID, "j", 1, store.Ended{time.Now(), ci.Success, false, true, time.Second})
		if !first || second {
			t.Errorf("closed %v then %v", first, second)
		}
		return err
	}))
	got := must[[]store.Prediction](t)(b.Predictions(ctx, run.ID))
	if len(got) != 1 || got[0].PFail != .25 || !got[0].Failed || !got[0].Counts || got[0].DurationMS != 1000 || got[0].Reasons[0] != "why" {
		t.Errorf("%+v", got)
	}
	if closed := must[[]store.Prediction](t)(b.ClosedPredictions(ctx, "", 5)); len(closed) != 1 {
		t.Errorf("%+v", closed)
	}
}

func testFoldedPredictions(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	var ps []store.Prediction
	for i := range 30 {
		p := store.Prediction{Repository: "o/fold", Run: fmt.Sprint("f", i), Made: time.UnixMilli(1)}
		p.PFail = .25
		ps = append(ps, p)
	}
	ps = append(ps, store.Prediction{Repository: "o/other", Run: "f"})
	ok(t, a.AddPredictions(ctx, ps))
	ok(t, a.Learn(ctx, "fold", func(l *store.Learning) error {
		for i := range 25 { // five stay open
			if _, err := l.ClosePrediction(fmt.Sprint("f", i), "", 0, store.Ended{time.UnixMilli(int64(100 + i)), ci.Failure, i < 5, i != 7, time.Second}); err != nil {
				return err
			}
		}
		return nil
	}))
	for _, want := range []int{15, 0} { // of 25 that are closed the newest ten stay
		if n := must[int](t)(b.FoldPredictions(ctx, 10)); n != want {
			t.Fatalf("%d folded, want %d", n, want)
		}
	}
	if left := must[[]store.Prediction](t)(a.ClosedPredictions(ctx, "o/fold", 99)); len(left) != 10 || left[9].Run != "f15" {
		t.Errorf("%d are left: %+v", len(left), left)
	}
	// One of the fifteen did not count.
	sums := must[[]store.PredictionTotals](t)(a.PredictionTotals(ctx, "o/fold"))
	if len(sums) != 1 || sums[0].Unit != "run" || sums[0].N != 14 || sums[0].Failed != 5 || sums[0].First.UnixMilli() != 100 ||
		math.Abs(sums[0].Brier-(5*.75*.75+9*.25*.25)) > 1e-9 || math.Abs(sums[0].LogLoss-(-5*math.Log(.25)-9*math.Log(.75))) > 1e-9 {
		t.Errorf("%+v", sums)
	}
}

func testSignatures(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	sig := store.Signature{ID: "sig", Text: "error: <num>", Class: "compile"}
	for i := range 3 {
		h := store.Hit{Run: fmt.Sprint("r", i), JobKey: "j", Step: 1, Repository: "o/s", Identity: "step", SHA: fmt.Sprint("c", i),
			At: time.UnixMilli(int64(1000 + i))}
		before, fresh, err := a.AddHit(ctx, sig, h)
		ok(t, err)
		if before.Seen != i || !fresh {
			t.Fatalf("seen %d before the %d. failure", before.Seen, i+1)
		}
		if _, fresh, err := b.AddHit(ctx, sig, h); err != nil || fresh {
			t.Fatalf("the same failure counted twice (%v)", err)
		}
	}
	ok(t, a.Learn(ctx, "s", func(l *store.Learning) error {
		hits, err := l.RecentHits("o/s", "step", 2)
		if len(hits) != 2 || hits[0].SHA != "c2" {
			t.Errorf("%+v", hits)
		}
		ok(t, l.Fixed("o/s", "sig", "c9", "mend it"))
		ok(t, l.CountRetry("o/s", "sig", true))
		return err
	}))
	got := must[store.Signature](t)(b.Signature(ctx, "o/s", "sig"))
	if got.Seen != 3 || got.FixedBy != "c9" || got.RetryOK != 1 || got.RetryFail != 0 || got.First.UnixMilli() != 1000 || got.Last.UnixMilli() != 1002 {
		t.Errorf("%+v", got)
	}
	if hits := must[[]store.Hit](t)(b.RunHits(ctx, "r1")); len(hits) != 1 {
		t.Errorf("%+v", hits)
	}
}

func testDecisions(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	store.LimitDecisions(t, 4)
	d := store.Decision{Repository: "o/d", Run: "r0", JobKey: "j", Step: 2, Attempt: 1, Identity: "i", Signature: "s", At: time.UnixMilli(1000), Policy: "act",
		P: .4, GainMS: 600, CostMS: 30, Propensity: .9, Advised: true, Taken: true, Reason: "why\x00"}
	ok(t, a.AddDecision(ctx, d))
	again := d
	again.P = .9
	ok(t, b.AddDecision(ctx, again))
	ok(t, a.Learn(ctx, "d", func(l *store.Learning) error {
		ok(t, l.CloseDecision("r0", "j", 2, 1, true, 3*time.Second))
		ok(t, l.CloseDecision("r0", "j", 2, 1, false, time.Hour)) // it has ended already
		if !must[bool](t)(l.NextPassed("r0", "j", 2, 1)) || must[bool](t)(l.NextPassed("r0", "j", 3, 1)) {
			t.Error("what passed is not told from what did not")
		}
		return l.CloseDecision("nobody", "j", 2, 1, true, time.Second)
	}))
	got := must[[]store.Decision](t)(b.Decisions(ctx, "o/d", 9))
	want := d
	want.Known, want.Passed, want.Took, want.Reason, want.At = true, true, 3*time.Second, got[0].Reason, time.UnixMilli(1000).UTC()
	if len(got) != 1 || got[0] != want || strings.Contains(want.Reason, "\x00") {
		t.Fatalf("%+v, want %+v", got, want)
	}
	for i := range 8 { // room is made in the repository alone
		d.Run, d.At = fmt.Sprint("more", i), time.UnixMilli(int64(2000+i))
		ok(t, a.AddDecision(ctx, d))
	}
	d.Repository, d.Run = "o/other", "x"
	ok(t, a.AddDecision(ctx, d))
	got = must[[]store.Decision](t)(b.Decisions(ctx, "o/d", 9))
	if len(got) != 4 || got[0].Run != "more7" || got[0].Known {
		t.Errorf("%+v", got)
	}
	if all := must[[]store.Decision](t)(b.Decisions(ctx, "", 9)); len(all) != 5 {
		t.Errorf("%d in all", len(all))
	}
}

func testLessons(t *testing.T, a, b *store.Store) {
	ctx, now := t.Context(), time.UnixMilli(5000)
	l := store.Lesson{Repository: "o/l", Identity: "i", Signature: "s", Text: "one", Evidence: "{}", Created: now, Last: now, Expires: now.Add(time.Hour)}
	ok(t, a.PutLesson(ctx, l))
	l.Text, l.Last = "two", now.Add(time.Second)
	ok(t, b.PutLesson(ctx, l))
	got := must[[]store.Lesson](t)(b.Lessons(ctx, "o/l", now))
	if len(got) != 1 || got[0].Text != "two" {
		t.Fatalf("%+v", got)
	}
	ok(t, a.LessonShown(ctx, "o/l", "i", "s"))
	ok(t, a.Learn(ctx, "l", func(l *store.Learning) error {
		ok(t, l.LessonHelped("o/l", "i", "s"))
		return l.LessonHelped("o/l", "i", "s") // once for each time it was shown
	}))
	if got := must[[]store.Lesson](t)(b.Lessons(ctx, "", now)); got[0].Shown != 1 || got[0].Helped != 1 {
		t.Errorf("%+v", got)
	}
	if got := must[[]store.Lesson](t)(b.Lessons(ctx, "o/l", now.Add(2*time.Hour))); len(got) != 0 {
		t.Errorf("an expired lesson is still told: %+v", got)
	}
}

func testFacts(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	ok(t, a.SetFact(ctx, "check", "k", "1"))
	ok(t, b.SetFact(ctx, "check", "k", "2"))
	if got := must[string](t)(a.Fact(ctx, "check", "k")); got != "2" {
		t.Error(got)
	}
	ok(t, a.DropFact(ctx, "check", "k"))
	if _, err := a.Fact(ctx, "check", "k"); !errors.Is(err, store.ErrNotFound) {
		t.Error(err)
	}
}

func testWatch(t *testing.T, a, _ *store.Store) {
	run, _ := newRun(t, a, "o/watch", "j")
	woken, stop := a.Watch(run.ID)
	defer stop()
	rec := must[*store.Recorder](t)(a.Recorder(t.Context(), run.ID))
	rec.Emit(ci.Record{Type: ci.LogLine, Job: "j", Text: "x"})
	select {
	case <-woken: // by the flusher
	case <-time.After(10 * time.Second):
		t.Error("nobody was woken by a log line")
	}
	ok(t, rec.Close())
}

func TestOpenRefusesNewerDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "hearth.db")
	s := must[*store.Store](t)(store.Open(t.Context(), path))
	ok(t, s.Close())
	if fi := must[os.FileInfo](t)(os.Stat(path)); fi.Mode().Perm() != 0o600 {
		t.Errorf("the database file has mode %v", fi.Mode())
	}
	db := store.RawForTest(t, path)
	if _, err := db.Exec(`INSERT INTO migrations (name, applied) VALUES ('9999_future.sql', 1)`); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(context.Background(), path); err == nil || !strings.Contains(err.Error(), "newer hearth") {
		t.Errorf("opened a newer database: %v", err)
	}
}

func TestOpenTwiceAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hearth.db")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			s, err := store.Open(t.Context(), path)
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func BenchmarkRecord(b *testing.B) {
	s, err := store.Open(b.Context(), filepath.Join(b.TempDir(), "hearth.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	run, _, err := s.CreateRun(b.Context(), ci.Run{Repository: "o/r"}, []ci.Job{{Key: "j", Job: "j"}}, nil)
	if err != nil {
		b.Fatal(err)
	}
	for _, typ := range []ci.RecordType{ci.LogLine, ci.AnnotationRec} {
		b.Run(string(typ), func(b *testing.B) {
			rec, err := s.Recorder(b.Context(), run.ID)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				rec.Emit(ci.Record{Type: typ, Job: "j", Step: 1, Stream: "stdout", Text: "a line of output as builds print it, of usual length"})
			}
			if err := rec.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
