package archive

import (
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type zipped struct {
	name string
	mode fs.FileMode
	data string
}

func makeZip(t testing.TB, entries ...zipped) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		h.SetMode(e.mode)
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestUnzip(t *testing.T) {
	b := makeZip(t, zipped{"dir/", fs.ModeDir | 0o755, ""}, zipped{"dir/run", 0o755, "#!"}, zipped{"deep/er/ä", 0o644, "text"},
		zipped{"suid", fs.ModeSetuid | 0o4777, "x"})
	dir := t.TempDir()
	if err := Unzip(bytes.NewReader(b), int64(len(b)), dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"dir/run": "#!", "deep/er/ä": "text"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "dir/run")); err != nil || st.Mode()&0o100 == 0 {
		t.Error(st.Mode(), err)
	}
	if st, err := os.Stat(filepath.Join(dir, "suid")); err != nil || st.Mode()&(fs.ModeSetuid|0o022) != 0 {
		t.Error(st.Mode(), err)
	}
}

// An artifact that is unpacked on the host stays where it is put, and is no more than
// it says.
func TestAttackUnzip(t *testing.T) {
	outside := t.TempDir()
	for name, entries := range map[string][]zipped{
		"up":          {{"../x", 0o644, "x"}},
		"up within":   {{"a/../../x", 0o644, "x"}},
		"absolute":    {{"/etc/x", 0o644, "x"}},
		"backslash":   {{`..\x`, 0o644, "x"}},
		"link":        {{"l", fs.ModeSymlink | 0o777, outside}},
		"device":      {{"d", fs.ModeDevice | 0o644, ""}},
		"behind link": {{"l", fs.ModeSymlink | 0o777, outside}, {"l/x", 0o644, "x"}},
	} {
		dir := filepath.Join(t.TempDir(), "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		b := makeZip(t, append(entries, zipped{"good", 0o644, "good"})...)
		if err := Unzip(bytes.NewReader(b), int64(len(b)), dir); !errors.Is(err, ErrLeftOut) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "good")); err != nil {
			t.Errorf("%s: what is good was not unpacked: %v", name, err)
		}
		for _, d := range []string{outside, filepath.Dir(dir)} {
			entries, err := os.ReadDir(d)
			if err != nil || len(entries) > 1 || len(entries) == 1 && entries[0].Name() != "in" {
				t.Errorf("%s: something was written outside: %v %v", name, entries, err)
			}
		}
		if st, err := os.Lstat(filepath.Join(dir, "l")); err == nil && !st.IsDir() {
			t.Errorf("%s: the link was made", name)
		}
	}

	bomb := makeZip(t, zipped{"zeros", 0o644, strings.Repeat("\x00", 200<<20)})
	dir := t.TempDir()
	if err := Unzip(bytes.NewReader(bomb), int64(len(bomb)), dir); !errors.Is(err, errTooLarge) {
		t.Errorf("a bomb: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "zeros")); err == nil {
		t.Error("what the bomb wrote is still there")
	}
	twice := makeZip(t, zipped{"a", 0o644, "1"}, zipped{"a", 0o644, "2"})
	if err := Unzip(bytes.NewReader(twice), int64(len(twice)), t.TempDir()); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("a name twice: %v", err)
	}
	there := t.TempDir()
	target := filepath.Join(outside, "target")
	if err := os.Symlink(target, filepath.Join(there, "a")); err != nil {
		t.Fatal(err)
	}
	if err := Unzip(bytes.NewReader(twice), int64(len(twice)), there); err == nil {
		t.Error("written through a link that was there")
	}
	if _, err := os.Lstat(target); err == nil {
		t.Error("written through a link that was there")
	}
	// A directory that is told to be endless.
	var many []zipped
	for range 9000 {
		many = append(many, zipped{strings.Repeat("n", 4000), 0o644, ""})
	}
	large := makeZip(t, many...)
	if err := Unzip(bytes.NewReader(large), int64(len(large)), t.TempDir()); !errors.Is(err, errDirectory) {
		t.Errorf("a directory of %d MiB: %v", len(large)>>20, err)
	}
}

func FuzzUnzip(f *testing.F) {
	f.Add(makeZip(f, zipped{"a/b", 0o644, "text"}, zipped{"l", fs.ModeSymlink | 0o777, "/"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		up := t.TempDir()
		dir := filepath.Join(up, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		Unzip(bytes.NewReader(b), int64(len(b)), dir)
		entries, err := os.ReadDir(up)
		if err != nil || len(entries) != 1 {
			t.Errorf("%v %v", entries, err)
		}
		filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && !d.Type().IsRegular() {
				t.Errorf("%s is %v", p, d.Type())
			}
			return nil
		})
	})
}
