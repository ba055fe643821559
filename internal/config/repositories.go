package config

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/network"
)

// Repositories says which repositories are served, by pattern, and what is set
// for those that a pattern names. A pattern is "owner/name", "owner/*" (all of an
// owner) or "*" (all that the App is installed on); letters' case does not count.
// In JSON it is a list of patterns, or an object from patterns to [Repository].
//
// A repository that no pattern names is not served at all.
type Repositories map[string]Repository

// Repository is what is set for the repositories of a pattern. What is left out
// comes from the pattern that is the next less specific one, at last from the
// defaults.
type Repository struct {
	// Approval says which pull requests from forks wait for `hearth approve`: none,
	// first-time (of authors of whom nothing has been merged yet; the default) or
	// all-forks.
	Approval string `json:"approval,omitempty"`
	// OIDCSubject are the claims that the subject of a job's OIDC token is made of, in
	// this order, as GitHub's include_claim_keys: repo, context, job_workflow_ref, …
	OIDCSubject []string `json:"oidc_subject,omitempty"`
	// Tests are where jobs leave test reports besides the usual places, as filters of
	// paths have them: out/**/*.xml.
	Tests []string `json:"tests,omitempty"`
	// Learn is off, advise or act: whether anything is learned from the repository's
	// runs, and whether a failed step may be tried again because of it. By default it is
	// the server's.
	Learn string `json:"learn,omitempty"`
	Limits
	// Fork is for pull requests from forks. What is left out here is as for the
	// repository itself; numbers are never higher.
	Fork Limits `json:"fork,omitzero"`
}

// Limits are what a job may have.
type Limits struct {
	// Network is public (every public address, the default), none, or
	// allow:HOST,HOST…
	Network string `json:"network,omitempty"`
	// MaxTimeout is the most that timeout-minutes may ask for; 6h by default, as on
	// GitHub.
	MaxTimeout Duration `json:"max_timeout,omitempty"`
	// Machines is how many jobs of one repository run at once; 0 is as many as the
	// server has machines.
	Machines int `json:"machines,omitempty"`
	// CPUs and MemoryMiB of one machine; by default those of the server.
	CPUs      int `json:"cpus,omitempty"`
	MemoryMiB int `json:"memory_mib,omitempty"`
}

// The values of Repository.Approval.
const (
	ApprovalNone      = "none"
	ApprovalFirstTime = "first-time"
	ApprovalAllForks  = "all-forks"
)

// Policy is what holds for one repository.
type Policy struct {
	Approval string
	// OIDCSubject are the claims that the subject of a job's OIDC token is made of;
	// none is GitHub's own form.
	OIDCSubject []string
	Learn       string   // off, advise or act
	Tests       []string // where else there are test reports
	Own         Limit    // of what the repository's own people and events start
	Fork        Limit    // of pull requests from forks
}

// Limit is [Limits], complete and read.
type Limit struct {
	Network         network.Policy
	MaxTimeout      time.Duration
	Machines        int // 0: no limit of its own
	CPUs, MemoryMiB int // 0: the pool's default
}

// defaultTimeout is GitHub's 360 minutes.
const defaultTimeout = 6 * time.Hour

// UnmarshalJSON reads a list of patterns, or an object.
func (r *Repositories) UnmarshalJSON(b []byte) error {
	var list []string
	if json.Unmarshal(b, &list) == nil {
		*r = Repositories{}
		for _, pattern := range list {
			(*r)[pattern] = Repository{}
		}
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var table map[string]Repository
	if err := dec.Decode(&table); err != nil {
		return fmt.Errorf(`repositories is a list like ["acme/*"] or an object like {"acme/*": {"network": "none"}}: %w`, err)
	}
	*r = table
	return nil
}

// Policy is what holds for owner/name, and whether it is served at all.
func (c Config) Policy(repository string) (Policy, bool) {
	owner, name, ok := strings.Cut(repository, "/")
	if !ok || !ownerName.MatchString(owner) || !validRepo(name) {
		return Policy{}, false
	}
	var sets []Repository // the most specific first
	for _, pattern := range []string{repository, owner + "/*", "*"} {
		for _, have := range slices.Sorted(maps.Keys(c.Repositories)) {
			if strings.EqualFold(have, pattern) {
				sets = append(sets, c.Repositories[have])
				break
			}
		}
	}
	if len(sets) == 0 {
		return Policy{}, false
	}
	def := Limits{MaxTimeout: Duration(defaultTimeout), CPUs: c.CPUs, MemoryMiB: c.MemoryMiB}
	p := Policy{}
	var own, fork Limits
	for _, s := range sets {
		p.Approval = cmp.Or(p.Approval, s.Approval)
		p.Learn = cmp.Or(p.Learn, s.Learn)
		if p.OIDCSubject == nil {
			p.OIDCSubject = s.OIDCSubject
		}
		if p.Tests == nil {
			p.Tests = s.Tests
		}
		own, fork = own.or(s.Limits), fork.or(s.Fork)
	}
	p.Approval, p.Learn = cmp.Or(p.Approval, ApprovalFirstTime), cmp.Or(p.Learn, c.Learn)
	own = own.or(def)
	fork = fork.or(own)
	fork.MaxTimeout = min(fork.MaxTimeout, own.MaxTimeout)
	fork.CPUs, fork.MemoryMiB = min(fork.CPUs, own.CPUs), min(fork.MemoryMiB, own.MemoryMiB)
	if own.Machines > 0 {
		fork.Machines = min(fork.Machines, own.Machines)
	}
	p.Own, p.Fork = own.limit(), fork.limit()
	return p, true
}

// LearnDiffers reports whether what is learned is set for any repository by itself.
func (c Config) LearnDiffers() bool {
	for _, r := range c.Repositories {
		if r.Learn != "" {
			return true
		}
	}
	return false
}

// or fills in what l leaves out.
func (l Limits) or(next Limits) Limits {
	return Limits{
		Network: cmp.Or(l.Network, next.Network), MaxTimeout: cmp.Or(l.MaxTimeout, next.MaxTimeout), Machines: cmp.Or(l.Machines, next.Machines),
		CPUs: cmp.Or(l.CPUs, next.CPUs), MemoryMiB: cmp.Or(l.MemoryMiB, next.MemoryMiB),
	}
}

func (l Limits) limit() Limit {
	p, err := network.ParsePolicy(l.Network)
	if err != nil {
		p = network.Policy{Mode: network.None} // Validate has told of it
	}
	return Limit{Network: p, MaxTimeout: time.Duration(l.MaxTimeout), Machines: l.Machines, CPUs: l.CPUs, MemoryMiB: l.MemoryMiB}
}

var (
	ownerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$`)
	repoName  = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,100}$`)
)

func validRepo(name string) bool { return repoName.MatchString(name) && name != "." && name != ".." }

// validPattern reports whether s is "*", "owner/*" or "owner/name".
func validPattern(s string) bool {
	owner, name, ok := strings.Cut(s, "/")
	return s == "*" || ok && ownerName.MatchString(owner) && (name == "*" || validRepo(name))
}

// validate names everything that is wrong.
func (r Repositories) validate() []error {
	var errs []error
	seen := map[string]string{}
	for _, pattern := range slices.Sorted(maps.Keys(r)) {
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("repositories: %q: %w", pattern, fmt.Errorf(format, args...)))
		}
		if !validPattern(pattern) {
			bad(`want "owner/name", "owner/*" for all of an owner, or "*" for every repository that the App is installed on`)
		}
		low := strings.ToLower(pattern)
		if other, ok := seen[low]; ok {
			bad("it is there twice, as %q too: letters' case does not count", other)
		}
		seen[low] = pattern
		s := r[pattern]
		switch s.Approval {
		case "", ApprovalNone, ApprovalFirstTime, ApprovalAllForks:
		default:
			bad("approval %q: want none, first-time or all-forks", s.Approval)
		}
		if s.Learn != "" && !learnModes[s.Learn] {
			bad("learn %q: want off, advise or act", s.Learn)
		}
		for _, l := range []struct {
			where string
			Limits
		}{{"", s.Limits}, {"fork: ", s.Fork}} {
			if _, err := network.ParsePolicy(l.Network); err != nil {
				bad("%s%w", l.where, err)
			}
			if l.MaxTimeout < 0 || l.MaxTimeout > 0 && l.MaxTimeout < Duration(time.Minute) {
				bad("%smax_timeout %v: want at least 1m, like 2h", l.where, time.Duration(l.MaxTimeout))
			}
			if l.Machines < 0 {
				bad("%smachines cannot be negative", l.where)
			}
			if l.CPUs < 0 || l.CPUs > maxCPUs {
				bad("%scpus %d: want 1 to %d", l.where, l.CPUs, maxCPUs)
			}
			if l.MemoryMiB != 0 && (l.MemoryMiB < minMemory || l.MemoryMiB > maxMemory) {
				bad("%smemory_mib %d: want at least %d", l.where, l.MemoryMiB, minMemory)
			}
		}
	}
	return errs
}

// errNoRepositories is what an App without repositories gets.
var errNoRepositories = errors.New(`repositories names none, so every delivery would be refused: say which are served, like ["acme/app"], ` +
	`["acme/*"] for all of an owner, or ["*"] for every repository that anybody installs the App on`)
