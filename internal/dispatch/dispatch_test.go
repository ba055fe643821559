package dispatch

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
	"github.com/hearth-ci/hearth/internal/oidc"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/store"
)

const twoJobs = `name: CI
on:
  push:
    branches: [master]
    paths: ['**.go']
jobs:
  build:
    runs-on: ubuntu-latest
    outputs:
      answer: ${{ steps.a.outputs.answer }}
    steps:
      - uses: actions/checkout@v4
      - id: a
        name: Look at the files
        run: |
          cat main.go
          echo "answer=42" >> $GITHUB_OUTPUT
          echo "::warning file=main.go,line=1::package name"
      - run: echo "the key is ${{ secrets.DEPLOY_KEY }}"
  test:
    needs: build
    runs-on: ubuntu-latest
    strategy:
      matrix:
        v: [1, 2]
    steps:
      - run: test "${{ needs.build.outputs.answer }}" = 42 && test ${{ matrix.v }} = 1
`

func TestPush(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.OIDC, c.Results = oidc.New(oidc.Config{Dir: t.TempDir()}), results.New(results.Config{Dir: t.TempDir()})
	})
	s.before = func(job *plan.Job) {
		if job.Key == "build" {
			leaves(t, s.d.cfg.Results, s.runs()[0], job.Key)
		}
	}
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": twoJobs, "main.go": "package main // in the machine\n"})
	s.gh.Changes(hello, pushed1, "main.go")
	e := s.deliver("push", s.push(nil))
	if e.State != store.EventDone || !strings.HasPrefix(e.Detail, "push: 1 run; .github/workflows/ci.yml: run ") {
		t.Errorf("event %s: %s", e.State, e.Detail)
	}
	got := s.ended(3)
	build := got["CI / build"]
	if build.Conclusion != "success" || build.HeadSHA != pushed1 || build.DetailsURL == "" || len(build.Annotations) != 1 {
		t.Errorf("%+v", build)
	}
	for _, want := range []string{"**Expected before it started:**", "| 2 | Look at the files | ✓ success |", "Log, steps and predictions",
		"Artifacts:\n- [`the 'binary'`](", "/artifacts/1), 4 B\n"} {
		if !strings.Contains(build.Output.Summary, want) {
			t.Errorf("no %q in\n%s", want, build.Output.Summary)
		}
	}
	failed := got["CI / test (2)"]
	if failed.Conclusion != "failure" || !strings.Contains(failed.Output.Title, "exit code 1") || failed.History[len(failed.History)-1] != "completed:failure" {
		t.Errorf("%+v", failed)
	}
	// GitHub's fail-fast: whether the other cell was over by then is a race.
	if one := got["CI / test (1)"]; one.Conclusion != "success" && one.Conclusion != "cancelled" {
		t.Errorf("%+v", one)
	}
	s.until("the run is over", func() bool { return s.runs()[0].Status == ci.Completed })
	run := s.runs()[0]
	s.mu.Lock()
	if r := s.jobs[0].runner; r.Results == nil || r.OIDC == nil || !r.CacheMode.Writes() {
		t.Errorf("the repository's own job: %+v", r)
	}
	s.mu.Unlock()
	if run.Conclusion != ci.Failure || run.Number != 1 || run.SHA != pushed1 || run.Actor != "Codertocat" {
		t.Errorf("%+v", run)
	}
	log := s.log(run, "build")
	if !strings.Contains(log, "package main // in the machine") || !strings.Contains(log, "the key is ***") || strings.Contains(log, "hunter2") {
		t.Errorf("log:\n%s", log)
	}
	s.settled()
	resp, err := http.Get(build.DetailsURL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, _ := io.ReadAll(resp.Body)
	for _, want := range []string{"in the machine", "Look at the files", "test (2)"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page that the check links to has no %q", want)
		}
	}
}

// leaves has a job leave an artifact.
func leaves(t *testing.T, store *results.Store, run ci.Run, key string) {
	session, err := store.Open(results.Job{Repository: run.Repository, Run: run.ID, Attempt: 1, Key: key})
	if err != nil {
		t.Error(err)
		return
	}
	defer session.Close()
	call := func(method string, body string) (answer struct {
		URL string `json:"signed_upload_url"`
	}) {
		r := httptest.NewRequest("POST", "/twirp/github.actions.results.api.v1.ArtifactService/"+method, strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+session.Token())
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		if session.ServeHTTP(w, r); w.Code != 200 {
			t.Error(method, w.Code, w.Body)
		}
		json.Unmarshal(w.Body.Bytes(), &answer)
		return answer
	}
	about := fmt.Sprintf("{\"workflow_run_backend_id\":%q,\"name\":\"the `binary`\",\"size\":4}", run.ID)
	r := httptest.NewRequest("PUT", call("CreateArtifact", about).URL, strings.NewReader("made"))
	r.Header.Set("x-ms-blob-type", "BlockBlob")
	session.ServeHTTP(httptest.NewRecorder(), r)
	call("FinalizeArtifact", about)
}

const passes = `name: Small
on: [push, pull_request, workflow_dispatch]
jobs:
  one:
    runs-on: ubuntu-latest
    steps:
      - run: echo "key=[${{ secrets.DEPLOY_KEY }}] ref=$GITHUB_REF sha=$GITHUB_SHA base=$GITHUB_BASE_REF"
`

// request is pull_request.opened with our installation and commits.
func (s *site) request(changes map[string]any) []byte {
	all := map[string]any{"installation.id": s.gh.Installation}
	maps.Copy(all, changes)
	s.gh.Commit(hello, head2, map[string]string{".github/workflows/ci.yml": passes})
	s.gh.Commit(hello, base2, map[string]string{"README.md": "none here"})
	s.gh.Ref(hello, "refs/heads/master", base2)
	s.gh.Describe(hello, head2, "Update the README")
	s.gh.Pull(hello, 2, "README.md")
	return payloadOf(s.t, "pull_request.opened", all)
}

func TestPullRequest(t *testing.T) {
	s := newSite(t, nil)
	e := s.deliver("pull_request", s.request(nil))
	if !strings.Contains(e.Detail, "pull_request: 1 run at the head ec26c3e5: GitHub names no merge commit yet") ||
		!strings.Contains(e.Detail, "pull_request_target: there are no workflows at f95f852b") {
		t.Errorf("detail %q", e.Detail)
	}
	if c := s.ended(1)["Small / one"]; c.Conclusion != "success" || c.HeadSHA != head2 {
		t.Errorf("%+v", c)
	}
	run := s.runs()[0]
	if got := s.log(run, "one"); !strings.Contains(got, "key=[***] ref=refs/pull/2/merge sha="+head2+" base=master") {
		t.Error(got)
	}

	// With a merge commit that merges this head, that is what is run; the check
	// stays at the head. One that merges another head is stale.
	merge, stale := githubtest.SHA("merge"), githubtest.SHA("stale")
	for _, sha := range []string{merge, stale} {
		s.gh.Commit(hello, sha, map[string]string{".github/workflows/ci.yml": passes})
	}
	s.gh.Describe(hello, merge, "Merge", base2, head2)
	s.gh.Describe(hello, stale, "Merge", base2, githubtest.SHA("before"))
	if e := s.deliver("pull_request", s.request(map[string]any{"pull_request.merge_commit_sha": merge})); !strings.Contains(e.Detail, "at the merge commit") {
		t.Error(e.Detail)
	}
	if run := s.runs()[0]; run.SHA != merge {
		t.Errorf("%+v", run)
	}
	if e := s.deliver("pull_request", s.request(map[string]any{"pull_request.merge_commit_sha": stale})); !strings.Contains(e.Detail, "is not of it") {
		t.Error(e.Detail)
	}
	s.until("three checks at the head", func() bool {
		n := 0
		for _, c := range s.gh.Checks() {
			if c.HeadSHA == head2 && c.Conclusion == "success" {
				n++
			}
		}
		return n == 3
	})
}

func TestForkGetsNoSecrets(t *testing.T) {
	s := newSite(t, func(c *Config) { c.OIDC = oidc.New(oidc.Config{Dir: t.TempDir()}) })
	e := s.deliver("pull_request", s.request(map[string]any{"pull_request.head.repo.full_name": "stranger/Hello-World"}))
	if e.State != store.EventDone {
		t.Fatal(e.Detail)
	}
	if c := s.ended(1)["Small / one"]; c.Conclusion != "success" {
		t.Errorf("%+v", c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.jobs) != 1 || len(s.jobs[0].secrets) != 0 {
		t.Errorf("a fork's job saw %v", s.jobs)
	}
	if r := s.jobs[0].runner; r.CacheMode != results.ReadOnly || r.OIDC != nil {
		t.Errorf("a fork's job may do %q with caches, and has tokens: %v", r.CacheMode, r.OIDC != nil)
	}
	for _, p := range s.gh.Tokens() {
		for scope, access := range p {
			if access != "read" {
				t.Errorf("a fork's token may %s %s", access, scope)
			}
		}
	}
	if got := s.log(s.runs()[0], "one"); !strings.Contains(got, "key=[]") {
		t.Error(got)
	}
}

func TestByHand(t *testing.T) {
	s := newSite(t, nil)
	const repo = "octo-org/octo-repo"
	sha := githubtest.SHA("main")
	s.gh.Commit(repo, sha, map[string]string{
		".github/workflows/hello-world-workflow.yml": "on:\n  workflow_dispatch:\n    inputs:\n      who: {type: string, required: true}\n      loud: {type: boolean}\njobs:\n  greet:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo \"hello ${{ inputs.who }} ${{ inputs.loud && 'LOUD' }}\"\n",
		".github/workflows/other.yml":                "on: workflow_dispatch\njobs:\n  no:\n    runs-on: ubuntu-latest\n    steps: [{run: exit 1}]\n",
	})
	s.gh.Ref(repo, "refs/heads/main", sha)
	given := map[string]any{"installation.id": s.gh.Installation, "inputs": map[string]any{"who": "world", "loud": true}}
	s.deliver("workflow_dispatch", payloadOf(t, "workflow_dispatch", given))
	if c := s.ended(1)[".github/workflows/hello-world-workflow.yml / greet"]; c.Conclusion != "success" || c.HeadSHA != sha {
		t.Errorf("%+v", c)
	}
	if got := s.log(s.runs()[0], "greet"); !strings.Contains(got, "hello world LOUD") {
		t.Error(got)
	}
	// Without the input that is required: said, at its place.
	delete(given["inputs"].(map[string]any), "who")
	s.deliver("workflow_dispatch", payloadOf(t, "workflow_dispatch", given))
	c := s.ended(2)[".github/workflows/hello-world-workflow.yml"]
	if c.Conclusion != "failure" || !strings.Contains(c.Output.Summary, "who") {
		t.Errorf("%+v", c)
	}
}

func TestNothingToDo(t *testing.T) {
	s := newSite(t, nil)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": strings.ReplaceAll(twoJobs, "[master]", "[release]"), "main.go": ""})
	s.gh.Changes(hello, pushed1, "main.go")
	e := s.deliver("push", s.push(nil))
	if e.State != store.EventDone || !strings.Contains(e.Detail, "push: no workflow runs; .github/workflows/ci.yml: ") || !strings.Contains(e.Detail, "master") {
		t.Errorf("%s: %s", e.State, e.Detail)
	}
	s.gh.Commit(hello, pushed1, map[string]string{"main.go": ""})
	if e := s.deliver("push", s.push(nil)); !strings.Contains(e.Detail, "there are no workflows at 6113728f") {
		t.Error(e.Detail)
	}
	if e := s.deliver("push", payloadOf(t, "push_tag",
		map[string]any{"installation.id": s.gh.Installation})); e.Detail != "the push deletes refs/tags/simple-tag" {
		t.Error(e.Detail)
	}
	if len(s.gh.Checks())+len(s.runs()) != 0 {
		t.Errorf("checks %v, runs %v", s.gh.Checks(), s.runs())
	}
}

func TestInvalidWorkflow(t *testing.T) {
	s := newSite(t, nil)
	s.gh.Commit(hello, pushed1, map[string]string{
		".github/workflows/bad.yml":    "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - runn: echo\n",
		".github/workflows/broken.yml": "on: push\njobs: [\n",
		".github/workflows/mac.yml":    "on: push\njobs:\n  a:\n    runs-on: macos-latest\n    steps:\n      - run: echo\n",
		".github/workflows/good.yml":   passes,
	})
	e := s.deliver("push", s.push(nil))
	if e.State != store.EventDone || !strings.HasPrefix(e.Detail, "push: 4 runs; ") {
		t.Errorf("%s: %s", e.State, e.Detail)
	}
	got := s.ended(4)
	bad := got[".github/workflows/bad.yml"]
	if bad.Conclusion != "failure" || len(bad.Annotations) == 0 || bad.Annotations[0]["path"] != ".github/workflows/bad.yml" ||
		bad.Annotations[0]["start_line"] != 6.0 || bad.Annotations[0]["annotation_level"] != "failure" {
		t.Errorf("%+v", bad)
	}
	if c := got[".github/workflows/broken.yml"]; c.Conclusion != "failure" || len(c.Annotations) == 0 {
		t.Errorf("%+v", c)
	}
	// What cannot run here is no fault of its author, and says so in a check of its own.
	if c := got[".github/workflows/mac.yml / a"]; c.Conclusion != "neutral" || c.Annotations[0]["start_line"] != 4.0 ||
		!strings.Contains(c.Output.Title, "Not run here: Job 'a' runs on 'macos-latest'") {
		t.Errorf("%+v", c)
	}
	if c := got["Small / one"]; c.Conclusion != "success" {
		t.Errorf("the valid one: %+v", c)
	}
	s.settled()
	resp, err := http.Get(bad.DetailsURL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, _ := io.ReadAll(resp.Body)
	if !strings.Contains(string(page), "bad.yml:6") || !strings.Contains(string(page), "runn") {
		t.Errorf("the page does not say what is wrong:\n%s", page)
	}
}

func TestAgain(t *testing.T) {
	s := newSite(t, nil)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": passes})
	s.deliver("push", s.push(nil))
	first := s.ended(1)["Small / one"]
	ask := func(external string) store.StoredEvent {
		return s.deliver("check_run", payloadOf(t, "check_run.rerequested", map[string]any{"installation.id": s.gh.Installation,
			"repository.full_name": hello, "check_run.external_id": external, "check_run.app.id": s.gh.AppID}))
	}
	if e := ask(first.ExternalID); !strings.HasPrefix(e.Detail, "attempt 2 of .github/workflows/ci.yml") {
		t.Fatal(e.Detail)
	}
	s.until("the second check", func() bool { all := s.gh.Checks(); return len(all) == 2 && all[1].Conclusion == "success" })
	if runs := s.runs(); len(runs) != 2 || runs[0].Attempt+runs[1].Attempt != 3 || runs[0].Number != 1 || runs[1].Number != 1 {
		t.Errorf("%+v", runs)
	}
	// Of the repetition as well, and not of what others made.
	if e := ask(s.gh.Checks()[1].ExternalID); !strings.HasPrefix(e.Detail, "attempt 3 of") {
		t.Error(e.Detail)
	}
	if e := ask(ci.NewID()); e.State != store.EventRefused {
		t.Error(e.State, e.Detail)
	}
	if e := s.deliver("check_run", payloadOf(t, "check_run.rerequested",
		map[string]any{"installation.id": s.gh.Installation, "repository.full_name": hello, "action": "created",
			"check_run.app.id": s.gh.AppID})); e.Detail != "about this server's own checks" {
		t.Error(e.Detail)
	}
}

const grows = `name: Grows
on: push
jobs:
  find:
    runs-on: ubuntu-latest
    outputs:
      list: ${{ steps.l.outputs.list }}
    steps:
      - id: l
        run: echo 'list=["x","y"]' >> $GITHUB_OUTPUT
  each:
    needs: find
    runs-on: ubuntu-latest
    strategy:
      matrix:
        what: ${{ fromJSON(needs.find.outputs.list) }}
    steps:
      - run: echo ${{ matrix.what }}
  ship:
    needs: each
    uses: ./.github/workflows/called.yml
    with:
      to: moon
  never:
    needs: find
    if: ${{ needs.find.outputs.list == '' }}
    runs-on: ubuntu-latest
    steps:
      - run: exit 1
`

const called = `on:
  workflow_call:
    inputs:
      to: {type: string, required: true}
jobs:
  fly:
    runs-on: ubuntu-latest
    steps:
      - run: echo "to the ${{ inputs.to }}"
`

const partly = `name: Part
on: push
jobs:
  find:
    runs-on: ubuntu-latest
    outputs:
      list: ${{ steps.l.outputs.list }}
    steps:
      - id: l
        run: echo 'list=["ubuntu-latest","gpu"]' >> $GITHUB_OUTPUT
  late:
    needs: find
    strategy: {matrix: {on: "${{ fromJSON(needs.find.outputs.list) }}"}}
    runs-on: ${{ matrix.on }}
    steps: [{run: echo}]
  after:
    needs: late
    runs-on: ubuntu-latest
    steps: [{run: echo}]
  larger:
    runs-on: ubuntu-latest-16-cores
    steps: [{run: echo}]
  far:
    runs-on: ubuntu-latest
    steps: [{uses: nobody/nothing@v1}]
`

// A job that cannot run here stops only itself and what needs it: a neutral check that
// names it, also where its label comes from another job. One that somebody has to mend
// fails, and the others run.
func TestJobsThatCannotRun(t *testing.T) {
	s := newSite(t, nil)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": partly})
	s.deliver("push", s.push(nil))
	got := s.ended(6)
	for name, want := range map[string]string{"Part / find": "success", "Part / late (ubuntu-latest)": "success", "Part / late (gpu)": "neutral",
		"Part / after": "skipped", "Part / larger": "success", "Part / far": "failure"} {
		if got[name].Conclusion != want {
			t.Errorf("%s: %q, want %q: %+v", name, got[name].Conclusion, want, got[name].Output)
		}
	}
	if o := got["Part / late (gpu)"].Output; !strings.Contains(o.Title, `Not run here: runs-on label "gpu"`) ||
		!strings.Contains(o.Summary, "this server's runners have the labels") {
		t.Errorf("%+v", o)
	}
	if c := got["Part / late (gpu)"]; len(c.Annotations) != 1 || c.Annotations[0]["start_line"] != 14.0 || c.Annotations[0]["annotation_level"] != "warning" {
		t.Errorf("%+v", c.Annotations)
	}
	if o := got["Part / after"].Output; !strings.Contains(o.Title, "it needs late, which cannot run here") {
		t.Errorf("%+v", o)
	}
	if o := got["Part / larger"].Output; !strings.Contains(o.Summary, "notice: Nothing here is known by the label") {
		t.Errorf("%+v", o)
	}
	s.settled()
	if runs := s.runs(); len(runs) != 1 || runs[0].Conclusion != ci.Failure {
		t.Errorf("%+v", runs)
	}
}

// Jobs that only the run itself makes known have their checks too, and what
// calls a workflow has none of its own.
func TestRunThatGrows(t *testing.T) {
	s := newSite(t, nil)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": grows, ".github/workflows/called.yml": called})
	s.deliver("push", s.push(nil))
	got := s.ended(5)
	for name, want := range map[string]string{"Grows / find": "success", "Grows / each (x)": "success", "Grows / each (y)": "success",
		"Grows / ship / fly": "success", "Grows / never": "skipped"} {
		if got[name].Conclusion != want {
			t.Errorf("%s: %+v", name, got[name])
		}
	}
	s.until("the run is over", func() bool { return s.runs()[0].Status == ci.Completed })
	run := s.runs()[0]
	if run.Conclusion != ci.Success {
		t.Errorf("%+v", run)
	}
	if log := s.log(run, "ship / fly"); !strings.Contains(log, "to the moon") {
		t.Error(log)
	}
	s.settled()
	// The page of a run that is over shows nothing that waits.
	resp, err := http.Get(s.http.URL + "/runs/" + run.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	// What the colours of the timeline mean is said whatever there is.
	if said := strings.Replace(string(page), "</span> waiting <span", "", 1); err != nil || strings.Contains(said, "waiting") {
		t.Errorf("%v: %s", err, page)
	}
}

// A newer push cancels the older one's run, if the workflow says so.
func TestNewerPushCancels(t *testing.T) {
	s := newSite(t, nil)
	newer := githubtest.SHA("newer")
	slow := strings.Replace(passes, "jobs:", "concurrency: {group: \"${{ github.ref }}\", cancel-in-progress: true}\njobs:", 1)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": strings.Replace(slow, "- run: echo", "- run: sleep 60; echo", 1)})
	s.gh.Commit(hello, newer, map[string]string{".github/workflows/ci.yml": slow})
	s.deliver("push", s.push(nil))
	s.until("the first one runs", func() bool { all := s.gh.Checks(); return len(all) == 1 && all[0].Status == "in_progress" })
	s.deliver("push", s.push(map[string]any{"after": newer}))
	s.until("both have ended", func() bool {
		all := s.gh.Checks()
		return len(all) == 2 && all[0].Status == "completed" && all[1].Status == "completed"
	})
	all := s.gh.Checks()
	if all[0].Conclusion != "cancelled" || !strings.Contains(all[0].Output.Title, "the run was cancelled") || all[1].Conclusion != "success" {
		t.Errorf("%s: %s\n%s: %s", all[0].Conclusion, all[0].Output.Title, all[1].Conclusion, all[1].Output.Title)
	}
}

// What the App's installation may read is not for a stranger's workflow file.
func TestForkReadsNoPrivateWorkflows(t *testing.T) {
	s := newSite(t, nil)
	private := githubtest.SHA("private")
	s.gh.Commit("Codertocat/private", private, map[string]string{".github/workflows/s.yml": "on: workflow_call\njobs:\n  x:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo the private recipe\n"})
	request := s.request(map[string]any{"pull_request.head.repo.full_name": "stranger/Hello-World"})
	s.gh.Commit(hello, head2, map[string]string{".github/workflows/ci.yml": "on: pull_request\njobs:\n  steal:\n    uses: Codertocat/private/.github/workflows/s.yml@" + private + "\n"})
	e := s.deliver("pull_request", request)
	if e.State != store.EventDone {
		t.Fatal(e.Detail)
	}
	s.until("a failed check", func() bool {
		for _, c := range s.gh.Checks() {
			if c.Conclusion == "failure" {
				return true
			}
		}
		return false
	})
	for _, r := range s.gh.Requests() {
		if strings.Contains(r, "Codertocat/private") {
			t.Errorf("the private repository was asked for: %s", r)
		}
	}
	for _, c := range s.gh.Checks() {
		if strings.Contains(c.Output.Summary+c.Output.Text, "private recipe") {
			t.Error("its content is shown")
		}
	}
}
