package image

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestEngineIsOptional: where the release that Docker comes from cannot be had, there
// is an image, and it says what it lacks and what to do.
func TestEngineIsOptional(t *testing.T) {
	a := newDebArchive(t) // has bookworm alone
	b := a.builder(t, a.keyring)
	l, err := b.layerFor(t.Context(), "engine", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	img := newImage(b.dir, manifest{Name: "x"}, []*Layer{l})
	if why := img.NoEngine(); img.Engine != "" || !strings.Contains(why, "Docker's packages could not be had") || !strings.Contains(why, "--refresh") {
		t.Errorf("engine %q: %q", img.Engine, why)
	}
	if again, err := b.lookup("engine", engineInputs()); err != nil || again.ID != l.ID {
		t.Errorf("every start would ask again: %v", err)
	}
	if why := newImage(b.dir, manifest{}, nil).NoEngine(); !strings.Contains(why, "older hearth") {
		t.Error(why)
	}
}

func TestHasEngine(t *testing.T) {
	for want, kinds := range map[bool][]layerRecord{
		true:  {{Kind: "base", Files: []File{{Name: baseName}}}, {Kind: "engine", Files: []File{{Name: engineName}, {Name: packagesName}}}},
		false: {{Kind: "base", Files: []File{{Name: engineName}}}, {Kind: "engine", Files: []File{{Name: packagesName}}}},
	} {
		if got := hasEngine(kinds); got != want {
			t.Errorf("%+v: %v", kinds, got)
		}
	}
}

func TestUnpackDeb(t *testing.T) {
	pack := func(headers ...*tar.Header) *bytes.Buffer {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if h.Typeflag == tar.TypeReg {
				h.Size = int64(len(h.Name))
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				w.Write([]byte(h.Name))
			}
		}
		w.Close()
		return &b
	}
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	file := func(name string, mode int64) *tar.Header {
		return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode}
	}
	for range 2 { // a file that two packages have
		if err := unpackDeb(pack(
			&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, &tar.Header{Name: "./usr/bin/", Typeflag: tar.TypeDir, Mode: 0o700},
			file("./usr/bin/docker", 0o4755), file("./lib/a.so.1", 0o644), file("./sbin/runc", 0o755),
			&tar.Header{Name: "./lib/a.so", Typeflag: tar.TypeSymlink, Linkname: "a.so.1"},
			&tar.Header{Name: "./bin/d", Typeflag: tar.TypeLink, Linkname: "./usr/bin/docker"},
			file("./etc/init.d/docker", 0o755), file("./usr/share/doc/x/README", 0o644), file("./usr/share/doc/x/copyright", 0o644), file("./usr/bin/ctr", 0o755),
		), root); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			info, _ := d.Info()
			rel, _ := filepath.Rel(dir, p)
			got = append(got, info.Mode().String()+" "+rel)
		}
		return err
	})
	want := []string{"-rwxr-xr-x usr/bin/d", "-rwxr-xr-x usr/bin/docker", "Lrwxrwxrwx usr/lib/a.so", "-rw-r--r-- usr/lib/a.so.1", "-rwxr-xr-x usr/sbin/runc",
		"-rw-r--r-- usr/share/doc/x/copyright"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	for name, bad := range map[string]*bytes.Buffer{
		"a device":           pack(&tar.Header{Name: "./dev/sda", Typeflag: tar.TypeBlock}),
		"out through a link": pack(&tar.Header{Name: "./out", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, file("./out/x", 0o644)),
	} {
		if err := unpackDeb(bad, root); err == nil {
			t.Errorf("%s was unpacked", name)
		}
	}
}

func TestMoveLoader(t *testing.T) {
	was := []byte("\x7fELF\x00/lib/x86_64-linux-gnu/\x00/usr/lib/x86_64-linux-gnu/\x00/lib/\x00/usr/lib/\x00…\x00/lib/x86_64-linux-gnu/\x00")
	is, err := moveLoader(was)
	want := []byte("\x7fELF\x00/__g//////////////////\x00/usr/lib/x86_64-linux-gnu/\x00/lib/\x00/usr/lib/\x00…\x00/__g//////////////////\x00")
	if err != nil || !bytes.Equal(is, want) {
		t.Errorf("%q, %v", is, err)
	}
	if is, err := moveLoader(bytes.ReplaceAll(was, []byte("x86_64"), []byte("riscv64"))); err == nil {
		t.Errorf("a loader that looks elsewhere became %q", is)
	}
}
