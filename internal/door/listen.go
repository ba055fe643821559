package door

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// Listener bounds how many connections there are. When there are too many, one
// that does nothing gives way, of the client that has most: waiting in line
// would let whoever opens connections and says nothing keep everybody out.
// Accept is the listener's; State is for http.Server.ConnState, by which it
// hears what a connection does.
type Listener struct {
	net.Listener
	most int

	mu    sync.Mutex
	conns map[net.Conn]*known
}

type known struct {
	client string
	since  time.Time // of what it does now
	idle   bool      // no request of it is being answered
}

// Limit returns a listener of which at most most connections are open.
func Limit(l net.Listener, most int) *Listener {
	return &Listener{Listener: l, most: most, conns: map[net.Conn]*known{}}
}

// Accept returns the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := Client(c.RemoteAddr().String())
		tracked := &conn{Conn: c, of: l}
		l.mu.Lock()
		var out net.Conn
		if len(l.conns) >= l.most {
			if out = l.victim(); out == nil {
				l.mu.Unlock()
				c.Close() // all of them are at work
				continue
			}
			delete(l.conns, out)
		}
		l.conns[tracked] = &known{client: client, since: time.Now(), idle: true}
		l.mu.Unlock()
		if out != nil {
			out.Close()
		}
		return tracked, nil
	}
}

// victim is the connection that has been idle longest, of the client that has
// most idle ones. l.mu must be held.
func (l *Listener) victim() net.Conn {
	count := map[string]int{}
	for _, k := range l.conns {
		if k.idle {
			count[k.client]++
		}
	}
	var best net.Conn
	for c, k := range l.conns {
		if !k.idle {
			continue
		}
		b := l.conns[best]
		if b == nil || count[k.client] > count[b.client] || count[k.client] == count[b.client] && k.since.Before(b.since) {
			best = c
		}
	}
	return best
}

// State hears what has become of a connection.
func (l *Listener) State(c net.Conn, s http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.conns[c]; k != nil && (s == http.StateActive || s == http.StateIdle) {
		k.since, k.idle = time.Now(), s == http.StateIdle
	}
}

// Open is how many connections there are.
func (l *Listener) Open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// conn leaves the count when it is closed, by whomever.
type conn struct {
	net.Conn
	of *Listener
}

func (c *conn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite lets the HTTP server end a connection in order.
func (c *conn) CloseWrite() error {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		return t.CloseWrite()
	}
	return nil
}
