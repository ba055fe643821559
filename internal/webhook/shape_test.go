package webhook

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/workflow"
)

// bodies has, for each event that starts workflows, the top level of the body
// that GitHub sends, with little in it.
var bodies = func() map[string]string {
	out := map[string]string{}
	for event, top := range map[string]string{
		"branch_protection_rule":      `"action":"edited","rule":{"id":1,"name":"main"},"changes":{"admin_enforced":{"from":true}}`,
		"check_run":                   `"action":"requested_action","check_run":{"id":1,"external_id":"x","app":{"id":2}},"requested_action":{"identifier":"approve"}`,
		"check_suite":                 `"action":"completed","check_suite":{"id":1,"head_sha":"ec26c3e57ca3a959ca5aad62de7213c562f8c821"}`,
		"create":                      `"ref":"v1","ref_type":"tag","master_branch":"main","description":null,"pusher_type":"user"`,
		"delete":                      `"ref":"v1","ref_type":"tag","pusher_type":"user"`,
		"deployment":                  `"action":"created","deployment":{"id":1,"ref":"main"},"workflow":null,"workflow_run":null`,
		"deployment_status":           `"action":"created","deployment_status":{"state":"success"},"deployment":{"id":1},"check_run":null,"workflow":null,"workflow_run":null`,
		"discussion":                  `"action":"labeled","discussion":{"number":1},"label":{"name":"bug"}`,
		"discussion_comment":          `"action":"created","discussion":{"number":1},"comment":{"body":"hello"}`,
		"fork":                        `"forkee":{"full_name":"a/r"}`,
		"gollum":                      `"pages":[{"page_name":"Home","action":"created"}]`,
		"issue_comment":               `"action":"created","issue":{"number":1},"comment":{"body":"hello"}`,
		"issues":                      `"action":"labeled","issue":{"number":1},"label":{"name":"bug"}`,
		"label":                       `"action":"edited","label":{"name":"bug"},"changes":{}`,
		"merge_group":                 `"action":"checks_requested","merge_group":{"head_sha":"ec26c3e57ca3a959ca5aad62de7213c562f8c821"}`,
		"milestone":                   `"action":"closed","milestone":{"number":1}`,
		"page_build":                  `"id":15995382,"build":{"status":"built"}`,
		"project":                     `"action":"created","project":{"id":1}`,
		"project_card":                `"action":"moved","project_card":{"id":1},"changes":{"column_id":{"from":1}}`,
		"project_column":              `"action":"edited","project_column":{"id":1},"changes":{"name":{"from":"x"}}`,
		"public":                      ``,
		"pull_request":                `"action":"synchronize","number":2,"pull_request":{"number":2},"before":"f95f852bd8fca8fcc58a9a2d6c842781e32a215e","after":"ec26c3e57ca3a959ca5aad62de7213c562f8c821"`,
		"pull_request_review":         `"action":"submitted","pull_request":{"number":2},"review":{"state":"approved"}`,
		"pull_request_review_comment": `"action":"created","pull_request":{"number":2},"comment":{"body":"hello"}`,
		"push": `"ref":"refs/heads/main","before":"6113728f27ae82c7b1a177c8d03f9e96e0adf246","after":"0000000000000000000000000000000000000000","created":false,"deleted":true,` +
			`"forced":false,"base_ref":null,"compare":"https://github.com/","commits":[],"head_commit":null,"pusher":{"name":"octocat"}`,
		"registry_package":    `"action":"published","registry_package":{"id":1}`,
		"release":             `"action":"published","release":{"tag_name":"v1"}`,
		"repository_dispatch": `"action":"on-demand-test","branch":"main","client_payload":{"pull_request":{},"ref":"x"}`,
		"status": `"id":1,"sha":"6113728f27ae82c7b1a177c8d03f9e96e0adf246","name":"o/r","target_url":null,"context":"default","description":null,"state":"success",` +
			`"commit":{"sha":"x"},"branches":[],"created_at":"x","updated_at":"x"`,
		"watch":             `"action":"started"`,
		"workflow_dispatch": `"inputs":null,"ref":"refs/heads/main","workflow":".github/workflows/ci.yml"`,
		"workflow_run":      `"action":"completed","workflow_run":{"id":1},"workflow":{"id":1}`,
	} {
		if top != "" {
			top += ","
		}
		out[event] = "{" + top + `"repository":{"full_name":"o/r"},"sender":{"login":"octocat"},"installation":{"id":1}}`
	}
	return out
}()

// The header that names the event is not signed. Whoever had one signed body (of
// a fork's pull request, say, which runs without secrets) could send it again as
// a push, which runs with them. Every body is taken as its own event and as no
// other that starts anything.
func TestAttackBodyOfAnotherEvent(t *testing.T) {
	n := 0
	for _, e := range workflow.Events() {
		if !e.Webhook || !e.Starts {
			continue
		}
		n++
		body, ok := bodies[e.Name]
		if !ok {
			t.Errorf("%s: no body here", e.Name)
			continue
		}
		for event := range shapes {
			if err := Shape(event, []byte(body)); (err == nil) != (event == e.Name) {
				t.Errorf("the body of %s as %s: %v", e.Name, event, err)
			}
		}
	}
	if n != len(shapes) || n < 30 {
		t.Errorf("%d events start workflows, %d shapes", n, len(shapes))
	}
	// Bodies of events that start nothing are none of those that do.
	for name, body := range map[string]string{
		"star":         `{"action":"created","starred_at":"x","repository":{}}`,
		"repository":   `{"action":"created","repository":{}}`,
		"workflow_job": `{"action":"queued","workflow_job":{},"repository":{}}`,
		"member":       `{"action":"added","member":{},"repository":{}}`,
		"thread":       `{"action":"resolved","pull_request":{},"thread":{},"repository":{}}`,
		"commit":       `{"action":"created","comment":{},"repository":{}}`,
		"team_add":     `{"team":{},"repository":{}}`,
		"import":       `{"status":"success","repository":{}}`,
		"alert":        `{"action":"created","alert":{},"ref":"refs/heads/main","commit_oid":"x","repository":{}}`,
		"nothing":      `{}`,
		"null":         `null`,
	} {
		for event := range shapes {
			if err := Shape(event, []byte(body)); err == nil && (name != "nothing" || event != "public") {
				t.Errorf("%s is taken as %s", name, event)
			}
		}
	}
}

// What decides must be there, and of its kind: a push without a ref was planned
// with an empty one, past every branch filter.
func TestAttackBodyWithoutWhatDecides(t *testing.T) {
	for event, s := range shapes {
		for must := range strings.FieldsSeq(s.must) {
			key, kind, _ := strings.Cut(must, ":")
			for _, bad := range []string{"null", `""`, `[[]]`} {
				if kind == "*" || kind == "l" && bad == "[[]]" {
					continue
				}
				body := fmt.Sprintf(`{%q:%s,%s`, key, bad, strings.ReplaceAll(bodies[event], `"`+key+`":`, `"was_`+key+`":`)[1:])
				if Shape(event, []byte(body)) == nil {
					t.Errorf("%s with %s %s is taken: %s", event, key, bad, body)
				}
			}
			body := strings.ReplaceAll(bodies[event], `"`+key+`":`, `"was_`+key+`":`)
			if Shape(event, []byte(body)) == nil {
				t.Errorf("%s without %s is taken", event, key)
			}
		}
	}
}

// What is signed and not let in starts nothing, and is seen.
func TestAttackRefusedIsSeen(t *testing.T) {
	sign := func(b []byte) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(Sign(secret, b)))
		}
	}
	h, m := handler()
	woken := 0
	h.Stored = func() { woken++ }
	h.Serves = func(name string) bool { return name == "acme/app" }
	pull := []byte(strings.ReplaceAll(bodies["pull_request"], "o/r", "acme/app"))
	if code, a := deliver(h, pull, sign(pull)); code != http.StatusBadRequest || a.Status != "refused" {
		t.Errorf("the body of a pull request as a push: %d %+v", code, a)
	}
	if code, a := deliver(h, push, func(r *http.Request) { r.Header.Set("X-GitHub-Delivery", "d2") }); code != http.StatusForbidden ||
		!strings.Contains(a.Reason, "octo/hello") {
		t.Errorf("of a repository that is not served: %d %+v", code, a)
	}
	if len(m.events) != 2 || m.verdicts["d2"].Refused == "" || woken != 0 {
		t.Errorf("%+v, woken %d", m.verdicts, woken)
	}
}
