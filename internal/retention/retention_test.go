package retention

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/store/storetest"
)

var now = time.UnixMilli(1_800_000_000_000)

// kept makes a run for choose: "repository age bytes".
func kept(specs ...string) []store.KeptRun {
	var out []store.KeptRun
	for i, s := range specs {
		var v store.KeptRun
		var age string
		fmt.Sscan(s, &v.Repository, &age, &v.Bytes)
		d, err := time.ParseDuration(age)
		if err != nil {
			panic(err)
		}
		v.ID, v.Finished, v.Cursor = fmt.Sprint(s), now.Add(-d), int64(i+1)
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b store.KeptRun) int { return a.Finished.Compare(b.Finished) })
	return out
}

func ids(c []chosen) (out []string) {
	for _, v := range c {
		out = append(out, v.ID)
	}
	return out
}

func TestChoose(t *testing.T) {
	const hour = config.Duration(time.Hour)
	for _, c := range []struct {
		name    string
		limits  config.Retention
		runs    []store.KeptRun
		learned int64
		gone    []string
	}{
		{"nothing", config.Retention{}, kept("a 9000h 5"), 99, nil},
		{"age", config.Retention{Age: 48 * hour}, kept("a 50h 5", "b 47h 5"), 99, []string{"a 50h 5"}},
		{"number, of each repository", config.Retention{Runs: 1}, kept("a 3h 5", "a 2h 5", "b 4h 5"), 99, []string{"a 3h 5"}},
		{"bytes of a repository, oldest first", config.Retention{RepositoryBytes: 10}, kept("a 5h 1", "a 4h 8", "a 3h 5", "a 2h 5", "b 9h 9"), 99,
			[]string{"a 5h 1", "a 4h 8"}},
		{"the newest stays, however large", config.Retention{RepositoryBytes: 10}, kept("a 3h 5", "a 2h 50"), 99, []string{"a 3h 5"}},
		{"only just ended", config.Retention{RepositoryBytes: 10, Bytes: 1, Runs: 1}, kept("a 5m 50", "a 4m 50", "a 3m 50"), 99, nil},
		{"not learned from", config.Retention{Age: hour}, kept("a 5h 1", "a 4h 1"), 1, []string{"a 5h 1"}},
	} {
		if got := ids(choose(c.runs, c.limits, now, c.learned)); !slices.Equal(got, c.gone) {
			t.Errorf("%s: %q go, want %q", c.name, got, c.gone)
		}
	}
}

// One repository fills the disk with runs, to push out everybody's record: only
// its own go, whether its quota or that of all is reached.
func TestAttackPushOutOthersRuns(t *testing.T) {
	specs := []string{"o/quiet 2000h 10", "o/quiet 1000h 10", "o/small 1500h 30"}
	for i := range 500 {
		specs = append(specs, fmt.Sprintf("o/flood %dm 100", 20+i))
	}
	for name, l := range map[string]config.Retention{"quota of a repository": {RepositoryBytes: 5000}, "quota of all": {Bytes: 5000}} {
		total := map[string]int64{}
		runs := kept(specs...)
		for _, v := range runs {
			total[v.Repository] += v.Bytes
		}
		for i, v := range choose(runs, l, now, 1000) {
			total[v.Repository] -= v.Bytes
			if v.Repository != "o/flood" || v.ID != fmt.Sprintf("o/flood %dm 100", 519-i) {
				t.Fatalf("%s: number %d to go is %s", name, i, v.ID)
			}
		}
		if total["o/quiet"] != 20 || total["o/small"] != 30 || total["o/flood"] > 5000 || total["o/flood"] < 4000 {
			t.Errorf("%s: left %v", name, total)
		}
	}
}

// world is a record with a learner.
type world struct {
	t *testing.T
	s *store.Store
	k *Keeper
}

func newWorld(t *testing.T, s *store.Store, mode learn.Mode, l config.Retention) *world {
	t.Helper()
	learner, err := learn.Open(t.Context(), s, learn.Options{Mode: mode})
	if err != nil {
		t.Fatal(err)
	}
	return &world{t, s, &Keeper{Store: s, Learn: learner, Limits: l, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}}
}

// run records a run that ended so long ago; not at all with ended 0.
func (w *world) run(repository string, ended time.Duration, lines int) string {
	w.t.Helper()
	ctx := w.t.Context()
	at := time.Now().Add(-ended - time.Minute)
	id, _, err := w.s.AddEvent(ctx, ci.Event{Name: "push", Repository: repository, Delivery: ci.NewID(), Payload: []byte(strings.Repeat("p", 1000)),
		Received: at}, store.EventNoted, "")
	if err != nil {
		w.t.Fatal(err)
	}
	run, _, err := w.s.CreateRun(ctx, ci.Run{Repository: repository, File: "ci.yml", EventID: id, Created: at}, []ci.Job{{Key: "j", Job: "j"}}, []byte("{}"))
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.k.Learn.Before(ctx, learn.RunInfo{ID: run.ID, Repository: repository, Workflow: "ci.yml",
		Jobs: []learn.JobInfo{{Key: "j", Steps: []learn.StepInfo{{Number: 1, Command: "make"}}}}}); err != nil {
		w.t.Fatal(err)
	}
	rec, err := w.s.Recorder(context.WithoutCancel(ctx), run.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	emit := func(r ci.Record) { r.Time = at; r.Job = "j"; rec.Emit(r) }
	emit(ci.Record{Type: ci.RunStarted})
	emit(ci.Record{Type: ci.JobStarted})
	emit(ci.Record{Type: ci.StepStarted, Step: 1, Name: "make", Command: "make"})
	for range lines {
		emit(ci.Record{Type: ci.LogLine, Step: 1, Text: strings.Repeat("x", 100)})
	}
	if ended > 0 {
		emit(ci.Record{Type: ci.StepFinished, Step: 1, Conclusion: ci.Success, Outcome: ci.Success, DurationMS: new(int64(10))})
		emit(ci.Record{Type: ci.JobFinished, Conclusion: ci.Success})
		emit(ci.Record{Type: ci.RunFinished, Conclusion: ci.Success})
	}
	if err := rec.Close(); err != nil {
		w.t.Fatal(err)
	}
	return run.ID
}

func (w *world) pass(o Options) *Report {
	w.t.Helper()
	r, err := w.k.Pass(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// names are the things of a kind that a pass removed.
func names(r *Report, kind string) (out []string) {
	for _, i := range r.Removed {
		if i.Kind == kind {
			out = append(out, i.Name)
		}
	}
	return out
}

func (w *world) runIDs() (out []string) {
	w.t.Helper()
	runs, err := w.s.Runs(w.t.Context(), store.RunFilter{Limit: 1000})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range runs {
		out = append(out, r.ID)
	}
	slices.Sort(out)
	return out
}

func sorted(v ...string) []string { slices.Sort(v); return v }

func TestPass(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		w := newWorld(t, open(), "", config.Retention{Age: config.Duration(24 * time.Hour), Events: config.Duration(24 * time.Hour)})
		old := w.run("o/r", 30*time.Hour, 50)
		fresh := w.run("o/r", time.Hour, 50)
		going := w.run("o/r", 0, 50)
		before, err := w.k.Learn.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r := w.pass(Options{DryRun: true})
		if got := names(r, "run"); !slices.Equal(got, []string{old}) || r.Freed < 5000 || len(names(r, "delivery")) != 1 {
			t.Errorf("a dry run says %+v", r)
		}
		if got := w.runIDs(); !slices.Equal(got, sorted(old, fresh, going)) {
			t.Fatalf("a dry run removed something: %v", got)
		}
		r = w.pass(Options{})
		if got := names(r, "run"); !slices.Equal(got, []string{old}) || r.Kept.Runs != 1 {
			t.Errorf("removed %+v", r)
		}
		if got := w.runIDs(); !slices.Equal(got, sorted(fresh, going)) {
			t.Errorf("left %v", got)
		}
		if left, err := w.s.RunRecords(t.Context(), old, 0, 10); err != nil || len(left) != 0 {
			t.Errorf("records are left: %v, %v", left, err)
		}
		for id, want := range map[string]bool{old: false, fresh: true, going: true} {
			if _, err := os.Stat(filepath.Join(w.s.LogDir(), id)); (err == nil) != want {
				t.Errorf("logs of %s: %v", id, err)
			}
		}
		// What was learned stays, and so does how good the prediction was.
		after, err := w.k.Learn.Stats(t.Context())
		if err != nil || after != before {
			t.Errorf("known: %+v, before %+v, %v", after, before, err)
		}
		if rep, err := w.k.Learn.Report(t.Context(), "o/r"); err != nil || rep.Runs.N != 2 || rep.Steps.N != 2 {
			t.Errorf("%+v, %v", rep, err)
		}
		if r := w.pass(Options{}); len(r.Removed) != 0 {
			t.Errorf("a second pass removed %+v", r.Removed)
		}
	})
}

// TestPassAfterKill: a process was killed in the middle of a removal, after any
// step of it. The run is gone for whoever reads, and the next pass takes the
// rest.
func TestPassAfterKill(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		w := newWorld(t, open(), "", config.Retention{})
		id := w.run("o/r", time.Hour, 50)
		if _, err := w.k.Learn.Consume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := w.s.RemoveRun(t.Context(), id); err != nil { // and killed
			t.Fatal(err)
		}
		if len(w.runIDs()) != 0 {
			t.Error("the run is still listed")
		}
		if _, err := os.Stat(filepath.Join(w.s.LogDir(), id)); err != nil {
			t.Fatal("nothing is left to remove: the test proves nothing")
		}
		again := newWorld(t, open(), "", config.Retention{})
		again.pass(Options{DryRun: true})
		if n, err := w.s.Removing(t.Context()); err != nil || n != 1 {
			t.Fatalf("%d removals under way, %v", n, err)
		}
		again.pass(Options{})
		if _, err := os.Stat(filepath.Join(w.s.LogDir(), id)); err == nil {
			t.Error("its logs are still there")
		}
		if left, err := w.s.RunRecords(t.Context(), id, 0, 10); err != nil || len(left) != 0 {
			t.Errorf("records are left: %v, %v", left, err)
		}
		if n, err := w.s.Removing(t.Context()); err != nil || n != 0 {
			t.Errorf("%d removals under way, %v", n, err)
		}
	})
}

// TestLearningOff: nobody waits for records that nobody will learn from; and with
// learning on, what another process has not learned from is learned first.
func TestLearningOff(t *testing.T) {
	open := func(mode learn.Mode) *world {
		s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return newWorld(t, s, mode, config.Retention{Age: config.Duration(time.Hour)})
	}
	for _, mode := range []learn.Mode{learn.Off, learn.Advise} {
		w := open(mode)
		w.run("o/r", 2*time.Hour, 1)
		if r := w.pass(Options{}); len(names(r, "run")) != 1 {
			t.Errorf("%s: %+v", mode, r)
		}
		if st, err := w.k.Learn.Stats(t.Context()); err != nil || mode != learn.Off && st.Executions != 1 {
			t.Errorf("%s: learned from %+v, %v", mode, st, err)
		}
	}
}

func TestEventsOfARepository(t *testing.T) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, "", config.Retention{EventBytes: 3500, EventCount: 6})
	add := func(repository string, age time.Duration, state store.EventState) string {
		t.Helper()
		id, fresh, err := s.AddEvent(t.Context(), ci.Event{Name: "push", Repository: repository, Delivery: ci.NewID(), Payload: make([]byte, 1000),
			Received: time.Now().Add(-age)}, state, "")
		if err != nil || !fresh {
			t.Fatal(fresh, err)
		}
		return id
	}
	const day = 24 * time.Hour
	quiet := add("o/quiet", 20*day, store.EventDone)
	pending := add("o/flood", 19*day, store.EventPending)
	var flood []string
	for i := range 8 {
		flood = append(flood, add("o/flood", time.Duration(10-i)*day, store.EventDone))
	}
	r := w.pass(Options{})
	if got := names(r, "delivery"); !slices.Equal(got, flood[:2]) {
		t.Errorf("removed %v", got)
	}
	if got := names(r, "payload"); !slices.Equal(got, flood[2:5]) {
		t.Errorf("emptied %v", got)
	}
	for _, id := range []string{quiet, pending, flood[7]} {
		if e, err := s.Event(t.Context(), id); err != nil || len(e.Payload) != 1000 {
			t.Errorf("%s: %d bytes, %v", id, len(e.Payload), err)
		}
	}
	if e, err := s.Event(t.Context(), flood[3]); err != nil || len(e.Payload) != 0 {
		t.Errorf("an emptied delivery: %+v, %v", e, err)
	}
}

func TestRunStopsAndComesBack(t *testing.T) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, "", config.Retention{Age: config.Duration(time.Hour)})
	for range 3 {
		w.run("o/r", 2*time.Hour, 1)
	}
	r := w.pass(Options{AtMost: 2})
	if len(names(r, "run")) != 2 || !r.More {
		t.Errorf("%+v", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := w.k.Pass(ctx, Options{}); err == nil || len(r.Removed) != 0 {
		t.Errorf("a cancelled pass: %+v, %v", r, err)
	}
	done := make(chan struct{})
	ctx, cancel = context.WithCancel(t.Context())
	w.k.Limits.Every = config.Duration(time.Millisecond)
	go func() { w.k.Run(ctx); close(done) }()
	for len(w.runIDs()) > 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
}

func TestJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 1000 {
			if d := jitter(time.Hour); d < 54*time.Minute || d > 66*time.Minute {
				t.Fatal(d)
			}
		}
		(&Keeper{}).Run(t.Context()) // never: returns at once
	})
}

// TestPassGoesOn: what cannot be done is said, and the rest is done; images that
// are being built wait for another pass.
func TestPassGoesOn(t *testing.T) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, "", config.Retention{Age: config.Duration(time.Hour), Actions: config.Duration(24 * time.Hour)})
	w.run("o/r", 2*time.Hour, 1)
	dir := t.TempDir()
	mirror := filepath.Join(dir, "actions", "old", "action.git")
	if err := os.MkdirAll(mirror, 0o700); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(mirror, past, past); err != nil {
		t.Fatal(err)
	}
	w.k.Actions = []string{filepath.Join(dir, "actions"), filepath.Join(dir, "none")}
	w.k.Images = filepath.Join(dir, "file")
	if err := os.WriteFile(w.k.Images, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := w.k.Pass(t.Context(), Options{})
	if err == nil || !strings.Contains(err.Error(), "images") {
		t.Errorf("what could not be done: %v", err)
	}
	if len(names(r, "run")) != 1 || !slices.Equal(names(r, "action"), []string{"old/action"}) {
		t.Errorf("%+v", r)
	}
	w.k.Images = filepath.Join(dir, "images")
	w.pass(Options{})
	lock, err := os.Create(filepath.Join(w.k.Images, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if r := w.pass(Options{Wait: time.Millisecond}); len(r.Notes) != 1 || !strings.Contains(r.Notes[0], errBusy.Error()) {
		t.Errorf("while an image is built: %+v", r)
	}
	got := Kinds([]Item{{Kind: "run", Bytes: 2}, {Kind: "image", Bytes: 1}, {Kind: "run", Bytes: 3}})
	if len(got) != 2 || got[0] != (Kind{"image", 1, 1}) || got[1] != (Kind{"run", 2, 5}) {
		t.Errorf("%v", got)
	}
}
