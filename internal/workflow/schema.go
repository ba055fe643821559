package workflow

import "slices"

// A Schema says which keys, kinds of values, contexts and functions are allowed
// where. It is data; reader.go applies it to any file, so that workflows and
// action metadata are held to their rules by the same code.
type Schema struct{ root *def }

type defKind uint8

const (
	defNull defKind = iota
	defBool
	defNumber
	defString
	defSequence
	defMapping
	defOneOf
)

// def is one definition of a schema.
type def struct {
	kind defKind
	// allowed contexts and functions ("hashFiles(1,255)") are added to what the
	// surrounding definition allows.
	allowed []string

	constant string // defString: the only text allowed
	nonEmpty bool   // defString
	item     *def   // defSequence
	props    []prop // defMapping
	looseKey *def   // defMapping: nil when only props are allowed
	looseVal *def
	lenient  bool // what is unknown is worth advice, not an error (see [lenient])
	blank    bool // GitHub overlooks that there is no value
	oneOf    []*def
}

type prop struct {
	name     string
	def      *def
	required bool
}

func (d *def) prop(name string) *prop {
	for i := range d.props {
		if d.props[i].name == name {
			return &d.props[i]
		}
	}
	return nil
}

// scalars lists the scalar definitions d stands for.
func (d *def) scalars() []*def {
	switch d.kind {
	case defNull, defBool, defNumber, defString:
		return []*def{d}
	case defOneOf:
		var out []*def
		for _, o := range d.oneOf {
			out = append(out, o.scalars()...)
		}
		return out
	}
	return nil
}

// ofKind lists the definitions of the kind d stands for.
func (d *def) ofKind(k defKind) []*def {
	if d.kind == k {
		return []*def{d}
	}
	var out []*def
	if d.kind == defOneOf {
		for _, o := range d.oneOf {
			out = append(out, o.ofKind(k)...)
		}
	}
	return out
}

// matches reports whether a literal fits a scalar definition as it is.
func (d *def) matches(v *Value) bool {
	switch d.kind {
	case defNull:
		return v.Kind == Null
	case defBool:
		return v.Kind == Bool
	case defNumber:
		return v.Kind == Number
	case defString:
		switch {
		case v.Kind != String:
			return false
		case d.constant != "":
			return v.Str == d.constant
		case d.nonEmpty:
			return v.Str != ""
		}
		return true
	}
	return false
}

// The constructors below make schemas readable.

func text() *def              { return &def{kind: defString} }
func nonEmpty() *def          { return &def{kind: defString, nonEmpty: true} }
func boolean() *def           { return &def{kind: defBool} }
func number() *def            { return &def{kind: defNumber} }
func null() *def              { return &def{kind: defNull} }
func word(s string) *def      { return &def{kind: defString, constant: s} }
func sequence(item *def) *def { return &def{kind: defSequence, item: item} }
func oneOf(ds ...*def) *def   { return &def{kind: defOneOf, oneOf: ds} }
func keys(ps ...prop) *def    { return &def{kind: defMapping, props: ps} }
func table(key, val *def) *def {
	return &def{kind: defMapping, looseKey: key, looseVal: val}
}
func key(name string, d *def) prop { return prop{name: name, def: d} }
func must(name string, d *def) prop {
	return prop{name: name, def: d, required: true}
}

func words(ss ...string) *def {
	d := &def{kind: defOneOf}
	for _, s := range ss {
		d.oneOf = append(d.oneOf, word(s))
	}
	return d
}

// with returns a copy of d in which the contexts and functions may be used, in
// the notation of [expr.NewAllow].
func with(d *def, allowed ...string) *def {
	c := *d
	c.allowed = append(slices.Clip(c.allowed), allowed...)
	return &c
}

// anything allows every value.
func anything() *def {
	d := &def{kind: defOneOf}
	d.oneOf = []*def{null(), boolean(), number(), text(), sequence(d), table(text(), d)}
	return d
}

// Contexts by the place of a key: what is known when it is evaluated.
var (
	ctxRun      = []string{"github", "inputs", "vars"}
	ctxJob      = []string{"github", "inputs", "vars", "needs"}
	ctxStrategy = []string{"github", "inputs", "vars", "needs", "strategy", "matrix"}
	ctxRunner   = []string{"github", "inputs", "vars", "needs", "strategy", "matrix", "secrets", "steps", "job", "runner", "env"}
	ctxSteps    = []string{"github", "inputs", "vars", "needs", "strategy", "matrix", "secrets", "steps", "job", "runner", "env", "hashFiles(1,255)"}
	ctxJobIf    = []string{"github", "inputs", "vars", "needs", "always(0,0)", "failure(0,MAX)", "cancelled(0,0)", "success(0,MAX)"}
	ctxStepIf   = []string{"github", "inputs", "vars", "needs", "strategy", "matrix", "steps", "job", "runner", "env", "always(0,0)", "failure(0,0)",
		"cancelled(0,0)", "success(0,0)", "hashFiles(1,255)"}
)

// workflowSchema is the schema of workflow files: GitHub's language as of late
// 2026.
var workflowSchema = &Schema{root: workflowRoot()}

func workflowRoot() *def {
	env := table(nonEmpty(), text())
	shellDefaults := keys(key("shell", nonEmpty()), key("working-directory", nonEmpty()))
	concurrency := keys(
		must("group", nonEmpty()),
		key("cancel-in-progress", boolean()),
		key("queue", words("single", "max")))
	return keys(
		must("on", events()),
		key("name", text()),
		key("description", text()),
		key("run-name", with(text(), ctxRun...)),
		key("defaults", keys(key("run", shellDefaults))),
		key("env", with(env, "github", "inputs", "vars", "secrets")),
		key("permissions", permissions()),
		key("cache-mode", cacheMode()),
		key("concurrency", with(oneOf(text(), concurrency), ctxRun...)),
		must("jobs", table(nonEmpty(), job(env, shellDefaults, concurrency))))
}

func cacheMode() *def { return words("read", "write", "write-only", "none") }

func permissions() *def {
	level := words("read", "write", "none")
	readOnly := words("read", "none")
	writeOnly := words("write", "none")
	return oneOf(
		keys(
			key("actions", level),
			key("artifact-metadata", level),
			key("attestations", level),
			key("checks", level),
			key("code-quality", level),
			key("contents", level),
			key("copilot-requests", writeOnly),
			key("deployments", level),
			key("discussions", level),
			key("drives", level),
			key("id-token", writeOnly),
			key("issues", level),
			key("models", readOnly),
			key("packages", level),
			key("pages", level),
			key("pull-requests", level),
			key("repository-projects", level),
			key("security-events", level),
			key("statuses", level),
			key("vulnerability-alerts", readOnly),
			key("workflows", writeOnly)),
		word("read-all"),
		word("write-all"))
}

func job(env, shellDefaults, concurrency *def) *def {
	needs := oneOf(sequence(nonEmpty()), nonEmpty())
	name := with(text(), ctxStrategy...)
	jobIf := with(text(), ctxJobIf...)
	jobConcurrency := with(oneOf(nonEmpty(), concurrency), ctxStrategy...)
	filter := sequence(table(nonEmpty(), anything()))
	matrix := &def{
		kind:     defMapping,
		props:    []prop{key("include", filter), key("exclude", filter)},
		looseKey: nonEmpty(),
		looseVal: sequence(anything()),
	}
	strategy := with(keys(
		key("fail-fast", boolean()),
		key("max-parallel", number()),
		key("matrix", matrix)), ctxJob...)
	labels := oneOf(nonEmpty(), sequence(nonEmpty()))
	runsOn := with(oneOf(nonEmpty(), sequence(nonEmpty()),
		keys(key("group", nonEmpty()), key("labels", labels))), ctxStrategy...)
	containerKeys := []prop{
		key("image", nonEmpty()),
		key("options", text()),
		key("env", table(nonEmpty(), with(text(), ctxRunner...))),
		key("ports", sequence(nonEmpty())),
		key("volumes", sequence(nonEmpty())),
		key("credentials", with(keys(key("username", nonEmpty()), key("password", nonEmpty())),
			"github", "inputs", "vars", "secrets", "env")),
	}
	container := with(oneOf(text(), keys(containerKeys...)), ctxStrategy...)
	service := with(oneOf(nonEmpty(), keys(append(slices.Clip(containerKeys),
		key("entrypoint", text()),
		key("command", text()))...)), ctxStrategy...)
	environment := with(oneOf(text(), keys(
		must("name", with(text(), ctxStrategy...)),
		key("url", with(text(), "github", "inputs", "vars", "needs", "strategy", "matrix", "steps", "job", "runner", "env")),
		key("deployment", boolean()))), ctxStrategy...)
	snapshot := oneOf(nonEmpty(), keys(
		must("image-name", nonEmpty()),
		key("if", with(text(), ctxStrategy...)),
		key("version", nonEmpty())))
	inputValue := oneOf(text(), boolean(), number())

	return oneOf(
		keys(
			key("needs", needs),
			key("if", jobIf),
			key("strategy", strategy),
			key("name", name),
			must("runs-on", runsOn),
			key("timeout-minutes", with(number(), ctxStrategy...)),
			key("cancel-timeout-minutes", with(number(), ctxStrategy...)),
			key("continue-on-error", with(boolean(), ctxStrategy...)),
			key("container", container),
			key("services", with(table(nonEmpty(), service), ctxStrategy...)),
			key("env", with(env, "github", "inputs", "vars", "needs", "strategy", "matrix", "secrets")),
			key("environment", environment),
			key("permissions", permissions()),
			key("cache-mode", cacheMode()),
			key("concurrency", jobConcurrency),
			key("outputs", table(nonEmpty(), with(text(), ctxRunner...))),
			key("defaults", keys(key("run", with(shellDefaults, "github", "inputs", "vars", "strategy", "matrix", "needs", "env")))),
			key("steps", sequence(step(env))),
			key("snapshot", snapshot)),
		keys(
			key("name", name),
			must("uses", nonEmpty()),
			key("with", table(nonEmpty(), with(inputValue, ctxStrategy...))),
			key("secrets", oneOf(
				table(nonEmpty(), with(inputValue, "github", "inputs", "vars", "needs", "secrets", "strategy", "matrix")),
				word("inherit"))),
			key("needs", needs),
			key("if", jobIf),
			key("permissions", permissions()),
			key("cache-mode", cacheMode()),
			key("concurrency", jobConcurrency),
			key("strategy", strategy)))
}

func step(env *def) *def {
	steps := func(d *def) *def { return with(d, ctxSteps...) }
	common := []prop{
		key("name", steps(text())),
		key("id", nonEmpty()),
		key("continue-on-error", steps(boolean())),
	}
	running := append(slices.Clip(common),
		key("if", with(text(), ctxStepIf...)),
		key("timeout-minutes", steps(number())),
		key("env", steps(env)),
		key("background", boolean()))
	parallel := sequence(nil)
	item := oneOf(
		keys(append(slices.Clip(running),
			must("run", steps(text())),
			key("working-directory", steps(text())),
			key("shell", nonEmpty()))...),
		keys(append(slices.Clip(running),
			must("uses", nonEmpty()),
			key("with", steps(table(nonEmpty(), text()))))...),
		keys(append(slices.Clip(common), must("wait", oneOf(nonEmpty(), sequence(nonEmpty()))))...),
		keys(append(slices.Clip(common), must("wait-all", oneOf(null(), boolean())))...),
		keys(append(slices.Clip(common), must("cancel", nonEmpty()))...),
		keys(must("parallel", parallel)))
	parallel.item = item
	return item
}
