package graph

// Automaton finds all occurrences of many terms in one pass over a text
// (Aho-Corasick). Transitions are a dense table over classes of bytes: bytes
// that no term tells apart share a column, so the table stays small and each
// byte of text costs two loads. It is immutable and safe for concurrent use.
type Automaton struct {
	class   [256]uint8
	classes int
	next    []int32   // state*classes + class
	out     [][]int32 // terms that end in a state, its suffixes' included
	terms   []string
}

// NewAutomaton compiles terms; empty ones are left out. With fold, ASCII letters
// match in either case.
func NewAutomaton(terms []string, fold bool) *Automaton {
	a := &Automaton{terms: terms}
	lower := func(c byte) byte {
		if fold && c >= 'A' && c <= 'Z' {
			return c + 32
		}
		return c
	}
	used := [256]bool{}
	for _, t := range terms {
		for i := 0; i < len(t); i++ {
			used[lower(t[i])] = true
		}
	}
	a.classes = 1 // class 0: bytes of no term
	// At most 255 classes fit beside class 0; with all 256 byte values in use
	// the last two would have to share one, which terms of text never come to.
	for c := range 256 {
		if used[c] && a.classes < 256 {
			a.class[c] = uint8(a.classes)
			a.classes++
		}
	}
	if fold {
		for c := byte('A'); c <= 'Z'; c++ {
			a.class[c] = a.class[c+32]
		}
	}
	newState := func() int32 {
		s := int32(len(a.out))
		for range a.classes {
			a.next = append(a.next, -1)
		}
		a.out = append(a.out, nil)
		return s
	}
	newState()
	for ti, t := range terms {
		if t == "" {
			continue
		}
		s := int32(0)
		for i := 0; i < len(t); i++ {
			at := int(s)*a.classes + int(a.class[lower(t[i])])
			if a.next[at] < 0 {
				n := newState()
				a.next[at] = n
			}
			s = a.next[at]
		}
		a.out[s] = append(a.out[s], int32(ti))
	}
	fail := make([]int32, len(a.out))
	var queue []int32
	for c := range a.classes {
		if n := a.next[c]; n > 0 {
			queue = append(queue, n)
		} else {
			a.next[c] = 0
		}
	}
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		for c := range a.classes {
			at := int(s)*a.classes + c
			over := a.next[int(fail[s])*a.classes+c]
			if n := a.next[at]; n >= 0 {
				fail[n] = over
				a.out[n] = append(a.out[n], a.out[over]...)
				queue = append(queue, n)
			} else {
				a.next[at] = over
			}
		}
	}
	return a
}

// Find calls fn for every occurrence, with the index of the term and the offset
// behind it, in the order of their ends, until fn returns false.
func (a *Automaton) Find(text []byte, fn func(term, end int) bool) {
	s := 0
	for i, c := range text {
		s = int(a.next[s*a.classes+int(a.class[c])])
		for _, t := range a.out[s] {
			if !fn(int(t), i+1) {
				return
			}
		}
	}
}

// Any reports whether any term occurs.
func (a *Automaton) Any(text []byte) bool {
	found := false
	a.Find(text, func(int, int) bool { found = true; return false })
	return found
}

// Term is the term of an index.
func (a *Automaton) Term(i int) string { return a.terms[i] }
