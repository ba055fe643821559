// Package suite reads what test runners say of single tests: JUnit XML, the output
// of go test (as text and with -json), of pytest and of whatever speaks TAP.
//
// All of it comes from a machine and is hostile: a [Set] holds at most [MaxTests]
// tests and [MaxBytes] bytes of what they are called and say, a report is read up to
// [MaxReport] bytes, and nothing grows with what was dropped. What cannot be read is
// no test; the rest of it counts.
//
// # What a result is
//
// A test is called as its runner calls it: package.Test/sub for Go, the node id for
// pytest, classname.name in a report, the description in TAP. A set counts how often
// it passed and failed, since runners repeat tests (go test -count, reruns of pytest
// and Surefire): one that did both within a set is flaky without any further
// evidence. Two cases of one name in a report are taken for two cases of one name,
// not for a repetition: one that failed counts, and proves nothing.
//
// Runners print failures always and passes only if asked to. A package of Go that
// passed as a whole is a result by its own name ([Result.Whole]).
package suite

import (
	"strings"
	"unicode/utf8"
)

// Kind is how a test was told of.
type Kind string

// The kinds.
const (
	Go     Kind = "go"
	Pytest Kind = "pytest"
	JUnit  Kind = "junit"
	TAP    Kind = "tap"
)

// The bounds of a set and of a report.
const (
	MaxTests   = 10_000
	MaxBytes   = 4 << 20
	MaxName    = 300
	MaxMessage = 300
	MaxReport  = 16 << 20
	maxDepth   = 64
)

// Result is what a set knows of one test.
type Result struct {
	Name string
	Kind Kind
	// Whole: it is all the tests of a package, of which each may be in the set too.
	Whole                   bool
	Passed, Failed, Skipped int
	Seconds                 float64 // of the last time; 0: not told
	Message                 string  // the first line that a failure said
}

// Set is the tests of one execution. It is not safe for concurrent use.
type Set struct {
	// Dropped is how many results had no room.
	Dropped int

	list  []*Result
	index map[string]*Result
	bytes int
}

// Len is how many tests there are.
func (s *Set) Len() int { return len(s.list) }

// Results are the tests in the order in which they were told of first.
func (s *Set) Results() []Result {
	out := make([]Result, len(s.list))
	for i, r := range s.list {
		out[i] = *r
	}
	return out
}

// get finds a test or makes room for it; nil if there is none.
func (s *Set) get(name string, kind Kind) *Result {
	name = clip(name, MaxName)
	if name == "" {
		return nil
	}
	if r := s.index[name]; r != nil {
		return r
	}
	if len(s.list) >= MaxTests || s.bytes+len(name) > MaxBytes {
		s.Dropped++
		return nil
	}
	r := &Result{Name: strings.Clone(name), Kind: kind}
	if s.index == nil {
		s.index = map[string]*Result{}
	}
	s.index[r.Name] = r
	s.list = append(s.list, r)
	s.bytes += len(name)
	return r
}

// say keeps the first message of a test.
func (s *Set) say(r *Result, message string) {
	if r == nil || r.Message != "" {
		return
	}
	message = clip(strings.TrimSpace(firstLine(message)), MaxMessage)
	if s.bytes+len(message) > MaxBytes {
		return
	}
	r.Message = strings.Clone(message)
	s.bytes += len(message)
}

// Add takes in what another set knows, of tests that this one does not have.
func (s *Set) Add(o *Set) {
	for _, r := range o.list {
		if s.index[r.Name] != nil {
			continue
		}
		if mine := s.get(r.Name, r.Kind); mine != nil {
			message := r.Message
			name := mine.Name
			*mine = *r
			mine.Name, mine.Message = name, ""
			s.say(mine, message)
		}
	}
	s.Dropped += o.Dropped
}

// Without removes the tests that another set has too, under whatever name its
// format gives them: a report says more of a test than the output beside it.
func (s *Set) Without(o *Set) {
	there := map[string]bool{}
	for _, r := range o.list {
		there[dotted(r.Name)] = true
	}
	kept := s.list[:0]
	for _, r := range s.list {
		if there[dotted(r.Name)] {
			delete(s.index, r.Name)
			s.bytes -= len(r.Name) + len(r.Message)
			continue
		}
		kept = append(kept, r)
	}
	clear(s.list[len(kept):])
	s.list = kept
}

// dotted is a name as reports have it: pytest's tests/test_a.py::TestB::test_c is
// tests.test_a.TestB.test_c there.
func dotted(name string) string {
	if file, rest, ok := strings.Cut(name, "::"); ok {
		return strings.ReplaceAll(strings.TrimSuffix(file, ".py"), "/", ".") + "." + strings.ReplaceAll(rest, "::", ".")
	}
	return name
}

func firstLine(s string) string {
	s = strings.TrimLeft(s, " \t\r\n")
	if i := strings.IndexAny(s, "\r\n"); i >= 0 {
		s = s[:i]
	}
	return s
}

// clip cuts a text to so many bytes of valid UTF-8 without control characters.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
		for len(s) > 0 && !utf8.ValidString(s[max(0, len(s)-utf8.UTFMax):]) && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
	}
	if strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == utf8.RuneError }) < 0 {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError:
			return -1
		case r < ' ' || r == 0x7f:
			return ' '
		}
		return r
	}, s)
}
