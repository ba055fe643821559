package expr

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text is compared as .NET's OrdinalIgnoreCase does: every rune mapped to upper
// case by the simple mapping, without the two whose upper case would be ASCII.

func upper(r rune) rune {
	if r < utf8.RuneSelf {
		if r >= 'a' && r <= 'z' {
			r -= 'a' - 'A'
		}
		return r
	}
	if r == 'ı' || r == 'ſ' {
		return r
	}
	return unicode.ToUpper(r)
}

// fold is s in the case in which it is compared.
func fold(s string) string {
	for i := range len(s) {
		if c := s[i]; c >= utf8.RuneSelf || c >= 'a' && c <= 'z' {
			return strings.Map(upper, s)
		}
	}
	return s
}

// appendFoldASCII folds s into buf unless it is not ASCII or does not fit.
func appendFoldASCII(buf []byte, s string) ([]byte, bool) {
	if len(s) > cap(buf) {
		return nil, false
	}
	for i := range len(s) {
		c := s[i]
		if c >= utf8.RuneSelf {
			return nil, false
		}
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		buf = append(buf, c)
	}
	return buf, true
}

// EqualFold reports whether two texts are equal without regard to case, as names,
// keys and text in expressions are compared everywhere on GitHub.
func EqualFold(a, b string) bool { return equalFold(a, b) }

func equalFold(a, b string) bool {
	i := 0
	for ; i < len(a) && i < len(b); i++ {
		x, y := a[i], b[i]
		if x|y >= utf8.RuneSelf {
			return compareFold(a[i:], b[i:]) == 0
		}
		if x == y {
			continue
		}
		if x >= 'a' && x <= 'z' {
			x -= 'a' - 'A'
		}
		if y >= 'a' && y <= 'z' {
			y -= 'a' - 'A'
		}
		if x != y {
			return false
		}
	}
	return len(a) == len(b)
}

// compareFold orders two texts by the UTF-16 units of their upper case.
func compareFold(a, b string) int {
	for a != "" && b != "" {
		x, n := utf8.DecodeRuneInString(a)
		y, m := utf8.DecodeRuneInString(b)
		a, b = a[n:], b[m:]
		x, y = upper(x), upper(y)
		if x == y {
			continue
		}
		if (x >= 0x10000) != (y >= 0x10000) {
			// A surrogate sorts below U+E000 to U+FFFF.
			x, y = firstUnit(x), firstUnit(y)
		}
		if x < y {
			return -1
		}
		return 1
	}
	switch {
	case a != "":
		return 1
	case b != "":
		return -1
	}
	return 0
}

func firstUnit(r rune) rune {
	if r >= 0x10000 {
		return 0xD800 + (r-0x10000)>>10
	}
	return r
}

// units is the length of s in UTF-16 units, in which GitHub counts.
func units(s string) int {
	n := 0
	for _, r := range s {
		n++
		if r >= 0x10000 {
			n++
		}
	}
	return n
}
