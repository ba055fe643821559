package boot

import (
	"errors"
	"fmt"
	"os"
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
