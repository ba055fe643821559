package mask

import "slices"

// automaton finds all of its patterns in one pass (Aho and Corasick, 1975). It
// is immutable once built.
//
// A state is a prefix of a pattern. Only forward edges are stored, those of a
// state side by side in next and byte, so that a large secret costs some twenty
// bytes a character; the failure links do the rest.
type automaton struct {
	patterns []string
	size     int // bytes in patterns

	root  [256]int32 // edges of state 0
	first []int32    // edges of s are edge[first[s]:first[s+1]], by byte
	label []byte
	to    []int32
	fail  []int32
	depth []int32
	match []int32 // length of the longest pattern that ends here; 0: none
}

func totalLen(patterns []string) int {
	n := 0
	for _, p := range patterns {
		n += len(p)
	}
	return n
}

// newAutomaton builds the automaton of patterns, none of which is empty. It
// takes the patterns sorted, level by level, so that no edge is looked for.
func newAutomaton(patterns []string) *automaton {
	slices.Sort(patterns)
	patterns = slices.Compact(patterns)
	size := totalLen(patterns)
	a := &automaton{patterns: patterns, size: size}
	a.fail = append(a.fail, 0)
	a.depth = append(a.depth, 0)
	a.match = append(a.match, 0)

	// Breadth first: a state stands for a range of the sorted patterns, which
	// share its prefix. Failure links of a level only need shallower levels.
	type span struct{ lo, hi int }
	spans := []span{{0, len(patterns)}}
	for s := 0; s < len(spans); s++ {
		a.first = append(a.first, int32(len(a.to)))
		d := int(a.depth[s])
		lo, hi := spans[s].lo, spans[s].hi
		for lo < hi && len(patterns[lo]) == d {
			lo++ // ends here: recorded when the state was made
		}
		for lo < hi {
			b := patterns[lo][d]
			end := lo + 1
			for end < hi && patterns[end][d] == b {
				end++
			}
			child := int32(len(spans))
			spans = append(spans, span{lo, end})
			a.label = append(a.label, b)
			a.to = append(a.to, child)
			a.depth = append(a.depth, int32(d+1))
			fail := int32(0)
			if s == 0 {
				a.root[b] = child
			} else {
				fail = a.next(a.fail[s], b)
			}
			a.fail = append(a.fail, fail)
			m := a.match[fail]
			if len(patterns[lo]) == d+1 {
				m = int32(d + 1)
			}
			a.match = append(a.match, m)
			lo = end
		}
	}
	a.first = append(a.first, int32(len(a.to)))
	return a
}

// next is the state after byte b in state s. Over a whole text it follows at
// most as many failure links as there are bytes.
func (a *automaton) next(s int32, b byte) int32 {
	for s != 0 {
		lo, hi := a.first[s], a.first[s+1]
		for lo+8 < hi {
			mid := (lo + hi) / 2
			if a.label[mid] <= b {
				lo = mid
			} else {
				hi = mid
			}
		}
		for ; lo < hi; lo++ {
			if a.label[lo] == b {
				return a.to[lo]
			}
		}
		s = a.fail[s]
	}
	return a.root[b]
}
