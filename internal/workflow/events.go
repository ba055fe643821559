package workflow

// This file describes `on:` for the reader: the keys that each event takes.
// Which events there are is said in trigger_events.go, and whether a happening
// runs a workflow is decided in trigger.go.

// events is the schema of `on:`. GitHub refuses an event that it does not know;
// keys and activity types that an event does not have it overlooks, and workflows
// with such keys run every day: what is overlooked is advice.
func events() *def {
	list := oneOf(nonEmpty(), sequence(nonEmpty()))
	filter := oneOf(nonEmpty(), sequence(nonEmpty()))
	filter.blank = true // `branches:` and nothing more filters nothing
	var ps []prop
	var names []string
	for _, e := range eventTable {
		if !e.Starts {
			continue
		}
		switch e.Name {
		case "repository_dispatch", "schedule", "workflow_call", "workflow_dispatch":
			continue // they have forms of their own, below
		}
		names = append(names, e.Name)
		var ks []prop
		if e.Types != nil {
			typ := lenient(words(e.Types...))
			ks = append(ks, key("types", oneOf(typ, sequence(typ))))
		}
		for _, f := range e.Filters {
			ks = append(ks, key(f, filter))
		}
		ps = append(ps, key(e.Name, oneOf(null(), lenient(keys(ks...)))))
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
