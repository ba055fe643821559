package network

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Connection is what happened between a guest and one address. A refusal is
// recorded once per step, address, port and protocol.
type Connection struct {
	Step     int           `json:"step"`           // what SetStep said when it was opened; 0 is none
	Host     string        `json:"host,omitempty"` // the name this guest resolved to the address, if it did
	IP       netip.Addr    `json:"ip"`             // invalid for a refused name
	Port     uint16        `json:"port"`
	Proto    string        `json:"proto"` // tcp, udp, dns (a refused name)
	Refused  bool          `json:"refused,omitempty"`
	Reason   string        `json:"reason,omitempty"`  // of the refusal, or why it could not be made
	BytesOut int64         `json:"bytes_out"`         // from the guest
	BytesIn  int64         `json:"bytes_in"`          // to the guest
	Start    time.Time     `json:"start"`             // wall clock
	Duration time.Duration `json:"duration"`          // nanoseconds
	Dropped  int           `json:"dropped,omitempty"` // if > 0: this stands for so many connections beyond Limits.Records
}

// recorder hands connections out and bounds how many.
type recorder struct {
	out func(Connection)
	max int

	mu    sync.Mutex
	count map[int]int          // records by step
	extra map[int]*Connection  // what was beyond, by step
	seen  map[refusal]struct{} // refusals recorded already
}

// refusal is what makes two refusals the same: a guest that tries again every
// millisecond makes no more of a record than one that tries once.
type refusal struct {
	step        int
	proto, host string
	to          netip.AddrPort
}

func newRecorder(out func(Connection), limit int) *recorder {
	return &recorder{out: out, max: limit, count: map[int]int{}, extra: map[int]*Connection{}, seen: map[refusal]struct{}{}}
}

// add passes one connection on, one call at a time.
func (r *recorder) add(c Connection) {
	if r.out == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.Refused {
		key := refusal{c.Step, c.Proto, c.Host, netip.AddrPortFrom(c.IP, c.Port)}
		if _, ok := r.seen[key]; ok {
			return
		}
		if len(r.seen) < r.max {
			r.seen[key] = struct{}{}
		}
	}
	// Steps are numbered by us, but how many there are is the workflow's choice.
	if len(r.count) > 10_000 {
		c.Step = 0
	}
	if r.count[c.Step] >= r.max {
		e := r.extra[c.Step]
		if e == nil {
			e = &Connection{Step: c.Step, Proto: c.Proto, Start: c.Start}
			r.extra[c.Step] = e
		}
		e.Dropped++
		e.BytesIn += c.BytesIn
		e.BytesOut += c.BytesOut
		e.Refused = e.Refused || c.Refused
		e.Duration = time.Since(e.Start)
		return
	}
	r.count[c.Step]++
	r.out(c)
}

// flush hands out what was beyond the limit.
func (r *recorder) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.extra {
		e.Reason = fmt.Sprintf("%d more connections than are recorded for a step", e.Dropped)
		r.out(*e)
	}
	r.extra = map[int]*Connection{}
}

// flow is a connection under way.
type flow struct {
	c       Connection
	in, out atomic.Int64
}

func (f *flow) end() Connection {
	c := f.c
	c.BytesIn, c.BytesOut, c.Duration = f.in.Load(), f.out.Load(), time.Since(f.c.Start)
	return c
}

// nameTable remembers which names were answered with which addresses, the
// latest last. It is bounded: the address not asked for the longest goes first.
type nameTable struct {
	mu    sync.Mutex
	max   int
	names map[netip.Addr][]string
	order []netip.Addr
}

// maxNamesPerAddress bounds how many names one address is known by.
const maxNamesPerAddress = 8

func newNameTable(limit int) *nameTable {
	return &nameTable{max: limit, names: map[netip.Addr][]string{}}
}

func (t *nameTable) add(ip netip.Addr, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old, ok := t.names[ip]; ok {
		t.order = slices.DeleteFunc(t.order, func(a netip.Addr) bool { return a == ip })
		old = slices.DeleteFunc(old, func(n string) bool { return n == name })
		if len(old) >= maxNamesPerAddress {
			old = slices.Delete(old, 0, 1)
		}
		t.names[ip] = append(old, name)
	} else {
		if len(t.order) >= t.max {
			delete(t.names, t.order[0])
			t.order = slices.Delete(t.order, 0, 1)
		}
		t.names[ip] = []string{name}
	}
	t.order = append(t.order, ip)
}

// lookup returns the names of an address, the latest last.
func (t *nameTable) lookup(ip netip.Addr) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.names[ip])
}
