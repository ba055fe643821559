package command

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearth-ci/hearth/internal/text"
)

// Bounds on problem matchers.
const (
	// MaxMatcherFile is the most that is read of a matcher file.
	MaxMatcherFile = 1 << 20
	maxMatchers    = 100
	maxPatterns    = 20
	maxRegexp      = 4 << 10
	maxGroups      = 50
	maxMatchLine   = 8 << 10 // a longer line is no compiler's message

	// Regular expressions are linear here, in their size times the length of the
	// line; both factors are the job's. So what counts is the size once compiled,
	// in instructions: of one, and of all that a job has at a time.
	maxProgram  = 5_000
	maxPrograms = 20_000
	maxSteps    = 8 << 20 // size times length: a longer line is not tried

	// What matching may take of the runner's time: a matcher that takes more, and
	// all of them when they do, are switched off.
	maxMatcherTime  = 5 * time.Second
	maxMatchersTime = 15 * time.Second
)

// Matcher is one problem matcher: patterns that successive lines must match.
type Matcher struct {
	Owner    string
	Severity string // error, warning, notice; what holds where no pattern says
	patterns []pattern
	size     int    // of all patterns, in instructions
	use      *usage // shared by all copies
}

// usage is what a matcher has cost.
type usage struct {
	took atomic.Int64 // ns
	off  atomic.Bool
}

// pattern is one line's pattern; the numbers are its groups, -1 where unused.
type pattern struct {
	re                                                   *regexp.Regexp
	size                                                 int // in instructions
	file, line, column, severity, code, message, fromDir int
	loop                                                 bool
}

// ParseMatchers reads a matcher file: {"problemMatcher": [{owner, severity,
// pattern: [{regexp, file, line, column, severity, code, message, fromPath,
// loop}]}]}. Patterns with look-around or back-references are refused by name:
// they cannot be matched in linear time. So are those that would be too large once
// compiled, before they are.
func ParseMatchers(data []byte) ([]Matcher, error) {
	var file struct {
		ProblemMatcher []struct {
			Owner    string
			Severity string
			Pattern  []map[string]json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(string(data), "\ufeff")), &file); err != nil {
		return nil, fmt.Errorf("not a problem matcher file: %w", err)
	}
	if len(file.ProblemMatcher) > maxMatchers {
		return nil, fmt.Errorf("more than %d matchers in one file", maxMatchers)
	}
	var out []Matcher
	all := 0
	for _, m := range file.ProblemMatcher {
		if m.Owner == "" {
			return nil, errors.New("Owner must not be empty")
		}
		if slices.ContainsFunc(out, func(o Matcher) bool { return strings.EqualFold(o.Owner, m.Owner) }) {
			return nil, fmt.Errorf("Duplicate owner name '%s'", m.Owner)
		}
		switch strings.ToLower(m.Severity) {
		case "", "error", "warning", "notice":
		default:
			return nil, fmt.Errorf("Matcher '%s' contains unexpected default severity '%s'", m.Owner, m.Severity)
		}
		if len(m.Pattern) == 0 {
			return nil, fmt.Errorf("Matcher '%s' does not contain any patterns", m.Owner)
		}
		if len(m.Pattern) > maxPatterns {
			return nil, fmt.Errorf("Matcher '%s' has more than %d patterns", m.Owner, maxPatterns)
		}
		matcher := Matcher{Owner: m.Owner, Severity: strings.ToLower(m.Severity), use: &usage{}}
		set := map[string]bool{}
		for i, raw := range m.Pattern {
			p, err := parsePattern(raw, set, i == 0, i == len(m.Pattern)-1)
			if err != nil {
				return nil, fmt.Errorf("Matcher '%s': %w", m.Owner, err)
			}
			matcher.patterns = append(matcher.patterns, p)
			matcher.size += p.size
			if all += p.size; all > maxPrograms {
				return nil, fmt.Errorf("Matcher '%s': with it the regular expressions of the file have more than %d instructions when compiled", m.Owner, maxPrograms)
			}
		}
		if !set["message"] {
			return nil, fmt.Errorf("Matcher '%s': At least one pattern must set 'message'", m.Owner)
		}
		out = append(out, matcher)
	}
	return out, nil
}

func parsePattern(raw map[string]json.RawMessage, set map[string]bool, first, last bool) (pattern, error) {
	fields := map[string]json.RawMessage{}
	for k, v := range raw {
		fields[strings.ToLower(k)] = v
	}
	var p pattern
	var src string
	if r, ok := fields["regexp"]; ok {
		if err := json.Unmarshal(r, &src); err != nil {
			return p, fmt.Errorf("regexp: %w", err)
		}
	}
	if len(src) > maxRegexp {
		return p, fmt.Errorf("regexp is longer than %d bytes", maxRegexp)
	}
	const unusable = "regexp cannot be used here (no look-around, no back-references): %w"
	tree, err := syntax.Parse(src, syntax.Perl)
	if err != nil {
		return p, fmt.Errorf(unusable, err)
	}
	if p.size = program(tree); p.size > maxProgram {
		return p, fmt.Errorf("regexp has more than %d instructions when compiled: repeat less, or use smaller classes of characters", maxProgram)
	}
	re, err := regexp.Compile(src)
	if err != nil {
		return p, fmt.Errorf(unusable, err)
	}
	if re.NumSubexp() > maxGroups {
		return p, fmt.Errorf("regexp has more than %d groups: use (?:…)", maxGroups)
	}
	p.re = re
	if r, ok := fields["loop"]; ok {
		if err := json.Unmarshal(r, &p.loop); err != nil {
			return p, fmt.Errorf("loop: %w", err)
		}
	}
	if p.loop && (first || !last) {
		return p, errors.New("Only the last pattern in a multiline matcher may set 'loop'")
	}
	for _, f := range []struct {
		name string
		to   *int
	}{{"file", &p.file}, {"line", &p.line}, {"column", &p.column}, {"severity", &p.severity}, {"code", &p.code}, {"message", &p.message},
		{"fromPath", &p.fromDir}} {
		*f.to = -1
		r, ok := fields[strings.ToLower(f.name)]
		if !ok || string(r) == "null" {
			continue
		}
		if err := json.Unmarshal(r, f.to); err != nil {
			return p, fmt.Errorf("%s: %w", f.name, err)
		}
		if set[f.name] {
			return p, fmt.Errorf("The property '%s' is set twice", f.name)
		}
		set[f.name] = true
		if *f.to < 0 || *f.to > re.NumSubexp() {
			return p, fmt.Errorf("The property '%s' is set to %d which is out of range", f.name, *f.to)
		}
	}
	if p.loop && p.message < 0 {
		return p, errors.New("The loop pattern must set 'message'")
	}
	return p, nil
}

// program is how many instructions a regular expression will have when it is
// compiled, about, without compiling it: what is repeated a number of times is
// there as often. Large classes of characters count for what they hold.
func program(re *syntax.Regexp) int {
	sum := 0
	for _, sub := range re.Sub {
		sum = min(sum+program(sub), 1<<30)
	}
	switch re.Op {
	case syntax.OpLiteral:
		return len(re.Rune)
	case syntax.OpCharClass:
		return 1 + len(re.Rune)/8
	case syntax.OpRepeat:
		// x{n,m} is n times x, and m-n times x?.
		switch {
		case re.Max < 0:
			return min(max(re.Min, 1)*sum+1, 1<<30)
		default:
			return min(re.Min*sum+(re.Max-re.Min)*(sum+1), 1<<30)
		}
	case syntax.OpCapture:
		return sum + 2
	case syntax.OpAlternate:
		return sum + len(re.Sub)
	case syntax.OpConcat:
		return sum
	}
	return sum + 1
}

// Matchers are the problem matchers in force in a job, safe for concurrent use.
type Matchers struct {
	mu      sync.Mutex
	list    []Matcher
	version int
	took    atomic.Int64     // ns, for all there were
	now     func() time.Time // nil is time.Now
}

// ErrMatchersOff says that a job's problem matchers have used up their time.
var ErrMatchersOff = fmt.Errorf("the job's problem matchers have taken %v of the runner's time: they are switched off", maxMatchersTime)

func (m *Matchers) clock() time.Time {
	if m.now != nil {
		return m.now()
	}
	return time.Now()
}

func (m *Matchers) spent() bool { return time.Duration(m.took.Load()) > maxMatchersTime }

// Load is [ParseMatchers], on the job's time.
func (m *Matchers) Load(data []byte) ([]Matcher, error) {
	if m.spent() {
		return nil, ErrMatchersOff
	}
	began := m.clock()
	defer func() { m.took.Add(int64(m.clock().Sub(began))) }()
	return ParseMatchers(data)
}

// Add puts matchers in force; one of the same owner is replaced. It refuses more
// than a hundred in all, and more than 20,000 instructions of all.
func (m *Matchers) Add(list []Matcher) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range list {
		m.remove(n.Owner)
		size := n.size
		for _, o := range m.list {
			size += o.size
		}
		if size > maxPrograms {
			return fmt.Errorf("the regular expressions of the job's problem matchers would have %d instructions with those of '%s', and may have %d: remove others first", size, n.Owner, maxPrograms)
		}
		if len(m.list) >= maxMatchers {
			return fmt.Errorf("more than %d problem matchers in one job", maxMatchers)
		}
		m.list = slices.Insert(slices.Clone(m.list), 0, n)
		m.version++
	}
	return nil
}

// Remove takes the matchers of owner out of force.
func (m *Matchers) Remove(owner string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(owner)
	m.version++
}

func (m *Matchers) remove(owner string) {
	m.list = slices.DeleteFunc(slices.Clone(m.list), func(o Matcher) bool { return strings.EqualFold(o.Owner, owner) })
}

// Scanner finds problems in the lines of one step. It is not safe for
// concurrent use.
type Scanner struct {
	// Off hears of a matcher that is switched off, since it takes too long.
	Off func(owner, why string)

	from    *Matchers
	version int
	list    []*running
}

// running is a matcher with what its earlier patterns matched.
type running struct {
	Matcher
	state []*found
}

type found struct{ file, line, column, severity, code, message, fromDir string }

// NewScanner returns a scanner of the matchers in force at each line.
func (m *Matchers) NewScanner() *Scanner { return &Scanner{from: m, version: -1} }

// Line looks for a problem in a line, as people see it, until ctx is done. Its
// File is as the tool wrote it.
func (s *Scanner) Line(ctx context.Context, line string) (Annotation, bool) {
	s.refresh()
	if len(s.list) == 0 || len(line) > maxMatchLine || s.from.spent() {
		return Annotation{}, false
	}
	line = text.Clean(line)
	for _, r := range s.list {
		if ctx.Err() != nil {
			return Annotation{}, false
		}
		if r.use.off.Load() {
			continue
		}
		began := s.from.clock()
		f := r.match(ctx, line)
		s.charge(r, s.from.clock().Sub(began))
		if f == nil {
			continue
		}
		for _, other := range s.list {
			if other != r {
				clear(other.state)
			}
		}
		if a, ok := f.annotation(r.Severity); ok {
			return a, true
		}
	}
	return Annotation{}, false
}

// charge switches a matcher off that has used up its time, or the job's.
func (s *Scanner) charge(r *running, d time.Duration) {
	why := ""
	if time.Duration(r.use.took.Add(int64(d))) > maxMatcherTime {
		why = fmt.Sprintf("it has taken more than %v of the runner's time", maxMatcherTime)
	}
	if time.Duration(s.from.took.Add(int64(d))) > maxMatchersTime {
		why = ErrMatchersOff.Error()
	}
	if why != "" && r.use.off.CompareAndSwap(false, true) && s.Off != nil {
		s.Off(r.Owner, why)
	}
}

func (s *Scanner) refresh() {
	s.from.mu.Lock()
	defer s.from.mu.Unlock()
	if s.version == s.from.version {
		return
	}
	s.version = s.from.version
	s.list = nil
	for _, m := range s.from.list {
		s.list = append(s.list, &running{Matcher: m, state: make([]*found, len(m.patterns)-1)})
	}
}

// match feeds a line to the patterns, the last first: a line can end one match
// and begin another.
func (r *running) match(ctx context.Context, line string) *found {
	last := len(r.patterns) - 1
	for i := last; i >= 0; i-- {
		var before *found
		if i > 0 {
			if before = r.state[i-1]; before == nil {
				continue
			}
		}
		p := r.patterns[i]
		if ctx.Err() != nil || p.size*len(line) > maxSteps {
			return nil
		}
		groups := p.re.FindStringSubmatch(line)
		switch {
		case i == last && groups != nil:
			clear(r.state)
			if p.loop {
				r.state[i-1] = before
			}
			return p.take(groups, before)
		case i == last && i > 0:
			r.state[i-1] = nil
		case i < last && groups != nil:
			r.state[i] = p.take(groups, before)
		case i < last:
			r.state[i] = nil
		}
	}
	return nil
}

func (p *pattern) take(groups []string, before *found) *found {
	f := &found{}
	if before != nil {
		*f = *before
	}
	get := func(have *string, group int) {
		if *have == "" && group >= 0 {
			*have = groups[group]
		}
	}
	get(&f.file, p.file)
	get(&f.line, p.line)
	get(&f.column, p.column)
	get(&f.severity, p.severity)
	get(&f.code, p.code)
	get(&f.message, p.message)
	get(&f.fromDir, p.fromDir)
	return f
}

func (f *found) annotation(severity string) (Annotation, bool) {
	if f.severity != "" {
		severity = f.severity
	}
	switch severity = strings.ToLower(severity); severity {
	case "":
		severity = "error"
	case "error", "warning", "notice":
	default:
		return Annotation{}, false // as GitHub: info and the like are only text
	}
	if strings.TrimSpace(f.message) == "" {
		return Annotation{}, false
	}
	a := Annotation{Level: severity, Message: f.message, File: f.file, Title: f.code}
	if n, err := strconv.Atoi(f.line); err == nil && n > 0 {
		a.Line = n
	}
	if n, err := strconv.Atoi(f.column); err == nil && n > 0 {
		a.Column = n
	}
	if f.file != "" && f.fromDir != "" && !strings.HasPrefix(f.file, "/") {
		// fromPath is a file (a project file): its directory is the base.
		if i := strings.LastIndexByte(f.fromDir, '/'); i >= 0 {
			a.File = f.fromDir[:i+1] + f.file
		}
	}
	return a, true
}
