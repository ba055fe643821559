package image

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// initrdVersion changes whenever the way the initrd is made does.
const initrdVersion = "4"

const initrdName = "initrd.cpio"

// ModulesList is the file in the initrd that names the modules to load: one
// absolute path a line, each after what it depends on.
const ModulesList = "/etc/hearth/modules"

// buildInitrd writes the initrd: the agent as /init, the boot modules, and the
// few nodes and directories it needs before it has mounted anything. It is not
// compressed: unpacking costs more under emulation than reading does.
func (b *builder) buildInitrd(ctx context.Context, dir string, kernel *Layer, agent string) (map[string]string, error) {
	b.step("initrd").detail(0, "agent and modules")
	init, err := readAgent(agent)
	if err != nil {
		return nil, err
	}
	order, err := os.ReadFile(kernel.path(orderName))
	if err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, initrdName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w := newCPIOWriter(f)
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "root", "mnt", "etc", "etc/hearth", "lib", "lib/modules"} {
		w.Dir(d)
	}
	// The kernel opens the console for /init before devtmpfs is mounted.
	w.Char("dev/console", 0o600, 5, 1)
	w.Char("dev/null", 0o666, 1, 3)
	w.Char("dev/kmsg", 0o600, 1, 11)
	w.File("init", 0o755, init)
	var list strings.Builder
	for name := range strings.FieldsSeq(string(order)) {
		ko, err := os.ReadFile(kernel.path(name + ".ko"))
		if err != nil {
			return nil, err
		}
		w.File("lib/modules/"+name+".ko", 0o644, ko)
		list.WriteString("/lib/modules/" + name + ".ko\n")
	}
	w.File(ModulesList, 0o644, []byte(list.String()))
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	packages, err := goPackages(agent, b.opt.AgentVersion)
	if err != nil {
		return nil, err
	}
	if err := writePackages(dir, packages, nil); err != nil {
		return nil, err
	}
	return map[string]string{"kernel": kernel.ID}, nil
}

// readAgent reads the agent and makes sure that a guest without any libraries
// can run it.
func readAgent(path string) ([]byte, error) {
	if path == "" {
		return nil, fmt.Errorf("no guest agent given: build it with `make build`, which leaves bin/hearth-guest beside bin/hearth")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("guest agent: %w", err)
	}
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("guest agent %s: %w", path, err)
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return nil, fmt.Errorf("guest agent %s is for %s, not x86-64", path, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil, fmt.Errorf("guest agent %s is dynamically linked: build it with CGO_ENABLED=0", path)
		}
	}
	return data, nil
}
