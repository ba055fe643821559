package workflow

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/expr"
)

// Parse reads a workflow file and reports everything wrong with it at once. The
// Workflow is nil only when the file is not YAML or not a mapping; with errors it
// holds what could be understood, and must not be run.
func Parse(file string, src []byte, opt Options) (*Workflow, []Diagnostic) {
	w, phases := parse(file, src, opt)
	return w, phases.all()
}

// phases are the diagnostics of a file by what found them. GitHub stops after the
// first phase that finds an error; an author is better served by all.
type phases struct {
	schema   []Diagnostic // form: keys, kinds of values, expressions
	meaning  []Diagnostic // ids, groups, matrices, conditions
	ordering []Diagnostic // the graph of needs
	bytes    int          // size of what was read, as GitHub counts it
}

func (p *phases) all() []Diagnostic {
	out := p.schema[:len(p.schema):len(p.schema)]
	out = append(out, p.meaning...)
	return append(out, p.ordering...)
}

func parse(file string, src []byte, opt Options) (*Workflow, *phases) {
	opt = opt.withDefaults()
	r := newReader(file, src, opt)
	root := r.read(src, workflowSchema)
	p := &phases{schema: r.diags, bytes: r.bytes}
	if root == nil || root.Kind != Mapping {
		return nil, p
	}
	c := &converter{file: file, opt: opt, stepIf: ctxStepIf}
	w := c.workflow(root)
	w.bytes = r.bytes
	p.meaning, p.ordering = c.diags, c.graph
	return w, p
}

// converter turns values that fit the schema into a Workflow, and checks what a
// schema cannot say. It passes over values that were reported already.
type converter struct {
	file   string
	opt    Options
	diags  []Diagnostic
	graph  []Diagnostic
	stepIf []string // what a step's condition may use
}

func (c *converter) report(d Diagnostic) {
	if len(c.diags) >= maxDiagnostics {
		return
	}
	d.File = c.file
	if d.Near.IsZero() {
		d.Near = d.Pos
	}
	c.diags = append(c.diags, d)
}

func (c *converter) errorf(p Pos, rule, hint, format string, args ...any) {
	c.report(Diagnostic{Pos: p, Rule: rule, Hint: hint, Message: fmt.Sprintf(format, args...)})
}

// fields calls fn for each literal key of a mapping.
func fields(v *Value, fn func(key *Value, val *Value)) {
	if v == nil || v.Kind != Mapping {
		return
	}
	for _, p := range v.Pairs {
		if p.Key.Kind == String {
			fn(p.Key, p.Value)
		}
	}
}

func (c *converter) workflow(root *Value) *Workflow {
	w := &Workflow{File: c.file}
	fields(root, func(k, v *Value) {
		switch k.Str {
		case "name":
			w.Name = v.Text()
		case "description":
			w.Description = v.Text()
		case "run-name":
			w.RunName = v
		case "on":
			w.On, w.onPos = c.triggers(v), v.Pos
		case "env":
			w.Env = v
		case "defaults":
			w.Defaults = defaults(v)
		case "permissions":
			w.Permissions = permissionsOf(v)
		case "cache-mode":
			w.CacheMode = v.Text()
		case "concurrency":
			w.Concurrency = c.concurrency(v)
		case "jobs":
			c.jobs(w, v)
		}
	})
	return w
}

// texts lists the literal texts of a text or a sequence of texts; nil stays nil,
// so that "not given" and "none" differ.
func texts(v *Value) []string {
	switch {
	case v == nil:
		return nil
	case v.Kind == Sequence:
		out := make([]string, 0, len(v.Items))
		for _, it := range v.Items {
			out = append(out, it.Text())
		}
		return out
	case v.Kind == Null:
		return nil
	}
	return []string{v.Text()}
}

func truth(v *Value) bool { return v != nil && v.Kind == Bool && v.Bool }

func (c *converter) triggers(on *Value) []Trigger {
	var out []Trigger
	switch on.Kind {
	case String:
		if !on.bad {
			out = append(out, Trigger{Event: on.Str, Pos: on.Pos})
		}
	case Sequence:
		seen := map[string]bool{}
		for _, it := range on.Items {
			if it.Kind == String && !it.bad && !seen[it.Str] {
				seen[it.Str] = true
				out = append(out, Trigger{Event: it.Str, Pos: it.Pos})
			}
		}
	case Mapping:
		fields(on, func(k, v *Value) { out = append(out, c.trigger(k, v)) })
	}
	return out
}

func (c *converter) trigger(event, v *Value) Trigger {
	t := Trigger{Event: event.Str, Pos: event.Pos, Value: v}
	if event.Str == "schedule" {
		for _, it := range v.Items {
			c.schedule(&t, it)
		}
		c.checkTrigger(&t)
		return t
	}
	given := map[string]Pos{}
	fields(v, func(k, v *Value) {
		given[k.Str] = k.Pos
		switch k.Str {
		case "types":
			t.Types = texts(v)
		case "branches":
			t.Branches = texts(v)
		case "branches-ignore":
			t.BranchesIgnore = texts(v)
		case "tags":
			t.Tags = texts(v)
		case "tags-ignore":
			t.TagsIgnore = texts(v)
		case "paths":
			t.Paths = texts(v)
		case "paths-ignore":
			t.PathsIgnore = texts(v)
		case "workflows":
			t.Workflows = texts(v)
		case "names":
			t.Names = texts(v)
		case "versions":
			t.Versions = texts(v)
		case "inputs":
			fields(v, func(k, v *Value) { t.Inputs = append(t.Inputs, c.input(event.Str, k, v)) })
		case "outputs":
			fields(v, func(k, v *Value) {
				t.Outputs = append(t.Outputs, Output{Name: k.Str, Pos: k.Pos,
					Description: v.Get("description").Text(), Value: v.Get("value")})
			})
		case "secrets":
			fields(v, func(k, v *Value) {
				t.Secrets = append(t.Secrets, Secret{Name: k.Str, Pos: k.Pos,
					Description: v.Get("description").Text(), Required: truth(v.Get("required"))})
			})
		}
	})
	for _, f := range []string{"branches", "tags", "paths"} {
		_, a := given[f]
		if p, b := given[f+"-ignore"]; a && b && !c.opt.StrictEvents {
			c.errorf(p, "filter", fmt.Sprintf("Write what is not wanted as `!pattern` in `%s`, after the patterns it takes away from.", f),
				"you may only define one of `%s` and `%s-ignore` for a single event", f, f)
		}
	}
	c.checkTrigger(&t)
	return t
}

func (c *converter) schedule(t *Trigger, v *Value) {
	if v.Kind != Mapping || v.bad {
		return
	}
	s := Schedule{Pos: v.Pos}
	if cron := v.Get("cron"); cron != nil && !cron.bad {
		s.Cron = cron.Text()
		if c.opt.Placeholders && placeholder(s.Cron) {
			c.report(Diagnostic{Pos: cron.Pos, Severity: Advice, Rule: "placeholder", Message: placeholderMessage(s.Cron)})
			return
		}
		if !validCron(s.Cron) {
			c.errorf(cron.Pos, "cron", "The fields are minute 0-59, hour 0-23, day 1-31, month 1-12 or JAN-DEC, weekday 0-6 or SUN-SAT.",
				"Invalid cron expression. Expected format: '* * * * *' (minute hour day month weekday)")
			return
		}
	}
	s.Timezone = v.Get("timezone").Text()
	t.Cron = append(t.Cron, s)
}

func (c *converter) input(event string, name, v *Value) Input {
	in := Input{Name: name.Str, Pos: name.Pos, Type: "string"}
	if v.Kind != Mapping {
		return in
	}
	in.Description = v.Get("description").Text()
	in.Required = truth(v.Get("required"))
	in.Deprecation = v.Get("deprecationMessage").Text()
	in.Options = texts(v.Get("options"))
	if t := v.Get("type"); t != nil && t.Kind == String {
		in.Type = t.Str
	}
	if d := v.Get("default"); d != nil && d.Kind != Null {
		in.Default = d
	}
	if v.bad {
		return in
	}
	// GitHub's editors report the following and GitHub itself does not.
	sev := Advice
	if c.opt.StrictEvents {
		sev = Error
	}
	if d := in.Default; d != nil && d.IsLiteral() {
		want, ok := "", true
		switch in.Type {
		case "boolean":
			want, ok = "BooleanToken", d.Kind == Bool
		case "string", "choice", "environment":
			want, ok = "StringToken", d.Kind == String
		}
		// That a text input's default 1.10 is the number 1.1 is worth knowing;
		// true, which stays "true", is not.
		if !ok && (sev == Error || want == "BooleanToken" || d.Kind == Number) {
			c.report(Diagnostic{Pos: d.Pos, Severity: sev, Rule: "input-default",
				Message: fmt.Sprintf("Unexpected type '%s' encountered while reading 'input default'. The type '%s' was expected.", tokenName(d.Kind), want),
				Hint: fmt.Sprintf("The default of a %s input should be a %s.", in.Type,
					map[string]string{"BooleanToken": "boolean: true or false without quotes", "StringToken": "text: put it in quotes"}[want])})
		}
	}
	if event == "workflow_dispatch" {
		switch {
		case in.Type == "choice" && len(in.Options) == 0:
			c.report(Diagnostic{Pos: v.Pos, Severity: sev, Rule: "input-options", Message: "Missing 'options' for choice input"})
		case in.Type != "choice" && in.Options != nil:
			c.report(Diagnostic{Pos: v.Pos, Severity: sev, Rule: "input-options", Message: "Input type is not 'choice', but 'options' is defined"})
		}
	}
	return in
}

func tokenName(k ValueKind) string {
	switch k {
	case Null:
		return "NullToken"
	case Bool:
		return "BooleanToken"
	case Number:
		return "NumberToken"
	case String:
		return "StringToken"
	case Sequence:
		return "SequenceToken"
	case Mapping:
		return "MappingToken"
	}
	return "BasicExpressionToken"
}

func defaults(v *Value) *Defaults {
	run := v.Get("run")
	return &Defaults{Pos: v.Pos, Value: v, Shell: run.Get("shell"), WorkingDirectory: run.Get("working-directory")}
}

func permissionsOf(v *Value) *Permissions {
	p := &Permissions{Pos: v.Pos}
	if v.Kind == String {
		p.All = v.Str
		return p
	}
	p.Scopes, p.ScopePos = map[string]string{}, map[string]Pos{}
	fields(v, func(k, v *Value) {
		p.Scopes[k.Str], p.ScopePos[k.Str] = v.Text(), k.Pos
	})
	return p
}

func (c *converter) concurrency(v *Value) *Concurrency {
	out := &Concurrency{Pos: v.Pos, Value: v, Queue: "single"}
	if v.Kind != Mapping {
		out.Group = v
	} else {
		out.Group, out.CancelInProgress = v.Get("group"), v.Get("cancel-in-progress")
		if q := v.Get("queue").Text(); q != "" {
			out.Queue = q
		}
	}
	if g := out.Group; g != nil && !v.bad && g.Kind == String && utf8.RuneCountInString(g.Str) > 400 {
		c.errorf(v.Pos, "concurrency", "", "Concurrency group name must be less than 400 characters")
	}
	return out
}

func (c *converter) jobs(w *Workflow, v *Value) {
	if v.Kind != Mapping {
		return
	}
	fields(v, func(k, jv *Value) {
		j := c.job(k, jv)
		w.Jobs = append(w.Jobs, j)
		if len(w.Jobs) == c.opt.MaxJobs+1 {
			c.report(Diagnostic{Near: k.Pos, Rule: "limit", whole: true,
				Message: fmt.Sprintf("The workflow may not contain more than %d jobs", c.opt.MaxJobs)})
		}
	})
	if !v.bad {
		c.order(w, v.Pos)
	}
}

// order checks that every job can start at some time.
func (c *converter) order(w *Workflow, at Pos) {
	graph := func(p Pos, hint, format string, args ...any) {
		c.graph = append(c.graph, Diagnostic{File: c.file, Pos: p, Near: p, Rule: "needs", Hint: hint, Message: fmt.Sprintf(format, args...)})
	}
	type node struct {
		job   *Job
		needs []Needed
	}
	var ready []*Job
	var blocked []*node
	names := make([]string, 0, len(w.Jobs))
	dependants := map[string][]*node{}
	known := map[string]bool{}
	for _, j := range w.Jobs {
		names = append(names, j.ID)
		known[strings.ToLower(j.ID)] = true
		if len(j.Needs) == 0 {
			ready = append(ready, j)
			continue
		}
		n := &node{j, append([]Needed(nil), j.Needs...)}
		blocked = append(blocked, n)
		for _, need := range j.Needs {
			id := strings.ToLower(need.ID)
			dependants[id] = append(dependants[id], n)
		}
	}
	if len(ready) == 0 {
		graph(at, "", "The workflow must contain at least one job with no dependencies.")
		if len(w.Jobs) == 0 {
			return
		}
	}
	for len(ready) > 0 {
		done := strings.ToLower(ready[0].ID)
		ready = ready[1:]
		for _, n := range dependants[done] {
			if len(n.needs) == 0 {
				continue
			}
			left := n.needs[:0]
			for _, need := range n.needs {
				if strings.ToLower(need.ID) != done {
					left = append(left, need)
				}
			}
			if n.needs = left; len(left) == 0 {
				ready = append(ready, n.job)
			}
		}
	}
	noStart := len(c.graph) > 0
	for _, n := range blocked {
		for _, need := range n.needs {
			if len(c.graph) >= maxDiagnostics {
				return
			}
			switch {
			case !known[strings.ToLower(need.ID)]:
				if noStart {
					continue // GitHub says only that nothing can start
				}
				hint := "There is no job with this id."
				if best := Closest(need.ID, names); best != "" {
					hint = fmt.Sprintf("Did you mean '%s'?", best)
				}
				graph(need.Pos, hint, "Job '%s' depends on unknown job '%s'.", n.job.ID, need.ID)
			case !noStart:
				graph(need.Pos, "", "Job '%s' depends on job '%s' which creates a cycle in the dependency graph.", n.job.ID, need.ID)
			}
		}
	}
}

func (c *converter) job(id, v *Value) *Job {
	j := &Job{ID: id.Str, Pos: id.Pos}
	if msg := new(ids).add(id.Str); msg != "" && !id.bad {
		c.errorf(id.Pos, "id", "", "%s", msg)
	}
	j.If = mustParse("success()")
	fields(v, func(k, v *Value) {
		switch k.Str {
		case "name":
			if v.Kind != String || v.Str != "" {
				j.Name = v
			}
		case "needs":
			j.Needs = needed(v)
		case "if":
			j.IfPos = v.Pos
			j.IfSource, j.If = c.condition(v, ctxJobIf)
		case "runs-on":
			j.RunsOn = v
			c.runsOn(v)
		case "strategy":
			j.Strategy = c.strategy(v)
		case "env":
			j.Env = v
		case "outputs":
			j.Outputs = v
		case "defaults":
			j.Defaults = defaults(v)
		case "permissions":
			j.Permissions = permissionsOf(v)
		case "cache-mode":
			j.CacheMode = v.Text()
		case "concurrency":
			j.Concurrency = c.concurrency(v)
		case "environment":
			j.Environment = v
		case "container":
			j.Container = v
			c.container(v, false)
		case "services":
			j.Services = v
			if v.Kind == Mapping && !v.HasExpr() {
				fields(v, func(_, s *Value) { c.container(s, true) })
			}
		case "continue-on-error":
			j.ContinueOnError = v
		case "timeout-minutes":
			j.TimeoutMinutes = v
		case "cancel-timeout-minutes":
			j.CancelTimeoutMinutes = v
		case "snapshot":
			j.Snapshot = v
			c.snapshot(v)
		case "steps":
			if v.Kind == Sequence {
				j.Steps = c.steps(v, &ids{}, false)
			}
		case "uses":
			j.Uses, j.UsesPos = v.Text(), v.Pos
			if v.Kind == String && !v.bad {
				c.calls(v)
			}
		case "with":
			j.With = v
		case "secrets":
			if v.Kind == String {
				j.InheritSecrets = v.Str == "inherit"
			} else {
				j.Secrets = v
			}
		}
	})
	return j
}

func needed(v *Value) []Needed {
	var out []Needed
	switch v.Kind {
	case String:
		if !v.bad {
			out = append(out, Needed{v.Str, v.Pos})
		}
	case Sequence:
		for _, it := range v.Items {
			if it.Kind == String && !it.bad {
				out = append(out, Needed{it.Str, it.Pos})
			}
		}
	}
	return out
}

// calls checks the form of a job's `uses`.
func (c *converter) calls(v *Value) {
	s := v.Str
	if strings.HasPrefix(s, "./") || strings.HasPrefix(s, "$/") {
		return
	}
	path, ref, ok := strings.Cut(s, "@")
	parts := strings.Split(path, "/")
	switch {
	case !ok || ref == "":
		c.errorf(v.Pos, "uses", "Write owner/repo/.github/workflows/file.yml@ref, or ./.github/workflows/file.yml for one of this repository.",
			"invalid value workflow reference: no version specified")
	case len(parts) < 3 || parts[0] == "" || parts[1] == "" || parts[0][0] == '.': // .github/workflows/file.yml@ref is a path without its ./
		c.errorf(v.Pos, "uses", "Write owner/repo/.github/workflows/file.yml@ref, or ./.github/workflows/file.yml for one of this repository.",
			"invalid value workflow reference: references to workflows must be prefixed with format 'owner/repository/' or './' for local workflows")
	}
}

func mustParse(src string) *expr.Expr {
	e, err := expr.Parse(src, nil)
	if err != nil {
		panic("workflow: " + err.Error())
	}
	return e
}

// condition reads an `if`: text or expression, with success() implied unless a
// status function is called.
func (c *converter) condition(v *Value, names []string) (string, *expr.Expr) {
	if v.bad || (v.Kind != String && v.Kind != Expression) {
		return "", nil
	}
	src := strings.TrimSpace(v.Str)
	if src == "" {
		return "", mustParse("success()")
	}
	a := &allow{names, expr.NewAllow(names...)}
	e, err := expr.Parse(src, a.allow)
	if err != nil {
		c.errorf(v.Pos, "expression", exprHint(err, a), "%s", err)
		return src, nil
	}
	for _, f := range e.Calls() {
		switch f {
		case "success", "failure", "always", "cancelled":
			return src, e
		}
	}
	// The implied call may be one that the key itself does not allow.
	full, err := expr.Parse("success() && ("+src+")", nil)
	if err != nil {
		c.errorf(v.Pos, "expression", "", "%s", err)
		return src, nil
	}
	return src, full
}

func (c *converter) runsOn(v *Value) {
	g := v.Get("group")
	if g == nil || g.bad || g.Kind != String {
		return
	}
	parts := strings.Split(g.Str, "/")
	switch {
	case len(parts) == 2 && parts[1] == "":
		c.errorf(g.Pos, "runs-on", "", "Invalid runs-on group name '%s'.", g.Str)
	case len(parts) > 2, len(parts) == 2 && parts[0] != "org" && parts[0] != "organization" && parts[0] != "ent" && parts[0] != "enterprise":
		c.errorf(g.Pos, "runs-on", "", "Invalid runs-on group name '%s'. Please use 'organization/' or 'enterprise/' prefix to target a single runner group.", g.Str)
	}
}

func (c *converter) strategy(v *Value) *Strategy {
	s := &Strategy{Pos: v.Pos, Value: v, Matrix: v.Get("matrix"), FailFast: v.Get("fail-fast"), MaxParallel: v.Get("max-parallel")}
	m := s.Matrix
	if m == nil || m.Kind != Mapping || m.bad {
		return s
	}
	vectors := map[string]bool{}
	some := false
	var include, exclude *Value
	for _, p := range m.Pairs {
		switch {
		case p.Key.Kind != String:
			some = true
		case p.Key.Str == "include":
			include = p.Value
			some = some || p.Value.HasExpr() || len(p.Value.Items) > 0
		case p.Key.Str == "exclude":
			exclude = p.Value
		default:
			some = true
			vectors[strings.ToLower(p.Key.Str)] = true
			if p.Value.Kind == Sequence && len(p.Value.Items) == 0 && !p.Value.bad {
				c.errorf(p.Value.Pos, "matrix", "", "Matrix vector '%s' does not contain any values", p.Key.Str)
			}
		}
	}
	if !some {
		c.errorf(m.Pos, "matrix", "", "Matrix must define at least one vector")
	}
	if v.HasExpr() {
		return s // the rest is known only when the expressions are
	}
	if include != nil {
		for _, it := range include.Items {
			if it.Kind == Mapping && !it.bad && len(it.Pairs) == 0 {
				c.errorf(it.Pos, "matrix", "", "Matrix include mapping does not contain any values")
			}
		}
	}
	if exclude != nil {
		for _, it := range exclude.Items {
			if it.Kind != Mapping || it.bad {
				continue
			}
			if len(it.Pairs) == 0 {
				c.errorf(it.Pos, "matrix", "", "Matrix exclude filter must not be empty")
			}
			fields(it, func(k, _ *Value) {
				if !vectors[strings.ToLower(k.Str)] {
					c.errorf(k.Pos, "matrix", "", "Matrix exclude key '%s' does not match any key within the matrix", k.Str)
				}
			})
		}
	}
	return s
}

func (c *converter) container(v *Value, service bool) {
	if v.bad || v.HasExpr() {
		return
	}
	image := v
	if v.Kind == Mapping {
		if image = v.Get("image"); image == nil {
			c.errorf(v.Pos, "container", "", "Container image cannot be empty")
			return
		}
	}
	if image.Kind != String || image.bad {
		return
	}
	rest, docker := strings.CutPrefix(image.Str, "docker://")
	if rest == "" && (docker || service) {
		c.errorf(v.Pos, "container", "", "Container image cannot be empty")
	}
}

func (c *converter) snapshot(v *Value) {
	if cond := v.Get("if"); cond != nil {
		c.condition(cond, ctxStrategy)
	}
	ver := v.Get("version")
	if ver == nil || ver.bad || ver.Kind != String {
		return
	}
	major, ok := strings.CutSuffix(ver.Str, ".*")
	if !ok || major == "" || len(major) > 9 || strings.Trim(major, "0123456789") != "" {
		c.errorf(v.Pos, "snapshot", "", "Expected format '{major-version}.*' Actual '%s'", ver.Str)
	}
}

// steps reads the steps of a job or of a parallel block. known are the ids given
// so far in the scope.
func (c *converter) steps(v *Value, known *ids, inParallel bool) []*Step {
	out := make([]*Step, 0, len(v.Items))
	for _, it := range v.Items {
		if it.Kind != Mapping {
			continue
		}
		out = append(out, c.step(it, known, inParallel))
	}
	for _, s := range out {
		if s.ID == "" {
			s.ID = known.generate("__" + s.kindID())
		}
	}
	return out
}

func (c *converter) step(v *Value, known *ids, inParallel bool) *Step {
	s := &Step{Pos: v.Pos, If: mustParse("success()")}
	id := v.Get("id")
	if id != nil && id.Kind == String && !id.bad {
		s.ID, s.IDGiven, s.IDPos = id.Str, true, id.Pos
	}
	fields(v, func(k, v *Value) {
		switch k.Str {
		case "id":
			if !v.bad {
				if msg := known.add(v.Str); msg != "" {
					c.errorf(v.Pos, "id", "", "%s", msg)
				}
			}
		case "name":
			s.Name = v
		case "if":
			s.IfPos = v.Pos
			s.IfSource, s.If = c.condition(v, c.stepIf)
		case "run":
			s.Run = v
		case "shell":
			s.Shell = v
		case "working-directory":
			s.WorkingDirectory = v
		case "uses":
			s.Uses, s.UsesPos = v.Text(), v.Pos
			if v.Kind == String && !v.bad && !validUses(v.Str) {
				c.errorf(v.Pos, "uses", "", "Expected format {org}/{repo}[/path]@ref. Actual '%s'", v.Str)
			}
		case "with":
			s.With = v
		case "env":
			s.Env = v
		case "continue-on-error":
			s.ContinueOnError = v
		case "timeout-minutes":
			s.TimeoutMinutes = v
		case "background":
			s.Background = truth(v)
			if inParallel {
				c.errorf(k.Pos, "parallel", "", "'background' is not allowed inside a parallel block. Steps in a parallel block are automatically run as background steps.")
			}
		case "wait":
			s.Wait = needed(v)
			for _, t := range s.Wait {
				c.target(t, known, s)
			}
		case "wait-all":
			s.WaitAll = true
			if v.Kind == Bool && !v.Bool {
				c.errorf(v.Pos, "wait", "", "The value of 'wait-all' must be true or omitted")
			}
		case "cancel":
			if t := needed(v); len(t) == 1 {
				s.Cancel = &t[0]
				c.target(t[0], known, s)
			}
		case "parallel":
			if inParallel {
				c.errorf(k.Pos, "parallel", "", "Nested 'parallel' blocks are not allowed.")
			}
			if v.Kind == Sequence {
				inner := &ids{outer: known}
				s.Parallel = c.steps(v, inner, true)
			}
		}
		if inParallel && (k.Str == "wait" || k.Str == "wait-all" || k.Str == "cancel") {
			c.errorf(k.Pos, "parallel", "", "'%s' is not allowed inside a parallel block.", k.Str)
		}
	})
	return s
}

// target checks a step id that wait or cancel names.
func (c *converter) target(t Needed, known *ids, s *Step) {
	switch {
	case strings.HasPrefix(t.ID, "__"):
		c.errorf(t.Pos, "wait", "", "The identifier '%s' is invalid. IDs starting with '__' are reserved.", t.ID)
	case s.IDGiven && strings.EqualFold(t.ID, s.ID):
		c.errorf(t.Pos, "wait", "", "Step '%s' cannot reference itself", s.ID)
	case !known.has(t.ID):
		hint := "The step must come before this one."
		if best := Closest(t.ID, known.given); best != "" {
			hint = fmt.Sprintf("Did you mean '%s'?", best)
		}
		c.errorf(t.Pos, "wait", hint, "Step references unknown step ID '%s'", t.ID)
	}
}

// validUses reports whether a step's `uses` has a form GitHub knows.
func validUses(s string) bool {
	for _, p := range []string{"docker://", "./", ".\\", "$/"} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	owner, repo, ok := splitUses(s)
	return ok && owner != "" && repo != ""
}

// splitUses returns owner and repository of owner/repo[/path]@ref.
func splitUses(s string) (owner, repo string, ok bool) {
	path, ref, found := strings.Cut(s, "@")
	if !found || ref == "" || strings.Contains(ref, "@") {
		return "", "", false
	}
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '/' || r == '\\' })
	if len(parts) < 2 {
		return "", "", false
	}
	return parts[0], parts[1], true
}

// kindID is what a generated id is made of.
func (s *Step) kindID() string {
	switch {
	case s.Run != nil:
	case strings.HasPrefix(s.Uses, "docker://"):
		if image := strings.TrimPrefix(s.Uses, "docker://"); image != "" {
			return image
		}
	case strings.HasPrefix(s.Uses, "./"), strings.HasPrefix(s.Uses, ".\\"), strings.HasPrefix(s.Uses, "$/"):
		return "self"
	case s.Uses != "":
		if owner, repo, ok := splitUses(s.Uses); ok {
			return owner + "/" + repo
		}
	case s.Wait != nil:
		return "wait"
	case s.WaitAll:
		return "wait-all"
	case s.Cancel != nil:
		return "cancel"
	case s.Parallel != nil:
		return "parallel"
	}
	return "run"
}
