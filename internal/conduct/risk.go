package conduct

import (
	"cmp"
	"slices"

	"github.com/hearth-ci/hearth/internal/plan"
)

// byRisk puts the jobs that may start in the order of their risk. Those of which
// too little is known keep their places, and so does everything else.
func byRisk(actions []plan.Action, risk func(j *plan.Job) (float64, bool)) {
	type scored struct {
		plan.Action
		rate float64
	}
	var places []int
	var known []scored
	for i, a := range actions {
		// Who waits for a concurrency group, and who is cancelled, is the file's order.
		if a.Kind != plan.Start || a.Job.Concurrency != nil {
			continue
		}
		if rate, ok := risk(a.Job); ok {
			places, known = append(places, i), append(known, scored{a, rate})
		}
	}
	slices.SortStableFunc(known, func(a, b scored) int { return cmp.Compare(b.rate, a.rate) })
	for i, at := range places {
		actions[at] = known[i].Action
	}
}
