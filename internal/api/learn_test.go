package api

import (
	"fmt"
	"maps"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/learn"
	db "github.com/hearth-ci/hearth/internal/store"
)

// remembering is a memory of four runs of two steps, the last of which failed.
func remembering(t *testing.T) *learn.Learner {
	t.Helper()
	ctx := t.Context()
	st, err := db.Open(ctx, t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	l, err := learn.Open(ctx, st, learn.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		sha := strings.Repeat("a", 39) + string(rune('0'+i))
		run, _, err := st.CreateRun(ctx, ci.Run{Repository: "o/r", File: "ci.yml", Workflow: "CI", Ref: "refs/heads/main", SHA: sha, Attempt: 1},
			[]ci.Job{{Key: "test", Job: "test"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		rec, err := st.Recorder(ctx, run.ID)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		emit := func(r ci.Record) { r.Time = now; rec.Emit(r) }
		emit(ci.Record{Type: ci.RunStarted})
		emit(ci.Record{Type: ci.JobStarted, Job: "test"})
		for n, c := range []string{"npm ci", "npm test"} {
			end := ci.Success
			if n == 1 && i == 3 {
				end = ci.Failure
			}
			emit(ci.Record{Type: ci.StepStarted, Job: "test", Step: n + 1, Name: c, Command: c})
			emit(ci.Record{Type: ci.StepFinished, Job: "test", Step: n + 1, Outcome: end, Conclusion: end, DurationMS: new(int64(1000))})
		}
		emit(ci.Record{Type: ci.JobFinished, Job: "test", Conclusion: ci.Success})
		emit(ci.Record{Type: ci.RunFinished, Conclusion: ci.Success})
		if err := rec.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// TestQuestions asks a real memory of runs that were.
func TestQuestions(t *testing.T) {
	s := serve(t, Config{Memory: remembering(t)}, 1)
	get := func(path string, query ...string) answer {
		q := url.Values{}
		for i := 0; i < len(query); i += 2 {
			q.Set(query[i], query[i+1])
		}
		return s.do("GET", "/api/v1/learn/"+path+"?"+q.Encode(), s.admin, nil)
	}
	a := get("predict", "repository", "o/r", "command", "npm   test")
	if a.status != 200 || a.body["command"] != "npm test" || a.body["seen"] != 4. || a.body["expected_ms"] != 1000. {
		t.Error(a.raw)
	}
	if p := a.body["p_fail"].(float64); p < .1 || p > .7 {
		t.Errorf("failed once in four: %v", p)
	}
	b := get("predict", "command", "npm ci")
	if b.body["p_fail"].(float64) >= a.body["p_fail"].(float64) {
		t.Errorf("what never failed is as likely to fail: %s", b.raw)
	}
	if c := get("predict", "repository", "o/r", "command", "never run"); c.status != 200 || c.body["seen"] != 0. || c.body["places"] != nil {
		t.Error(c.raw)
	}
	if c := get("predict", "repository", "o/other", "command", "npm test"); c.body["seen"] != 0. {
		t.Errorf("another repository is told of it: %s", c.raw)
	}
	if c := get("next", "command", "npm ci", "limit", "1"); !strings.Contains(c.raw, `"npm test"`) {
		t.Error(c.raw)
	}
	if c := get("stats", "repository", "o/r"); !strings.Contains(c.raw, `{"repository":"o/r","successes":7,"failures":1,"success_patterns":2,`) {
		t.Error(c.raw)
	}
	for path, key := range map[string]string{"related": `{"matches":[`, "lessons": `{"lessons":[]`} {
		if c := get(path, "command", "npm ci"); c.status != 200 || !strings.HasPrefix(c.raw, key) {
			t.Errorf("%s: %s", path, c.raw)
		}
	}
	if c := get("similar", "signature", "nosuch"); c.status != 200 {
		t.Error(c.raw)
	}
	get("predict").want(400, "bad_request")
	get("predict", "command", strings.Repeat("x", 5000)).want(400, "bad_request")
	get("predict", "command", " ").want(400, "bad_request")
	get("next", "command", "x", "limit", "0").want(400, "bad_request")
	// Of all repositories' runs nothing is told to who has machines of his own.
	for _, path := range []string{"predict", "related", "next", "similar", "lessons", "stats"} {
		s.do("GET", "/api/v1/learn/"+path+"?command=x&signature=x", s.token, nil).want(403, "wrong_scope")
		s.do("GET", "/api/v1/learn/"+path+"?command=x&signature=x", "", nil).want(401, "unauthorized")
	}
	none := serve(t, Config{}, 1)
	none.do("GET", "/api/v1/learn/stats", none.admin, nil).want(404, "no_memory")
}

// taught is a server whose executions are learned from, and the memory.
func taught(t *testing.T, cfg Config) (*server, *learn.Learner) {
	t.Helper()
	l := remembering(t)
	cfg.Memory, cfg.History = l, &history.Keeper{Learn: l}
	return serve(t, cfg, 8), l
}

// TestExecutionsTeach runs code in machines; what it came to is in the answers, the
// counters, the graph, and told to nobody but its owner and who may ask about all.
func TestExecutionsTeach(t *testing.T) {
	s, _ := taught(t, Config{})
	run := func(token string, more map[string]any) answer {
		t.Helper()
		body := map[string]any{"agent_id": "a", "language": "bash"}
		maps.Copy(body, more)
		a := s.do("POST", "/api/llm/execute", token, body)
		if a.status != 200 {
			t.Fatal(a.raw)
		}
		return a
	}
	const failing = "ls /nonesuch/dir"
	a := run(s.token, map[string]any{"code": failing})
	p, _ := a.body["prediction"].(map[string]any)
	if p["command"] != failing || p["p_fail"] == nil || p["reasons"] == nil {
		t.Fatal(a.raw)
	}
	first := p["p_fail"].(float64)
	why, _ := a.body["explanation"].(map[string]any)
	if why == nil || why["seen"] != 0. || !strings.Contains(fmt.Sprint(why["lines"]), "/nonesuch/dir") {
		t.Fatal(a.raw)
	}
	id, its := s.vm(nil)
	run(its, map[string]any{"vm_id": id, "code": "echo one"})
	a = run(its, map[string]any{"vm_id": id, "code": failing})
	if why := a.body["explanation"].(map[string]any); why["seen"] != 1. {
		t.Errorf("seen before, in another machine: %s", a.raw)
	}
	if p := a.body["prediction"].(map[string]any)["p_fail"].(float64); p <= first {
		t.Errorf("it failed, and is no likelier to fail: %v, then %v", first, p)
	}
	if a = run(its, map[string]any{"vm_id": id, "code": "echo one"}); a.body["explanation"] != nil ||
		a.body["prediction"].(map[string]any)["command"] != "echo one" {
		t.Error(a.raw)
	}
	a = run(s.token, map[string]any{"vm_ids": []string{id}, "language": "python", "code": "import sys\nsys.exit('no luck')"})
	if !strings.Contains(a.raw, "with sys") || !strings.Contains(a.raw, `no luck"`) {
		t.Error(a.raw)
	}
	// Opted out: nothing is said, nothing learned.
	if a = run(its, map[string]any{"vm_id": id, "code": failing, "learn": false}); a.body["prediction"] != nil || a.body["explanation"] != nil {
		t.Error(a.raw)
	}
	stats := func(path string) string { return s.do("GET", path, s.admin, nil).raw }
	if got := stats("/api/v1/learn/stats?repository=api:test"); !strings.Contains(got,
		`"repository":"api:test","successes":2,"failures":3,"success_patterns":1,"failure_patterns":2,`) {
		t.Error(got)
	}
	if got := stats("/api/stats"); !strings.Contains(got, `"learned":{"repository":"","successes":9,"failures":4,`) {
		t.Error(got)
	}
	if got := stats("/api/v1/learn/predict?command=ls+/nonesuch/dir"); !strings.Contains(got, `"places":[{"repository":"api:test","workflow":"api","job":"shell",`) {
		t.Error(got)
	}
	// Another subject's failure is not told of this one's.
	other := token(t, Grant{Subject: "other"})
	if why := run(other, map[string]any{"code": failing}).body["explanation"].(map[string]any); why["seen"] != 0. {
		t.Errorf("told of another's: %v", why)
	}
	// An admin who uses another's machine adds to its owner's memory.
	if why := run(s.admin, map[string]any{"vm_id": id, "code": failing}).body["explanation"].(map[string]any); why["seen"] != 2. {
		t.Errorf("in the machine of its owner: %v", why)
	}
}

// What is remembered of an owner has a name of its own.
func TestMemoryNames(t *testing.T) {
	seen := map[string]owner{}
	for _, o := range []owner{{"hearth", "a"}, {"x", "a"}, {"hearth", "x/a"}, {"hearth", "x%2Fa"}, {"x/a", "b"}, {"x", "a/b"},
		{"hearth", strings.Repeat("a", 200)},
		{"hearth", strings.Repeat("a", 199) + "b"}, {"", "a"}, {"hearth", "é\n › x"}} {
		name := o.memory()
		if was, twice := seen[name]; twice || len(name) > maxSubject || !strings.HasPrefix(name, "api:") || strings.ContainsAny(name, " \n›") {
			t.Errorf("%v is remembered as %q, as %v is", o, name, was)
		}
		seen[name] = o
	}
}

// A VM boots from the image that a request names, of those that the server has.
func TestImages(t *testing.T) {
	s, _ := taught(t, Config{Images: map[string]string{"ubuntu-22.04": "0123", "ci": "4567"}})
	for name, want := range map[string]string{"": "", "ubuntu-22.04": "0123", "ci": "4567"} {
		if r, err := s.api.request(order{Image: name}); err != nil || r.Image != want {
			t.Errorf("%q: %q, %v", name, r.Image, err)
		}
	}
	for _, bad := range []string{"0123", "../ci", "CI", strings.Repeat("x", 1000)} {
		for path, body := range map[string]map[string]any{"/api/vms": {}, "/api/llm/execute": {"language": "bash", "code": "true"}} {
			body["image"] = bad
			a := s.do("POST", path, s.token, body).want(400, "bad_request")
			if !strings.Contains(a.raw, "this server has ci, ubuntu-22.04") || len(a.raw) > 500 {
				t.Errorf("%s: %s", path, a.raw)
			}
		}
	}
	one, _ := taught(t, Config{})
	one.do("POST", "/api/vms", one.token, map[string]any{"image": "ci"}).want(400, "bad_request")
}

// TestOthersRequests are requests as programs written for other servers send them:
// verbatim, with fields that only they know, under names that only they have.
func TestOthersRequests(t *testing.T) {
	s, _ := taught(t, Config{})
	a := s.ok("POST", "/api/vms", map[string]any{"vm_type": "focal-optimized", "vm_name": "github-runner-1"})
	if a.body["vm_type"] != "focal-optimized" || a.body["name"] != "github-runner-1" {
		t.Error(a.raw)
	}
	id := a.body["id"].(string)
	a = s.do("POST", "/api/llm/execute", s.token, map[string]any{"agent_id": "workflow-executor-1", "language": "bash", "code": "echo hi", "vm_id": id,
		"timeout_seconds": 300, "working_dir": t.TempDir() + "/workspace"})
	if a.status != 200 || a.body["stdout"] != "hi\n" || a.body["execution_id"] == nil || a.body["started_at"] == nil || a.body["completed_at"] == nil {
		t.Error(a.raw)
	}
	s.do("POST", "/api/vms", s.token, map[string]any{"name": "a", "vm_name": "b"}).want(400, "bad_request")
	s.do("POST", "/api/vms", s.token, map[string]any{"vm_type": "a\nb"}).want(400, "bad_request")
	s.do("POST", "/api/llm/execute", s.token, map[string]any{"language": "bash", "code": "true", "vm_id": id, "vm_type": "x"}).want(400, "bad_request")
	for theirs, ours := range elsewhere {
		for _, path := range []string{"/api/vms", "/api/llm/execute"} {
			a := s.do("POST", path, s.token, map[string]any{theirs: 1}).want(400, "bad_request")
			if !strings.Contains(a.body["hint"].(string), "called "+ours+" here") {
				t.Errorf("%s: %s", theirs, a.raw)
			}
		}
	}
	if a := s.do("POST", "/api/vms", s.token, map[string]any{"colour": 1}).want(400, "bad_request"); strings.Contains(a.raw, "called") {
		t.Error(a.raw)
	}
	for _, bad := range []map[string]any{{"secrets": map[string]string{"A=B": "x"}},
		{"secrets": map[string]string{"A": "x"}, "env": map[string]string{"A": "y"}}} {
		maps.Copy(bad, map[string]any{"language": "bash", "code": "true"})
		s.do("POST", "/api/llm/execute", s.token, bad).want(400, "bad_request")
	}
	if a := s.ok("POST", "/api/llm/execute", map[string]any{"language": "bash", "code": "echo $A$B", "secrets": map[string]string{"A": "x"},
		"env": map[string]string{"B": "y"}}); a.body["stdout"] != "xy\n" {
		t.Error(a.raw)
	}
}
