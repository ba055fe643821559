package firecracker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image/imagetest"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/firecracker"
	"github.com/hearth-ci/hearth/internal/vm/firecracker/nested"
)

// twoJobs uses the agent, the network (checkout is served over it), outputs
// and a job that needs another.
const twoJobs = `name: two
on: push
jobs:
  build:
    runs-on: ubuntu-latest
    outputs:
      word: ${{ steps.make.outputs.word }}
    steps:
      - uses: actions/checkout@v4
      - id: make
        run: |
          echo "word=$(cat word.txt)" >> "$GITHUB_OUTPUT"
          echo "built on $(uname -n)"
  check:
    needs: build
    runs-on: ubuntu-latest
    steps:
      - run: |
          echo "got ${{ needs.build.outputs.word }}"
          test "${{ needs.build.outputs.word }}" = firecracker
`

// TestFirecrackerWorkflow is `hearth run --driver firecracker` with two jobs,
// where KVM works here, and otherwise in a nested machine.
func TestFirecrackerWorkflow(t *testing.T) {
	if os.Getenv(kitVariable) != "" {
		return
	}
	d := firecracker.New(firecracker.Config{CacheDir: cacheDir(t)})
	binary, err := d.Binary(t.Context())
	if errors.Is(err, firecracker.ErrNotInstalled) {
		t.Skipf("SKIPPED, NOT PASSED: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	agent := imagetest.Agent(t)
	img := imagetest.Build(t, agent)
	hearth := imagetest.Program(t, "github.com/hearth-ci/hearth/cmd/hearth")
	home := t.TempDir()
	repository := filepath.Join(home, "repository")
	for name, text := range map[string]string{".github/workflows/two.yml": twoJobs, "word.txt": "firecracker\n"} {
		path := filepath.Join(repository, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	argv := []string{"run", "--driver", "firecracker", "--json", "--memory", "384", "--cpus", "1"}
	v, err := d.Verdict(t.Context(), img.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(v)
	var out bytes.Buffer
	if v.KVM {
		if err := os.MkdirAll(filepath.Join(home, "cache"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(imagetest.Dir(t), filepath.Join(home, "cache", "images")); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), hearth, append(argv, "-C", repository)...)
		cmd.Env = append(os.Environ(), "HEARTH_HOME="+home, "HEARTH_GUEST="+agent, "HEARTH_FIRECRACKER="+binary)
		cmd.Stdout, cmd.Stderr = &out, os.Stderr
		if err := cmd.Run(); err != nil {
			t.Errorf("hearth run: %v", err)
		}
	} else {
		runNested(t, func() string {
			return imageDisk(t, img.ID, img.Kernel, img.Initrd, img.Base, img.Tools, img.Modules, img.Engine)
		}, nested.Config{Image: img, Root: true, CacheDir: cacheDir(t), Files: map[string]string{
			"/usr/bin/firecracker": binary, "/usr/bin/hearth": hearth, "/usr/bin/hearth-guest": agent,
			"/repository/.github/workflows/two.yml": filepath.Join(repository, ".github/workflows/two.yml"),
			"/repository/word.txt":                  filepath.Join(repository, "word.txt"),
		}}, argv, &out)
	}
	// Both jobs, each with its own success.
	ended := map[string]string{}
	for line := range strings.Lines(out.String()) {
		var r struct {
			Type, Job, Conclusion string
		}
		if json.Unmarshal([]byte(line), &r) == nil && r.Conclusion != "" && r.Job != "" {
			ended[r.Job+" "+r.Type] = r.Conclusion
		}
	}
	for _, job := range []string{"build", "check"} {
		if got := ended[job+" job.finished"]; got != "success" {
			t.Errorf("job %s ended with %q", job, got)
		}
	}
	if !strings.Contains(out.String(), "got firecracker") {
		t.Error("the second job did not get what the first one made")
	}
}

// imageDisk returns an ext4 file system with an image in it, as in Hearth's cache.
func imageDisk(t *testing.T, id string, files ...string) string {
	t.Helper()
	stage, out := t.TempDir(), filepath.Join(t.TempDir(), "images.ext4")
	from := imagetest.Dir(t)
	// One after the other, only what belongs to the image; hard links cost nothing.
	dirs := []string{id, "refs", "debs"}
	for _, f := range files {
		if f == "" {
			continue // an image without an engine
		}
		dir, err := filepath.Rel(from, filepath.Dir(f))
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		to := filepath.Join(stage, dir)
		if err := os.MkdirAll(to, 0o755); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(filepath.Join(from, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if dir == "debs" || e.IsDir() {
				continue
			}
			old, name := filepath.Join(from, dir, e.Name()), filepath.Join(to, e.Name())
			if os.Link(old, name) != nil {
				if err := vm.CopySparse(t.Context(), name, old); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	cmd := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-m", "0", "-d", stage, out, "4G")
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, msg)
	}
	return out
}

// runNested runs hearth in a nested machine whose cache is on a disk, and in another
// one if that is lost (see inside).
func runNested(t *testing.T, disk func() string, cfg nested.Config, argv []string, out *bytes.Buffer) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("SKIPPED, NOT PASSED: KVM does not work here, and qemu-system-x86_64, which would emulate it, is not installed: apt-get install qemu-system-x86")
	}
	for lost := 1; ; lost++ {
		cfg.Disks = []vm.Disk{{ID: "images", Path: disk()}} // a lost machine leaves its own half written
		out.Reset()
		err := runNestedOnce(t, cfg, argv, out)
		if err == nil {
			return
		}
		mayBeLost(t, lost, err, "THE WORKFLOW")
	}
}

// errNoKVM says that the emulated processor's virtualisation did not take a guest as
// far as its kernel, which happens to one machine in some dozens.
var errNoKVM = errors.New("KVM does not work in the nested machine")

// saysNoKVM is in what is printed then.
const saysNoKVM = "firecracker needs KVM, which this host does not offer"

// runNestedOnce returns why the nested machine could not be used to the end.
func runNestedOnce(t *testing.T, cfg nested.Config, argv []string, out *bytes.Buffer) error {
	m, err := nested.Start(t.Context(), cfg)
	if err != nil {
		return err
	}
	defer func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	t.Logf("nested machine: agent after %v", m.Boot.Round(10*time.Millisecond))
	run := func(stdout io.Writer, argv ...string) error {
		began := time.Now()
		var errs bytes.Buffer
		x, err := m.Exec(t.Context(), guest.Cmd{Argv: argv, Dir: "/repository", User: "root", Stdout: stdout, Stderr: &errs,
			Env: []string{"HEARTH_HOME=/hearth", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}})
		for line := range strings.Lines(errs.String()) {
			t.Log("| " + strings.TrimRight(line, "\n"))
		}
		if err != nil {
			return err
		}
		if x.Code == 3 && strings.Contains(errs.String(), saysNoKVM) {
			return errNoKVM
		}
		if !x.OK() {
			return fmt.Errorf("%s: %v", argv[0], x)
		}
		t.Logf("FIGURE %s: %v", argv[0], time.Since(began).Round(time.Millisecond))
		return nil
	}
	// Templates and the like go there as well: what Firecracker writes to a file
	// is not also an overlay's.
	if err := run(io.Discard, "/bin/sh", "-ec", `mkdir -p /hearth/cache/images
		for d in /sys/block/vd*; do [ "$(cat $d/serial)" = images ] && mount -o noatime "/dev/${d##*/}" /hearth/cache/images; done
		mountpoint -q /hearth/cache/images`); err != nil {
		return err
	}
	return run(out, append([]string{"/usr/bin/hearth"}, argv...)...)
}
