package main

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
	"github.com/hearth-ci/hearth/internal/webhook"
)

// The programs themselves: a server that makes no machine, and a worker that has only a
// token. A push runs in a real machine of the worker's, with its artifact on the server,
// and becomes a check.
func TestWorker(t *testing.T) {
	p := newPlace(t, "on: push\njobs: {}\n")
	gh := githubtest.New()
	t.Cleanup(gh.Close)
	sha := githubtest.SHA("worked")
	const repository = "octo/worked"
	gh.Commit(repository, sha, map[string]string{"hello.txt": "of this commit\n", ".github/workflows/ci.yml": `name: CI
on: push
permissions: {contents: read, id-token: write}
jobs:
  far:
    runs-on: [self-hosted, east]
    steps:
      - uses: actions/checkout@v4
      - run: |
          cat hello.txt; uname -n
          curl -sS -H "Authorization: bearer $ACTIONS_ID_TOKEN_REQUEST_TOKEN" "$ACTIONS_ID_TOKEN_REQUEST_URL&audience=a" | cut -c1-30
`})
	body := pushOf(t, gh, repository, sha)
	s := p.serveWith(gh, map[string]any{"jobs": "elsewhere", "labels": []string{"east"}})
	token, err := p.command("token", "--worker", "--subject", "east-1").Output()
	if err != nil {
		t.Fatal(err)
	}
	home, err := newHome() // another host's
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	far := &place{t, home, p.repo}
	file := filepath.Join(home, "token")
	if err := os.WriteFile(file, token, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := far.command("doctor", "--server", s.url, "--token-file", file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "the token is that of east-1/") {
		t.Errorf("hearth doctor --server: %v\n%s", err, out)
	}
	w := &served{t: t, cmd: far.command("worker", "--server", s.url, "--token-file", file, "--labels", "east", "--slots", "1")}
	w.cmd.Env = append(w.cmd.Env, "HEARTH_CPUS=1", "HEARTH_MEMORY_MIB=512")
	w.begin("hearth works for ")
	if code := s.push(body, "sha256="+hex.EncodeToString(webhook.Sign(serveSecret, body))); code != 202 {
		t.Fatalf("%d\n%s", code, s.said())
	}
	for deadline := time.After(3 * time.Minute); ; {
		all := gh.Checks()
		if len(all) == 1 && all[0].Status == "completed" {
			if all[0].Conclusion != "success" || all[0].Name != "CI / far" {
				t.Errorf("%+v\n%s\n%s", all[0], s.said(), w.said())
			}
			break
		}
		select {
		case <-gh.Changed():
		case <-deadline:
			t.Fatalf("no check has ended: %+v\n%s\n%s", all, s.said(), w.said())
		}
	}
	logs, err := p.command("logs", "last").CombinedOutput()
	if err != nil || !strings.Contains(string(logs), "of this commit") || !strings.Contains(string(logs), `{"count":`) {
		t.Errorf("the log: %v\n%s", err, logs)
	}
	if code := w.end(syscall.SIGTERM); code != 0 {
		t.Errorf("the worker, asked to stop: exit code %d\n%s", code, w.said())
	}
	if code := s.end(syscall.SIGTERM); code != 0 {
		t.Errorf("the server, asked to stop: exit code %d\n%s", code, s.said())
	}
	if left := leftovers(home); len(left) > 0 {
		t.Errorf("left behind by the worker:\n  %s", strings.Join(left, "\n  "))
	}
}
