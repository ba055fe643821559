package registry

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/registry/registrytest"
)

// world is a registry of the world.
type world struct{ *registrytest.Registry }

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{registrytest.New()}
	t.Cleanup(w.Close)
	return w
}

// put makes an image of one layer and returns the digests of its manifest and layer.
func (w *world) put(name, tag string, layer []byte) (manifest, blob digest) {
	m, b := w.Put(name, tag, nil, layer)
	return digest(m), digest(b)
}

// cache is one that knows the world by the name reg.test.
func (w *world) cache(t *testing.T, limit int64, up Upstream) *Cache {
	t.Helper()
	up.URL = w.URL
	c, err := Open(Config{Dir: t.TempDir(), Limit: limit, Registries: map[string]Upstream{"reg.test": up}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func session(t *testing.T, c *Cache, cfg SessionConfig) *Session {
	t.Helper()
	s, err := c.Session(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// ask has a machine ask its session.
func ask(t *testing.T, s *Session, method, path string, header ...string) (int, string) {
	t.Helper()
	r := httptest.NewRequest(method, "http://10.0.2.2:5000/", nil)
	r.URL.Path = path
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	func() {
		defer func() {
			if e := recover(); e != nil && e != http.ErrAbortHandler {
				panic(e)
			} else if e != nil {
				rec.Code = 0 // the connection breaks off
			}
		}()
		s.ServeHTTP(rec, r)
	}()
	return rec.Code, rec.Body.String()
}

func TestPull(t *testing.T) {
	w := newWorld(t)
	layer := []byte(strings.Repeat("layer ", 1000))
	manifest, blob := w.put("o/i", "1", layer)
	c := w.cache(t, 0, Upstream{})
	for n := range 2 { // two machines, one after the other
		s := session(t, c, SessionConfig{})
		if code, _ := ask(t, s, "GET", "/v2/"); code != 200 {
			t.Fatal(code)
		}
		for _, ref := range []string{"1", string(manifest)} {
			if code, body := ask(t, s, "GET", "/v2/reg.test/o/i/manifests/"+ref); code != 200 || digestOf([]byte(body)) != manifest {
				t.Fatal(code, body)
			}
		}
		if code, body := ask(t, s, "HEAD", "/v2/reg.test/o/i/manifests/1"); code != 200 || body != "" {
			t.Error(code, body)
		}
		if code, body := ask(t, s, "GET", "/v2/reg.test/o/i/blobs/"+string(blob)); code != 200 || body != string(layer) {
			t.Fatal(code, len(body))
		}
		if code, body := ask(t, s, "GET", "/v2/reg.test/o/i/blobs/"+string(blob), "Range", "bytes=5990-"); code != 206 || body != string(layer[5990:]) {
			t.Error("the rest of one that broke off:", code, body)
		}
		if got := w.Count("GET o/i/blobs/" + string(blob)); got != 1 {
			t.Errorf("machine %d: the layer was fetched %d times", n+1, got)
		}
		if got := w.Count("GET o/i/manifests/1"); got != 1 {
			t.Errorf("machine %d: the manifest was fetched %d times", n+1, got)
		}
	}
	s := session(t, c, SessionConfig{})
	if code, body := ask(t, s, "GET", "/v2/reg.test/o/i/manifests/2"); code != 404 || !strings.Contains(body, "MANIFEST_UNKNOWN") ||
		!strings.Contains(body, "reg.test/o/i:2") {
		t.Error(code, body)
	}
	w.put("o/i", "1", []byte("another"))
	if _, body := ask(t, s, "GET", "/v2/reg.test/o/i/manifests/1"); digestOf([]byte(body)) == manifest {
		t.Error("a tag that has moved is given as it was")
	}
}

func TestCredentials(t *testing.T) {
	w := newWorld(t)
	w.put("o/secret", "1", []byte("x"))
	w.Private["o/secret"] = "host:sesame"
	c := w.cache(t, 0, Upstream{Username: "host", Password: "sesame"})
	const path = "/v2/reg.test/o/secret/manifests/1"
	if code, body := ask(t, session(t, c, SessionConfig{}), "GET", path); code != 200 {
		t.Error("the host's own:", code, body)
	}
	stranger := session(t, c, SessionConfig{Stranger: true})
	if code, body := ask(t, stranger, "GET", path); code != 403 || !strings.Contains(body, "DENIED") {
		t.Error("a stranger:", code, body)
	}
	stranger.Login("reg.test", "host", "sesame")
	if code, body := ask(t, stranger, "GET", path); code != 200 {
		t.Error("with credentials of its own:", code, body)
	}
	wrong := session(t, c, SessionConfig{})
	wrong.Login("REG.test", "host", "guess")
	if code, body := ask(t, wrong, "GET", path); code != 403 || strings.Contains(body, "guess") || strings.Contains(body, "sesame") {
		t.Error("with wrong ones:", code, body)
	}
}

func TestVia(t *testing.T) {
	s := session(t, newWorld(t).cache(t, 0, Upstream{}), SessionConfig{})
	sum := "sha256:" + strings.Repeat("ab", 32)
	for image, want := range map[string]string{
		"alpine":                              "10.0.2.2:5000/docker.io/library/alpine:latest",
		"owner/i:1":                           "10.0.2.2:5000/docker.io/owner/i:1",
		"index.docker.io/owner/i":             "10.0.2.2:5000/docker.io/owner/i:latest",
		"ghcr.io/o/i@" + sum:                  "10.0.2.2:5000/ghcr.io/o/i@" + sum,
		"ghcr.io/o/i:tag@" + sum:              "10.0.2.2:5000/ghcr.io/o/i@" + sum,
		"localhost:5001/a/b/c:V1.2":           "10.0.2.2:5000/localhost_5001/a/b/c:V1.2",
		"localhost/a":                         "10.0.2.2:5000/localhost/a:latest",
		"Alpine":                              "",
		"a b":                                 "",
		"ghcr.io/../x":                        "",
		"alpine:":                             "",
		"alpine@sha256:00":                    "",
		"ghcr.io/" + strings.Repeat("a", 300): "",
		"":                                    "",
	} {
		got, err := s.Via(image)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", image, got, err)
			continue
		}
		if want == "" {
			continue
		}
		path := strings.TrimPrefix(want, "10.0.2.2:5000/")
		path, _, _ = strings.Cut(path, "@")
		if i := strings.LastIndex(path, ":"); i > 0 {
			path = path[:i]
		}
		host, name, _, err := Split(image)
		if h, n, ok := place(path); err != nil || !ok || h != host || n != name {
			t.Errorf("%q comes as %s/%s, and is %s/%s", image, h, n, host, name)
		}
	}
	if h, n, ok := place("alpine"); !ok || h != dockerHub || n != "library/alpine" {
		t.Error(h, n, ok) // as the engine asks its mirror
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, up := range map[string]Upstream{
		"a b": {}, "reg.test": {URL: "ftp://x"}, "reg2.test": {URL: "https://user:secret@x"}, "reg3.test": {URL: "http://"}, "reg4.test": {URL: "http://x?y"},
	} {
		_, err := Open(Config{Dir: t.TempDir(), Registries: map[string]Upstream{name: up}})
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s %v: %v", name, up, err)
		}
	}
}

// size is what a cache takes on disk.
func size(t *testing.T, c *Cache) (n int64) {
	t.Helper()
	err := filepath.WalkDir(c.dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestTogether: machines that want the same layer at the same moment wait for one
// download, and it goes on where the first of them goes.
func TestTogether(t *testing.T) {
	w := newWorld(t)
	layer := []byte(strings.Repeat("x", 1<<20))
	_, blob := w.put("o/i", "1", layer)
	c := w.cache(t, 0, Upstream{})
	var all sync.WaitGroup
	for range 8 {
		s := session(t, c, SessionConfig{})
		all.Go(func() {
			ask(t, s, "GET", "/v2/reg.test/o/i/manifests/1")
			if code, body := ask(t, s, "GET", "/v2/reg.test/o/i/blobs/"+string(blob)); code != 200 || len(body) != len(layer) {
				t.Error(code, len(body))
			}
		})
	}
	all.Wait()
	if n := w.Count("GET o/i/blobs/" + string(blob)); n != 1 {
		t.Errorf("fetched %d times", n)
	}
}

func TestPolicy(t *testing.T) {
	w := newWorld(t)
	w.put("o/i", "1", []byte("x"))
	c := w.cache(t, 0, Upstream{})
	off := session(t, c, SessionConfig{Policy: network.Policy{Mode: network.None}})
	if code, body := ask(t, off, "GET", "/v2/other.test/o/i/manifests/1"); code != 403 || !strings.Contains(body, "the network is off") {
		t.Error(code, body)
	}
	// Where a registry is mapped was said on this side.
	if code, body := ask(t, off, "GET", "/v2/reg.test/o/i/manifests/1"); code != 200 {
		t.Error(code, body)
	}
	listed := session(t, c, SessionConfig{Policy: network.Policy{Mode: network.AllowList, Allow: []string{"allowed.test"}}})
	if code, body := ask(t, listed, "GET", "/v2/other.test/o/i/manifests/1"); code != 403 || !strings.Contains(body, "not on the allow-list") {
		t.Error(code, body)
	}
	// An image that the workflow names is fetched all the same, but not from an
	// address of this host.
	host := strings.TrimPrefix(w.URL, "http://")
	for _, named := range []string{host + "/o/i:1", "169.254.169.254/o/i:1", "10.0.0.1/o/i:1"} {
		ref, err := off.Via(named)
		if err != nil {
			t.Fatal(err)
		}
		path := "/v2/" + strings.TrimSuffix(strings.TrimPrefix(ref, "10.0.2.2:5000/"), ":1") + "/manifests/1"
		if code, body := ask(t, off, "GET", path); code != 403 || !strings.Contains(body, "may not be reached") || strings.Contains(body, "the network is off") {
			t.Error(named, code, body)
		}
	}
}
