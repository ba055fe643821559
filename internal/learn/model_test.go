package learn

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

func step(i int) Execution {
	return Execution{Repo: "o/r", Workflow: fmt.Sprint("w", i%20), Job: fmt.Sprint("j", i%100), Step: fmt.Sprint("npm run s", i%600),
		Branch: fmt.Sprint("b", i/30%50), Commit: fmt.Sprint("c", i/30), At: float64(i)}
}

func run(m *Model, x Execution, failed bool) *Estimate {
	e := m.Predict(x)
	m.Learn(e, failed, x.At+1)
	m.Settle()
	return e
}

func TestModelLearnsWhatFails(t *testing.T) {
	m, r := NewModel(0), rand.New(rand.NewPCG(1, 1))
	good := Execution{Repo: "r", Workflow: "w", Job: "j", Step: "good", Branch: "main"}
	bad := good
	bad.Step = "bad"
	for i := range 60 {
		good.At, bad.At = float64(10*i), float64(10*i+2)
		run(m, good, false)
		run(m, bad, r.IntN(2) == 0) // in no order that streaks tell
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

// A fresh install that has seen nothing but passes is not sure of the next one.
// Each level that shrinks towards a parent with the level's own events in it makes
// it surer by a factor; that is what the bounds below are for.
func TestFewPassesAreNoProof(t *testing.T) {
	for _, c := range []struct {
		unit            string
		passes          int
		lowest, highest float64
	}{
		{unitRun, 1, .08, .15}, {unitRun, 5, .06, .13}, {unitRun, 20, .03, .09}, {unitRun, 49, .015, .06},
		{unitStep, 1, .01, .02}, {unitStep, 20, .004, .015},
	} {
		m := NewModel(0)
		x := Execution{Unit: c.unit, Repo: "o/r", Workflow: "w", Job: "j", Step: "s", Branch: "main"}
		for i := range c.passes {
			x.At, x.Commit = float64(i)*3600, fmt.Sprint(i)
			run(m, x, false)
		}
		x.At, x.Commit = 200*3600, "next"
		if p := m.Predict(x).P; p < c.lowest || p > c.highest {
			t.Errorf("%q after %d passes: fails with %.4f, not %.3f to %.3f", c.unit, c.passes, p, c.lowest, c.highest)
		}
		// What others do is not forgotten by what this one does.
		y := x
		y.Job, y.Step = "other", "other"
		if p := m.Predict(y).P; p < c.lowest {
			t.Errorf("%q: a new one after %d passes of another: %.4f", c.unit, c.passes, p)
		}
	}
}

// The estimate of a step is made of what it did and of what the others did, each
// once: taking the step's events out of its parent's leaves the parent as if they
// had never been.
func TestParentsWithoutTheirChild(t *testing.T) {
	alone, both := NewModel(0), NewModel(0)
	r := rand.New(rand.NewPCG(5, 6))
	for i := range 300 {
		other := Execution{Repo: "o/r", Workflow: "w", Job: "j", Step: "other", At: float64(i) * 1e4}
		failed := r.IntN(4) == 0
		run(alone, other, failed)
		run(both, other, failed)
		if i%3 == 0 {
			mine := other
			mine.Step, mine.At = "mine", other.At+5e3
			run(both, mine, true)
		}
	}
	x := Execution{Repo: "o/r", Workflow: "w", Job: "j", Step: "mine", At: 3e6}
	a, b := alone.Predict(x), both.Predict(x)
	last := nHalf - 1 // the counts that do not fade
	if d := math.Abs(a.est[levelJob][last] - b.est[levelJob][last]); d > 1e-6 {
		t.Errorf("what the step did is in its parent's estimate: %.4f, without it %.4f", b.est[levelJob][last], a.est[levelJob][last])
	}
	if b.est[levelStep][last] < a.est[levelStep][last]+2 {
		t.Error("a hundred failures of the step do not show in its own")
	}
}

// What is stored and read again predicts the same; counters from before gifts to
// parents were kept are taken over.
func TestModelIsStored(t *testing.T) {
	m, r := NewModel(0), rand.New(rand.NewPCG(7, 8))
	at := func(i int) Execution {
		x := step(r.IntN(40))
		x.At, x.Change = float64(i)*600, Change{Known: true, Author: fmt.Sprint(i % 3), Files: i % 17, Added: i % 400, Source: i % 5}
		return x
	}
	for i := range 800 {
		run(m, at(i), r.IntN(5) == 0)
	}
	again, old := NewModel(0), NewModel(0)
	for _, o := range []*Model{again, old} {
		for k, v := range m.kin {
			o.putKin(k, v)
		}
		o.tokens, o.mix, o.scales, o.retryW = m.tokens, m.mix, m.scales, m.retryW
		o.bold.read(m.bold.numbers())
		o.timid.read(m.timid.numbers())
	}
	for k, c := range m.counters {
		b := c.numbers()
		got := readCounter(b)
		if got == nil || string(got.numbers()) != string(b) {
			t.Fatalf("a counter of %d bytes is read back as %+v", len(b), got)
		}
		if readCounter(b[:len(b)-8]) != nil {
			t.Error("a counter that was cut is taken")
		}
		again.putCounter(k, got)
		old.putCounter(k, readCounter(b[:8*oldNumbers]))
	}
	x := at(900)
	if a, b := m.Predict(x), again.Predict(x); math.Abs(a.P-b.P) > 1e-9 {
		t.Errorf("before %.6f, after %.6f", a.P, b.P)
	}
	if again.contexts != m.contexts {
		t.Errorf("%d contexts counted, there are %d", again.contexts, m.contexts)
	}
	run(old, x, true) // adopts
	if c := old.at(&m.Predict(x).keys, levelStep); c.up.n[nHalf-1] < 10 {
		t.Errorf("what an old counter gave to its parent is unknown: %+v", c.up)
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
	was := string(m.counters[keysOf(&x).level[levelStep]].numbers())
	x.Attempt, x.At = 2, 110
	e := m.Predict(x)
	if e.P < .25 || e.P > .6 {
		t.Errorf("a second attempt after a failure fails with %.2f; publicly .415 do", e.P)
	}
	m.Learn(e, false, 111)
	m.Settle()
	if string(m.counters[keysOf(&x).level[levelStep]].numbers()) != was {
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
		d.Add(&x, nil, 60+float64(i%5))
	}
	e := d.Predict(&x)
	if math.Abs(e.Median-62) > .3 || e.P90 < 62 || e.P90 > 70 || e.P995 < e.P90 || e.N != windowSize {
		t.Errorf("%+v", e)
	}
	other := x
	other.Step = "new"
	if e := d.Predict(&other); math.Abs(e.Median-62) > .3 {
		t.Errorf("a new step of a known job: %+v", e)
	}
	for _, bad := range []float64{-1, math.NaN(), math.Inf(1)} {
		d.Add(&x, nil, bad)
	}
	if got := d.Predict(&x); got != e {
		t.Errorf("%+v", got)
	}
	for i := range 1000 {
		y := x
		y.Step = fmt.Sprint(i)
		d.Add(&y, nil, 1)
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

// cpuTime is what this process has had of the processor, which others do not change.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkPredict(b *testing.B) {
	for _, size := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			m, i := benchModel(b, size)
			spent := cpuTime()
			for b.Loop() {
				m.Predict(step(i % 600))
			}
			b.ReportMetric(float64(cpuTime()-spent)/float64(b.N), "cpu-ns/op")
		})
	}
}

func BenchmarkUpdate(b *testing.B) {
	for _, size := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			m, i := benchModel(b, size)
			e := m.Predict(step(i))
			spent := cpuTime()
			for b.Loop() {
				m.Learn(e, i%20 == 0, float64(i))
				m.Settle()
				i++
			}
			b.ReportMetric(float64(cpuTime()-spent)/float64(b.N), "cpu-ns/op")
		})
	}
}

func BenchmarkExtract(b *testing.B) {
	x := NewExtractor()
	log := strings.Split(strings.Repeat("   Compiling crate v1.0.0 (/home/runner/work/x)\nwarning: unused variable: `x`\n", 2000)+
		"error[E0308]: mismatched types\n", "\n")
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
