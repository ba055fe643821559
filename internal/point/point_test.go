package point

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/machine"
)

// dieIn names the directory in which this program begins a point and is killed.
const dieIn = "HEARTH_TEST_DIE_IN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(dieIn); dir != "" {
		w, err := (&Store{Dir: dir}).Create(Meta{Run: "r"})
		if err == nil {
			_, err = w.Write(make([]byte, 10*chunk))
		}
		fmt.Println("begun", err)
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	os.Exit(m.Run())
}

func keep(t *testing.T, s *Store, m Meta, data []byte) Meta {
	t.Helper()
	w, err := s.Create(m)
	if err != nil {
		t.Fatal(err)
	}
	for b := data; len(b) > 0; b = b[min(len(b), 10_000):] {
		if _, err := w.Write(b[:min(len(b), 10_000)]); err != nil {
			t.Fatal(err)
		}
	}
	m, err = w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func read(s *Store, id string) ([]byte, error) {
	_, r, err := s.Open(id)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// What was kept is read again, by another Store of the directory, with what is told
// of it; nothing of it is on disk in the clear, and nobody else can read the files.
func TestKeep(t *testing.T) {
	s := &Store{Dir: filepath.Join(t.TempDir(), "points")}
	for _, n := range []int{0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk, 5*chunk + 7} {
		data := bytes.Repeat([]byte("s3cr3t "), n/7+1)[:n]
		m := keep(t, s, Meta{Run: "r1", Job: "build", Step: n, Name: "make it", Attempt: 1, Cost: time.Minute,
			Origin: machine.Origin{Driver: "qemu", Image: "i", CPUs: 2, MemoryMiB: 512}}, data)
		other := &Store{Dir: s.Dir}
		got, r, err := other.Open(m.ID)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(b, data) {
			t.Errorf("%d bytes: %d, %v", n, len(b), err)
		}
		if got != m || m.Run != "r1" || m.Job != "build" || m.Cost != time.Minute || m.Origin.MemoryMiB != 512 || m.Bytes < int64(n) {
			t.Errorf("%+v, want %+v", got, m)
		}
		name := filepath.Join(s.Dir, m.ID+suffix)
		raw, err := os.ReadFile(name)
		if err != nil || bytes.Contains(raw, []byte("s3cr3t")) {
			t.Errorf("in the clear, or %v", err)
		}
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
	}
	all, err := s.List(t.Context())
	if err != nil || len(all) != 7 {
		t.Errorf("%d points, %v", len(all), err)
	}
	if of, err := s.Of(t.Context(), "r"); err != nil || len(of) != 7 {
		t.Errorf("%+v, %v", of, err)
	}
	if of, err := s.Of(t.Context(), "r2"); err != nil || len(of) != 0 {
		t.Errorf("%+v, %v", of, err)
	}
	if err := s.Remove(all[0].ID); err != nil {
		t.Error(err)
	}
	if _, err := read(s, all[0].ID); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	for _, id := range []string{"", "../key", "key", "p0123"} {
		if _, _, err := s.Open(id); !errors.Is(err, ErrNone) {
			t.Errorf("%q: %v", id, err)
		}
		if err := s.Remove(id); !errors.Is(err, ErrNone) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if none, err := (&Store{Dir: filepath.Join(t.TempDir(), "none")}).List(t.Context()); err != nil || len(none) != 0 {
		t.Errorf("%v, %v", none, err)
	}
}

// No bit of a point can be another, no part of it be left out or come from another
// point, and nothing opens it but the key that it was written with.
func TestAttackPointOnDisk(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	data := bytes.Repeat([]byte("memory"), 3*chunk/6)
	one := keep(t, s, Meta{Run: "r1", Job: "a", Step: 1}, data)
	two := keep(t, s, Meta{Run: "r1", Job: "a", Step: 2}, data)
	name := filepath.Join(s.Dir, one.ID+suffix)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(filepath.Join(s.Dir, two.ID+suffix))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, b []byte) {
		t.Helper()
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := read(s, one.ID); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %d bytes, %v", what, len(got), err)
		}
		if s.Check(one.ID) == nil {
			t.Errorf("%s passes", what)
		}
	}
	for at := 0; at < len(whole); at += 1 + len(whole)/97 {
		b := bytes.Clone(whole)
		b[at] ^= 1
		refused(fmt.Sprintf("a bit at %d", at), b)
	}
	refused("another step", bytes.Replace(bytes.Clone(whole), []byte(`"step":1`), []byte(`"step":2`), 1))
	refused("another point", other)
	sealed := chunk + 16
	body := len(whole) - 3*sealed
	for n := range 3 {
		refused("cut off after a chunk", whole[:body+n*sealed])
	}
	swapped := bytes.Clone(whole)
	copy(swapped[body:], whole[body+sealed:body+2*sealed])
	copy(swapped[body+sealed:], whole[body:body+sealed])
	refused("chunks swapped", swapped)
	refused("a chunk of another", append(bytes.Clone(whole[:body]), other[body:]...))
	refused("more after the end", append(bytes.Clone(whole), whole[body:body+sealed]...))
	os.WriteFile(name, whole, 0o600)
	if got, err := read(s, one.ID); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	key := filepath.Join(s.Dir, keyName)
	if st, err := os.Stat(key); err != nil || st.Mode().Perm() != 0o600 || st.Size() != 32 {
		t.Errorf("%v, %v", st, err)
	}
	os.Chmod(key, 0o644)
	if _, err := read(s, one.ID); err == nil || !strings.Contains(err.Error(), "others can read") {
		t.Errorf("a key that others can read: %v", err)
	}
	os.Chmod(key, 0o600)
	os.WriteFile(key, make([]byte, 32), 0o600)
	if _, err := read(s, one.ID); !errors.Is(err, ErrDamaged) {
		t.Errorf("another key: %v", err)
	}
	os.WriteFile(key, make([]byte, 16), 0o600)
	if _, err := read(s, one.ID); err == nil || !strings.Contains(err.Error(), "is no key") {
		t.Errorf("half a key: %v", err)
	}
	os.Remove(key)
	if _, err := read(s, one.ID); err == nil {
		t.Error("without a key")
	}
	if _, err := os.Stat(key); err == nil {
		t.Error("to read has made a key")
	}
}

// A process that is killed while it writes leaves no point, and what it has written
// goes; what another writes stays.
func TestKilledWhileWriting(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), dieIn+"="+s.Dir)
	out, err := cmd.Output()
	if err == nil || string(out) != "begun <nil>\n" {
		t.Fatalf("%q, %v", out, err)
	}
	if all, err := s.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	w, err := s.Create(Meta{Run: "r"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	old := time.Now().Add(-time.Hour)
	for _, name := range files(t, s.Dir) {
		os.Chtimes(filepath.Join(s.Dir, name), old, old)
	}
	gone, err := s.Trim(t.Context(), false)
	if err != nil || len(gone) != 1 || !strings.Contains(gone[0].Why, "not finished") {
		t.Errorf("%+v, %v", gone, err)
	}
	if m, err := w.Commit(t.Context()); err != nil || s.Check(m.ID) != nil {
		t.Errorf("the other's: %v", err)
	}
}

// Where there is no room for all of a point there is none of it, and those before it
// stay.
func TestDiskFull(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	if err := syscall.Mount("tmpfs", s.Dir, "tmpfs", 0, "size=1m,mode=700"); err != nil {
		t.Skipf("SKIPPED, NOT PASSED: a small file system wants root: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(s.Dir, syscall.MNT_DETACH) })
	first := keep(t, s, Meta{Run: "r"}, make([]byte, 5*chunk))
	w, err := s.Create(Meta{Run: "r"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(make([]byte, 20*chunk))
	if err == nil {
		_, err = w.Commit(t.Context())
	} else {
		w.Abort()
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v", err)
	}
	if all, err := s.List(t.Context()); err != nil || len(all) != 1 || s.Check(first.ID) != nil {
		t.Errorf("%+v, %v", all, err)
	}
	if names := files(t, s.Dir); len(names) != 2 {
		t.Errorf("left: %v", names)
	}
}

// What is worth least goes first: what is cheap to come to, large, or old.
func TestTrim(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	s := &Store{Dir: t.TempDir(), Age: 48 * time.Hour, Now: func() time.Time { return now }}
	old := keep(t, s, Meta{Run: "old"}, nil)
	now = now.Add(47 * time.Hour)
	kept := map[string]Meta{}
	for _, m := range []Meta{{Run: "cheap", Cost: time.Second}, {Run: "dear", Cost: time.Hour}, {Run: "fair", Cost: time.Minute}} {
		kept[m.Run] = keep(t, s, m, make([]byte, 10_000))
	}
	kept["large"] = keep(t, s, Meta{Run: "large", Cost: time.Minute}, make([]byte, 100_000))
	now = now.Add(2 * time.Hour)
	dry, err := s.Trim(t.Context(), true)
	if err != nil || len(dry) != 1 || !strings.Contains(dry[0].Name, old.ID) {
		t.Errorf("%+v, %v", dry, err)
	}
	left := func() (runs []string) {
		all, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			runs = append(runs, m.Run)
		}
		slices.Sort(runs)
		return runs
	}
	if got := left(); len(got) != 5 {
		t.Errorf("a dry trim leaves %v", got)
	}
	for _, c := range []struct {
		budget int64
		want   string
	}{{0, "cheap dear fair large"}, {125_000, "dear fair large"}, {30_000, "dear fair"}, {15_000, "dear"}} {
		s.Budget = c.budget
		gone, err := s.Trim(t.Context(), false)
		if got := strings.Join(left(), " "); err != nil || got != c.want {
			t.Errorf("within %d: %s (%+v), %v; want %s", c.budget, got, gone, err, c.want)
		}
	}
	w, err := s.Create(Meta{Run: "huge"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 40_000)); err == nil {
		_, err = w.Commit(t.Context())
		if err == nil || !strings.Contains(err.Error(), "it alone takes more") {
			t.Errorf("larger than the budget: %v", err)
		}
	}
	os.WriteFile(filepath.Join(s.Dir, "p0123456789abcdef"+suffix), []byte("no point"), 0o600)
	if gone, err := s.Trim(t.Context(), false); err != nil || len(gone) != 1 || gone[0].Why != "it is damaged" || strings.Join(left(), " ") != "dear" {
		t.Errorf("%+v, %v", gone, err)
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Trim(stopped, false); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// What comes first is read without the rest, within its bound.
func TestPrivate(t *testing.T) {
	var b bytes.Buffer
	if err := PutPrivate(&b, []byte("state")); err != nil {
		t.Fatal(err)
	}
	b.WriteString("machine")
	whole := b.String()
	got, err := Private(&b, 5)
	if err != nil || string(got) != "state" || b.String() != "machine" {
		t.Errorf("%q, %v, then %q", got, err, b.String())
	}
	if _, err := Private(strings.NewReader(whole), 4); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	if _, err := Private(strings.NewReader(whole[:10]), 5); err == nil {
		t.Error("half of it")
	}
}
