package learn_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/store/storetest"
)

// world runs a little project through store and learner as a worker would.
type world struct {
	t      *testing.T
	s      *store.Store
	l      *learn.Learner
	now    time.Time
	repo   string
	steps  []string
	code   int // of the last step where it fails
	image  string
	times  int // how many times as long as usual steps take; 0: once
	host   string
	byHand bool // the last step passes after all, by hand
}

func newWorld(t *testing.T, s *store.Store, opt learn.Options) *world {
	w := &world{t: t, s: s, repo: "o/r", code: 1, now: time.UnixMilli(1_780_000_000_000), steps: []string{"actions/checkout@v4", "npm ci", "npm test"}}
	opt.Now = func() time.Time { return w.now }
	var err error
	if w.l, err = learn.Open(t.Context(), s, opt); err != nil {
		t.Fatal(err)
	}
	return w
}

type ran struct {
	id       string
	forecast learn.Forecast
	explain  ci.Explanation
	decision learn.Decision
}

// run makes one run. log is what the last step prints; it fails if fail.
func (w *world) run(sha, branch string, attempt int, fail bool, log ...string) ran {
	w.t.Helper()
	ctx := w.t.Context()
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	run, _, err := w.s.CreateRun(ctx, ci.Run{Repository: w.repo, File: "ci.yml", Workflow: "CI", Name: "subject of " + sha, Ref: branch, SHA: sha,
		Attempt: attempt, Created: w.now},
		[]ci.Job{{Key: "test", Job: "test"}}, nil)
	must(err)
	info := learn.RunInfo{ID: run.ID, Repository: w.repo, Workflow: "ci.yml", Branch: branch, Commit: sha, Attempt: attempt, Jobs: []learn.JobInfo{{Key: "test"}}}
	for i, c := range w.steps {
		info.Jobs[0].Steps = append(info.Jobs[0].Steps, learn.StepInfo{Number: i + 1, Command: c})
	}
	out := ran{id: run.ID}
	out.forecast, err = w.l.Before(ctx, info)
	must(err)
	rec, err := w.s.Recorder(ctx, run.ID)
	must(err)
	emit := func(r ci.Record) {
		w.now = w.now.Add(time.Second)
		r.Time = w.now
		rec.Emit(r)
	}
	emit(ci.Record{Type: ci.RunStarted})
	emit(ci.Record{Type: ci.JobStarted, Job: "test"})
	if w.image != "" {
		emit(ci.Record{Type: ci.MachineRec, Job: "test", Machine: &ci.MachineEvent{ID: "m", Action: "restored", Image: w.image, Host: w.host}})
	}
	end := ci.Success
	for i, c := range w.steps {
		emit(ci.Record{Type: ci.StepStarted, Job: "test", Step: i + 1, Name: c, Command: c})
		last := i == len(w.steps)-1
		if last {
			for _, l := range log {
				emit(ci.Record{Type: ci.LogLine, Job: "test", Step: i + 1, Stream: "stdout", Text: l})
			}
		}
		if last && fail {
			end = ci.Failure
		}
		done := ci.Record{Type: ci.StepFinished, Job: "test", Step: i + 1, Outcome: end, Conclusion: end, DurationMS: new(int64(1000 * (i + 1) * max(w.times, 1)))}
		if last && w.byHand {
			end = ci.Success
			done.Outcome, done.Conclusion, done.Attempt, done.Assisted, done.DurationMS = end, end, 2, true, new(int64(3_000_000))
		}
		emit(done)
	}
	if fail {
		f := learn.Failure{Run: run.ID, Repository: w.repo, Workflow: "ci.yml", JobKey: "test", Step: len(w.steps), Command: w.steps[len(w.steps)-1],
			Branch: branch, Commit: sha, Attempt: attempt, ExitCode: w.code}
		out.explain, err = w.l.Explain(ctx, f)
		must(err)
		again, err := w.l.Explain(ctx, f)
		must(err)
		if again.Seen != out.explain.Seen || again.Signature != out.explain.Signature {
			w.t.Fatalf("asked twice: %+v, then %+v", out.explain, again)
		}
		out.decision = w.l.Retry(ctx, f, out.explain)
	}
	emit(ci.Record{Type: ci.JobFinished, Job: "test", Conclusion: end, Assisted: w.byHand})
	emit(ci.Record{Type: ci.RunFinished, Conclusion: end})
	must(rec.Close())
	_, err = w.l.Consume(ctx)
	must(err)
	w.now = w.now.Add(time.Hour)
	return out
}

func main(i int) (sha, branch string) { return fmt.Sprintf("%040d", i), "refs/heads/main" }

var assertion = []string{"> test", "thread 'parser::empty' panicked at src/parser.rs:41:9:", "assertion `left == right` failed",
	"test result: FAILED. 12 passed; 1 failed; finished in 0.35s"}

func TestLearnInTheRunPath(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		w := newWorld(t, s, learn.Options{})
		n := 0
		next := func(fail bool, log ...string) ran {
			n++
			sha, branch := main(n)
			return w.run(sha, branch, 1, fail, log...)
		}
		first := next(false, "> test", "13 passed")
		if p := first.forecast.Steps["test"][3]; p.Seen != 0 || len(p.Reasons) == 0 {
			t.Errorf("a first step: %+v", p)
		}
		for range 11 {
			next(false, "> test", "13 passed")
		}
		calm := next(false, "> test", "13 passed").forecast
		if p := calm.Steps["test"][3]; p.Seen != 12 || p.PFail > .1 || p.ExpectedMS < 2900 || p.ExpectedMS > 3100 || p.Low > p.PFail || p.High < p.PFail {
			t.Errorf("after twelve passes: %+v", p)
		}
		f1 := next(true, assertion...)
		if f1.explain.Seen != 0 || !strings.Contains(f1.explain.Text, "parser::empty") && !strings.Contains(f1.explain.Text, "left == right") {
			t.Errorf("first failure: %+v", f1.explain)
		}
		f2 := next(true, strings.Split(strings.ReplaceAll(strings.Join(assertion, "\n"), "0.35s", "1.72s"), "\n")...)
		if want := []string{"thread 'parser::empty' panicked at src/parser.rs:41:9:", "assertion `left == right` failed"}; len(f1.explain.Lines) < 2 ||
			!slices.Equal(f1.explain.Lines[:2], want) {
			t.Errorf("what is shown: %q", f1.explain.Lines)
		}
		if f2.explain.Seen != 1 || f2.explain.Signature != f1.explain.Signature {
			t.Errorf("second failure: %+v", f2.explain)
		}
		if f2.decision.Retry || !strings.Contains(f2.decision.Reason, "comes again") {
			t.Errorf("retry of an assertion: %+v", f2.decision)
		}
		f3 := next(true, assertion...)
		if f3.explain.Seen != 2 || f3.explain.Lesson == "" {
			t.Errorf("third failure teaches no lesson: %+v", f3.explain)
		}
		after := next(false, "> test", "14 passed").forecast
		if p := after.Steps["test"][3]; p.PFail < 2*calm.Steps["test"][3].PFail {
			t.Errorf("three failures did not move the forecast: %.3f, before %.3f", p.PFail, calm.Steps["test"][3].PFail)
		}
		if p := after.Steps["test"][2]; p.PFail > .15 {
			t.Errorf("the step that never failed: %.3f", p.PFail)
		}
		fixer, _ := main(n)
		f4 := next(true, assertion...)
		if f4.explain.FixedBy != fixer || f4.explain.Fix != "subject of "+fixer || f4.explain.Seen != 3 {
			t.Errorf("what ended it: %+v, want %s", f4.explain, fixer)
		}
		if got := board.Known(&f4.explain); !strings.HasPrefix(got, "seen before, 3 times, last ended by "+fixer[:10]) {
			t.Errorf("sentence: %s", got)
		}
		sum, err := w.l.Summary(t.Context(), f4.id)
		if err != nil || len(sum.Signatures) != 1 || len(sum.Lessons) != 1 || len(sum.Lines()) < 3 || len(sum.Predictions) != 5 {
			t.Errorf("summary: %+v, %v", sum, err)
		}
		rep, err := w.l.Report(t.Context(), "o/r")
		if err != nil || rep.Steps.N != 3*n || rep.Jobs.N != n || rep.Runs.N != n || rep.Steps.Failed != 4 || rep.Steps.AUC < .6 {
			t.Errorf("report: %+v, %v", rep, err)
		}
		// One step, the job and the run failed at the same time; two steps never did.
		for _, c := range rep.Greens[:2] {
			if c.N != 5 || c.From != c.To || c.Failed != 0 || !c.Holds() {
				t.Errorf("of what had never failed: %+v", c)
			}
		}
		if got, err := w.l.Related(t.Context(), "o/r", "npm  test", 5); err != nil || len(got) != 0 {
			t.Errorf("what always runs together with everything is related by chance: %+v %v", got, err)
		}
		if got, err := w.l.Next(t.Context(), "o/r", 1, "npm ci"); err != nil || len(got) != 1 || got[0].Name != "npm test" {
			t.Errorf("next: %+v %v", got, err)
		}

		// Another process knows all of it, and nothing is counted twice.
		other := newWorld(t, open(), learn.Options{})
		other.now = w.now
		stats, err := other.l.Stats(t.Context())
		if err != nil || stats.Executions != int64(3*n) || stats.Failures != 4 {
			t.Errorf("another process: %+v %v", stats, err)
		}
		n++
		sha, branch := main(n)
		a := w.run(sha, branch, 1, false).forecast
		n++
		sha, branch = main(n)
		b := other.run(sha, branch, 1, false).forecast
		if a.Steps["test"][3].Seen+1 != b.Steps["test"][3].Seen {
			t.Errorf("two processes: seen %d, then %d", a.Steps["test"][3].Seen, b.Steps["test"][3].Seen)
		}
	})
}

func TestFlakyIsSaidAndRetried(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, learn.Options{Mode: learn.Act})
	n := 0
	trouble := []string{"fetching", "error: could not resolve host: registry.example.org", "exit"}
	for range 3 {
		n++
		sha, branch := main(n)
		r := w.run(sha, branch, 1, true, trouble...)
		if r.decision.P < .3 || !r.decision.Retry || !r.decision.Act {
			t.Errorf("run %d: %+v", n, r.decision)
		}
		w.run(sha, branch, 2, false)
	}
	n++
	sha, branch := main(n)
	r := w.run(sha, branch, 1, true, trouble...)
	if !r.explain.Flaky || r.explain.FixedBy != "" || !strings.Contains(r.decision.Reason, "passed on 3 of 3") {
		t.Errorf("%+v %+v", r.explain, r.decision)
	}
	// The third attempt is the last one.
	w.run(sha, branch, 2, true, trouble...)
	if r := w.run(sha, branch, 3, true, trouble...); r.decision.Retry {
		t.Errorf("a fourth attempt: %+v", r.decision)
	}
	// What deploys is never repeated.
	w.steps = []string{"npm run deploy"}
	if r := w.run("d1", branch, 1, true, trouble...); r.decision.Retry || !strings.Contains(r.decision.Reason, "deploys") {
		t.Errorf("deploy: %+v", r.decision)
	}
}

// TestByHandIsNoPass: a step that passed because somebody had a hand in it has failed,
// took no time that says anything, and makes nothing flaky.
func TestByHandIsNoPass(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, learn.Options{})
	var r ran
	for i := range 6 {
		w.byHand = i > 2
		r = w.run(fmt.Sprintf("%040d", i), "refs/heads/main", 1, w.byHand, assertion...)
	}
	p := r.forecast.Steps["test"][3]
	if p.PFail < .3 || p.ExpectedMS > 10_000 {
		t.Errorf("after three passes and two failures that were mended by hand: %+v", p)
	}
	if r.explain.Flaky || r.explain.FixedBy != "" || r.explain.Seen != 2 {
		t.Errorf("%+v", r.explain)
	}
	stats, err := w.l.Stats(t.Context())
	if err != nil || stats.Failures != 3 || stats.Executions != 18 {
		t.Errorf("%+v %v", stats, err)
	}
}

// TestWhatStandsIsNotFlaky: what looks like passing trouble, and has been there on
// four commits without one pass, is real.
func TestWhatStandsIsNotFlaky(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, learn.Options{})
	trouble := []string{"fetching", "error: could not resolve host: registry.example.org", "exit"}
	flaky := func(commit string) bool { return w.run(commit, "refs/heads/main", 1, true, trouble...).explain.Flaky }
	if !flaky("a") {
		t.Error("the first time it looks flaky")
	}
	if flaky("b"); flaky("c") || flaky("d") {
		t.Error("it is there since three commits")
	}
}

// TestWorkingTreeIsNoCommit: from a working tree, passing on the same commit may
// be the work of an edit, and makes nothing flaky.
func TestWorkingTreeIsNoCommit(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, learn.Options{})
	for range 4 {
		w.run("same", "refs/heads/main", 1, true, assertion...)
		w.run("same", "refs/heads/main", 1, false)
	}
	r := w.run("same", "refs/heads/main", 1, true, assertion...)
	if r.explain.Flaky || r.decision.Retry || r.explain.Seen != 4 || !strings.Contains(r.explain.Fix, "not committed") {
		t.Errorf("%+v %+v", r.explain, r.decision)
	}
	if sig, err := s.Signature(t.Context(), "o/r", r.explain.Signature); err != nil || sig.RetryOK != 0 {
		t.Errorf("%+v %v", sig, err)
	}
}

func TestOffDoesNothing(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, learn.Options{Mode: learn.Off})
	r := w.run("a", "b", 1, true, "error: x")
	if r.explain.Signature != "" || r.forecast.Jobs != nil || r.decision.Retry {
		t.Errorf("%+v", r)
	}
	if ps, err := s.Predictions(t.Context(), r.id); err != nil || len(ps) != 0 {
		t.Errorf("%+v %v", ps, err)
	}
	var none *learn.Learner
	if f, err := none.Before(t.Context(), learn.RunInfo{}); err != nil || f.Jobs != nil {
		t.Error("a nil learner said something")
	}
	if _, err := learn.Open(t.Context(), s, learn.Options{Mode: "on"}); err == nil {
		t.Error("a mode that does not exist")
	}
	// Switched on again, it learns what happened meanwhile.
	on := newWorld(t, s, learn.Options{})
	if st, err := on.l.Stats(t.Context()); err != nil || st.Executions != 3 {
		t.Errorf("%+v %v", st, err)
	}
}

// TestExactlyOnce: several processes consume at once while records are written.
func TestExactlyOnce(t *testing.T) {
	path := t.TempDir() + "/hearth.db"
	open := func() *store.Store {
		s, err := store.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		l, err := learn.Open(ctx, open(), learn.Options{})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := l.Follow(ctx); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			for ctx.Err() == nil {
				l.Consume(ctx)
			}
		})
	}
	w := newWorld(t, open(), learn.Options{})
	for i := range 15 {
		sha, branch := main(i)
		w.run(sha, branch, 1, i%5 == 0, "error: x")
	}
	stop()
	wg.Wait()
	st, err := newWorld(t, open(), learn.Options{}).l.Stats(t.Context())
	if err != nil || st.Executions != 45 || st.Failures != 3 {
		t.Errorf("%+v %v", st, err)
	}
}
