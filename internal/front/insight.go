package front

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/web"
)

// Bounds on what a page about a repository is made of.
const (
	maxSamples     = 500
	maxPartRuns    = 200
	maxParts       = 200
	maxKnown       = 50
	maxPredictions = 5000
)

// Insight is what is known of repositories: a store and a learner, which may be nil,
// as a [web.Insight]. What it reckoned up it says again for [insightFor]: a page that a
// team keeps open must not cost its sum each time.
type Insight struct {
	store *store.Store
	learn *learn.Learner
	mu    sync.Mutex
	kept  map[string]*reckoned
}

// How long what was reckoned up is said again, and of how many pages.
const (
	insightFor  = 30 * time.Second
	maxReckoned = 64
)

// reckoned is one answer: whoever asks while it is being found waits for it.
type reckoned struct {
	once  sync.Once
	at    time.Time
	value any
	err   error
}

// NewInsight returns what is known in a store, and by a learner, which may be nil.
func NewInsight(s *store.Store, l *learn.Learner) *Insight {
	return &Insight{store: s, learn: l, kept: map[string]*reckoned{}}
}

// again is what find returns for the key, or returned a moment ago. A request that is
// given up does not take the answer from the others.
func again[T any](ctx context.Context, p *Insight, key string, find func(context.Context) (T, error)) (T, error) {
	now := time.Now()
	p.mu.Lock()
	r := p.kept[key]
	if r == nil || now.Sub(r.at) > insightFor {
		for k, o := range p.kept {
			if now.Sub(o.at) > insightFor {
				delete(p.kept, k)
			}
		}
		for k := range p.kept {
			if len(p.kept) < maxReckoned {
				break
			}
			delete(p.kept, k)
		}
		r = &reckoned{at: now}
		p.kept[key] = r
	}
	p.mu.Unlock()
	r.once.Do(func() { r.value, r.err = find(context.WithoutCancel(ctx)) })
	if r.err != nil {
		p.mu.Lock()
		if p.kept[key] == r {
			delete(p.kept, key)
		}
		p.mu.Unlock()
		var none T
		return none, r.err
	}
	return r.value.(T), nil
}

// Trend lists the last executions of a place.
func (p *Insight) Trend(ctx context.Context, at web.Spot) ([]web.Sample, error) {
	return again(ctx, p, fmt.Sprintf("trend %q", at), func(ctx context.Context) ([]web.Sample, error) { return p.trend(ctx, at) })
}

func (p *Insight) trend(ctx context.Context, at web.Spot) ([]web.Sample, error) {
	all, err := p.store.Trend(ctx, store.Place(at), maxSamples)
	out := make([]web.Sample, len(all))
	for i, s := range all {
		out[i] = web.Sample{Run: s.Run, Number: s.Number, At: s.Created, Took: s.Took, Queue: s.Queue,
			Failed: !s.Infra && (s.Conclusion == ci.Failure || s.Conclusion == ci.TimedOut), Passed: !s.Infra && s.Conclusion == ci.Success}
	}
	return out, err
}

// Parts reckons up the steps of a repository's last runs.
func (p *Insight) Parts(ctx context.Context, repository, workflow string) ([]web.Part, error) {
	return again(ctx, p, fmt.Sprintf("parts %q %q", repository, workflow), func(ctx context.Context) ([]web.Part, error) {
		return p.parts(ctx, repository,
			workflow)
	})
}

func (p *Insight) parts(ctx context.Context, repository, workflow string) ([]web.Part, error) {
	all, err := p.store.Parts(ctx, repository, workflow, maxPartRuns)
	out := make([]web.Part, 0, len(all))
	for _, v := range all[:min(len(all), maxParts)] {
		out = append(out, web.Part(v))
	}
	return out, err
}

// Known is what was learned of a repository.
func (p *Insight) Known(ctx context.Context, repository string) (web.Known, error) {
	return again(ctx, p, fmt.Sprintf("known %q", repository), func(ctx context.Context) (web.Known, error) { return p.known(ctx, repository) })
}

func (p *Insight) known(ctx context.Context, repository string) (k web.Known, err error) {
	if p.learn == nil || !p.learn.On() {
		return k, nil
	}
	tests, err := p.learn.Tests(ctx, repository, false)
	if err != nil {
		return k, err
	}
	for _, t := range tests {
		if t.State != learn.Flaky && t.State != learn.Suspect && t.State != learn.Failing || len(k.Tests) >= maxKnown {
			continue
		}
		v := web.Test{Name: t.Name, Job: t.Job, State: string(t.State), Why: t.Why, Message: t.Message, Recent: t.Recent, Failed: t.Failed,
			Ran:  t.Failed + t.Passed,
			Last: t.LastFailed, Seconds: t.Seconds * float64(t.Failed), Quarantine: t.Quarantine}
		for _, e := range t.Evidence[:min(len(t.Evidence), 3)] {
			v.Evidence = append(v.Evidence, web.Evidence{Commit: e.SHA, Run: e.Run, Passed: e.PassedIn})
		}
		k.Tests = append(k.Tests, v)
	}
	lessons, err := p.learn.Lessons(ctx, repository)
	if err != nil {
		return k, err
	}
	for _, l := range lessons[:min(len(lessons), maxKnown)] {
		k.Lessons = append(k.Lessons, web.Lesson{Text: l.Text, Last: l.Last, Shown: l.Shown, Helped: l.Helped})
	}
	shifts, err := p.learn.Shifts(ctx, repository)
	if err != nil {
		return k, err
	}
	for _, s := range shifts[:min(len(shifts), maxKnown)] {
		k.Shifts = append(k.Shifts, web.Shift{Workflow: s.Workflow, Job: s.Job, Step: s.Step, Kind: s.Kind, From: s.From, To: s.To, Run: s.Run,
			Commit: s.Commit, Began: s.Began})
	}
	closed, err := p.store.ClosedPredictions(ctx, repository, maxPredictions)
	if err != nil {
		return k, err
	}
	k.Predictions = calibration(closed)
	return k, nil
}

// calibration compares what was predicted of steps, jobs and runs with what happened,
// in tenths of the probability.
func calibration(all []store.Prediction) []web.Calibrated {
	var bins [10]struct{ n, failed, p float64 }
	for _, v := range all {
		if !v.Counts || math.IsNaN(v.PFail) {
			continue
		}
		b := &bins[min(max(int(v.PFail*10), 0), 9)]
		b.n++
		b.p += v.PFail
		if v.Failed {
			b.failed++
		}
	}
	var out []web.Calibrated
	for _, b := range bins {
		if b.n == 0 {
			continue
		}
		// The interval of Wilson's, 90 %.
		const z = 1.645
		share := b.failed / b.n
		mid, half := (share+z*z/(2*b.n))/(1+z*z/b.n), z*math.Sqrt(share*(1-share)/b.n+z*z/(4*b.n*b.n))/(1+z*z/b.n)
		out = append(out, web.Calibrated{N: int(b.n), Predicted: b.p / b.n, Observed: share, Low: mid - half, High: mid + half})
	}
	slices.SortFunc(out, func(a, b web.Calibrated) int { return cmp.Compare(a.Predicted, b.Predicted) })
	return out
}
