package store

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// How things are removed. A run goes in three steps, each of which may be the
// last that a process does: [Store.RemoveRun] takes its row, with those of jobs
// and steps, and notes in removals that there is a rest; from then on nobody
// sees the run. [Store.FinishRemovals] takes the rest, records first, in small
// transactions, since other writers wait for each; then the log files, then the
// note. What is learned from a run is not among it.

// KeptRun is what of a completed run says whether to keep it.
type KeptRun struct {
	ID, Repository string
	Finished       time.Time
	Bytes          int64 // of rows and log files
	// Cursor is that of its last record: who has not followed the event log so
	// far has not learned from it.
	Cursor int64
}

// measureAtOnce is how many runs one call of CompletedRuns measures.
const measureAtOnce = 2000

// CompletedRuns lists the runs that have completed, the oldest first. Runs whose
// size is not known yet are measured, some of them: those left count as nothing,
// and are measured by the next calls.
func (s *Store) CompletedRuns(ctx context.Context) ([]KeptRun, error) {
	fresh, err := collect(ctx, s.read, func(r *sql.Rows) (string, error) {
		var id string
		return id, r.Scan(&id)
	}, `SELECT id FROM runs WHERE status = 'completed' AND bytes < 0 ORDER BY finished, id LIMIT $1`, measureAtOnce)
	if err != nil {
		return nil, fmt.Errorf("store: completed runs: %w", err)
	}
	for _, id := range fresh {
		var n int64
		err := s.read.QueryRowContext(ctx, `SELECT
			(SELECT COALESCE(SUM(bytes), 0) FROM logs WHERE run_id = $1) +
			(SELECT COALESCE(SUM(octet_length(body)), 0) FROM records WHERE run_id = $1) +
			(SELECT COALESCE(SUM(octet_length(outputs)), 0) FROM jobs WHERE run_id = $1) +
			(SELECT octet_length(plan) FROM runs WHERE id = $1)`, id).Scan(&n)
		if err == nil {
			_, err = s.write.ExecContext(ctx, `UPDATE runs SET bytes = $2 WHERE id = $1`, id, n)
		}
		if err != nil {
			return nil, fmt.Errorf("store: size of run %s: %w", id, err)
		}
	}
	out, err := collect(ctx, s.read, func(r *sql.Rows) (KeptRun, error) {
		var v KeptRun
		var finished int64
		err := r.Scan(&v.ID, &v.Repository, &finished, &v.Bytes, &v.Cursor)
		v.Finished = moment(finished)
		return v, err
	}, `SELECT id, repository, finished, CASE WHEN bytes > 0 THEN bytes ELSE 0 END, COALESCE((SELECT cursor FROM records WHERE run_id = runs.id ORDER BY seq DESC LIMIT 1), 0)
		FROM runs WHERE status = 'completed' ORDER BY finished, id`)
	if err != nil {
		return nil, fmt.Errorf("store: completed runs: %w", err)
	}
	return out, nil
}

// RemoveRun removes a completed run from the record: at once for whoever reads,
// and altogether with the next [Store.FinishRemovals]. A run that has not
// completed is not found.
func (s *Store) RemoveRun(ctx context.Context, id string) error {
	return s.tx(ctx, "remove run "+id, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM queue WHERE job_id IN (SELECT j.id FROM jobs j JOIN runs r ON r.id = j.run_id WHERE r.id = $1 AND r.status = 'completed')`, id); err != nil {
			return err
		}
		ok, err := changed(tx.ExecContext(ctx, `DELETE FROM runs WHERE id = $1 AND status = 'completed'`, id)) // its jobs and steps go with it
		if err == nil && !ok {
			err = ErrNotFound
		}
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO removals (run_id, begun) VALUES ($1, $2) ON CONFLICT (run_id) DO NOTHING`, id, time.Now().UnixMilli())
		return err
	})
}

// removeAtOnce is how many rows one transaction of a removal deletes.
const removeAtOnce = 2000

// FinishRemovals removes what is left of runs that [Store.RemoveRun] has taken
// from the record, in this process or in one that died.
func (s *Store) FinishRemovals(ctx context.Context) error {
	ids, err := collect(ctx, s.read, func(r *sql.Rows) (string, error) {
		var id string
		return id, r.Scan(&id)
	}, `SELECT run_id FROM removals ORDER BY begun, run_id`)
	if err != nil {
		return fmt.Errorf("store: removals: %w", err)
	}
	for _, id := range ids {
		if err := s.finishRemoval(ctx, id); err != nil {
			return fmt.Errorf("store: remove run %s: %w", id, err)
		}
	}
	return nil
}

func (s *Store) finishRemoval(ctx context.Context, id string) error {
	for more := true; more; {
		err := s.tx(ctx, "records", func(tx *sql.Tx) error {
			res, err := tx.ExecContext(ctx, `DELETE FROM records WHERE cursor IN (SELECT cursor FROM records WHERE run_id = $1 LIMIT $2)`, id, removeAtOnce)
			if err != nil {
				return err
			}
			n, err := res.RowsAffected()
			more = n == removeAtOnce
			return err
		})
		if err != nil {
			return err
		}
	}
	err := s.tx(ctx, "rows", func(tx *sql.Tx) error {
		for _, stmt := range []string{
			`DELETE FROM log_steps WHERE run_id = $1`, `DELETE FROM logs WHERE run_id = $1`,
			`DELETE FROM predictions WHERE run_id = $1 AND (closed = 0 OR failed < 0)`,
			`UPDATE predictions SET reasons = '[]' WHERE run_id = $1`, // how good it was stays
		} {
			if _, err := tx.ExecContext(ctx, stmt, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if s.logDir != "" && ci.ValidID(id) {
		if err := os.RemoveAll(filepath.Join(s.logDir, id)); err != nil {
			return err
		}
	}
	_, err = s.write.ExecContext(ctx, `DELETE FROM removals WHERE run_id = $1`, id)
	return err
}

// Removing counts the runs of which something is left to remove.
func (s *Store) Removing(ctx context.Context) (n int, err error) {
	if err := s.read.QueryRowContext(ctx, `SELECT COUNT(*) FROM removals`).Scan(&n); err != nil {
		return 0, fmt.Errorf("store: removals: %w", err)
	}
	return n, nil
}

// KeptEvent is what of a handled event says whether to keep it.
type KeptEvent struct {
	ID, Repository, Name string
	Received             time.Time
	Bytes                int64 // of the payload
}

// HandledEvents lists the events of which nothing more is to come, the oldest
// first: those that have ended, or were only noted, and whose runs have
// completed.
func (s *Store) HandledEvents(ctx context.Context) ([]KeptEvent, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (KeptEvent, error) {
		var v KeptEvent
		var received int64
		err := r.Scan(&v.ID, &v.Repository, &v.Name, &received, &v.Bytes)
		v.Received = moment(received)
		return v, err
	}, `SELECT id, repository, name, received, COALESCE(octet_length(payload), 0) FROM events
		WHERE state NOT IN ('pending', 'taken') AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.event_id = events.id AND runs.status <> 'completed')
		ORDER BY received, id`)
	if err != nil {
		return nil, fmt.Errorf("store: handled events: %w", err)
	}
	return out, nil
}

// RemoveEvents removes handled events.
func (s *Store) RemoveEvents(ctx context.Context, ids []string) error {
	return s.eachEvent(ctx, ids, `DELETE FROM events WHERE id = $1 AND state NOT IN ('pending', 'taken')`)
}

// EmptyEvents removes the payloads of handled events. That the delivery came is
// still known, so that it is not taken twice.
func (s *Store) EmptyEvents(ctx context.Context, ids []string) error {
	return s.eachEvent(ctx, ids, `UPDATE events SET payload = NULL WHERE id = $1 AND state NOT IN ('pending', 'taken')`)
}

func (s *Store) eachEvent(ctx context.Context, ids []string, stmt string) error {
	for len(ids) > 0 {
		some := ids[:min(len(ids), removeAtOnce/10)]
		ids = ids[len(some):]
		err := s.tx(ctx, "events", func(tx *sql.Tx) error {
			for _, id := range some {
				if _, err := tx.ExecContext(ctx, stmt, id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// PredictionTotals are what predictions came to whose rows are gone.
type PredictionTotals struct {
	Unit    string // run, job, step
	N       int
	Failed  int
	Brier   float64 // sum
	LogLoss float64 // sum
	First   time.Time
}

// unitSQL is what a prediction is of.
const unitSQL = `CASE WHEN job_key = '' THEN 'run' WHEN step = 0 THEN 'job' ELSE 'step' END`

// FoldPredictions keeps the newest predictions of each repository and adds those
// beyond, whose outcome is known, to the repository's totals. It does at most so
// many as one transaction should, and says how many that were.
func (s *Store) FoldPredictions(ctx context.Context, keep int) (n int, err error) {
	repositories, err := collect(ctx, s.read, func(r *sql.Rows) (string, error) {
		var v string
		return v, r.Scan(&v)
	}, `SELECT repository FROM predictions GROUP BY repository HAVING COUNT(*) > $1`, keep)
	if err != nil {
		return 0, fmt.Errorf("store: predictions: %w", err)
	}
	for _, repository := range repositories {
		err := s.tx(ctx, "fold predictions", func(tx *sql.Tx) error {
			type row struct {
				id, unit string
				p        float64
				failed   int64
				closed   int64
			}
			rows, err := collect(ctx, tx, func(r *sql.Rows) (row, error) {
				var v row
				return v, r.Scan(&v.id, &v.unit, &v.p, &v.failed, &v.closed)
			}, `SELECT id, `+unitSQL+`, p_fail, failed, closed FROM predictions WHERE repository = $1 AND closed > 0
				ORDER BY closed DESC, id LIMIT $2 OFFSET $3`, repository, removeAtOnce, keep)
			if err != nil {
				return err
			}
			sums := map[string]*PredictionTotals{}
			for _, v := range rows {
				if _, err := tx.ExecContext(ctx, `DELETE FROM predictions WHERE id = $1`, v.id); err != nil {
					return err
				}
				if v.failed < 0 {
					continue
				}
				t := sums[v.unit]
				if t == nil {
					t = &PredictionTotals{First: moment(v.closed)}
					sums[v.unit] = t
				}
				y := float64(v.failed)
				p := min(max(v.p, 1e-7), 1-1e-7)
				t.N, t.Failed = t.N+1, t.Failed+int(v.failed)
				t.Brier += (v.p - y) * (v.p - y)
				t.LogLoss -= y*math.Log(p) + (1-y)*math.Log(1-p)
				t.First = moment(min(v.closed, millis(t.First)))
			}
			for unit, t := range sums {
				if _, err := tx.ExecContext(ctx, `INSERT INTO prediction_totals (repository, unit, n, failed, brier, log_loss, first) VALUES ($1,$2,$3,$4,$5,$6,$7)
					ON CONFLICT (repository, unit) DO UPDATE SET n = prediction_totals.n + excluded.n, failed = prediction_totals.failed + excluded.failed,
						brier = prediction_totals.brier + excluded.brier, log_loss = prediction_totals.log_loss + excluded.log_loss,
						first = CASE WHEN excluded.first < prediction_totals.first THEN excluded.first ELSE prediction_totals.first END`,
					repository, unit, t.N, t.Failed, t.Brier, t.LogLoss, millis(t.First)); err != nil {
					return err
				}
			}
			n += len(rows)
			return nil
		})
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// PredictionTotals reads what folded predictions of a repository came to ("":
// of all).
func (s *Store) PredictionTotals(ctx context.Context, repository string) ([]PredictionTotals, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (PredictionTotals, error) {
		var v PredictionTotals
		var first int64
		err := r.Scan(&v.Unit, &v.N, &v.Failed, &v.Brier, &v.LogLoss, &first)
		v.First = moment(first)
		return v, err
	}, `SELECT unit, CAST(SUM(n) AS BIGINT), CAST(SUM(failed) AS BIGINT), SUM(brier), SUM(log_loss), MIN(first) FROM prediction_totals
		WHERE $1 = '' OR repository = $1 GROUP BY unit ORDER BY unit`, clean(repository))
	if err != nil {
		return nil, fmt.Errorf("store: prediction totals: %w", err)
	}
	return out, nil
}

// DropExpiredLessons removes the lessons that are not told any more.
func (s *Store) DropExpiredLessons(ctx context.Context, now time.Time) error {
	if _, err := s.write.ExecContext(ctx, `DELETE FROM lessons WHERE expires < $1`, millis(now)); err != nil {
		return fmt.Errorf("store: lessons: %w", err)
	}
	return nil
}

// Space is what the database's file takes up, in bytes.
type Space struct {
	Used int64 // with what is free in it
	Free int64 // in it, for rows to come
}

// Space measures the database. Of PostgreSQL, whose server sees to that, it says
// nothing.
func (s *Store) Space(ctx context.Context) (v Space, err error) {
	if s.dialect != SQLite {
		return v, nil
	}
	var size int64
	err = s.read.QueryRowContext(ctx, `SELECT page_size, (SELECT page_count FROM pragma_page_count), (SELECT freelist_count FROM pragma_freelist_count) FROM pragma_page_size`).
		Scan(&size, &v.Used, &v.Free)
	if err != nil {
		return v, fmt.Errorf("store: size of the database: %w", err)
	}
	v.Used *= size
	v.Free *= size
	return v, nil
}

// shrinkPages is how many pages one transaction gives back: 8 MiB.
const shrinkPages = 2000

// Shrink gives the free space of the SQLite file back to the file system, a
// little at a time, since writers wait for each. A database from before files
// could shrink is written anew instead, if anew says so: nobody can write
// meanwhile, and the disk must hold it twice. It reports how many bytes the file
// became shorter.
func (s *Store) Shrink(ctx context.Context, anew bool) (int64, error) {
	if s.dialect != SQLite {
		return 0, nil
	}
	was, err := s.Space(ctx)
	if err != nil || was.Free == 0 {
		return 0, err
	}
	var mode int
	if err := s.write.QueryRowContext(ctx, `PRAGMA auto_vacuum`).Scan(&mode); err != nil {
		return 0, fmt.Errorf("store: shrink: %w", err)
	}
	switch {
	case mode == incremental:
		for free := was.Free; free > 0; {
			if _, err := s.write.ExecContext(ctx, fmt.Sprintf(`PRAGMA incremental_vacuum(%d)`, shrinkPages)); err != nil {
				return 0, fmt.Errorf("store: shrink: %w", err)
			}
			now, err := s.Space(ctx)
			if err != nil {
				return 0, err
			}
			if now.Free >= free {
				break
			}
			free = now.Free
		}
	case anew:
		if _, err := s.write.ExecContext(ctx, fmt.Sprintf(`PRAGMA auto_vacuum = %d`, incremental)); err != nil {
			return 0, fmt.Errorf("store: shrink: %w", err)
		}
		if _, err := s.write.ExecContext(ctx, `VACUUM`); err != nil {
			return 0, fmt.Errorf("store: write the database anew (it takes as much room again, and nobody else may write): %w", err)
		}
	default:
		return 0, nil
	}
	// The file is cut when the log that says so has been copied into it.
	if err := s.check.truncate(ctx); err != nil {
		return 0, fmt.Errorf("store: shrink: %w", err)
	}
	now, err := s.Space(ctx)
	return was.Used - now.Used, err
}
