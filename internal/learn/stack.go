package learn

import "math"

// The features of the stack. Estimates are differences from the middle, the mean
// of the deepest ones, so that what they add is only what they say beyond it.
const (
	featBias    = iota
	featMiddle  // the middle itself
	featContext // nContexts
	featLevel   = featContext + nContexts
	featLast    = featLevel + len(levelFeatures) // last outcome: step, step on branch, job
	featRun     = featLast + 3                   // streak: the same three
	featSince   = featRun + 3                    // time since the last failure, and whether there was one: step, job
	featToken   = featSince + 4                  // FTRL over name tokens
	featKin     = featToken + 1                  // same commit, branch, repo lately, job, author: more failures than expected?
	featParent  = featKin + 5                    // how the same ended at the parent commit, and whether that is known
	featChange  = featParent + 2
	nFeatures   = featChange + nChange
)

// nChange are the numbers of a Change.
const nChange = 7

// levelFeatures are the estimates of the hierarchy that the stack looks at: level
// and half-life.
var levelFeatures = [...][2]int{
	{levelBranch, 0}, {levelBranch, 1}, {levelBranch, 2}, {levelBranch, 3},
	{levelStep, 0}, {levelStep, 1}, {levelStep, 2}, {levelStep, 3}, {levelStep, 4},
	{levelJob, 1}, {levelJob, 3}, {levelJob, 4},
	{levelWorkflow, 2}, {levelWorkflow, 4},
	{levelRepo, 1}, {levelRepo, 2}, {levelRepo, 4},
	{levelAll, 4},
}

// What the stacks start with.
var startWeights = func() (w [nFeatures]float64) {
	w[featMiddle] = 1
	w[featContext+contextBranch], w[featContext+contextStep], w[featContext+contextOnPlace] = .15, .3, .15
	return w
}()

// The experts whose log-odds are mixed.
const (
	expertBold = iota
	expertTimid
	expertStart  // the stack's weights as they start
	expertMiddle // the hierarchy alone
	nExperts
)

// What the model is set to. Most of it was measured on public histories of other
// projects than the shared files, and has a wide plateau on both.
const (
	stale  = 180 * 24 * 3600. // half-life, in seconds, of what a key knows while nothing happens to it
	shrink = 5.0              // how many events of its own a key needs to outweigh its parent
	// likewise, of one that never failed and has nothing but the prior above it: of
	// builds that had passed 20 to 49 times so, one in twelve failed next
	alone         = 20.0
	contextRoot   = 20.0 // likewise, of a context everywhere
	contextShrink = 15.0 // and below that
	crowded       = .1   // weight, above the job, of an outcome that overlaps with the one before
	rateMix       = .2   // of the experts' log weights
	shareMix      = 1e-3 // of every expert's weight that all share
	rateRetry     = .02
	farthest      = 6.0 // that a difference of log-odds is taken for
)

// priorOf is how much fails where nothing is known.
func priorOf(unit string) float64 {
	switch unit {
	case unitRun:
		return .15
	case unitJob:
		return .05
	}
	return .02
}

// stackConfig says how freely a stack learns.
type stackConfig struct {
	variance, base float64 // of the weights at the start; of bias and middle
	noise          float64 // of that, added a batch
	batch          float64 // a batch of n outcomes teaches as much as n^(1-batch)
}

var (
	bold  = stackConfig{variance: .05, base: .005, noise: 1e-4, batch: .5}
	timid = stackConfig{variance: .01, base: .0005, batch: .7}
)

// stack is an online logistic regression, by Laplace's approximation: weights and
// how sure of them it is (their covariance).
type stack struct {
	cfg stackConfig
	w   [nFeatures]float64
	p   [nFeatures][nFeatures]float64 // its lower half: it is symmetric
	top int                           // features above it never had a value
}

func newStack(cfg stackConfig) *stack {
	s := &stack{cfg: cfg, w: startWeights}
	for i := range s.p {
		s.p[i][i] = s.start(i)
	}
	return s
}

// start is the variance a weight starts with.
func (s *stack) start(i int) float64 {
	if i == featBias || i == featMiddle {
		return s.cfg.base
	}
	return s.cfg.variance
}

func (s *stack) logit(x *[nFeatures]float64) float64 { return dot(&s.w, x) }

func dot(w, x *[nFeatures]float64) float64 {
	v := 0.0
	for i := range x {
		v += w[i] * x[i]
	}
	return min(max(v, -11), 11)
}

// learn takes one outcome of a batch of n.
func (s *stack) learn(x *[nFeatures]float64, y float64, n int) {
	scale := batchShare(n, s.cfg.batch)
	p := sigmoid(s.logit(x))
	// Features that never had a value have no part in it yet; those of changes are the
	// last, and mostly nobody knows them.
	for i := s.top; i < nFeatures; i++ {
		if x[i] != 0 {
			s.top = i + 1
		}
	}
	var u [nFeatures]float64
	for i := range s.top {
		row, xs, xi := s.p[i][:i], x[:i], x[i]
		xs = xs[:len(row)]
		var even, odd float64 // so that one addition need not wait for the other
		j := 0
		if xi != 0 {
			us := u[:len(row)]
			for ; j+1 < len(row); j += 2 {
				even += row[j] * xs[j]
				odd += row[j+1] * xs[j+1]
				us[j] += row[j] * xi
				us[j+1] += row[j+1] * xi
			}
			if j < len(row) {
				even += row[j] * xs[j]
				us[j] += row[j] * xi
			}
		} else {
			for ; j+1 < len(row); j += 2 {
				even += row[j] * xs[j]
				odd += row[j+1] * xs[j+1]
			}
			if j < len(row) {
				even += row[j] * xs[j]
			}
		}
		u[i] += even + odd + s.p[i][i]*xi
	}
	xu := 0.0
	for i, v := range x[:s.top] {
		xu += v * u[i]
	}
	h := scale * p * (1 - p)
	den := 1 + h*xu
	g := scale * (y - p) / den
	k := h / den
	for i := range s.top {
		s.w[i] += u[i] * g
		if u[i] == 0 {
			continue
		}
		row, ku := s.p[i][:i+1], k*u[i]
		by := u[:len(row)]
		for j, v := range by {
			row[j] -= ku * v
		}
	}
}

// batchShare is how much each of n outcomes teaches that arrive together: n^-power.
func batchShare(n int, power float64) float64 {
	if n == 1 {
		return 1
	}
	return math.Pow(float64(n), -power)
}

// settle ends a batch: what was learned long ago is a little less sure.
func (s *stack) settle() {
	if s.cfg.noise == 0 {
		return
	}
	for i := range s.p {
		if v := s.start(i); s.p[i][i] < v {
			s.p[i][i] += s.cfg.noise * v
		}
	}
}

// scale brings a number that grows with nothing to the mean 0 and the spread 1.
type scale struct{ n, mean, m2 float64 }

func (s *scale) add(v float64) {
	s.n = min(s.n+1, 5000)
	d := v - s.mean
	s.mean += d / s.n
	s.m2 += (d*(v-s.mean) - s.m2) / s.n
}

func (s *scale) of(v float64) float64 {
	if s.n < 20 || s.m2 < 1e-6 {
		return 0
	}
	return min(max((v-s.mean)/math.Sqrt(s.m2), -3), 3)
}

// numbers are those of a change, in logarithms; negative where they are unknown.
func (c *Change) numbers() (v [nChange]float64) {
	for i, n := range [nChange]int{c.Files, c.Added, c.Deleted, c.Source, c.Test, c.Doc, c.Config} {
		if v[i] = -1; n >= 0 {
			v[i] = math.Log1p(float64(n))
		}
	}
	return v
}

// features looks everything up that the estimate is made of.
func (m *Model) features(e *Estimate) {
	x := &e.x
	prior := priorOf(x.Unit)
	hold, known := alone, 0.0
	var p [nHalf]float64
	for i := range p {
		p[i] = prior
	}
	var cs [nLevels]*counter
	for l := range nLevels {
		if l != levelBranch || x.Branch != "" {
			cs[l] = m.at(&e.keys, l)
		}
	}
	for l, c := range cs {
		if c != nil {
			d := 1.0
			if x.At > c.last {
				d = math.Exp2((c.last - x.At) / stale)
			}
			var child *counter
			if l < levelBranch {
				child = cs[l+1]
			}
			if c.fails > 0 || known > alone {
				hold = shrink
			}
			for i := range nHalf {
				n, f := c.n[i], c.f[i]
				if child != nil {
					n, f = others(n, f, child.up.n[i], child.up.f[i], left(c.faded[i], child.up.at[i]))
				}
				p[i] = (f*d + hold*p[i]) / (n*d + hold)
				if i == nHalf-1 {
					known += n
				}
			}
			if l > levelAll {
				e.Seen = c.seen
			}
		}
		for i := range nHalf {
			e.est[l][i] = logit(p[i])
		}
	}
	if c := cs[levelStep]; c != nil {
		e.Seen = c.seen
	}
	e.base = p[2]

	f := &e.feats
	f[featBias] = 1
	middle := 0.0
	for i := 1; i < nHalf; i++ {
		middle += e.est[levelBranch][i] / float64(nHalf-1)
	}
	f[featMiddle] = middle
	beyond := func(v float64) float64 { return min(max(v-middle, -farthest), farthest) }
	e.contexts = contextsOf(x, cs[levelStep], cs[levelBranch])
	for k, which := range e.contexts {
		if which != 0 {
			f[featContext+k] = beyond(contextLogit(which, &cs, x.Unit))
		}
	}
	for k, v := range levelFeatures {
		f[featLevel+k] = beyond(e.est[v[0]][v[1]])
	}
	for j, l := range [3]int{levelStep, levelBranch, levelJob} {
		if c := cs[l]; c != nil && c.seen > 0 {
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
	f[featKin+4] = m.kinFeature(&e.keys, e.keys.author, x.Change.Author != "", x.At, 0)
	if k := m.kinAt(&e.keys, e.keys.parentStep); k != nil && x.Change.Parent != "" {
		f[featParent], f[featParent+1] = -1, 1
		if k.failed > 0 {
			f[featParent] = 1
		}
	}
	if x.Change.Known {
		for i, v := range x.Change.numbers() {
			if v >= 0 {
				f[featChange+i] = m.scales[i].of(v)
			}
		}
	}
}

// combine makes one probability of what the experts say.
func (m *Model) combine(e *Estimate) {
	if e.x.Attempt > 1 {
		// Later attempts are another matter: their own weights, no mixture.
		v := 0.0
		e.retry = m.retryFeatures(e)
		for i, f := range e.retry {
			v += m.retryW[i].v * f
		}
		e.P = sigmoid(min(max(v, -11), 11))
		e.interval(m.at(&e.keys, levelStep))
		return
	}
	e.experts = [nExperts]float64{m.bold.logit(&e.feats), m.timid.logit(&e.feats), dot(&startWeights, &e.feats), e.feats[featMiddle]}
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

// The features of a later attempt.
const (
	retryTable   = iota // how attempts of this number end
	retryPassed         // an earlier one passed: all was run again
	retryHistory        // the middle
	retryStep           // the last outcome of the step
	nRetry
)

// weight is a coefficient that learns by itself: AdaGrad here, FTRL for tokens
// (z, n).
type weight struct{ v, g float64 }

func (m *Model) retryFeatures(e *Estimate) (f [nRetry]float64) {
	k := m.kinAt(&e.keys, e.keys.commitStep)
	switch {
	case k != nil && k.failed == 0:
		f[retryPassed] = -1
	default: // it failed before, or nobody knows why there is another attempt
		f[retryTable] = logit(1 - retryPrior[min(e.x.Attempt-1, len(retryPrior))-1])
	}
	f[retryHistory] = e.feats[featMiddle]
	f[retryStep] = e.feats[featLast]
	return f
}

// Settle learns from the outcomes that Learn has collected. Those that arrive
// together are scaled, so that a thousand outcomes of one push teach as much as a
// few, not a thousand times as much.
func (m *Model) Settle() {
	n := len(m.queue)
	if n == 0 {
		return
	}
	var loss [nExperts]float64
	for _, l := range m.queue {
		y := 0.0
		if l.failed {
			y = 1
		}
		e := l.e
		if e.x.Attempt > 1 {
			m.retryLearn(e, y)
			continue
		}
		m.bold.learn(&e.feats, y, n)
		m.timid.learn(&e.feats, y, n)
		for i, v := range e.experts {
			loss[i] += logLoss(sigmoid(v), y)
		}
		m.tokenLearn(e.tokens, y, batchShare(n, tokenBatch))
		if e.x.Change.Known {
			for i, v := range e.x.Change.numbers() {
				if v >= 0 {
					m.scales[i].add(v)
				}
			}
		}
	}
	m.bold.settle()
	m.timid.settle()
	m.mixLearn(&loss, n)
	clear(m.queue)
	m.queue = m.queue[:0]
}

// mixLearn moves weight to the experts that lost least, and shares some out for
// the comeback of any.
func (m *Model) mixLearn(loss *[nExperts]float64, n int) {
	rate := rateMix * batchShare(n, .5)
	top := math.Inf(-1)
	for i := range m.mix {
		m.mix[i] -= rate * loss[i]
		top = max(top, m.mix[i])
	}
	sum := 0.0
	for i := range m.mix {
		m.mix[i] = math.Exp(m.mix[i] - top)
		sum += m.mix[i]
	}
	for i := range m.mix {
		m.mix[i] = math.Log((1-shareMix)*m.mix[i]/sum + shareMix/nExperts)
	}
}

func (m *Model) retryLearn(e *Estimate, y float64) {
	g := e.P - y
	for i, v := range e.retry {
		if v == 0 {
			continue
		}
		w := &m.retryW[i]
		w.g += g * g * v * v
		w.v -= rateRetry * g * v / math.Sqrt(w.g+1)
	}
}
