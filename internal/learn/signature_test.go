package learn

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"\x1b[31merror\x1b[0m: bad\r\n":                       "error: bad",
		"10%\r 50%\r100% done":                                "100% done",
		"2024-05-01T10:11:12.1234567Z error: x":               "error: x",
		"\x1b]8;;http://x\x07link\x1b]8;;\x07 here":           "link here",
		"section_start:165:get_sources\r\x1b[0KGetting":       "Getting",
		"##[group]Run make":                                   "Run make",
		"2024 was a year":                                     "2024 was a year",
		"section_end:1657842569:x\r[0Ksection_start:1:y\r[0K": "",
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestMask(t *testing.T) {
	for in, want := range map[string]string{
		"GET https://a.b/c?d=1 returned 503":               "GET <url> returned 503",
		"curl: (22) The requested URL returned error: 404": "curl: (<num>) The requested URL returned error: 404",
		"error: 5 vulnerabilities found!":                  "error: <num> vulnerabilities found!",
		"exit code 137 after 12.5s, 4096 bytes":            "exit code 137 after <dur>, <size>",
		"at /home/runner/work/x/x/src/main.rs:41:9":        "at main.rs:<num>:<num>",
		"commit 9fceb02d0ae598e95dc970b74767f19372d61af8":  "commit <hex>",
		"id 123e4567-e89b-12d3-a456-426614174000":          "id <uuid>",
		"dial 10.1.2.3:443":                                "dial <ip>",
		"error[E0425]: cannot find x":                      "error[E0425]: cannot find x",
		"test parser::test_7 ... FAILED":                   "test parser::test_7 ... FAILED",
		"12 passed; 1 failed; finished in 0.35s":           "<num> passed; <num> failed; finished in <dur>",
		"killed by signal 9":                               "killed by signal 9",
		`C:\Users\x\y.cs(3,4): error CS0103`:               "y.cs(<num>): error CS0103",
	} {
		if got := Mask(in); got != want {
			t.Errorf("Mask(%q)\n got %q\nwant %q", in, got, want)
		}
	}
}

func TestExtract(t *testing.T) {
	x := NewExtractor()
	for _, c := range []struct {
		name, log, line string
		class           Class
	}{
		{"go test", "=== RUN TestA\n    a_test.go:12: got 3, want 4\n--- FAIL: TestA (0.01s)\nFAIL\tx/y\t0.5s\nFAIL", "--- FAIL: TestA (0.01s)", ClassAssert},
		{"rust compile", "   Compiling a v0.1.0\nerror[E0308]: mismatched types\n --> src/lib.rs:3:5\nerror: aborting due to 1 previous error\nerror: could not compile `a`", "error[E0308]: mismatched types", ClassCompile},
		{"gcc", "gcc -c a.c\na.c:3:5: error: expected ';' before '}' token\nmake: *** [Makefile:4: a.o] Error 1", "a.c:3:5: error: expected ';' before '}' token",
			ClassCompile},
		{"python", "Traceback (most recent call last):\n  File \"a.py\", line 1\nModuleNotFoundError: No module named 'numpy'\nError: Process completed with exit code 1.", "ModuleNotFoundError: No module named 'numpy'", ClassMissing},
		{"dns", "Cloning...\nfatal: unable to access 'https://x/': Could not resolve host: x\nError: Process completed with exit code 128.",
			"fatal: unable to access 'https://x/': Could not resolve host: x", ClassDNS},
		{"disk", "writing\nwrite /tmp/x: no space left on device\nbuild failed", "write /tmp/x: no space left on device", ClassDisk},
		{"pytest", "tests/test_a.py F\n=== FAILURES ===\nE   AssertionError: assert 1 == 2\nFAILED tests/test_a.py::test_a - AssertionError: assert 1 == 2\n=== 1 failed, 3 passed in 0.12s ===", "FAILED tests/test_a.py::test_a - AssertionError: assert 1 == 2", ClassAssert},
		{"nothing", "\n\n", "", ClassOther},
		{"a warning is survived", "warning: network error: connection reset (1 try left)\nok so far\na.go:1:2: undefined: x", "a.go:1:2: undefined: x",
			ClassCompile},
	} {
		sig := x.Extract(strings.Split(c.log, "\n"), nil, "test")
		if c.class != "" && (sig.Line != c.line || sig.Class != c.class) {
			t.Errorf("%s: %s %q, want %s %q", c.name, sig.Class, sig.Line, c.class, c.line)
		}
		if sig.ID == "" || sig.Text == "" {
			t.Errorf("%s: %+v", c.name, sig)
		}
	}
}

// TestLogDiff: a line that green runs print too is not why it failed.
func TestLogDiff(t *testing.T) {
	x := NewExtractor()
	green := []string{"starting", "ERROR: cache not found, going on (took 12s)", "done in 3s"}
	g := Greens{}
	for range 3 {
		g.Add(green)
	}
	bad := []string{"starting", "ERROR: cache not found, going on (took 99s)", "the frobnicator is out of widgets", "done in 4s"}
	if sig := x.Extract(bad, g, "run"); sig.Line != "the frobnicator is out of widgets" {
		t.Errorf("with green logs: %q", sig.Line)
	}
	if sig := x.Extract(bad, nil, "run"); !strings.HasPrefix(sig.Line, "ERROR: cache") {
		t.Errorf("without: %q", sig.Line)
	}
}

func TestSameFailureSameSignature(t *testing.T) {
	x := NewExtractor()
	tmpl := NewTemplates(0)
	log := func(n int) []string {
		return strings.Split(fmt.Sprintf("building %d\nerror: connection to 10.0.0.%d:5432 refused after %d.5s (request %08x-0000-4000-8000-000000000000)\nbye",
			n, n%250, n, n), "\n")
	}
	a, b := x.Extract(log(3), nil, "run"), x.Extract(log(99), nil, "run")
	if a.ID != b.ID || a.Sketch.Like(b.Sketch) < .7 {
		t.Errorf("%q %q", a.Text, b.Text)
	}
	if ParseSketch(a.Sketch.String()) != a.Sketch {
		t.Error("a sketch does not survive its text")
	}
	id1, _ := tmpl.Match("o/r", "cannot find module lodash in registry", "run")
	id2, text := tmpl.Match("o/r", "cannot find module express in registry", "run")
	id3, _ := tmpl.Match("o/r", "segmentation fault in worker", "run")
	if id1 != id2 || text != "cannot find module <*> in registry" || id3 == id1 {
		t.Errorf("%s %s %s %q", id1, id2, id3, text)
	}
	if id4, _ := tmpl.Match("o/r", "cannot find module lodash in registry", "test"); id4 == id1 {
		t.Error("the kind of step does not count")
	}
}

func TestTemplatesBounded(t *testing.T) {
	tmpl := NewTemplates(50)
	for i := range 2000 {
		tmpl.Match("o/r", strings.Repeat(fmt.Sprint("w", i, " "), 1+i%9), "x")
	}
	n := 0
	for _, g := range tmpl.groups {
		n += len(g)
	}
	if len(tmpl.byID) > 50 || n != len(tmpl.byID) {
		t.Errorf("%d templates, %d in groups", len(tmpl.byID), n)
	}
}

func TestHugeLog(t *testing.T) {
	x := NewExtractor()
	lines := make([]string, 20_000)
	for i := range lines {
		lines[i] = strings.Repeat("error: x ", 200)
	}
	lines = append(lines, strings.Repeat("\xff", 1<<20), "fatal error: all goroutines are asleep")
	if sig := x.Extract(lines, nil, "test"); sig.Line != "fatal error: all goroutines are asleep" || len(sig.Text) > 400 {
		t.Errorf("%.80q", sig.Line)
	}
}

func FuzzExtract(f *testing.F) {
	f.Add("error: x\n\x1b[0m\r", "ok")
	f.Add("thread 'é' panicked at\xff", "2024-01-01T00:00:00Z [")
	f.Add("exit code 1", "a/b/c://x")
	x := NewExtractor()
	f.Fuzz(func(t *testing.T, log, green string) {
		if len(log)+len(green) > 1<<14 {
			return
		}
		g := Greens{}
		g.Add(strings.Split(green, "\n"))
		sig := x.Extract(strings.Split(log, "\n"), g, "test")
		if sig.ID == "" || len(sig.Text) > 320 || utf8.ValidString(log) && !utf8.ValidString(sig.Text) {
			t.Fatalf("%+v", sig)
		}
		FlakeTokens(strings.Split(log, "\n"))
	})
}

// TestBlocks: which lines are shown of a failure. The first line of each is what the
// signature is made of, where no other is marked with >.
func TestBlocks(t *testing.T) {
	x := NewExtractor()
	for _, c := range []struct{ name, log string }{
		{"go test", `
=== RUN   TestA
=== RUN   TestB
|--- FAIL: TestA (0.01s)
|    a_test.go:12: got 3, want 4
|    a_test.go:13: and more
--- PASS: TestB (0.00s)
FAIL
##[error]Process completed with exit code 1.`},
		{"a traceback, its cause and what it says", `
setting up
|Traceback (most recent call last):
|  File "a.py", line 3, in load
|    return d["x"]
|KeyError: 'x'
|
|During handling of the above exception, another exception occurred:
|
|Traceback (most recent call last):
|  File "a.py", line 9, in <module>
|    load()
|>settings.LoadError: no x in the settings
|  and none in the defaults

##[error]Process completed with exit code 1.`},
		{"what the program printed meanwhile stands in a traceback", `
|Traceback (most recent call last):
|working on 3 of 4
|  File "a.py", line 3, in load
|    raise ValueError("bad")
|>ValueError: bad
bye`},
		{"one test of several", `
=========== FAILURES ===========
|____________ test_a ____________
|
|    def test_a():
|>>      assert f() == 2
|E       assert 1 == 2
|
|tests/test_a.py:4: AssertionError
____________ test_b ____________
=========== 2 failed in 0.1s ===========`},
		{"Gradle", `
> Task :compileJava FAILED

FAILURE: Build failed with an exception.

|* What went wrong:
|>Execution failed for task ':compileJava'.
|Compilation failed; see the compiler error output for details.
|
|* Try:
> Run with --stacktrace option to get the stack trace.`},
		{"rustc", `
   Compiling a v0.1.0
|error[E0308]: mismatched types
| --> src/lib.rs:3:5
|  |
|3 |     "x"
|  |     ^^^ expected i32, found &str

error: could not compile ` + "`a`" + ` (lib) due to 1 previous error`},
		{"the cause of a cause", `
+ tool sync
|error: cannot fetch https://x/y.json
|  Caused by: client error (Connect)
|  Caused by: dns error
+ exit`},
		{"the last of several attempts", `
##[error]fatal: couldn't find remote ref refs/tags/v1
waiting 10 seconds
|##[error]fatal: couldn't find remote ref refs/tags/v1
##[error]The process '/usr/bin/git' failed with exit code 128
Post job cleanup.`},
		{"nobody says error", `
building
|step 1
|step 2
|the tree is too large
|the most is 2000 lines
|ask a maintainer to
|>split it
##[error]Process completed with exit code 1.
##[group]Run cleanup
ok
ok again`},
	} {
		var lines []string
		from, to, head := -1, 0, -1
		for i, l := range strings.Split(strings.TrimPrefix(c.log, "\n"), "\n") {
			if rest, ok := strings.CutPrefix(l, "|"); ok {
				if from < 0 {
					from = i
				}
				to = i + 1
				if r, ok := strings.CutPrefix(rest, ">"); ok {
					if rest = r; !strings.HasPrefix(r, ">") {
						head = i
					}
				}
				l = rest
			}
			lines = append(lines, l)
		}
		if head < 0 {
			head = from
		}
		sig := x.Extract(lines, nil, "")
		if sig.From != from || sig.To != to || sig.Head != head || sig.Line != strings.TrimRight(lines[head], " ") {
			t.Errorf("%s: lines %d to %d, %d of them (%q); want %d to %d, %d", c.name, sig.From, sig.To, sig.Head, sig.Line, from, to, head)
		}
		// Where it stands in a longer log changes nothing.
		long := append(slices.Repeat([]string{"fine", ""}, maxLines), lines...)
		if sig := x.Extract(long, nil, ""); c.name != "nobody says error" &&
			(sig.From != from+2*maxLines || sig.To != to+2*maxLines || sig.Head != head+2*maxLines) {
			t.Errorf("%s, in a long log: %d to %d, %d", c.name, sig.From-2*maxLines, sig.To-2*maxLines, sig.Head-2*maxLines)
		}
	}
}

// Two exceptions are two failures.
func TestExceptionsAreTold(t *testing.T) {
	x := NewExtractor()
	log := func(e string) []string {
		return []string{"Traceback (most recent call last):", `  File "a.py", line 3, in <module>`, "    main()", e}
	}
	a, b := x.Extract(log("KeyError: 'x'"), nil, "test"), x.Extract(log("ValueError: no number"), nil, "test")
	if a.ID == b.ID || a.Text != "KeyError: 'x'" || b.Text != "ValueError: no number" {
		t.Errorf("%q and %q are %s and %s", a.Text, b.Text, a.ID, b.ID)
	}
	// What another tool calls the trouble is known inside a traceback too.
	if sig := x.Extract(log("requests.exceptions.ConnectionError: Connection refused"), nil, "test"); sig.Class != ClassNetwork {
		t.Errorf("%s %q", sig.Class, sig.Line)
	}
}

// TestEvalBlocks holds what is shown to what a person marked.
func TestEvalBlocks(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a.log", "one\na.go:1:2: undefined: x\n\nthree\n")
	write("a.gold", "2 2\n")
	write("b.log", "error: in b\nx\nx\nx\n")
	write("b.gold", "4 4\n")
	write("c.log", "not marked\n")
	var out strings.Builder
	r, err := EvalBlocks(t.Context(), dir, &out)
	if err != nil || r.Hearth.Logs != 2 || r.Hearth.Exact != 1 || r.Hearth.Within != 2 || r.LastTen.Exact != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	// 2 marked, 1 + 4 shown, 2 of them marked.
	if want := 2 * 2. / (2 + 5); math.Abs(r.Hearth.F1-want) > 1e-9 || r.Hearth.Low > want || r.Hearth.High < want {
		t.Errorf("F1 %.4f (%.4f–%.4f), want %.4f", r.Hearth.F1, r.Hearth.Low, r.Hearth.High, want)
	}
	if out.String() != "file,start,end\na.log,2,2\nb.log,1,4\n" {
		t.Errorf("%q", out.String())
	}
	write("b.gold", "4 3\n")
	if _, err := EvalBlocks(t.Context(), dir, nil); err == nil || !strings.Contains(err.Error(), "b.gold") {
		t.Errorf("%v", err)
	}
	if _, err := EvalBlocks(t.Context(), t.TempDir(), nil); err == nil {
		t.Error("an empty directory has figures")
	}
	r, err = EvalBlocks(t.Context(), filepath.Join(dataDir(t), "lines", "pytorch"), nil)
	if err != nil || r.Hearth.Exact < 26 || r.Hearth.Within < 32 {
		t.Errorf("of 41 public logs: %+v, %v", r.Hearth, err)
	}
}

// A program that says in its last word why it ends is why, whatever was survived before.
func TestLastWord(t *testing.T) {
	x := NewExtractor()
	for lines, want := range map[string]string{
		"curl: (6) Could not resolve host: example.invalid\ncontinuing without\nsed: can't read config.txt: No such file or directory\n##[error]Process completed with exit code 2.": "sed: can't read config.txt: No such file or directory",
		"curl: (28) Connection timed out after 5001 milliseconds\nusing cache\ngrep: missing.txt: No such file or directory":                                                         "grep: missing.txt: No such file or directory",
		"curl: (6) Could not resolve host: x\nbash: line 3: foo: command not found":                                                                                                  "bash: line 3: foo: command not found",
		"curl: (6) Could not resolve host: x\ncat: /etc/nothing: Permission denied\n":                                                                                                "cat: /etc/nothing: Permission denied",
		"curl: (6) Could not resolve host: x\nmkdir: cannot create directory 'a': File exists\n##[error]Process completed with exit code 1.":                                         "mkdir: cannot create directory 'a': File exists",
		"fatal: unable to access 'https://x/': Could not resolve host: x\nmv: missing destination file operand after 'a'\nTry 'mv --help' for more information.":                     "mv: missing destination file operand after 'a'",
		// It is the network that was the last to say something.
		"sed: can't read config.txt: No such file or directory\ncurl: (6) Could not resolve host: x":             "curl: (6) Could not resolve host: x",
		"rm: x: No such file or directory\nmain.c:3:1: error: expected ';'\nmake: *** [Makefile:3: all] Error 1": "main.c:3:1: error: expected ';'",
	} {
		if got := x.Extract(strings.Split(lines, "\n"), nil, "run").Line; got != want {
			t.Errorf("%q: %q", lines, got)
		}
	}
}
