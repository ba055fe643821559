package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// keyed is a key of a job that plan evaluates, with how.
type keyed struct {
	name string
	of   func(*workflow.Job) *workflow.Value
	set  func(j *Job, v *workflow.Value, env *expr.Env) error
}

// jobKeys returns the keys that plan evaluates. The name is separate: it has a default.
func jobKeys() []keyed {
	return []keyed{
		{"runs-on", func(d *workflow.Job) *workflow.Value { return d.RunsOn }, setRunsOn},
		{"environment", func(d *workflow.Job) *workflow.Value { return environmentName(d.Environment) }, setEnvironment},
		{"concurrency", func(d *workflow.Job) *workflow.Value {
			if d.Concurrency == nil {
				return nil
			}
			return d.Concurrency.Value
		}, func(j *Job, _ *workflow.Value, env *expr.Env) (err error) {
			j.Concurrency, err = group(j.Definition.Concurrency, env)
			return err
		}},
		{"continue-on-error", func(d *workflow.Job) *workflow.Value { return d.ContinueOnError },
			func(j *Job, v *workflow.Value, env *expr.Env) (err error) {
				j.ContinueOnError, err = boolean(v, env)
				return err
			}},
		{"timeout-minutes", func(d *workflow.Job) *workflow.Value { return d.TimeoutMinutes },
			func(j *Job, v *workflow.Value, env *expr.Env) (err error) {
				j.TimeoutMinutes, err = number(v, env)
				return err
			}},
		{"cancel-timeout-minutes", func(d *workflow.Job) *workflow.Value { return d.CancelTimeoutMinutes },
			func(j *Job, v *workflow.Value, env *expr.Env) (err error) {
				j.CancelTimeoutMinutes, err = number(v, env)
				return err
			}},
	}
}

// lateKeys names the keys that have to wait.
func (p *planner) lateKeys(c *Call, def *workflow.Job, needsKnown bool) []string {
	var late []string
	if p.waits(def.Name, c, needsKnown) {
		late = append(late, "name")
	}
	for _, k := range jobKeys() {
		if p.waits(k.of(def), c, needsKnown) {
			late = append(late, k.name)
		}
	}
	return late
}

// name sets the name that j has before anything of it is evaluated late.
//
// GitHub appends the matrix only to a name that is no expression; one that is may
// show the matrix itself.
func (p *planner) name(j *Job, segments []string, prefix string, needs *expr.Value) {
	def := j.Definition
	name := cellName(def.ID, segments)
	switch {
	case def.Name == nil:
	case !def.Name.HasExpr():
		if t := def.Name.Text(); t != "" {
			name = cellName(t, segments)
		}
	case j.Deferred:
		j.Late = withKey(j.Late, "name")
	case !slices.Contains(j.Late, "name"):
		n := expr.Null()
		if needs != nil {
			n = *needs
		}
		s, err := def.Name.EvalString(&expr.Env{Contexts: p.run.Contexts(j, n)})
		if err != nil {
			j.Late = withKey(j.Late, "name") // fails when the job starts, if it does
		} else if s != "" {
			name = s
		}
	}
	j.Name = prefix + name
}

// rename evaluates a name that had to wait.
func (p *planner) rename(j *Job, env *expr.Env) error {
	s, err := j.Definition.Name.EvalString(env)
	if err != nil || s == "" {
		return err
	}
	if c := p.run.Calls[j.Call].caller; c != nil {
		s = c.Name + " / " + s
	}
	p.setName(j, s)
	return nil
}

// setName renames j and, where it calls, the jobs inside.
func (p *planner) setName(j *Job, name string) {
	old := j.Name + " / "
	j.Name = name
	if j.Opens == 0 {
		return
	}
	for _, in := range p.run.Jobs {
		if slices.Contains(in.CallPath, j.Key) {
			if rest, ok := strings.CutPrefix(in.Name, old); ok {
				in.Name = name + " / " + rest
			}
		}
	}
}

// withKey appends a key without touching what other jobs share.
func withKey(late []string, key string) []string {
	if slices.Contains(late, key) {
		return late
	}
	return append(slices.Clip(late), key)
}

// evaluate fills in the keys of a job. At first, what has to wait or fails is
// noted in j.Late. In the end (final) only those are evaluated, and what fails
// then is the error.
func (p *planner) evaluate(j *Job, needs *expr.Value, final bool) error {
	def := j.Definition
	var env *expr.Env // made only when something needs it
	environ := func() *expr.Env {
		if env == nil {
			n := expr.Null()
			if needs != nil {
				n = *needs
			}
			env = &expr.Env{Contexts: p.run.Contexts(j, n)}
		}
		return env
	}
	failed := func(key string, err error) error {
		pos, msg := place(err, def.Pos)
		return errorAt(pos, "Error when evaluating '%s' for job '%s'. %s", key, def.ID, msg)
	}
	if final {
		for _, key := range j.Late {
			if key == "name" {
				if err := p.rename(j, environ()); err != nil {
					return failed(key, err)
				}
			}
		}
	} else {
		j.TimeoutMinutes, j.CancelTimeoutMinutes = DefaultTimeoutMinutes, DefaultCancelTimeoutMinutes
	}
	for _, k := range jobKeys() {
		v := k.of(def)
		if v == nil || final && !slices.Contains(j.Late, k.name) {
			continue
		}
		if !final && (slices.Contains(j.Late, k.name) || j.Deferred && v.HasExpr()) {
			j.Late = withKey(j.Late, k.name)
			continue
		}
		if err := k.set(j, v, environ()); err != nil {
			if final {
				return failed(k.name, err)
			}
			j.Late = withKey(j.Late, k.name)
		}
	}
	if final {
		j.Late = nil
	}
	p.run.limit(j)
	return nil
}

func boolean(v *workflow.Value, env *expr.Env) (bool, error) {
	out, err := v.Eval(env)
	if err != nil {
		return false, err
	}
	if out.Kind() != expr.KindBool {
		return false, errorAt(v.Pos, "Unexpected value '%s'", out.ToString())
	}
	return out.AsBool(), nil
}

func number(v *workflow.Value, env *expr.Env) (float64, error) {
	out, err := v.Eval(env)
	if err != nil {
		return 0, err
	}
	if out.Kind() != expr.KindNumber {
		return 0, errorAt(v.Pos, "Unexpected value '%s'", out.ToString())
	}
	return out.AsNumber(), nil
}

func setRunsOn(j *Job, v *workflow.Value, env *expr.Env) error {
	out, err := v.Eval(env)
	if err != nil {
		return err
	}
	j.Labels, j.RunnerGroup = nil, ""
	labels := out
	if out.Kind() == expr.KindObject {
		labels = out.Get("labels")
		g := out.Get("group")
		if !g.Primitive() {
			return errorAt(v.Pos, "Unexpected value '%s'", g.ToString())
		}
		j.RunnerGroup = g.ToString()
	}
	items := []expr.Value{labels}
	if labels.Kind() == expr.KindArray {
		items = labels.AsArray()
	}
	for _, it := range items {
		if !it.Primitive() {
			return errorAt(v.Pos, "Unexpected value '%s'", it.ToString())
		}
		if s := strings.TrimSpace(it.ToString()); s != "" {
			j.Labels = append(j.Labels, s)
		}
	}
	if len(j.Labels) == 0 && j.RunnerGroup == "" {
		return errorAt(v.Pos, "Unexpected value ''")
	}
	return nil
}

// environmentName is the part of `environment` that is known before the job
// runs: its url may use steps.
func environmentName(v *workflow.Value) *workflow.Value {
	if v != nil && v.Kind == workflow.Mapping {
		out := &workflow.Value{Kind: workflow.Mapping, Pos: v.Pos}
		for _, p := range v.Pairs {
			if p.Key.Kind == workflow.String && expr.EqualFold(p.Key.Str, "url") {
				continue
			}
			out.Pairs = append(out.Pairs, p)
		}
		return out
	}
	return v
}

func setEnvironment(j *Job, v *workflow.Value, env *expr.Env) error {
	out, err := v.Eval(env)
	if err != nil {
		return err
	}
	e := Environment{}
	switch {
	case out.Kind() == expr.KindObject:
		e.Name = out.Get("name").ToString()
		if d := out.Get("deployment"); d.Kind() == expr.KindBool {
			e.NoDeployment = !d.AsBool()
		}
	case out.Primitive():
		e.Name = out.ToString()
	default:
		return errorAt(v.Pos, "Unexpected value '%s'", out.ToString())
	}
	j.Environment = nil
	if e.Name != "" { // an empty name means none: environment: ${{ x && 'prod' || '' }}
		j.Environment = &e
	}
	return nil
}

// group evaluates a concurrency group.
func group(c *workflow.Concurrency, env *expr.Env) (*Group, error) {
	if c == nil {
		return nil, nil
	}
	g := &Group{Queue: c.Queue}
	at := c.Pos
	name := c.Group
	cancel := expr.Bool(false)
	var err error
	if name == nil && c.Value != nil {
		name = c.Value
	}
	if name == nil {
		return nil, errorAt(at, "Concurrency group name cannot be empty")
	}
	v, err := name.Eval(env)
	if err != nil {
		return nil, err
	}
	if v.Kind() == expr.KindObject { // the whole was an expression
		cancel = v.Get("cancel-in-progress")
		if q := v.Get("queue").ToString(); q != "" {
			g.Queue = q
		}
		v = v.Get("group")
	}
	if !v.Primitive() {
		return nil, errorAt(at, "Unexpected value '%s'", v.ToString())
	}
	g.Name = v.ToString()
	if c.CancelInProgress != nil {
		if cancel, err = c.CancelInProgress.Eval(env); err != nil {
			return nil, err
		}
	}
	switch cancel.Kind() {
	case expr.KindNull:
	case expr.KindBool:
		g.CancelInProgress = cancel.AsBool()
	default:
		return nil, errorAt(at, "Unexpected value '%s'", cancel.ToString())
	}
	switch g.Queue {
	case "":
		g.Queue = "single"
	case "single", "max":
	default:
		return nil, errorAt(at, "Unexpected value '%s'", g.Queue)
	}
	switch {
	case g.Name == "":
		return nil, errorAt(at, "Concurrency group name cannot be empty")
	case len([]rune(g.Name)) > 400:
		return nil, errorAt(at, "Concurrency group name must be less than 400 characters")
	case g.CancelInProgress && g.Queue == "max":
		return nil, errorAt(at, "A concurrency group with 'queue: max' cannot have 'cancel-in-progress: true'")
	}
	return g, nil
}

// inputs evaluates what a calling job hands in. While needs is nil, inputs that
// depend on it stay null and are noted as waiting.
func (p *planner) inputs(j *Job, c *Call, needs *expr.Value) error {
	def := j.Definition
	n := expr.Null()
	if needs != nil {
		n = *needs
	}
	outer := j.call
	env := &expr.Env{Contexts: p.run.Contexts(j, n)}
	c.Pending, c.Waiting = false, nil

	given := expr.NewMap()
	at := map[string]workflow.Pos{}
	waiting := map[string]bool{}
	if def.With != nil {
		for _, pair := range def.With.Pairs {
			name := fold(pair.Key.Str)
			if p.waits(pair.Value, outer, needs != nil) {
				waiting[name] = true
				continue
			}
			v, err := pair.Value.Eval(env)
			if err != nil {
				return inputError(j, err, pair.Value.Pos)
			}
			given.Set(pair.Key.Str, v)
			at[name] = pair.Value.Pos
		}
	}

	out := expr.NewMap()
	callee := p.run.Files[c.File].Workflow
	trigger := callee.Trigger("workflow_call")
	if trigger == nil {
		return errorAt(def.UsesPos, "The called workflow '%s' has no 'workflow_call' trigger", def.Uses)
	}
	for _, in := range trigger.Inputs {
		if waiting[fold(in.Name)] {
			c.Waiting = append(c.Waiting, in.Name)
			out.Set(in.Name, expr.Null())
			continue
		}
		v, ok := given.Get(in.Name)
		pos := at[fold(in.Name)]
		if !ok {
			if in.Required {
				return errorAt(def.UsesPos, "Input %s is required, but not provided while calling.", in.Name)
			}
			if in.Default == nil {
				out.Set(in.Name, zeroInput(in.Type))
				continue
			}
			// A default sees the caller's github, vars and inputs.
			if p.waits(in.Default, outer, true) {
				c.Waiting = append(c.Waiting, in.Name)
				out.Set(in.Name, expr.Null())
				continue
			}
			var err error
			if v, err = in.Default.Eval(&expr.Env{Contexts: p.run.contexts(j.call)}); err != nil {
				return inputError(j, err, def.UsesPos)
			}
			pos = def.UsesPos
		}
		typed, ok := typedInput(in.Type, v)
		if !ok {
			err := errorAt(pos, "Unexpected value '%s'", v.ToString())
			if def.With.HasExpr() {
				err = inputError(j, err, pos)
			}
			return err
		}
		out.Set(in.Name, typed)
	}
	c.Inputs = expr.Object(out)
	return nil
}

func inputError(j *Job, err error, pos workflow.Pos) error {
	pos, msg := place(err, pos)
	return errorAt(pos, "Error when evaluating 'with' for job '%s'. %s", j.ID, msg)
}

func zeroInput(typ string) expr.Value {
	switch typ {
	case "boolean":
		return expr.Bool(false)
	case "number":
		return expr.Number(0)
	}
	return expr.String("")
}

// typedInput brings v to the declared type. Only text is coerced, as on GitHub:
// 'true' is no boolean there.
func typedInput(typ string, v expr.Value) (expr.Value, bool) {
	switch typ {
	case "boolean":
		return v, v.Kind() == expr.KindBool
	case "number":
		return v, v.Kind() == expr.KindNumber
	}
	return expr.String(v.ToString()), v.Primitive()
}

// Secrets returns the secrets that a job sees, given those of the run: the map
// itself where nothing is called, otherwise what each call on the way to the job
// hands in or inherits. GITHUB_TOKEN reaches every job. Keys are as declared;
// they compare without regard to case. The job must have been started.
func (r *Run) Secrets(j *Job, available map[string]string) (map[string]string, error) {
	c := j.call
	if c.caller == nil {
		return available, nil
	}
	outer, err := r.Secrets(c.caller, available)
	if err != nil {
		return nil, err
	}
	// What the call declares is not looked at: GitHub refuses undeclared names
	// before anything runs.
	def := c.caller.Definition
	if def.InheritSecrets {
		return outer, nil
	}
	out := map[string]string{}
	for k, v := range outer {
		if strings.EqualFold(k, "GITHUB_TOKEN") {
			out[k] = v
		}
	}
	if def.Secrets == nil {
		return out, nil
	}
	ctx := r.Contexts(c.caller, c.Needs)
	m := expr.NewMap()
	for k, v := range outer {
		m.Set(k, expr.String(v))
	}
	ctx.Set("secrets", expr.Object(m))
	v, err := def.Secrets.Eval(&expr.Env{Contexts: ctx})
	if err != nil {
		pos, msg := place(err, def.Secrets.Pos)
		return nil, fmt.Errorf("plan: the secrets that job %q hands to %s: %w", c.caller.Key, def.Uses, errorAt(pos, "%s", msg))
	}
	for k, val := range v.AsMap().All() {
		if s := val.ToString(); s != "" { // an empty secret is none, as on GitHub
			out[k] = s
		}
	}
	return out, nil
}
