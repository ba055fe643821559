package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Test is what is kept of one test of a step.
type Test struct {
	Repository string    `json:"repository"`
	ID         string    `json:"id"` // of its place and name
	Workflow   string    `json:"workflow"`
	Job        string    `json:"job"`            // its key
	Step       string    `json:"step,omitempty"` // its identity; "" where a report told of it
	Name       string    `json:"name"`
	Kind       string    `json:"kind"`
	Passed     int       `json:"passed"`
	Failed     int       `json:"failed"`
	Skipped    int       `json:"skipped"`
	Recent     string    `json:"recent"`            // P and F, at most 32, the newest last
	Seconds    float64   `json:"seconds,omitempty"` // it takes, about
	First      time.Time `json:"first"`
	Last       time.Time `json:"last"`
	LastFailed time.Time `json:"last_failed,omitzero"`
	Message    string    `json:"message,omitempty"` // of the last failure
	// Commits is at how many commits it failed, of those that are kept, and Mixed at
	// how many of them it passed, too.
	Commits int `json:"commits"`
	Mixed   int `json:"mixed"`

	passTree string // what it passed on last, passMark, and the run
}

const passMark = " in "

// TestFailure is that a test failed at a commit.
type TestFailure struct {
	Tree   string    `json:"-"`
	SHA    string    `json:"sha"`
	Branch string    `json:"branch"`
	Run    string    `json:"run"`
	At     time.Time `json:"at"`
	// PassedIn is the run in which it passed on the very same files; "" if none did.
	PassedIn string `json:"passed_in,omitempty"`
}

// TestOutcome is how a test ended in an execution.
type TestOutcome struct {
	ID, Name, Kind          string
	Passed, Failed, Skipped int
	Seconds                 float64
	Message                 string
}

// TestRun is an execution of tests.
type TestRun struct {
	Repository, Workflow, Job, Step string
	Run, SHA, Branch                string
	// Tree names the files that were tested: what failed and passed with one Tree did
	// so without a change. "" is not known, and proves nothing beyond this run.
	Tree string
	At   time.Time
	// Green: all that was there passed, whether it is among the outcomes or not.
	Green    bool
	Outcomes []TestOutcome
}

// What a repository may fill with tests, in rows. A test shrinks them.
var (
	maxTests            = 20_000
	maxTestFailures     = 5_000
	maxFailuresOfOne    = 50
	maxTestsOfAll       = 1_000_000
	recentOutcomes      = 32
	testSecondsKept     = .8 // of what was measured before, for each new one
	testOrder           = `CASE WHEN failed > 0 THEN 1 ELSE 0 END, last, id`
	errTestWithoutPlace = errors.New("a test without repository or id")
)

// BrokenTests says whether tests of a place failed when they were last told of.
func (s *Store) BrokenTests(ctx context.Context, repository, workflow, job, step string) (bool, error) {
	var n int
	err := s.read.QueryRowContext(ctx, `SELECT COUNT(*) FROM (SELECT 1 FROM tests WHERE repository = $1 AND workflow = $2 AND job = $3 AND step = $4
		AND recent LIKE '%F' LIMIT 1) one`, clean(repository), clean(workflow), clean(job), clean(step)).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("store: tests: %w", err)
	}
	return n > 0, nil
}

// AddTests takes in an execution of tests in one transaction, and returns those that
// failed as they are known then.
//
// Where a repository has too many tests, those that have never failed and were not
// seen for longest go first, then those that were not seen for longest; of failures
// the oldest. All repositories together are bounded too: the one with most gives.
func (s *Store) AddTests(ctx context.Context, r TestRun) (failed []Test, err error) {
	repository := clean(r.Repository)
	err = s.tx(ctx, "tests", func(tx *sql.Tx) error {
		failed = nil
		mentioned := map[string]bool{}
		fresh := 0
		for _, o := range r.Outcomes {
			if repository == "" || o.ID == "" {
				return errTestWithoutPlace
			}
			mentioned[o.ID] = true
			t, err := s.addTest(ctx, tx, repository, &r, o)
			if err != nil {
				return fmt.Errorf("%s: %w", o.Name, err)
			}
			if t.First.Equal(t.Last) {
				fresh++
			}
			if o.Failed > 0 {
				failed = append(failed, t)
			}
		}
		if r.Green {
			// Runners that print failures alone leave out what passes by now.
			broken, err := collect(ctx, tx, scanTest, `SELECT `+testColumns+` FROM tests WHERE repository = $1 AND workflow = $2 AND job = $3 AND step = $4
				AND recent LIKE '%F'`, repository, clean(r.Workflow), clean(r.Job), clean(r.Step))
			if err != nil {
				return err
			}
			for _, t := range broken {
				if mentioned[t.ID] {
					continue
				}
				if _, err := s.addTest(ctx, tx, repository, &r, TestOutcome{ID: t.ID, Name: t.Name, Kind: t.Kind, Passed: 1}); err != nil {
					return err
				}
			}
		}
		if fresh > 0 {
			return trimTests(ctx, tx, repository)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range failed {
		if failed[i].Commits, failed[i].Mixed, err = s.countFailures(ctx, repository, failed[i].ID); err != nil {
			return nil, err
		}
	}
	return failed, nil
}

// KnownTests returns those of an execution's tests that failed as AddTests would, and
// takes nothing in.
func (s *Store) KnownTests(ctx context.Context, r TestRun) (failed []Test, err error) {
	repository := clean(r.Repository)
	for _, o := range r.Outcomes {
		if o.Failed == 0 {
			continue
		}
		t, err := scanTestRow(s.read.QueryRowContext(ctx, `SELECT `+testColumns+` FROM tests WHERE repository = $1 AND id = $2`, repository, o.ID))
		if errors.Is(err, sql.ErrNoRows) {
			t, err = Test{Repository: repository, ID: o.ID, Name: o.Name, Kind: o.Kind}, nil
		}
		if err == nil {
			t.Commits, t.Mixed, err = s.countFailures(ctx, repository, o.ID)
		}
		if err != nil {
			return nil, fmt.Errorf("store: tests: %w", err)
		}
		t.Failed, t.Message, t.LastFailed = t.Failed+o.Failed, o.Message, r.At
		t.Recent += "F"
		if failed = append(failed, t); len(failed) == maxFailuresOfOne {
			break
		}
	}
	return failed, nil
}

func (s *Store) addTest(ctx context.Context, tx *sql.Tx, repository string, r *TestRun, o TestOutcome) (Test, error) {
	t, err := scanTestRow(tx.QueryRowContext(ctx, `SELECT `+testColumns+` FROM tests WHERE repository = $1 AND id = $2`, repository, o.ID))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return t, err
	}
	if err != nil {
		t = Test{Repository: repository, ID: o.ID, First: r.At}
	}
	t.Workflow, t.Job, t.Step, t.Name, t.Kind = r.Workflow, r.Job, r.Step, o.Name, o.Kind
	t.Passed, t.Failed, t.Skipped, t.Last = t.Passed+o.Passed, t.Failed+o.Failed, t.Skipped+o.Skipped, r.At
	// What did both passed in the end, if the step did.
	switch {
	case o.Failed > 0 && (o.Passed == 0 || !r.Green):
		t.Recent += strings.Repeat("P", min(o.Passed, 1)) + "F"
	case o.Failed > 0:
		t.Recent += "FP"
	case o.Passed > 0:
		t.Recent += "P"
	}
	t.Recent = t.Recent[max(0, len(t.Recent)-recentOutcomes):]
	if o.Seconds > 0 {
		if t.Seconds == 0 {
			t.Seconds = o.Seconds
		}
		t.Seconds = testSecondsKept*t.Seconds + (1-testSecondsKept)*o.Seconds
	}
	tree := r.Tree
	if tree == "" {
		tree = "run " + r.Run
	}
	passedIn := ""
	if was, run, _ := strings.Cut(t.passTree, passMark); was == tree {
		passedIn = run
	}
	if o.Passed > 0 {
		passedIn = r.Run
	}
	if o.Passed > 0 && o.Failed == 0 {
		t.passTree = tree + passMark + r.Run
	}
	if o.Failed > 0 {
		t.LastFailed, t.Message = r.At, o.Message
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO tests (`+testColumns+`) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17)
		ON CONFLICT (repository, id) DO UPDATE SET passed = excluded.passed, failed = excluded.failed, skipped = excluded.skipped, recent = excluded.recent,
			seconds = excluded.seconds, last = excluded.last, last_failed = excluded.last_failed, pass_tree = excluded.pass_tree, message = excluded.message`,
		repository, t.ID, clean(t.Workflow), clean(t.Job), clean(t.Step), clean(t.Name), t.Kind, t.Passed, t.Failed, t.Skipped, t.Recent, t.Seconds,
		millis(t.First), millis(t.Last), millis(t.LastFailed), clean(t.passTree), clean(t.Message)); err != nil {
		return t, err
	}
	if t.Failed == 0 {
		return t, nil
	}
	if o.Failed > 0 {
		if _, err := tx.ExecContext(ctx, `INSERT INTO test_failures (repository, test_id, tree, sha, branch, run_id, at, passed_in) VALUES ($1,$2,$3,$4,$5,$6,$7,$8)
			ON CONFLICT (repository, test_id, tree) DO UPDATE SET passed_in = CASE WHEN excluded.passed_in = '' THEN test_failures.passed_in ELSE excluded.passed_in END`,
			repository, t.ID, clean(tree), clean(r.SHA), clean(r.Branch), r.Run, millis(r.At), passedIn); err != nil {
			return t, err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM test_failures WHERE repository = $1 AND test_id = $2 AND at < (
			SELECT MIN(at) FROM (SELECT at FROM test_failures WHERE repository = $1 AND test_id = $2 ORDER BY at DESC LIMIT $3) newest)`,
			repository, t.ID, maxFailuresOfOne); err != nil {
			return t, err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM test_failures WHERE repository = $1 AND at < (
			SELECT MIN(at) FROM (SELECT at FROM test_failures WHERE repository = $1 ORDER BY at DESC LIMIT $2) newest)`, repository, maxTestFailures)
		return t, err
	}
	if o.Passed > 0 {
		_, err = tx.ExecContext(ctx, `UPDATE test_failures SET passed_in = $4 WHERE repository = $1 AND test_id = $2 AND tree = $3 AND passed_in = ''`,
			repository, t.ID, clean(tree), r.Run)
	}
	return t, err
}

// trimTests makes room, in a repository and over all.
func trimTests(ctx context.Context, tx *sql.Tx, repository string) error {
	if err := trimTestsOf(ctx, tx, repository, maxTests); err != nil {
		return err
	}
	for {
		var all int
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM tests`).Scan(&all); err != nil || all <= maxTestsOfAll {
			return err
		}
		var largest string
		var n int
		if err := tx.QueryRowContext(ctx, `SELECT repository, COUNT(*) AS n FROM tests GROUP BY repository ORDER BY n DESC, repository LIMIT 1`).Scan(&largest, &n); err != nil {
			return err
		}
		if err := trimTestsOf(ctx, tx, largest, max(n-(all-maxTestsOfAll), n/2)); err != nil {
			return err
		}
	}
}

func trimTestsOf(ctx context.Context, tx *sql.Tx, repository string, keep int) error {
	var n int
	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM tests WHERE repository = $1`, repository).Scan(&n); err != nil || n <= keep {
		return err
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM tests WHERE repository = $1 AND id IN (SELECT id FROM tests WHERE repository = $1 ORDER BY `+testOrder+` LIMIT $2)`,
		repository, n-keep); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM test_failures WHERE repository = $1 AND NOT EXISTS (
		SELECT 1 FROM tests WHERE tests.repository = test_failures.repository AND tests.id = test_failures.test_id)`, repository)
	return err
}

const testColumns = `repository, id, workflow, job, step, name, kind, passed, failed, skipped, recent, seconds, first, last, last_failed, pass_tree, message`

func scanTestRow(r interface{ Scan(...any) error }) (Test, error) {
	var t Test
	var first, last, failed int64
	err := r.Scan(&t.Repository, &t.ID, &t.Workflow, &t.Job, &t.Step, &t.Name, &t.Kind, &t.Passed, &t.Failed, &t.Skipped, &t.Recent, &t.Seconds,
		&first, &last, &failed, &t.passTree, &t.Message)
	t.First, t.Last, t.LastFailed = moment(first), moment(last), moment(failed)
	return t, err
}

func scanTest(r *sql.Rows) (Test, error) { return scanTestRow(r) }

func (s *Store) countFailures(ctx context.Context, repository, id string) (commits, mixed int, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT COUNT(*), COUNT(CASE WHEN passed_in <> '' THEN 1 END) FROM test_failures WHERE repository = $1 AND test_id = $2`,
		repository, id).Scan(&commits, &mixed)
	if err != nil {
		err = fmt.Errorf("store: failures of a test: %w", err)
	}
	return commits, mixed, err
}

// Tests lists the tests of a repository ("": of all), those that failed last first;
// with failed those alone that have ever failed.
func (s *Store) Tests(ctx context.Context, repository string, failed bool, limit int) ([]Test, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (Test, error) {
		var t Test
		var first, last, at int64
		err := r.Scan(&t.Repository, &t.ID, &t.Workflow, &t.Job, &t.Step, &t.Name, &t.Kind, &t.Passed, &t.Failed, &t.Skipped, &t.Recent, &t.Seconds,
			&first, &last, &at, &t.passTree, &t.Message, &t.Commits, &t.Mixed)
		t.First, t.Last, t.LastFailed = moment(first), moment(last), moment(at)
		return t, err
	}, `SELECT t.repository, t.id, t.workflow, t.job, t.step, t.name, t.kind, t.passed, t.failed, t.skipped, t.recent, t.seconds, t.first, t.last, t.last_failed,
			t.pass_tree, t.message, COALESCE(f.commits, 0), COALESCE(f.mixed, 0)
		FROM tests t LEFT JOIN (SELECT repository, test_id, COUNT(*) AS commits, COUNT(CASE WHEN passed_in <> '' THEN 1 END) AS mixed
			FROM test_failures WHERE $1 = '' OR repository = $1 GROUP BY repository, test_id) f ON f.repository = t.repository AND f.test_id = t.id
		WHERE ($1 = '' OR t.repository = $1) AND ($2 = 0 OR t.failed > 0) ORDER BY t.last_failed DESC, t.last DESC, t.id LIMIT $3`,
		clean(repository), flag(failed), limit)
	if err != nil {
		return nil, fmt.Errorf("store: tests: %w", err)
	}
	return out, nil
}

// TestFailures lists the commits at which a test failed, the newest first.
func (s *Store) TestFailures(ctx context.Context, repository, id string, limit int) ([]TestFailure, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (TestFailure, error) {
		var f TestFailure
		var at int64
		err := r.Scan(&f.Tree, &f.SHA, &f.Branch, &f.Run, &at, &f.PassedIn)
		f.At = moment(at)
		return f, err
	}, `SELECT tree, sha, branch, run_id, at, passed_in FROM test_failures WHERE repository = $1 AND test_id = $2 ORDER BY at DESC, tree LIMIT $3`,
		clean(repository), id, limit)
	if err != nil {
		return nil, fmt.Errorf("store: failures of a test: %w", err)
	}
	return out, nil
}
