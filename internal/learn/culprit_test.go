package learn_test

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
)

// TestSuspects: of what has changed since the step passed last, the commit that changes
// what the failure names comes first, and chance where failures of the kind pass again.
func TestSuspects(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, learn.Options{})
	sha, branch := main(1)
	w.run(sha, branch, 1, false)
	w.run("elsewhere", "refs/heads/dev", 1, false)
	commits := []learn.Commit{
		{SHA: strings.Repeat("a", 40), Subject: "a large one", Files: []string{"web/page.ts", "web/style.css"}, Lines: 900},
		{SHA: strings.Repeat("b", 40), Subject: "mend the parser", Files: []string{"src/parser.rs"}, Lines: 12},
		{SHA: strings.Repeat("c", 40), Subject: "words", Files: []string{"README.md"}, Lines: 80},
		{SHA: strings.Repeat("d", 40), Subject: "newer things", Files: []string{"Cargo.lock", "Cargo.toml"}, Lines: 30},
	}
	asked := 0
	explain := func(run string, log []string, change func(*learn.Failure)) (kinds []string, got string) {
		f := learn.Failure{Run: run, Repository: w.repo, Workflow: "ci.yml", JobKey: "test", Step: 3, Command: "npm test", Branch: branch,
			Commit: "now", Attempt: 1,
			ExitCode: 1, Lines: log, Commits: func(_ context.Context, since string) ([]learn.Commit, error) {
				if asked++; since != sha {
					t.Errorf("asked for the commits since %s", since)
				}
				return commits, nil
			}}
		if change != nil {
			change(&f)
		}
		e, err := w.l.Explain(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for _, v := range e.Suspects {
			sum += v.P
			kinds = append(kinds, v.Kind+" "+v.Name)
			got += fmt.Sprintf("%.2f %s %s: %s\n", v.P, v.Kind, v.Name, v.Why)
		}
		if sum > 1+1e-9 || e.Since != sha || len(e.Suspects) > 0 && math.IsNaN(sum) {
			t.Errorf("since %s, in all %v:\n%s", e.Since, sum, got)
		}
		return kinds, got
	}
	kinds, got := explain("r1", assertion, nil)
	if len(kinds) < 3 || !strings.HasPrefix(kinds[0], "commit bbbbbbbbbb mend the parser") || !strings.Contains(got,
		"changes src/parser.rs, which the failure names; 12 lines") ||
		strings.Contains(got, "words") || strings.Contains(got, "chance") {
		t.Errorf("an assertion in src/parser.rs:\n%s", got)
	}
	kinds, got = explain("r2", []string{"fetching", "error: could not resolve host: registry.example.org"}, nil)
	if kinds[0] != "chance nothing that changed" {
		t.Errorf("a name that does not resolve:\n%s", got)
	}
	_, got = explain("r3", []string{"x: error: cannot find crate serde in the registry", "error: failed to select a version for the requirement"}, nil)
	if !strings.Contains(got, "lock file Cargo.lock: changed by dddddddddd") {
		t.Errorf("what is fetched:\n%s", got)
	}
	// Nothing is known of other places.
	commits = nil
	if kinds, got = explain("r4", assertion, nil); len(kinds) != 0 {
		t.Errorf("nothing changed:\n%s", got)
	}
	if e, err := w.l.Explain(t.Context(), learn.Failure{Run: "r5", Repository: "o/new", Workflow: "ci.yml", JobKey: "test", Step: 3,
		Command: "npm test", Lines: assertion,
		Commits: func(context.Context, string) ([]learn.Commit, error) { t.Error("asked"); return nil, nil }}); err != nil ||
		len(e.Suspects) != 0 || e.Since != "" {
		t.Errorf("%+v, %v", e, err)
	}
	if asked != 4 {
		t.Errorf("asked %d times", asked)
	}
}

// TestSuspectsOfTheMachine: an image, a host, an action of another version are suspects
// too.
func TestSuspectsOfTheMachine(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, learn.Options{})
	w.image, w.host = "debian-12", "one"
	sha, branch := main(1)
	w.run(sha, branch, 1, false)
	w.steps[0] = "actions/checkout@v5"
	r := w.run("next", branch, 1, true, "sh: 1: jq: not found")
	e, err := w.l.Explain(t.Context(), learn.Failure{Run: r.id, Repository: w.repo, Workflow: "ci.yml", JobKey: "test", Step: 3,
		Command: "npm test", Branch: branch,
		Commit: "next", Attempt: 1, ExitCode: 127, Lines: []string{"sh: 1: jq: not found"}, Image: "debian-13", Host: "two"})
	if err != nil || len(e.Suspects) < 3 {
		t.Fatalf("%+v, %v", e, err)
	}
	var got strings.Builder
	for _, v := range e.Suspects {
		got.WriteString(v.Kind + " " + v.Name + " (" + v.Why + ")\n")
	}
	if !strings.HasPrefix(got.String(), "image debian-13 (it passed on debian-12)\naction actions/checkout@v5 (it passed with v4)\n") ||
		!strings.Contains(got.String(), "host two (it passed on one)\n") {
		t.Errorf("%s", got.String())
	}
}

// TestAttackSuspects: what a pull request's commits and output can hold makes no
// explanation large.
func TestAttackSuspects(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, learn.Options{})
	sha, branch := main(1)
	w.run(sha, branch, 1, false)
	var files, lines []string
	for i := range 5000 {
		files = append(files, fmt.Sprintf("%s/%d/go.sum", strings.Repeat("d/", 500), i))
		lines = append(lines, fmt.Sprintf("error: %s/%d.c: broken %s", strings.Repeat("../", 300), i, strings.Repeat("a.b ", 500)))
	}
	var commits []learn.Commit
	for range 500 {
		commits = append(commits, learn.Commit{SHA: "x", Subject: strings.Repeat("\x1b[31m", 10_000), Author: strings.Repeat("a", 10_000),
			Files: files, Lines: math.MinInt})
	}
	e, err := w.l.Explain(t.Context(), learn.Failure{Run: "r", Repository: w.repo, Workflow: "ci.yml", JobKey: "test", Step: 3,
		Command: "npm test", Branch: branch,
		Commit: "now", Attempt: 1, ExitCode: 1, Lines: lines, Commits: func(context.Context, string) ([]learn.Commit, error) { return commits, nil }})
	if err != nil || len(e.Suspects) > 5 {
		t.Fatalf("%d suspects, %v", len(e.Suspects), err)
	}
	for _, v := range e.Suspects {
		if len(v.Name)+len(v.Why) > 500 || math.IsNaN(v.P) || v.P < 0 || v.P > 1 {
			t.Errorf("%+v", v)
		}
	}
}
