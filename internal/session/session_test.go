package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/machine/machinetest"
)

// open returns a session and its machine, which must be released when the test ends.
func open(t *testing.T) (*Session, *machinetest.Machine) {
	t.Helper()
	h := &machinetest.Host{}
	m, err := h.Claim(t.Context(), machine.Request{})
	if err != nil {
		t.Fatal(err)
	}
	s := Open(m, nil)
	t.Cleanup(func() {
		if err := s.Release(context.Background(), "the test is over"); err != nil {
			t.Error(err)
		}
		if left := h.Machines(); len(left) > 0 {
			t.Errorf("%d machines are left", len(left))
		}
	})
	return s, m.(*machinetest.Machine)
}

func want(t *testing.T, what string, k Kind, err error) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Kind != k || e.Text == "" {
		t.Errorf("%s: %v, want an Error of kind %d", what, err, k)
	}
}

// What has the machine for itself has it alone, and what is refused has done nothing.
func TestGate(t *testing.T) {
	s, m := open(t)
	_, leave, err := s.Enter()
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := s.Enter()
	if err != nil {
		t.Fatal("two commands at once:", err)
	}
	_, err = s.Snapshot(t.Context(), "a")
	want(t, "a snapshot beside commands", Running, err)
	leave()
	leave() // once is enough
	_, err = s.Rollback(t.Context(), "a")
	want(t, "a rollback beside a command", Running, err)
	other()

	taking, take, taken := make(chan struct{}), make(chan struct{}), make(chan error)
	m.OnSnapshot(func() error { close(taking); <-take; return nil })
	go func() {
		_, err := s.Snapshot(context.Background(), "a")
		taken <- err
	}()
	<-taking
	_, _, err = s.Enter()
	want(t, "a command beside a snapshot", Changing, err)
	_, err = s.Snapshot(t.Context(), "b")
	want(t, "a snapshot beside a snapshot", Changing, err)
	_, err = s.Rollback(t.Context(), "a")
	want(t, "a rollback beside a snapshot", Changing, err)
	close(take)
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
	// A snapshot that fails leaves the way free, and no snapshot.
	boom := errors.New("boom")
	m.OnSnapshot(func() error { return boom })
	if _, err := s.Snapshot(t.Context(), "c"); !errors.Is(err, boom) || len(s.Snapshots()) != 1 {
		t.Error(err, s.Snapshots())
	}
	if _, leave, err := s.Enter(); err != nil {
		t.Error("after a snapshot that failed:", err)
	} else {
		leave()
	}
}

func TestSnapshots(t *testing.T) {
	s, m := open(t)
	for _, bad := range []string{strings.Repeat("x", maxName+1), "a\nb", "\x1b[2J"} {
		_, err := s.Snapshot(t.Context(), bad)
		want(t, fmt.Sprintf("%.5q", bad), BadName, err)
	}
	_, err := s.Rollback(t.Context(), "")
	want(t, "no name", NoSuch, err)
	for _, c := range []struct{ name, id, called string }{
		{"", "s1", "s1"}, {"clean", "s2", "clean"}, {"s4", "s3", "s4"}, {"", "s5", "s5"},
	} {
		x, err := s.Snapshot(t.Context(), c.name)
		if err != nil || x.ID != c.id || x.Name != c.called || x.Created.IsZero() {
			t.Errorf("%q: %+v, %v; want %s called %s", c.name, x, err, c.id, c.called)
		}
	}
	for _, taken := range []string{"clean", "s1", "s2", "s4"} {
		_, err := s.Snapshot(t.Context(), taken)
		want(t, taken, Taken, err)
	}
	for _, ref := range []string{"clean", "s3"} {
		if _, err := s.Rollback(t.Context(), ref); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(m.RolledBack(), " "); got != "m1-c2 m1-c3" {
		t.Errorf("rolled back to %s", got)
	}
	_, err = s.Rollback(t.Context(), "nope")
	want(t, "nope", NoSuch, err)
	if !strings.Contains(fmt.Sprint(err), "it has s1, clean, s4, s5") {
		t.Error(err)
	}
	// Once begun a rollback is finished.
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Rollback(over, "clean"); err != nil {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	s, _ := open(t)
	var leaves []func()
	for range MaxCommands {
		_, leave, err := s.Enter()
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leave)
	}
	_, _, err := s.Enter()
	want(t, "one command more", Full, err)
	if n := s.Running(); n != MaxCommands {
		t.Errorf("%d are running", n)
	}
	for _, leave := range leaves {
		leave()
	}
	for range MaxSnapshots {
		if _, err := s.Snapshot(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	}
	_, err = s.Snapshot(t.Context(), "")
	want(t, "one snapshot more", Spent, err)
}

func TestOutcome(t *testing.T) {
	for name, c := range map[string]struct {
		ends   []guest.Exit
		want   machine.State
		reason string
	}{
		"nothing":     {nil, machine.Completed, ""},
		"mended":      {[]guest.Exit{{Code: 1}, {}}, machine.Completed, ""},
		"failed":      {[]guest.Exit{{}, {Code: 3}}, machine.Failed, "its last command ended with exit code 3"},
		"cancelled":   {[]guest.Exit{{}, {Code: 137, Signal: "SIGKILL", Cancelled: true}}, machine.Completed, ""},
		"timed out":   {[]guest.Exit{{Code: 137, TimedOut: true}}, machine.Failed, "its last command timed out"},
		"by a bullet": {[]guest.Exit{{Code: 139, Signal: "SIGSEGV"}}, machine.Failed, "its last command was ended by SIGSEGV"},
	} {
		s, m := open(t)
		s.Begin()
		if m.Session().State != machine.Executing {
			t.Errorf("%s: %s", name, m.Session().State)
		}
		for _, end := range c.ends {
			s.Ran(end)
		}
		if err := s.Release(t.Context(), "it was deleted"); err != nil {
			t.Error(err)
		}
		if r := s.Record(); r.State != machine.Released || r.Outcome != c.want || r.Reason != c.reason {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// However it ends: once, with the first reason, and nothing begins after it.
func TestEnds(t *testing.T) {
	t.Run("asked for", func(t *testing.T) {
		s, m := open(t)
		s.End("it was deleted")
		s.End("later")
		<-s.Done()
		if why, over := s.Over(); !over || why != "it was deleted" {
			t.Error(why, over)
		}
		_, _, err := s.Enter()
		want(t, "a command", Ended, err)
		_, err = s.Snapshot(t.Context(), "")
		want(t, "a snapshot", Ended, err)
		if m.Session().Outcome != machine.Completed {
			t.Errorf("%+v", m.Session())
		}
	})
	t.Run("lost", func(t *testing.T) {
		s, m := open(t)
		m.Lose(errors.New("qemu was killed"))
		<-s.Done()
		if why, over := s.Over(); !over || why != "qemu was killed" {
			t.Error(why, over)
		}
		if r := s.Record(); r.Outcome != machine.Failed || r.Reason != "qemu was killed" {
			t.Errorf("%+v", r)
		}
	})
	t.Run("its time is over", func(t *testing.T) {
		h := &machinetest.Host{}
		m, err := h.Claim(t.Context(), machine.Request{Deadline: time.Now().Add(time.Millisecond)})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan string, 1)
		<-Open(m, func(s *Session) { why, _ := s.Over(); ended <- why }).Done()
		if why := <-ended; why != "its time is over" || len(h.Machines()) > 0 {
			t.Error(why)
		}
	})
	t.Run("from many sides", func(t *testing.T) {
		s, m := open(t)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { s.Release(context.Background(), "one of many") })
			wg.Go(func() { m.Lose(errors.New("lost")) })
			wg.Go(func() {
				if _, leave, err := s.Enter(); err == nil {
					leave()
				}
			})
		}
		wg.Wait()
	})
}
