package plan

import (
	"fmt"
	"strings"

	"github.com/hearth-ci/hearth/internal/ci"
)

// Will says whether a job will run, as far as that is known before anything ran.
type Will uint8

const (
	// Depends: it hangs on something that only the run will tell.
	Depends Will = iota
	// Runs: it will, if what it needs succeeds.
	Runs
	// Skips: it will not, unless something else fails.
	Skips
)

func (w Will) String() string {
	switch w {
	case Runs:
		return "yes"
	case Skips:
		return "no"
	}
	return "depends"
}

// Outlook is what is known of one job before the run.
type Outlook struct {
	Will   Will
	Reason string // of Skips and Depends
	// Stage counts from 1: a job's is one more than the highest of those it needs.
	// Inside a call the count goes on from the calling job.
	Stage int
}

// Forecast says for every job, by key, whether it would run if all that runs
// succeeded. It changes nothing of r.
func (r *Run) Forecast() map[string]Outlook {
	s := NewState(r)
	out := make(map[string]Outlook, len(r.Jobs))
	seen := map[*node]Outlook{}
	var visit func(n *node) Outlook
	visit = func(n *node) Outlook {
		if o, ok := seen[n]; ok {
			return o
		}
		o := Outlook{Stage: 1}
		callerWill := Runs
		if c := n.scope.caller; c != nil {
			outer := visit(c.node)
			o.Stage, callerWill = outer.Stage, outer.Will
		}
		for _, need := range n.needs {
			o.Stage = max(o.Stage, visit(need).Stage+1)
		}
		o.Will, o.Reason = s.forecast(n, callerWill, func(a *node) Outlook { return seen[a] })
		result := ci.Success
		if o.Will == Skips {
			result = ci.Skipped
		}
		for _, e := range n.entries {
			if e.result = result; result == ci.Success && len(e.job.Refused) > 0 {
				e.result = ci.NotRun
			}
		}
		seen[n] = o
		return o
	}
	for _, sc := range s.scopes {
		for _, n := range sc.nodes {
			o := visit(n)
			for _, e := range n.entries {
				out[e.job.Key] = o
			}
		}
	}
	return out
}

// forecast decides about one node, all that it needs having been decided.
func (s *State) forecast(n *node, caller Will, of func(*node) Outlook) (Will, string) {
	if caller == Skips {
		return Skips, n.scope.caller.job.ID + " does not run"
	}
	def := n.entries[0].job.Definition
	c := s.run.Calls[n.scope.call]
	depends := ""
	results := asksStatus(def) // whether the condition asks how other jobs ended
	def.If.Uses(func(context string, path []string) {
		switch fold(context) {
		case "needs":
			// A result is known under the assumption, outputs are not.
			if len(path) > 1 && fold(path[1]) == "result" {
				results = true
			} else if depends == "" {
				what := "needs"
				if len(path) > 0 && path[0] != "*" {
					what = "outputs of " + path[0]
				}
				depends = what
			}
		case "inputs":
			if c.waits(path) && depends == "" {
				depends = "inputs that depend on " + strings.Join(n.scope.caller.job.Needs, ", ")
			}
		}
	})
	n.needsCx = n.needsContext()
	ok, err := s.condition(n)
	switch {
	case depends != "":
		// Perhaps what is known settles it: an ancestor that is skipped, with
		// nothing in the condition that would run the job all the same.
		if err == nil && !ok && !asksStatus(def) {
			for _, a := range n.ancestors() {
				if of(a).Will == Skips {
					return Skips, s.whySkipped(n)
				}
			}
		}
		return Depends, fmt.Sprintf("depends on the %s: %s", depends, def.IfSource)
	case err != nil:
		_, msg := place(err, def.Pos)
		return Depends, "its condition cannot be evaluated: " + msg
	case !ok && results:
		return Skips, "not while all jobs succeed: " + def.IfSource
	case !ok:
		return Skips, s.whySkipped(n)
	}
	for _, a := range n.ancestors() {
		if of(a).Will == Depends {
			return Depends, "depends on whether " + a.id + " runs"
		}
	}
	if caller == Depends {
		return Depends, "depends on whether " + n.scope.caller.job.ID + " runs"
	}
	if first := n.entries[0].job; first.MatrixTotal == 0 {
		return Skips, "every combination of its matrix is excluded"
	}
	return Runs, ""
}
