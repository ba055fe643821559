// Package vm says what a virtual machine is to the rest of Hearth: a [Spec], a
// [Driver] that starts one, and a [Machine] that can be dialled, snapshotted, waited
// for and closed. What not every driver can do is one value, its [Capabilities];
// nothing else lives here.
//
// # What is not here
//
// There is no Exec, no file transfer and no log of a job's output: they exist
// once, in package guest, above the byte stream that Dial returns. A driver
// that hands back a working stream to the agent gets all of them.
//
// # The stream
//
// Dial returns one reliable, bidirectional byte stream to the agent inside.
// A machine serves one stream at a time: a new Dial ends the one before it.
// Right after boot and right after a restore the first bytes may be lost (a
// virtio-serial port that nobody has opened yet, a vsock listener that is just
// waking up), so whoever dials begins with a handshake and dials again until a
// whole exchange has succeeded; guest.Connect does.
//
// # Life of a machine
//
// Spec.Dir is the machine's alone. Everything that the driver creates, sockets
// and overlays included, is in it, and Close removes it. The directory carries
// a [Record] (record.go) of who owns the machine and until when it may exist,
// so that a later process can find and end what a dead one left: see [Reap].
// A driver also arranges for its VMM to die with the process that started it,
// so that usually nothing is left; the record is the second line of defence.
//
// Wait returns when the VMM has ended, with the reason where it was not asked
// for. Close may be called at any time, any number of times, from any
// goroutine.
//
// # Snapshots
//
// A snapshot is a directory: a manifest, the device state, the memory and a
// copy of every writable disk. Read-only disks are named by path and are not
// copied. A snapshot never changes once it has been written, and any number of
// machines may be restored from it at once: each gets memory and writable disks
// of its own, copy on write.
//
// There are two kinds, because what is cheap to make and what is cheap to clone
// differ. A machine started with Spec.Template has its memory in a file from
// the start; Snapshot then takes milliseconds, hands that file over, and the
// machine is over: only Close is left to do. Any other machine is snapshotted
// while it runs and goes on running; its memory is written out, which takes as
// long as it takes to write it.
//
// A clone is a twin of its template, entropy and clock included. Whoever
// restores one calls guest's Resume before it runs anything: the driver cannot
// do that from outside.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// Spec describes a machine to start, or, in the fields that Restore reads, the
// differences of a clone from its template.
type Spec struct {
	// ID names the machine in process lists, logs and errors: 1–40 characters of
	// [0-9a-zA-Z_-]. Unique on the host.
	ID string

	// Kernel is an uncompressed ELF kernel (vmlinux), Initrd an initramfs, or
	// empty. Cmdline is what the guest needs to hear; the driver adds what its
	// own devices need (console, clock, reboot behaviour).
	Kernel, Initrd, Cmdline string

	CPUs      int // virtual CPUs, ≥ 1
	MemoryMiB int // memory in MiB, ≥ 64

	// Disks appear in the guest in this order (vda, vdb, …). A writable disk's
	// file is written to in place: give the machine a copy of its own.
	Disks []Disk

	// Net is the path of a listening unix stream socket that speaks one Ethernet
	// frame after another, each after its length as 4 bytes, big endian; MAC is
	// the guest's address on it ("" chooses [DefaultMAC]). An empty Net means
	// that the machine has no network device at all.
	Net, MAC string

	// Template says that the machine is started to be snapshotted and cloned:
	// see the package comment.
	Template bool

	// Dir is an existing directory, the machine's own. Close removes it.
	Dir string

	// DeleteBy is the moment after which anyone may end the machine and remove
	// Dir; zero means that only its owner's death allows that.
	DeleteBy time.Time

	// Console, if set, receives a copy of what the guest prints on its console,
	// bounded by the driver. Errors carry the tail of it in any case.
	Console io.Writer
}

// DefaultMAC is the guest's hardware address where Spec.MAC is empty. Each
// machine has a network of its own, so that the same address everywhere is
// fine, and saves a clone from changing it.
const DefaultMAC = "52:54:00:68:65:61"

// Disk is one block device of a machine.
type Disk struct {
	ID       string // [a-z0-9]{1,20}, unique in the machine; the guest sees it as the serial number
	Path     string
	ReadOnly bool
	Format   string // "raw" (also if empty) or "qcow2"
}

// Capabilities is what a driver's machines can do beyond starting, talking and
// ending. It never changes. What is false here fails with [errors.ErrUnsupported].
type Capabilities struct {
	Snapshots bool // Driver.Fingerprint, Restore and Verify; Machine.Snapshot
	Pause     bool // Machine.Pause and Resume
	Process   bool // a machine is a process of its own on this host: Machine.Pid
}

// A Driver starts machines with one kind of VMM. Safe for concurrent use.
//
// The order of calls: Probe and ProbeNetwork before anything is started, to choose a
// driver; they promise nothing for later. Fingerprint before a snapshot is looked
// for, Verify before the first Restore from one that another process made.
type Driver interface {
	// Name is a short word: "qemu", "firecracker". Any time.
	Name() string

	// Capabilities says what its machines can do. Any time.
	Capabilities() Capabilities

	// Probe reports whether this host can run machines with the driver: nil, or
	// an error that says what is missing and the command that mends it. It may start
	// a machine to find out, and remember what it found. Any time.
	Probe(ctx context.Context) error

	// ProbeNetwork reports the same of what a machine with Spec.Net takes beyond
	// that. It starts no machine, so it is the quicker one to ask first. Any time.
	ProbeNetwork(ctx context.Context) error

	// Start boots a machine. It returns as soon as the VMM runs; whether the
	// guest came up is for the first exchange with the agent to tell. When ctx
	// ends before Start has returned, nothing is left of the machine but Dir.
	// After that ctx has no hold on it. Spec.Dir exists and is empty but for a
	// [Record] and the socket Spec.Net, on which somebody listens already.
	Start(ctx context.Context, spec Spec) (Machine, error)

	// Fingerprint says what a snapshot of a machine depends on beyond the spec: VMM
	// version, accelerator, kind of CPU. Two hosts, or one host before and after an
	// upgrade, with different fingerprints cannot use each other's snapshots. Any
	// time; it makes nothing.
	Fingerprint(ctx context.Context, spec Spec) (string, error)

	// Restore starts a machine from the snapshot in dir, which Machine.Snapshot has
	// finished. From spec it takes ID, Dir, Net, MAC, DeleteBy and Console. A
	// read-only disk in spec.Disks replaces the path of the one with the same ID;
	// everything else is as in the snapshot, and a CPUs or MemoryMiB that is set and
	// differs is an error. A snapshot that is damaged, or was made by another VMM or
	// on another kind of host, is refused with an error that is an [ErrSnapshot].
	// For ctx and Dir it is as Start.
	Restore(ctx context.Context, dir string, spec Spec) (Machine, error)

	// Verify checks a whole snapshot, memory included, which Restore is too quick to
	// do. The error is an [ErrSnapshot]. Any time after Machine.Snapshot.
	Verify(ctx context.Context, dir string) error
}

// Machine is a running virtual machine. Safe for concurrent use. Whoever got one
// from Start or Restore calls Close in the end, whatever has happened; Wait, Tail,
// ID and Pid may be called at any time, after Close as well, and everything else
// fails after it. Snapshot, Pause and Resume wait for each other.
type Machine interface {
	ID() string

	// Dial connects to the agent: see the package comment. From the start; again
	// after a Snapshot, when the stream has ended.
	Dial(ctx context.Context) (net.Conn, error)

	// Snapshot writes the machine into dir, which must exist and be empty. A
	// machine started with Spec.Template has ended afterwards (Close it); any
	// other goes on running, also where Snapshot failed. The stream to its agent
	// may have ended then, and with it what ran over it: dial again. Once the agent
	// has answered, and not while paused.
	Snapshot(ctx context.Context, dir string) error

	// Pause stops the machine where it is, Resume sets it going again. Either may be
	// called again, and changes nothing then.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error

	// Pid is the process id of the VMM; 0 once it has ended, or where it has none.
	Pid() int

	// Tail is what the machine printed last, on the VMM's standard error and the
	// guest's console: a few lines without control characters. For errors of those
	// who talk to the guest.
	Tail() string

	// Wait blocks until the VMM has ended. It returns nil if the guest powered
	// off or Close was called, and otherwise what happened, with the tail of the
	// console. Several may wait.
	Wait() error

	// Close kills the machine, waits for its process and removes its directory.
	// A second call waits for the first and returns the same. It does not wait for
	// a Snapshot or a Dial under way: they fail.
	Close(ctx context.Context) error
}

// Explain adds to err what m printed last, unless err says so already. op is
// what was being done. It returns nil for a nil err.
func Explain(m Machine, op string, err error) error {
	if err == nil {
		return nil
	}
	var known *Error
	if !errors.As(err, &known) {
		return &Error{Machine: m.ID(), Op: op, Err: err, Tail: m.Tail()}
	}
	return err
}

// ErrSnapshot marks an error that says that a snapshot cannot be used: whoever
// owns it should make a new one.
var ErrSnapshot = errors.New("unusable snapshot")

// ErrClosed is what operations on a machine return after Close.
var ErrClosed = errors.New("machine is closed")

// Error is a failure of one machine, with what it last printed.
type Error struct {
	Machine string // its ID
	Op      string // what was being done: "start", "dial", …
	Err     error
	Tail    string // last lines of the VMM's standard error and the guest's console; may be empty
}

func (e *Error) Error() string {
	s := fmt.Sprintf("machine %s: %s: %v", e.Machine, e.Op, e.Err)
	if t := strings.TrimSpace(e.Tail); t != "" {
		s += "\n  | " + strings.ReplaceAll(t, "\n", "\n  | ")
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Check reports what is wrong with spec as far as can be told without a driver.
// Drivers call it first.
func (s *Spec) Check() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if !validID(s.ID, 40) {
		bad("ID %q: want 1–40 of [0-9a-zA-Z_-]", s.ID)
	}
	if s.Dir == "" {
		bad("Dir is empty")
	}
	if s.CPUs < 1 || s.CPUs > 255 {
		bad("CPUs is %d: want 1–255", s.CPUs)
	}
	if s.MemoryMiB < 64 {
		bad("MemoryMiB is %d: want at least 64", s.MemoryMiB)
	}
	if s.Kernel == "" {
		bad("Kernel is empty")
	}
	if s.MAC != "" {
		if m, err := net.ParseMAC(s.MAC); err != nil || len(m) != 6 {
			bad("MAC %q is not a 6-byte hardware address", s.MAC)
		}
	}
	seen := map[string]bool{}
	for i, d := range s.Disks {
		if !validID(d.ID, 20) || seen[d.ID] {
			bad("Disks[%d].ID %q: want 1–20 of [0-9a-zA-Z_-], unique", i, d.ID)
		}
		seen[d.ID] = true
		if d.Path == "" {
			bad("Disks[%d].Path is empty", i)
		}
		switch d.Format {
		case "", "raw", "qcow2":
		default:
			bad("Disks[%d].Format %q: want raw or qcow2", i, d.Format)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("machine spec: %w", errors.Join(errs...))
	}
	return nil
}

func validID(s string, limit int) bool {
	if s == "" || len(s) > limit || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}
