package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/session"
)

const (
	maxGone      = 500
	releaseLimit = time.Minute
)

// owned is a VM that was made over the API, and whose it is.
type owned struct {
	*session.Session
	owner   owner
	name    string
	kind    string // vm_type
	policy  network.Policy
	history *history.Machine // nil: nothing is learned

	mu   sync.Mutex
	held use  // of the snapshots
	over bool // held was given back
}

// ending is what is remembered of a machine that is no more.
type ending struct {
	id, reason string
	owner      owner
	at         time.Time
}

// shot is a snapshot as the API shows it.
type shot struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	VM         string    `json:"vm_id"`
	Created    time.Time `json:"created_at"`
	DurationMS int64     `json:"duration_ms"`
	Bytes      int64     `json:"bytes"` // on the server's disk
}

func (m *owned) shot(x session.Snapshot) shot {
	return shot{x.ID, x.Name, m.ID(), x.Created, x.Took.Milliseconds(), x.Bytes}
}

// view is a machine as the API shows it.
type view struct {
	ID        string        `json:"id"`
	Name      string        `json:"name,omitempty"`
	Type      string        `json:"vm_type,omitempty"`
	Status    machine.State `json:"status"`
	Outcome   machine.State `json:"outcome,omitempty"`
	Reason    string        `json:"reason,omitempty"`
	Driver    string        `json:"driver"`
	Image     string        `json:"image"`
	CPUs      int           `json:"cpus"`
	MemoryMiB int           `json:"memory_mib"`
	Network   string        `json:"network,omitempty"`
	Labels    []string      `json:"labels,omitempty"`
	Running   int           `json:"running"` // executions under way
	Snapshots int           `json:"snapshots"`
	ReadyMS   float64       `json:"ready_ms"` // from the claim to the first command
	Created   time.Time     `json:"created_at"`
	Started   time.Time     `json:"started_at,omitzero"`
	Ended     time.Time     `json:"ended_at,omitzero"`
	Released  time.Time     `json:"released_at,omitzero"`
	DeleteBy  time.Time     `json:"delete_by"`
}

func describe(x machine.Session) view {
	return view{ID: x.ID, Status: x.State, Outcome: x.Outcome, Reason: x.Reason, Driver: x.Driver, Image: x.Image, CPUs: x.CPUs, MemoryMiB: x.MemoryMiB,
		Labels: x.Labels, ReadyMS: float64(x.Ready.Microseconds()) / 1000, Created: x.Leased, Started: x.Started, Ended: x.Ended, Released: x.Released,
		DeleteBy: x.DeleteBy}
}

func (m *owned) describe() view {
	d := describe(m.Record())
	d.Name, d.Type, d.Network, d.Running, d.Snapshots = m.name, m.kind, m.policy.String(), m.Running(), len(m.Snapshots())
	return d
}

// order is what machine is wanted.
type order struct {
	Name       string  `json:"name"`
	Type       string  `json:"vm_type"` // a name of the client's
	Image      string  `json:"image"`   // one of Config.Images; "" is the default one
	OtherName  string  `json:"vm_name"` // name, as others call it
	CPUs       int     `json:"cpus"`
	MemoryMiB  int     `json:"memory_mib"`
	Containers bool    `json:"containers"` // Docker runs in it from the start
	Network    string  `json:"network"`    // default, none, allow:HOST,HOST…
	TTLSeconds float64 `json:"ttl_seconds"`
}

// request checks an order and says what to claim.
func (s *Server) request(o order) (machine.Request, error) {
	bad := func(hint, format string, args ...any) (machine.Request, error) {
		return machine.Request{}, problem(http.StatusBadRequest, "bad_request", hint, format, args...)
	}
	policy := s.cfg.Network
	if o.Network != "" && o.Network != "default" {
		var err error
		if policy, err = network.ParsePolicy(o.Network); err != nil {
			return bad(`want "default", "none" or "allow:HOST,HOST"`, "network: %v", err)
		}
		policy.PublicNames = true // a subject does not decide what is reached of the server's own network
		if err := policy.Within(s.cfg.Network); err != nil {
			return machine.Request{}, problem(http.StatusForbidden, "network_refused", "ask for less, or have the server's api.network say more", "network: %v", err)
		}
	}
	if o.CPUs < 0 || o.MemoryMiB < 0 || o.MemoryMiB > 0 && o.MemoryMiB < 128 {
		return bad("leave them out for the default, or ask for 1 CPU and 128 MiB or more", "a VM of %d CPUs and %d MiB makes no sense", o.CPUs, o.MemoryMiB)
	}
	for _, v := range []string{o.Name, o.OtherName, o.Type} {
		if len(v) > 100 || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return bad("at most 100 characters, none of them a control character", "the name or vm_type is unusable")
		}
	}
	if o.Name != "" && o.OtherName != "" && o.Name != o.OtherName {
		return bad("vm_name is another word for name: give one", "name and vm_name differ")
	}
	img, ok := s.cfg.Images[o.Image]
	if o.Image != "" && !ok {
		have := "leave it out: this server has one image"
		if len(s.cfg.Images) > 0 {
			have = "this server has " + strings.Join(slices.Sorted(maps.Keys(s.cfg.Images)), ", ")
		}
		return bad(have, "there is no image %.100q", o.Image)
	}
	ttl := s.cfg.TTL
	if o.TTLSeconds != 0 {
		if o.TTLSeconds < 1 || o.TTLSeconds > s.cfg.MaxTTL.Seconds() {
			return bad(fmt.Sprintf("want 1 to %.0f", s.cfg.MaxTTL.Seconds()), "ttl_seconds is %v", o.TTLSeconds)
		}
		ttl = time.Duration(o.TTLSeconds * float64(time.Second))
	}
	reach := network.Config{Policy: policy}
	if s.cfg.Services != nil {
		var err error
		if reach.Services, err = s.cfg.Services(policy); err != nil {
			return machine.Request{}, err
		}
	}
	return machine.Request{CPUs: o.CPUs, MemoryMiB: o.MemoryMiB, Image: img, Containers: o.Containers, Network: reach, Labels: []string{"api"},
		Deadline: time.Now().Add(ttl), NoWait: true}, nil
}

// make claims a machine and watches over it until it is released.
func (s *Server) make(ctx context.Context, o owner, want order, r machine.Request) (*owned, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, machine.ErrClosed
	}
	s.wg.Add(1) // before Close can wait
	s.mu.Unlock()
	if err := s.books.take(o, use{vms: 1}); err != nil {
		s.wg.Done()
		return nil, err
	}
	vm, err := s.cfg.Machines.Claim(ctx, r)
	if err != nil {
		s.books.give(o, use{vms: 1})
		s.wg.Done()
		return nil, err
	}
	m := &owned{owner: o, name: cmp.Or(want.Name, want.OtherName), kind: want.Type, policy: r.Network.Policy, history: s.cfg.History.Open(vm.ID())}
	s.mu.Lock() // the end of one that is lost at once waits for it
	m.Session = session.Open(vm, func(*session.Session) { s.after(m) })
	s.vms[vm.ID()] = m
	closed := s.closed
	s.mu.Unlock()
	if closed {
		m.End("the server ended")
		return nil, machine.ErrClosed
	}
	s.log.Info("VM made", "vm", vm.ID(), "name", m.name, "subject", o.subject, "delete_by", r.Deadline)
	return m, nil
}

// after is the end of a machine that was released.
func (s *Server) after(m *owned) {
	defer s.wg.Done()
	s.mu.Lock()
	reason, _ := m.Over()
	delete(s.vms, m.ID())
	s.gone = append(s.gone, ending{m.ID(), reason, m.owner, time.Now()})
	if len(s.gone) > maxGone {
		s.gone = slices.Delete(s.gone, 0, len(s.gone)-maxGone)
	}
	s.mu.Unlock()
	m.mu.Lock()
	held := m.held
	m.over = true
	m.mu.Unlock()
	held.vms = 1
	s.books.give(m.owner, held)
	s.log.Info("VM released", "vm", m.ID(), "reason", reason)
}

// owner is whose a machine of this id is or was, if it is one of ours.
func (s *Server) owner(id string) (owner, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, ok := s.vms[id]; ok {
		return m.owner, true
	}
	for _, e := range s.gone {
		if e.id == id {
			return e.owner, true
		}
	}
	return owner{}, false
}

// find returns a machine that a token allows. Those of others do not exist.
func (s *Server) find(g grant, id string) (*owned, error) {
	if err := g.machine(id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, ok := s.vms[id]; ok && g.sees(id, m.owner) {
		if reason, over := m.Over(); over {
			return nil, problem(http.StatusGone, "vm_gone", "make another one: POST /api/vms", "the VM %s is being released: %s", id, reason)
		}
		return m, nil
	}
	for _, e := range s.gone {
		if e.id == id && g.sees(id, e.owner) {
			return nil, problem(http.StatusGone, "vm_gone", "make another one: POST /api/vms", "the VM %s was released at %s: %s", id,
				e.at.UTC().Format(time.RFC3339), e.reason)
		}
	}
	return nil, problem(http.StatusNotFound, "no_such_vm", "GET /api/vms lists the VMs there are", "there is no VM %.100q", id)
}

// refused turns what the session says into an answer.
func (m *owned) refused(err error) error {
	var e *session.Error
	if !errors.As(err, &e) {
		return err
	}
	id := m.ID()
	say := func(status int, code, hint string) *Error {
		return problem(status, code, hint, "the VM %s: %s", id, e.Text)
	}
	switch e.Kind {
	case session.Changing:
		return say(http.StatusConflict, "vm_busy", "try again in a moment").later(time.Second)
	case session.Running:
		return say(http.StatusConflict, "vm_busy", "wait for what is running: a snapshot is taken between two commands").later(time.Second)
	case session.Full:
		return say(http.StatusTooManyRequests, "too_many_executions", "wait for some of them to end").later(time.Second)
	case session.BadName:
		return say(http.StatusBadRequest, "bad_request", "give another name, or none")
	case session.Taken:
		return say(http.StatusConflict, "name_taken", "choose another name")
	case session.Spent:
		return say(http.StatusTooManyRequests, "too_many_snapshots", "make a new VM")
	case session.NoSuch:
		return say(http.StatusNotFound, "no_such_snapshot", "GET /api/vms/"+id+"/snapshots lists them")
	}
	return say(http.StatusGone, "vm_gone", "make another one: POST /api/vms")
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, g grant) error {
	s.mu.Lock()
	var all []*owned
	for id, m := range s.vms {
		if g.sees(id, m.owner) {
			all = append(all, m)
		}
	}
	s.mu.Unlock()
	out := make([]view, len(all))
	for i, m := range all {
		out[i] = m.describe()
	}
	slices.SortFunc(out, func(a, b view) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	reply(w, http.StatusOK, map[string]any{"vms": out})
	return nil
}

func (s *Server) create(w http.ResponseWriter, r *http.Request, g grant) error {
	if err := g.everything(); err != nil {
		return err
	}
	var o order
	if err := read(r, &o, true); err != nil {
		return err
	}
	unhurried(w)
	req, err := s.request(o)
	if err != nil {
		return err
	}
	m, err := s.make(r.Context(), g.owner, o, req)
	if err != nil {
		return err
	}
	d := m.describe()
	token, err := Sign(s.cfg.Secret, Grant{Subject: g.subject, VM: d.ID, parent: g.id}, max(time.Until(d.DeleteBy), time.Second))
	if err != nil {
		return errors.Join(err, m.Release(r.Context(), "its token could not be made"))
	}
	w.Header().Set("Location", "/api/vms/"+d.ID)
	reply(w, http.StatusCreated, struct {
		view
		Token   string    `json:"token"` // good for this machine alone
		Expires time.Time `json:"token_expires_at"`
	}{d, token.Token, d.DeleteBy})
	return nil
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, g grant) error {
	m, err := s.find(g, r.PathValue("id"))
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, m.describe())
	return nil
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request, g grant) error {
	m, err := s.find(g, r.PathValue("id"))
	if err != nil {
		return err
	}
	unhurried(w)
	if err := m.Release(r.Context(), "it was deleted"); err != nil {
		return err
	}
	reply(w, http.StatusOK, map[string]any{"id": m.ID(), "status": machine.Released})
	return nil
}

func (s *Server) snapshots(w http.ResponseWriter, r *http.Request, g grant) error {
	m, err := s.find(g, r.PathValue("id"))
	if err != nil {
		return err
	}
	out := []shot{}
	for _, x := range m.Snapshots() {
		out = append(out, m.shot(x))
	}
	reply(w, http.StatusOK, map[string]any{"snapshots": out})
	return nil
}

func (s *Server) snapshot(w http.ResponseWriter, r *http.Request, g grant) error {
	var in struct {
		Name string `json:"name"`
	}
	m, err := s.find(g, r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := read(r, &in, true); err != nil {
		return err
	}
	unhurried(w)
	// Until it is there nobody knows how large it is: as large as the memory, as if
	// all of it were in use.
	held := use{shots: 1, bytes: int64(m.Record().MemoryMiB) << 20}
	if err := s.books.take(m.owner, held); err != nil {
		return err
	}
	x, err := m.Snapshot(r.Context(), in.Name)
	if err != nil {
		s.books.give(m.owner, held)
		return m.refused(err)
	}
	s.books.give(m.owner, use{bytes: held.bytes - x.Bytes})
	held.bytes = x.Bytes
	m.mu.Lock()
	over := m.over
	if !over {
		m.held.add(held, 1)
	}
	m.mu.Unlock()
	if over {
		s.books.give(m.owner, held)
		return m.lost(machine.ErrClosed)
	}
	reply(w, http.StatusCreated, m.shot(x))
	return nil
}

func (s *Server) rollback(w http.ResponseWriter, r *http.Request, g grant) error {
	var in struct {
		Snapshot string `json:"snapshot_id"` // or its name
	}
	m, err := s.find(g, r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := read(r, &in, false); err != nil {
		return err
	}
	unhurried(w)
	began := time.Now()
	x, err := m.Rollback(r.Context(), in.Snapshot)
	if err != nil {
		return m.refused(err)
	}
	m.history.Changed("a rollback")
	reply(w, http.StatusOK, map[string]any{"vm_id": m.ID(), "snapshot_id": x.ID, "name": x.Name, "duration_ms": time.Since(began).Milliseconds()})
	return nil
}

// unhurried lifts the server's timeouts off a request that may take long, once
// its body is read. That for reading has to go as well: it would cancel the
// request's context while its answer is being made.
func unhurried(w http.ResponseWriter) {
	c := http.NewResponseController(w)
	c.SetReadDeadline(time.Time{})
	c.SetWriteDeadline(time.Time{})
}
