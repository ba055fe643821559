package remote_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/conduct"
	"github.com/hearth-ci/hearth/internal/desk"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/queue"
	"github.com/hearth-ci/hearth/internal/remote"
	"github.com/hearth-ci/hearth/internal/worker"
)

// run takes one job in this process, and lets fn be what runs it.
func (s *site) run(fn func(ctx context.Context, r *worker.Runner, t conduct.Task)) {
	s.t.Helper()
	token, err := os.ReadFile(s.token)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	log := slog.New(slog.DiscardHandler)
	c, err := remote.NewClient(remote.ClientConfig{Server: s.server.first, Name: "here", Log: log,
		Token: func() string { return strings.TrimSpace(string(token)) },
		Run: func(ctx context.Context, r *worker.Runner, t conduct.Task) conduct.Outcome {
			defer stop()
			fn(ctx, r, t)
			return conduct.Outcome{Conclusion: ci.Success}
		}})
	if err != nil {
		s.t.Fatal(err)
	}
	w := &desk.Worker{Counter: c, Offer: queue.Offer{Labels: []string{"ubuntu-latest"}}, Slots: 1, Grace: time.Minute, Poll: 100 * time.Millisecond, Log: log}
	w.Work(ctx)
}

// The services of a job's machine are the server's: what was uploaded is there, tokens say
// which job it is, and both go on with the tokens that the job has when the server was
// killed and started again.
func TestServices(t *testing.T) {
	s := newSite(t, "")
	s.push("  one:\n    runs-on: ubuntu-latest\n    permissions: {id-token: write}\n    steps: [{run: echo}]\n")
	s.run(func(_ context.Context, r *worker.Runner, task conduct.Task) {
		served, err := r.Services(task.Run, task.Job, time.Now().Add(time.Hour))
		if err != nil {
			t.Error(err)
			return
		}
		defer served.Close()
		ask := func(method, url, token, body string) (int, map[string]any) {
			q := httptest.NewRequest(method, url, strings.NewReader(body))
			if token != "" {
				q.Header.Set("Authorization", "Bearer "+token)
			}
			q.Header.Set("Content-Type", "application/json")
			if method == "PUT" {
				q.Header.Set("x-ms-blob-type", "BlockBlob")
			}
			w := httptest.NewRecorder()
			served.ServeHTTP(w, q)
			var v map[string]any
			json.Unmarshal(w.Body.Bytes(), &v)
			return w.Code, v
		}
		leave := func(name string) {
			t.Helper()
			const method = "/twirp/github.actions.results.api.v1.ArtifactService/"
			about := fmt.Sprintf("{\"workflow_run_backend_id\":%q,\"name\":%q,\"size\":4}", r.RunID, name)
			code, v := ask("POST", method+"CreateArtifact", served.Results.Token, about)
			if code != 200 {
				t.Fatalf("%s: %d %v", name, code, v)
			}
			if code, _ := ask("PUT", v["signed_upload_url"].(string), "", "made"); code != 201 {
				t.Errorf("%s: the content: %d", name, code)
			}
			if code, v := ask("POST", method+"FinalizeArtifact", served.Results.Token, about); code != 200 {
				t.Errorf("%s: %d %v", name, code, v)
			}
			if code, _ := ask("POST", method+"CreateArtifact", "another", about); code != 401 {
				t.Errorf("another's token: %d", code)
			}
		}
		claim := func() {
			t.Helper()
			if code, v := ask("GET", served.IDToken.URL+"&audience=a", served.IDToken.Token, ""); code != 200 || v["value"] == nil {
				t.Errorf("an identity token: %d %v", code, v)
			}
			if code, _ := ask("GET", served.IDToken.URL, "another", ""); code != 401 {
				t.Errorf("another's request token: %d", code)
			}
		}
		leave("before")
		claim()
		s.server.kill()
		go func() { time.Sleep(time.Second); s.restart() }()
		claim() // which waits for the server
		leave("after")
		list, err := r.Uploads.Artifacts(r.Repository, r.RunID)
		if err != nil || len(list) != 2 || list[0].Job != "one" {
			t.Errorf("%+v, %v", list, err)
			return
		}
		f, err := r.Uploads.OpenArtifact(r.Repository, list[0])
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		if b, err := io.ReadAll(f); string(b) != "made" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	})
	if got := s.checks(1, time.Minute); got["CI / one"].Conclusion != "success" {
		t.Errorf("%+v", got)
	}
}

// What the learner has to say comes from the server, where it is kept.
func TestMemory(t *testing.T) {
	s := newSite(t, "")
	s.push(one)
	s.run(func(ctx context.Context, r *worker.Runner, _ conduct.Task) {
		if r.Mode() != learn.Advise {
			t.Errorf("mode %q", r.Mode())
		}
		f := learn.Failure{Repository: "another/one", Run: "x", Step: 1, Name: "Run echo", Command: "echo", Attempt: 1, ExitCode: 1,
			Lines: []string{"main.go:3:1: undefined: lake"}}
		e, err := r.Learn.Explain(ctx, f)
		if err != nil || e.Signature == "" {
			t.Errorf("%+v, %v", e, err)
		}
		if d := r.Learn.Retry(ctx, f, e); d.Reason == "" || d.Act {
			t.Errorf("%+v", d)
		}
		if _, err := r.Learn.TestsRan(ctx, learn.TestRun{Name: "x", Command: "go test"}); err != nil {
			t.Error(err)
		}
		// It is that of the job's repository, whatever the worker says.
		if _, err := s.store.Signature(ctx, "Codertocat/Hello-World", e.Signature); err != nil {
			t.Errorf("the signature: %v", err)
		}
	})
}
