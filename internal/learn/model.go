package learn

import "math"

// Execution says what is about to run, as far as its outcome may depend on it.
// Empty fields are unknown. Two executions are of the same thing when Repo,
// Workflow, Job and Step are equal.
type Execution struct {
	Unit                      string // what it is: a step by itself (""), a job, a run
	Repo, Workflow, Job, Step string
	Branch, Commit            string
	Attempt                   int // from 1; 0 is 1
	// Machine says that it is a command outside of workflows, and Commit the machine in
	// which it runs.
	Machine      bool
	Host, Action string
	At           float64 // when it starts, unix seconds
	Change       Change
}

// Change says what a commit changed. The zero Change is unknown; of a known one a
// number is if it is negative.
type Change struct {
	Known          bool // any of the numbers
	Parent, Author string
	Files          int // changed
	Added, Deleted int // lines
	// Of the files.
	Source, Test, Doc, Config int
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

// Estimate is a prediction of the model with what it was made of. It is what
// Learn wants back when the outcome is known.
type Estimate struct {
	P         float64 // probability of failure
	Low, High float64 // 90 % interval
	Seen      int64   // finished executions of the same step (of the nearest thing known)

	x        Execution
	est      [nLevels][nHalf]float64 // log-odds of the hierarchy, each level from its own events and its parent's others
	contexts [nContexts]uint8
	feats    [nFeatures]float64
	retry    [nRetry]float64   // those of a later attempt
	experts  [nExperts]float64 // log-odds
	keys     keySet
	tokens   []uint64
	base     float64 // estimate of the hierarchy alone, which kin are measured against

	took *DurationEstimate // how long it was expected to take, if anybody asked
}

// Model predicts failures. It is a mixture of experts over one set of decayed
// counters; all of it learns online, in O(1), and nothing in it grows with the
// number of executions of a key. It is not safe for concurrent use.
type Model struct {
	counters map[uint64]*counter
	kin      map[uint64]*kinship
	tokens   map[uint64]*weight
	contexts int // in all counters
	bold     *stack
	timid    *stack
	scales   [nChange]scale
	retryW   [nRetry]weight
	mix      [nExperts]float64 // log weights
	limit    int
	shares   struct{ counters, kin share }
	dirty    dirtySet
	queue    []lesson // gradients of outcomes that arrived together
}

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

// keySet are the keys of an execution. They are hashes of names that a workflow
// chooses, and collisions can be made: what is found under a key is only taken
// if its owner is the execution's.
type keySet struct {
	owner                      uint64
	level                      [nLevels]uint64
	commit, branch, commitStep uint64
	parentStep, author         uint64
}

// NewModel makes a model that knows nothing and remembers at most limit keys
// (0: 200,000, at most some 120 MB).
func NewModel(limit int) *Model {
	if limit <= 0 {
		limit = 200_000
	}
	m := &Model{counters: map[uint64]*counter{}, kin: map[uint64]*kinship{}, tokens: map[uint64]*weight{}, limit: limit}
	m.shares.counters, m.shares.kin = share{}, share{}
	m.bold, m.timid = newStack(bold), newStack(timid)
	m.retryW[retryTable].v, m.retryW[retryPassed].v, m.retryW[retryHistory].v = 1, 1.5, .2
	return m
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
	k.parentStep = hash(hash(h, "commit"), x.Change.Parent)
	k.author = hash(hash(k.level[levelRepo], "author"), x.Change.Author)
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
// Settle.
func (m *Model) Learn(e *Estimate, failed bool, at float64) {
	m.queue = append(m.queue, lesson{e, failed})
	x := &e.x
	if x.Attempt <= 1 {
		m.count(e, failed, at)
	}
	if x.Commit != "" {
		m.kinUpdate(e, e.keys.commit, failed, at, 0, 1)
		m.kinUpdate(e, e.keys.commitStep, failed, at, 0, 0) // the last attempt
	}
	if x.Branch != "" {
		m.kinUpdate(e, e.keys.branch, failed, at, 0, .97)
	}
	if x.Change.Author != "" {
		m.kinUpdate(e, e.keys.author, failed, at, 0, .97)
	}
	m.kinUpdate(e, e.keys.level[levelRepo], failed, at, 3600, 1)
	m.kinUpdate(e, e.keys.level[levelJob], failed, at, 0, .9)
}

func (m *Model) kinUpdate(e *Estimate, key uint64, failed bool, at, halfLife, keep float64) {
	owner, p := e.keys.owner, e.base
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
			out := makeRoom(m.counters, m.shares.counters, func(_ uint64, c *counter) (uint64, float64) { return c.owner, worth(c.seen, c.fails, c.last) })
			m.shares.counters.drop(m.counters[out].owner)
			m.contexts -= len(m.counters[out].contexts)
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
		m.contexts -= len(old.contexts)
	}
	m.contexts += len(c.contexts)
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

func logLoss(p, y float64) float64 {
	p = min(max(p, 1e-7), 1-1e-7)
	if y > .5 {
		return -math.Log(p)
	}
	return -math.Log(1 - p)
}
