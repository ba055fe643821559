package command

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp/syntax"
	"runtime"
	"strings"
	"testing"
	"time"
)

func progOf(t *testing.T, src string) string {
	t.Helper()
	tree, err := syntax.Parse(src, syntax.Perl)
	if err != nil {
		t.Fatal(err)
	}
	prog, err := syntax.Compile(tree.Simplify())
	if err != nil {
		t.Fatal(err)
	}
	return prog.String()
}

func matcherFile(t *testing.T, owner string, regexps ...string) []byte {
	t.Helper()
	var patterns []map[string]any
	for i, re := range regexps {
		p := map[string]any{"regexp": re}
		if i == len(regexps)-1 {
			p["message"] = 0
		}
		patterns = append(patterns, p)
	}
	b, err := json.Marshal(map[string]any{"problemMatcher": []any{map[string]any{"owner": owner, "pattern": patterns}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Twelve matcher files of 43 KB kept a core busy with one line for ever, and ninety
// of them took 2.7 GiB: a few bytes say how often something is repeated.
func TestAttackMatcherSize(t *testing.T) {
	for _, re := range []string{
		strings.Repeat("(?:a{0,900}b{0,90})", 200),
		"((((x{10}){10}){10}){9}y?){1,9}",
		strings.Repeat(`\pL`, 1300),
		"[\\pL\\pN]{900}",
		strings.Repeat("(a)", 60),
	} {
		if _, err := ParseMatchers(matcherFile(t, "big", re)); err == nil || !strings.Contains(err.Error(), "big") {
			t.Errorf("%.60q is taken: %v", re, err)
		}
	}
	// Each is small enough, but not all of them: in one file, and in many.
	fits := "(?:ab?c){900}"
	if _, err := ParseMatchers(matcherFile(t, "many", fits, fits, fits, fits, fits, fits)); err == nil {
		t.Error("a file may have more than a job")
	}
	var m Matchers
	added := 0
	for i := range 90 {
		list, err := m.Load(matcherFile(t, fmt.Sprintf("m%d", i), fits))
		if err != nil {
			t.Fatal(err)
		}
		if m.Add(list) == nil {
			added++
		}
	}
	if added == 0 || added > maxPrograms/3600 {
		t.Errorf("%d matchers of 3,600 instructions were added", added)
	}
	// One that is replaced or removed gives back what it had.
	for i := range 20 {
		list, err := m.Load(matcherFile(t, "m0", fits))
		if err != nil || m.Add(list) != nil {
			t.Fatalf("replaced %d times: %v", i, err)
		}
	}
	for i := range 90 {
		m.Remove(fmt.Sprintf("m%d", i))
	}
	if list, err := m.Load(matcherFile(t, "last", fits)); err != nil || m.Add(list) != nil {
		t.Errorf("there is no room when all are removed: %v", err)
	}
	// What is counted is what is compiled.
	for _, re := range []string{`^(.+):(\d+):(\d+): (error|warning): (.*)$`, "(?:ab?c){900}", "(?i)hello [a-z]{3,7}x*", "(a|bc|d){2,}"} {
		p, err := parsePattern(map[string]json.RawMessage{"regexp": json.RawMessage(fmt.Sprintf("%q", strings.ReplaceAll(re, `\d`, "[0-9]")))}, map[string]bool{},
			true, true)
		if err != nil {
			t.Fatal(err)
		}
		if real := strings.Count(progOf(t, strings.ReplaceAll(re, `\d`, "[0-9]")), "\n"); p.size < real/2 || p.size > 2*real+10 {
			t.Errorf("%s is counted as %d instructions and has %d", re, p.size, real)
		}
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	if mem.HeapAlloc > 100<<20 {
		t.Errorf("%d MiB in use", mem.HeapAlloc>>20)
	}
}

// A matcher that is within its size, and lines that it is slow on, without end: it
// is switched off, and says whose it is; and when the job's time is over so are all.
func TestAttackMatcherTime(t *testing.T) {
	now := time.Unix(0, 0)
	m := Matchers{now: func() time.Time { now = now.Add(time.Second); return now }}
	for i := range 6 {
		list, err := ParseMatchers(matcherFile(t, fmt.Sprintf("m%d", i), "slow (x)"))
		if err != nil || m.Add(list) != nil {
			t.Fatal(err)
		}
	}
	s := m.NewScanner()
	off := map[string]string{}
	s.Off = func(owner, why string) { off[owner] = why }
	for range 100 {
		s.Line(t.Context(), "nothing")
	}
	if len(off) == 0 || m.took.Load() > int64(maxMatchersTime+10*time.Second) {
		t.Errorf("%d matchers are off after %v", len(off), time.Duration(m.took.Load()))
	}
	if _, ok := s.Line(t.Context(), "slow x"); ok {
		t.Error("matching goes on when the job's time for it is over")
	}
	if _, err := m.Load(matcherFile(t, "new", "x")); err != ErrMatchersOff {
		t.Errorf("another matcher is loaded: %v", err)
	}
	// One of its own is switched off alone.
	now = time.Unix(0, 0)
	m = Matchers{now: m.now}
	for _, owner := range []string{"second", "first"} {
		list, _ := ParseMatchers(matcherFile(t, owner, map[string]string{"first": "a+ (x)", "second": "slow (x)"}[owner]))
		m.Add(list)
	}
	s = m.NewScanner()
	s.Off = func(owner, why string) { off[owner] = why }
	for range 6 {
		s.Line(t.Context(), "a x")
	}
	if off["first"] == "" || off["second"] != "" {
		t.Errorf("switched off: %q", off)
	}
	if a, ok := s.Line(t.Context(), "slow x"); !ok || a.Message != "slow x" {
		t.Error("the other matcher is off too")
	}
}

// The step's end ends its matching, between one pattern and the next.
func TestAttackMatcherAfterTheEnd(t *testing.T) {
	var m Matchers
	list, err := ParseMatchers(matcherFile(t, "any", "(x)"))
	if err != nil || m.Add(list) != nil {
		t.Fatal(err)
	}
	over, end := context.WithCancel(t.Context())
	s := m.NewScanner()
	if _, ok := s.Line(over, "x"); !ok {
		t.Error("no match")
	}
	end()
	if _, ok := s.Line(over, "x"); ok {
		t.Error("a match when the step is over")
	}
	if r := s.list[0]; r.match(over, "x") != nil {
		t.Error("a pattern was tried when the step is over")
	}
}

// A pattern is not tried on a line that is too long for its size.
func TestAttackMatcherSteps(t *testing.T) {
	var m Matchers
	list, err := ParseMatchers(matcherFile(t, "wide", "(?:x?){900}(?:x?){600}y"))
	if err != nil || m.Add(list) != nil {
		t.Fatal(err)
	}
	s := m.NewScanner()
	if _, ok := s.Line(t.Context(), strings.Repeat("x", 1000)+"y"); !ok {
		t.Error("no match in a line of 1,001 bytes")
	}
	if _, ok := s.Line(t.Context(), strings.Repeat("x", 8000)+"y"); ok {
		t.Error("3,000 instructions were tried on 8,001 bytes")
	}
}

// One ::error of four megabytes made half a million properties.
func TestAttackProperties(t *testing.T) {
	var b strings.Builder
	b.WriteString("::error ")
	for i := range 100_000 {
		fmt.Fprintf(&b, "k%d=v,", i)
	}
	c, ok := Parse(b.String()+"::text", isCommand)
	if !ok || len(c.Properties) > maxProperties {
		t.Errorf("%v, %d properties", ok, len(c.Properties))
	}
}
