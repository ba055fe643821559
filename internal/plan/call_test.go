package plan_test

import (
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

// called is a small library of workflows to call.
func called(main string) files {
	return files{
		mainFile: main,
		"deploy.yml": `
on:
  workflow_call:
    inputs:
      target: {type: string, required: true}
      count: {type: number, default: 3}
      dry: {type: boolean}
      note: {type: string, default: "at ${{ github.ref }}"}
      list: {type: string, default: '["one"]'}
    secrets:
      key: {required: false}
    outputs:
      url: {value: "${{ jobs.push.outputs.url }}"}
      how: {value: "${{ jobs.push.result }}/${{ jobs.check.result }}"}
jobs:
  check:
    runs-on: x
    steps: [{run: echo}]
  push:
    name: push to ${{ inputs.target }}
    needs: check
    runs-on: ["${{ inputs.target }}-runner"]
    outputs: {url: x}
    strategy:
      matrix:
        item: ${{ fromJSON(inputs.list) }}
    steps: [{run: echo}]
`,
	}
}

func TestCall(t *testing.T) {
	r := build(t, called(`
on: push
jobs:
  build:
    runs-on: x
    outputs: {v: x}
    steps: [{run: echo}]
  deploy:
    needs: build
    name: Deploy
    strategy: {matrix: {env: [dev, prod]}}
    uses: ./deploy.yml
    with: {target: "${{ matrix.env }}", count: 7, list: '["a", "b"]'}
  after:
    needs: deploy
    if: needs.deploy.outputs.how == 'success/success'
    runs-on: x
    steps: [{run: echo}]
`))
	equal(t, "keys", keys(r), []string{
		"build",
		"deploy (dev)", "deploy (dev) / check", "deploy (dev) / push (a)", "deploy (dev) / push (b)",
		"deploy (prod)", "deploy (prod) / check", "deploy (prod) / push (a)", "deploy (prod) / push (b)",
		"after",
	})
	push := r.Job("deploy (prod) / push (b)")
	if push.Name != "Deploy (prod) / push to prod" || !slices.Equal(push.Labels, []string{"prod-runner"}) ||
		!slices.Equal(push.CallPath, []string{"deploy (prod)"}) {
		t.Errorf("got name %q, labels %q, path %q", push.Name, push.Labels, push.CallPath)
	}
	if got := strings.Join(strings.Fields(r.Inputs(push).JSON()),
		""); got != `{"target":"prod","count":7,"dry":false,"note":"atrefs/heads/main","list":"[\"a\",\"b\"]"}` {
		t.Errorf("inputs are %s", got)
	}
	d := drive(t, r)
	d.outputs["push"] = map[string]string{"url": "https://x"}
	if got := d.run(); got != ci.Success {
		t.Errorf("the run ends with %q", got)
	}
	equal(t, "log", d.log, []string{
		"start build",
		"start deploy (dev)", "start deploy (prod)",
		"start deploy (dev) / check", "start deploy (prod) / check",
		"start deploy (dev) / push (a)", "start deploy (dev) / push (b)",
		"start deploy (prod) / push (a)", "start deploy (prod) / push (b)",
		"conclude deploy (dev) success", "conclude deploy (prod) success",
		"start after",
	})
}

func TestCallWithLateInputs(t *testing.T) {
	r := build(t, called(`
on: push
jobs:
  build:
    runs-on: x
    outputs: {list: x}
    steps: [{run: echo}]
  deploy:
    needs: build
    name: to ${{ needs.build.outputs.where }}
    uses: ./deploy.yml
    with: {target: "${{ needs.build.outputs.where }}", list: "${{ needs.build.outputs.list }}"}
`))
	equal(t, "keys", keys(r), []string{"build", "deploy", "deploy / check", "deploy / push"})
	if in := r.Inputs(r.Job("deploy / check")); in.Get("count").AsNumber() != 3 || !in.Get("target").IsNull() {
		t.Errorf("inputs are %s before anything ran", in.JSON())
	}
	if j := r.Job("deploy / push"); !j.Deferred {
		t.Error("a matrix of an input that is not known is not deferred")
	}
	r = roundTrip(t, r)
	d := drive(t, r)
	d.outputs["build"] = map[string]string{"where": "mars", "list": `["p","q"]`}
	if got := d.run(); got != ci.Success {
		t.Errorf("the run ends with %q", got)
	}
	equal(t, "log", d.log, []string{
		"start build", "start deploy", "start deploy / check", "expand deploy / push",
		"start deploy / push (p)", "start deploy / push (q)", "conclude deploy success",
	})
	names := []string{}
	for _, j := range r.Jobs {
		names = append(names, j.Name+" "+strings.Join(j.Labels, ","))
	}
	equal(t, "names", names, []string{
		"build x", "to mars ", "to mars / check x", "to mars / push to mars mars-runner", "to mars / push to mars mars-runner",
	})
	roundTrip(t, r)
}

func TestCallEnds(t *testing.T) {
	main := `
on: push
jobs:
  first: {runs-on: x, steps: [{run: echo}]}
  deploy:
    needs: first
    strategy: {matrix: {env: [dev, prod]}}
    uses: ./deploy.yml
    with: {target: "${{ matrix.env }}"}
  after: {needs: deploy, runs-on: x, steps: [{run: echo}]}
`
	t.Run("skipped", func(t *testing.T) {
		d := drive(t, build(t, called(main)))
		d.ends["first"] = ci.Failure
		if got := d.run(); got != ci.Failure {
			t.Errorf("the run ends with %q", got)
		}
		if c := d.s.JobConclusion("deploy (dev) / push (one)"); c != ci.Skipped {
			t.Errorf("a job in a skipped call ends with %q", c)
		}
	})
	t.Run("failed inside, the other cell is stopped", func(t *testing.T) {
		d := drive(t, build(t, called(main)))
		d.ends["deploy (dev) / check"] = ci.Failure
		if got := d.run(); got != ci.Failure {
			t.Errorf("the run ends with %q", got)
		}
		equal(t, "log", d.log, []string{
			"start first", "start deploy (dev)", "start deploy (prod)", "start deploy (dev) / check", "start deploy (prod) / check",
			"skip deploy (dev) / push (one): it needs check, which failed", "conclude deploy (dev) failure",
			"cancel deploy (prod) / check: fail-fast: deploy (dev) failed",
			"conclude deploy (prod) / push (one) cancelled: fail-fast: deploy (dev) failed",
			"conclude deploy (prod) cancelled",
			"skip after: it needs deploy, which failed",
		})
	})
	t.Run("cancelled inside", func(t *testing.T) {
		d := drive(t, build(t, called(main)))
		d.on["deploy (dev) / check"] = func(s *plan.State) { s.Cancel("") }
		if got := d.run(); got != ci.Cancelled {
			t.Errorf("the run ends with %q", got)
		}
	})
	t.Run("cancelled while a calling job waits for its group", func(t *testing.T) {
		s := plan.NewState(build(t, called(main)))
		s.Next()
		if err := s.Finished("first", ci.Success, nil); err != nil {
			t.Fatal(err)
		}
		s.Next()
		if err := s.Finished("deploy (dev)", ci.Cancelled, nil); err != nil { // its place was taken
			t.Fatal(err)
		}
		s.Cancel("")
		var log []string
		for !s.Done() {
			actions := s.Next()
			for _, a := range actions {
				log = append(log, a.Kind.String()+" "+a.Job.Key)
				if a.Kind == plan.Cancel {
					if err := s.Finished(a.Job.Key, ci.Cancelled, nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			if len(actions) == 0 {
				t.Fatalf("stuck after %q", log)
			}
		}
		if !s.Done() || s.Conclusion() != ci.Cancelled {
			t.Errorf("not done, or %q, after %q", s.Conclusion(), log)
		}
		equal(t, "log", log, []string{
			"conclude deploy (dev) / check", "conclude deploy (dev) / push (one)",
			"conclude deploy (prod) / check", "conclude deploy (prod) / push (one)", "cancel deploy (prod)",
			"skip after",
		})
	})
	t.Run("a wrong input type known late fails the job", func(t *testing.T) {
		d := drive(t, build(t, called(strings.Replace(main, `with: {`, `with: {dry: "${{ needs.first.result }}", `, 1))))
		d.run()
		if want := "conclude deploy (dev) failure: (Line: 9, Col: 17): Error when evaluating 'with' for job 'deploy'. Unexpected value 'success'"; !slices.Contains(d.log, want) {
			t.Errorf("missing %q in\n%s", want, strings.Join(d.log, "\n"))
		}
	})
}

func TestSecrets(t *testing.T) {
	fs := files{
		mainFile: `
on: push
jobs:
  top: {runs-on: x, steps: [{run: echo}]}
  named: {uses: ./mid.yml, secrets: {token: "${{ secrets.DEPLOY }}-${{ github.ref }}"}}
  all: {uses: ./mid.yml, secrets: inherit}
  none: {uses: ./mid.yml}
`,
		"mid.yml": `
on: {workflow_call: {secrets: {token: {required: false}}}}
jobs:
  in: {uses: ./leaf.yml, secrets: {key: "${{ secrets.token }}"}}
`,
		"leaf.yml": `
on: {workflow_call: {secrets: {key: {required: false}}}}
jobs:
  leaf: {runs-on: x, steps: [{run: echo}]}
`,
	}
	r := build(t, fs)
	available := map[string]string{"DEPLOY": "s3cret", "TOKEN": "inherited", "GITHUB_TOKEN": "ghs"}
	for key, want := range map[string]map[string]string{
		"top":               available,
		"named / in / leaf": {"key": "s3cret-refs/heads/main", "GITHUB_TOKEN": "ghs"},
		"all / in / leaf":   {"key": "inherited", "GITHUB_TOKEN": "ghs"},
		"none / in / leaf":  {"GITHUB_TOKEN": "ghs"},
	} {
		got, err := r.Secrets(r.Job(key), available)
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%s sees %v (%v), want %v", key, got, err, want)
		}
	}
	if strings.Contains(encode(t, r), "ghs_secret") {
		t.Error("the plan holds the token of the github context")
	}
}

func TestPermissions(t *testing.T) {
	fs := files{
		mainFile: `
on: push
permissions: {contents: write, issues: read}
jobs:
  a: {runs-on: x, steps: [{run: echo}]}
  b: {runs-on: x, permissions: {}, steps: [{run: echo}]}
  c: {runs-on: x, permissions: read-all, steps: [{run: echo}]}
  d: {uses: ./in.yml, permissions: {contents: read, packages: write, id-token: write}}
  e: {uses: ./in.yml}
`,
		"in.yml": `
on: workflow_call
jobs:
  plain: {runs-on: x, steps: [{run: echo}]}
  own: {runs-on: x, permissions: {contents: read, packages: read}, steps: [{run: echo}]}
  oidc: {runs-on: x, permissions: {id-token: write}, steps: [{run: echo}]}
`,
	}
	show := func(j *plan.Job) string {
		var out []string
		for _, s := range j.Permissions.Scopes() {
			out = append(out, s+":"+j.Permissions[s])
		}
		return strings.Join(out, " ")
	}
	r := build(t, fs)
	for key, want := range map[string]string{
		"a":         "contents:write issues:read metadata:read",
		"b":         "metadata:read",
		"d / plain": "contents:read id-token:write metadata:read packages:write",
		"d / own":   "contents:read metadata:read packages:read",
		"e / plain": "contents:write issues:read metadata:read",
		"e / own":   "contents:read metadata:read",
		"d / oidc":  "id-token:write metadata:read",
		"e / oidc":  "metadata:read",
	} {
		if got := show(r.Job(key)); got != want {
			t.Errorf("%s may %s, want %s", key, got, want)
		}
	}
	if p := r.Job("c").Permissions; !p.Allows("actions", "read") || p.Allows("actions", "write") || p.Allows("id-token", "write") {
		t.Errorf("read-all is %v", p)
	}
	// A caller that says nothing lets what it calls ask for id-token.
	r = build(t, files{mainFile: "on: push\njobs: {e: {uses: ./in.yml}}\n", "in.yml": fs["in.yml"]})
	if got := show(r.Job("e / oidc")); got != "id-token:write metadata:read" || r.Job("e / plain").Permissions.Allows("id-token", "write") {
		t.Errorf("without any word of the caller: %s", got)
	}
	req := request(t, one("on: push\njobs:\n  a: {runs-on: x, steps: [{run: echo}]}\n  b: {runs-on: x, permissions: write-all, steps: [{run: echo}]}\n"))
	r, _ = plan.Build(req)
	if p := r.Job("a").Permissions; !p.Allows("contents", "write") || p.Allows("id-token", "write") || p.Allows("models", "write") {
		t.Errorf("the default is %v", p)
	}
	req.DefaultPermissions = "read"
	r, _ = plan.Build(req)
	if got := show(r.Job("a")); got != "contents:read metadata:read packages:read" {
		t.Errorf("the restricted default is %s", got)
	}
	req.ReadOnly = true
	r, _ = plan.Build(req)
	if p := r.Job("b").Permissions; p.Allows("contents", "write") || !p.Allows("contents", "read") || p.Allows("id-token", "write") {
		t.Errorf("a fork's write-all is %v", p)
	}
}

func TestCallErrors(t *testing.T) {
	chain := func(n int) files {
		fs := files{mainFile: "on: push\njobs: {j: {uses: ./1.yml}}\n"}
		for i := 1; i < n; i++ {
			fs[fmt.Sprintf("%d.yml", i)] = fmt.Sprintf("on: workflow_call\njobs: {j: {uses: ./%d.yml}}\n", i+1)
		}
		fs[fmt.Sprintf("%d.yml", n)] = "on: workflow_call\njobs: {j: {runs-on: x, steps: [{run: echo}]}}\n"
		return fs
	}
	if r := build(t, chain(10)); len(r.Jobs) != 11 || r.Jobs[10].Key != "j"+strings.Repeat(" / j", 10) {
		t.Errorf("ten calls deep gives %q", keys(r))
	}
	if r := roundTrip(t, build(t, chain(10))); drive(t, r).run() != ci.Success {
		t.Error("ten calls deep does not succeed")
	}
	bomb := files{mainFile: "on: push\njobs: {j: {strategy: {matrix: {n: [" + strings.Repeat("1, ", 200) + "]}}, uses: ./1.yml}}\n"}
	for i := 1; i <= 3; i++ {
		bomb[fmt.Sprintf("%d.yml", i)] = "on: workflow_call\njobs: {j: {strategy: {matrix: {n: [" + strings.Repeat("1, ", 200) + "]}}, uses: ./" +
			fmt.Sprint(i+1) + ".yml}}\n"
	}
	bomb["4.yml"] = "on: workflow_call\njobs: {j: {runs-on: x, steps: [{run: echo}]}}\n"
	job := "{runs-on: x, steps: [{run: echo}]}"
	for _, c := range []struct {
		fs   files
		want string
	}{
		{chain(11), "10.yml:2:18: Nested reusable workflow depth exceeded 10."},
		{files{mainFile: "on: push\njobs: {j: {uses: ./1.yml}}\n", "1.yml": "on: workflow_call\njobs: {j: {uses: ./1.yml}}\n"},
			"1.yml:2:18: The call of './1.yml' makes a loop"},
		{files{mainFile: "on: push\njobs: {j: {uses: ./none.yml}}\n"}, mainFile + ":2:18: The called workflow './none.yml' cannot be read: no such file"},
		{files{mainFile: "on: push\njobs: {j: {uses: ./1.yml}}\n", "1.yml": "on: push\njobs: {j: " + job + "}\n"}, mainFile +
			":2:18: The called workflow './1.yml' has no 'workflow_call' trigger"},
		{called("on: push\njobs: {j: {uses: ./deploy.yml}}\n"), mainFile + ":2:18: Input target is required, but not provided while calling."},
		{called("on: push\njobs: {j: {uses: ./deploy.yml, with: {target: x, count: many}}}\n"), mainFile + ":2:57: Unexpected value 'many'"},
		{bomb, "The workflow may not contain more than 10000 jobs"},
		{one("on: push\nconcurrency: {group: a, cancel-in-progress: true, queue: max}\njobs: {j: " + job + "}\n"), "'queue: max'"},
	} {
		req := request(t, c.fs)
		r, diags := plan.Build(req)
		if r != nil || len(diags) == 0 || !strings.Contains(diags[0].String(), c.want) {
			t.Errorf("got %v, want %s", diags, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	r := build(t, one(`
name: CI
run-name: by ${{ github.event_name }}
on: push
concurrency: {group: "ci-${{ github.ref }}", cancel-in-progress: true}
jobs:
  plain: {runs-on: x, steps: [{run: echo}]}
  literal: {name: Literal, runs-on: x, steps: [{run: echo}], strategy: {matrix: {a: [1], b: [true]}}}
  shown: {name: "on ${{ matrix.a }}", runs-on: x, steps: [{run: echo}], strategy: {matrix: {a: [1]}}}
  blind: {name: "at ${{ github.ref }}", runs-on: x, steps: [{run: echo}], strategy: {matrix: {a: [1]}}}
  empty: {name: "${{ github.none }}", runs-on: x, steps: [{run: echo}], strategy: {matrix: {a: [1]}}}
`))
	var names []string
	for _, j := range r.Jobs {
		names = append(names, j.Name)
	}
	equal(t, "names", names, []string{"plain", "Literal (1, true)", "on 1", "at refs/heads/main", "empty (1)"})
	if r.Name != "by push" || r.Workflow != "CI" || *r.Concurrency != (plan.Group{Name: "ci-refs/heads/main", CancelInProgress: true, Queue: "single"}) {
		t.Errorf("got %q, %q, %+v", r.Name, r.Workflow, r.Concurrency)
	}
	if r := build(t, jobs("a:")); r.Name != "Fix it" || r.Workflow != mainFile {
		t.Errorf("got %q, %q", r.Name, r.Workflow)
	}
}

func TestKeys(t *testing.T) {
	r := build(t, one(`
on: push
jobs:
  a:
    strategy: {matrix: {os: [linux], big: [true, false]}}
    runs-on: {group: org/g, labels: ["${{ matrix.os }}", "${{ matrix.big && 'large' || '' }}"]}
    environment: {name: "prod-${{ matrix.os }}", url: "https://${{ steps.x.outputs.y }}", deployment: false}
    concurrency: {group: "g-${{ matrix.big }}", queue: max}
    timeout-minutes: ${{ matrix.big && 90 || 7.5 }}
    cancel-timeout-minutes: 2
    steps: [{run: echo}]
  b:
    runs-on: ${{ fromJSON('["self-hosted", "arm"]') }}
    environment: ${{ github.none }}
    steps: [{run: echo}]
`))
	a, b := r.Jobs[0], r.Jobs[2]
	if !slices.Equal(a.Labels, []string{"linux", "large"}) || a.RunnerGroup != "org/g" ||
		*a.Environment != (plan.Environment{Name: "prod-linux", NoDeployment: true}) ||
		*a.Concurrency != (plan.Group{Name: "g-true", Queue: "max"}) || a.TimeoutMinutes != 90 || a.CancelTimeoutMinutes != 2 {
		t.Errorf("a is %+v", a)
	}
	if r.Jobs[1].TimeoutMinutes != 7.5 {
		t.Errorf("timeout of the second cell: %v", r.Jobs[1].TimeoutMinutes)
	}
	if !slices.Equal(b.Labels, []string{"self-hosted", "arm"}) || b.Environment != nil || b.TimeoutMinutes != 360 {
		t.Errorf("b is %+v", b)
	}
	cx := r.Contexts(a, expr.Null())
	strategy, _ := cx.Get("strategy")
	if got := strings.Join(strings.Fields(strategy.JSON()), ""); got != `{"fail-fast":true,"job-index":0,"job-total":2,"max-parallel":2}` {
		t.Errorf("strategy is %s", got)
	}
}

// cache-mode: the job's over its file's, and a called workflow's never more than its
// caller's.
func TestCacheMode(t *testing.T) {
	for _, c := range []struct{ event, file, job, call, inFile, inJob, want string }{
		{"push", "", "", "", "", "", "a= call= call / in="},
		{"push", "read", "", "", "", "", "a=read call=read call / in=read"},
		{"push", "read", "write", "none", "", "", "a=write call=none call / in=none"},
		{"push", "", "", "read", "", "write", "a= call=read call / in=read"},
		{"push", "", "", "read", "write-only", "", "a= call=read call / in=none"},
		{"push", "", "", "write", "write-only", "read", "a= call=write call / in=read"},
		{"push", "", "", "", "none", "write", "a= call= call / in=write"},
		{"pull_request_target", "", "", "", "write", "", "a= call= call / in=read"},
		{"pull_request_target", "", "write", "write", "write", "", "a=write call=write call / in=write"},
	} {
		mode := func(indent, m string) string {
			if m == "" {
				return ""
			}
			return indent + "cache-mode: " + m + "\n"
		}
		w, diags := workflow.Parse("ci.yml", []byte("on: "+c.event+"\n"+mode("", c.file)+"jobs:\n  a:\n    runs-on: x\n"+mode("    ", c.job)+
			"    steps: [{run: a}]\n  call:\n    uses: ./in.yml\n"+mode("    ", c.call)), workflow.Options{})
		diags = append(diags, workflow.Link(w, func(string, *workflow.Workflow) (string, []byte, error) {
			return "in.yml", []byte("on: workflow_call\n" + mode("", c.inFile) + "jobs:\n  in:\n    runs-on: x\n" + mode("    ", c.inJob) +
				"    steps: [{run: a}]\n"), nil
		}, workflow.Options{})...)
		if workflow.Errors(diags) {
			t.Fatal(diags)
		}
		run, diags := plan.Build(plan.Request{Workflow: w, Event: &workflow.Happening{Event: c.event}})
		if workflow.Errors(diags) {
			t.Fatal(diags)
		}
		var got []string
		for _, j := range run.Jobs {
			got = append(got, j.Key+"="+j.CacheMode)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
