package text

import "strings"

// Finder returns what finds words in a line, or -1: what people mean by a search.
// Upper and lower case of ASCII letters are one unless the words have a capital.
func Finder(words string) func(line string) int {
	if strings.ToLower(words) != words {
		return func(line string) int { return strings.Index(line, words) }
	}
	return func(line string) int { return strings.Index(string(Lower(nil, []byte(line))), words) }
}

// Lower appends b to dst with its ASCII letters small; the length stays.
func Lower(dst, b []byte) []byte {
	n := len(dst)
	dst = append(dst, b...)
	for i, c := range dst[n:] {
		if c-'A' < 26 {
			dst[n+i] = c + 'a' - 'A'
		}
	}
	return dst
}
