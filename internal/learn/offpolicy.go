package learn

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/hearth-ci/hearth/internal/store"
)

// RetryDecision is what the record keeps of a decision about a failure.
type RetryDecision = store.Decision

// RetryReport says what decisions about failures came to.
type RetryReport struct {
	Decisions int     `json:"decisions"`
	Advised   int     `json:"advised"` // another attempt
	Taken     int     `json:"taken"`   // made by the learner
	Known     int     `json:"known"`   // decisions whose next attempt has ended, whoever asked for it
	Passed    int     `json:"passed"`  // of those
	Wrong     int     `json:"wrong"`   // taken, and failed again
	Minutes   float64 `json:"minutes"` // what those taken spared people, less what they took
	Model     Scores  `json:"model"`   // of the probability that the next attempt fails, where it is known
	// Acted is how many decisions were made by a policy that may act; Enough whether
	// those are enough for the values below to say anything.
	Acted  int             `json:"acted"`
	Enough bool            `json:"enough"`
	Values []PolicyValue   `json:"values,omitempty"`
	Last   []RetryDecision `json:"last"` // the newest first
}

// PolicyValue estimates what a policy would have come to on the decisions that were
// acted upon, from those whose outcome chance allows to count.
type PolicyValue struct {
	Name string `json:"name"`
	// IPS (inverse propensity) and DR (doubly robust) are minutes of a hundred failures,
	// each with its 90 % interval by resampling.
	IPS     float64    `json:"ips"`
	IPSOf   [2]float64 `json:"ips_interval"`
	DR      float64    `json:"dr"`
	DROf    [2]float64 `json:"dr_interval"`
	Covered float64    `json:"covered"` // share of the decisions of which the record can say something
}

const (
	reportedDecisions = 20
	enoughDecisions   = 500
)

// RetryReport measures the decisions of a repository, or with "" of all.
func (l *Learner) RetryReport(ctx context.Context, repository string) (RetryReport, error) {
	if l.off() {
		return RetryReport{}, nil
	}
	if _, err := l.Consume(ctx); err != nil {
		return RetryReport{}, err
	}
	list, err := l.store.Decisions(ctx, repository, reportLimit)
	if err != nil {
		return RetryReport{}, fmt.Errorf("learn: %w", err)
	}
	r := RetryReport{Decisions: len(list), Last: list[:min(len(list), reportedDecisions)]}
	if r.Last == nil {
		r.Last = []RetryDecision{}
	}
	var ps []float64
	var ys []bool
	var acted []RetryDecision
	for _, d := range list {
		if d.Advised {
			r.Advised++
		}
		if d.Known {
			r.Known++
			ps, ys = append(ps, 1-d.P), append(ys, !d.Passed)
			if d.Passed {
				r.Passed++
			}
		}
		if d.Taken {
			r.Taken++
			if d.Known {
				r.Minutes += reward(&d)
				if !d.Passed {
					r.Wrong++
				}
			}
		}
		if d.Policy == string(Act) && d.Taken == d.Known { // what a person did later was not decided here
			acted = append(acted, d)
		}
	}
	r.Model = score(ps, ys)
	r.Acted = len(acted)
	r.Enough = r.Acted >= enoughDecisions
	if r.Acted > 0 {
		r.Values = policyValues(acted)
	}
	return r, nil
}

// waitOf is what a person's wait was taken for, in minutes.
func waitOf(d *RetryDecision) float64 {
	return float64(d.GainMS) / 60_000 / max(d.P, 1e-9)
}

// reward is what the attempt that followed was worth, in minutes.
func reward(d *RetryDecision) float64 {
	cost := time.Duration(d.CostMS) * time.Millisecond
	if d.Took > 0 {
		cost = d.Took
	}
	if d.Passed {
		return waitOf(d) - cost.Minutes()
	}
	return -cost.Minutes()
}

// policyValues estimates what policies would have come to. Not to try again is worth
// nothing, by definition: so only attempts need an estimate.
func policyValues(acted []RetryDecision) (out []PolicyValue) {
	for _, p := range []struct {
		name  string
		again func(*RetryDecision) bool
	}{
		{"as it was", nil},
		{"never", func(*RetryDecision) bool { return false }},
		{"always", func(*RetryDecision) bool { return true }},
		{"when it pays", func(d *RetryDecision) bool { return d.GainMS > d.CostMS }},
		{"once", func(d *RetryDecision) bool { return d.Attempt == 1 }},
	} {
		ips, dr := make([]float64, len(acted)), make([]float64, len(acted))
		v := PolicyValue{Name: p.name}
		for i := range acted {
			d := &acted[i]
			again := d.Propensity // of the policy that was in place: what it would do
			if p.again != nil {
				again = 0
				if p.again(d) {
					again = 1
				}
			}
			expected := float64(d.GainMS-d.CostMS) / 60_000
			if again == 0 || d.Propensity > 0 {
				v.Covered++
			} else {
				continue // such a decision was never left to chance: nothing is known of it
			}
			dr[i] = again * expected
			if d.Taken && d.Propensity > 0 {
				r := reward(d)
				ips[i] = again / d.Propensity * r
				dr[i] += again / d.Propensity * (r - expected)
			}
		}
		n := float64(len(acted))
		v.Covered /= n
		v.IPS, v.IPSOf = of100(ips)
		v.DR, v.DROf = of100(dr)
		out = append(out, v)
	}
	return out
}

// of100 is a hundred times the mean, with its 90 % interval.
func of100(v []float64) (mean float64, interval [2]float64) {
	sum := func(pick func(int) int) float64 {
		s := 0.0
		for i := range v {
			s += v[pick(i)]
		}
		return 100 * s / math.Max(float64(len(v)), 1)
	}
	mean = sum(func(i int) int { return i })
	interval[0], interval[1] = bootstrap(func(r *rand.Rand) float64 { return sum(func(int) int { return r.IntN(len(v)) }) })
	return mean, interval
}
