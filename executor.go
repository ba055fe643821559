package hearth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/archive"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/mask"
)

// Executor runs workflows, each in a session of its own. Its fields are set before
// its first use; it may run several workflows at a time.
type Executor struct {
	// Sessions is where machines come from.
	Sessions *Sessions
	// Host remembers: it records runs, predicts them, learns from them, and keeps
	// their caches. nil remembers nothing.
	Host *Host
	// Output, if set, gets what the steps print as it comes: without control
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

// errTimeout is why a workflow's context ends at its timeout.
var errTimeout = errors.New("the workflow's time is over")

// Run runs a workflow. The error says that something could not be done: the
// workflow is unusable, there is no machine, the machine was lost. That a step
// failed is in the Result. When ctx is done the running step is ended, those after
// it are skipped, the cleanup runs, and the conclusion is Cancelled.
func (e *Executor) Run(ctx context.Context, w Workflow, c Context) (result Result, err error) {
	if err := w.check(c); err != nil {
		return Result{}, err
	}
	secrets, err := mask.NewSet(slices.Collect(maps.Values(c.Secrets))...)
	if err != nil {
		return Result{}, fmt.Errorf("the secrets: %w", err)
	}
	timeout := w.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	r := &running{Executor: e, workflow: w, context: c, secrets: secrets, result: Result{ID: ci.NewID(), Started: time.Now()}}
	if c.Event == "" {
		r.context.Event = "manual"
	}
	if r.memory, err = e.Host.remember(ctx, r); err != nil {
		return Result{}, err
	}
	r.result.Expected = r.memory.expected(0)
	defer func() {
		r.result.Duration = time.Since(r.result.Started)
		err = errors.Join(err, r.memory.finish(r.result.Conclusion, err))
		if err != nil {
			r.result.Conclusion = ""
		}
		result = r.result
	}()
	r.session, err = e.Sessions.open(ctx, timeout+cleanupTime+releaseLimit)
	if err != nil {
		if ctx.Err() != nil { // it was not waited for
			for _, s := range w.steps() {
				r.skip(s)
			}
			r.result.Conclusion, err = Cancelled, nil
		}
		return r.result, err
	}
	r.result.Session = r.session.ID()
	err = r.run(ctx, timeout)
	r.session.Finish(err == nil && r.result.Conclusion == Success)
	return r.result, errors.Join(err, r.session.Release(ctx))
}

// running is one run of a workflow.
type running struct {
	*Executor
	workflow Workflow
	context  Context
	secrets  *mask.Set
	session  *Session
	memory   *memory
	result   Result
	failed   bool
}

func (r *running) run(ctx context.Context, timeout time.Duration) error {
	main, cancel := context.WithTimeoutCause(ctx, timeout, errTimeout)
	defer cancel()
	if err := r.prepare(main); err != nil {
		return r.stopped(main, err)
	}
	var broken error
	for _, s := range r.workflow.steps() {
		// The cleanup has a time of its own, whatever became of the rest.
		stepping := main
		if s.phase == Cleanup {
			var cancel context.CancelFunc
			stepping, cancel = context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
			defer cancel()
		} else if r.failed || broken != nil || main.Err() != nil {
			r.skip(s)
			continue
		}
		if broken != nil && r.session.Err() != nil {
			r.skip(s) // there is no machine to clean up
			continue
		}
		if err := r.step(stepping, s); err != nil {
			broken = errors.Join(broken, fmt.Errorf("%s step %d (%s): %w", s.phase, s.number, r.secrets.String(s.Name), err))
		}
	}
	switch cause := context.Cause(main); {
	case broken != nil:
		return broken
	case errors.Is(cause, errTimeout) && ctx.Err() == nil && r.cut():
		r.result.Conclusion = TimedOut
	case ctx.Err() != nil && r.cut():
		r.result.Conclusion = Cancelled
	case r.failed:
		r.result.Conclusion = Failure
	default:
		r.result.Conclusion = Success
		return r.keepCache(ctx)
	}
	return nil
}

// cut says whether the end of time, or of patience, kept anything from running to
// its own end.
func (r *running) cut() bool {
	return slices.ContainsFunc(r.result.Steps, func(s StepResult) bool {
		return s.Phase != Cleanup && (s.Outcome == Cancelled || s.Outcome == TimedOut || s.Outcome == Skipped)
	})
}

// stopped turns an error before the first step into a conclusion where it is one.
func (r *running) stopped(ctx context.Context, err error) error {
	if ctx.Err() == nil || r.session.Err() != nil {
		return err
	}
	for _, s := range r.workflow.steps() {
		r.skip(s)
	}
	r.result.Conclusion = Cancelled
	if errors.Is(context.Cause(ctx), errTimeout) {
		r.result.Conclusion = TimedOut
	}
	return nil
}

// prepare fills the workspace and restores the cache.
func (r *running) prepare(ctx context.Context) error {
	end, err := r.session.Exec(ctx, Command{Argv: []string{"mkdir", "-p", workspace}, Env: []string{toolPath}, Timeout: time.Minute})
	if err != nil {
		return fmt.Errorf("making the workspace: %w", err)
	}
	if end.Code != 0 {
		return fmt.Errorf("making the workspace: mkdir ended with %d", end.Code)
	}
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
		end, err := r.session.Exec(ctx, Command{Argv: []string{"test", "-e", guestPath(p)}, Env: []string{toolPath}, Timeout: time.Minute})
		if err != nil {
			return fmt.Errorf("saving the cache: %w", err)
		}
		if end.Code == 0 {
			paths = append(paths, strings.TrimPrefix(guestPath(p), "/"))
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

func (r *running) skip(s numbered) {
	r.ended(s, StepResult{Outcome: Skipped, Conclusion: Skipped})
}

// ended takes a step's result down.
func (r *running) ended(s numbered, x StepResult) {
	x.Name, x.Phase, x.Expected = r.secrets.String(s.Name), s.phase, r.memory.expected(s.number)
	r.memory.stepFinished(s, x)
	r.result.Steps = append(r.result.Steps, x)
	if x.Conclusion != Success && x.Conclusion != Skipped {
		r.failed = true
	}
	if r.OnStep != nil {
		r.OnStep(x)
	}
}

const toolPath = "PATH=/opt/hearth/bin:/opt/hearth/node24/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (r *running) env(s numbered) []string {
	c := r.context
	all := map[string]string{"CI": "true", "LANG": "C.UTF-8", "GITHUB_REPOSITORY": c.Repository, "GITHUB_EVENT_NAME": c.Event, "GITHUB_REF": c.Ref,
		"GITHUB_SHA": c.SHA, "GITHUB_ACTOR": c.Actor, "GITHUB_WORKFLOW": r.workflow.Name, "GITHUB_WORKSPACE": workspace, "GITHUB_RUN_ID": r.result.ID}
	for _, m := range []map[string]string{c.Vars, r.workflow.Env, c.Secrets, s.Env} {
		maps.Copy(all, m)
	}
	out := []string{toolPath}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		out = append(out, k+"="+all[k])
	}
	return out
}

// step runs one step. The error says that we could not.
func (r *running) step(ctx context.Context, s numbered) error {
	r.memory.stepStarted(s)
	began := time.Now()
	lost := func(err error) error {
		r.ended(s, StepResult{Outcome: Failure, Conclusion: Failure, ExitCode: -1, Duration: time.Since(began)})
		return err
	}
	point := ""
	if s.Snapshot {
		var err error
		if point, err = r.session.Snapshot(ctx); err != nil {
			return lost(err)
		}
	}
	dir := workspace
	if s.Dir != "" {
		if dir = s.Dir; !path.IsAbs(dir) {
			dir = path.Join(workspace, dir)
		}
	}
	out := &lines{step: s, memory: r.memory}
	tail := &tail{}
	writers := []io.Writer{tail, out}
	if r.Output != nil {
		writers = append(writers, r.Output)
	}
	masked := mask.NewWriter(io.MultiWriter(writers...), r.secrets)
	end, err := r.session.Exec(ctx, Command{Argv: []string{"bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", s.Run},
		Env: r.env(s), Dir: dir, Stdout: masked, Stderr: masked, Timeout: s.Timeout})
	if ferr := masked.Flush(); err == nil {
		err = ferr
	}
	out.flush()
	if err != nil {
		return lost(err)
	}
	x := StepResult{ExitCode: end.Code, Output: tail.String(), Truncated: tail.cut, Duration: time.Since(began)}
	switch {
	case end.Cancelled && errors.Is(context.Cause(ctx), errTimeout):
		x.Outcome = TimedOut
	case end.Cancelled && s.phase == Cleanup:
		x.Outcome = TimedOut
	case end.Cancelled:
		x.Outcome = Cancelled
	case end.TimedOut:
		x.Outcome = TimedOut
	case end.Code != 0:
		x.Outcome = Failure
	default:
		x.Outcome = Success
	}
	x.Conclusion = x.Outcome
	if s.ContinueOnError && (x.Outcome == Failure || x.Outcome == TimedOut) && !end.Cancelled {
		x.Conclusion = Success
	}
	if x.Outcome == Failure {
		x.Explanation = r.memory.explain(ctx, s, end.Code, out.last)
	}
	if point != "" && x.Outcome != Success && !end.Cancelled {
		if err := r.session.Rollback(ctx, point); err != nil {
			return lost(err)
		}
		x.RolledBack = true
	}
	r.ended(s, x)
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
	t.b = append(t.b, p...)
	if len(t.b) > 2*keepOutput {
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
	return strings.ToValidUTF8(string(t.b), "\uFFFD")
}

// lines cuts a step's output into lines for the record.
type lines struct {
	step   numbered
	memory *memory
	part   []byte
	last   []string // for the explanation of a failure
}

const (
	maxLine = 16 << 10
	// What is kept for the explanation of a failure.
	lastLines  = 2000
	lastLength = 2 << 10
)

func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := slices.Index(p, '\n')
		room := maxLine - len(l.part)
		switch {
		case i >= 0 && i <= room:
			l.part = append(l.part, p[:i]...)
			p = p[i+1:]
			l.line()
		case len(p) >= room:
			l.part = append(l.part, p[:room]...)
			p = p[room:]
			l.line()
		default:
			l.part = append(l.part, p...)
			p = nil
		}
	}
	return n, nil
}

func (l *lines) flush() {
	if len(l.part) > 0 {
		l.line()
	}
}

func (l *lines) line() {
	text := strings.ToValidUTF8(strings.TrimSuffix(string(l.part), "\r"), "\uFFFD")
	l.part = l.part[:0]
	if l.last = append(l.last, strings.Clone(strings.ToValidUTF8(text[:min(len(text), lastLength)], ""))); len(l.last) > 2*lastLines {
		l.last = append(l.last[:0:0], l.last[len(l.last)-lastLines:]...)
	}
	l.memory.line(l.step, text)
}
