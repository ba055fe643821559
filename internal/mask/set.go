package mask

import (
	"bytes"
	"errors"
	"hash/maphash"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Bounds on what one job may ask to have masked. What is more is refused, since a
// mask that is not applied is worse than a job that fails.
const (
	MaxSecret  = 64 << 10  // bytes in one secret; GitHub's own may have 48 KB
	MaxSecrets = 512 << 10 // bytes in all secrets of a set

	// Patterns that are shorter than a block, and up to longest those of a small
	// set, are in automata, which find exactly them; the others are found by blocks.
	longest  = 16 << 10
	smallSet = 512 << 10 // bytes in the automata
	maxShort = 3 << 20   // bytes in the automata, beyond which short secrets are refused
)

// The errors of [Set.Add].
var (
	ErrTooLong = errors.New("the value to mask is longer than 64 KiB; mask its parts")
	ErrTooMany = errors.New("the values to mask are too many: at most 512 KiB of them, and 3 MiB in all the encodings of short ones; mask fewer")
)

// Set is a set of secrets, safe for concurrent use. Secrets can be added while
// writers use it, and hold for every byte that no writer has passed on yet.
type Set struct {
	mu    sync.Mutex
	seen  map[uint64]struct{} // hashes of secrets and patterns
	size  int                 // bytes in secrets
	short int                 // bytes in the automata
	// now is replaced as a whole: writers notice by the pointer.
	now atomic.Pointer[finders]
}

// finders are what finds the patterns of a set.
type finders struct {
	autos  []*automaton // each at least twice as large as the next
	blocks *blocks      // nil is none
}

var seed = maphash.MakeSeed()

// NewSet returns a set of the given secrets. Those that [Set.Add] would refuse
// are an error.
func NewSet(secrets ...string) (*Set, error) {
	s := &Set{}
	return s, s.Add(secrets...)
}

// Add makes secrets, and their derived encodings, masked from now on: all, or with
// an error none. Adding what is there already, or white space, changes nothing.
func (s *Set) Add(secrets ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = map[uint64]struct{}{}
	}
	var (
		marks  []uint64
		short  []string
		hashes []uint64
	)
	size, held := s.size, s.short
	fresh := func(kind byte, p string) bool {
		var h maphash.Hash
		h.SetSeed(seed)
		h.WriteByte(kind)
		h.WriteString(p)
		sum := h.Sum64()
		if _, ok := s.seen[sum]; ok {
			return false
		}
		s.seen[sum] = struct{}{}
		marks = append(marks, sum)
		return true
	}
	admit := func() error {
		for _, secret := range secrets {
			if len(secret) > MaxSecret {
				return ErrTooLong
			}
			if strings.TrimSpace(secret) == "" || !fresh('s', secret) {
				continue
			}
			if size += len(secret); size > MaxSecrets {
				return ErrTooMany
			}
			for _, p := range derive(secret) {
				switch {
				case !fresh('p', p):
				case len(p) < block || len(p) <= longest && held+len(p) <= smallSet:
					if held += len(p); held > maxShort {
						return ErrTooMany
					}
					short = append(short, p)
				default:
					hashes = append(hashes, sums(p)...)
				}
			}
		}
		return nil
	}
	if err := admit(); err != nil {
		for _, m := range marks {
			delete(s.seen, m)
		}
		return err
	}
	s.size, s.short = size, held
	s.extend(short, hashes)
	return nil
}

// extend adds an automaton for patterns, merged with those not much larger, and
// hashes to the blocks. Secrets named at run time would otherwise make one
// automaton to build again and again.
func (s *Set) extend(patterns []string, hashes []uint64) {
	if len(patterns)+len(hashes) == 0 {
		return
	}
	next := &finders{}
	if now := s.now.Load(); now != nil {
		*next = *now
	}
	if len(hashes) > 0 {
		next.blocks = next.blocks.with(hashes)
	}
	if len(patterns) > 0 {
		autos := slices.Clone(next.autos)
		size := totalLen(patterns)
		for len(autos) > 0 {
			last := autos[len(autos)-1]
			if last.size > 2*size {
				break
			}
			patterns = append(patterns, last.patterns...)
			size += last.size
			autos = autos[:len(autos)-1]
		}
		next.autos = append(autos, newAutomaton(patterns))
	}
	s.now.Store(next)
}

// String returns text as people see it, with every secret in it masked: like what
// a [Writer] passes on, except that a secret with a space in it is also found
// where the space is a line end, since whoever shows text in one line makes it one.
func (s *Set) String(text string) string {
	if text == "" {
		return ""
	}
	var b bytes.Buffer
	w := NewWriter(&b, s)
	w.field = true
	io.WriteString(w, text)
	w.Flush()
	return b.String()
}

// Contains reports whether text has a secret in it that [Set.String] would mask.
func (s *Set) Contains(text string) bool {
	w := NewWriter(io.Discard, s)
	w.field = true
	io.WriteString(w, text)
	w.Flush()
	return w.found
}
