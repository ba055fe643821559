package worker_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/network"
)

// drive runs a whole workflow: every job in a machine of its own.
func (s *stove) drive(ctx context.Context, jobs string) ci.Conclusion {
	s.t.Helper()
	conclusion, err := (&conduct.Conductor{Run: s.plan(jobs), ID: s.RunID, Sink: s.Sink, Executor: s.Runner, Mask: s.Hidden()}).Drive(ctx, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return conclusion
}

// ended is how the jobs did, in the order of their names.
func (s *stove) ended() string {
	all := s.of(ci.JobFinished)
	slices.SortFunc(all, func(a, b ci.Record) int { return cmp.Compare(a.JobKey, b.JobKey) })
	var out []string
	for _, r := range all {
		out = append(out, r.JobKey+" "+string(r.Conclusion))
	}
	return strings.Join(out, ", ")
}

// The run path from a plan to its conclusion, on a host that has room for one
// machine at a time: outputs travel from machine to machine, a matrix has a machine
// a cell, what failed keeps others from starting, and every machine is given back
// with how its job did.
func TestRunOverMachines(t *testing.T) {
	s := newStove(t)
	s.host.Most = 1
	got := s.drive(t.Context(), `
  a:
    runs-on: ubuntu-latest
    outputs: {v: "${{ steps.x.outputs.v }}"}
    steps:
      - {id: x, run: 'echo v=$PPID >> $GITHUB_OUTPUT; echo v=42 >> $GITHUB_OUTPUT'}
  b:
    needs: a
    runs-on: ubuntu-latest
    strategy: {matrix: {n: [1, 2]}}
    steps:
      - run: test "${{ needs.a.outputs.v }}${{ matrix.n }}" = 42${{ matrix.n }}
  c:
    needs: b
    runs-on: ubuntu-latest
    steps: [{run: exit 3}]
  d:
    needs: c
    runs-on: ubuntu-latest
    steps: [{run: echo never}]
  e:
    needs: c
    if: failure()
    runs-on: ubuntu-latest
    steps: [{run: echo mended}]
`)
	if got != ci.Failure || s.ended() != "a success, b (1) success, b (2) success, c failure, d skipped, e success" {
		t.Errorf("%s: %s\n%s", got, s.ended(), s.log())
	}
	var outcomes []string
	for _, x := range s.host.Sessions() {
		outcomes = append(outcomes, string(x.Outcome))
		if x.Started.IsZero() || x.DeleteBy.Sub(x.Leased) < 6*time.Hour || x.DeleteBy.Sub(x.Leased) > 8*time.Hour {
			t.Errorf("a job of six hours at most: %+v", x)
		}
	}
	if !slices.Equal(outcomes, []string{"completed", "completed", "completed", "failed", "completed"}) {
		t.Errorf("machines: %v", outcomes)
	}
	if end := s.of(ci.RunFinished); len(end) != 1 || end[0].Infrastructure || end[0].Conclusion != ci.Failure {
		t.Errorf("%+v", end)
	}
}

// A machine that dies, and one that there is none of: the run says that it could not
// be run, and what does not need them goes on.
func TestRunLosesAMachine(t *testing.T) {
	s := newStove(t)
	s.host.Refuse = func(r machine.Request) error {
		if slices.Contains(r.Labels, "debian-12") {
			return errors.New("no /dev/kvm")
		}
		return nil
	}
	var once sync.Once
	s.watch = func(r ci.Record) {
		if r.Type == ci.LogLine && r.Text == "under way" {
			once.Do(func() {
				for _, m := range s.host.Machines() {
					if slices.Contains(m.Request().Labels, "self-hosted") {
						m.Lose(errors.New("qemu was killed"))
					}
				}
			})
		}
	}
	got := s.drive(t.Context(), `
  dies: {runs-on: self-hosted, steps: [{run: echo under way; sleep 60}]}
  none: {runs-on: debian-12, steps: [{run: echo}]}
  well: {runs-on: ubuntu-latest, steps: [{run: echo}]}
`)
	if got != ci.Failure || s.ended() != "dies failure, none failure, well success" {
		t.Errorf("%s: %s", got, s.ended())
	}
	for _, r := range s.of(ci.JobFinished) {
		want := map[string]string{"dies": "the machine was lost: qemu was killed", "none": "no machine: claim a machine: no /dev/kvm"}[r.JobKey]
		if r.Infrastructure != (want != "") || r.Reason != want {
			t.Errorf("%+v, want %q", r, want)
		}
	}
	if end := s.of(ci.RunFinished); len(end) != 1 || !end[0].Infrastructure {
		t.Errorf("%+v", end)
	}
}

// What a machine connects to is told as of the step that did, and without secrets:
// a name is the easiest way to send one.
func TestRunnerTellsOfConnections(t *testing.T) {
	s := newStove(t)
	s.Secrets = map[string]string{"KEY": "Hunter2Hunter3"}
	s.watch = func(r ci.Record) {
		if r.Type == ci.LogLine && r.Text == "now" {
			s.host.Machines()[0].Connect(network.Connection{Host: "x.hunter2hunter3.example", Port: 443, Proto: "tcp", Refused: true, Reason: "not allowed"})
		}
	}
	s.run(t.Context(), "    steps:\n      - run: echo\n      - run: echo now\n", nil)
	all := s.of(ci.ConnectionRec)
	if len(all) != 1 {
		t.Fatalf("%+v", all)
	}
	c := all[0].Connection
	if c.Host != "x.***.example" || !c.Refused || all[0].Step != 2 || all[0].JobKey != "test" {
		t.Errorf("%+v of %+v", c, all[0])
	}
}

// Where no machine has a container engine, a job that is sure to need one is not run,
// and says why; one that only speaks of Docker gets a machine without.
func TestRunWithoutAnEngine(t *testing.T) {
	s := newStove(t)
	var asked []bool
	s.host.Refuse = func(r machine.Request) error {
		asked = append(asked, r.Containers)
		if r.Containers {
			return fmt.Errorf("%w: its packages could not be had", machine.ErrNoContainers)
		}
		return nil
	}
	got := s.drive(t.Context(), `
  a:
    runs-on: ubuntu-latest
    container: debian
    steps: [{run: echo never}]
  b:
    needs: a
    runs-on: ubuntu-latest
    steps: [{run: echo never}]
  c:
    needs: a
    if: always()
    runs-on: ubuntu-latest
    steps: [{run: 'echo docker is spoken of'}]
  d:
    needs: c
    if: always()
    runs-on: ubuntu-latest
    steps: [{run: echo}]
`)
	if got != ci.Neutral || s.ended() != "a not_run, b skipped, c success, d success" {
		t.Errorf("%s: %s\n%s", got, s.ended(), s.log())
	}
	if !slices.Equal(asked, []bool{true, true, false, false}) {
		t.Errorf("machines with an engine were asked for: %v", asked)
	}
	for _, r := range s.of(ci.JobFinished) {
		if r.JobKey == "a" && (r.Infrastructure || !strings.Contains(r.Reason, "its packages could not be had")) {
			t.Errorf("%+v", r)
		}
	}
}
