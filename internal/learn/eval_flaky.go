package learn

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// FlakyScores measure judgements of failures as flaky or real, each from the labels
// of those before it.
type FlakyScores struct {
	F1        float64 `json:"f1"`
	Low       float64 `json:"low"` // 90 % interval, by resampling
	High      float64 `json:"high"`
	Precision float64 `json:"precision"`
	Recall    float64 `json:"recall"`
	LogLoss   float64 `json:"log_loss"`
}

// FlakyResult is what [EvalFlaky] found, beside the label of the nearest neighbour
// (Jaccard over the masked words of the last 40 lines).
type FlakyResult struct {
	N       int         `json:"n"`
	Flaky   int         `json:"flaky"`
	Hearth  FlakyScores `json:"hearth"`
	Nearest FlakyScores `json:"nearest"`
}

// EvalFlaky judges failed logs in the order of time. The directory has labels.csv
// with the columns id, job, created_at and intermittent (0 or 1), in any order, and
// logs/ID.log. predictions, if not nil, gets the CSV id,p_flaky.
func EvalFlaky(ctx context.Context, dir string, predictions io.Writer) (FlakyResult, error) {
	rows, err := readFlaky(filepath.Join(dir, "labels.csv"))
	if err != nil {
		return FlakyResult{}, err
	}
	x, f := NewExtractor(), NewFlakes(max(1000, len(rows)))
	type example struct {
		words []uint32
		flaky bool
	}
	var seen []example
	n := len(rows)
	ps, nearest, ys := make([]float64, n), make([]float64, n), make([]bool, n)
	if predictions != nil {
		fmt.Fprintln(predictions, "id,p_flaky")
	}
	res := FlakyResult{N: n}
	for i, r := range rows {
		if err := ctx.Err(); err != nil {
			return res, context.Cause(ctx)
		}
		lines, err := readLog(filepath.Join(dir, "logs", r.id+".log"))
		if err != nil {
			return res, fmt.Errorf("read labels: %w", err)
		}
		failure := FlakyFailure{x.Extract(lines, nil, "").Class, r.job, FlakeTokens(lines)}
		ps[i], ys[i], nearest[i] = f.Predict(failure), r.flaky, .01
		best := -1.0
		for _, e := range seen {
			if s := jaccard(failure.Words, e.words); s >= best {
				best, nearest[i] = s, .01
				if e.flaky {
					nearest[i] = .99
				}
			}
		}
		f.Add("", r.id, failure)
		f.Label("", r.id, r.flaky)
		seen = append(seen, example{failure.Words, r.flaky})
		if r.flaky {
			res.Flaky++
		}
		if predictions != nil {
			fmt.Fprintf(predictions, "%s,%s\n", r.id, strconv.FormatFloat(ps[i], 'g', 8, 64))
		}
	}
	res.Hearth, res.Nearest = flakyScores(ps, ys), flakyScores(nearest, ys)
	return res, nil
}

type flakyRow struct {
	id, job, created string
	flaky            bool
}

func readFlaky(name string) (out []flakyRow, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := csv.NewReader(f)
	head, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("read labels: %s: %w", name, err)
	}
	at := map[string]int{}
	for i, c := range head {
		at[strings.TrimSpace(strings.TrimPrefix(c, "\ufeff"))] = i
	}
	for _, need := range []string{"id", "created_at", "intermittent"} {
		if _, ok := at[need]; !ok {
			return nil, fmt.Errorf("read labels: %s: there is no column %s among %s", name, need, strings.Join(head, ", "))
		}
	}
	for {
		rec, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read labels: %s: %w", name, err)
		}
		row := flakyRow{id: rec[at["id"]], created: rec[at["created_at"]]}
		if i, ok := at["job"]; ok {
			row.job = rec[i]
		}
		switch v := rec[at["intermittent"]]; v {
		case "0":
		case "1":
			row.flaky = true
		default:
			return nil, fmt.Errorf("read labels: %s: intermittent of %s is %q, neither 0 nor 1", name, row.id, v)
		}
		if !filepath.IsLocal(row.id) || strings.ContainsAny(row.id, `/\`) {
			return nil, fmt.Errorf("read labels: %s: %q is no name of a log", name, row.id)
		}
		out = append(out, row)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("read labels: %s has no rows", name)
	}
	slices.SortStableFunc(out, func(a, b flakyRow) int { return strings.Compare(a.created, b.created) })
	return out, nil
}

func flakyScores(ps []float64, ys []bool) FlakyScores {
	count := func(pick func(int) int) (tp, fp, fn float64) {
		for i := range ps {
			j := pick(i)
			switch guess := ps[j] >= .5; {
			case guess && ys[j]:
				tp++
			case guess:
				fp++
			case ys[j]:
				fn++
			}
		}
		return tp, fp, fn
	}
	f1 := func(tp, fp, fn float64) float64 { return 2 * tp / max(2*tp+fp+fn, 1) }
	tp, fp, fn := count(func(i int) int { return i })
	s := FlakyScores{F1: f1(tp, fp, fn), Precision: tp / max(tp+fp, 1), Recall: tp / max(tp+fn, 1)}
	s.Low, s.High = bootstrap(func(r *rand.Rand) float64 { return f1(count(func(int) int { return r.IntN(len(ps)) })) })
	for i, p := range ps {
		y := 0.0
		if ys[i] {
			y = 1
		}
		s.LogLoss += logLoss(p, y) / float64(len(ps))
	}
	return s
}
