// Package launch makes a planned run of a workflow and of something that happened:
// called workflows are linked, inputs taken in, jobs planned, and what cannot run
// here is found, all before anything starts. The command and the server differ in
// what they give to it, not in how it is done:
//
//	                Load, files                 permissions   labels             limits, hidden names
//	hearth run      the working tree, mirrors   write         -P and built in    none
//	hearth serve    the forge at one commit     read          of its workers     by who is behind the code
//
// A job that cannot run here stops only itself: what is wrong with it is written down
// at it ([plan.Job.Refused]), and whoever drives the run ends it as not run where it
// would have started. What hangs on other jobs, a label made of their outputs, is
// looked at then: [Request.Late].
//
// A fault of the forge's while files are read is no word about the workflow: whoever
// gives Load and Check.Files keeps such an error, and then takes no heed of what
// [Plan] says.
package launch

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"

	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// Request is what [Plan] plans, and with what.
type Request struct {
	Workflow *workflow.Workflow // read without errors
	Event    *workflow.Happening
	// Facts are for the github context; Payload, BaseRef and HeadRef are the event's.
	Facts Facts
	// Load reads called workflows.
	Load workflow.Load
	// Inputs are those given for a workflow_dispatch; of other events they do not
	// count.
	Inputs map[string]string
	// Vars is the vars context.
	Vars map[string]string
	// DefaultPermissions and ReadOnly are as in [plan.Request].
	DefaultPermissions string
	ReadOnly           bool
	// Planned may change what is planned before it is checked, and take jobs away;
	// nil changes nothing.
	Planned func(*plan.Run)
	// Check is what there is to run a job with.
	Check engine.CheckOptions
	// Fits says which labels a machine has that takes a job that asks for these, and
	// for a group ("" is none), with what there is to remark; or why there is none. nil
	// takes all.
	Fits func(labels []string, group string) (have []string, remarks []string, err error)
	// InputHint and LabelHint say what to do about inputs and labels that will not do.
	InputHint, LabelHint string
}

// Plan plans a run. The diagnostics have each fault once. The run is nil only if it
// could not be planned; of one that was, errors are about jobs that cannot run here,
// and at those.
func Plan(ctx context.Context, r Request) (*plan.Run, []workflow.Diagnostic) {
	gone := &absent{load: r.Load, local: r.Check.AssumeActions}
	ds := workflow.Link(r.Workflow, gone.Load, workflow.Options{DefaultPermissions: r.DefaultPermissions})
	if workflow.Errors(ds) {
		return nil, ds
	}
	r.Facts.Payload, r.Facts.BaseRef, r.Facts.HeadRef = r.Event.Payload, r.Event.BaseRef, r.Event.HeadRef
	inputs, bad := r.inputs()
	if ds = append(ds, bad...); workflow.Errors(ds) {
		return nil, ds
	}
	run, bad := plan.Build(plan.Request{Workflow: r.Workflow, Event: r.Event, Inputs: inputs, Vars: object(r.Vars), GitHub: GitHubContext(r.Facts),
		DefaultPermissions: r.DefaultPermissions, ReadOnly: r.ReadOnly})
	if ds = append(ds, bad...); workflow.Errors(ds) || run == nil {
		return nil, ds
	}
	if run.Locked, bad = r.locks(ctx); len(bad) > 0 {
		return nil, append(ds, bad...)
	}
	if r.Planned != nil {
		r.Planned(run)
	}
	engine.Check(ctx, run, r.Check)
	for _, j := range run.Jobs {
		r.labels(j)
	}
	gone.refuse(run, r.Check.AssumeActions)
	return run, append(ds, run.Refused()...)
}

// locks reads what the repository locks its workflows' actions to. A file that cannot be
// read as one refuses the run: what it is to be held to is not known.
func (r *Request) locks(ctx context.Context) (workflow.Locks, []workflow.Diagnostic) {
	if r.Check.Files == nil {
		return nil, nil
	}
	src, err := r.Check.Files(ctx, workflow.LockFile, workflow.MaxLock)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []workflow.Diagnostic{{File: workflow.LockFile, Message: "the lock file cannot be read: " + err.Error()}}
	}
	return workflow.ParseLock(src)
}

// Late looks at a job that is about to start, of what could not be known before.
func (r *Request) Late(j *plan.Job) {
	if len(j.Refused) > 0 {
		return
	}
	j.Refused = engine.Labels(j, r.Check.Mapped)
	r.labels(j)
}

// inputs are the inputs context of a workflow_dispatch; the payload gets them too.
func (r *Request) inputs() (inputs expr.Value, ds []workflow.Diagnostic) {
	t := r.Workflow.Trigger("workflow_dispatch")
	if t == nil || r.Event.Event != "workflow_dispatch" {
		return inputs, nil
	}
	inputs, texts, errs := workflow.DispatchInputs(t, r.Inputs)
	for _, err := range errs {
		ds = append(ds, workflow.Diagnostic{File: r.Workflow.File, Pos: t.Pos, Message: err.Error(), Hint: r.InputHint})
	}
	if m := r.Facts.Payload.AsMap(); m != nil {
		m = m.Clone()
		m.Set("inputs", texts)
		r.Facts.Payload = expr.Object(m)
	}
	return inputs, ds
}

// labels refuses a job that no machine takes: one that nobody can ever take must not
// wait in silence. A place of which something is said already is not spoken of twice.
func (r *Request) labels(j *plan.Job) {
	if r.Fits == nil || j.IsCall() || j.Deferred || len(j.Labels) == 0 && j.RunnerGroup == "" {
		return
	}
	have, remarks, err := r.Fits(j.Labels, j.RunnerGroup)
	if err == nil {
		if len(j.Refused) == 0 {
			j.Labels = have
			for _, remark := range remarks {
				if !slices.Contains(j.Remarks, remark) {
					j.Remarks = append(j.Remarks, remark)
				}
			}
		}
		return
	}
	pos := j.Definition.Pos
	if j.Definition.RunsOn != nil {
		pos = j.Definition.RunsOn.Pos
	}
	if !slices.ContainsFunc(j.Refused, func(d workflow.Diagnostic) bool { return d.File == j.Workflow.File && d.Pos == pos }) {
		j.Refused = append(j.Refused, workflow.Diagnostic{File: j.Workflow.File, Pos: pos, Near: pos, Rule: plan.Unsupported, Message: err.Error(),
			Hint: r.LabelHint})
	}
}

// object is a map as expressions see it.
func object(m map[string]string) expr.Value {
	out := expr.NewMap()
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out.Set(k, expr.String(m[k]))
	}
	return expr.Object(out)
}
