package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/learn"
)

func (a *app) learnDurationsCommand() *cobra.Command {
	return measures(a, &cobra.Command{
		Use:   "eval-durations FILE.csv[.gz]",
		Short: "Replay a file of finished executions: foretell how long each takes, learn at its end",
		Long: `Replay a file of finished executions, as "eval" does and with its columns, and measure
what was foretold of durations (duration_s, or where that is empty the time from
started_at to ended_at) beside simple ways to foretell them. "-" reads standard input.`,
	}, "row,seconds,p90,p995 of every row that something is known of", onFile(a, learn.EvalDurations), func(r learn.DurationsResult) error {
		fmt.Fprintf(a.out, "%d durations, %d of what had run before\n", r.Rows, r.Compared)
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(w, "foretold by\tlog error\t90 %% interval\thalf are within\tfactor of two\t90 %% bound held\tis so far off\t99.5 %% bound held\t\n")
		for _, v := range r.Predictors {
			fmt.Fprintf(w, "%s\t%.4f\t%.4f–%.4f\t%.1f %%\t%.1f %%\t%.1f %%\t×%.2f\t%.2f %%\t\n", v.Name, v.LogError, v.Low, v.High,
				100*v.MedianAPE, 100*v.Within2x,
				100*v.P90Cover, v.P90Width, 100*v.P995Cover)
		}
		return w.Flush()
	})
}

// retryColumns describes the files of failures that are tried again.
const retryColumns = `The columns are those of "eval", with attempt; and, if there are any, signature and class
(of what a failure said, on the row of the attempt that failed) and asked (0 where nobody
chose to try again; else 1). "-" reads standard input.`

func (a *app) learnEvalRetryCommand() *cobra.Command {
	var wait time.Duration
	c := measures(a, &cobra.Command{
		Use:   "eval-retry FILE.csv[.gz]",
		Short: "Replay a file of executions: decide about each failure that was tried again",
		Long: `Replay a file of finished executions, decide about each failure whose next attempt is in
it, a row with an attempt above 1, whether to try again, and compare with simple rules.
` + retryColumns,
	}, "row,p_fail,retry of every later attempt", onFile(a, func(ctx context.Context, in io.Reader, predictions io.Writer) (learn.RetryResult, error) {
		return learn.EvalRetry(ctx, in, wait, predictions)
	}), func(r learn.RetryResult) error {
		fmt.Fprintf(a.out, "%d rows, %d failures that were tried again\n", r.Rows, r.Decisions)
		w := a.scores("the next attempt fails")
		w.row("hearth", r.Model)
		w.row("number of the attempt", r.Table)
		w.row("rate of the step", r.Rate)
		if err := w.end(); err != nil {
			return err
		}
		t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(t, "policy\tretried\tpassed\twrong\tmissed\tminutes saved of 100 failures\t90 %% interval\t\n")
		for _, v := range r.Policies {
			fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%.1f\t%.1f–%.1f\t\n", v.Name, v.Retried, v.Passed, v.Wrong, v.Missed, v.Saved, v.Low, v.High)
		}
		return t.Flush()
	})
	c.Flags().DurationVar(&wait, "wait", 15*time.Minute, "what it costs that a person has to look after a failure, in time of a machine")
	return c
}

func (a *app) learnReplayCommand() *cobra.Command {
	var wait time.Duration
	c := measures(a, &cobra.Command{
		Use:   "replay FILE.csv[.gz]",
		Short: "Replay a file of executions with decisions off and on: minutes saved, and wrong retries",
		Long: `Replay a file of finished executions and decide about each failure as "act" would, from
what was known then. Where the file has the next attempt, the retry comes to that; of the
others it is said what was expected of them.
` + retryColumns,
	}, "", onFile(a, func(ctx context.Context, in io.Reader, _ io.Writer) (learn.ReplayResult, error) {
		return learn.Replay(ctx, in, wait)
	}), func(r learn.ReplayResult) error {
		fmt.Fprintf(a.out, "%d rows, %d failures\n", r.Rows, r.Failures)
		fmt.Fprintf(a.out, "decisions off: people waited %.0f minutes for %d failures\n", r.Waited, r.Failures)
		on := r.On
		fmt.Fprintf(a.out, "decisions on:  %d tried again: %d passed, %d failed again (wrong), of %d the file does not tell\n", on.Retried,
			on.Passed, on.Wrong, on.Unknown)
		fmt.Fprintf(a.out, "               %.0f minutes of people saved for %.0f of a machine", on.Saved, on.Spent)
		if on.Unknown > 0 {
			fmt.Fprintf(a.out, "; of the untold another %.0f are expected, net", on.Expected)
		}
		fmt.Fprintln(a.out)
		if len(r.Repositories) < 2 {
			return nil
		}
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(w, "repository\tfailures\tretried\tpassed\twrong\tnot told\tminutes saved, net\t\n")
		for _, v := range r.Repositories[:min(len(r.Repositories), 20)] {
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%.0f\t\n", board.Cut(board.Clean(v.Repository), 60), v.Failures, v.Retried, v.Passed, v.Wrong,
				v.Unknown, v.Saved-v.Spent)
		}
		return w.Flush()
	})
	c.Flags().DurationVar(&wait, "wait", 15*time.Minute, "what it costs that a person has to look after a failure, in time of a machine")
	return c
}

func (a *app) learnRetriesCommand() *cobra.Command {
	return asks(a, &cobra.Command{
		Use: "retries", Short: "What was decided about failures, what came of it, and what other policies would have come to", Args: cobra.NoArgs,
		Long: `What was decided about failures: whether to try them again, by which probability, costs and
propensity, and what came of it. Where decisions were acted upon, other policies are
estimated from them (IPS: by inverse propensity; DR: doubly robust).`,
	}, func(ctx context.Context, l *learn.Learner, repository string, _ []string) (learn.RetryReport, error) {
		return l.RetryReport(ctx, repository)
	}, func(r learn.RetryReport, repository string, _ []string) error {
		if r.Decisions == 0 {
			_, err := fmt.Fprintf(a.err, "no failure was decided about %s yet%s\n", where(repository), otherwise(repository))
			return err
		}
		fmt.Fprintf(a.out, "%d failures: another attempt was advised for %d and made by itself for %d; of %d next attempts %d passed\n",
			r.Decisions, r.Advised, r.Taken,
			r.Known, r.Passed)
		if r.Taken > 0 {
			fmt.Fprintf(a.out, "those made by itself saved %.1f minutes, net; %d failed again\n", r.Minutes, r.Wrong)
		}
		if r.Known > 0 {
			w := a.scores("the next attempt fails")
			w.row("said", r.Model)
			if err := w.end(); err != nil {
				return err
			}
		}
		switch {
		case r.Acted == 0:
		case !r.Enough:
			fmt.Fprintf(a.out, "%d decisions were acted upon: too few to say what other policies would have come to\n", r.Acted)
		default:
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', tabwriter.AlignRight)
			fmt.Fprintf(w, "policy\tminutes of 100 failures, IPS\t90 %% interval\tDR\t90 %% interval\tthe record can say\t\n")
			for _, v := range r.Values {
				fmt.Fprintf(w, "%s\t%.1f\t%.1f–%.1f\t%.1f\t%.1f–%.1f\t%.0f %%\t\n", v.Name, v.IPS, v.IPSOf[0], v.IPSOf[1], v.DR, v.DROf[0],
					v.DROf[1], 100*v.Covered)
			}
			if err := w.Flush(); err != nil {
				return err
			}
		}
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "RUN\tJOB\tSTEP\tATTEMPT\tPASSES\tGAIN\tCOST\tPROPENSITY\tNEXT\tDECISION")
		for _, d := range r.Last {
			next := "-"
			if d.Known {
				next = map[bool]string{true: "passed", false: "failed"}[d.Passed]
			}
			fmt.Fprintf(w, "%.10s\t%s\t%d\t%d\t%s\t%s\t%s\t%.2f\t%s\t%s\n", board.Clean(d.Run), board.Cut(board.Clean(d.JobKey), 30), d.Step,
				d.Attempt, board.Percent(d.P),
				board.Short(time.Duration(d.GainMS)*time.Millisecond), board.Short(time.Duration(d.CostMS)*time.Millisecond), d.Propensity, next,
				board.Cut(board.Clean(d.Reason), 100))
		}
		return w.Flush()
	})
}

func (a *app) learnShiftsCommand() *cobra.Command {
	return asks(a, &cobra.Command{
		Use: "shifts", Short: "List steps and jobs that take longer or fail more often than before, and since when", Args: cobra.NoArgs,
		Long: `List the last change of level of each step and job: from which run on it takes longer
or less long, or fails more or less often. It takes some twenty runs to know what is
usual. Of public histories two to seven of a thousand executions are taken for a change.`,
	}, func(ctx context.Context, l *learn.Learner, repository string, _ []string) ([]learn.Shift, error) {
		list, err := l.Shifts(ctx, repository)
		if list == nil {
			list = []learn.Shift{}
		}
		return list, err
	}, func(list []learn.Shift, repository string, _ []string) error {
		if len(list) == 0 {
			_, err := fmt.Fprintf(a.err, "no change of level was noticed %s: that takes some twenty runs of a step%s\n", where(repository),
				otherwise(repository))
			return err
		}
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "SINCE\tRUN\tCOMMIT\tIT\tBEFORE\tNOW\tJOB\tSTEP\tWORKFLOW\tREPOSITORY")
		for _, s := range list {
			before, now := board.Percent(s.From), board.Percent(s.To)
			if s.Kind == "slower" || s.Kind == "faster" {
				before, now = board.Short(time.Duration(s.From*float64(time.Second))), board.Short(time.Duration(s.To*float64(time.Second)))
			}
			fmt.Fprintf(w, "%s\t%.10s\t%.10s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Began.Local().Format(time.DateTime), board.Clean(s.Run),
				board.Clean(s.Commit), s.Kind,
				before, now, board.Clean(s.Job), board.Cut(board.Clean(s.Step), 40), board.Clean(s.Workflow), board.Clean(s.Repository))
		}
		return w.Flush()
	})
}

func (a *app) learnTimeoutsCommand() *cobra.Command {
	return asks(a, &cobra.Command{
		Use: "timeouts", Short: "Say which timeout-minutes jobs and steps might have, from how long they took", Args: cobra.NoArgs,
		Long: `Say which timeout-minutes jobs and steps might have: half as much again as 99.5 % of their
runs take, from the last thirty. It is advice: nothing is ended by it.`,
	}, func(ctx context.Context, l *learn.Learner, repository string, _ []string) ([]learn.Timeout, error) {
		list, err := l.Timeouts(ctx, repository)
		if list == nil {
			list = []learn.Timeout{}
		}
		return list, err
	}, func(list []learn.Timeout, repository string, _ []string) error {
		if len(list) == 0 {
			_, err := fmt.Fprintf(a.err, "nothing to say %s yet: a job has to have run ten times%s\n", where(repository), otherwise(repository))
			return err
		}
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "MINUTES\tUSUALLY\t99.5 % TAKE LESS THAN\tRUNS\tJOB\tSTEP\tWORKFLOW\tREPOSITORY")
		for _, v := range list {
			fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", v.Minutes, board.Short(v.Usual), board.Short(v.Bound), v.Runs, board.Clean(v.Job),
				board.Cut(board.Clean(v.Step), 40), board.Clean(v.Workflow), board.Clean(v.Repository))
		}
		return w.Flush()
	})
}
