package dispatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/worker"
)

// trust is who is behind what a run executes.
type trust string

const (
	// ofOwn is who may write to the repository.
	ofOwn trust = ""
	// ofDependabot is Dependabot: secrets of its own, a token that reads.
	ofDependabot trust = "dependabot"
	// ofFork is whoever has made a fork: no secrets, no variables, a token that
	// reads, limits of its own, perhaps not before somebody has approved of it.
	ofFork trust = "fork"
)

// trustOf is how far a planned run is trusted.
func trustOf(p *plan.Run) trust {
	switch {
	case p.ReadOnly && p.Trust == string(ofDependabot):
		return ofDependabot
	case p.ReadOnly:
		return ofFork
	}
	return ofOwn
}

func isDependabot(login string) bool { return strings.EqualFold(login, "dependabot[bot]") }

// policy is what holds for a repository, and whether it is served at all.
func (d *Dispatcher) policy(repository string) (config.Policy, bool) {
	if d.cfg.Policy == nil {
		return config.Policy{}, false
	}
	return d.cfg.Policy(repository)
}

// limit is what the jobs of a run may have.
func (d *Dispatcher) limit(repository string, t trust) config.Limit {
	p, _ := d.policy(repository)
	if t == ofFork {
		return p.Fork
	}
	return p.Own
}

// scope is whose concurrency groups those of a run are. A fork has its own in
// each repository: its workflow files could name any group, and have a deployment
// cancelled.
func scope(run ci.Run, p *plan.Run) string {
	if trustOf(p) != ofFork {
		return run.Repository
	}
	head := dig(p.GitHub, "event", "pull_request", "head", "repo", "full_name").AsString()
	return run.Repository + " from " + head
}

// given is what a run's jobs are handed: secrets and variables of its repository
// and, by their names in lower case, of its environments.
func (d *Dispatcher) given(r *worker.Runner, t trust) {
	switch t {
	case ofOwn:
		r.Secrets, r.EnvironmentSecrets = d.cfg.Secrets.Of(r.Repository), d.cfg.Secrets.Environments(r.Repository)
		r.EnvironmentVars = d.cfg.Vars.Environments(r.Repository)
		p, _ := d.policy(r.Repository)
		r.OIDC, r.OIDCSubject = d.cfg.OIDC, p.OIDCSubject
	case ofDependabot:
		r.Secrets = d.cfg.Secrets.Dependabot(r.Repository)
		r.EnvironmentVars = d.cfg.Vars.Environments(r.Repository)
	case ofFork:
		// Its own merge ref is all that it could write to; even so it fills what the
		// repository's own branches share.
		r.CacheMode = results.ReadOnly
	}
}

// vars is the vars context of a run.
func (d *Dispatcher) vars(repository string, t trust) map[string]string {
	if t == ofFork {
		return nil
	}
	return d.cfg.Vars.Of(repository)
}

// genuine asks GitHub about a delivery whose body came before under another id.
// A signature says of a body that it is GitHub's, not that it was sent again: by
// hand, two equal requests to run a workflow have equal bodies.
func (d *Dispatcher) genuine(ctx context.Context, e store.StoredEvent) error {
	if !e.Again || d.cfg.Forge == nil {
		return nil
	}
	if runs, err := d.cfg.Store.Runs(ctx, store.RunFilter{EventID: e.ID, Limit: 1}); err != nil || len(runs) > 0 {
		return err
	}
	sent, err := d.cfg.Forge.Delivered(ctx, e.Delivery, e.Name, e.Payload, e.Received.Add(-time.Hour))
	if err != nil {
		return err
	}
	if !sent {
		return bar("GitHub did not send this: its body was delivered before, under another delivery id")
	}
	return nil
}

// mustWait reports whether a pull request from a fork has to be approved first.
// GitHub's word on its author stands in the signed payload; where it is not one of
// those that are known, nobody is.
func mustWait(p config.Policy, pr *pull) bool {
	switch p.Approval {
	case config.ApprovalNone:
		return false
	case config.ApprovalFirstTime:
		return !slices.Contains([]string{"OWNER", "MEMBER", "COLLABORATOR", "CONTRIBUTOR"}, pr.Association)
	}
	return true
}

// mayRead decides how a workflow of another repository is read: with the App's
// rights, or as anybody may. The error is why a private one may not be called, in
// words for the author.
//
// As on GitHub, a private repository's workflows are for private repositories of
// the same owner, if its settings say so; those of an internal one for internal
// ones too.
func (d *Dispatcher) mayRead(ctx context.Context, p payload, t trust, other string) (rights bool, err error) {
	owner, _, _ := strings.Cut(other, "/")
	mine, _, _ := strings.Cut(p.Repository.FullName, "/")
	if _, served := d.policy(other); !served || t == ofFork || !strings.EqualFold(owner, mine) {
		return false, nil
	}
	repo, err := d.repo(ctx, other, p.Installation.ID)
	if err != nil {
		return false, err
	}
	visibility, err := repo.Visibility(ctx)
	switch {
	case status(err) == http.StatusNotFound:
		return false, nil // the App is not installed on it
	case err != nil:
		return false, err
	case visibility == "public":
		return true, nil
	}
	internal := visibility == "internal"
	if !p.Repository.Private || p.Repository.Visibility == "internal" && !internal {
		return false, fmt.Errorf("%s is %s: its workflows are for %s repositories of %s only", other, visibility, visibility, owner)
	}
	level, err := repo.Shares(ctx)
	switch {
	case status(err) == http.StatusForbidden && !isTemporary(err):
		return false, fmt.Errorf("whether %s lets other repositories use its workflows cannot be asked: "+
			"give the GitHub App the permission administration: read", other)
	case err != nil:
		return false, err
	case level != "user" && level != "organization" && level != "enterprise":
		return false, fmt.Errorf("%s does not let other repositories use its workflows: see its Settings, Actions, General, Access", other)
	}
	return true, nil
}

// slots bound how many jobs of a repository run at once.
type slots struct {
	mu sync.Mutex
	m  map[string]chan struct{}
}

// take waits for one of n slots; n < 1 is no bound.
func (s *slots) take(ctx context.Context, key string, n int) (release func(), err error) {
	if n < 1 {
		return func() {}, nil
	}
	key = fmt.Sprint(n, " ", strings.ToLower(key))
	s.mu.Lock()
	if s.m == nil {
		s.m = map[string]chan struct{}{}
	}
	c := s.m[key]
	if c == nil {
		c = make(chan struct{}, n)
		s.m[key] = c
	}
	s.mu.Unlock()
	select {
	case c <- struct{}{}:
		return func() { <-c }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// bounded lets a run's jobs wait until their repository may have another machine.
// It is an [conduct.Executor]; a job that waits here is not in the queue.
type bounded struct {
	conduct.Executor
	slots      *slots
	repository string
	policy     config.Policy
	fork       bool // its jobs count for the repository's bound, and for that of its forks
}

func (b *bounded) Execute(ctx context.Context, t conduct.Task) conduct.Outcome {
	if b.fork {
		release, err := b.slots.take(ctx, b.repository+" forks", b.policy.Fork.Machines)
		if err != nil {
			return conduct.Outcome{Conclusion: ci.Cancelled, Reason: err.Error()}
		}
		defer release()
	}
	release, err := b.slots.take(ctx, b.repository, b.policy.Own.Machines)
	if err != nil {
		return conduct.Outcome{Conclusion: ci.Cancelled, Reason: err.Error()}
	}
	defer release()
	return b.Executor.Execute(ctx, t)
}

// approvals is the space of facts with the runs that wait for approval, or have
// it, by run id.
const approvals = "approval"

// approval is such a fact. It is of one run, and so of one commit.
type approval struct {
	SHA string `json:"sha"`
	By  string `json:"by,omitempty"` // "": it waits
}

// keepWaiting is how long a run waits for approval; GitHub's 30 days.
const keepWaiting = 30 * 24 * time.Hour

// approvalEvent is the name of the stored event that approves of a run. No webhook
// has such a name: the header could not be sent.
const approvalEvent = "hearth:approve"

// Waiting lists the runs that wait for approval, the oldest first.
func Waiting(ctx context.Context, s *store.Store) ([]ci.Run, error) {
	facts, err := s.Facts(ctx, approvals)
	if err != nil {
		return nil, err
	}
	var out []ci.Run
	for id, text := range facts {
		var a approval
		if err := json.Unmarshal([]byte(text), &a); err != nil || a.By != "" {
			continue
		}
		run, err := s.Run(ctx, id)
		if errors.Is(err, store.ErrNotFound) || err == nil && run.Status == ci.Completed {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, run)
	}
	slices.SortFunc(out, func(a, b ci.Run) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Approve asks the server on this store to let a run start that waits for
// approval. by is who says so, for the record.
func Approve(ctx context.Context, s *store.Store, runID, by string) (ci.Run, error) {
	run, err := s.Run(ctx, runID)
	if err != nil {
		return run, err
	}
	a, ok, err := approvalOf(ctx, s, run.ID)
	switch {
	case err != nil:
		return run, err
	case !ok || run.Status == ci.Completed:
		return run, fmt.Errorf("run %s does not wait for approval", run.ID)
	case a.By != "":
		return run, fmt.Errorf("run %s was approved already, by %s", run.ID, a.By)
	}
	body, err := json.Marshal(map[string]string{"run": run.ID, "sha": a.SHA, "by": by})
	if err != nil {
		return run, err
	}
	_, _, err = s.AddEvent(ctx, ci.Event{Name: approvalEvent, Repository: run.Repository, Payload: body}, store.EventPending, "")
	return run, err
}

func approvalOf(ctx context.Context, s *store.Store, runID string) (a approval, ok bool, err error) {
	text, err := s.Fact(ctx, approvals, runID)
	if errors.Is(err, store.ErrNotFound) {
		return a, false, nil
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), &a)
	}
	return a, err == nil, err
}

func (d *Dispatcher) setApproval(ctx context.Context, runID string, a approval) error {
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return d.cfg.Store.SetFact(ctx, approvals, runID, string(text))
}

// await records a run that has to be approved and shows its jobs as waiting.
func (d *Dispatcher) await(ctx context.Context, ln *lane, run ci.Run, planned *plan.Run, r *reporter) error {
	r.plan, r.waits = planned, true
	entry, err := d.ledger.Under(ln.lease).Resume(ctx, run, r)
	if err != nil {
		return err
	}
	if err := r.expect(ctx, planned); err != nil {
		return errors.Join(err, entry.Close())
	}
	entry.Emit(ci.Record{Type: ci.DiagnosticRec, Level: "notice", Message: waitText, Hint: "hearth approve " + run.ID})
	err = entry.Close()
	r.close()
	d.show(r)
	return err
}

// show has a reporter send what it knows. That of a run which waits for approval
// ends when the run starts: another one has its checks then.
func (d *Dispatcher) show(r *reporter) {
	ctx, stop := r.lane.during(d.report)
	done := make(chan struct{})
	r.lane.use()
	free := d.occupy(r.run.ID)
	d.reporters.Go(func() {
		defer close(done)
		defer r.lane.done()
		defer free()
		defer stop()
		r.work(ctx)
	})
	if r.waits {
		d.mu.Lock()
		d.shown[r.run.ID] = func() { stop(); <-done }
		d.mu.Unlock()
	}
}

// hide ends what show began.
func (d *Dispatcher) hide(runID string) {
	d.mu.Lock()
	end := d.shown[runID]
	delete(d.shown, runID)
	d.mu.Unlock()
	if end != nil {
		end()
	}
}

const waitText = "This run is of a pull request from a fork and waits for approval: look at what it changes first"

// approved starts a run that has waited. sha is the commit that was looked at.
func (d *Dispatcher) approved(ctx context.Context, ln *lane, repository, runID, sha, by string) (string, error) {
	run, err := d.cfg.Store.Run(ctx, runID)
	if err != nil || !strings.EqualFold(run.Repository, repository) {
		return "", bar("there is no such run of %s", repository)
	}
	a, ok, err := approvalOf(ctx, d.cfg.Store, run.ID)
	switch {
	case err != nil:
		return "", err
	case !ok || run.Status == ci.Completed:
		return fmt.Sprintf("run %s does not wait for approval", run.ID), nil
	case a.By != "":
		return fmt.Sprintf("run %s was approved already", run.ID), nil
	case a.SHA != sha || run.SHA != sha:
		return "", bar("run %s is of another commit than the one that was approved", run.ID)
	}
	a.By = by
	if by == "" {
		a.By = "somebody"
	}
	keep := context.WithoutCancel(ctx)
	defer d.occupy(run.ID)()
	if err := d.setApproval(keep, run.ID, a); err != nil {
		return "", err
	}
	d.hide(run.ID)
	if _, err := d.takeUp(keep, ln, run, approvedNow); err != nil {
		a.By = "" // it can be tried again
		return "", errors.Join(err, d.setApproval(keep, run.ID, a))
	}
	return fmt.Sprintf("run %s approved by %s", run.ID, a.By), nil
}

// pressed is the button of a check that waits. GitHub shows it to many; only who
// may write to the repository is heard.
func (d *Dispatcher) pressed(ctx context.Context, ln *lane, e store.StoredEvent, p payload) (string, error) {
	run, _, err := d.ofCheck(ctx, e, p)
	if err != nil {
		return "", err
	}
	repo, err := d.repo(ctx, run.Repository, p.Installation.ID)
	if err != nil {
		return "", err
	}
	may, err := repo.MayWrite(ctx, p.Sender.Login)
	if err != nil {
		return "", err
	}
	if !may {
		return "", bar("%s may not write to %s, and so cannot approve", p.Sender.Login, run.Repository)
	}
	return d.approved(ctx, ln, e.Repository, run.ID, run.SHA, p.Sender.Login)
}

// ofCheck finds the run that a check of ours belongs to. It has to be of the
// repository that the delivery is about, seen through the installation that has
// it: a check's external id is no secret, and anybody's App or fork could show it.
func (d *Dispatcher) ofCheck(ctx context.Context, e store.StoredEvent, p payload) (run ci.Run, source store.StoredEvent, err error) {
	if p.CheckRun == nil || !ci.ValidID(p.CheckRun.ExternalID) {
		return run, source, refuse("the check names no run")
	}
	id := p.CheckRun.ExternalID
	if job, err := d.cfg.Store.Job(ctx, id); err == nil {
		id = job.RunID
	} else if !errors.Is(err, store.ErrNotFound) {
		return run, source, err
	}
	if run, err = d.cfg.Store.Run(ctx, id); err != nil && !errors.Is(err, store.ErrNotFound) {
		return run, source, err
	}
	if err != nil || !strings.EqualFold(run.Repository, e.Repository) {
		return ci.Run{}, source, bar("the check is of no run of %s", e.Repository)
	}
	if source, err = d.origin(ctx, run); err != nil {
		return run, source, refuse("the event of run %s is not on record: %v", run.ID, err)
	}
	was, _, err := decode(source)
	if err != nil {
		return run, source, err
	}
	if p.Installation.ID != was.Installation.ID {
		// The App may have been installed anew since; then GitHub knows.
		owner, name, _ := strings.Cut(run.Repository, "/")
		now, err := d.cfg.Forge.Installation(ctx, owner, name)
		if err != nil {
			return run, source, err
		}
		if now != p.Installation.ID {
			return run, source, bar("the delivery is of another installation than %s is", run.Repository)
		}
	}
	return run, source, nil
}

// expire ends the runs that nobody approved of, and forgets approvals whose runs
// are gone.
func (d *Dispatcher) expire(ctx context.Context, now time.Time) error {
	facts, err := d.cfg.Store.Facts(ctx, approvals)
	if err != nil {
		return err
	}
	for id, text := range facts {
		run, err := d.cfg.Store.Run(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			// It is noted before its run is on record, perhaps by another server: without
			// the note the run would not wait.
			if age, err := d.cfg.Store.FactAge(ctx, approvals, id); err != nil || age < 2*d.cfg.Hold {
				continue
			}
			if err := d.cfg.Store.DropFact(ctx, approvals, id); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		var a approval
		if err := json.Unmarshal([]byte(text), &a); err != nil || a.By != "" || run.Status == ci.Completed || now.Sub(run.Created) < keepWaiting {
			continue
		}
		if err := d.refuseRun(ctx, run, "nobody approved of it within 30 days"); err != nil {
			return err
		}
	}
	return nil
}
