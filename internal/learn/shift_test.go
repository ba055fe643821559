package learn

import (
	"cmp"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// series runs a made step n times: log durations of a spread, and a rate of failures,
// both of which change at the middle.
func series(s *Shifts, r *rand.Rand, n int, spread, times, rate, then float64) (alarms, found int, kinds map[string]int) {
	kinds = map[string]int{}
	x := Execution{Repo: "o/r", Job: "j", Step: "s", Commit: "c"}
	for i := range n {
		took, p := 60*math.Exp(spread*r.NormFloat64()), rate
		if r.IntN(40) == 0 {
			took *= 5 // a run that hung
		}
		if i >= n/2 {
			took, p = took*times, then
		}
		got := s.Add(&x, "r", r.Float64() < p, took, time.Unix(int64(i)*3600, 0))
		if got == nil {
			continue
		}
		kinds[got.Kind]++
		if i < n/2 {
			alarms++
		} else if found == 0 {
			found = i - n/2 + 1
		}
	}
	return alarms, found, kinds
}

// TestShiftsRingSeldom: of steady series, with runs that hang now and then, about one
// execution in a hundred may ring, whatever the spread and the rate.
func TestShiftsRingSeldom(t *testing.T) {
	for _, c := range []struct{ spread, rate float64 }{{.02, .01}, {.1, .1}, {.3, .3}, {.1, 0}, {.5, .5}} {
		r := rand.New(rand.NewPCG(1, uint64(c.spread*1000)))
		rung := map[string]int{}
		const of, n = 60, 400
		for range of {
			_, _, kinds := series(NewShifts(0), r, n, c.spread, 1, c.rate, c.rate)
			for k, v := range kinds {
				rung[k] += v
			}
		}
		durations := 1000 * float64(rung["slower"]+rung["faster"]) / (of * n)
		rates := 1000 * float64(rung["fails more"]+rung["fails less"]) / (of * n)
		t.Logf("spread %v: %.1f alarms of 1,000 by durations; rate %v: %.1f by failures", c.spread, durations, c.rate, rates)
		if durations > 12 || rates > 4 {
			t.Errorf("spread %v: %.1f alarms of 1,000 by durations; rate %v: %.1f by failures", c.spread, durations, c.rate, rates)
		}
	}
}

// TestShiftsAreFound: half as long again is found within ten runs in most cases, and so
// is a step that begins to fail.
func TestShiftsAreFound(t *testing.T) {
	for _, c := range []struct {
		name         string
		times        float64
		rate, then   float64
		within, most int // runs; of 100 series
		kind         string
	}{
		{"half as long again", 1.5, 0, 0, 10, 66, "slower"},
		{"twice", 2, 0, 0, 8, 90, "slower"},
		{"half", .5, 0, 0, 8, 90, "faster"},
		{"begins to fail", 1, .02, .7, 10, 90, "fails more"},
		{"is mended", 1, .6, .02, 25, 80, "fails less"},
	} {
		r := rand.New(rand.NewPCG(2, 3))
		hits, right := 0, 0
		for range 100 {
			_, found, kinds := series(NewShifts(0), r, 200, .15, c.times, c.rate, c.then)
			if found > 0 && found <= c.within {
				hits++
			}
			if kinds[c.kind] > 0 {
				right++
			}
		}
		t.Logf("%s: in %d of 100 within %d runs", c.name, hits, c.within)
		if hits < c.most || right < c.most {
			t.Errorf("%s: in %d of 100 within %d runs, in %d as %q", c.name, hits, c.within, right, c.kind)
		}
	}
}

func TestShiftSaysWhenItBegan(t *testing.T) {
	s := NewShifts(0)
	x := Execution{Repo: "o/r", Job: "j", Step: "s"}
	var got *Shift
	for i := range 80 {
		took := 10 + float64(i%3)*.1
		x.Commit = "before"
		if i >= 60 {
			took, x.Commit = 20, "after"
		}
		if v := s.Add(&x, "run", false, took, time.Unix(int64(1000+i), 0)); v != nil && got == nil {
			got = v
		}
	}
	if got == nil || got.Kind != "slower" || got.Commit != "after" || got.Began.Unix() != 1060 || math.Abs(got.From-10.1) > .01 ||
		math.Abs(got.To-20) > .01 {
		t.Fatalf("%+v", got)
	}
	x.At = float64(got.Noticed.Unix())
	if r := s.reason(&x); r != "it is slower since after: ×1.98" {
		t.Errorf("%q", r)
	}
	if x.At += 30 * 24 * 3600; s.reason(&x) != "" {
		t.Error("an old shift is still a reason")
	}
}

// TestShiftThatIsOver: what came back to its level is no reason any more, and what did
// not is told with the numbers of now.
func TestShiftThatIsOver(t *testing.T) {
	s, x, at := NewShifts(0), Execution{Repo: "o/r", Job: "j", Step: "s", Commit: "c"}, time.Unix(1, 0)
	var rang *Shift
	add := func(n int, failed func(i int) bool) {
		for i := range n {
			at = at.Add(time.Minute)
			rang = cmp.Or(s.Add(&x, "r", failed(i), -1, at), rang)
		}
		x.At = float64(at.Unix())
	}
	add(60, func(i int) bool { return i%10 == 0 })
	if rang != nil {
		t.Fatalf("%v", rang)
	}
	x.Commit = "d"
	for range 20 {
		if add(1, func(int) bool { return true }); rang != nil {
			break
		}
	}
	if rang == nil || s.reason(&x) != rang.String() {
		t.Fatalf("%q after %v", s.reason(&x), rang)
	}
	add(2, func(int) bool { return false })
	if r := s.reason(&x); !strings.HasPrefix(r, "it fails more since d: ") || r == rang.String() {
		t.Errorf("with two passes since: %q", r)
	}
	add(12, func(int) bool { return false })
	if r := s.reason(&x); r != "" {
		t.Errorf("with fourteen passes since: %q", r)
	}
}

// TestAttackFloodOfShifts: names that a workflow makes up push out their own.
func TestAttackFloodOfShifts(t *testing.T) {
	s := NewShifts(100)
	victim := Execution{Repo: "good/repo", Job: "j", Step: "s"}
	s.Add(&victim, "r", false, 1, time.Unix(1, 0))
	for i := range 5000 {
		s.Add(&Execution{Repo: "evil/repo", Job: string(rune('a' + i%26)), Step: time.Duration(i).String()}, "r", true, 1, time.Unix(1, 0))
	}
	if len(s.m) > 100 || s.m[keysOf(&victim).level[levelStep]] == nil {
		t.Errorf("%d of them; the victim's is gone", len(s.m))
	}
}
