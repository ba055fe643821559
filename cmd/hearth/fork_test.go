package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
)

// What copies that ran the same came to is said for each script by itself, and a
// copy that could not be begun says nothing of it.
func TestForksAreJudged(t *testing.T) {
	for _, c := range []struct {
		name   string
		copies []forked
		want   string // after the table
		code   int
	}{
		{"mixed", []forked{{Conclusion: ci.Success}, {Conclusion: ci.Failure}, {Conclusion: ci.Success}}, "1 of 3 failed from the same moment: flaky\n", exitFailed},
		{"green", []forked{{Conclusion: ci.Success}, {Conclusion: ci.Success}}, "all 2 succeeded\n", 0},
		{"red", []forked{{Conclusion: ci.Failure}, {Conclusion: ci.TimedOut}}, "all 2 failed\n", exitFailed},
		{"one each", []forked{{Script: "a", Conclusion: ci.Success}, {Script: "b", Conclusion: ci.Failure}}, "", exitFailed},
		{"two scripts", []forked{{Script: "a", Conclusion: ci.Success}, {Script: "b", Conclusion: ci.Failure}, {Script: "a", Conclusion: ci.Failure},
			{Script: "b", Conclusion: ci.Failure}}, "a: 1 of 2 failed from the same moment: flaky\nb: all 2 failed\n", exitFailed},
		{"lost", []forked{{Conclusion: ci.Success}, {Conclusion: ci.Failure, Error: "no room"}, {Conclusion: ci.Success}}, "all 2 succeeded\n", exitInfrastructure},
	} {
		var out bytes.Buffer
		a := &app{out: &out}
		err := a.printForks(c.copies, false)
		lines := strings.SplitAfterN(out.String(), "\n", len(c.copies)+2)
		if got := lines[len(lines)-1]; got != c.want {
			t.Errorf("%s: it says %q, want %q", c.name, got, c.want)
		}
		code := 0
		if e, ok := err.(*exit); ok {
			code = e.code
		} else if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if code != c.code {
			t.Errorf("%s: exit %d, want %d", c.name, code, c.code)
		}
	}
}

// The last line that is not blank, its beginning, however it is written.
func TestLastLine(t *testing.T) {
	for _, c := range []struct {
		writes []string
		want   string
	}{
		{nil, ""},
		{[]string{"a\nb\n\n  \n"}, "b"},
		{[]string{"a\nb", "c"}, "bc"},
		{[]string{"10%\r20%\r\n"}, "20%"},
		{[]string{strings.Repeat("x", 1<<20), "\n"}, strings.Repeat("x", maxLast)},
	} {
		l := &lastLine{}
		for _, w := range c.writes {
			l.Write([]byte(w))
		}
		if got := l.String(); got != c.want {
			t.Errorf("%.20q: %q, want %q", c.writes, got, c.want)
		}
	}
}
