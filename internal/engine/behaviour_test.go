package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
)

// program is a JavaScript action, all of whose programs say who they are.
const program = `
const fs = require('fs')
const me = require('path').basename(__filename, '.js')
console.log(me, process.env.INPUT_NAME, 'state=' + (process.env.STATE_seen || ''), 'action=' + process.env.GITHUB_ACTION)
fs.appendFileSync(process.env.GITHUB_STATE, 'seen=' + (process.env.STATE_seen || '') + me + ' ' + process.env.INPUT_NAME + '\n')
`

func javascript(using string) string {
	return `
-- action.yml --
inputs: {name: {default: none}}
runs: {using: node20, main: main.js` + using + `}
-- pre.js --
` + program + `
-- main.js --
` + program + `
-- post.js --
` + program
}

// Pre programs of actions in composite ones run before the job's first step, and main
// and post see their state; posts run in the reverse order of their steps' beginnings,
// of which a pre is one.
func TestPreAndPostInComposites(t *testing.T) {
	needNode(t)
	b := newBench(t, `
      - run: echo first
      - uses: o/plain@v1
        with: {name: P}
      - id: outer
        uses: o/outer@v1
        with: {who: X}
      - if: false
        uses: o/both@v1
        with: {name: unused}
`)
	b.overrides(map[string]string{
		"o/plain": files(t, javascript(", post: post.js")),
		"o/both":  files(t, javascript(", pre: pre.js, post: post.js")),
		"o/outer": files(t, `
-- action.yml --
inputs: {who: {required: true}}
runs:
  using: composite
  steps:
    - uses: o/inner@v1
      with: {who: "${{ inputs.who }}1"}
    - uses: o/both@v1
      with: {name: "${{ inputs.who }}2"}
    - {run: 'echo run action=$GITHUB_ACTION ${{ github.action }}', shell: bash}
`),
		"o/inner": files(t, `
-- action.yml --
inputs: {who: {required: true}}
runs:
  using: composite
  steps:
    - uses: o/both@v1
      with: {name: "${{ inputs.who }}"}
`),
	})
	if res := b.run(); res.Conclusion != ci.Success {
		t.Error(b.log())
	}
	b.wantOutput(strings.TrimLeft(`
pre X1 state= action=outer
pre X2 state= action=outer
pre unused state= action=__o_both
first
main P state= action=__o_plain
main X1 state=pre X1 action=outer
main X2 state=pre X2 action=outer
run action=outer outer
post P state=main P action=__o_plain
post unused state=pre unused action=__o_both
post X2 state=pre X2main X2 action=outer
post X1 state=pre X1main X1 action=outer
`, "\n"))
}

// A condition that cannot be evaluated ends the composite action.
func TestCompositeConditionError(t *testing.T) {
	b := newBench(t, `
      - id: c
        uses: o/r@v1
        continue-on-error: true
      - run: echo ${{ steps.c.outcome }} [${{ steps.c.outputs.said }}]
`)
	b.overrides(map[string]string{"o/r": files(t, `
-- action.yml --
outputs: {said: {value: "${{ steps.one.outcome }} ${{ steps.bad.outcome }}"}}
runs:
  using: composite
  steps:
    - {id: one, run: echo one, shell: bash}
    - {id: bad, run: echo bad, shell: bash, if: "fromJSON('{')", continue-on-error: true}
    - {run: echo always, shell: bash, if: always()}
    - {run: echo failure, shell: bash, if: failure()}
`)})
	b.run()
	b.wantOutput("one\nfailure [success failure]\n")
}

// A JavaScript action says itself what is wrong; a script gets a word from the runner.
func TestExitCodeAnnotation(t *testing.T) {
	needNode(t)
	b := newBench(t, `
      - uses: o/r@v1
        continue-on-error: true
      - run: exit 4
`)
	b.overrides(map[string]string{"o/r": files(t, `
-- action.yml --
runs: {using: node20, main: main.js}
-- main.js --
console.log('::error::it went wrong'); process.exit(3)
`)})
	res := b.run()
	var said []string
	for _, r := range b.all() {
		if r.Type == ci.AnnotationRec {
			said = append(said, r.Message)
		}
	}
	if want := []string{"it went wrong", "Process completed with exit code 4."}; !slices.Equal(said, want) {
		t.Errorf("annotations %q", said)
	}
	if res.Steps[0].ExitCode != 3 || res.Steps[0].Reason == "" {
		t.Errorf("%+v", res.Steps[0])
	}
}

func TestShellTemplates(t *testing.T) {
	b := newBench(t, `
      - shell: bash -c "a={{x}}; echo $a {{0}}; . {0}"
        run: echo ran
      - shell: bash -c "echo {y}; . {0}"
        run: echo no
`)
	if res := b.run(); res.Conclusion != ci.Failure {
		t.Error(b.log())
	}
	b.wantOutput("{x} {0}\nran\n")
	if !strings.Contains(b.log(), "braces of its own are written {{ and }}") {
		t.Error(b.log())
	}
}

// What a step started may write its output for some seconds more, commands included.
func TestOutputAfterTheStep(t *testing.T) {
	b := newBench(t, `
      - id: s
        run: |
          (sleep 1.5; echo "late"; echo "::set-output name=x::from behind"; echo "y=file" >> $GITHUB_OUTPUT) &
      - run: echo ${{ steps.s.outputs.x }} ${{ steps.s.outputs.y }}
`)
	b.run()
	if got := b.output(); !strings.Contains(got, "late\n") || !strings.HasSuffix(got, "from behind file\n") {
		t.Error(b.log())
	}
}

// Whatever holds a step's output: it is waited for five seconds and no longer.
func TestOutputHeldForEver(t *testing.T) {
	b := newBench(t, "      - run: sleep 60 & echo started\n")
	began := time.Now()
	b.run()
	if took := time.Since(began); took < 4*time.Second || took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// Annotations name places that there can be, and files that there are.
func TestAnnotationPlaces(t *testing.T) {
	b := newBench(t, `
      - run: |
          mkdir -p src; touch src/a.c
          echo '{"problemMatcher":[{"owner":"cc","pattern":[{"regexp":"^(.*):(\\d+): (.*)$","file":1,"line":2,"message":3}]},
            {"owner":"none","pattern":[{"regexp":"^(.*): (.*)$","message":1,"severity":2}]}]}' > m.json
          echo "::add-matcher::m.json"
          echo "src/../src/a.c:3: here"
          echo "src/b.c:4: not here"
          echo "/etc/passwd:5: elsewhere"
          echo "src:6: a directory"
          echo "$PWD/src/a.c:7: absolute"
          echo "::notice file=f,endLine=5::1"
          echo "::notice file=f,line=4,endLine=2::2"
          echo "::notice file=f,col=3::3"
          echo "::notice file=f,line=4,endLine=5,col=3,endColumn=4::4"
          echo "::notice file=f,line=4,endLine=4,endColumn=4::5"
          echo "::notice file=f,line=4,col=9,endColumn=4::6"
          echo "::notice file=f,line=4,col=9::7"
`)
	b.run()
	var got []string
	for _, r := range b.all() {
		if r.Type == ci.AnnotationRec {
			got = append(got, fmt.Sprintf("%s %s:%d-%d:%d-%d", r.Message, r.File, r.Line, r.EndLine, r.Column, r.EndCol))
		}
	}
	if want := []string{"here src/a.c:3-0:0-0", "not here :4-0:0-0", "elsewhere :5-0:0-0", "a directory :6-0:0-0", "absolute src/a.c:7-0:0-0",
		"1 f:5-5:0-0", "2 f:0-0:0-0", "3 f:0-0:0-0", "4 f:4-5:0-0", "5 f:4-4:4-4", "6 f:4-0:0-0", "7 f:4-0:9-0"}; !slices.Equal(got, want) {
		t.Errorf("%s\nwant\n%s\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), b.log())
	}
}

// Summaries and the environment's URL are told in records, whole and masked.
func TestSummaries(t *testing.T) {
	b := newBench(t, `
jobs:
  test:
    runs-on: x
    environment:
      name: production
      url: https://${{ steps.d.outputs.host }}.example.org/${{ steps.d.outputs.key }}
    steps:
      - id: d
        run: |
          echo "host=app" >> $GITHUB_OUTPUT
          echo "key=${{ secrets.KEY }}" >> $GITHUB_OUTPUT
          printf '# Title\n\n| a |\n|---|\n' >> $GITHUB_STEP_SUMMARY
          echo "${{ secrets.KEY }}" >> $GITHUB_STEP_SUMMARY
      - run: head -c 1048576 /dev/zero | tr '\0' x > $GITHUB_STEP_SUMMARY
      - run: head -c 1048577 /dev/zero | tr '\0' x > $GITHUB_STEP_SUMMARY
      - run: echo "failed too" >> $GITHUB_STEP_SUMMARY; exit 1
`)
	b.job.Secrets = map[string]string{"KEY": "hunter2hunter2"}
	b.run()
	var got []string
	for _, r := range b.all() {
		switch r.Type {
		case ci.SummaryRec:
			if len(r.Text) == 1<<20 {
				r.Text = "a mebibyte"
			}
			got = append(got, fmt.Sprintf("%d %s", r.Step, r.Text))
		case ci.JobFinished:
			got = append(got, r.EnvironmentURL)
		}
	}
	if want := []string{"1 # Title\n\n| a |\n|---|\n***\n", "2 a mebibyte", "4 failed too\n", "https://app.example.org/***"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if !strings.Contains(b.log(), "GITHUB_STEP_SUMMARY upload aborted, supports content up to a size of 1024k") {
		t.Error(b.log())
	}
}

// An environment without a deployment has nowhere that was deployed to.
func TestNoDeployment(t *testing.T) {
	b := newBench(t, "jobs:\n  test:\n    runs-on: x\n    environment: {name: e, deployment: false, url: 'https://x'}\n    steps: [{run: 'true'}]\n")
	if res := b.run(); res.EnvironmentURL != "" || res.Conclusion != ci.Success {
		t.Errorf("%+v", res)
	}
}

func TestJobContext(t *testing.T) {
	b := newBench(t, `
      - run: |
          echo ${{ job.workflow_ref }} ${{ job.workflow_repository }} ${{ job.workflow_file_path }} ${{ job.status }}
          echo ${{ job.workflow_sha }}
          test ${{ job.check_run_id }} -gt 0
`)
	if res := b.run(); res.Conclusion != ci.Success {
		t.Error(b.log())
	}
	b.wantOutput("o/r/ci.yml@refs/heads/main o/r ci.yml success\n0123456789012345678901234567890123456789\n")

	// A job of a called workflow of another repository.
	b = newBench(t, "      - run: echo ${{ job.workflow_ref }} ${{ job.workflow_repository }} ${{ job.workflow_file_path }}\n")
	called := *b.job.Plan.Workflow
	called.File = "acme/shared/.github/workflows/test.yml@v2"
	plan := *b.job.Plan
	plan.Workflow = &called
	b.job.Plan = &plan
	b.run()
	b.wantOutput("acme/shared/.github/workflows/test.yml@v2 acme/shared .github/workflows/test.yml\n")
}

// What a step is given is of now.
func TestTimesOfFiles(t *testing.T) {
	b := newBench(t, "      - run: find \"$0\" \"$GITHUB_ENV\" \"$(dirname \"$GITHUB_ENV\")\" -maxdepth 0 -mmin -5 | wc -l\n")
	b.run()
	b.wantOutput("3\n")
}

// What the inputs of a checkout ask for is done, or refused by name.
func TestCheckoutInputs(t *testing.T) {
	src, git := repository(t)
	for _, f := range []string{"docs/a.md", "docs/in/b.md", "src/c.go"} {
		os.MkdirAll(filepath.Join(src.Root, filepath.Dir(f)), 0o755)
		os.WriteFile(filepath.Join(src.Root, f), []byte(f), 0o644)
	}
	git("add", ".")
	git("commit", "-q", "-m", "more")
	b := newBench(t, `
      - uses: actions/checkout@v4
        with:
          sparse-checkout: |
            docs
      - run: find . -path ./.git -prune -o -type f -print | sort | tr '\n' ' '; git status --porcelain
      - uses: actions/checkout@v4
        with: {sparse-checkout: "/src/", sparse-checkout-cone-mode: false, path: sub}
      - run: cd sub && find . -path ./.git -prune -o -type f -print | sort | tr '\n' ' '; git status --porcelain
      - uses: actions/checkout@v4
        with: {ref: refs/pull/7/merge, path: merge}
      - uses: actions/checkout@v4
        with: {ref: refs/pull/7/head, path: head}
      - run: cat merge/docs/a.md head/docs/a.md
      - uses: actions/checkout@v4
        continue-on-error: true
        with: {ref: refs/pull/8/head, path: other}
      - run: test ! -e other/docs
`)
	b.job.Source = src
	gh := b.job.Run.GitHub.AsMap().Clone()
	gh.Set("ref", expr.String("refs/pull/7/merge"))
	event := expr.NewMap()
	event.Set("number", expr.Number(7))
	gh.Set("event", expr.Object(event))
	b.job.Run.GitHub = expr.Object(gh)
	if res := b.run(); res.Conclusion != ci.Success {
		t.Error(b.log())
	}
	b.wantOutput("./docs/a.md ./docs/in/b.md ./main.txt \n./src/c.go \ndocs/a.mddocs/a.md\n")
}

// Every input that actions/checkout has (its action.yml, v1 to v6) is served, or said
// not to be; what it does not have gets the runner's warning.
func TestCheckoutInputsAreAllKnown(t *testing.T) {
	for name, want := range map[string]struct{ value, note, refused string }{
		"repository": {"o/r", "", ""}, "ref": {"main", "", ""}, "token": {"x", "", ""}, "path": {"x", "", ""}, "clean": {"false", "", ""},
		"persist-credentials": {"false", "", ""}, "fetch-depth": {"0", "", ""}, "fetch-tags": {"true", "", ""}, "show-progress": {"true", "", ""},
		"lfs": {"true", "", ""}, "submodules": {"recursive", "", ""}, "set-safe-directory": {"true", "", ""}, "allow-unsafe-pr-checkout": {"true", "", ""},
		"sparse-checkout": {"docs", "", ""}, "sparse-checkout-cone-mode": {"false", "", ""},
		"ssh-key": {"k", "the runner brings the repository", ""}, "ssh-known-hosts": {"k", "the runner brings the repository", ""},
		"ssh-strict": {"false", "the runner brings the repository", ""}, "ssh-user": {"k", "the runner brings the repository", ""},
		"filter":            {"blob:none", "the objects that it would leave out are there", ""},
		"github-server-url": {"https://ghe.example", "", "another server"},
	} {
		note, known := unusedInput(strings.ToUpper(name), want.value)
		input, refused := refusedCheckout(func(n string) string {
			if n == name {
				return want.value
			}
			return ""
		}, "https://github.com")
		if !known || !strings.Contains(note, want.note) || (note != "") != (want.note != "") || !strings.Contains(refused, want.refused) ||
			(refused != "") != (want.refused != "") || refused != "" && input != name {
			t.Errorf("%s: %q %v %q", name, note, known, refused)
		}
	}
	if _, known := unusedInput("fetch_depth", "1"); known {
		t.Error("an unknown input is known")
	}
}
