package mask

import (
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/hearth-ci/hearth/internal/ci"
)

// jsonOf is a JSON string of s as programs write it: ASCII alone or not, in the
// digits of format.
func jsonOf(s string, ascii bool, format string) string {
	short := map[rune]string{'"': `\"`, '\\': `\\`, '\n': `\n`, '\r': `\r`, '\t': `\t`, '\b': `\b`, '\f': `\f`}
	var b strings.Builder
	for _, r := range s {
		switch {
		case short[r] != "":
			b.WriteString(short[r])
		case r < 0x20 || ascii && r >= 0x7f:
			for _, u := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&b, format, u)
			}
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// each writes every byte of s in a format, with something between.
func each(s, format, between string) string {
	var all []string
	for i := range len(s) {
		all = append(all, fmt.Sprintf(format, s[i]))
	}
	return strings.Join(all, between)
}

// TestForms: in every form that the package comment promises a secret is masked
// from its first byte to its last.
func TestForms(t *testing.T) {
	replace := func(pairs ...string) func(string) string { return strings.NewReplacer(pairs...).Replace }
	percent := func(keep, format string) func(string) string {
		return func(s string) string {
			var b strings.Builder
			for i := range len(s) {
				if isAlnum(s[i]) || strings.IndexByte(keep, s[i]) >= 0 {
					b.WriteByte(s[i])
				} else {
					fmt.Fprintf(&b, format, s[i])
				}
			}
			return b.String()
		}
	}
	markup := func(more ...string) func(string) string {
		return replace(append([]string{"&", "&amp;", "<", "&lt;", ">", "&gt;"}, more...)...)
	}
	again := func(f func(string) string) func(string) string {
		return func(s string) string { return replace(`\`, `\\`, `"`, `\"`)(f(s)) }
	}
	small := func(s string) string { return jsonOf(s, true, `\u%04x`) }
	large := func(s string) string { return jsonOf(s, true, `\u%04X`) }
	forms := map[string]func(string) string{
		"itself": func(s string) string { return s }, "lower": strings.ToLower, "upper": strings.ToUpper,
		"hex":          func(s string) string { return hex.EncodeToString([]byte(s)) },
		"HEX":          func(s string) string { return each(s, "%02X", "") },
		"hex, spaces":  func(s string) string { return each(s, "%02x", " ") },
		"HEX, colons":  func(s string) string { return each(s, "%02X", ":") },
		`\x`:           func(s string) string { return each(s, `\x%02x`, "") },
		`\X`:           func(s string) string { return each(s, `\x%02X`, "") },
		"% everywhere": func(s string) string { return each(s, "%%%02x", "") },
		"C array":      func(s string) string { return each(s, "0x%02x", ", ") },
		"xxd": func(s string) string {
			var pairs []string
			for ; s != ""; s = s[min(2, len(s)):] {
				pairs = append(pairs, fmt.Sprintf("%x", s[:min(2, len(s))]))
			}
			return strings.Join(pairs, " ")
		},
		"base64":           func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		"base64url":        func(s string) string { return base64.URLEncoding.EncodeToString([]byte(s)) },
		"base64 of base64": func(s string) string { return encoded(encoded(s)) },
		"base64 | base64":  func(s string) string { return encoded(encoded(s) + "\n") },
		"RFC 3986":         percent("-._~", "%%%02X"),
		"RFC 3986, lower":  percent("-._~", "%%%02x"),
		"component":        percent("-._~!*'()", "%%%02X"),
		"encodeURI":        percent("-._~!*'();/?:@&=+$,#", "%%%02X"),
		"quote":            percent("-._~/", "%%%02X"),
		"curl":             percent("-._~$&+,/:;=@", "%%%02X"),
		"form":             func(s string) string { return strings.ReplaceAll(percent("-._~", "%%%02X")(s), "%20", "+") },
		"JSON":             func(s string) string { return jsonOf(s, false, `\u%04x`) },
		"JSON, ASCII":      small,
		"JSON, upper":      large,
		"JSON, slashes":    func(s string) string { return strings.ReplaceAll(small(s), "/", `\/`) },
		"JSON, HTML":       func(s string) string { return replace("<", `\u003c`, ">", `\u003e`, "&", `\u0026`)(small(s)) },
		"toJSON": func(s string) string {
			return replace("<", `\u003C`, ">", `\u003E`, "&", `\u0026`, "'", `\u0027`, "+", `\u002B`)(large(s))
		},
		"JSON in JSON":      again(small),
		"XML text":          markup(),
		"XML attribute":     markup(`"`, "&quot;"),
		"XML, both":         markup(`"`, "&quot;", "'", "&apos;"),
		"HTML":              markup(`"`, "&#34;", "'", "&#39;"),
		"HTML, quot":        markup(`"`, "&quot;", "'", "&#39;"),
		"HTML, hexadecimal": markup(`"`, "&quot;", "'", "&#x27;"),
		"XML, tab":          markup("\t", "&#9;"),
		"XML, hex tab":      markup("\t", "&#x9;"),
		"expression":        replace("'", "''"),
		"command":           replace("%", "%25"),
		"property":          replace("%", "%25", ":", "%3A", ",", "%2C"),
		"shell":             replace("'", `'\''`),
		"shell, doubled":    replace("'", `'"'"'`),
		"double quotes":     replace(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`"),
		"quotes":            replace(`"`, `\"`),
		"PowerShell":        replace(`"`, `""`),
		"PowerShell escape": replace("`", "``", `"`, "`\"", "$", "`$"),
	}
	for _, secret := range []string{
		`p&ss"w<o>rd/ 'x'=+%$\é:,` + "`~!", "plain-Token_42", "az AZ 09 <!*'()>;/?:@&=+$,#~-._", "tab\there \"and\" 'there'", "\x01\b\f\x1fctl/\x7fé😀<&>'+",
		strings.Repeat("Key9", 9) + "=", "#~ab c{}", "αβγ-δε",
	} {
		set := newSet(t, secret)
		for name, form := range forms {
			text := form(secret)
			if text == strings.ToLower(text) && name == "upper" {
				continue
			}
			if got := set.String("<" + text + ">"); got != "<***>" && got != "<***=>" && got != "<***==>" {
				t.Errorf("%s of %q: %q went through as %q", name, secret, text, got)
			}
		}
		// In something longer, what the secret determines of it.
		for offset := range 5 {
			in := strings.Repeat("\xff", offset) + secret
			for name, text := range map[string]string{
				"base64": base64.RawStdEncoding.EncodeToString([]byte(in)), "base64url": base64.RawURLEncoding.EncodeToString([]byte(in)),
				"base32":        base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString([]byte(in)),
				"base32, lower": strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString([]byte(in))),
			} {
				bits := map[bool]int{true: 5, false: 6}[strings.HasPrefix(name, "base32")]
				before := (8*offset + bits - 1) / bits
				after := len(text) - 8*len(in)/bits
				want := text[:before] + Mark + text[len(text)-after:]
				if got := set.String(text); got != want {
					t.Errorf("%s of %q at %d: %q, want %q", name, secret, offset, got, want)
				}
			}
		}
		var wide []byte
		for _, u := range utf16.Encode([]rune(secret)) {
			wide = append(wide, byte(u), byte(u>>8))
		}
		if got := set.String(base64.StdEncoding.EncodeToString(wide)); len(strings.ReplaceAll(got, Mark, "")) > 3 {
			t.Errorf("UTF-16 of %q: %q", secret, got)
		}
	}
	// What is wrapped: every full line goes, and the rest of it.
	long := strings.Repeat("0123456789-Abcdefghij", 30)
	set := newSet(t, long)
	for width, text := range map[int]string{60: hex.EncodeToString([]byte(long)), 64: encoded(long), 76: encoded(long)} {
		for rest := text; rest != ""; rest = rest[min(width, len(rest)):] {
			line := rest[:min(width, len(rest))]
			if got := set.String(line); got != Mark && strings.TrimRight(got, "=") != Mark {
				t.Errorf("at %d: %q went through as %q", width, line, got)
			}
		}
	}
}

func encoded(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// TestPart: parts of an encoding that are too short to mean anything stay.
func TestPart(t *testing.T) {
	for secret, want := range map[string]map[string]string{
		"abc":  {"ABC": "ABC", "YWJj": "***", "616263": "***", "61": "61", "xYWJjx": "x***x", "MFRGG": "***G", "Abc abc": "Abc ***"},
		"ab":   {"YWI=": "***", "6162": "***", "AB": "AB", "aB": "aB"},
		"a":    {"61": "61", "YQ==": "***", "A": "A", "%61": "%61"},
		"abcd": {"ABCD": "***", "YWJjZA==": "***", "MFRGGZA": "***A", "aBcD": "aBcD"},
	} {
		set := newSet(t, secret)
		for in, out := range want {
			if got := set.String(in); got != out {
				t.Errorf("%q in %q: %q, want %q", secret, in, got, out)
			}
		}
	}
}

// TestShown: a record keeps what is not secret, and has what is masked in it.
func TestShown(t *testing.T) {
	set := newSet(t, "hunter2", "4711")
	rec := set.Record(ci.Record{Type: ci.StepFinished, Outputs: map[string]string{"a": "x hunter2 y", "hunter2": "b"}})
	if !maps.Equal(rec.Outputs, map[string]string{"a": "x *** y", "***": "b"}) {
		t.Errorf("%v", rec.Outputs)
	}
	rec = set.Record(ci.Record{Type: ci.JobFinished, Outputs: map[string]string{"a": "kept"}})
	if rec.Outputs["a"] != "kept" {
		t.Errorf("%v", rec.Outputs)
	}
	type cell struct{ A, B any }
	for _, c := range []struct{ in, out any }{
		{map[string]any{"v": "hunter2!", "n": 1.5, "b": true, "z": nil, "hunter2": []any{"a", "hunter2"}},
			map[string]any{"v": "***!", "n": 1.5, "b": true, "z": nil, "***": []any{"a", "***"}}},
		{map[string]any{"n": 4711, "m": 471}, map[string]any{"n": "***", "m": 471.0}},
		{map[string]any{"n": 94711.25}, map[string]any{"n": "***"}},
		{cell{1, "x"}, cell{1, "x"}}, // nothing to mask: as it was
		{cell{1, "hunter2"}, map[string]any{"A": 1.0, "B": "***"}},
		{make(chan int), "***"}, // nothing that JSON can hold
		{[]any{1, "a"}, []any{1, "a"}},
	} {
		if got := set.Record(ci.Record{Matrix: c.in}).Matrix; !reflect.DeepEqual(got, c.out) {
			t.Errorf("%v: %#v, want %#v", c.in, got, c.out)
		}
	}
	for n, want := range map[int]int{MaxField - 1: MaxField - 1, MaxField: MaxField, MaxField + 1: MaxField + len("…")} {
		if got := set.Field(strings.Repeat("x", n)); len(got) != want {
			t.Errorf("%d bytes: %d", n, len(got))
		}
	}
	if !set.Contains("a hunter2 b") || set.Contains("a hunter b") || !set.Contains("SHVudGVy hunter2") {
		t.Error("Contains")
	}
}

// stuck fails from the nth write on.
type stuck struct{ left int }

func (s *stuck) Write(p []byte) (int, error) {
	if s.left--; s.left < 0 {
		return 0, errStuck
	}
	return len(p), nil
}

var errStuck = errors.New("the disk is full")

// TestStuck: an error of who takes the stream is one of the Writer, which says how
// much it took of what it was given.
func TestStuck(t *testing.T) {
	set := newSet(t, "hunter2")
	w := NewWriter(&stuck{}, set)
	if n, err := w.Write([]byte("text\n")); n != 0 || !errors.Is(err, errStuck) {
		t.Errorf("%d %v", n, err)
	}
	w = NewWriter(&stuck{left: 1}, set)
	if n, err := w.Write([]byte(strings.Repeat("x", chunk) + strings.Repeat("y", chunk))); n != chunk || !errors.Is(err, errStuck) {
		t.Errorf("%d %v", n, err)
	}
	for _, held := range []string{"hunt", "\xc3"} {
		w = NewWriter(&stuck{left: 1}, set)
		if _, err := w.Write([]byte("x\n")); err != nil {
			t.Error(err)
		}
		if n, err := w.Write([]byte(held)); n != len(held) || err != nil {
			t.Errorf("%q: %d %v", held, n, err)
		}
		if err := w.Flush(); !errors.Is(err, errStuck) {
			t.Errorf("%q held back: %v", held, err)
		}
	}
	// A count is of what was given, not of what was held before.
	w = NewWriter(io.Discard, set)
	for _, p := range []string{"\xe2", "\x82", "\xac", "hunter", "2"} {
		if n, err := w.Write([]byte(p)); n != len(p) || err != nil {
			t.Errorf("%q: %d %v", p, n, err)
		}
	}
}

// TestManyBlocks: however many blocks there are, each of them is found, and
// nothing else.
func TestManyBlocks(t *testing.T) {
	set := &Set{short: smallSet}
	var all []string
	for i := range 400 {
		all = append(all, strings.Repeat(fmt.Sprintf("%03d.", i), block/4))
	}
	for _, s := range all {
		if err := set.Add(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range all {
		if got := set.String("<" + s + ">"); got != "<***>" {
			t.Errorf("%q: %q", s, got)
		}
	}
	for i := 400; i < 500; i++ {
		if s := strings.Repeat(fmt.Sprintf("%03d.", i), block/4); set.Contains(s) {
			t.Errorf("%q is masked", s)
		}
	}
}

// TestPrintfQ: what bash's printf %q makes of a secret, without bash.
func TestPrintfQ(t *testing.T) {
	for secret, quoted := range map[string]string{
		"#~ab c{}": `\#~ab\ c\{\}`, "~x y#": `\~x\ y#`, "a,b;c-d_e": `a\,b\;c-d_e`, "%+-./:=@_ ": `%+-./:=@_\ `,
		"tab\there's": `tab\there\'s`, "esc\x1bback\\slash": `esc\Eback\\slash`, "del\x7f\x01": `del\177\001`, "é\xff!": `é\377!`, "oé\t": `o\303\251\t`,
	} {
		if got := newSet(t, secret).String("<" + quoted + ">"); got != "<***>" {
			t.Errorf("%q as %s: %s", secret, quoted, got)
		}
	}
}

// TestAgain: what is there already takes no room again, nor does white space.
func TestAgain(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 4<<10)
	set := newSet(t, "hunter2", long[:20<<10])
	size, short, now := set.size, set.short, set.now.Load()
	if err := set.Add("hunter2", " \n", "", "hunter2", long[:20<<10]); err != nil || set.size != size || set.short != short || set.now.Load() != now {
		t.Errorf("%v: %d bytes became %d, %d in automata %d", err, size, set.size, short, set.short)
	}
	if err := set.Add(long); err != nil || set.size != size+len(long) {
		t.Errorf("%v: %d bytes", err, set.size)
	}
}

// TestUnseen: a few characters that nobody sees are passed on, and no more.
func TestUnseen(t *testing.T) {
	set := newSet(t, "hunter2")
	for n, want := range map[int]int{1: 1, maxUnseen - 1: maxUnseen - 1, maxUnseen: maxUnseen, maxUnseen + 1: maxUnseen, 50: maxUnseen} {
		if got := set.String("a" + strings.Repeat("\u200b", n) + "b"); got != "a"+strings.Repeat("\u200b", want)+"b" {
			t.Errorf("%d: %q", n, got)
		}
	}
}

// TestAddedMeanwhile: a secret that is added while the beginning of another is held
// back is found in what is held.
func TestAddedMeanwhile(t *testing.T) {
	for in, secret := range map[string]string{"token-é-x": "é", "token-x-é": "-é", "token-x": "x", "token-\u200bx-": "x", "token-ab": "b"} {
		set := newSet(t, in+"-and-more")
		var b strings.Builder
		w := NewWriter(&b, set)
		io.WriteString(w, "see "+in)
		if err := set.Add(secret); err != nil {
			t.Fatal(err)
		}
		w.Flush()
		if got, want := b.String(), "see "+strings.ReplaceAll(in, secret, Mark); got != want {
			t.Errorf("%q, then %q: %q, want %q", in, secret, got, want)
		}
	}
}

// TestBlocksInPieces: what nobody sees, wherever it stands in a long secret, hides
// none of it, and nothing beside it goes.
func TestBlocksInPieces(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	unseen := []string{"\x1b[1m", "\x00", "\x1b[0;31m", "\x07", "\x1b]0;title\x07"}
	for range 300 {
		secret := make([]byte, block+rnd.IntN(4*block))
		for i := range secret {
			secret[i] = "abcdefghijklmnop"[rnd.IntN(16)]
		}
		set := &Set{short: smallSet}
		if err := set.Add(string(secret)); err != nil {
			t.Fatal(err)
		}
		var in, want strings.Builder
		for range 1 + rnd.IntN(3) {
			before := strings.Repeat("Q", rnd.IntN(2*block))
			in.WriteString(before + "<")
			want.WriteString(before + "<***>")
			rest := string(secret)
			for rest != "" {
				n := min(len(rest), rnd.IntN(2*block))
				in.WriteString(rest[:n] + unseen[rnd.IntN(len(unseen))])
				rest = rest[n:]
			}
			in.WriteString(">")
		}
		var b strings.Builder
		w := NewWriter(&b, set)
		for rest := in.String(); rest != ""; {
			n := min(len(rest), 1+rnd.IntN(40))
			io.WriteString(w, rest[:n])
			rest = rest[n:]
		}
		w.Flush()
		if b.String() != want.String() {
			t.Fatalf("%q:\n got %q\nwant %q", in.String(), b.String(), want.String())
		}
	}
}
