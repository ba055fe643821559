package web

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
)

var start = time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)

func at(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }

// made is a board of three jobs, one of them a matrix.
func made() *board.Board {
	b := &board.Board{}
	ms := func(seconds int64) *int64 { return new(seconds * 1000) }
	for _, r := range []ci.Record{
		{Type: ci.JobQueued, Job: "build", JobKey: "build", Name: "build"},
		{Type: ci.JobQueued, Job: "test", JobKey: "test (1)", Name: "test (1)", Needs: []string{"build"}},
		{Type: ci.JobQueued, Job: "test", JobKey: "test (2)", Name: "test (2)", Needs: []string{"build"}},
		{Type: ci.JobQueued, Job: "ship", JobKey: "ship", Name: "ship", Needs: []string{"build", "test"}},
		{Type: ci.PredictionRec, JobKey: "build", Prediction: &ci.Prediction{Seen: 3, ExpectedMS: 20_000}},
		{Type: ci.JobStarted, JobKey: "build", Time: at(10)},
		{Type: ci.StepStarted, JobKey: "build", Step: 1, Name: "compile", Time: at(15)},
		{Type: ci.StepFinished, JobKey: "build", Step: 1, Conclusion: ci.Success, Outcome: ci.Success, DurationMS: ms(35), Time: at(50)},
		{Type: ci.JobFinished, JobKey: "build", Conclusion: ci.Success, DurationMS: ms(40), Time: at(50)},
		{Type: ci.JobStarted, JobKey: "test (1)", Time: at(60)},
		{Type: ci.JobFinished, JobKey: "test (1)", Conclusion: ci.Success, DurationMS: ms(40), Time: at(100)},
		{Type: ci.JobStarted, JobKey: "test (2)", Time: at(60)},
		{Type: ci.JobFinished, JobKey: "test (2)", Conclusion: ci.Failure, DurationMS: ms(20), Time: at(80)},
		{Type: ci.JobFinished, JobKey: "ship", Conclusion: ci.Skipped, Time: at(100)},
	} {
		if r.Time.IsZero() {
			r.Time = start
		}
		b.Apply(r)
	}
	return b
}

func TestGraphOfJobs(t *testing.T) {
	b := made()
	c := graphOf(b, b.Jobs[2])
	if len(c.Nodes) != 3 || len(c.Edges) != 3 || c.More != 0 {
		t.Fatalf("%+v", c)
	}
	build, test, ship := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	if build.X >= test.X || test.X >= ship.X {
		t.Errorf("the columns are not in the order of the needs: %+v", c.Nodes)
	}
	if test.Label != "test ×2" || test.Key != "test (2)" || test.Class != "bad" || test.Says != "1 of 2 failure, 40.0 s" || !test.Open || build.Open {
		t.Errorf("the matrix: %+v", test)
	}
	if ship.Class != "off" || ship.Says != "skipped" {
		t.Errorf("%+v", ship)
	}
}

func TestTimelineOfRun(t *testing.T) {
	b := made()
	l := timelineOf(b, b.Jobs[0], at(500))
	var got []string
	for _, lane := range l.Lanes {
		var s strings.Builder
		fmt.Fprintf(&s, "%s %d:", lane.Name, lane.Step)
		for _, b := range lane.Bits {
			fmt.Fprintf(&s, " %s %.0f+%.0f", b.Class, b.X/10, b.Width/10)
		}
		if lane.Ghost != nil {
			fmt.Fprintf(&s, " ghost %.0f+%.0f", lane.Ghost.X/10, lane.Ghost.Width/10)
		}
		got = append(got, s.String())
	}
	want := []string{
		"build 0: queue 0+10 machine 10+5 ok 15+35 ghost 10+20",
		"compile 1: ok 15+35",
		"test (1) 0: queue 50+10 ok 60+40", // it waited from the end of what it needs
		"test (2) 0: queue 50+10 bad 60+20",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	if len(l.Ticks) != 4 || l.Ticks[1].Text != "30 s" || l.Ticks[3].Text != "1:30 min" {
		t.Errorf("%+v", l.Ticks)
	}
}

// Thousands of jobs that need each other, each of thousands of steps, are no picture:
// what is drawn is bounded, each and in sum, and what is left out is counted.
func TestAttackPictureOfManyJobs(t *testing.T) {
	b := &board.Board{}
	var needs []string
	for i := range 2000 {
		id := fmt.Sprint("j", i)
		b.Apply(ci.Record{Type: ci.JobQueued, Job: id, JobKey: id, Name: strings.Repeat("<w>", 500), Needs: needs, Time: start})
		b.Apply(ci.Record{Type: ci.JobStarted, Job: id, JobKey: id, Time: at(1)})
		if i < 40 {
			for n := range 200 {
				b.Apply(ci.Record{Type: ci.StepStarted, Job: id, JobKey: id, Step: n + 1, Name: strings.Repeat("s", 500), Time: at(2)})
			}
		}
		needs = append(needs, id)
	}
	c := graphOf(b, nil)
	if len(c.Nodes) != maxNodes || c.More != 2000-maxNodes || len(c.Edges) > 10*maxNodes {
		t.Errorf("%d nodes and %d edges, %d more", len(c.Nodes), len(c.Edges), c.More)
	}
	for _, n := range c.Nodes {
		if len(n.Label) > 100 {
			t.Fatalf("a label of %d bytes", len(n.Label))
		}
	}
	l := timelineOf(b, b.Jobs[0], at(100))
	bits := 0
	for _, lane := range l.Lanes {
		bits += len(lane.Bits)
	}
	if len(l.Lanes) > maxBars || bits > maxCells+maxBars || l.More == 0 || len(l.Ticks) > 12 {
		t.Errorf("%d lanes, %d bits, %d more", len(l.Lanes), bits, l.More)
	}
	// Times of a guest's making, or a clock that went back.
	b = &board.Board{}
	b.Apply(ci.Record{Type: ci.JobQueued, JobKey: "a", Time: at(1e9)})
	b.Apply(ci.Record{Type: ci.JobStarted, JobKey: "a", Time: at(-1e9)})
	b.Apply(ci.Record{Type: ci.StepStarted, JobKey: "a", Step: 1, Time: at(5e8)})
	for _, lane := range timelineOf(b, b.Jobs[0], start).Lanes {
		for _, b := range lane.Bits {
			if b.X < 0 || b.X+b.Width > 1002 || b.Width < 0 {
				t.Errorf("%+v", b)
			}
		}
	}
}

func TestLogShown(t *testing.T) {
	m, s := site(t)
	id := m.runs[0].ID
	line := func(r ci.Record) {
		r.JobKey, r.Time = "a", at(1)
		m.lines = append(m.lines, Line{Record: r})
	}
	m.emit(ci.Record{Type: ci.JobStarted, JobKey: "a", Name: "a"})
	for n, c := range []ci.Conclusion{ci.Success, ci.Failure} {
		m.emit(ci.Record{Type: ci.StepStarted, JobKey: "a", Step: n + 1, Name: "s"})
		m.emit(ci.Record{Type: ci.StepFinished, JobKey: "a", Step: n + 1, Conclusion: c, Outcome: c})
	}
	line(ci.Record{Type: ci.LogLine, Step: 1, Text: "fine"})
	line(ci.Record{Type: ci.Group, Step: 2, Stream: "start", Text: "Run make"})
	line(ci.Record{Type: ci.LogLine, Step: 2, Text: "in the group <b>"})
	line(ci.Record{Type: ci.Group, Step: 2, Stream: "end"})
	line(ci.Record{Type: ci.LogLine, Step: 2, Text: "it says NO"})
	m.emit(ci.Record{Type: ci.PredictionRec, JobKey: "a", Step: 2, Explanation: &ci.Explanation{Lines: []string{"it says NO"}, Seen: 3, FixedBy: "abc"}})
	m.emit(ci.Record{Type: ci.JobFinished, JobKey: "a", Name: "a", Conclusion: ci.Failure})
	for query, want := range map[string][]string{
		"": {`<details class="part" data-step="1"><summary`, `<details class="part" data-step="2" open>`, `<details class="fold"><summary id="L2"`,
			`id="failure">This failure: seen before, 3 times, last ended by abc</div><div class="line  culprit" id="L5"`, `href="?job=a&amp;lines=5#L5"`},
		"?job=a&times=1":   {"<time>03:04:01.000</time>"},
		"?job=a&lines=3-5": {`class="line  marked" id="L3"`, `<details class="fold" open>`, `class="line  marked culprit" id="L5"`},
		"?job=a&lines=1":   {`<details class="part" data-step="1" open>`},
		"?job=a&q=group+%3Cb": {`<strong id="found">1</strong> line has “group &lt;b”`, `in the <mark>group &lt;b</mark>&gt;`, `<details class="fold" open>`,
			`q=group%20%3cb&amp;lines=3#L3`},
		"?job=a&q=no":        {`<strong id="found">1</strong>`, "<mark>NO</mark>"},
		"?job=a&q=No":        {`<strong id="found">0</strong> lines have`},
		"?job=a&lines=9-a":   {`data-last="5"`},
		"?job=a&lines=-4--2": {`data-last="5"`},
	} {
		_, body := get(t, s.URL+"/runs/"+id+query)
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("%q: no %s in\n%s", query, w, body[strings.Index(body, `aria-label="Log"`):])
			}
		}
	}
	// A log that cannot be read leaves the rest of the page, and does not look empty.
	m.torn = errors.New("the disk burns at /secret/place")
	if resp, body := get(t, s.URL+"/runs/"+id); resp.StatusCode != 200 || !strings.Contains(body, "The log could not be read") || strings.Contains(body,
		"secret") ||
		!strings.Contains(body, "seen before, 3 times") {
		t.Errorf("%s\n%s", resp.Status, body)
	}
	m.torn = nil
	resp, _ := get(t, s.URL+"/runs/"+id+"/log?job=a&download=1")
	if d := resp.Header.Get("Content-Disposition"); d != "attachment; filename=CI-7-a.txt" {
		t.Error(d)
	}
}

// A link may ask for any lines; what is read and shown stays a page. Words to look
// for are as long as a line of a form.
func TestAttackLinkToLines(t *testing.T) {
	m, s := site(t)
	m.emit(ci.Record{Type: ci.JobStarted, JobKey: "a", Name: "a"})
	for range 5 * maxLines {
		m.lines = append(m.lines, Line{Record: ci.Record{Type: ci.LogLine, JobKey: "a", Step: 1, Text: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}})
	}
	for _, q := range []string{"lines=1-99999999999", "lines=9223372036854775807", "lines=9000-1", "q=a", "q=" + strings.Repeat("a", 5000)} {
		m.read = 0
		resp, body := get(t, s.URL+"/runs/"+m.runs[0].ID+"?job=a&"+q)
		if n := strings.Count(body, `class="line`); resp.StatusCode != 200 || n > maxLines || len(body) > 30*maxText || strings.Contains(body,
			strings.Repeat("a", 1000)) {
			t.Errorf("%.30s: %s, %d lines, %d bytes", q, resp.Status, n, len(body))
		}
		if hits := strings.Count(body, "<li><a href=\"?job=a&amp;q="); hits > maxHits {
			t.Errorf("%d hits", hits)
		}
	}
}
