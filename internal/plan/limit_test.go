package plan_test

import (
	"math"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/plan"
)

// A fork's timeout-minutes: 99999999 kept a machine for 190 years; 0 and what is
// no number for ever. What a limit says holds for every form of asking, also for
// what is known only when the job starts.
func TestAttackTimeoutBeyondLimit(t *testing.T) {
	r := build(t, files{mainFile: `
on: push
jobs:
  plain: {runs-on: x, steps: [{run: echo}]}
  short: {runs-on: x, timeout-minutes: 3, cancel-timeout-minutes: 1, steps: [{run: echo}]}
  huge: {runs-on: x, timeout-minutes: 99999999, cancel-timeout-minutes: 99999999, steps: [{run: echo}]}
  zero: {runs-on: x, timeout-minutes: 0, steps: [{run: echo}]}
  below: {runs-on: x, timeout-minutes: -1, steps: [{run: echo}]}
  math: {runs-on: x, timeout-minutes: "${{ fromJSON('1e300') }}", steps: [{run: echo}]}
  late: {runs-on: x, needs: plain, timeout-minutes: "${{ fromJSON(needs.plain.outputs.n || '99999999') }}", steps: [{run: echo}]}
  called: {uses: ./called.yml}
`, "called.yml": `
on: workflow_call
jobs:
  inner: {runs-on: x, timeout-minutes: 99999999, steps: [{run: echo}]}
`})
	for _, j := range r.Jobs {
		if j.ID == "below" {
			j.TimeoutMinutes = math.NaN()
		}
	}
	r.Limit(30)
	r = roundTrip(t, r)
	seen := map[string]float64{}
	d := drive(t, r)
	if got := d.run(); got != ci.Success {
		t.Fatalf("the run ends with %q", got)
	}
	for _, j := range r.Jobs {
		if j.IsCall() {
			continue
		}
		seen[j.Key] = j.TimeoutMinutes
		if m := j.TimeoutMinutes; !(m > 0 && m <= 30) || j.CancelTimeoutMinutes > plan.DefaultCancelTimeoutMinutes {
			t.Errorf("%s may run for %v minutes and %v more", j.Key, m, j.CancelTimeoutMinutes)
		}
	}
	if len(seen) != 8 || seen["short"] != 3 {
		t.Errorf("%v", seen)
	}
}
