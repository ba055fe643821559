package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/vmm"
)

// base is a checkpoint that was exported, unpacked for the machines that begin as it.
type base struct {
	id  string // of its directory, as a machine's
	key string // the Saved's
	dir string

	once sync.Once
	err  error
	note sync.Mutex // one writes its record at a time
	used int        // by leases and claims; guarded by Pool.mu
}

// snapshot is where it is once it is unpacked.
func (b *base) snapshot() string { return filepath.Join(b.dir, "snapshot") }

// Origin implements [machine.Machine].
func (l *Lease) Origin() machine.Origin {
	k := l.kind
	o := machine.Origin{Driver: k.driver.Name(), Image: k.img.ID, CPUs: k.cpus, MemoryMiB: k.memory, DiskMiB: l.pool.cfg.ScratchMiB, Containers: k.containers}
	k.tmpl <- struct{}{}
	defer k.unlock()
	o.Template = k.named()
	return o
}

// named is the name of the template, "" if it has none. The caller holds tmpl.
func (k *kind) named() string {
	if k.dir == "" {
		return ""
	}
	if k.name == "" {
		k.name, _ = vmm.Identity(k.dir) // of a driver whose snapshots have none there is nothing to export
	}
	return k.name
}

// origin says why a machine of an Origin cannot be had here, as far as that can be
// known before its template is looked at.
func (p *Pool) origin(o machine.Origin) error {
	switch {
	case o.Driver != p.cfg.Driver.Name():
		return fmt.Errorf("%w: it is of driver %s, and machines here are of %s", machine.ErrOrigin, o.Driver, p.cfg.Driver.Name())
	case o.DiskMiB != p.cfg.ScratchMiB:
		return fmt.Errorf("%w: its machine had a disk of %d MiB, and those here have %d", machine.ErrOrigin, o.DiskMiB, p.cfg.ScratchMiB)
	}
	return nil
}

// Export implements [machine.Machine].
func (l *Lease) Export(ctx context.Context, c machine.Checkpoint, w io.Writer) error {
	select {
	case l.course <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("export: %w", context.Cause(ctx))
	}
	defer func() { <-l.course }()
	l.mu.Lock()
	mine, released := l.points.find(c.ID) != nil, l.released
	l.mu.Unlock()
	switch {
	case released:
		return fmt.Errorf("export: %w", vm.ErrClosed)
	case !mine:
		return errors.New("export: the machine has no such checkpoint")
	}
	template, err := l.kind.template(ctx)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if template == "" || l.Origin().Template == "" {
		return fmt.Errorf("export: driver %s cannot: %w", l.kind.driver.Name(), errors.ErrUnsupported)
	}
	if err := vmm.Pack(ctx, w, l.checkpoint(c.ID), template); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// unpacked is what machines begin as that begin as s, to be let go of.
func (p *Pool) unpacked(ctx context.Context, s *machine.Saved, k *kind) (*base, error) {
	template, err := k.template(ctx)
	if err != nil {
		return nil, err
	}
	if err := k.lock(ctx); err != nil {
		return nil, err
	}
	name := k.named()
	k.unlock()
	if name == "" || name != s.Origin.Template {
		return nil, fmt.Errorf("%w: the template of image %s with %d CPUs and %d MiB that it was cloned from is gone, or was made again", machine.ErrOrigin,
			k.img.ID, k.cpus, k.memory)
	}
	p.mu.Lock()
	b := p.bases[s.ID]
	if b == nil {
		id := newID()
		b = &base{id: id, key: s.ID, dir: filepath.Join(p.machines, id)}
		p.bases[s.ID] = b
	}
	b.used++
	p.mu.Unlock()
	b.once.Do(func() { b.err = p.unpack(ctx, b, s, k, template) })
	if err = b.err; err == nil {
		// As long as a machine may live that begins with it now.
		b.note.Lock()
		err = vm.WriteRecord(b.dir, k.driver.Name(), vm.Spec{ID: b.id, DeleteBy: time.Now().Add(machine.MaxLease + time.Hour)}, 0)
		b.note.Unlock()
	}
	if err != nil {
		return nil, errors.Join(err, p.letGo(b))
	}
	return b, nil
}

func (p *Pool) unpack(ctx context.Context, b *base, s *machine.Saved, k *kind, template string) error {
	if _, err := vm.MakeDir(p.machines, b.id); err != nil {
		return err
	}
	if err := os.Mkdir(b.snapshot(), 0o700); err != nil {
		return err
	}
	in, err := s.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	// All of its memory and its disk, and what describes them, at the most.
	limit := (2*int64(k.memory) + 2*p.cfg.ScratchMiB + 1024) << 20
	if err := vmm.Unpack(ctx, in, b.snapshot(), template, limit); err != nil {
		return err
	}
	return k.driver.Verify(ctx, b.snapshot())
}

// letGo removes what was unpacked once nobody needs it; nil is nothing.
func (p *Pool) letGo(b *base) error {
	if b == nil {
		return nil
	}
	p.mu.Lock()
	b.used--
	last := b.used == 0
	if last && p.bases[b.key] == b {
		delete(p.bases, b.key)
	}
	p.mu.Unlock()
	if !last {
		return nil
	}
	return os.RemoveAll(b.dir)
}
