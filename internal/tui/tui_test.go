package tui

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
)

func records() []ci.Record {
	t0 := time.Unix(1_700_000_000, 0)
	at := func(s int, r ci.Record) ci.Record {
		r.Time = t0.Add(time.Duration(s) * time.Second)
		r.Run = "r1"
		return r
	}
	return []ci.Record{
		at(0, ci.Record{Type: ci.RunPlanned, Workflow: "ci", Event: "push", Jobs: 2}),
		at(0, ci.Record{Type: ci.RunStarted, Workflow: "ci"}),
		at(0, ci.Record{Type: ci.JobQueued, Job: "a", JobKey: "a", Name: "a"}),
		at(0, ci.Record{Type: ci.JobQueued, Job: "b", JobKey: "b", Name: "b", Needs: []string{"a"}}),
		at(1, ci.Record{Type: ci.JobStarted, Job: "a", JobKey: "a", Name: "a"}),
		at(1, ci.Record{Type: ci.StepStarted, Job: "a", JobKey: "a", Step: 1, Name: "Run make"}),
		at(2, ci.Record{Type: ci.LogLine, Job: "a", JobKey: "a", Step: 1, Stream: "stdout", Text: "\x1b]0;owned\x07\x1b[31mred\x1b[0m line\r"}),
		at(3, ci.Record{Type: ci.StepFinished, Job: "a", JobKey: "a", Step: 1, Name: "Run make", Outcome: ci.Failure, Conclusion: ci.Failure, ExitCode: new(2),
			DurationMS: new(int64(2000))}),
		at(3, ci.Record{Type: ci.JobFinished, Job: "a", JobKey: "a", Name: "a", Conclusion: ci.Failure, DurationMS: new(int64(2100))}),
		at(3, ci.Record{Type: ci.JobFinished, Job: "b", JobKey: "b", Name: "b", Conclusion: ci.Skipped, Reason: "needs a"}),
		at(4, ci.Record{Type: ci.RunFinished, Conclusion: ci.Failure}),
	}
}

func TestPlain(t *testing.T) {
	var out bytes.Buffer
	p := NewPlain(&out, false)
	for _, r := range records() {
		p.Emit(r)
	}
	p.Close()
	s := out.String()
	for _, want := range []string{
		"ci: 2 jobs on push", "[a]   red line\n", "✗ Run make: failure in 2.0 s: exit code 2",
		"step 1, Run make: exit code 2", "skipped        (needs a)", "run r1: failure in 4.0 s",
	} {
		if !strings.Contains(s, want) {
			t.Errorf("no %q in:\n%s", want, s)
		}
	}
	if strings.ContainsAny(s, "\x1b\x07\r") {
		t.Errorf("control characters of the machine reached the terminal: %q", s)
	}
}

func TestNothingRedReadsGreen(t *testing.T) {
	for _, c := range []struct {
		c     ci.Conclusion
		infra bool
	}{{ci.Failure, false}, {ci.Success, true}, {"", false}, {ci.TimedOut, false}, {ci.Cancelled, false}} {
		if sign, _ := board.Mark(ci.Completed, c.c, c.infra); sign == "✓" {
			t.Errorf("%+v is shown as a success", c)
		}
	}
}

func TestAllowedFailureIsNoSuccess(t *testing.T) {
	rec := ci.Record{Type: ci.StepFinished, Job: "a", JobKey: "a", Step: 1, Name: "x", Outcome: ci.Failure, Conclusion: ci.Success, ExitCode: new(int)}
	var b board.Board
	b.Apply(ci.Record{Type: ci.JobStarted, Job: "a", JobKey: "a", Name: "a"})
	b.Apply(rec)
	all := append(lines(&b, rec, false), Tree(&b, 80, 20, time.Now())...)
	for _, l := range all {
		if strings.Contains(l, "✓") {
			t.Errorf("a step that failed looks like a success: %s", l)
		}
	}
	if !strings.Contains(strings.Join(all, "\n"), "failed, allowed") {
		t.Errorf("the failure is not said: %q", all)
	}
}

func TestTreeKeepsItsSize(t *testing.T) {
	var b board.Board
	for i := range 40 {
		key := fmt.Sprintf("job %d %s", i, strings.Repeat("w", 100))
		b.Apply(ci.Record{Type: ci.JobQueued, Job: "j", JobKey: key, Name: key})
	}
	lines := Tree(&b, 60, 12, time.Now())
	if len(lines) > 12 {
		t.Errorf("%d lines", len(lines))
	}
	for _, l := range lines {
		if utf8.RuneCountInString(l) > 60 {
			t.Errorf("%d runes: %s", utf8.RuneCountInString(l), l)
		}
	}
	if last := lines[len(lines)-1]; !strings.Contains(last, "40 jobs in all") {
		t.Errorf("the jobs that do not fit are not counted: %s", last)
	}
}

func TestJSONIsNothingButRecords(t *testing.T) {
	var out bytes.Buffer
	j := NewJSON(&out)
	for _, r := range records() {
		j.Emit(r)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	seq := int64(0)
	for line := range strings.Lines(out.String()) {
		var r ci.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		if r.V != 1 || r.Seq != seq+1 || r.Type == "" || r.Time.IsZero() {
			t.Errorf("record %+v after %d", r, seq)
		}
		seq = r.Seq
	}
	if int(seq) != len(records()) {
		t.Errorf("%d records out of %d", seq, len(records()))
	}
}

func TestLiveEnds(t *testing.T) {
	var out bytes.Buffer
	l := NewLive(&out)
	for _, r := range records() {
		l.Emit(r)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "run r1: failure") {
		t.Errorf("no summary in %q", out.String())
	}
}
