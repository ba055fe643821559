package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/archive"
	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/results"
)

// resultsStore is where artifacts and caches are kept, of runs of this command and of
// a server alike.
func resultsStore(dirs config.Dirs, keep config.Retention, log *slog.Logger) *results.Store {
	return results.New(results.Config{Dir: dirs.Results(), Log: log, Limits: results.Limits{
		ArtifactBytes: unlimited(int64(keep.ArtifactBytes)), CacheBytes: unlimited(int64(keep.CacheBytes)), Age: time.Duration(unlimited(int64(keep.Artifacts)))}})
}

// unlimited is a setting of which 0 sets no limit: what no disk has room for, as a
// time 290 years.
func unlimited(n int64) int64 { return cmp.Or(n, math.MaxInt64) }

// results is resultsStore for a command that only looks.
func (a *app) results() (*results.Store, error) {
	dirs, err := a.dirs()
	if err != nil {
		return nil, err
	}
	keep, err := a.retention()
	if err != nil {
		return nil, err
	}
	return resultsStore(dirs, keep, a.log()), nil
}

// retention is what is kept, by the environment.
func (a *app) retention() (config.Retention, error) {
	keep, bad := config.LoadRetention(a.getenv)
	if err := errors.Join(bad...); err != nil {
		return keep, usage("%v", err)
	}
	return keep, nil
}

func (a *app) artifactsCommand() *cobra.Command {
	var download string
	var asJSON bool
	c := &cobra.Command{
		Use: "artifacts RUN [NAME…]", Short: "List a run's artifacts, or download them", Args: cobra.MinimumNArgs(1),
		Long: `List the artifacts of a run, all or those that are named, or download them: each
into a directory of its own below DIR, called as the artifact is, which must not be
there yet. RUN is the run's id, the beginning of it, or "last". What is in an
artifact is the work of a job's machine: links in it are left out, nothing is
written outside of DIR, and what unpacks to far more than it takes is refused.`,
		RunE: func(c *cobra.Command, args []string) error {
			s, run, err := a.openRun(c, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			store, err := a.results()
			if err != nil {
				return err
			}
			all, err := store.Artifacts(run.Repository, run.ID)
			if err != nil {
				return &exit{exitInfrastructure, err}
			}
			if names := args[1:]; len(names) > 0 {
				for _, name := range names {
					if !slices.ContainsFunc(all, func(x results.Artifact) bool { return x.Name == name }) {
						return usage("run %s has no artifact %q%s", run.ID, board.Clean(name), artifactNames(all))
					}
				}
				all = slices.DeleteFunc(all, func(x results.Artifact) bool { return !slices.Contains(names, x.Name) })
			}
			switch {
			case asJSON:
				enc := board.NewEncoder(a.out)
				for _, x := range all {
					if err := enc.Encode(x); err != nil {
						return err
					}
				}
			case len(all) == 0:
				fmt.Fprintf(a.err, "run %s has no artifacts, or they have expired\n", run.ID)
			case download == "":
				w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "NAME\tSIZE\tJOB\tWHEN\tKEPT UNTIL\tDIGEST")
				for _, x := range all {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", board.Clean(x.Name), board.Amount(x.Size), board.Clean(x.Job),
						ago(x.Created), x.Expires.Local().Format(time.DateOnly), x.Digest)
				}
				if err := w.Flush(); err != nil {
					return err
				}
			}
			if download == "" {
				return nil
			}
			return a.download(store, run, all, download)
		},
	}
	c.Flags().StringVarP(&download, "download", "d", "", "DIR to download them into")
	c.Flags().BoolVar(&asJSON, "json", false, "one artifact a line, as JSON")
	return c
}

func artifactNames(all []results.Artifact) string {
	if len(all) == 0 {
		return ": it has none"
	}
	var names []string
	for _, x := range all {
		names = append(names, board.Clean(x.Name))
	}
	return "; it has " + strings.Join(names, ", ")
}

// download writes artifacts below a directory. One that fails leaves the others.
func (a *app) download(store *results.Store, run ci.Run, all []results.Artifact, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return usage("--download: %v", err)
	}
	newest := map[string]int64{}
	for _, x := range all {
		newest[x.Name] = x.ID // of several attempts
	}
	var errs []error
	for _, x := range all {
		if newest[x.Name] != x.ID {
			continue
		}
		to := filepath.Join(dir, x.Name)
		err := downloadOne(store, run, x, to)
		if err != nil && !errors.Is(err, archive.ErrLeftOut) {
			errs = append(errs, fmt.Errorf("artifact %s: %w", board.Clean(x.Name), err))
			continue
		}
		fmt.Fprintf(a.err, "%s: %s\n", board.Clean(to), board.Amount(x.Size))
		if err != nil {
			fmt.Fprintf(a.err, "  %s\n", board.Clean(err.Error()))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return &exit{exitInfrastructure, err}
	}
	return nil
}

func downloadOne(store *results.Store, run ci.Run, x results.Artifact, to string) error {
	if !filepath.IsLocal(x.Name) || strings.ContainsAny(x.Name, `/\`) {
		return fmt.Errorf("%q is no name for a directory", x.Name)
	}
	f, err := store.OpenArtifact(run.Repository, x)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Mkdir(to, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s is there already: remove it, or choose another directory", to)
		}
		return err
	}
	if x.Zip() {
		return archive.Unzip(f, x.Size, to)
	}
	out, err := os.OpenFile(filepath.Join(to, x.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, f)
	return errors.Join(err, out.Close())
}

// showArtifacts ends what `hearth show` says.
func (a *app) showArtifacts(run ci.Run) error {
	store, err := a.results()
	if err != nil {
		return err
	}
	all, err := store.Artifacts(run.Repository, run.ID)
	if err != nil || len(all) == 0 {
		return err
	}
	fmt.Fprintf(a.out, "\nartifacts (hearth artifacts %s --download DIR):\n", run.ID)
	for _, x := range all {
		fmt.Fprintf(a.out, "  %s, %s, by %s\n", board.Clean(x.Name), board.Amount(x.Size), board.Clean(x.Job))
	}
	return nil
}

func (a *app) cacheCommand() *cobra.Command {
	c := &cobra.Command{Use: "cache", Short: "List or remove what runs keep for later ones (actions/cache, container images)"}
	var repository string
	var asJSON, containers bool
	list := &cobra.Command{
		Use: "list", Short: "List cache entries, those used last first", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if containers {
				return a.listContainers(asJSON)
			}
			store, err := a.results()
			if err != nil {
				return err
			}
			repositories, err := cacheRepositories(store, repository)
			if err != nil {
				return err
			}
			enc, w := board.NewEncoder(a.out), tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			n := 0
			for _, r := range repositories {
				entries, err := store.Caches(r)
				if err != nil {
					return &exit{exitInfrastructure, err}
				}
				for _, e := range entries {
					if n++; asJSON {
						if err := enc.Encode(struct {
							Repository string `json:"repository"`
							results.Cache
						}{r, e}); err != nil {
							return err
						}
						continue
					}
					if n == 1 {
						fmt.Fprintln(w, "REPOSITORY\tBRANCH\tKEY\tSIZE\tMADE\tUSED")
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", board.Clean(r), board.Clean(shortRef(e.Scope)), board.Clean(e.Key),
						board.Amount(e.Size), ago(e.Created), ago(e.Used))
				}
			}
			if n == 0 && !asJSON {
				fmt.Fprintln(a.err, "no cache entries")
			}
			return w.Flush()
		},
	}
	list.Flags().BoolVar(&asJSON, "json", false, "one entry a line, as JSON")
	var all bool
	rm := &cobra.Command{
		Use: "rm [KEY…]", Short: "Remove cache entries by their keys, or all",
		RunE: func(c *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usage("say which entries: their keys (hearth cache list), or --all")
			}
			if containers {
				return a.removeContainers(args)
			}
			store, err := a.results()
			if err != nil {
				return err
			}
			repositories, err := cacheRepositories(store, repository)
			if err != nil {
				return err
			}
			var freed int64
			n := 0
			unknown := slices.Clone(args)
			for _, r := range repositories {
				gone, err := store.RemoveCaches(r, func(e results.Cache) bool { return all || slices.Contains(args, e.Key) })
				if err != nil {
					return &exit{exitInfrastructure, err}
				}
				for _, e := range gone {
					n, freed = n+1, freed+e.Size
					unknown = slices.DeleteFunc(unknown, func(k string) bool { return k == e.Key })
				}
			}
			fmt.Fprintf(a.err, "removed %d, %s\n", n, board.Amount(freed))
			if len(unknown) > 0 {
				return usage("there is no entry with key %s: hearth cache list", board.Clean(strings.Join(unknown, ", ")))
			}
			return nil
		},
	}
	rm.Flags().BoolVar(&all, "all", false, "all entries")
	for _, sub := range []*cobra.Command{list, rm} {
		sub.Flags().StringVarP(&repository, "repository", "r", "", "only of this owner/name (default: of all)")
		sub.Flags().BoolVar(&containers, "containers", false, "manifests and layers of container images that jobs pulled, by digest")
		sub.MarkFlagsMutuallyExclusive("repository", "containers")
		c.AddCommand(sub)
	}
	return c
}

func cacheRepositories(store *results.Store, one string) ([]string, error) {
	if one != "" {
		return []string{one}, nil
	}
	all, err := store.Repositories()
	if err != nil {
		return nil, &exit{exitInfrastructure, err}
	}
	return all, nil
}
