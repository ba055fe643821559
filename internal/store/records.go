package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/hearth-ci/hearth/internal/ci"
)

// StoredRecord is a record with its place in the event log.
type StoredRecord struct {
	Cursor int64
	ci.Record
}

func appendRecord(ctx context.Context, tx *sql.Tx, rec ci.Record) error {
	body, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record %d: %w", rec.Seq, err)
	}
	cursor, err := take(ctx, tx, "records", 1)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO records (cursor, run_id, seq, time, type, body) VALUES ($1,$2,$3,$4,$5,$6)`,
		cursor, rec.Run, rec.Seq, millis(rec.Time), string(rec.Type), string(body))
	return err
}

func scanRecord(r *sql.Rows) (StoredRecord, error) {
	var v StoredRecord
	var body string
	if err := r.Scan(&v.Cursor, &body); err != nil {
		return v, err
	}
	if err := json.Unmarshal([]byte(body), &v.Record); err != nil {
		return v, fmt.Errorf("record at %d: %w", v.Cursor, err)
	}
	return v, nil
}

// Records reads the event log of all runs after a cursor, in order, at most
// limit records. Log lines and groups are not in it: see [Store.Log].
func (s *Store) Records(ctx context.Context, after int64, limit int) ([]StoredRecord, error) {
	return s.records(ctx, s.read, after, limit)
}

func (s *Store) records(ctx context.Context, q querier, after int64, limit int) ([]StoredRecord, error) {
	out, err := collect(ctx, q, scanRecord, `SELECT cursor, body FROM records WHERE cursor > $1 ORDER BY cursor LIMIT $2`, after, limit)
	if err != nil {
		return nil, fmt.Errorf("store: records after %d: %w", after, err)
	}
	return out, nil
}

// RunRecords reads one run's records (without log lines) after a sequence
// number, in order, at most limit of them.
func (s *Store) RunRecords(ctx context.Context, runID string, after int64, limit int) ([]StoredRecord, error) {
	out, err := collect(ctx, s.read, scanRecord, `SELECT cursor, body FROM records WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3`, runID, after, limit)
	if err != nil {
		return nil, fmt.Errorf("store: records of run %s: %w", runID, err)
	}
	return out, nil
}

// EachRunRecord gives all of a run's records to do, in order, a thousand at a time.
func (s *Store) EachRunRecord(ctx context.Context, runID string, do func(ci.Record)) error {
	for after := int64(0); ; {
		records, err := s.RunRecords(ctx, runID, after, 1000)
		if err != nil || len(records) == 0 {
			return err
		}
		for _, r := range records {
			after = r.Seq
			do(r.Record)
		}
	}
}

// Head is the cursor of the newest record; 0 when there is none.
func (s *Store) Head(ctx context.Context) (int64, error) {
	var n int64
	err := s.read.QueryRowContext(ctx, `SELECT n FROM counters WHERE name = 'records'`).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("store: head of the event log: %w", err)
	}
	return n, nil
}
