package learn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/store"
)

// Mode says what the learner may do.
type Mode string

// The modes. Off: nothing is predicted, learned, stored or said. Advise: it
// says what it would do. Act: it may retry a step by itself.
const (
	Off    Mode = "off"
	Advise Mode = "advise"
	Act    Mode = "act"
)

// Options set a [Learner] up. The zero Options advise.
type Options struct {
	Mode Mode // "" is Advise
	// Modes says what may be done for a repository, where that is not the same for all;
	// nil, and "" of it, is Mode. What is Off for a repository is never learned from it.
	Modes func(repository string) Mode
	Log   *slog.Logger     // nil: silent
	Now   func() time.Time // nil: time.Now
	// HumanWait is what it costs when a person has to look after a failed run,
	// in time of a machine. 0 is fifteen minutes.
	HumanWait time.Duration
}

// Learner is the learner in the run path: it follows the event log of a store
// and answers from what it has seen there. All processes that share a database
// share what is learned; each record is learned from once. It is safe for
// concurrent use. A nil Learner, and one that is Off, does nothing and answers
// nothing.
type Learner struct {
	store *store.Store
	opt   Options
	log   *slog.Logger
	x     *Extractor

	mu sync.Mutex
	knowledge
	version int64 // of the store's knowledge that is in memory
	epoch   int64 // likewise: how often something was forgotten
	loaded  bool
	open    map[target]*Estimate // predictions of this process whose outcome is not known
	runs    map[string]*runState
}

// knowledge is everything that is learned, as it is in memory.
type knowledge struct {
	model     *Model
	durations *Durations
	graphs    graphs
	templates *Templates
	flakes    *Flakes
	retries   *Retries
	shifts    *Shifts
	greens    map[string][]logRef // by greenKey: last green runs of a step, for the log diff
	greensNew map[string]struct{}
	greensOf  share
}

// target is what a prediction is about: a run, a job of it, or a step of that.
type target struct {
	run, job string
	step     int
}

type logRef struct {
	Run  string `json:"r"`
	Job  string `json:"j"`
	Step int    `json:"s"`
	// What ran there, if it was kept.
	SHA    string `json:"c,omitempty"`
	Branch string `json:"b,omitempty"`
	Image  string `json:"i,omitempty"`
	Host   string `json:"h,omitempty"`
}

// runState is what Consume keeps of a run while its records come in.
type runState struct {
	run     ci.Run
	used    int64
	started time.Time
	jobs    map[string]*jobState
	failed  []string // graph ids of jobs
}

type jobState struct {
	started  time.Time
	image    string
	host     string
	commands []string // as they ran
	steps    map[int]stepState
}

type stepState struct {
	name, command string
	started       time.Time
}

const (
	follower     = "learn"
	batch        = 256
	maxRunStates = 256
	maxOpen      = 50_000
	maxGreens    = 20_000
	greensKept   = 3
)

// Open makes a learner over a store. What other processes have learned is read
// when it is first needed.
func Open(_ context.Context, s *store.Store, opt Options) (*Learner, error) {
	switch opt.Mode {
	case "":
		opt.Mode = Advise
	case Off, Advise, Act:
	default:
		return nil, fmt.Errorf("learning mode %q is none of off, advise, act", opt.Mode)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.HumanWait <= 0 {
		opt.HumanWait = humanWait
	}
	l := &Learner{store: s, opt: opt, log: opt.Log, x: NewExtractor()}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	l.reset()
	return l, nil
}

// On reports whether anything is learned or said at all, of any repository.
func (l *Learner) On() bool { return !l.off() }

// ModeOf says what the learner may do for a repository; Off for a nil Learner.
func (l *Learner) ModeOf(repository string) Mode {
	if l == nil {
		return Off
	}
	if l.opt.Modes != nil {
		if m := l.opt.Modes(repository); m != "" {
			return m
		}
	}
	return l.opt.Mode
}

func (l *Learner) off() bool { return l == nil || l.opt.Mode == Off && l.opt.Modes == nil }

func (l *Learner) reset() {
	l.knowledge = knowledge{model: NewModel(0), durations: NewDurations(0), graphs: graphs{}, templates: NewTemplates(0), flakes: NewFlakes(0),
		retries: NewRetries(0), shifts: NewShifts(0),
		greens: map[string][]logRef{}, greensNew: map[string]struct{}{}, greensOf: share{}}
	l.model.track()
	l.durations.track()
	l.version, l.loaded = 0, false
	l.open = map[target]*Estimate{}
	l.runs = map[string]*runState{}
}

// RunInfo says what is about to run, in plain words: the learner knows nothing
// of plans.
type RunInfo struct {
	ID         string // run id
	Repository string // owner/name
	Workflow   string // path of the file
	Branch     string // refs/heads/main; the ref of the run
	Commit     string
	Attempt    int
	Host       string
	Change     Change // of the commit
	Jobs       []JobInfo
}

// JobInfo is a job that is about to run.
type JobInfo struct {
	Key   string // unique in the run
	Steps []StepInfo
}

// StepInfo is a step that is about to run.
type StepInfo struct {
	Number  int // from 1, as its records will say
	Name    string
	Command string // script or action as written
}

// Forecast is what is expected of a run.
type Forecast struct {
	Run   ci.Prediction                    `json:"run"`
	Jobs  map[string]ci.Prediction         `json:"jobs"`  // by key
	Steps map[string]map[int]ci.Prediction `json:"steps"` // by job key and number
}

// Records are the forecast as records, the run's first, for the event stream.
func (f Forecast) Records(jobs []JobInfo) []ci.Record {
	if f.Jobs == nil {
		return nil
	}
	out := []ci.Record{{Type: ci.PredictionRec, Prediction: new(f.Run)}}
	for _, j := range jobs {
		if p, ok := f.Jobs[j.Key]; ok {
			out = append(out, ci.Record{Type: ci.PredictionRec, JobKey: j.Key, Prediction: &p})
		}
		for _, s := range j.Steps {
			if p, ok := f.Steps[j.Key][s.Number]; ok {
				out = append(out, ci.Record{Type: ci.PredictionRec, JobKey: j.Key, Step: s.Number, Name: s.Name, Prediction: &p})
			}
		}
	}
	return out
}

// The units of prediction have separate counters below one set of weights.
const (
	unitStep = ""
	unitJob  = "job"
	unitRun  = "run"
)

func execution(run *ci.Run, unit, job, step string, at time.Time) Execution {
	x := Execution{Unit: unit, Repo: run.Repository, Workflow: run.File, Job: job, Step: step, Branch: run.Ref, Commit: run.SHA,
		Attempt: run.Attempt, At: float64(at.UnixMilli()) / 1000}
	if x.Workflow == "" {
		x.Workflow = run.Workflow
	}
	if a, ok := graph.ActionMajor(step); ok {
		x.Action = a
	}
	return x
}

// stepIdentity is what tells steps of a job apart, over time.
func stepIdentity(name, command string) string {
	if c := graph.Command(command); c != "" {
		return c
	}
	return graph.Command(name)
}

// placeMark is between the parts of a place's name.
const placeMark = " › "

// place names a step over all runs, for signatures and lessons.
func place(x *Execution) string {
	s := strings.Join([]string{x.Repo, x.Workflow, x.Job, x.Step}, placeMark)
	if len(s) > 500 {
		s = strings.ToValidUTF8(s[:500], "")
	}
	return s
}

// foretell is what is expected of an execution, with what Learn wants back. The
// caller holds the lock.
func (l *Learner) foretell(x Execution) (*Estimate, ci.Prediction) {
	e, d := l.model.Predict(x), l.durations.Predict(&x)
	e.took = &d
	reasons := l.model.Reasons(e)
	if s := l.shifts.reason(&x); s != "" {
		reasons = append(reasons[:min(len(reasons), 2)], s)
	}
	return e, ci.Prediction{PFail: e.P, Low: e.Low, High: e.High, Seen: e.Seen, Reasons: reasons, ExpectedMS: int64(d.Median * 1000)}
}

// Before predicts a run, its jobs and their steps, and stores the predictions,
// to be compared with what happens. A run whose matrix grows later may come
// here again with the new jobs: what was predicted first stays.
func (l *Learner) Before(ctx context.Context, info RunInfo) (Forecast, error) {
	if l.ModeOf(info.Repository) == Off {
		return Forecast{}, nil
	}
	if _, err := l.Consume(ctx); err != nil {
		return Forecast{}, err
	}
	now := l.opt.Now()
	run := ci.Run{ID: info.ID, Repository: info.Repository, File: info.Workflow, Ref: info.Branch, SHA: info.Commit, Attempt: info.Attempt}
	f := Forecast{Jobs: map[string]ci.Prediction{}, Steps: map[string]map[int]ci.Prediction{}}
	var stored []store.Prediction
	l.mu.Lock()
	predict := func(t target, x Execution) ci.Prediction {
		x.Host, x.Change = info.Host, info.Change
		e, p := l.foretell(x)
		if len(l.open) >= maxOpen {
			for k := range l.open {
				delete(l.open, k)
				break
			}
		}
		if _, again := l.open[t]; !again {
			l.open[t] = e
		}
		stored = append(stored, store.Prediction{Repository: info.Repository, Run: t.run, JobKey: t.job, Step: t.step, Identity: place(&x), Made: now,
			Prediction: p})
		return p
	}
	f.Run = predict(target{run: info.ID}, execution(&run, unitRun, "", "", now))
	for _, j := range info.Jobs {
		f.Jobs[j.Key] = predict(target{info.ID, j.Key, 0}, execution(&run, unitJob, j.Key, "", now))
		steps := map[int]ci.Prediction{}
		for _, s := range j.Steps {
			steps[s.Number] = predict(target{info.ID, j.Key, s.Number}, execution(&run, unitStep, j.Key, stepIdentity(s.Name, s.Command), now))
		}
		f.Steps[j.Key] = steps
	}
	l.mu.Unlock()
	if err := l.store.AddPredictions(ctx, stored); err != nil {
		return f, fmt.Errorf("learn: %w", err)
	}
	return f, nil
}

// Follow consumes the event log as it grows until ctx is done, which is no
// error.
func (l *Learner) Follow(ctx context.Context) error {
	if l.off() {
		<-ctx.Done()
		return nil
	}
	woken, stop := l.store.Watch("")
	defer stop()
	// Records of other processes do not wake us.
	t := time.NewTicker(5 * time.Second)
	defer t.Stop()
	for {
		if _, err := l.Consume(ctx); err != nil && ctx.Err() == nil {
			l.log.Error("learning from the event log failed; trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-woken:
		case <-t.C:
		}
	}
}

// Consume learns from all records that nobody has learned from yet, and takes
// over what other processes have learned. It returns how many records it
// learned from.
func (l *Learner) Consume(ctx context.Context) (int, error) {
	if l.off() {
		return 0, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// Mostly there is nothing new, and no need to hold any writer up.
	head, cursor, version, err := l.store.Progress(ctx, follower)
	if err != nil {
		return 0, fmt.Errorf("learn: %w", err)
	}
	if head == cursor && version == l.version && (l.loaded || version == 0) {
		return 0, nil
	}
	total := 0
	for {
		n := 0
		err := l.learn(ctx, func(tx *store.Learning) (int64, error) {
			recs, err := tx.Records(batch)
			if err != nil || len(recs) == 0 {
				return tx.Cursor, err
			}
			n = len(recs)
			for _, r := range recs {
				if err := l.take(tx, r.Record); err != nil {
					return 0, fmt.Errorf("record %d of run %s (%s): %w", r.Seq, r.Run, r.Type, err)
				}
			}
			l.model.Settle()
			return recs[n-1].Cursor, nil
		})
		total += n
		if err != nil {
			return total, fmt.Errorf("learn: %w", err)
		}
		if n < batch {
			return total, nil
		}
	}
}

// Learned is up to where in the event log everything has been learned from, once
// what is there now has. Records behind it must not be removed. A learner that is
// off waits for nothing.
func (l *Learner) Learned(ctx context.Context) (cursor int64, err error) {
	if l.off() {
		return math.MaxInt64, nil
	}
	if _, err := l.Consume(ctx); err != nil {
		return 0, err
	}
	_, cursor, _, err = l.store.Progress(ctx, follower)
	if err != nil {
		return 0, fmt.Errorf("learn: %w", err)
	}
	return cursor, nil
}

// learn runs fn over knowledge that is up to date, and stores what it changed
// with the cursor that it returns. What is in memory is as the database says,
// whatever happens. The caller holds mu.
func (l *Learner) learn(ctx context.Context, fn func(*store.Learning) (cursor int64, err error)) error {
	touched := false
	var version int64
	err := l.store.Learn(ctx, follower, func(tx *store.Learning) error {
		if l.loaded && tx.Epoch != l.epoch { // what is in memory may be what was forgotten
			l.reset()
		}
		l.epoch = tx.Epoch
		if !l.loaded || tx.Version != l.version {
			k, err := tx.Changed(l.version)
			if err != nil {
				return err
			}
			l.load(k)
			l.version, l.loaded = tx.Version, true
		}
		was := tx.Cursor
		touched = true
		cursor, err := fn(tx)
		if err != nil {
			return err
		}
		k, gone := l.changes()
		if cursor == was && len(k.Nodes)+len(k.Edges)+len(k.Models) == 0 {
			version = tx.Version
			return nil
		}
		if err := tx.Save(k, cursor); err != nil {
			return err
		}
		if err := tx.Forget(gone.nodes, gone.edges, gone.models); err != nil {
			return err
		}
		version = tx.Version
		return nil
	})
	if err != nil {
		if touched {
			l.reset() // memory may be ahead of the database: read it again
		}
		return err
	}
	l.version = version
	return nil
}

func (l *Learner) state(tx *store.Learning, runID string) (*runState, error) {
	if s := l.runs[runID]; s != nil {
		s.used = l.opt.Now().UnixNano()
		return s, nil
	}
	run, err := tx.Run(runID)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil // its rows are gone; there is nothing to learn
	}
	if err != nil {
		return nil, err
	}
	if l.ModeOf(run.Repository) == Off || run.Event == ci.RewindEvent {
		return nil, nil
	}
	if len(l.runs) >= maxRunStates {
		var oldest string
		for id, s := range l.runs {
			if oldest == "" || s.used < l.runs[oldest].used {
				oldest = id
			}
		}
		delete(l.runs, oldest)
	}
	s := &runState{run: run, used: l.opt.Now().UnixNano(), jobs: map[string]*jobState{}, started: run.Started}
	l.runs[runID] = s
	return s, nil
}

func (s *runState) job(key string) *jobState {
	j := s.jobs[key]
	if j == nil {
		j = &jobState{steps: map[int]stepState{}}
		s.jobs[key] = j
	}
	return j
}

// take learns from one record.
func (l *Learner) take(tx *store.Learning, rec ci.Record) error {
	switch rec.Type {
	case ci.RunStarted, ci.RunFinished, ci.JobStarted, ci.JobFinished, ci.StepStarted, ci.StepFinished, ci.MachineRec:
	default:
		return nil
	}
	s, err := l.state(tx, rec.Run)
	if err != nil || s == nil {
		return err
	}
	if rec.JobKey == "" {
		rec.JobKey = rec.Job
	}
	switch rec.Type {
	case ci.RunStarted:
		s.started = rec.Time
	case ci.JobStarted:
		j := s.job(rec.JobKey)
		*j = jobState{started: rec.Time, image: j.image, host: j.host, steps: map[int]stepState{}}
	case ci.StepStarted:
		s.job(rec.JobKey).steps[rec.Step] = stepState{rec.Name, rec.Command, rec.Time}
	case ci.StepFinished:
		return l.stepFinished(tx, s, rec)
	case ci.MachineRec:
		if rec.Machine != nil && rec.JobKey != "" && rec.Machine.Image != "" {
			j := s.job(rec.JobKey)
			j.image, j.host = rec.Machine.Image, rec.Machine.Host
		}
	case ci.JobFinished:
		x := execution(&s.run, unitJob, rec.JobKey, "", rec.Time)
		j := s.job(rec.JobKey)
		if rec.Assisted && rec.Conclusion == ci.Success {
			rec.Conclusion = ci.Failure // it failed, until somebody had a hand in it
		}
		_, err := l.outcome(tx, target{rec.Run, rec.JobKey, 0}, x, rec, rec.Conclusion, j.started, false)
		if err != nil {
			return err
		}
		l.jobFinished(s, j, x, rec)
	case ci.RunFinished:
		x := execution(&s.run, unitRun, "", "", rec.Time)
		_, err := l.outcome(tx, target{run: rec.Run}, x, rec, rec.Conclusion, s.started, false)
		if err == nil {
			l.touch(x.Repo, nodeID(graph.Workflow, x.Repo, x.Workflow), rec.Conclusion, rec)
			l.touch(x.Repo, nodeID(graph.Repo, x.Repo), rec.Conclusion, rec)
		}
		delete(l.runs, rec.Run)
		return err
	}
	return nil
}

// maxCoFailed bounds the pairs of jobs that failed in one run.
const maxCoFailed = 8

func (l *Learner) jobFinished(s *runState, j *jobState, x Execution, rec ci.Record) {
	failed, counts := verdict(rec.Conclusion, rec.Infrastructure)
	if !counts {
		return
	}
	ms := rec.Time.UnixMilli()
	g := l.graphs.of(x.Repo)
	id := nodeID(graph.Job, x.Repo, x.Workflow, rec.JobKey)
	g.Touch(id, rec.Name, failed, ms)
	g.Link(id, graph.PartOf, nodeID(graph.Workflow, x.Repo, x.Workflow), failed, ms)
	if j.image != "" {
		g.Link(id, graph.RanOn, graph.ID(graph.Image, j.image), failed, ms)
	}
	if !failed {
		return
	}
	for _, other := range s.failed {
		g.Link(id, graph.CoFailed, other, true, ms)
		g.Link(other, graph.CoFailed, id, true, ms)
	}
	if len(s.failed) < maxCoFailed {
		s.failed = append(s.failed, id)
	}
}

// nodeID is the id of a thing that is named by its parts.
func nodeID(k graph.Kind, parts ...string) string {
	return graph.ID(k, clip(strings.Join(parts, " "), 500))
}

func (l *Learner) touch(repo, id string, c ci.Conclusion, rec ci.Record) {
	if failed, counts := verdict(c, rec.Infrastructure); counts {
		l.graphs.of(repo).Touch(id, "", failed, rec.Time.UnixMilli())
	}
}

// verdict says whether an end is an outcome, and which. What was cancelled,
// skipped, or could not be run says nothing about the thing itself.
func verdict(c ci.Conclusion, infrastructure bool) (failed, counts bool) {
	if infrastructure {
		return false, false
	}
	switch c {
	case ci.Success:
		return false, true
	case ci.Failure, ci.TimedOut:
		return true, true
	}
	return false, false
}

// outcome brings a prediction and its outcome together: in the database, the
// model and the durations. What was tried again by itself counts as what it first
// came to, a failure. It reports whether the step had been failing on this branch up
// to now.
func (l *Learner) outcome(tx *store.Learning, t target, x Execution, rec ci.Record, c ci.Conclusion, started time.Time,
	again bool) (wasFailing int, err error) {
	failed, counts := verdict(c, rec.Infrastructure)
	failed = failed || counts && again
	took := time.Duration(0)
	if rec.DurationMS != nil {
		took = time.Duration(*rec.DurationMS) * time.Millisecond
	} else if !started.IsZero() {
		took = rec.Time.Sub(started)
	}
	if _, err := tx.ClosePrediction(t.run, t.job, t.step, store.Ended{At: rec.Time, As: c, Failed: failed, Counts: counts, Took: took}); err != nil {
		return 0, err
	}
	e := l.open[t]
	delete(l.open, t)
	if !counts {
		return 0, nil
	}
	end := float64(rec.Time.UnixMilli()) / 1000
	if e != nil {
		x.Change = e.x.Change // which no record tells
	}
	if e == nil || e.keys != keysOf(&x) || max(e.x.Attempt, 1) != max(x.Attempt, 1) {
		// Predicted by another process, or not at all: as if now.
		x.At = end - took.Seconds()
		e = l.model.Predict(x)
	}
	if b := l.model.at(&e.keys, levelBranch); b != nil && b.streak > 0 {
		wasFailing = int(b.streak)
	}
	l.model.Learn(e, failed, end)
	if x.Unit != unitRun && max(x.Attempt, 1) == 1 {
		d := took.Seconds()
		if c == ci.TimedOut || again || rec.Assisted {
			d = -1
		}
		l.shifts.Add(&x, t.run, failed, d, rec.Time)
	}
	if c != ci.TimedOut && took > 0 && !again && !rec.Assisted { // somebody was waited for
		l.durations.Add(&x, e.took, took.Seconds())
	}
	return wasFailing, nil
}

func (l *Learner) stepFinished(tx *store.Learning, s *runState, rec ci.Record) error {
	c := rec.Outcome
	if c == "" {
		c = rec.Conclusion
	}
	j := s.job(rec.JobKey)
	st, ok := j.steps[rec.Step]
	if !ok {
		// It started before this process looked, or never.
		name, command, err := tx.StepCommand(rec.Run, rec.JobKey, rec.Step)
		if err != nil {
			return err
		}
		st = stepState{name: name, command: command}
	}
	id := stepIdentity(st.name, st.command)
	if id == "" {
		id = stepIdentity(rec.Name, rec.Command)
	}
	x := execution(&s.run, unitStep, rec.JobKey, id, rec.Time)
	if rec.Assisted {
		// What a person made of it says nothing of the step: as it is, it has failed.
		if rec.Attempt = 0; c == ci.Success {
			c = ci.Failure
		}
	}
	// A step that was tried again by itself has failed the first time, whatever it
	// came to.
	again := rec.Attempt > 1
	wasFailing, err := l.outcome(tx, target{rec.Run, rec.JobKey, rec.Step}, x, rec, c, st.started, again)
	if err != nil {
		return err
	}
	if again {
		x.Attempt = max(s.run.Attempt, 1) + rec.Attempt - 1
		if failed, counts := verdict(c, rec.Infrastructure); counts {
			end := float64(rec.Time.UnixMilli()) / 1000
			x.At = end
			l.model.Learn(l.model.Predict(x), failed, end)
		}
	}
	failed, counts := verdict(c, rec.Infrastructure)
	if !counts || id == "" {
		return nil
	}
	ms := rec.Time.UnixMilli()
	where := place(&x)
	l.ran(&x, st, j.commands, failed, ms)
	j.commands = Remember(j.commands, id)
	if failed {
		if x.Attempt > 1 {
			return l.retried(tx, &x, &s.run, rec, false)
		}
		return nil
	}
	key := greenKey(&x)
	refs := append([]logRef{{rec.Run, rec.JobKey, rec.Step, s.run.SHA, s.run.Ref, j.image, j.host}}, l.greens[key]...)
	if len(l.greens) >= maxGreens && l.greens[key] == nil {
		out := makeRoom(l.greens, l.greensOf, func(key string, _ []logRef) (uint64, float64) { return greenOwner(key), 0 })
		l.greensOf.drop(greenOwner(out))
		delete(l.greens, out)
		l.greensNew[out] = struct{}{}
	}
	l.putGreens(key, refs[:min(len(refs), greensKept)])
	l.greensNew[key] = struct{}{}
	if x.Attempt > 1 {
		return l.retried(tx, &x, &s.run, rec, true)
	}
	if wasFailing > 0 {
		return l.mended(tx, where, s.run, wasFailing, ms)
	}
	return nil
}

// greenKey is under which key the green runs of a step are kept. It begins with
// the repository: another's logs are never compared with.
func greenKey(x *Execution) string {
	return recordKey(x.Repo, strconv.FormatUint(keysOf(x).level[levelStep], 16))
}

func greenOwner(key string) uint64 {
	repo, _ := ofRecordKey(key)
	return ownerOf(repo)
}

func (l *Learner) putGreens(key string, refs []logRef) {
	if l.greens[key] == nil {
		l.greensOf.add(greenOwner(key))
	}
	l.greens[key] = refs
}

// mended notes for the signatures of a streak of failures which commit ended
// them: the first green after.
func (l *Learner) mended(tx *store.Learning, where string, run ci.Run, streak int, ms int64) error {
	hits, err := tx.RecentHits(run.Repository, where, min(streak, 50))
	if err != nil {
		return err
	}
	done := map[string]bool{}
	for _, h := range hits {
		if h.Branch != run.Ref || done[h.Signature] {
			continue
		}
		if passed, err := tx.NextPassed(h.Run, h.JobKey, h.Step, h.Attempt); err != nil || passed {
			if err != nil {
				return err
			}
			continue // it had ended by itself
		}
		done[h.Signature] = true
		fix := run.Name
		if fix == run.Workflow || fix == run.File {
			fix = ""
		}
		if h.SHA == run.SHA {
			// A run that a forge asked for is of the commit as it is: nothing
			// changed, and it passes. A run from a working tree may have had
			// changes that nobody committed, and proves neither.
			if run.EventID != "" {
				if err := tx.CountRetry(run.Repository, h.Signature, true); err != nil {
					return err
				}
				l.flakes.Label(run.Repository, h.Signature, true)
				continue
			}
			if err := tx.Fixed(run.Repository, h.Signature, run.SHA, "on the same commit: by changes that were not committed, or by itself"); err != nil {
				return err
			}
			continue
		}
		if err := tx.Fixed(run.Repository, h.Signature, run.SHA, fix); err != nil {
			return err
		}
		if err := tx.LessonHelped(run.Repository, where, h.Signature); err != nil {
			return err
		}
		l.flakes.Label(run.Repository, h.Signature, false)
		g := l.graphs.of(run.Repository)
		g.Touch(graph.ID(graph.Commit, run.SHA), fix, false, ms)
		g.Link(graph.ID(graph.Signature, h.Signature), graph.FixedBy, graph.ID(graph.Commit, run.SHA), false, ms)
	}
	return nil
}

// Related lists commands that run where command runs in a repository, by
// [graph.Graph.Related]. With repository "" all are asked as one: that is for
// the owner of the record, never for who sees one repository.
func (l *Learner) Related(ctx context.Context, repository, command string, n int) ([]graph.Match, error) {
	return l.ask(ctx, repository, func(g *graph.Graph, now int64) []graph.Match { return g.Related(graph.Command(command), n, now) })
}

// Next lists commands that follow these (the last one last) in a repository, by
// [graph.Graph.Next]; "" as in [Learner.Related].
func (l *Learner) Next(ctx context.Context, repository string, n int, commands ...string) ([]graph.Match, error) {
	for i, c := range commands {
		commands[i] = graph.Command(c)
	}
	return l.ask(ctx, repository, func(g *graph.Graph, now int64) []graph.Match { return g.Next(commands, n, now) })
}

// Similar lists signatures of a repository near one, by [graph.Graph.Similar];
// "" as in [Learner.Related].
func (l *Learner) Similar(ctx context.Context, repository, signature string, n int) ([]graph.Match, error) {
	return l.ask(ctx, repository, func(g *graph.Graph, now int64) []graph.Match {
		return g.Similar(graph.ID(graph.Signature, signature), n, now)
	})
}

func (l *Learner) ask(ctx context.Context, repository string, fn func(g *graph.Graph, now int64) []graph.Match) ([]graph.Match, error) {
	if l.off() {
		return nil, nil
	}
	if _, err := l.Consume(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.opt.Now().UnixMilli()
	return fn(l.graphs.ask(repository, now), now), nil
}

// Stats are totals, for a status page; counting them takes no time.
type Stats struct {
	Keys, Nodes, Edges, Templates int
	Executions, Failures          int64
}

// Stats counts what is known.
func (l *Learner) Stats(ctx context.Context) (Stats, error) {
	if l.off() {
		return Stats{}, nil
	}
	if _, err := l.Consume(ctx); err != nil {
		return Stats{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{Keys: len(l.model.counters), Templates: len(l.templates.byID)}
	for _, g := range l.graphs {
		n, e := g.Len()
		s.Nodes, s.Edges = s.Nodes+n, s.Edges+e
	}
	all := keysOf(&Execution{})
	if c := l.model.at(&all, levelAll); c != nil {
		s.Executions, s.Failures = c.seen, c.fails
	}
	return s, nil
}

// Report measures the stored predictions of the past against what happened.
type Report struct {
	Steps    Scores          `json:"steps"`
	Jobs     Scores          `json:"jobs"`
	Runs     Scores          `json:"runs"`
	Duration *DurationScores `json:"duration,omitempty"` // of all three
	Since    time.Time       `json:"since,omitzero"`     // the oldest prediction among them
	// Greens is how far what was said of runs, jobs and steps that had never failed
	// came true.
	Greens []Calibration `json:"greens,omitempty"`
	// Before are older predictions, of which only sums are kept, by what they were
	// of: run, job, step. They are not among the others.
	Before map[string]Sums `json:"before,omitempty"`
}

// Sums are what is left of old predictions.
type Sums struct {
	N       int       `json:"n"`
	Failed  int       `json:"failed"`
	LogLoss float64   `json:"log_loss"`
	Brier   float64   `json:"brier"`
	Since   time.Time `json:"since"`
}

// reportLimit is how many predictions a report looks back over.
const reportLimit = 20_000

// Report computes the report over the last 20,000 predictions of a repository,
// or with "" of all.
func (l *Learner) Report(ctx context.Context, repository string) (Report, error) {
	if l.off() {
		return Report{}, nil
	}
	if _, err := l.Consume(ctx); err != nil {
		return Report{}, err
	}
	all, err := l.store.ClosedPredictions(ctx, repository, reportLimit)
	if err != nil {
		return Report{}, fmt.Errorf("learn: %w", err)
	}
	var rep Report
	var ps [3][]float64
	var ys [3][]bool
	var ds durationTally
	for _, p := range all {
		unit := 0
		switch {
		case p.JobKey == "":
			unit = 2
		case p.Step == 0:
			unit = 1
		}
		ps[unit] = append(ps[unit], p.PFail)
		ys[unit] = append(ys[unit], p.Failed)
		if p.ExpectedMS > 0 && p.DurationMS > 0 {
			m := float64(p.ExpectedMS) / 1000
			ds.add(DurationEstimate{Median: m, P90: math.NaN(), N: 1}, float64(p.DurationMS)/1000)
		}
		rep.Since = p.Made
	}
	rep.Greens = greensOf(all)
	rep.Steps, rep.Jobs, rep.Runs = score(ps[0], ys[0]), score(ps[1], ys[1]), score(ps[2], ys[2])
	if rep.Duration = ds.scores(); rep.Duration != nil {
		rep.Duration.P90Cover = 0
	}
	totals, err := l.store.PredictionTotals(ctx, repository)
	if err != nil {
		return rep, fmt.Errorf("learn: %w", err)
	}
	for _, t := range totals {
		if rep.Before == nil {
			rep.Before = map[string]Sums{}
		}
		n := float64(max(t.N, 1))
		rep.Before[t.Unit] = Sums{N: t.N, Failed: t.Failed, LogLoss: t.LogLoss / n, Brier: t.Brier / n, Since: t.First}
	}
	return rep, nil
}

// greensOf compares the predictions of what had never failed with what happened,
// as far as its whole history is among them. They come the newest first.
func greensOf(all []store.Prediction) []Calibration {
	type history struct {
		passes int64
		failed bool
	}
	of := map[string]*history{}
	var t greenTally
	for _, p := range slices.Backward(all) {
		unit := "step"
		switch {
		case p.JobKey == "":
			unit = "run"
		case p.Step == 0:
			unit = "job"
		}
		id := unit + " " + p.Identity
		h := of[id]
		if h == nil {
			h = &history{}
			of[id] = h
		}
		if !h.failed && p.Seen == h.passes {
			t.add(h.passes, p.PFail, p.Failed)
		}
		h.failed = h.failed || p.Failed
		h.passes++
	}
	return t.result()
}

// Summary is what one run taught.
type Summary struct {
	Run         string         `json:"run"`
	Predictions []Compared     `json:"predictions"` // run, jobs and steps, with what happened
	Signatures  []SeenBefore   `json:"signatures,omitempty"`
	Lessons     []store.Lesson `json:"lessons,omitempty"` // that apply to what failed
	Brier       float64        `json:"brier"`             // of the predictions of this run
}

// Compared is a prediction beside its outcome.
type Compared struct {
	JobKey         string        `json:"job_key,omitempty"`
	Step           int           `json:"step,omitempty"`
	PFail          float64       `json:"p_fail"`
	Seen           int64         `json:"seen"`
	Ended          ci.Conclusion `json:"ended,omitempty"` // "": nothing is known
	Expected, Took time.Duration `json:"-"`
}

// SeenBefore is a failure of the run with how often its like was seen in all.
type SeenBefore struct {
	JobKey    string          `json:"job_key"`
	Step      int             `json:"step"`
	Signature store.Signature `json:"signature"`
}

// Summary says what a run taught, once its records are consumed.
func (l *Learner) Summary(ctx context.Context, runID string) (Summary, error) {
	s := Summary{Run: runID}
	if l.off() {
		return s, nil
	}
	if _, err := l.Consume(ctx); err != nil {
		return s, err
	}
	ps, err := l.store.Predictions(ctx, runID)
	if err != nil {
		return s, fmt.Errorf("learn: %w", err)
	}
	n := 0.0
	for _, p := range ps {
		s.Predictions = append(s.Predictions, Compared{JobKey: p.JobKey, Step: p.Step, PFail: p.PFail, Seen: p.Seen, Ended: p.Outcome,
			Expected: time.Duration(p.ExpectedMS) * time.Millisecond, Took: time.Duration(p.DurationMS) * time.Millisecond})
		if p.Counts {
			y := 0.0
			if p.Failed {
				y = 1
			}
			s.Brier += (p.PFail - y) * (p.PFail - y)
			n++
		}
	}
	s.Brier /= max(n, 1)
	hits, err := l.store.RunHits(ctx, runID)
	if err != nil {
		return s, fmt.Errorf("learn: %w", err)
	}
	places := map[string]bool{}
	repository := ""
	for _, h := range hits {
		repository = h.Repository
		sig, err := l.store.Signature(ctx, h.Repository, h.Signature)
		if err != nil {
			return s, fmt.Errorf("learn: %w", err)
		}
		s.Signatures = append(s.Signatures, SeenBefore{JobKey: h.JobKey, Step: h.Step, Signature: sig})
		places[h.Identity+h.Signature] = true
	}
	if len(places) > 0 {
		lessons, err := l.store.Lessons(ctx, repository, l.opt.Now())
		if err != nil {
			return s, fmt.Errorf("learn: %w", err)
		}
		for _, v := range lessons {
			if places[v.Identity+v.Signature] {
				s.Lessons = append(s.Lessons, v)
			}
		}
	}
	return s, nil
}

// Lines is the summary as a few lines of plain text.
func (s Summary) Lines() []string {
	if len(s.Predictions) == 0 {
		return nil
	}
	known, failed, firsts := 0, 0, 0
	for _, p := range s.Predictions {
		if p.Step == 0 {
			continue
		}
		if f, counts := verdict(p.Ended, false); counts {
			known++
			if f {
				failed++
			}
			if p.Seen == 0 {
				firsts++
			}
		}
	}
	out := []string{fmt.Sprintf("learned from %d steps, %d of them failed, %d seen for the first time; predictions were off by %.2f (Brier)", known, failed,
		firsts, s.Brier)}
	for _, v := range s.Signatures {
		line := fmt.Sprintf("%s, step %d: %s", v.JobKey, v.Step, v.Signature.Text)
		if v.Signature.Seen > 1 {
			line += fmt.Sprintf(" (seen %d times", v.Signature.Seen)
			if v.Signature.FixedBy != "" {
				line += ", last ended by " + short(v.Signature.FixedBy)
			}
			line += ")"
		} else {
			line += " (new)"
		}
		out = append(out, line)
	}
	for _, v := range s.Lessons {
		out = append(out, "lesson: "+v.Text)
	}
	return out
}

// short is a commit's name in short; what is none, other commands say, stays.
func short(sha string) string {
	if len(sha) > 10 && strings.Trim(sha, "0123456789abcdef") == "" {
		return sha[:10]
	}
	return sha
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only types of ours, without channels or NaN, come here
	}
	return b
}
