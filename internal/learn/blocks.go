package learn

import (
	"regexp"
	"strings"
)

// extent says which lines belong to a line that a rule hit: the block that is
// shown. The zero extent is the line and what follows it up to an empty line, twelve
// at most.
type extent struct {
	before int            // lines before it, up to an empty one
	most   int            // lines in all; 0: 12
	blanks bool           // empty lines do not end it
	dent   bool           // a line as little indented as the first ends it
	stop   *regexp.Regexp // so does this one
	last   *regexp.Regexp // this one ends it and is of it
	below  int            // the line so far below the first says what it is
	trace  bool           // a traceback of Python's: up to its last exception, which says what it is
}

// blockOf is where the block of the line at begins and ends (the line after its
// last), in lines that were cleaned, and which of them says what happened.
func blockOf(lines []string, at int, e extent) (from, to, head int) {
	if e.trace {
		to, head = tracebackOf(lines, at)
		return max(at, to-40), to, head
	}
	most := e.most
	if most == 0 {
		most = 12
	}
	from, to = at, at+1
	for from > 0 && at-from < e.before && lines[from-1] != "" {
		from--
	}
	most += at - from
	dent := indentation(lines[at])
	for to < len(lines) && to-from < most {
		l := lines[to]
		if l == "" && !e.blanks || e.stop != nil && e.stop.MatchString(l) || e.dent && l != "" && indentation(l) <= dent || ending.MatchString(l) ||
			told.MatchString(l) && exitOnly.MatchString(l) {
			break
		}
		to++
		if e.last != nil && e.last.MatchString(l) {
			break
		}
	}
	for to > at+1 && lines[to-1] == "" {
		to--
	}
	head = at
	if at+e.below < to && lines[at+e.below] != "" {
		head = at + e.below
	}
	return from, to, head
}

func indentation(l string) int { return len(l) - len(strings.TrimLeft(l, " \t")) }

// tracebackOf is the line after a traceback and the line of its last exception,
// through "During handling of the above exception …".
func tracebackOf(lines []string, at int) (to, head int) {
	to, head = at+1, at
	dent, strange := indentation(lines[at]), 0
	for i := at + 1; i < len(lines) && i < at+400; i++ {
		l := lines[i]
		switch {
		case l == "" || indentation(l) > dent || chained.MatchString(l) || strings.Contains(l, "Traceback (most recent"):
			continue
		case exception.MatchString(strings.TrimSpace(l)):
			head, to = i, i+1
			for to < len(lines) && to < head+4 && lines[to] != "" && indentation(lines[to]) > dent {
				to++ // what it says may take several lines
			}
			i = to - 1
		default:
			// Standard output may come in between.
			if strange++; strange > 5 || head > at {
				return to, head
			}
		}
	}
	return to, head
}

// causedBy goes from a cause up to the error that names it, as Rust's programs
// print it.
func causedBy(lines []string, at int) int {
	if !cause.MatchString(lines[at]) {
		return at
	}
	for i := at - 1; i >= 0 && i > at-10; i-- {
		if lines[i] == "" || indentation(lines[i]) > 0 {
			continue
		}
		if strings.HasPrefix(strings.ToLower(lines[i]), "error") {
			return i
		}
		break
	}
	return at
}

var (
	cause = regexp.MustCompile(`^\s+(?:Caused by:|\d+: )`)

	chained = regexp.MustCompile(`^\s*(?:During handling of the above exception|The above exception was the direct cause)`)

	// exception is the line of an exception, in the languages that name them so.
	exception = regexp.MustCompile(`^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Failure|Exit|Timeout|Expired|Warning|OutOfMemoryError|NotFound|Invalid\w*)(?:: .*|:)?$`)

	// ending is what ends every block: the step's own end, or the next step.
	ending = regexp.MustCompile(`(?i)^(?:##\[error\])?(?:error: )?process completed with exit code|^##\[(?:group|section)\]|^post job cleanup|^The command .* (?:exited with \d+|failed and exited)|^Done\. Your build exited with|^cleaning up|^ERROR: Job failed|^travis_`)
)

func stopAt(expr string) *regexp.Regexp { return regexp.MustCompile(expr) }

// The extents of rules.
var (
	just      = extent{most: 1}
	few       = extent{most: 5}
	traceback = extent{trace: true}
	inside    = extent{dent: true, most: 15} // what is indented below it
	around    = extent{before: 5, most: 3}   // where nothing is known of the line
	listed    = extent{most: 8, below: 1}
	asked     = extent{below: 1, blanks: true, most: 30, last: stopAt(`^\* Try:`)} // Gradle
	pytest    = extent{blanks: true, most: 40, stop: stopAt(`^=+ .* =+$|^_{3,} `)} // one failure of several
	numbered  = extent{blanks: true, most: 25, stop: stopAt(`^\s*\d+\) |^Finished in|^Tests: |^\d+ (?:examples|tests), |^FAILURES!|^npm |^ERRORS!`)}
	bullet    = extent{blanks: true, most: 25, stop: stopAt(`^\s*(?:●|✓|✔) |^Test Suites:|^npm `)}
	compiler  = extent{most: 8, stop: stopAt(`^make(?:\[\d+\])?: |^ninja: `)}
	rustc     = extent{most: 14}
)

// over gives a rule its extent.
func (r rule) over(e extent) rule {
	r.extent = e
	return r
}
