package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// Sample is one execution of a run, a job or a step that ended.
type Sample struct {
	Run        string
	Number     int64
	Created    time.Time
	Took       time.Duration
	Queue      time.Duration // of a run: until its first job had a machine
	Conclusion ci.Conclusion
	Infra      bool // it could not be run
}

// Place is what is sampled: a repository's runs, those of a workflow (its file),
// of one of its jobs (by id, all cells of a matrix) or of a step of that (by name).
type Place struct{ Repository, Workflow, Job, Step string }

// Trend lists the last executions of a place, the oldest first.
func (s *Store) Trend(ctx context.Context, p Place, limit int) ([]Sample, error) {
	query, args := p.trend(limit)
	out, err := collect(ctx, s.read, func(r *sql.Rows) (Sample, error) {
		var v Sample
		var created, from, to, queue, infra int64
		err := r.Scan(&v.Run, &v.Number, &created, &from, &to, &queue, &v.Conclusion, &infra)
		v.Created, v.Infra = moment(created), infra != 0
		if from > 0 && to > from {
			v.Took = time.Duration(to-from) * time.Millisecond
		}
		if queue > created {
			v.Queue = time.Duration(queue-created) * time.Millisecond
		}
		return v, err
	}, query, args...)
	if err != nil {
		return nil, fmt.Errorf("store: trend of %s: %w", p.Repository, err)
	}
	slices.Reverse(out)
	return out, nil
}

func (p Place) trend(limit int) (string, []any) {
	args := []any{clean(p.Repository), clean(p.Workflow), limit}
	const of = ` WHERE r.repository = $1 AND ($2 = '' OR r.file = $2)`
	const last = ` ORDER BY r.created DESC LIMIT $3`
	switch {
	case p.Step != "":
		return `SELECT r.id, r.number, r.created, s.started, s.finished, 0, s.outcome, j.infra FROM runs r JOIN jobs j ON j.run_id = r.id JOIN steps s ON s.job_id = j.id` +
				of + ` AND j.job = $4 AND s.name = $5 AND s.status = 'completed' AND s.outcome IN ('success', 'failure', 'timed_out')` + last, append(args,
				clean(p.Job), clean(p.Step))
	case p.Job != "":
		return `SELECT r.id, r.number, r.created, j.started, j.finished, 0, j.conclusion, j.infra FROM runs r JOIN jobs j ON j.run_id = r.id` +
			of + ` AND j.job = $4 AND j.status = 'completed' AND j.started > 0` + last, append(args, clean(p.Job))
	}
	return `SELECT r.id, r.number, r.created, r.started, r.finished, COALESCE((SELECT MIN(j.started) FROM jobs j WHERE j.run_id = r.id AND j.started > 0), 0),
		r.conclusion, r.infra FROM runs r` + of + ` AND r.status = 'completed'` + last, args
}

// Part is what a step came to over the last runs of its repository.
type Part struct {
	Workflow, Job, Step string // file, id, name
	Runs, Failed        int
	P50, P90, Sum       time.Duration
}

// maxPartRows bounds what one reckoning of parts reads.
const maxPartRows = 20_000

// Parts reckons up the steps of a repository's last runs, those that took longest in
// sum first.
func (s *Store) Parts(ctx context.Context, repository, workflow string, runs int) ([]Part, error) {
	type row struct {
		Part
		bad  bool
		took time.Duration
	}
	rows, err := collect(ctx, s.read, func(r *sql.Rows) (row, error) {
		var v row
		var outcome string
		var ms int64
		err := r.Scan(&v.Workflow, &v.Job, &v.Step, &outcome, &ms)
		v.bad, v.took = outcome != "success", time.Duration(max(ms, 0))*time.Millisecond
		return v, err
	}, `SELECT r.file, j.job, s.name, s.outcome, s.finished - s.started
		FROM (SELECT id, file, created FROM runs WHERE repository = $1 AND ($2 = '' OR file = $2) AND status = 'completed' ORDER BY created DESC LIMIT $3) r
		JOIN jobs j ON j.run_id = r.id JOIN steps s ON s.job_id = j.id
		WHERE s.status = 'completed' AND s.started > 0 AND s.outcome IN ('success', 'failure', 'timed_out') LIMIT $4`,
		clean(repository), clean(workflow), runs, maxPartRows)
	if err != nil {
		return nil, fmt.Errorf("store: parts of %s: %w", repository, err)
	}
	at := map[Part]int{}
	var out []Part
	var took [][]time.Duration
	for _, r := range rows {
		i, ok := at[r.Part]
		if !ok {
			i = len(out)
			at[r.Part] = i
			out, took = append(out, r.Part), append(took, nil)
		}
		out[i].Runs++
		out[i].Sum += r.took
		if r.bad {
			out[i].Failed++
		}
		took[i] = append(took[i], r.took)
	}
	for i, t := range took {
		slices.Sort(t)
		out[i].P50, out[i].P90 = t[len(t)/2], t[len(t)*9/10]
	}
	slices.SortStableFunc(out, func(a, b Part) int { return int(b.Sum - a.Sum) })
	return out, nil
}
