package oci

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/image/erofs"
)

// layer makes a layer of lines: "d path", "f path content", "l path target" (hard),
// "s path target", "c path 1 3".
func layer(t *testing.T, lines ...string) Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, line := range lines {
		f := strings.SplitN(line, " ", 3)
		h := &tar.Header{Name: f[1], Mode: 0o755, ModTime: time.Unix(1, 0), Format: tar.FormatPAX}
		body := ""
		switch f[0] {
		case "d":
			h.Typeflag = tar.TypeDir
		case "f":
			h.Typeflag = tar.TypeReg
			body = f[2]
			h.Size = int64(len(body))
		case "u": // setuid, owned, with a capability
			h.Typeflag, h.Mode, h.Uid, h.Gid = tar.TypeReg, 0o4711, 100_000, 5
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "cap", "SCHILY.xattr.trusted.overlay.opaque": "y"}
		case "l":
			h.Typeflag, h.Linkname = tar.TypeLink, f[2]
		case "s":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f[2]
		case "c":
			h.Typeflag = tar.TypeChar
			fmt.Sscan(f[2], &h.Devmajor, &h.Devminor)
		case "z":
			h.Typeflag = 'S' - 1
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return Layer{Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }, SHA256: hex.EncodeToString(sum[:])}
}

func stack(t *testing.T, layers ...Layer) (*Tree, error) {
	t.Helper()
	spool, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { spool.Close() })
	return Stack(layers, spool)
}

// tell writes a tree down: one line a name.
func tell(t *testing.T, i *erofs.Inode, at string, out *[]string) {
	t.Helper()
	for _, n := range slices.Sorted(maps.Keys(i.Children)) {
		c := i.Children[n]
		p := at + n
		switch c.Type() {
		case erofs.Directory:
			*out = append(*out, p+"/")
			tell(t, c, p+"/", out)
		case erofs.Regular:
			text := ""
			if c.Size > 0 {
				r, err := c.Open()
				if err != nil {
					t.Fatal(err)
				}
				b, _ := io.ReadAll(r)
				text = string(b)
			}
			*out = append(*out, p+"="+text)
		case erofs.Symlink:
			*out = append(*out, p+">"+c.Target)
		default:
			*out = append(*out, fmt.Sprintf("%s %o %d:%d", p, c.Type(), c.Major, c.Minor))
		}
	}
}

func TestStack(t *testing.T) {
	for name, c := range map[string]struct {
		layers [][]string
		want   string
	}{
		"a file over a file":              {[][]string{{"f a 1"}, {"f a 2"}}, "a=2"},
		"a whiteout":                      {[][]string{{"f a 1", "f b 1"}, {"f .wh.a "}}, "b=1"},
		"a whiteout of what comes with":   {[][]string{{"f a 1"}, {"f a 2", "f .wh.a "}}, "a=2"},
		"a whiteout of a directory":       {[][]string{{"d d", "f d/a 1"}, {"f .wh.d "}}, ""},
		"one that is made again":          {[][]string{{"d d", "f d/a 1"}, {"f .wh.d ", "d d", "f d/b 2"}}, "d/ d/b=2"},
		"the mark at the end":             {[][]string{{"d d", "f d/a 1"}, {"d d", "f d/b 2", "f .wh.d "}}, "d/ d/b=2"},
		"an opaque directory":             {[][]string{{"d d", "f d/a 1", "d d/e", "f d/e/x 1"}, {"d d", "f d/.wh..wh..opq ", "f d/b 2"}}, "d/ d/b=2"},
		"its mark last":                   {[][]string{{"d d", "f d/a 1", "d d/e"}, {"d d", "d d/e", "f d/e/y 2", "f d/.wh..wh..opq "}}, "d/ d/e/ d/e/y=2"},
		"a driver's own marks":            {[][]string{{"f .wh..wh.plnk x", "f a 1"}}, "a=1"},
		"a directory over a file":         {[][]string{{"f a 1"}, {"d a", "f a/b 2"}}, "a/ a/b=2"},
		"a file over a directory":         {[][]string{{"d a", "f a/b 1"}, {"f a 2"}}, "a=2"},
		"a link over a directory":         {[][]string{{"d a", "f a/b 1"}, {"s a x"}}, "a>x"},
		"a hard link":                     {[][]string{{"f a 1", "l b a"}}, "a=1 b=1"},
		"to a layer below":                {[][]string{{"f a 1"}, {"l b a"}}, "a=1 b=1"},
		"whose target is replaced":        {[][]string{{"f a 1", "l b a"}, {"f a 2"}}, "a=2 b=1"},
		"whose target goes":               {[][]string{{"f a 1", "l b a"}, {"f .wh.a "}}, "b=1"},
		"through a link":                  {[][]string{{"d usr/lib", "s lib usr/lib"}, {"f lib/x 1"}}, "lib>usr/lib usr/ usr/lib/ usr/lib/x=1"},
		"through an absolute link":        {[][]string{{"d usr/lib", "s lib /usr/lib"}, {"f lib/x 1"}}, "lib>/usr/lib usr/ usr/lib/ usr/lib/x=1"},
		"a link out of it":                {[][]string{{"s out ../../../etc"}, {"f out/passwd x"}}, "etc/ etc/passwd=x out>../../../etc"},
		"a path out of it":                {[][]string{{"f ../../etc/passwd x"}}, "etc/ etc/passwd=x"},
		"parents that nobody made":        {[][]string{{"f a/b/c 1"}}, "a/ a/b/ a/b/c=1"},
		"a device":                        {[][]string{{"c dev/null 1 3"}}, "dev/ dev/null 20000 1:3"},
		"a hard link to a symbolic one":   {[][]string{{"s a x", "l b a"}}, "a>x b>x"},
		"a directory stays what it holds": {[][]string{{"d a", "f a/b 1"}, {"d a"}}, "a/ a/b=1"},
	} {
		var layers []Layer
		for _, l := range c.layers {
			layers = append(layers, layer(t, l...))
		}
		tree, err := stack(t, layers...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []string
		if tell(t, tree.Root, "", &got); strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", name, strings.Join(got, " "), c.want)
		}
	}
	tree, err := stack(t, layer(t, "u sudo"))
	if err != nil {
		t.Fatal(err)
	}
	if i := tree.Root.Children["sudo"]; i.Mode != erofs.Regular|0o4711 || i.UID != 100_000 || i.GID != 5 || len(i.Attrs) != 1 ||
		i.Attrs["security.capability"] != "cap" {
		t.Errorf("%+v", i)
	}
}

// TestAttackLayer: a layer that wants more than an image may have, or is not what it
// is said to be, is an error that names it.
func TestAttackLayer(t *testing.T) {
	deep := "d " + strings.Repeat("a/", maxDepth+2)
	for name, l := range map[string]Layer{
		"no file of the image": layer(t, "l b missing"),
		"which is no file":     layer(t, "d a", "l b a"),
		"through more than":    layer(t, "s a b", "s b a", "f a/x 1"),
		"directories":          layer(t, deep),
		"takes nothing away":   layer(t, "f .wh... "),
		"no device":            layer(t, "c a 5000 1"),
		"of a type":            layer(t, "z a"),
		"its path is unusable": layer(t, "f "+strings.Repeat("a/", 2200)+"b 1"),
		"its name is too long": layer(t, "f "+strings.Repeat("a", 300)+" 1"),
		"the image says":       {Open: layer(t, "f a 1").Open, SHA256: strings.Repeat("0", 64)},
		"its archive":          {Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(strings.Repeat("x", 1024))), nil }},
		"the image has more":   {Open: func() (io.ReadCloser, error) { return io.NopCloser(huge(t)), nil }},
	} {
		if _, err := stack(t, layer(t, "f fine 1"), l); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "layer 2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := stack(t, make([]Layer, MaxLayers+1)...); err == nil {
		t.Error("layers without end")
	}
}

// huge is an archive with a file that says to be larger than any image.
func huge(t *testing.T) io.Reader {
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 1 << 40, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	return &b
}
