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

// TestLinked plans what workflow.Link has put together, without Load.
func TestLinked(t *testing.T) {
	fs := called("on: push\njobs:\n  j: {uses: ./deploy.yml, with: {target: x}}\n  k: {uses: ./deploy.yml, with: {target: y}}\n")
	req := request(t, fs)
	req.Load = nil
	diags := workflow.Link(req.Workflow, func(uses string, _ *workflow.Workflow) (string, []byte, error) {
		src, ok := fs[strings.TrimPrefix(uses, "./")]
		if !ok {
			return "", nil, errors.New("no such file")
		}
		return strings.TrimPrefix(uses, "./"), []byte(src), nil
	}, workflow.Options{})
	if workflow.Errors(diags) {
		t.Fatal(diags)
	}
	r, diags := plan.Build(req)
	if r == nil {
		t.Fatal(diags)
	}
	if len(r.Files) != 2 || len(r.Jobs) != 6 {
		t.Errorf("%d files, jobs %q", len(r.Files), keys(r))
	}
	if got := drive(t, roundTrip(t, r)).run(); got != ci.Success {
		t.Errorf("the run ends with %q", got)
	}
}

// TestRelease drives a release as people write them: started by hand, with typed
// inputs, a matrix made by a job, a gate, and a report at the end.
func TestRelease(t *testing.T) {
	const src = `
name: Release
on:
  workflow_dispatch:
    inputs:
      publish: {type: boolean}
      channel: {type: choice, options: [beta, stable], default: beta}
concurrency: release-${{ inputs.channel }}
jobs:
  matrix:
    runs-on: ubuntu-latest
    outputs: {targets: "${{ steps.t.outputs.targets }}"}
    steps: [{id: t, run: echo}]
  build:
    name: build ${{ matrix.target.os }}/${{ matrix.target.arch }}
    needs: matrix
    strategy:
      fail-fast: ${{ inputs.channel == 'stable' }}
      matrix: {target: "${{ fromJSON(needs.matrix.outputs.targets) }}"}
    runs-on: ${{ matrix.target.os == 'darwin' && 'macos-latest' || 'ubuntu-latest' }}
    outputs: {sum: "${{ steps.s.outputs.sum }}"}
    steps: [{id: s, run: echo}]
  publish:
    needs: [matrix, build]
    if: inputs.publish
    environment: ${{ inputs.channel }}
    runs-on: ubuntu-latest
    steps: [{run: echo}]
  rollback:
    needs: publish
    if: failure() && needs.publish.result == 'failure'
    runs-on: ubuntu-latest
    steps: [{run: echo}]
  report:
    needs: [build, publish, rollback]
    if: ${{ !cancelled() }}
    runs-on: ubuntu-latest
    steps: [{run: echo}]
`
	targets := map[string]map[string]string{"matrix": {"targets": `[{"os":"linux","arch":"amd64"},{"os":"darwin","arch":"arm64"}]`}}
	plans := func(t *testing.T, publish bool, channel string) *driver {
		req := request(t, one(src))
		in := expr.NewMap()
		in.Set("publish", expr.Bool(publish))
		in.Set("channel", expr.String(channel))
		req.Inputs = expr.Object(in)
		r, diags := plan.Build(req)
		if r == nil {
			t.Fatal(diags)
		}
		if r.Concurrency.Name != "release-"+channel {
			t.Errorf("group %q", r.Concurrency.Name)
		}
		d := drive(t, roundTrip(t, r))
		d.outputs = targets
		return d
	}
	start := []string{"start matrix", "expand build", "start build (linux, amd64)", "start build (darwin, arm64)"}
	for _, c := range []struct {
		name    string
		publish bool
		channel string
		ends    map[string]ci.Conclusion
		log     []string
		want    ci.Conclusion
	}{
		{"all well", true, "stable", nil,
			[]string{"start publish", "skip rollback: its condition is false: failure() && needs.publish.result == 'failure'", "start report"}, ci.Success},
		{"not to be published", false, "beta", nil,
			[]string{"skip publish: its condition is false: inputs.publish", "skip rollback: its condition is false: failure() && needs.publish.result == 'failure'",
				"start report"}, ci.Success},
		{"a build fails, the other goes on", true, "beta", map[string]ci.Conclusion{"build (linux, amd64)": ci.Failure},
			[]string{"skip publish: it needs build, which failed", "skip rollback: its condition is false: failure() && needs.publish.result == 'failure'",
				"start report"}, ci.Failure},
		{"publishing fails", true, "stable", map[string]ci.Conclusion{"publish": ci.Failure},
			[]string{"start publish", "start rollback", "start report"}, ci.Failure},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := plans(t, c.publish, c.channel)
			if c.ends != nil {
				d.ends = c.ends
			}
			if got := d.run(); got != c.want {
				t.Errorf("the run ends with %q, want %q", got, c.want)
			}
			equal(t, "log", d.log, slices.Concat(start, c.log))
			if j := d.s.Run().Job("build (darwin, arm64)"); j.Name != "build darwin/arm64" || !slices.Equal(j.Labels, []string{"macos-latest"}) ||
				j.FailFast != (c.channel == "stable") {
				t.Errorf("the cell is %+v", j)
			}
			if e := d.s.Run().Job("publish").Environment; e.Name != c.channel {
				t.Errorf("environment %q", e.Name)
			}
		})
	}
}
