package store_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/store"
)

var dawn = time.UnixMilli(1_780_000_000_000)

func outcome(name string, passed, failed int) store.TestOutcome {
	return store.TestOutcome{ID: "id of " + name, Name: name, Kind: "go", Passed: passed, Failed: failed, Seconds: .5, Message: "said by " + name}
}

func testTests(t *testing.T, s, other *store.Store) {
	at := dawn
	repository := "tests/" + string(s.Dialect())
	ran := func(run, tree string, green bool, outcomes ...store.TestOutcome) []store.Test {
		t.Helper()
		at = at.Add(time.Minute)
		failed, err := s.AddTests(t.Context(), store.TestRun{Repository: repository, Workflow: "w", Job: "j", Step: "s", Run: run, SHA: "sha of " + tree,
			Branch: "main", Tree: tree, At: at, Green: green, Outcomes: outcomes})
		ok(t, err)
		return failed
	}
	one := func(name string) store.Test {
		t.Helper()
		for _, v := range must[[]store.Test](t)(other.Tests(t.Context(), repository, false, 100)) {
			if v.Name == name {
				return v
			}
		}
		return store.Test{}
	}
	ran("r1", "t1", true, outcome("a", 1, 0), outcome("b", 1, 0))
	// It passed on these files before.
	if f := ran("r2", "t1", false, outcome("a", 0, 1), outcome("b", 1, 0)); len(f) != 1 || f[0].Name != "a" || f[0].Mixed != 1 || f[0].Commits != 1 {
		t.Errorf("%+v", f)
	}
	// On others it fails, then passes: once more.
	ran("r3", "t2", false, outcome("a", 0, 1))
	if v := one("a"); v.Mixed != 1 || v.Commits != 2 || v.Recent != "PFF" {
		t.Errorf("%+v", v)
	}
	ran("r4", "t2", true, outcome("a", 1, 0))
	if v := one("a"); v.Mixed != 2 || v.Commits != 2 || v.Recent != "PFFP" || v.Passed != 2 || v.Failed != 2 || v.Seconds != .5 || v.Message != "said by a" {
		t.Errorf("%+v", v)
	}
	ev := must[[]store.TestFailure](t)(s.TestFailures(t.Context(), repository, "id of a", 10))
	if len(ev) != 2 || ev[0].SHA != "sha of t2" || ev[0].Run != "r3" || ev[0].PassedIn != "r4" || ev[1].PassedIn != "r1" {
		t.Errorf("%+v", ev)
	}
	// A step that goes green without naming it: it passed. Where the files are not
	// known, only within its run.
	ran("r5", "", false, outcome("c", 0, 1))
	ran("r6", "", true)
	if v := one("c"); v.Recent != "FP" || v.Mixed != 0 || v.Commits != 1 {
		t.Errorf("%+v", v)
	}
	ran("r7", "", false, outcome("d", 0, 1))
	ran("r7", "", true, outcome("d", 1, 0))
	if v := one("d"); v.Recent != "FP" || v.Mixed != 1 {
		t.Errorf("%+v", v)
	}
	// Both at once, as reruns have it.
	ran("r8", "t9", true, outcome("e", 1, 1))
	if v := one("e"); v.Recent != "FP" || v.Mixed != 1 {
		t.Errorf("%+v", v)
	}
	if list := must[[]store.Test](t)(s.Tests(t.Context(), repository, true, 100)); len(list) != 4 || list[0].Name != "e" {
		t.Errorf("%+v", list)
	}
	broken := func(step string) bool { return must[bool](t)(s.BrokenTests(t.Context(), repository, "w", "j", step)) }
	if broken("s") {
		t.Error("all pass")
	}
	ran("r9", "t3", false, outcome("a", 0, 1))
	if !broken("s") || broken("other") {
		t.Error("a fails, in its step")
	}
	if list := must[[]store.Test](t)(s.Tests(t.Context(), "tests/nobody", false, 100)); len(list) != 0 {
		t.Errorf("another repository has %+v", list)
	}
	// Who may teach nothing hears what is known.
	known := must[[]store.Test](t)(s.KnownTests(t.Context(), store.TestRun{Repository: repository,
		Outcomes: []store.TestOutcome{outcome("a", 0, 1), outcome("new", 0, 1)}}))
	if len(known) != 2 || known[0].Mixed != 2 || known[1].Failed != 1 || one("new").Name != "" {
		t.Errorf("%+v", known)
	}
}

// A repository invents tests without end, and failures of them: it pushes out its own,
// those that have never failed first, and of all repositories the largest gives way.
func TestAttackFloodOfTests(t *testing.T) {
	store.LimitTests(t, 50, 80, 30)
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"))
	ok(t, err)
	defer s.Close()
	add := func(repository string, n, from int, failed int) {
		t.Helper()
		run := store.TestRun{Repository: repository, Run: fmt.Sprint("run", from), Tree: fmt.Sprint("tree", from), At: dawn.Add(time.Duration(from) * time.Second)}
		for i := range n {
			run.Outcomes = append(run.Outcomes, outcome(fmt.Sprint("t", from+i), 1-failed, failed))
		}
		_, err := s.AddTests(t.Context(), run)
		ok(t, err)
	}
	add("small/one", 5, 0, 1)
	add("large/one", 10, 1000, 1)
	for i := range 20 {
		add("large/one", 40, 10_000+100*i, 0)
	}
	count := func(repository string, failed bool) int {
		return len(must[[]store.Test](t)(s.Tests(t.Context(), repository, failed, 1000)))
	}
	if n := count("large/one", false); n > 50 || n < 40 {
		t.Errorf("%d tests of one repository", n)
	}
	if n := count("large/one", true); n != 10 {
		t.Errorf("%d of the 10 that failed are left", n)
	}
	for i := range 5 {
		add(fmt.Sprint("more/", i), 20, 0, 0)
	}
	if n := count("", false); n > 80 {
		t.Errorf("%d tests in all", n)
	}
	if n := count("small/one", false); n != 5 {
		t.Errorf("the small repository has %d of 5 left", n)
	}
	for i := range 40 {
		add("large/one", 1, 1000, 1)
		add("small/one", 1, 100+i, 1)
	}
	n := 0
	for _, v := range must[[]store.Test](t)(s.Tests(t.Context(), "small/one", true, 1000)) {
		n += v.Commits
	}
	if n > 30 {
		t.Errorf("%d failures of one repository", n)
	}
}

// Keys that are dropped for want of room are of executions that are left out from
// then on: nothing is learned from twice.
func TestImportForgetsOldKeys(t *testing.T) {
	store.LimitImports(t, 10)
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"))
	ok(t, err)
	defer s.Close()
	for round := range 2 {
		var news, old int
		ok(t, s.Learn(t.Context(), "learn", func(tx *store.Learning) error {
			for i := range 30 {
				fresh, late, err := tx.Import("o/r", fmt.Sprint("k", i), dawn.Add(time.Duration(i)*time.Second))
				if err != nil {
					return err
				}
				if fresh {
					news++
				}
				if late {
					old++
				}
			}
			if fresh, _, err := tx.Import("o/other", "k1", dawn); err != nil || fresh != (round == 0) {
				t.Errorf("another repository's: %v, %v", fresh, err)
			}
			return tx.TrimImports("o/r")
		}))
		if want := [2]int{30 - 30*round, 20 * round}; news != want[0] || old != want[1] {
			t.Errorf("round %d: %d news, %d too old", round, news, old)
		}
	}
}
