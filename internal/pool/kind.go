package pool

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/vm"
)

const (
	// bootLimit is how long a machine may take from its start until its agent
	// answers. Emulation on a busy host is slow; a hang is for ever.
	bootLimit = 60 * time.Second
	// restoreLimit is the same for a clone.
	restoreLimit = 30 * time.Second
	// warmLife is how long a machine may wait to be claimed.
	warmLife = 12 * time.Hour
	// templateCommandLimit bounds what is run in a template to warm it.
	templateCommandLimit = 3 * time.Minute
	// closeLimit is how long ending a machine may take where nobody says.
	closeLimit = 15 * time.Second
)

// kind is machines that are alike: driver, image, size. What they are cloned
// from, and those that are ready.
type kind struct {
	pool   *Pool
	key    string
	driver vm.Driver
	img    *image.Image
	src    source
	cpus   int
	memory int
	// containers says that the container engine runs in the template already.
	containers bool

	tmpl    chan struct{} // held while looking for or making the template
	dir     string        // the template, once verified; guarded by tmpl
	name    string        // of that one template; guarded by tmpl
	tmplKey string        // guarded by tmpl

	// Guarded by Pool.mu.
	warm      []*instance
	wanted    bool      // warm ones are to be kept
	failures  int       // in a row, of making warm ones
	notBefore time.Time // next try
	release   func()    // lets go of the image
}

// source is what keeps templates: an [image.Image], but for tests.
type source interface {
	Template(ctx context.Context, key string, create func(ctx context.Context, dir string) error) (string, error)
	DropTemplate(key string) error
	Hold() (release func(), err error)
}

// instance is a machine with its agent connected.
type instance struct {
	mu      sync.Mutex
	pool    *Pool
	id      string
	dir     string
	machine vm.Machine
	client  *guest.Client // guarded by mu once the machine is in use
	cable   net.Conn      // from the machine's network device; nil if it has none
	made    time.Time
	writing sync.WaitGroup // of its record
	done    chan struct{}  // closed when the machine has ended
	err     error          // why, then
}

// spec is a machine of this kind without what is each machine's own.
func (k *kind) spec(id, dir string) vm.Spec {
	s := Spec(k.img, k.cpus, k.memory)
	s.ID, s.Dir, s.Net = id, dir, filepath.Join(dir, netName)
	s.DeleteBy = time.Now().Add(warmLife)
	return s
}

// Spec is how the pool boots an image: everything but ID, Dir, Net and the
// machine's own disk, which is called "scratch" and comes last where the image
// has a root file system.
func Spec(img *image.Image, cpus, memoryMiB int) vm.Spec {
	s := vm.Spec{
		Kernel: img.Kernel, Initrd: img.Initrd, CPUs: cpus, MemoryMiB: memoryMiB, MAC: vm.DefaultMAC,
		Cmdline: fmt.Sprintf("quiet loglevel=4 hearth.host=hearth hearth.net=%s/%d,%s,%s",
			network.Guest, network.Subnet.Bits(), network.Gateway, network.DNS),
	}
	if img.Base != "" {
		s.Cmdline += " hearth.base=base hearth.scratch=scratch"
		s.Disks = append(s.Disks, vm.Disk{ID: "base", Path: img.Base, ReadOnly: true})
		if img.Tools != "" {
			s.Cmdline += " hearth.tools=tools"
			s.Disks = append(s.Disks, vm.Disk{ID: "tools", Path: img.Tools, ReadOnly: true})
		}
		if img.Modules != "" {
			s.Cmdline += " hearth.modules=modules"
			s.Disks = append(s.Disks, vm.Disk{ID: "modules", Path: img.Modules, ReadOnly: true})
		}
		if img.Engine != "" {
			s.Cmdline += " hearth.engine=engine"
			s.Disks = append(s.Disks, vm.Disk{ID: "engine", Path: img.Engine, ReadOnly: true})
		}
		if img.Cache != "" {
			s.Cmdline += " hearth.toolcache=toolcache"
			s.Disks = append(s.Disks, vm.Disk{ID: "toolcache", Path: img.Cache, ReadOnly: true})
		}
	}
	return s
}

const netName = "net.sock"

// boots is how often a machine is started that does not come up. A kernel
// measures its timers while it boots, and on a host that is too busy at that
// moment it measures nonsense and cannot go on; the agent then ends the machine.
const boots = 3

// boot starts a machine from nothing.
func (k *kind) boot(ctx context.Context, template bool) (*instance, error) {
	for try := 1; ; try++ {
		i, err := k.bootOnce(ctx, template)
		if err == nil || try == boots || !errors.Is(err, errNotUp) || ctx.Err() != nil {
			return i, err
		}
		k.pool.log.Warn("a machine did not come up and is started again", "kind", k.key, "err", err)
	}
}

func (k *kind) bootOnce(ctx context.Context, template bool) (*instance, error) {
	return k.pool.assemble(ctx, bootLimit, func(ctx context.Context, id, dir string) (vm.Machine, error) {
		s := k.spec(id, dir)
		s.Template = template
		if k.img.Base != "" {
			empty, err := image.Scratch(ctx, filepath.Join(k.pool.cfg.CacheDir, "scratch"), k.pool.cfg.ScratchMiB<<20)
			if err != nil {
				return nil, err
			}
			own := filepath.Join(dir, "scratch.img")
			if err := vm.CopySparse(ctx, own, empty); err != nil {
				return nil, err
			}
			s.Disks = append(s.Disks, vm.Disk{ID: "scratch", Path: own})
		}
		return k.driver.Start(ctx, s)
	})
}

// make returns a new machine, cloned if the driver can. One that is made ahead
// is touched; where somebody waits for it, their command may as well be the first.
func (k *kind) make(ctx context.Context, ahead bool) (*instance, error) {
	i, err := k.fresh(ctx)
	if err != nil || !ahead {
		return i, err
	}
	if err := k.pool.touch(ctx, i); err != nil {
		return nil, errors.Join(err, i.closeSoon(ctx))
	}
	return i, nil
}

func (k *kind) fresh(ctx context.Context) (*instance, error) {
	if !k.driver.Capabilities().Snapshots {
		return k.boot(ctx, false)
	}
	for again := false; ; again = true {
		dir, err := k.template(ctx)
		if err != nil {
			return nil, err
		}
		i, err := k.pool.assemble(ctx, restoreLimit, func(ctx context.Context, id, mdir string) (vm.Machine, error) {
			s := k.spec(id, mdir)
			s.Kernel, s.Initrd, s.Cmdline = "", "", ""
			return k.driver.Restore(ctx, dir, s)
		})
		if errors.Is(err, vm.ErrSnapshot) && !again {
			k.pool.log.Warn("the template cannot be used and is made again", "kind", k.key, "err", err)
			if err := k.forget(ctx, dir); err != nil {
				return nil, err
			}
			continue
		}
		return i, err
	}
}

// template returns the directory of this kind's snapshot, made and verified.
func (k *kind) template(ctx context.Context) (string, error) {
	if !k.driver.Capabilities().Snapshots {
		return "", nil // machines of this driver are booted one by one
	}
	if err := k.lock(ctx); err != nil {
		return "", err
	}
	defer k.unlock()
	if k.dir != "" {
		return k.dir, nil
	}
	if err := k.hold(); err != nil {
		return "", err
	}
	finger, err := k.driver.Fingerprint(ctx, k.spec("none", "none"))
	if err != nil {
		return "", err
	}
	k.tmplKey = fmt.Sprintf("%s/%d/%d/scratch-%d/template-%s", finger, k.cpus, k.memory, k.pool.cfg.ScratchMiB, templateVersion)
	if k.containers {
		k.tmplKey += "/containers"
	}
	for again := false; ; again = true {
		began, made := time.Now(), false
		dir, err := k.src.Template(ctx, k.tmplKey, func(ctx context.Context, dir string) error {
			made = true
			return k.makeTemplate(ctx, dir)
		})
		if err != nil {
			return "", err
		}
		if made {
			k.pool.log.Info("template made", "kind", k.key, "took", time.Since(began).Round(time.Millisecond))
		} else if err := k.driver.Verify(ctx, dir); errors.Is(err, vm.ErrSnapshot) && !again {
			// Once a process: a flipped bit in a template's memory would be in
			// every machine.
			k.pool.log.Warn("the template is damaged and is made again", "kind", k.key, "err", err)
			if err := k.src.DropTemplate(k.tmplKey); err != nil {
				return "", err
			}
			continue
		} else if err != nil {
			return "", err
		}
		k.dir, k.name = dir, ""
		return dir, nil
	}
}

// templateVersion changes whenever makeTemplate or spec do.
const templateVersion = "3"

// hold keeps the image from being collected while the pool lives.
func (k *kind) hold() error {
	k.pool.mu.Lock()
	held := k.release != nil
	k.pool.mu.Unlock()
	if held {
		return nil
	}
	release, err := k.src.Hold()
	if err != nil {
		return err
	}
	k.pool.mu.Lock()
	defer k.pool.mu.Unlock()
	if k.release != nil || k.pool.closed { // another claim was quicker, or all is over
		release()
		return nil
	}
	k.release = release
	return nil
}

// forget drops the template dir, unless another claim has already done so.
func (k *kind) forget(ctx context.Context, dir string) error {
	if err := k.lock(ctx); err != nil {
		return err
	}
	defer k.unlock()
	if k.dir != dir {
		return nil
	}
	k.dir = ""
	return k.src.DropTemplate(k.tmplKey)
}

func (k *kind) lock(ctx context.Context) error {
	select {
	case k.tmpl <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (k *kind) unlock() { <-k.tmpl }

func (k *kind) makeTemplate(ctx context.Context, dir string) error {
	i, err := k.boot(ctx, true)
	if err != nil {
		return err
	}
	defer i.closeSoon(ctx)
	if k.img.Base != "" && k.pool.cfg.Touch == nil {
		warming, cancel := context.WithTimeout(ctx, templateCommandLimit)
		_, err := i.client.Exec(warming, guest.Cmd{Argv: []string{"/bin/sh", "-c", templateTouch}, User: "root", Timeout: templateTouchLimit})
		cancel()
		if err != nil {
			return i.explain("first commands", err)
		}
	}
	if err := k.pool.touch(ctx, i); err != nil {
		return err
	}
	if k.containers {
		if err := i.startEngine(ctx); err != nil {
			return err
		}
	}
	if err := i.client.Sync(ctx); err != nil {
		return i.explain("sync", err)
	}
	i.client.Close()
	return i.machine.Snapshot(ctx, dir)
}

// engineTouch has the agent start the container engine, and asks it often enough that
// neither it nor its command has anything left to read or to translate.
const engineTouch = `set -e; for i in 1 2 3; do docker version; docker info; done`

// startEngine brings the container engine up in a template.
func (i *instance) startEngine(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, templateCommandLimit)
	defer cancel()
	var said vm.Console
	exit, err := i.client.Exec(ctx, guest.Cmd{Argv: []string{"/bin/sh", "-c", engineTouch}, User: "root", Dir: "/", Stdout: io.Discard, Stderr: &said})
	if err != nil {
		return i.explain("starting the container engine", err)
	}
	if !exit.OK() {
		return fmt.Errorf("machine %s: starting the container engine: %s: %s", i.id, exit, said.Tail())
	}
	return nil
}

// errNotUp is that a machine was started and its agent did not answer.
var errNotUp = errors.New("the machine did not come up")

// assemble makes a machine's directory, has start start it, and connects its
// cable and its agent. When it fails, nothing is left.
func (p *Pool) assemble(ctx context.Context, limit time.Duration, start func(ctx context.Context, id, dir string) (vm.Machine, error)) (_ *instance,
	err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the machine was not ready within %v", limit))
	defer cancel()
	stop := context.AfterFunc(p.ctx, cancel)
	defer stop()
	i := &instance{pool: p, id: newID(), made: time.Now(), done: make(chan struct{})}
	// The driver writes a fuller record when the VMM runs. If we are killed before
	// that, this one lets the next process know that nobody needs what is here.
	if i.dir, err = vm.MakeDir(p.machines, i.id); err != nil {
		return nil, err
	}
	l, err := vm.ListenUnix(filepath.Join(i.dir, netName))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(i.dir))
	}
	defer l.Close()
	m, err := start(ctx, i.id, i.dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(i.dir))
	}
	i.machine = m
	p.wg.Go(func() {
		i.err = m.Wait()
		close(i.done)
	})
	if err := i.plug(ctx, l); err != nil {
		return nil, errors.Join(err, i.closeSoon(ctx))
	}
	if err := i.connect(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", errNotUp, err), i.closeSoon(ctx))
	}
	return i, nil
}

// plug accepts the machine's cable. The driver has connected it by now.
func (i *instance) plug(ctx context.Context, l *net.UnixListener) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(restoreLimit)
	}
	l.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c, err := l.Accept()
	if err != nil {
		return i.explain("connect its network", err)
	}
	i.cable = c
	return nil
}

// connect reaches the agent, or finds out that the machine has ended.
func (i *instance) connect(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	over := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-i.done:
			cancel(i.ended())
		case <-over:
		}
	}()
	c, err := guest.Connect(ctx, i.machine.Dial)
	close(over)
	<-watched
	if err != nil {
		return i.explain("connect", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.client = c
	return nil
}

// agent is the connection to the agent as it is now.
func (i *instance) agent() *guest.Client {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.client
}

// ended says why the machine is over; call it after done.
func (i *instance) ended() error {
	if i.err != nil {
		return i.err
	}
	return fmt.Errorf("machine %s has ended", i.id)
}

// explain adds to an error of talking to the machine why that may be: its end,
// or what it printed last.
func (i *instance) explain(op string, err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-i.done:
		if i.err != nil && !errors.Is(err, i.err) {
			err = fmt.Errorf("%w: %w", err, i.err)
		}
	case <-time.After(50 * time.Millisecond):
		// The stream ends a moment before the process is known to have.
	}
	return vm.Explain(i.machine, op, err)
}

// touches is how often the first command is run. An emulator translates code
// when it first runs, and the second run of a program still takes paths that the
// first did not.
const touches = 6

// touch gives the machine an identity and runs the first command.
func (p *Pool) touch(ctx context.Context, i *instance) error {
	ctx, cancel := context.WithTimeout(ctx, restoreLimit)
	defer cancel()
	if err := i.client.Resume(ctx, identity(i.id)); err != nil {
		return i.explain("resume", err)
	}
	argv := p.cfg.Touch
	if argv == nil {
		argv = defaultTouch
	}
	if len(argv) == 0 {
		return nil
	}
	for range touches {
		// As at the claim.
		if err := i.client.Resume(ctx, guest.Identity{Time: time.Now()}); err != nil {
			return i.explain("resume", err)
		}
		exit, err := i.client.Exec(ctx, guest.Cmd{Argv: argv, User: "root", Dir: "/", Stdout: io.Discard})
		switch {
		case guest.StartFailed(err) && p.cfg.Touch == nil:
			return nil // an image without a shell
		case err != nil:
			return i.explain("first command", err)
		case !exit.OK():
			return fmt.Errorf("machine %s: first command %q: %s", i.id, argv, exit)
		}
	}
	return nil
}

// identity makes a clone somebody of its own.
func identity(id string) guest.Identity {
	var b [16 + 16 + 64]byte
	rand.Read(b[:])
	u := b[16:32]
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80 // a random UUID
	return guest.Identity{
		Hostname:  "hearth-" + id,
		Time:      time.Now(),
		Entropy:   slices.Clone(b[32:]),
		MachineID: fmt.Sprintf("%x", b[:16]),
		BootID:    fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]),
	}
}

// usable reports whether a waiting machine is still good.
func (i *instance) usable() bool {
	select {
	case <-i.done:
		return false
	case <-i.client.Done():
		return false
	default:
		return time.Since(i.made) < warmLife/2
	}
}

func (i *instance) close(ctx context.Context) error {
	i.writing.Wait()
	if c := i.agent(); c != nil {
		c.Close()
	}
	if i.cable != nil {
		i.cable.Close()
	}
	return i.machine.Close(ctx)
}

// closeSoon closes even where ctx has ended.
func (i *instance) closeSoon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	return i.close(ctx)
}

// refill tells the filler to look.
func (p *Pool) refill() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// filler keeps machines ready, one at a time.
func (p *Pool) filler() {
	for {
		var retry <-chan time.Time
		k, drop, wait := p.next()
		for _, i := range drop {
			if err := i.closeSoon(p.ctx); err != nil {
				p.log.Warn("cannot end a machine that was waiting", "machine", i.id, "err", err)
			}
		}
		if k != nil {
			p.fill(k)
			continue
		}
		if wait > 0 {
			retry = time.After(wait)
		}
		select {
		case <-p.wake:
		case <-retry:
		case <-p.ctx.Done():
			return
		}
	}
}

// next decides what the filler does: machines to end, a kind to make one of, or
// how long until it should look again.
func (p *Pool) next() (make *kind, drop []*instance, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, 0
	}
	for _, k := range p.kinds {
		k.warm = slices.DeleteFunc(k.warm, func(i *instance) bool {
			over := p.used.MemoryMiB+p.warmMiB > p.cfg.Means.MemoryMiB
			if i.usable() && !over {
				return false
			}
			drop = append(drop, i)
			p.warmMiB -= k.memory
			return true
		})
	}
	now := time.Now()
	// A clone takes a whole CPU for a moment: let the job that was just given a
	// machine have its first one.
	if d := p.lastClaim.Add(settle).Sub(now); d > 0 && p.cfg.Warm > 0 {
		return nil, drop, d
	}
	for _, k := range p.kinds {
		if !k.wanted || len(k.warm) >= p.cfg.Warm || p.used.MemoryMiB+p.warmMiB+k.memory > p.cfg.Means.MemoryMiB {
			continue
		}
		if d := k.notBefore.Sub(now); d > 0 {
			if wait == 0 || d < wait {
				wait = d
			}
			continue
		}
		if make == nil || len(k.warm) < len(make.warm) {
			make = k
		}
	}
	return make, drop, wait
}

// settle is how long the filler leaves the host to a new lease.
const settle = 250 * time.Millisecond

// fill makes one machine of kind k and puts it among those that are ready.
func (p *Pool) fill(k *kind) {
	i, err := k.make(p.ctx, true)
	p.mu.Lock()
	if err == nil && !p.closed {
		k.failures = 0
		k.warm = append(k.warm, i)
		p.warmMiB += k.memory
		p.stats.Made++
		p.mu.Unlock()
		return
	}
	if err != nil {
		k.failures++
		k.notBefore = time.Now().Add(min(time.Minute, time.Second<<min(k.failures, 6)))
	}
	p.mu.Unlock()
	if err == nil {
		i.closeSoon(p.ctx)
	} else if p.ctx.Err() == nil {
		p.log.Warn("cannot make a machine ahead of need", "kind", k.key, "err", err)
	}
}
