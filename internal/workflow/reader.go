package workflow

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/hearth-ci/hearth/internal/expr"
)

// GitHub's limits on one workflow.
const (
	maxFileSize   = 1 << 20
	maxDepth      = 50
	maxNodes      = 50_000
	maxResultSize = 10 << 20
	maxJobs       = 1_000

	// Limits of ours: who has more mistakes than this has other worries.
	maxDiagnostics  = 1_000 // of a file
	maxInExpression = 20    // of one value
)

func (o Options) withDefaults() Options {
	set := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	set(&o.MaxBytes, maxFileSize)
	set(&o.MaxDepth, maxDepth)
	set(&o.MaxNodes, maxNodes)
	set(&o.MaxResultSize, maxResultSize)
	set(&o.MaxJobs, maxJobs)
	set(&o.MaxCallDepth, maxCallDepth)
	return o
}

// Read holds a YAML file to a schema and returns its root with expressions
// recognised. All problems are reported at once; where one is, the Value holds
// what could be understood. The root is nil when nothing could.
func Read(file string, src []byte, schema *Schema, opt Options) (*Value, []Diagnostic) {
	opt = opt.withDefaults()
	r := newReader(file, src, opt)
	return r.read(src, schema), r.diags
}

func newReader(file string, src []byte, opt Options) *reader {
	return &reader{file: file, opt: opt, src: src, allows: map[allowKey]*allow{}, nodes: 3}
}

// reader applies a schema to YAML nodes. Its memory and node counts are GitHub's,
// so that what is too large there is too large here.
type reader struct {
	file   string
	src    []byte
	opt    Options
	diags  []Diagnostic
	allows map[allowKey]*allow
	nodes  int
	depth  int
	bytes  int
	lines  []int // offsets of line starts, made when first needed
}

// allow is what may be used in expressions at some place.
type allow struct {
	names []string
	allow *expr.Allow
}

type allowKey struct {
	outer *allow
	def   *def
}

// within returns what d allows when it stands where outer applies.
func (r *reader) within(outer *allow, d *def) *allow {
	if len(d.allowed) == 0 {
		return outer
	}
	k := allowKey{outer, d}
	if a := r.allows[k]; a != nil {
		return a
	}
	names := slices.Clone(outer.names)
	for _, n := range d.allowed {
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	a := &allow{names, expr.NewAllow(names...)}
	r.allows[k] = a
	return a
}

func (r *reader) read(src []byte, schema *Schema) *Value {
	if len(src) > r.opt.MaxBytes && utf8.RuneCount(src) > r.opt.MaxBytes {
		r.report(Diagnostic{Rule: "limit",
			Message: fmt.Sprintf("The maximum file size of %d characters has been exceeded", r.opt.MaxBytes)})
		return nil
	}
	r.bytes += textBytes(r.file)
	root, diag := loadYAML(r.file, src)
	if diag != nil {
		r.diags = append(r.diags, *diag)
		return nil
	}
	none := &allow{allow: &expr.Allow{}}
	v, err := r.value(root, schema.root, r.within(none, schema.root))
	if err != nil {
		d := Diagnostic{Rule: "limit", Message: err.Error()}
		if s, ok := errors.AsType[*stop](err); ok {
			d.Near, d.Rule, d.Hint = s.near, s.rule, s.hint
		}
		r.report(d)
		return nil
	}
	return v
}

// stop ends the reading of a file. GitHub names only the file then.
type stop struct {
	near Pos
	rule string
	msg  string
	hint string
}

func (s *stop) Error() string { return s.msg }

// full reports whether enough was said about the file.
func (r *reader) full() bool { return len(r.diags) > maxDiagnostics }

func (r *reader) report(d Diagnostic) {
	if r.full() {
		return
	}
	if len(r.diags) == maxDiagnostics && d.Rule != "limit" {
		d = Diagnostic{Pos: d.Pos, Rule: "limit", Message: fmt.Sprintf("There are more than %d problems in this file", maxDiagnostics)}
	}
	d.File = r.file
	if d.Near.IsZero() {
		d.Near = d.Pos
	}
	r.diags = append(r.diags, d)
}

func (r *reader) errorAt(p Pos, rule, msg, hint string) {
	r.report(Diagnostic{Pos: p, Rule: rule, Message: msg, Hint: hint})
}

// Sizes as GitHub estimates them.
const (
	objectBytes = 24
	stringBytes = 26
)

func textBytes(s string) int {
	n := 0
	for _, c := range s {
		n += 2
		if c > 0xffff {
			n += 2
		}
	}
	return stringBytes + n
}

func (r *reader) charge(v *Value) error {
	n := objectBytes
	if v.Kind == String || v.Kind == Expression {
		n += textBytes(v.Str)
	}
	return r.chargeBytes(n, v.Pos)
}

func (r *reader) chargeBytes(n int, near Pos) error {
	r.bytes += n
	if r.bytes > r.opt.MaxResultSize {
		return &stop{near: near, rule: "limit", msg: "Maximum object size exceeded"}
	}
	return nil
}

func (r *reader) visit(n *yaml.Node, events int) error {
	r.nodes += events
	if r.nodes > r.opt.MaxNodes {
		return &stop{near: Pos{n.Line, n.Column}, rule: "limit", msg: "Maximum YAML nodes exceeded"}
	}
	return nil
}

// follow resolves aliases. The anchored node's own position is what GitHub names.
func follow(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	return n
}

func (r *reader) literal(n *yaml.Node) (*Value, error) {
	if err := r.visit(n, 1); err != nil {
		return nil, err
	}
	v, problem := scalar(n)
	if problem != "" {
		stop := &stop{near: Pos{n.Line, n.Column}, rule: "yaml-tag", msg: problem}
		if strings.HasPrefix(n.Tag, "!") && !strings.HasPrefix(n.Tag, "!!") {
			stop.hint = "A value that begins with ! is a tag for YAML: quote it, or put it into ${{ }}."
		}
		return nil, stop
	}
	return v, nil
}

func (r *reader) enter(n *yaml.Node) error {
	if r.depth >= r.opt.MaxDepth {
		return &stop{near: Pos{n.Line, n.Column}, rule: "limit", msg: "Maximum object depth exceeded"}
	}
	r.depth++
	return r.visit(n, 2)
}

// value reads one node by its definition.
func (r *reader) value(n *yaml.Node, d *def, a *allow) (*Value, error) {
	n = follow(n)
	switch n.Kind {
	case yaml.ScalarNode:
		v, err := r.literal(n)
		if err != nil {
			return nil, err
		}
		v = r.expressions(v, n, a)
		v = r.check(v, d, a)
		return v, r.charge(v)
	case yaml.SequenceNode:
		if err := r.enter(n); err != nil {
			return nil, err
		}
		defer func() { r.depth-- }()
		v := &Value{Kind: Sequence, Pos: Pos{n.Line, n.Column}}
		if err := r.charge(v); err != nil {
			return nil, err
		}
		seqs := d.ofKind(defSequence)
		if len(seqs) == 0 {
			v.bad = true
			r.errorAt(v.Pos, "unexpected-type", "A sequence was not expected", wanted(d))
			for _, c := range n.Content {
				if err := r.skip(c); err != nil {
					return nil, err
				}
			}
			return v, nil
		}
		item := seqs[0].item
		ia := r.within(a, item)
		for _, c := range n.Content {
			it, err := r.value(c, item, ia)
			if err != nil {
				return nil, err
			}
			v.Items = append(v.Items, it)
		}
		return v, nil
	case yaml.MappingNode:
		if err := r.enter(n); err != nil {
			return nil, err
		}
		defer func() { r.depth-- }()
		v := &Value{Kind: Mapping, Pos: Pos{n.Line, n.Column}}
		if err := r.charge(v); err != nil {
			return nil, err
		}
		maps := d.ofKind(defMapping)
		if len(maps) == 0 {
			v.bad = true
			r.errorAt(v.Pos, "unexpected-type", "A mapping was not expected", wanted(d))
			for _, c := range n.Content {
				if err := r.skip(c); err != nil {
					return nil, err
				}
			}
			return v, nil
		}
		return v, r.mapping(v, n, maps, a)
	}
	return nil, &stop{near: Pos{n.Line, n.Column}, rule: "unexpected-type", msg: "Expected a scalar value, a sequence, or a mapping"}
}

// skip passes over a value that has no meaning, keeping count.
func (r *reader) skip(n *yaml.Node) error {
	n = follow(n)
	switch n.Kind {
	case yaml.SequenceNode, yaml.MappingNode:
		if err := r.enter(n); err != nil {
			return err
		}
		defer func() { r.depth-- }()
		for _, c := range n.Content {
			if err := r.skip(c); err != nil {
				return err
			}
		}
		return nil
	}
	_, err := r.literal(n)
	return err
}

// mapping reads the entries of a mapping, narrowing the candidate definitions by
// each key that only some of them have.
func (r *reader) mapping(v *Value, n *yaml.Node, candidates []*def, a *allow) error {
	candidates = slices.Clone(candidates)
	loose := candidates[0]
	seen := map[string]Pos{}
	dynamic := false // an expression key: required keys may come from it
	for i := 0; i+1 < len(n.Content); i += 2 {
		kn, vn := follow(n.Content[i]), n.Content[i+1]
		if kn.Kind != yaml.ScalarNode {
			return &stop{near: Pos{kn.Line, kn.Column}, rule: "unexpected-type", msg: "Expected mapping end"}
		}
		k, err := r.literal(kn)
		if err != nil {
			return err
		}
		k = r.expressions(k, kn, a)
		if k.Kind == Expression || k.Kind == Insert {
			if len(a.names) == 0 {
				v.bad = true
				r.errorAt(k.Pos, "expression", "A template expression is not allowed in this context", "")
				if err := r.skip(vn); err != nil {
					return err
				}
				continue
			}
			dynamic = true
			if err := r.charge(k); err != nil {
				return err
			}
			vd := anyValue
			if len(loose.props) == 0 && len(candidates) == 1 && loose.looseVal != nil {
				vd = loose.looseVal
			}
			val, err := r.value(vn, vd, r.within(a, vd))
			if err != nil {
				return err
			}
			v.Pairs = append(v.Pairs, Pair{k, val})
			continue
		}
		if k.Kind != String {
			k = &Value{Kind: String, Pos: k.Pos, Str: k.literal().ToString(), bad: k.bad}
		}
		folded := strings.ToUpper(k.Str)
		if first, dup := seen[folded]; dup {
			v.bad = true
			r.errorAt(k.Pos, "duplicate-key", fmt.Sprintf("'%s' is already defined", k.Str),
				fmt.Sprintf("It was first defined on line %d; keys are compared without regard to case.", first.Line))
			if err := r.skip(vn); err != nil {
				return err
			}
			continue
		}
		seen[folded] = k.Pos

		var vd *def
		if candidates, vd = narrow(candidates, k.Str); vd == nil && loose.looseKey != nil {
			ka := r.within(a, loose.looseKey)
			r.check(k, loose.looseKey, ka)
			vd = loose.looseVal
		}
		if vd != nil && r.opt.noBackground && backgroundKey(k.Str) {
			vd = nil
		}
		if vd == nil {
			sev, hint := Error, ""
			if !r.full() {
				hint = keyHint(k.Str, candidates)
			}
			if candidates[0].lenient && !r.opt.StrictEvents {
				sev, hint = Advice, strings.TrimSpace("GitHub overlooks this key here. "+hint)
			} else {
				v.bad = true
			}
			r.report(Diagnostic{Pos: k.Pos, Severity: sev, Rule: "unexpected-key",
				Message: fmt.Sprintf("Unexpected value '%s'", k.Str), Hint: hint})
			if err := r.skip(vn); err != nil {
				return err
			}
			continue
		}
		if err := r.charge(k); err != nil {
			return err
		}
		val, err := r.value(vn, vd, r.within(a, vd))
		if err != nil {
			return err
		}
		v.Pairs = append(v.Pairs, Pair{k, val})
	}
	switch {
	case len(candidates) > 1:
		v.bad = true
		props := distinguishing(candidates, r.opt.listBackground)
		r.errorAt(v.Pos, "missing-key",
			"There's not enough info to determine what you meant. Add one of these properties: "+strings.Join(props, ", "), "")
	case !dynamic:
		for _, p := range candidates[0].props {
			if _, ok := seen[strings.ToUpper(p.name)]; p.required && !ok {
				v.bad = true
				r.errorAt(v.Pos, "missing-key", "Required property is missing: "+p.name,
					fmt.Sprintf("Add `%s:` to this mapping.", p.name))
			}
		}
	}
	return nil
}

var anyValue = anything()

// narrow finds the definition of a key and drops the candidates that do not know
// it, if any does.
func narrow(candidates []*def, name string) ([]*def, *def) {
	var found *def
	var left []*def
	for _, c := range candidates {
		if p := c.prop(name); p != nil {
			found = p.def
			left = append(left, c)
		}
	}
	if found == nil {
		return candidates, nil
	}
	return left, found
}

// distinguishing lists the keys that only one candidate has. Those of background
// steps are named only on request, as by GitHub.
func distinguishing(candidates []*def, background bool) []string {
	hits := map[string]int{}
	for _, c := range candidates {
		for _, p := range c.props {
			hits[p.name]++
		}
	}
	var out []string
	for name, n := range hits {
		if n == 1 && (background || !backgroundKey(name)) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func backgroundKey(name string) bool {
	switch name {
	case "background", "wait", "wait-all", "cancel":
		return true
	}
	return false
}

// check holds a scalar to the scalar definitions of d, turning it into text
// where only text is allowed.
func (r *reader) check(v *Value, d *def, a *allow) *Value {
	switch v.Kind {
	case Expression:
		if len(a.names) == 0 {
			v.bad = true
			r.errorAt(v.Pos, "expression", "A template expression is not allowed in this context", "Write the value itself; GitHub evaluates nothing here.")
		}
		return v
	case Insert:
		v.bad = true
		r.errorAt(v.Pos, "unexpected-value", "Unexpected value '${{ insert }}'", "`${{ insert }}` is a key whose value is a mapping.")
		return v
	}
	defs := d.scalars()
	fits := func(v *Value) bool {
		return slices.ContainsFunc(defs, func(s *def) bool { return s.matches(v) })
	}
	if fits(v) {
		return v
	}
	if v.Kind == Null && d.blank && !r.opt.StrictEvents {
		r.report(Diagnostic{Pos: v.Pos, Severity: Advice, Rule: "unexpected-value", Message: "There is no value here",
			Hint: "GitHub overlooks this key; write its value, or leave it out."})
		return v
	}
	if v.Kind != String {
		t := &Value{Kind: String, Pos: v.Pos, Str: v.literal().ToString(), bad: v.bad}
		if fits(t) {
			return t
		}
		v = t
	}
	diag := Diagnostic{Pos: v.Pos, Rule: "unexpected-value", Message: fmt.Sprintf("Unexpected value '%s'", v.Str)}
	if !r.full() {
		diag.Hint = valueHint(v.Str, d)
	}
	if r.opt.Placeholders && placeholder(v.Str) {
		diag.Severity, diag.Rule, diag.Message, diag.Hint = Advice, "placeholder", placeholderMessage(v.Str), ""
		r.report(diag)
		return &Value{Kind: Null, Pos: v.Pos, bad: true}
	}
	if r.overlooks(d, v) {
		diag.Severity = Advice
		r.report(diag)
		return v
	}
	bad := *v
	bad.bad = true
	r.report(diag)
	return &bad
}

// placeholder reports whether a text stands for what GitHub fills in when a
// starter workflow is chosen.
func placeholder(s string) bool {
	for _, p := range []string{"$cron-", "$codeql-", "$default-", "$detected-", "$protected-", "$supported-"} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

func placeholderMessage(s string) string {
	return fmt.Sprintf("'%s' is a placeholder of GitHub's starter workflows; put a value in its place", s)
}

// overlooks reports whether GitHub lets a text pass that is none of the words d
// lists. An empty one, and what is not text, it refuses.
func (r *reader) overlooks(d *def, v *Value) bool {
	if r.opt.StrictEvents || v.Str == "" {
		return false
	}
	if d.kind == defOneOf && !d.lenient {
		return slices.ContainsFunc(d.oneOf, func(o *def) bool { return r.overlooks(o, v) })
	}
	return d.lenient && d.kind == defOneOf
}

// expressions turns a string with ${{ }} into an Expression or Insert. A string
// with errors stays what it is.
func (r *reader) expressions(v *Value, n *yaml.Node, a *allow) *Value {
	if v.Kind != String || !expr.HasExpression(v.Str) {
		return v
	}
	t, err := expr.ParseTemplate(v.Str, a.allow)
	if err != nil {
		r.expressionErrors(v, err, a)
		return &Value{Kind: String, Pos: v.Pos, Str: v.Str, bad: true}
	}
	switch {
	case t.IsInsert():
		return &Value{Kind: Insert, Pos: v.Pos}
	case t.IsLiteral():
		return &Value{Kind: String, Pos: v.Pos, Str: t.Literal()}
	}
	return &Value{Kind: Expression, Pos: v.Pos, Str: t.Expr().Source(), Expr: t.Expr()}
}

// expressionErrors reports what is wrong with each ${{ }} of a string; whole is
// the error of the string as a whole.
func (r *reader) expressionErrors(v *Value, whole error, a *allow) {
	found := 0
	rest, k := v.Str, 0
	for found < maxInExpression && !r.full() {
		i := strings.Index(rest, "${{")
		if i < 0 {
			break
		}
		rest = rest[i:]
		k++
		end := closing(rest)
		if end < 0 {
			end = len(rest)
		}
		if _, err := expr.ParseTemplate(rest[:end], a.allow); err != nil {
			found++
			r.report(Diagnostic{Pos: v.Pos, Near: r.nth(v.Pos, k), Rule: "expression",
				Message: err.Error(), Hint: exprHint(err, a)})
		}
		rest = rest[end:]
	}
	if found == 0 {
		r.report(Diagnostic{Pos: v.Pos, Rule: "expression", Message: whole.Error(), Hint: exprHint(whole, a)})
	}
}

// closing is the offset behind the }} that ends the ${{ at the start of s.
func closing(s string) int {
	quoted := false
	for i := 3; i < len(s); i++ {
		switch {
		case s[i] == '\'':
			quoted = !quoted
		case !quoted && s[i] == '}' && s[i-1] == '}':
			return i + 1
		}
	}
	return -1
}

// nth finds the k-th ${{ of the source from p on: where an expression inside a
// long value stands. It is p when there is none.
func (r *reader) nth(p Pos, k int) Pos {
	off := r.offset(p)
	for off < len(r.src) {
		i := strings.Index(string(r.src[off:min(len(r.src), off+1<<16)]), "${{")
		if i < 0 {
			return p
		}
		off += i
		if k--; k == 0 {
			return posAt(r.src, off)
		}
		off += 3
	}
	return p
}

// offset is the byte offset of p in the source.
func (r *reader) offset(p Pos) int {
	if r.lines == nil {
		r.lines = []int{0}
		for i, c := range r.src {
			if c == '\n' {
				r.lines = append(r.lines, i+1)
			}
		}
	}
	if p.Line < 1 || p.Line > len(r.lines) {
		return len(r.src)
	}
	off := r.lines[p.Line-1]
	for col := 1; col < p.Col && off < len(r.src); col++ {
		_, n := utf8.DecodeRune(r.src[off:])
		off += n
	}
	return off
}
