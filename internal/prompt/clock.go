package prompt

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// This file makes cron lines of schedules in words. GitHub reads them in UTC.

var dayNumbers = map[string]int{"su": 0, "mo": 1, "tu": 2, "we": 3, "th": 4, "fr": 5, "sa": 6}

func dayNumber(w string) int {
	if len(w) < 2 {
		return -1
	}
	if n, ok := dayNumbers[w[:2]]; ok {
		return n
	}
	return -1
}

// monthNumber is 1 to 12, or 0.
func monthNumber(w string) int {
	for i, m := range strings.Fields("jan feb mar apr may jun jul aug sep oct nov dec") {
		if strings.HasPrefix(w, m) {
			return i + 1
		}
	}
	return 0
}

type hourMinute struct{ h, m int }

// clockOf reads a T node.
func (r *reader) clockOf(n *node) (hourMinute, error) {
	var t hourMinute
	half := ""
	switch {
	case n.has("noon"):
		t.h = 12
	case n.has("midnight"):
	case n.has("c"):
		m := clockWord.FindStringSubmatch(r.word(n.get("c")))
		t.h, _ = strconv.Atoi(m[1])
		t.m, _ = strconv.Atoi(m[2])
		half = m[3]
	case n.has("h"):
		t.h, _ = strconv.Atoi(r.word(n.get("h")))
	case n.has("qw"):
		t.h, t.m = r.number(n.get("qw")), 15
	case n.has("tw"):
		t.h = r.number(n.get("tw"))
		if strings.HasPrefix(r.words(n), "half") {
			t.m = 30
		}
	}
	if p := n.get("p"); p != nil {
		half = r.word(p)
	}
	if tod := n.get("tod"); tod != nil && half == "" {
		w := r.words(tod)
		switch {
		case (strings.Contains(w, "evening") || strings.Contains(w, "afternoon") || strings.Contains(w, "night")) && t.h < 12 && t.h >= 5,
			strings.Contains(w, "afternoon") && t.h < 12 || strings.Contains(w, "evening") && t.h < 12:
			t.h += 12
		}
	}
	switch {
	case half == "pm" && t.h < 12:
		t.h += 12
	case half == "am" && t.h == 12:
		t.h = 0
	case (half == "pm" || half == "am") && t.h > 12:
		return t, errors.New("that is no time of day")
	}
	if t.h > 23 || t.m > 59 {
		return t, errors.New("that is no time of day")
	}
	return t, nil
}

// times are the times of day that a schedule names.
func (r *reader) times(n *node) ([]hourMinute, error) {
	var out []hourMinute
	// T's captures are flat: each c, h, noon, midnight or w begins a time.
	var cur *node
	flush := func() error {
		if cur == nil {
			return nil
		}
		t, err := r.clockOf(cur)
		if err == nil {
			out = append(out, t)
		}
		cur = nil
		return err
	}
	for _, k := range n.kids {
		switch k.name {
		case "c", "h", "noon", "midnight", "qw", "tw":
			if err := flush(); err != nil {
				return nil, err
			}
			// "half past six" has its words before the number.
			start := k.start
			if k.name == "tw" && start >= 2 && r.c.ts[start-1].word == "past" {
				start -= 2
			}
			cur = &node{start: start, end: k.end, kids: []*node{k}}
		case "p", "tod":
			if cur != nil {
				cur.kids = append(cur.kids, k)
			}
		}
	}
	if err := flush(); err != nil {
		return nil, err
	}
	return out, nil
}

// withinHours are the cron lines of what happens from one hour to another, both included.
func (r *reader) withinHours(n *node) ([]string, string, error) {
	hour := func(name, half string) (int, error) {
		k := n.get(name)
		if h := n.get(half); h != nil {
			k = &node{start: k.start, end: k.end, kids: []*node{{name: "h", start: k.start, end: k.end}, {name: "p", start: h.start, end: h.end}}}
		} else {
			k = &node{start: k.start, end: k.end, kids: []*node{{name: map[bool]string{true: "h", false: "c"}[allDigits(r.word(k))], start: k.start, end: k.end}}}
		}
		t, err := r.clockOf(k)
		if err == nil && t.m != 0 {
			err = errors.New("hours within which something runs begin at full hours")
		}
		return t.h, err
	}
	from, err := hour("hf", "hf2")
	if err != nil {
		return nil, "", err
	}
	to, err := hour("ht", "ht2")
	switch {
	case err != nil:
		return nil, "", err
	case from >= to:
		return nil, "", errors.New("the hours run backwards")
	}
	days := "*"
	for _, k := range n.kids {
		if k.name == "w" || k.name == "e" || k.name == "d" && dayNumber(r.word(k)) >= 0 || k.name == "from" {
			lines, _, err := r.crons(&node{start: n.start, end: n.end, kids: slices.DeleteFunc(slices.Clone(n.kids), func(k *node) bool {
				return k.name != "w" && k.name != "e" && k.name != "from" && k.name != "to" && (k.name != "d" || dayNumber(r.word(k)) < 0)
			})})
			if err != nil {
				return nil, "", err
			}
			days = lines[0][strings.LastIndexByte(lines[0], ' ')+1:]
			break
		}
	}
	minute, hours := "0", fmt.Sprintf("%d-%d", from, to)
	if k := n.get("hourly"); k == nil {
		how := &node{start: n.start, end: n.end, kids: slices.DeleteFunc(slices.Clone(n.kids), func(k *node) bool {
			return k.name != "n" && k.name != "u" && (k.name != "d" || dayNumber(r.word(k)) >= 0)
		})}
		lines, _, err := r.crons(how)
		if err != nil {
			return nil, "", err
		}
		f := strings.Fields(lines[0])
		if f[2] != "*" {
			return nil, "", errors.New("that happens less often than daily")
		}
		if minute = f[0]; strings.HasPrefix(f[1], "*/") {
			hours += f[1][1:]
		}
	}
	shift, note := 0, ""
	if n.has("z") || n.has("city") {
		if shift, note, err = r.zone(n); err != nil {
			return nil, "", err
		}
	}
	if shift != 0 {
		return nil, "", errors.New("give the hours in UTC")
	}
	return []string{minute + " " + hours + " * * " + days}, note, nil
}

// crons are the cron lines of a schedule.
func (r *reader) crons(n *node) ([]string, string, error) {
	if n.has("half") && strings.Contains(r.words(n.get("half")), "half") && !n.has("n") {
		return []string{"*/30 * * * *"}, "", nil
	}
	if strings.Contains(r.words(n), "quarter of an hour") || strings.Contains(r.words(n), "quarter hour") {
		return []string{"*/15 * * * *"}, "", nil
	}
	if n.has("hf") {
		return r.withinHours(n)
	}
	if n.has("quarter") {
		return []string{"0 3 1 */3 *"}, "", nil
	}
	// A cron line as such.
	for _, k := range n.all("c") {
		if cronLine.MatchString(r.plain(k)) {
			return []string{strings.Join(strings.Fields(r.plain(k)), " ")}, "", nil
		}
	}
	if k := n.get("cron5"); k != nil {
		return []string{strings.Join(strings.Fields(r.c.text(k)), " ")}, "", nil
	}
	clean := &node{name: n.name, start: n.start, end: n.end}
	var zoneNode *node
	for _, k := range n.kids {
		switch {
		case k.name == "z" || k.name == "city":
			zoneNode = n
		case (k.name == "noon" || k.name == "midnight") && strings.HasPrefix(r.words(k), "every"):
			clean.kids = append(clean.kids, &node{name: k.name, start: k.start, end: k.end}, &node{name: "daily", start: k.start, end: k.end})
			continue
		}
		clean.kids = append(clean.kids, k)
	}
	n = clean
	at, err := r.times(n)
	if err != nil {
		return nil, "", err
	}
	shift, note := 0, ""
	if zoneNode != nil {
		if shift, note, err = r.zone(zoneNode); err != nil {
			return nil, "", err
		}
	}
	given := len(at) > 0
	if !given {
		at = []hourMinute{{3, 0}}
		part := ""
		if p := n.get("part"); p != nil {
			part = r.words(p)
		}
		if s := n.get("s"); s != nil {
			part += " " + r.words(s)
		}
		switch {
		case n.has("morning") || strings.Contains(part, "morning"):
			at[0].h = 6
		case n.has("evening") || strings.Contains(part, "evening"):
			at[0].h = 18
		case n.has("afternoon") || strings.Contains(part, "afternoon"):
			at[0].h = 15
		}
	} else if p := n.get("part"); p != nil {
		w := r.words(p)
		for i := range at {
			if (strings.Contains(w, "evening") || strings.Contains(w, "afternoon")) && at[i].h < 12 || strings.Contains(w, "night") && at[i].h >= 6 &&
				at[i].h < 12 {
				at[i].h += 12
			}
		}
	} else if n.has("evening") || n.has("s") && (strings.Contains(r.words(n.get("s")), "night") || strings.Contains(r.words(n.get("s")), "evening")) {
		for i := range at {
			if at[i].h >= 6 && at[i].h < 12 && !strings.Contains(r.words(n), "am") && !strings.Contains(r.words(n), ":") {
				at[i].h += 12
			}
		}
	} else if n.has("nightly") {
		for i := range at {
			if at[i].h >= 7 && at[i].h < 12 && !strings.Contains(r.words(n), "am") && !strings.Contains(r.words(n), ":") {
				at[i].h += 12
			}
		}
	}
	// Minutes and hours at the same minute share a line.
	clockFields := func() []string {
		byMinute := map[int][]string{}
		var order []int
		for _, t := range at {
			if byMinute[t.m] == nil {
				order = append(order, t.m)
			}
			byMinute[t.m] = append(byMinute[t.m], strconv.Itoa(t.h))
		}
		var out []string
		for _, m := range order {
			out = append(out, fmt.Sprintf("%d %s", m, strings.Join(byMinute[m], ",")))
		}
		return out
	}
	lines := func(rest string) ([]string, string, error) {
		var out []string
		for _, f := range clockFields() {
			c := f + " " + rest
			s, err := shiftCron(c, shift)
			if err != nil {
				return nil, "", err
			}
			out = append(out, s)
		}
		return out, note, nil
	}
	switch {
	case n.has("times"):
		w := r.words(n)
		switch {
		case strings.Contains(w, "hour"):
			return []string{"*/30 * * * *"}, "", nil
		case strings.Contains(w, "week"):
			return nil, "", errors.New("on which days is not said")
		}
		if !given {
			at = []hourMinute{{0, 0}, {12, 0}}
		}
		return lines("* * *")
	case n.has("per"):
		k := r.number(n.get("n"))
		if k < 1 || 60%k != 0 || k > 12 {
			return nil, "", errors.New("an hour is not divided like that in a cron line")
		}
		return []string{fmt.Sprintf("*/%d * * * *", 60/k)}, "", nil
	case n.has("past"):
		return []string{"30 * * * *"}, "", nil
	case n.has("year"):
		mon, day := "1", "1"
		if k := n.get("mon"); k != nil {
			mon = strconv.Itoa(monthNumber(r.word(k)))
		}
		if k := n.get("y"); k != nil {
			switch w := r.word(k); w {
			case "first":
			case "fifteenth":
				day = "15"
			default:
				day = strings.TrimRight(w, "stndrh")
			}
		}
		if v, err := strconv.Atoi(day); err != nil || v < 1 || v > 31 {
			return nil, "", errors.New("there is no such day of the month")
		}
		return lines(day + " " + mon + " *")
	case n.has("two"):
		switch r.word(n.get("u")) {
		case "day", "days":
			return lines("*/2 * *")
		case "hour", "hours":
			return []string{"0 */2 * * *"}, "", nil
		}
		return nil, "", errors.New("every other week cannot be said in a cron line")
	case n.has("d") && duration.MatchString(r.word(n.get("d"))) && dayNumber(r.word(n.get("d"))) < 0:
		m := duration.FindStringSubmatch(r.word(n.get("d")))
		k, _ := strconv.Atoi(m[1])
		return every(k, m[2], at, given, lines)
	case n.has("hourly"):
		m := 0
		if given {
			m = at[0].m
		}
		return []string{fmt.Sprintf("%d * * * *", m)}, "", nil
	case n.has("u"):
		k := 1
		if x := n.get("n"); x != nil {
			k = r.number(x)
		}
		if x := n.get("m"); x != nil && strings.HasPrefix(r.word(n.get("u")), "h") {
			m, _ := strconv.Atoi(r.word(x))
			if m > 59 {
				return nil, "", errors.New("there is no such minute")
			}
			return []string{fmt.Sprintf("%d * * * *", m)}, "", nil
		}
		return every(k, r.word(n.get("u")), at, given, lines)
	}
	var days []string
	for _, k := range n.kids {
		if k.name == "d" && dayNumber(r.word(k)) >= 0 {
			days = append(days, strconv.Itoa(dayNumber(r.word(k))))
		}
	}
	switch {
	case n.has("from") && n.has("to"):
		a, b := dayNumber(r.word(n.get("from"))), dayNumber(r.word(n.get("to")))
		if b == 0 {
			b = 7
		}
		if a >= b {
			return nil, "", errors.New("the days run backwards")
		}
		return lines(fmt.Sprintf("* * %d-%d", a, b))
	case n.has("last"):
		return nil, "", errors.New("the last day of a month cannot be said in a cron line")
	case strings.Contains(r.words(n), "month") || n.has("n") && !n.has("u"):
		var dom []string
		for _, k := range n.kids {
			if k.name == "n" || k.name == "m" {
				switch w := r.word(k); {
				case w == "first":
					dom = append(dom, "1")
				case w == "fifteenth":
					dom = append(dom, "15")
				default:
					dom = append(dom, strings.TrimRight(w, "stndrh"))
				}
			}
		}
		if len(dom) == 0 {
			dom = []string{"1"}
		}
		for _, d := range dom {
			if v, err := strconv.Atoi(d); err != nil || v < 1 || v > 31 {
				return nil, "", errors.New("there is no such day of the month")
			}
		}
		if len(days) > 0 {
			return nil, "", errors.New("a certain weekday of a month cannot be said in a cron line")
		}
		return lines(strings.Join(dom, ",") + " * *")
	case n.has("e"):
		return lines("* * 0,6")
	case hasWeekdays(r, n):
		return lines("* * 1-5")
	case len(days) > 0:
		return lines("* * " + strings.Join(days, ","))
	case strings.Contains(r.words(n), "week"):
		return lines("* * 1")
	}
	return lines("* * *")
}

func hasWeekdays(r *reader, n *node) bool {
	for _, k := range n.all("w") {
		if w := r.words(k); strings.Contains(w, "weekday") || strings.Contains(w, "work") || strings.Contains(w, "business") ||
			strings.Contains(w, "week day") {
			return true
		}
	}
	return false
}

// every is "every k units".
func every(k int, unit string, at []hourMinute, given bool, lines func(string) ([]string, string, error)) ([]string, string, error) {
	minute := 0
	if given {
		minute = at[0].m
	}
	switch {
	case strings.HasPrefix(unit, "mo"):
		if k == 1 {
			return lines("1 * *")
		}
		if k > 1 && 12%k == 0 {
			return lines(fmt.Sprintf("1 */%d *", k))
		}
	case strings.HasPrefix(unit, "m"):
		if k < 5 {
			return nil, "", errors.New("GitHub runs schedules every five minutes at most")
		}
		if k < 60 && 60%k == 0 {
			return []string{fmt.Sprintf("*/%d * * * *", k)}, "", nil
		}
		if k == 60 {
			return []string{"0 * * * *"}, "", nil
		}
	case strings.HasPrefix(unit, "h"):
		if k == 1 {
			return []string{fmt.Sprintf("%d * * * *", minute)}, "", nil
		}
		if k > 1 && k < 24 && 24%k == 0 {
			if given && at[0].h > 0 {
				return nil, "", errors.New("hours from a certain one on are not read here")
			}
			return []string{fmt.Sprintf("%d */%d * * *", minute, k)}, "", nil
		}
		if k == 24 {
			return lines("* * *")
		}
	case strings.HasPrefix(unit, "d"):
		if k == 1 {
			return lines("* * *")
		}
		if k == 7 {
			return lines("* * 1")
		}
		if k > 1 && k < 16 {
			return lines(fmt.Sprintf("*/%d * *", k))
		}
	case strings.HasPrefix(unit, "w"):
		if k == 1 {
			return lines("* * 1")
		}
	}
	return nil, "", fmt.Errorf("every %d %s cannot be said in a cron line", k, unit)
}

// zoneHours are the offsets of zones from UTC, in hours; cities are given in
// winter.
var zoneHours = map[string]float64{"utc": 0, "gmt": 0, "z": 0, "wet": 0, "cet": 1, "west": 1, "bst": 1, "cest": 2, "eet": 2, "eest": 3,
	"msk": 3, "est": -5, "edt": -4, "cst": -6, "cdt": -5, "mst": -7,
	"mdt": -6, "pst": -8, "pdt": -7, "ist": 5.5, "jst": 9, "kst": 9, "sgt": 8, "hkt": 8, "aest": 10,
	"berlin": 1, "paris": 1, "amsterdam": 1, "madrid": 1, "zurich": 1, "vienna": 1, "central european": 1, "london": 0, "european": 1,
	"tokyo": 9, "japan": 9, "indian": 5.5,
	"eastern": -5, "new york": -5, "central": -6, "mountain": -7, "pacific": -8, "san francisco": -8,
	"europe/berlin": 1, "europe/paris": 1, "europe/london": 0, "europe/madrid": 1, "europe/amsterdam": 1, "europe/vienna": 1,
	"europe/zurich": 1, "europe/rome": 1, "europe/stockholm": 1,
	"america/new_york": -5, "america/chicago": -6, "america/denver": -7, "america/los_angeles": -8, "asia/tokyo": 9, "asia/kolkata": 5.5,
	"asia/singapore": 8, "asia/shanghai": 8, "australia/sydney": 10}

// summers are zones whose clocks change.
var summers = regexp.MustCompile(`^(?:berlin|paris|amsterdam|madrid|zurich|vienna|central european|london|european|eastern|new york|central|mountain|pacific|san francisco|europe/.*|america/.*|australia/.*)$`)

// zone is how many minutes to take off a local time for UTC.
func (r *reader) zone(n *node) (shift int, note string, err error) {
	name := ""
	if z := n.get("z"); z != nil {
		name = r.word(z)
	} else if c := n.get("city"); c != nil {
		name = r.words(c)
	}
	if m := regexp.MustCompile(`^(?:utc|gmt)([+-])(\d{1,2})(?::(\d\d))?$`).FindStringSubmatch(name); m != nil {
		h, _ := strconv.Atoi(m[2])
		mi, _ := strconv.Atoi(m[3])
		if h > 14 || mi > 59 {
			return 0, "", errors.New("there is no such time zone")
		}
		shift = h*60 + mi
		if m[1] == "-" {
			shift = -shift
		}
		return shift, "", nil
	}
	h, ok := zoneHours[name]
	if !ok {
		return 0, "", fmt.Errorf("the time zone %s is not known here", name)
	}
	if summers.MatchString(name) {
		note = "schedules are in UTC: in summer the run is an hour later by the clocks of " + name
	}
	return int(h * 60), note, nil
}

// shiftCron moves a cron line from a zone that is shift minutes ahead to UTC.
func shiftCron(c string, shift int) (string, error) {
	if shift == 0 {
		return c, nil
	}
	f := strings.Fields(c)
	m, err := strconv.Atoi(f[0])
	if err != nil {
		return c, nil // every n minutes, whatever the zone
	}
	if strings.HasPrefix(f[1], "*") {
		return c, nil
	}
	var hours []string
	day, minute := 0, 0
	for i, hs := range strings.Split(f[1], ",") {
		h, err := strconv.Atoi(hs)
		if err != nil {
			return "", errors.New("its hours cannot be moved to UTC")
		}
		t := h*60 + m - shift
		d := 0
		for t < 0 {
			t, d = t+1440, d-1
		}
		for t >= 1440 {
			t, d = t-1440, d+1
		}
		if i > 0 && (d != day || t%60 != minute) {
			return "", errors.New("these times are on different days in UTC")
		}
		day, minute = d, t%60
		hours = append(hours, strconv.Itoa(t/60))
	}
	f[0], f[1] = strconv.Itoa(minute), strings.Join(hours, ",")
	if day != 0 {
		if f[2] != "*" {
			return "", errors.New("the day of the month is another one in UTC")
		}
		if f[4] != "*" {
			var out []string
			for d := range strings.SplitSeq(f[4], ",") {
				if a, b, ok := strings.Cut(d, "-"); ok {
					x, _ := strconv.Atoi(a)
					y, _ := strconv.Atoi(b)
					if x+day < 0 {
						for v := x; v <= y; v++ {
							out = append(out, strconv.Itoa((v+day+7)%7))
						}
						continue
					}
					out = append(out, fmt.Sprintf("%d-%d", x+day, y+day))
					continue
				}
				v, _ := strconv.Atoi(d)
				out = append(out, strconv.Itoa((v+day+7)%7))
			}
			f[4] = strings.Join(out, ",")
		}
	}
	return strings.Join(f, " "), nil
}
