package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// RecordName is the file in a machine's directory that holds its [Record].
const RecordName = "machine.json"

// Record says who is responsible for a machine directory. Processes are named
// by id and start time together, since ids are used again.
type Record struct {
	ID       string    `json:"id"`
	Driver   string    `json:"driver"`
	Owner    Proc      `json:"owner"`
	VMM      Proc      `json:"vmm,omitzero"`
	Created  time.Time `json:"created"`
	DeleteBy time.Time `json:"delete_by,omitzero"`
}

// Proc names a process of this host for ever.
type Proc struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks between boot and its start: field 22 of /proc/PID/stat
	Boot  string `json:"boot"`  // the kernel's boot id
}

// FindProc returns the name of the running process pid.
func FindProc(pid int) (Proc, error) {
	start, state, err := procStat(pid)
	if err != nil {
		return Proc{}, err
	}
	if state == 'Z' || state == 'X' {
		return Proc{}, fmt.Errorf("process %d has ended", pid)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Proc{}, err
	}
	return Proc{Pid: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, nil
}

// Alive reports whether the very process that p names still runs.
func (p Proc) Alive() bool {
	if p.Pid <= 0 {
		return false
	}
	q, err := FindProc(p.Pid)
	return err == nil && q == p
}

func procStat(pid int) (start uint64, state byte, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	// The second field is the command in parentheses and may itself hold any
	// character, so that counting starts behind the last parenthesis.
	i := strings.LastIndexByte(string(b), ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: cannot be read: %q", pid, b)
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return start, f[0][0], err
}

// WriteRecord writes the record of a machine that the calling process owns into
// dir, in one step. vmm is the process id of its VMM, or 0 if it has none yet.
func WriteRecord(dir, driver string, spec Spec, vmm int) error {
	r := Record{ID: spec.ID, Driver: driver, Created: time.Now().UTC(), DeleteBy: spec.DeleteBy}
	var err error
	if r.Owner, err = FindProc(os.Getpid()); err != nil {
		return fmt.Errorf("write machine record: %w", err)
	}
	if vmm != 0 {
		// A VMM that has already ended leaves nothing to be found again.
		r.VMM, _ = FindProc(vmm)
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, RecordName+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write machine record: %w", err)
	}
	return os.Rename(tmp, filepath.Join(dir, RecordName))
}

// newPrefix begins the name of a directory that is being made; its owner's pid
// and start follow, so that whoever comes later knows whether it still is.
const newPrefix = ".new-"

// MakeDir makes the directory of a machine, with a record of its owner, below
// parent, in one step: there is no moment at which a process that is killed
// leaves a directory that nobody can tell the owner of.
func MakeDir(parent, id string) (dir string, err error) {
	self, err := FindProc(os.Getpid())
	if err != nil {
		return "", fmt.Errorf("make machine directory: %w", err)
	}
	tmp := filepath.Join(parent, fmt.Sprintf("%s%d-%d-%s", newPrefix, self.Pid, self.Start, id))
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return "", err
	}
	dir = filepath.Join(parent, id)
	err = WriteRecord(tmp, "", Spec{ID: id}, 0)
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	return dir, nil
}

// making reads such a name: the process, and whether it still runs. A start
// tells processes with one id apart within a boot; the directory of machines of
// an earlier boot is gone, or its processes are.
func making(name string) (pid int, alive, ok bool) {
	rest, ok := strings.CutPrefix(name, newPrefix)
	if !ok {
		return 0, false, false
	}
	var start uint64
	if n, err := fmt.Sscanf(rest, "%d-%d-", &pid, &start); err != nil || n != 2 {
		return 0, false, true
	}
	p, err := FindProc(pid)
	return pid, err == nil && p.Start == start, true
}

// ReadRecord reads the record in dir.
func ReadRecord(dir string) (Record, error) {
	name := filepath.Join(dir, RecordName)
	f, err := os.Open(name)
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	var r Record
	b := make([]byte, 64<<10)
	n, _ := f.Read(b)
	if err := json.Unmarshal(b[:n], &r); err != nil {
		return Record{}, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

// Reaped is one machine directory that [Reap] removed.
type Reaped struct {
	ID     string
	Dir    string
	Reason string
	Killed int // process id of the VMM that was still running, or 0
}

// Reap looks through dir for machine directories whose owner is dead or whose
// delete-by time has passed, kills the VMM of each where it still runs, and
// removes them. A directory without a record is removed once it is older than
// grace: it may be one that is just being made.
//
// Reap never touches a machine of a living owner before its delete-by time. A
// dir that does not exist holds nothing.
func Reap(ctx context.Context, dir string, grace time.Duration) ([]Reaped, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reap machines: %w", err)
	}
	var done []Reaped
	var errs []error
	now := time.Now()
	for _, e := range entries {
		if ctx.Err() != nil {
			return done, context.Cause(ctx)
		}
		if !e.IsDir() {
			continue
		}
		d := filepath.Join(dir, e.Name())
		reaped := Reaped{ID: e.Name(), Dir: d}
		r, err := ReadRecord(d)
		maker, alive, isNew := making(e.Name())
		switch {
		case isNew && alive:
			continue
		case isNew:
			reaped.Reason = fmt.Sprintf("process %d, which was making it, is dead", maker)
		case err != nil:
			if fi, err := e.Info(); err != nil || now.Sub(fi.ModTime()) < grace {
				continue
			}
			reaped.Reason = "it has no readable record"
		case !r.Owner.Alive():
			reaped.Reason = fmt.Sprintf("its owner, process %d, is dead", r.Owner.Pid)
		case !r.DeleteBy.IsZero() && now.After(r.DeleteBy):
			reaped.Reason = "its delete-by time " + r.DeleteBy.Format(time.RFC3339) + " has passed"
		default:
			continue
		}
		if r.VMM.Alive() {
			reaped.Killed = r.VMM.Pid
			if err := killAndWait(ctx, r.VMM); err != nil {
				errs = append(errs, fmt.Errorf("reap machine %s: %w", e.Name(), err))
				continue
			}
		}
		if err := os.RemoveAll(d); err != nil {
			errs = append(errs, fmt.Errorf("reap machine %s: %w", e.Name(), err))
			continue
		}
		done = append(done, reaped)
	}
	return done, errors.Join(errs...)
}

// killAndWait kills p, which is usually no child of ours, and waits until it is
// gone.
func killAndWait(ctx context.Context, p Proc) error {
	// A handle taken before the check cannot come to mean another process.
	h, err := os.FindProcess(p.Pid)
	if err != nil {
		return nil
	}
	defer h.Release()
	if !p.Alive() {
		return nil
	}
	if err := h.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d: %w", p.Pid, err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	for p.Alive() {
		select {
		case <-tick.C:
		case <-limit.C:
			return fmt.Errorf("process %d does not die", p.Pid)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
