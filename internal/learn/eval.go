package learn

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Scores are what is measured of predictions of a yes or no.
type Scores struct {
	N       int     `json:"n"`
	Failed  int     `json:"failed"`
	AUC     float64 `json:"auc"`
	LogLoss float64 `json:"log_loss"`
	Brier   float64 `json:"brier"`
	ECE     float64 `json:"ece"` // expected calibration error, 10 bins of equal width
}

// EvalResult is what [Eval] found: the model beside the three references of
// old.
type EvalResult struct {
	Rows         int             `json:"rows"`
	Model        Scores          `json:"model"`
	BaseRate     Scores          `json:"base_rate"`
	LastOutcome  Scores          `json:"last_outcome"`
	Hierarchical Scores          `json:"hierarchical"` // half-life 20, s 3
	Duration     *DurationScores `json:"duration,omitempty"`
	// Greens is how far what was said of things that had never failed came true.
	Greens []Calibration `json:"greens,omitempty"`
}

// Calibration compares what was predicted with what happened, of everything that
// had passed between From and To times and never failed. An honest prediction
// lies inside the interval of what was observed.
type Calibration struct {
	From      int     `json:"from"`
	To        int     `json:"to"`
	N         int     `json:"n"`
	Failed    int     `json:"failed"`
	Predicted float64 `json:"predicted"` // mean
	Low       float64 `json:"low"`       // 90 % interval of the share that failed
	High      float64 `json:"high"`
}

// Holds reports whether the prediction lies inside the interval.
func (c Calibration) Holds() bool { return c.Low <= c.Predicted && c.Predicted <= c.High }

// greenTally collects calibrations.
type greenTally [6]Calibration

// The bounds of a calibration, in passes without a failure.
var greenBounds = [6][2]int{{1, 1}, {2, 2}, {3, 4}, {5, 9}, {10, 19}, {20, 49}}

func (t *greenTally) add(greens int64, p float64, failed bool) {
	for i, b := range greenBounds {
		if int64(b[0]) <= greens && greens <= int64(b[1]) {
			t[i].N++
			t[i].Predicted += p
			if failed {
				t[i].Failed++
			}
		}
	}
}

func (t *greenTally) result() (out []Calibration) {
	for i, c := range t {
		if c.N == 0 {
			continue
		}
		c.From, c.To = greenBounds[i][0], greenBounds[i][1]
		c.Predicted /= float64(c.N)
		c.Low, c.High = wilson(float64(c.Failed)/float64(c.N), float64(c.N), 1.645)
		out = append(out, c)
	}
	return out
}

// DurationScores measure the durations that were foretold before each row.
type DurationScores struct {
	N         int     `json:"n"`
	MedianAPE float64 `json:"median_ape"` // of the expected duration: median of |error| / actual
	Within2x  float64 `json:"within_2x"`
	P90Cover  float64 `json:"p90_cover,omitempty"` // share of rows at or below the foretold 90 % quantile
}

// EvalOptions change [Eval].
type EvalOptions struct {
	// Predictions, if not nil, gets a CSV: row,p_fail, row from 0, every row.
	Predictions io.Writer
	// Cold gives each repository a model that knows nothing yet, as if each were the
	// first on a fresh install.
	Cold bool
}

// Eval replays a file of finished executions, CSV or gzipped CSV with a header
// (columns: started_at, ended_at, repo, workflow, job, step, branch, commit,
// attempt, failed, duration_s, and of what the commit changed author, parent, files,
// added, deleted, src, test, doc, config; in any order, sorted by start; all but
// the times and failed may be left out). Each row is predicted when it starts, from
// the rows that had ended before that, and learned from when it ends. An error
// names the row.
func Eval(ctx context.Context, r io.Reader, opt EvalOptions) (EvalResult, error) {
	rows, err := readOutcomes(r)
	if err != nil {
		return EvalResult{}, err
	}
	res := EvalResult{Rows: len(rows)}
	unit := unitOf(rows)
	models := map[string]*Model{}
	model := func(repo string) *Model {
		if !opt.Cold {
			repo = ""
		}
		if models[repo] == nil {
			models[repo] = NewModel(0)
		}
		return models[repo]
	}
	var greens greenTally
	refs := newReferences()
	durations := NewDurations(0)
	n := len(rows)
	type ref struct{ base, last, hier float64 }
	ps := make([]float64, n)
	rp := make([]ref, n)
	ys := make([]bool, n)
	est := make([]*Estimate, n)
	var ds durationTally
	for i, done := range delayed(rows, func(j int) {
		done := &rows[j]
		model(done.Repo).Learn(est[j], done.failed, done.end)
		refs.learn(&done.Execution, done.failed)
		if done.duration >= 0 {
			durations.Add(&done.Execution, est[j].took, done.duration)
		}
		est[j] = nil
	}) {
		if i%1000 == 0 && ctx.Err() != nil {
			return res, context.Cause(ctx)
		}
		row := &rows[i]
		done()
		m := model(row.Repo)
		m.Settle()
		row.Unit = unit
		e := m.Predict(row.Execution)
		if c := m.at(&e.keys, levelStep); c != nil && c.fails == 0 && row.Attempt <= 1 {
			greens.add(c.seen, e.P, row.failed)
		}
		est[i], ps[i], ys[i] = e, e.P, row.failed
		rp[i].base, rp[i].last, rp[i].hier = refs.predict(&row.Execution)
		if row.duration >= 0 {
			e.took = new(durations.Predict(&row.Execution))
			ds.add(*e.took, row.duration)
		}
	}
	res.Model = score(ps, ys)
	pick := func(f func(ref) float64) Scores {
		v := make([]float64, n)
		for i := range rp {
			v[i] = f(rp[i])
		}
		return score(v, ys)
	}
	res.BaseRate = pick(func(r ref) float64 { return r.base })
	res.LastOutcome = pick(func(r ref) float64 { return r.last })
	res.Hierarchical = pick(func(r ref) float64 { return r.hier })
	res.Duration = ds.scores()
	res.Greens = greens.result()
	if opt.Predictions != nil {
		w := bufio.NewWriter(opt.Predictions)
		fmt.Fprintln(w, "row,p_fail")
		for i, p := range ps {
			w.WriteString(strconv.Itoa(i))
			w.WriteByte(',')
			w.WriteString(strconv.FormatFloat(p, 'g', 8, 64))
			w.WriteByte('\n')
		}
		if err := w.Flush(); err != nil {
			return res, fmt.Errorf("write predictions: %w", err)
		}
	}
	return res, nil
}

// unitOf is what the rows of a file are: steps or tests where they are named, jobs
// where those are, and where each repository has but one thing, whole runs.
func unitOf(rows []outcomeRow) string {
	things := map[string]Execution{}
	unit := unitRun
	for i := range rows {
		r := &rows[i]
		if r.Step != "" {
			return unitStep
		}
		x := Execution{Workflow: r.Workflow, Job: r.Job}
		if was, ok := things[r.Repo]; ok && was != x {
			unit = unitJob
		}
		things[r.Repo] = x
	}
	return unit
}

type outcomeRow struct {
	Execution
	end      float64
	failed   bool
	duration float64 // seconds; < 0: unknown
	// Of what is tried again.
	signature string
	class     Class
	asked     bool
}

// csvReader reads CSV, gzipped or not.
func csvReader(r io.Reader) (*csv.Reader, error) {
	br := bufio.NewReaderSize(r, 1<<16)
	if magic, err := br.Peek(2); err == nil && bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, err
		}
		br = bufio.NewReaderSize(z, 1<<16)
	}
	cr := csv.NewReader(br)
	cr.ReuseRecord = true
	return cr, nil
}

// columns are the places of the columns of a CSV file by their names.
func columns(head []string) map[string]int {
	col := map[string]int{}
	for i, name := range head {
		col[strings.TrimSpace(strings.TrimPrefix(name, "\ufeff"))] = i
	}
	return col
}

func readOutcomes(r io.Reader) ([]outcomeRow, error) {
	cr, err := csvReader(r)
	if err != nil {
		return nil, fmt.Errorf("read outcomes: %w", err)
	}
	head, err := cr.Read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("read outcomes: the file is empty; its first line names the columns (started_at, ended_at, repo, …, failed)")
	}
	if err != nil {
		return nil, fmt.Errorf("read outcomes: %w", err)
	}
	col := columns(head)
	for _, need := range []string{"started_at", "ended_at", "failed"} {
		if _, ok := col[need]; !ok {
			return nil, fmt.Errorf("read outcomes: there is no column %s among %s", need, strings.Join(head, ", "))
		}
	}
	var rows []outcomeRow
	intern := map[string]string{}
	for n := 0; ; n++ {
		rec, err := cr.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read outcomes: row %d: %w", n, err)
		}
		get := func(name string) string {
			i, ok := col[name]
			if !ok {
				return ""
			}
			s, ok := intern[rec[i]]
			if !ok {
				s = strings.Clone(rec[i])
				intern[s] = s
			}
			return s
		}
		num := func(name string, empty float64) (float64, error) {
			s := strings.TrimSpace(get(name))
			if s == "" {
				return empty, nil
			}
			v, err := strconv.ParseFloat(s, 64)
			if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
				return 0, fmt.Errorf("read outcomes: row %d: %s is %q, not a number", n, name, s)
			}
			return v, nil
		}
		var row outcomeRow
		row.Repo, row.Workflow, row.Job, row.Step = get("repo"), get("workflow"), get("job"), get("step")
		row.Branch, row.Commit = get("branch"), get("commit")
		row.signature, row.class = get("signature"), Class(get("class"))
		var err1, err2, err3, err4, err5, err6 error
		var attempt, failed, asked float64
		row.At, err1 = num("started_at", 0)
		row.end, err2 = num("ended_at", row.At)
		attempt, err3 = num("attempt", 1)
		failed, err4 = num("failed", 0)
		row.duration, err5 = num("duration_s", -1)
		asked, err6 = num("asked", 1)
		if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
			return nil, err
		}
		c := &row.Change
		c.Parent, c.Author = get("parent"), get("author")
		for _, f := range [...]struct {
			name string
			to   *int
		}{{"files", &c.Files}, {"added", &c.Added}, {"deleted", &c.Deleted}, {"src", &c.Source}, {"test", &c.Test}, {"doc", &c.Doc}, {"config", &c.Config}} {
			v, err := num(f.name, -1)
			if err != nil {
				return nil, err
			}
			if *f.to = int(min(max(v, -1), 1e9)); *f.to >= 0 {
				c.Known = true
			}
		}
		row.end = max(row.end, row.At)
		row.Attempt, row.failed, row.asked = int(min(max(attempt, 1), 1e6)), failed != 0, asked != 0
		rows = append(rows, row)
	}
	if len(rows) == 0 {
		return nil, errors.New("read outcomes: the file has no rows")
	}
	if !slices.IsSortedFunc(rows, func(a, b outcomeRow) int {
		switch {
		case a.At < b.At:
			return -1
		case a.At > b.At:
			return 1
		}
		return 0
	}) {
		return nil, errors.New("read outcomes: the rows are not sorted by started_at")
	}
	return rows, nil
}

// score measures predictions ps of ys.
func score(ps []float64, ys []bool) Scores {
	s := Scores{N: len(ps)}
	if s.N == 0 {
		return s
	}
	type bin struct{ n, p, y float64 }
	var bins [10]bin
	for i, p := range ps {
		y := 0.0
		if ys[i] {
			y = 1
			s.Failed++
		}
		s.LogLoss += logLoss(p, y)
		s.Brier += (p - y) * (p - y)
		b := &bins[min(int(p*10), 9)]
		b.n++
		b.p += p
		b.y += y
	}
	n := float64(s.N)
	s.LogLoss /= n
	s.Brier /= n
	for _, b := range bins {
		s.ECE += math.Abs(b.p-b.y) / n
	}
	s.AUC = auc(ps, ys)
	return s
}

// auc is the probability that a failure was ranked above a success; ties count
// half. Without both kinds it is one half.
func auc(ps []float64, ys []bool) float64 {
	idx := make([]int, len(ps))
	for i := range idx {
		idx[i] = i
	}
	sort.Slice(idx, func(a, b int) bool { return ps[idx[a]] < ps[idx[b]] })
	var ranks, pos float64
	for i := 0; i < len(idx); {
		j := i
		for j < len(idx) && ps[idx[j]] == ps[idx[i]] {
			j++
		}
		mid := float64(i+j+1) / 2
		for ; i < j; i++ {
			if ys[idx[i]] {
				ranks += mid
				pos++
			}
		}
	}
	neg := float64(len(ps)) - pos
	if pos == 0 || neg == 0 {
		return .5
	}
	return (ranks - pos*(pos+1)/2) / (pos * neg)
}

// references are the three predictors that the design names, to be beaten.
type references struct {
	n, f float64
	last map[uint64]bool
	hier map[uint64]*[2]float64
}

func newReferences() *references {
	return &references{last: map[uint64]bool{}, hier: map[uint64]*[2]float64{}}
}

func (r *references) predict(x *Execution) (base, last, hier float64) {
	base = (r.f + .1) / (r.n + 1)
	k := keysOf(x)
	last = base
	if l, ok := r.last[k.level[levelStep]]; ok {
		last = .1
		if l {
			last = .8
		}
	}
	hier = .1
	for _, key := range k.level[:levelStep+1] {
		if c := r.hier[key]; c != nil {
			hier = (c[1] + 3*hier) / (c[0] + 3)
		}
	}
	return base, last, hier
}

func (r *references) learn(x *Execution, failed bool) {
	y := 0.0
	if failed {
		y = 1
	}
	r.n++
	r.f += y
	k := keysOf(x)
	r.last[k.level[levelStep]] = failed
	d := math.Exp2(-1. / 20)
	for _, key := range k.level[:levelStep+1] {
		c := r.hier[key]
		if c == nil {
			c = new([2]float64)
			r.hier[key] = c
		}
		c[0] = c[0]*d + 1
		c[1] = c[1]*d + y
	}
}
