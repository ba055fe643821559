package lint

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/workflow"
)

const broken = `on: push
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - runn: echo hi
      - run: |
          echo one
          echo ${{ githb.ref }}
  test:
    needs: bild
    runs-on: ubuntu-latest
    steps:
      - run: make
`

func TestText(t *testing.T) {
	r := Source("ci.yml", []byte(broken), Options{})
	if got := r.ExitCode(); got != 2 {
		t.Errorf("exit code %d, want 2", got)
	}
	var buf bytes.Buffer
	if err := r.Write(&buf, "text"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ci.yml:6:9: error: Unexpected value 'runn' [unexpected-key]\n    6 |       - runn: echo hi\n      |         ^~~~\n      = hint: Did you mean 'run'?\n",
		"ci.yml:7:14: error: Unrecognized named-value: 'githb'. Located at position 1 within expression: githb.ref [expression]\n" +
			"    9 |           echo ${{ githb.ref }}\n      |                ^~~~~~~~~~~~~~~~\n      = hint: Did you mean 'github'?\n",
		"ci.yml:11:12: error: Job 'test' depends on unknown job 'bild'. [needs]\n",
		"      = hint: Did you mean 'build'?\n",
	} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("missing\n%s\nin\n%s", want, buf.String())
		}
	}
}

func TestJSON(t *testing.T) {
	r := Source("ci.yml", []byte(broken), Options{})
	var buf bytes.Buffer
	if err := r.Write(&buf, "json"); err != nil {
		t.Fatal(err)
	}
	var got report
	if err := json.Unmarshal(buf.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Valid || len(got.Diagnostics) != 4 {
		t.Fatalf("valid %v with %d diagnostics, want 4 errors: %s", got.Valid, len(got.Diagnostics), buf.String())
	}
	d := got.Diagnostics[2]
	if d.Line != 7 || d.Column != 14 || d.Near == nil || d.Near.Line != 9 || d.Source != "          echo ${{ githb.ref }}" {
		t.Errorf("got %+v", d)
	}
}

func TestSARIF(t *testing.T) {
	r := Source("a b/ci.yml", []byte(broken), Options{})
	var buf bytes.Buffer
	if err := r.Write(&buf, "sarif"); err != nil {
		t.Fatal(err)
	}
	var log sarifLog
	if err := json.Unmarshal(buf.Bytes(), &log); err != nil {
		t.Fatal(err)
	}
	run := log.Runs[0]
	if log.Version != "2.1.0" || len(run.Results) != 4 {
		t.Fatalf("version %s with %d results", log.Version, len(run.Results))
	}
	for _, res := range run.Results {
		if run.Tool.Driver.Rules[res.RuleIndex].ID != res.RuleID {
			t.Errorf("rule %d is not %s", res.RuleIndex, res.RuleID)
		}
		loc := res.Locations[0].PhysicalLocation
		if res.Level != "error" || loc.ArtifactLocation.URI != "a%20b/ci.yml" || loc.Region == nil || loc.Region.StartLine < 1 {
			t.Errorf("got %+v", res)
		}
	}
}

func TestUnknownFormat(t *testing.T) {
	if err := Source("x.yml", []byte("on: push"), Options{}).Write(&bytes.Buffer{}, "xml"); err == nil || !strings.Contains(err.Error(), "sarif") {
		t.Errorf("got %v", err)
	}
}

func TestAdvice(t *testing.T) {
	for _, tt := range []struct {
		name, src string
		rule      string // "" when nothing is to be said
		pos       workflow.Pos
	}{
		{"tag of a third party", "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - uses: some/action@v1\n", ruleUnpinned, workflow.Pos{Line: 6, Col: 15}},
		{"commit of a third party", "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - uses: some/action@0123456789012345678901234567890123456789\n", "",
			workflow.Pos{}},
		{"GitHub's own", "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - uses: actions/checkout@v4\n", "", workflow.Pos{}},
		{"local", "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - uses: ./act\n", "", workflow.Pos{}},
		{"image", "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - uses: docker://alpine:3\n", ruleUnpinned, workflow.Pos{Line: 6, Col: 15}},
		{"title in a script", "on: issues\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: |\n          echo hi\n          echo '${{ github.event.issue.title }}'\n", ruleInjection, workflow.Pos{Line: 8, Col: 21}},
		{"message by any index", "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: echo ${{ github.event.commits[0].message }}\n", ruleInjection,
			workflow.Pos{Line: 6, Col: 23}},
		{"title in env", "on: issues\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: echo \"$T\"\n        env: {T: '${{ github.event.issue.title }}'}\n",
			"", workflow.Pos{}},
		{"script of github-script", "on: issues\njobs:\n  a:\n    runs-on: x\n    steps:\n      - uses: actions/github-script@v7\n        with:\n          script: x('${{ github.head_ref }}')\n", ruleInjection, workflow.Pos{Line: 8, Col: 26}},
		{"write-all", "on: push\npermissions: write-all\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: true\n", rulePermission,
			workflow.Pos{Line: 2, Col: 14}},
		{"scope not used", "on: push\njobs:\n  a:\n    runs-on: x\n    permissions:\n      contents: read\n      packages: write\n    steps:\n      - uses: actions/checkout@v4\n      - run: go test\n", rulePermission, workflow.Pos{Line: 7, Col: 7}},
		{"scope used", "on: push\njobs:\n  a:\n    runs-on: x\n    permissions:\n      contents: write\n    steps:\n      - uses: actions/checkout@v4\n      - run: git push\n", "", workflow.Pos{}},
		{"scope of an unknown action", "on: push\njobs:\n  a:\n    runs-on: x\n    permissions:\n      contents: write\n    steps:\n      - uses: actions/create-release@v1\n", "", workflow.Pos{}},
		{"never", "on: push\njobs:\n  a:\n    if: false\n    runs-on: x\n    steps:\n      - run: true\n", ruleCondition, workflow.Pos{Line: 4, Col: 9}},
		{"text around", "on: push\njobs:\n  a:\n    if: ${{ github.ref }} == 'x'\n    runs-on: x\n    steps:\n      - run: true\n", ruleCondition,
			workflow.Pos{Line: 4, Col: 9}},
		{"other event", "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: true\n        if: always() && github.event_name == 'pull_request'\n",
			ruleCondition, workflow.Pos{Line: 7, Col: 32}},
		{"this event", "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: true\n        if: github.event_name == 'push'\n", "", workflow.Pos{}},
		{"caller's event", "on: {workflow_call: {}}\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: true\n        if: github.event_name == 'push'\n", "",
			workflow.Pos{}},
		{"need not needed", "on: push\njobs:\n  b:\n    runs-on: x\n    steps:\n      - run: true\n  a:\n    runs-on: x\n    steps:\n      - run: echo ${{ needs.b.outputs.x }}\n", ruleUnknown, workflow.Pos{Line: 10, Col: 23}},
		{"step that is not", "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: true\n        if: steps.x.outcome == 'success'\n", ruleUnknown,
			workflow.Pos{Line: 7, Col: 13}},
		{"old command", "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: echo ::set-output name=a::b\n", ruleDeprecated,
			workflow.Pos{Line: 6, Col: 19}},
		{"only negative", "on:\n  push:\n    branches: ['!main']\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: true\n", "pattern",
			workflow.Pos{Line: 3, Col: 16}},
		{"starter workflow", "on:\n  schedule:\n    - cron: $cron-daily\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: true\n", "placeholder",
			workflow.Pos{Line: 3, Col: 13}},
		{"starter matrix", "on: push\njobs:\n  a:\n    strategy:\n      matrix:\n        $codeql-languages-matrix\n    runs-on: x\n    steps:\n      - run: true\n", "placeholder", workflow.Pos{Line: 6, Col: 9}},
		{"key that is overlooked", "on:\n  push:\n    branch: main\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: true\n", "unexpected-key",
			workflow.Pos{Line: 3, Col: 5}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := Source("x.yml", []byte(tt.src), Options{})
			if r.ExitCode() != 0 {
				t.Fatalf("advice changed the exit code: %v", r.Diagnostics)
			}
			if tt.rule == "" {
				if len(r.Diagnostics) > 0 {
					t.Fatalf("got %v, want nothing", r.Diagnostics)
				}
				return
			}
			if len(r.Diagnostics) != 1 || r.Diagnostics[0].Rule != tt.rule || r.Diagnostics[0].Near != tt.pos {
				t.Fatalf("got %+v, want one of %s at %s", r.Diagnostics, tt.rule, tt.pos)
			}
			if r := Source("x.yml", []byte(tt.src), Options{NoAdvice: true}); len(r.Diagnostics) > 0 {
				t.Errorf("without advice: %v", r.Diagnostics)
			}
			if text := RuleText(tt.rule); strings.HasPrefix(text, "A rule of GitHub's") {
				t.Errorf("rule %s has no text", tt.rule)
			}
		})
	}
}

// A folder is read as GitHub reads it, and calls inside a repository are checked.
func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), ".github", "workflows")
	write := func(name, src string) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(src), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("caller.yml", "on: push\njobs:\n  a:\n    uses: ./.github/workflows/called.yaml\n    with: {nam: x}\n  b:\n    uses: ./.github/workflows/absent.yml\n")
	write("called.yaml", "on:\n  workflow_call:\n    inputs:\n      name: {type: string, required: true}\njobs:\n  a:\n    runs-on: x\n    steps: [{run: 'true'}]\n")
	write("deeper/not.yml", "nonsense")
	write("notes.txt", "nonsense")
	r, err := Files([]string{dir}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Files) != 2 {
		t.Errorf("read %v", r.Files)
	}
	var got []string
	for _, d := range r.Diagnostics {
		got = append(got, strings.TrimPrefix(d.String(), dir+string(filepath.Separator)))
	}
	want := []string{
		"caller.yml:4:11: Input name is required, but not provided while calling.",
		"caller.yml:5:17: Invalid input, nam is not defined in the referenced workflow.",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if _, err := Files([]string{filepath.Join(dir, "none.yml")}, Options{}); err == nil {
		t.Error("a file that is not there was read")
	}
	if _, err := Files([]string{t.TempDir()}, Options{}); err == nil {
		t.Error("an empty folder is not an error: nothing was checked")
	}
}

func FuzzSource(f *testing.F) {
	f.Add([]byte(broken))
	f.Fuzz(func(t *testing.T, src []byte) {
		r := Source("x.yml", src, Options{})
		for _, format := range Formats() {
			if err := r.Write(&bytes.Buffer{}, format); err != nil {
				t.Fatal(err)
			}
		}
		for _, d := range r.Diagnostics {
			if d.Message == "" || d.Rule == "" || d.File == "" {
				t.Fatalf("an empty diagnostic: %+v", d)
			}
		}
	})
}
