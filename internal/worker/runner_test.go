package worker_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/launch"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/machine/machinetest"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/worker"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// stove is a runner whose machines are agents on this host.
type stove struct {
	*worker.Runner
	t    *testing.T
	host *machinetest.Host

	mu      sync.Mutex
	records []ci.Record
	watch   func(ci.Record)

	readOnly bool // the run is
}

func newStove(t *testing.T) *stove {
	t.Helper()
	before := runtime.NumGoroutine()
	s := &stove{t: t, host: &machinetest.Host{}}
	dir := t.TempDir()
	s.Runner = &worker.Runner{Host: s.host, RunID: ci.NewID(), Repository: "o/r", File: "ci.yml", Ref: "refs/heads/main", SHA: strings.Repeat("a", 40),
		Attempt: 1,
		Sink:    ci.SinkFunc(s.emit), Log: slog.New(slog.DiscardHandler),
		Layout: engine.Layout{Workspace: filepath.Join(dir, "work/r/r"), Temp: filepath.Join(dir, "work/_temp"), Actions: filepath.Join(dir, "work/_actions"),
			ToolCache: filepath.Join(dir, "tools"), Tools: filepath.Join(dir, "hearth")}}
	t.Cleanup(func() {
		if m := s.host.Machines(); len(m) > 0 {
			t.Errorf("%d machines are left", len(m))
		}
		for range 200 {
			if runtime.NumGoroutine() <= before {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Errorf("goroutines are left: %d, before %d", runtime.NumGoroutine(), before)
	})
	return s
}

func (s *stove) emit(r ci.Record) {
	s.mu.Lock()
	s.records = append(s.records, r)
	s.mu.Unlock()
	if s.watch != nil {
		s.watch(r)
	}
}

func (s *stove) of(kind ci.RecordType) (out []ci.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if r.Type == kind {
			out = append(out, r)
		}
	}
	return out
}

func (s *stove) log() string {
	var lines []string
	for _, r := range s.of(ci.LogLine) {
		lines = append(lines, r.Text)
	}
	return strings.Join(lines, "\n")
}

// run executes the only job of a workflow.
func (s *stove) run(ctx context.Context, job string, waits func()) conduct.Outcome {
	s.t.Helper()
	run := s.plan("  test:\n    runs-on: ubuntu-latest\n" + job)
	return s.Execute(ctx, conduct.Task{Run: run, Job: run.Jobs[0], Waits: waits})
}

// plan is the run of a workflow with these jobs.
func (s *stove) plan(jobs string) *plan.Run {
	s.t.Helper()
	w, ds := workflow.Parse("ci.yml", []byte("on: push\njobs:\n"+jobs), workflow.Options{})
	if workflow.Errors(ds) {
		s.t.Fatal(ds)
	}
	run, ds := plan.Build(plan.Request{Workflow: w, ReadOnly: s.readOnly, Event: &workflow.Happening{Event: "push", Ref: "refs/heads/main"},
		GitHub: launch.GitHubContext(launch.Facts{Run: ci.Run{ID: s.RunID, Repository: "o/r", Ref: "refs/heads/main"}})})
	if workflow.Errors(ds) {
		s.t.Fatal(ds)
	}
	return run
}

func TestRunnerRunsAJob(t *testing.T) {
	s := newStove(t)
	waited := 0
	out := s.run(t.Context(), `
    outputs: {v: "${{ steps.a.outputs.v }}"}
    steps:
      - {id: a, run: 'echo v=42 >> $GITHUB_OUTPUT; echo said'}
`, func() { waited++ })
	if out.Conclusion != ci.Success || out.Infrastructure || out.Outputs["v"] != "42" || !out.Told || waited != 1 {
		t.Errorf("%+v, waited %d times\n%s", out, waited, s.log())
	}
	if m := s.of(ci.MachineRec); len(m) != 2 || m[0].Machine.Action != "restored" || m[1].Machine.Action != "closed" {
		t.Errorf("machine: %+v", m)
	}
	if !strings.Contains(s.log(), "said") {
		t.Errorf("log:\n%s", s.log())
	}
}

func TestRunnerFailure(t *testing.T) {
	s := newStove(t)
	out := s.run(t.Context(), "    steps:\n      - run: exit 3\n      - run: echo never\n", nil)
	if out.Conclusion != ci.Failure || out.Infrastructure {
		t.Errorf("%+v", out)
	}
	if steps := s.of(ci.StepFinished); len(steps) != 2 || *steps[0].ExitCode != 3 || steps[1].Conclusion != ci.Skipped {
		t.Errorf("%+v", steps)
	}
}

// A machine that dies in the middle of a step: whatever tells of it says so, with
// the machine's own end as the reason, and nothing reads as the author's failure.
func TestRunnerLosesItsMachine(t *testing.T) {
	s := newStove(t)
	var once sync.Once
	s.watch = func(r ci.Record) {
		if r.Type == ci.LogLine && r.Text == "under way" {
			once.Do(func() { s.host.Machines()[0].Lose(errors.New("killed by a test\n| and what it printed")) })
		}
	}
	out := s.run(t.Context(), "    steps:\n      - run: echo under way; sleep 60\n      - run: echo never\n", nil)
	const why = "the machine was lost: killed by a test"
	if out.Conclusion != ci.Failure || !out.Infrastructure || out.Reason != why {
		t.Errorf("%+v", out)
	}
	steps, jobs := s.of(ci.StepFinished), s.of(ci.JobFinished)
	if len(steps) == 0 || !steps[0].Infrastructure || steps[0].Reason != why {
		t.Errorf("step: %+v", steps)
	}
	if len(jobs) != 1 || !jobs[0].Infrastructure || jobs[0].Reason != why || jobs[0].Conclusion != ci.Failure {
		t.Errorf("job: %+v", jobs)
	}
}

func TestRunnerCancelled(t *testing.T) {
	s := newStove(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	s.watch = func(r ci.Record) {
		if r.Type == ci.LogLine && r.Text == "under way" {
			cancel(errors.New("somebody pressed cancel"))
		}
	}
	out := s.run(ctx, "    steps:\n      - run: echo under way; sleep 60\n      - {if: always(), run: echo cleaned}\n", nil)
	if out.Conclusion != ci.Cancelled || out.Infrastructure || !strings.Contains(s.log(), "cleaned") {
		t.Errorf("%+v\n%s", out, s.log())
	}
	// Before there is a machine, too.
	if out := s.run(ctx, "    steps:\n      - run: echo\n", nil); out.Conclusion != ci.Cancelled || out.Reason != "somebody pressed cancel" {
		t.Errorf("%+v", out)
	}
}

// What keeps a job from a machine is ours, not its author's.
func TestRunnerCannotRun(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(*stove)
		want string
	}{
		"no room": {func(s *stove) { s.CPUs = 99 }, "no machine: "},
		"no boot": {func(s *stove) { s.host.Refuse = func(machine.Request) error { return errors.New("no /dev/kvm") } }, "no /dev/kvm"},
		"no image": {func(s *stove) {
			s.Image = func([]string) (string, error) { return "", errors.New("gone") }
		}, "image: gone"},
		"no token": {func(s *stove) {
			s.Token = func(context.Context, *plan.Job) (string, error) { return "", errors.New("GitHub is away") }
		}, "the job's token: GitHub is away"},
		"a secret that cannot be masked": {func(s *stove) { s.Secrets = map[string]string{"BIG": strings.Repeat("x", 1<<20)} }, "masking: secret BIG: "},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStove(t)
			c.harm(s)
			out := s.run(t.Context(), "    steps:\n      - run: echo\n", nil)
			if out.Conclusion != ci.Failure || !out.Infrastructure || !strings.Contains(out.Reason, c.want) {
				t.Errorf("%+v, want %q", out, c.want)
			}
		})
	}
}

// Secrets of the job's environment come over the run's own, none of them is
// told, and neither is the token.
func TestRunnerSecrets(t *testing.T) {
	s := newStove(t)
	s.Secrets = map[string]string{"KEY": "of-the-run", "OTHER": "another"}
	s.EnvironmentSecrets = map[string]map[string]string{"production": {"key": "of-production"}}
	s.EnvironmentVars = map[string]map[string]string{"production": {"WHERE": "there"}}
	s.Token = func(context.Context, *plan.Job) (string, error) { return "ghs_thetoken", nil }
	out := s.run(t.Context(), `
    environment: Production
    env: {KEY: "${{ secrets.KEY }}", OTHER: "${{ secrets.OTHER }}", TOKEN: "${{ github.token }}"}
    steps:
      - run: |
          test "$KEY$OTHER$TOKEN" = of-productionanotherghs_thetoken
          echo "key $KEY, other $OTHER, token $TOKEN, where ${{ vars.WHERE }}"
`, nil)
	if out.Conclusion != ci.Success || !strings.Contains(s.log(), "key ***, other ***, token ***, where there") {
		t.Errorf("%+v\n%s", out, s.log())
	}
}

// What is told of a connection has the job's masks, the runner's own and those that
// a step has added.
func TestRunnerMasksHosts(t *testing.T) {
	s := newStove(t)
	s.Secrets = map[string]string{"KEY": "hunter2hunter3"}
	var once sync.Once
	s.watch = func(r ci.Record) {
		if r.Type == ci.LogLine && r.Text == "ready" {
			once.Do(func() {
				s.host.Machines()[0].Connect(network.Connection{Proto: "tcp", IP: netip.MustParseAddr("1.2.3.4"), Host: "hunter2hunter3.ADDED-LATER.example.com",
					Port: 443})
			})
		}
	}
	out := s.run(t.Context(), "    steps:\n      - run: |\n          echo ::add-mask::added-later\n          echo ready\n", nil)
	c := s.of(ci.ConnectionRec)
	if out.Conclusion != ci.Success || len(c) != 1 || c[0].Job != "test" || c[0].Connection.Port != 443 || c[0].Connection.IP != "1.2.3.4" ||
		strings.Contains(c[0].Connection.Host, "hunter2") ||
		strings.Contains(strings.ToLower(c[0].Connection.Host), "added") || !strings.HasSuffix(c[0].Connection.Host, ".example.com") {
		t.Errorf("%+v %+v", out, c)
		for _, r := range c {
			t.Errorf("%+v", r.Connection)
		}
	}
}

// A step that fails for what the machine has not got is told how to get it, and a
// token is asked for where there is none.
func TestRunnerHints(t *testing.T) {
	for _, c := range []struct {
		step, token string
		want        string
	}{
		{"no-such-program-here", "", "no-such-program-here is not in the machine's image"},
		{"echo 'fatal: could not read Username for https' >&2; echo \"terminal prompts disabled\"; exit 1", "", "This run has no GITHUB_TOKEN"},
		{"echo terminal prompts disabled; exit 1", "ghs_token", ""},
		{"exit 1", "", ""},
	} {
		s := newStove(t)
		if c.token != "" {
			s.Token = func(context.Context, *plan.Job) (string, error) { return c.token, nil }
		}
		s.run(t.Context(), "    steps:\n      - run: "+strings.ReplaceAll(c.step, ": ", ":")+"\n", nil)
		var notices []string
		for _, r := range s.of(ci.AnnotationRec) {
			if r.Level == "notice" {
				notices = append(notices, r.Message)
			}
		}
		if got := strings.Join(notices, "; "); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.step, got, c.want)
		}
	}
	s := newStove(t)
	s.Token = func(context.Context, *plan.Job) (string, error) { return strings.Repeat("x", 1<<20), nil }
	if out := s.run(t.Context(), "    steps:\n      - run: echo\n", nil); !out.Infrastructure || !strings.HasPrefix(out.Reason, "masking: secret GITHUB_TOKEN") {
		t.Errorf("%+v", out)
	}
}

// A failed step is explained once, and the next one like it is told how often it was
// seen; who learns nothing explains nothing.
func TestRunnerExplains(t *testing.T) {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, c := range []struct {
		mode learn.Mode
		seen []int
	}{{learn.Off, nil}, {learn.Advise, []int{0}}, {learn.Advise, []int{1}}} {
		l, err := learn.Open(t.Context(), db, learn.Options{Mode: c.mode})
		if err != nil {
			t.Fatal(err)
		}
		s := newStove(t)
		s.Learn, s.Secrets = l, map[string]string{"KEY": "hunter2hunter3"}
		if _, _, err := db.CreateRun(t.Context(), ci.Run{ID: s.RunID, Repository: "o/r", File: "ci.yml"}, []ci.Job{{Key: "test", Job: "test"}}, nil); err != nil {
			t.Fatal(err)
		}
		s.run(t.Context(), "    steps:\n      - {id: ok, run: echo fine}\n      - {id: bad, run: 'echo \"error: cannot find hunter2hunter3 in the lake\"; exit 1'}\n", nil)
		var seen []int
		for _, r := range s.of(ci.PredictionRec) {
			e := r.Explanation
			if r.Step != 2 || r.StepID != "bad" || r.Job != "test" || e == nil || e.Signature == "" || !strings.Contains(e.Text, "cannot find") ||
				strings.Contains(e.Text, "hunter2") {
				t.Errorf("%+v %+v", r, e)
				continue
			}
			seen = append(seen, e.Seen)
		}
		if !slices.Equal(seen, c.seen) {
			t.Errorf("%v: seen %v, want %v\n%s", c.mode, seen, c.seen, s.log())
		}
	}
}
