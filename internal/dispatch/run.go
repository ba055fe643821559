package dispatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/desk"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/forge"
	"github.com/hearth-ci/hearth/internal/git"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/ledger"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/source"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/webhook"
	"github.com/hearth-ci/hearth/internal/worker"
)

// conducted is a run in this process's hands.
type conducted struct {
	repository string
	cancel     context.CancelCauseFunc
	soft       chan string // why somebody wants it to end; holds one

	mu    sync.Mutex
	entry *ledger.Entry // once it is open
	over  bool          // by shut
}

// shut ends the conductor without recording anything: the run stays as it is for
// the next process.
func (c *conducted) shut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.entry != nil {
		c.entry.Seal()
	}
	c.cancel(desk.ErrStopping)
}

func (c *conducted) opened(e *ledger.Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entry = e
	if c.over {
		e.Seal()
	}
}

// headOf is the commit that a run's checks belong to.
func headOf(p *plan.Run) string {
	if p.Event == "pull_request" {
		if sha := dig(p.GitHub, "event", "pull_request", "head", "sha").AsString(); validSHA(sha) {
			return sha
		}
	}
	return p.SHA
}

func dig(v expr.Value, path ...string) expr.Value {
	for _, k := range path {
		m := v.AsMap()
		if m == nil {
			return expr.Null()
		}
		v, _ = m.Get(k)
	}
	return v
}

// stage is how far a run has come that is to be conducted.
type stage uint8

const (
	made        stage = iota // just now
	approvedNow              // its checks were shown before
	begun                    // by an earlier process
)

// conduct drives a run to its end in a goroutine of its own. before is the jobs of
// a run that is not just made.
func (d *Dispatcher) conduct(ln *lane, run ci.Run, planned *plan.Run, repo forge.Repo, before []store.StoredJob, at stage) {
	ln.use()
	d.mu.Lock()
	if d.stopping || d.runs[run.ID] != nil {
		d.mu.Unlock()
		ln.done() // the next process will find it; or it is under way
		return
	}
	defer d.mu.Unlock()
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &conducted{repository: ln.lease.Repository, cancel: cancel, soft: make(chan string, 1)}
	d.runs[run.ID] = c
	d.conductors.Go(func() {
		defer ln.done()
		defer func() {
			d.mu.Lock()
			delete(d.runs, run.ID)
			d.mu.Unlock()
			cancel(nil)
		}()
		if !ln.mine() {
			return // it was lost before d.lost could know of this run
		}
		if err := d.drive(ctx, c, ln, run, planned, repo, before, at); err != nil {
			d.log.Error("run", "run", run.ID, "repository", run.Repository, "err", err)
		}
	})
}

func (d *Dispatcher) drive(ctx context.Context, c *conducted, ln *lane, run ci.Run, planned *plan.Run, repo forge.Repo, before []store.StoredJob,
	at stage,
) error {
	keep := context.WithoutCancel(ctx)
	r := d.reporter(ln, run, headOf(planned), repo)
	r.plan = planned
	defer r.close()
	if at != made {
		if err := r.recall(keep, before); err != nil {
			return err
		}
	}
	if at != made {
		// Workers elsewhere went on while nobody drove the run.
		if err := d.cfg.Queue.Grace(keep, desk.Remote); err != nil {
			return err
		}
		if err := d.cfg.Store.Under(ln.lease).Adopt(keep, run.ID, d.repos.owner); err != nil {
			return err
		}
	}
	entry, err := d.ledger.Under(ln.lease).Resume(ctx, run, r)
	if err != nil {
		return err
	}
	c.opened(entry)
	// Every check is noted before anything can happen to its job.
	if err := r.expect(keep, planned); err != nil {
		return errors.Join(err, entry.Close())
	}
	d.show(r)
	con := &conduct.Conductor{Run: planned, ID: run.ID, Sink: entry, Groups: d.groups, Scope: scope(run, planned),
		Mask: d.runner(run, nil, trustOf(planned), repo).Hidden(), Late: d.late, Expanded: func(p *plan.Run) error { return entry.SetPlan(p) }}
	if at != begun {
		entry.Begin(len(planned.Jobs), worker.Known(planned), worker.Change(planned.GitHub.Get("event"), nil),
			func(f learn.Forecast) []ci.Record { return worker.Predictions(planned, f) })
		con.Risk = worker.Risk(entry.Forecast)
	}
	for _, j := range before {
		if j.Status == ci.Completed {
			con.Before = append(con.Before, conduct.Finished{Key: j.Key, Conclusion: j.Conclusion, Infrastructure: j.Infrastructure, Outputs: j.Outputs})
		}
	}
	ids := &jobIDs{store: d.cfg.Store, run: run.ID}
	policy, _ := d.policy(run.Repository)
	limit := d.limit(run.Repository, trustOf(planned))
	handed := &desk.Handed{Desk: d.desk, RunID: run.ID, Records: entry, ID: ids.find, CPUs: limit.CPUs, MemoryMiB: limit.MemoryMiB,
		Runner: func(sink ci.Sink) *worker.Runner {
			works := d.runner(run, sink, trustOf(planned), repo)
			works.Risk = worker.StepRisk(entry.Forecast)
			return works
		},
	}
	handed.Run = func(ctx context.Context, sink ci.Sink, t conduct.Task) conduct.Outcome {
		return d.cfg.Run(ctx, handed.Runner(sink), t)
	}
	con.Executor = &bounded{Executor: handed, slots: &d.slots, repository: run.Repository, policy: policy, fork: trustOf(planned) == ofFork}
	_, err = con.Drive(ctx, c.soft)
	if entry.Sealed() {
		err = nil
	}
	return errors.Join(err, entry.Close())
}

// runner is what runs one attempt at a job of a run.
func (d *Dispatcher) runner(run ci.Run, sink ci.Sink, t trust, repo forge.Repo) *worker.Runner {
	branch := ""
	if refs := "refs/heads/"; len(run.Ref) > len(refs) && run.Ref[:len(refs)] == refs {
		branch = run.Ref[len(refs):]
	}
	limit := d.limit(run.Repository, t)
	policy, _ := d.policy(run.Repository)
	r := &worker.Runner{
		Host: d.cfg.Host, RunID: run.ID, Repository: run.Repository, File: run.File, Ref: run.Ref, SHA: run.SHA, Attempt: run.Attempt,
		Sink: sink, Package: d.cfg.Package, Network: limit.Network, Learn: d.cfg.Learn, Actions: d.cfg.Actions, Results: d.cfg.Results,
		Registry: d.cfg.Registry,
		CPUs:     limit.CPUs, MemoryMiB: limit.MemoryMiB, Log: d.log, Tests: policy.Tests, Tree: func() string { return run.SHA },
		Image: d.image, TakesImage: "`\"image\": \"ci\"` in the server's settings", Commits: commitsOf(repo, run.SHA),
		Token: func(ctx context.Context, job *plan.Job) (string, error) { return repo.Token(ctx, job.Permissions) },
		Source: &source.Archive{SHA: run.SHA, Branch: branch, Repository: run.Repository, Server: d.cfg.Server,
			Open: func(ctx context.Context, sha string) (io.ReadCloser, error) { return repo.Tarball(ctx, sha) },
			Token: func(ctx context.Context) (string, error) {
				return repo.Token(ctx, map[string]string{"contents": "read"})
			},
			Commit: func(ctx context.Context, sha string) (*git.Commit, error) {
				c, err := repo.Commit(ctx, sha)
				return &git.Commit{SHA: c.SHA, Tree: c.Tree, Parents: c.Parents, Author: git.Person(c.Author), Committer: git.Person(c.Committer),
					Message: c.Message, Signature: c.Signature, Payload: c.Payload}, err
			}},
	}
	d.given(r, t)
	return r
}

// jobIDs finds the rows of a run's jobs; cells of a matrix get theirs on the way.
type jobIDs struct {
	store *store.Store
	run   string
	mu    sync.Mutex
	known map[string]string
}

func (j *jobIDs) find(ctx context.Context, key string) (string, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if id := j.known[key]; id != "" {
		return id, nil
	}
	jobs, err := j.store.Jobs(ctx, j.run)
	if err != nil {
		return "", err
	}
	j.known = map[string]string{}
	for _, job := range jobs {
		j.known[job.Key] = job.ID
	}
	if id := j.known[key]; id != "" {
		return id, nil
	}
	return "", fmt.Errorf("run %s has no job %q", j.run, key)
}

// lost ends, without a word about them, the runs of a repository that is another
// server's, or will be.
func (d *Dispatcher) lost(repository string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.runs {
		if c.repository == repository {
			c.shut()
		}
	}
}

// occupy keeps resume from taking up a run that is being made, or told of, until the
// function it returns is called.
func (d *Dispatcher) occupy(run string) func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy[run]++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.busy[run]--; d.busy[run] == 0 {
			delete(d.busy, run)
		}
	}
}

// driven reports whether this process has a run in its hands.
func (d *Dispatcher) driven(run string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.runs[run] != nil || d.busy[run] > 0
}

// watch looks, until ctx ends, for what other processes left, and for runs that
// somebody wants to end.
func (d *Dispatcher) watch(ctx context.Context) {
	t := time.NewTicker(d.cfg.Lease / 4)
	defer t.Stop()
	for {
		if err := d.resume(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("looking for what other servers left", "err", err)
		}
		if err := d.heed(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("looking for runs to be cancelled", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// heed ends the runs of this server that somebody wants to end.
func (d *Dispatcher) heed(ctx context.Context) error {
	all, err := d.cfg.Store.Cancelled(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for id, reason := range all {
		d.mu.Lock()
		c := d.runs[id]
		d.mu.Unlock()
		if c == nil {
			errs = append(errs, d.dismiss(ctx, id, reason))
			continue
		}
		select {
		case c.soft <- reason:
		default: // it was told
		}
	}
	return errors.Join(errs...)
}

// dismiss ends a run that waits for approval. One that waits for nothing is driven by
// another server, or will be.
func (d *Dispatcher) dismiss(ctx context.Context, id, reason string) error {
	if a, asked, err := approvalOf(ctx, d.cfg.Store, id); err != nil || !asked || a.By != "" {
		return err
	}
	run, err := d.cfg.Store.Run(ctx, id)
	if err != nil || run.Status == ci.Completed {
		return err
	}
	return d.refuseRun(ctx, run, reason)
}

// refuseRun ends a run that was never let start, if its repository is nobody else's.
func (d *Dispatcher) refuseRun(ctx context.Context, run ci.Run, reason string) error {
	ln, mine, err := d.repos.take(ctx, run.Repository)
	if err != nil || !mine {
		return err
	}
	d.hide(run.ID)
	err = d.ledger.Under(ln.lease).Cancel(ctx, run, reason)
	ln.done()
	if err != nil {
		return err
	}
	return d.settle(ctx, run.ID)
}

// resume takes up what other processes left: runs that have not completed, and
// checks that GitHub has not been told the end of, of repositories that nobody
// drives.
func (d *Dispatcher) resume(ctx context.Context) error {
	runs, err := d.cfg.Store.Unfinished(ctx)
	if err != nil {
		return err
	}
	var errs []error // what is wrong with one holds up no other
	for _, run := range runs {
		if run.EventID == "" || d.driven(run.ID) {
			continue // of a `hearth run` on the same database; or under way here
		}
		if a, asked, err := approvalOf(ctx, d.cfg.Store, run.ID); err != nil || asked && a.By == "" {
			errs = append(errs, err)
			continue // it waits
		}
		ln, mine, err := d.repos.take(ctx, run.Repository)
		if mine {
			err = d.pickUp(ctx, ln, run)
			ln.done()
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, d.settle(ctx, ""))...)
}

// pickUp takes up a run as it is by now.
func (d *Dispatcher) pickUp(ctx context.Context, ln *lane, run ci.Run) error {
	run, err := d.cfg.Store.Run(ctx, run.ID)
	if errors.Is(err, store.ErrNotFound) || err == nil && run.Status == ci.Completed || d.driven(run.ID) {
		return nil
	}
	if err == nil {
		_, err = d.takeUp(ctx, ln, run, begun)
	}
	return err
}

// takeUp goes on with a run, or ends it if it cannot be gone on with.
func (d *Dispatcher) takeUp(ctx context.Context, ln *lane, run ci.Run, at stage) (conducted bool, err error) {
	if _, served := d.policy(run.Repository); !served {
		return false, d.ledger.Under(ln.lease).Cancel(ctx, run, webhook.NotServed(run.Repository))
	}
	text, err := d.cfg.Store.Plan(ctx, run.ID)
	if err != nil {
		return false, err
	}
	jobs, err := d.cfg.Store.Jobs(ctx, run.ID)
	if err != nil {
		return false, err
	}
	var planned plan.Run
	if err = json.Unmarshal(text, &planned); err == nil {
		var repo forge.Repo
		installation := int64(dig(planned.GitHub, "event", "installation", "id").ToNumber())
		if repo, err = d.repo(ctx, run.Repository, max(installation, 0)); err == nil {
			d.log.Info("run taken up", "run", run.ID, "repository", run.Repository, "workflow", run.Workflow)
			planned.Limit(d.limit(run.Repository, trustOf(&planned)).MaxTimeout.Minutes())
			d.conduct(ln, run, &planned, repo, jobs, at)
			return true, nil
		}
		if isTemporary(err) {
			return false, fmt.Errorf("taking up run %s: %w", run.ID, err)
		}
	}
	d.log.Error("a run cannot be taken up again", "run", run.ID, "err", err)
	return false, d.ledger.Under(ln.lease).Lose(ctx, run, "the server stopped while it ran, and it could not be taken up again")
}

// How much a forge is asked about what may be to blame for one failure.
const (
	askedCommits = 10
	askedFor     = 20 * time.Second
)

// commitsOf lists, for the learner, the commits that one has since another one, along
// first parents: of what was merged, the merge.
func commitsOf(repo forge.Repo, head string) func(ctx context.Context, since string) ([]learn.Commit, error) {
	return func(ctx context.Context, since string) (out []learn.Commit, err error) {
		ctx, cancel := context.WithTimeout(ctx, askedFor)
		defer cancel()
		for sha := head; sha != since && len(out) < askedCommits; {
			c, err := repo.Commit(ctx, sha)
			if err != nil {
				return out, err
			}
			subject, _, _ := strings.Cut(c.Message, "\n")
			v := learn.Commit{SHA: sha, Subject: subject, Author: c.Author.Email, Lines: -1}
			if v.Files, _, err = repo.CommitFiles(ctx, sha); err != nil {
				return out, err
			}
			if out = append(out, v); len(c.Parents) == 0 {
				break
			}
			sha = c.Parents[0]
		}
		return out, nil
	}
}
