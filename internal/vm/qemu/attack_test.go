package qemu_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/qemu"
)

// TestAttackOverlay has a monitor that a guest has taken over write into its
// disk's image, which is its own, that the image below it is a file of the
// host's. The machine is snapshotted and restored, as checkpoints are. It used to
// be that the restored machine then read that file, with Hearth's rights.
func TestAttackOverlay(t *testing.T) {
	kernel, initrd, tool := kit(t)
	secret := filepath.Join(t.TempDir(), "shadow")
	if err := os.WriteFile(secret, bytes.Repeat([]byte("the host's secret "), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := func() string {
		d := filepath.Join(t.TempDir(), "m")
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		return d
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, append([]byte("honest"), make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	d := qemu.New(qemu.Config{Accel: "tcg"})
	up := func(m vm.Machine, err error) (vm.Machine, *guest.Client) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close(context.Background()) })
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		c, err := guest.Connect(ctx, m.Dial)
		if err != nil {
			t.Fatal(vm.Explain(m, "connect", err))
		}
		t.Cleanup(func() { c.Close() })
		return m, c
	}
	snapshot := func(m vm.Machine) string {
		t.Helper()
		to := t.TempDir()
		if err := m.Snapshot(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		return to
	}
	template, _ := up(d.Start(t.Context(), vm.Spec{ID: "overlay", Kernel: kernel, Initrd: initrd, Cmdline: "quiet", CPUs: 1, MemoryMiB: 128, Template: true,
		Dir: dir(), Disks: []vm.Disk{{ID: "scratch", Path: disk}}}))
	base := snapshot(template)
	taken := dir()
	clone, _ := up(d.Restore(t.Context(), base, vm.Spec{ID: "taken", Dir: taken}))

	image, err := os.OpenFile(filepath.Join(taken, "disk-scratch.qcow2"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	var where [12]byte
	binary.BigEndian.PutUint64(where[:], 4096)
	binary.BigEndian.PutUint32(where[8:], uint32(len(secret)))
	for at, b := range map[int64][]byte{8: where[:], 4096: []byte(secret)} {
		if _, err := image.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	shot := snapshot(clone)
	if b, err := os.ReadFile(filepath.Join(shot, "disk-scratch.qcow2")); err != nil || !bytes.Contains(b, []byte(secret)) {
		t.Fatalf("the attack did not get into the snapshot: %v", err)
	}
	_, c := up(d.Restore(t.Context(), shot, vm.Spec{ID: "again", Dir: dir()}))
	var out, errs strings.Builder
	x, err := c.Exec(t.Context(), guest.Cmd{Argv: []string{tool, "get", "/dev/vda"}, User: "root", Dir: "/", Stdout: &out, Stderr: &errs})
	if err != nil || !x.OK() || !strings.HasPrefix(out.String(), "honest") {
		t.Errorf("the machine reads %.40q, %v, %v %s", out.String(), x, err, errs.String())
	}
}
