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
	fatal bool // a line that says that the guest did not want to end has been seen
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
	// A word cut in two by the end of a read is in the tail by then.
	if !c.fatal {
		seen := append(c.tail[max(0, len(c.tail)-32):len(c.tail):len(c.tail)], p...)
		c.fatal = bytes.Contains(seen, []byte("Kernel panic")) || bytes.Contains(seen, []byte("FATAL"))
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

func (c *console) written() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

// died reports whether the guest said that it could not go on.
func (c *console) died() bool {
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
	for _, l := range strings.Split(s, "\n") {
		l = strings.TrimSpace(strings.Map(func(r rune) rune {
			switch {
			case r == '\t':
				return ' '
			case r < ' ', r == 0x7f, r == '\uFFFD', r >= 0x80 && r < 0xa0:
				return -1
			}
			return r
		}, l))
		if len(l) > 300 {
			l = l[:300] + "…"
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
