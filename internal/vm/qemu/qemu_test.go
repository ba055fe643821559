package qemu_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/qemu"
	"github.com/hearth-ci/hearth/internal/vm/vmtest"
)

// kit is a kernel, and an initrd with the agent and the suite's tool.
func kit(t *testing.T) (kernel, initrd, tool string) {
	t.Helper()
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
