package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/hearth-ci/hearth/internal/door"
	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/network"
	db "github.com/hearth-ci/hearth/internal/store"
)

// Every token of the API saw, ran code in and deleted every machine, whoever had
// made it.
func TestAttackMachinesOfAnother(t *testing.T) {
	s := serve(t, Config{}, 8)
	mallory := token(t, Grant{Subject: "mallory"})
	id, own := s.vm(map[string]any{"name": "private"})
	gone, _ := s.vm(nil)
	s.ok("DELETE", "/api/vms/"+gone, nil)
	for _, id := range []string{id, gone, "nosuch"} {
		for _, r := range []struct {
			method, path string
			body         any
		}{
			{"GET", "/api/vms/" + id, nil}, {"DELETE", "/api/vms/" + id, nil}, {"GET", "/api/vms/" + id + "/snapshots", nil},
			{"POST", "/api/vms/" + id + "/snapshots", nil},
			{"POST", "/api/vms/" + id + "/rollback", map[string]any{"snapshot_id": "x"}},
			{"POST", "/api/llm/execute", map[string]any{"language": "sh", "code": "id", "vm_id": id}},
			{"POST", "/api/llm/execute", map[string]any{"language": "sh", "code": "id", "vm_ids": []string{id}}},
		} {
			a := s.do(r.method, r.path, mallory, r.body).want(404, "no_such_vm")
			if got := strings.ReplaceAll(a.raw, id, "ID"); strings.Contains(got, "private") || !strings.Contains(got, `there is no VM \"ID\"`) {
				t.Errorf("%s %s tells: %s", r.method, r.path, a.raw)
			}
		}
	}
	for _, path := range []string{"/api/vms", "/api/sessions"} {
		if a := s.do("GET", path, mallory, nil); a.status != 200 || strings.Contains(a.raw, `"id"`) {
			t.Errorf("%s: %s", path, a.raw)
		}
		if a := s.do("GET", path, s.admin, nil); !strings.Contains(a.raw, id) {
			t.Errorf("%s, admin: %s", path, a.raw)
		}
		if a := s.do("GET", path, s.token, nil); !strings.Contains(a.raw, id) {
			t.Errorf("%s, its owner: %s", path, a.raw)
		}
	}
	s.do("GET", "/api/stats", mallory, nil).want(403, "wrong_scope")
	// The same name by another issuer is somebody else.
	s.api.cfg.Issuers = []string{"agents.example"}
	foreign := sign(t, nil, func(c *claims) { c.Issuer, c.Subject = "agents.example", "test" })
	s.do("GET", "/api/vms/"+id, foreign, nil).want(404, "no_such_vm")
	foreign = sign(t, nil, func(c *claims) { c.Issuer, c.Subject, c.Scope = "agents.example", "test", "vm:"+id })
	s.do("GET", "/api/vms/"+id, foreign, nil).want(404, "no_such_vm")
	if a := s.do("GET", "/api/vms/"+id, own, nil); a.status != 200 {
		t.Error("its own token:", a.raw)
	}
	if a := s.do("DELETE", "/api/vms/"+id, s.admin, nil); a.status != 200 {
		t.Error("admin:", a.raw)
	}
}

// sign makes a token as a program with the secret would.
func sign(t *testing.T, header map[string]any, change func(*claims)) string {
	t.Helper()
	now := time.Now()
	c := claims{scopeAll, "", jwt.RegisteredClaims{Issuer: tokenIssuer, Audience: jwt.ClaimStrings{tokenAudience}, Subject: "test",
		IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(time.Hour))}}
	if change != nil {
		change(&c)
	}
	tok := jwt.NewWithClaims(jwt.SigningMethodHS256, c)
	maps.Copy(tok.Header, header)
	out, err := tok.SignedString(secret)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A header that says what must be understood, which nobody understood.
func TestAttackCriticalHeader(t *testing.T) {
	s := serve(t, Config{}, 1)
	for _, crit := range []any{[]string{"exp"}, []string{"b64"}, []string{}, "x", nil} {
		s.do("GET", "/api/vms", sign(t, map[string]any{"crit": crit, "b64": false}, nil), nil).want(401, "unauthorized")
	}
	if a := s.do("GET", "/api/vms", sign(t, map[string]any{"kid": "x"}, nil), nil); a.status != 200 {
		t.Error(a.raw)
	}
}

// Tokens of others are taken where the settings say so, and else are not, also if
// they are signed with the same secret.
func TestAttackForeignToken(t *testing.T) {
	plain := serve(t, Config{}, 1)
	knowing := serve(t, Config{Issuers: []string{"agents.example", ""}, Audiences: []string{"agents", ""}}, 1)
	for _, c := range []struct {
		issuer   string
		audience jwt.ClaimStrings
		plain    int
		knowing  int
	}{
		{tokenIssuer, jwt.ClaimStrings{tokenAudience}, 200, 200},
		{tokenIssuer, jwt.ClaimStrings{"other", tokenAudience}, 200, 200},
		{"agents.example", jwt.ClaimStrings{"agents"}, 401, 200},
		{"agents.example", jwt.ClaimStrings{tokenAudience}, 401, 200},
		{tokenIssuer, jwt.ClaimStrings{"agents"}, 401, 200},
		{"", nil, 401, 200},
		{"agents.example.attacker", jwt.ClaimStrings{"agents"}, 401, 401},
		{"agents.example", jwt.ClaimStrings{"results"}, 401, 401},
		{"attacker", nil, 401, 401},
	} {
		tok := sign(t, nil, func(x *claims) { x.Issuer, x.Audience = c.issuer, c.audience })
		if a := plain.do("GET", "/api/vms", tok, nil); a.status != c.plain {
			t.Errorf("%q %q: %d %s", c.issuer, c.audience, a.status, a.raw)
		}
		if a := knowing.do("GET", "/api/vms", tok, nil); a.status != c.knowing {
			t.Errorf("%q %q, where it is known: %d %s", c.issuer, c.audience, a.status, a.raw)
		}
	}
}

// A token that was stolen was good until it expired.
func TestAttackRevokedToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passes.json")
	s := serve(t, Config{Revoked: door.OpenPasses(path).Revoked}, 4)
	stolen, err := Sign(secret, Grant{Subject: "test"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a := s.do("POST", "/api/vms", stolen.Token, nil)
	child, _ := a.body["token"].(string)
	id, _ := a.body["id"].(string)
	if a := s.do("GET", "/api/vms/"+id, child, nil); a.status != 200 {
		t.Fatal(a.raw)
	}
	if _, err := door.OpenPasses(path).Revoke(stolen.ID, stolen.Expires); err != nil { // another process
		t.Fatal(err)
	}
	s.do("GET", "/api/vms", stolen.Token, nil).want(401, "unauthorized")
	s.do("GET", "/api/vms/"+id, child, nil).want(401, "unauthorized") // it was made by it
	if a := s.do("GET", "/api/vms/"+id, s.token, nil); a.status != 200 {
		t.Error("another token of the same subject:", a.raw)
	}
	again := serve(t, Config{Revoked: door.OpenPasses(path).Revoked}, 1) // a restart
	again.do("GET", "/api/vms", stolen.Token, nil).want(401, "unauthorized")
	broken := serve(t, Config{Revoked: func(string) (bool, error) { return false, errors.New("the disk burns") }}, 1)
	broken.do("GET", "/api/vms", broken.token, nil).want(503, "no_tokens")
}

// "allow:0.0.0.0/0" opened the private network to whoever could make a machine.
func TestAttackNetworkOfRequest(t *testing.T) {
	s := serve(t, Config{}, 8)
	for _, n := range []string{"allow:0.0.0.0/0", "allow:10.0.0.0/8", "allow:example.com,192.168.0.1"} {
		s.do("POST", "/api/vms", s.token, map[string]any{"network": n}).want(403, "network_refused")
		s.do("POST", "/api/llm/execute", s.token, map[string]any{"network": n, "language": "sh", "code": "id"}).want(403, "network_refused")
	}
	s.ok("POST", "/api/vms", map[string]any{"network": "allow:example.com"})
	ceiling := network.Policy{Mode: network.AllowList, Allow: []string{"*.example.com"}}
	s = serve(t, Config{Network: ceiling}, 8)
	for _, n := range []string{"public", "allow:other.example"} {
		s.do("POST", "/api/vms", s.token, map[string]any{"network": n}).want(403, "network_refused")
	}
	for n, want := range map[string]string{"": "allow:*.example.com", "default": "allow:*.example.com", "none": "none",
		"allow:a.example.com": "allow:a.example.com"} {
		a := s.ok("POST", "/api/vms", map[string]any{"network": n})
		if a.body["network"] != want {
			t.Errorf("%q: %v", n, a.body["network"])
		}
		s.ok("DELETE", "/api/vms/"+a.body["id"].(string), nil)
	}
}

// One subject, or one machine's token, took all the machines, programs and disk.
func TestAttackQuotas(t *testing.T) {
	s := serve(t, Config{Quotas: Quotas{VMs: 2, AllVMs: 3, Executions: 1, Snapshots: 3, SnapshotBytes: 2 << 30}}, 8)
	other := token(t, Grant{Subject: "other"})
	id, own := s.vm(nil)
	second, _ := s.vm(nil)
	s.do("POST", "/api/vms", s.token, nil).want(429, "too_many_vms")
	s.do("POST", "/api/llm/execute", s.token, map[string]any{"language": "sh", "code": "id"}).want(429, "too_many_vms")
	if a := s.do("POST", "/api/vms", other, nil); a.status != 201 {
		t.Error("another subject:", a.raw)
	}
	if a := s.do("POST", "/api/vms", other, nil).want(429, "too_many_vms"); !strings.Contains(a.raw, "all subjects") {
		t.Error(a.raw)
	}

	// Snapshots, by the machine's own token: they count for its owner.
	for range 3 {
		if a := s.do("POST", "/api/vms/"+id+"/snapshots", own, nil); a.status != 201 {
			t.Fatal(a.raw)
		}
	}
	s.do("POST", "/api/vms/"+id+"/snapshots", own, nil).want(429, "too_many_snapshots")
	s.do("POST", "/api/vms/"+second+"/snapshots", s.token, nil).want(429, "too_many_snapshots")
	s.ok("DELETE", "/api/vms/"+id, nil) // they go with their machine
	s.ok("POST", "/api/vms/"+second+"/snapshots", nil)

	// Programs.
	began := make(chan struct{})
	var wg sync.WaitGroup
	m := s.api.vms[second]
	wg.Go(func() {
		close(began)
		s.do("POST", "/api/llm/execute", s.token, map[string]any{"language": "sh", "code": "read x < /dev/null; sleep 2", "vm_id": second})
	})
	<-began
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if m.Running() > 0 || time.Now().After(end) {
			break
		}
	}
	s.do("POST", "/api/llm/execute", s.token, map[string]any{"language": "sh", "code": "id", "vm_id": second}).want(429, "too_many_executions")
	wg.Wait()
	if a := s.do("POST", "/api/llm/execute", s.token, map[string]any{"language": "sh", "code": "id", "vm_id": second}); a.status != 200 {
		t.Error("what had ended still counts:", a.raw)
	}
}

// Snapshots of half a gigabyte each by a machine's token.
func TestAttackSnapshotBytes(t *testing.T) {
	s := serve(t, Config{Quotas: Quotas{SnapshotBytes: 1<<30 - 1}}, 2) // less than a machine's memory
	id, own := s.vm(nil)
	if a := s.do("POST", "/api/vms/"+id+"/snapshots", own, nil).want(429, "too_many_snapshots"); !strings.Contains(a.raw, "bytes") {
		t.Error(a.raw)
	}
	b := books{quotas: Quotas{Snapshots: 100, AllSnapshots: 100, SnapshotBytes: 1000, AllSnapshotBytes: 1500}}
	a, o := owner{"hearth", "a"}, owner{"hearth", "o"}
	for _, c := range []struct {
		who owner
		n   int64
		ok  bool
	}{{a, 600, true}, {a, 500, false}, {a, 400, true}, {a, 1, false}, {o, 600, false}, {o, 500, true}, {o, 1, false}} {
		if err := b.take(c.who, use{shots: 1, bytes: c.n}); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
	b.give(a, use{shots: 2, bytes: 1000})
	b.give(o, use{shots: 1, bytes: 500})
	if b.all != (use{}) || len(b.of) != 0 {
		t.Errorf("%+v is left", b.all)
	}
}

// Programs that print without end, on many machines at once: each answer held two
// mebibytes of each, and then as much again, escaped.
func TestAttackOutputInSum(t *testing.T) {
	s := serve(t, Config{Quotas: Quotas{AllOutput: 1 << 20}}, 8)
	a := s.ok("POST", "/api/llm/execute", map[string]any{"language": "sh", "code": "yes | head -c 3000000; echo last", "count": 8})
	total := 0
	for _, r := range a.body["results"].([]any) {
		r := r.(map[string]any)
		out := r["stdout"].(string)
		total += len(out)
		if r["truncated"] != true || !strings.HasPrefix(out, "y\n") || !strings.HasSuffix(out, "last\n") {
			t.Errorf("%.40q … %q", out, out[max(len(out)-40, 0):])
		}
	}
	if total > 1<<20+8*(2*clipLeast+100) || total < 1<<19 {
		t.Errorf("%d bytes of output", total)
	}
	if s.api.output.left != 1<<20 {
		t.Errorf("%d bytes are not given back", 1<<20-s.api.output.left)
	}
	if a := s.ok("POST", "/api/llm/execute", map[string]any{"language": "sh", "code": "head -c 100000 /dev/zero | tr '\\0' x"}); a.body["truncated"] == true ||
		len(a.body["stdout"].(string)) != 100000 {
		t.Error("room that was given back is not there")
	}
}

// Bodies of the API: announced, begun, and never ended.
func TestAttackBodies(t *testing.T) {
	s := serve(t, Config{}, 1)
	s.Config.ReadTimeout = 0
	var conns []net.Conn
	for range 100 {
		c, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "POST /api/llm/execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 1000000\r\n\r\n%s", s.token,
			strings.Repeat("x", 300<<10))
		conns = append(conns, c)
	}
	other := token(t, Grant{Subject: "other"})
	big, _ := json.Marshal(map[string]any{"language": "sh", "code": "true #" + strings.Repeat("x", 500<<10)})
	if a := s.do("POST", "/api/llm/execute", other, bytes.NewBuffer(big).String()); a.status != 200 {
		t.Error("another subject's:", a.status, a.raw)
	}
	if _, mem, disk := s.api.bodies.Held(); mem > 16<<20 || disk != 0 {
		t.Errorf("%d bytes in memory, %d on disk", mem, disk)
	}
	// Without a token not a byte is read.
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "POST /api/llm/execute HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if b, err := io.ReadAll(c); !strings.Contains(string(b), " 401 ") {
		t.Errorf("%v %s", err, b)
	}
	for _, c := range conns {
		c.Close()
	}
	a := s.do("POST", "/api/llm/execute", s.token, map[string]any{"language": "sh", "code": "x", "env": func() map[string]string {
		env := map[string]string{}
		for i := range maxEnv + 1 {
			env[fmt.Sprint("V", i)] = ""
		}
		return env
	}()})
	a.want(400, "bad_request")
}

// A secret in code, environment and output of an execution is in its output alone: not
// in what is expected and explained, not in the log, not on disk.
func TestAttackSecretOfAnExecution(t *testing.T) {
	const secret = "correcthorse"
	dir := t.TempDir()
	st, err := db.Open(t.Context(), dir+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var log lockedBuffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	l, err := learn.Open(t.Context(), st, learn.Options{Log: logger})
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, Config{Memory: l, History: &history.Keeper{Learn: l, Log: logger}, Log: logger}, 4)
	for _, body := range []map[string]any{
		{"code": "export A_PASSWORD=" + secret + "; echo Error: $A_PASSWORD is not good >&2; exit 3"},
		{"code": "echo Error: $X is not good >&2; exit 3", "secrets": map[string]string{"X": secret}},
		{"code": "echo Error: $DB_PASS is not good >&2; echo $DB_PASS | base64; exit 3", "env": map[string]string{"DB_PASS": secret}},
		{"code": "echo Error: no https://a:" + secret + "@example.org/ >&2; exit 3"},
		{"code": "echo 'Error: -H Authorization: Bearer " + secret + "' >&2; exit 3"},
		{"language": "python", "code": "token = '" + secret + "'\nraise ValueError(token)"},
	} {
		if body["language"] == nil {
			body["language"] = "bash"
		}
		a := s.ok("POST", "/api/llm/execute", body)
		if !strings.Contains(fmt.Sprint(a.body["stderr"]), secret) {
			t.Errorf("the program's own output is not its own: %s", a.raw)
		}
		if a.body["explanation"] == nil || a.body["prediction"] == nil {
			t.Fatal(a.raw)
		}
		if told := fmt.Sprint(a.body["explanation"], a.body["prediction"]); strings.Contains(told, secret) {
			t.Errorf("told: %s", told)
		}
	}
	for _, path := range []string{"stats", "lessons", "predict?command=exit", "related?command=exit", "next?command=exit"} {
		if a := s.do("GET", "/api/v1/learn/"+path, s.admin, nil); strings.Contains(a.raw, secret) {
			t.Errorf("%s: %s", path, a.raw)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(dir + "/*")
	kept := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("is not good")) {
			kept++
		}
		for _, form := range []string{secret, base64.StdEncoding.EncodeToString([]byte(secret))[:12]} {
			if bytes.Contains(b, []byte(form)) {
				t.Errorf("%s has the secret", f)
			}
		}
	}
	if kept == 0 {
		t.Error("nothing of the failures was kept")
	}
	if strings.Contains(log.String(), secret) {
		t.Errorf("the log has the secret: %s", log.String())
	}
}

// lockedBuffer is written to by several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Of what one subject runs no other is told: what is remembered has its owner's name,
// and a question about it takes an admin's token.
func TestAttackMemoryOfAnotherSubject(t *testing.T) {
	s, _ := taught(t, Config{})
	mine := map[string]any{"language": "bash", "code": "echo Error: cannot reach build.internal.example >&2; exit 1"}
	for range 3 {
		s.ok("POST", "/api/llm/execute", mine)
	}
	other := token(t, Grant{Subject: "other"})
	a := s.do("POST", "/api/llm/execute", other, mine)
	if why := a.body["explanation"].(map[string]any); why["seen"] != 0. || why["lesson"] != nil {
		t.Errorf("told of another's failures: %s", a.raw)
	}
	if p := a.body["prediction"].(map[string]any); strings.Contains(fmt.Sprint(p["reasons"]), "failed last") {
		t.Errorf("told how another's went: %s", a.raw)
	}
	for _, path := range []string{"predict?command=x", "related?command=x", "next?command=x", "similar?signature=x", "lessons?x=", "stats?x="} {
		s.do("GET", "/api/v1/learn/"+path+"&repository=api:test", other, nil).want(403, "wrong_scope")
	}
}
