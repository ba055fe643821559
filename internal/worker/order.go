package worker

import (
	"cmp"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/plan"
)

// ByRisk orders jobs that are ready at the same moment by Smith's rule: the
// highest probability of failure per expected second first, so that what will
// go wrong is known soonest. Without knowledge the order stays.
func ByRisk(f learn.Forecast) func(a, b *plan.Job) int {
	if len(f.Jobs) == 0 {
		return nil
	}
	rate := func(p ci.Prediction) float64 {
		return p.PFail / (max(float64(p.ExpectedMS), 100) / 1000)
	}
	return func(a, b *plan.Job) int {
		pa, pb := f.Jobs[a.Key], f.Jobs[b.Key]
		if pa.Seen < 3 || pb.Seen < 3 {
			return 0
		}
		return cmp.Compare(rate(pb), rate(pa))
	}
}

// Predictions are a forecast's records, with what the plan knows of their jobs
// and steps.
func Predictions(run *plan.Run, f learn.Forecast) []ci.Record {
	out := f.Records(Known(run))
	for i := range out {
		r := &out[i]
		j := run.Job(r.JobKey)
		if j == nil {
			continue
		}
		r.Job = j.ID
		if r.Step == 0 {
			r.Name = j.Name
		} else if steps := numbered(j.Definition.Steps); r.Step <= len(steps) {
			r.StepID = steps[r.Step-1].ID
		}
		if j.Matrix.Kind() != expr.KindNull {
			r.Matrix = j.Matrix
		}
	}
	return out
}
