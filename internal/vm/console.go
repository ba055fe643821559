package vm

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync"
)

const (
	maxConsole = 1 << 20 // bytes kept of what a guest prints on its console
	maxTail    = 4 << 10 // bytes of its end kept in memory, for errors
	tailLines  = 12      // lines of that in an error
	maxLine    = 300     // bytes of one of them
)

// Console takes what a guest, or its VMM, prints: the beginning goes to a file,
// the end stays in memory. It never fails and never blocks on anything but the
// disk: a guest that prints without end costs a mebibyte. Set the fields before
// use; the zero Console keeps the end only.
type Console struct {
	File *os.File  // gets the first mebibyte; the owner closes it
	Also io.Writer // gets the same

	mu    sync.Mutex
	total int64
	tail  []byte
	line  []byte // the one being written, its beginning
	fatal string // the first line that says that the guest cannot go on
}

func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(p)
	if room := maxConsole - c.total; room > 0 {
		part := p
		cut := int64(len(part)) > room
		if cut {
			part = part[:room]
		}
		if c.File != nil {
			c.File.Write(part) // a full disk costs the log, not the machine
			if cut {
				io.WriteString(c.File, "\n[hearth: the rest of the console is not kept]\n")
			}
		}
		if c.Also != nil {
			c.Also.Write(part)
		}
	}
	c.total += int64(n)
	for rest := p; c.fatal == "" && len(rest) > 0; {
		part, after, whole := bytes.Cut(rest, []byte{'\n'})
		c.line = append(c.line, part[:min(len(part), maxLine-len(c.line))]...)
		if bytes.Contains(c.line, []byte("Kernel panic")) || bytes.Contains(c.line, []byte("FATAL")) {
			c.fatal = LastLines(string(c.line), 1)
		}
		if whole {
			c.line = c.line[:0]
		}
		rest = after
	}
	if len(p) > maxTail {
		p = p[len(p)-maxTail:]
	}
	c.tail = append(c.tail, p...)
	if len(c.tail) > 2*maxTail {
		c.tail = append(c.tail[:0], c.tail[len(c.tail)-maxTail:]...)
	}
	return n, nil
}

// Written returns how many bytes came in.
func (c *Console) Written() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

// Died returns the line in which the guest said that it could not go on, "" if it
// did not.
func (c *Console) Died() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fatal
}

// Contains reports whether s is among the last few kilobytes.
func (c *Console) Contains(s string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Contains(string(c.tail), s)
}

// Tail returns the last lines, safe to print.
func (c *Console) Tail() string {
	c.mu.Lock()
	b := c.tail
	if len(b) > maxTail {
		b = b[len(b)-maxTail:]
	}
	s := string(b)
	c.mu.Unlock()
	return LastLines(s, tailLines)
}

// LastLines returns the last n non-empty lines of s, each cut in its middle to 300
// bytes and without control characters: it is usually the guest who decides what is
// in them.
func LastLines(s string, n int) string {
	var out []string
	for l := range strings.SplitSeq(s, "\n") {
		l = strings.TrimSpace(strings.Map(func(r rune) rune {
			switch {
			case r == '\t':
				return ' '
			case r < ' ', r == 0x7f, r == '\uFFFD', r >= 0x80 && r < 0xa0:
				return -1
			}
			return r
		}, l))
		if len(l) > maxLine { // what went wrong is at the end of a line, what is meant at its beginning
			l = strings.ToValidUTF8(l[:maxLine/3], "") + " … " + strings.ToValidUTF8(l[len(l)-maxLine/3*2:], "")
		}
		if l != "" {
			out = append(out, l)
		}
	}
	if len(out) > n {
		out = out[len(out)-n:]
	}
	return strings.Join(out, "\n")
}
