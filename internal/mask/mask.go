// Package mask keeps secrets out of everything a job prints.
//
// A [Set] holds the secrets of one job: those it was given, and those it names
// at run time with ::add-mask::. A [Writer] copies a stream to another writer
// as people see it (package text: without control characters and escape
// sequences) and puts *** where a secret stood, however the stream was cut into
// chunks.
//
// # What is masked
//
// Every secret as it is, trimmed, without surrounding quotes, line by line, in
// upper and in lower case, and in the encodings in which secrets usually leak:
// base64 (at the three offsets it can have inside something longer, padded or
// not, URL-safe or not, wrapped at 64 or 76 columns, once more in base64, and of
// UTF-16 as PowerShell makes it), base32, hexadecimal (both cases, plain, as
// colons or spaces separate it, in pairs, as \x and %), percent-encoding, JSON,
// XML and HTML, shell and PowerShell quoting, GitHub expression strings and
// workflow commands (derive.go). As on GitHub a secret may be as short as one
// character, and then every such character goes; only white space alone is no
// secret. Encodings of a part that would be shorter than four characters are left
// out, since they would mask half of every log, and of secrets beyond 4 KiB what is
// rarely made of them (base32, base64 of base64 at an offset).
//
// A secret is looked for twice: in the bytes as they came, and in what is seen of
// them. Colours, NULs, backspaces, zero-width characters or any escape sequence
// inside a secret do not hide it from the second, nor does what an escape
// sequence swallows of it from the first. Since it is the writer itself that
// drops what is not seen, nobody after it can join the pieces of a secret.
//
// # What is not
//
// Compression and encryption; a secret in pieces with other text between them, on
// several lines (a hex dump's, cut -c), written over itself by backspaces, with
// markup inside; characters that only look alike; reversed or rotated; a secret
// that somebody reads aloud. Masking is a net, not a wall.
//
// # How
//
// Patterns are found by Aho-Corasick automata of our own (automaton.go): one step
// per byte whatever the number of secrets, and the depth of the state says how
// many bytes could still turn out to be the beginning of a secret. Only these are
// held back, so memory is bounded by the longest pattern. Long patterns of large
// sets are found by rolling hashes of their blocks (block.go), so that the memory
// of a set is a small multiple of the secrets in it. No pattern contains a line
// end (each line of a secret is a pattern), so nothing is ever held beyond the end
// of its line. Overlapping and touching matches become one ***, which also hides
// how many there were.
package mask

import (
	"io"
	"slices"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/text"
)

// Mark is what stands where a secret stood.
const Mark = "***"

// Writer cleans and masks what is written to it and passes it on. It is not safe
// for concurrent use: one writer per stream. A carriage return is the end of a
// line here, with the line feed after it or without one.
type Writer struct {
	w     io.Writer
	set   *Set
	field bool // a line end is white space in a pattern

	now  *finders // what states belong to
	scan text.Scanner
	rest []byte // of a character that has not come whole
	cr   bool   // a \r, of which it is not known yet what it is
	// unseen counts the characters before the next one that nobody sees.
	unseen int

	raw, seen view
	// alike counts the bytes that both views took since they last differed, up
	// to block: beyond it their windows are the same, and only that of seen is kept.
	alike int

	// buf is what has been cleaned and not passed on yet, since it could be part of
	// a secret, from position head of the stream on; base is the position of buf[0].
	// What is before head is dropped when it is more than the rest.
	buf        []byte
	base, head int
	// hits[done:] are the masked intervals from head on, ascending, apart, but for
	// those from fresh on, which are as they were found.
	hits  []interval
	done  int
	fresh int
	// inMask says that the byte before head was masked.
	inMask bool
	found  bool
	out    []byte
}

type interval struct{ from, to int }

// view is a way to look at the stream: all its bytes, or those that are seen.
type view struct {
	states []int32
	window window
	n      int // bytes taken since the line began
	// places say where in the stream that is passed on byte n is; between two of
	// them each byte is one behind the other.
	places []place
}

type place struct{ n, at int }

// maxUnseen is how many characters that nobody sees are passed on in a row.
const maxUnseen = 8

// NewWriter returns a Writer that masks the secrets of set on their way to w.
// A nil set masks nothing, and cleans.
func NewWriter(w io.Writer, set *Set) *Writer { return &Writer{w: w, set: set} }

// chunk bounds how much is looked at before it is passed on.
const chunk = 32 << 10

// Write passes p on, except for what might be the beginning of a secret. The
// count it returns is of p, not of what reached the underlying writer.
func (w *Writer) Write(p []byte) (int, error) {
	size := len(p)
	if len(w.rest) > 0 {
		p = append(w.rest, p...)
		w.rest = nil
	}
	for len(p) > 0 {
		n, err := w.write(p[:min(len(p), chunk)], false)
		if err != nil {
			return min(size, max(0, size-len(p))), err
		}
		if n == 0 {
			w.rest = slices.Clone(p)
			break
		}
		p = p[n:]
	}
	return size, nil
}

// write takes what it can of p.
func (w *Writer) write(p []byte, final bool) (int, error) {
	w.refresh()
	w.fresh = len(w.hits)
	taken := 0
	for taken < len(p) {
		n, class := w.scan.Next(p[taken:], final)
		if n == 0 {
			break
		}
		w.take(class, p[taken:taken+n])
		taken += n
	}
	w.join()
	return taken, w.emit(w.safe())
}

// Flush passes on what is held back: the stream has ended, or what follows does
// not belong to it.
func (w *Writer) Flush() error {
	if len(w.rest) > 0 {
		rest := w.rest
		w.rest = nil
		if _, err := w.write(rest, true); err != nil {
			return err
		}
	}
	w.refresh()
	err := w.emit(w.end())
	w.inMask, w.cr, w.scan = false, false, text.Scanner{}
	w.newLine()
	return err
}

// refresh takes up secrets that were added since, for the held bytes too.
func (w *Writer) refresh() {
	if w.set == nil {
		return
	}
	now := w.set.now.Load()
	if now == w.now {
		return
	}
	w.now = now
	w.raw.states, w.seen.states = make([]int32, len(now.autos)), make([]int32, len(now.autos))
	w.newLine()
	w.fresh = len(w.hits)
	var scan text.Scanner
	at := w.head
	for held := w.buf[w.head-w.base:]; len(held) > 0; {
		n, class := scan.Next(held, true)
		w.look(class, held[:n], at)
		at += n
		held = held[n:]
	}
	w.join()
}

func (w *Writer) end() int { return w.base + len(w.buf) }

// take cleans bytes of one class, and looks at them.
func (w *Writer) take(class text.Class, b []byte) {
	if w.cr && class != text.LineEnd {
		w.cr = false
		w.take(text.LineEnd, []byte{'\n'})
	}
	w.cr = class == text.Return
	at := w.end()
	switch class {
	case text.Invalid:
		w.buf = utf8.AppendRune(w.buf, utf8.RuneError)
	case text.Unseen:
		if w.unseen++; w.unseen > maxUnseen {
			class = text.Dropped
		} else {
			w.buf = append(w.buf, b...)
		}
	case text.Shown, text.LineEnd:
		w.unseen = 0
		w.buf = append(w.buf, b...)
	}
	w.look(class, b, at)
}

// look looks for secrets in bytes that are, as far as they are shown, at a
// position of the stream.
func (w *Writer) look(class text.Class, b []byte, at int) {
	if w.now == nil {
		return
	}
	switch class {
	case text.Shown:
		w.both(b, at)
	case text.Invalid:
		w.differ()
		w.follow(&w.raw, b, at, w.end()-at)
		w.follow(&w.seen, b, at, w.end()-at)
	case text.Unseen:
		w.differ()
		w.follow(&w.raw, b, at, 1)
	case text.Dropped:
		w.differ()
		w.follow(&w.raw, b, at, 0)
	case text.LineEnd:
		if !w.field {
			w.newLine()
			break
		}
		w.differ()
		w.follow(&w.raw, b, at, 1)
		w.follow(&w.seen, []byte{' '}, at, 1)
	}
}

// newLine forgets what came before.
func (w *Writer) newLine() {
	for _, v := range []*view{&w.raw, &w.seen} {
		clear(v.states)
		v.window = window{}
		v.n, v.places = 0, v.places[:0]
	}
	w.alike = block
}

// differ is called before one of the views takes what the other does not.
func (w *Writer) differ() {
	if w.alike >= block {
		w.raw.window = w.seen.window
	}
	w.alike = 0
}

// both lets both views take bytes that are shown. As soon as their states are the
// same only one of them needs to look: the same bytes lie behind them, and where
// they differ in what they have left out, those of seen reach back further.
func (w *Writer) both(b []byte, at int) {
	raw, seen := &w.raw, &w.seen
	raw.locate(at)
	seen.locate(at)
	for i, a := range w.now.autos {
		r, s := raw.states[i], seen.states[i]
		k := 0
		for ; r != s && k < len(b); k++ {
			r = a.next(r, b[k])
			w.matched(raw, a.match[r], k, at+k+1)
			s = a.next(s, b[k])
			w.matched(seen, a.match[s], k, at+k+1)
		}
		if r != s {
			raw.states[i], seen.states[i] = r, s
			continue
		}
		for ; k < len(b); k++ {
			if s == 0 {
				k = a.skip(b, k) // most bytes begin no secret
			}
			s = a.next(s, b[k])
			if n := a.match[s]; n > 0 {
				w.matched(seen, n, k, at+k+1)
			}
		}
		raw.states[i], seen.states[i] = s, s
	}
	if t := w.now.blocks; t != nil {
		for k, c := range b {
			if w.alike < block {
				w.alike++
				if raw.window.add(c) && t.has(raw.window.sum) {
					w.matched(raw, block, k, at+k+1)
				}
			}
			if seen.window.add(c) && t.has(seen.window.sum) {
				w.matched(seen, block, k, at+k+1)
			}
		}
	}
	raw.n += len(b)
	seen.n += len(b)
	w.forget(raw)
	w.forget(seen)
}

// follow lets one view take bytes, each of which is step bytes of what is passed on.
func (w *Writer) follow(v *view, b []byte, at, step int) {
	v.locate(at)
	for i, a := range w.now.autos {
		s := v.states[i]
		for k, c := range b {
			if s = a.next(s, c); a.match[s] > 0 {
				w.matched(v, a.match[s], k, at+step*(k+1))
			}
		}
		v.states[i] = s
	}
	if t := w.now.blocks; t != nil {
		for k, c := range b {
			if v.window.add(c) && t.has(v.window.sum) {
				w.matched(v, block, k, at+step*(k+1))
			}
		}
	}
	v.n += len(b)
	w.forget(v)
}

// locate says where in what is passed on the next byte of v is.
func (v *view) locate(at int) {
	if k := len(v.places); k > 0 {
		if p := v.places[k-1]; p.at+v.n-p.n == at {
			return
		}
	}
	v.places = append(v.places, place{v.n, at})
}

// at is where byte n of v is, at most end.
func (v *view) at(n, end int) int {
	k, exact := slices.BinarySearchFunc(v.places, n, func(p place, n int) int { return p.n - n })
	if exact {
		return min(v.places[k].at, end)
	}
	if k == 0 {
		return end
	}
	if k < len(v.places) {
		end = min(end, v.places[k].at)
	}
	return min(v.places[k-1].at+n-v.places[k-1].n, end)
}

// depth is how many of the last bytes of v could begin a secret.
func (w *Writer) depth(v *view) int {
	d := 0
	for i, a := range w.now.autos {
		d = max(d, int(a.depth[v.states[i]]))
	}
	if w.now.blocks != nil {
		d = max(d, min(v.n, block-1))
	}
	return d
}

// forget drops the places that nothing can reach back to.
func (w *Writer) forget(v *view) {
	if len(v.places) < 64 || len(v.places)&(len(v.places)-1) != 0 {
		return
	}
	from := v.n - w.depth(v)
	k, exact := slices.BinarySearchFunc(v.places, from, func(p place, n int) int { return p.n - n })
	if !exact {
		k--
	}
	if k > len(v.places)/2 {
		v.places = slices.Delete(v.places, 0, k)
	}
}

// matched notes that size bytes of v up to byte k of those that it takes now are a
// secret; end is where they end in what is passed on.
func (w *Writer) matched(v *view, size uint16, k, end int) {
	if size == 0 {
		return
	}
	w.found = true
	from := v.n + k + 1 - int(size)
	h := interval{v.at(from, end), end}
	if h.from >= h.to {
		return // nothing of it is passed on
	}
	h.from = max(h.from, w.head)
	for i := len(w.hits) - 1; i >= w.fresh && h.from <= w.hits[i].from && w.hits[i].to <= h.to; i-- {
		w.hits = w.hits[:i]
	}
	w.hits = append(w.hits, h)
}

// join brings the hits that were found now in order. Of the intervals there were,
// only those at the end can be joined to new ones; taking just these keeps the
// whole linear.
func (w *Writer) join() {
	old := w.fresh
	if len(w.hits) == old {
		return
	}
	first := w.hits[old].from
	for _, h := range w.hits[old:] {
		first = min(first, h.from)
	}
	for old > w.done && w.hits[old-1].to >= first {
		old--
	}
	w.hits = append(w.hits[:old], union(w.hits[old:])...)
	w.fresh = len(w.hits)
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

// safe is how far the stream can be passed on: no secret can begin before it.
func (w *Writer) safe() int {
	end := w.end()
	if w.now == nil {
		return end
	}
	to := end
	for _, v := range []*view{&w.raw, &w.seen} {
		if d := w.depth(v); d > 0 {
			to = min(to, v.at(v.n-d, end))
		}
	}
	return to
}

// emit passes on what is before end.
func (w *Writer) emit(end int) error {
	if end <= w.head {
		return nil
	}
	out := w.out[:0]
	at := w.head
	for w.done < len(w.hits) && w.hits[w.done].from < end {
		h := &w.hits[w.done]
		if h.from > at {
			out = append(out, w.buf[at-w.base:h.from-w.base]...)
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
		out = append(out, w.buf[at-w.base:end-w.base]...)
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
	passed := w.head - w.base
	if passed < len(w.buf)-passed {
		return
	}
	w.hits = append(w.hits[:0], w.hits[w.done:]...)
	w.done, w.fresh = 0, len(w.hits)
	w.buf = append(w.buf[:0], w.buf[passed:]...)
	w.base = w.head
}
