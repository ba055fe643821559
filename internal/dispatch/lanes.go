package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/store"
)

// errTaken is the cause with which what is done for a repository ends when another
// server has it, or may have it by now.
var errTaken = errors.New("another server drives this repository's runs")

// lanes are the repositories that this server drives. Each is a lease in the store
// ([store.Lease]), renewed while something is done for the repository and given back
// a while after.
type lanes struct {
	store  *store.Store
	owner  string
	length time.Duration
	log    *slog.Logger
	lost   func(repository string) // called when one is lost, before its context ends

	mu   sync.Mutex
	held map[string]*lane
	gone int // leases lost so far
}

// lane is one repository in this server's hands.
type lane struct {
	all   *lanes
	lease store.Lease
	// ctx ends, with errTaken, when the lease is lost: at the latest when it has run
	// out by this process's clock, which is before anybody else can have it.
	ctx  context.Context
	end  context.CancelCauseFunc
	over *time.Timer

	until time.Time // guarded by lanes.mu, as is:
	uses  int
}

func newLanes(s *store.Store, owner string, length time.Duration, log *slog.Logger) *lanes {
	return &lanes{store: s, owner: owner, length: length, log: log, held: map[string]*lane{}}
}

// keep notes a lease that was had or prolonged by what was asked at a moment, and
// counts one use of it. The caller holds mu.
func (l *lanes) keep(lease store.Lease, asked time.Time) *lane {
	n := l.held[lease.Repository]
	if n != nil && n.lease != lease {
		l.drop(n)
		n = nil
	}
	if n == nil {
		n = &lane{all: l, lease: lease}
		n.ctx, n.end = context.WithCancelCause(context.Background())
		n.over = time.AfterFunc(l.length, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.held[n.lease.Repository] == n && !time.Now().Before(n.until) {
				l.drop(n)
			}
		})
		l.held[lease.Repository] = n
	}
	n.until = asked.Add(l.length)
	n.over.Reset(time.Until(n.until))
	n.uses++
	return n
}

// drop takes note that a lease is lost. The caller holds mu.
func (l *lanes) drop(n *lane) {
	delete(l.held, n.lease.Repository)
	n.over.Stop()
	if n.uses > 0 {
		l.gone++
		l.log.Error("the lease on a repository was lost", "repository", n.lease.Repository)
	}
	if l.lost != nil {
		l.lost(n.lease.Repository)
	}
	n.end(errTaken)
}

// take takes the lease on a repository, if no other server has it. done ends the use.
func (l *lanes) take(ctx context.Context, repository string) (n *lane, ok bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, l.length/3)
	defer cancel()
	asked := time.Now()
	lease, ok, err := l.store.TakeLease(ctx, repository, l.owner, l.length)
	if err != nil || !ok {
		return nil, false, err
	}
	return l.keep(lease, asked), true, nil
}

// event takes the next event, with its repository.
func (l *lanes) event(ctx context.Context, hold time.Duration) (e store.StoredEvent, n *lane, ok bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, l.length/3)
	defer cancel()
	asked := time.Now()
	e, lease, ok, err := l.store.TakeEvent(ctx, l.owner, l.length, asked, hold)
	if err != nil || !ok {
		return e, nil, false, err
	}
	return e, l.keep(lease, asked), true, nil
}

// use counts another use of a lane that is used.
func (n *lane) use() {
	n.all.mu.Lock()
	defer n.all.mu.Unlock()
	n.uses++
}

// done ends a use.
func (n *lane) done() {
	n.all.mu.Lock()
	defer n.all.mu.Unlock()
	n.uses--
}

// mine reports whether the repository is still this server's. What leaves the process
// asks it last: the store asks for itself.
func (n *lane) mine() bool {
	n.all.mu.Lock()
	defer n.all.mu.Unlock()
	return n.ctx.Err() == nil && time.Now().Before(n.until)
}

// during returns ctx, ended with the lane.
func (n *lane) during(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(n.ctx, func() { cancel(context.Cause(n.ctx)) })
	return ctx, func() { stop(); cancel(nil) }
}

// beat renews what is used and gives back what is not.
func (l *lanes) beat(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, l.length/3)
	defer cancel()
	for _, n := range l.held {
		if n.uses == 0 {
			l.release(ctx, n)
		}
	}
	if len(l.held) == 0 {
		return nil
	}
	asked := time.Now()
	leases, err := l.store.RenewLeases(ctx, l.owner, l.length)
	if err != nil {
		return err // each ends when its time is over
	}
	have := map[store.Lease]bool{}
	for _, lease := range leases {
		have[lease] = true
		if n := l.held[lease.Repository]; n != nil && n.lease == lease {
			n.until = asked.Add(l.length)
			n.over.Reset(time.Until(n.until))
		} else if err := l.store.ReleaseLease(ctx, lease, l.owner); err != nil { // one that was lost here
			return err
		}
	}
	for _, n := range l.held {
		if !have[n.lease] {
			l.drop(n)
		}
	}
	return nil
}

// release gives a lease back. The caller holds mu.
func (l *lanes) release(ctx context.Context, n *lane) {
	delete(l.held, n.lease.Repository)
	n.over.Stop()
	n.end(errTaken)
	if err := l.store.ReleaseLease(ctx, n.lease, l.owner); err != nil {
		l.log.Error("a lease was not given back", "repository", n.lease.Repository, "err", err)
	}
}

// close gives all leases back: nothing is done any more.
func (l *lanes) close(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.held {
		l.release(ctx, n)
	}
}

// run keeps the leases until ctx ends.
func (l *lanes) run(ctx context.Context) {
	t := time.NewTicker(l.length / 4)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := l.beat(ctx); err != nil && ctx.Err() == nil {
			l.log.Warn("leases were not renewed", "err", err)
		}
	}
}
