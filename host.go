package hearth

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/ledger"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/pool"
	"github.com/hearth-ci/hearth/internal/registry"
	"github.com/hearth-ci/hearth/internal/session"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/drivers"
	"github.com/hearth-ci/hearth/internal/vm/jail"
)

// HostConfig says what a Host is made of. The zero value is usable.
type HostConfig struct {
	// Dir holds everything: cache, state, run. "" is the user's own directories,
	// shared with the hearth program: its runs and caches are seen there.
	Dir string
	// Driver is "auto", "qemu" or "firecracker"; "" is auto.
	Driver string
	// Image is the name or id of an image that was built, or a recipe: ubuntu-24.04,
	// ubuntu-22.04, debian-12. "" is the default image: Ubuntu 24.04, or Debian 12 where
	// Ubuntu's archive does not answer. What is missing of a recipe's is built.
	Image string
	// Agent is the path of the static guest agent, for building the image; "" is
	// $HEARTH_GUEST, or hearth-guest beside this program.
	Agent string
	// CPUs and MemoryMiB of a machine: 2 and 1024.
	CPUs, MemoryMiB int
	// Containers has Docker run in machines from the start; else it starts when it is
	// first used in one.
	Containers bool
	// Warm is how many machines wait ready.
	Warm int
	// Network is what machines may reach: "default", "none", "allow:HOST,HOST".
	Network string
	// Jail is what stands between a machine's monitor and this host: "require"
	// refuses to run where a wall is missing, "best" ("" as well) takes what can be
	// had. This program is started once more for each machine, under another name,
	// to build the walls; an init function sees to it.
	Jail string
	// Learn is "off" or "advise"; "" is advise. Off changes nothing else.
	Learn string
	// Progress, if set, hears how the image is built, a line at a time.
	Progress func(string)
	Log      *slog.Logger
}

// Host is this machine: it makes VMs, and remembers what ran in them. Close it.
type Host struct {
	dirs    config.Dirs
	pool    *pool.Pool
	store   *store.Store
	learner *learn.Learner
	ledger  *ledger.Ledger
	policy  network.Policy
	// containers is HostConfig.Containers.
	containers bool
	images     *registry.Cache
	log        *slog.Logger
}

// OpenHost gets everything ready: the driver, the image, a snapshot to clone
// machines from. The first time on a machine takes a minute or two, later ones less
// than a second. An error says what is missing and what mends it.
func OpenHost(ctx context.Context, cfg HostConfig) (_ *Host, err error) {
	h := &Host{log: cfg.Log, containers: cfg.Containers}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("hearth: %w", err)
			h.Close(context.WithoutCancel(ctx))
		}
	}()
	if h.policy, err = network.ParsePolicy(cfg.Network); err != nil {
		return nil, err
	}
	getenv := os.Getenv
	if cfg.Dir != "" {
		getenv = func(k string) string {
			if k == "HEARTH_HOME" {
				return cfg.Dir
			}
			return os.Getenv(k)
		}
	}
	if h.dirs, err = config.FindDirs(getenv); err != nil {
		return nil, err
	}
	if err := h.dirs.Make(); err != nil {
		return nil, err
	}
	keep, bad := config.LoadRetention(getenv)
	if err := errors.Join(bad...); err != nil {
		return nil, err
	}
	if h.images, err = registry.Open(registry.Config{Dir: h.dirs.Registry(), Limit: cmp.Or(int64(keep.ContainerBytes), math.MaxInt64), Log: h.log}); err != nil {
		return nil, err
	}
	img, err := h.image(ctx, cfg)
	if err != nil {
		return nil, err
	}
	driver, err := h.driver(ctx, cfg, img)
	if err != nil {
		return nil, err
	}
	if h.pool, err = pool.New(pool.Config{Driver: driver, Image: img, RunDir: h.dirs.Run, CacheDir: h.dirs.Cache,
		CPUs: cfg.CPUs, MemoryMiB: cfg.MemoryMiB, Warm: cfg.Warm, Log: h.log}); err != nil {
		return nil, err
	}
	if err := h.pool.Prepare(ctx, machine.Request{Containers: cfg.Containers}); err != nil {
		return nil, err
	}
	if h.store, err = store.Open(ctx, h.dirs.Database(), store.WithLogs(h.dirs.Logs())); err != nil {
		return nil, err
	}
	mode := learn.Mode(cmp.Or(cfg.Learn, string(learn.Advise)))
	if mode != learn.Off && mode != learn.Advise {
		return nil, fmt.Errorf("learn %q: want off or advise", cfg.Learn)
	}
	if h.learner, err = learn.Open(ctx, h.store, learn.Options{Mode: mode, Log: h.log}); err != nil {
		return nil, err
	}
	h.ledger = &ledger.Ledger{Store: h.store, Learn: h.learner, Dir: h.dirs.Running(), Log: h.log}
	if err := h.ledger.Recover(ctx); err != nil {
		return nil, err
	}
	return h, nil
}

func (h *Host) image(ctx context.Context, cfg HostConfig) (*image.Image, error) {
	shelf, err := image.ReadShelf(h.dirs.Images(), cmp.Or(cfg.Image, os.Getenv("HEARTH_IMAGE")), func() bool { return image.UbuntuAnswers(ctx) })
	if err != nil {
		return nil, err
	}
	if !slices.Contains(image.Recipes(), shelf.Default) {
		return image.Open(h.dirs.Images(), shelf.Default)
	}
	opt := image.Options{Dir: h.dirs.Images(), Recipe: shelf.Default, Agent: cmp.Or(cfg.Agent, os.Getenv("HEARTH_GUEST")), Log: h.log}
	if opt.Agent == "" {
		var err error
		if opt.Agent, err = image.FindAgent(); err != nil {
			return nil, err
		}
	}
	if cfg.Progress != nil {
		opt.Progress = func(p image.Progress) {
			if !p.Cached && p.Part != "" {
				cfg.Progress(fmt.Sprintf("image %s %3.0f %%: %s: %s", shelf.Default, p.Total*100, p.Part, p.Detail))
			}
		}
	}
	return image.Build(ctx, opt)
}

func (h *Host) driver(ctx context.Context, cfg HostConfig, img *image.Image) (vm.Driver, error) {
	walls := jail.Policy{Require: cfg.Jail == config.JailRequire}
	if cfg.Jail != "" && cfg.Jail != config.JailBest && !walls.Require {
		return nil, fmt.Errorf("jail %q: want require or best", cfg.Jail)
	}
	return drivers.New(drivers.Config{CacheDir: h.dirs.Cache, Jail: walls, Log: h.log}).Choose(ctx, cfg.Driver, img.Kernel)
}

// Close ends all machines and closes the record.
func (h *Host) Close(ctx context.Context) error {
	var errs []error
	if h.pool != nil {
		errs = append(errs, h.pool.Close(ctx))
	}
	if h.store != nil {
		errs = append(errs, h.store.Close())
	}
	return errors.Join(errs...)
}

// Machine implements Provider. It waits for room as long as ctx allows.
func (h *Host) Machine(ctx context.Context, deadline time.Time) (Machine, error) {
	services, err := h.images.Services(registry.SessionConfig{Policy: h.policy})
	if err != nil {
		return nil, err
	}
	l, err := h.pool.Claim(ctx, machine.Request{Deadline: deadline, Containers: h.containers, Network: network.Config{Policy: h.policy, Services: services},
		Labels: []string{"library"}})
	if err != nil {
		return nil, err
	}
	return kept{session.Open(l, nil), (&history.Keeper{Learn: h.learner, Log: h.log}).Open(l.ID())}, nil
}

// kept is a session of a pool's machine as a Machine, and its history.
type kept struct {
	*session.Session
	history *history.Machine
}

// use has f use the machine while no snapshot or rollback is under way.
func (m kept) use(f func(*guest.Client) error) error {
	c, leave, err := m.Enter()
	if err != nil {
		return err
	}
	defer leave()
	m.Begin()
	return f(c)
}

func (m kept) Exec(ctx context.Context, c Command) (x Exit, err error) {
	err = m.use(func(client *guest.Client) error {
		var taught *history.Execution
		if !c.NoLearn {
			taught = m.history.Begin(ctx, history.Command{Repository: cmp.Or(c.Repository, onLibrary), Door: "library", Argv: c.Argv, Env: c.Env,
				Secrets: c.Secrets})
		}
		stdout, stderr := taught.Tee(c.Stdout, c.Stderr)
		end, err := client.Exec(ctx, guest.Cmd{Argv: c.Argv, Env: c.Env, Dir: c.Dir, User: c.User, Stdin: c.Stdin, Stdout: stdout, Stderr: stderr,
			Timeout: c.Timeout})
		x = Exit{Code: end.Code, TimedOut: end.TimedOut, Cancelled: end.Cancelled, Duration: end.Duration}
		if taught != nil && err == nil {
			x.Expected, x.Explanation = &taught.Expected.Prediction, taught.End(ctx, end)
		}
		return err
	})
	return x, err
}

func (m kept) Unpack(ctx context.Context, dir string, r io.Reader) error {
	defer m.history.Changed("files copied into the machine")
	return m.use(func(c *guest.Client) error { return c.TarIn(ctx, dir, r, "") })
}

func (m kept) Pack(ctx context.Context, dir string, paths []string, w io.Writer) error {
	return m.use(func(c *guest.Client) error { return c.TarOut(ctx, dir, paths, w) })
}

func (m kept) Snapshot(ctx context.Context) (string, error) {
	x, err := m.Session.Snapshot(ctx, "")
	return x.Name, err
}

func (m kept) Rollback(ctx context.Context, name string) error {
	defer m.history.Changed("a rollback")
	_, err := m.Session.Rollback(ctx, name)
	return err
}

func (m kept) Close(ctx context.Context) error { return m.Release(ctx, "it was closed") }

// Caches: one file a key, complete or not there.

const maxCache = 4 << 30 // bytes of one cache; a larger one is not kept

var errCacheTooLarge = fmt.Errorf("it has more than %d GiB", maxCache>>30)

func (h *Host) cachePath(key string) string {
	return filepath.Join(h.dirs.Cache, "library", fmt.Sprintf("%x.tar", sha256.Sum256([]byte(key))))
}

func (h *Host) openCache(key string) (io.ReadCloser, error) { return os.Open(h.cachePath(key)) }

func (h *Host) saveCache(key string, write func(io.Writer) error) (err error) {
	p := h.cachePath(key)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(p), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := write(&bounded{w: f, left: maxCache, full: errCacheTooLarge}); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), p)
}

type bounded struct {
	w    io.Writer
	left int64
	full error
}

func (b *bounded) Write(p []byte) (int, error) {
	if int64(len(p)) > b.left {
		return 0, b.full
	}
	b.left -= int64(len(p))
	return b.w.Write(p)
}
