package image

import (
	"archive/tar"
	"bytes"
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

	"github.com/hearth-ci/hearth/internal/archive"
	"github.com/hearth-ci/hearth/internal/guest"
)

// engineVersion changes whenever the way the engine's disk is made does, in ways
// that its lists do not show.
const engineVersion = "1"

const engineName = "engine.erofs"

// engineLacks is the key of a layer's Info under which it says why it has no disk.
const engineLacks = "lacks"

// engineSuite is the Debian release that Docker comes from. Bookworm's own is 20.10:
// no plugins. This one wants no newer C library than bookworm's.
const engineSuite = "trixie"

// enginePackages are unpacked into the engine's disk, by the release they come from:
// Docker from the newer one, and what needs a C library of its time (runc, iptables
// and their libraries, tini) from the one that machines are made of.
var enginePackages = map[string][]string{
	engineSuite: {"docker.io", "docker-cli", "docker-buildx", "docker-compose", "containerd"},
	suite: {"runc", "tini", "iptables", "libip4tc2", "libip6tc2", "libxtables12", "libmnl0", "libnetfilter-conntrack3", "libnfnetlink0", "libnftnl11",
		"libseccomp2"},
}

// engineLinks are what the packages' scripts would have made, path to target. None of
// those scripts runs.
var engineLinks = [...][2]string{
	{"usr/sbin/iptables", "xtables-nft-multi"},
	{"usr/sbin/iptables-save", "xtables-nft-multi"},
	{"usr/sbin/iptables-restore", "xtables-nft-multi"},
	{"usr/sbin/ip6tables", "xtables-nft-multi"},
	{"usr/sbin/ip6tables-save", "xtables-nft-multi"},
	{"usr/sbin/ip6tables-restore", "xtables-nft-multi"},
}

// glibcPackages are where the C library comes from that Node has in containers with
// another (Alpine's), and glibcFiles what it takes of them.
var (
	glibcPackages = [...]string{"libc6", "libgcc-s1", "libstdc++6", "gcc-12-base"}
	glibcFiles    = [...]string{glibcLoader, "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1", "libstdc++.so.6"}
)

const (
	glibcLoader = "ld-linux-x86-64.so.2"
	debianLibs  = "lib/x86_64-linux-gnu/"
	glibcInside = guest.GlibcInside + "/"
)

// engineDrops are not taken along: descriptions, what an init system would read, and
// programs that nothing starts.
var engineDrops = [...]string{
	"etc", "usr/lib/systemd", "usr/share/man", "usr/share/lintian", "usr/share/bash-completion", "usr/share/zsh", "usr/share/fish", "usr/share/locale",
	"usr/bin/ctr", "usr/bin/containerd-shim", "usr/bin/containerd-shim-runc-v1",
}

// daemonConfig is the daemon's: images come through the gateway, which has the
// registries' credentials and keeps what it has fetched (package registry). Where
// nothing serves there, the daemon asks the registry itself.
const daemonConfig = `{
	"registry-mirrors": ["http://10.0.2.2:5000"],
	"insecure-registries": ["10.0.2.2:5000"]
}
`

func engineInputs() string {
	return hashStrings("engine", engineVersion, suite, engineSuite, strings.Join(enginePackages[suite], " "), strings.Join(enginePackages[engineSuite], " "),
		fmt.Sprint(engineLinks, engineDrops, glibcPackages, glibcFiles, glibcInside), daemonConfig)
}

// buildEngine fills dir with the disk that has Docker. Where the release that it
// comes from cannot be reached, the layer has no disk and says why: machines work
// without.
func (b *builder) buildEngine(ctx context.Context, dir string) (map[string]string, error) {
	for _, name := range []string{"mkfs.erofs", "dpkg-deb"} {
		if _, err := lookTool(name); err != nil {
			return nil, err
		}
	}
	if err := b.need("container engine", 900<<20); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(filepath.Join(b.dir, "tmp"), "engine-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	step := b.step("engine")
	step.detail(0, "reading the package lists of Debian "+engineSuite)
	newer, err := b.newAptOf(ctx, filepath.Join(work, engineSuite), &debian, b.engineSources(ctx))
	if err != nil {
		if _, missing := errors.AsType[*MissingToolError](err); missing || ctx.Err() != nil {
			return nil, err
		}
		b.log.Warn("the image has no container engine", "err", err)
		first, _, _ := strings.Cut(err.Error(), "\n")
		return map[string]string{engineLacks: "Docker's packages could not be had when it was built: " + first}, writePackages(dir, nil, nil)
	}
	own, err := b.newApt(ctx, filepath.Join(work, suite), &debian)
	if err != nil {
		return nil, err
	}
	tree := filepath.Join(work, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(tree)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var packages []Package
	var lists []Archive
	info := map[string]string{}
	done, all := 0, len(enginePackages[suite])+len(enginePackages[engineSuite])
	for _, from := range []struct {
		suite string
		apt   *apt
	}{{engineSuite, newer}, {suite, own}} {
		signed, err := archives(filepath.Join(from.apt.dir, "state", "lists"))
		if err != nil {
			return nil, err
		}
		lists = append(lists, signed...)
		for _, name := range enginePackages[from.suite] {
			step.detail(0.1+0.7*float64(done)/float64(all), "fetching "+name)
			done++
			p, err := b.enginePackage(ctx, from.apt, name, root, work)
			if err != nil {
				return nil, fmt.Errorf("package %s: %w", name, err)
			}
			p.Suite = from.suite
			packages = append(packages, p)
			if name == "docker.io" {
				info["docker"] = p.Version
			}
		}
	}
	step.detail(0.8, "fetching a C library for containers")
	libc, err := b.buildGlibc(ctx, own, root, work)
	if err != nil {
		return nil, err
	}
	if err := writePackages(dir, append(packages, libc...), lists); err != nil {
		return nil, err
	}
	for _, l := range engineLinks {
		if err := root.Symlink(l[1], l[0]); err != nil {
			return nil, err
		}
	}
	if err := root.MkdirAll("etc/docker", 0o755); err != nil {
		return nil, err
	}
	if err := root.WriteFile("etc/docker/daemon.json", []byte(daemonConfig), 0o644); err != nil {
		return nil, err
	}
	step.detail(0.85, "packing")
	return info, packTools(ctx, filepath.Join(dir, engineName), tree)
}

// engineSources are where Docker's packages come from: the places that this
// release's come from.
func (b *builder) engineSources(ctx context.Context) []string {
	var out []string
	for _, s := range b.sources(ctx, &debian) {
		out = append(out, strings.Replace(s, " "+suite, " "+engineSuite, 1))
	}
	return out
}

// enginePackage unpacks one package below root.
func (b *builder) enginePackage(ctx context.Context, from *apt, name string, root *os.Root, work string) (Package, error) {
	deb, sum, err := from.download(ctx, name, filepath.Join(work, "debs"))
	if err != nil {
		return Package{}, err
	}
	defer os.Remove(deb)
	p, err := describeDeb(ctx, deb, sum)
	if err != nil {
		return Package{}, err
	}
	p.Archive = "" // it is not kept
	return p, readDeb(ctx, deb, func(r io.Reader) error { return unpackDeb(r, root) })
}

// buildGlibc puts a C library into root, for containers without: the directory goes into
// them, and the loader in it finds the other files there, whatever else they have. No
// variable says where: each program that Node starts would have it, too.
func (b *builder) buildGlibc(ctx context.Context, from *apt, root *os.Root, work string) (packages []Package, err error) {
	dir := filepath.Join(work, "glibc")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	have, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer have.Close()
	take := map[string]string{} // path in the packages → in root
	for _, name := range glibcPackages {
		p, err := b.enginePackage(ctx, from, name, have, work)
		if err != nil {
			return nil, fmt.Errorf("package %s: %w", name, err)
		}
		p.Suite = suite
		packages = append(packages, p)
	}
	for _, name := range glibcFiles {
		take["usr/"+debianLibs+name] = path.Join(guest.Glibc[1:], name)
	}
	for _, p := range []string{"libc6", "gcc-12-base"} { // which the others' are links to
		take["usr/share/doc/"+p+"/copyright"] = path.Join("usr/share/doc", p, "copyright")
	}
	for in, out := range take {
		data, err := have.ReadFile(in)
		if err != nil {
			return nil, err
		}
		if path.Base(in) == glibcLoader {
			if data, err = moveLoader(data); err != nil {
				return nil, err
			}
		}
		if err := root.MkdirAll(path.Dir(out), 0o755); err != nil {
			return nil, err
		}
		if err := root.WriteFile(out, data, 0o755); err != nil {
			return nil, err
		}
	}
	return packages, nil
}

// moveLoader makes a loader look for libraries in glibcInside where it would look in
// Debian's directory: the first of those that are built into it, of which it knows the
// lengths. So the other path has the same, by slashes.
func moveLoader(loader []byte) ([]byte, error) {
	was, is := []byte("\x00/"+debianLibs+"\x00"), []byte("\x00"+glibcInside+strings.Repeat("/", 1+len(debianLibs)-len(glibcInside))+"\x00")
	if !bytes.Contains(loader, was) {
		return nil, fmt.Errorf("the C library's loader does not say where it looks for libraries")
	}
	return bytes.ReplaceAll(loader, was, is), nil
}

// Bounds of what one package unpacks to. Docker's is 100 MB.
const (
	maxDebBytes = 1 << 30
	maxDebFiles = 20_000
	maxDebNames = 8 << 20
)

// unpackDeb unpacks a package's files below root, where bin, sbin and lib are those of
// usr, as in every Debian now; what is not wanted is left out.
func unpackDeb(r io.Reader, root *os.Root) error {
	place := func(name string) string {
		name = strings.TrimPrefix(path.Clean("/"+name), "/")
		switch top, _, _ := strings.Cut(name, "/"); top {
		case "bin", "sbin", "lib", "lib64":
			name = "usr/" + name
		}
		return name
	}
	return archive.Each(r, archive.Limits{Entries: maxDebFiles, Names: maxDebNames, Bytes: maxDebBytes}, func(h *tar.Header, r io.Reader) error {
		name := place(h.Name)
		if name == "" || !wanted(name) {
			return nil
		}
		if h.Typeflag == tar.TypeDir {
			return root.MkdirAll(name, 0o755)
		}
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		// Two packages may have the same link, as two of the releases may.
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		switch h.Typeflag {
		case tar.TypeReg:
			_, _, err := unpackFile(root, name, h.Mode&0o100 != 0, false, r)
			return err
		case tar.TypeSymlink:
			return root.Symlink(h.Linkname, name)
		case tar.TypeLink:
			return root.Link(place(h.Linkname), name)
		}
		return fmt.Errorf("%s is neither file, directory nor link", name)
	})
}

func wanted(name string) bool {
	if strings.HasPrefix(name, "usr/share/doc/") {
		return path.Base(name) == "copyright"
	}
	return !slices.ContainsFunc(engineDrops[:], func(drop string) bool { return name == drop || strings.HasPrefix(name, drop+"/") })
}
