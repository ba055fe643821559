package command

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"fmt"
	"strings"
)

// Bounds on what a step may leave in its command files, and set by commands.
// What a process can be given of variables is Linux's; those of outputs and the
// summary are GitHub's (package ci).
const (
	// MaxFile is the most that GITHUB_ENV, GITHUB_STATE and GITHUB_PATH may hold.
	MaxFile = 1 << 20
	// MaxOutputFile is the most that GITHUB_OUTPUT may hold.
	MaxOutputFile = 8 << 20
	// MaxVariable is the most that "NAME=value" may have: one string that a
	// process is given.
	MaxVariable = 128<<10 - 1
	// MaxVariables is the most that all variables of a process may have together.
	MaxVariables = 1 << 20
)

// Pair is one assignment of a command file.
type Pair struct{ Key, Value string }

// ParsePairs reads GITHUB_ENV, GITHUB_OUTPUT or GITHUB_STATE: lines of
// KEY=VALUE, or KEY<<DELIMITER, the lines of the value, and DELIMITER. The error
// is worded as GitHub words it; the pairs before it hold.
func ParsePairs(text string) ([]Pair, error) {
	var out []Pair
	text = strings.TrimPrefix(text, "\ufeff")
	for text != "" {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		if line == "" {
			continue
		}
		eq, here := strings.Index(line, "="), strings.Index(line, "<<")
		switch {
		case eq >= 0 && (here < 0 || eq < here):
			if eq == 0 {
				return out, fmt.Errorf("Invalid format '%s'. Name must not be empty", line)
			}
			out = append(out, Pair{line[:eq], line[eq+1:]})
		case here >= 0:
			key, delimiter := line[:here], line[here+2:]
			if key == "" || delimiter == "" {
				return out, fmt.Errorf("Invalid format '%s'. Name must not be empty and delimiter must not be empty", line)
			}
			value, rest, err := heredoc(text, delimiter)
			if err != nil {
				return out, err
			}
			out = append(out, Pair{key, value})
			text = rest
		default:
			return out, fmt.Errorf("Invalid format '%s'", line)
		}
	}
	return out, nil
}

// heredoc cuts text at the line that is the delimiter.
func heredoc(text, delimiter string) (value, rest string, err error) {
	for at := 0; at < len(text); {
		line, _, more := strings.Cut(text[at:], "\n")
		next := at + len(line) + 1
		if line == delimiter {
			return strings.TrimSuffix(text[:at], "\n"), text[min(next, len(text)):], nil
		}
		if !more {
			return "", "", fmt.Errorf("Invalid value. EOF marker missing new line.")
		}
		at = next
	}
	return "", "", fmt.Errorf("Invalid value. Matching delimiter not found '%s'", delimiter)
}

// ParsePaths reads GITHUB_PATH: a directory a line.
func ParsePaths(text string) []string {
	var out []string
	for line := range strings.SplitSeq(strings.TrimPrefix(text, "\ufeff"), "\n") {
		if line = strings.TrimSuffix(line, "\r"); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// Blocked reports whether a step may not set the variable for later steps: it
// would take over the JavaScript actions that run in them.
func Blocked(name string) bool { return strings.EqualFold(name, "NODE_OPTIONS") }
