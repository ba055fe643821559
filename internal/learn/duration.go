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
}

func (w *window) add(d float64) {
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

// DurationEstimate is how long something is expected to take, in seconds.
type DurationEstimate struct {
	Median, P90, P995 float64
	N                 int // durations it rests on; 0: nothing is known
}

// Durations predicts how long executions take: the median and quantiles of the
// last thirty of the same step, or of the job while the step is new. The tail is
// widened until it has covered what it promised (an adaptive conformal factor).
// It is not safe for concurrent use.
type Durations struct {
	m     map[uint64]*window
	limit int
	// factor widens the 90 % quantile; kept by how often it was exceeded.
	factor float64
	clock  float64
	dirty  dirtySet2
	share  share
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
	return &Durations{m: map[uint64]*window{}, limit: limit, factor: 1, share: share{}}
}

// Predict foretells the duration of what is about to start.
func (d *Durations) Predict(x *Execution) DurationEstimate {
	k := keysOf(x)
	return d.predict(k)
}

func (d *Durations) predict(k keySet) DurationEstimate {
	var buf [windowSize]float32
	for _, key := range [2]uint64{k.level[levelStep], k.level[levelJob]} {
		w := d.m[key]
		if w == nil || w.n == 0 || w.owner != 0 && w.owner != k.owner {
			continue
		}
		s := w.sorted(&buf)
		e := DurationEstimate{Median: quantile(s, .5), N: int(w.n)}
		mean, sd := logMoments(s)
		e.P90 = d.factor * max(quantile(s, .9), math.Exp(mean+1.282*sd)-1)
		e.P995 = max(d.factor*max(float64(s[len(s)-1]), math.Exp(mean+2.576*sd)-1), e.P90)
		return e
	}
	return DurationEstimate{}
}

// logMoments of log(1+s): durations are about log-normal, and may be zero.
func logMoments(s []float32) (mean, sd float64) {
	for _, v := range s {
		mean += math.Log1p(float64(v))
	}
	mean /= float64(len(s))
	for _, v := range s {
		x := math.Log1p(float64(v)) - mean
		sd += x * x
	}
	if len(s) > 1 {
		return mean, math.Sqrt(sd / float64(len(s)-1))
	}
	return mean, .5
}

// Add learns how long something took, in seconds.
func (d *Durations) Add(x *Execution, took float64) {
	if took < 0 || math.IsNaN(took) || math.IsInf(took, 0) {
		return
	}
	k := keysOf(x)
	if e := d.predict(k); e.N > 0 {
		if took > e.P90 {
			d.factor *= 1.018
		} else {
			d.factor *= .998
		}
		d.factor = min(max(d.factor, .5), 3)
	}
	d.clock++
	for _, key := range [2]uint64{k.level[levelStep], k.level[levelJob]} {
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
			w = &window{owner: k.owner}
			d.put(key, w)
		}
		if w.owner != k.owner {
			if w.owner != 0 {
				continue // another repository's, by a collision
			}
			d.share.drop(0)
			w.owner = k.owner
			d.share.add(w.owner)
		}
		w.add(took)
		w.last = d.clock
		if d.dirty.on {
			d.dirty.keys[key] = struct{}{}
		}
	}
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
