package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Extra is what [Image.Extend] adds to an initrd.
type Extra struct {
	// Modules are modules of the image's kernel to load at boot beyond its own;
	// what they depend on comes along.
	Modules []string
	// Files are files of this host to put into the initrd, by their absolute path
	// in it.
	Files map[string]string
}

// Extend writes an initrd to out: the image's own, and what extra adds. It is
// for machines with a special purpose, such as those that run machines
// themselves. Machines that move to a root on disks keep the modules and lose
// the files.
func (i *Image) Extend(ctx context.Context, out string, extra Extra) error {
	if err := i.extend(ctx, out, extra); err != nil {
		return fmt.Errorf("extend the initrd of %s: %w", i.Name, err)
	}
	return nil
}

func (i *Image) extend(ctx context.Context, out string, extra Extra) (err error) {
	in, err := os.Open(i.Initrd)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	if _, err := io.Copy(f, in); err != nil {
		return err
	}
	// The kernel unpacks one archive after the other; of two files with the same
	// name the later one stays.
	w := newCPIOWriter(f)
	dirs := map[string]bool{"/": true, "/etc": true, "/etc/hearth": true, "/lib": true, "/lib/modules": true}
	var mkdir func(dir string)
	mkdir = func(dir string) {
		if !dirs[dir] {
			dirs[dir] = true
			mkdir(path.Dir(dir))
			w.Dir(dir)
		}
	}
	if len(extra.Modules) > 0 {
		var list strings.Builder
		own, added, err := i.modules(ctx, extra.Modules)
		if err != nil {
			return err
		}
		for _, name := range own {
			list.WriteString("/lib/modules/" + name + ".ko\n")
		}
		for _, m := range added {
			file := "/lib/modules/" + m.name + ".ko"
			w.File(file, 0o644, m.ko)
			list.WriteString(file + "\n")
		}
		w.File(ModulesList, 0o644, []byte(list.String()))
	}
	names := make([]string, 0, len(extra.Files))
	for name := range extra.Files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if !path.IsAbs(name) || path.Clean(name) != name {
			return fmt.Errorf("%q is not a clean absolute path", name)
		}
		data, err := os.ReadFile(extra.Files[name])
		if err != nil {
			return err
		}
		fi, err := os.Stat(extra.Files[name])
		if err != nil {
			return err
		}
		mkdir(path.Dir(name))
		w.File(name, uint32(fi.Mode().Perm()), data)
	}
	return w.Close()
}

type module struct {
	name string
	ko   []byte
}

// modules returns the names of the modules that the initrd loads already, and
// those to load after them so that want are there.
func (i *Image) modules(ctx context.Context, want []string) (own []string, added []module, err error) {
	k := slices.IndexFunc(i.Layers, func(l *Layer) bool { return l.Kind == "kernel" })
	if k < 0 {
		return nil, nil, errors.New("the image has no kernel")
	}
	layer := i.Layers[k]
	order, err := os.ReadFile(layer.path(orderName))
	if err != nil {
		return nil, nil, err
	}
	own = strings.Fields(string(order))
	deb, err := layer.archive(i.dir)
	if err != nil {
		return nil, nil, err
	}
	kernel, err := readKernelDeb(ctx, deb)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", deb, err)
	}
	all, err := loadOrder(append(slices.Clone(own), want...),
		func(name string) ([]byte, bool) { ko, ok := kernel.modules[name]; return ko, ok },
		func(name string) bool { return kernel.builtin[name] })
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", deb, err)
	}
	for _, name := range all {
		if !slices.Contains(own, name) {
			added = append(added, module{name, kernel.modules[name]})
		}
	}
	return own, added, nil
}

// archive returns the path of the package that a kernel layer was made of, kept in an
// image directory.
func (l *Layer) archive(dir string) (string, error) {
	list, err := l.packages()
	if err != nil {
		return "", err
	}
	if len(list.Packages) != 1 || !filepath.IsLocal(list.Packages[0].Archive) {
		return "", fmt.Errorf("%s: %w: it does not name the kernel's package", l.path(packagesName), ErrCorrupt)
	}
	deb := filepath.Join(dir, "debs", list.Packages[0].Archive)
	sum, err := hashFile(deb)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: the kernel's package is needed again: `hearth image build --refresh` fetches it", err)
	} else if err != nil {
		return "", err
	}
	// It was verified when the kernel was taken out of it; that was another day.
	if sum != list.Packages[0].SHA256 {
		return "", fmt.Errorf("%s: %w: sha256 is %s, Debian says %s: `hearth image build --refresh` fetches it again", deb, ErrCorrupt, sum,
			list.Packages[0].SHA256)
	}
	return deb, nil
}
