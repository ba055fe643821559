package firecracker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/vmm"
)

// Verdict says whether Firecracker can run machines on this host, and why.
type Verdict struct{ vmm.Verdict }

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

// noRoot is what a kernel says last that has got as far as wanting a root file
// system and has none.
const noRoot = "Unable to mount root fs"

// Verdict decides whether machines with this kernel run here. Where /dev/kvm
// can be opened, the first call on a host boots it to find out; without a
// kernel, a program of fifty bytes, whose success proves less.
func (d *Driver) Verdict(ctx context.Context, kernel string) (Verdict, error) {
	if no, ok := vmm.Opens(vmm.KVMDevice); !ok {
		return Verdict{no}, nil
	}
	_, version, err := d.find(ctx)
	if err != nil {
		return Verdict{}, err
	}
	p := vmm.Probe{
		VMM: "Firecracker", Device: vmm.KVMDevice, Guest: "a kernel", Word: noRoot, Limit: d.cfg.ProbeTimeout, Dir: d.cfg.CacheDir, Log: d.log,
		Start: func(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
			spec.Kernel, spec.Cmdline = kernel, "earlyprintk=ttyS0 loglevel=6"
			if kernel == "" {
				spec.Kernel = filepath.Join(spec.Dir, "program")
			}
			return d.boot(ctx, spec)
		},
	}
	if kernel == "" {
		p.Guest, p.Word, p.Limit = "a program without a kernel", probeWord, vmm.Silence
		p.Files = map[string][]byte{"program": probeProgram()}
	}
	v, err := d.kvm.Verdict(ctx, kernel, fingerprint(version), p.Run)
	return Verdict{v}, err
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
	return vmm.Program(0x1000000, append(code, msg...)) // where kernels are
}
