package store

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// channel is what processes on one PostgreSQL database tell each other on: which
	// run has something new, never what.
	channel = "hearth"
	// EventsChanged is what [Store.Watch] knows pending events by.
	EventsChanged = "events"
	// idleInTransaction is how long a process may leave a transaction open without a
	// word, in milliseconds: one that is suspended would keep all others from writing.
	idleInTransaction = "8000"
	// listenAgain is how long to wait before the connection is made anew.
	listenAgain = time.Second
)

// notify tells the other processes, once the transaction is committed, that there
// is something new about a run.
func (s *Store) notify(ctx context.Context, q querier, runID string) error {
	if s.dialect != PostgreSQL {
		return nil
	}
	_, err := q.ExecContext(ctx, `SELECT pg_notify($1, $2)`, channel, runID)
	return err
}

// listener wakes the hub for what other processes notify. Its goroutine begins with
// the first watcher; nil listens to nothing.
type listener struct {
	config *pgx.ConnConfig
	hub    *hub

	mu     sync.Mutex
	cancel context.CancelFunc
	closed bool
	wg     sync.WaitGroup
}

func (l *listener) start() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cancel != nil || l.closed {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	l.wg.Go(func() {
		for ctx.Err() == nil {
			l.listen(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(listenAgain):
			}
		}
	})
}

// listen listens while the connection holds. Whoever watches looks once when it
// begins: something may have come before.
func (l *listener) listen(ctx context.Context) {
	conn, err := pgx.ConnectConfig(ctx, l.config.Copy())
	if err != nil {
		return // the database is away: watchers look by themselves
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return
	}
	l.hub.wakeAll()
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return
		}
		l.hub.wake(n.Payload)
	}
}

func (l *listener) close() {
	if l == nil {
		return
	}
	l.mu.Lock()
	l.closed = true
	if l.cancel != nil {
		l.cancel()
	}
	l.mu.Unlock()
	l.wg.Wait()
}

func (h *hub) wakeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, watchers := range h.watchers {
		for ch := range watchers {
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}
}
