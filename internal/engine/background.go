package engine

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// maxBackground is how many background steps run at the same time, as on GitHub.
const maxBackground = 10

// background is a step that runs while those after it do.
type background struct {
	def    *workflow.Step
	number int
	scope  *scope // forked
	done   chan struct{}
	cancel context.CancelCauseFunc

	// Set when done is closed.
	res StepResult
	x   *execution

	joined   bool // its results are known to other steps
	unwanted bool // a cancel step named it
}

// startBackground starts a step and goes on. Whether its condition holds is
// decided now, like that of any step, by what is known now: its scope is a copy.
func (r *run) startBackground(sc *scope, s *workflow.Step, number int) *background {
	ctx, cancel := context.WithCancelCause(r.hard)
	b := &background{def: s, number: number, scope: sc.fork(), done: make(chan struct{}), cancel: cancel}
	r.mu.Lock()
	r.background = append(r.background, b)
	r.mu.Unlock()
	decided := make(chan struct{})
	r.wg.Go(func() {
		defer close(b.done)
		defer cancel(nil)
		b.res, b.x = r.stepAs(ctx, b.scope, s, number, sync.OnceFunc(func() { close(decided) }))
	})
	<-decided
	return b
}

// join makes the results of background steps known, and says what a step that
// waits for them concludes.
func (r *run) join(sc *scope, list []*background) (ci.Conclusion, []string) {
	worst := ci.Success
	var names []string
	for _, b := range list {
		<-b.done
		names = append(names, fmt.Sprintf("  %s: %s", r.clean(b.x.name), b.res.Conclusion))
		r.mu.Lock()
		joined := b.joined
		b.joined = true
		r.mu.Unlock()
		if joined {
			continue
		}
		sc.env.join(b.scope.env)
		sc.steps.set(b.def.ID, b.x.outputs, b.res.Outcome, b.res.Conclusion)
		switch b.res.Conclusion {
		case ci.Failure, ci.TimedOut:
			worst = ci.Failure
		case ci.Cancelled:
			if worst == ci.Success && !b.unwanted {
				worst = ci.Cancelled
			}
		}
	}
	return worst, names
}

// open are the background steps that nobody has waited for, all or those named.
func (r *run) open(wanted []workflow.Needed) []*background {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*background
	for _, b := range r.background {
		if wanted == nil {
			if !b.joined {
				out = append(out, b)
			}
			continue
		}
		for _, w := range wanted {
			if strings.EqualFold(w.ID, b.def.ID) {
				out = append(out, b)
			}
		}
	}
	return out
}

// control runs a step that is wait, wait-all or cancel.
func (r *run) control(sc *scope, s *workflow.Step, number int) {
	began := time.Now()
	x := r.newExec(sc, s, number, s.ID)
	x.name = stepName(s, r.evalEnv(sc, vars{}))
	res := StepResult{Number: number, ID: s.ID, Name: r.clean(x.name), Attempts: 1, Outcome: ci.Skipped}
	// Like any step without a condition it is not reached after a failure; what
	// it would have waited for is waited for at the end.
	runs, why, err := x.decide()
	switch {
	case r.lost() != nil:
		res.Reason = "the job could not go on"
	case err != nil || !runs:
		res.Reason = why
	default:
		r.emit(x, ci.Record{Type: ci.StepStarted, Name: x.name})
		switch {
		case s.Cancel != nil:
			list := r.open([]workflow.Needed{*s.Cancel})
			r.system(x, "Cancelling background step(s): "+s.Cancel.ID)
			r.mu.Lock()
			for _, b := range list {
				b.unwanted = true
			}
			r.mu.Unlock()
			for _, b := range list {
				b.cancel(errStepCancel)
			}
			_, names := r.join(sc, list)
			r.system(x, strings.Join(append([]string{"Finished cancelling background step(s)."}, names...), "\n"))
			res.Outcome = ci.Success
		default:
			list := r.open(s.Wait)
			if s.WaitAll {
				list = r.open(nil)
			}
			var waiting []string
			for _, b := range list {
				waiting = append(waiting, b.def.ID)
			}
			if len(list) == 0 {
				r.system(x, "No background steps remaining to wait for.")
			} else {
				r.system(x, "Waiting for background step(s) to complete: "+strings.Join(waiting, ", "))
			}
			c, names := r.join(sc, list)
			r.system(x, strings.Join(append([]string{"Finished waiting for background step(s)."}, names...), "\n"))
			res.Outcome = c
		}
	}
	res.Conclusion = res.Outcome
	if res.Outcome == ci.Failure && x.continues() {
		res.Conclusion = ci.Success
	}
	res.Duration = time.Since(began)
	r.emit(x, ci.Record{
		Type: ci.StepFinished, Name: x.name, Conclusion: res.Conclusion, Outcome: res.Outcome, Reason: res.Reason,
		DurationMS: new(res.Duration.Milliseconds()), ExitCode: new(0),
	})
	r.mu.Lock()
	r.steps = append(r.steps, res)
	r.mu.Unlock()
	r.settle(sc, s, x, res)
}

// parallel runs the steps of a parallel block side by side and waits for all.
func (r *run) parallel(sc *scope, s *workflow.Step, number int) {
	var list []*background
	for i, step := range s.Parallel {
		list = append(list, r.startBackground(sc, step, number+i))
	}
	if c, _ := r.join(sc, list); c == ci.Failure {
		sc.fail()
	}
}

// finishBackground waits for what nobody has waited for, before post steps run.
func (r *run) finishBackground(sc *scope) {
	list := r.open(nil)
	if c, _ := r.join(sc, list); c == ci.Failure {
		sc.fail()
	}
	r.wg.Wait()
}
