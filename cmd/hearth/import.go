package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/learn"
)

func (a *app) learnImportCommand() *cobra.Command {
	var workflow string
	c := asks(a, &cobra.Command{
		Use: "import FILE|DIR…", Short: "Learn from what another system ran: GitHub's runs and jobs, logs, a CSV", Args: cobra.MinimumNArgs(1),
		Long: `Learn from what another system ran. A file of JSON is what GitHub's API says of runs
and jobs (gh api --paginate repos/O/R/actions/runs, …/actions/runs/ID/jobs), in any
number of files and any order; a directory may hold them. Other files are CSV, as
"hearth learn eval" reads it. A directory of logs teaches failures: NAME.log of jobs
that failed, or GitHub's archives of logs, or labels.csv with logs/ID.log as
"hearth learn eval-flaky" reads them. "-" reads standard input. What was imported
before is not learned from again.`,
	}, func(ctx context.Context, l *learn.Learner, repository string, args []string) (learn.ImportResult, error) {
		var all learn.ImportResult
		var dump learn.GitHubDump
		dumped := false
		read := func(name string, in io.Reader) error {
			b := bufio.NewReader(in)
			if learn.IsGitHubDump(b) {
				dumped = true
				n, err := dump.Read(b)
				if err == nil && n == 0 {
					err = errors.New("there are no workflow_runs and no jobs in it")
				}
				if err != nil {
					return usage("%s: %v", name, err)
				}
				return nil
			}
			list, other, err := learn.ReadCSV(b, repository)
			if err != nil {
				return usage("%s: %v", name, err)
			}
			r, err := l.Import(ctx, list)
			r.Other += other
			all.Add(r)
			return err
		}
		file := func(name string) error {
			f, err := os.Open(name)
			if err != nil {
				return usage("%v", err)
			}
			defer f.Close()
			return read(name, f)
		}
		for _, name := range args {
			if name == "-" {
				if err := read("standard input", a.in); err != nil {
					return all, err
				}
				continue
			}
			info, err := os.Stat(name)
			if err != nil {
				return all, usage("%v", err)
			}
			if !info.IsDir() {
				if err := file(name); err != nil {
					return all, err
				}
				continue
			}
			json, err := jsonFiles(name)
			if err != nil {
				return all, usage("%v", err)
			}
			for _, f := range json {
				if err := file(f); err != nil {
					return all, err
				}
			}
			if len(json) > 0 {
				continue
			}
			if repository == "" {
				return all, usage("%s: say whose logs these are with --repository", name)
			}
			r, err := l.ImportLogs(ctx, name, repository, workflow)
			all.Add(r)
			if err != nil {
				return all, usage("%v", err)
			}
		}
		if dumped {
			list, other, err := dump.Executions(repository)
			if err != nil {
				return all, usage("%v", err)
			}
			r, err := l.Import(ctx, list)
			r.Other += other
			all.Add(r)
			if err != nil {
				return all, err
			}
		}
		return all, nil
	}, func(r learn.ImportResult, _ string, _ []string) error {
		fmt.Fprintf(a.out, "learned from %d executions, %d of them failed", r.Learned, r.Failures)
		if n := len(r.Repositories); n > 3 {
			fmt.Fprintf(a.out, ", of %d repositories", n)
		} else if n > 0 {
			fmt.Fprintf(a.out, ", of %s", board.Clean(strings.Join(r.Repositories, ", ")))
		}
		fmt.Fprintln(a.out)
		for _, v := range []struct {
			n   int
			why string
		}{{r.Known, "were imported before"}, {r.Old, "are too old to know whether they were imported before, and were left out"},
			{r.Other, "had not ended, or neither succeeded nor failed"}} {
			if v.n > 0 {
				fmt.Fprintf(a.out, "%d %s\n", v.n, v.why)
			}
		}
		return nil
	})
	c.Flags().StringVar(&workflow, "workflow", "", "path of the workflow that logs are of")
	return c
}

// jsonFiles are the files of a directory that are JSON by their names.
func jsonFiles(dir string) (out []string, err error) {
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && (filepath.Ext(p) == ".json" || filepath.Ext(p) == ".ndjson") {
			out = append(out, p)
		}
		return err
	})
	return out, err
}

func (a *app) learnExportCommand() *cobra.Command {
	var format, to string
	var of scope
	c := &cobra.Command{Use: "export", Short: "Write what is known, as JSON or GraphML", Args: cobra.NoArgs,
		Long: `Write what is known of a repository, or of all: as JSON (nodes and edges of the graph,
signatures of failures, lessons, tests), or the graph alone as GraphML, which yEd, Gephi
and NetworkX read.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if format != "json" && format != "graphml" {
				return usage("--format %s: want json or graphml", format)
			}
			repository, err := of.name(c.Context())
			if err != nil {
				return err
			}
			return a.learner(c.Context(), func(l *learn.Learner) (err error) {
				e, err := l.Export(c.Context(), repository)
				if err != nil {
					return err
				}
				w := a.out
				if to != "" {
					f, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
					if err != nil {
						return usage("--output: %v", err)
					}
					defer func() { err = errors.Join(err, f.Close()) }()
					w = f
				}
				if format == "graphml" {
					return e.GraphML(w)
				}
				return e.JSON(w)
			})
		}}
	c.Flags().StringVar(&format, "format", "json", "json or graphml")
	c.Flags().StringVarP(&to, "output", "o", "", "write to this file")
	of.flags(c)
	return c
}

func (a *app) learnForgetCommand() *cobra.Command {
	var keep, dry, asJSON bool
	var repository string
	c := &cobra.Command{Use: "forget [TEXT]", Short: "Forget a repository, or what of it says a text, for good", Args: cobra.MaximumNArgs(1),
		Long: `Forget all that is known of a repository, or with TEXT (a command, a test, a commit, a
branch) whatever of it says that, and what hangs on it: nodes of the graph and their
edges, failures, signatures, lessons, predictions, tests, counters, and the runs on
record that say it, with their logs. The database is written anew, so that nothing of
it is left in the file. Numbers in which it cannot be told from others stay.
Artifacts, caches and checkouts are not the memory's: hearth gc and hearth cache rm.`,
		RunE: func(c *cobra.Command, args []string) error {
			if repository == "" {
				return usage("say what is to be forgotten: --repository owner/name")
			}
			text := strings.Join(args, "")
			return a.learner(c.Context(), func(l *learn.Learner) error {
				r, err := l.Forget(c.Context(), repository, learn.ForgetOptions{Text: text, KeepRuns: keep, DryRun: dry})
				if errors.Is(err, learn.ErrRunsGoOn) {
					return usage("%v: wait for them, or cancel them, or keep the record with --keep-runs", err)
				}
				if err != nil {
					return err
				}
				if asJSON {
					return board.NewEncoder(a.out).Encode(r)
				}
				verb := "forgot"
				if dry {
					verb = "would forget"
				}
				_, err = fmt.Fprintf(a.out, "%s of %s: %s on record, %s of the graph, %s, %s, %s, %s, %s, %s\n", verb, board.Clean(repository), plural(r.Runs, "run"),
					plural(r.Nodes, "node"), plural(r.Counters, "counter"), plural(r.Signatures, "signature"), plural(r.Failures, "failure"),
					plural(r.Lessons, "lesson"), plural(r.Predictions, "prediction"), plural(r.Tests, "test"))
				return err
			})
		}}
	f := c.Flags()
	f.StringVar(&repository, "repository", "", "owner/name")
	f.BoolVar(&keep, "keep-runs", false, "leave the runs on record, which may say it")
	f.BoolVar(&dry, "dry-run", false, "only count")
	f.BoolVar(&asJSON, "json", false, "as JSON")
	return c
}
