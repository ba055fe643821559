package worker_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/launch"
	"github.com/hearth-ci/hearth/internal/oidc"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/worker"
	"github.com/hearth-ci/hearth/internal/workflow"
)

const mayAsk = "\n    permissions: {id-token: write}\n    steps:\n      - run: echo \"$ACTIONS_ID_TOKEN_REQUEST_URL\"; echo \"$ACTIONS_ID_TOKEN_REQUEST_TOKEN\"; echo \"${ACTIONS_ID_TOKEN_REQUEST_TOKEN:-none}\" | rev; echo now\n"

// A step of a job that may asks for a token where it is told to.
func TestRunnerGivesIDTokens(t *testing.T) {
	s := newStove(t)
	s.OIDC = oidc.New(oidc.Config{URL: "https://ci.example.com/oidc", Dir: t.TempDir()})
	var claims map[string]any
	s.watch = func(r ci.Record) {
		if r.Type != ci.LogLine || r.Text != "now" {
			return
		}
		lines := strings.Split(s.log(), "\n")
		token := []byte(lines[len(lines)-2])
		slices.Reverse(token)
		req := httptest.NewRequest("GET", "/idtoken?api-version=2.0&audience=sts", nil)
		req.Header.Set("Authorization", "bearer "+string(token))
		w := httptest.NewRecorder()
		s.host.Machines()[0].Request().Network.Services[80].ServeHTTP(w, req)
		var answer struct{ Value string }
		json.Unmarshal(w.Body.Bytes(), &answer)
		parts := strings.Split(answer.Value, ".")
		if len(parts) != 3 {
			t.Errorf("%d %s", w.Code, w.Body)
			return
		}
		b, _ := base64.RawURLEncoding.DecodeString(parts[1])
		json.Unmarshal(b, &claims)
	}
	if out := s.run(t.Context(), mayAsk, nil); out.Conclusion != ci.Success {
		t.Fatal(out)
	}
	if claims["sub"] != "repo:o/r:ref:refs/heads/main" || claims["aud"] != "sts" || claims["job_workflow_ref"] != "o/r/ci.yml@refs/heads/main" ||
		claims["runner_environment"] != "self-hosted" {
		t.Errorf("%v", claims)
	}
	if log := s.log(); !strings.Contains(log, "http://10.0.2.2/idtoken?api-version=2.0\n***\n") {
		t.Errorf("the log:\n%s", log)
	}
}

// A job without the permission gets nothing to ask with, and a run that may only read
// gets none whatever its file says.
func TestAttackIDTokenOfAFork(t *testing.T) {
	s := newStove(t)
	s.OIDC = oidc.New(oidc.Config{URL: "https://ci.example.com/oidc", Dir: t.TempDir()})
	s.run(t.Context(), strings.Replace(mayAsk, "id-token: write", "contents: write", 1), nil)
	if !strings.Contains(s.log(), "enon") {
		t.Errorf("without the permission:\n%s", s.log())
	}
	s = newStove(t)
	s.OIDC = oidc.New(oidc.Config{URL: "https://ci.example.com/oidc", Dir: t.TempDir()})
	s.readOnly = true
	s.run(t.Context(), mayAsk, nil)
	if !strings.Contains(s.log(), "enon") {
		t.Errorf("a fork's:\n%s", s.log())
	}
}

func TestOIDCClaims(t *testing.T) {
	event, err := expr.ParseJSON([]byte(`{"repository":{"id":7,"visibility":"private","owner":{"id":8}},"sender":{"id":9}}`))
	if err != nil {
		t.Fatal(err)
	}
	run := &plan.Run{GitHub: launch.GitHubContext(launch.Facts{Run: ci.Run{ID: ci.NewID(), Repository: "acme/app", File: ".github/workflows/ci.yml",
		Ref: "refs/heads/main", SHA: strings.Repeat("a", 40),
		Event: "push", Actor: "ada", Number: 3, Attempt: 2, Workflow: "CI"}, Payload: event, Server: "https://github.com"})}
	job := &plan.Job{Workflow: &workflow.Workflow{File: "./.github/workflows/deploy.yml"}, Environment: &plan.Environment{Name: "prod"}}
	c := worker.OIDCClaims(run, job)
	for name, want := range map[string]string{
		"repository": "acme/app", "repository_owner": "acme", "repository_id": "7", "repository_owner_id": "8", "repository_visibility": "private",
		"actor": "ada", "actor_id": "9",
		"workflow": "CI", "workflow_ref": "acme/app/.github/workflows/ci.yml@refs/heads/main",
		"job_workflow_ref": "acme/app/.github/workflows/deploy.yml@refs/heads/main",
		"ref":              "refs/heads/main", "ref_type": "branch", "ref_protected": "false", "run_number": "3", "run_attempt": "2", "environment": "prod",
		"runner_environment": "self-hosted",
		"job_workflow_sha":   strings.Repeat("a", 40), "event_name": "push", "head_ref": "", "base_ref": "",
	} {
		if c[name] != want {
			t.Errorf("%s: %q, want %q", name, c[name], want)
		}
	}
	job.Workflow.File, job.Environment = "acme/ci/.github/workflows/x.yml@v1", nil
	c = worker.OIDCClaims(run, job)
	if _, there := c["environment"]; there || c["job_workflow_ref"] != "acme/ci/.github/workflows/x.yml@v1" || c["job_workflow_sha"] != "" {
		t.Errorf("%v", c)
	}
}
