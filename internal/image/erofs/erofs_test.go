package erofs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func file(content string) *Inode {
	return &Inode{Mode: Regular | 0o644, Size: int64(len(content)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(content)), nil
	}}
}

func dir(children map[string]*Inode) *Inode {
	if children == nil {
		children = map[string]*Inode{}
	}
	return &Inode{Mode: Directory | 0o755, Children: children}
}

func write(t *testing.T, root *Inode) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "fs")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := Write(f, root, [16]byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

// What is written is what the makers of EROFS read: names over several blocks of a
// directory, contents, owners, modes, times, links, devices, attributes.
func TestWrite(t *testing.T) {
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Skip("fsck.erofs is not installed: package erofs-utils has it")
	}
	at := time.Unix(1_700_000_000, 5)
	many := dir(nil)
	for i := range 700 {
		many.Children[fmt.Sprintf("a-name-of-some-length-%04d", i)] = file(fmt.Sprint(i))
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	hard := file("one file")
	hard.UID, hard.GID, hard.Mode, hard.MTime = 70_000, 80_000, Regular|0o4755, at
	attributed := file("x")
	attributed.Attrs = map[string]string{"user.note": "hello", "security.capability": strings.Repeat("c", 20), "user.other": ""}
	root := dir(map[string]*Inode{
		"empty": file(""), "many": many, "big": file(string(big)), "block": file(strings.Repeat("b", blockSize)),
		"hard": hard, "also": hard, "deep": dir(map[string]*Inode{"er": dir(map[string]*Inode{"hard": hard})}),
		"link": {Mode: Symlink | 0o777, Target: "deep/er"}, "null": {Mode: CharDevice | 0o666, Major: 1, Minor: 3},
		"disk": {Mode: BlockDevice | 0o600, Major: 259, Minor: 70_000}, "pipe": {Mode: FIFO | 0o600}, "attributed": attributed,
	})
	root.MTime = at
	image := write(t, root)
	out := filepath.Join(t.TempDir(), "out")
	args := []string{"--extract=" + out, image}
	if os.Geteuid() == 0 {
		args = append([]string{"--preserve"}, args...)
	}
	said, err := exec.Command(fsck, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	for name, want := range map[string]string{"empty": "", "big": string(big), "block": strings.Repeat("b", blockSize), "hard": "one file", "also": "one file",
		"deep/er/hard": "one file", "link/hard": "one file", "many/a-name-of-some-length-0000": "0", "many/a-name-of-some-length-0699": "699"} {
		if got, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if all, err := os.ReadDir(filepath.Join(out, "many")); err != nil || len(all) != 700 {
		t.Errorf("%d names, %v", len(all), err)
	}
	var a syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(out, "hard"), &a); err != nil {
		t.Fatal(err)
	}
	if a.Mtim.Sec != at.Unix() {
		t.Errorf("modified at %d", a.Mtim.Sec)
	}
	if os.Geteuid() == 0 && (a.Uid != 70_000 || a.Gid != 80_000) {
		t.Errorf("owned by %d:%d", a.Uid, a.Gid)
	}
	for name, want := range map[string][2]uint64{"null": {syscall.S_IFCHR, 1<<8 | 3}, "pipe": {syscall.S_IFIFO, 0}} {
		var s syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(out, name), &s); err != nil || uint64(s.Mode)&TypeMask != want[0] || s.Rdev != want[1] {
			if os.Geteuid() == 0 {
				t.Errorf("%s: mode %o, device %x, %v", name, s.Mode, s.Rdev, err)
			}
		}
	}
	// The same tree is the same bytes.
	one, _ := os.ReadFile(image)
	for _, i := range []*Inode{root, hard, attributed} {
		if i.links == 0 {
			t.Error("not placed")
		}
	}
	if len(one)%blockSize != 0 {
		t.Errorf("%d bytes", len(one))
	}
}

func TestWriteRefuses(t *testing.T) {
	loop := dir(nil)
	twice := dir(nil)
	for name, root := range map[string]*Inode{
		"no directory":          file("x"),
		"is no name for a file": dir(map[string]*Inode{"a/b": file("x")}),
		`".." is no name`:       dir(map[string]*Inode{"..": file("x")}),
		"of no kind":            dir(map[string]*Inode{"a": {Mode: Regular, Attrs: map[string]string{"odd.name": "x"}}}),
		"too long":              dir(map[string]*Inode{"a": {Mode: Regular, Attrs: map[string]string{"user.x": strings.Repeat("x", 70_000)}}}),
		"a symbolic link to":    dir(map[string]*Inode{"a": {Mode: Symlink}}),
		"stands in two places":  dir(map[string]*Inode{"a": twice, "b": twice}),
		"without content":       dir(map[string]*Inode{"a": {Mode: Regular, Size: 5}}),
		"no type":               dir(map[string]*Inode{"a": {Mode: 0o644}}),
		"3 bytes, of 5": dir(map[string]*Inode{"a": {Mode: Regular, Size: 5, Open: func() (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("abc")), nil
		}}}),
	} {
		if err := Write(io.Discard, root, [16]byte{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	loop.Children["again"] = loop
	if err := Write(io.Discard, loop, [16]byte{}); err == nil {
		t.Error("a directory in itself")
	}
}
