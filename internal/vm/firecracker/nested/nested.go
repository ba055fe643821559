// Package nested gives tests a machine in which KVM works, also on hosts where
// it does not: one of our own QEMU machines, whose software emulation includes
// AMD's virtualisation extensions. What needs KVM, the real Firecracker above
// all, then runs in there for real, some ten times slower.
//
// A [Machine] takes files and disks from the host, runs any number of commands,
// and hands back what they print while they run.
package nested

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/qemu"
)

// Config says what the machine is to be.
type Config struct {
	// Image is what it boots. If it has a Base and Root is set, the machine's root
	// is the image's, as a job's would be; otherwise it stays in its initrd.
	Image *image.Image
	Root  bool

	// Files are put into the machine, by their path in it.
	Files map[string]string

	// Disks are attached after those of the image, each under its ID: find them by
	// /sys/block/*/serial.
	Disks []vm.Disk

	CPUs      int   // 2 if 0
	MemoryMiB int   // 3072 if 0
	Scratch   int64 // bytes of the disk that takes what is written, with Root; 8 GiB if 0

	// CacheDir is where QEMU's verdict on KVM is kept.
	CacheDir string
	Log      *slog.Logger // nil discards
}

// modules are what machines in the machine need: KVM with AMD's extensions,
// which are what QEMU emulates, and their network (a tap and a bridge).
var modules = []string{"irqbypass", "kvm", "kvm_amd", "tun", "bridge"}

// Machine is a running machine. Close it.
type Machine struct {
	*guest.Client
	vm      vm.Machine
	dir     string // of what was made for it
	console vm.Console
	Boot    time.Duration
}

// bootLimit is how long the machine may take until its agent answers.
const bootLimit = 2 * time.Minute

// tries is how often a machine that does not come up is started again.
const tries = 3

// Start boots a machine. Its /dev/kvm is there, but whether a guest gets going
// under it is for the caller to see.
func Start(ctx context.Context, cfg Config) (_ *Machine, err error) {
	began := time.Now()
	if cfg.CPUs == 0 {
		cfg.CPUs = 2
	}
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = 3072
	}
	if cfg.Scratch == 0 {
		cfg.Scratch = 8 << 30
	}
	dir, err := os.MkdirTemp("", "hearth-nested-")
	if err != nil {
		return nil, err
	}
	m := &Machine{dir: dir}
	defer func() {
		if err != nil {
			err = m.lastWords(err)
			err = errors.Join(fmt.Errorf("nested machine: %w", err), m.Close(context.WithoutCancel(ctx)))
		}
	}()
	spec := vm.Spec{
		ID:     fmt.Sprintf("nested-%d", os.Getpid()),
		Kernel: cfg.Image.Kernel, Initrd: filepath.Join(dir, "initrd"), Cmdline: "quiet mitigations=off hearth.host=nested",
		CPUs: cfg.CPUs, MemoryMiB: cfg.MemoryMiB, Console: &m.console,
	}
	extra := image.Extra{Modules: modules}
	if cfg.Root {
		if cfg.Image.Base == "" {
			return nil, errors.New("the image has no root file system")
		}
		empty, err := image.Scratch(ctx, dir, cfg.Scratch)
		if err != nil {
			return nil, err
		}
		spec.Cmdline += " hearth.base=base hearth.scratch=scratch"
		spec.Disks = append(spec.Disks, vm.Disk{ID: "base", Path: cfg.Image.Base, ReadOnly: true}, vm.Disk{ID: "scratch", Path: empty})
		if cfg.Image.Tools != "" {
			spec.Cmdline += " hearth.tools=tools"
			spec.Disks = append(spec.Disks, vm.Disk{ID: "tools", Path: cfg.Image.Tools, ReadOnly: true})
		}
	} else {
		extra.Files = cfg.Files
	}
	spec.Disks = append(spec.Disks, cfg.Disks...)
	if err := cfg.Image.Extend(ctx, spec.Initrd, extra); err != nil {
		return nil, err
	}
	// Emulation, also where there is a KVM that would do: it is KVM's lack that
	// this machine is for, and few hosts let guests have guests.
	d := qemu.New(qemu.Config{CacheDir: cfg.CacheDir, Accel: "tcg", Log: cfg.Log})
	for try := 1; ; try++ {
		// Not a second time in the same directory: the first Close removes it.
		spec.Dir = filepath.Join(dir, fmt.Sprintf("machine-%d", try))
		if err := os.Mkdir(spec.Dir, 0o700); err != nil {
			return nil, err
		}
		if m.vm, err = d.Start(ctx, spec); err != nil {
			return nil, err
		}
		if m.Client, err = connect(ctx, m.vm); err == nil {
			break
		}
		// On a busy host an emulated kernel now and then finds no timer it can use,
		// and the agent ends the machine.
		if ctx.Err() != nil || try == tries {
			return nil, err
		}
		if err := m.vm.Close(context.WithoutCancel(ctx)); err != nil {
			return nil, err
		}
	}
	m.Boot = time.Since(began)
	if cfg.Root {
		for name, path := range cfg.Files {
			if err := m.Put(ctx, name, path); err != nil {
				return nil, err
			}
		}
	}
	return m, nil
}

// connect reaches the agent, or finds out that the machine has ended.
func connect(ctx context.Context, machine vm.Machine) (*guest.Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, fmt.Errorf("no agent within %v", bootLimit))
	defer cancel()
	ctx, over := context.WithCancelCause(ctx)
	defer over(nil)
	go func() { over(fmt.Errorf("it ended: %w", orNil(machine.Wait()))) }() // ends with the machine
	// Two processors are emulated one in the other: three minutes of silence are no end.
	return guest.Connect(ctx, machine.Dial, guest.WithHeartbeat(30*time.Second))
}

func orNil(err error) error {
	if err == nil {
		return errors.New("it powered off")
	}
	return err
}

// lastWords adds to why a machine is of no use what its kernel said last.
func (m *Machine) lastWords(err error) error {
	if t := m.console.Tail(); t != "" {
		return fmt.Errorf("%w; it said last:\n%s", err, t)
	}
	return err
}

// Exec is the client's; an error because the machine was lost has the machine's
// last words, and how its monitor ended if it did.
func (m *Machine) Exec(ctx context.Context, cmd guest.Cmd) (guest.Exit, error) {
	x, err := m.Client.Exec(ctx, cmd)
	if !errors.Is(err, guest.ErrLost) {
		return x, err
	}
	ended := make(chan error, 1)
	go func() { ended <- orNil(m.vm.Wait()) }() // ends with the machine, at Close
	select {
	case end := <-ended:
		err = fmt.Errorf("%w; the machine ended: %w", err, end)
	case <-time.After(2 * time.Second):
		err = fmt.Errorf("%w; the machine still runs", err)
	}
	return x, m.lastWords(err)
}

// Put copies a file of the host into the machine, mode included.
func (m *Machine) Put(ctx context.Context, name, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := m.MkdirAll(ctx, filepath.Dir(name), 0o755, "root"); err != nil {
		return err
	}
	return m.WriteFile(ctx, name, data, fi.Mode().Perm(), "root")
}

// Close ends the machine and removes what was made for it.
func (m *Machine) Close(ctx context.Context) error {
	var errs []error
	if m.Client != nil {
		m.Client.Close()
	}
	if m.vm != nil {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		errs = append(errs, m.vm.Close(ctx))
	}
	return errors.Join(append(errs, os.RemoveAll(m.dir))...)
}
