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
	"time"
)

// TestRetriesGoFromTheWholeToThePart: what is known of everything speaks until the
// part has spoken, and one repository's signature says nothing of another's.
func TestRetriesGoFromTheWholeToThePart(t *testing.T) {
	r := NewRetries(0)
	c := RetryCase{Repo: "o/a", Workflow: "ci", Job: "j", Step: "make", Branch: "main", Signature: "s", Class: ClassOther, Attempt: 1}
	p, w := r.Predict(c)
	if math.Abs(p-unaskedPassed[0]) > 1e-6 || w != signatureWeight {
		t.Errorf("nothing is known: %v of %v", p, w)
	}
	network, compile := c, c
	network.Class, compile.Class = ClassNetwork, ClassCompile
	if n, _ := r.Predict(network); n < .6 {
		t.Errorf("a network failure passes with %v", n)
	}
	if n, _ := r.Predict(compile); n > .2 {
		t.Errorf("a compile failure passes with %v", n)
	}
	asked := c
	asked.Asked = true
	if a, _ := r.Predict(asked); a <= p {
		t.Errorf("%v where a person asked, %v where not", a, p)
	}
	for range 6 {
		r.Learn(c, true)
	}
	own, weight := r.Predict(c)
	step, branch, repo, other := c, c, c, c
	step.Signature = "new"
	branch.Signature, branch.Step = "new", "other"
	repo.Signature, repo.Step, repo.Branch, repo.Workflow = "new", "other", "dev", "nightly"
	other.Repo = "o/b"
	var ps []float64
	for _, c := range []RetryCase{c, step, branch, repo, other} {
		p, _ := r.Predict(c)
		ps = append(ps, p)
	}
	for i := 1; i < len(ps); i++ {
		if ps[i] >= ps[i-1] {
			t.Errorf("from the part to the whole: %v", ps)
			break
		}
	}
	if own < .8 || weight < 9 || ps[4] > .6 {
		t.Errorf("%v of %v; another repository %v", own, weight, ps[4])
	}
	if passed, n := r.Passed(other); passed != 0 || n != 0 {
		t.Errorf("another repository's attempts: %v of %v", passed, n)
	}
}

// TestAttackFloodOfRetries: names that a workflow makes up push out their own
// repository's, never what others know.
func TestAttackFloodOfRetries(t *testing.T) {
	r := NewRetries(200)
	victim := RetryCase{Repo: "good/repo", Job: "j", Step: "s", Signature: "sig", Attempt: 1}
	for range 5 {
		r.Learn(victim, true)
	}
	before, _ := r.Predict(victim)
	for i := range 20_000 {
		r.Learn(RetryCase{Repo: "evil/repo", Job: fmt.Sprint(i), Step: fmt.Sprint(i), Branch: fmt.Sprint(i), Signature: fmt.Sprint(i), Attempt: i}, false)
	}
	if len(r.m) > 200 {
		t.Errorf("%d keys", len(r.m))
	}
	if _, n := r.Passed(victim); n < 4 {
		t.Errorf("what was known is gone: %v attempts (it passed with %v)", n, before)
	}
}

func TestCosts(t *testing.T) {
	c := Costs{Wait: 10 * time.Minute, Attempt: 5 * time.Minute}
	for _, v := range []struct{ p, weight, low, high float64 }{
		{.9, 4, 1, 1}, {.1, 4, 0, 0}, {.5, 4, .49, .51}, {.55, 4, .5, .7}, {.55, 400, .85, .9}, {.45, 1e6, .1, .1},
	} {
		if got := c.pays(v.p, v.weight); got < v.low || got > v.high {
			t.Errorf("%+v: %v", v, got)
		}
	}
}

// retryFile is a made history: steps that are flaky, with signatures that pass again at
// their own rate, and steps that are broken.
func retryFile(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 7))
	var b strings.Builder
	b.WriteString("started_at,ended_at,repo,workflow,job,step,branch,commit,attempt,failed,duration_s,signature\n")
	at := 0.0
	for commit := range n {
		repo := r.IntN(3)
		step := r.IntN(6)
		passes := []float64{.9, .7, .5, .3, .05, .02}[step]
		took := 60. + 200*float64(step%3)
		for attempt := 1; attempt <= 3; attempt++ {
			failed := 1
			if attempt > 1 && r.Float64() < passes {
				failed = 0
			}
			at += took + 5
			fmt.Fprintf(&b, "%.0f,%.0f,o/r%d,ci,j,s%d,main,c%d,%d,%d,%.0f,sig%d\n", at-took, at, repo, step, commit, attempt, failed, took, step)
			if failed == 0 {
				break
			}
		}
	}
	return b.String()
}

func TestEvalRetry(t *testing.T) {
	file := retryFile(1, 1500)
	var out bytes.Buffer
	res, err := EvalRetry(context.Background(), strings.NewReader(file), 0, &out)
	if err != nil {
		t.Fatal(err)
	}
	ours := res.Policies[0]
	for _, other := range res.Policies[1:] {
		if ours.Name != "hearth" || ours.Saved < other.Saved {
			t.Errorf("%+v is worse than %+v", ours, other)
		}
	}
	if res.Model.AUC < .8 || res.Model.LogLoss > res.Table.LogLoss-.1 || ours.Low > ours.Saved || ours.Saved > ours.High {
		t.Errorf("%+v %+v", res.Model, res.Table)
	}
	never, always := res.Policies[1], res.Policies[2]
	if never.Saved != 0 || never.Retried != 0 || always.Missed != 0 || always.Passed+always.Wrong != res.Decisions ||
		ours.Passed+ours.Missed != always.Passed {
		t.Errorf("%+v", res.Policies)
	}
	rows, err := csv.NewReader(&out).ReadAll()
	if err != nil || len(rows) != res.Decisions+1 || strings.Join(rows[0], ",") != "row,p_fail,retry" {
		t.Errorf("%d rows, %v", len(rows), err)
	}
	again, err := Replay(context.Background(), strings.NewReader(file), 0)
	on := again.On
	if err != nil || on.Retried == 0 || on.Passed+on.Wrong+on.Unknown != on.Retried || on.Saved != 15*float64(on.Passed) || on.Saved <= on.Spent ||
		len(again.Repositories) != 3 {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := EvalRetry(context.Background(), strings.NewReader("started_at,ended_at,failed\n1,2,1\n"), 0, nil); err == nil ||
		!strings.Contains(err.Error(), "later attempt") {
		t.Errorf("%v", err)
	}
	// What passed before was not tried again because of a failure.
	if _, err := EvalRetry(context.Background(), strings.NewReader("started_at,ended_at,attempt,failed\n1,2,1,0\n3,4,2,0\n"), 0, nil); err == nil {
		t.Error("a run that was repeated after a pass was decided about")
	}
}

// TestPolicyValues: from the record of a policy that leaves close calls to chance, the
// value of another one comes out as it is.
func TestPolicyValues(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var acted []RetryDecision
	truth := 0.0
	const n = 20_000
	for range n {
		p := r.Float64()
		d := RetryDecision{Policy: "act", Attempt: 1, P: .5, GainMS: int64(.5 * 600_000), CostMS: 240_000, Propensity: .1 + .8*r.Float64(), Known: true}
		d.Taken = r.Float64() < d.Propensity
		d.Passed = r.Float64() < p
		d.Known = d.Taken
		truth += (p*10 - 4) * 100 / n
		acted = append(acted, d)
	}
	for _, v := range policyValues(acted) {
		if v.Name == "never" && (v.IPS != 0 || v.DR != 0) {
			t.Errorf("%+v", v)
		}
		if v.Name != "always" {
			continue
		}
		if math.Abs(v.DR-truth) > 15 || v.DROf[0] > truth || v.DROf[1] < truth || v.IPSOf[0] > truth || v.IPSOf[1] < truth || v.Covered != 1 {
			t.Errorf("%+v, and in truth %v", v, truth)
		}
	}
	// What was never left to chance says nothing.
	never := []RetryDecision{{Policy: "act", Attempt: 1, P: .1, GainMS: 1, CostMS: 1000}}
	for _, v := range policyValues(never) {
		if v.Name == "always" && v.Covered != 0 {
			t.Errorf("%+v", v)
		}
	}
}
