package tui

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
)

// Plain prints a run as lines, for pipes, files and CI logs.
type Plain struct {
	mu    sync.Mutex
	w     io.Writer
	board board.Board
	quiet bool
}

// maxWritten is how many lines of a step's summary are shown at the end of a run.
const maxWritten = 100

// NewPlain returns a sink that writes lines to w. With quiet, the output of
// steps is left out.
func NewPlain(w io.Writer, quiet bool) *Plain { return &Plain{w: w, quiet: quiet} }

// Emit prints what r says.
func (p *Plain) Emit(r ci.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.board.Apply(r)
	for _, line := range lines(&p.board, r, p.quiet) {
		fmt.Fprintln(p.w, line)
	}
}

// Close prints the summary.
func (p *Plain) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.board.Jobs) == 0 && p.board.Conclusion == "" {
		return nil
	}
	fmt.Fprintln(p.w)
	for _, line := range append(p.board.Written(maxWritten), p.board.Summary()...) {
		if _, err := fmt.Fprintln(p.w, line); err != nil {
			return err
		}
	}
	return nil
}

// lines says one record in lines; none for most of them.
func lines(b *board.Board, r ci.Record, quiet bool) []string {
	name := ""
	if r.JobKey != "" || r.Job != "" {
		name = "[" + board.Clean(b.JobOf(ci.Record{JobKey: r.JobKey, Job: r.Job}).Name) + "] "
	}
	switch r.Type {
	case ci.RunPlanned:
		noun := "jobs"
		if r.Jobs == 1 {
			noun = "job"
		}
		return []string{fmt.Sprintf("%s: %d %s on %s (run %s)", board.Clean(r.Workflow), r.Jobs, noun, r.Event, r.Run)}
	case ci.JobStarted:
		return []string{name + "started"}
	case ci.JobFinished:
		sign, word := board.Mark(ci.Completed, r.Conclusion, r.Infrastructure)
		line := name + sign + " " + word
		if r.DurationMS != nil && r.Conclusion != ci.Skipped && r.Conclusion != ci.NotRun {
			line += " in " + board.Short(time.Duration(*r.DurationMS)*time.Millisecond)
		}
		if r.Reason != "" {
			line += ": " + board.Clean(r.Reason)
		}
		return []string{line}
	case ci.StepStarted:
		line := fmt.Sprintf("%s▸ %s", name, board.Clean(r.Name))
		if r.Attempt > 1 {
			line += fmt.Sprintf(" (attempt %d)", r.Attempt)
		}
		return []string{line}
	case ci.StepFinished:
		if r.Conclusion == ci.Skipped {
			return nil
		}
		step := board.Step{Status: ci.Completed, Outcome: r.Outcome, Conclusion: r.Conclusion, Infrastructure: r.Infrastructure,
			Attempt: r.Attempt, Assisted: r.Assisted}
		sign, word := step.Mark()
		line := fmt.Sprintf("%s%s %s: %s", name, sign, board.Clean(r.Name), word)
		if r.DurationMS != nil {
			line += " in " + board.Short(time.Duration(*r.DurationMS)*time.Millisecond)
		}
		if step.Allowed() {
			line += " (continue-on-error)"
		}
		if again := step.Again(); again != "" {
			line += " (" + again + ")"
		}
		if r.Reason != "" {
			line += ": " + board.Clean(r.Reason)
		} else if r.ExitCode != nil && *r.ExitCode != 0 {
			line += fmt.Sprintf(": exit code %d", *r.ExitCode)
		}
		return []string{line}
	case ci.LogLine:
		if quiet {
			return nil
		}
		return []string{name + "  " + board.Clean(r.Text)}
	case ci.PredictionRec:
		if r.Step == 0 && r.Prediction != nil {
			if s := board.Expectation(r.Prediction); s != "" {
				return []string{name + "expected: " + s}
			}
		}
	case ci.MachineRec:
		if r.Machine != nil && (r.Machine.Action == "created" || r.Machine.Action == "restored") {
			return []string{fmt.Sprintf("%smachine %s %s by %s in %s", name, r.Machine.ID, r.Machine.Action, r.Machine.Driver,
				board.Short(time.Duration(r.Machine.TookMS)*time.Millisecond))}
		}
	case ci.ConnectionRec:
		if c := r.Connection; c != nil && c.Refused {
			return []string{fmt.Sprintf("%sconnection to %s refused: %s", name, target(c), board.Clean(r.Reason))}
		}
	case ci.DiagnosticRec:
		return []string{DiagnosticLine(r)}
	}
	return nil
}

func target(c *ci.ConnectionEvent) string {
	host := board.Clean(c.Host)
	if host == "" {
		host = c.IP
	}
	if c.Port == 0 {
		return host
	}
	return fmt.Sprintf("%s:%d", host, c.Port)
}

// DiagnosticLine writes a diagnostic record as file:line:column: message.
func DiagnosticLine(r ci.Record) string {
	var s strings.Builder
	if r.File != "" {
		s.WriteString(board.Clean(r.File))
		if r.Line > 0 {
			fmt.Fprintf(&s, ":%d:%d", r.Line, r.Column)
		}
		s.WriteString(": ")
	}
	if r.Level == "advice" {
		s.WriteString("advice: ")
	}
	s.WriteString(board.Clean(r.Message))
	if r.Hint != "" {
		s.WriteString("\n  hint: " + board.Clean(r.Hint))
	}
	return s.String()
}

// JSON writes every record as one line of JSON, and nothing else.
type JSON struct {
	mu  sync.Mutex
	w   *bufio.Writer
	enc *json.Encoder
	seq map[string]int64 // the last number, by run
	err error
}

// NewJSON returns a sink that writes NDJSON to w.
func NewJSON(w io.Writer) *JSON {
	b := bufio.NewWriter(w)
	return &JSON{w: b, enc: board.NewEncoder(b), seq: map[string]int64{}}
}

// Emit writes r. It numbers and dates records that nobody has numbered yet.
func (j *JSON) Emit(r ci.Record) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r.V = ci.RecordVersion
	if r.Seq == 0 {
		r.Seq = j.seq[r.Run] + 1
	}
	j.seq[r.Run] = max(j.seq[r.Run], r.Seq)
	if r.Time.IsZero() {
		r.Time = time.Now().UTC()
	}
	if j.err == nil {
		j.err = j.enc.Encode(r)
	}
	if j.err == nil {
		j.err = j.w.Flush()
	}
}

// Close returns the first error there was in writing.
func (j *JSON) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}
