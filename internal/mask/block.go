package mask

import (
	"math/bits"
	"math/rand/v2"
	"strings"
	"sync/atomic"
)

// block is how many bytes a long pattern is recognised by.
const block = 32

// blocks finds long patterns. It holds no pattern, but the hashes of their
// blocks: the bytes at 0, 32, 64 … and the last 32. A text that has the pattern
// in it has all of these, and each hides itself, so a pattern costs half a byte
// to a byte for each of its own; what has only some of the blocks in it (a key
// that was printed in another width) loses these. The hash goes along with the
// text a byte at a time (Cohen's cyclic polynomials), whatever the number of
// patterns. Its table is made anew in every process: nobody can know two blocks
// with the same hash, and two would only mean that a block too many is hidden.
//
// Blocks are added while others look; one that is looked for before it is there
// is not found, as if the text had come earlier.
type blocks struct {
	table []uint64 // a power of two, at most three quarters full; 0 is free
	count int
}

// scatter are the values that bytes add to a hash.
var scatter = func() (t [256]uint64) {
	for i := range t {
		t[i] = rand.Uint64()
	}
	return t
}()

// window is the hash of the last bytes of a text.
type window struct {
	ring [block]byte
	at   int // where the next byte goes
	fill int // bytes taken, at most block
	sum  uint64
}

// add takes a byte and reports whether there are enough for a block.
func (w *window) add(b byte) bool {
	w.sum = bits.RotateLeft64(w.sum, 1) ^ scatter[b]
	if w.fill == block {
		w.sum ^= bits.RotateLeft64(scatter[w.ring[w.at]], block)
		w.ring[w.at] = b
		w.at = (w.at + 1) % block
		return true
	}
	w.ring[w.at] = b
	w.at = (w.at + 1) % block
	w.fill++
	return w.fill == block
}

// sums returns the hashes of the blocks of a pattern that is not shorter than one.
// White space alone is no secret.
func sums(p string) []uint64 {
	var out []uint64
	one := func(s string) {
		if strings.TrimSpace(s) == "" {
			return
		}
		var h uint64
		for i := range len(s) {
			h = bits.RotateLeft64(h, 1) ^ scatter[s[i]]
		}
		out = append(out, max(h, 1))
	}
	for i := 0; i+block <= len(p); i += block {
		one(p[i : i+block])
	}
	if len(p)%block != 0 {
		one(p[len(p)-block:])
	}
	return out
}

func (t *blocks) has(h uint64) bool {
	h = max(h, 1)
	m := uint64(len(t.table) - 1)
	for i := h & m; ; i = (i + 1) & m {
		switch atomic.LoadUint64(&t.table[i]) {
		case h:
			return true
		case 0:
			return false
		}
	}
}

// with returns the table with the hashes added: itself, or a larger one. One
// goroutine at a time may call it.
func (t *blocks) with(hashes []uint64) *blocks {
	if t == nil {
		t = &blocks{table: make([]uint64, 256)}
	}
	for _, h := range hashes {
		if t.has(h) {
			continue
		}
		if 4*(t.count+1) > 3*len(t.table) {
			larger := &blocks{table: make([]uint64, 2*len(t.table))}
			for _, old := range t.table {
				if old != 0 {
					larger.put(old)
				}
			}
			t = larger
		}
		t.put(h)
	}
	return t
}

func (t *blocks) put(h uint64) {
	m := uint64(len(t.table) - 1)
	i := h & m
	for t.table[i] != 0 {
		i = (i + 1) & m
	}
	atomic.StoreUint64(&t.table[i], h)
	t.count++
}
