package workflow

import (
	"testing"
	"time"
)

func TestCronNext(t *testing.T) {
	for _, c := range []struct{ cron, zone, after, want string }{
		{"30 5,17 * * *", "", "2026-03-01T00:00:00Z", "2026-03-01T05:30:00Z"},
		{"30 5,17 * * *", "", "2026-03-01T05:30:00Z", "2026-03-01T17:30:00Z"},
		{"30 5,17 * * *", "", "2026-03-01T17:30:00Z", "2026-03-02T05:30:00Z"},
		{"*/15 * * * *", "", "2026-03-01T10:14:59Z", "2026-03-01T10:15:00Z"},
		{"20/15 * * * *", "", "2026-03-01T10:36:00Z", "2026-03-01T10:50:00Z"},
		{"0 0 1 JAN *", "", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"},
		{"0 0 * * MON-fri", "", "2026-11-20T12:00:00Z", "2026-11-23T00:00:00Z"},
		{"0 0 13 * FRI", "", "2026-11-01T00:00:00Z", "2026-11-06T00:00:00Z"},  // either day
		{"0 0 */2 * FRI", "", "2026-11-01T00:00:00Z", "2026-11-13T00:00:00Z"}, // both: the day begins with *
		{"0 0 29 2 *", "", "2097-01-01T00:00:00Z", "2104-02-29T00:00:00Z"},
		{"0 0 30 2 *", "", "2026-01-01T00:00:00Z", ""},
		{"0 0 31 4,6,9,11 *", "", "2026-01-01T00:00:00Z", ""},
		{"0 0 31 * *", "", "2026-04-01T00:00:00Z", "2026-05-31T00:00:00Z"},
		{"30 5 * * 1-5", "America/New_York", "2026-07-01T00:00:00Z", "2026-07-01T09:30:00Z"},
		{"30 5 * * 1-5", "America/New_York", "2026-12-01T00:00:00Z", "2026-12-01T10:30:00Z"},
		{"30 2 * * *", "America/New_York", "2026-03-08T00:00:00-05:00", "2026-03-08T03:00:00-04:00"}, // left out: after the jump
		{"30 1 * * *", "America/New_York", "2026-11-01T00:00:00-04:00", "2026-11-01T01:30:00-04:00"}, // twice: the first
		{"30 1 * * *", "America/New_York", "2026-11-01T01:30:00-04:00", "2026-11-02T01:30:00-05:00"},
		{"*/30 * * * *", "America/New_York", "2026-11-01T01:30:00-04:00", "2026-11-01T01:00:00-05:00"}, // every hour: also the second
		{"30 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00:00-03:00", "2018-11-04T01:00:00-02:00"},  // midnight left out
		{"0 12 * * *", "Pacific/Apia", "2011-12-29T23:00:00-10:00", "2011-12-31T12:00:00+14:00"},       // a day left out
		{"0 9 * * *", "Asia/Kolkata", "2026-01-01T00:00:00Z", "2026-01-01T03:30:00Z"},
	} {
		after, err := time.Parse(time.RFC3339, c.after)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Schedule{Cron: c.cron, Timezone: c.zone}.Next(after)
		if err != nil {
			t.Errorf("%s: %v", c.cron, err)
			continue
		}
		if c.want == "" {
			if !got.IsZero() {
				t.Errorf("%s: %s, want never", c.cron, got)
			}
			continue
		}
		want, err := time.Parse(time.RFC3339, c.want)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Equal(want) {
			t.Errorf("%s %s after %s: %s, want %s", c.cron, c.zone, c.after, got.Format(time.RFC3339), c.want)
		}
	}
}

func TestCronErrors(t *testing.T) {
	for _, s := range []string{"", "* * * *", "* * * * * *", "@daily", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 7",
		"*/0 * * * *", "5-1 * * * *", "a * * * *", "1,,2 * * * *", "-1 * * * *", "+1 * * * *", "* * * * MONDAY", "99999999999999999999 * * * *"} {
		if _, err := ParseCron(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
	for _, zone := range []string{"Mars/Olympus", "Local", "../etc/passwd", "UTC+1"} {
		if _, err := (Schedule{Cron: "* * * * *", Timezone: zone}).Next(time.Unix(0, 0)); err == nil {
			t.Errorf("time zone %s is taken", zone)
		}
	}
}

func FuzzCron(f *testing.F) {
	for _, s := range []string{"*/15 0-23/2 1,15 JAN-DEC MON", "0 0 30 2 *", "59 23 31 12 6"} {
		f.Add(s, int64(1_700_000_000))
	}
	ny, err := time.LoadLocation("America/New_York")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string, unix int64) {
		c, err := ParseCron(s)
		if err != nil {
			return
		}
		if unix < -1e10 || unix > 1e11 {
			return
		}
		for _, loc := range []*time.Location{time.UTC, ny} {
			after := time.Unix(unix, 0).In(loc)
			next := c.Next(after)
			if next.IsZero() {
				continue
			}
			if !next.After(after) {
				t.Errorf("%q after %s: %s", s, after, next)
			}
			if loc == time.UTC && (next.Second() != 0 || c.minute>>next.Minute()&1 == 0 || c.hour>>next.Hour()&1 == 0 || !c.onDay(next)) {
				t.Errorf("%q after %s: %s is not meant", s, after, next)
			}
		}
	})
}
