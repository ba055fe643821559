package qemu_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/qemu"
	"github.com/hearth-ci/hearth/internal/vm/vmtest"
)

// kit is a kernel, and an initrd with the agent and the suite's tool.
func kit(t *testing.T) (kernel, initrd, tool string) {
	t.Helper()
	if dir := os.Getenv(kitVariable); dir != "" {
		return filepath.Join(dir, "kernel"), filepath.Join(dir, "initrd"), "/tool"
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("SKIPPED, NOT PASSED: qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
	}
	agent := filepath.Join(t.TempDir(), "hearth-guest")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "github.com/hearth-ci/hearth/cmd/hearth-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, msg)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	// Kept between runs: the kernel package is 27 MB.
	img, err := image.Boot(ctx, image.Options{Dir: filepath.Join(cache, "hearth-test", "images"), Agent: agent})
	if err != nil {
		t.Skipf("SKIPPED, NOT PASSED: no kernel to boot: %v", err)
	}
	// The kernel takes several archives one after the other.
	first, err := os.ReadFile(img.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(vmtest.BuildTool(t))
	if err != nil {
		t.Fatal(err)
	}
	initrd = filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, append(first, qemu.Archive("tool", program)...), 0o600); err != nil {
		t.Fatal(err)
	}
	return img.Kernel, initrd, "/tool"
}

// kitVariable names a directory with a kit, where the tests run as somebody who
// could not make one.
const kitVariable = "HEARTH_QEMU_KIT"

// TestUnprivileged runs the suite as somebody who is not root: machines live, are
// cloned, and have the same walls around them.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the whole suite already runs without root")
	}
	kernel, initrd, _ := kit(t)
	dir, err := os.MkdirTemp("", "hearth-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for name, from := range map[string]string{"test": "/proc/self/exe", "kernel": kernel, "initrd": initrd} {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	const nobody = 65534
	home := filepath.Join(dir, "home")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(home, 0o700), os.Chown(home, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "test"), "-test.v", "-test.run=^TestConformance$/^(Life|Template)$/^(Clones|Rewind)?$")
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home, kitVariable + "=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	switch {
	case err != nil:
		t.Errorf("as nobody: %v", err)
	case strings.Contains(string(out), "this host allows no jail"):
		t.Skip("SKIPPED, NOT PASSED: this host has no user namespaces for everybody")
	case !strings.Contains(string(out), "PASS: TestConformance/Life") || !strings.Contains(string(out), "PASS: TestConformance/Template/Clones"):
		t.Error("the tests did not run")
	}
}

func TestConformance(t *testing.T) {
	kernel, initrd, tool := kit(t)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	d := qemu.New(qemu.Config{CacheDir: filepath.Join(cache, "hearth-test")})
	v, err := d.Verdict(t.Context(), kernel)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(v)
	vmtest.Run(t, vmtest.Suite{
		Driver:    d,
		Spec:      vm.Spec{Kernel: kernel, Initrd: initrd, Cmdline: "quiet", CPUs: 1, MemoryMiB: 256},
		DiskImage: disk,
		Tool:      tool,
		Disk:      func(vm.Machine) string { return "/dev/vda" },
		Memory:    func(vm.Machine) string { return "/run/note" },
	})
}

// TestProbeProgram boots the guest that decides about KVM, under emulation.
func TestProbeProgram(t *testing.T) {
	kernel, _, _ := kit(t)
	dir := t.TempDir()
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, qemu.ProbeInitrd(), 0o600); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, "m")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	m, err := qemu.New(qemu.Config{Accel: "tcg"}).Start(t.Context(), vm.Spec{
		ID: "probe", Kernel: kernel, Initrd: initrd, Cmdline: "quiet", CPUs: 1, MemoryMiB: 256, Dir: run, Console: &out,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close(context.Background())
	if err := m.Wait(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(out.String(), qemu.ProbeWord) {
		t.Errorf("the guest printed %q", out.String())
	}
}

// TestErrorsCarryTheTail starts what QEMU or the guest refuses.
func TestErrorsCarryTheTail(t *testing.T) {
	kernel, _, _ := kit(t)
	d := qemu.New(qemu.Config{Accel: "tcg"})
	start := func(change func(*vm.Spec)) (vm.Machine, error) {
		dir := filepath.Join(t.TempDir(), "m")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s := vm.Spec{ID: "tail", Kernel: kernel, Cmdline: "quiet", CPUs: 1, MemoryMiB: 128, Dir: dir}
		change(&s)
		return d.Start(t.Context(), s)
	}
	notQcow := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(notQcow, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := start(func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "d", Path: notQcow, Format: "qcow2"}} }); err == nil ||
		!strings.Contains(err.Error(), "not in qcow2 format") {
		t.Errorf("a disk that QEMU refuses: %v", err)
	}
	// A kernel without anything to run panics, and that is no power-off.
	m, err := start(func(*vm.Spec) {})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close(context.Background())
	if err := m.Wait(); err == nil || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("a kernel that panicked: %v", err)
	}
}

// TestHostDiskFull lets a machine's disk outgrow what the host has.
func TestHostDiskFull(t *testing.T) {
	kernel, initrd, tool := kit(t)
	small := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("hearth-test", small, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("SKIPPED, NOT PASSED: a small file system takes root: %v", err)
	}
	defer syscall.Unmount(small, 0)
	disk := filepath.Join(small, "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "m")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := qemu.New(qemu.Config{Accel: "tcg"}).Start(t.Context(), vm.Spec{
		ID: "full", Kernel: kernel, Initrd: initrd, Cmdline: "quiet", CPUs: 1, MemoryMiB: 256, Dir: dir,
		Disks: []vm.Disk{{ID: "scratch", Path: disk}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close(context.Background())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := guest.Connect(ctx, m.Dial)
	if err != nil {
		t.Fatal(vm.Explain(m, "connect", err))
	}
	defer c.Close()
	x, err := c.Exec(ctx, guest.Cmd{Argv: []string{tool, "fill", "/dev/vda", "32"}, User: "root", Dir: "/"})
	if err == nil {
		t.Errorf("the command has a result: %v", x)
	}
	if err := m.Wait(); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "host's disk is full") {
		t.Errorf("Wait: %v", err)
	}
}

// TestOwnerKilled kills a process that owns a machine in the way that leaves it
// no time to do anything.
func TestOwnerKilled(t *testing.T) {
	if dir := os.Getenv("HEARTH_TEST_OWN"); dir != "" {
		own(dir)
		return
	}
	kernel, initrd, _ := kit(t)
	dir := filepath.Join(t.TempDir(), "machines", "owned")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestOwnerKilled$")
	cmd.Env = append(os.Environ(), "HEARTH_TEST_OWN="+dir, "HEARTH_TEST_KERNEL="+kernel, "HEARTH_TEST_INITRD="+initrd)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	r, err := vm.ReadRecord(dir)
	if err != nil || !r.VMM.Alive() || r.Owner.Pid != cmd.Process.Pid {
		t.Fatalf("record: %+v, %v", r, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	deadline := time.Now().Add(20 * time.Second)
	for r.VMM.Alive() {
		if time.Now().After(deadline) {
			t.Fatalf("QEMU, process %d, has outlived its owner", r.VMM.Pid)
		}
		time.Sleep(time.Millisecond) // it is no child of ours: nothing tells
	}
	reaped, err := vm.Reap(t.Context(), filepath.Dir(dir), 0)
	if err != nil || len(reaped) != 1 {
		t.Errorf("Reap: %+v, %v", reaped, err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the machine's directory is left")
	}
}

// own starts a machine and waits to be killed.
func own(dir string) {
	m, err := qemu.New(qemu.Config{Accel: "tcg"}).Start(context.Background(), vm.Spec{
		ID: "owned", Kernel: os.Getenv("HEARTH_TEST_KERNEL"), Initrd: os.Getenv("HEARTH_TEST_INITRD"), CPUs: 1, MemoryMiB: 128, Dir: dir,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	m.Wait()
}
