package hearth_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/command"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// docs/compatibility.md has a row for every key, event, context, function and command
// that the code knows, and for nothing else; and every test that it names is there.
func TestCompatibilityPage(t *testing.T) {
	b, err := os.ReadFile("docs/compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string][]string{} // the code of the first column, by section
	section := ""
	for line := range strings.SplitSeq(string(b), "\n") {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = title
			continue
		}
		cells := strings.Split(line, " | ")
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		if len(cells) != 3 {
			t.Errorf("a row of %d cells: %s", len(cells), line)
			continue
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[0], -1) {
			sections[section] = append(sections[section], m[1])
		}
		if !regexp.MustCompile(`^(works|differs: |refused: |read)`).MatchString(cells[1]) {
			t.Errorf("it is not said whether it works: %s", line)
		}
		tests := regexp.MustCompile("`([a-z/]+): (Test\\w+)(/([\\w-]+))?`").FindAllStringSubmatch(cells[2], -1)
		if len(tests) == 0 {
			t.Errorf("no test shows it: %s", line)
		}
		for _, m := range tests {
			if !testIsThere(t, m[1], m[2]) {
				t.Errorf("there is no %s: %s", m[1], m[2])
			}
			if m[4] != "" {
				if _, err := os.Stat(filepath.Join("internal", m[1], "testdata/behaviours", m[4]+".txtar")); err != nil {
					t.Errorf("there is no behaviour %s", m[4])
				}
			}
		}
	}
	same := func(what string, there, known []string) {
		t.Helper()
		slices.Sort(there)
		slices.Sort(known)
		there, known = slices.Compact(there), slices.Compact(known)
		for _, k := range known {
			if !slices.Contains(there, k) {
				t.Errorf("%s: no row for %s", what, k)
			}
		}
		for _, k := range there {
			if !slices.Contains(known, k) {
				t.Errorf("%s: a row for %s, which the code does not know", what, k)
			}
		}
	}
	var keys, events, contexts, functions []string
	for _, k := range workflow.Keys() {
		keys = append(keys, shortKey(k))
	}
	for _, e := range workflow.Events() {
		if e.Starts {
			events = append(events, e.Name)
		}
	}
	for _, name := range workflow.Allowed() {
		if slices.Contains([]string{"always", "cancelled", "failure", "success", "hashFiles"}, name) {
			functions = append(functions, name)
		} else {
			contexts = append(contexts, name)
		}
	}
	same("keys", slices.Concat(sections["Workflow keys"], sections["Step keys"], sections["Triggers"]), keys)
	same("events", sections["Events"], events)
	same("contexts", sections["Contexts"], contexts)
	same("functions", sections["Functions"], append(functions, expr.Functions()...))
	same("commands", sections["Workflow commands"], command.Names())
	same("files", sections["Files of a step"], []string{"GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STATE", "GITHUB_STEP_SUMMARY"})
}

// shortKey is a key's path as the page has it: what all events have is said once, and
// what permissions there are.
func shortKey(k string) string {
	k = strings.Replace(k, "jobs.*.permissions.", "permissions.", 1)
	on, ok := strings.CutPrefix(k, "on.")
	if !ok {
		return k
	}
	_, rest, below := strings.Cut(on, ".")
	switch {
	case strings.HasSuffix(on, "[]"):
		return k
	case !below:
		return "on.EVENT"
	case slices.Contains([]string{"types", "branches", "branches-ignore", "tags", "tags-ignore", "paths", "paths-ignore"}, rest):
		return "on.EVENT." + rest
	}
	return k
}

// testIsThere says whether a package has a test of the name.
func testIsThere(t *testing.T, pkg, name string) bool {
	t.Helper()
	dir := filepath.Join("internal", pkg)
	if strings.HasPrefix(pkg, "cmd/") {
		dir = pkg
	}
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}
