// Package text says what people see of the bytes that a machine prints.
//
// There is one definition of that here, and two who use it: whoever shows text
// takes [Clean], which makes it safe to show, and whoever looks for secrets in a
// stream takes a [Scanner], which says of every byte what Clean would do with it.
// That they agree is the point: a secret with a colour, a NUL or a zero-width
// space inside is not the secret's bytes, and yet people read the secret.
//
// # What is what
//
//   - Escape sequences (ECMA-48) are not seen, and are dropped: ESC with its
//     intermediates and final byte, CSI with its parameters, the strings OSC, DCS,
//     SOS, PM and APC up to BEL, ESC, CAN, SUB or the end of the line. Their 8-bit
//     forms (U+009B and its like) too.
//   - Other control characters, and those that turn the direction of the text
//     around, are dropped. A tab stays.
//   - Line ends are line ends; where text has to be one line they become a space,
//     so that cleaning never joins what stood on two lines.
//   - Characters without a shape of their own (zero-width spaces and joiners, soft
//     hyphens, variation selectors, tags) are unseen: they stay, since they mean
//     something in some scripts and in emoji, but nobody can tell that they are there.
//   - Bytes that are no UTF-8 become U+FFFD.
//
// What a terminal would show after characters were written over (backspace, a
// lone carriage return) is not worked out: the backspace is dropped, and what it
// would have overwritten is shown beside what overwrote it.
package text

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"
)

// Class says what is seen of some bytes.
type Class uint8

// The classes.
const (
	Shown   Class = iota // valid text
	Unseen               // one character that stays, and that nobody sees
	Dropped              // a control character, or part of an escape sequence
	Return               // \r
	LineEnd              // \n
	Invalid              // one byte that is no UTF-8
)

// Scanner tells the classes of a stream's bytes. The zero value is at the
// beginning of a line.
type Scanner struct{ state state }

type state uint8

const (
	ground    state = iota
	escape          // after ESC
	between         // in the intermediates of an escape sequence
	parameter       // in a control sequence
	str             // in a control string
)

// Next returns how many bytes at the beginning of b, which is not empty, are of
// one class, and which: as many as it can see, except that characters which are
// not Shown come one at a time. It returns 0 when b is the beginning of a
// character and more bytes are needed; final says that there are no more.
func (s *Scanner) Next(b []byte, final bool) (int, Class) {
	switch c := b[0]; s.state {
	case escape, between:
		switch {
		case s.state == escape && c == '[':
			s.state = parameter
			return 1, Dropped
		case s.state == escape && (c == ']' || c == 'P' || c == 'X' || c == '^' || c == '_'):
			s.state = str
			return 1, Dropped
		case c >= 0x20 && c <= 0x2f:
			s.state = between
			return 1, Dropped
		case c >= 0x30 && c <= 0x7e:
			s.state = ground
			return 1, Dropped
		}
	case parameter:
		n := 0
		for n < len(b) && b[n] >= 0x20 && b[n] <= 0x3f {
			n++
		}
		if n < len(b) && b[n] >= 0x40 && b[n] <= 0x7e {
			s.state = ground
			n++
		}
		if n > 0 {
			return n, Dropped
		}
	case str:
		n := 0
		for n < len(b) && !endsString[b[n]] {
			n++
		}
		if n > 0 {
			return n, Dropped
		}
		if c == 0x07 || c == 0x18 || c == 0x1a {
			s.state = ground
			return 1, Dropped
		}
	}
	// Anything else ends what there was, and counts for itself.
	s.state = ground
	n := 0
	for n < len(b) {
		if n+8 <= len(b) {
			// Eight bytes at once: none is beyond ASCII, DEL or below a space.
			const ones, high = 0x0101010101010101, 0x8080808080808080
			x := binary.LittleEndian.Uint64(b[n:])
			if (x|(x+ones)|((x-0x20*ones)&^x))&high == 0 {
				n += 8
				continue
			}
		}
		if plain[b[n]] {
			n++
			continue
		}
		if b[n] < utf8.RuneSelf {
			break
		}
		r, size := utf8.DecodeRune(b[n:])
		if r == utf8.RuneError && size <= 1 || class(r) != Shown {
			break
		}
		n += size
	}
	if n > 0 {
		return n, Shown
	}
	switch c := b[0]; {
	case c == '\n':
		return 1, LineEnd
	case c == '\r':
		return 1, Return
	case c == 0x1b:
		s.state = escape
		return 1, Dropped
	case c < utf8.RuneSelf:
		return 1, Dropped
	case !final && !utf8.FullRune(b):
		return 0, Shown
	}
	r, size := utf8.DecodeRune(b)
	if r == utf8.RuneError && size <= 1 {
		return 1, Invalid
	}
	switch r {
	case 0x9b:
		s.state = parameter
	case 0x90, 0x98, 0x9d, 0x9e, 0x9f:
		s.state = str
	}
	return size, class(r)
}

// plain are the bytes that are a character, shown; endsString those that a
// control string does not go beyond.
var plain, endsString = func() (p, e [256]bool) {
	for c := 0x20; c < 0x7f; c++ {
		p[c] = true
	}
	p['\t'] = true
	for _, c := range "\a\n\r\x18\x1a\x1b" {
		e[c] = true
	}
	return p, e
}()

// class is the class of a character that is not ASCII.
func class(r rune) Class {
	switch {
	case r < 0xa0:
		return Dropped
	case r == 0xad, r == 0x34f, r == 0x61c, r == 0x115f, r == 0x1160, r == 0x17b4, r == 0x17b5, r >= 0x180b && r <= 0x180f:
		return Unseen
	case r < 0x2000:
		return Shown
	case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069: // would reorder what is read
		return Dropped
	case r >= 0x200b && r <= 0x200f, r == 0x2028, r == 0x2029, r >= 0x2060 && r <= 0x206f,
		r == 0x3164, r >= 0xfe00 && r <= 0xfe0f, r == 0xfeff, r == 0xffa0, r >= 0xfff0 && r <= 0xfffb,
		r >= 0x1d173 && r <= 0x1d17a, r >= 0xe0000 && r <= 0xe0fff:
		return Unseen
	}
	return Shown
}

// Clean makes text out of a machine safe to show in one line: valid UTF-8, no
// control characters but tabs, nothing of escape sequences, a space for each line
// end that something follows. Cleaning it again changes nothing.
func Clean(s string) string {
	dirty := false
	for i := range len(s) {
		if !plain[s[i]] {
			dirty = true
			break
		}
	}
	if !dirty {
		return s
	}
	var (
		out   strings.Builder
		scan  Scanner
		was   Class
		lines int // that have ended and are followed by nothing yet
	)
	for b := []byte(s); len(b) > 0; {
		n, c := scan.Next(b, true)
		switch c {
		case Return:
			lines++
		case LineEnd:
			if was != Return {
				lines++
			}
		case Shown, Unseen, Invalid:
			for ; lines > 0; lines-- {
				out.WriteByte(' ')
			}
			if c == Invalid {
				out.WriteRune(utf8.RuneError)
			} else {
				out.Write(b[:n])
			}
		}
		was = c
		b = b[n:]
	}
	return out.String()
}
