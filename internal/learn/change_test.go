package learn

import (
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
)

// What a commit changed is known when a run is predicted and in no record: the
// outcome finds it with the prediction.
func TestChangeIsLearned(t *testing.T) {
	ctx := t.Context()
	s, err := store.Open(ctx, t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := Open(ctx, s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		run, _, err := s.CreateRun(ctx, ci.Run{Repository: "o/r", File: "ci.yml", Workflow: "CI", Ref: "refs/heads/main", SHA: string(rune('a' + i)), Attempt: 1},
			[]ci.Job{{Key: "test", Job: "test"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		info := RunInfo{ID: run.ID, Repository: run.Repository, Workflow: run.File, Branch: run.Ref, Commit: run.SHA, Attempt: 1,
			Change: Change{Known: true, Author: "ada", Parent: "p", Files: 1 + i, Added: -1, Deleted: 10},
			Jobs:   []JobInfo{{Key: "test", Steps: []StepInfo{{Number: 1, Command: "make"}}}}}
		if _, err := l.Before(ctx, info); err != nil {
			t.Fatal(err)
		}
		rec, err := s.Recorder(ctx, run.ID)
		if err != nil {
			t.Fatal(err)
		}
		rec.Emit(ci.Record{Type: ci.RunStarted})
		rec.Emit(ci.Record{Type: ci.JobStarted, Job: "test"})
		rec.Emit(ci.Record{Type: ci.StepStarted, Job: "test", Step: 1, Name: "make", Command: "make"})
		rec.Emit(ci.Record{Type: ci.StepFinished, Job: "test", Step: 1, Outcome: ci.Success, Conclusion: ci.Success, DurationMS: new(int64(10))})
		rec.Emit(ci.Record{Type: ci.JobFinished, Job: "test", Conclusion: ci.Success})
		rec.Emit(ci.Record{Type: ci.RunFinished, Conclusion: ci.Success})
		if err := rec.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Consume(ctx); err != nil {
			t.Fatal(err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.model
	// The step, the job and the run, three times; what is unknown counts for nothing.
	if m.scales[0].n != 9 || m.scales[1].n != 0 || m.scales[2].n != 9 {
		t.Errorf("%+v", m.scales[:3])
	}
	x := Execution{Repo: "o/r", Change: Change{Author: "ada"}}
	keys := keysOf(&x)
	if k := m.kinAt(&keys, keys.author); k == nil || k.n < 2 {
		t.Errorf("of the author is known: %+v", k)
	}
}
