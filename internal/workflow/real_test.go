package workflow

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRealFiles reads the workflow files that the modules in the module cache
// ship: GitHub runs them every day, so none may have an error. HEARTH_REAL names
// other folders to search, separated like PATH.
func TestRealFiles(t *testing.T) {
	dirs := filepath.SplitList(os.Getenv("HEARTH_REAL"))
	if len(dirs) == 0 {
		out, err := exec.Command("go", "env", "GOMODCACHE").Output()
		if err != nil {
			t.Skipf("NOT RUN: no go command to ask for the module cache (%v); set HEARTH_REAL to folders with workflow files", err)
		}
		dirs = []string{strings.TrimSpace(string(out))}
	}
	files := 0
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return nil
			}
			if d := filepath.ToSlash(filepath.Dir(path)); !strings.HasSuffix(d, ".github/workflows") || !strings.HasPrefix(filepath.Ext(path), ".y") {
				return nil
			}
			if strings.Contains(filepath.ToSlash(path), "/testdata/") {
				return nil // wrong on purpose, or might be
			}
			src, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			files++
			_, diags := Parse(path, src, Options{})
			for _, d := range diags {
				if d.Severity == Error {
					t.Errorf("%s\n\t%s", d, d.Hint)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files == 0 {
		t.Skipf("NOT RUN: no workflow files below %v; set HEARTH_REAL to folders with some", dirs)
	}
	t.Logf("%d files", files)
}
