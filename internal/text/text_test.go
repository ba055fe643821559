package text

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain\ttext é 漢":                      "plain\ttext é 漢",
		"a\x1b[31;1mred\x1b[0mb":               "aredb",
		"sgr0\x1b(B\x1b[m.":                    "sgr0.",
		"a\x1b]0;title\x07b":                   "ab",
		"a\x1b]8;;http://x\x1b\\link\x1b]8;;b": "alink",
		"a\x1b]0;title\x1b[31mb":               "ab",
		"a\x1bPdcs\x18b":                       "ab",
		"a\u009b31mb":                          "ab",
		"a\u009dtitle\ab":                      "ab",
		"a\x1b[31\x01mb":                       "amb",
		"a\x1b":                                "a",
		"a\x1b[":                               "a",
		"a\x1b[31éb":                           "aéb",
		"hun\bter\x00\x7f":                     "hunter",
		"one\r\ntwo\nthree\rfour\r\n":          "one two three four",
		"a\u202eb\u2069c":                      "abc",
		"zero\u200bwidth":                      "zero\u200bwidth",
		"bad \xff\xc3.":                        "bad \ufffd\ufffd.",
		"a\x1b]cut\nb":                         "a b",
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzScanner: the same classes however the stream is cut, and Clean is what
// they add up to.
func FuzzScanner(f *testing.F) {
	f.Add("a\x1b[31mb\u200b\xff\r\n\x1b]0;x\x07é", uint8(2))
	f.Fuzz(func(t *testing.T, s string, cut uint8) {
		classes := func(size int) string {
			var out []byte
			var scan Scanner
			var held []byte
			for rest := s; rest != ""; {
				n := min(size, len(rest))
				held = append(held, rest[:n]...)
				rest = rest[n:]
				for len(held) > 0 {
					n, c := scan.Next(held, rest == "")
					if n == 0 {
						if utf8.FullRune(held) {
							t.Fatalf("%q: a whole character is waited for", held)
						}
						break
					}
					for range n {
						out = append(out, byte('0'+c))
					}
					held = held[n:]
				}
			}
			return string(out)
		}
		whole, pieces := classes(len(s)+1), classes(int(cut)%5+1)
		if whole != pieces || len(whole) != len(s) {
			t.Fatalf("%q: %s at once, %s in pieces", s, whole, pieces)
		}
		c := Clean(s)
		if !utf8.ValidString(c) || Clean(c) != c || strings.ContainsFunc(c, func(r rune) bool {
			return r < 0x20 && r != '\t' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
		}) {
			t.Fatalf("%q: %q", s, c)
		}
	})
}
