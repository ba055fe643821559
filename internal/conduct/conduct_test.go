package conduct

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

func planned(t *testing.T, src string) *plan.Run {
	t.Helper()
	w, ds := workflow.Parse("ci.yml", []byte(src), workflow.Options{})
	if workflow.Errors(ds) {
		t.Fatal(ds)
	}
	github, err := expr.ParseJSON([]byte(`{"repository": "octo/hello", "ref": "refs/heads/main", "event_name": "push", "event": {}}`))
	if err != nil {
		t.Fatal(err)
	}
	run, ds := plan.Build(plan.Request{Workflow: w, Event: &workflow.Happening{Event: "push", Ref: "refs/heads/main"}, GitHub: github})
	if workflow.Errors(ds) {
		t.Fatal(ds)
	}
	return run
}

// machine is an executor that does what a test says a job does.
type machine struct {
	mu      sync.Mutex
	ran     []string
	current int
	most    int
	handed  *plan.Allowance // of the last one
	do      func(ctx context.Context, job *plan.Job, needs expr.Value) Outcome
}

func (m *machine) Execute(ctx context.Context, t Task) Outcome {
	m.mu.Lock()
	m.ran = append(m.ran, t.Job.Key)
	m.handed = t.Handed
	m.current++
	m.most = max(m.most, m.current)
	m.mu.Unlock()
	t.Waits()
	defer func() { m.mu.Lock(); m.current--; m.mu.Unlock() }()
	if m.do == nil {
		return Outcome{Conclusion: ci.Success}
	}
	return m.do(ctx, t.Job, t.Needs)
}

// tape keeps the records.
type tape struct {
	mu sync.Mutex
	r  []ci.Record
}

func (t *tape) Emit(r ci.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.r = append(t.r, r)
}

func (t *tape) ends() string {
	var out []string
	for _, r := range t.r {
		if r.Type == ci.JobFinished {
			out = append(out, r.JobKey+"="+string(r.Conclusion))
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (t *tape) once(test *testing.T) {
	test.Helper()
	seen := map[string]int{}
	for _, r := range t.r {
		if r.Type == ci.JobFinished || r.Type == ci.RunFinished {
			seen[r.JobKey]++
		}
	}
	for k, n := range seen {
		if n != 1 {
			test.Errorf("%q ended %d times", k, n)
		}
	}
	if seen[""] != 1 {
		test.Error("the run did not end")
	}
}

// A job that cannot run here stops only itself and what needs it: no machine is asked
// for, and the run is neutral for it. One that somebody has to mend fails.
func TestNotRun(t *testing.T) {
	const src = `
on: push
jobs:
  a: {runs-on: ubuntu-latest, outputs: {v: x}, steps: [{run: echo}]}
  m: {strategy: {matrix: {os: [ubuntu-latest, windows]}}, runs-on: "${{ matrix.os }}", steps: [{run: echo}]}
  after: {needs: m, runs-on: ubuntu-latest, steps: [{run: echo}]}
  always: {needs: after, if: always(), runs-on: ubuntu-latest, steps: [{run: echo}]}
  late: {needs: a, runs-on: "${{ needs.a.outputs.v }}", steps: [{run: echo}]}
  off: {if: github.event_name == 'release', runs-on: windows, steps: [{run: echo}]}
`
	for _, c := range []struct {
		name, rule, ends string
		run              ci.Conclusion
		ran              int
		after            string
	}{
		{"missing", plan.Unsupported, "a=success after=skipped always=success late=not_run m (ubuntu-latest)=success m (windows)=not_run off=skipped", ci.Neutral,
			3, "it needs m, which cannot run here"},
		{"fault", "action", "a=success after=skipped always=success late=failure m (ubuntu-latest)=success m (windows)=failure off=skipped", ci.Failure, 0,
			"it needs m, which failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				run := planned(t, src)
				said := workflow.Diagnostic{File: "ci.yml", Pos: workflow.Pos{Line: 5, Col: 3}, Rule: c.rule, Message: "no Windows", Hint: "elsewhere"}
				for _, j := range run.Jobs {
					if slices.Contains(j.Labels, "windows") {
						j.Refused = []workflow.Diagnostic{said}
					}
				}
				m := &machine{do: func(_ context.Context, job *plan.Job, needs expr.Value) Outcome {
					if job.ID == "always" && needs.At("after", "result").AsString() != "skipped" {
						t.Errorf("needs: %v", needs)
					}
					return Outcome{Conclusion: ci.Success, Outputs: map[string]string{"v": "windows"}}
				}}
				got, out, err := drive(t, &Conductor{Run: run, Executor: m, Late: func(j *plan.Job) {
					if j.ID == "late" && j.Labels[0] == "windows" {
						j.Refused = []workflow.Diagnostic{said}
					}
				}}, t.Context(), nil)
				if got != c.run || err != nil || out.ends() != c.ends {
					t.Errorf("%s, %v: %s", got, err, out.ends())
				}
				for _, r := range out.r {
					switch {
					case r.Type == ci.RunFinished && (r.Ran != c.ran || (r.Jobs == 7) != (c.ran > 0)):
						t.Errorf("%d of %d jobs ran", r.Ran, r.Jobs)
					case r.Type == ci.JobFinished && r.Job == "late" && (r.Reason != "no Windows" || r.Hint != "elsewhere" || r.File != "ci.yml" || r.Line != 5):
						t.Errorf("%+v", r)
					case r.Type == ci.JobFinished && r.Job == "after" && r.Reason != c.after:
						t.Errorf("skipped: %s", r.Reason)
					}
				}
				for _, key := range m.ran {
					if strings.Contains(key, "windows") || key == "late" {
						t.Errorf("%s ran", key)
					}
				}
			})
		})
	}
}

const diamond = `
on: push
jobs:
  a: {runs-on: ubuntu-latest, outputs: {v: x}, steps: [{run: echo}]}
  b: {needs: a, runs-on: ubuntu-latest, steps: [{run: echo}]}
  c: {needs: a, runs-on: ubuntu-latest, steps: [{run: echo}]}
  d: {needs: [b, c], runs-on: ubuntu-latest, steps: [{run: echo}]}
  always: {needs: d, if: always(), runs-on: ubuntu-latest, steps: [{run: echo}]}
`

func drive(t *testing.T, c *Conductor, ctx context.Context, soft <-chan string) (ci.Conclusion, *tape, error) {
	t.Helper()
	out := &tape{}
	c.Sink, c.ID = out, "r"
	before := runtime.NumGoroutine()
	got, err := c.Drive(ctx, soft)
	synctest.Wait()
	left := runtime.NumGoroutine() - before
	for range 10_000 { // the runtime's own, for finalizers, count while they run
		if left <= 0 {
			break
		}
		runtime.Gosched()
		left = runtime.NumGoroutine() - before
	}
	if left > 0 {
		t.Errorf("%d goroutines are left", left)
	}
	out.once(t)
	return got, out, err
}

func TestDriveInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{do: func(_ context.Context, job *plan.Job, needs expr.Value) Outcome {
			time.Sleep(time.Second)
			if job.ID == "b" && needs.Get("a").Get("outputs").Get("v").ToString() != "42" {
				return Outcome{Conclusion: ci.Failure, Reason: "b did not see a's output"}
			}
			if job.ID == "a" {
				return Outcome{Conclusion: ci.Success, Outputs: map[string]string{"v": "42"}}
			}
			return Outcome{Conclusion: ci.Success}
		}}
		start := time.Now()
		got, out, err := drive(t, &Conductor{Run: planned(t, diamond), Executor: m}, context.Background(), nil)
		if got != ci.Success || err != nil || m.most != 2 {
			t.Errorf("%s %v, %d at once: %s", got, err, m.most, out.ends())
		}
		if d := time.Since(start); d != 4*time.Second {
			t.Errorf("it took %v of the bubble's time; b and c should run side by side", d)
		}
	})
}

func TestDriveFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{do: func(_ context.Context, job *plan.Job, _ expr.Value) Outcome {
			switch job.ID {
			case "b":
				return Outcome{Conclusion: ci.Failure, Infrastructure: true, Reason: "no machine"}
			case "c":
				return Outcome{} // an executor that forgets to conclude
			}
			return Outcome{Conclusion: ci.Success}
		}}
		got, out, err := drive(t, &Conductor{Run: planned(t, diamond), Executor: m}, context.Background(), nil)
		if got != ci.Failure || err != nil || out.ends() != "a=success always=success b=failure c=failure d=skipped" {
			t.Errorf("%s %v: %s", got, err, out.ends())
		}
		for _, r := range out.r {
			if r.Type == ci.JobFinished && (r.JobKey == "b" || r.JobKey == "c") && !r.Infrastructure {
				t.Errorf("%s reads as the user's own failure: %+v", r.JobKey, r)
			}
		}
	})
}

// The run says itself that a job of it could not be run, also of a job that
// ended in an earlier process.
func TestRunSaysThatAJobWasLost(t *testing.T) {
	for _, c := range []struct {
		lost   string // job that cannot be run
		before []Finished
		want   string // reason
	}{
		{"c", nil, "c could not be run"},
		{"", []Finished{{Key: "a", Conclusion: ci.Failure, Infrastructure: true}}, "a could not be run"},
		{"", []Finished{{Key: "a", Conclusion: ci.Success}}, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := &machine{do: func(_ context.Context, job *plan.Job, _ expr.Value) Outcome {
				if job.ID == c.lost {
					return Outcome{Conclusion: ci.Failure, Infrastructure: true, Reason: "qemu ended: signal: killed"}
				}
				return Outcome{Conclusion: ci.Success}
			}}
			_, out, err := drive(t, &Conductor{Run: planned(t, diamond), Executor: m, Before: c.before}, context.Background(), nil)
			end := out.r[len(out.r)-1]
			if err != nil || end.Type != ci.RunFinished || end.Infrastructure != (c.want != "") || end.Reason != c.want || c.want != "" &&
				end.Conclusion != ci.Failure {
				t.Errorf("lost %q, before %v: %+v, %v", c.lost, c.before, end, err)
			}
		})
	}
}

const many = `
on: push
jobs:
  a: {runs-on: ubuntu-latest, steps: [{run: echo}]}
  b: {runs-on: ubuntu-latest, steps: [{run: echo}]}
  c: {runs-on: ubuntu-latest, steps: [{run: echo}]}
  d: {runs-on: ubuntu-latest, steps: [{run: echo}]}
  e: {runs-on: ubuntu-latest, steps: [{run: echo}]}
  f: {runs-on: ubuntu-latest, steps: [{run: echo}]}
`

// Jobs that may start together ask for their machines in the file's order, those
// of which enough is known with the riskiest first, whatever order the scheduler
// takes their goroutines in.
func TestJobsAskInOrder(t *testing.T) {
	rates := map[string]float64{"b": 0.1, "d": 0.9} // of the others too little is known
	risk := func(j *plan.Job) (float64, bool) { rate, ok := rates[j.Key]; return rate, ok }
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			m := &machine{}
			drive(t, &Conductor{Run: planned(t, many), Executor: m}, context.Background(), nil)
			if got := strings.Join(m.ran, " "); got != "a b c d e f" {
				t.Errorf("in the file's order: %s", got)
			}
			m = &machine{}
			drive(t, &Conductor{Run: planned(t, many), Executor: m, Risk: risk}, context.Background(), nil)
			if got := strings.Join(m.ran, " "); got != "a d c b e f" {
				t.Errorf("by risk: %s", got)
			}
		})
	}
}

// Of the jobs of one run that want one group the first holds it, the last waits,
// and those between are turned away: every time.
func TestGroupAmongTheJobsOfARun(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			src := strings.ReplaceAll(many, "{runs-on", "{concurrency: g, runs-on")
			m := &machine{do: func(context.Context, *plan.Job, expr.Value) Outcome {
				time.Sleep(time.Second)
				return Outcome{Conclusion: ci.Success}
			}}
			// Whatever the risk.
			risk := func(j *plan.Job) (float64, bool) { return map[string]float64{"c": 9}[j.ID], true }
			_, out, _ := drive(t, &Conductor{Run: planned(t, src), Executor: m, Groups: NewGroups(), Risk: risk}, context.Background(), nil)
			if got := out.ends(); got != "a=success b=cancelled c=cancelled d=cancelled e=cancelled f=success" {
				t.Error(got)
			}
		})
	}
}

func untilCancelled(ctx context.Context, job *plan.Job, _ expr.Value) Outcome {
	if job.ID == "a" || job.ID == "always" {
		return Outcome{Conclusion: ci.Success}
	}
	<-ctx.Done()
	return Outcome{Conclusion: ci.Cancelled, Reason: context.Cause(ctx).Error()}
}

func TestDriveInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(context.Background())
		time.AfterFunc(time.Minute, func() { cancel(errors.New("Ctrl-C")) })
		got, out, err := drive(t, &Conductor{Run: planned(t, diamond), Executor: &machine{do: untilCancelled}}, ctx, nil)
		if got != ci.Cancelled || err != nil || !strings.Contains(out.ends(), "b=cancelled") || strings.Contains(out.ends(), "always=success") {
			t.Errorf("%s %v: %s", got, err, out.ends())
		}
	})
}

func TestDriveCancelledSoftly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		soft := make(chan string, 1)
		time.AfterFunc(time.Minute, func() { soft <- "somebody pressed cancel" })
		got, out, err := drive(t, &Conductor{Run: planned(t, diamond), Executor: &machine{do: untilCancelled}}, context.Background(), soft)
		if got != ci.Cancelled || err != nil || !strings.Contains(out.ends(), "always=success") || !strings.Contains(out.ends(), "c=cancelled") {
			t.Errorf("%s %v: %s", got, err, out.ends())
		}
	})
}

func TestDriveTakesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{}
		got, out, err := drive(t, &Conductor{Run: planned(t, diamond), Executor: m,
			Before: []Finished{{Key: "a", Conclusion: ci.Success, Outputs: map[string]string{"v": "1"}}, {Key: "b", Conclusion: ci.Success}}}, context.Background(),
			nil)
		if got != ci.Success || err != nil || slices.Contains(m.ran, "a") || slices.Contains(m.ran, "b") || len(m.ran) != 3 {
			t.Errorf("%s %v, ran %v: %s", got, err, m.ran, out.ends())
		}
	})
}

func TestDriveMatrix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{do: func(ctx context.Context, job *plan.Job, _ expr.Value) Outcome {
			time.Sleep(time.Second)
			if job.ID == "make" {
				return Outcome{Conclusion: ci.Success, Outputs: map[string]string{"m": "[1,2,3,4]"}}
			}
			return Outcome{Conclusion: ci.Success}
		}}
		expanded := 0
		run := planned(t, `
on: push
jobs:
  make: {runs-on: ubuntu-latest, outputs: {m: x}, steps: [{run: echo}]}
  use:
    needs: make
    runs-on: ubuntu-latest
    strategy: {max-parallel: 2, matrix: {n: "${{ fromJSON(needs.make.outputs.m) }}"}}
    steps: [{run: echo}]
`)
		got, out, err := drive(t, &Conductor{Run: run, Executor: m, Expanded: func(*plan.Run) error { expanded++; return nil }}, context.Background(), nil)
		if got != ci.Success || err != nil || expanded != 1 || m.most != 2 || len(m.ran) != 5 {
			t.Errorf("%s %v, %d at once, ran %v: %s", got, err, m.most, m.ran, out.ends())
		}
	})
}

func TestGroups(t *testing.T) {
	const one = "on: push\nconcurrency: {group: deploy%s}\njobs:\n  a: {runs-on: ubuntu-latest, steps: [{run: echo}]}\n"
	for _, c := range []struct {
		options string
		want    []ci.Conclusion
	}{
		{"", []ci.Conclusion{ci.Success, ci.Cancelled, ci.Success}},
		{", cancel-in-progress: true", []ci.Conclusion{ci.Cancelled, ci.Cancelled, ci.Success}},
		{", queue: max", []ci.Conclusion{ci.Success, ci.Success, ci.Success}},
	} {
		synctest.Test(t, func(t *testing.T) {
			groups := NewGroups()
			m := &machine{do: func(ctx context.Context, _ *plan.Job, _ expr.Value) Outcome {
				select {
				case <-time.After(time.Minute):
					return Outcome{Conclusion: ci.Success}
				case <-ctx.Done():
					return Outcome{Conclusion: ci.Cancelled, Reason: context.Cause(ctx).Error()}
				}
			}}
			var wg sync.WaitGroup
			got := make([]ci.Conclusion, 3)
			for i := range got {
				wg.Go(func() {
					time.Sleep(time.Duration(i) * time.Second)
					con := &Conductor{Run: planned(t, fmt.Sprintf(one, c.options)), ID: "r", Sink: &tape{}, Executor: m, Groups: groups}
					got[i], _ = con.Drive(context.Background(), nil)
				})
			}
			wg.Wait()
			if !slices.Equal(got, c.want) || m.most != 1 {
				t.Errorf("%q: %v, want %v; %d at once", c.options, got, c.want, m.most)
			}
			if len(groups.m) != 0 {
				t.Errorf("%d groups are still held", len(groups.m))
			}
		})
	}
}

func TestReusableWorkflowHoldsItsGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := workflow.Parse("ci.yml", []byte("on: push\njobs:\n  call: {uses: ./.github/workflows/inner.yml, concurrency: g}\n"), workflow.Options{})
		ds := workflow.Link(w, func(string, *workflow.Workflow) (string, []byte, error) {
			return "inner.yml", []byte("on: workflow_call\nconcurrency: inner\njobs:\n  x: {runs-on: ubuntu-latest, steps: [{run: echo}]}\n  y: {runs-on: ubuntu-latest, steps: [{run: echo}]}\n"), nil
		}, workflow.Options{})
		run, more := plan.Build(plan.Request{Workflow: w, Event: &workflow.Happening{Event: "push"}})
		if workflow.Errors(append(ds, more...)) {
			t.Fatal(ds, more)
		}
		groups := NewGroups()
		m := &machine{do: func(context.Context, *plan.Job, expr.Value) Outcome {
			time.Sleep(time.Second)
			return Outcome{Conclusion: ci.Success}
		}}
		got, out, err := drive(t, &Conductor{Run: run, Executor: m, Groups: groups}, context.Background(), nil)
		if got != ci.Success || err != nil || m.most != 2 || len(groups.m) != 0 {
			t.Errorf("%s %v, %d at once, %d groups held: %s", got, err, m.most, len(groups.m), out.ends())
		}
	})
}

// A group that is held around a job can never come to it.
func TestGroupDeadlockEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{}
		run := planned(t, "on: push\nconcurrency: Same\njobs:\n  a: {runs-on: ubuntu-latest, steps: [{run: echo}]}\n  b: {runs-on: ubuntu-latest, concurrency: same, steps: [{run: echo}]}\n")
		got, out, err := drive(t, &Conductor{Run: run, Executor: m, Groups: NewGroups()}, context.Background(), nil)
		if got.Green() || err != nil || out.ends() != "a=success b=cancelled" {
			t.Errorf("%s %v: %s", got, err, out.ends())
		}
	})
}

// A run that is turned away before its turn starts nothing, whatever its jobs say.
func TestBarredRunStartsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		groups := NewGroups()
		src := "on: push\nconcurrency: g\njobs:\n  a: {if: always(), runs-on: ubuntu-latest, steps: [{run: echo}]}\n"
		release, err := groups.Hold(context.Background(), "", plan.Group{Name: "g"}, func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		m := &machine{}
		var wg sync.WaitGroup
		var got ci.Conclusion
		wg.Go(func() {
			got, _ = (&Conductor{Run: planned(t, src), ID: "r", Sink: &tape{}, Executor: m, Groups: groups}).Drive(context.Background(), nil)
		})
		synctest.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		wg.Go(func() { groups.Hold(ctx, "", plan.Group{Name: "g"}, func(string) {}) })
		synctest.Wait()
		if got != ci.Cancelled || len(m.ran) != 0 {
			t.Errorf("%s, ran %v", got, m.ran)
		}
		cancel()
		wg.Wait()
		release()
	})
}
