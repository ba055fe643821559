package dispatch

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/forge"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/store"
)

// approveButton is the identifier of the button of a check that waits.
const approveButton = "approve"

// checks is the space of facts with the check runs that have not been ended on
// GitHub, by job id (of an invalid workflow: by run id).
const checks = "check"

// openCheck is such a fact.
type openCheck struct {
	Run  string    `json:"run"`
	Head string    `json:"head"`
	ID   int64     `json:"id,omitempty"`   // GitHub's; 0: perhaps not made yet
	Sent ci.Status `json:"sent,omitempty"` // what GitHub knows
}

// reporter tells GitHub how one run goes: a check run per job, queued, in
// progress, completed. It is a [ci.Sink] of the run's records; what is to be told
// follows from the board that they add up to, so that a slow GitHub is told less
// often and never something else. One goroutine sends.
type reporter struct {
	d    *Dispatcher
	lane *lane
	run  ci.Run
	head string
	repo forge.Repo
	plan *plan.Run // nil once a run is over
	// whole: the run has no jobs and one check, which says why.
	whole bool
	waits bool // for approval

	mu     sync.Mutex
	board  board.Board
	checks []*check
	closed bool
	wake   chan struct{}
}

// check is one check run.
type check struct {
	key    string // of the job; "" is the run's
	id     string // ours: job or run id
	number int64  // GitHub's, 0 before it is made
	unsure bool   // it may have been made without our knowing
	sent   ci.Status
	tries  int
	after  time.Time // not before
	bare   bool      // without annotations and texts: GitHub refused them
	over   bool
}

func (d *Dispatcher) reporter(ln *lane, run ci.Run, head string, repo forge.Repo) *reporter {
	return &reporter{d: d, lane: ln, run: run, head: head, repo: repo, wake: make(chan struct{}, 1)}
}

// note writes down that a check has to be ended.
func (r *reporter) note(id string, number int64) error {
	return r.write(&check{id: id, number: number})
}

func (r *reporter) write(c *check) error {
	text, err := json.Marshal(openCheck{Run: r.run.ID, Head: r.head, ID: c.number, Sent: c.sent})
	if err != nil {
		return err
	}
	return r.d.cfg.Store.Under(r.lane.lease).SetFact(context.Background(), checks, c.id, string(text))
}

// expect notes the checks of all jobs that are planned so far.
func (r *reporter) expect(ctx context.Context, p *plan.Run) error {
	jobs, err := r.d.cfg.Store.Jobs(ctx, r.run.ID)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, j := range jobs {
		if planned := p.Job(j.Key); r.find(j.Key) != nil || planned == nil || planned.IsCall() || planned.Deferred || j.Status == ci.Completed {
			continue
		}
		if err := r.add(j.Key, j.ID); err != nil {
			return err
		}
	}
	return nil
}

func (r *reporter) add(key, id string) error {
	c := &check{key: key, id: id}
	r.checks = append(r.checks, c)
	return r.write(c)
}

func (r *reporter) find(key string) *check {
	for _, c := range r.checks {
		if c.key == key {
			return c
		}
	}
	return nil
}

// recall brings back what an earlier process knew about a run.
func (r *reporter) recall(ctx context.Context, jobs []store.StoredJob) error {
	facts, err := r.d.cfg.Store.Facts(ctx, checks)
	if err != nil {
		return err
	}
	if err := r.d.cfg.Store.EachRunRecord(ctx, r.run.ID, r.board.Apply); err != nil {
		return err
	}
	back := func(key, id string, ended bool) error {
		text, ok := facts[id]
		switch {
		case !ok && (ended || r.plan == nil):
			return nil
		case ok:
			var f openCheck
			if err := json.Unmarshal([]byte(text), &f); err != nil {
				return fmt.Errorf("fact %s %s: %w", checks, id, err)
			}
			r.head = cmp.Or(f.Head, r.head)
			r.checks = append(r.checks, &check{key: key, id: id, number: f.ID, sent: f.Sent, unsure: f.ID == 0})
			return nil
		}
		if j := r.plan.Job(key); j == nil || j.IsCall() || j.Deferred {
			return nil
		}
		r.checks = append(r.checks, &check{key: key, id: id, unsure: true})
		return nil
	}
	for _, j := range jobs {
		if err := back(j.Key, j.ID, j.Status == ci.Completed); err != nil {
			return err
		}
	}
	if _, ok := facts[r.run.ID]; ok {
		r.whole = true
	}
	return nil
}

// maxHopeless is how many runs are remembered whose checks cannot be told of.
const maxHopeless = 10_000

// settle ends the checks of runs that have ended without GitHub hearing of it, and
// shows those of runs that wait for approval: of all runs that nobody drives, or of
// only one.
func (d *Dispatcher) settle(ctx context.Context, only string) error {
	facts, err := d.cfg.Store.Facts(ctx, checks)
	if err != nil {
		return err
	}
	looked := map[string]bool{}
	for id, text := range facts {
		var f openCheck
		bad := json.Unmarshal([]byte(text), &f)
		if bad == nil && (looked[f.Run] || only != "" && f.Run != only || d.driven(f.Run)) {
			continue
		}
		looked[f.Run] = true
		run, err := d.cfg.Store.Run(ctx, f.Run)
		if bad != nil || errors.Is(err, store.ErrNotFound) {
			// Noted before its run is on record: a server may be at it.
			if age, err := d.cfg.Store.FactAge(ctx, checks, id); err != nil || bad == nil && age < 2*d.cfg.Hold {
				continue
			}
			if err := d.cfg.Store.DropFact(ctx, checks, id); err != nil {
				return err
			}
			delete(looked, f.Run)
			continue
		}
		if err != nil {
			return err
		}
		if run.Status != ci.Completed && f.Sent != "" || d.givenUp(run.ID) {
			continue // it waits, and GitHub knows; or it is under way, and will be taken up
		}
		ln, mine, err := d.repos.take(ctx, run.Repository)
		if err != nil {
			return err
		}
		if mine {
			err = d.tell(ctx, ln, run, f.Head)
			ln.done()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// givenUp reports whether the checks of a run were given up by this process.
func (d *Dispatcher) givenUp(run string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hopeless[run]
}

// tell brings GitHub to what is on record about a run that nobody drives.
func (d *Dispatcher) tell(ctx context.Context, ln *lane, run ci.Run, head string) error {
	if d.driven(run.ID) {
		return nil
	}
	jobs, err := d.cfg.Store.Jobs(ctx, run.ID)
	if err != nil {
		return err
	}
	if run, err = d.cfg.Store.Run(ctx, run.ID); err != nil {
		return err
	}
	if a, asked, err := approvalOf(ctx, d.cfg.Store, run.ID); err != nil || run.Status != ci.Completed && (!asked || a.By != "") {
		return err
	}
	installation := int64(0)
	if e, err := d.cfg.Store.Event(ctx, run.EventID); err == nil {
		if p, _, err := decode(e); err == nil {
			installation = p.Installation.ID
		}
	}
	repo, err := d.repo(ctx, run.Repository, installation)
	if err != nil {
		if isTemporary(err) {
			return err
		}
		d.log.Error("the checks of a run are not ended", "run", run.ID, "err", err)
		d.mu.Lock()
		if len(d.hopeless) >= maxHopeless {
			clear(d.hopeless)
		}
		d.hopeless[run.ID] = true
		d.mu.Unlock()
		return nil
	}
	r := d.reporter(ln, run, head, repo)
	r.waits = run.Status != ci.Completed
	if err := r.recall(ctx, jobs); err != nil {
		return err
	}
	if r.whole {
		var own openCheck
		text, err := d.cfg.Store.Fact(ctx, checks, run.ID)
		if err == nil && json.Unmarshal([]byte(text), &own) == nil {
			r.checks = append(r.checks, &check{id: run.ID, number: own.ID, sent: own.Sent, unsure: own.ID == 0})
		}
	}
	r.close()
	d.show(r)
	return nil
}

// Emit takes a record of the run.
func (r *reporter) Emit(rec ci.Record) {
	if rec.Type == ci.LogLine || rec.Type == ci.Group || rec.Type == ci.ConnectionRec {
		return
	}
	if rec.Type == ci.MachineRec && rec.Machine != nil && (rec.Machine.Action == "created" || rec.Machine.Action == "restored") {
		r.d.counts.machine(time.Duration(rec.Machine.TookMS) * time.Millisecond)
	}
	r.mu.Lock()
	r.board.Apply(rec)
	if r.whole && len(r.checks) == 0 {
		r.checks = append(r.checks, &check{id: r.run.ID})
	}
	if (rec.Type == ci.JobQueued || rec.Type == ci.JobFinished) && r.plan != nil && r.find(rec.JobKey) == nil {
		r.newcomer(rec)
	}
	r.mu.Unlock()
	switch rec.Type {
	case ci.JobQueued, ci.JobStarted, ci.JobFinished, ci.RunFinished:
		r.nudge()
	}
}

// newcomer takes in a job that came to be while the run was under way: the cell
// of a matrix. Its records come from the goroutine that owns the plan.
func (r *reporter) newcomer(rec ci.Record) {
	if j := r.plan.Job(rec.JobKey); j != nil && (j.IsCall() || j.Deferred && rec.Type == ci.JobQueued) {
		return
	}
	jobs, err := r.d.cfg.Store.Jobs(context.Background(), r.run.ID)
	if err != nil {
		r.d.log.Error("a check is not made", "run", r.run.ID, "job", rec.JobKey, "err", err)
		return
	}
	for _, j := range jobs {
		if j.Key == rec.JobKey && (rec.Type == ci.JobQueued || j.Status == ci.Completed) {
			if err := r.add(j.Key, j.ID); err != nil {
				r.d.log.Error("a check is not noted", "run", r.run.ID, "job", rec.JobKey, "err", err)
			}
		}
	}
}

func (r *reporter) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// close says that no more records will come.
func (r *reporter) close() {
	r.mu.Lock()
	r.closed = true
	r.plan = nil
	r.mu.Unlock()
	r.nudge()
}

// work sends until everything is sent and no more will come, or ctx ends.
func (r *reporter) work(ctx context.Context) {
	for {
		c, what, wait, done := r.next()
		if c == nil {
			if done {
				return
			}
			if wait == 0 {
				wait = time.Hour // woken before
			}
			t := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-r.wake:
			case <-t.C:
			}
			t.Stop()
			if ctx.Err() != nil {
				return
			}
			continue
		}
		if !r.lane.mine() {
			return // who took the run over says it
		}
		err := r.send(ctx, c, what)
		if ctx.Err() != nil {
			return
		}
		r.sent(c, what, err)
	}
}

// rank orders statuses; a check never goes back to a lower one.
func rank(s ci.Status) int {
	return slices.Index([]ci.Status{"", ci.Queued, ci.InProgress, ci.Completed}, s)
}

// next picks the first check that GitHub knows less of than we do.
func (r *reporter) next() (c *check, what forge.Check, wait time.Duration, done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done = r.closed
	now := time.Now()
	for _, c := range r.checks {
		if c.over {
			continue
		}
		what := r.look(c)
		if rank(what.Status) <= rank(c.sent) {
			continue
		}
		done = false
		if left := c.after.Sub(now); left > 0 {
			if wait == 0 || left < wait {
				wait = left
			}
			continue
		}
		return c, what, 0, false
	}
	return nil, forge.Check{}, wait, done
}

// send makes or changes a check run.
func (r *reporter) send(ctx context.Context, c *check, what forge.Check) error {
	if c.number == 0 && c.unsure {
		id, err := r.repo.FindCheck(ctx, what.SHA, what.Name, c.id)
		if err != nil {
			return err
		}
		c.number, c.unsure = id, false
	}
	if c.number != 0 {
		return r.repo.UpdateCheck(ctx, c.number, what)
	}
	c.unsure = true // until an answer says what became of it
	id, err := r.repo.CreateCheck(ctx, what)
	if id != 0 {
		c.number = id
	}
	if err == nil || status(err) >= 400 && status(err) < 500 {
		c.unsure = false
	}
	return err
}

// sent takes note of how a sending ended.
func (r *reporter) sent(c *check, what forge.Check, err error) {
	log := r.d.log.With("run", r.run.ID, "check", what.Name, "status", what.Status)
	switch code := status(err); {
	case err == nil:
		c.sent, c.tries = what.Status, 0
	case (code == 422 || code == 400) && !c.bare:
		// An annotation that GitHub does not like must not cost the conclusion.
		log.Warn("GitHub refuses the check; again without its texts", "err", err)
		c.bare = true
		return
	case code == 404 || code == 410 || code == 422 || code == 400:
		log.Error("GitHub refuses the check", "err", err)
		if what.Status != ci.Completed {
			c.sent = what.Status // its end may fare better
			return
		}
		c.over = true
	default:
		c.tries++
		wait := r.d.cfg.Retry << min(c.tries-1, 12)
		if wait <= 0 || wait > 5*time.Minute {
			wait = 5 * time.Minute
		}
		var e *forge.Error
		if errors.As(err, &e) {
			wait = max(wait, e.RetryAfter)
		}
		c.after = time.Now().Add(wait + rand.N(wait/4+1))
		log.Warn("check not sent; trying again", "wait", wait, "err", err)
		return
	}
	keep := context.Background()
	if c.over = c.over || c.sent == ci.Completed; c.over {
		err = r.d.cfg.Store.Under(r.lane.lease).DropFact(keep, checks, c.id)
	} else {
		err = r.write(c)
	}
	if err != nil {
		log.Error("check not noted", "err", err)
	}
}

// look says what a check should show now. The caller holds mu.
func (r *reporter) look(c *check) forge.Check {
	out := forge.Check{SHA: r.head, ExternalID: c.id, Status: ci.Queued, Title: "Waiting for a machine"}
	if r.d.cfg.URL != "" {
		out.DetailsURL = r.d.cfg.URL + "/runs/" + r.run.ID
	}
	if c.key == "" {
		return r.lookWhole(out, c)
	}
	j := r.board.JobOf(ci.Record{JobKey: c.key})
	out.Name = board.Clean(r.run.Workflow) + " / " + board.Clean(j.Name)
	if out.DetailsURL != "" {
		out.DetailsURL += "?job=" + url.QueryEscape(c.key)
	}
	out.Status, out.Started = cmp.Or(j.Status, ci.Queued), j.Started
	_, word := j.Mark()
	if r.waits && out.Status == ci.Queued {
		out.Title = "Waiting for approval"
		out.Summary = text(waitText) + ". Whoever may write to the repository presses the button, or whoever runs this server says\n\n    hearth approve " +
			r.run.ID +
			"\n\nThat approves of this commit only."
		out.Actions = []forge.Action{{Label: "Approve and run", Description: "Run the workflow at this commit", Identifier: approveButton}}
		return out
	}
	switch j.Status {
	case ci.InProgress:
		out.Title = "Running"
	case ci.Completed:
		out.Conclusion, out.Completed = j.Conclusion, time.Now()
		if j.Conclusion == ci.NotRun {
			out.Conclusion = ci.Neutral // the nearest that GitHub has: neither green nor red
		}
		if j.File != "" && !c.bare {
			level := "warning"
			if j.Conclusion == ci.Failure {
				level = "error"
			}
			out.Annotations = append(out.Annotations,
				annotation(ci.Record{File: j.File, Line: j.Line, Column: j.Column, Level: level, Message: j.Reason, Hint: j.Hint}))
		}
		out.Title = title(j, word)
		for _, n := range r.board.Notes {
			if cmp.Or(n.JobKey, n.Job) == c.key && n.File != "" && !c.bare {
				out.Annotations = append(out.Annotations, annotation(n))
			}
		}
	}
	if !c.bare {
		out.Summary = summary(j, r.board.Notes, out.DetailsURL)
		if j.Status == ci.Completed {
			out.Summary += r.left(c.key)
		}
		out.Text = written(j)
	}
	return out
}

// shownArtifacts is how many a check lists: it has room for little.
const shownArtifacts = 30

// left lists the artifacts of a job that has ended.
func (r *reporter) left(key string) string {
	if r.d.cfg.Results == nil {
		return ""
	}
	all, err := r.d.cfg.Results.Artifacts(r.run.Repository, r.run.ID)
	if err != nil {
		r.d.log.Error("artifacts", "run", r.run.ID, "err", err)
		return ""
	}
	all = slices.DeleteFunc(all, func(a results.Artifact) bool { return a.Job != key })
	var b strings.Builder
	for i, a := range all {
		if i == 0 {
			b.WriteString("\n\nArtifacts:\n")
		}
		if i == shownArtifacts {
			fmt.Fprintf(&b, "- and %d more\n", len(all)-i)
			break
		}
		name := "`" + code(a.Name) + "`"
		if url := r.d.cfg.URL; url != "" {
			name = fmt.Sprintf("[%s](%s/runs/%s/artifacts/%d)", name, url, r.run.ID, a.ID)
		}
		fmt.Fprintf(&b, "- %s, %s\n", name, board.Amount(a.Size))
	}
	return b.String()
}

// lookWhole is the check of a workflow that could not be run at all.
func (r *reporter) lookWhole(out forge.Check, c *check) forge.Check {
	out.Name = board.Clean(r.run.Workflow)
	out.Status = ci.Queued
	if r.board.Conclusion == "" {
		return out
	}
	out.Status, out.Conclusion, out.Started, out.Completed = ci.Completed, r.board.Conclusion, r.run.Created, time.Now()
	errs := 0
	var b strings.Builder
	for _, n := range r.board.Notes {
		if n.Type != ci.DiagnosticRec {
			continue
		}
		if n.Level == "error" {
			errs++
		}
		if errs <= 100 {
			fmt.Fprintf(&b, "- `%s`: %s", code(place(n)), text(n.Message))
			if n.Hint != "" {
				fmt.Fprintf(&b, " (%s)", text(n.Hint))
			}
			b.WriteByte('\n')
		}
		if n.File != "" && !c.bare {
			out.Annotations = append(out.Annotations, annotation(n))
		}
	}
	out.Title = "The workflow is invalid: 1 error"
	if errs != 1 {
		out.Title = fmt.Sprintf("The workflow is invalid: %d errors", errs)
	}
	if !c.bare {
		out.Summary = "Nothing was run.\n\n" + b.String()
	}
	return out
}

func place(n ci.Record) string {
	s := n.File
	if n.Line > 0 {
		s += fmt.Sprintf(":%d", n.Line)
		if n.Column > 0 {
			s += fmt.Sprintf(":%d", n.Column)
		}
	}
	return s
}

func annotation(n ci.Record) forge.Annotation {
	message := board.Clean(n.Message)
	if n.Hint != "" {
		message += "\n" + board.Clean(n.Hint)
	}
	return forge.Annotation{Path: board.Clean(n.File), StartLine: n.Line, EndLine: n.EndLine, StartCol: n.Column, EndCol: n.EndCol,
		Level: n.Level, Title: board.Clean(n.Title), Message: message}
}

// title is a check's end in a line.
func title(j *board.Job, word string) string {
	s := strings.ToUpper(word[:1]) + word[1:]
	if j.Duration > 0 {
		s += " in " + board.Short(j.Duration)
	}
	for _, st := range j.Steps {
		if st.Conclusion == ci.Failure || st.Conclusion == ci.TimedOut || st.Infrastructure {
			why := fmt.Sprintf("exit code %d", st.ExitCode)
			if st.Reason != "" {
				why = board.Clean(st.Reason)
			}
			return board.Cut(fmt.Sprintf("%s: step %d, %s: %s", s, st.Number, board.Clean(st.Name), why), 200)
		}
	}
	if j.Reason != "" {
		s += ": " + board.Clean(j.Reason)
	}
	return board.Cut(s, 200)
}

// summary is what a check tells in Markdown: what was expected before, what
// happened, and what is known about a failure.
func summary(j *board.Job, notes []ci.Record, link string) string {
	var b strings.Builder
	if e := board.Expectation(j.Prediction); e != "" {
		fmt.Fprintf(&b, "**Expected before it started:** %s\n\n", text(e))
	} else if j.Prediction != nil {
		b.WriteString("**Expected before it started:** nothing is known of this job yet\n\n")
	}
	if j.Status == ci.Completed {
		if e := j.Explanation; e != nil && !j.Conclusion.Green() {
			fmt.Fprintf(&b, "**What is known of this failure:** %s\n", text(board.Known(e)))
			if lines := board.WhatItSays(e); len(lines) > 0 {
				fmt.Fprintf(&b, "\n```\n%s\n```\n", fence(strings.Join(lines, "\n")))
			}
			for i, l := range board.Suspects(e) {
				lead := "- "
				if i == 0 {
					lead = "\n"
				}
				fmt.Fprintf(&b, "%s%s\n", lead, text(l))
			}
			for _, s := range append(board.FailedTests(e), e.Lesson, e.Advice) {
				if s != "" {
					fmt.Fprintf(&b, "\n%s\n", text(s))
				}
			}
			b.WriteByte('\n')
		}
		if j.Reason != "" {
			fmt.Fprintf(&b, "%s\n\n", text(j.Reason))
		}
		if j.Hint != "" {
			fmt.Fprintf(&b, "%s\n\n", text(j.Hint))
		}
		if j.EnvironmentURL != "" {
			fmt.Fprintf(&b, "Deployed to %s\n\n", text(j.EnvironmentURL))
		}
	}
	if len(j.Steps) > 0 && j.Status == ci.Completed {
		b.WriteString("| # | Step | Result | Took |\n|--:|------|--------|-----:|\n")
		for i, s := range j.Steps {
			if i == 200 {
				fmt.Fprintf(&b, "\nand %d more steps\n", len(j.Steps)-i)
				break
			}
			sign, word := s.Mark()
			if s.Allowed() {
				word += " (continue-on-error)"
			}
			if s.Conclusion == ci.Failure && s.ExitCode != 0 {
				word += fmt.Sprintf(" (exit code %d)", s.ExitCode)
			}
			if s.Attempt > 1 {
				word += fmt.Sprintf(", attempt %d", s.Attempt)
			}
			took := ""
			if s.Conclusion != ci.Skipped {
				took = board.Short(s.Duration)
			}
			fmt.Fprintf(&b, "| %d | %s | %s %s | %s |\n", s.Number, text(board.Cut(s.Name, 120)), sign, word, took)
		}
		b.WriteByte('\n')
	}
	said := 0
	for _, n := range notes {
		if n.Type == ci.AnnotationRec && cmp.Or(n.JobKey, n.Job) == j.Key && n.File == "" && said < 20 {
			said++
			fmt.Fprintf(&b, "- %s: %s\n", cmp.Or(n.Level, "notice"), text(board.Cut(n.Message, 300)))
		}
	}
	if j.Machine != "" {
		fmt.Fprintf(&b, "\nMachine: %s\n", text(j.Machine))
	}
	if link != "" {
		fmt.Fprintf(&b, "\n[Log, steps and predictions](%s)\n", link)
	}
	return b.String()
}

// written is what a job's steps wrote to GITHUB_STEP_SUMMARY. It is their Markdown, as
// GitHub shows it on a run's page; people are not called by it.
func written(j *board.Job) string {
	var b strings.Builder
	for _, d := range j.Summaries {
		for line := range strings.SplitSeq(strings.TrimRight(d.Text, "\n"), "\n") {
			b.WriteString(strings.ReplaceAll(board.Clean(line), "@", "@\u200b") + "\n")
		}
		if d.Left > 0 {
			fmt.Fprintf(&b, "\n… %d more bytes\n", d.Left)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// text makes words out of a machine plain words of Markdown: no markup, no
// mentions of people.
func text(s string) string {
	s = board.Clean(s)
	var b strings.Builder
	for _, r := range s {
		switch {
		case strings.ContainsRune("\\`*_{}[]<>#|!~$&", r):
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '@':
			b.WriteString("@\u200b")
		case r == '\n' || r == '\r':
			b.WriteByte(' ')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// code makes a text safe between single backquotes, fence between fences.
func code(s string) string { return strings.ReplaceAll(board.Clean(s), "`", "'") }

func fence(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = board.Clean(lines[i])
	}
	return strings.ReplaceAll(strings.Join(slices.Clip(lines), "\n"), "```", "'''")
}
