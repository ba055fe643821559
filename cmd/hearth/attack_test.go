package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A workflow file, like a machine's output, in which stands what a terminal obeys:
// it reached the terminal by way of JSON.
func TestAttackTerminalByLint(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ci.yml")
	if err := os.WriteFile(file, []byte("on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - runn: \"\\u0041 \u202e\u200f\"\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"json", "sarif", "text"} {
		var out bytes.Buffer
		a := &app{out: &out, err: &out, getenv: func(string) string { return "" }}
		a.main(t.Context(), []string{"lint", "--format", format, file})
		if strings.ContainsAny(out.String(), "\u202e\u009b\u200f") || !strings.Contains(out.String(), "runn") {
			t.Errorf("%s: %q", format, out.String())
		}
		if format != "text" && !json.Valid(out.Bytes()) {
			t.Errorf("%s: not JSON: %q", format, out.String())
		}
	}
}

// Every command that writes JSON to people writes it by way of board.NewEncoder.
func TestJSONIsEscaped(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(f, "_test.go") && strings.Contains(string(b), "json.NewEncoder(a.out)") {
			t.Errorf("%s: use board.NewEncoder: encoding/json does not escape what terminals obey", f)
		}
	}
}
