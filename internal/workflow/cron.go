package workflow

import (
	"strconv"
	"strings"
)

// cronField is the range of one of the five fields.
type cronField struct {
	lo, hi int
	names  []string // names of lo, lo+1, …
}

func cronFields() [5]cronField {
	return [5]cronField{
		{lo: 0, hi: 59},
		{lo: 0, hi: 23},
		{lo: 1, hi: 31},
		{lo: 1, hi: 12, names: []string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}},
		{lo: 0, hi: 6, names: []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}},
	}
}

// validCron reports whether GitHub takes a cron expression.
func validCron(s string) bool {
	parts := strings.Fields(s)
	if len(parts) != 5 {
		return false
	}
	for i, f := range cronFields() {
		if !f.valid(parts[i]) {
			return false
		}
	}
	return true
}

func (f cronField) valid(s string) bool {
	for item := range strings.SplitSeq(s, ",") {
		span, step, stepped := strings.Cut(item, "/")
		if stepped {
			n, err := strconv.Atoi(step)
			// A step may be what the field goes to, and of weekdays a week.
			if err != nil || n <= 0 || n > max(f.hi, 7) {
				return false
			}
		}
		if span == "*" {
			continue
		}
		from, to, ranged := strings.Cut(span, "-")
		a, ok := f.number(from)
		if !ok {
			return false
		}
		if ranged {
			b, ok := f.number(to)
			if !ok || b < a {
				return false
			}
		}
	}
	return true
}

func (f cronField) number(s string) (int, bool) {
	for i, n := range f.names {
		if strings.EqualFold(n, s) {
			return f.lo + i, true
		}
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= f.lo && n <= f.hi && s[0] != '+'
}
