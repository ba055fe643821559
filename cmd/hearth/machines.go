package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/pool"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/drivers"
	"github.com/hearth-ci/hearth/internal/vm/jail"
)

// machineOptions are the flags of every command that makes machines.
type machineOptions struct {
	driver    string
	image     string // name, recipe or id; "" is the default image
	cpus      int
	memoryMiB int
	diskMiB   int64
	warm      int
	max       int
	// containers has the container engine run in the machines of vm run and vm create.
	containers bool
}

// jail is what stands around machines: what the server's settings say, or
// HEARTH_JAIL and HEARTH_UID_BASE, which for a person at a terminal begin with what
// can be had.
func (a *app) jail() (jail.Policy, error) {
	if a.walls != nil {
		return *a.walls, nil
	}
	p := jail.Policy{}
	switch v := a.getenv("HEARTH_JAIL"); v {
	case "", config.JailBest:
	case config.JailRequire:
		p.Require = true
	default:
		return p, usage("HEARTH_JAIL=%q: want require or best", v)
	}
	if v := a.getenv("HEARTH_UID_BASE"); v != "" {
		n, err := strconv.Atoi(v)
		if err == nil {
			p.UIDBase = n
			err = p.Check()
		}
		if err != nil {
			return p, usage("HEARTH_UID_BASE: %v", err)
		}
	}
	return p, nil
}

// drivers returns the drivers, with what this user or server has set.
func (a *app) drivers(dirs config.Dirs) (*drivers.Set, error) {
	walls, err := a.jail()
	if err != nil {
		return nil, err
	}
	return drivers.New(drivers.Config{CacheDir: dirs.Cache, Jail: walls, Log: a.log(), Works: a.works}), nil
}

// choose is the set's, with errors that end the program as they should.
func choose(ctx context.Context, set *drivers.Set, name, kernel string) (vm.Driver, error) {
	d, err := set.Choose(ctx, name, kernel)
	switch {
	case errors.Is(err, drivers.ErrName):
		return nil, usage("--%v", err)
	case err != nil:
		return nil, &exit{exitInfrastructure, err}
	}
	return d, nil
}

// driver returns the driver and the image that machines are made of.
func (a *app) driver(ctx context.Context, dirs config.Dirs, o machineOptions) (vm.Driver, *image.Image, error) {
	set, err := a.drivers(dirs)
	if err != nil {
		return nil, nil, err
	}
	// Before an image is built, which takes minutes.
	if _, err := choose(ctx, set, o.driver, ""); err != nil {
		return nil, nil, err
	}
	img, err := a.image(ctx, dirs, o.image)
	if err != nil {
		return nil, nil, err
	}
	d, err := choose(ctx, set, o.driver, img.Kernel)
	return d, img, err
}

// shelf says which images there are; fixed is the one that somebody has chosen for
// everything.
func (a *app) shelf(ctx context.Context, dirs config.Dirs, fixed string) (image.Shelf, error) {
	if fixed == image.Default {
		fixed = ""
	}
	s, err := image.ReadShelf(dirs.Images(), fixed, func() bool { return image.UbuntuAnswers(ctx) })
	if err != nil {
		return s, &exit{exitInfrastructure, err}
	}
	return s, nil
}

// image returns the image of a name, "" is the default one. What is missing of one that
// there is a recipe for is built, with its progress on standard error.
func (a *app) image(ctx context.Context, dirs config.Dirs, name string) (*image.Image, error) {
	if name == "" || name == image.Default {
		s, err := a.shelf(ctx, dirs, "")
		if err != nil {
			return nil, err
		}
		name = s.Default
	}
	if slices.Contains(image.Recipes(), name) {
		return a.buildImage(ctx, image.Options{Dir: dirs.Images(), Recipe: name})
	}
	img, err := image.Open(dirs.Images(), name)
	if err != nil {
		return nil, &exit{exitInfrastructure, err}
	}
	return img, nil
}

func (a *app) buildImage(ctx context.Context, opt image.Options) (*image.Image, error) {
	var err error
	if opt.Agent == "" {
		opt.Agent = a.getenv("HEARTH_GUEST")
	}
	if opt.Agent == "" {
		if opt.Agent, err = image.FindAgent(); err != nil {
			return nil, &exit{exitInfrastructure, err}
		}
		opt.AgentVersion = version // they are built together
	}
	opt.Log = a.log()
	p := &progress{w: a.err, terminal: isTerminal(a.err), of: cmp.Or(opt.Name, strings.Join(append([]string{opt.Recipe}, opt.Packages...), "+"))}
	opt.Progress = p.show
	img, err := image.Build(ctx, opt)
	p.end()
	if err != nil {
		if ctx.Err() != nil {
			return nil, &exit{exitCancelled, context.Cause(ctx)}
		}
		return nil, &exit{exitInfrastructure, err}
	}
	return img, nil
}

// machines opens a pool. The template of the default kind is made, or found,
// before it returns.
func (a *app) machines(ctx context.Context, dirs config.Dirs, o machineOptions) (*pool.Pool, error) {
	driver, img, err := a.driver(ctx, dirs, o)
	if err != nil {
		return nil, err
	}
	p, err := pool.New(pool.Config{Driver: driver, Image: img, Images: dirs.Images(), RunDir: dirs.Run, CacheDir: dirs.Cache,
		CPUs: o.cpus, MemoryMiB: o.memoryMiB, ScratchMiB: o.diskMiB, Warm: o.warm, Max: o.max, Log: a.log()})
	if err != nil {
		return nil, &exit{exitInfrastructure, err}
	}
	began := time.Now()
	if err := p.Prepare(ctx, machine.Request{Containers: o.containers}); err != nil {
		closePool(p)
		if ctx.Err() != nil {
			return nil, &exit{exitCancelled, context.Cause(ctx)}
		}
		return nil, &exit{exitInfrastructure, err}
	}
	if took := time.Since(began); took > 2*time.Second {
		fmt.Fprintf(a.err, "template snapshot made in %s\n", board.Short(took))
	}
	return p, nil
}

func closePool(p *pool.Pool) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return p.Close(ctx)
}

// progress shows an image build: one line that changes on a terminal, a line a
// part elsewhere. A build with nothing to do shows nothing.
type progress struct {
	w        io.Writer
	terminal bool
	of       string // the image
	mu       sync.Mutex
	shown    bool
	open     bool // a line without its end is on the screen
	last     time.Time
}

func (p *progress) show(u image.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if u.Cached || u.Part == "" && !p.shown {
		return
	}
	switch {
	case u.Done && u.Part != "":
		p.shown = true
		p.clear()
		size := ""
		if u.Bytes > 0 {
			size = fmt.Sprintf(", %d MB", u.Bytes/1_000_000)
		}
		fmt.Fprintf(p.w, "image %s: %s ready in %s%s\n", p.of, u.Part, board.Short(u.Took), size)
	case u.Done:
		p.clear()
		fmt.Fprintf(p.w, "image %s: complete in %s\n", p.of, board.Short(u.Took))
	case p.terminal:
		if time.Since(p.last) < 80*time.Millisecond {
			return
		}
		p.shown, p.open, p.last = true, true, time.Now()
		fmt.Fprintf(p.w, "\r\x1b[Kimage %s: %3.0f %%  %s: %s", p.of, u.Total*100, u.Part, board.Cut(board.Clean(u.Detail), 50))
	default:
		if time.Since(p.last) < 5*time.Second {
			return
		}
		p.shown, p.last = true, time.Now()
		fmt.Fprintf(p.w, "image %s: %3.0f %%  %s: %s\n", p.of, u.Total*100, u.Part, board.Clean(u.Detail))
	}
}

func (p *progress) clear() {
	if p.open {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.open = false
	}
}

func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}
