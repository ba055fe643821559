// Package boot is the guest agent as the first process of a machine: it turns a
// kernel with an initramfs into something that serves the guest protocol.
//
// What happens, in order, is the list in [stages]: mount the kernel's file
// systems, load the modules the initramfs lists, configure the network, put
// the root together from disks, move into it, then serve. A stage that must
// succeed says so; if it fails, the console has a line with "FATAL" and the machine
// ends itself, which the driver sees at once. Every other failure is a line on the console and the
// machine goes on: a machine that can be talked to can be asked what is wrong with it.
//
// # Kernel command line
//
//	hearth.base=ID     read-only root file system (erofs, ext4, squashfs)
//	hearth.tools=ID    read-only file system for /opt/hearth
//	hearth.modules=ID  read-only file system for /usr/lib/modules
//	hearth.engine=ID   read-only file system with the container engine, below the base in the root
//	hearth.toolcache=ID  read-only file system with the tool cache, below the base in the root
//	hearth.scratch=ID  ext4 that takes what is written; without it, or without a file system on it: a tmpfs
//	hearth.net=ADDRESS/LENGTH,GATEWAY,DNS    static IPv4 address of the first network interface
//	hearth.host=NAME   host name
//
// ID is the serial number the driver gave the disk, or its name (vda). Without
// hearth.base the machine stays in its initramfs and serves from there.
//
// # Root
//
// The base and the scratch disk become an overlay, in which the agent then lives itself
// (its own program is in memory): paths mean the same to it, to commands, and to people. The initramfs is emptied.
//
// # Containers
//
// With hearth.engine the agent listens on /run/docker.sock, which the runner user may
// connect to (group docker), and starts the daemon when the first one does: a machine
// in which nobody does runs none. It prepares the machine for it then (a shared root,
// the modules for devices, the control groups' controllers). The daemon's log is
// /var/log/docker.log. Whoever wants it to answer at once connects before a snapshot.
//
// # Serving
//
// The virtio-serial port called hearth.agent and the vsock port 1024, whichever
// there is. The agent sleeps in one epoll until somebody speaks; nothing in it
// wakes up by itself.
package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/hearth-ci/hearth/internal/guest"
)

// machine is what the stages work on.
type machine struct {
	release string
	args    map[string]string // of the kernel's command line
	net     address           // as configured
	host    string
	disks   bool // the root is on disks
}

// stage is one thing to do. A failure ends the machine if it is needed.
type stage struct {
	name   string
	needed bool
	do     func(*machine) error
}

// stages is what makes a machine ready to serve, in order.
var stages = []stage{
	{"mount the kernel's file systems", true, (*machine).mountKernel},
	{"read the command line", true, (*machine).readCommandLine},
	{"check the timer", true, (*machine).checkTimer},
	{"load modules", false, (*machine).loadModules},
	{"set limits", false, (*machine).setLimits},
	{"bring up the loopback interface", false, (*machine).loopback},
	{"put the root together", true, (*machine).buildRoot},
	{"name the machine", false, func(m *machine) error { return m.setHostname(m.host) }},
	{"configure the network", false, (*machine).configureNetwork},
}

// Main boots and serves; it does not return. release is the program's version.
func Main(release string) {
	m := &machine{release: release}
	defer func() {
		if r := recover(); r != nil {
			m.fatal(fmt.Errorf("panic: %v\n%s", r, debug.Stack()))
		}
	}()
	// 077 is what some kernels' initramfs leaves; files made for a job must be readable to it.
	syscall.Umask(0o022)
	// Few and small objects live here: a small heap keeps a clone's private memory small.
	debug.SetGCPercent(50)
	for _, s := range stages {
		if err := s.do(m); err != nil {
			err = fmt.Errorf("%s: %w", s.name, err)
			if s.needed {
				m.fatal(err)
			}
			m.logf("%v", err)
		}
	}
	m.fatal(m.serve(context.Background()))
}

// logf writes to the console by way of the kernel's log: that is written out at once, where a write
// to the terminal depends on its interrupts and may wait. The level (critical) is one that "quiet" lets through.
func (m *machine) logf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, "hearth-guest:", text)
		return
	}
	defer f.Close()
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") { // a write is a line
		f.WriteString("<2>hearth-guest: " + line[:min(len(line), 900)] + "\n")
	}
}

// fatal says what went wrong and ends the machine.
func (m *machine) fatal(err error) {
	m.logf("FATAL: %v", err)
	m.Poweroff()
	select {} // the kernel is at it
}

// Poweroff writes back what is dirty and ends the machine. Restarting is what
// ends it: with reboot=t, QEMU (-no-reboot) and Firecracker (reboot=k) take it for the end.
func (m *machine) Poweroff() {
	syscall.Sync()
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func (m *machine) readCommandLine() error {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	m.args = parseCommandLine(string(b))
	m.host = m.args["hearth.host"]
	if m.host == "" {
		m.host = "hearth"
	}
	return nil
}

// parseCommandLine returns the words "key=value" of a kernel command line; the last of a key counts.
func parseCommandLine(s string) map[string]string {
	args := map[string]string{}
	for w := range strings.FieldsSeq(s) {
		k, v, _ := strings.Cut(w, "=")
		args[k] = v
	}
	return args
}

// setLimits raises what a build may need.
func (m *machine) setLimits() error {
	var errs []error
	const files = 1 << 16
	errs = append(errs, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: files, Max: files}))
	for _, s := range []struct{ name, value string }{
		{"kernel/printk_devkmsg", "on\n"}, // else the kernel drops all but the first lines of a trace
		{"fs/inotify/max_user_watches", "524288"},
		{"fs/inotify/max_user_instances", "1024"},
		{"vm/max_map_count", "262144"},
		{"net/ipv4/ping_group_range", "0 2147483647"},
	} {
		errs = append(errs, os.WriteFile("/proc/sys/"+s.name, []byte(s.value), 0))
	}
	return errors.Join(errs...)
}

// serve serves whatever channel there is, for ever. An error means that there is none.
func (m *machine) serve(ctx context.Context) error {
	server := guest.NewServer(guest.Options{
		Release:     m.release,
		Runner:      "runner",
		Environment: "/etc/environment",
		System:      m,
		ReapAll:     true,
		Logf:        m.logf,
	})
	if m.disks && m.args["hearth.engine"] != "" {
		if socket, err := m.offerEngine(); err != nil {
			m.logf("container engine: %v", err)
		} else {
			go func() { m.logf("container engine: %v", m.holdEngine(server, socket)) }()
		}
	}
	over := make(chan error, 2)
	go func() { over <- m.servePort(ctx, server) }()
	go func() { over <- m.serveVsock(ctx, server) }()
	// Each of the two returns only when it has nothing to serve.
	err := <-over
	m.logf("%v", err)
	return fmt.Errorf("no channel to the host: %w", errors.Join(err, <-over))
}
