package text

import "testing"

func TestFinder(t *testing.T) {
	for _, c := range []struct {
		words, line string
		at          int
	}{
		{"needle", "a NEEDLE", 2}, {"Needle", "a NEEDLE", -1}, {"Needle", "Needle", 0}, {"@[`{", "x@[`{", 1}, {"az", "[AZ]", 1}, {"é", "É é", 3}, {"x", "", -1},
	} {
		if at := Finder(c.words)(c.line); at != c.at {
			t.Errorf("%q in %q: %d", c.words, c.line, at)
		}
	}
}
