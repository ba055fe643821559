package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/learn"
)

func (a *app) learnTestsCommand() *cobra.Command {
	var all bool
	c := asks(a, &cobra.Command{Use: "tests", Short: "List tests that fail or are flaky, with the evidence, and which to quarantine", Args: cobra.NoArgs,
		Long: `List the tests that failed, those to look at first: what they came to, whether they
are flaky (they passed and failed on the same files), and which should be kept from
failing builds until somebody has looked at them. Results come from what steps print
(go test, also with -json; pytest with -v or -rA; TAP) and from JUnit reports in the
workspace and in artifacts.`},
		func(ctx context.Context, l *learn.Learner, repository string, _ []string) ([]learn.JudgedTest, error) {
			list, err := l.Tests(ctx, repository, all)
			if list == nil {
				list = []learn.JudgedTest{}
			}
			return list, err
		},
		func(list []learn.JudgedTest, repository string, _ []string) error {
			if len(list) == 0 {
				what := "no test has failed"
				if all {
					what = "no test is known"
				}
				_, err := fmt.Fprintf(a.err, "%s %s yet%s\n", what, where(repository), otherwise(repository))
				return err
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "STATE\tFAILED\tPASSED\tTO FAIL\tLAST\tJOB\tTEST")
			for _, t := range list {
				last := t.Recent[max(0, len(t.Recent)-10):]
				fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%s\n", t.State, t.Failed, t.Passed, board.Percent(t.PFail), last, board.Clean(t.Job),
					board.Cut(board.Clean(t.Name), 100))
			}
			if err := w.Flush(); err != nil {
				return err
			}
			for _, t := range list {
				if t.State == learn.Stable {
					continue
				}
				fmt.Fprintf(a.out, "\n%s\n  %s\n", board.Cut(board.Clean(t.Name), 160), board.Clean(t.Why))
				if t.Message != "" {
					fmt.Fprintf(a.out, "  it said: %s\n", board.Cut(board.Clean(t.Message), 140))
				}
				for _, e := range t.Evidence {
					fmt.Fprintf(a.out, "  %s  failed at %s", e.At.Local().Format(time.DateOnly), board.Cut(board.Clean(e.SHA), 10))
					if e.PassedIn != "" {
						fmt.Fprintf(a.out, ", and passed on the same files in run %s", board.Clean(e.PassedIn))
					}
					fmt.Fprintln(a.out)
				}
				if t.Quarantine {
					fmt.Fprintf(a.out, "  quarantine it until somebody has looked at it")
					if t.Skip != "" {
						fmt.Fprintf(a.out, ": %s", board.Clean(t.Skip))
					}
					fmt.Fprintln(a.out)
				}
			}
			return nil
		})
	c.Flags().BoolVar(&all, "all-tests", false, "those that have never failed, too")
	return c
}

// maxTestList bounds a list of tests that is read.
const maxTestList = 64 << 20

func (a *app) learnOrderCommand() *cobra.Command {
	return asks(a, &cobra.Command{Use: "order [FILE]", Short: "Put a list of tests into the order in which to run them: what may fail first", Args: cobra.MaximumNArgs(1),
		Long: `Put a list of tests, one a line, into the order in which to run them, so that what
fails fails early: for runners that take a list. "-" reads standard input. Without a
file all tests that are known are listed.`},
		func(ctx context.Context, l *learn.Learner, repository string, args []string) ([]learn.TestRank, error) {
			var names []string
			if len(args) > 0 {
				in := a.in
				if args[0] != "-" {
					f, err := os.Open(args[0])
					if err != nil {
						return nil, usage("%v", err)
					}
					defer f.Close()
					in = f
				}
				scan := bufio.NewScanner(io.LimitReader(in, maxTestList))
				scan.Buffer(nil, 1<<20)
				for scan.Scan() {
					if name := strings.TrimSpace(scan.Text()); name != "" {
						names = append(names, name)
					}
				}
				if err := scan.Err(); err != nil {
					return nil, usage("%s: %v", args[0], err)
				}
				if len(names) == 0 {
					return nil, nil
				}
			}
			return l.Order(ctx, repository, names)
		},
		func(list []learn.TestRank, repository string, args []string) error {
			if len(list) == 0 && len(args) == 0 {
				_, err := fmt.Fprintf(a.err, "no test is known %s yet%s\n", where(repository), otherwise(repository))
				return err
			}
			w := bufio.NewWriter(a.out)
			for _, t := range list {
				fmt.Fprintln(w, board.Clean(t.Name))
			}
			return w.Flush()
		})
}

func (a *app) learnEvalOrderCommand() *cobra.Command {
	return measures(a, &cobra.Command{
		Use:   "eval-order FILE.csv[.gz]",
		Short: "Replay builds: put the tests of each in order, and measure how early failures come",
		Long: `Replay a file of builds, a row for each test of a build, in the order of time: the
tests of each build are put in order from what earlier builds said, beside simpler
orders. Columns: build (or run, cycle), test (or name), failed (0/1; or outcome, verdict
as words), and if they are there duration_s, repo, workflow, job. A file of executions
with steps, as "eval" reads it, is taken too. "-" reads standard input. Measured is
APFD, the average percentage of faults detected, over the builds with a failure.`,
	}, "build,test,rank,p_fail of every row", onFile(a, learn.EvalOrder), func(r learn.OrderResult) error {
		fmt.Fprintf(a.out, "%d builds with %d results; %d with a failure are measured\n", r.Builds, r.Tests, r.Failed)
		if r.Failed == 0 {
			return nil
		}
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(w, "order\tAPFD\t90 %% interval\tAPFD by time\tfirst failure after\t\n")
		for _, o := range r.Orders {
			cost := "-"
			if o.Cost > 0 {
				cost = fmt.Sprintf("%.3f", o.Cost)
			}
			fmt.Fprintf(w, "%s\t%.3f\t%.3f–%.3f\t%s\t%.1f %% of the tests\t\n", o.Name, o.APFD, o.Low, o.High, cost, 100*o.First)
		}
		return w.Flush()
	})
}
