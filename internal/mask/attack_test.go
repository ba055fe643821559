package mask

import (
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"
)

// heap is what is in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func noise(rnd *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(0x21 + rnd.IntN(0x7f-0x21))
	}
	return string(b)
}

// Twelve times ::add-mask:: of 60 KB cost 1.4 GiB in three seconds: an automaton
// of every encoding, of which each state took forty bytes.
func TestAttackMaskMemory(t *testing.T) {
	secrets, size := 3, 60<<10
	if os.Getenv("HEARTH_SLOW") != "" {
		secrets = 8
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	before := heap()
	set := &Set{}
	w := NewWriter(io.Discard, set)
	for range secrets {
		if err := set.Add(noise(rnd, size)); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, "a line\n")
	}
	if used := heap() - before; used > uint64(24<<20+40*secrets*size) {
		t.Errorf("%d secrets of %d KiB take %d KiB", secrets, size>>10, used>>10)
	}
	t.Logf("%d secrets of %d KiB take %d KiB", secrets, size>>10, (heap()-before)>>10)
	if err := set.Add(noise(rnd, MaxSecret)); secrets == 8 && err != ErrTooMany {
		t.Errorf("there is no end to what can be masked: %v", err)
	}
	runtime.KeepAlive(set)
}

// Short secrets without end: each is twenty patterns and more, which no block can
// shorten.
func TestAttackMaskCount(t *testing.T) {
	count := 500
	if os.Getenv("HEARTH_SLOW") != "" {
		count = 1 << 20
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	before := heap()
	set := &Set{}
	for i := range count {
		if err := set.Add(noise(rnd, 8)); err != nil {
			t.Logf("refused after %d", i)
			count = i
			break
		}
	}
	used := heap() - before
	t.Logf("%d secrets take %d KiB", count, used>>10)
	if per := int(used) / count; per > 40<<10 || used > 128<<20 {
		t.Errorf("%d secrets take %d KiB", count, used>>10)
	}
	if set.short > maxShort || set.size > MaxSecrets {
		t.Errorf("%d bytes in automata, %d in secrets", set.short, set.size)
	}
	runtime.KeepAlive(set)
}

// A secret that never ends, but is hidden: what a partial match holds back must not
// grow with what nobody sees of it.
func TestAttackHeldBack(t *testing.T) {
	var out strings.Builder
	w := NewWriter(&out, newSet(t, "hunter2", strings.Repeat("x", 5000)))
	io.WriteString(w, "hunter")
	for range 2000 {
		io.WriteString(w, strings.Repeat("\x00\x1b[31m\u200b", 100))
	}
	if len(w.buf) > 1<<10 || len(w.seen.places) > 1<<10 || len(w.raw.places) > 16<<10 {
		t.Errorf("held: %d bytes, %d and %d places", len(w.buf), len(w.raw.places), len(w.seen.places))
	}
	io.WriteString(w, "2")
	w.Flush()
	if got := out.String(); got != Mark {
		t.Errorf("%.200q", got)
	}
}
