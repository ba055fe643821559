// Package command is how a step talks back to the runner: workflow commands in
// its output (::name key=value::data), the files named by GITHUB_ENV,
// GITHUB_OUTPUT and their like, and problem matchers.
//
// Everything here is pure: text in, [Effect] values out. The engine carries the
// effects out, masks what they print, and reads files in the guest. Text comes
// from a hostile place: nothing here keeps more of it than a line, and every
// parser is linear and bounded.
//
//   - [Parse] reads one command (command.go).
//   - [Processor] is one step's view of its output lines: which commands are in
//     force, which line is only text, what follows from each (process.go).
//   - [ParsePairs], [ParsePaths] read the command files (file.go).
//   - [Matchers] and [Scanner] turn output lines into annotations (matcher.go).
//     What their regular expressions may cost is bounded for the whole job: in
//     size, before they are compiled, and in time, of the lines they are tried on.
//
// Names, rules and wordings are those of GitHub's runner, since workflows and
// people rely on both.
package command

import (
	"strconv"
	"strings"
)

// Command is one parsed workflow command.
type Command struct {
	Name string // in lower case
	// Properties by name in lower case, since GitHub compares them so.
	Properties map[string]string
	Data       string
}

// maxCommand is the longest line that is looked at as a command. GitHub has no
// such limit; a pipe line of megabytes that begins with :: is output.
const maxCommand = 4 << 20

// maxProperties is how many a command may have; the best known has seven.
const maxProperties = 50

// Parse reads a line as a command: "::name key=value,key=value::data", with
// white space before it, or the older "##[name key=value;key=value]data"
// anywhere in the line. known says which names, in lower case, are commands; a
// line with any other name is only text, as on GitHub.
func Parse(line string, known func(name string) bool) (Command, bool) {
	if len(line) > maxCommand {
		return Command{}, false
	}
	if rest, ok := strings.CutPrefix(strings.TrimLeft(line, " \t\r\v\f"), "::"); ok {
		if c, ok := colons.parse(rest, known); ok {
			return c, true
		}
	}
	if _, rest, ok := strings.Cut(line, "##["); ok {
		return hashes.parse(rest, known)
	}
	return Command{}, false
}

// form is one of the two ways to write a command, behind what it begins with.
type form struct {
	end, separator   string
	data, properties *strings.Replacer
}

var (
	colons = form{"::", ",", unescape, unescapeProperty}
	hashes = form{"]", ";", unescapeHashes, unescapeHashes}
)

func (f form) parse(rest string, known func(string) bool) (Command, bool) {
	head, data, ok := strings.Cut(rest, f.end)
	name, props, _ := strings.Cut(head, " ")
	name = strings.ToLower(name)
	if !ok || name == "" || !known(name) {
		return Command{}, false
	}
	c := Command{Name: name, Data: f.data.Replace(data)}
	c.properties(strings.TrimSpace(props), f.separator, f.properties)
	return c, true
}

// Each escape is undone once: %250A is the text %0A.
var (
	unescape         = strings.NewReplacer("%25", "%", "%0D", "\r", "%0A", "\n")
	unescapeProperty = strings.NewReplacer("%25", "%", "%0D", "\r", "%0A", "\n", "%3A", ":", "%2C", ",")
	unescapeHashes   = strings.NewReplacer("%25", "%", "%0D", "\r", "%0A", "\n", "%3B", ";", "%5D", "]")
)

func (c *Command) properties(s, sep string, un *strings.Replacer) {
	for pair := range strings.SplitSeq(s, sep) {
		key, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		// A property without a value is none, as on GitHub.
		if !ok || key == "" || value == "" || len(c.Properties) == maxProperties {
			continue
		}
		if c.Properties == nil {
			c.Properties = map[string]string{}
		}
		c.Properties[strings.ToLower(key)] = un.Replace(value)
	}
}

// Annotation is a notice, warning or error, perhaps about a place in a file.
type Annotation struct {
	Level   string // notice, warning, error
	Message string
	Title   string
	File    string // as the step wrote it
	// Line and EndLine, Column and EndColumn count from 1; 0: not said.
	Line, EndLine     int
	Column, EndColumn int
}

func (c Command) annotation() Annotation {
	number := func(key string) int {
		n, err := strconv.Atoi(c.Properties[key])
		if err != nil || n < 0 {
			return 0
		}
		return n
	}
	a := Annotation{
		Level: c.Name, Message: c.Data,
		Title: c.Properties["title"], File: c.Properties["file"],
		Line: number("line"), EndLine: number("endline"),
		Column: number("col"), EndColumn: number("endcolumn"),
	}
	a.place()
	return a
}

// place makes the place one that there can be, as GitHub does: an end alone is all there
// is, columns are of one line, and an end before the beginning is no place.
func (a *Annotation) place() {
	if a.Line == 0 {
		a.Line = a.EndLine
	}
	if a.Column == 0 {
		a.Column = a.EndColumn
	}
	if a.Line == 0 || a.EndLine != 0 && a.EndLine != a.Line {
		a.Column, a.EndColumn = 0, 0
	}
	if a.EndLine != 0 && a.EndLine < a.Line {
		a.Line, a.EndLine = 0, 0
	}
	if a.EndColumn != 0 && a.EndColumn < a.Column {
		a.Column, a.EndColumn = 0, 0
	}
}
