package results

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// SweepOptions say what is kept no longer.
type SweepOptions struct {
	Unused time.Duration // of cache entries; 0 is no limit
	Bytes  int64         // of all repositories together; 0 is no limit
	DryRun bool          // say what would go
}

// Removed is something that a sweep removed.
type Removed struct {
	Kind       string // artifact, cache, upload, content
	Name       string
	Repository string
	Bytes      int64
	Why        string
}

// dead is how long ago an upload was last written to that nobody goes on with: its
// address has expired by then.
const dead = 4 * uploadTime

// Sweep removes artifacts that have expired, cache entries that were not used for
// long, and what dead processes left. Where all together take too much, the
// repository that takes most loses cache entries first, those used longest ago, then
// its oldest artifacts.
func (s *Store) Sweep(ctx context.Context, o SweepOptions) (gone []Removed, err error) {
	type taking struct {
		dir  string
		have int64
	}
	var all []taking
	var total int64
	err = s.each(func(p *place) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		removed, err := s.sweep(p, o)
		gone = append(gone, removed...)
		have := p.artifactBytes() + p.cacheBytes()
		all, total = append(all, taking{p.dir, have}), total+have
		return err
	})
	if err != nil || o.Bytes <= 0 {
		return gone, err
	}
	for total > o.Bytes && ctx.Err() == nil {
		// What is too much is taken from the largest, down to the one after it.
		slices.SortFunc(all, func(a, b taking) int { return int(max(min(b.have-a.have, 1), -1)) })
		if len(all) == 0 || all[0].have == 0 {
			break
		}
		down := total - o.Bytes
		if len(all) > 1 {
			down = min(down, all[0].have-all[1].have+1)
		}
		removed, n, err := s.shrink(all[0].dir, down, o)
		if err != nil {
			return gone, err
		}
		gone = append(gone, removed...)
		total -= n
		if all[0].have -= n; n == 0 {
			all = all[1:]
		}
	}
	return gone, nil
}

// shrink takes so many bytes from a repository.
func (s *Store) shrink(dir string, bytes int64, o SweepOptions) (gone []Removed, n int64, err error) {
	p, err := s.open(dir, false)
	if p == nil {
		return nil, 0, err
	}
	defer p.close()
	why := fmt.Sprintf("all artifacts and caches take more than %d MiB, and this repository's most", o.Bytes>>20)
	change := func(p *place) error {
		for n < bytes && len(p.Caches)+len(p.Artifacts) > 0 {
			oldest := -1
			for i, c := range p.Caches {
				if c.Upload == "" && (oldest < 0 || c.Used.Before(p.Caches[oldest].Used)) {
					oldest = i
				}
			}
			if oldest >= 0 {
				c := p.Caches[oldest]
				n += c.Size
				gone = append(gone, Removed{"cache", c.Key, p.Repository, c.Size, why})
				p.Caches = slices.Delete(p.Caches, oldest, oldest+1)
				continue
			}
			if len(p.Artifacts) == 0 {
				break
			}
			a := p.Artifacts[0]
			n += a.Size
			gone = append(gone, Removed{"artifact", a.Name, p.Repository, a.Size, why})
			p.Artifacts = p.Artifacts[1:]
		}
		return nil
	}
	if o.DryRun {
		return gone, n, change(p)
	}
	err = p.update(change)
	return gone, n, err
}

func (s *Store) sweep(p *place, o SweepOptions) (gone []Removed, err error) {
	now := s.now()
	change := func(p *place) error {
		p.Artifacts = deleteArtifacts(p.Artifacts, func(a Artifact) bool {
			old := a.Expires.Before(now)
			if old {
				gone = append(gone, Removed{"artifact", a.Name, p.Repository, a.Size, "it has expired"})
			}
			return old
		})
		p.Caches = deleteCaches(p.Caches, func(c Cache) bool {
			if c.Upload != "" {
				return c.Until.Before(now)
			}
			old := o.Unused > 0 && now.Sub(c.Used) > o.Unused
			if old {
				gone = append(gone, Removed{"cache", c.Key, p.Repository, c.Size, fmt.Sprintf("it was not used for %v", o.Unused)})
			}
			return old
		})
		for _, c := range s.evict(p, 0) {
			gone = append(gone, Removed{"cache", c.Key, p.Repository, c.Size, fmt.Sprintf("the repository's caches take more than %d MiB", s.limits.CacheBytes>>20)})
		}
		return nil
	}
	if o.DryRun {
		change(p)
		return gone, nil
	}
	was := len(p.Artifacts) + len(p.Caches)
	if change(p); len(p.Artifacts)+len(p.Caches) != was {
		if err := p.write(); err != nil {
			return nil, err
		}
	}
	// Contents that the index names no more are among those that nobody names.
	var errs []error
	named := p.digests()
	errs = append(errs, litter(filepath.Join(p.dir, "blobs"), func(e fs.DirEntry, _ fs.FileInfo) bool {
		_, is := named["sha256:"+e.Name()]
		return !is
	}))
	errs = append(errs, litter(filepath.Join(p.dir, "uploads"), func(e fs.DirEntry, info fs.FileInfo) bool {
		old := now.Sub(info.ModTime()) > dead
		if old {
			gone = append(gone, Removed{Kind: "upload", Name: e.Name(), Repository: p.Repository, Why: "its process is gone"})
		}
		return old
	}))
	return gone, errors.Join(errs...)
}

// litter removes the entries of a directory that nobody wants.
func litter(dir string, which func(fs.DirEntry, fs.FileInfo) bool) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && which(e, info) {
			err = os.RemoveAll(filepath.Join(dir, e.Name()))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// RemoveRun removes the artifacts of a run.
func (s *Store) RemoveRun(repository, run string) error {
	x, err := s.view(repository)
	if err != nil {
		return err
	}
	of := func(a Artifact) bool { return a.Run == run }
	if !slices.ContainsFunc(x.Artifacts, of) {
		return nil
	}
	return s.update(repository, func(p *place) error {
		p.Artifacts = deleteArtifacts(p.Artifacts, of)
		return nil
	})
}
