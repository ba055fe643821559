// Package compat says, without a machine and without the network, what of workflows
// would run here: for every job whether it does, what differs from GitHub's runner,
// and what cannot run, why, and what would change that.
//
// It plans each workflow for one event that it has, as [launch] does for a run, and
// asks the same check. Conditions of jobs, and filters of branches and paths, are not
// asked: a job that another push would start counts, too. So the answer is about what
// a job asks for; that its commands succeed in the machine is not promised.
package compat

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/launch"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// MaxFile bounds a workflow file, MaxFiles how many are looked at.
const (
	MaxFile  = 1 << 20
	MaxFiles = 100_000
)

// Job is what is said of one job as written.
type Job struct {
	File     string `json:"file"`
	Workflow string `json:"workflow"`
	Event    string `json:"event,omitempty"` // that it was planned for
	Job      string `json:"job"`             // its id, after those of the jobs that call it; "" is the whole file, which cannot be planned
	Cells    int    `json:"cells"`           // of its matrix; 1 without one, 0 while it is not known
	// Runs says that it does, or some of its cells.
	Runs     bool `json:"runs"`
	CellsRun int  `json:"cells_run"`
	// Reasons are why it cannot run, or those of its cells that cannot.
	Reasons []string `json:"reasons"`
	// Differs is what it does otherwise here. Perhaps is what will not run if it is
	// reached: a step whose condition is not known yet, or false while all goes well, a
	// command whose program the machine has not.
	Differs []string `json:"differs,omitempty"`
	Perhaps []string `json:"perhaps,omitempty"`
	Steps   []Step   `json:"steps,omitempty"`
	// Invalid says that GitHub would not take the file.
	Invalid bool `json:"invalid,omitempty"`
}

// Step is what is said of one step.
type Step struct {
	Number int    `json:"step"`
	Name   string `json:"name"` // as written: its name, action or first line
	Is     string `json:"is"`   // runs, differs, perhaps, cannot
	Why    string `json:"why,omitempty"`
}

// Options say what there is.
type Options struct {
	Check     engine.CheckOptions // without Files and Note, which are of each file
	Fits      func(labels []string, group string) (have, remarks []string, err error)
	LabelHint string
	// Lacks are the programs that a job's commands name and that the machine has not,
	// with what brings them; nil knows none.
	Lacks func(*workflow.Job) []string
	// Load reads called workflows of other repositories.
	Load func(ctx context.Context, uses string) ([]byte, error)
}

// Files finds the workflow files below what is named: a file; the .github/workflows
// of a directory; else those of the directories below it, of all repositories that
// lie there; else every YAML file below it.
func Files(names []string) ([]string, error) {
	var out []string
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			out = append(out, name)
			continue
		}
		var found, any []string
		err = filepath.WalkDir(name, func(p string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && d.Name() == ".git":
				return filepath.SkipDir
			case len(any) > MaxFiles:
				return fmt.Errorf("%s has more than %d workflow files", name, MaxFiles)
			}
			if ext := filepath.Ext(p); d.Type().IsRegular() && (ext == ".yml" || ext == ".yaml") {
				any = append(any, p)
				if strings.HasSuffix(filepath.ToSlash(filepath.Dir(p)), ".github/workflows") {
					found = append(found, p)
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		top := filepath.Join(name, ".github", "workflows")
		own := slices.DeleteFunc(slices.Clone(found), func(p string) bool { return filepath.Dir(p) != top })
		switch {
		case len(own) > 0:
			out = append(out, own...)
		case len(found) > 0:
			out = append(out, found...)
		default:
			out = append(out, any...)
		}
	}
	return out, nil
}

// File says of one file what of it would run.
func File(ctx context.Context, file string, o Options) ([]Job, error) {
	src, err := read(file, MaxFile)
	if err != nil {
		return nil, err
	}
	root, name := rootOf(file)
	w, ds := workflow.Parse(name, src, workflow.Options{})
	broken := func(ds []workflow.Diagnostic, event string) []Job {
		j := Job{File: file, Workflow: name, Event: event, Invalid: true, Reasons: []string{}}
		if w != nil {
			j.Workflow = cmp.Or(w.Name, name)
		}
		for _, d := range ds {
			if d.Severity == workflow.Error {
				j.Reasons = append(j.Reasons, say(d))
			}
		}
		return []Job{j}
	}
	if workflow.Errors(ds) {
		return broken(ds, ""), nil
	}
	event := eventOf(w)
	found := map[*plan.Job][]engine.Finding{}
	check := o.Check
	check.Note = func(f engine.Finding) { found[f.Job] = append(found[f.Job], f) }
	check.Files = func(_ context.Context, name string, limit int64) ([]byte, error) { return readIn(root, name, limit) }
	facts := launch.Facts{Server: "https://github.com", API: "https://api.github.com", Run: ci.Run{ID: ci.NewID(), Number: 1, Attempt: 1, Event: event,
		Repository: "local/" + filepath.Base(root), Ref: "refs/heads/main", SHA: strings.Repeat("0", 40), Workflow: cmp.Or(w.Name, name), File: name}}
	run, ds := launch.Plan(ctx, launch.Request{
		Workflow: w, Event: happening(event, facts.Run), Facts: facts, Inputs: inputs(w, event), Check: check, Fits: o.Fits, LabelHint: o.LabelHint,
		Load: func(uses string, from *workflow.Workflow) (string, []byte, error) {
			if p, ok := strings.CutPrefix(uses, "./"); ok {
				b, err := readIn(root, p, MaxFile)
				return p, b, err
			}
			b, err := o.Load(ctx, uses)
			return uses, b, err
		},
	})
	if run == nil {
		return broken(ds, event), nil
	}
	return jobs(file, event, run, found, o.Lacks), nil
}

// jobs puts the cells of each job together.
func jobs(file, event string, run *plan.Run, found map[*plan.Job][]engine.Finding, lacks func(*workflow.Job) []string) []Job {
	out := []Job{}
	at := map[string]int{}
	for _, j := range run.Jobs {
		if j.IsCall() {
			continue
		}
		id := j.ID
		for i := len(j.CallPath) - 1; i >= 0; i-- {
			if caller := run.Job(j.CallPath[i]); caller != nil {
				id = caller.ID + " / " + id
			}
		}
		i, seen := at[id]
		if !seen {
			i, at[id] = len(out), len(out)
			out = append(out, Job{File: file, Workflow: run.Workflow, Event: event, Job: id, Reasons: []string{}})
			for n, s := range workflow.NumberedSteps(j.Definition.Steps) {
				out[i].Steps = append(out[i].Steps, Step{Number: n + 1, Name: stepName(s), Is: "runs"})
			}
			if lacks != nil {
				out[i].Perhaps = append(out[i].Perhaps, lacks(j.Definition)...)
			}
		}
		o := &out[i]
		if !j.Deferred {
			o.Cells++
		}
		if len(j.Refused) == 0 {
			o.Runs = true
			if !j.Deferred {
				o.CellsRun++
			}
		}
		for _, d := range j.Refused {
			o.Reasons = once(o.Reasons, say(d))
		}
		for _, remark := range j.Remarks {
			o.Differs = once(o.Differs, remark)
		}
		order := map[*workflow.Step]int{}
		for n, s := range workflow.NumberedSteps(j.Definition.Steps) {
			order[s] = n
		}
		for _, f := range found[j] {
			is := "cannot"
			switch {
			case f.Severity == workflow.Advice:
				o.Differs, is = once(o.Differs, say(f.Diagnostic)), "differs"
			case !f.Sure:
				o.Perhaps, is = once(o.Perhaps, say(f.Diagnostic)), "perhaps"
			}
			if n, ok := order[f.Step]; ok && f.Step != nil && n < len(o.Steps) {
				if s := &o.Steps[n]; rank(is) > rank(s.Is) {
					s.Is, s.Why = is, f.Message
				}
			}
		}
	}
	return out
}

func rank(is string) int { return slices.Index([]string{"runs", "differs", "perhaps", "cannot"}, is) }

func once(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// say is a reason in a line: where, why, and what would change it.
func say(d workflow.Diagnostic) string {
	s := d.String()
	if d.Hint != "" {
		s += " (" + d.Hint + ")"
	}
	return s
}

func stepName(s *workflow.Step) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s.Run.Text()), "\n")
	return cmp.Or(s.Name.Text(), s.Uses, line, s.ID)
}

// eventOf is the event that a workflow is planned for: the one that is nearest to
// what people do all day.
func eventOf(w *workflow.Workflow) string {
	for _, e := range []string{"push", "pull_request", "pull_request_target", "workflow_dispatch", "merge_group", "schedule"} {
		if w.Trigger(e) != nil {
			return e
		}
	}
	if len(w.On) > 0 {
		return w.On[0].Event
	}
	return ""
}

// happening is an event of the name, with what every payload has.
func happening(event string, run ci.Run) *workflow.Happening {
	owner, name, _ := strings.Cut(run.Repository, "/")
	who := map[string]any{"login": owner, "type": "User"}
	repository := map[string]any{"full_name": run.Repository, "name": name, "default_branch": "main", "owner": who}
	payload := map[string]any{"repository": repository, "sender": who}
	h := &workflow.Happening{Event: event, Ref: run.Ref, SHA: run.SHA, DefaultBranch: "main"}
	switch event {
	case "push":
		payload["ref"], payload["after"] = run.Ref, run.SHA
	case "pull_request", "pull_request_target":
		side := map[string]any{"ref": "main", "sha": run.SHA, "repo": repository}
		payload["action"], payload["number"] = "synchronize", 1
		payload["pull_request"] = map[string]any{"number": 1, "state": "open", "head": side, "base": side, "user": who}
		h.Action, h.BaseRef, h.HeadRef = "synchronize", "main", "topic"
	}
	b, err := json.Marshal(payload)
	if err == nil {
		h.Payload, err = expr.ParseJSON(b)
	}
	if err != nil {
		panic(err) // it is all above
	}
	return h
}

// inputs are values for the inputs that somebody would have to give.
func inputs(w *workflow.Workflow, event string) map[string]string {
	t := w.Trigger(event)
	if t == nil || event != "workflow_dispatch" {
		return nil
	}
	given := map[string]string{}
	for _, in := range t.Inputs {
		if in.Default != nil || !in.Required {
			continue
		}
		switch {
		case len(in.Options) > 0:
			given[in.Name] = in.Options[0]
		case in.Type == "number":
			given[in.Name] = "1"
		case in.Type == "boolean":
			given[in.Name] = "false"
		default:
			given[in.Name] = "x"
		}
	}
	return given
}

// rootOf is the repository that a file belongs to, and its name there.
func rootOf(file string) (root, name string) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return filepath.Dir(file), filepath.Base(file)
	}
	dir := filepath.Dir(abs)
	if strings.HasSuffix(filepath.ToSlash(dir), "/.github/workflows") {
		root = filepath.Dir(filepath.Dir(dir))
		return root, path.Join(".github/workflows", filepath.Base(abs))
	}
	return dir, filepath.Base(abs)
}

// readIn reads a file below root and nothing beside it.
func readIn(root, name string, limit int64) ([]byte, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := r.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	return bounded(f, limit)
}

func read(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	return bounded(f, limit)
}

func bounded(f *os.File, limit int64) ([]byte, error) {
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is no file: %w", f.Name(), os.ErrNotExist))
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", f.Name(), limit)
	}
	return b, err
}
