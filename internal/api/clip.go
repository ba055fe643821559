package api

import (
	"fmt"
	"strings"
)

// clip keeps the beginning and the end of what is written to it: the end is where
// errors are, the beginning says what it was about. It never fails. Where the room
// that it shares with others is used up it keeps less.
type clip struct {
	head, tail         []byte
	headMost, tailMost int
	from               *store
	taken              int // of it
	at                 int // in tail, where the next byte goes once it is full
	total              int64
}

// clipLeast is how much of each half is kept whatever others hold.
const clipLeast = 2 << 10

func newClip(most int, from *store) *clip {
	half := max(most/2, 1)
	return &clip{headMost: half, tailMost: half, from: from}
}

// fill appends as much of p to a half as it may have, and returns the rest.
func (c *clip) fill(half *[]byte, most *int, p []byte) []byte {
	want := min(*most-len(*half), len(p))
	got := min(max(clipLeast-len(*half), 0), want)
	if want > got {
		k := c.from.take(want - got)
		c.taken += k
		got += k
	}
	*half = append(*half, p[:got]...)
	if got < want { // nor later: what is left out is one piece
		*most = len(*half)
	}
	return p[got:]
}

func (c *clip) Write(p []byte) (int, error) {
	n := len(p)
	c.total += int64(n)
	p = c.fill(&c.head, &c.headMost, p)
	if over := len(p) - c.tailMost; over > 0 {
		p = p[over:]
	}
	p = c.fill(&c.tail, &c.tailMost, p)
	for len(p) > 0 {
		k := copy(c.tail[c.at:], p)
		p = p[k:]
		c.at = (c.at + k) % len(c.tail)
	}
	return n, nil
}

func (c *clip) cut() bool { return c.total > int64(len(c.head)+len(c.tail)) }

func (c *clip) String() string {
	var b strings.Builder
	b.Write(c.head)
	if c.cut() {
		fmt.Fprintf(&b, "\n… %d bytes left out …\n", c.total-int64(len(c.head)+len(c.tail)))
	}
	b.Write(c.tail[c.at:])
	b.Write(c.tail[:c.at])
	return strings.ToValidUTF8(b.String(), "\uFFFD")
}
