// Package machine says what a machine is to whoever wants work done in one: a job,
// a session, an API call, a measurement. They ask a [Host] for what they need (a
// [Request]) and hold a [Machine] until they release it.
//
//	Request ─▶ Host.Claim ─▶ Machine: Begin ─▶ Client, Snapshot, Rollback, … ─▶ End ─▶ Release
//	                                     its record on the way: Session
//
// # Who implements it
//
// Package pool does, over the VMs of this host (package vm). Nothing here needs a
// VM: there is no kernel, no disk and no directory in a [Request] or a [Machine].
// An image is a name that the host understands. What the inside has to have is our
// agent (package guest): a stream to it, over whatever leads there, gives commands
// and files. So a container under gVisor, or a machine on another host, is one more
// implementation of these two interfaces; a test's is machinetest, which also has the
// suite that all of them pass.
//
// What a host cannot do it says with [errors.ErrUnsupported] when it is asked:
// Snapshot and Rollback where there are none, Claim where a Request wants what the
// host could only pretend to give. A network policy that is not kept is the worst of
// these: a Host that cannot keep one refuses the Request.
//
// # Order of calls
//
// Each method of [Machine] says when it may be called. In short: Begin once work
// starts, End once it has ended, Release in any case and last; the rest between,
// from any goroutine. A machine that was lost answers all of them, with its end as
// the error where something was to be done.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/network"
)

// Host hands out machines. Safe for concurrent use.
type Host interface {
	// Claim returns a machine as requested, ready for its first command. It waits
	// for room, in the order of the claims, as long as ctx allows; after it has
	// returned, ctx has no hold on the machine. An error is never the fault of what
	// is to run in it: see [ErrTooLarge], [ErrBusy], [ErrClosed].
	Claim(ctx context.Context, r Request) (Machine, error)

	// Sessions returns the sessions there are and the last that were, oldest first.
	Sessions() []Session

	// Stats returns the counts as they are now.
	Stats() Stats
}

// Request says what machine is wanted. The zero Request is the host's default
// machine on a default network.
type Request struct {
	Image     string // its name or id; "" is the host's default
	CPUs      int    // 0 is the host's default
	MemoryMiB int    // likewise
	// Containers wants a container engine that answers at once: Docker, on
	// /run/docker.sock. A machine that is claimed without may have one too, which then
	// starts at the first connection to that socket. Where the host or the image has
	// none, Claim fails with ErrNoContainers.
	Containers bool
	// Network is the policy, and who hears of the connections. What a host cannot
	// keep of it, it refuses.
	Network network.Config
	Labels  []string // what the job asked for; shown in Sessions
	// Deadline is when the machine is ended, used or not; zero is MaxLease from
	// the claim.
	Deadline time.Time
	// From is what the machine begins as: with the files, the memory and the processes
	// of another that was exported, under a name and on a network of its own. Image,
	// CPUs, MemoryMiB and Containers are then those of its Origin. nil is a fresh one.
	From *Saved
	// NoWait fails with ErrBusy instead of waiting for room.
	NoWait bool
	// Waits, if set, is called once the claim has its place among those that wait;
	// it must not block.
	Waits func()
}

// MaxLease is how long a machine may be held where the request does not say:
// GitHub's longest job, and the way there and back.
const MaxLease = 6*time.Hour + 15*time.Minute

// Errors of Claim.
var (
	ErrTooLarge = errors.New("more than this host may give to machines")
	ErrBusy     = errors.New("all means are in use")
	ErrClosed   = errors.New("the pool is closed")
	// ErrNoContainers is an [errors.ErrUnsupported].
	ErrNoContainers = fmt.Errorf("no container engine: %w", errors.ErrUnsupported)
	// ErrOrigin is that a Saved cannot be restored here any more, or not here.
	ErrOrigin = errors.New("what the point stands on is not here")
)

// Machine is the right to one machine until it is released. Safe for concurrent
// use.
type Machine interface {
	// ID names the machine; its host name is "hearth-" and this. It stays the same over
	// a Rollback.
	ID() string

	// Client is the connection to the agent: commands and files. After Rollback it
	// is another one, and after Snapshot it may be: ask again, keep none.
	Client() *guest.Client

	// SetStep says which step of its job connections belong to from now on; 0 is
	// none. It may be called at any time.
	SetStep(number int)

	// Snapshot keeps the machine as it is now, while it runs. Nothing should be
	// running in it that minds existing twice: call it between two commands. It may
	// end the connection to the agent, and so what runs over it. When it fails the
	// machine goes on.
	Snapshot(ctx context.Context) (Checkpoint, error)

	// Rollback puts the machine back to a Checkpoint of its own: a new Client, the
	// same network. What runs in it is gone. A Rollback that has begun to replace
	// the machine and fails loses it (Lost); one that fails before that leaves it as
	// it was.
	Rollback(ctx context.Context, c Checkpoint) error

	// Forget gives up a Checkpoint: what only it takes on disk is given back. The
	// machine may be one that was rolled back to it.
	Forget(c Checkpoint) error

	// Origin is what a machine has to be made of to begin as this one.
	Origin() Origin

	// Export writes a Checkpoint to w, for a Request's From: what it has that its
	// Origin has not, with all that was in memory, secrets too. The machine goes on
	// meanwhile; a Rollback and a Forget of the Checkpoint have to wait.
	Export(ctx context.Context, c Checkpoint, w io.Writer) error

	// Begin records that work starts. Later calls change nothing.
	Begin()

	// End records how the work ended, and what it used as far as the machine still
	// tells; reason is for a failure. The first call counts. Call it before Release:
	// a machine that is released without has failed.
	End(ctx context.Context, ok bool, reason string)

	// Session is the machine's record as it is now, after Release too.
	Session() Session

	// Lost is closed when the machine has ended by itself or its time was over; Err
	// says why from then on and is nil before. A Release closes nothing.
	Lost() <-chan struct{}
	Err() error

	// Fate says in one line how the machine ended, "" if it lives. Whoever has just
	// lost contact with its agent asks: the end may be known a moment later, for
	// which Fate waits.
	Fate() string

	// Release ends the machine, whatever runs in it, and gives back what it had. It
	// is safe to call more than once, and after the machine was lost; it goes on
	// where ctx is done, within a limit of its own.
	Release(ctx context.Context) error
}

// Checkpoint is a moment of one machine that it can go back to, until it is
// released.
type Checkpoint struct {
	ID    string `json:"id"`    // of that machine's
	Bytes int64  `json:"bytes"` // that it takes on disk
}

// Origin is what a machine was made of. Two machines of one Origin were the same
// before they began to differ.
type Origin struct {
	Driver     string `json:"driver"`
	Image      string `json:"image"` // its id
	CPUs       int    `json:"cpus"`
	MemoryMiB  int    `json:"memory_mib"`
	DiskMiB    int64  `json:"disk_mib"`
	Containers bool   `json:"containers,omitempty"`
	Template   string `json:"template"` // names the one snapshot that it was cloned from
}

// Saved is a Checkpoint that was exported.
type Saved struct {
	// ID names it: what it takes on the host's disk is shared by all machines that
	// begin as it at a time.
	ID     string
	Origin Origin
	// Open is what Export wrote. It is trusted: whoever keeps it has to know that it
	// is what was written.
	Open func() (io.ReadCloser, error)
}

// Stats counts what a host has done.
type Stats struct {
	Leased  int   `json:"leased"`  // now
	Waiting int   `json:"waiting"` // claims that wait for means, now
	Warm    int   `json:"warm"`    // machines that are ready, now
	Used    Means `json:"used"`
	Means   Means `json:"means"`

	Claims    int `json:"claims"`    // that were met
	WarmHits  int `json:"warm_hits"` // of them, by a machine that was ready
	Made      int `json:"made"`      // machines made ahead
	Completed int `json:"completed"` // sessions
	Failed    int `json:"failed"`    // sessions, lost machines included
	Lost      int `json:"lost"`      // claims that failed, and machines that died under a lease
}

// Means is how much machines may have together.
type Means struct {
	CPUs      int
	MemoryMiB int
}
