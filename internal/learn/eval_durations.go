package learn

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
)

// DurationEval measures one way to foretell durations, on the rows that all ways
// could say something of.
type DurationEval struct {
	Name string `json:"name"`
	// LogError is the mean of |ln(foretold / actual)|: .1 is about ten per cent; Low
	// and High are its 90 % interval, by resampling.
	LogError  float64 `json:"log_error"`
	Low       float64 `json:"low"`
	High      float64 `json:"high"`
	MedianAPE float64 `json:"median_ape"` // median of |error| / actual
	Within2x  float64 `json:"within_2x"`  // share
	// P90Cover and P995Cover are the shares of rows at or below the foretold 90 % and
	// 99.5 % quantiles, P90Width the median of that quantile over the duration foretold:
	// a bound is easily kept by one that is far off.
	P90Cover  float64 `json:"p90_cover"`
	P90Width  float64 `json:"p90_width"`
	P995Cover float64 `json:"p995_cover"`
}

// DurationsResult is what [EvalDurations] found.
type DurationsResult struct {
	Rows       int            `json:"rows"`       // with a duration
	Compared   int            `json:"compared"`   // whose step had a duration before
	Predictors []DurationEval `json:"predictors"` // Hearth's first
}

// EvalDurations replays a file of finished executions as [Eval] does and measures
// what was foretold of their durations (duration_s, or where that is empty the time
// from started_at to ended_at) beside the last duration of the same step, its mean,
// the median of its last thirty, and an exponentially weighted mean (weight .3) of
// logarithms; the quantiles of those are the empirical ones of the last thirty.
// predictions, if not nil, gets the CSV row,seconds,p90,p995 of every row that
// something is known of.
func EvalDurations(ctx context.Context, r io.Reader, predictions io.Writer) (DurationsResult, error) {
	rows, err := readOutcomes(r)
	if err != nil {
		return DurationsResult{}, err
	}
	res := DurationsResult{}
	if predictions == nil {
		predictions = io.Discard
	}
	out := bufio.NewWriter(predictions)
	fmt.Fprintln(out, "row,seconds,p90,p995")
	d := NewDurations(len(rows) * 3)
	past := map[uint64]*durationPast{}
	foretold := make([]DurationEstimate, len(rows))
	names := []string{"hearth", "last", "mean", "median of 30", "EWMA"}
	tallies := make([]durationErrors, len(names))
	for i, done := range delayed(rows, func(j int) {
		x := &rows[j]
		if x.duration < 0 {
			return
		}
		k := keysOf(&x.Execution).level[levelStep]
		if past[k] == nil {
			past[k] = &durationPast{}
		}
		past[k].add(x.duration)
		d.Add(&x.Execution, &foretold[j], x.duration)
	}) {
		if i%1000 == 0 && ctx.Err() != nil {
			return res, context.Cause(ctx)
		}
		row := &rows[i]
		if row.duration < 0 && row.end > row.At {
			row.duration = row.end - row.At
		}
		done()
		if row.duration < 0 {
			continue
		}
		res.Rows++
		e := d.Predict(&row.Execution)
		foretold[i] = e
		if e.N > 0 {
			fmt.Fprintf(out, "%d,%s,%s,%s\n", i, seconds(e.Median), seconds(e.P90), seconds(e.P995))
		}
		was := past[keysOf(&row.Execution).level[levelStep]]
		if was == nil || e.N == 0 {
			continue
		}
		res.Compared++
		tallies[0].add(e, row.duration)
		for j, m := range was.means() {
			tallies[j+1].add(DurationEstimate{Median: m, P90: was.quantile(.9), P995: was.quantile(.995), N: 1}, row.duration)
		}
	}
	if res.Rows == 0 {
		return res, errors.New("read outcomes: no row has a duration")
	}
	for j, name := range names {
		res.Predictors = append(res.Predictors, tallies[j].scores(name))
	}
	if err := out.Flush(); err != nil {
		return res, fmt.Errorf("write predictions: %w", err)
	}
	return res, nil
}

func seconds(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }

// durationPast is what the simple ways remember of a step.
type durationPast struct {
	w         window
	last, sum float64
	n         float64
	ewma      float64 // of logarithms
}

func (p *durationPast) add(d float64) {
	p.w.add(d)
	p.last = d
	p.sum += d
	p.n++
	l := math.Log(max(d, floor))
	if p.n == 1 {
		p.ewma = l
	}
	p.ewma += .3 * (l - p.ewma)
}

func (p *durationPast) quantile(q float64) float64 {
	var buf [windowSize]float32
	return quantile(p.w.sorted(&buf), q)
}

// means are what the simple ways expect: last, mean, median, weighted.
func (p *durationPast) means() [4]float64 {
	return [4]float64{p.last, p.sum / p.n, p.quantile(.5), math.Exp(p.ewma)}
}

type durationErrors struct {
	logs, apes, widths     []float64
	within, in90, in995, n float64
}

func (t *durationErrors) add(e DurationEstimate, took float64) {
	took = max(took, floor)
	l := math.Abs(math.Log(max(e.Median, floor) / took))
	t.logs = append(t.logs, l)
	t.apes = append(t.apes, math.Abs(e.Median-took)/took)
	t.widths = append(t.widths, max(e.P90, floor)/max(e.Median, floor))
	t.n++
	if l <= math.Ln2 {
		t.within++
	}
	if took <= max(e.P90, floor) {
		t.in90++
	}
	if took <= max(e.P995, floor) {
		t.in995++
	}
}

func (t *durationErrors) scores(name string) DurationEval {
	s := DurationEval{Name: name}
	if t.n == 0 {
		return s
	}
	mean := func(pick func(int) int) float64 {
		sum := 0.0
		for i := range t.logs {
			sum += t.logs[pick(i)]
		}
		return sum / t.n
	}
	s.LogError = mean(func(i int) int { return i })
	s.Low, s.High = bootstrap(func(r *rand.Rand) float64 { return mean(func(int) int { return r.IntN(len(t.logs)) }) })
	slices.Sort(t.apes)
	slices.Sort(t.widths)
	s.MedianAPE, s.P90Width = t.apes[len(t.apes)/2], t.widths[len(t.widths)/2]
	s.Within2x, s.P90Cover, s.P995Cover = t.within/t.n, t.in90/t.n, t.in995/t.n
	return s
}
