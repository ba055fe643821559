package hearth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/prompt"
	"github.com/hearth-ci/hearth/internal/webhook"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// FromWords makes a Workflow of plain words, by Hearth's own grammar: no model is
// asked. What it does not understand is an error that says which words those are.
// Words that ask for several jobs, or for what a Workflow has not got, are an error of
// [ParseWorkflow]; `hearth new` writes them to a file, which `hearth run` runs.
func FromWords(text string) (Workflow, error) {
	r, err := prompt.New(context.Background(), prompt.Config{}, text)
	if err != nil {
		return Workflow{}, fmt.Errorf("hearth: %w", err)
	}
	return ParseWorkflow(r.YAML)
}

// ParseWorkflow makes a Workflow of a workflow file in GitHub's syntax: of its one
// job, or of the one that is named. A Workflow is steps that run literally, so what an
// Executor could not do as GitHub does is an error that names every place of it:
// expressions, other actions than actions/checkout (which is Context.Dir), conditions
// but always() at the end (which is the cleanup), matrices, containers, services, other
// systems and shells. `on:`, permissions and concurrency say nothing of how steps
// run, and are read over; `hearth run` heeds them.
//
// ${{ secrets.NAME }} as the whole of the environment variable NAME may stand: the
// Executor gives steps the secrets of a Context under their names.
func ParseWorkflow(yaml string, job ...string) (Workflow, error) {
	file, ds := workflow.Parse("workflow.yml", []byte(yaml), workflow.Options{})
	var bad []string
	for _, d := range ds {
		if d.Severity == workflow.Error {
			bad = append(bad, d.String())
		}
	}
	if file == nil || bad != nil {
		return Workflow{}, unusable(bad)
	}
	j, err := oneJob(file, job)
	if err != nil {
		return Workflow{}, err
	}
	r := reading{}
	w := r.job(file, j)
	if r.bad != nil {
		return Workflow{}, unusable(r.bad)
	}
	return w, w.check(Context{})
}

func unusable(bad []string) error {
	return fmt.Errorf("hearth: the workflow file: %s", strings.Join(bad, "; "))
}

func oneJob(file *workflow.Workflow, job []string) (*workflow.Job, error) {
	var names []string
	for _, j := range file.Jobs {
		if len(job) == 1 && j.ID == job[0] {
			return j, nil
		}
		names = append(names, j.ID)
	}
	switch {
	case len(job) > 1:
		return nil, errors.New("hearth: a Workflow is one job: name one")
	case len(job) == 0 && len(names) == 1:
		return file.Jobs[0], nil
	}
	return nil, fmt.Errorf("hearth: a Workflow is one job: name one of %s", strings.Join(names, ", "))
}

// reading makes a job's steps those of a Workflow, and collects what cannot be.
type reading struct {
	bad []string
	pos workflow.Pos // of what is being read, for values without a place
}

func (r *reading) refuse(pos workflow.Pos, format string, args ...any) {
	if pos.IsZero() {
		pos = r.pos
	}
	r.bad = append(r.bad, fmt.Sprintf("%v: ", pos)+fmt.Sprintf(format, args...))
}

// text is a literal text; an expression is refused.
func (r *reading) text(v *workflow.Value, what string) string {
	if v.HasExpr() {
		r.refuse(v.Pos, "%s has an expression, and steps of a Workflow are literal", what)
		return ""
	}
	return v.Text()
}

func (r *reading) minutes(v *workflow.Value, what string) time.Duration {
	if v == nil {
		return 0
	}
	if v.Kind != workflow.Number {
		r.refuse(v.Pos, "%s is no number", what)
		return 0
	}
	return time.Duration(v.Num * float64(time.Minute))
}

// env reads variables; a secret under its own name comes from the Context.
func (r *reading) env(into map[string]string, v *workflow.Value) map[string]string {
	if v == nil {
		return into
	}
	if v.Kind != workflow.Mapping {
		r.refuse(v.Pos, "env is an expression, and steps of a Workflow are literal")
		return into
	}
	for _, p := range v.Pairs {
		name := r.text(p.Key, "a variable's name")
		if p.Value.Kind == workflow.Expression && strings.EqualFold(strings.ReplaceAll(p.Value.Str, " ", ""), "secrets."+name) {
			continue
		}
		if into == nil {
			into = map[string]string{}
		}
		into[name] = r.text(p.Value, "the variable "+name)
	}
	return into
}

func (r *reading) job(file *workflow.Workflow, j *workflow.Job) Workflow {
	r.pos = j.Pos
	w := Workflow{Name: file.Name, Timeout: r.minutes(j.TimeoutMinutes, "timeout-minutes"), Env: r.env(r.env(nil, file.Env), j.Env)}
	if w.Name == "" {
		w.Name = j.ID
	}
	for _, x := range []struct {
		there bool
		pos   workflow.Pos
		what  string
	}{
		{j.Uses != "", j.UsesPos, "a called workflow"}, {j.Strategy != nil, j.Pos, "strategy"}, {j.Container != nil, j.Pos, "container"},
		{j.Services != nil, j.Pos, "services"}, {j.IfSource != "", j.IfPos, "a job's condition"}, {j.Environment != nil, j.Pos, "environment"},
		{j.ContinueOnError != nil, j.Pos, "a job's continue-on-error"}, {j.Snapshot != nil, j.Pos, "snapshot"}, {j.Outputs != nil, j.Pos, "outputs"},
	} {
		if x.there {
			r.refuse(x.pos, "a Workflow has no %s", x.what)
		}
	}
	for _, label := range append([]*workflow.Value{j.RunsOn}, itemsOf(j.RunsOn)...) {
		name := strings.ToLower(label.Text())
		if label.HasExpr() || strings.HasPrefix(name, "windows") || strings.HasPrefix(name, "macos") {
			r.refuse(j.RunsOn.Pos, "its machines run Linux: runs-on asks for another, or has an expression")
			break
		}
	}
	for _, s := range j.Steps {
		r.step(&w, []*workflow.Defaults{file.Defaults, j.Defaults}, s)
	}
	return w
}

func itemsOf(v *workflow.Value) []*workflow.Value {
	if v == nil {
		return nil
	}
	out := slices.Clone(v.Items)
	if l := v.Get("labels"); l != nil {
		out = append(append(out, l), l.Items...)
	}
	return out
}

func (r *reading) step(w *Workflow, defaults []*workflow.Defaults, s *workflow.Step) {
	r.pos = s.Pos
	if name, _, _ := strings.Cut(s.Uses, "@"); strings.EqualFold(name, "actions/checkout") && s.With == nil && s.IfSource == "" {
		return // the Context's Dir is there from the start
	}
	if s.Run == nil {
		what := "a step that runs nothing"
		if s.Uses != "" {
			what = "the action " + s.Uses
		}
		r.refuse(s.UsesPos, "a Workflow runs commands, and has no %s", what)
		return
	}
	if s.Background {
		r.refuse(s.Pos, "a Workflow has no background steps")
	}
	shell, dir := s.Shell, s.WorkingDirectory
	for _, d := range slices.Backward(defaults) {
		if d != nil && shell == nil {
			shell = d.Shell
		}
		if d != nil && dir == nil {
			dir = d.WorkingDirectory
		}
	}
	if name := r.text(shell, "shell"); name != "" && name != "bash" {
		r.refuse(shell.Pos, "a Workflow's shell is bash, not %s", name)
	}
	step := Step{Name: r.text(s.Name, "a step's name"), Run: r.text(s.Run, "run"), Env: r.env(nil, s.Env), Dir: r.text(dir, "working-directory"),
		Timeout: r.minutes(s.TimeoutMinutes, "timeout-minutes")}
	if c := s.ContinueOnError; c != nil {
		if c.Kind != workflow.Bool {
			r.refuse(c.Pos, "continue-on-error has an expression")
		}
		step.ContinueOnError = c.Bool
	}
	switch cond := strings.ReplaceAll(s.IfSource, " ", ""); {
	case cond == "always()":
		w.Cleanup = append(w.Cleanup, step)
	case cond != "" && cond != "success()":
		r.refuse(s.IfPos, "a Workflow has no condition but always(), for the steps at its end")
	case len(w.Cleanup) > 0:
		r.refuse(s.Pos, "it comes after a step with always(): a Workflow's cleanup is its end")
	default:
		w.Steps = append(w.Steps, step)
	}
}

// FromEvent makes a Context of a delivery of a webhook: name is its X-GitHub-Event,
// body its body, whose signature the caller has checked (`hearth serve` does all of
// this by itself). The body has to be of the event's shape. SHA is "" where only the
// forge knows the commit: of a release, say, or of what is about no commit at all, which
// is about the default branch. A push that deletes its branch is an error: there is
// nothing to run. Dir, Vars and Secrets are the caller's to fill, Secrets with care: what
// a pull request of a fork runs is a stranger's.
func FromEvent(name string, body []byte) (Context, error) {
	h, err := webhook.Read(name, body)
	if err != nil {
		return Context{}, fmt.Errorf("hearth: %w", err)
	}
	return Context{Repository: h.Repository, Event: name, Ref: h.Ref, SHA: h.SHA, Actor: h.Actor, Fork: h.Fork}, nil
}
