package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hearth-ci/hearth/internal/archive"
	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/hold"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/pool"
	"github.com/hearth-ci/hearth/internal/registry"
)

// exitTimeout is the exit code of a command that took too long, as timeout(1) has it.
const exitTimeout = 124

func (a *app) vmCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "vm", Short: "Machines by themselves: run a command in a fresh one, keep one, look inside",
		Long: `A machine is a microVM with the default image in it, cloned from a snapshot.

  hearth vm run -- make test                one command in a fresh machine
  id=$(hearth vm create)                    a machine that stays, for an hour
  hearth vm exec $id -- uname -a
  hearth vm cp ./src $id:                   files, to the runner's home
  hearth vm snapshot $id clean; hearth vm rollback $id clean
  hearth vm rm $id`,
	}
	c.AddCommand(a.vmRunCommand(), a.vmCreateCommand(), a.vmListCommand(), a.vmExecCommand(), a.vmShellCommand(),
		a.vmCopyCommand(), a.vmSnapshotCommand(), a.vmRollbackCommand(), a.vmRemoveCommand(), a.vmHoldCommand())
	return c
}

// execOptions are the flags of a command that runs in a machine.
type execOptions struct {
	stdin, tty bool
	user, dir  string
	env        []string
	timeout    time.Duration
	learn      learnOptions
}

func (o *execOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.SetInterspersed(false) // what follows the command is the command's
	f.BoolVarP(&o.stdin, "interactive", "i", false, "pass standard input on")
	f.StringVarP(&o.user, "user", "u", "", `user in the machine (default "runner")`)
	f.StringVarP(&o.dir, "workdir", "w", "", "directory in the machine (default: the user's home)")
	f.StringArrayVarP(&o.env, "env", "e", nil, "NAME=value, or NAME to take it from the environment")
	f.DurationVar(&o.timeout, "timeout", 0, "end the command after this long (exit code 124)")
	o.learn.flags(c)
}

func (a *app) command(o execOptions, argv []string) (guest.Cmd, error) {
	if o.timeout < 0 {
		return guest.Cmd{}, usage("--timeout %v: want more than 0", o.timeout)
	}
	env := []string{"PATH=" + guest.ToolPath, "LANG=C.UTF-8"}
	for _, e := range o.env {
		k, v, err := a.variable("--env", e)
		if err != nil {
			return guest.Cmd{}, err
		}
		env = append(env, k+"="+v)
	}
	for _, e := range o.learn.secrets {
		k, v, err := a.variable("--secret", e)
		if err != nil {
			return guest.Cmd{}, err
		}
		env = append(env, k+"="+v)
	}
	cmd := guest.Cmd{Argv: argv, Env: env, Dir: o.dir, User: o.user, Stdout: a.out, Stderr: a.err, Timeout: o.timeout}
	if o.stdin {
		cmd.Stdin = a.in
	}
	return cmd, nil
}

// variable takes NAME=value apart, or takes the value from the environment.
func (a *app) variable(flag, text string) (name, value string, err error) {
	name, value, given := strings.Cut(text, "=")
	if name == "" {
		if flag == "--secret" {
			text = "=***"
		}
		return "", "", usage("%s %q: want NAME=value", flag, text)
	}
	if !given {
		value = a.getenv(name)
	}
	return name, value, nil
}

// ended turns how a command ended into this program's exit code.
func (a *app) ended(ctx context.Context, end guest.Exit, o execOptions, err error) error {
	var f *hold.Fault
	switch {
	case ctx.Err() != nil:
		return &exit{exitCancelled, context.Cause(ctx)}
	case guest.StartFailed(err), errors.As(err, &f) && f.Start():
		return &exit{127, err} // as a shell says it
	case err != nil:
		return a.vmError(err)
	case end.TimedOut:
		return &exit{exitTimeout, fmt.Errorf("the command did not end within %v", o.timeout)}
	case end.Code != 0:
		return &exit{code: end.Code}
	}
	return nil
}

// vmError gives an error about a machine its exit code and a hint.
func (a *app) vmError(err error) error {
	var f *hold.Fault
	switch {
	case err == nil:
		return nil
	case errors.Is(err, hold.ErrNone):
		return &exit{exitUsage, fmt.Errorf("%w\nhearth vm list shows the VMs there are", err)}
	case errors.Is(err, hold.ErrGone):
		return &exit{exitInfrastructure, fmt.Errorf("%w\nhearth vm create makes another one", err)}
	case errors.As(err, &f) && (f.Usage() || errors.Is(f, fs.ErrNotExist)):
		return &exit{exitUsage, err}
	case errors.Is(err, machine.ErrTooLarge):
		return &exit{exitUsage, fmt.Errorf("%w\nask for fewer --cpus or less --memory", err)}
	case errors.Is(err, machine.ErrBusy):
		return &exit{exitInfrastructure, fmt.Errorf("%w\nhearth vm rm frees some", err)}
	}
	var e *exit
	if errors.As(err, &e) {
		return err
	}
	return &exit{exitInfrastructure, err}
}

func (a *app) vmRunCommand() *cobra.Command {
	var m machineOptions
	var o execOptions
	var policy string
	c := &cobra.Command{
		Use: "run [flags] [--] CMD [ARG…]", Short: "Run one command in a fresh machine, then throw the machine away", Args: cobra.MinimumNArgs(1),
		Long: `Run one command in a fresh machine, then throw the machine away.

Exit code: the command's own; 124 if it took longer than --timeout, 127 if it
could not be started, 2 for wrong flags, 3 if there could be no machine.`,
		RunE: func(c *cobra.Command, argv []string) error {
			cmd, err := a.command(o, argv)
			if err != nil {
				return err
			}
			if _, err := o.learn.off(a); err != nil {
				return err
			}
			p, r, err := a.freshMachines(c.Context(), m, policy)
			if err != nil {
				return err
			}
			defer closePool(p)
			l, err := p.Claim(c.Context(), r)
			if err != nil {
				return a.vmError(err)
			}
			l.Begin()
			taught, done, err := a.begin(c.Context(), l.ID(), o.learn, cmd)
			if err != nil {
				return errors.Join(err, l.Release(context.WithoutCancel(c.Context())))
			}
			defer done()
			if taught != nil {
				cmd.Stdout, cmd.Stderr = taught.Tee(cmd.Stdout, cmd.Stderr)
				a.expects(o.learn, taught.Expected)
			}
			end, err := l.Client().Exec(c.Context(), cmd)
			if err == nil {
				a.explains(o.learn, taught.End(c.Context(), end))
			}
			if why := l.Err(); err != nil && why != nil {
				err = fmt.Errorf("%w: %w", err, why)
			}
			if rerr := l.Release(context.WithoutCancel(c.Context())); rerr != nil {
				a.log().Error("the machine was not removed in order", "machine", l.ID(), "err", rerr)
			}
			return a.ended(c.Context(), end, o, err)
		},
	}
	o.flags(c)
	a.vmFlags(c, &m, &policy)
	return c
}

func (a *app) vmFlags(c *cobra.Command, m *machineOptions, policy *string) {
	a.machineFlags(c, m)
	c.Flags().BoolVar(&m.containers, "containers", false, "start from a snapshot in which Docker runs (else it starts when it is first used)")
	c.Flags().StringVar(policy, "network", "default", "what the machine may reach: default (public addresses), none, or allow:HOST,HOST…")
}

// freshMachines opens a pool for one machine.
func (a *app) freshMachines(ctx context.Context, m machineOptions, policy string) (*pool.Pool, machine.Request, error) {
	var r machine.Request
	p, err := network.ParsePolicy(policy)
	if err != nil {
		return nil, r, usage("--network: %v", err)
	}
	if m.cpus < 1 || m.memoryMiB < 128 {
		return nil, r, usage("--cpus %d --memory %d: want at least 1 CPU and 128 MiB", m.cpus, m.memoryMiB)
	}
	if m.diskMiB < config.MinDisk {
		return nil, r, usage("--disk %d: want at least %d MiB", m.diskMiB, config.MinDisk)
	}
	dirs, err := a.dirs()
	if err != nil {
		return nil, r, err
	}
	keep, err := a.retention()
	if err != nil {
		return nil, r, err
	}
	images, err := openRegistry(dirs, nil, keep, a.log())
	if err != nil {
		return nil, r, err
	}
	services, err := images.Services(registry.SessionConfig{Policy: p})
	if err != nil {
		return nil, r, &exit{exitInfrastructure, err}
	}
	machines, err := a.machines(ctx, dirs, m)
	return machines, machine.Request{Containers: m.containers, Network: network.Config{Policy: p, Services: services}, Labels: []string{"vm"}}, a.vmError(err)
}

// vmDir is where the holders' sockets are.
func vmDir(d config.Dirs) string { return filepath.Join(d.Run, "vms") }

// held finds the machine that an argument names.
func (a *app) held(id string) (*hold.Client, error) {
	dirs, err := a.dirs()
	if err != nil {
		return nil, err
	}
	c, err := hold.Open(vmDir(dirs), id)
	return c, a.vmError(err)
}

func (a *app) vmListCommand() *cobra.Command {
	var asJSON, quiet bool
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the machines that are kept", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dirs, err := a.dirs()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), 10*time.Second)
			defer cancel()
			all, err := hold.List(ctx, vmDir(dirs))
			if err != nil {
				return &exit{exitInfrastructure, err}
			}
			a.reapHeld(ctx, dirs)
			if asJSON {
				return board.NewEncoder(a.out).Encode(struct {
					VMs []hold.Status `json:"vms"`
				}{append([]hold.Status{}, all...)})
			}
			if quiet {
				for _, s := range all {
					if s.State != hold.Dead {
						fmt.Fprintln(a.out, s.ID)
					}
				}
				return nil
			}
			if len(all) == 0 {
				fmt.Fprintln(a.err, "no VM is kept: hearth vm create makes one")
				return nil
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tSTATE\tAGE\tLEFT\tCPUS\tMEMORY\tDRIVER\tNETWORK\tSNAPSHOTS")
			for _, s := range all {
				switch s.State {
				case hold.Dead:
					why := "its holder was killed"
					if s.Said != "" {
						why = "its holder died: " + strings.ReplaceAll(board.Clean(s.Said), "\n", " | ")
					}
					fmt.Fprintf(w, "%s\tdead: %s; removed\n", s.ID, why)
				case "":
					fmt.Fprintf(w, "%s\tdoes not answer\n", s.ID)
				default:
					state := "ready"
					if s.Running > 0 {
						state = fmt.Sprintf("running %d", s.Running)
					}
					if p := s.Paused; p != nil {
						state = board.Clean(fmt.Sprintf("waits: step %d of %s failed (hearth debug)", p.Step, p.Job))
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d MiB\t%s\t%s\t%s\n", s.ID, state, board.Short(time.Since(s.Created)), board.Short(time.Until(s.DeleteBy)),
						s.CPUs, s.MemoryMiB, s.Driver, s.Network, board.Clean(cmp.Or(strings.Join(s.Snapshots, ", "), "-")))
				}
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "ids only")
	return c
}

// reapHeld removes what dead holders left beside their sockets.
func (a *app) reapHeld(ctx context.Context, dirs config.Dirs) {
	if _, err := pool.Reap(ctx, pool.Config{RunDir: dirs.Run, CacheDir: dirs.Cache}); err != nil {
		a.log().Warn("cannot remove what is left of a machine", "err", err)
	}
	hold.Litter(vmDir(dirs))
}

func (a *app) vmExecCommand() *cobra.Command {
	var o execOptions
	c := &cobra.Command{
		Use: "exec [flags] ID [--] CMD [ARG…]", Short: "Run a command in a machine", Args: cobra.MinimumNArgs(2),
		Long: `Run a command in a machine that hearth vm create made. ID may be cut short.

Exit code: the command's own; 124 if it took longer than --timeout, 127 if it
could not be started, 2 for wrong flags, 3 if the machine is gone.`,
		RunE: func(c *cobra.Command, args []string) error {
			if args[1] == "--" {
				args = slices.Delete(args, 1, 2)
			}
			if len(args) < 2 {
				return usage("there is no command\nsee: %s --help", c.CommandPath())
			}
			cmd, err := a.command(o, args[1:])
			if err != nil {
				return err
			}
			h, err := a.held(args[0])
			if err != nil {
				return err
			}
			if o.tty {
				return a.onTerminal(c.Context(), h, cmd, o)
			}
			off, err := o.learn.off(a)
			if err != nil {
				return err
			}
			if off {
				end, err := h.Exec(c.Context(), cmd, nil)
				return a.ended(c.Context(), end, o, err)
			}
			end, why, err := h.ExecLearned(c.Context(), cmd, hold.Learning{Repository: a.memoryHere(c.Context()), Secrets: a.values(o.learn.secrets),
				Expected: func(e history.Expectation) { a.expects(o.learn, e) }})
			a.explains(o.learn, why)
			return a.ended(c.Context(), end, o, err)
		},
	}
	o.flags(c)
	c.Flags().BoolVarP(&o.tty, "tty", "t", false, "run it on a terminal, this one")
	return c
}

func (a *app) vmShellCommand() *cobra.Command {
	var o execOptions
	c := &cobra.Command{
		Use: "shell ID", Short: "Open a shell in a machine, on this terminal", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := a.held(args[0])
			if err != nil {
				return err
			}
			cmd, err := a.command(o, []string{"bash", "-l"})
			if err != nil {
				return err
			}
			return a.onTerminal(c.Context(), h, cmd, o)
		},
	}
	f := c.Flags()
	f.StringVarP(&o.user, "user", "u", "", `user in the machine (default "runner")`)
	f.StringVarP(&o.dir, "workdir", "w", "", "directory in the machine (default: the user's home)")
	return c
}

// onTerminal runs a command on a terminal of its own in the machine, which this
// terminal shows: keys go there as they are, Ctrl-C too.
func (a *app) onTerminal(ctx context.Context, h *hold.Client, cmd guest.Cmd, o execOptions) error {
	return a.onTerminalBy(ctx, h.ID(), cmd, o, h.Exec)
}

func (a *app) onTerminalBy(ctx context.Context, id string, cmd guest.Cmd, o execOptions,
	run func(context.Context, guest.Cmd, <-chan guest.TTY) (guest.Exit, error)) error {
	in, ok := a.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) || !isTerminal(a.out) {
		return usage("standard input and output are no terminal: use hearth vm exec -i %s -- bash", id)
	}
	size := func() guest.TTY {
		cols, rows, err := term.GetSize(int(in.Fd()))
		if err != nil || cols < 1 || rows < 1 {
			cols, rows = 80, 24
		}
		return guest.TTY{Rows: uint16(rows), Cols: uint16(cols)}
	}
	now := size()
	cmd.TTY, cmd.Stdin, cmd.Stderr = &now, in, nil
	cmd.Env = append(cmd.Env, "TERM="+cmp.Or(a.getenv("TERM"), "xterm-256color"))
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	defer signal.Stop(changed)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resize := make(chan guest.TTY)
	go func() {
		for {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			select {
			case resize <- size():
			case <-ctx.Done():
				return
			}
		}
	}()
	before, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return &exit{exitInfrastructure, fmt.Errorf("the terminal: %w", err)}
	}
	end, err := run(ctx, cmd, resize)
	term.Restore(int(in.Fd()), before)
	return a.ended(ctx, end, o, err)
}

func (a *app) vmSnapshotCommand() *cobra.Command {
	return &cobra.Command{
		Use: "snapshot ID [NAME]", Short: "Write a machine down as it is now, to go back to; print the name", Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			name := ""
			if len(args) > 1 {
				if name = args[1]; name == "" || len(name) > 100 || name != board.Clean(name) {
					return usage("the name %q of a snapshot: want 1 to 100 printable characters", name)
				}
			}
			h, err := a.held(args[0])
			if err != nil {
				return err
			}
			name, err = h.Snapshot(c.Context(), name)
			if err != nil {
				return a.vmError(err)
			}
			fmt.Fprintln(a.out, name)
			return nil
		},
	}
}

func (a *app) vmRollbackCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rollback ID NAME", Short: "Put a machine back to a snapshot: files, memory, processes", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := a.held(args[0])
			if err != nil {
				return err
			}
			return a.vmError(h.Rollback(c.Context(), args[1]))
		},
	}
}

func (a *app) vmRemoveCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "rm ID… | --all", Short: "End machines and remove all they were", Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usage("want ids, or --all\nsee: %s --help", c.CommandPath())
			}
			dirs, err := a.dirs()
			if err != nil {
				return err
			}
			if all {
				list, err := hold.List(c.Context(), vmDir(dirs))
				if err != nil {
					return &exit{exitInfrastructure, err}
				}
				for _, s := range list {
					if s.State != hold.Dead {
						args = append(args, s.ID)
					}
				}
			}
			var errs []error
			for _, id := range args {
				h, err := hold.Open(vmDir(dirs), id)
				if err == nil {
					err = h.Remove(c.Context())
				}
				// What disappeared by itself between --all's look and now is removed.
				if err != nil && !(all && errors.Is(err, hold.ErrNone)) {
					errs = append(errs, a.vmError(err))
					continue
				}
				if h != nil {
					fmt.Fprintln(a.out, h.ID())
				}
			}
			a.reapHeld(c.Context(), dirs)
			if len(errs) == 0 {
				return nil
			}
			code := exitUsage
			for _, err := range errs {
				var e *exit
				if errors.As(err, &e) && e.code != exitUsage {
					code = e.code
				}
			}
			return &exit{code, errors.Join(errs...)}
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all that hearth vm create made")
	return c
}

func (a *app) vmCopyCommand() *cobra.Command {
	var user string
	c := &cobra.Command{
		Use: "cp SRC DST", Short: "Copy files and directories into a machine (ID:path) or out of it", Args: cobra.ExactArgs(2),
		Long: `Copy a file or a directory. One side is ID:path, with the path absolute or below
the runner's home. As with cp -r: into DST if that is a directory or ends with a
slash, as DST otherwise.

  hearth vm cp ./src ID:                 to /home/runner/src
  hearth vm cp ID:/etc/os-release .

What comes out of a machine belongs to you, without set-user-id bits; links out of
what is copied are left out, and said so (exit code 1).`,
		RunE: func(c *cobra.Command, args []string) error {
			from, src, fromVM := cutVM(args[0])
			to, dst, toVM := cutVM(args[1])
			switch {
			case fromVM == toVM:
				return usage("want one side in a machine, as ID:path\nsee: %s --help", c.CommandPath())
			case toVM:
				h, err := a.held(to)
				if err != nil {
					return err
				}
				return a.copyIn(c.Context(), h, args[0], dst, user)
			}
			h, err := a.held(from)
			if err != nil {
				return err
			}
			return a.copyOut(c.Context(), h, src, args[1])
		},
	}
	c.Flags().StringVarP(&user, "user", "u", "", `owner of what is copied into a machine (default "runner")`)
	return c
}

// cutVM takes ID:path apart. A path with a slash before its first colon is the
// host's: ./a:b.
func cutVM(s string) (id, p string, ok bool) {
	id, p, ok = strings.Cut(s, ":")
	if !ok || id == "" || strings.ContainsRune(id, '/') {
		return "", s, false
	}
	return id, p, true
}

// guestPath makes a path in the machine absolute; dir says that it ends as a
// directory's does.
func guestPath(p string) (abs string, dir bool) {
	dir = p == "" || strings.HasSuffix(p, "/") || path.Base(p) == "." || path.Base(p) == ".."
	return guest.InHome(p), dir
}

func (a *app) copyIn(ctx context.Context, h *hold.Client, src, dst, user string) error {
	st, err := os.Stat(src)
	if err != nil {
		return usage("%v", err)
	}
	if !st.IsDir() && !st.Mode().IsRegular() {
		return usage("%s is neither a file nor a directory", src)
	}
	abs, err := filepath.Abs(src)
	if err != nil {
		return &exit{exitInfrastructure, err}
	}
	dir, name := "", filepath.Base(abs)
	p, into := guestPath(dst)
	there, err := h.Stat(ctx, p)
	switch {
	case err == nil && there.Mode.Type() == fs.ModeSymlink:
		// Where it leads is the machine's business: into what it leads to.
		if _, err := h.Stat(ctx, p+"/."); err == nil {
			there.Mode = fs.ModeDir
		}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return a.vmError(err)
	}
	switch {
	case into || err == nil && there.IsDir():
		if err == nil && !there.IsDir() {
			return usage("%s in the machine is not a directory", p)
		}
		dir = p
	case err == nil && st.IsDir():
		return usage("%s in the machine is a file, %s a directory", p, src)
	default:
		dir, name = path.Split(p)
	}
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := archive.Pack(w, src, name)
		w.CloseWithError(err)
		packed <- err
	}()
	err = h.TarIn(ctx, dir, r, user)
	r.CloseWithError(errors.New("the machine takes no more"))
	if perr := <-packed; perr != nil && !errors.Is(perr, io.ErrClosedPipe) && (err == nil || errors.As(perr, new(*fs.PathError))) {
		err = perr // the cause, not that the archive ended early
	}
	return a.copied(ctx, err)
}

func (a *app) copyOut(ctx context.Context, h *hold.Client, src, dst string) error {
	p, _ := guestPath(src)
	if p == "/" {
		return usage("the whole machine cannot be copied; name a directory")
	}
	there, err := h.Stat(ctx, p)
	if err != nil {
		return a.vmError(err)
	}
	dir, name := filepath.Dir(dst), filepath.Base(dst)
	st, err := os.Stat(dst)
	switch {
	case err == nil && st.IsDir():
		dir, name = dst, path.Base(p)
	case strings.HasSuffix(dst, "/"):
		return usage("%s is not a directory", dst)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return usage("%v", err)
	}
	if st, err := os.Stat(dir); err != nil {
		return usage("%v", err)
	} else if !st.IsDir() {
		return usage("%s is not a directory", dir)
	}
	if there.Mode.Type() == fs.ModeSymlink {
		// As cp does, a link that is named itself is followed; by the machine,
		// whose word it is.
		if p, err = a.followed(ctx, h, p); err != nil {
			return err
		}
	}
	r, w := io.Pipe()
	got := make(chan error, 1)
	go func() {
		err := h.TarOut(ctx, path.Dir(p), []string{path.Base(p)}, w)
		w.CloseWithError(err)
		got <- err
	}()
	err = archive.Unpack(r, dir, path.Base(p), name)
	r.CloseWithError(errors.New("the copy ended"))
	if gerr := <-got; gerr != nil && (err == nil || errors.Is(err, gerr)) {
		err = gerr
	}
	return a.copied(ctx, err)
}

// followed asks the machine where a link leads.
func (a *app) followed(ctx context.Context, h *hold.Client, p string) (string, error) {
	var out limited
	end, err := h.Exec(ctx, guest.Cmd{Argv: []string{"readlink", "-e", "-z", "--", p}, Env: []string{"PATH=" + guest.ToolPath}, User: "root", Stdout: &out,
		Timeout: time.Minute}, nil)
	switch to := strings.TrimSuffix(string(out), "\x00"); {
	case err != nil:
		return "", a.vmError(err)
	case !end.OK():
		return "", usage("%s in the machine is a link to nothing", p)
	case !path.IsAbs(to) || path.Clean(to) != to || to == "/":
		return "", &exit{exitInfrastructure, fmt.Errorf("the machine says that %s leads to %q", p, to)}
	default:
		return to, nil
	}
}

// limited takes a line from a machine.
type limited []byte

func (l *limited) Write(p []byte) (int, error) {
	if len(*l)+len(p) > 8<<10 {
		return 0, errors.New("the machine's answer is too long")
	}
	*l = append(*l, p...)
	return len(p), nil
}

func (a *app) copied(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return &exit{exitCancelled, context.Cause(ctx)}
	case errors.Is(err, archive.ErrLeftOut):
		return &exit{exitFailed, err}
	}
	return a.vmError(err)
}
