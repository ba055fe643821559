package qemu

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/vmm"
)

// Verdict says how machines run on this host, and why.
type Verdict struct{ vmm.Verdict }

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

// Verdict decides whether machines with this kernel run under KVM. Where
// /dev/kvm can be opened, the first call on a host boots a guest to find out.
func (d *Driver) Verdict(ctx context.Context, kernel string) (Verdict, error) {
	switch d.cfg.Accel {
	case "":
	case string(kvm), string(tcg):
		return Verdict{vmm.Verdict{KVM: d.cfg.Accel == string(kvm), Reason: "the configuration says so"}}, nil
	default:
		return Verdict{}, fmt.Errorf("unknown accelerator %q: want kvm, tcg or nothing", d.cfg.Accel)
	}
	if no, ok := vmm.Opens(d.device); !ok {
		return Verdict{no}, nil
	}
	if kernel == "" {
		return Verdict{}, errors.New("find out whether KVM works: that takes a kernel")
	}
	_, version, err := d.find(ctx)
	if err != nil {
		return Verdict{}, err
	}
	v, err := d.kvm.Verdict(ctx, kernel, "qemu-"+version, func(ctx context.Context) (vmm.Verdict, error) {
		// A kernel with a program that prints one line: see [probeInitrd].
		return vmm.Probe{
			VMM: "QEMU", Device: d.device, Guest: "a guest", Word: probeWord, Limit: d.cfg.ProbeTimeout,
			Dir: d.cfg.CacheDir, Files: map[string][]byte{"initrd": probeInitrd()}, Log: d.log,
			Start: func(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
				spec.Kernel, spec.Initrd, spec.Cmdline = kernel, filepath.Join(spec.Dir, "initrd"), "earlyprintk=ttyS0 console=ttyS0 quiet"
				return d.boot(ctx, spec, kvm)
			},
		}.Run(ctx)
	})
	return Verdict{v}, err
}
