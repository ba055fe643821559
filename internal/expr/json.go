package expr

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// JSON nests at most this deep. GitHub's reader stops fromJSON at 64.
const (
	maxJSONDepth     = 512
	maxFromJSONDepth = 64
)

// ParseJSON reads one JSON document. The order of keys is kept; of two keys that
// differ in case only the later value wins, at the place and in the spelling of
// the first.
func ParseJSON(b []byte) (Value, error) {
	return parseJSON(string(b), false)
}

// parseJSON reads JSON; lenient accepts what GitHub's reader accepts in fromJSON
// beyond JSON: comments, single quotes, bare keys, trailing commas, NaN and
// Infinity, and anything after the first value.
func parseJSON(s string, lenient bool) (Value, error) {
	p := jsonParser{s: s, lenient: lenient, max: maxJSONDepth}
	if lenient {
		p.max = maxFromJSONDepth
	}
	if err := p.space(); err != nil {
		return Value{}, err
	}
	if p.i == len(p.s) {
		return Value{}, p.errorf("the input is empty")
	}
	v, err := p.value(1)
	if err != nil {
		return Value{}, err
	}
	if !lenient {
		if err := p.space(); err != nil {
			return Value{}, err
		}
		if p.i < len(p.s) {
			return Value{}, p.errorf("unexpected %s after the value", p.here())
		}
	}
	return v, nil
}

type jsonParser struct {
	s       string
	i       int
	lenient bool
	max     int
}

func (p *jsonParser) errorf(format string, args ...any) error {
	before := p.s[:min(p.i, len(p.s))]
	line := 1 + strings.Count(before, "\n")
	col := p.i - strings.LastIndexByte(before, '\n')
	return fmt.Errorf("invalid JSON: %s, line %d, position %d", fmt.Sprintf(format, args...), line, col)
}

func (p *jsonParser) here() string {
	if p.i >= len(p.s) {
		return "end"
	}
	r, _ := utf8.DecodeRuneInString(p.s[p.i:])
	return strconv.QuoteRune(r)
}

func (p *jsonParser) space() error {
	for p.i < len(p.s) {
		switch c := p.s[p.i]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			p.i++
		case c == '/' && p.lenient:
			rest := p.s[p.i:]
			switch {
			case strings.HasPrefix(rest, "//"):
				if n := strings.IndexAny(rest, "\r\n"); n >= 0 {
					p.i += n
				} else {
					p.i = len(p.s)
				}
			case strings.HasPrefix(rest, "/*"):
				n := strings.Index(rest[2:], "*/")
				if n < 0 {
					return p.errorf("a comment is not closed")
				}
				p.i += n + 4
			default:
				return p.errorf("unexpected '/'")
			}
		case p.lenient && c >= utf8.RuneSelf || p.lenient && (c == '\v' || c == '\f'):
			r, n := utf8.DecodeRuneInString(p.s[p.i:])
			if !unicode.IsSpace(r) && r != '\uFEFF' {
				return nil
			}
			p.i += n
		default:
			return nil
		}
	}
	return nil
}

func (p *jsonParser) value(depth int) (Value, error) {
	if p.i >= len(p.s) {
		return Value{}, p.errorf("unexpected end")
	}
	switch c := p.s[p.i]; {
	case c == '{' || c == '[':
		if depth > p.max {
			return Value{}, p.errorf("nested more than %d deep", p.max)
		}
		if c == '{' {
			return p.object(depth)
		}
		return p.array(depth)
	case c == '"' || c == '\'' && p.lenient:
		s, err := p.str(c)
		return String(s), err
	case c == '-' || isDigit(c) || p.lenient && (c == '.' || c == '+'):
		return p.number()
	}
	for _, w := range [...]struct {
		word string
		v    Value
	}{
		{"null", Null()}, {"true", Bool(true)}, {"false", Bool(false)},
		{"NaN", Number(math.NaN())}, {"Infinity", Number(math.Inf(1))}, {"undefined", Null()},
	} {
		if strings.HasPrefix(p.s[p.i:], w.word) && (p.lenient || w.word[0] >= 'a' && w.word != "undefined") {
			if end := p.i + len(w.word); end == len(p.s) || !identByte(p.s[end]) {
				p.i = end
				return w.v, nil
			}
		}
	}
	return Value{}, p.errorf("unexpected %s", p.here())
}

func identByte(c byte) bool {
	return c == '_' || c == '$' || isDigit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= utf8.RuneSelf
}

func (p *jsonParser) object(depth int) (Value, error) {
	p.i++
	m := NewMap()
	for first := true; ; first = false {
		if err := p.space(); err != nil {
			return Value{}, err
		}
		if p.i >= len(p.s) {
			return Value{}, p.errorf("an object is not closed")
		}
		if p.s[p.i] == '}' && (first || p.lenient) {
			p.i++
			return Object(m), nil
		}
		key, err := p.key()
		if err != nil {
			return Value{}, err
		}
		if err := p.space(); err != nil {
			return Value{}, err
		}
		if p.i >= len(p.s) || p.s[p.i] != ':' {
			return Value{}, p.errorf("expected ':' after the key, found %s", p.here())
		}
		p.i++
		if err := p.space(); err != nil {
			return Value{}, err
		}
		v, err := p.value(depth + 1)
		if err != nil {
			return Value{}, err
		}
		m.Set(key, v)
		if err := p.space(); err != nil {
			return Value{}, err
		}
		if p.i < len(p.s) && p.s[p.i] == ',' {
			p.i++
			continue
		}
		if p.i < len(p.s) && p.s[p.i] == '}' {
			p.i++
			return Object(m), nil
		}
		return Value{}, p.errorf("expected ',' or '}' in an object, found %s", p.here())
	}
}

func (p *jsonParser) key() (string, error) {
	c := p.s[p.i]
	if c == '"' || c == '\'' && p.lenient {
		return p.str(c)
	}
	start := p.i
	if p.lenient {
		for p.i < len(p.s) && identByte(p.s[p.i]) {
			p.i++
		}
	}
	if p.i == start {
		return "", p.errorf("expected a key, found %s", p.here())
	}
	return p.s[start:p.i], nil
}

func (p *jsonParser) array(depth int) (Value, error) {
	p.i++
	items := []Value{}
	for first := true; ; first = false {
		if err := p.space(); err != nil {
			return Value{}, err
		}
		if p.i >= len(p.s) {
			return Value{}, p.errorf("an array is not closed")
		}
		if p.s[p.i] == ']' && (first || p.lenient) {
			p.i++
			return Array(items), nil
		}
		v, err := p.value(depth + 1)
		if err != nil {
			return Value{}, err
		}
		items = append(items, v)
		if err := p.space(); err != nil {
			return Value{}, err
		}
		if p.i < len(p.s) && p.s[p.i] == ',' {
			p.i++
			continue
		}
		if p.i < len(p.s) && p.s[p.i] == ']' {
			p.i++
			return Array(items), nil
		}
		return Value{}, p.errorf("expected ',' or ']' in an array, found %s", p.here())
	}
}

func (p *jsonParser) number() (Value, error) {
	start := p.i
	for p.i < len(p.s) && (identByte(p.s[p.i]) || p.s[p.i] == '.' || p.s[p.i] == '-' || p.s[p.i] == '+') {
		p.i++
	}
	s := p.s[start:p.i]
	if p.lenient {
		if s == "-Infinity" {
			return Number(math.Inf(-1)), nil
		}
		if f := parseNumber(s); !math.IsNaN(f) && s[0] != '+' {
			return Number(f), nil
		}
	} else if strictNumber(s) {
		f, _ := strconv.ParseFloat(s, 64)
		return Number(f), nil
	}
	p.i = start
	return Value{}, p.errorf("invalid number %q", clip(s))
}

// strictNumber is JSON's grammar: no leading zero, plus, or bare point.
func strictNumber(s string) bool {
	if !decimal(s) || s[0] == '+' {
		return false
	}
	d := strings.TrimPrefix(s, "-")
	if d[0] == '.' || len(d) > 1 && d[0] == '0' && isDigit(d[1]) {
		return false
	}
	if i := strings.IndexByte(d, '.'); i >= 0 && (i+1 == len(d) || !isDigit(d[i+1])) {
		return false
	}
	return true
}

func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	n := most
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

func (p *jsonParser) str(quote byte) (string, error) {
	start := p.i
	p.i++
	for i := p.i; i < len(p.s); i++ {
		c := p.s[i]
		if c == quote {
			s := p.s[p.i:i]
			p.i = i + 1
			if !utf8.ValidString(s) {
				s = strings.ToValidUTF8(s, "\uFFFD")
			}
			return s, nil
		}
		if c == '\\' || c < 0x20 && !p.lenient {
			break
		}
	}
	var b strings.Builder
	for p.i < len(p.s) {
		c := p.s[p.i]
		switch {
		case c == quote:
			p.i++
			s := b.String()
			if !utf8.ValidString(s) {
				s = strings.ToValidUTF8(s, "\uFFFD")
			}
			return s, nil
		case c == '\\':
			if err := p.escape(&b); err != nil {
				return "", err
			}
		case c < 0x20 && !p.lenient:
			return "", p.errorf("a control character in a string must be escaped")
		default:
			b.WriteByte(c)
			p.i++
		}
	}
	p.i = start
	return "", p.errorf("a string is not closed")
}

func (p *jsonParser) escape(b *strings.Builder) error {
	if p.i+1 >= len(p.s) {
		return p.errorf("a string is not closed")
	}
	c := p.s[p.i+1]
	switch c {
	case '"', '\\', '/':
		b.WriteByte(c)
	case '\'':
		if !p.lenient {
			return p.errorf("invalid escape")
		}
		b.WriteByte(c)
	case 'b':
		b.WriteByte('\b')
	case 'f':
		b.WriteByte('\f')
	case 'n':
		b.WriteByte('\n')
	case 'r':
		b.WriteByte('\r')
	case 't':
		b.WriteByte('\t')
	case 'u':
		r, ok := p.hex4(p.i + 2)
		if !ok {
			return p.errorf("invalid \\u escape")
		}
		p.i += 6
		if utf16.IsSurrogate(r) {
			if strings.HasPrefix(p.s[p.i:], `\u`) {
				if r2, ok := p.hex4(p.i + 2); ok {
					if full := utf16.DecodeRune(r, r2); full != utf8.RuneError {
						p.i += 6
						b.WriteRune(full)
						return nil
					}
				}
			}
			r = utf8.RuneError
		}
		b.WriteRune(r)
		return nil
	default:
		return p.errorf("invalid escape")
	}
	p.i += 2
	return nil
}

func (p *jsonParser) hex4(at int) (rune, bool) {
	if at+4 > len(p.s) || !allDigits(p.s[at:at+4], 16) {
		return 0, false
	}
	n, err := strconv.ParseUint(p.s[at:at+4], 16, 32)
	return rune(n), err == nil
}

// JSON is v as toJSON writes it: two spaces a level, numbers with 15 digits.
func (v Value) JSON() string {
	b, _ := appendIndented(nil, v, 0, math.MaxInt)
	return string(b)
}

// appendIndented writes v as toJSON does and stops, with false, as soon as more
// than most bytes are written.
func appendIndented(b []byte, v Value, level, most int) ([]byte, bool) {
	line := func(level int) {
		b = append(b, '\n')
		for range level {
			b = append(b, ' ', ' ')
		}
	}
	switch v.kind {
	case KindArray:
		items := v.AsArray()
		if len(items) == 0 {
			return append(b, '[', ']'), len(b)+2 <= most
		}
		b = append(b, '[')
		for i, e := range items {
			if i > 0 {
				b = append(b, ',')
			}
			line(level + 1)
			var ok bool
			if b, ok = appendIndented(b, e, level+1, most); !ok {
				return b, false
			}
		}
		line(level)
		return append(b, ']'), len(b)+1 <= most
	case KindObject:
		if v.obj.Len() == 0 {
			return append(b, '{', '}'), len(b)+2 <= most
		}
		b = append(b, '{')
		for i, k := range v.obj.keys {
			if i > 0 {
				b = append(b, ',')
			}
			line(level + 1)
			b = appendQuoted(b, k)
			b = append(b, ':', ' ')
			var ok bool
			if b, ok = appendIndented(b, v.obj.vals[i], level+1, most); !ok {
				return b, false
			}
		}
		line(level)
		return append(b, '}'), len(b)+1 <= most
	}
	b = appendPrimitive(b, v)
	return b, len(b) <= most
}

func appendPrimitive(b []byte, v Value) []byte {
	switch v.kind {
	case KindNull:
		return append(b, "null"...)
	case KindString:
		return appendQuoted(b, v.str)
	}
	return append(b, v.ToString()...)
}

// appendQuoted writes a JSON string with the escapes that GitHub's writer uses.
func appendQuoted(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && n == 1:
				b = append(b, s[start:i]...)
				b = append(b, "\uFFFD"...)
				start = i + 1
			case r == 0x85 || r == 0x2028 || r == 0x2029:
				b = append(b, s[start:i]...)
				b = append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
				start = i + n
			}
			i += n
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, '\\', 'b')
		case '\f':
			b = append(b, '\\', 'f')
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

// MarshalJSON writes v as compact JSON with all digits of its numbers. NaN and
// the infinities, which JSON lacks, are written as null.
func (v Value) MarshalJSON() ([]byte, error) { return appendCompact(nil, v), nil }

func appendCompact(b []byte, v Value) []byte {
	switch v.kind {
	case KindNumber:
		if math.IsNaN(v.num) || math.IsInf(v.num, 0) {
			return append(b, "null"...)
		}
		format := byte('f')
		if a := math.Abs(v.num); a != 0 && (a < 1e-6 || a >= 1e21) {
			format = 'e'
		}
		return strconv.AppendFloat(b, v.num, format, -1, 64)
	case KindArray:
		b = append(b, '[')
		for i, e := range v.AsArray() {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendCompact(b, e)
		}
		return append(b, ']')
	case KindObject:
		b = append(b, '{')
		for i, k := range v.obj.keys {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendQuoted(b, k)
			b = append(b, ':')
			b = appendCompact(b, v.obj.vals[i])
		}
		return append(b, '}')
	}
	return appendPrimitive(b, v)
}

// UnmarshalJSON reads any JSON value, see [ParseJSON].
func (v *Value) UnmarshalJSON(b []byte) error {
	r, err := ParseJSON(b)
	if err != nil {
		return err
	}
	*v = r
	return nil
}

// MarshalJSON writes the map as a JSON object in its order.
func (m *Map) MarshalJSON() ([]byte, error) {
	if m == nil {
		return []byte("null"), nil
	}
	return appendCompact(nil, Object(m)), nil
}

// UnmarshalJSON reads a JSON object.
func (m *Map) UnmarshalJSON(b []byte) error {
	if bytes.Equal(bytes.TrimSpace(b), []byte("null")) {
		return nil
	}
	v, err := ParseJSON(b)
	if err != nil {
		return err
	}
	if v.kind != KindObject {
		return fmt.Errorf("expected a JSON object, found %s", v.kind)
	}
	exact := m.exact
	*m = *v.obj
	if exact != m.exact {
		m.exact = exact
		if m.index != nil {
			m.reindex()
		}
	}
	return nil
}
