package worker

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/machine"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/oidc"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/registry"
	"github.com/hearth-ci/hearth/internal/results"
)

// servicePort is where on its gateway a machine finds what is served to its job.
const servicePort = 80

// serviceURL is servicePort as the guest sees it. An address, no name: Azure's client
// reads the parts of a blob's address by that.
var serviceURL = "http://" + network.Gateway.String()

// Served is what a job's machine finds at its gateway, and what the job is told of it.
type Served struct {
	http.ServeMux
	Results engine.Results
	IDToken engine.IDToken
	closers []func() error
}

// Close ends the services. What is served and was not closed ends with its tokens.
func (s *Served) Close() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

// Ticket is what the services of an attempt are opened with again, in another process:
// the tokens that the job has stay good. Whoever has it has them. The zero Ticket is that
// of services which begin and are never opened again.
type Ticket struct {
	Key   []byte    `json:"key,omitempty"` // 32 bytes
	Begun time.Time `json:"begun,omitzero"`
	Until time.Time `json:"until,omitzero"`
	Again bool      `json:"-"` // they were opened before
}

// ServiceTime is how long a job's machine may live, and so what it was given.
func ServiceTime(job *plan.Job) time.Duration {
	return minutes(job.TimeoutMinutes) + minutes(job.CancelTimeoutMinutes) + machine.MaxLease/8
}

// Serve opens the services that are here: artifacts, caches and identity tokens.
func (r *Runner) Serve(run *plan.Run, job *plan.Job, until time.Time, t Ticket) (*Served, error) {
	s := &Served{}
	if r.Results != nil {
		mode := results.Mode(plan.NarrowCacheMode(cmp.Or(job.CacheMode, plan.UsualCacheMode(run.Event)), string(r.CacheMode)))
		session, err := r.Results.Open(results.Job{Repository: r.Repository, Run: r.RunID, Attempt: max(r.Attempt, 1), Key: job.Key,
			Scopes: CacheScopes(r.Ref, run.GitHub), Mode: mode, Stranger: run.ReadOnly, Base: serviceURL, Until: until,
			Secret: t.Key, Begun: t.Begun, Again: t.Again})
		if err != nil {
			return nil, err
		}
		s.Handle("/", session)
		s.closers = append(s.closers, session.Close)
		s.Results = engine.Results{URL: serviceURL + "/", Token: session.Token(), CacheMode: string(mode)}
	}
	var desk *oidc.Desk
	if desk, s.IDToken = r.openOIDC(run, job, t); desk != nil {
		s.Handle(idTokenPath, desk)
	}
	return s, nil
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
