package hearth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/archive"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/ledger"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/worker"
)

// Executor runs workflows, each in a session of its own. Its fields are set before
// its first use; it may run several workflows at a time.
type Executor struct {
	// Sessions is where machines come from.
	Sessions *Sessions
	// Host remembers: it records runs, predicts them, learns from them, and keeps
	// their caches. nil remembers nothing.
	Host *Host
	// Output, if set, gets what the steps print, a line at a time: without control
	// characters and escape sequences, secrets masked.
	Output io.Writer
	// OnStep, if set, hears of each step's end.
	OnStep func(StepResult)
}

const (
	defaultTimeout = time.Hour
	cleanupTime    = 5 * time.Minute
	keepOutput     = 64 << 10 // bytes of a step's output
)

// Run runs a workflow. The error says that something could not be done: the
// workflow is unusable, there is no machine, the machine was lost. That a step
// failed is in the Result. When ctx is done the running step is ended, those after
// it are skipped, the cleanup runs, and the conclusion is Cancelled.
func (e *Executor) Run(ctx context.Context, w Workflow, c Context) (Result, error) {
	if err := w.check(c); err != nil {
		return Result{}, err
	}
	secrets, err := mask.NewSet(slices.Collect(maps.Values(c.Secrets))...)
	if err != nil {
		return Result{}, fmt.Errorf("the secrets: %w", err)
	}
	c.Event, w.Timeout = cmp.Or(c.Event, "manual"), cmp.Or(w.Timeout, defaultTimeout)
	r := &running{Executor: e, workflow: w, context: c, secrets: secrets, steps: w.steps(), result: Result{ID: ci.NewID(), Started: time.Now()},
		explained: map[int]*Explanation{}, points: map[int]string{}, undone: map[int]bool{}}
	r.plan = w.plan(c, r.row())
	if err := r.remember(ctx); err != nil {
		return Result{}, err
	}
	r.result.Expected = r.expected(0)
	// The cause says why setup and steps are ended; the cleanup is not (BeforeStep).
	run, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	release := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	if ctx.Err() != nil {
		end(context.Cause(ctx))
	}
	timer := time.AfterFunc(w.Timeout, func() {
		end(&engine.TimeoutError{Text: fmt.Sprintf("The workflow has exceeded its maximum execution time of %v", w.Timeout)})
	})
	r.release = func() { release(); timer.Stop() }
	r.late = func() bool { _, late := errors.AsType[*engine.TimeoutError](context.Cause(run)); return late }
	defer r.release()
	conclusion, err := r.run(run)
	if r.session != nil {
		if err == nil && conclusion == Success {
			err = r.keepCache(ctx)
		}
		r.session.Finish(err == nil && conclusion == Success)
		err = errors.Join(err, r.session.Release(ctx))
	}
	err = errors.Join(err, r.outputErr)
	r.result.Duration = time.Since(r.result.Started)
	if err = errors.Join(err, r.record(conclusion, err)); err == nil {
		r.result.Conclusion = conclusion
	}
	return r.result, err
}

// running is one run of a workflow: a job of one planned run, what the engine tells
// of it, and what stands around its steps.
type running struct {
	*Executor
	workflow Workflow
	context  Context
	secrets  *mask.Set
	steps    []numbered
	plan     *plan.Run
	session  *Session
	entry    *ledger.Entry // nil remembers nothing
	release  func()        // ends the hold of time and caller on what runs
	learner  engine.Hooks
	told     bool           // job.finished was
	points   map[int]string // snapshots, by step
	undone   map[int]bool   // steps after which the machine was put back
	late     func() bool    // it was ended because its time was over

	// One goroutine at a time tells of steps: no lock.
	result    Result
	out       tail // of the step that runs
	explained map[int]*Explanation
	outputErr error
}

// run runs the job in a session, as long as ctx allows. The error says that we
// could not.
func (r *running) run(ctx context.Context) (Conclusion, error) {
	var err error
	if r.session, err = r.Sessions.open(ctx, r.workflow.Timeout+cleanupTime+releaseLimit); err == nil {
		r.result.Session = r.session.ID()
		err = r.prepare(ctx)
	}
	if err != nil && (ctx.Err() == nil || r.session != nil && r.session.Err() != nil) {
		return "", err
	}
	if err != nil { // nobody waits for it any more
		for i := range r.steps {
			r.tell(ci.Record{Type: ci.StepFinished, Step: i + 1, Name: r.steps[i].Name, Conclusion: Skipped, Outcome: Skipped})
		}
		if r.late() {
			return TimedOut, nil
		}
		return Cancelled, nil
	}
	row, job := r.row(), r.plan.Jobs[0]
	runner := &worker.Runner{RunID: row.ID, Repository: row.Repository, File: row.File, Ref: row.Ref, SHA: row.SHA, Attempt: 1, Sink: r,
		Layout: layout, Log: slog.New(slog.DiscardHandler)}
	if r.entry != nil {
		runner.Learn, runner.Log = r.Host.learner, r.Host.log
	}
	hooks := runner.Hooks(job, r.secrets, func() string {
		if err := r.session.Err(); err != nil {
			return err.Error()
		}
		return ""
	}, func() worker.GuestFiles { return inside{r.session} })
	r.learner = hooks
	res, err := engine.Run(ctx, engine.Job{Run: r.plan, Plan: job, Needs: expr.Null(), RunID: row.ID, Secrets: r.context.Secrets, Env: r.env(),
		Guest: inside{r.session}, Layout: layout, Runner: engine.Runner{Name: "hearth-" + r.session.ID()}, Emit: hooks, Hooks: r, Log: runner.Log, Mask: r.secrets})
	if err == nil {
		hooks.JobEnded(context.WithoutCancel(ctx))
	}
	return res.Conclusion, err
}

// env is what every step has beneath its own.
func (r *running) env() map[string]string {
	all := map[string]string{"LANG": "C.UTF-8", "PATH": guest.ToolPath}
	for _, m := range []map[string]string{r.context.Vars, r.workflow.Env, r.context.Secrets} {
		maps.Copy(all, m)
	}
	return all
}

// BeforeStep keeps the machine as it is before a step that asks for it.
func (r *running) BeforeStep(ctx context.Context, s engine.StepInfo) error {
	own := r.steps[s.Number-1]
	if own.phase == Cleanup {
		r.release()
	}
	if !own.Snapshot {
		return nil
	}
	var err error
	r.points[s.Number], err = r.session.Snapshot(ctx)
	return err
}

// AfterStep has a failure explained, and puts the machine back.
func (r *running) AfterStep(ctx context.Context, s engine.StepInfo, res engine.StepResult) (*engine.Retry, error) {
	again, err := r.learner.AfterStep(ctx, s, res)
	if point := r.points[s.Number]; point != "" && err == nil && !res.Infrastructure && (res.Outcome == Failure || res.Outcome == TimedOut) {
		err = r.session.Rollback(ctx, point)
		r.undone[s.Number] = err == nil
	}
	return again, err
}

// Emit takes what the engine tells: onto the record, and into the result.
func (r *running) Emit(rec ci.Record) {
	if r.entry != nil {
		r.entry.Emit(rec)
	}
	switch rec.Type {
	case ci.LogLine:
		if rec.Step > 0 && rec.Stream != "system" {
			r.line(rec.Text + "\n")
		}
	case ci.PredictionRec:
		r.explained[rec.Step] = rec.Explanation // what was expected was told by the ledger
	case ci.StepFinished:
		r.finished(rec)
	case ci.JobFinished:
		r.told = true
	}
}

func (r *running) line(text string) {
	io.WriteString(&r.out, text)
	if r.Output != nil && r.outputErr == nil {
		_, r.outputErr = io.WriteString(r.Output, text)
	}
}

func (r *running) finished(rec ci.Record) {
	s := r.steps[rec.Step-1]
	x := StepResult{Name: r.secrets.String(s.Name), Phase: s.phase, Outcome: rec.Outcome, Conclusion: rec.Conclusion, Output: r.out.String(),
		Truncated:  r.out.cut,
		RolledBack: r.undone[rec.Step], Expected: r.expected(rec.Step), Explanation: r.explained[rec.Step]}
	r.out = tail{}
	if rec.DurationMS != nil {
		x.Duration = time.Duration(*rec.DurationMS) * time.Millisecond
	}
	if rec.ExitCode != nil {
		x.ExitCode = *rec.ExitCode
	}
	switch {
	case rec.Infrastructure:
		x.ExitCode = -1
	case x.Outcome == Cancelled && r.late():
		x.Outcome, x.Conclusion = TimedOut, TimedOut
	}
	r.result.Steps = append(r.result.Steps, x)
	if r.OnStep != nil {
		r.OnStep(x)
	}
}

// prepare fills the workspace and restores the cache.
func (r *running) prepare(ctx context.Context) error {
	if r.context.Dir != "" {
		if st, err := os.Stat(r.context.Dir); err != nil {
			return fmt.Errorf("the context's directory: %w", err)
		} else if !st.IsDir() {
			return fmt.Errorf("the context's directory: %s is none", r.context.Dir)
		}
		err := stream(func(w io.Writer) error { return archive.Pack(w, r.context.Dir, path.Base(workspace)) },
			func(in io.Reader) error { return r.session.Unpack(ctx, path.Dir(workspace), in) })
		if err != nil {
			return fmt.Errorf("copying %s into the workspace: %w", r.context.Dir, err)
		}
	}
	if len(r.workflow.CachePaths) == 0 || r.Host == nil {
		return nil
	}
	in, err := r.Host.openCache(r.cacheKey())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the cache: %w", err)
	}
	defer in.Close()
	if err := r.session.Unpack(ctx, "/", in); err != nil {
		return fmt.Errorf("restoring the cache: %w", err)
	}
	r.result.Cached = true
	return nil
}

func (r *running) cacheKey() string {
	return strings.Join(append([]string{r.context.Repository, r.workflow.Name}, r.workflow.CachePaths...), "\x00")
}

// keepCache saves the cache paths that exist.
func (r *running) keepCache(ctx context.Context) error {
	if len(r.workflow.CachePaths) == 0 || r.Host == nil {
		return nil
	}
	var paths []string
	for _, p := range r.workflow.CachePaths {
		end, err := r.session.Exec(ctx, Command{Argv: []string{"test", "-e", guest.InHome(p)}, Timeout: time.Minute, NoLearn: true})
		if err != nil {
			return fmt.Errorf("saving the cache: %w", err)
		}
		if end.Code == 0 {
			paths = append(paths, strings.TrimPrefix(guest.InHome(p), "/"))
		}
	}
	if len(paths) == 0 {
		return nil
	}
	if err := r.Host.saveCache(r.cacheKey(), func(w io.Writer) error { return r.session.Pack(ctx, "/", paths, w) }); err != nil {
		return fmt.Errorf("saving the cache: %w", err)
	}
	return nil
}

// stream copies from one end to the other; the first cause is the error.
func stream(from func(io.Writer) error, to func(io.Reader) error) error {
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := from(w)
		w.CloseWithError(err)
		sent <- err
	}()
	err := to(r)
	r.CloseWithError(errors.New("the other end takes no more"))
	if serr := <-sent; serr != nil && (err == nil || errors.Is(err, serr)) {
		err = serr
	}
	return err
}

// tail keeps the end of a step's output.
type tail struct {
	b   []byte
	cut bool
}

func (t *tail) Write(p []byte) (int, error) {
	if t.b = append(t.b, p...); len(t.b) > 2*keepOutput {
		t.trim()
	}
	return len(p), nil
}

func (t *tail) trim() {
	if len(t.b) <= keepOutput {
		return
	}
	t.cut = true
	t.b = append(t.b[:0], t.b[len(t.b)-keepOutput:]...)
	for len(t.b) > 0 && !utf8.RuneStart(t.b[0]) {
		t.b = t.b[1:]
	}
}

func (t *tail) String() string {
	t.trim()
	return string(t.b)
}
