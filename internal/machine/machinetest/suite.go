package machinetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/machine"
)

// Suite is what every [machine.Host] passes, [Host] included.
type Suite struct {
	// New returns a host for so many machines of the default size at once, which
	// the test ends.
	New func(t *testing.T, most int) machine.Host
	// Kill ends a machine as if something had gone wrong with it.
	Kill func(machine.Machine)
}

// Run tests a host.
func Run(t *testing.T, s Suite) {
	t.Run("Life", s.life)
	t.Run("Room", s.room)
	t.Run("Lost", s.lost)
	t.Run("Deadline", s.deadline)
	t.Run("Snapshots", s.snapshots)
	t.Run("Exports", s.exports)
}

func claim(t *testing.T, h machine.Host, r machine.Request) machine.Machine {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	m, err := h.Claim(ctx, r)
	if err != nil {
		t.Fatalf("Claim: %v", err)
	}
	cancel() // it has no hold on the machine any more
	return m
}

func say(t *testing.T, m machine.Machine, text string) {
	t.Helper()
	var out bytes.Buffer
	end, err := m.Client().Exec(t.Context(), guest.Cmd{Argv: []string{"echo", text}, Stdout: &out})
	if err != nil || !end.OK() || out.String() != text+"\n" {
		t.Errorf("echo %s: %q, %v, %v", text, out.String(), end, err)
	}
}

func release(t *testing.T, m machine.Machine) {
	t.Helper()
	if err := m.Release(t.Context()); err != nil {
		t.Errorf("Release: %v", err)
	}
}

func (s Suite) life(t *testing.T) {
	h := s.New(t, 4)
	m := claim(t, h, machine.Request{Labels: []string{"ubuntu-latest"}})
	is := func(when string, state, outcome machine.State, reason string) {
		t.Helper()
		x := m.Session()
		if x.ID != m.ID() || x.State != state || x.Outcome != outcome || !strings.Contains(x.Reason, reason) || (reason == "") != (x.Reason == "") {
			t.Errorf("%s: %+v; want %s, outcome %q, reason %q", when, x, state, outcome, reason)
		}
	}
	is("claimed", machine.Created, "", "")
	if x := m.Session(); x.Driver == "" || x.Labels[0] != "ubuntu-latest" || x.CPUs == 0 || x.MemoryMiB == 0 || x.Leased.IsZero() ||
		time.Until(x.DeleteBy) < time.Hour {
		t.Errorf("%+v", x)
	}
	say(t, m, "hello")
	m.SetStep(3)
	m.Begin()
	is("begun", machine.Executing, "", "")
	m.End(t.Context(), true, "")
	is("ended", machine.Completed, "", "")
	m.Begin()
	m.End(t.Context(), false, "too late")
	is("ended twice", machine.Completed, "", "")
	if m.Err() != nil || m.Fate() != "" {
		t.Errorf("it lives: %v, %q", m.Err(), m.Fate())
	}
	release(t, m)
	release(t, m)
	is("released", machine.Released, machine.Completed, "")
	select {
	case <-m.Lost():
		t.Error("a machine that was released is lost")
	default:
	}
	if _, err := m.Client().Exec(t.Context(), guest.Cmd{Argv: []string{"true"}}); err == nil {
		t.Error("a machine that was released runs commands")
	}
	m = claim(t, h, machine.Request{})
	m.Begin()
	m.End(t.Context(), false, "exit 3")
	release(t, m)
	is("failed", machine.Released, machine.Failed, "exit 3")
	m = claim(t, h, machine.Request{})
	release(t, m)
	is("given back without a word", machine.Released, machine.Failed, "before its work had ended")
	if x := h.Stats(); x.Leased != 0 || x.Claims != 3 || x.Completed != 1 || x.Failed != 2 {
		t.Errorf("%+v", x)
	}
	if all := h.Sessions(); len(all) != 3 || all[0].Outcome != machine.Completed || all[2].State != machine.Released {
		t.Errorf("%+v", all)
	}
}

func (s Suite) room(t *testing.T) {
	h := s.New(t, 1)
	if _, err := h.Claim(t.Context(), machine.Request{MemoryMiB: 1 << 30}); !errors.Is(err, machine.ErrTooLarge) {
		t.Errorf("a machine larger than the host: %v", err)
	}
	first := claim(t, h, machine.Request{})
	if _, err := h.Claim(t.Context(), machine.Request{NoWait: true}); !errors.Is(err, machine.ErrBusy) {
		t.Errorf("NoWait: %v", err)
	}
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := h.Claim(ctx, machine.Request{Waits: func() { cancel(gone) }}); !errors.Is(err, gone) {
		t.Errorf("a claim that is cancelled while it waits: %v", err)
	}
	waits, got := make(chan struct{}), make(chan error, 1)
	var second machine.Machine
	go func() {
		var err error
		second, err = h.Claim(context.Background(), machine.Request{Waits: func() { close(waits) }})
		got <- err
	}()
	<-waits
	select {
	case err := <-got:
		t.Fatalf("a second machine where there is room for one: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	release(t, first)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	say(t, second, "me")
	release(t, second)
}

func (s Suite) lost(t *testing.T) {
	h := s.New(t, 1)
	m := claim(t, h, machine.Request{})
	m.Begin()
	s.Kill(m)
	if m.Fate() == "" || strings.Contains(m.Fate(), "\n") {
		t.Errorf("its fate: %q", m.Fate())
	}
	select {
	case <-m.Lost():
	case <-time.After(30 * time.Second):
		t.Fatal("it is not lost")
	}
	if m.Err() == nil {
		t.Error("lost without a reason")
	}
	if _, err := m.Snapshot(t.Context()); err == nil {
		t.Error("a snapshot of a machine that is lost")
	}
	m.End(t.Context(), true, "")
	release(t, m)
	if x := m.Session(); x.Outcome != machine.Failed || x.Reason == "" {
		t.Errorf("%+v", x)
	}
	release(t, claim(t, h, machine.Request{NoWait: true})) // its room is free
}

func (s Suite) deadline(t *testing.T) {
	m := claim(t, s.New(t, 1), machine.Request{Deadline: time.Now().Add(300 * time.Millisecond)})
	select {
	case <-m.Lost():
	case <-time.After(30 * time.Second):
		t.Fatal("its time is over, and it lives")
	}
	if m.Err() == nil {
		t.Error("no reason")
	}
	release(t, m)
}

func (s Suite) snapshots(t *testing.T) {
	h := s.New(t, 2)
	m, other := claim(t, h, machine.Request{}), claim(t, h, machine.Request{})
	c, err := m.Snapshot(t.Context())
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("this host has no snapshots")
	}
	if err != nil || c.ID == "" {
		t.Fatalf("%+v, %v", c, err)
	}
	say(t, m, "it goes on")
	id := m.ID()
	if err := m.Rollback(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if m.ID() != id || m.Err() != nil {
		t.Errorf("after a rollback it is %s: %v", m.ID(), m.Err())
	}
	say(t, m, "again")
	later, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Forget(c); err != nil { // the machine came from it
		t.Error(err)
	}
	if err := m.Rollback(t.Context(), c); err == nil {
		t.Error("a rollback to a checkpoint that was forgotten")
	}
	if err := m.Rollback(t.Context(), later); err != nil {
		t.Errorf("to a checkpoint that was taken before the one it stands on was forgotten: %v", err)
	}
	say(t, m, "and again")
	if err := m.Forget(later); err != nil {
		t.Error(err)
	}
	if err := m.Forget(later); err == nil {
		t.Error("a checkpoint was forgotten twice")
	}
	say(t, m, "still")
	c = later
	if err := other.Rollback(t.Context(), c); err == nil {
		t.Error("a rollback to another machine's checkpoint")
	}
	say(t, other, "as before")
	release(t, m)
	if _, err := m.Snapshot(t.Context()); err == nil {
		t.Error("a snapshot of a machine that was released")
	}
	if err := m.Rollback(t.Context(), c); err == nil {
		t.Error("a rollback of a machine that was released")
	}
	release(t, other)
}

// What is exported can be begun with, more than once, also after its machine is gone;
// what is of another origin cannot.
func (s Suite) exports(t *testing.T) {
	h := s.New(t, 3)
	m := claim(t, h, machine.Request{})
	c, err := m.Snapshot(t.Context())
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("the host has no snapshots")
	}
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := m.Export(t.Context(), machine.Checkpoint{ID: "another"}, &b); err == nil || errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a checkpoint that there is none of: %v", err)
	}
	err = m.Export(t.Context(), c, &b)
	if errors.Is(err, errors.ErrUnsupported) {
		release(t, m)
		t.Skip("the host exports nothing")
	}
	if err != nil {
		t.Fatal(err)
	}
	say(t, m, "it goes on")
	saved := machine.Saved{ID: "p", Origin: m.Origin(), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }}
	if o := saved.Origin; o.Driver == "" || o.Image == "" || o.CPUs == 0 || o.MemoryMiB == 0 || o.Template == "" {
		t.Errorf("%+v", o)
	}
	release(t, m)
	one, two := claim(t, h, machine.Request{From: &saved}), claim(t, h, machine.Request{From: &saved})
	if one.ID() == two.ID() || one.ID() == m.ID() || one.Origin() != saved.Origin {
		t.Errorf("%s and %s of %s, %+v", one.ID(), two.ID(), m.ID(), one.Origin())
	}
	release(t, one)
	say(t, two, "the other goes on")
	again, err := two.Snapshot(t.Context())
	if err == nil {
		err = two.Rollback(t.Context(), again)
	}
	if err != nil {
		t.Error(err)
	}
	say(t, two, "put back")
	release(t, two)
	for _, change := range []func(*machine.Origin){func(o *machine.Origin) { o.Driver = "other" }, func(o *machine.Origin) { o.Template = "other" }} {
		other := saved
		change(&other.Origin)
		if _, err := h.Claim(t.Context(), machine.Request{From: &other}); !errors.Is(err, machine.ErrOrigin) {
			t.Errorf("of %+v: %v", other.Origin, err)
		}
	}
	broken := saved
	broken.ID = "broken"
	broken.Open = func() (io.ReadCloser, error) { return nil, errors.New("damaged") }
	if _, err := h.Claim(t.Context(), machine.Request{From: &broken}); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("what cannot be read: %v", err)
	}
	if x := h.Stats(); x.Leased != 0 {
		t.Errorf("%+v", x)
	}
}
