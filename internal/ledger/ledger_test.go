package ledger_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/ledger"
	"github.com/hearth-ci/hearth/internal/store"
)

// dieIn names the directory in which this program opens a run and is killed.
const dieIn = "HEARTH_TEST_DIE_IN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(dieIn); dir != "" {
		die(dir)
	}
	os.Exit(m.Run())
}

func open(dir string) (*ledger.Ledger, error) {
	s, err := store.Open(context.Background(), filepath.Join(dir, "hearth.db"), store.WithLogs(filepath.Join(dir, "logs")))
	if err != nil {
		return nil, err
	}
	l, err := learn.Open(context.Background(), s, learn.Options{Mode: learn.Advise, Log: slog.New(slog.DiscardHandler)})
	return &ledger.Ledger{Store: s, Learn: l, Dir: filepath.Join(dir, "running"), Log: slog.New(slog.DiscardHandler)}, err
}

func aRun(l *ledger.Ledger, taps ...ci.Sink) (*ledger.Entry, error) {
	return l.Open(context.Background(), ci.Run{ID: ci.NewID(), Event: "push", Repository: "o/r", Workflow: "w", File: "w.yml", Name: "w", Attempt: 1},
		[]ci.Job{{Key: "done", Job: "done", Name: "done"}, {Key: "half", Job: "half", Name: "half"}, {Key: "never", Job: "never", Name: "never"}}, []byte(`{}`),
		taps...)
}

// die drives a run to its middle and is gone, without any clean-up.
func die(dir string) {
	l, err := open(dir)
	if err != nil {
		panic(err)
	}
	e, err := aRun(l)
	if err != nil {
		panic(err)
	}
	e.Begin(3, nil, learn.Change{}, nil)
	e.Emit(ci.Record{Type: ci.RunStarted})
	e.Emit(ci.Record{Type: ci.JobStarted, Job: "done", JobKey: "done"})
	e.Emit(ci.Record{Type: ci.JobFinished, Job: "done", JobKey: "done", Conclusion: ci.Success})
	e.Emit(ci.Record{Type: ci.JobStarted, Job: "half", JobKey: "half"})
	e.Emit(ci.Record{Type: ci.StepStarted, Job: "half", JobKey: "half", Step: 1, Name: "make"})
	fmt.Println(e.Run.ID)
	self, _ := os.FindProcess(os.Getpid())
	self.Kill()
	time.Sleep(time.Minute)
}

func TestRunOfADeadProcessIsEnded(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), dieIn+"="+dir)
	out, err := cmd.Output()
	if err == nil || len(out) != 27 {
		t.Fatalf("%q, %v", out, err)
	}
	id := string(out[:26])
	l, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Store.Close()
	alive, err := aRun(l)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	run, err := l.Store.Run(t.Context(), id)
	if err != nil || run.Status != ci.Completed || run.Conclusion != ci.Failure || !run.Infrastructure {
		t.Errorf("%+v, %v", run, err)
	}
	jobs, err := l.Store.Jobs(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range jobs {
		lost := j.Key != "done"
		if j.Status != ci.Completed || j.Infrastructure != lost || j.Conclusion.Green() == lost {
			t.Errorf("%s: %+v", j.Key, j)
		}
		steps, err := l.Store.Steps(t.Context(), j.ID)
		if err != nil || len(steps) > 0 && steps[0].Status != ci.Completed {
			t.Errorf("%s: %+v, %v", j.Key, steps, err)
		}
	}
	// The run of a process that lives is left alone.
	if run, err := l.Store.Run(t.Context(), alive.Run.ID); err != nil || run.Status == ci.Completed {
		t.Errorf("a run under way: %+v, %v", run, err)
	}
	if err := alive.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(l.Dir); len(left) > 0 {
		t.Errorf("locks are left: %v", left)
	}
}

// Whatever a sealed entry is still told, the run stays as it was for the process
// that takes it up.
func TestSealedEntrySaysNothing(t *testing.T) {
	l, err := open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Store.Close()
	seen := 0
	e, err := aRun(l, ci.SinkFunc(func(ci.Record) { seen++ }))
	if err != nil {
		t.Fatal(err)
	}
	e.Emit(ci.Record{Type: ci.RunStarted})
	e.Seal()
	e.Emit(ci.Record{Type: ci.JobStarted, Job: "half", JobKey: "half"})
	e.ForAttempt("half", 1).Emit(ci.Record{Type: ci.JobFinished, Job: "half", JobKey: "half", Conclusion: ci.Success})
	e.Emit(ci.Record{Type: ci.RunFinished, Conclusion: ci.Success})
	if err := e.SetPlan("changed"); err != nil {
		t.Error(err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	run, err := l.Store.Run(t.Context(), e.Run.ID)
	text, perr := l.Store.Plan(t.Context(), e.Run.ID)
	if err != nil || perr != nil || run.Status != ci.InProgress || seen != 1 || string(text) != "{}" {
		t.Errorf("%+v, %d records seen, plan %s, %v, %v", run, seen, text, err, perr)
	}
}
