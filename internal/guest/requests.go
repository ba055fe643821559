package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// do serves a request that is no exec and returns the payload of its result.
func (v *serving) do(o op, request []byte) ([]byte, error) {
	s := v.sess.server
	d := &decoder{b: request}
	switch o {
	case opReadFile:
		path, most := d.string(), d.int()
		if err := d.end(); err != nil {
			return nil, err
		}
		return nil, v.readFile(path, most)
	case opWriteFile:
		path, mode, user := d.string(), fs.FileMode(d.uint()), d.string()
		if err := d.end(); err != nil {
			return nil, err
		}
		return nil, v.writeFile(path, mode, user)
	case opTarIn:
		dir, user := d.string(), d.string()
		if err := d.end(); err != nil {
			return nil, err
		}
		return nil, v.tarIn(dir, user)
	case opTarOut:
		dir, paths := d.string(), d.strings()
		if err := d.end(); err != nil {
			return nil, err
		}
		return nil, v.tarOut(dir, paths)
	case opMkdir:
		path, mode, user := d.string(), fs.FileMode(d.uint()), d.string()
		if err := d.end(); err != nil {
			return nil, err
		}
		id, err := s.users.lookup(user, s.opts.Runner)
		if err != nil {
			return nil, err
		}
		return nil, mkdirAll(path, mode, id)
	case opRemove:
		path := d.string()
		if err := d.end(); err != nil {
			return nil, err
		}
		return nil, os.RemoveAll(path)
	case opStat:
		path := d.string()
		if err := d.end(); err != nil {
			return nil, err
		}
		f, err := stat(path)
		return f.encode(), err
	case opResume:
		id, err := decodeIdentity(request)
		if err != nil {
			return nil, err
		}
		if s.opts.System == nil {
			return nil, errors.New("this agent is not the first process of a machine")
		}
		defer s.bootID.Store(nil)
		return nil, s.opts.System.Resume(id)
	case opUsage:
		return s.usage().encode(), nil
	case opSync:
		syscall.Sync()
		return nil, nil
	case opPoweroff:
		if s.opts.System == nil {
			return nil, errors.New("this agent is not the first process of a machine")
		}
		return nil, nil
	case opDial:
		name := d.string()
		if err := d.end(); err != nil {
			return nil, err
		}
		return nil, v.dial(name)
	case opFloor:
		argv, n := d.strings(), int(d.uint())
		if err := d.end(); err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		defer afterCancel(v, cancel)()
		return s.floor(ctx, argv, n)
	}
	return nil, fmt.Errorf("this agent does not know request %d", uint8(o))
}

// afterCancel calls fn if the request is cancelled, until the returned function is called, which waits.
func afterCancel(v *serving, fn func()) func() {
	over, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		select {
		case <-v.cancelled:
			fn()
		case <-over:
		}
	}()
	return func() { close(over); <-gone }
}

func (v *serving) readFile(path string, most int64) error {
	// O_NONBLOCK: a pipe that a job put there must not hang us; it is refused below.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file but %v", path, st.Mode().Type())
	}
	if st.Size() > most {
		return fmt.Errorf("%s has %d bytes, more than the %d allowed: %w", path, st.Size(), most, syscall.EFBIG)
	}
	buf := make([]byte, headerSize+MaxPayload)
	for {
		n, err := f.Read(buf[headerSize:])
		if n > 0 {
			if err := v.send(chanOut, buf[:headerSize+n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (v *serving) writeFile(path string, mode fs.FileMode, user string) error {
	s := v.sess.server
	id, err := s.users.lookup(user, s.opts.Runner)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NONBLOCK|syscall.O_NOCTTY, mode.Perm())
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return err
	} else if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file but %v", path, st.Mode().Type())
	}
	if !id.own {
		if err := f.Chown(id.uid, id.gid); err != nil {
			return err
		}
	}
	if err := f.Chmod(mode); err != nil { // the umask does not count, nor what was there before
		return err
	}
	if err := v.consume(func(p []byte) error {
		_, err := f.Write(p)
		return err
	}); err != nil {
		return err
	}
	return f.Close()
}

// mkdirAll makes a directory and its parents; those it makes get the mode and the owner.
func mkdirAll(path string, mode fs.FileMode, id identity) error {
	path = filepath.Clean(path)
	if st, err := os.Stat(path); err == nil {
		if st.IsDir() {
			return nil
		}
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	}
	if parent := filepath.Dir(path); parent != path {
		if err := mkdirAll(parent, mode, id); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, mode.Perm()); err != nil {
		if st, e := os.Stat(path); e == nil && st.IsDir() {
			return nil // somebody else made it meanwhile
		}
		return err
	}
	if !id.own {
		if err := os.Lchown(path, id.uid, id.gid); err != nil {
			return err
		}
	}
	return os.Chmod(path, mode)
}

func stat(path string) (FileInfo, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return FileInfo{}, err
	}
	f := FileInfo{Size: st.Size(), Mode: st.Mode(), ModTime: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		f.UID, f.GID = int(sys.Uid), int(sys.Gid)
	}
	if f.Mode.Type() == fs.ModeSymlink {
		if f.Target, err = os.Readlink(path); err != nil {
			return FileInfo{}, err
		}
	}
	return f, nil
}

func (s *Server) usage() Usage {
	u := Usage{AgentRoutines: runtime.NumGoroutine()}
	if b, err := os.ReadFile("/proc/stat"); err == nil {
		first, _, _ := strings.Cut(string(b), "\n")
		f := strings.Fields(first)
		tick := func(i int) time.Duration { // clock ticks are 10 ms on every Linux we know
			if i >= len(f) {
				return 0
			}
			n, _ := strconv.ParseInt(f[i], 10, 64)
			return time.Duration(n) * 10 * time.Millisecond
		}
		u.CPUUser = tick(1) + tick(2)
		u.CPUSystem = tick(3) + tick(6) + tick(7)
		u.CPUIdle = tick(4) + tick(5)
		u.CPUSteal = tick(8)
	}
	u.MemTotal, u.MemAvailable = meminfo("/proc/meminfo", "MemTotal:"), meminfo("/proc/meminfo", "MemAvailable:")
	u.AgentMemory = meminfo("/proc/self/status", "VmRSS:")
	var st syscall.Statfs_t
	if syscall.Statfs("/", &st) == nil {
		u.DiskTotal = int64(st.Blocks) * int64(st.Bsize)
		u.DiskFree = int64(st.Bavail) * int64(st.Bsize)
	}
	var si syscall.Sysinfo_t
	if syscall.Sysinfo(&si) == nil {
		u.Uptime = time.Duration(si.Uptime) * time.Second
		u.Load1 = float64(si.Loads[0]) / 65536
		u.Processes = int(si.Procs)
	}
	return u
}

// meminfo returns the bytes a "Name: 123 kB" line of a file of /proc states.
func meminfo(path, name string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for l := range strings.SplitSeq(string(b), "\n") {
		if rest, ok := strings.CutPrefix(l, name); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
			return n << 10
		}
	}
	return 0
}
