package registry

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

// TestAttackAnothersImage: a machine without credentials wants what another one with
// credentials has pulled: by tag, by digest, by a digest under a repository that it
// may see, by a manifest of its own that names the other's layer.
func TestAttackAnothersImage(t *testing.T) {
	w := newWorld(t)
	secret := []byte("the secret layer")
	manifest, blob := w.put("o/secret", "1", secret)
	w.Private["o/secret"] = "host:sesame"
	c := w.cache(t, 0, Upstream{})
	owner := session(t, c, SessionConfig{})
	owner.Login("reg.test", "host", "sesame")
	for _, path := range []string{"manifests/1", "blobs/" + string(blob)} {
		if code, body := ask(t, owner, "GET", "/v2/reg.test/o/secret/"+path); code != 200 {
			t.Fatal(code, body)
		}
	}
	w.put("o/mine", "1", []byte("mine"))
	forged := fmt.Appendf(nil, `{"schemaVersion":2,"layers":[{"digest":%q,"size":%d}]}`, blob, len(secret))
	w.Lock()
	w.Content["o/mine/manifests/forged"] = forged
	w.Unlock()
	thief := session(t, c, SessionConfig{})
	for _, path := range []string{
		"o/secret/manifests/1", "o/secret/manifests/" + string(manifest), "o/secret/blobs/" + string(blob),
		"o/mine/manifests/" + string(manifest), "o/mine/blobs/" + string(blob),
	} {
		for _, method := range []string{"GET", "HEAD"} {
			if code, body := ask(t, thief, method, "/v2/reg.test/"+path); code < 400 || strings.Contains(body, "secret layer") {
				t.Errorf("%s %s: %d %q", method, path, code, body)
			}
		}
	}
	if code, _ := ask(t, thief, "GET", "/v2/reg.test/o/mine/manifests/forged"); code != 200 {
		t.Fatal(code)
	}
	if code, body := ask(t, thief, "GET", "/v2/reg.test/o/mine/blobs/"+string(blob)); code < 400 || strings.Contains(body, "secret layer") {
		t.Errorf("by a manifest that names it: %d %q", code, body)
	}
	// A registry of the thief's says that it has all of it.
	evil := newWorld(t)
	evil.Content["o/i/manifests/x"], evil.Lies["o/i/manifests/x"] = w.Content["o/secret/manifests/1"], []byte("{}")
	evil.Content["o/i/blobs/"+string(blob)], evil.Lies["o/i/blobs/"+string(blob)] = secret, nil
	c.registries["evil.test"] = Upstream{URL: evil.URL}
	for _, path := range []string{"manifests/x", "blobs/" + string(blob)} {
		if code, body := ask(t, thief, "GET", "/v2/evil.test/o/i/"+path); code < 400 && body != "{}" || strings.Contains(body, "secret layer") {
			t.Errorf("by a registry that lies, %s: %d %q", path, code, body)
		}
	}
}

// TestAttackRegistryLies: a registry, or somebody on the way to it, gives something
// else than a digest says, more than a manifest says, or without end.
func TestAttackRegistryLies(t *testing.T) {
	w := newWorld(t)
	layer := []byte(strings.Repeat("good ", 100))
	manifest, blob := w.put("o/i", "1", layer)
	c := w.cache(t, 0, Upstream{})
	for name, lie := range map[string]struct {
		path string
		body []byte
	}{
		"a layer's bytes":    {"o/i/blobs/" + string(blob), []byte(strings.Repeat("evil ", 100))},
		"a longer layer":     {"o/i/blobs/" + string(blob), append(layer[:len(layer):len(layer)], "more"...)},
		"a shorter layer":    {"o/i/blobs/" + string(blob), layer[:10]},
		"a manifest":         {"o/i/manifests/" + string(manifest), []byte(`{"layers":[]}`)},
		"an endless one":     {"o/i/manifests/" + string(manifest), make([]byte, maxManifest+1)},
		"no manifest at all": {"o/i/manifests/" + string(manifest), []byte("<html>")},
	} {
		w.Lock()
		w.Lies = map[string][]byte{lie.path: lie.body}
		w.Unlock()
		s := session(t, c, SessionConfig{})
		if strings.Contains(lie.path, "blobs") {
			ask(t, s, "GET", "/v2/reg.test/o/i/manifests/1")
		} else { // it must come from there
			os.RemoveAll(c.path(item{"reg.test", manifest}))
		}
		if code, body := ask(t, s, "GET", "/v2/reg.test/"+lie.path); code != 424 {
			t.Errorf("%s: %d %.100q", name, code, body)
		}
	}
	w.Lock()
	w.Lies = nil
	w.Unlock()
	s := session(t, c, SessionConfig{})
	ask(t, s, "GET", "/v2/reg.test/o/i/manifests/1")
	if code, body := ask(t, s, "GET", "/v2/reg.test/o/i/blobs/"+string(blob)); code != 200 || body != string(layer) {
		t.Error("once it tells the truth:", code, body)
	}
	// A flipped bit on our own disk breaks the answer off, and the next one is right.
	if err := os.WriteFile(c.path(item{"reg.test", blob}), []byte(strings.Repeat("eviL ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _ := ask(t, s, "GET", "/v2/reg.test/o/i/blobs/"+string(blob)); code != 0 {
		t.Error("damaged on disk, and given as if it were whole:", code)
	}
	if code, body := ask(t, s, "GET", "/v2/reg.test/o/i/blobs/"+string(blob)); code != 200 || body != string(layer) {
		t.Error("after that:", code, body)
	}
}

// TestAttackRegistryPaths: names and digests that lead elsewhere, methods that change
// something. Nothing of it reaches a registry.
func TestAttackRegistryPaths(t *testing.T) {
	w := newWorld(t)
	c := w.cache(t, 0, Upstream{})
	s := session(t, c, SessionConfig{})
	long := strings.Repeat("a", 300)
	for _, path := range []string{
		"/", "/etc/passwd", "/v2", "/v2/_catalog", "/v2/reg.test/o/i/tags/list", "/v2/reg.test/../../etc/manifests/1", "/v2/reg.test/o//i/manifests/1",
		"/v2/reg.test/o/i/manifests/../blobs/x", "/v2/reg.test/o/i/manifests/" + long, "/v2/reg.test/" + long + "/manifests/1", "/v2/reg.test/O/i/manifests/1",
		"/v2/reg.test/o/i/blobs/sha256:../../x", "/v2/reg.test/o/i/blobs/sha256:" + strings.Repeat("AB", 32),
		"/v2/reg.test/o/i/blobs/sha512:" + strings.Repeat("ab", 64),
		"/v2/reg.test@evil.test/o/manifests/1", "/v2/reg.test?x/o/manifests/1", "/v2/reg.test%2fx/o/manifests/1", "/v2/reg.test/o\x00/manifests/1",
		"/v2/[::1]/o/manifests/1", "/v2/reg.test:80:80/o/manifests/1", "/v2/manifests/1", "/v2//manifests/1",
	} {
		if code, body := ask(t, s, "GET", path); code < 400 || code >= 500 {
			t.Errorf("%q: %d %q", path, code, body)
		}
	}
	for _, method := range []string{"PUT", "POST", "PATCH", "DELETE", "CONNECT"} {
		if code, _ := ask(t, s, method, "/v2/reg.test/o/i/manifests/1"); code != http.StatusMethodNotAllowed {
			t.Error(method, code)
		}
	}
	if n := w.Total(); n != 0 {
		t.Errorf("%d requests reached the registry", n)
	}
}

// TestAttackRegistryFull: a machine pulls more than the host has room for, one layer
// larger than all of it, and asks for more images and registries than anybody.
func TestAttackRegistryFull(t *testing.T) {
	w := newWorld(t)
	const limit = 1 << 20
	c := w.cache(t, limit, Upstream{})
	s := session(t, c, SessionConfig{})
	for i := range 30 {
		tag := fmt.Sprint(i)
		_, blob := w.put("o/i", tag, []byte(strings.Repeat(tag, 200<<10)[:100<<10]))
		ask(t, s, "GET", "/v2/reg.test/o/i/manifests/"+tag)
		if code, body := ask(t, s, "GET", "/v2/reg.test/o/i/blobs/"+string(blob)); code != 200 || len(body) != 100<<10 {
			t.Fatal(i, code)
		}
		if n := size(t, c); n > limit {
			t.Fatalf("%d bytes of %d after %d images", n, limit, i+1)
		}
	}
	_, blob := w.put("o/large", "1", make([]byte, limit+1))
	ask(t, s, "GET", "/v2/reg.test/o/large/manifests/1")
	if code, body := ask(t, s, "GET", "/v2/reg.test/o/large/blobs/"+string(blob)); code != 424 || !strings.Contains(body, errTooLarge.Error()) {
		t.Errorf("larger than everything: %d %.200q", code, body)
	}
	s.mu.Lock()
	for i := range maxSeen {
		s.seen[fmt.Sprint(i)] = 1
	}
	s.mu.Unlock()
	w.put("o/new", "1", []byte("new"))
	if code, body := ask(t, s, "GET", "/v2/reg.test/o/new/manifests/1"); code != 424 || !strings.Contains(body, "too many images") {
		t.Errorf("more digests than are remembered: %d %.200q", code, body)
	}
	other := session(t, c, SessionConfig{})
	for i := range maxUpstreams {
		other.upstreams[fmt.Sprint(i)] = &upstream{client: http.DefaultClient}
	}
	if code, body := ask(t, other, "GET", "/v2/reg.test/o/new/manifests/1"); code != 424 || !strings.Contains(body, "too many registries") {
		t.Errorf("more registries than are asked: %d %.200q", code, body)
	}
}

// TestAttackRegistryRedirect: a registry sends on to an address of this host, or of
// its network, hoping to be answered with what is there, or to get the credentials
// taken along.
func TestAttackRegistryRedirect(t *testing.T) {
	w := newWorld(t)
	inside := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		t.Errorf("%s was reached, with %q", r.URL, r.Header.Get("Authorization"))
	}))
	defer inside.Close()
	_, blob := w.put("o/i", "1", []byte("x"))
	w.Private["o/i"] = "u:p"
	c := w.cache(t, 0, Upstream{Username: "u", Password: "p"})
	for _, to := range []string{inside.URL + "/secret", strings.Replace(inside.URL, "127.0.0.1", "localhost", 1), "http://169.254.169.254/latest/meta-data"} {
		w.Lock()
		w.Goes["o/i/blobs/"+string(blob)] = to
		w.Unlock()
		s := session(t, c, SessionConfig{})
		ask(t, s, "GET", "/v2/reg.test/o/i/manifests/1")
		if code, body := ask(t, s, "GET", "/v2/reg.test/o/i/blobs/"+string(blob)); code != 403 || !strings.Contains(body, "may not be reached") {
			t.Errorf("%s: %d %q", to, code, body)
		}
	}
}
