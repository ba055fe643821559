package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
)

// comparedRuns is how many earlier runs say what a step usually reaches.
const comparedRuns = 10

func (a *app) networkCommand() *cobra.Command {
	var asJSON bool
	var job string
	c := &cobra.Command{
		Use: "network RUN", Short: "Show what a run's steps reached on the network, and what they were refused", Args: cobra.ExactArgs(1),
		Long: fmt.Sprintf(`Show what the steps of a run reached on the network: hosts, ports, bytes, and what
their policy refused. What none of the last %d runs of the workflow before it
reached in the same step is marked as new. RUN is its id, the beginning of it, or
"last".`, comparedRuns),
		RunE: func(c *cobra.Command, args []string) error {
			s, run, err := a.openRun(c, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			b := &board.Board{Documents: 1}
			if err := s.EachRunRecord(c.Context(), run.ID, b.Apply); err != nil {
				return err
			}
			usual, compared, err := a.reached(c, s, run)
			if err != nil {
				return err
			}
			type jobTraffic struct {
				Job     string          `json:"job"`
				Traffic []board.Traffic `json:"traffic"`
				More    int             `json:"more,omitempty"`
			}
			all := []jobTraffic{}
			for _, j := range b.Jobs {
				if job != "" && !strings.EqualFold(j.Key, job) && !strings.EqualFold(j.Name, job) {
					continue
				}
				t := j.Connections()
				if compared > 0 {
					usual.Compare(j.Key, t)
				}
				all = append(all, jobTraffic{j.Key, t, j.MoreTraffic})
			}
			if asJSON {
				return board.NewEncoder(a.out).Encode(struct {
					Run      string       `json:"run"`
					Compared int          `json:"compared_runs"`
					Jobs     []jobTraffic `json:"jobs"`
				}{run.ID, compared, all})
			}
			if job != "" && len(all) == 0 {
				return usage("run %s has no job %q", run.ID, job)
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			shown := 0
			for _, j := range all {
				for _, t := range j.Traffic {
					if shown++; shown == 1 {
						fmt.Fprintln(w, "JOB\tSTEP\tHOST\tPROTO\tTIMES\tOUT\tIN\t")
					}
					remark := ""
					if t.Refused {
						remark = "refused: " + board.Clean(t.Reason)
					}
					if t.New {
						remark = strings.TrimPrefix(remark+", new", ", ")
					}
					step := "-"
					if t.Step > 0 {
						step = fmt.Sprintf("%d %s", t.Step, board.Cut(board.Clean(t.StepName), 30))
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", board.Clean(j.Job), step, t.Target(), board.Clean(t.Proto), t.Count,
						board.Amount(t.BytesOut), board.Amount(t.BytesIn), remark)
				}
				if j.More > 0 {
					fmt.Fprintf(w, "%s\t\tand %d more connections\t\t\t\t\t\n", board.Clean(j.Job), j.More)
				}
			}
			if shown == 0 {
				_, err := fmt.Fprintln(a.err, "nothing was reached, and nothing was refused")
				return err
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	c.Flags().StringVarP(&job, "job", "j", "", "only of this job, by its key or name")
	return c
}

// reached is what the runs of a workflow before this one reached, and how many of
// them there were.
func (a *app) reached(c *cobra.Command, s *store.Store, run ci.Run) (board.Reached, int, error) {
	usual := board.Reached{}
	runs, err := s.Runs(c.Context(), store.RunFilter{Repository: run.Repository, Workflow: run.File, Before: run.Created, Limit: comparedRuns})
	if err != nil {
		return nil, 0, err
	}
	for _, r := range runs {
		b := &board.Board{Documents: 1}
		if err := s.EachRunRecord(c.Context(), r.ID, b.Apply); err != nil {
			return nil, 0, err
		}
		usual.Add(b)
	}
	return usual, len(runs), nil
}
