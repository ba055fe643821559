package store_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
)

// TestShrink: what is removed is given back to the file system, also of a
// database that was made when files could not shrink.
func TestShrink(t *testing.T) {
	for _, old := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "hearth.db")
		if old {
			db := store.RawForTest(t, path)
			for _, stmt := range []string{`PRAGMA auto_vacuum = 0`, `CREATE TABLE made_before (x)`} {
				_, err := db.Exec(stmt)
				ok(t, err)
			}
			ok(t, db.Close())
		}
		s, err := store.Open(t.Context(), path)
		ok(t, err)
		run, _ := newRun(t, s, "o/r", "j")
		r := must[*store.Recorder](t)(s.Recorder(context.Background(), run.ID))
		text := strings.Repeat("x", 1<<20)
		for range 20 {
			r.Emit(ci.Record{Type: ci.AnnotationRec, Job: "j", Message: text})
		}
		r.Emit(ci.Record{Type: ci.RunFinished, Conclusion: ci.Success})
		ok(t, r.Close())
		runs := must[[]store.KeptRun](t)(s.CompletedRuns(t.Context()))
		if len(runs) != 1 || runs[0].Bytes < 20<<20 || runs[0].Cursor != 21 || time.Since(runs[0].Finished) > time.Hour {
			t.Fatalf("%+v", runs)
		}
		ok(t, s.RemoveRun(t.Context(), run.ID))
		ok(t, s.FinishRemovals(t.Context()))
		if n := must[int64](t)(s.Shrink(t.Context(), false)); (n > 18<<20) == old {
			t.Errorf("old %v: %d bytes were given back in little steps", old, n)
		}
		if n := must[int64](t)(s.Shrink(t.Context(), true)); (n > 18<<20) != old {
			t.Errorf("old %v: %d bytes were given back by writing anew", old, n)
		}
		var size int64
		for _, suffix := range []string{"", "-wal"} {
			if st, err := os.Stat(path + suffix); err == nil {
				size += st.Size()
			}
		}
		if size > 4<<20 {
			t.Errorf("old %v: the files still have %d bytes", old, size)
		}
		ok(t, s.Close())
	}
}
