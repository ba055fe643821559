package engine

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// CheckOptions say what there is to run a job with.
type CheckOptions struct {
	Actions *action.Resolver // nil: remote actions are refused
	// Files reads the run's own repository, for local actions; nil: they are
	// looked at when their step runs. A file that is not there is os.ErrNotExist.
	Files func(ctx context.Context, name string, max int64) ([]byte, error)
	// Results says that there is an artifact and cache service.
	Results bool
	// Mapped says that the user has named an image for a label, whatever system it
	// asks for; nil: none.
	Mapped func(label string) bool
	// Shells are the shells that the image has, of bash, sh, python, pwsh; nil
	// is not known.
	Shells []string
	// NoEngine says why the machine of a job with these labels has no container engine,
	// "" if it has one; nil: all have.
	NoEngine func(labels []string) string
	// AssumeActions takes actions that cannot be had as ones that can run.
	AssumeActions bool
	// Note, if set, hears of everything that is found.
	Note func(Finding)
}

// Finding is something about a job of the plan, or about a step of it.
type Finding struct {
	Job  *plan.Job
	Step *workflow.Step // as written in the job; nil is the job itself
	// Sure says that it refuses the job; otherwise it will be met only if the step is
	// reached, or is forgiven. What is only advice refuses nothing: it runs, and differs.
	Sure bool
	workflow.Diagnostic
}

// Check says, before anything runs, what of a planned run the engine cannot run:
// by name, and at its place in the file. It is written down at the jobs that cannot
// run for it ([plan.Job.Refused]) and returned, each fault once. Actions that are not
// in the mirrors are fetched.
//
// A step that cannot run refuses its job only if it is sure to be reached while all
// goes well: with a condition that is false or not known yet (see [checker.reached]),
// or with continue-on-error, it fails when it is reached, if it is. What depends on
// results of other jobs is looked at when its job starts, and fails it then.
func Check(ctx context.Context, run *plan.Run, opt CheckOptions) []workflow.Diagnostic {
	c := &checker{ctx: ctx, run: run, opt: opt, trees: map[string]*resolved{}, actions: map[string]*loaded{}}
	c.fetch()
	for _, j := range run.Jobs {
		if j.Definition == nil || j.IsCall() {
			continue
		}
		c.job, c.step, c.seen = j, nil, map[string]bool{}
		j.Refused, j.Containers = nil, false
		for _, d := range Labels(j, opt.Mapped) {
			c.add(d, true)
		}
		c.containers(j)
		c.steps(j)
	}
	return run.Refused()
}

type checker struct {
	ctx     context.Context
	run     *plan.Run
	opt     CheckOptions
	job     *plan.Job       // that is looked at
	step    *workflow.Step  // of it
	seen    map[string]bool // of it
	actions map[string]*loaded

	mu    sync.Mutex
	trees map[string]*resolved
}

type resolved struct {
	tree *action.Tree
	err  error
}

// loaded is a remote action, read.
type loaded struct {
	action *action.Action
	diags  []workflow.Diagnostic
	err    error
}

// maxRefused bounds what is said of one job.
const maxRefused = 50

// add takes what is wrong with the job; sure says that it will be met.
func (c *checker) add(d workflow.Diagnostic, sure bool) {
	if c.opt.Note != nil {
		c.opt.Note(Finding{Job: c.job, Step: c.step, Sure: sure, Diagnostic: d})
	}
	if d.Severity == workflow.Advice {
		return
	}
	if key := d.String(); sure && !c.seen[key] && len(c.job.Refused) < maxRefused {
		c.seen[key] = true
		c.job.Refused = append(c.job.Refused, d)
	}
}

func refusal(file string, pos workflow.Pos, rule, hint, format string, args ...any) workflow.Diagnostic {
	return workflow.Diagnostic{File: file, Pos: pos, Near: pos, Rule: rule, Hint: hint, Message: fmt.Sprintf(format, args...)}
}

// reached says whether a step of the job, or of an action in it, is reached while
// every step before it succeeds, as far as that is known before the run.
func (c *checker) reached(s *workflow.Step, inAction bool) (yes, sure bool) {
	return c.condition(s, inAction, true)
}

// never reports whether a step is on no way through the job, whatever fails.
func (c *checker) never(s *workflow.Step, inAction bool) bool {
	yes, sure := c.condition(s, inAction, false)
	return sure && !yes
}

// condition is what is known of a step's condition: while all goes well, or whatever
// happens.
func (c *checker) condition(s *workflow.Step, inAction, green bool) (yes, sure bool) {
	if s.If == nil {
		return true, true
	}
	answer := func(ok bool) expr.Func { return func([]expr.Value) (expr.Value, error) { return expr.Bool(ok), nil } }
	env := &expr.Env{Contexts: c.run.Contexts(c.job, expr.Null()), Functions: map[string]expr.Func{"always": answer(true)}}
	if green {
		env.Functions["success"], env.Functions["failure"], env.Functions["cancelled"] = answer(true), answer(false), answer(false)
	}
	runner := Runner{}
	runner.defaults()
	env.Contexts.Set("runner", expr.Object(runner.known()))
	return s.If.Truth(env, func(context string, path []string) bool {
		switch context = strings.ToLower(context); context {
		case "runner":
			_, ok := runner.known().Get(path0(path))
			return ok
		case "github":
			switch p := strings.ToLower(path0(path)); {
			case p == "", p == "*", strings.HasPrefix(p, "action"), p == "token", p == "workspace", p == "job", p == "event_path",
				p == "env", p == "path", p == "output", p == "state", p == "step_summary":
				return false
			}
		case "inputs":
			if inAction {
				return false
			}
		case "vars":
			if c.job.Environment != nil || slices.Contains(c.job.Late, "environment") {
				return false // it has variables of its own
			}
		}
		return c.run.Knows(c.job, context, path)
	})
}

func path0(path []string) string {
	if len(path) == 0 {
		return ""
	}
	return path[0]
}

// tolerated reports whether the failure of a step may be forgiven.
func tolerated(s *workflow.Step) bool {
	v := s.ContinueOnError
	return v != nil && !(v.IsLiteral() && strings.EqualFold(v.Text(), "false"))
}

// foreign is the system that a label asks for, if it is not one that runs here.
func foreign(label string) string {
	l := strings.ToLower(label)
	switch {
	case l == "windows", strings.HasPrefix(l, "windows-"):
		return "Windows"
	case l == "macos", l == "mac", strings.HasPrefix(l, "macos-"):
		return "macOS"
	}
	return ""
}

// Labels says which labels of a job ask for another system than that of the machines
// here. mapped is as in [CheckOptions].
func Labels(j *plan.Job, mapped func(label string) bool) (ds []workflow.Diagnostic) {
	for _, l := range j.Labels {
		if sys := foreign(l); sys != "" && (mapped == nil || !mapped(l)) {
			pos := j.Definition.Pos
			if j.Definition.RunsOn != nil {
				pos = j.Definition.RunsOn.Pos
			}
			ds = append(ds, refusal(j.Workflow.File, pos, plan.Unsupported, "Run this job on GitHub.",
				"Job '%s' runs on '%s': the machines here are Linux, not %s", j.Name, l, sys))
		}
	}
	return ds
}

// needed says whether a container or services value asks for a container. It may
// be empty text, as a matrix uses it for "without one".
func needed(v expr.Value) bool {
	switch v.Kind() {
	case expr.KindNull:
		return false
	case expr.KindString:
		return v.AsString() != ""
	case expr.KindObject:
		if image, ok := v.AsMap().Get("image"); ok {
			return image.ToString() != ""
		}
		return false
	}
	return true
}

// containers looks at the container and the services of a job.
func (c *checker) containers(j *plan.Job) {
	d := j.Definition
	if !j.Deferred {
		env := &expr.Env{Contexts: c.run.Contexts(j, expr.Null())}
		// What depends on what is not known yet may be none.
		if v, err := d.Container.Eval(env); err != nil || needed(v) {
			c.engine(place{file: j.Workflow.File, pos: d.Container.Pos, sure: err == nil}, "Job '%s': container:", j.Name)
		}
		v, err := d.Services.Eval(env)
		if err != nil {
			c.engine(place{file: j.Workflow.File, pos: d.Services.Pos}, "Job '%s': services:", j.Name)
		} else if m := v.AsMap(); m != nil {
			for name, s := range m.All() {
				if !needed(s) {
					continue
				}
				pos := d.Services.Pos
				if d.Services.Kind == workflow.Mapping {
					for _, p := range d.Services.Pairs {
						if strings.EqualFold(p.Key.Text(), name) {
							pos = p.Key.Pos
						}
					}
				}
				c.engine(place{file: j.Workflow.File, pos: pos, sure: true}, "Job '%s': service '%s'", j.Name, name)
			}
		}
	}
	if s := d.Snapshot; s != nil {
		c.add(refusal(j.Workflow.File, s.Pos, plan.Unsupported, "", "Job '%s': snapshot: is not supported yet", j.Name), true)
	}
}

// engine takes that something needs a container engine.
func (c *checker) engine(p place, format string, args ...any) {
	c.job.Containers = c.job.Containers || p.sure
	if c.opt.NoEngine == nil {
		return
	}
	if why := c.opt.NoEngine(c.job.Labels); why != "" {
		c.at(p, plan.Unsupported, "", "%s needs a container engine: %s", fmt.Sprintf(format, args...), why)
	}
}

// fetch resolves the remote actions of all jobs side by side.
func (c *checker) fetch() {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	asked := map[string]bool{}
	for _, j := range c.run.Jobs {
		if j.Definition == nil {
			continue
		}
		c.job = j
		for s := range workflow.EachStep(j.Definition.Steps) {
			if s.Uses == "" || c.never(s, false) {
				continue
			}
			ref, err := action.ParseRef(s.Uses)
			if s.Uses == "" || err != nil || ref.Kind != action.Remote || builtin(ref, c.opt.Results) || c.opt.Actions == nil {
				continue
			}
			if ref, err = locked(c.run, j.Workflow.File, ref); err != nil || asked[key(ref)] {
				continue
			}
			asked[key(ref)] = true
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				c.tree(ref)
			})
		}
	}
	wg.Wait()
}

func key(ref action.Ref) string {
	return strings.ToLower(ref.Repository()) + "@" + cmp.Or(ref.Commit, ref.Ref)
}

// locked is an action at the commit that the repository locks it to, if it locks those of
// the workflow file: one that it does not name is then an error, as on GitHub.
func locked(run *plan.Run, file string, ref action.Ref) (action.Ref, error) {
	pins, is := run.Locked[file]
	if !is || ref.Kind != action.Remote {
		return ref, nil
	}
	repository := strings.ToLower(ref.Repository())
	ref.Commit = cmp.Or(pins[repository+"@"+ref.Ref], pins[strings.ToLower(path.Join(repository, ref.Path))+"@"+ref.Ref])
	if ref.Commit == "" {
		return ref, &action.InputError{Msg: fmt.Sprintf("%s is not in %s, which locks the actions of %s. Update it with `gh actions-lock`.", ref, workflow.LockFile, file)}
	}
	return ref, nil
}

// builtin says that an action is not fetched: the runner does it, or it is refused.
func builtin(ref action.Ref, results bool) bool {
	return ref.Is("actions/checkout") || needsResults(ref) && !results
}

func (c *checker) tree(ref action.Ref) (*action.Tree, error) {
	c.mu.Lock()
	r := c.trees[key(ref)]
	c.mu.Unlock()
	if r == nil {
		r = &resolved{}
		r.tree, r.err = c.opt.Actions.Resolve(c.ctx, ref)
		c.mu.Lock()
		c.trees[key(ref)] = r
		c.mu.Unlock()
	}
	return r.tree, r.err
}

// steps looks at all steps of a job.
func (c *checker) steps(j *plan.Job) {
	for s := range workflow.EachStep(j.Definition.Steps) {
		c.step = s
		if c.never(s, false) {
			continue
		}
		yes, sure := c.reached(s, false)
		sure = yes && sure && !tolerated(s)
		if s.Run != nil {
			c.shell(j, s, sure)
		}
		if s.Uses != "" {
			c.uses(place{file: j.Workflow.File, pos: s.UsesPos, sure: sure}, s, 1)
		}
	}
}

// place is where in the user's files something is used, and through what.
type place struct {
	file string
	pos  workflow.Pos
	via  string // the action around, "" for a workflow
	// chain are the remote actions around, outermost first.
	chain []string
	// of is the repository that the file is from; zero is the run's own.
	of action.Ref
	// sure says that the run comes by, if all goes well.
	sure bool
}

func (c *checker) at(p place, rule, hint, format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	if p.via != "" {
		msg = p.via + ": " + msg
	}
	c.add(refusal(p.file, p.pos, rule, hint, "%s", msg), p.sure)
}

// shell looks at the shell of a script: the step's own, or the default that it has.
func (c *checker) shell(j *plan.Job, s *workflow.Step, sure bool) {
	v := s.Shell
	for _, d := range []*workflow.Defaults{j.Definition.Defaults, j.Workflow.Defaults} {
		if v == nil && d != nil {
			v = d.Shell
		}
	}
	if v == nil || !v.IsLiteral() {
		return
	}
	name, file := v.Text(), j.Workflow.File
	if err := elsewhere(name); err != nil {
		c.add(refusal(file, v.Pos, plan.Unsupported, "", "%s", err), sure)
		return
	}
	if name == "pwsh" && c.opt.Shells != nil && !slices.Contains(c.opt.Shells, name) {
		c.add(refusal(file, v.Pos, plan.Unsupported, "Use another shell, or an image that has it (-P label=image).",
			"The shell '%s' is not in this machine's image", name), sure)
	}
}

func (c *checker) uses(p place, s *workflow.Step, depth int) {
	ref, err := action.ParseRef(s.Uses)
	if err != nil {
		c.at(p, "uses", "", "%s", err)
		return
	}
	switch {
	case depth > maxDepth:
		c.at(p, "action", "", "Composite actions are nested more than %d deep", maxDepth)
	case ref.Kind == action.Docker:
		c.engine(p, "uses: %s", s.Uses)
	case ref.Is("actions/checkout"):
		if _, err := locked(c.run, c.job.Workflow.File, ref); err != nil {
			c.at(p, "action", "", "%s", err)
		}
		input, problem := refusedCheckout(func(name string) string {
			if v := s.With.Get(name); v.IsLiteral() {
				return v.Text()
			}
			return ""
		}, serverOf(c.run))
		if problem != "" {
			if p.via == "" {
				p.pos = s.With.Get(input).Pos
			}
			c.at(p, plan.Unsupported, "", "%s", problem)
		}
		c.unused(p, s)
	case needsResults(ref) && !c.opt.Results:
		c.at(p, plan.Unsupported, "Leave the step out, or run it only on GitHub.", "%s needs the artifact and cache service, which is not there yet", s.Uses)
	case ref.Kind == action.Remote:
		c.remote(p, ref, depth)
	case p.of.Owner != "" && ref.Kind == action.Own:
		o := p.of
		o.Path = ref.Path
		c.remote(p, o, depth)
	case p.of.Owner != "" && ref.Kind == action.Local:
		// In the workspace when the step runs: nobody knows yet.
	default:
		c.local(p, ref, depth)
	}
}

// unused tells of what a checkout is given and does not use.
func (c *checker) unused(p place, s *workflow.Step) {
	if c.opt.Note == nil || s.With == nil || s.With.Kind != workflow.Mapping {
		return
	}
	for _, kv := range s.With.Pairs {
		value := "?"
		if kv.Value.IsLiteral() {
			value = kv.Value.Text()
		}
		if note, _ := unusedInput(kv.Key.Text(), value); note != "" {
			d := refusal(p.file, kv.Key.Pos, "differs", "", "actions/checkout: %s", note)
			d.Severity = workflow.Advice
			c.add(d, p.sure)
		}
	}
}

func (c *checker) remote(p place, ref action.Ref, depth int) {
	const hint = "Check the name and the version. Without the network: --local-repository owner/repo@ref=DIR."
	if slices.Contains(p.chain, ref.String()) {
		c.at(p, "action", "", "%s uses itself: composite actions may be nested at most %d deep", ref, maxDepth)
		return
	}
	// An action that is reached on several ways is looked at once.
	visit := fmt.Sprint(p.file, p.pos, ref, p.sure)
	if c.seen[visit] {
		return
	}
	c.seen[visit] = true
	l := c.load(ref)
	if l.err != nil && c.opt.AssumeActions {
		return
	}
	if l.err != nil {
		c.at(p, "action", hint, "%s", l.err)
		return
	}
	for _, d := range l.diags {
		if d.Severity == workflow.Error {
			c.at(p, "action", "", "%s: %s", ref, d)
		}
	}
	if l.action == nil {
		return
	}
	c.action(place{file: p.file, pos: p.pos, via: via(p.via, ref), of: ref, chain: append(slices.Clip(p.chain), ref.String()), sure: p.sure}, l.action, depth)
}

// load reads a remote action, once for all jobs.
func (c *checker) load(ref action.Ref) *loaded {
	ref, err := locked(c.run, c.job.Workflow.File, ref)
	if err != nil {
		return &loaded{err: err}
	}
	name := ref.String() + " " + ref.Commit
	l := c.actions[name]
	if l != nil {
		return l
	}
	l = &loaded{}
	c.actions[name] = l
	tree, err := c.tree(ref)
	if l.err = err; err != nil {
		return l
	}
	file, src, err := tree.Load(c.ctx, ref.Path)
	if l.err = err; err != nil {
		return l
	}
	l.action, l.diags = action.Parse(ref.Repository()+"/"+file, ref.Path, src)
	if workflow.Errors(l.diags) {
		l.action = nil
	}
	return l
}

func via(outer string, ref action.Ref) string {
	if outer == "" {
		return ref.String()
	}
	return outer + ": " + ref.String()
}

func (c *checker) local(p place, ref action.Ref, depth int) {
	if c.opt.Files == nil {
		return
	}
	l, there := c.own(ref)
	if !there {
		return // it may be made by a step before, or come with a checkout of another ref
	}
	if l.err != nil {
		c.at(p, "action", "", "%s", l.err)
		return
	}
	for _, d := range l.diags {
		if d.Severity == workflow.Error {
			c.add(d, p.sure)
		}
	}
	if l.action != nil {
		c.action(place{file: p.file, pos: p.pos, via: via(p.via, ref), chain: p.chain, sure: p.sure}, l.action, depth)
	}
}

// own reads an action of the run's own repository, once for all jobs.
func (c *checker) own(ref action.Ref) (l *loaded, there bool) {
	key := "./" + ref.Path
	if l, ok := c.actions[key]; ok {
		return l, l != nil
	}
	for _, n := range action.Names() {
		name := path.Join(ref.Path, n)
		src, err := c.opt.Files(c.ctx, name, action.MaxFile)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		l = &loaded{}
		if err != nil {
			l.err = fmt.Errorf("%s: %w", name, err)
		} else if l.action, l.diags = action.Parse(name, ref.Path, src); workflow.Errors(l.diags) {
			l.action = nil
		}
		break
	}
	c.actions[key] = l
	return l, l != nil
}

// action checks an action that was read.
func (c *checker) action(p place, a *action.Action, depth int) {
	if a.Using == "docker" {
		c.engine(p, "this Docker action")
		return
	}
	for _, s := range a.Steps {
		in := p
		if c.never(s, true) {
			continue
		}
		yes, sure := c.reached(s, true)
		in.sure = p.sure && yes && sure && !tolerated(s)
		if s.Run != nil && s.Shell.IsLiteral() {
			if err := elsewhere(s.Shell.Text()); err != nil {
				c.at(in, plan.Unsupported, "", "%s", err)
			}
		}
		if s.Uses != "" {
			c.uses(in, s, depth+1)
		}
	}
}
