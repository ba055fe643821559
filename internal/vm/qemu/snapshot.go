package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/jail"
)

const (
	manifestName = "snapshot.json"
	stateName    = "state"
)

// manifest describes a snapshot. It is written last, so that a directory with
// one is whole.
type manifest struct {
	Version     int                   `json:"version"`
	Driver      string                `json:"driver"`
	Fingerprint string                `json:"fingerprint"`
	Accel       accel                 `json:"accel"`
	Created     time.Time             `json:"created"`
	CPUs        int                   `json:"cpus"`
	MemoryMiB   int                   `json:"memory_mib"`
	Shared      bool                  `json:"shared"` // memory is a file of its own, not part of the state
	Net         bool                  `json:"net"`
	MAC         string                `json:"mac,omitempty"`
	Disks       []disk                `json:"disks,omitempty"`
	Files       map[string]vm.FileSum `json:"files"`
}

// disk is one disk of a snapshot. File is its copy in the snapshot's directory,
// for a writable one, and Below the images under it; Path is where a read-only
// one was.
type disk struct {
	ID     string  `json:"id"`
	Format string  `json:"format"`
	File   string  `json:"file,omitempty"`
	Below  []image `json:"below,omitempty"`
	Path   string  `json:"path,omitempty"`
}

const manifestVersion = 3

// Snapshot implements [vm.Snapshotter].
func (m *machine) Snapshot(ctx context.Context, dir string) error {
	if err := m.begin(ctx, "snapshot"); err != nil {
		return err
	}
	defer m.finish()
	if err := m.snapshot(ctx, dir); err != nil {
		return &vm.Error{Machine: m.spec.ID, Op: "snapshot", Err: err, Tail: m.tail()}
	}
	return nil
}

func (m *machine) snapshot(ctx context.Context, dir string) (err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	if e, err := os.ReadDir(dir); err != nil {
		return err
	} else if len(e) > 0 {
		return fmt.Errorf("%s is not empty", dir)
	}
	_, version, err := m.driver.find(ctx)
	if err != nil {
		return err
	}
	out := manifest{
		Version: manifestVersion, Driver: m.driver.Name(), Accel: m.layout.Accel,
		Fingerprint: m.driver.fingerprint(version, m.layout.Accel), Created: time.Now().UTC(),
		CPUs: m.layout.CPUs, MemoryMiB: m.layout.MemoryMiB, Shared: m.layout.Shared,
		Net: m.layout.HasNet, MAC: m.layout.MAC, Files: map[string]vm.FileSum{},
	}
	if m.layout.Shared {
		if _, err := m.qmp.call(ctx, command{Execute: "stop"}); err != nil {
			return err
		}
	} else {
		defer func() {
			// Whatever happened, a machine that ran goes on.
			if m.stopped || m.gone() != nil {
				return
			}
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			if e := m.proceed(clean); e != nil {
				err = errors.Join(err, fmt.Errorf("set going again: %w", e))
			}
		}()
	}
	if err := m.save(ctx, filepath.Join(dir, stateName)); err != nil {
		return err
	}
	// The guest stands still from here on, until the deferred cont.
	if m.layout.Shared {
		m.end() // nothing may write to its memory or its disks any more
		<-m.done
		f, err := vm.CopySum(ctx, filepath.Join(dir, memoryName), m.memory)
		if err != nil {
			return fmt.Errorf("write the memory down: %w", err)
		}
		out.Files[memoryName] = f
	}
	for _, d := range m.layout.Drives {
		top := d.Images[0]
		sd := disk{ID: d.ID, Format: top.Format}
		if d.ReadOnly {
			sd.Path = top.Path
		} else {
			sd.File, sd.Below = "disk-"+d.ID+"."+sd.Format, d.Images[1:]
			if err := vm.CopySparse(ctx, filepath.Join(dir, sd.File), top.Path); err != nil {
				return fmt.Errorf("copy disk %s: %w", d.ID, err)
			}
		}
		out.Disks = append(out.Disks, sd)
	}
	if !m.layout.Shared && !m.stopped {
		if err := m.proceed(ctx); err != nil {
			return err
		}
	}
	return out.write(ctx, dir)
}

// proceed sets the guest going after its state has been written. QEMU says
// that it has, and that this moment is not over yet, almost at once.
func (m *machine) proceed(ctx context.Context) error {
	for {
		_, err := m.qmp.call(ctx, command{Execute: "cont"})
		var refused *qmpError
		if !errors.As(err, &refused) || !strings.Contains(refused.Desc, "not finalized") {
			return err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// write adds the sizes and sums of the files in dir that it has not, and writes the
// manifest.
func (s *manifest) write(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, ok := s.Files[e.Name()]; ok {
			continue
		}
		if s.Files[e.Name()], err = vm.SumFile(ctx, filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestName), append(b, '\n'), 0o600)
}

// bandwidth is the limit for a migration, in bytes per second: none.
const bandwidth = 1 << 40

// save has QEMU write its state to name, and returns when the guest stands
// still and everything has been written.
func (m *machine) save(ctx context.Context, name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	m.drainMigration()
	_, err = m.qmp.call(ctx,
		command{Execute: "migrate-set-capabilities", Arguments: capabilities()},
		command{Execute: "migrate-set-parameters", Arguments: map[string]any{"max-bandwidth": int64(bandwidth), "downtime-limit": 20}},
		command{Execute: "getfd", Arguments: map[string]any{"fdname": "state"}, File: f},
		command{Execute: "migrate", Arguments: map[string]any{"uri": "fd:state"}},
	)
	if err == nil {
		err = m.migrated(ctx)
	}
	if err != nil && m.gone() == nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		m.qmp.call(clean, command{Execute: "migrate_cancel"})
	}
	return err
}

// load has QEMU take its state from its inherited file fd, and sets it going.
func (m *machine) load(ctx context.Context, fd int) error {
	_, err := m.qmp.call(ctx,
		command{Execute: "qmp_capabilities"},
		command{Execute: "migrate-set-capabilities", Arguments: capabilities()},
		command{Execute: "migrate-incoming", Arguments: map[string]any{"uri": fmt.Sprintf("fd:%d", fd)}},
	)
	if err != nil {
		return err
	}
	if err := m.migrated(ctx); err != nil {
		return fmt.Errorf("%w: %w", vm.ErrSnapshot, err)
	}
	_, err = m.qmp.call(ctx, command{Execute: "cont"})
	return err
}

// capabilities are the same on both ends, or QEMU refuses to load.
func capabilities() any {
	type c struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	return map[string]any{"capabilities": []c{{"x-ignore-shared", true}, {"events", true}}}
}

func (m *machine) drainMigration() {
	for {
		select {
		case <-m.migration:
		default:
			return
		}
	}
}

// migrated waits for the end of a migration, either way.
func (m *machine) migrated(ctx context.Context) error {
	for {
		select {
		case s := <-m.migration:
			switch s {
			case "completed":
				return nil
			case "failed", "cancelled":
				var r struct {
					Desc string `json:"error-desc"`
				}
				if b, err := m.qmp.call(ctx, command{Execute: "query-migrate"}); err == nil {
					json.Unmarshal(b, &r)
				}
				return fmt.Errorf("transfer of the machine's state %s: %s", s, orUnknown(r.Desc))
			}
		case <-m.qmp.ended:
			return m.qmp.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// readManifest reads and checks what can be checked without reading memory.
func (d *Driver) readManifest(ctx context.Context, dir string) (*manifest, error) {
	bad := func(format string, a ...any) (*manifest, error) {
		return nil, fmt.Errorf("%w: %s: %w", vm.ErrSnapshot, dir, fmt.Errorf(format, a...))
	}
	f, err := os.Open(filepath.Join(dir, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return bad("it has no %s, so its making was not finished", manifestName)
	} else if err != nil {
		return bad("%w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return bad("%w", err)
	}
	var s manifest
	if err := json.Unmarshal(b, &s); err != nil {
		return bad("%s: %w", manifestName, err)
	}
	_, version, err := d.find(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case s.Driver != d.Name():
		return bad("it was made by driver %q, not %q", s.Driver, d.Name())
	case s.Version != manifestVersion:
		return bad("its format is version %d, not %d", s.Version, manifestVersion)
	case s.Accel != kvm && s.Accel != tcg:
		return bad("unknown accelerator %q", s.Accel)
	case s.Fingerprint != d.fingerprint(version, s.Accel):
		return bad("it was made with %s, this is %s", s.Fingerprint, d.fingerprint(version, s.Accel))
	case s.CPUs < 1 || s.CPUs > 255 || s.MemoryMiB < 64:
		return bad("%d CPUs and %d MiB of memory make no machine", s.CPUs, s.MemoryMiB)
	}
	want := []string{stateName}
	if s.Shared {
		want = append(want, memoryName)
		if n := s.Files[memoryName].Size; n != int64(s.MemoryMiB)<<20 {
			return bad("its memory is %d bytes, not %d MiB", n, s.MemoryMiB)
		}
	}
	for _, k := range s.Disks {
		if k.File != "" {
			want = append(want, k.File)
		}
	}
	for _, name := range want {
		f, ok := s.Files[name]
		if !ok || name != filepath.Base(name) {
			return bad("file %q is not accounted for", name)
		}
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return bad("%w", err)
		}
		if fi.Size() != f.Size {
			return bad("%s is %d bytes, not %d", name, fi.Size(), f.Size)
		}
	}
	return &s, nil
}

// check compares the sums of some files, or all if none are named.
func (s *manifest) check(ctx context.Context, dir string, names ...string) error {
	if len(names) == 0 {
		for n := range s.Files {
			names = append(names, n)
		}
	}
	for _, n := range names {
		f, err := vm.SumFile(ctx, filepath.Join(dir, n))
		if err != nil {
			return fmt.Errorf("%w: %w", vm.ErrSnapshot, err)
		}
		if f != s.Files[n] {
			return fmt.Errorf("%w: %s: %s is damaged: size or checksum differ", vm.ErrSnapshot, dir, n)
		}
	}
	return nil
}

// Verify implements [vm.Verifier].
func (d *Driver) Verify(ctx context.Context, dir string) error {
	s, err := d.readManifest(ctx, dir)
	if err != nil {
		return err
	}
	return s.check(ctx, dir)
}

// Restore implements [vm.Restorer].
func (d *Driver) Restore(ctx context.Context, dir string, spec vm.Spec) (vm.Machine, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s, err := d.readManifest(ctx, dir)
	if err != nil {
		return nil, err
	}
	if err := s.check(ctx, dir, stateName); err != nil {
		return nil, err
	}
	if spec.CPUs != 0 && spec.CPUs != s.CPUs || spec.MemoryMiB != 0 && spec.MemoryMiB != s.MemoryMiB {
		return nil, fmt.Errorf("machine %s: %d CPUs and %d MiB were asked for, the snapshot has %d and %d", spec.ID, spec.CPUs, spec.MemoryMiB, s.CPUs, s.MemoryMiB)
	}
	if s.Net != (spec.Net != "") {
		return nil, fmt.Errorf("machine %s: network device asked for: %t, in the snapshot: %t", spec.ID, spec.Net != "", s.Net)
	}
	// The guest knows its hardware address from the snapshot.
	if spec.MAC != "" && s.Net && spec.MAC != s.MAC {
		return nil, fmt.Errorf("machine %s: the snapshot's hardware address is %s, not %s", spec.ID, s.MAC, spec.MAC)
	}
	spec.MAC, spec.CPUs, spec.MemoryMiB, spec.Template = s.MAC, s.CPUs, s.MemoryMiB, false
	spec.Kernel, spec.Initrd = "none", ""
	given := map[string]vm.Disk{}
	for _, g := range spec.Disks {
		given[g.ID] = g
	}
	spec.Disks = nil
	if err := d.ready(ctx, &spec); err != nil {
		return nil, err
	}
	l := layout{ID: spec.ID, Accel: s.Accel, CPUs: s.CPUs, MemoryMiB: s.MemoryMiB, Memory: s.Shared, MAC: spec.MAC}
	for _, k := range s.Disks {
		v := vm.Disk{ID: k.ID, Format: k.Format, Path: k.Path, ReadOnly: true}
		if g, ok := given[k.ID]; ok && k.File == "" {
			v.Path = g.Path
		}
		var images []image
		if k.File != "" {
			v = vm.Disk{ID: k.ID, Format: "qcow2", Path: filepath.Join(spec.Dir, "disk-"+k.ID+".qcow2")}
			first := image{Path: filepath.Join(dir, k.File), Format: k.Format}
			if err := createOverlay(v.Path, first.Path, first.Format); err != nil {
				return nil, fmt.Errorf("machine %s: disk %s: %w", spec.ID, k.ID, err)
			}
			images = append([]image{{Path: v.Path, Format: v.Format}, first}, k.Below...)
		} else if images, err = chain(v.Path, v.Format); err != nil {
			return nil, fmt.Errorf("%w: disk %s: %w", vm.ErrSnapshot, k.ID, err)
		}
		for _, i := range images {
			if _, err := os.Stat(i.Path); err != nil {
				return nil, fmt.Errorf("%w: disk %s: %w", vm.ErrSnapshot, k.ID, err)
			}
		}
		spec.Disks = append(spec.Disks, v)
		l.Drives = append(l.Drives, drive{ID: k.ID, ReadOnly: v.ReadOnly, Images: images})
	}
	if err := spec.Check(); err != nil {
		return nil, err
	}
	start := launch{open: map[string]string{}, openings: jail.OpenWriting}
	if s.Shared {
		start.open[memoryPath] = filepath.Join(dir, memoryName)
	}
	if start.incoming, err = os.Open(filepath.Join(dir, stateName)); err != nil {
		return nil, fmt.Errorf("%w: %w", vm.ErrSnapshot, err)
	}
	m, err := d.launch(ctx, spec, l, start)
	if err != nil {
		return nil, err
	}
	return m, nil
}
