package pool

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/qemu"
)

// TestQEMU is the pool on real machines, whose root is their initrd.
func TestQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("SKIPPED, NOT PASSED: qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
	}
	agent := filepath.Join(t.TempDir(), "hearth-guest")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "github.com/hearth-ci/hearth/cmd/hearth-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, msg)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache = filepath.Join(cache, "hearth-test")
	building, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	img, err := image.Boot(building, image.Options{Dir: filepath.Join(cache, "images"), Agent: agent})
	if err != nil {
		t.Skipf("SKIPPED, NOT PASSED: no kernel to boot: %v", err)
	}
	run := t.TempDir()
	cfg := Config{
		Driver: qemu.New(qemu.Config{CacheDir: cache}), Image: img, RunDir: run, CacheDir: t.TempDir(),
		CPUs: 1, MemoryMiB: 256, Means: machine.Means{CPUs: 2, MemoryMiB: 1024}, Warm: 1, Touch: []string{"/init", "version"},
	}
	// Two pools on one host, as two programs would be, ask for the same template.
	var pools [2]*Pool
	for i := range pools {
		if pools[i], err = New(cfg); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := pools[i].Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	var wg sync.WaitGroup
	for _, p := range pools {
		wg.Go(func() {
			l, err := p.claim(t.Context(), machine.Request{})
			if err != nil {
				t.Error(err)
				return
			}
			if got := version(t, l); !strings.HasPrefix(got, "hearth-guest ") {
				t.Errorf("the guest says %q", got)
			}
			if err := l.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	if err := pools[1].Close(t.Context()); err != nil {
		t.Error(err)
	}

	p := pools[0]
	until(t, "a warm machine", func() bool { return p.Stats().Warm == 1 })
	l, err := p.claim(t.Context(), machine.Request{})
	if err != nil {
		t.Fatal(err)
	}
	if !l.Session().Warm {
		t.Error("the machine that was ready was not used")
	}
	c := l.Client()
	name := func() string {
		b, err := l.Client().ReadFile(t.Context(), "/proc/sys/kernel/hostname", 100)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	if got := name(); got != "hearth-"+l.ID() {
		t.Errorf("host name %q", got)
	}
	write := func(s string) {
		if err := l.Client().WriteFile(t.Context(), "/run/note", []byte(s), 0o600, "root"); err != nil {
			t.Fatal(err)
		}
	}
	write("before")
	point, err := l.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	write("after") // the same connection goes on
	if err := l.Rollback(t.Context(), point); err != nil {
		t.Fatal(err)
	}
	if b, err := l.Client().ReadFile(t.Context(), "/run/note", 100); err != nil || string(b) != "before" {
		t.Errorf("after the rollback: %q, %v", b, err)
	}
	if c == l.Client() || name() != "hearth-"+l.ID() {
		t.Errorf("want another client and the same host name, have %q", name())
	}
	version(t, l)
	exported(t, p, l)
	if err := l.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Join(run, "machines")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// exported takes a machine that was put back out of its pool, and begins two with it:
// each has what was on its disk and in its memory, and a name of its own.
func exported(t *testing.T, p *Pool, l *Lease) {
	t.Helper()
	if err := l.Client().WriteFile(t.Context(), "/run/note", []byte("kept"), 0o600, "root"); err != nil {
		t.Fatal(err)
	}
	c, err := l.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	began := time.Now()
	if err := l.Export(t.Context(), c, &b); err != nil {
		t.Fatal(err)
	}
	t.Logf("a checkpoint of %d bytes is %d exported, in %v", c.Bytes, b.Len(), time.Since(began))
	if int64(b.Len()) > c.Bytes/4 {
		t.Errorf("%d bytes of %d: nothing was found in the template", b.Len(), c.Bytes)
	}
	if err := l.Forget(c); err != nil {
		t.Error(err)
	}
	saved := machine.Saved{ID: "x", Origin: l.Origin(), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }}
	other := saved
	other.Origin.Template = "another"
	if _, err := p.Claim(t.Context(), machine.Request{From: &other}); !errors.Is(err, machine.ErrOrigin) ||
		!strings.Contains(err.Error(), "is gone, or was made again") {
		t.Errorf("of another template: %v", err)
	}
	other = saved
	other.Open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes()[:b.Len()-1])), nil }
	if _, err := p.Claim(t.Context(), machine.Request{From: &other}); !errors.Is(err, vm.ErrSnapshot) {
		t.Errorf("cut off: %v", err)
	}
	// Many at once share what one of them unpacks.
	var many sync.WaitGroup
	for range 20 {
		many.Go(func() {
			b, err := p.unpacked(t.Context(), &saved, l.kind)
			if err = errors.Join(err, p.letGo(b)); err != nil {
				t.Error(err)
			}
		})
	}
	many.Wait()
	for range 2 {
		began := time.Now()
		n, err := p.claim(t.Context(), machine.Request{From: &saved})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("claimed in %v", time.Since(began))
		if b, err := n.Client().ReadFile(t.Context(), "/run/note", 100); err != nil || string(b) != "kept" {
			t.Errorf("%q, %v", b, err)
		}
		if b, err := n.Client().ReadFile(t.Context(), "/proc/sys/kernel/hostname", 100); err != nil || strings.TrimSpace(string(b)) != "hearth-"+n.ID() {
			t.Errorf("host name %q, %v", b, err)
		}
		if err := n.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func version(t *testing.T, l *Lease) string {
	t.Helper()
	var out bytes.Buffer
	x, err := l.Client().Exec(t.Context(), guest.Cmd{Argv: []string{"/init", "version"}, User: "root", Dir: "/", Stdout: &out})
	if err != nil || !x.OK() {
		t.Errorf("version: %v, %v", x, err)
	}
	return out.String()
}
