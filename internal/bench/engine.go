package bench

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/launch"
	"github.com/hearth-ci/hearth/internal/ledger"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/tui"
	"github.com/hearth-ci/hearth/internal/worker"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// EngineOptions say what to measure the running of jobs with.
type EngineOptions struct {
	Host     machine.Host
	Dir      string        // for the database, the logs, artifacts and caches
	Steps    int           // of a job; 40
	Lines    int           // as fast as a step prints them; 200,000
	LogMB    int           // of the long log; 1000
	FileMB   int           // that are copied; 64
	Layout   engine.Layout // of a machine; zero is that of our images
	Progress func(what string)
}

// The targets, with a host's CPUs for themselves.
const (
	targetLineCPU = 10.0  // % of a core at 10,000 lines/s
	targetGrowth  = 100.0 // MB that a long log adds
	targetShare   = 60.0  // % of what a plain copy reaches
)

//go:embed results
var resultsAction embed.FS

// Engine measures what running a job costs on this side of the machine: a step, a line
// of output from the engine through mask, database and terminal, a log without end,
// artifacts and caches beside plain copies.
func Engine(ctx context.Context, o EngineOptions) (_ *Report, err error) {
	for n, usual := range map[*int]int{&o.Steps: 40, &o.Lines: 200_000, &o.LogMB: 1000, &o.FileMB: 64} {
		if *n == 0 {
			*n = usual
		}
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	s, err := store.Open(ctx, filepath.Join(o.Dir, "bench.db"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	b := &engineBench{EngineOptions: o, store: s, report: NewReport()}
	for _, part := range []struct {
		what string
		do   func(context.Context) error
	}{{"steps", b.steps}, {"lines of output", b.lines}, {"a long log", b.long}, {"copies", b.copies}, {"artifacts and caches", b.results}} {
		o.Progress(part.what)
		if err := part.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", part.what, err)
		}
	}
	return b.report, nil
}

type engineBench struct {
	EngineOptions
	store  *store.Store
	report *Report
	in     float64 // MB/s of a plain copy into a machine
	out    float64
}

// watched is what a run's records tell.
type watched struct {
	mu          sync.Mutex
	first, last time.Time // the first step's start, the last one's end
	lines       int       // that steps printed
	said        map[string]float64
	log         []string // the last few
}

// Emit takes "bench NAME VALUE" lines as figures.
func (w *watched) Emit(r ci.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch r.Type {
	case ci.StepStarted:
		if w.first.IsZero() {
			w.first = time.Now()
		}
	case ci.StepFinished:
		w.last = time.Now()
	case ci.LogLine:
		if r.Stream == "system" {
			return
		}
		w.lines++
		if rest, ok := strings.CutPrefix(r.Text, "bench "); ok {
			name, value, _ := strings.Cut(rest, " ")
			if f, err := strconv.ParseFloat(value, 64); err == nil {
				w.said[name] = f
			}
		}
		if w.log = append(w.log, r.Text); len(w.log) > 20 {
			w.log = w.log[10:]
		}
	}
}

// cost is what this process spent.
type cost struct{ wall, cpu float64 } // seconds

// job runs a job of these steps as `hearth run` does.
func (b *engineBench) job(ctx context.Context, steps string) (*watched, cost, error) {
	src := "on: push\njobs:\n  bench:\n    runs-on: ubuntu-latest\n    steps:\n" + steps
	w, ds := workflow.Parse("bench.yml", []byte(src), workflow.Options{})
	if workflow.Errors(ds) {
		return nil, cost{}, fmt.Errorf("%v", ds)
	}
	actions := filepath.Join(b.Dir, "action")
	if err := os.RemoveAll(actions); err != nil {
		return nil, cost{}, err
	}
	below, err := fs.Sub(resultsAction, "results")
	if err != nil {
		return nil, cost{}, err
	}
	if err := os.CopyFS(actions, below); err != nil {
		return nil, cost{}, err
	}
	run := ci.Run{ID: ci.NewID(), Repository: "hearth/bench", Ref: "refs/heads/main", SHA: strings.Repeat("a", 40), Event: "push", Actor: "bench", Attempt: 1,
		Workflow: "bench", File: "bench.yml", Status: ci.Queued, Created: time.Now()}
	resolver := action.NewResolver(action.Config{Dir: filepath.Join(b.Dir, "mirrors"), Offline: true, Overrides: map[string]string{"hearth/results": actions}})
	req := launch.Request{Workflow: w, Event: &workflow.Happening{Event: "push", Ref: run.Ref, Payload: expr.Object(expr.NewMap())},
		Facts: launch.Facts{Run: run, Server: "https://github.com", API: "https://api.github.com"}}
	req.Check.Actions, req.Check.Results = resolver, true
	plan, ds := launch.Plan(ctx, req)
	if plan == nil || len(plan.Refused()) > 0 {
		return nil, cost{}, fmt.Errorf("%v", ds)
	}
	seen := &watched{said: map[string]float64{}}
	show := tui.NewPlain(io.Discard, false)
	book := &ledger.Ledger{Store: b.store, Log: slog.New(slog.DiscardHandler)}
	entry, err := book.Open(ctx, run, []ci.Job{{Key: plan.Jobs[0].Key, Job: "bench", Name: "bench", Status: ci.Queued}}, nil, seen, show)
	if err != nil {
		return nil, cost{}, err
	}
	entry.Begin(1, nil, worker.Change(plan.GitHub.Get("event"), req.Event), nil)
	runner := &worker.Runner{Host: b.Host, Layout: b.Layout, RunID: run.ID, Repository: run.Repository, File: run.File, Ref: run.Ref, SHA: run.SHA, Attempt: 1,
		Sink: entry, Actions: resolver, Log: slog.New(slog.DiscardHandler), Results: results.New(results.Config{Dir: filepath.Join(b.Dir, "results")})}
	before, _ := cpuSeconds(os.Getpid())
	con := &conduct.Conductor{Run: plan, ID: run.ID, Sink: entry, Executor: runner}
	conclusion, err := con.Drive(ctx, nil)
	err = errors.Join(err, entry.Close(), show.Close())
	after, _ := cpuSeconds(os.Getpid())
	if err == nil && conclusion != ci.Success {
		err = fmt.Errorf("the job is %s:\n%s", conclusion, strings.Join(seen.log, "\n"))
	}
	return seen, cost{seen.last.Sub(seen.first).Seconds(), after - before}, err
}

// steps measures a step that does nothing, beside what its shell costs in the machine.
func (b *engineBench) steps(ctx context.Context) error {
	floor := fmt.Sprintf(`      - shell: bash
        run: |
          echo true > /tmp/bench.sh
          for i in 1 2 3 4 5; do bash -e /tmp/bench.sh; done
          begin=$(date +%%s%%N); for i in $(seq %d); do bash -e /tmp/bench.sh; done
          echo "bench floor $(( ($(date +%%s%%N) - begin) / %[1]d ))"
`, b.Steps)
	got, _, err := b.job(ctx, floor)
	if err != nil {
		return err
	}
	one, _, err := b.job(ctx, "      - run: 'true'\n")
	if err != nil {
		return err
	}
	all, spent, err := b.job(ctx, strings.Repeat("      - run: 'true'\n", b.Steps))
	if err != nil {
		return err
	}
	_, few, err := b.job(ctx, "      - run: 'true'\n")
	if err != nil {
		return err
	}
	n := float64(b.Steps)
	b.report.Add("step in the machine (bash -e, the floor)", "ms", 0, []float64{got.said["floor"] / 1e6})
	b.report.Add("step that does nothing, wall", "ms", 0, []float64{all.last.Sub(all.first).Seconds() * 1e3 / n})
	b.report.Add("step that does nothing, CPU of this process", "ms", 0, []float64{max(0, spent.cpu-few.cpu) * 1e3 / (n - 1)})
	b.report.Add("first step of a job, wall", "ms", 0, []float64{one.last.Sub(one.first).Seconds() * 1e3})
	return nil
}

// lines measures output: as fast as it comes, and as a share of a core at a rate.
func (b *engineBench) lines(ctx context.Context) error {
	// About as long as lines of a build are.
	const line = "[ %.0f%%] Building CXX object src/CMakeFiles/core.dir/parser/expression.cc.o"
	got, spent, err := b.job(ctx, fmt.Sprintf("      - run: seq -f '%s' %d\n", line, b.Lines))
	if err != nil {
		return err
	}
	if got.lines < b.Lines {
		return fmt.Errorf("%d lines of %d arrived", got.lines, b.Lines)
	}
	b.report.AddRate("lines of output, as fast as they come", "1/s", 0, []float64{float64(got.lines) / spent.wall})
	b.report.Add("10,000 lines/s, CPU of this process", "% of a core", targetLineCPU, []float64{spent.cpu / float64(got.lines) * 10_000 * 100})
	paced, _, err := b.job(ctx, fmt.Sprintf("      - run: for i in $(seq 50); do seq -f '%s' 1000; sleep 0.1; done\n", line))
	if err != nil {
		return err
	}
	b.report.AddRate("lines of output, printed at up to 10,000/s", "1/s", 0, []float64{float64(paced.lines) / paced.last.Sub(paced.first).Seconds()})
	return nil
}

// long measures what a long log does to this process.
func (b *engineBench) long(ctx context.Context) error {
	before, err := privateKB(os.Getpid())
	if err != nil {
		return err
	}
	most, done, ended := before, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if kb, err := privateKB(os.Getpid()); err == nil {
					most = max(most, kb)
				}
			}
		}
	}()
	got, spent, err := b.job(ctx, fmt.Sprintf("      - run: yes '%s' | head -c %d\n", strings.Repeat("0123456789", 10), b.LogMB*1_000_000))
	close(done)
	<-ended
	if err != nil {
		return err
	}
	b.report.Add(fmt.Sprintf("log of %d MB, memory that it adds", b.LogMB), "MB", targetGrowth, []float64{float64(most-before) / 1e3})
	b.report.AddRate(fmt.Sprintf("log of %d MB", b.LogMB), "MB/s", 0, []float64{float64(b.LogMB) / spent.wall})
	if got.lines == 0 {
		return errors.New("nothing arrived")
	}
	return nil
}

// copies measures plain copies, which the rest is held against.
func (b *engineBench) copies(ctx context.Context) (err error) {
	m, err := b.Host.Claim(ctx, machine.Request{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Release(context.WithoutCancel(ctx))) }()
	data := bytes.Repeat([]byte("hearth"), b.FileMB*1_000_000/6)
	var in, out []float64
	for range 3 {
		begin := time.Now()
		if err := m.Client().WriteFile(ctx, "/tmp/bench", data, 0o600, ""); err != nil {
			return err
		}
		in = append(in, float64(len(data))/1e6/time.Since(begin).Seconds())
		begin = time.Now()
		if _, err := m.Client().ReadFile(ctx, "/tmp/bench", int64(len(data))); err != nil {
			return err
		}
		out = append(out, float64(len(data))/1e6/time.Since(begin).Seconds())
	}
	b.report.AddRate("plain copy into a machine", "MB/s", 0, in)
	b.report.AddRate("plain copy out of a machine", "MB/s", 0, out)
	b.in, b.out = b.report.Figures[len(b.report.Figures)-2].P50, b.report.Figures[len(b.report.Figures)-1].P50
	return nil
}

// results measures the service that actions keep artifacts and caches with.
func (b *engineBench) results(ctx context.Context) error {
	got, _, err := b.job(ctx, fmt.Sprintf("      - uses: hearth/results@v1\n        with: {megabytes: %d}\n", b.FileMB))
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name, said string
		plain      float64
	}{
		{"artifact, upload", "artifact-up", b.out}, {"artifact, download", "artifact-down", b.in},
		{"cache, save", "cache-up", b.out}, {"cache, restore", "cache-down", b.in},
	} {
		rate, ok := got.said[f.said]
		if !ok {
			return fmt.Errorf("no word of %s:\n%s", f.said, strings.Join(got.log, "\n"))
		}
		b.report.AddRate(f.name, "MB/s", 0, []float64{rate})
		b.report.AddRate(f.name+", beside a plain copy", "%", targetShare, []float64{100 * rate / f.plain})
	}
	return nil
}
