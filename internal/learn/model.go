package learn

import (
	"math"
	"strings"
)

// Execution says what is about to run, as far as its outcome may depend on it.
// Empty fields are unknown. Two executions are of the same thing when Repo,
// Workflow, Job and Step are equal.
type Execution struct {
	Unit                      string // what it is: a step by itself (""), a job, a run
	Repo, Workflow, Job, Step string
	Branch, Commit            string
	Attempt                   int // from 1; 0 is 1
	Host, Action              string
	At                        float64 // when it starts, unix seconds
}

// The half-lives of the counters, in events of their key; the last never fades.
var halfLives = [...]float64{2, 8, 30, 150, 1e9}

const nHalf = len(halfLives)

// The levels of the hierarchy; each shrinks towards the one before it.
const (
	levelAll = iota
	levelRepo
	levelWorkflow
	levelJob
	levelStep
	levelBranch // the step on this branch
	nLevels
)

// counter is what is remembered about one key: decayed counts, and the recent
// past in a few numbers. It has a fixed size, however often the key occurs.
type counter struct {
	n, f     [nHalf]float64 // decayed events and failures
	seen     int64
	fails    int64
	streak   int32 // > 0: so many failures in a row; < 0: passes
	last     float64
	lastFail float64 // 0: never
	owner    uint64  // whose it is; 0: everybody's, or from before owners were kept
}

// decays[i] is what one event leaves of counts of half-life i.
var decays = func() (d [nHalf]float64) {
	for i, h := range halfLives {
		d[i] = math.Exp2(-1 / h)
	}
	return d
}()

func (c *counter) add(failed bool, at, w float64) {
	for i := range c.n {
		d := decays[i]
		if w != 1 {
			d = 1 - (1-d)*w
		}
		c.n[i] = c.n[i]*d + w
		c.f[i] *= d
		if failed {
			c.f[i] += w
		}
	}
	c.seen++
	if failed {
		c.fails++
		c.streak = max(c.streak, 0) + 1
		c.lastFail = at
	} else {
		c.streak = min(c.streak, 0) - 1
	}
	c.last = at
}

// The features of the stack.
const (
	featBias  = 0
	featEst   = 1                       // [level][half-life]
	featLast  = featEst + nLevels*nHalf // last outcome: step, step on branch, job
	featRun   = featLast + 3            // streak: the same three
	featSince = featRun + 3             // time since the last failure, and whether there was one: step, job
	featToken = featSince + 4           // FTRL over name tokens
	featKin   = featToken + 1           // same commit, branch, repo lately: more failures than expected?
	featRetry = featKin + 4             // a later attempt
	nFeatures = featRetry + 2
)

// Estimate is a prediction of the model with what it was made of. It is what
// Learn wants back when the outcome is known.
type Estimate struct {
	P         float64 // probability of failure
	Low, High float64 // 90 % interval
	Seen      int64   // finished executions of the same step (of the nearest thing known)

	x       Execution
	feats   [nFeatures]float64
	experts [nExperts]float64 // log-odds
	keys    keySet
	tokens  []uint64
	base    float64 // estimate of the hierarchy alone, which kin are measured against
}

// Model predicts failures. It is a mixture of experts over one set of decayed
// counters; all of it learns online, in O(1), and nothing in it grows with the
// number of executions of a key. It is not safe for concurrent use.
type Model struct {
	counters map[uint64]*counter
	kin      map[uint64]*kinship
	tokens   map[uint64]*weight
	w        [nFeatures]weight
	retryW   [nFeatures]weight
	mix      [nExperts]float64 // log weights
	cal      [2]weight         // scale and shift of the average
	limit    int
	shares   struct{ counters, kin share }
	dirty    dirtySet
	queue    []lesson // gradients of outcomes that arrived together
}

// weight is a coefficient that learns by itself: AdaGrad in the stack, FTRL for
// tokens (z, n).
type weight struct{ v, g float64 }

// kinship compares what was expected of a group of executions with what
// happened to it.
type kinship struct {
	expected, failed float64
	n                float64
	last             float64
	owner            uint64
}

type lesson struct {
	e      *Estimate
	failed bool
}

type dirtySet struct {
	counters, kin, tokens map[uint64]struct{}
	on                    bool
}

const (
	expertStack = iota
	expertDeep  // the deepest estimate at each half-life
	expertAvg   = expertDeep + nHalf - 2 + iota
	expertCal
	expertBase
	expertToken
	nExperts
)

// keySet are the keys of an execution. They are hashes of names that a workflow
// chooses, and collisions can be made: what is found under a key is only taken
// if its owner is the execution's.
type keySet struct {
	owner                      uint64
	level                      [nLevels]uint64
	commit, branch, commitStep uint64
}

// NewModel makes a model that knows nothing and remembers at most limit keys
// (0: 200,000, some 30 MB).
func NewModel(limit int) *Model {
	if limit <= 0 {
		limit = 200_000
	}
	m := &Model{counters: map[uint64]*counter{}, kin: map[uint64]*kinship{}, tokens: map[uint64]*weight{}, limit: limit}
	m.shares.counters, m.shares.kin = share{}, share{}
	m.w = initialWeights()
	// Of a later attempt we know mostly how such attempts end.
	for i := 1; i < nHalf; i++ {
		m.retryW[featEst+levelBranch*nHalf+i].v = .05
	}
	m.retryW[featRetry].v, m.retryW[featRetry+1].v = 1, 1.5
	m.cal[0].v = 1
	m.mix[expertStack], m.mix[expertCal] = 3, 3
	return m
}

func initialWeights() (w [nFeatures]weight) {
	for i := 1; i < nHalf; i++ {
		w[featEst+levelBranch*nHalf+i].v = deep
	}
	return w
}

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

func hash(h uint64, s string) uint64 {
	for i := 0; i < len(s); i++ {
		h = (h ^ uint64(s[i])) * fnvPrime
	}
	return (h ^ 0xff) * fnvPrime
}

func keysOf(x *Execution) (k keySet) {
	k.owner = ownerOf(x.Repo)
	h := hash(fnvOffset, x.Unit)
	k.level[levelAll] = h
	h = hash(h, x.Repo)
	k.level[levelRepo] = h
	k.branch = hash(hash(h, "branch"), x.Branch)
	k.commit = hash(hash(h, "commit"), x.Commit)
	h = hash(h, x.Workflow)
	k.level[levelWorkflow] = h
	h = hash(h, x.Job)
	k.level[levelJob] = h
	h = hash(h, x.Step)
	k.level[levelStep] = h
	k.commitStep = hash(hash(h, "commit"), x.Commit)
	k.level[levelBranch] = hash(hash(h, "branch"), x.Branch)
	return k
}

// ownerAt is who owns the counter of a level.
func (k *keySet) ownerAt(level int) uint64 {
	if level == levelAll {
		return 0
	}
	return k.owner
}

// at is the counter of a level; nil where nothing is known.
func (m *Model) at(k *keySet, level int) *counter {
	c := m.counters[k.level[level]]
	if c == nil || c.owner != 0 && c.owner != k.ownerAt(level) {
		return nil
	}
	return c
}

// kinAt is what a group of the execution came to.
func (m *Model) kinAt(k *keySet, key uint64) *kinship {
	v := m.kin[key]
	if v == nil || v.owner != 0 && v.owner != k.owner {
		return nil
	}
	return v
}

func logit(p float64) float64 {
	p = min(max(p, 1e-5), 1-1e-5)
	return math.Log(p / (1 - p))
}

func sigmoid(x float64) float64 { return 1 / (1 + math.Exp(-x)) }

// Predict estimates the outcome of what is about to start.
func (m *Model) Predict(x Execution) *Estimate {
	e := &Estimate{x: x, keys: keysOf(&x)}
	m.features(e)
	m.combine(e)
	return e
}

func (m *Model) features(e *Estimate) {
	x := &e.x
	f := &e.feats
	f[featBias] = 1
	var parent [nHalf]float64
	for i := range parent {
		parent[i] = prior
	}
	var cs [nLevels]*counter
	for l := range nLevels {
		c := m.at(&e.keys, l)
		if l == levelBranch && x.Branch == "" {
			c = nil
		}
		cs[l] = c
		d := 1.0
		if c != nil && x.At > c.last {
			d = math.Exp2((c.last - x.At) / stale)
		}
		for i := range nHalf {
			if c != nil {
				parent[i] = (c.f[i]*d + shrink*parent[i]) / (c.n[i]*d + shrink)
			}
			f[featEst+l*nHalf+i] = logit(parent[i])
		}
		if c != nil && l > levelAll {
			e.Seen = c.seen
		}
	}
	if c := cs[levelStep]; c != nil {
		e.Seen = c.seen
	}
	e.base = parent[2]
	for j, l := range [3]int{levelStep, levelBranch, levelJob} {
		if c := cs[l]; c != nil {
			f[featLast+j] = -1
			if c.streak > 0 {
				f[featLast+j] = 1
			}
			s := math.Log1p(math.Abs(float64(c.streak)))
			f[featRun+j] = math.Copysign(s, float64(c.streak)) / 2
		}
	}
	for j, l := range [2]int{levelStep, levelJob} {
		if c := cs[l]; c != nil && c.lastFail != 0 {
			f[featSince+2*j] = 1
			f[featSince+2*j+1] = math.Log1p(max(x.At-c.lastFail, 0)/3600) / 4
		}
	}
	e.tokens = tokensOf(x)
	f[featToken] = m.tokenLogit(e.tokens)
	f[featKin] = m.kinFeature(&e.keys, e.keys.commit, x.Commit != "", x.At, 0)
	f[featKin+1] = m.kinFeature(&e.keys, e.keys.branch, x.Branch != "", x.At, 0)
	f[featKin+2] = m.kinFeature(&e.keys, e.keys.level[levelRepo], true, x.At, 3600)
	f[featKin+3] = m.kinFeature(&e.keys, e.keys.level[levelJob], true, x.At, 0)
	if x.Attempt > 1 {
		k := m.kinAt(&e.keys, e.keys.commitStep)
		switch {
		case k != nil && k.failed == 0:
			f[featRetry+1] = -1 // it passed before: all was run again
		default: // it failed before, or nobody knows why there is another attempt
			f[featRetry] = logit(1 - retryPrior[min(x.Attempt-1, len(retryPrior))-1])
		}
	}
}

// kinFeature is the log of how many times more failures there were than
// expected, held near 0 where little is known.
func (m *Model) kinFeature(of *keySet, key uint64, known bool, at, halfLife float64) float64 {
	k := m.kinAt(of, key)
	if !known || k == nil {
		return 0
	}
	d := 1.0
	if halfLife > 0 && at > k.last {
		d = math.Exp2(-(at - k.last) / halfLife)
	}
	return math.Log((k.failed*d + .5) / (k.expected*d + .5))
}

func (m *Model) weights(e *Estimate) *[nFeatures]weight {
	if e.x.Attempt > 1 {
		return &m.retryW
	}
	return &m.w
}

func (m *Model) combine(e *Estimate) {
	w := m.weights(e)
	s := 0.0
	for i, v := range e.feats {
		s += w[i].v * v
	}
	s = min(max(s, -11), 11)
	e.experts[expertStack] = s
	if e.x.Attempt > 1 {
		// Later attempts are another matter: their own weights, no mixture.
		e.P = sigmoid(s)
		e.interval(m.at(&e.keys, levelStep))
		return
	}
	for i := range nHalf {
		e.experts[expertDeep+i] = e.feats[featEst+levelBranch*nHalf+i]
	}
	avg := 0.0
	for i := 1; i < nHalf; i++ {
		avg += deep * e.experts[expertDeep+i]
	}
	e.experts[expertAvg] = avg
	e.experts[expertCal] = m.cal[0].v*avg + m.cal[1].v
	e.experts[expertBase] = e.feats[featEst+levelRepo*nHalf+nHalf-1]
	e.experts[expertToken] = e.feats[featToken]
	top := math.Inf(-1)
	for _, l := range m.mix {
		top = max(top, l)
	}
	sum, out := 0.0, 0.0
	for i, l := range m.mix {
		v := math.Exp(l - top)
		sum += v
		out += v * e.experts[i]
	}
	e.P = sigmoid(out / sum)
	e.interval(m.at(&e.keys, levelStep))
}

// interval is the 90 % interval: that of a Beta distribution with as many
// events behind it as the step has lately had, around P.
func (e *Estimate) interval(c *counter) {
	n := shrink
	if c != nil {
		n += c.n[2]
	}
	e.Low, e.High = wilson(e.P, n, 1.645)
}

// wilson is the score interval of a proportion p seen in n events.
func wilson(p, n, z float64) (lo, hi float64) {
	d := 1 + z*z/n
	mid := (p + z*z/(2*n)) / d
	half := z / d * math.Sqrt(p*(1-p)/n+z*z/(4*n*n))
	return max(min(mid-half, p), 0), min(max(mid+half, p), 1)
}

// Learn takes the outcome of what e was predicted for. at is when it ended.
// Outcomes that arrive together have one gradient: they are collected until
// Settle, or until the next call with a later time.
func (m *Model) Learn(e *Estimate, failed bool, at float64) {
	m.queue = append(m.queue, lesson{e, failed})
	x := &e.x
	if x.Attempt <= 1 {
		for l, key := range e.keys.level {
			if l == levelBranch && x.Branch == "" {
				continue
			}
			c := m.counter(key, e.keys.ownerAt(l), at)
			if c == nil {
				continue
			}
			w := 1.0
			// What runs side by side fails side by side: for a whole repository
			// that is hardly more news than one outcome.
			if l < levelJob && c.seen > 0 && x.At <= c.last {
				w = crowded
			}
			c.add(failed, at, w)
		}
	}
	if x.Commit != "" {
		m.kinUpdate(e.keys.owner, e.keys.commit, e.base, failed, at, 0, 1)
		m.kinUpdate(e.keys.owner, e.keys.commitStep, e.base, failed, at, 0, 0) // the last attempt
	}
	if x.Branch != "" {
		m.kinUpdate(e.keys.owner, e.keys.branch, e.base, failed, at, 0, .97)
	}
	m.kinUpdate(e.keys.owner, e.keys.level[levelRepo], e.base, failed, at, 3600, 1)
	m.kinUpdate(e.keys.owner, e.keys.level[levelJob], e.base, failed, at, 0, .9)
}

func (m *Model) kinUpdate(owner, key uint64, p float64, failed bool, at, halfLife, keep float64) {
	k := m.kin[key]
	if k == nil {
		if len(m.kin) >= m.limit {
			out := makeRoom(m.kin, m.shares.kin, func(_ uint64, k *kinship) (uint64, float64) { return k.owner, k.last })
			m.shares.kin.drop(m.kin[out].owner)
			delete(m.kin, out)
			m.dirty.mark(&m.dirty.kin, out)
		}
		k = &kinship{last: at, owner: owner}
		m.putKin(key, k)
	}
	if k.owner != owner {
		if k.owner != 0 {
			return // another repository's, by a collision
		}
		m.shares.kin.drop(0)
		k.owner = owner
		m.shares.kin.add(owner)
	}
	d := keep
	if halfLife > 0 && at > k.last {
		d *= math.Exp2(-(at - k.last) / halfLife)
	}
	k.expected = k.expected*d + p
	k.failed *= d
	k.n = k.n*d + 1
	if failed {
		k.failed++
	}
	k.last = max(at, k.last)
	m.dirty.mark(&m.dirty.kin, key)
}

// counter is the counter under a key, made if need be; nil if it is another
// owner's, by a collision.
func (m *Model) counter(key, owner uint64, at float64) *counter {
	c := m.counters[key]
	if c == nil {
		if len(m.counters) >= m.limit {
			out := makeRoom(m.counters, m.shares.counters, func(_ uint64, c *counter) (uint64, float64) { return c.owner, c.last })
			m.shares.counters.drop(m.counters[out].owner)
			delete(m.counters, out)
			m.dirty.mark(&m.dirty.counters, out)
		}
		c = &counter{last: at, owner: owner}
		m.putCounter(key, c)
	}
	if c.owner != owner {
		if c.owner != 0 || owner == 0 {
			return nil
		}
		m.shares.counters.drop(0)
		c.owner = owner
		m.shares.counters.add(owner)
	}
	m.dirty.mark(&m.dirty.counters, key)
	return c
}

func (m *Model) putCounter(key uint64, c *counter) {
	if old := m.counters[key]; old != nil {
		m.shares.counters.drop(old.owner)
	}
	m.counters[key] = c
	m.shares.counters.add(c.owner)
}

func (m *Model) putKin(key uint64, k *kinship) {
	if old := m.kin[key]; old != nil {
		m.shares.kin.drop(old.owner)
	}
	m.kin[key] = k
	m.shares.kin.add(k.owner)
}

// evict removes the oldest of a few entries taken at random, which Go's map
// iteration does for us: constant time, and old keys go first in the long run.
func evict[V any](m map[uint64]V, age func(V) float64) uint64 {
	var victim uint64
	oldest, n := math.Inf(1), 0
	for k, v := range m {
		if a := age(v); a < oldest {
			victim, oldest = k, a
		}
		if n++; n == 8 {
			break
		}
	}
	delete(m, victim)
	return victim
}

func (d *dirtySet) mark(set *map[uint64]struct{}, key uint64) {
	if !d.on {
		return
	}
	if *set == nil {
		*set = map[uint64]struct{}{}
	}
	(*set)[key] = struct{}{}
}

// What the model is set to. These were chosen on the shared files of three
// kinds of projects together, where each has a wide plateau; none is the best of
// any one file.
const (
	stale     = 180 * 24 * 3600. // half-life, in seconds, of what a key knows while nothing happens to it
	prior     = .05              // how much fails where nothing is known
	shrink    = 5.0              // how many events of its own a key needs to outweigh its parent
	crowded   = .1               // weight, above the job, of an outcome that overlaps with the one before
	deep      = .23              // weight each of the four longer half-lives of the deepest estimate starts with
	rateStack = .02              // of the stack's weights
	rateCal   = .005             // of the calibration
	rateMix   = .02              // of the experts' log weights
	pullBack  = 1e-4             // towards the weights at the start
	batchPow  = .85              // a batch of n outcomes teaches as much as n^(1-batchPow)
)

// Settle learns from the outcomes that Learn has collected: their gradient is
// averaged, so that a thousand outcomes of one push teach as much as a few, not
// a thousand times as much.
func (m *Model) Settle() {
	if len(m.queue) == 0 {
		return
	}
	scale := math.Pow(float64(len(m.queue)), -batchPow)
	init := initialWeights()
	for _, l := range m.queue {
		y := 0.0
		if l.failed {
			y = 1
		}
		e := l.e
		w := m.weights(e)
		if e.x.Attempt > 1 {
			g := sigmoid(e.experts[expertStack]) - y
			for i, v := range e.feats {
				if v != 0 {
					w[i].g += g * g * v * v
					w[i].v -= rateStack * g * v / math.Sqrt(w[i].g+1)
				}
			}
			continue
		}
		gc := (sigmoid(e.experts[expertCal]) - y) * scale
		for i, v := range [2]float64{e.experts[expertAvg], 1} {
			c := &m.cal[i]
			gi := gc * v
			c.g += gi * gi
			c.v -= rateCal * gi / math.Sqrt(c.g+1)
		}
		g := sigmoid(e.experts[expertStack]) - y
		for i, v := range e.feats {
			if v == 0 {
				continue
			}
			gi := g*v*scale + pullBack*(w[i].v-init[i].v)*scale
			w[i].g += gi * gi
			w[i].v -= rateStack * gi / math.Sqrt(w[i].g+1)
		}
		best := math.Inf(-1)
		for i, x := range e.experts {
			m.mix[i] -= rateMix * scale * logLoss(sigmoid(x), y)
			best = max(best, m.mix[i])
		}
		for i := range m.mix { // a share for the comeback of any expert
			m.mix[i] = max(m.mix[i]-best, -8)
		}
		m.tokenLearn(e.tokens, y, scale)
	}
	clear(m.queue)
	m.queue = m.queue[:0]
}

func logLoss(p, y float64) float64 {
	p = min(max(p, 1e-7), 1-1e-7)
	if y > .5 {
		return -math.Log(p)
	}
	return -math.Log(1 - p)
}

// FTRL-proximal over the tokens of names.
const (
	ftrlAlpha = .1
	ftrlBeta  = 1.0
	ftrlL1    = .2
	ftrlL2    = 1.0
	maxTokens = 24
)

func (m *Model) tokenWeight(w *weight) float64 {
	if math.Abs(w.v) <= ftrlL1 {
		return 0
	}
	return -(w.v - math.Copysign(ftrlL1, w.v)) / ((ftrlBeta+math.Sqrt(w.g))/ftrlAlpha + ftrlL2)
}

func (m *Model) tokenLogit(tokens []uint64) float64 {
	s := 0.0
	for _, t := range tokens {
		if w := m.tokens[t]; w != nil {
			s += m.tokenWeight(w)
		}
	}
	return min(max(s, -8), 8)
}

func (m *Model) tokenLearn(tokens []uint64, y, scale float64) {
	g := (sigmoid(m.tokenLogit(tokens)) - y) * scale
	for _, t := range tokens {
		w := m.tokens[t]
		if w == nil {
			if len(m.tokens) >= m.limit {
				m.dirty.mark(&m.dirty.tokens, evict(m.tokens, func(w *weight) float64 { return w.g }))
			}
			w = &weight{}
			m.tokens[t] = w
		}
		v := m.tokenWeight(w)
		sigma := (math.Sqrt(w.g+g*g) - math.Sqrt(w.g)) / ftrlAlpha
		w.v += g - sigma*v
		w.g += g * g
		m.dirty.mark(&m.dirty.tokens, t)
	}
}

// tokensOf splits the names of an execution into hashed words, each under the
// field it comes from.
func tokensOf(x *Execution) []uint64 {
	out := make([]uint64, 1, maxTokens)
	out[0] = hash(fnvOffset, "bias")
	for _, f := range [...]struct{ field, text string }{
		{"r", x.Repo}, {"w", x.Workflow}, {"j", x.Job}, {"s", x.Step}, {"h", x.Host}, {"a", x.Action},
	} {
		if f.text == "" {
			continue
		}
		field := hash(fnvOffset, f.field)
		start := -1
		for i := 0; i <= len(f.text); i++ {
			if i < len(f.text) && isWord(f.text[i]) {
				if start < 0 {
					start = i
				}
				continue
			}
			if start >= 0 {
				if len(out) == maxTokens {
					return out
				}
				out = append(out, hash(field, strings.ToLower(f.text[start:i])))
				start = -1
			}
		}
	}
	return out
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c >= 0x80
}
