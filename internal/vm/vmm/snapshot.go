package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
)

// Names in a snapshot's directory.
const (
	ManifestName = "snapshot.json"
	StateName    = "state"  // of processors and devices, in the VMM's own format
	MemoryName   = "memory" // where it is a file of its own
)

// Manifest describes a snapshot. It is written last, so that a directory with one
// is whole.
type Manifest struct {
	Version     int                   `json:"version"` // of the driver's format
	Driver      string                `json:"driver"`
	Fingerprint string                `json:"fingerprint"`
	Accel       string                `json:"accel,omitempty"` // of a driver that has several
	Created     time.Time             `json:"created"`
	CPUs        int                   `json:"cpus"`
	MemoryMiB   int                   `json:"memory_mib"`
	Memory      bool                  `json:"memory"` // is a file of its own, not part of the state
	Net         bool                  `json:"net"`
	MAC         string                `json:"mac,omitempty"`
	Disks       []Disk                `json:"disks,omitempty"`
	Files       map[string]vm.FileSum `json:"files"`
	Sum         uint32                `json:"crc32c"` // of all of the above
}

// Disk is one disk of a snapshot. File is its copy in the snapshot's directory, for
// a writable one, and Below the images under it; Path is where a read-only one was.
type Disk struct {
	ID     string  `json:"id"`
	Format string  `json:"format,omitempty"` // raw if empty
	File   string  `json:"file,omitempty"`
	Below  []Image `json:"below,omitempty"`
	Path   string  `json:"path,omitempty"`
}

// Image is one file that a disk stands on.
type Image struct {
	Path   string `json:"path"`
	Format string `json:"format"`
}

// EmptyDir returns the absolute path of a directory in which there is nothing yet.
func EmptyDir(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if e, err := os.ReadDir(dir); err != nil {
		return "", err
	} else if len(e) > 0 {
		return "", fmt.Errorf("%s is not empty", dir)
	}
	return dir, nil
}

// sum returns what Sum should be.
func (m Manifest) sum() (uint32, error) {
	m.Sum = 0
	b, err := json.Marshal(m)
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)), err
}

// Write adds the sizes and sums of the files in dir that m has not, and writes m.
func (m *Manifest) Write(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if m.Files == nil {
		m.Files = map[string]vm.FileSum{}
	}
	for _, e := range entries {
		if _, ok := m.Files[e.Name()]; ok || e.Name() == ManifestName {
			continue
		}
		if m.Files[e.Name()], err = vm.SumFile(ctx, filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if m.Sum, err = m.sum(); err != nil {
		return err
	}
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, ManifestName), append(b, '\n'), 0o600)
}

// Unusable is an error that says why the snapshot in dir is not to be had: it is a
// [vm.ErrSnapshot].
func Unusable(dir, format string, a ...any) error {
	return fmt.Errorf("%w: %s: %w", vm.ErrSnapshot, dir, fmt.Errorf(format, a...))
}

// Format says which snapshots a driver takes.
type Format struct {
	Driver  string
	Version int
	MaxCPUs int
	// Fingerprint returns what one like m would have, were it made here and now.
	Fingerprint func(m *Manifest) (string, error)
}

// Read reads a manifest and checks what can be checked without reading memory.
func (f Format) Read(dir string) (*Manifest, error) {
	bad := func(format string, a ...any) (*Manifest, error) { return nil, Unusable(dir, format, a...) }
	in, err := os.Open(filepath.Join(dir, ManifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return bad("it has no %s, so its making was not finished", ManifestName)
	} else if err != nil {
		return bad("%w", err)
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, 1<<20))
	if err != nil {
		return bad("%w", err)
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return bad("%s: %w", ManifestName, err)
	}
	switch {
	case m.Driver != f.Driver:
		return bad("it was made by driver %q, not %q", m.Driver, f.Driver)
	case m.Version != f.Version:
		return bad("its format is version %d, not %d", m.Version, f.Version)
	}
	if sum, err := m.sum(); err != nil || sum != m.Sum {
		return bad("%s is damaged (its checksum differs)", ManifestName)
	}
	here, err := f.Fingerprint(&m)
	if err != nil {
		return nil, err
	}
	switch {
	case m.Fingerprint != here:
		return bad("it was made on %s, this is %s", m.Fingerprint, here)
	case m.CPUs < 1 || m.CPUs > f.MaxCPUs || m.MemoryMiB < 64:
		return bad("%d CPUs and %d MiB of memory make no machine", m.CPUs, m.MemoryMiB)
	}
	want := []string{StateName}
	if m.Memory {
		want = append(want, MemoryName)
		if n := m.Files[MemoryName].Size; n != int64(m.MemoryMiB)<<20 {
			return bad("its memory is %d bytes, not %d MiB", n, m.MemoryMiB)
		}
	}
	for _, k := range m.Disks {
		if k.File != "" {
			want = append(want, k.File)
		}
	}
	for _, name := range want {
		sum, ok := m.Files[name]
		if !ok || name != filepath.Base(name) {
			return bad("file %q is not accounted for", name)
		}
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return bad("%w", err)
		}
		if fi.Size() != sum.Size {
			return bad("%s is %d bytes, not %d", name, fi.Size(), sum.Size)
		}
	}
	return &m, nil
}

// Check compares the sums of some files in dir, or of all if none are named.
func (m *Manifest) Check(ctx context.Context, dir string, names ...string) error {
	if len(names) == 0 {
		for n := range m.Files {
			names = append(names, n)
		}
	}
	for _, n := range names {
		sum, err := vm.SumFile(ctx, filepath.Join(dir, n))
		if err != nil {
			return fmt.Errorf("%w: %w", vm.ErrSnapshot, err)
		}
		if sum != m.Files[n] {
			return Unusable(dir, "%s is damaged: size or checksum differ", n)
		}
	}
	return nil
}

// Open reads the manifest of the snapshot in dir, checks the sum of its state, and
// makes spec that of the machine in it (Fit), by dir's absolute path.
func Open(ctx context.Context, dir string, spec *vm.Spec, read func(ctx context.Context, dir string) (*Manifest, error)) (string, *Manifest,
	map[string]vm.Disk, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", nil, nil, err
	}
	m, err := read(ctx, dir)
	if err != nil {
		return "", nil, nil, err
	}
	if err := m.Check(ctx, dir, StateName); err != nil {
		return "", nil, nil, err
	}
	given, err := m.Fit(spec)
	return dir, m, given, err
}

// Fit checks that spec asks for the machine that is in the snapshot, and makes it
// that one's, without disks: what was given for those it returns by ID.
func (m *Manifest) Fit(spec *vm.Spec) (map[string]vm.Disk, error) {
	if spec.CPUs != 0 && spec.CPUs != m.CPUs || spec.MemoryMiB != 0 && spec.MemoryMiB != m.MemoryMiB {
		return nil, fmt.Errorf("machine %s: %d CPUs and %d MiB were asked for, the snapshot has %d and %d", spec.ID, spec.CPUs, spec.MemoryMiB, m.CPUs, m.MemoryMiB)
	}
	if m.Net != (spec.Net != "") {
		return nil, fmt.Errorf("machine %s: network device asked for: %t, in the snapshot: %t", spec.ID, spec.Net != "", m.Net)
	}
	// The guest knows its hardware address from the snapshot.
	if spec.MAC != "" && m.Net && spec.MAC != m.MAC {
		return nil, fmt.Errorf("machine %s: the snapshot's hardware address is %s, not %s", spec.ID, m.MAC, spec.MAC)
	}
	spec.MAC, spec.CPUs, spec.MemoryMiB, spec.Template = m.MAC, m.CPUs, m.MemoryMiB, false
	spec.Kernel, spec.Initrd = "none", ""
	given := map[string]vm.Disk{}
	for _, g := range spec.Disks {
		given[g.ID] = g
	}
	spec.Disks = nil
	return given, nil
}
