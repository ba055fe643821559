package workflow

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/expr"
)

// onWorkflow reads a workflow that has nothing but `on:` and a job.
func onWorkflow(t testing.TB, on string) *Workflow {
	t.Helper()
	src := "on:" + on + "\njobs:\n  j:\n    runs-on: x\n    steps:\n      - run: x\n"
	w, ds := Parse("w.yml", []byte(src), Options{})
	if Errors(ds) {
		t.Fatalf("%s\n%v", src, ds)
	}
	return w
}

func payload(t testing.TB, s string) expr.Value {
	t.Helper()
	if s == "" {
		return expr.Null()
	}
	v, err := expr.ParseJSON([]byte(s))
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return v
}

func TestDecide(t *testing.T) {
	branch := func(name string) Happening { return Happening{Event: "push", Ref: "refs/heads/" + name} }
	tag := func(name string) Happening { return Happening{Event: "push", Ref: "refs/tags/" + name} }
	files := func(h Happening, list ...string) Happening {
		h.ChangedFiles, h.FilesKnown = list, true
		return h
	}
	with := func(h Happening, json string) Happening {
		h.Payload = payload(t, json)
		return h
	}
	said := func(h Happening, message string) Happening {
		h.HeadMessage = message
		return h
	}
	pr := func(action, base string) Happening {
		return Happening{Event: "pull_request", Action: action, BaseRef: base}
	}
	event := func(name, action string) Happening { return Happening{Event: name, Action: action} }
	many := make([]string, 301)
	for i := range many {
		many[i] = fmt.Sprintf("a/%03d", i)
	}
	many[300] = "z/last"

	for _, c := range []struct {
		on   string
		h    Happening
		want string // "yes: …" or "no 2:5: …": part of the reason, and where
	}{
		// the event itself
		{" push", branch("main"), "yes: the workflow runs on push"},
		{" [push, pull_request]", event("issues", "opened"), "no 1:5: the workflow runs on push and pull_request, not on issues"},
		{" push", event("star", "created"), "no 1:5: star starts no workflows on GitHub"},
		{" push", event("pul_request", ""), "no 1:5: there is no event pul_request (did you mean pull_request?)"},
		{" workflow_call", event("workflow_call", ""), "no 1:5: a called workflow runs only when another workflow calls it"},
		{" workflow_dispatch", event("workflow_dispatch", ""), "yes"},

		// activity types and their defaults
		{" pull_request", pr("opened", "main"), "yes: the workflow runs on pull_request of type opened"},
		{" pull_request", pr("synchronize", "main"), "yes"},
		{" pull_request", pr("reopened", "main"), "yes"},
		{" pull_request", pr("labeled", "main"), "no 1:5: without types, pull_request means opened, synchronize and reopened, not labeled"},
		{" pull_request", with(event("pull_request", ""), `{"action":"closed"}`), "no"},
		{" pull_request_target", Happening{Event: "pull_request_target", Action: "closed"}, "no"},
		{"\n  pull_request:\n    types: [labeled]", pr("labeled", "main"), "yes"},
		{"\n  pull_request:\n    types: [labeled]", pr("opened", "main"), "no 3:12: types names labeled, not opened"},
		{"\n  issues:\n    types: opened", event("issues", "opened"), "yes"},
		{" issues", event("issues", "untyped"), "yes"},
		{" check_suite", event("check_suite", "requested"), "no 1:5: check_suite of type requested starts no workflows on GitHub, only completed"},
		{" merge_group", event("merge_group", "destroyed"), "no"},
		{" deployment", event("deployment", "created"), "yes"},
		{" create", event("create", ""), "yes"},
		{" repository_dispatch", event("repository_dispatch", "anything"), "yes"},
		{"\n  repository_dispatch:\n    types: [deploy]", event("repository_dispatch", "deploy"), "yes"},
		{"\n  repository_dispatch:\n    types: [deploy]", event("repository_dispatch", "Deploy"), "no 3:12: types names deploy, not Deploy"},

		// branches and tags
		{"\n  push:\n    branches: [main, 'releases/**']", branch("main"), "yes: the workflow runs on push, and its filters take the branch main"},
		{"\n  push:\n    branches: [main, 'releases/**']", branch("releases/a/b"), "yes"},
		{"\n  push:\n    branches: [main, 'releases/**']", branch("dev"), "no 3:15: no pattern of branches matches the branch dev"},
		{"\n  push:\n    branches: [main]", tag("main"), "no 3:15: only branches are filtered, so pushes of tags like main start nothing"},
		{"\n  push:\n    branches-ignore: [x]", tag("v1"), "no 3:22: only branches are filtered"},
		{"\n  push:\n    tags: ['v*']", branch("v1"), "no 3:11: only tags are filtered, so pushes to branches like v1 start nothing"},
		{"\n  push:\n    tags: ['v*']", tag("v1"), "yes"},
		{"\n  push:\n    tags-ignore: ['v*']", tag("v1"), "no 3:18: the pattern 'v*' of tags-ignore excludes the tag v1"},
		{"\n  push:\n    tags-ignore: ['v*']", tag("w1"), "yes"},
		{"\n  push:\n    branches: [main]\n    tags: ['v*']", tag("v1"), "yes"},
		{"\n  push:\n    branches: [main]\n    tags: ['v*']", branch("main"), "yes"},
		{"\n  push:\n    branches: ['releases/**', '!releases/**-alpha']", branch("releases/10"), "yes"},
		{"\n  push:\n    branches: ['releases/**', '!releases/**-alpha']", branch("releases/beta/3-alpha"),
			"no 3:15: the pattern '!releases/**-alpha' of branches excludes the branch releases/beta/3-alpha"},
		{"\n  push:\n    branches-ignore: ['mona/octocat', 'releases/**-alpha']", branch("releases/beta/3-alpha"), "no"},
		{"\n  push:\n    branches-ignore: ['mona/octocat', 'releases/**-alpha']", branch("releases/beta"), "yes"},
		{"\n  push:\n    branches-ignore: ['a/**', '!a/b']", branch("a/b"), "yes"},
		{"\n  pull_request:\n    branches: [main]", pr("opened", "main"), "yes"},
		{"\n  pull_request:\n    branches: [main]", pr("opened", "refs/heads/main"), "yes"},
		{"\n  pull_request:\n    branches: [main]", pr("opened", "dev"), "no 3:15: no pattern of branches matches the base branch dev"},
		{"\n  pull_request:\n    branches: [main]", with(pr("opened", ""), `{"pull_request":{"base":{"ref":"dev"}}}`), "no"},
		{"\n  pull_request_target:\n    branches-ignore: [main]", Happening{Event: "pull_request_target", Action: "opened", BaseRef: "main"}, "no 3:22"},
		{"\n  merge_group:\n    branches: [main]", with(event("merge_group", "checks_requested"), `{"merge_group":{"base_ref":"refs/heads/main"}}`), "yes"},
		{"\n  merge_group:\n    branches: [main]", with(event("merge_group", "checks_requested"), `{"merge_group":{"base_ref":"refs/heads/dev"}}`),
			"no 3:15: no pattern of branches matches the target branch dev"},

		// paths
		{"\n  push:\n    paths: ['**.js']", files(branch("main"), "a.md", "src/b.js"), "yes: the workflow runs on push, and src/b.js was changed"},
		{"\n  push:\n    paths: ['**.js']", files(branch("main"), "a.md"), "no 3:12: no changed file matches paths (a.md)"},
		{"\n  push:\n    paths: ['**.js']", branch("main"), "yes: the workflow runs on push; the changed files are not known, so paths do not count"},
		{"\n  push:\n    paths: ['**.js']", files(branch("main")), "no 3:12: no file was changed, and paths wants one"},
		{"\n  push:\n    paths: ['**.js']", files(tag("v1"), "a.md"), "yes: the workflow runs on push; paths do not count for tags"},
		{"\n  push:\n    paths: ['sub/**', '!sub/docs/**']", files(branch("main"), "sub/docs/x"), "no"},
		{"\n  push:\n    paths: ['sub/**', '!sub/docs/**']", files(branch("main"), "sub/docs/x", "sub/y"), "yes"},
		{"\n  push:\n    paths-ignore: ['docs/**']", files(branch("main"), "docs/a", "docs/b"), "no 3:19: paths-ignore matches every changed file (docs/a, docs/b)"},
		{"\n  push:\n    paths-ignore: ['docs/**']", files(branch("main"), "docs/a", "b"), "yes"},
		{"\n  push:\n    branches: [main]\n    paths: [a]", files(branch("dev"), "a"), "no 3:15"},
		{"\n  push:\n    branches: [main]\n    paths: [a]", files(branch("main"), "b"), "no 4:12"},
		{"\n  pull_request:\n    paths: [a]", files(pr("opened", "main"), "b"), "no"},
		{"\n  push:\n    paths: ['z/**']", files(branch("main"), many...),
			"no 3:12: no changed file matches paths (a/000, a/001, a/002 and 297 more); as on GitHub only the first 300 of 301 changed files were looked at"},
		{"\n  push:\n    paths: [a]", Happening{Event: "push", Ref: "refs/heads/main", ChangedFiles: []string{"b"}, FilesKnown: true, Commits: 1001},
			"yes: the workflow runs on push; the push has more than 1000 commits"},
		{"\n  push:\n    paths: [a]", Happening{Event: "push", Ref: "refs/heads/main", ChangedFiles: []string{"b"}, FilesKnown: true, Commits: 1000}, "no"},

		// skip markers
		{" push", said(branch("main"), "docs [skip ci]"), "no 1:5: the message of the head commit says [skip ci]"},
		{" push", with(branch("main"), `{"head_commit":{"message":"x\n\n[no ci]"}}`), "no"},
		{" pull_request", said(pr("opened", "main"), "[actions skip]"), "no"},
		{" pull_request_target", said(Happening{Event: "pull_request_target", Action: "opened"}, "[skip ci]"), "yes"},
		{" push", said(branch("main"), "about skip ci"), "yes"},

		// rules of single events
		{" push", with(branch("gone"), `{"deleted":true}`), "no 1:5: the push deleted the branch gone"},
		{" delete", event("delete", ""), "yes"},
		{" pull_request", with(pr("opened", "main"), `{"pull_request":{"mergeable":false}}`), "no 1:5: the pull request has a merge conflict"},
		{" pull_request_target", with(Happening{Event: "pull_request_target", Action: "opened"}, `{"pull_request":{"mergeable":false}}`), "yes"},
		{" pull_request", with(pr("opened", "main"), `{"pull_request":{"mergeable":null}}`), "yes"},
		{" release", with(event("release", "created"), `{"release":{"draft":true}}`), "no 1:5: the release is a draft"},
		{" release", with(event("release", "published"), `{"release":{"draft":false}}`), "yes"},
		{" deployment_status", with(event("deployment_status", "created"), `{"deployment_status":{"state":"inactive"}}`), "no"},
		{" deployment_status", with(event("deployment_status", "created"), `{"deployment_status":{"state":"success"}}`), "yes"},
		{" check_run", with(event("check_run", "completed"), `{"check_run":{"app":{"slug":"github-actions"}}}`), "no"},
		{" check_run", with(event("check_run", "completed"), `{"check_run":{"app":{"slug":"other"}}}`), "yes"},
		{"\n  schedule:\n    - cron: '0 1 * * *'", with(event("schedule", ""), `{"schedule":"0 1 * * *"}`), "yes"},
		{"\n  schedule:\n    - cron: '0 1 * * *'", with(event("schedule", ""), `{"schedule":"0 2 * * *"}`), "no 2:3: no schedule of the workflow is '0 2 * * *'"},
		{"\n  workflow_run:\n    workflows: [Build, Test]\n    types: [completed]",
			with(event("workflow_run", "completed"), `{"workflow_run":{"name":"Test","head_branch":"x"}}`), "yes"},
		{"\n  workflow_run:\n    workflows: [Build]", with(event("workflow_run", "requested"), `{"workflow_run":{"name":"Lint"}}`),
			"no 3:16: workflows names 'Build', not 'Lint'"},
		{"\n  workflow_run:\n    workflows: [Build]\n    branches: [canary]",
			with(event("workflow_run", "requested"), `{"workflow_run":{"name":"Build","head_branch":"main"}}`),
			"no 4:15: no pattern of branches matches the branch of the run main"},
		{"\n  image_version:\n    names: [Mine]\n    versions: ['1.*', '2.*']",
			with(event("image_version", "ready"), `{"image_version":{"name":"Mine","version":"2.53.0"}}`), "yes"},
		{"\n  image_version:\n    names: [Mine]\n    versions: ['1.*', '2.*']",
			with(event("image_version", "ready"), `{"image_version":{"name":"Mine","version":"3.0.0"}}`), "no 4:15"},
	} {
		d := onWorkflow(t, c.on).Decide(&c.h)
		got := "yes: " + d.Reason
		if !d.Run {
			got = fmt.Sprintf("no %s: %s", d.Pos, d.Reason)
		}
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("on:%s\n%s %s\n got %s\nwant %s", c.on, c.h.Event, c.h.Action, got, c.want)
		}
		if d.Reason == "" || strings.HasSuffix(d.Reason, ".") {
			t.Errorf("on:%s: the reason %q", c.on, d.Reason)
		}
	}
}

func TestSkipMarker(t *testing.T) {
	for msg, want := range map[string]string{
		"a [skip ci] b":                 "[skip ci]",
		"[ci skip]":                     "[ci skip]",
		"x\n\n[skip actions]\n":         "[skip actions]",
		"skip ci":                       "",
		"title\n\n\nskip-checks: true":  "skip-checks: true",
		"title\n\n\nskip-checks:true\n": "skip-checks:true",
		"title\r\n\r\n\r\nSigned: a\r\nskip-checks: true": "skip-checks: true",
		"title\n\nskip-checks: true":                      "",
		"title\n\n\nskip-checks: true\nSigned: a":         "",
		"title\n\n\nskip-checks: true\n\nmore":            "",
		"skip-checks: true":                               "",
		"title\n\n\nskip-checks: false":                   "",
		"":                                                "",
	} {
		if got := SkipMarker(msg); got != want {
			t.Errorf("%q: %q, want %q", msg, got, want)
		}
	}
}

// Every event that can stand under `on:` is in the table with the same types, and
// the table has each webhook once.
func TestEventTable(t *testing.T) {
	var names []string
	for _, e := range Events() {
		names = append(names, e.Name)
		got, ok := LookupEvent(e.Name)
		if !ok || got.Name != e.Name {
			t.Errorf("%s is not found", e.Name)
		}
		for _, d := range e.Defaults() {
			if !slices.Contains(e.Types, d) {
				t.Errorf("%s: the default %s is no type", e.Name, d)
			}
		}
		if !e.Webhook && !e.Starts {
			t.Errorf("%s is nothing", e.Name)
		}
	}
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Error("the table is not sorted")
	}
	// What the table says of `on:` is what the reader takes.
	reads := func(on string) bool {
		_, ds := Parse("t.yml", []byte("on:\n"+on+"jobs: {a: {runs-on: x, steps: [{run: echo}]}}\n"), Options{})
		return len(ds) == 0
	}
	for _, e := range Events() {
		if e.Name == "schedule" {
			continue // it cannot stand alone
		}
		if reads("  "+e.Name+":\n") != e.Starts {
			t.Errorf("%s: Starts is %v, the reader says otherwise", e.Name, e.Starts)
		}
		for _, typ := range e.Types {
			if !reads(fmt.Sprintf("  %s: {types: [%s]}\n", e.Name, typ)) {
				t.Errorf("%s: the reader does not know the type %s", e.Name, typ)
			}
		}
		for _, f := range e.Filters {
			if !reads(fmt.Sprintf("  %s: {%s: [x]}\n", e.Name, f)) {
				t.Errorf("%s: the reader does not know the key %s", e.Name, f)
			}
		}
		if e.Starts && e.Types != nil && reads(fmt.Sprintf("  %s: {types: [nonsense]}\n", e.Name)) {
			t.Errorf("%s: the reader takes any type without advice", e.Name)
		}
	}
	if got := TriggerEvents("pull_request"); !slices.Equal(got, []string{"pull_request", "pull_request_target"}) {
		t.Errorf("pull_request starts %v", got)
	}
	if got := TriggerEvents("star"); got != nil {
		t.Errorf("star starts %v", got)
	}
	if got := TriggerEvents("schedule"); got != nil {
		t.Errorf("schedule is a webhook that starts %v", got)
	}
}

func TestDispatchInputs(t *testing.T) {
	w := onWorkflow(t, `
  workflow_dispatch:
    inputs:
      level: {type: choice, options: [info, warning], default: warning, required: true}
      Tags: {type: boolean}
      dry: {type: boolean, default: true}
      count: {type: number, default: 3}
      note: {}
      where: {type: environment, required: true}
      pick: {type: choice, options: [a, b]}
`)
	tr := w.Trigger("workflow_dispatch")
	inputs, texts, errs := DispatchInputs(tr, map[string]string{"WHERE": "prod", "tags": "TRUE"})
	if errs != nil {
		t.Fatal(errs)
	}
	check := func(name string, got expr.Value, want string) {
		t.Helper()
		if b, _ := got.MarshalJSON(); string(b) != want {
			t.Errorf("%s: %s, want %s", name, b, want)
		}
	}
	check("inputs", inputs, `{"level":"warning","Tags":true,"dry":true,"count":"3","note":"","where":"prod","pick":"a"}`)
	check("texts", texts, `{"level":"warning","Tags":"true","dry":"true","count":"3","note":"","where":"prod","pick":"a"}`)

	for _, c := range []struct {
		given map[string]string
		want  string
	}{
		{map[string]string{}, "Required input 'where' not provided"},
		{map[string]string{"where": ""}, "Required input 'where' not provided"},
		{map[string]string{"where": "x", "nope": "1"}, `Unexpected inputs provided: ["nope"]; did you mean note?`},
		{map[string]string{"where": "x", "zzzzzz": "1"}, `Unexpected inputs provided: ["zzzzzz"]; the workflow takes level, Tags, dry, count, note, where and pick`},
		{map[string]string{"where": "x", "level": "debug"},
			"Provided value 'debug' for input 'level' not in the list of allowed values: it has the options 'info' and 'warning'"},
		{map[string]string{"where": "x", "tags": "yes"}, "Provided value 'yes' for input 'Tags' not in the list of allowed values: a boolean is true or false"},
		{map[string]string{"where": "x", "count": "three"}, "Provided value 'three' for input 'count' is not a number"},
		{map[string]string{"where": "x", "tags": "true", "TAGS": "false"}, "input 'tags' is given twice, in different spelling"},
		{map[string]string{"where": strings.Repeat("x", 70000)}, "the inputs have 70005 characters, and at most 65535 are possible"},
	} {
		_, _, errs := DispatchInputs(tr, c.given)
		if len(errs) != 1 || errs[0].Error() != c.want {
			t.Errorf("%v: got %v, want %s", c.given, errs, c.want)
		}
	}
	if _, _, errs := DispatchInputs(nil, map[string]string{"a": "1"}); len(errs) != 1 {
		t.Errorf("without a trigger: %v", errs)
	}
	many := &Trigger{Inputs: make([]Input, 26)}
	for i := range many.Inputs {
		many.Inputs[i].Name = fmt.Sprint("i", i)
	}
	if _, _, errs := DispatchInputs(many, nil); len(errs) != 1 {
		t.Errorf("26 inputs: %v", errs)
	}
}

func BenchmarkDecide(b *testing.B) {
	w := onWorkflow(b, `
  push:
    branches: [main, 'releases/**', '!releases/**-alpha']
    paths: ['**.go', 'go.*', '!docs/**']
  pull_request:
    branches: [main]
`)
	h := &Happening{Event: "push", Ref: "refs/heads/releases/1", FilesKnown: true}
	for i := range 50 {
		h.ChangedFiles = append(h.ChangedFiles, fmt.Sprintf("docs/part%d/page.md", i))
	}
	b.ReportAllocs()
	for b.Loop() {
		if d := w.Decide(h); d.Run {
			b.Fatal(d)
		}
	}
}
