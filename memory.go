package hearth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/store"
)

// memory is one run on record: what it was expected to do, what it did. A run of
// the library is a run like any other, with one job. A nil memory records nothing.
type memory struct {
	host     *Host
	run      ci.Run
	rec      *store.Recorder
	secrets  *mask.Set
	forecast learn.Forecast
}

const onlyJob = "workflow"

// remember begins the record of a run. A nil Host remembers nothing.
func (h *Host) remember(ctx context.Context, r *running) (*memory, error) {
	if h == nil {
		return nil, nil
	}
	c, w := r.context, r.workflow
	// What is written has to be written even when the run is cancelled.
	keep := context.WithoutCancel(ctx)
	name := w.Name
	if name == "" {
		name = "workflow"
	}
	repository := c.Repository
	if repository == "" {
		repository = "local/library"
	}
	run, _, err := h.store.CreateRun(keep, ci.Run{ID: r.result.ID, Event: c.Event, Repository: repository, Workflow: name, File: name, Name: name,
		Ref: c.Ref, SHA: c.SHA, Actor: c.Actor, Attempt: 1, Created: time.Now()}, []ci.Job{{Key: onlyJob, Job: onlyJob, Name: name, Status: ci.Queued}}, nil)
	if err != nil {
		return nil, fmt.Errorf("recording the run: %w", err)
	}
	m := &memory{host: h, run: run, secrets: r.secrets}
	if m.rec, err = h.store.Recorder(keep, run.ID); err != nil {
		return nil, fmt.Errorf("recording the run: %w", err)
	}
	m.emit(ci.Record{Type: ci.RunPlanned, Workflow: name, File: name, Name: name, Event: run.Event, SHA: run.SHA, Ref: run.Ref, Jobs: 1})
	info := learn.JobInfo{Key: onlyJob}
	for _, s := range w.steps() {
		info.Steps = append(info.Steps, learn.StepInfo{Number: s.number, Name: r.secrets.String(s.Name), Command: r.secrets.String(s.Run)})
	}
	host, _ := os.Hostname()
	known := []learn.JobInfo{info}
	m.forecast, err = h.learner.Before(ctx, learn.RunInfo{ID: run.ID, Repository: run.Repository, Workflow: name, Branch: run.Ref, Commit: run.SHA, Attempt: 1, Host: host, Jobs: known})
	if err != nil {
		h.log.Error("no prediction", "run", run.ID, "err", err) // learning is never in the way
	}
	for _, rec := range m.forecast.Records(known) {
		m.emit(rec)
	}
	m.emit(ci.Record{Type: ci.RunStarted, Workflow: name, File: name, Name: name, Event: run.Event, SHA: run.SHA, Ref: run.Ref, Jobs: 1})
	m.emit(ci.Record{Type: ci.JobStarted, Job: onlyJob, JobKey: onlyJob, Name: name})
	return m, nil
}

func (m *memory) emit(r ci.Record) {
	if m != nil {
		r.Run = m.run.ID
		m.rec.Emit(r)
	}
}

// expected is what was foretold of a step, or of the whole (0); nil if nothing.
func (m *memory) expected(step int) *Prediction {
	if m == nil {
		return nil
	}
	if step == 0 {
		if len(m.forecast.Jobs) == 0 {
			return nil
		}
		p := m.forecast.Run
		return &p
	}
	if p, ok := m.forecast.Steps[onlyJob][step]; ok {
		return &p
	}
	return nil
}

func (m *memory) step(s numbered, r ci.Record) {
	if m != nil {
		r.Job, r.JobKey, r.Step = onlyJob, onlyJob, s.number
		m.emit(r)
	}
}

func (m *memory) masked(text string) string {
	if m == nil {
		return ""
	}
	return m.secrets.String(text)
}

func (m *memory) stepStarted(s numbered) {
	m.step(s, ci.Record{Type: ci.StepStarted, Name: m.masked(s.Name), Command: m.masked(s.Run)})
}

func (m *memory) line(s numbered, text string) {
	m.step(s, ci.Record{Type: ci.LogLine, Stream: "stdout", Text: text})
}

func (m *memory) stepFinished(s numbered, x StepResult) {
	r := ci.Record{Type: ci.StepFinished, Name: x.Name, Conclusion: x.Conclusion, Outcome: x.Outcome, DurationMS: new(x.Duration.Milliseconds()), Infrastructure: x.ExitCode < 0}
	if x.Outcome != Skipped && x.ExitCode >= 0 {
		r.ExitCode = &x.ExitCode
	}
	m.step(s, r)
}

// explain asks what is known of a failure.
func (m *memory) explain(ctx context.Context, s numbered, code int, last []string) *Explanation {
	if m == nil || m.host.learner.Mode() == learn.Off || ctx.Err() != nil {
		return nil
	}
	e, err := m.host.learner.Explain(ctx, learn.Failure{Run: m.run.ID, Repository: m.run.Repository, Workflow: m.run.File, JobKey: onlyJob, Step: s.number, Name: m.masked(s.Name), Command: m.masked(s.Run),
		Branch: m.run.Ref, Commit: m.run.SHA, Attempt: 1, ExitCode: code, Lines: last})
	if err != nil {
		m.host.log.Error("explaining a failure", "run", m.run.ID, "err", err)
		return nil
	}
	m.step(s, ci.Record{Type: ci.PredictionRec, Explanation: &e})
	return &e
}

// finish closes the record; broken is why the workflow could not be run.
func (m *memory) finish(ctx context.Context, c Conclusion, broken error) error {
	if m == nil {
		return nil
	}
	end := ci.Record{Conclusion: c}
	if broken != nil {
		end.Infrastructure = true
		if end.Conclusion == "" {
			end.Conclusion = ci.Failure
		}
		end.Reason = m.masked(broken.Error())
	}
	job := end
	job.Type, job.Job, job.JobKey, job.Name = ci.JobFinished, onlyJob, onlyJob, m.run.Name
	end.Type = ci.RunFinished
	m.emit(job)
	m.emit(end)
	var errs []error
	if err := m.rec.Close(); err != nil {
		errs = append(errs, fmt.Errorf("the record of run %s is not complete: %w", m.run.ID, err))
	}
	if _, err := m.host.learner.Summary(context.WithoutCancel(ctx), m.run.ID); err != nil {
		m.host.log.Error("nothing was learned", "run", m.run.ID, "err", err)
	}
	return errors.Join(errs...)
}
