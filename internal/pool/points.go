package pool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hearth-ci/hearth/internal/machine"
)

// point is a checkpoint of a lease. What was restored from one may read its disks, and
// so may checkpoints that were taken after that: it stays on disk as long as they do.
type point struct {
	id, base  string // base is what its machine had been restored from, "" for the template
	forgotten bool
}

// points are a lease's checkpoints.
type points struct {
	all  []*point
	from string // which one the machine was restored from, "" for the template
}

func (p *points) add(id string) { p.all = append(p.all, &point{id: id, base: p.from}) }

// find is a checkpoint that can be gone back to, or nil.
func (p *points) find(id string) *point {
	for _, x := range p.all {
		if x.id == id && !x.forgotten {
			return x
		}
	}
	return nil
}

// sweep takes out the checkpoints that nothing needs any more, and returns them.
func (p *points) sweep() (gone []string) {
	base := map[string]string{}
	for _, x := range p.all {
		base[x.id] = x.base
	}
	needed := map[string]bool{}
	need := func(id string) {
		for ; id != "" && !needed[id]; id = base[id] {
			needed[id] = true
		}
	}
	need(p.from)
	for _, x := range p.all {
		if !x.forgotten {
			need(x.id)
		}
	}
	var left []*point
	for _, x := range p.all {
		if needed[x.id] {
			left = append(left, x)
		} else {
			gone = append(gone, x.id)
		}
	}
	p.all = left
	return gone
}

// Forget implements [machine.Machine].
func (l *Lease) Forget(c machine.Checkpoint) error {
	l.course <- struct{}{}
	defer func() { <-l.course }()
	l.mu.Lock()
	x := l.points.find(c.ID)
	if x == nil {
		l.mu.Unlock()
		return errors.New("forget: the machine has no such checkpoint")
	}
	x.forgotten = true
	l.mu.Unlock()
	return l.discard()
}

// discard removes what no longer is needed. The caller holds the course.
func (l *Lease) discard() error {
	l.mu.Lock()
	gone := l.points.sweep()
	l.mu.Unlock()
	var errs []error
	for _, id := range gone {
		if err := os.RemoveAll(filepath.Dir(l.checkpoint(id))); err != nil {
			errs = append(errs, fmt.Errorf("forget: %w", err))
		}
	}
	return errors.Join(errs...)
}
