package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/vm"
)

// What makes machines and what the doctor says is one choice: it differed, and
// doctor called a host unusable that had no QEMU but a Firecracker that worked.
func TestDoctorNamesTheDriverThatMachinesGet(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // there is no QEMU
	for _, works := range []string{"qemu firecracker", "firecracker", "qemu", ""} {
		for _, want := range []string{"", "firecracker"} {
			home := t.TempDir()
			a := &app{out: io.Discard, err: io.Discard, getenv: func(k string) string {
				return map[string]string{"HEARTH_HOME": home, "HEARTH_DRIVER": want}[k]
			}}
			a.works = func(_ context.Context, d vm.Driver) error {
				if strings.Contains(works, d.Name()) {
					return nil
				}
				return errors.New("no " + d.Name())
			}
			dirs, err := a.dirs()
			if err != nil {
				t.Fatal(err)
			}
			set, err := a.drivers(dirs)
			if err != nil {
				t.Fatal(err)
			}
			name := ""
			d, err := choose(t.Context(), set, want, "")
			if err == nil {
				name = d.Name()
			}
			e := a.examine(t.Context())
			if e.Driver != name {
				t.Errorf("HEARTH_DRIVER=%q where %q works: doctor says %q, machines get %q (%v)", want, works, e.Driver, name, err)
			}
			for _, f := range e.Findings {
				if f.Name == "qemu" && f.State == stateFault && name == "firecracker" {
					t.Errorf("HEARTH_DRIVER=%q where %q works: that QEMU is missing is a fault", want, works)
				}
			}
		}
	}
}
