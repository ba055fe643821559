package lint

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/workflow"
)

// Formats lists what [Report.Write] can write.
func Formats() []string { return []string{"text", "json", "sarif"} }

// Write prints the report in a format of [Formats].
func (r *Report) Write(w io.Writer, format string) error {
	switch format {
	case "", "text":
		return r.text(w)
	case "json":
		return r.json(w)
	case "sarif":
		return r.sarif(w)
	}
	return fmt.Errorf("lint: unknown format %q; there are %s", format, strings.Join(Formats(), ", "))
}

// text prints one line an editor can jump to, then the source line with a caret,
// then the hint:
//
//	ci.yml:7:9: error: Unexpected value 'runn' [unexpected-key]
//	    7 |       - runn: echo hi
//	      |         ^~~~
//	      = hint: Did you mean 'run'?
func (r *Report) text(w io.Writer) error {
	b := bufio.NewWriter(w)
	for _, d := range r.Diagnostics {
		p := place(d)
		fmt.Fprintf(b, "%s:", d.File)
		if !p.IsZero() {
			fmt.Fprintf(b, "%d:%d:", p.Line, p.Col)
		}
		fmt.Fprintf(b, " %s: %s [%s]\n", d.Severity, d.Message, d.Rule)
		near := d.Near
		if near.IsZero() {
			near = p
		}
		if line, ok := r.line(d.File, near.Line); ok {
			pad, mark := caret(line, near.Col)
			fmt.Fprintf(b, "%5d | %s\n      | %s%s\n", near.Line, line, pad, mark)
		}
		if d.Hint != "" {
			fmt.Fprintf(b, "      = hint: %s\n", d.Hint)
		}
		for _, s := range d.Via {
			fmt.Fprintf(b, "      = called from %s:%d:%d\n", s.File, s.Pos.Line, s.Pos.Col)
		}
	}
	return b.Flush()
}

// line returns a line of a file that was read, without its end, cut when long.
func (r *Report) line(file string, n int) (string, bool) {
	src, ok := r.sources[file]
	if !ok || n < 1 {
		return "", false
	}
	for range n - 1 {
		i := bytes.IndexByte(src, '\n')
		if i < 0 {
			return "", false
		}
		src = src[i+1:]
	}
	if i := bytes.IndexByte(src, '\n'); i >= 0 {
		src = src[:i]
	}
	line := strings.TrimRight(strings.ToValidUTF8(string(src), "�"), "\r")
	const most = 200
	if utf8.RuneCountInString(line) > most {
		line = string([]rune(line)[:most]) + "…"
	}
	// A file is not trusted with the terminal.
	return strings.Map(func(c rune) rune {
		if c < ' ' && c != '\t' || c == 0x7f {
			return '�'
		}
		return c
	}, line), true
}

// caret returns the space before a word and its underline. Tabs stay tabs, so
// that the mark stands below what it means.
func caret(line string, col int) (pad, mark string) {
	runes := []rune(line)
	at := min(max(col-1, 0), len(runes))
	for _, c := range runes[:at] {
		if c == '\t' {
			pad += "\t"
		} else {
			pad += " "
		}
	}
	width := 0
	rest := string(runes[at:])
	if strings.HasPrefix(rest, "${{") {
		if i := strings.Index(rest, "}}"); i >= 0 {
			width = utf8.RuneCountInString(rest[:i+2])
		}
	}
	if width == 0 {
		for _, c := range rest {
			if c == ' ' || c == '\t' || c == ':' && width > 0 || c == ',' || c == ']' || c == '}' {
				break
			}
			width++
		}
	}
	return pad, "^" + strings.Repeat("~", max(width-1, 0))
}

// report is the JSON form.
type report struct {
	Version     int          `json:"version"`
	Valid       bool         `json:"valid"`
	Files       []string     `json:"files"`
	Diagnostics []diagnostic `json:"diagnostics"`
}

type diagnostic struct {
	File     string          `json:"file"`
	Line     int             `json:"line,omitempty"`
	Column   int             `json:"column,omitempty"`
	Near     *workflow.Pos   `json:"near,omitempty"` // where to look, when more exact
	Severity string          `json:"severity"`
	Rule     string          `json:"rule"`
	Message  string          `json:"message"`
	Hint     string          `json:"hint,omitempty"`
	Source   string          `json:"source,omitempty"`
	Via      []workflow.Site `json:"via,omitempty"`
}

func (r *Report) json(w io.Writer) error {
	out := report{Version: 1, Valid: !r.Invalid(), Files: r.Files, Diagnostics: []diagnostic{}}
	for _, d := range r.Diagnostics {
		p := place(d)
		j := diagnostic{File: d.File, Line: p.Line, Column: p.Col, Severity: d.Severity.String(),
			Rule: d.Rule, Message: d.Message, Hint: d.Hint, Via: d.Via}
		if d.Near != p && !d.Near.IsZero() {
			j.Near = &d.Near
		}
		j.Source, _ = r.line(d.File, cmpPos(d.Near, p).Line)
		out.Diagnostics = append(out.Diagnostics, j)
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

func cmpPos(a, b workflow.Pos) workflow.Pos {
	if a.IsZero() {
		return b
	}
	return a
}

// The parts of SARIF 2.1.0 that code scanning reads.
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool       sarifTool     `json:"tool"`
		ColumnKind string        `json:"columnKind"`
		Results    []sarifResult `json:"results"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name           string      `json:"name"`
		InformationURI string      `json:"informationUri"`
		Rules          []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID               string       `json:"id"`
		ShortDescription sarifMessage `json:"shortDescription"`
	}
	sarifMessage struct {
		Text string `json:"text"`
	}
	sarifResult struct {
		RuleID    string          `json:"ruleId"`
		RuleIndex int             `json:"ruleIndex"`
		Level     string          `json:"level"`
		Message   sarifMessage    `json:"message"`
		Locations []sarifLocation `json:"locations"`
	}
	sarifLocation struct {
		PhysicalLocation sarifPhysical `json:"physicalLocation"`
	}
	sarifPhysical struct {
		ArtifactLocation sarifArtifact `json:"artifactLocation"`
		Region           *sarifRegion  `json:"region,omitempty"`
	}
	sarifArtifact struct {
		URI string `json:"uri"`
	}
	sarifRegion struct {
		StartLine   int `json:"startLine"`
		StartColumn int `json:"startColumn"`
	}
)

func (r *Report) sarif(w io.Writer) error {
	var ids []string
	for _, d := range r.Diagnostics {
		if !slices.Contains(ids, d.Rule) {
			ids = append(ids, d.Rule)
		}
	}
	slices.Sort(ids)
	run := sarifRun{ColumnKind: "unicodeCodePoints", Results: []sarifResult{}}
	run.Tool.Driver = sarifDriver{Name: "hearth lint", InformationURI: "https://github.com/hearth-ci/hearth", Rules: []sarifRule{}}
	for _, id := range ids {
		run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, sarifRule{ID: id, ShortDescription: sarifMessage{RuleText(id)}})
	}
	for _, d := range r.Diagnostics {
		level := "error"
		if d.Severity == workflow.Advice {
			level = "note"
		}
		text := d.Message
		if d.Hint != "" {
			text += "\n" + d.Hint
		}
		loc := sarifPhysical{ArtifactLocation: sarifArtifact{URI: uri(d.File)}}
		if p := cmpPos(d.Near, place(d)); !p.IsZero() {
			loc.Region = &sarifRegion{p.Line, p.Col}
		}
		run.Results = append(run.Results, sarifResult{
			RuleID: d.Rule, RuleIndex: slices.Index(ids, d.Rule), Level: level,
			Message: sarifMessage{text}, Locations: []sarifLocation{{loc}},
		})
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(sarifLog{
		Schema:  "https://json.schemastore.org/sarif-2.1.0.json",
		Version: "2.1.0",
		Runs:    []sarifRun{run},
	})
}

// uri writes a path as a relative reference.
func uri(path string) string {
	var b strings.Builder
	for _, c := range []byte(filepath.ToSlash(path)) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("/-._~@+", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// RuleText says what a rule is about.
func RuleText(id string) string {
	switch id {
	case "yaml-syntax":
		return "The file is not valid YAML."
	case "yaml-tag":
		return "A YAML tag is not supported, or does not fit its value."
	case "unexpected-key":
		return "A key is not known here."
	case "unexpected-value":
		return "A value is not allowed here."
	case "unexpected-type":
		return "Another kind of value is expected here."
	case "missing-key":
		return "A required key is missing."
	case "duplicate-key":
		return "A key is given twice."
	case "expression":
		return "An expression is wrong, or not allowed here."
	case "limit":
		return "A limit of GitHub's is passed."
	case "id":
		return "An id of a job or step is not allowed."
	case "needs":
		return "The graph of needs cannot be run."
	case "uses":
		return "What is used cannot be found, or is not written as it must be."
	case "permissions":
		return "A called workflow asks for more than its caller may."
	case "input", "secret":
		return "A call does not fit what the called workflow takes."
	case "cron":
		return "A cron expression is not valid."
	case "filter":
		return "Filters that exclude each other are given."
	case "placeholder":
		return "A placeholder of a starter workflow was not filled in."
	case "pattern":
		return "A filter pattern is not valid, or matches nothing."
	case "input-default", "input-options":
		return "The declaration of an input does not fit its type."
	case ruleUnpinned:
		return "A third-party action is not pinned to a commit."
	case ruleInjection:
		return "Text that outsiders write becomes part of a script."
	case rulePermission:
		return "A token may do more than the job does."
	case ruleCondition:
		return "A condition is always true or never."
	case ruleUnknown:
		return "An expression reads what does not exist."
	case ruleDeprecated:
		return "A workflow command is no longer supported."
	}
	return "A rule of GitHub's for " + strings.ReplaceAll(id, "-", " ") + "."
}
