package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Info is what the agent says about itself when a connection begins. All of it
// is the guest's word.
type Info struct {
	Version  int    // of the protocol
	Release  string // of the agent program
	Kernel   string // release, as uname -r prints it
	BootID   string // of the machine; another one after Resume
	Hostname string
	CPUs     int
	Memory   int64 // bytes
	PID      int   // of the agent: 1 in a machine
}

func (i Info) encode() []byte {
	var e encoder
	e.uint(uint64(i.Version))
	e.string(i.Release)
	e.string(i.Kernel)
	e.string(i.BootID)
	e.string(i.Hostname)
	e.uint(uint64(i.CPUs))
	e.int(i.Memory)
	e.uint(uint64(i.PID))
	return e.b
}

func decodeInfo(b []byte) (Info, error) {
	d := decoder{b: b}
	i := Info{
		Version:  int(d.uint()),
		Release:  d.string(),
		Kernel:   d.string(),
		BootID:   d.string(),
		Hostname: d.string(),
		CPUs:     int(d.uint()),
		Memory:   d.int(),
		PID:      int(d.uint()),
	}
	return i, d.end()
}

// Exit is how a command ended, from the agent's final message.
type Exit struct {
	Code      int           // exit code; 128 + the signal's number if a signal ended it
	Signal    string        // "SIGKILL", …: the signal that ended it; "" if it exited
	TimedOut  bool          // Cmd.Timeout passed and the agent ended it
	Cancelled bool          // the context was done and the agent ended it
	Duration  time.Duration // wall clock in the guest, from before the fork to the end
	UserTime  time.Duration // of the process and the children it waited for
	SysTime   time.Duration
	MaxRSS    int64 // bytes
}

// OK says whether the command ran to its own end and reported success.
func (e Exit) OK() bool { return e.Code == 0 && e.Signal == "" && !e.TimedOut && !e.Cancelled }

func (e Exit) String() string {
	switch {
	case e.TimedOut:
		return "timed out"
	case e.Cancelled:
		return "cancelled"
	case e.Signal != "":
		return e.Signal
	}
	return "exit " + strconv.Itoa(e.Code)
}

func (e Exit) encode() []byte {
	var w encoder
	w.int(int64(e.Code))
	w.string(e.Signal)
	w.bool(e.TimedOut)
	w.bool(e.Cancelled)
	w.int(int64(e.Duration))
	w.int(int64(e.UserTime))
	w.int(int64(e.SysTime))
	w.int(e.MaxRSS)
	return w.b
}

func decodeExit(b []byte) (Exit, error) {
	d := decoder{b: b}
	e := Exit{
		Code:      int(d.int()),
		Signal:    d.string(),
		TimedOut:  d.bool(),
		Cancelled: d.bool(),
		Duration:  time.Duration(d.int()),
		UserTime:  time.Duration(d.int()),
		SysTime:   time.Duration(d.int()),
		MaxRSS:    d.int(),
	}
	if err := d.end(); err != nil {
		return Exit{}, err
	}
	if e.Signal != "" && e.Code == 0 {
		return Exit{}, violation("an exit by signal with code 0")
	}
	if len(e.Signal) > 32 {
		return Exit{}, violation("a signal's name of %d bytes", len(e.Signal))
	}
	return e, nil
}

// execSpec is a Cmd as it travels.
type execSpec struct {
	argv       []string
	env        []string
	dir        string
	user       string
	stdin      bool
	tty        bool
	rows       uint16
	cols       uint16
	timeout    time.Duration
	grace      time.Duration
	stopSignal string
	linger     time.Duration
}

func (s execSpec) encode() []byte {
	var e encoder
	e.strings(s.argv)
	e.strings(s.env)
	e.string(s.dir)
	e.string(s.user)
	e.bool(s.stdin)
	e.bool(s.tty)
	e.uint(uint64(s.rows))
	e.uint(uint64(s.cols))
	e.int(int64(s.timeout))
	e.int(int64(s.grace))
	e.string(s.stopSignal)
	e.int(int64(s.linger))
	return e.b
}

func decodeExecSpec(b []byte) (execSpec, error) {
	d := decoder{b: b}
	s := execSpec{
		argv:       d.strings(),
		env:        d.strings(),
		dir:        d.string(),
		user:       d.string(),
		stdin:      d.bool(),
		tty:        d.bool(),
		rows:       uint16(d.uint()),
		cols:       uint16(d.uint()),
		timeout:    time.Duration(d.int()),
		grace:      time.Duration(d.int()),
		stopSignal: d.string(),
		linger:     time.Duration(d.int()),
	}
	return s, d.end()
}

// FileInfo is what Stat says of a path in the guest.
type FileInfo struct {
	Size    int64
	Mode    fs.FileMode
	ModTime time.Time
	UID     int
	GID     int
	Target  string // of a symbolic link
}

// IsDir says whether it is a directory.
func (f FileInfo) IsDir() bool { return f.Mode.IsDir() }

func (f FileInfo) encode() []byte {
	var e encoder
	e.int(f.Size)
	e.uint(uint64(f.Mode))
	e.int(f.ModTime.UnixNano())
	e.uint(uint64(f.UID))
	e.uint(uint64(f.GID))
	e.string(f.Target)
	return e.b
}

func decodeFileInfo(b []byte) (FileInfo, error) {
	d := decoder{b: b}
	f := FileInfo{
		Size:    d.int(),
		Mode:    fs.FileMode(d.uint()),
		ModTime: time.Unix(0, d.int()),
		UID:     int(d.uint()),
		GID:     int(d.uint()),
		Target:  d.string(),
	}
	return f, d.end()
}

// Usage is what the machine has used since it booted, and what it has.
type Usage struct {
	Uptime        time.Duration
	CPUUser       time.Duration // all CPUs together, nice included
	CPUSystem     time.Duration // interrupts included
	CPUIdle       time.Duration // waiting for disks included
	CPUSteal      time.Duration // wanted to run and the host did not let it
	MemTotal      int64         // bytes
	MemAvailable  int64
	DiskTotal     int64 // of the file system of /
	DiskFree      int64
	Load1         float64 // run queue, mean of the last minute
	Processes     int     // existing
	AgentMemory   int64   // resident bytes of the agent
	AgentRoutines int     // goroutines of the agent
}

func (u Usage) encode() []byte {
	var e encoder
	for _, v := range []int64{
		int64(u.Uptime), int64(u.CPUUser), int64(u.CPUSystem), int64(u.CPUIdle), int64(u.CPUSteal),
		u.MemTotal, u.MemAvailable, u.DiskTotal, u.DiskFree, int64(u.Load1 * 100), int64(u.Processes),
		u.AgentMemory, int64(u.AgentRoutines),
	} {
		e.int(v)
	}
	return e.b
}

func decodeUsage(b []byte) (Usage, error) {
	d := decoder{b: b}
	u := Usage{
		Uptime:        time.Duration(d.int()),
		CPUUser:       time.Duration(d.int()),
		CPUSystem:     time.Duration(d.int()),
		CPUIdle:       time.Duration(d.int()),
		CPUSteal:      time.Duration(d.int()),
		MemTotal:      d.int(),
		MemAvailable:  d.int(),
		DiskTotal:     d.int(),
		DiskFree:      d.int(),
		Load1:         float64(d.int()) / 100,
		Processes:     int(d.int()),
		AgentMemory:   d.int(),
		AgentRoutines: int(d.int()),
	}
	return u, d.end()
}

// Identity is what makes a restored machine another one than its template. A
// field left empty is left as it is.
type Identity struct {
	Hostname  string
	Time      time.Time // the wall clock to set
	Entropy   []byte    // from the host's generator; credited to the kernel's, which is reseeded
	MachineID string    // 32 hexadecimal digits, for /etc/machine-id
	BootID    string    // a UUID; read back from /proc/sys/kernel/random/boot_id and Info.BootID
	// The network, if it differs from the template's.
	IP      string // address with prefix length: 10.0.2.15/24
	Gateway string
	DNS     string
	MAC     string // of the interface; "aa:bb:cc:dd:ee:ff"
}

func (i Identity) encode() []byte {
	var e encoder
	e.string(i.Hostname)
	if i.Time.IsZero() {
		e.int(0)
	} else {
		e.int(i.Time.UnixNano())
	}
	e.bytes(i.Entropy)
	for _, s := range []string{i.MachineID, i.BootID, i.IP, i.Gateway, i.DNS, i.MAC} {
		e.string(s)
	}
	return e.b
}

func decodeIdentity(b []byte) (Identity, error) {
	d := decoder{b: b}
	var i Identity
	i.Hostname = d.string()
	if ns := d.int(); ns != 0 {
		i.Time = time.Unix(0, ns)
	}
	i.Entropy = append([]byte(nil), d.raw()...)
	for _, p := range []*string{&i.MachineID, &i.BootID, &i.IP, &i.Gateway, &i.DNS, &i.MAC} {
		*p = d.string()
	}
	return i, d.end()
}

// Error is what the agent says when it could not do what was asked: a file that
// is not there, a program that cannot be started, a disk that is full. The
// connection is fine. errors.Is compares with the system's errors:
// errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOSPC).
type Error struct {
	Op    string        // what was asked: "exec", "read file", …
	Errno syscall.Errno // 0: not an error of the system
	Start bool          // the op is exec, and the program could not be started (as opposed to: the agent lost it)
	Text  string        // the agent's words, bounded; from the guest
}

func (e *Error) Error() string { return "guest: " + e.Op + ": " + printable(e.Text) }

func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

func encodeError(err error, start bool) []byte {
	var errno syscall.Errno
	errors.As(err, &errno)
	text := err.Error()
	if len(text) > maxErrorText {
		text = text[:maxErrorText]
	}
	var e encoder
	e.uint(uint64(errno))
	e.bool(start)
	e.string(text)
	return e.b
}

// decodeError returns what the agent said, or err if that is malformed.
func decodeError(o op, b []byte) (said *Error, err error) {
	d := decoder{b: b}
	said = &Error{Op: o.String(), Errno: syscall.Errno(d.uint()), Start: d.bool(), Text: d.string()}
	if err := d.end(); err != nil {
		return nil, err
	}
	if said.Errno > 4095 || len(said.Text) > maxErrorText {
		return nil, violation("an error out of bounds")
	}
	return said, nil
}

// printable returns a guest's text so that it can go to a terminal.
func printable(s string) string {
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '\ufffd' || !strconv.IsPrint(r) {
			return strings.Trim(strconv.Quote(s), `"`)
		}
	}
	return s
}

func (o op) String() string {
	switch o {
	case opExec:
		return "exec"
	case opReadFile:
		return "read file"
	case opWriteFile:
		return "write file"
	case opTarIn:
		return "unpack"
	case opTarOut:
		return "pack"
	case opMkdir:
		return "mkdir"
	case opRemove:
		return "remove"
	case opStat:
		return "stat"
	case opResume:
		return "resume"
	case opUsage:
		return "usage"
	case opSync:
		return "sync"
	case opPoweroff:
		return "power off"
	case opPing:
		return "ping"
	case opFloor:
		return "floor"
	case opDial:
		return "dial"
	}
	return fmt.Sprintf("request %d", uint8(o))
}
