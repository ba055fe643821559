// Package registrytest is a container registry for tests: one that has what a test
// puts into it, lets in who the test says, and lies where it is told to. It speaks
// what of the distribution protocol takes to pull.
package registrytest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Registry is a registry. Its maps are read with the lock held.
type Registry struct {
	*httptest.Server
	sync.Mutex
	Content map[string][]byte // path after /v2/ → what is there
	Private map[string]string // repository → "user:password"
	Lies    map[string][]byte // path → what comes instead
	Goes    map[string]string // path → where it sends on
	asked   map[string]int    // "GET path"
}

// New starts a registry; close it.
func New() *Registry {
	r := &Registry{Content: map[string][]byte{}, Private: map[string]string{}, Lies: map[string][]byte{}, Goes: map[string]string{}, asked: map[string]int{}}
	r.Server = httptest.NewServer(http.HandlerFunc(r.serve))
	return r
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	r.Lock()
	defer r.Unlock()
	if req.URL.Path == "/token" {
		name := strings.TrimSuffix(strings.TrimPrefix(req.URL.Query().Get("scope"), "repository:"), ":pull")
		user, pass, _ := req.BasicAuth()
		if want := r.Private[name]; want != "" && user+":"+pass != want {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"token": "for-" + name, "expires_in": 300})
		return
	}
	at := strings.TrimPrefix(req.URL.Path, "/v2/")
	r.asked[req.Method+" "+at]++
	name := at
	for _, kind := range []string{"/manifests/", "/blobs/"} {
		name, _, _ = strings.Cut(name, kind)
	}
	if r.Private[name] != "" && req.Header.Get("Authorization") != "Bearer for-"+name {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+r.URL+`/token",service="test",scope="repository:`+name+`:pull"`)
		w.WriteHeader(http.StatusUnauthorized)
		w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}`))
		return
	}
	if to := r.Goes[at]; to != "" {
		http.Redirect(w, req, to, http.StatusTemporaryRedirect)
		return
	}
	b, ok := r.Content[at]
	if lie, lies := r.Lies[at]; lies {
		b = lie
	}
	if !ok {
		http.NotFound(w, req)
		return
	}
	if strings.Contains(at, "/manifests/") {
		w.Header().Set("Docker-Content-Digest", Digest(r.Content[at]))
		w.Header().Set("Content-Type", manifestType)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if req.Method == http.MethodGet {
		w.Write(b)
	}
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// Digest is the digest of what has these bytes.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Put puts in an image of one layer, a tar archive or for all that the registry cares
// anything, with its configuration ("Entrypoint", "Env", …), and returns the digests
// of its manifest and layer.
func (r *Registry) Put(name, tag string, config map[string]any, layer []byte) (manifest, blob string) {
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	about, _ := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{Digest(layer)}}}) // strings alone
	doc, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": manifestType,
		"config": descriptor{"application/vnd.oci.image.config.v1+json", Digest(about), len(about)},
		"layers": []descriptor{{"application/vnd.oci.image.layer.v1.tar", Digest(layer), len(layer)}}})
	manifest, blob = Digest(doc), Digest(layer)
	r.Lock()
	defer r.Unlock()
	r.Content[name+"/manifests/"+tag], r.Content[name+"/manifests/"+manifest] = doc, doc
	r.Content[name+"/blobs/"+blob], r.Content[name+"/blobs/"+Digest(about)] = layer, about
	return manifest, blob
}

// Layer makes a layer of executable files, by their paths.
func Layer(files map[string][]byte) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	dirs := map[string]bool{".": true}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		name := strings.TrimPrefix(path.Clean(name), "/")
		for dir, rest, ok := strings.Cut(name, "/"); ok; {
			if !dirs[dir] {
				dirs[dir] = true
				w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755})
			}
			var next string
			next, rest, ok = strings.Cut(rest, "/")
			dir += "/" + next
		}
		content := files["/"+name]
		if content == nil {
			content = files[name]
		}
		w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))})
		w.Write(content)
	}
	w.Close()
	return b.Bytes()
}

// Count is how often something was asked for: "GET name/manifests/tag".
func (r *Registry) Count(request string) int {
	r.Lock()
	defer r.Unlock()
	return r.asked[request]
}

// Total is how often anything was asked for.
func (r *Registry) Total() (n int) {
	r.Lock()
	defer r.Unlock()
	for _, k := range r.asked {
		n += k
	}
	return n
}
