package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// bench is a job with everything around it: a guest server on this host, in a
// directory of the test's, and a sink that keeps the records.
type bench struct {
	t    *testing.T
	dir  string
	job  Job
	stop func() // ends the guest, as a machine that dies does

	mu      sync.Mutex
	records []ci.Record
	watch   func(ci.Record)
}

// newBench plans the only job of a workflow. src are its steps, or whole jobs if
// it begins with "jobs:".
func newBench(t *testing.T, src string) *bench {
	t.Helper()
	src = strings.TrimLeft(src, "\n")
	if !strings.HasPrefix(src, "jobs:") && !strings.HasPrefix(src, "env:") && !strings.HasPrefix(src, "defaults:") {
		src = "jobs:\n  test:\n    runs-on: ubuntu-latest\n    steps:\n" + src
	}
	w, diags := workflow.Parse("ci.yml", []byte("on: push\nname: CI\n"+src), workflow.Options{})
	if workflow.Errors(diags) {
		t.Fatalf("workflow: %v\n%s", diags, src)
	}
	gh, err := expr.ParseJSON([]byte(`{"repository":"o/r","repository_owner":"o","sha":"0123456789012345678901234567890123456789","ref":"refs/heads/main","ref_name":"main","ref_type":"branch","event_name":"push","actor":"octo","workflow":"CI","event":{"after":"0123"}}`))
	if err != nil {
		t.Fatal(err)
	}
	run, diags := plan.Build(plan.Request{Workflow: w, GitHub: gh, Event: &workflow.Happening{Event: "push", Ref: "refs/heads/main"}})
	if workflow.Errors(diags) {
		t.Fatalf("plan: %v", diags)
	}
	b := &bench{t: t, dir: t.TempDir()}
	client, stop := serve(t)
	b.stop = stop
	b.job = Job{
		Run: run, Plan: run.Jobs[0], RunID: ci.NewID(), Guest: client,
		Layout: Layout{
			Workspace: filepath.Join(b.dir, "work/r/r"), Temp: filepath.Join(b.dir, "work/_temp"),
			Actions: filepath.Join(b.dir, "work/_actions"), ToolCache: filepath.Join(b.dir, "tools"),
			Tools: tools(t, b.dir),
		},
		Emit: ci.SinkFunc(func(r ci.Record) {
			b.mu.Lock()
			b.records = append(b.records, r)
			b.mu.Unlock()
			if b.watch != nil {
				b.watch(r)
			}
		}),
	}
	return b
}

// serve runs the agent on this host.
func serve(t *testing.T) (*guest.Client, func()) {
	t.Helper()
	host, agent := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		guest.Serve(ctx, agent, guest.Options{Sockets: map[string]string{}})
		agent.Close()
	}()
	client, err := guest.New(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(func() { client.Close(); host.Close(); stop() })
	return client, stop
}

// tools makes a tools directory with this host's node, if it has one.
func tools(t *testing.T, dir string) string {
	t.Helper()
	tools := filepath.Join(dir, "hearth")
	for _, n := range []string{"node20", "node24"} {
		bin := filepath.Join(tools, n, "bin")
		if err := os.MkdirAll(bin, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"/usr/bin/node", "/usr/local/bin/node"} {
			if _, err := os.Stat(p); err == nil {
				os.Symlink(p, filepath.Join(bin, "node"))
				break
			}
		}
	}
	return tools
}

func (b *bench) run() Result {
	b.t.Helper()
	res, err := Run(b.t.Context(), b.job)
	if err != nil {
		b.t.Fatalf("Run: %v\n%s", err, b.log())
	}
	return res
}

// all are the records so far.
func (b *bench) all() []ci.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.records)
}

// log is what the steps printed, system lines marked.
func (b *bench) log() string {
	var out strings.Builder
	for _, r := range b.all() {
		switch r.Type {
		case ci.LogLine:
			if r.Stream == "system" {
				out.WriteString("| ")
			}
			fmt.Fprintln(&out, r.Text)
		}
	}
	return out.String()
}

// output is what the steps themselves printed.
func (b *bench) output() string {
	var out strings.Builder
	for _, r := range b.all() {
		if r.Type == ci.LogLine && r.Stream != "system" {
			fmt.Fprintln(&out, r.Text)
		}
	}
	return out.String()
}

// steps are the steps in order of their number: name outcome/conclusion.
func steps(res Result) string {
	var out []string
	for _, s := range res.Steps {
		c := string(s.Conclusion)
		if s.Outcome != s.Conclusion {
			c = string(s.Outcome) + "/" + c
		}
		out = append(out, fmt.Sprintf("%d %s %s", s.Number, s.Name, c))
	}
	return strings.Join(out, "\n")
}

func (b *bench) wantSteps(res Result, want ...string) {
	b.t.Helper()
	if got := steps(res); got != strings.Join(want, "\n") {
		b.t.Errorf("steps:\n%s\nwant:\n%s\nlog:\n%s", got, strings.Join(want, "\n"), b.log())
	}
}

func (b *bench) wantOutput(want string) {
	b.t.Helper()
	if got := b.output(); got != want {
		b.t.Errorf("output:\n%q\nwant:\n%q\nlog:\n%s", got, want, b.log())
	}
}

func TestStepsInOrder(t *testing.T) {
	b := newBench(t, `
      - run: echo one
      - name: fails
        run: |
          echo two
          exit 3
      - run: echo not reached
      - if: failure()
        run: echo cleanup ${{ job.status }}
      - if: always()
        run: echo always ${{ steps.x.outcome }}
      - if: success()
        run: echo no
`)
	res := b.run()
	b.wantSteps(res, "1 Run echo one success", "2 fails failure", "3 Run echo not reached skipped",
		"4 Run echo cleanup failure success", "5 Run echo always  success", "6 Run echo no skipped")
	if res.Conclusion != ci.Failure {
		t.Errorf("conclusion %s", res.Conclusion)
	}
	b.wantOutput("one\ntwo\ncleanup failure\nalways\n")
	if res.Steps[1].ExitCode != 3 {
		t.Errorf("exit code %d", res.Steps[1].ExitCode)
	}
	// Every step has its finished record, every one that ran its started.
	count := map[ci.RecordType]int{}
	for _, r := range b.all() {
		count[r.Type]++
		if r.Type == ci.StepFinished && (r.ExitCode == nil || r.DurationMS == nil || !r.Conclusion.Valid() || !r.Outcome.Valid()) {
			t.Errorf("an incomplete record: %+v", r)
		}
	}
	if count[ci.StepFinished] != 6 || count[ci.StepStarted] != 4 || count[ci.JobStarted] != 1 || count[ci.JobFinished] != 1 {
		t.Error(count)
	}
}

func TestContinueOnError(t *testing.T) {
	b := newBench(t, `
      - id: flaky
        run: exit 1
        continue-on-error: true
      - run: echo ${{ steps.flaky.outcome }} ${{ steps.flaky.conclusion }} ${{ job.status }}
`)
	res := b.run()
	b.wantSteps(res, "1 Run exit 1 failure/success", "2 Run echo failure success success success")
	b.wantOutput("failure success success\n")
	if res.Conclusion != ci.Success {
		t.Errorf("conclusion %s", res.Conclusion)
	}
}

func TestEnvLayers(t *testing.T) {
	b := newBench(t, `
env:
  A: workflow
  B: workflow
  C: workflow
jobs:
  test:
    runs-on: x
    env:
      B: job
      C: job
      GITHUB_REPOSITORY: mine
    steps:
      - run: echo $A $B $C $GITHUB_REPOSITORY ${{ env.C }}
        env:
          C: step
          GITHUB_SHA: mine
      - run: |
          echo "C=later" >> $GITHUB_ENV
          echo "GITHUB_REF=mine" >> $GITHUB_ENV
          echo "NODE_OPTIONS=--require=x" >> $GITHUB_ENV
          printf 'M<<X\none\ntwo\nX\n' >> $GITHUB_ENV
          echo "$C"
          mkdir -p $RUNNER_TEMP/bin
          printf '#!/bin/sh\necho my tool' > $RUNNER_TEMP/bin/mytool
          chmod +x $RUNNER_TEMP/bin/mytool
          echo $RUNNER_TEMP/bin >> $GITHUB_PATH
      - run: |
          echo "$C ${{ env.C }} $GITHUB_REF [$NODE_OPTIONS] $M"
          mytool
`)
	res := b.run()
	if res.Conclusion != ci.Success {
		t.Errorf("%s\n%s", res.Conclusion, b.log())
	}
	b.wantOutput("workflow job step o/r step\njob\nlater later refs/heads/main [] one\ntwo\nmy tool\n")
	if !strings.Contains(b.log(), "Can't store NODE_OPTIONS output parameter using '$GITHUB_ENV' command.") {
		t.Error("NODE_OPTIONS was not refused by name")
	}
}

func TestDefaultVariables(t *testing.T) {
	b := newBench(t, `
      - id: me
        run: |
          echo "$CI $GITHUB_ACTIONS $GITHUB_ACTION $GITHUB_JOB $GITHUB_REF_NAME $GITHUB_EVENT_NAME $RUNNER_OS $RUNNER_ARCH"
          test "$PWD" = "$GITHUB_WORKSPACE"
          test -f "$GITHUB_EVENT_PATH" && cat $GITHUB_EVENT_PATH; echo
          test -d "$RUNNER_TEMP" && test -n "$RUNNER_TOOL_CACHE" && test "$GITHUB_SERVER_URL" = https://github.com
          echo ${{ github.job }} ${{ runner.os }} ${{ github.event.after }}
`)
	res := b.run()
	if res.Conclusion != ci.Success {
		t.Error(b.log())
	}
	b.wantOutput("true true me test main push Linux X64\n{\"after\":\"0123\"}\ntest Linux 0123\n")
}

func TestOutputs(t *testing.T) {
	b := newBench(t, `
jobs:
  test:
    runs-on: x
    outputs:
      plain: ${{ steps.a.outputs.plain }}
      leaked: ${{ steps.a.outputs.leaked }}
      empty: ${{ steps.a.outputs.nothing }}
    steps:
      - id: a
        run: |
          echo "plain=value=1" >> "$GITHUB_OUTPUT"
          echo "leaked=x-${{ secrets.KEY }}-x" >> "$GITHUB_OUTPUT"
          echo "::set-output name=old::still"
      - run: echo ${{ steps.a.outputs.plain }} ${{ steps.a.outputs.old }} ${{ steps.a.outputs.leaked }}
`)
	b.job.Secrets = map[string]string{"KEY": "hunter2hunter2"}
	res := b.run()
	b.wantOutput("##[warning]The `set-output` command is deprecated and will be disabled soon. Please upgrade to using Environment Files. For more information see: https://github.blog/changelog/2022-10-11-github-actions-deprecating-save-state-and-set-output-commands/\nvalue=1 still x-***-x\n")
	if len(res.Outputs) != 1 || res.Outputs["plain"] != "value=1" {
		t.Errorf("outputs %v", res.Outputs)
	}
	if !strings.Contains(b.log(), "Skip output 'leaked' since it may contain secret.") {
		t.Error(b.log())
	}
}

// Nothing that leaves the engine may hold a secret, wherever it was put.
func TestSecretsNeverLeave(t *testing.T) {
	const secret = "pä$$w0rd&more/stuff"
	b := newBench(t, `
jobs:
  test:
    runs-on: x
    environment:
      name: e
      url: https://x/${{ steps.a.outputs.o }}
    steps:
      - id: a
        name: using ${{ secrets.KEY }}
        env:
          S: ${{ secrets.KEY }}
        run: |
          echo "$S"; printf %s "$S" | base64; echo "$S" >&2
          echo "::error file=$S,title=$S::message $S"
          echo "::group::$S"
          echo "o=$S" >> $GITHUB_OUTPUT
          echo "# $S" >> $GITHUB_STEP_SUMMARY
          word=added
          echo "::add-mask::$word-later"
          echo "$word-later"
          printf 'pä$$w0'; sleep 0.05; printf 'rd&more/stuff\n'
          python3 -c 'import json,os,urllib.parse as u; print(json.dumps(os.environ["S"])); print(u.quote(os.environ["S"], safe=""))'
      - run: exit 1 # ${{ secrets.KEY }}
`)
	b.job.Secrets = map[string]string{"KEY": secret}
	res := b.run()
	all := fmt.Sprintf("%+v %+v", res, b.all())
	for _, s := range []string{secret, "added-later", "p\\u00e4$$w0rd", "p%C3%A4", "cMOkJCR3MHJkJm1vcmU"} {
		if strings.Contains(all, s) {
			t.Errorf("%q left the engine", s)
		}
	}
	if strings.Count(b.output(), "***") < 8 {
		t.Errorf("masked too much or too little:\n%s", b.log())
	}
}

func TestShells(t *testing.T) {
	b := newBench(t, `
defaults:
  run:
    shell: sh
jobs:
  test:
    runs-on: x
    defaults:
      run:
        working-directory: sub
    steps:
      - run: mkdir -p $GITHUB_WORKSPACE/sub
        working-directory: .
      - run: echo ${0##*.} $(basename $PWD)
      - run: false | true; echo kept
        shell: bash -e {0}
      - run: false | true; echo lost
        shell: bash
        continue-on-error: true
      - run: import sys; print(sys.version_info[0])
        shell: python
      - run: print "from perl\n";
        shell: perl {0}
      - run: echo x
        shell: nonsense
        continue-on-error: true
      - run: echo x
        shell: no-such-program {0}
        continue-on-error: true
      - run: echo x
        working-directory: missing
        continue-on-error: true
`)
	res := b.run()
	b.wantOutput("sh sub\nkept\n3\nfrom perl\n")
	if got := len(res.Steps); got != 9 || res.Conclusion != ci.Success {
		t.Errorf("%d steps, %s\n%s", got, res.Conclusion, b.log())
	}
	for _, want := range []string{"Invalid shell option.", "'no-such-program' with working directory", "/missing'"} {
		if !strings.Contains(b.log(), want) {
			t.Errorf("no word of %q in\n%s", want, b.log())
		}
	}
}

func TestHeader(t *testing.T) {
	b := newBench(t, `
      - run: |
          echo one
          echo two
        env: {A: b}
`)
	b.run()
	var got []string
	for _, r := range b.all() {
		if r.Type == ci.Group || r.Stream == "system" {
			got = append(got, r.Stream+" "+r.Text)
		}
	}
	want := []string{"start Run echo one", "system echo one", "system echo two", "system shell: bash -e {0}", "system env:", "system   A: b", "end "}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestStepTimeout(t *testing.T) {
	b := newBench(t, `
      - run: echo started; sleep 60
        timeout-minutes: 0.01
      - if: failure()
        run: echo cleaned
`)
	res := b.run()
	b.wantSteps(res, "1 Run echo started; sleep 60 timed_out", "2 Run echo cleaned success")
	if res.Conclusion != ci.Failure || !strings.Contains(b.log(), "has timed out after 0.01 minutes.") {
		t.Errorf("%s\n%s", res.Conclusion, b.log())
	}
}

func TestJobTimeout(t *testing.T) {
	b := newBench(t, `
      - run: sleep 60
      - run: echo no
      - if: always()
        run: echo cleaned ${{ job.status }}
`)
	b.job.Plan.TimeoutMinutes = 0.01
	res := b.run()
	b.wantSteps(res, "1 Run sleep 60 cancelled", "2 Run echo no skipped", "3 Run echo cleaned cancelled success")
	b.wantOutput("cleaned cancelled\n")
	if res.Conclusion != ci.TimedOut || !strings.Contains(res.Reason, "maximum execution time") {
		t.Errorf("%s %s", res.Conclusion, res.Reason)
	}
}

func TestCancel(t *testing.T) {
	b := newBench(t, `
      - run: |
          sleep 60 & p=$!
          trap 'kill $p 2>/dev/null || :; echo got INT; exit 1' INT
          echo ready; wait
      - run: echo no
      - if: cancelled()
        run: echo cleaned
      - if: failure()
        run: echo no
`)
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
	b.wantOutput("ready\ngot INT\ncleaned\n")
	if res.Conclusion != ci.Cancelled || res.Steps[0].Conclusion != ci.Cancelled {
		t.Errorf("%s\n%s", res.Conclusion, steps(res))
	}
}

// A step whose condition holds goes on when the job is cancelled, until the grace
// is over.
func TestCancelGraceEnds(t *testing.T) {
	b := newBench(t, `
      - if: always()
        run: echo ready; sleep 60
      - if: always()
        run: echo not any more
`)
	b.job.Plan.CancelTimeoutMinutes = 0.005
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
	if res.Conclusion != ci.Cancelled || res.Steps[1].Conclusion == ci.Success {
		t.Errorf("%s\n%s", steps(res), b.log())
	}
}

func TestLostGuest(t *testing.T) {
	b := newBench(t, `
      - run: echo ready; sleep 60
      - if: always()
        run: echo no
`)
	b.watch = func(r ci.Record) {
		if r.Text == "ready" && r.Stream == "stdout" {
			go b.stop()
		}
	}
	res, err := Run(t.Context(), b.job)
	if err == nil {
		t.Fatal("a lost machine is no error")
	}
	b.wantSteps(res, "1 Run echo ready; sleep 60 failure", "2 Run echo no skipped")
	if res.Conclusion.Green() || !res.Steps[0].Infrastructure {
		t.Errorf("%+v", res)
	}
	last := b.all()[len(b.all())-1]
	if last.Type != ci.JobFinished || !last.Infrastructure || last.Conclusion != ci.Failure {
		t.Errorf("%+v", last)
	}
}

func TestOutputAsItComes(t *testing.T) {
	b := newBench(t, `
      - run: printf 'bad \xff\xfe bytes\nno newline at the end'
      - run: printf 'a\r\nb\r\n\n c\n'
      - run: printf 'at  1%%\rat  2%%\rat  3%%\rat 100%%, done\nnext\n'
      - run: touch "$(printf 'a name\nwith a line end')"; ls
`)
	b.run()
	b.wantOutput("bad \ufffd\ufffd bytes\nno newline at the end\n" + "a\nb\n\n c\n" + "at  1%\nat 100%, done\nnext\n" + "a name\nwith a line end\n")
}

func TestHugeLine(t *testing.T) {
	b := newBench(t, `
      - run: head -c 100000000 /dev/zero | tr '\0' 'x'; echo end of it; echo next
`)
	b.job.Secrets = map[string]string{"S": strings.Repeat("x", 50) + "y"}
	b.run()
	total, longest := 0, 0
	for _, r := range b.all() {
		if r.Type == ci.LogLine && r.Stream == "stdout" {
			total += len(r.Text)
			longest = max(longest, len(r.Text))
		}
	}
	if longest > maxText || total > maxLine+maxText {
		t.Errorf("%d bytes, the longest record %d", total, longest)
	}
	if !strings.Contains(b.log(), "bytes that are not shown") || !strings.HasSuffix(b.output(), "\nnext\n") {
		t.Errorf("no word of what is missing: %.200s", b.output()[max(0, len(b.output())-200):])
	}
}

func TestSlowSinkStopsTheStep(t *testing.T) {
	b := newBench(t, `
      - run: yes | head -n 300000; touch finished
`)
	hold := make(chan struct{})
	seen := make(chan struct{})
	once := sync.OnceFunc(func() { close(seen) })
	n := 0
	b.watch = func(r ci.Record) {
		if r.Stream == "stdout" {
			if n++; n == 1000 {
				once()
				<-hold
			}
		}
	}
	done := make(chan Result)
	go func() { res, _ := Run(t.Context(), b.job); done <- res }()
	select {
	case <-seen:
	case res := <-done:
		t.Fatalf("ended early: %+v\n%s", res, b.log())
	}
	// The sink takes nothing: the step must not get through its output.
	time.Sleep(300 * time.Millisecond)
	if _, err := os.Stat(filepath.Join(b.job.Layout.Workspace, "finished")); err == nil {
		t.Error("the step ended though nobody took its output")
	}
	close(hold)
	if res := <-done; res.Conclusion != ci.Success {
		t.Error(res.Conclusion)
	}
	if n != 300000 {
		t.Errorf("%d lines", n)
	}
}

func TestHashFiles(t *testing.T) {
	b := newBench(t, `
      - run: mkdir -p a/b && echo x > a/b/go.sum && echo y > a/other && ln -s a link
      - run: echo ${{ hashFiles('**/go.sum') }} ${{ hashFiles('**/none') }}.
`)
	b.run()
	// sha256 of sha256("x\n")
	b.wantOutput("af783de711a03d4e784d3cd52d07738e879f8e3004e6bab584d4f5986f26ef1f .\n")
}

// Links, names that need care, and many files in two exchanges.
func TestHashFilesOfLinks(t *testing.T) {
	if _, err := exec.LookPath("xxd"); err != nil {
		t.Skip("NOT TESTED: sums of files, since this host has no xxd")
	}
	b := newBench(t, `
      - run: |
          mkdir -p a real && cd a && printf x > x && cd .. && cp a/x "$(printf 'a/new\nline\\')" && ln -s x a/link && printf y > real/y
          sum() { sha256sum < "$1" | cut -c1-64 | xxd -r -p; }
          (sum a/x; sum a/x; sum a/x) | sha256sum
      - run: echo "${{ hashFiles('a') }}  -"
      - run: ln -s ../real a/dir; (cd a; cat x x x | :; sum() { sha256sum < "$1" | cut -c1-64 | xxd -r -p; }; (sum dir/y; sum x; sum x; sum x) | sha256sum)
      - run: echo "${{ hashFiles('--follow-symbolic-links', 'a/**') }}  -"
      - run: ln -s nowhere a/broken; ln -s .. a/up
      - id: follows
        run: echo "${{ hashFiles('--follow-symbolic-links', 'a/dir/**') }}"
      - id: fails
        continue-on-error: true
        run: echo no ${{ hashFiles('a/**') }}
      - run: for i in $(seq 2000); do echo $i > a/f$i; done; rm a/broken
      - run: echo many ${{ hashFiles('a/f*') != '' }}
`)
	execs := 0
	b.job.Guest = counted{b.job.Guest, func(argv []string) {
		if argv[0] == "/bin/sh" {
			execs++
		}
	}}
	b.run()
	lines := strings.Split(strings.TrimSpace(b.output()), "\n")
	if len(lines) != 6 || lines[0] != lines[1] || lines[2] != lines[3] || lines[5] != "many true" {
		t.Error(b.log())
	}
	if !strings.Contains(b.log(), "a/broken is a symbolic link that leads nowhere") {
		t.Error(b.log())
	}
	if execs > 20 { // a call has two, and names are evaluated as well
		t.Errorf("%d processes", execs)
	}
}

// counted tells of the commands that a guest is given.
type counted struct {
	Guest
	tell func(argv []string)
}

func (c counted) Exec(ctx context.Context, cmd guest.Cmd) (guest.Exit, error) {
	c.tell(cmd.Argv)
	return c.Guest.Exec(ctx, cmd)
}

func TestProblemMatcher(t *testing.T) {
	b := newBench(t, `
      - run: |
          echo '{"problemMatcher":[{"owner":"go","pattern":[{"regexp":"^(.+\\.go):(\\d+): (.*)$","file":1,"line":2,"message":3}]}]}' > m.json
          echo "::add-matcher::m.json"
          mkdir a && touch a/b.go a/c.go
          echo "$PWD/a/b.go:7: it is wrong"
      - run: |
          echo "a/c.go:8: in another step"
          echo "::remove-matcher owner=go::"
          echo "a/c.go:9: no longer"
`)
	b.run()
	var got []string
	for _, r := range b.all() {
		if r.Type == ci.AnnotationRec {
			got = append(got, fmt.Sprintf("%d %s %s:%d %s", r.Step, r.Level, r.File, r.Line, r.Message))
		}
	}
	want := []string{"1 error a/b.go:7 it is wrong", "2 error a/c.go:8 in another step"}
	if !slices.Equal(got, want) {
		t.Errorf("%q\n%s", got, b.log())
	}
}

func TestBadCommandFileFailsTheStep(t *testing.T) {
	b := newBench(t, `
      - run: echo 'A<<EOF' >> $GITHUB_ENV
      - if: failure()
        run: echo seen
`)
	res := b.run()
	b.wantSteps(res, "1 Run echo 'A<<EOF' >> $GITHUB_ENV failure", "2 Run echo seen success")
	if !strings.Contains(b.log(), "Unable to process file command 'env' successfully.") ||
		!strings.Contains(b.log(), "Invalid value. Matching delimiter not found 'EOF'") {
		t.Error(b.log())
	}
}

func TestBrokenExpressions(t *testing.T) {
	b := newBench(t, `
      - run: echo ${{ fromJSON('{') }}
        continue-on-error: true
      - if: fromJSON('{')
        run: echo no
      - run: echo no
`)
	res := b.run()
	if res.Steps[0].Outcome != ci.Failure || res.Steps[1].Outcome != ci.Failure || res.Steps[2].Outcome != ci.Skipped {
		t.Errorf("%s\n%s", steps(res), b.log())
	}
}

func TestBackground(t *testing.T) {
	b := newBench(t, `
      - id: bg
        background: true
        run: |
          while [ ! -e go ]; do sleep 0.02; done
          echo "x=from background" >> $GITHUB_OUTPUT
          echo "E=set" >> $GITHUB_ENV
      - run: echo "before [${{ steps.bg.outputs.x }}] [$E]"; touch go
      - wait: [bg]
      - run: echo "after [${{ steps.bg.outputs.x }}] [$E]"
      - id: forever
        background: true
        run: sleep 60
      - cancel: forever
      - id: bad
        background: true
        run: exit 1
      - wait-all:
        continue-on-error: true
      - parallel:
          - run: while [ ! -e a ]; do sleep 0.02; done; touch b
          - run: touch a; while [ ! -e b ]; do sleep 0.02; done
`)
	res := b.run()
	b.wantOutput("before [] []\nafter [from background] [set]\n")
	if res.Conclusion != ci.Success || len(res.Steps) != 10 {
		t.Errorf("%s\n%s\n%s", res.Conclusion, steps(res), b.log())
	}
}

func TestUnwaitedBackgroundFailureFailsTheJob(t *testing.T) {
	b := newBench(t, `
      - background: true
        run: exit 1
      - run: echo ok
`)
	if res := b.run(); res.Conclusion != ci.Failure {
		t.Errorf("%s\n%s", res.Conclusion, steps(res))
	}
}

type retrier struct {
	labels        []string
	left          int
	before, after error
}

func (r *retrier) BeforeStep(_ context.Context, s StepInfo) error {
	r.labels = append(r.labels, fmt.Sprint(s.Name, " ", s.Attempt))
	return r.before
}

func (r *retrier) AfterStep(_ context.Context, s StepInfo, res StepResult) (*Retry, error) {
	if r.left--; r.left < 0 {
		return nil, r.after
	}
	return &Retry{Reason: "it looks like a flake"}, nil
}

func TestRetry(t *testing.T) {
	b := newBench(t, `
      - id: s
        run: |
          echo "try=$(ls | wc -l)" >> $GITHUB_OUTPUT
          touch "$(ls | wc -l)"
          [ -e 2 ]
      - run: echo ${{ steps.s.outputs.try }}
`)
	h := &retrier{left: 2}
	b.job.Hooks = h
	res := b.run()
	b.wantOutput("2\n")
	if res.Conclusion != ci.Success || res.Steps[0].Attempts != 3 || len(h.labels) != 4 {
		t.Errorf("%+v %v\n%s", res, h.labels, b.log())
	}
}

// Hooks that cannot do what they are for lose the job: the step is not run, nothing
// after it is, and it is not the workflow's failure.
func TestHooksThatFail(t *testing.T) {
	for _, h := range []*retrier{{before: errors.New("no room")}, {after: errors.New("no room")}} {
		b := newBench(t, "\n      - {run: echo one, continue-on-error: true}\n      - run: echo two\n")
		b.job.Hooks = h
		res, err := Run(t.Context(), b.job)
		if err == nil || !strings.Contains(err.Error(), "step 1 (Run echo one): no room") || res.Conclusion != ci.Failure {
			t.Errorf("%v, %+v", err, res)
		}
		if s := res.Steps; len(s) != 2 || !s[0].Infrastructure || s[0].Conclusion != ci.Failure || s[1].Conclusion != ci.Skipped ||
			strings.Contains(b.log(), "\none\n") != (h.after != nil) {
			t.Errorf("%+v\n%s", s, b.log())
		}
	}
}

// Whoever keeps the job's time says so by the cause.
func TestTimeKeptByTheCaller(t *testing.T) {
	b := newBench(t, "\n      - run: sleep 60\n")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(200*time.Millisecond, func() { cancel(&TimeoutError{"The time is over"}) })
	res, err := Run(ctx, b.job)
	if err != nil || res.Conclusion != ci.TimedOut || res.Reason != "The time is over" || !slices.ContainsFunc(b.records, func(r ci.Record) bool {
		return r.Type == ci.LogLine && r.Level == "error" && r.Text == "##[error]The time is over"
	}) {
		t.Errorf("%v, %+v\n%s", err, res, b.log())
	}
}

func TestSummary(t *testing.T) {
	b := newBench(t, `
      - run: echo '# fine' >> $GITHUB_STEP_SUMMARY
      - run: head -c 2000000 /dev/zero >> $GITHUB_STEP_SUMMARY
`)
	res := b.run()
	if res.Summary[1] != "# fine\n" || res.Summary[2] != "" ||
		!strings.Contains(b.log(), "$GITHUB_STEP_SUMMARY upload aborted, supports content up to a size of 1024k, got 1953k.") {
		t.Errorf("%v\n%s", res.Summary, b.log())
	}
}
