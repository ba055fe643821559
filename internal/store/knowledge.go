package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// Node is a stored node of a repository's knowledge graph.
type Node struct {
	Repository, ID, Kind, Text string
	OK, Failed                 float64
	Last                       int64 // ms
}

// Edge is a stored edge of a repository's knowledge graph.
type Edge struct {
	Repository, Src, Kind, Dst string
	OK, Failed                 float64
	Last                       int64 // ms
}

// Model is one stored piece of the learner's models.
type Model struct {
	Key  string
	Body []byte
	Last int64 // ms
}

// Knowledge is a set of rows of all three kinds.
type Knowledge struct {
	Nodes  []Node
	Edges  []Edge
	Models []Model
}

// Learning is one transaction of a follower of the event log: what it reads,
// what it concludes from it and how far it has come are committed together or
// not at all, so that each record is learned from exactly once, by whichever
// process is there first.
type Learning struct {
	s        *Store
	ctx      context.Context
	tx       *sql.Tx
	follower string
	// Cursor is how far the follower, in any process, had come when the
	// transaction began.
	Cursor int64
	// Version counts the saves of the follower, in any process, so far.
	Version int64
	// Epoch counts how often something was forgotten that may be in memory elsewhere.
	Epoch int64
}

// Learn runs fn in a transaction of the follower of that name. Other processes'
// transactions of the same follower wait for it.
func (s *Store) Learn(ctx context.Context, follower string, fn func(*Learning) error) error {
	return s.tx(ctx, "learn", func(tx *sql.Tx) error {
		l := &Learning{s: s, ctx: ctx, tx: tx, follower: "follow:" + follower}
		var err error
		if l.Cursor, err = take(ctx, tx, l.follower, 0); err != nil {
			return err
		}
		if l.Version, err = take(ctx, tx, "version:"+follower, 0); err != nil {
			return err
		}
		if l.Epoch, err = take(ctx, tx, "epoch:"+follower, 0); err != nil {
			return err
		}
		return fn(l)
	})
}

// Progress says, in one read, how long the event log is, how far a follower has
// come, and how often it has saved.
func (s *Store) Progress(ctx context.Context, follower string) (head, cursor, version int64, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT COALESCE((SELECT n FROM counters WHERE name = 'records'), 0),
		COALESCE((SELECT n FROM counters WHERE name = $1), 0), COALESCE((SELECT n FROM counters WHERE name = $2), 0)`,
		"follow:"+follower, "version:"+follower).Scan(&head, &cursor, &version)
	if err != nil {
		return 0, 0, 0, fmt.Errorf("store: follower %s: %w", follower, err)
	}
	return head, cursor, version, nil
}

// Records reads on from the follower's cursor.
func (l *Learning) Records(limit int) ([]StoredRecord, error) {
	return l.s.records(l.ctx, l.tx, l.Cursor, limit)
}

// Run reads a run.
func (l *Learning) Run(id string) (ci.Run, error) {
	r, err := scanRun(l.tx.QueryRowContext(l.ctx, `SELECT `+runColumns+` FROM runs WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	return r, err
}

// StepCommand reads what a step that started is: its name and its command as
// written. Both are empty if it never started.
func (l *Learning) StepCommand(runID, jobKey string, step int) (name, command string, err error) {
	err = l.tx.QueryRowContext(l.ctx, `SELECT s.name, s.command FROM steps s JOIN jobs j ON j.id = s.job_id
		WHERE j.run_id = $1 AND j.key = $2 AND s.number = $3`, runID, clean(jobKey), step).Scan(&name, &command)
	if errors.Is(err, sql.ErrNoRows) {
		return "", "", nil
	}
	return name, command, err
}

// Ended is how what was predicted ended.
type Ended struct {
	At     time.Time
	As     ci.Conclusion
	Failed bool
	Counts bool // in what predictions are measured by
	Took   time.Duration
}

// ClosePrediction writes the outcome beside the prediction, once. It reports
// whether there was a prediction that was open.
func (l *Learning) ClosePrediction(runID, jobKey string, step int, o Ended) (bool, error) {
	f := int64(-1)
	if o.Counts {
		f = flag(o.Failed)
	}
	return changed(l.tx.ExecContext(l.ctx, `UPDATE predictions SET closed = $4, outcome = $5, failed = $6, duration_ms = $7
		WHERE run_id = $1 AND job_key = $2 AND step = $3 AND closed = 0`, runID, clean(jobKey), step, millis(o.At), string(o.As), f, o.Took.Milliseconds()))
}

// RecentHits lists the newest failures of a step, for what ended them.
func (l *Learning) RecentHits(repository, identity string, limit int) ([]Hit, error) {
	return collect(l.ctx, l.tx, scanHit, `SELECT `+hitColumns+` FROM signature_hits WHERE repository = $1 AND identity = $2 ORDER BY at DESC LIMIT $3`,
		clean(repository), clean(identity), limit)
}

// CountRetry counts, for a signature, a later attempt at the same commit.
func (l *Learning) CountRetry(repository, signature string, passed bool) error {
	_, err := l.tx.ExecContext(l.ctx, `UPDATE signatures SET retry_ok = retry_ok + $3, retry_fail = retry_fail + $4 WHERE repository = $1 AND id = $2`,
		clean(repository), signature, flag(passed), flag(!passed))
	return err
}

// Fixed writes which commit ended a signature.
func (l *Learning) Fixed(repository, signature, commit, fix string) error {
	_, err := l.tx.ExecContext(l.ctx, `UPDATE signatures SET fixed_by = $3, fix = $4 WHERE repository = $1 AND id = $2`, clean(repository), signature,
		clean(commit), clean(fix))
	return err
}

// Changed reads what any process has saved since a version; everything with
// since 0.
func (l *Learning) Changed(since int64) (Knowledge, error) { return knowledge(l.ctx, l.tx, since) }

func knowledge(ctx context.Context, q querier, since int64) (Knowledge, error) {
	var k Knowledge
	var err error
	k.Nodes, err = collect(ctx, q, scanNode, `SELECT `+nodeColumns+` FROM nodes WHERE version > $1`, since)
	if err != nil {
		return k, err
	}
	k.Edges, err = collect(ctx, q, scanEdge, `SELECT `+edgeColumns+` FROM edges WHERE version > $1`, since)
	if err != nil {
		return k, err
	}
	k.Models, err = collect(ctx, q, func(r *sql.Rows) (Model, error) {
		var m Model
		return m, r.Scan(&m.Key, &m.Body, &m.Last)
	}, `SELECT key, body, last FROM model WHERE version > $1`, since)
	return k, err
}

// Graph reads the nodes and edges of a repository's knowledge graph, or with "" of
// all, in the order of their ids.
func (s *Store) Graph(ctx context.Context, repository string) (nodes []Node, edges []Edge, err error) {
	nodes, err = collect(ctx, s.read, scanNode, `SELECT `+nodeColumns+` FROM nodes WHERE $1 = '' OR repository = $1 ORDER BY repository, id`, clean(repository))
	if err == nil {
		edges, err = collect(ctx, s.read, scanEdge, `SELECT `+edgeColumns+` FROM edges WHERE $1 = '' OR repository = $1 ORDER BY repository, src, kind, dst`,
			clean(repository))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("store: graph: %w", err)
	}
	return nodes, edges, nil
}

const (
	nodeColumns = `repository, id, kind, text, ok, failed, last`
	edgeColumns = `repository, src, kind, dst, ok, failed, last`
)

func scanNode(r *sql.Rows) (n Node, err error) {
	return n, r.Scan(&n.Repository, &n.ID, &n.Kind, &n.Text, &n.OK, &n.Failed, &n.Last)
}

func scanEdge(r *sql.Rows) (e Edge, err error) {
	return e, r.Scan(&e.Repository, &e.Src, &e.Kind, &e.Dst, &e.OK, &e.Failed, &e.Last)
}

// each runs a statement n times, with the arguments for each; what names one of them
// in an error.
func (l *Learning) each(n int, query string, row func(i int) (what string, args []any)) error {
	if n == 0 {
		return nil
	}
	stmt, err := l.tx.PrepareContext(l.ctx, query)
	if err != nil {
		return err
	}
	defer stmt.Close()
	for i := range n {
		what, args := row(i)
		if _, err := stmt.ExecContext(l.ctx, args...); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// Save stores rows, replacing those of the same key, moves the follower to
// cursor, and adds one to Version.
func (l *Learning) Save(k Knowledge, cursor int64) error {
	version, err := take(l.ctx, l.tx, "version:"+strings.TrimPrefix(l.follower, "follow:"), 1)
	if err != nil {
		return err
	}
	l.Version, l.Cursor = version, cursor
	err = l.each(len(k.Nodes), `INSERT INTO nodes (repository, id, kind, text, ok, failed, last, version) VALUES ($1,$2,$3,$4,$5,$6,$7,$8)
		ON CONFLICT (repository, id) DO UPDATE SET text = excluded.text, ok = excluded.ok, failed = excluded.failed, last = excluded.last, version = excluded.version`,
		func(i int) (string, []any) {
			n := &k.Nodes[i]
			return "node " + n.ID, []any{clean(n.Repository), clean(n.ID), n.Kind, clean(n.Text), n.OK, n.Failed, n.Last, version}
		})
	if err != nil {
		return err
	}
	err = l.each(len(k.Edges), `INSERT INTO edges (repository, src, kind, dst, ok, failed, last, version) VALUES ($1,$2,$3,$4,$5,$6,$7,$8)
		ON CONFLICT (repository, src, kind, dst) DO UPDATE SET ok = excluded.ok, failed = excluded.failed, last = excluded.last, version = excluded.version`,
		func(i int) (string, []any) {
			e := &k.Edges[i]
			return "edge " + e.Src + " " + e.Kind, []any{clean(e.Repository), clean(e.Src), e.Kind, clean(e.Dst), e.OK, e.Failed, e.Last, version}
		})
	if err != nil {
		return err
	}
	err = l.each(len(k.Models), `INSERT INTO model (key, body, last, version) VALUES ($1,$2,$3,$4)
		ON CONFLICT (key) DO UPDATE SET body = excluded.body, last = excluded.last, version = excluded.version`,
		func(i int) (string, []any) {
			m := &k.Models[i]
			return "model " + m.Key, []any{clean(m.Key), m.Body, m.Last, version}
		})
	if err != nil {
		return err
	}
	_, err = l.tx.ExecContext(l.ctx, `UPDATE counters SET n = $2 WHERE name = $1`, l.follower, cursor)
	return err
}

// Forget deletes rows by key, when the learner's own bounds push them out.
// Of nodes and edges only what names them counts.
func (l *Learning) Forget(nodes []Node, edges []Edge, models []string) error {
	err := l.each(len(nodes), `DELETE FROM nodes WHERE repository = $1 AND id = $2`, func(i int) (string, []any) {
		return "node", []any{clean(nodes[i].Repository), clean(nodes[i].ID)}
	})
	if err != nil {
		return err
	}
	err = l.each(len(edges), `DELETE FROM edges WHERE repository = $1 AND src = $2 AND kind = $3 AND dst = $4`, func(i int) (string, []any) {
		return "edge", []any{clean(edges[i].Repository), clean(edges[i].Src), edges[i].Kind, clean(edges[i].Dst)}
	})
	if err != nil {
		return err
	}
	return l.each(len(models), `DELETE FROM model WHERE key = $1`, func(i int) (string, []any) { return "model", []any{clean(models[i])} })
}
