package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/image"
)

// What this machine lacks or has broken. Each is said, with what to do, is exit
// code 3, and leaves nothing half-made.

// without returns a PATH with everything but the named programs.
func without(t *testing.T, programs ...string) string {
	t.Helper()
	bin := t.TempDir()
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if slices.Contains(programs, e.Name()) {
				continue
			}
			// The first one of a name counts, as in a PATH.
			if err := os.Symlink(filepath.Join(dir, e.Name()), filepath.Join(bin, e.Name())); err != nil && !errors.Is(err, os.ErrExist) {
				t.Fatal(err)
			}
		}
	}
	return bin
}

// ownCache gives a place a cache of its own: empty, but for what is named.
func (p *place) ownCache() string {
	p.t.Helper()
	dir := filepath.Join(p.home, "cache")
	if err := os.Remove(dir); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	return dir
}

// run runs to the end, with variables of the environment changed.
func (p *place) run(env []string, args ...string) (stdout, stderr string, code int) {
	p.t.Helper()
	cmd := p.command(args...)
	cmd.Env = append(cmd.Env, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	timer := time.AfterFunc(3*time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	cmd.Wait()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestMissingPrograms(t *testing.T) {
	t.Parallel()
	p := newPlace(t, quick)
	p.ownCache()
	for _, c := range []struct{ program, advice string }{
		{"qemu-system-x86_64", "apt-get install qemu-system-x86"},
		{"mmdebstrap", "apt-get install mmdebstrap"},
		{"mkfs.erofs", "apt-get install erofs-utils"},
	} {
		if c.program == "mkfs.erofs" && exists("/usr/sbin/mkfs.erofs") {
			continue // found there whatever PATH says
		}
		env := []string{"PATH=" + without(t, c.program)}
		_, stderr, code := p.run(env, "run")
		if code != exitInfrastructure || !strings.Contains(stderr, c.advice) {
			t.Errorf("without %s: exit code %d, want %d and %q:\n%s", c.program, code, exitInfrastructure, c.advice, stderr)
		}
		stdout, _, code := p.run(env, "run", "--json")
		rs, problems := checkRecords([]byte(stdout))
		if code != exitInfrastructure || len(problems) > 0 || len(rs) == 0 || !strings.Contains(rs[len(rs)-1].Message, c.advice) {
			t.Errorf("without %s, --json: exit code %d, %v\n%s", c.program, code, problems, stdout)
		}
		for _, r := range rs {
			if r.Type == ci.RunFinished || r.Conclusion != "" {
				t.Errorf("without %s: %+v", c.program, r)
			}
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestDamagedImage: bytes of a cached image change on disk. The damage is said
// and mended, and the job runs in what was mended.
func TestDamagedImage(t *testing.T) {
	t.Parallel()
	p := newPlace(t, quick)
	shared := filepath.Join(p.home, "cache", "images")
	// Build it where it is shared, copy what belongs to it, and damage the copy.
	img, err := image.Build(t.Context(), image.Options{Dir: shared, Agent: os.Getenv("HEARTH_GUEST")})
	if err != nil {
		t.Fatal(err)
	}
	cache, err := filepath.EvalSymlinks(filepath.Join(p.home, "cache"))
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(p.ownCache(), "images")
	copyFiles := func(sub string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(own, filepath.Dir(sub)), 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), "cp", "-a", filepath.Join(cache, "images", sub), filepath.Join(own, sub)).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	copyFiles("refs")
	copyFiles(img.ID)
	for _, f := range []string{img.Kernel, img.Initrd, img.Base, img.Tools, img.Modules, img.Engine} {
		if f == "" {
			continue // an image without an engine
		}
		layer := filepath.Join("layers", filepath.Base(filepath.Dir(f)))
		if !exists(filepath.Join(own, layer)) {
			copyFiles(layer)
		}
	}
	initrd := filepath.Join(own, "layers", filepath.Base(filepath.Dir(img.Initrd)), filepath.Base(img.Initrd))
	if err := os.Chmod(initrd, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(initrd, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damaged"), 100_000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	stdout, stderr, code := p.run(nil, "run", "--plain")
	if code != 0 || !strings.Contains(stderr, "damaged") || !strings.Contains(stderr, "initrd") {
		t.Errorf("exit code %d, and nothing of the damage:\n%s\n%s", code, stderr, stdout)
	}
	if !strings.Contains(stdout, "quick") {
		t.Errorf("the job did not run:\n%s", stdout)
	}
	if _, stderr, code := p.run(nil, "run", "--plain"); code != 0 || strings.Contains(stderr, "damaged") {
		t.Errorf("it was not mended: exit code %d\n%s", code, stderr)
	}
}

// TestDiskFull: the file system of the cache is too small for the image.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: mounting a small file system takes root")
	}
	t.Parallel()
	p := newPlace(t, quick)
	shared, err := filepath.EvalSymlinks(filepath.Join(p.home, "cache"))
	if err != nil {
		t.Fatal(err)
	}
	own := p.ownCache()
	if err := syscall.Mount("tmpfs", own, "tmpfs", 0, "size=48m"); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: no small file system can be mounted here: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(own, syscall.MNT_DETACH) })
	// Packages that are there already need not be fetched again.
	debs := filepath.Join(own, "images", "debs")
	if err := os.MkdirAll(debs, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	exec.CommandContext(ctx, "cp", "-a", filepath.Join(shared, "images", "debs")+"/.", debs).Run()
	stdout, stderr, code := p.run(nil, "run", "--json")
	if code != exitInfrastructure || !strings.Contains(stderr, "disk full") {
		t.Errorf("exit code %d, want %d and that the disk is full:\n%s", code, exitInfrastructure, stderr)
	}
	if _, problems := checkRecords([]byte(stdout)); len(problems) > 0 {
		t.Errorf("records: %v", problems)
	}
	for _, dir := range []string{"tmp", "layers", "refs"} {
		if left, _ := filepath.Glob(filepath.Join(own, "images", dir, "*")); len(left) > 0 {
			for _, l := range left {
				if dir == "tmp" || !exists(filepath.Join(l, "manifest.json")) && dir == "layers" {
					t.Errorf("half-made: %s", l)
				}
			}
		}
	}
}

// TestInterruptedBuild: an image build is stopped, in order and not. Nothing of
// it goes on or stays: what was half-made is gone, at the latest with the next
// build.
func TestInterruptedBuild(t *testing.T) {
	t.Parallel()
	p := newPlace(t, quick)
	images := filepath.Join(p.ownCache(), "images")
	halfMade := func() []string {
		found, _ := filepath.Glob(filepath.Join(images, "tmp", "*"))
		return found
	}
	for _, c := range []struct {
		signal os.Signal
		code   int
	}{{syscall.SIGKILL, -1}, {syscall.SIGTERM, exitCancelled}} {
		x := p.start("run", "--json")
		waitFor(t, "a program that builds", func() bool { return len(processesOf(images)) > 0 && len(halfMade()) > 0 })
		x.signal(c.signal)
		if code := x.wait(); code != c.code {
			t.Errorf("%v: exit code %d, want %d: %s", c.signal, code, c.code, x.stderr.String())
		}
		waitFor(t, c.signal.String()+": the end of what builds", func() bool { return len(processesOf(images)) == 0 })
		if left := halfMade(); c.signal == syscall.SIGTERM && len(left) > 0 {
			t.Errorf("%v: half-made: %v", c.signal, left)
		}
	}
	for _, dir := range []string{"layers", "refs"} {
		if left, _ := filepath.Glob(filepath.Join(images, dir, "*")); len(left) > 0 {
			t.Errorf("a build that was stopped left %v", left)
		}
	}
}
