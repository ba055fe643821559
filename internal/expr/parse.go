package expr

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// GitHub's limits on one expression.
const (
	MaxLength = 21000 // UTF-16 units of source
	MaxDepth  = 50    // levels of the tree
)

// ErrorKind says what was being done when an expression failed.
type ErrorKind uint8

// The kinds of error.
const (
	Lexing     ErrorKind = iota + 1 // the source has something that is no token
	Parsing                         // the tokens make no allowed expression
	Evaluation                      // a valid expression failed on its data
)

// String is the kind as GitHub's test data names it: lexing, parsing, evaluation.
func (k ErrorKind) String() string {
	switch k {
	case Lexing:
		return "lexing"
	case Parsing:
		return "parsing"
	case Evaluation:
		return "evaluation"
	}
	return "ErrorKind(" + strconv.Itoa(int(k)) + ")"
}

// Error is what is wrong with an expression or its evaluation.
type Error struct {
	Kind  ErrorKind
	Pos   int    // offset in Expr, from 1, in UTF-16 units; 0 if the whole is meant
	Msg   string // what is wrong: "Unexpected symbol"
	Token string // the text at Pos, empty if the whole is meant
	Expr  string // the expression
	Err   error  // what a function returned, for evaluation errors
}

// Error words the problem as GitHub does.
func (e *Error) Error() string {
	if e.Token == "" || e.Kind == Evaluation {
		return e.Msg
	}
	return fmt.Sprintf("%s: '%s'. Located at position %d within expression: %s", e.Msg, e.Token, e.Pos, e.Expr)
}

// Unwrap is the error that a function returned.
func (e *Error) Unwrap() error { return e.Err }

// FuncDef is a function that may be called at some place: its name and how many
// arguments it takes.
type FuncDef struct {
	Name     string
	Min, Max int
}

// Allow says which contexts and which functions beyond the built-in ones may be
// used at some place of a workflow. A nil *Allow allows all that GitHub knows.
type Allow struct {
	Contexts  []string
	Functions []FuncDef
}

// NewAllow makes an Allow of entries as GitHub's workflow schema writes them: a
// name is a context, "hashFiles(1,255)" a function with the least and the most
// arguments, where MAX means any number. It panics on anything else: the entries
// are part of the program.
func NewAllow(entries ...string) *Allow {
	a := &Allow{}
	for _, e := range entries {
		name, args, isFunc := strings.Cut(strings.TrimSuffix(e, ")"), "(")
		if !isFunc {
			a.Contexts = append(a.Contexts, e)
			continue
		}
		lo, hi, _ := strings.Cut(args, ",")
		def := FuncDef{Name: name, Max: math.MaxInt}
		var err error
		if def.Min, err = strconv.Atoi(lo); err == nil && hi != "MAX" {
			def.Max, err = strconv.Atoi(hi)
		}
		if err != nil {
			panic("expr: invalid allowance " + strconv.Quote(e))
		}
		a.Functions = append(a.Functions, def)
	}
	return a
}

// Context reports whether the context is allowed.
func (a *Allow) Context(name string) bool {
	known := knownContexts[:]
	if a != nil {
		known = a.Contexts
	}
	return slices.ContainsFunc(known, func(k string) bool { return equalFold(k, name) })
}

// Function is the definition of a function that is allowed, built in or not.
func (a *Allow) Function(name string) (FuncDef, bool) {
	for i := range builtins {
		if equalFold(builtins[i].Name, name) {
			return builtins[i].FuncDef, true
		}
	}
	known := knownFunctions[:]
	if a != nil {
		known = a.Functions
	}
	for _, f := range known {
		if equalFold(f.Name, name) {
			return f, true
		}
	}
	return FuncDef{}, false
}

// What GitHub knows somewhere in a workflow or an action.
var (
	knownContexts  = [...]string{"github", "inputs", "vars", "needs", "strategy", "matrix", "secrets", "steps", "job", "jobs", "runner", "env"}
	knownFunctions = [...]FuncDef{
		{"success", 0, math.MaxInt}, {"failure", 0, math.MaxInt},
		{"always", 0, 0}, {"cancelled", 0, 0}, {"hashFiles", 1, 255},
	}
)

// Expr is a parsed expression. It is immutable and safe for concurrent use. The
// zero Expr, like one of empty source, evaluates to null.
type Expr struct {
	src  string
	root *node
}

// Source is the text the expression was parsed from.
func (e *Expr) Source() string {
	if e == nil {
		return ""
	}
	return e.src
}

// String is the source.
func (e *Expr) String() string { return e.Source() }

// MarshalJSON writes the source as a JSON string.
func (e *Expr) MarshalJSON() ([]byte, error) { return appendQuoted(nil, e.Source()), nil }

// UnmarshalJSON parses a source that was checked before: every context and
// function is accepted.
func (e *Expr) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	r, err := parseAny(s)
	if err != nil {
		return err
	}
	*e = *r
	return nil
}

// Parse parses an expression without its ${{ }} and checks its names against
// allow. Empty source is valid and evaluates to null. The error is an *[Error].
func Parse(src string, allow *Allow) (*Expr, error) {
	p := parser{lexer: lexer{src: src}, allow: allow}
	return p.parse()
}

// parseAny parses without checking names.
func parseAny(src string) (*Expr, error) {
	p := parser{lexer: lexer{src: src}, anyName: true}
	return p.parse()
}

// op is what a node does.
type op uint8

const (
	opLiteral op = iota
	opContext
	opCall
	opIndex    // args: the indexed, the index
	opWildcard // as the index of opIndex
	opNot
	opAnd
	opOr
	opEq
	opNe
	opLt
	opLe
	opGt
	opGe
)

// node is one node of the tree. All are made by the parser and never changed.
type node struct {
	op      op
	prop    bool // an index written .name
	builtin int8 // opCall: index in builtins, -1 for one of the Env
	pos     int  // byte offset in the source
	val     Value
	name    string // opContext, opCall: as written
	lower   string // the same in lower case
	args    []*node
}

type tokenKind uint8

const (
	tokNone tokenKind = iota
	tokStartGroup
	tokStartIndex
	tokStartParameters
	tokEndGroup
	tokEndIndex
	tokEndParameters
	tokSeparator
	tokDereference
	tokWildcard
	tokOperator
	tokLiteral
	tokProperty
	tokFunction
	tokContext
	tokIllegal // no token at all
	tokMisplaced
)

type token struct {
	kind       tokenKind
	op         op
	start, end int
	val        Value
}

// follows[k] is the set of kinds after which a token of kind k is legal.
const (
	afterOperand = 1<<tokEndGroup | 1<<tokEndParameters | 1<<tokEndIndex | 1<<tokWildcard | 1<<tokProperty | 1<<tokContext
	afterValue   = afterOperand | 1<<tokLiteral
	afterOpening = 1<<tokNone | 1<<tokSeparator | 1<<tokStartGroup | 1<<tokStartParameters | 1<<tokStartIndex | 1<<tokOperator
)

var follows = [...]uint32{
	tokStartGroup:      afterOpening,
	tokStartIndex:      afterOperand,
	tokStartParameters: 1 << tokFunction,
	tokEndGroup:        afterValue,
	tokEndIndex:        afterValue,
	tokEndParameters:   afterValue | 1<<tokStartParameters,
	tokSeparator:       afterValue,
	tokDereference:     afterOperand,
	tokWildcard:        1<<tokStartIndex | 1<<tokDereference,
	tokOperator:        afterValue,
	tokLiteral:         afterOpening,
	tokProperty:        1 << tokDereference,
	tokFunction:        afterOpening,
	tokContext:         afterOpening,
}

// lexer cuts the source into tokens. What a token is depends on the one before.
type lexer struct {
	src  string
	pos  int
	last tokenKind
	open []tokenKind // opening tokens not closed yet
}

func (l *lexer) next() (token, bool) {
	for l.pos < len(l.src) {
		n := spaceLen(l.src[l.pos:])
		if n == 0 {
			break
		}
		l.pos += n
	}
	if l.pos >= len(l.src) {
		return token{}, false
	}
	t := l.scan()
	if t.kind != tokIllegal && !l.legal(t) {
		t.kind = tokMisplaced
	}
	l.last = t.kind
	return t, true
}

func (l *lexer) scan() token {
	start := l.pos
	one := func(k tokenKind) token {
		l.pos++
		return token{kind: k, start: start, end: l.pos}
	}
	switch c := l.src[l.pos]; c {
	case '(':
		if l.last == tokFunction {
			return one(tokStartParameters)
		}
		return one(tokStartGroup)
	case '[':
		return one(tokStartIndex)
	case ')':
		if n := len(l.open); n > 0 && l.open[n-1] == tokStartParameters {
			return one(tokEndParameters)
		}
		return one(tokEndGroup)
	case ']':
		return one(tokEndIndex)
	case ',':
		return one(tokSeparator)
	case '*':
		return one(tokWildcard)
	case '\'':
		return l.text()
	case '!', '>', '<', '=', '&', '|':
		return l.operator()
	case '.':
		if 1<<l.last&afterOpening != 0 {
			return l.number()
		}
		return one(tokDereference)
	default:
		if c == '-' || c == '+' || isDigit(c) {
			return l.number()
		}
		return l.keyword()
	}
}

// legal reports whether t may stand here, and tracks what is open.
func (l *lexer) legal(t token) bool {
	allowed := follows[t.kind]
	if t.kind == tokOperator && t.op == opNot {
		allowed = afterOpening
	}
	if 1<<l.last&allowed == 0 {
		return false
	}
	top := tokNone
	if n := len(l.open); n > 0 {
		top = l.open[n-1]
	}
	switch t.kind {
	case tokStartGroup, tokStartIndex, tokStartParameters:
		l.open = append(l.open, t.kind)
	case tokEndGroup, tokEndIndex, tokEndParameters:
		if top != t.kind-tokEndGroup+tokStartGroup {
			return false
		}
		l.open = l.open[:len(l.open)-1]
	case tokSeparator:
		return top == tokStartParameters
	}
	return true
}

func (l *lexer) number() token {
	start := l.pos
	for l.pos++; l.pos < len(l.src) && (l.src[l.pos] == '.' || !boundary(l.src[l.pos:])); {
		_, n := utf8.DecodeRuneInString(l.src[l.pos:])
		l.pos += n
	}
	t := token{kind: tokLiteral, start: start, end: l.pos}
	f := parseNumber(l.src[start:l.pos])
	if math.IsNaN(f) {
		t.kind = tokIllegal
	}
	t.val = Number(f)
	return t
}

func (l *lexer) keyword() token {
	start := l.pos
	for first := true; l.pos < len(l.src) && (first || !boundary(l.src[l.pos:])); first = false {
		_, n := utf8.DecodeRuneInString(l.src[l.pos:])
		l.pos += n
	}
	t := token{start: start, end: l.pos}
	word := l.src[start:l.pos]
	if !IsName(word) {
		t.kind = tokIllegal
		return t
	}
	if l.last == tokDereference {
		t.kind, t.val = tokProperty, String(word)
		return t
	}
	t.kind = tokLiteral
	switch word {
	case "null":
	case "true":
		t.val = Bool(true)
	case "false":
		t.val = Bool(false)
	case "NaN":
		t.val = Number(math.NaN())
	case "Infinity":
		t.val = Number(math.Inf(1))
	default:
		t.kind = tokContext
		ahead := l.src[l.pos:]
		for n := spaceLen(ahead); n > 0; n = spaceLen(ahead) {
			ahead = ahead[n:]
		}
		if strings.HasPrefix(ahead, "(") {
			t.kind = tokFunction
		}
	}
	return t
}

func (l *lexer) text() token {
	start := l.pos
	rest := l.src[start+1:]
	var b strings.Builder
	for escaped := false; ; escaped = true {
		n := strings.IndexByte(rest, '\'')
		if n < 0 {
			l.pos = len(l.src)
			return token{kind: tokIllegal, start: start, end: l.pos}
		}
		if n+1 == len(rest) || rest[n+1] != '\'' {
			l.pos = len(l.src) - len(rest) + n + 1
			s := rest[:n]
			if escaped {
				b.WriteString(s)
				s = b.String()
			}
			return token{kind: tokLiteral, start: start, end: l.pos, val: String(s)}
		}
		b.WriteString(rest[:n+1])
		rest = rest[n+2:]
	}
}

func (l *lexer) operator() token {
	start := l.pos
	t := token{kind: tokOperator, start: start}
	two := l.src[start:min(start+2, len(l.src))]
	l.pos += 2
	switch two {
	case "!=":
		t.op = opNe
	case "==":
		t.op = opEq
	case "<=":
		t.op = opLe
	case ">=":
		t.op = opGe
	case "&&":
		t.op = opAnd
	case "||":
		t.op = opOr
	default:
		l.pos = start + 1
		switch two[0] {
		case '!':
			t.op = opNot
		case '<':
			t.op = opLt
		case '>':
			t.op = opGt
		default:
			t.kind = tokIllegal
			for l.pos < len(l.src) && !boundary(l.src[l.pos:]) {
				_, n := utf8.DecodeRuneInString(l.src[l.pos:])
				l.pos += n
			}
		}
	}
	t.end = l.pos
	return t
}

// boundary reports whether s begins with something that ends a word.
func boundary(s string) bool {
	switch s[0] {
	case '(', '[', ')', ']', ',', '.', '!', '>', '<', '=', '&', '|':
		return true
	}
	return spaceLen(s) > 0
}

func spaceLen(s string) int {
	if s == "" {
		return 0
	}
	if c := s[0]; c < utf8.RuneSelf {
		if c == ' ' || c >= '\t' && c <= '\r' {
			return 1
		}
		return 0
	}
	if r, n := utf8.DecodeRuneInString(s); unicode.IsSpace(r) {
		return n
	}
	return 0
}

// IsName reports whether s can be written as a property, context or function
// name: a letter or underscore, then letters, digits, underscores and hyphens.
func IsName(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_':
		case i > 0 && (c == '-' || isDigit(c)):
		default:
			return false
		}
	}
	return s != ""
}

// parser is an operator-precedence parser with its stacks on the heap, so that
// no source, however nested, can exhaust the call stack. Errors come in the order
// in which GitHub's parser meets them.
type parser struct {
	lexer
	allow     *Allow
	anyName   bool
	operands  []*node
	operators []token
}

func (p *parser) fail(kind ErrorKind, msg string, t token) error {
	return &Error{Kind: kind, Pos: units(p.src[:t.start]) + 1, Msg: msg, Token: p.src[t.start:t.end], Expr: p.src}
}

func (p *parser) parse() (*Expr, error) {
	if len(p.src) > MaxLength && units(p.src) > MaxLength {
		return nil, &Error{Kind: Lexing, Msg: fmt.Sprintf("Exceeded max expression length %d", MaxLength), Expr: p.src}
	}
	var last token
	for {
		t, ok := p.next()
		if !ok {
			break
		}
		if err := p.push(t, last); err != nil {
			return nil, err
		}
		last = t
	}
	if last.kind == tokNone {
		return &Expr{src: p.src}, nil
	}
	if len(p.operators) > 0 {
		switch last.kind {
		case tokStartGroup, tokStartIndex, tokStartParameters, tokSeparator, tokDereference, tokOperator:
			return nil, p.fail(Parsing, "Unexpected end of expression", last)
		}
		if len(p.open) > 0 {
			return nil, p.fail(Parsing, "Unexpected end of expression", last)
		}
	}
	for len(p.operators) > 0 {
		p.reduce()
	}
	root := p.operands[0]
	if tooDeep(root, 1) {
		return nil, &Error{Kind: Parsing, Msg: fmt.Sprintf("Exceeded max expression depth %d", MaxDepth), Expr: p.src}
	}
	return &Expr{src: p.src, root: root}, nil
}

func tooDeep(n *node, depth int) bool {
	if depth > MaxDepth {
		return true
	}
	for _, a := range n.args {
		if tooDeep(a, depth+1) {
			return true
		}
	}
	return false
}

func (p *parser) push(t, last token) error {
	switch t.kind {
	case tokIllegal:
		return p.fail(Lexing, "Unexpected symbol", t)
	case tokMisplaced:
		return p.fail(Parsing, "Unexpected symbol", t)
	case tokLiteral, tokProperty:
		p.operand(&node{op: opLiteral, val: t.val, pos: t.start, prop: t.kind == tokProperty})
	case tokWildcard:
		p.operand(&node{op: opWildcard, pos: t.start})
	case tokContext:
		name := p.src[t.start:t.end]
		if !p.anyName && !p.allow.Context(name) {
			return p.fail(Parsing, "Unrecognized named-value", t)
		}
		p.operand(&node{op: opContext, name: name, lower: strings.ToLower(name), pos: t.start})
	case tokFunction:
		name := p.src[t.start:t.end]
		if _, ok := p.allow.Function(name); !ok && !p.anyName {
			return p.fail(Parsing, "Unrecognized function", t)
		}
		n := &node{op: opCall, name: name, lower: strings.ToLower(name), pos: t.start, builtin: -1}
		for i := range builtins {
			if equalFold(builtins[i].Name, name) {
				n.builtin = int8(i)
			}
		}
		p.operand(n)
	case tokStartGroup, tokStartParameters:
		p.operators = append(p.operators, t)
	case tokEndGroup:
		p.reduceTo(tokStartGroup)
		p.operators = p.operators[:len(p.operators)-1]
	case tokEndIndex:
		p.reduceTo(tokStartIndex)
		p.reduce()
	case tokEndParameters:
		return p.call(last)
	case tokSeparator:
		p.reduceAbove(1)
		p.operators = append(p.operators, t)
	case tokStartIndex, tokDereference:
		p.reduceAbove(precedence(t))
		p.operators = append(p.operators, t)
	case tokOperator:
		if t.op != opNot { // ! binds to its right
			p.reduceAbove(precedence(t))
		}
		p.operators = append(p.operators, t)
	}
	return nil
}

func (p *parser) operand(n *node) { p.operands = append(p.operands, n) }

func precedence(t token) int {
	switch t.kind {
	case tokStartIndex, tokDereference:
		return 19
	case tokOperator:
		switch t.op {
		case opNot:
			return 16
		case opLt, opLe, opGt, opGe:
			return 11
		case opEq, opNe:
			return 10
		case opAnd:
			return 6
		case opOr:
			return 5
		}
	}
	return 0
}

// reduceAbove applies the operators on the stack that bind at least as strongly.
func (p *parser) reduceAbove(prec int) {
	for n := len(p.operators); n > 0; n = len(p.operators) {
		top := p.operators[n-1]
		if top.kind != tokOperator && top.kind != tokDereference || precedence(top) < prec {
			return
		}
		p.reduce()
	}
}

// reduceTo applies operators until the top is of the kind.
func (p *parser) reduceTo(kind tokenKind) {
	for p.operators[len(p.operators)-1].kind != kind {
		p.reduce()
	}
}

// reduce applies the top operator to its operands.
func (p *parser) reduce() {
	t := p.operators[len(p.operators)-1]
	p.operators = p.operators[:len(p.operators)-1]
	count := 2
	n := &node{op: t.op, pos: t.start}
	switch t.kind {
	case tokStartIndex:
		n.op = opIndex
	case tokDereference:
		n.op, n.prop = opIndex, true
	default:
		if t.op == opNot {
			count = 1
		}
	}
	at := len(p.operands) - count
	args := p.operands[at:]
	if n.op == opAnd || n.op == opOr {
		// a && b && c is one node, as it counts once for the depth.
		if first := args[0]; first.op == n.op {
			n.args = first.args
		} else {
			n.args = append(n.args, first)
		}
		if second := args[1]; second.op == n.op {
			n.args = append(n.args, second.args...)
		} else {
			n.args = append(n.args, second)
		}
	} else {
		n.args = slices.Clone(args)
	}
	p.operands = append(p.operands[:at], n)
}

// call closes a function call: its arguments are the operands since the function.
func (p *parser) call(last token) error {
	p.reduceAbove(1)
	count := 0
	if last.kind != tokStartParameters {
		count = 1
	}
	for p.operators[len(p.operators)-1].kind == tokSeparator {
		count++
		p.operators = p.operators[:len(p.operators)-1]
	}
	at := len(p.operands) - count
	fn := p.operands[at-1]
	fn.args = slices.Clone(p.operands[at:])
	p.operands = p.operands[:at]
	open := p.operators[len(p.operators)-1]
	p.operators = p.operators[:len(p.operators)-1]
	def, known := p.allow.Function(fn.name)
	switch {
	case !known: // only where any name is accepted
	case count < def.Min:
		return p.fail(Parsing, "Too few parameters supplied", open)
	case count > def.Max:
		return p.fail(Parsing, "Too many parameters supplied", open)
	case fn.builtin >= 0 && builtins[fn.builtin].odd && count%2 == 0:
		// It is the one that names the function, and not its parenthesis.
		return p.fail(Parsing, "Even number of parameters supplied, requires an odd number of parameters", token{start: fn.pos, end: fn.pos + len(fn.name)})
	}
	return nil
}

// Uses calls fn for every place where the expression reads a context, in source
// order, with the context's name as written and the constant keys that follow it.
// A key that is not constant, and a wildcard, is given as "*".
func (e *Expr) Uses(fn func(context string, path []string)) {
	if e == nil || e.root == nil {
		return
	}
	var walk func(n *node, path []string)
	walk = func(n *node, path []string) {
		switch n.op {
		case opContext:
			fn(n.name, slices.Clone(path))
		case opIndex:
			key := "*"
			if k := n.args[1]; k.op == opLiteral && k.val.Primitive() {
				key = k.val.ToString()
			}
			walk(n.args[0], append([]string{key}, path...))
			walk(n.args[1], nil)
		default:
			for _, a := range n.args {
				walk(a, nil)
			}
		}
	}
	walk(e.root, nil)
}

// Calls are the names of the functions called, in lower case and source order.
func (e *Expr) Calls() []string {
	if e == nil || e.root == nil {
		return nil
	}
	var names []string
	var walk func(*node)
	walk = func(n *node) {
		if n.op == opCall {
			names = append(names, n.lower)
		}
		for _, a := range n.args {
			walk(a)
		}
	}
	walk(e.root)
	return names
}

// Constant reports whether the expression reads no context and calls no function
// but built-in ones, so that it always has the same result.
func (e *Expr) Constant() bool {
	if e == nil || e.root == nil {
		return true
	}
	var walk func(*node) bool
	walk = func(n *node) bool {
		if n.op == opContext || n.op == opCall && n.builtin < 0 {
			return false
		}
		return !slices.ContainsFunc(n.args, func(a *node) bool { return !walk(a) })
	}
	return walk(e.root)
}
