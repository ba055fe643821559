package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// Prediction is a stored prediction, with its outcome once that is known.
type Prediction struct {
	Repository string    `json:"repository"`
	Run        string    `json:"run"`
	JobKey     string    `json:"job_key"`
	Step       int       `json:"step"`     // 0: of the job itself; with JobKey "": of the run
	Identity   string    `json:"identity"` // the learner's key for what was predicted
	Made       time.Time `json:"made"`
	ci.Prediction
	Closed     time.Time     `json:"closed,omitzero"` // zero: nothing is known yet
	Outcome    ci.Conclusion `json:"outcome,omitempty"`
	Failed     bool          `json:"failed,omitempty"`
	Counts     bool          `json:"counts"` // the outcome was success or failure, not cancelled or skipped
	DurationMS int64         `json:"duration_ms,omitempty"`
}

// AddPredictions stores predictions; the first one of a run, job and step
// stays.
func (s *Store) AddPredictions(ctx context.Context, ps []Prediction) error {
	if len(ps) == 0 {
		return nil
	}
	return s.tx(ctx, "predictions", func(tx *sql.Tx) error {
		for _, p := range ps {
			reasons, err := json.Marshal(p.Reasons)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO predictions (id, repository, run_id, job_key, step, identity, made, p_fail, low, high, expected_ms, seen, reasons, closed, outcome, failed, duration_ms)
				VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,0,'',-1,0) ON CONFLICT (run_id, job_key, step) DO NOTHING`,
				ci.NewID(), clean(p.Repository), p.Run, clean(p.JobKey), p.Step, clean(p.Identity), millis(p.Made), p.PFail, p.Low, p.High, p.ExpectedMS, p.Seen,
				clean(string(reasons))); err != nil {
				return err
			}
		}
		return nil
	})
}

const predictionColumns = `repository, run_id, job_key, step, identity, made, p_fail, low, high, expected_ms, seen, reasons, closed, outcome, failed, duration_ms`

func scanPrediction(r *sql.Rows) (Prediction, error) {
	var p Prediction
	var made, closed, failed int64
	var reasons string
	if err := r.Scan(&p.Repository, &p.Run, &p.JobKey, &p.Step, &p.Identity, &made, &p.PFail, &p.Low, &p.High, &p.ExpectedMS, &p.Seen, &reasons, &closed,
		&p.Outcome, &failed, &p.DurationMS); err != nil {
		return p, err
	}
	p.Made, p.Closed = moment(made), moment(closed)
	p.Counts, p.Failed = failed >= 0, failed == 1
	if err := json.Unmarshal([]byte(reasons), &p.Reasons); err != nil {
		return p, fmt.Errorf("reasons: %w", err)
	}
	return p, nil
}

// Predictions lists a run's predictions: the run's own first, then jobs, each
// before its steps.
func (s *Store) Predictions(ctx context.Context, runID string) ([]Prediction, error) {
	out, err := collect(ctx, s.read, scanPrediction, `SELECT `+predictionColumns+` FROM predictions WHERE run_id = $1 ORDER BY job_key, step`, runID)
	if err != nil {
		return nil, fmt.Errorf("store: predictions of run %s: %w", runID, err)
	}
	return out, nil
}

// ClosedPredictions lists a repository's predictions ("": of all) whose outcome
// is known and counts, the newest first.
func (s *Store) ClosedPredictions(ctx context.Context, repository string, limit int) ([]Prediction, error) {
	of := `$1 = ''`
	if repository != "" {
		of = `repository = $1` // by itself, or no index would serve it
	}
	out, err := collect(ctx, s.read, scanPrediction, `SELECT `+predictionColumns+` FROM predictions
		WHERE `+of+` AND closed > 0 AND failed >= 0 ORDER BY closed DESC, id LIMIT $2`, clean(repository), limit)
	if err != nil {
		return nil, fmt.Errorf("store: predictions: %w", err)
	}
	return out, nil
}
