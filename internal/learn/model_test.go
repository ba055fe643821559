package learn

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
)

func step(i int) Execution {
	return Execution{Repo: "o/r", Workflow: fmt.Sprint("w", i%20), Job: fmt.Sprint("j", i%100), Step: fmt.Sprint("npm run s", i%600), Branch: fmt.Sprint("b", i/30%50), Commit: fmt.Sprint("c", i/30), At: float64(i)}
}

func run(m *Model, x Execution, failed bool) *Estimate {
	e := m.Predict(x)
	m.Learn(e, failed, x.At+1)
	m.Settle()
	return e
}

func TestModelLearnsWhatFails(t *testing.T) {
	m := NewModel(0)
	good := Execution{Repo: "r", Workflow: "w", Job: "j", Step: "good", Branch: "main"}
	bad := good
	bad.Step = "bad"
	for i := range 60 {
		good.At, bad.At = float64(10*i), float64(10*i+2)
		run(m, good, false)
		run(m, bad, i%2 == 0)
	}
	good.At, bad.At = 1000, 1000
	g, b := m.Predict(good), m.Predict(bad)
	if g.P > .05 || b.P < .3 || b.P > .7 || g.Seen != 60 {
		t.Errorf("good %.3f, bad %.3f after %d", g.P, b.P, g.Seen)
	}
	for _, e := range []*Estimate{g, b} {
		if !(0 <= e.Low && e.Low <= e.P && e.P <= e.High && e.High <= 1) {
			t.Errorf("interval %v %v %v", e.Low, e.P, e.High)
		}
		if r := m.Reasons(e); len(r) == 0 || len(r) > 3 {
			t.Errorf("reasons %q", r)
		}
	}
	fresh := good
	fresh.Step = "never seen"
	if r := m.Reasons(m.Predict(fresh)); !strings.Contains(r[0], "never seen") {
		t.Errorf("%q", r)
	}
	first := NewModel(0).Predict(good)
	if first.High-first.Low < g.High-g.Low {
		t.Error("knowing nothing is surer than knowing sixty runs")
	}
}

// TestLaterAttempts: they are predicted from how such attempts end, and do not
// touch what is known of first ones.
func TestLaterAttempts(t *testing.T) {
	m := NewModel(0)
	x := Execution{Repo: "r", Job: "j", Step: "s", Commit: "c", At: 1}
	for i := range 20 {
		x.At, x.Commit = float64(i), fmt.Sprint(i)
		run(m, x, false)
	}
	x.Commit, x.At = "new", 100
	run(m, x, true)
	was := *m.counters[keysOf(&x).level[levelStep]]
	x.Attempt, x.At = 2, 110
	e := m.Predict(x)
	if e.P < .25 || e.P > .6 {
		t.Errorf("a second attempt after a failure fails with %.2f; publicly .415 do", e.P)
	}
	m.Learn(e, false, 111)
	m.Settle()
	if *m.counters[keysOf(&x).level[levelStep]] != was {
		t.Error("a later attempt changed the counters of first ones")
	}
	x.Attempt, x.At = 3, 120
	if p := m.Predict(x).P; p > .2 {
		t.Errorf("after an attempt that passed: %.2f", p)
	}
}

func TestModelIsBounded(t *testing.T) {
	m := NewModel(500)
	m.track()
	for i := range 20_000 {
		x := step(i)
		x.Step = fmt.Sprint("s", i)
		run(m, x, i%7 == 0)
	}
	if len(m.counters) > 500 || len(m.kin) > 500 || len(m.tokens) > 500 || len(m.queue) != 0 {
		t.Errorf("%d counters, %d kin, %d tokens, %d queued", len(m.counters), len(m.kin), len(m.tokens), len(m.queue))
	}
}

func TestModelStaysFinite(t *testing.T) {
	m := NewModel(0)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 20_000 {
		x := step(r.IntN(50))
		x.At = float64(r.Int64N(1e12)) // not even in order
		x.Attempt = r.IntN(9)
		e := m.Predict(x)
		if math.IsNaN(e.P) || e.P <= 0 || e.P >= 1 || math.IsNaN(e.Low) || math.IsNaN(e.High) {
			t.Fatalf("%+v", e)
		}
		m.Learn(e, r.IntN(2) == 0, x.At-float64(r.IntN(1e6)))
		if i%50 == 0 {
			m.Settle()
		}
	}
}

func TestDurations(t *testing.T) {
	d := NewDurations(100)
	x := Execution{Repo: "r", Job: "j", Step: "s"}
	if d.Predict(&x).N != 0 {
		t.Error("knows before it learned")
	}
	for i := range 100 {
		d.Add(&x, 60+float64(i%5))
	}
	e := d.Predict(&x)
	if e.Median != 62 || e.P90 < 62 || e.P90 > 70 || e.P995 < e.P90 || e.N != windowSize {
		t.Errorf("%+v", e)
	}
	other := x
	other.Step = "new"
	if e := d.Predict(&other); e.Median != 62 {
		t.Errorf("a new step of a known job: %+v", e)
	}
	for _, bad := range []float64{-1, math.NaN(), math.Inf(1)} {
		d.Add(&x, bad)
	}
	if got := d.Predict(&x); got != e {
		t.Errorf("%+v", got)
	}
	for i := range 1000 {
		y := x
		y.Step = fmt.Sprint(i)
		d.Add(&y, 1)
	}
	if len(d.m) > 100 {
		t.Errorf("%d windows", len(d.m))
	}
}

func TestBayesFactor(t *testing.T) {
	if f := bayesFactor(1, 1); f > 51 || f < 1 {
		t.Errorf("one of one: %v", f)
	}
	if f := bayesFactor(3, 300); f > 1 {
		t.Errorf("three of three hundred are accidents: %v", f)
	}
	if f := bayesFactor(3, 15); f < lessonFactor {
		t.Errorf("three of fifteen are none: %v", f)
	}
}

func benchModel(b *testing.B, size int) (*Model, int) {
	m := NewModel(0)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range size {
		run(m, step(i), r.IntN(20) == 0)
	}
	b.ResetTimer()
	return m, size
}

func BenchmarkPredict(b *testing.B) {
	for _, size := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			m, i := benchModel(b, size)
			for b.Loop() {
				m.Predict(step(i % 600))
			}
		})
	}
}

func BenchmarkUpdate(b *testing.B) {
	for _, size := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			m, i := benchModel(b, size)
			e := m.Predict(step(i))
			for b.Loop() {
				m.Learn(e, i%20 == 0, float64(i))
				m.Settle()
				i++
			}
		})
	}
}

func BenchmarkExtract(b *testing.B) {
	x := NewExtractor()
	log := strings.Split(strings.Repeat("   Compiling crate v1.0.0 (/home/runner/work/x)\nwarning: unused variable: `x`\n", 2000)+"error[E0308]: mismatched types\n", "\n")
	for b.Loop() {
		x.Extract(log, nil, "build")
	}
}

// Only success and failure of what ran say something about it.
func TestVerdict(t *testing.T) {
	for c, want := range map[ci.Conclusion][2]bool{
		ci.Success: {false, true}, ci.Failure: {true, true}, ci.TimedOut: {true, true},
		ci.NotRun: {}, ci.Neutral: {}, ci.Skipped: {}, ci.Cancelled: {},
	} {
		if failed, counts := verdict(c, false); [2]bool{failed, counts} != want {
			t.Errorf("%s: failed %v, counts %v", c, failed, counts)
		}
		if failed, counts := verdict(c, true); failed || counts {
			t.Errorf("%s of what could not be run counts", c)
		}
	}
}
