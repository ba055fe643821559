package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Errors that callers tell apart with errors.Is. What Build, Open and Verify
// return wraps them with the place and what to do.
var (
	ErrNotFound = errors.New("no such image")
	ErrCorrupt  = errors.New("image is damaged")
	ErrDiskFull = errors.New("disk full")
	ErrInUse    = errors.New("image is in use")
)

// A File is one file of an image, as it was when it was built.
type File struct {
	Name   string `json:"name"`   // within its layer's directory
	Size   int64  `json:"size"`   // bytes
	SHA256 string `json:"sha256"` // lower-case hex
}

// A Layer is a part of an image that is built, cached and verified by itself.
type Layer struct {
	Kind    string            `json:"kind"`           // kernel, initrd, base, tools, modules, engine
	ID      string            `json:"id"`             // sha256 over Inputs and Files
	Inputs  string            `json:"inputs"`         // sha256 over what it was built from
	Files   []File            `json:"files"`          // sorted by name
	Info    map[string]string `json:"info,omitempty"` // for people: versions of what is inside
	Created time.Time         `json:"created"`
	Took    time.Duration     `json:"took"` // nanoseconds it took to build

	dir string
}

// path returns the path of one of the layer's files.
func (l *Layer) path(name string) string { return filepath.Join(l.dir, name) }

// size returns the bytes of all files.
func (l *Layer) size() (n int64) {
	for _, f := range l.Files {
		n += f.Size
	}
	return n
}

// store is the directory that holds all layers and images:
//
//	lock              held (flock) while something is built or removed
//	tmp/              what is being built; anything here without a lock holder is litter
//	layers/KIND-ID/   a layer: its files and manifest.json, never changed once there
//	refs/KIND-INPUTS  text file: the ID of the newest layer built from these inputs
//	IMAGE-ID/         manifest.json of an image: which layers it is made of
//	templates/        machine snapshots, IMAGE-ID-KEY/
//	scratch/          empty file systems by size
//	debs/             the kernel package, kept for the next build
type store struct {
	dir string
	log *slog.Logger
}

const manifestName = "manifest.json"

// stampName holds what the files' inodes looked like when their contents were
// last hashed, so that using an image costs a few stat calls and not a hash
// over hundreds of megabytes.
const stampName = ".verified"

func openStore(dir string, log *slog.Logger) (*store, error) {
	if dir == "" {
		return nil, errors.New("image: no directory given")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []string{"layers", "refs", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("image directory: %w", err)
		}
	}
	return &store{dir: dir, log: log}, nil
}

// lock takes the store's lock, waiting for other processes (and other builds
// of this one) as long as ctx allows. wait is called once if there is a wait,
// with what the holder wrote about itself.
func (s *store) lock(ctx context.Context, wait func(holder string)) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("image lock: %w", err)
	}
	for first := true; ; first = false {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("image lock %s: %w", f.Name(), err)
		}
		if first && wait != nil {
			holder, _ := io.ReadAll(io.LimitReader(f, 100))
			wait(strings.TrimSpace(string(holder)))
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for another build in %s: %w", s.dir, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt(fmt.Appendf(nil, "process %d\n", os.Getpid()), 0)
	}
	return func() { f.Close() }, nil
}

// sweep removes what interrupted builds left. The caller holds the lock, so
// nothing in tmp belongs to anybody alive.
func (s *store) sweep(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		s.log.Info("removing what an interrupted build left", "name", e.Name())
		if err := removeTree(ctx, filepath.Join(s.dir, "tmp", e.Name())); err != nil {
			return fmt.Errorf("left by an interrupted build: %w", err)
		}
	}
	return nil
}

// lookup returns the layer last built from inputs, its files verified. It
// fails with ErrNotFound when there is none and with ErrCorrupt when it is not
// what was built.
func (s *store) lookup(kind, inputs string) (*Layer, error) {
	ref, err := os.ReadFile(s.refPath(kind, inputs))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s layer: %w", kind, ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	l, err := s.layer(kind, strings.TrimSpace(string(ref)))
	if err == nil && l.Inputs != inputs {
		return nil, fmt.Errorf("%s: %w: it names a layer that was made from something else", s.refPath(kind, inputs), ErrCorrupt)
	}
	return l, err
}

func (s *store) refPath(kind, inputs string) string {
	return filepath.Join(s.dir, "refs", kind+"-"+inputs)
}

func (s *store) layerDir(kind, id string) string {
	return filepath.Join(s.dir, "layers", kind+"-"+id)
}

// layer opens and verifies a layer by its ID.
func (s *store) layer(kind, id string) (*Layer, error) {
	if !isHash(id) || strings.ContainsAny(kind, "/.") {
		return nil, fmt.Errorf("%s layer: %q is not an ID: %w", kind, id, ErrCorrupt)
	}
	dir := s.layerDir(kind, id)
	data, err := os.ReadFile(filepath.Join(dir, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s layer: %w", kind, ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	l := &Layer{dir: dir}
	if err := json.Unmarshal(data, l); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", filepath.Join(dir, manifestName), ErrCorrupt, err)
	}
	if l.ID != id || l.Kind != kind || l.ID != layerID(kind, l.Inputs, l.Files) {
		return nil, fmt.Errorf("%s: %w: it does not describe this layer", filepath.Join(dir, manifestName), ErrCorrupt)
	}
	if err := l.verify(false); err != nil {
		return nil, err
	}
	return l, nil
}

// stamp is what says cheaply that a file has not been written to.
type stamp struct {
	Size  int64  `json:"size"`
	MTime int64  `json:"mtime"` // nanoseconds
	CTime int64  `json:"ctime"` // nanoseconds; unlike mtime it cannot be set back
	Inode uint64 `json:"inode"`
}

func stampOf(info fs.FileInfo) stamp {
	st := stamp{Size: info.Size(), MTime: info.ModTime().UnixNano()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		st.CTime, st.Inode = sys.Ctim.Nano(), sys.Ino
	}
	return st
}

// verify checks every file of the layer against the manifest: by its stamp if
// that is unchanged since its contents were last hashed, and by its hash
// otherwise, or always if full.
func (l *Layer) verify(full bool) error {
	old := map[string]stamp{}
	if data, err := os.ReadFile(l.path(stampName)); err == nil {
		_ = json.Unmarshal(data, &old) // unreadable stamps only mean hashing again
	}
	current := map[string]stamp{}
	changed := false
	for _, f := range l.Files {
		if !filepath.IsLocal(f.Name) {
			return fmt.Errorf("%s: %w: bad file name %q", l.path(manifestName), ErrCorrupt, f.Name)
		}
		info, err := os.Lstat(l.path(f.Name))
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if !info.Mode().IsRegular() || info.Size() != f.Size {
			return fmt.Errorf("%s: %w: %d bytes, was built with %d", l.path(f.Name), ErrCorrupt, info.Size(), f.Size)
		}
		st := stampOf(info)
		if full || st != old[f.Name] {
			sum, err := hashFile(l.path(f.Name))
			if err != nil {
				return fmt.Errorf("%s: %w: %w", l.path(f.Name), ErrCorrupt, err)
			}
			if sum != f.SHA256 {
				return fmt.Errorf("%s: %w: sha256 is %s, was built as %s", l.path(f.Name), ErrCorrupt, sum, f.SHA256)
			}
			changed = true
		}
		current[f.Name] = st
	}
	if changed {
		// Failing to write only means hashing again next time, for instance
		// where the cache belongs to another user.
		if data, err := json.Marshal(current); err == nil {
			_ = writeAtomic(l.path(stampName), data)
		}
	}
	return nil
}

// create builds a layer: fill puts its files into a private directory, and
// only when all of them are complete, hashed and on disk does the layer get
// its name. The caller holds the lock.
func (s *store) create(ctx context.Context, kind, inputs string, fill func(ctx context.Context, dir string) (info map[string]string, err error)) (_ *Layer,
	err error) {
	began := time.Now()
	tmp, err := os.MkdirTemp(filepath.Join(s.dir, "tmp"), kind+"-")
	if err != nil {
		return nil, s.full(err)
	}
	defer func() {
		if err == nil {
			return
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if rmErr := removeTree(clean, tmp); rmErr != nil {
			s.log.Warn("cannot remove an unfinished build; the next one will", "dir", tmp, "err", rmErr)
		}
		err = s.full(err)
	}()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return nil, err
	}
	info, err := fill(ctx, tmp)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	l := &Layer{Kind: kind, Inputs: inputs, Info: info, Created: began.UTC().Truncate(time.Second), dir: tmp}
	if l.Files, err = hashDir(tmp); err != nil {
		return nil, err
	}
	l.ID = layerID(kind, inputs, l.Files)
	l.Took = time.Since(began)
	manifest, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(l.path(manifestName), append(manifest, '\n'), 0o644); err != nil {
		return nil, err
	}
	if err := l.verify(false); err != nil { // cheap: writes the stamps
		return nil, err
	}
	final := s.layerDir(kind, l.ID)
	// An older layer under this name has the same contents or is damaged.
	// Machines that hold its files open keep them.
	if err := os.RemoveAll(final); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, final); err != nil {
		return nil, err
	}
	l.dir = final
	if err := writeAtomic(s.refPath(kind, inputs), []byte(l.ID+"\n")); err != nil {
		return nil, err
	}
	return l, nil
}

// full turns "no space left" into ErrDiskFull with what to do about it.
func (s *store) full(err error) error {
	if err == nil || errors.Is(err, ErrDiskFull) || !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return fmt.Errorf("%w: %s has %s free: free some space, or point HEARTH_HOME at a larger disk: %w", ErrDiskFull, s.dir, bytesText(freeBytes(s.dir)), err)
}

// need fails early when the disk cannot hold n bytes.
func (s *store) need(what string, n int64) error {
	if free := freeBytes(s.dir); free >= 0 && free < n {
		return fmt.Errorf("%w: building the %s needs about %s, %s has %s free: free some space, or point HEARTH_HOME at a larger disk", ErrDiskFull, what,
			bytesText(n), s.dir, bytesText(free))
	}
	return nil
}

// freeBytes says what an unprivileged user can still write, -1 if unknown.
func freeBytes(dir string) int64 {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return -1
	}
	return int64(st.Bavail) * st.Bsize
}

// bytesText formats a size for people, in powers of ten.
func bytesText(n int64) string {
	switch {
	case n < 0:
		return "an unknown number of bytes"
	case n < 1000:
		return fmt.Sprintf("%d B", n)
	case n < 1000_000:
		return fmt.Sprintf("%.0f kB", float64(n)/1e3)
	case n < 1000_000_000:
		return fmt.Sprintf("%.0f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

// layerID is the hash that names a layer: what it was made from and what came out.
func layerID(kind, inputs string, files []File) string {
	return hashStrings(kind, inputs, slices.Collect(func(yield func(string) bool) {
		for _, f := range files {
			if !yield(fmt.Sprintf("%s %d %s", f.Name, f.Size, f.SHA256)) {
				return
			}
		}
	})...)
}

// hashStrings hashes strings so that no two different lists collide.
func hashStrings(a, b string, rest ...string) string {
	h := sha256.New()
	for _, s := range append([]string{a, b}, rest...) {
		fmt.Fprintf(h, "%d:%s\n", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func isHash(s string) bool {
	if len(s) != 64 {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil && s == strings.ToLower(s)
}

func hashBytes(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, f, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// hashDir describes every file directly in dir and writes it through to disk.
func hashDir(dir string) ([]File, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, err
	}
	var files []File
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s: a layer holds regular files only", path)
		}
		if err := syncFile(path); err != nil {
			return nil, err
		}
		sum, err := hashFile(path)
		if err != nil {
			return nil, err
		}
		files = append(files, File{Name: e.Name(), Size: info.Size(), SHA256: sum})
	}
	return files, nil
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// writeAtomic replaces a small file: readers see the old or the new contents.
func writeAtomic(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// sortedKeys is for stable output.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
