package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/ledger"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/worker"
)

// performOne records, predicts and drives one run, and says what was learned.
func (a *app) performOne(ctx context.Context, o runOptions, c *candidate, groups *conduct.Groups, late func(*plan.Job), runner func(ci.Sink) *worker.Runner,
	book *ledger.Ledger) (ci.Conclusion, error) {
	hidden := runner(nil).Hidden()
	conduct.Hide(hidden, c.plan, c.plan.Jobs)
	c.run.Name = c.plan.Name
	planned, err := json.Marshal(c.plan)
	if err != nil {
		return "", err
	}
	var jobs []ci.Job
	for _, j := range c.plan.Jobs {
		jobs = append(jobs, ci.Job{Key: j.Key, Job: j.ID, Name: j.Name, Labels: j.Labels, Status: ci.Queued})
	}
	c.run.Number = 0 // counted by the store
	out := a.output(o)
	entry, err := book.Open(ctx, c.run, jobs, planned, out.sink)
	if err != nil {
		out.close()
		return "", err
	}
	c.run = entry.Run
	entry.Begin(len(c.plan.Jobs), worker.Known(c.plan), worker.Change(c.plan.GitHub.Get("event"), c.happening),
		func(f learn.Forecast) []ci.Record { return worker.Predictions(c.plan, f) })
	works := runner(entry)
	works.Risk = worker.StepRisk(entry.Forecast)
	if o.pause {
		works.Pause = (&pauser{app: a, run: c.run.ID, limit: o.pauseFor, aside: out.aside, lines: make(chan string)}).pause
		works.Points = cmp.Or(works.Points, worker.EachPoint)
	}
	con := &conduct.Conductor{
		Run: c.plan, ID: c.run.ID, Sink: entry, Executor: works, Groups: groups, Risk: worker.Risk(entry.Forecast), Mask: hidden,
		Expanded: func(run *plan.Run) error { return entry.SetPlan(run) }, Late: late,
	}
	soft, driven := a.stop.drive()
	conclusion, err := con.Drive(ctx, soft)
	driven()
	if cerr := entry.Close(); err == nil {
		err = cerr
	}
	learned := entry.Summary()
	if cerr := out.close(); err == nil && cerr != nil {
		err = cerr
	}
	if !o.json {
		for _, line := range lessons(learned, len(entry.Forecast.Jobs) > 0) {
			fmt.Fprintln(a.out, line)
		}
	}
	if err == nil && entry.Lost() {
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
		if c.Ended == "" || c.Ended == ci.Skipped || c.Ended == ci.NotRun || c.Ended == ci.Cancelled {
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
