package guest

import "sync"

// cost is what a frame with n bytes of payload takes of a window.
func cost(n int) int { return headerSize + n }

// credits is what one end may still send on a stream.
type credits struct {
	mu    sync.Mutex
	cond  sync.Cond
	avail int
	err   error
}

func (c *credits) init() {
	c.cond.L = &c.mu
	c.avail = Window
}

// take waits until something may be sent and returns how many of the wanted
// payload bytes may go in one frame, which it has paid for.
func (c *credits) take(want int) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	need := 1
	if want == 0 {
		need = 0
	}
	for c.avail < cost(need) && c.err == nil {
		c.cond.Wait()
	}
	if c.err != nil {
		return 0, c.err
	}
	n := min(want, c.avail-headerSize, MaxPayload)
	c.avail -= cost(n)
	return n, nil
}

// grant adds what the other end gave back. More than was ever taken is a violation.
func (c *credits) grant(n uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > Window || c.avail+int(n) > Window {
		return violation("credit beyond the window")
	}
	c.avail += int(n)
	c.cond.Broadcast()
	return nil
}

// close makes every take return err, now and later.
func (c *credits) close(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	c.cond.Broadcast()
}

// segment is a run of bytes of one channel in an inbox.
type segment struct {
	ch  uint8
	end bool
	n   int
}

// batch is what an inbox hands to its consumer.
type batch struct {
	buf  []byte
	segs []segment
	cost int
}

// each calls fn for every segment with its bytes, in the order of arrival, until fn fails.
func (b *batch) each(fn func(ch uint8, p []byte, end bool) error) error {
	at := 0
	for _, s := range b.segs {
		if err := fn(s.ch, b.buf[at:at+s.n], s.end); err != nil {
			return err
		}
		at += s.n
	}
	return nil
}

// inbox holds what arrived on a stream until its consumer takes it. The reader
// of the connection never waits for it: the window bounds it.
type inbox struct {
	mu    sync.Mutex
	ready chan struct{} // holds one token while there is something to take
	next  batch
	held  int // cost of all that arrived and was not granted again
	owed  int // consumed, to be granted
	drop  bool
	final *final
}

// final is the end of a stream: exactly one of the two is meant.
type final struct {
	result []byte
	err    error
}

func (q *inbox) init() { q.ready = make(chan struct{}, 1) }

func (q *inbox) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// put stores a copy of p. It fails if the sender had no credit for it.
func (q *inbox) put(ch uint8, p []byte, end bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	c := cost(len(p))
	if q.held+c > Window {
		return violation("more data than the window allows")
	}
	q.held += c
	if q.drop {
		return nil
	}
	q.next.cost += c
	q.next.buf = append(q.next.buf, p...)
	if k := len(q.next.segs) - 1; k >= 0 && q.next.segs[k].ch == ch && !q.next.segs[k].end {
		q.next.segs[k].n += len(p)
		q.next.segs[k].end = end
	} else {
		q.next.segs = append(q.next.segs, segment{ch, end, len(p)})
	}
	q.wake()
	return nil
}

// finish puts the end behind everything that was put.
func (q *inbox) finish(f final) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.final == nil {
		q.final = &f
	}
	q.wake()
}

// abandon drops what is held and all that still comes.
func (q *inbox) abandon() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop = true
	q.next = batch{}
}

// take swaps what arrived with the emptied batch b. It returns the stream's end
// once there is nothing before it, and false if there is nothing at all yet.
func (q *inbox) take(b *batch) (end *final, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b.buf, b.segs, b.cost = b.buf[:0], b.segs[:0], 0
	if len(q.next.segs) == 0 {
		return q.final, q.final != nil
	}
	*b, q.next = q.next, *b
	if q.final != nil {
		q.wake()
	}
	return nil, true
}

// release says that a batch was consumed and returns how much credit to grant
// now: small amounts are kept back, for a grant is a frame, too. What is kept back
// is less than a quarter of the window, so the sender never waits for it.
func (q *inbox) release(cost int) uint32 {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.owed += cost
	if q.owed < Window/4 {
		return 0
	}
	n := q.owed
	q.owed = 0
	q.held -= n
	return uint32(n)
}
