package remote

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/desk"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/source"
	"github.com/hearth-ci/hearth/internal/worker"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// What becomes of each field of a Runner on its way to a worker elsewhere. One that is
// added to Runner has to be added here, and to the brief: what is promised of jobs on the
// server holds for those elsewhere.
var fields = map[string]string{
	"RunID": "same", "Repository": "same", "File": "same", "Ref": "same", "SHA": "same", "Attempt": "same", "Env": "same", "Tests": "same",
	"TakesImage": "same", "Points": "same", "Network": "same", "CPUs": "same", "MemoryMiB": "same",

	"Secrets": "Given", "EnvironmentSecrets": "Given", "EnvironmentVars": "Given", "Token": "Given",
	"Results": "Services", "CacheMode": "Services", "OIDC": "Services", "OIDCSubject": "Services",
	"Commits": "Learn", // which the server asks with them

	"Given": "made", "Services": "made", "Uploads": "made", "Source": "made", "Actions": "made", "Learn": "made", "Risk": "made", "Tree": "made", "Sink": "made",

	"Host": "host", "Image": "host", "Registry": "host", "Package": "host", "Layout": "host", "Log": "made",
	"Pause": "none", // who waits for failures sits at a terminal
	"Keep":  "none", // a server keeps no points
	"From":  "none",
}

func planned(t *testing.T) *plan.Run {
	w, ds := workflow.Parse("ci.yml", []byte("on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    environment: prod\n    steps: [{run: echo}]\n  b: {runs-on: x, steps: [{run: echo}]}\n"),
		workflow.Options{})
	if workflow.Errors(ds) {
		t.Fatal(ds)
	}
	run, ds := plan.Build(plan.Request{Workflow: w, Event: &workflow.Happening{Event: "push", Ref: "refs/heads/main"}})
	if workflow.Errors(ds) {
		t.Fatal(ds)
	}
	return run
}

func TestRunnerTravels(t *testing.T) {
	run := planned(t)
	from := &worker.Runner{RunID: ci.NewID(), Repository: "o/r", File: "ci.yml", Ref: "refs/heads/main", SHA: strings.Repeat("a", 40), Attempt: 3,
		Env: map[string]string{"A": "b"}, Tests: []string{"x/*.xml"}, TakesImage: "so", Points: worker.EachPoint,
		Network: network.Policy{Mode: network.None, Refuse: true},
		CPUs:    3, MemoryMiB: 700, Secrets: map[string]string{"S": "of the run", "T": "over"},
		EnvironmentSecrets: map[string]map[string]string{"prod": {"T": "of the environment"}, "dev": {"U": "of another"}},
		EnvironmentVars:    map[string]map[string]string{"prod": {"V": "v"}},
		Token:              func(context.Context, *plan.Job) (string, error) { return "a token", nil },
		Source:             &source.Dir{}, Actions: action.NewResolver(action.Config{}), Risk: func(_ string, step int) float64 { return float64(step) / 4 },
		Tree: func() string { return "tree" }, Log: slog.New(slog.DiscardHandler)}
	s := NewServer(Config{Desk: &desk.Desk{Queue: queue.New(nil, queue.Config{})}, Log: from.Log})
	l := &live{fence: fence{ci.NewID(), 2}, runner: from, task: conduct.Task{Run: run, Job: run.Job("a"), Part: run.Part(run.Job("a"))}}
	key, err := kem.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := s.brief(t.Context(), l, key.PublicKey().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(ClientConfig{Server: "https://hearth.example.org", Log: from.Log})
	if err != nil {
		t.Fatal(err)
	}
	j, err := c.begin(key, claimAnswer{fence: l.fence, Sealed: sealed})
	if err != nil {
		t.Fatal(err)
	}
	defer j.lost(queue.ErrLost)
	to := j.runner(ci.SinkFunc(func(ci.Record) {}))
	a, b := reflect.ValueOf(*from), reflect.ValueOf(*to)
	for i := range a.NumField() {
		name := a.Type().Field(i).Name
		switch what := fields[name]; what {
		case "same":
			if a.Field(i).IsZero() || !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
				t.Errorf("%s: %v there, %v here", name, a.Field(i), b.Field(i))
			}
		case "made":
			if b.Field(i).IsZero() {
				t.Errorf("%s is not there on the worker", name)
			}
		case "Given", "Services", "Learn", "host", "none":
			if !b.Field(i).IsZero() {
				t.Errorf("%s is %s's, and it is on the worker", name, what)
			}
		default:
			t.Errorf("what becomes of Runner.%s on a worker elsewhere?", name)
		}
	}
	g := to.Given
	if want := map[string]string{"S": "of the run", "T": "of the environment"}; !reflect.DeepEqual(g.Secrets, want) || g.Token != "a token" ||
		g.Run.Vars.Get("V").AsString() != "v" {
		t.Errorf("%+v", g)
	}
	if to.Risk("a", 1) != 0.25 || to.Tree() != "tree" {
		t.Errorf("risk %v, tree %q", to.Risk("a", 1), to.Tree())
	}
	if len(g.Run.Jobs) != 1 {
		t.Errorf("the worker is told of %d jobs", len(g.Run.Jobs))
	}
}

// A job that tells more than the spool holds waits for the server, and goes on when that
// takes it; when the attempt is lost it waits no more.
func TestSpoolIsBounded(t *testing.T) {
	c, err := NewClient(ClientConfig{Server: "http://127.0.0.1:1", Token: func() string { return "" }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	j := &job{c: c, fence: fence{ci.NewID(), 1}}
	j.ctx, j.lost = context.WithCancelCause(context.Background())
	j.spool = newSpool(j)
	put := make(chan error, 1)
	n := 0
	go func() {
		var err error
		for ; err == nil; n++ {
			err = j.spool.put(ci.Record{Type: ci.LogLine, Text: strings.Repeat("x", 1<<20)})
		}
		put <- err
	}()
	for held := 0; held < 30; time.Sleep(10 * time.Millisecond) {
		j.spool.mu.Lock()
		held = len(j.spool.records)
		j.spool.mu.Unlock()
	}
	select {
	case err := <-put:
		t.Fatalf("after %d records: %v", n, err)
	case <-time.After(300 * time.Millisecond):
	}
	j.spool.mu.Lock()
	bytes := j.spool.bytes
	j.spool.mu.Unlock()
	if bytes > maxSpool {
		t.Errorf("%d bytes", bytes)
	}
	j.lost(queue.ErrLost)
	if err := <-put; !errors.Is(err, queue.ErrLost) {
		t.Error(err)
	}
	j.spool.wait()
}

func TestServersAddresses(t *testing.T) {
	for address, want := range map[string]bool{"https://hearth.example.org": true, "https://hearth.example.org/ci/": true, "http://127.0.0.1:8787": true,
		"http://localhost:1": true, "http://[::1]:1": true, "http://hearth.example.org": false, "http://10.0.0.1": false, "hearth.example.org": false,
		"https://u:p@hearth.example.org": false, "https://hearth.example.org?x": false, "ftp://127.0.0.1": false, "": false} {
		if _, err := NewClient(ClientConfig{Server: address}); (err == nil) != want {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// A stream that is cut, or none, is never taken for its end.
func TestUnframe(t *testing.T) {
	whole := "d\x00\x00\x00\x02ab" + "d\x00\x00\x00\x00" + "e\x00\x00\x00\x0c{\"sha\":\"xy\"}"
	var out strings.Builder
	end, err := unframe(&out, strings.NewReader(whole))
	if err != nil || out.String() != "ab" || end.SHA != "xy" {
		t.Errorf("%q, %+v, %v", out.String(), end, err)
	}
	for n := range len(whole) {
		if _, err := unframe(&out, strings.NewReader(whole[:n])); err == nil || final(err) {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
	for _, s := range []string{"x\x00\x00\x00\x00", "d\xff\xff\xff\xff", "e\xff\xff\xff\xff", "e\x00\x00\x00\x01x"} {
		if _, err := unframe(&out, strings.NewReader(s)); err == nil {
			t.Errorf("%q passes", s)
		}
	}
}
