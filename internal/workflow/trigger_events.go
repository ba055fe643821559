package workflow

import "slices"

// This file is a table of facts: the events that GitHub delivers and those that
// start workflows. The webhooks and their actions are those that the packages
// @octokit/webhooks 14.2.0, @octokit/webhooks-examples 7.6.1 and
// @octokit/openapi-webhooks 12.1.0 name (there also those of enterprises); what
// starts workflows is GitHub's reference "Events that trigger workflows".

// Event is a kind of event.
type Event struct {
	Name string
	// Webhook says that it is delivered under this name (X-GitHub-Event).
	Webhook bool
	// Starts says that workflows can name it under `on:`.
	Starts bool
	// OnDefaultBranch says that only workflow files on the default branch are
	// started by it.
	OnDefaultBranch bool
	// Types are the activity types that `types:` takes and that start workflows. An
	// event without any starts workflows whatever its activity type.
	Types []string
	// Default are the types meant when a workflow names none; nil means all Types.
	Default []string
	// Filters are the further keys that it takes under `on:`: branches, paths, …
	Filters []string
	// Other are further activity types that are delivered. Where there are Types,
	// these start no workflow.
	Other []string
}

// Defaults are the activity types that start a workflow which names none.
func (e Event) Defaults() []string {
	if e.Default != nil {
		return e.Default
	}
	return e.Types
}

// LookupEvent finds an event by its name.
func LookupEvent(name string) (Event, bool) {
	i, ok := slices.BinarySearchFunc(eventTable[:], name, func(e Event, name string) int {
		switch {
		case e.Name < name:
			return -1
		case e.Name > name:
			return 1
		}
		return 0
	})
	if !ok {
		return Event{}, false
	}
	return eventTable[i], true
}

// Events are all events in the order of their names.
func Events() []Event { return slices.Clone(eventTable[:]) }

// TriggerEvents are the names under `on:` that a webhook can start: for
// pull_request these are pull_request and pull_request_target. A webhook that
// starts no workflows has none.
func TriggerEvents(webhook string) []string {
	e, ok := LookupEvent(webhook)
	switch {
	case !ok || !e.Webhook || !e.Starts:
		return nil
	case webhook == "pull_request":
		return []string{"pull_request", "pull_request_target"}
	}
	return []string{webhook}
}

// The lists that several events share.
var (
	changes          = []string{"created", "edited", "deleted"}
	byBranch         = []string{"branches", "branches-ignore"}
	byBranchAndPath  = []string{"branches", "branches-ignore", "paths", "paths-ignore"}
	pullRequestTypes = []string{
		"assigned", "unassigned", "labeled", "unlabeled", "opened", "edited", "closed", "reopened",
		"synchronize", "converted_to_draft", "locked", "unlocked", "enqueued", "dequeued", "milestoned", "demilestoned",
		"ready_for_review", "review_requested", "review_request_removed", "auto_merge_enabled", "auto_merge_disabled", "stacked",
	}
)

// eventTable is sorted by name and only read.
var eventTable = [...]Event{
	{Name: "branch_protection_configuration", Webhook: true, Other: []string{"disabled", "enabled"}},
	{Name: "branch_protection_rule", Webhook: true, Starts: true, OnDefaultBranch: true, Types: changes},
	{Name: "check_run", Webhook: true, Starts: true, OnDefaultBranch: true, Types: []string{"created", "rerequested", "completed", "requested_action"}},
	{
		Name:            "check_suite",
		Webhook:         true,
		Starts:          true,
		OnDefaultBranch: true,
		Types:           []string{"completed"},
		Other:           []string{"requested", "rerequested"},
	},
	{
		Name:    "code_scanning_alert",
		Webhook: true,
		Other:   []string{"appeared_in_branch", "closed_by_user", "created", "fixed", "reopened", "reopened_by_user"},
	},
	{Name: "commit_comment", Webhook: true, Other: []string{"created"}},
	{Name: "create", Webhook: true, Starts: true},
	{Name: "custom_property", Webhook: true, Other: []string{"created", "deleted", "promote_to_enterprise", "updated"}},
	{Name: "custom_property_values", Webhook: true, Other: []string{"updated"}},
	{Name: "delete", Webhook: true, Starts: true, OnDefaultBranch: true},
	{
		Name:    "dependabot_alert",
		Webhook: true,
		Other:   []string{"auto_dismissed", "auto_reopened", "created", "dismissed", "fixed", "reintroduced", "reopened"},
	},
	{Name: "deploy_key", Webhook: true, Other: []string{"created", "deleted"}},
	{Name: "deployment", Webhook: true, Starts: true, Other: []string{"created"}},
	{Name: "deployment_protection_rule", Webhook: true, Other: []string{"requested"}},
	{Name: "deployment_review", Webhook: true, Other: []string{"approved", "rejected", "requested"}},
	{Name: "deployment_status", Webhook: true, Starts: true, Other: []string{"created"}},
	{
		Name:            "discussion",
		Webhook:         true,
		Starts:          true,
		OnDefaultBranch: true,
		Types: []string{"created", "edited", "deleted", "transferred", "pinned", "unpinned", "labeled", "unlabeled", "locked", "unlocked",
			"category_changed", "answered", "unanswered"},
		Other: []string{"closed", "reopened"},
	},
	{Name: "discussion_comment", Webhook: true, Starts: true, OnDefaultBranch: true, Types: changes},
	{Name: "dismissal_request_code_scanning", Webhook: true, Other: []string{"created", "response_submitted"}},
	{
		Name:    "dismissal_request_secret_scanning",
		Webhook: true,
		Other:   []string{"cancelled", "completed", "created", "response_dismissed", "response_submitted"},
	},
	{
		Name:    "exemption_request_push_ruleset",
		Webhook: true,
		Other:   []string{"cancelled", "completed", "created", "response_dismissed", "response_submitted"},
	},
	{
		Name:    "exemption_request_secret_scanning",
		Webhook: true,
		Other:   []string{"cancelled", "completed", "created", "response_dismissed", "response_submitted"},
	},
	{Name: "fork", Webhook: true, Starts: true, OnDefaultBranch: true},
	{Name: "github_app_authorization", Webhook: true, Other: []string{"revoked"}},
	{Name: "gollum", Webhook: true, Starts: true, OnDefaultBranch: true},
	{Name: "image_version", Starts: true, OnDefaultBranch: true, Types: []string{"created", "ready", "deleted"}, Filters: []string{"names", "versions"}},
	{Name: "installation", Webhook: true, Other: []string{"created", "deleted", "new_permissions_accepted", "suspend", "unsuspend"}},
	{Name: "installation_repositories", Webhook: true, Other: []string{"added", "removed"}},
	{Name: "installation_target", Webhook: true, Other: []string{"renamed"}},
	{Name: "issue_comment", Webhook: true, Starts: true, OnDefaultBranch: true, Types: changes},
	{Name: "issue_dependencies", Webhook: true, Other: []string{"blocked_by_added", "blocked_by_removed", "blocking_added", "blocking_removed"}},
	{
		Name:            "issues",
		Webhook:         true,
		Starts:          true,
		OnDefaultBranch: true,
		Types: []string{"opened", "edited", "deleted", "transferred", "pinned", "unpinned", "closed", "reopened", "assigned", "unassigned",
			"labeled", "unlabeled", "locked", "unlocked", "milestoned", "demilestoned", "field_added", "field_removed", "typed", "untyped"},
	},
	{Name: "label", Webhook: true, Starts: true, OnDefaultBranch: true, Types: changes},
	{Name: "marketplace_purchase", Webhook: true, Other: []string{"cancelled", "changed", "pending_change", "pending_change_cancelled", "purchased"}},
	{Name: "member", Webhook: true, Other: []string{"added", "edited", "removed"}},
	{Name: "membership", Webhook: true, Other: []string{"added", "removed"}},
	{Name: "merge_group", Webhook: true, Starts: true, Types: []string{"checks_requested"}, Filters: byBranch, Other: []string{"destroyed"}},
	{Name: "meta", Webhook: true, Other: []string{"deleted"}},
	{Name: "milestone", Webhook: true, Starts: true, OnDefaultBranch: true, Types: []string{"created", "closed", "opened", "edited", "deleted"}},
	{Name: "org_block", Webhook: true, Other: []string{"blocked", "unblocked"}},
	{Name: "organization", Webhook: true, Other: []string{"deleted", "member_added", "member_invited", "member_removed", "renamed"}},
	{Name: "organization_custom_property", Webhook: true, Other: []string{"created", "deleted", "updated"}},
	{Name: "organization_custom_property_values", Webhook: true, Other: []string{"updated"}},
	{Name: "package", Webhook: true, Other: []string{"published", "updated"}},
	{Name: "page_build", Webhook: true, Starts: true, OnDefaultBranch: true},
	{Name: "personal_access_token_request", Webhook: true, Other: []string{"approved", "cancelled", "created", "denied"}},
	{Name: "ping", Webhook: true},
	{Name: "project", Webhook: true, Starts: true, OnDefaultBranch: true, Types: []string{"created", "closed", "reopened", "edited", "deleted"}},
	{Name: "project_card", Webhook: true, Starts: true, OnDefaultBranch: true, Types: []string{"created", "moved", "converted", "edited", "deleted"}},
	{
		Name:            "project_column",
		Webhook:         true,
		Starts:          true,
		OnDefaultBranch: true,
		Types:           []string{"created", "updated", "moved", "deleted"},
		Other:           []string{"edited"},
	},
	{Name: "projects_v2", Webhook: true, Other: []string{"closed", "created", "deleted", "edited", "reopened"}},
	{Name: "projects_v2_item", Webhook: true, Other: []string{"archived", "converted", "created", "deleted", "edited", "reordered", "restored"}},
	{Name: "projects_v2_status_update", Webhook: true, Other: []string{"created", "deleted", "edited"}},
	{Name: "public", Webhook: true, Starts: true, OnDefaultBranch: true},
	{
		Name:    "pull_request",
		Webhook: true,
		Starts:  true,
		Types:   pullRequestTypes,
		Filters: byBranchAndPath,
		Default: []string{"opened", "synchronize", "reopened"},
	},
	{Name: "pull_request_comment", Starts: true, OnDefaultBranch: true, Types: changes},
	{Name: "pull_request_review", Webhook: true, Starts: true, Types: []string{"submitted", "edited", "dismissed"}},
	{Name: "pull_request_review_comment", Webhook: true, Starts: true, Types: changes},
	{Name: "pull_request_review_thread", Webhook: true, Other: []string{"resolved", "unresolved"}},
	{
		Name:            "pull_request_target",
		Starts:          true,
		OnDefaultBranch: true,
		Types:           pullRequestTypes,
		Filters:         byBranchAndPath,
		Default:         []string{"opened", "synchronize", "reopened"},
	},
	{Name: "push", Webhook: true, Starts: true, Filters: []string{"branches", "branches-ignore", "tags", "tags-ignore", "paths", "paths-ignore"}},
	{Name: "registry_package", Webhook: true, Starts: true, OnDefaultBranch: true, Types: []string{"published", "updated"}},
	{
		Name:    "release",
		Webhook: true,
		Starts:  true,
		Types:   []string{"published", "unpublished", "created", "edited", "deleted", "prereleased", "released"},
	},
	{
		Name:    "repository",
		Webhook: true,
		Other:   []string{"archived", "created", "deleted", "edited", "privatized", "publicized", "renamed", "transferred", "unarchived"},
	},
	{Name: "repository_advisory", Webhook: true, Other: []string{"published", "reported"}},
	{Name: "repository_dispatch", Webhook: true, Starts: true, OnDefaultBranch: true},
	{Name: "repository_import", Webhook: true},
	{Name: "repository_ruleset", Webhook: true, Other: []string{"created", "deleted", "edited"}},
	{Name: "repository_vulnerability_alert", Webhook: true, Other: []string{"create", "dismiss", "reopen", "resolve"}},
	{Name: "schedule", Starts: true, OnDefaultBranch: true},
	{
		Name:    "secret_scanning_alert",
		Webhook: true,
		Other:   []string{"assigned", "created", "publicly_leaked", "reopened", "resolved", "unassigned", "validated"},
	},
	{Name: "secret_scanning_alert_location", Webhook: true, Other: []string{"created"}},
	{Name: "secret_scanning_scan", Webhook: true, Other: []string{"completed"}},
	{Name: "security_advisory", Webhook: true, Other: []string{"published", "updated", "withdrawn"}},
	{Name: "security_and_analysis", Webhook: true},
	{
		Name:    "sponsorship",
		Webhook: true,
		Other:   []string{"cancelled", "created", "edited", "pending_cancellation", "pending_tier_change", "tier_changed"},
	},
	{Name: "star", Webhook: true, Other: []string{"created", "deleted"}},
	{Name: "status", Webhook: true, Starts: true, OnDefaultBranch: true},
	{Name: "sub_issues", Webhook: true, Other: []string{"parent_issue_added", "parent_issue_removed", "sub_issue_added", "sub_issue_removed"}},
	{Name: "team", Webhook: true, Other: []string{"added_to_repository", "created", "deleted", "edited", "removed_from_repository"}},
	{Name: "team_add", Webhook: true},
	{Name: "watch", Webhook: true, Starts: true, OnDefaultBranch: true, Types: []string{"started"}},
	{Name: "workflow_call", Starts: true},
	{Name: "workflow_dispatch", Webhook: true, Starts: true},
	{Name: "workflow_job", Webhook: true, Other: []string{"completed", "in_progress", "queued", "waiting"}},
	{
		Name:            "workflow_run",
		Webhook:         true,
		Starts:          true,
		OnDefaultBranch: true,
		Types:           []string{"requested", "completed", "in_progress"},
		Filters:         []string{"workflows", "branches", "branches-ignore"},
	},
}
