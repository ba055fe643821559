package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Names a job may choose.
var names = []string{"plain", "with space", "new\nline", "inv\xfflid", "ünï", "-rf", "a'b\"c$d", strings.Repeat("n", 255)}

func TestFiles(t *testing.T) {
	c := serveHere(t, Options{})
	ctx := t.Context()
	dir := t.TempDir()
	for _, name := range names {
		path := filepath.Join(dir, name)
		want := []byte("content of " + name)
		if err := c.WriteFile(ctx, path, want, 0o640, ""); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		got, err := c.ReadFile(ctx, path, 1000)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q: %q, %v", name, got, err)
		}
		st, err := c.Stat(ctx, path)
		if err != nil || st.Size != int64(len(want)) || st.Mode != 0o640 || time.Since(st.ModTime) > time.Minute || st.UID != os.Getuid() || st.IsDir() {
			t.Errorf("%q: %+v, %v", name, st, err)
		}
		if err := c.Remove(ctx, path); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := c.Stat(ctx, path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestWriteReadLarge(t *testing.T) {
	c := serveHere(t, Options{})
	path := filepath.Join(t.TempDir(), "f")
	for _, size := range []int{0, 1, MaxPayload, Window / 2, Window/2 + 1, 3 * Window, 10 << 20} {
		want := bytes.Repeat([]byte("0123456789abcdef!"), size/17+1)[:size]
		if err := c.WriteFile(t.Context(), path, want, 0o600, ""); err != nil {
			t.Fatal(size, err)
		}
		got, err := c.ReadFile(t.Context(), path, int64(size))
		if err != nil || !bytes.Equal(got, want) {
			t.Error(size, len(got), err)
		}
		if size > 0 {
			if _, err := c.ReadFile(t.Context(), path, int64(size-1)); !errors.Is(err, syscall.EFBIG) && !errors.Is(err, ErrTooLarge) {
				t.Error(size, err)
			}
		}
	}
	if c.Err() != nil {
		t.Error(c.Err())
	}
}

func TestFileErrors(t *testing.T) {
	c := serveHere(t, Options{})
	ctx := t.Context()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"read missing":       second(c.ReadFile(ctx, dir+"/missing", 1)),
		"write in missing":   c.WriteFile(ctx, dir+"/missing/f", nil, 0o600, ""),
		"pack missing":       c.TarOut(ctx, dir, []string{"missing"}, io.Discard),
		"pack in missing":    c.TarOut(ctx, dir+"/missing", []string{"."}, io.Discard),
		"stat missing":       second(c.Stat(ctx, dir+"/missing")),
		"read fifo":          second(c.ReadFile(ctx, fifo, 1)),
		"write fifo":         c.WriteFile(ctx, fifo, []byte("x"), 0o600, ""),
		"read directory":     second(c.ReadFile(ctx, dir, 1)),
		"read endless":       second(c.ReadFile(ctx, "/dev/zero", 1<<40)),
		"pack outside":       c.TarOut(ctx, dir, []string{"../.."}, io.Discard),
		"write as nobody":    c.WriteFile(ctx, dir+"/f", nil, 0o600, "nobody-at-all"),
		"mkdir below a file": c.MkdirAll(ctx, fifo+"/d", 0o755, ""),
	} {
		if e, ok := errors.AsType[*Error](err); !ok || e.Start {
			t.Errorf("%s: %v", what, err)
		}
		if strings.Contains(what, "missing") && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := c.Remove(ctx, dir+"/missing"); err != nil {
		t.Error(err)
	}
	if c.Err() != nil {
		t.Error(c.Err())
	}
}

func second[T any](_ T, err error) error { return err }

func TestMkdirAll(t *testing.T) {
	c := serveHere(t, Options{})
	dir := t.TempDir()
	for range 2 {
		if err := c.MkdirAll(t.Context(), dir+"/a/b", 0o750, ""); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := c.Stat(t.Context(), dir+"/a"); err != nil || st.Mode != fs.ModeDir|0o750 || !st.IsDir() {
		t.Error(st, err)
	}
	if os.Geteuid() == 0 {
		if err := c.MkdirAll(t.Context(), dir+"/mine/b", 0o700, "4711:4712"); err != nil {
			t.Fatal(err)
		}
		if st, _ := c.Stat(t.Context(), dir+"/mine"); st.UID != 4711 || st.GID != 4712 {
			t.Errorf("%+v", st)
		}
		if err := c.WriteFile(t.Context(), dir+"/mine/f", nil, 0o4755, "4711:4712"); err != nil {
			t.Fatal(err)
		}
		if st, _ := c.Stat(t.Context(), dir+"/mine/f"); st.UID != 4711 || st.Mode.Perm() != 0o755 {
			t.Errorf("%+v", st)
		}
	}
}

func TestTar(t *testing.T) {
	c := serveHere(t, Options{})
	from, to := t.TempDir(), t.TempDir()
	old := time.Unix(1_000_000_000, 0)
	for _, name := range names {
		os.WriteFile(filepath.Join(from, name), []byte("content of "+name), 0o640)
		os.Chtimes(filepath.Join(from, name), old, old)
	}
	os.MkdirAll(from+"/d/e/f", 0o755)
	os.WriteFile(from+"/d/e/f/x", bytes.Repeat([]byte("x"), 1<<20), 0o755)
	os.Link(from+"/d/e/f/x", from+"/d/y")
	os.Symlink("e/f/x", from+"/d/link")
	os.Symlink("/etc/passwd", from+"/d/absolute")
	os.Mkdir(from+"/readonly", 0o555)
	os.Chtimes(from+"/d/e", old, old)
	syscall.Mkfifo(from+"/fifo", 0o600)

	var archive bytes.Buffer
	if err := c.TarOut(t.Context(), from, []string{"."}, &archive); err != nil {
		t.Fatal(err)
	}
	target := to + "/made/for it"
	os.MkdirAll(target+"/d", 0o755)
	os.WriteFile(target+"/d/link", []byte("in the way"), 0o600)
	if err := c.TarIn(t.Context(), target, &archive, ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(target, name))
		st, _ := os.Stat(filepath.Join(target, name))
		if err != nil || string(b) != "content of "+name || st.Mode() != 0o640 || !st.ModTime().Equal(old) {
			t.Errorf("%q: %q %v", name, b, err)
		}
	}
	if l, err := os.Readlink(target + "/d/link"); l != "e/f/x" {
		t.Error(l, err)
	}
	if l, err := os.Readlink(target + "/d/absolute"); l != "/etc/passwd" {
		t.Error(l, err)
	}
	x, _ := os.Stat(target + "/d/e/f/x")
	y, err := os.Stat(target + "/d/y")
	if err != nil || !os.SameFile(x, y) || x.Size() != 1<<20 || x.Mode() != 0o755 {
		t.Error(x, y, err)
	}
	if st, err := os.Stat(target + "/d/e"); err != nil || !st.ModTime().Equal(old) {
		t.Error(st, err)
	}
	if st, err := os.Stat(target + "/readonly"); err != nil || st.Mode().Perm() != 0o555 {
		t.Error(st, err)
	}
	if _, err := os.Lstat(target + "/fifo"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if os.Geteuid() == 0 {
		archive.Reset()
		if err := c.TarOut(t.Context(), from, []string{"d", "plain"}, &archive); err != nil {
			t.Fatal(err)
		}
		if err := c.TarIn(t.Context(), to+"/other", &archive, "4711:4712"); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"", "/d", "/d/e/f/x", "/d/link", "/plain"} {
			if st, err := c.Stat(t.Context(), to+"/other"+p); err != nil || st.UID != 4711 || st.GID != 4712 {
				t.Errorf("%s: %+v %v", p, st, err)
			}
		}
	}
}

func TestTarInRefuses(t *testing.T) {
	c := serveHere(t, Options{})
	for _, tt := range []struct {
		name    string
		entries []tar.Header
	}{
		{"parent", []tar.Header{{Name: "../evil", Typeflag: tar.TypeReg}}},
		{"parent in the middle", []tar.Header{{Name: "a/../../evil", Typeflag: tar.TypeReg}}},
		{"through a link", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/evil", Typeflag: tar.TypeReg}}},
		{"through an absolute link", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, {Name: "l/evil", Typeflag: tar.TypeReg}}},
		{"hard link out", []tar.Header{{Name: "l", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}}},
		{"hard link through a link", []tar.Header{{Name: "d", Typeflag: tar.TypeSymlink, Linkname: "/etc"},
			{Name: "l", Typeflag: tar.TypeLink, Linkname: "d/passwd"}}},
		{"device", []tar.Header{{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}},
		{"fifo", []tar.Header{{Name: "fifo", Typeflag: tar.TypeFifo}}},
		{"dot as a file", []tar.Header{{Name: "./", Typeflag: tar.TypeSymlink, Linkname: "x"}}},
	} {
		dir := t.TempDir()
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range tt.entries {
			h.Mode = 0o644
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		err := c.TarIn(t.Context(), dir+"/in", &b, "")
		if _, ok := errors.AsType[*Error](err); !ok {
			t.Errorf("%s: %v", tt.name, err)
		}
		if left, _ := filepath.Glob(dir + "/evil"); left != nil {
			t.Errorf("%s: %v", tt.name, left)
		}
	}
	if _, err := os.Lstat("/tmp/evil"); err == nil {
		t.Error("wrote to /tmp")
	}
	if err := c.TarIn(t.Context(), t.TempDir(), strings.NewReader(strings.Repeat("no archive ", 1000)), ""); err == nil {
		t.Error("garbage was unpacked")
	}
	bad := errors.New("bad disk")
	if err := c.TarIn(t.Context(), t.TempDir(), errReader{bad}, ""); !errors.Is(err, bad) {
		t.Error(err)
	}
	if err := c.TarIn(t.Context(), t.TempDir(), bytes.NewReader(nil), ""); err != nil {
		t.Error("an empty archive:", err)
	}
	if c.Err() != nil {
		t.Error(c.Err())
	}
}

// A caller that has enough ends the transfer; the connection is as good as before.
func TestTarOutStops(t *testing.T) {
	c := serveHere(t, Options{})
	dir := t.TempDir()
	f, err := os.Create(dir + "/big")
	if err != nil {
		t.Fatal(err)
	}
	f.Truncate(1 << 40)
	f.Close()
	full := errors.New("full")
	n := 0
	err = c.TarOut(t.Context(), dir, []string{"big"}, writerFunc(func(p []byte) (int, error) {
		if n += len(p); n > 10<<20 {
			return 0, full
		}
		return len(p), nil
	}))
	if !errors.Is(err, full) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = c.TarOut(ctx, dir, []string{"big"}, writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil }))
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if out, _ := run(t, c, "echo fine"); out != "fine\n" {
		t.Error(out)
	}
	// Every slot comes back.
	waitFor(t, func() bool { return len(c.slots) == 0 })
}

// A file that changes while it is packed makes no broken archive.
func TestTarOutShrinkingFile(t *testing.T) {
	c := serveHere(t, Options{})
	dir := t.TempDir()
	path := dir + "/f"
	os.WriteFile(path, bytes.Repeat([]byte("x"), 8<<20), 0o644)
	var b bytes.Buffer
	if err := c.TarOut(t.Context(), dir, []string{"f"}, writerFunc(func(p []byte) (int, error) {
		os.Truncate(path, 1000)
		return b.Write(p)
	})); err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(&b)
	h, err := r.Next()
	if err != nil || h.Size != 8<<20 {
		t.Fatal(h, err)
	}
	if n, err := io.Copy(io.Discard, r); n != 8<<20 || err != nil {
		t.Error(n, err)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Error(err)
	}
}
