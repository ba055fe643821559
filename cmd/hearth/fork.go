package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/worker"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// maxCopies bounds the machines of one fork; as many run at once as the host has
// means for.
const maxCopies = 100

// forkOptions are the flags of `hearth fork`.
type forkOptions struct {
	pointOptions
	n       int
	scripts []string
	argv    []string
	json    bool
}

// forked is what became of one copy.
type forked struct {
	Copy       int           `json:"copy"` // from 1
	Script     string        `json:"script,omitempty"`
	Conclusion ci.Conclusion `json:"conclusion"`
	ExitCode   *int          `json:"exit_code,omitempty"`
	Seconds    float64       `json:"seconds"`
	Last       string        `json:"last,omitempty"` // line that was printed, masked as the job's log is
	Error      string        `json:"error,omitempty"`
}

func (a *app) forkCommand() *cobra.Command {
	var o forkOptions
	c := &cobra.Command{
		Use: "fork [RUN] --step N [flags] [-- CMD [ARG…]]", Short: "Copies of a finished run's machine as it was before a step: try one thing several times, or several things once",
		Long: `Machines of a run that hearth run --keep-points ran, all of them as it was before a
step, each under a name and on a network of its own. In each of them the step is run
once more and nothing after it; with --run FILE, given as often as wanted, that script in the
step's place; or a command after --. What came of each is a line of a table: five fixes
tried at once, or one test five times from the very same moment.

-n says how many copies each script, or the command, gets: 5, or one where there are
several scripts. As many run at once as this host has means for. Nothing is recorded or
learned; a step that uploads or keeps something cannot do so there.

Exit code: 0 all succeeded, 1 one failed, 2 no such point or a wrong flag, 3 a machine
could not be begun with, 130 cancelled.`,
		RunE: func(c *cobra.Command, args []string) error {
			name, argv, err := runAndCommand(c, args)
			if err != nil {
				return err
			}
			o.argv = argv
			switch {
			case o.step == "":
				return usage("say where with --step: hearth rewind lists the points")
			case argv != nil && len(o.scripts) > 0:
				return usage("one of a command and --run")
			}
			if !c.Flags().Changed("number") && len(o.scripts) > 1 {
				o.n = 1
			}
			if total := o.n * max(len(o.scripts), 1); o.n < 1 || total > maxCopies {
				return usage("%d copies: want 1 to %d", total, maxCopies)
			}
			dirs, s, all, err := a.pointsOf(c, name)
			if err != nil {
				return err
			}
			m, err := o.choose(s, all)
			if err != nil {
				return err
			}
			return a.fork(c.Context(), dirs, m, o)
		},
	}
	o.flags(c)
	f := c.Flags()
	f.IntVarP(&o.n, "number", "n", 5, "copies of each")
	f.StringArrayVar(&o.scripts, "run", nil, "run this script in the step's place, - for standard input; several are tried beside each other")
	f.BoolVar(&o.json, "json", false, "a JSON object for each copy")
	return c
}

func (a *app) fork(ctx context.Context, dirs config.Dirs, m *moment, o forkOptions) error {
	scripts := []string{""}
	if o.argv == nil {
		if m.end() {
			return usage("after %s there is no step to run: give a command after --", m.describe())
		}
		if def := workflow.NumberedSteps(m.job.Definition.Steps)[m.Step-1]; len(o.scripts) > 0 && def.Run == nil {
			return usage("step %d is no script: it uses %s", m.Step, board.Clean(def.Uses))
		}
		for i, file := range o.scripts {
			script, err := readScript(file, a.in)
			if err != nil {
				return usage("%v", err)
			}
			scripts = append(scripts[:i], script)
		}
	}
	machines, err := a.pointMachines(ctx, dirs, m, 1)
	if err != nil {
		return err
	}
	defer closePool(machines)
	copies := make([]forked, o.n*len(scripts))
	var all sync.WaitGroup
	for i := range copies {
		copies[i].Copy = i + 1
		script := scripts[i/o.n]
		if script != "" {
			copies[i].Script = o.scripts[i/o.n]
		}
		all.Go(func() {
			if o.argv != nil {
				a.forkCommandRun(ctx, machines, m, o.argv, &copies[i])
			} else {
				a.forkStep(ctx, dirs, machines, m, script, &copies[i])
			}
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return &exit{exitCancelled, context.Cause(ctx)}
	}
	return a.printForks(copies, o.json)
}

// forkCommandRun runs a command in one copy.
func (a *app) forkCommandRun(ctx context.Context, host machine.Host, m *moment, argv []string, out *forked) {
	out.Conclusion = ci.Failure
	lease, at, err := claimAt(ctx, host, m, network.Config{Policy: m.begin.Network, Log: a.log()})
	if err != nil {
		out.Error = board.Clean(err.Error())
		return
	}
	defer a.letGo(ctx, lease)
	// Masked before it is cut: what is cut off of a secret would hide the rest.
	began, last, hidden := time.Now(), &lastLine{}, m.begin.Runner().Hidden()
	stdout, stderr := mask.NewWriter(last, hidden), mask.NewWriter(last, hidden)
	end, err := lease.Client().Exec(ctx, guest.Cmd{Argv: argv, Dir: at.Dir, Env: at.Environ, Stdout: stdout, Stderr: stderr})
	err = errors.Join(err, stdout.Flush(), stderr.Flush())
	out.Seconds, out.Last = time.Since(began).Seconds(), board.Clean(last.String())
	switch {
	case guest.StartFailed(err):
		out.Last = board.Clean(err.Error()) // the command's fault
	case err != nil:
		out.Error = board.Clean(err.Error())
	case end.OK():
		out.Conclusion = ci.Success
		fallthrough
	default:
		out.ExitCode = &end.Code
	}
}

// forkStep runs the step in one copy, and nothing after it.
func (a *app) forkStep(ctx context.Context, dirs config.Dirs, host machine.Host, m *moment, script string, out *forked) {
	out.Conclusion = ci.Failure
	var mu sync.Mutex
	sink := ci.SinkFunc(func(r ci.Record) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case r.Step != m.Step:
		case r.Type == ci.LogLine && strings.TrimSpace(r.Text) != "" && r.Stream != "system":
			out.Last = board.Cut(r.Text, maxLast)
		case r.Type == ci.StepFinished:
			out.ExitCode = r.ExitCode
			if r.DurationMS != nil {
				out.Seconds = float64(*r.DurationMS) / 1000
			}
		}
	})
	works, err := a.beginning(ctx, dirs, host, m, sink)
	if err != nil {
		out.Error = board.Clean(err.Error())
		return
	}
	// No run has what it would upload.
	works.RunID, works.Results = ci.NewID(), nil
	works.From = &worker.From{Saved: m.saved(), State: m.begin.State, Script: script, OneStep: true}
	con := &conduct.Conductor{Run: m.begin.Run, ID: works.RunID, Sink: sink, Executor: works, Mask: works.Hidden()}
	done := con.Alone(ctx, m.job, m.begin.Needs)
	mu.Lock()
	defer mu.Unlock()
	out.Conclusion, out.Last = done.Conclusion, board.Clean(out.Last)
	if done.Infrastructure {
		out.Conclusion, out.Error = ci.Failure, board.Clean(done.Reason)
	}
}

// printForks is the table, and what it says.
func (a *app) printForks(copies []forked, asJSON bool) error {
	failed, lost := 0, ""
	for _, c := range copies {
		if c.Error != "" {
			lost = c.Error
		} else if !c.Conclusion.Green() {
			failed++
		}
	}
	if asJSON {
		enc := board.NewEncoder(a.out)
		for _, c := range copies {
			if err := enc.Encode(c); err != nil {
				return err
			}
		}
	} else {
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "COPY\tSCRIPT\tOUTCOME\tEXIT\tTIME\tLAST LINE")
		for _, c := range copies {
			code := "-"
			if c.ExitCode != nil {
				code = strconv.Itoa(*c.ExitCode)
			}
			outcome, last := string(c.Conclusion), c.Last
			if c.Error != "" {
				outcome, last = "not run", c.Error
			}
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%.1f s\t%s\n", c.Copy, board.Clean(c.Script), outcome, code, c.Seconds, board.Cut(last, 100))
		}
		if err := w.Flush(); err != nil {
			return err
		}
		a.judge(copies)
	}
	switch {
	case lost != "":
		return &exit{exitInfrastructure, errors.New(lost)}
	case failed > 0:
		return &exit{code: exitFailed}
	}
	return nil
}

// judge says of copies that ran the same what their outcomes say of it.
func (a *app) judge(copies []forked) {
	ran, failed := map[string]int{}, map[string]int{}
	var order []string
	for _, c := range copies {
		if c.Error != "" {
			continue
		}
		if ran[c.Script]++; ran[c.Script] == 1 {
			order = append(order, c.Script)
		}
		if !c.Conclusion.Green() {
			failed[c.Script]++
		}
	}
	for _, name := range order {
		n, bad := ran[name], failed[name]
		said := ""
		switch {
		case n < 2:
			continue
		case bad == 0:
			said = fmt.Sprintf("all %d succeeded", n)
		case bad == n:
			said = fmt.Sprintf("all %d failed", n)
		default:
			said = fmt.Sprintf("%d of %d failed from the same moment: flaky", bad, n)
		}
		if name != "" {
			said = board.Clean(name) + ": " + said
		}
		fmt.Fprintln(a.out, said)
	}
}

// maxLast bounds what is kept of a line, in bytes.
const maxLast = 1000

// lastLine keeps the last line that is not blank of what is written to it, its
// beginning. It is safe for concurrent use.
type lastLine struct {
	mu         sync.Mutex
	line, last []byte
}

// Write implements io.Writer.
func (l *lastLine) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range p {
		switch {
		case b == '\n' || b == '\r':
			if strings.TrimSpace(string(l.line)) != "" {
				l.last = append(l.last[:0], l.line...)
			}
			l.line = l.line[:0]
		case len(l.line) < maxLast:
			l.line = append(l.line, b)
		}
	}
	return len(p), nil
}

func (l *lastLine) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if strings.TrimSpace(string(l.line)) != "" {
		return string(l.line)
	}
	return string(l.last)
}
