package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What a hostile guest may send.
func TestUnpackHostile(t *testing.T) {
	file := func(name, content string) (tar.Header, string) {
		return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}, content
	}
	type entry struct {
		h tar.Header
		c string
	}
	mk := func(name, content string) entry { h, c := file(name, content); return entry{h, c} }
	sym := func(name, to string) entry {
		return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}, ""}
	}
	link := func(name, to string) entry {
		return entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}, ""}
	}
	dir := func(name string, mode int64) entry {
		return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}, ""}
	}
	for _, c := range []struct {
		name    string
		entries []entry
		err     string // "" none; "left" is ErrLeftOut
		absent  string // below the directory
	}{
		{"up", []entry{mk("../escaped", "x")}, "not below", "../escaped"},
		{"absolute", []entry{mk("/etc/escaped", "x")}, "not below", ""},
		{"up from below", []entry{mk("top/../../escaped", "x")}, "not below", ""},
		{"another top", []entry{mk("other", "x")}, "not below", "other"},
		{"a longer top", []entry{mk("topper", "x")}, "not below", "topper"},
		{"link out, absolute", []entry{dir("top/", 0o755), sym("top/l", "/etc/passwd")}, "left", "top/l"},
		{"link out, relative", []entry{dir("top/", 0o755), sym("top/l", "../../x")}, "left", "top/l"},
		{"link to the top's parent", []entry{dir("top/", 0o755), sym("top/l", "..")}, "left", "top/l"},
		{"link out through a link", []entry{dir("top/", 0o755), dir("top/a/", 0o755), dir("top/a/b/", 0o755), sym("top/a/b/y", "../.."),
			sym("top/l", "a/b/y/../..")}, "left", "top/l"},
		{"write through a link", []entry{dir("top/", 0o755), dir("top/d/", 0o755), sym("top/l", "d"), mk("top/l/f", "x")}, "behind a link", "top/d/f"},
		{"the top is a link", []entry{sym("top", "/etc")}, "left", "top"},
		{"hard link out", []entry{dir("top/", 0o755), link("top/l", "../secret")}, "left", "top/l"},
		{"hard link to a link", []entry{dir("top/", 0o755), mk("top/f", "x"), sym("top/s", "f"), link("top/l", "top/s")}, "left", "top/l"},
		{"device", []entry{dir("top/", 0o755), {tar.Header{Name: "top/d", Typeflag: tar.TypeChar}, ""}}, "left", "top/d"},
		{"long name", []entry{mk("top/"+strings.Repeat("x/", 4000)+"x", "x")}, "too long", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, e := range c.entries {
				if err := w.WriteHeader(&e.h); err != nil {
					t.Fatal(err)
				}
				io.WriteString(w, e.c)
			}
			w.Close()
			outer := t.TempDir()
			in := filepath.Join(outer, "in")
			os.Mkdir(in, 0o755)
			os.WriteFile(filepath.Join(outer, "secret"), []byte("s"), 0o600)
			err := Unpack(&b, in, "top", "top")
			switch {
			case c.err == "left" && !errors.Is(err, ErrLeftOut), c.err != "left" && (err == nil || !strings.Contains(err.Error(), c.err)):
				t.Errorf("got %v, want %q", err, c.err)
			}
			if c.absent != "" {
				if _, err := os.Lstat(filepath.Join(in, c.absent)); err == nil {
					t.Error(c.absent, "was made")
				}
			}
			if l, _ := os.ReadDir(outer); len(l) != 2 {
				t.Error("something was written outside:", l)
			}
		})
	}
	// Few bytes that become many: a sparse file, as GNU tar writes it, of a terabyte.
	sparse := []byte("22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.name=top/f\n37 GNU.sparse.realsize=1099511627776\n")
	raw := func(name string, flag byte, content []byte) []byte {
		h := make([]byte, 512)
		copy(h, name)
		copy(h[100:], "0000644\x000000000\x000000000\x00")
		copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00        ", len(content)))
		h[156] = flag
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		return append(append(h, content...), make([]byte, (512-len(content)%512)%512)...)
	}
	bomb := slices.Concat(raw("top/", '5', nil), raw("PaxHeaders/f", 'x', sparse), raw("GNUSparseFile/f", '0', append([]byte("0\n"), make([]byte, 510)...)))
	there := t.TempDir()
	if err := Unpack(bytes.NewReader(append(bomb, make([]byte, 1024)...)), there, "top", "top"); err == nil ||
		!strings.Contains(err.Error(), "larger than what the machine sent") {
		t.Error("a sparse file of a terabyte:", err)
	}

	// Modes, and what is in the way.
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range []entry{dir("top/", 0o500), mk("top/f", "new"), {tar.Header{Name: "top/s", Typeflag: tar.TypeReg, Mode: 0o6755}, ""},
		link("top/h", "top/f")} {
		w.WriteHeader(&e.h)
		io.WriteString(w, e.c)
	}
	w.Close()
	outer := t.TempDir()
	victim := filepath.Join(outer, "victim")
	os.WriteFile(victim, []byte("old"), 0o600)
	in := filepath.Join(outer, "in")
	os.MkdirAll(filepath.Join(in, "top"), 0o755)
	os.Symlink(victim, filepath.Join(in, "top", "f"))
	if err := Unpack(&b, in, "top", "top"); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(victim); string(got) != "old" {
		t.Error("written through a link that was there")
	}
	if got, _ := os.ReadFile(filepath.Join(in, "top", "h")); string(got) != "new" {
		t.Errorf("%q", got)
	}
	if st, err := os.Stat(filepath.Join(in, "top", "s")); err != nil || st.Mode() != 0o755 {
		t.Error("a set-user-id file:", st.Mode(), err)
	}
	os.Chmod(filepath.Join(in, "top"), 0o700)
}

func FuzzUnpack(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "top/", Typeflag: tar.TypeDir, Mode: 0o755})
	w.WriteHeader(&tar.Header{Name: "top/l", Typeflag: tar.TypeSymlink, Linkname: "../.."})
	w.WriteHeader(&tar.Header{Name: "top/f", Typeflag: tar.TypeReg, Size: 1, Mode: 0o600})
	w.Write([]byte("x"))
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		outer := t.TempDir()
		in := filepath.Join(outer, "in")
		os.Mkdir(in, 0o755)
		Unpack(bytes.NewReader(data), in, "top", "top")
		if l, _ := os.ReadDir(outer); len(l) != 1 {
			t.Error("something was written outside:", l)
		}
		filepath.WalkDir(in, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(p, 0o700)
			}
			if err == nil && d.Type() == fs.ModeSymlink {
				if real, err := filepath.EvalSymlinks(p); err == nil && real != in && !strings.HasPrefix(real, in+"/") {
					t.Errorf("%s leads out, to %s", p, real)
				}
			}
			return nil
		})
	})
}
