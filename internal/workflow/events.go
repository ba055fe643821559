package workflow

// This file describes `on:` for the reader: which events exist, and which keys
// and activity types each takes. Whether a happening runs a workflow is decided
// elsewhere (trigger.go).

// eventDef is one event as `on:` takes it.
type eventDef struct {
	name  string
	types []string // activity types it may be narrowed to; nil: none
	// filters are the further keys: branches, tags, paths, … The name "paths"
	// stands for itself and for paths-ignore, where the event has both.
	filters []string
}

func pullRequestTypes() []string {
	return []string{"assigned", "unassigned", "labeled", "unlabeled", "opened", "edited", "closed", "reopened",
		"synchronize", "converted_to_draft", "locked", "unlocked", "enqueued", "dequeued", "milestoned", "demilestoned",
		"ready_for_review", "review_requested", "review_request_removed", "auto_merge_enabled", "auto_merge_disabled", "stacked"}
}

// eventDefs lists all events but schedule, workflow_call and workflow_dispatch,
// which have forms of their own, and repository_dispatch, whose types are free.
func eventDefs() []eventDef {
	changed := []string{"created", "edited", "deleted"}
	branches := []string{"branches", "branches-ignore"}
	paths := []string{"paths", "paths-ignore"}
	all := func(lists ...[]string) []string {
		var out []string
		for _, l := range lists {
			out = append(out, l...)
		}
		return out
	}
	return []eventDef{
		{name: "branch_protection_rule", types: changed},
		{name: "check_run", types: []string{"completed", "created", "rerequested", "requested_action"}},
		{name: "check_suite", types: []string{"completed"}},
		{name: "create"},
		{name: "delete"},
		{name: "deployment"},
		{name: "deployment_status"},
		{name: "discussion", types: []string{"created", "edited", "deleted", "transferred", "pinned", "unpinned", "labeled",
			"unlabeled", "locked", "unlocked", "category_changed", "answered", "unanswered"}},
		{name: "discussion_comment", types: changed},
		{name: "fork"},
		{name: "gollum"},
		{name: "image_version", types: []string{"created", "ready", "deleted"}, filters: []string{"names", "versions"}},
		{name: "issue_comment", types: changed},
		{name: "issues", types: []string{"opened", "edited", "deleted", "transferred", "pinned", "unpinned", "closed", "reopened",
			"assigned", "unassigned", "labeled", "unlabeled", "locked", "unlocked", "milestoned", "demilestoned",
			"field_added", "field_removed", "typed", "untyped"}},
		{name: "label", types: changed},
		{name: "merge_group", types: []string{"checks_requested"}, filters: branches},
		{name: "milestone", types: []string{"created", "closed", "opened", "edited", "deleted"}},
		{name: "page_build"},
		{name: "project", types: []string{"created", "closed", "reopened", "edited", "deleted"}},
		{name: "project_card", types: []string{"created", "moved", "converted", "edited", "deleted"}},
		{name: "project_column", types: []string{"created", "updated", "moved", "deleted"}},
		{name: "public"},
		{name: "pull_request", types: pullRequestTypes(), filters: all(branches, paths)},
		{name: "pull_request_comment", types: changed},
		{name: "pull_request_review", types: []string{"submitted", "edited", "dismissed"}},
		{name: "pull_request_review_comment", types: changed},
		{name: "pull_request_target", types: pullRequestTypes(), filters: all(branches, paths)},
		{name: "push", filters: all(branches, []string{"tags", "tags-ignore"}, paths)},
		{name: "registry_package", types: []string{"published", "updated"}},
		{name: "release", types: []string{"published", "unpublished", "created", "edited", "deleted", "prereleased", "released"}},
		{name: "status"},
		{name: "watch", types: []string{"started"}},
		{name: "workflow_run", types: []string{"requested", "completed", "in_progress"}, filters: all([]string{"workflows"}, branches)},
	}
}

// events is the schema of `on:`. GitHub refuses an event that it does not know;
// keys and activity types that an event does not have it overlooks, and workflows
// with such keys run every day: what is overlooked is advice.
func events() *def {
	list := oneOf(nonEmpty(), sequence(nonEmpty()))
	filter := oneOf(nonEmpty(), sequence(nonEmpty()))
	filter.blank = true // `branches:` and nothing more filters nothing
	var ps []prop
	var names []string
	for _, e := range eventDefs() {
		names = append(names, e.name)
		var ks []prop
		if e.types != nil {
			typ := lenient(words(e.types...))
			ks = append(ks, key("types", oneOf(typ, sequence(typ))))
		}
		for _, f := range e.filters {
			ks = append(ks, key(f, filter))
		}
		ps = append(ps, key(e.name, oneOf(null(), lenient(keys(ks...)))))
	}
	names = append(names, "repository_dispatch", "schedule", "workflow_call", "workflow_dispatch")
	ps = append(ps,
		key("repository_dispatch", oneOf(null(), lenient(keys(key("types", list))))),
		key("schedule", sequence(keys(must("cron", nonEmpty()), key("timezone", nonEmpty())))),
		key("workflow_call", oneOf(null(), keys(
			key("inputs", table(nonEmpty(), keys(
				key("description", text()),
				must("type", words("string", "boolean", "number")),
				key("required", boolean()),
				key("default", with(oneOf(text(), boolean(), number()), ctxRun...)),
				key("deprecationMessage", text())))),
			key("secrets", table(nonEmpty(), oneOf(null(), keys(
				key("description", text()),
				key("required", boolean()))))),
			key("outputs", table(nonEmpty(), keys(
				key("description", text()),
				must("value", with(text(), "github", "inputs", "vars", "jobs"))))))),
		),
		key("workflow_dispatch", oneOf(null(), lenient(keys(
			key("inputs", oneOf(null(), table(nonEmpty(), oneOf(null(), lenient(keys(
				key("description", text()),
				key("type", words("string", "boolean", "number", "environment", "choice")),
				key("required", boolean()),
				key("default", oneOf(text(), boolean(), number())),
				key("options", sequence(text())),
				key("deprecationMessage", text()))))))))))))
	mapping := keys(ps...)
	return oneOf(words(names...), sequence(words(names...)), mapping)
}

// lenient marks a mapping whose unknown keys, and a choice of words beside which
// other words, GitHub overlooks.
func lenient(d *def) *def {
	d.lenient = true
	return d
}
