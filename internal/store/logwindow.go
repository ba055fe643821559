package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A log file is read by its lines' numbers through an index beside it,
// <job id>.idx: the number at place k (eight bytes, little endian, k from 0) is
// where line (k+1)*markEvery+1 begins. What a place holds follows from the log
// alone and the log only grows, so that whoever writes a place writes the same:
// the Recorder while it appends, a reader where the index ends too early,
// because the log is older than the index or a process died. Nothing is lost
// with it, hence it is never synced, and a place that cannot be right ends it.
const (
	markEvery = 256
	markSize  = 8
)

// windowBytes bounds how much of a log file one window takes into memory: it
// holds fewer lines than asked for where they are longer.
const windowBytes = 4 << 20

// LogWindow is some of the lines of one job's log.
type LogWindow struct {
	Lines []Line
	// First is the number of the first line of the window, from 1. A line's
	// number is its place among all records of the file, groups too. It counts on
	// by one from line to line but where a line was left half written: see
	// Line.Number.
	First int64
	// Total is how many lines the log has.
	Total int64
	// End is the offset behind the window, where [LogQuery].Offset goes on.
	End int64
}

// LogTail reads the last n lines of a job's log, whatever its size, in the time
// that these lines take. job is an id or key. Without a log the window is empty;
// without such a job the error is ErrNotFound. Fewer lines come where they are
// very long. To follow the log go on at End with [Store.Log].
func (s *Store) LogTail(ctx context.Context, runID, job string, n int) (LogWindow, error) {
	return s.window(ctx, runID, job, func(l *logFile) (LogWindow, error) {
		start, count, err := l.tail(int64(max(n, 0)))
		if err != nil {
			return LogWindow{}, err
		}
		return l.read(ctx, l.total-count+1, start, l.total-count, n)
	})
}

// LogFrom reads n lines of a job's log from line number from (1 is the first)
// without reading those before it. Otherwise it is as [Store.LogTail].
func (s *Store) LogFrom(ctx context.Context, runID, job string, from int64, n int) (LogWindow, error) {
	return s.window(ctx, runID, job, func(l *logFile) (LogWindow, error) {
		from = max(from, 1)
		if from > l.total {
			return LogWindow{First: l.total + 1, Total: l.total, End: l.end}, nil
		}
		before, start, err := l.mark(from - 1)
		if err != nil {
			return LogWindow{}, err
		}
		return l.read(ctx, from, start, before, n)
	})
}

func (s *Store) window(ctx context.Context, runID, job string, fn func(*logFile) (LogWindow, error)) (LogWindow, error) {
	fail := func(err error) (LogWindow, error) {
		return LogWindow{}, fmt.Errorf("store: log of job %s of run %s: %w", job, runID, err)
	}
	var id string
	err := s.read.QueryRowContext(ctx, `SELECT id FROM jobs WHERE run_id = $1 AND (id = $2 OR key = $2)`, runID, clean(job)).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return fail(err)
	}
	f, err := s.openLogFile(ctx, runID, id)
	if err != nil {
		return fail(err)
	}
	if f == nil {
		return LogWindow{First: 1}, nil
	}
	defer f.Close()
	l, err := newLogFile(ctx, f, id)
	if err != nil {
		return fail(err)
	}
	defer l.close()
	w, err := fn(l)
	if err != nil {
		return fail(err)
	}
	return w, nil
}

// openLogFile opens a job's log; nil if nothing was logged.
func (s *Store) openLogFile(ctx context.Context, runID, jobID string) (*os.File, error) {
	f, err := s.tryLogFile(ctx, runID, jobID)
	if errors.Is(err, fs.ErrNotExist) { // it has just moved to the server that took the run over
		f, err = s.tryLogFile(ctx, runID, jobID)
	}
	return f, err
}

func (s *Store) tryLogFile(ctx context.Context, runID, jobID string) (*os.File, error) {
	var path string
	err := s.read.QueryRowContext(ctx, `SELECT path FROM logs WHERE run_id = $1 AND job_id = $2`, runID, jobID).Scan(&path)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !filepath.IsLocal(path) {
		return nil, fmt.Errorf("the stored path %q leaves the log directory", path)
	}
	return os.Open(filepath.Join(s.logDir, path))
}

// logFile is a log with its lines counted.
type logFile struct {
	f     *os.File
	marks *marks
	jobID string
	total int64 // lines
	end   int64 // where the last whole line ends
}

func newLogFile(ctx context.Context, f *os.File, jobID string) (*logFile, error) {
	l := &logFile{f: f, jobID: jobID, marks: openMarks(f.Name())}
	if err := l.count(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *logFile) close() { l.marks.close() }

// marks is the index of a log. Whatever fails with it is passed over: a place
// that is not written is found again, and written, by the next reader.
type marks struct {
	name string
	f    *os.File // nil: there is none yet
	dead bool     // nor can there be: the directory takes no writing
}

func openMarks(log string) *marks {
	m := &marks{name: strings.TrimSuffix(log, ".ndjson") + ".idx"}
	var err error
	if m.f, err = os.OpenFile(m.name, os.O_RDWR, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.dead = true
		if m.f, err = os.Open(m.name); err != nil {
			m.f = nil
		}
	}
	return m
}

func (m *marks) close() {
	if m.f != nil {
		m.f.Close()
	}
}

// places is how many places there are.
func (m *marks) places() int64 {
	if m.f == nil {
		return 0
	}
	st, err := m.f.Stat()
	if err != nil {
		return 0
	}
	return st.Size() / markSize
}

// get reads where the k-th mark, from 1, points; 0 if it cannot be read.
func (m *marks) get(k int64) int64 {
	var b [markSize]byte
	if _, err := m.f.ReadAt(b[:], (k-1)*markSize); err != nil {
		return 0
	}
	return int64(binary.LittleEndian.Uint64(b[:]))
}

// put writes where the line after the first lines ones begins.
func (m *marks) put(lines, offset int64) {
	if m.f == nil && !m.dead {
		var err error
		if m.f, err = os.OpenFile(m.name, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
			m.dead = true
		}
	}
	if m.dead {
		return
	}
	var b [markSize]byte
	binary.LittleEndian.PutUint64(b[:], uint64(offset))
	if _, err := m.f.WriteAt(b[:], (lines/markEvery-1)*markSize); err != nil {
		m.dead = true
	}
}

// cut drops the places behind the first lines lines.
func (m *marks) cut(lines int64) {
	if n := lines / markEvery; m.places() > n {
		if err := m.f.Truncate(n * markSize); err != nil {
			m.dead = true
		}
	}
}

// mark gives the last place of the index at or before the end of line n: how
// many lines are before it, and its offset.
func (l *logFile) mark(n int64) (lines, offset int64, err error) {
	st, err := l.f.Stat()
	if err != nil {
		return 0, 0, err
	}
	for k := min(n/markEvery, l.marks.places()); k > 0; k-- {
		at := l.marks.get(k)
		if at < k*markEvery || at > st.Size() { // a line is a byte at least
			continue
		}
		var before [1]byte
		if _, err := l.f.ReadAt(before[:], at-1); err != nil {
			return 0, 0, err
		}
		if before[0] == '\n' {
			return k * markEvery, at, nil
		}
	}
	return 0, 0, nil
}

// count counts the lines from the last place of the index on, and writes the
// places that it lacks.
func (l *logFile) count(ctx context.Context) error {
	const all = int64(1) << 62
	var err error
	if l.total, l.end, err = l.mark(all); err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for at := l.end; ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := l.f.ReadAt(buf, at)
		part := buf[:n]
		// The next place may be in this part: then its line is looked for, else
		// the line ends need only be counted.
		for len(part) > 0 {
			c := int64(bytes.Count(part, []byte{'\n'}))
			if left := markEvery - l.total%markEvery; c >= left {
				i := nthByte(part, '\n', left) + 1
				l.total, l.end, at, part = l.total+left, at+int64(i), at+int64(i), part[i:]
				l.marks.put(l.total, l.end)
				continue
			}
			if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
				l.total, l.end = l.total+c, at+int64(i)+1
			}
			at += int64(len(part))
			break
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// nthByte is where the nth c of b is; there are that many.
func nthByte(b []byte, c byte, n int64) int {
	at := -1
	for range n {
		at += 1 + bytes.IndexByte(b[at+1:], c)
	}
	return at
}

// tail finds where the last n lines begin, and how many they are: fewer if the
// log is shorter, or they are longer than a window holds. One line there is.
func (l *logFile) tail(n int64) (start, count int64, err error) {
	start = l.end
	buf := make([]byte, 64<<10)
	for at := l.end; at > 0 && count < n && l.end-at < windowBytes+maxLine; {
		part := buf[:min(int64(len(buf)), at)]
		at -= int64(len(part))
		if _, err := l.f.ReadAt(part, at); err != nil {
			return 0, 0, err
		}
		for count < n {
			i := bytes.LastIndexByte(part, '\n')
			begins := at + int64(i) + 1 // behind the end of the line before
			if i < 0 && at > 0 {
				break
			}
			if begins < l.end { // else it is the end of the last line
				if count > 0 && l.end-begins > windowBytes {
					return start, count, nil
				}
				start, count = begins, count+1
			}
			if i < 0 {
				break
			}
			part = part[:i]
		}
	}
	return start, count, nil
}

// read reads n lines from number from. At offset lines have gone by.
func (l *logFile) read(ctx context.Context, from, offset, lines int64, n int) (LogWindow, error) {
	w := LogWindow{First: from, Total: l.total, End: offset}
	taken := int64(0)
	for t, err := range readLines(ctx, io.NewSectionReader(l.f, offset, l.end-offset), offset) {
		if err != nil {
			return w, err
		}
		lines++
		if lines < from {
			w.End = t.end
			continue
		}
		if len(w.Lines) >= n || taken > 0 && taken+t.size > windowBytes {
			break
		}
		taken += t.size
		w.End = t.end
		line := Line{JobID: l.jobID, Number: lines, End: t.end}
		if json.Unmarshal(t.text, &line.Record) == nil {
			w.Lines = append(w.Lines, line)
		}
	}
	return w, nil
}
