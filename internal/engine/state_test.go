package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/plan"
)

// keeper has the state before each step, as JSON.
type keeper struct {
	states map[int][]byte
	errs   map[int]error
	t      *testing.T
}

func (k *keeper) BeforeStep(_ context.Context, s StepInfo) error {
	st, err := s.State()
	if err != nil {
		k.errs[s.Number] = err
		return nil
	}
	b, err := json.Marshal(st)
	if err != nil {
		k.t.Error(err)
	}
	k.states[s.Number] = b
	return nil
}

func (k *keeper) AfterStep(context.Context, StepInfo, StepResult) (*Retry, error) { return nil, nil }

func newKeeper(t *testing.T) *keeper {
	return &keeper{states: map[int][]byte{}, errs: map[int]error{}, t: t}
}

// from is the job that begins before step n, as another process would have it: its
// plan and its state went through JSON, and its mask is new.
func (b *bench) from(k *keeper, n int) *bench {
	b.t.Helper()
	var st State
	if err := json.Unmarshal(k.states[n], &st); err != nil {
		b.t.Fatal(err)
	}
	text, err := json.Marshal(b.job.Run)
	if err != nil {
		b.t.Fatal(err)
	}
	var run plan.Run
	if err := json.Unmarshal(text, &run); err != nil {
		b.t.Fatal(err)
	}
	other := &bench{t: b.t, dir: b.dir, job: b.job}
	other.job.Run, other.job.Plan, other.job.From, other.job.Mask, other.job.Hooks = &run, run.Jobs[0], &st, &mask.Set{}, nil
	other.job.Emit = ci.SinkFunc(func(r ci.Record) { other.records = append(other.records, r) })
	return other
}

// after is what the steps from n on printed, and how they ended.
func (b *bench) after(n int) string {
	var out []string
	for _, r := range b.all() {
		switch {
		case r.Step < n && r.Type != ci.JobFinished, strings.HasPrefix(r.Name, "Pre "):
		case r.Type == ci.LogLine && r.Stream != "system", r.Type == ci.AnnotationRec:
			out = append(out, fmt.Sprintf("%d %s%s:%d", r.Step, r.Text, r.Message, r.Line))
		case r.Type == ci.StepFinished, r.Type == ci.JobFinished:
			out = append(out, fmt.Sprintf("%d %s %s %v %s", r.Step, r.Name, r.Conclusion, r.Outputs, r.Outcome))
		}
	}
	return strings.Join(out, "\n")
}

// A job that is begun before any of its steps goes on as it did: outputs, environment,
// masks, problem matchers, its status, and what actions left to be done, those inside
// of composite ones too.
func TestFrom(t *testing.T) {
	needNode(t)
	b := newBench(t, `
jobs:
  test:
    runs-on: ubuntu-latest
    outputs: {v: "${{ steps.one.outputs.v }}${{ steps.last.outputs.w }}"}
    env: {LAYER: job}
    steps:
      - id: one
        run: |
          echo v=42 >> $GITHUB_OUTPUT
          echo "SET=by one" >> $GITHUB_ENV
          echo /opt/tool >> $GITHUB_PATH
          echo "::add-mask::hunter22"
          echo '{"problemMatcher":[{"owner":"go","pattern":[{"regexp":"^(.+\\.go):(\\d+): (.*)$","file":1,"line":2,"message":3}]}]}' > m.json
          echo "::add-matcher::m.json"
          echo '{"problemMatcher":[{"owner":"c","pattern":[{"regexp":"^(.+\\.c):(\\d+): (.*)$","file":1,"line":2,"message":3}]}]}' > c.json
          echo "::add-matcher::c.json"
          echo "::remove-matcher owner=c::"
      - uses: o/js@v1
        with: {who: outside}
      - uses: o/comp@v1
        with: {of: composite}
        env: {AROUND: yes}
      - {id: bad, run: exit 3, continue-on-error: true}
      - id: last
        env: {OWN: "${{ steps.bad.outcome }}"}
        run: |
          echo "$LAYER $SET $OWN ${{ steps.one.outputs.v }} hunter22 ${{ job.status }} ${PATH%%:*}"
          echo "a.go:8: wrong"
          echo "a.c:9: not looked at"
          echo w=7 >> $GITHUB_OUTPUT
      - run: exit 4
      - {if: failure(), run: "echo mended"}
`)
	js := `
-- action.yml --
inputs: {who: {default: nobody}}
runs: {using: node24, pre: pre.js, main: main.js, post: post.js, post-if: always()}
-- pre.js --
const fs = require('fs'); fs.appendFileSync(process.env.GITHUB_STATE, 'pre=early\n');
-- main.js --
const fs = require('fs'); fs.appendFileSync(process.env.GITHUB_STATE, 'said=' + process.env.INPUT_WHO + '\n');
-- post.js --
console.log('post', process.env.STATE_said, process.env.STATE_pre, process.env.INPUT_WHO, process.env.AROUND, process.env.SET);
`
	b.overrides(map[string]string{"o/js@v1": files(t, js), "o/comp@v1": files(t, `
-- action.yml --
inputs: {of: {default: ""}}
runs:
  using: composite
  steps:
    - {shell: bash, run: "echo in"}
    - uses: o/js@v1
      with: {who: "in ${{ inputs.of }}"}
`)})
	k := newKeeper(t)
	b.job.Hooks = k
	res := b.run()
	if res.Conclusion != ci.Failure || res.Outputs["v"] != "427" || len(k.states) != 7 {
		t.Fatalf("%+v, %d states, %v\n%s", res, len(k.states), k.errs, b.log())
	}
	for _, want := range []string{"post outside early outside undefined by one", "post in composite early in composite yes by one"} {
		if !strings.Contains(b.output(), want) {
			t.Fatalf("no %q in\n%s", want, b.output())
		}
	}
	for n := 2; n <= 7; n++ {
		other := b.from(k, n)
		res, err := Run(t.Context(), other.job)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := other.after(n), b.after(n); got != want || res.Outputs["v"] != "427" || res.Conclusion != ci.Failure {
			t.Errorf("from step %d: %+v\n%s\nwant\n%s\n%s", n, res.Outputs, got, want, other.log())
		}
		for _, r := range other.all() {
			if r.Type == ci.StepFinished && r.Step < n && (r.Conclusion != ci.Skipped || !strings.Contains(r.Reason, fmt.Sprintf("before step %d", n)) || r.Assisted) ||
				r.Type == ci.StepFinished && r.Step >= n && r.Step <= 7 && !r.Assisted && r.Conclusion != ci.Skipped || r.Type == ci.JobFinished && !r.Assisted {
				t.Errorf("from step %d: %+v", n, r)
			}
			if strings.Contains(r.Text+r.Message, "hunter22") {
				t.Errorf("from step %d: %+v", n, r)
			}
		}
	}
}

// One step alone, or with another script; nothing that comes after it.
func TestFromOneStep(t *testing.T) {
	b := newBench(t, `
      - run: echo "A=1" >> $GITHUB_ENV
      - {id: x, run: "echo own $A", env: {B: "${{ env.A }}2"}}
      - run: echo after
`)
	k := newKeeper(t)
	b.job.Hooks = k
	b.run()
	one := b.from(k, 2)
	one.job.OneStep = true
	one.run()
	one.wantOutput("own 1\n")
	edited := b.from(k, 2)
	edited.job.Script = "echo edited $B ${{ github.job }}"
	edited.run()
	edited.wantOutput("edited 12 test\nafter\n")
	for _, c := range []struct {
		change func(*State)
		want   string
	}{
		{func(s *State) { s.Version++ }, "another version"},
		{func(s *State) { s.Step = 9 }, "before step 9, and has 3"},
		{func(s *State) { s.Step = 0 }, "before step 0"},
		{func(s *State) { s.Posts = []savedPost{{Of: "#7"}} }, `no step "#7"`},
		{func(s *State) { s.Posts = []savedPost{{Of: "#1", Place: "#1"}} }, "is not whole"},
	} {
		bad := b.from(k, 2)
		c.change(bad.job.From)
		res, err := Run(t.Context(), bad.job)
		if err == nil || !strings.Contains(err.Error(), c.want) || res.Conclusion.Green() || bad.output() != "" {
			t.Errorf("%v, %+v, want %q\n%s", err, res, c.want, bad.output())
		}
	}
}

// Where a process is to stand as the step would: its directory, its environment, its
// command files; and nothing of it was run.
func TestStand(t *testing.T) {
	b := newBench(t, `
      - run: mkdir sub; echo "A=1" >> $GITHUB_ENV
      - {run: "echo own > made", env: {B: "${{ env.A }}2"}, working-directory: sub}
`)
	k := newKeeper(t)
	b.job.Hooks = k
	b.run()
	at, err := Stand(t.Context(), b.from(k, 2).job)
	if err != nil {
		t.Fatal(err)
	}
	if at.Dir != b.job.Layout.Workspace+"/sub" || !slices.Contains(at.Environ, "A=1") || !slices.Contains(at.Environ, "B=12") ||
		!slices.Contains(at.Environ, "GITHUB_JOB=test") {
		t.Errorf("%+v", at)
	}
	for _, e := range at.Environ {
		if file, ok := strings.CutPrefix(e, "GITHUB_OUTPUT="); ok {
			if _, err := b.job.Guest.Stat(t.Context(), file); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := Stand(t.Context(), b.job); err == nil {
		t.Error("nowhere")
	}
}

// What cannot be kept is said: steps that run beside others.
func TestNoState(t *testing.T) {
	b := newBench(t, `
      - {id: b, background: true, run: sleep .2}
      - run: echo
      - {wait: [b]}
      - run: echo
`)
	k := newKeeper(t)
	b.job.Hooks = k
	b.run()
	if !errors.Is(k.errs[2], ErrNoState) || k.states[4] == nil {
		t.Errorf("%v, %v", k.errs, k.states)
	}
}
