package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hearth-ci/hearth/internal/registry/registrytest"
)

// registries are those of the scripts that run, by their addresses.
var registries sync.Map

// registry NAME:TAG [private=USER:PASSWORD] [health=PROGRAM] [shell] [debian=PACKAGE,…]
// [user=UID] [env=NAME=VALUE] [/PATH=FILE] [/PATH=@TARGET] [PROGRAM…]: a container
// registry, one a script, with an image that has these programs in /, those in Go
// static, and the first as its entrypoint; or this host's shell and what a container
// of a job needs; or packages of Debian as they are unpacked, and what they depend on.
// $REGISTRY is its address.
func scriptRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: registry NAME:TAG [KEY=VALUE…] [PROGRAM…]")
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
	var links [][2]string
	var env []string
	packages := ""
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
			env = append(env, "PATH=/bin", "IMAGE="+args[0])
		case key == "debian":
			packages = value
		case key == "user":
			config["User"] = value
		case key == "env":
			env = append(env, value)
		case strings.HasPrefix(value, "@"):
			links = append(links, [2]string{key, value[1:]})
		case strings.HasPrefix(key, "/"):
			files[key] = []byte(ts.ReadFile(value))
		default:
			program := strings.TrimSuffix(filepath.Base(arg), ".go")
			if config["Entrypoint"] == nil {
				config["Entrypoint"] = []string{"/" + program}
			}
			if strings.HasSuffix(arg, ".go") {
				files["/"+program] = build(ts, arg, program)
			} else {
				files["/"+program] = []byte(ts.ReadFile(arg))
			}
		}
	}
	if config["Env"] = env; config["Entrypoint"] == nil {
		config["Cmd"] = []string{"sh"}
	}
	layer := registrytest.Layer(files)
	if packages != "" {
		var err error
		layer, err = debianLayer(packages, links, layer)
		ts.Check(err)
	}
	r.Put(name, tag, config, layer)
}

// debianLeft is of no use in a container of a test, and large.
var debianLeft = regexp.MustCompile(`^\./(usr/share/(doc|man|locale|i18n|perl|lintian|info)|var/(cache|lib)|usr/lib/x86_64-linux-gnu/(perl|libLLVM|libz3)|.*/bitcode/|dev/)`)

// debianLayer is a layer of Debian's packages, separated by commas, and what they
// depend on, unpacked and no script of theirs run; of links, and of another layer over
// it. The packages are fetched once and kept with the tests' images.
func debianLayer(packages string, links [][2]string, over []byte) ([]byte, error) {
	cache, err := testCache()
	if err != nil {
		return nil, err
	}
	kept := filepath.Join(cache, "containers", strings.ReplaceAll(packages, ",", "+")+".tar")
	if _, err := os.Stat(kept); err != nil {
		if err := os.MkdirAll(filepath.Dir(kept), 0o700); err != nil {
			return nil, err
		}
		part := fmt.Sprintf("%s.%d.tar", strings.TrimSuffix(kept, ".tar"), os.Getpid())
		defer os.Remove(part)
		cmd := exec.Command("mmdebstrap", "--variant=extract", "--include="+packages, "bookworm", part)
		if said, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("mmdebstrap %s: %w\n%s", packages, err, said)
		}
		if err := os.Rename(part, kept); err != nil {
			return nil, err
		}
	}
	f, err := os.Open(kept)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	there := map[string]bool{"tmp": true} // Docker takes no path twice
	w.WriteHeader(&tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777})
	for _, l := range links {
		there[l[0][1:]] = true
		w.WriteHeader(&tar.Header{Name: l[0][1:], Typeflag: tar.TypeSymlink, Linkname: l[1], Mode: 0o777})
	}
	for _, in := range []io.Reader{bytes.NewReader(over), f} {
		for r := tar.NewReader(in); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			} else if err != nil {
				return nil, err
			}
			if name := path.Clean(h.Name); there[name] || debianLeft.MatchString(h.Name) {
				continue
			} else {
				there[name] = true
			}
			if err := w.WriteHeader(h); err != nil {
				return nil, err
			}
			if _, err := io.Copy(w, r); err != nil {
				return nil, err
			}
		}
	}
	err = w.Close()
	return out.Bytes(), err
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
