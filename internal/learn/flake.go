package learn

import (
	"math"
	"slices"
	"strings"
)

// Flakes tells flaky failures from real ones by their nearest neighbours: the
// masked words at the end of the output, weighed by how rare they are. Labels
// come from what happened after: another attempt at the same commit that passed,
// or a commit that mended it. Examples of all repositories are neighbours: hashed
// words and counts, from which nothing can be read back. It is not safe for
// concurrent use.
type Flakes struct {
	examples map[string]*flakeExample // by repository and signature: recordKey
	df       map[uint32]int           // in how many examples a word occurs
	limit    int
	clock    int64
	dirty    map[string]struct{}
	share    share
}

type flakeExample struct {
	Words       []uint32 `json:"w"`
	Flaky, Real float64
	Last        int64
}

// NewFlakes remembers at most limit signatures (0: 1,000).
func NewFlakes(limit int) *Flakes {
	if limit <= 0 {
		limit = 1000
	}
	return &Flakes{examples: map[string]*flakeExample{}, df: map[uint32]int{}, limit: limit, dirty: map[string]struct{}{}, share: share{}}
}

const flakeTail = 40 // lines

// FlakeTokens are the hashed masked words, and pairs of words, of the last lines
// of an output, each once, in order of size.
func FlakeTokens(lines []string) []uint32 {
	if len(lines) > 400 {
		lines = lines[len(lines)-400:]
	}
	cleaned := make([]string, len(lines))
	for i, l := range lines {
		cleaned[i] = Clean(l)
	}
	var out []uint32
	for _, l := range tail(cleaned, flakeTail) {
		prev := ""
		for w := range strings.FieldsFuncSeq(strings.ToLower(l), func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' || r == '<' || r == '>' || r == '-' || r == '.')
		}) {
			out = append(out, uint32(hash(fnvOffset, w)))
			if prev != "" {
				out = append(out, uint32(hash(hash(fnvOffset, prev), w)))
			}
			prev = w
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (f *Flakes) idf(w uint32) float64 {
	return math.Log(float64(len(f.examples)+2) / float64(f.df[w]+1))
}

// flakyPrior is how likely a failure of a class is flaky before anything like it
// was seen here.
func flakyPrior(c Class) float64 {
	switch {
	case c == ClassTimeout, c == ClassMemory:
		return .4
	case c.Transient():
		return .75
	case c.Deterministic():
		return .05
	}
	return .12
}

// priorWeight is how much the class counts beside neighbours, whose weights are
// the third powers of their similarities.
const priorWeight = .1

// Predict is the probability that a failure of this class with these words is
// flaky, by the labelled examples that are like it.
func (f *Flakes) Predict(class Class, words []uint32) float64 {
	type near struct{ sim, flaky float64 }
	var best []near
	norm := 0.0
	for _, w := range words {
		v := f.idf(w)
		norm += v * v
	}
	for _, e := range f.examples {
		if e.Flaky+e.Real == 0 || len(e.Words) == 0 {
			continue
		}
		dot, other := 0.0, 0.0
		i := 0
		for _, w := range e.Words {
			v := f.idf(w)
			other += v * v
			for i < len(words) && words[i] < w {
				i++
			}
			if i < len(words) && words[i] == w {
				dot += v * v
			}
		}
		if norm == 0 || other == 0 {
			continue
		}
		best = append(best, near{dot / math.Sqrt(norm*other), (e.Flaky + .1) / (e.Flaky + e.Real + .2)})
	}
	byScore(best, func(n near) float64 { return n.sim })
	num, den := flakyPrior(class)*priorWeight, priorWeight
	for _, n := range best[:min(3, len(best))] {
		w := n.sim * n.sim * n.sim
		num += w * n.flaky
		den += w
	}
	return num / den
}

// Add remembers what a repository's signature looks like, unlabelled until Label.
func (f *Flakes) Add(repo, signature string, words []uint32) {
	f.clock++
	id := recordKey(repo, signature)
	if len(words) > 600 {
		words = words[:600]
	}
	e := f.examples[id]
	if e == nil {
		if len(f.examples) >= f.limit {
			f.evict()
		}
		e = &flakeExample{}
		f.put(id, e)
	}
	f.count(e.Words, -1)
	e.Words = slices.Clone(words)
	f.count(e.Words, 1)
	e.Last = f.clock
	f.dirty[id] = struct{}{}
}

func (f *Flakes) put(key string, e *flakeExample) {
	if f.examples[key] == nil {
		repo, _ := ofRecordKey(key)
		f.share.add(ownerOf(repo))
	}
	f.examples[key] = e
}

func (f *Flakes) count(words []uint32, by int) {
	for _, w := range words {
		if f.df[w] += by; f.df[w] <= 0 {
			delete(f.df, w)
		}
	}
}

// Label says how a failure of a repository's signature turned out.
func (f *Flakes) Label(repo, signature string, flaky bool) {
	id := recordKey(repo, signature)
	e := f.examples[id]
	if e == nil {
		return
	}
	if flaky {
		e.Flaky++
	} else {
		e.Real++
	}
	f.dirty[id] = struct{}{}
}

func (f *Flakes) evict() {
	owner := func(key string) uint64 { repo, _ := ofRecordKey(key); return ownerOf(repo) }
	victim := makeRoom(f.examples, f.share, func(key string, e *flakeExample) (uint64, float64) { return owner(key), float64(e.Last) })
	f.count(f.examples[victim].Words, -1)
	delete(f.examples, victim)
	f.share.drop(owner(victim))
	f.dirty[victim] = struct{}{}
}
