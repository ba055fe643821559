package learn

import (
	"cmp"
	"slices"
	"strings"
)

// Flakes tells flaky failures from real ones by their nearest neighbours: the
// masked words at the end of the output; and by what failures of the same class and
// of the same step came to. Labels come from what happened after: another attempt at
// the same commit that passed, or a commit that mended it. Examples of all
// repositories are neighbours: hashed words and counts, from which nothing can be
// read back. It is not safe for concurrent use.
type Flakes struct {
	examples map[string]*flakeExample // by repository and signature: recordKey
	limit    int
	clock    int64
	dirty    map[string]struct{}
	share    share
}

type flakeExample struct {
	Words       []uint32 `json:"w"`
	Class       Class    `json:"c,omitempty"`
	Place       uint32   `json:"p,omitempty"` // the step it is of
	Flaky, Real float64
	Last        int64
}

// NewFlakes remembers at most limit signatures (0: 1,000).
func NewFlakes(limit int) *Flakes {
	if limit <= 0 {
		limit = 1000
	}
	return &Flakes{examples: map[string]*flakeExample{}, limit: limit, dirty: map[string]struct{}{}, share: share{}}
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

// jaccard is the share of the words of two lists, each in order and without
// repetition, that both have.
func jaccard(a, b []uint32) float64 {
	both, i := 0, 0
	for _, w := range a {
		for i < len(b) && b[i] < w {
			i++
		}
		if i < len(b) && b[i] == w {
			both++
		}
	}
	if all := len(a) + len(b) - both; all > 0 {
		return float64(both) / float64(all)
	}
	return 0
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

// How the parts of a judgement are weighed: chosen where all are wide plateaus.
const (
	neighbours  = 5
	priorWeight = .1 // of the class beside the neighbours, whose weights are their similarities
	rateWeight  = 4. // of the prior beside what was learned of a class, in examples
	placeWeight = 4. // likewise of everything beside a step
	ratesShare  = .3 // of what class and step came to, beside the neighbours, in log-odds
)

// FlakyFailure is a failure that is to be judged.
type FlakyFailure struct {
	Class Class
	Place string   // the step, over all runs
	Words []uint32 // FlakeTokens of its output
}

func placeHash(place string) uint32 {
	if place == "" {
		return 0
	}
	return max(uint32(hash(fnvOffset, place)), 1)
}

// Predict is the probability that a failure is flaky, by the labelled examples that
// are like it, and by how failures of its class and of its step turned out.
func (f *Flakes) Predict(x FlakyFailure) float64 {
	type near struct {
		sim, flaky float64
		last       int64
	}
	var best []near
	var class, place, all [2]float64 // flaky, all
	at := placeHash(x.Place)
	for _, e := range f.examples {
		if e.Flaky+e.Real == 0 {
			continue
		}
		flaky := (e.Flaky + .05) / (e.Flaky + e.Real + .1)
		tally := func(t *[2]float64) { t[0], t[1] = t[0]+flaky, t[1]+1 }
		tally(&all)
		if e.Class == x.Class {
			tally(&class)
		}
		if at != 0 && e.Place == at {
			tally(&place)
		}
		best = append(best, near{jaccard(x.Words, e.Words), flaky, e.Last})
	}
	slices.SortFunc(best, func(a, b near) int { return cmp.Or(cmp.Compare(b.sim, a.sim), cmp.Compare(b.last, a.last)) })
	byClass := (class[0] + rateWeight*flakyPrior(x.Class)) / (class[1] + rateWeight)
	num, den := byClass*priorWeight, priorWeight
	for _, n := range best[:min(neighbours, len(best))] {
		num += n.sim * n.flaky
		den += n.sim
	}
	rate := logit(byClass)
	if place[1] > 0 {
		base := (all[0] + 1) / (all[1] + 4)
		rate += logit((place[0]+placeWeight*base)/(place[1]+placeWeight)) - logit(base)
	}
	return sigmoid((1-ratesShare)*logit(num/den) + ratesShare*rate)
}

// Add remembers what a repository's signature looks like, unlabelled until Label.
func (f *Flakes) Add(repo, signature string, x FlakyFailure) {
	f.clock++
	words := x.Words
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
	e.Words = slices.Clone(words)
	e.Class, e.Place = x.Class, placeHash(x.Place)
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

// class is that of a repository's signature, as far as it is remembered.
func (f *Flakes) class(repo, signature string) Class {
	if e := f.examples[recordKey(repo, signature)]; e != nil {
		return e.Class
	}
	return ""
}

func (f *Flakes) evict() {
	owner := func(key string) uint64 { repo, _ := ofRecordKey(key); return ownerOf(repo) }
	victim := makeRoom(f.examples, f.share, func(key string, e *flakeExample) (uint64, float64) { return owner(key), float64(e.Last) })
	delete(f.examples, victim)
	f.share.drop(owner(victim))
	f.dirty[victim] = struct{}{}
}
