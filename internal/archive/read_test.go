package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func packed(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Write(bytes.Repeat([]byte("x"), int(h.Size)))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestEachHasLimits(t *testing.T) {
	b := packed(t, tar.Header{Name: "p/", Typeflag: tar.TypeDir}, tar.Header{Name: "p/a", Size: 600, Typeflag: tar.TypeReg},
		tar.Header{Name: "p/b", Size: 600, Typeflag: tar.TypeReg},
		tar.Header{Name: "p/l", Linkname: "to/it", Typeflag: tar.TypeSymlink})
	for _, c := range []struct {
		most Limits
		err  string
		got  int // entries
	}{
		{Limits{}, "", 4},
		{Limits{Entries: 4, Names: 16, Bytes: 1200}, "", 4},
		{Limits{Entries: 3}, "more than 3 entries", 3},
		{Limits{Names: 15}, "names of more than 15 bytes", 3},
		{Limits{Bytes: 1199}, "unpacks to more than 1199 bytes", 2},
	} {
		var got []string
		err := Each(bytes.NewReader(b), c.most, func(h *tar.Header, r io.Reader) error { got = append(got, h.Name); return nil })
		if len(got) != c.got || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %q, %v", c.most, got, err)
		}
	}
	mine := errors.New("mine")
	if err := Each(bytes.NewReader(b), Limits{}, func(*tar.Header, io.Reader) error { return mine }); !errors.Is(err, mine) {
		t.Error(err)
	}
}

// Headers alone, which compress to nothing, are an end of it as well.
func TestEachEndsHeaders(t *testing.T) {
	in := &endless{b: packed(t, tar.Header{Name: "a", Typeflag: tar.TypeReg})[:512]}
	long := &endless{b: packed(t, tar.Header{Name: "a", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"X.y": strings.Repeat("z", 900_000)}})}
	long.b = long.b[:len(long.b)-1024] // without its end
	for _, r := range []*endless{in, long} {
		if err := Each(r, Limits{Entries: 1000, Names: 1 << 20, Bytes: 1 << 20}, func(*tar.Header, io.Reader) error { return nil }); err == nil || r.read > 8<<20 {
			t.Errorf("%v after %d bytes", err, r.read)
		}
	}
}

type endless struct {
	b        []byte
	at, read int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.b[e.at:])
	e.at, e.read = (e.at+n)%len(e.b), e.read+n
	return n, nil
}

func TestFiles(t *testing.T) {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(packed(t, tar.Header{Name: "package/", Typeflag: tar.TypeDir}, tar.Header{Name: "package/bin/a", Size: 3, Typeflag: tar.TypeReg},
		tar.Header{Name: "top", Size: 1, Typeflag: tar.TypeReg}))
	w.Close()
	name := filepath.Join(t.TempDir(), "p.tgz")
	if err := os.WriteFile(name, z.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := Files(name, Limits{}, func(name string, _ *tar.Header, r io.Reader) error {
		b, err := io.ReadAll(r)
		got = append(got, name+" "+string(b))
		return err
	})
	if err != nil || !slices.Equal(got, []string{"bin/a xxx"}) {
		t.Errorf("%q, %v", got, err)
	}
}
