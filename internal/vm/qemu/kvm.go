package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/vmm"
)

// Verdict says how machines run on this host, and why.
type Verdict struct {
	KVM    bool          `json:"kvm"`
	Reason string        `json:"reason"` // a clause for people: "a guest booted under it in 310 ms"
	Took   time.Duration `json:"took"`   // of the probe
	Time   time.Time     `json:"time"`
	Cached bool          `json:"-"` // an earlier process found out
}

func (v Verdict) accel() accel {
	if v.KVM {
		return kvm
	}
	return tcg
}

// String is one line that says it plainly.
func (v Verdict) String() string {
	if v.KVM {
		return "KVM: " + v.Reason
	}
	return "software emulation (TCG), 6–18 times slower where a job computes: " + v.Reason
}

const kvmDevice = "/dev/kvm"

// Verdict decides whether machines with this kernel run under KVM. Where
// /dev/kvm can be opened, the first call on a host boots a guest to find out.
func (d *Driver) Verdict(ctx context.Context, kernel string) (Verdict, error) {
	switch d.cfg.Accel {
	case "":
	case string(kvm), string(tcg):
		return Verdict{KVM: d.cfg.Accel == string(kvm), Reason: "the configuration says so"}, nil
	default:
		return Verdict{}, fmt.Errorf("unknown accelerator %q: want kvm, tcg or nothing", d.cfg.Accel)
	}
	// Whether the device can be opened changes with a group membership, and is
	// cheap to ask: never cached.
	f, err := os.OpenFile(d.device, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Verdict{Reason: "there is no " + d.device}, nil
	case errors.Is(err, os.ErrPermission):
		return Verdict{Reason: "no permission to open " + d.device + ": run `sudo usermod -aG kvm $USER` and log in again"}, nil
	case err != nil:
		return Verdict{Reason: err.Error()}, nil
	}
	f.Close()

	key, err := d.verdictKey(ctx, kernel)
	if err != nil {
		return Verdict{}, err
	}
	d.mu.Lock()
	v, ok := d.verdicts[key]
	d.mu.Unlock()
	if ok {
		return v, nil
	}
	if v, ok = d.loadVerdict(key); !ok {
		if v, err = d.probeKVM(ctx, kernel); err != nil {
			return Verdict{}, fmt.Errorf("find out whether KVM works: %w", err)
		}
		d.saveVerdict(key, v)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if was, ok := d.verdicts[key]; ok {
		return was, nil // another call was quicker; one process, one verdict
	}
	d.verdicts[key] = v
	d.log.Info("accelerator chosen", "kvm", v.KVM, "reason", v.Reason, "cached", v.Cached)
	return v, nil
}

// verdictKey names host, kernel and QEMU.
func (d *Driver) verdictKey(ctx context.Context, kernel string) (string, error) {
	_, version, err := d.find(ctx)
	if err != nil {
		return "", err
	}
	fi, err := os.Stat(kernel)
	if err != nil {
		return "", fmt.Errorf("kernel: %w", err)
	}
	abs, err := filepath.Abs(kernel)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	release, _ := os.ReadFile("/proc/version")
	fmt.Fprintf(h, "%s\n%s\n%s\n%s\n%s %d %d\n", boot, release, vmm.CPUModel(), version, abs, fi.Size(), fi.ModTime().UnixNano())
	return hex.EncodeToString(h.Sum(nil))[:32], nil
}

func (d *Driver) verdictFile(key string) string {
	return filepath.Join(d.cfg.CacheDir, "kvm-"+key+".json")
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

// silence is how long a guest under KVM may take to print its first character,
// which a working one does within milliseconds.
const silence = 3 * time.Second

// probeKVM boots the kernel with a program that prints one line. The verdict is
// about the host; the error about our not having been able to ask.
func (d *Driver) probeKVM(ctx context.Context, kernel string) (Verdict, error) {
	base := d.cfg.CacheDir
	if base == "" {
		base = os.TempDir()
	}
	base = filepath.Join(base, fmt.Sprintf("hearth-probe-%d", os.Getuid()))
	if err := os.MkdirAll(base, 0o700); err != nil {
		return Verdict{}, err
	}
	if _, err := vm.Reap(ctx, base, time.Minute); err != nil { // what a probe that was killed left
		d.log.Warn("cannot remove what is left of an earlier probe", "err", err)
	}
	dir, err := os.MkdirTemp(base, "")
	if err != nil {
		return Verdict{}, err
	}
	defer os.RemoveAll(dir)
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, probeInitrd(), 0o600); err != nil {
		return Verdict{}, err
	}
	seen := &lookout{want: probeWord, first: make(chan struct{}), found: make(chan struct{})}
	start := time.Now()
	probing, cancel := context.WithTimeoutCause(ctx, d.cfg.ProbeTimeout, errTooLong)
	defer cancel()
	verdict := func(ok bool, format string, a ...any) Verdict {
		return Verdict{KVM: ok, Reason: fmt.Sprintf(format, a...), Took: time.Since(start), Time: start.UTC()}
	}
	m, err := d.boot(probing, vm.Spec{
		ID: fmt.Sprintf("probe-%d", os.Getpid()), Kernel: kernel, Initrd: initrd,
		Cmdline: "earlyprintk=ttyS0 console=ttyS0 quiet", CPUs: 1, MemoryMiB: 256, Dir: dir, Console: seen,
	}, kvm)
	if err != nil {
		if ctx.Err() != nil {
			return Verdict{}, context.Cause(ctx)
		}
		return verdict(false, "%s exists, but QEMU cannot use it: %s", d.device, oneLine(err)), nil
	}
	defer m.Close(context.WithoutCancel(ctx))
	quiet := time.NewTimer(silence)
	defer quiet.Stop()
	for {
		select {
		case <-seen.found:
			return verdict(true, "a guest booted under it in %d ms", time.Since(start).Milliseconds()), nil
		case <-quiet.C:
			select {
			case <-seen.first:
			default:
				return verdict(false, "%s exists and opens, but a guest did not print a character in %v: this host has no working hardware virtualisation", d.device, silence), nil
			}
		case <-m.done:
			select {
			case <-seen.found:
				continue
			default:
			}
			return verdict(false, "%s exists, but a guest ended before it had booted: %s", d.device, oneLine(m.exitErr)), nil
		case <-probing.Done():
			if ctx.Err() != nil {
				return Verdict{}, context.Cause(ctx)
			}
			return verdict(false, "%s exists, but a guest did not boot within %v", d.device, d.cfg.ProbeTimeout), nil
		}
	}
}

var errTooLong = errors.New("the probe took too long")

func oneLine(err error) string {
	if err == nil {
		return "no error"
	}
	var e *vm.Error
	if errors.As(err, &e) {
		s := e.Err.Error()
		if e.Tail != "" {
			s += " (" + strings.ReplaceAll(lastLines(e.Tail, 2), "\n", "; ") + ")"
		}
		return s
	}
	return lastLines(err.Error(), 1)
}

// lookout watches a console for a word.
type lookout struct {
	want  string
	first chan struct{} // closed at the first character
	found chan struct{} // closed when the word has been seen
	buf   []byte
	some  bool
	done  bool
}

func (l *lookout) Write(p []byte) (int, error) { // called by one goroutine
	if len(p) > 0 && !l.some {
		l.some = true
		close(l.first)
	}
	if !l.done {
		l.buf = append(l.buf, p...)
		if strings.Contains(string(l.buf), l.want) {
			l.done = true
			close(l.found)
		}
		if n := len(l.buf) - len(l.want); n > 4096 {
			l.buf = append(l.buf[:0], l.buf[n:]...)
		}
	}
	return len(p), nil
}
