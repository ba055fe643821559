// Package session keeps a machine over several commands: for the HTTP API, for the
// holder behind `hearth vm`, for the library. What those three promise alike is here
// once; what a client may hold beside that is theirs.
//
//	Open ─▶ Enter … leave ─▶ Snapshot ─▶ Enter … leave ─▶ Rollback ─▶ … ─▶ End ─▶ Done
//
// # Life
//
// A session is its machine's record (machine.Session): created, executing, completed
// or failed, released. It ends when somebody says so (End, Release), when its machine
// is lost, or when the machine's time is over, whichever is first; one goroutine waits
// for these, ends the machine and closes Done. How its last command ended is how its
// work did.
//
// # The gate
//
// A snapshot is of a machine in which nothing runs: memory and disks are written while
// it runs on, and what runs in it would exist twice. A rollback ends whatever runs. So
// a Snapshot or Rollback has the machine alone, and commands and transfers (Enter) have
// it together: who comes in the wrong moment is told so (an [Error]) and waits for
// nothing.
//
// # Limits
//
// They are the same wherever a session comes from: [MaxTTL], [MaxCommands] and
// [MaxSnapshots].
package session

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/machine"
)

// The limits of a session.
const (
	MaxTTL       = 7 * 24 * time.Hour // of its life
	MaxCommands  = 32                 // and transfers, at once
	MaxSnapshots = 32                 // that are kept

	maxName = 100 // characters of a snapshot's name
)

// releaseLimit bounds how long a machine may take to end, or to go back.
const releaseLimit = time.Minute

// Kind says why a session cannot do something as it is.
type Kind int

// The kinds of Error.
const (
	Changing Kind = iota // a snapshot or rollback is under way
	Running              // commands are, beside which there is no snapshot
	Full                 // as many commands as there may be
	BadName              // of a snapshot
	Taken                // the name
	Spent                // as many snapshots as there may be
	NoSuch               // snapshot
	Ended                // the session has
)

// Error says why a session cannot do something as it is: nothing was done.
type Error struct {
	Kind Kind
	Text string
}

func (e *Error) Error() string { return e.Text }

func refuse(k Kind, format string, args ...any) error {
	return &Error{k, fmt.Sprintf(format, args...)}
}

// Snapshot is a moment that a session can go back to.
type Snapshot struct {
	ID      string // s1, s2, …
	Name    string // its own, or the ID
	Created time.Time
	Took    time.Duration
	Bytes   int64 // that it takes on disk

	point machine.Checkpoint
}

// Session is a machine that is kept. Its methods may be called from any goroutine.
type Session struct {
	m machine.Machine

	ended  chan struct{} // closed by End
	once   sync.Once
	reason string        // why, once ended is closed
	done   chan struct{} // closed when the machine is released
	err    error         // of the release, once done is closed

	mu       sync.Mutex
	running  int  // commands and transfers
	changing bool // a snapshot or a rollback is under way
	last     guest.Exit
	shots    []Snapshot
}

// Open keeps m from now on: it is released when the session ends, and by nobody
// else. after, if set, is called then, before Done is closed.
func Open(m machine.Machine, after func(*Session)) *Session {
	s := &Session{m: m, ended: make(chan struct{}), done: make(chan struct{})}
	go s.watch(after)
	return s
}

// watch releases the machine when the session has ended or the machine is lost.
func (s *Session) watch(after func(*Session)) {
	select {
	case <-s.ended:
	case <-s.m.Lost():
		s.End(s.m.Err().Error())
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseLimit)
	defer cancel()
	if s.m.Err() == nil {
		s.mu.Lock()
		last := s.last
		s.mu.Unlock()
		s.m.End(ctx, last.OK(), failure(last))
	}
	s.err = s.m.Release(ctx)
	if after != nil {
		after(s)
	}
	close(s.done)
}

// failure says what became of a session whose last command ended so, "" if well.
func failure(last guest.Exit) string {
	switch {
	case last.OK():
		return ""
	case last.TimedOut:
		return "its last command timed out"
	case last.Signal != "":
		return "its last command was ended by " + last.Signal
	}
	return fmt.Sprintf("its last command ended with exit code %d", last.Code)
}

// ID is the machine's.
func (s *Session) ID() string { return s.m.ID() }

// Record is the machine's record as it is now.
func (s *Session) Record() machine.Session { return s.m.Session() }

// Client is the agent's as it is now, for a look that no snapshot minds; see Enter.
func (s *Session) Client() *guest.Client { return s.m.Client() }

// Lost and Err are the machine's.
func (s *Session) Lost() <-chan struct{} { return s.m.Lost() }
func (s *Session) Err() error            { return s.m.Err() }

// End has the session end; it does not wait. The first reason counts.
func (s *Session) End(reason string) {
	s.once.Do(func() {
		s.reason = reason
		close(s.ended)
	})
}

// Over is why the session has ended or is ending; false says that it goes on.
func (s *Session) Over() (reason string, over bool) {
	select {
	case <-s.ended:
		return s.reason, true
	default:
		return "", false
	}
}

// Done is closed when the machine is released.
func (s *Session) Done() <-chan struct{} { return s.done }

// Release ends the session and waits until its machine is released.
func (s *Session) Release(ctx context.Context, reason string) error {
	s.End(reason)
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Enter begins a command or a transfer. The client is good until leave, which must be
// called; the machine does not change in between.
func (s *Session) Enter() (c *guest.Client, leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.openLocked(); err != nil {
		return nil, nil, err
	}
	if s.running >= MaxCommands {
		return nil, nil, refuse(Full, "it is running %d commands, and may run no more", s.running)
	}
	s.running++
	return s.m.Client(), sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.running--
	}), nil
}

// openLocked says why nothing can be begun.
func (s *Session) openLocked() error {
	if reason, over := s.Over(); over {
		return refuse(Ended, "it has ended: %s", reason)
	}
	if s.changing {
		return refuse(Changing, "a snapshot or rollback of it is under way")
	}
	return nil
}

// alone begins what has the machine for itself.
func (s *Session) alone() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.openLocked(); err != nil {
		return err
	}
	if s.running > 0 {
		return refuse(Running, "%d commands are running in it; a snapshot is taken between two", s.running)
	}
	s.changing = true
	return nil
}

func (s *Session) changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changing = false
}

// Begin records that work starts.
func (s *Session) Begin() { s.m.Begin() }

// Ran records how a command ended. The last says how the session's work did; one
// that was cancelled says nothing of it.
func (s *Session) Ran(end guest.Exit) {
	if end.Cancelled {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = end
}

// Running is how many commands and transfers are under way.
func (s *Session) Running() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

// Snapshots are those there are, oldest first.
func (s *Session) Snapshots() []Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.shots)
}

// Snapshot keeps the machine as it is under a name; with "" that is the snapshot's
// id. A ctx that is done before it is there leaves none.
func (s *Session) Snapshot(ctx context.Context, name string) (Snapshot, error) {
	if len(name) > maxName || strings.ContainsFunc(name, unicode.IsControl) {
		return Snapshot{}, refuse(BadName, "the snapshot's name is unusable: want at most %d characters, none of them a control character", maxName)
	}
	if err := s.alone(); err != nil {
		return Snapshot{}, err
	}
	defer s.changed()
	x := Snapshot{Name: name, Created: time.Now().UTC()}
	s.mu.Lock()
	n := len(s.shots)
	_, taken := s.findLocked(name)
	for i := n + 1; x.ID == ""; i++ {
		id := fmt.Sprintf("s%d", i)
		if _, other := s.findLocked(id); !other {
			x.ID = id
		}
	}
	s.mu.Unlock()
	switch {
	case taken:
		return Snapshot{}, refuse(Taken, "it has a snapshot %q already", name)
	case n >= MaxSnapshots:
		return Snapshot{}, refuse(Spent, "it has %d snapshots and may have no more", n)
	case name == "":
		x.Name = x.ID
	}
	var err error
	if x.point, err = s.m.Snapshot(ctx); err != nil {
		return Snapshot{}, err
	}
	x.Took, x.Bytes = time.Since(x.Created), x.point.Bytes
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shots = append(s.shots, x)
	return x, nil
}

// findLocked looks a snapshot up by its id or name.
func (s *Session) findLocked(ref string) (Snapshot, bool) {
	i := slices.IndexFunc(s.shots, func(x Snapshot) bool { return x.ID == ref || x.Name == ref })
	if i < 0 {
		return Snapshot{}, false
	}
	return s.shots[i], true
}

// Rollback puts the machine back to a snapshot, named by its id or name. Once begun
// it is finished, whatever becomes of ctx: half a rollback is a lost machine.
func (s *Session) Rollback(ctx context.Context, ref string) (Snapshot, error) {
	if err := s.alone(); err != nil {
		return Snapshot{}, err
	}
	defer s.changed()
	s.mu.Lock()
	x, ok := s.findLocked(ref)
	var names []string
	for _, o := range s.shots {
		names = append(names, o.Name)
	}
	s.mu.Unlock()
	if !ok {
		have := "it has none"
		if len(names) > 0 {
			have = "it has " + strings.Join(names, ", ")
		}
		return Snapshot{}, refuse(NoSuch, "no snapshot %.100q: %s", ref, have)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseLimit)
	defer cancel()
	return x, s.m.Rollback(ctx, x.point)
}
