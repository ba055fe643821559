package store

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/ci"
)

// LogQuery says which log lines to read.
type LogQuery struct {
	Run  string // id
	Job  string // job id, key, or id in the workflow file; "" for all jobs, in order of planning
	Step int    // number; 0 for all
	// Offset is where in the job's file to go on (what a former read ended at;
	// see [Line]); only with one job.
	Offset int64
}

// Line is one record out of a log file. End is the offset behind it; Number,
// which only a [LogWindow] knows, its place in the file, from 1.
type Line struct {
	ci.Record
	JobID  string
	Number int64
	End    int64
}

// maxLine bounds one line of a log file as it is read back. The engine cuts
// lines long before.
const maxLine = 16 << 20

// Log reads log lines and groups back in the order in which they were written.
// A line that cannot be read, because a process died while it wrote it, is
// passed over. The sequence ends with an error, if there is one.
func (s *Store) Log(ctx context.Context, q LogQuery) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		jobs, err := s.Jobs(ctx, q.Run)
		if err != nil {
			yield(Line{}, err)
			return
		}
		found := false
		for _, j := range jobs {
			if q.Job != "" && q.Job != j.ID && q.Job != j.Key && q.Job != j.Job.Job {
				continue
			}
			found = true
			if !s.readLog(ctx, q, j.ID, yield) {
				return
			}
		}
		if q.Job == "" {
			s.readLog(ctx, q, "", yield)
		} else if !found {
			var names []string
			for _, j := range jobs {
				names = append(names, j.Key)
			}
			yield(Line{}, fmt.Errorf("store: log: run %s has no job %q; its jobs are: %s: %w", q.Run, q.Job, strings.Join(names, ", "), ErrNotFound))
		}
	}
}

func (s *Store) readLog(ctx context.Context, q LogQuery, jobID string, yield func(Line, error) bool) bool {
	fail := func(err error) bool {
		yield(Line{}, fmt.Errorf("store: log of job %s: %w", jobID, err))
		return false
	}
	f, err := s.openLogFile(ctx, q.Run, jobID)
	if err != nil {
		return fail(err)
	}
	if f == nil {
		return true
	}
	defer f.Close()
	start, stop := q.Offset, int64(-1)
	if q.Step > 0 {
		var first int64
		err := s.read.QueryRowContext(ctx, `SELECT start, stop FROM log_steps WHERE run_id = $1 AND job_id = $2 AND step = $3`, q.Run, jobID, q.Step).Scan(&first,
			&stop)
		if errors.Is(err, sql.ErrNoRows) {
			return true
		}
		if err != nil {
			return fail(err)
		}
		start = max(start, first)
	}
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return fail(err)
	}
	if stop >= 0 && start >= stop {
		return true
	}
	for t, err := range readLines(ctx, f, start) {
		if err != nil {
			return fail(err)
		}
		l := Line{JobID: jobID, End: t.end}
		if json.Unmarshal(t.text, &l.Record) == nil && (q.Step == 0 || l.Step == q.Step) && !yield(l, nil) {
			return false
		}
		if stop >= 0 && t.end >= stop {
			return true
		}
	}
	return true
}

// textLine is a line of a log file as it lies there: its text, if it is not too
// long, valid until the next; its size and the offset behind it.
type textLine struct {
	text      []byte
	size, end int64
}

// readLines reads the lines of a log that r gives from offset at on. An
// unfinished last line is not there yet.
func readLines(ctx context.Context, r io.Reader, at int64) iter.Seq2[textLine, error] {
	return func(yield func(textLine, error) bool) {
		br := bufio.NewReaderSize(r, 64<<10)
		var buf []byte
		for {
			if ctx.Err() != nil {
				yield(textLine{}, context.Cause(ctx))
				return
			}
			buf = buf[:0]
			var n int64
			var err error
			for {
				var part []byte
				part, err = br.ReadSlice('\n')
				n += int64(len(part))
				if len(buf)+len(part) <= maxLine {
					buf = append(buf, part...)
				}
				if err != bufio.ErrBufferFull {
					break
				}
			}
			if err == io.EOF {
				return
			}
			at += n
			if !yield(textLine{buf, n, at}, err) || err != nil {
				return
			}
		}
	}
}

// LogSize says how many bytes and lines the log of a job has; zero for none.
func (s *Store) LogSize(ctx context.Context, runID, jobID string) (bytes, lines int64, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT bytes, lines FROM logs WHERE run_id = $1 AND job_id = $2`, runID, jobID).Scan(&bytes, &lines)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("store: log of job %s: %w", jobID, err)
	}
	return bytes, lines, nil
}

// loadSpans reads what is known of a log file that is taken up again.
func (s *Store) loadSpans(ctx context.Context, runID string, j *recordedJob) error {
	err := s.read.QueryRowContext(ctx, `SELECT lines FROM logs WHERE run_id = $1 AND job_id = $2`, runID, j.id).Scan(&j.lines)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("store: log pointers: %w", err)
	}
	type row struct {
		step int
		stepSpan
	}
	rows, err := collect(ctx, s.read, func(r *sql.Rows) (row, error) {
		var v row
		return v, r.Scan(&v.step, &v.start, &v.stop, &v.lines)
	}, `SELECT step, start, stop, lines FROM log_steps WHERE run_id = $1 AND job_id = $2`, runID, j.id)
	if err != nil {
		return fmt.Errorf("store: log pointers: %w", err)
	}
	for _, v := range rows {
		j.steps[v.step] = &v.stepSpan
	}
	return nil
}

// lastLogged is the greatest sequence number in the log files of a run.
func (s *Store) lastLogged(runID string) (int64, error) {
	if s.logDir == "" {
		return 0, nil
	}
	files, err := filepath.Glob(filepath.Join(s.logDir, runID, "*.ndjson"))
	if err != nil {
		return 0, fmt.Errorf("store: log files: %w", err)
	}
	var last int64
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return 0, fmt.Errorf("store: log files: %w", err)
		}
		n, err := lastNumber(f, "seq")
		if err = errors.Join(err, f.Close()); err != nil {
			return 0, fmt.Errorf("store: log files: %w", err)
		}
		last = max(last, n)
	}
	return last, nil
}

// LastSent is the greatest number, as [ci.Record].Sent has it, of what is on record of a
// job; 0 where nothing of it was sent.
func (s *Store) LastSent(ctx context.Context, runID, jobID, jobKey string) (int64, error) {
	f, err := s.openLogFile(ctx, runID, jobID)
	if err != nil {
		return 0, fmt.Errorf("store: log file: %w", err)
	}
	var last int64
	if f != nil {
		defer f.Close()
		if last, err = lastNumber(f, "sent"); err != nil {
			return 0, fmt.Errorf("store: log file: %w", err)
		}
	}
	err = s.EachRunRecord(ctx, runID, func(r ci.Record) {
		if r.JobKey == jobKey {
			last = max(last, r.Sent)
		}
	})
	return last, err
}

// lastNumber is the last number under a key in a log file; 0 where there is none.
func lastNumber(f *os.File, key string) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	// The tail, doubled until it holds a whole line that can be read.
	for span := int64(64 << 10); ; span *= 2 {
		span = min(span, size)
		buf := make([]byte, span)
		if _, err := f.ReadAt(buf, size-span); err != nil && err != io.EOF {
			return 0, err
		}
		lines := bytes.Split(buf, []byte{'\n'})
		if span < size {
			lines = lines[1:] // begins in the middle
		}
		for _, l := range slices.Backward(lines) {
			var rec struct {
				Seq  int64 `json:"seq"`
				Sent int64 `json:"sent"`
			}
			if json.Unmarshal(l, &rec) != nil {
				continue
			}
			if n := map[string]int64{"seq": rec.Seq, "sent": rec.Sent}[key]; n > 0 {
				return n, nil
			}
		}
		if span == size || span > 2*maxLine {
			return 0, nil
		}
	}
}
