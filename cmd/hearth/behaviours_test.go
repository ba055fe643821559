package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/git/gittest"
	"github.com/hearth-ci/hearth/internal/worker/behaviourtest"
)

// inMachines are the kinds of behaviours, by how their names begin, that a real machine
// could be otherwise about: its shells, users, files, pipes, signals. The others are the
// same whatever a job runs on.
var inMachines = []string{"annotations", "background", "carriage", "continue-on-error-step", "defaults-run", "empty-run", "env-", "exit-code", "github-env",
	"job-status", "matrix-output", "needs-json", "needs-outputs", "output-file", "parallel", "path-file", "post-", "runner-temp", "set-env", "shell-",
	"step-failure", "stderr", "stop-commands", "summary-file", "timeout-step", "working-directory", "workspace-is-fresh"}

// A part of the behaviours ([behaviourtest]) in real machines: one `hearth run` of all
// their workflows, read from its records.
func TestBehavioursInMachines(t *testing.T) {
	if why := missingForVM(); why != "" {
		t.Skip(why)
	}
	files, err := filepath.Glob("../../internal/worker/testdata/behaviours/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	gittest.Git(t, "", "init", "-q", "-b", "main", root)
	gittest.Git(t, root, "remote", "add", "origin", "https://github.com/o/r")
	gittest.Write(t, root+"/.gitignore", ".hearth\n")
	wanted := map[string]*behaviourtest.Expectation{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		a, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !chosen(name) || len(a.Files) != 2 || a.Files[0].Name != "ci.yml" || a.Files[1].Name != "want" {
			continue
		}
		e := behaviourtest.Expect(t, string(a.Files[1].Data))
		if e.Event != "push" || e.Ref != "" || e.Conclusion == "invalid" || e.Conclusion == "nothing" {
			continue
		}
		at := ".github/workflows/" + name + ".yml"
		gittest.Write(t, filepath.Join(root, at), string(a.Files[0].Data))
		wanted[at] = e
	}
	if len(wanted) < 30 {
		t.Fatalf("%d behaviours", len(wanted))
	}
	gittest.Git(t, root, "add", "-A")
	gittest.Git(t, root, "commit", "-qm", "behaviours")
	home, err := newHome()
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	cmd := exec.CommandContext(t.Context(), "hearth", "run", "--json")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "HEARTH_HOME="+home)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if code := cmd.ProcessState.ExitCode(); code != 1 { // some are about failures
		t.Fatalf("%v: %s\n%s", err, &stderr, out)
	}
	fileOf, records := map[string]string{}, map[string][]ci.Record{}
	concluded := map[string]ci.Conclusion{}
	for line := range bytes.Lines(out) {
		var r ci.Record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		switch r.Type {
		case ci.RunPlanned:
			fileOf[r.Run] = r.File
		case ci.RunFinished:
			concluded[fileOf[r.Run]] = r.Conclusion
		}
		records[fileOf[r.Run]] = append(records[fileOf[r.Run]], r)
	}
	for file, e := range wanted {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yml"), func(t *testing.T) {
			if got := concluded[file]; string(got) != e.Conclusion {
				t.Errorf("the run is %q, want %s", got, e.Conclusion)
			}
			e.Compare(t, records[file])
		})
	}
	if left := leftovers(home); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func chosen(name string) bool {
	for _, p := range inMachines {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}
