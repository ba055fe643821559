package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/image/imagetest"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/pool"
	"github.com/hearth-ci/hearth/internal/vm/qemu"
)

// example is a command of docs/api.md and the answer that stands below it.
type example struct {
	line          int
	command, want string
}

func examples(t *testing.T) []example {
	t.Helper()
	b, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```\n```json\n(.*?)```").FindAllSubmatchIndex(b, -1)
	var out []example
	for _, m := range blocks {
		out = append(out, example{1 + strings.Count(string(b[:m[0]]), "\n"), string(b[m[2]:m[3]]), string(b[m[4]:m[5]])})
	}
	if got := strings.Count(string(b), "```sh\n"); got != len(out) || len(out) < 10 {
		t.Fatalf("%d commands, %d of them with an answer", got, len(out))
	}
	return out
}

// The manual's commands, as they stand there, one after the other: on stand-ins,
// and in real machines.
func TestManual(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("SKIPPED, THE MANUAL IS NOT TESTED: there is no curl: apt-get install curl")
	}
	t.Run("host", func(t *testing.T) {
		l := remembering(t)
		s := serve(t, Config{Version: "test", Memory: l, History: &history.Keeper{Learn: l}}, 4)
		manual(t, s.URL, s.token, s.admin)
	})
	t.Run("machines", func(t *testing.T) {
		if testing.Short() {
			t.Skip("SKIPPED, NOT TESTED: real machines, with -short")
		}
		p := &mortal{Pool: machines(t)}
		l := remembering(t)
		s := New(Config{Machines: p, Secret: secret, Version: "test", Memory: l, History: &history.Keeper{Learn: l}})
		mux := http.NewServeMux()
		s.Register(mux)
		h := httptest.NewServer(mux)
		defer h.Close()
		defer s.Close(context.Background())
		own := token(t, Grant{Subject: "manual"})
		manual(t, h.URL, own, token(t, Grant{Subject: "root", Admin: true}))

		// What stand-ins cannot tell: a rollback brings back what was there, and a
		// machine whose time is over is gone from the host.
		c := &server{Server: h, t: t, api: s, token: own}
		id, its := c.vm(map[string]any{"ttl_seconds": 120, "network": "none"})
		run := func(code string) answer {
			t.Helper()
			a := c.do("POST", "/api/llm/execute", its, map[string]any{"language": "bash", "vm_id": id, "code": code})
			if a.status != 200 || a.body["exit_code"] != 0.0 {
				t.Fatal(a.status, a.raw)
			}
			return a
		}
		run("echo before > state")
		c.ok("POST", "/api/vms/"+id+"/snapshots", map[string]any{"name": "s"})
		run("echo after > state")
		c.ok("POST", "/api/vms/"+id+"/rollback", map[string]any{"snapshot_id": "s"})
		if a := run("cat state; id -un"); a.body["stdout"] != "before\nrunner\n" {
			t.Error(a.raw)
		}
		if a := c.do("POST", "/api/llm/execute", its, map[string]any{"language": "javascript", "vm_id": id,
			"code": "console.log([1,2].map(x => x * 2))"}); a.body["stdout"] != "[ 2, 4 ]\n" {
			t.Error(a.raw)
		}
		// A working directory that is not there is made, the user's.
		if a := c.do("POST", "/api/llm/execute", its, map[string]any{"agent_id": "a", "language": "bash", "code": "pwd; touch x && stat -c %U . ..", "vm_id": id,
			"timeout_seconds": 30, "working_dir": "/workspace/deep"}); a.body["stdout"] != "/workspace/deep\nrunner\nrunner\n" {
			t.Error(a.status, a.raw)
		}
		// A machine that dies in the middle is an error, not an exit code.
		s.mu.Lock()
		m := s.vms[id]
		s.mu.Unlock()
		go func() {
			time.Sleep(300 * time.Millisecond)
			p.kill(id)
		}()
		if a := c.do("POST", "/api/llm/execute", its, map[string]any{"language": "sh", "vm_id": id, "code": "sleep 60"}); a.status < 400 ||
			a.body["exit_code"] != nil {
			t.Error(a.status, a.raw)
		}
		<-m.Done()
		short, _ := c.vm(map[string]any{"ttl_seconds": 2})
		s.mu.Lock()
		m = s.vms[short]
		s.mu.Unlock()
		select {
		case <-m.Done():
		case <-time.After(time.Minute):
			t.Fatal("not released")
		}
		c.do("GET", "/api/vms/"+short, own, nil).want(410, "vm_gone")
	})
}

// mortal is a pool whose machines can be killed.
type mortal struct {
	*pool.Pool
	mu  sync.Mutex
	all []machine.Machine
}

func (p *mortal) Claim(ctx context.Context, r machine.Request) (machine.Machine, error) {
	m, err := p.Pool.Claim(ctx, r)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, m)
	return m, err
}

func (p *mortal) kill(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.all {
		if m != nil && m.ID() == id {
			m.(*pool.Lease).Machine().Close(context.Background())
		}
	}
}

// machines opens a pool of real machines that leaves nothing behind.
func machines(t *testing.T) *pool.Pool {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("SKIPPED, NO MACHINE WAS STARTED: qemu-system-x86_64 is missing: apt-get install qemu-system-x86")
	}
	img := imagetest.Build(t, imagetest.Agent(t))
	run, err := os.MkdirTemp("", "ha") // sockets want a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	cache := filepath.Dir(imagetest.Dir(t))
	p, err := pool.New(pool.Config{Driver: qemu.New(qemu.Config{CacheDir: cache}), Image: img, RunDir: run, CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(filepath.Join(run, "machines", "*")); len(left) > 0 {
			t.Error("left behind:", left)
		}
	})
	return p
}

func manual(t *testing.T, url, token, admin string) {
	t.Helper()
	dir := t.TempDir()
	var script strings.Builder
	script.WriteString("set -euo pipefail\n")
	all := examples(t)
	for i, e := range all {
		script.WriteString(fmt.Sprintf("{ %s\n} > %d.out\n", strings.TrimSpace(e.command), i))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script.String())
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HEARTH_URL="+url, "TOKEN="+token, "ADMIN="+admin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the manual's commands: %v\n%s", err, out)
	}
	for i, e := range all {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%d.out", i)))
		if err != nil {
			t.Fatal(err)
		}
		var got, want any
		if err := json.Unmarshal(b, &got); err != nil {
			t.Errorf("docs/api.md:%d: the answer is not JSON: %s", e.line, b)
			continue
		}
		if err := json.Unmarshal([]byte(e.want), &want); err != nil {
			t.Errorf("docs/api.md:%d: what should come is not JSON: %v", e.line, err)
			continue
		}
		if missing := lacks(got, want, ""); missing != "" {
			t.Errorf("docs/api.md:%d: %s: got %s", e.line, missing, b)
		}
		if strings.Contains(e.command, "/api/llm/execute") && strings.Contains(e.want, `"exit_code": 0`) && !strings.Contains(string(b), `"exit_code":0`) {
			t.Errorf("docs/api.md:%d: the program failed: %s", e.line, b)
		}
	}
}

// lacks says which field of want, of which type, got does not have.
func lacks(got, want any, at string) string {
	switch want := want.(type) {
	case map[string]any:
		m, ok := got.(map[string]any)
		if !ok {
			return at + " is no object"
		}
		for k, v := range want {
			g, ok := m[k]
			if !ok {
				return at + "." + k + " is missing"
			}
			if s := lacks(g, v, at+"."+k); s != "" {
				return s
			}
		}
	case []any:
		l, ok := got.([]any)
		if !ok || len(l) == 0 {
			return at + " is no list with something in it"
		}
		return lacks(l[0], want[0], at+"[0]")
	default:
		if fmt.Sprintf("%T", got) != fmt.Sprintf("%T", want) {
			return fmt.Sprintf("%s is a %T, not a %T", at, got, want)
		}
	}
	return ""
}
