package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/point"
)

// Bounds on what two machines say of themselves; they are a job's.
const (
	maxListing  = 128 << 20 // bytes of one list
	maxDiffRows = 500       // of the table; --json has all
	maxContent  = 1 << 20   // bytes of a file that is compared
	diffTime    = 5 * time.Minute
)

// change is one thing that a step left otherwise than it found it.
type change struct {
	Kind   string `json:"kind"` // file, process, port, package
	How    string `json:"how"`  // added, changed, removed
	Name   string `json:"name"`
	Before int64  `json:"before,omitempty"` // bytes of a file
	After  int64  `json:"after,omitempty"`
	Detail string `json:"detail,omitempty"` // of a package its versions, of a file what is other than its content
}

// entry is a file as find lists it.
type entry struct {
	kind, mode, owner, time, target string
	size                            int64
}

// scene is what is looked at in a machine.
type scene struct {
	files     map[string]entry
	processes map[string]int
	ports     map[string]int
	packages  map[string]string
}

type diffOptions struct {
	pointOptions
	json  bool
	shows []string
}

func (a *app) diffCommand() *cobra.Command {
	var o diffOptions
	c := &cobra.Command{
		Use: "diff [RUN] --step N", Short: "Show what a step of a finished run changed in its machine: files, processes, ports, packages",
		Long: `What a step of a run that hearth run --keep-points ran left otherwise than it found
it: the machine as it was before the step and as it was at the next point are begun
with once more, without a network, and compared. Files below / but on file systems of their own (/proc,
/run …) and what Hearth itself puts there, programs that run on, TCP ports that listen, Debian's packages. --show FILE prints what changed
in a file. What the step reached is said by hearth network RUN.

Exit code: 0 also where much changed, 2 no such point or a wrong flag, 3 a machine could
not be begun with or looked into, 130 cancelled.`,
		RunE: func(c *cobra.Command, args []string) error {
			name, argv, err := runAndCommand(c, args)
			if err != nil {
				return err
			}
			if argv != nil {
				return usage("diff takes no command: hearth rewind and hearth fork do")
			}
			if o.step == "" || o.step == "end" {
				return usage("say which step with --step: hearth rewind lists the points")
			}
			for _, s := range o.shows {
				if !path.IsAbs(s) {
					return usage("--show %s: want the path in the machine, from /", board.Clean(s))
				}
			}
			dirs, s, all, err := a.pointsOf(c, name)
			if err != nil {
				return err
			}
			before, err := o.choose(s, all)
			if err != nil {
				return err
			}
			next := slices.IndexFunc(all, func(m point.Meta) bool { return m.Job == before.Job && m.Step > before.Step })
			if next < 0 {
				return usage("there is no point after step %d", before.Step)
			}
			after, err := openMoment(s, all[next])
			if err != nil {
				return err
			}
			return a.diff(c.Context(), dirs, [2]*moment{before, after}, o)
		},
	}
	o.flags(c)
	f := c.Flags()
	f.BoolVar(&o.json, "json", false, "a JSON object for each change")
	f.StringArrayVar(&o.shows, "show", nil, "what changed in this file, by its path in the machine")
	return c
}

func (a *app) diff(ctx context.Context, dirs config.Dirs, at [2]*moment, o diffOptions) (err error) {
	machines, err := a.pointMachines(ctx, dirs, at[0], 2)
	if err != nil {
		return err
	}
	defer closePool(machines)
	offline, err := network.ParsePolicy("none")
	if err != nil {
		return err
	}
	var stood [2]machine.Machine
	var seen [2]scene
	for i, m := range at {
		lease, err := machines.Claim(ctx, machine.Request{From: m.saved(), Network: network.Config{Policy: offline, Log: a.log()}})
		if err != nil {
			return &exit{exitInfrastructure, fmt.Errorf("%s: %w", m.describe(), err)}
		}
		stood[i] = lease
		lease.Begin()
		defer a.letGo(ctx, lease)
	}
	if len(o.shows) > 0 {
		for _, name := range o.shows {
			if err := a.showFile(ctx, stood, at, name); err != nil {
				return &exit{exitInfrastructure, err}
			}
		}
		return nil
	}
	done := make(chan error, 2)
	for i := range stood {
		go func() {
			var err error
			seen[i], err = look(ctx, stood[i].Client())
			done <- err
		}()
	}
	if err := errors.Join(<-done, <-done); err != nil {
		if ctx.Err() != nil {
			return &exit{exitCancelled, context.Cause(ctx)}
		}
		return &exit{exitInfrastructure, err}
	}
	changes := compare(seen[0], seen[1])
	if o.json {
		enc := board.NewEncoder(a.out)
		for _, c := range changes {
			if err := enc.Encode(c); err != nil {
				return err
			}
		}
		return nil
	}
	fmt.Fprintf(a.err, "from %s\nto   %s\n", at[0].describe(), at[1].describe())
	if len(changes) == 0 {
		fmt.Fprintln(a.err, "nothing changed")
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, c := range changes[:min(len(changes), maxDiffRows)] {
		size := c.Detail
		if c.Kind == "file" {
			size = strings.TrimSpace(board.Amount(c.After) + " " + c.Detail)
			if c.How == "removed" {
				size = board.Amount(c.Before)
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", c.How, c.Kind, board.Cut(board.Clean(c.Name), 200), board.Clean(size))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if more := len(changes) - maxDiffRows; more > 0 {
		fmt.Fprintf(a.out, "and %d more: --json has all\n", more)
	}
	return nil
}

// read runs a program of the machine's as root, and hands what it prints to fn. A
// program that is not there prints nothing.
func read(ctx context.Context, c *guest.Client, fn func(io.Reader) error, argv ...string) error {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := fn(io.LimitReader(r, maxListing))
		_, rest := io.Copy(io.Discard, r)
		done <- errors.Join(err, rest)
	}()
	_, err := c.Exec(ctx, guest.Cmd{Argv: argv, Dir: "/", User: "root", Stdout: w, Timeout: diffTime,
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}})
	w.Close()
	if said := <-done; err == nil {
		err = said
	}
	if guest.StartFailed(err) {
		err = nil
	}
	return err
}

// look lists what there is in a machine.
func look(ctx context.Context, c *guest.Client) (scene, error) {
	s := scene{files: map[string]entry{}, processes: map[string]int{}, ports: map[string]int{}, packages: map[string]string{}}
	err := errors.Join(
		read(ctx, c, s.readFiles, "find", "/", "-xdev", "(", "-path", "/proc", "-o", "-path", "/sys", "-o", "-path", "/dev", ")", "-prune", "-o",
			"-printf", `%y %m %U:%G %s %T@ %l\0%p\0`),
		read(ctx, c, s.readProcesses, "sh", "-c", `for f in /proc/[0-9]*/cmdline; do tr '\0' ' ' <$f; echo; done 2>/dev/null`),
		read(ctx, c, s.readPorts, "cat", "/proc/net/tcp", "/proc/net/tcp6"),
		read(ctx, c, s.readPackages, "dpkg-query", "-W"))
	if err == nil && len(s.files) == 0 {
		err = errors.New("the machine cannot be looked into: its image has no GNU find")
	}
	return s, err
}

// zeros splits at NUL bytes.
func zeros(b []byte, end bool) (int, []byte, error) {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return i + 1, b[:i], nil
	}
	return 0, nil, nil // what is cut off is left out
}

func (s scene) readFiles(r io.Reader) error {
	in := bufio.NewScanner(r)
	in.Buffer(nil, 64<<10)
	in.Split(zeros)
	for in.Scan() {
		f := strings.SplitN(in.Text(), " ", 6)
		if len(f) < 6 || !in.Scan() {
			return errors.New("a list of files that is none")
		}
		size, err := strconv.ParseInt(f[3], 10, 64)
		if err != nil {
			return fmt.Errorf("a list of files that is none: %w", err)
		}
		s.files[in.Text()] = entry{kind: f[0], mode: f[1], owner: f[2], time: f[4], target: f[5], size: size}
	}
	return in.Err()
}

// lines hands fn each line, the beginning of long ones.
func lines(r io.Reader, fn func(string)) error {
	in := bufio.NewReaderSize(r, 4<<10)
	for {
		line, more, err := in.ReadLine()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		fn(string(line))
		for more && err == nil {
			_, more, err = in.ReadLine()
		}
	}
}

func (s scene) readProcesses(r io.Reader) error {
	return lines(r, func(line string) {
		if line = strings.TrimSpace(line); line != "" { // the kernel's own have none
			s.processes[line]++
		}
	})
}

// listening is the state of a socket that waits for connections, in /proc/net/tcp.
const listening = "0A"

func (s scene) readPorts(r io.Reader) error {
	return lines(r, func(line string) {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != listening {
			return
		}
		_, port, _ := strings.Cut(f[1], ":")
		if n, err := strconv.ParseUint(port, 16, 16); err == nil {
			s.ports[fmt.Sprintf("tcp %d", n)] = 1 // IPv4 and IPv6 are one
		}
	})
}

func (s scene) readPackages(r io.Reader) error {
	return lines(r, func(line string) {
		if name, version, ok := strings.Cut(line, "\t"); ok {
			s.packages[name] = version
		}
	})
}

// compare lists what is other in b than in a: files in the order of their paths, then
// processes, ports, packages.
func compare(a, b scene) []change {
	var out []change
	for _, name := range slices.Sorted(maps.Keys(union(a.files, b.files))) {
		if ours(name) {
			continue
		}
		x, was := a.files[name]
		y, is := b.files[name]
		c := change{Kind: "file", How: "changed", Name: name, Before: x.size, After: y.size}
		switch {
		case !was:
			c.How = "added"
		case !is:
			c.How = "removed"
		case x.kind == "d" && y.kind == "d" && x.mode == y.mode && x.owner == y.owner, x == y:
			continue // what changed in a directory is listed itself
		default:
			c.Detail = x.other(y)
		}
		if x.kind == "d" || y.kind == "d" {
			c.Before, c.After, c.Name = 0, 0, strings.TrimSuffix(name, "/")+"/"
		}
		out = append(out, c)
	}
	count := func(kind string, a, b map[string]int) {
		for _, name := range slices.Sorted(maps.Keys(union(a, b))) {
			c := change{Kind: kind, How: "added", Name: name}
			switch n := b[name] - a[name]; {
			case n == 0:
				continue
			case n < 0:
				c.How = "removed"
			case n > 1:
				c.Detail = fmt.Sprintf("×%d", n)
			}
			out = append(out, c)
		}
	}
	count("process", a.processes, b.processes)
	count("port", a.ports, b.ports)
	for _, name := range slices.Sorted(maps.Keys(union(a.packages, b.packages))) {
		x, y := a.packages[name], b.packages[name]
		c := change{Kind: "package", How: "changed", Name: name, Detail: x + " → " + y}
		switch {
		case x == y:
			continue
		case x == "":
			c.How, c.Detail = "added", y
		case y == "":
			c.How, c.Detail = "removed", x
		}
		out = append(out, c)
	}
	return out
}

// ours says of a file that each machine is given its own as it begins, or that it is a
// step's script or one of its command files.
func ours(name string) bool {
	switch name {
	case "/etc/hostname", "/etc/hosts", "/etc/machine-id":
		return true
	}
	rest, ok := strings.CutPrefix(name, engine.DefaultLayout("").Temp+"/")
	return ok && (strings.HasPrefix(rest, "_runner_file_commands/") || !strings.Contains(rest, "/") && strings.HasSuffix(rest, ".sh"))
}

// other says what of a file is other than its content.
func (x entry) other(y entry) string {
	switch {
	case x.kind != y.kind:
		return "another kind of file"
	case x.mode != y.mode:
		return "mode " + x.mode + " → " + y.mode
	case x.owner != y.owner:
		return "owner " + x.owner + " → " + y.owner
	case x.target != y.target:
		return "→ " + y.target
	}
	return ""
}

func union[V any](a, b map[string]V) map[string]V {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// showFile prints what changed in a file, as the machine's own diff says it.
func (a *app) showFile(ctx context.Context, m [2]machine.Machine, at [2]*moment, name string) error {
	const aside = "/run/hearth-before"
	before, err := m[0].Client().ReadFile(ctx, name, maxContent)
	if err != nil {
		fmt.Fprintf(a.err, "before: %s\n", board.Clean(err.Error()))
		before = nil
	}
	if err := m[1].Client().WriteFile(ctx, aside, before, 0o600, "root"); err != nil {
		return err
	}
	hidden := at[0].begin.Runner().Hidden()
	show := func(r io.Reader) error {
		w := mask.NewWriter(a.out, hidden)
		_, err := io.Copy(w, r)
		return errors.Join(err, w.Flush())
	}
	return read(ctx, m[1].Client(), show, "diff", "-uN", "--label", "before"+name, "--label", "after"+name, aside, cmp.Or(path.Clean(name), "/"))
}
