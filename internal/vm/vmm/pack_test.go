package vmm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/hearth-ci/hearth/internal/vm"
)

// packed makes a template and the snapshot of a machine that was cloned from it: in its
// state is memory of which one page differs.
func packed(t *testing.T) (template, dir string, want map[string][]byte) {
	t.Helper()
	rnd := rand.NewChaCha8([32]byte{1})
	noise := func(n int) []byte { b := make([]byte, n); rnd.Read(b); return b }
	template, dir = t.TempDir(), t.TempDir()
	memory := append(noise(64*page), make([]byte, 64*page)...)
	write := func(dir, name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(template, MemoryName, memory)
	write(template, "disk-scratch.img", noise(5000))
	write(template, ManifestName, []byte("{}"))
	var state bytes.Buffer
	state.WriteString("QEVM device states \x08\x08\x08")
	for n := range 64 {
		flags := uint64(ramPage | ramContinue)
		if n == 0 {
			flags = ramPage
		}
		binary.Write(&state, binary.BigEndian, uint64(n*page)|flags)
		if n == 0 {
			state.WriteString("\x04ram0")
		}
		if n == 7 {
			state.Write(noise(page))
		} else {
			state.Write(memory[n*page : (n+1)*page])
		}
	}
	binary.Write(&state, binary.BigEndian, uint64(70*page)|ramZero|ramContinue)
	state.WriteString("\x00and the end")
	earlier := filepath.Join(t.TempDir(), "earlier.qcow2")
	want = map[string][]byte{StateName: state.Bytes(), "disk-scratch.qcow2": append(make([]byte, 3*page), noise(page+10)...), "below-scratch-0.qcow2": noise(777)}
	write(dir, StateName, want[StateName])
	write(dir, "disk-scratch.qcow2", want["disk-scratch.qcow2"])
	if err := os.WriteFile(earlier, want["below-scratch-0.qcow2"], 0o600); err != nil {
		t.Fatal(err)
	}
	m := Manifest{Version: 7, Driver: "test", Fingerprint: "here-", CPUs: 1, MemoryMiB: 64, Disks: []Disk{{ID: "base", Path: "/somewhere"},
		{ID: "scratch", Format: "qcow2", File: "disk-scratch.qcow2",
			Below: []Image{{earlier, "qcow2"}, {filepath.Join(template, "disk-scratch.img"), "raw"}}}}}
	if err := m.Write(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	return template, dir, want
}

// What is packed is a small part of the snapshot, and the snapshot again once it is
// unpacked: on the same template, whatever became of what it stood on besides.
func TestPack(t *testing.T) {
	template, dir, want := packed(t)
	var b bytes.Buffer
	if err := Pack(t.Context(), &b, dir, template); err != nil {
		t.Fatal(err)
	}
	if b.Len() > 3*page+2000 {
		t.Errorf("%d bytes packed of %d", b.Len(), len(want[StateName]))
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	again := t.TempDir()
	if err := Unpack(t.Context(), &b, again, template, 1<<20); err != nil {
		t.Fatal(err)
	}
	for name, w := range want {
		if got, err := os.ReadFile(filepath.Join(again, name)); err != nil || !bytes.Equal(got, w) {
			t.Errorf("%s: %d bytes of %d, or others; %v", name, len(got), len(w), err)
		}
	}
	m, err := format.Read(again)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Check(t.Context(), again); err != nil {
		t.Error(err)
	}
	below := m.Disks[1].Below
	if below[0].Path != filepath.Join(again, "below-scratch-0.qcow2") ||
		below[1].Path != filepath.Join(template, "disk-scratch.img") || m.Disks[0].Path != "/somewhere" {
		t.Errorf("%+v", m.Disks)
	}
	one, _ := Identity(template)
	os.WriteFile(filepath.Join(template, ManifestName), []byte("{ }"), 0o600)
	if two, err := Identity(template); err != nil || one == two {
		t.Errorf("%s, %s, %v", one, two, err)
	}
}

// A page of another template is found by the sums; nothing is whole that was cut off.
func TestUnpackDamaged(t *testing.T) {
	template, dir, _ := packed(t)
	var b bytes.Buffer
	if err := Pack(t.Context(), &b, dir, template); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < b.Len(); n += b.Len()/40 + 1 {
		cut := t.TempDir()
		if err := Unpack(t.Context(), bytes.NewReader(b.Bytes()[:n]), cut, template, 1<<20); !errors.Is(err, vm.ErrSnapshot) {
			t.Fatalf("cut off at %d: %v", n, err)
		}
		if _, err := os.Stat(filepath.Join(cut, ManifestName)); err == nil {
			t.Fatalf("cut off at %d, and whole", n)
		}
	}
	memory := filepath.Join(template, MemoryName)
	was, _ := os.ReadFile(memory)
	was[3*page]++
	os.WriteFile(memory, was, 0o600)
	other := t.TempDir()
	if err := Unpack(t.Context(), &b, other, template, 1<<20); err != nil {
		t.Fatal(err)
	}
	if m, err := format.Read(other); err != nil || !errors.Is(m.Check(t.Context(), other), vm.ErrSnapshot) {
		t.Errorf("%+v, %v: a page of another template is as good", m, err)
	}
}

// A stream that was not written by Pack makes no file outside of its directory, none
// larger than said, and none of more than the limit.
func TestAttackUnpack(t *testing.T) {
	template := t.TempDir()
	os.WriteFile(filepath.Join(template, MemoryName), make([]byte, 4*page), 0o600)
	stream := func(manifest string, rest ...any) io.Reader {
		var b bytes.Buffer
		z, _ := zstd.NewWriter(&b)
		put := func(n uint64) { z.Write(binary.AppendUvarint(nil, n)) }
		put(uint64(len(manifest)))
		io.WriteString(z, manifest)
		put(1)
		for _, r := range rest {
			switch r := r.(type) {
			case string:
				put(uint64(len(r)))
				io.WriteString(z, r)
			case byte:
				z.Write([]byte{r})
			case int:
				put(uint64(r))
			}
		}
		z.Close()
		return &b
	}
	const one = `{"files":{"%":{"size":100}}}`
	of := func(name string) string { return strings.Replace(one, "%", name, 1) }
	for want, r := range map[string]io.Reader{
		"not accounted for":   stream(of("state"), "memory"),
		`"../state"`:          stream(of("../state"), "../state"),
		`"snapshot.json"`:     stream(of(ManifestName), ManifestName),
		"larger than":         stream(`{"files":{"state":{"size":2000000}}}`, "state"),
		`"state" is larger`:   stream(`{"files":{"state":{"size":-1}}}`, "state"),
		"more than its size":  stream(of("state"), "state", byte(packHole), 101),
		"does not have":       stream(of("state"), "state", byte(packSame), 100, 4*page-99),
		"0 bytes of 100":      stream(of("state"), "state", byte(packEnd), 0),
		"kind 9":              stream(of("state"), "state", byte(9), 1),
		"unexpected EOF":      stream(of("state"), "state", byte(packData), 100, "x"),
		"at most 255":         stream(of("state"), strings.Repeat("x", 300)),
		"stands on":           stream(`{"files":{"a":{"size":1}},"disks":[{"id":"d","below":[{"path":"/etc/shadow"}]}]}`, "a", byte(packHole), 1, byte(packEnd), 0),
		`"template:../shadow`: stream(`{"files":{"a":{"size":1}},"disks":[{"id":"d","below":[{"path":"template:../shadow"}]}]}`, "a", byte(packHole), 1, byte(packEnd), 0),
	} {
		dir := filepath.Join(t.TempDir(), "in")
		os.Mkdir(dir, 0o700)
		if err := Unpack(t.Context(), r, dir, template, 1<<20); !errors.Is(err, vm.ErrSnapshot) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
		if all, _ := os.ReadDir(filepath.Dir(dir)); len(all) != 1 {
			t.Errorf("%s: %v", want, all)
		}
	}
}
