package learn

import (
	"bytes"
	"compress/gzip"
	"encoding/csv"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// dataDir finds the evaluation data, which is not part of the project.
func dataDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("HEARTH_DATA")
	if dir == "" {
		wd, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		for d := wd; d != filepath.Dir(d); d = filepath.Dir(d) {
			if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
				dir = filepath.Join(d, "..", "shared", "data")
			}
		}
	}
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("SKIPPED, NOT PASSED: no evaluation data at %q: set HEARTH_DATA", dir)
	}
	return dir
}

// TestEvalFiles holds the model to what the prototype reached (the design's
// table), and to being better than each of its references.
func TestEvalFiles(t *testing.T) {
	for _, c := range []struct {
		name         string
		auc, logLoss float64
	}{
		{"lrts-dev", .773, .5555}, {"dune-debian", .929, .0234}, {"pytorch-jobs", .66, .160},
	} {
		f, err := os.Open(filepath.Join(dataDir(t), "outcomes", c.name+".csv.gz"))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		r, err := Eval(t.Context(), f, EvalOptions{Predictions: &out})
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s\n model %+v\n base %+v\n last %+v\n hier %+v\n dur %+v", c.name, r.Model, r.BaseRate, r.LastOutcome, r.Hierarchical, r.Duration)
		if r.Model.AUC < c.auc || r.Model.LogLoss > c.logLoss {
			t.Errorf("%s: AUC %.4f, log-loss %.4f; the prototype had %.3f, %.4f", c.name, r.Model.AUC, r.Model.LogLoss, c.auc, c.logLoss)
		}
		if r.Model.AUC < max(r.BaseRate.AUC, r.LastOutcome.AUC, r.Hierarchical.AUC) {
			t.Errorf("%s: a reference ranks better", c.name)
		}
		rows, err := csv.NewReader(&out).ReadAll()
		if err != nil || len(rows) != r.Rows+1 || strings.Join(rows[0], ",") != "row,p_fail" || rows[r.Rows][0] != strconv.Itoa(r.Rows-1) {
			t.Errorf("%s: predictions file: %d lines for %d rows, %v", c.name, len(rows), r.Rows, err)
		}
	}
}

func predictionsOf(t *testing.T, text string) []string {
	t.Helper()
	var out bytes.Buffer
	if _, err := Eval(t.Context(), strings.NewReader(text), EvalOptions{Predictions: &out}); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(out.String()), "\n")[1:]
}

// TestEvalUsesNothingTooEarly: turning one outcome over may change predictions
// only of rows that started after it had ended.
func TestEvalUsesNothingTooEarly(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const n = 400
	type row struct {
		start, end int
		text       string
		failed     bool
	}
	var rows []row
	at := 0
	for i := range n {
		at += r.IntN(3)
		rows = append(rows, row{at, at + r.IntN(40), fmt.Sprintf("o/r,w,j%d,,b%d,c%d,%d", r.IntN(4), r.IntN(3), i/8, 1+r.IntN(10)/9), r.IntN(3) == 0})
	}
	render := func() string {
		var b strings.Builder
		b.WriteString("started_at,ended_at,repo,workflow,job,step,branch,commit,attempt,failed,duration_s\n")
		for _, v := range rows {
			f := 0
			if v.failed {
				f = 1
			}
			fmt.Fprintf(&b, "%d,%d,%s,%d,%d\n", v.start, v.end, v.text, f, v.end-v.start)
		}
		return b.String()
	}
	before := predictionsOf(t, render())
	changedAny := false
	for range 25 {
		k := r.IntN(n)
		rows[k].failed = !rows[k].failed
		after := predictionsOf(t, render())
		rows[k].failed = !rows[k].failed
		for i := range rows {
			if before[i] == after[i] {
				continue
			}
			changedAny = true
			if rows[i].start <= rows[k].end {
				t.Fatalf("row %d started at %d and knew the outcome of row %d, which ended at %d", i, rows[i].start, k, rows[k].end)
			}
		}
	}
	if !changedAny {
		t.Error("no outcome changes any prediction")
	}
}

func TestEvalRefuses(t *testing.T) {
	head := "started_at,ended_at,repo,failed\n"
	for in, want := range map[string]string{
		"":                              "empty",
		"a,b\n1,2\n":                    "no column started_at",
		head:                            "no rows",
		head + "x,2,r,0\n":              "row 0: started_at",
		head + "2,3,r,0\n1,2,r,0\n":     "not sorted",
		head + "1,2,r\n":                "row 0",
		head + "1,2,r,1\nNaN,NaN,r,0\n": "row 1",
		"\x1f\x8brubbish":               "read outcomes",
	} {
		_, err := Eval(t.Context(), strings.NewReader(in), EvalOptions{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write([]byte(head + "1,2,r,1\n3,4,r,0\n"))
	w.Close()
	if r, err := Eval(t.Context(), &z, EvalOptions{}); err != nil || r.Rows != 2 {
		t.Errorf("gzip: %+v %v", r, err)
	}
}

func TestScores(t *testing.T) {
	s := score([]float64{.1, .4, .35, .8}, []bool{false, false, true, true})
	if s.AUC != .75 || s.Brier < .158 || s.Brier > .159 || s.Failed != 2 {
		t.Errorf("%+v", s)
	}
	if a := auc([]float64{.5, .5, .5}, []bool{true, false, true}); a != .5 {
		t.Errorf("ties: %v", a)
	}
}

func FuzzReadOutcomes(f *testing.F) {
	f.Add([]byte("started_at,ended_at,repo,failed\n1,2,r,1\n"))
	f.Add([]byte("\x1f\x8b\x08"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<12 {
			return
		}
		rows, err := readOutcomes(bytes.NewReader(b))
		if err == nil && len(rows) == 0 {
			t.Fatal("no rows and no error")
		}
	})
}

// TestEvalChanges: what a commit changed tells of its outcome, where it does.
func TestEvalChanges(t *testing.T) {
	file := func(columns bool) string {
		var b strings.Builder
		b.WriteString("started_at,ended_at,repo,commit,failed,parent,files,added\n")
		r := rand.New(rand.NewPCG(1, 2))
		for i := range 1500 {
			files := r.IntN(40)
			failed := 0
			if r.Float64() < .02+.4*float64(files)/40 {
				failed = 1
			}
			change := ",,"
			if columns {
				change = fmt.Sprintf("c%d,%d,%d", i-1, files, files*10)
			}
			fmt.Fprintf(&b, "%d,%d,o/r,c%d,%d,%s\n", i*1000, i*1000+500, i, failed, change)
		}
		return b.String()
	}
	with, err := Eval(t.Context(), strings.NewReader(file(true)), EvalOptions{})
	if err != nil {
		t.Fatal(err)
	}
	without, err := Eval(t.Context(), strings.NewReader(file(false)), EvalOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if with.Model.AUC < without.Model.AUC+.1 || with.Model.LogLoss > without.Model.LogLoss-.02 {
		t.Errorf("with what was changed AUC %.3f, log-loss %.4f; without %.3f, %.4f", with.Model.AUC, with.Model.LogLoss, without.Model.AUC, without.Model.LogLoss)
	}
	if _, err := Eval(t.Context(), strings.NewReader("started_at,ended_at,failed,files\n1,2,0,many\n"), EvalOptions{}); err == nil ||
		!strings.Contains(err.Error(), `files is "many"`) {
		t.Errorf("%v", err)
	}
}

// TestEvalCold: each repository is the first of its install, and what was said of
// what never failed is compared with what happened.
func TestEvalCold(t *testing.T) {
	var b strings.Builder
	b.WriteString("started_at,ended_at,repo,failed\n")
	for i := range 900 {
		repo := i % 30
		failed := 0
		if repo < 15 { // half of them always fail: that says nothing of the others
			failed = 1
		}
		fmt.Fprintf(&b, "%d,%d,o/r%d,%d\n", i*1000, i*1000+500, repo, failed)
	}
	of := func(cold bool) []Calibration {
		r, err := Eval(t.Context(), strings.NewReader(b.String()), EvalOptions{Cold: cold})
		if err != nil {
			t.Fatal(err)
		}
		return r.Greens
	}
	cold, warm := of(true), of(false)
	if len(cold) != 6 || cold[0].N != 15 || cold[0].Failed != 0 || cold[0].From != 1 || cold[5].To != 49 || !cold[0].Holds() {
		t.Fatalf("%+v", cold)
	}
	if math.Abs(cold[0].Predicted-warm[0].Predicted) < .005 {
		t.Errorf("a cold start has learned from other repositories: %.3f, %.3f", cold[0].Predicted, warm[0].Predicted)
	}
}
