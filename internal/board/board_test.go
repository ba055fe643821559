package board

import (
	"testing"
	"unicode/utf8"
)

func FuzzClean(f *testing.F) {
	for _, s := range []string{"plain", "\x1b[31mx", "\x1b]0;t\x07x", "\x1b]0;t\x1b\\x", "\xff\x9b31m", "a\u202eb", "\x1b", "\x1b["} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := Clean(s)
		if !utf8.ValidString(c) {
			t.Errorf("%q became invalid %q", s, c)
		}
		for _, r := range c {
			if r < 0x20 && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
				t.Errorf("%q kept %U", s, r)
			}
		}
		if Clean(c) != c {
			t.Errorf("%q is not stable", s)
		}
	})
}
