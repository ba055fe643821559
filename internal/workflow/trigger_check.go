package workflow

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// checkTrigger reports what is wrong with the filters, schedules and inputs of a
// trigger beyond their form. GitHub itself refuses only too many inputs; a pattern
// that can never match keeps a workflow from running without a word, so it is
// worth advice.
func (c *converter) checkTrigger(t *Trigger) {
	advise := func(p Pos, rule, hint, message string) {
		if p.IsZero() {
			p = t.Pos
		}
		c.report(Diagnostic{Pos: p, Severity: Advice, Rule: rule, Hint: hint, Message: message})
	}
	for _, f := range []struct {
		key  string
		list []string
	}{
		{"branches", t.Branches}, {"branches-ignore", t.BranchesIgnore},
		{"tags", t.Tags}, {"tags-ignore", t.TagsIgnore},
		{"paths", t.Paths}, {"paths-ignore", t.PathsIgnore},
		{"names", t.Names}, {"versions", t.Versions},
	} {
		for i, s := range f.list {
			p, err := ParsePattern(s)
			if err != nil {
				advise(t.itemPos(f.key, i), "pattern", `Put \ before a special character that stands for itself.`, err.Error())
				continue
			}
			if hint := neverMatches(f.key, strings.TrimPrefix(s, "!")); hint != "" {
				advise(t.itemPos(f.key, i), "pattern", hint, fmt.Sprintf("The pattern '%s' of %s matches nothing", p, f.key))
			}
		}
		if len(f.list) > 0 && !strings.HasSuffix(f.key, "-ignore") && !slices.ContainsFunc(f.list, func(s string) bool { return !strings.HasPrefix(s, "!") }) {
			advise(t.itemPos(f.key, 0), "pattern", fmt.Sprintf("Use %s-ignore, or put a pattern without ! before these.", f.key),
				fmt.Sprintf("All patterns of %s begin with !, so nothing matches", f.key))
		}
	}
	if t.Event == "workflow_dispatch" && len(t.Inputs) > MaxDispatchInputs {
		c.errorf(t.Inputs[MaxDispatchInputs].Pos, "inputs", "", "you may only define up to %d `inputs` for a `workflow_dispatch` event", MaxDispatchInputs)
	}
	for _, s := range t.Cron {
		if _, err := s.Location(); err != nil {
			advise(s.Pos, "cron", "Give an IANA name like Europe/Berlin.", fmt.Sprintf("There is no time zone '%s'", s.Timezone))
		}
		cron, err := ParseCron(s.Cron)
		if err != nil {
			continue // reported where it was read
		}
		if !cron.possible() {
			advise(s.Pos, "cron", "", fmt.Sprintf("The schedule '%s' names a day that no month has, and never comes", s.Cron))
		} else if cron.shortest() < 5 {
			advise(s.Pos, "cron", "GitHub runs schedules every 5 minutes at most.", fmt.Sprintf("The schedule '%s' is due more often than every 5 minutes", s.Cron))
		}
	}
}

// itemPos is where item i of a list is written.
func (t *Trigger) itemPos(key string, i int) Pos {
	v := t.Value.Get(key)
	switch {
	case v == nil:
		return t.Pos
	case v.Kind == Sequence && i < len(v.Items):
		return v.Items[i].Pos
	}
	return v.Pos
}

// neverMatches says how to write a pattern that can match no path or ref.
func neverMatches(key, s string) string {
	if strings.HasPrefix(key, "paths") {
		switch {
		case strings.HasPrefix(s, "/"), strings.HasPrefix(s, "./"), strings.HasPrefix(s, "../"):
			return "Paths start at the root of the repository, without / or ./ before them."
		case strings.HasSuffix(s, "/"):
			return fmt.Sprintf("For all in a directory write '%s**'.", s)
		}
		return ""
	}
	if strings.HasPrefix(s, "refs/heads/") || strings.HasPrefix(s, "refs/tags/") {
		return "Write the name without refs/heads/ or refs/tags/."
	}
	return ""
}

// possible reports whether there is any day that c takes.
func (c *Cron) possible() bool {
	if !c.anyDay && !c.anyWeekday {
		return true // some day of the week always comes
	}
	for m := range 12 {
		if c.month>>uint(m+1)&1 == 0 {
			continue
		}
		days := [...]int{31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}[m]
		if bits.TrailingZeros64(c.day) <= days {
			return true
		}
	}
	return false
}

// shortest is the shortest time in minutes between two times within an hour.
func (c *Cron) shortest() int {
	least, last := 60, -60
	for m := range 60 {
		if c.minute>>uint(m)&1 != 0 {
			least = min(least, m-last)
			last = m
		}
	}
	return least
}
