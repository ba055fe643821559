package suite

import (
	"encoding/json"
	"strconv"
	"strings"
)

// Scanner finds tests in the output of a step, a line at a time. It costs a look at
// the beginning of lines that are none of a test. It is not safe for concurrent use.
type Scanner struct {
	set Set

	// go test -json: what running tests said first.
	said map[string]string
	// go test's text: tests of a package whose name comes at its end.
	waiting []goTest

	// TAP: tests are believed once there is a plan or a version.
	tap  bool
	held []tapTest
}

type goTest struct {
	name    string
	outcome byte // 'P', 'F', 'S'
	seconds float64
	message string
}

type tapTest struct {
	name string
	ok   bool
	skip bool
}

const (
	maxSaid    = 1000   // running tests of which something is kept
	maxWaiting = 10_000 // tests of one package
	maxHeld    = 1000
	maxJSON    = 64 << 10
)

// Set is what was found so far.
func (s *Scanner) Set() *Set {
	s.flush("")
	return &s.set
}

// Line takes in one line, without its end.
func (s *Scanner) Line(line string) {
	if line == "" {
		return
	}
	switch c := line[0]; {
	case c == '{':
		if len(line) <= maxJSON && strings.Contains(line, `"Action":"`) {
			s.goJSON(line)
		}
		return
	case c == 'o' || c == 'n' || c == 'T' || c == '1' || c == 'B':
		if s.tapLine(line) {
			return
		}
	}
	trimmed := strings.TrimLeft(line, " \t")
	if strings.HasPrefix(trimmed, "--- ") {
		s.goText(trimmed)
		return
	}
	if strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "FAIL\t") {
		s.goPackage(line)
		return
	}
	if n := len(s.waiting); n > 0 && len(trimmed) < len(line) && s.waiting[n-1].outcome == 'F' && s.waiting[n-1].message == "" {
		s.waiting[n-1].message = clip(trimmed, MaxMessage)
	}
	if strings.Contains(line, "::") {
		s.pytest(line)
	}
}

// goJSON reads an event of go test -json (or test2json).
func (s *Scanner) goJSON(line string) {
	var e struct {
		Action, Package, Test, Output string
		Elapsed                       float64
	}
	if json.Unmarshal([]byte(line), &e) != nil {
		return
	}
	name := e.Package
	if e.Test != "" {
		name = e.Package + "." + e.Test
		if e.Package == "" {
			name = e.Test
		}
	}
	switch e.Action {
	case "output":
		text := strings.TrimSpace(e.Output)
		if e.Test == "" || text == "" || strings.HasPrefix(text, "=== ") || strings.HasPrefix(text, "--- ") {
			return
		}
		if _, known := s.said[name]; !known && len(s.said) < maxSaid {
			if s.said == nil {
				s.said = map[string]string{}
			}
			s.said[name] = clip(firstLine(text), MaxMessage)
		}
	case "pass", "fail", "skip":
		r := s.set.get(name, Go)
		message := s.said[name]
		delete(s.said, name)
		if r == nil {
			return
		}
		r.Whole = e.Test == ""
		if e.Elapsed > 0 && e.Elapsed < 1e7 {
			r.Seconds = e.Elapsed
		}
		switch e.Action {
		case "pass":
			r.Passed++
		case "fail":
			r.Failed++
			s.set.say(r, message)
		default:
			r.Skipped++
		}
	}
}

// goText reads "--- FAIL: TestX (0.01s)".
func (s *Scanner) goText(line string) {
	head, rest, ok := strings.Cut(strings.TrimPrefix(line, "--- "), ": ")
	if !ok || len(s.waiting) >= maxWaiting {
		return
	}
	var t goTest
	switch head {
	case "PASS", "FAIL", "SKIP":
		t.outcome = head[0]
	default:
		return
	}
	name, took, _ := strings.Cut(rest, " (")
	if name = clip(strings.TrimSpace(name), MaxName); name == "" || strings.ContainsAny(name, " \t") {
		return
	}
	t.name = name
	t.seconds, _ = strconv.ParseFloat(strings.TrimSuffix(took, "s)"), 64)
	s.waiting = append(s.waiting, t)
}

// goPackage reads "ok  \tpkg\t0.01s" and "FAIL\tpkg\t0.01s", or "FAIL\tpkg [build failed]".
func (s *Scanner) goPackage(line string) {
	f := strings.Split(line, "\t")
	if len(f) < 2 {
		return
	}
	name, note, _ := strings.Cut(f[1], " ")
	if name == "" || note == "[no test files]" {
		return
	}
	s.flush(name)
	r := s.set.get(name, Go)
	if r == nil {
		return
	}
	r.Whole = true
	if len(f) > 2 {
		took, _, _ := strings.Cut(f[2], " ")
		if v, err := strconv.ParseFloat(strings.TrimSuffix(took, "s"), 64); err == nil && v > 0 && v < 1e7 {
			r.Seconds = v
		}
	}
	if f[0] == "FAIL" {
		r.Failed++
	} else {
		r.Passed++
	}
}

// flush gives the waiting tests to the package that they are of.
func (s *Scanner) flush(pkg string) {
	for _, t := range s.waiting {
		name := t.name
		if pkg != "" {
			name = pkg + "." + t.name
		}
		r := s.set.get(name, Go)
		if r == nil {
			continue
		}
		if t.seconds > 0 && t.seconds < 1e7 {
			r.Seconds = t.seconds
		}
		switch t.outcome {
		case 'P':
			r.Passed++
		case 'F':
			r.Failed++
			s.set.say(r, t.message)
		default:
			r.Skipped++
		}
	}
	s.waiting = s.waiting[:0]
}

// The words of pytest for how a test ended.
var pytestWords = map[string]byte{"PASSED": 'P', "XPASS": 'P', "FAILED": 'F', "ERROR": 'F', "RERUN": 'R', "SKIPPED": 'S', "XFAIL": 'S'}

// pytest reads "node PASSED [ 50%]" (-v), "PASSED node" and "FAILED node - why"
// (-r), and "[gw0] [ 50%] PASSED node" (xdist).
func (s *Scanner) pytest(line string) {
	for strings.HasPrefix(line, "[") { // xdist's worker and progress
		_, rest, ok := strings.Cut(line, "] ")
		if !ok {
			return
		}
		line = rest
	}
	word, rest, ok := strings.Cut(line, " ")
	if !ok {
		return
	}
	outcome, known := pytestWords[word]
	node, why := rest, ""
	if known {
		node, why, _ = strings.Cut(rest, " - ")
	} else {
		// The word stands behind the node, which may have blanks in its parameters.
		line = strings.TrimRight(line, " ")
		if i := strings.LastIndex(line, "["); i > 0 && strings.HasSuffix(line, "%]") {
			line = strings.TrimRight(line[:i], " ")
		}
		if i := strings.LastIndexByte(line, ' '); i > 0 {
			node = line[:i]
			outcome, known = pytestWords[line[i+1:]]
		}
		if !known {
			return
		}
	}
	node = strings.TrimSpace(node)
	file, _, ok := strings.Cut(node, "::")
	if !ok || !strings.HasSuffix(file, ".py") || strings.ContainsAny(file, " \t") {
		return
	}
	r := s.set.get(node, Pytest)
	if r == nil {
		return
	}
	// A test is told of twice, while it runs and in the summary, so it is what it
	// was said to be, however often; a rerun is a failure of its own.
	switch outcome {
	case 'P':
		r.Passed, r.Skipped = 1, 0
	case 'F':
		r.Failed, r.Passed = max(r.Failed, 1), 0
		s.set.say(r, why)
	case 'R':
		r.Failed = max(r.Failed, 1)
	case 'S':
		if r.Passed+r.Failed == 0 {
			r.Skipped = 1
		}
	}
}

// tapLine reads a line of TAP and reports whether it is one.
func (s *Scanner) tapLine(line string) bool {
	switch {
	case strings.HasPrefix(line, "TAP version "):
		s.believe()
		return true
	case strings.HasPrefix(line, "1.."):
		n, _, _ := strings.Cut(line[3:], " ")
		if _, err := strconv.ParseUint(n, 10, 31); err != nil {
			return false
		}
		s.believe()
		return true
	}
	t := tapTest{ok: true}
	rest, ok := strings.CutPrefix(line, "ok ")
	if !ok {
		if rest, ok = strings.CutPrefix(line, "not ok "); !ok {
			return false
		}
		t.ok = false
	}
	number := 0
	for number < len(rest) && rest[number] >= '0' && rest[number] <= '9' {
		number++
	}
	if number == 0 && !s.tap {
		return false // prose begins like that
	}
	name := strings.TrimSpace(rest[number:])
	name = strings.TrimPrefix(name, "- ")
	for i := 0; i+1 < len(name); i++ { // an escaped # is part of the name
		if name[i] == '#' && (i == 0 || name[i-1] != '\\') {
			directive := strings.ToLower(strings.TrimSpace(name[i+1:]))
			t.skip = strings.HasPrefix(directive, "skip") || strings.HasPrefix(directive, "todo")
			name = strings.TrimSpace(name[:i])
			break
		}
	}
	if name == "" {
		name = "test " + rest[:number]
	}
	t.name = clip(name, MaxName)
	if !s.tap {
		if len(s.held) < maxHeld {
			s.held = append(s.held, t)
		}
		return true
	}
	s.tapResult(t)
	return true
}

// believe: there is a plan, so what looked like tests were some.
func (s *Scanner) believe() {
	s.tap = true
	for _, t := range s.held {
		s.tapResult(t)
	}
	s.held = nil
}

func (s *Scanner) tapResult(t tapTest) {
	r := s.set.get(t.name, TAP)
	switch {
	case r == nil:
	case t.skip:
		r.Skipped++
	case t.ok:
		if r.Failed == 0 { // two tests of one description are two tests
			r.Passed++
		}
	default:
		r.Failed++
		r.Passed = 0
	}
}
