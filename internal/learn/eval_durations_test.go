package learn

import (
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// durationsFile is a made history: jobs with branches that take their own time, a
// host whose speed wanders, and noise.
func durationsFile(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 1))
	var b strings.Builder
	b.WriteString("started_at,ended_at,repo,workflow,job,step,branch,failed,duration_s\n")
	host := 0.0
	at := 0.0
	for range n {
		host = .98*host + .05*r.NormFloat64()
		job, branch := r.IntN(3), r.IntN(4)
		took := math.Exp(4 + float64(job) + .3*float64(branch) + host + .15*r.NormFloat64())
		if r.IntN(50) == 0 {
			took *= 4 // a run that hung
		}
		at += took + 1
		fmt.Fprintf(&b, "%.1f,%.1f,o/r,ci,j%d,make,b%d,0,%.3f\n", at-took, at, job, branch, took)
	}
	return b.String()
}

func TestEvalDurations(t *testing.T) {
	for seed := range uint64(3) {
		var out bytes.Buffer
		res, err := EvalDurations(context.Background(), strings.NewReader(durationsFile(seed, 3000)), &out)
		if err != nil {
			t.Fatal(err)
		}
		ours := res.Predictors[0]
		if ours.Name != "hearth" || res.Rows != 3000 || res.Compared != 2997 {
			t.Fatalf("%+v", res)
		}
		for _, other := range res.Predictors[1:] {
			if ours.High > other.Low {
				t.Errorf("seed %d: %+v is not better than %+v", seed, ours, other)
			}
		}
		if math.Abs(ours.P90Cover-.9) > .01 || math.Abs(ours.P995Cover-.995) > .004 || ours.Low > ours.LogError || ours.LogError > ours.High {
			t.Errorf("seed %d: %+v", seed, ours)
		}
		rows, err := csv.NewReader(&out).ReadAll()
		if err != nil || len(rows) < 2990 || strings.Join(rows[0], ",") != "row,seconds,p90,p995" {
			t.Errorf("%d rows, %v", len(rows), err)
		}
	}
	for file, want := range map[string]string{
		"started_at,ended_at,failed\n5,5,0\n": "no row has a duration",
		"":                                    "empty",
	} {
		if _, err := EvalDurations(context.Background(), strings.NewReader(file), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", file, err)
		}
	}
	// What took no measurable time, and what always takes the same, keeps its bounds.
	same := "started_at,ended_at,repo,failed,duration_s\n" + "1,2,r,0,1200.1\n" + strings.Repeat("5,6,r,0,1200.1\n", 50) +
		"9,10,r,0,1200.1\n20,21,z,0,0\n30,31,z,0,0\n"
	res, err := EvalDurations(context.Background(), strings.NewReader(same), nil)
	if err != nil || res.Predictors[0].P90Cover != 1 || res.Predictors[0].LogError > 1e-4 {
		t.Errorf("%+v, %v", res.Predictors[0], err)
	}
}
