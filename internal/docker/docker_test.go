package docker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/docker/dockertest"
)

func TestEngine(t *testing.T) {
	e := dockertest.New(t, map[string]dockertest.Image{
		"tool:1":                {Entrypoint: []string{"sh", "-c"}, Log: "logged\n", Ports: map[string]string{"80/tcp": "32768", "53/udp": "53"}},
		"reg.example:5000/x:v2": {Password: "right"},
	})
	c := New(e.Dial)
	defer c.Close()
	ctx := t.Context()
	if v, err := c.Version(ctx); v != "1.45" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	var told []string
	tell := func(line string) { told = append(told, line) }
	if err := c.Pull(ctx, "tool:1", Auth{}, tell); err != nil ||
		!slices.Equal(told, []string{"tag: Pulling from tool:1", "Status: Downloaded newer image for tool:1"}) {
		t.Errorf("%q, %v", told, err)
	}
	if err := c.Pull(ctx, "none", Auth{}, tell); !NotFound(err) {
		t.Errorf("an image that is not there: %v", err)
	}
	if err := c.Pull(ctx, "reg.example:5000/x:v2", Auth{Username: "me", Password: "wrong"}, tell); err == nil || NotFound(err) {
		t.Errorf("the wrong password: %v", err)
	}
	if err := c.Pull(ctx, "reg.example:5000/x:v2", Auth{Username: "me", Password: "right"}, tell); err != nil {
		t.Error(err)
	}
	if err := c.Tag(ctx, "reg.example:5000/x:v2", "x"); err != nil {
		t.Error(err)
	}
	if _, err := c.Create(ctx, "tagged", Config{Image: "x:latest"}); err != nil {
		t.Error(err)
	}
	net, err := c.CreateNetwork(ctx, "n")
	if err != nil {
		t.Fatal(err)
	}
	id, err := c.Create(ctx, "one", Config{Image: "tool:1", Cmd: []string{`echo out $X; echo err >&2; exit 7`}, Env: []string{"X=y"}, Network: "n"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(ctx, "one", Config{Image: "tool:1"}); err == nil {
		t.Error("two containers have a name")
	}
	out, err := c.Attach(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx, id); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if err := out.Copy(&stdout, &stderr); err != nil || stdout.String() != "out y\n" || stderr.String() != "err\n" {
		t.Errorf("%q %q %v", &stdout, &stderr, err)
	}
	out.Close()
	if code, err := c.Wait(ctx, id); code != 7 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	if s, err := c.Inspect(ctx, id); err != nil || s.Ports["80"] != "32768" || s.Ports["53/udp"] != "53" || !slices.Contains(s.Env, "X=y") {
		t.Errorf("%+v, %v", s, err)
	}
	stdout.Reset()
	if err := c.Logs(ctx, id, 10, &stdout, &stderr); err != nil || stdout.String() != "lo" {
		t.Errorf("ten bytes of a log: %q, %v", &stdout, err)
	}
	if _, err := c.NewExec(ctx, id, Exec{Argv: []string{"true"}}); err == nil {
		t.Error("a command in a container that has ended")
	}
	if err := c.RemoveNetwork(ctx, net); err == nil {
		t.Error("a network goes that is used")
	}
	if err := errors.Join(c.Remove(ctx, id), c.RemoveNetwork(ctx, net)); err != nil {
		t.Error(err)
	}
	if _, err := c.Inspect(ctx, id); !NotFound(err) {
		t.Errorf("after its removal: %v", err)
	}
}

func TestNames(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for image, want := range map[string][3]string{
		"alpine":                    {"alpine", "latest", Hub},
		"alpine:3.20":               {"alpine", "3.20", Hub},
		"library/alpine":            {"library/alpine", "latest", Hub},
		"localhost:5000/a/b":        {"localhost:5000/a/b", "latest", "localhost:5000"},
		"localhost/a:1":             {"localhost/a", "1", "localhost"},
		"ghcr.io/o/r:v1":            {"ghcr.io/o/r", "v1", "ghcr.io"},
		"ghcr.io/o/r:v1@" + digest:  {"ghcr.io/o/r", digest, "ghcr.io"},
		"index.docker.io/library/x": {"index.docker.io/library/x", "latest", Hub},
		"reg:5000/x@" + digest:      {"reg:5000/x", digest, "reg:5000"},
	} {
		name, tag := SplitImage(image)
		if got := [3]string{name, tag, RegistryOf(image)}; got != want {
			t.Errorf("%s: %q, want %q", image, got, want)
		}
	}
}

// hostile is a client of an engine that answers as it likes.
func hostile(t *testing.T, answer http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	c := New(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", strings.TrimPrefix(s.URL, "http://"))
	})
	t.Cleanup(c.Close)
	return c
}

// endless writes what it is given for ever.
func endless(status int, what string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		for {
			if _, err := io.WriteString(w, what); err != nil {
				return
			}
		}
	}
}

// An engine belongs to the job. Whatever it answers costs the host little, and is
// taken for nothing else than what it is.
func TestAttackEngineAnswers(t *testing.T) {
	ctx := t.Context()
	id := strings.Repeat("a", 64)
	body := func(status int, s string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status); io.WriteString(w, s) }
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		call   func(*Client) error
	}{
		"endless document": {endless(200, strings.Repeat("[", 1<<10)), func(c *Client) error { _, err := c.Inspect(ctx, id); return err }},
		"endless line":     {endless(200, strings.Repeat(" ", 1<<10)), func(c *Client) error { return c.Pull(ctx, "x", Auth{}, func(string) {}) }},
		"endless lines":    {endless(200, "{\"status\":\"x\"}\n"), func(c *Client) error { return c.Pull(ctx, "x", Auth{}, func(string) {}) }},
		"endless error":    {endless(500, "no "), func(c *Client) error { return c.Start(ctx, id) }},
		"long error":       {body(500, `{"message":"`+strings.Repeat("x", 1<<20)+`"}`), func(c *Client) error { return c.Start(ctx, id) }},
		"long pull error": {body(200, `{"error":"x","errorDetail":{"message":"`+strings.Repeat("x", 60_000)+`"}}`),
			func(c *Client) error { return c.Pull(ctx, "x", Auth{}, func(string) {}) }},
		"no id":      {body(201, `{"Id":"../../etc"}`), func(c *Client) error { _, err := c.Create(ctx, "x", Config{}); return err }},
		"exec id":    {body(201, `{"Id":"-h"}`), func(c *Client) error { _, err := c.NewExec(ctx, id, Exec{}); return err }},
		"network id": {body(201, `{"Id":""}`), func(c *Client) error { _, err := c.CreateNetwork(ctx, "x"); return err }},
		"version":    {body(200, `{"ApiVersion":"`+strings.Repeat("1", 100)+`"}`), func(c *Client) error { _, err := c.Version(ctx); return err }},
		"exit code":  {body(200, `{"StatusCode":99999999}`), func(c *Client) error { _, err := c.Wait(ctx, id); return err }},
		"exec code":  {body(200, `{"Running":false,"ExitCode":-7}`), func(c *Client) error { _, err := c.InspectExec(ctx, id); return err }},
		"pid":        {body(200, `{"Running":true,"Pid":99999999}`), func(c *Client) error { _, err := c.InspectExec(ctx, id); return err }},
		"port": {body(200, `{"Id":"`+id+`","NetworkSettings":{"Ports":{"80/tcp":[{"HostPort":"1;rm"}]}}}`),
			func(c *Client) error { _, err := c.Inspect(ctx, id); return err }},
		"health": {body(200, `{"Id":"`+id+`","State":{"Health":{"Status":"`+strings.Repeat("h", 100)+`"}}}`),
			func(c *Client) error { _, err := c.Inspect(ctx, id); return err }},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
		},
			func(c *Client) error { _, err := c.Version(ctx); return err }},
		"headers": {func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) },
			func(c *Client) error { _, err := c.Version(ctx); return err }},
		"no upgrade": {body(200, "frames"), func(c *Client) error { _, err := c.StartExec(ctx, id); return err }},
		"frame":      {body(200, "\x01\x07\x00\x00\x00\x00\x00\x01x"), func(c *Client) error { return c.Logs(ctx, id, 1<<20, io.Discard, io.Discard) }},
	} {
		err := c.call(hostile(t, c.answer))
		if err == nil {
			t.Errorf("%s: no error", name)
		} else if len(err.Error()) > maxText+1024 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("%d MiB are held", grown>>20)
	}
	// A frame says it has four gigabytes: it is passed on, not waited for.
	var n counter
	if err := hostile(t, endless(200, "\x01\x00\x00\x00\xff\xff\xff\xff"+strings.Repeat("y", 1<<16))).Logs(ctx, id, 1<<20, &n, &n); err != nil || n > 1<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
	full := errors.New("full")
	err := hostile(t, endless(200, "\x01\x00\x00\x00\x00\x00\x00\x01x")).Logs(ctx, id, 1<<40, writer(func(p []byte) (int, error) { return 0, full }), io.Discard)
	if !errors.Is(err, full) {
		t.Errorf("a writer that is full: %v", err)
	}
}

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
