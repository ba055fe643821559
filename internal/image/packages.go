package image

import (
	"bufio"
	"bytes"
	"cmp"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A Package is a piece of software in a layer.
type Package struct {
	Type    string `json:"type"` // deb, npm, golang or generic, as in package URLs
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch,omitempty"`   // deb: amd64 or all
	Source  string `json:"source,omitempty"` // deb: "name version" of the source package
	Suite   string `json:"suite,omitempty"`  // deb: the release it is of; "" is bookworm
	Distro  string `json:"distro,omitempty"` // deb: whose release that is; "" is debian
	// SHA256 is the sum of what it was unpacked from (the .deb, the npm tarball),
	// or of the program itself; "" for what came inside another package.
	SHA256   string `json:"sha256,omitempty"`
	URL      string `json:"url,omitempty"`      // where its makers publish it
	Archive  string `json:"archive,omitempty"`  // kept as debs/NAME, for the kernel
	In       string `json:"in,omitempty"`       // what it is bundled in
	Upstream string `json:"upstream,omitempty"` // npm: pin.Upstream's result when it was built
	Files    []File `json:"files,omitempty"`    // programs whose sums are pinned, by their path in the machine
}

// An Archive is a list of a distribution's packages that a layer was made from. Its
// sum is of the signed InRelease file, which names the sums of the lists, which
// name those of the packages.
type Archive struct {
	Origin string `json:"origin,omitempty"` // Debian if it is empty
	Suite  string `json:"suite"`
	Date   string `json:"date"` // as the archive writes it
	SHA256 string `json:"sha256"`
}

// packagesName is the layer's file that lists its packages. As one of the
// layer's files it is part of what the layer's ID stands for.
const packagesName = "packages.json"

// maxPackages bounds that list, in bytes. The default base's is 100 kB.
const maxPackages = 16 << 20

type packageList struct {
	Packages []Package `json:"packages"`
	Archives []Archive `json:"archives,omitempty"`
}

func writePackages(dir string, packages []Package, archives []Archive) error {
	key := func(p Package) string { return strings.Join([]string{p.In, p.Type, p.Name, p.Version, p.Arch}, "\x00") }
	slices.SortFunc(packages, func(a, b Package) int { return strings.Compare(key(a), key(b)) })
	packages = slices.CompactFunc(packages, func(a, b Package) bool { return key(a) == key(b) })
	data, err := json.MarshalIndent(packageList{packages, archives}, "", " ")
	if err != nil {
		return err
	}
	if len(data) > maxPackages {
		return fmt.Errorf("the list of packages is larger than %s", bytesText(maxPackages))
	}
	return os.WriteFile(filepath.Join(dir, packagesName), append(data, '\n'), 0o644)
}

// errNoPackages says that a layer was built before layers kept lists.
var errNoPackages = errors.New("it was built by an older hearth, which kept no list of packages")

// packages reads the layer's list, comparing its bytes with the layer's ID.
func (l *Layer) packages() (*packageList, error) {
	i := slices.IndexFunc(l.Files, func(f File) bool { return f.Name == packagesName })
	if i < 0 {
		return nil, errNoPackages
	}
	data, err := readBounded(l.path(packagesName), maxPackages)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if sum := hashBytes(data); sum != l.Files[i].SHA256 {
		return nil, fmt.Errorf("%s: %w: sha256 is %s, was built as %s", l.path(packagesName), ErrCorrupt, sum, l.Files[i].SHA256)
	}
	list := &packageList{}
	if err := json.Unmarshal(data, list); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", l.path(packagesName), ErrCorrupt, err)
	}
	return list, nil
}

func readBounded(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(data)) > max {
		err = fmt.Errorf("%s is larger than %s", path, bytesText(max))
	}
	return data, err
}

// eachStanza calls fn for every paragraph of a file in Debian's control format
// with the first line of each field, until fn fails. Fields longer than a
// megabyte fail.
func eachStanza(r io.Reader, fn func(field map[string]string) error) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 64<<10), 1<<20)
	field := map[string]string{}
	flush := func() error {
		if len(field) == 0 {
			return nil
		}
		err := fn(field)
		clear(field)
		return err
	}
	for sc.Scan() {
		line := sc.Bytes()
		switch {
		case len(bytes.TrimSpace(line)) == 0:
			if err := flush(); err != nil {
				return err
			}
		case line[0] == ' ' || line[0] == '\t': // continues the field before it
		default:
			// Only what is asked for below: the archive's lists are 50 MB.
			name, value, ok := bytes.Cut(line, []byte(":"))
			if ok && stanzaFields[string(name)] {
				field[string(name)] = strings.TrimSpace(string(value))
			}
		}
	}
	if err := sc.Err(); err != nil {
		return err
	}
	return flush()
}

var stanzaFields = map[string]bool{"Package": true, "Status": true, "Version": true, "Architecture": true, "Source": true, "SHA256": true, "Filename": true,
	"Origin": true, "Suite": true, "Codename": true, "Date": true}

// debPackage makes a Package of a paragraph of dpkg's.
func debPackage(field map[string]string) Package {
	p := Package{Type: "deb", Name: field["Package"], Version: field["Version"], Arch: field["Architecture"]}
	// Source is left out where it says nothing new, and its version likewise.
	source, version, _ := strings.Cut(field["Source"], " ")
	version = strings.Trim(version, "() ")
	if source == "" {
		source = p.Name
	}
	if version == "" {
		version = p.Version
	}
	p.Source = source + " " + version
	return p
}

// debPackages returns what dpkg's status says is installed, each with the sum
// that the archive's signed lists give for its .deb. A package that no list
// knows is an error: nothing gets into an image that the archive does not vouch
// for.
func debPackages(status, lists io.Reader) ([]Package, error) {
	installed := map[string]*Package{}
	id := func(p Package) string { return p.Name + " " + p.Version + " " + p.Arch }
	err := eachStanza(status, func(field map[string]string) error {
		if !strings.HasSuffix(field["Status"], " installed") {
			return nil
		}
		p := debPackage(field)
		installed[id(p)] = &p
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("dpkg's status: %w", err)
	}
	if len(installed) == 0 {
		return nil, errors.New("dpkg's status names no installed package")
	}
	err = eachStanza(lists, func(field map[string]string) error {
		p, ok := installed[field["Package"]+" "+field["Version"]+" "+field["Architecture"]]
		if !ok {
			return nil
		}
		sum := field["SHA256"]
		if !isHash(sum) {
			return fmt.Errorf("%s %s has no sha256", p.Name, p.Version)
		}
		if p.SHA256 != "" && p.SHA256 != sum {
			return fmt.Errorf("%s %s has two sums: %s and %s", p.Name, p.Version, p.SHA256, sum)
		}
		p.SHA256 = sum
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("the archive's package lists: %w", err)
	}
	var packages []Package
	for _, key := range slices.Sorted(maps.Keys(installed)) {
		p := installed[key]
		if p.SHA256 == "" {
			return nil, fmt.Errorf("%s %s (%s) is installed, and in none of the archive's lists", p.Name, p.Version, p.Arch)
		}
		packages = append(packages, *p)
	}
	return packages, nil
}

// archives describes the InRelease files in a directory.
func archives(dir string) ([]Archive, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*InRelease"))
	if err != nil {
		return nil, err
	}
	var all []Archive
	for _, path := range files {
		data, err := readBounded(path, 16<<20)
		if err != nil {
			return nil, err
		}
		a := Archive{SHA256: hashBytes(data)}
		// The first paragraph of a clear-signed file is its armour's.
		err = eachStanza(bytes.NewReader(data), func(field map[string]string) error {
			if a.Suite == "" {
				a.Suite, a.Date = field["Codename"], field["Date"]
				if field["Origin"] == "Ubuntu" { // whose codename is that of the release, for its updates as well
					a.Origin, a.Suite = field["Origin"], field["Suite"]
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, a)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no signed list of packages", dir)
	}
	slices.SortFunc(all, func(a, b Archive) int { return strings.Compare(a.Suite+a.SHA256, b.Suite+b.SHA256) })
	return all, nil
}

// goPackages describes a Go program: itself, with the sum of its file, the
// modules in it and the toolchain's standard library. A version that is given
// comes before the one that the build noted.
func goPackages(path, version string) ([]Package, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	sum, err := hashFile(path)
	if err != nil {
		return nil, err
	}
	version = cmp.Or(version, info.Main.Version, "(devel)")
	name := filepath.Base(info.Path)
	in := name + "@" + version
	packages := []Package{
		{Type: "generic", Name: name, Version: version, SHA256: sum, URL: "https://" + info.Path},
		{Type: "golang", Name: "stdlib", Version: strings.TrimPrefix(info.GoVersion, "go"), In: in},
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		packages = append(packages, Package{Type: "golang", Name: m.Path, Version: m.Version, In: in})
	}
	return packages, nil
}
