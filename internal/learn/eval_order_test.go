package learn_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/learn"
)

// builds makes up a project's builds: tests of very different kinds, whose failures
// persist (streaks), come singly, or change their ways.
func builds(kind string, seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 1))
	const tests, n = 120, 250
	rate, born, bad := make([]float64, tests), make([]int, tests), make([]bool, tests)
	pareto := func() float64 { return min(.5, .002/max(r.Float64(), .001)) }
	for i := range tests {
		rate[i] = pareto()
		if r.Float64() > .7 {
			born[i] = r.IntN(n)
		}
	}
	var b strings.Builder
	b.WriteString("build,test,outcome,duration_s\n")
	for at := range n {
		for i := range tests {
			if born[i] > at {
				continue
			}
			fails := r.Float64() < rate[i]
			switch kind {
			case "streaks":
				fails = bad[i] && r.Float64() > .25 || !bad[i] && r.Float64() < rate[i]/2
				bad[i] = fails
			case "drift":
				if r.Float64() < .01 {
					rate[i] = pareto()
				}
			}
			fmt.Fprintf(&b, "b%d,pkg%d.t%d,%s,%.2f\n", at, i/10, i, map[bool]string{true: "failed", false: "passed"}[fails], .1+r.Float64())
		}
	}
	return b.String()
}

// On made-up projects of three kinds ours comes near the best of the simple orders,
// whichever that is there, and none of those does so on all three.
func TestEvalOrder(t *testing.T) {
	for _, kind := range []string{"single", "streaks", "drift"} {
		res, err := learn.EvalOrder(t.Context(), strings.NewReader(builds(kind, 3)), nil)
		if err != nil {
			t.Fatal(err)
		}
		best := 0.0
		for _, o := range res.Orders[1:] {
			best = max(best, o.APFD)
			if o.Low > o.APFD || o.High < o.APFD {
				t.Errorf("%s: %+v", kind, o)
			}
		}
		if ours := res.Orders[0]; ours.APFD < best-.01 {
			t.Errorf("%s: %+v, the best of the others has %.3f", kind, ours, best)
		}
		if last := res.Orders[len(res.Orders)-1]; last.Name != "random" || last.APFD < .47 || last.APFD > .53 {
			t.Errorf("%s: %+v", kind, last)
		}
	}
}

func TestEvalOrderReads(t *testing.T) {
	// The second build runs b first, since it failed: its failure is the first of
	// three, and APFD is 1 - 1/3 + 1/6.
	const file = "build,test,failed,duration_s\n1,a,0,1\n1,b,1,1\n1,c,skipped,\n2,a,0,1\n2,c,0,1\n2,\"b,x\",0,\n2,b,1,2\n"
	var out strings.Builder
	res, err := learn.EvalOrder(t.Context(), strings.NewReader(file), &out)
	if err != nil || res.Builds != 2 || res.Failed != 2 || res.Tests != 7 {
		t.Fatalf("%+v, %v", res, err)
	}
	if want := "2,b,1,"; !strings.Contains(out.String(), want) || !strings.Contains(out.String(), `"b,x"`) || strings.Count(out.String(), "\n") != 8 {
		t.Errorf("%q is not in\n%s", want, &out)
	}
	// In the order of the file, b is the second of three, then the last of four: of the
	// time half and all but a quarter had gone when it had run halfway.
	file2 := res.Orders[4]
	if want := (1 - 2./3 + 1./6 + 1 - 4./4 + 1./8) / 2; file2.Name != "as in the file" || file2.APFD < want-1e-9 || file2.APFD > want+1e-9 {
		t.Errorf("%+v, want %v", file2, want)
	}
	if want := (.5/2 + 1./4) / 2; file2.Cost < want-1e-9 || file2.Cost > want+1e-9 {
		t.Errorf("%+v, want %v by time", file2, want)
	}
	for in, want := range map[string]string{
		"": "is empty", "a,b\n": "no column build", "build,name\n": "no column failed", "build,test,failed\n": "no rows",
		"build,test,failed\n1,a,perhaps\n": "row 0: failed is \"perhaps\"", "build,test,failed,duration_s\n1,a,0,x\n": "not a number",
		"build,test,failed\n1,a\n": "row 0",
	} {
		if _, err := learn.EvalOrder(context.Background(), strings.NewReader(in), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", in, err)
		}
	}
	// Executions with steps are builds with tests.
	res, err = learn.EvalOrder(t.Context(), strings.NewReader("started_at,ended_at,repo,step,failed\n1,2,r,a,0\n1,2,r,b,1\n5,6,r,a,0\n"), nil)
	if err != nil || res.Builds != 2 || res.Failed != 1 {
		t.Errorf("%+v, %v", res, err)
	}
}
