package worker_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/launch"
	"github.com/hearth-ci/hearth/internal/machine/machinetest"
	"github.com/hearth-ci/hearth/internal/source"
	"github.com/hearth-ci/hearth/internal/worker"
	"github.com/hearth-ci/hearth/internal/worker/behaviourtest"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// The behaviours of testdata/behaviours ([behaviourtest]), over machines without a VM.
func TestBehaviours(t *testing.T) {
	files, err := filepath.Glob("testdata/behaviours/*.txtar")
	if err != nil || len(files) < 120 {
		t.Fatalf("%d behaviours, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(strings.TrimSpace(string(a.Comment))) < 10 {
				t.Error("it does not say what it shows")
			}
			behave(t, a)
		})
	}
}

func behave(t *testing.T, a *txtar.Archive) {
	root, dir := t.TempDir(), t.TempDir()
	parts := map[string]string{}
	var e *behaviourtest.Expectation
	payload := `{"ref":"refs/heads/main","repository":{"name":"r","full_name":"o/r","default_branch":"main","owner":{"login":"o"}},"sender":{"login":"octo"}}`
	overrides := map[string]string{}
	envSecrets, envVars := map[string]map[string]string{}, map[string]map[string]string{}
	for _, f := range a.Files {
		text := string(f.Data)
		kind, environment, of := strings.Cut(f.Name, "@")
		switch {
		case f.Name == "want":
			e = behaviourtest.Expect(t, text)
		case f.Name == "event.json" || f.Name == "secrets" || f.Name == "vars" || f.Name == "inputs" || f.Name == "env":
			parts[f.Name] = text
		case of && kind == "secrets":
			envSecrets[environment] = behaviourtest.Values(text)
		case of && kind == "vars":
			envVars[environment] = behaviourtest.Values(text)
		case strings.HasPrefix(f.Name, "@"):
			names := strings.SplitN(f.Name[1:], "/", 3)
			at := filepath.Join(dir, "actions", names[0], names[1])
			overrides[names[0]+"/"+names[1]] = at
			put(t, filepath.Join(at, names[2]), text)
		case !strings.Contains(f.Name, "/") && strings.HasSuffix(f.Name, ".yml"):
			put(t, filepath.Join(root, ".github/workflows", f.Name), text)
		default:
			put(t, filepath.Join(root, f.Name), text)
		}
	}
	if e == nil {
		t.Fatal("nothing is wanted")
	}
	ref := e.Ref
	if ref == "" {
		ref = "refs/heads/main"
	}
	var event map[string]any
	for _, text := range []string{payload, parts["event.json"]} {
		if text == "" {
			continue
		}
		if err := json.Unmarshal([]byte(text), &event); err != nil {
			t.Fatal(err)
		}
	}
	event["ref"] = ref
	whole, err := json.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	github, err := expr.ParseJSON(whole)
	if err != nil {
		t.Fatal(err)
	}
	src := &source.Dir{Root: root, Repository: "o/r", Branch: "main"}
	sha, err := src.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	resolver := action.NewResolver(action.Config{Dir: filepath.Join(dir, "mirrors"), Offline: true, Overrides: overrides})
	const file = ".github/workflows/ci.yml"
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(ds []workflow.Diagnostic) {
		var all []string
		for _, d := range ds {
			all = append(all, fmt.Sprintf("%s:%s %s", d.File, d.Pos, d.Message))
		}
		if e.Conclusion != "invalid" {
			t.Fatalf("it is refused: %q", all)
		}
		for _, want := range e.Says {
			if !slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, want) }) {
				t.Errorf("no word of %q in %q", want, all)
			}
		}
		if e.Jobs() > 0 || len(e.Says) == 0 {
			t.Error("what is refused has no jobs, and says why")
		}
	}
	w, ds := workflow.Parse(file, text, workflow.Options{})
	if workflow.Errors(ds) {
		refused(ds)
		return
	}
	happened := &workflow.Happening{Event: e.Event, Action: e.Action, Ref: ref, SHA: sha, Payload: github}
	if !w.Decide(happened).Run {
		if e.Conclusion != "nothing" {
			t.Errorf("it does not run: %+v", w.Decide(happened))
		}
		return
	}
	for k, at := range map[string]*string{"base": &happened.BaseRef, "head": &happened.HeadRef} {
		*at = github.At("pull_request", k, "ref").ToString()
	}
	id := ci.NewID()
	run := ci.Run{ID: id, Repository: "o/r", Ref: ref, SHA: sha, Event: e.Event, Actor: "octo", Number: 7, Attempt: 1, File: file, Workflow: cmp.Or(w.Name, file)}
	plan, ds := launch.Plan(t.Context(), launch.Request{Workflow: w, Event: happened, Inputs: behaviourtest.Values(parts["inputs"]),
		Vars:  behaviourtest.Values(parts["vars"]),
		Facts: launch.Facts{Run: run, Server: "https://github.com", API: "https://api.github.com"},
		Load: func(uses string, _ *workflow.Workflow) (string, []byte, error) {
			name, ok := strings.CutPrefix(uses, "./")
			if !ok {
				return "", nil, fmt.Errorf("%s is not here", uses)
			}
			b, err := os.ReadFile(filepath.Join(root, name))
			return name, b, err
		},
		Check: engine.CheckOptions{Actions: resolver, Files: func(_ context.Context, name string, _ int64) ([]byte, error) {
			return os.ReadFile(filepath.Join(root, name))
		}}})
	if plan == nil {
		refused(ds)
		return
	}
	if e.Conclusion == "invalid" || e.Conclusion == "nothing" {
		t.Fatalf("it runs; said %v", ds)
	}
	var mu sync.Mutex
	var records []ci.Record
	sink := ci.SinkFunc(func(r ci.Record) {
		mu.Lock()
		defer mu.Unlock()
		records = append(records, r)
	})
	host := &machinetest.Host{}
	runner := &worker.Runner{Host: host, RunID: id, Repository: "o/r", File: file, Ref: ref, SHA: sha, Attempt: 1, Sink: sink,
		Secrets: behaviourtest.Values(parts["secrets"]), Env: behaviourtest.Values(parts["env"]),
		EnvironmentSecrets: envSecrets, EnvironmentVars: envVars, Source: src, Actions: resolver, Log: slog.New(slog.DiscardHandler),
		Layout: engine.Layout{Workspace: filepath.Join(dir, "work/r/r"), Temp: filepath.Join(dir, "work/_temp"), Actions: filepath.Join(dir, "work/_actions"),
			ToolCache: filepath.Join(dir, "tools"), Tools: nodes(t, dir)}}
	// Machines of one host share its file system here; jobs have it one after the other.
	turn := &inTurn{runner: runner, work: filepath.Join(dir, "work")}
	con := &conduct.Conductor{Run: plan, ID: id, Sink: sink, Executor: turn}
	conclusion, err := con.Drive(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if string(conclusion) != e.Conclusion {
		t.Errorf("the run is %s, want %s", conclusion, e.Conclusion)
	}
	e.Compare(t, records)
}

// inTurn runs one job at a time, each in an empty workspace.
type inTurn struct {
	mu     sync.Mutex
	runner *worker.Runner
	work   string
}

func (i *inTurn) Execute(ctx context.Context, task conduct.Task) conduct.Outcome {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := os.RemoveAll(i.work); err != nil {
		return conduct.Outcome{Conclusion: ci.Failure, Infrastructure: true, Reason: err.Error()}
	}
	return i.runner.Execute(ctx, task)
}

func put(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// nodes makes a tools directory of this host's node, which JavaScript actions want.
func nodes(t *testing.T, dir string) string {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Log("node is missing (apt-get install nodejs): JavaScript actions will fail")
	}
	for _, n := range []string{"node20", "node24"} {
		bin := filepath.Join(dir, "hearth", n, "bin")
		if err := os.MkdirAll(bin, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(node, filepath.Join(bin, "node")); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "hearth")
}
