package qemu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
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
	// are such, and the images of the disks.
)

// The paths that QEMU insists on opening itself. There is nothing at them: see
// jail.Cmd.Open.
const (
	kernelPath = "/jail/kernel"
	initrdPath = "/jail/initrd"
	memoryPath = "/jail/memory"
)

// image is one file of a disk. QEMU gets it open: for writing if it is what the
// guest writes to, for reading only if it is not.
type image struct {
	Path   string `json:"path"`
	Format string `json:"format"`
	fd     int
}

// drive is a disk: the image that the guest sees, and those below it, down to
// the one that stands on nothing. QEMU is told all of them. What a qcow2 image
// itself says about the one below it is never followed: a monitor that a guest
// has taken over could have written anything there, and it would be Hearth, with
// all its rights, who opens it.
type drive struct {
	ID       string
	ReadOnly bool
	Images   []image
}

// layout is what both a boot and a restore must agree on, or the state of the
// one would not fit the devices of the other.
type layout struct {
	ID        string
	Accel     accel
	CPUs      int
	MemoryMiB int
	Memory    bool // is a file, or nobody's business
	Shared    bool // writes go to that file (a template), or stay private (a clone)
	Drives    []drive
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
	if l.Memory {
		memory = "memory-backend-file,id=ram0,mem-path=" + memoryPath + ",share=" + onOff(l.Shared) + ",size=" + size
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
		// cannot start another, nor gain privileges. What is around that process is
		// package jail's.
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdMonitor), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", fdConsole), "-serial", "chardev:console",
		"-device", "virtio-serial-device",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d,server=on,wait=off", fdAgent),
		"-device", "virtserialport,chardev=agent,name=hearth.agent",
		"-object", "rng-builtin,id=rng0", "-device", "virtio-rng-device,rng=rng0",
	}
	for _, d := range l.Drives {
		for _, i := range d.Images {
			a = append(a, "-add-fd", fmt.Sprintf("fd=%d,set=%d", i.fd, i.fd))
		}
		a = append(a, "-blockdev", blockdev(d), "-device", "virtio-blk-device,drive="+d.ID+"-disk,serial="+d.ID)
	}
	if l.HasNet {
		a = append(a, "-netdev", fmt.Sprintf("stream,id=net0,addr.type=fd,addr.str=%d", l.NetFD),
			"-device", "virtio-net-device,netdev=net0,mac="+l.MAC)
	}
	return a
}

// blockdev describes a disk.
func blockdev(d drive) string {
	type node = map[string]any
	var below node
	for n := len(d.Images) - 1; n >= 0; n-- {
		i := d.Images[n]
		file := node{"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", i.fd), "discard": "unmap"}
		k := node{"driver": i.Format, "read-only": d.ReadOnly || n > 0, "file": file, "discard": "unmap"}
		if i.Format == "qcow2" {
			k["backing"] = below // nil is null: none, whatever the image says
		}
		if n == 0 {
			k["node-name"] = d.ID + "-disk"
		}
		if n == 0 && !d.ReadOnly {
			// What a job writes need not survive the host: the machine is thrown away
			// after it. Not waiting for the host's disk is the gain.
			k["cache"] = node{"direct": false, "no-flush": true}
			file["cache"] = k["cache"]
		} else {
			file["read-only"] = true
		}
		below = k
	}
	b, err := json.Marshal(below)
	if err != nil {
		panic(err) // strings and booleans always marshal
	}
	return string(b)
}

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
