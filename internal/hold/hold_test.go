package hold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/archive"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/machine/machinetest"
	"github.com/hearth-ci/hearth/internal/session"
)

// held starts a holder and returns a client, and what ends it.
func held(t *testing.T) (*Client, *machinetest.Machine, string, func() error) {
	t.Helper()
	return heldBy(t, &Server{})
}

func heldBy(t *testing.T, s *Server) (*Client, *machinetest.Machine, string, func() error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "hold")
	if err != nil {
		t.Fatal(err)
	}
	host := &machinetest.Host{}
	m, err := host.Claim(t.Context(), machine.Request{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		s.VM = m
		done <- s.Serve(ctx, dir, func() error { close(ready); return nil })
	}()
	<-ready
	ended := false
	wait := func() error {
		ended = true
		select {
		case err := <-done:
			return err
		case <-time.After(30 * time.Second):
			t.Fatal("the holder does not end")
			return nil
		}
	}
	t.Cleanup(func() {
		cancel()
		if !ended {
			wait()
		}
		if s := host.Stats(); s.Leased != 0 || s.Completed+s.Failed != 1 {
			t.Errorf("released %d times", s.Completed+s.Failed)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
			t.Error("left behind:", left)
		}
		os.RemoveAll(dir)
	})
	c, err := Open(dir, "m")
	if err != nil {
		t.Fatal(err)
	}
	return c, m.(*machinetest.Machine), dir, wait
}

func run(t *testing.T, c *Client, in io.Reader, argv ...string) (string, string, guest.Exit) {
	t.Helper()
	var out, errs bytes.Buffer
	end, err := c.Exec(t.Context(), guest.Cmd{Argv: argv, Stdin: in, Stdout: &out, Stderr: &errs}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), end
}

func TestExec(t *testing.T) {
	c, _, _, _ := held(t)
	out, errs, end := run(t, c, nil, "sh", "-c", "cat; echo out; echo err >&2; exit 3")
	if out != "out\n" || errs != "err\n" || end.Code != 3 {
		t.Errorf("%q %q %+v", out, errs, end)
	}
	big := bytes.Repeat([]byte("0123456789abcde\n"), 200<<10)
	var back bytes.Buffer
	if _, err := c.Exec(t.Context(), guest.Cmd{Argv: []string{"cat"}, Stdin: bytes.NewReader(big), Stdout: &back}, nil); err != nil ||
		!bytes.Equal(back.Bytes(), big) {
		t.Errorf("%v: %d bytes came back of %d", err, back.Len(), len(big))
	}
	// Input that nobody takes does not keep the end from coming.
	if _, _, end := run(t, c, bytes.NewReader(big), "sh", "-c", "exit 4"); end.Code != 4 {
		t.Error(end)
	}
	var f *Fault
	if _, err := c.Exec(t.Context(), guest.Cmd{Argv: []string{"nosuchprogram"}}, nil); !errors.As(err, &f) || !f.Start() {
		t.Error(err)
	}
	if end, err := c.Exec(t.Context(), guest.Cmd{Argv: []string{"sleep", "60"}, Timeout: 50 * time.Millisecond}, nil); err != nil || !end.TimedOut {
		t.Error(end, err)
	}
	// Output that cannot be written is the client's own error.
	if _, err := c.Exec(t.Context(), guest.Cmd{Argv: []string{"echo"}, Stdout: broken{}}, nil); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Error(err)
	}
	if st, err := c.Status(t.Context()); err != nil || st.ID != "m1" || st.Holder != os.Getpid() {
		t.Error(st, err)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("no room") }

// A client that goes away takes its command with it, also one that does not read
// its input.
func TestClientGone(t *testing.T) {
	c, _, _, _ := held(t)
	ctx, cancel := context.WithCancel(t.Context())
	file := filepath.Join(t.TempDir(), "pid")
	done := make(chan error, 1)
	go func() {
		_, err := c.Exec(ctx, guest.Cmd{Argv: []string{"sh", "-c", "echo $$ > " + file + ".new; mv " + file + ".new " + file + "; exec sleep 600"},
			Stdin: endless{}}, nil)
		done <- err
	}()
	var pid string
	for pid == "" {
		b, _ := os.ReadFile(file)
		pid = strings.TrimSpace(string(b))
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if b, err := os.ReadFile("/proc/" + pid + "/comm"); err != nil || string(b) != "sleep\n" {
			break
		}
		if time.Now().After(until) {
			t.Fatal("the command still runs")
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestSnapshots(t *testing.T) {
	c, _, _, _ := held(t)
	for _, want := range []string{"clean", "s2", "s3"} {
		ask := ""
		if want == "clean" {
			ask = want
		}
		if got, err := c.Snapshot(t.Context(), ask); err != nil || got != want {
			t.Error(got, err)
		}
	}
	var f *Fault
	if _, err := c.Snapshot(t.Context(), "clean"); !errors.As(err, &f) || !f.Usage() {
		t.Error(err)
	}
	if err := c.Rollback(t.Context(), "clean"); err != nil {
		t.Error(err)
	}
	if err := c.Rollback(t.Context(), "other"); !errors.As(err, &f) || !f.Usage() || !strings.Contains(err.Error(), "clean, s2, s3") {
		t.Error(err)
	}
	if st, err := c.Status(t.Context()); err != nil || !slices.Equal(st.Snapshots, []string{"clean", "s2", "s3"}) {
		t.Error(st, err)
	}
}

// A snapshot suffers no command beside it, and no command a snapshot: each is
// told so, and both come once the other has ended.
func TestSnapshotIsTakenAlone(t *testing.T) {
	c, v, _, _ := held(t)
	busy := func(what string, err error) {
		t.Helper()
		var f *Fault
		if !errors.As(err, &f) || f.Kind != faultBusy {
			t.Errorf("%s: %v, want busy", what, err)
		}
	}
	in, feed := io.Pipe()
	said := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := c.Exec(context.Background(), guest.Cmd{Argv: []string{"sh", "-c", "echo up; cat"}, Stdin: in, Stdout: once{said}}, nil)
		ended <- err
	}()
	<-said
	_, err := c.Snapshot(t.Context(), "")
	busy("a snapshot beside a command", err)
	busy("a rollback beside a command", c.Rollback(t.Context(), "s1"))
	feed.Close()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	taking, take := make(chan struct{}), make(chan struct{})
	v.OnSnapshot(func() error { close(taking); <-take; return nil })
	go func() {
		_, err := c.Snapshot(context.Background(), "s1")
		ended <- err
	}()
	select {
	case <-taking:
	case err := <-ended:
		t.Fatal(err)
	}
	_, err = c.Exec(t.Context(), guest.Cmd{Argv: []string{"true"}}, nil)
	busy("a command beside a snapshot", err)
	_, err = c.Snapshot(t.Context(), "s2")
	busy("a snapshot beside a snapshot", err)
	close(take)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if _, _, end := run(t, c, nil, "true"); end.Code != 0 {
		t.Error(end)
	}
}

// Whoever has heard that a command ended may have a snapshot at once.
func TestSnapshotAfterACommand(t *testing.T) {
	c, _, _, _ := held(t)
	for range session.MaxSnapshots {
		run(t, c, nil, "true")
		if _, err := c.Snapshot(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	}
}

// once closes its channel with the first byte.
type once struct{ said chan struct{} }

func (o once) Write(p []byte) (int, error) {
	select {
	case <-o.said:
	default:
		close(o.said)
	}
	return len(p), nil
}

func TestEnds(t *testing.T) {
	t.Run("removed", func(t *testing.T) {
		c, v, dir, wait := held(t)
		run(t, c, nil, "true")
		if err := c.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := wait(); err != nil || v.Session().Outcome != machine.Completed {
			t.Error(err, v.Session())
		}
		if _, err := Open(dir, "m1"); !errors.Is(err, ErrNone) {
			t.Error(err)
		}
		if _, err := c.Status(t.Context()); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
	})
	t.Run("lost", func(t *testing.T) {
		c, v, _, wait := held(t)
		done := make(chan error, 1)
		var out notify = make(chan struct{}, 1)
		go func() {
			_, err := c.Exec(context.Background(), guest.Cmd{Argv: []string{"sh", "-c", "echo; exec sleep 600"}, Stdout: out}, nil)
			done <- err
		}()
		<-out
		v.Lose(errors.New("qemu was killed"))
		if err := <-done; err == nil {
			t.Error("a command of a machine that died has an end")
		}
		if err := wait(); err == nil || !strings.Contains(err.Error(), "qemu was killed") {
			t.Error(err)
		}
	})
}

type notify chan struct{}

func (n notify) Write(p []byte) (int, error) {
	select {
	case n <- struct{}{}:
	default:
	}
	return len(p), nil
}

func TestDead(t *testing.T) {
	dir, err := os.MkdirTemp("", "hold")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: Socket(dir, "mdead")})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	os.WriteFile(filepath.Join(dir, "mdead.log"), []byte("panic: oh\n\x1b[2J"), 0o600)
	c, err := Open(dir, "mdead")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(t.Context(), guest.Cmd{Argv: []string{"true"}}, nil); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	list, err := List(t.Context(), dir)
	if err != nil || len(list) != 1 || list[0].State != Dead || !strings.Contains(list[0].Said, "panic: oh") || strings.Contains(list[0].Said, "\x1b") {
		t.Errorf("%+v %v", list, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Error("left behind:", left)
	}
	if list, err := List(t.Context(), filepath.Join(dir, "nosuch")); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
}

func TestArchiveThereAndBack(t *testing.T) {
	c, _, _, _ := held(t)
	src := filepath.Join(t.TempDir(), "tree")
	os.MkdirAll(filepath.Join(src, "a b", "empty"), 0o750)
	os.WriteFile(filepath.Join(src, "a b", "line\nend"), []byte("x"), 0o640)
	os.WriteFile(filepath.Join(src, "\xff"), []byte("not UTF-8"), 0o600)
	os.WriteFile(filepath.Join(src, "program"), bytes.Repeat([]byte("x"), 1<<20), 0o755)
	os.Symlink("program", filepath.Join(src, "link"))
	guestDir := t.TempDir()
	r, w := io.Pipe()
	go func() { w.CloseWithError(archive.Pack(w, src, "renamed")) }()
	if err := c.TarIn(t.Context(), guestDir, r, ""); err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	r, w = io.Pipe()
	go func() { w.CloseWithError(c.TarOut(t.Context(), guestDir, []string{"renamed"}, w)) }()
	if err := archive.Unpack(r, out, "renamed", "back"); err != nil {
		t.Fatal(err)
	}
	if got, want := tree(t, filepath.Join(out, "back")), tree(t, src); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if err := c.TarOut(t.Context(), guestDir, []string{"nosuch"}, io.Discard); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, _ := d.Info()
		rel, _ := filepath.Rel(dir, p)
		to, _ := os.Readlink(p)
		size := st.Size()
		if !st.Mode().IsRegular() {
			size = 0
		}
		fmt.Fprintf(&b, "%q %v %d %s\n", rel, st.Mode(), size, to)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A job's machine that waits to be looked at: commands stand where the failed step
// stood, the first answer counts, and the machine stays its owner's.
func TestPaused(t *testing.T) {
	host := &machinetest.Host{}
	for _, c := range []struct {
		answer Answer
		paused Paused
		bad    string
	}{
		{answer: Answer{}},
		{answer: Answer{Retry: true}},
		{answer: Answer{Retry: true, Rewind: true, Run: "echo"}, paused: Paused{Rewinds: true, Edits: true}},
		{answer: Answer{Retry: true, Rewind: true}, bad: "was not kept"},
		{answer: Answer{Retry: true, Run: "echo"}, bad: "is an action"},
		{answer: Answer{Rewind: true}, paused: Paused{Rewinds: true}, bad: "not run again"},
	} {
		dir, err := os.MkdirTemp("", "hold")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		m, err := host.Claim(t.Context(), machine.Request{})
		if err != nil {
			t.Fatal(err)
		}
		m.Begin()
		at := c.paused
		at.Run, at.Job, at.Step, at.Dir, at.Environ = "r1", "build", 3, dir, []string{"DEPTH=3", "TOKEN=hidden"}
		s := &Server{VM: m, Paused: &at}
		ready, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- s.Serve(t.Context(), dir, func() error { close(ready); return nil }) }()
		<-ready
		h, err := Open(dir, m.ID())
		if err != nil {
			t.Fatal(err)
		}
		st, err := h.Status(t.Context())
		if err != nil || st.Paused == nil || st.Paused.Job != "build" || st.Paused.Environ != nil {
			t.Errorf("%+v, %v", st.Paused, err)
		}
		var out bytes.Buffer
		cmd := guest.Cmd{Argv: []string{"/bin/sh", "-c", `echo "$DEPTH $OVER $(pwd)"`}, Env: []string{"OVER=it"}, Stdout: &out}
		if _, err := h.ExecInStep(t.Context(), cmd, nil); err != nil || out.String() != "3 it "+dir+"\n" {
			t.Errorf("in the step: %q, %v", out.String(), err)
		}
		out.Reset()
		if _, err := h.Exec(t.Context(), cmd, nil); err != nil || strings.Contains(out.String(), "3 it") {
			t.Errorf("beside it: %q, %v", out.String(), err)
		}
		err = h.Answer(t.Context(), c.answer)
		if c.bad != "" {
			if err == nil || !strings.Contains(err.Error(), c.bad) {
				t.Errorf("%+v: %v", c.answer, err)
			}
			c.answer = Answer{}
			err = h.Remove(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil || s.Answered() != c.answer {
			t.Errorf("%+v: answered %+v, %v", c.answer, s.Answered(), err)
		}
		if x := m.Session(); x.State != machine.Executing || m.Err() != nil {
			t.Errorf("the machine is %s: %v", x.State, m.Err())
		}
		m.End(t.Context(), true, "")
		if err := m.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
	c, _, _, _ := held(t)
	if err := c.Answer(t.Context(), Answer{}); err == nil || !strings.Contains(err.Error(), "no job waits") {
		t.Errorf("an answer to a machine of nobody's: %v", err)
	}
}
