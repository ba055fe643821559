package mask

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

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
	d.base64(s)
	d.uri(s)
	d.json(s)
	d.markup(s)
	d.shell(s)
	// A string in an expression, and data or a property of a workflow command.
	d.add(strings.ReplaceAll(s, "'", "''"))
	d.add(strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A").Replace(s))
	d.add(strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C").Replace(s))
}

// base64 adds the characters that are wholly determined by s when s stands at
// offset 0, 1 or 2 (modulo 3) of what is encoded, and the encoding of s alone.
func (d *deriver) base64(s string) {
	for off := range 3 {
		padded := make([]byte, off+len(s))
		copy(padded[off:], s)
		// Character i holds bits 6i to 6i+5; s has bits 8·off to 8·(off+len).
		from := (8*off + 5) / 6
		to := 8 * len(padded) / 6
		if to <= from {
			continue
		}
		d.part(base64.RawStdEncoding.EncodeToString(padded)[from:to])
		d.part(base64.RawURLEncoding.EncodeToString(padded)[from:to])
	}
	whole := base64.StdEncoding.EncodeToString([]byte(s))
	d.part(whole)
	d.part(base64.URLEncoding.EncodeToString([]byte(s)))
	// base64(1) and PEM break lines, which a pattern cannot cross.
	for _, width := range []int{64, 76} {
		for rest := whole; len(whole) > width && rest != ""; {
			n := min(width, len(rest))
			d.part(strings.TrimRight(rest[:n], "="))
			rest = rest[n:]
		}
	}
}

func (d *deriver) uri(s string) {
	const unreserved = "-._~"
	for _, v := range []struct {
		keep string
		hex  string
	}{
		{unreserved, "%%%02X"},                      // RFC 3986; .NET EscapeDataString
		{unreserved, "%%%02x"},                      // the same by less careful programs
		{unreserved + "!*'()", "%%%02X"},            // encodeURIComponent
		{unreserved + "!*'();/?:@&=+$,#", "%%%02X"}, // encodeURI
		{unreserved + "/", "%%%02X"},                // Python's quote
		{unreserved + "$&+,/:;=@", "%%%02X"},        // a path in Go, and curl
	} {
		var b strings.Builder
		for i := range len(s) {
			c := s[i]
			if isAlnum(c) || strings.IndexByte(v.keep, c) >= 0 {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, v.hex, c)
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
