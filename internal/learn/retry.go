package learn

import (
	"math"
	"math/rand/v2"
	"time"
)

// RetryCase is a failure, about whose next attempt something is asked.
type RetryCase struct {
	Repo, Workflow, Job, Step string // as of an [Execution]
	Branch                    string
	Signature                 string // in the repository; "" is unknown
	Class                     Class  // "" is unknown
	Attempt                   int    // that failed, from 1
	// Asked: a person asked for the next attempt. Those pass more often, for people
	// look before they ask.
	Asked bool
}

// Retries learns what next attempts at failures come to. Where nothing is known, it
// is a table of how often attempts of that number pass. Where more or fewer have
// passed than it lets expect, of a class of failures, in a repository, a workflow, on
// a branch, of a step, the odds are moved by the root of that ratio; then the
// signature's own attempts count. So what is known of the whole speaks until the part
// has spoken. Old attempts fade. It is not safe for concurrent use.
type Retries struct {
	m     map[uint64]*retried
	limit int
	clock float64
	dirty map[uint64]struct{}
	share share
}

// retried is what attempts of a key came to, beside what the table let expect.
type retried struct {
	passed, expected, n float64
	last                float64
	owner               uint64
}

// NewRetries remembers at most limit keys (0: 20,000).
func NewRetries(limit int) *Retries {
	if limit <= 0 {
		limit = 20_000
	}
	return &Retries{m: map[uint64]*retried{}, limit: limit, dirty: map[uint64]struct{}{}, share: share{}}
}

// How often the next attempt passed, after so many attempts: of 7,605 public re-runs
// that somebody asked for, and of those that nobody chose.
var (
	retryPrior    = [...]float64{.585, .439, .325, .277, .193}
	unaskedPassed = [...]float64{.31, .12, .06, .05, .04}
)

const (
	tableWeight     = 20. // of the tables, in attempts
	signatureWeight = 4.  // of everything else beside a signature's own attempts
	retryShrink     = 1.  // attempts that a group is taken to have had as expected
	retryPower      = .5
	retryKeep       = .98 // of what a key knows, an attempt
)

// retryLevels are the groups whose attempts are compared with what was expected.
const (
	retryClass = iota
	retryRepo
	retryWorkflow
	retryBranch
	retryStepOf
	nRetryLevels
)

type retryKeys struct {
	owner     uint64
	table     uint64
	level     [nRetryLevels]uint64 // 0: nothing is known of the case
	signature uint64
}

func (c *RetryCase) keys() (k retryKeys) {
	k.owner = ownerOf(c.Repo)
	h := hash(fnvOffset, "retry")
	table := [2]string{"unasked", "asked"}
	i := 0
	if c.Asked {
		i = 1
	}
	k.table = hash(hash(h, table[i]), string(rune('0'+c.tried())))
	if c.Class != "" {
		k.level[retryClass] = hash(hash(h, "class"), string(c.Class))
	}
	repo := hash(hash(h, "repo"), c.Repo)
	k.level[retryRepo] = repo
	if c.Workflow != "" {
		k.level[retryWorkflow] = hash(hash(repo, "workflow"), c.Workflow)
	}
	if c.Branch != "" {
		k.level[retryBranch] = hash(hash(repo, "branch"), c.Branch)
	}
	k.level[retryStepOf] = hash(hash(hash(hash(repo, "step"), c.Workflow), c.Job), c.Step)
	if c.Signature != "" {
		k.signature = hash(hash(repo, "signature"), c.Signature)
	}
	return k
}

// ownerAt is who owns a key: classes and tables are everybody's.
func (k *retryKeys) ownerAt(key uint64) uint64 {
	if key == k.table || key == k.level[retryClass] {
		return 0
	}
	return k.owner
}

// tried is how many attempts there were, as far as that is told apart.
func (c *RetryCase) tried() int { return min(max(c.Attempt, 1), len(retryPrior)) }

func (r *Retries) at(k *retryKeys, key uint64) *retried {
	v := r.m[key]
	if key == 0 || v == nil || v.owner != k.ownerAt(key) {
		return nil
	}
	return v
}

// start is what the table says, moved by what a class is known for.
func (r *Retries) start(c *RetryCase, k *retryKeys) float64 {
	p := unaskedPassed[c.tried()-1]
	if c.Asked {
		p = retryPrior[c.tried()-1]
	}
	if v := r.at(k, k.table); v != nil {
		p = (tableWeight*p + v.passed) / (tableWeight + v.n)
	}
	if c.Class != "" && !c.Asked { // a person has looked
		p = sigmoid(logit(p) + logit(flakyPrior(c.Class)) - logit(flakyPrior(ClassOther)))
	}
	return p
}

// Predict is the probability that the next attempt passes, and on how many attempts
// of its own that rests: those of a table alone are worth few.
func (r *Retries) Predict(c RetryCase) (p, weight float64) {
	k := c.keys()
	l := logit(r.start(&c, &k))
	for _, key := range k.level {
		if v := r.at(&k, key); v != nil {
			l += retryPower * math.Log((v.passed+retryShrink)/(v.expected+retryShrink))
		}
	}
	p, weight = sigmoid(l), signatureWeight
	if v := r.at(&k, k.signature); v != nil {
		p = (signatureWeight*p + v.passed) / (signatureWeight + v.n)
		weight += v.n
	}
	return p, weight
}

// Passed is how many next attempts passed, and how many there were, of the case's
// signature, or while that has had none, of its step.
func (r *Retries) Passed(c RetryCase) (passed, n float64) {
	k := c.keys()
	for _, key := range [2]uint64{k.signature, k.level[retryStepOf]} {
		if v := r.at(&k, key); v != nil {
			return v.passed, v.n
		}
	}
	return 0, 0
}

// Learn takes what the next attempt came to.
func (r *Retries) Learn(c RetryCase, passed bool) {
	k := c.keys()
	expected := r.start(&c, &k)
	r.clock++
	for _, key := range append(k.level[:], k.table, k.signature) {
		if key == 0 {
			continue
		}
		v := r.key(key, k.ownerAt(key))
		if v == nil {
			continue
		}
		y := 0.0
		if passed {
			y = 1
		}
		v.passed, v.expected, v.n, v.last = v.passed*retryKeep+y, v.expected*retryKeep+expected, v.n*retryKeep+1, r.clock
		r.dirty[key] = struct{}{}
	}
}

// key is what is known under a key, made if need be; nil if it is another owner's, by
// a collision.
func (r *Retries) key(key, owner uint64) *retried {
	v := r.m[key]
	if v == nil {
		if len(r.m) >= r.limit {
			out := makeRoom(r.m, r.share, func(_ uint64, v *retried) (uint64, float64) { return v.owner, v.last })
			r.share.drop(r.m[out].owner)
			delete(r.m, out)
			r.dirty[out] = struct{}{}
		}
		v = &retried{owner: owner}
		r.put(key, v)
	}
	if v.owner != owner {
		return nil
	}
	return v
}

func (r *Retries) put(key uint64, v *retried) {
	if old := r.m[key]; old != nil {
		r.share.drop(old.owner)
	}
	r.m[key] = v
	r.share.add(v.owner)
	r.clock = max(r.clock, v.last)
}

// Costs are what an attempt is weighed by, in time of a machine.
type Costs struct {
	Wait    time.Duration // of a person that a pass spares
	Attempt time.Duration // what it takes, with the wait before it
}

// Bounds of chance: where gain and cost are within this of each other, which of them
// is larger is left to chance, so that there is something to learn from.
const (
	closeCall     = .25
	minPropensity = .1
)

// pays is how likely the policy is to make another attempt: 0 or 1 where that pays or
// does not, and by Thompson's sampling, kept off both ends, where it is close.
func (c Costs) pays(p, weight float64) float64 {
	gain, cost := p*float64(c.Wait), float64(c.Attempt)
	if math.Abs(gain-cost) > closeCall*max(gain, cost) {
		if gain > cost {
			return 1
		}
		return 0
	}
	// The share of what p may be, a Beta distribution of weight events about as a
	// normal one, that lies above where it pays.
	sd := math.Sqrt(p * (1 - p) / (weight + 1))
	z := (gain - cost) / (float64(c.Wait) * max(sd, 1e-6))
	return min(max(.5*math.Erfc(-z/math.Sqrt2), minPropensity), 1-minPropensity)
}

// draw says yes with a probability.
func draw(p float64) bool { return rand.Float64() < p }
