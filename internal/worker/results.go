package worker

import (
	"cmp"
	"slices"
	"time"

	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/registry"
	"github.com/hearth-ci/hearth/internal/results"
)

// servicePort is where on its gateway a machine finds what is served to its job.
const servicePort = 80

// serviceURL is servicePort as the guest sees it. An address, no name: Azure's client
// reads the parts of a blob's address by that.
var serviceURL = "http://" + network.Gateway.String()

// openResults begins the artifact and cache service of a job: nil without a store.
func (r *Runner) openResults(run *plan.Run, job *plan.Job, until time.Time) (*results.Session, engine.Results, error) {
	if r.Results == nil {
		return nil, engine.Results{}, nil
	}
	mode := results.Mode(plan.NarrowCacheMode(cmp.Or(job.CacheMode, plan.UsualCacheMode(run.Event)), string(r.CacheMode)))
	s, err := r.Results.Open(results.Job{Repository: r.Repository, Run: r.RunID, Attempt: max(r.Attempt, 1), Key: job.Key,
		Scopes: CacheScopes(r.Ref, run.GitHub), Mode: mode, Stranger: run.ReadOnly, Base: serviceURL, Until: until})
	if err != nil {
		return nil, engine.Results{}, err
	}
	return s, engine.Results{URL: serviceURL + "/", Token: s.Token(), CacheMode: string(mode)}, nil
}

// openRegistry begins what a job's machine pulls images from: nil without a cache.
func (r *Runner) openRegistry(run *plan.Run) (*registry.Session, error) {
	if r.Registry == nil {
		return nil, nil
	}
	return r.Registry.Session(registry.SessionConfig{Policy: r.Network, Stranger: run.ReadOnly})
}

// CacheScopes are the refs whose caches a run sees, its own first, as GitHub has it:
// then a pull request's base branch, then the default branch.
func CacheScopes(ref string, github expr.Value) []string {
	scopes := []string{ref}
	for _, branch := range []expr.Value{github.Get("base_ref"), github.Get("event").Get("repository").Get("default_branch")} {
		if name := branch.AsString(); name != "" && !slices.Contains(scopes, "refs/heads/"+name) {
			scopes = append(scopes, "refs/heads/"+name)
		}
	}
	return slices.DeleteFunc(scopes, func(s string) bool { return s == "" })
}
