package hearth

import (
	"context"
	"fmt"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/ledger"
	"github.com/hearth-ci/hearth/internal/mask"
)

// memory is one run on record: what it was expected to do, what it did. A run of
// the library is a run like any other, with one job. A nil memory records nothing.
type memory struct {
	*ledger.Entry
	host    *Host
	secrets *mask.Set
}

const onlyJob = "workflow"

// remember begins the record of a run. A nil Host remembers nothing.
func (h *Host) remember(ctx context.Context, r *running) (*memory, error) {
	if h == nil {
		return nil, nil
	}
	c, w := r.context, r.workflow
	name := r.secrets.Field(w.Name)
	if name == "" {
		name = "workflow"
	}
	repository := c.Repository
	if repository == "" {
		repository = "local/library"
	}
	entry, err := h.ledger.Open(ctx, ci.Run{ID: r.result.ID, Event: c.Event, Repository: repository, Workflow: name, File: name, Name: name,
		Ref: c.Ref, SHA: c.SHA, Actor: c.Actor, Attempt: 1, Created: time.Now()}, []ci.Job{{Key: onlyJob, Job: onlyJob, Name: name, Status: ci.Queued}}, nil)
	if err != nil {
		return nil, fmt.Errorf("recording the run: %w", err)
	}
	m := &memory{Entry: entry, host: h, secrets: r.secrets}
	info := learn.JobInfo{Key: onlyJob}
	for _, s := range w.steps() {
		info.Steps = append(info.Steps, learn.StepInfo{Number: s.number, Name: r.secrets.String(s.Name), Command: r.secrets.String(s.Run)})
	}
	m.Begin(1, []learn.JobInfo{info}, nil)
	m.Emit(ci.Record{Type: ci.RunStarted, Workflow: name, File: name, Name: name, Event: m.Run.Event, SHA: m.Run.SHA, Ref: m.Run.Ref, Jobs: 1})
	m.Emit(ci.Record{Type: ci.JobStarted, Job: onlyJob, JobKey: onlyJob, Name: name})
	return m, nil
}

// Emit records r, masked.
func (m *memory) Emit(r ci.Record) { m.Entry.Emit(m.secrets.Record(r)) }

// expected is what was foretold of a step, or of the whole (0); nil if nothing.
func (m *memory) expected(step int) *Prediction {
	if m == nil {
		return nil
	}
	if step == 0 {
		if len(m.Forecast.Jobs) == 0 {
			return nil
		}
		p := m.Forecast.Run
		return &p
	}
	if p, ok := m.Forecast.Steps[onlyJob][step]; ok {
		return &p
	}
	return nil
}

func (m *memory) step(s numbered, r ci.Record) {
	if m != nil {
		r.Job, r.JobKey, r.Step = onlyJob, onlyJob, s.number
		m.Emit(r)
	}
}

func (m *memory) masked(text string) string {
	if m == nil {
		return ""
	}
	return m.secrets.String(text)
}

func (m *memory) stepStarted(s numbered) {
	m.step(s, ci.Record{Type: ci.StepStarted, Name: s.Name, Command: s.Run})
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
	e, err := m.host.learner.Explain(ctx, learn.Failure{Run: m.Run.ID, Repository: m.Run.Repository, Workflow: m.Run.File, JobKey: onlyJob, Step: s.number, Name: m.masked(s.Name), Command: m.masked(s.Run),
		Branch: m.Run.Ref, Commit: m.Run.SHA, Attempt: 1, ExitCode: code, Lines: last})
	if err != nil {
		m.host.log.Error("explaining a failure", "run", m.Run.ID, "err", err)
		return nil
	}
	m.step(s, ci.Record{Type: ci.PredictionRec, Explanation: &e})
	return &e
}

// finish closes the record; broken is why the workflow could not be run.
func (m *memory) finish(c Conclusion, broken error) error {
	if m == nil {
		return nil
	}
	end := ci.Record{Conclusion: c}
	if broken != nil {
		end.Infrastructure = true
		if end.Conclusion == "" {
			end.Conclusion = ci.Failure
		}
		end.Reason = broken.Error()
	}
	job := end
	job.Type, job.Job, job.JobKey, job.Name = ci.JobFinished, onlyJob, onlyJob, m.Run.Name
	end.Type = ci.RunFinished
	m.Emit(job)
	m.Emit(end)
	err := m.Close()
	m.Summary() // it learns
	return err
}
