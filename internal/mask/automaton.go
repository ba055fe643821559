package mask

import "slices"

// automaton finds all of its patterns in one pass (Aho and Corasick, 1975). It
// is immutable once built.
//
// A state is a prefix of a pattern, numbered level by level, so that the edges of
// a state are side by side and edge k leads to state k+1: thirteen bytes a state
// are all there is, and the failure links do the rest.
type automaton struct {
	patterns []string
	size     int // bytes in patterns

	root  [256]int32   // edges of state 0
	pairs [1024]uint64 // the two bytes that a pattern can begin with, a bit each
	first []int32      // edges of s are label[first[s]:first[s+1]], ascending
	label []byte
	fail  []int32
	depth []uint16
	match []uint16 // length of the longest pattern that ends here; 0: none
}

func totalLen(patterns []string) int {
	n := 0
	for _, p := range patterns {
		n += len(p)
	}
	return n
}

// newAutomaton builds the automaton of patterns, none of which is empty or longer
// than longest. It takes the patterns sorted, level by level, so that no edge is
// looked for.
func newAutomaton(patterns []string) *automaton {
	slices.Sort(patterns)
	patterns = slices.Clip(slices.Compact(patterns))
	count := 1
	for i, p := range patterns {
		shared := 0
		if i > 0 {
			for q := patterns[i-1]; shared < min(len(p), len(q)) && p[shared] == q[shared]; {
				shared++
			}
		}
		count += len(p) - shared
	}
	a := &automaton{
		patterns: patterns, size: totalLen(patterns),
		first: make([]int32, count+1), label: make([]byte, 0, count-1), fail: make([]int32, count),
		depth: make([]uint16, count), match: make([]uint16, count),
	}
	// Breadth first: a state stands for a range of the sorted patterns, which
	// share its prefix. Failure links of a level only need shallower levels.
	for _, p := range patterns {
		if len(p) > 1 {
			a.pairs[int(p[0])<<2|int(p[1])>>6] |= 1 << (p[1] & 63)
			continue
		}
		for k := range 4 {
			a.pairs[int(p[0])<<2|k] = ^uint64(0)
		}
	}
	type span struct{ lo, hi int32 }
	spans := make([]span, 1, count)
	spans[0].hi = int32(len(patterns))
	for s := 0; s < len(spans); s++ {
		a.first[s] = int32(len(a.label))
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
			a.depth[child] = uint16(d + 1)
			if s == 0 {
				a.root[b] = child
			} else {
				a.fail[child] = a.next(a.fail[s], b)
			}
			a.match[child] = a.match[a.fail[child]]
			if len(patterns[lo]) == d+1 {
				a.match[child] = uint16(d + 1)
			}
			lo = end
		}
	}
	a.first[count] = int32(len(a.label))
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
				return lo + 1
			}
		}
		s = a.fail[s]
	}
	return a.root[b]
}

// skip returns the first index from k on at which a pattern can begin in b, or
// the last one, about which nothing can be said.
func (a *automaton) skip(b []byte, k int) int {
	for ; k+1 < len(b); k++ {
		if a.pairs[int(b[k])<<2|int(b[k+1])>>6]>>(b[k+1]&63)&1 != 0 {
			break
		}
	}
	return k
}
