package dispatch

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
	"github.com/hearth-ci/hearth/internal/front"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/webhook"
)

// with serves what is set of repositories.
func with(set config.Repositories) func(*Config) {
	return func(c *Config) { c.Policy = config.Config{Repositories: set}.Policy }
}

// valuesOf has secrets or variables read from files.
func (s *site) valuesOf(files map[string]string) *config.Values {
	s.t.Helper()
	v, err := values(s.t.TempDir(), files)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// stranger is a pull request from a fork by somebody of whom GitHub says this.
func (s *site) stranger(association string, changes map[string]any) []byte {
	all := map[string]any{"pull_request.head.repo.full_name": "stranger/Hello-World", "pull_request.author_association": association,
		"pull_request.user.login": "stranger", "sender.login": "stranger"}
	maps.Copy(all, changes)
	return s.request(all)
}

func (s *site) ran() []seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]seen(nil), s.jobs...)
}

// quiet fails if anything was started.
func (s *site) quiet(why string) {
	s.t.Helper()
	if len(s.runs())+len(s.ran())+len(s.gh.Checks()) != 0 {
		s.t.Errorf("%s started something: %+v", why, s.runs())
	}
}

// Whoever installs the App somewhere has GitHub deliver from there: without a
// list, strangers' workflows ran, with everybody's secrets. At both doors: when it
// comes, and when it is handled (it was stored before the setting changed).
func TestAttackDeliveryOfAnotherRepository(t *testing.T) {
	s := newSite(t, with(config.Repositories{"acme/*": {}}))
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": passes})
	if e := s.deliver("push", s.push(nil)); e.State != store.EventRefused || !strings.Contains(e.Detail, "does not serve "+hello) || e.Payload != nil {
		t.Errorf("%s: %s, %d bytes kept", e.State, e.Detail, len(e.Payload))
	}
	s.quiet("a repository that is not served")
	for _, r := range s.gh.Requests() {
		t.Errorf("GitHub was asked: %s", r)
	}

	m := &webhook.Handler{Secret: secret, MaxBody: 1 << 20, Recorder: front.Deliveries{Store: s.store}, Log: s.d.log, Starts: func(string) bool { return true },
		Serves: func(name string) bool { _, ok := s.d.policy(name); return ok }}
	s.http.Config.Handler = m
	code, answer := s.post("push", ci.NewID(), s.push(map[string]any{"after": githubtest.SHA("x")}), "")
	e, err := s.store.Event(t.Context(), answer["id"])
	if err != nil || code != http.StatusForbidden || e.State != store.EventRefused || e.Payload != nil {
		t.Errorf("%d %v: %+v, %v", code, answer, e, err)
	}
}

// A server that is told to serve less does not go on with what it had begun.
func TestAttackRunOfRepositoryNoLongerServed(t *testing.T) {
	s := newForge(t)
	dir, marks := t.TempDir(), t.TempDir()
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": fmt.Sprintf(waiting, marks)})
	s.start(s.forge(dir), func(c *Config) { c.Grace = 50 * time.Millisecond })
	s.deliver("push", s.push(nil))
	s.until("the job runs", func() bool { return lines(t, filepath.Join(marks, "slow")) == 1 })
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	s.start(s.forge(dir), with(config.Repositories{"acme/*": {}}))
	s.until("the run is over", func() bool { return s.runs()[0].Status == ci.Completed })
	if r := s.runs()[0]; r.Conclusion != ci.Cancelled || len(s.ran()) != 0 {
		t.Errorf("%+v, %d jobs", r, len(s.ran()))
	}
	os.WriteFile(filepath.Join(marks, "go"), nil, 0o600)
}

// The id in a check is public. Shown again as a check of another repository, it had
// that run's workflow run with the rights of whoever asked.
func TestAttackRerunOfAnothersCheck(t *testing.T) {
	s := newSite(t, with(config.Repositories{"*": {}}))
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": passes})
	s.gh.Commit("mallory/app", pushed1, map[string]string{".github/workflows/ci.yml": passes})
	s.deliver("push", s.push(nil))
	check := s.ended(1)["Small / one"]
	ask := func(changes map[string]any) store.StoredEvent {
		all := map[string]any{"installation.id": s.gh.Installation, "repository.full_name": hello, "check_run.external_id": check.ExternalID,
			"check_run.app.id": s.gh.AppID}
		maps.Copy(all, changes)
		return s.deliver("check_run", payloadOf(t, "check_run.rerequested", all))
	}
	run := s.runs()[0]
	for name, changes := range map[string]map[string]any{
		"the job's id from another repository": {"repository.full_name": "mallory/app"},
		"the run's id from another repository": {"repository.full_name": "mallory/app", "check_run.external_id": run.ID},
		"through another installation":         {"installation.id": 666},
	} {
		if e := ask(changes); e.State != store.EventRefused || strings.Contains(e.Detail, run.ID) {
			t.Errorf("%s: %s: %s", name, e.State, e.Detail)
		}
	}
	if len(s.runs()) != 1 {
		t.Errorf("%+v", s.runs())
	}
	if e := ask(nil); !strings.HasPrefix(e.Detail, "attempt 2 of") {
		t.Errorf("its own: %s", e.Detail)
	}
}

// Whoever asks for a run again lends it nothing: that of Dependabot's stays
// Dependabot's when a maintainer presses the button.
func TestAttackRerunGainsTrust(t *testing.T) {
	s := newSite(t, nil)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": strings.Replace(passes, "- run: echo",
		"- run: echo $GITHUB_ACTOR, $GITHUB_TRIGGERING_ACTOR;", 1)})
	s.deliver("push", s.push(map[string]any{"sender.login": "dependabot[bot]"}))
	check := s.ended(1)["Small / one"]
	s.deliver("check_run", payloadOf(t, "check_run.rerequested", map[string]any{"installation.id": s.gh.Installation, "repository.full_name": hello,
		"check_run.external_id": check.ExternalID, "check_run.app.id": s.gh.AppID, "sender.login": "maintainer"}))
	s.until("both have run", func() bool { return len(s.ran()) == 2 && s.runs()[0].Status == ci.Completed })
	for _, j := range s.ran() {
		if len(j.secrets) != 0 || j.runner.EnvironmentSecrets != nil {
			t.Errorf("%+v", j.secrets)
		}
	}
	if got := s.log(s.runs()[0], "one"); !strings.Contains(got, "dependabot[bot], maintainer") {
		t.Error(got)
	}
}

// A group that is called as another repository's, or as the repository's own out of
// a fork, cancelled what ran there.
func TestAttackGroupCancelsAnother(t *testing.T) {
	s := newSite(t, func(c *Config) { with(config.Repositories{"*": {Approval: "none"}})(c) })
	group := "concurrency: {group: deploy, cancel-in-progress: true}\njobs:"
	marks := t.TempDir()
	slow := strings.Replace(passes, "jobs:", group, 1)
	slow = strings.Replace(slow, "- run: echo", fmt.Sprintf("- run: while [ ! -e %s/go ]; do sleep 0.02; done; echo", marks), 1)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": slow})
	s.gh.Commit("mallory/app", pushed1, map[string]string{".github/workflows/ci.yml": strings.Replace(passes, "jobs:", group, 1)})
	s.deliver("push", s.push(nil))
	s.until("the first one runs", func() bool { all := s.gh.Checks(); return len(all) == 1 && all[0].Status == "in_progress" })
	s.deliver("push", s.push(map[string]any{"repository.full_name": "mallory/app"}))
	request := s.stranger("NONE", nil)
	s.gh.Commit(hello, head2, map[string]string{".github/workflows/ci.yml": strings.Replace(passes, "jobs:", group, 1)})
	s.deliver("pull_request", request)
	s.until("the others have ended", func() bool {
		n := 0
		for _, r := range s.runs() {
			if r.Status == ci.Completed {
				n++
			}
		}
		return n == 2
	})
	if err := os.WriteFile(filepath.Join(marks, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.until("all have ended", func() bool { all := s.gh.Checks(); return len(all) == 3 && all[0].Status == "completed" })
	for _, r := range s.runs() {
		if r.Conclusion == ci.Cancelled {
			t.Errorf("%s of %s was cancelled", r.ID, r.Repository)
		}
	}
}

// Only the body is signed. That of a fork's pull request, sent once more as a push,
// would have run with secrets; here it does not get past the door, and what an
// older version let past is not handled.
func TestAttackBodyAsAnotherEvent(t *testing.T) {
	s := newSite(t, nil)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": passes})
	pull := s.stranger("NONE", nil)
	for _, event := range []string{"push", "create", "delete", "workflow_dispatch", "pull_request_review", "issue_comment", "deployment", "release", "watch",
		"public"} {
		if code, answer := s.post(event, ci.NewID(), pull, ""); code != http.StatusBadRequest || answer["status"] != "refused" {
			t.Errorf("a pull request's body as %s: %d %v", event, code, answer)
		}
	}
	for name, body := range map[string][]byte{"no ref": s.push(map[string]any{"ref": ""}), "null": s.push(map[string]any{"ref": nil}),
		"a pull request in it": s.push(map[string]any{"pull_request": map[string]any{}})} {
		if code, answer := s.post("push", ci.NewID(), body, ""); code != http.StatusBadRequest {
			t.Errorf("%s: %d %v", name, code, answer)
		}
	}
	id, _, err := s.store.AddEvent(t.Context(), ci.Event{Name: "push", Delivery: "old", Repository: hello, Payload: pull}, store.EventPending, "")
	if err != nil {
		t.Fatal(err)
	}
	s.d.Wake()
	s.until("it is refused", func() bool {
		e, err := s.store.Event(context.Background(), id)
		return err == nil && e.State == store.EventRefused
	})
	// A ref that is no branch and no tag passed every branch filter.
	for _, ref := range []string{"master", "refs/heads/", "refs/pull/2/merge", "refs/notes/x"} {
		if e := s.deliver("push", s.push(map[string]any{"ref": ref})); e.State != store.EventFailed {
			t.Errorf("%s: %s: %s", ref, e.State, e.Detail)
		}
	}
	// A pull request of another repository than the payload's.
	for _, base := range []any{map[string]any{"full_name": "mallory/app"}, nil} {
		if e := s.deliver("pull_request", s.stranger("OWNER", map[string]any{"pull_request.base.repo": base})); e.State != store.EventFailed {
			t.Errorf("%v: %s: %s", base, e.State, e.Detail)
		}
	}
	s.quiet("a body of another event")
}

// The delivery id is not signed either: whoever had a signed body had it run again
// and again, by sending it under new ids.
func TestAttackReplayUnderAnotherID(t *testing.T) {
	s := newSite(t, nil)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": passes})
	body := s.push(nil)
	s.deliver("push", body)
	s.ended(1)
	_, answer := s.post("push", "by-hand-1", body, "")
	var e store.StoredEvent
	s.until("the replay is handled", func() bool {
		var err error
		e, err = s.store.Event(context.Background(), answer["id"])
		return err == nil && e.State != store.EventPending && e.State != store.EventTaken
	})
	if e.State != store.EventRefused || !strings.Contains(e.Detail, "GitHub did not send this") || len(s.runs()) != 1 {
		t.Errorf("%s: %s, %d runs", e.State, e.Detail, len(s.runs()))
	}
	// GitHub may well send the same twice: a workflow that is started twice by hand.
	if e := s.deliver("push", body); e.State != store.EventDone || len(s.runs()) != 2 {
		t.Errorf("%s: %s, %d runs", e.State, e.Detail, len(s.runs()))
	}
	// And an id that GitHub did use, for another body.
	s.gh.Send("real", "push", s.push(map[string]any{"after": githubtest.SHA("other")}))
	if _, answer = s.post("push", "real", body, ""); answer["status"] != "accepted" {
		t.Fatal(answer)
	}
	s.until("it is refused", func() bool {
		e, err := s.store.Event(context.Background(), answer["id"])
		return err == nil && e.State == store.EventRefused
	})
}

const asks = `name: Asks
on: pull_request
jobs:
  one:
    runs-on: ubuntu-latest
    timeout-minutes: 99999999
    environment: production
    steps:
      - run: echo "key=[${{ secrets.DEPLOY_KEY }}] env=[${{ secrets.PROD_KEY }}] var=[${{ vars.REGION }}]"
`

// What a fork asks for: a job of 190 years, a large machine, the network, an
// environment's secrets, a token that writes.
func TestAttackForkAsksForMore(t *testing.T) {
	s := newForge(t)
	secrets := s.valuesOf(map[string]string{"org/Codertocat": "DEPLOY_KEY=hunter2-hunter2", "env/Codertocat/Hello-World/production": "PROD_KEY=hunter2-prod"})
	vars := s.valuesOf(map[string]string{"repo/codertocat/hello-world": "REGION=eu"})
	s.start(s.forge(t.TempDir()), func(c *Config) {
		c.Secrets, c.Vars = secrets, vars
		c.Policy = config.Config{CPUs: 4, MemoryMiB: 4096,
			Repositories: config.Repositories{hello: {Limits: config.Limits{MaxTimeout: config.Duration(2 * time.Hour)},
				Fork: config.Limits{Network: "none", MaxTimeout: config.Duration(30 * time.Minute), CPUs: 1, MemoryMiB: 512}}}}.Policy
	})
	request := s.stranger("CONTRIBUTOR", nil)
	s.gh.Commit(hello, head2, map[string]string{".github/workflows/ci.yml": "permissions: write-all\n" + asks})
	s.deliver("pull_request", request)
	s.ended(1)
	fork := s.ran()[0]
	if r := fork.runner; fork.minutes != 30 || r.Network.String() != "none" || r.CPUs != 1 || r.MemoryMiB != 512 || len(r.Secrets) != 0 ||
		r.EnvironmentSecrets != nil || r.EnvironmentVars != nil || fork.vars != "{}" {
		t.Errorf("a fork's job: %v min, %+v, vars %s", fork.minutes, r, fork.vars)
	}
	for _, p := range s.gh.Tokens() {
		for scope, access := range p {
			if access != "read" {
				t.Errorf("a fork's token may %s %s", access, scope)
			}
		}
	}
	// The same from a branch of the repository.
	s.deliver("pull_request", s.again(map[string]any{"number": 3}))
	s.until("it has run", func() bool { return len(s.ran()) == 2 })
	own := s.ran()[1]
	if r := own.runner; own.minutes != 120 || r.Network.String() != "public" || r.CPUs != 4 || r.Secrets["DEPLOY_KEY"] == "" ||
		r.EnvironmentSecrets["production"]["PROD_KEY"] == "" || !strings.Contains(own.vars, `"REGION": "eu"`) {
		t.Errorf("its own job: %v min, %+v, vars %s", own.minutes, r, own.vars)
	}
}

// again is pull_request.opened with the commits as they are.
func (s *site) again(changes map[string]any) []byte {
	all := map[string]any{"installation.id": s.gh.Installation}
	maps.Copy(all, changes)
	return payloadOf(s.t, "pull_request.opened", all)
}

// Pull requests from forks opened all at once took every machine of the server.
func TestAttackForkTakesAllMachines(t *testing.T) {
	s := newSite(t, with(config.Repositories{hello: {Approval: "none", Limits: config.Limits{Machines: 2}, Fork: config.Limits{Machines: 1}}}))
	marks := t.TempDir()
	request := s.stranger("NONE", nil)
	many := strings.Replace(passes, "    runs-on: ubuntu-latest\n", "    runs-on: ubuntu-latest\n    strategy: {matrix: {n: [1, 2, 3]}}\n", 1)
	s.gh.Commit(hello, head2, map[string]string{".github/workflows/ci.yml": strings.Replace(many, "- run: echo",
		fmt.Sprintf("- run: set -C; echo x > %[1]s/one; while [ ! -e %[1]s/go ]; do sleep 0.02; done; sleep 0.1; rm %[1]s/one; echo", marks), 1)})
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": passes})
	s.deliver("pull_request", request)
	s.until("one of them runs", func() bool { return len(s.ran()) == 1 })
	// The repository's own goes on beside it.
	s.deliver("push", s.push(nil))
	s.until("a push runs", func() bool {
		for _, r := range s.runs() {
			if r.Event == "push" && r.Status == ci.Completed {
				return true
			}
		}
		return false
	})
	os.WriteFile(filepath.Join(marks, "go"), nil, 0o600)
	for name, c := range s.ended(4) {
		if c.Conclusion != "success" { // two at once would have met over the file
			t.Errorf("%s: %s: %s", name, c.Conclusion, c.Output.Title)
		}
	}
}

// Whoever opens a first pull request had code run on the server at once.
func TestAttackFirstTimeContributor(t *testing.T) {
	for _, c := range []struct {
		approval, association string
		waits                 bool
	}{
		{"", "FIRST_TIME_CONTRIBUTOR", true}, {"", "FIRST_TIMER", true}, {"", "NONE", true}, {"", "MANNEQUIN", true}, {"", "", true}, {"", "SOMETHING_NEW", true},
		{"", "CONTRIBUTOR", false}, {"", "MEMBER", false}, {"all-forks", "MEMBER", true}, {"all-forks", "OWNER", true}, {"none", "NONE", false},
	} {
		p, _ := config.Config{Repositories: config.Repositories{"*": {Approval: c.approval}}}.Policy(hello)
		if got := mustWait(p, &pull{Association: c.association}); got != c.waits {
			t.Errorf("approval %q, %s: waits %v", c.approval, c.association, got)
		}
	}

	s := newForge(t)
	dir := t.TempDir()
	s.start(s.forge(dir), nil)
	e := s.deliver("pull_request", s.stranger("FIRST_TIME_CONTRIBUTOR", nil))
	if !strings.Contains(e.Detail, "waits for approval") {
		t.Error(e.Detail)
	}
	s.until("a check that waits", func() bool {
		all := s.gh.Checks()
		return len(all) == 1 && all[0].Output.Title == "Waiting for approval" && all[0].Status == "queued"
	})
	run := s.runs()[0]
	if c := s.gh.Checks()[0]; !strings.Contains(c.Output.Summary, "hearth approve "+run.ID) || len(c.Actions) != 1 {
		t.Errorf("%+v", c)
	}
	wait := func() {
		t.Helper()
		runs, err := Waiting(t.Context(), s.store)
		s.d.mu.Lock()
		conducted := len(s.d.runs)
		s.d.mu.Unlock()
		if err != nil || len(runs) != 1 || len(s.ran()) != 0 || conducted != 0 {
			t.Fatalf("%+v, %v, ran %d, under way %d", runs, err, len(s.ran()), conducted)
		}
	}
	wait()
	button := func(changes map[string]any) store.StoredEvent {
		all := map[string]any{"installation.id": s.gh.Installation, "repository.full_name": hello, "action": "requested_action",
			"requested_action":      map[string]any{"identifier": "approve"},
			"check_run.external_id": s.gh.Checks()[0].ExternalID, "check_run.app.id": s.gh.AppID, "sender.login": "stranger"}
		maps.Copy(all, changes)
		return s.deliver("check_run", payloadOf(t, "check_run.rerequested", all))
	}
	// By asking for it again, by pressing the button oneself, through another
	// repository, by having the server start anew, by the event that approves.
	if e := button(map[string]any{"action": "rerequested", "requested_action": nil}); !strings.Contains(e.Detail, "waits for approval") {
		t.Error(e.State, e.Detail)
	}
	if e := button(nil); e.State != store.EventRefused || !strings.Contains(e.Detail, "may not write") {
		t.Error(e.State, e.Detail)
	}
	if code, _ := s.post(approvalEvent, ci.NewID(), s.push(nil), ""); code != http.StatusBadRequest {
		t.Errorf("the event that approves came through the webhook: %d", code)
	}
	wait()
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	s.start(s.forge(dir), nil)
	if e := button(nil); e.State != store.EventRefused { // handled after what there was has been taken up
		t.Error(e.State, e.Detail)
	}
	wait()
	// Approved is this commit. A push to the branch waits again.
	ln, _, err := s.d.repos.take(t.Context(), hello)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.d.approved(t.Context(), ln, hello, run.ID, githubtest.SHA("another"), "me")
	if ln.done(); err == nil {
		t.Error("another commit was approved")
	}
	wait()
	if _, err := Approve(t.Context(), s.store, run.ID, "me"); err != nil {
		t.Fatal(err)
	}
	if c := s.ended(1)["Small / one"]; c.Conclusion != "success" || !strings.HasPrefix(strings.Join(c.History, " "), "queued ") {
		t.Errorf("%+v", c)
	}
	s.until("the run is over", func() bool { return s.runs()[0].Status == ci.Completed })
	if j := s.ran(); len(j) != 1 || len(j[0].secrets) != 0 {
		t.Errorf("approved, it still is a fork's: %+v", j)
	}
	if _, err := Approve(t.Context(), s.store, run.ID, "me"); err == nil {
		t.Error("approved twice")
	}
	newer := githubtest.SHA("newer")
	s.gh.Commit(hello, newer, map[string]string{".github/workflows/ci.yml": passes})
	s.deliver("pull_request", s.stranger("FIRST_TIME_CONTRIBUTOR", map[string]any{"action": "synchronize", "pull_request.head.sha": newer}))
	runs, err := Waiting(t.Context(), s.store)
	if err != nil || len(runs) != 1 || runs[0].SHA != newer || len(s.ran()) != 1 {
		t.Fatalf("%+v, %v", runs, err)
	}
	s.until("its check waits", func() bool { return len(s.gh.Checks()) == 2 })
	// The one who may, by the button.
	s.gh.Role(hello, "maintainer", "write")
	if e := button(map[string]any{"sender.login": "maintainer", "check_run.external_id": s.gh.Checks()[1].ExternalID}); !strings.Contains(e.Detail,
		"approved by maintainer") {
		t.Error(e.State, e.Detail)
	}
	s.until("it has run", func() bool { return len(s.ran()) == 2 && s.gh.Checks()[1].Conclusion == "success" })
	// Asked for again it needs no second look.
	if e := button(map[string]any{"action": "rerequested", "requested_action": nil}); !strings.HasPrefix(e.Detail, "attempt 2") {
		t.Error(e.Detail)
	}
	s.until("it has run again", func() bool { return len(s.ran()) == 3 })
}

// A run that waits can be ended without being let start.
func TestCancelWaiting(t *testing.T) {
	s := newSite(t, nil)
	s.deliver("pull_request", s.stranger("NONE", nil))
	s.until("a check that waits", func() bool { return len(s.gh.Checks()) == 1 })
	if under, err := s.store.CancelRun(t.Context(), s.runs()[0].ID, "not this"); err != nil || !under {
		t.Fatal(under, err)
	}
	if c := s.ended(1)["Small / one"]; c.Conclusion != "cancelled" || !strings.Contains(c.Output.Title, "not this") {
		t.Errorf("%+v", c)
	}
	if run := s.runs()[0]; run.Conclusion != ci.Cancelled || len(s.ran()) != 0 {
		t.Errorf("%+v", run)
	}
	s.settled()
}

// What nobody approves of does not wait for ever.
func TestApprovalExpires(t *testing.T) {
	s := newSite(t, nil)
	s.deliver("pull_request", s.stranger("NONE", nil))
	s.until("a check that waits", func() bool { return len(s.gh.Checks()) == 1 })
	if err := s.d.expire(t.Context(), time.Now().Add(29*24*time.Hour)); err != nil || s.runs()[0].Status == ci.Completed {
		t.Fatal(err, s.runs())
	}
	if err := s.d.expire(t.Context(), time.Now().Add(31*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if c := s.ended(1)["Small / one"]; c.Conclusion != "cancelled" || !strings.Contains(c.Output.Title, "nobody approved") {
		t.Errorf("%+v", c)
	}
	if r := s.runs()[0]; r.Conclusion != ci.Cancelled || len(s.ran()) != 0 {
		t.Errorf("%+v", r)
	}
	s.settled()
}

// A pull request against an old branch had its old pull_request_target workflow run,
// with secrets, long after the default branch had mended it.
func TestAttackTargetOfOldBranch(t *testing.T) {
	s := newSite(t, nil)
	request := s.stranger("NONE", map[string]any{"pull_request.base.ref": "old"})
	main := githubtest.SHA("main")
	target := strings.Replace(passes, "[push, pull_request, workflow_dispatch]", "pull_request_target", 1)
	s.gh.Commit(hello, base2, map[string]string{".github/workflows/old.yml": strings.ReplaceAll(target, "Small", "Old")})
	s.gh.Commit(hello, main, map[string]string{".github/workflows/new.yml": target})
	s.gh.Commit(hello, head2, map[string]string{".github/workflows/mine.yml": strings.ReplaceAll(target, "Small", "Mine")})
	s.gh.Ref(hello, "refs/heads/master", main)
	s.gh.Ref(hello, "refs/heads/old", base2)
	s.deliver("pull_request", request)
	s.ended(1)
	if r := s.runs()[0]; r.SHA != main || r.Ref != "refs/heads/master" || r.Workflow != "Small" {
		t.Errorf("%+v", r)
	}
	if got := s.log(s.runs()[0], "one"); !strings.Contains(got, "key=[***] ref=refs/heads/master sha="+main+" base=old") {
		t.Error(got)
	}
}

// What Dependabot pushes is code of others: it had all secrets, and a token that
// writes.
func TestAttackDependabot(t *testing.T) {
	for _, event := range []string{"push", "pull_request"} {
		t.Run(event, func(t *testing.T) {
			s := newForge(t)
			secrets := s.valuesOf(map[string]string{"org/Codertocat": "DEPLOY_KEY=hunter2-hunter2", "dependabot/org/codertocat": "NPM_KEY=hunter2-npm"})
			s.start(s.forge(t.TempDir()), func(c *Config) { c.Secrets = secrets })
			body := s.request(map[string]any{"sender.login": "dependabot[bot]"})
			s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": "permissions: write-all\n" + passes})
			if event == "push" {
				body = s.push(map[string]any{"sender.login": "dependabot[bot]"})
			}
			s.deliver(event, body)
			s.ended(1)
			if j := s.ran(); len(j) != 1 || len(j[0].secrets) != 1 || j[0].secrets["NPM_KEY"] != "hunter2-npm" || j[0].runner.EnvironmentSecrets != nil {
				t.Errorf("%+v", j)
			}
			for _, p := range s.gh.Tokens() {
				for scope, access := range p {
					if access != "read" {
						t.Errorf("Dependabot's token may %s %s", access, scope)
					}
				}
			}
		})
	}
}

// The secrets of one organisation were those of every other one on the server.
func TestAttackSecretsOfAnotherOwner(t *testing.T) {
	s := newForge(t)
	secrets := s.valuesOf(map[string]string{"org/acme": "DEPLOY_KEY=hunter2-acme", "repo/acme/app": "APP=hunter2-app", "repo/mallory/app": "OWN=hunter2-own",
		"env/acme/app/production": "P=hunter2-p"})
	s.start(s.forge(t.TempDir()), func(c *Config) { with(config.Repositories{"*": {}})(c); c.Secrets = secrets })
	for _, name := range []string{"acme/app", "mallory/app"} {
		s.gh.Commit(name, pushed1, map[string]string{".github/workflows/ci.yml": passes})
		s.deliver("push", s.push(map[string]any{"repository.full_name": name}))
	}
	s.ended2(2)
	for _, j := range s.ran() {
		r := j.runner
		if j.repository == "acme/app" && (len(r.Secrets) != 2 || len(r.EnvironmentSecrets) != 1) || j.repository == "mallory/app" &&
			(len(r.Secrets) != 1 || len(r.EnvironmentSecrets) != 0) {
			t.Errorf("%s: %v, %v", j.repository, r.Secrets, r.EnvironmentSecrets)
		}
	}
}

// ended2 waits for n completed checks, which may share a name.
func (s *site) ended2(n int) {
	s.t.Helper()
	s.until(fmt.Sprintf("%d checks are completed", n), func() bool {
		all := s.gh.Checks()
		for _, c := range all {
			if c.Status != "completed" {
				return false
			}
		}
		return len(all) == n
	})
}

// A workflow file could have those of any private repository that the App was
// installed on shown and run.
func TestAttackPrivateWorkflow(t *testing.T) {
	const private = "on: workflow_call\njobs:\n  x:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo the private recipe\n"
	ref := githubtest.SHA("private")
	for _, c := range []struct {
		name               string
		of                 string // repository that is called
		visibility, shares string // of it
		caller             map[string]any
		change             func(*site)
		runs               bool
		says               string
		asked              bool // GitHub, for its content
	}{
		{name: "of another owner", of: "acme/shared", visibility: "private", shares: "organization", caller: map[string]any{"repository.private": true},
			says: "public workflows only"},
		{name: "not shared", of: "Codertocat/shared", visibility: "private", shares: "none", caller: map[string]any{"repository.private": true},
			says: "does not let other repositories"},
		{name: "by a public one", of: "Codertocat/shared", visibility: "private", shares: "user", says: "private repositories of"},
		{name: "private by an internal one", of: "Codertocat/shared", visibility: "private", shares: "organization",
			caller: map[string]any{"repository.private": true, "repository.visibility": "internal"}, says: "private repositories of"},
		{name: "not served", of: "Codertocat/elsewhere", visibility: "private", shares: "user", caller: map[string]any{"repository.private": true},
			says: "public workflows only"},
		{name: "without the right to ask", of: "Codertocat/shared", visibility: "private", shares: "user", caller: map[string]any{"repository.private": true},
			change: func(s *site) { s.gh.WithholdAdministration() }, says: "administration: read"},
		{name: "shared", of: "Codertocat/shared", visibility: "private", shares: "user", caller: map[string]any{"repository.private": true}, runs: true},
		{name: "internal", of: "Codertocat/shared", visibility: "internal", shares: "enterprise",
			caller: map[string]any{"repository.private": true, "repository.visibility": "internal"}, runs: true},
		{name: "public", of: "Codertocat/shared", runs: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newForge(t)
			set := config.Repositories{hello: {}, "Codertocat/shared": {}, "acme/*": {}}
			s.start(s.forge(t.TempDir()), func(cfg *Config) {
				with(set)(cfg)
				// As on a server: what may be had without credentials, which is nothing.
				cfg.Actions = action.NewResolver(action.Config{Dir: t.TempDir(), Offline: true})
			})
			s.gh.Commit(c.of, ref, map[string]string{".github/workflows/s.yml": private})
			s.gh.Hide(c.of, c.visibility, c.shares)
			if c.change != nil {
				c.change(s)
			}
			s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": "name: Steals\non: push\njobs:\n  steal:\n    uses: " + c.of +
				"/.github/workflows/s.yml@" + ref + "\n"})
			s.deliver("push", s.push(c.caller))
			checks := s.ended(1)
			content := false
			for _, r := range s.gh.Requests() {
				content = content || strings.Contains(r, c.of+"/contents/")
			}
			for _, check := range checks {
				if c.runs != (check.Conclusion == "success") || !c.runs && !strings.Contains(check.Output.Summary, strings.ReplaceAll(c.says, ":", `:`)) {
					t.Errorf("%s: %s\n%s", check.Name, check.Conclusion, check.Output.Summary)
				}
				if !c.runs && strings.Contains(check.Output.Summary+check.Output.Text, "private recipe") {
					t.Error("its content is shown")
				}
			}
			if content != c.runs {
				t.Errorf("its content was read: %v", content)
			}
		})
	}
}

// A token of a job is good for its repository alone.
func TestAttackTokenOfAnotherRepository(t *testing.T) {
	s := newSite(t, with(config.Repositories{"*": {}}))
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": passes})
	s.gh.Commit("Codertocat/other", pushed1, map[string]string{"secret": "x"})
	s.deliver("push", s.push(nil))
	s.ended(1)
	for _, name := range []string{hello, "Codertocat/other"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.gh.URL+"/repos/"+name+"/contents/.github/workflows?ref="+pushed1, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+s.ran()[0].token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if (resp.StatusCode == http.StatusOK) != (name == hello) {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
}

// What was planned under another limit, or under none, is held to the one that is
// set when it is taken up.
func TestAttackPlanOfAnotherLimit(t *testing.T) {
	for p, want := range map[*plan.Run]trust{{ReadOnly: true}: ofFork, {ReadOnly: true, Trust: "something"}: ofFork, {Trust: "dependabot"}: ofOwn,
		{ReadOnly: true, Trust: "dependabot"}: ofDependabot} {
		if got := trustOf(p); got != want {
			t.Errorf("%+v is trusted as %q", p, got)
		}
	}
	s := newForge(t)
	dir, marks := t.TempDir(), t.TempDir()
	limit := func(d time.Duration) func(*Config) {
		return func(c *Config) {
			c.Grace = 50 * time.Millisecond
			with(config.Repositories{hello: {Limits: config.Limits{MaxTimeout: config.Duration(d)}}})(c)
		}
	}
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": strings.ReplaceAll(fmt.Sprintf(waiting, marks), "    runs-on:",
		"    timeout-minutes: 5000\n    runs-on:")})
	s.start(s.forge(dir), limit(100*time.Hour))
	s.deliver("push", s.push(nil))
	s.until("the job runs", func() bool { return lines(t, filepath.Join(marks, "slow")) == 1 })
	if j := s.ran(); j[len(j)-1].minutes != 5000 {
		t.Errorf("%v minutes", j[len(j)-1].minutes)
	}
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	s.start(s.forge(dir), limit(30*time.Minute))
	s.until("the job runs again", func() bool { return lines(t, filepath.Join(marks, "slow")) == 2 })
	if err := os.WriteFile(filepath.Join(marks, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.ended(3)
	for _, j := range s.ran() {
		if j.minutes != 30 {
			t.Errorf("%s has %v minutes", j.key, j.minutes)
		}
	}
}

// Other events than pull_request bring a fork's commit, too: a review of it, a
// comment on a line of it. And Dependabot has what is its own by whatever event.
func TestAttackOtherDoorsOfAFork(t *testing.T) {
	every := strings.Replace(passes, "[push, pull_request, workflow_dispatch]", "[pull_request_target, pull_request_review, pull_request_review_comment]", 1)
	for _, c := range []struct {
		name, event string
		changes     map[string]any
		waits       bool
		secrets     bool
	}{
		{"a review", "pull_request_review", map[string]any{"action": "submitted", "review": map[string]any{"state": "approved"}}, false, false},
		{"a comment on a line", "pull_request_review_comment", map[string]any{"action": "created", "comment": map[string]any{"body": "/run"}}, false, false},
		{"a review of a stranger's", "pull_request_review",
			map[string]any{"action": "submitted", "review": map[string]any{}, "pull_request.author_association": "NONE"}, true, false},
		{"the target's", "pull_request", map[string]any{"number": 2}, false, true},
		{"the target's, of Dependabot", "pull_request", map[string]any{"number": 2, "pull_request.user.login": "dependabot[bot]"}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, nil)
			request := s.stranger("CONTRIBUTOR", c.changes)
			if c.event != "pull_request" {
				request = without(t, request, "number")
			}
			for _, sha := range []string{head2, base2} {
				s.gh.Commit(hello, sha, map[string]string{".github/workflows/ci.yml": "permissions: write-all\n" + every})
			}
			e := s.deliver(c.event, request)
			if e.State != store.EventDone || strings.Contains(e.Detail, "waits for approval") != c.waits {
				t.Fatal(e.State, e.Detail)
			}
			if c.waits {
				if len(s.ran()) != 0 {
					t.Error("it ran")
				}
				return
			}
			s.ended(1)
			if j := s.ran()[0]; (len(j.secrets) > 0) != c.secrets {
				t.Errorf("secrets %v", j.secrets)
			}
			for _, p := range s.gh.Tokens() {
				if (p["contents"] == "write" || p["checks"] == "write") && !c.secrets {
					t.Errorf("a token that writes: %v", p)
				}
			}
		})
	}
}

// without takes a key out of a body.
func without(t *testing.T, body []byte, key string) []byte {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	delete(m, key)
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
