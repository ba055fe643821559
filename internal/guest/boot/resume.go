package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"github.com/hearth-ci/hearth/internal/guest"
)

// Resume makes a restored machine another one than its template (guest.System).
// All of it is tried; the error says what did not work.
func (m *machine) Resume(id guest.Identity) error {
	var errs []error
	try := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	if len(id.Entropy) > 0 { // first: the rest may already draw from it
		try("entropy", addEntropy(id.Entropy))
	}
	if !id.Time.IsZero() {
		tv := syscall.NsecToTimeval(id.Time.UnixNano())
		try("clock", syscall.Settimeofday(&tv))
	}
	if id.Hostname != "" {
		try("host name", m.setHostname(id.Hostname))
	}
	if id.MachineID != "" {
		try("machine-id", setMachineID(id.MachineID))
	}
	if id.BootID != "" {
		try("boot id", setBootID(id.BootID))
	}
	if id.IP != "" {
		a, err := parseAddress(id.IP + "," + id.Gateway + "," + id.DNS)
		if err == nil {
			err = m.setNetwork(a, id.MAC)
		}
		try("network", err)
	} else if id.MAC != "" || id.Gateway != "" || id.DNS != "" {
		try("network", errors.New("a gateway, DNS server or MAC address without an IP address"))
	}
	return errors.Join(errs...)
}

// addEntropy mixes bytes into the kernel's generator, credits them, and has it
// use them now: until then two clones draw the same numbers.
func addEntropy(b []byte) error {
	const (
		rndAddEntropy = 0x40085203
		rndReseedCRNG = 0x5207
		most          = 512
	)
	b = b[:min(len(b), most)]
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	arg := binary.NativeEndian.AppendUint32(nil, uint32(len(b)*8))
	arg = binary.NativeEndian.AppendUint32(arg, uint32(len(b)))
	arg = append(arg, b...)
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), rndAddEntropy, uintptr(unsafe.Pointer(&arg[0]))); e != 0 {
		return fmt.Errorf("adding it: %w", e)
	}
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0); e != 0 {
		return fmt.Errorf("reseeding: %w", e)
	}
	return nil
}

// setHostname names the machine, for the kernel and for those who look names up.
func (m *machine) setHostname(name string) error {
	if name == "" || len(name) > 63 || strings.ContainsAny(name, " \t\n/") {
		return fmt.Errorf("%q is no host name", name)
	}
	if err := syscall.Sethostname([]byte(name)); err != nil {
		return err
	}
	m.host = name
	return errors.Join(
		replaceFile("/etc/hostname", name+"\n"),
		replaceFile("/etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\t"+name+"\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
	)
}

func setMachineID(id string) error {
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		return fmt.Errorf("%q is not 32 hexadecimal digits", id)
	}
	return replaceFile("/etc/machine-id", id+"\n")
}

// setBootID puts a file over the kernel's own, which is the template's and cannot be set.
func setBootID(id string) error {
	const file, proc = "/run/hearth/boot_id", "/proc/sys/kernel/random/boot_id"
	_, before := os.Stat(file)
	if err := replaceFile(file, id+"\n"); err != nil {
		return err
	}
	if before == nil {
		return nil // it lies there already
	}
	return syscall.Mount(file, proc, "", syscall.MS_BIND, "")
}
