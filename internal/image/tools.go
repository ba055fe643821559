package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/archive"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image/pin"
)

// toolsVersion changes whenever the way the tools disk is made does, in ways
// that toolPacks and the pins do not show.
const toolsVersion = "3"

const toolsName = "tools.erofs"

// toolPacks are the npm packages on the tools disk, by their pins. Debian's node
// is 18. Actions say `using: node20` or `node24` and get that one; PATH gets the
// first.
var toolPacks = [...]npmPack{
	{Pin: "node20", Dir: "node20", Keep: []string{"bin/node", "LICENSE"}},
	{Pin: "npm10", Dir: "node20/lib/node_modules/npm"},
	{Pin: "node24", Dir: "node24", Keep: []string{"bin/node", "LICENSE"}},
	{Pin: "npm11", Dir: "node24/lib/node_modules/npm"},
}

// toolLinks are the symbolic links on the tools disk, path to target.
var toolLinks = [...][2]string{
	{"node20/bin/npm", "../lib/node_modules/npm/bin/npm-cli.js"},
	{"node20/bin/npx", "../lib/node_modules/npm/bin/npx-cli.js"},
	{"node24/bin/npm", "../lib/node_modules/npm/bin/npm-cli.js"},
	{"node24/bin/npx", "../lib/node_modules/npm/bin/npx-cli.js"},
	{"bin/node", "../node20/bin/node"},
	{"bin/npm", "../node20/bin/npm"},
	{"bin/npx", "../node20/bin/npx"},
	{"bin/node20", "../node20/bin/node"},
	{"bin/node24", "../node24/bin/node"},
}

// npmPack is a package of the npm registry and where it goes.
type npmPack struct {
	Pin  string   // its name in the table
	Dir  string   // on the tools disk
	Keep []string // files wanted; nil is all
}

// pins are what the tools disk is made of, by name.
func pins() (map[string]pin.Pin, error) {
	table, err := pin.Table()
	if err != nil {
		return nil, err
	}
	byName := map[string]pin.Pin{}
	for _, p := range table {
		byName[p.Name] = p
	}
	for _, p := range toolPacks {
		if _, ok := byName[p.Pin]; !ok {
			return nil, fmt.Errorf("pins.json has no %s", p.Pin)
		}
	}
	return byName, nil
}

// toolsInputs has the pins' bytes in it: another pin is another image. Whether
// somebody compared them with upstream makes no difference to the bytes.
func toolsInputs() (string, error) {
	table, err := pins()
	if err != nil {
		return "", err
	}
	return toolsInputsOf(table), nil
}

func toolsInputsOf(table map[string]pin.Pin) string {
	inputs := []string{fmt.Sprintf("%+v", toolPacks), fmt.Sprintf("%+v", toolLinks)}
	for _, p := range toolPacks {
		pinned := table[p.Pin]
		inputs = append(inputs, pinned.Spec(), pinned.SHA256)
	}
	return hashStrings("tools", toolsVersion, inputs...)
}

// buildTools fills dir with the file system for /opt/hearth.
func (b *builder) buildTools(ctx context.Context, dir string) (map[string]string, error) {
	if _, err := lookTool("mkfs.erofs"); err != nil {
		return nil, err
	}
	if err := b.need("tools disk", 700<<20); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(filepath.Join(b.dir, "tmp"), "tree-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	tree := filepath.Join(work, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "bin"), 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(tree)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	step := b.step("tools")
	table, err := pins()
	if err != nil {
		return nil, err
	}
	registry := npmRegistry()
	info := map[string]string{}
	var packages []Package
	for i, p := range toolPacks {
		pinned := table[p.Pin]
		step.detail(0.85*float64(i)/float64(len(toolPacks)), "fetching "+pinned.Spec())
		added, err := fetchNPM(ctx, registry, pinned, p, root, work)
		if err != nil {
			return nil, fmt.Errorf("npm package %s: %w", pinned.Spec(), err)
		}
		packages = append(packages, added...)
		info[p.Dir] = pinned.Spec()
	}
	if err := writePackages(dir, packages, nil); err != nil {
		return nil, err
	}
	for _, l := range toolLinks {
		if err := root.MkdirAll(path.Dir(l[0]), 0o755); err != nil {
			return nil, err
		}
		if err := root.Symlink(l[1], l[0]); err != nil {
			return nil, err
		}
	}
	step.detail(0.9, "packing")
	return info, packTools(ctx, filepath.Join(dir, toolsName), tree)
}

// packTools makes a file system of a tree: of equal trees equal ones, byte by
// byte, whoever makes them when, as long as mkfs.erofs is the same. So anybody
// can find out whether a tools disk is what the pins make.
func packTools(ctx context.Context, out, tree string) error {
	return packTree(ctx, out, tree, "--all-root")
}

// packTree is packTools with another owner of the files.
func packTree(ctx context.Context, out, tree string, owner ...string) error {
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(path, 0o755) // whatever the umask was
		}
		return err
	})
	if err != nil {
		return err
	}
	_, err = tool{argv: slices.Concat([]string{"mkfs.erofs", "-zlz4", "--quiet"}, owner,
		[]string{"-T0", "-U", "00000000-0000-0000-0000-000000000000", out, tree})}.run(ctx)
	return err
}

// npmRegistry is npm where there is one, since that knows the user's registry
// and credentials, and the registry itself otherwise. Neither is trusted.
func npmRegistry() pin.Registry {
	if _, err := lookTool("npm"); err != nil {
		return pin.Registry{}
	}
	return pin.Registry{NPM: func(ctx context.Context, dir string, args ...string) ([]byte, error) {
		return tool{argv: append([]string{"npm"}, args...), dir: dir}.run(ctx)
	}}
}

// fetchNPM puts a pinned package below p.Dir of root. The tarball passes through
// work, and is compared with the pin before anything looks into it.
func fetchNPM(ctx context.Context, registry pin.Registry, pinned pin.Pin, p npmPack, root *os.Root, work string) ([]Package, error) {
	tarball, err := registry.Download(ctx, pinned.Package, pinned.Version, work, pinned.Size)
	if err != nil {
		return nil, err
	}
	defer os.Remove(tarball)
	if err := pinned.Verify(tarball); err != nil {
		return nil, err
	}
	return unpackNPM(root, p, pinned, tarball)
}

// Bounds of what one npm package unpacks to. Node is 190 MB and 2,800 files.
const (
	maxNPMBytes = 1 << 30
	maxNPMFiles = 20_000
	maxNPMNames = 8 << 20
)

// bundledPackage matches the description of a package inside another's.
var bundledPackage = regexp.MustCompile(`(?:^|/)node_modules/(?:@[^/]+/)?[^/]+/package\.json$`)

// unpackNPM unpacks a package's tarball ("package/…") below p.Dir and returns
// the package, and after it those that are bundled in it.
func unpackNPM(root *os.Root, p npmPack, pinned pin.Pin, tarball string) ([]Package, error) {
	packages := []Package{{Type: "npm", Name: pinned.Package, Version: pinned.Version, SHA256: pinned.SHA256, URL: pinned.Source,
		Upstream: pinned.Upstream.Result}}
	found := 0
	err := archive.Files(tarball, archive.Limits{Entries: maxNPMFiles, Names: maxNPMNames, Bytes: maxNPMBytes},
		func(name string, h *tar.Header, r io.Reader) error {
			if p.Keep != nil && !slices.Contains(p.Keep, name) {
				return nil
			}
			sum, description, err := unpackFile(root, path.Join(p.Dir, name), h.Mode&0o100 != 0 || strings.HasPrefix(name, "bin/"), bundledPackage.MatchString(name), r)
			if err != nil {
				return err
			}
			if err := pinned.VerifyFile(name, sum); err != nil {
				return err
			}
			if _, ok := pinned.Files[name]; ok {
				packages[0].Files = append(packages[0].Files, File{Name: path.Join(guest.Tools, p.Dir, name), Size: h.Size, SHA256: sum})
			}
			var bundled struct{ Name, Version string }
			if json.Unmarshal(description, &bundled) == nil && bundled.Name != "" && bundled.Version != "" {
				packages = append(packages, Package{Type: "npm", Name: bundled.Name, Version: bundled.Version, In: pinned.Spec()})
			}
			found++
			return nil
		})
	if err != nil {
		return nil, err
	}
	if found < len(p.Keep) || found == 0 {
		return nil, fmt.Errorf("%s lacks some of %v", filepath.Base(tarball), p.Keep)
	}
	return packages, nil
}

// unpackFile writes one file and returns its sum, and its contents if keep.
func unpackFile(root *os.Root, target string, executable, keep bool, r io.Reader) (sum string, contents []byte, err error) {
	if err := root.MkdirAll(path.Dir(target), 0o755); err != nil {
		return "", nil, err
	}
	mode := os.FileMode(0o644)
	if executable {
		mode = 0o755
	}
	out, err := root.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return "", nil, err
	}
	h := sha256.New()
	w := io.MultiWriter(out, h)
	err = out.Chmod(mode) // whatever the umask is
	if err == nil && keep {
		contents, err = io.ReadAll(io.LimitReader(io.TeeReader(r, w), 1<<20))
	}
	if err == nil {
		_, err = io.Copy(w, r)
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	return hex.EncodeToString(h.Sum(nil)), contents, err
}
