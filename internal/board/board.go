// Package board is what the records of a run add up to: its jobs and steps, how
// far each is, what was expected of it and what is known about its failure.
//
// A [Board] is pure state built from the one event stream, [ci.Record]. The
// terminal, the web pages and the text of check runs all show a Board, so that
// they cannot disagree. The package also has the words for it (marks, durations,
// percentages) and [Clean], which makes text out of a machine safe to show.
//
// Rules for whoever shows it: a word beside every colour; nothing that failed,
// was lost or did not run is ever green.
package board

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/markdown"
	"github.com/hearth-ci/hearth/internal/text"
)

// Board is what the records of one run add up to.
type Board struct {
	Run        string
	Workflow   string
	Name       string
	Started    time.Time
	Finished   time.Time
	Conclusion ci.Conclusion
	// Infrastructure says that the run, or a job of it, could not be run.
	Infrastructure bool
	Reason         string
	Ran, Of        int    // how many of its jobs ran, if one could not run here; else 0 of 0
	Jobs           []*Job // in the order in which they became known
	Notes          []ci.Record
	Prediction     *ci.Prediction // of the run
	// Documents bounds what is kept of summaries, in bytes; 0 is [MaxDocuments].
	Documents int
	documents int // that are kept
	byKey     map[string]*Job
}

// MaxDocuments is how much a board keeps of a run's summaries, in bytes.
const MaxDocuments = 4 << 20

// Job is one job on the board.
type Job struct {
	Key, Name      string
	ID             string   // in the workflow: that of every cell of a matrix
	Needs          []string // by ID
	Status         ci.Status
	Conclusion     ci.Conclusion
	Reason         string
	Infrastructure bool
	// Of a job that cannot run here: where that is said, and what to do.
	File, Hint     string
	Line, Column   int
	Queued         time.Time // with the run, whatever it needs
	Started        time.Time
	Finished       time.Time
	Duration       time.Duration
	Prediction     *ci.Prediction
	Explanation    *ci.Explanation
	Machine        string // driver, and how it came to be: "qemu, restored in 80 ms"
	Steps          []*Step
	Expected       map[int]*ci.Prediction // of its steps, by number; also of those that have not started
	EnvironmentURL string                 // where it deployed to
	Summaries      []Document             // that its steps wrote, in that order
	Traffic        []*Traffic             // on the network, at most [MaxTraffic]; see [Job.Connections]
	MoreTraffic    int                    // connections that are in none of Traffic
	byTarget       map[trafficKey]*Traffic
}

// Document is what a step wrote to GITHUB_STEP_SUMMARY: Markdown, out of a machine.
type Document struct {
	Step int
	Text string
	Left int // bytes of it that are not here
}

// Step is one step on the board.
type Step struct {
	Number         int
	Name           string
	Status         ci.Status
	Conclusion     ci.Conclusion
	Outcome        ci.Conclusion
	Reason         string
	Infrastructure bool
	ExitCode       int
	Started        time.Time
	Duration       time.Duration
	Attempt        int
	Assisted       bool   // a person had it run again
	Tried          int    // attempts that it needed within one attempt at its job; 0: one
	Last           string // last line of output
}

// Apply takes the next record.
func (b *Board) Apply(r ci.Record) {
	switch r.Type {
	case ci.RunPlanned:
		b.Run, b.Workflow, b.Name = r.Run, r.Workflow, r.Name
	case ci.RunStarted:
		b.Run, b.Started = r.Run, r.Time
		b.Workflow = cmp.Or(r.Workflow, b.Workflow)
		b.Name = cmp.Or(r.Name, b.Name)
	case ci.RunFinished:
		b.Finished, b.Conclusion, b.Reason, b.Infrastructure = r.Time, r.Conclusion, r.Reason, r.Infrastructure
		b.Ran, b.Of = r.Ran, r.Jobs
	case ci.JobQueued:
		j := b.JobOf(r)
		j.Status, j.Needs, j.Queued = ci.Queued, r.Needs, r.Time
	case ci.JobStarted:
		j := b.JobOf(r)
		if !j.Started.IsZero() {
			// Another attempt, in another machine: what the one before did is over.
			j.Steps, j.Explanation, j.Summaries = nil, nil, nil
		}
		j.Status, j.Started = ci.InProgress, r.Time
	case ci.JobFinished:
		j := b.JobOf(r)
		j.Status, j.Conclusion, j.Reason, j.Infrastructure, j.Finished = ci.Completed, r.Conclusion, r.Reason, r.Infrastructure, r.Time
		j.File, j.Line, j.Column, j.Hint = r.File, r.Line, r.Column, r.Hint
		j.EnvironmentURL = r.EnvironmentURL
		if r.DurationMS != nil {
			j.Duration = time.Duration(*r.DurationMS) * time.Millisecond
		}
	case ci.StepStarted:
		s := b.step(r)
		s.Status, s.Started, s.Attempt = ci.InProgress, r.Time, r.Attempt
	case ci.StepFinished:
		s := b.step(r)
		if r.Attempt > max(s.Attempt, 1) { // it started as an older one: it was tried again within the job
			s.Tried = r.Attempt
		}
		s.Status, s.Conclusion, s.Outcome, s.Reason, s.Infrastructure = ci.Completed, r.Conclusion, r.Outcome, r.Reason, r.Infrastructure
		s.Attempt, s.Assisted = max(s.Attempt, r.Attempt), r.Assisted
		if r.ExitCode != nil {
			s.ExitCode = *r.ExitCode
		}
		if r.DurationMS != nil {
			s.Duration = time.Duration(*r.DurationMS) * time.Millisecond
		}
	case ci.LogLine:
		if r.Step > 0 {
			if t := Clean(r.Text); strings.TrimSpace(t) != "" {
				b.step(r).Last = t
			}
		}
	case ci.PredictionRec:
		if r.JobKey == "" && r.Job == "" {
			if r.Prediction != nil {
				b.Prediction = r.Prediction
			}
			return
		}
		if r.Step > 0 && r.Prediction != nil {
			j := b.JobOf(ci.Record{JobKey: r.JobKey, Job: r.Job})
			if j.Expected == nil {
				j.Expected = map[int]*ci.Prediction{}
			}
			j.Expected[r.Step] = r.Prediction
		}
		if r.Step == 0 && r.Prediction != nil {
			b.JobOf(r).Prediction = r.Prediction
		}
		if r.Explanation != nil {
			b.JobOf(r).Explanation = r.Explanation
		}
	case ci.MachineRec:
		if r.Machine != nil && (r.Machine.Action == "created" || r.Machine.Action == "restored") {
			b.JobOf(r).Machine = fmt.Sprintf("%s, %s in %s", r.Machine.Driver, r.Machine.Action, Short(time.Duration(r.Machine.TookMS)*time.Millisecond))
		}
	case ci.SummaryRec:
		j := b.JobOf(ci.Record{JobKey: r.JobKey, Job: r.Job})
		keep := max(0, min(len(r.Text), cmp.Or(b.Documents, MaxDocuments)-b.documents))
		b.documents += keep
		j.Summaries = append(j.Summaries, Document{Step: r.Step, Text: strings.ToValidUTF8(r.Text[:keep], ""), Left: len(r.Text) - keep})
	case ci.ConnectionRec:
		b.JobOf(ci.Record{JobKey: r.JobKey, Job: r.Job}).connected(r)
	case ci.AnnotationRec, ci.DiagnosticRec:
		if len(b.Notes) < 1000 {
			b.Notes = append(b.Notes, r)
		}
	}
}

// JobOf finds the job that a record tells about, and makes it if it is new.
func (b *Board) JobOf(r ci.Record) *Job {
	key := cmp.Or(r.JobKey, r.Job)
	j := b.byKey[key]
	if j == nil {
		if b.byKey == nil {
			b.byKey = map[string]*Job{}
		}
		j = &Job{Key: key, ID: key, Name: cmp.Or(r.Name, key), Status: ci.Queued}
		b.byKey[key] = j
		b.Jobs = append(b.Jobs, j)
	}
	if r.Job != "" {
		j.ID = r.Job
	}
	if r.Name != "" && r.Step == 0 {
		j.Name = r.Name
	}
	return j
}

func (b *Board) step(r ci.Record) *Step {
	j := b.JobOf(ci.Record{JobKey: r.JobKey, Job: r.Job})
	for _, s := range j.Steps {
		if s.Number == r.Step {
			if r.Name != "" {
				s.Name = r.Name
			}
			return s
		}
	}
	s := &Step{Number: r.Step, Name: r.Name}
	j.Steps = append(j.Steps, s)
	slices.SortFunc(j.Steps, func(a, b *Step) int { return a.Number - b.Number })
	return s
}

// Allowed reports whether s failed and continue-on-error made a success of it,
// which is not the same as having succeeded.
func (s *Step) Allowed() bool {
	return s.Conclusion == ci.Success && (s.Outcome == ci.Failure || s.Outcome == ci.TimedOut)
}

// Again says of a step that succeeded, but not at its first attempt, what it took;
// "" of others.
func (s *Step) Again() string {
	if s.Attempt < 2 || s.Outcome != ci.Success && (s.Outcome != "" || s.Conclusion != ci.Success) {
		return ""
	}
	if s.Assisted {
		return fmt.Sprintf("at attempt %d, by hand", s.Attempt)
	}
	return fmt.Sprintf("at attempt %d", s.Attempt)
}

// Retried is how many steps of a job succeeded, but not at once.
func (j *Job) Retried() (n int) {
	for _, s := range j.Steps {
		if s.Tried > 1 && s.Again() != "" {
			n++
		}
	}
	return n
}

// Retried is how many steps of the run succeeded, but not at once.
func (b *Board) Retried() (n int) {
	for _, j := range b.Jobs {
		n += j.Retried()
	}
	return n
}

func again(steps int) string {
	if steps == 1 {
		return "a step needed another attempt"
	}
	return fmt.Sprintf("%d steps needed another attempt", steps)
}

// Mark is [Mark] for a job: one that needed more than one attempt at a step is green,
// and has a sign of its own.
func (j *Job) Mark() (sign, word string) {
	if n := j.Retried(); n > 0 && j.Conclusion == ci.Success && !j.Infrastructure {
		return "!", "flaky: success, " + again(n)
	}
	return Mark(j.Status, j.Conclusion, j.Infrastructure)
}

// Mark is [Mark] for a step: one that was allowed to fail, and one that needed more
// than one attempt, have a sign of their own.
func (s *Step) Mark() (sign, word string) {
	if s.Again() != "" {
		return "!", "success"
	}
	if s.Allowed() && !s.Infrastructure {
		return "!", "failed, allowed"
	}
	return Mark(s.Status, s.Conclusion, s.Infrastructure)
}

// Mark is the sign and the word for a state; the word is what counts.
func Mark(status ci.Status, c ci.Conclusion, infra bool) (sign, word string) {
	switch {
	case infra && c != ci.Cancelled:
		return "‼", "could not run"
	case status == ci.Queued || status == "":
		return "·", "waiting"
	case status == ci.InProgress:
		return "▸", "running"
	}
	switch c {
	case ci.Success:
		return "✓", "success"
	case ci.Failure:
		return "✗", "failure"
	case ci.Cancelled:
		return "■", "cancelled"
	case ci.Skipped:
		return "-", "skipped"
	case ci.TimedOut:
		return "⧖", "timed out"
	case ci.Neutral:
		return "○", "neutral"
	case ci.NotRun:
		return "⊘", "not run here"
	}
	return "?", "unknown"
}

// Short writes a duration as people say it: 80 ms, 1.4 s, 3 min 20 s.
func Short(d time.Duration) string {
	switch {
	case d < 0:
		return "0 ms"
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %02d min", int(d.Hours()), int(d.Minutes())%60)
}

// Clean makes text out of a machine safe to show in one line: see [text.Clean].
func Clean(s string) string { return text.Clean(s) }

// Cut shortens s to at most n runes.
func Cut(s string, n int) string {
	if n <= 0 {
		return ""
	}
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:max(n-1, 0)]) + "…"
}

// Expectation says a prediction in a few words, "" where there is nothing to say.
func Expectation(p *ci.Prediction) string {
	if p == nil || p.Seen == 0 {
		return ""
	}
	var parts []string
	if p.ExpectedMS > 0 {
		parts = append(parts, "about "+Short(time.Duration(p.ExpectedMS)*time.Millisecond))
	}
	parts = append(parts, fmt.Sprintf("%s to fail (%s–%s, from %d)", Percent(p.PFail), Percent(p.Low), Percent(p.High), p.Seen))
	if len(p.Reasons) > 0 {
		parts = append(parts, Clean(p.Reasons[0]))
	}
	return strings.Join(parts, ", ")
}

// Percent writes a probability for people: 7 %, <1 %.
func Percent(p float64) string {
	switch {
	case p > 0 && p < 0.01:
		return "<1 %"
	case p > 0.99 && p < 1:
		return ">99 %"
	}
	return fmt.Sprintf("%.0f %%", p*100)
}

// Written is what steps wrote to GITHUB_STEP_SUMMARY in lines, HTML in it as text, at most so many of each
// step's; 0 is all.
func (b *Board) Written(most int) []string {
	var out []string
	for _, j := range b.Jobs {
		for _, d := range j.Summaries {
			out = append(out, fmt.Sprintf("summary of %s, step %d:", Clean(j.Name), d.Step))
			lines := strings.Split(strings.Trim(markdown.Text(d.Text), "\n"), "\n")
			left := 0
			if most > 0 && len(lines) > most {
				lines, left = lines[:most], len(lines)-most
			}
			for _, l := range lines {
				out = append(out, strings.TrimRight("  "+Clean(l), " "))
			}
			switch {
			case left > 0:
				out = append(out, fmt.Sprintf("  … %d more lines: hearth show %s", left, b.Run))
			case d.Left > 0:
				out = append(out, fmt.Sprintf("  … %d more bytes: hearth show %s --json", d.Left, b.Run))
			}
		}
	}
	if len(out) > 0 {
		out = append(out, "")
	}
	return out
}

// Link is a URL that a page may link to, "" if it is none for people.
func Link(s string) string {
	if u, err := url.Parse(s); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return ""
	}
	return s
}

// Summary is the end of a run in lines: every job with its conclusion, every
// step that did not succeed, annotations, explanations.
func (b *Board) Summary() []string {
	var out []string
	width := 0
	for _, j := range b.Jobs {
		width = max(width, utf8.RuneCountInString(j.Name))
	}
	width = min(width, 48)
	for _, j := range b.Jobs {
		sign, word := j.Mark()
		line := fmt.Sprintf("%s %-*s  %-13s", sign, width, Cut(Clean(j.Name), width), word)
		if j.Duration > 0 {
			line += " " + Short(j.Duration)
		}
		if j.Reason != "" {
			line += "  (" + Clean(j.Reason) + ")"
		}
		out = append(out, strings.TrimRight(line, " "))
		if j.Hint != "" {
			out = append(out, "    "+Clean(j.Hint))
		}
		if j.EnvironmentURL != "" {
			out = append(out, "    deployed to "+Clean(j.EnvironmentURL))
		}
		for _, s := range j.Steps {
			if s.Status == ci.Completed && (s.Outcome == ci.Failure || s.Outcome == ci.TimedOut || s.Conclusion == ci.Failure || s.Infrastructure) {
				what := fmt.Sprintf("exit code %d", s.ExitCode)
				if s.Reason != "" {
					what = strings.TrimSuffix(Clean(s.Reason), ".")
				}
				if s.Conclusion == ci.Success {
					what += ", allowed by continue-on-error"
				}
				out = append(out, fmt.Sprintf("    step %d, %s: %s", s.Number, Cut(Clean(s.Name), 60), what))
			}
			if again := s.Again(); again != "" {
				out = append(out, fmt.Sprintf("    step %d, %s: success only %s", s.Number, Cut(Clean(s.Name), 60), again))
			}
		}
		if e := j.Explanation; e != nil {
			out = append(out, Explain(e)...)
		}
	}
	for i, n := range b.Notes {
		if i == 20 {
			out = append(out, fmt.Sprintf("  and %d more annotations", len(b.Notes)-i))
			break
		}
		where := ""
		if n.File != "" {
			where = Clean(n.File)
			if n.Line > 0 {
				where += fmt.Sprintf(":%d", n.Line)
			}
			where += ": "
		}
		out = append(out, fmt.Sprintf("  %s: %s%s", cmp.Or(n.Level, "notice"), where, Cut(Clean(n.Message), 200)))
	}
	word := "unfinished"
	if b.Conclusion != "" {
		_, word = Mark(ci.Completed, b.Conclusion, b.Infrastructure)
	}
	total := ""
	if !b.Started.IsZero() && !b.Finished.IsZero() {
		total = " in " + Short(b.Finished.Sub(b.Started))
	}
	if n := b.Retried(); n > 0 && b.Conclusion == ci.Success && !b.Infrastructure {
		word = fmt.Sprintf("flaky: success, %s", again(n))
	}
	end := fmt.Sprintf("run %s: %s%s", b.Run, word, total)
	if b.Of > 0 {
		end += ", " + b.Share()
	}
	if b.Reason != "" {
		end += " (" + Clean(b.Reason) + ")"
	}
	return append(out, end)
}

// Share says how many of a run's jobs ran, where not all of them can run here.
func (b *Board) Share() string { return fmt.Sprintf("%d of %d jobs ran", b.Ran, b.Of) }

// Known says in a clause what is known of a failure: whether it was seen before,
// and what ended it then.
func Known(e *ci.Explanation) string {
	var b strings.Builder
	switch e.Seen {
	case 0:
		b.WriteString("not seen before")
	case 1:
		b.WriteString("seen before, once")
	default:
		fmt.Fprintf(&b, "seen before, %d times", e.Seen)
	}
	if e.Seen > 0 && e.FixedBy != "" {
		b.WriteString(", last ended by " + commit(Clean(e.FixedBy)))
		if e.Fix != "" {
			b.WriteString(" (" + Cut(Clean(e.Fix), 72) + ")")
		}
	}
	if e.Flaky {
		b.WriteString("; looks flaky")
	}
	return b.String()
}

// commit shortens what is a commit's full name.
func commit(s string) string {
	if len(s) >= 40 && strings.Trim(s, "0123456789abcdef") == "" {
		return s[:10]
	}
	return s
}

// WhatItSays are the lines of the output that say what went wrong; of records from
// before there were any, what the strongest of them looks like.
func WhatItSays(e *ci.Explanation) (out []string) {
	for _, l := range e.Lines {
		out = append(out, Clean(l))
	}
	if len(out) == 0 && e.Text != "" {
		out = []string{Clean(e.Text)}
	}
	return out
}

// Explain says an explanation in lines.
func Explain(e *ci.Explanation) []string {
	out := []string{"    this failure: " + Known(e)}
	for _, l := range WhatItSays(e) {
		out = append(out, strings.TrimRight("      "+Cut(l, 120), " "))
	}
	for _, t := range FailedTests(e) {
		out = append(out, "      "+Cut(t, 160))
	}
	for i, l := range Suspects(e) {
		if i > 0 {
			l = "  " + l
		}
		out = append(out, "      "+Cut(l, 150))
	}
	for _, s := range []string{e.Lesson, e.Advice} {
		if s != "" {
			out = append(out, "      "+Clean(s))
		}
	}
	return out
}

// Suspects says in lines what may be to blame, the first of which is a heading; none
// where nothing is known.
func Suspects(e *ci.Explanation) (out []string) {
	for _, s := range e.Suspects {
		if len(out) == 0 {
			out = []string{"changed since it passed"}
			if e.Since != "" {
				out[0] += " at " + commit(Clean(e.Since))
			}
			out[0] += ":"
		}
		line := fmt.Sprintf("%s %s %s", Percent(s.P), Clean(s.Kind), Clean(s.Name))
		if s.Why != "" {
			line += " (" + Clean(s.Why) + ")"
		}
		out = append(out, line)
	}
	return out
}

// FailedTests says in a line each which tests failed, and what is known of them.
func FailedTests(e *ci.Explanation) (out []string) {
	for _, t := range e.Tests {
		line := "test " + Clean(t.Name)
		if t.Flaky {
			line += " looks flaky"
		}
		if t.Note != "" {
			line += ": " + Clean(t.Note)
		}
		out = append(out, line)
	}
	return out
}
