package qemu

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

// console keeps the beginning of what is written to it in a file, and the end
// in memory. It never fails and never blocks on anything but the disk: a guest
// that prints without end costs maxConsole bytes.
type console struct {
	mu    sync.Mutex
	file  *os.File  // nil if none
	also  io.Writer // nil if none
	total int64
	tail  []byte
	line  []byte // the one being written, its beginning
	fatal string // the first line that says that the guest cannot go on
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(p)
	if room := maxConsole - c.total; room > 0 {
		part := p
		cut := int64(len(part)) > room
		if cut {
			part = part[:room]
		}
		if c.file != nil {
			c.file.Write(part) // a full disk costs the log, not the machine
			if cut {
				io.WriteString(c.file, "\n[hearth: the rest of the console is not kept]\n")
			}
		}
		if c.also != nil {
			c.also.Write(part)
		}
	}
	c.total += int64(n)
	for rest := p; c.fatal == "" && len(rest) > 0; {
		part, after, whole := bytes.Cut(rest, []byte{'\n'})
		c.line = append(c.line, part[:min(len(part), maxLine-len(c.line))]...)
		if bytes.Contains(c.line, []byte("Kernel panic")) || bytes.Contains(c.line, []byte("FATAL")) {
			c.fatal = lastLines(string(c.line), 1)
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

// died returns the line in which the guest said that it could not go on, "" if
// it did not.
func (c *console) died() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fatal
}

// lines returns the last lines, safe to print.
func (c *console) lines() string {
	c.mu.Lock()
	b := c.tail
	if len(b) > maxTail {
		b = b[len(b)-maxTail:]
	}
	s := string(b)
	c.mu.Unlock()
	return lastLines(s, tailLines)
}

// lastLines returns the last n non-empty lines of s without control characters:
// the guest decides what is in them.
func lastLines(s string, n int) string {
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
