package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/ledger"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/tui"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/jail"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// The exit codes of every command.
const (
	exitFailed         = 1   // a job failed
	exitUsage          = 2   // bad flags, an invalid workflow, or nothing to run
	exitInfrastructure = 3   // we could not do it
	exitMissing        = 4   // all that ran succeeded, and a job cannot run here
	exitCancelled      = 130 // Ctrl-C, SIGTERM
)

// exit is an error that carries its exit code. A nil err says nothing more
// than has been said.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

func usage(format string, args ...any) error {
	return &exit{exitUsage, fmt.Errorf(format, args...)}
}

// app is what every command has at hand.
type app struct {
	in      io.Reader
	out     io.Writer
	err     io.Writer
	getenv  func(string) string
	verbose bool
	records *tui.JSON    // of --json: see [app.json]
	walls   *jail.Policy // of the server; nil reads the environment: see [app.jail]
	stop    *stopper     // nil: no signals are heard

	works func(context.Context, vm.Driver) error // for tests: see [drivers.Config]
}

var (
	errInterrupted = errors.New("interrupted")
	errUnread      = errors.New("nobody reads the output any more")
)

// Main runs the program and returns its exit code.
func Main() int {
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: os.Getenv}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	a.stop = &stopper{say: a.err, cancel: cancel}
	go func() {
		for s := range signals {
			if a.stop.signal(s) {
				os.Exit(exitCancelled)
			}
		}
	}()
	// Who pipes us into head(1) has read enough. A signal would kill us on the
	// spot; like this machines are cleared away first.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if !isTerminal(os.Stdout) {
		a.out = &pipe{os.Stdout, cancel}
	}
	return a.main(ctx, os.Args[1:])
}

// pipe is standard output that may lose its reader.
type pipe struct {
	w      io.Writer
	cancel context.CancelCauseFunc
}

func (p *pipe) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	if errors.Is(err, syscall.EPIPE) {
		p.cancel(errUnread)
	}
	return n, err
}

func (a *app) main(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	c, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if context.Cause(ctx) == errUnread {
		return exitCancelled
	}
	var e *exit
	isExit := errors.As(err, &e)
	if cause := context.Cause(ctx); cause != nil && (!isExit || e.code == exitInfrastructure) {
		// What could not be done because it was interrupted is no fault.
		if !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		e, isExit = &exit{exitCancelled, err}, true
	}
	if !isExit || e.err != nil {
		// With --json even a run that never starts says why in a record. The
		// arguments are asked, since the flags may be what is wrong.
		if c.Name() == "run" && c.Parent() == root && slices.Contains(args, "--json") {
			a.json().Emit(ci.Record{Type: ci.DiagnosticRec, Level: workflow.Error.String(), Message: err.Error()})
		}
		if !isExit || e.code != exitUsage || a.records == nil {
			fmt.Fprintln(a.err, "hearth:", err)
		}
	}
	if isExit {
		return e.code
	}
	return exitInfrastructure
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "hearth",
		Short: "Run GitHub Actions workflows, every job in a microVM of its own",
		Long: `Hearth runs GitHub Actions workflows. Every job burns in its own microVM,
restored from a snapshot in a blink and thrown away after; and it remembers what
came of it: what will fail, what is flaky, what ended a failure last time.

  hearth run        run this repository's workflows
  hearth serve      take GitHub's webhooks, report checks
  hearth vm run     run one command in a fresh machine
  hearth doctor     what this machine can do, and how to mend what it cannot`,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetIn(a.in)
	root.PersistentFlags().BoolVar(&a.verbose, "verbose", false, "say what goes on inside, on standard error")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage("%v\nsee: %s --help", err, c.CommandPath())
	})
	for _, c := range a.commands() {
		root.AddCommand(c)
	}
	// Unknown commands and wrong argument counts are usage errors too.
	wrapArgs(root)
	return root
}

func wrapArgs(c *cobra.Command) {
	check := c.Args
	c.Args = func(c *cobra.Command, args []string) error {
		var err error
		switch {
		case check != nil:
			err = check(c, args)
		case c.HasSubCommands() && len(args) > 0:
			err = fmt.Errorf("there is no %q here", args[0])
		}
		if err != nil {
			return usage("%v\nsee: %s --help", err, c.CommandPath())
		}
		return nil
	}
	if c.HasSubCommands() && c.RunE == nil {
		c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

// json is where records go with --json: one numbering for all of a command.
func (a *app) json() *tui.JSON {
	if a.records == nil {
		a.records = tui.NewJSON(a.out)
	}
	return a.records
}

func (a *app) log() *slog.Logger {
	level := slog.LevelWarn
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level}))
}

// dirs finds and makes the directories.
func (a *app) dirs() (config.Dirs, error) {
	d, err := config.FindDirs(a.getenv)
	if err == nil {
		err = d.Make()
	}
	if err != nil {
		return d, &exit{exitInfrastructure, err}
	}
	return d, nil
}

// store opens the record of this user, or the database of a server. Options are
// beside what the environment says of logs.
func (a *app) store(ctx context.Context, database string, options ...store.Option) (*store.Store, config.Dirs, error) {
	d, err := a.dirs()
	if err != nil {
		return nil, d, err
	}
	keep, bad := config.LoadRetention(a.getenv)
	if err := errors.Join(append(bad, keep.Validate()...)...); err != nil {
		return nil, d, usage("%v", err)
	}
	if database == "" {
		database = a.getenv("HEARTH_DATABASE")
	}
	if database == "" {
		database = d.Database()
	}
	s, err := store.Open(ctx, database, append([]store.Option{store.WithLogs(d.Logs()), logLimits(keep)}, options...)...)
	if err != nil {
		return nil, d, &exit{exitInfrastructure, err}
	}
	if err := (&ledger.Ledger{Store: s, Dir: d.Running(), Log: a.log()}).Recover(ctx); err != nil {
		a.log().Error("runs of dead processes are still under way on record", "err", err)
	}
	return s, d, nil
}

func logLimits(r config.Retention) store.Option {
	return store.WithLogLimits(int64(r.JobLog), int64(r.RunLog))
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Say which version this is", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := version
			goVersion := ""
			if info, ok := debug.ReadBuildInfo(); ok {
				goVersion = " (" + info.GoVersion + ")"
			}
			_, err := fmt.Fprintf(a.out, "hearth %s%s\n", v, goVersion)
			return err
		},
	}
}
