package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/hold"
	"github.com/hearth-ci/hearth/internal/worker"
)

// A step that has failed under --pause-on-failure leaves its machine as it stands:
// package hold serves it for a while, and whoever comes to look, at this terminal or
// by hearth debug, says how the job goes on.

// maxPause is how long a failed step may be told to wait.
const maxPause = 6 * time.Hour

// pauser waits for answers about the failed steps of one run.
type pauser struct {
	app   *app
	run   string
	limit time.Duration
	aside func(func()) // leaves this terminal to us; nil is none

	talks sync.Mutex  // one step is spoken of at a time
	lines chan string // what is typed, while somebody waits for it
	reads bool        // a line is being waited for; guarded by talks
}

// pause is a [worker.Runner]'s Pause.
func (p *pauser) pause(ctx context.Context, w worker.Pause) worker.Answer {
	a := p.app
	dirs, err := a.dirs()
	if err == nil {
		err = os.MkdirAll(vmDir(dirs), 0o700)
	}
	if err != nil {
		fmt.Fprintln(a.err, "hearth: the failed step cannot wait:", err)
		return worker.Answer{}
	}
	at := &hold.Paused{Run: p.run, Job: w.Job.Key, Step: w.Step.Number, Name: w.Step.Name, Command: w.Step.Command, ExitCode: w.Result.ExitCode,
		Reason: w.Result.Reason, Attempt: w.Step.Attempt, Rewinds: w.Rewinds, Edits: w.Edits, Until: time.Now().Add(p.limit)}
	if w.Step.Place != nil {
		at.Dir, at.Environ = w.Step.Place.Dir, w.Step.Place.Environ
	}
	ctx, cancel := context.WithTimeout(ctx, p.limit)
	defer cancel()
	s := &hold.Server{VM: w.Machine, Paused: at, Log: a.log()}
	talked := make(chan struct{})
	ended := make(chan struct{})
	err = s.Serve(ctx, vmDir(dirs), func() error {
		if p.aside == nil || !p.terminal() {
			close(talked)
			fmt.Fprintf(a.err, "%s\nhearth debug %s --job %s  opens a shell there, and says how the job goes on\n", describe(at), p.run, shellWord(at.Job))
			return nil
		}
		go func() {
			defer close(talked)
			p.talks.Lock()
			defer p.talks.Unlock()
			h, err := hold.Open(vmDir(dirs), w.Machine.ID())
			if err != nil || ctx.Err() != nil {
				return
			}
			talk, stop := context.WithCancel(ctx)
			defer stop()
			go func() {
				select {
				case <-ended:
				case <-talk.Done():
				}
				stop()
			}()
			p.aside(func() { a.converse(talk, h, at, p.line) })
		}()
		return nil
	})
	close(ended)
	<-talked
	if err != nil && ctx.Err() == nil {
		a.log().Warn("the pause of a failed step has ended", "machine", w.Machine.ID(), "err", err)
	}
	answer := s.Answered()
	return worker.Answer{Retry: answer.Retry, Rewind: answer.Rewind, Run: answer.Run}
}

// terminal says whether somebody can be asked here.
func (p *pauser) terminal() bool { return p.app.terminal() }

// terminal says whether standard input and output are one.
func (a *app) terminal() bool { return isTerminal(a.in) && isTerminal(a.out) }

// line is the next line that is typed, false if there is none any more or nobody
// waits for it. A read of a terminal cannot be called off: what is typed after that
// is for whoever asks next.
func (p *pauser) line(ctx context.Context) (string, bool) {
	if !p.reads {
		p.reads = true
		go func() {
			text, err := readLine(p.app.in)
			if err != nil {
				text = "c"
			}
			p.lines <- text
		}()
	}
	select {
	case text := <-p.lines:
		p.reads = false
		return text, true
	case <-ctx.Done():
		return "", false
	}
}

// readLine reads a line and not a byte more: what follows may be a shell's.
func readLine(r io.Reader) (string, error) {
	var line []byte
	b := make([]byte, 1)
	for len(line) < 4096 {
		n, err := r.Read(b)
		if n == 1 && b[0] == '\n' {
			break
		}
		line = append(line, b[:n]...)
		if err != nil {
			return string(line), err
		}
	}
	return string(line), nil
}

// describe says which step waits, and for how long.
func describe(p *hold.Paused) string {
	why := cmp.Or(p.Reason, fmt.Sprintf("it ended with exit code %d", p.ExitCode))
	attempt := ""
	if p.Attempt > 1 {
		attempt = fmt.Sprintf(" for the %s time", ordinal(p.Attempt))
	}
	return fmt.Sprintf("step %d of job %s (%s) has failed%s: %s\nits machine stays as the step left it until %s", p.Step, board.Clean(p.Job),
		board.Clean(p.Name), attempt, board.Clean(why), p.Until.Format(time.TimeOnly))
}

func ordinal(n int) string {
	switch {
	case n%10 == 1 && n%100 != 11:
		return fmt.Sprintf("%dst", n)
	case n%10 == 2 && n%100 != 12:
		return fmt.Sprintf("%dnd", n)
	case n%10 == 3 && n%100 != 13:
		return fmt.Sprintf("%drd", n)
	}
	return fmt.Sprintf("%dth", n)
}

// shellWord is a word as a shell reads it.
func shellWord(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// converse asks at this terminal until the pause has ended.
func (a *app) converse(ctx context.Context, h *hold.Client, at *hold.Paused, line func(context.Context) (string, bool)) {
	fmt.Fprintf(a.out, "\n%s\n", describe(at))
	fmt.Fprintln(a.out, "  s  a shell where the step stood\n  r  run the step again")
	if at.Rewinds {
		fmt.Fprintln(a.out, "  w  put the machine back to before the step, and run it again")
	}
	if at.Edits {
		fmt.Fprintln(a.out, "  e  edit the step's script, and run that")
	}
	fmt.Fprintln(a.out, "  c  go on: the job fails")
	for {
		fmt.Fprint(a.out, "> ")
		said, ok := line(ctx)
		if !ok {
			fmt.Fprintln(a.out, "\nthe wait is over")
			return
		}
		var err error
		switch strings.ToLower(strings.TrimSpace(said)) {
		case "s", "shell":
			if err = a.stepShell(ctx, h); err == nil {
				continue
			}
			var e *exit
			if errors.As(err, &e) && e.err == nil {
				continue // how the shell ended
			}
		case "r", "retry":
			err = h.Answer(ctx, hold.Answer{Retry: true})
		case "w", "rewind":
			err = h.Answer(ctx, hold.Answer{Retry: true, Rewind: true})
		case "e", "edit":
			var script string
			if script, err = a.edit(ctx, at.Command); err == nil {
				err = h.Answer(ctx, hold.Answer{Retry: true, Rewind: at.Rewinds, Run: script})
			}
		case "c", "continue":
			err = h.Answer(ctx, hold.Answer{})
		case "":
			continue
		default:
			fmt.Fprintln(a.out, "s, r, w, e or c")
			continue
		}
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			fmt.Fprintln(a.out, "\nthe wait is over")
			return
		}
		fmt.Fprintln(a.out, err)
	}
}

// stepShell opens a shell where the failed step stood.
func (a *app) stepShell(ctx context.Context, h *hold.Client) error {
	return a.onTerminalBy(ctx, h.ID(), guest.Cmd{Argv: []string{"bash"}, Stdout: a.out}, execOptions{}, h.ExecInStep)
}

// edit lets $EDITOR change a script.
func (a *app) edit(ctx context.Context, script string) (string, error) {
	f, err := os.CreateTemp("", "hearth-step-*.sh")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(script)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	words := strings.Fields(cmp.Or(a.getenv("VISUAL"), a.getenv("EDITOR"), "vi"))
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], f.Name())...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.out, a.err
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w", words[0], err)
	}
	return readScript(f.Name(), nil)
}

// readScript reads the script that is to run in a step's place; "-" is stdin.
func readScript(name string, stdin io.Reader) (string, error) {
	r := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, hold.MaxScript/2+1))
	switch {
	case err != nil:
		return "", err
	case len(b) > hold.MaxScript/2:
		return "", fmt.Errorf("%s has more than the %d KiB that a script may have", name, hold.MaxScript/2>>10)
	case len(strings.TrimSpace(string(b))) == 0:
		return "", fmt.Errorf("%s is empty", name)
	}
	return string(b), nil
}

func (a *app) debugCommand() *cobra.Command {
	var job, script string
	var goOn, retry, rewind, asJSON bool
	c := &cobra.Command{
		Use: "debug [RUN] [flags] [-- CMD [ARG…]]", Short: "Look into the machine of a step that failed, and say how its job goes on",
		Long: `Look into the machine of a step that failed under hearth run --pause-on-failure,
as the step left it: a shell where the step stood, or one command with its
environment and directory (after --); hearth vm cp and the others work on it, too,
by the machine's id. Then say how the job goes on: --retry runs the step again in
the machine as it is now, --rewind puts the machine back to before the step first,
--run FILE runs another script in the step's place, --continue lets the job fail.
A step that was run again and succeeds is shown as one that needed it.

RUN may be cut short, and left out where only one step waits.

Exit code: 0 done, that of the shell or command if one was run, 2 nothing waits or
a wrong flag, 3 the machine is gone.`,
		RunE: func(c *cobra.Command, args []string) error {
			run := ""
			var argv []string
			n := c.ArgsLenAtDash()
			if n < 0 {
				n = len(args)
			} else {
				argv = args[n:]
				if len(argv) == 0 {
					return usage("there is no command after --")
				}
			}
			switch {
			case n > 1:
				return usage("one RUN, not %d; a command goes after --", n)
			case n == 1:
				run = args[0]
			}
			chosen := 0
			for _, b := range []bool{goOn, retry || rewind || script != "", argv != nil} {
				if b {
					chosen++
				}
			}
			if chosen > 1 {
				return usage("one of a command, --continue and --retry, --rewind or --run")
			}
			h, at, err := a.waiting(c.Context(), run, job)
			if err != nil {
				return err
			}
			switch {
			case asJSON:
				return board.NewEncoder(a.out).Encode(at)
			case argv != nil:
				o := execOptions{}
				end, err := h.ExecInStep(c.Context(), guest.Cmd{Argv: argv, Stdout: a.out, Stderr: a.err}, nil)
				return a.ended(c.Context(), end, o, err)
			case goOn:
				return a.vmError(h.Answer(c.Context(), hold.Answer{}))
			case retry || rewind || script != "":
				answer := hold.Answer{Retry: true, Rewind: rewind}
				if script != "" {
					if answer.Run, err = readScript(script, a.in); err != nil {
						return usage("--run: %v", err)
					}
				}
				return a.vmError(h.Answer(c.Context(), answer))
			case a.terminal():
				p := &pauser{app: a, lines: make(chan string)}
				a.converse(c.Context(), h, at, p.line)
				return nil
			}
			fmt.Fprintln(a.out, describe(at))
			fmt.Fprintf(a.out, "machine %s; there is no terminal here: hearth debug %s -- CMD, or --retry, --rewind, --run FILE, --continue\n", h.ID(), at.Run)
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&job, "job", "j", "", "the job, by its key, where several of the run wait")
	f.BoolVar(&goOn, "continue", false, "let the job go on: it fails")
	f.BoolVar(&retry, "retry", false, "run the step again, in the machine as it is now")
	f.BoolVar(&rewind, "rewind", false, "put the machine back to before the step, and run it again")
	f.StringVar(&script, "run", "", "run this script in the step's place, - for standard input")
	f.BoolVar(&asJSON, "json", false, "say which step waits, as JSON")
	return c
}

// waiting finds the one step that waits and is meant.
func (a *app) waiting(ctx context.Context, run, job string) (*hold.Client, *hold.Paused, error) {
	dirs, err := a.dirs()
	if err != nil {
		return nil, nil, err
	}
	asked, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	all, err := hold.List(asked, vmDir(dirs))
	if err != nil {
		return nil, nil, &exit{exitInfrastructure, err}
	}
	var found []hold.Status
	for _, s := range all {
		if s.Paused != nil && strings.HasPrefix(s.Paused.Run, run) && (job == "" || s.Paused.Job == job) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 0:
		return nil, nil, usage("no failed step waits%s: hearth run --pause-on-failure has them wait", of(run, job))
	case 1:
		h, err := hold.Open(vmDir(dirs), found[0].ID)
		return h, found[0].Paused, a.vmError(err)
	}
	var b strings.Builder
	for _, s := range found {
		fmt.Fprintf(&b, "\n  hearth debug %s --job %s  (step %d, %s)", s.Paused.Run, shellWord(board.Clean(s.Paused.Job)), s.Paused.Step, board.Clean(s.Paused.Name))
	}
	return nil, nil, usage("%d failed steps wait%s: %s", len(found), of(run, job), b.String())
}

// of names what was asked for.
func of(run, job string) string {
	s := ""
	if run != "" {
		s += " in run " + run
	}
	if job != "" {
		s += " for job " + job
	}
	return s
}
