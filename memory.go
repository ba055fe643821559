package hearth

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/worker"
)

// A run of the library is on record like any other, with one job.

const (
	onlyJob   = "workflow"
	onLibrary = "local/library" // the memory of what names no repository
)

// row is the run's own.
func (r *running) row() ci.Run {
	c, name := r.context, cmp.Or(r.secrets.Field(r.workflow.Name), onlyJob)
	return ci.Run{ID: r.result.ID, Event: c.Event, Repository: cmp.Or(c.Repository, onLibrary), Workflow: name, File: name, Name: name,
		Ref: c.Ref, SHA: c.SHA, Actor: c.Actor, Attempt: 1, Created: r.result.Started}
}

// remember begins the record of a run. A nil Host remembers nothing.
func (r *running) remember(ctx context.Context) error {
	if r.Host == nil {
		return nil
	}
	row := r.row()
	var err error
	if r.entry, err = r.Host.ledger.Open(ctx, row, []ci.Job{{Key: onlyJob, Job: onlyJob, Name: row.Name, Status: ci.Queued}}, nil); err != nil {
		return fmt.Errorf("recording the run: %w", err)
	}
	known := worker.Known(r.plan)
	for i := range known[0].Steps {
		s := &known[0].Steps[i]
		s.Name, s.Command = r.secrets.String(s.Name), r.secrets.String(s.Command)
	}
	r.entry.Begin(1, known, learn.Change{}, nil)
	r.entry.Emit(r.secrets.Record(ci.Record{Type: ci.RunStarted, Workflow: row.Workflow, File: row.File, Name: row.Name, Event: row.Event, SHA: row.SHA,
		Ref: row.Ref, Jobs: 1}))
	return nil
}

// tell emits a record of the job that is not the engine's.
func (r *running) tell(rec ci.Record) {
	rec.Job, rec.JobKey = onlyJob, onlyJob
	r.Emit(r.secrets.Record(rec))
}

// expected is what was foretold of a step, or of the whole (0); nil if nothing.
func (r *running) expected(step int) *Prediction {
	if r.entry == nil || len(r.entry.Forecast.Jobs) == 0 {
		return nil
	}
	if step == 0 {
		p := r.entry.Forecast.Run
		return &p
	}
	if p, ok := r.entry.Forecast.Steps[onlyJob][step]; ok {
		return &p
	}
	return nil
}

// record closes the record; broken is why the workflow could not be run.
func (r *running) record(c Conclusion, broken error) error {
	if r.entry == nil {
		return nil
	}
	end := ci.Record{Conclusion: c, DurationMS: new(time.Since(r.result.Started).Milliseconds())}
	if broken != nil {
		end.Conclusion, end.Infrastructure, end.Reason = ci.Failure, true, broken.Error()
	}
	if !r.told {
		job := end
		job.Type, job.Name = ci.JobFinished, r.entry.Run.Name
		r.tell(job)
	}
	end.Type = ci.RunFinished
	r.entry.Emit(r.secrets.Record(end))
	err := r.entry.Close()
	r.entry.Summary() // it learns
	return err
}
