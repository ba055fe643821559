package image

import (
	"context"
	_ "embed"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The recipes that images are built by: each is an image's name, too.
const (
	Ubuntu2404 = "ubuntu-24.04"
	Ubuntu2204 = "ubuntu-22.04"
	Debian12   = "debian-12"
)

// recipe is a system that images are made of. The kernel is Debian's for all.
type recipe struct {
	name   string
	title  string // for people, and as the first word of its packages' origin
	distro string // in package URLs
	suite  string
	// components and pockets say which lists the packages come from: the suite itself,
	// its updates, its security updates, each at its usual address.
	components string
	pockets    [3]pocket
	packages   []string // beyond basePackages
	script     string   // makes the system a runner: see customize
	// key is the keyring that package lists must be signed with; nil is that of
	// Debian's own package, which a Debian has.
	key []byte
}

type pocket struct{ suffix, address string }

// ubuntuKey is the Ubuntu Archive Automatic Signing Key (2018),
// F6ECB3762474EDA9D21B7022871920D1991BC93C, byte for byte as in Debian's and in
// Ubuntu's ubuntu-keyring 2023.11.28.1: Debian 12 has no package of it.
//
//go:embed ubuntu-archive-2018.gpg
var ubuntuKey []byte

const ubuntuArchive = "http://archive.ubuntu.com/ubuntu"

// recipes in the order of who takes the place of the default image, if it is there.
var recipes = [...]recipe{ubuntu(Ubuntu2404, "noble"), debian, ubuntu(Ubuntu2204, "jammy")}

var debian = recipe{name: Debian12, title: "Debian", distro: "debian", suite: suite, components: "main", script: customizeDebian,
	pockets: [3]pocket{{"", "http://deb.debian.org/debian"}, {"-updates", "http://deb.debian.org/debian"},
		{"-security", "http://deb.debian.org/debian-security"}}}

func ubuntu(name, suite string) recipe {
	return recipe{name: name, title: "Ubuntu", distro: "ubuntu", suite: suite, components: "main universe restricted multiverse", script: customizeUbuntu,
		// In Debian apt is of the smallest system, in Ubuntu not.
		packages: []string{"apt"}, key: ubuntuKey,
		pockets: [3]pocket{{"", ubuntuArchive}, {"-updates", ubuntuArchive}, {"-security", ubuntuArchive}}}
}

// Recipes returns the names of what images can be built of.
func Recipes() (names []string) {
	for _, r := range recipes {
		names = append(names, r.name)
	}
	slices.Sort(names)
	return names
}

// recipeOf finds a recipe; "" is Debian's.
func recipeOf(name string) (*recipe, error) {
	if name == "" {
		return &debian, nil
	}
	for i := range recipes {
		if recipes[i].name == name {
			return &recipes[i], nil
		}
	}
	return nil, fmt.Errorf("there is no recipe %q: the recipes are %s", name, strings.Join(Recipes(), ", "))
}

// sources are where the recipe's packages come from if the host has no mirror of its
// own, or from one that is given.
func (r *recipe) sources(mirror string) (lines []string) {
	for i, p := range r.pockets {
		address := p.address
		if mirror = strings.TrimSuffix(mirror, "/"); mirror != "" {
			address = mirror
			if i == 2 && r.pockets[2].address != r.pockets[0].address { // Debian's security updates are an archive beside the other
				address += strings.TrimPrefix(r.pockets[2].address, r.pockets[0].address)
			}
		}
		lines = append(lines, "deb "+address+" "+r.suite+p.suffix+" "+r.components)
	}
	return lines
}

// keys returns the keyring that the recipe's lists must be signed with, a file in dir
// if it is ours to bring.
func (b *builder) keys(r *recipe, dir string) (string, error) {
	switch {
	case b.keyring != "":
		return b.keyring, nil
	case r.key != nil:
		path := filepath.Join(dir, r.distro+"-archive.gpg")
		return path, os.WriteFile(path, r.key, 0o644)
	}
	if _, err := os.Stat(debianKeyring); err != nil {
		return "", &MissingToolError{Tool: debianKeyring, Package: toolPackages["debian-keys"]}
	}
	return debianKeyring, nil
}

// A Shelf says which images there are for jobs.
type Shelf struct {
	// Default is the name of the image for what no other is for. It need not be
	// built yet.
	Default string
	// Recipes are those that images are built of already, and the default's. Empty, if
	// somebody has said that the default image is for everything.
	Recipes []string
}

// archiveTime is how long Ubuntu's archive may take to answer before it counts as
// not reachable.
const archiveTime = 5 * time.Second

// ReadShelf looks at the images in dir. fixed is the image that somebody has chosen
// for all jobs, "" is none: then the default is Ubuntu 24.04 or else Debian 12,
// whichever is built; where neither is, Ubuntu 24.04, unless reachable says that
// Ubuntu's archive does not answer. A nil reachable asks nobody.
func ReadShelf(dir, fixed string, reachable func() bool) (Shelf, error) {
	if fixed != "" {
		return Shelf{Default: fixed}, nil
	}
	st, err := openStore(dir, nil)
	if err != nil {
		return Shelf{}, err
	}
	manifests, err := st.manifests()
	if err != nil {
		return Shelf{}, err
	}
	s := Shelf{Default: standard(manifests)}
	for _, r := range recipes {
		if slices.ContainsFunc(manifests, func(m manifest) bool { return m.Name == r.name }) {
			s.Recipes = append(s.Recipes, r.name)
		}
	}
	if s.Default == "" {
		s.Default = Ubuntu2404
		if reachable != nil && !reachable() {
			s.Default = Debian12
		}
		s.Recipes = append(s.Recipes, s.Default)
	}
	return s, nil
}

// standard is the default image's name among those there are, "" if none of them can
// be it.
func standard(manifests []manifest) string {
	for _, name := range []string{Ubuntu2404, Debian12} {
		if slices.ContainsFunc(manifests, func(m manifest) bool { return m.Name == name }) {
			return name
		}
	}
	return ""
}

// UbuntuAnswers asks Ubuntu's archive for a file that is always there. A proxy is asked
// in its stead where the environment names one, as apt does.
func UbuntuAnswers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, archiveTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, ubuntuArchive+"/dists/noble/InRelease", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
