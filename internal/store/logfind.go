package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/hearth-ci/hearth/internal/text"
)

// maxFound bounds how many bytes of a log one search reads; the next goes on from there.
var maxFound int64 = 256 << 20

// LogMatches are the lines of a log that have a text.
type LogMatches struct {
	Lines []Line // the first of them, with their numbers
	Total int64  // how many there are in what was read
	// Next is the number of the line that comes after what was read, 0 where that was
	// all.
	Next int64
}

// LogFind looks for a text in a job's log, from line number from on, and returns
// the first n lines that have it ([text.Finder]), and how many do. Where the log is
// longer than one search reads, Next says so.
func (s *Store) LogFind(ctx context.Context, runID, job, words string, from int64, n int) (m LogMatches, err error) {
	if words == "" {
		return m, nil
	}
	_, err = s.window(ctx, runID, job, func(l *logFile) (LogWindow, error) {
		lines, at, err := l.mark(max(from, 1) - 1)
		if err != nil {
			return LogWindow{}, err
		}
		m, err = l.find(ctx, words, max(from, 1), lines, at, n)
		return LogWindow{}, err
	})
	return m, err
}

// find searches from the line number from on. At offset lines have gone by.
func (l *logFile) find(ctx context.Context, words string, from, lines, offset int64, n int) (m LogMatches, err error) {
	fold := strings.ToLower(words) == words
	quoted, err := json.Marshal(words)
	if err != nil {
		return m, fmt.Errorf("search: %w", err)
	}
	// A line that has not even the bytes needs no reading.
	want := quoted[1 : len(quoted)-1]
	find := text.Finder(words)
	var low []byte
	start := offset
	for t, err := range readLines(ctx, io.NewSectionReader(l.f, offset, l.end-offset), offset) {
		if err != nil {
			return m, err
		}
		lines++
		if lines < from {
			continue
		}
		if t.end-start > maxFound {
			m.Next = lines
			return m, nil
		}
		raw := t.text
		if fold {
			low = text.Lower(low[:0], raw)
			raw = low
		}
		if !bytes.Contains(raw, want) {
			continue
		}
		line := Line{JobID: l.jobID, Number: lines, End: t.end}
		if json.Unmarshal(t.text, &line.Record) != nil || find(line.Text) < 0 {
			continue
		}
		m.Total++
		if len(m.Lines) < n {
			m.Lines = append(m.Lines, line)
		}
	}
	return m, nil
}
