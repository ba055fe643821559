package plan_test

import (
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/plan"
)

const filtered = `
on: push
jobs:
  lint: {runs-on: x, steps: [{run: echo}]}
  build:
    strategy: {matrix: {os: [linux, mac], go: [1, 2]}}
    runs-on: x
    steps: [{run: echo}]
  test:
    needs: build
    strategy: {matrix: {os: [linux, mac]}}
    uses: ./deploy.yml
    with: {target: "${{ matrix.os }}"}
  late:
    needs: lint
    strategy: {matrix: "${{ fromJSON(needs.lint.outputs.m) }}"}
    runs-on: x
    steps: [{run: echo}]
`

func TestKeep(t *testing.T) {
	for _, c := range []struct {
		name   string
		filter plan.Filter
		want   []string
		err    string
	}{
		{"all", plan.Filter{}, []string{"lint", "build (linux, 1)", "build (linux, 2)", "build (mac, 1)", "build (mac, 2)",
			"test (linux)", "test (linux) / check", "test (linux) / push (one)", "test (mac)", "test (mac) / check", "test (mac) / push (one)", "late"}, ""},
		{"a job", plan.Filter{Jobs: []string{"LINT"}}, []string{"lint"}, ""},
		{"a cell by its name", plan.Filter{Jobs: []string{"build (mac, 2)"}}, []string{"build (mac, 2)"}, ""},
		{"with what it needs", plan.Filter{Jobs: []string{"late"}}, []string{"lint", "late"}, ""},
		{"a job inside a call", plan.Filter{Jobs: []string{"test (mac) / check"}},
			[]string{"build (linux, 1)", "build (linux, 2)", "build (mac, 1)", "build (mac, 2)", "test (mac)", "test (mac) / check"}, ""},
		{"cells", plan.Filter{Jobs: []string{"test"}, Matrix: []plan.Cell{{Key: "OS", Value: "Linux"}, {Key: "go", Value: "2"}}},
			[]string{"build (linux, 2)", "test (linux)", "test (linux) / check", "test (linux) / push (one)"}, ""},
		{"alternatives", plan.Filter{Jobs: []string{"build"}, Matrix: []plan.Cell{{Key: "go", Value: "2"}, {Key: "go", Value: "1"}, {Key: "os", Value: "mac"}}},
			[]string{"build (mac, 1)", "build (mac, 2)"}, ""},
		{"no such job", plan.Filter{Jobs: []string{"tset"}}, nil, `there is no job "tset" in .github/workflows/ci.yml; it has lint, build, test, late`},
		{"no such cell", plan.Filter{Matrix: []plan.Cell{{Key: "go", Value: "3"}}}, nil, "selects nothing of: build (linux, 1)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := build(t, called(filtered))
			err := r.Keep(c.filter)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "keys", keys(r), c.want)
			r = roundTrip(t, r)
			d := drive(t, r)
			d.outputs["lint"] = map[string]string{"m": `{"os":["linux","mac"]}`}
			if got := d.run(); got != ci.Success {
				t.Errorf("the rest ends with %q", got)
			}
		})
	}
}

// TestKeepLate holds that the selection applies to a matrix known later, too.
func TestKeepLate(t *testing.T) {
	r := build(t, called(filtered))
	if err := r.Keep(plan.Filter{Jobs: []string{"late"}, Matrix: []plan.Cell{{Key: "os", Value: "mac"}}}); err != nil {
		t.Fatal(err)
	}
	d := drive(t, roundTrip(t, r))
	d.outputs["lint"] = map[string]string{"m": `{"os":["linux","mac"]}`}
	d.run()
	equal(t, "log", d.log, []string{"start lint", "expand late", "start late (mac)"})
}

func TestParseCell(t *testing.T) {
	if c, err := plan.ParseCell("image: repo/x:1"); err != nil || c != (plan.Cell{Key: "image", Value: "repo/x:1"}) {
		t.Errorf("got %v, %v", c, err)
	}
	for _, bad := range []string{"", "os", ":x"} {
		if _, err := plan.ParseCell(bad); err == nil {
			t.Errorf("took %q", bad)
		}
	}
}

func TestForecast(t *testing.T) {
	fs := called(`
on: push
jobs:
  a: {runs-on: x, outputs: {o: x}, steps: [{run: echo}]}
  off: {if: "github.ref == 'refs/heads/dev'", runs-on: x, steps: [{run: echo}]}
  b: {needs: a, if: "needs.a.outputs.o == 'y'", runs-on: x, steps: [{run: echo}]}
  c: {needs: [b, a], runs-on: x, steps: [{run: echo}]}
  d: {needs: off, runs-on: x, steps: [{run: echo}]}
  e: {needs: [off, a], if: "needs.a.outputs.o", runs-on: x, steps: [{run: echo}]}
  f: {needs: a, if: "needs.a.result == 'success'", runs-on: x, steps: [{run: echo}]}
  g: {needs: a, if: failure(), runs-on: x, steps: [{run: echo}]}
  h: {needs: f, uses: ./deploy.yml, with: {target: t}}
  i: {needs: d, if: always(), runs-on: x, steps: [{run: echo}]}
`)
	r := build(t, fs)
	before := encode(t, r)
	got := r.Forecast()
	for key, want := range map[string]plan.Outlook{
		"a":              {Will: plan.Runs, Stage: 1},
		"off":            {Will: plan.Skips, Reason: "its condition is false: github.ref == 'refs/heads/dev'", Stage: 1},
		"b":              {Will: plan.Depends, Reason: "depends on the outputs of a: needs.a.outputs.o == 'y'", Stage: 2},
		"c":              {Will: plan.Depends, Reason: "depends on whether b runs", Stage: 3},
		"d":              {Will: plan.Skips, Reason: "it needs off, which was skipped", Stage: 2},
		"e":              {Will: plan.Skips, Reason: "it needs off, which was skipped", Stage: 2},
		"f":              {Will: plan.Runs, Stage: 2},
		"g":              {Will: plan.Skips, Reason: "not while all jobs succeed: failure()", Stage: 2},
		"h":              {Will: plan.Runs, Stage: 3},
		"h / check":      {Will: plan.Runs, Stage: 3},
		"h / push (one)": {Will: plan.Runs, Stage: 4},
		"i":              {Will: plan.Runs, Stage: 3},
	} {
		if got[key] != want {
			t.Errorf("%s: got %+v, want %+v", key, got[key], want)
		}
	}
	if encode(t, r) != before {
		t.Error("a forecast changed the run")
	}
}
