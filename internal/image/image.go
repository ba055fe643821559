package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options say what to build and where to keep it.
type Options struct {
	// Dir is the directory that holds images, layers and templates
	// (cache/images). It is made if missing.
	Dir string
	// Agent is the path of the static guest agent (bin/hearth-guest).
	Agent string
	// AgentVersion is the agent's version, for people; "" is what its build tells.
	AgentVersion string
	// Recipe is the system that the image is made of, one of Recipes; "" is Debian12.
	Recipe string
	// Import is the container image that its file system is of, instead of a recipe's
	// and packages; nil is none.
	Import *Imported
	// Name is what the image is called in lists; "" is the recipe's, with the
	// extra packages if there are any.
	Name string
	// Packages are packages of the recipe's distribution wanted beyond those that
	// every image has.
	Packages []string
	// Tools are what the tool cache has: see ToolNames. nil is what ReadTools says.
	Tools []Tool
	// Mirror is a mirror of the recipe's distribution, such as
	// http://deb.debian.org/debian; Debian's security updates are expected at the
	// same address with "-security" added. By default the host's own sources are
	// used, or the distribution's.
	Mirror string
	// Refresh builds anew even if nothing changed here: the same packages in
	// the versions that Debian has today.
	Refresh bool
	// Progress, if set, hears how the build goes, one call at a time.
	Progress func(Progress)
	// Log hears about repairs and clean-up; nil is silence.
	Log *slog.Logger
}

// Progress tells how a build stands. Parts are built side by side, so steps of
// different parts come interleaved.
type Progress struct {
	Part     string  // kernel, initrd, base, tools, modules, engine, toolcache; "" for the whole
	Detail   string  // what is being done to it, for people
	Fraction float64 // of this part, 0 to 1; an estimate
	Total    float64 // of the whole build, 0 to 1; an estimate
	Bytes    int64   // size of the part once it is done
	Cached   bool    // the part was there already
	Done     bool    // the part is complete (the image, if Part is "")
	Took     time.Duration
}

// An Image is what a machine boots from. Its files are shared by all machines
// and never written to.
type Image struct {
	ID       string    // sha256 over the layers' IDs, lower-case hex
	Name     string    // for people
	Packages []string  // wanted beyond the default ones, sorted
	Created  time.Time // when it was put together
	Kernel   string    // path of an uncompressed ELF kernel
	Initrd   string    // path of a cpio archive with the agent as /init
	Base     string    // path of the read-only root file system ("" from Boot)
	Tools    string    // path of the file system for /opt/hearth ("" from Boot)
	Modules  string    // path of the file system for /usr/lib/modules ("" from Boot, and of older images)
	Engine   string    // path of the file system with Docker ("" too where it could not be made: see NoEngine)
	Cache    string    // path of the file system with the tool cache ("" if there is nothing in it)
	Layers   []*Layer  // in the order kernel, initrd, base, tools, modules, engine, toolcache

	dir string
	// Templates in use, as locks on their manifests: see Template.
	templates struct {
		sync.Mutex
		held map[string]*os.File
	}
}

// NoEngine says, for people, why the image has no Engine; "" if it has one.
func (i *Image) NoEngine() string {
	if i.Engine != "" {
		return ""
	}
	for _, l := range i.Layers {
		if l.Kind == "engine" {
			return l.Info[engineLacks] + ": `hearth image build --refresh` tries again"
		}
	}
	if from := importOrigin(i.Layers); from != "" {
		return "it was imported from " + from + ", and what is in that is all there is"
	}
	return "it was built by an older hearth: `hearth image build` makes it anew"
}

// EngineVersion is the version of the image's Docker, as Debian names it; "" where
// it has none.
func (i *Image) EngineVersion() string {
	for _, l := range i.Layers {
		if l.Kind == "engine" {
			return l.Info["docker"]
		}
	}
	return ""
}

// BaseFS and ToolsFS name the file system type of Image.Base and Image.Tools.
const (
	BaseFS  = "erofs"
	ToolsFS = "erofs"
)

// Size returns the bytes of all the image's files. Layers shared with other
// images count fully.
func (i *Image) Size() (n int64) {
	for _, l := range i.Layers {
		n += l.size()
	}
	return n
}

// manifest is an image as it lies on disk.
type manifest struct {
	Version  int           `json:"version"`
	ID       string        `json:"id"`
	Name     string        `json:"name"`
	Packages []string      `json:"packages,omitempty"`
	Tools    []string      `json:"tools,omitempty"`
	Created  time.Time     `json:"created"`
	Layers   []layerRecord `json:"layers"`
}

// imageID is the hash that names an image: its layers' kinds and IDs.
func imageID(layers []layerRecord) string {
	ids := []string{}
	for _, l := range layers {
		ids = append(ids, l.Kind+" "+l.ID)
	}
	return hashStrings("image", "1", ids...)
}

type layerRecord struct {
	Kind  string `json:"kind"`
	ID    string `json:"id"`
	Files []File `json:"files"`
}

// layerKinds are every image's layers, in their order; after them comes the tool cache
// of those that have one.
var layerKinds = [...]string{"kernel", "initrd", "base", "tools", "modules", "engine"}

// partWeight is each part's share of a whole build's time, as measured.
var partWeight = map[string]float64{"kernel": 0.12, "initrd": 0.01, "base": 0.65, "tools": 0.08, "modules": 0.02, "engine": 0.12, "toolcache": 0.15}

// Build returns the image that opt describes, building what of it is not there
// yet or is damaged. With everything in place it costs a few stat calls and a
// hash over the agent. Errors name the part, the place and what to do: a
// *MissingToolError for a program that is not installed, ErrDiskFull, the last
// lines of a program that failed. Whatever happens, nothing half-made stays.
func Build(ctx context.Context, opt Options) (*Image, error) {
	if opt.Tools == nil {
		var err error
		if opt.Tools, err = ReadTools(opt.Dir); err != nil {
			return nil, err
		}
	}
	kinds := layerKinds[:]
	if len(opt.Tools) > 0 {
		kinds = append(slices.Clone(kinds), "toolcache")
	}
	return build(ctx, opt, kinds)
}

// Boot builds the kernel and the initrd only: enough for a machine that lives
// in its initrd, as the drivers' own tests do. The image has no Base and no
// Tools and does not appear in List.
func Boot(ctx context.Context, opt Options) (*Image, error) {
	return build(ctx, opt, layerKinds[:2])
}

func build(ctx context.Context, opt Options, kinds []string) (*Image, error) {
	st, err := openStore(opt.Dir, opt.Log)
	if err != nil {
		return nil, err
	}
	opt.Packages, err = cleanPackages(opt.Packages)
	if err != nil {
		return nil, err
	}
	r, err := recipeOf(opt.Recipe)
	if err != nil {
		return nil, err
	}
	if opt.Import != nil {
		kinds = slices.DeleteFunc(slices.Clone(kinds), func(k string) bool { return k == "engine" }) // its libraries are not this system's
	}
	b := &builder{store: st, opt: opt, recipe: r, tools: opt.Tools, kinds: kinds, fractions: map[string]float64{}}
	agentSum, err := b.agentSum(opt.Agent)
	if err != nil {
		return nil, err
	}
	if !opt.Refresh {
		// The usual case needs no lock: layers never change once they are there.
		if layers, err := b.lookupAll(agentSum); err == nil {
			return b.assemble(layers)
		}
	}
	unlock, err := st.lock(ctx, func(holder string) {
		b.report(Progress{Detail: "waiting for another build (" + holder + ")"})
	})
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := st.sweep(ctx); err != nil {
		return nil, err
	}
	layers, err := b.buildAll(ctx, agentSum)
	if err != nil {
		return nil, fmt.Errorf("building the image: %w", st.full(err))
	}
	img, err := b.assemble(layers)
	if err != nil {
		return nil, st.full(err)
	}
	b.report(Progress{Fraction: 1, Total: 1, Bytes: img.Size(), Done: true, Took: time.Since(b.began)})
	return img, nil
}

// builder is one build.
type builder struct {
	*store
	opt    Options
	recipe *recipe
	tools  []Tool
	kinds  []string
	began  time.Time
	// keyring is what package lists must be signed with; "" is the recipe's.
	keyring string
	// sumKey is the key of Go's checksum database; "" is Go's.
	sumKey string

	mu        sync.Mutex // guards fractions and serialises Progress
	fractions map[string]float64
}

// agentSum hashes the agent, the one input that is a file.
func (b *builder) agentSum(path string) (string, error) {
	if _, err := readAgent(path); err != nil {
		return "", err
	}
	return hashFile(path)
}

// inputs returns the hash of what a layer is built from.
func (b *builder) inputs(kind string, kernel *Layer, agentSum string) (string, error) {
	switch kind {
	case "kernel":
		return kernelInputs(), nil
	case "initrd":
		return hashStrings("initrd", initrdVersion, kernel.ID, agentSum), nil
	case "base":
		if b.opt.Import != nil {
			return hashStrings("import", importVersion, b.opt.Import.Digest), nil
		}
		return baseInputs(b.recipe, b.opt.Packages), nil
	case "tools":
		return toolsInputs()
	case "modules":
		return hashStrings("modules", modulesVersion, kernel.ID), nil
	case "engine":
		return engineInputs(), nil
	case "toolcache":
		return toolCacheInputs(b.tools), nil
	}
	panic("image: unknown layer kind " + kind)
}

func (b *builder) lookupAll(agentSum string) ([]*Layer, error) {
	var layers []*Layer
	for _, kind := range b.kinds {
		var kernel *Layer
		if len(layers) > 0 {
			kernel = layers[0]
		}
		inputs, err := b.inputs(kind, kernel, agentSum)
		if err != nil {
			return nil, err
		}
		l, err := b.lookup(kind, inputs)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return layers, nil
}

// buildAll builds the layers that are missing, side by side where they do not
// depend on each other. The first failure stops the others.
func (b *builder) buildAll(ctx context.Context, agentSum string) ([]*Layer, error) {
	b.began = time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	layers := make([]*Layer, len(b.kinds))
	errs := make([]error, len(b.kinds))
	var wg sync.WaitGroup
	one := func(i int, kernel *Layer) {
		if layers[i], errs[i] = b.layerFor(ctx, b.kinds[i], kernel, agentSum); errs[i] != nil {
			cancel(&stoppedError{b.kinds[i]})
		}
	}
	for i, kind := range b.kinds {
		switch kind {
		case "kernel":
			wg.Go(func() {
				if one(i, nil); errs[i] != nil {
					return
				}
				for j, kind := range b.kinds {
					if ofKernel(kind) {
						one(j, layers[i])
					}
				}
			})
		default:
			if ofKernel(kind) {
				continue
			}
			wg.Go(func() { one(i, nil) })
		}
	}
	wg.Wait()
	return layers, causes(b.kinds, errs)
}

// ofKernel reports whether a layer is made of the kernel's.
func ofKernel(kind string) bool { return kind == "initrd" || kind == "modules" }

// stoppedError is why the other parts are not built any further.
type stoppedError struct{ part string }

func (e *stoppedError) Error() string { return "stopped because the " + e.part + " failed" }

// causes joins the errors of parts. The failure that came first cancelled the others:
// causes are reported, not echoes.
func causes(parts []string, errs []error) error {
	var real []error
	for i, err := range errs {
		if _, echo := errors.AsType[*stoppedError](err); err != nil && !echo {
			real = append(real, fmt.Errorf("%s: %w", parts[i], err))
		}
	}
	return cmp.Or(errors.Join(real...), errors.Join(errs...))
}

// layerFor returns a layer from the cache or builds it.
func (b *builder) layerFor(ctx context.Context, kind string, kernel *Layer, agentSum string) (*Layer, error) {
	inputs, err := b.inputs(kind, kernel, agentSum)
	if err != nil {
		return nil, err
	}
	if !b.opt.Refresh || ofKernel(kind) {
		l, err := b.lookup(kind, inputs)
		switch {
		case err == nil:
			b.report(Progress{Part: kind, Fraction: 1, Bytes: l.size(), Cached: true, Done: true})
			return l, nil
		case errors.Is(err, ErrCorrupt):
			b.log.Warn("building a damaged part of the image again", "part", kind, "err", err)
			b.report(Progress{Part: kind, Detail: "damaged, building it again: " + err.Error()})
		case !errors.Is(err, ErrNotFound):
			return nil, err
		}
	}
	l, err := b.create(ctx, kind, inputs, func(ctx context.Context, dir string) (map[string]string, error) {
		switch kind {
		case "kernel":
			return b.buildKernel(ctx, dir)
		case "initrd":
			return b.buildInitrd(ctx, dir, kernel, b.opt.Agent)
		case "base":
			if b.opt.Import != nil {
				return b.buildImport(ctx, dir)
			}
			return b.buildBase(ctx, dir)
		case "tools":
			return b.buildTools(ctx, dir)
		case "modules":
			return b.buildModules(ctx, dir, kernel)
		case "engine":
			return b.buildEngine(ctx, dir)
		case "toolcache":
			return b.buildToolCache(ctx, dir)
		}
		panic("image: unknown layer kind " + kind)
	})
	if err != nil {
		return nil, err
	}
	b.report(Progress{Part: kind, Fraction: 1, Bytes: l.size(), Done: true, Took: l.Took})
	return l, nil
}

// report passes progress on, one call at a time, with the whole's share filled in.
func (b *builder) report(p Progress) {
	if b.opt.Progress == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.Part != "" {
		b.fractions[p.Part] = max(p.Fraction, b.fractions[p.Part])
		var sum float64
		for _, kind := range b.kinds {
			p.Total += b.fractions[kind] * partWeight[kind]
			sum += partWeight[kind]
		}
		p.Total /= sum
	}
	b.opt.Progress(p)
}

// part reports on one part of the build.
type part struct {
	b    *builder
	name string
}

func (b *builder) step(name string) part { return part{b, name} }

func (p part) detail(fraction float64, text string) {
	p.b.report(Progress{Part: p.name, Fraction: fraction, Detail: text})
}

// assemble makes an image of its layers and records it.
func (b *builder) assemble(layers []*Layer) (*Image, error) {
	m := manifest{Version: 1, Name: b.opt.Name, Packages: b.opt.Packages, Created: time.Now().UTC().Truncate(time.Second)}
	for _, l := range layers {
		m.Layers = append(m.Layers, layerRecord{Kind: l.Kind, ID: l.ID, Files: l.Files})
		if l.Kind == "toolcache" {
			m.Tools = cached(l)
		}
	}
	m.ID = imageID(m.Layers)
	if m.Name == "" {
		m.Name = strings.Join(append([]string{b.recipe.name}, b.opt.Packages...), "+")
	}
	img := newImage(b.dir, m, layers)
	if img.Base == "" {
		return img, nil // from Boot: not an image that a job could run in
	}
	path := filepath.Join(b.dir, m.ID, manifestName)
	if data, err := os.ReadFile(path); err == nil {
		var old manifest
		if json.Unmarshal(data, &old) == nil && old.ID == m.ID && old.Name == m.Name && slices.EqualFunc(old.Layers, m.Layers, sameLayer) {
			img.Created = old.Created
			b.touch(m.ID)
			return img, nil
		}
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := writeAtomic(path, append(data, '\n')); err != nil {
		return nil, err
	}
	return img, nil
}

func sameLayer(a, b layerRecord) bool {
	return a.Kind == b.Kind && a.ID == b.ID && slices.Equal(a.Files, b.Files)
}

func newImage(dir string, m manifest, layers []*Layer) *Image {
	img := &Image{ID: m.ID, Name: m.Name, Packages: m.Packages, Created: m.Created, Layers: layers, dir: dir}
	for _, l := range layers {
		switch l.Kind {
		case "kernel":
			img.Kernel = l.path(vmlinuxName)
		case "initrd":
			img.Initrd = l.path(initrdName)
		case "base":
			img.Base = l.path(baseName)
		case "tools":
			img.Tools = l.path(toolsName)
		case "modules":
			img.Modules = l.path(modulesName)
		case "engine":
			if slices.ContainsFunc(l.Files, func(f File) bool { return f.Name == engineName }) {
				img.Engine = l.path(engineName)
			}
		case "toolcache":
			img.Cache = l.path(toolCacheName)
		}
	}
	return img
}

// Open returns an image that was built before, by its ID, an unambiguous
// beginning of it (8 digits or more), or its name (the newest of that name),
// verified like Build does.
func Open(dir, ref string) (*Image, error) {
	st, err := openStore(dir, nil)
	if err != nil {
		return nil, err
	}
	manifests, err := st.manifests()
	if err != nil {
		return nil, err
	}
	m, err := find(manifests, ref)
	if err != nil {
		return nil, err
	}
	return st.open(m)
}

// find returns the one image that a reference means.
func find(manifests []manifest, ref string) (manifest, error) {
	var found []manifest
	for _, m := range manifests { // newest first
		if m.ID == ref || len(ref) >= 8 && strings.HasPrefix(m.ID, ref) {
			found = append(found, m)
		}
	}
	if len(found) == 0 {
		if i := slices.IndexFunc(manifests, func(m manifest) bool { return m.Name == ref }); i >= 0 {
			found = append(found, manifests[i])
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return manifest{}, fmt.Errorf("%q is the beginning of %d images' IDs: give more of it", ref, len(found))
	case strings.ContainsAny(ref, "/:"):
		return manifest{}, fmt.Errorf("%q: %w: it looks like a container image, from which hearth cannot make machines yet; `hearth image build --packages a,b --name NAME` makes an image with further Debian packages", ref, ErrNotFound)
	}
	return manifest{}, fmt.Errorf("%q: %w: `hearth image list` names those there are, `hearth image build` makes one", ref, ErrNotFound)
}

func (s *store) open(m manifest) (*Image, error) {
	path := filepath.Join(s.dir, m.ID, manifestName)
	if imageID(m.Layers) != m.ID {
		return nil, fmt.Errorf("%s: %w: its layers are not those of image %.12s: `hearth image build` mends it", path, ErrCorrupt, m.ID)
	}
	var layers []*Layer
	for _, r := range m.Layers {
		l, err := s.layer(r.Kind, r.ID)
		if errors.Is(err, ErrNotFound) {
			err = fmt.Errorf("%w: its %s layer is gone", ErrCorrupt, r.Kind)
		}
		if err != nil {
			return nil, fmt.Errorf("image %s: %w: `hearth image build` mends it", m.Name, err)
		}
		// The layer's own list is the one that its ID stands for.
		if !slices.Equal(r.Files, l.Files) {
			return nil, fmt.Errorf("%s: %w: it lists other files of the %s than there are: `hearth image build` mends it", path, ErrCorrupt, r.Kind)
		}
		layers = append(layers, l)
	}
	s.touch(m.ID)
	return newImage(s.dir, m, layers), nil
}

// manifests reads the images there are, newest first. Directories that hold
// none are passed over.
func (s *store) manifests() ([]manifest, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var all []manifest
	for _, e := range entries {
		if !isHash(e.Name()) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(s.dir, e.Name(), manifestName))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		var m manifest
		if err := json.Unmarshal(data, &m); err != nil || m.ID != e.Name() {
			s.log.Warn("passing over an unreadable image manifest", "image", e.Name(), "err", err)
			continue
		}
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b manifest) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all, nil
}

// Verify reads every byte of the image's files again and compares it with what
// was built. Build and Open do the same for files whose size, times or inode
// changed since they were last read.
func (i *Image) Verify() error {
	for _, l := range i.Layers {
		if err := l.verify(true); err != nil {
			return fmt.Errorf("image %s: %w: `hearth image build` mends it", i.Name, err)
		}
	}
	return nil
}
