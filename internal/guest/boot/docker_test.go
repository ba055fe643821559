package boot

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestJoinGroup(t *testing.T) {
	for name, c := range map[string]struct {
		before, after string
		gid           int
	}{
		"a new one":       {"root:x:0:\n", "root:x:0:\ndocker:x:999:runner\n", 999},
		"its id is taken": {"root:x:0:\nsys:x:999:\n", "root:x:0:\nsys:x:999:\ndocker:x:998:runner\n", 998},
		"there, empty":    {"docker:x:120:\n", "docker:x:120:runner\n", 120},
		"there, others":   {"docker:x:120:a,b\nz:x:1:", "docker:x:120:a,b,runner\nz:x:1:\n", 120},
		"a member":        {"docker:x:120:a,runner", "docker:x:120:a,runner", 120},
		"nonsense":        {"docker\nx:y:z:\n", "docker\nx:y:z:\ndocker:x:999:runner\n", 999},
	} {
		file := filepath.Join(t.TempDir(), "group")
		if err := os.WriteFile(file, []byte(c.before), 0o644); err != nil {
			t.Fatal(err)
		}
		gid, err := joinGroup(file, "docker", "runner")
		if got := read(t, file); err != nil || gid != c.gid || got != c.after {
			t.Errorf("%s: %d %q %v", name, gid, got, err)
		}
	}
}

func TestReadable(t *testing.T) {
	var p [2]int
	if err := syscall.Pipe(p[:]); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(p[0])
	defer syscall.Close(p[1])
	if readable(p[0]) {
		t.Error("there is nothing to read")
	}
	if _, err := syscall.Write(p[1], []byte("x")); err != nil {
		t.Fatal(err)
	}
	if !readable(p[0]) {
		t.Error("there is something to read")
	}
}
