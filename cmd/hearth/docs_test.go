package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hearth-ci/hearth/internal/image"
)

// Every command in the documentation is run: `make` by make -n, `hearth` for
// real, in a scratch repository. What needs more than that is named here with
// the test that runs it, so that a command that is written into a document
// without being run anywhere fails this test.
var runElsewhere = map[string]string{
	"hearth serve --config hearth.json":                                                                            "serve_test.go",
	"hearth token --worker --subject east-1 > east-1.token":                                                        "testdata/script/worker.txtar",
	"hearth token --revoke ID":                                                                                     "testdata/script/worker.txtar",
	"hearth doctor --server https://hearth.example.org --token-file east-1.token":                                  "worker_test.go", // which has a server
	"hearth worker --server https://hearth.example.org --token-file east-1.token --labels gpu,group:big --slots 4": "worker_test.go",
	"hearth vm run --explain -- make":                                                                              "testdata/script/vm.txtar", // of what fails
	"hearth debug":                                                                                                 "testdata/script/debug.txtar",
	"hearth debug RUN -- ls -la":                                                                                   "testdata/script/debug.txtar",
	"hearth debug RUN --retry":                                                                                     "testdata/script/debug.txtar",
	"hearth debug RUN --rewind":                                                                                    "testdata/script/debug.txtar",
	"hearth debug RUN --run fixed.sh":                                                                              "testdata/script/debug.txtar",
	"hearth debug RUN --continue":                                                                                  "testdata/script/debug.txtar",
	"hearth image build --recipe ubuntu-24.04":                                                                     "testdata/script/ubuntu.txtar",
	"hearth image build --tools node@20,go@1.24":                                                                   "testdata/script/toolcache.txtar",
	"hearth image import docker://ghcr.io/acme/ci:1.2 --name acme":                                                 "testdata/script/import.txtar", // of archives: tests have no registry of the world's
	"hearth run -P ubuntu-latest=acme":                                                                             "testdata/script/import.txtar",
	"hearth run --keep-points":                                                                                     "testdata/script/rewind.txtar",
	"hearth rewind":                                                                                                "testdata/script/rewind.txtar",
	"hearth rewind --step 2":                                                                                       "testdata/script/rewind.txtar",
	"hearth rewind --step 2 -- ls -la":                                                                             "testdata/script/rewind.txtar",
	"hearth rewind --step end -- ls":                                                                               "testdata/script/rewind.txtar",
	"hearth rewind --step 2 --continue":                                                                            "testdata/script/rewind.txtar",
	"hearth diff --step 2":                                                                                         "testdata/script/diff.txtar",
	"hearth diff --step 2 --show /etc/hosts":                                                                       "testdata/script/diff.txtar",
	"hearth fork --step 2":                                                                                         "testdata/script/fork.txtar",
	"hearth fork --step 2 --run fixed.sh --run other.sh":                                                           "testdata/script/fork.txtar",
	"hearth fork --step 2 -n 20 -- ./flaky-test.sh":                                                                "testdata/script/fork.txtar",
	"hearth rewind --step 2 --run fixed.sh":                                                                        "testdata/script/rewind.txtar",
}

// documents are the files whose sh blocks are commands.
func documents(t *testing.T) []string {
	t.Helper()
	docs, err := filepath.Glob(filepath.Join("..", "..", "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", "examples/tally/README.md"} {
		docs = append(docs, filepath.Join("..", "..", f))
	}
	return docs
}

var shBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// documented lists the commands of the documents' sh blocks, without comments.
func documented(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, f := range documents(t) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range shBlock.FindAllStringSubmatch(string(b), -1) {
			for line := range strings.Lines(strings.ReplaceAll(m[1], "\\\n", " ")) {
				line, _, _ = strings.Cut(strings.TrimSpace(line), "  #")
				if i := strings.Index(line, " # "); i >= 0 {
					line = line[:i]
				}
				if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
					out[line] = f
				}
			}
		}
	}
	return out
}

func TestDocumentedMakeTargets(t *testing.T) {
	n := 0
	for line := range documented(t) {
		if !strings.HasPrefix(line, "make ") {
			continue
		}
		n++
		cmd := exec.Command("make", append([]string{"-n"}, strings.Fields(line)[1:]...)...)
		cmd.Dir = filepath.Join("..", "..")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
	if n < 2 {
		t.Errorf("only %d make commands found: is the README's form known here?", n)
	}
}

func TestDocumentedCommands(t *testing.T) {
	if why := missingForVM(); why != "" {
		t.Skip(why)
	}
	var lines []string
	for line, file := range documented(t) {
		switch {
		case strings.HasPrefix(line, "make "):
		case runElsewhere[line] != "":
			if _, err := os.Stat(runElsewhere[line]); err != nil {
				t.Errorf("%s (%s) is said to be run by %s, which is not there", line, file, runElsewhere[line])
			}
		case strings.HasPrefix(line, "hearth "):
			lines = append(lines, line)
		case filepath.Base(file) == "api.md":
			// run, block by block, by package api's test of that document
		default:
			t.Errorf("%s: nobody runs %q", file, line)
		}
	}
	slices.Sort(lines)
	if len(lines) < 10 {
		t.Errorf("only %d hearth commands found: is the README's form known here?", len(lines))
	}
	// Runs first, so that there is something to read back.
	slices.SortStableFunc(lines, func(a, b string) int {
		rank := func(s string) int {
			switch {
			case strings.HasPrefix(s, "hearth run ") || s == "hearth run":
				return 0
			case strings.HasPrefix(s, "hearth vm create"):
				return 2
			}
			return 1
		}
		return rank(a) - rank(b)
	})
	var script strings.Builder
	for _, line := range lines {
		fmt.Fprintf(&script, "exec %s\n", strings.ReplaceAll(line, `"`, `'`))
	}
	script.WriteString("exec hearth vm rm --all\n")
	script.WriteString(`
-- .github/workflows/ci.yml --
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - run: echo tested
-- runs.json --
{"workflow_runs": [{"id": 1, "path": ".github/workflows/ci.yml", "head_branch": "main", "head_sha": "a", "event": "push", "status": "completed",
"conclusion": "success", "run_attempt": 1, "run_started_at": "2026-03-01T10:00:00Z", "updated_at": "2026-03-01T10:10:00Z", "repository": {"full_name": "acme/app"}}]}
-- jobs.json --
{"jobs": [{"id": 2, "run_id": 1, "head_sha": "a", "status": "completed", "conclusion": "success", "name": "test", "started_at": "2026-03-01T10:01:00Z",
"completed_at": "2026-03-01T10:09:00Z", "steps": [{"name": "Run npm run deploy", "number": 2, "status": "completed", "conclusion": "success",
"started_at": "2026-03-01T10:02:00Z", "completed_at": "2026-03-01T10:03:00Z"}]}]}
-- executions.csv --
started_at,ended_at,repo,job,failed,duration_s
10,20,acme/app,build,0,10
-- logs/unit.log --
error: the lake is dry
-- builds.csv --
build,test,failed,duration_s
1,a,0,0.1
1,b,1,0.2
2,a,0,0.1
2,b,1,0.2
`)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docs.txtar"), []byte(script.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{Dir: dir, Setup: func(env *testscript.Env) error {
		home, err := newHome()
		if err != nil {
			return err
		}
		env.Defer(func() {
			for _, l := range leftovers(home) {
				t.Errorf("left behind: %s", l)
			}
			os.RemoveAll(home)
		})
		env.Setenv("HEARTH_HOME", home)
		env.Setenv("HEARTH_GUEST", os.Getenv("HEARTH_GUEST"))
		env.Setenv("HEARTH_IMAGE", image.Debian12)
		return nil
	}})
}
