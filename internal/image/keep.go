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
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Packages []string  `json:"packages,omitempty"`
	Created  time.Time `json:"created"`
	Used     time.Time `json:"used"` // when Build, Open or Hold last returned it
	Size     int64     `json:"size"` // bytes, shared layers counted fully
	Default  bool      `json:"default"`
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
	for _, m := range manifests {
		info := Info{ID: m.ID, Name: m.Name, Packages: m.Packages, Created: m.Created, Used: st.used(m.ID)}
		for _, l := range m.Layers {
			for _, f := range l.Files {
				info.Size += f.Size
			}
		}
		// The newest of its name is what jobs get.
		info.Default = m.Name == DefaultName && !slices.ContainsFunc(infos, func(i Info) bool { return i.Name == DefaultName })
		infos = append(infos, info)
	}
	return infos, nil
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
	if err := st.removeImage(m); err != nil {
		return 0, err
	}
	return st.collect(0)
}

// GC removes images that are not the newest of their name or whose use is
// longer ago than unused, unless somebody holds them, then the layers,
// templates and unfinished builds that belong to nothing. It returns how many
// bytes it freed.
func GC(ctx context.Context, dir string, unused time.Duration) (freed int64, err error) {
	st, err := openStore(dir, nil)
	if err != nil {
		return 0, err
	}
	unlock, err := st.lock(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if err := st.sweep(ctx); err != nil {
		return 0, err
	}
	manifests, err := st.manifests()
	if err != nil {
		return 0, err
	}
	newest := map[string]bool{}
	for _, m := range manifests {
		old := newest[m.Name] || time.Since(st.used(m.ID)) > unused
		newest[m.Name] = true
		if !old {
			continue
		}
		if err := st.removeImage(m); err != nil && !errors.Is(err, ErrInUse) {
			return 0, err
		}
	}
	return st.collect(time.Hour)
}

// removeImage removes an image's manifest; its layers are left to collect.
func (s *store) removeImage(m manifest) error {
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
	return os.RemoveAll(filepath.Join(s.dir, m.ID))
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

// collect removes layers, references and templates that no image has and
// nobody holds. Layers younger than age stay: Boot makes some that never
// belong to an image.
func (s *store) collect(age time.Duration) (freed int64, err error) {
	manifests, err := s.manifests()
	if err != nil {
		return 0, err
	}
	wanted := map[string]bool{}
	for _, m := range manifests {
		wanted[m.ID] = true
		for _, r := range m.Layers {
			wanted[r.Kind+"-"+r.ID] = true
		}
	}
	remove := func(dir string, n int64) error {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		freed += n
		return nil
	}
	layers, err := os.ReadDir(filepath.Join(s.dir, "layers"))
	if err != nil {
		return 0, err
	}
	for _, e := range layers {
		dir := filepath.Join(s.dir, "layers", e.Name())
		info, err := e.Info()
		if err != nil {
			continue
		}
		if wanted[e.Name()] || s.held(filepath.Join(dir, manifestName)) || age > 0 && time.Since(info.ModTime()) < age {
			wanted[e.Name()] = true
			continue
		}
		if err := remove(dir, treeSize(dir)); err != nil {
			return freed, err
		}
	}
	refs, err := os.ReadDir(filepath.Join(s.dir, "refs"))
	if err != nil {
		return freed, err
	}
	for _, e := range refs {
		path := filepath.Join(s.dir, "refs", e.Name())
		id, err := os.ReadFile(path)
		kind, _, _ := strings.Cut(e.Name(), "-")
		if err != nil || wanted[kind+"-"+strings.TrimSpace(string(id))] {
			continue
		}
		if err := remove(path, 0); err != nil {
			return freed, err
		}
	}
	if err := s.collectDebs(wanted, remove); err != nil {
		return freed, err
	}
	templates, err := os.ReadDir(filepath.Join(s.dir, "templates"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return freed, err
	}
	for _, e := range templates {
		id, _, _ := strings.Cut(e.Name(), "-")
		dir := filepath.Join(s.dir, "templates", e.Name())
		if wanted[id] || s.held(filepath.Join(dir, manifestName)) {
			continue
		}
		if err := remove(dir, treeSize(dir)); err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// collectDebs removes the kernel packages that no kept kernel layer came from.
func (s *store) collectDebs(wanted map[string]bool, remove func(string, int64) error) error {
	keep := map[string]bool{}
	for name := range wanted {
		if !strings.HasPrefix(name, "kernel-") {
			continue
		}
		var l Layer
		data, err := os.ReadFile(filepath.Join(s.dir, "layers", name, manifestName))
		if err != nil || json.Unmarshal(data, &l) != nil {
			continue
		}
		keep[l.Info["package"]+".deb"] = true
	}
	debs, err := os.ReadDir(filepath.Join(s.dir, "debs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range debs {
		path := filepath.Join(s.dir, "debs", e.Name())
		if keep[e.Name()] {
			continue
		}
		if err := remove(path, treeSize(path)); err != nil {
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
	dir := filepath.Join(i.dir, "templates", i.ID+"-"+hashStrings("template", key)[:16])
	if templateValid(dir, i.ID, key) {
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
	if templateValid(dir, i.ID, key) {
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
	return dir, os.Rename(tmp, dir)
}

// DropTemplate removes a template, for instance one that would not restore.
func (i *Image) DropTemplate(key string) error {
	return os.RemoveAll(filepath.Join(i.dir, "templates", i.ID+"-"+hashStrings("template", key)[:16]))
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
