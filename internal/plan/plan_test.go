package plan_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

const mainFile = ".github/workflows/ci.yml"

// files are workflows by path; mainFile is the one to plan. `uses: ./path` means
// the path.
type files map[string]string

func one(src string) files { return files{mainFile: src} }

func parse(t testing.TB, name, src string) *workflow.Workflow {
	t.Helper()
	w, diags := workflow.Parse(name, []byte(src), workflow.Options{})
	if workflow.Errors(diags) {
		t.Fatalf("%s does not parse: %v", name, diags)
	}
	return w
}

func request(t testing.TB, fs files) plan.Request {
	t.Helper()
	github, err := expr.ParseJSON([]byte(`{"ref":"refs/heads/main","token":"ghs_secret","event_name":"push","event":{"head_commit":{"message":"Fix it\n\nbody"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	return plan.Request{
		Workflow: parse(t, mainFile, fs[mainFile]),
		Event:    &workflow.Happening{Event: "push", Ref: "refs/heads/main", SHA: "0123456789abcdef0123456789abcdef01234567"},
		GitHub:   github,
		Load: func(uses string, _ *workflow.Workflow) (*workflow.Workflow, error) {
			src, ok := fs[strings.TrimPrefix(uses, "./")]
			if !ok {
				return nil, errors.New("no such file")
			}
			return parse(t, strings.TrimPrefix(uses, "./"), src), nil
		},
	}
}

func build(t testing.TB, fs files) *plan.Run {
	t.Helper()
	r, diags := plan.Build(request(t, fs))
	if r == nil {
		t.Fatalf("not planned: %v", diags)
	}
	return r
}

func keys(r *plan.Run) []string {
	var out []string
	for _, j := range r.Jobs {
		out = append(out, j.Key)
	}
	return out
}

func equal(t testing.TB, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %s\nwant %s", what, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

// driver drives a run as a server does, one job after the other.
type driver struct {
	t testing.TB
	s *plan.State
	// log holds what happened: "start test", "skip deploy: reason".
	log []string
	// ends says how a job ends: by key, else by its id, else success.
	ends    map[string]ci.Conclusion
	outputs map[string]map[string]string
	running []string
	// on is called before a job is finished.
	on map[string]func(s *plan.State)
}

func drive(t testing.TB, r *plan.Run) *driver {
	return &driver{t: t, s: plan.NewState(r), ends: map[string]ci.Conclusion{}, outputs: map[string]map[string]string{}, on: map[string]func(*plan.State){}}
}

// next takes all actions there are.
func (d *driver) next() {
	d.t.Helper()
	for {
		actions := d.s.Next()
		if len(actions) == 0 {
			return
		}
		for _, a := range actions {
			line := a.Kind.String() + " " + a.Job.Key
			if a.Kind == plan.Conclude {
				line += " " + string(a.Conclusion)
			}
			if a.Reason != "" {
				line += ": " + a.Reason
			}
			d.log = append(d.log, line)
			switch a.Kind {
			case plan.Start:
				if a.Job.IsCall() {
					if err := d.s.Started(a.Job.Key); err != nil {
						d.t.Fatal(err)
					}
					continue
				}
				if len(a.Job.Labels) == 0 {
					d.t.Errorf("%s starts without labels", a.Job.Key)
				}
				d.running = append(d.running, a.Job.Key)
			case plan.Cancel:
				if i := slices.Index(d.running, a.Job.Key); i >= 0 {
					d.running = slices.Delete(d.running, i, i+1)
					if err := d.s.Finished(a.Job.Key, ci.Cancelled, nil); err != nil {
						d.t.Fatal(err)
					}
				}
			}
		}
	}
}

// finish ends the job that runs longest.
func (d *driver) finish() {
	d.t.Helper()
	key := d.running[0]
	if f := d.on[key]; f != nil {
		f(d.s)
		d.next()
		if !slices.Contains(d.running, key) {
			return
		}
	}
	d.running = slices.DeleteFunc(d.running, func(k string) bool { return k == key })
	j := d.s.Run().Job(key)
	c := ci.Success
	if e, ok := d.ends[j.ID]; ok {
		c = e
	}
	if e, ok := d.ends[key]; ok {
		c = e
	}
	out := d.outputs[key]
	if out == nil {
		out = d.outputs[j.ID]
	}
	if err := d.s.Finished(key, c, out); err != nil {
		d.t.Fatal(err)
	}
}

// run drives until everything ended.
func (d *driver) run() ci.Conclusion {
	d.t.Helper()
	for d.next(); !d.s.Done(); d.next() {
		if len(d.running) == 0 {
			d.t.Fatalf("stuck after:\n%s", strings.Join(d.log, "\n"))
		}
		d.finish()
	}
	for _, j := range d.s.Run().Jobs {
		if !d.s.JobConclusion(j.Key).Valid() {
			d.t.Errorf("%s has no conclusion", j.Key)
		}
	}
	return d.s.Conclusion()
}
