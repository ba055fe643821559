package history

import (
	"hash/fnv"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/mask"
)

var (
	hereDoc    = regexp.MustCompile(`<<-?[ \t]*\\?["']?([A-Za-z_][A-Za-z0-9_]*)`)
	longQuotes = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'[^']*'`)
	imports    = regexp.MustCompile(`(?m)^[ \t]*(?:import[ \t]+([A-Za-z_][\w.]*)|from[ \t]+([A-Za-z_][\w.]*)[ \t]+import)|(?:\brequire\(|\bfrom[ \t]+|\bimport[ \t]+|\bimport\()["']((?:node:)?[@A-Za-z][\w@./-]*)["']`)
)

const (
	longQuote  = 40 // characters of a quoted text that is kept as it is
	maxImports = 8
)

// words are the command as it is kept, and the job that stands for what runs it.
func (c *Command) words(secrets *mask.Set) (words, job string) {
	clean := func(text string) string { return mask.Redact(secrets.String(text)) }
	script := c.Code
	if script == "" {
		if len(c.Argv) >= 3 && slices.Contains([]string{"sh", "bash", "dash"}, path.Base(c.Argv[0])) && strings.HasPrefix(c.Argv[1], "-") &&
			strings.HasSuffix(c.Argv[1], "c") {
			script = c.Argv[2]
		} else {
			script = Quote(c.Argv)
		}
	} else if c.Language != "sh" {
		code := clean(script)
		h := fnv.New64a()
		h.Write([]byte(strings.Join(strings.Fields(code), " ")))
		text := c.Language + " program " + strconv.FormatUint(h.Sum64(), 36)
		if names := imported(code); len(names) > 0 {
			text += " with " + strings.Join(names, ", ")
		}
		return graph.Command(text), c.Language
	}
	text := longQuotes.ReplaceAllStringFunc(clean(withoutDocuments(script)), func(q string) string {
		if len(q) > longQuote || strings.Contains(q, "\n") {
			return q[:1] + "…" + q[:1]
		}
		return q
	})
	return graph.Command(text), "shell"
}

// withoutDocuments drops the bodies of here-documents: they are files, not commands.
func withoutDocuments(script string) string {
	if !strings.Contains(script, "<<") {
		return script
	}
	var b strings.Builder
	var ends []string
	for line := range strings.Lines(script) {
		if len(ends) > 0 {
			if strings.TrimSpace(line) == ends[0] {
				ends = ends[1:]
			}
			continue
		}
		b.WriteString(line)
		for _, m := range hereDoc.FindAllStringSubmatch(line, -1) {
			ends = append(ends, m[1])
		}
	}
	return b.String()
}

// imported are the modules that a program of Python or JavaScript takes.
func imported(code string) (names []string) {
	for _, m := range imports.FindAllStringSubmatch(code, -1) {
		name := m[1] + m[2] + m[3]
		if len(name) <= longQuote && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names[:min(len(names), maxImports)]
}

// Quote writes arguments as a shell would take them.
func Quote(argv []string) string {
	var out []string
	for _, a := range argv {
		if a == "" || strings.ContainsFunc(a, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:=@%+,", r))
		}) {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}
