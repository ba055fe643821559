package learn

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Shift is a change of level: from some execution on, a step or a job takes longer or
// less long than before, or fails more or less often.
type Shift struct {
	Repository string    `json:"repository"`
	Workflow   string    `json:"workflow"`
	Job        string    `json:"job"`
	Step       string    `json:"step,omitempty"` // "": of the job
	Kind       string    `json:"kind"`           // slower, faster, fails more, fails less
	From       float64   `json:"from"`           // seconds, or share that failed
	To         float64   `json:"to"`
	Run        string    `json:"run"`    // with which it began, about
	Commit     string    `json:"commit"` // of that
	Began      time.Time `json:"began"`
	Noticed    time.Time `json:"noticed"`
}

// Shifts notices changes of level as they happen, by two-sided cumulative sums: of
// durations of passes, in logarithms, robustly scaled by the spread of the runs before;
// of failures, by the likelihood of another rate against that of before. After an alarm
// it begins anew. It is not safe for concurrent use.
type Shifts struct {
	m     map[uint64]*level
	limit int
	clock int64
	dirty map[uint64]struct{}
	share share
}

// How shifts are noticed: at these settings hardly a steady execution rings, two to
// seven of a thousand of public histories do (which are not steady), and a change by
// half is found within ten runs in two of three cases.
const (
	shiftRing    = 45
	shiftLag     = 5 // the newest are not what they are compared with
	shiftLeast   = 12
	shiftFloor   = .03 // of the spread
	shiftClip    = 3.
	shiftSlack   = 1.
	shiftBound   = 8.
	rateBound    = 5.5 // in nats
	rateLeast    = 20  // executions before
	rateHalfLife = 100.
	shiftTold    = 14 * 24 * time.Hour // how long a shift is a reason
)

// level is what is remembered of a step or a job.
type level struct {
	Repo     string             `json:"r"`
	Workflow string             `json:"w"`
	Job      string             `json:"j"`
	Step     string             `json:"s,omitempty"`
	Ring     [shiftRing]float32 `json:"d"` // logarithms
	N        int                `json:"n"`
	At       int                `json:"a"`
	Used     int64              `json:"u"`
	Rate     [2]float64         `json:"f"` // failures and executions, faded
	Sums     [nShifts]sum       `json:"c"`
	Last     *Shift             `json:"l,omitempty"`
}

// sum is a cumulative sum with where it left 0.
type sum struct {
	V      float64   `json:"v"`
	Run    string    `json:"r,omitempty"`
	Commit string    `json:"c,omitempty"`
	Began  time.Time `json:"b,omitzero"`
	N      int       `json:"n,omitempty"` // executions since
	Bad    int       `json:"f,omitempty"` // failures among them
}

const (
	shiftSlower = iota
	shiftFaster
	shiftMore
	shiftLess
	nShifts
)

var shiftNames = [nShifts]string{"slower", "faster", "fails more", "fails less"}

// NewShifts remembers at most limit steps and jobs (0: 20,000).
func NewShifts(limit int) *Shifts {
	if limit <= 0 {
		limit = 20_000
	}
	return &Shifts{m: map[uint64]*level{}, limit: limit, dirty: map[uint64]struct{}{}, share: share{}}
}

// Add takes how an execution ended and how long it took, in seconds, negative if that
// says nothing; the Shift is one that is noticed with it, nil mostly.
func (s *Shifts) Add(x *Execution, run string, failed bool, took float64, at time.Time) *Shift {
	key := keysOf(x).level[levelStep]
	v := s.m[key]
	if v == nil {
		if len(s.m) >= s.limit {
			out := makeRoom(s.m, s.share, func(_ uint64, v *level) (uint64, float64) { return ownerOf(v.Repo), float64(v.Used) })
			s.share.drop(ownerOf(s.m[out].Repo))
			delete(s.m, out)
			s.dirty[out] = struct{}{}
		}
		v = &level{Repo: x.Repo, Workflow: clip(x.Workflow, 200), Job: clip(x.Job, 200), Step: clip(x.Step, 300)}
		s.put(key, v)
	}
	if v.Repo != x.Repo {
		return nil // another repository's, by a collision
	}
	s.clock++
	v.Used = s.clock
	s.dirty[key] = struct{}{}
	found := v.rate(x, run, failed, at)
	if !failed && took > 0 {
		found = cmp.Or(v.duration(x, run, took, at), found)
	}
	if found != nil {
		v.Last = found
	}
	return found
}

func (s *Shifts) put(key uint64, v *level) {
	if old := s.m[key]; old != nil {
		s.share.drop(ownerOf(old.Repo))
	}
	s.m[key] = v
	s.share.add(ownerOf(v.Repo))
	s.clock = max(s.clock, v.Used)
}

// step moves a sum, and reports whether it has reached its bound.
func (c *sum) step(by, bound float64, failed bool, x *Execution, run string, at time.Time) bool {
	if c.V == 0 {
		*c = sum{Run: run, Commit: x.Commit, Began: at}
	}
	c.N++
	if failed {
		c.Bad++
	}
	if c.V += by; c.V <= 0 {
		*c = sum{}
	}
	return c.V >= bound
}

func (v *level) shift(kind int, from, to float64, at time.Time) *Shift {
	c := v.Sums[kind]
	return &Shift{Repository: v.Repo, Workflow: v.Workflow, Job: v.Job, Step: v.Step, Kind: shiftNames[kind], From: from, To: to, Run: c.Run,
		Commit: c.Commit,
		Began:  c.Began, Noticed: at}
}

// newest are the last n logarithms but skip, in order of size.
func (v *level) newest(skip, n int) []float64 {
	n = min(n, v.N-skip)
	out := make([]float64, 0, max(n, 0))
	for i := range n {
		out = append(out, float64(v.Ring[(v.At-1-skip-i+2*shiftRing)%shiftRing]))
	}
	slices.Sort(out)
	return out
}

func middleOf(s []float64) float64 { return (s[(len(s)-1)/2] + s[len(s)/2]) / 2 }

func (v *level) duration(x *Execution, run string, took float64, at time.Time) *Shift {
	l := math.Log(max(took, floor))
	var found *Shift
	if before := v.newest(shiftLag, shiftRing-shiftLag); len(before) >= shiftLeast {
		mid := middleOf(before)
		off := make([]float64, len(before))
		for i, b := range before {
			off[i] = math.Abs(b - mid)
		}
		slices.Sort(off)
		// What few runs say of their spread is less than it is.
		scale := max(1.4826*middleOf(off)*(1+3/float64(len(before))), shiftFloor)
		z := min(max((l-mid)/scale, -shiftClip), shiftClip)
		for kind, by := range map[int]float64{shiftSlower: z - shiftSlack, shiftFaster: -z - shiftSlack} {
			if v.Sums[kind].step(by, shiftBound, false, x, run, at) {
				n := v.Sums[kind].N
				after := append(v.newest(0, n-1), l)
				slices.Sort(after)
				found = v.shift(kind, math.Exp(mid), math.Exp(middleOf(after)), at)
				// What was before says nothing any more.
				v.N = min(v.N, n-1)
			}
		}
		if found != nil {
			v.Sums[shiftSlower], v.Sums[shiftFaster] = sum{}, sum{}
		}
	}
	v.Ring[v.At] = float32(l)
	v.At = (v.At + 1) % shiftRing
	v.N = min(v.N+1, shiftRing)
	return found
}

func (v *level) rate(x *Execution, run string, failed bool, at time.Time) *Shift {
	y := 0.0
	if failed {
		y = 1
	}
	var found *Shift
	if n := v.Rate[1]; n >= rateLeast {
		// A rate is known as well as its executions allow: what is compared with is at
		// the edge of that.
		low, high := wilson(v.Rate[0]/n, n, 1.645)
		low, high = max(low, 1e-3), min(high, 1-1e-3) // what has always failed is not beyond doubt either
		for kind, p := range map[int][2]float64{shiftMore: {high, min(max(3*high, .3), .5+high/2)}, shiftLess: {low, low / 4}} {
			by := y*math.Log(p[1]/p[0]) + (1-y)*math.Log((1-p[1])/(1-p[0]))
			if v.Sums[kind].step(by, rateBound, failed, x, run, at) {
				c := v.Sums[kind]
				found = v.shift(kind, v.Rate[0]/n, float64(c.Bad)/float64(c.N), at)
				v.Rate = [2]float64{float64(c.Bad) - y, float64(c.N) - 1} // since then
			}
		}
		if found != nil {
			v.Sums[shiftMore], v.Sums[shiftLess] = sum{}, sum{}
		}
	}
	keep := math.Exp2(-1 / rateHalfLife)
	v.Rate[0], v.Rate[1] = v.Rate[0]*keep+y, v.Rate[1]*keep+1
	return found
}

// reason says of what is about to run whether its level has shifted lately, and how it
// is now; "" if not, or if it is nearer to what it was before by now.
func (s *Shifts) reason(x *Execution) string {
	v := s.m[keysOf(x).level[levelStep]]
	if v == nil || v.Repo != x.Repo || v.Last == nil || x.At-float64(v.Last.Noticed.Unix()) > shiftTold.Seconds() {
		return ""
	}
	now, scaled := *v.Last, func(rate float64) float64 { return rate }
	if strings.HasPrefix(now.Kind, "fails") {
		now.To = v.Rate[0] / max(v.Rate[1], 1) // counted since it began
	} else if last := v.newest(0, shiftLag); len(last) > 0 {
		now.To = math.Exp(middleOf(last))
		scaled = func(seconds float64) float64 { return math.Log(max(seconds, floor)) }
	}
	if is := scaled(now.To); math.Abs(is-scaled(now.From)) < math.Abs(is-scaled(v.Last.To)) {
		return ""
	}
	return now.String()
}

// String says a shift in a clause.
func (s *Shift) String() string {
	since := ""
	if s.Commit != "" {
		since = " since " + short(s.Commit)
	}
	if strings.HasPrefix(s.Kind, "fails") {
		return fmt.Sprintf("it %s%s: %.0f %%, %.0f %% before", s.Kind, since, 100*s.To, 100*s.From)
	}
	return fmt.Sprintf("it is %s%s: ×%.2f", s.Kind, since, s.To/max(s.From, floor))
}

// Shifts lists the last shift of each step and job of a repository, the newest first;
// "" as in [Learner.Related].
func (l *Learner) Shifts(ctx context.Context, repository string) ([]Shift, error) {
	if l.off() {
		return nil, nil
	}
	if _, err := l.Consume(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Shift
	for _, v := range l.shifts.m {
		if v.Last != nil && (repository == "" || v.Repo == repository) {
			out = append(out, *v.Last)
		}
	}
	slices.SortFunc(out, func(a, b Shift) int {
		return cmp.Or(b.Noticed.Compare(a.Noticed), cmp.Compare(a.Repository, b.Repository), cmp.Compare(a.Workflow, b.Workflow), cmp.Compare(a.Job, b.Job),
			cmp.Compare(a.Step, b.Step))
	})
	return out, nil
}
