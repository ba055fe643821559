package store

import (
	"database/sql"
	"errors"
	"time"
)

// maxImports is how many imported executions of a repository are known by their
// keys. A test shrinks it.
var maxImports = 200_000

// Import notes that an execution of a repository is learned from, by its key in the
// system that it comes from. It reports whether that is news. What ended before the
// oldest that is still known by its key may have been learned from before: old is
// true then, and it is no news.
func (l *Learning) Import(repository, key string, ended time.Time) (fresh, old bool, err error) {
	repository = clean(repository)
	var horizon int64
	err = l.tx.QueryRowContext(l.ctx, `SELECT at FROM imports WHERE repository = $1 AND key = ''`, repository).Scan(&horizon)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, false, err
	}
	if millis(ended) <= horizon {
		return false, true, nil
	}
	fresh, err = changed(l.tx.ExecContext(l.ctx, `INSERT INTO imports (repository, key, at) VALUES ($1, $2, $3) ON CONFLICT (repository, key) DO NOTHING`,
		repository, clean(key), millis(ended)))
	return fresh, false, err
}

// TrimImports drops the keys of the oldest executions that a repository has too many
// of, and notes up to when.
func (l *Learning) TrimImports(repository string) error {
	repository = clean(repository)
	var n int
	if err := l.tx.QueryRowContext(l.ctx, `SELECT COUNT(*) FROM imports WHERE repository = $1 AND key <> ''`, repository).Scan(&n); err != nil || n <= maxImports {
		return err
	}
	var horizon int64
	if err := l.tx.QueryRowContext(l.ctx, `SELECT at FROM imports WHERE repository = $1 AND key <> '' ORDER BY at DESC LIMIT 1 OFFSET $2`,
		repository, maxImports).Scan(&horizon); err != nil {
		return err
	}
	if _, err := l.tx.ExecContext(l.ctx, `DELETE FROM imports WHERE repository = $1 AND key <> '' AND at <= $2`, repository, horizon); err != nil {
		return err
	}
	_, err := l.tx.ExecContext(l.ctx, `INSERT INTO imports (repository, key, at) VALUES ($1, '', $2)
		ON CONFLICT (repository, key) DO UPDATE SET at = CASE WHEN excluded.at > imports.at THEN excluded.at ELSE imports.at END`, repository, horizon)
	return err
}
