package worker_test

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/store"
)

// remembering gives a stove a memory.
func (s *stove) remembering() *learn.Learner {
	s.t.Helper()
	st, err := store.Open(s.t.Context(), filepath.Join(s.t.TempDir(), "hearth.db"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { st.Close() })
	l, err := learn.Open(s.t.Context(), st, learn.Options{})
	if s.Learn = l; err != nil {
		s.t.Fatal(err)
	}
	return l
}

// another is the next run of the same commit.
func (s *stove) another() {
	s.RunID = ci.NewID()
	s.mu.Lock()
	s.records = nil
	s.mu.Unlock()
}

func tests(t *testing.T, l *learn.Learner) map[string]learn.JudgedTest {
	t.Helper()
	list, err := l.Tests(t.Context(), "o/r", true)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]learn.JudgedTest{}
	for _, v := range list {
		out[v.Name] = v
	}
	return out
}

const report = `<testsuite><testcase classname="a" name="good" time="0.5"/><testcase classname="a" name="bad"><failure message="no"/></testcase></testsuite>`

// Tests are found in what a step prints and in the reports that it leaves, and what
// passes where it failed is flaky.
func TestRunnerFindsTests(t *testing.T) {
	s := newStove(t)
	l := s.remembering()
	s.Tests = []string{"out/**.xml"}
	s.Tree = func() string { return s.SHA }
	s.Secrets = map[string]string{"KEY": "geheim-geheim"}
	job := `    steps:
      - name: reports
        run: mkdir -p out/a testdata; echo "$REPORT" > out/a/x.xml; cp out/a/x.xml testdata/junit-old.xml
        env: {REPORT: '` + report + `'}
      - name: unit
        run: |
          printf -- "--- PASS: TestA (0.01s)\n--- $WORD: TestGeheim (0.02s)\n    x_test.go:1: geheim-geheim\n$WORD\n$END\tm/p\t0.1s\n"
          test $WORD = PASS
`
	s.Env = map[string]string{"WORD": "FAIL", "END": "FAIL"}
	if out := s.run(t.Context(), job, nil); out.Conclusion != ci.Failure {
		t.Fatalf("%+v\n%s", out, s.log())
	}
	got := tests(t, l)
	if v := got["m/p.TestGeheim"]; v.Failed != 1 || v.State != learn.Failing || strings.Contains(v.Message, "geheim") || v.Message == "" {
		t.Errorf("%+v", v)
	}
	if v := got["a.bad"]; v.Failed != 1 || v.Step != "" || v.Message != "no" {
		t.Errorf("%+v", v)
	}
	if v := got["a.good"]; v.Passed != 1 || v.Seconds != .5 {
		t.Errorf("%+v", v)
	}
	var notes []ci.TestNote
	for _, r := range s.of(ci.PredictionRec) {
		notes = append(notes, r.Explanation.Tests...)
	}
	if !slices.ContainsFunc(notes, func(n ci.TestNote) bool { return n.Name == "m/p.TestGeheim" && !n.Flaky }) ||
		!slices.ContainsFunc(notes, func(n ci.TestNote) bool { return n.Name == "a.bad" }) {
		t.Errorf("the explanation tells of %+v", notes)
	}

	s.another()
	s.Env = map[string]string{"WORD": "PASS", "END": "ok  "}
	if out := s.run(t.Context(), job, nil); out.Conclusion != ci.Success {
		t.Fatalf("%+v\n%s", out, s.log())
	}
	got = tests(t, l)
	if v := got["m/p.TestGeheim"]; v.State != learn.Flaky || v.Mixed != 1 || len(v.Evidence) != 1 || v.Evidence[0].PassedIn != s.RunID {
		t.Errorf("%+v", v)
	}
	if v := got["a.bad"]; v.Failed != 2 || v.Mixed != 0 || v.State != learn.Failing {
		t.Errorf("%+v", v)
	}
	if len(got) != 5 { // and the package
		t.Errorf("%d tests: %v", len(got), got)
	}
}

// What an artifact says is taken once, beside what lay in the workspace.
func TestRunnerFindsTestsInArtifacts(t *testing.T) {
	s := newStove(t)
	l := s.remembering()
	s.Results = results.New(results.Config{Dir: t.TempDir()})
	var archive bytes.Buffer
	z := zip.NewWriter(&archive)
	for name, text := range map[string]string{"deep/TEST-a.xml": report, "other.xml": `<testsuite><testcase name="never"/></testsuite>`,
		"junit-more.xml": `<testsuite><testcase name="more"/></testsuite>`} {
		w, err := z.Create(name)
		if err == nil {
			_, err = w.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	s.watch = func(r ci.Record) {
		if r.Type == ci.LogLine && r.Text == "now" {
			s.upload("reports", archive.Bytes())
		}
	}
	out := s.run(t.Context(), "\n    steps:\n      - run: printf %s '"+report+"' > junit.xml; echo now\n", nil)
	if out.Conclusion != ci.Success {
		t.Fatalf("%+v\n%s", out, s.log())
	}
	got := tests(t, l)
	if len(got) != 3 || got["a.bad"].Failed != 1 || got["a.good"].Passed != 1 || got["more"].Passed != 1 {
		t.Errorf("%+v", got)
	}
}

// upload makes an artifact of the only job, as an action in it would.
func (s *stove) upload(name string, data []byte) {
	n, err := s.Results.Open(results.Job{Repository: s.Repository, Run: s.RunID, Attempt: 1, Key: "test", Base: "http://10.0.2.2"})
	if err != nil {
		s.t.Error(err)
		return
	}
	defer n.Close()
	call := func(method string, body map[string]any) map[string]any {
		body["workflow_run_backend_id"], body["name"] = s.RunID, name
		b, err := json.Marshal(body)
		if err != nil {
			s.t.Error(err)
		}
		r := httptest.NewRequest("POST", "/twirp/github.actions.results.api.v1.ArtifactService/"+method, bytes.NewReader(b))
		r.Header.Set("Authorization", "Bearer "+n.Token())
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		n.ServeHTTP(w, r)
		var answer map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &answer); w.Code != 200 || err != nil {
			s.t.Errorf("%s: %d %s", method, w.Code, w.Body)
		}
		return answer
	}
	up, _ := call("CreateArtifact", map[string]any{"version": 7})["signed_upload_url"].(string)
	r := httptest.NewRequest("PUT", strings.TrimPrefix(up, "http://10.0.2.2"), bytes.NewReader(data))
	r.Header.Set("x-ms-blob-type", "BlockBlob")
	w := httptest.NewRecorder()
	n.ServeHTTP(w, r)
	if w.Code != 201 {
		s.t.Errorf("upload: %d %s", w.Code, w.Body)
	}
	call("FinalizeArtifact", map[string]any{"size": fmt.Sprint(len(data)), "hash": fmt.Sprintf("sha256:%x", sha256.Sum256(data))})
}

// A fork's run hears what is known, and teaches nothing: it could make any test look
// flaky.
func TestAttackFlakesOfAFork(t *testing.T) {
	s := newStove(t)
	l := s.remembering()
	s.readOnly = true
	for range 3 {
		s.another()
		s.run(t.Context(), "\n    steps:\n      - run: |\n          printf -- '--- PASS: TestA (0s)\\n--- FAIL: TestA (0s)\\nFAIL\\tp\\t1s\\n'; exit 1\n", nil)
		heard := false
		for _, r := range s.of(ci.PredictionRec) {
			heard = heard || len(r.Explanation.Tests) > 0
		}
		if !heard {
			t.Error("the fork hears nothing of its tests")
		}
	}
	if got := tests(t, l); len(got) > 0 {
		t.Errorf("%+v", got)
	}
}
