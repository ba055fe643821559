package remote

import (
	"bufio"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/desk"
	"github.com/hearth-ci/hearth/internal/git"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/worker"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// Config is what a [Server] works with.
type Config struct {
	Desk *desk.Desk
	// Check says who has a token; the error, for people, that nobody (any more) has it.
	Check func(token string) (who string, err error)
	// LastSent is the greatest number on record of a job: see [ci.Record].Sent.
	LastSent func(ctx context.Context, runID, jobID, jobKey string) (int64, error)
	Version  string
	Now      func() time.Time // nil: time.Now
	Log      *slog.Logger
}

// Server answers workers on other hosts. Safe for concurrent use.
type Server struct {
	cfg  Config
	slot chan struct{}

	mu   sync.Mutex
	live map[fence]*live
	keys map[string]time.Time // of claims: when they were made
	seen map[string]time.Time // workers: when they last claimed
}

// live is an attempt in the hands of a worker.
type live struct {
	*desk.Attempt
	fence  fence
	worker string
	runner *worker.Runner
	task   conduct.Task
	hidden *mask.Set

	mu     sync.Mutex
	next   int64 // number of the record that is to come
	served *worker.Served
}

// NewServer makes one.
func NewServer(cfg Config) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Server{cfg: cfg, slot: make(chan struct{}, maxAtOnce), live: map[fence]*live{}, keys: map[string]time.Time{}, seen: map[string]time.Time{}}
}

// Register adds what workers ask to a mux, below [Root].
func (s *Server) Register(mux *http.ServeMux) {
	on := func(path string, fn func(http.ResponseWriter, *http.Request, string) error) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			who, err := s.enter(r)
			if err == nil {
				err = fn(w, r, who)
			}
			if err != nil {
				s.fail(w, r, err)
			}
		})
	}
	on("GET "+Root+"hello", s.hello)
	on("POST "+Root+"claim", s.claim)
	job := func(path string, fn func(http.ResponseWriter, *http.Request, *live) error) {
		on(path, func(w http.ResponseWriter, r *http.Request, who string) error {
			l, err := s.find(r, who)
			if err != nil {
				return err
			}
			return fn(w, r, l)
		})
	}
	const jobs = Root + "jobs/{job}/{attempt}/"
	job("POST "+jobs+"beat", s.beat)
	job("POST "+jobs+"records", s.records)
	job("POST "+jobs+"finish", s.finish)
	job("POST "+jobs+"release", s.release)
	job("POST "+jobs+"explain", s.explain)
	job("POST "+jobs+"retry", s.retry)
	job("POST "+jobs+"tests", s.tests)
	job("POST "+jobs+"hand", s.hand)
	job("POST "+jobs+"checkout", s.checkout)
	job("POST "+jobs+"action", s.action)
	job("POST "+jobs+"uploads", s.uploads)
	job("POST "+jobs+"upload", s.upload)
	job(jobs+"service/", s.service)
	on(Root, func(http.ResponseWriter, *http.Request, string) error {
		return refuse(http.StatusNotFound, "workers ask nothing here")
	})
}

var instance = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// enter is who asks, as the queue names it.
func (s *Server) enter(r *http.Request) (string, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return "", refuse(http.StatusUnauthorized, "a worker's token is wanted: hearth token --worker makes one")
	}
	who, err := s.cfg.Check(token)
	if err != nil {
		return "", refuse(http.StatusUnauthorized, "the worker's token is %v: hearth token --worker makes another", err)
	}
	v, err := strconv.Atoi(r.Header.Get(protocolHeader))
	if err != nil {
		return "", refuse(http.StatusUpgradeRequired, "the worker does not say which version of the protocol it speaks; this server speaks %d", Protocol)
	}
	if v < Protocol-1 || v > Protocol+1 {
		older := "worker"
		if v > Protocol {
			older = "server"
		}
		return "", refuse(http.StatusUpgradeRequired, "the worker speaks version %d of the protocol and this server (hearth %s) %d: bring the %s up to date", v, s.cfg.Version,
			Protocol, older)
	}
	name := r.Header.Get(workerHeader)
	if !instance.MatchString(name) {
		return "", refuse(http.StatusBadRequest, "the worker does not say who it is")
	}
	return desk.Remote + who + "/" + name, nil
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	told, ok := errors.AsType[*refusal](err)
	if !ok {
		if r.Context().Err() != nil {
			return // who asked is gone
		}
		s.cfg.Log.Error("a worker could not be answered", "path", r.URL.Path, "err", err)
		told = &refusal{Status: http.StatusInternalServerError, Message: "the server could not do it; its log says why"}
	}
	if told.Status == http.StatusServiceUnavailable {
		w.Header().Set(againHeader, "1") // nothing of the request was taken
	}
	answer(w, told.Status, told)
}

func answer(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(b) // who is gone is gone
	return nil
}

// read takes in a request's JSON.
func (s *Server) read(w http.ResponseWriter, r *http.Request, v any) error {
	body := http.MaxBytesReader(w, r.Body, maxBody)
	if r.ContentLength < 0 || r.ContentLength > smallBody {
		select {
		case s.slot <- struct{}{}:
			defer func() { <-s.slot }()
		case <-r.Context().Done():
			return context.Cause(r.Context())
		}
	}
	b, err := io.ReadAll(body)
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return refuse(http.StatusRequestEntityTooLarge, "the request has more than %d MiB: nothing of it was taken", maxBody>>20)
	}
	if err != nil {
		return refuse(http.StatusBadRequest, "reading the request: %v", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return refuse(http.StatusBadRequest, "the request is none: %v", err)
	}
	return nil
}

func (s *Server) hello(w http.ResponseWriter, _ *http.Request, who string) error {
	return answer(w, http.StatusOK, Hello{Protocol: Protocol, Version: s.cfg.Version, Time: s.cfg.Now().UTC(), Worker: strings.TrimPrefix(who, desk.Remote)})
}

// fresh says whether a claim is made now, and for the first time.
func (s *Server) fresh(q *claimRequest, who string) error {
	now := s.cfg.Now()
	if d := q.Time.Sub(now); d > Skew || d < -Skew {
		where := "ahead of"
		if d < 0 {
			where = "behind"
		}
		return refuse(http.StatusConflict, "the clock of %s is %v %s the server's: set one of them right (or the claim was made then, and comes again)",
			strings.TrimPrefix(who, desk.Remote), d.Abs().Round(time.Second), where)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, at := range s.keys {
		if now.Sub(at) > 2*Skew {
			delete(s.keys, k)
		}
	}
	if len(s.keys) >= maxKeys {
		return refuse(http.StatusTooManyRequests, "there were %d claims in the last minutes: try again later", len(s.keys))
	}
	if _, again := s.keys[string(q.Key)]; again {
		return refuse(http.StatusConflict, "this claim was made before: every claim has a key of its own")
	}
	s.keys[string(q.Key)] = now
	return nil
}

func (s *Server) claim(w http.ResponseWriter, r *http.Request, who string) error {
	var q claimRequest
	if err := s.read(w, r, &q); err != nil {
		return err
	}
	if len(q.Labels) == 0 || len(q.Labels) > maxLabels || slices.ContainsFunc(q.Labels, func(l string) bool { return l == "" || len(l) > maxLabel }) {
		return refuse(http.StatusBadRequest, "a worker has 1 to %d labels of at most %d bytes", maxLabels, maxLabel)
	}
	if _, err := kem.NewPublicKey(q.Key); err != nil {
		return refuse(http.StatusBadRequest, "the key of the claim is none: %v", err)
	}
	if err := s.fresh(&q, who); err != nil {
		return err
	}
	s.meet(who, &q)
	s.forgotten(r.Context(), who, q.Holding)
	ctx, cancel := context.WithTimeout(r.Context(), min(time.Duration(max(q.WaitMS, 0))*time.Millisecond, claimWait))
	defer cancel()
	offer := queue.Offer{Worker: who, Labels: q.Labels, CPUs: max(q.CPUs, 0), MemoryMiB: max(q.MemoryMiB, 0)}
	a, err := s.cfg.Desk.Claim(ctx, offer)
	if err != nil {
		if ctx.Err() != nil {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
		return err
	}
	keep := context.WithoutCancel(r.Context())
	l, err := s.begin(a, who)
	if err != nil {
		return errors.Join(err, a.Release(keep, "it runs on the server only"))
	}
	sealed, err := s.brief(keep, l, q.Key)
	if err == nil && r.Context().Err() != nil {
		s.drop(l)
		return l.Release(keep, "its worker was gone when it was to have it")
	}
	if err != nil {
		s.drop(l)
		out := conduct.Outcome{Conclusion: ci.Failure, Infrastructure: true, Reason: "what the job is handed: " + err.Error()}
		if denied, ok := errors.AsType[*worker.Denied](err); ok {
			out = conduct.Outcome{Conclusion: ci.Failure, Reason: denied.Error()}
		}
		if err := l.Finish(keep, out); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	s.cfg.Log.Info("a worker took a job", "job", l.fence.Job, "attempt", l.fence.Attempt, "name", who)
	return answer(w, http.StatusOK, claimAnswer{fence: l.fence, LeaseMS: s.cfg.Desk.Queue.Lease().Milliseconds(), Sealed: sealed})
}

// meet notes that a worker is there, and what it can hold.
func (s *Server) meet(who string, q *claimRequest) {
	now := s.cfg.Now()
	s.mu.Lock()
	_, known := s.seen[who]
	if len(s.seen) < maxSeen {
		s.seen[who] = now
	}
	for name, at := range s.seen {
		if now.Sub(at) > time.Hour {
			delete(s.seen, name)
		}
	}
	s.mu.Unlock()
	if !known {
		s.cfg.Log.Info("a worker is there", "name", who, "reason", fmt.Sprintf("%d jobs at once, machines of %d CPUs and %d MiB at most, labels %q",
			q.Slots, q.CPUs, q.MemoryMiB, q.Labels))
	}
}

// forgotten gives back what was given to a worker that never heard of it.
func (s *Server) forgotten(ctx context.Context, who string, holding []fence) {
	s.mu.Lock()
	var lost []*live
	for f, l := range s.live {
		if l.worker == who && !slices.Contains(holding, f) {
			lost = append(lost, l)
			delete(s.live, f)
		}
	}
	s.mu.Unlock()
	for _, l := range lost {
		l.end(s.cfg.Log)
		if err := l.Release(context.WithoutCancel(ctx), "its worker never heard of it"); err != nil && !errors.Is(err, queue.ErrLost) {
			s.cfg.Log.Error("a job that no worker heard of", "job", l.fence.Job, "err", err)
		}
	}
}

var errHere = errors.New("the job can run in the server's process only")

// newLive is an attempt in a worker's hands that has told nothing yet.
func newLive(a *desk.Attempt, who string) (*live, error) {
	id, attempt := a.Fence()
	l := &live{Attempt: a, fence: fence{id, attempt}, worker: who, runner: a.Runner(), task: a.Task(), next: 1}
	if l.runner == nil || l.task.Part == nil {
		return nil, errHere
	}
	l.hidden = l.runner.Hidden()
	return l, nil
}

// begin puts an attempt on the list of those that workers hold.
func (s *Server) begin(a *desk.Attempt, who string) (*live, error) {
	l, err := newLive(a, who)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.live[l.fence] = l
	s.mu.Unlock()
	return l, nil
}

func (s *Server) drop(l *live) {
	s.mu.Lock()
	if s.live[l.fence] == l {
		delete(s.live, l.fence)
	}
	s.mu.Unlock()
	l.end(s.cfg.Log)
}

// end closes what an attempt was served.
func (l *live) end(log *slog.Logger) {
	l.mu.Lock()
	served := l.served
	l.served = nil
	l.mu.Unlock()
	if served != nil {
		if err := served.Close(); err != nil {
			log.Error("what a job had uploaded in part is still there: hearth gc removes it", "job", l.fence.Job, "err", err)
		}
	}
}

// brief writes down what the worker is told, sealed to its key.
func (s *Server) brief(ctx context.Context, l *live, key []byte) ([]byte, error) {
	r, t := l.runner, l.task
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Desk.Queue.Lease()*3/4)
	defer cancel()
	part := t.Part
	job := part.Job(t.Job.Key)
	g, err := r.Give(ctx, part, job)
	if err != nil {
		return nil, err
	}
	b := &brief{Run: g.Run, Job: job.Key, Needs: t.Needs, Secrets: g.Secrets, Token: g.Token,
		RunID: r.RunID, Repository: r.Repository, File: r.File, Ref: r.Ref, SHA: r.SHA, Attempt: r.Attempt, Env: r.Env, Tests: r.Tests, TakesImage: r.TakesImage,
		Points: r.Points, Mode: r.Mode(), Network: r.Network, CPUs: r.CPUs, MemoryMiB: r.MemoryMiB, Source: r.Source != nil, Actions: r.Actions != nil}
	if r.Tree != nil {
		b.Tree = r.Tree()
	}
	if r.Risk != nil {
		b.Risk = map[int]float64{}
		for i := range workflow.NumberedSteps(job.Definition.Steps) {
			if p := r.Risk(job.Key, i+1); p > 0 {
				b.Risk[i+1] = p
			}
		}
	}
	now := s.cfg.Now().UTC().Truncate(time.Second)
	b.Ticket = worker.Ticket{Key: newSecret(), Begun: now, Until: now.Add(worker.ServiceTime(job))}
	served, err := r.Serve(part, job, b.Ticket.Until, b.Ticket)
	if err != nil {
		return nil, fmt.Errorf("artifacts and caches: %w", err)
	}
	l.mu.Lock()
	l.served = served
	l.mu.Unlock()
	b.Results, b.IDToken = served.Results, served.IDToken
	return seal(key, l.fence, b)
}

// find is the attempt that a request is about, if who asks holds it.
func (s *Server) find(r *http.Request, who string) (*live, error) {
	attempt, err := strconv.Atoi(r.PathValue("attempt"))
	f := fence{r.PathValue("job"), attempt}
	if err != nil || attempt < 1 || !ci.ValidID(f.Job) {
		return nil, refuse(http.StatusNotFound, "there is no such attempt at a job")
	}
	s.mu.Lock()
	l := s.live[f]
	s.mu.Unlock()
	if l == nil {
		if l, err = s.resume(r.Context(), f, who); err != nil {
			return nil, err
		}
	}
	if l.worker != who {
		return nil, errGone(f)
	}
	switch cause := l.Cause(); {
	case errors.Is(cause, queue.ErrLost):
		s.drop(l)
		return nil, errGone(f)
	case errors.Is(cause, desk.ErrStopping):
		return nil, refuse(http.StatusServiceUnavailable, "the server stops")
	}
	return l, nil
}

// resume takes up an attempt that an earlier process gave out.
func (s *Server) resume(ctx context.Context, f fence, who string) (*live, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.live[f]; l != nil {
		return l, nil
	}
	a, err := s.cfg.Desk.Resume(ctx, who, f.Job, f.Attempt)
	switch {
	case errors.Is(err, queue.ErrLost):
		return nil, errGone(f)
	case errors.Is(err, desk.ErrOver):
		return nil, &refusal{Status: http.StatusGone, Message: "job " + f.Job + " has ended", Over: true}
	case errors.Is(err, desk.ErrElsewhere):
		// It is this worker's, and lives: that nobody conducts its run yet is no reason to lose it.
		if rerr := s.cfg.Desk.Queue.Resume(f.Job, f.Attempt).Renew(ctx); errors.Is(rerr, queue.ErrLost) {
			return nil, errGone(f)
		}
		return nil, refuse(http.StatusServiceUnavailable, "%v: its run is about to be taken up, or another server has it", err)
	case err != nil:
		return nil, err
	}
	l, err := newLive(a, who)
	if err != nil {
		return nil, err
	}
	last, err := s.cfg.LastSent(ctx, l.runner.RunID, f.Job, l.task.Job.Key)
	if err != nil {
		return nil, err
	}
	l.next = max(last-ci.SentBy(f.Attempt, 0), 0) + 1
	s.cfg.Log.Info("a worker goes on with a job", "job", f.Job, "attempt", f.Attempt, "name", who)
	s.live[f] = l
	return l, nil
}

// beat renews the lease, and waits for news.
func (s *Server) beat(w http.ResponseWriter, r *http.Request, l *live) error {
	var q beatRequest
	if err := s.read(w, r, &q); err != nil {
		return err
	}
	err := l.Renew(r.Context())
	var told *queue.CancelledError
	switch {
	case errors.Is(err, queue.ErrLost):
		s.drop(l)
		return errGone(l.fence)
	case errors.As(err, &told) && !q.Known:
		return answer(w, http.StatusOK, beatAnswer{Cancel: told.Reason})
	case err != nil && told == nil:
		return err
	}
	ends := l.Ends()
	if q.Known && l.Cause() != nil {
		ends = nil
	}
	t := time.NewTimer(s.cfg.Desk.Queue.Lease() / 3)
	defer t.Stop()
	select {
	case <-r.Context().Done():
		return context.Cause(r.Context())
	case <-t.C:
	case <-ends:
		switch cause := l.Cause(); {
		case errors.Is(cause, queue.ErrLost):
			s.drop(l)
			return errGone(l.fence)
		case errors.Is(cause, desk.ErrStopping):
			return refuse(http.StatusServiceUnavailable, "the server stops")
		default:
			return answer(w, http.StatusOK, beatAnswer{Cancel: cause.Error()})
		}
	}
	return answer(w, http.StatusOK, beatAnswer{})
}

// sendable are the records that an attempt may tell.
var sendable = map[ci.RecordType]bool{ci.JobStarted: true, ci.JobFinished: true, ci.StepStarted: true, ci.StepFinished: true, ci.LogLine: true, ci.Group: true,
	ci.AnnotationRec: true, ci.PredictionRec: true, ci.DiagnosticRec: true, ci.MachineRec: true, ci.ConnectionRec: true, ci.SummaryRec: true}

// record reads one record of an attempt: it is about the attempt's job, whatever it says.
func (l *live) record(text []byte, n int64, now time.Time) (ci.Record, error) {
	var rec ci.Record
	if len(text) > maxRecord {
		return rec, refuse(http.StatusRequestEntityTooLarge, "record %d has more than %d MiB: nothing was taken", n, maxRecord>>20)
	}
	if err := json.Unmarshal(text, &rec); err != nil {
		return rec, refuse(http.StatusBadRequest, "record %d is none: %v", n, err)
	}
	finished := rec.Type == ci.JobFinished || rec.Type == ci.StepFinished
	switch {
	case !sendable[rec.Type]:
		return rec, refuse(http.StatusBadRequest, "record %d is a %q, which is not a job's to tell", n, rec.Type)
	case finished && !rec.Conclusion.Valid():
		return rec, refuse(http.StatusBadRequest, "record %d ends with %q, which is no conclusion", n, rec.Conclusion)
	case !bounded(rec.Outputs):
		return rec, refuse(http.StatusRequestEntityTooLarge, "record %d has more outputs than a job may have", n)
	}
	job := l.task.Job
	rec.V, rec.Seq, rec.Run, rec.Job, rec.JobKey = 0, 0, l.runner.RunID, job.ID, job.Key
	if rec.Matrix != nil {
		rec.Matrix = job.Matrix // in the order in which it is written
	}
	if rec.Time.IsZero() || rec.Time.After(now) {
		rec.Time = now
	}
	rec.Sent = ci.SentBy(l.fence.Attempt, n)
	if rec.Type == ci.LogLine || rec.Type == ci.Group {
		return rec, nil // the worker has masked it, and so has the engine
	}
	return l.hidden.Record(rec), nil
}

func bounded(outputs map[string]string) bool {
	sum := 0
	for k, v := range outputs {
		sum += len(k) + len(v)
		if len(v) > ci.MaxOutput {
			return false
		}
	}
	return sum <= ci.MaxJobOutputs+(1<<20) // and their names
}

func (s *Server) records(w http.ResponseWriter, r *http.Request, l *live) error {
	var q recordsRequest
	if err := s.read(w, r, &q); err != nil {
		return err
	}
	if q.First < 1 || len(q.Records) > maxBatch || q.First > 1<<39 {
		return refuse(http.StatusBadRequest, "a request has at most %d records, counted from 1", maxBatch)
	}
	now := s.cfg.Now().UTC()
	list := make([]ci.Record, 0, len(q.Records))
	for i, text := range q.Records { // all, before any is taken
		rec, err := l.record(text, q.First+int64(i), now)
		if err != nil {
			return err
		}
		list = append(list, rec)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if q.First > l.next {
		// The host has lost its power, and what it had not written yet.
		s.cfg.Log.Warn("records of a job are missing", "job", l.fence.Job, "reason", fmt.Sprintf("number %d came in place of %d", q.First, l.next))
		l.next = q.First
	}
	next := l.next
	for i, rec := range list {
		if q.First+int64(i) < next {
			continue // it came before
		}
		l.Emit(rec)
		next++
	}
	if err := l.Flush(); err != nil {
		return refuse(http.StatusServiceUnavailable, "%v", err)
	}
	if cause := l.Cause(); errors.Is(cause, queue.ErrLost) {
		return errGone(l.fence)
	}
	l.next = next
	return answer(w, http.StatusOK, recordsAnswer{Next: next})
}

func (s *Server) finish(w http.ResponseWriter, r *http.Request, l *live) error {
	var q finishRequest
	if err := s.read(w, r, &q); err != nil {
		return err
	}
	if !q.Conclusion.Valid() {
		return refuse(http.StatusBadRequest, "%q is no conclusion", q.Conclusion)
	}
	if !bounded(q.Outputs) {
		return refuse(http.StatusRequestEntityTooLarge, "these are more outputs than a job may have")
	}
	keep := context.WithoutCancel(r.Context())
	told, err := l.Ended(keep)
	if err != nil {
		return err
	}
	// What still holds it may have been lost meanwhile: the store says.
	var cancelled *queue.CancelledError
	if err := l.Renew(keep); errors.Is(err, queue.ErrLost) {
		s.drop(l)
		return errGone(l.fence)
	} else if err != nil && !errors.As(err, &cancelled) {
		return err
	}
	s.drop(l) // its services have ended before its end is known
	out := conduct.Outcome{Conclusion: q.Conclusion, Outputs: q.Outputs, Reason: l.hidden.Field(q.Reason), Infrastructure: q.Infrastructure, Told: told}
	if err := l.Finish(keep, out); err != nil {
		return err
	}
	return answer(w, http.StatusOK, struct{}{})
}

func (s *Server) release(w http.ResponseWriter, r *http.Request, l *live) error {
	var q releaseRequest
	if err := s.read(w, r, &q); err != nil {
		return err
	}
	s.drop(l)
	err := l.Release(context.WithoutCancel(r.Context()), l.hidden.Field(cmp.Or(q.Reason, "its worker gave it back")))
	if errors.Is(err, queue.ErrLost) {
		return errGone(l.fence)
	}
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, struct{}{})
}

func (l *live) failure(f failure) learn.Failure {
	r := l.runner
	return learn.Failure{Run: r.RunID, Repository: r.Repository, Workflow: r.File, JobKey: l.task.Job.Key, Branch: r.Ref, Commit: r.SHA, Commits: r.Commits,
		Step: f.Step, Name: f.Name, Command: f.Command, Attempt: f.Attempt, ExitCode: f.ExitCode, NoRetry: f.NoRetry, Image: f.Image, Host: f.Host, Lines: f.Lines}
}

func (l *live) learns() bool { return l.runner.Mode() != learn.Off }

func (s *Server) explain(w http.ResponseWriter, r *http.Request, l *live) error {
	var q failure
	if err := s.read(w, r, &q); err != nil {
		return err
	}
	if !l.learns() {
		return answer(w, http.StatusOK, ci.Explanation{})
	}
	e, err := l.runner.Learn.Explain(r.Context(), l.failure(q))
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, e)
}

func (s *Server) retry(w http.ResponseWriter, r *http.Request, l *live) error {
	var q retryRequest
	if err := s.read(w, r, &q); err != nil {
		return err
	}
	if !l.learns() {
		return answer(w, http.StatusOK, learn.Decision{})
	}
	return answer(w, http.StatusOK, l.runner.Learn.Retry(r.Context(), l.failure(q.Failure), q.Explanation))
}

func (s *Server) tests(w http.ResponseWriter, r *http.Request, l *live) error {
	var q testRun
	if err := s.read(w, r, &q); err != nil {
		return err
	}
	if !l.learns() {
		return answer(w, http.StatusOK, []ci.TestNote{})
	}
	x := l.runner
	run := learn.TestRun{Run: x.RunID, Repository: x.Repository, Workflow: x.File, JobKey: l.task.Job.Key, Branch: x.Ref, Commit: x.SHA,
		Stranger: l.task.Run.ReadOnly, Name: q.Name, Command: q.Command, Signature: q.Signature, Green: q.Green, Results: q.Results}
	if x.Tree != nil {
		run.Tree = x.Tree()
	}
	notes, err := x.Learn.TestsRan(r.Context(), run)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, notes)
}

// hand counts what the job hands on as outputs against what its run may.
func (s *Server) hand(w http.ResponseWriter, r *http.Request, l *live) error {
	var n int
	if err := s.read(w, r, &n); err != nil {
		return err
	}
	if n < 0 || n > ci.MaxOutput {
		return refuse(http.StatusBadRequest, "an output has at most %d bytes", ci.MaxOutput)
	}
	return answer(w, http.StatusOK, l.task.Handed == nil || l.task.Handed.Take(n))
}

// rolling gives a long answer or request as much time as it moves.
func rolling(w http.ResponseWriter, d time.Duration) {
	c := http.NewResponseController(w)
	until := time.Now().Add(d)
	c.SetReadDeadline(until) // where there are none, there is no limit either
	c.SetWriteDeadline(until)
}

const (
	// rollTime is how long a request or an answer may stand still.
	rollTime = time.Minute
	// stillTime is how long a stream says nothing while what it is of is made ready; then
	// it says that there is nothing yet.
	stillTime = 15 * time.Second
)

// stream writes an archive in frames, and how it ended.
type stream struct {
	w   http.ResponseWriter
	mu  sync.Mutex
	buf *bufio.Writer
}

// alive writes empty frames until stop is called: whoever is between us and the worker
// sees that this goes on.
func (s *stream) alive() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(stillTime)
		defer t.Stop()
		for {
			if err := s.frame(frameData, nil); err == nil {
				s.flush()
			}
			select {
			case <-done:
				return
			case <-t.C:
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

func (s *stream) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.buf.Flush(), http.NewResponseController(s.w).Flush())
}

const (
	frameData = 'd'
	frameEnd  = 'e'
	maxFrame  = 1 << 20
)

func (s *stream) frame(kind byte, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	rolling(s.w, rollTime)
	var head [5]byte
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], uint32(len(b)))
	_, err := s.buf.Write(head[:])
	if err == nil {
		_, err = s.buf.Write(b)
	}
	return err
}

func (s *stream) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		b := p[:min(len(p), maxFrame)]
		if err := s.frame(frameData, b); err != nil {
			return n, err
		}
		n, p = n+len(b), p[len(b):]
	}
	return n, nil
}

// send streams what fn writes, and what it has to say.
func (s *Server) send(w http.ResponseWriter, r *http.Request, fn func(ctx context.Context, w io.Writer, end *pulled) error) error {
	w.Header().Set("Content-Type", "application/octet-stream")
	out := &stream{w: w, buf: bufio.NewWriterSize(w, 64<<10)}
	var end pulled
	stop := out.alive()
	err := fn(r.Context(), out, &end)
	if stop(); err != nil {
		if input, ok := errors.AsType[*action.InputError](err); ok {
			end.Input = input.Msg
		} else if errors.Is(err, action.ErrNotHere) {
			end.NotHere = true
		} else if r.Context().Err() != nil {
			return nil // who asked is gone
		} else {
			s.cfg.Log.Error("a worker could not be sent a tree", "path", r.URL.Path, "err", err)
			end.Error = err.Error()
		}
	}
	b, err := json.Marshal(end)
	if err == nil {
		err = errors.Join(out.frame(frameEnd, b), out.flush())
	}
	if err != nil {
		s.cfg.Log.Debug("a worker was gone", "path", r.URL.Path, "err", err)
	}
	return nil
}

func (s *Server) checkout(w http.ResponseWriter, r *http.Request, l *live) error {
	var q checkoutRequest
	if err := s.read(w, r, &q); err != nil {
		return err
	}
	return s.send(w, r, func(ctx context.Context, out io.Writer, end *pulled) (err error) {
		req := action.CheckoutRequest{Ref: q.Ref, Depth: q.Depth, Tags: q.Tags, Within: q.Within, LFS: q.LFS, Token: q.Token,
			Note: func(text string) { end.Notes = append(end.Notes, text) }}
		if q.Modules {
			req.Modules = func(m []git.Module) { end.Modules, end.HasModules = m, true }
		}
		switch {
		case q.Owner != "":
			end.SHA, err = l.runner.Actions.Checkout(ctx, q.Owner, q.Repo, req, out)
		case l.runner.Source == nil:
			err = &action.InputError{Msg: "this run has no repository to check out"}
		default:
			end.SHA, err = l.runner.Source.Checkout(ctx, req, out)
		}
		return err
	})
}

func (s *Server) action(w http.ResponseWriter, r *http.Request, l *live) error {
	var ref action.Ref
	if err := s.read(w, r, &ref); err != nil {
		return err
	}
	if ref.Kind != action.Remote {
		return refuse(http.StatusBadRequest, "only actions of other repositories are brought")
	}
	if _, err := action.ParseRef(ref.String()); err != nil {
		return refuse(http.StatusBadRequest, "no action is called so: %v", err)
	}
	return s.send(w, r, func(ctx context.Context, out io.Writer, end *pulled) error {
		tree, err := l.runner.Actions.Resolve(ctx, ref)
		if err != nil {
			return err
		}
		end.Repository, end.SHA = tree.Repository, tree.SHA
		if tree.Note != "" {
			end.Notes = []string{tree.Note}
		}
		return tree.Tar(ctx, out)
	})
}

// uploaded are the artifacts of the attempt's job.
func (l *live) uploaded() ([]results.Artifact, error) {
	if l.runner.Results == nil {
		return nil, nil
	}
	all, err := l.runner.Results.Artifacts(l.runner.Repository, l.runner.RunID)
	return slices.DeleteFunc(all, func(a results.Artifact) bool { return a.Job != l.task.Job.Key }), err
}

func (s *Server) uploads(w http.ResponseWriter, _ *http.Request, l *live) error {
	list, err := l.uploaded()
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, list)
}

func (s *Server) upload(w http.ResponseWriter, r *http.Request, l *live) error {
	var id int64
	if err := s.read(w, r, &id); err != nil {
		return err
	}
	list, err := l.uploaded()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(a results.Artifact) bool { return a.ID == id })
	if i < 0 {
		return refuse(http.StatusNotFound, "the job has no such artifact")
	}
	f, err := l.runner.Results.OpenArtifact(l.runner.Repository, list[i])
	if err != nil {
		return err
	}
	defer f.Close()
	return s.send(w, r, func(_ context.Context, out io.Writer, _ *pulled) error {
		_, err := io.Copy(out, f)
		return err
	})
}

// service passes a request of the job's machine to its services.
func (s *Server) service(w http.ResponseWriter, r *http.Request, l *live) error {
	l.mu.Lock()
	served := l.served
	if served == nil {
		var t worker.Ticket
		text, err := base64.StdEncoding.DecodeString(r.Header.Get(ticketHeader))
		if err == nil {
			err = json.Unmarshal(text, &t)
		}
		if err != nil || len(t.Key) != 32 || t.Until.Sub(s.cfg.Now()) > worker.ServiceTime(l.task.Job) {
			l.mu.Unlock()
			return refuse(http.StatusBadRequest, "the job's services are opened again with the ticket that came with the job")
		}
		t.Again = true
		if served, err = l.runner.Serve(l.task.Part, l.task.Part.Job(l.task.Job.Key), t.Until, t); err != nil {
			l.mu.Unlock()
			return err
		}
		l.served = served
	}
	l.mu.Unlock()
	inner := r.Clone(r.Context())
	prefix := Root + "jobs/" + r.PathValue("job") + "/" + r.PathValue("attempt") + "/service"
	inner.URL.Path = strings.TrimPrefix(r.URL.Path, prefix)
	inner.URL.RawPath, inner.RequestURI = "", ""
	inner.Header.Del("Authorization")
	if own := r.Header.Get(innerAuth); own != "" {
		inner.Header.Set("Authorization", own)
	}
	for _, h := range []string{innerAuth, ticketHeader, workerHeader, protocolHeader} {
		inner.Header.Del(h)
	}
	inner.Body = &rollingBody{ReadCloser: r.Body, w: w}
	served.ServeHTTP(&rollingWriter{ResponseWriter: w}, inner)
	return nil
}

// innerAuth is where the Authorization of the job's own request is.
const innerAuth = "Hearth-Authorization"

type rollingBody struct {
	io.ReadCloser
	w http.ResponseWriter
}

func (b *rollingBody) Read(p []byte) (int, error) {
	rolling(b.w, rollTime)
	return b.ReadCloser.Read(p)
}

type rollingWriter struct{ http.ResponseWriter }

func (w *rollingWriter) Write(p []byte) (int, error) {
	rolling(w.ResponseWriter, rollTime)
	return w.ResponseWriter.Write(p)
}

func (w *rollingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
