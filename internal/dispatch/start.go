package dispatch

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/forge"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/launch"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/webhook"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// status is the HTTP status in an error of GitHub's, or 0.
func status(err error) int {
	var e *forge.Error
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

// repo finds the repository through the installation that a payload names, or
// that GitHub knows.
func (d *Dispatcher) repo(ctx context.Context, full string, installation int64) (forge.Repo, error) {
	owner, name, ok := strings.Cut(full, "/")
	if !ok {
		return nil, refuse("the payload names no repository: %q", full)
	}
	if d.cfg.Forge == nil {
		return nil, errors.New("this server has no GitHub App")
	}
	if installation == 0 {
		var err error
		if installation, err = d.cfg.Forge.Installation(ctx, owner, name); err != nil {
			return nil, err
		}
	}
	repo, err := d.cfg.Forge.Repo(installation, owner, name)
	if err != nil {
		return nil, refuse("%v", err)
	}
	return repo, nil
}

// start turns an event into runs. detail says what came of it. What an earlier
// try has made already is left alone.
func (d *Dispatcher) start(ctx context.Context, ln *lane, e store.StoredEvent) (detail string, err error) {
	if _, served := d.policy(e.Repository); !served {
		return "", bar("%s", webhook.NotServed(e.Repository))
	}
	if e.Name == approvalEvent && e.Delivery == "" {
		var a struct{ Run, SHA, By string }
		if err := json.Unmarshal(e.Payload, &a); err != nil {
			return "", refuse("the approval cannot be read: %v", err)
		}
		return d.approved(ctx, ln, e.Repository, a.Run, a.SHA, a.By)
	}
	p, whole, err := decode(e)
	if err != nil {
		return "", err
	}
	if p.Repository.FullName != e.Repository {
		return "", bar("the payload is about another repository")
	}
	if err := d.genuine(ctx, e); err != nil {
		return "", err
	}
	if d.own(p) {
		switch {
		case p.Action == "rerequested":
			return d.rerun(ctx, ln, e, p)
		case p.Action == "requested_action" && p.RequestedAction.Identifier == approveButton:
			return d.pressed(ctx, ln, e, p)
		}
		return "about this server's own checks", nil
	}
	repo, err := d.repo(ctx, e.Repository, p.Installation.ID)
	if err != nil {
		return "", err
	}
	occasions, reason, err := d.occasions(ctx, repo, e.Name, p, whole)
	if err != nil {
		return "", err
	}
	var said []string
	if reason != "" {
		said = append(said, reason)
	}
	for _, o := range occasions {
		lines, err := d.occur(ctx, cause{lane: ln, event: e, payload: p, repo: repo, occasion: o})
		if err != nil {
			return "", err
		}
		said = append(said, lines...)
	}
	return strings.Join(said, "; "), nil
}

// own reports whether an event is about checks that we made: it must not start
// workflows, or checks would make checks.
func (d *Dispatcher) own(p payload) bool {
	return d.cfg.AppID != 0 && (p.CheckRun != nil && p.CheckRun.App.ID == d.cfg.AppID || p.CheckRun == nil && p.CheckSuite != nil &&
		p.CheckSuite.App.ID == d.cfg.AppID)
}

// cause is what a run is made for: an event, what it says, whose repository, and
// which of the occasions that it is.
type cause struct {
	lane    *lane // that the event's repository is in this server's hands
	event   store.StoredEvent
	payload payload
	repo    forge.Repo
	occasion

	// Of a run that is made again: its number, and which attempt this is.
	number  int64
	attempt int
}

// occur runs the workflows that one occasion starts.
func (d *Dispatcher) occur(ctx context.Context, o cause) ([]string, error) {
	files, err := o.repo.Workflows(ctx, o.SHA)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return []string{fmt.Sprintf("%s: there are no workflows at %s", o.Event, short(o.SHA))}, nil
	}
	before, err := d.cfg.Store.Runs(ctx, store.RunFilter{EventID: o.event.ID, Event: o.Event, Limit: 1000})
	if err != nil {
		return nil, err
	}
	made := map[string]bool{}
	for _, r := range before {
		made[r.File] = true
	}
	var said []string
	started := 0
	for _, f := range files {
		if o.Only != "" && f.Path != o.Only {
			continue
		}
		if made[f.Path] {
			started++
			continue
		}
		w, diags := workflow.Parse(f.Path, f.Content, workflow.Options{})
		if workflow.Errors(diags) {
			// Whether it would run for this event cannot be known. A push or a
			// change of a pull request is when its author looks.
			if o.Event == "push" && strings.HasPrefix(o.Ref, "refs/heads/") || o.Event == "pull_request" && o.Trust == ofFork || o.Only != "" {
				if err := d.invalid(ctx, o, f.Path, f.Path, diags); err != nil {
					return nil, err
				}
				started++
			}
			said = append(said, fmt.Sprintf("%s: it is invalid: %s", f.Path, first(diags)))
			continue
		}
		if o.Changed != nil && filtersPaths(w, o.Event) {
			if o.ChangedFiles, o.FilesKnown, err = o.Changed(ctx); err != nil {
				return nil, err
			}
			o.Changed = nil // once is enough for all files
		}
		decision := w.Decide(&o.Happening)
		if !decision.Run {
			said = append(said, fmt.Sprintf("%s: %s", f.Path, decision.Reason))
			continue
		}
		run, err := d.plan(ctx, o, w)
		if err != nil {
			return nil, err
		}
		started++
		said = append(said, fmt.Sprintf("%s: run %s", f.Path, run.ID))
		if o.Waits {
			said[len(said)-1] += " waits for approval"
		}
	}
	head := fmt.Sprintf("%s: no workflow runs", o.Event)
	if started == 1 {
		head = o.Event + ": 1 run"
	} else if started > 1 {
		head = fmt.Sprintf("%s: %d runs", o.Event, started)
	}
	if o.Note != "" && started > 0 {
		head += " " + o.Note
	}
	if o.Only != "" && len(said)+started == 0 {
		head += fmt.Sprintf(": there is no %s at %s", o.Only, short(o.SHA))
	}
	return append([]string{head}, said...), nil
}

func first(ds []workflow.Diagnostic) string {
	for _, d := range ds {
		if workflow.Errors([]workflow.Diagnostic{d}) {
			return d.String()
		}
	}
	return ""
}

func filtersPaths(w *workflow.Workflow, event string) bool {
	t := w.Trigger(event)
	return t != nil && len(t.Paths)+len(t.PathsIgnore) > 0
}

// newRun fills in what a run is before it is planned.
func (d *Dispatcher) newRun(ctx context.Context, o cause, file, name string) (ci.Run, error) {
	run := ci.Run{ID: ci.NewID(), EventID: o.event.ID, Event: o.Event, Repository: o.event.Repository, Workflow: cmp.Or(name, file), File: file,
		Name: cmp.Or(name, file),
		Ref:  o.Ref, SHA: o.SHA, Actor: o.payload.Sender.Login, Number: o.number, Attempt: max(o.attempt, 1), Created: time.Now()}
	if o.number != 0 {
		return run, nil
	}
	var err error
	run.Number, err = d.cfg.Store.NumberRun(ctx, o.event.Repository, file)
	return run, err
}

// plan makes a run of a workflow and starts it. What its author has to mend
// becomes a completed run and a failed check.
func (d *Dispatcher) plan(ctx context.Context, o cause, w *workflow.Workflow) (ci.Run, error) {
	run, err := d.newRun(ctx, o, w.File, w.Name)
	if err != nil {
		return run, err
	}
	planned, ds, err := d.build(ctx, o, w, &run)
	if err != nil {
		return run, err
	}
	if planned == nil {
		o.number, o.attempt = run.Number, run.Attempt
		return run, d.invalid(ctx, o, w.File, w.Name, ds)
	}
	text, err := json.Marshal(planned)
	if err != nil {
		return run, err
	}
	var jobs []ci.Job
	for _, j := range planned.Jobs {
		if !j.Deferred {
			jobs = append(jobs, ci.Job{Key: j.Key, Job: j.ID, Name: j.Name, Labels: j.Labels, Status: ci.Queued})
		}
	}
	// That it waits is known before it is there: a crash between the two lets
	// nothing start.
	keep := context.WithoutCancel(ctx)
	if o.Waits || o.By != "" {
		if err := d.setApproval(keep, run.ID, approval{SHA: run.SHA, By: o.By}); err != nil {
			return run, err
		}
	}
	// From here on the run exists, whatever becomes of ctx.
	defer d.occupy(run.ID)()
	run, _, err = d.cfg.Store.Under(o.lane.lease).CreateRun(keep, run, jobs, text)
	if err != nil {
		return run, err
	}
	if o.Waits {
		return run, d.await(keep, o.lane, run, planned, d.reporter(o.lane, run, headOf(planned), o.repo))
	}
	d.conduct(o.lane, run, planned, o.repo, nil, made)
	return run, nil
}

// build plans. An error is of the forge, and nobody's fault.
func (d *Dispatcher) build(ctx context.Context, o cause, w *workflow.Workflow, run *ci.Run) (*plan.Run, []workflow.Diagnostic, error) {
	given := map[string]string{}
	for k, v := range o.payload.Inputs {
		if v != nil {
			given[k] = fmt.Sprint(v)
		}
	}
	var trouble error
	planned, ds := launch.Plan(ctx, launch.Request{
		Workflow: w, Event: &o.Happening, Facts: launch.Facts{Run: *run, Server: d.cfg.Server, API: d.cfg.API, Again: o.payload.again},
		Load: d.load(ctx, o, &trouble), Inputs: given, Vars: d.vars(run.Repository, o.Trust),
		DefaultPermissions: "read", ReadOnly: o.Trust != ofOwn,
		Planned: func(planned *plan.Run) {
			planned.Trust = string(o.Trust)
			planned.Limit(d.limit(run.Repository, o.Trust).MaxTimeout.Minutes())
			conduct.Hide(d.runner(*run, nil, o.Trust, o.repo).Hidden(), planned, planned.Jobs)
			run.Name, run.Workflow = planned.Name, planned.Workflow
		},
		Check: engine.CheckOptions{
			Actions: d.cfg.Actions, Shells: d.cfg.Shells, Results: d.cfg.Results != nil,
			Mapped: d.has,
			Files: func(ctx context.Context, name string, limit int64) ([]byte, error) {
				b, err := o.repo.File(ctx, name, o.SHA)
				switch {
				case status(err) == 404:
					return nil, fmt.Errorf("%s: %w", name, os.ErrNotExist)
				case err != nil && (isTemporary(err) || ctx.Err() != nil):
					trouble = cmp.Or(trouble, err)
				case int64(len(b)) > limit:
					return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
				}
				return b, err
			},
		},
		Fits: d.fits, LabelHint: d.labelHint(),
	})
	return planned, ds, trouble
}

// late looks at a job that is about to start as build looks at those that are known.
func (d *Dispatcher) late(j *plan.Job) {
	r := launch.Request{Check: engine.CheckOptions{Mapped: d.has, Results: d.cfg.Results != nil}, Fits: d.fits, LabelHint: d.labelHint()}
	r.Late(j)
}

// has reports whether the workers here answer to a label.
func (d *Dispatcher) has(label string) bool {
	return slices.ContainsFunc(d.cfg.Labels, func(have string) bool { return strings.EqualFold(have, label) })
}

func (d *Dispatcher) labelHint() string {
	return "this server's runners have the labels " + strings.Join(d.cfg.Labels, ", ")
}

// fits says by which labels a worker is asked for that can take a job, or why there
// is none. A job that nobody can ever take must not wait in silence.
func (d *Dispatcher) fits(labels []string, group string) (have, remarks []string, err error) {
	have, remarks, err = image.Take(labels, group, d.has, d.cfg.StrictLabels)
	if err == nil && d.cfg.Image != nil && len(have) > 0 {
		var remark string
		if _, remark, err = d.cfg.Image(have); remark != "" {
			remarks = append(remarks, remark)
		}
	}
	return have, remarks, err
}

// image names the image for a job with these labels.
func (d *Dispatcher) image(labels []string) (string, error) {
	if d.cfg.Image == nil || len(labels) == 0 {
		return "", nil
	}
	name, _, err := d.cfg.Image(labels)
	return name, err
}

// public reads a workflow of another repository without any credentials.
func (d *Dispatcher) public(ctx context.Context, uses string, t trust) ([]byte, error) {
	why := "of other owners, and of repositories that this server does not serve, public workflows only can be called"
	if t == ofFork {
		why = "a pull request from a fork may call public workflows only"
	}
	if d.cfg.Actions == nil {
		return nil, errors.New(why + ", and this server fetches none")
	}
	ref, err := action.ParseRef(uses)
	if err != nil {
		return nil, err
	}
	tree, err := d.cfg.Actions.Resolve(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", why, err)
	}
	return tree.ReadFile(ctx, ref.Path, action.MaxFile)
}

// load reads called workflows: of the run's repository at its commit, of others
// at the ref they name, where mayRead lets it. trouble gets what is nobody's
// fault: then what Link says does not count.
//
// A pull request from a fork reads workflows of other repositories as anybody
// may: with the installation's rights, its file could have those of a private
// repository shown to it.
func (d *Dispatcher) load(ctx context.Context, o cause, trouble *error) workflow.Load {
	return func(uses string, from *workflow.Workflow) (string, []byte, error) {
		where, ref, path, name := o.repo, o.SHA, uses, uses
		local := strings.HasPrefix(uses, "./")
		if local {
			uses, name = strings.TrimPrefix(uses, "./"), strings.TrimPrefix(uses, "./")
			path = uses
			if at := strings.LastIndexByte(from.File, '@'); at > 0 {
				// Said in a file of another repository: it means that one.
				parts := strings.SplitN(from.File[:at], "/", 3)
				if len(parts) == 3 {
					uses, local = parts[0]+"/"+parts[1]+"/"+path+from.File[at:], false
					name = uses
				}
			}
		}
		if !local {
			at := strings.LastIndexByte(uses, '@')
			parts := strings.SplitN(uses[:max(at, 0)], "/", 3)
			if len(parts) != 3 {
				return "", nil, fmt.Errorf("%q is no workflow: want owner/repository/.github/workflows/file.yml@ref", uses)
			}
			if other := parts[0] + "/" + parts[1]; !strings.EqualFold(other, o.payload.Repository.FullName) {
				rights, err := d.mayRead(ctx, o.payload, o.Trust, other)
				if err == nil && !rights {
					b, err := d.public(ctx, uses, o.Trust)
					return uses, b, err
				}
				if err == nil {
					where, err = d.repo(ctx, other, o.payload.Installation.ID)
				}
				if err != nil {
					if isTemporary(err) || ctx.Err() != nil {
						*trouble = cmp.Or(*trouble, err)
					}
					return "", nil, err
				}
			}
			path, ref = parts[2], uses[at+1:]
		}
		b, err := where.File(ctx, path, ref)
		switch {
		case err == nil:
			return name, b, nil
		case status(err) == 404:
			return "", nil, fmt.Errorf("workflow was not found: %s at %s: %w", path, ref, os.ErrNotExist)
		case isTemporary(err) || ctx.Err() != nil:
			*trouble = cmp.Or(*trouble, err)
		}
		return "", nil, err
	}
}

func isTemporary(err error) bool {
	var e *forge.Error
	return errors.As(err, &e) && e.Temporary || errors.Is(err, context.DeadlineExceeded)
}

// invalid records a workflow that cannot run as a run that has failed, and
// reports it as a failed check with the errors where they are.
func (d *Dispatcher) invalid(ctx context.Context, o cause, file, name string, ds []workflow.Diagnostic) error {
	run, err := d.newRun(ctx, o, file, name)
	if err != nil {
		return err
	}
	head := o.SHA
	if o.payload.PullRequest != nil && o.Event == "pull_request" {
		head = o.payload.PullRequest.Head.SHA
	}
	// The check is noted before the run is there: after a crash between the two
	// there is a check too much, never one too few.
	r := d.reporter(o.lane, run, head, o.repo)
	r.whole = true
	if err := r.note(run.ID, 0); err != nil {
		return err
	}
	defer d.occupy(run.ID)()
	entry, err := d.ledger.Under(o.lane.lease).Open(ctx, run, nil, nil, r)
	if err != nil {
		return err
	}
	entry.Begin(0, nil, learn.Change{}, nil)
	hidden := d.runner(run, nil, o.Trust, o.repo).Hidden()
	for _, x := range ds {
		entry.Emit(hidden.Record(ci.Record{Type: ci.DiagnosticRec, File: x.File, Line: x.Pos.Line, Column: x.Pos.Col, Message: x.Message, Hint: x.Hint,
			Level: x.Severity.String()}))
	}
	entry.Emit(ci.Record{Type: ci.RunFinished, Conclusion: ci.Failure, Reason: "the workflow is invalid", DurationMS: new(int64(0))})
	err = entry.Close()
	r.close()
	d.show(r)
	return err
}

// rerun runs once more what a re-requested check belongs to: the whole workflow,
// at the same commits, as a further attempt.
func (d *Dispatcher) rerun(ctx context.Context, ln *lane, e store.StoredEvent, p payload) (string, error) {
	if p.CheckRun == nil || !ci.ValidID(p.CheckRun.ExternalID) {
		return "re-run one check by itself: GitHub names no workflow here", nil
	}
	run, source, err := d.ofCheck(ctx, e, p)
	if err != nil {
		return "", err
	}
	if again, err := d.cfg.Store.Runs(ctx, store.RunFilter{EventID: e.ID, Limit: 1}); err != nil || len(again) > 0 {
		return "made already", err
	}
	// What was approved of stays so, at the same commit, and what was not does not
	// start by being asked for again.
	approved, asked, err := approvalOf(ctx, d.cfg.Store, run.ID)
	if err != nil {
		return "", err
	}
	if asked && approved.By == "" && run.Status != ci.Completed {
		return fmt.Sprintf("run %s waits for approval", run.ID), nil
	}
	// The event of the new run is the one of the old, with who did what it tells:
	// whoever asks for it again lends it nothing. That it is this delivery that asked
	// is what keeps it from being made twice.
	was, whole, err := decode(source)
	if err != nil {
		return "", err
	}
	was.Installation, was.Repository, was.again = p.Installation, p.Repository, p.Sender.Login
	repo, err := d.repo(ctx, run.Repository, was.Installation.ID)
	if err != nil {
		return "", err
	}
	occasions, _, err := d.occasions(ctx, repo, source.Name, was, whole)
	if err != nil {
		return "", err
	}
	for _, o := range occasions {
		if o.Event != run.Event {
			continue
		}
		o.SHA, o.Ref = run.SHA, run.Ref
		if asked && approved.By != "" && approved.SHA == run.SHA {
			o.Waits, o.By = false, approved.By
		}
		text, err := repo.File(ctx, run.File, o.SHA)
		if err != nil {
			return "", err
		}
		source.ID = e.ID
		c := cause{lane: ln, event: source, payload: was, repo: repo, occasion: o, number: run.Number, attempt: run.Attempt + 1}
		w, diags := workflow.Parse(run.File, text, workflow.Options{})
		if workflow.Errors(diags) {
			return "it is still invalid", d.invalid(ctx, c, run.File, run.Workflow, diags)
		}
		again, err := d.plan(ctx, c, w)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("attempt %d of %s: run %s", again.Attempt, run.File, again.ID), nil
	}
	return "", refuse("run %s cannot be repeated: its event was %s", run.ID, run.Event)
}

// origin finds the event that a run is about, behind the requests to repeat it.
func (d *Dispatcher) origin(ctx context.Context, run ci.Run) (store.StoredEvent, error) {
	for range 100 {
		e, err := d.cfg.Store.Event(ctx, run.EventID)
		if err != nil || e.Name != "check_run" || run.Event == "check_run" {
			return e, err
		}
		p, _, err := decode(e)
		if err != nil || p.CheckRun == nil {
			return e, errors.Join(err, errors.New("it names no check"))
		}
		id := p.CheckRun.ExternalID
		if job, err := d.cfg.Store.Job(ctx, id); err == nil {
			id = job.RunID
		}
		if run, err = d.cfg.Store.Run(ctx, id); err != nil {
			return e, err
		}
	}
	return store.StoredEvent{}, errors.New("it was repeated too often")
}
