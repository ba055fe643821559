package learn

import (
	"os"
	"path/filepath"
	"testing"
)

func dataDir(t testing.TB) string {
	dir := os.Getenv("HEARTH_DATA")
	if dir == "" {
		wd, _ := os.Getwd()
		for d := wd; d != "/"; d = filepath.Dir(d) {
			if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
				dir = filepath.Join(d, "..", "shared", "data")
			}
		}
	}
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("SKIPPED, NOT PASSED: no evaluation data at %q: set HEARTH_DATA", dir)
	}
	return dir
}

func TestEvalFiles(t *testing.T) {
	for _, name := range []string{"lrts-dev", "dune-debian", "pytorch-jobs"} {
		f, err := os.Open(filepath.Join(dataDir(t), "outcomes", name+".csv.gz"))
		if err != nil {
			t.Fatal(err)
		}
		r, err := Eval(t.Context(), f, EvalOptions{})
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s\n model %+v\n base %+v\n last %+v\n hier %+v\n dur %+v", name, r.Model, r.BaseRate, r.LastOutcome, r.Hierarchical, r.Duration)
	}
}
