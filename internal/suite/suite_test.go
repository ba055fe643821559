package suite_test

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/suite"
)

// told renders a set as "name passed/failed/skipped: message".
func told(s *suite.Set) []string {
	var out []string
	for _, r := range s.Results() {
		line := fmt.Sprintf("%s %d/%d/%d", r.Name, r.Passed, r.Failed, r.Skipped)
		if r.Whole {
			line += " whole"
		}
		if r.Seconds > 0 {
			line += fmt.Sprintf(" %gs", r.Seconds)
		}
		if r.Message != "" {
			line += ": " + r.Message
		}
		out = append(out, line)
	}
	return out
}

func scan(text string) *suite.Set {
	var s suite.Scanner
	for line := range strings.Lines(text) {
		s.Line(strings.TrimRight(line, "\n"))
	}
	return s.Set()
}

func TestOutput(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"go test -v", "=== RUN   TestA\n--- PASS: TestA (0.01s)\n=== RUN   TestB\n=== RUN   TestB/x\n--- FAIL: TestB (0.20s)\n    --- FAIL: TestB/x (0.00s)\n        b_test.go:7: got 1\n" +
			"--- SKIP: TestC (0.00s)\n    c_test.go:3: not here\nFAIL\nFAIL\texample.com/p\t0.31s\nFAIL\n",
			[]string{"example.com/p.TestA 1/0/0 0.01s", "example.com/p.TestB 0/1/0 0.2s", "example.com/p.TestB/x 0/1/0: b_test.go:7: got 1",
				"example.com/p.TestC 0/0/1", "example.com/p 0/1/0 whole 0.31s"}},
		{"go test -count 2", "--- PASS: TestA (0.00s)\n--- FAIL: TestA (0.00s)\nFAIL\texample.com/p\t0.1s\n",
			[]string{"example.com/p.TestA 1/1/0", "example.com/p 0/1/0 whole 0.1s"}},
		{"go test of packages", "?   \texample.com/q\t[no test files]\nok  \texample.com/p\t0.5s\nok  \texample.com/r\t(cached)\nFAIL\texample.com/s [build failed]\n",
			[]string{"example.com/p 1/0/0 whole 0.5s", "example.com/r 1/0/0 whole", "example.com/s 0/1/0 whole"}},
		{"go test -json", `{"Time":"2026-01-01T00:00:00Z","Action":"run","Package":"m/p","Test":"TestA"}
{"Action":"output","Package":"m/p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"m/p","Test":"TestA","Output":"    a_test.go:5: broken\n"}
{"Action":"fail","Package":"m/p","Test":"TestA","Elapsed":0.25}
{"Action":"pass","Package":"m/p","Test":"TestB","Elapsed":0}
{"Action":"skip","Package":"m/p","Test":"TestC"}
{"Action":"fail","Package":"m/p","Elapsed":0.3}
`, []string{"m/p.TestA 0/1/0 0.25s: a_test.go:5: broken", "m/p.TestB 1/0/0", "m/p.TestC 0/0/1", "m/p 0/1/0 whole 0.3s"}},
		{"pytest -v -rA", "tests/test_a.py::test_one PASSED                 [ 25%]\ntests/test_a.py::TestB::test_two[a b] FAILED  [ 50%]\n" +
			"tests/test_a.py::test_three SKIPPED (no)             [ 75%]\ntests/test_a.py::test_four XFAIL                 [100%]\n" +
			"=== short test summary info ===\nPASSED tests/test_a.py::test_one\nFAILED tests/test_a.py::TestB::test_two[a b] - AssertionError: assert 1 == 2\n",
			[]string{"tests/test_a.py::test_one 1/0/0", "tests/test_a.py::TestB::test_two[a b] 0/1/0: AssertionError: assert 1 == 2", "tests/test_a.py::test_four 0/0/1"}},
		{"pytest, rerun and xdist", "[gw1] [ 10%] PASSED tests/test_a.py::test_one \ntests/test_b.py::test_two RERUN  [ 50%]\ntests/test_b.py::test_two PASSED [100%]\n",
			[]string{"tests/test_a.py::test_one 1/0/0", "tests/test_b.py::test_two 1/1/0"}},
		{"TAP", "TAP version 13\nok 1 - adds\nnot ok 2 - subtracts\n  ---\n  message: off by one\n  ...\nok 3 - later # SKIP no time\nnot ok 4 - someday # TODO\n1..4\n",
			[]string{"adds 1/0/0", "subtracts 0/1/0", "later 0/0/1", "someday 0/0/1"}},
		{"TAP, the plan at last", "ok 1 - a\nnot ok 2\n1..2\n", []string{"a 1/0/0", "test 2 0/1/0"}},
		{"prose", "ok 1 thing was done\nnot ok, I think\n{\"Action\": 1}\nusing a::b PASSED\nstd::vector FAILED\n--- FAIL: two words here (0s)\n", nil},
	} {
		if got := told(scan(c.text)); !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
	}
}

func TestReport(t *testing.T) {
	const report = `<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="s" tests="7">
<testcase classname="tests.test_a" name="test_one" time="0.5"/>
<testcase classname="tests.test_a" name="test_two"><failure message="AssertionError: no&#10;more">trace</failure></testcase>
<testcase classname="tests.test_a" name="test_three"><skipped/></testcase>
<testcase classname="A" name="shaky" time="1,000.5"><flakyFailure message="timeout">x</flakyFailure></testcase>
<testcase classname="A" name="bad"><error>
  java.lang.Error: boom
  at x</error><rerunFailure message="again"/></testcase>
<testcase name="twice"/><testcase name="twice"><failure/></testcase>
<testcase name="off" status="notrun"/>
</testsuite></testsuites>`
	var s suite.Set
	if err := s.JUnit(strings.NewReader(report)); err != nil {
		t.Fatal(err)
	}
	want := []string{"tests.test_a.test_one 1/0/0 0.5s", "tests.test_a.test_two 0/1/0: AssertionError: no", "tests.test_a.test_three 0/0/1",
		"A.shaky 1/1/0 1000.5s: timeout", "A.bad 0/2/0: java.lang.Error: boom", "twice 0/1/0", "off 0/0/1"}
	if got := told(&s); !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}

	// What the output beside it said of the same tests gives way.
	out := scan("PASSED tests/test_a.py::test_one\nFAILED tests/test_a.py::test_two - x\nPASSED tests/test_b.py::test_one\n")
	out.Without(&s)
	if got := told(out); !slices.Equal(got, []string{"tests/test_b.py::test_one 1/0/0"}) {
		t.Errorf("%q", got)
	}
	s.Add(out)
	if got := s.Results(); got[len(got)-1].Name != "tests/test_b.py::test_one" || s.Len() != 8 {
		t.Errorf("%+v", got)
	}

	var other suite.Set
	if err := other.JUnit(strings.NewReader(`<project><testcase name="x"/></project>`)); err != nil || other.Len() != 0 {
		t.Errorf("%v, %q", err, told(&other))
	}
	if err := other.JUnit(strings.NewReader(`<testsuite><testcase name="x"/><testcase name="y">`)); err == nil || other.Len() != 1 {
		t.Errorf("a report that is cut off: %v, %q", err, told(&other))
	}
}

// A machine prints tests without end, with long names, as deep and large documents:
// what is kept of them has an end.
func TestAttackTestsWithoutEnd(t *testing.T) {
	var s suite.Scanner
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	long := strings.Repeat("x", 1000)
	for i := range 40_000 {
		s.Line(fmt.Sprintf(`{"Action":"output","Package":"p%d","Test":"T%s","Output":"%s"}`, i, long, long))
		s.Line(fmt.Sprintf("--- FAIL: Test%d%s (0.1s)", i, long))
		s.Line(fmt.Sprintf("ok %d - %s", i+1, long))
		if i%10 == 0 {
			s.Line(fmt.Sprintf("FAIL\tp%d\t1s", i))
			s.Line(fmt.Sprintf("FAILED t%d.py::x - %s", i, long))
		}
	}
	s.Line("1..5")
	set := s.Set()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if set.Len() > suite.MaxTests || set.Dropped == 0 {
		t.Errorf("%d tests, %d dropped", set.Len(), set.Dropped)
	}
	if n := int64(after.HeapAlloc) - int64(before.HeapAlloc); n > 32<<20 {
		t.Errorf("%d bytes are held", n)
	}
	for _, r := range set.Results() {
		if len(r.Name) > suite.MaxName || len(r.Message) > suite.MaxMessage {
			t.Fatalf("%d bytes of name, %d of message", len(r.Name), len(r.Message))
		}
	}
	runtime.KeepAlive(&s)

	for _, c := range []struct{ name, report string }{
		{"deep", "<testsuite>" + strings.Repeat("<a>", 1<<20)},
		{"large", "<testsuite>" + strings.Repeat(`<testcase name="x"/>`, 1<<20)},
		{"entities", `<!DOCTYPE x [<!ENTITY a "` + long + `">]><testsuite><testcase name="&a;&a;"/></testsuite>`},
		{"upside down", "</testsuite></testsuite>"},
	} {
		var set suite.Set
		if err := set.JUnit(strings.NewReader(c.report)); err == nil {
			t.Errorf("%s: it was taken", c.name)
		}
		if set.Len() > 1 {
			t.Errorf("%s: %d tests", c.name, set.Len())
		}
	}
}

func FuzzOutput(f *testing.F) {
	f.Add("--- FAIL: TestA (0.01s)\n    a_test.go:1: x\nFAIL\tp\t0.1s\n")
	f.Add(`{"Action":"fail","Package":"p","Test":"T","Elapsed":1}`)
	f.Add("TAP version 13\nok 1 - a # SKIP\n1..1\nFAILED a.py::b - c\n[gw0] [ 1%] PASSED a.py::c\n")
	f.Fuzz(func(t *testing.T, text string) { check(t, scan(text)) })
}

func FuzzReport(f *testing.F) {
	f.Add(`<testsuites><testsuite><testcase classname="a" name="b" time="1"><failure message="m">x</failure></testcase></testsuite></testsuites>`)
	f.Add(`<testsuite><testcase name="b"><flakyFailure/><skipped/></testcase></testsuite>`)
	f.Fuzz(func(t *testing.T, text string) {
		var s suite.Set
		_ = s.JUnit(strings.NewReader(text))
		check(t, &s)
	})
}

// check is what holds of any set.
func check(t *testing.T, s *suite.Set) {
	names := map[string]bool{}
	for _, r := range s.Results() {
		if r.Name == "" || names[r.Name] || len(r.Name) > suite.MaxName || len(r.Message) > suite.MaxMessage {
			t.Fatalf("%+v", r)
		}
		if min(r.Passed, r.Failed, r.Skipped) < 0 || r.Seconds < 0 || r.Seconds > 1e8 {
			t.Fatalf("%+v", r)
		}
		names[r.Name] = true
		if _, err := json.Marshal(r); err != nil || strings.ContainsAny(r.Name+r.Message, "\x00\x1b\n\r") {
			t.Fatalf("%+v: %v", r, err)
		}
	}
}
