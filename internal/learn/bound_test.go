package learn_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
)

// crowd makes up executions of many repositories, each with its own jobs, steps and
// branches, in the order of time.
func crowd(from, n, repositories int) []learn.Imported {
	r := rand.New(rand.NewPCG(uint64(from), 3))
	out := make([]learn.Imported, n)
	for i := range out {
		at := float64(1_700_000_000 + (from+i)*30)
		repo := r.IntN(repositories)
		step := fmt.Sprintf("make target-%d-%d", repo, r.IntN(8))
		x := learn.Execution{Repo: fmt.Sprintf("owner%d/repo%d", repo%500, repo), Workflow: "ci.yml", Job: fmt.Sprint("job", r.IntN(3)), Step: step,
			Branch: fmt.Sprint("refs/heads/b", r.IntN(6)), Commit: fmt.Sprint("c", from+i), Attempt: 1, At: at}
		out[i] = learn.Imported{Key: fmt.Sprint("k", from+i), Name: step, Execution: x, Failed: r.IntN(10) == 0, End: at + 20, Seconds: 20}
	}
	return out
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// What is worth most stays when single passes flood a model.
func TestValueIsKept(t *testing.T) {
	m := learn.NewModel(2000)
	run := func(step, branch string, at float64, failed bool) {
		m.Learn(m.Predict(learn.Execution{Repo: "o/r", Job: "j", Step: step, Branch: branch, At: at}), failed, at+1)
		m.Settle()
	}
	at := 1.7e9
	for i := range 3000 {
		at += 60
		run(fmt.Sprint("daily", i%30), "main", at, i%7 == 0)
	}
	for i := range 20_000 {
		at += 60
		run(fmt.Sprint("once", i), fmt.Sprint("b", i), at, false)
	}
	known := 0
	for i := range 30 {
		if e := m.Predict(learn.Execution{Repo: "o/r", Job: "j", Step: fmt.Sprint("daily", i), Branch: "main", At: at}); e.Seen == 100 {
			known++
		}
	}
	if known < 29 {
		t.Errorf("%d of 30 daily steps are left after 20,000 that ran once", known)
	}
}

// BenchmarkMemory tells how much memory is taken, in bytes, and how much of the file.
func BenchmarkMemory(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				file := filepath.Join(b.TempDir(), "hearth.db")
				s, err := store.Open(b.Context(), file)
				if err != nil {
					b.Fatal(err)
				}
				start := heap()
				l, err := learn.Open(b.Context(), s, learn.Options{})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := l.Import(b.Context(), crowd(0, n, n/10)); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(heap()-start), "heap-bytes")
				runtime.KeepAlive(l)
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				info, err := os.Stat(file)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(info.Size()), "file-bytes")
			}
		})
	}
}
