package learn_test

import (
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
)

// TestRetriedByItselfIsNoPass: a step that passed when it was tried again has failed:
// for the predictions, for what is learned of it, and for what ended the failure.
func TestRetriedByItselfIsNoPass(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := t.Context()
	w := newWorld(t, s, learn.Options{Mode: learn.Act})
	w.steps = []string{"npm ci"}
	trouble := []string{"fetching", "error: could not resolve host: registry.example.org", "exit"}
	retried := func(n int, passes bool) {
		sha, branch := main(n)
		run, _, err := s.CreateRun(ctx, ci.Run{Repository: w.repo, File: "ci.yml", Workflow: "CI", Ref: branch, SHA: sha, Attempt: 1,
			Created: w.now, EventID: "e"},
			[]ci.Job{{Key: "test"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.l.Before(ctx, learn.RunInfo{ID: run.ID, Repository: w.repo, Workflow: "ci.yml", Branch: branch, Commit: sha, Attempt: 1,
			Jobs: []learn.JobInfo{{Key: "test", Steps: []learn.StepInfo{{Number: 1, Command: "npm ci"}}}}}); err != nil {
			t.Fatal(err)
		}
		rec, err := s.Recorder(ctx, run.ID)
		if err != nil {
			t.Fatal(err)
		}
		emit := func(r ci.Record) {
			w.now = w.now.Add(time.Second)
			r.Time = w.now
			rec.Emit(r)
		}
		emit(ci.Record{Type: ci.RunStarted})
		emit(ci.Record{Type: ci.JobStarted, Job: "test"})
		emit(ci.Record{Type: ci.StepStarted, Job: "test", Step: 1, Command: "npm ci"})
		end, attempts := ci.Success, 2
		for a := 1; a == 1 || a == 2 && !passes; a++ {
			f := learn.Failure{Run: run.ID, Repository: w.repo, Workflow: "ci.yml", JobKey: "test", Step: 1, Command: "npm ci", Branch: branch, Commit: sha,
				Attempt: a, ExitCode: 1, Lines: trouble}
			e, err := w.l.Explain(ctx, f)
			if err != nil {
				t.Fatal(err)
			}
			if d := w.l.Retry(ctx, f, e); a == 1 && (!d.Act || !d.Retry) {
				t.Fatalf("%+v", d)
			}
		}
		if !passes {
			end = ci.Failure
		}
		emit(ci.Record{Type: ci.StepFinished, Job: "test", Step: 1, Outcome: end, Conclusion: end, DurationMS: new(int64(4000)), Attempt: attempts})
		emit(ci.Record{Type: ci.JobFinished, Job: "test", Conclusion: end})
		emit(ci.Record{Type: ci.RunFinished, Conclusion: end})
		if err := rec.Close(); err != nil {
			t.Fatal(err)
		}
		w.now = w.now.Add(time.Hour)
		if _, err := w.l.Consume(ctx); err != nil {
			t.Fatal(err)
		}
		if ps, err := s.Predictions(ctx, run.ID); err != nil || len(ps) != 3 || !ps[2].Failed || ps[2].Outcome != end || ps[1].Failed == passes {
			t.Errorf("%+v, %v", ps, err)
		}
	}
	for n := range 3 {
		retried(n, true)
	}
	retried(3, false)
	sha, branch := main(4)
	next := w.run(sha, branch, 1, false).forecast
	if p := next.Steps["test"][1]; p.Seen != 4 || p.PFail < .3 {
		t.Errorf("what failed each time at first is expected to pass: %+v", p)
	}
	r, err := w.l.RetryReport(ctx, w.repo)
	if err != nil || r.Decisions != 5 || r.Taken < 4 || r.Known != 4 || r.Passed != 3 || r.Wrong != 1 || r.Minutes < 40 || r.Enough {
		t.Errorf("%+v, %v", r, err)
	}
	if d := r.Last[len(r.Last)-1]; !d.Known || !d.Passed || d.Took != 2*time.Second || d.Propensity != 1 || d.GainMS < 60_000 ||
		d.CostMS > 60_000 || d.Policy != "act" ||
		!strings.HasPrefix(d.Reason, "trying again: ") {
		t.Errorf("%+v", d)
	}
	sig, err := s.Signature(ctx, w.repo, r.Last[0].Signature)
	if err != nil || sig.RetryOK != 3 || sig.RetryFail != 1 || sig.FixedBy == "" {
		t.Errorf("the last one ended with the commit after it: %+v, %v", sig, err)
	}
	// Of those that passed again no commit says that it mended them.
	w2 := newWorld(t, s, learn.Options{Mode: learn.Act})
	w2.repo, w2.steps = "o/other", w.steps
	w = w2
	retried(10, true)
	sha, branch = main(11)
	w.run(sha, branch, 1, false)
	if sig, err := s.Signature(ctx, "o/other", sig.ID); err != nil || sig.FixedBy != "" || sig.RetryOK != 1 {
		t.Errorf("%+v, %v", sig, err)
	}
}

// TestModes: what may be done is said for each repository.
func TestModes(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	modes := map[string]learn.Mode{"o/off": learn.Off, "o/act": learn.Act}
	w := newWorld(t, s, learn.Options{Modes: func(repository string) learn.Mode { return modes[repository] }})
	trouble := []string{"error: could not resolve host: registry.example.org"}
	for repo, want := range map[string]learn.Decision{"o/off": {}, "o/act": {Retry: true, Act: true}, "o/advise": {Retry: true}} {
		w.repo = repo
		sha, branch := main(1)
		r := w.run(sha, branch, 1, true, trouble...)
		if r.decision.Retry != want.Retry || r.decision.Act != want.Act {
			t.Errorf("%s: %+v", repo, r.decision)
		}
		rep, err := w.l.RetryReport(t.Context(), repo)
		if off := repo == "o/off"; err != nil || (rep.Decisions == 0) != off || (r.forecast.Jobs == nil) != off || (r.explain.Signature == "") != off {
			t.Errorf("%s: %+v %+v %v", repo, r, rep, err)
		}
		counts, err := w.l.Count(t.Context(), repo)
		if err != nil || (len(counts) == 1) != (repo == "o/off") {
			t.Errorf("%s: %+v %v", repo, counts, err)
		}
	}
}

// TestShiftIsTold: a step that takes longer than it used to says so in what is expected
// of it, and to whoever asks; what was noticed is on record.
func TestShiftIsTold(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, learn.Options{})
	for n := range 40 {
		if n == 30 {
			w.times = 3
		}
		sha, branch := main(n)
		w.run(sha, branch, 1, false)
	}
	limits, err := w.l.Timeouts(t.Context(), w.repo)
	if err != nil || len(limits) != 4 || limits[0].Usual < 8*time.Second || limits[0].Usual > 10*time.Second || limits[0].Bound < limits[0].Usual ||
		limits[0].Minutes != 1 || limits[0].Runs < 10 {
		t.Errorf("%+v, %v", limits, err)
	}
	if limits, err := w.l.Timeouts(t.Context(), "o/other"); err != nil || len(limits) != 0 {
		t.Errorf("%+v, %v", limits, err)
	}
	// Another process knows it from the record.
	l, err := learn.Open(t.Context(), s, learn.Options{Now: func() time.Time { return w.now }})
	if err != nil {
		t.Fatal(err)
	}
	list, err := l.Shifts(t.Context(), w.repo)
	if err != nil || len(list) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	sha, branch := main(30)
	for _, v := range list {
		if v.Kind != "slower" || v.Commit != sha || v.To < 2.9*v.From || v.To > 3.1*v.From || v.Job != "test" || v.Run == "" {
			t.Errorf("%+v", v)
		}
	}
	if list, err := l.Shifts(t.Context(), "o/other"); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	info := learn.RunInfo{ID: "next", Repository: w.repo, Workflow: "ci.yml", Branch: branch, Commit: "x", Attempt: 1,
		Jobs: []learn.JobInfo{{Key: "test", Steps: []learn.StepInfo{{Number: 3, Command: w.steps[2]}}}}}
	f, err := l.Before(t.Context(), info)
	if got := strings.Join(f.Steps["test"][3].Reasons, "; "); err != nil || !strings.Contains(got, "it is slower since 0000000000: ×3.00") {
		t.Errorf("%s, %v", got, err)
	}
}

// TestKnownUnderItsOldLine: what an earlier extractor knew by another line of the same
// failure is not told as new, nor is anything else told as known.
func TestKnownUnderItsOldLine(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, learn.Options{})
	w.steps = []string{"python3 -m app"}
	// It took the first line of a traceback for what went wrong.
	sha, branch := main(1)
	old := w.run(sha, branch, 1, true, "error: Traceback (most recent call last)").explain
	traceback := func(last string) []string {
		return []string{"loading", "error: Traceback (most recent call last)", "Traceback (most recent call last):",
			`  File "/app/store.py", line 9, in get`, last}
	}
	learn.AgeTemplates(t, w.l)
	sha, branch = main(2)
	known := w.run(sha, branch, 1, true, traceback("KeyError: 'colour'")...).explain
	if known.Signature != old.Signature || known.Seen != 1 || !strings.Contains(known.Text, "KeyError") {
		t.Errorf("told as new: %+v, then %+v", old, known)
	}
	sha, branch = main(3)
	if other := w.run(sha, branch, 1, true, traceback("ValueError: not a number")...).explain; other.Signature == old.Signature || other.Seen != 0 {
		t.Errorf("another failure: %+v", other)
	}
	sha, branch = main(4)
	if again := w.run(sha, branch, 1, true, traceback("KeyError: 'colour'")...).explain; again.Signature != old.Signature || again.Seen != 2 {
		t.Errorf("then: %+v", again)
	}
	if sig, err := s.Signature(t.Context(), w.repo, old.Signature); err != nil || sig.Seen != 3 || !strings.Contains(sig.Text, "KeyError") {
		t.Errorf("%+v, %v", sig, err)
	}
	// What was known in another place is not this.
	learn.AgeTemplates(t, w.l)
	w.steps = []string{"python3 -m other"}
	sha, branch = main(5)
	if e := w.run(sha, branch, 1, true, traceback("TypeError: no")...).explain; e.Seen != 0 {
		t.Errorf("another place: %+v", e)
	}
}
