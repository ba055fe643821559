package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
)

func open(t *testing.T, options ...store.Option) (*store.Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dir", "hearth.db")
	s, err := store.Open(t.Context(), path, options...)
	ok(t, err)
	t.Cleanup(func() { s.Close() })
	return s, path
}

// TestRunFilter: each field narrows by itself, and an empty one does not.
func TestRunFilter(t *testing.T) {
	s, _ := open(t)
	at := time.UnixMilli(1_800_000_000_000)
	for i, r := range []ci.Run{
		{ID: "run-a", Repository: "o/a", Workflow: "CI", File: "ci.yml", Event: "push", Ref: "main", SHA: "1", Status: ci.Completed, Conclusion: ci.Success,
			EventID: "e"},
		{ID: "run-b", Repository: "o/b", Workflow: "Lint", File: "lint.yml", Event: "pull_request", Ref: "dev", SHA: "2", Status: ci.InProgress, EventID: "f"},
	} {
		r.Created = at.Add(time.Duration(i) * time.Second)
		_, _, err := s.CreateRun(t.Context(), r, nil, nil)
		ok(t, err)
	}
	for i, c := range []struct {
		f    store.RunFilter
		want string
	}{
		{store.RunFilter{}, "run-b run-a"}, {store.RunFilter{Limit: 1}, "run-b"}, {store.RunFilter{Limit: -1}, "run-b run-a"},
		{store.RunFilter{Repository: "o/a"}, "run-a"}, {store.RunFilter{Workflow: "CI"}, "run-a"}, {store.RunFilter{Workflow: "lint.yml"}, "run-b"},
		{store.RunFilter{Event: "push"}, "run-a"}, {store.RunFilter{Ref: "dev"}, "run-b"}, {store.RunFilter{SHA: "1"}, "run-a"},
		{store.RunFilter{Status: ci.InProgress}, "run-b"}, {store.RunFilter{Conclusion: ci.Success}, "run-a"}, {store.RunFilter{EventID: "f"}, "run-b"},
		{store.RunFilter{Before: at.Add(time.Second)}, "run-a"}, {store.RunFilter{Before: at}, ""}, {store.RunFilter{Repository: "o/a", Ref: "dev"}, ""},
	} {
		runs, err := s.Runs(t.Context(), c.f)
		ok(t, err)
		var ids []string
		for _, r := range runs {
			ids = append(ids, r.ID)
		}
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("%d: %q, want %q", i, got, c.want)
		}
	}
}

// TestCreated: what a run and its jobs are given when they say nothing, and that
// what they say stays.
func TestCreated(t *testing.T) {
	s, _ := open(t)
	before := time.Now().Add(-time.Second)
	run, jobs, err := s.CreateRun(t.Context(), ci.Run{Repository: "o/r", File: "f"}, []ci.Job{{Job: "a"}}, nil)
	ok(t, err)
	j := jobs[0]
	if !ci.ValidID(run.ID) || run.Number != 1 || run.Attempt != 1 || run.Status != ci.Queued || run.Created.Before(before) ||
		!ci.ValidID(j.ID) || j.Key != "a" || j.Attempt != 1 || j.Status != ci.Queued || j.RunID != run.ID || !j.Created.Equal(run.Created) {
		t.Errorf("%+v\n%+v", run, j)
	}
	at := time.UnixMilli(1_700_000_000_000).UTC()
	given := ci.Run{ID: ci.NewID(), Repository: "o/r", File: "f", Number: 7, Attempt: 3, Status: ci.InProgress, Created: at}
	job := ci.Job{ID: ci.NewID(), Key: "k", Job: "a", Attempt: 2, Status: ci.InProgress, Created: at.Add(time.Second)}
	run, jobs, err = s.CreateRun(t.Context(), given, []ci.Job{job}, nil)
	ok(t, err)
	stored := must[[]store.StoredJob](t)(s.Jobs(t.Context(), run.ID))
	if run != given || jobs[0].ID != job.ID || stored[0].Key != "k" || stored[0].Attempt != 2 || stored[0].Status != ci.InProgress ||
		!stored[0].Created.Equal(job.Created) {
		t.Errorf("%+v\n%+v", run, stored[0])
	}
	if run, _, err = s.CreateRun(t.Context(), ci.Run{Repository: "o/r", File: "f"}, nil, nil); err != nil || run.Number != 2 {
		t.Errorf("%v: number %d", err, run.Number)
	}
	if _, _, err := s.CreateRun(t.Context(), ci.Run{Repository: "o/r", File: "f"}, []ci.Job{{ID: job.ID, Job: "a"}}, nil); err == nil ||
		!strings.Contains(err.Error(), "job a: ") {
		t.Errorf("a job that is there: %v", err)
	}
	if n, err := s.NumberRun(t.Context(), "o/r", "f"); err != nil || n != 3 {
		t.Errorf("%v: what failed took a number: %d", err, n)
	}
}

// TestNotThere: what is not there is ErrNotFound, or an empty answer, never another
// error.
func TestNotThere(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	run, _ := newRun(t, s, "o/none", "a")
	logOf := func(q store.LogQuery) (err error) {
		for _, e := range s.Log(ctx, q) {
			err = errors.Join(err, e)
		}
		return err
	}
	for name, err := range map[string]error{
		"run":        second(s.Run(ctx, "nobody")),
		"plan":       second(s.Plan(ctx, "nobody")),
		"job":        second(s.Job(ctx, "nobody")),
		"fact":       second(s.Fact(ctx, "s", "k")),
		"event":      second(s.Event(ctx, "nobody")),
		"replay":     s.ReplayEvent(ctx, "nobody"),
		"signature":  second(s.Signature(ctx, "o/r", "nobody")),
		"log":        logOf(store.LogQuery{Run: run.ID, Job: "nobody"}),
		"log window": second(s.LogTail(ctx, run.ID, "nobody", 3)),
	} {
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := logOf(store.LogQuery{Run: run.ID, Job: "nobody"}); err == nil || !strings.Contains(err.Error(), "its jobs are: a") {
		t.Errorf("%v", err)
	}
	for name, err := range map[string]error{
		"drop":        s.DropFact(ctx, "s", "k"),
		"head":        second(s.Head(ctx)),
		"predictions": s.AddPredictions(ctx, nil),
		"log":         logOf(store.LogQuery{Run: run.ID, Job: "a"}),
		"cancel":      second(s.QueueCancel(ctx, "nobody", "x")),
		"shown":       s.LessonShown(ctx, "o/r", "i", "s"),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if state, _, _, _, err := s.QueueState(ctx, "nobody"); state != "" || err != nil {
		t.Errorf("%q %v", state, err)
	}
	if held, _, err := s.QueueRenew(ctx, "nobody", 1, time.Now()); held || err != nil {
		t.Errorf("%v %v", held, err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestBrokenRows: a row that does not say what it should is an error, not an empty
// answer.
func TestBrokenRows(t *testing.T) {
	s, path := open(t)
	ctx := t.Context()
	run, jobs := newRun(t, s, "o/broken", "a")
	ok(t, s.AddPredictions(ctx, []store.Prediction{{Run: run.ID, JobKey: "a"}}))
	r := must[*store.Recorder](t)(s.Recorder(ctx, run.ID))
	r.Emit(ci.Record{Type: ci.JobStarted, Run: run.ID, JobKey: "a", Time: time.Now()})
	r.Emit(ci.Record{Type: ci.StepStarted, Run: run.ID, JobKey: "a", Step: 1, Time: time.Now()})
	r.Emit(ci.Record{Type: ci.StepFinished, Run: run.ID, JobKey: "a", Step: 1, Conclusion: ci.Success, Time: time.Now()})
	ok(t, r.Close())
	raw := store.RawForTest(t, path)
	for _, c := range []struct {
		breaks string
		read   func() error
	}{
		{`UPDATE predictions SET reasons = '{'`, func() error { return second(s.Predictions(ctx, run.ID)) }},
		{`UPDATE jobs SET labels = '{'`, func() error { return second(s.Jobs(ctx, run.ID)) }},
		{`UPDATE jobs SET labels = '[]', outputs = '{'`, func() error { return second(s.Job(ctx, jobs[0].ID)) }},
		{`UPDATE steps SET outputs = '{'`, func() error { return second(s.Steps(ctx, jobs[0].ID)) }},
		{`UPDATE records SET body = '{'`, func() error { return second(s.RunRecords(ctx, run.ID, 0, 5)) }},
		{`UPDATE records SET body = '{'`, func() error { return second(s.Records(ctx, 0, 5)) }},
	} {
		if err := c.read(); err != nil && !strings.Contains(c.breaks, "outputs") && !strings.Contains(c.breaks, "records") {
			t.Errorf("before %s: %v", c.breaks, err)
		}
		if _, err := raw.Exec(c.breaks); err != nil {
			t.Logf("%s: %v", c.breaks, err)
			continue
		}
		if err := c.read(); err == nil {
			t.Errorf("after %s it was read", c.breaks)
		}
	}
}

// TestWatchEnds: a watch that has ended is not woken, and the others are.
func TestWatchEnds(t *testing.T) {
	s, _ := open(t)
	run, _ := newRun(t, s, "o/watch", "a")
	one, endOne := s.Watch(run.ID)
	two, endTwo := s.Watch(run.ID)
	any, endAny := s.Watch("")
	r := must[*store.Recorder](t)(s.Recorder(t.Context(), run.ID))
	defer r.Close()
	woken := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	for i, step := range []struct {
		end  func()
		want [3]bool
	}{{func() {}, [3]bool{true, true, true}}, {endOne, [3]bool{false, true, true}}, {endAny, [3]bool{false, true, false}}, {endTwo, [3]bool{}},
		{endTwo, [3]bool{}}} {
		step.end()
		r.Emit(ci.Record{Type: ci.JobStarted, Run: run.ID, JobKey: "a", Attempt: i + 1, Time: time.Now()})
		if got := [3]bool{woken(one), woken(two), woken(any)}; got != step.want {
			t.Errorf("%d: %v, want %v", i, got, step.want)
		}
	}
}

// TestNumbersGoOn: a recorder goes on where the files of the one before end, however
// long the last line is, and whatever a process that died left behind it.
func TestNumbersGoOn(t *testing.T) {
	for _, length := range []int{10, 64<<10 - 200, 64 << 10, 200 << 10} {
		for _, rest := range []string{"", `{"seq":9999999,"te`, "\n\n", "garbage\n"} {
			s, _ := open(t)
			run, jobs := newRun(t, s, "o/numbers", "a")
			emit := func(text string) {
				r := must[*store.Recorder](t)(s.Recorder(t.Context(), run.ID))
				r.Emit(ci.Record{Type: ci.LogLine, Run: run.ID, JobKey: "a", Step: 1, Stream: "stdout", Text: text, Time: time.Now()})
				ok(t, r.Close())
			}
			emit("first")
			emit(strings.Repeat("x", length))
			name := filepath.Join(s.LogDir(), run.ID, jobs[0].ID+".ndjson")
			f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
			ok(t, err)
			_, err = f.WriteString(rest)
			ok(t, errors.Join(err, f.Close()))
			emit("last")
			var seqs []int64
			var texts []string
			for l, err := range s.Log(t.Context(), store.LogQuery{Run: run.ID, Job: "a"}) {
				ok(t, err)
				seqs, texts = append(seqs, l.Seq), append(texts, l.Text)
			}
			if !slices.Equal(seqs, []int64{1, 2, 3}) || texts[2] != "last" || len(texts[1]) != length {
				t.Errorf("%d bytes, then %q: %v", length, rest, seqs)
			}
		}
	}
}

// TestLogIsFull: what a job's log, and a run's, may have, it has to the byte.
func TestLogIsFull(t *testing.T) {
	line := func(s *store.Store, run ci.Run, job string, text string) {
		r := must[*store.Recorder](t)(s.Recorder(t.Context(), run.ID))
		r.Emit(ci.Record{Type: ci.LogLine, Run: run.ID, JobKey: job, Step: 1, Stream: "stdout", Text: text, Time: time.UnixMilli(1_800_000_000_000)})
		ok(t, r.Close())
	}
	s, _ := open(t)
	run, jobs := newRun(t, s, "o/full", "a")
	line(s, run, "a", "12345")
	size, _, err := s.LogSize(t.Context(), run.ID, jobs[0].ID)
	ok(t, err)
	for _, c := range []struct {
		job, run int64
		full     string
	}{{2 * size, 4 * size, ""}, {2*size - 1, 4 * size, "the job has filled"}, {4 * size, 2 * size, ""},
		{4 * size, 2*size - 1, "the jobs of this run have filled"}} {
		s, _ := open(t, store.WithLogLimits(c.job, c.run))
		run, jobs := newRun(t, s, "o/full", "a")
		line(s, run, "a", "12345")
		line(s, run, "a", "12345")
		var text strings.Builder
		for l, err := range s.Log(t.Context(), store.LogQuery{Run: run.ID, Job: jobs[0].ID}) {
			ok(t, err)
			fmt.Fprintln(&text, l.Text)
		}
		if (c.full == "") != (text.String() == "12345\n12345\n") || !strings.Contains(text.String(), c.full) {
			t.Errorf("%+v of %d: %s", c, size, text.String())
		}
	}
}

// TestOpenRefuses: a path on which no database can be.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	ok(t, os.WriteFile(filepath.Join(dir, "file"), []byte("text that is no database, and long enough to be looked at: 0123456789 0123456789"), 0o600))
	for _, path := range []string{"", dir, filepath.Join(dir, "file", "hearth.db"), filepath.Join(dir, "file"), "postgres://%zz"} {
		if s, err := store.Open(context.Background(), path); err == nil {
			s.Close()
			t.Errorf("%q was opened", path)
		}
	}
	s, path := open(t)
	if i, err := os.Stat(path); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", err, i.Mode())
	}
	if s.LogDir() != filepath.Join(filepath.Dir(path), "logs") || s.Dialect() != store.SQLite {
		t.Errorf("%s %s", s.LogDir(), s.Dialect())
	}
	if s, _ := open(t, store.WithLogs(dir)); s.LogDir() != dir {
		t.Errorf("%s", s.LogDir())
	}
	ok(t, s.Close())
	if err := s.Ping(t.Context()); err == nil {
		t.Error("a closed database answers")
	}
}

// TestLostRunIsMarked: that a run could not be run is in its row, and in that of the
// job that could not.
func TestLostRunIsMarked(t *testing.T) {
	for _, lost := range []bool{true, false} {
		s, _ := open(t)
		run, jobs := newRun(t, s, "o/lost", "a")
		r := must[*store.Recorder](t)(s.Recorder(t.Context(), run.ID))
		r.Emit(ci.Record{Type: ci.JobFinished, Run: run.ID, JobKey: "a", Conclusion: ci.Failure, Infrastructure: lost, Time: time.Now()})
		r.Emit(ci.Record{Type: ci.RunFinished, Run: run.ID, Conclusion: ci.Failure, Infrastructure: lost, Time: time.Now()})
		ok(t, r.Close())
		run = must[ci.Run](t)(s.Run(t.Context(), run.ID))
		job := must[store.StoredJob](t)(s.Job(t.Context(), jobs[0].ID))
		if run.Infrastructure != lost || run.Conclusion != ci.Failure || job.Infrastructure != lost {
			t.Errorf("lost %v: run %v, job %v", lost, run.Infrastructure, job.Infrastructure)
		}
	}
}
