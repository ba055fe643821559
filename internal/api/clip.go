package api

import (
	"fmt"
	"strings"
)

// clip keeps the beginning and the end of what is written to it: the end is where
// errors are, the beginning says what it was about. It never fails.
type clip struct {
	head, tail []byte
	most       int // of each half
	at         int // in tail, where the next byte goes once it is full
	total      int64
}

func newClip(most int) *clip { return &clip{most: max(most/2, 1)} }

func (c *clip) Write(p []byte) (int, error) {
	n := len(p)
	c.total += int64(n)
	if room := c.most - len(c.head); room > 0 {
		k := min(room, len(p))
		c.head = append(c.head, p[:k]...)
		p = p[k:]
	}
	if len(p) > c.most {
		p = p[len(p)-c.most:]
		c.tail, c.at = c.tail[:0], 0
	}
	if room := c.most - len(c.tail); room > 0 {
		k := min(room, len(p))
		c.tail = append(c.tail, p[:k]...)
		p = p[k:]
	}
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
