package bench

import (
	"path/filepath"
	"testing"

	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/machine/machinetest"
	"github.com/hearth-ci/hearth/internal/store"
)

// What is measured is what is said to be measured; how fast it is here is no matter.
func TestEngine(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(t.Context(), filepath.Join(dir, "bench.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := &engineBench{store: s, report: NewReport(), EngineOptions: EngineOptions{Host: &machinetest.Host{}, Dir: dir, Steps: 5, Lines: 3000, LogMB: 1, FileMB: 1,
		Layout: engine.Layout{Workspace: filepath.Join(dir, "work/r/r"), Temp: filepath.Join(dir, "work/_temp"), Actions: filepath.Join(dir, "work/_actions"),
			ToolCache: filepath.Join(dir, "tools"), Tools: filepath.Join(dir, "hearth")}}}
	if err := b.steps(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, spent, err := b.job(t.Context(), "      - run: seq 3000; echo bench x 2.5\n")
	if err != nil || got.lines != 3001 || got.said["x"] != 2.5 || spent.wall <= 0 {
		t.Errorf("%d lines, %v, %+v, %v", got.lines, got.said, spent, err)
	}
	if _, _, err := b.job(t.Context(), "      - run: exit 1\n"); err == nil {
		t.Error("a job that fails is measured")
	}
	if err := b.long(t.Context()); err != nil {
		t.Error(err)
	}
	if len(b.report.Figures) != 6 {
		t.Errorf("%+v", b.report.Figures)
	}
	for _, f := range b.report.Figures[:2] {
		if f.P50 <= 0 {
			t.Errorf("%+v", f)
		}
	}
}
