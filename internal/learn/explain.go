package learn

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/store"
)

// Failure is a step that failed, with what it printed.
type Failure struct {
	Run        string // id
	Repository string
	Workflow   string // path of the file
	JobKey     string
	Step       int
	Name       string
	Command    string // as written
	Branch     string
	Commit     string
	Attempt    int // from 1
	ExitCode   int
	// Machine says that it is a command's outside of workflows, and Commit the machine
	// in which it ran.
	Machine bool
	// At is when it failed; zero: now.
	At time.Time
	// NoRetry: the user marked the step as not to be repeated.
	NoRetry bool
	// Image and Host are where it ran; "" is not known.
	Image, Host string
	// Commits lists the commits since another one, the newest first, at most MaxCommits;
	// nil knows none. It is asked at most once.
	Commits func(ctx context.Context, since string) ([]Commit, error)
	// Lines are the step's output, masked of secrets; the end of it is enough
	// (4,000 lines). Nil: they are read from the store.
	Lines []string
}

func (f *Failure) execution() Execution {
	run := ci.Run{Repository: f.Repository, File: f.Workflow, Ref: f.Branch, SHA: f.Commit, Attempt: f.Attempt}
	return execution(&run, unitStep, f.JobKey, stepIdentity(f.Name, f.Command), time.Time{})
}

// Explain says what is known of a failure: its signature, whether it was seen
// before, what ended it then, whether it looks flaky, and what to do. It stores
// the failure; asking again about the same one counts nothing twice.
func (l *Learner) Explain(ctx context.Context, f Failure) (ci.Explanation, error) {
	if l.ModeOf(f.Repository) == Off {
		return ci.Explanation{}, nil
	}
	if f.Lines == nil {
		lines, err := l.lines(ctx, logRef{Run: f.Run, Job: f.JobKey, Step: f.Step})
		if err != nil {
			return ci.Explanation{}, fmt.Errorf("learn: explain: %w", err)
		}
		f.Lines = lines
	}
	x := f.execution()
	l.mu.Lock()
	refs := slices.Clone(l.greens[greenKey(&x)])
	l.mu.Unlock()
	greens := Greens{}
	for _, r := range refs {
		lines, err := l.lines(ctx, r)
		if err != nil {
			// The log of an old run may be gone; the diff is only a help.
			l.log.Debug("a green log cannot be read", "run", r.Run, "err", err)
			continue
		}
		greens.Add(lines)
	}
	kind := graph.StepKind(f.Command)
	sig := l.x.Extract(f.Lines, greens, kind)
	now := f.At
	if now.IsZero() {
		now = l.opt.Now()
	}
	where := place(&x)
	like := FlakyFailure{sig.Class, where, FlakeTokens(f.Lines)}

	salt := kind + string(sig.Class)
	if len(sig.Block) == 0 {
		// Nothing was printed that tells: what is left is what ran and how it ended.
		sig.Text = fmt.Sprintf("(exit code %d, and the output says nothing about the failure)", f.ExitCode)
		salt = fmt.Sprintf("%s exit %d of %s", salt, f.ExitCode, cmp.Or(x.Step, where))
	}
	recent, err := l.store.Signatures(ctx, f.Repository, 200)
	if err != nil {
		return ci.Explanation{}, fmt.Errorf("learn: explain: %w", err)
	}
	var flaky float64
	l.mu.Lock()
	err = l.learn(ctx, func(tx *store.Learning) (int64, error) {
		// The tree may know a looser template for this line.
		sig.ID, sig.Text = l.templates.Match(f.Repository, sig.Text, salt)
		if err := l.renamed(tx, f.Repository, where, &sig); err != nil {
			return 0, err
		}
		flaky = l.flakes.Predict(like)
		l.flakes.Add(f.Repository, sig.ID, like)
		ms := now.UnixMilli()
		node := graph.ID(graph.Signature, sig.ID)
		g := l.graphs.of(f.Repository)
		g.Touch(node, sig.Text, true, ms)
		g.Link(graph.ID(graph.Step, where), graph.FailedWith, node, true, ms)
		for _, other := range recent {
			if other.ID != sig.ID && len(sig.Block) > 0 && ParseSketch(other.Sketch).Like(sig.Sketch) >= sameAs {
				g.Link(node, graph.SameAs, graph.ID(graph.Signature, other.ID), true, ms)
			}
		}
		if !f.Machine {
			g.Link(graph.ID(graph.Commit, f.Commit), graph.FailedWith, node, true, ms)
		}
		return tx.Cursor, nil
	})
	l.mu.Unlock()
	if err != nil {
		return ci.Explanation{}, fmt.Errorf("learn: explain: %w", err)
	}
	before, fresh, err := l.store.AddHit(ctx, store.Signature{ID: sig.ID, Text: sig.Text, Class: string(sig.Class), Kind: kind, Sketch: sig.Sketch.String()},
		store.Hit{Run: f.Run, JobKey: f.JobKey, Step: f.Step, Attempt: f.Attempt, Identity: where, Repository: f.Repository, Branch: f.Branch, SHA: f.Commit,
			At: now, Text: clip(sig.Line, 500)})
	if err != nil {
		return ci.Explanation{}, fmt.Errorf("learn: explain: %w", err)
	}
	known, err := l.store.Signature(ctx, f.Repository, sig.ID)
	if err != nil {
		return ci.Explanation{}, fmt.Errorf("learn: explain: %w", err)
	}
	hits, err := l.store.Hits(ctx, f.Repository, sig.ID, 200)
	if err != nil {
		return ci.Explanation{}, fmt.Errorf("learn: explain: %w", err)
	}
	p := flakeProbability(known, flaky, l.standing(&x, where, hits))
	e := ci.Explanation{Signature: sig.ID, Text: sig.Text, Seen: before.Seen, FixedBy: known.FixedBy, Fix: known.Fix, Flaky: p >= .5, Lines: shown(f.Lines, &sig)}
	if !fresh { // asked again: this one is among them
		e.Seen = max(before.Seen-1, 0)
	}
	if e.Lesson, err = l.lesson(ctx, f, where, known, hits, now); err != nil {
		return e, err
	}
	e.Suspects, e.Since = l.suspects(ctx, &f, sig.Class, p, e.Lines)
	e.Advice = l.decide(&f, known, Advise).Reason
	return e, nil
}

// shown are the lines of a failure's block, without what terminals and time stamps
// add to them. The line that says what it is is among them: of a long block the
// beginning is left out.
func shown(lines []string, sig *Signature) (out []string) {
	from := sig.From
	if sig.Head >= from+ci.MaxExplained {
		from = sig.Head - ci.MaxExplained + 3
	}
	for _, l := range lines[from:sig.To] {
		if len(out) == ci.MaxExplained {
			break
		}
		out = append(out, clip(Clean(clipBytes(l, 4*maxWidth)), ci.MaxExplainedLine))
	}
	return out
}

// sameAs is how much of their words the blocks of two signatures share when they
// are taken for one trouble.
const sameAs = .6

// flakeProbability is how likely a failure of this signature is to pass when
// nothing changes: what its class and its nearest neighbours let expect, then
// what later attempts at the same commit came to. What has failed so on several
// other commits, standing, without a pass in between, would have been lucky each
// time if it were.
func flakeProbability(sig store.Signature, expected float64, standing int) float64 {
	const strength = 2.25 // of the expectation, in attempts: that of Beta(.25, 2)
	p := (strength*expected + float64(sig.RetryOK)) / (strength + float64(sig.RetryOK+sig.RetryFail))
	return sigmoid(logit(p) - math.Ln2*float64(standing))
}

// standing is on how many other commits the step has failed with one signature since
// it passed last. Where hits are of is its place; they are the newest first.
func (l *Learner) standing(x *Execution, where string, hits []store.Hit) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	keys := keysOf(x)
	c := l.model.at(&keys, levelBranch)
	if c == nil || c.streak <= 0 {
		return 0
	}
	commits := map[string]bool{x.Commit: true}
	for _, h := range hits {
		if h.Identity == where && h.Branch == x.Branch {
			commits[h.SHA] = true
		}
	}
	return min(len(commits)-1, int(c.streak))
}

// lines reads the end of a step's log.
func (l *Learner) lines(ctx context.Context, r logRef) ([]string, error) {
	ring := make([]string, 0, 256)
	at := 0
	for line, err := range l.store.Log(ctx, store.LogQuery{Run: r.Run, Job: r.Job, Step: r.Step}) {
		if err != nil {
			return nil, err
		}
		if line.Type != ci.LogLine {
			continue
		}
		if len(ring) < maxLines {
			ring = append(ring, line.Text)
			continue
		}
		ring[at] = line.Text
		at = (at + 1) % maxLines
	}
	return slices.Concat(ring[at:], ring[:at]), nil
}

// A lesson is drawn when failures of one kind in one place are no accident.
const (
	lessonFactor  = 20.0 // Bayes factor
	lessonCommits = 3
	lessonLife    = 60 * 24 * time.Hour
	accident      = .02 // how often a step fails in one particular way for no lasting reason
)

// bayesFactor weighs "it fails like this at a rate of its own" against "these
// are accidents", after k failures of one kind in n executions.
func bayesFactor(k, n float64) float64 {
	if n < k {
		n = k
	}
	lb := func(a, b float64) float64 {
		x, _ := math.Lgamma(a)
		y, _ := math.Lgamma(b)
		z, _ := math.Lgamma(a + b)
		return x + y - z
	}
	own := lb(k+1, n-k+1)
	chance := k*math.Log(accident) + (n-k)*math.Log(1-accident)
	return math.Exp(min(own-chance, 50))
}

// Evidence is what a lesson rests on.
type Evidence struct {
	Failures    int      `json:"failures"`
	Executions  int64    `json:"executions"`
	Commits     int      `json:"commits"`
	Branches    int      `json:"branches"`
	BayesFactor float64  `json:"bayes_factor"`
	RetryOK     int      `json:"retry_ok"`
	RetryFail   int      `json:"retry_fail"`
	FixedBy     string   `json:"fixed_by,omitempty"`
	Last        []string `json:"last"` // run ids
}

// lesson draws or renews a lesson for a failure and returns its text; "" if the
// evidence does not bear one.
func (l *Learner) lesson(ctx context.Context, f Failure, where string, sig store.Signature, hits []store.Hit, now time.Time) (string, error) {
	commits, branches := map[string]bool{}, map[string]bool{}
	ev := Evidence{RetryOK: sig.RetryOK, RetryFail: sig.RetryFail, FixedBy: sig.FixedBy}
	for _, h := range hits {
		if h.Identity != where {
			continue
		}
		ev.Failures++
		commits[h.SHA], branches[h.Branch] = true, true
		if len(ev.Last) < 5 {
			ev.Last = append(ev.Last, h.Run)
		}
	}
	ev.Commits, ev.Branches = len(commits), len(branches)
	x := f.execution()
	l.mu.Lock()
	if keys := keysOf(&x); l.model.at(&keys, levelStep) != nil {
		ev.Executions = l.model.at(&keys, levelStep).seen
	}
	l.mu.Unlock()
	ev.Executions = max(ev.Executions, int64(ev.Failures))
	ev.BayesFactor = bayesFactor(float64(ev.Failures), float64(ev.Executions))
	if ev.BayesFactor <= lessonFactor || ev.Commits < lessonCommits && ev.Branches < 2 {
		return "", nil
	}
	label := f.Name
	if label == "" {
		label = stepIdentity("", f.Command)
	}
	text := fmt.Sprintf("%q in job %s has failed like this %d times on %d commits (%q)", clip(label, 80), f.JobKey, ev.Failures, ev.Commits, clip(sig.Text, 120))
	same, ended := "at the same commit", "commit "
	if f.Machine {
		text = fmt.Sprintf("%q has failed like this %d times in %d machines (%q)", clip(label, 80), ev.Failures, ev.Commits, clip(sig.Text, 120))
		same, ended = "with nothing between", ""
	}
	switch {
	case sig.RetryOK > 0:
		text += fmt.Sprintf("; another attempt %s passed %d of %d times: it is flaky", same, sig.RetryOK, sig.RetryOK+sig.RetryFail)
	case sig.FixedBy != "":
		text += "; it last ended with " + ended + short(sig.FixedBy)
		if sig.Fix != "" {
			text += " (" + clip(sig.Fix, 80) + ")"
		}
	default:
		text += "; nothing has ended it yet"
	}
	if err := l.store.PutLesson(ctx, store.Lesson{Repository: f.Repository, Identity: where, Signature: sig.ID, Text: text, Evidence: string(marshal(ev)),
		Created: now, Last: now, Expires: now.Add(lessonLife)}); err != nil {
		return "", fmt.Errorf("learn: %w", err)
	}
	if err := l.store.LessonShown(ctx, f.Repository, where, sig.ID); err != nil {
		return "", fmt.Errorf("learn: %w", err)
	}
	return text, nil
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return clipBytes(s, n) + "…"
}
