package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// EventState says how far the handling of an event has come.
type EventState string

// The event states. A taken event whose hold runs out is pending again.
const (
	EventPending EventState = "pending"
	EventTaken   EventState = "taken"
	EventDone    EventState = "done"
	EventFailed  EventState = "failed"
	// EventNoted is an event that asks for nothing: stored for the record.
	EventNoted EventState = "noted"
	// EventRefused is an event that was not let in: stored for the record, without
	// its payload.
	EventRefused EventState = "refused"
)

// maxAgain is how many deliveries of one repository may wait whose bodies were
// seen before.
const maxAgain = 32

// StoredEvent is an event with the state of its handling.
type StoredEvent struct {
	ci.Event
	State  EventState `json:"state"`
	Detail string     `json:"detail,omitempty"` // what came of it, or why it failed
	Tries  int        `json:"tries"`
	// Again: its body was delivered before, under another delivery id.
	Again bool `json:"again,omitempty"`
}

// ErrTooMany: so many deliveries that repeat earlier ones wait already.
var ErrTooMany = errors.New("too many deliveries wait whose bodies were seen before")

// AddEvent stores an event, with its raw payload, as pending (or as given) and
// reports whether it is new: false means that its delivery id was there before
// and nothing was stored; but a delivery that was refused may come once more and
// be taken. detail is what is known already of what comes of it. An empty id is
// filled in.
func (s *Store) AddEvent(ctx context.Context, e ci.Event, state EventState, detail string) (id string, fresh bool, err error) {
	if e.ID == "" {
		e.ID = ci.NewID()
	}
	if e.Received.IsZero() {
		e.Received = time.Now()
	}
	if state == "" {
		state = EventPending
	}
	if state == EventRefused {
		e.Payload = nil
	}
	var delivery any
	if e.Delivery != "" {
		delivery = clean(e.Delivery)
	}
	err = s.tx(ctx, "event "+e.Delivery, func(tx *sql.Tx) error {
		// A row comes back if it was written.
		err := tx.QueryRowContext(ctx, `INSERT INTO events
			(id, name, action, delivery, repository, payload, received, state, detail, tries, due)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, 0) ON CONFLICT (delivery) DO UPDATE SET
			name = excluded.name, action = excluded.action, repository = excluded.repository, payload = excluded.payload,
			received = excluded.received, state = excluded.state, detail = excluded.detail, tries = 0, due = 0, again = 0
			WHERE events.state = 'refused' AND excluded.state <> 'refused' RETURNING id`,
			e.ID, clean(e.Name), clean(e.Action), delivery, clean(e.Repository), e.Payload, millis(e.Received), string(state), clean(detail)).Scan(&e.ID)
		if errors.Is(err, sql.ErrNoRows) {
			return tx.QueryRowContext(ctx, `SELECT id FROM events WHERE delivery = $1`, delivery).Scan(&e.ID)
		}
		if fresh = err == nil; fresh && state == EventPending {
			if err := s.notify(ctx, tx, EventsChanged); err != nil {
				return err
			}
		}
		if !fresh || delivery == nil || state != EventPending {
			return err
		}
		digest := sha256.Sum256(e.Payload)
		first, err := changed(tx.ExecContext(ctx, `INSERT INTO bodies (digest, event, received) VALUES ($1, $2, $3) ON CONFLICT (digest) DO NOTHING`,
			hex.EncodeToString(digest[:]), e.ID, millis(e.Received)))
		if err != nil || first {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE events SET again = 1 WHERE id = $1`, e.ID); err != nil {
			return err
		}
		var waiting int
		err = tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM events WHERE again = 1 AND state IN ('pending', 'taken') AND repository = $1`,
			clean(e.Repository)).Scan(&waiting)
		if err == nil && waiting > maxAgain {
			err = ErrTooMany
		}
		return err
	})
	if err != nil {
		return "", false, err
	}
	if state == EventPending && fresh {
		s.hub.wake(EventsChanged)
	}
	return e.ID, fresh, nil
}

const eventColumns = `id, name, action, COALESCE(delivery, ''), repository, payload, received, state, detail, tries, again`

func scanEvent(r interface{ Scan(...any) error }) (StoredEvent, error) {
	var e StoredEvent
	var received, again int64
	err := r.Scan(&e.ID, &e.Name, &e.Action, &e.Delivery, &e.Repository, &e.Payload, &received, &e.State, &e.Detail, &e.Tries, &again)
	e.Received, e.Again = moment(received), again != 0
	return e, err
}

// Event reads one event.
func (s *Store) Event(ctx context.Context, id string) (StoredEvent, error) {
	e, err := scanEvent(s.read.QueryRowContext(ctx, `SELECT `+eventColumns+` FROM events WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return e, fmt.Errorf("store: event %s: %w", id, err)
	}
	return e, nil
}

// Events lists the newest events first, without their payloads.
func (s *Store) Events(ctx context.Context, limit int) ([]StoredEvent, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (StoredEvent, error) { return scanEvent(r) },
		`SELECT id, name, action, COALESCE(delivery, ''), repository, NULL, received, state, detail, tries, again
		FROM events ORDER BY received DESC, id DESC LIMIT $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("store: events: %w", err)
	}
	return out, nil
}

// TakeEvent hands a server the oldest pending event of a repository that no other
// server holds, with the lease on that repository, and holds it until the given
// time has passed; a holder that dies by then has its event handed out again: when
// its lease has ended, or else when its hold has. ok is false when there is none.
func (s *Store) TakeEvent(ctx context.Context, owner string, length time.Duration, now time.Time, hold time.Duration) (
	e StoredEvent, l Lease, ok bool, err error,
) {
	of := ""
	if s.dialect == PostgreSQL {
		of = " FOR UPDATE OF e SKIP LOCKED"
	}
	clock := s.clock()
	query := `UPDATE events SET state = 'taken', tries = tries + 1, due = $2 WHERE id = (
		SELECT e.id FROM events e LEFT JOIN leases l ON l.repository = lower(e.repository)
		WHERE e.state IN ('pending', 'taken')
			AND (e.due <= $1 OR e.state = 'taken' AND l.owner <> $3 AND l.owner <> '' AND l.lease <= ` + clock + `)
			AND (l.repository IS NULL OR l.owner = $3 OR l.lease <= ` + clock + `)
		ORDER BY e.received, e.id LIMIT 1` + of + `) RETURNING ` + eventColumns
	others := errors.New("it is another's by now")
	err = s.tx(ctx, "take event", func(tx *sql.Tx) error {
		var err error
		if e, err = scanEvent(tx.QueryRowContext(ctx, query, millis(now), millis(now.Add(hold)), owner)); err != nil {
			return err
		}
		var got bool
		if l, got, err = s.lease(ctx, tx, e.Repository, owner, length); err == nil && !got {
			err = others
		}
		if err == nil { // taking the lease made it due
			_, err = tx.ExecContext(ctx, `UPDATE events SET due = $2 WHERE id = $1`, e.ID, millis(now.Add(hold)))
		}
		return err
	})
	if errors.Is(err, sql.ErrNoRows) || errors.Is(err, others) {
		return StoredEvent{}, Lease{}, false, nil
	}
	if err != nil {
		return e, l, false, err
	}
	return e, l, true, nil
}

// ReleaseEvent makes a taken event pending again, not before due. tries fences:
// it is the Tries of the event as taken.
func (s *Store) ReleaseEvent(ctx context.Context, id string, tries int, due time.Time, detail string) error {
	return s.moveEvent(ctx, id, tries, EventPending, detail, millis(due))
}

// FinishEvent writes how a taken event ended.
func (s *Store) FinishEvent(ctx context.Context, id string, tries int, state EventState, detail string) error {
	return s.moveEvent(ctx, id, tries, state, detail, 0)
}

func (s *Store) moveEvent(ctx context.Context, id string, tries int, state EventState, detail string, due int64) error {
	ok, err := changed(s.write.ExecContext(ctx, `UPDATE events SET state = $3, detail = $4, due = $5,
		payload = CASE WHEN $3 = 'refused' THEN NULL ELSE payload END
		WHERE id = $1 AND tries = $2 AND state = 'taken'`, id, tries, string(state), clean(detail), due))
	if err == nil && !ok {
		err = ErrFenced
	}
	if err != nil {
		return fmt.Errorf("store: event %s to %s: %w", id, state, err)
	}
	return nil
}

// ReplayEvent makes an event that has ended pending once more. Of one that was
// refused nothing is left to handle: that is ErrNotFound.
func (s *Store) ReplayEvent(ctx context.Context, id string) error {
	ok, err := changed(s.write.ExecContext(ctx, `UPDATE events SET state = 'pending', due = 0, detail = '' WHERE id = $1 AND state NOT IN ('taken', 'refused')`, id))
	if err == nil && !ok {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("store: replay event %s: %w", id, err)
	}
	s.hub.wake(EventsChanged)
	return s.notify(ctx, s.write, EventsChanged)
}

// skipLocked is one of the places where the dialects differ: SQLite has one
// writer and nothing to skip.
func (s *Store) skipLocked() string {
	if s.dialect == PostgreSQL {
		return " FOR UPDATE SKIP LOCKED"
	}
	return ""
}
