package learn

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
)

// Decision is whether a failed step should be tried again.
type Decision struct {
	Retry  bool          `json:"retry"` // it would help
	Act    bool          `json:"act"`   // and the learner may: try again after Delay
	Delay  time.Duration `json:"delay"`
	P      float64       `json:"p"`      // that the next attempt passes
	Reason string        `json:"reason"` // one sentence, always

	costs      Costs
	weight     float64 // that P rests on, in attempts
	propensity float64 // of another attempt
}

const (
	maxAttempts = 3
	// humanWait is what it costs when a person has to look after a failed run.
	humanWait = 15 * time.Minute
)

// forbidden says why a failure is not tried again whatever it costs, its like having
// passed so often on another attempt; "" if it may be.
func (c *RetryCase) forbidden(passed float64) string {
	switch {
	case c.Attempt >= maxAttempts:
		return fmt.Sprintf("it has had %d attempts", c.Attempt)
	case passed >= .5:
		return ""
	case c.Class.Deterministic():
		return fmt.Sprintf("a %s failure comes again while nothing changes", c.Class)
	case !c.Class.Transient():
		return "nothing like this failure has passed on another attempt"
	}
	return ""
}

// retryCase is what a failure of a signature is to the retries.
func (f *Failure) retryCase(sig store.Signature) RetryCase {
	x := f.execution()
	return RetryCase{Repo: x.Repo, Workflow: x.Workflow, Job: x.Job, Step: x.Step, Branch: x.Branch, Signature: sig.ID, Class: Class(sig.Class),
		Attempt: max(f.Attempt, 1)}
}

// decide weighs another attempt at a failure: what a pass spares against what an
// attempt takes. Who may act leaves a close call to chance.
func (l *Learner) decide(f *Failure, sig store.Signature, mode Mode) Decision {
	c, x := f.retryCase(sig), f.execution()
	l.mu.Lock()
	p, weight := l.retries.Predict(c)
	passed, n := l.retries.Passed(c)
	run := time.Duration(l.durations.Predict(&x).Median * float64(time.Second))
	l.mu.Unlock()
	if sig.RetryOK+sig.RetryFail > int(n) { // counted before retries were learned from
		passed, n = float64(sig.RetryOK), float64(sig.RetryOK+sig.RetryFail)
		p, weight = (signatureWeight*p+passed)/(signatureWeight+n), signatureWeight+n
	}
	d := Decision{P: p, weight: weight, costs: Costs{Wait: l.opt.HumanWait, Attempt: run}}
	why := c.forbidden(passed)
	switch {
	case f.NoRetry:
		why = "the step is marked as not to be repeated"
	case sig.Kind == "deploy":
		why = "the step deploys or publishes"
	}
	if why != "" {
		d.Reason = "no retry: " + why
		return d
	}
	// Exponential backoff with full jitter, where the trouble is elsewhere.
	if c.Class.Transient() {
		d.Delay = min(time.Duration(rand.Int64N(int64(2*time.Second<<c.Attempt))), time.Minute)
	}
	d.costs.Attempt += d.Delay
	d.propensity = d.costs.pays(p, weight)
	d.Retry = d.propensity >= .5
	if mode == Act {
		d.Retry = draw(d.propensity)
	}
	d.Act = d.Retry && mode == Act
	about := fmt.Sprintf("a %s failure", c.Class)
	if n >= 1 {
		about = fmt.Sprintf("it passed on %.0f of %.0f later attempts before", passed, n)
	}
	odds := fmt.Sprintf("%.0f %%", 100*p)
	switch {
	case !d.Retry:
		d.Reason = fmt.Sprintf("no retry: %s, but an attempt takes %s and passes with %s", about, d.costs.Attempt.Round(time.Second), odds)
	case d.Act:
		d.Reason = fmt.Sprintf("trying again: %s; the next attempt passes with %s", about, odds)
	default:
		d.Reason = fmt.Sprintf("try again: %s; the next attempt passes with %s", about, odds)
	}
	return d
}

// Retry decides whether a failure that was explained should be tried again, and keeps
// the decision with its probability, costs and propensity. It never advises it for
// what fails the same way every time, for steps that deploy or publish, for those
// marked so by the user, for what is not known to pass or to pass by itself, or
// after three attempts.
func (l *Learner) Retry(ctx context.Context, f Failure, e ci.Explanation) Decision {
	mode := l.ModeOf(f.Repository)
	if mode == Off || e.Signature == "" {
		return Decision{Reason: "learning is off"}
	}
	sig, err := l.store.Signature(ctx, f.Repository, e.Signature)
	if err != nil {
		l.log.Error("retry decision", "err", err)
		return Decision{Reason: "no retry: what is known of the failure could not be read"}
	}
	d := l.decide(&f, sig, mode)
	x := f.execution()
	kept := store.Decision{Repository: f.Repository, Run: f.Run, JobKey: f.JobKey, Step: f.Step, Attempt: max(f.Attempt, 1), Identity: place(&x),
		Signature: sig.ID, At: l.opt.Now(), Policy: string(mode), P: d.P, GainMS: int64(d.P * float64(d.costs.Wait.Milliseconds())),
		CostMS: d.costs.Attempt.Milliseconds(), Propensity: d.propensity, Advised: d.Retry, Taken: d.Act, Reason: d.Reason}
	if mode != Act {
		kept.Propensity = 0 // nothing is tried again by itself
	}
	if err := l.store.AddDecision(ctx, kept); err != nil {
		// What is not on record must not be done: it could not be learned from.
		l.log.Error("a decision was not kept", "run", f.Run, "err", err)
		d.Act = false
	}
	return d
}

// retried takes what later attempts at a step came to: those in this run, and if a
// person asked for the run to be repeated, its first.
func (l *Learner) retried(tx *store.Learning, x *Execution, run *ci.Run, rec ci.Record, passed bool) error {
	where := place(x)
	hits, err := tx.RecentHits(run.Repository, where, 20)
	if err != nil {
		return err
	}
	took := time.Duration(0)
	if rec.DurationMS != nil {
		took = time.Duration(*rec.DurationMS) * time.Millisecond / time.Duration(max(rec.Attempt, 1))
	}
	next := func(h store.Hit, asked, passed bool) error {
		if err := tx.CountRetry(run.Repository, h.Signature, passed); err != nil {
			return err
		}
		if err := tx.CloseDecision(h.Run, h.JobKey, h.Step, h.Attempt, passed, took); err != nil {
			return err
		}
		l.flakes.Label(run.Repository, h.Signature, passed)
		l.retries.Learn(RetryCase{Repo: x.Repo, Workflow: x.Workflow, Job: x.Job, Step: x.Step, Branch: x.Branch, Signature: h.Signature,
			Class: l.flakes.class(run.Repository, h.Signature), Attempt: h.Attempt, Asked: asked}, passed)
		if passed {
			return tx.LessonHelped(run.Repository, where, h.Signature)
		}
		return nil
	}
	first, own := max(run.Attempt, 1), max(rec.Attempt, 1)
	if first > 1 {
		for _, h := range hits {
			if h.SHA == run.SHA && h.Branch == run.Ref && h.Run != run.ID {
				// The newest is what the run was repeated for.
				if err := next(h, true, passed && own == 1); err != nil {
					return err
				}
				break
			}
		}
	}
	for n := 1; n < own; n++ {
		for _, h := range hits {
			if h.Run == run.ID && h.JobKey == rec.JobKey && h.Step == rec.Step && h.Attempt == first+n-1 {
				if err := next(h, false, passed && n == own-1); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}
