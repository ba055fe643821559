package plan

import (
	"fmt"
	"slices"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// ActionKind says what the driver of a run has to do.
type ActionKind uint8

const (
	// Start: the job may start. Take its concurrency group, if any, then run it
	// and report with Started and Finished. For a job that calls a workflow there
	// is nothing to run: take its group and that of the call, then call Started;
	// the jobs inside follow, and a Conclude when they are done.
	Start ActionKind = iota + 1
	// Skip: the job will not run. It has ended already; do not report it.
	Skip
	// Cancel: stop the job, which was started. Finished is still to be called. A
	// calling job is cancelled only while its groups are waited for: give up and
	// call Finished; if they came through just now, Started does as well.
	Cancel
	// Expand: a placeholder's matrix is known. Jobs take the place of Job in the
	// run; an own action follows for each.
	Expand
	// Conclude: the job has ended without running: a calling job whose jobs are
	// done, one cancelled before it started, one that could not be planned. Do not
	// report it.
	Conclude
)

func (k ActionKind) String() string {
	switch k {
	case Start:
		return "start"
	case Skip:
		return "skip"
	case Cancel:
		return "cancel"
	case Expand:
		return "expand"
	case Conclude:
		return "conclude"
	}
	return fmt.Sprintf("ActionKind(%d)", uint8(k))
}

// Action is one thing to do or to record.
type Action struct {
	Kind ActionKind
	Job  *Job
	Jobs []*Job // Expand
	// Needs is the needs context of a job to start.
	Needs expr.Value
	// Conclusion is Skipped for Skip, any for Conclude.
	Conclusion ci.Conclusion
	// Outputs are those of a calling job that concludes.
	Outputs map[string]string
	// Reason says why, for people: of everything but Start and Expand.
	Reason string
}

// phase is how far a job has come.
type phase uint8

const (
	waiting phase = iota // nothing decided, or waiting for max-parallel
	started              // Start was returned
	running              // Started was called
	done
)

// entry is the state of one job.
type entry struct {
	job        *Job
	node       *node
	phase      phase
	conclusion ci.Conclusion // as reported
	// result counts for other jobs: a failure that continue-on-error forgives is
	// a success, and a job that ran out of time was cancelled, as on GitHub.
	result ci.Conclusion
	// final counts for the run, which has failed when a job ran out of time.
	final     ci.Conclusion
	cancelled bool // a Cancel was returned
}

// node is the state of a job as written, in one instance: of all its cells.
type node struct {
	id      string
	scope   *scope
	needs   []*node
	entries []*entry
	decided bool
	needsCx expr.Value
	outputs *expr.Map
	// left counts entries that are not done; busy those started and not done.
	left, busy int
	// failedCell is the cell that made fail-fast cancel the others.
	failedCell string
	resolved   bool
}

// scope is the state of one instance of a file.
type scope struct {
	call   int
	nodes  []*node
	byID   map[string]*node
	caller *entry // nil for the run itself
	open   bool
	closed bool
}

// State follows one run. It belongs to one goroutine, and so does the run with it:
// its lists grow when a matrix expands. A job whose Start was returned does not
// change any more: others may read it then, and call Inputs, Contexts and Secrets
// of the run for it.
type State struct {
	run       *Run
	plan      *planner
	scopes    []*scope // by index of the call
	entries   map[string]*entry
	cancelled string   // why the run was cancelled
	recheck   bool     // running jobs are to be asked whether they go on
	pending   []Action // for the next Next
}

// NewState makes the state of a run of which nothing has happened.
func NewState(run *Run) *State {
	s := &State{run: run, plan: newPlanner(run), entries: make(map[string]*entry, len(run.Jobs))}
	s.addScopes()
	for _, j := range run.Jobs {
		s.add(j)
	}
	s.wire()
	s.scopes[0].open = true
	return s
}

func (s *State) addScopes() {
	for len(s.scopes) < len(s.run.Calls) {
		s.scopes = append(s.scopes, &scope{call: len(s.scopes), byID: map[string]*node{}})
	}
}

// add makes the entry of a job, and its node where it is the first.
func (s *State) add(j *Job) {
	sc := s.scopes[j.Call]
	n := sc.byID[fold(j.ID)]
	if n == nil {
		n = &node{id: j.ID, scope: sc, outputs: expr.NewMap()}
		sc.byID[fold(j.ID)] = n
		sc.nodes = append(sc.nodes, n)
	}
	e := &entry{job: j, node: n}
	n.entries = append(n.entries, e)
	n.left++
	s.entries[j.Key] = e
	if j.Opens > 0 {
		s.scopes[j.Opens].caller = e
	}
}

// wire sets the needs of nodes that have none yet.
func (s *State) wire() {
	for _, sc := range s.scopes {
		for _, n := range sc.nodes {
			if n.resolved {
				continue
			}
			n.resolved = true
			for _, id := range n.entries[0].job.Needs {
				if need := sc.byID[fold(id)]; need != nil {
					n.needs = append(n.needs, need)
				}
			}
		}
	}
}

// Next returns what is to be done now, in the order in which to do it. Until
// something is reported, another Next returns nothing.
func (s *State) Next() []Action {
	out := s.pending
	s.pending = nil
	if s.recheck {
		s.recheck = false
		s.stopRunning(&out)
	}
	for s.pass(&out) {
	}
	return out
}

// pass goes over all open scopes once and reports whether anything changed.
func (s *State) pass(out *[]Action) bool {
	changed := false
	// By index: expanding appends scopes.
	for i := 0; i < len(s.scopes); i++ {
		sc := s.scopes[i]
		if !sc.open || sc.closed {
			continue
		}
		left := 0
		for _, n := range sc.nodes {
			if n.left > 0 {
				if !n.decided && n.ready() {
					s.decide(n, out)
					changed = true
				}
				if n.decided && s.advance(n, out) {
					changed = true
				}
			}
			left += n.left
		}
		if left == 0 {
			sc.closed = true
			if sc.caller != nil {
				s.conclude(sc, out)
				changed = true
			}
		}
	}
	return changed
}

func (n *node) ready() bool {
	for _, need := range n.needs {
		if need.left > 0 {
			return false
		}
	}
	return true
}

// ancestors are all nodes that n needs, however far away, nearest first.
func (n *node) ancestors() []*node {
	var all []*node
	seen := map[*node]bool{}
	queue := slices.Clone(n.needs)
	for len(queue) > 0 {
		a := queue[0]
		queue = queue[1:]
		if seen[a] {
			continue
		}
		seen[a] = true
		all = append(all, a)
		queue = append(queue, a.needs...)
	}
	return all
}

// result is the worst of the cells' results.
func (n *node) result() ci.Conclusion {
	all := make([]ci.Conclusion, len(n.entries))
	for i, e := range n.entries {
		all[i] = e.result
	}
	return ci.Conclude(all)
}

// final is what the cells count for the run.
func (n *node) final() ci.Conclusion {
	all := make([]ci.Conclusion, len(n.entries))
	for i, e := range n.entries {
		all[i] = e.final
	}
	return ci.Conclude(all)
}

// needs builds the needs context of a node.
func (n *node) needsContext() expr.Value {
	m := expr.NewMap()
	for _, need := range n.needs {
		m.Set(need.id, need.summary())
	}
	return expr.Object(m)
}

// summary is what needs.<id> and jobs.<id> hold.
func (n *node) summary() expr.Value {
	m := expr.NewMap()
	m.Set("result", expr.String(n.result().Result()))
	m.Set("outputs", expr.Object(n.outputs.Clone()))
	return expr.Object(m)
}

// env is what a node's condition is evaluated with.
func (s *State) env(n *node) *expr.Env {
	cx := s.run.contexts(n.entries[0].job.call)
	cx.Set("needs", n.needsCx)
	ancestors := n.ancestors()
	// about picks the jobs that success('a', 'b') names; all when it names none.
	about := func(args []expr.Value) ([]*node, error) {
		if len(args) == 0 {
			return ancestors, nil
		}
		var picked []*node
		for _, a := range args {
			i := slices.IndexFunc(ancestors, func(n *node) bool { return expr.EqualFold(n.id, a.ToString()) })
			if i < 0 {
				return nil, fmt.Errorf("'%s' is not a job that job '%s' needs", a.ToString(), n.id)
			}
			picked = append(picked, ancestors[i])
		}
		return picked, nil
	}
	return &expr.Env{Contexts: cx, Functions: map[string]expr.Func{
		"always":    func([]expr.Value) (expr.Value, error) { return expr.Bool(true), nil },
		"cancelled": func([]expr.Value) (expr.Value, error) { return expr.Bool(s.cancelled != ""), nil },
		"success": func(args []expr.Value) (expr.Value, error) {
			jobs, err := about(args)
			ok := s.cancelled == "" && !slices.ContainsFunc(jobs, func(n *node) bool { return n.result() != ci.Success })
			return expr.Bool(ok), err
		},
		"failure": func(args []expr.Value) (expr.Value, error) {
			jobs, err := about(args)
			return expr.Bool(slices.ContainsFunc(jobs, func(n *node) bool { return n.result() == ci.Failure })), err
		},
	}}
}

// condition evaluates the `if` of a node.
func (s *State) condition(n *node) (bool, error) {
	def := n.entries[0].job.Definition
	env := s.env(n)
	if def.If == nil {
		v, err := env.Functions["success"](nil)
		return v.Truthy(), err
	}
	v, err := def.If.Eval(env)
	if err != nil {
		return false, errorAt(def.IfPos, "Error when evaluating 'if' for job '%s'. %v", def.ID, err)
	}
	return v.Truthy(), nil
}

// whySkipped says why a condition is false.
func (s *State) whySkipped(n *node) string {
	def := n.entries[0].job.Definition
	// What else the condition says is no reason while success() is false.
	if s.cancelled != "" {
		return "the run was cancelled"
	}
	if !asksStatus(def) {
		for _, a := range n.ancestors() {
			switch a.result() {
			case ci.Success:
			case ci.Skipped:
				return fmt.Sprintf("it needs %s, which was skipped", a.id)
			case ci.Cancelled:
				return fmt.Sprintf("it needs %s, which was cancelled", a.id)
			case ci.NotRun:
				return fmt.Sprintf("it needs %s, which cannot run here", a.id)
			default:
				return fmt.Sprintf("it needs %s, which failed", a.id)
			}
		}
	}
	return "its condition is false: " + def.IfSource
}

// asksStatus reports whether the author's condition itself speaks of how other
// jobs ended; where it does not, GitHub puts success() before it.
func asksStatus(def *workflow.Job) bool {
	e, err := expr.Parse(def.IfSource, nil)
	if def.IfSource == "" || err != nil {
		return false
	}
	return slices.ContainsFunc(e.Calls(), func(f string) bool {
		return f == "success" || f == "failure" || f == "always" || f == "cancelled"
	})
}

// decide evaluates whether a node runs, and its matrix if that had to wait.
func (s *State) decide(n *node, out *[]Action) {
	n.decided = true
	n.needsCx = n.needsContext()
	run, err := s.condition(n)
	switch {
	case err != nil:
		s.endAll(n, Conclude, ci.Failure, err.Error(), out)
		return
	case !run:
		s.endAll(n, Skip, ci.Skipped, s.whySkipped(n), out)
		return
	}
	first := n.entries[0].job
	if first.Deferred {
		if err := s.expand(n, first, out); err != nil {
			s.endAll(n, Conclude, ci.Failure, err.Error(), out)
			return
		}
		first = n.entries[0].job
	}
	if first.MatrixTotal == 0 {
		reason := "every combination of its matrix is excluded"
		if len(s.run.Only) > 0 {
			reason = "no combination of its matrix is selected"
		}
		s.endAll(n, Skip, ci.Skipped, reason, out)
	}
}

// expand replaces a placeholder by its cells.
func (s *State) expand(n *node, placeholder *Job, out *[]Action) error {
	calls := len(s.run.Calls)
	jobs, err := s.plan.job(placeholder.Call, placeholder.Definition, &n.needsCx, placeholder)
	if err != nil {
		// What was begun is taken back: the placeholder stays and fails.
		s.run.Calls = s.run.Calls[:calls]
		s.plan.keys = newPlanner(s.run).keys
		return err
	}
	i := slices.Index(s.run.Jobs, placeholder)
	s.run.Jobs = slices.Replace(s.run.Jobs, i, i+1, jobs...)
	delete(s.entries, placeholder.Key)
	n.entries, n.left = nil, 0
	s.addScopes()
	for _, j := range jobs {
		s.add(j)
	}
	s.wire()
	*out = append(*out, Action{Kind: Expand, Job: placeholder, Jobs: jobs})
	return nil
}

// advance starts what max-parallel lets start, or ends what fail-fast forbids.
func (s *State) advance(n *node, out *[]Action) bool {
	changed := false
	if n.failedCell != "" {
		reason := fmt.Sprintf("fail-fast: %s failed", n.failedCell)
		for _, e := range n.entries {
			switch {
			case e.phase == waiting:
				s.end(e, Conclude, ci.Cancelled, reason, out)
				changed = true
			case e.phase != done && !e.cancelled:
				s.stop(e, reason, out)
				changed = true
			}
		}
		return changed
	}
	for _, e := range n.entries {
		if e.phase != waiting {
			continue
		}
		if s.cancelled != "" {
			// Its turn did not come before the run was cancelled: as for those
			// running, only its condition can save it.
			if ok, err := s.condition(n); err != nil || !ok {
				s.end(e, Conclude, ci.Cancelled, "the run was cancelled", out)
				changed = true
				continue
			}
		}
		if n.busy >= e.job.MaxParallel {
			break
		}
		changed = true
		if err := s.settle(e); err != nil {
			s.end(e, Conclude, ci.Failure, err.Error(), out)
			if n.failedCell != "" {
				return true // the next pass cancels the others
			}
			continue
		}
		e.phase = started
		n.busy++
		*out = append(*out, Action{Kind: Start, Job: e.job, Needs: n.needsCx})
	}
	return changed
}

// settle evaluates what had to wait until a job starts.
func (s *State) settle(e *entry) error {
	j := e.job
	needs := e.node.needsCx
	if err := s.plan.evaluate(j, &needs, true); err != nil {
		return err
	}
	if j.Opens == 0 {
		return nil
	}
	c := s.run.Calls[j.Opens]
	c.Needs = needs
	if err := s.plan.inputs(j, c, &needs); err != nil {
		return err
	}
	g, err := group(s.run.Files[c.File].Workflow.Concurrency, &expr.Env{Contexts: s.run.contexts(c)})
	if err != nil {
		pos, msg := place(err, j.Definition.UsesPos)
		return errorAt(pos, "Error when evaluating 'concurrency' for job '%s'. %s", j.ID, msg)
	}
	c.Concurrency = g
	return nil
}

// end ends a job that does not run, and everything inside it.
func (s *State) end(e *entry, kind ActionKind, c ci.Conclusion, reason string, out *[]Action) {
	if e.phase == done {
		return
	}
	if e.job.Opens > 0 {
		inside := reason
		ic := ci.Skipped
		ik := Skip
		if c == ci.Cancelled {
			ic, ik = ci.Cancelled, Conclude
		} else {
			inside = fmt.Sprintf("%s did not run", e.job.Key)
		}
		sc := s.scopes[e.job.Opens]
		for _, n := range sc.nodes {
			n.decided = true
			for _, in := range n.entries {
				s.end(in, ik, ic, inside, out)
			}
		}
		sc.closed = true
	}
	s.finish(e, c)
	*out = append(*out, Action{Kind: kind, Job: e.job, Conclusion: c, Reason: reason})
}

func (s *State) endAll(n *node, kind ActionKind, c ci.Conclusion, reason string, out *[]Action) {
	for _, e := range n.entries {
		s.end(e, kind, c, reason, out)
	}
}

// stop asks a started job, or all that runs inside it, to stop.
func (s *State) stop(e *entry, reason string, out *[]Action) {
	e.cancelled = true
	if e.job.Opens == 0 {
		*out = append(*out, Action{Kind: Cancel, Job: e.job, Reason: reason})
		return
	}
	sc := s.scopes[e.job.Opens]
	for _, n := range sc.nodes {
		n.decided = true
		for _, in := range n.entries {
			switch {
			case in.phase == waiting:
				s.end(in, Conclude, ci.Cancelled, reason, out)
			case in.phase != done && !in.cancelled:
				s.stop(in, reason, out)
			}
		}
	}
	if !sc.open { // the driver still waits for the groups
		*out = append(*out, Action{Kind: Cancel, Job: e.job, Reason: reason})
	}
}

// stopRunning asks every running job whether it goes on though the run was
// cancelled, as GitHub does: its condition is evaluated again.
func (s *State) stopRunning(out *[]Action) {
	for _, sc := range slices.Clone(s.scopes) {
		if sc.closed {
			continue
		}
		for _, n := range sc.nodes {
			if !n.decided || n.left == 0 {
				continue
			}
			goesOn, err := s.condition(n)
			if err == nil && goesOn {
				continue
			}
			for _, e := range n.entries {
				if e.phase == waiting || e.phase == done || e.cancelled {
					continue
				}
				// The jobs inside a calling job are asked themselves.
				if e.job.Opens > 0 && s.scopes[e.job.Opens].open {
					continue
				}
				s.stop(e, "the run was cancelled", out)
			}
		}
	}
}

// finish writes down how a job ended.
func (s *State) finish(e *entry, c ci.Conclusion) {
	n := e.node
	if e.phase == started || e.phase == running {
		n.busy--
	}
	e.phase = done
	e.conclusion, e.result, e.final = c, c, c
	switch c {
	case ci.TimedOut:
		e.result = ci.Cancelled
	case ci.Neutral:
		e.result = ci.Success
	}
	n.left--
	if c == ci.Failure || c == ci.TimedOut {
		switch {
		case e.job.ContinueOnError:
			e.result, e.final = ci.Success, ci.Success
		case e.job.FailFast && n.failedCell == "" && n.left > 0:
			n.failedCell = e.job.Key
		}
	}
}

// conclude ends a calling job whose jobs are all done.
func (s *State) conclude(sc *scope, out *[]Action) {
	e := sc.caller
	if e.phase == done {
		return
	}
	var all, final []ci.Conclusion
	jobs := expr.NewMap()
	for _, n := range sc.nodes {
		all = append(all, n.result())
		final = append(final, n.final())
		jobs.Set(n.id, n.summary())
	}
	c := ci.Conclude(all)
	a := Action{Kind: Conclude, Job: e.job, Conclusion: c}
	if c == ci.NotRun {
		a.Reason = "not all of its jobs can run here"
	}
	cx := s.run.contexts(s.run.Calls[sc.call])
	cx.Set("jobs", expr.Object(jobs))
	w := s.run.Files[s.run.Calls[sc.call].File].Workflow
	if t := w.Trigger("workflow_call"); t != nil && len(t.Outputs) > 0 {
		a.Outputs = make(map[string]string, len(t.Outputs))
		sum := 0
		for _, o := range t.Outputs {
			v, err := o.Value.EvalString(&expr.Env{Contexts: cx})
			if err != nil {
				pos, msg := place(err, o.Pos)
				a.Conclusion = ci.Failure
				a.Reason = fmt.Sprintf("the output %q of %s: %v", o.Name, w.File, errorAt(pos, "%s", msg))
				break
			}
			if sum += len(v); len(v) > ci.MaxOutput || sum > ci.MaxJobOutputs {
				a.Conclusion = ci.Failure
				a.Reason = fmt.Sprintf("the output %q of %s has %d bytes, and all so far %d: at most %d and %d are possible", o.Name, w.File, len(v), sum, ci.MaxOutput,
					ci.MaxJobOutputs)
				break
			}
			a.Outputs[o.Name] = v
		}
	}
	s.merge(e.node, a.Outputs)
	s.finish(e, a.Conclusion)
	if e.final == ci.Cancelled {
		e.final = ci.Conclude(final)
	}
	*out = append(*out, a)
}

// merge adds a job's outputs to its node's: the last one not empty stays.
func (s *State) merge(n *node, outputs map[string]string) {
	// In order, so that a context built from it is always the same.
	for _, k := range sortedKeys(outputs) {
		if v := outputs[k]; v != "" {
			n.outputs.Set(k, expr.String(v))
		} else if _, ok := n.outputs.Get(k); !ok {
			n.outputs.Set(k, expr.String(""))
		}
	}
}

// Started reports that a job runs. Of a calling job, it lets the jobs inside start.
func (s *State) Started(key string) error {
	e := s.entries[key]
	switch {
	case e == nil:
		return fmt.Errorf("plan: there is no job %q", key)
	case e.phase != started:
		return fmt.Errorf("plan: job %q was not to be started", key)
	}
	e.phase = running
	if e.job.Opens > 0 {
		s.scopes[e.job.Opens].open = true
	}
	return nil
}

// Finished reports how a job ended that was to be started, whether it ever ran or
// not. One that cannot run here ends as [ci.NotRun], and what needs it is skipped. outputs are its evaluated outputs. Of a calling job it means that it was
// given up before Started; the jobs inside conclude with the next Next.
func (s *State) Finished(key string, c ci.Conclusion, outputs map[string]string) error {
	e := s.entries[key]
	switch {
	case e == nil:
		return fmt.Errorf("plan: there is no job %q", key)
	case e.phase == waiting:
		return fmt.Errorf("plan: job %q was not to be started", key)
	case e.phase == done:
		return fmt.Errorf("plan: job %q has ended already, with %s", key, e.conclusion)
	case !c.Valid():
		return fmt.Errorf("plan: job %q cannot end with %q", key, c)
	}
	if e.job.Opens > 0 {
		if e.phase == running {
			return fmt.Errorf("plan: job %q calls a workflow and ends with its jobs", key)
		}
		sc := s.scopes[e.job.Opens]
		for _, n := range sc.nodes {
			n.decided = true
			for _, in := range n.entries {
				s.end(in, Conclude, ci.Cancelled, e.job.ID+" did not run", &s.pending)
			}
		}
		sc.closed = true
	}
	s.merge(e.node, outputs)
	s.finish(e, c)
	return nil
}

// Cancel cancels the run. Jobs whose condition still holds, such as always(), go
// on or still start.
func (s *State) Cancel(reason string) {
	if s.cancelled != "" {
		return
	}
	if reason == "" {
		reason = "cancelled"
	}
	s.cancelled = reason
	s.recheck = true
}

// Done reports whether every job has ended and Next has told so.
func (s *State) Done() bool {
	if len(s.pending) > 0 {
		return false
	}
	for _, n := range s.scopes[0].nodes {
		if n.left > 0 {
			return false
		}
	}
	return true
}

// Conclusion is how the run ended, or "" while it has not.
func (s *State) Conclusion() ci.Conclusion {
	if !s.Done() {
		return ""
	}
	var all []ci.Conclusion
	for _, n := range s.scopes[0].nodes {
		all = append(all, n.final())
	}
	c := ci.Conclude(all)
	switch {
	case s.cancelled != "" && c != ci.Success:
		return ci.Cancelled
	case c == ci.NotRun:
		return ci.Neutral
	}
	return c
}

// Ran counts the jobs that were to run, and those of them that did: jobs that call
// others run nothing, and what was skipped did not run.
func (s *State) Ran() (ran, of int) {
	for _, j := range s.run.Jobs {
		if j.IsCall() {
			continue
		}
		of++
		if c := s.JobConclusion(j.Key); c != "" && c != ci.Skipped && c != ci.NotRun {
			ran++
		}
	}
	return ran, of
}

// JobConclusion is how a job ended, or "".
func (s *State) JobConclusion(key string) ci.Conclusion {
	if e := s.entries[key]; e != nil {
		return e.conclusion
	}
	return ""
}

// Run is the run that s follows.
func (s *State) Run() *Run { return s.run }
