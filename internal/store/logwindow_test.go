package store_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
)

// printed records lines of a job, numbered from first, and closes the recorder.
func printed(t *testing.T, s *store.Store, runID, job string, first, n int) {
	t.Helper()
	r := must[*store.Recorder](t)(s.Recorder(context.Background(), runID))
	for i := range n {
		r.Emit(ci.Record{Type: ci.LogLine, Job: job, Step: 1, Stream: "stdout", Text: fmt.Sprintf("line %d", first+i)})
	}
	ok(t, r.Close())
}

// holds checks that a window is the lines from first to last out of total.
func holds(t *testing.T, w store.LogWindow, err error, first, last, total int) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if w.First != int64(first) || w.Total != int64(total) || len(w.Lines) != last-first+1 {
		t.Fatalf("%d lines from %d of %d, wanted %d to %d of %d", len(w.Lines), w.First, w.Total, first, last, total)
	}
	for i, l := range w.Lines {
		if n := first + i; l.Number != int64(n) || l.Text != fmt.Sprintf("line %d", n) {
			t.Fatalf("line %d is %q with number %d", n, l.Text, l.Number)
		}
	}
}

func testLogWindows(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	run, jobs := newRun(t, a, "o/windows", "j", "silent")
	if w, err := b.LogTail(ctx, run.ID, "silent", 10); err != nil || len(w.Lines) != 0 || w.First != 1 || w.Total != 0 {
		t.Fatalf("of a job that printed nothing: %+v, %v", w, err)
	}
	if _, err := b.LogTail(ctx, run.ID, "none", 10); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("of no job: %v", err)
	}
	printed(t, a, run.ID, "j", 1, 3)
	w, err := b.LogTail(ctx, run.ID, "j", 10)
	holds(t, w, err, 1, 3, 3)
	printed(t, b, run.ID, "j", 4, 997)
	const all = 1000
	for _, n := range []int{1, 2, 255, 256, 257, 999, 1000} {
		w, err = a.LogTail(ctx, run.ID, jobs[0].ID, n)
		holds(t, w, err, all-n+1, all, all)
	}
	for _, from := range []int{1, 2, 255, 256, 257, 258, 512, 513, 769, 990, 1000} {
		w, err = a.LogFrom(ctx, run.ID, "j", int64(from), 5)
		holds(t, w, err, from, min(from+4, all), all)
	}
	w, err = a.LogFrom(ctx, run.ID, "j", 4000, 5)
	holds(t, w, err, 1001, 1000, all)
	w, err = a.LogFrom(ctx, run.ID, "j", 300, 10)
	ok(t, err)
	for l, err := range a.Log(ctx, store.LogQuery{Run: run.ID, Job: "j", Offset: w.End}) {
		if err != nil || l.Text != "line 310" {
			t.Fatalf("behind the window: %q, %v", l.Text, err)
		}
		break
	}
}

// logFile is where the log of a run's only job is.
func logFile(t *testing.T, s *store.Store, runID string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(s.LogDir(), runID, "*.ndjson"))
	if err != nil || len(names) != 1 {
		t.Fatalf("log files %v, %v", names, err)
	}
	return names[0]
}

// A job prints for an hour; then its page is asked for, again and again. Each
// page was read from the log's first byte on: a gigabyte, and 14 s of a core a
// time, by whoever can open the page. Here everything but the end of the log is
// overwritten: a reader that looked at it would miss lines, or count wrongly.
func TestAttackPageOfEndlessLog(t *testing.T) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"))
	ok(t, err)
	defer s.Close()
	run, _ := newRun(t, s, "o/r", "j")
	const all = 50_000
	printed(t, s, run.ID, "j", 1, all)
	name := logFile(t, s, run.ID)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	ok(t, err)
	defer f.Close()
	st, err := f.Stat()
	ok(t, err)
	const kept = 200 << 10 // some thousand lines
	_, err = f.WriteAt(make([]byte, st.Size()-kept), 0)
	ok(t, err)
	for range 2 {
		w, err := s.LogTail(t.Context(), run.ID, "j", 500)
		holds(t, w, err, all-499, all, all)
		w, err = s.LogFrom(t.Context(), run.ID, "j", all-700, 100)
		holds(t, w, err, all-700, all-601, all)
	}
}

// A window of long lines is a window of fewer lines: 2,000 of 16 KB each are
// not taken into memory for one page.
func TestAttackWindowOfLongLines(t *testing.T) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"))
	ok(t, err)
	defer s.Close()
	run, _ := newRun(t, s, "o/r", "j")
	r := must[*store.Recorder](t)(s.Recorder(context.Background(), run.ID))
	long := strings.Repeat("x", 256<<10)
	for range 60 {
		r.Emit(ci.Record{Type: ci.LogLine, Job: "j", Step: 1, Text: long})
	}
	ok(t, r.Close())
	tail, err := s.LogTail(t.Context(), run.ID, "j", 50)
	ok(t, err)
	from, err := s.LogFrom(t.Context(), run.ID, "j", 3, 50)
	ok(t, err)
	for _, w := range []store.LogWindow{tail, from} {
		if n := len(w.Lines); n < 10 || n > 16 || w.Total != 60 {
			t.Fatalf("%d lines of 256 KiB out of %d in one window", n, w.Total)
		}
	}
	if last := tail.Lines[len(tail.Lines)-1].Number; last != 60 || from.First != 3 {
		t.Fatalf("the tail ends at %d, the window begins at %d", last, from.First)
	}
}

// The index is a help, not a truth: without it, and with one that a crash left
// in any state, the windows are the same.
func TestLogIndexOfAnyState(t *testing.T) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"))
	ok(t, err)
	defer s.Close()
	run, _ := newRun(t, s, "o/r", "j")
	const all = 3000
	printed(t, s, run.ID, "j", 1, all)
	name := logFile(t, s, run.ID)
	index := strings.TrimSuffix(name, ".ndjson") + ".idx"
	good, err := os.ReadFile(index)
	ok(t, err)
	if len(good) != all/256*8 {
		t.Fatalf("the index has %d bytes", len(good))
	}
	read := func(t *testing.T, total int) {
		t.Helper()
		w, err := s.LogFrom(t.Context(), run.ID, "j", 2000, 20)
		holds(t, w, err, 2000, 2019, total)
		w, err = s.LogTail(t.Context(), run.ID, "j", 20)
		holds(t, w, err, total-19, total, total)
	}
	// A byte into the line that the fourth entry is of: any number might be the beginning of one.
	inside := binary.LittleEndian.AppendUint64(bytes.Clone(good[:24]), binary.LittleEndian.Uint64(good[24:])+1)
	for what, b := range map[string][]byte{
		"none": nil, "empty": {}, "short": good[:16], "torn": good[:21], "zeros": make([]byte, len(good)),
		"too long": append(bytes.Clone(good), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f), "in a line": inside,
	} {
		t.Run(what, func(t *testing.T) {
			ok(t, os.RemoveAll(index))
			if b != nil {
				ok(t, os.WriteFile(index, b, 0o600))
			}
			read(t, all)
			if what == "none" || what == "short" || what == "empty" || what == "torn" {
				if again, err := os.ReadFile(index); err != nil || !bytes.Equal(again, good) {
					t.Fatalf("it was not completed: %d bytes, %v", len(again), err)
				}
			}
		})
	}
	// The host lost its power and with it the end of the log, but not of the index.
	ok(t, os.WriteFile(index, good, 0o600))
	b, err := os.ReadFile(name)
	ok(t, err)
	ok(t, os.Truncate(name, int64(bytes.Index(b, []byte(`"line 2100"`)))))
	printed(t, s, run.ID, "j", 2101, 900) // 2100 is the one left half written
	if got, err := os.ReadFile(index); err != nil || !bytes.Equal(got[:8*7], good[:8*7]) {
		t.Fatal("the index before the loss was changed", err)
	}
	w, err := s.LogFrom(t.Context(), run.ID, "j", 2990, 20)
	holds(t, w, err, 2990, 3000, 3000)
}

// A job prints for ever, or all jobs of a run do: the disk fills up to the limit
// of a job, and of a run, and the log says why it ends there. Taking the run up
// again changes nothing. Before, only a job had a limit: a matrix of 256 jobs
// filled 256 GiB.
func TestAttackLogWithoutEnd(t *testing.T) {
	const job, all = 64 << 10, 150 << 10
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"), store.WithLogLimits(job, all))
	ok(t, err)
	defer s.Close()
	keys := []string{"a", "b", "c", "d"}
	run, jobs := newRun(t, s, "o/r", keys...)
	for range 2 {
		for _, k := range keys {
			printed(t, s, run.ID, k, 1, 2000)
		}
	}
	var total int64
	for i, j := range jobs {
		bytes, _, err := s.LogSize(t.Context(), run.ID, j.ID)
		ok(t, err)
		total += bytes
		if bytes > job+1000 {
			t.Errorf("job %s has %d bytes", j.Key, bytes)
		}
		w, err := s.LogTail(t.Context(), run.ID, j.ID, 3)
		ok(t, err)
		want := "the job has filled its 64 KiB"
		if i >= 2 {
			want = "the jobs of this run have filled the 150 KiB"
		}
		if n := len(w.Lines); n == 0 || !strings.Contains(w.Lines[n-1].Text, want) {
			t.Errorf("the log of job %s ends in %+v", j.Key, w.Lines)
		}
	}
	if total > all+5000 {
		t.Errorf("the run has %d bytes of logs", total)
	}
}

// A job makes connections, or annotations, without end: each is a row of the
// database.
func TestAttackRecordsWithoutEnd(t *testing.T) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"))
	ok(t, err)
	defer s.Close()
	run, _ := newRun(t, s, "o/r", "j")
	text := strings.Repeat("x", 1<<20)
	for range 2 {
		r := must[*store.Recorder](t)(s.Recorder(context.Background(), run.ID))
		for range 50 {
			r.Emit(ci.Record{Type: ci.AnnotationRec, Job: "j", Message: text})
		}
		r.Emit(ci.Record{Type: ci.StepFinished, Job: "j", Step: 1, Conclusion: ci.Success})
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		ok(t, r.Close())
		text = "more " + text
	}
	records := must[[]store.StoredRecord](t)(s.RunRecords(t.Context(), run.ID, 0, 1000))
	size, said, finished := 0, 0, 0
	for _, r := range records {
		size += len(r.Message)
		if strings.Contains(r.Message, "not kept") {
			said++
		}
		if r.Type == ci.StepFinished {
			finished++
		}
	}
	if size > 65<<20 || size < 60<<20 || said != 1 || finished != 1 {
		t.Errorf("%d records with %d MiB; said %d times that there are too many; %d steps finished", len(records), size>>20, said, finished)
	}
}
