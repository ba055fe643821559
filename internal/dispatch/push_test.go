package dispatch

import (
	"context"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/machine/machinetest"
	"github.com/hearth-ci/hearth/internal/worker"
)

// A push, from the webhook to the checks, as in TestRealMachines, but with agents
// and commands on this host.
func TestPushOverMachines(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	host := &machinetest.Host{Most: 1}
	s := newForge(t)
	s.start(s.forge(t.TempDir()), func(c *Config) {
		c.Host = host
		c.Run = func(ctx context.Context, r *worker.Runner, task conduct.Task) conduct.Outcome {
			dir := t.TempDir()
			r.Layout = engine.Layout{Workspace: filepath.Join(dir, "work/hello/hello"), Temp: filepath.Join(dir, "work/_temp"),
				Actions:   filepath.Join(dir, "work/_actions"),
				ToolCache: filepath.Join(dir, "tools"), Tools: filepath.Join(dir, "hearth")}
			return r.Execute(ctx, task)
		}
	})
	s.gh.Commit(hello, pushed1, map[string]string{"main.go": "package main // of this commit\n", ".github/workflows/ci.yml": `name: Hosted
on: push
jobs:
  build:
    runs-on: ubuntu-latest
    outputs:
      kernel: ${{ steps.k.outputs.kernel }}
    steps:
      - uses: actions/checkout@v4
      - id: k
        run: |
          cat main.go
          whoami
          echo "kernel=$(uname -s)" >> $GITHUB_OUTPUT
          echo "the key is $KEY"
        env:
          KEY: ${{ secrets.DEPLOY_KEY }}
  test:
    needs: build
    runs-on: ubuntu-latest
    steps:
      - run: test "${{ needs.build.outputs.kernel }}" = Linux && test ! -e main.go
      - run: |
          echo "main.go:1: no such luck"
          exit 3
`})
	s.deliver("push", s.push(nil))
	got := s.ended(2)
	if c := got["Hosted / build"]; c.Conclusion != "success" || strings.Join(c.History, " ") != "queued in_progress completed:success" ||
		!strings.Contains(c.Output.Summary, "Machine: host") {
		t.Errorf("%+v", c)
	}
	if c := got["Hosted / test"]; c.Conclusion != "failure" || !strings.Contains(c.Output.Title, "step 2") ||
		!strings.Contains(c.Output.Summary, "no such luck") || !strings.Contains(c.Output.Summary, "not seen before") {
		t.Errorf("%+v", c)
	}
	log := s.log(s.runs()[0], "build")
	for _, want := range []string{"package main // of this commit", me.Username, "the key is ***"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in the log:\n%s", want, log)
		}
	}
	if strings.Contains(log, "hunter2") {
		t.Error("the secret is in the log")
	}
	s.until("the machines are given back", func() bool { return host.Stats().Leased == 0 })
	if x := host.Stats(); x.Claims != 2 || x.Completed != 1 || x.Failed != 1 {
		t.Errorf("%+v", x)
	}
}
