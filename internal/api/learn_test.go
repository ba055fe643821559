package api

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
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
