package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// Kept is a point that is to outlive its machine: before a step, or at the job's end.
type Kept struct {
	Job  *plan.Job
	Step int    // its number; at the end that of the last and one
	Name string // its name, masked; "" at the end
	// Cost is what the job took to come there.
	Cost   time.Duration
	Origin machine.Origin
	// Write writes the point: what is known of the job, and its machine. All of it is as
	// secret as the job.
	Write func(ctx context.Context, put func(private []byte) (io.Writer, error)) error
}

// Begin is where a job begins that another process has kept: what Kept.Write put
// first. It holds the job's secrets.
type Begin struct {
	Run     *plan.Run  `json:"run"`
	Job     string     `json:"job"` // its key
	Needs   expr.Value `json:"needs"`
	Token   string     `json:"token,omitempty"`
	Secrets map[string]string
	Env     map[string]string
	// Of deployment environments, as [Runner] has them.
	EnvironmentSecrets, EnvironmentVars map[string]map[string]string
	Network                             network.Policy
	Labels                              []string

	Repository, File, Ref, SHA string
	Attempt                    int

	State *engine.State `json:"state,omitempty"` // nil at the job's end, after which there is nothing to run
}

// MaxBegin bounds a Begin's JSON: a plan, outputs, secrets.
const MaxBegin = 256 << 20

// Planned is the job of a Begin that was read.
func (b *Begin) Planned() (*plan.Job, error) {
	if b.Run == nil {
		return nil, errors.New("the point has no plan")
	}
	j := b.Run.Job(b.Job)
	if j == nil || j.Definition == nil {
		return nil, fmt.Errorf("the point's plan has no job %q", b.Job)
	}
	return j, nil
}

// Runner is the part of a runner that a Begin knows.
func (b *Begin) Runner() *Runner {
	return &Runner{Repository: b.Repository, File: b.File, Ref: b.Ref, SHA: b.SHA, Attempt: b.Attempt, Secrets: b.Secrets, Env: b.Env,
		EnvironmentSecrets: b.EnvironmentSecrets, EnvironmentVars: b.EnvironmentVars, Network: b.Network,
		Token: func(context.Context, *plan.Job) (string, error) { return b.Token, nil }}
}

// Stand makes ready for a process to stand where the step would before which m was
// kept.
func (r *Runner) Stand(ctx context.Context, m machine.Machine, b *Begin) (*engine.Place, error) {
	job, err := b.Planned()
	if err != nil {
		return nil, err
	}
	g, err := r.Give(ctx, b.Run, job)
	if err != nil {
		return nil, err
	}
	return engine.Stand(ctx, engine.Job{Run: g.Run, Plan: job, Needs: b.Needs, RunID: r.RunID, Secrets: g.Secrets, Token: g.Token, Env: r.Env, Guest: current{m},
		Layout: r.Layout, Emit: ci.SinkFunc(func(ci.Record) {}), Log: r.Log, From: b.State, Runner: engine.Runner{Name: "hearth-" + m.ID()}})
}

// From has a Runner's job begin where it was kept.
type From struct {
	Saved   *machine.Saved
	State   *engine.State
	Script  string // in place of the first step's; "" is its own
	OneStep bool   // and nothing after that
}

// keepTime bounds how long a job's end waits until its last point is written.
const keepTime = 2 * time.Minute

// keep writes points beside the job.
type keep struct {
	sink  func(ctx context.Context, k Kept) error
	job   *plan.Job
	begin Begin // but for State
	began time.Time
	done  chan error // of the one that is being written; nil is none
}

// wait waits for the point that is being written, and says what became of it.
func (k *keep) wait() error {
	if k == nil || k.done == nil {
		return nil
	}
	err := <-k.done
	k.done = nil
	return err
}

// start writes a checkpoint of m while the job goes on. s is the step that it is
// before, without State at the job's end.
func (k *keep) start(ctx context.Context, m machine.Machine, at machine.Checkpoint, s engine.StepInfo) error {
	b := k.begin
	if s.State != nil {
		var err error
		if b.State, err = s.State(); err != nil {
			return err
		}
	}
	private, err := json.Marshal(b)
	if err != nil {
		return err
	}
	if len(private) > MaxBegin {
		return fmt.Errorf("what is known of the job has %d MiB", len(private)>>20)
	}
	kept := Kept{Job: k.job, Step: s.Number, Name: s.Name, Cost: time.Since(k.began), Origin: m.Origin(),
		Write: func(ctx context.Context, put func([]byte) (io.Writer, error)) error {
			w, err := put(private)
			if err != nil {
				return err
			}
			return m.Export(ctx, at, w)
		}}
	done := make(chan error, 1)
	k.done = done
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTime)
		defer cancel()
		done <- k.sink(ctx, kept)
	}()
	return nil
}

// end keeps the machine as the job left it, and waits for what is being written.
func (p *points) end(ctx context.Context, steps []*workflow.Step) error {
	if p == nil || p.keep == nil {
		return nil
	}
	var err error
	if p.policy != NoPoints && p.policy != "" && p.machine.Err() == nil {
		err = p.snap(ctx, engine.StepInfo{Number: len(workflow.NumberedSteps(steps)) + 1})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(err, p.keep.wait())
}
