package results

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Limits bound what is kept. Zero fields take their default.
type Limits struct {
	Item          int64         // bytes of one artifact or cache entry; 10 GiB
	JobArtifacts  int           // of one job; 500
	ArtifactBytes int64         // of a repository; 20 GiB
	CacheBytes    int64         // of a repository; 10 GiB
	Entries       int           // artifacts, and caches, of a repository; 10,000
	Age           time.Duration // of an artifact at most, and if nothing else is said; 90 days
	Free          int64         // bytes that must remain on the disk; 1 GiB
}

func (l Limits) withDefaults() Limits {
	l.Item = cmp.Or(l.Item, 10<<30)
	l.JobArtifacts = cmp.Or(l.JobArtifacts, 500)
	l.ArtifactBytes = cmp.Or(l.ArtifactBytes, 20<<30)
	l.CacheBytes = cmp.Or(l.CacheBytes, 10<<30)
	l.Entries = cmp.Or(l.Entries, 10_000)
	l.Age = cmp.Or(l.Age, 90*24*time.Hour)
	l.Free = cmp.Or(l.Free, 1<<30)
	return l
}

// Config is what a [Store] is made of.
type Config struct {
	Dir    string
	Limits Limits
	Now    func() time.Time // nil: time.Now
	Log    *slog.Logger     // nil discards
}

// Store keeps artifacts and caches in a directory. Several processes may use it.
type Store struct {
	dir    string
	limits Limits
	now    func() time.Time
	log    *slog.Logger
}

// New returns the store in a directory, which is made when it is needed.
func New(cfg Config) *Store {
	s := &Store{dir: cfg.Dir, limits: cfg.Limits.withDefaults(), now: cfg.Now, log: cfg.Log}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// ErrNotFound says that there is no such artifact or cache entry.
var ErrNotFound = errors.New("not found")

// Artifact is one that is complete.
type Artifact struct {
	ID      int64     `json:"id"` // of the repository's
	Run     string    `json:"run"`
	Attempt int       `json:"attempt"`
	Job     string    `json:"job"` // its key
	Name    string    `json:"name"`
	Type    string    `json:"type"` // application/zip, or that of a single file
	Size    int64     `json:"size"`
	Digest  string    `json:"digest"` // sha256:…
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
}

// Zip reports whether the artifact is an archive; it is a single file otherwise.
func (a Artifact) Zip() bool {
	switch a.Type {
	case "application/zip", "application/x-zip-compressed", "application/zip-compressed":
		return true
	}
	return false
}

// Cache is an entry.
type Cache struct {
	ID      int64     `json:"id"`
	Scope   string    `json:"scope"` // a ref
	Key     string    `json:"key"`
	Version string    `json:"version"`
	Size    int64     `json:"size"`
	Digest  string    `json:"digest,omitempty"`
	Created time.Time `json:"created"`
	Used    time.Time `json:"used"`
	// Upload is set while the content is on its way: the key is reserved until
	// then, and nobody sees the entry.
	Upload string    `json:"upload,omitempty"`
	Until  time.Time `json:"until,omitzero"`
}

// index is all that is known of a repository's.
type index struct {
	Repository string     `json:"repository"`
	Last       int64      `json:"last"` // the id given last
	Artifacts  []Artifact `json:"artifacts"`
	Caches     []Cache    `json:"caches"`
}

func (x *index) next() int64 {
	x.Last++
	return x.Last
}

// digests are the contents that the index names.
func (x *index) digests() map[string]int64 {
	out := map[string]int64{}
	for _, a := range x.Artifacts {
		out[a.Digest] = a.Size
	}
	for _, c := range x.Caches {
		if c.Upload == "" {
			out[c.Digest] = c.Size
		}
	}
	return out
}

func (x *index) artifactBytes() (n int64) {
	for _, a := range x.Artifacts {
		n += a.Size
	}
	return n
}

func (x *index) cacheBytes() (n int64) {
	for _, c := range x.Caches {
		n += c.Size
	}
	return n
}

const (
	maxIndex  = 64 << 20
	indexName = "index.json"
)

func repositoryDir(name string) string {
	sum := sha256.Sum256([]byte(strings.ToLower(name)))
	return hex.EncodeToString(sum[:16])
}

// place is a repository's directory while its lock is held.
type place struct {
	dir  string
	lock *os.File
	index
}

// open takes the lock of a repository's directory and reads its index. Without
// make a repository that has nothing is nil.
func (s *Store) open(dir string, make bool) (*place, error) {
	if make {
		for _, sub := range []string{"blobs", "uploads"} {
			if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
				return nil, err
			}
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrNotExist) && !make {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p := &place{dir: dir, lock: lock}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	for errors.Is(err, syscall.EINTR) {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err == nil {
		err = p.read()
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("results in %s: %w", dir, err)
	}
	return p, nil
}

func (p *place) close() { p.lock.Close() }

func (p *place) read() error {
	f, err := os.Open(filepath.Join(p.dir, indexName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil {
		return err
	}
	if len(b) > maxIndex {
		return fmt.Errorf("%s has more than %d MiB", indexName, maxIndex>>20)
	}
	if err := json.Unmarshal(b, &p.index); err != nil {
		return fmt.Errorf("%s: %w; remove the directory to start anew", indexName, err)
	}
	return nil
}

// write replaces the index.
func (p *place) write() error {
	b, err := json.Marshal(p.index)
	if err != nil {
		return err
	}
	if len(b) > maxIndex {
		return fmt.Errorf("%s would have more than %d MiB", indexName, maxIndex>>20)
	}
	tmp := filepath.Join(p.dir, indexName+".new")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(p.dir, indexName))
}

// update changes a repository's index as change does, which gives an error to
// change nothing. Contents that the index names no more are removed.
func (s *Store) update(repository string, change func(*place) error) error {
	p, err := s.open(filepath.Join(s.dir, repositoryDir(repository)), true)
	if err != nil {
		return err
	}
	defer p.close()
	p.Repository = repository
	return p.update(change)
}

func (p *place) update(change func(*place) error) error {
	before := p.digests()
	if err := change(p); err != nil {
		return err
	}
	if err := p.write(); err != nil {
		return err
	}
	after := p.digests()
	for digest := range before {
		if _, still := after[digest]; !still {
			if err := os.Remove(p.blob(digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// view reads a repository's index.
func (s *Store) view(repository string) (index, error) {
	p, err := s.open(filepath.Join(s.dir, repositoryDir(repository)), false)
	if p == nil {
		return index{}, err
	}
	defer p.close()
	return p.index, nil
}

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// blob is the path of a content.
func (p *place) blob(digest string) string { return blobPath(p.dir, digest) }

func blobPath(dir, digest string) string {
	if !digestForm.MatchString(digest) {
		digest = "none" // of an index that somebody has written into
	}
	return filepath.Join(dir, "blobs", strings.TrimPrefix(digest, "sha256:"))
}

// keep makes an uploaded file a content. The caller holds the lock and names it in
// the index next.
func (p *place) keep(file, digest string) error {
	to := p.blob(digest)
	if _, err := os.Lstat(to); err == nil {
		return os.Remove(file)
	}
	return os.Rename(file, to)
}

// Artifacts lists the artifacts of a run, or of all runs of the repository if run
// is "", in the order of their making.
func (s *Store) Artifacts(repository, run string) ([]Artifact, error) {
	x, err := s.view(repository)
	if err != nil {
		return nil, err
	}
	now := s.now()
	return slices.DeleteFunc(x.Artifacts, func(a Artifact) bool { return run != "" && a.Run != run || a.Expires.Before(now) }), nil
}

// OpenArtifact opens the content of an artifact.
func (s *Store) OpenArtifact(repository string, a Artifact) (*os.File, error) {
	f, err := os.Open(blobPath(filepath.Join(s.dir, repositoryDir(repository)), a.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the content of artifact %q: %w", a.Name, ErrNotFound)
	}
	return f, err
}

// Caches lists a repository's cache entries, those used last first.
func (s *Store) Caches(repository string) ([]Cache, error) {
	x, err := s.view(repository)
	if err != nil {
		return nil, err
	}
	out := slices.DeleteFunc(x.Caches, func(c Cache) bool { return c.Upload != "" })
	slices.SortStableFunc(out, func(a, b Cache) int { return b.Used.Compare(a.Used) })
	return out, nil
}

// RemoveCaches removes the entries of a repository that match, and returns them.
func (s *Store) RemoveCaches(repository string, match func(Cache) bool) (removed []Cache, err error) {
	err = s.update(repository, func(p *place) error {
		p.Caches = slices.DeleteFunc(p.Caches, func(c Cache) bool {
			if c.Upload != "" || !match(c) {
				return false
			}
			removed = append(removed, c)
			return true
		})
		return nil
	})
	return removed, err
}

// Repositories lists the repositories that have something here.
func (s *Store) Repositories() ([]string, error) {
	var out []string
	err := s.each(func(p *place) error {
		if len(p.Artifacts)+len(p.Caches) > 0 {
			out = append(out, p.Repository)
		}
		return nil
	})
	slices.Sort(out)
	return out, err
}

// each calls f with every repository's directory, one lock at a time.
func (s *Store) each(f func(*place) error) error {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		p, err := s.open(filepath.Join(s.dir, e.Name()), false)
		if p == nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, f(p))
		p.close()
	}
	return errors.Join(errs...)
}

// room says whether so many bytes more leave what must remain on the disk.
func (s *Store) room(dir string, n int64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free-n < s.limits.Free {
		return fmt.Errorf("the host's disk has %d MiB left, and %d MiB must remain: hearth gc, hearth cache rm", free>>20, s.limits.Free>>20)
	}
	return nil
}

func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
