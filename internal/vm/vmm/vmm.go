// Package vmm is what drivers share whose machines are processes of a virtual
// machine monitor (VMM), QEMU or Firecracker: the specs that they take, a snapshot's
// directory and its manifest (snapshot.go), whether guests run under KVM on this host
// (kvm.go), and a machine's life (life.go). What it is about a VMM that differs stays with its driver.
package vmm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hearth-ci/hearth/internal/vm"
)

// Ready checks a spec, and what it names on this host, and completes it.
func Ready(ctx context.Context, spec *vm.Spec) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := spec.Check(); err != nil {
		return err
	}
	if spec.MAC == "" {
		spec.MAC = vm.DefaultMAC
	}
	var err error
	if spec.Dir, err = filepath.Abs(spec.Dir); err != nil {
		return err
	}
	if fi, err := os.Stat(spec.Dir); err != nil {
		return fmt.Errorf("machine %s: its directory: %w", spec.ID, err)
	} else if !fi.IsDir() {
		return fmt.Errorf("machine %s: %s is not a directory", spec.ID, spec.Dir)
	}
	for _, disk := range spec.Disks {
		if _, err := os.Stat(disk.Path); err != nil {
			return fmt.Errorf("machine %s: disk %s: %w", spec.ID, disk.ID, err)
		}
	}
	return nil
}

// CPUModel names this host's processor, in one word.
func CPUModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for l := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.Join(strings.Fields(v), "_")
		}
	}
	return "unknown"
}
