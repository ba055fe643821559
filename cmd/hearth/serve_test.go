package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/registry/registrytest"
	"github.com/hearth-ci/hearth/internal/webhook"
)

const serveSecret = "It's a Secret to Everybody"

// served is a `hearth serve` that runs in the background.
type served struct {
	t      *testing.T
	cmd    *exec.Cmd
	people *http.Client // with a login, once they have one
	url    string
	mu     sync.Mutex
	stderr bytes.Buffer
	read   sync.WaitGroup
}

// serve starts `hearth serve` and waits until it serves.
func (p *place) serve(gh *githubtest.Server) *served {
	p.t.Helper()
	return p.serveWith(gh, nil)
}

// serveWith does so with further settings.
func (p *place) serveWith(gh *githubtest.Server, more map[string]any) *served {
	p.t.Helper()
	key, file := filepath.Join(p.home, "app.pem"), filepath.Join(p.home, "hearth.json")
	all := map[string]any{"listen": "127.0.0.1:0", "app_id": gh.AppID, "app_key_file": key, "github_url": gh.URL, "cpus": 1,
		"memory_mib": 512, "machines": 1, "repositories": []string{"octo/*"}}
	maps.Copy(all, more)
	settings, err := json.Marshal(all)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(key, gh.Key(), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(file, settings, 0o600); err != nil {
		p.t.Fatal(err)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	s := &served{t: p.t, cmd: p.command("serve", "--config", file), people: &http.Client{Jar: jar}}
	s.cmd.Env = append(s.cmd.Env, "HEARTH_WEBHOOK_SECRET="+serveSecret)
	s.begin("hearth serves ")
	return s
}

// begin starts the command and waits until it says that it is ready, with its URL.
func (s *served) begin(says string) {
	p := s
	p.t.Helper()
	out, err := s.cmd.StderrPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { s.end(syscall.SIGKILL) })
	ready := make(chan string, 1)
	s.read.Go(func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			s.mu.Lock()
			s.stderr.WriteString(lines.Text() + "\n")
			s.mu.Unlock()
			if url, ok := strings.CutPrefix(lines.Text(), says); ok {
				ready <- url
			}
		}
		close(ready)
	})
	select {
	case s.url = <-ready:
	case <-time.After(10 * time.Minute): // an image may have to be built
	}
	if s.url == "" {
		p.t.Fatalf("it does not come to say %q:\n%s", says, s.said())
	}
}

func (s *served) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stderr.String()
}

// end sends a signal and returns the exit code; -1 if it was killed.
func (s *served) end(sig syscall.Signal) int {
	if s.cmd.ProcessState == nil {
		s.cmd.Process.Signal(sig)
		s.read.Wait()
		s.cmd.Wait()
	}
	return s.cmd.ProcessState.ExitCode()
}

func (s *served) push(body []byte, signature string) int {
	s.t.Helper()
	req, err := http.NewRequest(http.MethodPost, s.url+"/webhooks/github", bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-GitHub-Event", "push")
	req.Header.Set("X-GitHub-Delivery", ci.NewID())
	req.Header.Set("X-Hub-Signature-256", signature)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// login lets people in, as they would let themselves in.
func (s *served) login(p *place) {
	s.t.Helper()
	out, err := p.command("token", "--login").Output()
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.people.PostForm(s.url+"/login", url.Values{"link": {string(out)}})
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s with %s", resp.Status, out)
	}
}

func (s *served) get(path string) string {
	s.t.Helper()
	resp, err := s.people.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// The program itself: a push runs in a real machine; killed in the middle of a
// job and started again, it runs the job again, ends its check once, and stops
// in order when asked to.
// pushOf is the body of a delivery: the first push of a commit.
func pushOf(t *testing.T, gh *githubtest.Server, repository, sha string) []byte {
	t.Helper()
	body, err := json.Marshal(map[string]any{"ref": "refs/heads/main", "before": strings.Repeat("0", 40), "after": sha, "created": true, "deleted": false,
		"forced":  false,
		"commits": []any{}, "pusher": map[string]any{"name": "octocat"}, "base_ref": nil, "compare": "",
		"repository": map[string]any{"full_name": repository, "default_branch": "main"}, "installation": map[string]any{"id": gh.Installation},
		"sender": map[string]any{"login": "octocat"}, "head_commit": map[string]any{"id": sha, "message": "Say hello"}})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func TestServe(t *testing.T) {
	p := newPlace(t, "on: push\njobs: {}\n")
	gh := githubtest.New()
	t.Cleanup(func() {
		gh.Close()
		for _, v := range gh.Violations() {
			t.Errorf("GitHub would not have it: %s", v)
		}
	})
	sha := githubtest.SHA("served")
	const repository = "octo/served"
	gh.Commit(repository, sha, map[string]string{"hello.txt": "of this commit\n", ".github/workflows/ci.yml": `name: CI
on: push
jobs:
  slow:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: cat hello.txt; sleep 3; echo "it is over"
`})
	body := pushOf(t, gh, repository, sha)
	s := p.serve(gh)
	if code := s.push(body, "sha256="+hex.EncodeToString(webhook.Sign("another", body))); code != http.StatusUnauthorized {
		t.Errorf("a wrong signature: %d", code)
	}
	if code := s.push(body, "sha256="+hex.EncodeToString(webhook.Sign(serveSecret, body))); code != http.StatusAccepted {
		t.Fatalf("%d\n%s", code, s.said())
	}
	until := func(status string) githubtest.Check {
		t.Helper()
		for deadline := time.After(3 * time.Minute); ; {
			if all := gh.Checks(); len(all) == 1 && all[0].Status == status {
				return all[0]
			}
			select {
			case <-gh.Changed():
			case <-deadline:
				t.Fatalf("no check is %s: %+v\n%s", status, gh.Checks(), s.said())
			}
		}
	}
	check := until("in_progress")
	page := strings.TrimPrefix(check.DetailsURL, s.url)
	if got := s.get(page); !strings.Contains(got, "hearth token --login") || strings.Contains(got, "of this commit") {
		t.Errorf("a check's link without a login:\n%s", got)
	}
	s.login(p)
	for deadline := time.Now().Add(time.Minute); !strings.Contains(s.get(page), "of this commit"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(s.get(page))
		}
	}
	s.end(syscall.SIGKILL)

	people := s.people
	s = p.serve(gh)
	s.people = people // whoever was logged in is: cookies know no ports
	check = until("completed")
	if check.Conclusion != "success" || strings.Join(check.History, " ") != "queued in_progress completed:success" || check.Name != "CI / slow" {
		t.Errorf("%+v\n%s", check, s.said())
	}
	page, _, _ = strings.Cut(page, "?")
	if got := s.get(page + "/log?job=slow"); strings.Count(got, "it is over\n") < 1 {
		t.Errorf("log:\n%s", got)
	}
	if got := s.get("/events"); !strings.Contains(got, "push: 1 run") {
		t.Error(got)
	}
	if got := s.get("/oidc/.well-known/openid-configuration"); !strings.Contains(got, `"jwks_uri":"`) {
		t.Errorf("who shall believe tokens finds no keys: %s", got)
	}
	if got := s.get("/health"); !strings.Contains(got, "{") {
		t.Error(got)
	}
	if code := s.end(syscall.SIGTERM); code != 0 {
		t.Errorf("asked to stop: exit code %d\n%s", code, s.said())
	}
	out, err := p.command("events").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "done") {
		t.Errorf("hearth events: %v\n%s", err, out)
	}
}

// A server's jobs have containers and services, too, of images of a registry that lets
// in the server alone: its password is in no machine.
func TestServeContainers(t *testing.T) {
	p := newPlace(t, "on: push\njobs: {}\n")
	r := registrytest.New()
	t.Cleanup(r.Close)
	layer, err := debianLayer("redis-server,dash,coreutils", nil, registrytest.Layer(map[string][]byte{"/etc/os-release": []byte("ID=debian\n")}))
	if err != nil {
		t.Fatal(err)
	}
	r.Put("acme/redis", "1", map[string]any{"Env": []string{"PATH=/usr/bin:/bin"},
		"Cmd": []string{"redis-server", "--bind", "0.0.0.0", "--protected-mode", "no"}}, layer)
	r.Private["acme/redis"] = "bot:open-sesame"
	password := filepath.Join(p.home, "password")
	if err := os.WriteFile(password, []byte("open-sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	gh := githubtest.New()
	t.Cleanup(gh.Close)
	const repository = "octo/contained"
	sha := githubtest.SHA("contained")
	gh.Commit(repository, sha, map[string]string{"hello.txt": "of this commit\n", ".github/workflows/ci.yml": `name: CI
on: push
jobs:
  contained:
    runs-on: ubuntu-latest
    container: images.example/acme/redis:1
    services:
      cache:
        image: images.example/acme/redis:1
        options: --health-cmd "redis-cli ping" --health-interval 2s --health-timeout 30s --health-retries 20
    steps:
      - uses: actions/checkout@v4
      - run: echo "$(cat hello.txt) and of the service $(redis-cli -h cache ping) in $PWD"
      - run: redis-cli -h cache set note "$(cat ~/.docker/config.json /root/.docker/config.json 2>&1)" && redis-cli -h cache get note
`})
	s := p.serveWith(gh, map[string]any{"memory_mib": 1024,
		"registries": map[string]any{"images.example": map[string]any{"url": r.URL, "username": "bot", "password_file": password}}})
	body := pushOf(t, gh, repository, sha)
	if code := s.push(body, "sha256="+hex.EncodeToString(webhook.Sign(serveSecret, body))); code != http.StatusAccepted {
		t.Fatalf("%d\n%s", code, s.said())
	}
	s.login(p)
	for deadline := time.After(8 * time.Minute); ; {
		all := gh.Checks()
		if len(all) == 1 && all[0].Status == "completed" {
			page, _, _ := strings.Cut(strings.TrimPrefix(all[0].DetailsURL, s.url), "?")
			log := s.get(page + "/log?job=contained")
			if all[0].Conclusion != "success" || !strings.Contains(log, "of this commit and of the service PONG in /__w/contained/contained\n") ||
				strings.Contains(log+s.said(), "sesame") {
				t.Errorf("%s:\n%s", all[0].Conclusion, log)
			}
			break
		}
		select {
		case <-gh.Changed():
		case <-deadline:
			t.Fatalf("no check is completed: %+v\n%s", gh.Checks(), s.said())
		}
	}
	if code := s.end(syscall.SIGTERM); code != 0 {
		t.Errorf("asked to stop: exit code %d\n%s", code, s.said())
	}
}

// What labels of a server's settings say about the system is nothing; those of GitHub's
// get the image that there is for them.
func TestServerImages(t *testing.T) {
	s := serverImages{image.Shelf{Default: image.Ubuntu2404, Recipes: []string{image.Ubuntu2404, image.Debian12}},
		map[string]string{image.Ubuntu2404: "n", image.Debian12: "d", "ci": "c"}}
	for labels, want := range map[string]string{"ubuntu-latest": "", "debian-12": "d", "gpu": "", "group:big": "", "gpu debian-12": "d",
		"self-hosted linux": ""} {
		if id, remark, err := s.forLabels(strings.Fields(labels)); id != want || remark != "" || err != nil {
			t.Errorf("%s: %q, %q, %v", labels, id, remark, err)
		}
	}
	if id, remark, err := s.forLabels([]string{"ubuntu-22.04"}); id != "" || !strings.Contains(remark, "--recipe ubuntu-22.04") || err != nil {
		t.Errorf("%q, %q, %v", id, remark, err)
	}
}
