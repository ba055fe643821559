package firecracker

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
)

// Verdict says whether Firecracker can run machines on this host, and why.
type Verdict struct {
	KVM    bool          `json:"kvm"`
	Reason string        `json:"reason"` // a clause for people: "a kernel booted under it in 310 ms"
	Took   time.Duration `json:"took"`   // of the probe
	Time   time.Time     `json:"time"`
	Cached bool          `json:"-"` // an earlier process found out
}

// String is one line that says it plainly.
func (v Verdict) String() string {
	if v.KVM {
		return "KVM: " + v.Reason
	}
	return "no usable KVM: " + v.Reason
}

// ErrNoKVM says that this host has no KVM that a machine runs under.
var ErrNoKVM = errors.New("firecracker needs KVM, which this host does not offer")

func (v Verdict) err() error {
	if v.KVM {
		return nil
	}
	return fmt.Errorf("%w: %s; --driver qemu does without", ErrNoKVM, v.Reason)
}

const kvmDevice = "/dev/kvm"

// Verdict decides whether machines with this kernel run here. Where /dev/kvm
// can be opened, the first call on a host boots it to find out; without a
// kernel, a program of fifty bytes, whose success proves less.
func (d *Driver) Verdict(ctx context.Context, kernel string) (Verdict, error) {
	// Whether the device can be opened changes with a group membership, and is
	// cheap to ask: never cached.
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Verdict{Reason: "there is no " + kvmDevice}, nil
	case errors.Is(err, os.ErrPermission):
		return Verdict{Reason: "no permission to open " + kvmDevice + ": run `sudo usermod -aG kvm $USER` and log in again"}, nil
	case err != nil:
		return Verdict{Reason: err.Error()}, nil
	}
	f.Close()

	key, err := d.verdictKey(ctx, kernel)
	if err != nil {
		return Verdict{}, err
	}
	d.probing.Lock() // many machines may be wanted at once; one probe answers for all
	defer d.probing.Unlock()
	d.mu.Lock()
	v, ok := d.verdicts[key]
	d.mu.Unlock()
	if ok {
		return v, nil
	}
	if v, ok = d.loadVerdict(key); !ok {
		if v, err = d.probe(ctx, kernel); err != nil {
			return Verdict{}, fmt.Errorf("find out whether KVM works: %w", err)
		}
		d.saveVerdict(key, v)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.verdicts[key] = v
	d.log.Info("probed for Firecracker", "kvm", v.KVM, "reason", v.Reason, "cached", v.Cached)
	return v, nil
}

// verdictKey names host, kernel and Firecracker.
func (d *Driver) verdictKey(ctx context.Context, kernel string) (string, error) {
	_, v, err := d.find(ctx)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	fmt.Fprintf(h, "%s\n%s\n", boot, fingerprint(v))
	if kernel != "" {
		abs, err := filepath.Abs(kernel)
		if err != nil {
			return "", err
		}
		fi, err := os.Stat(abs)
		if err != nil {
			return "", fmt.Errorf("kernel: %w", err)
		}
		fmt.Fprintf(h, "%s %d %d\n", abs, fi.Size(), fi.ModTime().UnixNano())
	}
	return hex.EncodeToString(h.Sum(nil))[:32], nil
}

func (d *Driver) verdictFile(key string) string {
	return filepath.Join(d.cfg.CacheDir, "firecracker-kvm-"+key+".json")
}

func (d *Driver) loadVerdict(key string) (Verdict, bool) {
	if d.cfg.CacheDir == "" {
		return Verdict{}, false
	}
	b, err := os.ReadFile(d.verdictFile(key))
	if err != nil {
		return Verdict{}, false
	}
	var v Verdict
	if json.Unmarshal(b, &v) != nil || v.Reason == "" {
		return Verdict{}, false
	}
	v.Cached = true
	return v, true
}

// saveVerdict keeps v for the next process; failing to costs that one a probe.
func (d *Driver) saveVerdict(key string, v Verdict) {
	if d.cfg.CacheDir == "" {
		return
	}
	b, err := json.Marshal(v)
	if err == nil {
		err = os.MkdirAll(d.cfg.CacheDir, 0o700)
	}
	if err == nil {
		tmp := d.verdictFile(key) + fmt.Sprintf(".%d", os.Getpid())
		if err = os.WriteFile(tmp, b, 0o600); err == nil {
			err = os.Rename(tmp, d.verdictFile(key))
		}
	}
	if err != nil {
		d.log.Warn("cannot keep the verdict on KVM", "err", err)
	}
}

const (
	// silence is how long a guest may take to print its first character, which a
	// working one does within milliseconds.
	silence = 3 * time.Second
	// noRoot is what a kernel says last that has got as far as wanting a root file
	// system and has none.
	noRoot = "Unable to mount root fs"
)

var errTooLong = errors.New("the probe took too long")

// probe boots a kernel, or a program. The verdict is about the host; the error
// about our not having been able to ask.
func (d *Driver) probe(ctx context.Context, kernel string) (Verdict, error) {
	dir, err := os.MkdirTemp("", "hearth-probe-")
	if err != nil {
		return Verdict{}, err
	}
	defer os.RemoveAll(dir)
	what, word, limit := "a kernel", noRoot, d.cfg.ProbeTimeout
	if kernel == "" {
		what, word, limit = "a program without a kernel", probeWord, silence
		kernel = filepath.Join(dir, "program")
		if err := os.WriteFile(kernel, probeProgram(), 0o600); err != nil {
			return Verdict{}, err
		}
	}
	seen := &lookout{want: word, first: make(chan struct{}), found: make(chan struct{})}
	start := time.Now()
	probing, cancel := context.WithTimeoutCause(ctx, limit, errTooLong)
	defer cancel()
	verdict := func(ok bool, format string, a ...any) (Verdict, error) {
		return Verdict{KVM: ok, Reason: fmt.Sprintf(format, a...), Took: time.Since(start), Time: start.UTC()}, nil
	}
	m, err := d.boot(probing, vm.Spec{
		ID: fmt.Sprintf("probe-%d", os.Getpid()), Kernel: kernel,
		Cmdline: "earlyprintk=ttyS0 loglevel=6", CPUs: 1, MemoryMiB: 128, Dir: dir, Console: seen,
	})
	if err != nil {
		if ctx.Err() != nil {
			return Verdict{}, context.Cause(ctx)
		}
		return verdict(false, "%s exists, but Firecracker cannot use it: %s", kvmDevice, oneLine(err))
	}
	defer m.Close(context.WithoutCancel(ctx))
	quiet := time.NewTimer(silence)
	defer quiet.Stop()
	yes := func() (Verdict, error) {
		return verdict(true, "%s booted under it in %d ms", what, time.Since(start).Milliseconds())
	}
	for {
		select {
		case <-seen.found:
			return yes()
		case <-quiet.C:
			select {
			case <-seen.first:
			default:
				return verdict(false, "%s exists and opens, but a guest did not print a character in %v: this host has no working hardware virtualisation", kvmDevice, silence)
			}
		case <-m.done:
			select {
			case <-seen.found:
				return yes()
			default:
			}
			return verdict(false, "%s exists, but a guest ended before it had booted: %s", kvmDevice, oneLine(m.exitErr))
		case <-probing.Done():
			if ctx.Err() != nil {
				return Verdict{}, context.Cause(ctx)
			}
			return verdict(false, "%s exists, but a guest did not boot within %v; the last it said: %s", kvmDevice, limit,
				strings.ReplaceAll(vm.LastLines(m.console.Tail(), 2), "\n", "; "))
		}
	}
}

func oneLine(err error) string {
	if err == nil {
		return "it said nothing"
	}
	var e *vm.Error
	if errors.As(err, &e) {
		s := e.Err.Error()
		if e.Tail != "" {
			s += " (" + strings.ReplaceAll(vm.LastLines(e.Tail, 2), "\n", "; ") + ")"
		}
		return s
	}
	return vm.LastLines(err.Error(), 1)
}

// lookout watches a console for a word.
type lookout struct {
	want  string
	first chan struct{} // closed at the first character
	found chan struct{} // closed when the word has been seen

	mu   sync.Mutex
	buf  []byte
	some bool
	done bool
}

func (l *lookout) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	if !l.some && len(p) > 0 {
		l.some = true
		close(l.first)
	}
	if !l.done && strings.Contains(string(l.buf), l.want) {
		l.done = true
		close(l.found)
	}
	if n := len(l.buf) - 4096; n > 4096 {
		l.buf = append(l.buf[:0], l.buf[n:]...)
	}
	return len(p), nil
}

// probeWord is what the probe's program prints.
const probeWord = "hearth: a guest runs"

// probeProgram returns a program that writes probeWord to the serial port and
// resets the machine.
func probeProgram() []byte {
	msg := []byte("\n" + probeWord + "\n")
	code := []byte{
		0x48, 0x8d, 0x35, 0, 0, 0, 0, // lea rsi, [rip + message]
		0xb9, byte(len(msg)), 0, 0, 0, // mov ecx, its length
		0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8 (first serial port)
		0xac,       // again: lodsb
		0xee,       // out dx, al
		0xe2, 0xfc, // loop again
		0xb0, 0xfe, // mov al, 0xfe (pulse the reset line)
		0xe6, 0x64, // out 0x64, al (keyboard controller)
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to hlt
	}
	binary.LittleEndian.PutUint32(code[3:], uint32(len(code)-7))
	return program(append(code, msg...))
}

// program returns an x86-64 ELF executable that needs nothing under it.
func program(code []byte) []byte {
	const (
		base    = 0x1000000 // where kernels are
		headers = 64 + 56
	)
	le := binary.LittleEndian
	size := uint64(len(code))
	h := make([]byte, headers)
	copy(h, "\x7fELF\x02\x01\x01") // 64 bits, little endian
	le.PutUint16(h[16:], 2)        // executable
	le.PutUint16(h[18:], 62)       // x86-64
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], base) // entry
	le.PutUint64(h[32:], 64)   // program headers
	le.PutUint16(h[52:], 64)
	le.PutUint16(h[54:], 56)
	le.PutUint16(h[56:], 1)
	p := h[64:]
	le.PutUint32(p[0:], 1) // load
	le.PutUint32(p[4:], 5) // readable, executable
	le.PutUint64(p[8:], headers)
	le.PutUint64(p[16:], base)
	le.PutUint64(p[24:], base)
	le.PutUint64(p[32:], size)
	le.PutUint64(p[40:], size)
	le.PutUint64(p[48:], 0x1000)
	return append(h, code...)
}
