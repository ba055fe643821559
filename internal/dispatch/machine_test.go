package dispatch

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	relying "github.com/coreos/go-oidc/v3/oidc"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
	"github.com/hearth-ci/hearth/internal/image/imagetest"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/oidc"
	"github.com/hearth-ci/hearth/internal/pool"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/vm/qemu"
	"github.com/hearth-ci/hearth/internal/web/webtest"
	"github.com/hearth-ci/hearth/internal/worker"
)

const inMachine = `name: Real
on: push
jobs:
  build:
    runs-on: ubuntu-latest
    permissions: {contents: read, id-token: write}
    outputs:
      kernel: ${{ steps.k.outputs.kernel }}
    steps:
      - uses: actions/checkout@v4
      - name: Look around
        id: k
        run: |
          git log --oneline
          cat main.go
          whoami
          echo "kernel=$(uname -s)" >> $GITHUB_OUTPUT
          echo "the key is $KEY"
        env:
          KEY: ${{ secrets.DEPLOY_KEY }}
      - run: |
          curl -sS -H "Authorization: bearer $ACTIONS_ID_TOKEN_REQUEST_TOKEN" "$ACTIONS_ID_TOKEN_REQUEST_URL&audience=sts.example.com"
  test:
    needs: build
    runs-on: ubuntu-latest
    steps:
      - run: test "${{ needs.build.outputs.kernel }}" = Linux && test ! -e main.go
      - run: |
          echo "main.go:1: no such luck"
          exit 3
`

// realMachines opens a pool of QEMU machines of the default image.
func realMachines(t testing.TB) *pool.Pool {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("SKIPPED, NOT TESTED: no QEMU: apt-get install qemu-system-x86")
	}
	img := imagetest.Build(t, imagetest.Agent(t))
	cache := filepath.Join(filepath.Dir(imagetest.Dir(t)), "cache")
	driver := qemu.New(qemu.Config{CacheDir: cache})
	if err := driver.Probe(t.Context()); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: QEMU does not work here: %v", err)
	}
	machines, err := pool.New(pool.Config{Driver: driver, Image: img, RunDir: t.TempDir(), CacheDir: t.TempDir(), CPUs: 1, MemoryMiB: 768, Warm: 1, Max: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := machines.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	if err := machines.Prepare(t.Context(), machine.Request{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("template ready in %v", time.Since(began))
	return machines
}

// onMachines starts a server whose jobs run in machines.
func onMachines(t testing.TB, host machine.Host) *site {
	t.Helper()
	s := newForge(t)
	s.patience = 3 * time.Minute
	mux := http.NewServeMux()
	s.issuer = httptest.NewServer(mux)
	t.Cleanup(s.issuer.Close)
	issuer := oidc.New(oidc.Config{URL: s.issuer.URL, Dir: t.TempDir()})
	issuer.Register(mux, "")
	s.start(s.forge(t.TempDir()), func(c *Config) {
		c.OIDC, c.Results = issuer, results.New(results.Config{Dir: t.TempDir()})
		c.Host, c.Policy = host, config.Config{CPUs: 1, MemoryMiB: 768, Repositories: config.Repositories{"*": {}}}.Policy
		c.Run = func(ctx context.Context, r *worker.Runner, t conduct.Task) conduct.Outcome { return r.Execute(ctx, t) }
	})
	return s
}

// A push, from the webhook to the checks, with a real machine for each job, and
// the page of the run in a browser.
func TestRealMachines(t *testing.T) {
	s := onMachines(t, realMachines(t))
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": inMachine, "main.go": "package main // of this commit\n"})
	began := time.Now()
	s.deliver("push", s.push(nil))
	s.until("a check is in progress", func() bool {
		for _, c := range s.gh.Checks() {
			if c.Status == "in_progress" {
				return true
			}
		}
		return false
	})
	t.Logf("from the signature to a check in progress: %v", time.Since(began))
	got := s.ended(2)
	t.Logf("to the end of both jobs: %v", time.Since(began))
	if c := got["Real / build"]; c.Conclusion != "success" || strings.Join(c.History, " ") != "queued in_progress completed:success" ||
		!strings.Contains(c.Output.Summary, "Machine: qemu") {
		t.Errorf("%+v", c)
	}
	if c := got["Real / test"]; c.Conclusion != "failure" || !strings.Contains(c.Output.Title, "step 2") ||
		!strings.Contains(c.Output.Summary, "no such luck") || !strings.Contains(c.Output.Summary, "not seen before") {
		t.Errorf("%+v", c)
	}
	log := s.log(s.runs()[0], "build")
	for _, want := range []string{"package main // of this commit", "runner", "the key is ***"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in the log:\n%s", want, log)
		}
	}
	if strings.Contains(log, "hunter2") {
		t.Error("the secret is in the log")
	}
	// The job has got a token, and who trusts the issuer believes it.
	_, text, _ := strings.Cut(log, `"value":"`)
	text, _, _ = strings.Cut(text, `"`)
	provider, err := relying.NewProvider(t.Context(), s.issuer.URL)
	if err != nil {
		t.Fatal(err)
	}
	token, err := provider.Verifier(&relying.Config{ClientID: "sts.example.com"}).Verify(t.Context(), text)
	if err != nil || token.Subject != "repo:"+hello+":ref:refs/heads/master" {
		t.Errorf("%v %+v\n%s", err, token, log)
	}
	b := webtest.Open(t, 1280, 860)
	b.Visit(got["Real / test"].DetailsURL)
	if text := b.Text(); !strings.Contains(text, "no such luck") || !strings.Contains(text, "qemu") {
		t.Error(text)
	}
	screenshot(b, "machine")
}

// From a signed push to its check in progress, that is to the first machine at
// work, and to the end of its job, with a machine ready as a server has it
// between two pushes.
func BenchmarkPushToCheck(b *testing.B) {
	machines := realMachines(b)
	s := onMachines(b, machines)
	var started, over time.Duration
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		sha := githubtest.SHA(fmt.Sprintf("%04d", n))
		s.gh.Commit(hello, sha, map[string]string{".github/workflows/ci.yml": passes})
		s.until("a machine is ready", func() bool { return machines.Stats().Warm > 0 })
		body := s.push(map[string]any{"after": sha})
		b.StartTimer()
		began, seen, id := time.Now(), false, ci.NewID()
		s.gh.Send(id, "push", body)
		if code, answer := s.post("push", id, body, ""); code != http.StatusAccepted {
			b.Fatalf("%d %v", code, answer)
		}
		s.until("the check is over", func() bool {
			all := s.gh.Checks()
			if len(all) < n {
				return false
			}
			c := all[n-1]
			if !seen && c.Status != "queued" {
				seen, started = true, started+time.Since(began)
			}
			if c.Status == "completed" && c.Conclusion != "success" {
				b.Fatalf("%+v", c)
			}
			return c.Status == "completed"
		})
		over += time.Since(began)
	}
	b.ReportMetric(float64(started.Microseconds())/1000/float64(n), "ms-to-progress")
	b.ReportMetric(float64(over.Microseconds())/1000/float64(n), "ms-to-end")
}
