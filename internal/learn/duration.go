package learn

import (
	"math"
	"slices"
)

// windowSize is how many durations of a key are remembered.
const windowSize = 30

// window is the ring of a key's last durations, in seconds.
type window struct {
	v     [windowSize]float32
	n     int32 // filled
	at    int32 // next
	last  float64
	owner uint64
	ew    float64 // exponentially weighted mean of logarithms
	drift float64 // of a job: by how much, in logarithms, its steps are off lately
}

func (w *window) add(d float64) {
	l := math.Log(max(d, floor))
	if w.n == 0 {
		w.ew = l
	}
	w.ew += rateEW * (l - w.ew)
	w.v[w.at] = float32(d)
	w.at = (w.at + 1) % windowSize
	w.n = min(w.n+1, windowSize)
}

func (w *window) sorted(buf *[windowSize]float32) []float32 {
	s := buf[:w.n]
	copy(s, w.v[:w.n])
	slices.Sort(s)
	return s
}

// quantile of sorted values, between neighbours.
func quantile(s []float32, q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	at := q * float64(len(s)-1)
	lo := int(at)
	hi := min(lo+1, len(s)-1)
	return float64(s[lo]) + (at-float64(lo))*float64(s[hi]-s[lo])
}

// newest are the last n durations, in order of size.
func (w *window) newest(n int32, buf *[windowSize]float32) []float32 {
	n = min(n, w.n)
	s := buf[:n]
	for i := range n {
		s[i] = w.v[(w.at-1-i+2*windowSize)%windowSize]
	}
	slices.Sort(s)
	return s
}

// DurationEstimate is how long something is expected to take, in seconds.
type DurationEstimate struct {
	Median, P90, P995 float64
	N                 int // durations it rests on; 0: nothing is known

	logs [nDurations]float64 // what each expert says, in logarithms
	high [2]float64          // how far, in logarithms, the bounds are above the median before they are widened
}

// The experts whose logarithms are mixed.
const (
	durationBranch = iota // the median of the last 7 on this branch
	durationRecent        // of the last 10
	durationLong          // of the last 30
	durationEW            // the exponentially weighted mean
	durationDrift         // the last 10, and by how much what ran beside it is off lately
	nDurations
)

// Durations predicts how long executions take, from the last thirty of the same
// step, or of the job while the step is new. The median is a mixture of simple
// experts by weights that follow their losses; bounds come from the window and are
// widened until they have covered what they promise (an adaptive conformal factor).
// It is not safe for concurrent use.
type Durations struct {
	m     map[uint64]*window
	limit int
	// mix are the experts' log weights.
	mix [nDurations]float64
	// factors widen the 90 % and the 99.5 % quantile, in logarithms; kept by how often
	// they were exceeded.
	factors [2]float64
	clock   float64
	dirty   dirtySet2
	share   share
}

type dirtySet2 struct {
	on   bool
	keys map[uint64]struct{}
}

// NewDurations remembers at most limit keys (0: 100,000).
func NewDurations(limit int) *Durations {
	if limit <= 0 {
		limit = 100_000
	}
	return &Durations{m: map[uint64]*window{}, limit: limit, factors: [2]float64{1, 1}, share: share{}}
}

// Predict foretells the duration of what is about to start.
func (d *Durations) Predict(x *Execution) DurationEstimate {
	k := keysOf(x)
	return d.predict(&k, x.Branch != "")
}

// at is the window of a level; nil where nothing is known.
func (d *Durations) at(k *keySet, level int) *window {
	w := d.m[k.level[level]]
	if w == nil || w.n == 0 || w.owner != 0 && w.owner != k.owner {
		return nil
	}
	return w
}

func (d *Durations) predict(k *keySet, branch bool) (e DurationEstimate) {
	step, job := d.at(k, levelStep), d.at(k, levelJob)
	w := step
	if w == nil {
		w = job
	}
	if w == nil {
		return e
	}
	var buf [windowSize]float32
	middle := func(s []float32) float64 { return math.Log(max(quantile(s, .5), floor)) }
	recent := middle(w.newest(10, &buf))
	e.logs[durationRecent], e.logs[durationEW], e.logs[durationDrift], e.logs[durationBranch] = recent, w.ew, recent, recent
	if step != nil {
		if job != nil {
			e.logs[durationDrift] += job.drift
		}
		if branch {
			if b := d.at(k, levelBranch); b != nil {
				few := b.newest(7, &buf)
				part := float64(len(few)) / float64(len(few)+2)
				e.logs[durationBranch] = part*middle(few) + (1-part)*recent
			}
		}
	}
	s := w.sorted(&buf)
	e.logs[durationLong] = middle(s)
	e.N = int(w.n)
	sum, out := 0.0, 0.0
	for i, l := range d.mix {
		v := math.Exp(l)
		sum += v
		out += v * e.logs[i]
	}
	median := out / sum
	sd := logSpread(s)
	e.high[0] = max(math.Log(max(quantile(s, .9), floor))-e.logs[durationLong], 1.282*sd)
	e.high[1] = max(math.Log(max(float64(s[len(s)-1]), floor))-e.logs[durationLong], 2.576*sd, e.high[0])
	const rounding = 1e-6 // a window has half of the digits
	e.Median = math.Exp(median)
	e.P90 = math.Exp(median + d.factors[0]*e.high[0] + rounding)
	e.P995 = max(math.Exp(median+d.factors[1]*e.high[1]+rounding), e.P90)
	return e
}

// logSpread is the spread of logarithms: durations are about log-normal.
func logSpread(s []float32) float64 {
	if len(s) < 2 {
		return .5
	}
	var sum, squares float64
	for _, v := range s {
		l := math.Log(max(float64(v), floor))
		sum += l
		squares += l * l
	}
	n := float64(len(s))
	return math.Sqrt(max(squares-sum*sum/n, 0) / (n - 1))
}

// floor, in seconds, is what a duration is at least taken for: below it is what the
// clock does.
const floor = .01

// How durations are learned; all have wide plateaus on the public histories.
const (
	rateDuration  = .2   // of the experts' log weights
	shareDuration = 1e-4 // of every expert's weight that all share
	rateDrift     = .1
	rateEW        = .2
)

// bounds are the quantiles that are foretold: what they may miss, and how fast they
// follow.
var bounds = [2]struct{ miss, rate float64 }{{.1, .02}, {.005, .05}}

// settle teaches the mixture and the bounds what something took.
func (d *Durations) settle(e *DurationEstimate, took float64) {
	l := math.Log(max(took, floor))
	sum := 0.0
	for i := range d.mix {
		d.mix[i] -= rateDuration * min(math.Abs(e.logs[i]-l), 2)
		d.mix[i] = math.Exp(d.mix[i])
		sum += d.mix[i]
	}
	for i := range d.mix {
		d.mix[i] = math.Log((1-shareDuration)*d.mix[i]/sum + shareDuration/nDurations)
	}
	for i, bound := range [2]float64{e.P90, e.P995} {
		if e.high[i] == 0 {
			continue
		}
		f := &d.factors[i]
		if took > bound {
			*f += bounds[i].rate * (1 - bounds[i].miss)
		} else {
			*f -= bounds[i].rate * bounds[i].miss
		}
		*f = min(max(*f, .2), 5)
	}
}

// Add learns how long something took, in seconds. foretold is what Predict said
// before it started; nil is that nobody asked then.
func (d *Durations) Add(x *Execution, foretold *DurationEstimate, took float64) {
	if took < 0 || math.IsNaN(took) || math.IsInf(took, 0) {
		return
	}
	k := keysOf(x)
	levels := [...]int{levelStep, levelJob, levelBranch}
	n := len(levels)
	if x.Branch == "" {
		n--
	}
	residual := math.NaN()
	if foretold == nil {
		foretold = new(d.predict(&k, x.Branch != ""))
	}
	if e := foretold; e.N > 0 {
		d.settle(e, took)
		if d.at(&k, levelStep) != nil {
			residual = min(max(math.Log(max(took, floor))-e.logs[durationRecent], -1), 1)
		}
	}
	d.clock++
	for _, level := range levels[:n] {
		w := d.window(k.level[level], k.owner)
		if w == nil {
			continue
		}
		w.add(took)
		if level == levelJob && !math.IsNaN(residual) {
			w.drift += rateDrift * (residual - w.drift)
		}
		w.last = d.clock
		if d.dirty.on {
			d.dirty.keys[k.level[level]] = struct{}{}
		}
	}
}

// window is that of a key, made if need be; nil if it is another owner's, by a
// collision.
func (d *Durations) window(key, owner uint64) *window {
	w := d.m[key]
	if w == nil {
		if len(d.m) >= d.limit {
			out := makeRoom(d.m, d.share, func(_ uint64, w *window) (uint64, float64) { return w.owner, w.last })
			d.share.drop(d.m[out].owner)
			delete(d.m, out)
			if d.dirty.on {
				d.dirty.keys[out] = struct{}{}
			}
		}
		w = &window{owner: owner}
		d.put(key, w)
	}
	if w.owner != owner {
		if w.owner != 0 {
			return nil
		}
		d.share.drop(0)
		w.owner = owner
		d.share.add(w.owner)
	}
	return w
}

func (d *Durations) put(key uint64, w *window) {
	if old := d.m[key]; old != nil {
		d.share.drop(old.owner)
	}
	d.m[key] = w
	d.share.add(w.owner)
}

type durationTally struct {
	ape    []float64
	within int
	cover  int
}

func (t *durationTally) add(e DurationEstimate, took float64) {
	if e.N == 0 {
		return
	}
	t.ape = append(t.ape, math.Abs(e.Median-took)/max(took, .01))
	if e.Median <= 2*took && took <= 2*e.Median {
		t.within++
	}
	if took <= e.P90 {
		t.cover++
	}
}

func (t *durationTally) scores() *DurationScores {
	n := len(t.ape)
	if n == 0 {
		return nil
	}
	slices.Sort(t.ape)
	return &DurationScores{N: n, MedianAPE: t.ape[n/2], Within2x: float64(t.within) / float64(n), P90Cover: float64(t.cover) / float64(n)}
}
