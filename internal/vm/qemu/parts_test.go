package qemu

import (
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/vm"
)

func TestOverlay(t *testing.T) {
	img, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("SKIPPED, NOT PASSED: qemu-img is not installed: apt-get install qemu-utils")
	}
	for _, size := range []int64{1 << 20, 512 << 20, 8<<30 + 512, 3 << 40} {
		dir := t.TempDir()
		base := filepath.Join(dir, "a base, with a comma.raw")
		if err := os.WriteFile(base, []byte("at the beginning"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(base, size); err != nil {
			t.Fatal(err)
		}
		first, second := filepath.Join(dir, "first.qcow2"), filepath.Join(dir, "second.qcow2")
		if err := createOverlay(first, base, "raw"); err != nil {
			t.Fatal(err)
		}
		if err := createOverlay(second, first, "qcow2"); err != nil {
			t.Fatal(err)
		}
		for _, o := range []string{first, second} {
			if out, err := exec.Command(img, "check", o).CombinedOutput(); err != nil {
				t.Errorf("%d bytes: check: %v\n%s", size, err, out)
			}
		}
		out, err := exec.Command(img, "info", "--output=json", second).Output()
		if err != nil {
			t.Fatal(err)
		}
		var info struct {
			Size    int64  `json:"virtual-size"`
			Backing string `json:"backing-filename"`
			Format  string `json:"backing-filename-format"`
		}
		if err := json.Unmarshal(out, &info); err != nil || info.Size != size || info.Backing != first || info.Format != "qcow2" {
			t.Errorf("%d bytes: %+v, %v", size, info, err)
		}
		if n, err := virtualSize(second, "qcow2"); err != nil || n != size {
			t.Errorf("virtual size %d, %v, want %d", n, err, size)
		}
		if size > 1<<30 {
			continue
		}
		flat := filepath.Join(dir, "flat")
		if out, err := exec.Command(img, "convert", "-O", "raw", second, flat).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		f, err := os.Open(flat)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 16)
		f.Read(b)
		f.Close()
		if string(b) != "at the beginning" {
			t.Errorf("through two overlays: %q", b)
		}
	}
	if err := createOverlay(filepath.Join(t.TempDir(), "x"), "/dev/null/no", "raw"); err == nil {
		t.Error("overlay of nothing succeeds")
	}
}

func TestArgs(t *testing.T) {
	l := layout{
		ID: "m1", Accel: tcg, CPUs: 2, MemoryMiB: 512, Memory: true,
		Drives: []drive{
			{ID: "base", ReadOnly: true, Images: []image{{Path: "/x/base", Format: "raw", fd: 7}}},
			{ID: "scratch", Images: []image{{Path: "/s", Format: "qcow2", fd: 8}, {Path: "/t", Format: "qcow2", fd: 9}}},
		},
	}
	s := strings.Join(l.args(), "\n")
	for _, want := range []string{
		"-name\nhearth-m1\n", "-accel\ntcg\n", "share=off", "mem-path=/jail/memory,", "-smp\n2\n",
		`"filename":"/dev/fdset/7","read-only":true`, "fd=9,set=9", `"backing":{"backing":null,"discard":"unmap","driver":"qcow2"`, `"read-only":true`,
		"drive=scratch-disk,serial=scratch", "spawn=deny",
	} {
		if !strings.Contains(s+"\n", want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
	if strings.Contains(s, "net") {
		t.Errorf("a network nobody asked for:\n%s", s)
	}
	l.HasNet, l.NetFD, l.MAC, l.Accel, l.Memory = true, 6, vm.DefaultMAC, kvm, false
	s = strings.Join(l.args(), "\n")
	for _, want := range []string{"addr.type=fd,addr.str=6", "mac=" + vm.DefaultMAC, "-cpu\nhost\n", "memory-backend-ram"} {
		if !strings.Contains(s, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
}

func TestCmdline(t *testing.T) {
	if got, want := cmdline("quiet panic=5", kvm, 0), "quiet panic=5 console=ttyS0 reboot=t"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := cmdline("", tcg, 2_500_000), "console=ttyS0 reboot=t panic=-1 norandmaps mitigations=off tsc_early_khz=2500000 tsc=reliable"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMissingQEMU(t *testing.T) {
	err := New(Config{Binary: "qemu-system-not-there"}).Probe(t.Context())
	if err == nil || !strings.Contains(err.Error(), "apt-get install qemu-system-x86") {
		t.Errorf("the error does not say what to do: %v", err)
	}
}

// script is a program that stands for QEMU.
func script(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestOldQEMU(t *testing.T) {
	for text, want := range map[string]string{
		"echo QEMU emulator version 6.2.0": "at least 7.2",
		"echo hello":                       "no version",
		"echo broken >&2; exit 3":          "broken",
	} {
		if err := New(Config{Binary: script(t, text)}).Probe(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	d := New(Config{Binary: script(t, "echo QEMU emulator version 10.0.2 '(Debian)'")})
	if v, err := d.Version(t.Context()); err != nil || v != "10.0.2" {
		t.Errorf("version %q, %v", v, err)
	}
}

// TestVerdict has a device that opens and a QEMU that dies of it, as on a host
// whose KVM is there but useless.
func TestVerdict(t *testing.T) {
	dir := t.TempDir()
	binary := script(t, `case "$1" in --version) echo QEMU emulator version 7.2.1; exit;; esac
echo 'failed to set MSR 0x10a' >&2
exit 1
`)
	device := filepath.Join(dir, "kvm")
	kernel := filepath.Join(dir, "vmlinux")
	for _, f := range []string{device, kernel} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Behind its walls a probe leaves no trace; who made it does.
	var said strings.Builder
	log := slog.New(slog.NewTextHandler(&said, nil))
	probes := func() int { return strings.Count(said.String(), "cached=false") }
	cache := filepath.Join(dir, "cache")
	for i, cached := range []bool{false, true} {
		d := New(Config{Binary: binary, CacheDir: cache, Log: log})
		d.device = device
		for range 2 {
			v, err := d.Verdict(t.Context(), kernel)
			if err != nil || v.KVM || v.Cached != cached || !strings.Contains(v.Reason, "failed to set MSR") {
				t.Errorf("driver %d: %+v, %v", i, v, err)
			}
			if !strings.Contains(v.String(), "TCG") {
				t.Errorf("not said plainly: %s", v)
			}
		}
	}
	if n := probes(); n != 1 {
		t.Errorf("%d probes for one host, kernel and version", n)
	}
	// Another kernel is another question.
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("k"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := New(Config{Binary: binary, CacheDir: cache, Log: log})
	d.device = device
	if _, err := d.Verdict(t.Context(), other); err != nil || probes() != 2 {
		t.Errorf("%d probes for two kernels, %v", probes(), err)
	}
	// What is on disk may be anything.
	files, _ := filepath.Glob(filepath.Join(cache, "*.json"))
	for _, f := range files {
		if err := os.WriteFile(f, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d = New(Config{Binary: binary, CacheDir: cache, Log: log})
	d.device = device
	if v, err := d.Verdict(t.Context(), other); err != nil || v.Cached || probes() != 3 {
		t.Errorf("after damage to the cache: %+v, %v", v, err)
	}
	d.device = filepath.Join(dir, "absent")
	if v, err := d.Verdict(t.Context(), kernel); err != nil || v.KVM || !strings.Contains(v.Reason, "there is no") {
		t.Errorf("without a device: %+v, %v", v, err)
	}
	if _, err := New(Config{Accel: "hax"}).Verdict(t.Context(), kernel); err == nil {
		t.Error("an unknown accelerator is accepted")
	}
}

func TestTSC(t *testing.T) {
	a, b := tscKHz(), tscKHz()
	if a == 0 && b == 0 {
		t.Log("this processor's time stamp counter makes no sense")
		return
	}
	if d := float64(a) / float64(b); d < 0.98 || d > 1.02 {
		t.Errorf("measured %d and %d kHz", a, b)
	}
}
