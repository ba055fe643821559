package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Port is where machines find their session on the gateway's address.
const Port = 5000

const (
	maxManifest = 4 << 20
	maxBlob     = 16 << 30
	// DefaultLimit is Config.Limit where it is zero.
	DefaultLimit = 10 << 30
)

// Upstream is where a registry is that has another address than its name, or wants
// to know who asks.
type Upstream struct {
	// URL is where it is: "http://localhost:5001", "https://mirror.example.org"; ""
	// is https:// and its name.
	URL string
	// Username and Password, if set, are the host's.
	Username, Password string
}

// Config says where a cache is and what it may take.
type Config struct {
	Dir   string // is made
	Limit int64  // bytes on disk; 0 is DefaultLimit
	// Registries are those with an Upstream, by name ("ghcr.io", "localhost:5001").
	Registries map[string]Upstream
	Log        *slog.Logger
}

// Cache keeps manifests and blobs by digest. Safe for concurrent use, by several
// processes too.
type Cache struct {
	dir        string
	limit      int64
	registries map[string]Upstream
	log        *slog.Logger

	mu       sync.Mutex
	flights  map[item]*flight
	reserved int64 // bytes that flights may still write
	origins  map[origin]bool
}

// origin says that a repository has something: its registry has given it from there,
// or said so, since this process began.
type origin struct {
	item
	name string
}

// maxOrigins bounds what is remembered of that; what is forgotten is asked again.
const maxOrigins = 100_000

func (c *Cache) noteOrigin(o origin) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.origins == nil || len(c.origins) >= maxOrigins {
		c.origins = map[origin]bool{}
	}
	c.origins[o] = true
}

func (c *Cache) isOrigin(o origin) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.origins[o]
}

// Open returns the cache of a directory. It fails for an Upstream that makes no sense.
func Open(cfg Config) (*Cache, error) {
	c := &Cache{dir: cfg.Dir, limit: cmp.Or(cfg.Limit, DefaultLimit), registries: map[string]Upstream{}, log: cfg.Log, flights: map[item]*flight{}}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	for name, up := range cfg.Registries {
		if err := CheckUpstream(name, up); err != nil {
			return nil, err
		}
		c.registries[canonical(name)] = up
	}
	for _, d := range []string{"blobs", "tmp"} {
		if err := os.MkdirAll(filepath.Join(c.dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	c.sweep()
	return c, nil
}

// CheckUpstream says what is wrong with where a registry is said to be.
func CheckUpstream(name string, up Upstream) error {
	if !hostName.MatchString(strings.ToLower(name)) {
		return fmt.Errorf("registry %q: want the name of a registry, like ghcr.io or localhost:5001", name)
	}
	if up.URL == "" {
		return nil
	}
	u, err := url.Parse(up.URL)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("registry %s: its address is to be http:// or https://, a host and perhaps a path", name)
	case u.User != nil:
		return fmt.Errorf("registry %s: its address has credentials in it, which others would see", name)
	}
	return nil
}

// abandoned is how old a file that was not finished must be before it is taken for
// a dead process's.
const abandoned = 24 * time.Hour

func (c *Cache) sweep() {
	entries, err := os.ReadDir(filepath.Join(c.dir, "tmp"))
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > abandoned {
			os.Remove(filepath.Join(c.dir, "tmp", e.Name()))
		}
	}
}

// digest is a checked "sha256:…": 64 hexadecimal digits.
type digest string

func parseDigest(s string) (digest, error) {
	h, ok := strings.CutPrefix(s, "sha256:")
	if b, err := hex.DecodeString(h); !ok || err != nil || len(b) != sha256.Size || h != strings.ToLower(h) {
		return "", fmt.Errorf("%.80q is no sha256 digest", s)
	}
	return digest(s), nil
}

func digestOf(b []byte) digest {
	sum := sha256.Sum256(b)
	return digest("sha256:" + hex.EncodeToString(sum[:]))
}

// item is one blob or manifest of one registry. Two registries share none: one that
// says that it has another's would be believed.
type item struct {
	host   string
	digest digest
}

// hostDir is where a registry's are. A port's colon is none in a file's name.
func (c *Cache) hostDir(host string) string {
	return filepath.Join(c.dir, "blobs", strings.Replace(host, ":", "_", 1))
}

func (c *Cache) path(i item) string {
	return filepath.Join(c.hostDir(i.host), string(i.digest)[len("sha256:"):])
}

// open returns a kept blob and notes that it is used.
func (c *Cache) open(i item) (*os.File, int64, error) {
	f, err := os.Open(c.path(i))
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	now := time.Now()
	_ = os.Chtimes(c.path(i), now, now) // else it is only removed sooner
	return f, info.Size(), nil
}

// read returns a kept blob of at most max bytes, compared with its digest.
func (c *Cache) read(i item, max int64) ([]byte, error) {
	f, size, err := c.open(i)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > max {
		return nil, fmt.Errorf("%s has %d bytes", i.digest, size)
	}
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && digestOf(b) != i.digest {
		c.damaged(i)
		err = fs.ErrNotExist
	}
	return b, err
}

// damaged removes a blob that is not what its name says.
func (c *Cache) damaged(i item) {
	c.log.Warn("an image's part on disk was damaged and is fetched again", "path", c.path(i))
	os.Remove(c.path(i))
}

// flight is a blob being fetched, for all who want it.
type flight struct {
	done   chan struct{}
	err    error
	wait   int // who waits
	cancel context.CancelFunc
}

// fetch has a blob on disk, got by get where it is not there: once for all who ask at
// the same time. size is what it must have, or -1.
func (c *Cache) fetch(ctx context.Context, i item, size int64, get func(ctx context.Context) (io.ReadCloser, int64, error)) error {
	if _, err := os.Stat(c.path(i)); err == nil {
		return nil
	}
	c.mu.Lock()
	f := c.flights[i]
	if f == nil {
		// Not the first one's context: others may want it when that one is gone.
		fetching, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f = &flight{done: make(chan struct{}), cancel: cancel}
		c.flights[i] = f
		go func() {
			defer cancel()
			err := c.store(fetching, i, size, get)
			c.mu.Lock()
			f.err = err
			if c.flights[i] == f {
				delete(c.flights, i)
			}
			c.mu.Unlock()
			close(f.done)
		}()
	}
	f.wait++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if f.wait--; f.wait == 0 {
			f.cancel()
			if c.flights[i] == f { // whoever comes now begins anew
				delete(c.flights, i)
			}
		}
	}()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var errTooLarge = errors.New("larger than images are kept here")

// store fetches a blob to disk.
func (c *Cache) store(ctx context.Context, i item, want int64, get func(ctx context.Context) (io.ReadCloser, int64, error)) error {
	d := i.digest
	body, size, err := get(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	if size < 0 {
		size = want
	}
	switch {
	case size < 0:
		return fmt.Errorf("the registry does not say how large %s is", d)
	case want >= 0 && size != want:
		return fmt.Errorf("%s has %d bytes, its manifest says %d", d, size, want)
	case size > min(maxBlob, c.limit):
		return fmt.Errorf("%s: %w: %d bytes", d, errTooLarge, size)
	}
	if err := c.reserve(size); err != nil {
		return err
	}
	defer func() {
		c.mu.Lock()
		c.reserved -= size
		c.mu.Unlock()
	}()
	f, err := os.CreateTemp(filepath.Join(c.dir, "tmp"), "blob-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(body, size+1))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	switch {
	case err != nil:
		return err
	case n != size:
		return fmt.Errorf("%s came with %d bytes of %d", d, n, size)
	case "sha256:"+hex.EncodeToString(h.Sum(nil)) != string(d):
		return fmt.Errorf("what came for %s has another digest", d)
	}
	if err := os.MkdirAll(c.hostDir(i.host), 0o700); err != nil {
		return err
	}
	return os.Rename(f.Name(), c.path(i))
}

// keep writes down a manifest whose digest is known.
func (c *Cache) keep(i item, b []byte) error {
	if _, err := os.Stat(c.path(i)); err == nil {
		return nil
	}
	return c.store(context.Background(), i, int64(len(b)), func(context.Context) (io.ReadCloser, int64, error) {
		return io.NopCloser(strings.NewReader(string(b))), int64(len(b)), nil
	})
}

// reserve makes room for n bytes, by removing what was not used for longest.
func (c *Cache) reserve(n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reserved+n > c.limit {
		return fmt.Errorf("%w: too much is being fetched at once", errTooLarge)
	}
	// Who is reading what goes has it open.
	room := max(c.limit-c.reserved-n, 1)
	if _, err := Trim(c.dir, Limits{Bytes: room}); err != nil {
		return err
	}
	c.reserved += n
	return nil
}
