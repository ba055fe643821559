package expr

import "slices"

// Truth says what an expression comes to as a condition, as far as that follows
// from what is known. env holds what is; known says of a context, by the constant
// keys after it as [Expr.Uses] gives them, whether env tells what is there. A
// function that env does not have is not known. sure is false where the result
// hangs on something that is not known, or is an error.
//
// Of && and || one operand can settle the whole: `runner.os == 'Windows' &&
// steps.x.outputs.y` is false on Linux, whatever the step says.
func (e *Expr) Truth(env *Env, known func(context string, path []string) bool) (yes, sure bool) {
	if e == nil || e.root == nil {
		return false, true
	}
	if env == nil {
		env = &Env{}
	}
	return e.truth(e.root, env, known)
}

func (e *Expr) truth(n *node, env *Env, known func(string, []string) bool) (yes, sure bool) {
	switch n.op {
	case opNot:
		yes, sure = e.truth(n.args[0], env, known)
		return !yes, sure
	case opAnd, opOr:
		settles := n.op == opOr
		sure = true
		for _, a := range n.args {
			y, s := e.truth(a, env, known)
			if s && y == settles {
				return settles, true
			}
			sure = sure && s
		}
		return !settles, sure
	}
	part := &Expr{src: e.src, root: n}
	sure = true
	part.Uses(func(context string, path []string) { sure = sure && known(context, path) })
	if !sure || asksElse(n, env) {
		return false, false
	}
	v, err := part.Eval(env)
	return v.Truthy(), err == nil
}

// asksElse reports whether n calls a function that neither env nor the language has.
func asksElse(n *node, env *Env) bool {
	if n.op == opCall && n.builtin < 0 && env.Functions[n.lower] == nil {
		return true
	}
	return slices.ContainsFunc(n.args, func(a *node) bool { return asksElse(a, env) })
}
