package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	ocilayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/hearth-ci/hearth/internal/archive"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image/erofs"
	"github.com/hearth-ci/hearth/internal/image/oci"
)

// The base of an image that is imported is a container image's file system, with what
// the agent's user needs put in: the user runner, and where a machine's network is.
// Its kernel, initrd, tools and modules are those of every image; Docker is not below
// it, whose libraries are another system's.

// importVersion changes when what is made of the same container image does.
const importVersion = "1"

// Imported is a container image to make a base of.
type Imported struct {
	Reference string // as it was given
	Digest    string // of its manifest: sha256:…
	image     v1.Image
	cleanup   func()
}

// importTransports are what a reference may begin with.
var importTransports = []string{"docker://", "oci-archive:", "oci:", "docker-archive:"}

// OpenImport finds the container image that a reference names: docker://NAME in a
// registry, with the credentials that docker login has left; oci-archive:FILE,
// oci:DIRECTORY or docker-archive:FILE on this machine. Close must be called.
func OpenImport(ctx context.Context, reference, tmp string) (_ *Imported, err error) {
	i := &Imported{Reference: reference, cleanup: func() {}}
	defer func() {
		if err != nil {
			i.Close()
			err = fmt.Errorf("%s: %w", reference, err)
		}
	}()
	platform := v1.Platform{OS: "linux", Architecture: "amd64"}
	transport, rest, _ := strings.Cut(reference, ":")
	rest = strings.TrimPrefix(rest, "//")
	switch {
	case rest == "":
		return nil, fmt.Errorf("want one of %s and what it names", strings.Join(importTransports, ", "))
	case transport == "docker":
		ref, err := name.ParseReference(rest)
		if err != nil {
			return nil, err
		}
		i.image, err = remote.Image(ref, remote.WithContext(ctx), remote.WithPlatform(platform), remote.WithAuthFromKeychain(authn.DefaultKeychain))
		if err != nil {
			return nil, err
		}
	case transport == "docker-archive":
		if i.image, err = tarball.ImageFromPath(rest, nil); err != nil {
			return nil, err
		}
	case transport == "oci-archive" || transport == "oci":
		dir := rest
		if transport == "oci-archive" {
			if dir, err = os.MkdirTemp(tmp, "oci-"); err != nil {
				return nil, err
			}
			i.cleanup = func() { os.RemoveAll(dir) }
			if err := unpackLayout(rest, dir); err != nil {
				return nil, err
			}
		}
		index, err := ocilayout.ImageIndexFromPath(dir)
		if err != nil {
			return nil, err
		}
		if i.image, err = imageOf(index, platform); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%q is none of %s", transport, strings.Join(importTransports, ", "))
	}
	config, err := i.image.ConfigFile()
	if err != nil {
		return nil, err
	}
	if config.OS != "" && config.OS != platform.OS || config.Architecture != "" && config.Architecture != platform.Architecture {
		return nil, fmt.Errorf("it is for %s/%s: machines here are %s", config.OS, config.Architecture, platform.String())
	}
	digest, err := i.image.Digest()
	i.Digest = digest.String()
	return i, err
}

// Close gives back what the image took while it was open.
func (i *Imported) Close() { i.cleanup() }

// unpackLayout unpacks an archive of an OCI layout: its blobs, named by their sums.
func unpackLayout(file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return archive.Each(f, archive.Limits{Bytes: oci.MaxBytes, Entries: 100_000, Names: 16 << 20}, func(h *tar.Header, r io.Reader) error {
		clean := filepath.Clean(h.Name)
		if h.Typeflag != tar.TypeReg {
			return nil
		}
		if err := root.MkdirAll(filepath.Dir(clean), 0o700); err != nil {
			return err
		}
		out, err := root.OpenFile(clean, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		return errors.Join(err, out.Close())
	})
}

// imageOf finds the image for a platform in an index, or in one inside it.
func imageOf(index v1.ImageIndex, platform v1.Platform) (v1.Image, error) {
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var seen []string
	for _, d := range m.Manifests {
		switch {
		case d.MediaType.IsIndex():
			inner, err := index.ImageIndex(d.Digest)
			if err != nil {
				return nil, err
			}
			im, err := inner.IndexManifest()
			if err != nil {
				return nil, err
			}
			for _, d := range im.Manifests {
				if d.MediaType.IsImage() && (d.Platform == nil || d.Platform.Satisfies(platform)) {
					return inner.Image(d.Digest)
				}
			}
		case d.MediaType.IsImage() && (d.Platform == nil || d.Platform.Satisfies(platform)):
			return index.Image(d.Digest)
		case d.Platform != nil:
			seen = append(seen, d.Platform.String())
		}
	}
	return nil, fmt.Errorf("it has no image for %s (there are: %s)", platform.String(), strings.Join(seen, ", "))
}

// buildImport fills dir with the root file system of a container image.
func (b *builder) buildImport(ctx context.Context, dir string) (map[string]string, error) {
	i := b.opt.Import
	step := b.step("base")
	layers, err := i.image.Layers()
	if err != nil {
		return nil, err
	}
	config, err := i.image.ConfigFile()
	if err != nil {
		return nil, err
	}
	var compressed int64
	for _, l := range layers {
		if n, err := l.Size(); err == nil {
			compressed += n
		}
	}
	if err := b.need("root file system", 6*compressed+256<<20); err != nil {
		return nil, err
	}
	spool, err := os.CreateTemp(filepath.Join(b.dir, "tmp"), "layers-")
	if err != nil {
		return nil, err
	}
	os.Remove(spool.Name())
	defer spool.Close()
	var in []oci.Layer
	for n, l := range layers {
		sum := ""
		if n < len(config.RootFS.DiffIDs) {
			sum = config.RootFS.DiffIDs[n].Hex
		}
		in = append(in, oci.Layer{SHA256: sum, Open: func() (io.ReadCloser, error) {
			step.detail(float64(n)/float64(len(layers)+1), fmt.Sprintf("layer %d of %d", n+1, len(layers)))
			r, err := l.Uncompressed()
			return interruptible{ctx, r}, err
		}})
	}
	tree, err := oci.Stack(in, spool)
	if err != nil {
		return nil, err
	}
	created := config.Created.Time
	if created.Before(time.Unix(0, 0)) {
		created = time.Unix(0, 0)
	}
	if err := runnerIn(tree, config.Config.Env, created); err != nil {
		return nil, err
	}
	step.detail(float64(len(layers))/float64(len(layers)+1), "writing the file system")
	out, err := os.OpenFile(filepath.Join(dir, baseName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(i.Digest))
	err = erofs.Write(interruptedWriter{ctx, out}, tree.Root, [16]byte(sum[:16]))
	if err = errors.Join(err, out.Close()); err != nil {
		return nil, err
	}
	if err := writePackages(dir, []Package{
		{Type: "oci", Name: i.Reference, Version: i.Digest, SHA256: strings.TrimPrefix(i.Digest, "sha256:")},
	}, nil); err != nil {
		return nil, err
	}
	info := map[string]string{importedFrom: i.Reference, "digest": i.Digest, "layers": strconv.Itoa(len(layers))}
	for _, w := range wants {
		if !w.there(tree) {
			info["lacks "+w.name] = w.note
		}
	}
	return info, nil
}

// wants are what workflows count on and a container image may lack.
var wants = []struct {
	name, note string
	there      func(*oci.Tree) bool
}{
	{"bash", "it has no bash: steps run by sh, and those with shell: bash fail", func(t *oci.Tree) bool { return t.Exists("/bin/bash") }},
	{"glibc", "it has no glibc: JavaScript actions cannot run, for Node from the tools disk needs it", glibc},
	{"git", "it has no git: checkout works, what calls git does not", func(t *oci.Tree) bool { return t.Exists("/usr/bin/git") || t.Exists("/usr/local/bin/git") }},
	{"sudo", "it has no sudo: steps run as the user runner and cannot install packages", func(t *oci.Tree) bool { return t.Exists("/usr/bin/sudo") }},
}

// Wants says, for people, what jobs will miss in an image that was imported.
func (i *Image) Wants() (notes []string) {
	for _, l := range i.Layers {
		for _, w := range wants {
			if note := l.Info["lacks "+w.name]; note != "" {
				notes = append(notes, note)
			}
		}
	}
	return notes
}

// importedFrom is the entry of a base layer's info that says which container image it
// is made of.
const importedFrom = "imported"

type interruptible struct {
	ctx context.Context
	io.ReadCloser
}

func (i interruptible) Read(p []byte) (int, error) {
	if err := context.Cause(i.ctx); err != nil {
		return 0, err
	}
	return i.ReadCloser.Read(p)
}

type interruptedWriter struct {
	ctx context.Context
	w   io.Writer
}

func (i interruptedWriter) Write(p []byte) (int, error) {
	if err := context.Cause(i.ctx); err != nil {
		return 0, err
	}
	return i.w.Write(p)
}

// runnerName is the user that steps run as.
const runnerName = "runner"

// maxTable bounds the files of users and groups that are read.
const maxTable = 1 << 20

// runnerIn puts what jobs need into a foreign system: the user that steps run as, the
// machine's network, the image's own environment, Node where it can run.
func runnerIn(t *oci.Tree, environ []string, at time.Time) error {
	read := func(p string) string {
		b, err := t.ReadFile(p, maxTable)
		if err != nil {
			return ""
		}
		return string(b)
	}
	var errs []error
	write := func(p, text string, mode uint32) { errs = append(errs, t.WriteFile(p, []byte(text), mode, at)) }
	passwd, group := read("/etc/passwd"), read("/etc/group")
	if passwd == "" {
		passwd = "root:x:0:0:root:/root:/bin/sh\n"
	}
	if group == "" {
		group = "root:x:0:\n"
	}
	uid, gid, known := identityOf(passwd, runnerName)
	if !known {
		uid = freeID(1001, passwd, 2)
		gid = freeID(uid, group, 2)
		shell := "/bin/sh"
		if t.Exists("/bin/bash") {
			shell = "/bin/bash"
		}
		passwd = endLine(passwd) + fmt.Sprintf("%s:x:%d:%d::%s:%s\n", runnerName, uid, gid, guest.Home, shell)
		group = endLine(group) + fmt.Sprintf("%s:x:%d:\n", runnerName, gid)
		write("/etc/passwd", passwd, 0o644)
		write("/etc/group", group, 0o644)
		if shadow := read("/etc/shadow"); shadow != "" {
			write("/etc/shadow", endLine(shadow)+runnerName+":!:19000:0:99999:7:::\n", 0o640)
		}
	}
	if t.Exists("/etc/sudoers") {
		write("/etc/sudoers.d/runner", runnerName+" ALL=(ALL:ALL) NOPASSWD:ALL\n", 0o440)
	}
	mkdir := func(p string, mode uint32, uid, gid int) {
		errs = append(errs, t.Mkdir(p, mode, uint32(uid), uint32(gid)))
	}
	for _, d := range []string{"/proc", "/sys", "/dev", "/run", "/mnt", "/etc", guest.Tools, "/usr/lib/modules"} {
		if !t.Exists(d) {
			mkdir(d, 0o755, 0, 0)
		}
	}
	mkdir("/tmp", 0o1777, 0, 0)
	for _, d := range []string{guest.Home, guest.Home + "/work", guest.Home + "/work/_temp", guest.Home + "/work/_actions"} {
		mkdir(d, 0o755, uid, gid)
	}
	mkdir(guest.ToolCache, 0o777, uid, gid)
	write("/etc/hostname", "hearth\n", 0o644)
	write("/etc/hosts", "127.0.0.1 localhost hearth\n::1 localhost ip6-localhost ip6-loopback\n10.0.2.2 hearth.internal\n", 0o644)
	write("/etc/resolv.conf", "nameserver 10.0.2.3\noptions timeout:5 attempts:2\n", 0o644)
	if own := environmentOf(environ); own != "" {
		write("/etc/environment", endLine(read("/etc/environment"))+own, 0o644)
	}
	if glibc(t) {
		for _, n := range []string{"node", "npm", "npx"} {
			if p := "/usr/local/bin/" + n; !t.Exists(p) && !t.Exists("/usr/bin/"+n) {
				errs = append(errs, t.Symlink(guest.Tools+"/bin/"+n, p))
			}
		}
	}
	return errors.Join(errs...)
}

// glibc says whether Node from the tools disk can be loaded.
func glibc(t *oci.Tree) bool { return t.Exists("/lib64/ld-linux-x86-64.so.2") }

func endLine(s string) string {
	if s == "" || strings.HasSuffix(s, "\n") {
		return s
	}
	return s + "\n"
}

// identityOf finds a user in a passwd file.
func identityOf(passwd, user string) (uid, gid int, ok bool) {
	for line := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) >= 4 && f[0] == user {
			u, err1 := strconv.Atoi(f[2])
			g, err2 := strconv.Atoi(f[3])
			return u, g, err1 == nil && err2 == nil && u >= 0 && g >= 0
		}
	}
	return 0, 0, false
}

// freeID is the first number from one on that no line of a table has in a column.
func freeID(from int, table string, column int) int {
	var taken []int
	for line := range strings.Lines(table) {
		if f := strings.Split(strings.TrimSpace(line), ":"); len(f) > column {
			if n, err := strconv.Atoi(f[column]); err == nil {
				taken = append(taken, n)
			}
		}
	}
	for slices.Contains(taken, from) {
		from++
	}
	return from
}

// environmentOf is a container image's environment as /etc/environment has it. PATH
// keeps what machines have behind it.
func environmentOf(environ []string) string {
	var b strings.Builder
	for _, kv := range environ {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" || strings.ContainsAny(kv, "\n\x00\"") || k == "HOME" || k == "HOSTNAME" {
			continue
		}
		if k == "PATH" {
			have := strings.Split(v, ":")
			for p := range strings.SplitSeq(guest.ToolPath, ":") {
				if !slices.Contains(have, p) {
					have = append(have, p)
				}
			}
			v = strings.Join(have, ":")
		}
		fmt.Fprintf(&b, "%s=\"%s\"\n", k, v)
	}
	return b.String()
}

// importOrigin reads where an image was imported from, "" if it was not.
func importOrigin(layers []*Layer) string {
	for _, l := range layers {
		if l.Kind == "base" {
			return l.Info[importedFrom]
		}
	}
	return ""
}
