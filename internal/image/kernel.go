package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/hearth-ci/hearth/internal/archive"
)

// suite is the Debian release that images' kernels are of, and bases of Debian's recipe.
const suite = "bookworm"

// kernelVersion changes whenever the way the kernel layer is made does.
const kernelVersion = "4"

// kernelMeta is the package whose only content is a dependency on the current
// kernel.
const kernelMeta = "linux-image-cloud-amd64"

// Files of the kernel layer. Modules are kept under their normalised names.
const (
	vmlinuxName = "vmlinux"
	orderName   = "modules" // one module name a line, in load order
)

func kernelInputs() string {
	return hashStrings("kernel", kernelVersion, suite, kernelMeta, strings.Join(bootModules[:], " "))
}

// buildKernel fills dir with the kernel's ELF and the modules the guest boots with.
func (b *builder) buildKernel(ctx context.Context, dir string) (map[string]string, error) {
	if err := b.need("kernel", 200<<20); err != nil {
		return nil, err
	}
	step := b.step("kernel")
	step.detail(0, "reading Debian's package lists")
	apt, err := b.newApt(ctx, dir, &debian)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(apt.dir)
	pkg, err := apt.dependency(ctx, kernelMeta, "linux-image-")
	if err != nil {
		return nil, err
	}
	step.detail(0.3, "downloading "+pkg)
	deb, sum, err := apt.download(ctx, pkg, filepath.Join(b.dir, "debs"))
	if err != nil {
		return nil, err
	}
	about, err := describeDeb(ctx, deb, sum)
	if err != nil {
		return nil, err
	}
	lists, err := archives(filepath.Join(apt.dir, "state", "lists"))
	if err != nil {
		return nil, err
	}
	if err := writePackages(dir, []Package{about}, lists); err != nil {
		return nil, err
	}
	step.detail(0.6, "unpacking "+filepath.Base(deb))
	kernel, err := readKernelDeb(ctx, deb)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", deb, err)
	}
	elfKernel, err := vmlinux(kernel.bzImage)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", deb, err)
	}
	order, err := loadOrder(bootModules[:],
		func(name string) ([]byte, bool) { ko, ok := kernel.modules[name]; return ko, ok },
		func(name string) bool { return kernel.builtin[name] })
	if err != nil {
		return nil, fmt.Errorf("%s: %w", deb, err)
	}
	if err := os.WriteFile(filepath.Join(dir, vmlinuxName), elfKernel, 0o644); err != nil {
		return nil, err
	}
	for _, name := range order {
		if err := os.WriteFile(filepath.Join(dir, name+".ko"), kernel.modules[name], 0o644); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, orderName), []byte(strings.Join(order, "\n")+"\n"), 0o644); err != nil {
		return nil, err
	}
	return map[string]string{"package": strings.TrimSuffix(filepath.Base(deb), ".deb"), "release": kernel.release}, nil
}

// describeDeb makes a Package of a .deb whose sum is known.
func describeDeb(ctx context.Context, deb, sum string) (Package, error) {
	out, err := tool{argv: []string{"dpkg-deb", "--field", deb, "Package", "Version", "Architecture", "Source"}}.run(ctx)
	if err != nil {
		return Package{}, err
	}
	var p Package
	err = eachStanza(bytes.NewReader(out), func(field map[string]string) error { p = debPackage(field); return nil })
	p.SHA256, p.Archive = sum, filepath.Base(deb)
	return p, err
}

// maxModules bounds what is kept in memory of a kernel package. Debian's cloud
// kernel has 90 MB of modules.
const maxModules = 512 << 20

// debKernel is what we want from a kernel package.
type debKernel struct {
	release string // 6.1.0-56-cloud-amd64
	bzImage []byte
	modules map[string][]byte // by normalised name: those that a boot can need
	builtin map[string]bool
	room    int64 // bytes that may still be kept
}

// readKernelDeb reads a kernel package. All modules are a hundred megabytes;
// they are kept in memory for the moment it takes, since what the boot modules
// depend on is only known once they have been read.
func readKernelDeb(ctx context.Context, deb string) (*debKernel, error) {
	k := &debKernel{modules: map[string][]byte{}, builtin: map[string]bool{}, room: maxModules}
	if err := readDeb(ctx, deb, k.readTar); err != nil {
		return nil, err
	}
	if k.bzImage == nil {
		return nil, errors.New("holds no /boot/vmlinuz")
	}
	return k, nil
}

// readDeb hands the files of a .deb to read, as a tar archive.
func readDeb(ctx context.Context, deb string, read func(io.Reader) error) error {
	dpkg, err := lookTool("dpkg-deb")
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, dpkg, "--fsys-tarfile", deb)
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := read(out)
	if readErr != nil {
		_ = cmd.Process.Kill()
	}
	if err := cmd.Wait(); err != nil && readErr == nil {
		return fmt.Errorf("dpkg-deb: %w: %s", err, lastLines(stderr.Bytes(), 3))
	}
	return readErr
}

func (k *debKernel) readTar(r io.Reader) error {
	return archive.Each(r, archive.Limits{}, func(h *tar.Header, r io.Reader) (err error) {
		read := func(size int64) ([]byte, error) {
			if k.room -= size; k.room < 0 {
				return nil, errors.New("its kernel and modules are larger than any that were seen")
			}
			return io.ReadAll(r)
		}
		name := path.Clean("/" + h.Name)
		base := path.Base(name)
		if h.Typeflag != tar.TypeReg || h.Size > 256<<20 {
			return nil
		}
		switch {
		case strings.HasPrefix(name, "/boot/vmlinuz-"):
			k.release = strings.TrimPrefix(base, "vmlinuz-")
			if k.bzImage, err = read(h.Size); err != nil {
				return err
			}
		case strings.HasSuffix(base, ".ko"):
			ko, err := read(h.Size)
			if err != nil {
				return err
			}
			k.modules[moduleName(base)] = ko
		case base == "modules.builtin":
			list, err := read(h.Size)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(list)) {
				k.builtin[moduleName(path.Base(strings.TrimSpace(line)))] = true
			}
		}
		return nil
	})
}
