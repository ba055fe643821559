package engine

import (
	"cmp"
	"context"
	"hash/fnv"
	"slices"
	"strings"
	"sync"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
)

// scope is what the steps of one list share: those of the job, or those of one
// composite action.
type scope struct {
	run    *run
	parent *scope // nil for the job
	inputs expr.Value
	env    *jobEnv // what steps set for those after them
	outer  vars    // the env of the composite step, and of those around it
	steps  *stepTable
	use    *use // the composite action; nil for the job

	mu     sync.Mutex
	failed bool // a composite action: one of its steps has failed
}

// use is one action in use: what github.action_* say.
type use struct {
	action *action.Action
	dir    string // where it is in the guest
}

// child is the scope of a composite action that x runs.
func (sc *scope) child(u *use, inputs expr.Value, outer vars) *scope {
	return &scope{run: sc.run, parent: sc, inputs: inputs, env: sc.env, outer: outer, steps: &stepTable{}, use: u}
}

// fork is the scope of a background step: what it sets for others is kept until
// somebody waits for it.
func (sc *scope) fork() *scope {
	return &scope{run: sc.run, parent: sc.parent, inputs: sc.inputs, env: sc.env.fork(), outer: sc.outer, steps: sc.steps, use: sc.use, failed: sc.hasFailed()}
}

func (sc *scope) hasFailed() bool {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	return sc.failed
}

// fail records that a step of sc has failed: of the job, or of the composite
// action alone, whose own failure then fails its step.
func (sc *scope) fail() {
	if sc.parent == nil {
		sc.run.fail()
		return
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.failed = true
}

// status is what success(), failure() and cancelled() ask for.
func (sc *scope) status() ci.Conclusion {
	s := sc.run.jobStatus()
	if sc.parent == nil || s == ci.Cancelled {
		return s
	}
	if sc.hasFailed() {
		return ci.Failure
	}
	return ci.Success
}

// jobEnv is the environment that steps build up for those after them.
type jobEnv struct {
	mu    sync.Mutex
	vars  vars
	paths []string // the last one comes first in PATH
	forks bool
	sets  vars     // of a fork: what it changed
	added []string // of a fork
}

func (e *jobEnv) fork() *jobEnv {
	e.mu.Lock()
	defer e.mu.Unlock()
	return &jobEnv{vars: e.vars.clone(), paths: slices.Clone(e.paths), forks: true}
}

// join takes over what a fork changed.
func (e *jobEnv) join(f *jobEnv) {
	f.mu.Lock()
	sets, added := f.sets.clone(), slices.Clone(f.added)
	f.mu.Unlock()
	for _, k := range sets.keys {
		e.set(k, sets.m[k])
	}
	for _, p := range added {
		e.addPath(p)
	}
}

func (e *jobEnv) set(key, value string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.vars.set(key, value)
	if e.forks {
		e.sets.set(key, value)
	}
}

func (e *jobEnv) addPath(p string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.paths = append(slices.DeleteFunc(e.paths, func(o string) bool { return o == p }), p)
	if e.forks {
		e.added = append(e.added, p)
	}
}

func (e *jobEnv) snapshot() (vars, []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.vars.clone(), slices.Clone(e.paths)
}

// stepTable is the steps context of a scope.
type stepTable struct {
	mu sync.Mutex
	m  *expr.Map // what was handed out; replaced, never changed
}

// set records the result of a step. A hidden id (two underscores) is not seen by
// the workflow, as on GitHub.
func (t *stepTable) set(id string, outputs vars, outcome, conclusion ci.Conclusion) {
	if id == "" || strings.HasPrefix(id, "__") {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	m := expr.NewMap()
	if t.m != nil {
		for k, v := range t.m.All() {
			m.Set(k, v)
		}
	}
	out := expr.NewMap()
	for _, k := range outputs.keys {
		out.Set(k, expr.String(outputs.m[k]))
	}
	s := expr.NewMap()
	s.Set("outputs", expr.Object(out))
	s.Set("outcome", expr.String(outcome.Result()))
	s.Set("conclusion", expr.String(conclusion.Result()))
	m.Set(id, expr.Object(s))
	t.m = m
}

func (t *stepTable) value() expr.Value {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		return expr.Object(nil)
	}
	return expr.Object(t.m)
}

// evalEnv is what an expression of a step of sc is evaluated in; env is the
// step's own env block.
func (r *run) evalEnv(sc *scope, env vars) *expr.Env {
	return r.evalEnvOf(sc, env, nil)
}

func (r *run) evalEnvOf(sc *scope, env vars, x *execution) *expr.Env {
	c := expr.NewMap()
	c.Set("github", expr.Object(r.githubOf(sc, x)))
	vars_, _ := sc.env.snapshot()
	vars_.add(sc.outer)
	vars_.add(env)
	c.Set("env", vars_.context())
	c.Set("vars", object(r.job.Run.Vars))
	c.Set("inputs", object(sc.inputs))
	c.Set("needs", object(r.job.Needs))
	c.Set("matrix", r.job.Plan.Matrix)
	c.Set("strategy", r.job.Plan.Strategy())
	c.Set("steps", sc.steps.value())
	c.Set("runner", r.runnerContext())
	c.Set("job", r.jobContext())
	if sc.parent == nil {
		secrets := expr.NewMap()
		for k, v := range r.job.Secrets {
			secrets.Set(k, expr.String(v))
		}
		if r.job.Token != "" {
			secrets.Set("GITHUB_TOKEN", expr.String(r.job.Token))
		}
		c.Set("secrets", expr.Object(secrets))
	}
	is := func(ok func(ci.Conclusion) bool) expr.Func {
		return func([]expr.Value) (expr.Value, error) { return expr.Bool(ok(sc.status())), nil }
	}
	return &expr.Env{Contexts: c, Functions: map[string]expr.Func{
		"success":   is(func(s ci.Conclusion) bool { return s == ci.Success }),
		"failure":   is(func(s ci.Conclusion) bool { return s == ci.Failure }),
		"cancelled": is(func(s ci.Conclusion) bool { return s == ci.Cancelled }),
		"always":    is(func(ci.Conclusion) bool { return true }),
		"hashfiles": func(args []expr.Value) (expr.Value, error) {
			ctx := r.hard
			if x != nil && x.ctx != nil {
				ctx = x.ctx
			}
			return r.hashFiles(ctx, args)
		},
	}}
}

// jobContext is the job context: the state of the job, and where its file is from.
func (r *run) jobContext() expr.Value {
	m := expr.NewMap()
	set := func(k, v string) { m.Set(k, expr.String(v)) }
	set("status", string(r.jobStatus()))
	gh := r.job.Run.GitHub
	file, repository := r.job.Plan.Workflow.File, gh.Get("repository").ToString()
	ref, sha := gh.Get("ref").ToString(), gh.Get("workflow_sha").ToString()
	// A called workflow of another repository is named as its caller names it.
	if name, at, ok := strings.Cut(file, "@"); ok {
		if p := strings.SplitN(name, "/", 3); len(p) == 3 {
			repository, file, ref = p[0]+"/"+p[1], p[2], at
			sha = r.calledSHA(p[0], p[1], at)
		}
	}
	set("workflow_ref", repository+"/"+file+"@"+ref)
	set("workflow_sha", cmp.Or(sha, gh.Get("sha").ToString()))
	set("workflow_repository", repository)
	set("workflow_file_path", file)
	m.Set("check_run_id", expr.Number(float64(r.checkRun)))
	if container, services := r.containerContexts(); !container.IsNull() {
		m.Set("container", container)
		m.Set("services", services)
	}
	return expr.Object(m)
}

// calledSHA is the commit that a called workflow of another repository is of.
func (r *run) calledSHA(owner, repo, ref string) string {
	r.called.Do(func() {
		if r.job.Actions == nil {
			return
		}
		if tree, err := r.job.Actions.Resolve(r.hard, action.Ref{Kind: action.Remote, Owner: owner, Repo: repo, Ref: ref}); err == nil {
			r.calledAt = tree.SHA
		}
	})
	return r.calledAt
}

// checkRunID is a number for a job that stays the same, as the id of a check is one.
func checkRunID(run, key string) int64 {
	h := fnv.New64a()
	h.Write([]byte(run + "\x00" + key))
	return int64(h.Sum64()%9e10 + 1e10) // of as many digits as GitHub's, which are shown whole
}

func object(v expr.Value) expr.Value {
	if v.IsNull() {
		return expr.Object(nil)
	}
	return v
}

func (r *run) runnerContext() expr.Value {
	m := expr.NewMap()
	for _, kv := range [][2]string{
		{"name", r.job.Runner.Name}, {"os", r.job.Runner.OS}, {"arch", r.job.Runner.Arch},
		{"environment", r.job.Runner.Environment}, {"temp", r.layout.Temp},
		{"tool_cache", r.layout.ToolCache}, {"workspace", parentDir(r.layout.Workspace)},
	} {
		m.Set(kv[0], expr.String(kv[1]))
	}
	if r.job.Runner.Debug {
		m.Set("debug", expr.String("1"))
	}
	return expr.Object(m)
}

func parentDir(p string) string {
	if i := strings.LastIndexByte(p, '/'); i > 0 {
		return p[:i]
	}
	return "/"
}

// githubOf is the github context as a step of sc sees it.
func (r *run) githubOf(sc *scope, x *execution) *expr.Map {
	m := expr.NewMap()
	if r.github != nil {
		for k, v := range r.github.All() {
			m.Set(k, v)
		}
	}
	set := func(k, v string) { m.Set(k, expr.String(v)) }
	status := sc.status()
	if sc.parent != nil {
		set("action_status", string(status))
	}
	u := sc.use
	if x != nil {
		set("action", x.root().def.ID) // in composite actions and post programs, too
		if x.use != nil {
			u = x.use
		}
		if x.dir != "" {
			set("env", x.dir+"/env")
			set("output", x.dir+"/output")
			set("path", x.dir+"/path")
			set("state", x.dir+"/state")
			set("step_summary", x.dir+"/summary")
		}
	}
	if u != nil {
		set("action_path", u.dir)
		set("action_repository", u.action.Repository)
		set("action_ref", u.action.Ref)
	}
	return m
}

// runtimeVars are the variables that only the runner sets.
func (r *run) runtimeVars(sc *scope, x *execution) vars {
	var v vars
	gh := r.githubOf(sc, x)
	for _, k := range []string{
		"action", "action_path", "action_ref", "action_repository", "actor", "actor_id", "api_url", "base_ref", "env",
		"event_name", "event_path", "graphql_url", "head_ref", "job", "output", "path", "ref", "ref_name", "ref_protected",
		"ref_type", "repository", "repository_id", "repository_owner", "repository_owner_id", "retention_days",
		"run_attempt", "run_id", "run_number", "server_url", "sha", "state", "step_summary", "triggering_actor",
		"workflow", "workflow_ref", "workflow_sha", "workspace",
	} {
		val, ok := gh.Get(k)
		if !ok && k != "action_path" && k != "action_ref" && k != "action_repository" {
			val = expr.String("")
		} else if !ok {
			continue
		}
		v.set("GITHUB_"+strings.ToUpper(k), val.ToString())
	}
	v.set("GITHUB_ACTIONS", "true")
	for _, kv := range [][2]string{
		{"RUNNER_NAME", r.job.Runner.Name}, {"RUNNER_OS", r.job.Runner.OS}, {"RUNNER_ARCH", r.job.Runner.Arch},
		{"RUNNER_ENVIRONMENT", r.job.Runner.Environment}, {"RUNNER_TEMP", r.layout.Temp},
		{"RUNNER_TOOL_CACHE", r.layout.ToolCache}, {"AGENT_TOOLSDIRECTORY", r.layout.ToolCache},
		{"RUNNER_WORKSPACE", parentDir(r.layout.Workspace)},
	} {
		v.set(kv[0], kv[1])
	}
	if r.job.Runner.Debug {
		v.set("RUNNER_DEBUG", "1")
	}
	return v
}

// environ is the environment of a process that x starts; extra is what only an
// action sees.
func (x *execution) environ(extra vars) []string {
	r := x.r
	v := x.variables(extra)
	if _, paths := x.sc.env.snapshot(); len(paths) > 0 {
		base := v.get("PATH")
		switch {
		case base != "":
		case r.container != nil:
			base = r.container.path
		default:
			base = r.base["PATH"]
		}
		slices.Reverse(paths)
		if base != "" {
			paths = append(paths, base)
		}
		v.set("PATH", strings.Join(paths, ":"))
	}
	return v.list()
}

// variables are those of environ, but for what steps have put before PATH.
func (x *execution) variables(extra vars) vars {
	v, _ := x.sc.env.snapshot()
	v.add(x.sc.outer)
	v.add(x.env)
	v.add(extra)
	v.add(x.r.runtimeVars(x.sc, x))
	if !v.has("CI") {
		v.set("CI", "true")
	}
	return v
}

// mergeContext makes a context that is done when either is, with the cause of
// the one that was first.
func mergeContext(a, b context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(a)
	stop := context.AfterFunc(b, func() { cancel(context.Cause(b)) })
	return ctx, func() { stop(); cancel(nil) }
}
