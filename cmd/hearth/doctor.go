package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/git"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/pool"
	"github.com/hearth-ci/hearth/internal/remote"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/drivers"
	"github.com/hearth-ci/hearth/internal/vm/firecracker"
	"github.com/hearth-ci/hearth/internal/vm/jail"
	"github.com/hearth-ci/hearth/internal/vm/qemu"
)

// finding is one thing that the doctor looked at.
type finding struct {
	Name  string `json:"name"`
	State string `json:"state"` // ok, note (works, could be better), fault (machines cannot run)
	Text  string `json:"text"`
	Fix   string `json:"fix,omitempty"` // a command, or a clause
}

const (
	stateOK    = "ok"
	stateNote  = "note"
	stateFault = "fault"
)

// examination is what this machine can do, and why.
type examination struct {
	Usable   bool      `json:"usable"`
	Driver   string    `json:"driver,omitempty"` // that `auto` takes
	KVM      *bool     `json:"kvm,omitempty"`    // nil where there is no kernel yet to find out with
	Findings []finding `json:"findings"`
}

func (e *examination) ok(name, format string, args ...any) {
	e.Findings = append(e.Findings, finding{name, stateOK, fmt.Sprintf(format, args...), ""})
}

func (e *examination) note(name, fix, format string, args ...any) {
	e.Findings = append(e.Findings, finding{name, stateNote, fmt.Sprintf(format, args...), fix})
}

func (e *examination) fault(name, fix, format string, args ...any) {
	e.Usable = false
	e.Findings = append(e.Findings, finding{name, stateFault, fmt.Sprintf(format, args...), fix})
}

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	var server, token string
	c := &cobra.Command{
		Use: "doctor", Short: "Say what this machine can do, why, and how to mend what it cannot", Args: cobra.NoArgs,
		Long: `Say what this machine can do and why, with the command that mends each fault.
Whether KVM works is found out by booting a guest, once; the verdict is kept.

With --server it asks that server, as hearth worker would: whether it answers, speaks
the same version, knows the token, and has the same time.

Exit code: 0 machines can run here, 3 they cannot.`,
		RunE: func(c *cobra.Command, _ []string) error {
			e := a.examine(c.Context())
			if server != "" {
				a.examineServer(c.Context(), e, server, token)
			}
			if c.Context().Err() != nil {
				return &exit{exitCancelled, context.Cause(c.Context())}
			}
			if asJSON {
				enc := board.NewEncoder(a.out)
				enc.SetIndent("", "  ")
				if err := enc.Encode(e); err != nil {
					return err
				}
			} else {
				a.showExamination(e)
			}
			if !e.Usable {
				return &exit{code: exitInfrastructure}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	c.Flags().StringVar(&server, "server", "", "whether a worker here could run jobs of the server at this `URL`, too")
	c.Flags().StringVar(&token, "token-file", a.getenv("HEARTH_TOKEN_FILE"), "`file` with the worker's token")
	return c
}

func (a *app) showExamination(e *examination) {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fixes := 0
	for _, f := range e.Findings {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.State, f.Name, board.Clean(f.Text))
		if f.Fix != "" {
			fixes++
			fmt.Fprintf(w, "\t\t→ %s\n", f.Fix)
		}
	}
	w.Flush()
	switch {
	case !e.Usable:
		fmt.Fprintln(a.out, "\nMachines cannot run here: mend what is marked fault.")
	case fixes > 0:
		fmt.Fprintf(a.out, "\nMachines run here, with %s; the notes say what could be better.\n", e.Driver)
	default:
		fmt.Fprintf(a.out, "\nMachines run here, with %s.\n", e.Driver)
	}
}

// examine looks at everything; a thing that cannot be looked at is a finding too.
func (a *app) examine(ctx context.Context) *examination {
	e := &examination{Usable: true}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		e.fault("system", "run Hearth on Linux on x86-64", "%s on %s: machines are made on Linux on x86-64", runtime.GOOS, runtime.GOARCH)
	} else {
		e.ok("system", "%s", systemName())
	}
	dirs, err := config.FindDirs(a.getenv)
	if err == nil {
		err = dirs.Make()
	}
	if err != nil {
		e.fault("directories", "set HEARTH_HOME to a directory you can write to", "%v", err)
		return e
	}
	kernel := a.examineImage(e, dirs)
	want := a.getenv("HEARTH_DRIVER")
	var d vm.Driver
	set, err := a.drivers(dirs)
	if err == nil {
		d, err = set.Choose(ctx, want, kernel)
		examineQEMU(ctx, e, set.QEMU(), kernel, d == nil || d.Name() == "qemu")
	}
	a.examineWalls(ctx, e)
	if set != nil {
		examineFirecracker(ctx, e, set.Firecracker(kernel))
	}
	if err != nil {
		e.fault("driver", "see the lines above", "none can be used: %v", err)
	} else {
		e.Driver = d.Name()
		why := "it is what works here"
		switch {
		case want != "" && want != drivers.Auto:
			why = "HEARTH_DRIVER says so"
		case d.Name() == "firecracker" && kernel == "":
			why = "a small program runs under KVM; without an image nothing is known of its kernel, and if that does not, machines run on QEMU"
		case d.Name() == "qemu" && e.KVM != nil && !*e.KVM:
			why = "it works without KVM, by emulating the processor; Firecracker does not"
		}
		e.ok("driver", "%s: %s", d.Name(), why)
	}
	a.examineTools(ctx, e)
	examineNamespaces(e)
	examineMemory(e)
	examineDisk(e, dirs)
	return e
}

// examineServer asks a server as a worker would.
func (a *app) examineServer(ctx context.Context, e *examination, server, token string) {
	c, err := connect(server, token, remote.ClientConfig{Log: a.log()})
	if err != nil {
		e.fault("server", "give --server https://HOST and --token-file FILE", "%v", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	asked := time.Now()
	hello, err := c.Hello(ctx)
	if err != nil {
		e.fault("server", "look at what the server's log says", "%s: %v", server, err)
		return
	}
	took := time.Since(asked)
	e.ok("server", "%s answers in %v: hearth %s, protocol %d (ours is %d); the token is that of %s", server, took.Round(time.Millisecond), hello.Version, hello.Protocol,
		remote.Protocol, hello.Worker)
	if d := hello.Time.Sub(asked.Add(took / 2)); d.Abs() > remote.Skew {
		e.fault("clock", "set the clock (timedatectl set-ntp true)", "the server's clock differs by %v: jobs are refused beyond %v", d.Round(time.Second), remote.Skew)
	}
}

func systemName() string {
	name := "Linux"
	if b, err := os.ReadFile("/etc/os-release"); err == nil {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
				name = strings.Trim(v, `"`)
			}
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		name += ", kernel " + strings.TrimSpace(string(b))
	}
	return name
}

// examineImage returns the path of a kernel, if there is one.
func (a *app) examineImage(e *examination, dirs config.Dirs) string {
	if agent := a.getenv("HEARTH_GUEST"); agent == "" {
		if _, err := image.FindAgent(); err != nil {
			e.fault("guest agent", "make build", "%v", err)
		}
	} else if _, err := os.Stat(agent); err != nil {
		e.fault("guest agent", "make build, and unset HEARTH_GUEST", "HEARTH_GUEST: %v", err)
	}
	shelf, err := image.ReadShelf(dirs.Images(), a.getenv("HEARTH_IMAGE"), nil)
	if err != nil {
		e.note("image", "hearth image build", "%v", err)
		return ""
	}
	img, err := image.Open(dirs.Images(), shelf.Default)
	switch {
	case errors.Is(err, image.ErrNotFound):
		e.note("image", "hearth image build", "the default image is not built yet; the first run does it")
		return ""
	case err != nil:
		e.note("image", "hearth image build", "%v; the next run mends it", err)
		return ""
	}
	e.ok("image", "%s %.12s, built %s ago, %s in %s", img.Name, img.ID, board.Short(time.Since(img.Created)), megabytes(img.Size()), dirs.Images())
	if why := img.NoEngine(); why != "" {
		e.note("docker", "hearth image build --refresh", "jobs with containers cannot run: %s", why)
	} else {
		e.ok("docker", "version %s, in the image", img.EngineVersion())
	}
	return img.Kernel
}

// examineQEMU looks at QEMU; needed says that machines cannot run without.
func examineQEMU(ctx context.Context, e *examination, q *qemu.Driver, kernel string, needed bool) {
	if err := q.Probe(ctx); err != nil {
		say := e.note
		if needed {
			say = e.fault
		}
		say("qemu", "apt-get install qemu-system-x86", "%v", err)
		return
	}
	v, _ := q.Version(ctx)
	e.ok("qemu", "version %s", v)
	if kernel == "" {
		why := "undecided: that takes booting a kernel, which comes with the image"
		if _, err := os.Stat("/dev/kvm"); err != nil {
			why = "no: there is no /dev/kvm; machines run by emulation, 6 to 18 times slower where it is the processor that counts"
		}
		e.note("kvm", "hearth image build", "%s", why)
		return
	}
	k, err := q.Verdict(ctx, kernel)
	if err != nil {
		e.note("kvm", "hearth doctor --verbose", "undecided: %v", err)
		return
	}
	e.KVM = &k.KVM
	when := "just now"
	if k.Cached {
		when = fmt.Sprintf("found out %s ago, in %s", board.Short(time.Since(k.Time)), board.Short(k.Took))
	}
	if k.KVM {
		e.ok("kvm", "works: %s (%s)", k.Reason, when)
		return
	}
	fix := "run Hearth on a machine with hardware virtualisation (vmx or svm in /proc/cpuinfo) and access to /dev/kvm"
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); errors.Is(err, os.ErrPermission) {
		fix = "usermod -aG kvm $USER, and log in again"
	} else if err == nil {
		f.Close()
	}
	e.note("kvm", fix, "does not work: %s (%s); machines run by emulation, 6 to 18 times slower where it is the processor that counts", k.Reason, when)
}

// examineWalls makes a jail and says what stands around it.
func (a *app) examineWalls(ctx context.Context, e *examination) {
	p, err := a.jail()
	if err != nil {
		e.fault("walls", "unset HEARTH_JAIL and HEARTH_UID_BASE", "%v", err)
		return
	}
	r := jail.Look(ctx, p)
	if r.Fault != nil {
		e.fault("walls", "", "a jail cannot be made: %v", r.Fault)
		return
	}
	w := r.Walls
	var have []string
	switch {
	case w.UID != os.Geteuid():
		have = append(have, fmt.Sprintf("a user of its own for each machine (%d to %d)", r.UIDBase, r.UIDBase+jail.UIDs-1))
	case w.NewUser:
		have = append(have, "a user namespace")
	}
	if w.Caps == 0 {
		have = append(have, "no capabilities")
	}
	if w.NoNewPrivs {
		have = append(have, "no new privileges")
	}
	if w.Seccomp > 0 {
		have = append(have, "seccomp")
	}
	if w.OwnRoot {
		have = append(have, "a root directory with the monitor alone in it")
	}
	var ns []string
	for _, n := range slices.Sorted(maps.Keys(w.Namespaces)) {
		if w.Namespaces[n] {
			ns = append(ns, n)
		}
	}
	if len(ns) > 0 {
		have = append(have, "namespaces: "+strings.Join(ns, " "))
	}
	switch err := w.Check(); {
	case err == nil:
		e.ok("walls", "around the monitor of each machine (QEMU, Firecracker): %s", strings.Join(have, ", "))
	case p.Require:
		e.fault("walls", jail.Remedy, "%s only; HEARTH_JAIL requires more: %s", strings.Join(have, ", "), oneLine(err))
	default:
		e.note("walls", jail.Remedy, "%s only, for %v: %s; machines run all the same", strings.Join(have, ", "), r.Missing, oneLine(err))
	}
	if r.NoGroup != nil {
		e.note("limits", "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), and as a user start hearth by systemd-run --user --scope -p Delegate=yes",
			"of a monitor: open files, tasks, file sizes, no core dumps; but not its memory, processor and disk: %v", r.NoGroup)
		return
	}
	e.ok("limits", "of a monitor: memory, tasks, processor and disk, by a cgroup in %s; open files, file sizes, no core dumps", r.CGroup)
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func examineFirecracker(ctx context.Context, e *examination, f *firecracker.Driver) {
	bin, err := f.Binary(ctx)
	if err != nil {
		e.note("firecracker", "", "%v", err)
		return
	}
	v, err := f.Version(ctx)
	if err != nil {
		e.note("firecracker", "", "%s: %v", bin, err)
		return
	}
	if err := f.Probe(ctx); err != nil {
		e.note("firecracker", "", "version %s in %s, which cannot be used: %v", v, bin, err)
		return
	}
	by := "behind walls of our own, since there is no jailer beside it or in PATH that could be used"
	if j, err := f.Jailer(ctx); err == nil && j != "" {
		by = "started by its jailer, " + j
	}
	e.ok("firecracker", "version %s in %s, %s", v, bin, by)
}

func (a *app) examineTools(ctx context.Context, e *examination) {
	var tools, packages []string
	for _, m := range image.Missing() {
		tools, packages = append(tools, m.Tool), append(packages, m.Package)
	}
	switch {
	case len(tools) > 0:
		text := "building an image needs " + strings.Join(tools, ", ")
		fix := "apt-get install " + strings.Join(packages, " ")
		if e.has("image") {
			e.note("image tools", fix, "%s; the image that is there works", text)
		} else {
			e.fault("image tools", fix, "%s", text)
		}
	default:
		e.ok("image tools", "mmdebstrap, erofs-utils, e2fsprogs and the rest are there")
	}
	if version, err := git.Version(ctx); err != nil {
		e.fault("git", "apt-get install git", "hearth run reads repositories with git, and there is none")
	} else {
		e.ok("git", "%s", version)
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		e.note("qemu-utils", "apt-get install qemu-utils", "qemu-img is missing; Hearth does without, people looking into disks do not")
	}
}

func (e *examination) has(name string) bool {
	for _, f := range e.Findings {
		if f.Name == name && f.State == stateOK {
			return true
		}
	}
	return false
}

// examineNamespaces looks at what a build without root needs.
func examineNamespaces(e *examination) {
	err := exec.Command("unshare", "--user", "--map-root-user", "true").Run()
	switch {
	case err == nil:
		e.ok("user namespaces", "work")
	case os.Geteuid() == 0:
		e.ok("user namespaces", "do not work here (%v), and root does not need them", err)
	case e.has("image"):
		e.note("user namespaces", "sysctl -w kernel.unprivileged_userns_clone=1", "do not work (%v): images can be built by root only", err)
	default:
		e.fault("user namespaces", "sysctl -w kernel.unprivileged_userns_clone=1, or build as root: sudo hearth image build",
			"do not work (%v), and building an image without root needs them", err)
	}
}

func examineMemory(e *examination) {
	m := pool.HostMeans()
	var si syscall.Sysinfo_t
	if err := syscall.Sysinfo(&si); err != nil {
		e.note("memory", "", "%v", err)
		return
	}
	total := uint64(si.Totalram) * uint64(si.Unit) >> 20
	available := total
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &available); err == nil {
				available >>= 10
				break
			}
		}
	}
	text := fmt.Sprintf("%d MiB, %d of them free; %d CPUs; machines may have %d MiB and %d CPUs together: %d of the default size", total, available,
		runtime.NumCPU(),
		m.MemoryMiB, m.CPUs, min(m.MemoryMiB/1024, m.CPUs/2))
	switch {
	case m.MemoryMiB < 1024:
		e.fault("memory", "use --memory 512, or a bigger machine", "%s", text)
	case available < 1024:
		e.note("memory", "end what uses it", "%s", text)
	default:
		e.ok("memory", "%s", text)
	}
}

// What the doctor wants to see free: a build takes about 2 GB, a machine's disk
// grows with what a job writes.
const (
	buildSpace = 3 << 30
	leastSpace = 1 << 30
)

func examineDisk(e *examination, dirs config.Dirs) {
	for _, d := range []struct{ name, path string }{{"disk for images", dirs.Cache}, {"disk for records", dirs.State}, {"disk for machines", dirs.Run}} {
		var st syscall.Statfs_t
		if err := syscall.Statfs(d.path, &st); err != nil {
			e.fault(d.name, "set HEARTH_HOME to a directory that works", "%s: %v", d.path, err)
			continue
		}
		free := int64(st.Bavail) * st.Bsize
		text := fmt.Sprintf("%.1f GB free in %s", float64(free)/1e9, d.path)
		switch {
		case free < leastSpace:
			e.fault(d.name, "free some, or set HEARTH_HOME to a bigger disk; hearth image rm removes images", "%s", text)
		case free < buildSpace:
			e.note(d.name, "free some, or set HEARTH_HOME to a bigger disk", "%s: little for building an image, or for jobs that write much", text)
		default:
			e.ok(d.name, "%s", text)
		}
	}
}
