package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/learn"
)

func (a *app) predictCommand() *cobra.Command {
	return asks(a, &cobra.Command{
		Use: `predict "COMMAND"`, Short: "Say how a command will fare, and why", Args: cobra.MinimumNArgs(1),
		Long: "Say how a command will fare, from the steps that have run it; of one that nobody has run, from what runs here otherwise.",
	}, func(ctx context.Context, l *learn.Learner, repository string, args []string) (learn.CommandForecast, error) {
		f, err := l.PredictCommand(ctx, repository, strings.Join(args, " "))
		if err != nil {
			err = usage("%v", err)
		}
		return f, err
	}, func(f learn.CommandForecast, repository string, _ []string) error {
		fmt.Fprintf(a.out, "%s to fail (%s–%s)", board.Percent(f.PFail), board.Percent(f.Low), board.Percent(f.High))
		if f.ExpectedMS > 0 {
			fmt.Fprintf(a.out, ", about %s", board.Short(time.Duration(f.ExpectedMS)*time.Millisecond))
		}
		fmt.Fprintf(a.out, ", from %d runs %s\n", f.Seen, where(repository))
		for _, r := range f.Reasons {
			fmt.Fprintf(a.out, "  %s\n", board.Clean(r))
		}
		for _, s := range f.Failures {
			fmt.Fprintf(a.out, "  it failed with: %s\n", board.Cut(board.Clean(s), 100))
		}
		if len(f.Places) < 2 {
			return nil
		}
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "TO FAIL\tRUNS\tJOB\tWORKFLOW\tREPOSITORY")
		for _, p := range f.Places {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", board.Percent(p.PFail), p.Seen, board.Clean(p.Job), board.Clean(p.Workflow), board.Clean(p.Repository))
		}
		return w.Flush()
	})
}

func (a *app) learnStatsCommand() *cobra.Command {
	return asks(a, &cobra.Command{Use: "stats", Short: "Count what was learned: successes, failures, patterns of both, lessons", Args: cobra.NoArgs},
		func(ctx context.Context, l *learn.Learner, repository string, _ []string) ([]learn.Counts, error) {
			return l.Count(ctx, repository)
		},
		func(counts []learn.Counts, _ string, _ []string) error {
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "SUCCEEDED\tFAILED\tCOMMANDS THAT SUCCEEDED\tKINDS OF FAILURES\tLESSONS\tREPOSITORY")
			for _, v := range counts {
				name := board.Clean(v.Repository)
				if name == "" {
					name = "in all"
				}
				fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t%s\n", v.Successes, v.Failures, v.SuccessPatterns, v.FailurePatterns, v.Lessons, name)
			}
			return w.Flush()
		})
}

func (a *app) learnLessonsCommand() *cobra.Command {
	return asks(a, &cobra.Command{Use: "lessons", Short: "List the lessons that hold, with how often they were shown and helped", Args: cobra.NoArgs},
		func(ctx context.Context, l *learn.Learner, repository string, _ []string) ([]learn.Lesson, error) {
			lessons, err := l.Lessons(ctx, repository)
			if lessons == nil {
				lessons = []learn.Lesson{}
			}
			return lessons, err
		},
		func(lessons []learn.Lesson, repository string, _ []string) error {
			if len(lessons) == 0 {
				_, err := fmt.Fprintf(a.err, "no lesson %s yet: a failure has to come back on three commits, or on two branches%s\n", where(repository), otherwise(repository))
				return err
			}
			for _, v := range lessons {
				fmt.Fprintf(a.out, "%s\n  %s, until %s; shown %d times, what it is about ended after %d of them\n  evidence: %s\n", board.Clean(v.Text),
					board.Clean(v.Repository), v.Expires.Local().Format(time.DateOnly), v.Shown, v.Helped, board.Clean(v.Evidence))
			}
			return nil
		})
}
