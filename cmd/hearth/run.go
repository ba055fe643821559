package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/forge/github"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/launch"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/ledger"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/plan/show"
	"github.com/hearth-ci/hearth/internal/prompt"
	"github.com/hearth-ci/hearth/internal/source"
	"github.com/hearth-ci/hearth/internal/tui"
	"github.com/hearth-ci/hearth/internal/worker"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// runOptions are the flags of `hearth run`; act's letters where act has one.
type runOptions struct {
	machineOptions
	list, graph, dryRun, explain, json, plain, quiet bool
	jobs                                             []string
	workflows, event, eventPath, actor, dir          string
	secrets, vars, env, inputs, tests                []string
	secretFile, varFile, envFile, inputFile          string
	envSecretFiles, envVarFiles                      []string
	matrix, platform, local, registries              []string
	network, learn, unknownLabels                    string
	offline, allowMissing                            bool
	pause                                            bool
	pauseFor                                         time.Duration
	points                                           string
	keepPoints                                       bool
}

func (a *app) runCommand() *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use:   "run [EVENT]",
		Short: "Run this repository's workflows for an event (push unless said otherwise)",
		Long: `Run the workflows of this repository that EVENT starts, from the working tree,
every job in a microVM of its own.

A job that cannot run here (another system, a label that nothing here has, a
feature that is not there yet) stops only itself: it ends as "not run here", with
the reason, and what needs it is skipped.

Exit code: 0 all jobs succeeded, 1 a job failed, 2 a flag or a workflow is
invalid or there is nothing to run for this event (each with why, before
anything ran), 3 something could not be done, 4 all that ran succeeded, but a
job cannot run here (0 with --allow-missing), 130 cancelled.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if _, errs := workflow.ParsePatterns(o.tests); len(errs) > 0 {
				return usage("--tests: %v", errors.Join(errs...))
			}
			o.event = "push"
			if len(args) > 0 {
				o.event = args[0]
			}
			return a.run(c.Context(), o)
		},
	}
	f := c.Flags()
	f.BoolVarP(&o.list, "list", "l", false, "list the jobs")
	f.BoolVarP(&o.graph, "graph", "g", false, "draw the jobs and what they need")
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "say what would run, step by step, and run nothing")
	f.BoolVar(&o.explain, "explain-triggers", false, "say for every workflow why the event starts it, or why not")
	f.BoolVar(&o.json, "json", false, "nothing but NDJSON on standard output, one record a line")
	f.BoolVar(&o.plain, "plain", false, "plain lines even on a terminal")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "leave the output of steps out")
	f.StringArrayVarP(&o.jobs, "job", "j", nil, "only this job, and what it needs")
	f.StringVarP(&o.workflows, "workflows", "W", "", "workflow file, or directory of them (default .github/workflows)")
	f.StringVarP(&o.eventPath, "eventpath", "e", "", "file with the event's payload, JSON; it goes over what is made here, its inputs included")
	f.StringArrayVarP(&o.secrets, "secret", "s", nil, "NAME=value, or NAME to take it from the environment")
	f.StringVar(&o.secretFile, "secret-file", "", "file of secrets: NAME=value, NAME<<EOF or YAML (default .secrets)")
	f.StringArrayVar(&o.vars, "var", nil, "NAME=value of the vars context")
	f.StringVar(&o.varFile, "var-file", "", "file of variables (default .vars)")
	f.StringArrayVar(&o.env, "env", nil, "NAME=value for the environment of every step")
	f.StringVar(&o.envFile, "env-file", "", "file of environment variables (default .env)")
	f.StringArrayVar(&o.inputs, "input", nil, "NAME=value of a workflow_dispatch input")
	f.StringVar(&o.inputFile, "input-file", "", "file of inputs (default .input)")
	f.StringArrayVar(&o.matrix, "matrix", nil, "key:value, only these cells of a matrix")
	f.StringVarP(&o.actor, "actor", "a", "", "who does it (default: the user)")
	f.StringVarP(&o.dir, "directory", "C", ".", "the repository")
	f.StringArrayVarP(&o.platform, "platform", "P", nil, "label=image; of a runner group group:NAME=image")
	f.StringVar(&o.unknownLabels, "unknown-labels", config.UnknownUbuntu,
		"what becomes of labels that nothing is known by: ubuntu (one with such a part runs on the default image) or refuse")
	f.StringArrayVar(&o.envSecretFiles, "environment-secret-file", nil, "ENV=FILE, secrets of a deployment environment")
	f.StringArrayVar(&o.envVarFiles, "environment-var-file", nil, "ENV=FILE, variables of a deployment environment")
	f.StringArrayVar(&o.local, "local-repository", nil, "owner/repo@ref=DIR, an action or workflow from a directory")
	f.StringArrayVar(&o.registries, "registry", nil, "HOST=URL, a container registry's name and where it is for this host")
	f.StringVar(&o.network, "network", "default", "what jobs may reach: default (public addresses), none, allow:HOST,HOST…, or public,HOST…; with \",refuse\" what may not be reached is refused at once")
	f.StringArrayVar(&o.tests, "tests", nil, "where else jobs leave test reports, like out/**/*.xml; junit*.xml, TEST-*.xml and the like are looked at anyhow")
	f.StringVar(&o.learn, "learn", "", "off, advise or act (default advise, or HEARTH_LEARN)")
	f.BoolVar(&o.allowMissing, "allow-missing", false, "exit code 0 although a job cannot run here, if all others succeeded")
	f.BoolVar(&o.offline, "offline", false, "fetch nothing: actions come from the cache or --local-repository")
	f.BoolVar(&o.pause, "pause-on-failure", false, "leave the machine of a step that fails to you, as the step left it: on a terminal here, else by hearth debug")
	f.DurationVar(&o.pauseFor, "pause-for", 30*time.Minute, "how long a failed step waits for you")
	f.StringVar(&o.points, "points", "", "before which steps a machine is kept as it is, so that a repeated step begins from there: none, risky or each (default: each with --pause-on-failure, risky with --learn act, else none)")
	f.BoolVar(&o.keepPoints, "keep-points", false, "keep the points of --points (default with it: each) when the machine is gone, encrypted, and the machine as the job left it: for hearth rewind")
	a.machineFlags(c, &o.machineOptions)
	return c
}

// machineFlags adds the flags that say what machines are made of.
func (a *app) machineFlags(c *cobra.Command, o *machineOptions) {
	f := c.Flags()
	f.StringVar(&o.driver, "driver", cmp.Or(a.getenv("HEARTH_DRIVER"), "auto"), "auto, qemu or firecracker")
	f.StringVar(&o.image, "image", a.getenv("HEARTH_IMAGE"), "image by name, recipe or id, for everything (default: the default image)")
	f.IntVar(&o.cpus, "cpus", 2, "virtual CPUs of a machine")
	f.IntVar(&o.memoryMiB, "memory", 1024, "memory of a machine, MiB")
	f.Int64Var(&o.diskMiB, "disk", 14336, "disk of a machine, MiB; it takes what is written to it")
}

// candidate is one workflow file on its way to a run.
type candidate struct {
	file      string // relative to the repository
	src       []byte
	workflow  *workflow.Workflow
	diags     []workflow.Diagnostic
	happening *workflow.Happening // as it hears of it
	decision  workflow.Decision
	plan      *plan.Run
	run       ci.Run
}

// output is where a run's records go, and what is said beside them.
type output struct {
	sink  ci.Sink
	close func() error
	aside func(func()) // leaves the terminal to somebody else for a while
}

func (a *app) output(o runOptions) output {
	switch {
	case o.json:
		return output{a.json(), a.json().Close, nil}
	case !o.plain && isTerminal(a.out) && a.getenv("TERM") != "dumb":
		l := tui.NewLive(a.out)
		return output{l, l.Close, l.Aside}
	}
	p := tui.NewPlain(a.out, o.quiet)
	return output{p, p.Close, func(f func()) { f() }}
}

// diagnose reports diagnostics where the user looks: as records with --json, as
// text on standard error without.
func (a *app) diagnose(o runOptions, ds []workflow.Diagnostic) {
	for _, d := range ds {
		r := ci.Record{Type: ci.DiagnosticRec, File: d.File, Line: d.Pos.Line, Column: d.Pos.Col, Message: d.Message, Hint: d.Hint, Level: d.Severity.String()}
		if o.json {
			a.json().Emit(r)
		} else {
			fmt.Fprintln(a.err, tui.DiagnosticLine(r))
		}
	}
}

// nothing ends a run that never starts: said, with exit code 2.
func (a *app) nothing(o runOptions, ds []workflow.Diagnostic, format string, args ...any) error {
	a.diagnose(o, ds)
	return usage(format, args...)
}

func (a *app) run(ctx context.Context, o runOptions) error {
	p, err := findProject(ctx, o.dir)
	if err != nil {
		return err
	}
	set, err := a.settings(p, o)
	if err != nil {
		return err
	}
	policy, err := network.ParsePolicy(o.network)
	if err != nil {
		return usage("--network: %v", err)
	}
	if o.diskMiB < config.MinDisk {
		return usage("--disk %d: want at least %d MiB", o.diskMiB, config.MinDisk)
	}
	if _, err := worker.ParsePoints(o.points); err != nil {
		return usage("--points: %v", err)
	}
	if o.keepPoints && o.points == string(worker.NoPoints) {
		return usage("--keep-points: --points none makes none to keep")
	}
	if o.pauseFor < time.Second || o.pauseFor > maxPause {
		return usage("--pause-for %v: want 1s to %v", o.pauseFor, maxPause)
	}
	o.actor = cmp.Or(o.actor, a.getenv("GITHUB_ACTOR"), a.getenv("USER"), "hearth")
	all, err := readWorkflows(p, o.workflows)
	if err != nil {
		return err
	}
	occasion, err := p.occasion(ctx, o.event, o.eventPath, o.actor, set.inputs)
	if err != nil {
		return err
	}
	if _, known := workflow.LookupEvent(o.event); !known {
		return a.nothing(o, nil, "%q is no event of GitHub's%s", o.event, didYouMean(o.event))
	}
	dirs, err := a.dirs()
	if err != nil {
		return err
	}
	if set.shelf, err = a.shelf(ctx, dirs, o.image); err != nil {
		return err
	}
	resolver, err := a.resolver(o, dirs, set.secrets["GITHUB_TOKEN"])
	if err != nil {
		return err
	}
	chosen, err := a.choose(ctx, p, o, set, all, occasion, resolver)
	if err != nil || chosen == nil {
		return err
	}
	return a.perform(ctx, p, o, set, chosen, occasion, resolver, policy)
}

// choose reads, decides and plans; it answers -l, -g, -n and --explain-triggers
// itself (chosen is nil then) and refuses what cannot run, all of it at once.
func (a *app) choose(ctx context.Context, p *project, o runOptions, set runSettings, all []*candidate, what *occasion,
	resolver *action.Resolver) (chosen []*candidate, err error) {
	var problems, advice []workflow.Diagnostic
	for _, c := range all {
		c.workflow, c.diags = workflow.Parse(c.file, c.src, workflow.Options{})
		if workflow.Errors(c.diags) {
			problems = append(problems, c.diags...)
			continue
		}
		if c.happening, err = what.of(c.workflow); err != nil {
			return nil, err
		}
		c.decision = c.workflow.Decide(c.happening)
	}
	if o.explain {
		for _, c := range all {
			switch word := "no "; {
			case c.workflow == nil || workflow.Errors(c.diags):
				if !o.json {
					fmt.Fprintf(a.out, "no   %s: it is invalid\n", c.file)
				}
			case o.json:
				says := map[bool]string{true: "runs: ", false: "does not run: "}[c.decision.Run]
				a.diagnose(o, []workflow.Diagnostic{{File: c.file, Pos: c.decision.Pos, Severity: workflow.Advice, Message: says + c.decision.Reason}})
			default:
				if c.decision.Run {
					word = "yes"
				}
				at := ""
				if !c.decision.Pos.IsZero() {
					at = ":" + c.decision.Pos.String()
				}
				fmt.Fprintf(a.out, "%s  %s%s: %s\n", word, c.file, at, board.Clean(c.decision.Reason))
			}
		}
		a.diagnose(o, problems)
		if len(problems) > 0 {
			return nil, &exit{code: exitUsage}
		}
		return nil, nil
	}
	filter := plan.Filter{Jobs: o.jobs}
	for _, m := range o.matrix {
		cell, err := plan.ParseCell(m)
		if err != nil {
			return nil, usage("%v", err)
		}
		filter.Matrix = append(filter.Matrix, cell)
	}
	if o.list {
		filter = plan.Filter{} // of everything that there is
	}
	var unfit []error // workflows of which the filter leaves nothing
	for _, c := range all {
		if workflow.Errors(c.diags) || !c.decision.Run && !o.list {
			continue
		}
		c.run = ci.Run{ID: ci.NewID(), Event: o.event, Repository: p.repository, Workflow: cmp.Or(c.workflow.Name, c.file), File: c.file,
			Ref: c.happening.Ref, SHA: c.happening.SHA, Actor: o.actor, Number: 1, Attempt: 1, Created: time.Now()}
		ds, err := a.plan(ctx, p, o, set, c, c.happening, resolver, filter)
		switch {
		case err != nil:
			unfit = append(unfit, fmt.Errorf("%s: %w", c.file, err))
			continue
		case c.plan == nil:
			c.diags = append(c.diags, ds...)
			if c.decision.Run {
				problems = append(problems, ds...)
			}
			continue
		}
		for _, d := range ds {
			if d.Severity == workflow.Advice {
				advice = append(advice, d)
			}
		}
		if c.decision.Run {
			chosen = append(chosen, c)
		}
	}
	if o.list {
		var entries []show.Entry
		for _, c := range all {
			if o.json {
				a.planned(c)
				continue
			}
			entries = append(entries, show.Entry{File: c.file, Workflow: c.workflow, Triggered: c.decision.Run, Reason: c.decision.Reason, Run: c.plan,
				Diagnostics: c.diags})
		}
		if !o.json {
			if err := show.List(a.out, entries); err != nil {
				return nil, err
			}
		}
		if workflow.Errors(problems) {
			a.diagnose(o, problems)
			return nil, &exit{code: exitUsage}
		}
		return nil, nil
	}
	if len(problems) > 0 {
		// One bad file stops everything: running the rest would look like all
		// of it.
		return nil, a.nothing(o, problems, "nothing was run: mend the %s above", plural(len(problems), "error"))
	}
	if len(chosen) == 0 && len(unfit) > 0 {
		return nil, a.nothing(o, nil, "%v", errors.Join(unfit...))
	}
	if len(chosen) == 0 {
		var why []string
		for _, c := range all {
			why = append(why, fmt.Sprintf("  %s: %s", c.file, board.Clean(c.decision.Reason)))
		}
		return nil, a.nothing(o, nil, "no workflow runs for %s, so nothing was run:\n%s", o.event, strings.Join(why, "\n"))
	}
	for _, c := range chosen {
		if len(c.plan.Jobs) == 0 {
			return nil, a.nothing(o, nil, "%s has no job to run", c.file)
		}
		switch {
		case o.json && (o.graph || o.dryRun):
			a.planned(c)
		case o.graph:
			err = show.Graph(a.out, c.plan)
		case o.dryRun:
			err = show.DryRun(a.out, c.plan)
		}
		if err != nil {
			return nil, err
		}
	}
	if !slices.ContainsFunc(chosen, func(c *candidate) bool { return c.plan.Runnable() }) {
		for _, c := range chosen {
			problems = append(problems, c.plan.Refused()...)
		}
		return nil, a.nothing(o, problems, "nothing was run: no job can run here, for the %s above", plural(len(problems), "reason"))
	}
	if o.graph || o.dryRun {
		return nil, nil
	}
	if len(advice) > 0 && a.verbose {
		a.diagnose(o, advice)
	}
	return chosen, nil
}

// planned tells of a run that was only asked about, in records.
func (a *app) planned(c *candidate) {
	if c.plan == nil {
		return
	}
	a.json().Emit(ci.Record{Type: ci.RunPlanned, Run: c.run.ID, Workflow: c.run.Workflow, File: c.file, Name: c.run.Name, Event: c.run.Event, SHA: c.run.SHA,
		Ref:  c.run.Ref,
		Jobs: len(c.plan.Jobs), Reason: c.decision.Reason})
	for _, j := range c.plan.Jobs {
		r := ci.Record{Type: ci.JobQueued, Run: c.run.ID, Job: j.ID, JobKey: j.Key, Name: j.Name, Needs: j.Needs}
		if len(j.Refused) > 0 {
			_, why, _ := j.Refusal()
			r.Reason = "cannot run here: " + why
		}
		if j.Matrix.Kind() != expr.KindNull {
			r.Matrix = j.Matrix
		}
		a.json().Emit(r)
	}
}

// plan plans what the filter leaves of one workflow: before anything is checked, so
// that what is not asked for is in nobody's way. The error is that it leaves nothing.
func (a *app) plan(ctx context.Context, p *project, o runOptions, set runSettings, c *candidate, h *workflow.Happening, resolver *action.Resolver,
	filter plan.Filter) (ds []workflow.Diagnostic, err error) {
	r := a.request(set)
	r.Workflow, r.Event, r.Facts = c.workflow, h, launch.Facts{Run: c.run, Server: p.server, API: github.APIOf(p.server)}
	r.Load, r.Inputs, r.Vars = a.load(ctx, p, resolver), set.inputs, set.vars
	r.Check.Actions, r.Check.Files, r.Check.Shells = resolver, p.readFile, image.Shells()
	r.InputHint = "give inputs with --input NAME=value"
	r.Planned = func(run *plan.Run) {
		if len(filter.Jobs)+len(filter.Matrix) == 0 {
			return
		}
		if err = run.Keep(filter); err != nil {
			run.Jobs = nil
		}
	}
	run, ds := launch.Plan(ctx, r)
	if run != nil {
		c.plan, c.run.Name, c.run.Workflow = run, run.Name, run.Workflow
	}
	return ds, err
}

// request is what is asked of every job: what machines there are for it.
func (a *app) request(set runSettings) launch.Request {
	return launch.Request{
		Check: engine.CheckOptions{Results: true, Mapped: func(label string) bool { _, ok := set.platforms[strings.ToLower(label)]; return ok }},
		Fits: func(labels []string, group string) (have, remarks []string, err error) {
			have, remarks, err = image.Take(labels, group, func(label string) bool {
				return set.platforms[label] != "" || slices.Contains(image.KnownLabels(), label)
			}, set.strict)
			if err == nil {
				var remark string
				if _, remark, err = image.ForLabels(have, set.platforms, set.shelf); remark != "" {
					remarks = append(remarks, remark)
				}
			}
			return have, remarks, err
		},
		LabelHint: "-P LABEL=" + image.Default + " runs it on the default image",
	}
}

func readWorkflows(p *project, where string) ([]*candidate, error) {
	dir := where
	if dir == "" {
		dir = filepath.Join(p.root, ".github", "workflows")
	} else if !filepath.IsAbs(dir) {
		// As act has it: relative to the repository, else to where we stand.
		if _, err := os.Stat(filepath.Join(p.root, dir)); err == nil {
			dir = filepath.Join(p.root, dir)
		}
	}
	info, err := os.Stat(dir)
	if err != nil {
		if where == "" {
			return nil, usage("%s has no .github/workflows: name a file or a directory with -W, or write one with `hearth new`", p.root)
		}
		return nil, usage("-W: %v", err)
	}
	files := []string{dir}
	if info.IsDir() {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, usage("-W: %v", err)
		}
		files = nil
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yml" || ext == ".yaml") {
				files = append(files, filepath.Join(dir, e.Name()))
			}
		}
		if len(files) == 0 {
			return nil, usage("%s holds no *.yml or *.yaml file", dir)
		}
	}
	var out []*candidate
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, usage("%v", err)
		}
		name := f
		if rel, err := filepath.Rel(p.root, f); err == nil && filepath.IsLocal(rel) {
			name = filepath.ToSlash(rel)
		}
		out = append(out, &candidate{file: name, src: b})
	}
	return out, nil
}

// runSettings is what flags and dot files say.
type runSettings struct {
	secrets, vars, env, inputs map[string]string
	platforms                  map[string]string
	strict                     bool // about labels that nothing is known by
	shelf                      image.Shelf
	envSecrets, envVars        map[string]map[string]string
	files                      []string // that these were read from, absolute
}

func (a *app) settings(p *project, o runOptions) (runSettings, error) {
	s := runSettings{secrets: map[string]string{}, vars: map[string]string{}, env: map[string]string{}, inputs: map[string]string{},
		envSecrets: map[string]map[string]string{}, envVars: map[string]map[string]string{}}
	for _, k := range []struct {
		flag, file, def string
		given           []string
		into            map[string]string
		fromEnv         bool
	}{
		{"secret", o.secretFile, ".secrets", o.secrets, s.secrets, true},
		{"var", o.varFile, ".vars", o.vars, s.vars, true},
		{"env", o.envFile, ".env", o.env, s.env, true},
		{"input", o.inputFile, ".input", o.inputs, s.inputs, false},
	} {
		file := k.file
		if file == "" {
			file = filepath.Join(p.root, k.def)
		}
		read := settings
		if k.flag == "secret" {
			read = a.secretSettings
		}
		if err := read(file, k.file != "", k.into); err != nil {
			return s, err
		}
		s.files = append(s.files, file)
		for _, kv := range k.given {
			name, v, ok := strings.Cut(kv, "=")
			if !ok && k.fromEnv {
				if v = a.getenv(name); v == "" {
					return s, usage("--%s %s: the environment has no %s; say %s=value", k.flag, name, name, name)
				}
			} else if !ok {
				return s, usage("--%s %s: want NAME=value", k.flag, name)
			}
			if name == "" {
				return s, usage("--%s: want NAME=value", k.flag)
			}
			k.into[name] = v
		}
	}
	for _, k := range []struct {
		flag  string
		given []string
		into  map[string]map[string]string
		read  func(file string, must bool, into map[string]string) error
	}{{"environment-secret-file", o.envSecretFiles, s.envSecrets, a.secretSettings}, {"environment-var-file", o.envVarFiles, s.envVars, settings}} {
		for _, kv := range k.given {
			name, file, ok := strings.Cut(kv, "=")
			if !ok || name == "" || file == "" {
				return s, usage("--%s %s: want ENV=FILE", k.flag, kv)
			}
			m := map[string]string{}
			if err := k.read(file, true, m); err != nil {
				return s, err
			}
			s.files = append(s.files, file)
			k.into[strings.ToLower(name)] = m
		}
	}
	for i, f := range s.files {
		abs, err := filepath.Abs(f)
		if err != nil {
			return s, err
		}
		s.files[i] = abs
	}
	var err error
	if s.platforms, err = o.platforms(); err != nil {
		return s, err
	}
	s.strict, err = strictLabels(o.unknownLabels)
	if err != nil {
		return s, usage("--unknown-labels %v", err)
	}
	return s, nil
}

// strictLabels reads what becomes of labels that nothing is known by.
func strictLabels(s string) (bool, error) {
	switch s {
	case config.UnknownUbuntu, "":
		return false, nil
	case config.UnknownRefuse:
		return true, nil
	}
	return false, fmt.Errorf("%s: want %s or %s", s, config.UnknownUbuntu, config.UnknownRefuse)
}

// platforms are the images that -P names, by label.
func (o runOptions) platforms() (map[string]string, error) {
	out := map[string]string{}
	for _, kv := range o.platform {
		label, img, ok := strings.Cut(kv, "=")
		if !ok || label == "" || img == "" {
			return nil, usage("-P %s: want label=image", kv)
		}
		out[strings.ToLower(label)] = img
	}
	return out, nil
}

func plural(n int, noun string) string {
	if n == 1 {
		return noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func didYouMean(event string) string {
	var names []string
	for _, e := range workflow.Events() {
		if e.Starts {
			names = append(names, e.Name)
		}
	}
	best := workflow.Closest(event, names)
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// perform runs what was planned and says what came of it.
func (a *app) perform(ctx context.Context, p *project, o runOptions, set runSettings, chosen []*candidate, what *occasion, resolver *action.Resolver,
	policy network.Policy) error {
	s, dirs, err := a.store(ctx, "")
	if err != nil {
		return err
	}
	defer s.Close()
	learner, err := learn.Open(ctx, s, learn.Options{Mode: learn.Mode(cmp.Or(o.learn, a.getenv("HEARTH_LEARN"))), Log: a.log()})
	if err != nil {
		return usage("--learn: %v", err)
	}
	images := map[string]string{} // ids, so that a run does not change with what is built meanwhile
	for _, c := range chosen {
		for _, j := range c.plan.Jobs {
			name, _, err := image.ForLabels(j.Labels, set.platforms, set.shelf)
			if err != nil || name == "" || images[name] != "" {
				continue
			}
			img, err := a.image(ctx, dirs, name)
			if err != nil {
				if errors.Is(err, image.ErrNotFound) {
					return usage("-P: %v", err)
				}
				return err
			}
			images[name] = img.ID
		}
	}
	registries, err := parseRegistries(o.registries)
	if err != nil {
		return err
	}
	kept, _ := config.LoadRetention(a.getenv) // a.store has looked at it
	pulled, err := openRegistry(dirs, registries, kept, a.log())
	if err != nil {
		return err
	}
	o.warm, o.image = 1, set.shelf.Default
	machines, err := a.machines(ctx, dirs, o.machineOptions)
	if err != nil {
		return err
	}
	defer closePool(machines)
	shared := resultsStore(dirs, kept, a.log())

	book := &ledger.Ledger{Store: s, Learn: learner, Dir: dirs.Running(), Log: a.log()}
	groups := conduct.NewGroups()
	conclusions := make([]ci.Conclusion, len(chosen))
	errs := make([]error, len(chosen))
	for i, c := range chosen {
		if ctx.Err() != nil {
			break
		}
		late := a.request(set)
		var keep func(context.Context, worker.Kept) error
		if o.keepPoints {
			keep = keepPoints(pointStore(dirs, kept), c.run, set.files)
		}
		tree := &source.Dir{Root: p.root, Repository: p.repository, Server: p.server, Branch: p.branch, Stay: set.files, At: what.at}
		conclusions[i], errs[i] = a.performOne(ctx, o, c, groups, late.Late, func(sink ci.Sink) *worker.Runner {
			return &worker.Runner{
				Host: machines, RunID: c.run.ID, Repository: p.repository, File: c.file, Ref: c.run.Ref, SHA: c.run.SHA, Attempt: c.run.Attempt,
				Sink: sink, Secrets: set.secrets, EnvironmentSecrets: set.envSecrets, EnvironmentVars: set.envVars, Env: set.env, Network: policy, Learn: learner,
				Actions: resolver, Results: shared, Registry: pulled,
				Source: tree, Tree: tree.Tree, Tests: o.tests, Commits: commitsOf(tree),
				Token: func(context.Context, *plan.Job) (string, error) { return set.secrets["GITHUB_TOKEN"], nil },
				CPUs:  o.cpus, MemoryMiB: o.memoryMiB, Log: a.log(),
				Package: prompt.Package, Points: worker.Points(o.points), Keep: keep,
				Image: func(labels []string) (string, error) {
					name, _, err := image.ForLabels(labels, set.platforms, set.shelf)
					if err != nil || name == "" {
						return "", err
					}
					return cmp.Or(images[name], name), nil // the name of a job that was not known before
				},
			}
		}, book)
	}
	return a.verdict(ctx, o, conclusions, errs)
}

// verdict turns how the runs ended into an exit code.
func (a *app) verdict(ctx context.Context, o runOptions, conclusions []ci.Conclusion, errs []error) error {
	if err := errors.Join(errs...); err != nil && !errors.Is(err, errJobInfrastructure) {
		return &exit{exitInfrastructure, err}
	}
	if ctx.Err() != nil {
		return &exit{exitCancelled, context.Cause(ctx)}
	}
	if errors.Join(errs...) != nil {
		return &exit{code: exitInfrastructure}
	}
	missing := false
	for _, c := range conclusions {
		if !c.Green() {
			return &exit{code: exitFailed}
		}
		missing = missing || c == ci.Neutral
	}
	if missing && !o.allowMissing {
		return &exit{code: exitMissing}
	}
	return nil
}

var errJobInfrastructure = errors.New("a job could not be run")

// commitsOf lists, for the learner, what a working tree has since a commit.
func commitsOf(tree *source.Dir) func(ctx context.Context, since string) ([]learn.Commit, error) {
	return func(ctx context.Context, since string) (out []learn.Commit, err error) {
		changes, err := tree.Since(ctx, since, learn.MaxCommits)
		for _, c := range changes {
			out = append(out, learn.Commit(c))
		}
		return out, err
	}
}
