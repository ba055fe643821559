package learn

import (
	"fmt"
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
		{"gcc", "gcc -c a.c\na.c:3:5: error: expected ';' before '}' token\nmake: *** [Makefile:4: a.o] Error 1", "a.c:3:5: error: expected ';' before '}' token", ClassCompile},
		{"python", "Traceback (most recent call last):\n  File \"a.py\", line 1\nModuleNotFoundError: No module named 'numpy'\nError: Process completed with exit code 1.", "", ""},
		{"dns", "Cloning...\nfatal: unable to access 'https://x/': Could not resolve host: x\nError: Process completed with exit code 128.", "fatal: unable to access 'https://x/': Could not resolve host: x", ClassDNS},
		{"disk", "writing\nwrite /tmp/x: no space left on device\nbuild failed", "write /tmp/x: no space left on device", ClassDisk},
		{"pytest", "tests/test_a.py F\n=== FAILURES ===\nE   AssertionError: assert 1 == 2\nFAILED tests/test_a.py::test_a - AssertionError: assert 1 == 2\n=== 1 failed, 3 passed in 0.12s ===", "FAILED tests/test_a.py::test_a - AssertionError: assert 1 == 2", ClassAssert},
		{"nothing", "\n\n", "", ClassOther},
		{"a warning is survived", "warning: network error: connection reset (1 try left)\nok so far\na.go:1:2: undefined: x", "a.go:1:2: undefined: x", ClassCompile},
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
		return strings.Split(fmt.Sprintf("building %d\nerror: connection to 10.0.0.%d:5432 refused after %d.5s (request %08x-0000-4000-8000-000000000000)\nbye", n, n%250, n, n), "\n")
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
