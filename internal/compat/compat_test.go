package compat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/engine"
)

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

var here = Options{Check: engine.CheckOptions{Shells: []string{"bash", "sh"}, AssumeActions: true,
	NoEngine: func([]string) string { return "the image has none" }},
	Fits: func(labels []string, _ string) ([]string, []string, error) { return labels, nil, nil },
	Load: func(context.Context, string) ([]byte, error) { return nil, errors.New("nobody is asked") }}

// A local action and a local workflow are read where the file lies; a step is judged
// by the worst of its cells, and a job by what it asks for.
func TestFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "act/action.yml", "runs: {using: docker, image: Dockerfile}\n")
	write(t, dir, ".github/workflows/called.yml", "on: workflow_call\njobs: {in: {runs-on: [self-hosted, windows], steps: [{run: echo}]}}\n")
	file := write(t, dir, ".github/workflows/ci.yml", `
on: [release, pull_request]
jobs:
  a:
    strategy: {matrix: {act: [yes, no]}}
    runs-on: ubuntu-latest
    steps:
      - run: echo
      - if: matrix.act == 'yes'
        uses: ./act
      - if: steps.x.outputs.y
        run: echo
        shell: pwsh
  b: {uses: ./.github/workflows/called.yml}
  c: {needs: a, strategy: {matrix: {x: "${{ fromJSON(needs.a.outputs.x) }}"}}, runs-on: ubuntu-latest, steps: [{run: echo}]}
`)
	jobs, err := File(t.Context(), file, here)
	if err != nil || len(jobs) != 3 {
		t.Fatal(jobs, err)
	}
	a, b, c := jobs[0], jobs[1], jobs[2]
	if a.Job != "a" || a.Event != "pull_request" || a.Cells != 2 || a.CellsRun != 1 || !a.Runs || len(a.Reasons) != 1 ||
		!strings.Contains(a.Reasons[0], "Docker action") || len(a.Perhaps) != 1 {
		t.Errorf("%+v", a)
	}
	if got := []string{a.Steps[0].Is, a.Steps[1].Is, a.Steps[2].Is}; !slices.Equal(got, []string{"runs", "cannot", "perhaps"}) {
		t.Error(got)
	}
	if b.Job != "b / in" || b.Runs || !strings.Contains(b.Reasons[0], "called.yml:2:") {
		t.Errorf("%+v", b)
	}
	if c.Cells != 0 || !c.Runs || len(c.Reasons) > 0 {
		t.Errorf("%+v", c)
	}
	var s Score
	if s.Count(jobs); s.String() != "0 of 1 workflows run here, 1 more in part; 2 of 3 jobs" {
		t.Error(s.String())
	}
}

// Inputs that somebody would give are made up; what they would make is not known then, and no
// fault of the file.
func TestInputs(t *testing.T) {
	const head = "on: {workflow_dispatch: {inputs: {list: {required: true}, how: {required: true, type: choice, options: [a, b]}, n: {required: true, type: number}}}}\n"
	for jobs, want := range map[string]string{
		"jobs: {a: {runs-on: x, steps: [{run: echo}], name: '${{ inputs.how }}${{ inputs.n }}'}}":                       "a true false",
		"jobs: {a: {runs-on: x, strategy: {matrix: {x: '${{ fromJSON(inputs.list) }}'}}, steps: [{run: echo}]}}":        "a true false",
		"jobs: {a: {runs-on: x, strategy: {matrix: {x: '${{ fromJSON(github.ref) }}'}}, steps: [{run: echo, ooh: 1}]}}": " false true",
	} {
		got, err := File(t.Context(), write(t, t.TempDir(), "w.yml", head+jobs+"\n"), here)
		if err != nil || len(got) != 1 || fmt.Sprint(got[0].Job, " ", got[0].Runs, " ", got[0].Invalid) != want {
			t.Errorf("%s: %+v, %v", jobs, got, err)
		}
	}
}

// A directory is its own workflows; else the repositories in it; else its files. What
// leads out of a repository is not read.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "flat/a.yml", "x")
	write(t, dir, "flat/b/c.yaml", "x")
	write(t, dir, "flat/.git/d.yml", "x")
	write(t, dir, "many/one/.github/workflows/a.yml", "x")
	write(t, dir, "many/one/data.yml", "x")
	write(t, dir, "many/.github/workflows/top.yml", "x")
	for where, want := range map[string]string{"flat": "a.yml b/c.yaml", "many": ".github/workflows/top.yml", "many/one": ".github/workflows/a.yml"} {
		at := filepath.Join(dir, where)
		files, err := Files([]string{at})
		for i, f := range files {
			files[i], _ = filepath.Rel(at, f)
		}
		if got := strings.Join(files, " "); err != nil || got != want {
			t.Errorf("%s: %s, %v", where, got, err)
		}
	}
	write(t, dir, "secret.yml", "on: workflow_call\njobs: {a: {runs-on: x, steps: [{run: echo}]}}\n")
	repo := filepath.Join(dir, "repo")
	file := write(t, repo, ".github/workflows/ci.yml", "on: push\njobs: {a: {uses: ./.github/workflows/link.yml}}\n")
	if err := os.Symlink(filepath.Join(dir, "secret.yml"), filepath.Join(repo, ".github/workflows/link.yml")); err != nil {
		t.Fatal(err)
	}
	o := here
	o.Check.AssumeActions = false
	if jobs, err := File(t.Context(), file, o); err != nil || !jobs[0].Invalid {
		t.Errorf("%+v, %v", jobs, err)
	}
}
