package board

import (
	"encoding/json"
	"fmt"
	"io"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// NewEncoder returns an encoder of JSON that is safe to show, with the same
// values: see [Escaped].
func NewEncoder(w io.Writer) *json.Encoder {
	enc := json.NewEncoder(Escaped(w))
	enc.SetEscapeHTML(false)
	return enc
}

// Escaped returns a writer for JSON, which is shown on terminals too: what JSON
// lets stand in its strings and a terminal obeys (DEL, the control characters of
// U+0080 to U+009F), or reorders or hides text by (formatting characters, as those
// of bidirectional text), is written as \uXXXX. The values stay what they are.
func Escaped(w io.Writer) io.Writer { return &escaped{w: w} }

type escaped struct {
	w    io.Writer
	part []byte // of a character that is not all there yet
}

// unsafe says whether a character may not be written as it is. Those below a
// space are JSON's own to escape, and its layout.
func unsafe(r rune) bool {
	return r == 0x7f || r > 0x7f && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

func (e *escaped) Write(p []byte) (int, error) {
	in := p
	if len(e.part) > 0 {
		in = append(e.part, p...)
		e.part = nil
	}
	out := make([]byte, 0, len(in))
	for len(in) > 0 {
		if !utf8.FullRune(in) {
			e.part = append(e.part, in...)
			break
		}
		r, n := utf8.DecodeRune(in)
		if unsafe(r) {
			for _, u := range utf16.AppendRune(nil, r) {
				out = fmt.Appendf(out, `\u%04x`, u)
			}
		} else {
			out = append(out, in[:n]...)
		}
		in = in[n:]
	}
	if _, err := e.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}
