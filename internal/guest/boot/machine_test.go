package boot_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/qemu"
)

// boot starts a machine that lives in its initramfs, with the agent as it is in the tree.
func boot(t *testing.T, cmdline string) (vm.Machine, *guest.Client) {
	t.Helper()
	driver := qemu.New(qemu.Config{Accel: "tcg"})
	if err := driver.Probe(t.Context()); err != nil {
		t.Skipf("SKIPPED, NO MACHINE WAS BOOTED: %v", err)
	}
	agent := filepath.Join(t.TempDir(), "hearth-guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", agent, "../../../cmd/hearth-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if st, err := os.Stat(agent); err != nil || st.Size() > 6<<20 {
		t.Errorf("the agent has %d bytes; it is in the memory of every machine", st.Size())
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.Boot(t.Context(), image.Options{Dir: filepath.Join(cache, "hearth", "images"), Agent: agent})
	if err != nil {
		if missing, ok := errors.AsType[*image.MissingToolError](err); ok {
			t.Skipf("SKIPPED, NO MACHINE WAS BOOTED: %v", missing)
		}
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "hearth-boot-")
	if err != nil {
		t.Fatal(err)
	}
	var console bytes.Buffer
	m, err := driver.Start(t.Context(), vm.Spec{
		ID: "boot-test", Kernel: img.Kernel, Initrd: img.Initrd, Cmdline: "quiet " + cmdline,
		CPUs: 1, MemoryMiB: 256, Dir: dir, Console: &console, DeleteBy: time.Now().Add(10 * time.Minute),
	})
	if err != nil {
		os.RemoveAll(dir)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Close(context.Background())
		if t.Failed() {
			t.Logf("console:\n%s", console.String())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := guest.Connect(ctx, m.Dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return m, c
}

// One machine for everything that needs one: booting is what costs.
func TestMachine(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED, NO MACHINE WAS BOOTED: -short")
	}
	m, c := boot(t, "hearth.host=first")
	ctx := t.Context()
	if h := c.Hello(); h.PID != 1 || h.Hostname != "first" || h.CPUs != 1 || h.Kernel == "" || h.BootID == "" {
		t.Errorf("%+v", h)
	}
	// /init is the only program there is.
	version := func(c *guest.Client) {
		t.Helper()
		var out bytes.Buffer
		exit, err := c.Exec(ctx, guest.Cmd{Argv: []string{"/proc/1/exe", "version"}, Stdout: &out, Timeout: time.Minute})
		if err != nil || !exit.OK() || !strings.HasPrefix(out.String(), "hearth-guest ") {
			t.Fatalf("%v %v %q", exit, err, out.String())
		}
	}
	version(c)
	if _, err := c.Exec(ctx, guest.Cmd{Argv: []string{"/bin/sh"}}); !guest.StartFailed(err) {
		t.Error(err)
	}
	exit, err := c.Exec(ctx, guest.Cmd{Argv: []string{"/proc/1/exe", "serve", "--unix", "/tmp/s"}, Timeout: 200 * time.Millisecond})
	if err != nil || !exit.TimedOut {
		t.Error("a timeout, kept by the guest's clock:", exit, err)
	}

	want := bytes.Repeat([]byte("Hearth\x00\xff\n"), 100_000)
	if err := c.WriteFile(ctx, "/tmp/a file", want, 0o600, "root"); err != nil {
		t.Fatal(err)
	}
	if got, err := c.ReadFile(ctx, "/tmp/a file", int64(len(want))); err != nil || !bytes.Equal(got, want) {
		t.Error(len(got), err)
	}

	now := time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)
	id := guest.Identity{
		Hostname: "second", Time: now, Entropy: bytes.Repeat([]byte{7}, 64),
		MachineID: strings.Repeat("0af", 10) + "00", BootID: "11111111-2222-3333-4444-555555555555",
	}
	for range 2 { // a clone of a clone
		if err := c.Resume(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"/proc/sys/kernel/hostname":       id.Hostname,
		"/etc/hostname":                   id.Hostname,
		"/etc/machine-id":                 id.MachineID,
		"/proc/sys/kernel/random/boot_id": id.BootID,
	} {
		if b, err := c.ReadFile(ctx, path, 1000); err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s: %q %v", path, b, err)
		}
	}
	if err := c.WriteFile(ctx, "/tmp/now", nil, 0o600, "root"); err != nil {
		t.Error(err)
	}
	if st, err := c.Stat(ctx, "/tmp/now"); err != nil || st.ModTime.Sub(now).Abs() > time.Minute {
		t.Errorf("the clock: %v %v", st.ModTime, err)
	}
	if err := c.Resume(ctx, guest.Identity{Hostname: "no host name", IP: "10.0.2.15/24"}); err == nil || !strings.Contains(err.Error(), "host name") ||
		!strings.Contains(err.Error(), "network") {
		t.Error(err)
	}

	// Hosts come and go: an orderly one, and one that dies in the middle of an exec.
	c.Close()
	again := func() *guest.Client {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		c, err := guest.Connect(ctx, m.Dial)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c = again()
	if h := c.Hello(); h.Hostname != "second" || h.BootID != id.BootID {
		t.Errorf("%+v", h)
	}
	version(c)
	p, err := c.Start(ctx, guest.Cmd{Argv: []string{"/proc/1/exe", "serve", "--unix", "/tmp/s2"}})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := p.Wait(); !errors.Is(err, guest.ErrLost) {
		t.Error(err)
	}
	c = again()
	version(c)
	u, err := c.Usage(ctx)
	if err != nil || u.MemTotal < 128<<20 || u.AgentMemory <= 0 || u.AgentMemory > 16<<20 {
		t.Errorf("%+v %v", u, err)
	}

	if err := c.Poweroff(ctx); err != nil {
		t.Error(err)
	}
	if err := m.Wait(); err != nil {
		t.Error(err)
	}
}
