package prompt

import (
	_ "embed"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
)

//go:embed grammar.txt
var grammarText string

// grammar is grammar.txt, read: rules by name. Names in lower case are fragments,
// of which a request is a sequence; the others are parts of fragments.
type grammar struct {
	rules     map[string]*rule
	fragments []*rule
	lex       *lexicon
}

type rule struct {
	name string
	cost int
	body []*pattern // alternatives
}

type op uint8

const (
	opWord op = iota // one of the words
	opCategory
	opClass
	opRule
	opSequence
	opChoice
	opMaybe
	opMany
	opCapture
)

// pattern is a piece of a rule's right-hand side.
type pattern struct {
	op   op
	name string // word, category, class, rule or capture
	kids []*pattern
	rule *rule
	// begins is what the pattern can begin with; found when it is first asked for.
	begins *beginning
}

// beginning is what a pattern can begin with.
type beginning struct {
	nothing bool // it may be empty
	command bool
	words   map[string]bool
	classes []string
}

// node is what a fragment or a capture matched: tokens start to end, and the
// captures inside.
type node struct {
	name       string // of the capture or the fragment
	start, end int
	kids       []*node
}

// all are the captures of a name, in order.
func (n *node) all(name string) []*node {
	var out []*node
	if n == nil {
		return nil
	}
	for _, k := range n.kids {
		if k.name == name {
			out = append(out, k)
		}
	}
	return out
}

// get is the first capture of a name, or nil.
func (n *node) get(name string) *node {
	if n == nil {
		return nil
	}
	for _, k := range n.kids {
		if k.name == name {
			return k
		}
	}
	return nil
}

func (n *node) has(name string) bool { return n.get(name) != nil }

var theGrammar = sync.OnceValue(func() *grammar {
	lex := theLexicon()
	g, err := readGrammar(grammarText, lex)
	if err != nil {
		panic("grammar.txt: " + err.Error()) // it is compiled in, and tests read it
	}
	return g
})

var notation = regexp.MustCompile(`"[^"]*"|[()\[\]|]|[^\s()\[\]|]+`)

// readGrammar reads the notation that grammar.txt begins with.
func readGrammar(text string, lex *lexicon) (*grammar, error) {
	g := &grammar{rules: map[string]*rule{}, lex: lex}
	type pending struct {
		rule *rule
		text string
	}
	var todo []pending
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		switch {
		case trimmed == "" || strings.HasPrefix(trimmed, "# "):
		case line[0] != ' ' && line[0] != '\t':
			head, body, ok := strings.Cut(trimmed, " = ")
			if !ok {
				return nil, fmt.Errorf("no = in %q", trimmed)
			}
			r := &rule{cost: 10}
			if _, err := fmt.Sscanf(head, "%s %d", &r.name, &r.cost); err != nil {
				r.name, r.cost = head, 10
			}
			if g.rules[r.name] != nil {
				return nil, fmt.Errorf("%s is defined twice", r.name)
			}
			g.rules[r.name] = r
			if c := r.name[0]; c >= 'a' && c <= 'z' {
				g.fragments = append(g.fragments, r)
			}
			todo = append(todo, pending{r, body})
		case len(todo) == 0:
			return nil, fmt.Errorf("%q belongs to no rule", trimmed)
		default:
			todo[len(todo)-1].text += "\n" + trimmed
		}
	}
	for _, p := range todo {
		r := &reading{g: g, tokens: notation.FindAllString(p.text, -1)}
		choice, err := r.choice()
		if err == nil && r.at < len(r.tokens) {
			err = fmt.Errorf("%q is too much", r.tokens[r.at])
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.rule.name, err)
		}
		p.rule.body = []*pattern{choice}
	}
	for _, r := range g.rules {
		g.settle(r.body[0])
	}
	return g, nil
}

type reading struct {
	g      *grammar
	tokens []string
	at     int
}

func (r *reading) peek() string {
	if r.at < len(r.tokens) {
		return r.tokens[r.at]
	}
	return ""
}

func (r *reading) choice() (*pattern, error) {
	out := &pattern{op: opChoice}
	for {
		s, err := r.sequence()
		if err != nil {
			return nil, err
		}
		out.kids = append(out.kids, s)
		if r.peek() != "|" {
			break
		}
		r.at++
	}
	if len(out.kids) == 1 {
		return out.kids[0], nil
	}
	return out, nil
}

func (r *reading) sequence() (*pattern, error) {
	out := &pattern{op: opSequence}
	for {
		switch r.peek() {
		case "", "|", ")", "]":
			if len(out.kids) == 0 {
				return nil, fmt.Errorf("an empty alternative before %q", r.peek())
			}
			return out, nil
		}
		p, err := r.element()
		if err != nil {
			return nil, err
		}
		out.kids = append(out.kids, p)
	}
}

func (r *reading) element() (*pattern, error) {
	t := r.peek()
	r.at++
	var p *pattern
	closing := map[string]string{"(": ")", "[": "]"}
	name, isCapture := strings.CutSuffix(t, ":")
	switch {
	case closing[t] != "":
		inner, err := r.choice()
		if err != nil {
			return nil, err
		}
		if r.peek() != closing[t] {
			return nil, fmt.Errorf("%s has no %s", t, closing[t])
		}
		r.at++
		p = inner
		if t == "[" {
			p = &pattern{op: opMaybe, kids: []*pattern{inner}}
		}
	case isCapture && name != "" && t[0] != '"':
		inner, err := r.element()
		if err != nil {
			return nil, err
		}
		return &pattern{op: opCapture, name: name, kids: []*pattern{inner}}, nil
	default:
		if i := strings.IndexByte(t, ':'); i > 0 && i < len(t)-1 && t[0] != '"' {
			r.at--
			r.tokens[r.at] = t[i+1:]
			inner, err := r.element()
			if err != nil {
				return nil, err
			}
			return &pattern{op: opCapture, name: t[:i], kids: []*pattern{inner}}, nil
		}
		many := ""
		if len(t) > 1 && (strings.HasSuffix(t, "*") || strings.HasSuffix(t, "+")) && (t[0] == '$' || t[0] >= 'A' && t[0] <= 'Z') {
			t, many = t[:len(t)-1], t[len(t)-1:]
		}
		switch c := t[0]; {
		case c == '"':
			p = &pattern{op: opWord, name: strings.ReplaceAll(strings.Trim(t, `"`), `\n`, "\n")}
		case c == '$':
			if r.g.lex.categories[t[1:]] == nil {
				return nil, fmt.Errorf("there is no category %s", t)
			}
			p = &pattern{op: opCategory, name: t[1:]}
		case c == '#':
			if classes[t[1:]] == nil {
				return nil, fmt.Errorf("there is no class %s", t)
			}
			p = &pattern{op: opClass, name: t[1:]}
		case c >= 'A' && c <= 'Z':
			if t != "CMD" && r.g.rules[t] == nil {
				return nil, fmt.Errorf("there is no rule %s", t)
			}
			p = &pattern{op: opRule, name: t, rule: r.g.rules[t]}
		default:
			p = &pattern{op: opWord, name: t}
			r.g.lex.words[t] = true
		}
		if many != "" {
			r.tokens = slices.Insert(r.tokens, r.at, many)
		}
	}
	switch r.peek() {
	case "*":
		r.at++
		p = &pattern{op: opMaybe, kids: []*pattern{{op: opMany, kids: []*pattern{p}}}}
	case "+":
		r.at++
		p = &pattern{op: opMany, kids: []*pattern{p}}
	}
	return p, nil
}

// match is one way in which a pattern covers tokens: up to end, with captures.
type match struct {
	end, cost int
	kids      *capture
}

// capture is a list of captures, the last one first, shared between matches.
type capture struct {
	node *node
	prev *capture
}

// chart holds what has been found: for every rule and place, all the ways in
// which the rule covers tokens from there, the cheapest for each end.
type chart struct {
	g      *grammar
	src    string
	ts     []token
	inputs map[string]bool // names that the request declares as inputs
	memo   map[cell][]match
	looks  map[classAt]bool
	cmds   map[int][]span
}

type cell struct {
	rule *rule
	at   int
}

func (c *chart) rule(r *rule, at int) []match {
	key := cell{r, at}
	if m, ok := c.memo[key]; ok {
		return m
	}
	c.memo[key] = nil // a rule that begins with itself finds nothing there
	m := c.match(r.body[0], at)
	c.memo[key] = m
	return m
}

// match finds all ways of p from at on, at most one for each end.
func (c *chart) match(p *pattern, at int) []match {
	if p.op >= opRule && !c.mayBegin(p, at) {
		if p.begins.nothing {
			return []match{{end: at}}
		}
		return nil
	}
	switch p.op {
	case opWord:
		if at < len(c.ts) && c.ts[at].kind != literal && c.ts[at].kind != code && c.ts[at].word == p.name {
			return []match{{end: at + 1}}
		}
	case opCategory:
		if at < len(c.ts) && c.ts[at].kind == word && c.g.lex.is(p.name, c.ts[at].word) {
			return []match{{end: at + 1}}
		}
	case opClass:
		if at < len(c.ts) && c.isClass(p.name, at) {
			return []match{{end: at + 1}}
		}
	case opRule:
		if p.rule == nil { // CMD
			var out []match
			for _, s := range c.commands(at) {
				out = append(out, match{end: s.end, cost: s.cost})
			}
			return out
		}
		return c.rule(p.rule, at)
	case opSequence:
		out := []match{{end: at}}
		for _, k := range p.kids {
			var next []match
			for _, m := range out {
				for _, n := range c.match(k, m.end) {
					next = put(next, match{n.end, m.cost + n.cost, join(m.kids, n.kids)})
				}
			}
			if out = next; len(out) == 0 {
				return nil
			}
		}
		return out
	case opChoice:
		var out []match
		for _, k := range p.kids {
			for _, m := range c.match(k, at) {
				out = put(out, m)
			}
		}
		return out
	case opMaybe:
		return put(slices.Clone(c.match(p.kids[0], at)), match{end: at})
	case opMany:
		out := slices.Clone(c.match(p.kids[0], at))
		for i := 0; i < len(out) && i < maxMany; i++ {
			if out[i].end == at {
				continue
			}
			for _, n := range c.match(p.kids[0], out[i].end) {
				if n.end > out[i].end {
					out = put(out, match{n.end, out[i].cost + n.cost, join(out[i].kids, n.kids)})
				}
			}
		}
		return out
	case opCapture:
		var out []match
		for _, m := range c.match(p.kids[0], at) {
			out = append(out, match{m.end, m.cost, &capture{node: &node{name: p.name, start: at, end: m.end, kids: m.kids.list()}}})
		}
		return out
	}
	return nil
}

// beginningOf finds what p can begin with.
func (g *grammar) beginningOf(p *pattern) *beginning {
	if p.begins != nil {
		return p.begins
	}
	b := &beginning{words: map[string]bool{}}
	p.begins = b // a rule that begins with itself adds nothing
	take := func(k *pattern) bool {
		o := g.beginningOf(k)
		maps.Copy(b.words, o.words)
		for _, x := range o.classes {
			if !slices.Contains(b.classes, x) {
				b.classes = append(b.classes, x)
			}
		}
		b.command = b.command || o.command
		return o.nothing
	}
	switch p.op {
	case opWord:
		b.words[p.name] = true
	case opCategory:
		maps.Copy(b.words, g.lex.categories[p.name])
	case opClass:
		b.classes = []string{p.name}
	case opRule:
		if p.rule == nil {
			b.command = true
		} else {
			b.nothing = take(p.rule.body[0])
		}
	case opSequence:
		b.nothing = true
		for _, k := range p.kids {
			if !take(k) {
				b.nothing = false
				break
			}
		}
	case opChoice:
		for _, k := range p.kids {
			if take(k) {
				b.nothing = true
			}
		}
	case opMaybe:
		take(p.kids[0])
		b.nothing = true
	case opMany, opCapture:
		b.nothing = take(p.kids[0])
	}
	return b
}

// settle finds the beginnings of a pattern and of all its parts, so that a grammar
// is only read from then on.
func (g *grammar) settle(p *pattern) {
	g.beginningOf(p)
	for _, k := range p.kids {
		g.settle(k)
	}
}

// mayBegin says whether p can begin at a token.
func (c *chart) mayBegin(p *pattern, at int) bool {
	b := p.begins
	if at >= len(c.ts) {
		return false
	}
	t := c.ts[at]
	if t.kind != literal && t.kind != code && b.words[t.word] {
		return true
	}
	for _, x := range b.classes {
		if c.isClass(x, at) {
			return true
		}
	}
	return b.command && len(c.commands(at)) > 0
}

// isClass says whether a token is of a class.
func (c *chart) isClass(name string, at int) bool {
	key := classAt{name, at}
	v, ok := c.looks[key]
	if !ok {
		v = classes[name](c, c.ts[at])
		c.looks[key] = v
	}
	return v
}

type classAt struct {
	name string
	at   int
}

func put(ms []match, m match) []match {
	for i := range ms {
		if ms[i].end == m.end {
			if m.cost < ms[i].cost {
				ms[i] = m
			}
			return ms
		}
	}
	return append(ms, m)
}

func join(a, b *capture) *capture {
	if b == nil {
		return a
	}
	if a == nil {
		return b
	}
	return &capture{node: b.node, prev: join(a, b.prev)}
}

func (c *capture) list() []*node {
	var out []*node
	for ; c != nil; c = c.prev {
		out = append(out, c.node)
	}
	slices.Reverse(out)
	return out
}

// maxMany bounds how often something is repeated in one fragment.
const maxMany = 24

// unknownCost is what a word costs that no fragment covers: more than any way
// of covering it.
const unknownCost = 1000

// cover finds the cheapest sequence of fragments over all tokens. Tokens that no
// fragment covers come out as fragments named "?".
func (c *chart) cover() []*node {
	type step struct {
		cost int
		from int
		node *node
	}
	best := make([]step, len(c.ts)+1)
	for i := 1; i <= len(c.ts); i++ {
		best[i].cost = 1 << 30
	}
	for i := range c.ts {
		here := best[i].cost
		for _, r := range c.g.fragments {
			for _, m := range c.rule(r, i) {
				if m.end == i || standing[r.name] != nil && !standing[r.name](c, i, m.end) || empty[r.name] && c.hides(i, m.end) ||
					cutting[r.name] && c.cuts(i, m.end) || places[r.name] && c.environment(r.name, i, m.end) {
					continue
				}
				if cost := here + r.cost + m.cost; cost < best[m.end].cost {
					best[m.end] = step{cost, i, &node{name: r.name, start: i, end: m.end, kids: m.kids.list()}}
				}
			}
		}
		if cost := here + unknownCost; cost < best[i+1].cost {
			best[i+1] = step{cost, i, &node{name: "?", start: i, end: i + 1}}
		}
	}
	var out []*node
	for i := len(c.ts); i > 0; i = best[i].from {
		out = append(out, best[i].node)
	}
	slices.Reverse(out)
	return out
}

// empty are fragments that mean nothing: what to run is never said in them.
var empty = set("filler lead lead2 title title2 title3 title4 heading runs runs2 runs3 polite torun flaky mind nothing everywhere sure gloss tool.is")

// places are fragments about branches.
var places = set("onlyon noton onpush onpush.bare on.label")

// environment says whether what may be a branch is where something is deployed to:
// "in production" is no branch, "on pushes to production" is one.
// "Push to production" where a command stands is no event either.
func (c *chart) environment(name string, from, to int) bool {
	found := name == "onpush.bare" && c.ts[from].word == "push" && c.begins(from) && to > from+2 && deployedTo[c.ts[to-1].word]
	if found {
		return true
	}
	for i := from; i < to; i++ {
		w := c.ts[i].word
		if strings.HasPrefix(w, "push") || strings.HasPrefix(w, "merg") || strings.HasPrefix(w, "commit") || strings.HasPrefix(w, "branch") || w == "pr" {
			return false
		}
		found = found || i > from && deployedTo[w] && (c.ts[i-1].word == "in" || c.ts[i-1].word == "to" || c.ts[i-1].word == "into")
	}
	return found
}

var deployedTo = set("production prod staging preview live qa uat sandbox")

// surely says whether a command begins at a token, beyond doubt.
func (c *chart) surely(at int) bool {
	for _, s := range c.commands(at) {
		if s.cost <= 1 {
			return true
		}
	}
	return false
}

// apart says whether tokens stand between separators.
func (c *chart) apart(from, to int) bool {
	if to == len(c.ts) {
		return c.begins(from)
	}
	next := c.ts[to]
	return c.begins(from) && (next.kind == punct && next.text != ":" || next.word == "and" || next.word == "then" || next.word == "for")
}

// standing says of fragments where they may stand.
var standing = map[string]func(c *chart, from, to int) bool{
	"aside": func(c *chart, from, to int) bool {
		clause := from == 0 || c.ts[from-1].kind == punct && c.ts[from-1].text != "," && c.ts[from-1].text != "("
		switch c.ts[from].word {
		case "because", "since", "so", "as", "which":
			clause = true
		}
		return clause && (to == len(c.ts) || c.ts[to].kind == punct && c.ts[to].text != "(" && c.ts[to].text != "->") && to > from+1 && !c.hides(from, to)
	},
	"aside.for": func(c *chart, from, to int) bool {
		ends := to == len(c.ts) || c.ts[to].kind == punct && c.ts[to].text != "(" || c.ts[to].word == "with" || c.ts[to].word == "using"
		return from > 0 && !c.hides(from, to) && ends
	},
	"title3":       func(_ *chart, from, _ int) bool { return from == 0 },
	"onpush.bare":  func(c *chart, from, to int) bool { return !c.bareWord(from, to) },
	"purpose.bare": (*chart).apart,
	"does":         func(c *chart, from, _ int) bool { return !c.begins(from) || !c.surely(from) },
	"login.any":    func(c *chart, _, _ int) bool { return pushed.MatchString(c.src) },
	"command.label": func(c *chart, from, _ int) bool {
		return from == 0 || c.begins(from) || c.ts[from-1].word == "parallel"
	},
	"command.by": func(c *chart, from, _ int) bool { return c.begins(from) || c.g.lex.is("filler", c.ts[from-1].word) },
	"title4.step": func(c *chart, from, to int) bool { // "- unit: make unit"
		start := from == 0 || c.ts[from-1].kind == bullet || c.ts[from-1].text == "\n"
		return start && to < len(c.ts) && c.surely(to)
	},
}

// verbs are names of events that are verbs, and more often so.
var verbs = set("push pushes commit commits comment comments release tag tags merge merges update updates issue")

// bareWord says whether a word that may be an event stands in the middle of a clause,
// where it is a verb or a noun: "build and push on tags".
func (c *chart) bareWord(from, to int) bool {
	if to != from+1 || to == len(c.ts) || !verbs[c.ts[from].word] {
		return false
	}
	next := c.ts[to]
	return next.kind != punct && next.word != "and" && next.word != "or" && next.word != "only"
}

// cutting are fragments that end with names of programs, and must not take a
// command's first word for one: "cache node_modules, npm ci".
var cutting = set("cache cache.use tool tool.is title title2 title3 lead2 version container service")

// cuts says whether a command that begins among tokens goes on behind them.
func (c *chart) cuts(from, to int) bool {
	for i := max(from+1, to-2); i < to; i++ {
		if p := c.ts[i-1]; p.kind != punct && p.word != "and" && p.word != "then" {
			continue
		}
		for _, s := range c.commands(i) {
			if s.end > to && s.cost == 0 {
				return true
			}
		}
	}
	return false
}

// hides says whether a command stands among tokens.
func (c *chart) hides(from, to int) bool {
	for i := from; i < to; i++ {
		for _, s := range c.commands(i) {
			if s.end > i+1 {
				return true
			}
		}
	}
	return false
}

// newChart cuts a request into tokens and mends their typing errors.
func newChart(g *grammar, request string) *chart {
	c := &chart{g: g, src: request, ts: tokenize(request), inputs: map[string]bool{}, memo: map[cell][]match{}, looks: map[classAt]bool{},
		cmds: map[int][]span{}}
	mend(c.ts, g.lex)
	for i := 0; i+3 < len(c.ts); i++ { // "if and only if"
		if c.ts[i].word == "if" && c.ts[i+1].word == "and" && c.ts[i+2].word == "only" && c.ts[i+3].word == "if" {
			c.ts = slices.Delete(c.ts, i, i+2)
		}
	}
	c.declare()
	return c
}

// declare notes which names the request gives to inputs, so that the rest of it
// may speak of them.
func (c *chart) declare() {
	for i := range c.ts {
		for _, m := range c.rule(c.g.rules["input"], i) {
			for _, k := range m.kids.list() {
				c.declareIn(k)
			}
		}
	}
	clear(c.looks)
	clear(c.memo) // what was found before the names were known
}

func (c *chart) declareIn(n *node) {
	if n.name == "n" && n.end == n.start+1 {
		c.inputs[c.ts[n.start].text] = true
	}
	for _, k := range n.kids {
		c.declareIn(k)
	}
}

// text is what a node covers, as it was written.
func (c *chart) text(n *node) string {
	if n == nil || n.start >= n.end {
		return ""
	}
	return c.src[c.ts[n.start].start:c.ts[n.end-1].end]
}
