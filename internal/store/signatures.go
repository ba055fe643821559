package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// Signature is a kind of failure in a repository: what is left of its strongest
// line when all that changes from run to run is masked. Two repositories may
// have signatures of one ID, since it follows from the line; they have nothing
// to do with each other.
type Signature struct {
	Repository string    `json:"repository"`
	ID         string    `json:"id"`
	Text       string    `json:"text"`   // the masked line
	Class      string    `json:"class"`  // compile, assert, network, …
	Kind       string    `json:"kind"`   // of step: test, build, …
	Sketch     string    `json:"sketch"` // MinHash of its block
	Seen       int       `json:"seen"`
	First      time.Time `json:"first"`
	Last       time.Time `json:"last"`
	FixedBy    string    `json:"fixed_by,omitempty"` // commit that ended it last
	Fix        string    `json:"fix,omitempty"`
	RetryOK    int       `json:"retry_ok"`   // later attempts at the same commit that passed
	RetryFail  int       `json:"retry_fail"` // and that failed
}

// Hit is one failure with its signature.
type Hit struct {
	Signature  string    `json:"signature"`
	Run        string    `json:"run"`
	JobKey     string    `json:"job_key"`
	Step       int       `json:"step"`
	Attempt    int       `json:"attempt"`
	Identity   string    `json:"identity"` // the learner's key of the step
	Repository string    `json:"repository"`
	Branch     string    `json:"branch"`
	SHA        string    `json:"sha"`
	At         time.Time `json:"at"`
	Text       string    `json:"text"` // the line as it was, masked of secrets
}

// Lesson is what repeated failures taught.
type Lesson struct {
	ID         string    `json:"id"`
	Repository string    `json:"repository"`
	Identity   string    `json:"identity"`
	Signature  string    `json:"signature"`
	Text       string    `json:"text"`
	Evidence   string    `json:"evidence"` // JSON
	Created    time.Time `json:"created"`
	Last       time.Time `json:"last"`
	Expires    time.Time `json:"expires"`
	Shown      int       `json:"shown"`
	Helped     int       `json:"helped"`
}

const signatureColumns = `repository, id, text, class, kind, sketch, seen, first, last, fixed_by, fix, retry_ok, retry_fail`

func scanSignature(r interface{ Scan(...any) error }) (Signature, error) {
	var v Signature
	var first, last int64
	err := r.Scan(&v.Repository, &v.ID, &v.Text, &v.Class, &v.Kind, &v.Sketch, &v.Seen, &first, &last, &v.FixedBy, &v.Fix, &v.RetryOK, &v.RetryFail)
	v.First, v.Last = moment(first), moment(last)
	return v, err
}

// Signature reads one signature of a repository.
func (s *Store) Signature(ctx context.Context, repository, id string) (Signature, error) {
	v, err := scanSignature(s.read.QueryRowContext(ctx, `SELECT `+signatureColumns+` FROM signatures WHERE repository = $1 AND id = $2`, clean(repository), id))
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return v, fmt.Errorf("store: signature %s: %w", id, err)
	}
	return v, nil
}

// Signatures lists a repository's signatures, the last seen first.
func (s *Store) Signatures(ctx context.Context, repository string, limit int) ([]Signature, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (Signature, error) { return scanSignature(r) },
		`SELECT `+signatureColumns+` FROM signatures WHERE repository = $1 ORDER BY last DESC, id LIMIT $2`, clean(repository), limit)
	if err != nil {
		return nil, fmt.Errorf("store: signatures: %w", err)
	}
	return out, nil
}

// What a repository may fill with failures, in rows. A test shrinks them.
var (
	maxSignatures    = 2_000  // of a repository
	maxHits          = 20_000 // of a repository
	maxSignatureHits = 200    // of one signature
	maxLessons       = 500    // of a repository
)

// AddHit stores a failure under its signature in the failure's repository, which
// is made or counted up, in one transaction; what it looks like is as this failure does. A failure that is known already
// (same run, job, step and attempt) changes nothing, and fresh is false. before
// is the signature as it was before this failure.
//
// Old failures make room: the counts of their signature stay. Where a repository
// has too many signatures, those that came once and long ago go first.
func (s *Store) AddHit(ctx context.Context, sig Signature, h Hit) (before Signature, fresh bool, err error) {
	repository := clean(h.Repository)
	err = s.tx(ctx, "signature "+sig.ID, func(tx *sql.Tx) error {
		before, err = scanSignature(tx.QueryRowContext(ctx, `SELECT `+signatureColumns+` FROM signatures WHERE repository = $1 AND id = $2`, repository, sig.ID))
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		known := err == nil
		fresh, err = changed(tx.ExecContext(ctx, `INSERT INTO signature_hits (signature_id, run_id, job_key, step, attempt, identity, repository, branch, sha, at, text)
			VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11) ON CONFLICT (run_id, job_key, step, attempt) DO NOTHING`,
			sig.ID, h.Run, clean(h.JobKey), h.Step, max(h.Attempt, 1), clean(h.Identity), repository, clean(h.Branch), clean(h.SHA), millis(h.At), clean(h.Text)))
		if err != nil || !fresh {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO signatures (repository, id, text, class, kind, sketch, seen, first, last, fixed_by, fix, retry_ok, retry_fail)
			VALUES ($1,$2,$3,$4,$5,$6,1,$7,$7,'','',0,0) ON CONFLICT (repository, id) DO UPDATE SET seen = signatures.seen + 1, last = excluded.last,
				text = excluded.text, class = excluded.class, kind = excluded.kind, sketch = excluded.sketch`,
			repository, sig.ID, clean(sig.Text), sig.Class, sig.Kind, sig.Sketch, millis(h.At)); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM signature_hits WHERE repository = $1 AND signature_id = $2 AND at < (
			SELECT MIN(at) FROM (SELECT at FROM signature_hits WHERE repository = $1 AND signature_id = $2 ORDER BY at DESC LIMIT $3) newest)`,
			repository, sig.ID, maxSignatureHits); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM signature_hits WHERE repository = $1 AND at < (
			SELECT MIN(at) FROM (SELECT at FROM signature_hits WHERE repository = $1 ORDER BY at DESC LIMIT $2) newest)`, repository, maxHits); err != nil || known {
			return err
		}
		return trimSignatures(ctx, tx, repository, sig.ID)
	})
	return before, fresh, err
}

// trimSignatures drops the signatures that a repository has too many of, but not
// the one that is new, with their failures and lessons.
func trimSignatures(ctx context.Context, tx *sql.Tx, repository, fresh string) error {
	var n int
	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM signatures WHERE repository = $1`, repository).Scan(&n); err != nil || n <= maxSignatures {
		return err
	}
	gone, err := collect(ctx, tx, func(r *sql.Rows) (string, error) {
		var id string
		return id, r.Scan(&id)
	}, `SELECT id FROM signatures WHERE repository = $1 AND id <> $2
		ORDER BY CASE WHEN seen > 1 THEN 1 ELSE 0 END, last, id LIMIT $3`, repository, fresh, n-maxSignatures)
	if err != nil {
		return err
	}
	for _, id := range gone {
		for _, table := range []string{"signature_hits", "lessons"} {
			if _, err := tx.ExecContext(ctx, `DELETE FROM `+table+` WHERE repository = $1 AND signature_id = $2`, repository, id); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM signatures WHERE repository = $1 AND id = $2`, repository, id); err != nil {
			return err
		}
	}
	return nil
}

const hitColumns = `signature_id, run_id, job_key, step, attempt, identity, repository, branch, sha, at, text`

func scanHit(r *sql.Rows) (Hit, error) {
	var h Hit
	var at int64
	err := r.Scan(&h.Signature, &h.Run, &h.JobKey, &h.Step, &h.Attempt, &h.Identity, &h.Repository, &h.Branch, &h.SHA, &at, &h.Text)
	h.At = moment(at)
	return h, err
}

// Hits lists the newest failures of a repository's signature.
func (s *Store) Hits(ctx context.Context, repository, signature string, limit int) ([]Hit, error) {
	out, err := collect(ctx, s.read, scanHit, `SELECT `+hitColumns+` FROM signature_hits WHERE repository = $1 AND signature_id = $2 ORDER BY at DESC LIMIT $3`,
		clean(repository), signature, limit)
	if err != nil {
		return nil, fmt.Errorf("store: failures of signature %s: %w", signature, err)
	}
	return out, nil
}

// RunHits lists the failures of one run.
func (s *Store) RunHits(ctx context.Context, runID string) ([]Hit, error) {
	out, err := collect(ctx, s.read, scanHit, `SELECT `+hitColumns+` FROM signature_hits WHERE run_id = $1 ORDER BY at, job_key, step`, runID)
	if err != nil {
		return nil, fmt.Errorf("store: failures of run %s: %w", runID, err)
	}
	return out, nil
}

// PutLesson stores a lesson, or renews the one for the same step and signature:
// its text, evidence and expiry. The lessons of a repository that were not
// renewed for longest make room.
func (s *Store) PutLesson(ctx context.Context, l Lesson) error {
	if l.ID == "" {
		l.ID = ci.NewID()
	}
	return s.tx(ctx, "lesson", func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO lessons (id, repository, identity, signature_id, text, evidence, created, last, expires, shown, helped)
			VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,0,0) ON CONFLICT (identity, signature_id) DO UPDATE SET text = excluded.text, evidence = excluded.evidence,
				last = excluded.last, expires = excluded.expires WHERE lessons.repository = excluded.repository`,
			l.ID, clean(l.Repository), clean(l.Identity), l.Signature, clean(l.Text), clean(l.Evidence), millis(l.Created), millis(l.Last),
			millis(l.Expires)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM lessons WHERE repository = $1 AND last < (
			SELECT MIN(last) FROM (SELECT last FROM lessons WHERE repository = $1 ORDER BY last DESC LIMIT $2) newest)`, clean(l.Repository), maxLessons)
		return err
	})
}

// Lessons lists the lessons that have not expired at now, the newest first;
// repository "" means all.
func (s *Store) Lessons(ctx context.Context, repository string, now time.Time) ([]Lesson, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (Lesson, error) {
		var l Lesson
		var created, last, expires int64
		err := r.Scan(&l.ID, &l.Repository, &l.Identity, &l.Signature, &l.Text, &l.Evidence, &created, &last, &expires, &l.Shown, &l.Helped)
		l.Created, l.Last, l.Expires = moment(created), moment(last), moment(expires)
		return l, err
	}, `SELECT id, repository, identity, signature_id, text, evidence, created, last, expires, shown, helped FROM lessons
		WHERE ($1 = '' OR repository = $1) AND expires > $2 ORDER BY last DESC, id`, repository, millis(now))
	if err != nil {
		return nil, fmt.Errorf("store: lessons: %w", err)
	}
	return out, nil
}

// LessonShown counts that the lesson of a step and signature was shown.
func (s *Store) LessonShown(ctx context.Context, repository, identity, signature string) error {
	if _, err := s.write.ExecContext(ctx, `UPDATE lessons SET shown = shown + 1 WHERE repository = $1 AND identity = $2 AND signature_id = $3`,
		clean(repository), clean(identity), signature); err != nil {
		return fmt.Errorf("store: lesson: %w", err)
	}
	return nil
}

// LessonHelped counts that, after a lesson was shown, what it is about ended.
func (l *Learning) LessonHelped(repository, identity, signature string) error {
	_, err := l.tx.ExecContext(l.ctx, `UPDATE lessons SET helped = helped + 1 WHERE repository = $1 AND identity = $2 AND signature_id = $3 AND helped < shown`,
		clean(repository), clean(identity), signature)
	return err
}
