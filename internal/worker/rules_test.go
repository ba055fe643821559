package worker

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

func planned(t *testing.T, src string) *plan.Run {
	t.Helper()
	w, ds := workflow.Parse("ci.yml", []byte("on: push\njobs:\n"+src), workflow.Options{})
	if workflow.Errors(ds) {
		t.Fatal(ds)
	}
	run, ds := plan.Build(plan.Request{Workflow: w, Event: &workflow.Happening{Event: "push", Ref: "refs/heads/main"}})
	if workflow.Errors(ds) {
		t.Fatal(ds)
	}
	return run
}

// TestHints: what is said about a failure that comes from what the machine lacks,
// by the last of its lines that says something.
func TestHints(t *testing.T) {
	packages := func(program string) (string, bool) {
		return map[string]string{"jq": "jq", "own": ""}[program], program == "jq" || program == "own"
	}
	for _, c := range []struct {
		lines     string
		tokenless bool
		want      string
	}{
		{"/tmp/x.sh: line 1: jq: command not found", false, "jq is not in the machine's image: `sudo apt-get install jq`"},
		{"  x.sh: 1: jq: not found  ", false, "jq is not in the machine's image: `sudo apt-get install jq`"},
		{"/usr/bin/env: 'jq': No such file or directory", false, "jq is not in the machine's image: `sudo apt-get install jq`"},
		{"line 3: own: command not found", false, "no package of Debian's has it"},
		{"line 3: other: command not found", false, "other is not in the machine's image: bring it with an action"},
		{"tar: x: Cannot write: No space left on device", false, "The machine's disk is full"},
		{"fatal: could not read Username for 'https://github.com'", true, "This run has no GITHUB_TOKEN"},
		{"fatal: could not read Username for 'https://github.com'", false, ""},
		{"line 1: jq: command not found\nno space left on device\nmake: error", false, "The machine's disk is full"},
		{"line 1: jq: command not found" + strings.Repeat("\nmore", hintLines-1), false, "jq is not"},
		{"line 1: jq: command not found" + strings.Repeat("\nmore", hintLines), false, ""},
		{"jq: not found in the list", false, ""},
		{"", true, ""},
	} {
		h := &hooks{runner: &Runner{Package: packages}, tokenless: c.tokenless}
		if got := h.hint(strings.Split(c.lines, "\n")); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%.60q: %q, want %q", c.lines, got, c.want)
		}
	}
	h := &hooks{runner: &Runner{}}
	if got := h.hint([]string{"line 1: jq: command not found"}); !strings.HasPrefix(got, "jq is not in the machine's image: bring it") {
		t.Errorf("%q", got)
	}
}

// TestEnvironments: the secrets and variables of a job's environment come over those
// of the run, whatever their case, and change nothing for other jobs.
func TestEnvironments(t *testing.T) {
	vars := func(run *plan.Run) string { return strings.Join(strings.Fields(run.Vars.JSON()), "") }
	r := &Runner{EnvironmentSecrets: map[string]map[string]string{"prod": {"Key": "own"}},
		EnvironmentVars: map[string]map[string]string{"prod": {"v": "own"}, "dev": {}}}
	known := expr.NewMap()
	known.Set("V", expr.String("run"))
	known.Set("W", expr.String("run"))
	for _, c := range []struct {
		name    string
		vars    expr.Value
		secrets map[string]string
		want    map[string]string
		left    string
	}{
		{"", expr.Object(known), map[string]string{"KEY": "run"}, map[string]string{"KEY": "run"}, `{"V":"run","W":"run"}`},
		{"dev", expr.Object(known), map[string]string{"KEY": "run"}, map[string]string{"KEY": "run"}, `{"V":"run","W":"run"}`},
		{"PROD", expr.Object(known), map[string]string{"KEY": "run", "OTHER": "run"}, map[string]string{"Key": "own", "OTHER": "run"}, `{"V":"own","W":"run"}`},
		{"prod", expr.Null(), nil, map[string]string{"Key": "own"}, `{"v":"own"}`},
	} {
		run := &plan.Run{Vars: c.vars}
		job := &plan.Job{Environment: &plan.Environment{Name: c.name}}
		if c.name == "" {
			job.Environment = nil
		}
		before, given := vars(run), maps.Clone(c.secrets)
		got, secrets := r.environment(run, job, c.secrets)
		if !maps.Equal(secrets, c.want) || vars(got) != c.left {
			t.Errorf("%q: %v %s", c.name, secrets, vars(got))
		}
		if vars(run) != before || !maps.Equal(c.secrets, given) {
			t.Errorf("%q changed what was given", c.name)
		}
		if strings.ToLower(c.name) != "prod" && got != run {
			t.Errorf("%q: a run of its own for nothing", c.name)
		}
	}
	hidden := (&Runner{Secrets: map[string]string{"A": "secret-one", "LONG": strings.Repeat("x", mask.MaxSecret+1)},
		EnvironmentSecrets: map[string]map[string]string{"e": {"B": "secret-two"}}}).Hidden()
	if got := hidden.String("secret-one secret-two three"); got != "*** *** three" {
		t.Errorf("%q", got)
	}
}

// TestPredictions: what a forecast says of a run's jobs and steps has their names.
func TestPredictions(t *testing.T) {
	run := planned(t, "  a:\n    name: Named\n    strategy: {matrix: {v: [7]}}\n    runs-on: x\n    steps: [{id: one, run: make}, {id: two, run: test}]\n  b: {runs-on: x, steps: [{run: ls}]}\n")
	f := learn.Forecast{Jobs: map[string]ci.Prediction{run.Jobs[0].Key: {PFail: .5, Seen: 5}, "b": {PFail: .1, Seen: 5}}}
	f.Steps = map[string]map[int]ci.Prediction{run.Jobs[0].Key: {1: {PFail: .2, Seen: 5}, 2: {PFail: .3, Seen: 5}}}
	var got []string
	for _, r := range Predictions(run, f) {
		got = append(got, fmt.Sprint(r.JobKey, "|", r.Job, "|", r.Step, "|", r.StepID, "|", r.Name, "|", r.Matrix != nil))
	}
	want := []string{"||0|||false", "KEY|a|0||Named (7)|true", "KEY|a|1|one||true", "KEY|a|2|two||true", "b|b|0||b|false"}
	if text := strings.ReplaceAll(strings.Join(got, "\n"), run.Jobs[0].Key+"|", "KEY|"); text != strings.Join(want, "\n") {
		t.Errorf("%s", text)
	}
}

// TestNoRetry: a step, or a job, that is not to be repeated says so in its env.
func TestNoRetry(t *testing.T) {
	run := planned(t, "  a:\n    runs-on: x\n    steps: [{id: one, run: make, env: {HEARTH_NO_RETRY: 1}}, {id: two, run: test}]\n  b: {runs-on: x, env: {HEARTH_NO_RETRY: \"\"}, steps: [{id: one, run: ls}]}\n")
	for _, c := range []struct {
		job  int
		step string
		want bool
	}{{0, "one", true}, {0, "two", false}, {1, "one", true}} {
		h := &hooks{runner: &Runner{}, job: run.Jobs[c.job]}
		if got := h.noRetry(engine.StepInfo{ID: c.step}); got != c.want {
			t.Errorf("%d %s: %v", c.job, c.step, got)
		}
	}
}

// TestLinesGo: of a step that is over nothing is kept, whatever became of it; of one
// that runs the end is.
func TestLinesGo(t *testing.T) {
	l, err := learn.Open(t.Context(), nil, learn.Options{Mode: learn.Advise})
	if err != nil {
		t.Fatal(err)
	}
	h := &hooks{runner: &Runner{Learn: l, Sink: ci.SinkFunc(func(ci.Record) {})}, job: &plan.Job{}}
	line := func(step int, text string) {
		h.Emit(ci.Record{Type: ci.LogLine, Step: step, Stream: "stdout", Text: text})
	}
	line(1, "a")
	line(2, "b")
	h.Emit(ci.Record{Type: ci.StepFinished, Step: 1, Conclusion: ci.Success})
	h.Emit(ci.Record{Type: ci.StepFinished, Step: 2, Conclusion: ci.Failure})
	if len(h.lines[1]) != 0 || !slices.Equal(h.lines[2], []string{"b"}) || h.ended() {
		t.Errorf("%v", h.lines)
	}
	h.Emit(ci.Record{Type: ci.JobFinished, Conclusion: ci.Success})
	if !h.ended() || len(h.lines[2]) != 1 {
		t.Errorf("%v", h.lines)
	}
	for i := range 20_000 {
		line(3, fmt.Sprint(i))
	}
	if got := h.lines[3]; len(got) == 0 || len(got) > 10_000 || got[len(got)-1] != "19999" {
		t.Errorf("%d lines", len(got))
	}
}
