package engine

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
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
}

// Check says, before anything runs, what of a planned run the engine cannot run:
// by name, and at its place in the file. What depends on results of other jobs is
// looked at when its job starts, and fails it then. Actions that are not in the
// mirrors are fetched.
func Check(ctx context.Context, run *plan.Run, opt CheckOptions) []workflow.Diagnostic {
	c := &checker{ctx: ctx, run: run, opt: opt, seen: map[string]bool{}, trees: map[string]*resolved{}}
	c.fetch()
	done := map[*workflow.Job]bool{}
	for _, j := range run.Jobs {
		if j.Definition == nil || j.IsCall() {
			continue
		}
		c.labels(j)
		c.containers(j)
		if !done[j.Definition] {
			done[j.Definition] = true
			c.job(j)
		}
	}
	return c.diags
}

type checker struct {
	ctx   context.Context
	run   *plan.Run
	opt   CheckOptions
	diags []workflow.Diagnostic
	seen  map[string]bool

	mu    sync.Mutex
	trees map[string]*resolved
}

type resolved struct {
	tree *action.Tree
	err  error
}

func (c *checker) refuse(file string, pos workflow.Pos, rule, hint, format string, args ...any) {
	d := workflow.Diagnostic{File: file, Pos: pos, Near: pos, Rule: rule, Hint: hint, Message: fmt.Sprintf(format, args...)}
	if key := d.String(); !c.seen[key] {
		c.seen[key] = true
		c.diags = append(c.diags, d)
	}
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

func (c *checker) labels(j *plan.Job) {
	for _, l := range j.Labels {
		if sys := foreign(l); sys != "" && (c.opt.Mapped == nil || !c.opt.Mapped(l)) {
			pos := j.Definition.Pos
			if j.Definition.RunsOn != nil {
				pos = j.Definition.RunsOn.Pos
			}
			c.refuse(j.Workflow.File, pos, "unsupported", "Run this job on GitHub, or choose other jobs with -j.",
				"Job '%s' runs on '%s': the machines here are Linux, not %s", j.Name, l, sys)
		}
	}
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

// containersOf names the container or service that a job asks for, with its
// place; "" if none.
func containersOf(j *plan.Job, env *expr.Env) (what string, pos workflow.Pos, err error) {
	d := j.Definition
	if d.Container != nil {
		v, err := d.Container.Eval(env)
		if err != nil {
			return "", d.Container.Pos, err
		}
		if needed(v) {
			return "container:", d.Container.Pos, nil
		}
	}
	if d.Services != nil {
		v, err := d.Services.Eval(env)
		if err != nil {
			return "", d.Services.Pos, err
		}
		if m := v.AsMap(); m != nil {
			for name, s := range m.All() {
				if needed(s) {
					pos := d.Services.Pos
					if d.Services.Kind == workflow.Mapping {
						for _, p := range d.Services.Pairs {
							if strings.EqualFold(p.Key.Text(), name) {
								pos = p.Key.Pos
							}
						}
					}
					return "service '" + name + "'", pos, nil
				}
			}
		}
	}
	return "", workflow.Pos{}, nil
}

func (c *checker) containers(j *plan.Job) {
	if j.Deferred {
		return
	}
	const hint = "Install what it provides in a step, or start it there; the machine belongs to the job alone."
	what, pos, err := containersOf(j, &expr.Env{Contexts: c.run.Contexts(j, expr.Null())})
	switch {
	case err != nil && len(j.Needs) == 0:
		c.refuse(j.Workflow.File, pos, "unsupported", hint, "Job '%s': %s", j.Name, noContainers("container: or services:"))
	case what != "":
		c.refuse(j.Workflow.File, pos, "unsupported", hint, "Job '%s': %s", j.Name, noContainers(what))
	}
	if s := j.Definition.Snapshot; s != nil {
		c.refuse(j.Workflow.File, s.Pos, "unsupported", "", "Job '%s': snapshot: is not supported yet", j.Name)
	}
}

// walk calls fn for each step, those in parallel blocks included.
func walk(steps []*workflow.Step, fn func(*workflow.Step)) {
	for _, s := range steps {
		fn(s)
		walk(s.Parallel, fn)
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
		walk(j.Definition.Steps, func(s *workflow.Step) {
			ref, err := action.ParseRef(s.Uses)
			if s.Uses == "" || err != nil || ref.Kind != action.Remote || builtin(ref, c.opt.Results) || asked[key(ref)] || c.opt.Actions == nil {
				return
			}
			asked[key(ref)] = true
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				c.tree(ref)
			})
		})
	}
	wg.Wait()
}

func key(ref action.Ref) string { return strings.ToLower(ref.Repository()) + "@" + ref.Ref }

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

func (c *checker) job(j *plan.Job) {
	file := j.Workflow.File
	for _, d := range []*workflow.Defaults{j.Workflow.Defaults, j.Definition.Defaults} {
		if d != nil {
			c.shell(file, d.Shell)
		}
	}
	walk(j.Definition.Steps, func(s *workflow.Step) {
		if s.Run != nil {
			c.shell(file, s.Shell)
		}
		if s.Uses != "" {
			c.uses(place{file: file, pos: s.UsesPos}, s, 1)
		}
	})
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
}

func (c *checker) at(p place, rule, hint, format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	if p.via != "" {
		msg = p.via + ": " + msg
	}
	c.refuse(p.file, p.pos, rule, hint, "%s", msg)
}

func (c *checker) shell(file string, v *workflow.Value) {
	if v == nil || !v.IsLiteral() {
		return
	}
	name := v.Text()
	if _, err := parseShell(name); err != nil {
		c.refuse(file, v.Pos, "unsupported", "", "%s", err)
		return
	}
	if name == "pwsh" && c.opt.Shells != nil && !slices.Contains(c.opt.Shells, name) {
		c.refuse(file, v.Pos, "unsupported", "Use another shell, or an image that has it (-P label=image).", "The shell '%s' is not in this machine's image", name)
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
		c.at(p, "unsupported", "", "%s", noContainers("uses: "+s.Uses))
	case ref.Is("actions/checkout"):
		input, problem := refusedCheckout(func(name string) string {
			if v := s.With.Get(name); v.IsLiteral() {
				return v.Text()
			}
			return ""
		})
		if problem != "" {
			if p.via == "" {
				p.pos = s.With.Get(input).Pos
			}
			c.at(p, "unsupported", "", "%s", problem)
		}
	case needsResults(ref) && !c.opt.Results:
		c.at(p, "unsupported", "Leave the step out, or run it only on GitHub.", "%s needs the artifact and cache service, which is not there yet", s.Uses)
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

func (c *checker) remote(p place, ref action.Ref, depth int) {
	const hint = "Check the name and the version. Without the network: --local-repository owner/repo@ref=DIR."
	if slices.Contains(p.chain, ref.String()) {
		c.at(p, "action", "", "%s uses itself: composite actions may be nested at most %d deep", ref, maxDepth)
		return
	}
	// An action that is reached on several ways is looked at once.
	if visit := fmt.Sprint(p.file, p.pos, ref); c.seen[visit] {
		return
	} else {
		c.seen[visit] = true
	}
	tree, err := c.tree(ref)
	if err != nil {
		c.at(p, "action", hint, "%s", err)
		return
	}
	file, src, err := tree.Load(c.ctx, ref.Path)
	if err != nil {
		c.at(p, "action", hint, "%s", err)
		return
	}
	a, diags := action.Parse(ref.Repository()+"/"+file, src)
	for _, d := range diags {
		if d.Severity == workflow.Error {
			c.at(p, "action", "", "%s: %s", ref, d)
		}
	}
	if workflow.Errors(diags) {
		return
	}
	c.action(place{file: p.file, pos: p.pos, via: via(p.via, ref), of: ref, chain: append(slices.Clip(p.chain), ref.String())}, a, depth)
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
	for _, n := range action.Names() {
		name := path.Join(ref.Path, n)
		src, err := c.opt.Files(c.ctx, name, action.MaxFile)
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				c.at(p, "action", "", "%s: %s", name, err)
			}
			continue
		}
		a, diags := action.Parse(name, src)
		for _, d := range diags {
			if key := d.String(); !c.seen[key] && d.Severity == workflow.Error {
				c.seen[key] = true
				c.diags = append(c.diags, d)
			}
		}
		if !workflow.Errors(diags) {
			c.action(place{file: p.file, pos: p.pos, via: via(p.via, ref), chain: p.chain}, a, depth)
		}
		return
	}
	// It may be made by a step before, or come with a checkout of another ref.
}

// action checks an action that was read.
func (c *checker) action(p place, a *action.Action, depth int) {
	if a.Using == "docker" {
		c.at(p, "unsupported", "", "%s", noContainers("this Docker action"))
		return
	}
	for _, s := range a.Steps {
		if s.Run != nil && s.Shell.IsLiteral() {
			if _, err := parseShell(s.Shell.Text()); err != nil {
				c.at(p, "unsupported", "", "%s", err)
			}
		}
		if s.Uses != "" {
			c.uses(p, s, depth+1)
		}
	}
}

// refused says why the job cannot run, of what could only be known now.
func (r *run) refused(env *expr.Env) string {
	for _, l := range r.job.Plan.Labels {
		if sys := foreign(l); sys != "" {
			return fmt.Sprintf("The job runs on '%s': the machines here are Linux, not %s", l, sys)
		}
	}
	what, _, err := containersOf(r.job.Plan, env)
	if err != nil {
		return err.Error()
	}
	if what != "" {
		return noContainers(what)
	}
	return ""
}
