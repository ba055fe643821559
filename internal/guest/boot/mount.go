package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
)

// mountPoint is a file system to mount.
type mountPoint struct {
	source, target, kind string
	flags                uintptr
	data                 string
	needed               bool
}

const nosuidnodev = syscall.MS_NOSUID | syscall.MS_NODEV

// kernelMounts are the same in every machine.
var kernelMounts = []mountPoint{
	{"proc", "/proc", "proc", nosuidnodev | syscall.MS_NOEXEC, "", true},
	{"sysfs", "/sys", "sysfs", nosuidnodev | syscall.MS_NOEXEC, "", true},
	{"devtmpfs", "/dev", "devtmpfs", syscall.MS_NOSUID, "mode=0755", true},
	{"devpts", "/dev/pts", "devpts", syscall.MS_NOSUID | syscall.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666", false},
	{"tmpfs", "/dev/shm", "tmpfs", nosuidnodev, "mode=1777", false},
	{"tmpfs", "/run", "tmpfs", nosuidnodev, "mode=0755", false},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", nosuidnodev | syscall.MS_NOEXEC, "", false},
}

// devLinks are what programs expect in /dev and devtmpfs does not make.
var devLinks = [][2]string{
	{"/proc/self/fd", "/dev/fd"},
	{"/proc/self/fd/0", "/dev/stdin"},
	{"/proc/self/fd/1", "/dev/stdout"},
	{"/proc/self/fd/2", "/dev/stderr"},
}

func (p mountPoint) mount() error {
	if err := os.MkdirAll(p.target, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount(p.source, p.target, p.kind, p.flags, p.data); err != nil {
		return fmt.Errorf("mounting %s (%s) on %s: %w", p.source, p.kind, p.target, err)
	}
	return nil
}

func (m *machine) mountKernel() error {
	for _, p := range kernelMounts {
		if err := p.mount(); err != nil && !errors.Is(err, syscall.EBUSY) { // EBUSY: the kernel mounted it (devtmpfs)
			if p.needed {
				return err
			}
			m.logf("%v", err)
		}
	}
	for _, l := range devLinks {
		if err := os.Symlink(l[0], l[1]); err != nil && !errors.Is(err, os.ErrExist) {
			m.logf("%v", err)
		}
	}
	return nil
}

// The places of the new root while it is put together, in the initramfs.
const (
	baseDir    = "/mnt/base"
	scratchDir = "/mnt/scratch"
	newRoot    = "/mnt/root"
	// Below the base in the root, so that what is in it can be written to.
	toolCacheDir = "/mnt/toolcache"
)

// buildRoot puts the root together from disks and moves into it.
func (m *machine) buildRoot() error {
	base := m.args["hearth.base"]
	if base == "" {
		return makeTmp()
	}
	if err := mountByID(base, baseDir); err != nil {
		return err
	}
	if err := m.mountScratch(); err != nil {
		return err
	}
	for _, d := range []string{scratchDir + "/upper", scratchDir + "/work"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	lower := baseDir
	engine := m.args["hearth.engine"]
	if engine != "" {
		if err := mountByID(engine, engineDir); err != nil {
			return err
		}
		lower += ":" + engineDir
	}
	if id := m.args["hearth.toolcache"]; id != "" {
		if err := mountByID(id, toolCacheDir); err != nil {
			return err
		}
		lower += ":" + toolCacheDir
	}
	overlay := mountPoint{"overlay", newRoot, "overlay", syscall.MS_NOATIME,
		"lowerdir=" + lower + ",upperdir=" + scratchDir + "/upper,workdir=" + scratchDir + "/work", true}
	if err := overlay.mount(); err != nil {
		return err
	}
	for arg, dir := range map[string]string{"hearth.tools": guest.Tools, "hearth.modules": "/usr/lib/modules"} {
		if id := m.args[arg]; id != "" {
			if err := mountByID(id, newRoot+dir); err != nil {
				return err
			}
		}
	}
	if engine != "" {
		if err := bindEngine(); err != nil {
			return err
		}
	}
	m.disks = true
	return m.switchRoot()
}

// mountByID mounts a read-only disk by its name or serial number.
func mountByID(id, target string) error {
	dev, err := findDisk(id, 10*time.Second)
	if err != nil {
		return err
	}
	return mountDisk(dev, target, true)
}

// mountScratch mounts the scratch disk, or a tmpfs if there is none that can be used.
func (m *machine) mountScratch() error {
	if id := m.args["hearth.scratch"]; id != "" {
		dev, err := findDisk(id, 10*time.Second)
		if err == nil {
			err = mountDisk(dev, scratchDir, false)
		}
		if err == nil {
			return nil
		}
		m.logf("scratch disk: %v; what is written goes to memory", err)
	}
	return mountPoint{"tmpfs", scratchDir, "tmpfs", 0, "mode=0755,size=80%", true}.mount()
}

// switchRoot makes newRoot the root of this process and so of all that follow, takes the
// kernel's file systems along and empties the initramfs, which is memory.
func (m *machine) switchRoot() error {
	old, err := os.OpenRoot("/")
	if err != nil {
		return err
	}
	defer old.Close()
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := os.MkdirAll(newRoot+dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(dir, newRoot+dir, "", syscall.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", dir, err)
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := makeTmp(); err != nil {
		return err
	}
	for _, name := range []string{"init", "lib", "etc"} {
		if err := old.RemoveAll(name); err != nil {
			m.logf("emptying the initramfs: %v", err)
		}
	}
	return nil
}

// makeTmp makes the directory where anyone may write but not remove what is another's.
func makeTmp() error {
	if err := os.MkdirAll("/tmp", 0o777); err != nil {
		return err
	}
	return os.Chmod("/tmp", 0o777|os.ModeSticky)
}

// findDisk returns the device of the disk with a name or a serial number, and
// waits for it: a disk appears when its driver has probed it.
func findDisk(id string, patience time.Duration) (string, error) {
	id = strings.TrimPrefix(id, "/dev/")
	if id == "" || strings.Contains(id, "/") {
		return "", fmt.Errorf("%q is no disk's name", id)
	}
	var found string
	err := await(patience, func() (bool, error) {
		disks, err := os.ReadDir("/sys/block")
		if err != nil {
			return false, err
		}
		for _, d := range disks {
			serial, _ := os.ReadFile(filepath.Join("/sys/block", d.Name(), "serial"))
			if d.Name() == id || strings.TrimSpace(string(serial)) == id {
				found = "/dev/" + d.Name()
				_, err := os.Stat(found)
				return err == nil, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return "", fmt.Errorf("no disk %q: %w (is its driver among the modules?)", id, err)
	}
	return found, nil
}

// await calls done until it says so, with growing pauses; only a boot waits like this.
func await(patience time.Duration, done func() (bool, error)) error {
	deadline := time.Now().Add(patience)
	pause := time.Millisecond
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not there after %v", patience)
		}
		time.Sleep(pause)
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// mountDisk mounts a disk by what is on it.
func mountDisk(dev, target string, readOnly bool) error {
	kind, err := fileSystem(dev)
	if err != nil {
		return err
	}
	p := mountPoint{dev, target, kind, syscall.MS_NOATIME, "", true}
	if readOnly {
		p.flags |= syscall.MS_RDONLY
		if kind == "ext4" {
			p.data = "noload" // a journal could only be replayed by writing
		}
	} else if kind != "ext4" {
		return fmt.Errorf("%s holds %s, which cannot be written to", dev, kind)
	}
	return p.mount()
}

// fileSystem says which of the file systems we know is on a disk.
func fileSystem(dev string) (string, error) {
	f, err := os.Open(dev)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var b [4096]byte
	if _, err := io.ReadFull(f, b[:]); err != nil {
		return "", fmt.Errorf("reading %s: %w", dev, err)
	}
	if kind := identify(b[:]); kind != "" {
		return kind, nil
	}
	return "", fmt.Errorf("%s holds no file system that is known here", dev)
}

// identify tells a file system by the first 4096 bytes of its disk; "" is unknown.
func identify(b []byte) string {
	switch {
	case binary.LittleEndian.Uint32(b[1024:]) == 0xE0F5E1E2:
		return "erofs"
	case binary.LittleEndian.Uint16(b[1024+56:]) == 0xEF53:
		return "ext4"
	case bytes.HasPrefix(b, []byte("hsqs")):
		return "squashfs"
	}
	return ""
}
