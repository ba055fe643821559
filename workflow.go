package hearth

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/launch"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// Workflow is what an Executor runs: Setup, then Steps, one after the other, until
// one fails; then Cleanup, all of it, whatever happened.
type Workflow struct {
	Name    string
	Setup   []Step // before the steps: install, configure
	Steps   []Step
	Cleanup []Step // always run, also after a failure, a timeout and a cancellation
	// Env is every step's environment, under the steps' own.
	Env map[string]string
	// CachePaths are directories of the machine, absolute or below the runner's
	// home, that the next run of the same workflow of the same repository gets
	// back. They are kept when the workflow has succeeded.
	CachePaths []string
	// Timeout ends setup and steps; 0 is an hour. Cleanup has five minutes more.
	Timeout time.Duration
}

// Step is a command of a workflow.
type Step struct {
	Name string // "" is the first line of Run
	Run  string // a script for bash, which ends at the first command that fails
	Env  map[string]string
	// Dir is the working directory; "" is the workspace.
	Dir string
	// Timeout ends the step, which has then failed; 0 is the workflow's.
	Timeout time.Duration
	// ContinueOnError lets the workflow go on, and succeed, when the step fails.
	ContinueOnError bool
	// Snapshot keeps the machine as it was before the step, and puts it back, memory,
	// processes and files, when the step fails: with ContinueOnError, what the step
	// left half-done does not disturb those that follow.
	Snapshot bool
}

// Context is what a workflow runs for.
type Context struct {
	Repository string // owner/name: what is learned is learned of it
	Event      string // push, pull_request, …; "" is "manual"
	Ref        string // refs/heads/main
	SHA        string // of the commit
	Actor      string
	Fork       bool // what runs is a stranger's: a pull request of another repository
	// Vars are environment variables of every step, under the workflow's Env.
	Vars map[string]string
	// Secrets are, too. Their values become *** in all output, and reach neither
	// record nor errors.
	Secrets map[string]string
	// Dir is a directory of this host that is copied into the workspace.
	Dir string
}

// Conclusion is how something ended.
type Conclusion = ci.Conclusion

// The conclusions.
const (
	Success   = ci.Success
	Failure   = ci.Failure
	Cancelled = ci.Cancelled
	Skipped   = ci.Skipped
	TimedOut  = ci.TimedOut
)

// Prediction is what was expected before something ran.
type Prediction = ci.Prediction

// Explanation is what is known of a failure: whether it was seen before, what
// ended it then.
type Explanation = ci.Explanation

// Phase is a part of a workflow.
type Phase string

// The phases.
const (
	Setup   Phase = "setup"
	Main    Phase = "steps"
	Cleanup Phase = "cleanup"
)

// Result is how a workflow ended.
type Result struct {
	ID         string // of the run; on record under this id
	Session    string
	Conclusion Conclusion // "" if there was an error
	Steps      []StepResult
	Expected   *Prediction // of the whole; nil where nothing is learned
	Cached     bool        // cache paths were restored
	Started    time.Time
	Duration   time.Duration
}

// OK says whether the workflow succeeded.
func (r Result) OK() bool { return r.Conclusion == Success }

// StepResult is how a step ended.
type StepResult struct {
	Name  string
	Phase Phase
	// Outcome is how the step itself ended; Conclusion what counts: with
	// ContinueOnError a Failure becomes a Success.
	Outcome, Conclusion Conclusion
	ExitCode            int
	Output              string // standard output and error as people see them, the last 64 KiB, secrets masked
	Truncated           bool   // Output is not all
	Duration            time.Duration
	RolledBack          bool // the machine was put back to how it was before
	Expected            *Prediction
	Explanation         *Explanation // of a failure
}

// numbered is a step with its place.
type numbered struct {
	Step
	phase  Phase
	number int // from 1
}

// steps lists all steps in order.
func (w Workflow) steps() []numbered {
	var out []numbered
	for _, p := range []struct {
		phase Phase
		steps []Step
	}{{Setup, w.Setup}, {Main, w.Steps}, {Cleanup, w.Cleanup}} {
		for _, s := range p.steps {
			if s.Name == "" {
				s.Name, _, _ = strings.Cut(strings.TrimSpace(s.Run), "\n")
			}
			out = append(out, numbered{s, p.phase, len(out) + 1})
		}
	}
	return out
}

// plan makes the workflow's one job. What is in it is literal: nothing of what
// a program gives is read as an expression.
func (w Workflow) plan(c Context, row ci.Run) *plan.Run {
	always, err := expr.Parse("always()", nil)
	if err != nil {
		panic(err)
	}
	number := func(d time.Duration) *workflow.Value { return &workflow.Value{Kind: workflow.Number, Num: d.Minutes()} }
	job := &workflow.Job{ID: onlyJob, Name: workflow.Text(row.Name)}
	for _, s := range w.steps() {
		def := &workflow.Step{ID: fmt.Sprintf("__run_%d", s.number), Name: workflow.Text(s.Name), Run: workflow.Text(s.Run), Shell: workflow.Text("bash"),
			WorkingDirectory: workflow.Text(s.Dir), Env: &workflow.Value{Kind: workflow.Mapping},
			ContinueOnError: &workflow.Value{Kind: workflow.Bool, Bool: s.ContinueOnError}}
		for _, k := range slices.Sorted(maps.Keys(s.Env)) {
			def.Env.Pairs = append(def.Env.Pairs, workflow.Pair{Key: workflow.Text(k), Value: workflow.Text(s.Env[k])})
		}
		if s.phase == Cleanup {
			def.If = always
			s.Timeout = min(cmp.Or(s.Timeout, cleanupTime), cleanupTime)
		}
		if s.Timeout > 0 {
			def.TimeoutMinutes = number(s.Timeout)
		}
		job.Steps = append(job.Steps, def)
	}
	row.Repository = c.Repository
	run, ds := plan.Build(plan.Request{Workflow: &workflow.Workflow{Name: row.Name, File: row.File, Jobs: []*workflow.Job{job}},
		Event: &workflow.Happening{Event: row.Event, Ref: row.Ref, SHA: row.SHA}, GitHub: launch.GitHubContext(launch.Facts{Run: row})})
	if run == nil {
		panic(fmt.Sprint(ds)) // there is nothing in it that could be wrong
	}
	run.Jobs[0].TimeoutMinutes = 0 // Executor.Run keeps the time, of which the cleanup has its own
	return run
}

// check says what is wrong with a workflow, all of it, before a machine is made.
func (w Workflow) check(c Context) error {
	var bad []string
	add := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	if len(w.Steps) == 0 {
		add("it has no steps: nothing would be run, and that is no success")
	}
	if w.Timeout < 0 {
		add("its timeout is %v", w.Timeout)
	}
	env := func(of string, m map[string]string) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(m[k], 0) {
				add("%s has an unusable environment variable %q", of, k)
			}
		}
	}
	env("the workflow", w.Env)
	env("the context", c.Vars)
	env("the context", c.Secrets)
	for _, s := range w.steps() {
		of := fmt.Sprintf("%s step %q", s.phase, s.Name)
		if strings.TrimSpace(s.Run) == "" {
			add("%s has nothing to run", of)
		}
		if len(s.Run) > maxScript || strings.ContainsRune(s.Run, 0) {
			add("%s has a script of %d bytes: put it into a file of the context's directory", of, len(s.Run))
		}
		if s.Timeout < 0 {
			add("%s has a timeout of %v", of, s.Timeout)
		}
		env(of, s.Env)
	}
	for _, p := range w.CachePaths {
		if a := guest.InHome(p); a == "/" || strings.ContainsRune(p, 0) {
			add("the cache path %q is unusable", p)
		}
	}
	if bad != nil {
		return fmt.Errorf("workflow %q: %s", w.Name, strings.Join(bad, "; "))
	}
	return nil
}

const (
	maxScript = 120 << 10 // bytes: Linux takes 128 KiB for an argument
	workspace = guest.Home + "/work/workspace"
)

// layout is that of our images, but that all workflows have one workspace.
var layout = func() engine.Layout {
	l := engine.DefaultLayout("")
	l.Workspace = workspace
	return l
}()
