package jail_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image/imagetest"
	"github.com/hearth-ci/hearth/internal/vm/firecracker/nested"
)

// TestNested runs the attacks in a machine whose kernel has cgroup v2 with all its
// controllers, which the hosts that tests run on often have not.
func TestNested(t *testing.T) {
	if os.Getenv(againVariable) == nestedMachine {
		if err := syscall.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil && !errors.Is(err, syscall.EBUSY) {
			t.Fatal(err)
		}
		return
	}
	if os.Getenv(againVariable) != "" {
		return
	}
	if os.Getenv("HEARTH_SLOW") == "" {
		t.Skip("SKIPPED, NOT PASSED: set HEARTH_SLOW=1 to boot a machine for the attacks on its limits; that limits are set is seen by TestFirecracker")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("SKIPPED, NOT PASSED: qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	test := filepath.Join(t.TempDir(), "test")
	cmd := exec.Command("go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", test, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the tests: %v\n%s", err, msg)
	}
	m, err := nested.Start(t.Context(), nested.Config{
		Image: imagetest.Boot(t, imagetest.Agent(t)), CacheDir: filepath.Join(cache, "hearth-test"), Files: map[string]string{"/kit/test": test},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close(context.Background())
	var out bytes.Buffer
	x, err := m.Exec(t.Context(), guest.Cmd{
		Argv: []string{"/kit/test", "-test.v", "-test.run=^(TestNested|TestAttackFromInside|TestAttackShared.*|TestAttackThreads|TestAttackMemory|TestWalls)$",
			"-test.timeout=5m"},
		Env: []string{againVariable + "=" + nestedMachine, "PATH=/usr/bin:/bin"}, Dir: "/", User: "root", Stdout: &out, Stderr: &out,
	})
	t.Logf("%s", out.String())
	if err != nil || !x.OK() || strings.Contains(out.String(), "--- SKIP") {
		t.Errorf("in the nested machine: %v, %v", x, err)
	}
}
