package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"
)

// modulesList names, in the initramfs, the kernel modules to load: a path a line, in order.
const modulesList = "/etc/hearth/modules"

func (m *machine) loadModules() error {
	b, err := os.ReadFile(modulesList)
	if errors.Is(err, os.ErrNotExist) {
		return nil // everything is built in
	}
	if err != nil {
		return err
	}
	// One that is missing or refuses does not keep the others back: what it was for will be missed by name.
	for path := range strings.FieldsSeq(string(b)) {
		if err := loadModule(path); err != nil {
			m.logf("module %s: %v", path, err)
		}
	}
	return nil
}

// takeModules puts the modules of the initramfs where modprobe looks, for root in a job.
// What a disk brings of its own stays.
func takeModules(initramfs *os.Root) error {
	entries, err := fs.ReadDir(initramfs.FS(), "lib/modules")
	if err != nil || len(entries) == 0 {
		return err
	}
	var uts syscall.Utsname
	if err := syscall.Uname(&uts); err != nil {
		return err
	}
	release := make([]byte, 0, len(uts.Release))
	for _, c := range uts.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	dir := filepath.Join("/lib/modules", string(release))
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(dir, "kernel"), 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		b, err := initramfs.ReadFile("lib/modules/" + e.Name())
		if err != nil {
			return err
		}
		to := dir
		if strings.HasSuffix(e.Name(), ".ko") {
			to = filepath.Join(dir, "kernel")
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), b, 0o644); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.order"), nil, 0o644); err != nil {
		return err
	}
	depmod := "/sbin/depmod"
	if _, err := os.Stat(depmod); err != nil {
		return nil // nobody could load them either
	}
	if out, err := exec.Command(depmod, string(release)).CombinedOutput(); err != nil {
		return fmt.Errorf("depmod: %w: %s", err, out[:min(len(out), 300)])
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var none byte
	_, _, e := syscall.Syscall(sysFinitModule, f.Fd(), uintptr(unsafe.Pointer(&none)), 0)
	switch e {
	case 0, syscall.EEXIST:
		return nil
	case syscall.ENOENT:
		return fmt.Errorf("it needs a symbol of a module that is not loaded yet: %w", e)
	}
	return e
}
