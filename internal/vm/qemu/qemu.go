// Package qemu drives QEMU's microvm machine type. It needs no privilege, and
// it works where there is no KVM: then QEMU emulates the processor, which is 6
// to 18 times slower for what computes but boots, snapshots and clones nearly
// as fast.
//
// # KVM or not
//
// That /dev/kvm exists says little: there are hosts where it opens, creates
// machines, and no guest ever gets going. So the verdict is that of a probe,
// which boots a kernel with a tiny program in it and waits until that has
// spoken (kvm.go, and package vmm, which keeps verdicts).
//
// # Processes and files
//
// QEMU runs in a jail (package jail), in which there is nothing but QEMU. All
// that a machine consists of comes in as open files: monitor, console, the
// agent's channel, network, the images of the disks, kernel, memory, state. So no
// file of Hearth's needs to be readable to another user, and what is opened for
// reading cannot be written to. It is started from a goroutine that holds its
// operating system thread until QEMU has ended, with that thread's death
// arranged to kill it, so that no way of ending hearth leaves a QEMU behind.
//
// # Snapshot and clone
//
// A template's memory is an anonymous file (memfd) that QEMU maps shared.
// Snapshot stops the machine, has everything but memory written out
// ("x-ignore-shared"), which is some 60 kB, ends QEMU and copies what there is
// of the memory to a file. (A file on disk from the start would spare the copy,
// but then each page the guest touches first waits for the host's file system,
// and a busy disk makes a boot take a minute.) A clone maps the copy privately, so that pages are shared until written, puts a qcow2 overlay
// over each writable disk, loads the 60 kB and goes on. State goes through
// inherited files ("fd:"), not through a shell ("exec:cat"), which saves
// two processes a clone and lets QEMU's sandbox forbid starting any.
//
// A machine that is not a template (a clone, say) has its memory written out
// while it runs, and pauses for the last milliseconds only, where KVM runs it; under
// emulation it pauses for as long as that takes, since pages that are written
// meanwhile are lost sight of now and then. The kernel's page tables cannot tell which
// pages differ from the template's, so all of it is written. Restoring such a snapshot loads it into memory of its own.
//
// The guest's kernel is in its memory by then: a clone is started without one.
package qemu

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/jail"
	"github.com/hearth-ci/hearth/internal/vm/vmm"
)

// Config says how a [Driver] works. The zero value is usable.
type Config struct {
	// Binary is QEMU's path, or a name to look for in PATH;
	// "qemu-system-x86_64" if empty.
	Binary string

	// CacheDir is where the verdict on KVM is kept; "" keeps it in memory only.
	CacheDir string

	// Accel is "kvm" or "tcg" to insist on one; "" lets the probe decide.
	Accel string

	// ProbeTimeout bounds the boot that decides whether KVM works; 10 s if 0.
	ProbeTimeout time.Duration

	// Jail is what stands around each QEMU.
	Jail jail.Policy

	// Log hears what was decided and why; nil discards.
	Log *slog.Logger
}

// Driver starts QEMU machines. It implements [vm.Driver].
type Driver struct {
	cfg    Config
	log    *slog.Logger
	device string // vmm.KVMDevice, but for tests
	kvm    *vmm.KVM

	mu      sync.Mutex
	binary  string // absolute, once found
	version string
	needs   []string // files that it cannot do without, once looked for
	tsc     int64
}

var _ vm.Driver = (*Driver)(nil)

// New returns a driver. It looks at nothing yet: see [Driver.Probe].
func New(cfg Config) *Driver {
	if cfg.Binary == "" {
		cfg.Binary = "qemu-system-x86_64"
	}
	if cfg.ProbeTimeout == 0 {
		cfg.ProbeTimeout = 10 * time.Second
	}
	d := &Driver{cfg: cfg, log: cfg.Log, device: vmm.KVMDevice}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.kvm = vmm.NewKVM(cfg.CacheDir, "kvm-", d.log)
	return d
}

// Name is "qemu".
func (d *Driver) Name() string { return "qemu" }

// Probe finds QEMU and checks its version. It does not say whether KVM works:
// that takes a kernel, see [Driver.Verdict].
func (d *Driver) Probe(ctx context.Context) error {
	if _, _, err := d.find(ctx); err != nil {
		return err
	}
	return d.cfg.Jail.Available()
}

// Version returns QEMU's version, as "7.2.22".
func (d *Driver) Version(ctx context.Context) (string, error) {
	_, v, err := d.find(ctx)
	return v, err
}

var versionLine = regexp.MustCompile(`version (\d+)\.(\d+)(\.\d+)*`)

func (d *Driver) find(ctx context.Context) (binary, version string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.binary != "" {
		return d.binary, d.version, nil
	}
	path, err := exec.LookPath(d.cfg.Binary)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", "", fmt.Errorf("%s is not installed: run `sudo apt-get install qemu-system-x86` (%w)", d.cfg.Binary, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", "", fmt.Errorf("%s --version: %w: %s", path, err, vm.LastLines(string(out), 3))
	}
	m := versionLine.FindStringSubmatch(string(out))
	if m == nil {
		return "", "", fmt.Errorf("%s --version: no version in %q", path, vm.LastLines(string(out), 1))
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	version = strings.TrimPrefix(m[0], "version ")
	if major < 7 || major == 7 && minor < 2 {
		// The stream network device is what older ones lack.
		return "", "", fmt.Errorf("%s is QEMU %s: at least 7.2 is needed; Debian 12 has it: `sudo apt-get install qemu-system-x86`", path, version)
	}
	d.binary, d.version = path, version
	return path, version, nil
}

// firmware are where QEMU keeps what a machine begins with.
var firmware = []string{"/usr/share/qemu", "/usr/share/seabios", "/usr/share/qemu-kvm", "/usr/local/share/qemu"}

// files returns what QEMU must be able to see: itself, its accelerator (a module
// with some distributions), their libraries, firmware.
func (d *Driver) files(ctx context.Context) ([]string, error) {
	binary, _, err := d.find(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.needs != nil {
		return d.needs, nil
	}
	programs := []string{binary}
	for _, dir := range []string{"/usr/lib/*/qemu", "/usr/lib/qemu", "/usr/lib64/qemu", "/usr/lib64/qemu-kvm", "/usr/local/lib/qemu", "/usr/local/lib/*/qemu"} {
		modules, err := filepath.Glob(dir + "/accel-*-x86_64.so")
		if err != nil {
			return nil, err
		}
		programs = append(programs, modules...)
	}
	needs, err := jail.Needs(ctx, programs...)
	if err != nil {
		return nil, err
	}
	for _, dir := range firmware {
		if _, err := os.Stat(dir); err == nil {
			needs = append(needs, dir)
		}
	}
	d.needs = needs
	return needs, nil
}

// Fingerprint implements [vm.Driver].
func (d *Driver) Fingerprint(ctx context.Context, spec vm.Spec) (string, error) {
	_, version, err := d.find(ctx)
	if err != nil {
		return "", err
	}
	v, err := d.Verdict(ctx, spec.Kernel)
	if err != nil {
		return "", err
	}
	return d.fingerprint(version, v.accel()), nil
}

// layoutVersion changes whenever the devices of a machine do.
const layoutVersion = "2"

func (d *Driver) fingerprint(version string, a accel) string {
	s := "qemu-" + version + "-" + string(a) + "-layout" + layoutVersion
	if a == kvm {
		s += "-" + vmm.CPUModel() // the guest has seen the host's own processor
	}
	return s
}

// timeStampKHz measures once.
func (d *Driver) timeStampKHz() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tsc == 0 {
		d.tsc = tscKHz()
		if d.tsc == 0 {
			d.tsc = -1
		}
	}
	return d.tsc
}

// Capabilities implements [vm.Driver].
func (d *Driver) Capabilities() vm.Capabilities {
	return vm.Capabilities{Snapshots: true, Pause: true, Process: true}
}

// ProbeNetwork implements [vm.Driver]: a socket is all that QEMU needs for one.
func (d *Driver) ProbeNetwork(context.Context) error { return nil }

// Start implements [vm.Driver].
func (d *Driver) Start(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	if err := d.ready(ctx, &spec); err != nil {
		return nil, err
	}
	v, err := d.Verdict(ctx, spec.Kernel)
	if err != nil {
		return nil, err
	}
	m, err := d.boot(ctx, spec, v.accel())
	if err != nil {
		return nil, err
	}
	return m, nil
}

// boot starts a machine with a given accelerator.
func (d *Driver) boot(ctx context.Context, spec vm.Spec, a accel) (*machine, error) {
	l := layout{ID: spec.ID, Accel: a, CPUs: spec.CPUs, MemoryMiB: spec.MemoryMiB, MAC: spec.MAC}
	l.Memory, l.Shared = spec.Template, spec.Template
	for _, disk := range spec.Disks {
		images, err := chain(disk.Path, disk.Format)
		if err != nil {
			return nil, &vm.Error{Machine: spec.ID, Op: "start", Err: fmt.Errorf("disk %s: %w", disk.ID, err)}
		}
		l.Drives = append(l.Drives, drive{ID: disk.ID, ReadOnly: disk.ReadOnly, Images: images})
	}
	start := launch{open: map[string]string{kernelPath: spec.Kernel}, openings: jail.OpenAll}
	start.args = []string{"-kernel", kernelPath, "-append", cmdline(spec.Cmdline, a, d.timeStampKHz())}
	if spec.Initrd != "" {
		start.open[initrdPath] = spec.Initrd
		start.args = append(start.args, "-initrd", initrdPath)
	}
	return d.launch(ctx, spec, l, start)
}

// ready checks spec and completes it.
func (d *Driver) ready(ctx context.Context, spec *vm.Spec) error {
	if err := vmm.Ready(ctx, spec); err != nil {
		return err
	}
	return d.Probe(ctx)
}

// dialNet connects to the machine's network.
func dialNet(ctx context.Context, path string) (*os.File, error) {
	conn, err := vm.DialUnix(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("the machine's network: %w", err)
	}
	defer conn.Close()
	return conn.File()
}

// listenAgent makes the socket that Dial connects to.
func listenAgent(path string) (*os.File, error) {
	l, err := vm.ListenUnix(path)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.File()
}
