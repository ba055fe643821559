package image

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/archive"
)

// bootModules are the modules the guest needs before it has a root file
// system, for every driver: QEMU's virtio-mmio devices (announced by ACPI),
// Firecracker's vsock, the disks, the overlay. What they depend on is read out
// of the modules themselves. Their order here is kept where dependencies allow.
var bootModules = [...]string{
	"virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng",
	"overlay", "erofs",
	"vmw_vsock_virtio_transport",
}

// moduleName normalises as the kernel does: virtio-rng.ko is virtio_rng.
func moduleName(s string) string {
	return strings.ReplaceAll(strings.TrimSuffix(s, ".ko"), "-", "_")
}

// modinfo returns what a module's .modinfo section says it must be loaded
// after: depends= and the softer softdep=pre:.
func modinfo(ko []byte) (depends, soft []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, nil, fmt.Errorf("no .modinfo section")
	}
	data, err := io.ReadAll(io.LimitReader(section.Open(), 1<<20))
	if err != nil {
		return nil, nil, err
	}
	for entry := range strings.SplitSeq(string(data), "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "depends":
			for name := range strings.SplitSeq(value, ",") {
				if name != "" {
					depends = append(depends, moduleName(name))
				}
			}
		case "softdep":
			pre := false
			for word := range strings.FieldsSeq(value) {
				switch {
				case strings.HasSuffix(word, ":"):
					pre = word == "pre:"
				case pre:
					soft = append(soft, moduleName(word))
				}
			}
		}
	}
	return depends, soft, nil
}

// loadOrder returns the wanted modules and everything they depend on, each
// after its dependencies. A fixed list broke between two kernel updates
// (virtio_ring moved before virtio); only the modules know. load returns a
// module's bytes, and false when there is no such module; builtin says that
// the kernel has it inside, so that it is neither needed nor missing.
func loadOrder(want []string, load func(name string) ([]byte, bool), builtin func(name string) bool) ([]string, error) {
	var order []string
	const (
		visiting = 1
		done     = 2
	)
	state := map[string]int{}
	var visit func(name, parent string, hard bool) error
	visit = func(name, parent string, hard bool) error {
		name = moduleName(name)
		switch state[name] {
		case done:
			return nil
		case visiting:
			return fmt.Errorf("module %s depends on itself through %s", name, parent)
		}
		if builtin(name) {
			state[name] = done
			return nil
		}
		ko, ok := load(name)
		if !ok {
			if !hard {
				return nil
			}
			if parent != "" {
				return fmt.Errorf("module %s, which %s needs, is not in the kernel package", name, parent)
			}
			return fmt.Errorf("module %s is not in the kernel package", name)
		}
		state[name] = visiting
		depends, soft, err := modinfo(ko)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, d := range depends {
			if err := visit(d, name, true); err != nil {
				return err
			}
		}
		for _, d := range soft {
			if err := visit(d, name, false); err != nil {
				return err
			}
		}
		state[name] = done
		order = append(order, name)
		return nil
	}
	for _, name := range want {
		if err := visit(name, "", true); err != nil {
			return nil, err
		}
	}
	return slices.Clip(order), nil
}

// modulesVersion changes whenever the way the disk of modules is made does.
const modulesVersion = "1"

const modulesName = "modules.erofs"

// buildModules fills dir with the disk that goes to /usr/lib/modules: all modules of
// the kernel, for root in a job, as on GitHub's runner: loop mounts, network name
// spaces, firewalls, container engines. depmod has been there, for an emulated
// machine takes seconds for what takes this one a moment.
func (b *builder) buildModules(ctx context.Context, dir string, kernel *Layer) (map[string]string, error) {
	for _, name := range []string{"depmod", "mkfs.erofs"} {
		if _, err := lookTool(name); err != nil {
			return nil, err
		}
	}
	deb, err := kernel.archive(b.dir)
	if err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(filepath.Join(b.dir, "tmp"), "tree-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	root, err := os.OpenRoot(work)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	step := b.step("modules")
	step.detail(0, "unpacking "+filepath.Base(deb))
	const top = "lib/modules"
	err = readDeb(ctx, deb, func(r io.Reader) error {
		return archive.Each(r, archive.Limits{Entries: maxDebFiles, Names: maxDebNames, Bytes: maxModules}, func(h *tar.Header, r io.Reader) error {
			name := strings.TrimPrefix(strings.TrimPrefix(path.Clean("/"+h.Name), "/"), "usr/")
			if h.Typeflag != tar.TypeReg || !strings.HasPrefix(name, top+"/") {
				return nil
			}
			_, _, err := unpackFile(root, name, false, false, r)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", deb, err)
	}
	release := kernel.Info["release"]
	if release == "" || !filepath.IsLocal(release) {
		return nil, errors.New("the kernel has no release")
	}
	step.detail(0.5, "depmod")
	if _, err := (tool{argv: []string{"depmod", "--basedir", work, release}}).run(ctx); err != nil {
		return nil, err
	}
	list, err := kernel.packages()
	if err != nil {
		return nil, err
	}
	for i := range list.Packages {
		list.Packages[i].Archive = "" // the kernel's layer names it
	}
	if err := writePackages(dir, list.Packages, list.Archives); err != nil {
		return nil, err
	}
	step.detail(0.7, "packing")
	return map[string]string{"kernel": kernel.ID, "release": release}, packTools(ctx, filepath.Join(dir, modulesName), filepath.Join(work, top))
}
