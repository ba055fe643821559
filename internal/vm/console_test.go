package vm

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConsole(t *testing.T) {
	name := filepath.Join(t.TempDir(), "console")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var also bytes.Buffer
	c := &Console{File: f, Also: &also}
	line := []byte(strings.Repeat("x", 99) + "\n")
	for range 3 * maxConsole / len(line) {
		c.Write(line)
	}
	c.Write([]byte("\x1b[31mthe \x00end\x9b\r\n"))
	fi, err := f.Stat()
	if err != nil || fi.Size() > maxConsole+200 || also.Len() > maxConsole {
		t.Errorf("%d and %d bytes are kept, %v", fi.Size(), also.Len(), err)
	}
	if got := c.Tail(); !strings.HasSuffix(got, "\n[31mthe end") || strings.Count(got, "\n") >= tailLines {
		t.Errorf("last lines: %q", got)
	}
	if cap(c.tail) > 64<<10 {
		t.Errorf("%d bytes of the end are kept", cap(c.tail))
	}
	if s := c.Died(); s != "" {
		t.Errorf("it did not die: %s", s)
	}
	c.Write([]byte("... Kernel pa"))
	c.Write([]byte("nic - not syncing"))
	c.Write([]byte(", really\nand more\n"))
	if s := c.Died(); s != "... Kernel panic - not syncing" {
		t.Errorf("a panic in two pieces: %q", s)
	}
}
