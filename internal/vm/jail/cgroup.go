package jail

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A jail's cgroup is <parent>/hearth-<pid of the owner>-<number>-<name>. The parent is our
// own cgroup where that has been handed to us (systemd's Delegate=), and /hearth
// of the hierarchy otherwise, which takes root. Controllers can be on for the
// children of a cgroup only while it holds no process itself, so that in our own
// we first move to a child, "main".

// What a machine's share of the disk is: half of what an ordinary service has
// when they compete, and never so much that others starve.
const (
	ioWeight = 50
	ioBytes  = 1 << 30 // a second, read and written each
	ioOps    = 50_000
)

// overheadMiB is what a monitor needs beside the memory of its machine: QEMU's
// emulation translates into a buffer of up to a gigabyte.
const overheadMiB = 1280

type cgroup struct{ path string }

var groups struct {
	sync.Mutex
	parent string
	err    error
	done   bool
	count  atomic.Int64
}

// cgroupParent returns the directory that jails' cgroups are made in.
func cgroupParent() (string, error) {
	groups.Lock()
	defer groups.Unlock()
	if !groups.done {
		groups.parent, groups.err = findParent()
		groups.done = true
		if groups.err == nil {
			sweepCgroups(groups.parent)
		}
	}
	return groups.parent, groups.err
}

func findParent() (string, error) {
	mount, err := cgroupMount()
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	own := ""
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			own = p
		}
	}
	if all, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers")); err != nil {
		return "", err
	} else if !strings.Contains(string(all), "memory") {
		return "", errors.New("this host's cgroup v2 has no memory controller (version 1 holds it): boot with systemd.unified_cgroup_hierarchy=1")
	}
	dir := filepath.Join(mount, own)
	var deleg [8]byte
	_, xerr := unix.Getxattr(dir, "user.delegate", deleg[:])
	if _, terr := unix.Getxattr(dir, "trusted.delegate", deleg[:]); terr == nil {
		xerr = nil
	}
	if own != "/" && own != "" && (xerr == nil || os.Geteuid() != 0) && unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK) == nil &&
		unix.Access(dir, unix.W_OK) == nil {
		main := filepath.Join(dir, "main")
		if err := os.Mkdir(main, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return "", err
		}
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return "", err
		}
		for pid := range strings.FieldsSeq(string(procs)) {
			if err := os.WriteFile(filepath.Join(main, "cgroup.procs"), []byte(pid), 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return "", err
			}
		}
		return dir, enable(dir)
	}
	if os.Geteuid() != 0 {
		return "", errors.New("no cgroup has been handed to this process: start it by `systemd-run --user --scope -p Delegate=yes`, or as the service of packaging/systemd")
	}
	if err := enable(mount); err != nil {
		return "", err
	}
	dir = filepath.Join(mount, "hearth")
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, enable(dir)
}

// cgroupMount finds the hierarchy of version 2.
func cgroupMount() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		before, after, ok := strings.Cut(s.Text(), " - ")
		if f := strings.Fields(before); ok && strings.HasPrefix(after, "cgroup2 ") && len(f) > 4 {
			return f[4], nil
		}
	}
	return "", errors.New("this host has no cgroup v2")
}

// enable has the children of dir be limited in all that is there to limit.
func enable(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	there := strings.Fields(string(b))
	var errs []error
	for _, c := range []string{"memory", "pids", "cpu", "io"} {
		for _, t := range there {
			if t == c {
				if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil && c == "memory" {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// sweepCgroups removes what dead processes left.
func sweepCgroups(parent string) {
	entries, _ := os.ReadDir(parent)
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), "hearth-")
		owner, _, _ := strings.Cut(rest, "-")
		if _, err := os.Stat("/proc/" + owner); ok && errors.Is(err, os.ErrNotExist) {
			unix.Rmdir(filepath.Join(parent, e.Name()))
		}
	}
}

// newCgroup makes the cgroup of a jail. near is a directory on the disk that the
// machine writes to.
func newCgroup(name string, l Limits, near string) (*cgroup, error) {
	parent, err := cgroupParent()
	if err != nil {
		return nil, err
	}
	g := &cgroup{path: filepath.Join(parent, fmt.Sprintf("hearth-%d-%d-%s", os.Getpid(), groups.count.Add(1), name))}
	if err := os.Mkdir(g.path, 0o755); err != nil {
		return nil, err
	}
	tasks := l.Tasks
	if tasks == 0 {
		tasks = 256
	}
	set := map[string]string{"pids.max": strconv.Itoa(tasks), "io.weight": fmt.Sprintf("default %d", ioWeight), "memory.oom.group": "1"}
	if l.MemoryMiB > 0 {
		set["memory.max"] = strconv.FormatInt(int64(l.MemoryMiB+overheadMiB)<<20, 10)
	}
	if l.CPUs > 0 {
		// One more than the guest's, for the monitor's own threads.
		set["cpu.max"] = fmt.Sprintf("%d 100000", (l.CPUs+1)*100000)
	}
	if d := disk(near); d != "" {
		set["io.max"] = fmt.Sprintf("%s rbps=%d wbps=%d riops=%d wiops=%d", d, ioBytes, ioBytes, ioOps, ioOps)
	}
	for file, value := range set {
		err := os.WriteFile(filepath.Join(g.path, file), []byte(value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && file != "io.max" && file != "io.weight" {
			g.remove()
			return nil, fmt.Errorf("cgroup: %w", err)
		}
	}
	return g, nil
}

// disk names the block device that dir is on, as io.max wants it; "" if it is on
// none.
func disk(dir string) string {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil || unix.Major(st.Dev) == 0 {
		return ""
	}
	dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	// Of a partition, the whole disk.
	sys, err := filepath.EvalSymlinks("/sys/dev/block/" + dev)
	if err != nil {
		return ""
	}
	if _, err := os.Stat(filepath.Join(sys, "partition")); err == nil {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(sys), "dev"))
		if err != nil {
			return ""
		}
		dev = strings.TrimSpace(string(b))
	}
	return dev
}

// enter moves a process into it. (Not by clone, which systemd's RestrictNamespaces
// allows only in its older form, without a cgroup.)
func (g *cgroup) enter(pid int) error {
	if g == nil {
		return nil
	}
	return os.WriteFile(filepath.Join(g.path, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// remove removes it once its last process is gone, which the kernel may notice a
// moment after we do.
func (g *cgroup) remove() {
	if g == nil {
		return
	}
	for range 50 {
		if err := unix.Rmdir(g.path); !errors.Is(err, unix.EBUSY) {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}
