// Package pin fixes what images take from the npm registry to exact bytes.
//
// Debian's packages come with the signatures of Debian's archive. What npm
// serves is only as good as the registry's word, so the word that counts is
// ours: pins.json, the one table, names each download with its version, its
// size, and the sha256 of the tarball and of the programs inside. Something
// else under the same version is refused before anything of it is unpacked.
//
// # What a pin says, and what it does not
//
// The table says what was looked at when the pin was made. For Node that should
// be more than the registry: nodejs.org signs the sums of its archives, and the
// program in the npm package ought to be the program in the archive, byte by
// byte. [Pin.Upstream] tells whether somebody has compared them: "identical",
// with the key that signed, or "not checked", with the reason. Only the program
// in update, which makes the comparison, writes that field: `scripts/pins`.
//
// npm itself is published by its makers in the registry and nowhere else;
// "registry only" says so.
package pin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A Pin is one download, fixed to its bytes.
type Pin struct {
	Name      string            `json:"name"`            // what the rest of Hearth calls it: node20
	Package   string            `json:"package"`         // of the npm registry
	Version   string            `json:"version"`         // exact
	Size      int64             `json:"size"`            // bytes of the tarball
	SHA256    string            `json:"sha256"`          // of the tarball, lower-case hex
	Integrity string            `json:"integrity"`       // the same as npm writes it: sha512-BASE64
	Files     map[string]string `json:"files,omitempty"` // programs inside: path in the package to sha256
	Source    string            `json:"source"`          // where upstream publishes the same
	Upstream  Upstream          `json:"upstream"`
}

// Results of comparing a pin with what its makers publish themselves.
const (
	Identical    = "identical"     // the same programs, in an archive whose sums the makers signed
	NotChecked   = "not checked"   // nobody has compared them yet
	RegistryOnly = "registry only" // the makers publish in the registry and nowhere else
)

// Upstream says how a pin compares with its makers' own download.
type Upstream struct {
	Result string `json:"result"`           // Identical, NotChecked or RegistryOnly
	Why    string `json:"why,omitempty"`    // why not, for NotChecked
	SHA256 string `json:"sha256,omitempty"` // of Source, by the signed sums
	Key    string `json:"key,omitempty"`    // fingerprint of the primary key that signed the sums
	Date   string `json:"date,omitempty"`   // day of the comparison
}

// ErrMismatch is wrapped by the error for a download that is not what is pinned.
var ErrMismatch = errors.New("not what is pinned")

//go:embed pins.json
var table []byte

// Table returns all pins in the table's order.
func Table() ([]Pin, error) { return Parse(table) }

// Parse reads a table and checks that every pin in it is complete.
func Parse(data []byte) ([]Pin, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var doc struct {
		Pins []Pin `json:"pins"`
	}
	if err := dec.Decode(&doc); err != nil {
		return nil, fmt.Errorf("pins.json: %w", err)
	}
	seen := map[string]bool{}
	for _, p := range doc.Pins {
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("pins.json: %s: %w", p.Name, err)
		}
		if seen[p.Name] {
			return nil, fmt.Errorf("pins.json: %s is there twice", p.Name)
		}
		seen[p.Name] = true
	}
	if len(doc.Pins) == 0 {
		return nil, errors.New("pins.json: no pins")
	}
	return doc.Pins, nil
}

// Format writes a table as it is kept.
func Format(pins []Pin) ([]byte, error) {
	data, err := json.MarshalIndent(map[string]any{"pins": pins}, "", "  ")
	if err != nil {
		return nil, err
	}
	data = append(data, '\n')
	_, err = Parse(data)
	return data, err
}

// MaxSize bounds a tarball: Node's is 60 MB.
const MaxSize = 256 << 20

func (p Pin) check() error {
	switch {
	case p.Name == "" || p.Package == "" || p.Version == "" || p.Source == "":
		return errors.New("name, package, version and source are all needed")
	case strings.ContainsAny(p.Package, "/\\?#% ") || strings.ContainsAny(p.Version, "/\\?#% ^~*<>=|"):
		return fmt.Errorf("%s@%s is not an exact version of an unscoped package", p.Package, p.Version)
	case p.Size <= 0 || p.Size > MaxSize:
		return fmt.Errorf("size %d is not between 1 and %d", p.Size, MaxSize)
	case !isSum(p.SHA256):
		return fmt.Errorf("sha256 %q is not 64 hexadecimal digits", p.SHA256)
	}
	if b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(p.Integrity, "sha512-")); err != nil || len(b) != sha512.Size ||
		!strings.HasPrefix(p.Integrity, "sha512-") {
		return fmt.Errorf("integrity %q is not sha512-BASE64", p.Integrity)
	}
	for name, sum := range p.Files {
		if !filepath.IsLocal(name) || !isSum(sum) {
			return fmt.Errorf("file %q: want a path in the package and its sha256", name)
		}
	}
	switch u := p.Upstream; u.Result {
	case Identical:
		if !isSum(u.SHA256) || u.Key == "" || u.Date == "" || len(p.Files) == 0 {
			return errors.New("upstream: identical needs programs, the archive's sha256, the key and the day")
		}
	case NotChecked:
		if u.Why == "" || u.SHA256 != "" || u.Key != "" {
			return errors.New("upstream: not checked needs a reason, and no key or sum")
		}
	case RegistryOnly:
	default:
		return fmt.Errorf("upstream: unknown result %q", u.Result)
	}
	return nil
}

func isSum(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == 64 && s == strings.ToLower(s)
}

// Spec is what npm calls the download: name@version.
func (p Pin) Spec() string { return p.Package + "@" + p.Version }

// Verify compares a downloaded tarball with the pin: nothing of it may be
// unpacked before. Its errors wrap ErrMismatch.
func (p Pin) Verify(tarball string) error {
	size, sum, integrity, err := Sums(tarball)
	if err != nil {
		return err
	}
	if size != p.Size || sum != p.SHA256 || integrity != p.Integrity {
		return fmt.Errorf("%s is %w: %d bytes, sha256 %s; pinned are %d bytes, sha256 %s: it was not unpacked. "+
			"The registry, or something on the way, serves other bytes under this version: try another registry (NPM_CONFIG_REGISTRY), and tell Hearth's makers",
			p.Spec(), ErrMismatch, size, sum, p.Size, p.SHA256)
	}
	return nil
}

// VerifyFile compares the sum of one file that was unpacked, if it is pinned.
func (p Pin) VerifyFile(name, sum string) error {
	if want, ok := p.Files[name]; ok && want != sum {
		return fmt.Errorf("%s in %s is %w: sha256 %s; pinned is %s", name, p.Spec(), ErrMismatch, sum, want)
	}
	return nil
}

// Sums returns what a pin says about a tarball.
func Sums(path string) (size int64, sha256hex, integrity string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", "", err
	}
	defer f.Close()
	a, b := sha256.New(), sha512.New()
	if size, err = io.Copy(io.MultiWriter(a, b), f); err != nil {
		return 0, "", "", err
	}
	return size, hex.EncodeToString(a.Sum(nil)), "sha512-" + base64.StdEncoding.EncodeToString(b.Sum(nil)), nil
}

// A Registry is where tarballs come from.
type Registry struct {
	// NPM, if set, runs npm in a directory and returns its standard output: npm
	// knows the user's registry and credentials. Otherwise the registry is asked
	// directly.
	NPM func(ctx context.Context, dir string, args ...string) ([]byte, error)
	// URL of the registry, without NPM; by default NPM_CONFIG_REGISTRY or npm's own.
	URL string
}

// Download fetches a version's tarball into dir and returns its path. What it
// returns has been checked by nobody: see [Pin.Verify]. At most max bytes are
// taken.
func (r Registry) Download(ctx context.Context, name, version, dir string, max int64) (string, error) {
	if r.NPM != nil {
		out, err := r.NPM(ctx, dir, "pack", "--silent", "--json", "--ignore-scripts", name+"@"+version)
		if err != nil {
			return "", err
		}
		var packed []struct{ Filename string }
		if err := json.Unmarshal(out, &packed); err != nil || len(packed) != 1 || packed[0].Filename == "" ||
			filepath.Base(packed[0].Filename) != packed[0].Filename {
			return "", fmt.Errorf("npm pack said something unexpected: %.200q", out)
		}
		return filepath.Join(dir, packed[0].Filename), nil
	}
	body, err := r.get(ctx, 4<<20, name, version)
	if err != nil {
		return "", err
	}
	var doc struct{ Dist struct{ Tarball string } }
	if err := json.Unmarshal(body, &doc); err != nil || doc.Dist.Tarball == "" {
		return "", fmt.Errorf("the registry names no tarball for %s@%s: %.200q", name, version, body)
	}
	resp, err := open(ctx, doc.Dist.Tarball)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	f, err := os.CreateTemp(dir, "*.tgz")
	if err != nil {
		return "", err
	}
	n, err := io.Copy(f, io.LimitReader(resp.Body, max+1))
	if err != nil {
		err = fmt.Errorf("%s: %w", doc.Dist.Tarball, err)
	} else if n > max {
		err = fmt.Errorf("%s@%s is %w: more than %d bytes", name, version, ErrMismatch, max)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = os.Remove(f.Name()) // its directory goes too
		return "", err
	}
	return f.Name(), nil
}

// Versions returns the versions of a package there are, in no order.
func (r Registry) Versions(ctx context.Context, name string) ([]string, error) {
	if r.NPM != nil {
		out, err := r.NPM(ctx, "", "view", "--json", name, "versions")
		if err != nil {
			return nil, err
		}
		var list []string
		if err := json.Unmarshal(out, &list); err != nil {
			return nil, fmt.Errorf("npm view said something unexpected: %.200q", out)
		}
		return list, nil
	}
	body, err := r.get(ctx, 64<<20, name)
	if err != nil {
		return nil, err
	}
	var doc struct{ Versions map[string]struct{} }
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, fmt.Errorf("the registry's list of %s: %w", name, err)
	}
	var list []string
	for v := range doc.Versions {
		list = append(list, v)
	}
	return list, nil
}

// Integrity returns what the registry says the sum of a package's tarball is, as npm
// writes it.
func (r Registry) Integrity(ctx context.Context, name, version string) (sum string, err error) {
	if r.NPM != nil {
		out, err := r.NPM(ctx, "", "view", "--json", name+"@"+version, "dist.integrity")
		if err != nil {
			return "", err
		}
		if err := json.Unmarshal(out, &sum); err != nil {
			return "", fmt.Errorf("npm view said something unexpected: %.200q", out)
		}
		return sum, nil
	}
	body, err := r.get(ctx, 4<<20, name, version)
	if err != nil {
		return "", err
	}
	var doc struct{ Dist struct{ Integrity string } }
	if err := json.Unmarshal(body, &doc); err != nil {
		return "", fmt.Errorf("what the registry says of %s@%s: %w", name, version, err)
	}
	return doc.Dist.Integrity, nil
}

// Newest returns the highest release (no pre-release) of three numbers that begin with
// those wanted ("20", "20.9", "20.9.0"), "" if there is none.
func Newest(want string, versions []string) string {
	prefix := strings.Split(want, ".")
	var best []int
	var name string
	for _, v := range versions {
		fields := strings.Split(v, ".")
		if len(fields) != 3 || len(prefix) > 3 || !slices.Equal(prefix, fields[:len(prefix)]) {
			continue
		}
		var n []int
		for _, f := range fields {
			i, err := strconv.Atoi(f)
			if err != nil {
				break
			}
			n = append(n, i)
		}
		if len(n) == 3 && slices.Compare(n, best) > 0 {
			best, name = n, v
		}
	}
	return name
}

func (r Registry) get(ctx context.Context, max int64, path ...string) ([]byte, error) {
	base := r.URL
	if base == "" {
		base = os.Getenv("NPM_CONFIG_REGISTRY")
	}
	if base == "" {
		base = "https://registry.npmjs.org/"
	}
	address, err := url.JoinPath(base, path...)
	if err != nil {
		return nil, err
	}
	resp, err := open(ctx, address)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, max+1))
	if err == nil && int64(len(body)) > max {
		err = fmt.Errorf("more than %d bytes", max)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	return body, nil
}

// Open starts a GET; anything but 200 is an error.
func open(ctx context.Context, address string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", address, resp.Status)
	}
	return resp, nil
}
