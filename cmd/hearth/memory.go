package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/learn"
)

// The commands that ask what is remembered.

func (a *app) learnCommand() *cobra.Command {
	c := &cobra.Command{Use: "learn", Short: "What was learned, and how good the predictions are: of one's own history, and of files"}
	c.AddCommand(a.learnReportCommand(), a.learnEvalCommand(), a.learnBlocksCommand(), a.learnFlakyCommand(), a.learnDurationsCommand(),
		a.learnStatsCommand(), a.learnLessonsCommand(), a.learnTestsCommand())
	c.AddCommand(a.learnEvalRetryCommand(), a.learnReplayCommand(), a.learnRetriesCommand(), a.learnShiftsCommand(), a.learnTimeoutsCommand())
	c.AddCommand(a.learnOrderCommand(), a.learnEvalOrderCommand())
	c.AddCommand(a.learnImportCommand(), a.learnExportCommand(), a.learnForgetCommand())
	return c
}

// learner opens the memory of the record.
func (a *app) learner(ctx context.Context, fn func(*learn.Learner) error) error {
	s, _, err := a.store(ctx, "")
	if err != nil {
		return err
	}
	defer s.Close()
	l, err := learn.Open(ctx, s, learn.Options{Log: a.log()})
	if err != nil {
		return err
	}
	return fn(l)
}

// scope is whose memory is asked: that of a repository, or of all.
type scope struct {
	repository string
	all        bool
}

func (s *scope) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.repository, "repository", "", "ask about this owner/name (default: the repository of the current directory)")
	f.BoolVar(&s.all, "all", false, "ask about all repositories that are on record")
}

// name is the repository that is asked about; "" for all.
func (s *scope) name(ctx context.Context) (string, error) {
	switch {
	case s.all && s.repository != "":
		return "", usage("--all and --repository exclude each other")
	case s.all, s.repository != "":
		return s.repository, nil
	}
	p, err := findProject(ctx, ".")
	if err != nil {
		return "", err
	}
	return p.repository, nil
}

// where names the scope in a sentence.
func where(repository string) string {
	if repository == "" {
		return "on record"
	}
	return "in " + board.Clean(repository)
}

// asks makes c a command that asks the memory, of a repository or of all: what it
// answers is printed, or with --json encoded.
func asks[T any](a *app, c *cobra.Command, ask func(ctx context.Context, l *learn.Learner, repository string, args []string) (T, error),
	print func(answer T, repository string, args []string) error) *cobra.Command {
	var asJSON bool
	var of scope
	c.RunE = func(c *cobra.Command, args []string) error {
		repository, err := of.name(c.Context())
		if err != nil {
			return err
		}
		return a.learner(c.Context(), func(l *learn.Learner) error {
			answer, err := ask(c.Context(), l, repository, args)
			if err != nil {
				return err
			}
			if asJSON {
				return board.NewEncoder(a.out).Encode(answer)
			}
			return print(answer, repository, args)
		})
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	of.flags(c)
	return c
}

func (a *app) learnReportCommand() *cobra.Command {
	return asks(a, &cobra.Command{Use: "report", Short: "Compare what was predicted here with what happened", Args: cobra.NoArgs},
		func(ctx context.Context, l *learn.Learner, repository string, _ []string) (learn.Report, error) {
			return l.Report(ctx, repository)
		},
		func(r learn.Report, repository string, _ []string) error {
			if r.Steps.N == 0 {
				_, err := fmt.Fprintf(a.out, "nothing to compare %s yet: no prediction has met its outcome%s\n", where(repository), otherwise(repository))
				return err
			}
			w := a.scores("predictions of")
			w.row("steps", r.Steps)
			w.row("jobs", r.Jobs)
			w.row("runs", r.Runs)
			if err := w.end(); err != nil {
				return err
			}
			for _, unit := range slices.Sorted(maps.Keys(r.Before)) {
				b := r.Before[unit]
				fmt.Fprintf(a.out, "and %d older ones of %ss since %s, %d failed: log-loss %.4f, Brier %.4f\n", b.N, unit, b.Since.Local().Format(time.DateOnly),
					b.Failed, b.LogLoss, b.Brier)
			}
			if err := a.greens(r.Greens); err != nil {
				return err
			}
			return a.durations(r.Duration)
		})
}

// otherwise is the hint that there may be more to ask.
func otherwise(repository string) string {
	if repository == "" {
		return ""
	}
	return " (--repository asks about another, --all about all)"
}

// measures makes c a command that measures predictions on a file or a directory,
// and writes them where --predictions says, with these columns; "" has none.
func measures[T any](a *app, c *cobra.Command, columns string, eval func(ctx context.Context, name string, predictions io.Writer) (T, error),
	print func(T) error) *cobra.Command {
	var asJSON bool
	var predictions string
	c.Args = cobra.ExactArgs(1)
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		if args[0] != "-" { // before the file of predictions is touched
			f, err := os.Open(args[0])
			if err != nil {
				return usage("%v", err)
			}
			f.Close()
		}
		out, done, err := predictionsFile(predictions)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, done()) }()
		r, err := eval(c.Context(), args[0], out)
		if err != nil {
			return usage("%v", err)
		}
		if asJSON {
			return board.NewEncoder(a.out).Encode(r)
		}
		return print(r)
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	if columns != "" {
		c.Flags().StringVar(&predictions, "predictions", "", "write "+columns+" to this file")
	}
	return c
}

// onFile is a measurement of one file, which "-" reads from standard input.
func onFile[T any](a *app,
	eval func(ctx context.Context, in io.Reader, predictions io.Writer) (T, error)) func(context.Context, string, io.Writer) (T, error) {
	return func(ctx context.Context, name string, predictions io.Writer) (r T, err error) {
		in := a.in
		if name != "-" {
			f, err := os.Open(name)
			if err != nil {
				return r, err
			}
			defer f.Close()
			in = f
		}
		if r, err = eval(ctx, in, predictions); err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
		return r, err
	}
}

func (a *app) learnEvalCommand() *cobra.Command {
	var cold bool
	c := measures(a, &cobra.Command{
		Use:   "eval FILE.csv[.gz]",
		Short: "Replay a file of finished executions: predict each at its start, learn at its end",
		Long: `Replay a file of finished executions, one a row, and measure the predictions.
Columns: started_at, ended_at (unix s), repo, workflow, job, step, branch, commit,
attempt, failed (0/1), duration_s; sorted by start; and, if there are any, author,
parent (commit), files, added, deleted (lines), src, test, doc, config (files) of
what the commit changed. Each row is predicted from the rows that had ended before
it started; with --cold from those of its repository alone, as on a fresh install.
"-" reads standard input.`,
	}, "row,p_fail of every row", onFile(a, func(ctx context.Context, in io.Reader, predictions io.Writer) (learn.EvalResult, error) {
		return learn.Eval(ctx, in, learn.EvalOptions{Cold: cold, Predictions: predictions})
	}), func(r learn.EvalResult) error {
		fmt.Fprintf(a.out, "%d rows\n", r.Rows)
		w := a.scores("predictor")
		w.row("hearth", r.Model)
		w.row("hierarchical decayed Beta", r.Hierarchical)
		w.row("last outcome", r.LastOutcome)
		w.row("base rate", r.BaseRate)
		if err := w.end(); err != nil {
			return err
		}
		if err := a.greens(r.Greens); err != nil {
			return err
		}
		return a.durations(r.Duration)
	})
	c.Flags().BoolVar(&cold, "cold", false, "know nothing of a repository but what happened in it")
	return c
}

func (a *app) learnBlocksCommand() *cobra.Command {
	return measures(a, &cobra.Command{
		Use:   "eval-blocks DIR",
		Short: "Compare the lines that are shown of failures with those that a person marked",
		Long: `Compare the lines that are shown of failures with those that a person marked:
of every NAME.log in the directory with a NAME.gold beside it, which has the marked
lines as "start end", from 1, a pair a line.`,
	}, "file,start,end of what would be shown", learn.EvalBlocks, func(r learn.BlocksResult) error {
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(w, "shown\tlogs\tline F1\t90 %% interval\tthe marked line\tit is shown\tnothing is\t\n")
		for _, v := range []struct {
			name string
			learn.BlockScores
		}{{"hearth", r.Hearth}, {"last ten lines", r.LastTen}} {
			fmt.Fprintf(w, "%s\t%d\t%.3f\t%.3f–%.3f\t%d\t%d\t%d\t\n", v.name, v.Logs, v.F1, v.Low, v.High, v.Exact, v.Within, v.Silent)
		}
		return w.Flush()
	})
}

func (a *app) learnFlakyCommand() *cobra.Command {
	return measures(a, &cobra.Command{
		Use:   "eval-flaky DIR",
		Short: "Judge failed logs as flaky or real, in the order of time, each from the labels before it",
		Long: `Judge failed logs as flaky or real, in the order of time, each from the labels of
those before it. The directory has labels.csv (columns id, job, created_at,
intermittent: 0 or 1) and logs/ID.log.`,
	}, "id,p_flaky of every failure", learn.EvalFlaky, func(r learn.FlakyResult) error {
		fmt.Fprintf(a.out, "%d failures, %d of them flaky\n", r.N, r.Flaky)
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(w, "judged by\tF1\t90 %% interval\tprecision\trecall\tlog-loss\t\n")
		for _, v := range []struct {
			name string
			learn.FlakyScores
		}{{"hearth", r.Hearth}, {"nearest neighbour", r.Nearest}} {
			fmt.Fprintf(w, "%s\t%.3f\t%.3f–%.3f\t%.3f\t%.3f\t%.3f\t\n", v.name, v.F1, v.Low, v.High, v.Precision, v.Recall, v.LogLoss)
		}
		return w.Flush()
	})
}

// predictionsFile opens what --predictions names; with "" there is none.
func predictionsFile(name string) (io.Writer, func() error, error) {
	if name == "" {
		return nil, func() error { return nil }, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, nil, usage("--predictions: %v", err)
	}
	b := bufio.NewWriter(f)
	return b, func() error { return errors.Join(b.Flush(), f.Close()) }, nil
}

type scoreTable struct{ w *tabwriter.Writer }

func (a *app) scores(what string) scoreTable {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%s\tn\tfailed\tAUC\tlog-loss\tBrier\tECE\t\n", what)
	return scoreTable{w}
}

func (t scoreTable) row(name string, s learn.Scores) {
	fmt.Fprintf(t.w, "%s\t%d\t%d\t%.3f\t%.4f\t%.4f\t%.4f\t\n", name, s.N, s.Failed, s.AUC, s.LogLoss, s.Brier, s.ECE)
}

func (t scoreTable) end() error { return t.w.Flush() }

// greens shows whether what had never failed failed as often as was said.
func (a *app) greens(list []learn.Calibration) error {
	if len(list) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "passes, and no failure\tn\tpredicted\tfailed\t90 %% interval\t\t\n")
	for _, c := range list {
		passes, verdict := fmt.Sprint(c.From), "honest"
		if c.To > c.From {
			passes = fmt.Sprintf("%d–%d", c.From, c.To)
		}
		if c.Predicted < c.Low {
			verdict = "too sure of passing"
		} else if !c.Holds() {
			verdict = "too sure of failing"
		}
		fmt.Fprintf(w, "%s\t%d\t%.4f\t%.4f\t%.4f–%.4f\t%s\t\n", passes, c.N, c.Predicted, float64(c.Failed)/float64(c.N), c.Low, c.High, verdict)
	}
	return w.Flush()
}

func (a *app) durations(d *learn.DurationScores) error {
	if d == nil || d.N == 0 {
		return nil
	}
	line := fmt.Sprintf("durations (%d): half are within %.0f %% of what was expected, %.0f %% within a factor of two", d.N, d.MedianAPE*100, d.Within2x*100)
	if d.P90Cover > 0 {
		line += fmt.Sprintf("; the 90 %% bound held for %.0f %%", d.P90Cover*100)
	}
	_, err := fmt.Fprintln(a.out, line)
	return err
}

func (a *app) graphCommand() *cobra.Command {
	c := &cobra.Command{Use: "graph", Short: "Ask the knowledge graph: related commands, what comes next"}
	sub := func(use, short string, ask func(ctx context.Context, l *learn.Learner, repository string, args []string, n int) ([]graph.Match, error),
		args cobra.PositionalArgs) *cobra.Command {
		var n int
		s := asks(a, &cobra.Command{Use: use, Short: short, Args: args},
			func(ctx context.Context, l *learn.Learner, repository string, args []string) ([]graph.Match, error) {
				found, err := ask(ctx, l, repository, args, n)
				if found == nil {
					found = []graph.Match{}
				}
				return found, err
			},
			func(found []graph.Match, repository string, args []string) error {
				if len(found) == 0 {
					_, err := fmt.Fprintf(a.err, "nothing is known about %q %s yet: a command has to have met others at least three times%s\n",
						strings.Join(args, " "), where(repository), otherwise(repository))
					return err
				}
				w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "SCORE\tSEEN\tFAILED\tCOMMAND")
				for _, m := range found {
					fmt.Fprintf(w, "%.2f\t%.0f\t%.0f\t%s\n", m.Score, m.Count, m.Failed, board.Cut(board.Clean(strings.ReplaceAll(m.Name, "\n", " ⏎ ")), 100))
				}
				return w.Flush()
			})
		s.Flags().IntVarP(&n, "limit", "n", 10, "how many")
		return s
	}
	c.AddCommand(
		sub(`related "COMMAND"`, "Commands that run together with this one more often than chance has it",
			func(ctx context.Context, l *learn.Learner, repository string, args []string, n int) ([]graph.Match, error) {
				return l.Related(ctx, repository, strings.Join(args, " "), n)
			}, cobra.MinimumNArgs(1)),
		sub(`next "COMMAND"…`, "What usually comes after these commands",
			func(ctx context.Context, l *learn.Learner, repository string, args []string, n int) ([]graph.Match, error) {
				return l.Next(ctx, repository, n, args...)
			}, cobra.MinimumNArgs(1)),
		sub(`similar SIGNATURE`, "Failures that are like this one",
			func(ctx context.Context, l *learn.Learner, repository string, args []string, n int) ([]graph.Match, error) {
				return l.Similar(ctx, repository, args[0], n)
			}, cobra.ExactArgs(1)),
	)
	return c
}
