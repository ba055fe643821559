package workflow

import (
	"errors"
	"fmt"
	"strings"
)

// GitHub's limits on calls.
const (
	maxCallDepth = 10
	maxCallFiles = 50
)

// ErrSkip is what a [Load] returns for a call that is not to be followed.
var ErrSkip = errors.New("workflow: the call is not followed")

// Load fetches the file that a job's `uses` names. from is the workflow that
// calls: a `./` reference means a file of its repository at its commit. name is
// what diagnostics call the file; for a reference to another repository that is
// the reference itself.
type Load func(uses string, from *Workflow) (name string, src []byte, err error)

// Site is a place in a file.
type Site struct {
	File string `json:"file"`
	Pos  Pos    `json:"pos"`
}

// Link reads the reusable workflows that w calls, at any depth, puts them into
// Called of each workflow that calls one, and checks what only caller and called
// know together: inputs, secrets, permissions, limits. w must be without errors.
//
// What cannot be loaded is a diagnostic at the call, too: the caller decides
// whether that is the author's mistake.
func Link(w *Workflow, load Load, opt Options) []Diagnostic {
	var all []Diagnostic
	for _, ds := range link(w, load, opt) {
		all = append(all, ds...)
	}
	return all
}

// link returns the diagnostics by call; GitHub stops after the first call with
// errors.
func link(w *Workflow, load Load, opt Options) [][]Diagnostic {
	l := &linker{opt: opt.withDefaults(), load: load, parsed: map[string]*called{}, jobs: len(w.Jobs), bytes: w.bytes}
	l.workflow(w, w.Permissions, nil, 1)
	return l.diags
}

type linker struct {
	opt    Options
	load   Load
	parsed map[string]*called // by file name
	jobs   int
	bytes  int
	diags  [][]Diagnostic
	full   bool // a limit of the run was passed: no more calls
}

// called is a file once read.
type called struct {
	w      *Workflow
	diags  []Diagnostic
	bytes  int
	failed bool
}

// call is one job calling one workflow.
type call struct {
	caller *Workflow
	job    *Job
	callee *Workflow
	diags  []Diagnostic
	outer  []Site // the calls that led to caller, the nearest first
}

func (c *call) site() Site { return Site{c.caller.File, c.job.UsesPos} }

func (c *call) report(d Diagnostic) {
	if d.Near.IsZero() {
		d.Near = d.Pos
	}
	if d.File != c.caller.File && !d.whole {
		d.Via = append(append(d.Via, c.site()), c.outer...)
	}
	c.diags = append(c.diags, d)
}

func (c *call) here(p Pos, rule, hint, format string, args ...any) {
	c.report(Diagnostic{File: c.caller.File, Pos: p, Rule: rule, Hint: hint, Message: fmt.Sprintf(format, args...)})
}

func (c *call) there(p Pos, rule, hint, format string, args ...any) {
	c.report(Diagnostic{File: c.callee.File, Pos: p, Rule: rule, Hint: hint, Message: fmt.Sprintf(format, args...)})
}

// workflow follows the calls of w, whose jobs may do what allowed says unless
// they say otherwise themselves; nil leaves it to the repository's default. outer are
// the calls that led to w.
func (l *linker) workflow(w *Workflow, allowed *Permissions, outer []Site, depth int) {
	for _, j := range w.Jobs {
		if j.Uses == "" || l.full {
			continue
		}
		c := &call{caller: w, job: j, outer: outer}
		explicit := j.Permissions
		if explicit == nil {
			explicit = allowed
		}
		ok := l.follow(c, explicit, depth)
		if len(c.diags) > 0 {
			l.diags = append(l.diags, c.diags)
		}
		if !ok || Errors(c.diags) {
			continue
		}
		inner := explicit
		if c.callee.Permissions != nil {
			inner = c.callee.Permissions
		}
		l.workflow(c.callee, inner, append([]Site{c.site()}, outer...), depth+1)
	}
}

func (l *linker) follow(c *call, explicit *Permissions, depth int) bool {
	if depth > l.opt.MaxCallDepth {
		c.report(Diagnostic{File: c.caller.File, Near: c.job.UsesPos, Rule: "limit", whole: true,
			Message: fmt.Sprintf("Nested reusable workflow depth exceeded %d.", l.opt.MaxCallDepth),
			Hint:    "A workflow that calls itself, however indirectly, cannot end."})
		l.full = true
		return false
	}
	name, src, err := l.load(c.job.Uses, c.caller)
	if errors.Is(err, ErrSkip) {
		return false
	}
	if err != nil {
		c.here(c.job.UsesPos, "uses", "", "Unable to find reusable workflow '%s': %v", c.job.Uses, err)
		return false
	}
	f := l.parsed[name]
	if f == nil {
		if len(l.parsed) >= maxCallFiles {
			c.report(Diagnostic{File: c.caller.File, Near: c.job.UsesPos, Rule: "limit", whole: true,
				Via:     []Site{{c.caller.File, c.job.UsesPos}},
				Message: fmt.Sprintf("The maximum file count of %d has been exceeded", maxCallFiles+1)})
			l.full = true
			return false
		}
		f = &called{}
		var p *phases
		f.w, p = parse(name, src, l.opt)
		f.diags, f.bytes = p.all(), p.bytes
		f.failed = f.w == nil || Errors(f.diags)
		l.parsed[name] = f
		l.bytes += textBytes(name)
	}
	l.bytes += f.bytes - textBytes(name)
	for _, d := range f.diags {
		if d.Severity == Error {
			c.report(d)
		}
	}
	if f.failed {
		return false
	}
	c.callee = f.w
	if l.bytes > l.opt.MaxResultSize {
		c.report(Diagnostic{File: name, Rule: "limit", Message: "Maximum object size exceeded"})
		l.full = true
		return false
	}
	if c.caller.Called == nil {
		c.caller.Called = map[string]*Workflow{}
	}
	c.caller.Called[c.job.Uses] = f.w

	t := f.w.Trigger("workflow_call")
	if t == nil {
		p := Pos{1, 1}
		if len(f.w.On) > 0 {
			p = f.w.On[0].Pos
		}
		if !f.w.onPos.IsZero() {
			p = f.w.onPos
		}
		c.there(p, "uses", "Add `workflow_call:` to `on:`.", "workflow_call key is not defined in the referenced workflow.")
	} else {
		c.inputs(t)
		c.secrets(t)
	}
	l.permissions(c, explicit)

	before := l.jobs
	l.jobs += len(f.w.Jobs)
	if before <= l.opt.MaxJobs && l.jobs > l.opt.MaxJobs {
		c.report(Diagnostic{File: c.caller.File, Near: c.job.UsesPos, Rule: "limit", whole: true,
			Message: fmt.Sprintf("The workflow may not contain more than %d jobs", l.opt.MaxJobs)})
		l.full = true
	}
	return true
}

// inputs checks `with` against the inputs of the called workflow.
func (c *call) inputs(t *Trigger) {
	var names []string
	for _, in := range t.Inputs {
		names = append(names, in.Name)
		if d := in.Default; d != nil && !fitsInput(in.Type, d) {
			c.there(d.Pos, "input", wantInput(in), "Unexpected value '%s'", d.Text())
		}
		given := c.job.With.Get(in.Name)
		switch {
		case given != nil:
			if !fitsInput(in.Type, given) {
				c.here(given.Pos, "input", wantInput(in), "Unexpected value '%s'", given.Text())
			}
		case in.Required && !dynamicKeys(c.job.With):
			c.here(c.job.UsesPos, "input", fmt.Sprintf("Add `%s:` to `with:`.", in.Name), "Input %s is required, but not provided while calling.", in.Name)
		}
	}
	c.undefined(c.job.With, names, "input")
}

func wantInput(in Input) string {
	switch in.Type {
	case "boolean":
		return fmt.Sprintf("The input %s takes true or false, without quotes.", in.Name)
	case "number":
		return fmt.Sprintf("The input %s takes a number, without quotes.", in.Name)
	}
	return fmt.Sprintf("The input %s takes a text.", in.Name)
}

// fitsInput reports whether a value may be given for an input of the type. What
// an expression yields is known only later.
func fitsInput(typ string, v *Value) bool {
	switch v.Kind {
	case Expression:
		return true
	case Sequence, Mapping:
		return false
	}
	switch typ {
	case "boolean":
		return v.Kind == Bool
	case "number":
		return v.Kind == Number
	}
	return true
}

func dynamicKeys(v *Value) bool {
	if v == nil || v.Kind != Mapping {
		return false
	}
	for _, p := range v.Pairs {
		if p.Key.Kind != String {
			return true
		}
	}
	return false
}

func (c *call) undefined(given *Value, names []string, what string) {
	fields(given, func(k, v *Value) {
		for _, n := range names {
			if strings.EqualFold(n, k.Str) {
				return
			}
		}
		hint := fmt.Sprintf("The called workflow takes no %ss.", what)
		if best := Closest(k.Str, names); best != "" {
			hint = fmt.Sprintf("Did you mean '%s'?", best)
		} else if len(names) > 0 {
			hint = fmt.Sprintf("It takes: %s.", strings.Join(names, ", "))
		}
		c.here(v.Pos, what, hint, "Invalid %s, %s is not defined in the referenced workflow.", what, k.Str)
	})
}

// secrets checks `secrets` against the secrets of the called workflow.
func (c *call) secrets(t *Trigger) {
	if c.job.InheritSecrets {
		return
	}
	var names []string
	for _, s := range t.Secrets {
		names = append(names, s.Name)
		if s.Required && c.job.Secrets.Get(s.Name) == nil && !dynamicKeys(c.job.Secrets) {
			c.here(c.job.UsesPos, "secret", fmt.Sprintf("Add `%s:` to `secrets:`, or write `secrets: inherit`.", s.Name),
				"Secret %s is required, but not provided while calling.", s.Name)
		}
	}
	c.undefined(c.job.Secrets, names, "secret")
}

// permissions checks that a called workflow asks for no more than its caller may.
func (l *linker) permissions(c *call, explicit *Permissions) {
	limit := explicit
	if limit == nil {
		limit = &Permissions{All: "write-all"}
		if l.opt.DefaultPermissions == "read" {
			limit = &Permissions{Scopes: map[string]string{"contents": "read", "packages": "read"}}
		}
	}
	hint := "Widen `permissions:` of the calling job, or narrow those of the called workflow."
	if p := c.callee.Permissions; p != nil {
		if want, have := p.exceeding(limit); want != "" {
			c.here(c.job.Pos, "permissions", hint, "Error calling workflow '%s'. The workflow '%s' is requesting '%s', but is only allowed '%s'.",
				c.job.Uses, c.job.Uses, want, have)
		}
	}
	for _, j := range c.callee.Jobs {
		if j.Permissions == nil {
			continue
		}
		if want, have := j.Permissions.exceeding(limit); want != "" {
			name := j.ID
			if j.Name != nil {
				name = j.Name.Text()
				if j.Name.Kind == Expression {
					name = "${{ " + j.Name.Str + " }}"
				}
			}
			c.here(c.job.Pos, "permissions", hint, "Error calling workflow '%s'. The nested job '%s' is requesting '%s', but is only allowed '%s'.",
				c.job.Uses, name, want, have)
		}
	}
}

// scopes lists the permissions in GitHub's order; those from extra on are not
// part of what read-all and write-all ask for.
func scopes() (all []string, extra int) {
	all = []string{"actions", "checks", "contents", "deployments", "discussions", "issues", "packages", "pages",
		"pull-requests", "repository-projects", "statuses", "security-events", "id-token",
		"artifact-metadata", "attestations", "code-quality", "copilot-requests", "drives", "models", "vulnerability-alerts", "workflows"}
	return all, 13
}

// Level is what p grants for a scope: read, write or none.
func (p *Permissions) Level(scope string) string {
	if p == nil {
		return "none"
	}
	switch p.All {
	case "read-all":
		return "read"
	case "write-all":
		return "write"
	}
	if l := p.Scopes[scope]; l != "" {
		return l
	}
	return "none"
}

// Scopes lists every permission scope GitHub has.
func Scopes() []string {
	all, _ := scopes()
	return all
}

// exceeding lists what p asks for beyond limit, and what limit grants of it.
func (p *Permissions) exceeding(limit *Permissions) (want, have string) {
	rank := map[string]int{"none": 0, "read": 1, "write": 2}
	all, extra := scopes()
	var wants, haves []string
	for i, s := range all {
		if i >= extra && p.All != "" {
			break
		}
		w, h := p.Level(s), limit.Level(s)
		if rank[w] > rank[h] {
			wants, haves = append(wants, s+": "+w), append(haves, s+": "+h)
		}
	}
	return strings.Join(wants, ", "), strings.Join(haves, ", ")
}
