package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// Decision is what was decided about a failed step: whether to try it again.
type Decision struct {
	Repository string    `json:"repository"`
	Run        string    `json:"run"`
	JobKey     string    `json:"job_key"`
	Step       int       `json:"step"`
	Attempt    int       `json:"attempt"`  // that failed, from 1
	Identity   string    `json:"identity"` // the learner's key of the step
	Signature  string    `json:"signature"`
	At         time.Time `json:"at"`
	Policy     string    `json:"policy"`  // advise or act
	P          float64   `json:"p"`       // that the next attempt passes
	GainMS     int64     `json:"gain_ms"` // what a pass spares, in time of a machine
	CostMS     int64     `json:"cost_ms"` // of an attempt: it and the wait before it
	// Propensity is how likely the policy was to have the step tried again, chance
	// being all that is left open: 0 or 1 where it left nothing to chance.
	Propensity float64       `json:"propensity"`
	Advised    bool          `json:"advised"` // another attempt pays
	Taken      bool          `json:"taken"`   // it was made because of this
	Reason     string        `json:"reason"`
	Known      bool          `json:"known"`  // there was a next attempt, and it has ended
	Passed     bool          `json:"passed"` // that one
	Took       time.Duration `json:"took_ns,omitempty"`
}

// maxDecisions bounds the decisions that are kept of a repository. A test shrinks it.
var maxDecisions = 20_000

// AddDecision keeps a decision; the first one about an attempt stays. The oldest of
// a repository that has too many go.
func (s *Store) AddDecision(ctx context.Context, d Decision) error {
	repository := clean(d.Repository)
	return s.tx(ctx, "decision", func(tx *sql.Tx) error {
		fresh, err := changed(tx.ExecContext(ctx, `INSERT INTO decisions (repository, run_id, job_key, step, attempt, identity, signature, at, policy, p, gain_ms, cost_ms,
			propensity, advised, taken, reason, outcome, took_ms) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,-1,0)
			ON CONFLICT (run_id, job_key, step, attempt) DO NOTHING`,
			repository, d.Run, clean(d.JobKey), d.Step, max(d.Attempt, 1), clean(d.Identity), clean(d.Signature), millis(d.At), d.Policy, d.P, d.GainMS, d.CostMS,
			d.Propensity, flag(d.Advised), flag(d.Taken), clean(d.Reason)))
		if err != nil || !fresh {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM decisions WHERE repository = $1 AND at < (
			SELECT MIN(at) FROM (SELECT at FROM decisions WHERE repository = $1 ORDER BY at DESC LIMIT $2) newest)`, repository, maxDecisions)
		return err
	})
}

// Decisions lists the decisions of a repository ("": of all), the newest first.
func (s *Store) Decisions(ctx context.Context, repository string, limit int) ([]Decision, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (Decision, error) {
		var d Decision
		var at, advised, taken, outcome, took int64
		err := r.Scan(&d.Repository, &d.Run, &d.JobKey, &d.Step, &d.Attempt, &d.Identity, &d.Signature, &at, &d.Policy, &d.P, &d.GainMS, &d.CostMS, &d.Propensity,
			&advised, &taken, &d.Reason, &outcome, &took)
		d.At, d.Advised, d.Taken = moment(at), advised == 1, taken == 1
		d.Known, d.Passed, d.Took = outcome >= 0, outcome == 1, time.Duration(took)*time.Millisecond
		return d, err
	}, `SELECT repository, run_id, job_key, step, attempt, identity, signature, at, policy, p, gain_ms, cost_ms, propensity, advised, taken, reason, outcome, took_ms
		FROM decisions WHERE $1 = '' OR repository = $1 ORDER BY at DESC, run_id, job_key, step, attempt LIMIT $2`, clean(repository), limit)
	if err != nil {
		return nil, fmt.Errorf("store: decisions: %w", err)
	}
	return out, nil
}

// CloseDecision writes, once, what the attempt came to that followed the one which
// was decided about.
func (l *Learning) CloseDecision(runID, jobKey string, step, attempt int, passed bool, took time.Duration) error {
	_, err := l.tx.ExecContext(l.ctx, `UPDATE decisions SET outcome = $5, took_ms = $6 WHERE run_id = $1 AND job_key = $2 AND step = $3 AND attempt = $4 AND outcome < 0`,
		runID, clean(jobKey), step, attempt, flag(passed), took.Milliseconds())
	return err
}

// NextPassed reports whether an attempt that failed was followed by one at the same
// commit that passed, as far as it was decided about.
func (l *Learning) NextPassed(runID, jobKey string, step, attempt int) (passed bool, err error) {
	var n int
	err = l.tx.QueryRowContext(l.ctx, `SELECT COUNT(*) FROM decisions WHERE run_id = $1 AND job_key = $2 AND step = $3 AND attempt >= $4 AND outcome = 1`,
		runID, clean(jobKey), step, attempt).Scan(&n)
	return n > 0, err
}
