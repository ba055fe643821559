package hearth_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth"
)

// TestParseWorkflow reads a file of which everything can be had.
func TestParseWorkflow(t *testing.T) {
	w, err := hearth.ParseWorkflow(`
name: CI
on: {push: {branches: [main]}}
permissions: {contents: read}
env: {A: "1", SHARED: file}
defaults: {run: {working-directory: src}}
jobs:
  test:
    runs-on: [ubuntu-latest]
    timeout-minutes: 5
    env: {SHARED: job, TOKEN: "${{ secrets.TOKEN }}"}
    steps:
      - uses: actions/checkout@v4
      - run: make
      - name: test
        run: |
          make test
          make more
        working-directory: other
        env: {N: 3}
        continue-on-error: true
        timeout-minutes: 1.5
        shell: bash
      - run: make clean
        if: ${{ always() }}
`)
	if err != nil {
		t.Fatal(err)
	}
	want := hearth.Workflow{Name: "CI", Timeout: 5 * time.Minute, Env: map[string]string{"A": "1", "SHARED": "job"},
		Steps: []hearth.Step{{Run: "make", Dir: "src"}, {Name: "test", Run: "make test\nmake more\n", Dir: "other", Env: map[string]string{"N": "3"},
			ContinueOnError: true, Timeout: 90 * time.Second}},
		Cleanup: []hearth.Step{{Run: "make clean", Dir: "src"}}}
	if !reflect.DeepEqual(w, want) {
		t.Errorf("got  %+v\nwant %+v", w, want)
	}
	two := "on: push\njobs:\n  a: {runs-on: x, steps: [{run: echo a}]}\n  b: {runs-on: x, needs: a, steps: [{run: echo b}]}\n"
	if _, err := hearth.ParseWorkflow(two); err == nil || !strings.Contains(err.Error(), "one of a, b") {
		t.Error(err)
	}
	if w, err = hearth.ParseWorkflow(two, "b"); err != nil || w.Name != "b" || w.Steps[0].Run != "echo b" {
		t.Error(w, err)
	}
	if _, err := hearth.ParseWorkflow(two, "c"); err == nil {
		t.Error("a job that is not there")
	}
}

// What an Executor could not do as GitHub does is refused, each with its place.
func TestParseWorkflowRefuses(t *testing.T) {
	for _, c := range []struct{ steps, want string }{
		{"- uses: actions/setup-go@v5\n", "6:15: a Workflow runs commands, and has no the action actions/setup-go@v5"},
		{"- {uses: actions/checkout@v4, with: {ref: x}}\n", "actions/checkout@v4"},
		{"- run: echo ${{ github.ref }}\n", "6:14: run has an expression"},
		{"- {run: x, env: {A: \"${{ secrets.B }}\"}}\n", "the variable A has an expression"},
		{"- {run: x, env: \"${{ fromJSON('{}') }}\"}\n", "env"},
		{"- {run: x, if: failure()}\n", "no condition but always()"},
		{"- {run: x, if: always()}\n      - run: y\n", "cleanup is its end"},
		{"- {run: x, shell: pwsh}\n", "shell is bash, not pwsh"},
		{"- {run: x, continue-on-error: \"${{ true }}\"}\n", "continue-on-error has an expression"},
		{"- {run: x, timeout-minutes: \"${{ 1 }}\"}\n", "timeout-minutes is no number"},
		{"- run: x\n    strategy: {matrix: {a: [1]}}\n", "no strategy"},
		{"- run: x\n    container: alpine\n", "no container"},
		{"- run: x\n    services: {a: {image: b}}\n", "no services"},
		{"- run: x\n    if: github.ref == 'x'\n", "no a job's condition"},
		{"- run: x\n    outputs: {a: b}\n", "no outputs"},
		{"- runn: x\n", "Unexpected value 'runn'"},
	} {
		yaml := "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      " + c.steps
		w, err := hearth.ParseWorkflow(yaml)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %+v %v", c.steps, w, err)
		}
	}
	for _, on := range []string{"windows-latest", "[self-hosted, macOS]", "${{ inputs.os }}", "{labels: [windows-2022]}"} {
		if _, err := hearth.ParseWorkflow("on: push\njobs:\n  a:\n    runs-on: " + on + "\n    steps: [{run: x}]\n"); err == nil ||
			!strings.Contains(err.Error(), "Linux") {
			t.Errorf("runs on %s: %v", on, err)
		}
	}
	for _, yaml := range []string{"", "{", "on: push\njobs: {}",
		"on: push\njobs: {a: {runs-on: x, steps: []}}",
		"on: push\njobs: {a: {runs-on: x, steps: [{uses: actions/checkout@v4}]}}"} {
		if w, err := hearth.ParseWorkflow(yaml); err == nil {
			t.Errorf("%q is %+v", yaml, w)
		}
	}
}

func TestFromWords(t *testing.T) {
	w, err := hearth.FromWords("run npm ci, then npm test with NODE_ENV=test, and always clean up with rm -rf dist")
	if err != nil {
		t.Fatal(err)
	}
	if len(w.Steps) != 2 || w.Steps[1].Run != "npm test" || w.Steps[1].Env["NODE_ENV"] != "test" || len(w.Cleanup) != 1 || w.Cleanup[0].Run != "rm -rf dist" {
		t.Errorf("%+v", w)
	}
	for _, words := range []string{"", "make everything nice", "test on node 18, 20 and 22 with npm test"} {
		if w, err := hearth.FromWords(words); err == nil {
			t.Errorf("%q is %+v", words, w)
		}
	}
}

// TestFromEvent reads what GitHub sends.
func TestFromEvent(t *testing.T) {
	read := func(file string) []byte {
		b, err := os.ReadFile(filepath.Join("internal", "dispatch", "testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		file, event string
		ref, sha    string
	}{
		{"push.json", "push", "refs/heads/", "40"},
		{"pull_request.opened.json", "pull_request", "refs/pull/", "40"},
		{"workflow_dispatch.json", "workflow_dispatch", "refs/heads/", ""},
	} {
		got, err := hearth.FromEvent(c.event, read(c.file))
		if err != nil {
			t.Errorf("%s: %v", c.file, err)
			continue
		}
		if !strings.HasPrefix(got.Ref, c.ref) || (len(got.SHA) == 40) != (c.sha == "40") || !strings.Contains(got.Repository, "/") ||
			got.Actor == "" || got.Event != c.event {
			t.Errorf("%s: %+v", c.file, got)
		}
	}
	if _, err := hearth.FromEvent("pull_request", read("push.json")); err == nil {
		t.Error("a push is taken for a pull request")
	}
	if _, err := hearth.FromEvent("ping", read("ping.json")); err == nil {
		t.Error("a ping is taken for something to run")
	}
	if _, err := hearth.FromEvent("push", []byte("{")); err == nil {
		t.Error("no JSON")
	}
	if _, err := hearth.FromEvent("push", read("push_tag.json")); err == nil || !strings.Contains(err.Error(), "deletes") {
		t.Errorf("a push that deletes: %v", err)
	}
}
