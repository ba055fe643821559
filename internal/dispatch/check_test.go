package dispatch

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/forge"
	"github.com/hearth-ci/hearth/internal/store"
)

// What a machine says stays text on GitHub's pages: no table cell more, no
// markup, nobody called.
func TestSummaryIsText(t *testing.T) {
	var b board.Board
	b.Apply(ci.Record{Type: ci.JobStarted, JobKey: "a", Name: "a"})
	b.Apply(ci.Record{Type: ci.StepStarted, JobKey: "a", Step: 1, Name: "x | y <img src=x> @everyone `z` [a](http://b) \x1b[31m"})
	b.Apply(ci.Record{Type: ci.StepFinished, JobKey: "a", Step: 1, Conclusion: ci.Failure, ExitCode: new(2)})
	b.Apply(ci.Record{Type: ci.PredictionRec, JobKey: "a", Step: 1, Explanation: &ci.Explanation{Text: "x", Lines: []string{"```", "@you <b>\x1b[m"}}})
	b.Apply(ci.Record{Type: ci.AnnotationRec, JobKey: "a", Level: "error", Message: "*bad*\n# heading"})
	b.Apply(ci.Record{Type: ci.JobFinished, JobKey: "a", Conclusion: ci.Failure})
	got := summary(b.Jobs[0], b.Notes, "http://h/r")
	want := "| 1 | x \\| y \\<img src=x\\> @\u200beveryone \\`z\\` \\[a\\](http://b)  | ✗ failure (exit code 2) | 0 ms |\n"
	if !strings.Contains(got, want) {
		t.Errorf("no %q in\n%s", want, got)
	}
	if !strings.Contains(got, "'''\n@you <b>") {
		t.Errorf("the lines that matter are missing:\n%s", got)
	}
	if strings.Contains(got, "\n# heading") || strings.Count(got, "```") != 2 || strings.Contains(got, "\x1b") {
		t.Error(got)
	}
}

// A check never goes back, and says what is true.
// When GitHub says how long to wait, that long at least is waited, and no longer
// than a little more; without a word of it the wait doubles.
func TestCheckWaitsAsLongAsGitHubSays(t *testing.T) {
	r := &reporter{d: &Dispatcher{cfg: Config{Retry: time.Second}, log: slog.New(slog.DiscardHandler)}}
	for _, c := range []struct {
		tries int
		err   error
		least time.Duration
	}{
		{0, &forge.Error{Status: 403, Temporary: true, RetryAfter: time.Hour}, time.Hour},
		{3, &forge.Error{Status: 429, Temporary: true, RetryAfter: 2 * time.Second}, 8 * time.Second},
		{0, &forge.Error{Status: 502, Temporary: true}, time.Second},
		{4, errors.New("no route"), 16 * time.Second},
	} {
		ch := &check{id: "x", tries: c.tries}
		began := time.Now()
		r.sent(ch, forge.Check{Status: ci.Completed}, c.err)
		if wait := ch.after.Sub(began); wait < c.least || wait > c.least*5/4+time.Minute || ch.over || ch.sent != "" {
			t.Errorf("%v after %d tries: %v, want %v: %+v", c.err, c.tries, wait, c.least, ch)
		}
	}
}

func TestTitle(t *testing.T) {
	for _, c := range []struct {
		job  board.Job
		want string
	}{
		{board.Job{Status: ci.Completed, Conclusion: ci.Success, Duration: 1.5e9}, "Success in 1.5 s"},
		{board.Job{Status: ci.Completed, Conclusion: ci.Failure, Infrastructure: true, Reason: "no machine"}, "Could not run: no machine"},
		{board.Job{Status: ci.Completed, Conclusion: ci.Skipped, Reason: "it needs build, which failed"}, "Skipped: it needs build, which failed"},
		{board.Job{Status: ci.Completed, Conclusion: ci.Failure, Steps: []*board.Step{{Number: 3, Name: "go test", Conclusion: ci.Failure, ExitCode: 2}}},
			"Failure: step 3, go test: exit code 2"},
	} {
		_, word := board.Mark(c.job.Status, c.job.Conclusion, c.job.Infrastructure)
		if got := title(&c.job, word); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	if rank("") >= rank(ci.Queued) || rank(ci.Queued) >= rank(ci.InProgress) || rank(ci.InProgress) >= rank(ci.Completed) {
		t.Error("the order of statuses")
	}
}

// Whatever is in a payload, reading it neither fails hard nor finds commits that
// are none.
func FuzzPayload(f *testing.F) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"pull_request":{"head":{"sha":"../../x"}},"check_run":null,"inputs":{"a":[1]}}`))
	d := &Dispatcher{cfg: Config{AppID: 1}}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, whole, err := decode(store.StoredEvent{Event: ci.Event{Name: "push", Payload: b}})
		if err != nil {
			return
		}
		d.own(p)
		dig(whole, "event", "pull_request", "head", "sha")
		if pr := p.PullRequest; pr != nil {
			pr.fork(p.Repository.FullName)
			if validSHA(pr.Head.SHA) && strings.ContainsAny(pr.Head.SHA, "./ ") {
				t.Errorf("%q passes as a commit", pr.Head.SHA)
			}
		}
		if ref := fullRef(p.Ref, p.Repository.DefaultBranch); !strings.HasPrefix(ref, "refs/") {
			t.Errorf("%q is no full ref", ref)
		}
	})
}

// What steps wrote to their summaries is in the check, and calls nobody.
func TestWrittenSummaries(t *testing.T) {
	var b board.Board
	b.Apply(ci.Record{Type: ci.JobStarted, JobKey: "a", Name: "a"})
	b.Apply(ci.Record{Type: ci.SummaryRec, JobKey: "a", Step: 1, Text: "# Coverage\n\n| a | 80 % |\n\x1b[31m@octocat\n"})
	b.Apply(ci.Record{Type: ci.JobFinished, JobKey: "a", Conclusion: ci.Success, EnvironmentURL: "https://app.example.org"})
	if got, want := written(b.Jobs[0]), "# Coverage\n\n| a | 80 % |\n@\u200boctocat\n\n"; got != want {
		t.Errorf("%q", got)
	}
	if got := summary(b.Jobs[0], nil, ""); !strings.Contains(got, "Deployed to https://app.example.org") {
		t.Errorf("%q", got)
	}
}
