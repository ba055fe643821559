package web

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/text"
)

// lead is how many lines stand before those that a link points at.
const lead = 200

// mark is the lines that a link points at, from and to; zero is none.
type mark struct{ From, To int64 }

func markOf(s string) (m mark) {
	a, b, ranged := strings.Cut(s, "-")
	m.From, _ = strconv.ParseInt(a, 10, 64)
	if m.To = m.From; ranged {
		m.To, _ = strconv.ParseInt(b, 10, 64)
	}
	if m.To < m.From {
		m.From, m.To = m.To, m.From
	}
	if m.From < 1 {
		return mark{}
	}
	return m
}

// logAsk is what somebody wants to see of a log.
type logAsk struct {
	From  int64  // the first line; 0 is the end of the log
	Mark  mark   // or these
	Words string // looked for
	Times bool   // shown
}

// row is a line as a page shows it.
type row struct {
	N      int64
	Step   int
	Stream string
	Text   string
	Group  string `json:",omitempty"` // start, end
	T      string // when, to the millisecond, UTC

	Marked bool       `json:"-"` // a link points at it
	Bits   []hit      `json:"-"` // the text, where words were found in it
	Note   *board.Job `json:"-"` // whose failure this line is
}

// hit is a part of a line's text.
type hit struct {
	Text  string
	Found bool
}

// logView is the part of a log that a page shows.
type logView struct {
	logAsk
	Rows           []row
	Sections       []section
	First, Last    int64 // numbers of the lines shown
	Total          int64 // how many there are
	Earlier, Later int64 // from which line to look for them; 0 if there are none
	Tail           bool  // the end is shown, and may be followed
	Broken         bool  // it could not be read
	Hits           []row // that the search found: the first
	Found          int64 // how many it did
	More           int64 // from which line it has not searched; 0: it has searched all
}

// section is the lines of one step.
type section struct {
	Step  int
	Name  string
	State *board.Step // nil: not known
	Fold  bool        // it succeeded, and something else is what to look at
	Items []item
}

// item is a line, or a group of them below its title.
type item struct {
	Row   row
	Rows  []row // of a group
	Group bool
	Open  bool // the group
}

// logOf reads the part of a job's log that is asked for.
func (s *Server) logOf(ctx context.Context, run, key string, ask logAsk) (v logView, err error) {
	v.logAsk = ask
	from := ask.From
	if ask.Mark.From > 0 {
		from = max(ask.Mark.From-lead, 1)
	}
	read := func() (w Window, err error) {
		if from > 0 {
			return s.source.LogFrom(ctx, run, key, from, maxLines)
		}
		return s.source.LogTail(ctx, run, key, maxLines)
	}
	w, err := read()
	if err != nil {
		return v, err
	}
	v.Rows, v.Total = fit(w.Lines, from <= 0), w.Total
	if n := len(v.Rows); n > 0 && ask.Mark.From > v.Rows[n-1].N && ask.Mark.From <= w.Total { // the lines before it are too long
		from = ask.Mark.From
		if w, err = read(); err != nil {
			return v, err
		}
		v.Rows = fit(w.Lines, false)
	}
	if n := len(v.Rows); n > 0 {
		v.First, v.Last = v.Rows[0].N, v.Rows[n-1].N
	} else {
		v.First, v.Last = w.First, w.Total
	}
	if v.First > 1 {
		v.Earlier = max(v.First-maxLines, 1)
	}
	if v.Tail = v.Last >= v.Total; !v.Tail {
		v.Later = v.Last + 1
	}
	var find func(string) int
	if ask.Words != "" {
		find = text.Finder(ask.Words)
		m, err := s.source.LogFind(ctx, run, key, ask.Words, 1, maxHits)
		if err != nil {
			return v, err
		}
		v.Found, v.More = m.Total, m.Next
		for _, r := range fit(m.Lines, false) {
			r.Bits = bits(r.Text, ask.Words, find)
			v.Hits = append(v.Hits, r)
		}
	}
	for i := range v.Rows {
		r := &v.Rows[i]
		r.Marked = ask.Mark.From > 0 && r.N >= ask.Mark.From && r.N <= ask.Mark.To
		if find != nil {
			r.Bits = bits(r.Text, ask.Words, find)
		}
	}
	return v, nil
}

// bits are the parts of a text of which some are the words; nil where they are not in
// it.
func bits(text, words string, find func(string) int) (out []hit) {
	for len(out) < 40 {
		i := find(text)
		if i < 0 {
			break
		}
		if i > 0 {
			out = append(out, hit{Text: text[:i]})
		}
		out = append(out, hit{text[i : i+len(words)], true})
		text = text[i+len(words):]
	}
	if out != nil && text != "" {
		out = append(out, hit{Text: text})
	}
	return out
}

// sections puts the lines below their steps and into their groups, and what is known of
// the job's failure beside the line that says it.
func (v *logView) sections(j *board.Job) {
	bad := j.Infrastructure || j.Conclusion == ci.Failure || j.Conclusion == ci.TimedOut
	if n := culprit(v.Rows, j); n >= 0 {
		v.Rows[n].Note = j
	}
	var group *item
	special := func(r *row) bool { return r.Marked || r.Bits != nil || r.Note != nil || r.Stream == "error" }
	for _, r := range v.Rows {
		if n := len(v.Sections); n == 0 || v.Sections[n-1].Step != r.Step {
			s := section{Step: r.Step}
			for _, st := range j.Steps {
				if st.Number == r.Step {
					s.Name, s.State = st.Name, st
				}
			}
			s.Fold = bad && s.State != nil && s.State.Status == ci.Completed && (s.State.Outcome == ci.Success || s.State.Conclusion == ci.Success) &&
				s.State.Again() == ""
			v.Sections = append(v.Sections, s)
			group = nil
		}
		s := &v.Sections[len(v.Sections)-1]
		if r.Marked || r.Bits != nil || r.Note != nil {
			s.Fold = false
		}
		switch {
		case r.Group == "start":
			s.Items = append(s.Items, item{Row: r, Group: true, Open: special(&r)})
			group = &s.Items[len(s.Items)-1]
		case r.Group == "end":
			group = nil
		case group != nil:
			group.Rows = append(group.Rows, r)
			group.Open = group.Open || special(&r)
		default:
			s.Items = append(s.Items, item{Row: r})
		}
	}
	// A group whose end has not come is where the job is.
	if n := len(v.Sections); group != nil && n > 0 && j.Status == ci.InProgress {
		group.Open = true
	}
}

// culprit is the row that says why a job failed, as its explanation has it; -1 where
// none of them is.
func culprit(rows []row, j *board.Job) int {
	if j.Explanation == nil {
		return -1
	}
	for _, l := range board.WhatItSays(j.Explanation) {
		if l = strings.TrimSpace(l); len(l) < 4 {
			continue
		}
		for i := range slices.Backward(rows) {
			if rows[i].Group == "" && strings.Contains(rows[i].Text, l) {
				return i
			}
		}
	}
	return -1
}

// fit makes rows of lines, of so many as go on a page: the last, or the first.
func fit(lines []Line, last bool) []row {
	rows := make([]row, 0, len(lines))
	left := maxText
	for i := range lines {
		l := lines[i]
		if last {
			l = lines[len(lines)-1-i]
		}
		r := rowOf(l)
		if left -= len(r.Text); left < 0 && len(rows) > 0 {
			break
		}
		rows = append(rows, r)
	}
	if last {
		slices.Reverse(rows)
	}
	return rows
}

// clip cuts a text and says so.
func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + fmt.Sprintf(" … %d bytes more", len(text)-most)
}

func rowOf(l Line) row {
	r := l.Record
	o := row{N: l.Number, Step: r.Step, Stream: r.Stream, Text: board.Clean(clip(r.Text, maxLine)), T: r.Time.UTC().Format("15:04:05.000")}
	if r.Type == ci.Group {
		o.Group = r.Stream
	}
	// A record from before lines had a level says it in its text alone.
	if text, said := strings.CutPrefix(o.Text, "##[error]"); r.Stream == "system" && (r.Level == "error" || r.Level == "" && said) {
		o.Stream, o.Text = "error", text
	}
	return o
}

// failure is a job that failed, with what is known of it.
type failure struct {
	*board.Job
	Bad []*board.Step // those of its steps that did it
}

// maxFailures is how many jobs that failed stand at the head of a run; the others
// are in the list.
const maxFailures = 3

func failuresOf(b *board.Board) (out []failure) {
	for _, j := range b.Jobs {
		if !j.Infrastructure && j.Conclusion != ci.Failure && j.Conclusion != ci.TimedOut && j.Explanation == nil || len(out) >= maxFailures {
			continue
		}
		f := failure{Job: j}
		for _, s := range j.Steps {
			if s.Status == ci.Completed && (s.Conclusion == ci.Failure || s.Conclusion == ci.TimedOut || s.Infrastructure) {
				f.Bad = append(f.Bad, s)
			}
		}
		out = append(out, f)
	}
	return out
}

// fileName is a text as the name of a file.
func fileName(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || strings.ContainsRune(`/\:*?"<>|`, r) {
			return '-'
		}
		return r
	}, clip(board.Clean(s), 150))
}

// ago says a moment as people do.
func ago(t, now time.Time) string {
	d := now.Sub(t)
	plural := func(n int, what string) string {
		if n == 1 {
			return "1 " + what + " ago"
		}
		return strconv.Itoa(n) + " " + what + "s ago"
	}
	switch {
	case t.IsZero():
		return ""
	case d < 45*time.Second: // or to come, by another clock
		return "just now"
	case d < time.Hour:
		return plural(max(int(d.Minutes()+.5), 1), "minute")
	case d < 24*time.Hour:
		return plural(int(d.Hours()), "hour")
	case d < 7*24*time.Hour:
		return plural(int(d.Hours()/24), "day")
	}
	return t.UTC().Format("2 Jan 2006")
}
