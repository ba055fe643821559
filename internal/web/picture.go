package web

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
)

// Bounds on the pictures of a run: what has no room is counted, and is in the list.
const (
	maxNodes = 80  // of the job graph; a matrix is one
	maxBars  = 120 // rows of the timeline
	maxCells = 400 // steps drawn in them
)

// node is a job of the graph, or all cells of a matrix.
type node struct {
	ID, Label string
	Key       string // of the job that a click opens: the worst of them
	Class     string
	Sign      string
	Says      string // the state in words, and how long
	X, Y      int
	Open      bool
}

// chart is the jobs of a run as a graph, from left to right.
type chart struct {
	Nodes         []node
	Edges         []string // paths
	Width, Height int
	More          int // nodes that have no room
}

// The measures of the graph, in pixels.
const (
	nodeWide, nodeHigh = 190, 46
	gapX, gapY         = 54, 14
)

// worst ranks jobs by how much they matter to who looks.
func worst(j *board.Job) int {
	switch {
	case j.Infrastructure:
		return 6
	case j.Status == ci.Completed && (j.Conclusion == ci.Failure || j.Conclusion == ci.TimedOut):
		return 5
	case j.Status == ci.InProgress:
		return 4
	case j.Status != ci.Completed:
		return 3
	case j.Conclusion == ci.Cancelled, j.Conclusion == ci.NotRun:
		return 2
	case j.Conclusion == ci.Success:
		return 1
	}
	return 0
}

// graphOf lays the jobs out: each is a column behind the last of those it needs.
func graphOf(b *board.Board, open *board.Job) chart {
	type group struct {
		id    string
		jobs  []*board.Job
		needs []string
		col   int
	}
	var groups []*group
	byID := map[string]*group{}
	for _, j := range b.Jobs {
		g := byID[j.ID]
		if g == nil {
			g = &group{id: j.ID, col: -1}
			byID[j.ID] = g
			groups = append(groups, g)
		}
		g.jobs = append(g.jobs, j)
		if len(g.needs) == 0 {
			g.needs = j.Needs[:min(len(j.Needs), maxNodes)]
		}
	}
	var c chart
	if len(groups) > maxNodes {
		c.More = len(groups) - maxNodes
		for _, g := range groups[maxNodes:] {
			delete(byID, g.id)
		}
		groups = groups[:maxNodes]
	}
	// A column is known once those of all needs are. What needs itself in a circle,
	// which no workflow of ours does, stands in the first.
	for range groups {
		for _, g := range groups {
			col := 0
			for _, n := range g.needs {
				if o := byID[n]; o != nil && o != g {
					col = max(col, o.col+1)
				}
			}
			g.col = min(col, len(groups)-1)
		}
	}
	rows := map[int]int{}
	place := map[*group][2]int{}
	columns := 0
	for _, g := range groups {
		place[g] = [2]int{g.col, rows[g.col]}
		rows[g.col]++
		columns = max(columns, g.col+1)
	}
	tallest := 1
	for _, n := range rows {
		tallest = max(tallest, n)
	}
	c.Height = tallest*(nodeHigh+gapY) - gapY + 2
	c.Width = columns*(nodeWide+gapX) - gapX + 2
	for _, g := range groups {
		col, row := place[g][0], place[g][1]
		high := rows[col]*(nodeHigh+gapY) - gapY
		n := node{ID: g.id, X: 1 + col*(nodeWide+gapX), Y: 1 + (c.Height-2-high)/2 + row*(nodeHigh+gapY)}
		first := slices.MaxFunc(g.jobs, func(a, b *board.Job) int { return worst(a) - worst(b) })
		n.Key, n.Class = first.Key, jobClass(first)
		var word string
		n.Sign, word = first.Mark()
		n.Label = board.Cut(board.Clean(first.Name), 24)
		n.Says = word
		if first.Duration > 0 {
			n.Says += ", " + board.Short(first.Duration)
		}
		if len(g.jobs) > 1 {
			n.Label = board.Cut(board.Clean(g.id), 18) + fmt.Sprintf(" ×%d", len(g.jobs))
			done, longest := 0, time.Duration(0)
			for _, j := range g.jobs {
				if worst(j) == worst(first) {
					done++
				}
				longest = max(longest, j.Duration)
			}
			n.Says = fmt.Sprintf("%d of %d %s", done, len(g.jobs), word)
			if done == len(g.jobs) {
				n.Says = fmt.Sprintf("all %s", word)
			}
			if longest > 0 {
				n.Says += ", " + board.Short(longest)
			}
		}
		n.Says = board.Cut(n.Says, 28)
		n.Open = open != nil && open.ID == g.id
		c.Nodes = append(c.Nodes, n)
	}
	nodes := map[string]node{}
	for _, n := range c.Nodes {
		nodes[n.ID] = n
	}
	for _, g := range groups {
		to := nodes[g.id]
		for _, need := range g.needs {
			from, ok := nodes[need]
			if !ok || len(c.Edges) >= 10*maxNodes {
				continue
			}
			x1, y1, x2, y2 := from.X+nodeWide, from.Y+nodeHigh/2, to.X, to.Y+nodeHigh/2
			mid := (x1 + x2) / 2
			c.Edges = append(c.Edges, fmt.Sprintf("M%d %dC%d %d %d %d %d %d", x1, y1, mid, y1, mid, y2, x2, y2))
		}
	}
	return c
}

func jobClass(j *board.Job) string {
	if j.Retried() > 0 && j.Conclusion == ci.Success && !j.Infrastructure {
		return "running"
	}
	return class(j.Status, j.Conclusion, j.Infrastructure)
}

func stepClass(s *board.Step) string {
	if s.Allowed() || s.Again() != "" {
		return "running"
	}
	return class(s.Status, s.Conclusion, s.Infrastructure)
}

// bit is a part of a row of the timeline, in thousandths of its width.
type bit struct {
	X, Width float64
	Class    string
	Title    string
}

// lane is one row of the timeline.
type lane struct {
	Name, Key string
	Step      int // 0: of the job
	Class     string
	Sign      string
	Bits      []bit
	Ghost     *bit // what was expected
	Took      string
}

// timeline is a run on one axis.
type timeline struct {
	Lanes []lane
	Ticks []tick
	More  int // lanes that have no room
}

type tick struct {
	X    float64
	Text string
}

// timelineOf draws a run until now: for each job how long it waited after all that
// it needs was there, how long its machine took, and its steps; and the steps of the
// open job a row each.
func timelineOf(b *board.Board, open *board.Job, now time.Time) timeline {
	var from, to time.Time
	for _, j := range b.Jobs {
		if !j.Queued.IsZero() && (from.IsZero() || j.Queued.Before(from)) {
			from = j.Queued
		}
		if !j.Started.IsZero() && (from.IsZero() || j.Started.Before(from)) {
			from = j.Started
		}
		for _, at := range []time.Time{j.Started, j.Finished} {
			if at.After(to) {
				to = at
			}
		}
		if j.Status == ci.InProgress {
			to = now
		}
	}
	var t timeline
	if from.IsZero() || !to.After(from) {
		return t
	}
	for _, j := range b.Jobs { // a ghost may go beyond the end
		if p := j.Prediction; p != nil && p.ExpectedMS > 0 && !j.Started.IsZero() {
			if end := j.Started.Add(time.Duration(p.ExpectedMS) * time.Millisecond); end.After(to) && end.Sub(from) < 2*to.Sub(from) {
				to = end
			}
		}
	}
	whole := to.Sub(from)
	at := func(m time.Time) float64 { return min(max(1000*float64(m.Sub(from))/float64(whole), 0), 1000) }
	span := func(a, z time.Time, class, title string) (bit, bool) {
		if z.Before(a) {
			return bit{}, false
		}
		x := at(a)
		return bit{X: x, Width: max(at(z)-x, 1.5), Class: class, Title: title}, true
	}
	ghost := func(start time.Time, p *ci.Prediction) *bit {
		if p == nil || p.Seen == 0 || p.ExpectedMS <= 0 || start.IsZero() {
			return nil
		}
		took := time.Duration(p.ExpectedMS) * time.Millisecond
		g, _ := span(start, start.Add(took), "ghost", "expected "+board.Short(took))
		return &g
	}
	ended := map[string]time.Time{}
	for _, j := range b.Jobs {
		if j.Finished.After(ended[j.ID]) {
			ended[j.ID] = j.Finished
		}
	}
	cells := 0
	for _, j := range b.Jobs {
		if j.Started.IsZero() && j.Status == ci.Completed {
			continue // it never ran
		}
		if len(t.Lanes) >= maxBars {
			t.More++
			continue
		}
		sign, word := j.Mark()
		l := lane{Name: board.Cut(board.Clean(j.Name), 40), Key: j.Key, Class: jobClass(j), Sign: sign, Ghost: ghost(j.Started, j.Prediction)}
		ready := j.Queued
		for _, n := range j.Needs[:min(len(j.Needs), maxNodes)] {
			if ended[n].After(ready) {
				ready = ended[n]
			}
		}
		add := func(a, z time.Time, class, what string) {
			if a.IsZero() || z.IsZero() || cells >= maxCells {
				return
			}
			if s, ok := span(a, z, class, what+" "+board.Short(z.Sub(a))); ok {
				l.Bits = append(l.Bits, s)
				cells++
			}
		}
		end := cmp.Or(j.Finished, now)
		if j.Started.IsZero() {
			if whole > 0 && !ready.IsZero() && j.Status != ci.Completed && ready != j.Queued {
				add(ready, now, "queue", "waits for a machine:")
			}
			t.Lanes = append(t.Lanes, l)
			continue
		}
		add(ready, j.Started, "queue", "waited for a machine:")
		if len(j.Steps) > 0 && !j.Steps[0].Started.IsZero() {
			add(j.Started, j.Steps[0].Started, "machine", "machine and job set-up:")
		} else {
			add(j.Started, end, cmp.Or(l.Class, "off"), word+",")
		}
		for _, s := range j.Steps {
			if s.Started.IsZero() {
				continue
			}
			add(s.Started, stepEnd(s, end), stepClass(s), fmt.Sprintf("%d %s:", s.Number, board.Cut(board.Clean(s.Name), 60)))
		}
		l.Took = board.Short(end.Sub(j.Started))
		t.Lanes = append(t.Lanes, l)
		if j != open {
			continue
		}
		for _, s := range j.Steps {
			if s.Started.IsZero() {
				continue
			}
			if len(t.Lanes) >= maxBars {
				t.More++
				continue
			}
			done := stepEnd(s, end)
			sign, _ := s.Mark()
			row := lane{Name: board.Cut(board.Clean(s.Name), 40), Key: j.Key, Step: s.Number, Class: stepClass(s), Sign: sign, Ghost: ghost(s.Started,
				j.Expected[s.Number]),
				Took: board.Short(done.Sub(s.Started))}
			if v, ok := span(s.Started, done, stepClass(s), board.Short(done.Sub(s.Started))); ok {
				row.Bits = []bit{v}
			}
			t.Lanes = append(t.Lanes, row)
		}
	}
	every := whole / 5
	for _, round := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 15 * time.Second, 30 * time.Second, time.Minute,
		2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 6 * time.Hour} {
		if round >= every {
			every = round
			break
		}
	}
	if every > 0 {
		for d := time.Duration(0); d < whole && len(t.Ticks) < 12; d += every {
			t.Ticks = append(t.Ticks, tick{X: 1000 * float64(d) / float64(whole), Text: axis(d)})
		}
	}
	return t
}

// stepEnd is when a step ended, or now.
func stepEnd(s *board.Step, now time.Time) time.Time {
	if s.Status == ci.Completed {
		return s.Started.Add(s.Duration)
	}
	return now
}

// axis says a moment of a run: 0, 30 s, 2 min.
func axis(d time.Duration) string {
	switch {
	case d == 0:
		return "0"
	case d < time.Minute:
		return fmt.Sprintf("%.3g s", d.Seconds())
	case d < time.Hour && d%time.Minute != 0:
		return fmt.Sprintf("%d:%02d min", int(d.Minutes()), int(d.Seconds())%60)
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	}
	return fmt.Sprintf("%.3g h", d.Hours())
}
