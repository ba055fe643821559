package firecracker

import (
	"bytes"
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

	"golang.org/x/sys/unix"

	"github.com/hearth-ci/hearth/internal/vm"
)

// Names in a snapshot's directory.
const (
	manifestName = "snapshot.json"
	stateName    = "state"
	memoryName   = "memory"
)

// manifest describes a snapshot. It is written last, so that a directory with
// one is whole.
type manifest struct {
	Version     int                   `json:"version"`
	Driver      string                `json:"driver"`
	Fingerprint string                `json:"fingerprint"`
	Created     time.Time             `json:"created"`
	CPUs        int                   `json:"cpus"`
	MemoryMiB   int                   `json:"memory_mib"`
	Net         bool                  `json:"net"`
	MAC         string                `json:"mac,omitempty"`
	Disks       []disk                `json:"disks,omitempty"`
	Files       map[string]vm.FileSum `json:"files"`
	Sum         uint32                `json:"crc32c"` // of all of the above
}

// sum returns what Sum should be.
func (s manifest) sum() (uint32, error) {
	s.Sum = 0
	b, err := json.Marshal(s)
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)), err
}

// disk is one disk of a snapshot. File is its copy in the snapshot's directory,
// for a writable one; Path is where a read-only one was.
type disk struct {
	ID   string `json:"id"`
	File string `json:"file,omitempty"`
	Path string `json:"path,omitempty"`
}

const manifestVersion = 2

// Snapshot implements [vm.Snapshotter]. The guest stands still until all of its
// memory is in the file.
func (m *machine) Snapshot(ctx context.Context, dir string) error {
	if err := m.begin(ctx, "snapshot"); err != nil {
		return err
	}
	defer m.finish()
	if err := m.snapshot(ctx, dir); err != nil {
		return m.explain("snapshot", err)
	}
	return nil
}

func (m *machine) snapshot(ctx context.Context, dir string) (err error) {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if e, err := os.ReadDir(dir); err != nil {
		return err
	} else if len(e) > 0 {
		return fmt.Errorf("%s is not empty", dir)
	}
	out := manifest{
		Version: manifestVersion, Driver: m.driver.Name(), Fingerprint: fingerprint(m.version), Created: time.Now().UTC(),
		CPUs: m.spec.CPUs, MemoryMiB: m.spec.MemoryMiB, Net: m.spec.Net != "", Files: map[string]vm.FileSum{},
	}
	if out.Net {
		out.MAC = m.spec.MAC
	}
	if !m.stopped {
		if err := m.setState(ctx, "Paused"); err != nil {
			return err
		}
	}
	going := func() error {
		if m.spec.Template || m.stopped {
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
	m.mu.Lock()
	conn := m.conn
	m.conn = nil
	m.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	switch {
	case err != nil && m.spec.Template:
		// It was to end here, but one that has failed may be asked what is wrong.
		if !m.stopped && m.gone() == nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, m.setState(clean, "Resumed"))
		}
		return err
	case err != nil:
		// Whatever happened, a machine that ran goes on.
		if m.gone() == nil {
			err = errors.Join(err, going())
		}
		return err
	case m.spec.Template:
		m.end()
		<-m.done
	default:
		if err := going(); err != nil {
			return err
		}
	}
	if err := dig(ctx, filepath.Join(dir, memoryName)); err != nil {
		return err
	}
	return out.write(ctx, dir)
}

// save has the paused machine written to dir.
func (m *machine) save(ctx context.Context, dir string, out *manifest) error {
	into := map[string]*os.File{}
	defer func() {
		m.cmd.Offer(nil)
		for _, f := range into {
			f.Close()
		}
	}()
	for path, name := range map[string]string{statePath: stateName, memoryPath: memoryName} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		into[path] = f
	}
	m.cmd.Offer(into)
	err := m.api.call(ctx, "PUT", "/snapshot/create", apiSnapshotCreate{
		SnapshotType: "Full", // what changed since is a preview
		SnapshotPath: statePath,
		MemFilePath:  memoryPath,
	}, nil)
	if err != nil {
		return err
	}
	for _, d := range m.spec.Disks {
		sd := disk{ID: d.ID}
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

// write adds the sizes and sums of the files in dir and writes the manifest.
func (s *manifest) write(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if s.Files[e.Name()], err = vm.SumFile(ctx, filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if s.Sum, err = s.sum(); err != nil {
		return err
	}
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestName), append(b, '\n'), 0o600)
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
	if sum, err := s.sum(); err != nil || sum != s.Sum {
		return bad("%s is damaged (its checksum differs)", manifestName)
	}
	_, v, err := d.find(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case s.Driver != d.Name():
		return bad("it was made by driver %q, not %q", s.Driver, d.Name())
	case s.Version != manifestVersion:
		return bad("its format is version %d, not %d", s.Version, manifestVersion)
	case s.Fingerprint != fingerprint(v):
		return bad("it was made on %s, this is %s", s.Fingerprint, fingerprint(v))
	case s.CPUs < 1 || s.CPUs > 32 || s.MemoryMiB < 64:
		return bad("%d CPUs and %d MiB of memory make no machine", s.CPUs, s.MemoryMiB)
	case s.Files[memoryName].Size != int64(s.MemoryMiB)<<20:
		return bad("its memory is %d bytes, not %d MiB", s.Files[memoryName].Size, s.MemoryMiB)
	}
	want := []string{stateName, memoryName}
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
	open := map[string]string{memoryPath: filepath.Join(dir, memoryName)}
	m, err := d.launch(ctx, spec, "restore", open, func(m *machine, ctx context.Context) error { return m.load(ctx, dir) })
	if err != nil {
		return nil, err
	}
	return m, nil
}

// load has a fresh Firecracker become the machine in dir, and sets it going.
func (m *machine) load(ctx context.Context, dir string) error {
	state := filepath.Join(m.box, loadName)
	if err := vm.CopySparse(ctx, state, filepath.Join(dir, stateName)); err != nil {
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
	if m.spec.Net != "" {
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
