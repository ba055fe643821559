package image

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// baseVersion changes whenever the way the root file system is made does, in
// ways that its package list and script do not show.
const baseVersion = "3"

const baseName = "base.erofs"

// Shells are those that the default image has, by the names that workflows give
// them.
func Shells() []string { return []string{"bash", "sh", "python"} }

// basePackages are what workflows written for GitHub's Linux runners take for
// granted, minus what a setup action installs (languages) and minus what is in
// minbase already.
var basePackages = [...]string{
	// shells and the like
	"bash", "sudo", "libnss-myhostname", "procps", "psmisc", "less", "file", "kmod", "tzdata", "lsb-release",
	// sources
	"git", "patch", "openssh-client", "gnupg",
	// network
	"ca-certificates", "curl", "wget", "iproute2", "iputils-ping", "netbase", "rsync",
	// archives
	"tar", "zip", "unzip", "bzip2", "xz-utils", "zstd",
	// data
	"jq",
	// languages
	"make", "gcc", "g++", "libc6-dev", "pkg-config", "python3", "python-is-python3", "python3-venv", "python3-pip",
}

// What makes a system into a runner: a script that begins and ends in the same way for
// all, and in between says what the system presents itself as. It runs inside
// mmdebstrap's namespaces with the new root directory as $1.
var (
	//go:embed customize.sh
	customizeBegin string
	//go:embed debian.sh
	debianScript string
	//go:embed ubuntu.sh
	ubuntuScript string
	//go:embed finish.sh
	customizeEnd string

	customizeDebian = customizeBegin + debianScript + customizeEnd
	customizeUbuntu = customizeBegin + ubuntuScript + customizeEnd
)

// makeBase runs mmdebstrap, copies out what tells which packages are in the
// result, and packs it. $1 is the new root, $2 the file system image, $3 a
// sources.list, $4 where the copies go; the rest is mmdebstrap's.
const makeBase = `
root=$1 out=$2 sources=$3 about=$4
shift 4
mmdebstrap "$@" "$root" "$sources"
cp "$root/var/lib/dpkg/status" "$about/status"
cp "$root"/var/lib/apt/lists/*InRelease "$about"
/usr/lib/apt/apt-helper cat-file "$root"/var/lib/apt/lists/*_Packages* >"$about/Packages"
mkfs.erofs -zlz4 --quiet "$out" "$root"
rm -rf -- "$root"
`

func baseInputs(r *recipe, extra []string) string {
	// An Ubuntu's lists are of more than one component; Debian's are as they were when
	// it was the only recipe.
	suite := r.suite
	if r.key != nil {
		suite += " " + r.components
	}
	return hashStrings("base", baseVersion, suite, strings.Join(slices.Concat(basePackages[:], r.packages), " "), strings.Join(extra, " "), r.script, makeBase)
}

// buildBase fills dir with the read-only root file system.
func (b *builder) buildBase(ctx context.Context, dir string) (map[string]string, error) {
	for _, name := range []string{"unshare", "mmdebstrap", "mkfs.erofs"} {
		if _, err := lookTool(name); err != nil {
			return nil, err
		}
	}
	if os.Geteuid() != 0 {
		if err := checkUserNamespaces(ctx); err != nil {
			return nil, err
		}
	}
	if err := b.need("root file system", 1500<<20); err != nil {
		return nil, err
	}
	step := b.step("base")
	step.detail(0, "starting mmdebstrap")
	// Outside of the layer's directory, since only files are a layer, and
	// beside it, since that is swept too.
	work, err := os.MkdirTemp(filepath.Join(b.dir, "tmp"), "root-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := removeTree(context.WithoutCancel(ctx), work); err != nil {
			b.log.Warn("cannot remove an unfinished root file system; the next build will", "dir", work, "err", err)
		}
	}()
	// mmdebstrap's apt drops to the user _apt, who must get through.
	if err := os.Chmod(work, 0o755); err != nil {
		return nil, err
	}
	keys, err := b.keys(b.recipe, work)
	if err != nil {
		return nil, err
	}
	hook := filepath.Join(work, "customize.sh")
	if err := os.WriteFile(hook, []byte(b.recipe.script), 0o755); err != nil {
		return nil, err
	}
	sources := filepath.Join(work, "sources.list")
	if err := os.WriteFile(sources, []byte(strings.Join(b.sources(ctx, b.recipe), "\n")+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := b.checkPackages(ctx, work); err != nil {
		return nil, err
	}
	about := filepath.Join(work, "about")
	if err := os.Mkdir(about, 0o755); err != nil {
		return nil, err
	}
	packages := slices.Concat(basePackages[:], b.recipe.packages, b.opt.Packages)
	args := []string{
		filepath.Join(work, "root"), filepath.Join(dir, baseName), sources, about,
		"--mode=root", "--variant=minbase", "--format=directory", "--verbose",
		"--keyring=" + keys,
		"--include=" + strings.Join(packages, ","),
		// CI machines live for minutes: no documentation, no fsync.
		"--dpkgopt=force-unsafe-io",
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/info/*",
		"--aptopt=Acquire::Languages \"none\"",
		"--aptopt=Acquire::Retries \"3\"",
		"--aptopt=APT::Install-Recommends \"false\"",
		// The lists stay, so that apt-get install works without an update.
		"--skip=cleanup/apt",
		"--customize-hook=" + hook,
		b.recipe.suite,
	}
	progress := newDebProgress(step, 2*len(packages))
	mmdebstrap := namespaced(makeBase, args...)
	mmdebstrap.line = progress.line
	if _, err := mmdebstrap.run(ctx); err != nil {
		return nil, err
	}
	return b.describeBase(dir, about)
}

// describeBase lists the packages of the root file system.
func (b *builder) describeBase(dir, about string) (map[string]string, error) {
	status, err := os.Open(filepath.Join(about, "status"))
	if err != nil {
		return nil, err
	}
	defer status.Close()
	lists, err := os.Open(filepath.Join(about, "Packages"))
	if err != nil {
		return nil, err
	}
	defer lists.Close()
	packages, err := debPackages(status, lists)
	if err != nil {
		return nil, err
	}
	if b.recipe.key != nil {
		for i := range packages {
			packages[i].Distro, packages[i].Suite = b.recipe.distro, b.recipe.suite
		}
	}
	from, err := archives(about)
	if err != nil {
		return nil, err
	}
	if err := writePackages(dir, packages, from); err != nil {
		return nil, err
	}
	info := map[string]string{"packages": strconv.Itoa(len(packages))}
	for _, a := range from {
		info[a.Suite] = a.Date
	}
	return info, nil
}

// checkPackages finds out about packages that do not exist in seconds, which
// mmdebstrap says only when it is half done.
func (b *builder) checkPackages(ctx context.Context, dir string) error {
	if len(b.opt.Packages) == 0 {
		return nil
	}
	b.step("base").detail(0, "looking for "+strings.Join(b.opt.Packages, ", "))
	apt, err := b.newApt(ctx, dir, b.recipe)
	if err != nil {
		return err
	}
	defer os.RemoveAll(apt.dir)
	known, err := apt.run(ctx, "", "apt-cache", "pkgnames")
	if err != nil {
		return err
	}
	all := strings.Fields(string(known))
	slices.Sort(all)
	for _, p := range b.opt.Packages {
		if _, ok := slices.BinarySearch(all, p); !ok {
			return fmt.Errorf("there is no package %s in %s %s", p, b.recipe.title, b.recipe.suite)
		}
	}
	return nil
}

// checkUserNamespaces says why an unprivileged build would fail before it does.
func checkUserNamespaces(ctx context.Context) error {
	if _, err := lookTool("newuidmap"); err != nil {
		return err
	}
	if _, err := namespaced("true").run(ctx); err != nil {
		return fmt.Errorf("building without root needs user namespaces: %w: check that `sysctl kernel.unprivileged_userns_clone` is 1 and that /etc/subuid and /etc/subgid have a range of 65536 for you (`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`), or build as root", err)
	}
	return nil
}

// debProgress turns what mmdebstrap and dpkg print into progress.
type debProgress struct {
	step     part
	expected int // packages, as a guess until apt says how many there are
	unpacked int
	setUp    int
}

func newDebProgress(step part, expected int) *debProgress {
	return &debProgress{step: step, expected: max(expected, 1)}
}

var (
	aptNeeds     = regexp.MustCompile(`^Need to get (\S+ \S+) of archives`)
	aptCount     = regexp.MustCompile(`^\d+ upgraded, (\d+) newly installed`)
	dpkgUnpacks  = regexp.MustCompile(`^Unpacking (\S+) \(([^)]+)\)`)
	dpkgSetsUp   = regexp.MustCompile(`^Setting up (\S+) \(([^)]+)\)`)
	mmdebstrapIs = regexp.MustCompile(`^I: (.*)$`)
)

func (d *debProgress) line(line string) {
	if m := aptCount.FindStringSubmatch(line); m != nil {
		var n int
		if _, err := fmt.Sscan(m[1], &n); err == nil {
			d.expected = max(d.expected, n)
		}
		return
	}
	fraction := func() float64 {
		n := float64(d.expected)
		return 0.1 + 0.35*min(float64(d.unpacked)/n, 1) + 0.45*min(float64(d.setUp)/n, 1)
	}
	if m := aptNeeds.FindStringSubmatch(line); m != nil {
		d.step.detail(fraction(), "downloading "+m[1])
		return
	}
	if m := dpkgUnpacks.FindStringSubmatch(line); m != nil {
		d.unpacked++
		d.step.detail(fraction(), "unpacking "+m[1])
	} else if m := dpkgSetsUp.FindStringSubmatch(line); m != nil {
		d.setUp++
		d.step.detail(fraction(), "setting up "+m[1])
	} else if m := mmdebstrapIs.FindStringSubmatch(line); m != nil {
		text := m[1]
		if strings.HasPrefix(text, "success in ") {
			text = "packing the file system"
		}
		d.step.detail(fraction(), text)
	}
}

var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

// cleanPackages checks, sorts and uniques package names.
func cleanPackages(list []string) ([]string, error) {
	for _, p := range list {
		if !packageName.MatchString(p) {
			return nil, fmt.Errorf("%q is not the name of a package", p)
		}
	}
	list = slices.Clone(list)
	slices.Sort(list)
	list = slices.Compact(list)
	return slices.DeleteFunc(list, func(p string) bool { return slices.Contains(basePackages[:], p) }), nil
}
