package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/oidc"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/registry"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// Runner runs jobs of one run, each in a machine of its own. It is an
// [conduct.Executor].
type Runner struct {
	Host machine.Host
	// Image chooses what a job's machine boots from, by name or id; nil is the host's
	// default.
	Image func(labels []string) (string, error)

	RunID      string
	Repository string // owner/name
	File       string // path of the workflow
	Ref, SHA   string
	Attempt    int

	Sink    ci.Sink
	Secrets map[string]string // of the run; reusable workflows see what is handed to them
	Env     map[string]string // beneath the workflow's own
	// EnvironmentSecrets and EnvironmentVars are those of deployment
	// environments, by their lower-case names; they come over the run's own.
	EnvironmentSecrets, EnvironmentVars map[string]map[string]string
	Token                               func(ctx context.Context, job *plan.Job) (string, error) // github.token; nil is none
	Source                              engine.Source
	Actions                             *action.Resolver
	Network                             network.Policy
	// Package says which package has a program, "" for none, if that is known; nil
	// knows nothing.
	Package func(program string) (pkg string, known bool)
	// TakesImage says, for people, how an image called ci becomes that of all jobs; "" is
	// by a flag of hearth run.
	TakesImage string
	Learn      Memory // nil and off: nothing is learned or said
	// Commits lists the commits that the run's has since another one, for what may be to
	// blame for a failure; nil knows none. See [learn.Failure].
	Commits func(ctx context.Context, since string) ([]learn.Commit, error)
	// Tests are further patterns of the test reports that jobs leave behind, as filters
	// of paths have them.
	Tests []string
	// Tree names the files that a job of the run checks out, once it has, if anybody
	// knows: what passed and failed on one Tree did so without a change.
	Tree func() string

	// Results keeps artifacts and caches; nil is no such service. CacheMode is the
	// most that jobs may do with caches.
	Results   *results.Store
	CacheMode results.Mode
	// Uploads reads what jobs have uploaded; nil is Results.
	Uploads Uploads
	// Services opens what a job's machine finds beside it; nil is what is here: [Runner.Serve].
	Services func(run *plan.Run, job *plan.Job, until time.Time) (*Served, error)
	// Given is what the job is handed, if somebody has looked it up: then Secrets,
	// EnvironmentSecrets, EnvironmentVars and Token say nothing. See [Runner.Give].
	Given *Given

	// Registry is what machines pull container images from; nil is none but the world's.
	Registry *registry.Cache

	// OIDC makes the tokens of jobs that may have them; nil is nobody. OIDCSubject
	// are the claims that their subject is made of; none is GitHub's own form.
	OIDC        *oidc.Issuer
	OIDCSubject []string

	// Points says before which steps the machine is kept as it is, "" is RiskyPoints
	// where the learner acts and else none; Risk is how likely a
	// step of a job is to fail, for [RiskyPoints], nil is not known.
	Points Points
	Risk   func(jobKey string, step int) float64
	// Pause, if set, is asked what is to become of a step that has failed for good,
	// and not by its author's leave; the job waits for the answer, as long as its
	// time allows.
	Pause func(ctx context.Context, p Pause) Answer

	// Keep, if set, is given each of the job's points, while the job goes on, and the
	// machine as the job left it. Then Points is EachPoint where it says nothing.
	Keep func(ctx context.Context, k Kept) error
	// From, if set, is where the job begins.
	From *From

	CPUs, MemoryMiB int           // 0 is the host's default
	Layout          engine.Layout // of the machine; zero is that of our images
	Log             *slog.Logger
}

// Memory is what is known of failures and tests: *learn.Learner is one.
type Memory interface {
	ModeOf(repository string) learn.Mode
	Explain(ctx context.Context, f learn.Failure) (ci.Explanation, error)
	Retry(ctx context.Context, f learn.Failure, e ci.Explanation) learn.Decision
	TestsRan(ctx context.Context, r learn.TestRun) ([]ci.TestNote, error)
}

// Uploads reads what jobs have uploaded: *results.Store does.
type Uploads interface {
	Artifacts(repository, run string) ([]results.Artifact, error)
	OpenArtifact(repository string, a results.Artifact) (*os.File, error)
}

// Mode is what may be learned and done for the run's repository.
func (r *Runner) Mode() learn.Mode {
	if r.Learn == nil {
		return learn.Off
	}
	return r.Learn.ModeOf(r.Repository)
}

// Given is what a job is handed.
type Given struct {
	Run     *plan.Run // with the variables of the job's environment
	Secrets map[string]string
	Token   string // github.token; "" is none
}

// Give looks up what a job is handed. An error of the type [*Denied] is the author's, any
// other its token's.
func (r *Runner) Give(ctx context.Context, run *plan.Run, job *plan.Job) (*Given, error) {
	secrets, err := run.Secrets(job, r.Secrets)
	if err != nil {
		return nil, &Denied{err}
	}
	g := &Given{}
	g.Run, g.Secrets = r.environment(run, job, secrets)
	if r.Token != nil {
		if g.Token, err = r.Token(ctx, job); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// Denied is why a job cannot be handed what it asks for, in words for its author.
type Denied struct{ err error }

func (d *Denied) Error() string { return d.err.Error() }
func (d *Denied) Unwrap() error { return d.err }

// releaseTime bounds how long a machine may take to go.
const releaseTime = 30 * time.Second

// Execute runs one job from the claim of its machine to its release.
func (r *Runner) Execute(ctx context.Context, t conduct.Task) conduct.Outcome {
	// The job's own set is the engine's; what is told about the job from here (its
	// connections, why it could not run) goes through the same one.
	masked := &mask.Set{}
	out := r.execute(ctx, masked, t)
	out.Reason = masked.Field(out.Reason)
	return out
}

func (r *Runner) execute(ctx context.Context, masked *mask.Set, t conduct.Task) conduct.Outcome {
	run, job := t.Run, t.Job
	lost := func(what string, err error) conduct.Outcome {
		if ctx.Err() != nil {
			return conduct.Outcome{Conclusion: ci.Cancelled, Reason: context.Cause(ctx).Error()}
		}
		return conduct.Outcome{Conclusion: ci.Failure, Infrastructure: true, Reason: what + ": " + err.Error()}
	}
	hide := func(secrets map[string]string) error {
		for name, secret := range secrets {
			if err := masked.Add(secret); err != nil {
				return fmt.Errorf("secret %s: %w", name, err)
			}
		}
		return nil
	}
	if err := hide(r.Secrets); err != nil {
		return lost("masking", err)
	}
	given := r.Given
	if given == nil {
		var err error
		given, err = r.Give(ctx, run, job)
		if denied, ok := errors.AsType[*Denied](err); ok {
			return conduct.Outcome{Conclusion: ci.Failure, Reason: denied.Error()}
		}
		if err != nil {
			return lost("the job's token", err)
		}
		run = given.Run
	}
	secrets, token := given.Secrets, given.Token
	if err := hide(secrets); err != nil {
		return lost("masking", err)
	}
	if token != "" {
		if err := hide(map[string]string{"GITHUB_TOKEN": token}); err != nil {
			return lost("masking", err)
		}
	}
	deadline := time.Now().Add(ServiceTime(job))
	serve := r.Services
	if serve == nil {
		serve = func(run *plan.Run, job *plan.Job, until time.Time) (*Served, error) {
			return r.Serve(run, job, until, Ticket{})
		}
	}
	served, err := serve(run, job, deadline)
	if err != nil {
		return lost("artifacts and caches", err)
	}
	services := map[uint16]http.Handler{servicePort: served}
	defer func() { // after the machine is gone
		if err := served.Close(); err != nil {
			r.Log.Error("what a job had uploaded in part is still there: hearth gc removes it", "job", job.Key, "err", err)
		}
	}()
	images, err := r.openRegistry(run)
	if err != nil {
		return lost("container images", err)
	}
	var named engine.Images
	if images != nil {
		named, services[registry.Port] = images, images
		defer images.Close()
	}
	request := machine.Request{
		CPUs: r.CPUs, MemoryMiB: r.MemoryMiB, Labels: job.Labels, Waits: t.Waits, Deadline: deadline,
		Network: network.Config{Policy: r.Network, Record: func(c network.Connection) {
			r.Sink.Emit(masked.Record(r.connection(job, c)))
		}, Services: services, Log: r.Log},
	}
	if r.Image != nil {
		if request.Image, err = r.Image(job.Labels); err != nil {
			return lost("image", err)
		}
	}
	began := time.Now()
	want, need := engine.Containers(job)
	request.Containers = want
	begins := engine.Job{} // where, and what is run there
	if r.From != nil {
		request.From = r.From.Saved
		begins.From, begins.Script, begins.OneStep = r.From.State, r.From.Script, r.From.OneStep
	}
	lease, err := r.Host.Claim(ctx, request)
	switch {
	case !errors.Is(err, machine.ErrNoContainers):
	case need:
		return conduct.Outcome{Conclusion: ci.NotRun, Reason: "the job needs a container engine: " + err.Error()}
	default: // it speaks of one, and may do without
		request.Containers = false
		lease, err = r.Host.Claim(ctx, request)
	}
	if err != nil {
		return lost("no machine", err)
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
		defer cancel()
		if err := lease.Release(stop); err != nil {
			r.Log.Error("machine not released in order", "machine", lease.ID(), "err", err)
		}
		r.Sink.Emit(masked.Record(r.machine(job, lease.Session(), "closed", 0)))
	}()
	s := lease.Session()
	r.Sink.Emit(masked.Record(r.machine(job, s, "restored", time.Since(began))))
	lease.Begin()

	hooks := &hooks{tokenless: token == "", runner: r, job: job, image: s.Image, mask: masked,
		fate:   sync.OnceValue(func() string { return masked.Field(lease.Fate()) }),
		tests:  r.newTests(job, run.ReadOnly, masked, func() GuestFiles { return lease.Client() }),
		points: &points{policy: r.Points, machine: lease}}
	if r.Points == "" && r.Mode() == learn.Act {
		hooks.points.policy = RiskyPoints
	}
	if overlapping(job) {
		hooks.points.policy = NoPoints
	}
	if r.Keep != nil {
		hooks.points.policy = cmp.Or(hooks.points.policy, EachPoint)
		hooks.points.keep = &keep{sink: r.Keep, job: job, began: began, begin: Begin{Run: t.Run, Job: job.Key, Needs: t.Needs, Token: token, Secrets: r.Secrets,
			Env: r.Env, EnvironmentSecrets: r.EnvironmentSecrets, EnvironmentVars: r.EnvironmentVars, Network: r.Network, Labels: job.Labels,
			Repository: r.Repository, File: r.File, Ref: r.Ref, SHA: r.SHA, Attempt: r.Attempt}}
	}
	if r.Risk != nil {
		hooks.points.risk = func(step int) float64 { return r.Risk(job.Key, step) }
	}
	res, err := engine.Run(ctx, engine.Job{
		Run: run, Plan: job, Needs: t.Needs, RunID: r.RunID, Secrets: secrets, Token: token, Env: maps.Clone(r.Env),
		From: begins.From, Script: begins.Script, OneStep: begins.OneStep,
		Guest: current{lease}, Layout: r.Layout, Source: r.Source, Actions: r.Actions, Results: served.Results, IDToken: served.IDToken, Images: named,
		Emit: hooks, Hooks: hooks,
		OnStep: lease.SetStep, Log: r.Log, Mask: masked, Handed: t.Handed,
		Runner: engine.Runner{Name: "hearth-" + lease.ID()},
	})
	if err != nil && lease.Err() != nil {
		r.Log.Warn("the machine was lost", "job", job.Key, "machine", lease.ID(), "err", masked.Field(lease.Err().Error()))
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
	defer cancel()
	if err == nil {
		hooks.JobEnded(end)
	}
	if kerr := hooks.points.end(end, job.Definition.Steps); kerr != nil {
		r.Log.Warn("a job's last point is not kept", "job", job.Key, "err", masked.Field(kerr.Error()))
	}
	reason := hooks.reason(err != nil, res.Reason)
	lease.End(end, res.Conclusion.Green(), reason)
	return conduct.Outcome{Conclusion: res.Conclusion, Outputs: res.Outputs, Reason: reason, Infrastructure: err != nil, Told: hooks.ended()}
}

// Hidden is the set of all secrets that jobs of the run may be given, for what is
// told of the run before they are. One that cannot be masked is not in it, and
// fails the jobs that it is given to.
func (r *Runner) Hidden() *mask.Set {
	set := &mask.Set{}
	for _, secrets := range append(slices.Collect(maps.Values(r.EnvironmentSecrets)), r.Secrets) {
		for name, secret := range secrets {
			if err := set.Add(secret); err != nil && r.Log != nil {
				r.Log.Warn("a secret cannot be masked", "secret", name, "err", err)
			}
		}
	}
	return set
}

// environment adds what a job's deployment environment has. The run given back
// is a copy where it differs: other jobs keep theirs.
func (r *Runner) environment(run *plan.Run, job *plan.Job, secrets map[string]string) (*plan.Run, map[string]string) {
	if job.Environment == nil {
		return run, secrets
	}
	name := strings.ToLower(job.Environment.Name)
	if own := r.EnvironmentSecrets[name]; len(own) > 0 {
		secrets = maps.Clone(secrets)
		if secrets == nil {
			secrets = map[string]string{}
		}
		for k := range secrets {
			for o := range own {
				if strings.EqualFold(k, o) {
					delete(secrets, k)
				}
			}
		}
		maps.Copy(secrets, own)
	}
	if own := r.EnvironmentVars[name]; len(own) > 0 {
		vars := expr.NewMap()
		if m := run.Vars.AsMap(); m != nil {
			vars = m.Clone()
		}
		for k, v := range own {
			vars.Set(k, expr.String(v))
		}
		own := *run
		own.Vars = expr.Object(vars)
		run = &own
	}
	return run, secrets
}

func minutes(m float64) time.Duration {
	return time.Duration(min(m, 1e5) * float64(time.Minute))
}

func (r *Runner) machine(job *plan.Job, s machine.Session, action string, took time.Duration) ci.Record {
	host, _ := os.Hostname()
	return ci.Record{Type: ci.MachineRec, Run: r.RunID, Job: job.ID, JobKey: job.Key, Name: job.Name,
		Machine: &ci.MachineEvent{ID: s.ID, Action: action, Driver: s.Driver, Image: s.Image, Host: host, TookMS: took.Milliseconds()}}
}

// connection tells of a connection. A name that is asked for can hold a secret: it
// is the easiest way to send one.
func (r *Runner) connection(job *plan.Job, c network.Connection) ci.Record {
	rec := ci.Record{Type: ci.ConnectionRec, Run: r.RunID, Job: job.ID, JobKey: job.Key, Reason: c.Reason,
		DurationMS: new(c.Duration.Milliseconds()),
		Connection: &ci.ConnectionEvent{Host: c.Host, Port: int(c.Port), Proto: c.Proto, Refused: c.Refused, BytesOut: c.BytesOut, BytesIn: c.BytesIn}}
	if c.IP.IsValid() {
		rec.Connection.IP = c.IP.String()
	}
	rec.Step = c.Step
	return rec
}

// hooks stands between the engine and the learner for one job: it keeps the
// tail of the running steps' output for the explanation of a failure, says what to do
// about one that comes from what the machine lacks, and asks whether a failed step
// should be tried again.
type hooks struct {
	runner *Runner
	job    *plan.Job
	mask   *mask.Set // nil masks nothing
	// tokenless says that the job has no token.
	tokenless bool

	tests *tests // nil looks for none

	// fate says how the machine ended, "" if it lives; nil is not known. It may wait
	// a moment for the end, so it is asked once for all that tells of it.
	fate func() string

	image  string  // that the machine booted from
	points *points // of the machine; nil where it is somebody else's

	mu    sync.Mutex
	lines map[int][]string
	end   bool // job.finished went by
}

// reason is why something could not be run: what the engine saw of it, which is
// a connection that ended, comes from the machine's end, and that is the cause.
func (h *hooks) reason(infrastructure bool, seen string) string {
	if !infrastructure || h.fate == nil {
		return seen
	}
	if fate := h.fate(); fate != "" {
		return "the machine was lost: " + fate
	}
	return seen
}

// ended reports whether the engine has told how the job ended.
func (h *hooks) ended() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.end
}

// Hooks returns what stands between the engine and the learner for one job, for
// whoever runs the engine in a machine of their own: the sink of its records, and
// its hooks, and what is to be called when the job has ended and its machine is still
// there. masked hides what is told; fate says how the machine ended, "" if it
// lives; files is the machine, for the test reports in it. All may be nil.
func (r *Runner) Hooks(job *plan.Job, masked *mask.Set, fate func() string, files func() GuestFiles) interface {
	ci.Sink
	engine.Hooks
	JobEnded(ctx context.Context)
} {
	return &hooks{runner: r, job: job, mask: masked, fate: fate, tests: r.newTests(job, false, masked, files)}
}

// tail is how many lines of a step's output are kept for its explanation.
const tail = 2000

// head is how much is kept of a line.
const head = 2 << 10

// Emit passes the job's records on.
func (h *hooks) Emit(rec ci.Record) {
	// What the runner says itself, the script and its shell, tells nothing of a
	// failure, but for its errors.
	said := rec.Stream != "system" || rec.Level == "error"
	if rec.Type == ci.LogLine && rec.Step > 0 && rec.Stream != "system" {
		h.tests.line(rec.Step, rec.Text)
	}
	if rec.Type == ci.LogLine && rec.Step > 0 && said {
		h.mu.Lock()
		if h.lines == nil {
			h.lines = map[int][]string{}
		}
		text := rec.Text
		if len(text) > head {
			text = strings.Clone(strings.ToValidUTF8(text[:head], "")) // the rest can go
		}
		l := append(h.lines[rec.Step], text)
		if len(l) > 2*tail {
			l = append(l[:0:0], l[len(l)-tail:]...)
		}
		h.lines[rec.Step] = l
		h.mu.Unlock()
	}
	if rec.Type == ci.JobFinished {
		h.mu.Lock()
		h.end = true
		h.mu.Unlock()
	}
	if rec.Type == ci.StepFinished && rec.Conclusion == ci.Success {
		h.mu.Lock()
		delete(h.lines, rec.Step)
		h.mu.Unlock()
	}
	rec.Reason = h.reason(rec.Infrastructure, rec.Reason)
	h.runner.Sink.Emit(rec)
}

// JobEnded reads what the job left behind.
func (h *hooks) JobEnded(ctx context.Context) { h.tests.jobEnded(ctx) }

// BeforeStep keeps the machine as it is before a step, where that is wanted.
func (h *hooks) BeforeStep(ctx context.Context, s engine.StepInfo) error {
	if s.Attempt > 1 {
		return nil // what there is is of before the first
	}
	if err := h.points.take(ctx, s); err != nil && ctx.Err() == nil {
		h.noPoint(s, err)
	}
	return nil
}

// AfterStep explains a failure, may have the step tried again, and may leave it to
// whoever waits for failures.
func (h *hooks) AfterStep(ctx context.Context, s engine.StepInfo, res engine.StepResult) (*engine.Retry, error) {
	if res.Outcome != ci.Failure || res.Infrastructure || ctx.Err() != nil {
		h.tests.stepEnded(ctx, s, res.Outcome == ci.Success && ctx.Err() == nil, "")
		return nil, nil
	}
	if again := h.explained(ctx, s, res); again != nil {
		return h.rewound(ctx, s, again)
	}
	return h.paused(ctx, s, res)
}

// explained tells what is known of a failure, and whether it is worth another try.
func (h *hooks) explained(ctx context.Context, s engine.StepInfo, res engine.StepResult) *engine.Retry {
	r := h.runner
	h.mu.Lock()
	lines := h.lines[s.Number]
	delete(h.lines, s.Number)
	h.mu.Unlock()
	if hint := h.hint(lines); hint != "" {
		r.Sink.Emit(h.mask.Record(ci.Record{Type: ci.AnnotationRec, Run: r.RunID, Job: h.job.ID, JobKey: h.job.Key, Step: s.Number, StepID: s.ID,
			Level:   "notice",
			Message: hint}))
	}
	if r.Mode() == learn.Off {
		return nil
	}
	f := learn.Failure{Run: r.RunID, Repository: r.Repository, Workflow: r.File, JobKey: h.job.Key, Step: s.Number, Name: s.Name, Command: s.Command,
		Branch: r.Ref, Commit: r.SHA, Attempt: max(r.Attempt, 1) + max(s.Attempt, 1) - 1, ExitCode: res.ExitCode, NoRetry: h.noRetry(s), Lines: lines,
		Image: h.image, Commits: r.Commits}
	f.Host, _ = os.Hostname()
	e, err := r.Learn.Explain(ctx, f)
	if err != nil {
		// Learning is never in the way of a job.
		r.Log.Error("explaining a failure", "job", h.job.Key, "err", err)
		return nil
	}
	e.Tests = h.tests.stepEnded(ctx, s, false, e.Signature)
	d := r.Learn.Retry(ctx, f, e)
	e.Advice = cmp.Or(d.Reason, e.Advice)
	r.Sink.Emit(h.mask.Record(ci.Record{Type: ci.PredictionRec, Run: r.RunID, Job: h.job.ID, JobKey: h.job.Key, Step: s.Number, StepID: s.ID,
		Explanation: &e}))
	if d.Act && d.Retry {
		return &engine.Retry{Delay: d.Delay, Reason: d.Reason}
	}
	return nil
}

// noRetry: a step with HEARTH_NO_RETRY in its env is not to be repeated.
func (h *hooks) noRetry(s engine.StepInfo) bool {
	for _, st := range workflow.NumberedSteps(h.job.Definition.Steps) {
		if st.ID == s.ID && st.Env.Get("HEARTH_NO_RETRY") != nil {
			return true
		}
	}
	return h.job.Definition.Env.Get("HEARTH_NO_RETRY") != nil
}

// Known says what a planned run will consist of, for the learner.
func Known(run *plan.Run) []learn.JobInfo {
	var out []learn.JobInfo
	for _, j := range run.Jobs {
		if j.IsCall() || j.Deferred || len(j.Refused) > 0 {
			continue
		}
		info := learn.JobInfo{Key: j.Key}
		for i, s := range workflow.NumberedSteps(j.Definition.Steps) {
			command := s.Uses
			if s.Run != nil {
				command = cmp.Or(s.Run.Str, s.Run.Text())
			}
			info.Steps = append(info.Steps, learn.StepInfo{Number: i + 1, Name: s.Name.Text(), Command: command})
		}
		out = append(out, info)
	}
	return out
}
