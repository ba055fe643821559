package launch

import (
	"errors"
	"fmt"
	"strings"

	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// absent are the called workflows of a run that could not be had. What calls one
// cannot run, and must not stop the jobs beside it: a workflow that takes what is
// given stands in its place, and its job is refused.
type absent struct {
	load  workflow.Load
	local bool // files of the run's own repository may be missing, too
	why   map[string]string
}

func (a *absent) Load(uses string, from *workflow.Workflow) (string, []byte, error) {
	name, src, err := a.load(uses, from)
	if err == nil || errors.Is(err, workflow.ErrSkip) || strings.HasPrefix(uses, "./") && !a.local {
		return name, src, err
	}
	if a.why == nil {
		a.why = map[string]string{}
	}
	a.why[uses] = fmt.Sprintf("Unable to find reusable workflow '%s': %v", uses, err)
	return uses, standIn(uses, from), nil
}

// standIn is a workflow that takes what the jobs of from give to uses.
func standIn(uses string, from *workflow.Workflow) []byte {
	var b strings.Builder
	b.WriteString("on:\n  workflow_call:\n")
	given := func(key string, values func(*workflow.Job) *workflow.Value, kind func(*workflow.Value) string) {
		seen := map[string]bool{}
		for _, j := range from.Jobs {
			v := values(j)
			if j.Uses != uses || v == nil || v.Kind != workflow.Mapping {
				continue
			}
			for _, p := range v.Pairs {
				if name := p.Key.Text(); !seen[strings.ToLower(name)] {
					if len(seen) == 0 {
						fmt.Fprintf(&b, "    %s:\n", key)
					}
					seen[strings.ToLower(name)] = true
					fmt.Fprintf(&b, "      %q: {%s}\n", name, kind(p.Value))
				}
			}
		}
	}
	given("inputs", func(j *workflow.Job) *workflow.Value { return j.With }, func(v *workflow.Value) string {
		switch v.Kind {
		case workflow.Bool:
			return "type: boolean"
		case workflow.Number:
			return "type: number"
		}
		return "type: string"
	})
	given("secrets", func(j *workflow.Job) *workflow.Value { return j.Secrets }, func(*workflow.Value) string { return "required: false" })
	b.WriteString("jobs:\n  absent: {runs-on: ubuntu-latest, steps: [{run: 'true'}]}\n")
	return []byte(b.String())
}

// refuse says at the jobs of those that stand in why they cannot run, or takes them
// as ones that can.
func (a *absent) refuse(run *plan.Run, assume bool) {
	for _, j := range run.Jobs {
		why, ok := a.why[j.Workflow.File]
		if !ok {
			continue
		}
		j.Refused = nil
		caller := run.Job(j.CallPath[len(j.CallPath)-1])
		if !assume && caller != nil {
			pos := caller.Definition.UsesPos
			j.Refused = []workflow.Diagnostic{{File: caller.Workflow.File, Pos: pos, Near: pos, Rule: "uses", Message: why}}
		}
	}
}
