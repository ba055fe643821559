package store

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// LogLimit is how many bytes of log file one job may fill, and RunLogLimit all
// jobs of a run together, unless [WithLogLimits] says otherwise. A guest that
// prints without end ends in one line that says so, not in a full disk.
const (
	LogLimit    = 1 << 30
	RunLogLimit = 4 << 30
)

// bulkLimit is how many bytes of records besides log lines a run may have of
// what its jobs bring about as they like: annotations, connections, diagnostics, summaries.
// What moves a run, a job or a step is not counted: there is as much of that as
// the workflow has steps.
const bulkLimit = 64 << 20

// Recorder is the [ci.Sink] of one run. It numbers the records, appends log
// lines and groups to the files of their jobs and everything else to the event
// log, and keeps the rows of run, jobs and steps as the records tell.
//
// Emit returns nothing, so the first error that kept something from being
// stored stays until Close, and is what Err returns: a caller that ends a run
// looks at it. A record that is refused because what it tells about is
// completed already, or belongs to an older attempt, is dropped and counted in
// Refused; that is no error.
//
// There is one Recorder for a run at a time. A run that outlives a process is
// taken up again by another Recorder, which goes on after the last number that
// was stored.
type Recorder struct {
	s   *Store
	ctx context.Context
	run string
	// lease is asked with every write; the first that is refused ends the Recorder.
	lease Lease

	mu      sync.Mutex
	seq     int64
	jobs    map[string]*recordedJob // by key
	loose   *recordedJob            // lines that belong to no job
	taps    []ci.Sink
	refused int
	err     error
	closed  bool
	fenced  bool   // somebody else records the run by now
	dirty   bool   // log bytes written since the last flush
	logged  int64  // bytes of all log files
	line    []byte // of the log, used again
	bulk    int64  // bytes of records that count against bulkLimit; -1: it was reached
	stop    chan struct{}
	done    chan struct{}
}

type recordedJob struct {
	id      string
	attempt int // sinks of older attempts are refused
	file    *os.File
	w       *bufio.Writer
	path    string // below the log directory
	size    int64
	lines   int64
	records int64      // in the file: lines, groups, and what was left half written
	marks   *marks     // the file's index
	points  [][2]int64 // marks to make when the lines before them are written
	full    bool
	steps   map[int]*stepSpan
	changed bool
	left    string // the file of an earlier lease, to be removed
}

type stepSpan struct {
	start, stop, lines int64
	changed            bool
}

// flushEvery bounds how stale a log file and its pointers are for a reader.
const flushEvery = 200 * time.Millisecond

// Recorder takes up the recording of a run that [Store.CreateRun] made. ctx
// bounds all its writes: give it one that outlives the cancellation of the run,
// whose end has to be recorded too. taps get every record after it has been
// numbered, in order.
func (s *Store) Recorder(ctx context.Context, runID string, taps ...ci.Sink) (*Recorder, error) {
	return s.recorder(ctx, Lease{}, runID, taps...)
}

func (s *Store) recorder(ctx context.Context, l Lease, runID string, taps ...ci.Sink) (*Recorder, error) {
	if !ci.ValidID(runID) {
		return nil, fmt.Errorf("store: record run %q: no run id", runID)
	}
	if _, err := s.Run(ctx, runID); err != nil {
		return nil, err
	}
	r := &Recorder{s: s, ctx: ctx, run: runID, lease: l, jobs: map[string]*recordedJob{}, taps: taps, stop: make(chan struct{}), done: make(chan struct{})}
	jobs, err := s.Jobs(ctx, runID)
	if err != nil {
		return nil, err
	}
	for _, j := range jobs {
		r.jobs[j.Key] = &recordedJob{id: j.ID, attempt: j.Attempt}
	}
	if err := s.read.QueryRowContext(ctx, `SELECT COALESCE(MAX(seq), 0) FROM records WHERE run_id = $1`, runID).Scan(&r.seq); err != nil {
		return nil, fmt.Errorf("store: record run %s: %w", runID, err)
	}
	last, err := s.lastLogged(runID)
	if err != nil {
		return nil, err
	}
	r.seq = max(r.seq, last)
	// What was there before this Recorder counts.
	if err := s.read.QueryRowContext(ctx, `SELECT COALESCE((SELECT CAST(SUM(bytes) AS BIGINT) FROM logs WHERE run_id = $1), 0),
		COALESCE((SELECT CAST(SUM(octet_length(body)) AS BIGINT) FROM records WHERE run_id = $1 AND type IN ($2, $3, $4, $5)), 0)`,
		runID, string(ci.AnnotationRec), string(ci.ConnectionRec), string(ci.DiagnosticRec), string(ci.SummaryRec)).Scan(&r.logged, &r.bulk); err != nil {
		return nil, fmt.Errorf("store: record run %s: %w", runID, err)
	}
	go r.flusher()
	return r, nil
}

func (r *Recorder) flusher() {
	defer close(r.done)
	t := time.NewTicker(flushEvery)
	defer t.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-t.C:
			r.mu.Lock()
			r.flush()
			r.mu.Unlock()
		}
	}
}

// Emit records rec. See [ci.Sink].
func (r *Recorder) Emit(rec ci.Record) { r.emit(rec, 0) }

// ForAttempt returns the sink of one attempt at one job. From then on sinks of
// older attempts at it are refused, whatever they bring.
func (r *Recorder) ForAttempt(jobKey string, attempt int) ci.Sink {
	r.mu.Lock()
	if j := r.jobs[jobKey]; j != nil && attempt > j.attempt {
		j.attempt = attempt
	}
	r.mu.Unlock()
	return ci.SinkFunc(func(rec ci.Record) { r.emit(rec, attempt) })
}

// Err is the first error that kept a record from being stored.
func (r *Recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Refused is how many records were dropped because they came too late.
func (r *Recorder) Refused() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refused
}

// Flush writes what is buffered: what was emitted before stays if this process dies.
// The error says that the Recorder takes no records any more, or, once, that not all was
// stored.
func (r *Recorder) Flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("the record is closed")
	}
	before := r.err
	r.flush()
	switch {
	case r.fenced:
		return ErrFenced
	case before == nil:
		return r.err
	}
	return nil // what failed before has been told
}

// Close writes what is buffered, closes the log files and returns the first
// error of the Recorder's life. It is idempotent.
func (r *Recorder) Close() error {
	r.mu.Lock()
	if r.closed {
		defer r.mu.Unlock()
		return r.err
	}
	r.closed = true
	r.mu.Unlock()
	close(r.stop)
	<-r.done
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirty = true
	r.flush()
	for _, j := range r.all() {
		if j.file != nil {
			r.fail(j.file.Close())
			j.marks.close()
			j.file = nil
		}
	}
	return r.err
}

func (r *Recorder) all() []*recordedJob {
	out := make([]*recordedJob, 0, len(r.jobs)+1)
	for _, j := range r.jobs {
		out = append(out, j)
	}
	if r.loose != nil {
		out = append(out, r.loose)
	}
	return out
}

func (r *Recorder) fail(err error) {
	if err != nil && r.err == nil {
		r.err = err
	}
}

func (r *Recorder) emit(rec ci.Record, attempt int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.fenced {
		r.refused++
		return
	}
	if rec.JobKey == "" {
		rec.JobKey = rec.Job
	}
	if j := r.jobs[rec.JobKey]; j != nil && attempt != 0 && attempt < j.attempt {
		r.refused++
		return
	}
	rec.V, rec.Run, rec.Seq = ci.RecordVersion, r.run, r.seq+1
	if rec.Time.IsZero() {
		rec.Time = time.Now()
	}
	rec.Time = rec.Time.UTC()
	if !r.fits(&rec) {
		r.refused++
		return
	}
	var err error
	switch rec.Type {
	case ci.LogLine, ci.Group:
		err = r.logLine(rec)
	default:
		// A reader that sees that a step has ended must find its whole log.
		if rec.Type == ci.StepFinished || rec.Type == ci.JobFinished || rec.Type == ci.RunFinished {
			r.flush()
		}
		// What is kept of an attempt is all that was sent up to the last of it.
		if rec.Sent > 0 {
			r.flush()
		}
		_, known := r.jobs[rec.JobKey]
		// The row of a job has its outputs whole: other jobs are handed them.
		brief := rec
		brief.Outputs = ci.Brief(rec.Outputs)
		err = r.s.tx(r.ctx, "record "+string(rec.Type), func(tx *sql.Tx) error {
			if err := r.holds(tx); err != nil {
				return err
			}
			if err := r.apply(tx, rec, attempt); err != nil {
				return err
			}
			if err := appendRecord(r.ctx, tx, brief); err != nil {
				return err
			}
			return r.s.notify(r.ctx, tx, r.run)
		})
		if err == nil {
			r.s.hub.wake(r.run)
		} else if !known {
			delete(r.jobs, rec.JobKey) // its row was rolled back
		}
	}
	if errors.Is(err, ErrTerminal) || errors.Is(err, ErrFenced) {
		r.refused++
		return
	}
	r.fail(err)
	if err == nil {
		r.seq++
	}
	rec.Outputs = ci.Brief(rec.Outputs)
	// What could not be stored is still shown: whoever looks on may be the only
	// one who will ever see it.
	for _, t := range r.taps {
		t.Emit(rec)
	}
}

// holds notes, as the error, that the run has changed hands. The caller holds mu.
func (r *Recorder) holds(tx *sql.Tx) error {
	err := r.s.holds(r.ctx, tx, r.lease)
	r.fenced = errors.Is(err, ErrFenced)
	return err
}

// apply brings the rows to what the record tells.
func (r *Recorder) apply(tx *sql.Tx, rec ci.Record, attempt int) error {
	ctx, at := r.ctx, millis(rec.Time)
	switch rec.Type {
	case ci.RunPlanned:
		return nil
	case ci.RunStarted:
		return once(tx.ExecContext(ctx, `UPDATE runs SET status = 'in_progress', started = CASE WHEN started = 0 THEN $2 ELSE started END WHERE id = $1 AND status <> 'completed'`, r.run, at))
	case ci.RunFinished:
		if !rec.Conclusion.Valid() {
			return fmt.Errorf("run %s finished with conclusion %q", r.run, rec.Conclusion)
		}
		return once(tx.ExecContext(ctx, `UPDATE runs SET status = 'completed', conclusion = $2, infra = $3, finished = $4 WHERE id = $1 AND status <> 'completed'`,
			r.run, string(rec.Conclusion), flag(rec.Infrastructure), at))
	case ci.JobQueued, ci.JobStarted, ci.JobFinished:
		j, err := r.job(tx, rec)
		if err != nil {
			return err
		}
		n := max(attempt, rec.Attempt, 1)
		switch rec.Type {
		case ci.JobQueued:
			return fenced(tx.ExecContext(ctx, `UPDATE jobs SET status = 'queued', attempt = $2, started = 0 WHERE id = $1 AND status <> 'completed' AND attempt <= $2`, j.id, n))(tx, ctx, j.id)
		case ci.JobStarted:
			return fenced(tx.ExecContext(ctx, `UPDATE jobs SET status = 'in_progress', attempt = $2, started = $3 WHERE id = $1 AND status <> 'completed' AND attempt <= $2`, j.id, n, at))(tx, ctx, j.id)
		}
		if !rec.Conclusion.Valid() {
			return fmt.Errorf("job %s finished with conclusion %q", rec.JobKey, rec.Conclusion)
		}
		outputs := ""
		if len(rec.Outputs) > 0 {
			b, err := json.Marshal(rec.Outputs)
			if err != nil {
				return err
			}
			outputs = string(b)
		}
		return fenced(tx.ExecContext(ctx, `UPDATE jobs SET status = 'completed', conclusion = $3, reason = $4, infra = $5, outputs = $6, finished = $7
			WHERE id = $1 AND status <> 'completed' AND attempt <= $2`,
			j.id, n, string(rec.Conclusion), clean(rec.Reason), flag(rec.Infrastructure), outputs, at))(tx, ctx, j.id)
	case ci.StepStarted:
		j, err := r.job(tx, rec)
		if err != nil {
			return err
		}
		// A later attempt at a step, or at its job, starts its row again.
		n := stepAttempt(attempt, rec.Attempt)
		return once(tx.ExecContext(ctx, `INSERT INTO steps (job_id, number, step_id, name, command, attempt, status, outcome, conclusion, exit_code, started, finished)
			VALUES ($1,$2,$3,$4,$5,$6,'in_progress','','',0,$7,0)
			ON CONFLICT (job_id, number) DO UPDATE SET step_id = excluded.step_id, name = excluded.name, command = excluded.command, attempt = excluded.attempt,
				status = 'in_progress', outcome = '', conclusion = '', exit_code = 0, started = excluded.started, finished = 0
			WHERE steps.attempt < excluded.attempt OR steps.status <> 'completed'`,
			j.id, rec.Step, clean(rec.StepID), clean(rec.Name), clean(rec.Command), n, at))
	case ci.StepFinished:
		j, err := r.job(tx, rec)
		if err != nil {
			return err
		}
		if !rec.Conclusion.Valid() {
			return fmt.Errorf("step %d of job %s finished with conclusion %q", rec.Step, rec.JobKey, rec.Conclusion)
		}
		outcome := rec.Outcome
		if outcome == "" {
			outcome = rec.Conclusion
		}
		code := 0
		if rec.ExitCode != nil {
			code = *rec.ExitCode
		}
		n := stepAttempt(attempt, rec.Attempt)
		// A skipped step finishes without having started, hence no row yet.
		return once(tx.ExecContext(ctx, `INSERT INTO steps (job_id, number, step_id, name, command, attempt, status, outcome, conclusion, exit_code, started, finished)
			VALUES ($1,$2,$3,$4,$5,$6,'completed',$7,$8,$9,0,$10)
			ON CONFLICT (job_id, number) DO UPDATE SET status = 'completed', outcome = excluded.outcome, conclusion = excluded.conclusion,
				exit_code = excluded.exit_code, finished = excluded.finished, attempt = excluded.attempt
			WHERE steps.attempt <= excluded.attempt AND (steps.status <> 'completed' OR steps.attempt < excluded.attempt)`,
			j.id, rec.Step, clean(rec.StepID), clean(rec.Name), clean(rec.Command), n, string(outcome), string(rec.Conclusion), code, at))
	}
	return nil
}

// stepAttempt orders the attempts at a step under the attempts at its job.
func stepAttempt(job, step int) int { return max(job, 1)*1000 + max(step, 1) }

func once(res sql.Result, err error) error {
	ok, err := changed(res, err)
	if err == nil && !ok {
		return ErrTerminal
	}
	return err
}

// fenced tells, for an update that changed nothing, whether the job is
// completed or has a newer attempt.
func fenced(res sql.Result, err error) func(*sql.Tx, context.Context, string) error {
	return func(tx *sql.Tx, ctx context.Context, id string) error {
		ok, err := changed(res, err)
		if err != nil || ok {
			return err
		}
		var status string
		if err := tx.QueryRowContext(ctx, `SELECT status FROM jobs WHERE id = $1`, id).Scan(&status); err != nil {
			return err
		}
		if status == string(ci.Completed) {
			return ErrTerminal
		}
		return ErrFenced
	}
}

// job finds the job that a record tells about, and makes its row if the planner
// did not: cells of a matrix may come while the run is under way.
func (r *Recorder) job(tx *sql.Tx, rec ci.Record) (*recordedJob, error) {
	if rec.JobKey == "" {
		return nil, fmt.Errorf("%s names no job", rec.Type)
	}
	if j := r.jobs[rec.JobKey]; j != nil {
		return j, nil
	}
	j := &recordedJob{attempt: 1}
	switch err := tx.QueryRowContext(r.ctx, `SELECT id, attempt FROM jobs WHERE run_id = $1 AND key = $2`, r.run, clean(rec.JobKey)).Scan(&j.id, &j.attempt); {
	case errors.Is(err, sql.ErrNoRows):
		row := ci.Job{RunID: r.run, Key: rec.JobKey, Job: rec.Job, Name: rec.Name, Created: rec.Time}
		if err := insertJob(r.ctx, tx, &row); err != nil {
			return nil, err
		}
		j.id = row.ID
	case err != nil:
		return nil, err
	}
	r.jobs[rec.JobKey] = j
	return j, nil
}

func (r *Recorder) logLine(rec ci.Record) error {
	j := r.jobs[rec.JobKey]
	if j == nil {
		if r.loose == nil {
			r.loose = &recordedJob{}
		}
		j = r.loose
	}
	if j.full {
		return nil
	}
	if j.w == nil {
		if err := r.openLog(j); err != nil {
			j.full = true // once is enough
			return err
		}
	}
	line, err := rec.AppendJSON(r.line[:0])
	if err != nil {
		return fmt.Errorf("store: log line: %w", err)
	}
	if what := r.beyond(j, int64(len(line))+1); what != "" {
		j.full = true
		rec.Type, rec.Stream, rec.Text = ci.LogLine, "system", "Log cut off here: "+what
		if line, err = rec.AppendJSON(line[:0]); err != nil {
			return fmt.Errorf("store: log line: %w", err)
		}
	}
	line = append(line, '\n')
	r.line = line
	sp := j.steps[rec.Step]
	if sp == nil {
		sp = &stepSpan{start: j.size}
		j.steps[rec.Step] = sp
	}
	if _, err := j.w.Write(line); err != nil {
		return fmt.Errorf("store: write log %s: %w", j.path, err)
	}
	j.size += int64(len(line))
	r.logged += int64(len(line))
	if j.records++; j.records%markEvery == 0 {
		j.points = append(j.points, [2]int64{j.records, j.size})
	}
	sp.stop = j.size
	if rec.Type == ci.LogLine {
		sp.lines++
		j.lines++
	}
	sp.changed, j.changed, r.dirty = true, true, true
	return nil
}

// beyond says which limit a log would exceed with so many bytes more; "" is none.
func (r *Recorder) beyond(j *recordedJob, n int64) string {
	switch {
	case j.size+n > r.s.jobLog:
		return fmt.Sprintf("the job has filled its %s.", sizeText(r.s.jobLog))
	case r.logged+n > r.s.runLog:
		return fmt.Sprintf("the jobs of this run have filled the %s that they have together.", sizeText(r.s.runLog))
	}
	return ""
}

func sizeText(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// fits counts a record against bulkLimit, where it counts. The one that exceeds
// it is replaced by one that says so, and those after it are dropped.
func (r *Recorder) fits(rec *ci.Record) bool {
	switch rec.Type {
	case ci.AnnotationRec, ci.ConnectionRec, ci.DiagnosticRec, ci.SummaryRec:
	default:
		return true
	}
	if r.bulk < 0 {
		return false
	}
	body, err := json.Marshal(rec)
	if err != nil {
		return true // whoever stores it says so
	}
	if r.bulk += int64(len(body)); r.bulk > bulkLimit {
		r.bulk = -1
		*rec = ci.Record{V: rec.V, Seq: rec.Seq, Time: rec.Time, Run: rec.Run, Job: rec.Job, JobKey: rec.JobKey, Step: rec.Step, Type: ci.AnnotationRec,
			Level:   "warning",
			Message: fmt.Sprintf("The run has filled its %s of annotations, connections and summaries: from here on they are not kept.", sizeText(bulkLimit))}
	}
	return true
}

func (r *Recorder) openLog(j *recordedJob) error {
	if r.s.logDir == "" {
		return errors.New("store: no log directory was given: open the store with store.WithLogs")
	}
	dir := filepath.Join(r.s.logDir, r.run)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("store: log directory: %w", err)
	}
	name := j.id
	if name == "" {
		name = "run"
	}
	if r.lease.Fence != 0 {
		// Whoever had the run before may not know yet that it is not its run any more.
		name += fmt.Sprintf(".%d", r.lease.Fence)
		if err := r.inherit(j, filepath.Join(dir, name+".ndjson")); err != nil {
			return fmt.Errorf("store: log file: %w", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, name+".ndjson"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("store: log file: %w", err)
	}
	size, err := f.Seek(0, 2)
	if err != nil {
		f.Close()
		return fmt.Errorf("store: log file: %w", err)
	}
	j.steps = map[int]*stepSpan{}
	j.path = r.run + "/" + name + ".ndjson"
	// Taken up again after a process died: a half line is ended, so that readers
	// can pass over it.
	if size > 0 {
		var b [1]byte
		if _, err := f.ReadAt(b[:], size-1); err == nil && b[0] != '\n' {
			n, err := f.Write([]byte{'\n'})
			if err != nil {
				f.Close()
				return fmt.Errorf("store: log file: %w", err)
			}
			size += int64(n)
		}
	}
	old, err := newLogFile(r.ctx, f, j.id)
	if err != nil {
		f.Close()
		return fmt.Errorf("store: log file: %w", err)
	}
	// A host that lost its power may have kept more of the index than of the log.
	old.marks.cut(old.total)
	j.records, j.marks = old.total, old.marks
	j.file, j.size = f, size
	j.full = size >= r.s.jobLog
	j.w = bufio.NewWriterSize(f, 64<<10)
	return r.s.loadSpans(r.ctx, r.run, j)
}

// inherit begins a log file with what there is of the job's log under an earlier
// lease, in a file that its writer may still write to and nobody reads any more.
func (r *Recorder) inherit(j *recordedJob, path string) error {
	old, err := r.s.openLogFile(r.ctx, r.run, j.id)
	if err != nil || old == nil {
		return err
	}
	defer old.Close()
	if old.Name() == path {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, old)
	j.left = old.Name()
	return errors.Join(err, f.Close())
}

// flush brings the log files and the pointers into them up to date. The caller
// holds mu.
func (r *Recorder) flush() {
	if !r.dirty || r.fenced {
		return
	}
	r.dirty = false
	var touched []*recordedJob
	for _, j := range r.all() {
		if !j.changed {
			continue
		}
		if err := j.w.Flush(); err != nil {
			r.fail(fmt.Errorf("store: write log %s: %w", j.path, err))
			j.points = nil
		}
		for _, p := range j.points {
			j.marks.put(p[0], p[1])
		}
		j.points = j.points[:0]
		j.changed = false
		touched = append(touched, j)
	}
	if len(touched) == 0 {
		return
	}
	err := r.s.tx(r.ctx, "log pointers", func(tx *sql.Tx) error {
		if err := r.holds(tx); err != nil {
			return err
		}
		for _, j := range touched {
			if _, err := tx.ExecContext(r.ctx, `INSERT INTO logs (run_id, job_id, path, bytes, lines) VALUES ($1,$2,$3,$4,$5)
				ON CONFLICT (run_id, job_id) DO UPDATE SET path = excluded.path, bytes = excluded.bytes, lines = excluded.lines`, r.run, j.id, j.path, j.size, j.lines); err != nil {
				return err
			}
			for n, sp := range j.steps {
				if !sp.changed {
					continue
				}
				sp.changed = false
				if _, err := tx.ExecContext(r.ctx, `INSERT INTO log_steps (run_id, job_id, step, start, stop, lines) VALUES ($1,$2,$3,$4,$5,$6)
					ON CONFLICT (run_id, job_id, step) DO UPDATE SET stop = excluded.stop, lines = excluded.lines`, r.run, j.id, n, sp.start, sp.stop, sp.lines); err != nil {
					return err
				}
			}
		}
		return r.s.notify(r.ctx, tx, r.run)
	})
	if r.fenced {
		return
	}
	r.fail(err)
	for _, j := range touched {
		if err == nil && j.left != "" {
			os.Remove(j.left)
			os.Remove(strings.TrimSuffix(j.left, ".ndjson") + ".idx")
			j.left = ""
		}
	}
	r.s.hub.wake(r.run)
}
