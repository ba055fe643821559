package dispatch

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/webhook"
)

// What comes to the webhook and must not get any further.
func TestRefusedDeliveries(t *testing.T) {
	s := newSite(t, nil)
	body := s.push(nil)
	for _, c := range []struct {
		name, event string
		body        []byte
		signature   string
		code        int
		status      string
	}{
		{"no signature", "push", body, "-", 401, "refused"},
		{"the signature of another secret", "push", body, "sha256=" + hex.EncodeToString(webhook.Sign("guess", body)), 401, "refused"},
		{"SHA-1", "push", body, "sha1=0000000000000000000000000000000000000000", 401, "refused"},
		{"26 MB", "push", append(body[:len(body):len(body)], make([]byte, 26<<20)...), "sha256=" + strings.Repeat("0", 64), 413, "refused"},
		{"no JSON", "push", []byte("{\"ref\":"), "", 400, "refused"},
		{"an event that is not known", "sunrise", body, "", 202, "ignored"},
		{"ping", "ping", payloadOf(t, "ping", nil), "", 202, "ignored"},
	} {
		code, answer := s.post(c.event, ci.NewID(), c.body, c.signature)
		if code != c.code || answer["status"] != c.status {
			t.Errorf("%s: %d %v", c.name, code, answer)
		}
	}
	events, err := s.store.Events(t.Context(), 10)
	if err != nil || len(events) != 2 || events[0].State != store.EventNoted || events[1].State != store.EventNoted {
		t.Errorf("on record: %+v, %v", events, err)
	}
	if len(s.runs()) != 0 {
		t.Errorf("%+v", s.runs())
	}
}

func TestReplayedDelivery(t *testing.T) {
	s := newSite(t, nil)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": passes})
	id, body := ci.NewID(), s.push(nil)
	for i, want := range []string{"accepted", "duplicate", "duplicate"} {
		if code, answer := s.post("push", id, body, ""); code != 202 || answer["status"] != want {
			t.Errorf("delivery %d: %d %v", i, code, answer)
		}
	}
	s.ended(1)
	// Asked for on purpose, it makes nothing twice either.
	events, err := s.store.Events(t.Context(), 10)
	if err != nil || len(events) != 1 {
		t.Fatal(events, err)
	}
	if err := s.store.ReplayEvent(t.Context(), events[0].ID); err != nil {
		t.Fatal(err)
	}
	s.until("it is handled again", func() bool {
		e, err := s.store.Event(context.Background(), events[0].ID)
		return err == nil && e.State == store.EventDone && e.Tries == 2
	})
	if len(s.runs()) != 1 || len(s.gh.Checks()) != 1 {
		t.Errorf("%d runs, %d checks", len(s.runs()), len(s.gh.Checks()))
	}
}

func TestGitHubAnswersBadly(t *testing.T) {
	limit := func(after time.Duration) *githubtest.Fault {
		return &githubtest.Fault{Status: 403, Header: map[string]string{"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "0",
			"X-RateLimit-Reset": strconv.FormatInt(time.Now().Add(after).Unix(), 10)}, Body: `{"message":"API rate limit exceeded"}`}
	}
	for _, c := range []struct {
		name  string
		fault func() *githubtest.Fault
		// recovers: it is tried again until GitHub answers.
		recovers bool
		says     string
	}{
		{"401", func() *githubtest.Fault { return &githubtest.Fault{Status: 401, Body: `{"message":"Bad credentials"}`} }, false, "check app_id"},
		{"403", func() *githubtest.Fault {
			return &githubtest.Fault{Status: 403, Body: `{"message":"Resource not accessible by integration"}`}
		}, false, "permission"},
		{"404", func() *githubtest.Fault { return &githubtest.Fault{Status: 404, Body: `{"message":"Not Found"}`} }, false, "is the App installed"},
		{"422", func() *githubtest.Fault { return &githubtest.Fault{Status: 422, Body: `{"message":"No commit found"}`} }, false, "422"},
		{"500", func() *githubtest.Fault { return &githubtest.Fault{Status: 500, Body: `oops`} }, true, "500"},
		{"rate limit", func() *githubtest.Fault { return limit(2 * time.Second) }, true, "rate limit"},
		{"nothing", func() *githubtest.Fault { return &githubtest.Fault{Hang: true} }, true, "deadline"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, func(cfg *Config) { cfg.Hold = 400 * time.Millisecond })
			s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": passes})
			var broken atomic.Bool
			broken.Store(true)
			s.gh.Fail(func(*http.Request) *githubtest.Fault {
				if broken.Load() {
					return c.fault()
				}
				return nil
			})
			if !c.recovers {
				e := s.deliver("push", s.push(nil))
				if e.State != store.EventFailed || !strings.Contains(e.Detail, c.says) {
					t.Errorf("%s: %s", e.State, e.Detail)
				}
				if len(s.gh.Checks())+len(s.runs()) != 0 {
					t.Error("something was run all the same")
				}
				return
			}
			_, answer := s.post("push", ci.NewID(), s.push(nil), "")
			s.until("it is put back", func() bool {
				e, err := s.store.Event(context.Background(), answer["id"])
				return err == nil && e.Tries > 0 && strings.Contains(e.Detail, c.says) && strings.Contains(e.Detail, "try again")
			})
			broken.Store(false)
			if got := s.ended(1)["Small / one"]; got.Conclusion != "success" {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestUnknownRepository(t *testing.T) {
	s := newSite(t, nil)
	// Without an installation in the payload GitHub is asked for it.
	e := s.deliver("push", payloadOf(t, "push", map[string]any{"installation": map[string]any{}}))
	if e.State != store.EventFailed || !strings.Contains(e.Detail, "is the App installed on this repository?") {
		t.Errorf("%s: %s", e.State, e.Detail)
	}
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": passes})
	if e := s.deliver("push", payloadOf(t, "push", map[string]any{"installation": map[string]any{}})); e.State != store.EventDone {
		t.Errorf("%s: %s", e.State, e.Detail)
	}
	s.ended(1)
}

// While GitHub does not take check runs, jobs go on; afterwards it hears the end
// of each, once.
func TestChecksSurviveGitHub(t *testing.T) {
	s := newSite(t, nil)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": passes})
	var down atomic.Bool
	down.Store(true)
	s.gh.Fail(func(r *http.Request) *githubtest.Fault {
		if down.Load() && strings.Contains(r.URL.Path, "check-runs") {
			return &githubtest.Fault{Status: 502, Body: "bad gateway"}
		}
		return nil
	})
	s.deliver("push", s.push(nil))
	s.until("the run is over", func() bool { r := s.runs(); return len(r) == 1 && r[0].Status == ci.Completed })
	if len(s.gh.Checks()) != 0 {
		t.Error("the fault does not work")
	}
	// Over a restart, too.
	dir := s.dir
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	down.Store(false)
	s.start(s.forge(dir), nil)
	if c := s.ended(1)["Small / one"]; c.Conclusion != "success" || strings.Join(c.History, " ") != "completed:success" {
		t.Errorf("%+v", c)
	}
	s.settled()
}

// A check that GitHub made although its answer was lost is not made again.
func TestCheckIsMadeOnce(t *testing.T) {
	s := newSite(t, nil)
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": passes})
	dir := s.dir
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	// As a process leaves it that died between the making and the note of it.
	st, err := store.Open(t.Context(), filepath.Join(dir, "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	body := s.push(nil)
	event, _, err := st.AddEvent(t.Context(), ci.Event{Name: "push", Delivery: "d", Repository: hello, Payload: body}, store.EventDone, "")
	if err != nil {
		t.Fatal(err)
	}
	run, jobs, err := st.CreateRun(t.Context(), ci.Run{EventID: event, Event: "push", Repository: hello, Workflow: "Small", File: "f", SHA: pushed1,
		Ref: "refs/heads/master"}, []ci.Job{{Key: "one", Job: "one", Name: "one"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := st.Recorder(t.Context(), run.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []ci.Record{{Type: ci.JobQueued, JobKey: "one", Job: "one", Name: "one"},
		{Type: ci.JobFinished, JobKey: "one", Job: "one", Name: "one", Conclusion: ci.Success}, {Type: ci.RunFinished, Conclusion: ci.Success}} {
		rec.Emit(r)
	}
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	fact, _ := json.Marshal(openCheck{Run: run.ID, Head: pushed1})
	if err := st.SetFact(t.Context(), checks, jobs[0].ID, string(fact)); err != nil {
		t.Fatal(err)
	}
	st.Close()
	s.start(s.forge(dir), nil)
	s.ended(1)
	s.settled()
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	st, err = store.Open(t.Context(), filepath.Join(dir, "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := st.SetFact(t.Context(), checks, jobs[0].ID, string(fact)); err != nil {
		t.Fatal(err)
	}
	st.Close()
	s.start(s.forge(dir), nil)
	s.settled()
	s.ended(1)
}

const waiting = `name: Slow
on: push
jobs:
  quick:
    runs-on: ubuntu-latest
    steps:
      - run: echo "once" >> %[1]s/quick
  slow:
    needs: quick
    runs-on: ubuntu-latest
    steps:
      - run: |
          echo "began" >> %[1]s/slow
          while [ ! -e %[1]s/go ]; do sleep 0.02; done
  after:
    needs: slow
    runs-on: ubuntu-latest
    steps:
      - run: echo done
`

func lines(t *testing.T, name string) int {
	b, err := os.ReadFile(name)
	if os.IsNotExist(err) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "\n")
}

// The server is killed, really, while a job runs: a new one runs that job again,
// and not the one that had ended, and each check ends once.
func TestKilled(t *testing.T) {
	s := newForge(t)
	dir, marks := t.TempDir(), t.TempDir()
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": fmt.Sprintf(waiting, marks)})
	t.Cleanup(func() { os.WriteFile(filepath.Join(marks, "go"), nil, 0o600) }) // frees the killed one's shell

	given, err := json.Marshal(s.forge(dir))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "HEARTH_TEST_SERVER="+string(given))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { cmd.Process.Kill(); cmd.Wait() }
	t.Cleanup(kill)
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	deliver(t, strings.TrimSpace(address), s.push(nil))
	deadline := time.Now().Add(patience)
	for running := false; !running; {
		if time.Now().After(deadline) {
			t.Fatalf("the job did not start: %+v", s.gh.Checks())
		}
		select {
		case <-s.gh.Changed():
		case <-time.After(100 * time.Millisecond):
		}
		for _, c := range s.gh.Checks() {
			running = running || c.Name == "Slow / slow" && c.Status == "in_progress"
		}
	}
	for lines(t, filepath.Join(marks, "slow")) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	kill()

	s.start(access{Dir: dir, URL: s.gh.URL, AppID: s.gh.AppID, Key: s.gh.Key()}, nil)
	s.until("the job runs again", func() bool { return lines(t, filepath.Join(marks, "slow")) == 2 })
	if err := os.WriteFile(filepath.Join(marks, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range s.ended(3) {
		if c.Conclusion != "success" || strings.Count(strings.Join(c.History, " "), "completed") != 1 {
			t.Errorf("%s: %v", name, c.History)
		}
	}
	s.settled()
	s.until("the run is over", func() bool { return s.runs()[0].Status == ci.Completed })
	if got := s.runs()[0].Conclusion; got != ci.Success {
		t.Errorf("the run: %s", got)
	}
	if n := lines(t, filepath.Join(marks, "quick")); n != 1 {
		t.Errorf("a job that had ended ran %d times", n)
	}
	jobs, err := s.store.Jobs(t.Context(), s.runs()[0].ID)
	if err != nil || jobs[1].Attempt < 2 {
		t.Errorf("%+v, %v", jobs, err)
	}
}

// deliver posts a delivery to another process.
func deliver(t *testing.T, address string, body []byte) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, address+"/webhooks/github", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-GitHub-Event", "push")
	req.Header.Set("X-GitHub-Delivery", ci.NewID())
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(webhook.Sign(secret, body)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Fatal(resp.Status)
	}
}

// A server that is asked to stop lets jobs end for a while, and leaves what does
// not end to the next one.
func TestStopped(t *testing.T) {
	s := newForge(t)
	dir, marks := t.TempDir(), t.TempDir()
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": fmt.Sprintf(waiting, marks)})
	s.start(s.forge(dir), func(c *Config) { c.Grace = 50 * time.Millisecond })
	s.deliver("push", s.push(nil))
	s.until("the job runs", func() bool { return lines(t, filepath.Join(marks, "slow")) == 1 })
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	for _, c := range s.gh.Checks() {
		if c.Name == "Slow / slow" && c.Status == "completed" {
			t.Errorf("a job that goes on ended: %+v", c)
		}
	}
	if err := os.WriteFile(filepath.Join(marks, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.start(s.forge(dir), nil)
	for name, c := range s.ended(3) {
		if c.Conclusion != "success" {
			t.Errorf("%s: %v", name, c.History)
		}
	}
	s.until("the run is over", func() bool { return s.runs()[0].Status == ci.Completed })
	if n := lines(t, filepath.Join(marks, "quick")); n != 1 {
		t.Errorf("a job that had ended ran %d times", n)
	}
}
