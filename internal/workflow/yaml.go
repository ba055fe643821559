package workflow

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// This file and lock.go are the only ones that know the YAML library. The library scans and
// composes nodes with their positions and styles; what a scalar means is decided
// here, by the YAML 1.2 core schema and GitHub's limits.

// loadYAML parses src into the root node of its only document. Anything wrong,
// panics of the library included, is one diagnostic.
func loadYAML(file string, src []byte) (root *yaml.Node, diag *Diagnostic) {
	fail := func(p Pos, msg, hint string) *Diagnostic {
		return &Diagnostic{File: file, Pos: p, Near: p, Message: msg, Hint: hint, Rule: "yaml-syntax"}
	}
	defer func() {
		if r := recover(); r != nil {
			root, diag = nil, fail(Pos{}, fmt.Sprintf("The file could not be read as YAML: %v", r), "")
		}
	}()
	if off := badUTF8(src); off >= 0 {
		return nil, fail(posAt(src, off), "The file is not valid UTF-8", "Save the file as UTF-8.")
	}
	if off, c := badControl(src); off >= 0 {
		return nil, fail(posAt(src, off), fmt.Sprintf("Control characters are not allowed (U+%04X)", c), "Remove the character.")
	}
	src = knownVersion(src)
	// A `#` right behind a bracket or a quote starts a comment for GitHub, but
	// not for the library: such comments are blanked, which moves nothing.
	for range 20 {
		var err error
		if root, err = compose(src); err == nil {
			return root, nil
		}
		p, msg, hint := yamlError(err)
		off, ok := comment(src, p)
		if !ok || !strings.Contains(msg, "comment without preceding whitespace") {
			return nil, fail(p, msg, hint)
		}
		end := len(src)
		if i := bytes.IndexByte(src[off:], '\n'); i >= 0 {
			end = off + i
		}
		src = bytes.Clone(src)
		for i := off; i < end; i++ {
			if src[i] != '\r' {
				src[i] = ' '
			}
		}
	}
	return nil, fail(Pos{}, "Too many comments without a space before them", "Write a space before each #.")
}

// knownVersion makes %YAML 1.2 and later 1.1, the only version the library takes.
// What differs between them is decided here, not there.
func knownVersion(src []byte) []byte {
	for rest := bytes.TrimPrefix(src, []byte("\ufeff")); len(rest) > 0; {
		line, after, _ := bytes.Cut(rest, []byte("\n"))
		switch {
		case bytes.HasPrefix(line, []byte("%YAML 1.")) && len(line) >= 9 && line[8] >= '2' && line[8] <= '9':
			out := bytes.Clone(src)
			out[len(src)-len(rest)+8] = '1'
			return out
		case len(bytes.TrimSpace(line)) == 0, line[0] == '#', line[0] == '%':
			rest = after
		default:
			return src
		}
	}
	return src
}

// comment returns the offset of the # at or next to p.
func comment(src []byte, p Pos) (int, bool) {
	if p.Line < 1 {
		return 0, false
	}
	off := 0
	for line := 1; line < p.Line; line++ {
		i := bytes.IndexByte(src[off:], '\n')
		if i < 0 {
			return 0, false
		}
		off += i + 1
	}
	for col := 1; col < p.Col && off < len(src); col++ {
		_, n := utf8.DecodeRune(src[off:])
		off += n
	}
	return off, off < len(src) && src[off] == '#'
}

// compose parses the only document of src.
func compose(src []byte) (*yaml.Node, error) {
	loader, err := yaml.NewLoader(bytes.NewReader(src), yaml.WithV4Defaults(), yaml.WithUniqueKeys(false))
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := loader.Load(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, &documentError{Pos{1, 1}, "Expected document start parse event", "The file is empty; a workflow needs at least `on` and `jobs`."}
	}
	var next yaml.Node
	switch err := loader.Load(&next); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, err
	default:
		p := Pos{next.Line, next.Column}
		if len(next.Content) > 0 {
			p = Pos{next.Content[0].Line, next.Content[0].Column}
		}
		return nil, &documentError{p, "Expected stream end parse event", "A workflow file holds one YAML document; remove what follows `---`."}
	}
	return doc.Content[0], nil
}

// documentError is a stream that does not hold exactly one document.
type documentError struct {
	pos       Pos
	msg, hint string
}

func (e *documentError) Error() string { return e.msg }

// yamlError turns an error of the library into position, message and hint.
func yamlError(err error) (Pos, string, string) {
	if de, ok := errors.AsType[*documentError](err); ok {
		return de.pos, de.msg, de.hint
	}
	le, ok := errors.AsType[*yaml.LoadError](err)
	if !ok {
		return Pos{}, err.Error(), ""
	}
	p := Pos{le.Mark.Line, le.Mark.Column}
	if p.Line == 0 {
		p = Pos{le.ContextMark.Line, le.ContextMark.Column}
	}
	if p.Line > 0 && p.Col == 0 {
		p.Col = 1
	}
	if p.Line == 0 {
		p = Pos{}
	}
	msg := le.Message
	if le.ContextMsg != "" {
		msg = le.ContextMsg + ", " + msg
	}
	if msg == "" {
		msg = "The file is not valid YAML"
	}
	msg = strings.ToUpper(msg[:1]) + msg[1:]
	hint := ""
	switch {
	case strings.Contains(le.Message, "mapping values are not allowed"):
		hint = "Check the indentation of this line and the one before; quote a text that contains `: `."
	case strings.Contains(le.Message, "cannot start any token"):
		hint = "YAML indents with spaces, not tabs; quote a text that starts with @, `, % or *."
	case strings.Contains(le.Message, "did not find expected key"), strings.Contains(le.Message, "could not find expected ':'"):
		hint = "Check the indentation of this line and the one before."
	case strings.Contains(le.Message, "unknown anchor"):
		hint = "An alias must come after the anchor it names; quote a text that starts with *."
	}
	return p, msg, hint
}

func badUTF8(src []byte) int {
	if utf8.Valid(src) {
		return -1
	}
	for i := 0; i < len(src); {
		r, n := utf8.DecodeRune(src[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

// badControl finds a character that YAML does not allow in a stream.
func badControl(src []byte) (int, rune) {
	for i, r := range string(src) {
		switch {
		case r == '\t' || r == '\n' || r == '\r' || r == 0x85:
		case r < 0x20, r >= 0x7f && r < 0xa0, r == 0xfffe, r == 0xffff:
			return i, r
		}
	}
	return -1, 0
}

func posAt(src []byte, off int) Pos {
	before := src[:off]
	line := 1 + bytes.Count(before, []byte("\n"))
	if i := bytes.LastIndexByte(before, '\n'); i >= 0 {
		before = before[i+1:]
	}
	return Pos{line, 1 + utf8.RuneCount(before)}
}

// scalar says what a scalar node is, by its explicit tag or, when plain, by the
// YAML 1.2 core schema (on, yes and 2002-12-14 are strings). A problem is
// given in GitHub's words.
func scalar(n *yaml.Node) (v *Value, problem string) {
	v = &Value{Kind: String, Pos: Pos{n.Line, n.Column}, Str: n.Value}
	plain := n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
	tag := ""
	if n.Style&yaml.TaggedStyle != 0 || n.Tag == "!" {
		tag = n.Tag
		if rest, ok := strings.CutPrefix(tag, "!!"); ok {
			tag = "tag:yaml.org,2002:" + rest
		}
	}
	invalid := func() string {
		t := tag
		if t == "" {
			t = "tag:yaml.org,2002:int"
		}
		return fmt.Sprintf("The value '%s' on line %d and column %d is invalid for the type '%s'", n.Value, n.Line, n.Column, t)
	}
	switch tag {
	case "tag:yaml.org,2002:str":
		return v, ""
	case "":
		if !plain {
			return v, ""
		}
	default:
		if !plain {
			return nil, fmt.Sprintf("The scalar style '%s' on line %d and column %d is not valid with the tag '%s'", styleName(n.Style), n.Line, n.Column, tag)
		}
	}
	switch tag {
	case "":
		if isNull(n.Value) {
			v.Kind, v.Str = Null, ""
			return v, ""
		}
		if b, ok := parseBool(n.Value); ok {
			v.Kind, v.Bool, v.Str = Bool, b, ""
			return v, ""
		}
		f, ok, inRange := parseInt(n.Value)
		if !ok {
			f, ok = parseFloat(n.Value)
		}
		if !inRange {
			return nil, invalid()
		}
		if ok {
			v.Kind, v.Num, v.Str = Number, f, ""
		}
		return v, ""
	case "tag:yaml.org,2002:null":
		if !isNull(n.Value) {
			return nil, invalid()
		}
		v.Kind, v.Str = Null, ""
	case "tag:yaml.org,2002:bool":
		b, ok := parseBool(n.Value)
		if !ok {
			return nil, invalid()
		}
		v.Kind, v.Bool, v.Str = Bool, b, ""
	case "tag:yaml.org,2002:int":
		f, ok, inRange := parseInt(n.Value)
		if !ok || !inRange {
			return nil, invalid()
		}
		v.Kind, v.Num, v.Str = Number, f, ""
	case "tag:yaml.org,2002:float":
		f, ok := parseFloat(n.Value)
		if !ok {
			return nil, invalid()
		}
		v.Kind, v.Num, v.Str = Number, f, ""
	default:
		return nil, fmt.Sprintf("Unexpected tag '%s'", tag)
	}
	return v, ""
}

func styleName(s yaml.Style) string {
	switch {
	case s&yaml.SingleQuotedStyle != 0:
		return "SingleQuoted"
	case s&yaml.DoubleQuotedStyle != 0:
		return "DoubleQuoted"
	case s&yaml.LiteralStyle != 0:
		return "Literal"
	case s&yaml.FoldedStyle != 0:
		return "Folded"
	}
	return "Plain"
}

func isNull(s string) bool {
	switch s {
	case "", "null", "Null", "NULL", "~":
		return true
	}
	return false
}

func parseBool(s string) (b, ok bool) {
	switch s {
	case "true", "True", "TRUE":
		return true, true
	case "false", "False", "FALSE":
		return false, true
	}
	return false, false
}

// parseInt reads [-+]?[0-9]+, 0x… and 0o…. The latter two must fit 32 bits, as
// on GitHub; inRange is false when they do not.
func parseInt(s string) (f float64, ok, inRange bool) {
	if rest, is := strings.CutPrefix(s, "0x"); is && rest != "" {
		if strings.Trim(rest, "0123456789abcdefABCDEF") != "" {
			return 0, false, true
		}
		rest = strings.TrimLeft(rest, "0")
		if len(rest) > 8 {
			return 0, true, false
		}
		u, _ := strconv.ParseUint("0"+rest, 16, 64)
		return float64(int32(uint32(u))), true, true
	}
	if rest, is := strings.CutPrefix(s, "0o"); is && rest != "" {
		if strings.Trim(rest, "01234567") != "" {
			return 0, false, true
		}
		u, err := strconv.ParseUint(rest, 8, 32)
		if err != nil {
			return 0, true, false
		}
		return float64(int32(uint32(u))), true, true
	}
	digits := s
	if digits != "" && (digits[0] == '-' || digits[0] == '+') {
		digits = digits[1:]
	}
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false, true
	}
	f, _ = strconv.ParseFloat(s, 64) // out of range gives ±Inf, as wanted
	return f, true, true
}

// parseFloat reads [-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?, .inf and
// .nan. What is too large is infinite.
func parseFloat(s string) (float64, bool) {
	switch s {
	case ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF":
		return math.Inf(1), true
	case "-.inf", "-.Inf", "-.INF":
		return math.Inf(-1), true
	case ".nan", ".NaN", ".NAN":
		return math.NaN(), true
	}
	i := 0
	digits := func() bool {
		start := i
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		return i > start
	}
	if i < len(s) && (s[i] == '-' || s[i] == '+') {
		i++
	}
	whole := digits()
	dot := i < len(s) && s[i] == '.'
	if dot {
		i++
	}
	fraction := digits()
	if !whole && !(dot && fraction) {
		return 0, false
	}
	if i < len(s) {
		if s[i] != 'e' && s[i] != 'E' {
			return 0, false
		}
		i++
		if i < len(s) && (s[i] == '-' || s[i] == '+') {
			i++
		}
		if !digits() || i < len(s) {
			return 0, false
		}
	}
	f, _ := strconv.ParseFloat(s, 64)
	return f, true
}
