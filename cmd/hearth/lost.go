package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/store"
)

// A process that drives a run holds a lock on a file of the run's name. The
// kernel lets go of it when the process dies, however it dies; whoever opens the
// record next and gets the lock of a run that has not ended knows that the run
// never will, and says so in its place.

func runningDir(dirs config.Dirs) string { return filepath.Join(dirs.State, "running") }

// holdRun marks a run as driven by this process until release is called.
func holdRun(dirs config.Dirs, runID string) (release func(), err error) {
	dir := runningDir(dirs)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("marking run %s as under way: %w", runID, err)
	}
	path := filepath.Join(dir, runID)
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err == nil {
			err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("marking run %s as under way: %w", runID, err)
		}
		// Between opening and locking somebody may have taken it for a dead
		// process's and removed it.
		mine, err1 := f.Stat()
		there, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, there) {
			return func() { os.Remove(path); f.Close() }, nil
		}
		f.Close()
	}
}

// concludeLost ends on record the runs whose process is gone: lost, which is
// neither the workflow's failure nor ever green.
func concludeLost(ctx context.Context, s *store.Store, dirs config.Dirs) error {
	entries, err := os.ReadDir(runningDir(dirs))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for runs that were lost: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if ci.ValidID(e.Name()) {
			errs = append(errs, concludeIfLost(ctx, s, filepath.Join(runningDir(dirs), e.Name()), e.Name()))
		}
	}
	return errors.Join(errs...)
}

func concludeIfLost(ctx context.Context, s *store.Store, path, runID string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it has just ended
	}
	if err != nil {
		return fmt.Errorf("looking for runs that were lost: %w", err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil // its process lives
	}
	run, err := s.Run(ctx, runID)
	switch {
	case errors.Is(err, store.ErrNotFound): // it died before the run was on record
	case err != nil:
		return err
	case run.Status != ci.Completed:
		if err := concludeAsLost(ctx, s, run); err != nil {
			return fmt.Errorf("run %s was lost: %w", runID, err)
		}
	}
	return os.Remove(path)
}

func concludeAsLost(ctx context.Context, s *store.Store, run ci.Run) error {
	const reason = "lost: hearth was killed while it ran"
	// The last sign of life is the best that is known of when it ended.
	last := run.Created
	for after := int64(0); ; {
		records, err := s.RunRecords(ctx, run.ID, after, 1000)
		if err != nil {
			return err
		}
		if len(records) == 0 {
			break
		}
		for _, r := range records {
			after, last = r.Seq, r.Time
		}
	}
	since := func(t time.Time) *int64 {
		if t.IsZero() {
			return new(int64(0))
		}
		return new(max(0, last.Sub(t).Milliseconds()))
	}
	jobs, err := s.Jobs(ctx, run.ID)
	if err != nil {
		return err
	}
	rec, err := s.Recorder(ctx, run.ID)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.Status == ci.Completed {
			continue
		}
		base := ci.Record{Time: last, Run: run.ID, Job: j.Job.Job, JobKey: j.Key, Attempt: j.Attempt, Conclusion: ci.Failure, Infrastructure: true, Reason: reason}
		if j.Attempt < 2 {
			base.Attempt = 0
		}
		steps, err := s.Steps(ctx, j.ID)
		if err != nil {
			return errors.Join(err, rec.Close())
		}
		for _, st := range steps {
			if st.Status != ci.InProgress {
				continue
			}
			r := base
			r.Type, r.Step, r.StepID, r.Name, r.Outcome, r.ExitCode, r.DurationMS = ci.StepFinished, st.Number, st.StepID, st.Name, ci.Failure, new(0), since(st.Started)
			rec.Emit(r)
		}
		r := base
		r.Type, r.Name, r.DurationMS = ci.JobFinished, j.Name, since(j.Started)
		rec.Emit(r)
	}
	rec.Emit(ci.Record{Type: ci.RunFinished, Time: last, Run: run.ID, Conclusion: ci.Failure, Infrastructure: true, Reason: reason, DurationMS: since(run.Started)})
	return rec.Close()
}
