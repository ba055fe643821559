package plan

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// Version is the schema of a serialised [Run]. Within a version fields are only
// added.
const Version = 1

// The limits, GitHub's where it states one.
const (
	// MaxMatrix is the most jobs that one matrix may make.
	MaxMatrix = 256
	// MaxDepth is the most calls of reusable workflows inside each other.
	MaxDepth = 10
	// MaxFiles is the most different files that one run may call.
	MaxFiles = 50
	// MaxJobs is the most jobs of one run. Nested matrices multiply: this bounds
	// what a small file can make us hold.
	MaxJobs = 10_000
)

// The defaults of a job, in minutes.
const (
	DefaultTimeoutMinutes       = 360
	DefaultCancelTimeoutMinutes = 5
)

// Request is what [Build] plans.
type Request struct {
	// Workflow is the file to plan, read without errors.
	Workflow *workflow.Workflow
	// Event is what happened. It may be nil; then the run has no event's name.
	Event *workflow.Happening
	// GitHub is the github context (an object). Its token is dropped.
	GitHub expr.Value
	// Vars is the vars context (an object), or null.
	Vars expr.Value
	// Inputs is the inputs context (an object of typed values) for
	// workflow_dispatch, or null.
	Inputs expr.Value
	// Load fetches a reusable workflow that a file calls, unless workflow.Link has
	// put it into Called already. uses is the text after `uses:`; from is the
	// calling file. An error is a diagnostic at the call. Nil when nothing is
	// called or everything is linked.
	Load func(uses string, from *workflow.Workflow) (*workflow.Workflow, error)
	// DefaultPermissions is what a token may do where neither job nor workflow
	// says: "read" or "write" (also when empty), the repository's setting.
	DefaultPermissions string
	// ReadOnly lowers every token to reading, as for pull requests from forks.
	ReadOnly bool
}

// Unsupported is the rule of a fault that is none of the author's: what a job asks
// for is not here, and it would run elsewhere. See [Job.Refused].
const Unsupported = "unsupported"

// Run is a planned run.
type Run struct {
	Version  int    `json:"version"`
	Workflow string `json:"workflow"` // the workflow's name, or its file where it has none
	File     string `json:"file"`
	Name     string `json:"name"` // run-name, evaluated
	Event    string `json:"event,omitempty"`
	Action   string `json:"action,omitempty"` // activity type
	Ref      string `json:"ref,omitempty"`
	SHA      string `json:"sha,omitempty"`

	// GitHub and Vars are contexts that all jobs share. GitHub has no token.
	GitHub expr.Value `json:"github"`
	Vars   expr.Value `json:"vars"`

	// Concurrency is the whole run's group, or nil.
	Concurrency *Group `json:"concurrency,omitempty"`

	// Locked are the files whose actions are locked to commits.
	Locked workflow.Locks `json:"locked,omitempty"`

	Files []*File `json:"files"`
	Calls []*Call `json:"calls"`
	Jobs  []*Job  `json:"jobs"` // callers before what they call; otherwise as written

	// ReadOnly lowers every token to reading.
	ReadOnly bool `json:"read_only,omitempty"`
	// Trust is a word of whoever planned the run about who is behind it; it is only
	// kept here.
	Trust string `json:"trust,omitempty"`
	// MaxMinutes is the most that a job's timeout may be, or 0: see Limit.
	MaxMinutes float64 `json:"max_minutes,omitempty"`
	// Only keeps, of every matrix having these keys, the cells with these values.
	Only []Cell `json:"only,omitempty"`
}

// File is one workflow file of a run.
type File struct {
	Workflow *workflow.Workflow `json:"workflow"` // without Called
	// Called says which file (index into Run.Files) a `uses` of this file means.
	Called map[string]int `json:"called,omitempty"`
}

// Call is one instance of a file: the run itself, or what one calling job runs.
type Call struct {
	File   int    `json:"file"`             // index into Run.Files
	Caller string `json:"caller,omitempty"` // key of the calling job; "" in Calls[0]
	Parent int    `json:"parent"`           // index into Run.Calls; Calls[0] is its own
	Level  int    `json:"level"`            // 1 for Calls[0]

	// Inputs is the inputs context. The inputs in Waiting depend on the caller's
	// needs and are null until it starts. Pending says that which inputs wait is
	// not even known.
	Inputs  expr.Value `json:"inputs"`
	Waiting []string   `json:"waiting,omitempty"`
	Pending bool       `json:"pending,omitempty"`
	// Needs is the calling job's needs context, known since it started.
	Needs expr.Value `json:"needs"`
	// Permissions is what a token inside may do where its file does not say, and,
	// but for Calls[0], the most that it may do.
	Permissions Permissions `json:"permissions"`
	// IDToken lets a job inside ask for id-token although Permissions lacks it: no
	// file on the way restricts the token.
	IDToken bool `json:"id_token,omitempty"`
	// CacheMode is the most that jobs inside may do with caches, if somebody on the way
	// has said it.
	CacheMode string `json:"cache_mode,omitempty"`
	// Concurrency is the called file's own group, known since its caller started.
	Concurrency *Group `json:"concurrency,omitempty"`

	caller *Job // the job named by Caller
}

// waits reports whether reading inputs at this path has to wait.
func (c *Call) waits(path []string) bool {
	if c.Pending || len(c.Waiting) == 0 {
		return c.Pending
	}
	return len(path) == 0 || path[0] == "*" ||
		slices.ContainsFunc(c.Waiting, func(name string) bool { return expr.EqualFold(name, path[0]) })
}

// Group is a concurrency group. Names compare without regard to case.
type Group struct {
	Name             string `json:"name"`
	CancelInProgress bool   `json:"cancel_in_progress,omitempty"`
	// Queue is "single" (a newcomer replaces the one waiting) or "max" (all wait).
	Queue string `json:"queue"`
}

// Environment is a deployment environment by name. Its url is a template that
// the engine evaluates after the steps: Job.Definition.Environment.
type Environment struct {
	Name string `json:"name"`
	// NoDeployment is set by `deployment: false`: secrets and rules of the
	// environment apply, but no deployment is recorded.
	NoDeployment bool `json:"no_deployment,omitempty"`
}

// Job is one planned job: one cell of a matrix where there is one. A job with
// Opens > 0 calls a workflow and runs nothing itself.
//
// The fields of a Job change only while its [State] expands or starts it; after
// its Start action they stay.
type Job struct {
	// Key is unique in the run and stable: "test (1.22, linux)",
	// "deploy (prod) / push".
	Key string `json:"key"`
	ID  string `json:"id"` // id in its file
	// Name is what GitHub shows.
	Name string `json:"name"`
	// Call is the instance it belongs to (index into Run.Calls); CallPath the keys
	// of the calling jobs, outermost first.
	Call     int      `json:"call"`
	CallPath []string `json:"call_path,omitempty"`
	// Opens is the instance that this job runs (index into Run.Calls), or 0.
	Opens int `json:"opens,omitempty"`

	// Matrix is the matrix context: null without one.
	Matrix      expr.Value `json:"matrix"`
	MatrixIndex int        `json:"matrix_index"`
	MatrixTotal int        `json:"matrix_total"` // 1 without a matrix
	FailFast    bool       `json:"fail_fast"`
	MaxParallel int        `json:"max_parallel"` // never 0: MatrixTotal when not given

	Needs []string `json:"needs,omitempty"` // job ids of the same file

	// Labels and RunnerGroup are what runs-on asks for; once it is known which machine
	// takes the job, Labels are those that it is asked for by.
	Labels      []string     `json:"labels,omitempty"`
	RunnerGroup string       `json:"runner_group,omitempty"`
	Environment *Environment `json:"environment,omitempty"`
	Concurrency *Group       `json:"concurrency,omitempty"`
	// Permissions is the job's token scope.
	Permissions Permissions `json:"permissions"`
	// CacheMode is what the job may do with caches: read, write, write-only or none. "" is
	// what is usual for the event: see [UsualCacheMode].
	CacheMode string `json:"cache_mode,omitempty"`

	ContinueOnError      bool    `json:"continue_on_error,omitempty"`
	TimeoutMinutes       float64 `json:"timeout_minutes"`
	CancelTimeoutMinutes float64 `json:"cancel_timeout_minutes"`

	// Deferred marks a placeholder whose matrix is not known yet.
	Deferred bool `json:"deferred,omitempty"`
	// Late names the keys (name, runs-on, environment, …) that are filled in when
	// the job starts.
	Late []string `json:"late,omitempty"`

	// Refused says why the job cannot run here, each with its place: whoever checks
	// the plan writes it down, and whoever drives the run ends the job as NotRun
	// where it would have started.
	Refused []workflow.Diagnostic `json:"refused,omitempty"`

	// Containers says that the job is sure to need a container engine: whoever checks the
	// plan writes it down.
	Containers bool `json:"containers,omitempty"`

	// Remarks are what there is to say of where it runs, when it starts.
	Remarks []string `json:"remarks,omitempty"`

	// Definition is the job as written and Workflow its file: templates, shared by
	// all cells and never to be changed. UnmarshalJSON of Run sets them.
	Definition *workflow.Job      `json:"-"`
	Workflow   *workflow.Workflow `json:"-"`

	// call is Run.Calls[Call]. Through it a started job is read while the lists of
	// its run grow.
	call *Call
}

// IsCall reports whether j calls a reusable workflow.
func (j *Job) IsCall() bool { return j.Definition != nil && j.Definition.Uses != "" }

// Condition is the job's `if` as the author wrote it, or "".
func (j *Job) Condition() string { return j.Definition.IfSource }

// Strategy is the strategy context.
func (j *Job) Strategy() expr.Value {
	m := expr.NewMap()
	m.Set("fail-fast", expr.Bool(j.FailFast))
	m.Set("job-index", expr.Number(float64(j.MatrixIndex)))
	m.Set("job-total", expr.Number(float64(j.MatrixTotal)))
	m.Set("max-parallel", expr.Number(float64(j.MaxParallel)))
	return expr.Object(m)
}

// Job returns the job with the key, or nil.
func (r *Run) Job(key string) *Job {
	for _, j := range r.Jobs {
		if j.Key == key {
			return j
		}
	}
	return nil
}

// Limit sets the most that the jobs' timeouts may be, in minutes: of those that
// are planned, and of those whose timeout becomes known when they start. A job
// that asks for more, or for none (timeout-minutes: 0), has that much. To clean up
// after a cancellation a job then has DefaultCancelTimeoutMinutes at most. The run
// must not have been started.
func (r *Run) Limit(minutes float64) {
	r.MaxMinutes = minutes
	for _, j := range r.Jobs {
		r.limit(j)
	}
}

func (r *Run) limit(j *Job) {
	if r.MaxMinutes <= 0 {
		return
	}
	// Written so that NaN is no way around it.
	if !(j.TimeoutMinutes > 0 && j.TimeoutMinutes <= r.MaxMinutes) {
		j.TimeoutMinutes = r.MaxMinutes
	}
	if !(j.CancelTimeoutMinutes >= 0 && j.CancelTimeoutMinutes <= DefaultCancelTimeoutMinutes) {
		j.CancelTimeoutMinutes = DefaultCancelTimeoutMinutes
	}
}

// Refusal says in a line why j cannot run here, and where and what to do: those of the
// first of its faults, and the others' messages. missing is that all it asks for is
// what is not here; otherwise somebody has to mend it, and it has failed.
func (j *Job) Refusal() (first workflow.Diagnostic, reason string, missing bool) {
	missing = true
	var all []string
	for _, d := range j.Refused {
		missing = missing && d.Rule == Unsupported
		if !slices.Contains(all, d.Message) {
			all = append(all, d.Message)
		}
	}
	return j.Refused[0], strings.Join(all, "; "), missing
}

// Knows reports whether what a context holds under a path of keys is known of j
// before the run. It speaks of the contexts that [Run.Contexts] has.
func (r *Run) Knows(j *Job, context string, path []string) bool {
	switch fold(context) {
	case "github", "vars":
		return true
	case "inputs":
		return !j.call.waits(path)
	case "matrix", "strategy":
		return !j.Deferred
	}
	return false
}

// Runnable reports whether a job of r can run here, unless all that there is was
// left out for another reason than that it cannot.
func (r *Run) Runnable() bool {
	refused := false
	outlook := r.Forecast()
	for _, j := range r.Jobs {
		switch {
		case j.IsCall() || outlook[j.Key].Will == Skips:
		case len(j.Refused) == 0:
			return true
		default:
			refused = true
		}
	}
	return !refused
}

// Refused says why jobs of r cannot run here, each fault once.
func (r *Run) Refused() (ds []workflow.Diagnostic) {
	seen := map[string]bool{}
	for _, j := range r.Jobs {
		for _, d := range j.Refused {
			if !seen[d.String()] {
				seen[d.String()] = true
				ds = append(ds, d)
			}
		}
	}
	return ds
}

// Inputs is the inputs context of j.
func (r *Run) Inputs(j *Job) expr.Value { return j.call.Inputs }

// Contexts returns the contexts that a job's keys are evaluated with: github,
// vars, inputs, matrix, strategy and needs (see [Action].Needs). The engine adds
// its own (env, job, runner, secrets, steps). The map is the caller's.
func (r *Run) Contexts(j *Job, needs expr.Value) *expr.Map {
	m := r.contexts(j.call)
	m.Set("needs", orObject(needs))
	m.Set("matrix", j.Matrix)
	m.Set("strategy", j.Strategy())
	return m
}

// contexts returns what is known in an instance before any of its jobs.
func (r *Run) contexts(c *Call) *expr.Map {
	m := expr.NewMap()
	m.Set("github", orObject(r.GitHub))
	m.Set("vars", orObject(r.Vars))
	m.Set("inputs", orObject(c.Inputs))
	return m
}

func orObject(v expr.Value) expr.Value {
	if v.Kind() == expr.KindNull {
		return expr.Object(expr.NewMap())
	}
	return v
}

// UnmarshalJSON reads a run and links its jobs to their definitions. What cannot
// be linked is an error, so that a decoded Run is whole.
func (r *Run) UnmarshalJSON(data []byte) error {
	type plain Run
	var p plain
	if err := json.Unmarshal(data, &p); err != nil {
		return fmt.Errorf("plan: read a run: %w", err)
	}
	if p.Version != Version {
		return fmt.Errorf("plan: the run was planned by another version (schema %d, this is %d): plan it again", p.Version, Version)
	}
	out := Run(p)
	if err := out.link(); err != nil {
		return fmt.Errorf("plan: read a run: %w", err)
	}
	*r = out
	return nil
}

// link checks every index and sets Definition and Workflow of the jobs.
func (r *Run) link() error {
	if len(r.Files) == 0 || len(r.Calls) == 0 {
		return fmt.Errorf("it has no file or no call")
	}
	for i, f := range r.Files {
		if f == nil || f.Workflow == nil {
			return fmt.Errorf("file %d is missing", i)
		}
		for uses, n := range f.Called {
			if n < 0 || n >= len(r.Files) {
				return fmt.Errorf("file %d calls %q, which is missing", i, uses)
			}
		}
	}
	for i, c := range r.Calls {
		// A call's parent comes before it: this also excludes circles.
		if c == nil || c.File < 0 || c.File >= len(r.Files) || c.Parent < 0 || c.Parent > i || (i > 0 && c.Parent == i) {
			return fmt.Errorf("call %d does not fit", i)
		}
	}
	keys := make(map[string]*Job, len(r.Jobs))
	for i, j := range r.Jobs {
		if j == nil || j.Call < 0 || j.Call >= len(r.Calls) || j.Opens < 0 || j.Opens >= len(r.Calls) {
			return fmt.Errorf("job %d does not fit", i)
		}
		if keys[j.Key] != nil {
			return fmt.Errorf("two jobs have the key %q", j.Key)
		}
		keys[j.Key] = j
		j.call = r.Calls[j.Call]
		j.Workflow = r.Files[j.call.File].Workflow
		j.Definition = j.Workflow.Job(j.ID)
		if j.Definition == nil {
			return fmt.Errorf("%s has no job %q", j.Workflow.File, j.ID)
		}
	}
	for i, c := range r.Calls[1:] {
		j := keys[c.Caller]
		if j == nil || j.Call != c.Parent || j.Opens != i+1 || c.Level != r.Calls[c.Parent].Level+1 || c.Level > MaxDepth+1 {
			return fmt.Errorf("call %d is made by a job %q that is missing or does not fit", i+1, c.Caller)
		}
		c.caller = j
	}
	return nil
}

// fold makes ids comparable without regard to case.
func fold(id string) string { return strings.ToLower(id) }
