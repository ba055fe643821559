package learn

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"
)

// RetryPolicy is what one way to decide about failures came to, on those whose next
// attempt is known. All sums are over them.
type RetryPolicy struct {
	Name    string  `json:"name"`
	Retried int     `json:"retried"`
	Passed  int     `json:"passed"` // of those
	Wrong   int     `json:"wrong"`  // of those: failed again
	Missed  int     `json:"missed"` // not tried again, and would have passed
	Minutes float64 `json:"minutes"`
	// Saved is Minutes of a hundred failures: what passes spare people, less what all
	// attempts took. Low and High are its 90 % interval, by resampling.
	Saved float64 `json:"saved"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// RetryResult is what [EvalRetry] found.
type RetryResult struct {
	Rows      int           `json:"rows"`
	Decisions int           `json:"decisions"` // failures whose next attempt is in the file
	Model     Scores        `json:"model"`     // of the probability that the next attempt fails
	Table     Scores        `json:"table"`     // likewise, by the number of the attempt alone
	Rate      Scores        `json:"rate"`      // likewise, by how often attempts at the step passed
	Policies  []RetryPolicy `json:"policies"`  // Hearth's first
}

// flakyThreshold is the rule that others use: a step is tried again if attempts at it
// have passed at least so often.
const flakyThreshold = .5

// EvalRetry replays a file of executions, as [Eval] does and with its columns, and
// decides about each failure whose next attempt is in it: a row with an attempt above
// 1, unless the attempt before it, of the same repo, workflow, job, step, branch and
// commit, is there and passed. There may be the columns signature and class, of what
// a failure said (taken from the row of the attempt that failed), and asked (0 where
// nobody chose the attempt; 1 if left out). wait is what a person costs, 0 as in
// [Options]. predictions, if not nil, gets the CSV row,p_fail,retry of those rows.
func EvalRetry(ctx context.Context, r io.Reader, wait time.Duration, predictions io.Writer) (RetryResult, error) {
	rows, err := readOutcomes(r)
	if err != nil {
		return RetryResult{}, err
	}
	if predictions == nil {
		predictions = io.Discard
	}
	out := bufio.NewWriter(predictions)
	fmt.Fprintln(out, "row,p_fail,retry")
	res := RetryResult{Rows: len(rows)}
	var ps [3][]float64
	var ys []bool
	names := [...]string{"hearth", "never", "always", "once", "flaky threshold"}
	var did [len(names)][]bool
	var worth []float64 // minutes, of an attempt
	wait = cmp.Or(max(wait, 0), humanWait)
	err = replayRetries(ctx, rows, func(c decided) {
		if !c.known {
			return
		}
		row := &rows[c.next]
		costs := Costs{Wait: wait, Attempt: c.expected}
		again := costs.pays(c.p, c.weight) >= .5
		fmt.Fprintf(out, "%d,%s,%d\n", c.next, seconds(1-c.p), map[bool]int{true: 1}[again])
		ys = append(ys, row.failed)
		ps[0], ps[1], ps[2] = append(ps[0], 1-c.p), append(ps[1], 1-c.table), append(ps[2], 1-c.rate)
		for i, v := range [...]bool{again, false, true, c.of.tried() == 1, c.rate >= flakyThreshold} {
			did[i] = append(did[i], v)
		}
		v := -c.took.Minutes()
		if !row.failed {
			v += wait.Minutes()
		}
		worth = append(worth, v)
	})
	if err != nil {
		return res, err
	}
	if res.Decisions = len(ys); res.Decisions == 0 {
		return res, errors.New("read outcomes: no row is a later attempt: there is nothing to decide about")
	}
	res.Model, res.Table, res.Rate = score(ps[0], ys), score(ps[1], ys), score(ps[2], ys)
	for i, name := range names {
		res.Policies = append(res.Policies, retryPolicy(name, did[i], ys, worth))
	}
	if err := out.Flush(); err != nil {
		return res, fmt.Errorf("write predictions: %w", err)
	}
	return res, nil
}

func retryPolicy(name string, did, failed []bool, worth []float64) RetryPolicy {
	v := RetryPolicy{Name: name}
	for i, again := range did {
		switch {
		case again && failed[i]:
			v.Wrong++
		case again:
			v.Passed++
		case !failed[i]:
			v.Missed++
		}
		if again {
			v.Retried++
			v.Minutes += worth[i]
		}
	}
	n := float64(len(did))
	v.Saved = 100 * v.Minutes / n
	v.Low, v.High = bootstrap(func(r *rand.Rand) float64 {
		sum := 0.0
		for range did {
			if i := r.IntN(len(did)); did[i] {
				sum += worth[i]
			}
		}
		return 100 * sum / n
	})
	return v
}

// decided is a failure in a replay, with what is known of it when it is decided about.
type decided struct {
	of             RetryCase
	row            int     // that failed; -1 if it is not in the file
	next           int     // the next attempt
	known          bool    // there is one
	p, weight      float64 // that it passes
	passed         float64 // attempts of its like
	table, rate    float64 // likewise, by simpler ways
	expected, took time.Duration
}

// replayRetries walks over the failures of a file in the order of time. A failure whose
// next attempt is in the file is decided about when that starts, any other when the
// file has ended, by what was known when it failed.
func replayRetries(ctx context.Context, rows []outcomeRow, decide func(decided)) error {
	next := nextAttempts(rows)
	before := make(map[int]int, len(next))
	for i, j := range next {
		before[j] = i
	}
	retries, durations := NewRetries(0), NewDurations(0)
	rate := map[uint64]*[2]float64{}
	var table [len(retryPrior)][2]float64
	foretold := make([]DurationEstimate, len(rows))
	var mean, n float64
	cases := map[int]RetryCase{} // by the row of the next attempt
	stepKey := func(i int) uint64 { return keysOf(&rows[i].Execution).level[levelStep] }
	about := func(i int, asked bool) RetryCase {
		x := &rows[i]
		return RetryCase{Repo: x.Repo, Workflow: x.Workflow, Job: x.Job, Step: x.Step, Branch: x.Branch, Signature: x.signature, Class: x.class,
			Attempt: max(x.Attempt, 1), Asked: asked}
	}
	judge := func(c RetryCase, i int) decided {
		d := decided{of: c, row: -1, next: -1}
		d.p, d.weight = retries.Predict(c)
		d.passed, _ = retries.Passed(c)
		d.table = (tableWeight*retryPrior[c.tried()-1] + table[c.tried()-1][0]) / (tableWeight + table[c.tried()-1][1])
		d.rate = d.table
		if v := rate[stepKey(i)]; v != nil {
			d.rate = (v[0] + d.table) / (v[1] + 1)
		}
		d.expected = time.Duration(mean * float64(time.Second))
		if e := durations.Predict(&rows[i].Execution); e.N > 0 {
			d.expected = time.Duration(e.Median * float64(time.Second))
		}
		d.took = d.expected
		return d
	}
	for i, done := range delayed(rows, func(j int) {
		row := &rows[j]
		if row.duration >= 0 {
			durations.Add(&row.Execution, &foretold[j], row.duration)
			n++
			mean += (row.duration - mean) / n
		}
		if row.failed {
			if _, again := next[j]; !again {
				d := judge(about(j, false), j)
				d.row = j
				decide(d)
			}
		}
		c, ok := cases[j]
		if !ok {
			return
		}
		delete(cases, j)
		retries.Learn(c, !row.failed)
		k := stepKey(j)
		if rate[k] == nil {
			rate[k] = &[2]float64{}
		}
		t := &table[c.tried()-1]
		rate[k][1]++
		t[1]++
		if !row.failed {
			rate[k][0]++
			t[0]++
		}
	}) {
		if i%1000 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		done()
		row := &rows[i]
		foretold[i] = durations.Predict(&row.Execution)
		if row.Attempt < 2 {
			continue
		}
		was, there := before[i]
		if there && !rows[was].failed {
			continue // all was run again, not because of this
		}
		c := about(i, row.asked)
		c.Attempt, c.Signature, c.Class = row.Attempt-1, "", ""
		if there {
			c = about(was, row.asked)
		}
		d := judge(c, i)
		d.next, d.known = i, true
		if there {
			d.row = was
		}
		if row.duration >= 0 {
			d.took = time.Duration(row.duration * float64(time.Second))
		}
		decide(d)
		cases[i] = c
	}
	return nil
}

// nextAttempts finds, for rows, the row of the next attempt at the same.
func nextAttempts(rows []outcomeRow) map[int]int {
	type thing struct {
		repo, workflow, job, step, branch, commit string
		attempt                                   int
	}
	at := map[thing]int{}
	next := map[int]int{}
	for i := range rows {
		x := &rows[i]
		t := thing{x.Repo, x.Workflow, x.Job, x.Step, x.Branch, x.Commit, max(x.Attempt, 1)}
		at[t] = i
		if t.attempt == 1 {
			continue
		}
		t.attempt--
		if j, ok := at[t]; ok {
			if _, taken := next[j]; !taken {
				next[j] = i
			}
		}
	}
	return next
}

// ReplayResult is what [Replay] found: what decisions would have come to.
type ReplayResult struct {
	Rows     int `json:"rows"`
	Failures int `json:"failures"`
	// Waited is how long people looked after failures with decisions off, in minutes.
	Waited float64  `json:"waited"`
	On     Replayed `json:"on"`
	// Repositories are the same of each, the one with most failures first.
	Repositories []ReplayedRepository `json:"repositories"`
}

// Replayed is what decisions came to, where the file tells, and what is expected where
// it does not.
type Replayed struct {
	Retried int `json:"retried"`
	Passed  int `json:"passed"` // seen in the file
	Wrong   int `json:"wrong"`  // seen in the file
	Unknown int `json:"unknown"`
	// Saved is what passes spared people, in minutes, Spent what attempts took: both of
	// attempts that are in the file. Expected is the difference of both that is expected
	// of the others, by their own probabilities.
	Saved    float64 `json:"saved"`
	Spent    float64 `json:"spent"`
	Expected float64 `json:"expected"`
}

// ReplayedRepository is what decisions came to in a repository.
type ReplayedRepository struct {
	Repository string `json:"repository"`
	Failures   int    `json:"failures"`
	Replayed
}

// Replay decides about every failure of a file, as [EvalRetry] reads it, as the learner
// would that may act, and compares it with what happened: where the file has the next
// attempt, that is what the retry comes to.
func Replay(ctx context.Context, r io.Reader, wait time.Duration) (ReplayResult, error) {
	rows, err := readOutcomes(r)
	if err != nil {
		return ReplayResult{}, err
	}
	wait = cmp.Or(max(wait, 0), humanWait)
	res := ReplayResult{Rows: len(rows)}
	of := map[string]*ReplayedRepository{}
	err = replayRetries(ctx, rows, func(d decided) {
		res.Failures++
		res.Waited += wait.Minutes()
		v := of[d.of.Repo]
		if v == nil {
			v = &ReplayedRepository{Repository: d.of.Repo}
			of[d.of.Repo] = v
		}
		v.Failures++
		costs := Costs{Wait: wait, Attempt: d.expected}
		if d.of.forbidden(d.passed) != "" || costs.pays(d.p, d.weight) < .5 {
			return
		}
		for _, t := range [...]*Replayed{&res.On, &v.Replayed} {
			t.Retried++
			switch {
			case !d.known:
				t.Unknown++
				t.Expected += d.p*wait.Minutes() - d.expected.Minutes()
				continue
			case rows[d.next].failed:
				t.Wrong++
			default:
				t.Passed++
				t.Saved += wait.Minutes()
			}
			t.Spent += d.took.Minutes()
		}
	})
	for _, v := range of {
		res.Repositories = append(res.Repositories, *v)
	}
	slices.SortFunc(res.Repositories, func(a, b ReplayedRepository) int {
		return cmp.Or(cmp.Compare(b.Failures, a.Failures), cmp.Compare(a.Repository, b.Repository))
	})
	return res, err
}
