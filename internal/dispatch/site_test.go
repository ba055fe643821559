package dispatch

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/desk"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/forge/github"
	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
	"github.com/hearth-ci/hearth/internal/front"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/web"
	"github.com/hearth-ci/hearth/internal/webhook"
	"github.com/hearth-ci/hearth/internal/worker"
	"github.com/hearth-ci/hearth/internal/workflow"
)

const secret = "It's a Secret to Everybody"

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// live is a whole server but for the machines: jobs run by the real engine
// through the real guest protocol, in a directory of the test's.
type live struct {
	dir   string
	store *store.Store
	http  *httptest.Server
	d     *Dispatcher
	end   func() error

	mu     sync.Mutex
	jobs   []seen
	before func(job *plan.Job) // called before a job's engine runs
}

// seen is a job that was run, with what it was given.
type seen struct {
	repository string
	key        string
	secrets    map[string]string
	vars       string
	token      string
	minutes    float64
	runner     *worker.Runner
}

// access is how to reach the GitHub of a test.
type access struct {
	Dir, URL string
	Database string // "" is a file in Dir
	AppID    int64
	Key      []byte
}

// open opens the store and serves.
func open(f access, log *slog.Logger, change func(*Config)) (*live, error) {
	ctx := context.Background()
	s := &live{dir: f.Dir}
	var err error
	if s.store, err = store.Open(ctx, cmp.Or(f.Database, filepath.Join(f.Dir, "hearth.db")), store.WithLogs(filepath.Join(f.Dir, "logs"))); err != nil {
		return nil, err
	}
	app, err := github.New(github.Config{BaseURL: f.URL, AppID: f.AppID, Key: f.Key, Sleep: func(context.Context, time.Duration) error { return nil }})
	if err != nil {
		return nil, err
	}
	learner, err := learn.Open(ctx, s.store, learn.Options{})
	if err != nil {
		return nil, err
	}
	secrets, err := values(f.Dir, map[string]string{"org/Codertocat": "DEPLOY_KEY=hunter2-hunter2", "org/octo-org": "DEPLOY_KEY=hunter2-hunter2"})
	if err != nil {
		return nil, err
	}
	jobs := queue.Config{Lease: time.Second, Poll: 20 * time.Millisecond, Owner: fmt.Sprintf("%d-%s", os.Getpid(), ci.NewID())}
	cfg := Config{
		Store: s.store, Queue: queue.New(s.store, jobs), Forge: app, AppID: f.AppID,
		Labels: []string{"ubuntu-latest", "linux", "x64", "self-hosted"}, Machines: 4, Learn: learner,
		Policy:  config.Config{Repositories: config.Repositories{"Codertocat/*": {}, "octo-org/*": {}}}.Policy,
		Secrets: secrets, Run: s.run, Retry: 20 * time.Millisecond, Lease: 2 * time.Second, Poll: 50 * time.Millisecond, Log: log,
	}
	mux := http.NewServeMux()
	s.http = httptest.NewServer(mux)
	cfg.URL = s.http.URL
	if change != nil {
		change(&cfg)
	}
	if s.d, err = New(cfg); err != nil {
		return nil, err
	}
	mux.Handle("/webhooks/github", &webhook.Handler{Secret: secret, MaxBody: 25 << 20, Recorder: front.Deliveries{Store: s.store}, Log: log,
		Starts: func(event string) bool { return len(workflow.TriggerEvents(event)) > 0 }, Stored: s.d.Wake})
	web.New(web.Config{Source: front.Pages{Store: s.store}, Version: "test", Log: log}).Register(mux)
	serving, stop := context.WithCancelCause(ctx)
	done := make(chan error, 1)
	go func() { done <- s.d.Serve(serving) }()
	s.end = sync.OnceValue(func() error {
		stop(desk.ErrStopping)
		err := <-done
		s.http.CloseClientConnections()
		s.http.Close()
		return errors.Join(err, s.store.Close())
	})
	return s, nil
}

// values makes a directory of secrets or variables and reads it.
func values(dir string, files map[string]string) (*config.Values, error) {
	dir, err := os.MkdirTemp(dir, "values-")
	if err != nil {
		return nil, err
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	return config.ReadValues(dir, true)
}

// TestMain is a server by itself where the environment says so: something to be
// killed. It prints its address.
func TestMain(m *testing.M) {
	if given := os.Getenv("HEARTH_TEST_SERVER"); given != "" {
		var f access
		err := json.Unmarshal([]byte(given), &f)
		if err == nil {
			var s *live
			if s, err = open(f, slog.New(slog.DiscardHandler), nil); err == nil {
				fmt.Println(s.http.URL)
				select {}
			}
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// site is a server with its GitHub, for a test.
type site struct {
	issuer *httptest.Server // of OIDC tokens; nil is none
	*live
	t        testing.TB
	gh       *githubtest.Server
	patience time.Duration
}

func newSite(t testing.TB, change func(*Config)) *site {
	t.Helper()
	s := newForge(t)
	s.start(s.forge(t.TempDir()), change)
	return s
}

// newForge is a site without a server.
func newForge(t testing.TB) *site {
	s := &site{t: t, gh: githubtest.New(), patience: patience}
	t.Cleanup(func() {
		s.gh.Close()
		for _, v := range s.gh.Violations() {
			t.Errorf("GitHub would not have it: %s", v)
		}
	})
	return s
}

func (s *site) forge(dir string) access {
	return access{Dir: dir, URL: s.gh.URL, AppID: s.gh.AppID, Key: s.gh.Key()}
}

// start serves; end, or the end of the test, ends it.
func (s *site) start(f access, change func(*Config)) {
	s.t.Helper()
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(s.t.Output(), nil))
	}
	l, err := open(f, log, change)
	if err != nil {
		s.t.Fatal(err)
	}
	s.live = l
	s.t.Cleanup(func() {
		if err := l.end(); err != nil {
			s.t.Error(err)
		}
	})
}

// run stands in for a machine: the agent runs in this process.
func (s *live) run(ctx context.Context, r *worker.Runner, t conduct.Task) conduct.Outcome {
	run, job := t.Run, t.Job
	secrets, err := run.Secrets(job, r.Secrets)
	if err != nil {
		return conduct.Outcome{Conclusion: ci.Failure, Reason: err.Error()}
	}
	token, err := r.Token(ctx, job)
	if err != nil {
		return conduct.Outcome{Conclusion: ci.Failure, Infrastructure: true, Reason: err.Error()}
	}
	s.mu.Lock()
	s.jobs = append(s.jobs, seen{r.Repository, job.Key, secrets, run.Vars.JSON(), token, job.TimeoutMinutes, r})
	before := s.before
	s.mu.Unlock()
	if before != nil {
		before(job)
	}
	host, agent := net.Pipe()
	serve, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		guest.Serve(serve, agent, guest.Options{})
		agent.Close()
	}()
	defer func() { stop(); <-done; host.Close() }()
	client, err := guest.New(ctx, host)
	if err != nil {
		return conduct.Outcome{Conclusion: ci.Failure, Infrastructure: true, Reason: err.Error()}
	}
	defer client.Close()
	dir, err := os.MkdirTemp(s.dir, "machine-")
	if err != nil {
		return conduct.Outcome{Conclusion: ci.Failure, Infrastructure: true, Reason: err.Error()}
	}
	hooks := r.Hooks(job, nil, nil, nil)
	res, err := engine.Run(ctx, engine.Job{
		Run: run, Plan: job, Needs: t.Needs, RunID: r.RunID, Secrets: secrets, Token: token, Guest: client, Source: r.Source, Emit: hooks, Hooks: hooks,
		Layout: engine.Layout{Workspace: filepath.Join(dir, "work"), Temp: filepath.Join(dir, "temp"), Actions: filepath.Join(dir, "actions"),
			ToolCache: filepath.Join(dir, "tools"), Tools: filepath.Join(dir, "hearth")},
	})
	return conduct.Outcome{Conclusion: res.Conclusion, Outputs: res.Outputs, Reason: res.Reason, Infrastructure: err != nil, Told: true}
}

// payload reads an example and puts changes into it: "a.b.c" → value.
func payloadOf(t testing.TB, name string, changes map[string]any) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	for path, value := range changes {
		parts := strings.Split(path, ".")
		m := v
		for _, p := range parts[:len(parts)-1] {
			next, ok := m[p].(map[string]any)
			if !ok {
				next = map[string]any{}
				m[p] = next
			}
			m = next
		}
		m[parts[len(parts)-1]] = value
	}
	b, err = json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// post sends a delivery and returns the answer.
func (s *site) post(event, delivery string, body []byte, signature string) (int, map[string]string) {
	s.t.Helper()
	req, err := http.NewRequest(http.MethodPost, s.http.URL+"/webhooks/github", bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-GitHub-Event", event)
	req.Header.Set("X-GitHub-Delivery", delivery)
	if signature == "" {
		signature = "sha256=" + hex.EncodeToString(webhook.Sign(secret, body))
	}
	if signature != "-" {
		req.Header.Set("X-Hub-Signature-256", signature)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	var answer map[string]string
	if err := json.Unmarshal(b, &answer); err != nil {
		s.t.Fatalf("%s: %v", b, err)
	}
	return resp.StatusCode, answer
}

// deliver posts a right delivery and waits until the event has come to its end.
func (s *site) deliver(event string, body []byte) store.StoredEvent {
	s.t.Helper()
	id := ci.NewID()
	s.gh.Send(id, event, body)
	code, answer := s.post(event, id, body, "")
	if code != http.StatusAccepted || answer["status"] != "accepted" {
		s.t.Fatalf("%s: %d %v", event, code, answer)
	}
	var e store.StoredEvent
	s.until("the event is handled", func() bool {
		var err error
		if e, err = s.store.Event(context.Background(), answer["id"]); err != nil {
			s.t.Fatal(err)
		}
		return e.State == store.EventDone || e.State == store.EventFailed || e.State == store.EventRefused
	})
	return e
}

// until waits for a condition that follows from the store or from GitHub.
func (s *site) until(what string, ok func() bool) {
	s.t.Helper()
	changed, stop := s.store.Watch("")
	defer stop()
	deadline := time.After(s.patience)
	tick := time.NewTicker(50 * time.Millisecond) // events wake nobody
	defer tick.Stop()
	for !ok() {
		select {
		case <-changed:
		case <-s.gh.Changed():
		case <-tick.C:
		case <-deadline:
			for _, c := range s.gh.Checks() {
				s.t.Logf("check %s: %v: %s", c.Name, c.History, c.Output.Title)
			}
			events, _ := s.store.Events(context.Background(), 10)
			for _, e := range events {
				s.t.Logf("event %s %s: %s", e.Name, e.State, e.Detail)
			}
			s.t.Fatalf("waited %v in vain: %s", s.patience, what)
		}
	}
}

// ended waits until all of n checks have completed, and returns them by name.
func (s *site) ended(n int) map[string]githubtest.Check {
	s.t.Helper()
	var all []githubtest.Check
	s.until(fmt.Sprintf("%d checks are completed", n), func() bool {
		all = s.gh.Checks()
		return len(all) >= n && !slices.ContainsFunc(all, func(c githubtest.Check) bool { return c.Status != "completed" })
	})
	out := map[string]githubtest.Check{}
	for _, c := range all {
		out[c.Name] = c
	}
	if len(out) != n || len(all) != n {
		s.t.Errorf("%d checks, want %d: %+v", len(all), n, all)
	}
	return out
}

func (s *site) runs() []ci.Run {
	s.t.Helper()
	runs, err := s.store.Runs(context.Background(), store.RunFilter{})
	if err != nil {
		s.t.Fatal(err)
	}
	return runs
}

// settled waits until no check is left to be ended.
func (s *site) settled() {
	s.t.Helper()
	s.until("GitHub has acknowledged all ends", func() bool {
		facts, err := s.store.Facts(context.Background(), checks)
		if err != nil {
			s.t.Fatal(err)
		}
		return len(facts) == 0
	})
}

func (s *site) log(run ci.Run, job string) string {
	s.t.Helper()
	var b strings.Builder
	for l, err := range s.store.Log(context.Background(), store.LogQuery{Run: run.ID, Job: job}) {
		if err != nil {
			s.t.Fatal(err)
		}
		fmt.Fprintln(&b, l.Record.Text)
	}
	return b.String()
}

const (
	hello   = "Codertocat/Hello-World"
	pushed1 = "6113728f27ae82c7b1a177c8d03f9e96e0adf246" // push.json
	head2   = "ec26c3e57ca3a959ca5aad62de7213c562f8c821" // pull_request.opened.json
	base2   = "f95f852bd8fca8fcc58a9a2d6c842781e32a215e"
)

func (s *site) push(changes map[string]any) []byte {
	all := map[string]any{"installation.id": s.gh.Installation}
	maps.Copy(all, changes)
	return payloadOf(s.t, "push", all)
}
