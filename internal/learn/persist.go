package learn

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/store"
)

// How knowledge is stored: graph nodes and edges as rows of their own, all else
// as rows of the model table under a letter and a key. Bodies of numbers are
// little-endian; a body of another length than expected is ignored, so that a
// version with other counters starts those afresh instead of failing.

func (m *Model) track() { m.dirty.on = true }

func (d *Durations) track() {
	d.dirty.on = true
	d.dirty.keys = map[uint64]struct{}{}
}

func numbersOf(v ...float64) []byte {
	b := make([]byte, 0, 8*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(x))
	}
	return b
}

// readNumbers fills v from a body of exactly that many finite numbers.
func readNumbers(b []byte, v []float64) bool {
	if len(b) != 8*len(v) {
		return false
	}
	for i := range v {
		v[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
		if math.IsNaN(v[i]) || math.IsInf(v[i], 0) {
			return false
		}
	}
	return true
}

// What a counter's body has: its numbers, and for each context that it was in
// some more. In what was stored before gifts to parents were kept there are none of
// those, and before owners were kept the owner was missing too.
const (
	counterNumbers = 6*nHalf + 6
	contextNumbers = 1 + 6*nContextHalf
	oldNumbers     = 2*nHalf + 6
)

func (c *counter) numbers() []byte {
	v := make([]float64, 0, counterNumbers+contextNumbers*len(c.contexts))
	v = append(v, c.n[:]...)
	v = append(v, c.f[:]...)
	v = append(v, float64(c.seen), float64(c.fails), float64(c.streak), c.last, c.lastFail, float64(c.owner))
	for _, more := range [...][nHalf]float64{c.faded, c.up.n, c.up.f, c.up.at} {
		v = append(v, more[:]...)
	}
	for i := range c.contexts {
		k := &c.contexts[i]
		v = append(v, float64(k.which))
		for _, more := range [...][nContextHalf]float32{k.n, k.f, k.faded, k.up.n, k.up.f, k.up.at} {
			for _, x := range more {
				v = append(v, float64(x))
			}
		}
	}
	return numbersOf(v...)
}

func readCounter(b []byte) *counter {
	n := len(b) / 8
	more := (n - counterNumbers) / contextNumbers
	if old := n == oldNumbers || n == oldNumbers-1; !old && (n != counterNumbers+more*contextNumbers || more > nCases) {
		return nil
	}
	v := make([]float64, max(n, counterNumbers))
	if !readNumbers(b, v[:n]) {
		return nil
	}
	c := &counter{}
	take := func(to *[nHalf]float64) { v = v[copy(to[:], v):] }
	take(&c.n)
	take(&c.f)
	c.seen, c.fails, c.streak, c.last, c.lastFail = int64(v[0]), int64(v[1]), int32(v[2]), v[3], v[4]
	c.owner = ownerNumber(v[5])
	v = v[6:]
	for _, to := range [...]*[nHalf]float64{&c.faded, &c.up.n, &c.up.f, &c.up.at} {
		take(to)
	}
	for range more {
		k := contextCount{which: uint8(min(max(v[0], 0), nCases-1))}
		v = v[1:]
		for _, to := range [...]*[nContextHalf]float32{&k.n, &k.f, &k.faded, &k.up.n, &k.up.f, &k.up.at} {
			for i := range to {
				to[i] = float32(v[i])
			}
			v = v[nContextHalf:]
		}
		c.contexts = append(c.contexts, k)
	}
	return c
}

func ownerNumber(v float64) uint64 { return uint64(min(max(v, 0), 1<<52)) }

// windowNumbers is what a window's body has.
const windowNumbers = windowSize + 6

func hexKey(letter string, key uint64) string { return letter + ":" + strconv.FormatUint(key, 16) }

func weightNumbers(ws []weight) []byte {
	v := make([]float64, 0, 2*len(ws))
	for _, w := range ws {
		v = append(v, w.v, w.g)
	}
	return numbersOf(v...)
}

func readWeights(b []byte, ws []weight) {
	v := make([]float64, 2*len(ws))
	if !readNumbers(b, v) {
		return
	}
	for i := range ws {
		ws[i] = weight{v[2*i], v[2*i+1]}
	}
}

// numbers are the weights, and the covariance's lower half, row by row.
func (s *stack) numbers() []byte {
	v := append(make([]float64, 0, stackNumbers), s.w[:]...)
	for i := range s.p {
		v = append(v, s.p[i][:i+1]...)
	}
	return numbersOf(v...)
}

const stackNumbers = nFeatures + nFeatures*(nFeatures+1)/2

func (s *stack) read(b []byte) {
	v := make([]float64, stackNumbers)
	if !readNumbers(b, v) {
		return
	}
	v = v[copy(s.w[:], v):]
	s.top = nFeatures // some may have had a value
	for i := range s.p {
		for j := range i + 1 {
			s.p[i][j] = v[j]
		}
		v = v[i+1:]
	}
}

type gone struct {
	nodes  []store.Node
	edges  []store.Edge
	models []string
}

// changes collects what has changed since the last call, as rows.
func (l *Learner) changes() (store.Knowledge, gone) {
	var k store.Knowledge
	var g gone
	now := l.opt.Now().UnixMilli()
	put := func(key string, body []byte) {
		k.Models = append(k.Models, store.Model{Key: key, Body: body, Last: now})
	}
	m := l.model
	for key := range m.dirty.counters {
		if c := m.counters[key]; c != nil {
			put(hexKey("c", key), c.numbers())
		} else {
			g.models = append(g.models, hexKey("c", key))
		}
	}
	for key := range m.dirty.kin {
		if v := m.kin[key]; v != nil {
			put(hexKey("k", key), numbersOf(v.expected, v.failed, v.n, v.last, float64(v.owner)))
		} else {
			g.models = append(g.models, hexKey("k", key))
		}
	}
	for key := range m.dirty.tokens {
		if v := m.tokens[key]; v != nil {
			put(hexKey("t", key), numbersOf(v.v, v.g))
		} else {
			g.models = append(g.models, hexKey("t", key))
		}
	}
	if len(m.dirty.counters) > 0 {
		put("w:bold", m.bold.numbers())
		put("w:timid", m.timid.numbers())
		put("w:attempts", weightNumbers(m.retryW[:]))
		put("w:experts", numbersOf(m.mix[:]...))
		scales := make([]float64, 0, 3*nChange)
		for _, v := range m.scales {
			scales = append(scales, v.n, v.mean, v.m2)
		}
		put("w:scales", numbersOf(scales...))
	}
	clear(m.dirty.counters)
	clear(m.dirty.kin)
	clear(m.dirty.tokens)
	for key := range l.shifts.dirty {
		if v := l.shifts.m[key]; v != nil {
			put(hexKey("l", key), marshal(v))
		} else {
			g.models = append(g.models, hexKey("l", key))
		}
	}
	clear(l.shifts.dirty)
	for key := range l.retries.dirty {
		if v := l.retries.m[key]; v != nil {
			put(hexKey("r", key), numbersOf(v.passed, v.expected, v.n, v.last, float64(v.owner)))
		} else {
			g.models = append(g.models, hexKey("r", key))
		}
	}
	clear(l.retries.dirty)
	for key := range l.durations.dirty.keys {
		if w := l.durations.m[key]; w != nil {
			v := make([]float64, 0, windowNumbers)
			for _, x := range w.v {
				v = append(v, float64(x))
			}
			put(hexKey("d", key), numbersOf(append(v, float64(w.n), float64(w.at), w.last, float64(w.owner), w.ew, w.drift)...))
		} else {
			g.models = append(g.models, hexKey("d", key))
		}
	}
	if len(l.durations.dirty.keys) > 0 {
		put("d-", numbersOf(slices.Concat([]float64{l.durations.clock}, l.durations.factors[:], l.durations.mix[:])...))
	}
	clear(l.durations.dirty.keys)
	for key := range l.greensNew {
		if refs := l.greens[key]; refs != nil {
			put("g:"+key, marshal(refs))
		} else {
			g.models = append(g.models, "g:"+key)
		}
	}
	clear(l.greensNew)
	for id := range l.templates.dirty {
		if t := l.templates.byID[id]; t != nil {
			put("s:"+id, marshal(storedTemplate{t.salt, t.tokens, t.last, t.version}))
		} else {
			g.models = append(g.models, "s:"+id)
		}
	}
	clear(l.templates.dirty)
	for id := range l.flakes.dirty {
		if e := l.flakes.examples[id]; e != nil {
			put("f:"+id, marshal(e))
		} else {
			g.models = append(g.models, "f:"+id)
		}
	}
	clear(l.flakes.dirty)
	l.graphs.bound()
	for repo, v := range l.graphs {
		c := v.Changes()
		for _, n := range c.Nodes {
			kind, _, _ := strings.Cut(n.ID, ":")
			k.Nodes = append(k.Nodes, store.Node{Repository: repo, ID: n.ID, Kind: kind, Text: n.Text, OK: n.OK, Failed: n.Failed, Last: n.Last})
		}
		for _, e := range c.Edges {
			k.Edges = append(k.Edges, store.Edge{Repository: repo, Src: e.Src, Kind: string(e.Rel), Dst: e.Dst, OK: e.OK, Failed: e.Failed, Last: e.Last})
		}
		for _, id := range c.Gone {
			g.nodes = append(g.nodes, store.Node{Repository: repo, ID: id})
		}
		for _, e := range c.Cut {
			g.edges = append(g.edges, store.Edge{Repository: repo, Src: e.Src, Kind: string(e.Rel), Dst: e.Dst})
		}
		if n, _ := v.Len(); n == 0 {
			delete(l.graphs, repo)
		}
	}
	return k, g
}

type storedTemplate struct {
	Salt   string
	Tokens []string
	Last   int64
	// Version is that of the extractor; before it was kept it is 0.
	Version int `json:",omitempty"`
}

// load puts stored rows in place.
func (l *Learner) load(k store.Knowledge) {
	for _, row := range k.Models {
		letter, key, _ := strings.Cut(row.Key, ":")
		if letter == "d-" {
			var v [1 + len(bounds) + nDurations]float64
			if readNumbers(row.Body, v[:]) {
				l.durations.clock = max(l.durations.clock, v[0])
				copy(l.durations.mix[:], v[1+copy(l.durations.factors[:], v[1:]):])
			} else if readNumbers(row.Body, v[:2]) { // of before: a factor, and the clock
				l.durations.clock = max(l.durations.clock, v[1])
			}
			continue
		}
		switch letter {
		case "g":
			var refs []logRef
			if json.Unmarshal(row.Body, &refs) == nil {
				l.putGreens(key, refs)
			}
		case "c", "k", "t", "d", "r", "l":
			h, err := strconv.ParseUint(key, 16, 64)
			if err != nil {
				continue
			}
			l.loadKey(letter, h, row.Body)
		case "w":
			switch key {
			case "bold":
				l.model.bold.read(row.Body)
			case "timid":
				l.model.timid.read(row.Body)
			case "attempts":
				readWeights(row.Body, l.model.retryW[:])
			case "experts":
				var v [nExperts]float64
				if readNumbers(row.Body, v[:]) {
					l.model.mix = v
				}
			case "scales":
				var v [3 * nChange]float64
				if readNumbers(row.Body, v[:]) {
					for i := range l.model.scales {
						l.model.scales[i] = scale{v[3*i], v[3*i+1], v[3*i+2]}
					}
				}
			}
		case "s":
			var t storedTemplate
			if err := json.Unmarshal(row.Body, &t); err != nil {
				l.log.Error("a stored template cannot be read", "key", row.Key, "err", err)
				continue
			}
			l.templates.put(key, t)
		case "f":
			var e flakeExample
			if err := json.Unmarshal(row.Body, &e); err != nil {
				l.log.Error("a stored example cannot be read", "key", row.Key, "err", err)
				continue
			}
			l.flakes.put(key, &e)
			l.flakes.clock = max(l.flakes.clock, e.Last)
		default:
			l.log.Debug(fmt.Sprintf("unknown row %s of the model is passed over", row.Key))
		}
	}
	nodes, edges := map[string][]graph.Node{}, map[string][]graph.Edge{}
	for _, n := range k.Nodes {
		nodes[n.Repository] = append(nodes[n.Repository], graph.Node{ID: n.ID, Text: n.Text, Counter: graph.Counter{OK: n.OK, Failed: n.Failed, Last: n.Last}})
	}
	for _, e := range k.Edges {
		edges[e.Repository] = append(edges[e.Repository],
			graph.Edge{Src: e.Src, Rel: graph.Rel(e.Kind), Dst: e.Dst, Counter: graph.Counter{OK: e.OK, Failed: e.Failed, Last: e.Last}})
	}
	for repo, v := range nodes {
		l.graphs.of(repo).Load(v, edges[repo])
		delete(edges, repo)
	}
	for repo, v := range edges {
		l.graphs.of(repo).Load(nil, v)
	}
}

func (l *Learner) loadKey(letter string, h uint64, body []byte) {
	switch letter {
	case "c":
		if c := readCounter(body); c != nil {
			l.model.putCounter(h, c)
		}
	case "k":
		var v [5]float64
		if readNumbers(body, v[:]) || readNumbers(body, v[:4]) {
			l.model.putKin(h, &kinship{v[0], v[1], v[2], v[3], ownerNumber(v[4])})
		}
	case "t":
		var v [2]float64
		if readNumbers(body, v[:]) {
			l.model.tokens[h] = &weight{v[0], v[1]}
		}
	case "l":
		var v level
		if json.Unmarshal(body, &v) == nil && v.N >= 0 && v.N <= shiftRing && v.At >= 0 && v.At < shiftRing {
			l.shifts.put(h, &v)
		}
	case "r":
		var v [5]float64
		if readNumbers(body, v[:]) {
			l.retries.put(h, &retried{v[0], v[1], v[2], v[3], ownerNumber(v[4])})
		}
	case "d":
		var v [windowNumbers]float64
		whole := readNumbers(body, v[:])
		if whole || readNumbers(body, v[:windowSize+4]) || readNumbers(body, v[:windowSize+3]) { // of before
			w := &window{n: int32(min(max(v[windowSize], 0), windowSize)), at: int32(min(max(v[windowSize+1], 0), windowSize-1)), last: v[windowSize+2],
				owner: ownerNumber(v[windowSize+3]), ew: v[windowSize+4], drift: v[windowSize+5]}
			for i := range w.v {
				w.v[i] = float32(v[i])
			}
			if !whole {
				var buf [windowSize]float32
				w.ew = math.Log(max(quantile(w.sorted(&buf), .5), floor))
			}
			l.durations.put(h, w)
		}
	}
}

// put places a stored template.
func (t *Templates) put(key string, s storedTemplate) {
	v := t.byID[key]
	if v == nil {
		repo, id := ofRecordKey(key)
		v = &template{repo: repo, id: id, salt: s.Salt, group: templateGroup(repo, s.Salt, s.Tokens)}
		t.add(v)
	}
	v.tokens, v.last, v.version, v.fresh = s.Tokens, s.Last, s.Version, false
	t.clock = max(t.clock, s.Last)
}
