package engine

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/command"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// execution is one step while it runs: of the job, or of a composite action, or the
// post step of an action.
type execution struct {
	r      *run
	sc     *scope
	def    *workflow.Step
	number int
	id     string
	record string // the id in records: inside an action, that of the action's step
	name   string
	env    vars           // its own env block
	use    *use           // the action it is, or nil
	quiet  bool           // what there is to say will be said by another execution of the step
	given  vars           // INPUT_ variables of the action
	parent *execution     // the composite action it is in, or nil
	place  string         // of its step in the job: through which actions, and which of their steps
	do     func() outcome // what to do, if it is not what def says
	edited string         // what it runs instead of its script
	at     *Place         // of its last process; of the step of the job

	ctx   context.Context
	stop  context.CancelCauseFunc
	mu    sync.Mutex
	inner bool // a composite action: the steps inside are cancelled, not it
	// survives re-evaluates the condition, when the job is cancelled.
	survives func() bool

	dir      string  // of its command files, in the guest
	maps     mapping // of its own container: that of a Docker action
	commands *command.Processor
	matcher  *command.Scanner
	outputs  vars
	newEnv   vars // for the steps after it
	newPaths []string
	summary  string // masked
	state    map[string]string
	failed   bool   // by a command
	said     string // the last error that we said of it
	mute     bool   // what it prints could hold what cannot be masked
	streams  [2]*stream
	grouped  bool // the output is within a group
}

// outcome is how one execution ended.
type outcome struct {
	c      ci.Conclusion
	exit   int
	exited bool // exit means something
	reason string
}

// Periods as on GitHub: a step that is to end gets SIGINT, after stopUrge SIGTERM, and
// is killed after stopGrace with all that it started. When it has ended by itself,
// and something that it started holds its output, that is read for lingerTime.
const (
	stopUrge   = 7500 * time.Millisecond
	stopGrace  = 10 * time.Second
	lingerTime = 5 * time.Second
)

// runSteps runs the steps of the job.
func (r *run) runSteps(sc *scope, steps []*workflow.Step) {
	r.mu.Lock()
	r.numbers = len(workflow.NumberedSteps(steps))
	if r.job.From != nil {
		r.numbers = max(r.numbers, r.job.From.Numbers)
	}
	r.mu.Unlock()
	if r.broken == "" && r.job.From == nil {
		job, services, err := containersOf(r.job.Plan, r.evalEnv(sc, vars{}))
		switch {
		case err != nil:
			r.annotateJob("error", err.Error())
			r.fail()
			r.cancelSteps(err.Error())
		case job != nil || len(services) > 0:
			r.startContainers(sc, job, services)
		}
	}
	if r.broken == "" && r.job.From == nil {
		r.runPres(sc, steps)
	}
	n := 1
	for _, s := range steps {
		size := len(workflow.NumberedSteps([]*workflow.Step{s}))
		switch from := r.job.From; {
		case from != nil && n+size <= from.Step:
			for i, in := range workflow.NumberedSteps([]*workflow.Step{s}) {
				r.passed(sc, in, n+i)
			}
		case r.job.OneStep && from != nil && n > from.Step:
			return
		default:
			r.dispatch(sc, s, n)
		}
		n += size
	}
}

func (r *run) dispatch(sc *scope, s *workflow.Step, number int) {
	switch {
	case len(s.Parallel) > 0:
		r.parallel(sc, s, number)
	case len(s.Wait) > 0 || s.WaitAll || s.Cancel != nil:
		r.control(sc, s, number)
	case s.Background:
		r.startBackground(sc, s, number)
	default:
		res, x := r.step(r.hard, sc, s, number)
		r.settle(sc, s, x, res)
	}
}

// settle makes a step's result known to those after it.
func (r *run) settle(sc *scope, s *workflow.Step, x *execution, res StepResult) {
	sc.steps.set(s.ID, x.outputs, res.Outcome, res.Conclusion)
	if res.Conclusion == ci.Failure || res.Conclusion == ci.TimedOut {
		sc.fail()
	}
}

func (r *run) newExec(sc *scope, s *workflow.Step, number int, id string) *execution {
	x := &execution{r: r, sc: sc, def: s, number: number, id: id, record: id, state: map[string]string{}, ctx: r.hard, place: fmt.Sprintf("%p", s)}
	x.recall()
	return x
}

// inside is the execution of the nth step of the composite action that x is.
func (r *run) inside(x *execution, sc *scope, s *workflow.Step, n int) *execution {
	in := r.newExec(sc, s, x.number, s.ID)
	in.record, in.parent, in.place = x.record, x, fmt.Sprintf("%s/%d", x.place, n)
	in.recall()
	return in
}

// recall takes what a pre program has saved.
func (x *execution) recall() {
	x.r.mu.Lock()
	defer x.r.mu.Unlock()
	maps.Copy(x.state, x.r.preState[x.place])
}

// root is the step of the job that x is in.
func (x *execution) root() *execution {
	for x.parent != nil {
		x = x.parent
	}
	return x
}

// step runs one step of the job, from its condition to its finished record.
func (r *run) step(ctx context.Context, sc *scope, s *workflow.Step, number int) (StepResult, *execution) {
	return r.stepAs(ctx, sc, s, number, func() {})
}

// stepAs is step for a step in the background: decided is called once its
// condition is known.
func (r *run) stepAs(ctx context.Context, sc *scope, s *workflow.Step, number int, decided func()) (StepResult, *execution) {
	defer decided()
	x := r.newExec(sc, s, number, s.ID)
	began := time.Now()
	res := StepResult{Number: number, ID: s.ID, Attempts: 1}
	finish := func() (StepResult, *execution) {
		res.Name, res.Reason, res.Duration = r.clean(x.name), r.clean(res.Reason), time.Since(began)
		rec := ci.Record{
			Type: ci.StepFinished, Name: x.name, Conclusion: res.Conclusion, Outcome: res.Outcome, Reason: res.Reason,
			Infrastructure: res.Infrastructure, DurationMS: new(res.Duration.Milliseconds()), ExitCode: new(res.ExitCode),
		}
		if res.Attempts > 1 {
			rec.Attempt = res.Attempts
		}
		rec.Assisted = res.Assisted
		if len(x.outputs.keys) > 0 {
			rec.Outputs = x.outputs.m
		}
		r.emit(x, rec)
		r.mu.Lock()
		r.steps = append(r.steps, res)
		r.mu.Unlock()
		return res, x
	}

	x.name = stepName(s, r.evalEnvOf(sc, vars{}, x))
	skip := func(why string) (StepResult, *execution) {
		res.Outcome, res.Conclusion, res.Reason = ci.Skipped, ci.Skipped, why
		return finish()
	}
	if r.lost() != nil {
		return skip("the job could not go on")
	}
	if r.broken != "" {
		return skip(r.broken)
	}
	runs, whyNot, err := x.decide()
	if err == nil && !runs {
		return skip(whyNot)
	}
	if decided(); s.Background || sc.env.forks {
		select {
		case r.slots <- struct{}{}:
			defer func() { <-r.slots }()
		case <-ctx.Done():
			return skip("it was cancelled before it started")
		}
	}

	r.emit(x, ci.Record{Type: ci.StepStarted, Name: x.name, Command: stepCommand(s)})
	if r.job.OnStep != nil {
		r.job.OnStep(number)
	}
	info := StepInfo{Number: number, ID: s.ID, Name: r.clean(x.name), Command: r.clean(stepCommand(s)), Attempt: 1,
		State: func() (*State, error) { return r.state(sc, number) }}
	if from := r.job.From; from != nil {
		res.Assisted = true
		if number == from.Step {
			x.edited = r.job.Script
		}
	}
	if err != nil {
		x.begin()
		x.error(err.Error())
		res.Outcome, res.Reason = ci.Failure, r.clean(err.Error())
	} else {
		for {
			out := x.hooked(ctx, info)
			res.Outcome, res.ExitCode, res.Reason = out.c, out.exit, r.clean(out.reason)
			res.Infrastructure = r.lost() != nil && out.c != ci.Success
			res.Attempts = info.Attempt
			res.Conclusion, res.Duration, res.Name = res.Outcome, time.Since(began), info.Name
			if r.job.Hooks == nil {
				break
			}
			info.Place = x.at
			again, err := r.job.Hooks.AfterStep(ctx, info, res)
			if err != nil {
				out = x.lose(err)
				res.Outcome, res.Reason, res.Infrastructure = out.c, r.clean(out.reason), true
			}
			if again == nil || res.Outcome != ci.Failure || res.Infrastructure || info.Attempt >= MaxAttempts && !again.Asked || r.why() != nil {
				break
			}
			info.Attempt++
			x.edited = cmp.Or(again.Run, x.edited)
			res.Assisted = res.Assisted || again.Asked
			r.system(x, fmt.Sprintf("Running the step once more (attempt %d): %s", info.Attempt, again.Reason))
			if !wait(x.ctx, r, again.Delay) {
				break
			}
		}
	}
	x.commit()
	res.Conclusion = res.Outcome
	if res.Outcome == ci.Failure || res.Outcome == ci.TimedOut {
		if x.continues() && !res.Infrastructure {
			res.Conclusion = ci.Success
		}
	}
	return finish()
}

// hooked runs the step once it has been announced.
func (x *execution) hooked(ctx context.Context, info StepInfo) outcome {
	if h := x.r.job.Hooks; h != nil {
		if err := h.BeforeStep(ctx, info); err != nil {
			return x.lose(err)
		}
	}
	return x.run(ctx)
}

// wait waits, unless the job is cancelled.
func wait(ctx context.Context, r *run, d time.Duration) bool {
	t := time.NewTimer(min(max(d, 0), time.Hour))
	defer t.Stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-t.C:
			return r.why() == nil
		case <-r.hard.Done():
			return false
		case <-tick.C:
			if r.why() != nil {
				return false
			}
		}
	}
}

// decide evaluates the step's env, and then its condition, as GitHub does: a
// condition may look at the env.
func (x *execution) decide() (runs bool, whyNot string, err error) {
	r, s := x.r, x.def
	env, err := evalVars(s.Env, r.evalEnvOf(x.sc, vars{}, x))
	if err != nil {
		return false, "", fmt.Errorf("The step's env could not be evaluated. %w", err)
	}
	x.env = env
	cond := func() (bool, error) {
		if s.If == nil {
			return x.sc.status() == ci.Success, nil
		}
		v, err := s.If.Eval(r.evalEnvOf(x.sc, x.env, x))
		return v.Truthy(), err
	}
	x.survives = func() bool { ok, err := cond(); return ok && err == nil }
	runs, err = cond()
	if err != nil {
		return false, "", fmt.Errorf("The step's condition could not be evaluated. %w", err)
	}
	if runs {
		return true, "", nil
	}
	switch {
	case r.why() != nil:
		whyNot = "the job was cancelled"
	case s.IfSource != "":
		whyNot = "its condition is false: " + s.IfSource
	default:
		whyNot = "a step before it failed"
	}
	return false, whyNot, nil
}

// continues evaluates continue-on-error.
func (x *execution) continues() bool {
	if x.def.ContinueOnError == nil {
		return false
	}
	v, err := x.def.ContinueOnError.Eval(x.r.evalEnvOf(x.sc, x.env, x))
	if err != nil {
		x.error(err.Error())
		return false
	}
	return v.Truthy()
}

// begin makes what one attempt needs anew.
func (x *execution) begin() {
	unsecure := func(name string) bool {
		env, _ := x.sc.env.snapshot()
		env.add(x.sc.outer)
		env.add(x.env)
		return strings.EqualFold(env.get(name), "true")
	}
	x.commands = command.NewProcessor(command.Options{
		Unsecure:           unsecure("ACTIONS_ALLOW_UNSECURE_COMMANDS"),
		UnsecureStopTokens: unsecure("ACTIONS_ALLOW_UNSECURE_STOPCOMMAND_TOKENS"),
		Echo:               x.r.job.Runner.Debug,
	})
	x.listen()
}

// listen is ready for output.
func (x *execution) listen() {
	x.matcher = x.r.matchers.NewScanner()
	x.matcher.Off = func(owner, why string) {
		x.say("warning", fmt.Sprintf("The problem matcher '%s' is switched off for the rest of the job: %s.", owner, why))
	}
	x.outputs, x.failed, x.said, x.mute = vars{}, false, "", false
	x.newEnv, x.newPaths, x.summary = vars{}, nil, ""
	x.streams = [2]*stream{newStream(x, "stdout"), newStream(x, "stderr")}
}

// error prints and annotates what is wrong with the step.
func (x *execution) error(message string) { x.say("error", message) }

func (x *execution) say(level, message string) {
	if x.quiet {
		return
	}
	x.r.problem(x, level, message)
	if level == "error" {
		x.said = message
	}
	if x.commands == nil {
		x.begin()
	}
	for _, e := range x.commands.Count(command.Annotation{Level: level, Message: message}) {
		x.r.annotate(x, e.Annotation)
	}
}

// run executes the step once, within its timeout.
func (x *execution) run(ctx context.Context) outcome {
	r, s := x.r, x.def
	var stop context.CancelCauseFunc
	merged, release := mergeContext(r.hard, ctx)
	defer release()
	x.ctx, stop = context.WithCancelCause(merged)
	x.stop = stop
	defer stop(nil)
	x.begin()
	if s.TimeoutMinutes != nil {
		v, err := s.TimeoutMinutes.Eval(r.evalEnvOf(x.sc, x.env, x))
		if err != nil {
			x.error(err.Error())
			return outcome{c: ci.Failure}
		}
		if m := v.ToNumber(); m > 0 {
			var cancel context.CancelFunc
			x.ctx, cancel = context.WithTimeoutCause(x.ctx, duration(m), errTimeout)
			defer cancel()
		}
	}
	r.mu.Lock()
	r.active[x] = true
	late := r.cancelled
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.active, x)
		r.mu.Unlock()
	}()
	if late != nil && !x.survives() {
		stop(late)
	}
	out := x.execute()
	if out.c == ci.Success && x.failed {
		// Its exit code says nothing of it.
		out.c, out.reason = ci.Failure, cmp.Or(out.reason, x.said)
	}
	switch cause := context.Cause(x.ctx); {
	case out.c == ci.Success || cause == nil || r.lost() != nil:
	case errors.Is(cause, errUnmasked):
		out.c, out.reason = ci.Failure, cause.Error()
	case errors.Is(cause, errTimeout) && s.TimeoutMinutes == nil:
		// The timeout is that of the action around this step, which says so.
		out.c, out.reason = ci.TimedOut, "The operation was canceled."
		x.error(out.reason)
	case errors.Is(cause, errTimeout):
		out.c, out.reason = ci.TimedOut, fmt.Sprintf("The action '%s' has timed out after %s.", x.name, x.timeoutText())
		x.error(out.reason)
	default:
		out.c, out.reason = ci.Cancelled, "The operation was canceled."
		x.error(out.reason)
	}
	return out
}

func (x *execution) timeoutText() string {
	v, err := x.def.TimeoutMinutes.Eval(x.r.evalEnvOf(x.sc, x.env, x))
	if err != nil {
		return "its timeout"
	}
	return v.ToString() + " minutes"
}

func (x *execution) execute() outcome {
	if x.do != nil {
		return x.do()
	}
	if x.def.Uses != "" {
		return x.executeAction()
	}
	return x.script()
}

// script runs a run step.
func (x *execution) script() outcome {
	r, s := x.r, x.def
	env := r.evalEnvOf(x.sc, x.env, x)
	fail := func(err error) outcome {
		x.error(err.Error())
		return outcome{c: ci.Failure, reason: err.Error()}
	}
	body, err := s.Run.EvalString(env)
	if err != nil {
		return fail(err)
	}
	if x.edited != "" {
		if body, err = evalText(x.edited, env); err != nil {
			return fail(err)
		}
	}
	shell, err := x.shell(env)
	if err != nil {
		return fail(err)
	}
	dir, err := x.workingDirectory(env)
	if err != nil {
		return fail(err)
	}
	id := ci.NewID()
	file := path.Join(r.layout.Temp, id+shell.ext)
	if err := x.put(id, file, shell.script(body)); err != nil {
		return x.guestFault("write the step's script", err)
	}
	x.header("Run "+firstLine(body), body, "shell: "+shell.display)
	var extra vars
	r.job.IDToken.add(&extra)
	return x.exec(shell.argv(file), dir, extra)
}

// evalText evaluates what was written in place of a step's script, which may have
// expressions as that has.
func evalText(s string, env *expr.Env) (string, error) {
	t, err := expr.ParseTemplate(s, nil)
	if err != nil {
		return "", err
	}
	if t.Expr() == nil {
		return s, nil
	}
	v, err := t.Expr().Eval(env)
	if err != nil {
		return "", err
	}
	return v.ToString(), nil
}

// header prints what is going to be run, as a group, as GitHub does.
func (x *execution) header(title string, body ...string) {
	r := x.r
	r.emit(x, ci.Record{Type: ci.Group, Stream: "start", Text: title})
	for _, b := range body {
		for line := range strings.SplitSeq(strings.TrimRight(b, "\n"), "\n") {
			r.system(x, line)
		}
	}
	env, _ := x.sc.env.snapshot()
	env.add(x.sc.outer)
	env.add(x.env)
	if len(env.keys) > 0 {
		r.system(x, "env:")
		for _, k := range env.keys {
			r.system(x, "  "+k+": "+env.m[k])
		}
	}
	r.emit(x, ci.Record{Type: ci.Group, Stream: "end"})
}

// exec runs a process, reads its output, and then its command files.
func (x *execution) exec(argv []string, dir string, extra vars) outcome {
	r := x.r
	x.maps = nil
	environ := x.environ(extra)
	if msg := tooMuch(environ); msg != "" {
		x.error(msg)
		return outcome{c: ci.Failure, reason: msg}
	}
	if r.container == nil {
		x.root().at = &Place{dir, environ}
	}
	exit, err := x.process(argv, dir, environ)
	x.streams[0].close()
	x.streams[1].close()
	x.endGroup()
	switch {
	case err != nil && guest.StartFailed(err):
		msg := fmt.Sprintf("An error occurred trying to start process '%s' with working directory '%s'. %s", argv[0], dir, guestText(err))
		x.error(msg)
		return outcome{c: ci.Failure, reason: msg}
	case err != nil && r.container != nil:
		return x.engineFault("run the step in the job's container", err)
	case err != nil:
		return x.guestFault("run the step", err)
	}
	return x.ended(exit)
}

// ended is the outcome of what a step ran, with what that left in its command files.
func (x *execution) ended(exit guest.Exit) outcome {
	out := outcome{c: ci.Success, exit: exit.Code, exited: true}
	if !exit.OK() {
		out.c = ci.Failure
		if context.Cause(x.ctx) == nil {
			out.reason = fmt.Sprintf("Process completed with exit code %d.", exit.Code)
			// An action has said itself what is wrong; a script may not have.
			if x.use == nil {
				x.error(out.reason)
			}
		}
	}
	if err := x.collect(); err != nil {
		return x.guestFault("read what the step left", err)
	}
	return out
}

// tooMuch says what of an environment is more than a process can be given.
func tooMuch(environ []string) string {
	sum := 0
	for _, kv := range environ {
		sum += len(kv) + 1
		if name, _, _ := strings.Cut(kv, "="); len(kv) > command.MaxVariable {
			return fmt.Sprintf("The step cannot be started: its environment variable '%s' has %d bytes; a process can be given at most %d in one.", shortName(name),
				len(kv), command.MaxVariable)
		}
	}
	if sum > command.MaxVariables {
		return fmt.Sprintf("The step cannot be started: its environment has %d bytes; at most %d are possible.", sum, command.MaxVariables)
	}
	return ""
}

// guestFault turns an error of the guest into the outcome of the step: what the
// agent could not do (a full disk, a file that the job removed) is the step's
// failure; anything else means that the machine is lost.
func (x *execution) guestFault(doing string, err error) outcome {
	if _, ok := errors.AsType[*guest.Error](err); ok {
		msg := fmt.Sprintf("Could not %s: %s", doing, guestText(err))
		x.error(msg)
		return outcome{c: ci.Failure, reason: msg}
	}
	if x.ctx.Err() != nil && (errors.Is(err, x.ctx.Err()) || errors.Is(err, context.Cause(x.ctx))) {
		return outcome{c: ci.Cancelled}
	}
	return x.lose(fmt.Errorf("%s: %w", doing, err))
}

// lose ends the job at this step: we could not go on.
func (x *execution) lose(err error) outcome {
	x.r.lose(fmt.Errorf("step %d (%s): %w", x.number, x.r.clean(x.name), err))
	x.r.problem(x, "error", "The job could not go on: "+err.Error())
	return outcome{c: ci.Failure, reason: "the job could not go on: " + err.Error()}
}

func guestText(err error) string {
	if e, ok := errors.AsType[*guest.Error](err); ok {
		return e.Text
	}
	return err.Error()
}

// stepName is what is shown of a step before it runs.
func stepName(s *workflow.Step, env *expr.Env) string {
	if s.Name != nil {
		if v, err := s.Name.EvalString(env); err == nil {
			return oneLine(v)
		}
		return oneLine(s.Name.Text())
	}
	switch {
	case s.Run != nil:
		if v, err := s.Run.EvalString(env); err == nil {
			return "Run " + firstLine(v)
		}
		return "Run"
	case s.Uses != "":
		return "Run " + s.Uses
	case s.WaitAll:
		return "Wait for all background steps"
	case len(s.Wait) > 0:
		return "Wait for " + ids(s.Wait)
	case s.Cancel != nil:
		return "Cancel " + s.Cancel.ID
	}
	return s.ID
}

func ids(list []workflow.Needed) string {
	var out []string
	for _, n := range list {
		out = append(out, n.ID)
	}
	return strings.Join(out, ", ")
}

// firstLine is the first line of a script that says something.
func firstLine(s string) string {
	s = strings.TrimLeft(s, " \t\r\n")
	if i := strings.IndexAny(s, "\r\n"); i >= 0 {
		s = s[:i]
	}
	return s
}

// stepCommand is the step as written: it holds no secret's value.
func stepCommand(s *workflow.Step) string {
	switch {
	case s.Run != nil && s.Run.Kind == workflow.Expression:
		return "${{ " + s.Run.Str + " }}"
	case s.Run != nil:
		return s.Run.Text()
	case s.Uses != "":
		return s.Uses
	}
	return ""
}
