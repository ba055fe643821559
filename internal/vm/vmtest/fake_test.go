package vmtest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hearth-ci/hearth/internal/vm"
)

func TestFake(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	Run(t, Suite{
		Driver:    &Fake{},
		Spec:      vm.Spec{Kernel: "none", CPUs: 1, MemoryMiB: 64},
		DiskImage: disk,
		Tool:      BuildTool(t),
		Disk: func(m vm.Machine) string {
			disks := m.(*FakeMachine).Spec().Disks
			return disks[len(disks)-1].Path
		},
		Memory: func(m vm.Machine) string { return filepath.Join(m.(*FakeMachine).Spec().Dir, MemoryFile) },
		Kill:   func(m vm.Machine) { m.(*FakeMachine).Kill() },
		OnHost: true,
	})
}
