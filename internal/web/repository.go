package web

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
)

// Insight is what is known of repositories, for their pages.
type Insight interface {
	// Trend lists the last executions of a place, the oldest first, some hundred.
	Trend(ctx context.Context, at Spot) ([]Sample, error)
	// Parts reckons up the steps of a repository's last runs, of one workflow's or ("")
	// of all; those that took longest in sum first.
	Parts(ctx context.Context, repository, workflow string) ([]Part, error)
	Known(ctx context.Context, repository string) (Known, error)
}

// Spot is what a trend is of: a repository's runs, those of a workflow (its file), of a
// job of it (its id), of a step of that (its name).
type Spot struct{ Repository, Workflow, Job, Step string }

// Sample is one execution.
type Sample struct {
	Run            string
	Number         int64
	At             time.Time
	Took, Queue    time.Duration
	Passed, Failed bool // neither: it says nothing
}

// Part is a step over a repository's last runs.
type Part struct {
	Workflow, Job, Step string
	Runs, Failed        int
	P50, P90, Sum       time.Duration
}

// Known is what was learned of a repository.
type Known struct {
	Tests       []Test
	Lessons     []Lesson
	Shifts      []Shift
	Predictions []Calibrated
}

// Test is a test that fails now and then.
type Test struct {
	Name, Job, State, Why, Message string
	Recent                         string // P and F, the newest at the end
	Failed, Ran                    int
	Last                           time.Time
	Seconds                        float64 // that its failures took
	Quarantine                     bool
	Evidence                       []Evidence
}

// Evidence is a commit at which a test failed, and the run in which it passed there.
type Evidence struct{ Commit, Run, Passed string }

// Lesson is what repeated failures taught.
type Lesson struct {
	Text          string
	Last          time.Time
	Shown, Helped int
}

// Shift is a change of level.
type Shift struct {
	Workflow, Job, Step, Kind string
	From, To                  float64
	Run, Commit               string
	Began                     time.Time
}

// Says is the shift in words.
func (s Shift) Says() string {
	if strings.HasPrefix(s.Kind, "fails") {
		return fmt.Sprintf("%s: %s, %s before", s.Kind, board.Percent(s.To), board.Percent(s.From))
	}
	second := func(v float64) string { return board.Short(time.Duration(min(max(v, 0), 1e8) * float64(time.Second))) }
	return fmt.Sprintf("%s: %s, %s before", s.Kind, second(s.To), second(s.From))
}

// Calibrated is what was predicted of much that was about as likely to fail, beside
// what happened.
type Calibrated struct {
	N                              int
	Predicted, Observed, Low, High float64
}

// The measures of a trend, in pixels.
const (
	trendWide, trendHigh = 640, 150
	trendLeft, trendLow  = 62, 18
	buckets              = 30
)

// trend is a chart over time.
type trend struct {
	Title, Says string
	P50, P90    string // paths
	Area        string
	Dots        []dot
	Bars        []dot
	Marks       []dot // changes of level
	Scale       []tickY
	From, To    string
	Wide, High  int
}

type dot struct {
	X, Y, High float64
	Class      string
	Title      string
	Href       string
}

type tickY struct {
	Y    float64
	Text string
}

// window is the samples of a part of the time.
type window struct {
	x      float64
	values []time.Duration
}

// axisX spreads samples over the width: each as far from the next, since what matters is
// their order and nights are empty.
func axisX(i, n int) float64 {
	return trendLeft + (float64(i)+.5)/float64(max(n, 1))*(trendWide-trendLeft-6)
}

func axisY(share float64) float64 {
	return 6 + (1-min(max(share, 0), 1))*(trendHigh-trendLow-6)
}

// durations is the chart of how long something took, or waited.
func durations(title string, samples []Sample, of func(Sample) time.Duration, shifts []Shift) trend {
	t := trend{Title: title, Wide: trendWide, High: trendHigh}
	var all []time.Duration
	var use []Sample
	for _, s := range samples {
		if of(s) > 0 && (s.Passed || s.Failed) {
			all, use = append(all, of(s)), append(use, s)
		}
	}
	if len(use) < 2 {
		return t
	}
	slices.Sort(all)
	// One that hung for hours must not make a line of all others.
	top := min(all[len(all)-1], all[len(all)*9/10]*2)
	top = max(top, time.Millisecond)
	y := func(d time.Duration) float64 { return axisY(float64(d) / float64(top)) }
	var windows []window
	per := max((len(use)+buckets-1)/buckets, 1)
	for i, s := range use {
		if i%per == 0 {
			windows = append(windows, window{x: axisX(i+per/2, len(use))})
		}
		w := &windows[len(windows)-1]
		w.values = append(w.values, of(s))
		d := dot{X: axisX(i, len(use)), Y: y(of(s)), Class: "ok", Title: fmt.Sprintf("#%d: %s", s.Number, board.Short(of(s))), Href: "/runs/" + s.Run}
		if s.Failed {
			d.Class = "bad"
		}
		t.Dots = append(t.Dots, d)
	}
	var back []string
	for i, w := range windows {
		slices.Sort(w.values)
		p50, p90 := y(w.values[len(w.values)/2]), y(w.values[len(w.values)*9/10])
		letter := "L"
		if i == 0 {
			letter = "M"
		}
		t.P50 += fmt.Sprintf("%s%.1f %.1f", letter, w.x, p50)
		t.P90 += fmt.Sprintf("%s%.1f %.1f", letter, w.x, p90)
		back = append(back, fmt.Sprintf("L%.1f %.1f", w.x, p50))
	}
	slices.Reverse(back)
	t.Area = t.P90 + strings.Join(back, "") + "Z"
	for _, s := range shifts {
		for i, u := range use {
			if !u.At.Before(s.Began) {
				t.Marks = append(t.Marks, dot{X: axisX(i, len(use)), Title: s.Says(), Href: "/runs/" + s.Run})
				break
			}
		}
	}
	for _, share := range []float64{0, .5, 1} {
		t.Scale = append(t.Scale, tickY{axisY(share), axis(time.Duration(share * float64(top)).Round(time.Second / 10))})
	}
	t.Says = fmt.Sprintf("p50 %s, p90 %s", board.Short(all[len(all)/2]), board.Short(all[len(all)*9/10]))
	t.From, t.To = use[0].At.UTC().Format("2 Jan"), use[len(use)-1].At.UTC().Format("2 Jan")
	return t
}

// failures is the chart of the share that failed.
func failureRate(samples []Sample) trend {
	t := trend{Title: "Failure rate", Wide: trendWide, High: trendHigh}
	var use []Sample
	bad := 0
	for _, s := range samples {
		if s.Passed || s.Failed {
			use = append(use, s)
			if s.Failed {
				bad++
			}
		}
	}
	if len(use) < 2 {
		return t
	}
	per := max((len(use)+buckets-1)/buckets, 1)
	for i := 0; i < len(use); i += per {
		part := use[i:min(i+per, len(use))]
		n := 0
		for _, s := range part {
			if s.Failed {
				n++
			}
		}
		share := float64(n) / float64(len(part))
		x, next := axisX(i, len(use)), axisX(i+len(part), len(use))
		t.Bars = append(t.Bars, dot{X: x, High: max(next-x-2, 1), Y: axisY(share), Title: fmt.Sprintf("%d of %d failed, from #%d to #%d", n, len(part),
			part[0].Number,
			part[len(part)-1].Number)})
	}
	for _, share := range []float64{0, .5, 1} {
		t.Scale = append(t.Scale, tickY{axisY(share), board.Percent(share)})
	}
	t.Says = fmt.Sprintf("%d of %d failed, %s", bad, len(use), board.Percent(float64(bad)/float64(len(use))))
	t.From, t.To = use[0].At.UTC().Format("2 Jan"), use[len(use)-1].At.UTC().Format("2 Jan")
	return t
}

// repositoryView is a repository's page.
type repositoryView struct {
	frame
	Spot      Spot
	Name      string // of what the trends are of
	Trends    []trend
	Parts     []Part
	MoreParts int
	Workflows []string
	Known     Known
}

// At is the page of a place in this repository.
func (v repositoryView) At(workflow, job, step string) string {
	return "/repository?" + spotValues(Spot{v.Spot.Repository, workflow, job, step}).Encode()
}

func spotValues(s Spot) url.Values {
	q := url.Values{}
	for _, f := range []struct{ k, v string }{{"name", s.Repository}, {"workflow", s.Workflow}, {"job", s.Job}, {"step", s.Step}} {
		if f.v != "" {
			q.Set(f.k, f.v)
		}
	}
	return q
}

// shownParts is how many steps a page lists.
const shownParts = 40

// repositories lists those that have had runs.
func (s *Server) repositories(w http.ResponseWriter, r *http.Request) {
	names, err := s.source.Repositories(r.Context(), maxRepositories)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.render(w, http.StatusOK, "repositories.html", struct {
		frame
		Names []string
		Most  int
	}{s.frame(r, "Repositories"), names, maxRepositories})
}

// repository is the page of one.
func (s *Server) repository(w http.ResponseWriter, r *http.Request) {
	ctx, q := r.Context(), r.URL.Query()
	if s.insight == nil || q.Get("name") == "" || len(r.URL.RawQuery) > 4<<10 {
		s.fail(w, r, ErrNotFound)
		return
	}
	at := Spot{q.Get("name"), q.Get("workflow"), q.Get("job"), q.Get("step")}
	v := repositoryView{frame: s.frame(r, at.Repository), Spot: at, Name: strings.Join(slices.DeleteFunc([]string{at.Workflow, at.Job, at.Step},
		func(s string) bool { return s == "" }), " › ")}
	samples, err := s.insight.Trend(ctx, at)
	if err == nil {
		v.Parts, err = s.insight.Parts(ctx, at.Repository, at.Workflow)
	}
	if err == nil {
		v.Known, err = s.insight.Known(ctx, at.Repository)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if len(samples) == 0 && len(v.Parts) == 0 {
		s.fail(w, r, ErrNotFound)
		return
	}
	for _, p := range v.Parts {
		if !slices.Contains(v.Workflows, p.Workflow) {
			v.Workflows = append(v.Workflows, p.Workflow)
		}
	}
	slices.Sort(v.Workflows)
	v.Workflows = v.Workflows[:min(len(v.Workflows), shownParts)]
	if over := len(v.Parts) - shownParts; over > 0 {
		v.Parts, v.MoreParts = v.Parts[:shownParts], over
	}
	var here []Shift // of what the trends are of
	for _, x := range v.Known.Shifts {
		if x.Workflow == at.Workflow && at.Job != "" && (x.Job == at.Job || strings.HasPrefix(x.Job, at.Job+" (")) && (x.Step == "") == (at.Step == "") &&
			!strings.HasPrefix(x.Kind, "fails") {
			here = append(here, x)
		}
	}
	v.Trends = append(v.Trends, durations("Duration", samples, func(s Sample) time.Duration { return s.Took }, here), failureRate(samples))
	if at.Job == "" {
		v.Trends = append(v.Trends, durations("Wait for the first machine", samples, func(s Sample) time.Duration { return s.Queue }, nil))
	}
	s.render(w, http.StatusOK, "repository.html", v)
}
