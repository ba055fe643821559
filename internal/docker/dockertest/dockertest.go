// Package dockertest is a container engine for tests, without containers: it speaks
// the API as far as package docker asks, refuses what the real one refuses, and runs
// what would run in a container as a process of this host, in whose arguments and
// variables the paths of bound directories are those outside again. What a container
// is given can be read from [Engine.Containers].
//
// It has a stand-in for Docker's program, too: [Engine.Program] writes a script that
// calls this test's own binary, in which [Main] must be called first.
package dockertest

//lint:file-ignore ST1005 these errors are worded as Docker words them

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Image is an image that can be pulled.
type Image struct {
	Entrypoint []string
	Env        []string
	Health     []string // what Inspect says, one after the other; the last stays. nil: no check
	Password   string   // that pulling it takes; "" is none
	Exits      bool     // a container of it ends at once, with code 3
	Log        string   // of a container
	Musl       bool     // the C library
	ReadOnly   bool     // nothing can be put into a container of it
	Ports      map[string]string
}

// Engine is the engine.
type Engine struct {
	Socket string
	Images map[string]Image // by name with tag; those that are built are "hearth-action"

	t  testing.TB
	mu sync.Mutex
	// Containers are all that were made, by name, with those that are gone.
	Containers map[string]*Container
	Networks   map[string]bool // there now
	Pulls      []string
	execs      map[string]*process
	pulled     map[string]bool
}

// Container is one that was made.
type Container struct {
	ID, Name   string
	Image      string
	Entrypoint []string
	Cmd        []string
	Env        []string
	WorkingDir string
	Network    string
	Alias      string
	Binds      []string
	Publish    []string
	Options    []string // that the program was given beside
	Running    bool
	Removed    bool
	health     int
	main       *process
	attached   chan struct{}
	out        io.Writer
}

type process struct {
	c    *Container
	argv []string
	env  []string
	dir  string
	user string
	cmd  *exec.Cmd
	code *int
	done chan struct{}
}

// New starts an engine that is ended with the test.
func New(t testing.TB, images map[string]Image) *Engine {
	t.Helper()
	dir, err := os.MkdirTemp("", "dockertest") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{Socket: filepath.Join(dir, "s"), Images: images, t: t, Containers: map[string]*Container{}, Networks: map[string]bool{},
		execs: map[string]*process{}, pulled: map[string]bool{}}
	l, err := net.Listen("unix", e.Socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: e.routes()}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done; os.RemoveAll(dir) })
	return e
}

// Dial opens a connection, for [docker.New].
func (e *Engine) Dial(context.Context) (net.Conn, error) { return net.Dial("unix", e.Socket) }

// All returns the containers that were made, in no order.
func (e *Engine) All() []*Container {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.Containers))
}

// Of returns the first container whose name begins with a prefix.
func (e *Engine) Of(prefix string) *Container {
	for _, c := range e.All() {
		if strings.HasPrefix(c.Name, prefix) {
			return c
		}
	}
	e.t.Helper()
	e.t.Fatalf("no container is called %s…", prefix)
	return nil
}

func id() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func say(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if v != nil {
		json.NewEncoder(w).Encode(v)
	}
}

func refuse(w http.ResponseWriter, status int, format string, args ...any) {
	say(w, status, map[string]string{"message": fmt.Sprintf(format, args...)})
}

func (e *Engine) routes() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /v1.40/version", func(w http.ResponseWriter, r *http.Request) { say(w, 200, map[string]string{"ApiVersion": "1.45"}) })
	m.HandleFunc("POST /v1.40/images/create", e.pull)
	m.HandleFunc("POST /v1.40/images/{name...}", func(w http.ResponseWriter, r *http.Request) {
		name, ok := strings.CutSuffix(r.PathValue("name"), "/tag")
		name = full(name)
		q := r.URL.Query()
		e.mu.Lock()
		defer e.mu.Unlock()
		if !ok || !e.pulled[name] {
			refuse(w, 404, "No such image: %s", name)
			return
		}
		as := q.Get("repo") + ":" + q.Get("tag")
		e.Images[as], e.pulled[as] = e.Images[name], true
		w.WriteHeader(201)
	})
	m.HandleFunc("POST /v1.40/networks/create", func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Name string }
		json.NewDecoder(r.Body).Decode(&in)
		e.mu.Lock()
		e.Networks[in.Name] = true
		e.mu.Unlock()
		say(w, 201, map[string]string{"Id": hex.EncodeToString([]byte(in.Name + strings.Repeat("x", 32)))[:64]})
	})
	m.HandleFunc("DELETE /v1.40/networks/{id}", func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		defer e.mu.Unlock()
		for n := range e.Networks {
			if r.PathValue("id") == hex.EncodeToString([]byte(n + strings.Repeat("x", 32)))[:64] {
				for _, c := range e.Containers {
					if c.Network == n && !c.Removed {
						refuse(w, 403, "error while removing network: network %s has active endpoints", n)
						return
					}
				}
				delete(e.Networks, n)
				w.WriteHeader(204)
				return
			}
		}
		refuse(w, 404, "network %s not found", r.PathValue("id"))
	})
	m.HandleFunc("POST /v1.40/containers/create", e.create)
	m.HandleFunc("POST /v1.40/containers/{id}/start", e.with(e.start))
	m.HandleFunc("GET /v1.40/containers/{id}/json", e.with(e.inspect))
	m.HandleFunc("GET /v1.40/containers/{id}/logs", e.with(func(w http.ResponseWriter, r *http.Request, c *Container) {
		frame(w, 1, []byte(e.Images[c.Image].Log))
	}))
	m.HandleFunc("POST /v1.40/containers/{id}/attach", e.with(func(w http.ResponseWriter, r *http.Request, c *Container) {
		conn, buf := hijack(w)
		e.mu.Lock()
		c.out = buf
		c.attached = make(chan struct{})
		e.mu.Unlock()
		<-c.attached
		conn.Close()
	}))
	m.HandleFunc("POST /v1.40/containers/{id}/kill", e.with(func(w http.ResponseWriter, r *http.Request, c *Container) {
		if c.main == nil || c.main.cmd == nil {
			refuse(w, 409, "container %s is not running", c.ID)
			return
		}
		sig := map[string]syscall.Signal{"SIGINT": syscall.SIGINT, "SIGTERM": syscall.SIGTERM, "SIGKILL": syscall.SIGKILL}[r.URL.Query().Get("signal")]
		syscall.Kill(-c.main.cmd.Process.Pid, sig)
		w.WriteHeader(204)
	}))
	m.HandleFunc("POST /v1.40/containers/{id}/wait", e.with(func(w http.ResponseWriter, r *http.Request, c *Container) {
		<-c.main.done
		say(w, 200, map[string]int{"StatusCode": *c.main.code})
	}))
	m.HandleFunc("DELETE /v1.40/containers/{id}", e.with(func(w http.ResponseWriter, r *http.Request, c *Container) {
		e.mu.Lock()
		c.Removed, c.Running = true, false
		e.mu.Unlock()
		w.WriteHeader(204)
	}))
	m.HandleFunc("POST /v1.40/containers/{id}/exec", e.with(func(w http.ResponseWriter, r *http.Request, c *Container) {
		var in struct {
			Cmd, Env   []string
			WorkingDir string
			User       string
		}
		json.NewDecoder(r.Body).Decode(&in)
		if !c.Running {
			refuse(w, 409, "container %s is not running", c.ID)
			return
		}
		x := id()
		e.mu.Lock()
		e.execs[x] = &process{c: c, argv: in.Cmd, env: append(slices.Clone(c.Env), in.Env...), dir: in.WorkingDir, user: in.User, done: make(chan struct{})}
		e.mu.Unlock()
		say(w, 201, map[string]string{"Id": x})
	}))
	m.HandleFunc("POST /v1.40/exec/{id}/start", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		p := e.exec(r.PathValue("id"))
		if p == nil {
			refuse(w, 404, "No such exec instance: %s", r.PathValue("id"))
			return
		}
		conn, buf := hijack(w)
		defer conn.Close()
		e.run(p, buf)
	})
	m.HandleFunc("GET /v1.40/exec/{id}/json", func(w http.ResponseWriter, r *http.Request) {
		p := e.exec(r.PathValue("id"))
		if p == nil {
			refuse(w, 404, "No such exec instance: %s", r.PathValue("id"))
			return
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		pid := 0
		if p.cmd != nil && p.cmd.Process != nil {
			pid = p.cmd.Process.Pid
		}
		say(w, 200, map[string]any{"Running": p.code == nil, "ExitCode": p.code, "Pid": pid})
	})
	return m
}

func (e *Engine) exec(id string) *process {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.execs[id]
}

func (e *Engine) with(fn func(http.ResponseWriter, *http.Request, *Container)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		var found *Container
		for _, c := range e.Containers {
			if c.ID == r.PathValue("id") && !c.Removed {
				found = c
			}
		}
		e.mu.Unlock()
		if found == nil {
			refuse(w, 404, "No such container: %s", r.PathValue("id"))
			return
		}
		fn(w, r, found)
	}
}

func (e *Engine) pull(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("fromImage") + ":" + r.URL.Query().Get("tag")
	e.mu.Lock()
	defer e.mu.Unlock()
	e.Pulls = append(e.Pulls, name)
	img, ok := e.Images[name]
	if !ok {
		refuse(w, 404, "manifest for %s not found: manifest unknown: manifest unknown", name)
		return
	}
	if img.Password != "" {
		var auth struct{ Password string }
		b, _ := base64.URLEncoding.DecodeString(r.Header.Get("X-Registry-Auth"))
		if json.Unmarshal(b, &auth); auth.Password != img.Password {
			refuse(w, 500, "Head %q: unauthorized: authentication required", "https://"+name)
			return
		}
	}
	e.pulled[name] = true
	w.WriteHeader(200)
	fmt.Fprintf(w, "{\"status\":\"Pulling from %s\",\"id\":\"tag\"}\n{\"status\":\"Downloading\",\"id\":\"a\",\"progressDetail\":{\"current\":1,\"total\":2}}\n{\"status\":\"Status: Downloaded newer image for %s\"}\n", name, name)
}

// full is an image's name as Images has it: with its tag, or its digest as one.
func full(name string) string {
	name = strings.ReplaceAll(name, "@", ":")
	if strings.LastIndexByte(name, ':') <= strings.LastIndexByte(name, '/') {
		name += ":latest"
	}
	return name
}

func (e *Engine) create(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Image           string
		Entrypoint, Cmd []string
		Env             []string
		WorkingDir      string
		HostConfig      struct {
			Binds       []string
			NetworkMode string
		}
		Alias            string
		Publish, Options []string
	}
	json.NewDecoder(r.Body).Decode(&in)
	name := r.URL.Query().Get("name")
	e.mu.Lock()
	defer e.mu.Unlock()
	built := strings.HasPrefix(in.Image, "hearth-action:")
	if built {
		in.Image = "hearth-action"
	} else {
		in.Image = full(in.Image)
	}
	img, ok := e.Images[in.Image]
	switch {
	case !ok || !e.pulled[in.Image] && !built:
		refuse(w, 404, "No such image: %s", in.Image)
		return
	case e.Containers[name] != nil:
		refuse(w, 409, "Conflict. The container name %q is already in use", name)
		return
	case in.HostConfig.NetworkMode != "" && !e.Networks[in.HostConfig.NetworkMode]:
		refuse(w, 404, "network %s not found", in.HostConfig.NetworkMode)
		return
	}
	c := &Container{ID: id(), Name: name, Image: in.Image, Entrypoint: in.Entrypoint, Cmd: in.Cmd, Env: append(slices.Clone(img.Env), in.Env...),
		WorkingDir: in.WorkingDir, Network: in.HostConfig.NetworkMode, Binds: in.HostConfig.Binds, Alias: in.Alias, Publish: in.Publish, Options: in.Options}
	if c.Entrypoint == nil {
		c.Entrypoint = img.Entrypoint
	}
	e.Containers[name] = c
	say(w, 201, map[string]string{"Id": c.ID})
}

// start runs the program of a container that somebody is attached to; the others are
// only said to run.
func (e *Engine) start(w http.ResponseWriter, r *http.Request, c *Container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.attached == nil {
		c.Running = !e.Images[c.Image].Exits
		w.WriteHeader(204)
		return
	}
	c.main = &process{c: c, argv: append(slices.Clone(c.Entrypoint), c.Cmd...), env: c.Env, dir: c.WorkingDir, done: make(chan struct{})}
	if len(c.main.argv) == 0 {
		refuse(w, 400, "no command specified")
		return
	}
	go func() {
		e.run(c.main, c.out)
		close(c.attached)
	}()
	w.WriteHeader(204)
}

func (e *Engine) inspect(w http.ResponseWriter, r *http.Request, c *Container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	img := e.Images[c.Image]
	state := map[string]any{"Running": c.Running, "Status": "running", "ExitCode": 0}
	if img.Exits {
		state["Status"], state["ExitCode"] = "exited", 3
	}
	if n := len(img.Health); n > 0 {
		state["Health"] = map[string]string{"Status": img.Health[min(c.health, n-1)]}
		c.health++
	}
	ports := map[string][]map[string]string{}
	for in, out := range img.Ports {
		ports[in] = []map[string]string{{"HostIp": "0.0.0.0", "HostPort": out}, {"HostIp": "::", "HostPort": out}}
	}
	say(w, 200, map[string]any{"Id": c.ID, "State": state, "Config": map[string]any{"Env": c.Env}, "NetworkSettings": map[string]any{"Ports": ports}})
}

// outside puts the paths that bound directories have outside where those inside are.
func (c *Container) outside(s string) string {
	for _, b := range c.Binds {
		from, to, _ := strings.Cut(strings.TrimSuffix(b, ":ro"), ":")
		if to != "/var/run/docker.sock" {
			s = strings.ReplaceAll(s, to+"/", from+"/")
			if s == to {
				s = from
			}
		}
	}
	return s
}

func (e *Engine) run(p *process, out io.Writer) {
	defer close(p.done)
	code := 127
	finish := func() {
		e.mu.Lock()
		p.code = &code
		e.mu.Unlock()
	}
	defer finish()
	// A container is this host, whose C library is another.
	if all := strings.Join(p.argv, " "); e.Images[p.c.Image].Musl && strings.Contains(all, "/lib/ld-musl-") {
		frame(out, 1, []byte("0:0\nmusl\n"))
		code = 0
		return
	} else if strings.Contains(all, "/lib64/ld-linux") {
		if code = 1; p.user == "0" && !e.Images[p.c.Image].ReadOnly {
			code = 0
		}
		return
	}
	argv := make([]string, len(p.argv))
	for i, a := range p.argv {
		argv[i] = p.c.outside(a)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = p.c.outside(p.dir)
	for _, kv := range p.env {
		k, v, _ := strings.Cut(kv, "=")
		cmd.Env = append(cmd.Env, k+"="+p.c.outside(v))
	}
	if !slices.ContainsFunc(p.env, func(s string) bool { return strings.HasPrefix(s, "PATH=") }) {
		cmd.Env = append(cmd.Env, "PATH="+os.Getenv("PATH"))
	}
	var mu sync.Mutex
	cmd.Stdout, cmd.Stderr = &framer{&mu, out, 1}, &framer{&mu, out, 2}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = 2 * time.Second
	e.mu.Lock()
	err := cmd.Start()
	p.cmd = cmd
	e.mu.Unlock()
	if err != nil {
		p.cmd = nil
		frame(out, 1, fmt.Appendf(nil, "OCI runtime exec failed: exec failed: unable to start container process: %v\r\n", err))
		return
	}
	cmd.Wait()
	if code = cmd.ProcessState.ExitCode(); code < 0 {
		code = 128 + int(cmd.ProcessState.Sys().(syscall.WaitStatus).Signal())
	}
}

type framer struct {
	mu     *sync.Mutex
	w      io.Writer
	stream byte
}

func (f *framer) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(p), frame(f.w, f.stream, p)
}

func frame(w io.Writer, stream byte, p []byte) error {
	var b bytes.Buffer
	b.Write([]byte{stream, 0, 0, 0})
	binary.Write(&b, binary.BigEndian, uint32(len(p)))
	b.Write(p)
	_, err := w.Write(b.Bytes())
	return err
}

func hijack(w http.ResponseWriter) (net.Conn, io.Writer) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	return conn, conn
}

// Program writes the stand-in for Docker's program into dir.
func (e *Engine) Program(dir string) {
	e.t.Helper()
	self, err := os.Executable()
	if err != nil {
		e.t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\nHEARTH_DOCKERTEST=%s exec %s \"$@\"\n", e.Socket, self)
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(script), 0o755); err != nil {
		e.t.Fatal(err)
	}
}

// Main is the stand-in's main function where the test's binary is started as it.
func Main() {
	socket := os.Getenv("HEARTH_DOCKERTEST")
	if socket == "" {
		return
	}
	if err := program(socket, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func program(socket string, args []string) error {
	if args[0] == "build" {
		for _, a := range args {
			fmt.Println("built with", a)
		}
		if b, err := os.ReadFile(args[4]); err != nil || bytes.Contains(b, []byte("BROKEN")) {
			return fmt.Errorf("failed to solve: %v", err)
		}
		return nil
	}
	if args[0] != "create" {
		return fmt.Errorf("docker: unknown command %q", args[0])
	}
	body := map[string]any{}
	host := map[string]any{}
	body["HostConfig"] = host
	var name string
	var env, binds, publish, options []string
	rest := args[1:]
	for len(rest) > 0 && strings.HasPrefix(rest[0], "-") {
		flag, value, ok := strings.Cut(rest[0], "=")
		if !ok {
			if len(rest) < 2 {
				return fmt.Errorf("flag needs an argument: %s", flag)
			}
			value, rest = rest[1], rest[1:]
		}
		rest = rest[1:]
		switch flag {
		case "--name":
			name = value
		case "--workdir":
			body["WorkingDir"] = value
		case "--network":
			host["NetworkMode"] = value
		case "--network-alias":
			body["Alias"] = value
		case "--entrypoint":
			body["Entrypoint"] = []string{value}
		case "-v":
			binds = append(binds, value)
		case "-p":
			publish = append(publish, value)
		case "-e":
			if !strings.Contains(value, "=") {
				value += "=" + os.Getenv(value)
			}
			env = append(env, value)
		case "--env-file":
			b, err := os.ReadFile(value)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				env = append(env, strings.TrimRight(line, "\n"))
			}
		case "--label":
		case "--nonsense":
			return fmt.Errorf("unknown flag: --nonsense")
		default:
			options = append(options, flag+"="+value)
		}
	}
	body["Image"], body["Cmd"], body["Env"], body["Publish"], body["Options"] = rest[0], rest[1:], env, publish, options
	host["Binds"] = binds
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }}}
	resp, err := client.Post("http://docker/v1.40/containers/create?name="+name, "application/json", bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var out struct{ ID, Message string }
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil || out.ID == "" {
		return fmt.Errorf("Error response from daemon: %s", out.Message)
	}
	fmt.Println(out.ID)
	return nil
}
