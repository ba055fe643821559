package worker_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
	"github.com/hearth-ci/hearth/internal/workflow"
)

// A behaviour is a file of testdata/behaviours: a workflow of GitHub's, and what becomes
// of it there, as its documentation and the source of actions/runner have it. Its
// comment says what is shown. The sections:
//
//	ci.yml                 the workflow (.github/workflows/ci.yml); other names without a
//	                       slash that end in .yml are workflows beside it
//	@owner/repo/FILE       a file of an action's repository
//	event.json             what is merged into the event's payload
//	secrets, vars, inputs, env
//	                       NAME=value lines
//	secrets@ENVIRONMENT, vars@ENVIRONMENT
//	                       those of a deployment environment
//	want                   what becomes of it, see [expectation]
//
// and files of the repository.
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

// expectation is the section want. Its first line is
//
//	EVENT [REF] [ACTION] = CONCLUSION
//
// where the conclusion "invalid" stands for a workflow that is not run, and "nothing"
// for one that does not run for the event; then come all jobs in their order, each
//
//	JOB NAME = CONCLUSION [: CONCLUSION OF STEP, …]
//
// A step's is outcome/conclusion where they differ. A line below a job begins with
//
//	|  a line that its steps print; if there is one, all that they print
//	~  what one of its lines holds, those of the runner too
//	!  what none of them holds
//	@  LEVEL what an annotation of it says
//	>  NAME=VALUE an output that it hands on
//
// and below the first line, of what is invalid, ~ is what a diagnostic says.
type expectation struct {
	event, ref, action string
	conclusion         string
	says               []string
	jobs               []*wanted
}

type wanted struct {
	name, conclusion       string
	steps                  string
	stepped                bool
	prints, holds, without []string
	annotations, outputs   []string
	printed                bool
}

func expect(t *testing.T, text string) *expectation {
	t.Helper()
	e := &expectation{}
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if i == 0 {
			left, right, ok := strings.Cut(line, " = ")
			words := append(strings.Fields(left), "", "", "")
			e.event, e.conclusion = words[0], right
			for _, w := range words[1:] {
				if strings.HasPrefix(w, "refs/") {
					e.ref = w
				} else if w != "" {
					e.action = w
				}
			}
			if !ok {
				t.Fatalf("want begins with %q", line)
			}
			continue
		}
		mark, rest, marked := strings.Cut(line, " ")
		if line == "|" {
			mark, rest, marked = "|", "", true
		}
		if !marked || !slices.Contains([]string{"|", "~", "!", "@", ">"}, mark) {
			name, right, ok := strings.Cut(line, " = ")
			if !ok {
				t.Fatalf("%q is no line of want", line)
			}
			w := &wanted{name: name}
			w.conclusion, w.steps, w.stepped = strings.Cut(right, ": ")
			e.jobs = append(e.jobs, w)
			continue
		}
		if len(e.jobs) == 0 {
			e.says = append(e.says, rest)
			continue
		}
		w := e.jobs[len(e.jobs)-1]
		switch mark {
		case "|":
			w.prints, w.printed = append(w.prints, rest), true
		case "~":
			w.holds = append(w.holds, rest)
		case "!":
			w.without = append(w.without, rest)
		case "@":
			w.annotations = append(w.annotations, rest)
		case ">":
			w.outputs = append(w.outputs, rest)
		}
	}
	return e
}

// values are NAME=value lines.
func values(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		if k, v, ok := strings.Cut(line, "="); ok {
			m[k] = v
		}
	}
	return m
}

func behave(t *testing.T, a *txtar.Archive) {
	root, dir := t.TempDir(), t.TempDir()
	parts := map[string]string{}
	var e *expectation
	payload := `{"ref":"refs/heads/main","repository":{"name":"r","full_name":"o/r","default_branch":"main","owner":{"login":"o"}},"sender":{"login":"octo"}}`
	overrides := map[string]string{}
	envSecrets, envVars := map[string]map[string]string{}, map[string]map[string]string{}
	for _, f := range a.Files {
		text := string(f.Data)
		kind, environment, of := strings.Cut(f.Name, "@")
		switch {
		case f.Name == "want":
			e = expect(t, text)
		case f.Name == "event.json" || f.Name == "secrets" || f.Name == "vars" || f.Name == "inputs" || f.Name == "env":
			parts[f.Name] = text
		case of && kind == "secrets":
			envSecrets[environment] = values(text)
		case of && kind == "vars":
			envVars[environment] = values(text)
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
	ref := e.ref
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
		if e.conclusion != "invalid" {
			t.Fatalf("it is refused: %q", all)
		}
		for _, want := range e.says {
			if !slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, want) }) {
				t.Errorf("no word of %q in %q", want, all)
			}
		}
		if len(e.jobs) > 0 || len(e.says) == 0 {
			t.Error("what is refused has no jobs, and says why")
		}
	}
	w, ds := workflow.Parse(file, text, workflow.Options{})
	if workflow.Errors(ds) {
		refused(ds)
		return
	}
	happened := &workflow.Happening{Event: e.event, Action: e.action, Ref: ref, SHA: sha, Payload: github}
	if !w.Decide(happened).Run {
		if e.conclusion != "nothing" {
			t.Errorf("it does not run: %+v", w.Decide(happened))
		}
		return
	}
	for k, at := range map[string]*string{"base": &happened.BaseRef, "head": &happened.HeadRef} {
		*at = github.At("pull_request", k, "ref").ToString()
	}
	id := ci.NewID()
	run := ci.Run{ID: id, Repository: "o/r", Ref: ref, SHA: sha, Event: e.event, Actor: "octo", Number: 7, Attempt: 1, File: file, Workflow: cmp.Or(w.Name, file)}
	plan, ds := launch.Plan(t.Context(), launch.Request{Workflow: w, Event: happened, Inputs: values(parts["inputs"]), Vars: values(parts["vars"]),
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
	if e.conclusion == "invalid" || e.conclusion == "nothing" {
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
	runner := &worker.Runner{Host: host, RunID: id, Repository: "o/r", File: file, Ref: ref, SHA: sha, Attempt: 1, Sink: sink, Secrets: values(parts["secrets"]),
		Env: values(parts["env"]), EnvironmentSecrets: envSecrets, EnvironmentVars: envVars, Source: src, Actions: resolver, Log: slog.New(slog.DiscardHandler),
		Layout: engine.Layout{Workspace: filepath.Join(dir, "work/r/r"), Temp: filepath.Join(dir, "work/_temp"), Actions: filepath.Join(dir, "work/_actions"),
			ToolCache: filepath.Join(dir, "tools"), Tools: nodes(t, dir)}}
	// Machines of one host share its file system here; jobs have it one after the other.
	turn := &inTurn{runner: runner, work: filepath.Join(dir, "work")}
	con := &conduct.Conductor{Run: plan, ID: id, Sink: sink, Executor: turn}
	conclusion, err := con.Drive(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if string(conclusion) != e.conclusion {
		t.Errorf("the run is %s, want %s", conclusion, e.conclusion)
	}
	e.compare(t, records)
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

// compare says what is otherwise than wanted.
func (e *expectation) compare(t *testing.T, records []ci.Record) {
	type job struct {
		name, conclusion string
		steps            map[int]string
		prints           []string
		all, notes       string
		outputs          map[string]string
	}
	jobs := map[string]*job{}
	var order []string
	for _, r := range records {
		if r.JobKey == "" {
			continue
		}
		j := jobs[r.JobKey]
		if j == nil {
			j = &job{steps: map[int]string{}}
			jobs[r.JobKey] = j
		}
		switch r.Type {
		case ci.JobQueued, ci.JobStarted:
			j.name = r.Name
		case ci.JobFinished:
			j.name, j.conclusion, j.outputs = r.Name, string(r.Conclusion), r.Outputs
			j.all += r.Reason + "\n" + r.Message + "\n"
		case ci.StepFinished:
			j.steps[r.Step] = string(r.Conclusion)
			if r.Outcome != r.Conclusion {
				j.steps[r.Step] = string(r.Outcome) + "/" + string(r.Conclusion)
			}
			j.all += r.Name + "\n" + r.Reason + "\n"
		case ci.LogLine:
			j.all += r.Text + "\n"
			if r.Stream != "system" {
				j.prints = append(j.prints, r.Text)
			}
		case ci.AnnotationRec:
			where := ""
			if r.File != "" {
				where = fmt.Sprintf("%s:%d:%d ", r.File, r.Line, r.Column)
			}
			j.notes += fmt.Sprintf("%s %s%s %s\n", r.Level, where, r.Title, r.Message)
		}
	}
	for key, j := range jobs {
		if j.conclusion != "" {
			order = append(order, key)
		}
	}
	if len(order) != len(e.jobs) {
		t.Errorf("%d jobs, want %d: %v", len(order), len(e.jobs), slices.Sorted(maps.Keys(jobs)))
	}
	for _, w := range e.jobs {
		var j *job
		for _, key := range order {
			if jobs[key].name == w.name {
				j = jobs[key]
			}
		}
		if j == nil {
			var names []string
			for _, key := range order {
				names = append(names, jobs[key].name)
			}
			t.Errorf("there is no job %q in %q", w.name, names)
			continue
		}
		var steps []string
		for _, n := range slices.Sorted(maps.Keys(j.steps)) {
			steps = append(steps, j.steps[n])
		}
		got := strings.Join(steps, ", ")
		if j.conclusion != w.conclusion || w.stepped && got != w.steps {
			t.Errorf("%s = %s: %s\nwant %s: %s\n%s", w.name, j.conclusion, got, w.conclusion, w.steps, j.all)
		}
		if w.printed && strings.Join(j.prints, "\n") != strings.Join(w.prints, "\n") {
			t.Errorf("%s prints\n%s\nwant\n%s", w.name, strings.Join(j.prints, "\n"), strings.Join(w.prints, "\n"))
		}
		for _, s := range w.holds {
			if !strings.Contains(j.all, s) {
				t.Errorf("%s: no %q in\n%s", w.name, s, j.all)
			}
		}
		for _, s := range w.without {
			if strings.Contains(j.all, s) {
				t.Errorf("%s: %q in\n%s", w.name, s, j.all)
			}
		}
		for _, s := range w.annotations {
			level, message, _ := strings.Cut(s, " ")
			if !regexp.MustCompile(`(?m)^` + level + ` .*` + regexp.QuoteMeta(message)).MatchString(j.notes) {
				t.Errorf("%s: no annotation %q in\n%s", w.name, s, j.notes)
			}
		}
		for _, s := range w.outputs {
			k, v, _ := strings.Cut(s, "=")
			if got, ok := j.outputs[k]; !ok || got != v {
				t.Errorf("%s hands on %q, want %s", w.name, j.outputs, s)
			}
		}
	}
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
