package prompt

import (
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/workflow"
)

// Lack is a program that a workflow's commands name and that the default image has
// not got.
type Lack struct {
	Program string
	Package string // Debian package that has it; "" is that Debian has none
}

// Package is the Debian package that has a program, "" for a program that none has;
// known is false for one of which that is not known, or that the default image has.
func Package(program string) (pkg string, known bool) {
	p := theLexicon().programs[program]
	if p == nil || p.pkg == "" {
		return "", false
	}
	return strings.TrimPrefix(p.pkg, "-"), true
}

// lacks finds the programs that no setup action of the job brings either.
func lacks(yaml string) []Lack {
	w, _ := workflow.Parse("new.yml", []byte(yaml), workflow.Options{})
	if w == nil {
		return nil
	}
	var out []Lack
	for _, j := range w.Jobs {
		for _, l := range Lacking(j) {
			if !slices.Contains(out, l) {
				out = append(out, l)
			}
		}
	}
	return out
}

// Lacking finds the programs that a job's commands name and that the default image has
// not got, but for those that a setup action brings, or a step installs.
func Lacking(j *workflow.Job) (out []Lack) {
	if j.Container != nil || j.RunsOn == nil || j.RunsOn.Kind == workflow.String &&
		!strings.HasPrefix(j.RunsOn.Text(), "ubuntu") && !strings.HasPrefix(j.RunsOn.Text(), "debian") {
		return nil
	}
	lex := theLexicon()
	brought := map[string]bool{}
	var scripts strings.Builder
	for s := range workflow.EachStep(j.Steps) {
		for _, l := range lex.languages {
			if setup, _, _ := strings.Cut(l.setup, "@"); s.Uses != "" && strings.HasPrefix(s.Uses, setup+"@") {
				brought[l.name] = true
			}
		}
		if s.Run != nil {
			scripts.WriteString(s.Run.Str + "\n")
		}
	}
	for line := range strings.Lines(scripts.String()) {
		for _, part := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune("|&;", r) }) {
			f := strings.Fields(part)
			for len(f) > 0 && (assignment.MatchString(f[0]) || slices.Contains([]string{"sudo", "env", "timeout", "time"}, f[0])) {
				f = f[1:]
			}
			if len(f) == 0 {
				continue
			}
			p := lex.programs[f[0]]
			if p == nil || p.pkg == "" {
				continue
			}
			if t := lex.toolOf(f[0]); t != nil && brought[t.language] {
				continue
			}
			l := Lack{Program: p.name, Package: strings.TrimPrefix(p.pkg, "-")}
			if !slices.Contains(out, l) && !installs(scripts.String(), l) {
				out = append(out, l)
			}
		}
	}
	return out
}

// installs reports whether a script installs a program, by its package's name or by
// its own.
func installs(script string, l Lack) bool {
	for line := range strings.Lines(script) {
		_, what, ok := strings.Cut(line, "install")
		for word := range strings.FieldsSeq(what) {
			if name, _, _ := strings.Cut(word, "="); ok && (name == l.Program || name == l.Package && name != "") {
				return true
			}
		}
	}
	return false
}
