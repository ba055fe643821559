package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/hold"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/ledger"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/point"
	"github.com/hearth-ci/hearth/internal/pool"
	"github.com/hearth-ci/hearth/internal/source"
	"github.com/hearth-ci/hearth/internal/worker"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// pointStore is where points outlive their machines.
func pointStore(dirs config.Dirs, keep config.Retention) *point.Store {
	return &point.Store{Dir: dirs.Points(), Budget: int64(keep.PointBytes), Age: time.Duration(keep.Points)}
}

// knowledge is what a point holds beside its machine.
type knowledge struct {
	Begin json.RawMessage `json:"begin"` // a worker.Begin
	// Stay are files that stay on this host when a working tree is checked out.
	Stay []string `json:"stay,omitempty"`
}

// keepPoints is a [worker.Runner]'s Keep; stay are the files that the run's settings
// were read from.
func keepPoints(s *point.Store, run ci.Run, stay []string) func(context.Context, worker.Kept) error {
	return func(ctx context.Context, k worker.Kept) error {
		var w *point.Writer
		err := k.Write(ctx, func(private []byte) (io.Writer, error) {
			private, err := json.Marshal(knowledge{private, stay})
			if err != nil {
				return nil, err
			}
			w, err = s.Create(point.Meta{Run: run.ID, Repository: run.Repository, Job: k.Job.Key, Step: k.Step, Name: k.Name, Attempt: run.Attempt,
				Cost: k.Cost, Origin: k.Origin})
			if err != nil {
				return nil, err
			}
			return w, point.PutPrivate(w, private)
		})
		if err == nil {
			_, err = w.Commit(ctx)
		} else if w != nil {
			w.Abort()
		}
		return err
	}
}

// moment is a point that was chosen, and what is known of its job. It holds secrets.
type moment struct {
	point.Meta
	store *point.Store
	begin worker.Begin
	stay  []string
	job   *plan.Job
}

// saved is the machine of it.
func (m *moment) saved() *machine.Saved {
	return &machine.Saved{ID: m.ID, Origin: m.Origin, Open: func() (io.ReadCloser, error) {
		_, r, err := m.store.Open(m.ID)
		if err != nil {
			return nil, err
		}
		if _, err := point.Private(r, 2*worker.MaxBegin); err != nil {
			r.Close()
			return nil, err
		}
		return r, nil
	}}
}

// end says that it is of the job's end: there is no step after it.
func (m *moment) end() bool { return m.begin.State == nil }

// describe names it for people.
func (m *moment) describe() string {
	if m.end() {
		return fmt.Sprintf("run %s, job %s, as the job left its machine", m.Run, board.Clean(m.Job))
	}
	return fmt.Sprintf("run %s, job %s, before step %d (%s)", m.Run, board.Clean(m.Job), m.Step, board.Clean(m.Name))
}

// pointOptions say which point is meant.
type pointOptions struct {
	job, step string
}

func (o *pointOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVarP(&o.job, "job", "j", "", "the job, by its key, where several of the run have points")
	f.StringVar(&o.step, "step", "", "the step, by its number; end is the machine as the job left it")
}

// pointsOf are the points of a run, "last" being the newest that has some, and where
// they are kept.
func (a *app) pointsOf(c *cobra.Command, name string) (dirs config.Dirs, s *point.Store, all []point.Meta, err error) {
	if dirs, err = a.dirs(); err != nil {
		return dirs, nil, nil, err
	}
	kept, err := a.retention()
	if err != nil {
		return dirs, nil, nil, err
	}
	s = pointStore(dirs, kept)
	all, err = runPoints(c.Context(), s, name)
	return dirs, s, all, err
}

func runPoints(ctx context.Context, s *point.Store, name string) ([]point.Meta, error) {
	all, err := s.List(ctx)
	if err != nil {
		return nil, &exit{exitInfrastructure, err}
	}
	if len(all) == 0 {
		return nil, usage("no points are kept: hearth run --keep-points keeps them")
	}
	run := ""
	if name == "last" {
		run = all[len(all)-1].Run
	} else {
		for _, m := range all {
			if name == "" || !strings.HasPrefix(m.Run, name) || m.Run == run {
				continue
			}
			if run != "" {
				return nil, usage("several runs with points begin with %s: write more of the id", board.Clean(name))
			}
			run = m.Run
		}
	}
	if run == "" {
		return nil, usage("run %s has no points: hearth run --keep-points keeps them", board.Clean(name))
	}
	return slices.DeleteFunc(all, func(m point.Meta) bool { return m.Run != run }), nil
}

// choose picks the one point that is meant, and reads what is known of its job.
func (o *pointOptions) choose(s *point.Store, all []point.Meta) (*moment, error) {
	jobs := map[string]bool{}
	for _, m := range all {
		jobs[m.Job] = true
	}
	if o.job == "" && len(jobs) > 1 {
		var b strings.Builder
		for _, m := range all {
			if jobs[m.Job] {
				fmt.Fprintf(&b, "\n  --job %s", shellWord(board.Clean(m.Job)))
			}
			jobs[m.Job] = false
		}
		return nil, usage("several jobs of the run have points: say which%s", b.String())
	}
	mine := slices.DeleteFunc(slices.Clone(all), func(m point.Meta) bool { return o.job != "" && m.Job != o.job })
	if len(mine) == 0 {
		return nil, usage("job %s has no points in run %s", board.Clean(o.job), all[0].Run)
	}
	var found *point.Meta
	if o.step == "end" {
		if last := &mine[len(mine)-1]; last.Name == "" {
			found = last
		}
	} else {
		n, err := strconv.Atoi(o.step)
		if err != nil || n < 1 {
			return nil, usage("--step %s: want a step's number, or end", board.Clean(o.step))
		}
		for i := range mine {
			if mine[i].Step == n && mine[i].Name != "" {
				found = &mine[i]
			}
		}
	}
	if found == nil {
		return nil, usage("there is no point of step %s: hearth rewind %s lists those there are", board.Clean(o.step), all[0].Run)
	}
	return openMoment(s, *found)
}

// openMoment reads what is known of a point's job.
func openMoment(s *point.Store, m point.Meta) (*moment, error) {
	out := &moment{store: s}
	meta, r, err := s.Open(m.ID)
	if err != nil {
		return nil, &exit{exitInfrastructure, err}
	}
	defer r.Close()
	out.Meta = meta
	private, err := point.Private(r, 2*worker.MaxBegin)
	var k knowledge
	if err == nil {
		err = json.Unmarshal(private, &k)
	}
	if out.stay = k.Stay; err == nil {
		err = json.Unmarshal(k.Begin, &out.begin)
	}
	if err == nil {
		out.job, err = out.begin.Planned()
	}
	if err != nil {
		return nil, &exit{exitInfrastructure, fmt.Errorf("point %s: %w", m.ID, err)}
	}
	return out, nil
}

// printPoints lists a run's points.
func (a *app) printPoints(all []point.Meta, asJSON bool) error {
	if asJSON {
		enc := board.NewEncoder(a.out)
		for _, m := range all {
			line := struct {
				point.Meta
				Bytes int64 `json:"bytes"`
			}{m, m.Bytes}
			if err := enc.Encode(line); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RUN\tJOB\tSTEP\tNAME\tWHEN\tSIZE")
	for _, m := range all {
		step, name := strconv.Itoa(m.Step), m.Name
		if name == "" {
			step, name = "end", "(as the job left its machine)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Run, board.Clean(m.Job), step, board.Clean(name), ago(m.Created), megabytes(m.Bytes))
	}
	return w.Flush()
}

// rewindOptions are the flags of `hearth rewind`.
type rewindOptions struct {
	pointOptions
	goOn, edit, json, plain, quiet bool
	script                         string
	argv                           []string
}

func (a *app) rewindCommand() *cobra.Command {
	var o rewindOptions
	c := &cobra.Command{
		Use: "rewind [RUN] [flags] [-- CMD [ARG…]]", Short: "A machine of a finished run as it was before a step: a shell there, or the rest of the job",
		Long: `A machine of a run that hearth run --keep-points ran, as it was before a step: its
files, memory and processes, under a new name and on a network of its own with the
run's policy. Without --step the points of the run are listed; RUN may be cut short,
and left out for the newest run that has points.

With --step N there is a shell where the step would stand (its directory and its
environment), or a command after --. --continue runs the rest of the job from there;
--run FILE and --edit do, with another script in the step's place. As often as wanted:
the point stays as it is. What comes of it is a run of its own on record (event
"rewind"), from which nothing is learned. What the steps read of the network, of
artifacts and of caches is as it is now, and so is what a checkout brings: the working
tree around the current directory, if it is of the same repository.

Exit code: that of the shell or command; of the rest of the job 0 success, 1 failure;
2 no such point or a wrong flag, 3 the point cannot be begun with, 130 cancelled.`,
		RunE: func(c *cobra.Command, args []string) error {
			name, argv, err := runAndCommand(c, args)
			if err != nil {
				return err
			}
			o.argv = argv
			chosen := 0
			for _, b := range []bool{o.goOn, o.script != "" || o.edit, argv != nil} {
				if b {
					chosen++
				}
			}
			if chosen > 1 || o.script != "" && o.edit {
				return usage("one of a command, --continue, --run and --edit")
			}
			dirs, s, all, err := a.pointsOf(c, name)
			if err != nil {
				return err
			}
			if o.step == "" {
				if chosen > 0 {
					return usage("say where with --step: hearth rewind %s lists the points", all[0].Run)
				}
				return a.printPoints(slices.DeleteFunc(all, func(m point.Meta) bool { return o.job != "" && m.Job != o.job }), o.json)
			}
			m, err := o.choose(s, all)
			if err != nil {
				return err
			}
			return a.rewind(c.Context(), dirs, m, o)
		},
	}
	o.flags(c)
	f := c.Flags()
	f.BoolVar(&o.goOn, "continue", false, "run the rest of the job from there")
	f.StringVar(&o.script, "run", "", "run this script in the step's place, - for standard input, and the rest of the job")
	f.BoolVar(&o.edit, "edit", false, "edit the step's script first, and run the rest of the job")
	f.BoolVar(&o.json, "json", false, "points, or the records of the rest of the job, as NDJSON")
	f.BoolVar(&o.plain, "plain", false, "plain lines even on a terminal")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "leave the output of steps out")
	return c
}

// runAndCommand takes apart [RUN] [-- CMD…]; RUN is "last" where there is none.
func runAndCommand(c *cobra.Command, args []string) (run string, argv []string, err error) {
	n := c.ArgsLenAtDash()
	if n < 0 {
		n = len(args)
	} else if argv = args[n:]; len(argv) == 0 {
		return "", nil, usage("there is no command after --")
	}
	if n > 1 {
		return "", nil, usage("one RUN, not %d; a command goes after --", n)
	}
	run = "last"
	if n == 1 {
		run = args[0]
	}
	return run, argv, nil
}

// pointMachines opens a pool for machines that begin as a point.
func (a *app) pointMachines(ctx context.Context, dirs config.Dirs, m *moment, most int) (*pool.Pool, error) {
	o := m.Origin
	img, err := a.image(ctx, dirs, o.Image)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be begun with: %w", m.describe(), err)
	}
	set, err := a.drivers(dirs)
	if err != nil {
		return nil, err
	}
	d, err := choose(ctx, set, o.Driver, img.Kernel)
	if err != nil {
		return nil, err
	}
	means := pool.HostMeans()
	means.CPUs, means.MemoryMiB = max(means.CPUs, most*o.CPUs), max(means.MemoryMiB, o.MemoryMiB)
	p, err := pool.New(pool.Config{Driver: d, Image: img, Images: dirs.Images(), RunDir: dirs.Run, CacheDir: dirs.Cache, CPUs: o.CPUs, MemoryMiB: o.MemoryMiB,
		ScratchMiB: o.DiskMiB, Means: means, Log: a.log()})
	if err != nil {
		return nil, &exit{exitInfrastructure, err}
	}
	return p, nil
}

func (a *app) rewind(ctx context.Context, dirs config.Dirs, m *moment, o rewindOptions) error {
	runs := o.goOn || o.edit || o.script != ""
	switch {
	case runs && m.end():
		return usage("after %s there is nothing to run: a shell, or a command after --", m.describe())
	case !runs && o.argv == nil && !a.terminal():
		return usage("there is no terminal here: give a command after --, or --continue, --run FILE")
	}
	script := ""
	if o.edit || o.script != "" {
		def := workflow.NumberedSteps(m.job.Definition.Steps)[m.Step-1]
		if def.Run == nil {
			return usage("step %d is no script: it uses %s", m.Step, board.Clean(def.Uses))
		}
		var err error
		if o.edit {
			script, err = a.edit(ctx, cmp.Or(def.Run.Str, def.Run.Text()))
		} else {
			script, err = readScript(o.script, a.in)
		}
		if err != nil {
			return usage("%v", err)
		}
	}
	machines, err := a.pointMachines(ctx, dirs, m, 1)
	if err != nil {
		return err
	}
	defer closePool(machines)
	if runs {
		return a.goOnFrom(ctx, dirs, machines, m, script, o)
	}
	return a.standAt(ctx, dirs, machines, m, o.argv)
}

// claimAt claims a machine that begins as a point, and makes ready for a process where
// its step would stand.
func claimAt(ctx context.Context, host machine.Host, m *moment, log network.Config) (machine.Machine, *engine.Place, error) {
	lease, err := host.Claim(ctx, machine.Request{From: m.saved(), Network: log})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", m.describe(), err)
	}
	lease.Begin()
	if m.end() {
		return lease, &engine.Place{Dir: engine.DefaultLayout(m.Repository).Workspace}, nil
	}
	r := m.begin.Runner()
	at, err := r.Stand(ctx, lease, &m.begin)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", m.describe(), err), lease.Release(context.WithoutCancel(ctx)))
	}
	return lease, at, nil
}

// letGo ends a machine that began as a point.
func (a *app) letGo(ctx context.Context, lease machine.Machine) {
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	lease.End(stop, true, "")
	if err := lease.Release(stop); err != nil {
		a.log().Error("machine not released in order", "machine", lease.ID(), "err", err)
	}
}

// standAt opens a shell, or runs a command, where the step would stand.
func (a *app) standAt(ctx context.Context, dirs config.Dirs, host machine.Host, m *moment, argv []string) error {
	lease, at, err := claimAt(ctx, host, m, network.Config{Policy: m.begin.Network, Log: a.log()})
	if err != nil {
		return &exit{exitInfrastructure, err}
	}
	defer a.letGo(ctx, lease)
	if argv != nil {
		end, err := lease.Client().Exec(ctx, guest.Cmd{Argv: argv, Dir: at.Dir, Env: at.Environ, Stdout: a.out, Stderr: a.err})
		return a.ended(ctx, end, execOptions{}, err)
	}
	if err := os.MkdirAll(vmDir(dirs), 0o700); err != nil {
		return &exit{exitInfrastructure, err}
	}
	fmt.Fprintf(a.out, "machine %s: %s\n", lease.ID(), m.describe())
	serving, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &hold.Server{VM: lease, Log: a.log(), Paused: &hold.Paused{Run: m.Run, Job: m.Job, Step: m.Step, Name: m.Name, Dir: at.Dir, Environ: at.Environ,
		Until: time.Now().Add(maxPause)}}
	var said error
	began := false
	err = s.Serve(serving, vmDir(dirs), func() error {
		began = true
		go func() {
			defer cancel()
			h, err := hold.Open(vmDir(dirs), lease.ID())
			if err == nil {
				err = a.stepShell(ctx, h)
			}
			said = err
		}()
		return nil
	})
	if began {
		<-serving.Done() // the shell has ended
	}
	if said == nil && err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
		return a.vmError(err)
	}
	return said
}

// goOnFrom runs the rest of a job from a point, as a run of its own.
func (a *app) goOnFrom(ctx context.Context, dirs config.Dirs, host machine.Host, m *moment, script string, o rewindOptions) error {
	s, _, err := a.store(ctx, "")
	if err != nil {
		return err
	}
	defer s.Close()
	learner, err := learn.Open(ctx, s, learn.Options{Mode: learn.Off, Log: a.log()})
	if err != nil {
		return &exit{exitInfrastructure, err}
	}
	b := &m.begin
	planned := *b.Run
	planned.Event, planned.Name = ci.RewindEvent, fmt.Sprintf("run %s from step %d of %s", m.Run, m.Step, m.Job)
	run := ci.Run{ID: ci.NewID(), Event: ci.RewindEvent, Repository: m.Repository, Workflow: planned.Workflow, File: b.File, Name: planned.Name,
		Ref: b.Ref, SHA: b.SHA, Actor: cmp.Or(a.getenv("USER"), "hearth"), Attempt: 1, Created: time.Now()}
	out := a.output(runOptions{json: o.json, plain: o.plain, quiet: o.quiet})
	book := &ledger.Ledger{Store: s, Learn: learner, Dir: dirs.Running(), Log: a.log()}
	entry, err := book.Open(ctx, run, []ci.Job{{Key: m.job.Key, Job: m.job.ID, Name: m.job.Name, Labels: m.job.Labels, Status: ci.Queued}}, nil, out.sink)
	if err != nil {
		out.close()
		return err
	}
	entry.Begin(1, nil, learn.Change{}, nil)
	works, err := a.beginning(ctx, dirs, host, m, entry)
	var done conduct.Outcome
	if err == nil {
		works.RunID = entry.Run.ID
		works.From = &worker.From{Saved: m.saved(), State: b.State, Script: script}
		// The plan keeps the event that steps ask for; the run's records say what this is.
		con := &conduct.Conductor{Run: b.Run, ID: entry.Run.ID, Sink: ci.SinkFunc(func(r ci.Record) {
			if r.Type == ci.RunStarted {
				r.Event, r.Name = planned.Event, planned.Name
			}
			entry.Emit(r)
		}), Executor: works, Mask: works.Hidden()}
		done = con.Alone(ctx, m.job, b.Needs)
	} else {
		entry.Emit(ci.Record{Type: ci.RunFinished, Conclusion: ci.Failure, Infrastructure: true, Reason: err.Error()})
	}
	err = errors.Join(err, entry.Close(), out.close())
	switch {
	case err != nil:
		return &exit{exitInfrastructure, err}
	case ctx.Err() != nil:
		return &exit{exitCancelled, context.Cause(ctx)}
	case done.Infrastructure:
		return &exit{exitInfrastructure, fmt.Errorf("%s: %s", m.describe(), board.Clean(done.Reason))}
	case !done.Conclusion.Green():
		return &exit{code: exitFailed}
	}
	return nil
}

// beginning is a runner for jobs that begin at a point.
func (a *app) beginning(ctx context.Context, dirs config.Dirs, host machine.Host, m *moment, sink ci.Sink) (*worker.Runner, error) {
	b := &m.begin
	resolver, err := a.resolver(runOptions{}, dirs, b.Secrets["GITHUB_TOKEN"])
	if err != nil {
		return nil, err
	}
	kept, _ := config.LoadRetention(a.getenv)
	pulled, err := openRegistry(dirs, nil, kept, a.log())
	if err != nil {
		return nil, err
	}
	r := b.Runner()
	r.Host, r.Sink, r.Actions, r.Log, r.Registry = host, sink, resolver, a.log(), pulled
	r.Results = resultsStore(dirs, kept, a.log())
	if p, err := findProject(ctx, "."); err == nil && p.repository == b.Repository {
		r.Source = &source.Dir{Root: p.root, Repository: p.repository, Server: p.server, Branch: p.branch, Stay: m.stay}
	}
	return r, nil
}
