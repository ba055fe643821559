package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/queue"
)

// The queue's table. Package queue is the only caller and says what it means;
// these methods are its Store interface. States: queued, claimed, done, lost.

// lowerLabels is the JSON array of labels, which compare without case.
func lowerLabels(labels []string) (string, error) {
	low := make([]string, 0, len(labels))
	for _, l := range labels {
		low = append(low, strings.ToLower(clean(l)))
	}
	b, err := json.Marshal(low)
	return string(b), err
}

// QueueAdd puts a job in the queue. It reports false if it was there already. An
// owner has to hold the lease on the run's repository.
func (s *Store) QueueAdd(ctx context.Context, it queue.Item, now time.Time, maxAttempts int) (bool, error) {
	l, err := lowerLabels(it.Labels)
	if err != nil {
		return false, err
	}
	var ok bool
	err = s.tx(ctx, "queue job "+it.JobID, func(tx *sql.Tx) error {
		if it.Owner != "" {
			share := ""
			if s.dialect == PostgreSQL {
				share = " FOR SHARE OF l"
			}
			var owner string
			err := tx.QueryRowContext(ctx, `SELECT l.owner FROM leases l JOIN runs r ON lower(r.repository) = l.repository JOIN jobs j ON j.run_id = r.id
				WHERE j.id = $1`+share, it.JobID).Scan(&owner)
			if err == nil && owner != it.Owner || errors.Is(err, sql.ErrNoRows) {
				err = ErrFenced
			}
			if err != nil {
				return err
			}
		}
		var err error
		ok, err = changed(tx.ExecContext(ctx, `INSERT INTO queue (job_id, labels, state, attempt, max_attempts, priority, worker, lease, available, cancel,
			created, conclusion, reason, cpus, memory_mib, owner)
			VALUES ($1, $2, 'queued', 0, $3, $4, '', 0, $5, '', $6, '', '', $7, $8, $9) ON CONFLICT (job_id) DO NOTHING`,
			it.JobID, l, maxAttempts, it.Priority, millis(it.After), millis(now), it.CPUs, it.MemoryMiB, it.Owner))
		return err
	})
	return ok, err
}

// QueueClaim hands the first fitting job to worker until the lease ends. Its
// attempt, counted from 1, is the fence of all that is written about it; the
// job's row takes it over in the same transaction. ok is false when nothing
// fits.
func (s *Store) QueueClaim(ctx context.Context, o queue.Offer, now, lease time.Time) (jobID string, attempt int, ok bool, err error) {
	l, err := lowerLabels(o.Labels)
	if err != nil {
		return "", 0, false, err
	}
	most := func(n int) int64 { // 0 is no bound
		if n <= 0 {
			return math.MaxInt64
		}
		return int64(n)
	}
	args := []any{millis(now), o.Worker, millis(lease), l, most(o.CPUs), most(o.MemoryMiB)}
	mine := ""
	if o.Owner != "" {
		mine = " AND q.owner = $7"
		args = append(args, o.Owner)
	}
	fits := `NOT EXISTS (SELECT 1 FROM json_each(q.labels) w WHERE w.value NOT IN (SELECT value FROM json_each($4)))`
	if s.dialect == PostgreSQL {
		fits = `q.labels::jsonb <@ $4::jsonb`
	}
	err = s.tx(ctx, "claim", func(tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, `UPDATE queue SET state = 'claimed', attempt = attempt + 1, worker = $2, lease = $3 WHERE job_id = (
			SELECT job_id FROM queue q WHERE state = 'queued' AND available <= $1`+mine+` AND q.cpus <= $5 AND q.memory_mib <= $6 AND `+fits+`
			ORDER BY priority DESC, created, job_id LIMIT 1`+s.skipLocked()+`) RETURNING job_id, attempt`, args...).Scan(&jobID, &attempt)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		ok = true
		_, err = tx.ExecContext(ctx, `UPDATE jobs SET attempt = $2 WHERE id = $1 AND status <> 'completed' AND attempt < $2`, jobID, attempt)
		return err
	})
	return jobID, attempt, ok, err
}

// QueueRenew prolongs a claim. held is false if it is not the caller's any
// more; cancel is the reason why the job is to stop, "" if it is not.
func (s *Store) QueueRenew(ctx context.Context, jobID string, attempt int, lease time.Time) (held bool, cancel string, err error) {
	err = s.write.QueryRowContext(ctx, `UPDATE queue SET lease = $3 WHERE job_id = $1 AND attempt = $2 AND state = 'claimed' RETURNING cancel`,
		jobID, attempt, millis(lease)).Scan(&cancel)
	if errors.Is(err, sql.ErrNoRows) {
		return false, "", nil
	}
	if err != nil {
		return false, "", fmt.Errorf("store: renew job %s: %w", jobID, err)
	}
	return true, cancel, nil
}

// QueueFinish ends a claim for good.
func (s *Store) QueueFinish(ctx context.Context, jobID string, attempt int, conclusion ci.Conclusion, reason string) (held bool, err error) {
	held, err = changed(s.write.ExecContext(ctx, `UPDATE queue SET state = 'done', conclusion = $3, reason = $4, lease = 0
		WHERE job_id = $1 AND attempt = $2 AND state = 'claimed'`, jobID, attempt, string(conclusion), clean(reason)))
	if err != nil {
		return false, fmt.Errorf("store: finish job %s: %w", jobID, err)
	}
	return held, nil
}

// QueueRelease gives a claim back, to be claimed again from available on. Its attempt
// is none of those that the job may have.
func (s *Store) QueueRelease(ctx context.Context, jobID string, attempt int, available time.Time, reason string) (held bool, err error) {
	held, err = changed(s.write.ExecContext(ctx, `UPDATE queue SET state = 'queued', worker = '', lease = 0, available = $3, reason = $4, max_attempts = max_attempts + 1
		WHERE job_id = $1 AND attempt = $2 AND state = 'claimed'`, jobID, attempt, millis(available), clean(reason)))
	if err != nil {
		return false, fmt.Errorf("store: release job %s: %w", jobID, err)
	}
	return held, nil
}

// QueueExpire takes back the claims whose lease has ended, of one owner's jobs or
// of all: those with attempts
// left, and not cancelled, go back into the queue, the others are lost.
func (s *Store) QueueExpire(ctx context.Context, owner string, now time.Time) (requeued, lost []string, err error) {
	err = s.tx(ctx, "expire leases", func(tx *sql.Tx) error {
		scan := func(r *sql.Rows) (string, error) {
			var id string
			return id, r.Scan(&id)
		}
		var err error
		lost, err = collect(ctx, tx, scan, `UPDATE queue SET state = 'lost', lease = 0, conclusion = 'failure',
			reason = CASE WHEN cancel <> '' THEN cancel ELSE 'the worker was lost' END
			WHERE state = 'claimed' AND lease <= $1 AND ($2 = '' OR owner = $2) AND (attempt >= max_attempts OR cancel <> '') RETURNING job_id`, millis(now), owner)
		if err != nil {
			return err
		}
		requeued, err = collect(ctx, tx, scan, `UPDATE queue SET state = 'queued', worker = '', lease = 0, available = $1, reason = 'the worker was lost'
			WHERE state = 'claimed' AND lease <= $1 AND ($2 = '' OR owner = $2) RETURNING job_id`, millis(now), owner)
		return err
	})
	return requeued, lost, err
}

// QueueGrace prolongs the claims of the workers whose names begin with prefix, where
// they end sooner.
func (s *Store) QueueGrace(ctx context.Context, prefix string, lease time.Time) error {
	_, err := s.write.ExecContext(ctx, `UPDATE queue SET lease = $2 WHERE state = 'claimed' AND lease < $2 AND substr(worker, 1, $3) = $1`,
		prefix, millis(lease), len(prefix))
	if err != nil {
		return fmt.Errorf("store: prolong claims: %w", err)
	}
	return nil
}

// QueueCancel asks that a job stop. One that is still queued is done at once;
// a claimed one hears of it with its next heartbeat. It reports the state the
// job was in, "" if it is not in the queue.
func (s *Store) QueueCancel(ctx context.Context, jobID, reason string) (was string, err error) {
	if reason == "" {
		reason = "cancelled"
	}
	err = s.tx(ctx, "cancel", func(tx *sql.Tx) error {
		lock := ""
		if s.dialect == PostgreSQL {
			lock = " FOR UPDATE"
		}
		err := tx.QueryRowContext(ctx, `SELECT state FROM queue WHERE job_id = $1`+lock, jobID).Scan(&was)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		switch was {
		case "queued":
			_, err = tx.ExecContext(ctx, `UPDATE queue SET state = 'done', cancel = $2, conclusion = 'cancelled', reason = $2 WHERE job_id = $1`, jobID, clean(reason))
		case "claimed":
			_, err = tx.ExecContext(ctx, `UPDATE queue SET cancel = $2 WHERE job_id = $1 AND cancel = ''`, jobID, clean(reason))
		}
		return err
	})
	return was, err
}

// QueueState reads a job's place in the queue; state is "" if it is not there.
func (s *Store) QueueState(ctx context.Context, jobID string) (state string, attempt int, worker string, lease time.Time, err error) {
	var ms int64
	err = s.read.QueryRowContext(ctx, `SELECT state, attempt, worker, lease FROM queue WHERE job_id = $1`, jobID).Scan(&state, &attempt, &worker, &ms)
	if errors.Is(err, sql.ErrNoRows) {
		return "", 0, "", time.Time{}, nil
	}
	if err != nil {
		return "", 0, "", time.Time{}, fmt.Errorf("store: queue state of job %s: %w", jobID, err)
	}
	return state, attempt, worker, moment(ms), nil
}

// QueueDepth is how many jobs with the same labels are at the same point.
type QueueDepth struct {
	Labels []string
	State  string // queued or claimed
	Jobs   int64
	Oldest time.Duration // since the first of them was put in
}

// QueueDepths says what waits and what runs. What has ended is not counted.
func (s *Store) QueueDepths(ctx context.Context) ([]QueueDepth, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (QueueDepth, error) {
		var v QueueDepth
		var labels string
		var age int64
		if err := r.Scan(&labels, &v.State, &v.Jobs, &age); err != nil {
			return v, err
		}
		v.Oldest = max(0, time.Duration(age)*time.Millisecond)
		return v, json.Unmarshal([]byte(labels), &v.Labels)
	}, `SELECT labels, state, COUNT(*), `+s.clock()+` - MIN(created) FROM queue WHERE state IN ('queued', 'claimed') GROUP BY labels, state`)
	if err != nil {
		return nil, fmt.Errorf("store: depth of the queue: %w", err)
	}
	return out, nil
}
