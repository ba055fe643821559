package learn

import "math"

// counter is what is remembered about one key: decayed counts, and the recent
// past in a few numbers. Its size is bounded, however often the key occurs.
type counter struct {
	n, f     [nHalf]float64 // decayed events and failures
	faded    [nHalf]float64 // log of how far they have faded since the beginning
	up       gift[[nHalf]float64]
	seen     int64
	fails    int64
	streak   int32 // > 0: so many failures in a row; < 0: passes
	last     float64
	lastFail float64 // 0: never
	owner    uint64  // whose it is; 0: everybody's, or from before owners were kept
	contexts []contextCount
}

// gift is what a key gave to its parent's counts, faded as they fade, so that
// the parent's estimate can be made of its other children alone. An estimate that
// shrinks towards a parent with its own events in it counts them twice, and once
// more at each level: after ten passes such a model is a thousand times surer than
// it may be.
type gift[A any] struct {
	n, f A
	at   A // the parent's faded, then
}

// decay is what one event leaves of counts: a whole one, and one that hardly counts;
// and the logarithms of both.
type decay struct{ whole, part, logWhole, logPart float64 }

func decayOf(halfLife float64) decay {
	d := math.Exp2(-1 / halfLife)
	part := 1 - (1-d)*crowded
	return decay{d, part, math.Log(d), math.Log(part)}
}

var decays = func() (d [nHalf]decay) {
	for i, h := range halfLives {
		d[i] = decayOf(h)
	}
	return d
}()

func (c *counter) add(failed bool, at, w float64) {
	for i := range c.n {
		c.n[i], c.f[i], c.faded[i] = fade(c.n[i], c.f[i], c.faded[i], &decays[i], w, failed)
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

// fade counts one event of weight w, which is 1 or crowded.
func fade[F float32 | float64](n, f, faded F, d *decay, w float64, failed bool) (F, F, F) {
	by, logBy := d.whole, d.logWhole
	if w != 1 {
		by, logBy = d.part, d.logPart
	}
	n = n*F(by) + F(w)
	f *= F(by)
	if failed {
		f += F(w)
	}
	return n, f, faded + F(logBy)
}

// give notes what an event of weight w has given to a parent that has faded so far.
func give[F float32 | float64](n, f, at *F, faded F, w float64, failed bool) {
	g := left(faded, *at)
	*n = *n*g + F(w)
	*f *= g
	if failed {
		*f += F(w)
	}
	*at = faded
}

// left is how much is left of what was given to a parent; nothing if the parent
// has been forgotten since, for a living one only fades.
func left[F float32 | float64](faded, at F) F {
	d := float64(faded - at)
	switch {
	case d > 0:
		return 0
	case d > -1e-7: // of what hardly fades
		return F(1 + d)
	case d < -40:
		return 0
	}
	return F(math.Exp(d))
}

// others are the counts of a parent without what a child gave.
func others[F float32 | float64](n, f, childN, childF, g F) (float64, float64) {
	n = max(n-childN*g, 0)
	return float64(n), float64(min(max(f-childF*g, 0), n))
}

// adopt is for a counter stored before gifts were kept: what the child has given is
// taken in proportion.
func (c *counter) adopt(parent *counter) {
	if c.seen == 0 || c.up.n[nHalf-1] != 0 || parent.seen == 0 {
		return
	}
	part := min(float64(c.seen)/float64(parent.seen), 1)
	failed := part
	if parent.fails > 0 {
		failed = min(float64(c.fails)/float64(parent.fails), 1)
	}
	for i := range c.n {
		c.up.n[i], c.up.f[i], c.up.at[i] = parent.n[i]*part, parent.f[i]*failed, parent.faded[i]
	}
}

// The contexts that an execution is in: what has just happened, as one of a few
// cases. What such a case means is learned over everything, then for the
// repository, the job and the step.
const (
	contextBranch  = iota // is the branch known, and how did it end there last?
	contextStep           // the step's streak, and whether it has ever failed
	contextOnPlace        // the same of the step on this branch
	nContexts
)

// The cases. 0 is that nothing can be said.
const (
	caseBranchNew = 1 + iota
	caseBranchPassed
	caseBranchFailed
	caseNew                     // never run
	caseGreen                   // and 2·bucket, and 1 if it has failed before
	caseRed   = caseGreen + 14  // and the bucket
	cases     = caseRed + 7     // of a streak
	onPlace   = cases - caseNew // from a step's case to that of the step on its branch
	nCases    = cases + onPlace
)

// contextCount are the counts of a case at one key.
type contextCount struct {
	which       uint8
	n, f, faded [nContextHalf]float32
	up          gift[[nContextHalf]float32]
}

var contextHalfLives = [...]float64{40, 400}

const nContextHalf = len(contextHalfLives)

var contextDecays = func() (d [nContextHalf]decay) {
	for i, h := range contextHalfLives {
		d[i] = decayOf(h)
	}
	return d
}()

// contextLevels are the levels at which contexts are counted.
var contextLevels = [...]int{levelAll, levelRepo, levelJob, levelStep}

// perCounter bounds the contexts in all counters together.
const perCounter = 4

func (c *counter) context(which uint8) *contextCount {
	if c == nil {
		return nil
	}
	for i := range c.contexts {
		if c.contexts[i].which == which {
			return &c.contexts[i]
		}
	}
	return nil
}

// streakBucket says how long a streak is, roughly.
func streakBucket(n int32) int {
	switch {
	case n < 3:
		return int(n) - 1
	case n < 5:
		return 2
	case n < 10:
		return 3
	case n < 20:
		return 4
	case n < 50:
		return 5
	}
	return 6
}

func streakCase(c *counter) uint8 {
	switch {
	case c == nil || c.seen == 0:
		return caseNew
	case c.streak > 0:
		return uint8(caseRed + streakBucket(c.streak))
	case c.fails > 0:
		return uint8(caseGreen + 2*streakBucket(-c.streak) + 1)
	}
	return uint8(caseGreen + 2*streakBucket(-c.streak))
}

// contextsOf says which cases an execution is.
func contextsOf(x *Execution, step, place *counter) (out [nContexts]uint8) {
	out[contextStep] = streakCase(step)
	if x.Branch == "" {
		return out
	}
	out[contextOnPlace] = streakCase(place) + onPlace
	switch {
	case place == nil || place.seen == 0:
		out[contextBranch] = caseBranchNew
	case place.streak > 0:
		out[contextBranch] = caseBranchFailed
	default:
		out[contextBranch] = caseBranchPassed
	}
	return out
}

// caseStart is how much fails in a case where nothing else is known: measured on
// public histories of builds, as are the numbers below it.
func caseStart(which uint8, prior float64) float64 {
	switch which {
	case caseBranchNew, caseBranchPassed:
		return prior
	case caseBranchFailed:
		return .45
	}
	if which >= caseNew+onPlace {
		which -= onPlace
	}
	switch {
	case which == caseNew:
		return prior
	case which >= caseRed:
		return [...]float64{.40, .57, .67, .80, .88, .93, .95}[which-caseRed]
	case (which-caseGreen)%2 == 1:
		return min([...]float64{.30, .22, .17, .125, .09, .063, .038}[(which-caseGreen)/2], 2*prior)
	}
	return prior * [...]float64{.7, .65, .6, .6, .6, .6, .4}[(which-caseGreen)/2]
}

// contextLogit is what the execution's case says at every level, one shrinking
// towards the other.
func contextLogit(which uint8, cs *[nLevels]*counter, unit string) float64 {
	var p [nContextHalf]float64
	for i := range p {
		p[i] = caseStart(which, priorOf(unit))
	}
	s := contextRoot
	for j, l := range contextLevels {
		if c := cs[l].context(which); c != nil {
			var child *contextCount
			if j+1 < len(contextLevels) {
				child = cs[contextLevels[j+1]].context(which)
			}
			for i := range p {
				n, f := float64(c.n[i]), float64(c.f[i])
				if child != nil {
					n, f = others(c.n[i], c.f[i], child.up.n[i], child.up.f[i], left(c.faded[i], child.up.at[i]))
				}
				p[i] = (f + s*p[i]) / (n + s)
			}
		}
		s = contextShrink
	}
	out := 0.0
	for _, v := range p {
		out += logit(v)
	}
	return out / float64(nContextHalf)
}

// count brings an outcome to the counters of all levels.
func (m *Model) count(e *Estimate, failed bool, at float64) {
	x := &e.x
	var above *counter
	var aboveWeight float64
	aboveContexts := [nContexts]*contextCount{}
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
		if above != nil {
			c.adopt(above)
		}
		c.add(failed, at, w)
		if above != nil {
			for i := range nHalf {
				give(&c.up.n[i], &c.up.f[i], &c.up.at[i], above.faded[i], aboveWeight, failed)
			}
		}
		if l != levelWorkflow && l != levelBranch {
			m.countContexts(e, c, &aboveContexts, w, aboveWeight, failed)
		}
		above, aboveWeight = c, w
	}
}

func (m *Model) countContexts(e *Estimate, c *counter, above *[nContexts]*contextCount, w, aboveWeight float64, failed bool) {
	for k, which := range e.contexts {
		if which == 0 {
			continue
		}
		v := c.context(which)
		if v == nil {
			if m.contexts >= perCounter*m.limit {
				above[k] = nil
				continue
			}
			// Pointers into the slice from before are to another key's.
			c.contexts = append(c.contexts, contextCount{which: which})
			m.contexts++
			v = &c.contexts[len(c.contexts)-1]
		}
		for i := range v.n {
			v.n[i], v.f[i], v.faded[i] = fade(v.n[i], v.f[i], v.faded[i], &contextDecays[i], w, failed)
			if a := above[k]; a != nil {
				give(&v.up.n[i], &v.up.f[i], &v.up.at[i], a.faded[i], aboveWeight, failed)
			}
		}
	}
	for k, which := range e.contexts {
		above[k] = c.context(which)
	}
}
