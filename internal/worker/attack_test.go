package worker

import (
	"errors"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/plan"
)

// A secret travels best in the name of a host: what is told of a connection goes
// through the job's own masks, those that steps have added too, in any case.
func TestAttackHostNames(t *testing.T) {
	set := &mask.Set{}
	h := &hooks{runner: &Runner{RunID: "r"}, job: &plan.Job{Key: "a"}, mask: set}
	if err := errors.Join(set.Add("Hunter2Hunter3"), set.Add("added-later")); err != nil {
		t.Fatal(err)
	}
	c := h.runner.connection(h.job, network.Connection{Host: "x.hunter2hunter3.ADDED-LATER.example."})
	if got := set.Record(c); strings.Contains(strings.ToLower(got.Connection.Host), "hunter") || strings.Contains(strings.ToLower(got.Connection.Host), "added") {
		t.Errorf("%+v", got.Connection)
	}
}

// The end of a step's output is kept for its explanation: four thousand lines of
// sixteen kilobytes, of every step that runs at the time.
func TestAttackKeptLines(t *testing.T) {
	l, err := learn.Open(t.Context(), nil, learn.Options{Mode: learn.Advise})
	if err != nil {
		t.Fatal(err)
	}
	h := &hooks{runner: &Runner{Learn: l, Sink: ci.SinkFunc(func(ci.Record) {})}, job: &plan.Job{}}
	line := strings.Repeat("é", 8<<10)
	for range 5000 {
		h.Emit(ci.Record{Type: ci.LogLine, Step: 1, Text: line})
	}
	sum := 0
	for _, s := range h.lines[1] {
		sum += len(s)
	}
	if sum == 0 || sum > 10<<20 {
		t.Errorf("%d bytes are kept of a step's output", sum)
	}
}
