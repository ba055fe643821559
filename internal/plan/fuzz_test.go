package plan_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// FuzzPlan plans whatever parses, and drives it to its end with conclusions and
// cancellations taken from the input: every run has to end, with every job
// concluded once, and to survive JSON at any moment.
func FuzzPlan(f *testing.F) {
	srcs, _ := filepath.Glob("testdata/*.yml")
	for _, src := range srcs {
		b, err := os.ReadFile(src)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b), []byte{0, 1, 2, 3, 4, 5})
	}
	f.Add(filtered, []byte{0, 0, 6, 1})
	f.Add(called("on: push\njobs: {j: {uses: ./deploy.yml, with: {target: x}}}\n")["deploy.yml"], []byte{1})
	f.Add("on: push\njobs:\n  a: {runs-on: x, steps: [{run: a}], outputs: {m: x}}\n  b: {needs: a, if: always(), strategy: {matrix: '${{ fromJSON(needs.a.outputs.m) }}'}, uses: ./self.yml}\n", []byte{6, 0, 1})
	github, err := expr.ParseJSON([]byte(`{"ref": "refs/heads/main"}`))
	if err != nil {
		f.Fatal(err)
	}
	callee := called("")["deploy.yml"]
	conclusions := []ci.Conclusion{ci.Success, ci.Failure, ci.Cancelled, ci.TimedOut, ci.Skipped, ci.Neutral}
	f.Fuzz(func(t *testing.T, src string, choices []byte) {
		if len(src) > 1<<14 || len(choices) > 256 {
			return
		}
		w, diags := workflow.Parse(mainFile, []byte(src), workflow.Options{})
		if workflow.Errors(diags) {
			return
		}
		r, diags := plan.Build(plan.Request{
			Workflow: w,
			GitHub:   github,
			Load: func(uses string, from *workflow.Workflow) (*workflow.Workflow, error) {
				if uses == "./self.yml" {
					return w, nil // its triggers decide, and loops have to be seen
				}
				c, ds := workflow.Parse(uses, []byte(callee), workflow.Options{})
				if workflow.Errors(ds) {
					return nil, errors.New("bad")
				}
				return c, nil
			},
		})
		if r == nil {
			if !workflow.Errors(diags) {
				t.Fatal("no run and no error")
			}
			return
		}
		if len(r.Jobs) == 0 {
			t.Fatal("a run of no jobs")
		}
		if len(r.Jobs) > 300 {
			return
		}
		r = roundTrip(t, r)
		r.Forecast()
		s := plan.NewState(r)
		choose := func() byte {
			if len(choices) == 0 {
				return 0
			}
			c := choices[0]
			choices = choices[1:]
			return c
		}
		ended := map[string]bool{}
		end := func(key string) {
			if ended[key] {
				t.Fatalf("%q ended twice", key)
			}
			ended[key] = true
		}
		var running, waiting []string
		for !s.Done() {
			actions := s.Next()
			for _, a := range actions {
				key := a.Job.Key
				switch a.Kind {
				case plan.Start:
					if a.Job.IsCall() {
						c := choose() % 8
						if c == 6 {
							waiting = append(waiting, key)
						} else if c == 7 {
							if err := s.Finished(key, ci.Cancelled, nil); err != nil {
								t.Fatal(err)
							}
							end(key)
						} else if err := s.Started(key); err != nil {
							t.Fatal(err)
						}
						continue
					}
					running = append(running, key)
				case plan.Skip, plan.Conclude:
					end(key)
				case plan.Cancel:
					if a.Job.IsCall() { // it waited for its group
						if err := s.Finished(key, ci.Cancelled, nil); err != nil {
							t.Fatal(err)
						}
						end(key)
						waiting = slices.DeleteFunc(waiting, func(k string) bool { return k == key })
					}
				}
			}
			if len(actions) > 0 {
				continue
			}
			if len(waiting) > 0 && (len(running) == 0 || choose()%2 == 1) {
				if err := s.Started(waiting[0]); err != nil {
					t.Fatal(err)
				}
				waiting = waiting[1:]
				continue
			}
			if len(running) == 0 {
				t.Fatal("stuck")
			}
			c := choose()
			if c%16 == 15 {
				s.Cancel("fuzz")
				continue
			}
			i := int(c>>4) % len(running)
			key := running[i]
			running = append(running[:i:i], running[i+1:]...)
			if err := s.Finished(key, conclusions[int(c)%len(conclusions)], map[string]string{"m": `{"v":[1,2,{"a":3}]}`, "targets": "[1]"}); err != nil {
				t.Fatal(err)
			}
			end(key)
		}
		if !s.Conclusion().Valid() {
			t.Fatalf("the run ended with %q", s.Conclusion())
		}
		for _, j := range r.Jobs {
			if !s.JobConclusion(j.Key).Valid() || !ended[j.Key] {
				t.Fatalf("%q has no conclusion, or nobody was told", j.Key)
			}
		}
		roundTrip(t, r)
	})
}
