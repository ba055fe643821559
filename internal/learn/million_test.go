package learn

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"
)

// A million executions of ten thousand repositories take no more memory than the
// first three hundred thousand of them: by then every map is full. What is in memory
// is what is in the database, row by row.
func TestMemoryOfAMillion(t *testing.T) {
	if os.Getenv("HEARTH_SLOW") == "" {
		t.Skip("minutes: set HEARTH_SLOW=1; each bound is tested by itself, with attacks on it")
	}
	const n, repositories = 1_000_000, 10_000
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	start := heap()
	l := &Learner{opt: Options{Now: time.Now}}
	l.reset()
	r := rand.New(rand.NewPCG(1, 3))
	failed, did := map[string][]string{}, ImportResult{}
	full := int64(0)
	for i := range n {
		at := float64(1_700_000_000 + i*30)
		repo := r.IntN(repositories)
		step := fmt.Sprintf("make target-%d-%d", repo, r.IntN(8))
		x := Execution{Repo: fmt.Sprintf("owner%d/repo%d", repo%500, repo), Workflow: "ci.yml", Job: fmt.Sprint("job", r.IntN(3)), Step: step,
			Branch: fmt.Sprint("refs/heads/b", r.IntN(6)), Commit: fmt.Sprint("c", i), Attempt: 1, At: at}
		l.takeIn(&Imported{Key: fmt.Sprint("k", i), Name: step, Execution: x, Failed: r.IntN(10) == 0, End: at + 20, Seconds: 20}, failed, &did)
		if i%batch == batch-1 {
			l.model.Settle()
			l.changes() // as what is stored; it bounds the graphs
		}
		if (i+1)%100_000 != 0 {
			continue
		}
		nodes, edges := 0, 0
		for _, g := range l.graphs {
			a, b := g.Len()
			nodes, edges = nodes+a, edges+b
		}
		used := heap() - start
		t.Logf("%d executions: %d MiB; %d counters, %d kin, %d windows, %d nodes, %d edges in %d graphs", i+1, used>>20, len(l.model.counters), len(l.model.kin),
			len(l.durations.m), nodes, edges, len(l.graphs))
		if i+1 == 300_000 {
			full = used
		}
		if full > 0 && used > full+full/10 || used > 600<<20 || nodes > maxAllNodes+8*batch || len(l.model.counters) > 200_000 {
			t.Errorf("after %d executions %d MiB are held, %d MiB when all was full", i+1, used>>20, full>>20)
		}
	}
	if len(l.graphs) < repositories*9/10 {
		t.Errorf("of %d repositories %d are known", repositories, len(l.graphs))
	}
	runtime.KeepAlive(l)
}
