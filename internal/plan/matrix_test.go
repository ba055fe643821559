package plan_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

func withMatrix(matrix string) string {
	return "on: push\njobs:\n  m:\n    runs-on: x\n    strategy:\n      matrix:\n" +
		"        " + strings.ReplaceAll(strings.TrimSpace(matrix), "\n", "\n        ") +
		"\n    steps:\n      - run: echo\n"
}

func TestMatrix(t *testing.T) {
	for _, c := range []struct {
		name   string
		matrix string
		keys   []string // as GitHub shows them
		cells  []string // JSON
	}{
		{"product, the last vector fastest", `
version: [10, 12, 14]
os: [ubuntu-latest, windows-latest]`,
			[]string{"m (10, ubuntu-latest)", "m (10, windows-latest)", "m (12, ubuntu-latest)", "m (12, windows-latest)", "m (14, ubuntu-latest)",
				"m (14, windows-latest)"},
			nil},
		{"GitHub's documentation: fruits", `
fruit: [apple, pear]
animal: [cat, dog]
include:
  - color: green
  - color: pink
    animal: cat
  - fruit: apple
    shape: circle
  - fruit: banana
  - fruit: banana
    animal: cat`,
			[]string{"m (apple, cat)", "m (apple, dog)", "m (pear, cat)", "m (pear, dog)", "m (banana)", "m (banana, cat)"},
			[]string{
				`{"fruit":"apple","animal":"cat","color":"pink","shape":"circle"}`,
				`{"fruit":"apple","animal":"dog","color":"green","shape":"circle"}`,
				`{"fruit":"pear","animal":"cat","color":"pink"}`,
				`{"fruit":"pear","animal":"dog","color":"green"}`,
				`{"fruit":"banana"}`,
				`{"fruit":"banana","animal":"cat"}`,
			}},
		{"GitHub's documentation: expanding", `
os: [windows-latest, ubuntu-latest]
node: [14, 16]
include:
  - os: windows-latest
    node: 16
    npm: 6`,
			[]string{"m (windows-latest, 14)", "m (windows-latest, 16)", "m (ubuntu-latest, 14)", "m (ubuntu-latest, 16)"},
			[]string{
				`{"os":"windows-latest","node":14}`,
				`{"os":"windows-latest","node":16,"npm":6}`,
				`{"os":"ubuntu-latest","node":14}`,
				`{"os":"ubuntu-latest","node":16}`,
			}},
		{"GitHub's documentation: adding", `
os: [macos-latest, windows-latest, ubuntu-latest]
version: [12, 14, 16]
include:
  - os: windows-latest
    version: 17`,
			[]string{"m (macos-latest, 12)", "m (macos-latest, 14)", "m (macos-latest, 16)", "m (windows-latest, 12)", "m (windows-latest, 14)",
				"m (windows-latest, 16)", "m (ubuntu-latest, 12)", "m (ubuntu-latest, 14)", "m (ubuntu-latest, 16)", "m (windows-latest, 17)"},
			nil},
		{"GitHub's documentation: include only", `
include:
  - site: "production"
    datacenter: "site-a"
  - site: "staging"
    datacenter: "site-b"`,
			[]string{"m (production, site-a)", "m (staging, site-b)"}, nil},
		{"GitHub's documentation: exclude, partial", `
os: [macos-latest, windows-latest]
version: [12, 14, 16]
environment: [staging, production]
exclude:
  - os: macos-latest
    version: 12
    environment: production
  - os: windows-latest
    version: 16`,
			[]string{"m (macos-latest, 12, staging)", "m (macos-latest, 14, staging)", "m (macos-latest, 14, production)", "m (macos-latest, 16, staging)",
				"m (macos-latest, 16, production)", "m (windows-latest, 12, staging)", "m (windows-latest, 12, production)", "m (windows-latest, 14, staging)",
				"m (windows-latest, 14, production)"},
			nil},
		{"include brings back what exclude took", `
os: [a, b]
exclude:
  - os: a
include:
  - os: A
    x: 1`,
			[]string{"m (b)", "m (A, 1)"}, nil},
		{"without regard to case, in keys and values", `
OS: [Linux, Mac]
exclude:
  - os: LINUX`,
			[]string{"m (Mac)"}, nil},
		{"values compare as == does", `
n: [1, 2]
b: [true, false]
exclude:
  - n: '1'
  - b: 0`,
			[]string{"m (2, true)"}, nil},
		{"objects match partially, and show their leaves", `
os:
  - {name: ubuntu, version: 22, tags: [x, y]}
  - {name: ubuntu, version: 24}
  - {name: mac, version: 14}
exclude:
  - os: {version: 24}
include:
  - os: {name: ubuntu}
    pkg: apt
  - os: {tags: [X]}
    extra: null`,
			[]string{"m (ubuntu, 22, x, y)", "m (mac, 14)"},
			[]string{`{"os":{"name":"ubuntu","version":22,"tags":["x","y"]},"pkg":"apt","extra":null}`, `{"os":{"name":"mac","version":14}}`}},
		{"what an include adds is not a filter for the next", `
os: [a]
include:
  - color: red
  - color: blue
    other: 1`,
			[]string{"m (a)"}, []string{`{"os":"a","color":"blue","other":1}`}},
		{"nothing to show in the name", `
os: [null, '', x]`,
			[]string{"m", "m #2", "m (x)"}, nil},
		{"numbers as YAML reads them", `
go: [1.20, 1.21, 0x10, 1e3]`,
			[]string{"m (1.2)", "m (1.21)", "m (16)", "m (1000)"}, nil},
		{"everything is excluded", `
os: [a]
exclude: [{os: a}]`,
			[]string{"m"}, []string{"null"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := build(t, one(withMatrix(c.matrix)))
			equal(t, "jobs", keys(r), c.keys)
			for i, want := range c.cells {
				if got, _ := r.Jobs[i].Matrix.MarshalJSON(); string(got) != want {
					t.Errorf("cell %d is %s, want %s", i, got, want)
				}
			}
			for i, j := range r.Jobs {
				if j.MatrixIndex != i {
					t.Errorf("%s has index %d, want %d", j.Key, j.MatrixIndex, i)
				}
			}
		})
	}
}

func TestMatrixErrors(t *testing.T) {
	wide := func(n int) string {
		var b strings.Builder
		b.WriteString("v: [")
		for i := range n {
			fmt.Fprintf(&b, "%d,", i)
		}
		return b.String() + "]"
	}
	for _, c := range []struct{ matrix, want string }{
		{"os: [a]\nexclude:\n  - os: a\n    arch: x", "10:13: Matrix exclude key 'arch' does not match any key within the matrix"},
		{"os: [a]\nexclude:\n  - {}", "9:13: Matrix exclude filter must not be empty"},
		{"os: [a]\ninclude:\n  - {}", "9:13: Matrix include mapping does not contain any values"},
		{"os: []", "7:13: Matrix vector 'os' does not contain any values"},
		{"exclude:\n  - os: a", "8:15: Matrix exclude key 'os' does not match any key within the matrix"},
		{wide(257), "7:9: The matrix makes more than 256 jobs"},
		{wide(200) + "\nw: [1, 2]", "7:9: The matrix makes more than 256 jobs"},
		{wide(3000) + "\n" + strings.Replace(wide(3000), "v", "w", 1), "7:9: The matrix has more combinations than can be looked at (9000000 at 'w')"},
	} {
		w, diags := workflow.Parse(mainFile, []byte(withMatrix(c.matrix)), workflow.Options{})
		if !workflow.Errors(diags) { // what the reader finds itself need not come here
			var r *plan.Run
			if r, diags = plan.Build(plan.Request{Workflow: w}); r != nil {
				t.Errorf("%.60q was planned", c.matrix)
				continue
			}
		}
		got := diags[0].Pos.String() + ": " + diags[0].Message
		if !strings.Contains(got, c.want) && !strings.Contains(got, "Matrix must define") {
			t.Errorf("%.60q: got %q, want %q", c.matrix, got, c.want)
		}
	}
	if r := build(t, one(withMatrix(wide(256)))); len(r.Jobs) != 256 {
		t.Errorf("256 cells made %d jobs", len(r.Jobs))
	}
}

func TestLongNames(t *testing.T) {
	r := build(t, one(withMatrix("v: ["+strings.Repeat("a", 120)+", "+strings.Repeat("é", 96)+", "+strings.Repeat("😀", 60)+"]")))
	for i, want := range []string{"m (" + strings.Repeat("a", 94) + "...", "m (" + strings.Repeat("é", 96) + ")", "m (" + strings.Repeat("😀", 47) + "..."} {
		if got := r.Jobs[i].Name; got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}
