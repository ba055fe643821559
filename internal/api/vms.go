package api

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/network"
)

const (
	maxSnapshots = 16 // of one machine
	maxGone      = 500
	releaseLimit = time.Minute
)

// owned is a VM that was made over the API, and whose it is.
type owned struct {
	server *Server
	vm     machine.Machine
	owner  owner
	name   string
	policy network.Policy

	ended   chan struct{} // closed by end
	endOnce sync.Once
	reason  string        // why, once ended is closed
	done    chan struct{} // closed when it is released
	err     error         // of the release, once done is closed

	mu        sync.Mutex
	running   int  // executions
	exclusive bool // a snapshot or a rollback is under way
	last      *int // exit code of the last execution
	shots     []*shot
	held      use  // of the snapshots
	over      bool // held was given back
}

// ending is what is remembered of a machine that is no more.
type ending struct {
	id, reason string
	owner      owner
	at         time.Time
}

type shot struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	VM         string    `json:"vm_id"`
	Created    time.Time `json:"created_at"`
	DurationMS int64     `json:"duration_ms"`
	Bytes      int64     `json:"bytes"` // on the server's disk

	point machine.Checkpoint
}

// session is a machine as the API shows it.
type session struct {
	ID        string        `json:"id"`
	Name      string        `json:"name,omitempty"`
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

func describe(x machine.Session) session {
	return session{ID: x.ID, Status: x.State, Outcome: x.Outcome, Reason: x.Reason, Driver: x.Driver, Image: x.Image, CPUs: x.CPUs, MemoryMiB: x.MemoryMiB,
		Labels: x.Labels, ReadyMS: float64(x.Ready.Microseconds()) / 1000, Created: x.Leased, Started: x.Started, Ended: x.Ended, Released: x.Released, DeleteBy: x.DeleteBy}
}

func (m *owned) describe() session {
	d := describe(m.vm.Session())
	m.mu.Lock()
	defer m.mu.Unlock()
	d.Name, d.Network, d.Running, d.Snapshots = m.name, m.policy.String(), m.running, len(m.shots)
	return d
}

// order is what machine is wanted.
type order struct {
	Name       string  `json:"name"`
	CPUs       int     `json:"cpus"`
	MemoryMiB  int     `json:"memory_mib"`
	Network    string  `json:"network"` // default, none, allow:HOST,HOST…
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
		if err := policy.Within(s.cfg.Network); err != nil {
			return machine.Request{}, problem(http.StatusForbidden, "network_refused", "ask for less, or have the server's api.network say more", "network: %v", err)
		}
	}
	if o.CPUs < 0 || o.MemoryMiB < 0 || o.MemoryMiB > 0 && o.MemoryMiB < 128 {
		return bad("leave them out for the default, or ask for 1 CPU and 128 MiB or more", "a VM of %d CPUs and %d MiB makes no sense", o.CPUs, o.MemoryMiB)
	}
	if len(o.Name) > 100 || strings.ContainsFunc(o.Name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return bad("at most 100 characters, none of them a control character", "the name is unusable")
	}
	ttl := s.cfg.TTL
	if o.TTLSeconds != 0 {
		if o.TTLSeconds < 1 || o.TTLSeconds > s.cfg.MaxTTL.Seconds() {
			return bad(fmt.Sprintf("want 1 to %.0f", s.cfg.MaxTTL.Seconds()), "ttl_seconds is %v", o.TTLSeconds)
		}
		ttl = time.Duration(o.TTLSeconds * float64(time.Second))
	}
	return machine.Request{CPUs: o.CPUs, MemoryMiB: o.MemoryMiB, Network: network.Config{Policy: policy}, Labels: []string{"api"}, Deadline: time.Now().Add(ttl), NoWait: true}, nil
}

// make claims a machine and watches over it until it is released.
func (s *Server) make(ctx context.Context, o owner, name string, r machine.Request) (*owned, error) {
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
	s.mu.Lock()
	m := &owned{server: s, vm: vm, owner: o, name: name, policy: r.Network.Policy, ended: make(chan struct{}), done: make(chan struct{})}
	s.vms[vm.ID()] = m
	closed := s.closed
	s.mu.Unlock()
	go m.watch()
	if closed {
		m.end("the server ended")
		return nil, machine.ErrClosed
	}
	s.log.Info("VM made", "vm", vm.ID(), "name", name, "subject", o.subject, "delete_by", r.Deadline)
	return m, nil
}

// watch releases the machine when it was ended, has died, or its time is over.
func (m *owned) watch() {
	s := m.server
	defer s.wg.Done()
	select {
	case <-m.ended:
	case <-m.vm.Lost():
		reason := "it was lost"
		if err := m.vm.Err(); err != nil {
			reason = err.Error()
		}
		m.end(reason)
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseLimit)
	defer cancel()
	if m.vm.Err() == nil {
		ok, why := true, ""
		m.mu.Lock()
		if m.last != nil && *m.last != 0 {
			ok, why = false, fmt.Sprintf("its last command ended with exit code %d", *m.last)
		}
		m.mu.Unlock()
		m.vm.End(ctx, ok, why)
	}
	m.err = m.vm.Release(ctx)
	if m.err != nil {
		s.log.Error("VM not released", "vm", m.vm.ID(), "err", m.err)
	}
	s.mu.Lock()
	delete(s.vms, m.vm.ID())
	s.gone = append(s.gone, ending{m.vm.ID(), m.reason, m.owner, time.Now()})
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
	s.log.Info("VM released", "vm", m.vm.ID(), "reason", m.reason)
	close(m.done)
}

// end has the machine released. The first reason counts.
func (m *owned) end(reason string) {
	m.endOnce.Do(func() {
		m.reason = reason
		close(m.ended)
	})
}

// release ends the machine and waits for it.
func (m *owned) release(ctx context.Context, reason string) error {
	m.end(reason)
	select {
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
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
		select {
		case <-m.ended:
			return nil, problem(http.StatusGone, "vm_gone", "make another one: POST /api/vms", "the VM %s is being released: %s", id, m.reason)
		default:
			return m, nil
		}
	}
	for _, e := range s.gone {
		if e.id == id && g.sees(id, e.owner) {
			return nil, problem(http.StatusGone, "vm_gone", "make another one: POST /api/vms", "the VM %s was released at %s: %s", id, e.at.UTC().Format(time.RFC3339), e.reason)
		}
	}
	return nil, problem(http.StatusNotFound, "no_such_vm", "GET /api/vms lists the VMs there are", "there is no VM %.100q", id)
}

// enter begins an execution, or an exclusive use that suffers none beside it.
func (m *owned) enter(exclusive bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !exclusive && m.running >= maxAtOnce {
		return problem(http.StatusTooManyRequests, "too_many_executions", "wait for some of them to end", "the VM %s is running %d programs, and may run no more", m.vm.ID(), m.running).later(time.Second)
	}
	if m.exclusive {
		return problem(http.StatusConflict, "vm_busy", "try again in a moment", "a snapshot or rollback of the VM %s is under way", m.vm.ID()).later(time.Second)
	}
	if exclusive && m.running > 0 {
		return problem(http.StatusConflict, "vm_busy", "wait for what is running: a snapshot is taken between two commands", "the VM %s is executing", m.vm.ID()).later(time.Second)
	}
	if exclusive {
		m.exclusive = true
	} else {
		m.running++
	}
	return nil
}

func (m *owned) leave(exclusive bool, code *int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if exclusive {
		m.exclusive = false
		return
	}
	m.running--
	if code != nil {
		m.last = code
	}
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
	out := make([]session, len(all))
	for i, m := range all {
		out[i] = m.describe()
	}
	slices.SortFunc(out, func(a, b session) int {
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
	m, err := s.make(r.Context(), g.owner, o.Name, req)
	if err != nil {
		return err
	}
	d := m.describe()
	token, err := Sign(s.cfg.Secret, Grant{Subject: g.subject, VM: d.ID, parent: g.id}, max(time.Until(d.DeleteBy), time.Second))
	if err != nil {
		return errors.Join(err, m.release(r.Context(), "its token could not be made"))
	}
	w.Header().Set("Location", "/api/vms/"+d.ID)
	reply(w, http.StatusCreated, struct {
		session
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
	if err := m.release(r.Context(), "it was deleted"); err != nil {
		return err
	}
	reply(w, http.StatusOK, map[string]any{"id": m.vm.ID(), "status": machine.Released})
	return nil
}

func (s *Server) snapshots(w http.ResponseWriter, r *http.Request, g grant) error {
	m, err := s.find(g, r.PathValue("id"))
	if err != nil {
		return err
	}
	m.mu.Lock()
	out := append([]*shot{}, m.shots...)
	m.mu.Unlock()
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
	if len(in.Name) > 100 || strings.ContainsFunc(in.Name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return problem(http.StatusBadRequest, "bad_request", "at most 100 characters, none of them a control character", "the snapshot's name is unusable")
	}
	unhurried(w)
	if err := m.enter(true); err != nil {
		return err
	}
	defer m.leave(true, nil)
	m.mu.Lock()
	taken := in.Name != "" && m.shot(in.Name) != nil
	n := len(m.shots)
	m.mu.Unlock()
	switch {
	case taken:
		return problem(http.StatusConflict, "name_taken", "choose another name", "the VM has a snapshot %q already", in.Name)
	case n >= maxSnapshots:
		return problem(http.StatusTooManyRequests, "too_many_snapshots", "make a new VM", "the VM has %d snapshots, and may have no more", n)
	}
	x := &shot{ID: "s" + strings.ToLower(rand.Text()[:12]), Name: in.Name, VM: m.vm.ID(), Created: time.Now().UTC()}
	if x.Name == "" {
		x.Name = x.ID
	}
	// Until it is there nobody knows how large it is: as large as the memory, as if
	// all of it were in use.
	held := use{shots: 1, bytes: int64(m.vm.Session().MemoryMiB) << 20}
	if err := s.books.take(m.owner, held); err != nil {
		return err
	}
	if x.point, err = m.vm.Snapshot(r.Context()); err != nil {
		s.books.give(m.owner, held)
		return err
	}
	x.DurationMS, x.Bytes = time.Since(x.Created).Milliseconds(), x.point.Bytes
	s.books.give(m.owner, use{bytes: held.bytes - x.Bytes})
	held.bytes = x.Bytes
	m.mu.Lock()
	over := m.over
	if !over {
		m.shots = append(m.shots, x)
		m.held.add(held, 1)
	}
	m.mu.Unlock()
	if over {
		s.books.give(m.owner, held)
		return m.lost(machine.ErrClosed)
	}
	reply(w, http.StatusCreated, x)
	return nil
}

// shot finds a snapshot by its id or name. m.mu must be held.
func (m *owned) shot(ref string) *shot {
	for _, x := range m.shots {
		if x.ID == ref || x.Name == ref {
			return x
		}
	}
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
	if err := m.enter(true); err != nil {
		return err
	}
	defer m.leave(true, nil)
	m.mu.Lock()
	x := m.shot(in.Snapshot)
	m.mu.Unlock()
	if x == nil {
		return problem(http.StatusNotFound, "no_such_snapshot", "GET /api/vms/"+m.vm.ID()+"/snapshots lists them", "the VM has no snapshot %q", in.Snapshot)
	}
	began := time.Now()
	// Once begun it is finished: half a rollback is a lost machine.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), releaseLimit)
	defer cancel()
	if err := m.vm.Rollback(ctx, x.point); err != nil {
		return err
	}
	reply(w, http.StatusOK, map[string]any{"vm_id": m.vm.ID(), "snapshot_id": x.ID, "name": x.Name, "duration_ms": time.Since(began).Milliseconds()})
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
