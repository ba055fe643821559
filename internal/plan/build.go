package plan

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// Build plans a run. The diagnostics say what the author has to mend; when any of
// them is an error the run is nil. A run that Build returns has at least one job.
//
// The workflow must have been read without errors (workflow.Parse). Build checks
// again only what it would otherwise stumble over.
func Build(req Request) (*Run, []workflow.Diagnostic) {
	w := req.Workflow
	r := &Run{
		Version:  Version,
		Workflow: w.Name,
		File:     w.File,
		GitHub:   withoutToken(req.GitHub),
		Vars:     orObject(req.Vars),
		ReadOnly: req.ReadOnly,
	}
	if r.Workflow == "" {
		r.Workflow = w.File
	}
	if e := req.Event; e != nil {
		r.Event, r.Action, r.Ref, r.SHA = e.Event, e.Action, e.Ref, e.SHA
	}
	l := loader{run: r, load: req.Load, byWorkflow: map[*workflow.Workflow]int{}, byCall: map[string]int{}}
	l.file(w, nil)
	if workflow.Errors(l.diags) {
		return nil, l.diags
	}

	perms := defaultPermissions(req.DefaultPermissions)
	r.Calls = []*Call{{Level: 1, Inputs: orObject(req.Inputs), Permissions: perms, IDToken: perms.Allows("contents", "write")}}
	p := newPlanner(r)
	p.diags = l.diags
	env := &expr.Env{Contexts: r.contexts(r.Calls[0])}
	name, err := w.RunName.EvalString(env)
	if err != nil {
		p.diag(w, err, posOf(w.RunName), "run-name")
	}
	r.Name = strings.TrimSpace(name)
	if r.Name == "" {
		r.Name = defaultRunName(r)
	}
	if r.Concurrency, err = group(w.Concurrency, env); err != nil {
		p.diag(w, err, w.Concurrency.Pos, "concurrency")
	}
	for _, def := range w.Jobs {
		jobs, err := p.job(0, def, nil, nil)
		if err != nil {
			p.diag(w, err, def.Pos, "plan")
			continue
		}
		r.Jobs = append(r.Jobs, jobs...)
	}
	if len(r.Jobs) == 0 && !workflow.Errors(p.diags) {
		p.diag(w, errors.New("the workflow has no jobs"), workflow.Pos{}, "no-jobs")
	}
	if workflow.Errors(p.diags) {
		return nil, p.diags
	}
	return r, p.diags
}

func withoutToken(github expr.Value) expr.Value {
	if github.Kind() != expr.KindObject {
		return expr.Object(expr.NewMap())
	}
	if _, ok := github.AsMap().Get("token"); !ok {
		return github
	}
	m := github.AsMap().Clone()
	m.Delete("token")
	return expr.Object(m)
}

// defaultRunName is GitHub's: what the event is about, or the workflow's name.
func defaultRunName(r *Run) string {
	event := r.GitHub.Get("event")
	var title string
	switch {
	case r.Event == "push":
		title, _, _ = strings.Cut(event.At("head_commit", "message").AsString(), "\n")
	case strings.HasPrefix(r.Event, "pull_request"):
		title = event.At("pull_request", "title").AsString()
	}
	if title = strings.TrimSpace(title); title != "" {
		return title
	}
	return r.Workflow
}

// loader gathers all files of a run and checks each on its own.
type loader struct {
	run        *Run
	load       func(uses string, from *workflow.Workflow) (*workflow.Workflow, error)
	byWorkflow map[*workflow.Workflow]int
	byCall     map[string]int // calling file's index and uses, for those that Load gave
	diags      []workflow.Diagnostic
}

func (l *loader) error(w *workflow.Workflow, pos workflow.Pos, rule, hint, format string, args ...any) {
	l.diags = append(l.diags, workflow.Diagnostic{
		File: w.File, Pos: pos, Severity: workflow.Error, Rule: rule, Hint: hint,
		Message: fmt.Sprintf(format, args...),
	})
}

// file adds w and everything it calls and returns its index. path holds the
// files from the first one to w's caller.
func (l *loader) file(w *workflow.Workflow, path []*workflow.Workflow) int {
	if n, ok := l.byWorkflow[w]; ok {
		return n
	}
	n := len(l.run.Files)
	plain := *w
	plain.Called = nil // Files holds each file once
	f := &File{Workflow: &plain}
	l.run.Files = append(l.run.Files, f)
	l.byWorkflow[w] = n
	l.check(w)

	path = append(path[:len(path):len(path)], w)
	for _, job := range w.Jobs {
		if job.Uses == "" {
			continue
		}
		if _, ok := f.Called[job.Uses]; ok {
			continue
		}
		if len(path) > MaxDepth {
			l.error(w, job.UsesPos, "call-depth", "", "Nested reusable workflow depth exceeded %d.", MaxDepth)
			continue
		}
		callee := w.Called[job.Uses]
		if callee == nil {
			if l.load == nil {
				l.error(w, job.UsesPos, "call-missing", "", "The called workflow '%s' is not at hand", job.Uses)
				continue
			}
			var err error
			if callee, err = l.load(job.Uses, w); err != nil || callee == nil {
				l.error(w, job.UsesPos, "call-missing", "", "The called workflow '%s' cannot be read: %v", job.Uses, err)
				continue
			}
		}
		if callee.Trigger("workflow_call") == nil {
			l.error(w, job.UsesPos, "call-trigger", "Add `workflow_call:` to its `on:`.",
				"The called workflow '%s' has no 'workflow_call' trigger", job.Uses)
			continue
		}
		if slices.ContainsFunc(path, func(p *workflow.Workflow) bool { return p == callee || p.File == callee.File }) {
			l.error(w, job.UsesPos, "call-loop", "", "The call of '%s' makes a loop", job.Uses)
			continue
		}
		if len(l.run.Files) > MaxFiles {
			l.error(w, job.UsesPos, "call-count", "", "A run may call at most %d different workflows", MaxFiles)
			return n
		}
		if f.Called == nil {
			f.Called = map[string]int{}
		}
		f.Called[job.Uses] = l.file(callee, path)
	}
	return n
}

// check looks at what can be wrong in one file whatever happens: its needs, and
// matrices that hold no expression.
func (l *loader) check(w *workflow.Workflow) {
	byID := make(map[string]*workflow.Job, len(w.Jobs))
	for _, j := range w.Jobs {
		if byID[fold(j.ID)] != nil {
			l.error(w, j.Pos, "job-duplicate", "", "'%s' is already defined", j.ID)
		}
		byID[fold(j.ID)] = j
	}
	// Depth first along the needs; a job met again on the way is a cycle.
	const (
		unseen = iota
		open
		closed
	)
	state := map[*workflow.Job]int{}
	var visit func(*workflow.Job)
	visit = func(j *workflow.Job) {
		state[j] = open
		for _, need := range j.Needs {
			n := byID[fold(need.ID)]
			switch {
			case n == nil:
				l.error(w, need.Pos, "needs-unknown", "", "Job '%s' depends on unknown job '%s'.", j.ID, need.ID)
			case state[n] == open:
				l.error(w, need.Pos, "needs-cycle", "Take one of these needs away.",
					"Job '%s' depends on job '%s' which creates a cycle in the dependency graph.", j.ID, need.ID)
			case state[n] == unseen:
				visit(n)
			}
		}
		state[j] = closed
	}
	for _, j := range w.Jobs {
		if state[j] == unseen {
			visit(j)
		}
		if s := j.Strategy; s != nil && s.Matrix != nil && !s.Matrix.HasExpr() {
			v, err := s.Matrix.Eval(&expr.Env{Contexts: expr.NewMap()})
			if err == nil {
				_, err = expandMatrix(v, s.Matrix)
			}
			if err != nil {
				pos, msg := place(err, s.Matrix.Pos)
				l.error(w, pos, "matrix", "", "%s", msg)
			}
		}
	}
}

// place splits an error into where and what.
func place(err error, fallback workflow.Pos) (workflow.Pos, string) {
	if pe, ok := errors.AsType[*planError](err); ok {
		if !pe.pos.IsZero() {
			fallback = pe.pos
		}
		return fallback, pe.msg
	}
	if ee, ok := errors.AsType[*workflow.EvalError](err); ok {
		if !ee.Pos.IsZero() {
			fallback = ee.Pos
		}
		return fallback, ee.Err.Error()
	}
	return fallback, err.Error()
}

// planner makes the jobs of a run: in Build, and later in State for matrices
// that had to wait.
type planner struct {
	run   *Run
	keys  map[string]bool
	diags []workflow.Diagnostic
}

func newPlanner(r *Run) *planner {
	p := &planner{run: r, keys: make(map[string]bool, len(r.Jobs))}
	for _, j := range r.Jobs {
		p.keys[j.Key] = true
	}
	return p
}

func (p *planner) diag(w *workflow.Workflow, err error, pos workflow.Pos, rule string) {
	pos, msg := place(err, pos)
	p.diags = append(p.diags, workflow.Diagnostic{File: w.File, Pos: pos, Severity: workflow.Error, Rule: rule, Message: msg})
}

// waits reports whether v cannot be evaluated yet in an instance.
func (p *planner) waits(v *workflow.Value, c *Call, needsKnown bool) bool {
	if v == nil || needsKnown && !c.Pending && len(c.Waiting) == 0 {
		return false
	}
	switch v.Kind {
	case workflow.Expression:
		wait := false
		if v.Expr != nil {
			v.Expr.Uses(func(context string, path []string) {
				switch fold(context) {
				case "needs":
					wait = wait || !needsKnown
				case "inputs":
					wait = wait || c.waits(path)
				}
			})
		}
		return wait
	case workflow.Sequence:
		for _, it := range v.Items {
			if p.waits(it, c, needsKnown) {
				return true
			}
		}
	case workflow.Mapping:
		for _, pr := range v.Pairs {
			if p.waits(pr.Key, c, needsKnown) || p.waits(pr.Value, c, needsKnown) {
				return true
			}
		}
	}
	return false
}

// strategy is an evaluated strategy.
type strategy struct {
	cells       []cell // nil without a matrix
	matrix      bool
	failFast    bool
	maxParallel int // 0: no limit
}

func (p *planner) strategy(def *workflow.Job, env *expr.Env) (strategy, error) {
	out := strategy{failFast: true}
	s := def.Strategy
	if s == nil {
		return out, nil
	}
	var matrix, failFast, maxParallel expr.Value
	var err error
	if s.Value != nil && s.Value.Kind == workflow.Expression {
		v, err := s.Value.Eval(env)
		if err != nil {
			return out, err
		}
		if v.Kind() != expr.KindObject {
			return out, errorAt(s.Pos, "Unexpected value '%s'", v.ToString())
		}
		matrix, failFast, maxParallel = v.Get("matrix"), v.Get("fail-fast"), v.Get("max-parallel")
	} else {
		if matrix, err = s.Matrix.Eval(env); err != nil {
			return out, err
		}
		if failFast, err = s.FailFast.Eval(env); err != nil {
			return out, err
		}
		if maxParallel, err = s.MaxParallel.Eval(env); err != nil {
			return out, err
		}
	}
	at := func(v *workflow.Value) workflow.Pos {
		if v == nil {
			return s.Pos
		}
		return v.Pos
	}
	switch failFast.Kind() {
	case expr.KindNull:
	case expr.KindBool:
		out.failFast = failFast.AsBool()
	default:
		return out, errorAt(at(s.FailFast), "Unexpected value '%s'", failFast.ToString())
	}
	switch maxParallel.Kind() {
	case expr.KindNull:
	case expr.KindNumber:
		// GitHub cuts to a whole number and takes what is not positive as no limit.
		if f := maxParallel.AsNumber(); f >= 1 {
			out.maxParallel = int(min(f, MaxMatrix))
		}
	default:
		return out, errorAt(at(s.MaxParallel), "Unexpected value '%s'", maxParallel.ToString())
	}
	if s.Matrix == nil && matrix.Kind() == expr.KindNull {
		return out, nil
	}
	out.matrix = true
	out.cells, err = expandMatrix(matrix, s.Matrix)
	return out, err
}

// job plans one job as written, in one instance: its cells, each followed by the
// jobs that it calls. needs is nil while unknown; then a matrix that depends on
// it yields a placeholder. Given the placeholder that it replaces, it may use that
// key again.
func (p *planner) job(call int, def *workflow.Job, needs *expr.Value, placeholder *Job) ([]*Job, error) {
	r := p.run
	c := r.Calls[call]
	base := Job{
		ID:          def.ID,
		Call:        call,
		call:        c,
		MatrixTotal: 1,
		MaxParallel: 1,
		FailFast:    true,
		Definition:  def,
		Workflow:    r.Files[c.File].Workflow,
		Permissions: p.permissions(c, def),
		CacheMode:   p.cacheMode(c, def),
	}
	keyPrefix, namePrefix := "", ""
	if c.caller != nil {
		keyPrefix, namePrefix = c.caller.Key+" / ", c.caller.Name+" / "
		base.CallPath = append(slices.Clone(c.caller.CallPath), c.caller.Key)
	}
	for _, n := range def.Needs {
		if need := base.Workflow.Job(n.ID); need != nil {
			base.Needs = append(base.Needs, need.ID)
		}
	}
	env := &expr.Env{Contexts: r.contexts(c)}
	if needs != nil {
		env.Contexts.Set("needs", *needs)
	}

	var st strategy
	deferred := false
	if s := def.Strategy; s != nil {
		deferred = p.waits(s.Value, c, needs != nil) || p.waits(s.Matrix, c, needs != nil) ||
			p.waits(s.FailFast, c, needs != nil) || p.waits(s.MaxParallel, c, needs != nil)
	}
	if !deferred {
		var err error
		if st, err = p.strategy(def, env); err != nil {
			pos, msg := place(err, def.Pos)
			if needs != nil {
				return nil, errorAt(pos, "Error when evaluating 'strategy' for job '%s'. %s", def.ID, msg)
			}
			if def.Strategy.Matrix != nil && !def.Strategy.Matrix.HasExpr() && !def.Strategy.FailFast.HasExpr() && !def.Strategy.MaxParallel.HasExpr() {
				return nil, errorAt(pos, "%s", msg)
			}
			// GitHub evaluates the strategy only of a job that runs: it may be
			// that its `if` says no.
			p.diags = append(p.diags, workflow.Diagnostic{
				File: base.Workflow.File, Pos: pos, Severity: workflow.Advice, Rule: "matrix-unknown", Message: msg,
				Hint: "The job fails here if its condition lets it run.",
			})
			deferred = true
		}
	}

	if placeholder != nil {
		delete(p.keys, placeholder.Key)
	}
	base.FailFast = st.failFast || deferred
	cells := st.cells
	switch {
	case deferred:
		base.Deferred = true
		cells = []cell{{}}
	case !st.matrix:
		cells = []cell{{}}
	default:
		base.MatrixTotal = len(cells)
		if len(r.Only) > 0 && len(cells) > 0 {
			cells = keepCells(cells, r.Only)
		}
		if len(cells) == 0 {
			// Everything is excluded: one job stands for it, to be skipped.
			base.MatrixTotal = 0
			cells = []cell{{}}
		}
	}
	base.MaxParallel = max(1, base.MatrixTotal)
	if st.maxParallel > 0 {
		base.MaxParallel = st.maxParallel
	}
	late := p.lateKeys(c, def, needs != nil)

	var out []*Job
	for i := range cells {
		if len(p.keys) >= MaxJobs {
			return nil, errorAt(def.Pos, "The workflow may not contain more than %d jobs", MaxJobs)
		}
		j := base // one allocation a cell; everything it points to is shared
		j.Matrix = cells[i].matrix
		j.MatrixIndex = cells[i].index
		j.Late = late
		j.Key = p.key(keyPrefix + cellName(def.ID, cells[i].segments))
		p.name(&j, cells[i].segments, namePrefix, needs)
		if err := p.evaluate(&j, needs, false); err != nil {
			return nil, err
		}
		out = append(out, &j)
		if !j.IsCall() || j.Deferred || j.MatrixTotal == 0 {
			continue
		}
		inner, err := p.open(&j, needs)
		if err != nil {
			return nil, err
		}
		out = append(out, inner...)
	}
	return out, nil
}

// key makes k unique and takes it.
func (p *planner) key(k string) string {
	unique := k
	for n := 2; p.keys[unique]; n++ {
		unique = fmt.Sprintf("%s #%d", k, n)
	}
	p.keys[unique] = true
	return unique
}

// open makes the instance that a calling job runs, and its jobs.
func (p *planner) open(j *Job, needs *expr.Value) ([]*Job, error) {
	r := p.run
	parent := r.Calls[j.Call]
	n, ok := r.Files[parent.File].Called[j.Definition.Uses]
	if !ok {
		return nil, errorAt(j.Definition.UsesPos, "The called workflow '%s' is not at hand", j.Definition.Uses)
	}
	c := &Call{
		File: n, Caller: j.Key, Parent: j.Call, Level: parent.Level + 1,
		Permissions: j.Permissions, CacheMode: j.CacheMode, caller: j,
		IDToken: parent.IDToken && j.Definition.Permissions == nil && r.Files[parent.File].Workflow.Permissions == nil,
	}
	if c.Level > MaxDepth+1 {
		return nil, errorAt(j.Definition.UsesPos, "Nested reusable workflow depth exceeded %d.", MaxDepth)
	}
	if err := p.inputs(j, c, needs); err != nil {
		if needs != nil || !j.Definition.With.HasExpr() {
			return nil, err
		}
		// As with a strategy: it only matters if the job runs.
		c.Pending = true
		c.Inputs = expr.Object(expr.NewMap())
	}
	r.Calls = append(r.Calls, c)
	call := len(r.Calls) - 1
	j.Opens = call
	var out []*Job
	for _, def := range r.Files[n].Workflow.Jobs {
		jobs, err := p.job(call, def, nil, nil)
		if err != nil {
			return nil, err
		}
		out = append(out, jobs...)
	}
	return out, nil
}

// permissions is the token scope of a job in an instance.
func (p *planner) permissions(c *Call, def *workflow.Job) Permissions {
	have := c.Permissions
	asked := def.Permissions
	if asked == nil {
		asked = p.run.Files[c.File].Workflow.Permissions
	}
	if asked != nil {
		have = requested(asked)
		if c.Level > 1 {
			limit := c.Permissions
			if c.IDToken {
				limit = maps.Clone(limit)
				limit[idToken] = "write"
			}
			have = have.within(limit)
		}
	}
	if p.run.ReadOnly {
		have = have.readOnly()
	}
	return have
}
