package show_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/plan/show"
	"github.com/hearth-ci/hearth/internal/workflow"
)

var update = flag.Bool("update", false, "write the golden files anew")

// build plans ../testdata/pipeline.yml, the plan's own example.
func build(t *testing.T) (*workflow.Workflow, *plan.Run) {
	t.Helper()
	load := func(uses string, _ *workflow.Workflow) (*workflow.Workflow, error) {
		src, err := os.ReadFile(filepath.Join("../testdata", filepath.Base(uses)))
		if err != nil {
			return nil, err
		}
		w, diags := workflow.Parse(uses, src, workflow.Options{})
		if workflow.Errors(diags) {
			return nil, errors.New(diags[0].String())
		}
		return w, nil
	}
	w, err := load("pipeline.yml", nil)
	if err != nil {
		t.Fatal(err)
	}
	github, err := expr.ParseJSON([]byte(`{"ref": "refs/heads/main"}`))
	if err != nil {
		t.Fatal(err)
	}
	r, diags := plan.Build(plan.Request{
		Workflow: w, Load: load,
		Event:  &workflow.Happening{Event: "push", Ref: "refs/heads/main"},
		GitHub: github,
	})
	if r == nil {
		t.Fatal(diags)
	}
	return w, r
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (write it with -update)", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (write it anew with -update); got:\n%s", file, got)
	}
}

func TestGolden(t *testing.T) {
	w, r := build(t)
	var b bytes.Buffer
	err := show.List(&b, []show.Entry{
		{File: r.File, Workflow: w, Triggered: true, Run: r},
		{File: "tags.yml", Workflow: w, Reason: "the branch main is no tag", Run: r},
		{File: "bad.yml", Diagnostics: []workflow.Diagnostic{{Message: "Unexpected value 'runn'"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "list.txt", b.Bytes())
	b.Reset()
	if err := show.Graph(&b, r); err != nil {
		t.Fatal(err)
	}
	golden(t, "graph.txt", b.Bytes())
	b.Reset()
	if err := show.DryRun(&b, r); err != nil {
		t.Fatal(err)
	}
	golden(t, "dryrun.txt", b.Bytes())
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain é 😀":      "plain é 😀",
		"a\x1b[31mred":   `a\x1b[31mred`,
		"a\nb\tc":        `a\nb\tc`,
		"x\u202egnp.exe": `x\u202egnp.exe`,
		"\xff":           `\ufffd`,
		"\u009b31m":      `\u009b31m`,
	} {
		if got := show.Clean(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// TestWideMatrix holds that a large matrix does not flood the screen.
func TestWideMatrix(t *testing.T) {
	src := "on: push\njobs:\n  m:\n    runs-on: x\n    strategy: {matrix: {n: [" + strings.Repeat("1, ", 200) + "]}}\n    steps: [{run: \"echo \\e[2J\"}]\n"
	w, diags := workflow.Parse("m.yml", []byte(src), workflow.Options{})
	if workflow.Errors(diags) {
		t.Fatal(diags)
	}
	r, _ := plan.Build(plan.Request{Workflow: w})
	var b bytes.Buffer
	if err := errors.Join(show.List(&b, []show.Entry{{Workflow: w, Run: r, Triggered: true}}), show.Graph(&b, r), show.DryRun(&b, r)); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "\n"); n > 60 {
		t.Errorf("%d lines for one job", n)
	}
	if !strings.Contains(b.String(), "… and 189 more") {
		t.Errorf("the rest is not counted:\n%s", b.String())
	}
	if strings.ContainsRune(b.String(), '\x1b') {
		t.Error("an escape sequence came through")
	}
}
