package jail

import (
	"bufio"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Needs returns the files that a program needs to be started: itself, and where
// it is linked dynamically its loader and its libraries. The loader is asked,
// which knows best where they are.
func Needs(ctx context.Context, programs ...string) ([]string, error) {
	var all []string
	seen := map[string]bool{}
	add := func(p string) {
		if !seen[p] {
			seen[p] = true
			all = append(all, p)
		}
	}
	var loader string
	for _, p := range programs {
		add(p)
		p, err := scripted(p)
		if err != nil {
			return nil, fmt.Errorf("libraries of %s: %w", p, err)
		}
		add(p)
		l, module, err := interpreter(p)
		if err != nil {
			return nil, fmt.Errorf("libraries of %s: %w", p, err)
		}
		if module {
			l = loader // it is loaded into the program before it
		}
		if l == "" {
			continue // static
		}
		loader = l
		add(l)
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		cmd := exec.CommandContext(ctx, l, "--list", p)
		cmd.Env = []string{"LC_ALL=C"}
		cmd.WaitDelay = time.Second
		out, err := cmd.Output()
		cancel()
		if err != nil {
			return nil, fmt.Errorf("libraries of %s: %w", p, err)
		}
		// "libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f…)"
		for line := range strings.Lines(string(out)) {
			line = strings.TrimSpace(line)
			if _, after, ok := strings.Cut(line, "=> "); ok {
				line = after
			}
			if path, _, ok := strings.Cut(line, " ("); ok && filepath.IsAbs(path) {
				add(path)
			}
		}
	}
	if loader != "" {
		add("/etc/ld.so.cache")
	}
	return all, nil
}

// scripted returns the program that runs a script; of a program, that itself.
func scripted(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return path, err
	}
	defer f.Close()
	line, err := bufio.NewReaderSize(f, 256).ReadSlice('\n')
	if rest, ok := strings.CutPrefix(string(line), "#!"); ok && err == nil {
		if f := strings.Fields(rest); len(f) > 0 {
			return f[0], nil
		}
	}
	return path, nil
}

// interpreter returns the loader that a program names; "" if it is static, or a
// module of others. A static program has nothing for a loader to read, which
// would die of it.
func interpreter(path string) (loader string, module bool, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		switch p.Type {
		case elf.PT_DYNAMIC:
			module = true
		case elf.PT_INTERP:
			b := make([]byte, min(p.Filesz, 4096))
			if _, err := p.ReadAt(b, 0); err != nil {
				return "", false, err
			}
			return strings.TrimRight(string(b), "\x00"), false, nil
		}
	}
	return "", module, nil
}
