package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/tui"
)

// The commands that read back the record.

func (a *app) runsCommand() *cobra.Command {
	var limit int
	var asJSON bool
	var repository, workflow string
	c := &cobra.Command{
		Use: "runs", Short: "List the runs that are on record, the newest first", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, _, err := a.store(c.Context(), "")
			if err != nil {
				return err
			}
			defer s.Close()
			runs, err := s.Runs(c.Context(), store.RunFilter{Repository: repository, Workflow: workflow, Limit: limit})
			if err != nil {
				return err
			}
			if asJSON {
				enc := board.NewEncoder(a.out)
				for _, r := range runs {
					if err := enc.Encode(r); err != nil {
						return err
					}
				}
				return nil
			}
			if len(runs) == 0 {
				_, err := fmt.Fprintln(a.err, "no runs on record yet: hearth run")
				return err
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "RUN\tWHEN\tREPOSITORY\tWORKFLOW\tEVENT\tREF\tRESULT\tTOOK")
			for _, r := range runs {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s #%d\t%s\t%s\t%s\t%s\n", r.ID, ago(r.Created), board.Clean(r.Repository), board.Clean(r.Workflow), r.Number, r.Event,
					board.Clean(shortRef(r.Ref)), word(board.Mark(r.Status, r.Conclusion, r.Infrastructure)), took(r.Started, r.Finished))
			}
			return w.Flush()
		},
	}
	f := c.Flags()
	f.IntVarP(&limit, "limit", "n", 20, "how many")
	f.BoolVar(&asJSON, "json", false, "one run a line, as JSON")
	f.StringVar(&repository, "repository", "", "only of this owner/name")
	f.StringVarP(&workflow, "workflow", "w", "", "only of this workflow")
	return c
}

func (a *app) explainCommand() *cobra.Command {
	var asJSON bool
	var job string
	var step int
	c := &cobra.Command{
		Use: "explain RUN", Short: "Say what is known of a run's failures, with the lines that matter", Args: cobra.ExactArgs(1),
		Long: "Say what is known of a run's failures: the lines of the output that matter, whether they were seen\n" +
			"before, what ended them then, and what to do. RUN is its id, the beginning of it, or \"last\".",
		RunE: func(c *cobra.Command, args []string) error {
			s, run, err := a.openRun(c, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			type failure struct {
				Job         string          `json:"job"`
				Step        int             `json:"step"`
				Name        string          `json:"name"`
				Explanation *ci.Explanation `json:"explanation"`
			}
			found := []failure{}
			failed := 0
			var b board.Board
			err = s.EachRunRecord(c.Context(), run.ID, func(r ci.Record) {
				b.Apply(r)
				if job != "" && r.JobKey != job || step != 0 && r.Step != step {
					return
				}
				if r.Type == ci.StepFinished && r.Outcome == ci.Failure {
					failed++
				}
				if r.Explanation == nil {
					return
				}
				f := failure{Job: r.JobKey, Step: r.Step, Explanation: r.Explanation}
				for _, st := range b.JobOf(r).Steps {
					if st.Number == r.Step {
						f.Name = st.Name
					}
				}
				found = append(found, f)
			})
			if err != nil {
				return err
			}
			if asJSON {
				return board.NewEncoder(a.out).Encode(found)
			}
			for _, f := range found {
				fmt.Fprintf(a.out, "%s, step %d, %s\n", board.Clean(f.Job), f.Step, board.Cut(board.Clean(f.Name), 80))
				for _, l := range board.Explain(f.Explanation) {
					fmt.Fprintln(a.out, l)
				}
			}
			if len(found) > 0 {
				return nil
			}
			text := "no step failed"
			if failed > 0 {
				text = fmt.Sprintf("of %d failed steps nothing was learned: hearth run --learn advise does; hearth logs %s shows what they printed", failed, run.ID)
			}
			_, err = fmt.Fprintln(a.err, text)
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	c.Flags().StringVar(&job, "job", "", "of this job alone, by its key")
	c.Flags().IntVar(&step, "step", 0, "of this step alone")
	return c
}

func (a *app) showCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "show RUN", Short: "Show one run: its jobs, steps, predictions and explanations", Args: cobra.ExactArgs(1),
		Long: "Show one run. RUN is its id, the beginning of it, or \"last\".",
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			s, run, err := a.openRun(c, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			b := board.Board{Documents: 1 << 30} // what there is
			var last *tui.JSON
			if asJSON {
				last = tui.NewJSON(a.out)
			}
			do := b.Apply
			if asJSON {
				do = last.Emit
			}
			if err := s.EachRunRecord(ctx, run.ID, do); err != nil {
				return err
			}
			if asJSON {
				return last.Close()
			}
			fmt.Fprintf(a.out, "%s #%d, attempt %d: %s\n", board.Clean(run.Workflow), run.Number, run.Attempt, board.Clean(run.Name))
			fmt.Fprintf(a.out, "%s on %s %s, %s\n\n", run.Event, board.Clean(run.Repository), board.Clean(shortRef(run.Ref)), ago(run.Created))
			for _, j := range b.Jobs {
				fmt.Fprintf(a.out, "%s: %s%s\n", board.Clean(j.Name), word(j.Mark()), reason(j.Reason))
				if j.Machine != "" {
					fmt.Fprintf(a.out, "  machine: %s\n", j.Machine)
				}
				if e := board.Expectation(j.Prediction); e != "" {
					fmt.Fprintf(a.out, "  expected: %s\n", e)
				}
				for _, st := range j.Steps {
					fmt.Fprintf(a.out, "  %2d %-15s %8s  %s%s\n", st.Number, word(st.Mark()), board.Short(st.Duration), board.Clean(st.Name), reason(st.Reason))
				}
			}
			fmt.Fprintln(a.out)
			for _, line := range append(b.Written(0), b.Summary()...) {
				fmt.Fprintln(a.out, line)
			}
			return a.showArtifacts(run)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "the run's records, as NDJSON")
	return c
}

func (a *app) logsCommand() *cobra.Command {
	var job, step string
	var asJSON, follow bool
	c := &cobra.Command{
		Use: "logs RUN", Short: "Print what a run's steps printed", Args: cobra.ExactArgs(1),
		Long: "Print what a run's steps printed. RUN is its id, the beginning of it, or \"last\".",
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			s, run, err := a.openRun(c, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			jobs, err := s.Jobs(ctx, run.ID)
			if err != nil {
				return err
			}
			printed := false
			for _, j := range jobs {
				if job != "" && !strings.EqualFold(j.Job.Job, job) && !strings.EqualFold(j.Key, job) && !strings.EqualFold(j.Name, job) {
					continue
				}
				number, err := stepNumber(c, s, j.ID, step)
				if err != nil {
					return err
				}
				if step != "" && number == 0 {
					continue
				}
				printed = true
				if err := a.printLog(ctx, s, j, logView{number, job == "" && len(jobs) > 1, asJSON, follow}); err != nil {
					return err
				}
			}
			if !printed {
				var names []string
				for _, j := range jobs {
					names = append(names, strconv.Quote(j.Key))
				}
				return usage("run %s has no such job or step; its jobs: %s", run.ID, strings.Join(names, ", "))
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&job, "job", "j", "", "only of this job (its id, or its name with the matrix)")
	f.StringVar(&step, "step", "", "only of this step (its number, id or name)")
	f.BoolVar(&asJSON, "json", false, "the log records, as NDJSON")
	f.BoolVarP(&follow, "follow", "f", false, "go on while the run does")
	return c
}

func stepNumber(c *cobra.Command, s *store.Store, jobID, step string) (int, error) {
	if step == "" {
		return 0, nil
	}
	steps, err := s.Steps(c.Context(), jobID)
	if err != nil {
		return 0, err
	}
	for _, st := range steps {
		if strconv.Itoa(st.Number) == step || strings.EqualFold(st.StepID, step) || strings.EqualFold(st.Name, step) {
			return st.Number, nil
		}
	}
	return 0, nil
}

// logView is what of a job's log is printed, and how.
type logView struct {
	step                 int // 0 is all
	prefix, json, follow bool
}

func (a *app) printLog(ctx context.Context, s *store.Store, j store.StoredJob, v logView) error {
	wake, stop := s.Watch(j.RunID)
	defer stop()
	var out *tui.JSON
	if v.json {
		out = tui.NewJSON(a.out)
	}
	offset := int64(0)
	for {
		now, err := s.Job(ctx, j.ID)
		if err != nil {
			return err
		}
		for line, err := range s.Log(ctx, store.LogQuery{Run: j.RunID, Job: j.ID, Step: v.step, Offset: offset}) {
			if err != nil {
				return err
			}
			offset = line.End
			switch {
			case v.json:
				out.Emit(line.Record)
			case line.Record.Type == ci.LogLine:
				if v.prefix {
					fmt.Fprintf(a.out, "[%s] ", board.Clean(j.Name))
				}
				if _, err := fmt.Fprintln(a.out, board.Clean(line.Record.Text)); err != nil {
					return err
				}
			}
		}
		if !v.follow || now.Status == ci.Completed {
			return nil
		}
		// Another process may be the one that writes: its wake does not reach us.
		select {
		case <-wake:
		case <-time.After(time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// openRun opens the record and finds a run in it.
func (a *app) openRun(c *cobra.Command, name string) (*store.Store, ci.Run, error) {
	s, _, err := a.store(c.Context(), "")
	if err != nil {
		return nil, ci.Run{}, err
	}
	run, err := a.findRun(c, s, name)
	if err != nil {
		s.Close()
		return nil, ci.Run{}, err
	}
	return s, run, nil
}

// findRun resolves "last", an id, or the beginning of one.
func (a *app) findRun(c *cobra.Command, s *store.Store, name string) (ci.Run, error) {
	ctx := c.Context()
	if ci.ValidID(name) {
		run, err := s.Run(ctx, name)
		if errors.Is(err, store.ErrNotFound) {
			return run, usage("there is no run %s: hearth runs lists them", name)
		}
		return run, err
	}
	runs, err := s.Runs(ctx, store.RunFilter{Limit: 1000})
	if err != nil {
		return ci.Run{}, err
	}
	if name == "last" {
		if len(runs) == 0 {
			return ci.Run{}, usage("no runs on record yet: hearth run")
		}
		return runs[0], nil
	}
	found := slices.DeleteFunc(runs, func(r ci.Run) bool { return name == "" || !strings.HasPrefix(r.ID, name) })
	switch len(found) {
	case 0:
		return ci.Run{}, usage("there is no run %s: hearth runs lists them", board.Clean(name))
	case 1:
		return found[0], nil
	}
	return ci.Run{}, usage("%d runs begin with %s: write more of the id", len(found), name)
}

// word is what of a mark is shown where there is room for words.
func word(_, word string) string { return word }

func reason(s string) string {
	if s == "" {
		return ""
	}
	return "  (" + board.Clean(s) + ")"
}

func took(from, to time.Time) string {
	if from.IsZero() || to.IsZero() {
		return ""
	}
	return board.Short(to.Sub(from))
}

func ago(t time.Time) string {
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return t.Local().Format("2006-01-02 15:04")
}

func shortRef(ref string) string {
	for _, p := range []string{"refs/heads/", "refs/tags/"} {
		if s, ok := strings.CutPrefix(ref, p); ok {
			return s
		}
	}
	return ref
}
