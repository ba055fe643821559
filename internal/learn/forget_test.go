package learn_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
)

// says lists the files below a directory in which a text stands.
func says(t *testing.T, dir, text string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if n := bytes.Count(bytes.ToLower(b), bytes.ToLower([]byte(text))); n > 0 {
			out = append(out, fmt.Sprintf("%s (%d times)", filepath.Base(p), n))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestForget(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(t.Context(), filepath.Join(dir, "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	opt := learn.Options{Mode: learn.Advise}
	mine, theirs := newWorld(t, s, opt), newWorld(t, s, opt)
	mine.repo, theirs.repo = "acme/quarry", "other/project"
	mine.steps = []string{"actions/checkout@v4", "make gravel", "deploy-to basalt-7 --now"}
	past := func(w *world, line string) {
		for i := range 6 {
			w.run(fmt.Sprintf("%s-sha%d", filepath.Base(w.repo), i), "refs/heads/"+filepath.Base(w.repo), 1, i%2 == 0, line)
			w.now = w.now.Add(time.Hour)
		}
		tested(t, w.l, w.repo, "run", "tree", false, map[string]string{filepath.Base(w.repo) + ".TestPebble": "F"})
		job := learn.Execution{Unit: "job", Repo: w.repo, Job: "imported", At: 1}
		if _, err := w.l.Import(t.Context(), []learn.Imported{{Key: "k " + w.repo, End: 5, Execution: job}}); err != nil {
			t.Fatal(err)
		}
	}
	past(mine, "error: the basalt-7 quarry is flooded")
	past(theirs, "error: no such file npm-debug")
	count := func(w *world) (out learn.Counts) {
		list, err := w.l.Count(t.Context(), w.repo)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) > 1 {
			return list[1]
		}
		return out
	}
	for _, text := range []string{"basalt-7", "quarry", "gravel", "npm-debug"} {
		if len(says(t, dir, text)) == 0 {
			t.Errorf("nothing says %s to begin with", text)
		}
	}

	// Another process that has it in memory: the second world's learner.
	before, others := count(mine), count(theirs)
	r, err := mine.l.Forget(t.Context(), mine.repo, learn.ForgetOptions{Text: "basalt-7", DryRun: true})
	if err != nil || r.Nodes == 0 || r.Runs != 6 || r.Signatures == 0 {
		t.Errorf("dry: %+v, %v", r, err)
	}
	if now := count(mine); now != before {
		t.Errorf("a dry run changed %+v to %+v", before, now)
	}
	r, err = mine.l.Forget(t.Context(), mine.repo, learn.ForgetOptions{Text: "basalt-7"})
	if err != nil || r.Nodes == 0 || r.Counters == 0 || r.Runs != 6 || r.Signatures == 0 || r.Failures == 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if left := says(t, dir, "basalt-7"); len(left) > 0 {
		t.Errorf("basalt-7 stands in %v", left)
	}
	if f, err := mine.l.PredictCommand(t.Context(), mine.repo, "make gravel"); err != nil || f.Seen != 6 {
		t.Errorf("what was not to be forgotten: %+v, %v", f, err)
	}
	if f, err := mine.l.PredictCommand(t.Context(), mine.repo, "deploy-to basalt-7 --now"); err != nil || f.Seen != 0 {
		t.Errorf("what was: %+v, %v", f, err)
	}

	// A run that goes on keeps its repository.
	run, _, err := s.CreateRun(t.Context(), ci.Run{Repository: mine.repo}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mine.l.Forget(t.Context(), mine.repo, learn.ForgetOptions{}); !errors.Is(err, learn.ErrRunsGoOn) {
		t.Errorf("with a run under way: %v", err)
	}
	rec, err := s.Recorder(t.Context(), run.ID)
	if err != nil {
		t.Fatal(err)
	}
	rec.Emit(ci.Record{Type: ci.RunFinished, Run: run.ID, Conclusion: ci.Cancelled})
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := mine.l.Forget(t.Context(), mine.repo, learn.ForgetOptions{}); err != nil {
		t.Fatal(err)
	}
	// The other process goes on, and what it still had in memory does not come back.
	theirs.run("project-sha9", "refs/heads/project", 1, false, "fine")
	for _, text := range []string{"quarry", "gravel", "pebble"} {
		left := says(t, dir, text)
		if text == "pebble" { // the other's test is called so too
			left = says(t, dir, "quarry.TestPebble")
		}
		if len(left) > 0 {
			t.Errorf("%s stands in %v", text, left)
		}
	}
	if now := count(mine); now != (learn.Counts{}) {
		t.Errorf("%+v", now)
	}
	now := count(theirs)
	if now.Failures != others.Failures || now.Successes != others.Successes+int64(len(theirs.steps)) || now.FailurePatterns != others.FailurePatterns {
		t.Errorf("the other repository had %+v and has %+v", others, now)
	}
	if _, err := mine.l.Forget(t.Context(), mine.repo, learn.ForgetOptions{Text: "ab"}); err == nil {
		t.Error("a text that stands everywhere was taken")
	}
}
