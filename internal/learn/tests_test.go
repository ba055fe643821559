package learn_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/suite"
)

// tested tells a learner of tests: each a name, and P, F or both.
func tested(t *testing.T, l *learn.Learner, repository, run, tree string, green bool, ended map[string]string) []ci.TestNote {
	t.Helper()
	r := learn.TestRun{Run: run, Repository: repository, Workflow: "ci.yml", JobKey: "test", Name: "unit", Command: "go test ./...", Commit: tree, Tree: tree,
		Green: green}
	for name, how := range ended {
		v := suite.Result{Name: name, Kind: suite.Go, Seconds: 1}
		for _, c := range how {
			if c == 'F' {
				v.Failed, v.Message = v.Failed+1, "broken"
			} else {
				v.Passed++
			}
		}
		r.Results = append(r.Results, v)
	}
	notes, err := l.TestsRan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return notes
}

func TestTestsAreJudged(t *testing.T) {
	s := openStore(t)
	now := time.UnixMilli(1_780_000_000_000)
	l, err := learn.Open(t.Context(), s, learn.Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	run := 0
	next := func(tree string, green bool, ended map[string]string) []ci.TestNote {
		run++
		now = now.Add(time.Hour)
		return tested(t, l, "o/r", fmt.Sprint("run", run), tree, green, ended)
	}
	for i := range 3 {
		tree := fmt.Sprint("t", i)
		notes := next(tree, false, map[string]string{"m/p.TestShaky": "F", "m/p.TestGood": "P"})
		if len(notes) != 1 || notes[0].Flaky != (i > 0) || notes[0].Message != "broken" {
			t.Errorf("run %d: %+v", i, notes)
		}
		next(tree, true, map[string]string{"m/p.TestShaky": "P", "m/p.TestGood": "P"})
	}
	for i := range 4 {
		next(fmt.Sprint("u", i), false, map[string]string{"m/p.TestShaky": "P", "m/p.TestGood": "P", "m/p.TestBroken/a b": "F"})
	}
	for _, tree := range []string{"v", "w", "x", "y", "z"} {
		next(tree, true, map[string]string{"m/p.TestMoody": "P"})
		next(tree+"2", false, map[string]string{"m/p.TestMoody": "F"})
		next(tree+"3", true, map[string]string{"m/p.TestMoody": "P"})
	}
	list, err := l.Tests(t.Context(), "o/r", true)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range list {
		got = append(got, fmt.Sprint(v.Name, " ", v.State, " ", v.Quarantine, " ", v.Skip))
	}
	want := []string{"m/p.TestShaky flaky true go test -skip '^TestShaky$' m/p", "m/p.TestBroken/a b stable false ", "m/p.TestMoody suspect false ", "m/p.TestGood stable false "}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
	for _, v := range list {
		if v.State == learn.Flaky && (len(v.Evidence) != 3 || v.Evidence[0].PassedIn == "" || v.Why == "") {
			t.Errorf("%+v", v)
		}
	}

	// They are nodes, beside what failed with them.
	all, _, err := s.Graph(t.Context(), "o/r")
	if err != nil {
		t.Fatal(err)
	}
	nodes := 0
	for _, n := range all {
		if n.Kind == "test" {
			nodes++
		}
	}
	if nodes != 3 { // TestGood never failed
		t.Errorf("%d tests are nodes", nodes)
	}

	order, err := l.Order(t.Context(), "o/r", []string{"m/p.TestGood", "new", "m/p.TestShaky", "m/p.TestMoody"})
	if err != nil || len(order) != 4 || order[3].Name != "m/p.TestGood" || order[0].Name != "m/p.TestMoody" {
		t.Errorf("%+v, %v", order, err)
	}
}

// Off, nothing is kept or said.
func TestTestsOff(t *testing.T) {
	s := openStore(t)
	l, err := learn.Open(t.Context(), s, learn.Options{Mode: learn.Off})
	if err != nil {
		t.Fatal(err)
	}
	if notes := tested(t, l, "o/r", "run", "t", false, map[string]string{"a": "F"}); notes != nil {
		t.Errorf("%+v", notes)
	}
	if list, err := s.Tests(t.Context(), "", false, 10); err != nil || len(list) > 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

func openStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
