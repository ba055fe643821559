package config

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"
)

// A LineError is what is wrong with a line of a file of settings. It never quotes
// the line: that may hold a secret.
type LineError struct {
	Line int
	Text string
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Text) }

var (
	heredoc   = regexp.MustCompile(`^(?:export )?\s*([^\s"'=<]+)<<(\S.*)$`)
	yamlLine  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*\s*:(?:\s|$)`)
	remark    = regexp.MustCompile(`^("(?:[^"\\]|\\.)*")\s+#`)
	yamlPlace = regexp.MustCompile(`\bline (\d+)`)
)

// ParseLines reads NAME=value lines, as secrets, variables, .secrets, .vars, .env
// and .input hold them: comments, optional "export", quotes around a value,
// values of several lines in quotes, or as GITHUB_ENV takes them:
//
//	NAME<<EOF
//	value
//	EOF
//
// A file whose first line is "NAME: value" is YAML. The error is a [*LineError].
func ParseLines(b []byte, set func(line int, name, value string)) error {
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	lines := strings.Split(strings.ReplaceAll(string(b), "\r\n", "\n"), "\n")
	first := true
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSpace(lines[i])
		if line == "" || line[0] == '#' || first && line == "---" {
			continue
		}
		if first && yamlLine.MatchString(line) {
			return parseYAML(b, set)
		}
		first = false
		at := i + 1
		if m := heredoc.FindStringSubmatch(line); m != nil {
			var value []string
			for i++; i < len(lines) && strings.TrimRight(lines[i], " \t") != m[2]; i++ {
				value = append(value, lines[i])
			}
			if i == len(lines) {
				return &LineError{at, "the delimiter after << does not come again"}
			}
			set(at, m[1], strings.Join(value, "\n"))
			continue
		}
		k, v, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		k, v = strings.TrimSpace(k), strings.TrimSpace(v)
		if !ok || k == "" || strings.ContainsAny(k, " \t\"'") {
			return &LineError{at, "want NAME=value"}
		}
		if m := remark.FindStringSubmatch(v); m != nil {
			v = m[1]
		}
		switch {
		case strings.HasPrefix(v, `"`):
			for !closed(v) {
				if i++; i == len(lines) {
					return &LineError{at, "the quote is not closed"}
				}
				v += "\n" + lines[i]
			}
			v = strings.NewReplacer(`\n`, "\n", `\"`, `"`, `\\`, `\`).Replace(strings.TrimSpace(v)[1 : len(strings.TrimSpace(v))-1])
		case len(v) > 1 && strings.HasPrefix(v, "'") && strings.HasSuffix(v, "'"):
			v = v[1 : len(v)-1]
		case strings.HasPrefix(v, "'") && !strings.Contains(v[1:], "'") && quoteEnds(lines[i+1:]) >= 0:
			n := quoteEnds(lines[i+1:]) + 1
			v += "\n" + strings.Join(lines[i+1:i+1+n], "\n")
			v = strings.TrimSuffix(strings.TrimRight(v[1:], " \t"), "'")
			i += n
		default:
			if before, _, ok := strings.Cut(v, " #"); ok {
				v = strings.TrimSpace(before)
			}
		}
		set(at, k, v)
	}
	return nil
}

// closed reports whether a value that began with a double quote ends with one.
func closed(v string) bool {
	v = strings.TrimSpace(v)
	if len(v) < 2 || v[len(v)-1] != '"' {
		return false
	}
	slashes := 0
	for i := len(v) - 2; i > 0 && v[i] == '\\'; i-- {
		slashes++
	}
	return slashes%2 == 0
}

// quoteEnds is the first of some lines that ends with a single quote, -1 if none does.
func quoteEnds(lines []string) int {
	for i, l := range lines {
		if strings.HasSuffix(strings.TrimRight(l, " \t"), "'") {
			return i
		}
	}
	return -1
}

// parseYAML reads a mapping of names to values, each as it is written.
func parseYAML(b []byte, set func(line int, name, value string)) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		at := 1
		// What the parser says may quote the file.
		if m := yamlPlace.FindStringSubmatch(err.Error()); m != nil {
			fmt.Sscan(m[1], &at)
		}
		return &LineError{at, "it is not valid YAML"}
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return &LineError{1, "want NAME: value"}
	}
	pairs := doc.Content[0].Content
	for i := 0; i+1 < len(pairs); i += 2 {
		name, value := pairs[i], pairs[i+1]
		if name.Kind != yaml.ScalarNode || value.Kind != yaml.ScalarNode {
			return &LineError{name.Line, "want NAME: value, where the value is one text"}
		}
		text := value.Value
		if value.Tag == "!!null" {
			text = ""
		}
		set(name.Line, name.Value, text)
	}
	return nil
}
