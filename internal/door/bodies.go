package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// What Take and Bytes return beside what the network says and a body that is too
// large, which is an *http.MaxBytesError.
var (
	// ErrSlow: the body came more slowly than may be.
	ErrSlow = errors.New("the body came too slowly")
	// ErrFull: too much is held for others. It may be tried again.
	ErrFull = errors.New("too many bodies at once")
	// ErrKeep: this host could not keep it.
	ErrKeep = errors.New("keeping a large body")
)

const (
	inMemory = 64 << 10 // bytes of a body, before it goes to disk
	chunk    = 16 << 10 // what is read at once of one that does
	tender   = time.Second
	patience = 5 * time.Second // in line
	look     = 250 * time.Millisecond
)

// Bodies takes in what requests carry: bounded one by one, and in sum. Zero
// fields take the default named.
//
// Until a body is whole nobody knows whether it is worth anything. So what is
// held is bounded over all of them, in memory and, beyond 64 KiB of one, in files
// that have no name; and whoever sends must send: below a rate it ends. When
// there is no room, the body that moves least gives way, of the client that has
// most of them. A client that has few goes before one that has many, and who came
// last before those who have waited, most of whom wait in vain when there are too
// many. Small bodies, as most are, do not stand in one line with large ones.
type Bodies struct {
	Count  int           // bodies at once that are not whole yet and larger than 64 KiB, or may be; 64
	Small  int           // others; 256
	Memory int64         // bytes in memory, in sum; 16 MiB
	Dir    string        // for what is larger than 64 KiB; "" keeps all in memory
	Disk   int64         // bytes in Dir, in sum; 256 MiB
	Whole  int64         // bytes of bodies that were read back into memory, in sum; 64 MiB
	Rate   int64         // bytes a second that a body must come with; 32 KiB
	Grace  time.Duration // before it must; 5 s
	Time   time.Duration // for one body altogether; 70 s

	mu        sync.Mutex
	ready     bool
	coming    map[*coming]struct{}
	clients   map[string]int // bodies that come, by client
	line      []*waiter
	mem, disk int64
	whole     int64
	freed     chan struct{} // closed and renewed when less is held
}

// coming is a body that is not whole yet.
type coming struct {
	client string
	small  bool
	began  time.Time
	stop   func() // ends a Read that waits

	// Guarded by Bodies.mu.
	mem, disk int64
	n         int64 // bytes so far
	markN     int64 // what n was at mark
	mark      time.Time
	out       bool // it has given way
}

type waiter struct {
	*coming
	woken chan struct{}
}

// Body is one that is whole. Close gives back what it holds.
type Body struct {
	of        *Bodies
	buf       []byte
	file      *os.File
	size      int64
	at        int64
	mem, disk int64
	whole     int64
}

func (b *Bodies) init() {
	if b.ready {
		return
	}
	b.ready = true
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	def(&b.Memory, 16<<20)
	def(&b.Disk, 256<<20)
	def(&b.Whole, 64<<20)
	def(&b.Rate, 32<<10)
	def((*int64)(&b.Grace), int64(5*time.Second))
	def((*int64)(&b.Time), int64(70*time.Second))
	if b.Count == 0 {
		b.Count = 64
	}
	if b.Small == 0 {
		b.Small = 256
	}
	if b.Dir == "" {
		b.Disk = 0
	}
	b.coming, b.clients, b.freed = map[*coming]struct{}{}, map[string]int{}, make(chan struct{})
}

// Take reads the body of a request, of at most most bytes, for a client (an
// address, a subject). see gets every byte as it comes, nil nobody. An error has
// the connection closed after the answer: what is left of the body stays unread.
func (b *Bodies) Take(w http.ResponseWriter, r *http.Request, most int64, client string, see io.Writer) (_ *Body, err error) {
	defer func() {
		if err != nil {
			w.Header().Set("Connection", "close")
		}
	}()
	if r.ContentLength > most {
		return nil, &http.MaxBytesError{Limit: most}
	}
	if r.ContentLength == 0 || r.Body == nil {
		return &Body{of: b}, nil
	}
	rc := http.NewResponseController(w)
	var arm sync.Mutex // of the deadline: whoever has given way stays so
	stopped := false
	c := &coming{client: client, small: r.ContentLength > 0 && r.ContentLength <= inMemory, stop: func() {
		arm.Lock()
		defer arm.Unlock()
		stopped = true
		rc.SetReadDeadline(time.Unix(1, 0))
	}}
	until := func(t time.Time) bool {
		arm.Lock()
		defer arm.Unlock()
		if !stopped {
			rc.SetReadDeadline(t) // not all writers can
		}
		return !stopped
	}
	if err := b.admit(r.Context(), c); err != nil {
		return nil, err
	}
	body := &Body{of: b}
	defer func() {
		b.leave(c, body, err == nil)
		if err != nil {
			body.drop()
		} else {
			until(time.Time{}) // for as long as the answer takes
		}
	}()
	for {
		p, err := body.room(c, r.ContentLength)
		if err != nil {
			return nil, err
		}
		due := min(b.Grace+time.Duration(float64(body.size)/float64(b.Rate)*float64(time.Second)), b.Time)
		if !until(c.began.Add(due)) {
			return nil, ErrFull
		}
		n, err := r.Body.Read(p)
		if body.size+int64(n) > most {
			return nil, &http.MaxBytesError{Limit: most}
		}
		if see != nil {
			see.Write(p[:n])
		}
		if werr := body.add(c, p[:n]); werr != nil {
			return nil, werr
		}
		switch {
		case err == io.EOF:
			return body, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			if !until(time.Now().Add(time.Second)) {
				return nil, ErrFull
			}
			return nil, ErrSlow
		case err != nil:
			return nil, fmt.Errorf("the body ended early: %w", err)
		}
	}
}

// admit lets a body begin, at once or when it is its turn.
func (b *Bodies) admit(ctx context.Context, c *coming) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.init()
	me := &waiter{c, make(chan struct{}, 1)}
	b.line = append(b.line, me)
	defer func() {
		for i, w := range b.line {
			if w == me {
				b.line = append(b.line[:i], b.line[i+1:]...)
				break
			}
		}
		b.wake()
	}()
	for end := time.Now().Add(patience); ; {
		if b.first(c.small) == me && (b.places(c.small) > 0 || b.giveWay(c, func(o *coming) bool { return o.small == c.small })) {
			c.began = time.Now()
			c.mark = c.began
			b.coming[c] = struct{}{}
			b.clients[c.client]++
			return nil
		}
		left := time.Until(end)
		if left <= 0 {
			return ErrFull
		}
		timer := time.NewTimer(min(left, look))
		b.mu.Unlock()
		select {
		case <-me.woken:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		b.mu.Lock()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// places is how many more may come, of small ones or of others.
func (b *Bodies) places(small bool) int {
	n := b.Count
	if small {
		n = b.Small
	}
	for c := range b.coming {
		if c.small == small {
			n--
		}
	}
	return n
}

// first is who is next: of the client that has fewest, the last. b.mu must be held.
func (b *Bodies) first(small bool) *waiter {
	var best *waiter
	for _, w := range b.line {
		if w.small == small && (best == nil || b.clients[w.client] <= b.clients[best.client]) {
			best = w
		}
	}
	return best
}

func (b *Bodies) wake() {
	for _, small := range []bool{true, false} {
		if w := b.first(small); w != nil {
			select {
			case w.woken <- struct{}{}:
			default:
			}
		}
	}
}

// giveWay ends the body that moves least of the client that has most, so that
// another may come, and says whether there was one. Who has only begun is
// spared, unless its client has far more than the other's.
func (b *Bodies) giveWay(to *coming, may func(*coming) bool) bool {
	now := time.Now()
	rate := func(c *coming) float64 { return float64(c.n-c.markN) / max(now.Sub(c.mark), tender).Seconds() }
	var out *coming
	for c := range b.coming {
		if c == to || !may(c) || now.Sub(c.began) < tender && b.clients[c.client] < 2*(b.clients[to.client]+1) {
			continue
		}
		if out != nil {
			x, y := b.clients[c.client], b.clients[out.client]
			if x < y || x == y && rate(c) >= rate(out) {
				continue
			}
		}
		out = c
	}
	if out == nil {
		return false
	}
	out.out = true
	b.forget(out)
	out.stop()
	return true
}

// forget takes a body off the books. b.mu must be held.
func (b *Bodies) forget(c *coming) {
	if _, ok := b.coming[c]; !ok {
		return
	}
	delete(b.coming, c)
	if b.clients[c.client]--; b.clients[c.client] == 0 {
		delete(b.clients, c.client)
	}
	b.mem -= c.mem
	b.disk -= c.disk
	if c.mem+c.disk > 0 {
		b.sunk()
	}
	c.mem, c.disk = 0, 0
}

// leave ends the coming of a body. What a whole one holds is its own from now on.
func (b *Bodies) leave(c *coming, body *Body, whole bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if whole {
		body.mem, body.disk = c.mem, c.disk
		b.mem += c.mem // forget takes it off
		b.disk += c.disk
	}
	b.forget(c)
	b.wake()
}

// charge counts what a body is about to hold. Where that is too much it waits a
// while, as long as nobody has to give way: the client waits with it.
func (b *Bodies) charge(c *coming, mem, disk int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for end := time.Now().Add(patience); ; {
		switch {
		case c.out:
			return ErrFull
		case b.mem+mem <= b.Memory && b.disk+disk <= b.Disk:
			b.mem, b.disk, c.mem, c.disk = b.mem+mem, b.disk+disk, c.mem+mem, c.disk+disk
			return nil
		case mem > 0 && b.Disk > 0 || mem > b.Memory || disk > b.Disk:
			return ErrFull // in the first case it can go to disk
		case b.giveWay(c, func(o *coming) bool { return disk > 0 && o.disk > 0 || mem > 0 && o.mem > 0 }):
			continue
		case !time.Now().Before(end):
			return ErrFull
		}
		freed := b.freed
		timer := time.NewTimer(look)
		b.mu.Unlock()
		select {
		case <-freed:
		case <-timer.C:
		}
		timer.Stop()
		b.mu.Lock()
	}
}

// sunk tells who waits that less is held. b.mu must be held.
func (b *Bodies) sunk() {
	close(b.freed)
	b.freed = make(chan struct{})
}

// room returns where the next bytes go.
func (o *Body) room(c *coming, length int64) ([]byte, error) {
	if o.file == nil && len(o.buf) < cap(o.buf) {
		return o.buf[len(o.buf):cap(o.buf)], nil
	}
	if o.file == nil {
		grown := max(2*int64(cap(o.buf)), 4<<10)
		if length > 0 {
			// One more than there should be: the end is found in the same read.
			grown = min(grown, max(length+1, 512))
		}
		spools := o.of.Disk > 0
		if !spools || grown <= inMemory {
			if err := o.of.charge(c, grown-int64(cap(o.buf)), 0); err == nil {
				buf := make([]byte, len(o.buf), grown)
				copy(buf, o.buf)
				o.buf = buf
				return o.buf[len(o.buf):cap(o.buf)], nil
			} else if !spools {
				return nil, err
			}
		}
		if err := o.spool(c); err != nil {
			return nil, err
		}
	}
	return o.buf[:cap(o.buf)], nil
}

// spool goes over to a file, which has no name: whatever becomes of us, it is gone.
func (o *Body) spool(c *coming) error {
	if err := o.of.charge(c, 0, int64(len(o.buf))); err != nil {
		return err
	}
	f, err := os.CreateTemp(o.of.Dir, "body-*")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKeep, err)
	}
	o.file = f
	if err := os.Remove(f.Name()); err != nil {
		return fmt.Errorf("%w: %w", ErrKeep, err)
	}
	if _, err := f.Write(o.buf); err != nil {
		return fmt.Errorf("%w: %w", ErrKeep, err)
	}
	o.buf = make([]byte, 0, chunk) // beside the sum: one for each of Count
	o.of.mu.Lock()
	o.of.mem -= c.mem
	c.mem = 0
	o.of.mu.Unlock()
	return nil
}

// add counts bytes that have come into room.
func (o *Body) add(c *coming, p []byte) error {
	if o.file != nil && len(p) > 0 {
		if err := o.of.charge(c, 0, int64(len(p))); err != nil {
			return err
		}
		if _, err := o.file.Write(p); err != nil {
			return fmt.Errorf("%w: %w", ErrKeep, err)
		}
	} else {
		o.buf = o.buf[:len(o.buf)+len(p)]
	}
	o.size += int64(len(p))
	o.of.mu.Lock()
	defer o.of.mu.Unlock()
	if now := time.Now(); now.Sub(c.mark) > 2*tender {
		c.mark, c.markN = now, c.n
	}
	c.n = o.size
	return nil
}

// Size is how many bytes there are.
func (o *Body) Size() int64 { return o.size }

// Read reads on, from the beginning.
func (o *Body) Read(p []byte) (n int, err error) {
	switch {
	case o.at >= o.size:
		return 0, io.EOF
	case o.file != nil:
		n, err = o.file.ReadAt(p[:min(int64(len(p)), o.size-o.at)], o.at)
	default:
		n = copy(p, o.buf[o.at:])
	}
	o.at += int64(n)
	return n, err
}

// Bytes is all of it in memory. It waits while too much is there of others.
func (o *Body) Bytes(ctx context.Context) ([]byte, error) {
	if o.file == nil {
		return o.buf, nil
	}
	b := o.of
	b.mu.Lock()
	for b.whole > 0 && b.whole+o.size > b.Whole {
		freed := b.freed
		b.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		b.mu.Lock()
	}
	b.whole += o.size
	o.whole = o.size
	b.mu.Unlock()
	all := make([]byte, o.size)
	if _, err := o.file.ReadAt(all, 0); err != nil {
		return nil, fmt.Errorf("reading a large body back: %w", err)
	}
	return all, nil
}

// Close gives back what the body holds.
func (o *Body) Close() error {
	b := o.of
	b.mu.Lock()
	b.mem -= o.mem
	b.disk -= o.disk
	b.whole -= o.whole
	if o.mem+o.disk+o.whole > 0 {
		b.sunk()
	}
	o.mem, o.disk, o.whole = 0, 0, 0
	b.wake()
	b.mu.Unlock()
	return o.drop()
}

func (o *Body) drop() error {
	o.buf = nil
	if f := o.file; f != nil {
		o.file = nil
		return f.Close()
	}
	return nil
}

// Held is what is held at the moment: bodies that come, bytes in memory and on disk.
func (b *Bodies) Held() (count int, memory, disk int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.coming), b.mem + b.whole, b.disk
}
