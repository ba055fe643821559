package store_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
)

// Three outputs of 14 MB went into the event log, and from there to whoever
// followed the run; and what a record shortened was what a server that started
// again handed to the jobs after it. The row has outputs whole, records do not.
func TestAttackOutputsInTheRecord(t *testing.T) {
	s := must[*store.Store](t)(store.Open(t.Context(), filepath.Join(t.TempDir(), "db"), store.WithLogs(t.TempDir())))
	defer s.Close()
	run, _ := newRun(t, s, "o/r", "build")
	shown := 0
	r := must[*store.Recorder](t)(s.Recorder(context.Background(), run.ID, ci.SinkFunc(func(r ci.Record) {
		for _, v := range r.Outputs {
			shown += len(v)
		}
	})))
	value := strings.Repeat("x", ci.MaxOutput)
	r.Emit(ci.Record{Type: ci.JobFinished, Job: "build", Conclusion: ci.Success, Outputs: map[string]string{"a": value, "b": value, "c": value}})
	ok(t, r.Close())
	jobs := must[[]store.StoredJob](t)(s.Jobs(t.Context(), run.ID))
	if jobs[0].Outputs["a"] != value || len(jobs[0].Outputs) != 3 {
		t.Errorf("%d outputs, %d bytes", len(jobs[0].Outputs), len(jobs[0].Outputs["a"]))
	}
	stored := 0
	for _, rec := range must[[]store.StoredRecord](t)(s.Records(t.Context(), 0, 100)) {
		for _, v := range rec.Record.Outputs {
			stored += len(v)
		}
	}
	if stored == 0 || stored > 256<<10 || shown != stored {
		t.Errorf("%d bytes of outputs in the event log, %d shown", stored, shown)
	}
}
