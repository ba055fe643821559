package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Session is a row about one session: a machine that somebody holds. What the
// states mean is the affair of the package that keeps sessions.
type Session struct {
	ID       string
	State    string
	VM       string
	Owner    string
	Body     string // JSON
	Created  time.Time
	Updated  time.Time
	Deadline time.Time
}

// PutSession stores a session, new or changed.
func (s *Store) PutSession(ctx context.Context, v Session) error {
	if v.Created.IsZero() {
		v.Created = time.Now()
	}
	if v.Updated.IsZero() {
		v.Updated = time.Now()
	}
	_, err := s.write.ExecContext(ctx, `INSERT INTO sessions (id, state, vm, owner, body, created, updated, deadline) VALUES ($1,$2,$3,$4,$5,$6,$7,$8)
		ON CONFLICT (id) DO UPDATE SET state = excluded.state, vm = excluded.vm, owner = excluded.owner, body = excluded.body,
			updated = excluded.updated, deadline = excluded.deadline`,
		v.ID, v.State, v.VM, clean(v.Owner), clean(v.Body), millis(v.Created), millis(v.Updated), millis(v.Deadline))
	if err != nil {
		return fmt.Errorf("store: session %s: %w", v.ID, err)
	}
	return nil
}

// MoveSession changes a session's state if it still is in from; otherwise the
// error is ErrFenced.
func (s *Store) MoveSession(ctx context.Context, id, from, to string) error {
	ok, err := changed(s.write.ExecContext(ctx, `UPDATE sessions SET state = $3, updated = $4 WHERE id = $1 AND state = $2`, id, from, to, time.Now().UnixMilli()))
	if err == nil && !ok {
		err = ErrFenced
	}
	if err != nil {
		return fmt.Errorf("store: session %s from %s to %s: %w", id, from, to, err)
	}
	return nil
}

const sessionColumns = `id, state, vm, owner, body, created, updated, deadline`

func scanSession(r interface{ Scan(...any) error }) (Session, error) {
	var v Session
	var created, updated, deadline int64
	err := r.Scan(&v.ID, &v.State, &v.VM, &v.Owner, &v.Body, &created, &updated, &deadline)
	v.Created, v.Updated, v.Deadline = moment(created), moment(updated), moment(deadline)
	return v, err
}

// Session reads one session.
func (s *Store) Session(ctx context.Context, id string) (Session, error) {
	v, err := scanSession(s.read.QueryRowContext(ctx, `SELECT `+sessionColumns+` FROM sessions WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return v, fmt.Errorf("store: session %s: %w", id, err)
	}
	return v, nil
}

// Sessions lists sessions, the newest first; state "" means all.
func (s *Store) Sessions(ctx context.Context, state string) ([]Session, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (Session, error) { return scanSession(r) },
		`SELECT `+sessionColumns+` FROM sessions WHERE $1 = '' OR state = $1 ORDER BY created DESC, id DESC`, state)
	if err != nil {
		return nil, fmt.Errorf("store: sessions: %w", err)
	}
	return out, nil
}

// Schedule is one cron line of one workflow.
type Schedule struct {
	ID         string
	Repository string
	File       string
	Cron       string
	Body       string // JSON
	Next       time.Time
	Last       time.Time
}

// PutSchedule stores a schedule; repository, file and cron line make it unique.
// Where it exists already, only Body changes.
func (s *Store) PutSchedule(ctx context.Context, v Schedule) error {
	_, err := s.write.ExecContext(ctx, `INSERT INTO schedules (id, repository, file, cron, body, next_run, last_run) VALUES ($1,$2,$3,$4,$5,$6,$7)
		ON CONFLICT (repository, file, cron) DO UPDATE SET body = excluded.body`,
		v.ID, clean(v.Repository), clean(v.File), clean(v.Cron), clean(v.Body), millis(v.Next), millis(v.Last))
	if err != nil {
		return fmt.Errorf("store: schedule of %s: %w", v.File, err)
	}
	return nil
}

// Schedules lists what is due at now, or everything if now is zero.
func (s *Store) Schedules(ctx context.Context, now time.Time) ([]Schedule, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (Schedule, error) {
		var v Schedule
		var next, last int64
		err := r.Scan(&v.ID, &v.Repository, &v.File, &v.Cron, &v.Body, &next, &last)
		v.Next, v.Last = moment(next), moment(last)
		return v, err
	}, `SELECT id, repository, file, cron, body, next_run, last_run FROM schedules WHERE CAST($1 AS BIGINT) = 0 OR next_run <= CAST($1 AS BIGINT) ORDER BY next_run, id`, millis(now))
	if err != nil {
		return nil, fmt.Errorf("store: schedules: %w", err)
	}
	return out, nil
}

// FireSchedule moves a due schedule to its next time. It reports false if
// another process was first.
func (s *Store) FireSchedule(ctx context.Context, id string, was, now, next time.Time) (bool, error) {
	ok, err := changed(s.write.ExecContext(ctx, `UPDATE schedules SET last_run = $3, next_run = $4 WHERE id = $1 AND next_run = $2`, id, millis(was), millis(now), millis(next)))
	if err != nil {
		return false, fmt.Errorf("store: schedule %s: %w", id, err)
	}
	return ok, nil
}

// DropSchedules forgets the schedules of a workflow file that are not in keep
// (cron lines).
func (s *Store) DropSchedules(ctx context.Context, repository, file string, keep []string) error {
	all, err := s.Schedules(ctx, time.Time{})
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, k := range keep {
		kept[k] = true
	}
	for _, v := range all {
		if v.Repository != repository || v.File != file || kept[v.Cron] {
			continue
		}
		if _, err := s.write.ExecContext(ctx, `DELETE FROM schedules WHERE id = $1`, v.ID); err != nil {
			return fmt.Errorf("store: schedule %s: %w", v.ID, err)
		}
	}
	return nil
}
