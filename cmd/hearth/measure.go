package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

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
			fmt.Fprintf(w, "%s\t%.4f\t%.4f–%.4f\t%.1f %%\t%.1f %%\t%.1f %%\t×%.2f\t%.2f %%\t\n", v.Name, v.LogError, v.Low, v.High, 100*v.MedianAPE, 100*v.Within2x,
				100*v.P90Cover, v.P90Width, 100*v.P995Cover)
		}
		return w.Flush()
	})
}
