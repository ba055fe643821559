package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/learn"
)

// Learn measures the learner in memory: an update and a prediction of the model,
// and an update of the graph, after 10⁴ and 10⁶ executions of a project of usual
// shape, and what all of it takes of memory then. Samples are means over a
// hundred calls, since one takes about as long as reading the clock.
func Learn(ctx context.Context) (*Report, error) {
	r := NewReport()
	for _, size := range []int{10_000, 1_000_000} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		p := newProject()
		m := learn.NewModel(0)
		g := graph.New(graph.Limits{})
		for i := range size {
			if i%10_000 == 0 && ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			x, failed := p.next()
			m.Learn(m.Predict(x), failed, x.At+60)
			m.Settle()
			p.ran(g, x, failed)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		const rounds, calls = 300, 100
		var predict, update, graphed []float64
		for range rounds {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			var xs [calls]learn.Execution
			var failed [calls]bool
			var es [calls]*learn.Estimate
			for i := range xs {
				xs[i], failed[i] = p.next()
			}
			t := time.Now()
			for i := range xs {
				es[i] = m.Predict(xs[i])
			}
			predict = append(predict, micros(time.Since(t))/calls)
			t = time.Now()
			for i := range xs {
				m.Learn(es[i], failed[i], xs[i].At+60)
				m.Settle()
			}
			update = append(update, micros(time.Since(t))/calls)
			t = time.Now()
			for i := range xs {
				p.ran(g, xs[i], failed[i])
			}
			graphed = append(graphed, micros(time.Since(t))/calls)
		}
		at := fmt.Sprintf(" at %.0e", float64(size))
		r.Add("learn update"+at, "µs", 5, update)
		r.Add("learn predict"+at, "µs", 10, predict)
		r.Add("graph update"+at, "µs", 5, graphed)
		r.Add("learn memory"+at, "MiB", 0, []float64{(float64(after.HeapAlloc) - float64(before.HeapAlloc)) / (1 << 20)})
		runtime.KeepAlive(m)
		runtime.KeepAlive(g)
	}
	return r, nil
}

// project makes executions: 20 workflows of 5 jobs of 6 steps, 50 branches, a
// commit every thirty executions.
type project struct {
	rnd    *rand.Rand
	n      int
	steps  []learn.Execution
	before []string
}

func newProject() *project {
	p := &project{rnd: rand.New(rand.NewPCG(7, 11))}
	for w := range 20 {
		for j := range 5 {
			for s := range 6 {
				p.steps = append(p.steps, learn.Execution{Repo: "owner/repository", Workflow: fmt.Sprintf(".github/workflows/w%d.yml", w),
					Job: fmt.Sprintf("test (linux, 1.%d)", j), Step: fmt.Sprintf("npm run check-%d-%d", w, s)})
			}
		}
	}
	return p
}

func (p *project) next() (learn.Execution, bool) {
	x := p.steps[p.n%len(p.steps)]
	x.Branch = fmt.Sprint("refs/heads/b", p.n/30%50)
	x.Commit = fmt.Sprintf("%040d", p.n/30)
	x.At = float64(p.n) * 3
	p.n++
	return x, p.rnd.IntN(20) == 0
}

func (p *project) ran(g *graph.Graph, x learn.Execution, failed bool) {
	g.Ran(x.Step, x.Step, p.before, failed, int64(x.At*1000))
	p.before = append(p.before, x.Step)
	if len(p.before) >= 6 {
		p.before = p.before[:0]
	}
}
