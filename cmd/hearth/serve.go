package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/api"
	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/dispatch"
	"github.com/hearth-ci/hearth/internal/door"
	"github.com/hearth-ci/hearth/internal/forge"
	"github.com/hearth-ci/hearth/internal/forge/github"
	"github.com/hearth-ci/hearth/internal/front"
	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/metrics"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/oidc"
	"github.com/hearth-ci/hearth/internal/prompt"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/registry"
	"github.com/hearth-ci/hearth/internal/remote"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/vm/jail"
	"github.com/hearth-ci/hearth/internal/web"
	"github.com/hearth-ci/hearth/internal/webhook"
	"github.com/hearth-ci/hearth/internal/workflow"
)

const (
	// serveGrace is how long jobs may go on after the first signal.
	serveGrace = 30 * time.Second
	// readTime is how long a client may take to send a request: 25 MB at 3 Mbit/s.
	readTime = 70 * time.Second
	// oidcPath is the issuer's below the server's URL.
	oidcPath = "/oidc"
)

func (a *app) serveCommand() *cobra.Command {
	var file, listen string
	c := &cobra.Command{
		Use: "serve", Short: "Take GitHub's webhooks, run workflows, report checks", Args: cobra.NoArgs,
		Long: `Take GitHub's webhooks (POST /webhooks/github), run what they start, every job in
a microVM, and report a check run for each. The pages are at /, the HTTP API for
machines below /api.

Settings come from --config FILE (JSON) and HEARTH_* variables; the GitHub App's
are app_id, app_key_file and HEARTH_WEBHOOK_SECRET. The setting repositories says
which are served; deliveries of others are refused. Without an App there are the
pages and the API only. The pages want a login as soon as others may reach them
(an App, or an address that is not loopback): hearth token --login makes one.

Workers on other hosts (hearth worker) take jobs, too; the setting "jobs":
"elsewhere" leaves all of them to those.

The first SIGTERM or Ctrl-C takes nothing new, lets jobs end for half a minute
and leaves the others in the queue for the next start; the second ends it at once,
which loses nothing either.`,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(file, a.getenv)
			if err != nil {
				return usage("%v", err)
			}
			if listen != "" {
				cfg.Listen = listen
			}
			if err := cfg.Validate(); err != nil {
				return usage("%v", err)
			}
			for pattern, r := range cfg.Repositories {
				for _, k := range r.OIDCSubject {
					if !slices.Contains(oidc.SubjectKeys(), k) {
						return usage("repositories: %q: oidc_subject: %q is no claim: %s", pattern, k, strings.Join(oidc.SubjectKeys(), ", "))
					}
				}
				if _, errs := workflow.ParsePatterns(r.Tests); len(errs) > 0 {
					return usage("repositories: %q: tests: %v", pattern, errors.Join(errs...))
				}
			}
			return a.serve(c.Context(), cfg)
		},
	}
	c.Flags().StringVar(&file, "config", a.getenv("HEARTH_CONFIG"), "settings, JSON")
	c.Flags().StringVar(&listen, "listen", "", "host:port to listen on")
	return c
}

// serverName is what a server's process is known by to others on the same database.
func serverName() string {
	host, _ := os.Hostname()
	return cmp.Or(host, "serve") + "-" + ci.NewID()
}

// serverLabels are what the workers of a server answer to.
func serverLabels(cfg config.Config) []string {
	return append(image.KnownLabels(), cfg.Labels...)
}

// serverImages are what a server's machines boot from.
type serverImages struct {
	image.Shelf
	ids map[string]string // by name, so that what a name means does not change with what is built meanwhile
}

// serverImages makes the images of a server ready: of each recipe that there is one of
// already, and the default. Others that have a name are there for those who name them.
func (a *app) serverImages(ctx context.Context, dirs config.Dirs, cfg config.Config) (s serverImages, err error) {
	s.ids = map[string]string{}
	if s.Shelf, err = a.shelf(ctx, dirs, cfg.Image); err != nil || len(s.Recipes) == 0 {
		return s, err
	}
	for _, name := range s.Recipes {
		img, err := a.image(ctx, dirs, name)
		if err != nil {
			return s, err
		}
		s.ids[name] = img.ID
	}
	all, err := image.List(dirs.Images())
	if err != nil {
		return s, &exit{exitInfrastructure, err}
	}
	for _, i := range all { // newest first
		if s.ids[i.Name] == "" {
			s.ids[i.Name] = i.ID
		}
	}
	return s, nil
}

// forLabels says which image takes a job, and what there is to remark.
func (s serverImages) forLabels(labels []string) (id, remark string, err error) {
	known := slices.DeleteFunc(slices.Clone(labels), func(label string) bool { // those of the settings say nothing about the system
		return !slices.Contains(image.KnownLabels(), strings.ToLower(strings.TrimSpace(label)))
	})
	if len(known) == 0 {
		return "", "", nil
	}
	name, remark, err := image.ForLabels(known, nil, s.Shelf)
	return s.ids[name], remark, err
}

func (a *app) serve(ctx context.Context, cfg config.Config) (err error) {
	level := slog.LevelInfo
	if a.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level}))

	var secrets, vars *config.Values
	for _, d := range []struct {
		dir    string
		secret bool
		into   **config.Values
	}{{cfg.SecretsDir, true, &secrets}, {cfg.VarsDir, false, &vars}} {
		if d.dir != "" {
			v, err := config.ReadValues(d.dir, d.secret)
			if err != nil {
				return usage("%v", err)
			}
			*d.into = v
		}
	}
	var app forge.Forge
	var gh *github.App
	if cfg.AppID != 0 {
		key, err := os.ReadFile(cfg.AppKeyFile)
		if err != nil {
			return usage("app_key_file: %v", err)
		}
		if gh, err = github.New(github.Config{BaseURL: cfg.GitHubURL, AppID: cfg.AppID, Key: key}); err != nil {
			return usage("%v", err)
		}
		app = gh
	}
	// The address first: a second server must not get as far as the machines.
	tcp, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return &exit{exitInfrastructure, err}
	}
	listener := door.Limit(tcp, cfg.Connections)
	defer listener.Close()
	if cfg.URL == "" {
		cfg.URL = "http://" + listener.Addr().String()
	}
	base, err := url.Parse(cfg.URL)
	if err != nil {
		return usage("url: %v", err)
	}
	reach, err := network.ParsePolicy(cfg.API.Network)
	if err != nil {
		return usage("api.network: %v", err)
	}
	hosts, err := door.NewHosts(base, cfg.Hosts)
	if err != nil {
		return usage("%v", err)
	}
	s, dirs, err := a.store(ctx, cfg.Database, logLimits(cfg.Retention))
	if err != nil {
		return err
	}
	defer s.Close()
	learner, err := learn.Open(ctx, s, learn.Options{Mode: learn.Mode(cfg.Learn), Modes: learningOf(cfg), Log: log})
	if err != nil {
		return usage("learn: %v", err)
	}
	a.walls = &jail.Policy{Require: cfg.Jail == config.JailRequire, UIDBase: cfg.UIDBase}
	var boots serverImages
	var machines machine.Host = nowhere{}
	var imageFor func(labels []string) (id, remark string, err error)
	if cfg.Jobs != config.JobsElsewhere {
		if boots, err = a.serverImages(ctx, dirs, cfg); err != nil {
			return err
		}
		imageFor = boots.forLabels
		here, err := a.machines(ctx, dirs, machineOptions{driver: cfg.Driver, image: boots.Default,
			cpus: cfg.CPUs, memoryMiB: cfg.MemoryMiB, diskMiB: cfg.DiskMiB, warm: cfg.Warm,
			max: cfg.Machines})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closePool(here)) }()
		machines = here
	}
	server := github.ServerOf(cfg.GitHubURL)
	// Without credentials, and apart from the mirrors of `hearth run`, which may have
	// been filled with a developer's: what a stranger's workflow names is public.
	resolver := action.NewResolver(action.Config{Dir: serveActions(dirs), Server: server, Log: log})
	issuer := oidc.New(oidc.Config{URL: strings.TrimRight(cfg.URL, "/") + oidcPath, Dir: dirs.OIDC(), Log: log})
	kept := resultsStore(dirs, cfg.Retention, log)
	images, err := openRegistry(dirs, upstreams(cfg.Registries), cfg.Retention, log)
	if err != nil {
		return err
	}
	d, err := dispatch.New(dispatch.Config{
		Store: s, Queue: queue.New(s, queue.Config{Owner: serverName(), Log: log}),
		Forge: app, AppID: cfg.AppID, Server: server, API: strings.TrimRight(cfg.GitHubURL, "/"),
		URL:  cfg.URL,
		Host: machines, Elsewhere: cfg.Jobs == config.JobsElsewhere, Image: imageFor,
		Labels: serverLabels(cfg), StrictLabels: cfg.UnknownLabels == config.UnknownRefuse,
		Package: prompt.Package, Machines: atOnce(cfg, machines.Stats().Means), Policy: cfg.Policy, Secrets: secrets, Vars: vars,
		Actions: resolver, Shells: image.Shells(), Learn: learner, Results: kept, Registry: images, OIDC: issuer, Grace: serveGrace, Log: log,
	})
	if err != nil {
		return &exit{exitInfrastructure, err}
	}
	passes := door.OpenPasses(dirs.Passes())
	spool := dirs.Spool()
	if err := errors.Join(os.RemoveAll(spool), os.MkdirAll(spool, 0o700)); err != nil { // what a process left that died in the wrong moment
		return &exit{exitInfrastructure, err}
	}
	var memory api.Memory
	if learner.On() {
		memory = learner
	}
	var taught *history.Keeper
	if cfg.API.Learn != "off" {
		taught = &history.Keeper{Learn: learner, Log: log}
	}
	vms := api.New(api.Config{
		Memory: memory, History: taught,
		Machines: machines, Images: boots.ids,
		Secret: []byte(cfg.JWTSecret), Issuers: cfg.API.Issuers, Audiences: cfg.API.Audiences, Revoked: passes.Revoked, Network: reach,
		Quotas: api.Quotas{
			VMs: cfg.API.VMs, AllVMs: cfg.API.AllVMs, Executions: cfg.API.Executions, AllExecutions: cfg.API.AllExecutions, Snapshots: cfg.API.Snapshots,
			AllSnapshots: cfg.API.AllSnapshots, SnapshotBytes: int64(cfg.API.SnapshotSize), AllSnapshotBytes: int64(cfg.API.AllSnapshotSize),
		},
		Services: func(p network.Policy) (map[uint16]http.Handler, error) {
			return images.Services(registry.SessionConfig{Policy: p, Stranger: true})
		},
		TTL: time.Duration(cfg.SessionTTL), Version: version, Log: log,
	})

	mux := http.NewServeMux()
	var webhooks metrics.Counts
	mux.Handle("/webhooks/github", webhooks.Wrap(&webhook.Handler{
		Secret: cfg.WebhookSecret, MaxBody: cfg.MaxBody, Bodies: &door.Bodies{Dir: spool, Time: readTime}, Recorder: front.Deliveries{Store: s}, Stored: d.Wake,
		Log:    log,
		Starts: func(event string) bool { return len(workflow.TriggerEvents(event)) > 0 },
		Serves: func(repository string) bool { _, served := cfg.Policy(repository); return served },
	}))
	pages := web.Config{Source: front.Pages{Store: s}, Artifacts: front.Artifacts{Results: kept}, Insight: front.NewInsight(s, learner),
		Replay: func(ctx context.Context, event string) error {
			if err := front.Replay(ctx, s, event); err != nil {
				return err
			}
			d.Wake()
			return nil
		},
		Version: version, Log: log}
	if cfg.Login == "always" || app != nil || !door.Loopback(listener.Addr()) || !door.LoopbackName(base.Hostname()) {
		pages.Login = &door.Login{Passes: passes, Secure: base.Scheme == "https", TTL: time.Duration(cfg.LoginTTL)}
	}
	figures := metrics.Config{Queue: waiting(s), Slots: atOnce(cfg, machines.Stats().Means), Token: cmp.Or(cfg.MetricsToken, cfg.Metrics), Log: log,
		Ready: func(probe context.Context) error {
			if ctx.Err() != nil {
				return errors.New("the server stops")
			}
			return s.Ping(probe)
		},
		Samples: func() []metrics.Sample {
			var budget *github.Budget
			if gh != nil {
				budget = new(gh.Budget())
			}
			return samples(d.Figures(), machines.Stats(), budget, &webhooks)
		}}
	metrics.New(figures).Register(mux)
	web.New(pages).Register(mux)
	vms.Register(mux)
	remote.NewServer(remote.Config{Desk: d.Desk(), LastSent: s.LastSent, Version: version, Log: log, Check: func(token string) (string, error) {
		p, err := passes.CheckWorker(token)
		return p.Subject, err
	}}).Register(mux)
	issuer.Register(mux, oidcPath)                    // for everybody: relying parties have no login
	doors, err := door.SameOrigin(base, mux, "/api/") // which answers in its own words
	if err != nil {
		return usage("%v", err)
	}
	// Pages follow runs as long as they like; requests may take only so long, and
	// so may who reads the answers: whatever takes longer says so itself.
	requests, endRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer endRequests()
	hs := &http.Server{Handler: hosts.Wrap(doors), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: readTime, WriteTimeout: readTime,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ConnState: listener.State, BaseContext: func(net.Listener) context.Context { return requests }, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	serving, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	ended := make(chan error, 1)
	go func() {
		err := hs.Serve(listener)
		if !errors.Is(err, http.ErrServerClosed) {
			stop(fmt.Errorf("serving HTTP: %w", err))
		} else {
			err = nil
		}
		ended <- err
	}()
	fmt.Fprintf(a.err, "hearth serves %s\n", cfg.URL)
	if app == nil {
		fmt.Fprintln(a.err, "no GitHub App is configured: deliveries are refused (app_id, app_key_file, HEARTH_WEBHOOK_SECRET)")
	}
	var keeping sync.WaitGroup
	keeping.Go(func() { keeper(s, learner, dirs, cfg.Retention, log).Run(serving) })
	err = d.Serve(serving)
	stop(nil)
	keeping.Wait()
	endRequests() // those who only watch
	down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if cerr := hs.Shutdown(down); cerr != nil {
		hs.Close()
	}
	err = errors.Join(err, <-ended, vms.Close(down))
	if err != nil {
		return &exit{exitInfrastructure, err}
	}
	return nil
}

// serveActions is where a server keeps mirrors.
func serveActions(dirs config.Dirs) string { return filepath.Join(dirs.Cache, "serve", "actions") }

func (a *app) approveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "approve [RUN…]", Short: "Let runs start that wait for approval, or list them",
		Long: `Let runs start that wait for approval: those of pull requests from forks whose
authors have contributed nothing yet, or of all forks, as the setting approval of
their repository says. Look at the changes first. An approval is for one run, at
one commit: what is pushed later waits again. A server that runs takes it within
seconds. Without arguments, the runs that wait are listed.`,
		RunE: func(c *cobra.Command, args []string) error {
			s, _, err := a.store(c.Context(), "")
			if err != nil {
				return err
			}
			defer s.Close()
			if len(args) == 0 {
				runs, err := dispatch.Waiting(c.Context(), s)
				if err != nil || len(runs) == 0 {
					fmt.Fprintln(a.err, "no run waits for approval")
					return err
				}
				w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "RUN\tWHEN\tREPOSITORY\tWORKFLOW\tREF\tCOMMIT\tBY")
				for _, r := range runs {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, ago(r.Created), board.Clean(r.Repository), board.Clean(r.Workflow), board.Clean(r.Ref), r.SHA,
						board.Clean(r.Actor))
				}
				return w.Flush()
			}
			by := "the server's administrator"
			if u, err := user.Current(); err == nil {
				by = u.Username
			}
			var errs []error
			for _, id := range args {
				run, err := dispatch.Approve(c.Context(), s, id, by)
				if errors.Is(err, store.ErrNotFound) {
					err = fmt.Errorf("there is no run %s", board.Clean(id))
				}
				if err != nil {
					errs = append(errs, usage("%v: hearth approve lists those that wait", err))
					continue
				}
				fmt.Fprintf(a.err, "run %s of %s at %s may start\n", run.ID, board.Clean(run.Repository), run.SHA)
			}
			return errors.Join(errs...)
		},
	}
}

func (a *app) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cancel RUN…", Short: "End runs of `hearth serve`", Args: cobra.MinimumNArgs(1),
		Long: `End runs of hearth serve, on whichever server: the one that drives a run hears of
it within seconds, and its jobs end as GitHub's do that are cancelled. A run that
waits for approval ends, too. A run of hearth run ends with Ctrl-C where it runs.`,
		RunE: func(c *cobra.Command, args []string) error {
			s, _, err := a.store(c.Context(), "")
			if err != nil {
				return err
			}
			defer s.Close()
			by := "the server's administrator"
			if u, err := user.Current(); err == nil {
				by = u.Username
			}
			var errs []error
			for _, id := range args {
				run, err := s.Run(c.Context(), id)
				switch {
				case errors.Is(err, store.ErrNotFound):
					errs = append(errs, usage("there is no run %s: hearth runs lists them", board.Clean(id)))
					continue
				case err != nil:
					return err
				case run.EventID == "":
					errs = append(errs, usage("run %s is of hearth run: it ends with Ctrl-C where it runs", run.ID))
					continue
				}
				under, err := s.CancelRun(c.Context(), run.ID, "cancelled by "+by)
				if err != nil {
					return err
				}
				if !under {
					errs = append(errs, usage("run %s has ended", run.ID))
					continue
				}
				fmt.Fprintf(a.err, "run %s of %s is to end\n", run.ID, board.Clean(run.Repository))
			}
			return errors.Join(errs...)
		},
	}
}

func (a *app) eventsCommand() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "events", Short: "List the deliveries that `hearth serve` took, and what came of each", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, _, err := a.store(c.Context(), "")
			if err != nil {
				return err
			}
			defer s.Close()
			events, err := s.Events(c.Context(), limit)
			if err != nil {
				return err
			}
			if len(events) == 0 {
				_, err := fmt.Fprintln(a.err, "no deliveries on record")
				return err
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "EVENT\tWHEN\tREPOSITORY\tNAME\tSTATE\tWHAT CAME OF IT")
			for _, e := range events {
				name := e.Name
				if e.Action != "" {
					name += " " + e.Action
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.ID, ago(e.Received), board.Clean(e.Repository), board.Clean(name), e.State, board.Clean(e.Detail))
			}
			return w.Flush()
		},
	}
	c.Flags().IntVarP(&limit, "limit", "n", 20, "how many")
	c.AddCommand(&cobra.Command{
		Use: "replay EVENT", Short: "Handle a delivery again that has ended", Args: cobra.ExactArgs(1),
		Long: "Handle a delivery again that has ended. Runs that it has made are not made again; a server that runs takes it within seconds.",
		RunE: func(c *cobra.Command, args []string) error {
			s, _, err := a.store(c.Context(), "")
			if err != nil {
				return err
			}
			defer s.Close()
			if err := s.ReplayEvent(c.Context(), args[0]); err != nil {
				if errors.Is(err, store.ErrNotFound) {
					return usage("there is no event %s that has ended and was let in: hearth events lists them; what was refused can be delivered again from the App's page", args[0])
				}
				return err
			}
			return nil
		},
	})
	return c
}

// learningOf says what may be learned and done for a repository, where the settings of
// some say it; nil where none do.
func learningOf(cfg config.Config) func(repository string) learn.Mode {
	if !cfg.LearnDiffers() {
		return nil
	}
	return func(repository string) learn.Mode {
		p, _ := cfg.Policy(repository)
		return learn.Mode(p.Learn)
	}
}
