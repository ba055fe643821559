package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Info describes an image in a list without opening it.
type Info struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	Packages   []string  `json:"packages,omitempty"`
	Tools      []string  `json:"tools,omitempty"` // in its tool cache: node@20.20.2
	Containers bool      `json:"containers"`      // it has a container engine
	Created    time.Time `json:"created"`
	Used       time.Time `json:"used"` // when Build, Open or Hold last returned it
	Size       int64     `json:"size"` // bytes, shared layers counted fully
	Default    bool      `json:"default"`
}

// List returns the images in dir, newest first. It reads manifests only.
func List(dir string) ([]Info, error) {
	st, err := openStore(dir, nil)
	if err != nil {
		return nil, err
	}
	manifests, err := st.manifests()
	if err != nil {
		return nil, err
	}
	infos := []Info{}
	std := standard(manifests)
	for _, m := range manifests {
		info := Info{ID: m.ID, Name: m.Name, Packages: m.Packages, Tools: m.Tools, Containers: hasEngine(m.Layers), Created: m.Created, Used: st.used(m.ID)}
		for _, l := range m.Layers {
			for _, f := range l.Files {
				info.Size += f.Size
			}
		}
		// The newest of its name is what jobs get.
		info.Default = m.Name == std && !slices.ContainsFunc(infos, func(i Info) bool { return i.Name == std })
		infos = append(infos, info)
	}
	return infos, nil
}

// hasEngine reports whether there is a disk in the container engine's layer: where
// Docker could not be had, there is a layer without.
func hasEngine(layers []layerRecord) bool {
	return slices.ContainsFunc(layers, func(l layerRecord) bool {
		return l.Kind == "engine" && slices.ContainsFunc(l.Files, func(f File) bool { return f.Name == engineName })
	})
}

// used returns when an image was last used: the modification time of its
// manifest, which touch sets.
func (s *store) used(id string) time.Time {
	info, err := os.Stat(filepath.Join(s.dir, id, manifestName))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

func (s *store) touch(id string) {
	now := time.Now()
	// Not being able to only makes the image look less used than it is.
	_ = os.Chtimes(filepath.Join(s.dir, id, manifestName), now, now)
}

// Hold keeps the image's files from being removed until release is called, or
// this process ends. Whoever runs machines holds their image.
func (i *Image) Hold() (release func(), err error) {
	var files []*os.File
	release = func() {
		for _, f := range files {
			f.Close()
		}
		files = nil
	}
	for _, l := range i.Layers {
		f, err := os.Open(l.path(manifestName))
		if err == nil {
			files = append(files, f)
			err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
		}
		if err == nil {
			// It may have been removed between opening and locking.
			_, err = os.Stat(l.path(manifestName))
		}
		if err != nil {
			release()
			return nil, fmt.Errorf("holding image %s: its %s layer is being removed: %w", i.Name, l.Kind, err)
		}
	}
	return release, nil
}

// Remove removes an image, named as for Open, with its templates and the
// layers that no other image has. It fails with ErrInUse while somebody holds
// it. It returns how many bytes it freed.
func Remove(ctx context.Context, dir, ref string) (freed int64, err error) {
	st, err := openStore(dir, nil)
	if err != nil {
		return 0, err
	}
	unlock, err := st.lock(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer unlock()
	manifests, err := st.manifests()
	if err != nil {
		return 0, err
	}
	m, err := find(manifests, ref)
	if err != nil {
		return 0, err
	}
	if err := st.inUse(m); err != nil {
		return 0, err
	}
	if err := os.RemoveAll(filepath.Join(st.dir, m.ID)); err != nil {
		return 0, err
	}
	c := &collection{store: st, gone: map[string]bool{}}
	err = c.orphans(0)
	return c.freed(), err
}

// Limits say what of the images to keep. A zero of either sets no limit.
type Limits struct {
	// Unused is how long an image or a template is kept that nobody uses.
	Unused time.Duration
	// Bytes bounds everything together: templates go first, which are made again
	// in seconds, then images, those not used for longest before others.
	Bytes int64
	// DryRun says what would be removed, and removes nothing.
	DryRun bool
}

// Removed is something that GC removed.
type Removed struct {
	Kind  string `json:"kind"` // image, layer, template, package, leftover
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"` // on disk
	Why   string `json:"why"`
}

// young is for how long GC takes nothing for unused: whoever made a layer or a
// template may not have got to use it.
const young = time.Hour

// GC removes images that are not the newest of their name, once they are not
// used, or that are beyond the limits, then the layers, templates and unfinished builds that belong to
// nothing. What somebody holds stays, and so does the image that jobs get. It
// returns what it removed, also with an error.
func GC(ctx context.Context, dir string, l Limits) ([]Removed, error) {
	st, err := openStore(dir, nil)
	if err != nil {
		return nil, err
	}
	unlock, err := st.lock(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer unlock()
	c := &collection{store: st, dry: l.DryRun, gone: map[string]bool{}}
	if err := c.leftovers(ctx); err != nil {
		return c.removed, err
	}
	manifests, err := st.manifests()
	if err != nil {
		return c.removed, err
	}
	newest := map[string]bool{}
	for _, m := range manifests {
		replaced := newest[m.Name]
		newest[m.Name] = true
		switch {
		case replaced && time.Since(st.used(m.ID)) > young: // another version of this program may use it in turn
			err = c.image(m, "a newer one has its name")
		case m.Name != standard(manifests) && l.Unused > 0 && time.Since(st.used(m.ID)) > l.Unused:
			err = c.image(m, "not used for "+days(l.Unused))
		}
		if err != nil {
			return c.removed, err
		}
	}
	if err := c.orphans(young); err != nil {
		return c.removed, err
	}
	if err := c.templates(func(id string, used time.Time) string {
		if l.Unused > 0 && time.Since(used) > l.Unused {
			return "not used for " + days(l.Unused)
		}
		return ""
	}); err != nil || l.Bytes <= 0 {
		return c.removed, err
	}
	return c.removed, c.shrink(ctx, manifests, l.Bytes)
}

func days(d time.Duration) string {
	if d >= 24*time.Hour && d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	}
	return d.String()
}

// collection is one removal of what is not needed. The store is locked.
type collection struct {
	*store
	dry     bool
	gone    map[string]bool // images, in a dry run still there
	removed []Removed
}

func (c *collection) note(r Removed) { c.removed = append(c.removed, r) }

func (c *collection) freed() (n int64) {
	for _, r := range c.removed {
		n += r.Bytes
	}
	return n
}

// leftovers removes what interrupted builds left: see sweep.
func (c *collection) leftovers(ctx context.Context) error {
	tmp := filepath.Join(c.dir, "tmp")
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	for _, e := range entries {
		c.note(Removed{"leftover", e.Name(), treeSize(filepath.Join(tmp, e.Name())), "of an interrupted build"})
	}
	if c.dry {
		return nil
	}
	return c.sweep(ctx)
}

// image removes an image unless it is in use. Its layers are left to orphans.
func (c *collection) image(m manifest, why string) error {
	err := c.inUse(m)
	if err == nil && !c.dry {
		err = os.RemoveAll(filepath.Join(c.dir, m.ID))
	}
	if errors.Is(err, ErrInUse) {
		return nil
	}
	if err != nil {
		return err
	}
	c.gone[m.ID] = true
	c.note(Removed{Kind: "image", Name: m.Name + " " + m.ID[:12], Why: why})
	return nil
}

// shrink removes templates and images while all is larger than limit.
func (c *collection) shrink(ctx context.Context, manifests []manifest, limit int64) error {
	before := c.freed()
	size := treeSize(c.dir)
	if c.dry {
		size -= before // it is still there
	}
	over := func() bool { return size-(c.freed()-before) > limit }
	why := "all together take more than " + bytesText(limit)
	type one struct {
		id   string
		used time.Time
	}
	var old []one
	if err := c.templates(func(id string, used time.Time) string {
		old = append(old, one{id, used})
		return ""
	}); err != nil {
		return err
	}
	slices.SortFunc(old, func(a, b one) int { return a.used.Compare(b.used) })
	for _, t := range old {
		if !over() || ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := c.templates(func(id string, used time.Time) string {
			if id == t.id && time.Since(used) > young {
				return why
			}
			return ""
		}); err != nil {
			return err
		}
	}
	byUse := slices.Clone(manifests)
	slices.SortFunc(byUse, func(a, b manifest) int { return c.used(a.ID).Compare(c.used(b.ID)) })
	for _, m := range byUse {
		if !over() || ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if c.gone[m.ID] || isDefault(manifests, m.ID) || time.Since(c.used(m.ID)) < young {
			continue
		}
		if err := c.image(m, why); err != nil {
			return err
		}
		if err := c.orphans(young); err != nil {
			return err
		}
	}
	return nil
}

// isDefault: the image is what jobs get, the newest of the default's name.
func isDefault(manifests []manifest, id string) bool {
	std := standard(manifests)
	i := slices.IndexFunc(manifests, func(m manifest) bool { return m.Name == std })
	return i >= 0 && manifests[i].ID == id
}

// inUse is why an image cannot be removed: somebody holds a layer that no other
// image has.
func (s *store) inUse(m manifest) error {
	for _, r := range m.Layers {
		if s.held(filepath.Join(s.layerDir(r.Kind, r.ID), manifestName)) {
			shared := false
			if others, err := s.manifests(); err == nil {
				shared = slices.ContainsFunc(others, func(o manifest) bool {
					return o.ID != m.ID && slices.ContainsFunc(o.Layers, func(l layerRecord) bool { return l.ID == r.ID })
				})
			}
			if !shared {
				return fmt.Errorf("image %s (%.12s): %w: a running machine was started from it", m.Name, m.ID, ErrInUse)
			}
		}
	}
	return nil
}

// held reports whether somebody has a shared lock on a file.
func (s *store) held(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil
}

// orphans removes layers, references and templates that no image has and nobody
// holds. Layers younger than age stay: Boot makes some that never belong to an
// image.
func (c *collection) orphans(age time.Duration) error {
	manifests, err := c.manifests()
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, m := range manifests {
		if c.gone[m.ID] {
			continue
		}
		wanted[m.ID] = true
		for _, r := range m.Layers {
			wanted[r.Kind+"-"+r.ID] = true
		}
	}
	layers, err := os.ReadDir(filepath.Join(c.dir, "layers"))
	if err != nil {
		return err
	}
	for _, e := range layers {
		dir := filepath.Join(c.dir, "layers", e.Name())
		info, err := e.Info()
		if err != nil {
			continue
		}
		if wanted[e.Name()] || c.held(filepath.Join(dir, manifestName)) || age > 0 && time.Since(info.ModTime()) < age {
			wanted[e.Name()] = true
			continue
		}
		if err := c.remove("layer", dir, "no image has it"); err != nil {
			return err
		}
	}
	refs, err := os.ReadDir(filepath.Join(c.dir, "refs"))
	if err != nil {
		return err
	}
	for _, e := range refs {
		path := filepath.Join(c.dir, "refs", e.Name())
		id, err := os.ReadFile(path)
		kind, _, _ := strings.Cut(e.Name(), "-")
		if err != nil || c.dry || wanted[kind+"-"+strings.TrimSpace(string(id))] {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	if err := c.debs(wanted); err != nil {
		return err
	}
	return c.templates(func(id string, _ time.Time) string {
		if image, _, _ := strings.Cut(id, "-"); !wanted[image] {
			return "its image is gone"
		}
		return ""
	})
}

// remove removes a file or directory, once.
func (c *collection) remove(kind, path, why string) error {
	r := Removed{Kind: kind, Name: filepath.Base(path), Bytes: treeSize(path), Why: why}
	if slices.ContainsFunc(c.removed, func(o Removed) bool { return o.Kind == r.Kind && o.Name == r.Name }) {
		return nil // a dry run, which has seen it
	}
	if !c.dry {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	c.note(r)
	return nil
}

// templates removes the templates that nobody holds and for which why says why.
// It gets a template's name and when it was last used.
func (c *collection) templates(why func(name string, used time.Time) string) error {
	templates, err := os.ReadDir(filepath.Join(c.dir, "templates"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range templates {
		dir := filepath.Join(c.dir, "templates", e.Name())
		var used time.Time // of one without a manifest: never
		f, err := os.Open(filepath.Join(dir, manifestName))
		if err == nil {
			if info, err := f.Stat(); err == nil {
				used = info.ModTime()
			}
		}
		if reason := why(e.Name(), used); reason != "" {
			// Locked until it is gone, so that who finds it meanwhile makes another.
			if f == nil || syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
				err = c.remove("template", dir, reason)
			} else {
				err = nil
			}
		} else {
			err = nil
		}
		if f != nil {
			f.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// debs removes the kernel packages that no kept kernel layer came from.
func (c *collection) debs(wanted map[string]bool) error {
	keep := map[string]bool{}
	for name := range wanted {
		if !strings.HasPrefix(name, "kernel-") {
			continue
		}
		var l Layer
		data, err := os.ReadFile(filepath.Join(c.dir, "layers", name, manifestName))
		if err != nil || json.Unmarshal(data, &l) != nil {
			continue
		}
		keep[l.Info["package"]+".deb"] = true
	}
	debs, err := os.ReadDir(filepath.Join(c.dir, "debs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range debs {
		if keep[e.Name()] {
			continue
		}
		if err := c.remove("package", filepath.Join(c.dir, "debs", e.Name()), "no kernel is made of it"); err != nil {
			return err
		}
	}
	return nil
}

// treeSize returns the bytes a directory's files occupy.
func treeSize(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // what cannot be seen is not counted
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
				n += st.Blocks * 512
			}
		}
		return nil
	})
	return n
}

// templateManifest lies in a template's directory.
type templateManifest struct {
	Image string           `json:"image"`
	Key   string           `json:"key"`
	Files map[string]stamp `json:"files"`
	// Created tells people when.
	Created time.Time `json:"created"`
}

// Template returns the directory of a machine snapshot taken from this image,
// making it if it is not there. key says everything else that it depends on:
// driver and its version, processor, memory. create fills an empty directory
// (files only), which afterwards gets another path: nothing in it may name
// where it is. A template whose files were touched since is made again.
//
// It serves several processes at once: one makes the template, the others wait
// as long as ctx allows.
func (i *Image) Template(ctx context.Context, key string, create func(ctx context.Context, dir string) error) (string, error) {
	s, err := openStore(i.dir, nil)
	if err != nil {
		return "", err
	}
	dir := i.templateDir(key)
	if templateValid(dir, i.ID, key) && i.useTemplate(dir) {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	unlock, err := s.lock(ctx, nil)
	if err != nil {
		return "", err
	}
	defer unlock()
	if templateValid(dir, i.ID, key) && i.useTemplate(dir) {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(filepath.Join(s.dir, "tmp"), "template-")
	if err != nil {
		return "", s.full(err)
	}
	defer os.RemoveAll(tmp) // fails to find it after the rename, as it should
	if err := create(ctx, tmp); err != nil {
		return "", s.full(fmt.Errorf("making a template of image %s: %w", i.Name, err))
	}
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return "", err
	}
	m := templateManifest{Image: i.ID, Key: key, Files: map[string]stamp{}, Created: time.Now().UTC().Truncate(time.Second)}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return "", err
		}
		if !info.Mode().IsRegular() {
			return "", fmt.Errorf("making a template: %s is not a regular file", e.Name())
		}
		m.Files[e.Name()] = stampOf(info)
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(tmp, manifestName), data, 0o644); err != nil {
		return "", s.full(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", err
	}
	i.useTemplate(dir)
	return dir, nil
}

func (i *Image) templateDir(key string) string {
	return filepath.Join(i.dir, "templates", i.ID+"-"+hashStrings("template", key)[:16])
}

// useTemplate keeps a template from being collected while this image, or the
// process, lives, and notes that it was used. It reports false if the template
// is being removed.
func (i *Image) useTemplate(dir string) bool {
	i.templates.Lock()
	defer i.templates.Unlock()
	path := filepath.Join(dir, manifestName)
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		f.Close()
		return false
	}
	if _, err := os.Stat(path); err != nil { // removed between opening and locking
		f.Close()
		return false
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now) // where we may not it only looks less used
	if old := i.templates.held[dir]; old != nil {
		old.Close()
	}
	if i.templates.held == nil {
		i.templates.held = map[string]*os.File{}
	}
	i.templates.held[dir] = f
	return true
}

// DropTemplate removes a template, for instance one that would not restore.
func (i *Image) DropTemplate(key string) error {
	dir := i.templateDir(key)
	i.templates.Lock()
	defer i.templates.Unlock()
	if f := i.templates.held[dir]; f != nil {
		f.Close()
		delete(i.templates.held, dir)
	}
	return os.RemoveAll(dir)
}

// templateValid compares a template's files with what they were. Access does
// not change a stamp, so a template stays valid however often it is restored.
func templateValid(dir, image, key string) bool {
	data, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return false
	}
	var m templateManifest
	if json.Unmarshal(data, &m) != nil || m.Image != image || m.Key != key || len(m.Files) == 0 {
		return false
	}
	for name, want := range m.Files {
		info, err := os.Lstat(filepath.Join(dir, filepath.Base(name)))
		if err != nil || stampOf(info) != want {
			return false
		}
	}
	return true
}
