package vmm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
)

// KVMDevice is what KVM is used through.
const KVMDevice = "/dev/kvm"

// Verdict says whether guests run under KVM on this host, and why.
type Verdict struct {
	KVM    bool          `json:"kvm"`
	Reason string        `json:"reason"` // a clause for people: "a guest booted under it in 310 ms"
	Took   time.Duration `json:"took"`   // of the probe
	Time   time.Time     `json:"time"`
	Cached bool          `json:"-"` // an earlier process found out
}

// KVM finds verdicts out and keeps them. That the device opens says little: there
// are hosts where it does, creates machines, and no guest ever gets going. So a
// verdict is that of a probe, which boots a guest, and is kept by host, kernel and
// VMM, since the failing kind of probe takes seconds.
type KVM struct {
	dir, prefix string
	log         *slog.Logger
	turn        chan struct{} // held by whoever finds out: one probe answers for all
	verdicts    map[string]Verdict
}

// NewKVM returns one that keeps its verdicts in files of dir whose names begin with
// prefix, or, where dir is "", in memory only.
func NewKVM(dir, prefix string, log *slog.Logger) *KVM {
	return &KVM{dir: dir, prefix: prefix, log: log, turn: make(chan struct{}, 1), verdicts: map[string]Verdict{}}
}

// Verdict decides whether guests with this kernel run under KVM, which is for asking
// where the device opens: see [Opens]. The first call on a host has probe find out.
// kernel is "" for a probe that needs none, and with is what else the answer depends
// on: the VMM's version.
func (k *KVM) Verdict(ctx context.Context, kernel, with string, probe func(context.Context) (Verdict, error)) (Verdict, error) {
	key, err := verdictKey(kernel, with)
	if err != nil {
		return Verdict{}, err
	}
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return Verdict{}, context.Cause(ctx)
	}
	if v, ok := k.verdicts[key]; ok {
		return v, nil
	}
	v, ok := k.load(key)
	if !ok {
		if v, err = probe(ctx); err != nil {
			return Verdict{}, fmt.Errorf("find out whether KVM works: %w", err)
		}
		if err := k.save(key, v); err != nil { // costs the next process a probe
			k.log.Warn("cannot keep the verdict on KVM", "err", err)
		}
	}
	k.verdicts[key] = v
	k.log.Info("found out about KVM", "driver", with, "kvm", v.KVM, "reason", v.Reason, "cached", v.Cached)
	return v, nil
}

// Opens says, where device cannot be opened, that there is no KVM and why; ok is
// false then. It changes with a group membership, and is cheap to ask: never kept.
func Opens(device string) (v Verdict, ok bool) {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Verdict{Reason: "there is no " + device}, false
	case errors.Is(err, os.ErrPermission):
		return Verdict{Reason: "no permission to open " + device + ": run `sudo usermod -aG kvm $USER` and log in again"}, false
	case err != nil:
		return Verdict{Reason: err.Error()}, false
	}
	f.Close()
	return Verdict{}, true
}

func verdictKey(kernel, with string) (string, error) {
	h := sha256.New()
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	release, _ := os.ReadFile("/proc/version")
	fmt.Fprintf(h, "%s\n%s\n%s\n%s\n", boot, release, CPUModel(), with)
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

func (k *KVM) file(key string) string { return filepath.Join(k.dir, k.prefix+key+".json") }

func (k *KVM) load(key string) (v Verdict, ok bool) {
	if k.dir == "" {
		return v, false
	}
	b, err := os.ReadFile(k.file(key))
	if err != nil || json.Unmarshal(b, &v) != nil || v.Reason == "" {
		return Verdict{}, false
	}
	v.Cached = true
	return v, true
}

func (k *KVM) save(key string, v Verdict) error {
	if k.dir == "" {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return err
	}
	tmp := fmt.Sprintf("%s.%d", k.file(key), os.Getpid())
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, k.file(key))
}

// Silence is how long a guest under KVM may take to print its first character,
// which a working one does within milliseconds.
const Silence = 3 * time.Second

var errTooLong = errors.New("the probe took too long")

// Probe boots a guest to see whether one gets going.
type Probe struct {
	VMM, Device string // what they are called
	Guest       string // as well: "a kernel"
	Word        string // what it says on its console when it is up
	Limit       time.Duration
	Dir         string            // below which it has its directory; "" is the system's own
	Files       map[string][]byte // that are in there, by name

	// Start starts the guest; its spec is complete but for kernel and command line.
	Start func(ctx context.Context, spec vm.Spec) (vm.Machine, error)
	Log   *slog.Logger
}

// Run boots. The verdict is about the host; the error about our not having been
// able to ask.
func (p Probe) Run(ctx context.Context) (Verdict, error) {
	if p.Dir == "" {
		p.Dir = os.TempDir()
	}
	base := filepath.Join(p.Dir, fmt.Sprintf("hearth-probe-%d", os.Getuid()))
	if err := os.MkdirAll(base, 0o700); err != nil {
		return Verdict{}, err
	}
	if _, err := vm.Reap(ctx, base, time.Minute); err != nil { // what a probe that was killed left
		p.Log.Warn("cannot remove what is left of an earlier probe", "err", err)
	}
	dir, err := os.MkdirTemp(base, "")
	if err != nil {
		return Verdict{}, err
	}
	defer os.RemoveAll(dir)
	for name, b := range p.Files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return Verdict{}, err
		}
	}
	seen := &lookout{want: p.Word, first: make(chan struct{}), found: make(chan struct{})}
	start := time.Now()
	probing, cancel := context.WithTimeoutCause(ctx, p.Limit, errTooLong)
	defer cancel()
	verdict := func(ok bool, format string, a ...any) (Verdict, error) {
		return Verdict{KVM: ok, Reason: fmt.Sprintf(format, a...), Took: time.Since(start), Time: start.UTC()}, nil
	}
	m, err := p.Start(probing, vm.Spec{ID: fmt.Sprintf("probe-%d", os.Getpid()), CPUs: 1, MemoryMiB: 256, Dir: dir, Console: seen})
	if err != nil {
		if ctx.Err() != nil {
			return Verdict{}, context.Cause(ctx)
		}
		return verdict(false, "%s exists, but %s cannot use it: %s", p.Device, p.VMM, oneLine(err))
	}
	defer m.Close(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- m.Wait() }()
	quiet := time.NewTimer(Silence)
	defer quiet.Stop()
	for {
		select {
		case <-seen.found:
			return verdict(true, "%s booted under it in %d ms", p.Guest, time.Since(start).Milliseconds())
		case <-quiet.C:
			select {
			case <-seen.first:
			default:
				return verdict(false, "%s exists and opens, but a guest did not print a character in %v: this host has no working hardware virtualisation", p.Device,
					Silence)
			}
		case err := <-ended:
			select {
			case <-seen.found:
				continue
			default:
			}
			return verdict(false, "%s exists, but a guest ended before it had booted: %s", p.Device, oneLine(err))
		case <-probing.Done():
			if ctx.Err() != nil {
				return Verdict{}, context.Cause(ctx)
			}
			last := strings.ReplaceAll(vm.LastLines(m.Tail(), 2), "\n", "; ")
			return verdict(false, "%s exists, but a guest did not boot within %v; the last it said: %s", p.Device, p.Limit, last)
		}
	}
}

func oneLine(err error) string {
	var e *vm.Error
	switch {
	case err == nil:
		return "it said nothing"
	case errors.As(err, &e):
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

var _ io.Writer = (*lookout)(nil)

func (l *lookout) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.some && len(p) > 0 {
		l.some = true
		close(l.first)
	}
	l.buf = append(l.buf, p...)
	if !l.done && strings.Contains(string(l.buf), l.want) {
		l.done = true
		close(l.found)
	}
	if n := len(l.buf) - len(l.want); n > 4096 {
		l.buf = append(l.buf[:0], l.buf[n:]...)
	}
	return len(p), nil
}
