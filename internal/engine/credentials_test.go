package engine

import (
	"encoding/base64"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
)

// forge serves a bare repository as o/r to whoever has the token.
func forge(t *testing.T, token string) (server, bare string) {
	t.Helper()
	backend, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(strings.TrimSpace(string(backend)), "git-http-backend")
	if _, err := os.Stat(program); err != nil {
		t.Skip("SKIPPED, NOT TESTED: git-http-backend is missing (apt-get install git)")
	}
	root := t.TempDir()
	bare = filepath.Join(root, "o/r.git")
	if out, err := exec.Command("git", "init", "-q", "--bare", "-b", "main", bare).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("git", "-C", bare, "config", "http.receivepack", "true").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+token))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.EqualFold(r.Header.Get("Authorization"), want) {
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		r.URL.Path = strings.Replace(r.URL.Path, "/o/r/", "/o/r.git/", 1)
		(&cgi.Handler{Path: program, Dir: root, Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"}}).ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, bare
}

// What a checkout leaves lets git push and fetch as the job's token may, unless it is
// told not to; it is no part of the directory, and nothing shows it.
func TestCheckoutPersistsTheToken(t *testing.T) {
	const token = "ghs_0123456789abcdefABCDEF"
	server, bare := forge(t, token)
	b := newBench(t, `
      - uses: actions/checkout@v4
      - run: |
          export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0
          git push -q origin HEAD:refs/heads/pushed && git fetch -q origin pushed && git log -1 --format=%s FETCH_HEAD
          grep -rc "$(printf 'x-access-token:%s' "$T" | base64 -w0)" .git/config || true
          git config --get-urlmatch http.extraheader "$GITHUB_SERVER_URL/o/r"
          stat -c %a "$RUNNER_TEMP"/git-credentials-*
        env: {T: "${{ github.token }}"}
      - uses: actions/checkout@v4
        with: {path: bare, persist-credentials: false}
      - run: GIT_CONFIG_GLOBAL=/dev/null GIT_TERMINAL_PROMPT=0 git -C bare fetch -q origin 2>/dev/null
        continue-on-error: true
      - uses: actions/checkout@v4
        with: {path: own, token: another-token}
      - run: git -C own config --get-urlmatch http.extraheader "$GITHUB_SERVER_URL/o/r" | base64 >/dev/null && echo has one
`)
	src, git := repository(t)
	git("push", "-q", bare, "HEAD:refs/heads/main")
	src.Server = server
	b.job.Source, b.job.Token = src, token
	gh := b.job.Run.GitHub.AsMap().Clone()
	gh.Set("server_url", expr.String(server))
	b.job.Run.GitHub = expr.Object(gh)
	res := b.run()
	if res.Conclusion != ci.Success || res.Steps[3].Outcome != ci.Failure {
		t.Errorf("%s\n%s", steps(res), b.log())
	}
	b.wantOutput("second\n0\nAUTHORIZATION: basic ***\n600\nhas one\n")
	if out, err := exec.Command("git", "-C", bare, "log", "-1", "--format=%s", "pushed").CombinedOutput(); err != nil ||
		strings.TrimSpace(string(out)) != "second" {
		t.Errorf("%s: %v", out, err)
	}
	for _, secret := range []string{token, base64.StdEncoding.EncodeToString([]byte("x-access-token:" + token))} {
		if strings.Contains(b.log(), secret) {
			t.Errorf("%q is shown", secret)
		}
	}
}
