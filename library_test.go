package hearth_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth"
	"github.com/hearth-ci/hearth/internal/api"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image/imagetest"
	"github.com/hearth-ci/hearth/internal/machine/machinetest"
)

// local makes machines that are agents on this host: real programs, no VM. The
// workspace is where the guest has it, so what runs here does not use it.
type local struct {
	mu       sync.Mutex
	n        int
	live     int
	machines []*localMachine
	refuse   error

	unable, unableBack error // to make a snapshot, to go back to it
}

type localMachine struct {
	of      *local
	id      string
	client  *guest.Client
	dir     string
	lost    chan struct{}
	err     error
	stop    func()
	once    sync.Once
	actions []string // snapshots and rollbacks
}

func (l *local) Machine(_ context.Context, deadline time.Time) (hearth.Machine, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return nil, l.refuse
	}
	here, there := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); guest.Serve(ctx, there, guest.Options{}) }()
	c, err := guest.New(ctx, here)
	if err != nil {
		cancel()
		return nil, err
	}
	dir, err := os.MkdirTemp("", "hl")
	if err != nil {
		cancel()
		return nil, err
	}
	l.n++
	l.live++
	m := &localMachine{of: l, id: fmt.Sprintf("l%d", l.n), client: c, dir: dir, lost: make(chan struct{})}
	m.stop = func() { c.Close(); cancel(); there.Close(); <-done; os.RemoveAll(dir) }
	l.machines = append(l.machines, m)
	return m, nil
}

// here moves what belongs to the guest's home into the machine's directory.
func (m *localMachine) here(p string) string {
	if rest, ok := strings.CutPrefix(p, "/home/runner"); ok {
		return m.dir + rest
	}
	return p
}

func (m *localMachine) ID() string { return m.id }
func (m *localMachine) Exec(ctx context.Context, c hearth.Command) (hearth.Exit, error) {
	var argv, env []string
	for _, a := range c.Argv {
		argv = append(argv, m.here(a))
	}
	for _, kv := range c.Env {
		k, v, _ := strings.Cut(kv, "=")
		env = append(env, k+"="+m.here(v))
	}
	end, err := m.client.Exec(ctx, guest.Cmd{Argv: argv, Env: env, Dir: m.here(c.Dir), Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr, Timeout: c.Timeout,
		Grace: 100 * time.Millisecond})
	return hearth.Exit{Code: end.Code, TimedOut: end.TimedOut, Cancelled: end.Cancelled}, err
}
func (m *localMachine) Unpack(ctx context.Context, dir string, r io.Reader) error {
	return m.client.TarIn(ctx, m.here(dir), r, "")
}
func (m *localMachine) Pack(ctx context.Context, dir string, paths []string, w io.Writer) error {
	return m.client.TarOut(ctx, m.here(dir), paths, w)
}
func (m *localMachine) Snapshot(context.Context) (string, error) {
	m.actions = append(m.actions, "snapshot")
	return "s1", m.of.unable
}
func (m *localMachine) Rollback(_ context.Context, name string) error {
	m.actions = append(m.actions, "rollback "+name)
	return m.of.unableBack
}
func (m *localMachine) Lost() <-chan struct{} { return m.lost }
func (m *localMachine) Err() error {
	select {
	case <-m.lost:
		return m.err
	default:
		return nil
	}
}
func (m *localMachine) lose(err error) {
	m.err = err
	close(m.lost)
	m.client.Close()
}
func (m *localMachine) Close(context.Context) error {
	m.once.Do(func() {
		m.stop()
		m.of.mu.Lock()
		m.of.live--
		m.of.mu.Unlock()
	})
	return nil
}

func sessions(t *testing.T, most int) (*local, *hearth.Sessions) {
	t.Helper()
	l := &local{}
	s := hearth.NewSessions(l, time.Minute, most)
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if l.live != 0 {
			t.Errorf("%d machines are left", l.live)
		}
	})
	return l, s
}

func told(r hearth.Result) string {
	var b strings.Builder
	for _, s := range r.Steps {
		fmt.Fprintf(&b, "%s %s %s/%s %d\n", s.Phase, s.Name, s.Outcome, s.Conclusion, s.ExitCode)
	}
	return b.String() + string(r.Conclusion)
}

func TestWorkflows(t *testing.T) {
	step := func(name, run string) hearth.Step { return hearth.Step{Name: name, Run: run} }
	for _, c := range []struct {
		name string
		w    hearth.Workflow
		want string
	}{
		{"success", hearth.Workflow{Setup: []hearth.Step{step("a", "true")}, Steps: []hearth.Step{step("b", "true")}, Cleanup: []hearth.Step{step("c", "true")}},
			"setup a success/success 0\nsteps b success/success 0\ncleanup c success/success 0\nsuccess"},
		{"a step fails", hearth.Workflow{Steps: []hearth.Step{step("a", "exit 3"), step("b", "true")},
			Cleanup: []hearth.Step{step("c", "exit 4"), step("d", "true")}},
			"steps a failure/failure 3\nsteps b skipped/skipped 0\ncleanup c failure/failure 4\ncleanup d success/success 0\nfailure"},
		{"setup fails", hearth.Workflow{Setup: []hearth.Step{step("a", "false")}, Steps: []hearth.Step{step("b", "true")},
			Cleanup: []hearth.Step{step("c", "true")}},
			"setup a failure/failure 1\nsteps b skipped/skipped 0\ncleanup c success/success 0\nfailure"},
		{"continue on error", hearth.Workflow{Steps: []hearth.Step{{Name: "a", Run: "exit 3", ContinueOnError: true}, step("b", "true")}},
			"steps a failure/success 3\nsteps b success/success 0\nsuccess"},
		{"the cleanup fails", hearth.Workflow{Steps: []hearth.Step{step("a", "true")}, Cleanup: []hearth.Step{step("c", "exit 9")}},
			"steps a success/success 0\ncleanup c failure/failure 9\nfailure"},
		{"the first failing command ends a step", hearth.Workflow{Steps: []hearth.Step{step("a", "false | true\necho not reached")}},
			"steps a failure/failure 1\nfailure"},
		{"a step's timeout", hearth.Workflow{Steps: []hearth.Step{{Name: "a", Run: "exec sleep 60", Timeout: 100 * time.Millisecond}, step("b", "true")},
			Cleanup: []hearth.Step{step("c", "true")}},
			"steps a timed_out/timed_out 143\nsteps b skipped/skipped 0\ncleanup c success/success 0\nfailure"},
		{"the workflow's timeout", hearth.Workflow{Timeout: 500 * time.Millisecond, Steps: []hearth.Step{step("a", "exec sleep 60"), step("b", "true")},
			Cleanup: []hearth.Step{step("c", "true")}},
			"steps a timed_out/timed_out 143\nsteps b skipped/skipped 0\ncleanup c success/success 0\ntimed_out"},
		{"a name from the script", hearth.Workflow{Steps: []hearth.Step{{Run: "\n  true\n  true"}}}, "steps true success/success 0\nsuccess"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, s := sessions(t, 0)
			r, err := (&hearth.Executor{Sessions: s}).Run(t.Context(), c.w, hearth.Context{})
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.ReplaceAll(told(r), "/home/runner", ""); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if (r.Conclusion == hearth.Success) != r.OK() {
				t.Error("OK")
			}
			if r.ID == "" || r.Session == "" || r.Started.IsZero() || r.Duration <= 0 {
				t.Errorf("%+v", r)
			}
			st := s.Stats()
			if st.Live != 0 || st.Created != 1 || (st.Completed == 1) != r.OK() || st.Completed+st.Failed != 1 {
				t.Errorf("%+v", st)
			}
			if l := s.List(); len(l) != 1 || l[0].State != hearth.SessionReleased {
				t.Errorf("%+v", l)
			}
		})
	}
}

func TestSnapshots(t *testing.T) {
	l, s := sessions(t, 0)
	r, err := (&hearth.Executor{Sessions: s}).Run(t.Context(), hearth.Workflow{Steps: []hearth.Step{
		{Name: "good", Run: "true", Snapshot: true}, {Name: "bad", Run: "false", Snapshot: true, ContinueOnError: true}}}, hearth.Context{})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(l.machines[0].actions, ", "); got != "snapshot, snapshot, rollback s1" {
		t.Error(got)
	}
	if r.Steps[0].RolledBack || !r.Steps[1].RolledBack || !r.OK() {
		t.Errorf("%+v", r)
	}
}

// A machine that cannot be kept, or put back, as the workflow asks for is no failure
// of the workflow, and nothing more is run in it.
func TestSnapshotsThatFail(t *testing.T) {
	l, s := sessions(t, 0)
	w := hearth.Workflow{Steps: []hearth.Step{{Name: "a", Run: "false", Snapshot: true, ContinueOnError: true}, {Name: "b", Run: "true"}}}
	for _, c := range []struct {
		unable, back error
		want         string
	}{
		{errors.New("no room"), nil, "steps a failure/failure -1\nsteps b skipped/skipped 0\n"},
		{nil, errors.New("it is gone"), "steps a failure/failure -1\nsteps b skipped/skipped 0\n"},
	} {
		l.unable, l.unableBack = c.unable, c.back
		r, err := (&hearth.Executor{Sessions: s}).Run(t.Context(), w, hearth.Context{})
		if told(r) != c.want || err == nil || !strings.Contains(err.Error(), cmp.Or(c.unable, c.back).Error()) {
			t.Errorf("%v\n%s", err, told(r))
		}
	}
}

// Steps have what the steps of any job have: files and commands to talk back
// through, masks among them. What a program gives is no template.
func TestStepsTalkBack(t *testing.T) {
	_, s := sessions(t, 0)
	r, err := (&hearth.Executor{Sessions: s}).Run(t.Context(), hearth.Workflow{Name: "${{ github.sha }}", Steps: []hearth.Step{
		{Name: "a", Run: "echo A=b >> $GITHUB_ENV; mkdir bin; printf '#!/bin/sh\necho mine' > bin/tool; chmod +x bin/tool; echo $PWD/bin >> $GITHUB_PATH"},
		{Name: "b", Run: "echo $A; tool; echo '::add-mask::t0p s3cret'; echo the t0p s3cret"},
		{Name: "c ${{ github.sha }}", Run: "echo \"$X\" '${{ github.sha }}'", Env: map[string]string{"X": "${{ github.sha }}"}},
		{Name: "d", Run: "echo '::group::g'; echo '::error::bad'; printf 'no end of line' >&2"},
	}}, hearth.Context{SHA: "0123"})
	if err != nil || !r.OK() {
		t.Fatal(err, told(r))
	}
	for i, want := range []string{"", "b\nmine\nthe ***\n", "${{ github.sha }} ${{ github.sha }}\n", "##[error]bad\nno end of line\n"} {
		if got := r.Steps[i].Output; got != want {
			t.Errorf("step %d: %q, want %q", i+1, got, want)
		}
	}
	if r.Steps[2].Name != "c ${{ github.sha }}" {
		t.Error(r.Steps[2].Name)
	}
}

// The cleanup has a time of its own: neither the end of the workflow's nor a caller
// who waits no longer cuts it short once it has begun.
func TestCleanupHasItsTime(t *testing.T) {
	_, s := sessions(t, 0)
	w := hearth.Workflow{Timeout: 2 * time.Second, Steps: []hearth.Step{{Name: "a", Run: "true"}}, Cleanup: []hearth.Step{{Name: "c", Run: "echo; sleep 2.2"}}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	e := &hearth.Executor{Sessions: s, Output: writer(func(p []byte) (int, error) { cancel(); return len(p), nil })}
	if r, err := e.Run(ctx, w, hearth.Context{}); err != nil || told(r) != "steps a success/success 0\ncleanup c success/success 0\nsuccess" {
		t.Error(err, told(r))
	}
}

// What the program cannot take is not passed over in silence.
func TestOutputThatEnds(t *testing.T) {
	_, s := sessions(t, 0)
	e := &hearth.Executor{Sessions: s, Output: writer(func([]byte) (int, error) { return 0, errors.New("the disk is full") })}
	r, err := e.Run(t.Context(), hearth.Workflow{Steps: []hearth.Step{{Name: "a", Run: "echo 1; echo 2"}}}, hearth.Context{})
	if err == nil || !strings.Contains(err.Error(), "the disk is full") || r.Conclusion != "" {
		t.Error(err, told(r))
	}
}

func TestEnvironmentAndSecrets(t *testing.T) {
	_, s := sessions(t, 0)
	var out strings.Builder
	src := t.TempDir()
	os.WriteFile(filepath.Join(src, "a file\nwith a line"), []byte("x"), 0o600)
	r, err := (&hearth.Executor{Sessions: s, Output: &out}).Run(t.Context(), hearth.Workflow{
		Env: map[string]string{"A": "workflow", "B": "workflow"},
		Steps: []hearth.Step{
			{Name: "hunter2 in a name", Run: "echo $A $B $C $V; echo $SECRET; printf %s $SECRET | base64; echo $GITHUB_REPOSITORY $GITHUB_EVENT_NAME $CI",
				Env: map[string]string{"B": "step"}},
			{Name: "source", Run: "ls -b; cat > /dev/null; echo end"},
			{Name: "much", Run: "head -c 300000 /dev/zero | tr '\\0' x; echo; echo the end"},
		},
	}, hearth.Context{Repository: "o/r", Vars: map[string]string{"A": "context", "V": "var"}, Secrets: map[string]string{"SECRET": "hunter2"}, Dir: src})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.Steps[0].Output, "workflow step var\n***\n***\no/r manual true\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := r.Steps[1].Output; got != "a\\ file\\nwith\\ a\\ line\nend\n" {
		t.Errorf("got %q", got)
	}
	if last := r.Steps[2]; !last.Truncated || len(last.Output) > 64<<10 || !strings.HasSuffix(last.Output, "the end\n") {
		t.Errorf("%d bytes", len(last.Output))
	}
	if strings.Contains(out.String()+fmt.Sprintf("%+v", r), "hunter2") {
		t.Error("the secret is in the output or the result")
	}
}

func TestCancel(t *testing.T) {
	_, s := sessions(t, 0)
	ctx, cancel := context.WithCancel(t.Context())
	e := &hearth.Executor{Sessions: s, Output: writer(func(p []byte) (int, error) { cancel(); return len(p), nil })}
	r, err := e.Run(ctx, hearth.Workflow{Steps: []hearth.Step{{Name: "a", Run: "echo started; exec sleep 60"}, {Name: "b", Run: "true"}},
		Cleanup: []hearth.Step{{Name: "c", Run: "true"}}}, hearth.Context{})
	if err != nil || told(r) != "steps a cancelled/cancelled 143\nsteps b skipped/skipped 0\ncleanup c success/success 0\ncancelled" {
		t.Error(err, told(r))
	}
}

// A machine that is not waited for any more is no fault.
func TestCancelledBefore(t *testing.T) {
	l, s := sessions(t, 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l.refuse = context.Canceled
	r, err := (&hearth.Executor{Sessions: s}).Run(ctx, hearth.Workflow{Steps: []hearth.Step{{Name: "a", Run: "true"}}}, hearth.Context{})
	if err != nil || told(r) != "steps a skipped/skipped 0\ncancelled" {
		t.Error(err, told(r))
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// What cannot be done is an error, and never a success.
func TestErrors(t *testing.T) {
	l, s := sessions(t, 1)
	e := &hearth.Executor{Sessions: s}
	ok := hearth.Workflow{Steps: []hearth.Step{{Run: "true"}}}
	for name, w := range map[string]hearth.Workflow{
		"no steps":        {Setup: []hearth.Step{{Run: "true"}}},
		"an empty step":   {Steps: []hearth.Step{{Name: "a", Run: " \n"}}},
		"a bad timeout":   {Steps: []hearth.Step{{Run: "true", Timeout: -1}}},
		"a bad variable":  {Steps: []hearth.Step{{Run: "true", Env: map[string]string{"A=B": ""}}}},
		"a long script":   {Steps: []hearth.Step{{Run: strings.Repeat("#", 200<<10)}}},
		"a cache of root": {Steps: []hearth.Step{{Run: "true"}}, CachePaths: []string{"../.."}},
	} {
		if r, err := e.Run(t.Context(), w, hearth.Context{}); err == nil || r.OK() {
			t.Errorf("%s: %v %v", name, r.Conclusion, err)
		}
	}
	if r, err := e.Run(t.Context(), ok, hearth.Context{Dir: "/nosuchdir"}); err == nil || r.Conclusion != "" {
		t.Error(r.Conclusion, err)
	}
	one, err := s.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Run(t.Context(), ok, hearth.Context{}); !errors.Is(err, hearth.ErrTooManySessions) {
		t.Error(err)
	}
	if one.State() != hearth.SessionCreated {
		t.Error(one.State())
	}
	one.Exec(t.Context(), hearth.Command{Argv: []string{"true"}})
	if one.State() != hearth.SessionExecuting {
		t.Error(one.State())
	}
	one.Finish(true)
	one.Finish(false)
	if err := one.Release(t.Context()); err != nil || one.Info().Outcome != hearth.SessionCompleted || one.Release(t.Context()) != nil {
		t.Error(err, one.Info())
	}
	l.refuse = errors.New("no room")
	if r, err := e.Run(t.Context(), ok, hearth.Context{}); err == nil || !strings.Contains(err.Error(), "no room") || r.Conclusion != "" {
		t.Error(r.Conclusion, err)
	}
	l.refuse = nil
	// The machine dies in the middle: lost, not failed.
	e.Output = writer(func(p []byte) (int, error) {
		l.machines[len(l.machines)-1].lose(errors.New("qemu was killed"))
		return len(p), nil
	})
	r, err := e.Run(t.Context(), hearth.Workflow{Steps: []hearth.Step{{Run: "echo; exec sleep 60"}}, Cleanup: []hearth.Step{{Run: "true"}}}, hearth.Context{})
	if err == nil || !strings.Contains(err.Error(), "qemu was killed") || r.Conclusion != "" {
		t.Error(r.Conclusion, err)
	}
	s.Close(t.Context())
	if _, err := s.New(t.Context()); !errors.Is(err, hearth.ErrClosed) {
		t.Error(err)
	}
}

// A session that nobody releases is released when its time is over.
func TestForgotten(t *testing.T) {
	l := &local{}
	s := hearth.NewSessions(l, 50*time.Millisecond, 0)
	x, err := s.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(30 * time.Second); x.State() != hearth.SessionReleased; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("not released")
		}
	}
	if x.Info().Outcome != hearth.SessionFailed {
		t.Error(x.Info())
	}
	s.Close(t.Context())
	// However long it was to live.
	s = hearth.NewSessions(&local{}, 1000*time.Hour, 0)
	if x, err = s.New(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(x.Info().Deadline); left > 7*24*time.Hour || left < 6*24*time.Hour {
		t.Errorf("%v are left", left)
	}
	s.Close(t.Context())
}

// printed is what f prints.
func printed(t *testing.T, f func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = w
	read := make(chan string)
	go func() { b, _ := io.ReadAll(r); read <- string(b) }()
	f()
	os.Stdout = stdout
	w.Close()
	return <-read
}

// The manual's example is the package's, and prints what the manual says, from a
// real machine, with what it leaves on record.
func TestManualExample(t *testing.T) {
	manual, err := os.ReadFile("docs/library.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```(go)?\n(.*?)```").FindAllSubmatch(manual, -1)
	if len(blocks) < 2 {
		t.Fatal("no example in docs/library.md")
	}
	bodies := map[string]string{} // of the examples, without what they print
	for _, m := range regexp.MustCompile(`(?s)func (Example\w*)\(\) \{\n(.*?)\n\}\n`).FindAllStringSubmatch(string(source), -1) {
		body, _, _ := strings.Cut(regexp.MustCompile(`(?m)^\t`).ReplaceAllString(m[2], ""), "\n// Output:")
		bodies[m[1]] = strings.TrimSpace(body)
	}
	for _, b := range blocks {
		code := strings.TrimSpace(string(b[2]))
		if string(b[1]) != "go" {
			continue
		}
		found := false
		for name, body := range bodies {
			if body == code {
				found = true
				delete(bodies, name)
			}
		}
		if !found {
			t.Errorf("docs/library.md shows what is no example of example_test.go:\n%s", code)
		}
	}
	for name := range bodies {
		t.Errorf("docs/library.md does not show %s", name)
	}
	_, _, url := server(t, &machinetest.Host{})
	t.Setenv("HEARTH_URL", url)
	t.Setenv("TOKEN", signed(t, api.Grant{Subject: "root", Admin: true}))
	if got, want := printed(t, ExampleNewClient), string(blocks[len(blocks)-1][2]); got != want {
		t.Errorf("the client's example prints\n%s\nthe manual says\n%s", got, want)
	}
	if testing.Short() {
		t.Skip("SKIPPED, NOT TESTED: a real machine, with -short")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("SKIPPED, NO MACHINE WAS STARTED: qemu-system-x86_64 is missing: apt-get install qemu-system-x86")
	}
	t.Setenv("HEARTH_GUEST", imagetest.Agent(t))
	imagetest.Build(t, os.Getenv("HEARTH_GUEST"))
	home, err := os.MkdirTemp("", "hl")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	if err := os.Symlink(filepath.Dir(imagetest.Dir(t)), filepath.Join(home, "cache")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HEARTH_HOME", home)
	if got, want := printed(t, Example), string(blocks[1][2]); got != want {
		t.Errorf("the example prints\n%s\nthe manual says\n%s", got, want)
	}
	if left, _ := filepath.Glob(filepath.Join(home, "run", "machines", "*")); len(left) > 0 {
		t.Error("left behind:", left)
	}

	// Learning: the second run knows the first; a failure that comes again was seen
	// before; a cache comes back.
	ctx := t.Context()
	h, err := hearth.OpenHost(ctx, hearth.HostConfig{Network: "none", Image: "debian-12"})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(context.Background())
	s := hearth.NewSessions(h, 0, 0)
	defer s.Close(context.Background())
	run := func() hearth.Result {
		t.Helper()
		r, err := (&hearth.Executor{Sessions: s, Host: h}).Run(ctx,
			hearth.Workflow{Name: "again", CachePaths: []string{"~/kept", "/var/tmp/other"}, Steps: []hearth.Step{
				{Name: "cached", Run: "cat ~/kept/n 2>/dev/null || echo none; mkdir -p ~/kept; echo kept > ~/kept/n"},
				{Name: "fails", Run: "echo 'error: undefined symbol frobnicate' >&2; exit 2", ContinueOnError: true},
			}}, hearth.Context{Repository: "octo/again-" + filepath.Base(home), Ref: "refs/heads/main", SHA: "0123456789012345678901234567890123456789"})
		if err != nil || !r.OK() {
			t.Fatal(err, told(r))
		}
		return r
	}
	first, second := run(), run()
	if first.Cached || first.Steps[0].Output != "none\n" || !second.Cached || second.Steps[0].Output != "kept\n" {
		t.Errorf("the cache: %v %q, then %v %q", first.Cached, first.Steps[0].Output, second.Cached, second.Steps[0].Output)
	}
	if x := first.Steps[1].Explanation; x == nil || x.Seen != 0 {
		t.Errorf("the first failure: %+v", x)
	}
	if x := second.Steps[1].Explanation; x == nil || x.Seen < 1 {
		t.Errorf("the second failure was not seen before: %+v", x)
	}
	if p := second.Steps[1].Expected; p == nil || p.Seen < 1 || second.Expected == nil {
		t.Errorf("nothing was expected of the second run: %+v", p)
	}
	// What a session runs by itself teaches, too.
	x, err := s.New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		end, err := x.Exec(ctx, hearth.Command{Argv: []string{"sh", "-c", "cat /nonesuch; echo $KEY >&2; exit 1"}, Env: []string{"KEY=correcthorse"},
			Secrets: []string{"correcthorse"}, Repository: "octo/exec-" + filepath.Base(home)})
		if err != nil || end.Expected == nil || end.Explanation == nil || end.Explanation.Seen != i ||
			strings.Contains(strings.Join(end.Explanation.Lines, "\n"), "correcthorse") {
			t.Errorf("%+v %+v %v", end, end.Explanation, err)
		}
	}
	if end, err := x.Exec(ctx, hearth.Command{Argv: []string{"false"}, NoLearn: true}); err != nil || end.Expected != nil || end.Explanation != nil {
		t.Errorf("%+v %v", end, err)
	}
	if f, err := h.Predict(ctx, "octo/exec-"+filepath.Base(home), "cat /nonesuch; echo $KEY >&2; exit 1"); err != nil || f.PFail < .1 || len(f.Failures) != 1 {
		t.Errorf("%+v %v", f, err)
	}
	if err := x.Release(ctx); err != nil {
		t.Error(err)
	}
	states := []hearth.State{}
	for _, i := range s.List() {
		states = append(states, i.Outcome)
	}
	if !slices.Equal(states[:2], []hearth.State{hearth.SessionCompleted, hearth.SessionCompleted}) {
		t.Error(states)
	}
}
