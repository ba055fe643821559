package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Walls are what /proc says, from outside, about what stands around a process.
type Walls struct {
	UID        int             // on this host
	NewUser    bool            // it has another user namespace than we
	Caps       uint64          // permitted, effective, inheritable and ambient together
	Bounding   uint64          // those that it could gain if it could gain any
	NoNewPrivs bool            //
	Seccomp    int             // filters that it is under; 0 is none
	Namespaces map[string]bool // of mnt, pid, net, ipc, uts, cgroup: another than ours
	OwnRoot    bool            // its / is not ours
	Mounts     []string        // what is mounted there: "path options"
	Writable   []string        // those of them that are not read-only
	Env        []string        // its environment
	Files      []string        // what its open files are
	CGroup     string          // its path in cgroup v2; "" is ours
	Limits     map[string]string
}

// Inspect reads what stands around process pid.
func Inspect(pid int) (Walls, error) {
	w := Walls{Namespaces: map[string]bool{}, Limits: map[string]string{}}
	dir := "/proc/" + strconv.Itoa(pid)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return w, err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		f := strings.Fields(value)
		if len(f) == 0 {
			continue
		}
		switch key {
		case "Uid":
			// Real, effective, saved, of the file system: none may be another.
			w.UID, err = strconv.Atoi(f[0])
			if err == nil && slices.ContainsFunc(f, func(s string) bool { return s != f[0] }) {
				err = fmt.Errorf("its users differ: %v", f)
			}
		case "CapBnd":
			w.Bounding, err = strconv.ParseUint(f[0], 16, 64)
		case "CapInh", "CapPrm", "CapEff", "CapAmb":
			var n uint64
			n, err = strconv.ParseUint(f[0], 16, 64)
			w.Caps |= n
		case "NoNewPrivs":
			w.NoNewPrivs = f[0] == "1"
		case "Seccomp":
			if f[0] != "2" {
				w.Seccomp = 0
			} else if w.Seccomp == 0 {
				w.Seccomp = 1 // a kernel before 5.9 does not count
			}
		case "Seccomp_filters":
			w.Seccomp, err = strconv.Atoi(f[0])
		}
		if err != nil {
			return w, fmt.Errorf("process %d: %s: %w", pid, key, err)
		}
	}
	for _, ns := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		theirs, err := os.Readlink(dir + "/ns/" + ns)
		if err != nil {
			return w, err
		}
		ours, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			return w, err
		}
		if ns == "user" {
			w.NewUser = theirs != ours
		} else {
			w.Namespaces[ns] = theirs != ours
		}
	}
	root, err := os.Stat(dir + "/root/")
	if err != nil {
		return w, err
	}
	host, err := os.Stat("/")
	if err != nil {
		return w, err
	}
	w.OwnRoot = !os.SameFile(root, host)
	mounts, err := os.ReadFile(dir + "/mountinfo")
	if err != nil {
		return w, err
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 6 {
			continue
		}
		w.Mounts = append(w.Mounts, f[4]+" "+f[5])
		if !slices.Contains(strings.Split(f[5], ","), "ro") {
			w.Writable = append(w.Writable, f[4])
		}
	}
	env, err := os.ReadFile(dir + "/environ")
	if err != nil {
		return w, err
	}
	w.Env = strings.FieldsFunc(string(env), func(r rune) bool { return r == 0 })
	files, err := filepath.Glob(dir + "/fd/*")
	if err != nil {
		return w, err
	}
	for _, f := range files {
		if to, err := os.Readlink(f); err == nil {
			w.Files = append(w.Files, to)
		}
	}
	limits, err := os.ReadFile(dir + "/limits")
	if err != nil {
		return w, err
	}
	for line := range strings.Lines(string(limits)) {
		if len(line) > 26 {
			w.Limits[strings.TrimSpace(line[:26])] = strings.Join(strings.Fields(line[26:]), " ")
		}
	}
	w.CGroup, err = cgroupOf(dir)
	if ours, err := cgroupOf("/proc/self"); err == nil && ours == w.CGroup {
		w.CGroup = ""
	}
	return w, err
}

func cgroupOf(dir string) (string, error) {
	b, err := os.ReadFile(dir + "/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return p, nil
		}
	}
	return "", nil
}

// Limit reads a file of its cgroup, as "memory.max"; "" if it cannot be read.
func (w Walls) Limit(file string) string {
	mount, err := cgroupMount()
	if err != nil || w.CGroup == "" {
		return ""
	}
	b, err := os.ReadFile(filepath.Join(mount, w.CGroup, file))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Check says which walls are missing, as seen by the process that owns the jail.
func (w Walls) Check() error {
	var errs []error
	want := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, a...))
		}
	}
	want(w.NewUser || w.UID != os.Geteuid(), "it runs as the user that started it, %d, in the same user namespace", w.UID)
	want(w.UID != 0, "it runs as root")
	want(w.Caps == 0, "it has capabilities: %#x", w.Caps)
	want(w.NoNewPrivs, "it may gain privileges")
	want(w.Seccomp > 0, "no seccomp filter")
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		want(w.Namespaces[ns], "it shares our %s namespace", ns)
	}
	want(w.OwnRoot, "its root directory is ours")
	want(len(w.Env) == 0, "its environment is not empty: %q", w.Env)
	want(strings.HasPrefix(w.Limits["Max core file size"], "0 0"), "it may dump core")
	return errors.Join(errs...)
}
