package firecracker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/vmm"
)

// manifestVersion is the format of snapshots: what Firecracker is told with one.
const manifestVersion = 3

// Snapshot implements [vm.Machine]. The guest stands still until all of its
// memory is in the file.
func (m *machine) Snapshot(ctx context.Context, dir string) error {
	if err := m.Begin(ctx, "snapshot"); err != nil {
		return err
	}
	defer m.Finish()
	if err := m.snapshot(ctx, dir); err != nil {
		return m.explain("snapshot", err)
	}
	return nil
}

func (m *machine) snapshot(ctx context.Context, dir string) (err error) {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if dir, err = vmm.EmptyDir(dir); err != nil {
		return err
	}
	out := vmm.Manifest{
		Version: manifestVersion, Driver: m.driver.Name(), Fingerprint: fingerprint(m.version), Created: time.Now().UTC(),
		CPUs: m.Spec.CPUs, MemoryMiB: m.Spec.MemoryMiB, Memory: true, Net: m.Spec.Net != "",
	}
	if out.Net {
		out.MAC = m.Spec.MAC
	}
	if !m.Stopped {
		if err := m.setState(ctx, "Paused"); err != nil {
			return err
		}
	}
	going := func() error {
		if m.Spec.Template || m.Stopped {
			return nil
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := m.setState(clean, "Resumed"); err != nil {
			return fmt.Errorf("set going again: %w", err)
		}
		return nil
	}
	err = m.save(ctx, dir, &out)
	// The guest hears with the snapshot that its streams are over; this end of
	// them would only notice when it next says something.
	m.HangUp()
	switch {
	case err != nil && m.Spec.Template:
		// It was to end here, but one that has failed may be asked what is wrong.
		if !m.Stopped && m.Gone() == nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, m.setState(clean, "Resumed"))
		}
		return err
	case err != nil:
		// Whatever happened, a machine that ran goes on.
		if m.Gone() == nil {
			err = errors.Join(err, going())
		}
		return err
	case m.Spec.Template:
		m.End()
		<-m.Done()
	default:
		if err := going(); err != nil {
			return err
		}
	}
	if err := dig(ctx, filepath.Join(dir, vmm.MemoryName)); err != nil {
		return err
	}
	return out.Write(ctx, dir)
}

// save has the paused machine written to dir.
func (m *machine) save(ctx context.Context, dir string, out *vmm.Manifest) error {
	into := map[string]*os.File{}
	defer func() {
		m.Cmd.Offer(nil)
		for _, f := range into {
			f.Close()
		}
	}()
	for path, name := range map[string]string{statePath: vmm.StateName, memoryPath: vmm.MemoryName} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		into[path] = f
	}
	m.Cmd.Offer(into)
	err := m.api.call(ctx, "PUT", "/snapshot/create", apiSnapshotCreate{
		SnapshotType: "Full", // what changed since is a preview
		SnapshotPath: statePath,
		MemFilePath:  memoryPath,
	}, nil)
	if err != nil {
		return err
	}
	for _, d := range m.Spec.Disks {
		sd := vmm.Disk{ID: d.ID}
		if d.ReadOnly {
			if sd.Path, err = filepath.Abs(d.Path); err != nil {
				return err
			}
		} else {
			sd.File = diskName(d.ID) + ".raw"
			if err := vm.CopySparse(ctx, filepath.Join(dir, sd.File), d.Path); err != nil {
				return fmt.Errorf("copy disk %s: %w", d.ID, err)
			}
		}
		out.Disks = append(out.Disks, sd)
	}
	return nil
}

// dig gives the blocks of a file that hold nothing but zeros back to the file
// system: Firecracker writes all of a machine's memory, and most of a fresh
// machine's has never been touched. Where that is not possible nothing is lost.
func dig(ctx context.Context, name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const block = 64 << 10
	buf := make([]byte, 16*block)
	for at := int64(0); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := f.ReadAt(buf, at)
		for i := 0; i+block <= n; i += block {
			if !isZero(buf[i : i+block]) {
				continue
			}
			if unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at+int64(i), block) != nil {
				return nil
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// isZero compares a block with itself, one byte further, which is as fast as
// comparing gets.
func isZero(b []byte) bool { return b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) }

// readManifest reads and checks what can be checked without reading memory.
func (d *Driver) readManifest(ctx context.Context, dir string) (*vmm.Manifest, error) {
	m, err := vmm.Format{Driver: d.Name(), Version: manifestVersion, MaxCPUs: maxCPUs, Fingerprint: func(*vmm.Manifest) (string, error) {
		_, v, err := d.find(ctx)
		return fingerprint(v), err
	}}.Read(dir)
	if err == nil && !m.Memory {
		return nil, vmm.Unusable(dir, "it has no memory")
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
	for _, k := range s.Disks {
		v := vm.Disk{ID: k.ID, Path: k.Path, ReadOnly: true}
		if g, ok := given[k.ID]; ok && k.File == "" {
			v.Path = g.Path
		}
		if k.File != "" {
			v.ReadOnly, v.Path = false, filepath.Join(spec.Dir, diskName(k.ID))
			err = vm.CopySparse(ctx, v.Path, filepath.Join(dir, k.File))
		} else if _, err = os.Stat(v.Path); err != nil {
			err = fmt.Errorf("%w: %w", vm.ErrSnapshot, err)
		}
		if err != nil {
			return nil, fmt.Errorf("machine %s: disk %s: %w", spec.ID, k.ID, err)
		}
		spec.Disks = append(spec.Disks, v)
	}
	if err := spec.Check(); err != nil {
		return nil, err
	}
	open := map[string]string{memoryPath: filepath.Join(dir, vmm.MemoryName)}
	m, err := d.launch(ctx, spec, "restore", open, func(m *machine, ctx context.Context) error { return m.load(ctx, dir) })
	if err != nil {
		return nil, err
	}
	return m, nil
}

// load has a fresh Firecracker become the machine in dir, and sets it going.
func (m *machine) load(ctx context.Context, dir string) error {
	state := filepath.Join(m.box, loadName)
	if err := vm.CopySparse(ctx, state, filepath.Join(dir, vmm.StateName)); err != nil {
		return err
	}
	defer os.Remove(state)
	if m.uid != 0 {
		if err := os.Lchown(state, m.uid, m.uid); err != nil {
			return err
		}
	}
	l := apiSnapshotLoad{
		SnapshotPath: loadName,
		// Mapped privately and read when needed: many machines share one file.
		MemBackend: apiMemoryBackend{BackendType: "File", BackendPath: memoryPath},
	}
	// These are what the snapshot has in it: names in the machine's own directory
	// and namespace. They are said all the same, so that no snapshot decides them.
	if m.Spec.Net != "" {
		l.NetworkOverrides = []apiNetworkOverride{{IfaceID: ifaceID, HostDevName: tapName}}
	}
	if !m.version.before(1, 16) {
		l.VsockOverride = &apiVsockOverride{UDSPath: vsockName}
	}
	if err := m.api.call(ctx, "PUT", "/snapshot/load", l, nil); err != nil {
		if ctx.Err() == nil {
			err = fmt.Errorf("%w: %s: %w", vm.ErrSnapshot, dir, err)
		}
		return err
	}
	return m.setState(ctx, "Resumed")
}
