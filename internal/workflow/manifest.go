package workflow

// Contexts of an action's file, by the place of a key.
var (
	ctxActionInput = []string{"github", "strategy", "matrix", "job", "runner", "hashFiles(1,255)"}
	ctxActionValue = []string{"github", "strategy", "matrix", "steps", "inputs", "job", "runner", "env"}
	ctxActionStep  = []string{"github", "inputs", "strategy", "matrix", "steps", "job", "runner", "env", "hashFiles(1,255)"}
	ctxActionIf    = []string{"github", "inputs", "strategy", "matrix", "steps", "job", "runner", "env", "always(0,0)", "failure(0,0)", "cancelled(0,0)",
		"success(0,0)", "hashFiles(1,255)"}
)

// actionSchema is the schema of action.yml. As on GitHub, keys beside those that
// mean something are allowed at the top, in inputs and in outputs.
var actionSchema = &Schema{root: actionRoot()}

func actionRoot() *def {
	loose := func(ps ...prop) *def {
		d := keys(ps...)
		d.looseKey, d.looseVal = nonEmpty(), anything()
		return d
	}
	env := table(nonEmpty(), text())
	input := loose(
		key("default", with(oneOf(text(), null()), ctxActionInput...)),
		key("required", oneOf(boolean(), text())),
		key("deprecationMessage", text()),
		key("description", text()))
	output := loose(
		key("description", text()),
		key("value", with(text(), ctxActionValue...)))
	stepText := func() *def { return with(text(), ctxActionStep...) }
	common := []prop{
		key("name", stepText()),
		key("id", nonEmpty()),
		key("if", with(oneOf(text(), boolean()), ctxActionIf...)),
		key("env", with(env, ctxActionStep...)),
		key("continue-on-error", with(boolean(), ctxActionStep...)),
	}
	step := oneOf(
		keys(append(common[:len(common):len(common)],
			must("run", stepText()),
			must("shell", with(nonEmpty(), ctxActionStep...)),
			key("working-directory", stepText()))...),
		keys(append(common[:len(common):len(common)],
			must("uses", nonEmpty()),
			key("with", with(table(nonEmpty(), text()), ctxActionStep...)))...))
	inputs := with(text(), "inputs")
	runs := oneOf(
		keys(must("using", nonEmpty()), must("steps", sequence(step))),
		keys(must("using", nonEmpty()), must("main", nonEmpty()),
			key("pre", nonEmpty()), key("pre-if", nonEmpty()), key("post", nonEmpty()), key("post-if", nonEmpty())),
		keys(must("using", nonEmpty()), must("image", nonEmpty()),
			key("args", sequence(inputs)), key("env", table(nonEmpty(), inputs)),
			key("entrypoint", nonEmpty()), key("pre-entrypoint", nonEmpty()), key("pre-if", nonEmpty()),
			key("post-entrypoint", nonEmpty()), key("post-if", nonEmpty())))
	return loose(
		key("name", text()),
		key("description", text()),
		key("inputs", oneOf(null(), table(nonEmpty(), oneOf(null(), input)))),
		key("outputs", oneOf(null(), table(nonEmpty(), oneOf(null(), output)))),
		must("runs", runs))
}

// ReadAction reads an action's file: its values, and the steps of a composite
// action. Everything wrong with it is reported at once.
func ReadAction(file string, src []byte, opt Options) (root *Value, steps []*Step, diags []Diagnostic) {
	opt = opt.withDefaults()
	r := newReader(file, src, opt)
	root = r.read(src, actionSchema)
	diags = r.diags
	if list := root.Get("runs").Get("steps"); list != nil {
		c := &converter{file: file, opt: opt, stepIf: ctxActionIf}
		steps = c.steps(list, &ids{}, false)
		diags = append(diags, c.diags...)
	}
	return root, steps, diags
}

// Condition reads a condition that stands outside of a step, as pre-if and
// post-if do; success() is implied unless a status function is called.
func Condition(file string, v *Value, contexts ...string) (*Value, []Diagnostic) {
	c := &converter{file: file}
	_, e := c.condition(v, contexts)
	return &Value{Kind: Expression, Pos: v.Pos, Str: v.Str, Expr: e}, c.diags
}
