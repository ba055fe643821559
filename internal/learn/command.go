package learn

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/store"
)

// CommandRun is a command that runs in a machine outside of workflows. It has no
// run, no commit and no record: what is learned of it is what is given here. Its
// place is that of a step; a machine stands where a commit does, since what failed
// in three machines was no accident of one.
type CommandRun struct {
	ID         string // of this execution: unique
	Repository string // whose memory it is
	Workflow   string // what kind of door it came by: api, vm, library
	Job        string // what runs it: bash, python3
	Machine    string // in which it runs
	Command    string // masked of secrets, by [graph.Command]
	// Before are the commands that ran before it in the machine, the last one last.
	Before []string
	// Attempt is how often it has failed in a row up to now, with nothing between, and
	// one.
	Attempt int
	// Since are the commands that have ended in the machine since this one failed
	// there; nil says that it has not failed or that nothing ended.
	Since []string
	Began time.Time
}

// CommandEnd is how a command ended.
type CommandEnd struct {
	Conclusion ci.Conclusion // Success, Failure, TimedOut; others are no outcome
	ExitCode   int
	At         time.Time
	Lines      []string // of its output, masked of secrets; only of a failure
}

func (c *CommandRun) run() ci.Run {
	return ci.Run{ID: c.ID, Repository: c.Repository, File: c.Workflow, SHA: c.Machine, Attempt: max(c.Attempt, 1), Name: c.Workflow}
}

func (c *CommandRun) execution() Execution {
	run := c.run()
	x := execution(&run, unitStep, c.Job, c.Command, c.Began)
	x.Machine = true
	return x
}

// ExpectCommand says what is expected of a command that is about to run. Nothing is
// stored before it has ended.
func (l *Learner) ExpectCommand(ctx context.Context, c CommandRun) (p ci.Prediction, err error) {
	if l.ModeOf(c.Repository) == Off || c.Command == "" {
		return p, nil
	}
	if _, err := l.Consume(ctx); err != nil {
		return p, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, p = l.foretell(c.execution())
	return p, nil
}

// CommandEnded learns from a command that has ended, of which p was expected, and
// explains it if it has failed.
func (l *Learner) CommandEnded(ctx context.Context, c CommandRun, p ci.Prediction, end CommandEnd) (*ci.Explanation, error) {
	failed, counts := verdict(end.Conclusion, false)
	if l.ModeOf(c.Repository) == Off || c.Command == "" || !counts {
		return nil, nil
	}
	x, run := c.execution(), c.run()
	if err := l.store.AddPredictions(ctx, []store.Prediction{{Repository: c.Repository, Run: c.ID, JobKey: c.Job, Step: 1, Identity: place(&x), Made: c.Began,
		Prediction: p}}); err != nil {
		return nil, fmt.Errorf("learn: %w", err)
	}
	rec := ci.Record{Time: end.At, DurationMS: new(end.At.Sub(c.Began).Milliseconds())}
	l.mu.Lock()
	err := l.learn(ctx, func(tx *store.Learning) (int64, error) {
		if _, err := l.outcome(tx, target{c.ID, c.Job, 1}, x, rec, end.Conclusion, c.Began, false); err != nil {
			return 0, err
		}
		l.ran(&x, stepState{command: c.Command}, c.Before, failed, end.At.UnixMilli())
		l.model.Settle()
		switch {
		case x.Attempt > 1:
			return tx.Cursor, l.retried(tx, &x, &run, rec, !failed)
		case !failed && len(c.Since) > 0:
			return tx.Cursor, l.endedBy(tx, place(&x), run, c.Since)
		}
		return tx.Cursor, nil
	})
	l.mu.Unlock()
	if err != nil || !failed {
		return nil, err
	}
	e, err := l.Explain(ctx, Failure{Run: c.ID, Repository: c.Repository, Workflow: c.Workflow, JobKey: c.Job, Step: 1, Command: c.Command, Commit: c.Machine,
		Machine: true, Attempt: x.Attempt, ExitCode: end.ExitCode, Lines: append([]string{}, end.Lines...)})
	if err != nil {
		return nil, err
	}
	return &e, nil
}

// ran puts an execution into the graph: its command, after those before it in its
// job or machine, and its place.
func (l *Learner) ran(x *Execution, st stepState, before []string, failed bool, ms int64) {
	g := l.graphs.of(x.Repo)
	g.Ran(x.Step, st.command, before, failed, ms)
	step := graph.ID(graph.Step, place(x))
	g.Touch(step, st.name, failed, ms)
	g.Link(step, graph.PartOf, nodeID(graph.Job, x.Repo, x.Workflow, x.Job), failed, ms)
	if x.Action != "" {
		g.Touch(graph.ID(graph.Action, x.Action), "", failed, ms)
	}
}

// Remember appends a command to those that ran before the next one: the last eight,
// a repetition once.
func Remember(before []string, command string) []string {
	if n := len(before); n > 0 && before[n-1] == command {
		return before
	}
	before = append(before, command)
	return before[max(len(before)-8, 0):]
}

// maxFix is how much of the commands that ended a failure is kept, in bytes.
const maxFix = 300

// endedBy notes for what a command last failed with in its machine which other
// commands ended it.
func (l *Learner) endedBy(tx *store.Learning, where string, run ci.Run, since []string) error {
	hits, err := tx.RecentHits(run.Repository, where, 20)
	if err != nil {
		return err
	}
	for _, h := range hits { // the newest is what it failed with
		if h.SHA != run.SHA {
			continue
		}
		if err := tx.Fixed(run.Repository, h.Signature, clip(strings.Join(since, "; "), maxFix), ""); err != nil {
			return err
		}
		l.flakes.Label(run.Repository, h.Signature, false)
		return tx.LessonHelped(run.Repository, where, h.Signature)
	}
	return nil
}
