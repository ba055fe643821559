// Package graph is what the learner knows as nodes and edges: steps, commands,
// jobs, signatures, commits and fixes, and how often which came with, after or
// because of which.
//
// It is pure: no clock, no files, no goroutines; moments are passed in. An
// update is O(1) and leaves counters behind, never a record of one execution,
// so that memory is bounded by the number of different things, which is bounded
// in turn (see [Limits]). Counters decay with a half-life of thirty days, lazily,
// when they are touched or read.
//
// The questions it answers:
//
//   - [Graph.Related]: what else runs where this command runs, by discounted
//     pointwise mutual information.
//   - [Graph.Next]: what follows these commands, by trigrams with backoff.
//   - [Graph.Similar]: which failures are like this one, by personalised
//     PageRank over the edges.
//   - [Graph.FixedBy]: what ended this failure before.
//
// Beside it stand the normalised identity of a command ([Command]) and a term
// automaton ([Automaton]) that finds thousands of literals in one pass.
//
// A Graph is not safe for concurrent use; the learner guards it.
package graph

import (
	"cmp"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
)

// Kind of a node.
type Kind string

// The kinds of nodes. A node's ID is its kind, a colon, and what identifies it.
const (
	Repo      Kind = "repo"
	Workflow  Kind = "workflow"
	Job       Kind = "job"
	Step      Kind = "step"
	Cmd       Kind = "command"
	Image     Kind = "image"
	Action    Kind = "action"
	Signature Kind = "signature"
	Test      Kind = "test"
	Commit    Kind = "commit"
	pair      Kind = "pair" // two commands in a row: the context of a trigram
)

// Rel is the kind of an edge.
type Rel string

// The kinds of edges.
const (
	FollowedBy Rel = "followed-by"
	With       Rel = "with" // in the same job; both ways
	FailedWith Rel = "failed-with"
	FixedBy    Rel = "fixed-by"
	SameAs     Rel = "same-as"
	RanOn      Rel = "ran-on"
	CoFailed   Rel = "co-failed"
	PartOf     Rel = "part-of"
)

// ID makes a node's id.
func ID(k Kind, name string) string { return string(k) + ":" + name }

// Name is what an id says without its kind.
func Name(id string) string {
	_, name, _ := strings.Cut(id, ":")
	return name
}

// HalfLife of the counters, in milliseconds.
const HalfLife = 30 * 24 * 3600 * 1000

// Counter counts successes and failures that fade.
type Counter struct {
	OK, Failed float64
	Last       int64 // ms; when it was last touched
}

// At is the counter as it stands at a moment.
func (c Counter) At(now int64) Counter {
	if now > c.Last && c.Last != 0 {
		d := math.Exp2(-float64(now-c.Last) / HalfLife)
		c.OK *= d
		c.Failed *= d
	}
	c.Last = max(c.Last, now)
	return c
}

// Count is all that was counted.
func (c Counter) Count() float64 { return c.OK + c.Failed }

func (c *Counter) add(failed bool, now int64) {
	*c = c.At(now)
	if failed {
		c.Failed++
	} else {
		c.OK++
	}
}

// Node is a thing.
type Node struct {
	ID   string
	Text string // as it was last written, unnormalised
	Counter
	out []*Edge
	in  []*Edge
}

// Nodes are the nodes of a kind, in no order.
func (g *Graph) Nodes(k Kind) iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		for id, n := range g.nodes {
			if strings.HasPrefix(id, string(k)+":") && !yield(n) {
				return
			}
		}
	}
}

// Edge says how two things go together.
type Edge struct {
	Src string
	Rel Rel
	Dst string
	Counter
	dst *Node
	src *Node
}

// Limits bound a graph. Where one is reached, what is worth least, of a few taken at
// random, makes room: see [Node.Worth].
type Limits struct {
	Nodes int // 0: 100,000
	Edges int // 0: ten times as many as nodes
	Out   int // edges out of one node, of all kinds; 0: 128
	Text  int // bytes of a node's text; 0: 2,000
}

// Graph is the knowledge graph.
type Graph struct {
	limits  Limits
	nodes   map[string]*Node
	edges   map[edgeKey]*Edge
	changed struct {
		on    bool
		nodes map[string]struct{}
		edges map[edgeKey]struct{}
		gone  []string
		cut   []Edge
	}
}

type edgeKey struct {
	src string
	rel Rel
	dst string
}

// New makes an empty graph.
func New(l Limits) *Graph {
	if l.Nodes <= 0 {
		l.Nodes = 100_000
	}
	if l.Edges <= 0 {
		l.Edges = 10 * l.Nodes
	}
	if l.Out <= 0 {
		l.Out = 128
	}
	if l.Text <= 0 {
		l.Text = 2000
	}
	return &Graph{limits: l, nodes: map[string]*Node{}, edges: map[edgeKey]*Edge{}}
}

// Len is how many nodes and edges there are.
func (g *Graph) Len() (nodes, edges int) { return len(g.nodes), len(g.edges) }

// Node finds a node; nil if it is not known.
func (g *Graph) Node(id string) *Node { return g.nodes[id] }

// Edge finds an edge; nil if it is not known.
func (g *Graph) Edge(src string, rel Rel, dst string) *Edge { return g.edges[edgeKey{src, rel, dst}] }

func kindOf(id string) Kind {
	k, _, _ := strings.Cut(id, ":")
	return Kind(k)
}

func (g *Graph) node(id string, now int64) *Node {
	n := g.nodes[id]
	if n == nil {
		if len(g.nodes) >= g.limits.Nodes {
			g.Evict()
		}
		n = &Node{ID: id}
		n.Last = now
		g.nodes[id] = n
	}
	if g.changed.on {
		g.changed.nodes[id] = struct{}{}
	}
	return n
}

// Touch counts one execution of a thing. text replaces the node's text unless
// it is empty.
func (g *Graph) Touch(id, text string, failed bool, now int64) *Node {
	n := g.node(id, now)
	n.add(failed, now)
	if text != "" {
		n.Text = text
		if len(text) > g.limits.Text {
			n.Text = strings.ToValidUTF8(text[:g.limits.Text], "") + "…"
		}
	}
	return n
}

// Link counts that two things went together. Nodes that are missing are made.
func (g *Graph) Link(src string, rel Rel, dst string, failed bool, now int64) *Edge {
	k := edgeKey{src, rel, dst}
	e := g.edges[k]
	if e == nil {
		s := g.node(src, now)
		d := g.node(dst, now)
		if g.nodes[src] != s { // making room for dst pushed src out
			s = g.node(src, now)
		}
		if len(s.out) >= g.limits.Out {
			g.cut(slices.MinFunc(s.out, func(a, b *Edge) int { return cmp.Compare(a.At(now).Count(), b.At(now).Count()) }))
		}
		if len(g.edges) >= g.limits.Edges {
			g.cutWeakest(now)
		}
		e = &Edge{Src: src, Rel: rel, Dst: dst, src: s, dst: d}
		s.out = append(s.out, e)
		d.in = append(d.in, e)
		g.edges[k] = e
	}
	e.add(failed, now)
	if g.changed.on {
		g.changed.edges[k] = struct{}{}
	}
	return e
}

func (g *Graph) cut(e *Edge) {
	k := edgeKey{e.Src, e.Rel, e.Dst}
	delete(g.edges, k)
	e.src.out = slices.DeleteFunc(e.src.out, func(x *Edge) bool { return x == e })
	e.dst.in = slices.DeleteFunc(e.dst.in, func(x *Edge) bool { return x == e })
	if g.changed.on {
		delete(g.changed.edges, k)
		g.changed.cut = append(g.changed.cut, Edge{Src: e.Src, Rel: e.Rel, Dst: e.Dst})
	}
}

// cutWeakest cuts the edge that counted least, of eight taken at random.
func (g *Graph) cutWeakest(now int64) {
	var victim *Edge
	n := 0
	for _, e := range g.edges {
		if victim == nil || e.At(now).Count() < victim.At(now).Count() {
			victim = e
		}
		if n++; n == 8 {
			break
		}
	}
	g.cut(victim)
}

// Worth is what a node is worth keeping for, on a scale of its own: one more is twice
// as much. It halves with each half-life in which nothing was counted, doubles with how
// often something was and with how much hangs on it, and a failure counts as four passes,
// since it is failures that are asked about. So what ran once, long ago, and passed
// goes first.
func (n *Node) Worth() float64 {
	return math.Log2(.5+n.OK+4*n.Failed+float64(len(n.in)+len(n.out))) + float64(n.Last)/HalfLife
}

// Evict drops the node that is worth least, of eight taken at random, if there is one.
// What counts everything else stays.
func (g *Graph) Evict() {
	var victim *Node
	n := 0
	for id, v := range g.nodes {
		if id == contexts && len(g.nodes) > 1 {
			continue
		}
		if victim == nil || v.Worth() < victim.Worth() {
			victim = v
		}
		if n++; n == 8 {
			break
		}
	}
	if victim != nil {
		g.drop(victim)
	}
}

// Remove drops a node with its edges; one that is not there is no error.
func (g *Graph) Remove(id string) {
	if n := g.nodes[id]; n != nil {
		g.drop(n)
	}
}

// In lists the edges into a node.
func (g *Graph) In(id string) []Edge {
	n := g.nodes[id]
	if n == nil {
		return nil
	}
	out := make([]Edge, 0, len(n.in))
	for _, e := range n.in {
		out = append(out, *e)
	}
	return out
}

// All are the nodes, in no order.
func (g *Graph) All() iter.Seq[*Node] { return maps.Values(g.nodes) }

func (g *Graph) drop(n *Node) {
	for _, e := range slices.Clone(n.out) {
		g.cut(e)
	}
	for _, e := range slices.Clone(n.in) {
		g.cut(e)
	}
	delete(g.nodes, n.ID)
	if g.changed.on {
		delete(g.changed.nodes, n.ID)
		g.changed.gone = append(g.changed.gone, n.ID)
	}
}

// Ran takes in that a command ran in a job, after the commands before it in the
// same job (the last one last; only the last eight count).
func (g *Graph) Ran(command, text string, before []string, failed bool, now int64) {
	id := ID(Cmd, command)
	g.Touch(id, text, failed, now)
	if len(before) == 0 {
		g.Touch(contexts, "", false, now)
	}
	if len(before) > 8 {
		before = before[len(before)-8:]
	}
	for i, b := range before {
		if b == command || slices.Contains(before[:i], b) {
			continue
		}
		other := ID(Cmd, b)
		g.Link(id, With, other, failed, now)
		g.Link(other, With, id, failed, now)
	}
	if n := len(before); n > 0 {
		g.Link(ID(Cmd, before[n-1]), FollowedBy, id, failed, now)
		if n > 1 {
			g.Link(pairID(before[n-2], before[n-1]), FollowedBy, id, failed, now)
		}
	}
}

// contexts is the node that counts the jobs commands have run in.
const contexts = "context:all"

func pairID(a, b string) string { return ID(pair, a+" ⏵ "+b) }

// Match is an answer: a node's name with its score, and how often it was seen.
type Match struct {
	ID     string  `json:"id"`
	Name   string  `json:"name"`
	Score  float64 `json:"score"`
	Count  float64 `json:"count"`
	Failed float64 `json:"failed"` // of Count
}

// minCount is how often two commands must have met before that says anything.
const minCount = 3

// Related lists the commands that run where command runs more often than chance
// has it, the strongest first.
func (g *Graph) Related(command string, n int, now int64) []Match {
	src := g.nodes[ID(Cmd, command)]
	if src == nil {
		return nil
	}
	all := 1.0
	if n := g.nodes[contexts]; n != nil {
		all = n.At(now).Count()
	}
	x := src.At(now).Count()
	var out []Match
	for _, e := range src.out {
		if e.Rel != With {
			continue
		}
		xy := e.At(now)
		// Each meeting of two long-standing neighbours fades; what counts is
		// that there have been enough of them.
		if xy.Count() < minCount*.95 {
			continue
		}
		y := e.dst.At(now).Count()
		pmi := math.Log(xy.Count() * all / (x * y))
		least := min(x, y)
		score := pmi * xy.Count() / (xy.Count() + 1) * least / (least + 1)
		if score <= 0 {
			continue
		}
		out = append(out, Match{ID: e.Dst, Name: Name(e.Dst), Score: score, Count: xy.Count(), Failed: xy.Failed})
	}
	return top(out, n)
}

// Next lists what followed these commands (the last one last), with its
// probability: by the last two where that is known, else by the last one, else
// by what is frequent.
func (g *Graph) Next(commands []string, n int, now int64) []Match {
	p := map[string]*Match{}
	scale := 1.0
	use := func(from *Node) {
		if from == nil {
			return
		}
		sum := 0.0
		for _, e := range from.out {
			if e.Rel == FollowedBy {
				sum += e.At(now).Count()
			}
		}
		if sum == 0 {
			return
		}
		for _, e := range from.out {
			if e.Rel != FollowedBy {
				continue
			}
			c := e.At(now)
			m := p[e.Dst]
			if m == nil {
				m = &Match{ID: e.Dst, Name: Name(e.Dst), Count: c.Count(), Failed: c.Failed}
				p[e.Dst] = m
			}
			m.Score += scale * c.Count() / (sum + 1)
		}
		scale *= 1 / (sum + 1) // what is left for the shorter contexts
	}
	if k := len(commands); k > 0 {
		if k > 1 {
			use(g.nodes[pairID(commands[k-2], commands[k-1])])
		}
		use(g.nodes[ID(Cmd, commands[k-1])])
	}
	out := make([]Match, 0, len(p))
	for _, m := range p {
		out = append(out, *m)
	}
	return top(out, n)
}

func top(out []Match, n int) []Match {
	slices.SortFunc(out, func(a, b Match) int {
		return cmp.Or(cmp.Compare(b.Score, a.Score), strings.Compare(a.ID, b.ID))
	})
	if n > 0 && len(out) > n {
		out = out[:n]
	}
	return out
}

// FixedBy lists the fixes of a failure (a node id), the latest first: Score is
// the moment in ms.
func (g *Graph) FixedBy(id string, n int) []Match {
	src := g.nodes[id]
	if src == nil {
		return nil
	}
	var out []Match
	for _, e := range src.out {
		if e.Rel == FixedBy {
			out = append(out, Match{ID: e.Dst, Name: Name(e.Dst), Score: float64(e.Last), Count: e.Count()})
		}
	}
	return top(out, n)
}

// Similar ranks the other nodes of the same kind by how near they are to one:
// personalised PageRank, by local pushes, over the edges both ways. Its work is
// bounded, whatever the size of the graph.
func (g *Graph) Similar(id string, n int, now int64) []Match {
	src := g.nodes[id]
	if src == nil {
		return nil
	}
	const (
		restart = .15
		least   = 1e-5
		maxWork = 20_000
	)
	rank := map[*Node]float64{}
	rest := map[*Node]float64{src: 1}
	queue := []*Node{src}
	for work := 0; len(queue) > 0 && work < maxWork; {
		v := queue[0]
		queue = queue[1:]
		r := rest[v]
		if r < least {
			continue
		}
		rest[v] = 0
		rank[v] += restart * r
		sum := 0.0
		for _, e := range v.out {
			sum += e.At(now).Count()
		}
		for _, e := range v.in {
			sum += e.At(now).Count()
		}
		work += len(v.out) + len(v.in) + 1
		if sum == 0 {
			continue
		}
		push := func(to *Node, w float64) {
			was := rest[to]
			rest[to] = was + (1-restart)*r*w/sum
			if was < least && rest[to] >= least {
				queue = append(queue, to)
			}
		}
		for _, e := range v.out {
			push(e.dst, e.At(now).Count())
		}
		for _, e := range v.in {
			push(e.src, e.At(now).Count())
		}
	}
	kind := kindOf(id)
	var out []Match
	for v, score := range rank {
		if v != src && kindOf(v.ID) == kind {
			c := v.At(now)
			out = append(out, Match{ID: v.ID, Name: Name(v.ID), Score: score, Count: c.Count(), Failed: c.Failed})
		}
	}
	return top(out, n)
}

// Out lists the edges out of a node.
func (g *Graph) Out(id string) []Edge {
	n := g.nodes[id]
	if n == nil {
		return nil
	}
	out := make([]Edge, 0, len(n.out))
	for _, e := range n.out {
		out = append(out, *e)
	}
	return out
}

// Changes are what has changed since the last call of [Graph.Changes].
type Changes struct {
	Nodes []Node
	Edges []Edge
	Gone  []string
	Cut   []Edge
}

// Track makes the graph remember its changes for [Graph.Changes].
func (g *Graph) Track() {
	g.changed.on = true
	g.resetChanges()
}

func (g *Graph) resetChanges() {
	g.changed.nodes = map[string]struct{}{}
	g.changed.edges = map[edgeKey]struct{}{}
	g.changed.gone, g.changed.cut = nil, nil
}

// Changes returns what has changed and begins anew. Nodes and edges come without
// their neighbours.
func (g *Graph) Changes() Changes {
	var c Changes
	for id := range g.changed.nodes {
		n := g.nodes[id]
		c.Nodes = append(c.Nodes, Node{ID: id, Text: n.Text, Counter: n.Counter})
	}
	for k := range g.changed.edges {
		e := g.edges[k]
		c.Edges = append(c.Edges, Edge{Src: e.Src, Rel: e.Rel, Dst: e.Dst, Counter: e.Counter})
	}
	// Something dropped may have come back since.
	for _, id := range g.changed.gone {
		if g.nodes[id] == nil {
			c.Gone = append(c.Gone, id)
		}
	}
	for _, e := range g.changed.cut {
		if g.Edge(e.Src, e.Rel, e.Dst) == nil {
			c.Cut = append(c.Cut, e)
		}
	}
	g.resetChanges()
	return c
}

// Merge adds what another graph counts to this one, as it stands at a moment.
func (g *Graph) Merge(o *Graph, now int64) {
	add := func(c *Counter, v Counter) {
		v = v.At(now)
		*c = c.At(now)
		c.OK += v.OK
		c.Failed += v.Failed
	}
	for id, v := range o.nodes {
		n := g.node(id, now)
		n.Text = v.Text
		add(&n.Counter, v.Counter)
	}
	for k, v := range o.edges {
		e := g.edges[k]
		if e == nil {
			e = g.Link(k.src, k.rel, k.dst, false, now)
			e.Counter = Counter{Last: now}
		}
		add(&e.Counter, v.Counter)
	}
}

// Load puts a stored node or edge in place, as it was stored.
func (g *Graph) Load(nodes []Node, edges []Edge) {
	on := g.changed.on
	g.changed.on = false
	for _, v := range nodes {
		n := g.node(v.ID, v.Last)
		n.Text, n.Counter = v.Text, v.Counter
	}
	for _, v := range edges {
		e := g.edges[edgeKey{v.Src, v.Rel, v.Dst}]
		if e == nil {
			e = g.Link(v.Src, v.Rel, v.Dst, false, v.Last)
		}
		e.Counter = v.Counter
	}
	g.changed.on = on
}
