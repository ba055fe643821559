// Package bench measures what Hearth promises in figures, and says whether each
// is met.
//
// One file a subject; every subject returns a [Report], which has one form for
// all of them, on the terminal ([Report.Table]) and as JSON.
package bench

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is the outcome of one benchmark.
type Report struct {
	Machine string   `json:"machine"`
	Figures []Figure `json:"figures"`
}

// Figure is one measured quantity. Target is the bound that P50 is held to, or
// P99 where the name says so; 0: none, and OK is true.
type Figure struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	N      int     `json:"n"`
	Min    float64 `json:"min"`
	P50    float64 `json:"p50"`
	P99    float64 `json:"p99"`
	Max    float64 `json:"max"`
	Target float64 `json:"target"`
	OK     bool    `json:"ok"`
	// AtLeast says that Target bounds P50 from below: a rate.
	AtLeast bool `json:"at_least,omitempty"`
}

// NewReport begins a report about this machine.
func NewReport() *Report { return &Report{Machine: describeHost()} }

// Add adds a figure from samples. target bounds the median from above; 0 is no
// target. Without samples the figure is not met.
func (r *Report) Add(name, unit string, target float64, samples []float64) {
	f := Figure{Name: name, Unit: unit, N: len(samples), Target: target}
	if len(samples) > 0 {
		s := slices.Clone(samples)
		slices.Sort(s)
		at := func(q float64) float64 { return s[min(int(q*float64(len(s))), len(s)-1)] }
		f.Min, f.P50, f.P99, f.Max = s[0], at(.5), at(.99), s[len(s)-1]
		f.OK = target == 0 || f.P50 <= target
	}
	r.Figures = append(r.Figures, f)
}

// AddP99 is Add with a target that bounds P99.
func (r *Report) AddP99(name, unit string, target float64, samples []float64) {
	r.Add(name, unit, target, samples)
	f := &r.Figures[len(r.Figures)-1]
	f.OK = f.N > 0 && (target == 0 || f.P99 <= target)
}

// AddRate is Add with a target that bounds the median from below.
func (r *Report) AddRate(name, unit string, target float64, samples []float64) {
	r.Add(name, unit, target, samples)
	f := &r.Figures[len(r.Figures)-1]
	f.AtLeast, f.OK = true, f.N > 0 && f.P50 >= target
}

// OK reports whether all targets are met.
func (r *Report) OK() bool {
	return !slices.ContainsFunc(r.Figures, func(f Figure) bool { return !f.OK })
}

// Table writes the report for people.
func (r *Report) Table(w io.Writer) error {
	fmt.Fprintln(w, r.Machine)
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "figure\tunit\tn\tmin\tp50\tp99\tmax\ttarget\t")
	for _, f := range r.Figures {
		target, mark := "–", ""
		if f.Target != 0 {
			target, mark = fmt.Sprintf("%.4g", f.Target), "met"
			if f.AtLeast {
				target = "≥ " + target
			}
			if !f.OK {
				mark = "MISSED"
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%.4g\t%.4g\t%.4g\t%.4g\t%s\t%s\n", f.Name, f.Unit, f.N, f.Min, f.P50, f.P99, f.Max, target, mark)
	}
	return tw.Flush()
}

func describeHost() string {
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d CPUs, %s/%s, %s", model, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
}

// micros is a duration in µs.
func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
