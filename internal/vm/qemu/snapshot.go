package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/jail"
	"github.com/hearth-ci/hearth/internal/vm/vmm"
)

// manifestVersion is the format of snapshots: what QEMU is told with one.
const manifestVersion = 4

// Snapshot implements [vm.Machine].
func (m *machine) Snapshot(ctx context.Context, dir string) error {
	if err := m.Begin(ctx, "snapshot"); err != nil {
		return err
	}
	defer m.Finish()
	if err := m.snapshot(ctx, dir); err != nil {
		return m.Error("snapshot", err)
	}
	return nil
}

func (m *machine) snapshot(ctx context.Context, dir string) (err error) {
	if dir, err = vmm.EmptyDir(dir); err != nil {
		return err
	}
	_, version, err := m.driver.find(ctx)
	if err != nil {
		return err
	}
	out := vmm.Manifest{
		Version: manifestVersion, Driver: m.driver.Name(), Accel: string(m.layout.Accel),
		Fingerprint: m.driver.fingerprint(version, m.layout.Accel), Created: time.Now().UTC(),
		CPUs: m.layout.CPUs, MemoryMiB: m.layout.MemoryMiB, Memory: m.layout.Shared,
		Net: m.layout.HasNet, MAC: m.layout.MAC,
	}
	if !m.layout.Shared {
		defer func() {
			// Whatever happened, a machine that ran goes on.
			if m.Stopped || m.Gone() != nil {
				return
			}
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			if e := m.proceed(clean); e != nil {
				err = errors.Join(err, fmt.Errorf("set going again: %w", e))
			}
		}()
	}
	// Not while it runs under emulation: QEMU 7.2 loses sight of pages that are written
	// meanwhile, now and then, and what is restored panics.
	if m.layout.Shared || m.layout.Accel == tcg {
		if _, err := m.qmp.call(ctx, command{Execute: "stop"}); err != nil {
			return err
		}
	}
	if err := m.save(ctx, filepath.Join(dir, vmm.StateName)); err != nil {
		return err
	}
	// The guest stands still from here on, until the deferred cont.
	if m.layout.Shared {
		m.End() // nothing may write to its memory or its disks any more
		<-m.Done()
		f, err := vm.CopySum(ctx, filepath.Join(dir, vmm.MemoryName), m.memory)
		if err != nil {
			return fmt.Errorf("write the memory down: %w", err)
		}
		out.Files = map[string]vm.FileSum{vmm.MemoryName: f}
	}
	for _, d := range m.layout.Drives {
		top := d.Images[0]
		sd := vmm.Disk{ID: d.ID, Format: top.Format}
		if d.ReadOnly {
			sd.Path = top.Path
		} else {
			sd.File = "disk-" + d.ID + "." + sd.Format
			for _, i := range d.Images[1:] {
				sd.Below = append(sd.Below, vmm.Image{Path: i.Path, Format: i.Format})
			}
			if err := vm.CopySparse(ctx, filepath.Join(dir, sd.File), top.Path); err != nil {
				return fmt.Errorf("copy disk %s: %w", d.ID, err)
			}
		}
		out.Disks = append(out.Disks, sd)
	}
	if !m.layout.Shared && !m.Stopped {
		if err := m.proceed(ctx); err != nil {
			return err
		}
	}
	return out.Write(ctx, dir)
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
	if err != nil && m.Gone() == nil {
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
func (d *Driver) readManifest(ctx context.Context, dir string) (*vmm.Manifest, error) {
	m, err := vmm.Format{Driver: d.Name(), Version: manifestVersion, MaxCPUs: 255, Fingerprint: func(m *vmm.Manifest) (string, error) {
		_, version, err := d.find(ctx)
		return d.fingerprint(version, accel(m.Accel)), err
	}}.Read(dir)
	if err == nil && m.Accel != string(kvm) && m.Accel != string(tcg) {
		return nil, vmm.Unusable(dir, "unknown accelerator %q", m.Accel)
	}
	return m, err
}

// Verify implements [vm.Driver].
func (d *Driver) Verify(ctx context.Context, dir string) error {
	s, err := d.readManifest(ctx, dir)
	if err != nil {
		return err
	}
	return s.Check(ctx, dir)
}

// Restore implements [vm.Driver].
func (d *Driver) Restore(ctx context.Context, dir string, spec vm.Spec) (vm.Machine, error) {
	dir, s, given, err := vmm.Open(ctx, dir, &spec, d.readManifest)
	if err != nil {
		return nil, err
	}
	if err := d.ready(ctx, &spec); err != nil {
		return nil, err
	}
	l := layout{ID: spec.ID, Accel: accel(s.Accel), CPUs: s.CPUs, MemoryMiB: s.MemoryMiB, Memory: s.Memory, MAC: spec.MAC}
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
			images = []image{{Path: v.Path, Format: v.Format}, first}
			for _, i := range k.Below {
				images = append(images, image{Path: i.Path, Format: i.Format})
			}
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
	if s.Memory {
		start.open[memoryPath] = filepath.Join(dir, vmm.MemoryName)
	}
	if start.incoming, err = os.Open(filepath.Join(dir, vmm.StateName)); err != nil {
		return nil, fmt.Errorf("%w: %w", vm.ErrSnapshot, err)
	}
	m, err := d.launch(ctx, spec, l, start)
	if err != nil {
		return nil, err
	}
	return m, nil
}
