package prompt

import (
	"regexp"
	"strings"
	"unicode"
)

// Phrase writes the workflow that a request in plain phrasing asks for, or
// returns a [*Refusal] that names every clause that it does not understand.
//
// A request is cut into tokens (token.go), of which those that nobody knows and
// that are one slip away from one known word are mended. A chart parser (grammar.go)
// covers them with fragments as cheaply as it can: commands, purposes, triggers,
// conditions, modifiers, separators, words that mean nothing. Which fragments there are is
// data (grammar.txt), and so is what words mean (lexicon.txt). Where a command that
// stands in a sentence ends is decided by command.go. The fragments are read from left
// to right (plan.go, meaning.go): a modifier belongs to the steps of its clause,
// or to those that follow when it comes first. Then jobs are made of the steps
// (resolve.go) and written (write.go).
//
// A word that no fragment covers is refused, and so is what could be meant in two
// ways that differ: what comes out runs on people's machines.
func Phrase(request string) (string, error) {
	p, err := parse(request)
	if err != nil {
		return "", err
	}
	return p.yaml, nil
}

type phrased struct {
	plan  *plan
	yaml  string
	notes []string
}

func parse(request string) (*phrased, error) {
	if strings.ContainsFunc(request, func(r rune) bool { return unicode.IsControl(r) && !unicode.IsSpace(r) }) {
		return nil, &Refusal{Reason: "the request holds control characters"}
	}
	request = strings.ReplaceAll(strings.ReplaceAll(request, "\r\n", "\n"), "\r", "\n")
	if strings.Count(request, "`")%2 != 0 {
		return nil, &Refusal{Reason: "a backquote has no partner", Hint: "put a command between two backquotes: `make check`"}
	}
	c := newChart(theGrammar(), strings.TrimSpace(request))
	if len(c.ts) > maxTokens {
		return nil, &Refusal{Reason: "the request has too many words", Hint: "write one workflow at a time"}
	}
	r := read(c, c.cover())
	if len(r.problems) > 0 {
		return nil, r.refusal()
	}
	out := &phrased{plan: r.p, yaml: r.p.write(), notes: r.p.notes}
	if r.audit(out.yaml); len(r.problems) > 0 {
		return nil, r.refusal()
	}
	if problem := check(out.yaml); problem != "" {
		return nil, &Refusal{Reason: "what came of it is no valid workflow: " + firstLine(problem), Hint: "put commands in backquotes: run `cargo test`"}
	}
	for _, t := range c.ts {
		if t.mended {
			out.notes = append(out.notes, "“"+t.text+"” was read as “"+t.word+"”")
		}
	}
	for _, j := range r.p.jobs {
		for _, os := range j.os {
			if strings.HasPrefix(os, "windows") || strings.HasPrefix(os, "macos") {
				out.notes = append(out.notes, "jobs for "+os+" are for GitHub's machines: Hearth runs Linux")
			}
		}
	}
	return out, nil
}

// read makes a plan of fragments.
func read(c *chart, nodes []*node) *reader {
	r := &reader{c: c, nodes: nodes, p: &plan{request: c.src}, parallel: map[int]bool{}, serial: map[int]bool{}, separate: map[int]bool{},
		ordered: map[int]bool{}}
	r.run()
	r.resolve()
	return r
}

// refusal names everything that stands against a request.
func (r *reader) refusal() *Refusal {
	first := r.problems[0]
	first.More = r.problems[1:]
	return &first
}

// maxTokens bounds the work that a request can cause.
const maxTokens = 600

func shellQuote(s string) string {
	if regexp.MustCompile(`^[A-Za-z0-9_./:=@%+-]+$`).MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
