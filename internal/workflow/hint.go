package workflow

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// This file words hints: what an author may have meant.

// keyHint says which key may have been meant, or which there are.
func keyHint(got string, candidates []*def) string {
	if got == "<<" {
		return "GitHub takes anchors and aliases, but no merge keys; repeat the keys."
	}
	var names []string
	for _, c := range candidates {
		for _, p := range c.props {
			if !slices.Contains(names, p.name) {
				names = append(names, p.name)
			}
		}
	}
	return oneOfHint(got, names)
}

// valueHint says which value may have been meant, or what is wanted.
func valueHint(got string, d *def) string {
	var names []string
	for _, s := range d.scalars() {
		if s.kind == defString && s.constant != "" {
			names = append(names, s.constant)
		}
	}
	if len(names) > 0 {
		return oneOfHint(got, names)
	}
	return wanted(d)
}

func oneOfHint(got string, names []string) string {
	if len(names) == 0 {
		return ""
	}
	if best := Closest(got, names); best != "" {
		return fmt.Sprintf("Did you mean '%s'?", best)
	}
	if len(names) > 24 {
		return ""
	}
	names = slices.Clone(names)
	slices.Sort(names)
	return "Expected one of: " + strings.Join(names, ", ") + "."
}

// wanted says what kind of value d takes.
func wanted(d *def) string {
	var kinds []string
	add := func(s string) {
		if !slices.Contains(kinds, s) {
			kinds = append(kinds, s)
		}
	}
	for _, s := range d.scalars() {
		switch s.kind {
		case defBool:
			add("true or false")
		case defNumber:
			add("a number")
		case defNull:
			add("nothing")
		case defString:
			switch {
			case s.constant != "":
				add("'" + s.constant + "'")
			case s.nonEmpty:
				add("a text that is not empty")
			default:
				add("a text")
			}
		}
	}
	if len(d.ofKind(defSequence)) > 0 {
		add("a sequence")
	}
	if len(d.ofKind(defMapping)) > 0 {
		add("a mapping")
	}
	if len(kinds) == 0 || len(kinds) > 8 {
		return ""
	}
	return "Expected " + strings.Join(kinds, ", or ") + "."
}

var unknownName = regexp.MustCompile(`^(Unrecognized (?:named-value|function)): '([^']*)'`)

// exprHint says what may be used where an unknown name stands.
func exprHint(err error, a *allow) string {
	msg := err.Error()
	m := unknownName.FindStringSubmatch(msg)
	if m == nil {
		switch {
		case strings.Contains(msg, `'"`):
			return "Texts in expressions are quoted with ', not with \"."
		case strings.Contains(msg, "not closed"):
			return "Close the expression with }}."
		}
		return ""
	}
	var names []string
	isFunc := strings.HasSuffix(m[1], "function")
	if isFunc {
		names = []string{"case", "contains", "endsWith", "format", "fromJSON", "join", "startsWith", "toJSON"}
	}
	for _, n := range a.names {
		name, _, fn := strings.Cut(n, "(")
		if fn == isFunc {
			names = append(names, name)
		}
	}
	if best := Closest(m[2], names); best != "" {
		return fmt.Sprintf("Did you mean '%s'?", best)
	}
	if len(names) == 0 {
		return "No context is known here."
	}
	slices.Sort(names)
	return "Known here: " + strings.Join(names, ", ") + "."
}

// Closest returns the name nearest to got, or "" when none is near enough to have
// been meant.
func Closest(got string, names []string) string {
	best, dist := "", len(got)/3+1
	if len(got) > 100 || len(names) > 500 {
		return ""
	}
	for _, n := range names {
		if n == got {
			continue
		}
		d := Distance(strings.ToLower(got), strings.ToLower(n))
		if d > 0 && min(len(got), len(n)) < 3 && !swapped(got, n) {
			continue // too short for a slip to be told from another word
		}
		if d < dist || d == dist && best == "" {
			best, dist = n, d
		}
	}
	return best
}

func swapped(a, b string) bool {
	return len(a) == 2 && len(b) == 2 && strings.EqualFold(a[:1], b[1:]) && strings.EqualFold(a[1:], b[:1])
}

// Distance is the number of edits (insert, delete, replace, swap neighbours)
// between a and b.
func Distance(a, b string) int {
	prev2 := make([]int, len(b)+1)
	prev := make([]int, len(b)+1)
	cur := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
