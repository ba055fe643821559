package workflow

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/expr"
)

// oneJob wraps the body of a job, whose first line is line 4.
func oneJob(body string) string {
	return "on: push\njobs:\n  a:\n" + body
}

const steps = "    runs-on: x\n    steps: [{run: 'true'}]\n"

func lines(ds []Diagnostic) []string {
	var out []string
	for _, d := range ds {
		s := fmt.Sprintf("%s %s: %s", d.Pos, d.Severity, d.Message)
		if d.Hint != "" {
			s += " | " + d.Hint
		}
		out = append(out, s)
	}
	return out
}

// TestDiagnostics holds what the goldens do not.
func TestDiagnostics(t *testing.T) {
	for _, tt := range []struct {
		name, src string
		want      []string
	}{
		{"nothing wrong", oneJob(steps), nil},
		{"empty", "", []string{"1:1 error: Expected document start parse event | The file is empty; a workflow needs at least `on` and `jobs`."}},
		{"only a comment", "# hi\n", []string{"1:1 error: Expected document start parse event | The file is empty; a workflow needs at least `on` and `jobs`."}},
		{"a list", "- a\n", []string{"1:1 error: A sequence was not expected | Expected a mapping."}},
		{"two documents", oneJob(steps) + "---\na: b\n",
			[]string{"7:1 error: Expected stream end parse event | A workflow file holds one YAML document; remove what follows `---`."}},
		{"indentation", "on: push\n jobs: {}\n", []string{"2:6 error: Mapping values are not allowed in this context | Check the indentation of this line and the one before; quote a text that contains `: `."}},
		{"tab", "on: push\njobs:\n\ta: {}\n", []string{"3:1 error: While scanning for the next token, found character that cannot start any token | YAML indents with spaces, not tabs; quote a text that starts with @, `, % or *."}},
		{"control character", "on: push\x01\n", []string{"1:9 error: Control characters are not allowed (U+0001) | Remove the character."}},
		{"not UTF-8", "on: push\n# \xff\n", []string{"2:3 error: The file is not valid UTF-8 | Save the file as UTF-8."}},
		{"no jobs", "on: push\n", []string{"1:1 error: Required property is missing: jobs | Add `jobs:` to this mapping."}},
		{"empty jobs", "on: push\njobs: {}\n", []string{"2:7 error: The workflow must contain at least one job with no dependencies."}},
		{"neither run nor uses", oneJob("    runs-on: x\n    steps:\n      - name: hi\n"),
			[]string{"6:9 error: There's not enough info to determine what you meant. Add one of these properties: run, shell, uses, with, working-directory"}},
		{"two ids", oneJob("    runs-on: x\n    Runs-On: y\n    steps: [{run: 'true'}]\n"),
			[]string{"5:5 error: 'Runs-On' is already defined | It was first defined on line 4; keys are compared without regard to case."}},
		{"unknown event", "on: [push, pull_requst]\njobs:\n  a:\n" + steps, []string{"1:12 error: Unexpected value 'pull_requst' | Did you mean 'pull_request'?"}},
		{"filter of another event", "on:\n  release:\n    branches: [main]\njobs:\n  a:\n" + steps,
			[]string{"3:5 advice: Unexpected value 'branches' | GitHub overlooks this key here. Expected one of: types."}},
		{"unknown type", "on:\n  issues:\n    types: [open]\njobs:\n  a:\n" + steps, []string{"3:13 advice: Unexpected value 'open' | Did you mean 'opened'?"}},
		{"both filters", "on:\n  push:\n    branches: [a]\n    branches-ignore: [b]\njobs:\n  a:\n" + steps,
			[]string{"4:5 error: you may only define one of `branches` and `branches-ignore` for a single event | Write what is not wanted as `!pattern` in `branches`, after the patterns it takes away from."}},
		{"cron", "on:\n  schedule:\n    - cron: '0 24 * * *'\njobs:\n  a:\n" + steps,
			[]string{"3:13 error: Invalid cron expression. Expected format: '* * * * *' (minute hour day month weekday) | The fields are minute 0-59, hour 0-23, day 1-31, month 1-12 or JAN-DEC, weekday 0-6 or SUN-SAT."}},
		{"merge key", "on: push\nx: &x {a: b}\njobs:\n  a:\n    <<: *x\n" + steps, []string{
			"2:1 error: Unexpected value 'x' | Expected one of: cache-mode, concurrency, defaults, description, env, jobs, name, on, permissions, run-name.",
			"5:5 error: Unexpected value '<<' | GitHub takes anchors and aliases, but no merge keys; repeat the keys."}},
		{"all layers at once", "on: push\njobs:\n  1a:\n    runs-on: x\n    stepz: []\n    steps:\n      - uses: nope\n      - run: echo ${{ matrx.x }} ${{ nope() }}\n  b:\n    needs: c\n" + steps, []string{
			"5:5 error: Unexpected value 'stepz' | Did you mean 'steps'?",
			"8:14 error: Unrecognized named-value: 'matrx'. Located at position 1 within expression: matrx.x | Did you mean 'matrix'?",
			"8:14 error: Unrecognized function: 'nope'. Located at position 1 within expression: nope() | Known here: case, contains, endsWith, format, fromJSON, hashFiles, join, startsWith, toJSON.",
			"3:3 error: The identifier '1a' is invalid. IDs may only contain alphanumeric characters, '_', and '-'. IDs must start with a letter or '_' and and must be less than 100 characters.",
			"7:15 error: Expected format {org}/{repo}[/path]@ref. Actual 'nope'",
			"10:12 error: Job 'b' depends on unknown job 'c'. | There is no job with this id.",
		}},
		{"cycle", "on: push\njobs:\n  a:\n" + steps + "  b:\n    needs: [a, c]\n" + steps + "  c:\n    needs: B\n" + steps, []string{
			"7:16 error: Job 'b' depends on job 'c' which creates a cycle in the dependency graph.",
			"11:12 error: Job 'c' depends on job 'B' which creates a cycle in the dependency graph.",
		}},
		{"matrix", oneJob("    strategy:\n      matrix:\n        os: []\n        exclude:\n          - arch: x\n          - {}\n        include:\n          - {}\n" + steps), []string{
			"6:13 error: Matrix vector 'os' does not contain any values",
			"11:13 error: Matrix include mapping does not contain any values",
			"8:13 error: Matrix exclude key 'arch' does not match any key within the matrix",
			"9:13 error: Matrix exclude filter must not be empty",
		}},
		{"empty matrix", oneJob("    strategy:\n      matrix: {}\n" + steps), []string{"5:15 error: Matrix must define at least one vector"}},
		{"steps' shell", oneJob("    runs-on: x\n    steps:\n      - run: x\n        shell: ${{ matrix.shell }}\n"), []string{
			"7:16 error: Unrecognized named-value: 'matrix'. Located at position 1 within expression: matrix.shell | No context is known here."}},
		{"secrets in a condition", oneJob("    runs-on: x\n    steps:\n      - run: x\n        if: secrets.x\n"), []string{
			"7:13 error: Unrecognized named-value: 'secrets'. Located at position 1 within expression: secrets.x | Known here: env, github, inputs, job, matrix, needs, runner, steps, strategy, vars."}},
		{"background", oneJob("    runs-on: x\n    steps:\n      - id: db\n        run: x\n        background: true\n      - wait: [db, bd]\n      - wait-all: false\n      - cancel: __run\n      - id: me\n        cancel: me\n      - parallel:\n          - run: x\n          - wait: db\n          - uses: a/b@c\n            background: true\n          - parallel: []\n"), []string{
			"9:20 error: Step references unknown step ID 'bd' | Did you mean 'db'?",
			"10:19 error: The value of 'wait-all' must be true or omitted",
			"11:17 error: The identifier '__run' is invalid. IDs starting with '__' are reserved.",
			"13:17 error: Step 'me' cannot reference itself",
			"16:13 error: 'wait' is not allowed inside a parallel block.",
			"18:13 error: 'background' is not allowed inside a parallel block. Steps in a parallel block are automatically run as background steps.",
			"19:13 error: Nested 'parallel' blocks are not allowed.",
		}},
		{"snapshot version", oneJob("    snapshot: {image-name: x, version: '2'}\n" + steps),
			[]string{"4:15 error: Expected format '{major-version}.*' Actual '2'"}},
		{"call of a path without ./", oneJob("    uses: .github/workflows/c.yml@main\n"),
			[]string{"4:11 error: invalid value workflow reference: references to workflows must be prefixed with format 'owner/repository/' or './' for local workflows | Write owner/repo/.github/workflows/file.yml@ref, or ./.github/workflows/file.yml for one of this repository."}},
		{"container without image", oneJob("    container: {env: {A: b}}\n" + steps), []string{"4:16 error: Container image cannot be empty"}},
		{"cache-mode", oneJob("    cache-mode: some\n" + steps), []string{"4:17 error: Unexpected value 'some' | Did you mean 'none'?"}},
		{"call without version", oneJob("    uses: a/b/.github/workflows/c.yml\n"),
			[]string{"4:11 error: invalid value workflow reference: no version specified | Write owner/repo/.github/workflows/file.yml@ref, or ./.github/workflows/file.yml for one of this repository."}},
		{"queue", "on: push\nconcurrency: {group: a, queue: man}\njobs:\n  a:\n" + steps, []string{"2:32 error: Unexpected value 'man' | Did you mean 'max'?"}},
		{"insert as a value", oneJob("    env:\n      A: ${{ insert }}\n" + steps),
			[]string{"5:10 error: Unexpected value '${{ insert }}' | `${{ insert }}` is a key whose value is a mapping."}},
		{"version 1.2", "# hi\n%YAML 1.2\n---\n" + oneJob(steps), nil},
		{"condition that is a tag", oneJob("    if: !cancelled()\n" + steps),
			[]string{"0:0 error: Unexpected tag '!cancelled()' | A value that begins with ! is a tag for YAML: quote it, or put it into ${{ }}."}},
		{"tag", oneJob("    runs-on: !!foo x\n    steps: [{run: 'true'}]\n"), []string{"0:0 error: Unexpected tag 'tag:yaml.org,2002:foo'"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, ds := Parse("x.yml", []byte(tt.src), Options{})
			if got := lines(ds); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(tt.want, "\n  "))
			}
			for _, d := range ds {
				if d.Near.IsZero() || d.Rule == "" || d.File != "x.yml" {
					t.Errorf("incomplete: %+v", d)
				}
			}
		})
	}
}

// TestScalars: what plain words mean in a matrix, where any value may stand.
func TestScalars(t *testing.T) {
	for src, want := range map[string]any{
		"on": "on", "yes": "yes", "no": "no", "Off": "Off", "y": "y",
		"true": true, "True": true, "FALSE": false, "tRue": "tRue",
		"null": nil, "~": nil, "Null": nil, "''": "", "'null'": "null",
		"12": 12.0, "-12": -12.0, "+12": 12.0, "012": 12.0, "0x1F": 31.0, "0o17": 15.0, "0b11": "0b11", "0o8": "0o8", "0xG": "0xG",
		"1.5": 1.5, ".5": .5, "5.": 5.0, "1e3": 1000.0, "1E-2": .01, "1.2.3": "1.2.3", "1_000": "1_000", "-": nil, ".": ".", "1e": "1e", "+.5": .5,
		".inf": math.Inf(1), "-.INF": math.Inf(-1), "inf": "inf", ".nan": math.NaN(), "nan": "nan", "1e999": math.Inf(1),
		"2002-12-14": "2002-12-14", "12:30:45": "12:30:45", "0xFFFFFFFF": -1.0, "3.10": 3.1,
	} {
		if src == "-" {
			continue // an empty list item, not a scalar
		}
		w, ds := Parse("x.yml", []byte(oneJob("    strategy: {matrix: {v: ["+src+"]}}\n"+steps)), Options{})
		if len(ds) > 0 {
			t.Errorf("%s: %v", src, ds)
			continue
		}
		v := w.Jobs[0].Strategy.Matrix.Get("v").Items[0]
		var got any
		switch v.Kind {
		case Bool:
			got = v.Bool
		case Number:
			got = v.Num
		case String:
			got = v.Str
		}
		if f, ok := want.(float64); ok && math.IsNaN(f) {
			if g, ok := got.(float64); !ok || !math.IsNaN(g) {
				t.Errorf("%s: got %v, want NaN", src, got)
			}
			continue
		}
		if got != want {
			t.Errorf("%s: got %#v, want %#v", src, got, want)
		}
	}
}

func TestTextFromNumbers(t *testing.T) {
	w, ds := Parse("x.yml", []byte(oneJob("    env: {A: 3.10, B: 0x10, C: true, D: ~, E: 1e21, F: '3.10'}\n"+steps)), Options{})
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	for k, want := range map[string]string{"A": "3.1", "B": "16", "C": "true", "D": "", "E": "1E+21", "F": "3.10"} {
		if v := w.Jobs[0].Env.Get(k); v.Kind != String || v.Str != want {
			t.Errorf("%s: got %+v, want %q", k, v, want)
		}
	}
}

func TestAliases(t *testing.T) {
	src := "on: push\njobs:\n  a:\n    runs-on: x\n    env: &env\n      A: &a hi\n    steps: &steps\n      - run: echo\n        env: *env\n  b:\n    runs-on: *a\n    steps: *steps\n"
	w, ds := Parse("x.yml", []byte(src), Options{})
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	b := w.Job("B")
	if b.RunsOn.Str != "hi" || len(b.Steps) != 1 || b.Steps[0].Env.Get("a").Str != "hi" {
		t.Errorf("got %+v", b)
	}
}

func TestLimits(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString("on: push\nenv: &a {x: y}\njobs:\n  a:\n    runs-on: x\n    strategy:\n      matrix:\n        a: &l0 [1,2,3,4,5,6,7,8,9]\n")
	for i := 1; i < 9; i++ {
		bomb.WriteString(fmt.Sprintf("        b%d: &l%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*l%d, ", i-1), 9), ", ")))
	}
	bomb.WriteString("    steps: [{run: x}]\n")
	deep := strings.Repeat("[", 60) + strings.Repeat("]", 60)
	for name, tt := range map[string]struct{ src, want string }{
		"bomb":      {bomb.String(), "Maximum YAML nodes exceeded"},
		"loop":      {oneJob("    strategy: {matrix: {v: &v [*v]}}\n" + steps), "Maximum object depth exceeded"},
		"depth":     {oneJob("    strategy: {matrix: {v: [" + deep + "]}}\n" + steps), "Maximum object depth exceeded"},
		"very deep": {strings.Repeat("[", 200_000), ""},
		"size":      {oneJob("    env: {A: '" + strings.Repeat("x", 1<<20) + "'}\n" + steps), "The maximum file size of 1048576 characters has been exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			_, ds := Parse("x.yml", []byte(tt.src), Options{})
			if len(ds) != 1 || !strings.Contains(ds[0].Message, tt.want) {
				t.Errorf("got %v, want %q", lines(ds), tt.want)
			}
		})
	}
	if _, ds := Parse("x.yml", []byte(oneJob(steps)+"  b:\n"+steps+"  c:\n"+steps), Options{MaxJobs: 2}); len(ds) != 1 ||
		ds[0].GitHub() != "The workflow may not contain more than 2 jobs" {
		t.Errorf("got %v", lines(ds))
	}
}

// TestNear: where an expression stands inside a long value.
func TestNear(t *testing.T) {
	src := oneJob("    runs-on: x\n    steps:\n      - run: |\n          one ${{ github.ref }}\n          two ${{ nope }} ${{ 'a' }}\n          ${{ nope2 }}\n      - run: \"x ${{ nope3 }}\"\n")
	_, ds := Parse("x.yml", []byte(src), Options{})
	var got []Pos
	for _, d := range ds {
		got = append(got, d.Near)
	}
	if want := []Pos{{8, 15}, {9, 11}, {10, 17}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestJSONRoundTrip(t *testing.T) {
	src := oneJob("    runs-on: x\n    env:\n      ${{ insert }}: ${{ fromJSON('{}') }}\n      A: a-${{ github.ref }}\n    strategy: {matrix: {v: [1, 2.5, true, ~, '', .inf, -.inf, .nan, [a], {b: c}]}}\n    steps: [{run: 'true'}]\n")
	w, ds := Parse("x.yml", []byte(src), Options{})
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	data, err := json.Marshal(w.Jobs[0])
	if err != nil {
		t.Fatal(err)
	}
	var back Job
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(&back)
	if err != nil {
		t.Fatal(err)
	}
	if string(again) != string(data) {
		t.Errorf("got\n%s\nwant\n%s", again, data)
	}
	if p := back.Env.Get("a").Pos; p != (Pos{7, 10}) {
		t.Errorf("position %v", p)
	}
	if back.If.Source() != "success()" {
		t.Errorf("if %q", back.If.Source())
	}
}

func TestEval(t *testing.T) {
	src := oneJob("    runs-on: x\n    env:\n      ${{ insert }}: ${{ fromJSON('{\"X\":1,\"a\":2}') }}\n      A: a-${{ github.ref }}\n      ${{ github.ref }}: k\n    strategy: {matrix: {v: [1, '${{ fromJSON(''[2,3]'') }}', '${{ github.ref }}']}}\n    steps: [{run: 'true'}]\n")
	w, ds := Parse("x.yml", []byte(src), Options{})
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	github := expr.NewMap()
	github.Set("ref", expr.String("main"))
	contexts := expr.NewMap()
	contexts.Set("github", expr.Object(github))
	env := &expr.Env{Contexts: contexts}
	for _, tt := range []struct {
		v    *Value
		want string
	}{
		{w.Jobs[0].Env, `{"X":1,"a":"a-main","main":"k"}`},
		{w.Jobs[0].Strategy.Matrix.Get("v"), `[1,2,3,"main"]`},
	} {
		got, err := tt.v.Eval(env)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := json.Marshal(got)
		if !strings.EqualFold(string(b), tt.want) {
			t.Errorf("got %s, want %s", b, tt.want)
		}
	}
	_, ds = Parse("x.yml", nil, Options{})
	if len(ds) == 0 {
		t.Error("nothing is a workflow")
	}
	bad, _ := Parse("x.yml", []byte(oneJob("    env:\n      ${{ insert }}: ${{ github.ref }}\n"+steps)), Options{})
	if _, err := bad.Jobs[0].Env.Eval(env); err == nil || !strings.HasPrefix(err.Error(), "(Line: 5, Col: 22): ") {
		t.Errorf("got %v", err)
	}
}

func TestStepIDs(t *testing.T) {
	src := oneJob("    runs-on: x\n    steps:\n      - run: x\n      - uses: ./a\n      - uses: $/a\n      - uses: docker://alpine:3\n      - uses: actions/checkout@v4\n      - uses: Actions/Checkout/x@v4\n      - id: b\n        run: x\n      - wait: b\n      - wait-all:\n      - cancel: b\n      - parallel: [{run: x}, {id: c, run: y}]\n")
	w, ds := Parse("x.yml", []byte(src), Options{})
	if len(ds) > 0 {
		t.Fatal(lines(ds))
	}
	var got []string
	for _, s := range w.Jobs[0].Steps {
		got = append(got, s.ID)
	}
	want := "__run __self __self_2 __alpine_3 __actions_checkout __Actions_Checkout_2 b __wait __wait-all __cancel __parallel"
	if strings.Join(got, " ") != want {
		t.Errorf("got %s\nwant %s", strings.Join(got, " "), want)
	}
}

func TestClosest(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{"runs_on", "runs-on"}, {"rusn-on", "runs-on"}, {"step", "steps"}, {"Env", "env"}, {"xyzzy", ""}, {"", ""},
	} {
		if got := Closest(tt.got, []string{"runs-on", "steps", "env", "name"}); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.got, got, tt.want)
		}
	}
}

func TestLink(t *testing.T) {
	files := map[string]string{
		"./a.yml":   "on: {workflow_call: {inputs: {n: {type: number, required: true}}, secrets: {s: {required: true}}}}\njobs:\n  x:\n    uses: ./b.yml\n",
		"./b.yml":   "on: workflow_call\njobs:\n  y:\n    permissions: {contents: write}\n" + steps,
		"./rec.yml": "on: workflow_call\njobs:\n  r:\n    uses: ./rec.yml\n",
		"./no.yml":  "on: push\njobs:\n  r:\n" + steps,
		"./bad.yml": "on: workflow_call\njobs:\n  r:\n    runs-on: x\n    stepz: 1\n",
	}
	load := func(uses string, _ *Workflow) (string, []byte, error) {
		if src, ok := files[uses]; ok {
			return uses, []byte(src), nil
		}
		return "", nil, os.ErrNotExist
	}
	for _, tt := range []struct {
		name, src string
		want      []string
	}{
		{"fine", oneJob("    uses: ./a.yml\n    with: {n: 1}\n    secrets: inherit\n"), nil},
		{"expressions are trusted", oneJob("    uses: ./a.yml\n    with: {N: '${{ github.ref }}'}\n    secrets: {S: x}\n"), nil},
		{"wrong", oneJob("    uses: ./a.yml\n    with: {n: x, m: 1}\n    secrets: {t: x}\n"), []string{
			"x.yml (Line: 5, Col: 15): Unexpected value 'x'",
			"x.yml (Line: 5, Col: 21): Invalid input, m is not defined in the referenced workflow.",
			"x.yml (Line: 4, Col: 11): Secret s is required, but not provided while calling.",
			"x.yml (Line: 6, Col: 18): Invalid secret, t is not defined in the referenced workflow.",
		}},
		{"too many permissions", oneJob("    uses: ./a.yml\n    with: {n: 1}\n    secrets: inherit\n    permissions: {contents: read}\n"), []string{
			"./a.yml (Line: 3, Col: 3): Error calling workflow './b.yml'. The nested job 'y' is requesting 'contents: write', but is only allowed 'contents: read'.",
		}},
		{"itself", oneJob("    uses: ./rec.yml\n"), []string{"Nested reusable workflow depth exceeded 10."}},
		{"not callable", oneJob("    uses: ./no.yml\n"),
			[]string{"In x.yml (Line: 4, Col: 11): Error from called workflow ./no.yml (Line: 1, Col: 5): workflow_call key is not defined in the referenced workflow."}},
		{"broken", oneJob("    uses: ./bad.yml\n"), []string{"In x.yml (Line: 4, Col: 11): Error from called workflow ./bad.yml (Line: 5, Col: 5): Unexpected value 'stepz'"}},
		{"absent", oneJob("    uses: ./none.yml\n"), []string{"x.yml (Line: 4, Col: 11): Unable to find reusable workflow './none.yml': file does not exist"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, ds := Parse("x.yml", []byte(tt.src), Options{})
			if len(ds) > 0 {
				t.Fatal(lines(ds))
			}
			var got []string
			for _, d := range Link(w, load, Options{}) {
				got = append(got, d.GitHub())
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(tt.want, "\n  "))
			}
		})
	}
}

// FuzzParse: whatever the bytes, reading ends, stays within bounds and gives
// either a workflow that survives JSON or a reason.
func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob(filepath.Join("testdata", "*.yml"))
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range seeds {
		data, err := os.ReadFile(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(oneJob(steps)))
	f.Fuzz(func(t *testing.T, src []byte) {
		w, ds := Parse("x.yml", src, Options{})
		for _, d := range ds {
			if d.Message == "" || d.Rule == "" {
				t.Fatalf("an empty diagnostic: %+v", d)
			}
			_ = d.GitHub()
		}
		if Errors(ds) {
			return
		}
		if w == nil {
			t.Fatal("neither a workflow nor a reason")
		}
		for _, j := range w.Jobs {
			if j.If == nil {
				t.Fatalf("job %s has no condition", j.ID)
			}
			data, err := json.Marshal(j)
			if err != nil {
				t.Fatal(err)
			}
			var back Job
			if err := json.Unmarshal(data, &back); err != nil {
				t.Fatalf("%v: %s", err, data)
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	src, err := os.ReadFile(filepath.Join("testdata", "full.yml"))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(src)))
	b.ReportAllocs()
	for b.Loop() {
		if _, ds := Parse("full.yml", src, Options{}); Errors(ds) {
			b.Fatal(ds)
		}
	}
}

// Files with `branches:` and nothing behind it run every day: it is no filter.
func TestBlankFilterIsNone(t *testing.T) {
	src := []byte("on:\n  push:\n    branches:\n    tags:\n    paths: [x]\njobs:\n  a: {runs-on: x, steps: [{run: x}]}\n")
	w, ds := Parse("a.yml", src, Options{})
	if Errors(ds) || len(ds) != 2 || ds[0].Severity != Advice {
		t.Fatal(ds)
	}
	if d := w.Decide(&Happening{Event: "push", Ref: "refs/heads/any", ChangedFiles: []string{"x"}, FilesKnown: true}); !d.Run {
		t.Error(d.Reason)
	}
	if _, ds := Parse("a.yml", src, Options{StrictEvents: true}); !Errors(ds) {
		t.Error("the editor services refuse it")
	}
}

// What is wrong in a file that was called by a called one is told with the whole way.
func TestCallSites(t *testing.T) {
	w, _ := Parse("a.yml", []byte("on: push\njobs:\n  a:\n    uses: ./b.yml\n"), Options{})
	ds := Link(w, func(uses string, _ *Workflow) (string, []byte, error) {
		if uses == "./b.yml" {
			return "b.yml", []byte("on: workflow_call\njobs:\n  b:\n    uses: ./c.yml\n"), nil
		}
		return "c.yml", []byte("on: workflow_call\njobs:\n  c:\n    runs-on: x\n    steps: [{run: \"${{ nope }}\"}]\n"), nil
	}, Options{})
	want := []Site{{"b.yml", Pos{4, 11}}, {"a.yml", Pos{4, 11}}}
	if len(ds) != 1 || ds[0].File != "c.yml" || ds[0].Pos.Line != 5 || !reflect.DeepEqual(ds[0].Via, want) {
		t.Errorf("%+v", ds)
	}
	if got := ds[0].GitHub(); !strings.HasPrefix(got, "In b.yml (Line: 4, Col: 11): Error from called workflow c.yml (Line: 5, Col: ") {
		t.Error(got)
	}
}
