package plan_test

import (
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// A job that cannot run here is seen ahead: what needs it will be skipped, and a run
// of which nothing can run is none.
func TestRefusedAhead(t *testing.T) {
	refuse := func(r *plan.Run, id, rule string) {
		for _, j := range r.Jobs {
			if j.ID == id {
				j.Refused = []workflow.Diagnostic{{Rule: rule, Message: "no " + id}, {Rule: plan.Unsupported, Message: "nor this"}, {Rule: rule, Message: "no " + id}}
			}
		}
	}
	r := build(t, jobs("a:", "b: needs: a", "never: if: ${{ github.event_name == 'x' }}", "c:"))
	if !r.Runnable() || len(r.Refused()) != 0 {
		t.Error("nothing is refused")
	}
	refuse(r, "a", plan.Unsupported)
	if o := r.Forecast()["b"]; o.Will != plan.Skips || !strings.Contains(o.Reason, "it needs a, which cannot run here") || !r.Runnable() {
		t.Errorf("%+v, runnable %v", o, r.Runnable())
	}
	refuse(r, "c", "action")
	if r.Runnable() || len(r.Refused()) != 3 {
		t.Errorf("runnable %v, %v", r.Runnable(), r.Refused())
	}
	_, reason, missing := r.Job("a").Refusal()
	if reason != "no a; nor this" || !missing {
		t.Error(reason, missing)
	}
	if _, _, missing = r.Job("c").Refusal(); missing {
		t.Error("what somebody has to mend is not missing")
	}
	if r := build(t, jobs("never: if: ${{ github.event_name == 'x' }}")); !r.Runnable() {
		t.Error("a run of which nothing is refused is one, whatever its conditions say")
	}
}
