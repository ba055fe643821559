package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// Points says before which steps a job's machine is kept as it is, so that a step
// that is run again begins from there and not in what its first try left behind. One
// is kept at a time: the next step's takes its place.
type Points string

// The policies for points.
const (
	NoPoints    Points = "none"
	EachPoint   Points = "each"
	RiskyPoints Points = "risky" // before steps that are likely to fail
)

// ParsePoints reads a policy; "" stays "", which is the runner's to say.
func ParsePoints(s string) (Points, error) {
	switch p := Points(s); p {
	case "", NoPoints, EachPoint, RiskyPoints:
		return p, nil
	}
	return "", fmt.Errorf("%q is no policy for points: want none, risky or each", s)
}

// risky is from which probability of failure on a step is one of RiskyPoints. A point
// costs some hundred milliseconds beside a job's minutes, and saves the step's
// beginning from what its first try did.
const risky = 0.15

// Pause is a step that has failed, in a machine that stands as the step left it.
type Pause struct {
	Machine machine.Machine // the job's: not to be released
	Job     *plan.Job
	Step    engine.StepInfo
	Result  engine.StepResult
	Rewinds bool // the machine can be put back to before the step
	Edits   bool // the step is a script
}

// Answer says how a job goes on that was paused. The zero Answer is: as a job does
// whose step has failed.
type Answer struct {
	Retry  bool   // the step once more
	Rewind bool   // after the machine was put back to before it
	Run    string // with this script in place of its own; "" is its own
}

// points are what is kept of one job's machine.
type points struct {
	policy  Points
	machine machine.Machine
	risk    func(step int) float64 // nil is not known

	keep *keep // has points outlive the machine; nil does not

	mu   sync.Mutex
	step int // that the point is of; 0 is none
	at   machine.Checkpoint
}

// take keeps the machine as it is before a step. A point that cannot be had is no
// fault of the job: it goes on without, and the error says why.
func (p *points) take(ctx context.Context, s engine.StepInfo) error {
	if p == nil || p.policy == "" || p.policy == NoPoints || p.policy == RiskyPoints && (p.risk == nil || p.risk(s.Number) < risky) {
		return nil
	}
	return p.snap(ctx, s)
}

func (p *points) snap(ctx context.Context, s engine.StepInfo) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	unkept := p.keep.wait()
	if unkept != nil {
		unkept = fmt.Errorf("the point before it could not be kept: %w", unkept)
	}
	old, had := p.at, p.step > 0
	p.step = 0
	if had {
		if err := p.machine.Forget(old); err != nil {
			return err
		}
	}
	at, err := p.machine.Snapshot(ctx)
	if err != nil {
		return err
	}
	p.step, p.at = s.Number, at
	if p.keep != nil {
		if err := p.keep.start(ctx, p.machine, at, s); err != nil {
			return errors.Join(unkept, fmt.Errorf("the point cannot outlive its machine: %w", err))
		}
	}
	return unkept
}

// has says whether the machine can be put back to before a step.
func (p *points) has(step int) bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.step == step
}

// rewind puts the machine back to before a step.
func (p *points) rewind(ctx context.Context, step int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.step != step {
		return fmt.Errorf("the machine was not kept as it was before step %d", step)
	}
	return p.machine.Rollback(ctx, p.at)
}

// overlapping says whether steps of a job run beside each other: its machine is never
// in one step only, so that there are no points of it.
func overlapping(job *plan.Job) bool {
	for _, s := range workflow.NumberedSteps(job.Definition.Steps) {
		if s.Background || s.Wait != nil || s.WaitAll {
			return true
		}
	}
	return false
}

// step is the definition of a numbered step, or nil.
func (h *hooks) step(number int) *workflow.Step {
	steps := workflow.NumberedSteps(h.job.Definition.Steps)
	if number < 1 || number > len(steps) {
		return nil
	}
	return steps[number-1]
}

// paused asks whoever waits for failures what is to become of a step.
func (h *hooks) paused(ctx context.Context, s engine.StepInfo, res engine.StepResult) (*engine.Retry, error) {
	def := h.step(s.Number)
	if h.runner.Pause == nil || h.points == nil || def == nil || def.ContinueOnError != nil {
		return nil, nil
	}
	a := h.runner.Pause(ctx, Pause{Machine: h.points.machine, Job: h.job, Step: s, Result: res, Rewinds: h.points.has(s.Number), Edits: def.Run != nil})
	if !a.Retry || ctx.Err() != nil {
		return nil, nil
	}
	again := &engine.Retry{Asked: true, Reason: "asked for", Run: a.Run}
	if a.Run != "" {
		again.Reason = "asked for, with another script"
	}
	if a.Rewind {
		again.Reason += ", from before it began"
		return again, h.points.rewind(ctx, s.Number)
	}
	return again, nil
}

// rewound is a retry that begins from before the step, if the machine was kept then.
func (h *hooks) rewound(ctx context.Context, s engine.StepInfo, again *engine.Retry) (*engine.Retry, error) {
	if !h.points.has(s.Number) {
		return again, nil
	}
	if err := h.points.rewind(ctx, s.Number); err != nil {
		return nil, err
	}
	again.Reason += "; the machine is as it was before the step"
	return again, nil
}

// noPoint tells that a step has none.
func (h *hooks) noPoint(s engine.StepInfo, err error) {
	h.runner.Log.Warn("the machine could not be kept as it is before a step", "job", fmt.Sprintf("%s, step %d", h.job.Key, s.Number), "err", h.mask.Field(err.Error()))
	h.runner.Sink.Emit(h.mask.Record(ci.Record{Type: ci.AnnotationRec, Run: h.runner.RunID, Job: h.job.ID, JobKey: h.job.Key, Step: s.Number, StepID: s.ID,
		Level: "notice", Message: "The machine could not be kept as it was before this step: " + err.Error()}))
}

// current is the agent of a machine that may be put back: after that it is another
// connection.
type current struct{ m machine.Machine }

func (c current) Exec(ctx context.Context, cmd guest.Cmd) (guest.Exit, error) {
	return c.m.Client().Exec(ctx, cmd)
}

func (c current) ReadFile(ctx context.Context, path string, limit int64) ([]byte, error) {
	return c.m.Client().ReadFile(ctx, path, limit)
}

func (c current) WriteFile(ctx context.Context, path string, data []byte, mode fs.FileMode, user string) error {
	return c.m.Client().WriteFile(ctx, path, data, mode, user)
}

func (c current) MkdirAll(ctx context.Context, path string, mode fs.FileMode, user string) error {
	return c.m.Client().MkdirAll(ctx, path, mode, user)
}

func (c current) Stat(ctx context.Context, path string) (guest.FileInfo, error) {
	return c.m.Client().Stat(ctx, path)
}

func (c current) TarIn(ctx context.Context, dir string, r io.Reader, user string) error {
	return c.m.Client().TarIn(ctx, dir, r, user)
}

func (c current) TarOut(ctx context.Context, dir string, paths []string, w io.Writer) error {
	return c.m.Client().TarOut(ctx, dir, paths, w)
}

func (c current) Dial(ctx context.Context, socket string) (net.Conn, error) {
	return c.m.Client().Dial(ctx, socket)
}
