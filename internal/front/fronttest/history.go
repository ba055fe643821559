// Package fronttest has a past for tests that look at pages: some thousand runs of
// a few repositories, with failures that come back and end, flaky tests, steps that
// become slower and what was learned from all of it.
//
// It is written through the store's and the learner's own doors, so that what pages
// read is what a server would have written. The same seed gives the same past, but
// for the ids. Making it takes a while; [Open] keeps it for the next test.
package fronttest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/suite"
)

// version is of what is made here: another one makes it anew.
const version = 5

// Runs is how many runs the past of [Open] has.
const Runs = 5000

// Repositories of the past, the busiest first.
var Repositories = []string{"acme/storefront", "acme/payments", "acme/design-system", "kiln/compiler"}

// End is when the past ends.
var End = time.Date(2026, 11, 20, 16, 0, 0, 0, time.UTC)

// Open is a store with a past of so many runs, and its learner. It is a copy: a
// test may change it.
func Open(t testing.TB, runs int) (*store.Store, *learn.Learner) {
	t.Helper()
	cache := os.Getenv("HEARTH_TEST_HISTORY")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(dir, "hearth-test", "history")
	}
	kept := filepath.Join(cache, fmt.Sprintf("v%d-%d", version, runs))
	if _, err := os.Stat(kept); err != nil {
		making := kept + fmt.Sprintf(".%d", os.Getpid())
		if err := Make(context.Background(), making, 1, runs); err != nil {
			os.RemoveAll(making)
			t.Fatal(err)
		}
		if err := os.Rename(making, kept); err != nil {
			os.RemoveAll(making) // somebody else was faster
		}
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(kept)); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(context.Background(), filepath.Join(dir, "hearth.db"), store.WithLogs(filepath.Join(dir, "logs")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	l, err := learn.Open(context.Background(), s, learn.Options{Now: func() time.Time { return End }})
	if err != nil {
		t.Fatal(err)
	}
	return s, l
}

// step and job are what the made workflows consist of.
type step struct {
	name, command string
	seconds       float64
	fails         float64
}

type job struct {
	id    string
	cells []string
	needs []string
	steps []step
}

type flow struct {
	name, file string
	events     []string
	jobs       []job
}

var checkout = step{"Check out", "actions/checkout@v4", 1.2, .001}

var flows = []flow{
	{"CI", ".github/workflows/ci.yml", []string{"push", "pull_request"}, []job{
		{id: "lint", steps: []step{checkout, {"Install", "npm ci", 9, .006}, {"ESLint", "npm run lint", 12, .04}}},
		{id: "build", steps: []step{checkout, {"Install", "npm ci", 9, .006}, {"Build", "npm run build", 41, .03}, {"Upload the bundle",
			"actions/upload-artifact@v4", 3, .002}}},
		{id: "test", cells: []string{"20, ubuntu", "22, ubuntu", "24, ubuntu"}, needs: []string{"build"}, steps: []step{checkout,
			{"Set up Node", "actions/setup-node@v4", 6, .004}, {"Install", "npm ci", 9, .006}, {"Test", "npm test", 64, .05}}},
		{id: "e2e", needs: []string{"build"}, steps: []step{checkout, {"Start the server", "npm run serve &", 4, .01}, {"Playwright",
			"npx playwright test", 118, .09}}},
		{id: "deploy", needs: []string{"lint", "test", "e2e"}, steps: []step{checkout, {"Deploy the preview", "./scripts/deploy preview", 22, .02}}},
	}},
	{"Nightly", ".github/workflows/nightly.yml", []string{"schedule", "workflow_dispatch"}, []job{
		{id: "fuzz", steps: []step{checkout, {"Fuzz", "go test -fuzz . -fuzztime 60s ./parser", 75, .07}}},
		{id: "bench", steps: []step{checkout, {"Benchmarks", "go test -bench . ./...", 90, .02}}},
	}},
	{"Release", ".github/workflows/release.yml", []string{"push"}, []job{
		{id: "package", steps: []step{checkout, {"Package", "make dist", 33, .03}}},
		{id: "publish", needs: []string{"package"}, steps: []step{checkout, {"Publish", "make publish", 15, .04}}},
	}},
}

// errs are what failing steps print, by a word of their command.
var errs = []struct {
	of    string
	lines []string
}{
	{"lint", []string{"/src/cart/total.ts", "  41:7  error  'rounded' is assigned a value but never used  @typescript-eslint/no-unused-vars",
		"✖ 1 problem (1 error, 0 warnings)"}},
	{"build",
		[]string{"src/checkout/address.ts(88,14): error TS2345: Argument of type 'string | undefined' is not assignable to parameter of type 'string'.",
			"Found 1 error in src/checkout/address.ts:88"}},
	{"npm test", []string{"FAIL test/cart.test.ts > adds the tax once", "AssertionError: expected 119 to equal 100", "    at test/cart.test.ts:27:31"}},
	{"npm test", []string{"FAIL test/session.test.ts > expires after an hour", "Error: timed out in 5000ms waiting for the clock",
		"    at test/session.test.ts:112:9"}},
	{"playwright", []string{"  1) [chromium] › checkout.spec.ts:34 › pays with a saved card", "    Error: locator.click: Timeout 30000ms exceeded.",
		"      waiting for getByRole('button', { name: 'Pay' })"}},
	{"npm ci", []string{"npm error code ECONNRESET", "npm error network request to https://registry.npmjs.org/vite failed, reason: read ECONNRESET"}},
	{"", []string{"make: *** [Makefile:31: dist] Error 2", "exit status 2"}},
}

var people = []string{"mira", "jonas", "adaeze", "kenji", "lucia", "dependabot[bot]"}
var subjects = []string{"Round the total once", "Bump vite from 6.0.1 to 6.0.3", "Keep the cart over a login", "Show the saved cards", "Faster search",
	"Fix the address form",
	"Translate the receipts", "Drop Node 18"}

// Make writes a past of so many runs into a directory.
func Make(ctx context.Context, dir string, seed uint64, runs int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	s, err := store.Open(ctx, filepath.Join(dir, "hearth.db"), store.WithLogs(filepath.Join(dir, "logs")))
	if err != nil {
		return err
	}
	m := &maker{ctx: ctx, s: s, r: rand.New(rand.NewPCG(seed, 7)), broken: map[string]int{}}
	if m.l, err = learn.Open(ctx, s, learn.Options{Now: func() time.Time { return m.now }}); err == nil {
		const days = 60
		for i := range runs {
			// More in the day than in the night, the same over the weeks.
			at := End.Add(-days * 24 * time.Hour / time.Duration(runs) * time.Duration(runs-i))
			m.now = at.Add(time.Duration(3*math.Sin(float64(i))*float64(time.Minute)) - 20*time.Minute)
			if err = m.run(i, runs); err != nil {
				break
			}
		}
	}
	if err == nil {
		m.now = End
		_, err = m.l.Consume(ctx)
	}
	if err == nil {
		err = m.deliveries()
	}
	if cerr := s.Close(); err == nil {
		err = cerr
	}
	return err
}

type maker struct {
	ctx    context.Context
	s      *store.Store
	l      *learn.Learner
	r      *rand.Rand
	now    time.Time
	broken map[string]int // a step that was broken, for so many runs more
}

func (m *maker) pick(weights ...float64) int {
	x := m.r.Float64()
	for i, w := range weights {
		if x -= w; x < 0 {
			return i
		}
	}
	return len(weights) - 1
}

func (m *maker) run(i, runs int) error {
	repository := Repositories[m.pick(.55, .25, .12, .08)]
	f := flows[m.pick(.8, .12, .08)]
	who := people[m.pick(.3, .25, .15, .12, .1, .08)]
	ref := "refs/heads/main"
	event := f.events[m.r.IntN(len(f.events))]
	if event == "pull_request" || event == "push" && m.r.Float64() < .4 {
		ref = "refs/heads/" + strings.ReplaceAll(strings.ToLower(subjects[m.r.IntN(len(subjects))]), " ", "-")
	}
	sha := fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, "commit", m.r.Uint64())))[:40]
	run := ci.Run{ID: ci.NewIDAt(m.now), Event: event, Repository: repository, Workflow: f.name, File: f.file, Name: subjects[m.r.IntN(len(subjects))],
		Ref: ref, SHA: sha,
		Actor: who, Created: m.now, Status: ci.Queued}
	var jobs []ci.Job
	var known []learn.JobInfo
	for _, j := range f.jobs {
		for _, c := range append(j.cells, "")[:max(len(j.cells), 1)] {
			key := j.id
			if c != "" {
				key += " (" + c + ")"
			}
			jobs = append(jobs, ci.Job{Key: key, Job: j.id, Name: key, Labels: []string{"ubuntu-latest"}})
			info := learn.JobInfo{Key: key}
			for n, st := range j.steps {
				info.Steps = append(info.Steps, learn.StepInfo{Number: n + 1, Name: st.name, Command: st.command})
			}
			known = append(known, info)
		}
	}
	run, _, err := m.s.CreateRun(m.ctx, run, jobs, nil)
	if err != nil {
		return err
	}
	rec, err := m.s.Recorder(m.ctx, run.ID)
	if err != nil {
		return err
	}
	at := m.now
	emit := func(after float64, r ci.Record) {
		r.Run, r.Time = run.ID, at.Add(time.Duration(after*float64(time.Second)))
		rec.Emit(r)
	}
	emit(0, ci.Record{Type: ci.RunPlanned, Workflow: run.Workflow, File: run.File, Name: run.Name, Event: run.Event, SHA: run.SHA, Ref: run.Ref,
		Jobs: len(jobs)})
	if runs-i < 800 { // what is predicted of them all would take minutes to make
		forecast, err := m.l.Before(m.ctx, learn.RunInfo{ID: run.ID, Repository: repository, Workflow: run.File, Branch: ref, Commit: sha, Attempt: 1,
			Jobs: known})
		if err != nil {
			return err
		}
		for _, r := range forecast.Records(known) {
			emit(0, r)
		}
	}
	emit(.1, ci.Record{Type: ci.RunStarted, Workflow: run.Workflow, File: run.File, Name: run.Name, Jobs: len(jobs)})
	m.jobs(f, emit, run, float64(i)/float64(runs), runs-i < 60)
	return rec.Close()
}

// jobs has the jobs of a run happen. past is how far in the past it is, from 0 to 1.
func (m *maker) jobs(f flow, emit func(float64, ci.Record), run ci.Run, past float64, whole bool) {
	ended := map[string]float64{}
	failed := map[string]bool{}
	var all []ci.Conclusion
	last := 0.0
	for _, j := range f.jobs {
		for _, c := range append(j.cells, "")[:max(len(j.cells), 1)] {
			key := j.id
			if c != "" {
				key += " (" + c + ")"
			}
			emit(.15, ci.Record{Type: ci.JobQueued, Job: j.id, JobKey: key, Name: key, Needs: j.needs})
		}
	}
	for _, j := range f.jobs {
		from, blocked := .2, false
		for _, n := range j.needs {
			from, blocked = max(from, ended[n]), blocked || failed[n]
		}
		for _, c := range append(j.cells, "")[:max(len(j.cells), 1)] {
			key := j.id
			if c != "" {
				key += " (" + c + ")"
			}
			of := func(after float64, r ci.Record) {
				r.Job, r.JobKey = j.id, key
				if r.Step == 0 && r.Name == "" {
					r.Name = key
				}
				emit(after, r)
			}
			if blocked || j.id == "deploy" && run.Event != "push" {
				of(from, ci.Record{Type: ci.JobFinished, Conclusion: ci.Skipped, Reason: "a job that it needs has failed"})
				all = append(all, ci.Skipped)
				failed[j.id] = true
				continue
			}
			start := from + .2 + 6*m.r.ExpFloat64()
			of(start, ci.Record{Type: ci.JobStarted})
			at := start + .3 + .4*m.r.Float64()
			of(at, ci.Record{Type: ci.MachineRec, Machine: &ci.MachineEvent{ID: run.ID[:12], Action: "restored", Driver: "qemu",
				TookMS: int64(80 + m.r.IntN(200))}})
			conclusion := ci.Success
			for n, st := range j.steps {
				bad := m.step(st, n+1, of, &at, run, key, past, whole, conclusion != ci.Success)
				if bad && conclusion == ci.Success {
					conclusion = ci.Failure
				}
			}
			if conclusion == ci.Success && m.r.Float64() < .004 {
				conclusion = ci.Cancelled
			}
			of(at, ci.Record{Type: ci.JobFinished, Conclusion: conclusion, DurationMS: new(int64((at - start) * 1000))})
			all = append(all, conclusion)
			ended[j.id], failed[j.id] = max(ended[j.id], at), failed[j.id] || conclusion != ci.Success
			last = max(last, at)
		}
	}
	emit(last+.1, ci.Record{Type: ci.RunFinished, Conclusion: ci.Conclude(all), DurationMS: new(int64(last * 1000))})
}

// step has one step happen and reports whether it failed.
func (m *maker) step(st step, n int, of func(float64, ci.Record), at *float64, run ci.Run, key string, past float64, whole, skip bool) bool {
	if skip {
		of(*at, ci.Record{Type: ci.StepFinished, Step: n, Name: st.name, Conclusion: ci.Skipped, Outcome: ci.Skipped, Reason: "a step before it has failed"})
		return false
	}
	start := *at
	of(start, ci.Record{Type: ci.StepStarted, Step: n, Name: st.name, Command: st.command})
	took := st.seconds * math.Exp(.18*m.r.NormFloat64())
	if st.name == "Build" && past > .62 {
		took *= 1.45 // since a commit that nobody has noticed
	}
	place := run.Repository + run.File + key + st.name
	if m.broken[place] == 0 && m.r.Float64() < st.fails/3 {
		m.broken[place] = 1 + m.r.IntN(5) // until somebody mends it
	}
	flake := m.r.Float64() < st.fails/2
	bad := m.broken[place] > 0 || flake
	if m.broken[place] > 0 {
		m.broken[place]--
	}
	line := func(i int, text string) {
		of(start+took*min(float64(i)/40, .98), ci.Record{Type: ci.LogLine, Step: n, Stream: "stdout", Text: text})
	}
	if whole {
		of(start, ci.Record{Type: ci.Group, Step: n, Stream: "start", Text: "Run " + st.command})
		line(0, st.command)
		of(start, ci.Record{Type: ci.Group, Step: n, Stream: "end"})
		for i := range 30 {
			line(i+1, fmt.Sprintf("[%2d/30] %s module %d", i+1, cmp.Or(strings.ToLower(st.name), "step"), m.r.IntN(900)))
		}
		if st.command == "npm test" {
			of(start+took, ci.Record{Type: ci.SummaryRec, Step: n,
				Text: "### Coverage\n\n| file | lines |\n|---|---:|\n| cart.ts | 91 % |\n| total.ts | 88 % |\n"})
		}
		of(start+took/2, ci.Record{Type: ci.ConnectionRec, Step: n, Connection: &ci.ConnectionEvent{Host: "registry.npmjs.org", IP: "104.16.2.34",
			Port: 443, Proto: "tcp",
			BytesOut: 4100, BytesIn: 8_400_000}})
	}
	*at += took
	if !bad {
		of(*at, ci.Record{Type: ci.StepFinished, Step: n, Name: st.name, Conclusion: ci.Success, Outcome: ci.Success, ExitCode: new(0),
			DurationMS: new(int64(took * 1000))})
		m.tests(st, run, key, -1)
		return false
	}
	var lines []string
	test := -1
	for i, e := range errs {
		if e.of == "" || strings.Contains(st.command, e.of) {
			if e.of == "npm test" && !flake {
				i = 2
			} else if e.of == "npm test" {
				i = 3
			}
			lines, test = errs[i].lines, i-2
			break
		}
	}
	for i, l := range lines {
		line(35+i, l)
	}
	of(*at, ci.Record{Type: ci.StepFinished, Step: n, Name: st.name, Conclusion: ci.Failure, Outcome: ci.Failure, ExitCode: new(1),
		DurationMS: new(int64(took * 1000)),
		Reason:     "exit code 1"})
	m.tests(st, run, key, test)
	explanation, err := m.l.Explain(m.ctx, learn.Failure{Run: run.ID, Repository: run.Repository, Workflow: run.File, JobKey: key, Step: n, Name: st.name,
		Command: st.command,
		Branch:  run.Ref, Commit: run.SHA, Attempt: 1, ExitCode: 1, At: run.Created.Add(time.Duration(*at * float64(time.Second))), Lines: lines})
	if err == nil {
		of(*at, ci.Record{Type: ci.PredictionRec, Step: n, Explanation: &explanation})
		if strings.Contains(lines[0], ".ts") {
			of(*at, ci.Record{Type: ci.AnnotationRec, Step: n, Level: "error", File: "src/checkout/address.ts", Line: 88, Column: 14, Message: lines[0]})
		}
	}
	return true
}

func (m *maker) tests(st step, run ci.Run, key string, failed int) {
	if st.command != "npm test" {
		return
	}
	var results []suite.Result
	for i, name := range []string{"test/cart.test.ts > adds the tax once", "test/session.test.ts > expires after an hour",
		"test/search.test.ts > finds by colour"} {
		r := suite.Result{Name: name, Passed: 1, Seconds: m.r.Float64()}
		if i == failed {
			r.Passed, r.Failed = 0, 1
		}
		results = append(results, r)
	}
	m.l.TestsRan(m.ctx, learn.TestRun{Run: run.ID, Repository: run.Repository, Workflow: run.File, JobKey: key, Name: st.name, Command: st.command,
		Branch: run.Ref,
		Commit: run.SHA, Tree: run.SHA[:1], Green: failed < 0, Results: results})
}

// deliveries are what GitHub sent last.
func (m *maker) deliveries() error {
	for i := range 60 {
		state, detail := store.EventDone, "push: 1 run"
		switch {
		case i%19 == 3:
			state, detail = store.EventFailed, "the workflow files could not be read: 502 Bad Gateway"
		case i%7 == 5:
			state, detail = store.EventNoted, ""
		}
		_, _, err := m.s.AddEvent(m.ctx, ci.Event{Name: []string{"push", "pull_request", "check_run"}[i%3], Action: []string{"", "synchronize",
			"completed"}[i%3],
			Delivery: fmt.Sprintf("d-%d", i), Repository: Repositories[i%4], Payload: []byte("{}"),
			Received: End.Add(time.Duration(i-60) * 7 * time.Minute)}, state, detail)
		if err != nil {
			return err
		}
	}
	return nil
}
