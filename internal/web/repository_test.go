package web

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

// told is an Insight of a few facts.
type told struct {
	at      Spot
	samples []Sample
	parts   []Part
	known   Known
}

func (f *told) Trend(_ context.Context, at Spot) ([]Sample, error)    { f.at = at; return f.samples, nil }
func (f *told) Parts(context.Context, string, string) ([]Part, error) { return f.parts, nil }
func (f *told) Known(context.Context, string) (Known, error)          { return f.known, nil }

func insightSite(t *testing.T) (*told, string) {
	t.Helper()
	f := &told{}
	mux := http.NewServeMux()
	New(Config{Source: &memory{changed: make(chan struct{}, 1)}, Insight: f, Version: "test", Log: slog.New(slog.DiscardHandler)}).Register(mux)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return f, s.URL
}

func TestTrends(t *testing.T) {
	var samples []Sample
	for i := range 100 {
		samples = append(samples, Sample{Run: ci.NewID(), Number: int64(i), At: at(float64(i) * 3600), Took: time.Duration(60+i) * time.Second,
			Passed: i%4 != 0, Failed: i%4 == 0})
	}
	samples = append(samples, Sample{At: at(1e6), Took: 100 * time.Hour, Passed: true}, Sample{At: at(1e6), Took: time.Hour}) // one hung; one was cancelled
	took := durations("Duration", samples, func(s Sample) time.Duration { return s.Took }, []Shift{{Kind: "slower", From: 1, To: 2, Began: at(50 * 3600)}})
	if took.Says != "p50 1 min 50 s, p90 2 min 30 s" || len(took.Dots) != 101 || len(took.Marks) != 1 ||
		took.Marks[0].Title != "slower: 2.0 s, 1.0 s before" {
		t.Errorf("%s %d %+v", took.Says, len(took.Dots), took.Marks)
	}
	if x := took.Marks[0].X; x < trendWide*2/5 || x > trendWide*3/5+trendLeft {
		t.Errorf("the mark is at %f", x)
	}
	// The one that hung has not flattened the others.
	if y := took.Dots[0].Y; y > trendHigh-trendLow-10 {
		t.Errorf("the first is at %f", y)
	}
	if r := failureRate(samples); r.Says != "25 of 101 failed, 25 %" || len(r.Bars) == 0 || len(r.Bars) > buckets+1 {
		t.Errorf("%s, %d bars", r.Says, len(r.Bars))
	}
	if none := durations("x", samples[:1], func(s Sample) time.Duration { return s.Took }, nil); none.Scale != nil {
		t.Error("a trend of one")
	}
}

func TestRepositoryPage(t *testing.T) {
	f, url := insightSite(t)
	if resp, _ := get(t, url+"/repository?name=o/r"); resp.StatusCode != http.StatusNotFound {
		t.Error("a repository without runs:", resp.Status)
	}
	f.samples = []Sample{{Run: ci.NewID(), At: at(1), Took: time.Minute, Passed: true}, {Run: ci.NewID(), At: at(2), Took: time.Minute, Failed: true}}
	f.parts = []Part{{Workflow: "ci.yml", Job: "a", Step: "Build it", Runs: 10, Failed: 1, P50: time.Second, P90: 2 * time.Second, Sum: time.Minute}}
	f.known = Known{
		Tests: []Test{{Name: "TestX", State: "flaky", Why: "it came and went", Recent: "PPFP", Failed: 1, Ran: 4, Seconds: 3,
			Evidence: []Evidence{{"abcdef0123", ci.NewID(), ci.NewID()}}}},
		Lessons:     []Lesson{{Text: "clean first", Shown: 3, Helped: 2}},
		Shifts:      []Shift{{Workflow: "ci.yml", Job: "a (1)", Kind: "fails more", From: .01, To: .3, Run: ci.NewID()}},
		Predictions: []Calibrated{{N: 5, Predicted: .2, Observed: .25, Low: .1, High: .4}},
	}
	_, body := get(t, url+"/repository?name=o/r&workflow=ci.yml&job=a")
	if f.at != (Spot{"o/r", "ci.yml", "a", ""}) {
		t.Errorf("%+v", f.at)
	}
	for _, want := range []string{"ci.yml › a</h2>", "job=a&amp;name=o%2Fr&amp;step=Build&#43;it&amp;workflow=ci.yml", "10 %", "1 of 4",
		"it came and went", `aria-label="1 of the last 4 failed"`,
		"passed there in", "clean first", "shown 3×, followed by a pass 2×", "fails more: 30 %, 1 % before", "said 20 %, 25 % of 5 failed"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
}

// What is said about a repository came out of machines: names of steps and tests,
// messages, lessons that quote them. All of it is text, and a page lists so much.
func TestAttackRepositoryPage(t *testing.T) {
	f, url := insightSite(t)
	evil := "</title></svg><script>alert(1)</script>\x1b[31m\u202e" + strings.Repeat("x", 3*maxLine)
	for range 2000 {
		f.samples = append(f.samples, Sample{Run: evil, At: at(1), Took: 1 << 62, Queue: -1, Passed: true})
		f.parts = append(f.parts, Part{Workflow: evil[:60], Job: evil[:60], Step: evil[:60], Sum: -1})
	}
	f.samples = f.samples[:500] // which is what there are
	for range 50 {
		f.known.Tests = append(f.known.Tests, Test{Name: evil, Job: evil, State: evil, Why: evil, Message: evil, Recent: strings.Repeat("F\"", 5000),
			Seconds: 1e300})
		f.known.Lessons = append(f.known.Lessons, Lesson{Text: evil})
		f.known.Shifts = append(f.known.Shifts, Shift{Job: evil, Step: evil, Kind: "slower", Run: evil, Commit: evil, From: -1, To: 1e300})
	}
	f.known.Predictions = []Calibrated{{N: 1, Predicted: 1e9, Observed: -1e9}}
	resp, body := get(t, url+"/repository?name=o%2Fr")
	if resp.StatusCode != 200 || strings.Contains(body, "<script>alert") || strings.ContainsAny(body, "\x1b\u202e") || len(body) > 16<<20 {
		t.Errorf("%s, %d bytes", resp.Status, len(body))
	}
	if n := strings.Count(body, `class="stop"`); n != shownParts {
		t.Errorf("%d steps", n)
	}
	if resp, _ := get(t, url+"/repository?name="+strings.Repeat("x", 5<<10)); resp.StatusCode != http.StatusNotFound {
		t.Error(resp.Status)
	}
}
