package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// A Lease is the right of one server to drive the runs of one repository. Servers
// that share a database hold repositories, not single runs: the order of pushes,
// concurrency groups and the bounds of a repository are then the affair of one
// process. Fence grows each time the repository changes hands, and what is written
// under an older one is refused with [ErrFenced]. The zero Lease asks nobody: it
// is of runs that end with their process.
//
// Leases are measured by the database's clock alone: those of the servers may
// differ.
type Lease struct {
	Repository string // in lower case
	Fence      int64
}

// clock is one of the places where the dialects differ: now, in milliseconds.
func (s *Store) clock() string {
	if s.dialect == PostgreSQL {
		return `CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)`
	}
	return `CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)`
}

// holds finds out, within a transaction, whether a lease is still the one that
// counts. Until the transaction ends nobody takes the repository over.
func (s *Store) holds(ctx context.Context, tx *sql.Tx, l Lease) error {
	if l.Fence == 0 {
		return nil
	}
	share := ""
	if s.dialect == PostgreSQL {
		share = " FOR SHARE"
	}
	var n int
	err := tx.QueryRowContext(ctx, `SELECT 1 FROM leases WHERE repository = $1 AND fence = $2`+share, l.Repository, l.Fence).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrFenced
	}
	return err
}

// lease takes or prolongs the lease on a repository; ok is false if it is
// another's. A repository that changes hands brings the events along that its last
// holder had taken.
func (s *Store) lease(ctx context.Context, tx *sql.Tx, repository, owner string, length time.Duration) (l Lease, ok bool, err error) {
	var was string
	err = tx.QueryRowContext(ctx, `SELECT owner FROM leases WHERE repository = lower($1)`, clean(repository)).Scan(&was)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return l, false, err
	}
	now := s.clock()
	err = tx.QueryRowContext(ctx, `INSERT INTO leases (repository, owner, fence, lease) VALUES (lower($1), $2, 1, `+now+` + $3)
		ON CONFLICT (repository) DO UPDATE SET owner = excluded.owner, lease = excluded.lease,
			fence = CASE WHEN leases.owner = excluded.owner AND leases.lease > `+now+` THEN leases.fence ELSE leases.fence + 1 END
		WHERE leases.owner = excluded.owner OR leases.lease <= `+now+` RETURNING repository, fence`,
		clean(repository), owner, length.Milliseconds()).Scan(&l.Repository, &l.Fence)
	if errors.Is(err, sql.ErrNoRows) {
		return Lease{}, false, nil
	}
	if err == nil && was != "" && was != owner {
		_, err = tx.ExecContext(ctx, `UPDATE events SET due = 0 WHERE state = 'taken' AND lower(repository) = $1`, l.Repository)
	}
	return l, err == nil, err
}

// TakeLease takes the lease on a repository for a server, or prolongs the one it
// has. ok is false while another server holds it.
func (s *Store) TakeLease(ctx context.Context, repository, owner string, length time.Duration) (l Lease, ok bool, err error) {
	err = s.tx(ctx, "lease on "+repository, func(tx *sql.Tx) error {
		var err error
		l, ok, err = s.lease(ctx, tx, repository, owner, length)
		return err
	})
	return l, ok, err
}

// RenewLeases prolongs all leases that a server has, and returns them: one that it
// believed to have and that is not among them is another's.
func (s *Store) RenewLeases(ctx context.Context, owner string, length time.Duration) ([]Lease, error) {
	out, err := collect(ctx, s.write, func(r *sql.Rows) (Lease, error) {
		var l Lease
		return l, r.Scan(&l.Repository, &l.Fence)
	}, `UPDATE leases SET lease = `+s.clock()+` + $2 WHERE owner = $1 RETURNING repository, fence`, owner, length.Milliseconds())
	if err != nil {
		return nil, fmt.Errorf("store: renew leases: %w", err)
	}
	return out, nil
}

// ReleaseLease gives a repository to whoever wants it next.
func (s *Store) ReleaseLease(ctx context.Context, l Lease, owner string) error {
	if _, err := s.write.ExecContext(ctx, `UPDATE leases SET owner = '', lease = 0 WHERE repository = $1 AND fence = $2 AND owner = $3`,
		l.Repository, l.Fence, owner); err != nil {
		return fmt.Errorf("store: release lease on %s: %w", l.Repository, err)
	}
	return nil
}

// HeldLease is a lease with who has it.
type HeldLease struct {
	Lease
	Owner string
	Left  time.Duration // until it ends
}

// Leases lists the leases that servers have, by repository.
func (s *Store) Leases(ctx context.Context) ([]HeldLease, error) {
	now := s.clock()
	out, err := collect(ctx, s.read, func(r *sql.Rows) (HeldLease, error) {
		var l HeldLease
		var left int64
		err := r.Scan(&l.Repository, &l.Fence, &l.Owner, &left)
		l.Left = time.Duration(left) * time.Millisecond
		return l, err
	}, `SELECT repository, fence, owner, lease - `+now+` FROM leases WHERE owner <> '' AND lease > `+now+` ORDER BY repository`)
	if err != nil {
		return nil, fmt.Errorf("store: leases: %w", err)
	}
	return out, nil
}

// Held is a store whose writes about runs are done under a lease: they are refused
// with [ErrFenced] once the repository has changed hands.
type Held struct {
	s *Store
	l Lease
}

// Under returns what writes under a lease.
func (s *Store) Under(l Lease) Held { return Held{s, l} }

// CreateRun is [Store.CreateRun] under the lease.
func (h Held) CreateRun(ctx context.Context, run ci.Run, jobs []ci.Job, plan []byte) (ci.Run, []ci.Job, error) {
	return h.s.createRun(ctx, h.l, run, jobs, plan)
}

// Recorder is [Store.Recorder] under the lease.
func (h Held) Recorder(ctx context.Context, runID string, taps ...ci.Sink) (*Recorder, error) {
	return h.s.recorder(ctx, h.l, runID, taps...)
}

// SetPlan is [Store.SetPlan] under the lease.
func (h Held) SetPlan(ctx context.Context, runID string, plan []byte) error {
	return h.s.setPlan(ctx, h.l, runID, plan)
}

// SetFact is [Store.SetFact] under the lease.
func (h Held) SetFact(ctx context.Context, space, key, value string) error {
	return h.s.tx(ctx, "set "+space+" "+key, func(tx *sql.Tx) error {
		if err := h.s.holds(ctx, tx, h.l); err != nil {
			return err
		}
		return setFact(ctx, tx, space, key, value)
	})
}

// DropFact is [Store.DropFact] under the lease.
func (h Held) DropFact(ctx context.Context, space, key string) error {
	return h.s.tx(ctx, "drop "+space+" "+key, func(tx *sql.Tx) error {
		if err := h.s.holds(ctx, tx, h.l); err != nil {
			return err
		}
		return dropFact(ctx, tx, space, key)
	})
}

// Adopt makes a server the one that gives out the jobs of a run.
func (h Held) Adopt(ctx context.Context, runID, owner string) error {
	return h.s.tx(ctx, "adopt run "+runID, func(tx *sql.Tx) error {
		if err := h.s.holds(ctx, tx, h.l); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE queue SET owner = $2 WHERE job_id IN (SELECT id FROM jobs WHERE run_id = $1)`, runID, owner)
		return err
	})
}

// CancelRun asks whoever drives a run to end it. It reports whether the run was
// under way.
func (s *Store) CancelRun(ctx context.Context, runID, reason string) (bool, error) {
	ok, err := changed(s.write.ExecContext(ctx, `UPDATE runs SET cancel = $2 WHERE id = $1 AND status <> 'completed'`, runID, clean(reason)))
	if err != nil {
		return false, fmt.Errorf("store: cancel run %s: %w", runID, err)
	}
	return ok, s.notify(ctx, s.write, runID)
}

// Cancelled lists the runs under way that somebody wants to end, with why.
func (s *Store) Cancelled(ctx context.Context) (map[string]string, error) {
	out := map[string]string{}
	_, err := collect(ctx, s.read, func(r *sql.Rows) (struct{}, error) {
		var id, reason string
		err := r.Scan(&id, &reason)
		out[id] = reason
		return struct{}{}, err
	}, `SELECT id, cancel FROM runs WHERE status <> 'completed' AND cancel <> ''`)
	if err != nil {
		return nil, fmt.Errorf("store: cancelled runs: %w", err)
	}
	return out, nil
}
