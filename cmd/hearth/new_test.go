package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestNewDocumented runs every row of the table in docs/new.md: the words give
// what the row says, and lint takes it.
func TestNewDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/new.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| ([^|]+?) \\| (`[^|]+) \\|$").FindAllStringSubmatch(string(b), -1)
	if len(rows) < 10 {
		t.Fatalf("%d rows", len(rows))
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	for _, row := range rows {
		t.Run(row[1], func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "ci.yml")
			var errs bytes.Buffer
			cmd := exec.Command("hearth", "new", "-o", file, row[1])
			cmd.Env = append(os.Environ(), "OPENROUTER_API_KEY=", "HEARTH_LLM_URL=")
			cmd.Stderr = &errs
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v: %s", err, errs.String())
			}
			yaml, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			plain := strings.NewReplacer("'", "", `"`, "").Replace(string(yaml))
			for _, want := range quoted.FindAllStringSubmatch(row[2], -1) {
				if !strings.Contains(plain, want[1]) {
					t.Errorf("no %q in\n%s", want[1], yaml)
				}
			}
			if out, err := exec.Command("hearth", "lint", file).CombinedOutput(); err != nil {
				t.Errorf("lint: %v\n%s\n%s", err, out, yaml)
			}
		})
	}
}
