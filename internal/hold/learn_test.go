package hold

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
)

// TestLearned has commands of one machine learned from over the socket: what is
// expected comes before the output, the explanation with the end.
func TestLearned(t *testing.T) {
	st, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	l, err := learn.Open(t.Context(), st, learn.Options{})
	if err != nil {
		t.Fatal(err)
	}
	opened := 0
	c, _, _, _ := heldBy(t, &Server{Keeper: func() *history.Keeper { opened++; return &history.Keeper{Learn: l} }})
	run(t, c, nil, "true")
	if opened != 0 {
		t.Error("the memory was opened for a command that nobody learns from")
	}
	file := t.TempDir() + "/there"
	look := func(secrets ...string) (expected history.Expectation, order string, why string) {
		t.Helper()
		var out bytes.Buffer
		end, e, err := c.ExecLearned(t.Context(), guest.Cmd{Argv: []string{"sh", "-c", "echo looked; cat " + file}, Stdout: &out, Stderr: &out},
			Learning{Repository: "local/vm", Secrets: secrets, Expected: func(e history.Expectation) { expected = e; out.WriteString("expected ") }})
		if err != nil {
			t.Fatal(err)
		}
		if (e == nil) != end.OK() {
			t.Fatalf("ended with %d, explained by %+v", end.Code, e)
		}
		if e != nil {
			why = fmt.Sprintf("%d %s %q", e.Seen, e.FixedBy, e.Lines)
		}
		return expected, out.String(), why
	}
	e, order, why := look()
	if !strings.HasPrefix(order, "expected looked\n") || !strings.HasPrefix(why, "0 ") || !strings.Contains(why, "there: No such file") ||
		e.Command != "echo looked; cat "+file {
		t.Errorf("%+v %q %s", e, order, why)
	}
	if _, _, err := c.ExecLearned(t.Context(), guest.Cmd{Argv: []string{"touch", file}}, Learning{Repository: "local/vm"}); err != nil {
		t.Fatal(err)
	}
	look()
	run(t, c, nil, "rm", file)
	if e, _, why = look(); !strings.HasPrefix(why, "1 touch "+file) || e.Seen != 2 {
		t.Errorf("%+v %s", e, why)
	}
	if e, _, why = look(file); strings.Contains(why+e.Command, file) {
		t.Errorf("a secret is told: %+v %s", e, why)
	}
	var f *Fault
	if _, _, err := c.ExecLearned(t.Context(), guest.Cmd{Argv: []string{"nosuchprogram"}}, Learning{Repository: "local/vm"}); !errors.As(err, &f) || !f.Start() {
		t.Error(err)
	}
	counts, err := l.Count(t.Context(), "local/vm")
	if err != nil || counts[0].Successes != 2 || counts[0].Failures != 3 || opened != 1 {
		t.Errorf("%+v %v, opened %d times", counts, err, opened)
	}
}
