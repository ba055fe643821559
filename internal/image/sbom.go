package image

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
)

// Contents returns the packages of each layer, by the layer's kind. It fails for
// images that were built before layers kept lists.
func (i *Image) Contents() (map[string][]Package, error) {
	all := map[string][]Package{}
	for _, l := range i.Layers {
		list, err := l.packages()
		if err != nil {
			return nil, i.contentsError(l, err)
		}
		all[l.Kind] = list.Packages
	}
	return all, nil
}

func (i *Image) contentsError(l *Layer, err error) error {
	return fmt.Errorf("what is in image %s (%s): %w: `hearth image build` makes it anew", i.Name, l.Kind, err)
}

// Outdated says, for people, in which way the image is not what this program
// would build today; "" if it is, as far as can be told without asking Debian.
func (i *Image) Outdated() string {
	table, err := pins()
	if err != nil {
		return ""
	}
	contents, err := i.Contents()
	if err != nil {
		return ""
	}
	for _, p := range toolPacks {
		pinned := table[p.Pin]
		if !slices.ContainsFunc(contents["tools"], func(p Package) bool { return p.SHA256 == pinned.SHA256 }) {
			return fmt.Sprintf("image %s lacks %s, which this hearth pins: `hearth image build` makes it anew", i.Name, pinned.Spec())
		}
	}
	return ""
}

// SBOM returns the image's bill of materials as CycloneDX 1.6 JSON: every file
// of the image with its sum, and in it every package with version and sum. It is
// made of lists that are part of the layers, so it belongs to the image's ID as
// the disks do, and the same image has the same one. It fails for images that
// were built before layers kept lists.
func (i *Image) SBOM() ([]byte, error) {
	bom := cyclonedx.NewBOM()
	sum, err := hex.DecodeString(i.ID)
	if err != nil || len(sum) != 32 {
		return nil, fmt.Errorf("image %s: %q is not an ID", i.Name, i.ID)
	}
	// A UUID of version 8 (RFC 9562): ours to make up, out of the ID.
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80
	bom.SerialNumber = fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
	root := cyclonedx.Component{BOMRef: "image", Type: cyclonedx.ComponentTypePlatform, Name: i.Name, Version: i.ID,
		Description: "what a Hearth machine boots from"}
	bom.Metadata = &cyclonedx.Metadata{Timestamp: i.Created.UTC().Format(time.RFC3339), Component: &root,
		Tools: &cyclonedx.ToolsChoice{Components: &[]cyclonedx.Component{{Type: cyclonedx.ComponentTypeApplication, Name: "hearth"}}}}
	var components []cyclonedx.Component
	var sources []cyclonedx.Property // what the layers were made from
	var edges []cyclonedx.Dependency
	depends := func(ref string, on []string) {
		slices.Sort(on)
		on = slices.Compact(on)
		edges = append(edges, cyclonedx.Dependency{Ref: ref, Dependencies: &on})
	}
	var disks []string
	for _, l := range i.Layers {
		list, err := l.packages()
		if err != nil {
			return nil, i.contentsError(l, err)
		}
		for _, a := range list.Archives {
			sources = append(sources, cyclonedx.Property{Name: "hearth:archive",
				Value: fmt.Sprintf("%s: %s %s of %s, InRelease sha256 %s", l.Kind, cmp.Or(a.Origin, debian.title), a.Suite, a.Date, a.SHA256)})
		}
		inside := map[string][]string{} // by what they are bundled in, "" for the layer
		refs := map[string]string{}     // of what others can be bundled in
		var packages []cyclonedx.Component
		for _, p := range list.Packages {
			c := p.component(l.Kind)
			packages = append(packages, c)
			inside[p.In] = append(inside[p.In], c.BOMRef)
			if p.In == "" {
				refs[p.Name+"@"+p.Version] = c.BOMRef
			}
		}
		for _, f := range l.Files {
			if f.Name == packagesName {
				continue // it is what this is made of
			}
			c := cyclonedx.Component{BOMRef: l.Kind + "/" + f.Name, Type: cyclonedx.ComponentTypeFile, Name: f.Name, Hashes: sha256Hash(f.SHA256),
				Properties: &[]cyclonedx.Property{{Name: "hearth:layer", Value: l.Kind + " " + l.ID}, {Name: "hearth:size", Value: strconv.FormatInt(f.Size, 10)}}}
			components = append(components, c)
			disks = append(disks, c.BOMRef)
			depends(c.BOMRef, slices.Clone(inside[""]))
		}
		components = append(components, packages...)
		for _, name := range sortedKeys(inside) {
			if name != "" {
				depends(refs[name], inside[name])
			}
		}
	}
	depends(root.BOMRef, disks)
	bom.Metadata.Properties = &sources
	bom.Components, bom.Dependencies = &components, &edges
	var b bytes.Buffer
	err = cyclonedx.NewBOMEncoder(&b, cyclonedx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).EncodeVersion(bom, cyclonedx.SpecVersion1_6)
	return b.Bytes(), err
}

func sha256Hash(sum string) *[]cyclonedx.Hash {
	if sum == "" {
		return nil
	}
	return &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: sum}}
}

// component describes a package of a layer.
func (p Package) component(layer string) cyclonedx.Component {
	c := cyclonedx.Component{Type: cyclonedx.ComponentTypeLibrary, Name: p.Name, Version: p.Version, PackageURL: p.PURL(), Hashes: sha256Hash(p.SHA256)}
	c.BOMRef = path.Join(layer, p.In, p.PURL())
	var properties []cyclonedx.Property
	add := func(name, value string) {
		if value != "" {
			properties = append(properties, cyclonedx.Property{Name: "hearth:" + name, Value: value})
		}
	}
	add("source", p.Source)
	add("bundled-in", p.In)
	add("upstream", p.Upstream)
	for _, f := range p.Files {
		add("file", f.Name+" sha256 "+f.SHA256)
	}
	if properties != nil {
		c.Properties = &properties
	}
	if p.URL != "" {
		c.ExternalReferences = &[]cyclonedx.ExternalReference{{Type: cyclonedx.ERTypeDistribution, URL: p.URL}}
	}
	if p.Type == "generic" {
		c.Type = cyclonedx.ComponentTypeApplication
	}
	return c
}

// Release names the distribution that a deb is of and its release: debian/bookworm.
func (p Package) Release() string {
	return cmp.Or(p.Distro, debian.distro) + "/" + cmp.Or(p.Suite, debian.suite)
}

// PURL returns the package's URL (github.com/package-url/purl-spec).
func (p Package) PURL() string {
	escape := func(s string) string {
		// Colons and slashes stay, as the specification has them.
		return strings.NewReplacer("%3A", ":", "%2F", "/", "+", "%20").Replace(url.QueryEscape(s))
	}
	name := escape(p.Name)
	distro, suite, _ := strings.Cut(p.Release(), "/")
	if p.Type == "deb" {
		name = distro + "/" + name
	}
	s := "pkg:" + p.Type + "/" + name
	if p.Version != "" {
		s += "@" + escape(p.Version)
	}
	if p.Type == "deb" {
		s += "?arch=" + escape(p.Arch) + "&distro=" + suite
	}
	return s
}
