package guest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// identity is who a command runs as.
type identity struct {
	name, home, shell string
	uid, gid          int
	groups            []uint32
	own               bool // the server's own user: nothing to change
}

// credential returns what a start has to change, nil if nothing.
func (i identity) credential() *syscall.Credential {
	if i.own {
		return nil
	}
	return &syscall.Credential{Uid: uint32(i.uid), Gid: uint32(i.gid), Groups: i.groups}
}

// userTable reads /etc/passwd and /etc/group when they have changed; a job may add users.
type userTable struct {
	mu     sync.Mutex
	passwd table
	group  table
	known  map[[2]string]identity // what lookup found in the tables as they are
}

type table struct {
	mtime syscall.Timespec
	size  int64
	inode uint64
	lines []string // nil: there is no such file
}

// refresh reads the file again if it has changed, and says whether it has.
func (t *table) refresh(path string) bool {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		changed := t.lines != nil
		*t = table{}
		return changed
	}
	if t.lines != nil && st.Mtim == t.mtime && st.Size == t.size && st.Ino == t.inode {
		return false
	}
	*t = table{mtime: st.Mtim, size: st.Size, inode: st.Ino, lines: []string{}}
	const most = 1 << 20
	if st.Size <= most {
		if b, err := os.ReadFile(path); err == nil {
			t.lines = strings.Split(string(b), "\n")
		}
	}
	return true
}

// lookup finds a user by name, or by "uid:gid" or "uid". "" is runner, if it
// exists, and the server's own user otherwise.
func (u *userTable) lookup(name, runner string) (identity, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	passwd, group := u.passwd.refresh("/etc/passwd"), u.group.refresh("/etc/group")
	if passwd || group || u.known == nil {
		u.known = map[[2]string]identity{}
	}
	key := [2]string{name, runner}
	if id, ok := u.known[key]; ok {
		return id, nil
	}
	id, err := u.search(name, runner)
	if err == nil && len(u.known) < 100 {
		u.known[key] = id
	}
	return id, err
}

func (u *userTable) search(name, runner string) (identity, error) {
	if name == "" {
		if runner != "" {
			if id, ok := u.find(runner, -1); ok {
				return id, nil
			}
		}
		return u.own(), nil
	}
	if id, ok := u.find(name, -1); ok {
		return id, nil
	}
	us, gs, both := strings.Cut(name, ":")
	uid, err := strconv.ParseUint(us, 10, 31)
	if err == nil {
		id, ok := u.find("", int(uid))
		if !ok {
			id = identity{name: us, home: "/", shell: "/bin/sh", uid: int(uid), gid: int(uid), own: int(uid) == os.Geteuid()}
		}
		if !both {
			return id, nil
		}
		if gid, err := strconv.ParseUint(gs, 10, 31); err == nil {
			if id.gid != int(gid) {
				id.gid, id.groups, id.own = int(gid), nil, false
			}
			return id, nil
		}
	}
	if name == "root" {
		return identity{name: "root", home: "/root", shell: "/bin/sh", own: os.Geteuid() == 0}, nil
	}
	return identity{}, fmt.Errorf("there is no user %q in the machine", name)
}

// find looks a user up by name, or by uid if the name is empty.
func (u *userTable) find(name string, uid int) (identity, bool) {
	for _, l := range u.passwd.lines {
		f := strings.Split(l, ":")
		if len(f) < 7 || name != "" && f[0] != name {
			continue
		}
		id, err1 := strconv.ParseUint(f[2], 10, 31)
		gid, err2 := strconv.ParseUint(f[3], 10, 31)
		if err1 != nil || err2 != nil || name == "" && int(id) != uid {
			continue
		}
		i := identity{name: f[0], home: f[5], shell: f[6], uid: int(id), gid: int(gid)}
		if i.home == "" {
			i.home = "/"
		}
		if i.shell == "" {
			i.shell = "/bin/sh"
		}
		if i.uid == os.Geteuid() && i.gid == os.Getegid() {
			i.own = true
			return i, true
		}
		i.groups = []uint32{uint32(gid)}
		for _, l := range u.group.lines {
			g := strings.Split(l, ":")
			if len(g) < 4 || !contains(g[3], i.name) {
				continue
			}
			if n, err := strconv.ParseUint(g[2], 10, 31); err == nil && int(n) != i.gid {
				i.groups = append(i.groups, uint32(n))
			}
		}
		return i, true
	}
	return identity{}, false
}

func contains(list, name string) bool {
	for m := range strings.SplitSeq(list, ",") {
		if m == name {
			return true
		}
	}
	return false
}

func (u *userTable) own() identity {
	if id, ok := u.find("", os.Geteuid()); ok {
		id.own = true
		return id
	}
	home := os.Getenv("HOME")
	if home == "" {
		home = "/"
	}
	name := "root"
	if os.Geteuid() != 0 {
		name = strconv.Itoa(os.Geteuid())
	}
	return identity{name: name, home: home, shell: "/bin/sh", uid: os.Geteuid(), gid: os.Getegid(), own: true}
}
