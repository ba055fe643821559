package worker

import (
	"strings"

	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/oidc"
	"github.com/hearth-ci/hearth/internal/plan"
)

// idTokenPath is where, beside the other services, a job asks for its tokens.
const idTokenPath = "/idtoken"

// openOIDC is where a job gets tokens: nil for one that may have none. A run that may
// only read, which is one of a fork's or of Dependabot's, has none, whatever its file
// asks for.
func (r *Runner) openOIDC(run *plan.Run, job *plan.Job, t Ticket) (*oidc.Desk, engine.IDToken) {
	if r.OIDC == nil || run.ReadOnly || !job.Permissions.Allows("id-token", "write") {
		return nil, engine.IDToken{}
	}
	d := r.OIDC.Desk(OIDCClaims(run, job), r.OIDCSubject, run.GitHub.Get("server_url").AsString()+"/"+run.GitHub.Get("repository_owner").AsString())
	if len(t.Key) > 0 {
		d.Resume(t.Key)
	}
	// Clients add &audience=…, so that there has to be a query before it.
	return d, engine.IDToken{URL: serviceURL + idTokenPath + "?api-version=2.0", Token: d.RequestToken()}
}

// OIDCClaims are what a job's token says of it, as GitHub's says it.
func OIDCClaims(run *plan.Run, job *plan.Job) oidc.Claims {
	c := oidc.Claims{"runner_environment": "self-hosted"}
	for _, name := range []string{"actor", "actor_id", "base_ref", "event_name", "head_ref",
		"ref", "ref_protected", "ref_type", "repository", "repository_id", "repository_owner",
		"repository_owner_id", "repository_visibility", "run_attempt", "run_id", "run_number", "sha", "workflow", "workflow_ref", "workflow_sha"} {
		if v := run.GitHub.Get(name); !v.IsNull() {
			c[name] = v.ToString()
		}
	}
	// The file that the job stands in: its own repository's at the run's ref, or
	// another's, which is named as its caller names it.
	file := job.Workflow.File
	if _, _, called := strings.Cut(file, "@"); called {
		c["job_workflow_ref"] = file
	} else {
		c["job_workflow_ref"], c["job_workflow_sha"] = c["repository"]+"/"+strings.TrimPrefix(file, "./")+"@"+c["ref"], c["workflow_sha"]
	}
	if job.Environment != nil {
		c["environment"] = job.Environment.Name
	}
	return c
}
