// Package point keeps points in time of jobs: machines as they were before a step,
// with what the runner knew of the job then, after the machine and its run are gone.
//
// What a point holds is [machine.Machine]'s Export and the engine's state, opaque
// here: this package gives it a name, room, and walls.
//
// # One file each
//
//	magic       "hearth point 1\n"
//	meta        length (uvarint), JSON: what is told of a point without its key
//	salt        32 bytes
//	chunks      64 KiB of what the point holds each, sealed with AES-256-GCM
//
// A point is as secret as its job, whose memory has all its secrets: it is never on
// disk but sealed, by a key of the install ([Store].Dir, file "key", readable by its
// owner only) from which HKDF derives one for each point, of its salt and its meta. So
// neither can be changed, nor a chunk, nor their order or their end: nonces count, and
// the last chunk's says that it is. Whoever has the key file has the points; whoever
// copies the points without it has noise. Remove the key, and all points are gone.
//
// # Whole or not there
//
// A point is written beside its place under a lock and gets its name once all of it is
// on disk: [Writer.Commit]. What a process that died has begun is nobody's, and removed
// by the next one. A point that cannot be read to its end is never begun with, since
// the last bytes are checked before what they end is used.
//
// # Room
//
// All points together take at most [Store].Budget. What is worth least goes first: that
// is the time that a job took to come there, by byte and by age; a day halves it. See
// [Store.Trim].
package point

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hearth-ci/hearth/internal/machine"
)

const (
	magic    = "hearth point 1\n"
	suffix   = ".point"
	partial  = ".part"
	keyName  = "key"
	chunk    = 64 << 10
	saltSize = 32
	// maxMeta bounds what is told of a point.
	maxMeta = 64 << 10
	// MaxPoints bounds how many there are, whatever they take.
	MaxPoints = 10_000
)

// Meta is what is told of a point without its key: names as they are in the run's
// record, masked.
type Meta struct {
	ID         string         `json:"id"`
	Run        string         `json:"run"`
	Repository string         `json:"repository,omitempty"`
	Job        string         `json:"job"` // its key
	Step       int            `json:"step"`
	Name       string         `json:"name"` // of the step
	Attempt    int            `json:"attempt"`
	Created    time.Time      `json:"created"`
	Cost       time.Duration  `json:"cost"` // that the job took to come there
	Origin     machine.Origin `json:"origin"`
	Bytes      int64          `json:"-"` // on disk
}

// Store is a directory of points. Its methods are safe for concurrent use, by several
// processes, too.
type Store struct {
	Dir    string
	Budget int64         // bytes of all; 0 is no limit
	Age    time.Duration // how long one is kept; 0 is no limit
	Now    func() time.Time
}

// Errors of Open and Find.
var (
	ErrNone    = errors.New("no such point")
	ErrDamaged = errors.New("the point is damaged, or the key is not the one that it was written with")
)

func (s *Store) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// key is the install's; it is made if there is none.
func (s *Store) key(create bool) ([]byte, error) {
	name := filepath.Join(s.Dir, keyName)
	for again := false; ; again = true {
		f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) && create && !again {
			if err := s.makeKey(name); err != nil {
				return nil, fmt.Errorf("the key of points: %w", err)
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("the key of points: %w", err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if st.Mode().Perm()&0o077 != 0 {
			return nil, fmt.Errorf("others can read %s, which opens all points: remove it, and the points with it", name)
		}
		b := make([]byte, 33)
		n, err := io.ReadFull(f, b)
		if n != 32 || !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%s is no key", name)
		}
		return b[:32], nil
	}
}

// makeKey puts a new key in its place, unless another process is first.
func (s *Store) makeKey(name string) error {
	f, err := os.CreateTemp(s.Dir, "key-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	b := make([]byte, 32)
	rand.Read(b)
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// sealer is what seals and opens one point's chunks.
func sealer(key, salt, meta []byte) (cipher.AEAD, error) {
	own, err := hkdf.Key(sha256.New, key, salt, magic+string(meta), 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(own)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// nonce is that of the nth chunk.
func nonce(n uint64, last bool) []byte {
	b := make([]byte, 12)
	binary.BigEndian.PutUint64(b[3:], n)
	if last {
		b[11] = 1
	}
	return b
}

// Writer writes one point: it is there after Commit, and not at all after Abort or
// when the process dies. It is not for concurrent use.
type Writer struct {
	store *Store
	meta  Meta
	f     *os.File
	w     *bufio.Writer
	aead  cipher.AEAD
	buf   []byte
	n     uint64
	size  int64
	err   error
}

// Create begins a point. Its ID and Created are chosen here.
func (s *Store) Create(m Meta) (*Writer, error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep a point: %w", err)
	}
	key, err := s.key(true)
	if err != nil {
		return nil, err
	}
	var id [8]byte
	rand.Read(id[:])
	m.ID, m.Created = fmt.Sprintf("p%x", id), s.now().UTC()
	meta, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if len(meta) > maxMeta {
		return nil, fmt.Errorf("keep a point: its names have %d bytes", len(meta))
	}
	salt := make([]byte, saltSize)
	rand.Read(salt)
	w := &Writer{store: s, meta: m, buf: make([]byte, 0, chunk)}
	if w.aead, err = sealer(key, salt, meta); err != nil {
		return nil, err
	}
	if w.f, err = os.OpenFile(filepath.Join(s.Dir, m.ID+partial), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
		return nil, fmt.Errorf("keep a point: %w", err)
	}
	// Whoever sweeps leaves what is locked.
	if err := syscall.Flock(int(w.f.Fd()), syscall.LOCK_EX); err != nil {
		w.Abort()
		return nil, fmt.Errorf("keep a point: %w", err)
	}
	w.w = bufio.NewWriterSize(w.f, 256<<10)
	w.put([]byte(magic))
	w.put(binary.AppendUvarint(nil, uint64(len(meta))))
	w.put(meta)
	w.put(salt)
	return w, nil
}

func (w *Writer) put(b []byte) {
	if w.err != nil {
		return
	}
	if w.size += int64(len(b)); w.store.Budget > 0 && w.size > w.store.Budget {
		w.err = fmt.Errorf("keep a point: it alone takes more than the %d MiB that all may take", w.store.Budget>>20)
		return
	}
	if _, err := w.w.Write(b); err != nil {
		w.err = fmt.Errorf("keep a point: %w", err)
	}
}

// Write implements [io.Writer].
func (w *Writer) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && w.err == nil {
		if len(w.buf) == chunk {
			w.seal(false)
		}
		k := min(chunk-len(w.buf), len(p))
		w.buf, p = append(w.buf, p[:k]...), p[k:]
	}
	if w.err != nil {
		return 0, w.err
	}
	return n, nil
}

func (w *Writer) seal(last bool) {
	w.put(w.aead.Seal(nil, nonce(w.n, last), w.buf, nil))
	w.n++
	w.buf = w.buf[:0]
}

// Commit ends the point and gives it its name; what is worth less makes room for it.
func (w *Writer) Commit(ctx context.Context) (Meta, error) {
	w.seal(true)
	if w.err == nil {
		w.err = w.w.Flush()
	}
	if w.err == nil {
		w.err = w.f.Sync()
	}
	var st fs.FileInfo
	if w.err == nil {
		st, w.err = w.f.Stat()
	}
	if w.err == nil {
		w.err = os.Rename(w.f.Name(), filepath.Join(w.store.Dir, w.meta.ID+suffix))
	}
	if w.err != nil {
		w.Abort()
		return Meta{}, w.err
	}
	w.meta.Bytes = st.Size()
	w.f.Close()
	_, err := w.store.Trim(ctx, false)
	return w.meta, err
}

// Abort gives the point up. It does nothing after Commit.
func (w *Writer) Abort() {
	os.Remove(w.f.Name())
	w.f.Close()
	if w.err == nil {
		w.err = fs.ErrClosed
	}
}

// header reads what is told of a point, and leaves in at its salt.
func header(in *bufio.Reader) (m Meta, text []byte, err error) {
	b := make([]byte, len(magic))
	if _, err := io.ReadFull(in, b); err != nil || string(b) != magic {
		return m, nil, ErrDamaged
	}
	n, err := binary.ReadUvarint(in)
	if err != nil || n > maxMeta {
		return m, nil, ErrDamaged
	}
	text = make([]byte, n)
	if _, err := io.ReadFull(in, text); err != nil {
		return m, nil, ErrDamaged
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, nil, ErrDamaged
	}
	return m, text, nil
}

// validID says whether id is of the form that Create gives.
func validID(id string) bool {
	return len(id) == 17 && id[0] == 'p' && strings.Trim(id[1:], "0123456789abcdef") == ""
}

// List returns the points, oldest first; those that are not whole are not among them.
func (s *Store) List(ctx context.Context) ([]Meta, error) {
	all, _, err := s.list(ctx)
	return all, err
}

// list also names the files of what is damaged.
func (s *Store) list(ctx context.Context) (all []Meta, damaged []string, err error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		id, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || !e.Type().IsRegular() {
			continue
		}
		m, err := s.meta(id)
		switch {
		case errors.Is(err, fs.ErrNotExist): // another process removed it
		case err != nil || m.ID != id || !validID(id):
			damaged = append(damaged, e.Name())
		default:
			all = append(all, m)
		}
	}
	slices.SortStableFunc(all, func(a, b Meta) int { return a.Created.Compare(b.Created) })
	return all, damaged, nil
}

func (s *Store) meta(id string) (Meta, error) {
	f, err := os.Open(filepath.Join(s.Dir, id+suffix))
	if err != nil {
		return Meta{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Meta{}, err
	}
	m, _, err := header(bufio.NewReaderSize(f, 4<<10))
	m.Bytes = st.Size()
	return m, err
}

// Of returns the points of a run whose id begins so, oldest first.
func (s *Store) Of(ctx context.Context, run string) ([]Meta, error) {
	all, err := s.List(ctx)
	return slices.DeleteFunc(all, func(m Meta) bool { return !strings.HasPrefix(m.Run, run) }), err
}

// Open reads what a point holds. A read never hands out what has not been checked, and
// an end is only where the point ended.
func (s *Store) Open(id string) (Meta, io.ReadCloser, error) {
	if !validID(id) {
		return Meta{}, nil, fmt.Errorf("%w: %q", ErrNone, id)
	}
	f, err := os.Open(filepath.Join(s.Dir, id+suffix))
	if errors.Is(err, fs.ErrNotExist) {
		return Meta{}, nil, fmt.Errorf("%w: %s", ErrNone, id)
	} else if err != nil {
		return Meta{}, nil, err
	}
	r := &reader{f: f, in: bufio.NewReaderSize(f, 256<<10), sealed: make([]byte, chunk+16)}
	m, text, err := header(r.in)
	salt := make([]byte, saltSize)
	if err == nil && m.ID != id {
		err = ErrDamaged
	}
	if err == nil {
		if _, err = io.ReadFull(r.in, salt); err != nil {
			err = ErrDamaged
		}
	}
	var key []byte
	if err == nil {
		key, err = s.key(false)
	}
	if err == nil {
		r.aead, err = sealer(key, salt, text)
	}
	if err != nil {
		f.Close()
		return Meta{}, nil, fmt.Errorf("point %s: %w", id, err)
	}
	if st, err := f.Stat(); err == nil {
		m.Bytes = st.Size()
	}
	return m, r, nil
}

// reader opens chunks.
type reader struct {
	f      *os.File
	in     *bufio.Reader
	aead   cipher.AEAD
	sealed []byte
	rest   []byte
	n      uint64
	err    error
}

func (r *reader) Close() error { return r.f.Close() }

func (r *reader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		n, err := io.ReadFull(r.in, r.sealed)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			r.err = err
			return 0, err
		}
		last := err != nil
		if !last { // a whole chunk is the last one where nothing follows
			_, err := r.in.Peek(1)
			last = err != nil
		}
		if r.rest, err = r.aead.Open(nil, nonce(r.n, last), r.sealed[:n], nil); err != nil {
			r.rest, r.err = nil, ErrDamaged
			continue
		}
		r.n++
		if last {
			r.err = io.EOF
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Check reads a point to its end.
func (s *Store) Check(id string) error {
	_, r, err := s.Open(id)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err != nil {
		return fmt.Errorf("point %s: %w", id, err)
	}
	return nil
}

// Remove removes a point. It is no error that there is none.
func (s *Store) Remove(id string) error {
	if !validID(id) {
		return fmt.Errorf("%w: %q", ErrNone, id)
	}
	if err := os.Remove(filepath.Join(s.Dir, id+suffix)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Removed is what Trim removed, or would.
type Removed struct {
	Name  string // of a point: its run, job and step
	Bytes int64
	Why   string
}

// value is what a point is worth: the seconds that it saves, by the byte, less by half
// for each day.
func (m Meta) value(now time.Time) float64 {
	age := max(now.Sub(m.Created), 0)
	return (1 + m.Cost.Seconds()) / float64(max(m.Bytes, 1)) * math.Exp2(-age.Hours()/24)
}

// Trim removes what is older than Age, what is damaged or was only begun, and then what
// is worth least until the rest is within Budget. With dry it says what it would.
func (s *Store) Trim(ctx context.Context, dry bool) (gone []Removed, err error) {
	all, damaged, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	remove := func(name string, what Removed) {
		if !dry {
			if err := os.Remove(filepath.Join(s.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
				return
			}
		}
		gone = append(gone, what)
	}
	for _, name := range damaged {
		var size int64
		if st, err := os.Stat(filepath.Join(s.Dir, name)); err == nil {
			size = st.Size()
		}
		remove(name, Removed{name, size, "it is damaged"})
	}
	for _, name := range s.begun() {
		remove(name, Removed{name, 0, "its making was not finished"})
	}
	now := s.now()
	point := func(m Meta, why string) {
		remove(m.ID+suffix, Removed{fmt.Sprintf("%s of run %s, before step %d of %s", m.ID, m.Run, m.Step, m.Job), m.Bytes, why})
	}
	var total int64
	var left []Meta
	for _, m := range all {
		if s.Age > 0 && now.Sub(m.Created) > s.Age {
			point(m, fmt.Sprintf("it was made more than %v ago", s.Age))
			continue
		}
		left = append(left, m)
		total += m.Bytes
	}
	slices.SortStableFunc(left, func(a, b Meta) int { return cmp.Compare(a.value(now), b.value(now)) })
	for len(left) > 0 && (s.Budget > 0 && total > s.Budget || len(left) > MaxPoints) {
		point(left[0], "it is worth least of those that there is no room for")
		total -= left[0].Bytes
		left = left[1:]
	}
	return gone, errors.Join(errs...)
}

// begun are the files of points that were begun by processes that are gone.
func (s *Store) begun() (dead []string) {
	entries, _ := os.ReadDir(s.Dir)
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), partial) {
			continue
		}
		f, err := os.Open(filepath.Join(s.Dir, e.Name()))
		if err != nil {
			continue
		}
		st, err := f.Stat()
		// One that was made a moment ago may be about to be locked.
		if err == nil && time.Since(st.ModTime()) > time.Minute && syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			dead = append(dead, e.Name())
		}
		f.Close()
	}
	return dead
}

// Private reads a length and so many bytes at the beginning of a point: what its writer
// put there with PutPrivate.
func Private(r io.Reader, most int) ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint64(head[:])
	if n > uint64(most) {
		return nil, fmt.Errorf("%w: it begins with %d bytes", ErrDamaged, n)
	}
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(n)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// PutPrivate writes what Private reads.
func PutPrivate(w io.Writer, b []byte) error {
	if _, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b)))); err != nil {
		return err
	}
	_, err := w.Write(b)
	return err
}
