// Package expr is the expression language of GitHub Actions: what stands
// between ${{ and }}, and the text around it.
//
// # The way of an expression
//
//	source ──lexer──▶ tokens ──Parse──▶ Expr (immutable tree) ──Eval(Env)──▶ Value
//	string with ${{ }} ──ParseTemplate──▶ Template (a literal, or one Expr)
//
// [Parse] does what GitHub does when it reads a workflow: it checks the syntax,
// that every context and function is allowed at that place ([Allow]), the number
// of arguments, the length and the depth. [Expr.Eval] does what GitHub does when
// it runs one: lazily, left to right, with JavaScript-like coercion, text
// compared without regard to case. A tree is never changed after Parse, so one
// Expr may be evaluated by many goroutines at once.
//
// # Exactness
//
// The semantics are those of GitHub's own libraries, down to the corners: text
// becomes a number by the rules of JavaScript's Number (0x, 0o, exponents, empty
// text is 0, anything else NaN); numbers become text with 15 significant digits;
// objects and arrays are equal only to themselves; a.* and a[*] make a filtered
// array, and an index put to a filtered array goes to each of its members, those
// without it dropping out. Case is folded rune by rune to upper case, as .NET's
// OrdinalIgnoreCase does, with the dotless i left alone. Errors are worded as
// GitHub words them and count positions as GitHub does, in UTF-16 units from 1.
//
// # Limits
//
// An expression comes from a file that a stranger may have written, and its
// contexts from an event that a stranger may have caused. Nothing here hangs or
// grows without bound: the source is at most [MaxLength] units and the tree at
// most [MaxDepth] deep, both GitHub's limits; an evaluation stops when the memory
// its intermediate results take passes [Env.MaxMemory], counted the way GitHub
// counts it, and when the work passes [Env.MaxWork], which is ours: GitHub kills
// the job instead. Matching is linear or bounded by the work limit, never
// exponential.
//
// # Values
//
// [Value] is one of null, boolean, number, string, array, object. It is passed by
// value and not changed once made. A [Map] keeps the order of insertion and finds
// its keys without regard to case, as every context of GitHub's does but one: env
// on Linux, for which there is [NewCaseSensitiveMap].
//
// The package imports nothing but the standard library and keeps no state.
package expr
