package store_test

import (
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/store/storetest"
)

// What a worker elsewhere sent is found again by its number, whatever of it was stored
// last: a line, or what is no line.
func TestLastSent(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		run, jobs, err := s.CreateRun(t.Context(), ci.Run{Repository: "o/r", File: "f"}, []ci.Job{{Key: "a", Job: "a"}, {Key: "b", Job: "b"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Recorder(t.Context(), run.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		last := func() int64 {
			t.Helper()
			n, err := s.LastSent(t.Context(), run.ID, jobs[0].ID, "a")
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := last(); n != 0 {
			t.Errorf("nothing was sent: %d", n)
		}
		a := r.ForAttempt("a", 1)
		a.Emit(ci.Record{Type: ci.LogLine, JobKey: "a", Text: "x", Sent: ci.SentBy(1, 1)})
		a.Emit(ci.Record{Type: ci.LogLine, JobKey: "a", Text: "the server's own"})
		r.ForAttempt("b", 1).Emit(ci.Record{Type: ci.LogLine, JobKey: "b", Text: "x", Sent: ci.SentBy(1, 9)})
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
		if n := last(); n != ci.SentBy(1, 1) {
			t.Errorf("a line: %d", n)
		}
		// What is no line comes behind the lines before it, without a flush.
		a.Emit(ci.Record{Type: ci.LogLine, JobKey: "a", Text: "y", Sent: ci.SentBy(1, 2)})
		a.Emit(ci.Record{Type: ci.AnnotationRec, JobKey: "a", Message: "z", Sent: ci.SentBy(1, 3)})
		if n := last(); n != ci.SentBy(1, 3) {
			t.Errorf("an annotation: %d", n)
		}
		if w, err := s.LogTail(t.Context(), run.ID, "a", 1); err != nil || len(w.Lines) != 1 || w.Lines[0].Record.Text != "y" {
			t.Errorf("the line before it is not there: %+v, %v", w, err)
		}
		r.ForAttempt("a", 2).Emit(ci.Record{Type: ci.LogLine, JobKey: "a", Text: "x", Sent: ci.SentBy(2, 1)})
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
		if n := last(); n != ci.SentBy(2, 1) {
			t.Errorf("another attempt: %d", n)
		}
		r.Close()
		if r.Flush() == nil {
			t.Error("who is closed flushes")
		}
	})
}
