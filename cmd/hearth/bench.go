package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/bench"
	"github.com/hearth-ci/hearth/internal/board"
)

func (a *app) benchCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "bench", Short: "Measure what Hearth promises in figures",
		Long: `Measure what Hearth promises in figures, on this machine, and say of each whether
it is met. Exit code 1 if one is not.`,
	}
	var asJSON bool
	c.PersistentFlags().BoolVar(&asJSON, "json", false, "the report as JSON")
	report := func(ctx context.Context, r *bench.Report, err error) error {
		if err != nil {
			if ctx.Err() != nil {
				return &exit{exitCancelled, context.Cause(ctx)}
			}
			return err
		}
		if asJSON {
			enc := board.NewEncoder(a.out)
			enc.SetIndent("", "  ")
			err = enc.Encode(r)
		} else {
			err = r.Table(a.out)
		}
		if err == nil && !r.OK() {
			return &exit{code: exitFailed}
		}
		return err
	}
	progress := func(what string) {
		if isTerminal(a.err) {
			fmt.Fprintf(a.err, "\r\x1b[Kbench: %s", what)
		}
	}
	done := func() {
		if isTerminal(a.err) {
			fmt.Fprint(a.err, "\r\x1b[K")
		}
	}

	var vms machineOptions
	var rounds, clones int
	machines := &cobra.Command{
		Use: "vm", Short: "Machines: boot, restore, commands, fifty at once", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx := c.Context()
			dirs, err := a.dirs()
			if err != nil {
				return err
			}
			driver, img, err := a.driver(ctx, dirs, vms)
			if err != nil {
				return err
			}
			defer done()
			r, err := bench.VM(ctx, bench.VMOptions{Driver: driver, Image: img, RunDir: dirs.Run, CacheDir: dirs.Cache, CPUs: vms.cpus, MemoryMiB: vms.memoryMiB,
				Rounds: rounds, Clones: clones, Progress: progress})
			done()
			return report(ctx, r, err)
		},
	}
	a.machineFlags(machines, &vms)
	machines.Flags().Lookup("cpus").DefValue, vms.cpus = "1", 1
	machines.Flags().Lookup("memory").DefValue, vms.memoryMiB = "512", 512
	machines.Flags().IntVar(&rounds, "rounds", 0, "of most figures (default 20)")
	machines.Flags().IntVar(&clones, "clones", 0, "machines at once (default 50)")

	learning := &cobra.Command{
		Use: "learn", Short: "The learner: updates and predictions after 10⁴ and 10⁶ executions", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := bench.Learn(c.Context())
			return report(c.Context(), r, err)
		},
	}

	var seconds int
	serving := &cobra.Command{
		Use: "serve", Short: "The server: deliveries a second, and how long an answer takes", Args: cobra.NoArgs,
		Long: `Measure the server: deliveries that the webhook accepts in a second and how long
an answer takes, with the database on the disk of the state directory. None of it
touches what is on record here.`,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			ctx := c.Context()
			dirs, err := a.dirs()
			if err != nil {
				return err
			}
			dir, err := os.MkdirTemp(dirs.State, "bench-")
			if err != nil {
				return &exit{exitInfrastructure, err}
			}
			defer os.RemoveAll(dir)
			o := bench.ServeOptions{Dir: dir, Seconds: seconds, Progress: progress}
			defer done()
			r, err := bench.Serve(ctx, o)
			done()
			return report(ctx, r, err)
		},
	}
	serving.Flags().IntVar(&seconds, "seconds", 5, "of each load")
	var eo bench.EngineOptions
	var evms machineOptions
	engines := &cobra.Command{
		Use: "engine", Short: "Jobs: steps, lines of output, a long log, artifacts and caches", Args: cobra.NoArgs,
		Long: `Measure what running a job costs on this side of its machine: a step that does
nothing, lines of output through engine, mask, database and terminal, what a long log
does to memory, and artifacts and caches beside plain copies.`,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			ctx := c.Context()
			dirs, err := a.dirs()
			if err != nil {
				return err
			}
			dir, err := os.MkdirTemp(dirs.State, "bench-")
			if err != nil {
				return &exit{exitInfrastructure, err}
			}
			defer os.RemoveAll(dir)
			pool, err := a.machines(ctx, dirs, evms)
			if err != nil {
				return err
			}
			defer func() {
				if cerr := closePool(pool); err == nil {
					err = cerr
				}
			}()
			eo.Host, eo.Dir, eo.Progress = pool, dir, progress
			defer done()
			r, err := bench.Engine(ctx, eo)
			done()
			return report(ctx, r, err)
		},
	}
	a.machineFlags(engines, &evms)
	engines.Flags().IntVar(&eo.Steps, "steps", 40, "of a job")
	engines.Flags().IntVar(&eo.Lines, "lines", 200_000, "as fast as a step prints them")
	engines.Flags().IntVar(&eo.LogMB, "log-mb", 1000, "size of the long log")
	engines.Flags().IntVar(&eo.FileMB, "file-mb", 64, "size of artifact and cache entry")
	c.AddCommand(machines, learning, serving, engines)
	return c
}
