package worker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/machine/machinetest"
	"github.com/hearth-ci/hearth/internal/worker"
)

// A step that fails is asked about, with its machine as it stands, and the answer is
// done: run again, put back first, with another script; what came of it is told as by
// hand, and one point is kept at a time.
func TestPause(t *testing.T) {
	s := newStove(t)
	var asked []string
	var m *machinetest.Machine
	answers := []worker.Answer{
		{Retry: true},
		{Retry: true, Rewind: true},
		{Retry: true, Run: `test "$DEPTH" = 3 && test "${{ github.job }}" = test && echo mended`},
	}
	s.Points = worker.EachPoint
	s.Pause = func(ctx context.Context, p worker.Pause) worker.Answer {
		m = p.Machine.(*machinetest.Machine)
		var out strings.Builder
		c := guest.Cmd{Argv: []string{"/bin/sh", "-c", `echo "$DEPTH $(pwd)"`}, Env: p.Step.Place.Environ, Dir: p.Step.Place.Dir, Stdout: &out}
		if _, err := p.Machine.Client().Exec(ctx, c); err != nil || out.String() != "3 "+s.Layout.Workspace+"\n" {
			t.Errorf("where the step stood: %q, %v", out.String(), err)
		}
		asked = append(asked, fmt.Sprintf("%d/%d %v %v", p.Step.Number, p.Step.Attempt, p.Rewinds, p.Edits))
		return answers[len(asked)-1]
	}
	out := s.run(t.Context(), `
    steps:
      - run: echo one
      - run: 'false'
        continue-on-error: true
      - {run: 'exit 9', env: {DEPTH: 3}}
      - run: echo after
`, nil)
	if out.Conclusion != ci.Success || !slices.Equal(asked, []string{"3/1 true true", "3/2 true true", "3/3 true true"}) {
		t.Errorf("%+v, asked %q\n%s", out, asked, s.log())
	}
	if log := s.log(); !strings.Contains(log, "mended") || !strings.Contains(log, "attempt 3): asked for, from before it began") ||
		!strings.Contains(log, "attempt 4): asked for, with another script") {
		t.Error(log)
	}
	if got := m.RolledBack(); len(got) != 1 || !strings.HasSuffix(got[0], "-c3") {
		t.Errorf("put back to %q", got)
	}
	if now, most := m.Kept(); now != 1 || most != 1 {
		t.Errorf("%d points at the end, %d at most", now, most)
	}
	for _, r := range s.of(ci.StepFinished) {
		if by := r.Step == 3; r.Assisted != by || by && r.Attempt != 4 {
			t.Errorf("%+v", r)
		}
	}
	if end := s.of(ci.JobFinished)[0]; !end.Assisted {
		t.Errorf("%+v", end)
	}
}

// Who answers nothing lets the job fail; nobody is asked where the step may fail, or
// when the job was cancelled meanwhile.
func TestPauseEnds(t *testing.T) {
	s := newStove(t)
	asked := 0
	ctx, cancel := context.WithCancelCause(t.Context())
	s.Pause = func(ctx context.Context, p worker.Pause) worker.Answer {
		asked++
		if p.Rewinds || p.Machine == nil {
			t.Errorf("%+v", p)
		}
		if asked == 2 {
			cancel(errors.New("enough"))
			return worker.Answer{Retry: true}
		}
		return worker.Answer{}
	}
	job := "    steps: [{run: exit 1}]\n"
	if out := s.run(ctx, job, nil); out.Conclusion != ci.Failure || asked != 1 {
		t.Errorf("%+v, asked %d times", out, asked)
	}
	if out := s.run(ctx, job, nil); out.Conclusion != ci.Cancelled || asked != 2 {
		t.Errorf("%+v, asked %d times", out, asked)
	}
	s.Pause = func(context.Context, worker.Pause) worker.Answer { return worker.Answer{Retry: true, Rewind: true} }
	if out := s.run(t.Context(), job, nil); !out.Infrastructure || !strings.Contains(out.Reason, "was not kept as it was before step 1") {
		t.Errorf("a rewind to nothing: %+v", out)
	}
}

// A point is taken where the policy says so; one that cannot be had is said, and the
// job goes on.
func TestPoints(t *testing.T) {
	for _, c := range []struct {
		points worker.Points
		risk   func(string, int) float64
		steps  string
		want   int // most points at once
		says   int // notices
	}{
		{worker.NoPoints, nil, "[{run: echo}, {run: echo}]", 0, 0},
		{"", nil, "[{run: echo}, {run: echo}]", 0, 0},
		{worker.EachPoint, nil, "[{run: echo}, {run: echo}]", 1, 0},
		{worker.RiskyPoints, nil, "[{run: echo}, {run: echo}]", 0, 0},
		{worker.RiskyPoints, func(job string, n int) float64 {
			return map[string]float64{"test1": .01, "test2": .5}[fmt.Sprint(job, n)]
		}, "[{run: echo}, {run: echo}]", 1, 0},
		{worker.EachPoint, nil, "[{id: b, background: true, run: echo}, {wait: [b]}]", 0, 0},
		{worker.EachPoint, nil, "[{run: echo}, {run: echo refuse}]", 1, 2},
	} {
		s := newStove(t)
		s.Points, s.Risk = c.points, c.risk
		var machines []*machinetest.Machine
		s.watch = func(r ci.Record) {
			if r.Type == ci.JobStarted {
				machines = s.host.Machines()
				if strings.Contains(c.steps, "refuse") {
					machines[0].OnSnapshot(func() error { return errors.New("no room") })
				}
			}
		}
		out := s.run(t.Context(), "    steps: "+c.steps+"\n", nil)
		_, most := machines[0].Kept()
		if strings.Contains(c.steps, "refuse") {
			c.want = 0
		}
		if out.Conclusion != ci.Success || most != c.want || len(s.of(ci.AnnotationRec)) != c.says {
			t.Errorf("%s of %s: %+v, %d points, %+v", c.points, c.steps, out, most, s.of(ci.AnnotationRec))
		}
	}
	if _, err := worker.ParsePoints("some"); err == nil {
		t.Error("a policy of that name")
	}
}
