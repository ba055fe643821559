package prompt

import (
	"fmt"
	"regexp"
	"strings"
)

// write lays the workflow out as a person would.
func (p *phrasing) write() string {
	var b strings.Builder
	line := func(indent int, format string, args ...any) {
		b.WriteString(strings.Repeat("  ", indent))
		fmt.Fprintf(&b, format, args...)
		b.WriteByte('\n')
	}
	for l := range strings.Lines(p.request) {
		line(0, "# %s", strings.TrimSpace(l))
	}
	line(0, "name: %s", scalar(p.title()))
	line(0, "on:")
	for _, l := range p.on {
		line(0, "%s", l)
	}
	if len(p.env) > 0 {
		line(0, "env:")
		for _, kv := range p.env {
			line(1, "%s: %s", kv[0], scalar(kv[1]))
		}
	}
	line(0, "jobs:")
	if !p.parallel || len(p.steps) == 1 {
		p.job(line, "build", p.steps)
		return b.String()
	}
	taken := map[string]bool{}
	for _, s := range p.steps {
		id := jobID(s)
		for n := 2; taken[id]; n++ {
			id = fmt.Sprintf("%s-%d", jobID(s), n)
		}
		taken[id] = true
		p.job(line, id, []step{s})
	}
	return b.String()
}

func (p *phrasing) job(line func(int, string, ...any), id string, steps []step) {
	runsOn := "ubuntu-latest"
	if len(p.runsOn) > 0 {
		runsOn = p.runsOn[0]
	}
	line(1, "%s:", id)
	line(2, "runs-on: %s", runsOn)
	if p.timeout > 0 {
		line(2, "timeout-minutes: %d", p.timeout)
	}
	all := chains()
	many := false
	for _, v := range p.matrix {
		many = many || len(v) > 1
	}
	if many {
		line(2, "strategy:")
		line(3, "matrix:")
		for _, tool := range p.tools {
			if v := p.matrix[tool]; len(v) > 1 {
				var quoted []string
				for _, x := range v {
					quoted = append(quoted, "'"+x+"'")
				}
				line(4, "%s: [%s]", all[tool].key, strings.Join(quoted, ", "))
			}
		}
	}
	line(2, "steps:")
	line(3, "- uses: actions/checkout@v4")
	for _, tool := range p.tools {
		v := p.matrix[tool]
		if len(v) == 0 {
			continue
		}
		line(3, "- uses: %s", all[tool].setup)
		line(4, "with:")
		if all[tool].key == "java-version" {
			line(5, "distribution: temurin")
		}
		if len(v) > 1 {
			line(5, "%s: ${{ matrix.%s }}", all[tool].key, all[tool].key)
		} else {
			line(5, "%s: '%s'", all[tool].key, v[0])
		}
	}
	for _, s := range steps {
		switch {
		case s.uses != "":
			line(3, "- name: %s", scalar(s.name))
			line(4, "uses: %s", s.uses)
		case strings.Contains(s.command, "${{"):
			// What a person puts in backquotes is for the shell.
			line(3, "- run: %s", scalar(strings.ReplaceAll(s.command, "${{", "${{ '${{' }}")))
		default:
			line(3, "- run: %s", scalar(s.command))
		}
		if s.cond != "" {
			line(4, "if: %s()", s.cond)
		}
		if s.allow {
			line(4, "continue-on-error: true")
		}
		if s.dir != "" {
			line(4, "working-directory: %s", scalar(s.dir))
		}
		if len(s.with) > 0 {
			line(4, "with:")
			for _, kv := range s.with {
				line(5, "%s: %s", kv[0], scalar(kv[1]))
			}
		}
	}
}

// title is the request in a few words.
func (p *phrasing) title() string {
	words := strings.Fields(strings.ReplaceAll(p.request, "`", ""))
	if len(words) > 8 {
		words = append(words[:8], "…")
	}
	return strings.Join(words, " ")
}

var notID = regexp.MustCompile(`[^a-z0-9_-]+`)

func jobID(s step) string {
	if s.purpose != "" {
		return s.purpose
	}
	id := strings.Trim(notID.ReplaceAllString(strings.ToLower(s.command+s.name), "-"), "-")
	if len(id) > 30 {
		id = strings.Trim(id[:30], "-")
	}
	if id == "" || id[0] >= '0' && id[0] <= '9' {
		id = "job-" + id
	}
	return id
}

var plainScalar = regexp.MustCompile(`^[A-Za-z0-9_./][A-Za-z0-9_./ =@%+-]*$`)

// scalar writes s as a YAML scalar on one line, plain where it is safe.
func scalar(s string) string {
	if plainScalar.MatchString(s) && !strings.HasSuffix(s, " ") && !regexp.MustCompile(`(?i)^(?:true|false|null|~|[0-9.].*)$`).MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}
