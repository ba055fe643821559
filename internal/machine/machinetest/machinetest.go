// Package machinetest has machines for tests: their agents run in this process, and
// commands on this host as this user. What a machine goes through (no room, its
// death, a snapshot that fails) is the test's to say. So whatever runs over a
// [machine.Host] is tested without a VM, in milliseconds.
package machinetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/network"
)

// Host is a [machine.Host]. The zero Host is usable; set its fields before use.
type Host struct {
	Most int // machines at once; 0 is no limit
	// Refuse, if set, is asked before each machine is made.
	Refuse func(machine.Request) error

	mu      sync.Mutex
	n       int
	live    []*Machine
	past    []machine.Session
	stats   machine.Stats
	changed chan struct{} // closed when there is room again
}

var _ machine.Host = (*Host)(nil)

// largest is what a machine may have.
var largest = machine.Means{CPUs: 64, MemoryMiB: 1 << 20}

// Claim implements [machine.Host].
func (h *Host) Claim(ctx context.Context, r machine.Request) (machine.Machine, error) {
	m, err := h.claim(ctx, r)
	if err != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.stats.Lost++
		return nil, fmt.Errorf("claim a machine: %w", err)
	}
	return m, nil
}

func (h *Host) claim(ctx context.Context, r machine.Request) (*Machine, error) {
	if r.CPUs > largest.CPUs || r.MemoryMiB > largest.MemoryMiB {
		return nil, fmt.Errorf("%w: a machine of %d CPUs and %d MiB is wanted", machine.ErrTooLarge, r.CPUs, r.MemoryMiB)
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if r.Waits != nil {
		r.Waits()
	}
	id, err := h.admit(ctx, r.NoWait)
	if err != nil {
		return nil, err
	}
	m, err := h.make(ctx, id, r)
	if err != nil {
		h.leave(nil, nil)
		return nil, err
	}
	return m, nil
}

// admit waits until there is room, and takes it.
func (h *Host) admit(ctx context.Context, now bool) (id string, err error) {
	for {
		h.mu.Lock()
		if h.Most == 0 || h.stats.Leased < h.Most {
			h.n++
			h.stats.Leased++
			id := fmt.Sprintf("m%d", h.n)
			h.mu.Unlock()
			return id, nil
		}
		if h.changed == nil {
			h.changed = make(chan struct{})
		}
		changed := h.changed
		h.mu.Unlock()
		if now {
			return "", machine.ErrBusy
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

func (h *Host) make(ctx context.Context, id string, r machine.Request) (*Machine, error) {
	if h.Refuse != nil {
		if err := h.Refuse(r); err != nil {
			return nil, err
		}
	}
	from := ""
	if r.From != nil {
		if r.From.Origin.Driver != "host" || r.From.Origin.Template != "none" {
			return nil, machine.ErrOrigin
		}
		r.CPUs, r.MemoryMiB = r.From.Origin.CPUs, r.From.Origin.MemoryMiB
		in, err := r.From.Open()
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(in)
		if err = errors.Join(err, in.Close()); err != nil {
			return nil, err
		}
		from = string(b)
	}
	here, there := net.Pipe()
	serving, stop := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() { defer close(served); guest.Serve(serving, there, guest.Options{}) }()
	c, err := guest.New(ctx, here)
	if err != nil {
		stop()
		there.Close()
		<-served
		return nil, err
	}
	now := time.Now()
	if r.Deadline.IsZero() {
		r.Deadline = now.Add(machine.MaxLease)
	}
	m := &Machine{host: h, request: r, client: c, lost: make(chan struct{}), from: from}
	m.unplug = sync.OnceFunc(func() { stop(); there.Close(); <-served })
	or := func(n, other int) int {
		if n == 0 {
			return other
		}
		return n
	}
	m.session = machine.Session{ID: id, State: machine.Created, Driver: "host", Image: "none", Labels: r.Labels,
		CPUs: or(r.CPUs, 2), MemoryMiB: or(r.MemoryMiB, 1024), Leased: now, DeleteBy: r.Deadline}
	m.expiry = time.AfterFunc(time.Until(r.Deadline), func() { m.Lose(errors.New("its time is over")) })
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stats.Claims++
	h.live = append(h.live, m)
	return m, nil
}

// leave gives back a machine's room.
func (h *Host) leave(m *Machine, done *machine.Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stats.Leased--
	h.wakeLocked()
	if m == nil {
		return
	}
	h.live = slices.DeleteFunc(h.live, func(x *Machine) bool { return x == m })
	h.past = append(h.past, *done)
	if done.Outcome == machine.Failed {
		h.stats.Failed++
	} else {
		h.stats.Completed++
	}
}

// Grow makes Most larger while machines are there.
func (h *Host) Grow(most int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Most = most
	h.wakeLocked()
}

func (h *Host) wakeLocked() {
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// Machines returns those that are not released, oldest first.
func (h *Host) Machines() []*Machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.live)
}

// Sessions implements [machine.Host].
func (h *Host) Sessions() []machine.Session {
	h.mu.Lock()
	out := slices.Clone(h.past)
	h.mu.Unlock()
	for _, m := range h.Machines() {
		out = append(out, m.Session())
	}
	return out
}

// Stats implements [machine.Host].
func (h *Host) Stats() machine.Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stats
}

// Machine is a [machine.Machine] of a [Host].
type Machine struct {
	host    *Host
	request machine.Request
	client  *guest.Client
	unplug  func() // ends the agent
	expiry  *time.Timer
	lost    chan struct{}
	from    string

	mu       sync.Mutex
	session  machine.Session
	err      error
	step     int
	asked    func() error
	points   []string // checkpoints
	rolled   []string
	kept     int // checkpoints
	most     int // of kept
	released bool
}

// Lose ends the machine as if something had gone wrong with it.
func (m *Machine) Lose(err error) {
	m.mu.Lock()
	already := m.err != nil || m.released
	if !already {
		m.err = err
		close(m.lost)
	}
	m.mu.Unlock()
	if !already {
		m.unplug()
	}
}

// Connect has the machine's network report a connection, as of the current step.
func (m *Machine) Connect(c network.Connection) {
	m.mu.Lock()
	c.Step = m.step
	m.mu.Unlock()
	if m.request.Network.Record != nil {
		m.request.Network.Record(c)
	}
}

// OnSnapshot has f asked before each snapshot is made.
func (m *Machine) OnSnapshot(f func() error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = f
}

// Request is what the machine was claimed with.
func (m *Machine) Request() machine.Request { return m.request }

// RolledBack is to which checkpoints it was.
func (m *Machine) RolledBack() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.rolled)
}

// ID implements [machine.Machine], as do all that follow.
func (m *Machine) ID() string { return m.session.ID }

func (m *Machine) Client() *guest.Client { return m.client }

func (m *Machine) SetStep(number int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.step = number
}

// over says why nothing can be done with the machine any more.
func (m *Machine) over() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.released {
		return errors.New("it was released")
	}
	return m.err
}

func (m *Machine) Snapshot(context.Context) (machine.Checkpoint, error) {
	if err := m.over(); err != nil {
		return machine.Checkpoint{}, err
	}
	m.mu.Lock()
	asked := m.asked
	m.mu.Unlock()
	if asked != nil {
		if err := asked(); err != nil {
			return machine.Checkpoint{}, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	id := fmt.Sprintf("%s-c%d", m.session.ID, len(m.points)+1)
	m.points = append(m.points, id)
	m.kept++
	m.most = max(m.most, m.kept)
	return machine.Checkpoint{ID: id}, nil
}

func (m *Machine) Rollback(ctx context.Context, c machine.Checkpoint) error {
	if err := m.over(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.points, c.ID) {
		return errors.New("the checkpoint is another machine's")
	}
	m.rolled = append(m.rolled, c.ID)
	return nil
}

func (m *Machine) Forget(c machine.Checkpoint) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.Index(m.points, c.ID)
	if i < 0 {
		return errors.New("the checkpoint is another machine's")
	}
	m.points[i] = "" // its number stays taken
	m.kept--
	return nil
}

// Kept is how many checkpoints there are that were not forgotten, and the most that
// there were at once.
func (m *Machine) Kept() (now, most int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept, m.most
}

// Origin is the same for all machines of a Host that have the same size.
func (m *Machine) Origin() machine.Origin {
	s := m.Session()
	return machine.Origin{Driver: s.Driver, Image: s.Image, CPUs: s.CPUs, MemoryMiB: s.MemoryMiB, DiskMiB: 1, Template: "none"}
}

// Export writes the checkpoint's name: what a machine begins as here is this host, as
// it is then. See [Machine.BeganAs].
func (m *Machine) Export(ctx context.Context, c machine.Checkpoint, w io.Writer) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	m.mu.Lock()
	known := slices.Contains(m.points, c.ID)
	m.mu.Unlock()
	if !known {
		return errors.New("the checkpoint is another machine's")
	}
	_, err := io.WriteString(w, c.ID)
	return err
}

// BeganAs is the checkpoint that the machine was claimed from, "" for none.
func (m *Machine) BeganAs() string { return m.from }

func (m *Machine) Begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.session.Begin()
}

func (m *Machine) End(_ context.Context, ok bool, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.session.End(ok, reason, guest.Usage{})
}

func (m *Machine) Session() machine.Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.session
}

func (m *Machine) Lost() <-chan struct{} { return m.lost }

func (m *Machine) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *Machine) Fate() string {
	err := m.Err()
	if err == nil {
		return ""
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text
}

func (m *Machine) Release(context.Context) error {
	m.mu.Lock()
	if m.released {
		m.mu.Unlock()
		return nil
	}
	m.released = true
	m.session.Release(m.err)
	done := m.session
	m.mu.Unlock()
	m.expiry.Stop()
	m.client.Close()
	m.unplug()
	m.host.leave(m, &done)
	return nil
}
