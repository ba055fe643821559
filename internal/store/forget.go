package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
)

// Forgotten counts the rows that were, or would be, removed.
type Forgotten struct {
	Runs        int `json:"runs"`
	Events      int `json:"events"`
	Signatures  int `json:"signatures"`
	Failures    int `json:"failures"`
	Lessons     int `json:"lessons"`
	Predictions int `json:"predictions"`
	Decisions   int `json:"decisions"`
	Tests       int `json:"tests"`
	Imports     int `json:"imports"`
}

// Forget says what is forgotten of a repository: all, or whatever says one of some
// texts.
type Forget struct {
	Repository string
	Texts      []string // none: all of it
	Runs       bool     // the runs on record too, with their logs and events
}

// like is a pattern that matches where a column has the text, as LIKE … ESCAPE '\' takes it.
func like(text string) string {
	return "%" + strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(text) + "%"
}

// quotings are the forms in which a text may stand in JSON, beside itself.
func quotings(text string) []string {
	out := []string{text}
	for _, escape := range []bool{true, false} {
		var b strings.Builder
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(escape)
		if enc.Encode(text) == nil {
			if q := strings.TrimSpace(b.String()); q[1:len(q)-1] != text {
				out = append(out, q[1:len(q)-1])
			}
		}
	}
	return out
}

// any is a condition that one of the columns has one of the texts; true without texts.
func (f *Forget) any(columns ...string) (condition string, args []any) {
	args = []any{clean(f.Repository)}
	if len(f.Texts) == 0 {
		return "1 = 1", args
	}
	var or []string
	for _, text := range f.Texts {
		for _, q := range quotings(text) {
			args = append(args, like(clean(q)))
			for _, c := range columns {
				or = append(or, fmt.Sprintf(`%s LIKE $%d ESCAPE '\'`, c, len(args)))
			}
		}
	}
	return "(" + strings.Join(or, " OR ") + ")", args
}

// RunsToForget lists the runs that f is about, as far as they have completed.
func (s *Store) RunsToForget(ctx context.Context, f Forget) ([]string, error) {
	// What a run says of a text stands in its records: names, commands, explanations.
	cond, args := f.any("r.body")
	query := `SELECT id FROM runs WHERE repository = $1 AND status = 'completed'`
	if len(f.Texts) > 0 {
		steps, _ := f.any("st.command", "st.name", "runs.name")
		query += ` AND (EXISTS (SELECT 1 FROM records r WHERE r.run_id = runs.id AND ` + cond + `)
			OR EXISTS (SELECT 1 FROM steps st JOIN jobs j ON j.id = st.job_id WHERE j.run_id = runs.id AND ` + steps + `))`
	}
	out, err := collect(ctx, s.read, func(r *sql.Rows) (string, error) {
		var id string
		return id, r.Scan(&id)
	}, query, args...)
	if err != nil {
		return nil, fmt.Errorf("store: runs to forget: %w", err)
	}
	return out, nil
}

// ForgetRuns removes runs from the record, with all that is kept of each, logs and
// notes of other packages too.
func (s *Store) ForgetRuns(ctx context.Context, ids []string) error {
	for _, id := range ids {
		if err := s.RemoveRun(ctx, id); err != nil {
			return err
		}
		if err := s.tx(ctx, "forget run "+id, func(tx *sql.Tx) error {
			for _, stmt := range []string{`DELETE FROM predictions WHERE run_id = $1`,
				`DELETE FROM decisions WHERE run_id = $1`, `DELETE FROM facts WHERE key LIKE $1 || '%'`} {
				if _, err := tx.ExecContext(ctx, stmt, id); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return s.FinishRemovals(ctx)
}

// ForgetRows removes what f is about from the tables of what was learned; the graph and
// the models are the learner's. Whoever has knowledge of this follower in memory
// reads it anew.
func (l *Learning) ForgetRows(f Forget) (n Forgotten, err error) {
	remove := func(to *int, table string, columns ...string) {
		if err != nil {
			return
		}
		cond, args := f.any(columns...)
		var res sql.Result
		if res, err = l.tx.ExecContext(l.ctx, `DELETE FROM `+table+` WHERE repository = $1 AND `+cond, args...); err == nil && to != nil {
			var rows int64
			rows, err = res.RowsAffected()
			*to += int(rows)
		}
	}
	remove(&n.Signatures, "signatures", "id", "text", "fix", "fixed_by")
	remove(&n.Failures, "signature_hits", "signature_id", "identity", "job_key", "sha", "branch", "text")
	remove(&n.Lessons, "lessons", "signature_id", "identity", "text", "evidence")
	remove(&n.Predictions, "predictions", "identity", "job_key", "reasons")
	remove(&n.Decisions, "decisions", "identity", "job_key", "signature", "reason")
	remove(&n.Tests, "tests", "name", "step", "job", "workflow", "message")
	remove(nil, "test_failures", "sha", "tree", "branch")
	remove(nil, "nodes", "id", "text")
	remove(nil, "edges", "src", "dst")
	if len(f.Texts) == 0 {
		remove(&n.Imports, "imports")
		remove(nil, "prediction_totals")
		if f.Runs {
			remove(&n.Events, "events")
		}
	}
	for _, v := range []struct {
		n    *int
		stmt string
	}{ // of what is gone, what hung on it
		{&n.Failures, `DELETE FROM signature_hits WHERE repository = $1 AND NOT EXISTS (
			SELECT 1 FROM signatures s WHERE s.repository = signature_hits.repository AND s.id = signature_hits.signature_id)`},
		{&n.Signatures, `DELETE FROM signatures WHERE repository = $1 AND NOT EXISTS (
			SELECT 1 FROM signature_hits h WHERE h.repository = signatures.repository AND h.signature_id = signatures.id)`},
		{&n.Lessons, `DELETE FROM lessons WHERE repository = $1 AND NOT EXISTS (
			SELECT 1 FROM signatures s WHERE s.repository = lessons.repository AND s.id = lessons.signature_id)`},
		{new(int), `DELETE FROM test_failures WHERE repository = $1 AND NOT EXISTS (
			SELECT 1 FROM tests t WHERE t.repository = test_failures.repository AND t.id = test_failures.test_id)`},
		{new(int), `UPDATE tests SET pass_tree = '' WHERE repository = $1`},
	} {
		if err != nil {
			return n, err
		}
		var res sql.Result
		if res, err = l.tx.ExecContext(l.ctx, v.stmt, clean(f.Repository)); err == nil {
			var rows int64
			rows, err = res.RowsAffected()
			*v.n += int(rows)
		}
	}
	if err == nil && len(f.Texts) == 0 {
		for _, letter := range []string{"s:", "g:", "f:"} { // whose keys begin with the repository
			if err == nil {
				_, err = l.tx.ExecContext(l.ctx, `DELETE FROM model WHERE key LIKE $1 ESCAPE '\'`, strings.TrimPrefix(like(letter+clean(f.Repository)+" "), "%"))
			}
		}
	}
	if err == nil && len(f.Texts) == 0 && f.Runs { // numbers of runs
		_, err = l.tx.ExecContext(l.ctx, `DELETE FROM counters WHERE name LIKE $1 ESCAPE '\'`, strings.TrimPrefix(like("run:"+clean(f.Repository)+":"), "%"))
	}
	if err == nil {
		l.Epoch, err = take(l.ctx, l.tx, "epoch:"+strings.TrimPrefix(l.follower, "follow:"), 1)
	}
	return n, err
}

// Signatures are those that are left of a repository, by id.
func (l *Learning) Signatures(repository string) (map[string]bool, error) {
	out := map[string]bool{}
	_, err := collect(l.ctx, l.tx, func(r *sql.Rows) (struct{}, error) {
		var id string
		err := r.Scan(&id)
		out[id] = true
		return struct{}{}, err
	}, `SELECT id FROM signatures WHERE repository = $1`, clean(repository))
	return out, err
}

// Branches are the refs of a repository's runs.
func (s *Store) Branches(ctx context.Context, repository string, limit int) ([]string, error) {
	out, err := collect(ctx, s.read, func(r *sql.Rows) (string, error) {
		var v string
		return v, r.Scan(&v)
	}, `SELECT DISTINCT ref FROM runs WHERE repository = $1 LIMIT $2`, clean(repository), limit)
	if err != nil {
		return nil, fmt.Errorf("store: branches: %w", err)
	}
	return out, nil
}

// Rewrite writes an SQLite file anew, so that nothing of what was deleted is left in
// it, nor in its log. Nobody can write meanwhile, and the disk must hold it twice.
// PostgreSQL is told to give the room of deleted rows to others.
func (s *Store) Rewrite(ctx context.Context) error {
	if _, err := s.write.ExecContext(ctx, `VACUUM`); err != nil {
		return fmt.Errorf("store: write the database anew: %w", err)
	}
	if s.dialect != SQLite {
		return nil
	}
	var busy, log, copied int
	if err := s.check.db.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &log, &copied); err != nil {
		return fmt.Errorf("store: write the database anew: %w", err)
	}
	if busy != 0 {
		return fmt.Errorf("store: the database's log could not be emptied, since another process reads: what was deleted may be in it until that ends")
	}
	return nil
}
