package remote_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/desk"
	"github.com/hearth-ci/hearth/internal/dispatch"
	"github.com/hearth-ci/hearth/internal/door"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/forge/github"
	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
	"github.com/hearth-ci/hearth/internal/front"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/machine/machinetest"
	"github.com/hearth-ci/hearth/internal/oidc"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/remote"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/webhook"
	"github.com/hearth-ci/hearth/internal/worker"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// Servers and workers here are processes: the test binary, as the environment says. What
// is not real in them are the machines (package machinetest) and GitHub (githubtest).

const hookSecret = "It's a Secret to Everybody"

// serverSettings are those of a server that a test starts.
type serverSettings struct {
	Dir, Database, Listen string
	GitHub                string
	AppID                 int64
	Key                   []byte
	Actions               string // a directory that stands in for acme/greet
	LeaseMS               int64
}

type workerSettings struct {
	Dir, Server, TokenFile, Name string
	Slots, CPUs                  int
	PatienceMS, GraceMS          int64
}

func TestMain(m *testing.M) {
	for name, run := range map[string]func([]byte) error{"HEARTH_TEST_SERVER": runServer, "HEARTH_TEST_WORKER": runWorker} {
		if given := os.Getenv(name); given != "" {
			os.Unsetenv(name)
			if err := run([]byte(given)); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func runServer(given []byte) error {
	var f serverSettings
	if err := json.Unmarshal(given, &f); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := net.Listen("tcp", f.Listen)
	if err != nil {
		return err
	}
	s, err := store.Open(ctx, f.Database, store.WithLogs(filepath.Join(f.Dir, "logs")))
	if err != nil {
		return err
	}
	app, err := github.New(github.Config{BaseURL: f.GitHub, AppID: f.AppID, Key: f.Key})
	if err != nil {
		return err
	}
	learner, err := learn.Open(ctx, s, learn.Options{})
	if err != nil {
		return err
	}
	secrets, err := config.ReadValues(filepath.Join(f.Dir, "secrets"), true)
	if err != nil {
		return err
	}
	d, err := dispatch.New(dispatch.Config{Store: s, Forge: app, AppID: f.AppID, URL: "http://" + l.Addr().String(), Elsewhere: true,
		Lease:  2 * time.Second, // of repositories
		Queue:  queue.New(s, queue.Config{Lease: time.Duration(f.LeaseMS) * time.Millisecond, Poll: 50 * time.Millisecond, Log: log}),
		Labels: []string{"ubuntu-latest", "self-hosted"}, Learn: learner, Secrets: secrets,
		Policy: config.Config{Repositories: config.Repositories{"Codertocat/*": {}}}.Policy,
		Actions: action.NewResolver(action.Config{Dir: filepath.Join(f.Dir, "actions"), Offline: true,
			Overrides: map[string]string{"acme/greet@v1": f.Actions}}),
		Results: results.New(results.Config{Dir: filepath.Join(f.Dir, "results")}),
		OIDC:    oidc.New(oidc.Config{Dir: filepath.Join(f.Dir, "oidc"), URL: "http://hearth/oidc"}),
		Retry:   50 * time.Millisecond, Poll: 100 * time.Millisecond, Log: log})
	if err != nil {
		return err
	}
	passes := door.OpenPasses(filepath.Join(f.Dir, "passes"))
	mux := http.NewServeMux()
	mux.Handle("/webhooks/github", &webhook.Handler{Secret: hookSecret, MaxBody: 25 << 20, Recorder: front.Deliveries{Store: s}, Log: log, Stored: d.Wake,
		Starts: func(event string) bool { return len(workflow.TriggerEvents(event)) > 0 }})
	remote.NewServer(remote.Config{Desk: d.Desk(), LastSent: s.LastSent, Version: "test", Log: log,
		Check: func(token string) (string, error) { p, err := passes.CheckWorker(token); return p.Subject, err }}).Register(mux)
	hs := &http.Server{Handler: mux}
	go hs.Serve(l)
	fmt.Println("http://" + l.Addr().String())
	err = d.Serve(ctx)
	hs.Close()
	return errors.Join(err, s.Close())
}

func runWorker(given []byte) error {
	var f workerSettings
	if err := json.Unmarshal(given, &f); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	host := &machinetest.Host{}
	c, err := remote.NewClient(remote.ClientConfig{Server: f.Server, Name: f.Name, Patience: time.Duration(f.PatienceMS) * time.Millisecond, Log: log,
		Token: func() string { b, _ := os.ReadFile(f.TokenFile); return strings.TrimSpace(string(b)) },
		Run: func(ctx context.Context, r *worker.Runner, t conduct.Task) conduct.Outcome {
			dir, err := os.MkdirTemp(f.Dir, "machine-")
			if err != nil {
				return conduct.Outcome{Conclusion: ci.Failure, Infrastructure: true, Reason: err.Error()}
			}
			r.Host = host
			r.Layout = engine.Layout{Workspace: filepath.Join(dir, "work"), Temp: filepath.Join(dir, "temp"), Actions: filepath.Join(dir, "actions"),
				ToolCache: filepath.Join(dir, "tools"), Tools: filepath.Join(dir, "hearth")}
			return r.Execute(ctx, t)
		}})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	w := &desk.Worker{Counter: c, Offer: queue.Offer{Worker: f.Name, Labels: []string{"ubuntu-latest", "self-hosted"}, CPUs: f.CPUs}, Slots: cmp.Or(f.Slots, 1),
		Grace: time.Duration(f.GraceMS) * time.Millisecond, Poll: 200 * time.Millisecond, Log: log}
	w.Work(ctx)
	return nil
}

// proc is a process of the test's.
type proc struct {
	cmd   *exec.Cmd
	first string // the first line that it printed
	mu    sync.Mutex
	said  bytes.Buffer
	read  sync.WaitGroup
}

func startProc(t *testing.T, name string, settings any) *proc {
	t.Helper()
	b, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &proc{cmd: exec.Command(self)}
	p.cmd.Env = append(os.Environ(), name+"="+string(b))
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	errs, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.read.Go(func() {
		for lines := bufio.NewScanner(errs); lines.Scan(); {
			p.mu.Lock()
			p.said.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
		}
	})
	ready := make(chan string, 1)
	p.read.Go(func() {
		lines := bufio.NewScanner(out)
		if lines.Scan() {
			ready <- lines.Text()
		}
		close(ready)
		io.Copy(io.Discard, out)
	})
	select {
	case p.first = <-ready:
	case <-time.After(30 * time.Second):
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, p.text())
		}
	})
	if p.first == "" {
		t.Fatalf("%s does not run:\n%s", name, p.text())
	}
	return p
}

func (p *proc) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.String()
}

// kill ends the process and what runs in its machines.
func (p *proc) kill() {
	if p.cmd.ProcessState == nil {
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		p.read.Wait()
		p.cmd.Wait()
	}
}

func (p *proc) signal(sig syscall.Signal) { syscall.Kill(p.cmd.Process.Pid, sig) }

// site is a GitHub, and a server with workers on a database.
type site struct {
	t        *testing.T
	dir      string
	gh       *githubtest.Server
	settings serverSettings
	server   *proc
	token    string // a file
	store    *store.Store
}

// called is a workflow for those of a test that call it.
const called = `on:
  workflow_call:
    inputs: {who: {type: string, required: true}}
    secrets: {K: {required: true}, NONE: {}}
jobs:
  in:
    runs-on: ubuntu-latest
    strategy: {matrix: {n: [1]}}
    steps:
      - run: echo "for ${{ inputs.who }} ${{ matrix.n }} ${{ secrets.K }} [${{ secrets.DEPLOY_KEY }}]"
`

const pushed = "6113728f27ae82c7b1a177c8d03f9e96e0adf246"

func newSite(t *testing.T, database string) *site { t.Helper(); return newSiteWith(t, database, nil) }

func newSiteWith(t *testing.T, database string, change func(*serverSettings)) *site {
	t.Helper()
	t.Parallel() // they wait, most of the time
	s := &site{t: t, dir: t.TempDir(), gh: githubtest.New()}
	t.Cleanup(s.gh.Close)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	greet := filepath.Join(s.dir, "greet")
	must(os.MkdirAll(filepath.Join(s.dir, "secrets", "org"), 0o700))
	must(os.WriteFile(filepath.Join(s.dir, "secrets", "org", "Codertocat"), []byte("DEPLOY_KEY=hunter2-hunter2"), 0o600))
	must(os.MkdirAll(greet, 0o700))
	must(os.WriteFile(filepath.Join(greet, "action.yml"), []byte(`name: Greet
runs: {using: composite, steps: [{shell: bash, run: 'cat "$GITHUB_ACTION_PATH/words"'}]}
`), 0o600))
	must(os.WriteFile(filepath.Join(greet, "words"), []byte("well met, from an action\n"), 0o600))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	l.Close()
	s.settings = serverSettings{Dir: s.dir, Database: cmp.Or(database, filepath.Join(s.dir, "hearth.db")), Listen: l.Addr().String(), GitHub: s.gh.URL,
		AppID: s.gh.AppID, Key: s.gh.Key(), Actions: greet, LeaseMS: 3000}
	if change != nil {
		change(&s.settings)
	}
	secret, _, err := door.OpenPasses(filepath.Join(s.dir, "passes")).Issue(door.Worker, "east", time.Hour)
	must(err)
	s.token = filepath.Join(s.dir, "token")
	must(os.WriteFile(s.token, []byte(secret+"\n"), 0o600))
	s.server = startProc(t, "HEARTH_TEST_SERVER", s.settings)
	s.store, err = store.Open(t.Context(), s.settings.Database, store.WithLogs(filepath.Join(s.dir, "logs")))
	must(err)
	t.Cleanup(func() { s.store.Close() })
	return s
}

// restart starts the server again, at its address.
func (s *site) restart() { s.server = startProc(s.t, "HEARTH_TEST_SERVER", s.settings) }

func (s *site) worker(name string, change func(*workerSettings)) *proc {
	s.t.Helper()
	f := workerSettings{Dir: s.t.TempDir(), Server: "http://" + s.settings.Listen, TokenFile: s.token, Name: name, PatienceMS: 60_000, GraceMS: 60_000}
	if change != nil {
		change(&f)
	}
	return startProc(s.t, "HEARTH_TEST_WORKER", f)
}

// push has GitHub tell of a commit with a workflow of these jobs.
func (s *site) push(jobs string) {
	s.t.Helper()
	s.gh.Commit("Codertocat/Hello-World", pushed, map[string]string{".github/workflows/ci.yml": "name: CI\non: push\njobs:\n" + jobs,
		".github/workflows/called.yml": called, "main.go": "package main\n"})
	b, err := os.ReadFile("../dispatch/testdata/push.json")
	if err != nil {
		s.t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(b, &v); err != nil {
		s.t.Fatal(err)
	}
	v["installation"] = map[string]any{"id": s.gh.Installation}
	if b, err = json.Marshal(v); err != nil {
		s.t.Fatal(err)
	}
	req, _ := http.NewRequest(http.MethodPost, s.server.first+"/webhooks/github", bytes.NewReader(b))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-GitHub-Event", "push")
	req.Header.Set("X-GitHub-Delivery", ci.NewID())
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(webhook.Sign(hookSecret, b)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		s.t.Fatalf("the push was answered %s", resp.Status)
	}
}

func (s *site) until(what string, within time.Duration, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, c := range s.gh.Checks() {
				s.t.Logf("check %s: %v: %s", c.Name, c.History, c.Output.Title)
			}
			s.t.Fatalf("waited %v in vain: %s", within, what)
		}
	}
}

// checks waits until n checks have ended, each once, and returns them by name.
func (s *site) checks(n int, within time.Duration) map[string]githubtest.Check {
	s.t.Helper()
	var all []githubtest.Check
	s.until(fmt.Sprintf("%d checks have ended", n), within, func() bool {
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

// lines are those of a job's log that begin so, without that; and the job.
func (s *site) lines(key, prefix string) (out []string, job store.StoredJob) {
	s.t.Helper()
	ctx := context.Background()
	runs, err := s.store.Runs(ctx, store.RunFilter{})
	if err != nil || len(runs) == 0 {
		return nil, job
	}
	jobs, err := s.store.Jobs(ctx, runs[0].ID)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, j := range jobs {
		if j.Key == key {
			job = j
		}
	}
	for l, err := range s.store.Log(ctx, store.LogQuery{Run: runs[0].ID, Job: key}) {
		if err != nil {
			return out, job
		}
		if text, ok := strings.CutPrefix(l.Record.Text, prefix); ok && l.Record.Stream == "stdout" {
			out = append(out, text)
		}
	}
	return out, job
}

// counted says whether lines are 1 to n, each once and in order.
func counted(t *testing.T, lines []string, n int) {
	t.Helper()
	if len(lines) != n {
		t.Errorf("%d lines, want %d: %.400q", len(lines), n, lines)
		return
	}
	for i, l := range lines {
		if l != fmt.Sprint(i+1) {
			t.Errorf("line %d is %q", i+1, l)
			return
		}
	}
}
