// Package ledger keeps runs on record from their first row to their last word:
// for `hearth run`, for `hearth serve` and for the library, which differ in what
// drives a run and not in how it is written down.
//
// [Ledger.Open] makes the rows of a run, [Entry.Begin] has it predicted and says
// what is expected, whoever drives it emits its records into the [Entry], and
// [Entry.Close] ends the record and says what was learned. What is written has to
// be written even when the run is cancelled: the contexts given here bound
// nothing but the waiting before the first row.
//
// # A process that dies
//
// A run of `hearth run` or of the library ends with the process that drives it.
// That process holds a lock on a file of the run's name in [Ledger.Dir]; the
// kernel lets go of it when the process dies, however it dies. Whoever opens the
// record next and gets the lock of a run that has not ended knows that it never
// will, and says so in its place ([Ledger.Recover]): lost, which is neither the
// workflow's failure nor ever green.
//
// A run of a server outlives its process: the next one takes it up
// ([Ledger.Resume]). Such a ledger has no Dir, and a server that stops seals its
// entries ([Entry.Seal]), so that nothing its dying jobs still say gets on record.
package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
)

// Ledger is where the runs of a process are written down.
type Ledger struct {
	Store *store.Store
	Learn *learn.Learner // nil and off: nothing is predicted
	// Dir holds the locks of the runs that end with their process; "" is none.
	Dir string
	Log *slog.Logger

	lease store.Lease // of the runs' repository
}

// Under returns the ledger of a server that holds a lease: what is written by it is
// refused once the runs' repository has changed hands.
func (l *Ledger) Under(lease store.Lease) *Ledger {
	held := *l
	held.lease = lease
	return &held
}

// Entry is one run that this process drives. It is where the run's records go,
// and safe for concurrent use.
type Entry struct {
	Run      ci.Run         // as stored: numbered
	Forecast learn.Forecast // after Begin

	ledger  *Ledger
	keep    context.Context // outlives the run's cancellation
	rec     *store.Recorder
	release func()
	sealed  atomic.Bool
	lost    atomic.Bool
}

// Open puts a run on record. Without a number it gets the next one; plan, which
// may be nil, is what a server needs to take the run up again. taps get every
// record once it has been numbered.
func (l *Ledger) Open(ctx context.Context, run ci.Run, jobs []ci.Job, plan []byte, taps ...ci.Sink) (*Entry, error) {
	release, err := l.hold(run.ID)
	if err != nil {
		return nil, err
	}
	if run, _, err = l.Store.Under(l.lease).CreateRun(context.WithoutCancel(ctx), run, jobs, plan); err != nil {
		release()
		return nil, err
	}
	e, err := l.Resume(ctx, run, taps...)
	if err != nil {
		release() // whoever recovers the record next ends the run
		return nil, err
	}
	e.release = release
	return e, nil
}

// Resume goes on with the record of a run that has its rows already.
func (l *Ledger) Resume(ctx context.Context, run ci.Run, taps ...ci.Sink) (*Entry, error) {
	e := &Entry{Run: run, ledger: l, keep: context.WithoutCancel(ctx), release: func() {}}
	watch := ci.SinkFunc(func(r ci.Record) {
		if r.Infrastructure {
			e.lost.Store(true)
		}
	})
	var err error
	if e.rec, err = l.Store.Under(l.lease).Recorder(e.keep, run.ID, append([]ci.Sink{watch}, taps...)...); err != nil {
		return nil, err
	}
	return e, nil
}

// Begin says that the run is planned, with so many jobs, and what is expected of
// those that are known, change being what its commit changed. describe makes the records of the forecast; nil is the
// forecast's own.
func (e *Entry) Begin(jobs int, known []learn.JobInfo, change learn.Change, describe func(learn.Forecast) []ci.Record) {
	run := e.Run
	e.Emit(ci.Record{Type: ci.RunPlanned, Workflow: run.Workflow, File: run.File, Name: run.Name, Event: run.Event, SHA: run.SHA, Ref: run.Ref, Jobs: jobs})
	if len(known) == 0 {
		return
	}
	host, _ := os.Hostname()
	var err error
	e.Forecast, err = e.ledger.Learn.Before(e.keep, learn.RunInfo{ID: run.ID, Repository: run.Repository, Workflow: run.File, Branch: run.Ref, Commit: run.SHA,
		Attempt: run.Attempt, Host: host, Change: change, Jobs: known})
	if err != nil {
		e.ledger.Log.Error("no prediction", "run", run.ID, "err", err) // learning is never in the way
	}
	if describe == nil {
		describe = func(f learn.Forecast) []ci.Record { return f.Records(known) }
	}
	for _, r := range describe(e.Forecast) {
		e.Emit(r)
	}
}

// Emit records r as one of the run.
func (e *Entry) Emit(r ci.Record) {
	if !e.sealed.Load() {
		r.Run = e.Run.ID
		e.rec.Emit(r)
	}
}

// ForAttempt returns the sink of one attempt at a job; those of older attempts
// are refused from then on.
func (e *Entry) ForAttempt(jobKey string, attempt int) ci.Sink {
	sink := e.rec.ForAttempt(jobKey, attempt)
	return ci.SinkFunc(func(r ci.Record) {
		if !e.sealed.Load() {
			r.Run = e.Run.ID
			sink.Emit(r)
		}
	})
}

// Flush makes what was emitted last, whatever becomes of this process. The error says
// that nothing is taken any more: what was emitted before may not be on record.
func (e *Entry) Flush() error {
	err := e.rec.Flush()
	if e.sealed.Load() {
		return errors.New("the server stops")
	}
	return err
}

// SetPlan keeps a plan that has changed.
func (e *Entry) SetPlan(plan any) error {
	b, err := json.Marshal(plan)
	if err != nil || e.sealed.Load() {
		return err
	}
	return e.ledger.Store.Under(e.ledger.lease).SetPlan(e.keep, e.Run.ID, b)
}

// Seal ends the entry without another word: the run stays as it is for the
// process that takes it up.
func (e *Entry) Seal() { e.sealed.Store(true) }

// Sealed reports whether the entry was sealed.
func (e *Entry) Sealed() bool { return e.sealed.Load() }

// Lost reports whether the run, or a job or step of it, could not be run.
func (e *Entry) Lost() bool { return e.lost.Load() }

// Close ends the record. The error says that it is not complete.
func (e *Entry) Close() error {
	err := e.rec.Close()
	e.release()
	if err != nil && !e.sealed.Load() {
		return fmt.Errorf("the record of run %s is not complete: %w", e.Run.ID, err)
	}
	return nil
}

// Summary says what the run taught. It is empty where nothing is learned.
func (e *Entry) Summary() learn.Summary {
	s, err := e.ledger.Learn.Summary(e.keep, e.Run.ID)
	if err != nil {
		e.ledger.Log.Error("nothing was learned", "run", e.Run.ID, "err", err)
	}
	return s
}

// hold marks a run as driven by this process until release is called.
func (l *Ledger) hold(runID string) (release func(), err error) {
	if l.Dir == "" {
		return func() {}, nil
	}
	if !ci.ValidID(runID) {
		return nil, fmt.Errorf("marking run %q as under way: it is no run id", runID)
	}
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("marking run %s as under way: %w", runID, err)
	}
	path := filepath.Join(l.Dir, runID)
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

// Recover ends on record the runs whose process is gone.
func (l *Ledger) Recover(ctx context.Context) error {
	entries, err := os.ReadDir(l.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for runs that were lost: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if ci.ValidID(e.Name()) {
			errs = append(errs, l.recover(ctx, e.Name()))
		}
	}
	return errors.Join(errs...)
}

func (l *Ledger) recover(ctx context.Context, runID string) error {
	path := filepath.Join(l.Dir, runID)
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
	run, err := l.Store.Run(ctx, runID)
	switch {
	case errors.Is(err, store.ErrNotFound): // it died before the run was on record
	case err != nil:
		return err
	case run.Status != ci.Completed:
		if err := l.Lose(ctx, run, "lost: hearth was killed while it ran"); err != nil {
			return fmt.Errorf("run %s was lost: %w", runID, err)
		}
	}
	return os.Remove(path)
}

// Lose ends a run that nobody will ever go on with. The last sign of life is the
// best that is known of when it ended.
func (l *Ledger) Lose(ctx context.Context, run ci.Run, reason string) error {
	return l.end(ctx, run, ci.Record{Conclusion: ci.Failure, Infrastructure: true, Reason: reason})
}

// Cancel ends a run now that nobody drives.
func (l *Ledger) Cancel(ctx context.Context, run ci.Run, reason string) error {
	return l.end(ctx, run, ci.Record{Conclusion: ci.Cancelled, Reason: reason, Time: time.Now()})
}

// end ends a run and what has not ended of it as base says, at the last sign of
// life if it says no time.
func (l *Ledger) end(ctx context.Context, run ci.Run, base ci.Record) error {
	last := run.Created
	if err := l.Store.EachRunRecord(ctx, run.ID, func(r ci.Record) { last = r.Time }); err != nil {
		return err
	}
	since := func(t time.Time) *int64 {
		if t.IsZero() {
			return new(int64(0))
		}
		return new(max(0, last.Sub(t).Milliseconds()))
	}
	jobs, err := l.Store.Jobs(ctx, run.ID)
	if err != nil {
		return err
	}
	e, err := l.Resume(ctx, run)
	if err != nil {
		return err
	}
	if base.Time.IsZero() {
		base.Time = last
	}
	last = base.Time
	for _, j := range jobs {
		if j.Status == ci.Completed {
			continue
		}
		steps, err := l.Store.Steps(ctx, j.ID)
		if err != nil {
			return errors.Join(err, e.Close())
		}
		sink := e.ForAttempt(j.Key, j.Attempt)
		r := base
		r.Job, r.JobKey = j.Job.Job, j.Key
		if j.Attempt > 1 {
			r.Attempt = j.Attempt
		}
		for _, st := range steps {
			if st.Status != ci.InProgress {
				continue
			}
			s := r
			s.Type, s.Step, s.StepID, s.Name, s.Outcome, s.ExitCode, s.DurationMS = ci.StepFinished, st.Number, st.StepID, st.Name, base.Conclusion, new(0),
				since(st.Started)
			sink.Emit(s)
		}
		r.Type, r.Name, r.DurationMS = ci.JobFinished, j.Name, since(j.Started)
		sink.Emit(r)
	}
	base.Type, base.DurationMS = ci.RunFinished, since(run.Started)
	e.Emit(base)
	return e.Close()
}
