package vmm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/vm"
)

var format = Format{Driver: "test", Version: 7, MaxCPUs: 4, Fingerprint: func(m *Manifest) (string, error) { return "here-" + m.Accel, nil }}

// snapshot makes one that is whole.
func snapshot(t *testing.T) (string, *Manifest) {
	t.Helper()
	dir, err := EmptyDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int64{StateName: 1000, MemoryName: 64 << 20, "disk-a.raw": 5000} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("some "+name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, name), size); err != nil {
			t.Fatal(err)
		}
	}
	m := &Manifest{Driver: "test", Version: 7, Fingerprint: "here-x", Accel: "x", CPUs: 2, MemoryMiB: 64, Memory: true, Net: true, MAC: vm.DefaultMAC,
		Disks: []Disk{{ID: "a", File: "disk-a.raw"}, {ID: "b", Path: "/b"}}}
	if err := m.Write(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	return dir, m
}

func TestWhole(t *testing.T) {
	dir, _ := snapshot(t)
	m, err := format.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Check(t.Context(), dir); err != nil || len(m.Files) != 3 {
		t.Errorf("%v, %v", m.Files, err)
	}
	if _, err := EmptyDir(dir); err == nil {
		t.Error("a snapshot's directory is called empty")
	}
}

// Whatever is not as it was written, or is not for here, is an [vm.ErrSnapshot] that
// says what.
func TestUnusable(t *testing.T) {
	for want, change := range map[string]func(*Manifest){
		`driver "other"`:    func(m *Manifest) { m.Driver = "other" },
		"version 6":         func(m *Manifest) { m.Version = 6 },
		"made on elsewhere": func(m *Manifest) { m.Fingerprint = "elsewhere" },
		"5 CPUs":            func(m *Manifest) { m.CPUs = 5 },
		"0 CPUs":            func(m *Manifest) { m.CPUs = 0 },
		"not 128 MiB":       func(m *Manifest) { m.MemoryMiB = 128 },
		"../state":          func(m *Manifest) { m.Disks[0].File = "../state"; m.Files["../state"] = m.Files[StateName] },
		"absent":            func(m *Manifest) { m.Disks[0].File = "absent" },
	} {
		dir, m := snapshot(t)
		change(m)
		if err := m.Write(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		if _, err := format.Read(dir); !errors.Is(err, vm.ErrSnapshot) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("want %q: %v", want, err)
		}
	}
	for want, damage := range map[string]func(dir string) error{
		"was not finished":            func(dir string) error { return os.Remove(filepath.Join(dir, ManifestName)) },
		"no such file":                func(dir string) error { return os.Remove(filepath.Join(dir, StateName)) },
		"is 10 bytes":                 func(dir string) error { return os.Truncate(filepath.Join(dir, "disk-a.raw"), 10) },
		"unexpected end":              func(dir string) error { return os.Truncate(filepath.Join(dir, ManifestName), 40) },
		"damaged (its checksum":       func(dir string) error { return edit(filepath.Join(dir, ManifestName), `"path": "/b"`, `"path": "/c"`) },
		MemoryName + " is damaged":    func(dir string) error { return edit(filepath.Join(dir, MemoryName), "some", "same") },
		"disk-a.raw is damaged: size": func(dir string) error { return edit(filepath.Join(dir, "disk-a.raw"), "some", "same") },
	} {
		dir, _ := snapshot(t)
		if err := damage(dir); err != nil {
			t.Fatal(err)
		}
		m, err := format.Read(dir)
		if err == nil {
			err = m.Check(t.Context(), dir)
		}
		if !errors.Is(err, vm.ErrSnapshot) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

func edit(name, old, text string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return os.WriteFile(name, []byte(strings.Replace(string(b), old, text, 1)), 0o600)
}

// A driver's own failure is not the snapshot's fault.
func TestReadCannotTell(t *testing.T) {
	dir, _ := snapshot(t)
	gone := errors.New("not installed")
	f := format
	f.Fingerprint = func(*Manifest) (string, error) { return "", gone }
	if _, err := f.Read(dir); !errors.Is(err, gone) || errors.Is(err, vm.ErrSnapshot) {
		t.Error(err)
	}
}

func TestFit(t *testing.T) {
	_, m := snapshot(t)
	net := vm.Spec{ID: "m", Net: "sock"}
	for want, change := range map[string]func(*vm.Spec){
		"3 CPUs":           func(s *vm.Spec) { s.CPUs = 3 },
		"65 MiB":           func(s *vm.Spec) { s.MemoryMiB = 65 },
		"network":          func(s *vm.Spec) { s.Net = "" },
		"hardware address": func(s *vm.Spec) { s.MAC = "52:54:00:00:00:01" },
	} {
		s := net
		change(&s)
		if _, err := m.Fit(&s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
	s := net
	s.Template, s.Kernel, s.Disks = true, "k", []vm.Disk{{ID: "b", Path: "/moved"}}
	given, err := m.Fit(&s)
	if err != nil || given["b"].Path != "/moved" || s.Disks != nil {
		t.Errorf("%v, %v, %v", given, s.Disks, err)
	}
	if s.CPUs != 2 || s.MemoryMiB != 64 || s.MAC != vm.DefaultMAC || s.Template || s.Kernel != "none" {
		t.Errorf("%+v", s)
	}
}
