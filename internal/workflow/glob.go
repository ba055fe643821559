package workflow

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"unicode/utf8"
)

// Pattern is one pattern of a branches, tags or paths filter:
//
//   - any run of characters but slashes
//     **   any run of characters; **/ also stands for nothing
//     ?    the character before it, or not
//   - the character before it, once or more
//     [ ]  one of the letters and digits listed, ranges too
//     !    at the start: what matches is excluded again
//     \    takes the meaning from the next character
//
// A pattern matches whole names, with case. Matching takes at most the length of
// the pattern times the length of the name. A Pattern is immutable.
type Pattern struct {
	source string
	negate bool
	exact  string    // if prog is nil: the only name that matches
	prog   []globOp  // a little machine that runs in all its states at once
	sets   []globSet // the bracket expressions of prog
	reach  []uint64  // the operations reached from each, as bits; only for short programs
}

// MaxPattern is the length in bytes up to which a pattern is taken.
const MaxPattern = 4096

// PatternError is why a pattern is invalid.
type PatternError struct {
	Pattern string
	Offset  int // in bytes, from 0
	Msg     string
}

func (e *PatternError) Error() string {
	return fmt.Sprintf("invalid pattern '%s': %s at character %d", e.Pattern, e.Msg,
		utf8.RuneCountInString(e.Pattern[:min(e.Offset, len(e.Pattern))])+1)
}

type globCode uint8

const (
	globMatch globCode = iota
	globRune           // r
	globSome           // one of sets[x]
	globNotSlash
	globAny
	globSplit // go on here and at x
	globJump  // go on at x
)

type globOp struct {
	code globCode
	r    rune
	x    int
}

// globSet is a set of letters and digits.
type globSet [2]uint64

func (s *globSet) add(c byte)      { s[c>>6] |= 1 << (c & 63) }
func (s *globSet) has(r rune) bool { return r < 128 && s[r>>6]>>(r&63)&1 != 0 }

// String is the pattern as written.
func (p *Pattern) String() string { return p.source }

func (p *Pattern) emit(op globOp) { p.prog = append(p.prog, op) }

func (p *Pattern) err(i int, m string) error {
	return &PatternError{Pattern: p.source, Offset: i, Msg: m}
}

// ParsePattern parses a pattern. The error is a *[PatternError].
func ParsePattern(s string) (*Pattern, error) {
	p := &Pattern{source: s}
	i := 0
	if strings.HasPrefix(s, "!") {
		p.negate = true
		i++
	}
	switch {
	case i == len(s):
		return nil, p.err(i, "there is nothing to match")
	case len(s) > MaxPattern:
		return nil, p.err(MaxPattern, fmt.Sprintf("it is longer than %d bytes", MaxPattern))
	}
	if !strings.ContainsAny(s[i:], `*?+[\`) {
		p.exact = s[i:]
		return p, nil
	}
	first := i
	unit := -1 // where what ? and + repeat begins; -1 if they may not stand here
	for i < len(s) {
		start := len(p.prog)
		switch c := s[i]; c {
		case '*':
			switch {
			case strings.HasPrefix(s[i:], "**/"):
				// nothing, or any run and a slash
				p.emit(globOp{code: globSplit, x: start + 5})
				p.emit(globOp{code: globAny})
				p.emit(globOp{code: globSplit, x: start + 1})
				p.emit(globOp{code: globRune, r: '/'})
				p.emit(globOp{code: globJump, x: start + 5})
				i += 3
			case strings.HasPrefix(s[i:], "**"):
				p.loop(globAny)
				i += 2
			default:
				p.loop(globNotSlash)
				i++
			}
			unit = start
		case '?', '+':
			if i == first {
				p.emit(globOp{code: globRune, r: rune(c)})
				unit = start
				i++
				continue
			}
			if unit < 0 {
				return nil, p.err(i, fmt.Sprintf("'%c' follows nothing that it can repeat", c))
			}
			if c == '?' {
				p.shift(unit)
				p.prog[unit] = globOp{code: globSplit, x: len(p.prog)}
			} else {
				p.emit(globOp{code: globSplit, x: unit})
			}
			unit = -1
			i++
		case '[':
			n, err := p.set(i)
			if err != nil {
				return nil, err
			}
			unit = start
			i = n
		case '\\':
			i++
			if i == len(s) {
				return nil, p.err(i-1, "'\\' must be followed by a character")
			}
			fallthrough
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			p.emit(globOp{code: globRune, r: r})
			unit = start
			i += n
		}
	}
	p.emit(globOp{code: globMatch})
	if n := len(p.prog); n <= 64 {
		m := globRun{prog: p.prog, seen: make([]int32, n)}
		p.reach = make([]uint64, n)
		for at := range p.reach {
			m.step++
			for _, to := range m.add(nil, int32(at)) {
				p.reach[at] |= 1 << to
			}
		}
	}
	return p, nil
}

// loop emits any number of what code matches.
func (p *Pattern) loop(code globCode) {
	start := len(p.prog)
	p.emit(globOp{code: globSplit, x: start + 3})
	p.emit(globOp{code: code})
	p.emit(globOp{code: globJump, x: start})
}

// shift makes room for one operation at index at.
func (p *Pattern) shift(at int) {
	p.prog = append(p.prog, globOp{})
	copy(p.prog[at+1:], p.prog[at:])
	for i := at + 1; i < len(p.prog); i++ {
		if op := &p.prog[i]; (op.code == globSplit || op.code == globJump) && op.x >= at {
			op.x++
		}
	}
}

// set parses the bracket expression at i and returns where it ends.
func (p *Pattern) set(i int) (int, error) {
	s := p.source
	var set globSet
	open := i
	i++
	if i < len(s) && s[i] == ']' {
		return 0, p.err(open, "the brackets are empty")
	}
	for ; i < len(s) && s[i] != ']'; i++ {
		c := s[i]
		if c == '\\' && i+1 < len(s) {
			i++
			c = s[i]
			if c >= utf8.RuneSelf {
				return 0, p.err(i, "only letters a-z, A-Z and digits may stand in brackets")
			}
			set.add(c)
			continue
		}
		if c == '-' {
			return 0, p.err(i, "'-' must stand between two letters or digits")
		}
		if c >= utf8.RuneSelf {
			return 0, p.err(i, "only letters a-z, A-Z and digits may stand in brackets")
		}
		if i+1 < len(s) && s[i+1] == '-' && i+2 < len(s) && s[i+2] != ']' {
			to := s[i+2]
			if class(c) == 0 || class(c) != class(to) || to < c {
				return 0, p.err(i, "ranges can only be within a-z, A-Z and 0-9, from low to high")
			}
			for ; c < to; c++ {
				set.add(c)
			}
			i += 2
		}
		set.add(c)
	}
	if i >= len(s) {
		return 0, p.err(open, "the bracket is not closed")
	}
	p.emit(globOp{code: globSome, x: len(p.sets)})
	p.sets = append(p.sets, set)
	return i + 1, nil
}

func class(c byte) int {
	switch {
	case c >= 'a' && c <= 'z':
		return 1
	case c >= 'A' && c <= 'Z':
		return 2
	case c >= '0' && c <= '9':
		return 3
	}
	return 0
}

// Match reports whether the pattern matches the whole name. The ! does not count:
// see [Pattern.Negated].
func (p *Pattern) Match(name string) bool {
	if p.prog == nil {
		return p.exact == name
	}
	if p.reach == nil {
		return p.run(name)
	}
	now := p.reach[0]
	for _, r := range name {
		var next uint64
		for rest := now; rest != 0; rest &= rest - 1 {
			at := bits.TrailingZeros64(rest)
			if p.takes(at, r) {
				next |= p.reach[at+1]
			}
		}
		if next == 0 {
			return false
		}
		now = next
	}
	return now>>(len(p.prog)-1)&1 != 0
}

// takes reports whether the operation at goes on with the character r.
func (p *Pattern) takes(at int, r rune) bool {
	switch op := p.prog[at]; op.code {
	case globRune:
		return r == op.r
	case globSome:
		return p.sets[op.x].has(r)
	case globNotSlash:
		return r != '/'
	case globAny:
		return true
	}
	return false
}

// run matches with a program of any length.
func (p *Pattern) run(name string) bool {
	n := len(p.prog)
	m := globRun{prog: p.prog, seen: make([]int32, n), step: 1}
	now, next := m.add(make([]int32, 0, n), 0), make([]int32, 0, n)
	for _, r := range name {
		if len(now) == 0 {
			return false
		}
		m.step++
		next = next[:0]
		for _, at := range now {
			if p.takes(int(at), r) {
				next = m.add(next, at+1)
			}
		}
		now, next = next, now
	}
	return slices.Contains(now, int32(n-1))
}

// globRun follows the operations that take no character.
type globRun struct {
	prog  []globOp
	stack []int32
	seen  []int32 // the step in which an operation was added last
	step  int32
}

// add adds an operation and those reached from it without taking a character.
func (m *globRun) add(list []int32, at int32) []int32 {
	m.stack = append(m.stack[:0], at)
	for len(m.stack) > 0 {
		at = m.stack[len(m.stack)-1]
		m.stack = m.stack[:len(m.stack)-1]
		if m.seen[at] == m.step {
			continue
		}
		m.seen[at] = m.step
		switch op := m.prog[at]; op.code {
		case globSplit:
			m.stack = append(m.stack, int32(op.x), at+1)
		case globJump:
			m.stack = append(m.stack, int32(op.x))
		default:
			list = append(list, at)
		}
	}
	return list
}

// Patterns is a list of patterns in which the order counts: the last one that
// matches a name decides.
type Patterns []*Pattern

// ParsePatterns parses all patterns; errs has one for each that is invalid.
func ParsePatterns(list []string) (ps Patterns, errs []error) {
	ps = make(Patterns, 0, len(list))
	for _, s := range list {
		p, err := ParsePattern(s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ps = append(ps, p)
	}
	return ps, errs
}

// Match says whether the name is in, and which pattern decided; nil if none
// matched.
func (ps Patterns) Match(name string) (in bool, by *Pattern) {
	for i := len(ps) - 1; i >= 0; i-- {
		if ps[i].Match(name) {
			return !ps[i].negate, ps[i]
		}
	}
	return false, nil
}
