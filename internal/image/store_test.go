package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
)

func newTestStore(t *testing.T) *store {
	t.Helper()
	s, err := openStore(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fillWith makes a layer's fill function that writes one file.
func fillWith(name, contents string) func(context.Context, string) (map[string]string, error) {
	return func(_ context.Context, dir string) (map[string]string, error) {
		return nil, os.WriteFile(filepath.Join(dir, name), []byte(contents), 0o644)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestLayerIsFoundAgain(t *testing.T) {
	s := newTestStore(t)
	if _, err := s.lookup("kernel", "in"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("lookup before create: %v", err)
	}
	made, err := s.create(t.Context(), "kernel", "in", fillWith("vmlinux", "ELF"))
	if err != nil {
		t.Fatal(err)
	}
	found, err := s.lookup("kernel", "in")
	if err != nil {
		t.Fatal(err)
	}
	if found.ID != made.ID || found.path("vmlinux") != made.path("vmlinux") || found.size() != 3 {
		t.Fatalf("found %+v, made %+v", found, made)
	}
	if _, err := s.lookup("kernel", "other"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("other inputs found %v", err)
	}
	if got := names(t, filepath.Join(s.dir, "tmp")); len(got) != 0 {
		t.Fatalf("tmp holds %v", got)
	}
}

// TestDamageIsSeen damages a layer in every way that a disk or a person can,
// and keeps the size and the modification time where that is possible.
func TestDamageIsSeen(t *testing.T) {
	damage := map[string]func(l *Layer) error{
		"overwritten": func(l *Layer) error { return os.WriteFile(l.path("disk"), []byte("evil contents"), 0o644) },
		"same time": func(l *Layer) error {
			info, err := os.Stat(l.path("disk"))
			if err != nil {
				return err
			}
			if err := os.WriteFile(l.path("disk"), []byte("evil contents"), 0o644); err != nil {
				return err
			}
			return os.Chtimes(l.path("disk"), info.ModTime(), info.ModTime())
		},
		"shorter":       func(l *Layer) error { return os.Truncate(l.path("disk"), 4) },
		"gone":          func(l *Layer) error { return os.Remove(l.path("disk")) },
		"a link":        func(l *Layer) error { os.Remove(l.path("disk")); return os.Symlink("/etc/passwd", l.path("disk")) },
		"bad manifest":  func(l *Layer) error { return os.WriteFile(l.path(manifestName), []byte("{"), 0o644) },
		"manifest lies": func(l *Layer) error { return rewrite(l.path(manifestName), `"size": 13`, `"size": 12`) },
		"path in name":  func(l *Layer) error { return rewrite(l.path(manifestName), `"name": "disk"`, `"name": "../../x"`) },
	}
	for name, do := range damage {
		t.Run(name, func(t *testing.T) {
			s := newTestStore(t)
			l, err := s.create(t.Context(), "base", "in", fillWith("disk", "good contents"))
			if err != nil {
				t.Fatal(err)
			}
			if err := do(l); err != nil {
				t.Fatal(err)
			}
			_, err = s.lookup("base", "in")
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), l.dir) {
				t.Fatalf("lookup: %v; want ErrCorrupt naming the place", err)
			}
			// Built again, it is good again.
			if _, err := s.create(t.Context(), "base", "in", fillWith("disk", "good contents")); err != nil {
				t.Fatal(err)
			}
			if _, err := s.lookup("base", "in"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func rewrite(path, old, new string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !strings.Contains(string(data), old) {
		return errors.New("nothing to rewrite")
	}
	return os.WriteFile(path, []byte(strings.Replace(string(data), old, new, 1)), 0o644)
}

// TestTouchedButWhole: a changed stamp with the same contents costs a hash and
// nothing else.
func TestTouchedButWhole(t *testing.T) {
	s := newTestStore(t)
	l, err := s.create(t.Context(), "base", "in", fillWith("disk", "good contents"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Add(time.Hour)
	if err := os.Chtimes(l.path("disk"), now, now); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(l.path(stampName))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.lookup("base", "in"); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(l.path(stampName))
	if err != nil {
		t.Fatal(err)
	}
	if string(before) == string(after) {
		t.Fatal("the stamp was not renewed, so every use would hash again")
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	s := newTestStore(t)
	boom := errors.New("boom")
	_, err := s.create(t.Context(), "base", "in", func(_ context.Context, dir string) (map[string]string, error) {
		if err := os.MkdirAll(filepath.Join(dir, "root", "etc"), 0o755); err != nil {
			return nil, err
		}
		return nil, boom
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err = s.create(ctx, "base", "in", func(_ context.Context, dir string) (map[string]string, error) {
		cancel(boom)
		return fillWith("disk", "contents")(ctx, dir)
	})
	if !errors.Is(err, boom) {
		t.Fatalf("cancelled build: %v", err)
	}
	for _, d := range []string{"tmp", "layers", "refs"} {
		if got := names(t, filepath.Join(s.dir, d)); len(got) != 0 {
			t.Errorf("%s holds %v", d, got)
		}
	}
}

// TestSweep: what a killed build left goes with the next one that has the lock.
func TestSweep(t *testing.T) {
	s := newTestStore(t)
	if err := os.MkdirAll(filepath.Join(s.dir, "tmp", "base-1", "root", "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := names(t, filepath.Join(s.dir, "tmp")); len(got) != 0 {
		t.Fatalf("tmp holds %v", got)
	}
}

// TestKilledBuilder kills a builder with SIGKILL in the middle of its work:
// what it had started dies with it, and the next one cleans up.
func TestKilledBuilder(t *testing.T) {
	if dir := os.Getenv("HEARTH_TEST_BUILDER"); dir != "" {
		s, err := openStore(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.lock(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		_, err = s.create(t.Context(), "base", "in", func(ctx context.Context, dir string) (map[string]string, error) {
			script := namespaced(`mount -t tmpfs none "$1"; echo up >&2; (trap "" TERM HUP; sleep 1000) & sleep 1000`, dir)
			script.line = func(line string) { os.Stdout.WriteString("line " + line + "\n") }
			_, err := script.run(ctx)
			return nil, err
		})
		t.Fatal(err)
	}
	if _, err := (namespaced("true")).run(t.Context()); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: no namespaces here: %v", err)
	}
	s := newTestStore(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledBuilder$", "-test.v")
	cmd.Env = append(os.Environ(), "HEARTH_TEST_BUILDER="+s.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	up := false
	for sc := bufio.NewScanner(out); !up && sc.Scan(); {
		up = sc.Text() == "line up"
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if !up {
		t.Fatal("the builder did not get to work")
	}
	if got := names(t, filepath.Join(s.dir, "tmp")); len(got) != 1 {
		t.Fatalf("tmp holds %v", got)
	}
	// Its processes have the directory in their command line.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		left := withArgument(t, s.dir)
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still running: %v", left)
		}
	}
	unlock, err := s.lock(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := s.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := names(t, filepath.Join(s.dir, "tmp")); len(got) != 0 {
		t.Fatalf("tmp holds %v", got)
	}
}

// withArgument lists the processes whose command line mentions s.
func withArgument(t *testing.T, s string) (found []string) {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range list {
		if line, err := os.ReadFile(path); err == nil && strings.Contains(string(line), s) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

func TestLockExcludes(t *testing.T) {
	s := newTestStore(t)
	unlock, err := s.lock(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waited := ""
	_, err = s.lock(ctx, func(holder string) { waited = holder; cancel() })
	if !errors.Is(err, context.Canceled) || !strings.HasPrefix(waited, "process ") {
		t.Fatalf("second lock: %v, waited for %q", err, waited)
	}
	unlock()
	unlock, err = s.lock(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// TestDiskFull fills a small file system for real.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: a full disk needs a tmpfs of our own, and mounting failed: %v (run as root)", err)
	}
	defer func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("something still uses the disk: %v", err)
		}
	}()
	s, err := openStore(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.create(t.Context(), "base", "in", fillWith("disk", strings.Repeat("x", 2<<20)))
	if !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "HEARTH_HOME") {
		t.Fatalf("writing: %v", err)
	}
	// A program of the distribution that runs into it says so in its words.
	_, err = s.create(t.Context(), "tools", "in", func(ctx context.Context, to string) (map[string]string, error) {
		_, err := tool{argv: []string{"dd", "if=/dev/zero", "of=" + filepath.Join(to, "x"), "bs=64k", "count=64"}}.run(ctx)
		return nil, err
	})
	if !errors.Is(err, ErrDiskFull) {
		t.Fatalf("dd: %v", err)
	}
	// And a build that sees it coming does not start.
	agent := staticProgram(t)
	_, err = Boot(t.Context(), Options{Dir: dir, Agent: agent})
	if !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), "needs about") {
		t.Fatalf("Boot: %v", err)
	}
	for _, d := range []string{"tmp", "layers", "refs"} {
		if got := names(t, filepath.Join(dir, d)); len(got) != 0 {
			t.Errorf("%s holds %v", d, got)
		}
	}
	if free := freeBytes(dir); free < 1<<20-64<<10 {
		t.Errorf("only %d bytes free after cleaning up", free)
	}
}

// staticProgram is an agent that passes for one: this test binary is static
// only without cgo, so it takes the smallest ELF header there is.
func staticProgram(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(path, testELF(t, nil), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAgentIsChecked(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"": "make build", filepath.Join(dir, "none"): "no such file", script: "guest agent "} {
		_, err := Boot(t.Context(), Options{Dir: t.TempDir(), Agent: path})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("agent %q: %v; want %q", path, err, want)
		}
	}
	if data, err := os.ReadFile("/bin/sh"); err == nil {
		if err := os.WriteFile(script, data, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := readAgent(script); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
			t.Errorf("a dynamically linked agent: %v", err)
		}
	}
}

func TestMissingTool(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	old := toolPackages["no-such-program"]
	if old != "" {
		t.Fatal("it is there")
	}
	_, err := tool{argv: []string{"no-such-program"}}.run(t.Context())
	missing, ok := errors.AsType[*MissingToolError](err)
	if !ok || missing.Tool != "no-such-program" {
		t.Fatalf("%v", err)
	}
	// mmdebstrap is in /usr/bin only, which PATH no longer has.
	_, err = lookTool("mmdebstrap")
	if err == nil || !strings.Contains(err.Error(), "apt-get install mmdebstrap") {
		t.Fatalf("%v; want the command that installs it", err)
	}
	_, err = Build(t.Context(), Options{Dir: t.TempDir(), Agent: staticProgram(t)})
	if missing, ok := errors.AsType[*MissingToolError](err); !ok || missing.Package == "" {
		t.Fatalf("Build: %v", err)
	}
}

func TestToolErrors(t *testing.T) {
	_, err := tool{argv: []string{"sh", "-c", "echo one; echo two >&2; exit 3"}}.run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "one\ntwo") || !strings.Contains(err.Error(), "exit status 3") {
		t.Fatalf("%v", err)
	}
	_, err = tool{argv: []string{"sh", "-c", "echo noise; echo 'E: Unable to locate package x'; echo more noise; exit 100"}}.run(t.Context())
	if err == nil || !strings.HasSuffix(err.Error(), ": E: Unable to locate package x") {
		t.Fatalf("%v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("stopped by the user")
	_, err = tool{argv: []string{"sh", "-c", "echo up; sleep 100"}, line: func(string) { cancel(why) }}.run(ctx)
	if !errors.Is(err, why) {
		t.Fatalf("cancelled: %v", err)
	}
}

// image makes a complete image of made-up layers.
func fakeImage(t *testing.T, s *store, name string, base string) *Image {
	t.Helper()
	b := &builder{store: s, recipe: &debian, opt: Options{Name: name}, kinds: layerKinds[:]}
	var layers []*Layer
	for kind, file := range map[string]string{"kernel": vmlinuxName, "initrd": initrdName, "base": baseName, "tools": toolsName} {
		contents := kind
		if kind == "base" {
			contents = base
		}
		l, err := s.create(t.Context(), kind, hashStrings(kind, contents), fillWith(file, contents))
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	img, err := b.assemble(layers)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestOpenListRemove(t *testing.T) {
	s := newTestStore(t)
	if list, err := List(s.dir); err != nil || len(list) != 0 {
		t.Fatalf("%v %v", list, err)
	}
	one := fakeImage(t, s, "one", "base one")
	two := fakeImage(t, s, "two", "base two")
	list, err := List(s.dir)
	if err != nil || len(list) != 2 || list[0].Size != one.Size() {
		t.Fatalf("%+v %v", list, err)
	}
	for _, ref := range []string{"one", one.ID, one.ID[:12]} {
		got, err := Open(s.dir, ref)
		if err != nil || got.ID != one.ID || got.Base != one.Base {
			t.Fatalf("Open(%q) = %v, %v", ref, got, err)
		}
		if err := got.Verify(); err != nil {
			t.Fatal(err)
		}
	}
	for ref, want := range map[string]string{"three": "hearth image list", "node:20": "container image", one.ID[:4]: "image list"} {
		if _, err := Open(s.dir, ref); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%q): %v", ref, err)
		}
	}
	release, err := one.Hold()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Remove(t.Context(), s.dir, "one"); !errors.Is(err, ErrInUse) {
		t.Fatalf("removing a held image: %v", err)
	}
	release()
	if freed, err := Remove(t.Context(), s.dir, "one"); err != nil || freed == 0 {
		t.Fatalf("%d %v", freed, err)
	}
	if _, err := os.Stat(one.Base); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the base of the removed image: %v", err)
	}
	if err := two.Verify(); err != nil {
		t.Errorf("the other image, which shares a kernel: %v", err)
	}
	if _, err := one.Hold(); err == nil {
		t.Error("a removed image can be held")
	}
}

func TestGC(t *testing.T) {
	s := newTestStore(t)
	old := fakeImage(t, s, "x", "old")
	past := time.Now().Add(-2 * time.Hour)
	if err := os.WriteFile(filepath.Join(s.dir, old.ID, manifestName), rewritten(t, filepath.Join(s.dir, old.ID, manifestName)), 0o644); err != nil {
		t.Fatal(err)
	}
	if removed, err := GC(t.Context(), s.dir, Limits{}); err != nil || len(removed) != 0 {
		t.Fatalf("an image that was used just now: %+v, %v", removed, err)
	}
	if err := os.Chtimes(filepath.Join(s.dir, old.ID, manifestName), past, past); err != nil {
		t.Fatal(err)
	}
	current := fakeImage(t, s, "x", "current")
	unusedImg := fakeImage(t, s, "y", "unused")
	if err := os.Chtimes(filepath.Join(s.dir, unusedImg.ID, manifestName), past, past); err != nil {
		t.Fatal(err)
	}
	for _, img := range []*Image{old, current, unusedImg} {
		for _, l := range img.Layers {
			long := time.Now().Add(-24 * time.Hour)
			if err := os.Chtimes(l.dir, long, long); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := img.Template(t.Context(), "k", func(_ context.Context, dir string) error {
			return os.WriteFile(filepath.Join(dir, "ram"), []byte("ram"), 0o644)
		}); err != nil {
			t.Fatal(err)
		}
		ended(img)
	}
	stale := filepath.Join(s.dir, "debs", "linux-image-old.deb")
	if err := os.MkdirAll(filepath.Dir(stale), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stale, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	release, err := unusedImg.Hold()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := GC(t.Context(), s.dir, Limits{Unused: time.Minute}); err != nil {
		t.Fatal(err)
	}
	list, err := List(s.dir)
	if err != nil || len(list) != 2 {
		t.Fatalf("after the first collection: %+v %v", list, err)
	}
	release()
	if _, err := GC(t.Context(), s.dir, Limits{Unused: time.Minute}); err != nil {
		t.Fatal(err)
	}
	list, err = List(s.dir)
	if err != nil || len(list) != 1 || list[0].ID != current.ID {
		t.Fatalf("after the second collection: %+v %v", list, err)
	}
	if err := current.Verify(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, filepath.Join(s.dir, "layers")); len(got) != 4 {
		t.Errorf("layers: %v", got)
	}
	if _, err := os.Stat(stale); err == nil {
		t.Error("a kernel package that belongs to no image is kept")
	}
	if got := names(t, filepath.Join(s.dir, "templates")); len(got) != 1 {
		t.Errorf("templates: %v", got)
	}
	if got := names(t, filepath.Join(s.dir, "refs")); len(got) != 4 {
		t.Errorf("refs: %v", got)
	}
}

// ended is as if the process that used an image's templates had ended.
func ended(i *Image) {
	for _, f := range i.templates.held {
		f.Close()
	}
	i.templates.held = nil
}

// TestGCOfTemplates: a template goes when nobody has used it for long, or when
// there is no room; never one that a process still uses, since it would restore
// machines from nothing.
func TestGCOfTemplates(t *testing.T) {
	s := newTestStore(t)
	img := fakeImage(t, s, Debian12, "one")
	past := time.Now().Add(-3 * time.Hour)
	for _, l := range img.Layers {
		if err := os.Chtimes(l.dir, past, past); err != nil {
			t.Fatal(err)
		}
	}
	template := func(key string, used time.Time) string {
		t.Helper()
		dir, err := img.Template(t.Context(), key, func(_ context.Context, dir string) error {
			return os.WriteFile(filepath.Join(dir, "ram"), bytes.Repeat([]byte("ram"), 1<<20), 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(dir, manifestName), used, used); err != nil {
			t.Fatal(err)
		}
		return filepath.Base(dir)
	}
	left := func(want ...string) {
		t.Helper()
		slices.Sort(want)
		if got := names(t, filepath.Join(s.dir, "templates")); !slices.Equal(got, want) {
			t.Fatalf("templates %v, want %v", got, want)
		}
	}
	gc := func(l Limits, want int) []Removed {
		t.Helper()
		removed, err := GC(t.Context(), s.dir, l)
		if err != nil || len(removed) != want {
			t.Fatalf("removed %+v, %v", removed, err)
		}
		return removed
	}
	old, held := template("old", past), template("held", past)
	gc(Limits{Unused: time.Hour}, 0) // both are in use
	ended(img)
	fresh := template("fresh", time.Now())
	template("held", past) // used again, and its time set back
	left(old, held, fresh)
	if r := gc(Limits{Unused: time.Hour, DryRun: true}, 1); r[0].Name != old || r[0].Bytes < 3<<20 || r[0].Kind != "template" {
		t.Fatalf("a dry run says %+v", r)
	}
	left(old, held, fresh)
	gc(Limits{Unused: time.Hour}, 1)
	left(held, fresh)
	ended(img)
	gc(Limits{Bytes: treeSize(s.dir) - 1}, 1) // the one that was used longest ago makes room
	left(fresh)
	gc(Limits{Bytes: 1}, 0) // young, and the image that jobs get: both stay
	left(fresh)
	if list, err := List(s.dir); err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
}

// rewritten returns a manifest that says it was created a day earlier.
func rewritten(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	year := time.Now().UTC().Format("2006")
	return []byte(strings.Replace(string(data), `"created": "`+year, `"created": "2001`, 1))
}

func TestTemplate(t *testing.T) {
	s := newTestStore(t)
	img := fakeImage(t, s, "x", "base")
	made := 0
	create := func(_ context.Context, dir string) error {
		made++
		return os.WriteFile(filepath.Join(dir, "ram"), []byte("contents"), 0o600)
	}
	dir, err := img.Template(t.Context(), "qemu 7.2 512", create)
	if err != nil {
		t.Fatal(err)
	}
	again, err := img.Template(t.Context(), "qemu 7.2 512", create)
	if err != nil || again != dir || made != 1 {
		t.Fatalf("%s %s made %d: %v", dir, again, made, err)
	}
	if other, err := img.Template(t.Context(), "qemu 7.2 1024", create); err != nil || other == dir || made != 2 {
		t.Fatalf("%s made %d: %v", other, made, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ram"), []byte("touched!"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := img.Template(t.Context(), "qemu 7.2 512", create); err != nil || made != 3 {
		t.Fatalf("a touched template was used again (made %d): %v", made, err)
	}
	boom := errors.New("did not boot")
	if _, err := img.Template(t.Context(), "broken", func(context.Context, string) error { return boom }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if got := names(t, filepath.Join(s.dir, "tmp")); len(got) != 0 {
		t.Fatalf("tmp holds %v", got)
	}
	if err := img.DropTemplate("qemu 7.2 512"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestScratchAndCopySparse(t *testing.T) {
	if _, err := lookTool("mkfs.ext4"); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: %v", err)
	}
	dir := t.TempDir()
	const size = 8 << 30
	path, err := Scratch(t.Context(), dir, size)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Scratch(t.Context(), dir, size); err != nil || again != path {
		t.Fatalf("%s %v", again, err)
	}
	dst := filepath.Join(dir, "copy.img")
	if err := vm.CopySparse(t.Context(), dst, path); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, dst} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		real := info.Sys().(*syscall.Stat_t).Blocks * 512
		if info.Size() != size || real > 64<<20 {
			t.Errorf("%s: %d bytes, %d of them real", p, info.Size(), real)
		}
	}
	a, b := head(t, path, 16<<20), head(t, dst, 16<<20)
	if a != b || !strings.Contains(a, "scratch") {
		t.Error("the copy differs")
	}
	if err := vm.CopySparse(t.Context(), dst, path); err == nil {
		t.Error("CopySparse overwrote a file")
	}
	if _, err := Scratch(t.Context(), dir, 1<<20); err == nil {
		t.Error("a scratch disk of 1 MiB")
	}
}

func head(t *testing.T, path string, n int64) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, 0); err != nil {
		t.Fatal(err)
	}
	return string(buf)
}
