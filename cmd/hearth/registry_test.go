package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hearth-ci/hearth/internal/registry/registrytest"
)

// registries are those of the scripts that run, by their addresses.
var registries sync.Map

// registry NAME:TAG [private=USER:PASSWORD] [health=PROGRAM] [shell] [FILE.go…]: a
// container registry, one a script, with an image that has these programs in /,
// static, and the first as its entrypoint; or this host's shell and what a container
// of a job needs. $REGISTRY is its address.
func scriptRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: registry NAME:TAG [private=USER:PASSWORD] [health=PROGRAM] [shell] [FILE.go…]")
	}
	var r *registrytest.Registry
	if had, ok := registries.Load(ts.Getenv("REGISTRY")); ok {
		r = had.(*registrytest.Registry)
	} else {
		r = registrytest.New()
		ts.Setenv("REGISTRY", r.URL)
		registries.Store(r.URL, r)
		ts.Defer(func() { registries.Delete(r.URL); r.Close() })
	}
	name, tag, _ := strings.Cut(args[0], ":")
	files, config := map[string][]byte{}, map[string]any{}
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		switch {
		case key == "private":
			r.Lock()
			r.Private[name] = value
			r.Unlock()
		case key == "health":
			config["Healthcheck"] = map[string]any{"Test": []string{"CMD", value}, "Interval": 1e9, "Timeout": 20e9, "Retries": 2}
		case key == "shell":
			shellFiles(ts, files)
			config["Env"] = []string{"PATH=/bin", "IMAGE=" + args[0]}
		default:
			program := strings.TrimSuffix(filepath.Base(arg), ".go")
			if len(files) == 0 {
				config["Entrypoint"] = []string{"/" + program}
			}
			files["/"+program] = build(ts, arg, program)
		}
	}
	r.Put(name, tag, config, registrytest.Layer(files))
}

// build builds a static program.
func build(ts *testscript.TestScript, source, program string) []byte {
	out := ts.MkAbs(program + ".built")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, ts.MkAbs(source))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GO111MODULE=off")
	if said, err := cmd.CombinedOutput(); err != nil {
		ts.Fatalf("go build %s: %v\n%s", source, err, said)
	}
	b, err := os.ReadFile(out)
	ts.Check(err)
	return b
}

var library = regexp.MustCompile(`(?m)(/\S+) \(0x`)

// shellFiles adds a shell, a few programs and the C library of this host, and the
// libraries that Node takes.
func shellFiles(ts *testscript.TestScript, files map[string][]byte) {
	add := func(from, to string) {
		b, err := os.ReadFile(from)
		ts.Check(err)
		files[to] = b
	}
	for _, p := range []string{"dash", "cat", "ls", "env", "id", "tail", "grep"} {
		from, err := exec.LookPath(p)
		ts.Check(err)
		add(from, "/bin/"+map[bool]string{true: "sh", false: p}[p == "dash"])
		said, err := exec.Command("ldd", from).Output()
		ts.Check(err)
		for _, m := range library.FindAllStringSubmatch(string(said), -1) {
			if strings.HasPrefix(m[1], "/lib") {
				add(m[1], m[1])
			}
		}
	}
	for _, l := range []string{"libstdc++.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "libgcc_s.so.1"} {
		at, _ := filepath.Glob("/lib/*/" + l)
		if len(at) == 0 {
			at, _ = filepath.Glob("/usr/lib/*/" + l)
		}
		if len(at) == 0 {
			ts.Fatalf("this host has no %s", l)
		}
		add(at[0], at[0])
	}
	files["/etc/os-release"] = []byte("ID=debian\n")
}
