package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/compat"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/prompt"
	"github.com/hearth-ci/hearth/internal/workflow"
)

func (a *app) compatCommand() *cobra.Command {
	var o runOptions
	var asJSON, steps, assume bool
	c := &cobra.Command{
		Use:   "compat [FILE|DIR…]",
		Short: "Say which workflows, jobs and steps would run here, and why not",
		Long: `Say of workflow files (default: .github/workflows of this repository; of a
directory those below it) what would run here: every job with what cannot run and
what would change that, what is not sure before it runs, and what differs from
GitHub's runner. Each workflow is planned for one event that it has. Nothing is
run, no machine is made, nothing is fetched: an action that is not at hand (from
an earlier run, or by --local-repository) cannot run, unless --assume-actions
takes it as one that can.

Exit code: 0 everything runs, 4 a job cannot, 2 a file is invalid.`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				p, err := findProject(c.Context(), o.dir)
				if err != nil {
					return err
				}
				args = []string{filepath.Join(p.root, ".github", "workflows")}
			}
			return a.compat(c.Context(), o, args, asJSON, steps, assume)
		},
	}
	f := c.Flags()
	f.BoolVar(&asJSON, "json", false, "one object a job, one a line")
	f.BoolVar(&steps, "steps", false, "list the steps, too")
	f.BoolVar(&assume, "assume-actions", false, "take actions and workflows that are not at hand as ones that run")
	f.StringVarP(&o.dir, "directory", "C", ".", "the repository")
	f.StringArrayVarP(&o.platform, "platform", "P", nil, "label=image")
	f.StringVar(&o.unknownLabels, "unknown-labels", config.UnknownUbuntu, "as of hearth run")
	f.StringArrayVar(&o.local, "local-repository", nil, "owner/repo@ref=DIR, an action or workflow from a directory")
	return c
}

// lacking says which programs of a job's commands are not in the default image.
func lacking(j *workflow.Job) (out []string) {
	for _, l := range prompt.Lacking(j) {
		if l.Package == "" {
			out = append(out, fmt.Sprintf("the default image lacks %s (bring it with an action that sets it up, or install it in a step)", l.Program))
		} else {
			out = append(out, fmt.Sprintf("the default image lacks %s (hearth image build --packages %s --name ci, then -P ubuntu-latest=ci)", l.Program, l.Package))
		}
	}
	return out
}

func (a *app) compat(ctx context.Context, o runOptions, args []string, asJSON, steps, assume bool) error {
	files, err := compat.Files(args)
	if err != nil {
		return usage("%v", err)
	}
	if len(files) == 0 {
		return usage("there is no workflow file in %v", args)
	}
	dirs, err := a.dirs()
	if err != nil {
		return err
	}
	o.offline = true
	resolver, err := a.resolver(o, dirs, "")
	if err != nil {
		return err
	}
	platforms, err := o.platforms()
	if err != nil {
		return err
	}
	strict, err := strictLabels(o.unknownLabels)
	if err != nil {
		return usage("--unknown-labels %v", err)
	}
	shelf, err := image.ReadShelf(dirs.Images(), a.getenv("HEARTH_IMAGE"), nil)
	if err != nil {
		return &exit{exitInfrastructure, err}
	}
	r := a.request(runSettings{platforms: platforms, strict: strict, shelf: shelf})
	r.Check.Actions, r.Check.Shells, r.Check.AssumeActions = resolver, image.Shells(), assume
	opt := compat.Options{Lacks: lacking, Check: r.Check, Fits: r.Fits, LabelHint: r.LabelHint, Load: func(ctx context.Context, uses string) ([]byte, error) {
		ref, err := action.ParseRef(uses)
		if err != nil {
			return nil, err
		}
		tree, err := resolver.Resolve(ctx, ref)
		if err != nil {
			return nil, err
		}
		return tree.ReadFile(ctx, ref.Path, action.MaxFile)
	}}
	var score compat.Score
	out := board.Escaped(a.out)
	enc := board.NewEncoder(a.out)
	for _, file := range files {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		jobs, err := compat.File(ctx, file, opt)
		if err != nil {
			return usage("%v", err)
		}
		score.Count(jobs)
		if !asJSON {
			if err := compat.Write(out, jobs, steps); err != nil {
				return err
			}
			continue
		}
		for _, j := range jobs {
			if err := enc.Encode(j); err != nil {
				return err
			}
		}
	}
	if !asJSON {
		fmt.Fprintf(out, "\n%s\n", &score)
	}
	switch {
	case score.Invalid > 0:
		return &exit{code: exitUsage}
	case score.Whole < score.Workflows:
		return &exit{code: exitMissing}
	}
	return nil
}
