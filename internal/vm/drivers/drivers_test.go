package drivers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/vm"
)

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		name  string
		works string // the drivers that do
		want  string
	}{
		{"", "qemu firecracker", "firecracker"},
		{"auto", "qemu firecracker", "firecracker"},
		{"auto", "firecracker", "firecracker"},
		{"auto", "qemu", "qemu"},
		{"auto", "", "error: no qemu"},
		{"qemu", "qemu firecracker", "qemu"},
		{"qemu", "firecracker", "error: no qemu"},
		{"firecracker", "qemu firecracker", "firecracker"},
		{"firecracker", "qemu", "error: no firecracker"},
		{"xen", "qemu firecracker", `error: driver "xen": want auto, qemu or firecracker`},
	} {
		s := New(Config{Works: func(_ context.Context, d vm.Driver) error {
			if strings.Contains(c.works, d.Name()) {
				return nil
			}
			return errors.New("no " + d.Name())
		}})
		d, err := s.Choose(t.Context(), c.name, "")
		got := fmt.Sprintf("error: %v", err)
		if err == nil {
			got = d.Name()
		}
		if got != c.want {
			t.Errorf("%q where %q works: %s, want %s", c.name, c.works, got, c.want)
		}
		if errors.Is(err, ErrName) != (c.name == "xen") {
			t.Errorf("%q: %v", c.name, err)
		}
	}
}

// A machine without a network is none for a job: a driver that can make only such
// ones does not work.
func TestWorksAsksForNetworks(t *testing.T) {
	no := errors.New("no namespaces")
	if err := Works(t.Context(), limited{network: no}); !errors.Is(err, no) {
		t.Errorf("without networks: %v", err)
	}
	if err := Works(t.Context(), limited{probe: no}); !errors.Is(err, no) {
		t.Errorf("without KVM: %v", err)
	}
	if err := Works(t.Context(), limited{}); err != nil {
		t.Error(err)
	}
}

type limited struct {
	vm.Driver
	probe, network error
}

func (l limited) Probe(context.Context) error        { return l.probe }
func (l limited) ProbeNetwork(context.Context) error { return l.network }
