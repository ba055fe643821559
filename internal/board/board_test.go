package board_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
)

func TestMark(t *testing.T) {
	for _, c := range []struct {
		status ci.Status
		c      ci.Conclusion
		infra  bool
		want   string
	}{
		{ci.Queued, "", false, "· waiting"}, {"", "", false, "· waiting"}, {ci.InProgress, "", false, "▸ running"},
		{ci.Completed, ci.Success, false, "✓ success"}, {ci.Completed, ci.Failure, false, "✗ failure"}, {ci.Completed, ci.Cancelled, false, "■ cancelled"},
		{ci.Completed, ci.Skipped, false, "- skipped"}, {ci.Completed, ci.TimedOut, false, "⧖ timed out"}, {ci.Completed, ci.Neutral, false, "○ neutral"},
		{ci.Completed, ci.NotRun, false, "⊘ not run here"},
		{ci.Completed, "", false, "? unknown"},
		// What could not be run is never green, and what was cancelled stays that.
		{ci.Completed, ci.Success, true, "‼ could not run"}, {ci.Completed, ci.Failure, true, "‼ could not run"}, {ci.Completed, ci.Cancelled, true, "■ cancelled"},
	} {
		if sign, word := board.Mark(c.status, c.c, c.infra); sign+" "+word != c.want {
			t.Errorf("%s %s %v: %s %s, want %s", c.status, c.c, c.infra, sign, word, c.want)
		}
	}
	for want, s := range map[string]board.Step{
		"! failed, allowed": {Status: ci.Completed, Conclusion: ci.Success, Outcome: ci.Failure},
		"✓ success":         {Status: ci.Completed, Conclusion: ci.Success, Outcome: ci.Success},
		"‼ could not run":   {Status: ci.Completed, Conclusion: ci.Success, Outcome: ci.Failure, Infrastructure: true},
	} {
		if sign, word := s.Mark(); sign+" "+word != want {
			t.Errorf("%+v: %s %s, want %s", s, sign, word, want)
		}
	}
}

// A job that cannot run here is named with its reason and what to do, and the run
// says how much of it ran.
func TestNotRun(t *testing.T) {
	var b board.Board
	for _, r := range []ci.Record{
		{Type: ci.RunStarted, Run: "r"},
		{Type: ci.JobFinished, JobKey: "a", Name: "a", Conclusion: ci.Success},
		{Type: ci.JobFinished, JobKey: "w", Name: "w", Conclusion: ci.NotRun, Reason: "no Windows", Hint: "Run it on GitHub.", File: "ci.yml", Line: 4},
		{Type: ci.RunFinished, Run: "r", Conclusion: ci.Neutral, Ran: 1, Jobs: 2},
	} {
		b.Apply(r)
	}
	all := strings.Join(b.Summary(), "\n")
	for _, want := range []string{"⊘ w  not run here   (no Windows)\n    Run it on GitHub.", "run r: neutral, 1 of 2 jobs ran"} {
		if !strings.Contains(all, want) {
			t.Errorf("no word of %q:\n%s", want, all)
		}
	}
}

func TestExplain(t *testing.T) {
	for want, e := range map[string]ci.Explanation{
		"this failure: not seen before":                                      {},
		"this failure: seen before, once":                                    {Seen: 1},
		"this failure: seen before, 3 times":                                 {Seen: 3},
		"this failure: seen before, 3 times, last ended by 4f2a1c (mend it)": {Seen: 3, FixedBy: "4f2a1c", Fix: "mend it"},
		"this failure: seen before, once, last ended by 0123456789":          {Seen: 1, FixedBy: strings.Repeat("0123456789", 4)},
		"this failure: seen before, 2 times; looks flaky":                    {Seen: 2, Flaky: true},
		"this failure: not seen before|E: no such file|it comes back|run it again": {Text: "E: no such file", Lesson: "it comes back",
			Advice: "run it again"},
		"this failure: not seen before|Traceback:|KeyError: 'x'|run it again": {Text: "KeyError: <x>",
			Lines: []string{"Traceback:", "Key\x1b[1mError: 'x'"}, Advice: "run it again"},
		"this failure: seen before, 2 times, last ended by 4f2a1c; looks flaky|E: \tgone": {Seen: 2, FixedBy: "4f\x1b[1m2a1c", Flaky: true, Text: "E: \tgo\x00ne"},
	} {
		var got []string
		for _, l := range board.Explain(&e) {
			got = append(got, strings.TrimSpace(l))
		}
		if strings.Join(got, "|") != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestWords(t *testing.T) {
	for want, got := range map[string]string{
		"80 ms": board.Short(80 * time.Millisecond), "1.4 s": board.Short(1400 * time.Millisecond), "3 min 20 s": board.Short(200 * time.Second),
		"2 h 05 min": board.Short(2*time.Hour + 5*time.Minute), "0 ms": board.Short(-time.Second),
		"7 %": board.Percent(0.07), "<1 %": board.Percent(0.001), ">99 %": board.Percent(0.999), "0 %": board.Percent(0), "100 %": board.Percent(1),
		"ab…": board.Cut("abcd", 3), "abc": board.Cut("abc", 3), "": board.Cut("abc", 0) + board.Expectation(nil) + board.Expectation(&ci.Prediction{PFail: 1}),
		"about 2.0 s, 50 % to fail (40 %–60 %, from 9), it failed": board.Expectation(&ci.Prediction{PFail: 0.5, Low: 0.4, High: 0.6, ExpectedMS: 2000, Seen: 9,
			Reasons: []string{"it failed", "no"}}),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// told is one run in records, and what everybody who reads them has to make of it.
type told struct {
	name    string
	records []ci.Record
	run     string            // word of the run
	jobs    map[string]string // words of the jobs, by key
	steps   map[string]string // words of the steps of the job a
}

var stories = []told{
	{
		name: "all is well", run: "success", jobs: map[string]string{"a": "success", "b": "success"}, steps: map[string]string{"1": "success"},
		records: []ci.Record{
			{Type: ci.RunStarted}, {Type: ci.JobQueued, JobKey: "a"}, {Type: ci.JobQueued, JobKey: "b"}, {Type: ci.JobStarted, JobKey: "a"},
			{Type: ci.StepStarted, JobKey: "a", Step: 1, Name: "make"},
			{Type: ci.StepFinished, JobKey: "a", Step: 1, Name: "make", Outcome: ci.Success, Conclusion: ci.Success, DurationMS: new(int64(5))},
			{Type: ci.JobFinished, JobKey: "a", Conclusion: ci.Success}, {Type: ci.JobStarted, JobKey: "b"},
			{Type: ci.JobFinished, JobKey: "b", Conclusion: ci.Success},
			{Type: ci.RunFinished, Conclusion: ci.Success},
		},
	},
	{
		name: "a step that may fail, and one that does", run: "failure", jobs: map[string]string{"a": "failure"},
		steps: map[string]string{"1": "failed, allowed", "2": "failure", "3": "skipped"},
		records: []ci.Record{
			{Type: ci.RunStarted}, {Type: ci.JobQueued, JobKey: "a"}, {Type: ci.JobStarted, JobKey: "a"},
			{Type: ci.StepStarted, JobKey: "a", Step: 1}, {Type: ci.StepFinished, JobKey: "a", Step: 1, Outcome: ci.Failure, Conclusion: ci.Success},
			{Type: ci.StepStarted, JobKey: "a", Step: 2}, {Type: ci.StepFinished, JobKey: "a", Step: 2, Outcome: ci.Failure, Conclusion: ci.Failure},
			{Type: ci.StepFinished, JobKey: "a", Step: 3, Outcome: ci.Skipped, Conclusion: ci.Skipped},
			{Type: ci.JobFinished, JobKey: "a", Conclusion: ci.Failure}, {Type: ci.RunFinished, Conclusion: ci.Failure},
		},
	},
	{
		name: "a job that could not be run", run: "could not run", jobs: map[string]string{"a": "could not run", "b": "skipped"}, steps: map[string]string{},
		records: []ci.Record{
			{Type: ci.RunStarted}, {Type: ci.JobQueued, JobKey: "a"}, {Type: ci.JobQueued, JobKey: "b"}, {Type: ci.JobStarted, JobKey: "a"},
			{Type: ci.JobFinished, JobKey: "a", Conclusion: ci.Failure, Infrastructure: true, Reason: "the machine was lost"},
			{Type: ci.JobFinished, JobKey: "b", Conclusion: ci.Skipped}, {Type: ci.RunFinished, Conclusion: ci.Failure, Infrastructure: true},
		},
	},
	{
		name: "another attempt at a job", run: "success", jobs: map[string]string{"a": "success"}, steps: map[string]string{"1": "success"},
		records: []ci.Record{
			{Type: ci.RunStarted}, {Type: ci.JobQueued, JobKey: "a"}, {Type: ci.JobStarted, JobKey: "a", Attempt: 1},
			{Type: ci.StepStarted, JobKey: "a", Step: 1, Attempt: 1},
			{Type: ci.JobQueued, JobKey: "a", Attempt: 2}, {Type: ci.JobStarted, JobKey: "a", Attempt: 2}, {Type: ci.StepStarted, JobKey: "a", Step: 1, Attempt: 2},
			{Type: ci.StepFinished, JobKey: "a", Step: 1, Attempt: 2, Outcome: ci.Success, Conclusion: ci.Success},
			{Type: ci.JobFinished, JobKey: "a", Attempt: 2, Conclusion: ci.Success}, {Type: ci.RunFinished, Conclusion: ci.Success},
		},
	},
	{
		name: "cancelled", run: "cancelled", jobs: map[string]string{"a": "cancelled", "b": "waiting"}, steps: map[string]string{},
		records: []ci.Record{
			{Type: ci.RunStarted}, {Type: ci.JobQueued, JobKey: "a"}, {Type: ci.JobQueued, JobKey: "b"}, {Type: ci.JobStarted, JobKey: "a"},
			{Type: ci.JobFinished, JobKey: "a", Conclusion: ci.Cancelled}, {Type: ci.RunFinished, Conclusion: ci.Cancelled},
		},
	},
}

// The board and the rows of the store are made from the same records, and must
// tell the same of them.
func TestBoardAndRecordAgree(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(t.Context(), filepath.Join(dir, "hearth.db"), store.WithLogs(filepath.Join(dir, "logs")))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	word := func(_, word string) string { return word }
	for _, c := range stories {
		t.Run(c.name, func(t *testing.T) {
			run, _, err := s.CreateRun(t.Context(), ci.Run{Repository: "o/r", File: "f"}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			var b board.Board
			rec, err := s.Recorder(context.Background(), run.ID, ci.SinkFunc(b.Apply))
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range c.records {
				rec.Emit(r)
			}
			if err := rec.Close(); err != nil {
				t.Fatal(err)
			}
			if run, err = s.Run(t.Context(), run.ID); err != nil {
				t.Fatal(err)
			}
			if got := word(board.Mark(run.Status, run.Conclusion, run.Infrastructure)); got != c.run {
				t.Errorf("the row of the run: %s, want %s", got, c.run)
			}
			if got := word(board.Mark(ci.Completed, b.Conclusion, b.Infrastructure)); got != c.run {
				t.Errorf("the board: %s, want %s", got, c.run)
			}
			jobs, err := s.Jobs(t.Context(), run.ID)
			if err != nil || len(jobs) != len(c.jobs) || len(b.Jobs) != len(c.jobs) {
				t.Fatalf("%d rows and %d jobs on the board, want %d: %v", len(jobs), len(b.Jobs), len(c.jobs), err)
			}
			for i, j := range jobs {
				on := b.Jobs[i]
				if got := word(board.Mark(j.Status, j.Conclusion, j.Infrastructure)); got != c.jobs[j.Key] {
					t.Errorf("the row of %s: %s, want %s", j.Key, got, c.jobs[j.Key])
				}
				if got := word(board.Mark(on.Status, on.Conclusion, on.Infrastructure)); on.Key != j.Key || got != c.jobs[on.Key] || on.Reason != j.Reason {
					t.Errorf("the board of %s: %s %q, want %s %q", on.Key, got, on.Reason, c.jobs[on.Key], j.Reason)
				}
				if j.Key != "a" {
					continue
				}
				steps, err := s.Steps(t.Context(), j.ID)
				if err != nil || len(steps) != len(c.steps) || len(on.Steps) != len(c.steps) {
					t.Fatalf("%d rows and %d steps on the board, want %d: %v", len(steps), len(on.Steps), len(c.steps), err)
				}
				for k, st := range steps {
					want := c.steps[string(rune('0'+st.Number))]
					row := board.Step{Status: st.Status, Outcome: st.Outcome, Conclusion: st.Conclusion}
					if got := word(row.Mark()); got != want {
						t.Errorf("the row of step %d: %s, want %s", st.Number, got, want)
					}
					if got := word(on.Steps[k].Mark()); on.Steps[k].Number != st.Number || got != want {
						t.Errorf("the board of step %d: %s, want %s", st.Number, got, want)
					}
				}
			}
			end := b.Summary()[len(b.Summary())-1]
			if !strings.Contains(end, ": "+c.run+" in ") {
				t.Errorf("the summary ends with %q, want %s", end, c.run)
			}
		})
	}
}

func TestSummariesAndURLs(t *testing.T) {
	b := board.Board{Documents: 22}
	for _, r := range []ci.Record{
		{Type: ci.JobStarted, JobKey: "a", Name: "first"},
		{Type: ci.SummaryRec, JobKey: "a", Step: 2, Text: "# Title\n\x1b[31mred\x1b[0m\n"},
		{Type: ci.SummaryRec, JobKey: "a", Step: 3, Text: "more than there is room for"},
		{Type: ci.JobFinished, JobKey: "a", Conclusion: ci.Success, EnvironmentURL: "https://example.org"},
	} {
		b.Apply(r)
	}
	want := "summary of first, step 2:\n  # Title\n  red\nsummary of first, step 3:\n  m\n  … 26 more bytes: hearth show  --json\n"
	if got := strings.Join(b.Written(0), "\n"); got != want {
		t.Errorf("%q", got)
	}
	if got := strings.Join(b.Written(1), "\n"); !strings.Contains(got, "  … 1 more lines: hearth show") {
		t.Errorf("%q", got)
	}
	if got := strings.Join(b.Summary(), "\n"); !strings.Contains(got, "deployed to https://example.org") {
		t.Errorf("%q", got)
	}
	for link, ok := range map[string]bool{"https://a/b": true, "http://a": true, "javascript:alert(1)": false, "//a": false, "": false} {
		if (board.Link(link) != "") != ok {
			t.Error(link)
		}
	}
}

// TestRetriedIsNotPlainGreen: what passed only when it was tried again says so, of the
// step, the job and the run.
func TestRetriedIsNotPlainGreen(t *testing.T) {
	var b board.Board
	for _, r := range []ci.Record{
		{Type: ci.RunStarted}, {Type: ci.JobStarted, JobKey: "a"}, {Type: ci.StepStarted, JobKey: "a", Step: 1, Name: "fetch"},
		{Type: ci.StepFinished, JobKey: "a", Step: 1, Attempt: 3, Outcome: ci.Success, Conclusion: ci.Success},
		{Type: ci.StepStarted, JobKey: "a", Step: 2, Name: "make"}, {Type: ci.StepFinished, JobKey: "a", Step: 2, Outcome: ci.Success, Conclusion: ci.Success},
		{Type: ci.JobFinished, JobKey: "a", Conclusion: ci.Success}, {Type: ci.RunFinished, Conclusion: ci.Success},
	} {
		b.Apply(r)
	}
	j := b.Jobs[0]
	sign, word := j.Mark()
	said := strings.Join(b.Summary(), "\n")
	if _, plain := j.Steps[1].Mark(); sign != "!" || word != "flaky: success, a step needed another attempt" || plain != "success" {
		t.Errorf("%s %s, %s", sign, word, plain)
	}
	for _, want := range []string{"step 1, fetch: success only at attempt 3", "flaky: success, a step needed another attempt"} {
		if !strings.Contains(said, want) {
			t.Errorf("no word of %q in:\n%s", want, said)
		}
	}
	if strings.Contains(said, "make") {
		t.Errorf("a step that passed at once: %s", said)
	}
}
