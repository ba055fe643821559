package worker_test

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/launch"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/worker"
)

func TestCacheScopes(t *testing.T) {
	event, err := expr.ParseJSON([]byte(`{"repository":{"default_branch":"main"}}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ ref, base, want string }{
		{"refs/heads/main", "", "refs/heads/main"},
		{"refs/heads/topic", "", "refs/heads/topic refs/heads/main"},
		{"refs/tags/v1", "", "refs/tags/v1 refs/heads/main"},
		{"refs/pull/1/merge", "main", "refs/pull/1/merge refs/heads/main"},
		{"refs/pull/1/merge", "release", "refs/pull/1/merge refs/heads/release refs/heads/main"},
	} {
		github := launch.GitHubContext(launch.Facts{Run: ci.Run{Ref: c.ref}, BaseRef: c.base, Payload: event})
		if got := worker.CacheScopes(c.ref, github); !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s to %q: %v", c.ref, c.base, got)
		}
	}
}

// The service is there while the job is, on its machine's own network, and told to
// nobody but actions.
func TestRunnerServesResults(t *testing.T) {
	s := newStove(t)
	s.Results = results.New(results.Config{Dir: t.TempDir()})
	status := 0
	s.watch = func(r ci.Record) {
		if r.Type == ci.LogLine && r.Text == "now" {
			handler := s.host.Machines()[0].Request().Network.Services[80]
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest("POST", "/twirp/github.actions.results.api.v1.ArtifactService/ListArtifacts", strings.NewReader("{}")))
			status = w.Code
		}
	}
	out := s.run(t.Context(), "\n    steps:\n      - run: echo now; env\n", nil)
	if out.Conclusion != ci.Success || status != 401 {
		t.Errorf("%v, asked without a token: %d", out, status)
	}
	for _, name := range []string{"ACTIONS_RUNTIME_TOKEN", "ACTIONS_RESULTS_URL"} {
		if strings.Contains(s.log(), name) {
			t.Errorf("a run step has %s", name)
		}
	}
	s.Results = nil
	s.run(t.Context(), "\n    steps:\n      - run: echo ok\n", nil)
}
