// Package tui is what a person at a terminal sees of a run: a live tree of jobs
// and steps where there is a terminal ([Live]), plain lines where there is none
// ([Plain]), NDJSON for programs ([JSON]); and one summary at the end of the
// first two. All of them are sinks of the one event stream and draw a
// [board.Board].
//
// Text that came out of a machine goes through [board.Clean] before it reaches
// the terminal: a log line must not move the cursor or retitle the window.
package tui

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
)

// Live draws a run as a tree of jobs and steps that changes in place, with the
// steps' output scrolling above it.
//
// Records are applied as they come; the screen is drawn at a fixed pace. Output
// that comes faster than a person or a terminal can follow is counted and left
// out of the screen (the record keeps all of it), so that a step that prints a
// gigabyte is not slowed down by the picture of it.
type Live struct {
	w    io.Writer
	prog *tea.Program
	done chan error

	mu      sync.Mutex
	board   board.Board
	hidden  bool // the terminal is somebody else's
	pending []string
	dropped int
}

const (
	tick       = 90 * time.Millisecond
	maxPending = 400 // lines a tick
)

// NewLive starts drawing on w, a terminal. Close ends it.
func NewLive(w io.Writer) *Live {
	l := &Live{w: w, done: make(chan error, 1)}
	l.prog = tea.NewProgram(liveModel{live: l, width: 80, height: 24},
		tea.WithOutput(w), tea.WithInput(nil), tea.WithoutSignalHandler())
	go func() {
		_, err := l.prog.Run()
		l.done <- err
	}()
	return l
}

// Emit takes the next record.
func (l *Live) Emit(r ci.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.board.Apply(r)
	switch r.Type {
	case ci.LogLine, ci.ConnectionRec, ci.DiagnosticRec:
		for _, line := range lines(&l.board, r, false) {
			if len(l.pending) >= maxPending {
				l.dropped++
				continue
			}
			l.pending = append(l.pending, line)
		}
	}
}

// Aside leaves the terminal to f, and draws on below what f has written. Records are
// taken meanwhile. It is for one caller at a time.
func (l *Live) Aside(f func()) {
	hide := func(yes bool) {
		l.mu.Lock()
		l.hidden = yes
		l.mu.Unlock()
		l.prog.Send(asideMsg{})
	}
	hide(true) // or the tree would be drawn over what f writes
	time.Sleep(tick)
	l.prog.ReleaseTerminal()
	f()
	l.prog.RestoreTerminal()
	hide(false)
}

// Close stops drawing and prints the summary where the tree was.
func (l *Live) Close() error {
	l.prog.Send(closeMsg{})
	err := <-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.board.Jobs) == 0 && l.board.Conclusion == "" {
		return err
	}
	for _, line := range l.board.Written(maxWritten) {
		if _, werr := fmt.Fprintln(l.w, line); err == nil {
			err = werr
		}
	}
	for _, line := range l.board.Summary() {
		if _, werr := fmt.Fprintln(l.w, paint(line)); err == nil {
			err = werr
		}
	}
	return err
}

func (l *Live) away() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hidden
}

func (l *Live) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.pending
	if l.dropped > 0 {
		lines = append(lines, fmt.Sprintf("… %d more lines: hearth logs %s", l.dropped, l.board.Run))
	}
	l.pending, l.dropped = nil, 0
	return lines
}

type (
	tickMsg  time.Time
	closeMsg struct{}
	asideMsg struct{}
)

type liveModel struct {
	live          *Live
	width, height int
	closing       bool
}

func nextTick() tea.Cmd { return tea.Tick(tick, func(t time.Time) tea.Msg { return tickMsg(t) }) }

func (m liveModel) Init() tea.Cmd { return nextTick() }

func (m liveModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case asideMsg:
		if lines := m.live.take(); len(lines) > 0 {
			return m, tea.Println(strings.Join(lines, "\n"))
		}
	case tickMsg:
		if m.live.away() {
			return m, nextTick()
		}
		if lines := m.live.take(); len(lines) > 0 {
			return m, tea.Sequence(tea.Println(strings.Join(lines, "\n")), nextTick())
		}
		return m, nextTick()
	case closeMsg:
		m.closing = true
		if lines := m.live.take(); len(lines) > 0 {
			return m, tea.Sequence(tea.Println(strings.Join(lines, "\n")), tea.Quit)
		}
		return m, tea.Quit
	}
	return m, nil
}

func (m liveModel) View() tea.View {
	m.live.mu.Lock()
	defer m.live.mu.Unlock()
	var lines []string
	if !m.closing && !m.live.hidden {
		for _, line := range Tree(&m.live.board, m.width, max(m.height/2, 6), time.Now()) {
			lines = append(lines, paint(line))
		}
	}
	return tea.NewView(strings.Join(lines, "\n"))
}

// paint colours a line by the first sign in it.
func paint(line string) string {
	for _, r := range line {
		var c string
		switch r {
		case '✓':
			c = "2"
		case '✗', '‼', '⧖':
			c = "1"
		case '▸', '!':
			c = "3"
		case '-', '·', '■', '○':
			c = "8"
		case ' ':
			continue
		default:
			return line
		}
		return lipgloss.NewStyle().Foreground(lipgloss.Color(c)).Render(line)
	}
	return line
}

// Tree draws the board in at most height lines of at most width runes: every
// job while there is room, and under those that run, their steps.
func Tree(b *board.Board, width, height int, now time.Time) []string {
	var out []string
	head := board.Clean(b.Workflow)
	if b.Run != "" {
		head += "  run " + b.Run
	}
	if !b.Started.IsZero() {
		end := now
		if !b.Finished.IsZero() {
			end = b.Finished
		}
		head += "  " + board.Short(end.Sub(b.Started))
	}
	out = append(out, board.Cut(head, width))
	counts := map[string]int{}
	shown := 0
	room := height - 2
	for _, j := range b.Jobs {
		sign, word := j.Mark()
		counts[word]++
		line := sign + " " + board.Clean(j.Name)
		switch j.Status {
		case ci.InProgress:
			line += "  " + board.Short(now.Sub(j.Started))
			if p := j.Prediction; p != nil && p.ExpectedMS > 0 {
				line += " of about " + board.Short(time.Duration(p.ExpectedMS)*time.Millisecond)
			}
			if j.Machine != "" {
				line += "  " + j.Machine
			}
		case ci.Completed:
			line += "  " + word
			if j.Duration > 0 {
				line += " in " + board.Short(j.Duration)
			}
		default:
			if e := board.Expectation(j.Prediction); e != "" {
				line += "  " + e
			} else if len(j.Needs) > 0 {
				line += "  needs " + board.Clean(strings.Join(j.Needs, ", "))
			}
		}
		if len(out) >= room {
			continue
		}
		out = append(out, board.Cut(line, width))
		shown++
		if j.Status != ci.InProgress {
			continue
		}
		for _, s := range j.Steps {
			if len(out) >= room || s.Conclusion == ci.Skipped {
				continue
			}
			sign, _ := s.Mark()
			line := "    " + sign + " " + board.Clean(s.Name)
			if s.Status == ci.InProgress {
				line += "  " + board.Short(now.Sub(s.Started))
				if s.Last != "" {
					line += "  " + strings.TrimSpace(s.Last)
				}
			} else {
				line += "  " + board.Short(s.Duration)
			}
			out = append(out, board.Cut(strings.ReplaceAll(line, "\t", " "), width))
		}
	}
	if rest := len(b.Jobs) - shown; rest > 0 {
		var parts []string
		for _, w := range []string{"running", "waiting", "success", "failure", "skipped", "not run here", "cancelled", "timed out", "could not run"} {
			if counts[w] > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", counts[w], w))
			}
		}
		out = append(out, board.Cut(fmt.Sprintf("… %d jobs in all: %s", len(b.Jobs), strings.Join(parts, ", ")), width))
	}
	return out
}
