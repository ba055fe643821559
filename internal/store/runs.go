package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// StoredJob is a job with what its row says besides.
type StoredJob struct {
	ci.Job
	Infrastructure bool              `json:"infrastructure,omitempty"`
	Outputs        map[string]string `json:"outputs,omitempty"`
}

// CreateRun stores a run and its planned jobs, all queued, in one transaction.
// It fills in empty ids, the run's number (counted per repository and workflow
// file), attempts and creation times, and returns both as stored. plan is the
// planner's JSON, given back by [Store.Plan]; it may be nil.
func (s *Store) CreateRun(ctx context.Context, run ci.Run, jobs []ci.Job, plan []byte) (ci.Run, []ci.Job, error) {
	return s.createRun(ctx, Lease{}, run, jobs, plan)
}

func (s *Store) createRun(ctx context.Context, l Lease, run ci.Run, jobs []ci.Job, plan []byte) (ci.Run, []ci.Job, error) {
	now := time.Now()
	if run.ID == "" {
		run.ID = ci.NewID()
	}
	if run.Created.IsZero() {
		run.Created = now
	}
	run.Attempt = max(run.Attempt, 1)
	if run.Status == "" {
		run.Status = ci.Queued
	}
	jobs = append([]ci.Job(nil), jobs...)
	err := s.tx(ctx, "create run", func(tx *sql.Tx) error {
		if err := s.holds(ctx, tx, l); err != nil {
			return err
		}
		if run.Number == 0 {
			n, err := take(ctx, tx, "run:"+run.Repository+":"+run.File, 1)
			if err != nil {
				return err
			}
			run.Number = n
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO runs (id, number, attempt, event_id, event, repository, workflow, file, name,
			ref, sha, actor, status, conclusion, created, started, finished, plan)
			VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18)`,
			run.ID, run.Number, run.Attempt, run.EventID, clean(run.Event), clean(run.Repository), clean(run.Workflow), clean(run.File),
			clean(run.Name), clean(run.Ref), clean(run.SHA), clean(run.Actor), string(run.Status), string(run.Conclusion),
			millis(run.Created), millis(run.Started), millis(run.Finished), clean(string(plan))); err != nil {
			return err
		}
		for i := range jobs {
			jobs[i].RunID = run.ID
			if jobs[i].Created.IsZero() {
				jobs[i].Created = run.Created
			}
			if err := insertJob(ctx, tx, &jobs[i]); err != nil {
				return fmt.Errorf("job %s: %w", jobs[i].Key, err)
			}
		}
		return nil
	})
	if err != nil {
		return ci.Run{}, nil, err
	}
	return run, jobs, nil
}

func insertJob(ctx context.Context, q querier, j *ci.Job) error {
	if j.ID == "" {
		j.ID = ci.NewID()
	}
	if j.Status == "" {
		j.Status = ci.Queued
	}
	j.Attempt = max(j.Attempt, 1)
	if j.Key == "" {
		j.Key = j.Job
	}
	labels, err := json.Marshal(j.Labels)
	if err != nil {
		return err
	}
	_, err = q.ExecContext(ctx,
		`INSERT INTO jobs (id, run_id, position, key, job, name, attempt, labels, status, conclusion, reason, infra, outputs, created, started, finished)
		VALUES ($1,$2,(SELECT COUNT(*) FROM jobs WHERE run_id = $2),$3,$4,$5,$6,$7,$8,$9,$10,0,'',$11,$12,$13)`,
		j.ID, j.RunID, clean(j.Key), clean(j.Job), clean(j.Name), j.Attempt, string(labels), string(j.Status), string(j.Conclusion),
		clean(j.Reason), millis(j.Created), millis(j.Started), millis(j.Finished))
	return err
}

const runColumns = `id, number, attempt, event_id, event, repository, workflow, file, name, ref, sha, actor, status, conclusion, infra, created, started, finished`

func scanRun(r interface{ Scan(...any) error }) (ci.Run, error) {
	var v ci.Run
	var infra, created, started, finished int64
	err := r.Scan(&v.ID, &v.Number, &v.Attempt, &v.EventID, &v.Event, &v.Repository, &v.Workflow, &v.File, &v.Name, &v.Ref, &v.SHA, &v.Actor,
		&v.Status, &v.Conclusion, &infra, &created, &started, &finished)
	v.Infrastructure = infra != 0
	v.Created, v.Started, v.Finished = moment(created), moment(started), moment(finished)
	return v, err
}

// RunFilter narrows [Store.Runs]. Empty fields do not narrow.
type RunFilter struct {
	Repository string
	Workflow   string // name or file
	Event      string
	Ref        string
	SHA        string
	Status     ci.Status
	Conclusion ci.Conclusion
	EventID    string
	Actor      string
	Moving     bool      // not completed
	Branch     string    // or tag, or ref, by its name
	Text       string    // in the run's name, workflow, branch or repository, or the beginning of its commit; of the last maxRunsSearched runs
	Before     time.Time // created before
	After      *RunPlace // in the list
	Limit      int       // 0: 50
}

// RunPlace is a run's place in the list of all: where the next page begins.
type RunPlace struct {
	Created time.Time
	Number  int64
	ID      string
}

// maxRunsSearched is among how many runs, the newest, a text is looked for.
const maxRunsSearched = 20_000

// query is the list's.
func (f RunFilter) query() (query string, args []any) {
	var where []string
	add := func(cond string, v any) {
		args = append(args, v)
		where = append(where, strings.ReplaceAll(cond, "?", fmt.Sprintf("$%d", len(args))))
	}
	if f.Repository != "" {
		add("repository = ?", f.Repository)
	}
	if f.Workflow != "" {
		add("(workflow = ? OR file = ?)", f.Workflow)
	}
	if f.Event != "" {
		add("event = ?", f.Event)
	}
	if f.Ref != "" {
		add("ref = ?", f.Ref)
	}
	if f.SHA != "" {
		add("sha = ?", f.SHA)
	}
	if f.Status != "" {
		add("status = ?", string(f.Status))
	}
	if f.Conclusion != "" {
		add("conclusion = ?", string(f.Conclusion))
	}
	if f.EventID != "" {
		add("event_id = ?", f.EventID)
	}
	if f.Actor != "" {
		add("actor = ?", f.Actor)
	}
	if f.Moving {
		where = append(where, "status IN ('queued', 'in_progress')")
	}
	if f.Branch != "" {
		args = append(args, f.Branch, "refs/heads/"+f.Branch, "refs/tags/"+f.Branch)
		where = append(where, fmt.Sprintf("ref IN ($%d, $%d, $%d)", len(args)-2, len(args)-1, len(args)))
	}
	if f.Text != "" {
		text := strings.ToLower(f.Text)
		add(`(LOWER(name) LIKE ? ESCAPE '\' OR LOWER(workflow) LIKE ? ESCAPE '\' OR LOWER(ref) LIKE ? ESCAPE '\' OR LOWER(repository) LIKE ? ESCAPE '\')`,
			like(text))
		args = append(args, strings.TrimPrefix(like(text), "%"), maxRunsSearched)
		where[len(where)-1] = fmt.Sprintf(`(%s OR sha LIKE $%d ESCAPE '\')
			AND created >= COALESCE((SELECT created FROM runs ORDER BY created DESC LIMIT 1 OFFSET $%d), 0)`, where[len(where)-1], len(args)-1, len(args))
	}
	if !f.Before.IsZero() {
		add("created < ?", millis(f.Before))
	}
	if a := f.After; a != nil {
		args = append(args, millis(a.Created), a.Number, a.ID)
		where = append(where, fmt.Sprintf("(created, number, id) < ($%d, $%d, $%d)", len(args)-2, len(args)-1, len(args)))
	}
	query = `SELECT ` + runColumns + ` FROM runs`
	if len(where) > 0 {
		query += ` WHERE ` + strings.Join(where, " AND ")
	}
	if f.Limit <= 0 {
		f.Limit = 50
	}
	args = append(args, f.Limit)
	return query + fmt.Sprintf(` ORDER BY created DESC, number DESC, id DESC LIMIT $%d`, len(args)), args
}

// Runs lists runs, the newest first.
func (s *Store) Runs(ctx context.Context, f RunFilter) ([]ci.Run, error) {
	query, args := f.query()
	out, err := collect(ctx, s.read, func(r *sql.Rows) (ci.Run, error) { return scanRun(r) }, query, args...)
	if err != nil {
		return nil, fmt.Errorf("store: runs: %w", err)
	}
	return out, nil
}

// Repositories lists those that have had runs, by name, at most so many.
func (s *Store) Repositories(ctx context.Context, limit int) ([]string, error) {
	// Each is the next in the index, whatever the number of its runs.
	var out []string
	for last := ""; len(out) < limit; {
		var next sql.NullString
		if err := s.read.QueryRowContext(ctx, `SELECT MIN(repository) FROM runs WHERE repository > $1`, last).Scan(&next); err != nil {
			return nil, fmt.Errorf("store: repositories: %w", err)
		}
		if !next.Valid {
			break
		}
		last = next.String
		out = append(out, last)
	}
	return out, nil
}

// Run reads one run by its id, or by the only beginning of one (at least six
// characters), or the newest with "latest".
func (s *Store) Run(ctx context.Context, id string) (ci.Run, error) {
	var runs []ci.Run
	var err error
	scan := func(r *sql.Rows) (ci.Run, error) { return scanRun(r) }
	switch {
	case id == "latest":
		runs, err = collect(ctx, s.read, scan, `SELECT `+runColumns+` FROM runs ORDER BY created DESC, number DESC, id DESC LIMIT 1`)
	case ci.ValidID(id):
		runs, err = collect(ctx, s.read, scan, `SELECT `+runColumns+` FROM runs WHERE id = $1`, id)
	case len(id) >= 6 && strings.Trim(id, "0123456789abcdefghjkmnpqrstvwxyz") == "":
		runs, err = collect(ctx, s.read, scan, `SELECT `+runColumns+` FROM runs WHERE id LIKE $1 ORDER BY id LIMIT 2`, id+"%")
		if len(runs) > 1 {
			return ci.Run{}, fmt.Errorf("store: run %q: more than one run begins like this; give more of its id", id)
		}
	}
	if err == nil && len(runs) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return ci.Run{}, fmt.Errorf("store: run %q: %w", id, err)
	}
	return runs[0], nil
}

// Plan reads the plan that [Store.CreateRun] stored; empty if there was none.
func (s *Store) Plan(ctx context.Context, runID string) ([]byte, error) {
	var text string
	err := s.read.QueryRowContext(ctx, `SELECT plan FROM runs WHERE id = $1`, runID).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("store: plan of run %s: %w", runID, err)
	}
	return []byte(text), nil
}

// SetPlan replaces the stored plan of a run that has not completed.
func (s *Store) SetPlan(ctx context.Context, runID string, plan []byte) error {
	return s.setPlan(ctx, Lease{}, runID, plan)
}

func (s *Store) setPlan(ctx context.Context, l Lease, runID string, plan []byte) error {
	return s.tx(ctx, "plan of run "+runID, func(tx *sql.Tx) error {
		if err := s.holds(ctx, tx, l); err != nil {
			return err
		}
		return once(tx.ExecContext(ctx, `UPDATE runs SET plan = $2 WHERE id = $1 AND status <> 'completed'`, runID, clean(string(plan))))
	})
}

const jobColumns = `id, run_id, key, job, name, attempt, labels, status, conclusion, reason, infra, outputs, created, started, finished`

func scanJob(r interface{ Scan(...any) error }) (StoredJob, error) {
	var j StoredJob
	var labels, outputs string
	var infra, created, started, finished int64
	if err := r.Scan(&j.ID, &j.RunID, &j.Key, &j.Job.Job, &j.Name, &j.Attempt, &labels, &j.Status, &j.Conclusion, &j.Reason, &infra, &outputs,
		&created, &started, &finished); err != nil {
		return j, err
	}
	j.Infrastructure = infra != 0
	j.Created, j.Started, j.Finished = moment(created), moment(started), moment(finished)
	if err := json.Unmarshal([]byte(labels), &j.Labels); err != nil {
		return j, fmt.Errorf("labels of job %s: %w", j.ID, err)
	}
	if outputs != "" {
		if err := json.Unmarshal([]byte(outputs), &j.Outputs); err != nil {
			return j, fmt.Errorf("outputs of job %s: %w", j.ID, err)
		}
	}
	return j, nil
}

// Jobs lists a run's jobs in the order in which they were planned.
func (s *Store) Jobs(ctx context.Context, runID string) ([]StoredJob, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (StoredJob, error) { return scanJob(r) },
		`SELECT `+jobColumns+` FROM jobs WHERE run_id = $1 ORDER BY position`, runID)
	if err != nil {
		return nil, fmt.Errorf("store: jobs of run %s: %w", runID, err)
	}
	return out, nil
}

// Job reads one job.
func (s *Store) Job(ctx context.Context, id string) (StoredJob, error) {
	j, err := scanJob(s.read.QueryRowContext(ctx, `SELECT `+jobColumns+` FROM jobs WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return j, fmt.Errorf("store: job %s: %w", id, err)
	}
	return j, nil
}

// Steps lists a job's steps in order.
func (s *Store) Steps(ctx context.Context, jobID string) ([]ci.Step, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (ci.Step, error) {
		var v ci.Step
		var started, finished int64
		err := r.Scan(&v.JobID, &v.Number, &v.StepID, &v.Name, &v.Command, &v.Status, &v.Outcome, &v.Conclusion, &v.ExitCode, &started, &finished)
		v.Started, v.Finished = moment(started), moment(finished)
		return v, err
	}, `SELECT job_id, number, step_id, name, command, status, outcome, conclusion, exit_code, started, finished
		FROM steps WHERE job_id = $1 ORDER BY number`, jobID)
	if err != nil {
		return nil, fmt.Errorf("store: steps of job %s: %w", jobID, err)
	}
	return out, nil
}

// Unfinished lists the runs that have not completed, the oldest first: what a
// server looks through when it starts.
func (s *Store) Unfinished(ctx context.Context) ([]ci.Run, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (ci.Run, error) { return scanRun(r) },
		`SELECT `+runColumns+` FROM runs WHERE status <> 'completed' ORDER BY created, id`)
	if err != nil {
		return nil, fmt.Errorf("store: unfinished runs: %w", err)
	}
	return out, nil
}

// NumberRun takes the next number of a repository's workflow file, for a run
// whose plan has to know it before the run is stored.
func (s *Store) NumberRun(ctx context.Context, repository, file string) (int64, error) {
	var n int64
	err := s.tx(ctx, "number run", func(tx *sql.Tx) error {
		var err error
		n, err = take(ctx, tx, "run:"+repository+":"+file, 1)
		return err
	})
	return n, err
}
