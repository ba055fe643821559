package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// apt runs the distribution's package tools with package lists of our own, so
// that a build needs neither root nor lists that somebody updated, and works
// on a host of another release. The host's apt configuration (proxies) and,
// where it has them, its mirrors of this release are kept.
type apt struct {
	dir     string   // private, removed by the owner
	sources []string // one-line sources
}

const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// newApt makes a recipe's package lists under dir and reads them from the network.
func (b *builder) newApt(ctx context.Context, dir string, r *recipe) (*apt, error) {
	return b.newAptOf(ctx, dir, r, b.sources(ctx, r))
}

// newAptOf is newApt for given one-line sources.
func (b *builder) newAptOf(ctx context.Context, dir string, r *recipe, sources []string) (*apt, error) {
	a := &apt{dir: filepath.Join(dir, "apt"), sources: sources}
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	keys, err := b.keys(r, a.dir)
	if err != nil {
		return nil, err
	}
	var list strings.Builder
	for _, s := range a.sources {
		list.WriteString(strings.Replace(s, "deb ", "deb [signed-by="+keys+"] ", 1) + "\n")
	}
	if err := os.WriteFile(filepath.Join(a.dir, "sources.list"), []byte(list.String()), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(a.dir, "state", "status"), nil, 0o644); err != nil {
		return nil, err
	}
	if _, err := a.run(ctx, "", "apt-get", "update", "--error-on=any"); err != nil {
		return nil, fmt.Errorf("reading %s's package lists: %w", r.title, err)
	}
	return a, nil
}

// sources returns the package sources to build from: a given mirror, else the
// host's own sources for this release, else its makers'.
func (b *builder) sources(ctx context.Context, r *recipe) []string {
	if b.opt.Mirror != "" && r.name == b.recipe.name {
		return r.sources(b.opt.Mirror)
	}
	out, err := tool{argv: []string{"apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)", "Created-By: Packages"}}.run(ctx)
	if err != nil {
		return r.sources("")
	}
	var found []string
	main := false
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 4 || f[0] != r.title || !slices.Contains(strings.Fields(r.components), f[3]) {
			continue
		}
		if !slices.ContainsFunc(r.pockets[:], func(p pocket) bool { return f[2] == r.suite+p.suffix }) {
			continue
		}
		if s := "deb " + strings.TrimSuffix(f[1], "/") + " " + f[2] + " " + f[3]; !slices.Contains(found, s) {
			found = append(found, s)
		}
		main = main || f[2] == r.suite && f[3] == "main"
	}
	if !main {
		return r.sources("")
	}
	return found
}

func (a *apt) run(ctx context.Context, dir string, argv ...string) ([]byte, error) {
	options := []string{
		"-oDir::State=" + filepath.Join(a.dir, "state"),
		"-oDir::State::status=" + filepath.Join(a.dir, "state", "status"),
		"-oDir::Cache=" + filepath.Join(a.dir, "cache"),
		"-oDir::Etc::sourcelist=" + filepath.Join(a.dir, "sources.list"),
		"-oDir::Etc::sourceparts=/dev/null",
		"-oDir::Etc::preferences=/dev/null",
		"-oDir::Etc::preferencesparts=/dev/null",
		"-oAPT::Architecture=amd64",
		"-oAPT::Architectures=amd64",
		"-oAPT::Sandbox::User=root", // it cannot reach into our directory
		"-oAcquire::Languages=none",
		// Whatever the host's configuration allows itself: what goes into an image
		// is signed by its makers.
		"-oAPT::Get::AllowUnauthenticated=false",
		"-oAcquire::AllowInsecureRepositories=false",
		"-oAcquire::AllowWeakRepositories=false",
		"-oAcquire::AllowDowngradeToInsecureRepositories=false",
		"-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"-oAcquire::Retries=3",
	}
	return tool{argv: append(append([]string{argv[0]}, options...), argv[1:]...), dir: dir}.run(ctx)
}

// dependency returns the package with the given prefix that a meta package
// depends on.
func (a *apt) dependency(ctx context.Context, meta, prefix string) (string, error) {
	out, err := a.run(ctx, "", "apt-cache", "depends", "--important", meta)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
		if ok && strings.HasPrefix(name, prefix) {
			return name, nil
		}
	}
	return "", fmt.Errorf("package %s depends on no %s… package", meta, prefix)
}

// download fetches a package into dir and returns its path and its sum, which
// is the one that the signed lists give. A package that is there already is not
// fetched again.
func (a *apt) download(ctx context.Context, pkg, dir string) (path, sum string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	// 'URI' NAME SIZE SHA256:HASH; nothing about a package that lies where it is asked.
	out, err := a.run(ctx, a.dir, "apt-get", "download", "--print-uris", pkg)
	if err != nil {
		return "", "", err
	}
	fields := strings.Fields(string(out))
	if len(fields) < 4 || !filepath.IsLocal(fields[1]) || filepath.Base(fields[1]) != fields[1] {
		return "", "", fmt.Errorf("apt-get download --print-uris %s said %q", pkg, strings.TrimSpace(string(out)))
	}
	path = filepath.Join(dir, fields[1])
	want, ok := strings.CutPrefix(fields[3], "SHA256:")
	if !ok || !isHash(want) {
		return "", "", fmt.Errorf("the package lists give no sha256 for %s, only %q", pkg, fields[3])
	}
	if sum, err := hashFile(path); err == nil && sum == want {
		return path, sum, nil
	}
	// What lies there is damaged or of another time; apt would keep it.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	if _, err := a.run(ctx, dir, "apt-get", "download", pkg); err != nil {
		return "", "", fmt.Errorf("downloading %s: %w", pkg, err)
	}
	if sum, err = hashFile(path); err != nil {
		return "", "", err
	}
	if sum != want {
		return "", "", fmt.Errorf("%s: sha256 is %s, the lists say %s", path, sum, want)
	}
	return path, sum, nil
}
