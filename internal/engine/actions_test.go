package engine

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/source"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// files writes a directory from a list of "-- name --" parts.
func files(t *testing.T, src string) string {
	t.Helper()
	dir := t.TempDir()
	for part := range strings.SplitSeq("\n"+strings.TrimLeft(src, "\n"), "\n-- ") {
		name, content, ok := strings.Cut(part, " --\n")
		if !ok {
			continue
		}
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// overrides makes directories stand in for remote repositories.
func (b *bench) overrides(m map[string]string) {
	b.job.Actions = action.NewResolver(action.Config{Dir: b.t.TempDir(), Offline: true, Overrides: m})
}

func needNode(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("NOT TESTED: JavaScript actions, since this host has no node in its PATH")
	}
}

func TestComposite(t *testing.T) {
	b := newBench(t, `
      - id: c
        name: compose
        uses: o/r/greet@v1
        env: {OUTER: from step}
        with:
          who: world
      - run: echo "${{ steps.c.outputs.greeting }} [$SET] ${{ steps.inner.outputs.x }}"
`)
	b.overrides(map[string]string{"o/r@v1": files(t, `
-- greet/action.yml --
inputs:
  who: {required: true}
  punct: {default: "${{ github.event_name }}!"}
outputs:
  greeting: {value: "${{ steps.inner.outputs.x }}"}
runs:
  using: composite
  steps:
    - id: inner
      shell: bash
      env: {W: "${{ inputs.who }}"}
      run: |
        echo "x=hello ${W}${{ inputs.punct }}" >> $GITHUB_OUTPUT
        echo "$OUTER $(basename $GITHUB_ACTION_PATH) $GITHUB_ACTION_REPOSITORY $GITHUB_ACTION_REF [$INPUT_WHO]"
        echo "SET=by the action" >> $GITHUB_ENV
    - shell: bash
      run: echo "$SET ${{ steps.inner.outcome }}"
    - if: failure()
      shell: bash
      run: echo no
    - uses: ./local
      if: env.SET == 'by the action'
-- local/action.yml --
runs: {using: composite, steps: [{run: "echo not this one", shell: bash}]}
`)})
	local := filepath.Join(b.job.Layout.Workspace, "local")
	os.MkdirAll(local, 0o755)
	os.WriteFile(filepath.Join(local, "action.yml"), []byte("runs: {using: composite, steps: [{run: 'echo local one', shell: sh}]}\n"), 0o644)
	res := b.run()
	b.wantSteps(res, "1 compose success", "2 Run echo \"hello worldpush! [$SET] \" success")
	b.wantOutput("from step greet o/r v1 []\nby the action success\nlocal one\nhello worldpush! [by the action] \n")
	if !slices.ContainsFunc(b.all(), func(r ci.Record) bool {
		return r.Type == ci.StepFinished && r.Step == 1 && r.Outputs["greeting"] == "hello worldpush!"
	}) {
		t.Error("the record has no outputs")
	}
}

func TestCompositeFailure(t *testing.T) {
	b := newBench(t, `
      - id: c
        uses: o/r@v1
        continue-on-error: true
      - run: echo ${{ steps.c.outcome }}
`)
	b.overrides(map[string]string{"o/r": files(t, `
-- action.yml --
runs:
  using: composite
  steps:
    - {run: exit 1, shell: bash, continue-on-error: true}
    - {run: echo goes on, shell: bash}
    - {run: exit 2, shell: bash}
    - {run: echo no, shell: bash}
    - {run: echo cleanup, shell: bash, if: failure()}
`)})
	res := b.run()
	b.wantOutput("goes on\ncleanup\nfailure\n")
	if res.Conclusion != ci.Success || res.Steps[0].ExitCode != 2 {
		t.Errorf("%s %+v", res.Conclusion, res.Steps)
	}
}

// A timeout that cuts the action short is no success, even if the step inside that
// it met was allowed to fail.
func TestCompositeTimeout(t *testing.T) {
	b := newBench(t, `
      - uses: o/r@v1
        timeout-minutes: 0.01
`)
	b.overrides(map[string]string{"o/r": files(t, `
-- action.yml --
runs:
  using: composite
  steps:
    - {run: exec sleep 60, shell: bash, continue-on-error: true}
    - {run: echo never, shell: bash}
`)})
	res := b.run()
	b.wantOutput("")
	b.wantSteps(res, "1 Run o/r@v1 timed_out")
	if res.Conclusion != ci.Failure {
		t.Errorf("the job concluded %s: %s", res.Conclusion, b.log())
	}
}

func TestCompositeCancel(t *testing.T) {
	b := newBench(t, `
      - uses: o/r@v1
`)
	b.overrides(map[string]string{"o/r": files(t, `
-- action.yml --
runs:
  using: composite
  steps:
    - {run: "echo ready; sleep 60", shell: bash}
    - {run: echo no, shell: bash}
    - {run: echo cleanup, shell: bash, if: always()}
`)})
	ctx, cancel := context.WithCancel(t.Context())
	b.watch = func(r ci.Record) {
		if r.Text == "ready" && r.Stream == "stdout" {
			cancel()
		}
	}
	res, err := Run(ctx, b.job)
	if err != nil {
		t.Fatal(err)
	}
	b.wantOutput("ready\ncleanup\n")
	if res.Conclusion != ci.Cancelled || res.Steps[0].Conclusion != ci.Cancelled {
		t.Errorf("%s\n%s", res.Conclusion, steps(res))
	}
}

func TestJavaScript(t *testing.T) {
	needNode(t)
	b := newBench(t, `
      - id: js
        uses: o/js@v1
        with: {some name: value, unknown: x}
        env: {MINE: step}
      - uses: o/other@v1
      - run: echo "got ${{ steps.js.outputs.out }}"; exit 1
`)
	b.overrides(map[string]string{"o/js": files(t, `
-- action.yml --
inputs: {some name: {}, with default: {default: d}}
runs: {using: node20, pre: pre.js, main: main.js, post: post.js}
-- pre.js --
console.log('pre', process.env['INPUT_SOME_NAME']);
require('fs').appendFileSync(process.env.GITHUB_STATE, 'p=from pre\n');
-- main.js --
const e = process.env;
console.log('main', e['INPUT_SOME_NAME'], e['INPUT_WITH_DEFAULT'], e.STATE_p, e.MINE, e.ACTIONS_RUNTIME_TOKEN);
require('fs').appendFileSync(e.GITHUB_OUTPUT, 'out<<E\n1\nE\n');
require('fs').appendFileSync(e.GITHUB_STATE, 's=saved\n');
-- post.js --
console.log('post js', process.env.STATE_s, process.env.STATE_p, process.env.MINE, process.env['INPUT_SOME_NAME']);
`), "o/other": files(t, `
-- action.yml --
runs: {using: node16, main: main.js, post: post.js, post-if: failure()}
-- main.js --
;
-- post.js --
console.log('post other');
`)})
	res := b.run()
	b.wantOutput("pre value\nmain value d from pre step undefined\ngot 1\npost other\npost js saved from pre step value\n")
	b.wantSteps(res, "1 Run o/js@v1 success", "2 Run o/other@v1 success", "3 Run echo \"got 1\"; exit 1 failure",
		"4 Pre Run o/js@v1 success", "5 Post Run o/other@v1 success", "6 Post Run o/js@v1 success")
	for _, want := range []string{"Unexpected input(s) 'unknown', valid inputs are ['some name', 'with default']", "runs on Node.js 16, which is gone"} {
		if !strings.Contains(b.log(), want) {
			t.Errorf("no word of %q", want)
		}
	}
	if res.Conclusion != ci.Failure {
		t.Error(res.Conclusion)
	}
}

// An action in a directory of its repository runs what lies beside it.
func TestActionBesideItsProgram(t *testing.T) {
	needNode(t)
	b := newBench(t, `
      - uses: o/many/init@v1
      - run: |
          mkdir -p own/dist own/act
          echo 'console.log("own")' > own/dist/x.js
          echo 'runs: {using: node20, main: ../dist/x.js}' > own/act/action.yml
      - uses: ./own/act
`)
	b.overrides(map[string]string{"o/many": files(t, `
-- init/action.yml --
runs: {using: node20, pre: ../lib/pre.js, main: ../lib/init.js, post: ../lib/post.js}
-- lib/pre.js --
console.log('pre', require('../lib/name'));
-- lib/init.js --
console.log('init', require('./name'));
-- lib/post.js --
console.log('post', require('./name'));
-- lib/name.js --
module.exports = 'many';
`)})
	if ds := Check(t.Context(), b.job.Run, CheckOptions{Actions: b.job.Actions}); len(ds) > 0 {
		t.Error(ds)
	}
	res := b.run()
	b.wantOutput("pre many\ninit many\nown\npost many\n")
	if res.Conclusion != ci.Success {
		t.Errorf("%s\n%s", res.Conclusion, steps(res))
	}
}

func TestPostFailureFailsTheJob(t *testing.T) {
	needNode(t)
	b := newBench(t, "      - uses: o/js@v1\n")
	b.overrides(map[string]string{"o/js": files(t, `
-- action.yml --
runs: {using: node24, main: main.js, post: post.js}
-- main.js --
;
-- post.js --
process.exit(3)
`)})
	if res := b.run(); res.Conclusion != ci.Failure || res.Steps[1].ExitCode != 3 {
		t.Errorf("%s\n%s", res.Conclusion, steps(res))
	}
}

func TestMissingActions(t *testing.T) {
	b := newBench(t, `
      - uses: ./nothing
        continue-on-error: true
      - uses: o/never@v1
        continue-on-error: true
      - uses: docker://alpine
        continue-on-error: true
      - uses: actions/cache@v4
        continue-on-error: true
      - uses: o/broken@v1
`)
	b.overrides(map[string]string{"o/broken": files(t, "-- action.yml --\nruns: {using: cobol, main: x}\n")})
	res := b.run()
	for _, s := range res.Steps {
		if s.Outcome != ci.Failure {
			t.Errorf("%+v", s)
		}
	}
	for _, want := range []string{"Did you forget to run actions/checkout", "o/never@v1", "has no container engine that answers",
		"needs the artifact and cache service",
		"'using: cobol' is not supported"} {
		if !strings.Contains(b.log(), want) {
			t.Errorf("no word of %q in\n%s", want, b.log())
		}
	}
}

// repository is a git repository of a test, and its source.
func repository(t *testing.T) (*source.Dir, func(args ...string) string) {
	t.Helper()
	dir := files(t, "-- main.txt --\none\n-- act/action.yml --\nruns: {using: composite, steps: [{run: 'echo at ${{ github.action_path }}', shell: bash}]}\n")
	run := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@x", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@x")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("init", "-q", "-b", "main")
	run("add", ".")
	run("commit", "-q", "-m", "first")
	run("tag", "v1")
	os.WriteFile(filepath.Join(dir, "main.txt"), []byte("two\n"), 0o644)
	run("commit", "-q", "-am", "second")
	return &source.Dir{Root: dir, Repository: "o/r", Branch: "main"}, run
}

func TestCheckoutStep(t *testing.T) {
	b := newBench(t, `
      - run: touch leftover; git rev-parse HEAD 2>/dev/null || echo empty
      - id: co
        uses: actions/checkout@v4
      - run: |
          git rev-parse HEAD; git log --oneline | wc -l; git status --porcelain; cat main.txt; ls
      - uses: actions/checkout@v4
        with: {path: old, ref: v1, fetch-depth: 0}
      - run: cat old/main.txt; git -C old log --format=%s
      - run: echo ${{ steps.co.outputs.commit }} ${{ steps.co.outputs.ref }}
      - uses: $/act
      - uses: actions/checkout@v4
        with: {ref: nope}
        continue-on-error: true
      - uses: actions/checkout@v4
        with: {ref: v1, path: ../r/../outside}
        continue-on-error: true
      - uses: actions/checkout@v4
        with: {path: ../../outside}
        continue-on-error: true
`)
	src, git := repository(t)
	head := git("rev-parse", "HEAD")
	b.job.Source = src
	res := b.run()
	if res.Conclusion != ci.Success {
		t.Errorf("%s\n%s", steps(res), b.log())
	}
	b.wantOutput("empty\n" + head + "\n1\ntwo\nact\nmain.txt\n" + "one\nfirst\n" + head + " refs/heads/main\n" + "at " + b.job.Layout.Actions + "/_own/act\n")
	for _, s := range res.Steps[7:] {
		if s.Outcome != ci.Failure {
			t.Errorf("%+v", s)
		}
	}
}

func TestLostGuestInAction(t *testing.T) {
	b := newBench(t, "      - uses: actions/checkout@v4\n      - run: echo no\n")
	src, _ := repository(t)
	b.job.Source = sourceFunc(func(ctx context.Context, req action.CheckoutRequest, w io.Writer) (string, error) {
		go b.stop()
		return src.Checkout(ctx, req, endless{w})
	})
	res, err := Run(t.Context(), b.job)
	if err == nil || res.Conclusion.Green() || !res.Steps[0].Infrastructure {
		t.Errorf("%v %+v", err, res)
	}
}

type sourceFunc func(ctx context.Context, req action.CheckoutRequest, w io.Writer) (string, error)

func (f sourceFunc) Checkout(ctx context.Context, req action.CheckoutRequest, w io.Writer) (string, error) {
	return f(ctx, req, w)
}

// endless writes everything again and again, until nobody takes it.
type endless struct{ w io.Writer }

func (e endless) Write(p []byte) (int, error) {
	for {
		if _, err := e.w.Write(p); err != nil {
			return 0, err
		}
	}
}

// noEngine is a host whose images have no container engine.
func noEngine([]string) string { return "the image has none" }

func TestCheck(t *testing.T) {
	b := newBench(t, `
jobs:
  one:
    runs-on: [self-hosted, windows-latest]
    container: node:20
    services:
      db:
        image: postgres
      none:
        image: ${{ vars.NOTHING }}
    steps:
      - uses: actions/checkout@v4
        with:
          github-server-url: https://example.com
      - uses: o/never@v1
      - uses: docker://alpine
      - uses: o/docker@v1
      - uses: o/nested@v1
      - uses: actions/upload-artifact@v4
      - run: echo x
        shell: pwsh
      - run: echo x
        shell: cmd
      - uses: ./bad
      - parallel:
          - uses: o/never@v2
  fine:
    runs-on: ubuntu-latest
    strategy:
      matrix:
        image: ['']
    container: ${{ matrix.image }}
    steps:
      - uses: o/good@v1
      - uses: actions/checkout@v4
      - run: echo x
        shell: bash -x {0}
`)
	b.overrides(map[string]string{
		"o/docker": files(t, "-- action.yml --\nruns: {using: docker, image: Dockerfile}\n"),
		"o/nested": files(t, "-- action.yml --\nruns: {using: composite, steps: [{uses: o/docker@v1}, {uses: o/nested@v1}]}\n"),
		"o/good":   files(t, "-- action.yml --\nruns: {using: composite, steps: [{run: x, shell: bash}]}\n"),
	})
	diags := Check(t.Context(), b.job.Run, CheckOptions{
		Actions: b.job.Actions, Shells: []string{"bash", "sh"}, NoEngine: noEngine,
		Files: func(_ context.Context, name string, _ int64) ([]byte, error) {
			if name == "bad/action.yml" {
				return []byte("runs: {using: composite, steps: [{run: x}]}\n"), nil
			}
			return nil, os.ErrNotExist
		},
	})
	var got []string
	for _, d := range diags {
		got = append(got, fmt.Sprintf("%s:%s %s", d.File, d.Pos, d.Message))
		if d.Severity != workflow.Error {
			t.Errorf("%s is only advice", d)
		}
	}
	all := strings.Join(got, "\n")
	for _, want := range []string{
		"ci.yml:5:14 Job 'one' runs on 'windows-latest'",
		"ci.yml:6:16 Job 'one': container: needs a container engine: the image has none",
		"ci.yml:8:7 Job 'one': service 'db' needs a container engine",
		"ci.yml:15:30 actions/checkout: github-server-url https://example.com is another server",
		"ci.yml:16:15 Unable to resolve action `o/never@v1`",
		"ci.yml:17:15 uses: docker://alpine needs a container engine",
		"ci.yml:18:15 o/docker@v1: this Docker action needs a container engine",
		"ci.yml:19:15 o/nested@v1: o/docker@v1: this Docker action",
		"ci.yml:19:15 o/nested@v1: o/nested@v1 uses itself",
		"ci.yml:20:15 actions/upload-artifact@v4 needs the artifact and cache service",
		"ci.yml:22:16 The shell 'pwsh' is not in this machine's image",
		"ci.yml:24:16 The shell 'cmd' is only on Windows",
		"bad/action.yml:1:34 Required property is missing: shell",
		"ci.yml:27:19 Unable to resolve action `o/never@v2`",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no word of %q", want)
		}
	}
	if len(got) != 14 || t.Failed() {
		t.Errorf("%d diagnostics:\n%s", len(got), all)
	}
}

// Whatever happens in a job, nothing of the engine's goes on after it.
func TestNothingStays(t *testing.T) {
	b := newBench(t, `
      - background: true
        run: sleep 60
      - run: echo ${{ hashFiles('**') }}
      - uses: actions/checkout@v4
      - run: echo ready; sleep 60
`)
	src, _ := repository(t)
	b.job.Source = src
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	b.watch = func(r ci.Record) {
		if r.Text == "ready" && r.Stream == "stdout" {
			cancel()
		}
	}
	if _, err := Run(ctx, b.job); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if runtime.NumGoroutine() <= before+1 { // the guest may still be emptying a pipe
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	stacks := make([]byte, 1<<20)
	t.Errorf("%d goroutines before, %d after\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
}

// A step that is not sure to be reached on a green run refuses nothing: it fails by
// its name if it is.
func TestCheckAsksOnlyWhatIsReached(t *testing.T) {
	b := newBench(t, `
jobs:
  test:
    runs-on: x
    strategy: {matrix: {os: [linux, windows]}}
    steps:
      - {if: "runner.os == 'Windows'", uses: "docker://one"}
      - {if: "matrix.os == 'windows'", uses: "docker://two"}
      - {if: "failure()", uses: "docker://three"}
      - {if: "cancelled() || github.event_name == 'release'", uses: "docker://four"}
      - {if: "steps.x.outputs.y == 'z'", uses: "docker://five"}
      - {if: "always() && github.token", uses: "docker://six"}
      - {uses: "docker://seven", continue-on-error: true}
      - {if: "always()", uses: "docker://eight"}
      - {if: "inputs.deep", uses: o/outer@v1}
      - {if: "github.repository == 'o/r'", uses: o/outer@v1}
      - {if: "failure()", uses: o/never@v1}
`)
	b.overrides(map[string]string{"o/outer": files(t,
		"-- action.yml --\nruns:\n  using: composite\n  steps:\n    - {if: \"runner.os == 'Windows'\", uses: 'docker://no'}\n    - {if: '!inputs.deep', uses: 'docker://mine'}\n    - {uses: 'docker://nine'}\n")})
	noted := map[string]bool{}
	Check(t.Context(), b.job.Run, CheckOptions{Actions: b.job.Actions, NoEngine: noEngine, Note: func(f Finding) { noted[f.Message] = f.Sure }})
	for image, sure := range map[string]bool{"three": false, "five": false, "seven": false, "eight": true, "o/outer@v1: uses: docker://mine": false} {
		if !strings.HasPrefix(image, "o/") {
			image = "uses: docker://" + image
		}
		if got, ok := noted[image+" needs a container engine: the image has none"]; !ok || got != sure {
			t.Errorf("of %s is said: %v, sure %v", image, ok, got)
		}
	}
	for _, never := range []string{"one", "no"} {
		for message := range noted {
			if strings.Contains(message, "docker://"+never+" ") {
				t.Errorf("%s is on no way through the job", message)
			}
		}
	}
	repository := b.job.Run.GitHub.Get("repository").ToString()
	for _, j := range b.job.Run.Jobs {
		var got []string
		for _, d := range j.Refused {
			got = append(got, d.Message)
		}
		want := "uses: docker://eight needs a container engine: the image has none"
		if os := j.Matrix.Get("os").AsString(); os == "windows" {
			want = strings.ReplaceAll(want, "eight", "two") + "\n" + want
		}
		if repository == "o/r" {
			want += "\no/outer@v1: uses: docker://nine needs a container engine: the image has none"
		}
		if all := strings.Join(got, "\n"); all != want {
			t.Errorf("%s:\n%s\nwant\n%s", j.Key, all, want)
		}
	}
}
