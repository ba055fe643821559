package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/worker"
)

// performOne records, predicts and drives one run, and says what was learned.
func (a *app) performOne(ctx context.Context, p *project, o runOptions, set runSettings, c *candidate, groups *worker.Groups, runner func(ci.Sink) *worker.Runner, s *store.Store, dirs config.Dirs, learner *learn.Learner) (ci.Conclusion, error) {
	// What is written down has to be written even when the run is cancelled.
	keep := context.WithoutCancel(ctx)
	planned, err := json.Marshal(c.plan)
	if err != nil {
		return "", err
	}
	var jobs []ci.Job
	for _, j := range c.plan.Jobs {
		jobs = append(jobs, ci.Job{Key: j.Key, Job: j.ID, Name: j.Name, Labels: j.Labels, Status: ci.Queued})
	}
	release, err := holdRun(dirs, c.run.ID)
	if err != nil {
		return "", err
	}
	defer release()
	c.run.Number = 0 // counted by the store
	if c.run, _, err = s.CreateRun(keep, c.run, jobs, planned); err != nil {
		return "", err
	}
	out := a.output(o)
	var lost atomic.Bool
	rec, err := s.Recorder(keep, c.run.ID, ci.SinkFunc(func(r ci.Record) {
		if r.Infrastructure {
			lost.Store(true)
		}
		out.sink.Emit(r)
	}))
	if err != nil {
		out.close()
		return "", err
	}
	rec.Emit(ci.Record{Type: ci.RunPlanned, Run: c.run.ID, Workflow: c.run.Workflow, File: c.file, Name: c.run.Name, Event: c.run.Event, SHA: c.run.SHA, Ref: c.run.Ref, Jobs: len(c.plan.Jobs)})
	host, _ := os.Hostname()
	known := worker.Known(c.plan)
	forecast, err := learner.Before(ctx, learn.RunInfo{ID: c.run.ID, Repository: c.run.Repository, Workflow: c.file, Branch: c.run.Ref, Commit: c.run.SHA, Attempt: c.run.Attempt, Host: host, Jobs: known})
	if err != nil {
		a.log().Error("no prediction", "error", err) // learning is never in the way
	}
	for _, r := range worker.Predictions(c.plan, forecast) {
		r.Run = c.run.ID
		rec.Emit(r)
	}
	con := &worker.Conductor{
		Run: c.plan, ID: c.run.ID, Sink: rec, Executor: runner(rec), Groups: groups, Risk: worker.Risk(forecast),
		Expanded: func(run *plan.Run) error {
			b, err := json.Marshal(run)
			if err != nil {
				return err
			}
			return s.SetPlan(keep, c.run.ID, b)
		},
	}
	conclusion, err := con.Drive(ctx, nil)
	if cerr := rec.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("the record of run %s is not complete: %w", c.run.ID, cerr)
	}
	learned, lerr := learner.Summary(keep, c.run.ID)
	if lerr != nil {
		a.log().Error("nothing was learned", "error", lerr)
	}
	if cerr := out.close(); err == nil && cerr != nil {
		err = cerr
	}
	if !o.json {
		for _, line := range lessons(learned, len(forecast.Jobs) > 0) {
			fmt.Fprintln(a.out, line)
		}
	}
	if err == nil && lost.Load() {
		err = fmt.Errorf("run %s: %w", c.run.ID, errJobInfrastructure)
	}
	return conclusion, err
}

// lessons says what a run taught, in lines.
func lessons(s learn.Summary, on bool) []string {
	if !on {
		return nil
	}
	steps, fresh, surprises := 0, 0, []string{}
	for _, c := range s.Predictions {
		if c.Ended == "" || c.Ended == ci.Skipped || c.Ended == ci.Cancelled {
			continue
		}
		if c.Step > 0 {
			steps++
			if c.Seen == 0 {
				fresh++
			}
		}
		failed := c.Ended == ci.Failure || c.Ended == ci.TimedOut
		if c.Step == 0 && c.JobKey != "" && c.Seen >= 2 && (failed && c.PFail < 0.2 || !failed && c.PFail > 0.8) {
			surprises = append(surprises, fmt.Sprintf("%s (%s to fail, %s)", board.Clean(c.JobKey), board.Percent(c.PFail), c.Ended))
		}
	}
	line := fmt.Sprintf("learned from %d steps", steps)
	if fresh > 0 {
		line += fmt.Sprintf(", %d of them new", fresh)
	}
	if steps > fresh {
		line += fmt.Sprintf("; predictions were off by %.2f on average (Brier)", s.Brier)
	}
	out := []string{line}
	if len(surprises) > 0 {
		out = append(out, "  surprises: "+strings.Join(surprises, ", "))
	}
	for _, l := range s.Lessons {
		out = append(out, "  lesson: "+board.Clean(l.Text))
	}
	return out
}
