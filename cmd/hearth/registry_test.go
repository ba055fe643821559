package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hearth-ci/hearth/internal/registry/registrytest"
)

// registry NAME:TAG FILE.go…: a container registry with an image that has these
// programs in /, static, and the first as its entrypoint. $REGISTRY is its address.
func scriptRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: registry NAME:TAG FILE.go…")
	}
	name, tag, _ := strings.Cut(args[0], ":")
	files := map[string][]byte{}
	for _, source := range args[1:] {
		program := strings.TrimSuffix(filepath.Base(source), ".go")
		out := ts.MkAbs(program + ".built")
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, ts.MkAbs(source))
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GO111MODULE=off")
		if said, err := cmd.CombinedOutput(); err != nil {
			ts.Fatalf("go build %s: %v\n%s", source, err, said)
		}
		b, err := os.ReadFile(out)
		ts.Check(err)
		files["/"+program] = b
	}
	r := registrytest.New()
	ts.Defer(r.Close)
	first := strings.TrimSuffix(filepath.Base(args[1]), ".go")
	r.Put(name, tag, map[string]any{"Entrypoint": []string{"/" + first}}, registrytest.Layer(files))
	ts.Setenv("REGISTRY", r.URL)
}
