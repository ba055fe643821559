package worker

import (
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// minSeen is how often a job must have run to be ordered by its risk.
const minSeen = 3

// Risk says what a forecast makes of a job for the order in which jobs that are
// ready at the same moment start, by Smith's rule: the highest probability of
// failure per expected second first, so that what will go wrong is known soonest.
// It reports false of a job of which too little is known.
func Risk(f learn.Forecast) func(j *plan.Job) (perSecond float64, known bool) {
	return func(j *plan.Job) (float64, bool) {
		p, ok := f.Jobs[j.Key]
		return p.PFail / (max(float64(p.ExpectedMS), 100) / 1000), ok && p.Seen >= minSeen
	}
}

// StepRisk is how likely a forecast takes a step to fail, for [RiskyPoints].
func StepRisk(f learn.Forecast) func(jobKey string, step int) float64 {
	return func(jobKey string, step int) float64 { return f.Steps[jobKey][step].PFail }
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
		} else if steps := workflow.NumberedSteps(j.Definition.Steps); r.Step <= len(steps) {
			r.StepID = steps[r.Step-1].ID
		}
		if j.Matrix.Kind() != expr.KindNull {
			r.Matrix = j.Matrix
		}
	}
	return out
}
