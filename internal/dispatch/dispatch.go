package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/desk"
	"github.com/hearth-ci/hearth/internal/forge"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/ledger"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/oidc"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/registry"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/worker"
)

// Config is what a [Dispatcher] works with.
type Config struct {
	Store *store.Store
	Queue *queue.Queue
	// Forge is the App; with nil, events wait for a server that has one.
	Forge forge.Forge
	// AppID tells our own check runs from others'.
	AppID int64
	// Server and API are the forge's addresses as workflows see them; "" is
	// GitHub's.
	Server, API string
	// URL is how people reach this server; "" leaves details links out.
	URL string

	Host machine.Host // where jobs get their machines
	// Labels are what this server's workers answer to.
	Labels []string
	// Image says which of the host's images takes a job with these labels, "" is the
	// default one, and what there is to remark. nil takes the default one for all.
	Image func(labels []string) (image, remark string, err error)
	// Package says which package has a program: see [worker.Runner].
	Package func(program string) (pkg string, known bool)
	// StrictLabels leaves out jobs with a label that nobody is known by; otherwise one
	// that begins with ubuntu stands for the default image.
	StrictLabels bool
	// Elsewhere leaves all jobs to workers on other hosts: see [Dispatcher.Desk].
	Elsewhere bool
	// Machines is how many jobs run at once; 0 is 1.
	Machines int

	// Policy says what holds for a repository (owner/name), and whether it is served
	// at all. With nil none is.
	Policy func(repository string) (config.Policy, bool)
	// Secrets and Vars are those of the workflows; nil is none.
	Secrets, Vars *config.Values
	// Actions brings what is public; it must have no credentials, and keep what it
	// brings apart from where anything with credentials does.
	Actions *action.Resolver
	Learn   *learn.Learner // nil and off: nothing is learned
	// Results keeps artifacts and caches; nil is no such service.
	Results *results.Store
	// Registry is what jobs' machines pull container images from; nil is none of ours.
	Registry *registry.Cache
	// OIDC makes the tokens of jobs that may have them; nil is nobody.
	OIDC *oidc.Issuer
	// Shells are those that the image has; nil is not known.
	Shells []string
	// Run runs one attempt at a job; nil is the Runner's own Execute.
	Run func(ctx context.Context, r *worker.Runner, t conduct.Task) conduct.Outcome

	// Grace is how long jobs may go on when the server is to stop.
	Grace time.Duration
	// Hold is how long an event is held while it is handled, and the most that
	// handling it may take; 0 is 90 s.
	Hold time.Duration
	// Lease is how long this server has the repositories whose runs it drives without
	// a sign of life: what it drives when it dies, another one takes up then; 0 is 12 s.
	Lease time.Duration
	// Poll is how often events are looked for without being woken; 0 is 5 s.
	Poll time.Duration
	// Retry is the first wait after GitHub did not answer, doubled with each try
	// up to ten minutes; 0 is 5 s.
	Retry time.Duration
	// GiveUp is how old an event may be to be tried again; 0 is a day.
	GiveUp time.Duration
	Log    *slog.Logger // nil discards
}

// Dispatcher is the server's engine room.
type Dispatcher struct {
	cfg    Config
	log    *slog.Logger
	desk   *desk.Desk
	ledger *ledger.Ledger
	groups *conduct.Groups
	repos  *lanes // those whose runs this server drives
	slots  slots
	counts counts
	wake   chan struct{}

	mu       sync.Mutex
	flights  map[string]*flight       // events that are being handled, by id
	lanes    map[string]chan struct{} // by repository: closed when its last event so far is done
	runs     map[string]*conducted    // by id
	shown    map[string]func()        // by id of a run that waits for approval: ends its reporter
	busy     map[string]int           // by id of a run: what is made of it, or told of it, right now
	hopeless map[string]bool          // runs whose checks cannot be told of
	stopping bool

	conductors sync.WaitGroup
	reporters  sync.WaitGroup
	report     context.Context // of the reporters
	endReports context.CancelCauseFunc
}

// flight is an event in this process's hands.
type flight struct{ tries int }

// maxEvents bounds how many events are handled at once.
const maxEvents = 8

// New makes a dispatcher; nothing runs before Serve.
func New(cfg Config) (*Dispatcher, error) {
	if cfg.Store == nil || cfg.Queue == nil {
		return nil, errors.New("dispatch: no store or no queue given")
	}
	if cfg.Run == nil {
		if cfg.Host == nil && !cfg.Elsewhere {
			return nil, errors.New("dispatch: no pool given")
		}
		cfg.Run = func(ctx context.Context, r *worker.Runner, t conduct.Task) conduct.Outcome { return r.Execute(ctx, t) }
	}
	or := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	or(&cfg.Hold, 90*time.Second)
	or(&cfg.Lease, 12*time.Second)
	or(&cfg.Poll, 5*time.Second)
	or(&cfg.Retry, 5*time.Second)
	or(&cfg.GiveUp, 24*time.Hour)
	cfg.Machines = max(cfg.Machines, 1)
	if cfg.Server == "" {
		cfg.Server = "https://github.com"
	}
	if cfg.API == "" {
		cfg.API = "https://api.github.com"
	}
	cfg.URL = strings.TrimRight(cfg.URL, "/")
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Dispatcher{cfg: cfg, log: cfg.Log, groups: conduct.NewGroups(), ledger: &ledger.Ledger{Store: cfg.Store, Learn: cfg.Learn, Log: cfg.Log},
		wake:    make(chan struct{}, 1),
		flights: map[string]*flight{}, lanes: map[string]chan struct{}{}, runs: map[string]*conducted{}, shown: map[string]func(){},
		busy: map[string]int{}, hopeless: map[string]bool{}}
	owner := cfg.Queue.Owner()
	if owner == "" {
		owner = "serve-" + ci.NewID()
		cfg.Queue.Own(owner)
	}
	d.repos = newLanes(cfg.Store, owner, cfg.Lease, cfg.Log)
	d.repos.lost = d.lost
	d.desk = &desk.Desk{Queue: cfg.Queue, Log: cfg.Log,
		Ended: func(ctx context.Context, id string) (ci.Conclusion, bool, error) {
			j, err := cfg.Store.Job(ctx, id)
			return j.Conclusion, j.Status == ci.Completed, err
		},
		Attempt: func(ctx context.Context, id string) (string, int, error) {
			state, attempt, _, _, err := cfg.Store.QueueState(ctx, id)
			return state, attempt, err
		},
		Holder: func(ctx context.Context, id string) (string, int, string, error) {
			state, attempt, worker, _, err := cfg.Store.QueueState(ctx, id)
			return state, attempt, worker, err
		},
	}
	return d, nil
}

// Desk is where workers on other hosts get their jobs, by way of package remote.
func (d *Dispatcher) Desk() *desk.Desk { return d.desk }

// Wake makes the dispatcher look for events now. It never blocks.
func (d *Dispatcher) Wake() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Serve takes up what dead processes left, whenever they do, takes events and runs
// jobs until ctx ends. Then it takes nothing new, lets jobs go on for Grace, leaves
// in the queue what has not ended by then, and returns when nothing runs any
// more. The error is of the start.
func (d *Dispatcher) Serve(ctx context.Context) error {
	keep := context.WithoutCancel(ctx)
	d.report, d.endReports = context.WithCancelCause(keep)
	defer d.endReports(nil)
	renewing, endRenewing := context.WithCancel(keep)
	var renewed sync.WaitGroup
	renewed.Go(func() { d.repos.run(renewing) })
	defer func() {
		endRenewing()
		renewed.Wait()
		d.repos.close(keep)
	}()
	var wg sync.WaitGroup
	wg.Go(func() { d.watch(ctx) })
	if d.cfg.Learn.On() {
		wg.Go(func() {
			if err := d.cfg.Learn.Follow(ctx); err != nil {
				d.log.Error("learning ended", "err", err)
			}
		})
	}
	wg.Go(func() { d.events(ctx) })
	wg.Go(func() {
		for t := time.NewTicker(time.Hour); ; {
			if err := d.expire(keep, time.Now()); err != nil {
				d.log.Error("runs that wait for approval", "err", err)
			}
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-t.C:
			}
		}
	})
	wg.Go(func() { d.desk.Watch(ctx) })
	if !d.cfg.Elsewhere {
		here := &desk.Worker{Counter: d.desk, Offer: queue.Offer{Worker: d.repos.owner, Labels: d.cfg.Labels}, Slots: d.cfg.Machines, Grace: d.cfg.Grace,
			Poll: d.cfg.Queue.Poll(), Log: d.log}
		wg.Go(func() { here.Work(ctx) })
	}
	wg.Wait()
	d.stop()
	return nil
}

// stop ends conductors without a word about their runs, and waits.
func (d *Dispatcher) stop() {
	d.mu.Lock()
	d.stopping = true
	for _, c := range d.runs {
		c.shut()
	}
	d.mu.Unlock()
	d.conductors.Wait()
	// What is known by now may still reach GitHub; the rest is sent by the next
	// process.
	t := time.AfterFunc(5*time.Second, func() { d.endReports(desk.ErrStopping) })
	defer t.Stop()
	d.reporters.Wait()
}

// events is the loop that takes events.
func (d *Dispatcher) events(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	if d.cfg.Forge == nil {
		return
	}
	slots := make(chan struct{}, maxEvents)
	came, stopWatch := d.cfg.Store.Watch(store.EventsChanged) // at other servers, too
	defer stopWatch()
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		e, repo, ok, err := d.repos.event(ctx, d.cfg.Hold)
		if err != nil && ctx.Err() == nil {
			d.log.Error("taking an event", "err", err)
		}
		if err != nil || !ok {
			<-slots
			t := time.NewTimer(d.cfg.Poll)
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-d.wake:
			case <-came:
			case <-t.C:
			}
			t.Stop()
			continue
		}
		before, mine, fresh := d.enter(e)
		if !fresh {
			repo.done()
			<-slots // its handler lives; taking it has prolonged the hold
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer repo.done()
			defer d.leave(e, mine)
			if before != nil {
				select {
				case <-before:
				case <-ctx.Done():
				}
			}
			d.handle(ctx, repo, e)
		})
	}
}

// enter queues an event behind the one of its repository before it: the order of
// pushes is the order of runs.
func (d *Dispatcher) enter(e store.StoredEvent) (before, mine chan struct{}, fresh bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.flights[e.ID]; f != nil {
		f.tries = e.Tries
		return nil, nil, false
	}
	d.flights[e.ID] = &flight{tries: e.Tries}
	lane := strings.ToLower(e.Repository)
	before, mine = d.lanes[lane], make(chan struct{})
	d.lanes[lane] = mine
	return before, mine, true
}

func (d *Dispatcher) leave(e store.StoredEvent, mine chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.flights, e.ID)
	if lane := strings.ToLower(e.Repository); d.lanes[lane] == mine {
		delete(d.lanes, lane)
	}
	close(mine)
}

func (d *Dispatcher) tries(id string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flights[id].tries
}

// handle brings one event to its end, or back.
func (d *Dispatcher) handle(ctx context.Context, repo *lane, e store.StoredEvent) {
	keep := context.WithoutCancel(ctx)
	bounded, cancel := context.WithTimeout(ctx, d.cfg.Hold*4/5)
	bounded, leave := repo.during(bounded)
	began := time.Now()
	detail, err := d.start(bounded, repo, e)
	leave()
	cancel()
	if !repo.mine() {
		d.counts.event("left")
		d.log.Warn("an event is left to another server", "event", e.Name, "repository", e.Repository, "delivery", e.Delivery)
		return
	}
	tries := d.tries(e.ID)
	if err == nil {
		d.counts.event(string(store.EventDone))
		d.log.Info("event handled", "event", e.Name, "repository", e.Repository, "delivery", e.Delivery, "took", time.Since(began), "reason", detail)
		if err := d.cfg.Store.FinishEvent(keep, e.ID, tries, store.EventDone, detail); err != nil {
			d.log.Error("event", "delivery", e.Delivery, "err", err)
		}
		return
	}
	again, wait := d.again(ctx, e, err)
	if !again {
		state := store.EventFailed
		if refused, ok := errors.AsType[*refusal](err); ok && refused.barred {
			state = store.EventRefused
		}
		d.counts.event(string(state))
		d.log.Error("event "+string(state), "event", e.Name, "repository", e.Repository, "delivery", e.Delivery, "err", err)
		if err := d.cfg.Store.FinishEvent(keep, e.ID, tries, state, err.Error()); err != nil {
			d.log.Error("event", "delivery", e.Delivery, "err", err)
		}
		return
	}
	d.counts.event("again")
	d.log.Warn("event put back", "event", e.Name, "repository", e.Repository, "delivery", e.Delivery, "wait", wait, "err", err)
	text := fmt.Sprintf("waiting %v to try again: %v", wait.Round(time.Second), err)
	if err := d.cfg.Store.ReleaseEvent(keep, e.ID, tries, time.Now().Add(wait), text); err != nil {
		d.log.Error("event", "delivery", e.Delivery, "err", err)
	}
	time.AfterFunc(wait+10*time.Millisecond, d.Wake)
}

// again decides whether an event is worth another try, and when.
func (d *Dispatcher) again(ctx context.Context, e store.StoredEvent, err error) (bool, time.Duration) {
	if ctx.Err() != nil {
		return true, 0 // the server stops
	}
	var failed *forge.Error
	temporary, after := false, time.Duration(0)
	switch {
	case errors.As(err, &failed):
		temporary, after = failed.Temporary, failed.RetryAfter
	case errors.Is(err, context.DeadlineExceeded):
		temporary = true
	default:
		var refused *refusal
		temporary = !errors.As(err, &refused) // of our own: the disk may be full, say
	}
	if !temporary || time.Since(e.Received) > d.cfg.GiveUp {
		return false, 0
	}
	wait := d.cfg.Retry << min(max(e.Tries-1, 0), 20)
	if wait <= 0 || wait > 10*time.Minute {
		wait = 10 * time.Minute
	}
	wait += rand.N(wait/4 + 1)
	return true, max(wait, after)
}

// refusal is a reason why an event can never be handled.
type refusal struct {
	text   string
	barred bool // it is not let in: nothing of it is kept
}

func (r *refusal) Error() string { return r.text }

func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...), false} }

func bar(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...), true} }
