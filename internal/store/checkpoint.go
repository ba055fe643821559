package store

import (
	"context"
	"database/sql"
	"sync"
	"time"
)

// SQLite copies its write-ahead log into the database within the commit that
// makes the log longer than a bound, and whoever commits then waits for the disk:
// at some hundred commits a second one in a hundred took a tenth of a second. So
// the log is copied from a connection of its own, beside the writers, and the
// bound is there only for what that cannot keep up with.
const (
	checkpointEvery = 500 * time.Millisecond
	checkpointBound = "20000" // pages, 80 MB
)

// checkpointer copies the log until it is stopped.
type checkpointer struct {
	db   *sql.DB
	stop func()
}

func newCheckpointer(db *sql.DB) *checkpointer {
	db.SetMaxOpenConns(1)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(checkpointEvery)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				// A failure costs nothing but the length of the log; the next one, or
				// the writers' bound, makes up for it.
				_, _ = db.ExecContext(ctx, `PRAGMA wal_checkpoint(PASSIVE)`)
			}
		}
	})
	return &checkpointer{db, func() { cancel(); wg.Wait() }}
}

// truncate copies the whole log and makes its file empty, which waits for readers.
func (c *checkpointer) truncate(ctx context.Context) error {
	_, err := c.db.ExecContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`)
	return err
}

func (c *checkpointer) close() error {
	if c == nil {
		return nil
	}
	c.stop()
	return c.db.Close()
}
