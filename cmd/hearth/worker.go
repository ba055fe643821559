package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/desk"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/prompt"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/remote"
	"github.com/hearth-ci/hearth/internal/vm/jail"
	"github.com/hearth-ci/hearth/internal/worker"
)

// workerDrain is how long a worker that is to stop lets its jobs go on.
const workerDrain = time.Hour

// workerPoll is how long a worker waits after its server could not be asked.
const workerPoll = 2 * time.Second

func (a *app) workerCommand() *cobra.Command {
	var server, token, file string
	var labels []string
	var slots int
	var drain time.Duration
	c := &cobra.Command{
		Use: "worker", Short: "Run jobs of a hearth serve on another host, in machines of this one", Args: cobra.NoArgs,
		Long: `Run jobs of a hearth serve on another host, each in a microVM of this one. The worker
asks the server, over HTTPS; nothing connects to it, and it has no credentials but
its token, which hearth token --worker makes on the server's host.

It takes the jobs whose labels it has and whose machines it can hold. What a job is
handed stays in memory. While the server is away its jobs go on; when it loses one
to another worker, the machine ends. Settings for machines (driver, image, cpus,
memory_mib, machines, labels, registries, jail) come from --config FILE and
HEARTH_* variables, as hearth serve has them.

The first SIGTERM or Ctrl-C takes no more jobs and lets those that run end, for as
long as --drain says; what is left then goes to other workers. The second one ends
it at once: its jobs go to others when their leases end, 20 seconds later.`,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(file, a.getenv)
			if err != nil {
				return usage("%v", err)
			}
			if slots != 0 {
				cfg.Machines = slots
			}
			cfg.Labels = append(cfg.Labels, labels...)
			if err := cfg.Validate(); err != nil {
				return usage("%v", err)
			}
			if server == "" || token == "" {
				return usage("a worker needs --server https://HOST and --token-file FILE: hearth token --worker, on the server's host, makes a token")
			}
			return a.worker(c.Context(), cfg, server, token, drain)
		},
	}
	f := c.Flags()
	f.StringVar(&server, "server", a.getenv("HEARTH_SERVER"), "the server's `URL`")
	f.StringVar(&token, "token-file", a.getenv("HEARTH_TOKEN_FILE"), "`file` with the worker's token; it is read again for each request")
	f.StringSliceVar(&labels, "labels", nil, "labels of this worker beside the default ones; a runner group is group:NAME")
	f.IntVar(&slots, "slots", 0, "how many jobs run at once (default: what this machine can hold)")
	f.DurationVar(&drain, "drain", workerDrain, "how long jobs may go on after the first signal")
	f.StringVar(&file, "config", a.getenv("HEARTH_CONFIG"), "settings, JSON")
	return c
}

// readToken reads a worker's token.
func readToken(path string) (string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	// A group may: systemd hands credentials over with an access list, which shows there.
	if !fi.Mode().IsRegular() || fi.Mode().Perm()&0o037 != 0 {
		return "", fmt.Errorf("%s can be read by others, or is no file: chmod 600 it", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	t := strings.TrimSpace(string(b))
	if t == "" || len(t) > 1024 || strings.ContainsAny(t, " \t\r\n") {
		return "", fmt.Errorf("%s holds no token: hearth token --worker > FILE makes one", path)
	}
	return t, nil
}

// connect is the client of a worker, or of whoever asks whether there could be one.
func connect(server, file string, cfg remote.ClientConfig) (*remote.Client, error) {
	if _, err := readToken(file); err != nil {
		return nil, usage("--token-file: %v", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, &exit{exitInfrastructure, err}
	}
	cfg.Server, cfg.Name = server, host
	cfg.Token = func() string {
		t, err := readToken(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // one is put in another's place, perhaps
			cfg.Log.Error("the worker's token", "err", err)
		}
		return t
	}
	c, err := remote.NewClient(cfg)
	if err != nil {
		return nil, usage("--server: %v", err)
	}
	return c, nil
}

func (a *app) worker(ctx context.Context, cfg config.Config, server, token string, drain time.Duration) (err error) {
	level := slog.LevelInfo
	if a.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level}))
	dirs, err := a.dirs()
	if err != nil {
		return err
	}
	h := &jobHost{log: log}
	client, err := connect(server, token, remote.ClientConfig{Run: h.run, Slots: cfg.Machines, Log: log})
	if err != nil {
		return err
	}
	// Before machines are made ready, which takes its time.
	hello, err := client.Hello(ctx)
	if err != nil {
		return &exit{exitInfrastructure, fmt.Errorf("%s: %w", server, err)}
	}
	a.walls = &jail.Policy{Require: cfg.Jail == config.JailRequire, UIDBase: cfg.UIDBase}
	boots, err := a.serverImages(ctx, dirs, cfg)
	if err != nil {
		return err
	}
	machines, err := a.machines(ctx, dirs, machineOptions{driver: cfg.Driver, image: boots.Default,
		cpus: cfg.CPUs, memoryMiB: cfg.MemoryMiB, diskMiB: cfg.DiskMiB, warm: cfg.Warm, max: cfg.Machines})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closePool(machines)) }()
	images, err := openRegistry(dirs, upstreams(cfg.Registries), cfg.Retention, log)
	if err != nil {
		return err
	}
	h.machines = machines
	h.prepare = func(r *worker.Runner) {
		r.Image = func(labels []string) (string, error) {
			id, _, err := boots.forLabels(labels)
			return id, err
		}
		r.Registry, r.Package, r.Log = images, prompt.Package, log
	}
	means := machines.Stats().Means
	w := &desk.Worker{Counter: client, Slots: atOnce(cfg, means), Grace: drain, Poll: workerPoll, Log: log,
		Offer: queue.Offer{Worker: hello.Worker, Labels: serverLabels(cfg), CPUs: means.CPUs, MemoryMiB: means.MemoryMiB}}
	fmt.Fprintf(a.err, "hearth works for %s (hearth %s) as %s: %d jobs at once, labels %s\n", server, board.Clean(hello.Version), board.Clean(hello.Worker), w.Slots,
		strings.Join(w.Offer.Labels, ", "))
	w.Work(ctx)
	return nil
}

// jobHost is what of a job's runner belongs to the host that it runs on.
type jobHost struct {
	machines machine.Host
	prepare  func(*worker.Runner)
	log      *slog.Logger
}

func (h *jobHost) run(ctx context.Context, r *worker.Runner, t conduct.Task) conduct.Outcome {
	r.Host = h.machines
	h.prepare(r)
	h.log.Info("a job begins", "run", r.RunID, "job", t.Job.Key, "repository", r.Repository)
	out := r.Execute(ctx, t)
	h.log.Info("a job has ended", "run", r.RunID, "job", t.Job.Key, "repository", r.Repository, "status", out.Conclusion)
	return out
}

// atOnce is how many jobs a host runs at once.
func atOnce(cfg config.Config, means machine.Means) int {
	return cmp.Or(cfg.Machines, max(min(means.CPUs/cfg.CPUs, means.MemoryMiB/cfg.MemoryMiB), 1))
}

// nowhere is the machines of a server that leaves all jobs to workers.
type nowhere struct{}

var errNowhere = fmt.Errorf("this server has no machines of its own (\"jobs\": \"elsewhere\"): %w", errors.ErrUnsupported)

func (nowhere) Claim(context.Context, machine.Request) (machine.Machine, error) {
	return nil, errNowhere
}
func (nowhere) Sessions() []machine.Session { return nil }
func (nowhere) Stats() machine.Stats        { return machine.Stats{} }
