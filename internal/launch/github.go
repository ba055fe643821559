package launch

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
)

// Facts are what the github context of a run is made of.
type Facts struct {
	Run     ci.Run     // its actor did what the event tells
	Payload expr.Value // github.event
	BaseRef string     // branches of a pull request
	HeadRef string
	Server  string // https://github.com
	API     string // https://api.github.com
	Again   string // who asked for the run to be repeated; "" is its actor
}

// GitHubContext returns the github context of a run, without what only a job
// knows (action, job, workspace, token).
func GitHubContext(f Facts) expr.Value {
	m := expr.NewMap()
	set := func(k, v string) { m.Set(k, expr.String(v)) }
	owner, _, _ := strings.Cut(f.Run.Repository, "/")
	refType, refName := "branch", f.Run.Ref
	switch {
	case strings.HasPrefix(f.Run.Ref, "refs/heads/"):
		refName = strings.TrimPrefix(f.Run.Ref, "refs/heads/")
	case strings.HasPrefix(f.Run.Ref, "refs/tags/"):
		refType, refName = "tag", strings.TrimPrefix(f.Run.Ref, "refs/tags/")
	case strings.HasPrefix(f.Run.Ref, "refs/pull/"):
		refName = strings.TrimPrefix(f.Run.Ref, "refs/pull/")
	}
	set("actor", f.Run.Actor)
	set("triggering_actor", cmp.Or(f.Again, f.Run.Actor))
	set("api_url", f.API)
	set("base_ref", f.BaseRef)
	m.Set("event", f.Payload)
	set("event_name", f.Run.Event)
	set("graphql_url", strings.TrimSuffix(f.API, "/v3")+"/graphql")
	set("head_ref", f.HeadRef)
	set("ref", f.Run.Ref)
	set("ref_name", refName)
	set("ref_type", refType)
	m.Set("ref_protected", expr.Bool(false))
	set("repository", f.Run.Repository)
	set("repository_owner", owner)
	set("repositoryUrl", "git:"+strings.TrimPrefix(strings.TrimPrefix(f.Server, "https:"), "http:")+"/"+f.Run.Repository+".git")
	set("retention_days", "90")
	set("run_id", RunNumber(f.Run.ID))
	set("run_number", strconv.FormatInt(f.Run.Number, 10))
	set("run_attempt", strconv.Itoa(f.Run.Attempt))
	set("secret_source", "Actions")
	set("server_url", f.Server)
	for key, path := range map[string][]string{
		"actor_id": {"sender", "id"}, "repository_id": {"repository", "id"}, "repository_owner_id": {"repository", "owner", "id"},
		"repository_visibility": {"repository", "visibility"},
	} {
		if v := f.Payload.At(path...); !v.IsNull() {
			set(key, v.ToString())
		}
	}
	set("sha", f.Run.SHA)
	set("workflow", f.Run.Workflow)
	set("workflow_ref", f.Run.Repository+"/"+f.Run.File+"@"+f.Run.Ref)
	set("workflow_sha", f.Run.SHA)
	return expr.Object(m)
}

// RunNumber is a run id as github.run_id shows it: digits, since workflows and
// actions read it as a number.
func RunNumber(id string) string {
	var n uint64
	for i := range min(len(id), 14) {
		n = n*31 + uint64(id[i])
	}
	return strconv.FormatUint(n%(1<<53), 10)
}
