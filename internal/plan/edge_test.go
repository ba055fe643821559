package plan_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

const job = "{runs-on: x, steps: [{run: echo}]}"

// asJSON is an expression that is what text says.
func asJSON(text string) string { return "${{ fromJSON('" + text + "') }}" }

// TestGroups: a concurrency group in every form that it can be written in.
func TestGroups(t *testing.T) {
	long := strings.Repeat("ä", 400)
	for _, c := range []struct {
		src  string
		want plan.Group
		err  string
	}{
		{`g`, plan.Group{Name: "g", Queue: "single"}, ""},
		{`"${{ github.ref }}"`, plan.Group{Name: "refs/heads/main", Queue: "single"}, ""},
		{`{group: g, queue: max}`, plan.Group{Name: "g", Queue: "max"}, ""},
		{`{group: 7, cancel-in-progress: "${{ github.ref == 'refs/heads/main' }}"}`, plan.Group{Name: "7", CancelInProgress: true, Queue: "single"}, ""},
		{`{group: g, cancel-in-progress: "${{ github.none }}"}`, plan.Group{Name: "g", Queue: "single"}, ""},
		{`"` + asJSON(`{\"group\":\"g\"}`) + `"`, plan.Group{Name: "g", Queue: "single"}, ""},
		{`"` + asJSON(`{\"group\":\"g\",\"cancel-in-progress\":true}`) + `"`, plan.Group{Name: "g", CancelInProgress: true, Queue: "single"}, ""},
		{`"` + asJSON(`{\"group\":\"g\",\"queue\":\"max\"}`) + `"`, plan.Group{Name: "g", Queue: "max"}, ""},
		{`"` + asJSON(`{\"group\":\"g\",\"queue\":\"single\"}`) + `"`, plan.Group{Name: "g", Queue: "single"}, ""},
		{long, plan.Group{Name: long, Queue: "single"}, ""},
		{`"${{ format('{0}x', '` + long + `') }}"`, plan.Group{}, "2:14: Concurrency group name must be less than 400 characters"},
		{`"${{ github.none }}"`, plan.Group{}, "2:14: Concurrency group name cannot be empty"},
		{`"` + asJSON(`{\"queue\":\"max\"}`) + `"`, plan.Group{}, "2:14: Concurrency group name cannot be empty"},
		{`"` + asJSON(`{\"group\":[1]}`) + `"`, plan.Group{}, "2:14: Unexpected value 'Array'"},
		{`"` + asJSON(`{\"group\":\"g\",\"queue\":\"two\"}`) + `"`, plan.Group{}, "2:14: Unexpected value 'two'"},
		{`"` + asJSON(`{\"group\":\"g\",\"queue\":\"max\",\"cancel-in-progress\":true}`) + `"`, plan.Group{}, "2:14: A concurrency group with 'queue: max'"},
		{`{group: g, cancel-in-progress: "${{ github.ref }}"}`, plan.Group{}, "2:14: Unexpected value 'refs/heads/main'"},
		{`"${{ fromJSON('{') }}"`, plan.Group{}, "2:14: "},
		{`{group: g, cancel-in-progress: "${{ fromJSON('{') }}"}`, plan.Group{}, "2:45: "},
	} {
		r, diags := plan.Build(request(t, one("on: push\nconcurrency: "+c.src+"\njobs: {a: "+job+"}\n")))
		switch {
		case c.err != "":
			if r != nil || len(diags) != 1 || !strings.Contains(diags[0].String(), c.err) || diags[0].Rule != "concurrency" {
				t.Errorf("%.80s: %v, want %s", c.src, diags, c.err)
			}
		case r == nil || *r.Concurrency != c.want:
			t.Errorf("%.80s: %v %+v", c.src, diags, r)
		}
	}
}

// TestStrategies: a strategy in every form, known before the run and only in it.
func TestStrategies(t *testing.T) {
	all := `{"fail-fast":false,"max-parallel":2,"matrix":{"v":[1,2,3]}}`
	for _, c := range []struct {
		src, out string // out is what the job before hands on
		cells    int
		failFast bool
		parallel int
		err      string
	}{
		{asJSON(all), "", 3, false, 2, ""},
		{"${{ fromJSON(needs.z.outputs.o) }}", all, 3, false, 2, ""},
		{asJSON(`{"max-parallel":1}`), "", 1, true, 1, ""},
		{asJSON(`{"matrix":{"v":[1,2]}}`), "", 2, true, 2, ""},
		{"{matrix: {v: [1, 2, 3]}, max-parallel: 0}", "", 3, true, 3, ""},
		{"{matrix: {v: [1, 2, 3]}, max-parallel: 1}", "", 3, true, 1, ""},
		{"{matrix: {v: [1, 2, 3]}, max-parallel: 2.9}", "", 3, true, 2, ""},
		{"{matrix: {v: [1, 2, 3]}, max-parallel: 9}", "", 3, true, 9, ""},
		{"{matrix: {v: [1, 2, 3]}, max-parallel: 100000}", "", 3, true, plan.MaxMatrix, ""},
		{"{matrix: {v: [1, 2, 3]}, max-parallel: -1}", "", 3, true, 3, ""},
		{"{matrix: {v: [1, 2]}, fail-fast: \"${{ needs.z.outputs.o == 'yes' }}\"}", "no", 2, false, 2, ""},
		{"{matrix: {v: [1, 2]}, fail-fast: \"${{ needs.z.outputs.o == 'yes' }}\"}", "yes", 2, true, 2, ""},
		{"{matrix: {v: [1, 2]}, max-parallel: \"${{ fromJSON(needs.z.outputs.o) }}\"}", "1", 2, true, 1, ""},
		{"{matrix: {v: [1, 2]}, fail-fast: false}", "", 2, false, 2, ""},
		// What is wrong is told where it is, when the job would start.
		{"${{ github.ref }}", "", 0, false, 0, "(Line: 9, Col: 15): Error when evaluating 'strategy' for job 'a'. Unexpected value 'refs/heads/main'"},
		{"${{ fromJSON('{') }}", "", 0, false, 0, "(Line: 9, Col: 15): Error when evaluating 'strategy'"},
		{"{fail-fast: \"${{ github.ref }}\", matrix: {v: [1]}}", "", 0, false, 0,
			"(Line: 9, Col: 27): Error when evaluating 'strategy' for job 'a'. Unexpected value 'refs/heads/main'"},
		{"{max-parallel: \"${{ github.ref }}\", matrix: {v: [1]}}", "", 0, false, 0,
			"(Line: 9, Col: 30): Error when evaluating 'strategy' for job 'a'. Unexpected value 'refs/heads/main'"},
		{"{max-parallel: \"${{ fromJSON('{') }}\", matrix: {v: [1]}}", "", 0, false, 0, "(Line: 9, Col: 30): "},
		{"{fail-fast: \"${{ fromJSON('{') }}\", matrix: {v: [1]}}", "", 0, false, 0, "(Line: 9, Col: 27): "},
		{asJSON(`{"fail-fast":1}`), "", 0, false, 0, "(Line: 9, Col: 15): Error when evaluating 'strategy' for job 'a'. Unexpected value '1'"},
		{asJSON(`{"max-parallel":"x"}`), "", 0, false, 0, "(Line: 9, Col: 15): Error when evaluating 'strategy' for job 'a'. Unexpected value 'x'"},
		{asJSON(`{"matrix":[1]}`), "", 0, false, 0, "Error when evaluating 'strategy' for job 'a'. Unexpected value 'Array'"},
		{asJSON(`{"matrix":{"v":1}}`), "", 0, false, 0, "Error when evaluating 'strategy' for job 'a'. Unexpected value '1'"},
		{"{matrix: \"${{ github.none }}\"}", "", 0, false, 0, "(Line: 9, Col: 24): Error when evaluating 'strategy' for job 'a'. Unexpected value ''"},
		{"{matrix: {v: [1], include: \"" + asJSON(`[7]`) + "\"}}", "", 0, false, 0,
			"(Line: 9, Col: 42): Error when evaluating 'strategy' for job 'a'. Unexpected value '7'"},
		{"{matrix: {v: [1], exclude: \"" + asJSON(`[7]`) + "\"}}", "", 0, false, 0,
			"(Line: 9, Col: 42): Error when evaluating 'strategy' for job 'a'. Unexpected value '7'"},
		{"{matrix: {v: [\"${{ github.ref }}\"], exclude: [{v: 2}, {x: 1}]}}", "", 0, false, 0,
			"(Line: 9, Col: 70): Error when evaluating 'strategy' for job 'a'. Matrix exclude key 'x'"},
	} {
		r := build(t, one("on: push\njobs:\n  z:\n    runs-on: x\n    outputs: {o: x}\n    steps: [{run: echo}]\n  a:\n    needs: z\n    strategy: "+c.src+
			"\n    runs-on: x\n    steps: [{run: echo}]\n"))
		d := drive(t, roundTrip(t, r))
		d.outputs["z"] = map[string]string{"o": c.out}
		got := d.run()
		if c.err != "" {
			if got != ci.Failure || !strings.Contains(strings.Join(d.log, "\n"), c.err) {
				t.Errorf("%s: %s, %q, want %s", c.src, got, d.log, c.err)
			}
			continue
		}
		cells := slices.DeleteFunc(d.s.Run().Jobs, func(j *plan.Job) bool { return j.ID != "a" })
		if got != ci.Success || len(cells) != c.cells || cells[0].FailFast != c.failFast || cells[0].MaxParallel != c.parallel {
			t.Errorf("%s: %s, %q, %+v", c.src, got, d.log, cells[0])
		}
	}
}

// TestLateKeys: a key that is known only when its job starts has then the value it
// would have had before, and what is wrong with it fails that job alone.
func TestLateKeys(t *testing.T) {
	for _, c := range []struct {
		src, out string
		ok       func(j *plan.Job) bool
		err      string
	}{
		{"runs-on: ${{ needs.z.outputs.o }}", "big", func(j *plan.Job) bool { return slices.Equal(j.Labels, []string{"big"}) }, ""},
		{"runs-on: ${{ fromJSON(needs.z.outputs.o) }}", `["a"," ","b "]`, func(j *plan.Job) bool { return slices.Equal(j.Labels, []string{"a", "b"}) }, ""},
		{"runs-on: ${{ fromJSON(needs.z.outputs.o) }}", `{"group":"g"}`, func(j *plan.Job) bool { return j.RunnerGroup == "g" && len(j.Labels) == 0 }, ""},
		{"runs-on: ${{ fromJSON(needs.z.outputs.o) }}", `{"group":["g"]}`, nil, "Unexpected value 'Array'"},
		{"runs-on: ${{ fromJSON(needs.z.outputs.o) }}", `[["a"]]`, nil, "Unexpected value 'Array'"},
		{"runs-on: ${{ needs.z.outputs.o }}", "", nil, "Error when evaluating 'runs-on' for job 'a'. Unexpected value ''"},
		{"runs-on: ${{ fromJSON(needs.z.outputs.o) }}", "{", nil, "Error when evaluating 'runs-on' for job 'a'. "},
		{"runs-on: x\n    environment: ${{ needs.z.outputs.o }}", "prod", func(j *plan.Job) bool { return j.Environment.Name == "prod" }, ""},
		{"runs-on: x\n    environment: ${{ needs.z.outputs.o }}", "", func(j *plan.Job) bool { return j.Environment == nil }, ""},
		{"runs-on: x\n    environment: ${{ fromJSON(needs.z.outputs.o) }}", `{"name":"p","deployment":false}`,
			func(j *plan.Job) bool { return *j.Environment == plan.Environment{Name: "p", NoDeployment: true} }, ""},
		{"runs-on: x\n    environment: ${{ fromJSON(needs.z.outputs.o) }}", `{"name":"p","deployment":true}`,
			func(j *plan.Job) bool { return *j.Environment == plan.Environment{Name: "p"} }, ""},
		{"runs-on: x\n    environment: ${{ fromJSON(needs.z.outputs.o) }}", `[1]`, nil, "Error when evaluating 'environment' for job 'a'. Unexpected value 'Array'"},
		{"runs-on: x\n    environment: ${{ fromJSON(needs.z.outputs.o) }}", `[`, nil, "Error when evaluating 'environment' for job 'a'. "},
		{"runs-on: x\n    timeout-minutes: ${{ fromJSON(needs.z.outputs.o) }}", "7", func(j *plan.Job) bool { return j.TimeoutMinutes == 7 }, ""},
		{"runs-on: x\n    timeout-minutes: ${{ fromJSON(needs.z.outputs.o) }}", "{", nil, "Error when evaluating 'timeout-minutes' for job 'a'. "},
		{"runs-on: x\n    cancel-timeout-minutes: ${{ fromJSON(needs.z.outputs.o) }}", "2", func(j *plan.Job) bool { return j.CancelTimeoutMinutes == 2 }, ""},
		{"runs-on: x\n    cancel-timeout-minutes: ${{ needs.z.outputs.o }}", "2", nil,
			"Error when evaluating 'cancel-timeout-minutes' for job 'a'. Unexpected value '2'"},
		{"runs-on: x\n    continue-on-error: ${{ fromJSON(needs.z.outputs.o) }}", "true", func(j *plan.Job) bool { return j.ContinueOnError }, ""},
		{"runs-on: x\n    continue-on-error: ${{ needs.z.outputs.o }}", "true", nil,
			"Error when evaluating 'continue-on-error' for job 'a'. Unexpected value 'true'"},
		{"runs-on: x\n    continue-on-error: ${{ fromJSON(needs.z.outputs.o) }}", "{", nil, "Error when evaluating 'continue-on-error' for job 'a'. "},
		{"runs-on: x\n    concurrency: ${{ needs.z.outputs.o }}", "g", func(j *plan.Job) bool { return *j.Concurrency == plan.Group{Name: "g", Queue: "single"} },
			""},
		{"runs-on: x\n    name: at ${{ needs.z.outputs.o }}", "g", func(j *plan.Job) bool { return j.Name == "at g" }, ""},
		{"runs-on: x\n    name: ${{ needs.z.outputs.o }}", "", func(j *plan.Job) bool { return j.Name == "a" }, ""},
		{"runs-on: x\n    name: ${{ fromJSON(needs.z.outputs.o).x }}", "{", nil, "Error when evaluating 'name' for job 'a'. "},
	} {
		r := build(t, one("on: push\njobs:\n  z:\n    runs-on: x\n    outputs: {o: x}\n    steps: [{run: echo}]\n  other: "+job+"\n  a:\n    needs: z\n    "+
			c.src+"\n    steps: [{run: echo}]\n"))
		d := &driver{t: t, s: plan.NewState(roundTrip(t, r)), outputs: map[string]map[string]string{"z": {"o": c.out}}}
		d.ends = map[string]ci.Conclusion{}
		s := d.s
		for range 3 {
			for _, a := range s.Next() {
				d.log = append(d.log, a.Kind.String()+" "+a.Job.Key+" "+a.Reason)
				if a.Kind == plan.Start {
					if err := s.Finished(a.Job.Key, ci.Success, d.outputs[a.Job.Key]); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		j := s.Run().Job("a")
		switch {
		case c.err != "":
			if s.Conclusion() != ci.Failure || s.JobConclusion("a") != ci.Failure || !strings.Contains(strings.Join(d.log, "\n"), c.err) {
				t.Errorf("%s of %q: %s %q, want %s", c.src, c.out, s.Conclusion(), d.log, c.err)
			}
		case s.Conclusion() != ci.Success || !c.ok(j) || len(j.Late) != 0:
			t.Errorf("%s of %q: %s %q %+v", c.src, c.out, s.Conclusion(), d.log, j)
		}
	}
}

// TestHanded: what a call hands in, in every form, known before the run or late.
func TestHanded(t *testing.T) {
	callee := `
on:
  workflow_call:
    inputs:
      s: {type: string, default: "${{ inputs.outer || 'none' }}"}
      n: {type: number}
      b: {type: boolean}
      must: {type: string, required: true}
jobs: {in: ` + job + "}\n"
	for _, c := range []struct{ with, out, want, err string }{
		{`{must: m}`, "", `{"s":"none","n":0,"b":false,"must":"m"}`, ""},
		{`{must: 7, n: 3, b: true, s: x}`, "", `{"s":"x","n":3,"b":true,"must":"7"}`, ""},
		{`{must: "${{ needs.z.outputs.o }}"}`, "late", `{"s":"none","n":0,"b":false,"must":"late"}`, ""},
		{`{must: m, n: "${{ fromJSON(needs.z.outputs.o) }}"}`, "4", `{"s":"none","n":4,"b":false,"must":"m"}`, ""},
		{`{must: m, n: "${{ needs.z.outputs.o }}"}`, "4", "", "(Line: 9, Col: 24): Error when evaluating 'with' for job 'a'. Unexpected value '4'"},
		{`{must: m, n: "${{ fromJSON(needs.z.outputs.o) }}"}`, "{", "", "(Line: 9, Col: 24): Error when evaluating 'with' for job 'a'. "},
		{`{must: "${{ fromJSON(needs.z.outputs.o) }}"}`, "[1]", "", "Error when evaluating 'with' for job 'a'. Unexpected value 'Array'"},
		{`{must: m, b: "` + asJSON("1") + `"}`, "", "", "Error when evaluating 'with' for job 'a'. Unexpected value '1'"},
	} {
		r := build(t, files{mainFile: "on: push\njobs:\n  z:\n    runs-on: x\n    outputs: {o: x}\n    steps: [{run: echo}]\n  a:\n    needs: z\n    with: " +
			c.with + "\n    uses: ./in.yml\n", "in.yml": callee})
		d := drive(t, roundTrip(t, r))
		d.outputs["z"] = map[string]string{"o": c.out}
		got := d.run()
		if c.err != "" {
			if got != ci.Failure || !strings.Contains(strings.Join(d.log, "\n"), c.err) {
				t.Errorf("%s of %q: %s, %q, want %s", c.with, c.out, got, d.log, c.err)
			}
			continue
		}
		in := d.s.Run().Inputs(d.s.Run().Job("a / in"))
		if text := strings.Join(strings.Fields(in.JSON()), ""); got != ci.Success || text != c.want {
			t.Errorf("%s of %q: %s, %q, %s", c.with, c.out, got, d.log, text)
		}
	}
}

// TestWaitingDefault: an input's default that speaks of an input that is not known
// yet waits with it.
func TestWaitingDefault(t *testing.T) {
	r := build(t, files{
		mainFile: "on: push\njobs:\n  z: " + strings.Replace(job, "steps", "outputs: {o: x}, steps", 1) +
			"\n  a: {needs: z, uses: ./mid.yml, with: {outer: \"${{ needs.z.outputs.o }}\"}}\n",
		"mid.yml": "on: {workflow_call: {inputs: {outer: {type: string}}}}\njobs: {m: {uses: ./in.yml}}\n",
		"in.yml":  "on: {workflow_call: {inputs: {s: {type: string, default: \"of ${{ inputs.outer }}\"}}}}\njobs: {in: {runs-on: \"${{ inputs.s }}\", steps: [{run: echo}]}}\n",
	})
	if j := r.Job("a / m / in"); !slices.Contains(j.Late, "runs-on") || r.Knows(j, "inputs", []string{"s"}) || !r.Knows(j, "github", nil) ||
		r.Knows(j, "secrets", nil) {
		t.Errorf("before the run: late %q", j.Late)
	}
	if o := r.Forecast()["a / m / in"]; o.Will != plan.Runs || o.Stage != 2 {
		t.Errorf("%+v", o)
	}
	d := drive(t, roundTrip(t, r))
	d.outputs["z"] = map[string]string{"o": "mars"}
	if got := d.run(); got != ci.Success || !slices.Equal(d.s.Run().Job("a / m / in").Labels, []string{"of mars"}) {
		t.Errorf("%s, %q", got, d.s.Run().Job("a / m / in").Labels)
	}
}

// TestCallOutputs: what a called workflow hands on is bounded, each and in sum, and
// what cannot be evaluated fails the call.
func TestCallOutputs(t *testing.T) {
	for _, c := range []struct {
		outputs string
		size    int
		want    ci.Conclusion
	}{
		{"{one: {value: \"${{ jobs.in.outputs.o }}\"}}", 10, ci.Success},
		{"{one: {value: \"${{ jobs.in.outputs.o }}\"}}", ci.MaxOutput, ci.Success},
		{"{one: {value: \"${{ jobs.in.outputs.o }}-\"}}", ci.MaxOutput, ci.Failure},
		{"{one: {value: \"${{ fromJSON(jobs.in.outputs.o) }}\"}}", 10, ci.Failure},
		{"", 10, ci.Success},
	} {
		in := "on: {workflow_call: {outputs: " + c.outputs + "}}\njobs: {in: " + strings.Replace(job, "steps", "outputs: {o: x}, steps", 1) + "}\n"
		if c.outputs == "" {
			in = strings.Replace(in, ": {outputs: }", ":", 1)
		}
		r := build(t, files{mainFile: "on: push\njobs: {a: {uses: ./in.yml}}\n", "in.yml": in})
		d := drive(t, r)
		d.outputs["in"] = map[string]string{"o": strings.Repeat("x", c.size)}
		if got := d.run(); got != c.want {
			t.Errorf("%s with %d bytes: %s", c.outputs, c.size, got)
		}
		if c.want == ci.Failure && !strings.Contains(d.log[len(d.log)-1], `conclude a failure: the output "one" of in.yml`) {
			t.Errorf("%q", d.log)
		}
	}
	// Each is small enough, all together are not; exactly as many as may be, are.
	n := ci.MaxJobOutputs / ci.MaxOutput
	for _, more := range []int{0, 1} {
		var outputs strings.Builder
		for i := range n + more {
			fmt.Fprintf(&outputs, "o%d: {value: \"${{ jobs.in.outputs.o }}\"},", i)
		}
		in := "on: {workflow_call: {outputs: {" + outputs.String() + "}}}\njobs: {in: " + strings.Replace(job, "steps", "outputs: {o: x}, steps", 1) + "}\n"
		d := drive(t, build(t, files{mainFile: "on: push\njobs: {a: {uses: ./in.yml}}\n", "in.yml": in}))
		d.outputs["in"] = map[string]string{"o": strings.Repeat("x", ci.MaxOutput)}
		if got, want := d.run(), map[int]ci.Conclusion{0: ci.Success, 1: ci.Failure}[more]; got != want {
			t.Errorf("%d outputs: %s", n+more, got)
		}
	}
}

// TestBuildRefuses: what the reader of a file would have found is found again,
// since a run that has it would never end.
func TestBuildRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *workflow.Workflow)
		rule   string
	}{
		"a circle":        {func(w *workflow.Workflow) { w.Jobs[0].Needs, w.Jobs[2].Needs = []workflow.Needed{{ID: "B"}}, nil }, "needs-cycle"},
		"itself":          {func(w *workflow.Workflow) { w.Jobs[0].Needs = []workflow.Needed{{ID: "a"}} }, "needs-cycle"},
		"nobody":          {func(w *workflow.Workflow) { w.Jobs[0].Needs = []workflow.Needed{{ID: "zzz"}} }, "needs-unknown"},
		"two of one name": {func(w *workflow.Workflow) { w.Jobs[1].ID, w.Jobs[1].Needs, w.Jobs[2].Needs = "A", nil, nil }, "job-duplicate"},
		"no jobs":         {func(w *workflow.Workflow) { w.Jobs = nil }, "no-jobs"},
	} {
		req := request(t, jobs("a:", "b: needs: a", "c: needs: [a, b]"))
		c.change(req.Workflow)
		r, diags := plan.Build(req)
		if r != nil || len(diags) != 1 || diags[0].Rule != c.rule {
			t.Errorf("%s: %v", name, diags)
		}
	}
	// A diamond is no circle, and is looked at once.
	if r := build(t, jobs("a:", "b: needs: a", "c: needs: a", "d: needs: [b, c]")); len(r.Jobs) != 4 {
		t.Errorf("%q", keys(r))
	}
	// As many files as may be called, and one more.
	for _, n := range []int{plan.MaxFiles, plan.MaxFiles + 1} {
		fs := files{}
		var b strings.Builder
		b.WriteString("on: push\njobs:\n")
		for i := range n {
			fmt.Fprintf(&b, "  j%d: {uses: ./%d.yml}\n", i, i)
			fs[fmt.Sprintf("%d.yml", i)] = "on: workflow_call\njobs: {in: " + job + "}\n"
		}
		fs[mainFile] = b.String()
		r, diags := plan.Build(request(t, fs))
		if n == plan.MaxFiles && r == nil || n > plan.MaxFiles && (r != nil || diags[0].Rule != "call-count") {
			t.Errorf("%d files: %v", n, diags)
		}
	}
	// Called twice, a file is there once; nothing to load it with is said.
	r := build(t, files{mainFile: "on: push\njobs: {a: {uses: ./in.yml}, b: {uses: ./in.yml}}\n", "in.yml": "on: workflow_call\njobs: {in: " + job + "}\n"})
	if len(r.Files) != 2 || r.Files[0].Called["./in.yml"] != 1 || r.Files[0].Workflow.Called != nil {
		t.Errorf("%d files", len(r.Files))
	}
	req := request(t, one("on: push\njobs: {a: {uses: ./in.yml}}\n"))
	req.Load = nil
	if r, diags := plan.Build(req); r != nil || diags[0].Rule != "call-missing" {
		t.Errorf("%v", diags)
	}
	req.Load = func(string, *workflow.Workflow) (*workflow.Workflow, error) { return nil, nil }
	if r, diags := plan.Build(req); r != nil || diags[0].Rule != "call-missing" {
		t.Errorf("%v", diags)
	}
}

// TestBrokenCalls: of a stored run every index is looked at before it is used.
func TestBrokenCalls(t *testing.T) {
	good := encode(t, build(t, called("on: push\njobs: {j: {uses: ./deploy.yml, with: {target: x}}}\n")))
	type object = map[string]any
	at := func(v object, list string, i int) object { return v[list].([]any)[i].(object) }
	for name, change := range map[string]func(v object){
		"no files":           func(v object) { v["files"] = []any{} },
		"no calls":           func(v object) { v["calls"] = nil },
		"a file null":        func(v object) { v["files"].([]any)[1] = nil },
		"a file of nothing":  func(v object) { v["files"].([]any)[1] = object{} },
		"a call null":        func(v object) { v["calls"].([]any)[1] = nil },
		"a job null":         func(v object) { v["jobs"].([]any)[1] = nil },
		"calls beyond":       func(v object) { at(v, "files", 0)["called"] = object{"./deploy.yml": 2} },
		"calls before":       func(v object) { at(v, "files", 0)["called"] = object{"./deploy.yml": -1} },
		"a file beyond":      func(v object) { at(v, "calls", 1)["file"] = 2 },
		"a file before":      func(v object) { at(v, "calls", 1)["file"] = -1 },
		"a parent beyond":    func(v object) { at(v, "calls", 1)["parent"] = 2 },
		"its own parent":     func(v object) { at(v, "calls", 1)["parent"] = 1 },
		"a parent before":    func(v object) { at(v, "calls", 1)["parent"] = -1 },
		"a job beyond":       func(v object) { at(v, "jobs", 1)["call"] = 2 },
		"opens beyond":       func(v object) { at(v, "jobs", 0)["opens"] = 2 },
		"opens before":       func(v object) { at(v, "jobs", 0)["opens"] = -1 },
		"opens nothing":      func(v object) { at(v, "jobs", 0)["opens"] = 0 },
		"a caller of no one": func(v object) { at(v, "calls", 1)["caller"] = "zzz" },
		"a caller inside":    func(v object) { at(v, "calls", 1)["caller"] = at(v, "jobs", 1)["key"] },
		"a level too high":   func(v object) { at(v, "calls", 1)["level"] = 3 },
		"a level too low":    func(v object) { at(v, "calls", 1)["level"] = 1 },
	} {
		var v object
		if err := json.Unmarshal([]byte(good), &v); err != nil {
			t.Fatal(err)
		}
		change(v)
		b, _ := json.Marshal(v)
		if err := json.Unmarshal(b, new(plan.Run)); err == nil || !strings.HasPrefix(err.Error(), "plan: read a run: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := json.Unmarshal([]byte(good), new(plan.Run)); err != nil {
		t.Error(err)
	}
}

// TestConditions: what a condition says of how others ended, and why it is false.
func TestConditions(t *testing.T) {
	for _, c := range []struct {
		cond string
		a    ci.Conclusion
		want string // of b
	}{
		{"success('zzz')", ci.Success, "conclude b failure: (Line: 10, Col: 9): Error when evaluating 'if' for job 'b'. "},
		{"failure('zzz')", ci.Success, "conclude b failure: (Line: 10, Col: 9): Error when evaluating 'if' for job 'b'. "},
		{"fromJSON('{')", ci.Success, "conclude b failure: (Line: 10, Col: 9): Error when evaluating 'if' for job 'b'. "},
		{"success('A')", ci.Success, "start b"},
		{"github.ref", ci.Failure, "skip b: it needs a, which failed"},
		{"github.ref && success()", ci.Failure, "skip b: its condition is false: github.ref && success()"},
		{"github.none && always()", ci.Failure, "skip b: its condition is false: github.none && always()"},
		{"github.none || failure()", ci.Success, "skip b: its condition is false: github.none || failure()"},
		{"github.none || cancelled()", ci.Failure, "skip b: its condition is false: github.none || cancelled()"},
		{"failure()", ci.TimedOut, "skip b: its condition is false: failure()"},
		{"success()", ci.Neutral, "start b"},
	} {
		d := drive(t, build(t, jobs("a:", "b: needs: a; if: "+c.cond)))
		d.ends["a"] = c.a
		d.run()
		if last := d.log[len(d.log)-1]; !strings.HasPrefix(last, c.want) {
			t.Errorf("%s after %s: %s, want %s", c.cond, c.a, last, c.want)
		}
	}
}

// TestFailedExpansion: cells that cannot be made leave nothing behind, and what
// comes after has its place.
func TestFailedExpansion(t *testing.T) {
	r := build(t, files{mainFile: `
on: push
jobs:
  z: {runs-on: x, outputs: {o: x}, steps: [{run: echo}]}
  bad: {needs: z, strategy: {matrix: {n: "${{ fromJSON(needs.z.outputs.o) }}"}}, uses: ./in.yml, with: {n: "${{ matrix.n }}"}}
  good: {needs: [z, bad], if: always(), strategy: {matrix: {n: "${{ fromJSON(needs.z.outputs.o) }}"}}, uses: ./in.yml}
`, "in.yml": "on: {workflow_call: {inputs: {n: {type: number}}}}\njobs: {in: " + job + "}\n"})
	d := drive(t, r)
	d.outputs["z"] = map[string]string{"o": `[1, "two"]`}
	if got := d.run(); got != ci.Failure {
		t.Errorf("%s", got)
	}
	equal(t, "log", d.log, []string{"start z",
		"conclude bad failure: (Line: 5, Col: 108): Error when evaluating 'with' for job 'bad'. Unexpected value 'two'",
		"expand good", "start good (1)", "start good (two)", "start good (1) / in", "start good (two) / in",
		"conclude good (1) success", "conclude good (two) success"})
	if got := keys(roundTrip(t, r)); !slices.Equal(got, []string{"z", "bad", "good (1)", "good (1) / in", "good (two)", "good (two) / in"}) {
		t.Errorf("%q", got)
	}
}

// TestLateName: a calling job that gets its name late hands it to the jobs inside,
// and to no other.
func TestLateName(t *testing.T) {
	r := build(t, files{mainFile: `
on: push
jobs:
  z: {runs-on: x, outputs: {o: x}, steps: [{run: echo}]}
  a: {needs: z, name: "to ${{ needs.z.outputs.o }}", uses: ./mid.yml}
  b: {name: "a / m", runs-on: x, steps: [{run: echo}]}
`, "mid.yml": "on: workflow_call\njobs: {m: {uses: ./in.yml}}\n", "in.yml": "on: workflow_call\njobs: {in: " + job + "}\n"})
	d := drive(t, roundTrip(t, r))
	d.outputs["z"] = map[string]string{"o": "mars"}
	d.run()
	var names []string
	for _, j := range d.s.Run().Jobs {
		names = append(names, j.Name)
	}
	equal(t, "names", names, []string{"z", "to mars", "to mars / m", "to mars / m / in", "a / m"})
}

// TestLimits: at the limit, and one beyond it.
func TestLimits(t *testing.T) {
	for _, c := range []struct{ timeout, cancel, wantTimeout, wantCancel float64 }{
		{30, plan.DefaultCancelTimeoutMinutes, 30, plan.DefaultCancelTimeoutMinutes},
		{29.5, 0, 29.5, 0},
		{30.5, 0.5, 30, 0.5},
		{0.5, -1, 0.5, plan.DefaultCancelTimeoutMinutes},
		{-1, plan.DefaultCancelTimeoutMinutes + 1, 30, plan.DefaultCancelTimeoutMinutes},
	} {
		r := build(t, one("on: push\njobs: {a: "+job+"}\n"))
		r.Jobs[0].TimeoutMinutes, r.Jobs[0].CancelTimeoutMinutes = c.timeout, c.cancel
		r.Limit(0)
		if j := r.Jobs[0]; j.TimeoutMinutes != c.timeout || j.CancelTimeoutMinutes != c.cancel {
			t.Errorf("no limit: %v %v", j.TimeoutMinutes, j.CancelTimeoutMinutes)
		}
		r.Limit(30)
		if j := r.Jobs[0]; j.TimeoutMinutes != c.wantTimeout || j.CancelTimeoutMinutes != c.wantCancel {
			t.Errorf("%+v: %v %v", c, j.TimeoutMinutes, j.CancelTimeoutMinutes)
		}
	}
	for n, want := range map[int]string{95: strings.Repeat("a", 95), 96: strings.Repeat("a", 96), 97: strings.Repeat("a", 94) + "..."} {
		r := build(t, one("on: push\njobs: {m: {strategy: {matrix: {v: ["+strings.Repeat("a", n)+"]}}, runs-on: x, steps: [{run: echo}]}}\n"))
		if got := r.Jobs[0].Name; !strings.HasPrefix(got, "m ("+want) || len(got) > 100 {
			t.Errorf("%d: %s", n, got)
		}
	}
}

// TestHandedSecrets: an expression over secrets that fails is an error, however
// deep the call; an empty one hands in nothing.
func TestHandedSecrets(t *testing.T) {
	mid := "on: {workflow_call: {secrets: {t: {required: false}}}}\njobs: {in: {uses: ./leaf.yml, secrets: inherit}}\n"
	leaf := "on: {workflow_call: {secrets: {t: {required: false}}}}\njobs: {leaf: " + job + "}\n"
	for expression, want := range map[string]map[string]string{"${{ secrets.none }}": {}, "${{ secrets.A }}": {"t": "1"}, "${{ fromJSON(secrets.A).x.y }}": {},
		"${{ fromJSON('{') }}": nil} {
		r := build(t, files{mainFile: "on: push\njobs: {a: {uses: ./mid.yml, secrets: {t: \"" + expression + "\"}}}\n", "mid.yml": mid, "leaf.yml": leaf})
		got, err := r.Secrets(r.Job("a / in / leaf"), map[string]string{"A": "1"})
		if (err != nil) != (want == nil) || err == nil && !maps.Equal(got, want) {
			t.Errorf("%s: %v %v", expression, got, err)
		}
		if err != nil && !strings.Contains(err.Error(), `the secrets that job "a" hands to ./mid.yml: (Line: 2, Col: `) {
			t.Error(err)
		}
	}
}

// TestToken: the plan has the github context without its token, whatever that is.
func TestToken(t *testing.T) {
	for _, text := range []string{`{"ref":"r"}`, `{"ref":"r","token":"ghs"}`, `null`} {
		github, err := expr.ParseJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		req := request(t, jobs("a:"))
		req.GitHub = github
		r, diags := plan.Build(req)
		if r == nil || r.GitHub.Kind() != expr.KindObject || !r.GitHub.Get("token").IsNull() || r.GitHub.Get("ref").IsNull() != (text == "null") {
			t.Errorf("%s: %v", text, diags)
		}
		if github.Kind() == expr.KindObject && github.Get("token").IsNull() != (text == `{"ref":"r"}`) {
			t.Error("the request was changed")
		}
	}
	for event, want := range map[string]string{"push": "ci", "pull_request": "Ours", "pull_request_target": "Ours", "issues": "ci"} {
		github, _ := expr.ParseJSON([]byte(`{"event":{"head_commit":{"message":"  \nbody"},"pull_request":{"title":" Ours "}}}`))
		req := request(t, one("name: ci\non: push\njobs: {a: "+job+"}\n"))
		req.GitHub, req.Event = github, &workflow.Happening{Event: event}
		if r, diags := plan.Build(req); r == nil || r.Name != want {
			t.Errorf("%s: %v %+v", event, diags, r)
		}
	}
}

// TestRefusedJobs: a job that cannot run here stops itself and what needs it, and a
// run of which nothing can run is not runnable.
func TestRefusedJobs(t *testing.T) {
	missing := workflow.Diagnostic{File: "f", Rule: plan.Unsupported, Message: "no containers"}
	wrong := workflow.Diagnostic{File: "f", Rule: "other", Message: "mend it"}
	r := build(t, jobs("a:", "b: needs: a", "c: if: always()", "d: if: github.none"))
	for _, c := range []struct {
		refused  map[string][]workflow.Diagnostic
		runnable bool
		all      int
	}{
		{nil, true, 0},
		{map[string][]workflow.Diagnostic{"a": {missing, wrong}}, true, 2},
		{map[string][]workflow.Diagnostic{"a": {missing}, "c": {missing}}, false, 1},
		{map[string][]workflow.Diagnostic{"d": {missing, missing}}, true, 1},
	} {
		for _, j := range r.Jobs {
			j.Refused = c.refused[j.Key]
		}
		if got := r.Runnable(); got != c.runnable || len(r.Refused()) != c.all {
			t.Errorf("%v: runnable %v, %d faults", c.refused, got, len(r.Refused()))
		}
	}
	j := &plan.Job{Refused: []workflow.Diagnostic{missing, wrong, missing}}
	if first, reason, only := j.Refusal(); first.Message != missing.Message || reason != "no containers; mend it" || only {
		t.Errorf("%+v %q %v", first, reason, only)
	}
	j.Refused = j.Refused[:1]
	if _, reason, only := j.Refusal(); reason != "no containers" || !only {
		t.Errorf("%q %v", reason, only)
	}
	d := drive(t, build(t, files{mainFile: "on: push\njobs:\n  a: " + job + "\n  b: {needs: a, runs-on: x, steps: [{run: echo}]}\n  c: " + job +
		"\n  d: {uses: ./in.yml}\n",
		"in.yml": "on: workflow_call\njobs: {in: " + job + "}\n"}))
	d.ends["a"] = ci.NotRun
	if got := d.run(); got != ci.Neutral || d.s.JobConclusion("b") != ci.Skipped || d.s.JobConclusion("nobody") != "" {
		t.Errorf("%s %q", got, d.log)
	}
	if ran, of := d.s.Ran(); ran != 2 || of != 4 {
		t.Errorf("%d of %d ran", ran, of)
	}
}

// TestContextsOfARun: a call's secrets see what the call needs, and every job the
// run's variables.
func TestContextsOfARun(t *testing.T) {
	req := request(t, files{mainFile: "on: push\njobs:\n  z: " + strings.Replace(job, "steps", "outputs: {o: x}, steps", 1) +
		"\n  a: {needs: z, uses: ./in.yml, secrets: {t: \"${{ vars.V }}-${{ needs.z.outputs.o }}\"}}\n",
		"in.yml": "on: {workflow_call: {secrets: {t: {required: false}}}}\njobs: {in: {runs-on: \"${{ vars.V }}\", steps: [{run: echo}]}}\n"})
	vars := expr.NewMap()
	vars.Set("V", expr.String("v"))
	req.Vars = expr.Object(vars)
	r, diags := plan.Build(req)
	if r == nil {
		t.Fatal(diags)
	}
	d := drive(t, r)
	d.outputs["z"] = map[string]string{"o": "out"}
	d.run()
	in := r.Job("a / in")
	if got, err := r.Secrets(in, nil); err != nil || got["t"] != "v-out" || !slices.Equal(in.Labels, []string{"v"}) {
		t.Errorf("%v %v %q", got, err, in.Labels)
	}
}

// TestAllowance: the jobs of a run may hand on so much, to the byte, and what did not
// fit has taken nothing.
func TestAllowance(t *testing.T) {
	var a plan.Allowance
	for i, c := range []struct {
		n    int
		want bool
	}{{ci.MaxRunOutputs - 1, true}, {2, false}, {1, true}, {1, false}, {0, true}} {
		if a.Take(c.n) != c.want {
			t.Errorf("%d: %d", i, c.n)
		}
	}
}
