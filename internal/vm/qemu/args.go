package qemu

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hearth-ci/hearth/internal/vm"
)

// accel is how the guest's processor is made.
type accel string

const (
	kvm accel = "kvm" // by the host's, with its virtualisation extensions
	tcg accel = "tcg" // by emulation, in software
)

// The files that QEMU inherits, by number. None of them is found by a path, so
// that there is no moment at which a socket does not exist yet, and no path
// that could be too long for one.
const (
	fdMonitor = 3 // one end of a socket pair: QMP
	fdConsole = 4 // one end of a socket pair: the serial console
	fdAgent   = 5 // listening socket: the agent's channel
	// Then the network's connected socket and the incoming state, where there
	// are such.
)

// layout is what both a boot and a restore must agree on, or the state of the
// one would not fit the devices of the other.
type layout struct {
	ID        string
	Accel     accel
	CPUs      int
	MemoryMiB int
	Memory    string // path of the memory file, "" for memory without one
	Shared    bool   // writes go to that file (a template), or stay private (a clone)
	Disks     []vm.Disk
	NetFD     int // connected socket, if HasNet
	HasNet    bool
	MAC       string
}

func (l layout) args() []string {
	cpu := "max"
	if l.Accel == kvm {
		cpu = "host"
	}
	size := strconv.Itoa(l.MemoryMiB) + "M"
	memory := "memory-backend-ram,id=ram0,size=" + size
	if l.Memory != "" {
		memory = "memory-backend-file,id=ram0,mem-path=" + comma(l.Memory) + ",share=" + onOff(l.Shared) + ",size=" + size
	}
	a := []string{
		"-name", "hearth-" + l.ID,
		// ACPI, since Debian's kernels do not take virtio-mmio devices from the
		// command line.
		"-M", "microvm,acpi=on,memory-backend=ram0",
		"-accel", string(l.Accel),
		"-cpu", cpu,
		"-smp", strconv.Itoa(l.CPUs),
		"-m", size,
		"-object", memory,
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		// A guest that breaks out of the emulator finds itself in a process that
		// cannot start another, nor gain privileges.
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdMonitor), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", fdConsole), "-serial", "chardev:console",
		"-device", "virtio-serial-device",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d,server=on,wait=off", fdAgent),
		"-device", "virtserialport,chardev=agent,name=hearth.agent",
		"-object", "rng-builtin,id=rng0", "-device", "virtio-rng-device,rng=rng0",
	}
	for _, d := range l.Disks {
		a = append(a, "-blockdev", blockdev(d), "-device", "virtio-blk-device,drive="+d.ID+"-disk,serial="+d.ID)
	}
	if l.HasNet {
		a = append(a, "-netdev", fmt.Sprintf("stream,id=net0,addr.type=fd,addr.str=%d", l.NetFD),
			"-device", "virtio-net-device,netdev=net0,mac="+l.MAC)
	}
	return a
}

// blockdev describes a disk as JSON, so that no character in its path matters.
func blockdev(d vm.Disk) string {
	path, err := filepath.Abs(d.Path)
	if err != nil {
		path = d.Path
	}
	type node = map[string]any
	file := node{"driver": "file", "filename": path, "discard": "unmap"}
	n := node{"driver": d.Format, "node-name": d.ID + "-disk", "read-only": d.ReadOnly, "file": file, "discard": "unmap"}
	if d.Format == "" {
		n["driver"] = "raw"
	}
	if !d.ReadOnly {
		// What a job writes need not survive the host: the machine is thrown away
		// after it. Not waiting for the host's disk is the gain.
		n["cache"] = node{"direct": false, "no-flush": true}
		file["cache"] = n["cache"]
	}
	b, err := json.Marshal(n)
	if err != nil {
		panic(err) // strings and booleans always marshal
	}
	return string(b)
}

// comma escapes a value for QEMU's option lists.
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// cmdline completes the guest kernel's command line with what QEMU's devices
// need. What the caller has set stays.
//
// Under emulation, two words more. QEMU keeps translated code by its virtual
// address, so that with address space randomisation every program that starts is
// translated anew: norandmaps makes fork and exec three times faster. And no
// processor speculates there, so that working around it only costs. Both are
// about the guest against its own programs; that a job gets out of the machine
// is kept off by other means.
func cmdline(given string, a accel, tsc int64) string {
	words := strings.Fields(given)
	has := func(prefix string) bool {
		for _, w := range words {
			if strings.HasPrefix(w, prefix) {
				return true
			}
		}
		return false
	}
	add := func(w string) {
		key, _, _ := strings.Cut(w, "=")
		if !has(key + "=") {
			words = append(words, w)
		}
	}
	add("console=ttyS0")
	add("reboot=t")
	add("panic=-1")
	if a == tcg {
		words = append(words, "norandmaps")
		add("mitigations=off")
	}
	if tsc > 0 {
		add("tsc_early_khz=" + strconv.FormatInt(tsc, 10))
		// Without it the kernel finds the counter "unstable" on a busy host and falls
		// back to counting jiffies: a clock of 4 ms steps that loses time, a system
		// call for every reading of it, and a boot that takes twice as long.
		add("tsc=reliable")
	}
	return strings.Join(words, " ")
}
