// Package drivers chooses what machines run on: the one place that knows every
// driver, and which of them "auto" takes. Auto is Firecracker where it can run
// machines with networks, since its machines resume in the shortest time, and QEMU
// elsewhere, which needs neither KVM nor privileges.
package drivers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/firecracker"
	"github.com/hearth-ci/hearth/internal/vm/jail"
	"github.com/hearth-ci/hearth/internal/vm/qemu"
)

// Auto is the name that means the best that works here.
const Auto = "auto"

// ErrName says that there is no driver of that name.
var ErrName = errors.New("want auto, qemu or firecracker")

// Config is what every driver gets. The zero value is usable.
type Config struct {
	CacheDir string      // for verdicts on KVM; "" keeps none
	Jail     jail.Policy // what stands around each machine's monitor
	Log      *slog.Logger

	// Works asks whether machines with networks run here by a driver; nil is [Works].
	Works func(context.Context, vm.Driver) error
}

// Set is the drivers that there are.
type Set struct {
	cfg  Config
	qemu *qemu.Driver
}

// New returns the drivers. It looks at nothing yet.
func New(cfg Config) *Set {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Works == nil {
		cfg.Works = Works
	}
	return &Set{cfg, qemu.New(qemu.Config{CacheDir: cfg.CacheDir, Jail: cfg.Jail, Log: cfg.Log})}
}

// QEMU returns that driver, working or not.
func (s *Set) QEMU() *qemu.Driver { return s.qemu }

// Firecracker returns that driver, working or not. kernel is one that it can find
// out with whether KVM works; "" lets it find out less.
func (s *Set) Firecracker(kernel string) *firecracker.Driver {
	return firecracker.New(firecracker.Config{CacheDir: s.cfg.CacheDir, Kernel: kernel, Jail: s.cfg.Jail, Log: s.cfg.Log})
}

// Choose returns the driver of that name, or an error that says why it does not work
// here; "" is [Auto]. The answer is final with the kernel that machines will have,
// and provisional with "".
func (s *Set) Choose(ctx context.Context, name, kernel string) (vm.Driver, error) {
	switch name {
	case "", Auto:
		f := s.Firecracker(kernel)
		err := s.cfg.Works(ctx, f)
		if err == nil {
			return f, nil
		}
		s.cfg.Log.Debug("machines run on QEMU", "err", err)
		return s.checked(ctx, s.qemu)
	case s.qemu.Name():
		return s.checked(ctx, s.qemu)
	case "firecracker":
		return s.checked(ctx, s.Firecracker(kernel))
	}
	return nil, fmt.Errorf("driver %q: %w", name, ErrName)
}

func (s *Set) checked(ctx context.Context, d vm.Driver) (vm.Driver, error) {
	if err := s.cfg.Works(ctx, d); err != nil {
		return nil, err
	}
	return d, nil
}

// Works reports whether machines with networks run here by d: nil, or an error that
// says what is missing.
func Works(ctx context.Context, d vm.Driver) error {
	if err := d.ProbeNetwork(ctx); err != nil { // the quicker of the two
		return err
	}
	return d.Probe(ctx)
}
