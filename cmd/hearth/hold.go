package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/hold"
	"github.com/hearth-ci/hearth/internal/session"
	"github.com/hearth-ci/hearth/internal/vm"
)

// `hearth vm create` starts a holder (package hold): this program again, with
// `vm hold`, in a session of its own. The holder says on descriptor 3 which machine
// it has, or why it has none; until then it ends with whoever started it.

// held is what a holder says.
type heldReport struct {
	ID    string `json:"id,omitempty"`
	Error string `json:"error,omitempty"`
	Code  int    `json:"code,omitempty"`
}

func (a *app) vmCreateCommand() *cobra.Command {
	var m machineOptions
	var policy string
	var ttl time.Duration
	c := &cobra.Command{
		Use: "create", Short: "Make a machine that stays; print its id", Args: cobra.NoArgs,
		Long: `Make a machine that outlives this command, and print its id. A process of its own
holds it (hearth vm hold); when that ends, the machine ends with it. It is removed
after --ttl, used or not.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if ttl < time.Second || ttl > session.MaxTTL {
				return usage("--ttl %v: want 1s to %v", ttl, session.MaxTTL)
			}
			id, err := a.createHeld(c.Context(), m, policy, ttl)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, id)
			return nil
		},
	}
	a.vmFlags(c, &m, &policy)
	c.Flags().DurationVar(&ttl, "ttl", time.Hour, fmt.Sprintf("remove it after this long, at most %v", session.MaxTTL))
	return c
}

func (a *app) createHeld(ctx context.Context, m machineOptions, policy string, ttl time.Duration) (string, error) {
	// Image and template are made here, where their progress can be seen.
	p, _, err := a.freshMachines(ctx, m, policy)
	if err != nil {
		return "", err
	}
	if err := closePool(p); err != nil {
		return "", a.vmError(err)
	}
	dirs, err := a.dirs()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(vmDir(dirs), 0o700); err != nil {
		return "", &exit{exitInfrastructure, err}
	}
	self, err := os.Executable()
	if err != nil {
		return "", &exit{exitInfrastructure, err}
	}
	log, err := os.CreateTemp(vmDir(dirs), "starting-*.log")
	if err != nil {
		return "", &exit{exitInfrastructure, err}
	}
	defer os.Remove(log.Name()) // the holder gives it another name
	defer log.Close()
	said, say, err := os.Pipe()
	if err != nil {
		return "", &exit{exitInfrastructure, err}
	}
	defer said.Close()
	cmd := exec.Command(self, "vm", "hold", "--driver", m.driver, "--image", m.image, "--cpus", strconv.Itoa(m.cpus), "--memory", strconv.Itoa(m.memoryMiB),
		"--disk", strconv.FormatInt(m.diskMiB, 10), "--containers="+strconv.FormatBool(m.containers),
		"--network", policy, "--deadline", time.Now().Add(ttl).Format(time.RFC3339Nano), "--log", log.Name())
	cmd.Dir = "/" // it must not keep a directory from being unmounted
	if !filepath.IsAbs(dirs.Run) {
		cmd.Dir = ""
	}
	cmd.ExtraFiles = []*os.File{say}
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	say.Close()
	if err != nil {
		return "", &exit{exitInfrastructure, fmt.Errorf("starting the holder: %w", err)}
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	line, readErr := bufio.NewReader(io.LimitReader(said, 64<<10)).ReadBytes('\n')
	var r heldReport
	if readErr == nil {
		readErr = json.Unmarshal(line, &r)
	}
	if !stop() || readErr != nil || r.ID == "" {
		werr := cmd.Wait()
		switch {
		case ctx.Err() != nil:
			return "", &exit{exitCancelled, context.Cause(ctx)}
		case r.Error != "":
			return "", &exit{r.Code, errors.New(r.Error)}
		}
		last, _ := os.ReadFile(log.Name())
		return "", &exit{exitInfrastructure, fmt.Errorf("the holder ended before it had a machine (%v): %s", werr, vm.LastLines(string(last), 5))}
	}
	return r.ID, cmd.Process.Release()
}

func (a *app) vmHoldCommand() *cobra.Command {
	var m machineOptions
	var policy, deadline, log string
	c := &cobra.Command{
		Use: "hold", Hidden: true, Short: "Hold a machine for hearth vm exec (hearth vm create starts this)", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			until, err := time.Parse(time.RFC3339Nano, deadline)
			if err != nil {
				return usage("--deadline: %v", err)
			}
			say := os.NewFile(3, "report")
			syscall.CloseOnExec(3) // the machine must not keep it open
			if _, err := say.Stat(); err != nil {
				return usage("hearth vm create starts this, not people")
			}
			told := false
			err = a.hold(c.Context(), m, policy, until, log, func(id string) error {
				told = true
				defer say.Close()
				return json.NewEncoder(say).Encode(heldReport{ID: id})
			})
			if !told && err != nil {
				code := exitInfrastructure
				var e *exit
				if errors.As(err, &e) {
					code = e.code
				}
				json.NewEncoder(say).Encode(heldReport{Error: err.Error(), Code: code})
			}
			return err
		},
	}
	a.vmFlags(c, &m, &policy)
	c.Flags().StringVar(&deadline, "deadline", "", "when the machine is removed")
	c.Flags().StringVar(&log, "log", "", "file with what this process says")
	return c
}

func (a *app) hold(ctx context.Context, m machineOptions, policy string, until time.Time, log string, tell func(id string) error) error {
	p, r, err := a.freshMachines(ctx, m, policy)
	if err != nil {
		return err
	}
	defer closePool(p)
	r.Deadline = until
	l, err := p.Claim(ctx, r)
	if err != nil {
		return a.vmError(err)
	}
	dirs, err := a.dirs()
	if err != nil {
		return err
	}
	dir := vmDir(dirs)
	if log != "" {
		if mine := strings.TrimSuffix(hold.Socket(dir, l.ID()), ".sock") + ".log"; os.Rename(log, mine) == nil {
			defer os.Remove(mine)
		}
	}
	forget := func() {}
	s := &hold.Server{VM: l, Network: r.Network.Policy.String(), Log: a.log(), Keeper: func() (k *history.Keeper) {
		k, forget = a.keeper(context.WithoutCancel(ctx))
		return k
	}}
	defer func() { forget() }()
	err = s.Serve(ctx, dir, func() error { return tell(l.ID()) })
	if err != nil {
		a.log().Error("the machine has ended", "machine", l.ID(), "err", err)
	}
	return err
}
