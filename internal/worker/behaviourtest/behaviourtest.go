// Package behaviourtest reads behaviours: a workflow of GitHub's each, and what becomes of
// it there, as its documentation and the source of actions/runner have it. They are the
// files of internal/worker/testdata/behaviours. A file's comment says what it shows. The
// sections:
//
//	ci.yml                 the workflow (.github/workflows/ci.yml); other names without a
//	                       slash that end in .yml are workflows beside it
//	@owner/repo/FILE       a file of an action's repository
//	event.json             what is merged into the event's payload
//	secrets, vars, inputs, env
//	                       NAME=value lines
//	secrets@ENVIRONMENT, vars@ENVIRONMENT
//	                       those of a deployment environment
//	want                   what becomes of it, see [Expectation]
//
// and files of the repository.
package behaviourtest

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
)

// Expectation is the section want. Its first line is
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
type Expectation struct {
	Event, Ref, Action string
	Conclusion         string
	Says               []string // of what is invalid
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

// Expect reads the section want.
func Expect(t testing.TB, text string) *Expectation {
	t.Helper()
	e := &Expectation{}
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if i == 0 {
			left, right, ok := strings.Cut(line, " = ")
			words := append(strings.Fields(left), "", "", "")
			e.Event, e.Conclusion = words[0], right
			for _, w := range words[1:] {
				if strings.HasPrefix(w, "refs/") {
					e.Ref = w
				} else if w != "" {
					e.Action = w
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
			e.Says = append(e.Says, rest)
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

// Jobs is how many jobs are wanted.
func (e *Expectation) Jobs() int { return len(e.jobs) }

// Values are NAME=value lines.
func Values(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		if k, v, ok := strings.Cut(line, "="); ok {
			m[k] = v
		}
	}
	return m
}

// Compare says what is otherwise than wanted.
func (e *Expectation) Compare(t testing.TB, records []ci.Record) {
	t.Helper()
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
