package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/command"
	"github.com/hearth-ci/hearth/internal/docker"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// run is one job while it runs.
type run struct {
	job    Job
	def    *workflow.Job
	layout Layout
	logger *slog.Logger
	mask   *mask.Set

	matchers command.Matchers
	github   *expr.Map // base of the github context; not changed after prepare
	base     map[string]string
	shells   map[string]bool // which of the usual shells there are

	// hard ends everything, clean-up included.
	hard     context.Context
	hardStop context.CancelCauseFunc
	slots    chan struct{} // one for each background step that runs

	wg       sync.WaitGroup // background steps
	trees    unpacked
	checkRun int64     // job.check_run_id
	called   sync.Once // finds calledAt
	calledAt string    // the commit of the called workflow that the job is in
	// Of containers; set before the first step, but for images.
	engineOnce sync.Once
	engine     *docker.Client
	container  *container   // in which steps run; nil is the machine itself
	containers []*container // that were made
	network    string       // of the job's containers
	networkID  string
	images     images
	insideOnce sync.Once // finds owner, musl and loader
	owner      string    // who steps are in the job's container: uid:gid
	musl       bool      // its C library
	loader     bool      // something is where glibc's loader would be
	linkOnce   sync.Once
	linked     bool // our loader is there

	own    sync.Once // unpacks the run's own repository, for $/
	ownErr error

	mu         sync.Mutex
	status     ci.Conclusion // success, failure or cancelled, as job.status
	cancelled  error         // why
	infra      error         // the first thing that we could not do
	active     map[*execution]bool
	posts      []*posts                     // in the order in which their steps began
	preState   map[string]map[string]string // what pre programs saved, by place
	background []*background
	steps      []StepResult
	summary    map[int]string
	numbers    int
	kept       int      // bytes that steps have set for others
	reason     string   // why the job failed, if none of its steps did
	broken     string   // why no step can run: the workflow is at fault
	checkouts  []string // where the run's own repository is in the guest
	masks      []string // that were asked for while it ran
	// What became of the problem matchers, and how large that is.
	matcherLog  []matcherChange
	matcherSize int
}

// Run runs a job and reports to job.Emit. A Result is returned in any case; its
// conclusion is not green when there is an error, which says what could not be
// done. When ctx is done the job is cancelled and cleans up (package comment);
// the error does not speak of that.
func Run(ctx context.Context, job Job) (Result, error) {
	r, err := newRun(job)
	if err != nil {
		return Result{Conclusion: ci.Failure, Reason: err.Error()}, err
	}
	return r.run(ctx)
}

func newRun(job Job) (*run, error) {
	if job.Run == nil || job.Plan == nil || job.Plan.Definition == nil || job.Guest == nil || job.Emit == nil {
		return nil, errors.New("engine: a job needs a plan, a guest and a sink")
	}
	if job.Layout == (Layout{}) {
		job.Layout = DefaultLayout(job.Run.GitHub.Get("repository").ToString())
	}
	if job.Mask == nil {
		job.Mask = &mask.Set{}
	}
	job.Runner.defaults()
	for name, secret := range job.Secrets {
		if err := job.Mask.Add(secret); err != nil {
			return nil, fmt.Errorf("engine: secret %s: %w", name, err)
		}
	}
	// GitHub's switch for debug output, as a secret or a variable.
	for _, v := range []string{job.Secrets["ACTIONS_STEP_DEBUG"], job.Run.Vars.Get("ACTIONS_STEP_DEBUG").ToString()} {
		job.Runner.Debug = job.Runner.Debug || v == "true"
	}
	for _, token := range []string{job.Token, job.Results.Token, job.IDToken.Token} {
		if err := job.Mask.Add(token); err != nil {
			return nil, fmt.Errorf("engine: token: %w", err)
		}
	}
	r := &run{
		job: job, def: job.Plan.Definition, layout: job.Layout, logger: job.Log, mask: job.Mask,
		status: ci.Success, active: map[*execution]bool{}, preState: map[string]map[string]string{}, summary: map[int]string{},
		slots: make(chan struct{}, maxBackground), checkRun: checkRunID(job.RunID, job.Plan.Key),
	}
	if r.logger == nil {
		r.logger = slog.New(slog.DiscardHandler)
	}
	return r, nil
}

func (r *run) run(ctx context.Context) (Result, error) {
	began := time.Now()
	p := r.job.Plan
	r.emit(nil, ci.Record{Type: ci.JobStarted, Name: p.Name, Matrix: matrixOf(p)})

	r.hard, r.hardStop = context.WithCancelCause(context.WithoutCancel(ctx))
	defer r.hardStop(nil)
	stopWatch := r.watch(ctx)
	defer r.closeEngine()

	top := r.top()
	err := r.prepare(top)
	if err == nil && r.job.From != nil {
		err = r.resume(top, r.job.From)
	}
	if err != nil {
		r.lose(err)
	} else {
		r.runSteps(top, r.def.Steps)
		r.finishBackground(top)
		if !r.job.OneStep {
			r.runPosts(top)
		}
		r.stopContainers(top)
	}
	res := Result{Summary: r.summary}
	if err == nil && r.lost() == nil {
		res.Outputs = r.outputs(top)
		res.EnvironmentURL = r.environmentURL(top)
	}
	stopWatch()

	r.mu.Lock()
	res.Steps = r.steps
	slices.SortFunc(res.Steps, func(a, b StepResult) int { return a.Number - b.Number })
	switch {
	case r.infra != nil:
		res.Conclusion, res.Reason = ci.Failure, r.mask.String(r.infra.Error())
	case r.cancelled != nil:
		res.Conclusion, res.Reason = ci.Cancelled, r.mask.String(r.cancelled.Error())
		if _, late := errors.AsType[*TimeoutError](r.cancelled); late {
			res.Conclusion = ci.TimedOut
		}
	default:
		res.Conclusion = r.status
		if r.status == ci.Failure {
			res.Reason = r.mask.String(r.reason)
		}
	}
	infra := r.infra
	r.mu.Unlock()

	r.emit(nil, ci.Record{
		Type: ci.JobFinished, Name: p.Name, Matrix: matrixOf(p), Conclusion: res.Conclusion, Reason: res.Reason,
		Infrastructure: infra != nil, DurationMS: new(time.Since(began).Milliseconds()), Outputs: res.Outputs, EnvironmentURL: res.EnvironmentURL,
		Assisted: slices.ContainsFunc(res.Steps, func(s StepResult) bool { return s.Assisted }),
	})
	if infra != nil {
		return res, fmt.Errorf("job %s: %w", p.Key, infra)
	}
	return res, nil
}

// top is the scope of the job's own steps.
func (r *run) top() *scope {
	return &scope{run: r, inputs: r.job.Run.Inputs(r.job.Plan), env: &jobEnv{}, steps: &stepTable{}}
}

func matrixOf(p *plan.Job) any {
	if p.Matrix.IsNull() {
		return nil
	}
	return p.Matrix
}

func minutes(m float64) string {
	if m == 1 {
		return "1 minute"
	}
	return fmt.Sprintf("%v minutes", m)
}

func duration(m float64) time.Duration {
	// A float of minutes can be beyond what a Duration holds.
	if m > 1e6 {
		m = 1e6
	}
	return time.Duration(m * float64(time.Minute))
}

// watch cancels the job when ctx is done or its timeout has passed, and ends its
// clean-up when that takes too long. The function it returns waits for it.
func (r *run) watch(ctx context.Context) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		var timeout <-chan time.Time
		if m := r.job.Plan.TimeoutMinutes; m > 0 {
			t := time.NewTimer(duration(m))
			defer t.Stop()
			timeout = t.C
		}
		var why error
		select {
		case <-done:
			return
		case <-ctx.Done():
			why = context.Cause(ctx)
		case <-timeout:
			why = &TimeoutError{"The job has exceeded the maximum execution time of " + minutes(r.job.Plan.TimeoutMinutes)}
		}
		if late, ok := errors.AsType[*TimeoutError](why); ok {
			r.annotateJob("error", late.Text)
		} else if errors.Is(why, context.Canceled) {
			why = errCancelled
		}
		r.cancel(why)
		grace := r.job.Plan.CancelTimeoutMinutes
		if grace <= 0 {
			grace = plan.DefaultCancelTimeoutMinutes
		}
		t := time.NewTimer(duration(grace))
		defer t.Stop()
		select {
		case <-done:
		case <-t.C:
			r.hardStop(errHardTimeout)
		}
	})
	return func() { close(done); wg.Wait() }
}

// cancel turns the job to cancelled: running steps go on only if their
// condition still holds.
func (r *run) cancel(why error) {
	r.mu.Lock()
	r.cancelled = why
	r.status = ci.Cancelled
	var running []*execution
	for x := range r.active {
		running = append(running, x)
	}
	r.mu.Unlock()
	for _, x := range running {
		x.mu.Lock()
		inner := x.inner
		x.mu.Unlock()
		if !inner && !x.survives() {
			x.stop(why)
		}
	}
}

// lose records that we could not do something: nothing more is tried.
func (r *run) lose(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.infra == nil {
		r.infra = err
		r.status = ci.Failure
	}
}

func (r *run) lost() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.infra
}

// why says what makes the job one that is being cancelled, or nil.
func (r *run) why() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cancelled
}

func (r *run) jobStatus() ci.Conclusion {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// fail makes the job one that has failed, unless it is cancelled.
func (r *run) fail() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status == ci.Success {
		r.status = ci.Failure
	}
}

// probe learns what the machine is like, in one round trip: the environment of
// a command, and then which of the usual shells there are.
const probe = `env -0; printf '\0\0'; for s in bash sh python python3 pwsh; do command -v $s; done; uname -m`

// present has our Debian say that it is one, where the job asks for a Debian; else it
// says that it is an Ubuntu, for the tools that look. Other images have no such
// choice.
func (r *run) present(ctx context.Context) error {
	if !slices.ContainsFunc(r.job.Plan.Labels, func(l string) bool { return strings.HasPrefix(strings.ToLower(l), "debian-") }) {
		return nil
	}
	const script = `p=/usr/local/sbin/hearth-present; if [ -x $p ]; then $p debian; fi`
	if _, err := r.job.Guest.Exec(ctx, guest.Cmd{Argv: []string{"/bin/sh", "-c", script}, Dir: "/", User: "root"}); err != nil {
		return fmt.Errorf("prepare the machine: %w", err)
	}
	return nil
}

func (r *run) prepare(top *scope) error {
	ctx, g := r.hard, r.job.Guest
	var out limited
	exit, err := g.Exec(ctx, guest.Cmd{Argv: []string{"/bin/sh", "-c", probe}, Dir: "/", Stdout: &out})
	if err != nil {
		return fmt.Errorf("look at the machine: %w", err)
	}
	if exit.Signal != "" || exit.Cancelled {
		return fmt.Errorf("look at the machine: %v", exit)
	}
	r.base = map[string]string{}
	environ, found, _ := strings.Cut(out.String(), "\x00\x00")
	r.shells = map[string]bool{}
	for line := range strings.Lines(found) {
		r.shells[path.Base(strings.TrimSpace(line))] = true
	}
	for kv := range strings.SplitSeq(environ, "\x00") {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			r.base[k] = v
		}
	}
	if err := r.present(ctx); err != nil {
		return err
	}
	for _, dir := range []string{r.layout.Workspace, r.layout.Temp, path.Join(r.layout.Temp, "_runner_file_commands"),
		path.Join(r.layout.Temp, "_github_workflow"), r.layout.Actions, path.Join(r.layout.Temp, "_github_home")} {
		if err := g.MkdirAll(ctx, dir, 0o755, ""); err != nil {
			return fmt.Errorf("prepare the machine: make %s: %w", dir, err)
		}
	}
	gh := expr.NewMap()
	if m := r.job.Run.GitHub.AsMap(); m != nil {
		for k, v := range m.All() {
			gh.Set(k, v)
		}
	}
	eventPath := path.Join(r.layout.Temp, "_github_workflow", "event.json")
	event, err := json.Marshal(r.job.Run.GitHub.Get("event"))
	if err != nil || string(event) == "null" {
		event = []byte("{}")
	}
	if err := g.WriteFile(ctx, eventPath, event, 0o644, ""); err != nil {
		return fmt.Errorf("prepare the machine: write %s: %w", eventPath, err)
	}
	set := func(k, v string) { gh.Set(k, expr.String(v)) }
	set("job", r.job.Plan.ID)
	set("workspace", r.layout.Workspace)
	set("event_path", eventPath)
	set("token", r.job.Token)
	for k, v := range map[string]string{"server_url": "https://github.com", "api_url": "https://api.github.com",
		"graphql_url": "https://api.github.com/graphql", "run_id": "1", "run_number": "1", "run_attempt": "1", "retention_days": "90", "ref_protected": "false"} {
		if old, ok := gh.Get(k); !ok || old.IsNull() || old.ToString() == "" {
			set(k, v)
		}
	}
	r.github = gh

	for _, k := range slices.Sorted(maps.Keys(r.job.Env)) {
		top.env.vars.set(k, r.job.Env[k])
	}
	for _, block := range []*workflow.Value{r.job.Plan.Workflow.Env, r.def.Env} {
		v, err := evalVars(block, r.evalEnv(top, vars{}))
		if err != nil {
			r.annotateJob("error", err.Error())
			r.fail()
			r.cancelSteps("the job's env could not be evaluated")
			return nil
		}
		top.env.vars.add(v)
	}
	if m, event := r.job.Plan.CacheMode, r.job.Run.Event; plan.CacheWrites(m) && !plan.CacheWrites(plan.UsualCacheMode(event)) {
		r.annotateJob("warning", fmt.Sprintf("cache-mode '%s' lets a job save caches that was started by %s, which those can bring about who are not trusted: what it saves is restored by others.", m, event))
	}
	return nil
}

// cancelSteps keeps every step from running, because something before the first
// one was wrong in the workflow.
func (r *run) cancelSteps(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = why
}

// limited keeps the first MiB that is written to it.
type limited struct{ strings.Builder }

func (l *limited) Write(p []byte) (int, error) {
	if room := 1<<20 - l.Len(); room > 0 {
		l.Builder.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// outputs evaluates the job's outputs. One that would give a secret away is
// dropped with GitHub's warning; one that is too large fails the job.
func (r *run) outputs(top *scope) map[string]string {
	if r.def.Outputs == nil {
		return nil
	}
	out := map[string]string{}
	env := r.evalEnv(top, vars{})
	handed, sum := r.job.Handed, 0
	if handed == nil {
		handed = &plan.Allowance{}
	}
	refuse := func(format string, args ...any) {
		msg := fmt.Sprintf(format, args...)
		r.annotateJob("error", msg)
		r.fail()
		r.mu.Lock()
		r.reason = cmp.Or(r.reason, msg)
		r.mu.Unlock()
	}
	for _, p := range r.def.Outputs.Pairs {
		key := p.Key.Text()
		v, err := p.Value.EvalString(env)
		if err != nil {
			r.annotateJob("error", err.Error())
			r.fail()
			continue
		}
		if v == "" {
			continue
		}
		if r.mask.Contains(v) {
			r.annotateJob("warning", fmt.Sprintf("Skip output '%s' since it may contain secret.", key))
			continue
		}
		switch sum += len(v); {
		case len(v) > ci.MaxOutput:
			refuse("The job's output '%s' has %d bytes; an output can have at most %d.", key, len(v), ci.MaxOutput)
		case sum > ci.MaxJobOutputs:
			refuse("The job's outputs have more than %d MiB with '%s': hand files on as artifacts.", ci.MaxJobOutputs>>20, key)
		case !handed.Take(len(v)):
			refuse("The outputs of the run's jobs have more than %d MiB with '%s' of this one: hand files on as artifacts.", ci.MaxRunOutputs>>20, key)
		default:
			out[key] = v
		}
	}
	return out
}

func (r *run) environmentURL(top *scope) string {
	u := r.def.Environment.Get("url")
	if e := r.job.Plan.Environment; u == nil || e != nil && e.NoDeployment {
		return ""
	}
	s, err := u.EvalString(r.evalEnv(top, vars{}))
	if err != nil {
		r.annotateJob("warning", err.Error())
		return ""
	}
	return r.mask.String(s)
}

// safeName is the last element of a repository's name, as a directory.
func safeName(repository string) string {
	name := path.Base(repository)
	name = strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune("-._", c):
			return c
		}
		return '_'
	}, name)
	if strings.Trim(name, ".") == "" {
		return "workspace"
	}
	return name
}
