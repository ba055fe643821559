package api

import (
	"net/http"
	"sync"
	"time"
)

// Quotas is what one subject may hold at once, and all of them. Zero fields take
// the default named. What a machine's own token does counts for the machine's
// owner.
type Quotas struct {
	VMs, AllVMs                     int   // 32, 64
	Executions, AllExecutions       int   // under way; 64, 256
	Snapshots, AllSnapshots         int   // 32, 128
	SnapshotBytes, AllSnapshotBytes int64 // on disk; 8 GiB, 32 GiB
	// AllOutput is how many bytes of output are held for answers, in sum; 32 MiB.
	// An answer has less of a program's output where there is no more.
	AllOutput int64
}

func (q *Quotas) defaults() {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&q.AllVMs, 64)
	def(&q.VMs, min(32, q.AllVMs))
	def(&q.AllExecutions, 256)
	def(&q.Executions, min(64, q.AllExecutions))
	def(&q.AllSnapshots, 128)
	def(&q.Snapshots, min(32, q.AllSnapshots))
	if q.AllSnapshotBytes == 0 {
		q.AllSnapshotBytes = 32 << 30
	}
	if q.SnapshotBytes == 0 {
		q.SnapshotBytes = min(8<<30, q.AllSnapshotBytes)
	}
	if q.AllOutput == 0 {
		q.AllOutput = 32 << 20
	}
}

// use is what is held.
type use struct {
	vms, runs, shots int
	bytes            int64 // of snapshots
}

// books says who holds what.
type books struct {
	quotas Quotas

	mu  sync.Mutex
	all use
	of  map[owner]*use
}

// take counts more for an owner, or says why that may not be. What was taken is
// given back with give.
func (b *books) take(o owner, more use) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	own := b.of[o]
	if own == nil {
		own = &use{}
	}
	full := func(code, hint, what string, held, most int64, mine bool) error {
		whose := "you have"
		if !mine {
			whose = "all subjects together have"
		}
		return problem(http.StatusTooManyRequests, code, hint, "%s %d %s, and may have %d", whose, held, what, most).later(30 * time.Second)
	}
	q := b.quotas
	for _, c := range []struct {
		code, hint, what     string
		more, own, all       int64
		ownLimit, everyLimit int64
	}{
		{"too_many_vms", "delete some: GET /api/vms lists them", "VMs", int64(more.vms), int64(own.vms), int64(b.all.vms), int64(q.VMs), int64(q.AllVMs)},
		{"too_many_executions", "wait for some of them to end", "programs running", int64(more.runs), int64(own.runs), int64(b.all.runs), int64(q.Executions),
			int64(q.AllExecutions)},
		{"too_many_snapshots", "delete VMs that have some: they go with their VM", "snapshots", int64(more.shots), int64(own.shots), int64(b.all.shots),
			int64(q.Snapshots), int64(q.AllSnapshots)},
		{"too_many_snapshots", "delete VMs that have some: they go with their VM", "bytes of snapshots", more.bytes, own.bytes, b.all.bytes, q.SnapshotBytes,
			q.AllSnapshotBytes},
	} {
		switch {
		case c.more <= 0:
		case c.own+c.more > c.ownLimit:
			return full(c.code, c.hint, c.what, c.own, c.ownLimit, true)
		case c.all+c.more > c.everyLimit:
			return full(c.code, c.hint, c.what, c.all, c.everyLimit, false)
		}
	}
	if b.of == nil {
		b.of = map[owner]*use{}
	}
	b.of[o] = own
	own.add(more, 1)
	b.all.add(more, 1)
	return nil
}

// give counts less for an owner. It may also correct what was taken by estimate:
// then it is negative.
func (b *books) give(o owner, less use) {
	b.mu.Lock()
	defer b.mu.Unlock()
	own := b.of[o]
	own.add(less, -1)
	b.all.add(less, -1)
	if *own == (use{}) {
		delete(b.of, o)
	}
}

func (u *use) add(v use, sign int) {
	u.vms += sign * v.vms
	u.runs += sign * v.runs
	u.shots += sign * v.shots
	u.bytes += int64(sign) * v.bytes
}

// store is room for what programs print, shared by all that run.
type store struct {
	mu   sync.Mutex
	left int64
}

// take takes n bytes, or as many as there are.
func (s *store) take(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n = int(min(int64(n), s.left))
	s.left -= int64(n)
	return n
}

func (s *store) give(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left += int64(n)
}
