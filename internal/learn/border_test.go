package learn

import (
	"fmt"
	"testing"

	"github.com/hearth-ci/hearth/internal/graph"
)

// The keys of counters are hashes without a secret, of names that a workflow
// chooses: two repositories can be made to have one key. What is found there is
// read and counted only by whom it belongs to.
func TestAttackCollidingKeys(t *testing.T) {
	m, d := NewModel(0), NewDurations(0)
	victim := Execution{Repo: "private/victim", Workflow: "w", Job: "j", Step: "s", Branch: "main", Commit: "c"}
	attacker := victim
	attacker.Repo = "public/attacker"
	for i := range 20 {
		victim.At = float64(100 * i)
		m.Learn(m.Predict(victim), true, victim.At+1)
		m.Settle()
		d.Add(&victim, nil, 77)
	}
	v, a := keysOf(&victim), keysOf(&attacker)
	alone := m.Predict(attacker).P
	for l := levelRepo; l < nLevels; l++ { // as if the hashes collided
		m.counters[a.level[l]] = m.counters[v.level[l]]
		m.kin[a.level[l]] = m.kin[v.level[l]]
		d.m[a.level[l]] = d.m[v.level[l]]
	}
	for _, keys := range [][2]uint64{{a.commit, v.commit}, {a.branch, v.branch}, {a.commitStep, v.commitStep}} {
		m.kin[keys[0]] = m.kin[keys[1]]
	}
	e := m.Predict(attacker)
	if e.Seen != 0 || e.P != alone {
		t.Errorf("the attacker is told that it was seen %d times and fails with %.3f, by itself %.3f", e.Seen, e.P, alone)
	}
	if got := d.Predict(&attacker); got.N != 0 {
		t.Errorf("the attacker is told of durations: %+v", got)
	}
	before, kin, window := string(m.at(&v, levelStep).numbers()), *m.kinAt(&v, v.commit), *d.m[v.level[levelStep]]
	for range 5 {
		m.Learn(m.Predict(attacker), false, 5000)
		m.Settle()
		d.Add(&attacker, nil, 1)
	}
	if after := m.at(&v, levelStep); string(after.numbers()) != before {
		t.Errorf("the victim's counter has become %+v", after)
	}
	if after := *m.kinAt(&v, v.commit); after != kin {
		t.Errorf("what the victim's commit came to was %+v and is %+v", kin, after)
	}
	if after := *d.m[v.level[levelStep]]; after != window {
		t.Errorf("the victim's durations were %+v and are %+v", window, after)
	}
}

// One repository names steps without end: its graph is bounded, all graphs
// together are, and what is dropped is its own.
func TestAttackFloodOfGraph(t *testing.T) {
	g := graphs{}
	touch := func(repo string, n int) {
		for i := range n {
			g.of(repo).Touch(fmt.Sprintf("step:%s %d", repo, i), "", false, int64(i))
		}
	}
	touch("o/quiet", 100)
	touch("o/flood", maxNodes+500)
	if n, _ := g.of("o/flood").Len(); n != maxNodes {
		t.Errorf("%d nodes of one repository", n)
	}
	for i := range 5 {
		touch(fmt.Sprint("o/flood", i), maxNodes)
	}
	g.bound()
	all := 0
	for _, v := range g {
		n, _ := v.Len()
		all += n
	}
	if n, _ := g.of("o/quiet").Len(); n != 100 || all != maxAllNodes {
		t.Errorf("%d nodes in all, %d of the quiet one", all, n)
	}
	if got := g.ask("", 0); got.Node("step:o/quiet 5") == nil {
		t.Error("all as one lack what one of them has")
	}
	if got := g.ask("o/none", 0); got.Node("step:o/quiet 5") != nil {
		t.Error("a repository without a graph is told another's")
	}
	w := graph.New(graph.Limits{Nodes: 100, Edges: 50})
	for i := range 1000 {
		w.Link(fmt.Sprint("a:", i%60), graph.With, fmt.Sprint("b:", i%61), false, 1)
	}
	if _, e := w.Len(); e > 50 {
		t.Errorf("%d edges", e)
	}
}
