package conduct

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/plan"
)

// Names of runs and jobs are on record before a job has its masks, and errors come
// from anywhere: none of them was masked.
func TestAttackNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const secret = "hunter2-hunter3"
		set, err := mask.NewSet(secret)
		if err != nil {
			t.Fatal(err)
		}
		run := planned(t, `
on: push
run-name: "run with hunt\u200Ber2-hunter3"
jobs:
  make: {name: "make hunter2-hunter3", runs-on: ubuntu-latest, outputs: {m: x}, steps: [{run: echo}]}
  use:
    name: use HUNTER2-HUNTER3 ${{ matrix.n }} ${{ needs.make.outputs.n }}
    needs: make
    runs-on: ubuntu-latest
    strategy: {matrix: {n: "${{ fromJSON(needs.make.outputs.m) }}"}}
    steps: [{run: echo}]
  never: {name: "never hunter2-hunter3", needs: use, if: failure(), runs-on: ubuntu-latest, steps: [{run: echo}]}
`)
		m := &machine{do: func(ctx context.Context, job *plan.Job, _ expr.Value) Outcome {
			if job.ID == "make" {
				return Outcome{Conclusion: ci.Success, Outputs: map[string]string{"m": "[1]", "n": "hunter2-\x1b[1mhunter3"}}
			}
			return Outcome{Conclusion: ci.Success, Reason: "could not read hunter2-\x00hunter3"}
		}}
		var plans []string
		_, out, err := drive(t, &Conductor{Run: run, Executor: m, Mask: set, Expanded: func(p *plan.Run) error {
			for _, j := range p.Jobs {
				plans = append(plans, j.Name)
			}
			return nil
		}}, context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		masked := 0
		for _, r := range out.r {
			r.Outputs = nil // its results
			b, _ := json.Marshal(r)
			if s := strings.ToLower(strings.ReplaceAll(string(b), "\\u001b[1m", "")); strings.Contains(s, "hunter2") || strings.Contains(s, "hunter3") {
				t.Errorf("on record: %s", s)
			}
			masked += strings.Count(string(b), mask.Mark)
		}
		if s := fmt.Sprint(plans); strings.Contains(strings.ToLower(s), "hunter") || masked < 6 {
			t.Errorf("%d masks; names in the plan: %s", masked, s)
		}
	})
}

// What the jobs of a run hand on is counted together, also when the run is taken
// up again by another process.
func TestAttackOutputsOfARun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		large := strings.Repeat("x", ci.MaxRunOutputs/2)
		m := &machine{}
		m.do = func(context.Context, *plan.Job, expr.Value) Outcome {
			a := m.handed
			if a == nil || a.Take(2) || !a.Take(1) || a.Take(1) {
				return Outcome{Conclusion: ci.Failure}
			}
			return Outcome{Conclusion: ci.Success}
		}
		got, out, err := drive(t, &Conductor{Run: planned(t, `
on: push
jobs:
  a: {runs-on: ubuntu-latest, steps: [{run: echo}]}
  b: {runs-on: ubuntu-latest, steps: [{run: echo}]}
  c: {needs: [a, b], runs-on: ubuntu-latest, steps: [{run: echo}]}
`), Executor: m, Before: []Finished{
			{Key: "a", Conclusion: ci.Success, Outputs: map[string]string{"v": large}},
			{Key: "b", Conclusion: ci.Success, Outputs: map[string]string{"v": large[1:]}},
		}}, context.Background(), nil)
		if got != ci.Success || err != nil {
			t.Errorf("%s %v: %s", got, err, out.ends())
		}
	})
}
