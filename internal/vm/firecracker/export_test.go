package firecracker

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/vmm"
)

// Boot starts a machine without asking whether KVM works.
func (d *Driver) Boot(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	m, err := d.boot(ctx, spec)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// SleepProgram is a guest that does nothing, for ever.
func SleepProgram() []byte { return sleepProgram() }

// OwnerDies kills the process that owns a machine and looks for what is left.
func OwnerDies(t *testing.T, binary, id string) { ownerDies(t, binary, id) }

// Processes returns the command lines that carry a machine's name.
func Processes(id string) []string { return processes(id) }

// Rewrite replaces a file of a snapshot, and what its manifest says about it.
func Rewrite(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, vmm.ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	var s vmm.Manifest
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	delete(s.Files, name)
	if err := s.Write(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
}
