package history

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
)

const own = "api:ada"

func keeper(t *testing.T) *Keeper {
	t.Helper()
	st, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	l, err := learn.Open(t.Context(), st, learn.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &Keeper{Learn: l}
}

// does runs a command that ends with a code and prints.
func does(t *testing.T, m *Machine, c Command, code int, prints string) (Expectation, *ci.Explanation) {
	t.Helper()
	c.Repository, c.Door = own, "api"
	x := m.Begin(t.Context(), c)
	if x == nil {
		t.Fatalf("nothing is learned of %+v", c)
	}
	_, stderr := x.Tee(nil, io.Discard)
	io.WriteString(stderr, prints)
	return x.Expected, x.End(t.Context(), guest.Exit{Code: code, Duration: 2 * time.Second})
}

func shell(code string) Command { return Command{Language: "sh", Code: code} }

// TestTeaches runs what an agent runs: install, a test that fails for want of a
// module, what mends it, the test that passes.
func TestTeaches(t *testing.T) {
	k := keeper(t)
	var first, last Expectation
	for i := range 4 {
		m := k.Open(fmt.Sprint("m", i))
		does(t, m, shell("# set up\ngit clone x\n"), 0, "")
		e, why := does(t, m, shell("pytest   -q"), 1, "E   ModuleNotFoundError: No module named 'flask'\n")
		if i == 0 {
			first = e
		}
		last = e
		if why == nil || !strings.Contains(strings.Join(why.Lines, "\n"), "No module named 'flask'") || why.Seen != i {
			t.Fatalf("the failure in machine %d is explained by %+v", i, why)
		}
		if i > 0 && why.FixedBy != "pip install flask" {
			t.Errorf("what ended it is %q", why.FixedBy)
		}
		if i == 3 && (!strings.Contains(why.Lesson, "in 4 machines") || !strings.Contains(why.Lesson, "it last ended with pip install flask")) {
			t.Errorf("no lesson, or a wrong one: %q", why.Lesson)
		}
		does(t, m, shell("pip install flask"), 0, "")
		if _, why := does(t, m, shell("pytest -q"), 0, ""); why != nil {
			t.Errorf("a success is explained: %+v", why)
		}
	}
	if first.Command != "pytest -q" || first.Seen > 1 || last.Seen != 6 || last.PFail < first.PFail+.1 ||
		!strings.Contains(strings.Join(last.Reasons, "; "), "in this machine") || last.ExpectedMS < 1000 || last.ExpectedMS > 3000 {
		t.Errorf("expected %+v at first, %+v at last", first, last)
	}
	ctx := t.Context()
	f, err := k.Learn.PredictCommand(ctx, "", "pytest -q")
	if err != nil || f.Seen != 8 || len(f.Failures) != 1 {
		t.Errorf("%+v %v", f, err)
	}
	next, err := k.Learn.Next(ctx, own, 1, "pip install flask")
	if err != nil || len(next) != 1 || next[0].Name != "pytest -q" {
		t.Errorf("after pip install comes %+v %v", next, err)
	}
	counts, err := k.Learn.Count(ctx, own)
	if err != nil || counts[0].Successes != 12 || counts[0].Failures != 4 || counts[0].SuccessPatterns != 3 ||
		counts[0].FailurePatterns != 1 || counts[0].Lessons != 1 {
		t.Errorf("%+v %v", counts, err)
	}
	r, err := k.Learn.Report(ctx, own)
	if err != nil || r.Steps.N != 16 || r.Steps.Failed != 4 {
		t.Errorf("%+v %v", r.Steps, err)
	}
	if other, _ := k.Learn.Count(ctx, "api:bob"); len(other) != 1 || other[0] != (learn.Counts{}) {
		t.Errorf("another is told %+v", other)
	}
}

// TestAgain tells what changed between a failure and its end: nothing, the command,
// a file, the machine.
func TestAgain(t *testing.T) {
	k := keeper(t)
	m := k.Open("m")
	const flaky = "curl: (28) Connection timed out after 3000 ms\n"
	for range 3 {
		does(t, m, shell("make get"), 1, flaky)
		does(t, m, shell("make get"), 0, "")
	}
	if _, why := does(t, m, shell("make get"), 1, flaky); !why.Flaky || why.FixedBy != "" {
		t.Errorf("passed each time on another attempt: %+v", why)
	}
	does(t, m, shell("cat >a <<E\nx = (\nE\npython3 a"), 1, "SyntaxError: '(' was never closed\n")
	does(t, m, shell("cat >a <<E\nx = ()\nE\npython3 a"), 0, "")
	if _, why := does(t, m, shell("cat >a <<E\nx = ((\nE\npython3 a"), 1, "SyntaxError: '(' was never closed\n"); why.Flaky ||
		why.FixedBy != "a change of the command itself" {
		t.Errorf("%+v", why)
	}
	does(t, m, shell("./x"), 1, "bash: ./x: No such file or directory\n")
	m.Changed("files copied into the machine")
	does(t, m, shell("./x"), 0, "")
	if _, why := does(t, m, shell("./x"), 1, "bash: ./x: No such file or directory\n"); why.FixedBy != "files copied into the machine" {
		t.Errorf("%+v", why)
	}
}

func TestNothingIsLearned(t *testing.T) {
	k := keeper(t)
	m := k.Open("m")
	x := m.Begin(t.Context(), shell("true"))
	if why := x.End(t.Context(), guest.Exit{Cancelled: true}); why != nil {
		t.Error(why)
	}
	for _, c := range []Command{shell("# nothing\n"), shell("echo " + strings.Repeat("x", maxText)), {
		Argv: []string{""}, Env: []string{"A_TOKEN=" + strings.Repeat("x", 70<<10)}}} {
		if x := m.Begin(t.Context(), c); x != nil {
			t.Errorf("%.40q is learned from", x.Expected.Command)
		}
	}
	if n, _ := k.Learn.Count(t.Context(), ""); n[0] != (learn.Counts{}) {
		t.Errorf("%+v", n)
	}
	var none *Keeper
	if x := none.Open("m").Begin(t.Context(), shell("true")); x != nil || x.End(t.Context(), guest.Exit{}) != nil {
		t.Error("without a keeper something is learned")
	}
	none.Open("m").Changed("x")
	off, err := learn.Open(t.Context(), nil, learn.Options{Mode: learn.Off})
	if err != nil || (&Keeper{Learn: off}).Open("m") != nil {
		t.Error("learning is off, and there is a history")
	}
	done, cancel := context.WithCancel(t.Context())
	cancel() // the client has gone: what it ran has ended all the same
	y := m.Begin(done, Command{Language: "sh", Code: "false", Repository: own, Door: "api"})
	if why := y.End(done, guest.Exit{Code: 1}); why == nil {
		t.Error("not explained")
	}
}

func TestWords(t *testing.T) {
	for _, c := range []struct {
		c         Command
		want, job string
	}{
		{Command{Argv: []string{"npm", "test"}}, "npm test", "shell"},
		{Command{Argv: []string{"bash", "-ec", "npm  test # all"}}, "npm test # all", "shell"},
		{Command{Argv: []string{"grep", "a b", "it's"}}, `grep 'a b' 'it'\''s'`, "shell"},
		{shell("set -e\nA=1 sudo make\n"), "make", "shell"},
		{shell("cat > x <<'EOF'\nprivate text\nEOF\ncat <<-E >y\n\tmore\n\tE\nls"), "cat > x <<'EOF'; cat <<-E >y; ls", "shell"},
		{shell(`git commit -m "what nobody else should read of this repository"`), `git commit -m "…"`, "shell"},
	} {
		set, err := c.c.secrets()
		if err != nil {
			t.Fatal(err)
		}
		if got, job := c.c.words(set); got != c.want || job != c.job {
			t.Errorf("%+v: %q in %s, want %q", c.c, got, job, c.want)
		}
	}
	program := func(lang, code string) string {
		c := Command{Language: lang, Code: code}
		set, _ := c.secrets()
		w, job := c.words(set)
		if job != lang {
			t.Errorf("%s is run by %s", lang, job)
		}
		return w
	}
	py := program("python3", "import os.path\nfrom flask import Flask\nname = 'Ada Lovelace'\n")
	if !strings.HasPrefix(py, "python3 program ") || !strings.HasSuffix(py, " with flask, os.path") {
		t.Error(py)
	}
	if py == program("python3", "import os.path\nfrom flask import Flask\nname = 'Bob'\n") ||
		py != program("python3", "import os.path\nfrom flask import Flask\n\nname = 'Ada Lovelace'") {
		t.Error("two programs are one, or one is two")
	}
	if js := program("node", `const fs = require("node:fs"); import x from 'left-pad'`); !strings.HasSuffix(js, " with left-pad, node:fs") {
		t.Error(js)
	}
}

func TestTailIsWholeLines(t *testing.T) {
	var tl tail
	w := tl.tee(nil)
	for i := range 20_000 {
		fmt.Fprintf(w, "line %d\n", i)
	}
	text := tl.text()
	if len(text) > keepOutput || !strings.HasPrefix(text, "line ") || !strings.HasSuffix(text, "line 19999\n") {
		t.Errorf("%d bytes, %.20q", len(text), text)
	}
	var one tail
	one.tee(nil).Write([]byte(strings.Repeat("x", 3*keepOutput)))
	if text := one.text(); text != "" {
		t.Errorf("%d bytes of a line whose beginning is gone", len(text))
	}
}

// BenchmarkCommand is what learning adds to a command that passes, and to one that fails.
func BenchmarkCommand(b *testing.B) {
	for _, code := range []int{0, 1} {
		b.Run(fmt.Sprint("exit ", code), func(b *testing.B) {
			st, err := store.Open(b.Context(), b.TempDir()+"/hearth.db")
			if err != nil {
				b.Fatal(err)
			}
			defer st.Close()
			l, err := learn.Open(b.Context(), st, learn.Options{})
			if err != nil {
				b.Fatal(err)
			}
			m := (&Keeper{Learn: l}).Open("m")
			for b.Loop() {
				x := m.Begin(b.Context(), Command{Repository: own, Door: "api", Language: "sh", Code: "npm test"})
				_, stderr := x.Tee(nil, nil)
				io.WriteString(stderr, "Error: expected 3, got 4\n")
				x.End(b.Context(), guest.Exit{Code: code, Duration: time.Second})
			}
		})
	}
}

// TestPlace: where in its machine's history a command is, and that the history is bounded.
func TestPlace(t *testing.T) {
	k := keeper(t)
	m := k.Open("m")
	at := func(c Command, attempt int, since ...string) {
		t.Helper()
		x := m.Begin(t.Context(), c)
		if x.run.Attempt != attempt || !slices.Equal(x.run.Since, since) {
			t.Errorf("attempt %d since %q, want %d since %q", x.run.Attempt, x.run.Since, attempt, since)
		}
	}
	at(shell("make"), 1)
	does(t, m, shell("ls"), 0, "")
	at(shell("make"), 1)
	does(t, m, shell("make"), 1, "")
	at(shell("make"), 2)
	does(t, m, shell("make"), 1, "")
	at(shell("make"), 3)
	at(shell("A=1 make"), 1, "a change of the command itself")
	does(t, m, shell("ls"), 0, "")
	at(shell("make"), 1, "ls")
	does(t, m, shell("make"), 0, "")
	at(shell("make"), 1) // it has passed: what failed is over
	for i := range 2 * maxFailing {
		does(t, m, shell(fmt.Sprint("x", i)), 1, "")
	}
	if len(m.ended) != 8 || len(m.failing) != maxFailing || len(m.before) != 8 {
		t.Errorf("%d ended, %d failing, %d before", len(m.ended), len(m.failing), len(m.before))
	}
}

// TestOutput goes where it would have gone, and both streams are looked at.
func TestOutput(t *testing.T) {
	k := keeper(t)
	x := k.Open("m").Begin(t.Context(), Command{Repository: own, Door: "api", Language: "sh", Code: "x"})
	var stdout, stderr strings.Builder
	o, e := x.Tee(&stdout, &stderr)
	io.WriteString(o, "one\ntwo\n")
	io.WriteString(e, "three")
	if stdout.String() != "one\ntwo\n" || stderr.String() != "three" || !slices.Equal(x.lines(), []string{"one", "two", "three"}) {
		t.Errorf("%q %q %q", stdout.String(), stderr.String(), x.lines())
	}
	why := x.End(t.Context(), guest.Exit{Code: -1, TimedOut: true, Duration: time.Hour})
	if why == nil {
		t.Error("a command that took too long is not explained")
	}
	counts, _ := k.Learn.Count(t.Context(), own)
	f, _ := k.Learn.PredictCommand(t.Context(), own, "x")
	if counts[0].Failures != 1 || f.ExpectedMS != 0 {
		t.Errorf("%+v, and the next is expected to take %d ms: its time-out's", counts[0], f.ExpectedMS)
	}
	// An agent that does not say how long it took.
	y := k.Open("n").Begin(t.Context(), Command{Repository: own, Door: "api", Language: "sh", Code: "y"})
	time.Sleep(20 * time.Millisecond)
	y.End(t.Context(), guest.Exit{})
	if f, _ = k.Learn.PredictCommand(t.Context(), own, "y"); f.ExpectedMS < 15 || f.ExpectedMS > 20_000 {
		t.Errorf("%d ms are expected of what slept for 20", f.ExpectedMS)
	}
}
