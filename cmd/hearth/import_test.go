package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"
)

// container FILE DIRECTORY: writes a container image for docker-archive: and one for
// oci:, of this host's shell and what it needs, with a second layer over it.
func scriptContainer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: container FILE DIRECTORY")
	}
	img, err := containerImage()
	ts.Check(err)
	tag, err := name.NewTag("example.com/small:1")
	ts.Check(err)
	ts.Check(tarball.WriteToFile(ts.MkAbs(args[0]), tag, img))
	path, err := layout.Write(ts.MkAbs(args[1]), empty.Index)
	ts.Check(err)
	ts.Check(path.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"})))
}

// containerImage is a small system: a shell and some programs, out of this one.
func containerImage() (v1.Image, error) {
	var lower, upper bytes.Buffer
	w := tar.NewWriter(&lower)
	put := func(w *tar.Writer, h tar.Header, body []byte) {
		h.Size = int64(len(body))
		h.Format = tar.FormatPAX
		w.WriteHeader(&h)
		w.Write(body)
	}
	files := map[string]bool{}
	for _, p := range []string{"dash", "env", "uname", "id", "cat", "ls", "stat", "cut"} {
		at, err := exec.LookPath(p)
		if err != nil {
			return nil, err
		}
		body, err := os.ReadFile(at)
		if err != nil {
			return nil, err
		}
		put(w, tar.Header{Typeflag: tar.TypeReg, Name: "bin/" + p, Mode: 0o755}, body)
		out, err := exec.Command("ldd", at).Output()
		if err != nil {
			return nil, fmt.Errorf("ldd %s: %w", at, err)
		}
		for f := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(f, "/") && !files[f] {
				files[f] = true
				if body, err = os.ReadFile(f); err != nil {
					return nil, err
				}
				put(w, tar.Header{Typeflag: tar.TypeReg, Name: filepath.Clean(f)[1:], Mode: 0o755}, body)
			}
		}
	}
	put(w, tar.Header{Typeflag: tar.TypeLink, Name: "bin/sh", Linkname: "bin/dash", Mode: 0o755}, nil)
	put(w, tar.Header{Typeflag: tar.TypeDir, Name: "srv/", Mode: 0o755}, nil)
	put(w, tar.Header{Typeflag: tar.TypeReg, Name: "srv/gone", Mode: 0o644}, []byte("one"))
	put(w, tar.Header{Typeflag: tar.TypeReg, Name: "srv/stays", Mode: 0o4755, Uid: 70_000, Gid: 5}, []byte("two"))
	put(w, tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/root:/bin/sh\nother:x:1001:7::/:/bin/sh\n"))
	if err := w.Close(); err != nil {
		return nil, err
	}
	w = tar.NewWriter(&upper)
	put(w, tar.Header{Typeflag: tar.TypeReg, Name: "srv/.wh.gone", Mode: 0o644}, nil)
	put(w, tar.Header{Typeflag: tar.TypeReg, Name: "opt/x/bin/second", Mode: 0o755}, []byte("#!/bin/sh\necho from the second layer\n"))
	put(w, tar.Header{Typeflag: tar.TypeSymlink, Name: "srv/out", Linkname: "../../../etc/passwd", Mode: 0o777}, nil)
	if err := w.Close(); err != nil {
		return nil, err
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64",
		Config: v1.Config{Env: []string{"PATH=/opt/x/bin:/bin", "MADE_BY=a test"}, Entrypoint: []string{"/never"}}})
	if err != nil {
		return nil, err
	}
	for _, b := range []*bytes.Buffer{&lower, &upper} {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return nil, err
		}
	}
	return img, nil
}
