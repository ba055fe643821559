package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
)

// The container engine is on a disk of its own (hearth.engine), which lies below the
// base in the root's overlay: what the base has comes first. Nothing of it runs until
// somebody connects to its socket, which the agent holds from the start. A job that
// does not ask for it has a disk more and a socket more, and that is all.
const (
	engineDir    = "/mnt/engine"
	engineSocket = "/run/docker.sock"
	engineGroup  = "docker"
	engineCgroup = "/sys/fs/cgroup/dockerd"
	engineLog    = "/var/log/docker.log"
)

// engineData are where the engine keeps images and containers. Its file system for
// containers cannot stand on the overlay that the root is, and what could is slow: so
// these are directories of the scratch disk.
var engineData = []string{"/var/lib/docker", "/var/lib/containerd"}

// engineModules are those that containers ask for by their device files, for which
// the kernel loads none by itself.
var engineModules = []string{"fuse", "tun", "loop"}

// bindEngine puts the engine's directories on the scratch disk, before the root is
// switched: from the inside there is no way to the disk any more.
func bindEngine() error {
	for _, dir := range engineData {
		own := scratchDir + "/data/" + filepath.Base(dir)
		for _, d := range []string{own, newRoot + dir} {
			if err := os.MkdirAll(d, 0o711); err != nil {
				return err
			}
		}
		if err := syscall.Mount(own, newRoot+dir, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("binding %s: %w", dir, err)
		}
	}
	return nil
}

// buildkit is the configuration of builders that run as containers: these do not ask
// the daemon for images, and would pass the gateway by.
const buildkit = `[registry."docker.io"]
  mirrors = ["10.0.2.2:5000"]
[registry."10.0.2.2:5000"]
  http = true
`

// offerEngine makes the engine's socket, which the runner user may connect to, and
// returns it. It must be called once the root is in place.
func (m *machine) offerEngine() (*os.File, error) {
	gid, err := joinGroup("/etc/group", engineGroup, "runner")
	if err != nil {
		return nil, fmt.Errorf("group %s: %w", engineGroup, err)
	}
	if err := configureBuildkit(); err != nil {
		m.logf("%v", err)
	}
	// Not by package net: the program that inherits it wants the plain socket, and
	// nothing here ever accepts.
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), engineSocket)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: engineSocket}), os.Chown(engineSocket, 0, gid), os.Chmod(engineSocket, 0o660),
		syscall.Listen(fd, 128)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// configureBuildkit writes the builders' configuration into the runner's home, where
// there is one.
func configureBuildkit() error {
	st, err := os.Stat(guest.Home)
	if err != nil {
		return nil // nobody's home
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	dir := guest.Home
	for _, name := range []string{".docker", "buildx"} {
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	file := filepath.Join(dir, "buildkitd.default.toml")
	if _, err := os.Stat(file); err == nil {
		return nil // the image has its own
	}
	return errors.Join(os.WriteFile(file, []byte(buildkit), 0o644), os.Chown(file, int(owner.Uid), int(owner.Gid)))
}

// joinGroup makes user a member of a group in an /etc/group file, which it makes the
// group in if it has none, and returns the group's id.
func joinGroup(file, group, user string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	used := map[int]bool{}
	gid := -1
	for i, line := range lines {
		f := strings.Split(line, ":")
		if len(f) != 4 {
			continue
		}
		n, err := strconv.Atoi(f[2])
		if err != nil {
			continue
		}
		used[n] = true
		if f[0] != group {
			continue
		}
		gid = n
		members := strings.FieldsFunc(f[3], func(r rune) bool { return r == ',' })
		if slices.Contains(members, user) {
			return gid, nil
		}
		f[3] = strings.Join(append(members, user), ",")
		lines[i] = strings.Join(f, ":")
	}
	if gid < 0 {
		for gid = 999; used[gid] && gid > 100; gid-- { // a system's, from above, as groupadd chooses
		}
		lines = append(lines, fmt.Sprintf("%s:x:%d:%s", group, gid, user))
	}
	return gid, os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}

// Limits of starting the daemon.
const (
	engineTries = 3                // that end at once, one after the other
	engineStart = 10 * time.Second // what counts as at once
)

// holdEngine waits for the first who connects to the socket, and has the daemon take
// it over; when that ends, it waits again.
func (m *machine) holdEngine(server *guest.Server, socket *os.File) error {
	defer socket.Close()
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	for failed := 0; failed < engineTries; {
		if err := raw.Read(func(fd uintptr) bool { return readable(int(fd)) }); err != nil {
			return err
		}
		began := time.Now()
		m.prepareEngine(server)
		ended, err := m.startEngine(server, socket)
		if err != nil {
			return err
		}
		status := <-ended
		m.logf("the container engine ended with status %d: %s", status.ExitStatus(), lastLine(engineLog))
		if time.Since(began) > engineStart {
			failed = 0
		} else {
			failed++
		}
	}
	return errors.New("it does not start; whoever connects is refused from now on")
}

// readable reports whether there is something to read, or to accept, right now.
func readable(fd int) bool {
	var set syscall.FdSet
	const word = 64
	set.Bits[fd/word] |= 1 << (uint(fd) % uint(word))
	n, err := syscall.Select(fd+1, &set, nil, nil, &syscall.Timeval{})
	return err == nil && n > 0
}

// prepareEngine brings the machine into the state that the daemon wants. What fails
// is told; the daemon then says what it misses.
func (m *machine) prepareEngine(server *guest.Server) {
	// Volumes that are to propagate want a shared root, as an init system leaves it.
	if err := syscall.Mount("", "/", "", syscall.MS_SHARED|syscall.MS_REC, ""); err != nil {
		m.logf("sharing the root: %v", err)
	}
	if ended, err := server.Start("/sbin/modprobe", append([]string{"modprobe", "-a"}, engineModules...), nil); err != nil {
		m.logf("modprobe: %v", err)
	} else {
		<-ended
	}
	// One by one: when one of several is refused, so are the others.
	b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		m.logf("%v", err)
	}
	for name := range strings.FieldsSeq(string(b)) {
		if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+"+name), 0); err != nil {
			m.logf("control group controller %s: %v", name, err)
		}
	}
}

// startEngine starts the daemon with the socket that it serves.
func (m *machine) startEngine(server *guest.Server, socket *os.File) (<-chan syscall.WaitStatus, error) {
	log, err := os.OpenFile(engineLog, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	attr := &syscall.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{Setsid: true},
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LISTEN_FDS=1"},
		Files: []uintptr{0, log.Fd(), log.Fd(), socket.Fd()}}
	// The daemon measures what it may limit in its own group: of the root there is
	// nothing to read.
	if err := os.Mkdir(engineCgroup, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		m.logf("the container engine's control group: %v", err)
	} else if group, err := os.Open(engineCgroup); err == nil {
		defer group.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(group.Fd())
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	attr.Files[0] = null.Fd()
	// Who is meant by the socket is told by process id, which only the process knows.
	return server.Start("/bin/sh", []string{"sh", "-c", "LISTEN_PID=$$ exec dockerd -H fd://"}, attr)
}

// lastLine is the end of a file, for a message.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const most = 400
	if st, err := f.Stat(); err == nil && st.Size() > most {
		f.Seek(-most, 2)
	}
	b := make([]byte, most)
	n, _ := f.Read(b)
	lines := strings.Split(strings.TrimSpace(string(b[:n])), "\n")
	return lines[len(lines)-1]
}
