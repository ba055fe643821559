package hearth_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth"
	"github.com/hearth-ci/hearth/internal/api"
	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/image/imagetest"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/machine/machinetest"
	"github.com/hearth-ci/hearth/internal/pool"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/vm/qemu"
)

var apiSecret = []byte(strings.Repeat("k", api.MinSecret))

func signed(t *testing.T, g api.Grant) string {
	t.Helper()
	x, err := api.Sign(apiSecret, g, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return x.Token
}

// server is the API over machines, with a memory; it returns a client of a user, and
// one of an admin.
func server(t *testing.T, machines machine.Host) (user, admin *hearth.Client, url string) {
	t.Helper()
	st, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	l, err := learn.Open(t.Context(), st, learn.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := api.New(api.Config{Machines: machines, Secret: apiSecret, Memory: l, History: &history.Keeper{Learn: l}})
	mux := http.NewServeMux()
	s.Register(mux)
	h := httptest.NewServer(mux)
	t.Cleanup(func() {
		h.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	client := func(g api.Grant) *hearth.Client { return hearth.NewClient(h.URL+"/", hearth.WithAuth(signed(t, g))) }
	return client(api.Grant{Subject: "ada"}), client(api.Grant{Subject: "root", Admin: true}), h.URL
}

// TestClient has a server's machines do what a session's does, and asks its memory.
func TestClient(t *testing.T) {
	user, admin, url := server(t, &machinetest.Host{Most: 2})
	ctx := t.Context()
	sessions := hearth.NewSessions(user, 0, 0)
	defer sessions.Close(ctx)
	x, err := sessions.New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(cmd hearth.Command) (hearth.Exit, string, string) {
		t.Helper()
		var out, said strings.Builder
		cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &said, dir
		end, err := x.Exec(ctx, cmd)
		if err != nil {
			t.Fatal(err)
		}
		return end, out.String(), said.String()
	}
	end, out, said := run(hearth.Command{Argv: []string{"sh", "-c", `cat; echo "$A $1"; echo oh >&2; exit 3`, "sh", "it's"}, Env: []string{"A=1", "A=b c"},
		Stdin: strings.NewReader("in\x00\xff'\n")})
	if end.Code != 3 || !strings.HasSuffix(out, "'\nb c it's\n") || !strings.HasPrefix(out, "in\x00") || said != "oh\n" ||
		end.Explanation == nil || end.Expected == nil {
		t.Errorf("%+v %q %q", end, out, said)
	}
	if end, _, _ = run(hearth.Command{Argv: []string{"sleep", "60"}, Timeout: 300 * time.Millisecond, NoLearn: true}); !end.TimedOut || end.Expected != nil {
		t.Errorf("%+v", end)
	}
	cancelled, cancel := context.WithCancel(ctx)
	time.AfterFunc(300*time.Millisecond, cancel)
	if end, err := x.Exec(cancelled, hearth.Command{Argv: []string{"sleep", "60"}}); err != nil || !end.Cancelled {
		t.Errorf("%+v %v", end, err)
	}
	if _, err := x.Exec(ctx, hearth.Command{Argv: []string{"cat"}, Stdin: bytes.NewReader(make([]byte, 600<<10))}); err == nil {
		t.Error("more input than there may be")
	}
	// Secrets: as variables, and as what they are else.
	for range 2 {
		end, out, _ = run(hearth.Command{Argv: []string{"sh", "-c", "echo Error: $X correcthorse >&2; echo $X; exit 1"}, Env: []string{"X=correcthorse"},
			Secrets: []string{"correcthorse"}})
		if out != "correcthorse\n" || end.Explanation == nil || strings.Contains(strings.Join(end.Explanation.Lines, ""), "correcthorse") {
			t.Errorf("%q %+v", out, end.Explanation)
		}
	}
	if end, _, _ = run(hearth.Command{Argv: []string{"echo", "correcthorse"}, Secrets: []string{"correcthorse"}}); end.Expected != nil {
		t.Error("what has a secret that has no variable was learned from")
	}

	// Archives, larger than one request.
	big := bytes.Repeat([]byte("0123456789abcdef"), 70_000)
	var in bytes.Buffer
	tw := tar.NewWriter(&in)
	tw.WriteHeader(&tar.Header{Name: "a/big", Mode: 0o644, Size: int64(len(big))})
	tw.Write(big)
	tw.Close()
	if err := x.Unpack(ctx, dir+"/new", &in); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(dir + "/new/a/big"); err != nil || !bytes.Equal(b, big) {
		t.Errorf("%d bytes came, %v", len(b), err)
	}
	var back bytes.Buffer
	if err := x.Pack(ctx, dir+"/new", []string{"a"}, &back); err != nil {
		t.Fatal(err)
	}
	tr, found := tar.NewReader(&back), 0
	for {
		h, err := tr.Next()
		if err != nil {
			break
		}
		if b, _ := io.ReadAll(tr); h.Name == "a/big" && bytes.Equal(b, big) {
			found++
		}
	}
	if found != 1 {
		t.Error("the archive that came back is another")
	}
	if err := x.Pack(ctx, dir, []string{"nosuch"}, io.Discard); err == nil {
		t.Error("nothing was packed, and nothing said")
	}
	if end, _, _ := run(hearth.Command{Argv: []string{"seq", "1000000"}}); !end.Truncated {
		t.Error("nobody says that output is missing")
	}
	name, err := x.Snapshot(ctx)
	if err != nil || name == "" {
		t.Fatal(name, err)
	}
	if err := x.Rollback(ctx, name); err != nil {
		t.Error(err)
	}
	if err := x.Rollback(ctx, "nosuch"); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Error(err)
	}

	// The memory is an admin's to ask.
	var denied *hearth.ServerError
	if _, err := user.Counts(ctx, ""); !errors.As(err, &denied) || denied.Code != "wrong_scope" || denied.Status != 403 {
		t.Error(err)
	}
	counts, err := admin.Counts(ctx, "api:ada")
	if err != nil || len(counts) != 2 || counts[1].Failures != 2 || counts[1].Successes != 1 {
		t.Errorf("%+v %v", counts, err)
	}
	for range 3 {
		run(hearth.Command{Argv: []string{"true"}})
		run(hearth.Command{Argv: []string{"echo", "next"}})
	}
	f, err := admin.Predict(ctx, "api:ada", "true")
	if err != nil || f.Command != "true" || f.Seen != 3 || len(f.Reasons) == 0 {
		t.Errorf("%+v %v", f, err)
	}
	if next, err := admin.Next(ctx, "api:ada", "true", 1); err != nil || len(next) != 1 || next[0].Name != "echo next" {
		t.Errorf("%+v %v", next, err)
	}
	if _, err := admin.Related(ctx, "", "true", 5); err != nil {
		t.Error(err)
	}
	if _, err := admin.Lessons(ctx, ""); err != nil {
		t.Error(err)
	}

	// A machine that is gone is lost to its session, and closing it is no error.
	if err := x.Release(ctx); err != nil {
		t.Error(err)
	}
	if _, err := x.Exec(ctx, hearth.Command{Argv: []string{"true"}}); err == nil {
		t.Error("a command ran in a machine that was released")
	}
	select {
	case <-x.Lost():
	default:
		t.Error("the machine is gone, and nobody is told")
	}
	if err := x.Machine.Close(ctx); err != nil {
		t.Error(err)
	}
	if _, err := hearth.NewSessions(hearth.NewClient(url), 0, 0).New(ctx); !errors.As(err, &denied) || denied.Status != 401 {
		t.Errorf("without a token: %v", err)
	}
	if _, err := hearth.NewSessions(hearth.NewClient("http://127.0.0.1:1"), 0, 0).New(ctx); err == nil {
		t.Error("without a server there is a machine")
	}
}

// A Client waits for room, as a Host does.
func TestClientWaits(t *testing.T) {
	user, _, _ := server(t, &machinetest.Host{Most: 1})
	ctx := t.Context()
	sessions := hearth.NewSessions(user, 0, 0)
	defer sessions.Close(ctx)
	first, err := sessions.New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := sessions.New(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	time.AfterFunc(200*time.Millisecond, func() { first.Release(ctx) })
	if _, err := sessions.New(ctx); err != nil {
		t.Error(err)
	}
}

// TestClientExecutor runs a workflow in a server's machine, a real one.
func TestClientExecutor(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED, NOT TESTED: a real machine, with -short")
	}
	img := imagetest.Build(t, imagetest.Agent(t))
	dir, err := os.MkdirTemp("", "hc") // sockets want a short path
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cache := filepath.Dir(imagetest.Dir(t))
	p, err := pool.New(pool.Config{Driver: qemu.New(qemu.Config{CacheDir: cache}), Image: img, RunDir: dir, CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(context.Background()) })
	user, _, _ := server(t, p)
	sessions := hearth.NewSessions(user, 0, 0)
	defer sessions.Close(context.Background())
	tree := t.TempDir()
	os.WriteFile(tree+"/file", []byte("from here\n"), 0o644)
	w, err := hearth.ParseWorkflow(`
on: push
jobs:
  all:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: cat file; echo A=from the step before >> "$GITHUB_ENV"
      - run: echo "$A, $TOKEN"; id -un; exit 4
        continue-on-error: true
      - run: rm file
        if: always()
`)
	if err != nil {
		t.Fatal(err)
	}
	w.Steps[1].Snapshot = true
	r, err := (&hearth.Executor{Sessions: sessions}).Run(t.Context(), w, hearth.Context{Dir: tree, Secrets: map[string]string{"TOKEN": "s3cr3tvalue"}})
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK() || len(r.Steps) != 3 || r.Steps[0].Output != "from here\n" || r.Steps[1].Output != "from the step before, ***\nrunner\n" ||
		r.Steps[1].ExitCode != 4 || !r.Steps[1].RolledBack || r.Steps[2].Conclusion != hearth.Success {
		t.Errorf("%+v", r)
	}
}
