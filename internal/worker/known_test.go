package worker

import (
	"fmt"
	"slices"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// What will fail soonest comes first, and a job that was seen twice is not known.
func TestRisk(t *testing.T) {
	risk := Risk(learn.Forecast{Jobs: map[string]ci.Prediction{
		"often": {PFail: 0.9, ExpectedMS: 9000, Seen: 3}, "soon": {PFail: 0.2, ExpectedMS: 1000, Seen: 3}, "new": {PFail: 1, ExpectedMS: 1000, Seen: 2},
		"quick": {PFail: 0.5, Seen: 9},
	}})
	of := func(key string) float64 {
		rate, ok := risk(&plan.Job{Key: key})
		if !ok {
			return -1
		}
		return rate
	}
	if of("soon") <= of("often") || of("new") != -1 || of("other") != -1 || of("quick") != 5 {
		t.Errorf("often %v, soon %v, new %v, other %v, quick %v", of("often"), of("soon"), of("new"), of("other"), of("quick"))
	}
}

func TestKnownCountsLikeTheEngine(t *testing.T) {
	w, ds := workflow.Parse("ci.yml", []byte("on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - parallel: [{id: x, run: echo x}, {id: y, run: echo y}]\n      - {id: z, run: echo z}\n"), workflow.Options{})
	if workflow.Errors(ds) {
		t.Fatal(ds)
	}
	run, ds := plan.Build(plan.Request{Workflow: w, Event: &workflow.Happening{Event: "push", Ref: "refs/heads/main"}})
	if workflow.Errors(ds) {
		t.Fatal(ds)
	}
	refused := *run.Jobs[0]
	refused.Key, refused.Refused = "b", []workflow.Diagnostic{{Message: "no Windows"}}
	run.Jobs = append(run.Jobs, &refused)
	if known := Known(run); len(known) != 1 {
		t.Errorf("a job that cannot run here is predicted: %v", known)
	}
	var got []string
	for _, s := range Known(run)[0].Steps {
		got = append(got, fmt.Sprint(s.Number, s.Command))
	}
	if want := []string{"1echo x", "2echo y", "3echo z"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A failure is explained from what the step printed and from what the runner says is
// wrong, and not from the script that it shows first.
func TestKeptLines(t *testing.T) {
	l, err := learn.Open(t.Context(), nil, learn.Options{Mode: learn.Advise})
	if err != nil {
		t.Fatal(err)
	}
	h := &hooks{runner: &Runner{Learn: l, Sink: ci.SinkFunc(func(ci.Record) {})}, job: &plan.Job{}}
	for _, r := range []ci.Record{{Stream: "system", Text: "make"}, {Stream: "stdout", Text: "oh"}, {Stream: "system", Level: "error", Text: "##[error]no"},
		{Stream: "system", Level: "warning", Text: "hm"}} {
		r.Type, r.Step = ci.LogLine, 1
		h.Emit(r)
	}
	if got := h.lines[1]; !slices.Equal(got, []string{"oh", "##[error]no"}) {
		t.Errorf("%q", got)
	}
}
