package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
)

// A server says how it is, and its figures to whoever has the token.
func TestServedFigures(t *testing.T) {
	p := newPlace(t, "on: push\njobs: {}\n")
	gh := githubtest.New()
	defer gh.Close()
	file := filepath.Join(p.home, "metrics-token")
	if err := os.WriteFile(file, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := p.serveWith(gh, map[string]any{"metrics_token_file": file, "warm": 0}) // no machine is started
	get := func(path, token string) (int, string) {
		t.Helper()
		r, err := http.NewRequest("GET", s.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	resp, err := http.Post(s.url+"/webhooks/github", "application/json", strings.NewReader("{}")) // not signed
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	for _, c := range []struct {
		path, token string
		code        int
		says        string
	}{
		{"/healthz", "", 200, "ok"},
		{"/readyz", "", 200, "ok"},
		{"/metrics", "", 401, "token"},
		{"/api/v1/queue", "wrong", 401, "token"},
		{"/api/v1/queue", "0123456789abcdef", 200, `{"queued":0,"claimed":0,"slots":1,"jobs":[]}`},
		{"/metrics", "0123456789abcdef", 200, "hearth_slots 1\n"},
		{"/metrics", "0123456789abcdef", 200, "hearth_store_up 1\n"},
		{"/metrics", "0123456789abcdef", 200, "hearth_webhook_deliveries_total{code=\"401\"} 1\n"},
		{"/metrics", "0123456789abcdef", 200, "\nhearth_machines_leased 0\n"},
	} {
		if code, body := get(c.path, c.token); code != c.code || !strings.Contains(body, c.says) {
			t.Errorf("%s with %q: %d %s", c.path, c.token, code, body)
		}
	}
	if _, body := get("/metrics", "0123456789abcdef"); testing.Verbose() {
		t.Log(body)
	}
}
