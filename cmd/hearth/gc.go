package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/hold"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/pool"
	"github.com/hearth-ci/hearth/internal/retention"
	"github.com/hearth-ci/hearth/internal/store"
)

// gcCommand removes what is kept no longer.
func (a *app) gcCommand() *cobra.Command {
	var dry, asJSON bool
	var file string
	limits, bad := config.LoadRetention(a.getenv)
	c := &cobra.Command{
		Use: "gc", Short: "Remove what is kept no longer: old runs, logs, deliveries, actions, artifacts, caches, points in time, images", Args: cobra.NoArgs,
		Long: `Remove what is kept no longer: runs with their records and logs, deliveries,
mirrors of actions, artifacts, caches, layers of container images, points in time,
images and templates of machines, and what dead processes left. What is in use stays, and so does what was learned. A server does the same
by itself.

The limits come from the defaults, --config FILE (the object "retention"),
HEARTH_RETENTION_* and the flags, later over earlier; 0 is no limit.`,
		RunE: func(c *cobra.Command, _ []string) error {
			database, mode := "", a.getenv("HEARTH_LEARN")
			if file != "" {
				cfg, err := config.Load(file, a.getenv)
				if err != nil {
					return usage("%v", err)
				}
				// Flags are over the file.
				for _, s := range cfg.Retention.Settings() {
					if f := c.Flags().Lookup(flagName(s.Name)); f.Changed {
						if err := s.Value.Set(f.Value.String()); err != nil {
							return usage("--%s: %v", f.Name, err)
						}
					}
				}
				limits, bad, database, mode = cfg.Retention, nil, cfg.Database, cfg.Learn
			}
			if err := errors.Join(append(bad, limits.Validate()...)...); err != nil {
				return usage("%v", err)
			}
			return a.gc(c.Context(), database, learn.Mode(mode), limits, dry, asJSON)
		},
	}
	f := c.Flags()
	f.BoolVarP(&dry, "dry-run", "n", false, "say what would be removed, and remove nothing")
	f.BoolVar(&asJSON, "json", false, "as JSON")
	f.StringVar(&file, "config", a.getenv("HEARTH_CONFIG"), "a server's settings, JSON")
	for _, s := range limits.Settings() {
		f.Var(s.Value, flagName(s.Name), s.Help)
	}
	return c
}

func flagName(setting string) string { return strings.ReplaceAll(setting, "_", "-") }

// keeper is what removes from a record and the directories beside it.
func keeper(s *store.Store, l *learn.Learner, dirs config.Dirs, limits config.Retention, log *slog.Logger) *retention.Keeper {
	return &retention.Keeper{Store: s, Learn: l, Images: dirs.Images(), Actions: []string{filepath.Join(dirs.Cache, "actions"), serveActions(dirs)},
		Results: resultsStore(dirs, limits, log), Points: pointStore(dirs, limits), Containers: dirs.Registry(), Limits: limits, Log: log}
}

func (a *app) gc(ctx context.Context, database string, mode learn.Mode, limits config.Retention, dry, asJSON bool) error {
	s, dirs, err := a.store(ctx, database)
	if err != nil {
		return err
	}
	defer s.Close()
	l, err := learn.Open(ctx, s, learn.Options{Mode: mode, Log: a.log()})
	if err != nil {
		return usage("%v", err)
	}
	r, err := keeper(s, l, dirs, limits, a.log()).Pass(ctx, retention.Options{DryRun: dry, Anew: true})
	if !dry && ctx.Err() == nil {
		// What dead processes left of machines, checkpoints among it.
		reaped, rerr := pool.Reap(ctx, pool.Config{RunDir: dirs.Run, CacheDir: dirs.Cache})
		for _, m := range reaped {
			r.Removed = append(r.Removed, retention.Item{Kind: "machine", Name: m.ID, Why: m.Reason})
		}
		err = errors.Join(err, rerr)
		hold.Litter(vmDir(dirs))
	}
	if asJSON {
		if jerr := board.NewEncoder(a.out).Encode(r); jerr != nil {
			return jerr
		}
	} else if perr := a.printRemoved(r); perr != nil {
		return perr
	}
	if err != nil {
		return &exit{exitInfrastructure, err}
	}
	return nil
}

func (a *app) printRemoved(r *retention.Report) error {
	verb, all := "removed", "freed"
	if r.DryRun {
		verb, all = "would remove", "would free"
	}
	if len(r.Removed) > 0 {
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		for _, i := range r.Removed {
			name := i.Name
			if i.Repository != "" {
				name += " of " + i.Repository
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", verb, i.Kind, board.Clean(name), megabytes(i.Bytes), board.Clean(i.Why))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintln(a.out, n)
	}
	_, err := fmt.Fprintf(a.out, "%s %s; %d runs stay, with %s\n", all, megabytes(r.Freed), r.Kept.Runs, megabytes(r.Kept.Bytes))
	return err
}
