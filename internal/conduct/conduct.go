package conduct

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/plan"
)

// Outcome is how a job ended.
type Outcome struct {
	Conclusion     ci.Conclusion
	Outputs        map[string]string
	Reason         string
	Infrastructure bool // it could not be run
	// Told: job.finished has been emitted already.
	Told bool
}

// Task is one job to be run.
type Task struct {
	Run   *plan.Run
	Job   *plan.Job
	Needs expr.Value // the needs context
	// Handed counts what the jobs of the run hand on as outputs, this one too; nil
	// counts those of this job alone.
	Handed *plan.Allowance
	// Part is what of the run the job needs, by itself: what can be sent elsewhere.
	Part *plan.Run
	// Waits is to be called as soon as the job has its place among those that wait
	// for a machine, so that the job after it comes behind it; nil asks for nothing.
	Waits func()
}

// An Executor runs one job to its end. It returns only then, whatever becomes
// of ctx, whose cause is the reason of a cancellation.
type Executor interface {
	Execute(ctx context.Context, t Task) Outcome
}

// Finished is a job that ended before the run was taken up, by an earlier
// process: what a Conductor replays.
type Finished struct {
	Key            string
	Conclusion     ci.Conclusion
	Infrastructure bool
	Outputs        map[string]string
}

// Conductor drives one planned run from its first job to its conclusion.
type Conductor struct {
	Run      *plan.Run
	ID       string // run id
	Sink     ci.Sink
	Executor Executor
	// Groups holds the concurrency groups, those of this run in Scope; nil is none.
	Groups *Groups
	Scope  string
	// Risk puts jobs that are ready at the same moment in order: see worker.Risk. nil
	// keeps the file's order.
	Risk func(j *plan.Job) (perSecond float64, known bool)
	// Before is what ended before: the run is taken up again where it was.
	Before []Finished
	// Mask hides what no name of a job or of the run may show; nil hides nothing.
	Mask *mask.Set
	// Expanded hears of a run that changed because a matrix became known.
	Expanded func(*plan.Run) error
	// Late looks at a job that is about to start, and refuses it ([plan.Job.Refused])
	// for what is known only now; nil refuses nothing more.
	Late func(*plan.Job)

	handed plan.Allowance
}

// Hide masks the names of a run and of jobs of it, before they are on record: a
// name can be made of inputs, and of what other jobs hand on.
func Hide(set *mask.Set, run *plan.Run, jobs []*plan.Job) {
	run.Name = set.Field(run.Name)
	for _, j := range jobs {
		j.Name = set.Field(j.Name)
	}
}

// message tells the driving goroutine what became of something it started.
type message struct {
	key    string
	out    Outcome
	opened func() // of a calling job whose groups are held: lets them go
}

// Drive runs the run. The conclusion is "" only with an error, which means that
// the run could not be driven to its end; the jobs that were started have ended
// even then. Cancelling ctx cancels what runs and starts nothing new; cancelling
// soft (may be nil) is what GitHub's cancel button does: jobs with always()
// still run.
func (c *Conductor) Drive(ctx context.Context, soft <-chan string) (ci.Conclusion, error) {
	Hide(c.Mask, c.Run, c.Run.Jobs)
	s := plan.NewState(c.Run)
	began := time.Now()
	for _, f := range c.Before {
		for _, v := range f.Outputs {
			c.handed.Take(len(v))
		}
	}
	c.Sink.Emit(ci.Record{Type: ci.RunStarted, Run: c.ID, Workflow: c.Run.Workflow, File: c.Run.File, Name: c.Run.Name, Event: c.Run.Event, Ref: c.Run.Ref,
		SHA: c.Run.SHA, Jobs: len(c.Run.Jobs)})
	before := map[string]Finished{}
	lost := "" // the first job that could not be run
	for _, f := range c.Before {
		before[f.Key] = f
		if f.Infrastructure && lost == "" {
			lost = f.Key
		}
	}
	// Jobs that start together ask for their machines in this order, whatever
	// the scheduler does with their goroutines.
	turn := closed
	for _, j := range c.Run.Jobs {
		// A placeholder waits for nothing: its cells will be told of.
		if _, done := before[j.Key]; !done && !j.Deferred {
			c.queued(j)
		}
	}

	messages := make(chan message)
	running := map[string]context.CancelCauseFunc{}
	held := map[string]func(){} // concurrency groups of calling jobs
	interrupted := ctx.Done()
	newer := make(chan string, 1)
	releaseRun, barred := c.hold(ctx, func(reason string) { newer <- reason }, c.Run.Concurrency)
	if barred != nil {
		// It never had its turn: not even always() starts anything.
		releaseRun = func() {}
		s.Cancel(barred.Error())
	}
	asked := "" // why somebody wants the run to end
	var failure error
	fail := func(err error) {
		if err != nil && failure == nil {
			failure = err
			s.Cancel(err.Error())
		}
	}
	for !s.Done() {
		progress := false
		actions := s.Next()
		if c.Risk != nil {
			byRisk(actions, c.Risk)
		}
		for _, a := range actions {
			progress = true
			switch a.Kind {
			case plan.Expand:
				Hide(c.Mask, c.Run, a.Jobs)
				for _, j := range a.Jobs {
					if _, done := before[j.Key]; !done {
						c.queued(j)
					}
				}
				if c.Expanded != nil {
					fail(c.Expanded(c.Run))
				}
			case plan.Skip, plan.Conclude:
				if release := held[a.Job.Key]; release != nil {
					release()
					delete(held, a.Job.Key)
				}
				if _, done := before[a.Job.Key]; !done {
					c.told(a.Job, Outcome{Conclusion: a.Conclusion, Outputs: a.Outputs, Reason: a.Reason}, 0)
				}
			case plan.Cancel:
				if stop := running[a.Job.Key]; stop != nil {
					stop(errors.New(cmp.Or(a.Reason, "cancelled")))
				}
			case plan.Start:
				if f, done := before[a.Job.Key]; done && a.Job.Opens == 0 {
					fail(s.Started(a.Job.Key))
					fail(s.Finished(a.Job.Key, f.Conclusion, f.Outputs))
					continue
				}
				never := barred
				if ctx.Err() != nil {
					never = context.Cause(ctx)
				} else if never == nil {
					never = c.deadlock(a.Job)
				}
				if never != nil {
					c.told(a.Job, Outcome{Conclusion: ci.Cancelled, Reason: never.Error()}, 0)
					fail(s.Finished(a.Job.Key, ci.Cancelled, nil))
					continue
				}
				if out, refused := c.refused(a.Job); refused {
					fail(s.Finished(a.Job.Key, out.Conclusion, nil))
					continue
				}
				for _, remark := range a.Job.Remarks {
					c.Sink.Emit(c.Mask.Record(ci.Record{Type: ci.AnnotationRec, Run: c.ID, Job: a.Job.ID, JobKey: a.Job.Key, Level: "notice", Message: remark}))
				}
				jobCtx, stop := context.WithCancelCause(context.WithoutCancel(ctx))
				running[a.Job.Key] = stop
				if a.Job.Opens > 0 {
					go func() { messages <- c.open(jobCtx, stop, a.Job) }()
					continue
				}
				fail(s.Started(a.Job.Key))
				mine, next := turn, make(chan struct{})
				turn = next
				place := c.enter(stop, a.Job.Concurrency)
				part := c.Run.Part(a.Job) // now: the run goes on meanwhile
				go func() {
					messages <- c.execute(jobCtx, stop, a, part, place, mine, sync.OnceFunc(func() { close(next) }))
				}()
			}
		}
		if progress {
			continue
		}
		if len(running) == 0 && !s.Done() {
			// The state has nothing to do and nothing is under way: a bug of ours
			// must not hang for ever.
			failure = errors.Join(failure, fmt.Errorf("run %s: %d jobs can never start", c.ID, len(c.Run.Jobs)))
			break
		}
		select {
		case m := <-messages:
			delete(running, m.key)
			if m.opened != nil {
				held[m.key] = m.opened
				fail(s.Started(m.key))
				continue
			}
			if m.out.Infrastructure && lost == "" {
				lost = m.key
			}
			fail(s.Finished(m.key, m.out.Conclusion, m.out.Outputs))
		case reason := <-newer:
			s.Cancel(reason)
		case asked = <-soft:
			s.Cancel(asked)
			soft = nil
		case <-interrupted:
			interrupted = nil
			s.Cancel(context.Cause(ctx).Error())
			for _, stop := range running {
				stop(context.Cause(ctx))
			}
		}
	}
	for len(running) > 0 { // only after a failure of ours
		for _, stop := range running {
			stop(failure)
		}
		m := <-messages
		delete(running, m.key)
		if m.out.Infrastructure && lost == "" {
			lost = m.key
		}
		if m.opened != nil {
			m.opened()
		}
	}
	for _, release := range held {
		release()
	}
	releaseRun()
	conclusion := s.Conclusion()
	rec := ci.Record{Type: ci.RunFinished, Run: c.ID, Conclusion: conclusion, DurationMS: new(time.Since(began).Milliseconds())}
	if slices.ContainsFunc(c.Run.Jobs, func(j *plan.Job) bool { return s.JobConclusion(j.Key) == ci.NotRun }) {
		rec.Ran, rec.Jobs = s.Ran()
	}
	if failure != nil {
		rec.Conclusion, rec.Reason, rec.Infrastructure = ci.Failure, failure.Error(), true
	} else if ctx.Err() != nil {
		rec.Reason = context.Cause(ctx).Error()
		if conclusion != ci.Success {
			rec.Conclusion = ci.Cancelled
		}
	} else if asked != "" && conclusion == ci.Cancelled {
		rec.Reason = asked
	} else if lost != "" {
		rec.Reason, rec.Infrastructure = fmt.Sprintf("%s could not be run", lost), true
	}
	c.Sink.Emit(c.Mask.Record(rec))
	return rec.Conclusion, failure
}

// Alone runs one job of the run, whatever it needs and whatever became of the others:
// for a job that is begun anew where it had been kept. The records are those of a run of
// this job.
func (c *Conductor) Alone(ctx context.Context, j *plan.Job, needs expr.Value) Outcome {
	Hide(c.Mask, c.Run, []*plan.Job{j})
	began := time.Now()
	c.Sink.Emit(ci.Record{Type: ci.RunStarted, Run: c.ID, Workflow: c.Run.Workflow, File: c.Run.File, Name: c.Run.Name, Event: c.Run.Event, Ref: c.Run.Ref,
		SHA: c.Run.SHA, Jobs: 1})
	c.queued(j)
	out := c.Executor.Execute(ctx, Task{Run: c.Run, Job: j, Needs: needs, Handed: &c.handed})
	out = c.concluded(j, out, began)
	rec := ci.Record{Type: ci.RunFinished, Run: c.ID, Conclusion: out.Conclusion, DurationMS: new(time.Since(began).Milliseconds())}
	if out.Infrastructure {
		rec.Reason, rec.Infrastructure = fmt.Sprintf("%s could not be run", j.Key), true
	}
	c.Sink.Emit(c.Mask.Record(rec))
	return out
}

// refused ends a job that cannot run here: not run, or failed where its author, or
// whoever has its actions, is to mend something.
func (c *Conductor) refused(j *plan.Job) (out Outcome, refused bool) {
	if j.Opens > 0 {
		return out, false
	}
	if c.Late != nil {
		c.Late(j)
	}
	if len(j.Refused) == 0 {
		return out, false
	}
	first, reason, missing := j.Refusal()
	out = Outcome{Conclusion: ci.NotRun, Reason: reason}
	if !missing {
		out.Conclusion = ci.Failure
	}
	r := ended(c.ID, j, out, 0)
	r.File, r.Line, r.Column, r.Hint = first.File, first.Pos.Line, first.Pos.Col, first.Hint
	c.Sink.Emit(c.Mask.Record(r))
	return out, true
}

// deadlock says, as GitHub does, which concurrency group a job would wait for
// that is held around it, and so would wait for it.
func (c *Conductor) deadlock(j *plan.Job) error {
	if c.Groups == nil {
		return nil
	}
	around := map[string]string{}
	add := func(g *plan.Group, of string) error {
		if g == nil || g.Name == "" {
			return nil
		}
		name := strings.ToLower(g.Name)
		if holder, ok := around[name]; ok {
			//lint:ignore ST1005 worded as GitHub words it
			return fmt.Errorf("Canceling since a deadlock for concurrency group '%s' was detected between '%s' and '%s'", g.Name, holder, of)
		}
		around[name] = of
		return nil
	}
	err := add(c.Run.Concurrency, "top level workflow")
	for _, key := range append(slices.Clone(j.CallPath), j.Key) {
		in := c.Run.Job(key)
		if err != nil || in == nil {
			break
		}
		if err = add(in.Concurrency, in.Name); err == nil && in.Opens > 0 {
			err = add(c.Run.Calls[in.Opens].Concurrency, in.Name)
		}
	}
	return err
}

// open waits for the groups of a calling job; it runs nothing itself.
func (c *Conductor) open(ctx context.Context, stop context.CancelCauseFunc, j *plan.Job) message {
	release, err := c.hold(ctx, func(reason string) { stop(errors.New(reason)) }, j.Concurrency, c.Run.Calls[j.Opens].Concurrency)
	if err != nil {
		out := Outcome{Conclusion: ci.Cancelled, Reason: err.Error()}
		c.told(j, out, 0)
		return message{key: j.Key, out: out}
	}
	return message{key: j.Key, opened: release}
}

// enter takes a job's place in its concurrency group.
func (c *Conductor) enter(stop context.CancelCauseFunc, g *plan.Group) place {
	if g == nil || c.Groups == nil {
		return place{}
	}
	return c.Groups.enter(c.Scope, *g, func(reason string) { stop(errors.New(reason)) })
}

// closed is the turn of whoever has nobody before it.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// execute runs one job within its concurrency group. It waits for turn before it
// asks for a machine, unless it has to wait for its group longer; next lets the
// one behind it ask.
func (c *Conductor) execute(ctx context.Context, stop context.CancelCauseFunc, a plan.Action, part *plan.Run, p place, turn <-chan struct{},
	next func()) message {
	defer stop(nil)
	defer next()
	began := time.Now()
	if p.held() {
		<-turn // whoever is before us asks or ends: it does not wait for us
	} else {
		go func() { <-turn; next() }()
	}
	var out Outcome
	release, err := p.wait(ctx)
	if err != nil {
		out = Outcome{Conclusion: ci.Cancelled, Reason: err.Error()}
	} else {
		out = c.Executor.Execute(ctx, Task{Run: c.Run, Job: a.Job, Needs: a.Needs, Handed: &c.handed, Part: part, Waits: next})
		release()
	}
	return message{key: a.Job.Key, out: c.concluded(a.Job, out, began)}
}

// concluded is how a job that was executed ended; it is told of if the executor has not.
func (c *Conductor) concluded(j *plan.Job, out Outcome, began time.Time) Outcome {
	if !out.Conclusion.Valid() {
		out.Conclusion, out.Infrastructure, out.Reason = ci.Failure, true, cmp.Or(out.Reason, "the job ended without a conclusion")
	}
	if !out.Told {
		c.told(j, out, time.Since(began))
	}
	return out
}

// hold takes the groups, all or none, in the order given.
func (c *Conductor) hold(ctx context.Context, cancel func(reason string), groups ...*plan.Group) (func(), error) {
	var releases []func()
	release := func() {
		for _, r := range slices.Backward(releases) {
			r()
		}
	}
	for _, g := range groups {
		if g == nil || c.Groups == nil {
			continue
		}
		r, err := c.Groups.Hold(ctx, c.Scope, *g, cancel)
		if err != nil {
			release()
			return nil, err
		}
		releases = append(releases, r)
	}
	return release, nil
}

func (c *Conductor) queued(j *plan.Job) {
	r := ci.Record{Type: ci.JobQueued, Run: c.ID, Job: j.ID, JobKey: j.Key, Name: j.Name, Needs: j.Needs}
	if j.Matrix.Kind() != expr.KindNull {
		r.Matrix = j.Matrix
	}
	c.Sink.Emit(c.Mask.Record(r))
}

func (c *Conductor) told(j *plan.Job, out Outcome, d time.Duration) {
	c.Sink.Emit(c.Mask.Record(ended(c.ID, j, out, d)))
}

// ended is the record of a job's end.
func ended(run string, j *plan.Job, out Outcome, d time.Duration) ci.Record {
	r := ci.Record{Type: ci.JobFinished, Run: run, Job: j.ID, JobKey: j.Key, Name: j.Name, Conclusion: out.Conclusion,
		Reason: out.Reason, Infrastructure: out.Infrastructure, DurationMS: new(d.Milliseconds()), Outputs: maps.Clone(out.Outputs)}
	if j.Matrix.Kind() != expr.KindNull {
		r.Matrix = j.Matrix
	}
	return r
}
