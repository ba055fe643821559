package learn

import (
	"fmt"
	"math"
)

// Reasons are the strongest things behind an estimate, at most three, each a
// short clause. They are read off the counters the estimate was made of, so
// they hold as numbers whatever weights the model gives them.
func (m *Model) Reasons(e *Estimate) []string {
	type reason struct {
		weight float64
		text   string
	}
	var all []reason
	add := func(w float64, format string, args ...any) {
		if w > .15 {
			all = append(all, reason{w, fmt.Sprintf(format, args...)})
		}
	}
	what := "step"
	switch e.x.Unit {
	case unitJob:
		what = "job"
	case unitRun:
		what = "workflow"
	}
	ran, at, here := "for this commit", "at this commit", [...]string{"", "what runs in this repository", "what runs in this workflow", "what runs in this job"}
	if e.x.Machine {
		what, ran, at = "command", "in this machine", "with nothing between"
		here = [...]string{"", "what ran here", "what ran in this way", "what ran in this way"}
	}
	step := m.at(&e.keys, levelStep)
	est := func(level, half int) float64 { return e.est[level][half] }
	if step == nil {
		where, level := "everything here", levelAll
		for l := levelJob; l > levelAll; l-- {
			if c := m.at(&e.keys, l); c != nil {
				where, level = here[l], l
				break
			}
		}
		if c := m.at(&e.keys, level); c != nil {
			add(1, "this %s was never seen; of %s %.0f %% failed", what, where, 100*float64(c.fails)/float64(c.seen))
		} else {
			add(1, "nothing is known yet")
		}
	} else {
		recent := min(float64(step.seen), math.Round(step.n[1]))
		parent := est(levelJob, 2)
		add(math.Abs(est(levelStep, 1)-parent)+.2, "about %.0f of its last %.0f runs failed", math.Round(min(step.f[1], recent)), max(recent, 1))
		switch {
		case step.streak > 1:
			add(.3+math.Log(float64(step.streak)), "it failed the last %d times", step.streak)
		case step.streak == 1:
			add(.6, "it failed last time")
		case step.streak < -4:
			add(.2+.3*math.Log(float64(-step.streak)), "it passed the last %d times", -step.streak)
		}
		if step.seen >= 10 {
			add(.5*math.Abs(est(levelStep, 3)-parent), "of %d runs in all %.0f %% failed", step.seen, 100*float64(step.fails)/float64(step.seen))
		}
		if b := m.at(&e.keys, levelBranch); b != nil && e.x.Branch != "" && b.seen < step.seen {
			add(math.Abs(est(levelBranch, 1)-est(levelStep, 1)), "on this branch %d of %d failed", b.fails, b.seen)
		}
	}
	ratio := func(i int, key uint64, format string) {
		if k := m.kinAt(&e.keys, key); k != nil {
			add(math.Abs(e.feats[featKin+i]), format, k.failed, k.expected)
		}
	}
	if e.x.Commit != "" {
		ratio(0, e.keys.commit, "of what already ran "+ran+" %.0f failed, %.1f were expected")
	}
	if k := m.kinAt(&e.keys, e.keys.level[levelRepo]); k != nil && e.feats[featKin+2] > .7 {
		add(e.feats[featKin+2], "more fails in this repository lately than usual")
	}
	if e.x.Attempt > 1 {
		add(2, "it is attempt %d "+at, e.x.Attempt)
	}
	byScore(all, func(r reason) float64 { return r.weight })
	var out []string
	for _, r := range all[:min(3, len(all))] {
		out = append(out, r.text)
	}
	return out
}
