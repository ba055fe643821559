package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/workflow"
)

// A delivery's signature covers its body and nothing else: X-GitHub-Event is what
// whoever sends it likes. So the body has to say itself what it is. Each event
// has keys that its body must have, with their kinds, and keys that it may have;
// every key that is a mark of some event is refused in all events that do not
// list it. Keys that are no event's mark do not count: GitHub adds such, and every
// body has repository, sender, organization, installation, enterprise.
//
// The table is made after the packages @octokit/webhooks-schemas and
// @octokit/webhooks-examples, 7.6.1. Of each two events that start workflows
// there is no body that both would take.

// shape is the top level of an event's body.
type shape struct {
	must string // words "key:kind"; kinds are s(tring), o(bject), n(umber), l(ist), b(oolean) and * for any, null too
	may  string // keys
}

// shapes are those of the events that start workflows.
var shapes = map[string]shape{
	"branch_protection_rule":      {"action:s rule:o", "changes"},
	"check_run":                   {"action:s check_run:o", "requested_action"},
	"check_suite":                 {"action:s check_suite:o", ""},
	"create":                      {"ref:s ref_type:s master_branch:s pusher_type:s", "description"},
	"delete":                      {"ref:s ref_type:s pusher_type:s", ""},
	"deployment":                  {"action:s deployment:o", "workflow workflow_run"},
	"deployment_status":           {"action:s deployment:o deployment_status:o", "check_run workflow workflow_run"},
	"discussion":                  {"action:s discussion:o", "answer changes label old_answer"},
	"discussion_comment":          {"action:s discussion:o comment:o", "changes"},
	"fork":                        {"forkee:o", ""},
	"gollum":                      {"pages:l", ""},
	"issue_comment":               {"action:s issue:o comment:o", "changes"},
	"issues":                      {"action:s issue:o", "assignee changes label milestone"},
	"label":                       {"action:s label:o", "changes"},
	"merge_group":                 {"action:s merge_group:o", "reason"},
	"milestone":                   {"action:s milestone:o", "changes"},
	"page_build":                  {"id:n build:o", ""},
	"project":                     {"action:s project:o", "changes"},
	"project_card":                {"action:s project_card:o", "changes"},
	"project_column":              {"action:s project_column:o", "changes"},
	"public":                      {"", ""},
	"pull_request":                {"action:s number:n pull_request:o", "after assignee before changes label milestone reason requested_reviewer requested_team"},
	"pull_request_review":         {"action:s pull_request:o review:o", "changes"},
	"pull_request_review_comment": {"action:s pull_request:o comment:o", "changes"},
	"push":                        {"ref:s before:s after:s created:b deleted:b forced:b commits:l pusher:o", "base_ref compare head_commit"},
	"registry_package":            {"action:s registry_package:o", ""},
	"release":                     {"action:s release:o", "changes"},
	"repository_dispatch":         {"action:s branch:s client_payload:*", ""},
	"status":                      {"id:n sha:s state:s context:s commit:o branches:l", "avatar_url created_at description name target_url updated_at"},
	"watch":                       {"action:s", ""},
	"workflow_dispatch":           {"ref:s workflow:s inputs:*", ""},
	"workflow_run":                {"action:s workflow_run:o workflow:*", ""},
}

// foreign are marks of events that start no workflows, and so have no shape above.
const foreign = "alert blocked_user commit_oid definition effective_date environment hook hook_id invitation key location marketplace_purchase member " +
	"membership package personal_access_token_request projects_v2 projects_v2_item projects_v2_status_update repositories repositories_added " +
	"repositories_removed repository_advisory repository_ruleset repository_selection requester reviewers scan scope security_advisory sponsorship " +
	"starred_at status sub_issue team thread user workflow_job workflow_job_run zen"

// marks are all keys that say what an event is.
var marks = func() map[string]bool {
	out := map[string]bool{}
	add := func(keys string) {
		for k := range strings.FieldsSeq(keys) {
			k, _, _ = strings.Cut(k, ":")
			out[k] = true
		}
	}
	add(foreign)
	for _, s := range shapes {
		add(s.must)
		add(s.may)
	}
	return out
}()

// Shape checks that a body is that of the event it is said to be. Events that
// start no workflows, for which nothing can happen, have no shape: any body is
// theirs. The error says what is wrong, without quoting the body.
func Shape(event string, body []byte) error {
	want, ok := shapes[event]
	if !ok {
		if len(workflow.TriggerEvents(event)) > 0 {
			return fmt.Errorf("the shape of a %s event is not known", event)
		}
		return nil
	}
	var have map[string]json.RawMessage
	if err := json.Unmarshal(body, &have); err != nil || have == nil {
		return errors.New("the body is not a JSON object")
	}
	allowed := map[string]bool{}
	for k := range strings.FieldsSeq(want.may) {
		allowed[k] = true
	}
	for k := range strings.FieldsSeq(want.must) {
		k, kind, _ := strings.Cut(k, ":")
		allowed[k] = true
		value, there := have[k]
		if !there || !is(value, kind) {
			return fmt.Errorf("the body is not that of a %s event: it has no %s", event, k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(have)) {
		if marks[k] && !allowed[k] {
			return fmt.Errorf("the body is not that of a %s event: it has %s", event, k)
		}
	}
	if e, _ := workflow.LookupEvent(event); event == "watch" {
		// It has no mark but its activity type.
		var action string
		json.Unmarshal(have["action"], &action)
		if !slices.Contains(e.Types, action) {
			return fmt.Errorf("the body is not that of a %s event: its action is another", event)
		}
	}
	return nil
}

// is reports whether a value is of a kind; a text that must be there is not empty.
func is(v json.RawMessage, kind string) bool {
	text := strings.TrimSpace(string(v))
	switch kind {
	case "*":
		return true
	case "s":
		return len(text) > 2 && text[0] == '"'
	case "o":
		return text != "" && text[0] == '{'
	case "l":
		return text != "" && text[0] == '['
	case "b":
		return text == "true" || text == "false"
	}
	return text != "" && (text[0] == '-' || text[0] >= '0' && text[0] <= '9')
}
