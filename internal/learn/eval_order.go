package learn

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// OrderScores measure an order of tests by where in it the failures stand, over the
// builds in which something failed.
type OrderScores struct {
	Name string `json:"name"`
	// APFD is the average percentage of faults detected: 1 where all that fails comes
	// first, about .5 by chance. Low and High are its 90 % interval, by resampling
	// builds.
	APFD float64 `json:"apfd"`
	Low  float64 `json:"low"`
	High float64 `json:"high"`
	// Cost is the same with each test counted as long as it took (APFDc); 0 without
	// durations.
	Cost float64 `json:"apfd_c,omitempty"`
	// First is how far through the build the first failure came, of its tests.
	First float64 `json:"first"`
}

// OrderResult is what [EvalOrder] found.
type OrderResult struct {
	Builds int           `json:"builds"`
	Failed int           `json:"failed"` // builds that are measured: something failed, of at least two tests
	Tests  int           `json:"tests"`  // rows
	Orders []OrderScores `json:"orders"` // ours first
}

type orderedTest struct {
	name     string
	failed   bool
	seconds  float64 // < 0: not told
	ran      bool    // it passed or failed
	key      string
	rank     int
	p        float64
	estimate float64 // of seconds, before
}

// testHistory is what an order may know of a test: what happened in earlier builds.
type testHistory struct {
	recent         string
	passed, failed int
	lastFailed     int // build, from 1; 0: never
	seconds        float64
}

// EvalOrder replays builds in the order of the file: the tests of each are put in
// order from what earlier builds said, then their outcomes are learned. The file is
// CSV, gzipped or not, a row for each test of a build, with the columns
//
//	build      what tells builds apart; or run, or cycle
//	test       the test's name; or name
//	failed     0 or 1; or outcome or verdict, of which fail, failed, failure, error and 1 are failures, and skipped,
//	           ignored and the like count for nothing
//	duration_s seconds; or duration; may be missing
//	repo, workflow, job  whose tests they are; may be missing
//
// in the order of time. A file of executions with steps, as [Eval] reads it, is taken
// too: a build is then what has one repository, workflow, job, start and commit.
// predictions, if not nil, gets the CSV build,test,rank,p_fail, rank from 1.
func EvalOrder(ctx context.Context, r io.Reader, predictions io.Writer) (OrderResult, error) {
	builds, names, err := readBuilds(r)
	if err != nil {
		return OrderResult{}, err
	}
	res := OrderResult{Builds: len(builds)}
	risk := &testRisk{}
	known := map[string]*testHistory{}
	shuffle := rand.New(rand.NewPCG(7, 7))
	kinds := []string{"hearth", "last failed first", "most failures first", "shortest first", "as in the file", "random"}
	apfd, cost, first := make([][]float64, len(kinds)), make([][]float64, len(kinds)), make([][]float64, len(kinds))
	var out *bufio.Writer
	if predictions != nil {
		out = bufio.NewWriter(predictions)
		fmt.Fprintln(out, "build,test,rank,p_fail")
	}
	timed := true
	for b, tests := range builds {
		if err := ctx.Err(); err != nil {
			return res, context.Cause(ctx)
		}
		res.Tests += len(tests)
		failures, seconds := 0, 0.0
		for i := range tests {
			t := &tests[i]
			h := known[t.key]
			if h == nil {
				h = &testHistory{}
			}
			t.rank, t.p, t.estimate = i, risk.predict(t.name, h.recent, h.passed, h.failed), h.seconds
			if t.failed {
				failures++
			}
			seconds += max(t.seconds, 0)
		}
		history := func(t orderedTest) *testHistory {
			if h := known[t.key]; h != nil {
				return h
			}
			return &testHistory{}
		}
		ours := slices.Clone(tests)
		slices.SortStableFunc(ours, func(x, y orderedTest) int {
			return cmp.Or(cmp.Compare(round(y.p), round(x.p)), risk.tie(x.estimate, y.estimate))
		})
		if out != nil {
			for i, t := range ours {
				fmt.Fprintf(out, "%s,%s,%d,%s\n", quoteCSV(names[b]), quoteCSV(t.name), i+1, strconv.FormatFloat(t.p, 'g', 6, 64))
			}
		}
		if failures > 0 && len(tests) > 1 {
			res.Failed++
			timed = timed && seconds > 0
			orders := [][]orderedTest{ours, slices.Clone(tests), slices.Clone(tests), slices.Clone(tests), tests}
			slices.SortStableFunc(orders[1], func(x, y orderedTest) int { return cmp.Compare(history(y).lastFailed, history(x).lastFailed) })
			slices.SortStableFunc(orders[2], func(x, y orderedTest) int { return cmp.Compare(history(y).failed, history(x).failed) })
			slices.SortStableFunc(orders[3], func(x, y orderedTest) int { return cmp.Compare(history(x).seconds, history(y).seconds) })
			for k, o := range orders {
				a, c, f := detected(o, failures)
				apfd[k], cost[k], first[k] = append(apfd[k], a), append(cost[k], c), append(first[k], f)
			}
			var a, c, f float64
			const times = 10
			o := slices.Clone(tests)
			for range times {
				shuffle.Shuffle(len(o), func(i, j int) { o[i], o[j] = o[j], o[i] })
				x, y, z := detected(o, failures)
				a, c, f = a+x/times, c+y/times, f+z/times
			}
			k := len(kinds) - 1
			apfd[k], cost[k], first[k] = append(apfd[k], a), append(cost[k], c), append(first[k], f)
		}
		estimates := make([]float64, len(tests))
		for i, t := range tests {
			estimates[i] = t.estimate
		}
		middle := medianOf(estimates)
		for _, t := range tests {
			if t.failed {
				risk.took(t.estimate, middle)
			}
			if !t.ran {
				continue
			}
			h := known[t.key]
			if h == nil {
				h = &testHistory{}
				known[t.key] = h
			}
			how := byte('P')
			if t.failed {
				how = 'F'
				h.failed++
				h.lastFailed = b + 1
				risk.count(t.name, 0, 1)
			} else {
				h.passed++
				risk.count(t.name, 1, 0)
			}
			if n := len(h.recent); n > 0 {
				risk.pair(h.recent[n-1], how)
			}
			h.recent += string(how)
			h.recent = h.recent[max(0, len(h.recent)-maxRecent):]
			if t.seconds >= 0 {
				if h.seconds == 0 {
					h.seconds = t.seconds
				}
				h.seconds = .8*h.seconds + .2*t.seconds
			}
		}
	}
	if out != nil {
		if err := out.Flush(); err != nil {
			return res, fmt.Errorf("write predictions: %w", err)
		}
	}
	for k, name := range kinds {
		s := OrderScores{Name: name, APFD: mean(apfd[k]), First: mean(first[k])}
		if timed {
			s.Cost = mean(cost[k])
		}
		if n := len(apfd[k]); n > 0 {
			s.Low, s.High = bootstrap(func(r *rand.Rand) float64 {
				sum := 0.0
				for range n {
					sum += apfd[k][r.IntN(n)]
				}
				return sum / float64(n)
			})
		}
		res.Orders = append(res.Orders, s)
	}
	return res, nil
}

// maxRecent is how many outcomes of a test are kept.
const maxRecent = 32

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(max(len(v), 1))
}

// detected says how early an order finds the failures: by tests, by time, and where
// the first stands.
func detected(order []orderedTest, failures int) (apfd, cost, first float64) {
	n, m := float64(len(order)), float64(failures)
	total := 0.0
	for _, t := range order {
		total += max(t.seconds, 0)
	}
	ranks, left, sum := 0.0, total, 0.0
	first = 1
	for i, t := range order {
		s := max(t.seconds, 0)
		if t.failed {
			if ranks == 0 {
				first = float64(i+1) / n
			}
			ranks += float64(i + 1)
			sum += left - s/2
		}
		left -= s
	}
	if total > 0 {
		cost = sum / (total * m)
	}
	return 1 - ranks/(n*m) + 1/(2*n), cost, first
}

func quoteCSV(s string) string {
	if strings.ContainsAny(s, ",\"\r\n") {
		return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
	}
	return s
}

// readBuilds reads the tests of each build, and what the builds are called.
func readBuilds(r io.Reader) (builds [][]orderedTest, names []string, err error) {
	cr, err := csvReader(r)
	if err != nil {
		return nil, nil, fmt.Errorf("read tests: %w", err)
	}
	head, err := cr.Read()
	if errors.Is(err, io.EOF) {
		return nil, nil, errors.New("read tests: the file is empty; its first line names the columns (build, test, failed, duration_s)")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read tests: %w", err)
	}
	head = slices.Clone(head) // the reader uses its own again
	col := columns(head)
	low := map[string]int{}
	for name, i := range col {
		low[strings.ToLower(name)] = i
	}
	pick := func(names ...string) int {
		for _, n := range names {
			if i, ok := low[n]; ok {
				return i
			}
		}
		return -1
	}
	build, test := pick("build", "build_id", "run", "run_id", "cycle", "job_id"), pick("test", "test_name", "name", "step")
	failed, duration := pick("failed", "outcome", "verdict", "status", "result"), pick("duration_s", "duration", "seconds", "time")
	var parts []int // of a build's name where it has none
	for _, n := range []string{"repo", "workflow", "job", "started_at", "commit"} {
		if i := pick(n); i >= 0 {
			parts = append(parts, i)
		}
	}
	if build < 0 && pick("started_at") < 0 {
		return nil, nil, fmt.Errorf("read tests: there is no column build (or run, cycle, or started_at) among %s", strings.Join(head, ", "))
	}
	for i, need := range []int{test, failed} {
		if need < 0 {
			return nil, nil, fmt.Errorf("read tests: there is no column %s among %s", []string{"test", "failed (or outcome)"}[i], strings.Join(head, ", "))
		}
	}
	whose := []int{pick("repo"), pick("workflow"), pick("job")}
	index := map[string]int{}
	intern := map[string]string{}
	keep := func(s string) string {
		v, ok := intern[s]
		if !ok {
			v = strings.Clone(s)
			intern[v] = v
		}
		return v
	}
	for n := 0; ; n++ {
		rec, err := cr.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read tests: row %d: %w", n, err)
		}
		var key strings.Builder
		for _, i := range whose {
			if i >= 0 {
				key.WriteString(rec[i])
			}
			key.WriteByte('\n')
		}
		t := orderedTest{name: keep(rec[test]), key: keep(key.String() + rec[test]), seconds: -1, ran: true}
		if t.failed, t.ran = verdictOf(rec[failed]); !t.ran && t.failed {
			return nil, nil, fmt.Errorf("read tests: row %d: %s is %q, neither passed nor failed", n, head[failed], rec[failed])
		}
		if duration >= 0 && strings.TrimSpace(rec[duration]) != "" {
			v, err := strconv.ParseFloat(strings.TrimSpace(rec[duration]), 64)
			if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
				return nil, nil, fmt.Errorf("read tests: row %d: %s is %q, not a number", n, head[duration], rec[duration])
			}
			t.seconds = max(v, 0)
		}
		name := ""
		if build >= 0 {
			name = rec[build]
		} else {
			var p []string
			for _, i := range parts {
				p = append(p, rec[i])
			}
			name = strings.Join(p, " ")
		}
		id := key.String() + name
		i, ok := index[id]
		if !ok {
			i = len(builds)
			index[id] = i
			builds, names = append(builds, nil), append(names, keep(name))
		}
		builds[i] = append(builds[i], t)
	}
	if len(builds) == 0 {
		return nil, nil, errors.New("read tests: the file has no rows")
	}
	return builds, names, nil
}

// verdictOf reads an outcome. What is no word for one failed and did not run.
func verdictOf(s string) (failed, ran bool) {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "0", "0.0", "pass", "passed", "success", "ok", "true":
		return false, true
	case "1", "1.0", "fail", "failed", "failure", "error", "errored", "broken", "false":
		return true, true
	case "", "skip", "skipped", "ignored", "disabled", "notrun", "not_run", "cancelled", "xfail":
		return false, false
	}
	return true, false
}
