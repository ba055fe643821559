package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// SetFact remembers a small value under a key in a space of the caller's own.
func (s *Store) SetFact(ctx context.Context, space, key, value string) error {
	if err := setFact(ctx, s.write, space, key, value); err != nil {
		return fmt.Errorf("store: set %s %s: %w", space, key, err)
	}
	return nil
}

func setFact(ctx context.Context, q querier, space, key, value string) error {
	_, err := q.ExecContext(ctx, `INSERT INTO facts (space, key, value, updated) VALUES ($1,$2,$3,$4)
		ON CONFLICT (space, key) DO UPDATE SET value = excluded.value, updated = excluded.updated`, space, clean(key), clean(value), time.Now().UnixMilli())
	return err
}

// Fact reads what SetFact stored; ErrNotFound if there is nothing.
func (s *Store) Fact(ctx context.Context, space, key string) (string, error) {
	var v string
	err := s.read.QueryRowContext(ctx, `SELECT value FROM facts WHERE space = $1 AND key = $2`, space, clean(key)).Scan(&v)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("store: %s %s: %w", space, key, err)
	}
	return v, nil
}

// FactAge says how long ago a fact was set; ErrNotFound if there is nothing.
func (s *Store) FactAge(ctx context.Context, space, key string) (time.Duration, error) {
	var at int64
	err := s.read.QueryRowContext(ctx, `SELECT updated FROM facts WHERE space = $1 AND key = $2`, space, clean(key)).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("store: %s %s: %w", space, key, err)
	}
	return time.Since(moment(at)), nil
}

// Facts reads a whole space.
func (s *Store) Facts(ctx context.Context, space string) (map[string]string, error) {
	out := map[string]string{}
	_, err := collect(ctx, s.read, func(r *sql.Rows) (struct{}, error) {
		var k, v string
		err := r.Scan(&k, &v)
		out[k] = v
		return struct{}{}, err
	}, `SELECT key, value FROM facts WHERE space = $1`, space)
	if err != nil {
		return nil, fmt.Errorf("store: %s: %w", space, err)
	}
	return out, nil
}

// DropFact forgets a key; that it is not there is no error.
func (s *Store) DropFact(ctx context.Context, space, key string) error {
	if err := dropFact(ctx, s.write, space, key); err != nil {
		return fmt.Errorf("store: drop %s %s: %w", space, key, err)
	}
	return nil
}

func dropFact(ctx context.Context, q querier, space, key string) error {
	_, err := q.ExecContext(ctx, `DELETE FROM facts WHERE space = $1 AND key = $2`, space, clean(key))
	return err
}
