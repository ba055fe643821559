package vm

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestCopyAndSum(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 1 << 20, 40 << 20} {
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte(at>>20) + 1}, 5000), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	dst := filepath.Join(dir, "dst")
	if err := CopySparse(t.Context(), dst, src); err != nil {
		t.Fatal(err)
	}
	a, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(dst)
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("the copy differs: %v", err)
	}
	full := filepath.Join(dir, "full") // the same without holes
	if err := os.WriteFile(full, a, 0o600); err != nil {
		t.Fatal(err)
	}
	third := filepath.Join(dir, "third")
	in, err := os.Open(full)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	want, err := CopySum(t.Context(), third, in)
	if err != nil || want.Size != 64<<20 {
		t.Errorf("%+v, %v", want, err)
	}
	for _, n := range []string{src, dst, full, third} {
		if got, err := SumFile(t.Context(), n); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", n, got, err, want)
		}
	}
	if c, err := os.ReadFile(third); err != nil || !bytes.Equal(a, c) {
		t.Errorf("the summed copy differs: %v", err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(third, &st); err != nil || st.Blocks*512 > 8<<20 {
		t.Errorf("the copy of zeros takes %d bytes, %v", st.Blocks*512, err)
	}
	// The same bytes elsewhere are another file.
	if err := os.Truncate(full, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, append(make([]byte, block), a[:len(a)-block]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := SumFile(t.Context(), full); err != nil || got.Sum == want.Sum {
		t.Errorf("moved contents have the same sum: %+v, %v", got, err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := SumFile(over, full); !errors.Is(err, context.Canceled) {
		t.Errorf("with a dead context: %v", err)
	}
	if err := CopySparse(t.Context(), dst, src); err == nil {
		t.Error("copied over an existing file")
	}
	// What could not be copied whole is not there.
	half := filepath.Join(dir, "half")
	if err := create(half, func(out *os.File) error {
		out.WriteString("half")
		return context.Canceled
	}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a failed copy is there: %v", err)
	}
}
