// Package firecracker drives Firecracker, which needs hardware virtualisation
// (KVM) and gives machines that start, and above all resume, in the shortest
// time.
//
// # Order of calls
//
// One Firecracker process is one machine; it is told what to be over HTTP on a
// unix socket (api.go). Booting: machine-config → boot-source → drives →
// network-interfaces → vsock → entropy → InstanceStart. Restoring:
// snapshot/load → resume. Versions below 1.12 are refused; what newer ones
// added is sent only to those that say they know it. Whatever Firecracker
// refuses comes back as a [*Fault] with its own words, and every error about a
// machine carries the end of its log and console. The log is set up by the
// command line, which is earlier than the API could, and goes through a pipe
// that keeps only its end. Metrics stay off: nobody reads them, and so nothing
// has to bound them.
//
// # Processes and files
//
// Firecracker runs in a jail: its own jailer's where hearth is root and the
// jailer is there (a user for each machine, a root directory, the namespaces and
// the cgroup that package jail puts around it), and package jail's otherwise. Either
// way it sees no file of the host's. What it opens (kernel, disks, snapshots,
// devices), by names that mean nothing else, it gets from us, open; so a snapshot,
// which carries the names of its machine, fits every clone. Its sockets are in a
// directory that it may write to, and that is not trusted. Like QEMU it is started
// from a goroutine that keeps its operating system thread until Firecracker has
// ended, with that thread's death arranged to kill it: however hearth ends, no
// Firecracker stays. The jailer loses that signal; so it has a process above it,
// process 1 of its namespace, with which everything in there dies.
//
// # The agent
//
// A vsock device, on the host a unix socket: "CONNECT 1024\n", "OK n\n", and the
// stream is the agent's (vsock.go). While the guest boots, and once after a
// restore, that fails or the stream ends at once: whoever dials tries until a
// whole exchange has succeeded. A snapshot ends open streams, of the machine
// that goes on as well; the agent's listener survives in both.
//
// # Disks
//
// Firecracker knows raw images only, and does not show a disk's ID to the
// guest. So a command line's hearth.base=ID and the like are rewritten to the
// names that the disks will have (vda, vdb, …). A clone gets a sparse copy of
// each writable disk, or shared blocks where the file system can.
//
// # Network
//
// The thread that starts Firecracker first moves to a network namespace of its
// own, in which there is a tap for Firecracker, a second one whose file we
// hold, and a bridge between them, which does in the kernel what the guest
// leaves to its network card: checksums and segmentation. Nothing in there has
// an address, and nothing leads out but our file, whose frames go over
// Spec.Net (tap.go). This takes CAP_NET_ADMIN and CAP_SYS_ADMIN; without them a
// machine with a network is refused.
//
// # KVM or not
//
// As with QEMU: that /dev/kvm opens says little. The verdict is a probe's, which
// boots a kernel until it looks for a root and finds none (kvm.go, and package vmm, which keeps
// verdicts).
//
// # What is not here
//
// Balloon, rate limiters and metadata service are not used; without a metadata
// service there is no such address to block.
package firecracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/jail"
	"github.com/hearth-ci/hearth/internal/vm/vmm"
)

// Config says how a [Driver] works. The zero value is usable.
type Config struct {
	// Binary is Firecracker's path, or a name to look for in PATH. If empty:
	// $HEARTH_FIRECRACKER, then "firecracker" in PATH, then what `make firecracker`
	// left in CacheDir.
	Binary string

	// CacheDir is where the verdict on KVM is kept, and below which a fetched
	// Firecracker is looked for; "" is neither.
	CacheDir string

	// Kernel is a kernel for [Driver.Probe] to boot; "" lets it find out less.
	Kernel string

	// ProbeTimeout bounds the boot that decides whether KVM works; 15 s if 0.
	ProbeTimeout time.Duration

	// Jail is what stands around each Firecracker.
	Jail jail.Policy

	// Jailer is the path of Firecracker's jailer, or a name to look for in PATH.
	// If empty: $HEARTH_JAILER, then "jailer" beside Firecracker or in PATH. "none"
	// does without, behind walls of our own.
	Jailer string

	// Log hears what was decided and why; nil discards.
	Log *slog.Logger
}

// FetchedVersion is the one that `make firecracker` puts into the cache.
const FetchedVersion = "1.12.1"

// Driver starts Firecracker machines. It implements [vm.Driver].
type Driver struct {
	cfg Config
	log *slog.Logger
	kvm *vmm.KVM

	mu      sync.Mutex
	binary  string // absolute, once found
	version version

	// For tests: programs that a stand-in needs to see, and a file that it writes.
	also []string
	open map[string]string
}

var _ vm.Driver = (*Driver)(nil)

// New returns a driver. It looks at nothing yet: see [Driver.Probe].
func New(cfg Config) *Driver {
	if cfg.ProbeTimeout == 0 {
		cfg.ProbeTimeout = 15 * time.Second
	}
	d := &Driver{cfg: cfg, log: cfg.Log}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.kvm = vmm.NewKVM(cfg.CacheDir, "firecracker-kvm-", d.log)
	return d
}

// Name is "firecracker".
func (d *Driver) Name() string { return "firecracker" }

// Probe finds Firecracker, checks its version, and boots something under KVM.
// With Config.Kernel that is this kernel, and the answer is final; without, a
// program of fifty bytes, which tells at once whether there is any use in
// trying. Start asks again, with its own kernel.
func (d *Driver) Probe(ctx context.Context) error {
	if _, _, err := d.find(ctx); err != nil {
		return err
	}
	if err := d.cfg.Jail.Available(); err != nil {
		return err
	}
	v, err := d.Verdict(ctx, d.cfg.Kernel)
	if err != nil {
		return err
	}
	return v.err()
}

// Version returns Firecracker's version, as "1.12.1".
func (d *Driver) Version(ctx context.Context) (string, error) {
	_, v, err := d.find(ctx)
	if err != nil {
		return "", err
	}
	return v.String(), nil
}

// Binary returns Firecracker's path.
func (d *Driver) Binary(ctx context.Context) (string, error) {
	b, _, err := d.find(ctx)
	return b, err
}

// ErrNotInstalled says that there is no Firecracker on this host.
var ErrNotInstalled = errors.New("firecracker is not installed: put a release of https://github.com/firecracker-microvm/firecracker/releases " +
	"into PATH, name it in HEARTH_FIRECRACKER, or run `make firecracker`")

// lookPath returns the path of the binary.
func (d *Driver) lookPath() (string, error) {
	name, from := d.cfg.Binary, "the configuration"
	if name == "" {
		name, from = os.Getenv("HEARTH_FIRECRACKER"), "HEARTH_FIRECRACKER"
	}
	if name != "" {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("firecracker %q, which %s names: %w", name, from, err)
		}
		return filepath.Abs(path)
	}
	if path, err := exec.LookPath("firecracker"); err == nil {
		return filepath.Abs(path)
	}
	if d.cfg.CacheDir != "" {
		path := filepath.Join(d.cfg.CacheDir, "firecracker", FetchedVersion, "firecracker")
		if path, err := exec.LookPath(path); err == nil {
			return filepath.Abs(path)
		}
	}
	return "", ErrNotInstalled
}

// jailer returns the path of the jailer, or "" where it cannot be used: it takes
// root and the namespaces that package jail makes around it.
func (d *Driver) jailer() string {
	if !jail.Privileged() {
		return ""
	}
	name := d.cfg.Jailer
	if name == "" {
		name = os.Getenv("HEARTH_JAILER")
	}
	if name == "none" {
		return ""
	}
	d.mu.Lock()
	beside := filepath.Join(filepath.Dir(d.binary), "jailer")
	d.mu.Unlock()
	for _, n := range []string{name, beside, "jailer"} {
		if path, err := exec.LookPath(n); err == nil {
			if path, err = filepath.Abs(path); err == nil {
				return path
			}
		}
	}
	return ""
}

// Jailer returns the path of the jailer that machines are started by; "" says that
// the walls are package jail's.
func (d *Driver) Jailer(ctx context.Context) (string, error) {
	if _, _, err := d.find(ctx); err != nil {
		return "", err
	}
	return d.jailer(), nil
}

func (d *Driver) find(ctx context.Context) (binary string, v version, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.binary != "" {
		return d.binary, d.version, nil
	}
	path, err := d.lookPath()
	if err != nil {
		return "", version{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return "", version{}, fmt.Errorf("%s --version: %w: %s", path, err, vm.LastLines(string(out), 3))
	}
	if v, err = parseVersion(string(out)); err != nil {
		return "", version{}, fmt.Errorf("%s --version: %w", path, err)
	}
	if v.before(1, 12) {
		// Network overrides at a restore are what older ones lack.
		return "", version{}, fmt.Errorf("%s is Firecracker %s: at least 1.12 is needed; see https://github.com/firecracker-microvm/firecracker/releases", path, v)
	}
	d.binary, d.version = path, v
	return path, v, nil
}

// version is Firecracker's.
type version struct{ major, minor, patch int }

var versionText = regexp.MustCompile(`\bv?(\d{1,4})\.(\d{1,4})\.(\d{1,4})`)

// parseVersion finds the version in "Firecracker v1.12.1" or "1.17.0-dev".
func parseVersion(s string) (version, error) {
	m := versionText.FindStringSubmatch(s)
	if m == nil {
		return version{}, fmt.Errorf("no version in %q", vm.LastLines(s, 1))
	}
	var v version
	v.major, _ = strconv.Atoi(m[1])
	v.minor, _ = strconv.Atoi(m[2])
	v.patch, _ = strconv.Atoi(m[3])
	return v, nil
}

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.patch) }

func (v version) before(major, minor int) bool {
	return v.major < major || v.major == major && v.minor < minor
}

// Fingerprint implements [vm.Driver].
func (d *Driver) Fingerprint(ctx context.Context, _ vm.Spec) (string, error) {
	_, v, err := d.find(ctx)
	if err != nil {
		return "", err
	}
	return fingerprint(v), nil
}

// layoutVersion changes whenever the devices of a machine do.
const layoutVersion = "1"

// fingerprint names what a snapshot is bound to: the state's format belongs to
// Firecracker, what is in it to the processor and to the host's KVM.
func fingerprint(v version) string {
	return strings.Join([]string{"firecracker-" + v.String(), vmm.CPUModel(), "linux-" + hostKernel(), "layout" + layoutVersion}, "-")
}

func hostKernel() string {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(b))
}

// maxCPUs is how many processors Firecracker gives a machine.
const maxCPUs = 32

// ready checks spec and completes it.
func (d *Driver) ready(ctx context.Context, spec *vm.Spec) error {
	if spec.CPUs > maxCPUs {
		return fmt.Errorf("machine %s: %d CPUs: Firecracker gives a machine %d at most", spec.ID, spec.CPUs, maxCPUs)
	}
	for _, disk := range spec.Disks {
		if disk.Format == "qcow2" {
			return fmt.Errorf("machine %s: disk %s: Firecracker takes raw images only, not qcow2", spec.ID, disk.ID)
		}
	}
	return vmm.Ready(ctx, spec)
}

// Capabilities implements [vm.Driver].
func (d *Driver) Capabilities() vm.Capabilities {
	return vm.Capabilities{Snapshots: true, Pause: true, Process: true}
}

// Start implements [vm.Driver].
func (d *Driver) Start(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	if err := d.ready(ctx, &spec); err != nil {
		return nil, err
	}
	if _, _, err := d.find(ctx); err != nil {
		return nil, err
	}
	v, err := d.Verdict(ctx, spec.Kernel)
	if err == nil {
		err = v.err()
	}
	if err != nil {
		return nil, &vm.Error{Machine: spec.ID, Op: "start", Err: err}
	}
	m, err := d.boot(ctx, spec)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// boot starts a machine without asking whether KVM works.
func (d *Driver) boot(ctx context.Context, spec vm.Spec) (*machine, error) {
	open := map[string]string{kernelPath: spec.Kernel}
	if spec.Initrd != "" {
		open[initrdPath] = spec.Initrd
	}
	return d.launch(ctx, spec, "start", open, (*machine).configure)
}

// diskName is what Firecracker calls a disk's file; it is in its snapshots.
func diskName(id string) string { return "disk-" + id }

// guestCID is every guest's address on its vsock; the host's is 2.
const guestCID = 3

// configure tells a fresh Firecracker what to be, and starts it.
func (m *machine) configure(ctx context.Context) error {
	type request struct {
		path string
		body any
	}
	s := &m.Spec
	boot := apiBootSource{KernelImagePath: kernelPath, BootArgs: bootArgs(s.Cmdline, s.Disks)}
	if s.Initrd != "" {
		boot.InitrdPath = initrdPath
	}
	requests := []request{
		{"/machine-config", apiMachineConfig{VCPUCount: s.CPUs, MemSizeMiB: s.MemoryMiB}},
		{"/boot-source", boot},
	}
	for i, disk := range s.Disks {
		// Not the disk's own ID: Firecracker's may hold no hyphen.
		id := "disk" + strconv.Itoa(i)
		requests = append(requests, request{"/drives/" + id, apiDrive{
			DriveID: id, PathOnHost: diskName(disk.ID), IsReadOnly: disk.ReadOnly,
			// What a job writes need not survive the host. The asynchronous engine is
			// a preview.
			CacheType: "Unsafe", IOEngine: "Sync",
		}})
	}
	if s.Net != "" {
		requests = append(requests, request{"/network-interfaces/" + ifaceID, apiNetworkInterface{IfaceID: ifaceID, HostDevName: tapName, GuestMAC: s.MAC}})
	}
	requests = append(requests,
		request{"/vsock", apiVsock{GuestCID: guestCID, UDSPath: vsockName}},
		request{"/entropy", apiEntropy{}},
		request{"/actions", apiAction{ActionType: "InstanceStart"}},
	)
	for _, r := range requests {
		if err := m.api.call(ctx, "PUT", r.path, r.body, nil); err != nil {
			return err
		}
	}
	return nil
}

// ifaceID names the network device to Firecracker.
const ifaceID = "eth0"

// diskArgs are the agent's arguments that name disks: see package boot.
var diskArgs = []string{"hearth.base", "hearth.tools", "hearth.modules", "hearth.engine", "hearth.toolcache", "hearth.scratch"}

// bootArgs completes the guest kernel's command line with what Firecracker's
// devices need, replacing Firecracker's own default, which forbids modules. What
// the caller has set stays.
func bootArgs(given string, disks []vm.Disk) string {
	words := strings.Fields(given)
	for i, w := range words {
		key, id, _ := strings.Cut(w, "=")
		if !slices.Contains(diskArgs, key) {
			continue
		}
		for n, disk := range disks {
			if disk.ID == id {
				words[i] = key + "=" + deviceName(n)
			}
		}
	}
	for _, w := range []string{
		"console=ttyS0",
		"reboot=k", // a reset by the keyboard controller is how a machine ends
		"panic=-1",
		"pci=off", // there is none to look for
		// The keyboard controller can nothing but reset.
		"i8042.noaux", "i8042.nomux", "i8042.dumbkbd",
	} {
		key, _, valued := strings.Cut(w, "=")
		if valued {
			key += "="
		}
		has := false
		for _, g := range words {
			has = has || g == w || valued && strings.HasPrefix(g, key)
		}
		if !has {
			words = append(words, w)
		}
	}
	return strings.Join(words, " ")
}

// deviceName is what Linux calls the virtio disk number n.
func deviceName(n int) string {
	s := ""
	for n++; n > 0; n = (n - 1) / 26 {
		s = string(rune('a'+(n-1)%26)) + s
	}
	return "vd" + s
}

// makeFIFO makes a named pipe and opens it so that neither side ever waits for
// the other to open its end.
func makeFIFO(path string) (*os.File, error) {
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
}
