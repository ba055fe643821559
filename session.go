package hearth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/session"
)

// Provider makes machines. A Host is one.
type Provider interface {
	// Machine returns a fresh machine, ready for its first command, that is ended
	// at the deadline in any case.
	Machine(ctx context.Context, deadline time.Time) (Machine, error)
}

// Machine is one VM, or what a Provider has instead.
type Machine interface {
	ID() string
	// Exec runs a command. An error says that it could not be run, or that nobody
	// knows how it ended; a non-zero exit is none. When ctx is done the command is
	// ended.
	Exec(ctx context.Context, cmd Command) (Exit, error)
	// Unpack unpacks a tar archive below dir, which is made if need be; Pack packs
	// paths, relative to dir. What Pack writes is the machine's word.
	Unpack(ctx context.Context, dir string, r io.Reader) error
	Pack(ctx context.Context, dir string, paths []string, w io.Writer) error
	// Snapshot keeps the machine as it is under a name; Rollback puts it back.
	Snapshot(ctx context.Context) (name string, err error)
	Rollback(ctx context.Context, name string) error
	// Lost is closed when the machine has ended by itself; Err says why.
	Lost() <-chan struct{}
	Err() error
	Close(ctx context.Context) error
}

// Command is something to run in a machine.
type Command struct {
	Argv           []string
	Env            []string // NAME=value
	Dir            string   // "" is the runner's home
	User           string   // "" is the runner
	Stdin          io.Reader
	Stdout, Stderr io.Writer // nil discards
	Timeout        time.Duration
	// Repository (owner/name) is whose memory the command teaches, where a Host is the
	// Provider that learns; "" is "local/library".
	Repository string
	// Secrets are values, of the environment say, that are never remembered, whatever
	// they look like.
	Secrets []string
	// NoLearn has nothing learned from the command, nor said of it.
	NoLearn bool
}

// Exit is how a command ended.
type Exit struct {
	Code      int
	TimedOut  bool // after Command.Timeout
	Cancelled bool // the context was done
	Duration  time.Duration
	Truncated bool // the output is not all there: a Client's machines bound it
	// Expected is what was expected before it ran, Explanation what is known of its
	// failure; nil where nothing is learned.
	Expected    *Prediction
	Explanation *Explanation
}

// State is where a session is in its life.
type State string

// The states, in order.
const (
	SessionCreated   = State(machine.Created)
	SessionExecuting = State(machine.Executing)
	SessionCompleted = State(machine.Completed)
	SessionFailed    = State(machine.Failed)
	SessionReleased  = State(machine.Released)
)

// Session is one machine from its making to its end. Its methods may be called
// from several goroutines.
type Session struct {
	Machine
	sessions *Sessions

	mu     sync.Mutex
	record machine.Session
	once   sync.Once
	done   chan struct{} // closed when it is released
	err    error         // of the release
}

// SessionInfo is a session as it was when asked.
type SessionInfo struct {
	ID       string
	State    State
	Outcome  State // SessionCompleted or SessionFailed, of a released one
	Created  time.Time
	Deadline time.Time
}

// SessionStats counts what Sessions has done.
type SessionStats struct {
	Live      int // now
	Created   int
	Completed int // released after success
	Failed    int // released after a failure, or without having finished
}

// Sessions makes and releases sessions. Close it.
type Sessions struct {
	provider Provider
	ttl      time.Duration
	most     int

	wg    sync.WaitGroup // one a session
	mu    sync.Mutex
	live  map[*Session]struct{}
	past  []SessionInfo
	stats SessionStats
	ended bool
	count int // live, and those being made
}

// ErrTooManySessions says that no more sessions may exist at a time.
var ErrTooManySessions = errors.New("hearth: too many sessions: release some")

// ErrClosed says that Sessions, or a Host, is closed.
var ErrClosed = errors.New("hearth: closed")

const (
	keepPast     = 200
	releaseLimit = time.Minute
)

// NewSessions takes machines from p. A session lives at most ttl (0: an hour; more than
// 7 days is 7 days), released or not; at most that many exist at a time (0: as many as
// p gives).
func NewSessions(p Provider, ttl time.Duration, most int) *Sessions {
	if ttl <= 0 {
		ttl = time.Hour
	}
	return &Sessions{provider: p, ttl: ttl, most: most, live: map[*Session]struct{}{}}
}

// New makes a session with a machine of its own. Release it.
func (s *Sessions) New(ctx context.Context) (*Session, error) {
	return s.open(ctx, s.ttl)
}

func (s *Sessions) open(ctx context.Context, ttl time.Duration) (*Session, error) {
	s.mu.Lock()
	switch {
	case s.ended:
		s.mu.Unlock()
		return nil, ErrClosed
	case s.most > 0 && s.count >= s.most:
		s.mu.Unlock()
		return nil, ErrTooManySessions
	}
	s.count++
	s.wg.Add(1)
	s.mu.Unlock()
	deadline := time.Now().Add(min(ttl, session.MaxTTL))
	m, err := s.provider.Machine(ctx, deadline)
	s.mu.Lock()
	if err != nil {
		s.count--
		s.mu.Unlock()
		s.wg.Done()
		return nil, fmt.Errorf("making a session: %w", err)
	}
	x := &Session{Machine: m, sessions: s, done: make(chan struct{}),
		record: machine.Session{ID: m.ID(), State: machine.Created, Leased: time.Now(), DeleteBy: deadline}}
	s.live[x] = struct{}{}
	s.stats.Created++
	ended := s.ended
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		t := time.NewTimer(time.Until(deadline))
		defer t.Stop()
		select {
		case <-x.done:
			return
		case <-m.Lost():
		case <-t.C:
		}
		x.Release(context.Background())
	}()
	if ended {
		return nil, errors.Join(ErrClosed, x.Release(ctx))
	}
	return x, nil
}

// Info says how the session is.
func (x *Session) Info() SessionInfo {
	x.mu.Lock()
	defer x.mu.Unlock()
	return SessionInfo{x.record.ID, State(x.record.State), State(x.record.Outcome), x.record.Leased, x.record.DeleteBy}
}

// State is where the session is in its life.
func (x *Session) State() State { return x.Info().State }

// Exec runs a command: see Machine.
func (x *Session) Exec(ctx context.Context, cmd Command) (Exit, error) {
	x.begin()
	end, err := x.Machine.Exec(ctx, cmd)
	if err != nil {
		if why := x.Err(); why != nil {
			err = fmt.Errorf("%w: %w", err, why)
		}
		return end, fmt.Errorf("session %s: %w", x.ID(), err)
	}
	return end, nil
}

func (x *Session) begin() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.record.Begin()
}

// Finish records how the session's work ended. The first call counts.
func (x *Session) Finish(ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.record.End(ok, "", guest.Usage{})
}

// Release ends the machine, whether ctx is done or not. It may be called more than
// once.
func (x *Session) Release(ctx context.Context) error {
	x.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseLimit)
		defer cancel()
		lost := x.Machine.Err()
		x.err = x.Machine.Close(ctx)
		x.mu.Lock()
		x.record.Release(lost)
		x.mu.Unlock()
		info := x.Info()
		s := x.sessions
		s.mu.Lock()
		delete(s.live, x)
		s.count--
		if info.Outcome == SessionCompleted {
			s.stats.Completed++
		} else {
			s.stats.Failed++
		}
		s.past = append(s.past, info)
		if len(s.past) > keepPast {
			s.past = slices.Delete(s.past, 0, len(s.past)-keepPast)
		}
		s.mu.Unlock()
		close(x.done)
	})
	return x.err
}

// List returns the sessions there are and the last that were, oldest first.
func (s *Sessions) List() []SessionInfo {
	s.mu.Lock()
	out := slices.Clone(s.past)
	var live []*Session
	for x := range s.live {
		live = append(live, x)
	}
	s.mu.Unlock()
	for _, x := range live {
		if i := x.Info(); i.State != SessionReleased || !slices.Contains(out, i) {
			out = append(out, i)
		}
	}
	slices.SortStableFunc(out, func(a, b SessionInfo) int { return a.Created.Compare(b.Created) })
	return out
}

// Stats returns the counts as they are now.
func (s *Sessions) Stats() SessionStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.Live = len(s.live)
	return out
}

// Close refuses new sessions and releases those there are.
func (s *Sessions) Close(ctx context.Context) error {
	s.mu.Lock()
	s.ended = true
	var live []*Session
	for x := range s.live {
		live = append(live, x)
	}
	s.mu.Unlock()
	var errs []error
	for _, x := range live {
		errs = append(errs, x.Release(ctx))
	}
	s.wg.Wait()
	return errors.Join(errs...)
}
