package learn

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"
)

// Timeout is what a job or a step might have for its timeout-minutes: more than 199 of
// 200 runs have taken, by half, and so less than one that hangs.
type Timeout struct {
	Repository string        `json:"repository"`
	Workflow   string        `json:"workflow"`
	Job        string        `json:"job"`
	Step       string        `json:"step,omitempty"` // "": of the job
	Runs       int           `json:"runs"`           // of the last thirty, that it rests on
	Usual      time.Duration `json:"usual_ns"`
	Bound      time.Duration `json:"bound_ns"` // 99.5 % take less
	Minutes    int           `json:"minutes"`
}

const (
	timeoutMargin = 1.5
	timeoutLeast  = 10 // runs
)

// Timeouts says what jobs and steps of a repository might have for a timeout, the
// longest first; "" as in [Learner.Related]. It is advice: nothing is ended by it.
func (l *Learner) Timeouts(ctx context.Context, repository string) ([]Timeout, error) {
	if l.off() {
		return nil, nil
	}
	if _, err := l.Consume(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Timeout
	for _, v := range l.shifts.m { // which has the names
		if repository != "" && v.Repo != repository {
			continue
		}
		x := Execution{Repo: v.Repo, Workflow: v.Workflow, Job: v.Job, Step: v.Step}
		if v.Step == "" {
			x.Unit = unitJob
		}
		k := keysOf(&x)
		if l.durations.at(&k, levelStep) == nil {
			continue // names that were cut
		}
		e := l.durations.Predict(&x)
		if e.N < timeoutLeast {
			continue
		}
		seconds := func(v float64) time.Duration { return time.Duration(v * float64(time.Second)) }
		out = append(out, Timeout{Repository: v.Repo, Workflow: v.Workflow, Job: v.Job, Step: v.Step, Runs: e.N, Usual: seconds(e.Median),
			Bound:   seconds(e.P995),
			Minutes: int(math.Ceil(timeoutMargin * e.P995 / 60))})
	}
	slices.SortFunc(out, func(a, b Timeout) int {
		return cmp.Or(cmp.Compare(b.Bound, a.Bound), cmp.Compare(a.Repository, b.Repository), cmp.Compare(a.Workflow, b.Workflow), cmp.Compare(a.Job, b.Job),
			cmp.Compare(a.Step, b.Step))
	})
	return out, nil
}
