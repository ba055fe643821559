package expr

import (
	"fmt"
	"math"
	"strings"
)

// Default limits of an evaluation.
const (
	DefaultMaxMemory = 10 << 20  // GitHub's limit on what a job's templates make
	DefaultMaxWork   = 256 << 20 // about a second
)

// Func is a function that an [Env] provides. Its error becomes the message of an
// evaluation error.
type Func func(args []Value) (Value, error)

// Env is what an expression is evaluated in. It is only read.
type Env struct {
	Contexts  *Map            // by name; a context that is not there is null
	Functions map[string]Func // by lower-case name: success, failure, always, cancelled, hashfiles

	// MaxMemory bounds the bytes that intermediate results take, counted as
	// GitHub counts: two for each character and some for each value.
	// 0 is DefaultMaxMemory.
	MaxMemory int
	// MaxWork bounds the values and bytes looked at. 0 is DefaultMaxWork.
	MaxWork int
}

const (
	msgMemory = "The maximum allowed memory size was exceeded"
	msgWork   = "The maximum allowed amount of work was exceeded"
)

// fault is why an evaluation failed, in GitHub's words.
type fault string

func (f fault) Error() string { return string(f) }

func faultf(format string, args ...any) error { return fault(fmt.Sprintf(format, args...)) }

const (
	errMemory = fault(msgMemory)
	errWork   = fault(msgWork)
)

// Eval evaluates the expression. Operands are evaluated from left to right and
// only when needed. The error is an *[Error] of kind Evaluation. A nil env is one
// without contexts.
func (e *Expr) Eval(env *Env) (Value, error) {
	if e == nil || e.root == nil {
		return Null(), nil
	}
	if env == nil {
		env = &Env{}
	}
	ev := evaluator{env: env, memory: env.MaxMemory, work: env.MaxWork, deepest: -1}
	if ev.memory == 0 {
		ev.memory = DefaultMaxMemory
	}
	ev.memory = min(ev.memory, math.MaxInt32)
	if ev.work == 0 {
		ev.work = DefaultMaxWork
	}
	v, err := ev.eval(e.root, 0)
	if err != nil {
		at := ev.failed
		if at == nil {
			at = e.root
		}
		return Value{}, &Error{Kind: Evaluation, Pos: units(e.src[:at.pos]) + 1, Msg: err.Error(), Token: at.name, Expr: e.src, Err: err}
	}
	return v, nil
}

// evaluator is one evaluation. Memory is counted by level of the tree: the result
// of a node stays counted until a node above it has a result of known size.
type evaluator struct {
	env     *Env
	memory  int
	work    int
	total   int
	deepest int
	levels  [MaxDepth + 2]int32 // bytes; memory limits are below 2 GiB
	failed  *node
}

const (
	sizeObject  = 24
	sizeString  = 26
	sizePointer = 8
)

func textSize(s string) int { return sizeString + 2*units(s) }

func (ev *evaluator) account(level, bytes int, trim bool) error {
	if trim {
		for ev.deepest > level {
			ev.total -= int(ev.levels[ev.deepest])
			ev.levels[ev.deepest] = 0
			ev.deepest--
		}
	}
	ev.deepest = max(ev.deepest, level)
	ev.total += bytes
	if ev.total > ev.memory {
		return errMemory
	}
	ev.levels[level] += int32(bytes)
	return nil
}

func (ev *evaluator) spend(n int) error {
	ev.work -= n
	if ev.work < 0 {
		return errWork
	}
	return nil
}

func (ev *evaluator) eval(n *node, level int) (Value, error) {
	ev.work--
	if ev.work < 0 {
		ev.failed = n
		return Value{}, errWork
	}
	v, err := ev.node(n, level)
	if err == nil {
		bytes := sizeObject
		trim := v.kind < KindArray
		switch {
		case v.kind == KindString:
			if err = ev.spend(len(v.str) / 8); err == nil {
				bytes = textSize(v.str)
			}
		case v.kind == KindArray && v.arr.filtered && n.op == opIndex:
			bytes += sizePointer * len(v.arr.items)
		}
		if err == nil {
			err = ev.account(level, bytes, trim)
		}
	}
	if err != nil && ev.failed == nil {
		ev.failed = n
	}
	return v, err
}

func (ev *evaluator) node(n *node, level int) (Value, error) {
	switch n.op {
	case opLiteral:
		return n.val, nil
	case opContext:
		v, _ := ev.env.Contexts.Get(n.name)
		return v, nil
	case opWildcard:
		return String("*"), nil
	case opIndex:
		return ev.index(n, level)
	case opCall:
		return ev.call(n, level)
	case opAnd, opOr:
		var v Value
		for _, a := range n.args {
			var err error
			if v, err = ev.eval(a, level+1); err != nil {
				return v, err
			}
			if v.Truthy() == (n.op == opOr) {
				break
			}
		}
		return v, nil
	case opNot:
		v, err := ev.eval(n.args[0], level+1)
		return Bool(!v.Truthy()), err
	}
	a, err := ev.eval(n.args[0], level+1)
	if err != nil {
		return a, err
	}
	b, err := ev.eval(n.args[1], level+1)
	if err != nil {
		return b, err
	}
	if err := ev.spend(len(a.str) + len(b.str)); err != nil {
		return Value{}, err
	}
	switch n.op {
	case opEq:
		return Bool(Equal(a, b)), nil
	case opNe:
		return Bool(!Equal(a, b)), nil
	}
	cmp, ok := order(a, b)
	switch n.op {
	case opLt:
		ok = ok && cmp < 0
	case opGt:
		ok = ok && cmp > 0
	case opLe:
		ok = ok && cmp < 0 || Equal(a, b)
	case opGe:
		ok = ok && cmp > 0 || Equal(a, b)
	}
	return Bool(ok), nil
}

func (ev *evaluator) index(n *node, level int) (Value, error) {
	left, err := ev.eval(n.args[0], level+1)
	if err != nil {
		return left, err
	}
	by := n.args[1]
	if left.Primitive() {
		if by.op == opWildcard {
			return filteredArray(nil), nil
		}
		return Null(), nil
	}
	if by.op == opWildcard {
		return ev.all(left)
	}
	key, err := ev.eval(by, level+1)
	if err != nil {
		return key, err
	}
	if left.kind == KindArray && left.arr.filtered {
		var items []Value
		if err := ev.spend(len(left.arr.items)); err != nil {
			return Value{}, err
		}
		for _, e := range left.arr.items {
			if v, ok := member(e, key); ok {
				items = append(items, v)
			}
		}
		return filteredArray(items), nil
	}
	v, _ := member(left, key)
	return v, nil
}

// all is what .* makes of a collection: its members, or the members of its
// members if it is a filtered array already.
func (ev *evaluator) all(v Value) (Value, error) {
	if v.kind == KindArray && v.arr.filtered {
		n := 0
		for _, e := range v.arr.items {
			n += len(members(e))
		}
		if err := ev.spend(n + len(v.arr.items)); err != nil {
			return Value{}, err
		}
		if n*sizePointer > ev.memory {
			return Value{}, errMemory
		}
		items := make([]Value, 0, n)
		for _, e := range v.arr.items {
			items = append(items, members(e)...)
		}
		return filteredArray(items), nil
	}
	items := members(v)
	if err := ev.spend(len(items)); err != nil {
		return Value{}, err
	}
	return filteredArray(items), nil
}

func members(v Value) []Value {
	switch v.kind {
	case KindArray:
		return v.arr.items
	case KindObject:
		return v.obj.vals
	}
	return nil
}

// member is the element of a collection under a key of any kind.
func member(v, key Value) (Value, bool) {
	switch v.kind {
	case KindObject:
		if key.Primitive() {
			return v.obj.Get(key.ToString())
		}
	case KindArray:
		f := math.Floor(key.ToNumber())
		if f >= 0 && f < float64(len(v.arr.items)) { // false for NaN
			return v.arr.items[int(f)], true
		}
	}
	return Value{}, false
}

func (ev *evaluator) call(n *node, level int) (Value, error) {
	if n.builtin >= 0 {
		return ev.builtin(n, level)
	}
	fn := ev.env.Functions[n.lower]
	if fn == nil {
		return Value{}, faultf("Unrecognized function: '%s'", n.name)
	}
	var args []Value
	for _, a := range n.args {
		v, err := ev.eval(a, level+1)
		if err != nil {
			return v, err
		}
		args = append(args, v)
	}
	return fn(args)
}

type builtin struct {
	FuncDef
	odd bool // takes an odd number of arguments
}

// builtins are the functions that may be called everywhere. What each does is in
// [evaluator.builtin].
var builtins = [...]builtin{
	bContains:   {FuncDef: FuncDef{"contains", 2, 2}},
	bEndsWith:   {FuncDef: FuncDef{"endsWith", 2, 2}},
	bFormat:     {FuncDef: FuncDef{"format", 1, 255}},
	bJoin:       {FuncDef: FuncDef{"join", 1, 2}},
	bStartsWith: {FuncDef: FuncDef{"startsWith", 2, 2}},
	bToJSON:     {FuncDef: FuncDef{"toJson", 1, 1}},
	bFromJSON:   {FuncDef: FuncDef{"fromJson", 1, 1}},
	bCase:       {FuncDef: FuncDef{"case", 3, math.MaxInt}, odd: true},
}

// Functions are the names of the functions that may be called everywhere.
func Functions() []string {
	var out []string
	for _, b := range builtins {
		out = append(out, b.Name)
	}
	return out
}

const (
	bContains = iota
	bEndsWith
	bFormat
	bJoin
	bStartsWith
	bToJSON
	bFromJSON
	bCase
)

func (ev *evaluator) builtin(n *node, level int) (Value, error) {
	switch n.builtin {
	case bContains:
		return contains(ev, n, level)
	case bEndsWith, bStartsWith:
		return affix(ev, n, level)
	case bFormat:
		return formatCall(ev, n, level)
	case bJoin:
		return join(ev, n, level)
	case bToJSON:
		return toJSON(ev, n, level)
	case bFromJSON:
		return fromJSON(ev, n, level)
	}
	return caseCall(ev, n, level)
}

// contains finds text in text, or a member equal to the second argument in an
// array. The second argument is not evaluated if the first can contain nothing.
func contains(ev *evaluator, n *node, level int) (Value, error) {
	a, err := ev.eval(n.args[0], level+1)
	if err != nil {
		return a, err
	}
	if !a.Primitive() && len(a.AsArray()) == 0 {
		return Bool(false), nil
	}
	b, err := ev.eval(n.args[1], level+1)
	if err != nil {
		return b, err
	}
	if a.Primitive() {
		if !b.Primitive() {
			return Bool(false), nil
		}
		if err := ev.spend(len(a.str) + len(b.str)); err != nil {
			return Value{}, err
		}
		return Bool(strings.Contains(fold(a.ToString()), fold(b.ToString()))), nil
	}
	for _, e := range a.AsArray() {
		if err := ev.spend(1 + len(e.str)); err != nil {
			return Value{}, err
		}
		if Equal(e, b) {
			return Bool(true), nil
		}
	}
	return Bool(false), nil
}

// affix is startsWith and endsWith.
func affix(ev *evaluator, n *node, level int) (Value, error) {
	a, err := ev.eval(n.args[0], level+1)
	if err != nil || !a.Primitive() {
		return Bool(false), err
	}
	b, err := ev.eval(n.args[1], level+1)
	if err != nil || !b.Primitive() {
		return Bool(false), err
	}
	if err := ev.spend(len(a.str) + len(b.str)); err != nil {
		return Value{}, err
	}
	has := strings.HasPrefix
	if n.builtin == bEndsWith {
		has = strings.HasSuffix
	}
	return Bool(has(fold(a.ToString()), fold(b.ToString()))), nil
}

func join(ev *evaluator, n *node, level int) (Value, error) {
	list, err := ev.eval(n.args[0], level+1)
	if err != nil {
		return list, err
	}
	items := list.AsArray()
	if len(items) == 0 {
		if list.Primitive() {
			return String(list.ToString()), nil
		}
		return String(""), nil
	}
	sep := ","
	if len(n.args) > 1 && len(items) > 1 {
		s, err := ev.eval(n.args[1], level+1)
		if err != nil {
			return s, err
		}
		if s.Primitive() {
			sep = s.ToString()
		}
	}
	var b strings.Builder
	size := 0
	for i, e := range items {
		if i > 0 {
			size += textSize(sep)
			b.WriteString(sep)
		}
		s := e.ToString()
		size += textSize(s)
		b.WriteString(s)
		if size > ev.memory {
			return Value{}, errMemory
		}
		if err := ev.spend(1 + len(s) + len(sep)); err != nil {
			return Value{}, err
		}
	}
	return String(b.String()), nil
}

func toJSON(ev *evaluator, n *node, level int) (Value, error) {
	v, err := ev.eval(n.args[0], level+1)
	if err != nil {
		return v, err
	}
	b, ok := appendIndented(nil, v, 0, ev.memory)
	if err := ev.spend(len(b)); err != nil {
		return Value{}, err
	}
	if !ok {
		return Value{}, errMemory
	}
	return String(string(b)), nil
}

func fromJSON(ev *evaluator, n *node, level int) (Value, error) {
	v, err := ev.eval(n.args[0], level+1)
	if err != nil {
		return v, err
	}
	s := v.ToString()
	if err := ev.spend(len(s)); err != nil {
		return Value{}, err
	}
	if strings.TrimSpace(s) == "" {
		// GitHub's words, which people look for.
		return Value{}, fault("Error reading JToken from JsonReader. Path '', line 0, position 0.")
	}
	r, err := parseJSON(s, true)
	if err != nil {
		return Value{}, faultf("Error parsing fromJson: %v", err)
	}
	return r, nil
}

// caseCall evaluates predicates until one is true and then only its result.
func caseCall(ev *evaluator, n *node, level int) (Value, error) {
	last := len(n.args) - 1
	for i := 0; i < last; i += 2 {
		p, err := ev.eval(n.args[i], level+1)
		if err != nil {
			return p, err
		}
		if p.kind != KindBool {
			return Value{}, fault("case predicate must evaluate to a boolean value")
		}
		if p.AsBool() {
			return ev.eval(n.args[i+1], level+1)
		}
	}
	return ev.eval(n.args[last], level+1)
}

// formatCall puts arguments into the places of a format: {0}, with {{ and }} for
// braces. An argument that no place names is not evaluated.
func formatCall(ev *evaluator, n *node, level int) (Value, error) {
	f, err := ev.eval(n.args[0], level+1)
	if err != nil {
		return f, err
	}
	pieces, err := parseFormat(f.ToString(), len(n.args)-1)
	if err != nil {
		return Value{}, err
	}
	args := make([]*Value, len(n.args)-1)
	var b strings.Builder
	size := 0
	for _, piece := range pieces {
		s := piece.text
		if piece.arg >= 0 {
			if args[piece.arg] == nil {
				v, err := ev.eval(n.args[1+piece.arg], level+1)
				if err != nil {
					return v, err
				}
				if v.kind != KindString {
					v = Value{kind: v.kind, str: v.ToString()}
				}
				args[piece.arg] = &v
			}
			v := args[piece.arg]
			if piece.spec != "" {
				return Value{}, faultf("The format specifiers '%s' are not valid for objects of type '%s'", piece.spec, v.kind)
			}
			s = v.str
		}
		if s == "" {
			continue
		}
		if size += textSize(s); size > ev.memory {
			return Value{}, errMemory
		}
		if err := ev.spend(len(s)); err != nil {
			return Value{}, err
		}
		b.WriteString(s)
	}
	return String(b.String()), nil
}

type formatPiece struct {
	text string
	arg  int // -1 for text
	spec string
}

func parseFormat(f string, args int) ([]formatPiece, error) {
	var pieces []formatPiece
	text := func(s string) {
		if s != "" {
			pieces = append(pieces, formatPiece{text: s, arg: -1})
		}
	}
	invalid := func() error { return faultf("The following format string is invalid: %s", f) }
	for rest := f; rest != ""; {
		i := strings.IndexAny(rest, "{}")
		if i < 0 {
			text(rest)
			break
		}
		if i+1 < len(rest) && rest[i+1] == rest[i] {
			text(rest[:i+1])
			rest = rest[i+2:]
			continue
		}
		if rest[i] == '}' {
			return nil, invalid()
		}
		j := i + 1
		arg := 0
		for ; j < len(rest) && isDigit(rest[j]); j++ {
			if arg = arg*10 + int(rest[j]-'0'); arg > 255 {
				return nil, invalid()
			}
		}
		if j == i+1 || j == len(rest) {
			return nil, invalid()
		}
		spec := ""
		if rest[j] == ':' {
			var b strings.Builder
			for j++; ; j++ {
				if j >= len(rest) {
					return nil, invalid()
				}
				if rest[j] == '}' {
					if j+1 >= len(rest) || rest[j+1] != '}' {
						break
					}
					j++
				}
				b.WriteByte(rest[j])
			}
			spec = b.String()
		} else if rest[j] != '}' {
			return nil, invalid()
		}
		if arg >= args {
			return nil, faultf("The following format string references more arguments than were supplied: %s", f)
		}
		text(rest[:i])
		pieces = append(pieces, formatPiece{arg: arg, spec: spec})
		rest = rest[j+1:]
	}
	return pieces, nil
}
