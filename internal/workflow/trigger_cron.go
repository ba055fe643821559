package workflow

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	_ "time/tzdata" // so that a zone means the same on every machine
)

// Cron is a parsed schedule of five fields: minute, hour, day of the month,
// month, day of the week.
type Cron struct {
	minute, hour, day, month, weekday uint64 // bit n: the field takes n
	anyDay, anyWeekday                bool   // the field begins with *
}

// ParseCron parses a POSIX cron expression as GitHub takes it: lists, ranges and
// steps, names of months and days, nothing like @daily.
func ParseCron(s string) (*Cron, error) {
	parts := strings.Fields(s)
	if len(parts) != 5 {
		return nil, fmt.Errorf("a cron expression has five fields (minute hour day month weekday), '%s' has %d", s, len(parts))
	}
	var bits [5]uint64
	names := [...]string{"minute", "hour", "day of the month", "month", "day of the week"}
	for i, f := range cronFields() {
		if !f.valid(parts[i]) {
			return nil, fmt.Errorf("'%s' is no valid %s, which goes from %d to %d", parts[i], names[i], f.lo, f.hi)
		}
		bits[i] = f.bits(parts[i])
	}
	return &Cron{
		minute: bits[0], hour: bits[1], day: bits[2], month: bits[3], weekday: bits[4],
		anyDay: strings.HasPrefix(parts[2], "*"), anyWeekday: strings.HasPrefix(parts[4], "*"),
	}, nil
}

// bits is the set of values that a valid field takes.
func (f cronField) bits(s string) uint64 {
	var set uint64
	for item := range strings.SplitSeq(s, ",") {
		span, stepText, stepped := strings.Cut(item, "/")
		step := 1
		if stepped {
			step, _ = strconv.Atoi(stepText)
		}
		lo, hi := f.lo, f.hi
		if span != "*" {
			from, to, ranged := strings.Cut(span, "-")
			lo, _ = f.number(from)
			switch {
			case ranged:
				hi, _ = f.number(to)
			case !stepped:
				hi = lo
			}
		}
		for n := lo; n <= hi; n += step {
			set |= 1 << n
		}
	}
	return set
}

// cronYears is how far ahead a time can be: 29 February is up to eight years away,
// and falls on a given weekday at least once in forty.
const cronYears = 41

// Next is the first time after t that c means, in the zone of t. It is zero if
// there is none, as for 30 February. A time that the clock leaves out when it
// jumps forward comes when it has jumped; of a time that comes twice when the
// clock is put back, the first counts, unless c means every hour.
func (c *Cron) Next(t time.Time) time.Time {
	loc := t.Location()
	if c.hour == 1<<24-1 {
		// In every hour also means in an hour that comes twice.
		for soon := t.Truncate(time.Minute).Add(time.Minute); soon.Sub(t) <= time.Hour; soon = soon.Add(time.Minute) {
			if c.minute>>uint(soon.Minute())&1 != 0 && c.month>>uint(soon.Month())&1 != 0 && c.onDay(soon) {
				return soon
			}
		}
	}
	y, m, d := t.Date()
	// Noon, because midnight may be left out where the clock jumps then.
	date := time.Date(y, m, d, 12, 0, 0, 0, time.UTC)
	for end := y + cronYears; date.Year() <= end; {
		if c.month>>uint(date.Month())&1 == 0 {
			date = time.Date(date.Year(), date.Month()+1, 1, 12, 0, 0, 0, time.UTC)
			continue
		}
		if c.onDay(date) {
			if next := c.nextOn(date, t, loc); !next.IsZero() {
				return next
			}
		}
		date = date.AddDate(0, 0, 1)
	}
	return time.Time{}
}

// onDay reports whether c takes the date. Where both days are restricted either
// of them is enough.
func (c *Cron) onDay(date time.Time) bool {
	day := c.day>>uint(date.Day())&1 != 0
	weekday := c.weekday>>uint(date.Weekday())&1 != 0
	if c.anyDay || c.anyWeekday {
		return day && weekday
	}
	return day || weekday
}

func (c *Cron) nextOn(date, after time.Time, loc *time.Location) time.Time {
	y, m, d := date.Date()
	var best time.Time
	for h := range 24 {
		if c.hour>>uint(h)&1 == 0 {
			continue
		}
		for min := range 60 {
			if c.minute>>uint(min)&1 == 0 {
				continue
			}
			t := wallClock(y, m, d, h, min, loc)
			if t.After(after) && (best.IsZero() || t.Before(best)) {
				best = t
			}
		}
		if !best.IsZero() {
			return best
		}
	}
	return best
}

// wallClock is when the clocks of loc first show the time, or have jumped over it.
func wallClock(y int, m time.Month, d, h, min int, loc *time.Location) time.Time {
	t := time.Date(y, m, d, h, min, 0, 0, loc)
	start, end := t.ZoneBounds()
	if t.Hour() != h || t.Minute() != min {
		// Left out: the jump is the border next to t.
		if end.IsZero() || !start.IsZero() && t.Sub(start) < end.Sub(t) {
			return start
		}
		return end
	}
	if !start.IsZero() {
		// The same clock time in the zone before, if that was still in force.
		_, before := start.Add(-time.Second).Zone()
		_, now := t.Zone()
		if earlier := t.Add(time.Duration(now-before) * time.Second); before > now && earlier.Before(start) {
			return earlier
		}
	}
	return t
}

// Location is the time zone of the schedule, UTC if none is given.
func (s Schedule) Location() (*time.Location, error) {
	switch s.Timezone {
	case "":
		return time.UTC, nil
	case "Local":
		// Go's name for the machine's zone, which is no zone's name.
		return nil, fmt.Errorf("there is no time zone %s", s.Timezone)
	}
	loc, err := time.LoadLocation(s.Timezone)
	if err != nil {
		return nil, fmt.Errorf("there is no time zone %s: give an IANA name like Europe/Berlin", s.Timezone)
	}
	return loc, nil
}

// Next is the first time after t at which the schedule is due, in its own time
// zone. It is zero if there is none.
func (s Schedule) Next(t time.Time) (time.Time, error) {
	c, err := ParseCron(s.Cron)
	if err != nil {
		return time.Time{}, err
	}
	loc, err := s.Location()
	if err != nil {
		return time.Time{}, err
	}
	return c.Next(t.In(loc)), nil
}
