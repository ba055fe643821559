package mask

import (
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/text"
)

// manyForms is up to where a secret is also looked for in what is rarely made of
// a long one.
const manyForms = 4 << 10

// minPart is the shortest encoded part of a secret that is masked.
const minPart = 4

// derive returns every pattern by which secret is recognised: no duplicates,
// none empty, none with a line end.
func derive(secret string) []string {
	d := deriver{seen: map[string]bool{}}
	if strings.TrimSpace(secret) == "" {
		return nil
	}
	d.whole(secret)
	if strings.ContainsAny(secret, "\r\n") {
		for line := range strings.FieldsFuncSeq(secret, func(r rune) bool { return r == '\n' || r == '\r' }) {
			d.whole(line)
		}
	}
	return d.out
}

type deriver struct {
	seen map[string]bool
	out  []string
}

func (d *deriver) add(p string) {
	if p == "" || strings.TrimSpace(p) == "" || strings.ContainsAny(p, "\r\n") || d.seen[p] {
		return
	}
	d.seen[p] = true
	d.out = append(d.out, p)
	d.add(seen(p))
}

// seen is what of p a Writer looks for in what is seen.
func seen(p string) string {
	var scan text.Scanner
	var out []byte
	for b := []byte(p); len(b) > 0; {
		n, class := scan.Next(b, true)
		if class == text.Shown || class == text.Invalid {
			out = append(out, b[:n]...)
		}
		b = b[n:]
	}
	return string(out)
}

// part adds an encoding that covers only part of the secret.
func (d *deriver) part(p string) {
	if len(p) >= minPart {
		d.add(p)
	}
}

// whole adds one secret, or one line of one, in every form.
func (d *deriver) whole(s string) {
	d.forms(s)
	if t := strings.TrimSpace(s); t != s {
		d.forms(t)
	}
	if t := strings.Trim(s, `"`); t != s {
		d.forms(t)
	}
}

func (d *deriver) forms(s string) {
	if strings.TrimSpace(s) == "" {
		return
	}
	d.add(s)
	d.part(strings.ToLower(s))
	d.part(strings.ToUpper(s))
	d.hex(s)
	d.base64(s)
	d.base32(s)
	d.uri(s)
	d.json(s)
	d.markup(s)
	d.shell(s)
	// A string in an expression, and data or a property of a workflow command.
	d.add(strings.ReplaceAll(s, "'", "''"))
	d.add(strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A").Replace(s))
	d.add(strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C").Replace(s))
}

// hex adds what xxd, od, hexdump, openssl, printf and C make of s.
func (d *deriver) hex(s string) {
	lower := hex.EncodeToString([]byte(s))
	for _, h := range []string{lower, strings.ToUpper(lower)} {
		d.part(h)
		d.part(apart(h, 2, "", " "))
		d.part(apart(h, 2, "", ":"))
		d.wrapped(h, 60) // xxd -p
		if len(s) > manyForms {
			continue
		}
		d.part(apart(h, 4, "", " "))
		d.part(apart(h, 2, `\x`, ""))
		d.part(apart(h, 2, "%", ""))
		d.part(apart(h, 2, "0x", ", "))
	}
}

// apart puts s in pieces of size, each with something before it and something
// between them.
func apart(s string, size int, before, between string) string {
	var b strings.Builder
	b.Grow(len(s) + (len(s)/size+1)*(len(before)+len(between)))
	for i := 0; i < len(s); i += size {
		if i > 0 {
			b.WriteString(between)
		}
		b.WriteString(before)
		b.WriteString(s[i:min(i+size, len(s))])
	}
	return b.String()
}

// wrapped adds the lines of an encoding, which a pattern cannot cross.
func (d *deriver) wrapped(s string, width int) {
	for rest := s; len(s) > width && rest != ""; {
		n := min(width, len(rest))
		d.part(strings.TrimRight(rest[:n], "="))
		rest = rest[n:]
	}
}

// determined returns the characters that are wholly determined by s when s stands
// at an offset of what is encoded with so many bits a character.
func determined(encode func([]byte) string, bits int, s string, offset int) string {
	padded := make([]byte, offset+len(s))
	copy(padded[offset:], s)
	// Character i holds bits·i to bits·i+bits-1; s has bits 8·offset to 8·(offset+len).
	from := (8*offset + bits - 1) / bits
	to := 8 * len(padded) / bits
	if to <= from {
		return ""
	}
	return encode(padded)[from:to]
}

// minTwice is the shortest part of something that was encoded twice that is masked.
const minTwice = 6

func (d *deriver) base64(s string) {
	std, safe := base64.RawStdEncoding.EncodeToString, base64.RawURLEncoding.EncodeToString
	var wide []byte
	for _, u := range utf16.Encode([]rune(s)) {
		wide = append(wide, byte(u), byte(u>>8))
	}
	whole := base64.StdEncoding.EncodeToString([]byte(s))
	twice := []string{whole}
	for offset := range 3 {
		for _, encode := range []func([]byte) string{std, safe} {
			once := determined(encode, 6, s, offset)
			d.part(once)
			if len(s) <= manyForms {
				twice = append(twice, once)
			}
		}
		d.part(determined(std, 6, string(wide), offset)) // PowerShell's -EncodedCommand
	}
	for _, once := range twice {
		for offset := range 3 {
			if t := determined(std, 6, once, offset); len(once) >= minPart && len(t) >= minTwice {
				d.add(t)
			}
		}
	}
	d.part(whole)
	d.part(base64.StdEncoding.EncodeToString([]byte(whole)))
	d.part(base64.StdEncoding.EncodeToString([]byte(whole + "\n"))) // base64 | base64
	d.part(base64.URLEncoding.EncodeToString([]byte(s)))
	for _, width := range []int{64, 76} { // PEM, base64(1)
		d.wrapped(whole, width)
	}
}

func (d *deriver) base32(s string) {
	if len(s) > manyForms {
		return
	}
	for offset := range 5 {
		p := determined(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString, 5, s, offset)
		d.part(p)
		d.part(strings.ToLower(p)) // in the names of hosts
	}
}

func (d *deriver) uri(s string) {
	const unreserved, upper = "-._~", "0123456789ABCDEF"
	for _, v := range []struct {
		keep   string
		digits string
	}{
		{unreserved, upper},                      // RFC 3986; .NET EscapeDataString
		{unreserved, "0123456789abcdef"},         // the same by less careful programs
		{unreserved + "!*'()", upper},            // encodeURIComponent
		{unreserved + "!*'();/?:@&=+$,#", upper}, // encodeURI
		{unreserved + "/", upper},                // Python's quote
		{unreserved + "$&+,/:;=@", upper},        // a path in Go, and curl
	} {
		var b strings.Builder
		for i := range len(s) {
			c := s[i]
			if isAlnum(c) || strings.IndexByte(v.keep, c) >= 0 {
				b.WriteByte(c)
			} else {
				b.WriteByte('%')
				b.WriteByte(v.digits[c>>4])
				b.WriteByte(v.digits[c&15])
			}
		}
		d.add(b.String())
		d.add(strings.ReplaceAll(b.String(), "%20", "+"))
	}
	d.add(url.QueryEscape(s))
	d.add(url.PathEscape(s))
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func (d *deriver) json(s string) {
	var plain, ascii, upper strings.Builder
	unit := func(b *strings.Builder, format string, r rune) {
		for _, u := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(b, format, u)
		}
	}
	for _, r := range s {
		esc := ""
		switch r {
		case '"':
			esc = `\"`
		case '\\':
			esc = `\\`
		case '\n':
			esc = `\n`
		case '\r':
			esc = `\r`
		case '\t':
			esc = `\t`
		case '\b':
			esc = `\b`
		case '\f':
			esc = `\f`
		}
		switch {
		case esc != "":
			plain.WriteString(esc)
			ascii.WriteString(esc)
			upper.WriteString(esc)
		case r < 0x20:
			unit(&plain, `\u%04x`, r)
			unit(&ascii, `\u%04x`, r)
			unit(&upper, `\u%04X`, r)
		case r >= 0x7f:
			plain.WriteRune(r)
			unit(&ascii, `\u%04x`, r)
			unit(&upper, `\u%04X`, r)
		default:
			plain.WriteRune(r)
			ascii.WriteRune(r)
			upper.WriteRune(r)
		}
	}
	for _, e := range []string{plain.String(), ascii.String(), upper.String()} {
		for _, f := range []string{
			e,
			strings.ReplaceAll(e, "/", `\/`),
			// What toJSON and programs careful of HTML write.
			strings.NewReplacer("<", `\u003c`, ">", `\u003e`, "&", `\u0026`).Replace(e),
			strings.NewReplacer("<", `\u003C`, ">", `\u003E`, "&", `\u0026`, "'", `\u0027`, "+", `\u002B`).Replace(e),
		} {
			d.add(f)
			// Once more, for JSON inside a JSON string.
			d.add(strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(f))
		}
	}
	if b, err := json.Marshal(s); err == nil {
		d.add(string(b[1 : len(b)-1]))
	}
}

func (d *deriver) markup(s string) {
	d.add(html.EscapeString(s)) // &#39; &#34;
	for _, pairs := range [][]string{
		{"&", "&amp;", "<", "&lt;", ">", "&gt;"},
		{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;"},
		{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;"},
		{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#39;"},
		{"&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#x27;"},
	} {
		e := strings.NewReplacer(pairs...).Replace(s)
		d.add(e)
		d.add(strings.NewReplacer("\n", "&#10;", "\r", "&#13;", "\t", "&#9;").Replace(e))
		d.add(strings.NewReplacer("\n", "&#xA;", "\r", "&#xD;", "\t", "&#x9;").Replace(e))
	}
}

func (d *deriver) shell(s string) {
	d.add(strings.ReplaceAll(s, "'", `'\''`))
	d.add(strings.ReplaceAll(s, "'", `'"'"'`))
	d.add(strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(s))
	d.add(strings.ReplaceAll(s, `"`, `\"`))
	// PowerShell: quotes doubled, and its escape character.
	d.add(strings.ReplaceAll(s, `"`, `""`))
	d.add(strings.NewReplacer("`", "``", `"`, "`\"", "$", "`$").Replace(s))
	// printf %q: a backslash before everything special …
	var b strings.Builder
	for i, r := range s {
		if r < utf8.RuneSelf && !isAlnum(byte(r)) && !strings.ContainsRune("%+-./:=@_", r) && !(r == '#' || r == '~') || i == 0 && (r == '#' || r == '~') {
			b.WriteByte('\\')
		}
		b.WriteString(s[i : i+runeLen(s[i:])])
	}
	d.add(b.String())
	d.add(strings.ReplaceAll(b.String(), `\,`, `,`))
	// … or $'…' where there are control characters; bytes that are no text in octal.
	b.Reset()
	var o strings.Builder
	for i := 0; i < len(s); {
		n := runeLen(s[i:])
		c := s[i]
		e := s[i : i+n]
		switch {
		case c == '\'' || c == '\\':
			e = `\` + e
		case c == '\n':
			e = `\n`
		case c == '\r':
			e = `\r`
		case c == '\t':
			e = `\t`
		case c == 0x1b:
			e = `\E`
		case c < 0x20 || c == 0x7f || n == 1 && c >= 0x80:
			e = fmt.Sprintf(`\%03o`, c)
		}
		b.WriteString(e)
		if n > 1 {
			for k := range n {
				fmt.Fprintf(&o, `\%03o`, s[i+k])
			}
		} else {
			o.WriteString(e)
		}
		i += n
	}
	d.add(b.String())
	d.add(o.String()) // the same in the C locale
}

// runeLen is the length of the first rune of s; 1 where it is no UTF-8.
func runeLen(s string) int {
	_, n := utf8.DecodeRuneInString(s)
	return n
}
