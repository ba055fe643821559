// Package mask keeps secrets out of everything a job prints.
//
// A [Set] holds the secrets of one job: those it was given, and those it names
// at run time with ::add-mask::. A [Writer] copies a stream to another writer
// and puts *** where a secret stood, however the stream was cut into chunks.
//
// # What is masked
//
// Every secret as it is, trimmed, without surrounding quotes, line by line, and
// in the encodings in which secrets usually leak: base64 (at the three offsets
// it can have inside something longer, padded or not, URL-safe or not, and
// wrapped at 64 or 76 columns), percent-encoding, JSON, XML and HTML, shell and
// PowerShell quoting, GitHub expression strings and workflow commands
// (derive.go). As on GitHub a secret may be as short as one character, and then
// every such character goes; only white space alone is no secret. Encodings of
// a part that would be shorter than four characters are left out, since they
// would mask half of every log.
//
// # How
//
// All these patterns are in Aho-Corasick automata of our own (automaton.go):
// one step per byte whatever the number of secrets, and the depth of the state
// says how many bytes could still turn out to be the beginning of a secret. Only
// these are held back, so memory is bounded by the longest pattern. No pattern
// contains a line end (each line of a secret is a pattern), so nothing is ever
// held beyond the end of its line. Overlapping and touching matches become one
// ***, which also hides how many there were.
//
// Secrets named at run time would make one automaton expensive to rebuild again
// and again; the set is instead a few automata, each at least twice as large as
// the next, and a new secret only rebuilds the small ones.
package mask

import (
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Mark is what stands where a secret stood.
const Mark = "***"

// Bounds on what one job may ask to have masked. A longer secret is refused,
// since a mask that is not applied is worse than a job that fails.
const (
	MaxSecret   = 64 << 10 // bytes in one secret; GitHub's own may have 48 KB
	maxPatterns = 16 << 20 // bytes in all patterns of a set
)

// The errors of [Set.Add].
var (
	ErrTooLong = errors.New("the value to mask is longer than 64 KiB; mask its parts")
	ErrTooMany = errors.New("the values to mask are more than 16 MiB in all their encodings; mask fewer")
)

// Set is a set of secrets, safe for concurrent use. Secrets can be added while
// writers use it, and hold for every byte that no writer has passed on yet.
type Set struct {
	mu   sync.Mutex
	seen map[string]bool
	size int
	// auto is replaced as a whole: writers notice by the pointer.
	auto atomic.Pointer[[]*automaton]
}

// NewSet returns a set of the given secrets. Those that [Set.Add] would refuse
// are an error.
func NewSet(secrets ...string) (*Set, error) {
	s := &Set{}
	var all []string
	for _, secret := range secrets {
		p, err := s.admit(secret)
		if err != nil {
			return nil, err
		}
		all = append(all, p...)
	}
	s.extend(all)
	return s, nil
}

// Add makes secret, and its derived encodings, masked from now on. Adding what
// is there already, or white space, changes nothing.
func (s *Set) Add(secret string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.admit(secret)
	if err != nil {
		return err
	}
	s.extend(p)
	return nil
}

// admit returns the new patterns of a secret.
func (s *Set) admit(secret string) ([]string, error) {
	if len(secret) > MaxSecret {
		return nil, ErrTooLong
	}
	var fresh []string
	size := s.size
	for _, p := range derive(secret) {
		if !s.seen[p] {
			fresh = append(fresh, p)
			size += len(p)
		}
	}
	if size > maxPatterns {
		return nil, ErrTooMany
	}
	if s.seen == nil {
		s.seen = map[string]bool{}
	}
	for _, p := range fresh {
		s.seen[p] = true
	}
	s.size = size
	return fresh, nil
}

// extend adds an automaton for patterns, merged with those not much larger.
func (s *Set) extend(patterns []string) {
	if len(patterns) == 0 {
		return
	}
	autos := slices.Clone(s.automata())
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
	autos = append(autos, newAutomaton(patterns))
	s.auto.Store(&autos)
}

func (s *Set) automata() []*automaton {
	if s == nil {
		return nil
	}
	if p := s.auto.Load(); p != nil {
		return *p
	}
	return nil
}

// String returns text with every secret in it masked.
func (s *Set) String(text string) string {
	autos := s.automata()
	if len(autos) == 0 || text == "" {
		return text
	}
	var b strings.Builder
	w := NewWriter(&b, s)
	io.WriteString(w, text)
	w.Flush()
	return b.String()
}

// Contains reports whether text has a secret in it.
func (s *Set) Contains(text string) bool {
	for _, a := range s.automata() {
		state := int32(0)
		for i := range len(text) {
			if state = a.next(state, text[i]); a.match[state] > 0 {
				return true
			}
		}
	}
	return false
}

// Writer masks what is written to it and passes it on. It is not safe for
// concurrent use: one writer per stream.
type Writer struct {
	w   io.Writer
	set *Set

	auto   *[]*automaton // what states belong to
	states []int32
	// buf[head:] are the bytes not passed on yet: they could be part of a
	// secret. What is before head is dropped when it is more than the rest.
	buf  []byte
	head int
	// hits[done:] are the masked intervals of buf[head:], ascending, apart.
	hits []interval
	done int
	// inMask says that the byte before buf[head] was masked.
	inMask bool
	out    []byte
}

type interval struct{ from, to int }

// NewWriter returns a Writer that masks the secrets of set on their way to w.
// A nil set masks nothing.
func NewWriter(w io.Writer, set *Set) *Writer { return &Writer{w: w, set: set} }

// chunk bounds how much is looked at before it is passed on.
const chunk = 32 << 10

// Write passes p on, except for what might be the beginning of a secret. The
// count it returns is of p, not of what reached the underlying writer.
func (w *Writer) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		part := p[:min(len(p), chunk)]
		if err := w.write(part); err != nil {
			return n, err
		}
		n += len(part)
		p = p[len(part):]
	}
	return n, nil
}

func (w *Writer) write(p []byte) error {
	w.refresh()
	start := len(w.buf)
	w.buf = append(w.buf, p...)
	w.scan(start)
	return w.emit(len(w.buf) - w.depth())
}

// Flush passes on what is held back: the stream has ended, or what follows does
// not belong to it.
func (w *Writer) Flush() error {
	w.refresh()
	err := w.emit(len(w.buf))
	w.inMask = false
	clear(w.states)
	return err
}

// refresh takes up secrets that were added since, for the held bytes too.
func (w *Writer) refresh() {
	if w.set == nil {
		return
	}
	cur := w.set.auto.Load()
	if cur == w.auto {
		return
	}
	w.auto = cur
	w.states = make([]int32, len(*cur))
	w.scan(w.head)
}

// scan runs the automata over buf[start:] and notes what they find. Each
// automaton runs over all of it in its turn: one table at a time stays in the
// processor's cache.
func (w *Writer) scan(start int) {
	if w.auto == nil {
		return
	}
	old := len(w.hits)
	for i, a := range *w.auto {
		state := w.states[i]
		for at := start; at < len(w.buf); at++ {
			if state == 0 {
				// Most bytes begin no secret.
				for at < len(w.buf) && a.root[w.buf[at]] == 0 {
					at++
				}
				if at == len(w.buf) {
					break
				}
			}
			state = a.next(state, w.buf[at])
			if n := int(a.match[state]); n > 0 {
				w.hit(old, interval{at + 1 - n, at + 1})
			}
		}
		w.states[i] = state
	}
	if len(w.hits) == old {
		return
	}
	// Of the intervals there were, only those at the end can be joined to new
	// ones; taking just these keeps the whole linear.
	fresh := w.hits[old:]
	first := fresh[0].from
	for _, h := range fresh {
		first = min(first, h.from)
	}
	for old > w.done && w.hits[old-1].to >= first {
		old--
	}
	w.hits = append(w.hits[:old], union(w.hits[old:])...)
}

// hit notes an interval, which may swallow those that the same scan found.
func (w *Writer) hit(old int, h interval) {
	for k := len(w.hits) - 1; k >= old && h.from <= w.hits[k].from && w.hits[k].to <= h.to; k-- {
		w.hits = w.hits[:k]
	}
	w.hits = append(w.hits, h)
}

// union sorts the intervals and joins those that overlap or touch, in place.
func union(hits []interval) []interval {
	slices.SortFunc(hits, func(a, b interval) int { return a.from - b.from })
	out := hits[:1]
	for _, h := range hits[1:] {
		last := &out[len(out)-1]
		if h.from <= last.to {
			last.to = max(last.to, h.to)
			continue
		}
		out = append(out, h)
	}
	return out
}

// depth is how many of the last bytes could begin a secret.
func (w *Writer) depth() int {
	d := int32(0)
	if w.auto != nil {
		for i, a := range *w.auto {
			d = max(d, a.depth[w.states[i]])
		}
	}
	return int(d)
}

// emit passes on buf[head:end].
func (w *Writer) emit(end int) error {
	if end <= w.head {
		return nil
	}
	out := w.out[:0]
	at := w.head
	for w.done < len(w.hits) && w.hits[w.done].from < end {
		h := &w.hits[w.done]
		if h.from > at {
			out = append(out, w.buf[at:h.from]...)
			w.inMask = false
		}
		if !w.inMask {
			out = append(out, Mark...)
			w.inMask = true
		}
		at = min(h.to, end)
		if h.to > end {
			h.from = end
			break
		}
		w.done++
	}
	if at < end {
		out = append(out, w.buf[at:end]...)
		w.inMask = false
	}
	w.head = end
	w.compact()
	if w.out = out; cap(out) > 8*chunk {
		w.out = nil
	}
	_, err := w.w.Write(out)
	return err
}

// compact drops what was passed on, when that is no more work than it was to
// take it in.
func (w *Writer) compact() {
	if w.head < len(w.buf)-w.head {
		return
	}
	w.hits = append(w.hits[:0], w.hits[w.done:]...)
	for i := range w.hits {
		w.hits[i].from -= w.head
		w.hits[i].to -= w.head
	}
	w.buf = append(w.buf[:0], w.buf[w.head:]...)
	w.head, w.done = 0, 0
}
