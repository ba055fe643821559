package oidc

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	relying "github.com/coreos/go-oidc/v3/oidc"
)

// party is an issuer that is served, and a clock for both sides.
type party struct {
	*Issuer
	t   *testing.T
	at  string
	now time.Time
}

func newParty(t *testing.T, dir string) *party {
	t.Helper()
	mux := http.NewServeMux()
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	p := &party{t: t, at: s.URL + "/oidc", now: time.Now()}
	p.Issuer = New(Config{URL: p.at, Dir: dir, Now: func() time.Time { return p.now }})
	p.Register(mux, "/oidc")
	return p
}

// verify is an independent relying party, from discovery on.
func (p *party) verify(token, audience string) (*relying.IDToken, error) {
	p.t.Helper()
	provider, err := relying.NewProvider(p.t.Context(), p.at)
	if err != nil {
		p.t.Fatal(err)
	}
	return provider.Verifier(&relying.Config{ClientID: audience, Now: func() time.Time { return p.now }}).Verify(p.t.Context(), token)
}

func ask(t *testing.T, d *Desk, query, authorization string) (int, map[string]any) {
	t.Helper()
	r := httptest.NewRequest("GET", "/idtoken?api-version=2.0"+query, nil)
	r.Header.Set("Authorization", authorization)
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	var answer map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatal(err, w.Body)
	}
	return w.Code, answer
}

func claims() Claims {
	return Claims{"repository": "acme/app", "repository_owner": "acme", "ref": "refs/heads/main", "ref_type": "branch", "event_name": "push",
		"job_workflow_ref": "acme/app/.github/workflows/ci.yml@refs/heads/main", "runner_environment": "self-hosted", "run_id": "7"}
}

func TestToken(t *testing.T) {
	p := newParty(t, t.TempDir())
	d := p.Desk(claims(), nil, "https://github.com/acme")
	status, a := ask(t, d, "", "bearer "+d.RequestToken())
	if status != 200 {
		t.Fatal(a)
	}
	token, err := p.verify(a["value"].(string), "https://github.com/acme")
	if err != nil {
		t.Fatal(err)
	}
	if token.Subject != "repo:acme/app:ref:refs/heads/main" || token.Issuer != p.at || !token.Expiry.Equal(p.now.Truncate(time.Second).Add(5*time.Minute)) {
		t.Errorf("%+v", token)
	}
	var all map[string]any
	if err := token.Claims(&all); err != nil {
		t.Fatal(err)
	}
	for name, want := range claims() {
		if all[name] != want {
			t.Errorf("%s: %v", name, all[name])
		}
	}
	if jti, _ := all["jti"].(string); len(jti) != 32 {
		t.Errorf("jti: %v", all["jti"])
	}
	status, a = ask(t, d, "&audience="+url.QueryEscape("sts.example.com"), "Bearer "+d.RequestToken())
	if status != 200 {
		t.Fatal(a)
	}
	if _, err := p.verify(a["value"].(string), "sts.example.com"); err != nil {
		t.Error(err)
	}
	if _, err := p.verify(a["value"].(string), "https://github.com/acme"); err == nil {
		t.Error("good for another audience")
	}
	p.now = p.now.Add(6 * time.Minute)
	if _, err := p.verify(a["value"].(string), "sts.example.com"); err == nil {
		t.Error("good after its time")
	}
}

func TestSubject(t *testing.T) {
	for _, c := range []struct {
		claims Claims
		keys   string
		want   string
	}{
		{Claims{"ref": "refs/tags/v1"}, "", "repo:acme/app:ref:refs/tags/v1"},
		{Claims{"event_name": "pull_request", "ref": "refs/pull/1/merge"}, "", "repo:acme/app:pull_request"},
		{Claims{"event_name": "pull_request_target", "ref": "refs/heads/main"}, "", "repo:acme/app:pull_request"},
		{Claims{"environment": "prod", "event_name": "pull_request"}, "", "repo:acme/app:environment:prod"},
		{Claims{"environment": "a:ref:refs/heads/main"}, "", "repo:acme/app:environment:a%3Aref%3Arefs/heads/main"},
		{Claims{"ref": "refs/heads/main", "job_workflow_ref": "acme/ci/x.yml@v1"}, "repo context job_workflow_ref",
			"repo:acme/app:ref:refs/heads/main:job_workflow_ref:acme/ci/x.yml@v1"},
		{Claims{"repository_owner": "acme"}, "repository_owner", "repository_owner:acme"},
		{Claims{}, "repo environment", `the subject is to have "environment", and this job has none`},
	} {
		c.claims["repository"] = "acme/app"
		got, err := Subject(c.claims, strings.Fields(c.keys))
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%v %s: %q, want %q", c.claims, c.keys, got, c.want)
		}
	}
}

// A key is published before it signs, and as long as what it has signed may be
// looked at; several processes have the same ones.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	p := newParty(t, dir)
	sign := func() string {
		t.Helper()
		token, err := p.Token(claims(), nil, "a")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.verify(token, "a"); err != nil {
			t.Errorf("at %v: %v", p.now, err)
		}
		header, _, _ := strings.Cut(token, ".")
		return header
	}
	published := func() int {
		t.Helper()
		keys, err := p.ring.current(p.now)
		if err != nil {
			t.Fatal(err)
		}
		return len(keys)
	}
	first := sign()
	if published() != 1 {
		t.Errorf("%d keys at first", published())
	}
	p.now = p.now.Add(89*24*time.Hour + time.Minute)
	if sign() != first || published() != 2 {
		t.Errorf("a day before: %d keys, the first one signs: %v", published(), sign() == first)
	}
	p.now = p.now.Add(24 * time.Hour)
	second := sign()
	if second == first || published() != 2 {
		t.Errorf("after 90 days: %d keys, the first one signs: %v", published(), second == first)
	}
	other := newParty(t, dir)
	if token, err := other.Token(claims(), nil, "a"); err != nil || len(other.ring.keys) != 2 {
		t.Errorf("another process: %d keys, %v %.20s", len(other.ring.keys), err, token)
	}
	p.now = p.now.Add(25 * time.Hour)
	if sign() != second || published() != 1 {
		t.Errorf("a day after: %d keys", published())
	}
}

// A job gets tokens for itself alone, and nobody else gets any.
func TestAttackRequestToken(t *testing.T) {
	p := newParty(t, t.TempDir())
	mine, theirs := p.Desk(claims(), nil, "a"), p.Desk(claims(), nil, "a")
	for _, authorization := range []string{"", "bearer", "bearer ", "Bearer " + theirs.RequestToken(),
		"Basic " + mine.RequestToken(), "Bearer " + mine.RequestToken() + "x"} {
		if status, _ := ask(t, mine, "", authorization); status != http.StatusUnauthorized {
			t.Errorf("%.20q: %d", authorization, status)
		}
	}
	// What it asks for is the audience, and no claim.
	status, a := ask(t, mine, "&sub=repo:acme/other:ref:refs/heads/main&repository=acme/other&audience=a", "bearer "+mine.RequestToken())
	if status != 200 {
		t.Fatal(a)
	}
	if token, err := p.verify(a["value"].(string), "a"); err != nil || token.Subject != "repo:acme/app:ref:refs/heads/main" {
		t.Error(token, err)
	}
	if status, _ := ask(t, mine, "&audience="+strings.Repeat("a", 1025), "bearer "+mine.RequestToken()); status != 400 {
		t.Errorf("a long audience: %d", status)
	}
	mine.count.Store(maxTokens)
	if status, _ := ask(t, mine, "", "bearer "+mine.RequestToken()); status != http.StatusTooManyRequests {
		t.Errorf("one too many: %d", status)
	}
}

// Keys that others on the host can read are not used, and never shown.
func TestAttackReadableKeys(t *testing.T) {
	dir := t.TempDir()
	p := newParty(t, dir)
	if _, err := p.Token(claims(), nil, "a"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, fileName)
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st.Mode(), err)
	}
	for _, path := range []string{"/.well-known/jwks", "/.well-known/openid-configuration"} {
		resp, err := http.Get(p.at + path)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		resp.Write(&b)
		resp.Body.Close()
		for _, private := range []string{`"d":`, `"p":`, "pkcs8"} {
			if strings.Contains(b.String(), private) {
				t.Errorf("%s shows %s", path, private)
			}
		}
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Token(claims(), nil, "a"); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("keys that others can read: %v", err)
	}
	if err := os.Rename(file, file+".real"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file+".real", file); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Token(claims(), nil, "a"); err == nil {
		t.Error("keys behind a link")
	}
}
