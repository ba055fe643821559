package web

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/text"
)

// memory is a Source in memory.
type memory struct {
	mu      sync.Mutex
	runs    []ci.Run
	records []ci.Record
	lines   []Line
	events  []Event
	read    int // lines of logs
	handed  int // records
	changed chan struct{}
	broken  error
	torn    error // of reading logs
}

func (m *memory) Repositories(context.Context, int) ([]string, error) { return []string{"o/r"}, nil }

func (m *memory) Runs(context.Context, RunQuery) ([]ci.Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]ci.Run(nil), m.runs...), m.broken
}

func (m *memory) Run(_ context.Context, id string) (ci.Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.runs {
		if r.ID == id {
			return r, nil
		}
	}
	return ci.Run{}, ErrNotFound
}

func (m *memory) Records(_ context.Context, _ string, after int64, limit int) ([]ci.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []ci.Record
	for _, r := range m.records {
		if r.Seq > after && len(out) < limit {
			out = append(out, r)
		}
	}
	m.handed += len(out)
	return out, nil
}

func (m *memory) LogTail(ctx context.Context, run, job string, n int) (Window, error) {
	w, _ := m.LogFrom(ctx, run, job, 1, 0)
	return m.LogFrom(ctx, run, job, max(w.Total-int64(n)+1, 1), n)
}

func (m *memory) LogFrom(_ context.Context, _, job string, from int64, n int) (Window, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.torn != nil {
		return Window{}, m.torn
	}
	w := Window{First: from}
	for _, l := range m.lines {
		if l.Record.JobKey != job {
			continue
		}
		w.Total++
		if w.Total >= from && len(w.Lines) < n {
			w.Lines = append(w.Lines, Line{l.Record, w.Total})
		}
	}
	m.read += len(w.Lines)
	return w, nil
}

func (m *memory) LogFind(ctx context.Context, run, job, words string, from int64, n int) (Matches, error) {
	w, _ := m.LogFrom(ctx, run, job, from, len(m.lines))
	var out Matches
	for _, l := range w.Lines {
		if find := text.Finder(words); find(l.Record.Text) >= 0 {
			if out.Total++; len(out.Lines) < n {
				out.Lines = append(out.Lines, l)
			}
		}
	}
	return out, nil
}

func (m *memory) Events(context.Context, int) ([]Event, error) { return m.events, m.broken }

func (m *memory) Watch(string) (<-chan struct{}, func()) { return m.changed, func() {} }

func (m *memory) emit(r ci.Record) {
	m.mu.Lock()
	r.Seq, r.Time = int64(len(m.records)+len(m.lines)+1), time.Now()
	if r.Type == ci.LogLine {
		m.lines = append(m.lines, Line{Record: r})
	} else {
		m.records = append(m.records, r)
	}
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func site(t *testing.T) (*memory, *httptest.Server) {
	t.Helper()
	m := &memory{changed: make(chan struct{}, 1)}
	m.runs = []ci.Run{{ID: ci.NewID(), Number: 7, Workflow: "CI", Name: "<script>alert(1)</script>", Event: "push", Repository: "o/r", Ref: "refs/heads/main",
		SHA: strings.Repeat("a", 40), Status: ci.InProgress, Created: time.Now()}}
	mux := http.NewServeMux()
	New(Config{Source: m, Version: "test", Log: slog.New(slog.DiscardHandler)}).Register(mux)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return m, s
}

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestPages(t *testing.T) {
	m, s := site(t)
	id := m.runs[0].ID
	m.emit(ci.Record{Type: ci.JobQueued, JobKey: "a", Name: "a"})
	m.emit(ci.Record{Type: ci.JobStarted, JobKey: "a", Name: "a"})
	m.emit(ci.Record{Type: ci.StepStarted, JobKey: "a", Step: 1, Name: "Say <i>hello</i>"})
	m.emit(ci.Record{Type: ci.LogLine, JobKey: "a", Step: 1, Stream: "stdout", Text: "<img src=x onerror=alert(2)> \x1b[31mred\x1b[0m \u202eback"})
	m.emit(ci.Record{Type: ci.ConnectionRec, JobKey: "a", Step: 1, Reason: "<b>no</b>", Connection: &ci.ConnectionEvent{Host: "<img src=x>", Port: 443,
		Proto: "tcp", Refused: true, BytesOut: 1500}})
	m.emit(ci.Record{Type: ci.SummaryRec, JobKey: "a", Step: 1, Text: "# Title\n<script>alert(3)</script>\n**\x1b[31mbold**\u202e\n"})
	m.emit(ci.Record{Type: ci.JobFinished, JobKey: "a", Name: "a", Conclusion: ci.Failure, Infrastructure: true, Reason: "no machine",
		EnvironmentURL: "https://app.example.org/"})
	m.emit(ci.Record{Type: ci.JobFinished, JobKey: "b", Name: "b", Conclusion: ci.Success, EnvironmentURL: "javascript:alert(4)"})
	m.events = []Event{{Event: ci.Event{Name: "push", Repository: "o/r", Received: time.Now()}, State: "done", Detail: "push: 1 run; ci.yml: run " + id}}

	for path, want := range map[string][]string{
		"/": {"&lt;script&gt;alert(1)", "/runs/" + id, `http-equiv="refresh"`},
		"/runs/" + id: {"&lt;img src=x onerror=alert(2)&gt; red back", "1 Say &lt;i&gt;hello", "could not run", "no machine", `class="state lost"`,
			"<h1>Title</h1>\n\n<p><strong>bold</strong></p>", `deployed to <a href="https://app.example.org/"`},
		"/runs/" + id + "?job=b":     {`deployed to javascript:alert(4)`},
		"/runs/" + id + "/log?job=a": {"<img src=x onerror=alert(2)> red back\n"}, // text/plain
		"/events":                    {`<a href="/runs/` + id + `">`, "ci.yml: run"},
		"/static/follow.js":          {"EventSource"},
	} {
		resp, body := get(t, s.URL+path)
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, resp.Status)
		}
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("%s has no %q:\n%s", path, w, body)
			}
		}
		h := resp.Header
		if !strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", path, h)
		}
		if strings.Contains(h.Get("Content-Type"), "html") && (strings.Contains(body, "<script>") || strings.Contains(body, "<img src=x")) {
			t.Errorf("%s: markup out of a machine:\n%s", path, body)
		}
	}
	for _, path := range []string{"/runs/" + ci.NewID(), "/runs/..%2f..%2fetc", "/runs/x/log", "/runs/x/events", "/nothing"} {
		if resp, _ := get(t, s.URL+path); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	m.broken = errors.New("the disk burns at /secret/place")
	if resp, body := get(t, s.URL); resp.StatusCode != 500 || strings.Contains(body, "secret") {
		t.Errorf("%s %s", resp.Status, body)
	}
}

// Nothing that failed, was lost or did not run is green.
func TestGreenIsSuccess(t *testing.T) {
	for _, c := range []ci.Conclusion{ci.Failure, ci.Cancelled, ci.Skipped, ci.TimedOut, ci.Neutral, ""} {
		if class(ci.Completed, c, false) == "ok" || class(ci.Completed, c, true) == "ok" {
			t.Errorf("%q is green", c)
		}
	}
	if class(ci.Completed, ci.Success, true) == "ok" || class(ci.InProgress, ci.Success, false) == "ok" || class(ci.Completed, ci.Success, false) != "ok" {
		t.Error("what is green is not what succeeded")
	}
	for _, state := range []string{"pending", "taken", "done", "failed", "noted"} {
		if tone(state) == "ok" {
			t.Errorf("an event that is %s is green", state)
		}
	}
}

func TestLongLog(t *testing.T) {
	m, s := site(t)
	m.emit(ci.Record{Type: ci.JobStarted, JobKey: "a", Name: "a"})
	all := 2*maxLines + 10
	for i := range all {
		m.lines = append(m.lines, Line{Record: ci.Record{Type: ci.LogLine, JobKey: "a", Step: 1, Text: fmt.Sprint("line ", i+1)}})
	}
	page := s.URL + "/runs/" + m.runs[0].ID
	for _, c := range []struct {
		query       string
		first, last int
		links       []string
		tail        bool
	}{
		{"", maxLines + 11, all, []string{"from=11"}, true},
		{"?job=a&from=11", 11, maxLines + 10, []string{"from=1\"", fmt.Sprintf("from=%d\"", maxLines+11)}, false},
		{"?job=a&from=1", 1, maxLines, []string{fmt.Sprintf("from=%d\"", maxLines+1)}, false},
	} {
		_, body := get(t, page+c.query)
		if n := strings.Count(body, `class="line`); n != c.last-c.first+1 {
			t.Errorf("%q: %d lines", c.query, n)
		}
		for _, want := range append(c.links, fmt.Sprintf(">line %d<", c.first), fmt.Sprintf(`id="L%d"`, c.first), fmt.Sprintf(">line %d<", c.last),
			fmt.Sprintf(`data-tail="%v"`, c.tail)) {
			if !strings.Contains(body, want) {
				t.Errorf("%q: no %s", c.query, want)
			}
		}
		if strings.Contains(body, "earlier lines") != (c.first > 1) || strings.Contains(body, "later lines") == c.tail {
			t.Errorf("%q: links", c.query)
		}
	}
}

// The stream carries what is new since the page was made, and ends with the run.
func TestStream(t *testing.T) {
	m, s := site(t)
	m.emit(ci.Record{Type: ci.JobStarted, JobKey: "a", Name: "a"})
	m.emit(ci.Record{Type: ci.LogLine, JobKey: "a", Text: "on the page already"})
	resp, err := http.Get(s.URL + "/runs/" + m.runs[0].ID + "/events?job=a&line=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	events := make(chan string)
	go func() {
		defer close(events)
		sc := bufio.NewScanner(resp.Body)
		var b strings.Builder
		for sc.Scan() {
			if sc.Text() == "" {
				events <- b.String()
				b.Reset()
				continue
			}
			b.WriteString(sc.Text() + "\n")
		}
	}()
	next := func(kind string) string {
		t.Helper()
		for {
			select {
			case e, ok := <-events:
				if !ok {
					t.Fatalf("the stream ended before %s", kind)
				}
				if strings.HasPrefix(e, "event: "+kind+"\n") {
					return e
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("no %s", kind)
			}
		}
	}
	if e := next("board"); !strings.Contains(e, "running") {
		t.Error(e)
	}
	m.emit(ci.Record{Type: ci.LogLine, JobKey: "a", Text: "</script>\nnew"})
	if e := next("log"); strings.Contains(e, "already") || !strings.Contains(e, `\u003c/script\u003e`) || !strings.Contains(e, `"N":2`) {
		t.Error(e)
	}
	m.mu.Lock()
	m.runs[0].Status, m.runs[0].Conclusion = ci.Completed, ci.Success
	m.mu.Unlock()
	m.emit(ci.Record{Type: ci.JobFinished, JobKey: "a", Name: "a", Conclusion: ci.Success})
	if e := next("board"); !strings.Contains(e, "success") {
		t.Error(e)
	}
	next("end")
	if _, open := <-events; open {
		t.Error("the stream goes on after the end")
	}
}

// What the runner says is wrong stands out, in records of today and in those from
// before lines had a level; what a step prints does not.
func TestErrorLines(t *testing.T) {
	for _, c := range []struct {
		r            ci.Record
		stream, text string
	}{
		{ci.Record{Stream: "system", Level: "error", Text: "##[error]no"}, "error", "no"},
		{ci.Record{Stream: "system", Level: "error", Text: "its second line"}, "error", "its second line"},
		{ci.Record{Stream: "system", Text: "##[error]no"}, "error", "no"},
		{ci.Record{Stream: "system", Level: "warning", Text: "##[warning]hm"}, "system", "##[warning]hm"},
		{ci.Record{Stream: "stdout", Text: "##[error]no"}, "stdout", "##[error]no"},
	} {
		if got := rowOf(Line{Record: c.r}); got.Stream != c.stream || got.Text != c.text {
			t.Errorf("%+v: %+v", c.r, got)
		}
	}
}
