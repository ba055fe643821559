package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/hearth-ci/hearth/internal/machine/machinetest"
	"github.com/hearth-ci/hearth/internal/session"
)

var secret = []byte(strings.Repeat("k", MinSecret))

// server is the API over stand-ins.
type server struct {
	*httptest.Server
	t     *testing.T
	api   *Server
	hosts *machinetest.Host
	token string
	admin string
}

func serve(t *testing.T, cfg Config, most int) *server {
	t.Helper()
	h := &machinetest.Host{Most: most}
	if cfg.Machines == nil {
		cfg.Machines = h
	}
	if cfg.Secret == nil {
		cfg.Secret = secret
	}
	s := &server{t: t, api: New(cfg), hosts: h}
	mux := http.NewServeMux()
	s.api.Register(mux)
	s.Server = httptest.NewUnstartedServer(mux)
	// Shorter than any program below runs: an execution must not mind.
	s.Config.ReadTimeout, s.Config.WriteTimeout = 200*time.Millisecond, 200*time.Millisecond
	s.Start()
	t.Cleanup(func() {
		s.Server.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.api.Close(ctx); err != nil {
			t.Error(err)
		}
		if left := h.Machines(); len(left) > 0 {
			t.Errorf("%d machines are left after Close", len(left))
		}
	})
	s.token, s.admin = token(t, Grant{Subject: "test"}), token(t, Grant{Subject: "root", Admin: true})
	return s
}

func token(t *testing.T, g Grant) string {
	t.Helper()
	x, err := Sign(secret, g, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return x.Token
}

type answer struct {
	t      *testing.T
	status int
	header http.Header
	body   map[string]any
	raw    string
}

func (s *server) do(method, path, token string, body any) answer {
	s.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			s.t.Fatal(err)
		}
		r = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, s.URL+path, r)
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	a := answer{t: s.t, status: resp.StatusCode, header: resp.Header, raw: string(raw)}
	if err := json.Unmarshal(raw, &a.body); err != nil {
		s.t.Fatalf("%s %s: %d, not JSON: %q", method, path, resp.StatusCode, raw)
	}
	if resp.StatusCode >= 400 && path != "/health" && (a.body["error"] == "" || a.body["error"] == nil || a.body["code"] == nil || a.body["hint"] == nil) {
		s.t.Errorf("%s %s: an error without its words: %s", method, path, raw)
	}
	return a
}

func (s *server) ok(method, path string, body any) answer {
	s.t.Helper()
	a := s.do(method, path, s.token, body)
	if a.status/100 != 2 {
		s.t.Fatalf("%s %s: %d %s", method, path, a.status, a.raw)
	}
	return a
}

// want checks status and code of an error.
func (a answer) want(status int, code string) answer {
	a.t.Helper()
	if a.status != status || a.body["code"] != code {
		a.t.Errorf("got %d %s, want %d %s", a.status, a.raw, status, code)
	}
	return a
}

func (s *server) vm(body any) (id, token string) {
	s.t.Helper()
	a := s.ok("POST", "/api/vms", body)
	return a.body["id"].(string), a.body["token"].(string)
}

func TestTokens(t *testing.T) {
	s := serve(t, Config{}, 4)
	now := time.Now()
	good := func(change func(*claims)) claims {
		c := claims{scopeAll, "", jwt.RegisteredClaims{Issuer: tokenIssuer, Audience: jwt.ClaimStrings{tokenAudience}, Subject: "x",
			IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(time.Hour))}}
		if change != nil {
			change(&c)
		}
		return c
	}
	sign := func(m jwt.SigningMethod, key any, c jwt.Claims) string {
		t.Helper()
		out, err := jwt.NewWithClaims(m, c).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	hs := func(change func(*claims)) string { return sign(jwt.SigningMethodHS256, secret, good(change)) }
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	whole := hs(nil)
	head, rest, _ := strings.Cut(whole, ".")
	payload, sig, _ := strings.Cut(rest, ".")
	for _, c := range []struct {
		name, token string
		status      int
		code        string
	}{
		{"good", whole, 200, ""},
		{"for one machine", hs(func(c *claims) { c.Scope = "vm:m1" }), 200, ""},
		{"of nobody", hs(func(c *claims) { c.Subject = "" }), 401, "unauthorized"},
		{"none at all", "", 401, "unauthorized"},
		{"rubbish", "abc", 401, "unauthorized"},
		{"three parts of rubbish", "a.b.c", 401, "unauthorized"},
		{"huge", strings.Repeat("a", 8000), 401, "unauthorized"},
		{"unsigned", sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, good(nil)), 401, "unauthorized"},
		{"signature cut off", head + "." + payload + ".", 401, "unauthorized"},
		{"signature of another", head + "." + strings.ToUpper(payload) + "." + sig, 401, "unauthorized"},
		{"HS512", sign(jwt.SigningMethodHS512, secret, good(nil)), 401, "unauthorized"},
		{"RS256", sign(jwt.SigningMethodRS256, key, good(nil)), 401, "unauthorized"},
		{"another secret", sign(jwt.SigningMethodHS256, []byte(strings.Repeat("x", 32)), good(nil)), 401, "unauthorized"},
		{"expired", hs(func(c *claims) { c.ExpiresAt = jwt.NewNumericDate(now.Add(-time.Minute)) }), 401, "unauthorized"},
		{"without an expiry", hs(func(c *claims) { c.ExpiresAt = nil }), 401, "unauthorized"},
		{"without a time of issue", hs(func(c *claims) { c.IssuedAt = nil }), 401, "unauthorized"},
		{"issued tomorrow", hs(func(c *claims) { c.IssuedAt = jwt.NewNumericDate(now.Add(24 * time.Hour)) }), 401, "unauthorized"},
		{"not valid yet", hs(func(c *claims) { c.NotBefore = jwt.NewNumericDate(now.Add(time.Hour)) }), 401, "unauthorized"},
		{"good for too long", hs(func(c *claims) { c.ExpiresAt = jwt.NewNumericDate(now.Add(MaxTokenAge + time.Hour)) }), 401, "unauthorized"},
		{"for another audience", hs(func(c *claims) { c.Audience = jwt.ClaimStrings{"results"} }), 401, "unauthorized"},
		{"of another issuer", hs(func(c *claims) { c.Issuer = "somebody" }), 401, "unauthorized"},
		{"without a scope", hs(func(c *claims) { c.Scope = "" }), 403, "wrong_scope"},
		{"of another scope", hs(func(c *claims) { c.Scope = "repo" }), 403, "wrong_scope"},
		{"for no machine", hs(func(c *claims) { c.Scope = "vm:" }), 403, "wrong_scope"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := s.do("GET", "/api/vms", c.token, nil)
			code, _ := a.body["code"].(string)
			if a.status != c.status || code != c.code {
				t.Errorf("got %d %s, want %d %s", a.status, a.raw, c.status, c.code)
			}
			if (a.header.Get("WWW-Authenticate") != "") != (a.status == 401) {
				t.Error("WWW-Authenticate belongs to 401")
			}
			if strings.Contains(a.raw, string(secret)) {
				t.Error("the secret is in the answer")
			}
		})
	}
	t.Run("every route", func(t *testing.T) {
		for _, r := range []string{"GET /api/vms", "POST /api/vms", "GET /api/vms/m1", "DELETE /api/vms/m1", "GET /api/vms/m1/snapshots",
			"POST /api/vms/m1/snapshots",
			"POST /api/vms/m1/rollback", "POST /api/llm/execute", "GET /api/sessions", "GET /api/stats"} {
			method, path, _ := strings.Cut(r, " ")
			s.do(method, path, "", nil).want(401, "unauthorized")
		}
	})
	t.Run("basic", func(t *testing.T) {
		req, _ := http.NewRequest("GET", s.URL+"/api/vms", nil)
		req.SetBasicAuth("a", whole)
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 401 {
			t.Error(resp.Status)
		}
	})
	for _, bad := range []struct {
		secret string
		ttl    time.Duration
	}{{"short", time.Hour}, {string(secret), 0}, {string(secret), -1}, {string(secret), MaxTokenAge + 1}} {
		if _, err := Sign([]byte(bad.secret), Grant{Subject: "x"}, bad.ttl); err == nil {
			t.Errorf("a token for %d bytes and %v", len(bad.secret), bad.ttl)
		}
	}
}

func TestNoSecret(t *testing.T) {
	s := serve(t, Config{Secret: []byte("short")}, 1)
	s.do("GET", "/api/vms", s.token, nil).want(503, "no_secret")
	if a := s.do("GET", "/health", "", nil); a.status != 200 || a.body["status"] != "ok" {
		t.Error(a.status, a.raw)
	}
}

func TestMachine(t *testing.T) {
	s := serve(t, Config{}, 4)
	id, own := s.vm(map[string]any{"name": "mine"})
	other, _ := s.vm(nil)
	path := "/api/vms/" + id
	if a := s.ok("GET", path, nil); a.body["status"] != "created" || a.body["name"] != "mine" || a.body["network"] != "public" {
		t.Error(a.raw)
	}
	if a := s.ok("GET", "/api/vms", nil); len(a.body["vms"].([]any)) != 2 {
		t.Error(a.raw)
	}

	// The machine's own token: this machine and nothing else.
	run := map[string]any{"agent_id": "a", "language": "bash", "code": "echo out; echo err >&2; exit 3", "vm_id": id}
	a := s.do("POST", "/api/llm/execute", own, run)
	for field, want := range map[string]any{"vm_id": id, "exit_code": 3.0, "stdout": "out\n", "stderr": "err\n"} {
		if a.body[field] != want {
			t.Errorf("%s is %v, want %v", field, a.body[field], want)
		}
	}
	for _, field := range []string{"execution_id", "duration_ms", "started_at", "completed_at"} {
		if a.body[field] == nil {
			t.Errorf("%s is missing: %s", field, a.raw)
		}
	}
	if a := s.do("GET", "/api/vms", own, nil); len(a.body["vms"].([]any)) != 1 {
		t.Error("a machine's token sees other machines:", a.raw)
	}
	for _, r := range []struct {
		method, path string
		body         any
	}{
		{"GET", "/api/vms/" + other, nil}, {"DELETE", "/api/vms/" + other, nil}, {"POST", "/api/vms", nil}, {"GET", "/api/sessions", nil},
		{"GET", "/api/stats", nil},
		{"POST", "/api/vms/" + other + "/snapshots", nil}, {"POST", "/api/vms/" + other + "/rollback", map[string]any{"snapshot_id": "x"}},
		{"POST", "/api/llm/execute", map[string]any{"language": "sh", "code": "id"}},
		{"POST", "/api/llm/execute", map[string]any{"language": "sh", "code": "id", "vm_id": other}},
		{"POST", "/api/llm/execute", map[string]any{"language": "sh", "code": "id", "vm_ids": []string{id, other}}},
		{"POST", "/api/llm/execute", map[string]any{"language": "sh", "code": "id", "count": 1}},
	} {
		s.do(r.method, r.path, own, r.body).want(403, "wrong_scope")
	}

	// Snapshots.
	shot := s.ok("POST", path+"/snapshots", map[string]any{"name": "clean"})
	s.do("POST", path+"/snapshots", s.token, map[string]any{"name": "clean"}).want(409, "name_taken")
	s.ok("POST", path+"/snapshots", nil)
	if a := s.ok("GET", path+"/snapshots", nil); len(a.body["snapshots"].([]any)) != 2 {
		t.Error(a.raw)
	}
	s.ok("POST", path+"/rollback", map[string]any{"snapshot_id": shot.body["id"]})
	s.ok("POST", path+"/rollback", map[string]any{"snapshot_id": "clean"})
	s.do("POST", path+"/rollback", s.token, map[string]any{"snapshot_id": "other"}).want(404, "no_such_snapshot")
	s.do("POST", path+"/rollback", s.token, nil).want(400, "bad_request")

	// The end.
	s.do("DELETE", path, own, nil)
	s.do("GET", path, s.token, nil).want(410, "vm_gone")
	s.do("POST", "/api/llm/execute", s.token, run).want(410, "vm_gone")
	s.do("DELETE", path, s.token, nil).want(410, "vm_gone")
	s.do("GET", "/api/vms/nosuch", s.token, nil).want(404, "no_such_vm")
	a = s.ok("GET", "/api/sessions", nil)
	found := false
	for _, x := range a.body["sessions"].([]any) {
		x := x.(map[string]any)
		found = found || x["id"] == id && x["status"] == "released" && x["outcome"] == "failed" && strings.Contains(x["reason"].(string), "exit code 3")
	}
	if !found {
		t.Error("how the session ended is not told:", a.raw)
	}
	s.do("GET", "/api/stats", s.token, nil).want(403, "wrong_scope")
	a = s.do("GET", "/api/stats", s.admin, nil)
	if e := a.body["executions"].(map[string]any); e["total"] != 1.0 || e["nonzero"] != 1.0 || e["errors"] != 0.0 {
		t.Error(a.raw)
	}
}

func TestExecute(t *testing.T) {
	s := serve(t, Config{MaxOutput: 1000}, 4)
	run := func(body map[string]any) answer { t.Helper(); return s.ok("POST", "/api/llm/execute", body) }
	for _, c := range []struct{ language, code, stdout string }{
		{"bash", "echo ${BASH_VERSION:+bash}", "bash\n"},
		{"sh", "echo $((1+1))", "2\n"},
		{"Python", "import sys\nprint(sys.version_info[0], end='')", "3"},
		{"bash", "cat; echo -n done", "done"}, // standard input is empty, not the program
		{"bash", "printf '\\377'", "\uFFFD"},
	} {
		if a := run(map[string]any{"language": c.language, "code": c.code}); a.body["stdout"] != c.stdout || a.body["exit_code"] != 0.0 {
			t.Errorf("%s %q: %s", c.language, c.code, a.raw)
		}
	}
	if a := run(map[string]any{"language": "sh", "code": "pwd; echo $X", "working_dir": "/",
		"env": map[string]string{"X": "a b"}}); a.body["stdout"] != "/\na b\n" {
		t.Error(a.raw)
	}
	long := "echo " + strings.Repeat("x", 200<<10) + " | wc -c"
	if a := run(map[string]any{"language": "sh", "code": long}); strings.TrimSpace(a.body["stdout"].(string)) != "204801" {
		t.Error("a long program:", a.raw)
	}

	// Longer than the server's timeouts, which are 200 ms here.
	if a := run(map[string]any{"language": "sh", "code": "sleep 0.7; echo late", "timeout_seconds": 3600}); a.body["stdout"] != "late\n" {
		t.Error(a.raw)
	}
	if a := run(map[string]any{"language": "sh", "code": "echo before; exec sleep 60", "timeout_seconds": 0.3}); a.body["timed_out"] != true ||
		a.body["stdout"] != "before\n" || a.body["exit_code"] == 0.0 {
		t.Error(a.raw)
	}
	a := run(map[string]any{"language": "sh", "code": "echo first; yes | head -c 100000; echo last"})
	if out := a.body["stdout"].(string); a.body["truncated"] != true || len(out) > 1100 || !strings.HasPrefix(out, "first\n") ||
		!strings.HasSuffix(out, "last\n") || !strings.Contains(out, "bytes left out") {
		t.Error(a.raw)
	}

	// Nothing stays of fresh machines.
	if a := s.ok("GET", "/api/vms", nil); len(a.body["vms"].([]any)) != 0 {
		t.Error(a.raw)
	}

	for _, c := range []struct {
		body any
		code string
	}{
		{map[string]any{"code": "x"}, "bad_request"},
		{map[string]any{"language": "cobol", "code": "x"}, "bad_request"},
		{map[string]any{"language": "sh"}, "bad_request"},
		{map[string]any{"language": "sh", "code": "x", "timeout_seconds": -1}, "bad_request"},
		{map[string]any{"language": "sh", "code": "x", "timeout_seconds": 1e9}, "bad_request"},
		{map[string]any{"language": "sh", "code": "x", "working_dir": "tmp"}, "bad_request"},
		{map[string]any{"language": "sh", "code": "x", "vmid": "m1"}, "bad_request"},
		{map[string]any{"language": "sh", "code": "x", "vm_id": "m1", "count": 2}, "bad_request"},
		{map[string]any{"language": "sh", "code": "x", "count": -1}, "bad_request"},
		{map[string]any{"language": "sh", "code": "x", "count": 1000}, "bad_request"},
		{map[string]any{"language": "sh", "code": "x", "vm_ids": []string{"m1", "m1"}}, "bad_request"},
		{map[string]any{"language": "sh", "code": "x", "vm_id": "m1", "cpus": 1}, "bad_request"},
		{map[string]any{"language": "sh", "code": "x", "network": "sneakernet"}, "bad_request"},
		{map[string]any{"language": "sh", "code": "x", "env": map[string]string{"A=B": "c"}}, "bad_request"},
		{"{", "bad_request"}, {"", "bad_request"}, {"[]", "bad_request"}, {"{} {}", "bad_request"}, {"null x", "bad_request"},
	} {
		if a := s.do("POST", "/api/llm/execute", s.token, c.body); a.status != 400 || a.body["code"] != c.code {
			t.Errorf("%v: %d %s", c.body, a.status, a.raw)
		}
	}
	s.do("POST", "/api/llm/execute", s.token, map[string]any{"language": "sh", "code": "x", "working_dir": "/etc/passwd/x"}).want(422, "cannot_start")
	dir := t.TempDir() + "/a b/c"
	if a := run(map[string]any{"language": "sh", "code": "pwd", "working_dir": dir}); a.body["stdout"] != dir+"\n" {
		t.Errorf("a working directory that was not there: %s", a.raw)
	}
	s.do("POST", "/api/llm/execute", s.token, map[string]any{"language": "sh", "code": strings.Repeat("x", 2<<20)}).want(413, "body_too_large")
}

func TestSeveral(t *testing.T) {
	s := serve(t, Config{}, 3)
	a := s.ok("POST", "/api/llm/execute", map[string]any{"language": "sh", "code": "echo hi", "count": 3})
	seen := map[any]bool{}
	for _, r := range a.body["results"].([]any) {
		r := r.(map[string]any)
		if r["stdout"] != "hi\n" || r["exit_code"] != 0.0 {
			t.Error(a.raw)
		}
		seen[r["vm_id"]] = true
	}
	if len(seen) != 3 {
		t.Error("not three machines:", a.raw)
	}
	b := s.do("POST", "/api/llm/execute", s.token, map[string]any{"language": "sh", "code": "echo hi", "count": 4}).want(503, "busy")
	if b.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if s := s.hosts.Stats(); s.Leased != 0 || s.Claims != 6 {
		t.Error("machines of a refused request are left")
	}
	one, _ := s.vm(nil)
	two, _ := s.vm(nil)
	h := s.hosts.Machines()[1]
	// One of them dies meanwhile: the other's result is still told.
	go func() {
		time.Sleep(200 * time.Millisecond)
		h.Lose(errors.New("qemu was killed"))
	}()
	a = s.ok("POST", "/api/llm/execute", map[string]any{"language": "sh", "code": "sleep 1; echo hi", "vm_ids": []string{one, two}})
	rs := a.body["results"].([]any)
	first, second := rs[0].(map[string]any), rs[1].(map[string]any)
	if first["vm_id"] != one || first["stdout"] != "hi\n" {
		t.Error(a.raw)
	}
	if f, _ := second["failure"].(map[string]any); second["vm_id"] != two || f == nil || f["hint"] == "" || second["exit_code"] != nil {
		t.Error("a machine that died has no failure, or an exit code:", a.raw)
	}
	s.do("POST", "/api/llm/execute", s.token, map[string]any{"language": "sh", "code": "echo", "vm_ids": []string{one, "nosuch"}}).want(404, "no_such_vm")
}

func TestLimits(t *testing.T) {
	s := serve(t, Config{Quotas: Quotas{AllVMs: 2}}, 1)
	id, _ := s.vm(nil)
	a := s.do("POST", "/api/vms", s.token, nil).want(503, "busy")
	if a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	s.hosts.Grow(10)
	s.vm(nil)
	if a := s.do("POST", "/api/vms", s.token, nil).want(429, "too_many_vms"); a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	s.do("DELETE", "/api/vms/"+id, s.token, nil)
	s.do("POST", "/api/vms", s.token, map[string]any{"memory_mib": 1 << 30}).want(422, "too_large")
	for _, bad := range []map[string]any{{"ttl_seconds": -1}, {"ttl_seconds": session.MaxTTL.Seconds() + 1}, {"cpus": -1}, {"memory_mib": 3}, {"network": "x"},
		{"name": "a\nb"}, {"size": 3}} {
		s.do("POST", "/api/vms", s.token, bad).want(400, "bad_request")
	}
}

// A machine whose time is over is released although nobody asks.
func TestDeadline(t *testing.T) {
	s := serve(t, Config{}, 4)
	id, token := s.vm(map[string]any{"ttl_seconds": 1})
	s.api.mu.Lock()
	m := s.api.vms[id]
	s.api.mu.Unlock()
	select {
	case <-m.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("not released")
	}
	if a := s.do("GET", "/api/vms/"+id, s.token, nil).want(410, "vm_gone"); !strings.Contains(a.raw, "its time is over") {
		t.Error(a.raw)
	}
	_ = token
	if s.hosts.Stats().Leased != 0 {
		t.Error("the lease is still held")
	}
}

func TestBusy(t *testing.T) {
	s := serve(t, Config{}, 4)
	id, _ := s.vm(nil)
	s.api.mu.Lock()
	m := s.api.vms[id]
	s.api.mu.Unlock()
	_, leave, err := m.Enter()
	if err != nil {
		t.Fatal(err)
	}
	s.do("POST", "/api/vms/"+id+"/snapshots", s.token, nil).want(409, "vm_busy")
	leave()
	taking, take := make(chan struct{}), make(chan struct{})
	s.hosts.Machines()[0].OnSnapshot(func() error { close(taking); <-take; return nil })
	taken := make(chan error, 1)
	go func() {
		_, err := m.Snapshot(context.Background(), "")
		taken <- err
	}()
	<-taking
	s.do("POST", "/api/llm/execute", s.token, map[string]any{"language": "sh", "code": "echo", "vm_id": id}).want(409, "vm_busy")
	close(take)
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
	s.hosts.Machines()[0].OnSnapshot(nil)
	s.ok("POST", "/api/vms/"+id+"/snapshots", nil)
}

// A client that goes away takes its program and its fresh machine with it.
func TestClientGone(t *testing.T) {
	s := serve(t, Config{}, 4)
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "POST", s.URL+"/api/llm/execute", strings.NewReader(`{"language": "sh", "code": "exec sleep 600"}`))
	req.Header.Set("Authorization", "Bearer "+s.token)
	done := make(chan error, 1)
	go func() {
		_, err := s.Client().Do(req)
		done <- err
	}()
	for s.hosts.Stats().Leased == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond) // most likely in the middle of it; right either way
	cancel()
	if err := <-done; err == nil {
		t.Fatal("an answer")
	}
	for until := time.Now().Add(30 * time.Second); s.hosts.Stats().Leased > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the machine is still there")
		}
	}
}

func TestRoutes(t *testing.T) {
	s := serve(t, Config{}, 1)
	s.do("GET", "/api/nosuch", s.token, nil).want(404, "no_such_route")
	if a := s.do("PUT", "/api/vms", s.token, nil).want(405, "method_not_allowed"); a.header.Get("Allow") != "GET, POST" {
		t.Error(a.header.Get("Allow"))
	}
	s.do("GET", "/api/llm/execute", s.token, nil).want(405, "method_not_allowed")
	req, _ := http.NewRequest("POST", s.URL+"/api/vms", nil)
	req.Header.Set("Authorization", "Bearer "+s.token)
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 403 {
		t.Error("a cross-origin request is let through:", resp.Status)
	}
}

func TestClosed(t *testing.T) {
	s := serve(t, Config{}, 4)
	s.vm(nil)
	s.vm(nil)
	if err := s.api.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if s.hosts.Stats().Leased != 0 {
		t.Error("machines are left")
	}
	s.do("POST", "/api/vms", s.token, nil).want(503, "closing")
	if a := s.do("GET", "/health", "", nil); a.status != 503 {
		t.Error(a.status, a.raw)
	}
}

func TestClip(t *testing.T) {
	for _, most := range []int{2, 10, 16, 1000} {
		for _, size := range []int{1, 3, 7, 50} {
			c := newClip(most, &store{left: 1 << 30})
			var all strings.Builder
			for i := range 20 {
				p := strings.Repeat(string(rune('a'+i)), size)
				all.WriteString(p)
				c.Write([]byte(p))
			}
			got := c.String()
			if len(all.String()) <= most/2*2 {
				if got != all.String() || c.cut() {
					t.Errorf("most %d size %d: %q", most, size, got)
				}
				continue
			}
			if !c.cut() || !strings.HasPrefix(got, all.String()[:most/2]) || !strings.HasSuffix(got, all.String()[len(all.String())-most/2:]) ||
				!strings.Contains(got, fmt.Sprintf(" %d bytes", len(all.String())-most/2*2)) {
				t.Errorf("most %d size %d: %q of %q", most, size, got, all.String())
			}
		}
	}
}
