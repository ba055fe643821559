package jail

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// The users that jails have, each with the group of the same number. Neither
// distributions nor systemd nor containers hand out numbers up there.
const (
	DefaultUIDBase = 1_900_000_000
	UIDs           = 4096
)

// uidLease is a user that is nobody else's for as long as it is held: a locked
// file, so that all processes of the host that run machines agree, and the
// kernel takes it back from one that dies.
type uidLease struct {
	uid  int
	file *os.File
}

// uidDirs are where the locks are, of all hearths of a host: the first that can
// be made.
var uidDirs = []string{"/run/hearth/users", filepath.Join(os.TempDir(), "hearth-0", "users")}

func takeUID(base int) (*uidLease, error) {
	var dir string
	var errs []error
	for _, d := range uidDirs {
		if err := os.MkdirAll(d, 0o700); err != nil {
			errs = append(errs, err)
			continue
		}
		dir = d
		break
	}
	if dir == "" {
		return nil, fmt.Errorf("users for machines: %w", errors.Join(errs...))
	}
	// Not from the first: the longer a number rests, the better.
	start := rand.IntN(UIDs)
	for i := range UIDs {
		uid := base + (start+i)%UIDs
		f, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(uid)), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("user for a machine: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return &uidLease{uid, f}, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("all of the %d users for machines from %d on are in use", UIDs, base)
}

func (l *uidLease) release() {
	if l != nil {
		l.file.Close()
	}
}
