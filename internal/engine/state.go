package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/command"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// State is a job between two of its steps: what the engine knows then that is not in
// its machine. With the machine as it was then, [Job].From goes on from there. It
// holds the job's secrets: it is for memory, and for what is sealed. As JSON it is
// read again by the version that wrote it.
type State struct {
	Version int           `json:"version"`
	Step    int           `json:"step"` // the number of the step that comes next
	Status  ci.Conclusion `json:"status"`
	Env     vars          `json:"env"`   // what steps have set for others
	Paths   []string      `json:"paths"` // the last one comes first in PATH
	Steps   expr.Value    `json:"steps"` // the steps context

	PreState  map[string]map[string]string `json:"pre_state,omitempty"`
	Posts     []savedPost                  `json:"posts,omitempty"`
	Summary   map[int]string               `json:"summary,omitempty"`
	Checkouts []string                     `json:"checkouts,omitempty"`
	Masks     []string                     `json:"masks,omitempty"`    // that steps have asked for
	Matchers  []matcherChange              `json:"matchers,omitempty"` // in order
	Numbers   int                          `json:"numbers"`
	Kept      int                          `json:"kept"`
}

const stateVersion = 1

// maxMatcherLog bounds what a State has of problem matchers.
const maxMatcherLog = 4 << 20

// ErrNoState says that a job has, at this moment, what a State cannot hold.
var ErrNoState = errors.New("what the job has open here cannot be kept")

// matcherChange is an add-matcher or a remove-matcher.
type matcherChange struct {
	Add    []byte `json:"add,omitempty"` // the file
	Remove string `json:"remove,omitempty"`
}

// savedPost is what an action left to be done, with the step that it is of.
type savedPost struct {
	Of     string            `json:"of"`    // the step of the job, by its place
	Place  string            `json:"place"` // of the action's
	ID     string            `json:"id"`
	Name   string            `json:"name"`
	Def    *workflow.Step    `json:"def"`
	Env    vars              `json:"env"`
	Given  vars              `json:"given"`
	State  map[string]string `json:"state,omitempty"`
	Cond   *expr.Expr        `json:"cond,omitempty"`
	Action *action.Action    `json:"action"`
	Dir    string            `json:"dir"`
	Inputs vars              `json:"inputs"`
	Scopes []savedScope      `json:"scopes,omitempty"` // the composite actions that it is in, the innermost first
}

type savedScope struct {
	Inputs expr.Value     `json:"inputs"`
	Outer  vars           `json:"outer"`
	Steps  expr.Value     `json:"steps"`
	Action *action.Action `json:"action"`
	Dir    string         `json:"dir"`
	Failed bool           `json:"failed,omitempty"`
}

// MarshalJSON keeps the order.
func (v vars) MarshalJSON() ([]byte, error) {
	out := make([][2]string, 0, len(v.keys))
	for _, k := range v.keys {
		out = append(out, [2]string{k, v.m[k]})
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (v *vars) UnmarshalJSON(b []byte) error {
	var in [][2]string
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*v = vars{}
	for _, kv := range in {
		v.set(kv[0], kv[1])
	}
	return nil
}

// hide has a value masked from now on, and after the job has been taken up again.
func (r *run) hide(secret string) error {
	if err := r.mask.Add(secret); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.masks, secret) {
		r.masks = append(r.masks, secret)
	}
	return nil
}

// rematched remembers what became of the problem matchers.
func (r *run) rematched(c matcherChange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.matcherSize += len(c.Add) + len(c.Remove) + 1; r.matcherSize <= maxMatcherLog {
		r.matcherLog = append(r.matcherLog, c)
	}
}

// state is the job as it is before one of its steps.
func (r *run) state(sc *scope, step int) (*State, error) {
	no := func(what string) (*State, error) { return nil, fmt.Errorf("%w: %s", ErrNoState, what) }
	env, paths := sc.env.snapshot()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.container != nil || len(r.containers) > 0:
		return no("containers of its own")
	case slices.ContainsFunc(r.background, func(b *background) bool { return !b.joined }):
		return no("steps in the background")
	case r.matcherSize > maxMatcherLog:
		return no("problem matchers of more than 4 MiB")
	case r.cancelled != nil:
		return no("it is being cancelled")
	}
	s := &State{Version: stateVersion, Step: step, Status: r.status, Env: env, Paths: paths, Steps: sc.steps.value(), Summary: maps.Clone(r.summary),
		Checkouts: slices.Clone(r.checkouts), Masks: slices.Clone(r.masks), Matchers: slices.Clone(r.matcherLog), Numbers: r.numbers, Kept: r.kept}
	for place, state := range r.preState {
		if s.PreState == nil {
			s.PreState = map[string]map[string]string{}
		}
		s.PreState[r.lasting(place)] = maps.Clone(state)
	}
	for _, of := range r.posts {
		for _, p := range of.list {
			x := p.x
			saved := savedPost{Of: r.lasting(of.place), Place: r.lasting(x.place), ID: x.id, Name: x.name, Def: x.def, Env: x.env.clone(), Given: x.given.clone(),
				State: maps.Clone(x.state), Cond: p.cond, Action: p.action, Dir: p.dir, Inputs: p.inputs}
			for sc := x.sc; sc.parent != nil; sc = sc.parent {
				saved.Scopes = append(saved.Scopes, savedScope{sc.inputs, sc.outer.clone(), sc.steps.value(), sc.use.action, sc.use.dir, sc.hasFailed()})
			}
			s.Posts = append(s.Posts, saved)
		}
	}
	return s, nil
}

// lasting is a place that outlives the process: a step of the job is its number there.
func (r *run) lasting(place string) string {
	first, rest, _ := strings.Cut(place, "/")
	for i, s := range workflow.NumberedSteps(r.def.Steps) {
		if fmt.Sprintf("%p", s) == first {
			return strings.TrimSuffix(fmt.Sprintf("#%d/%s", i+1, rest), "/")
		}
	}
	return place
}

// here is a lasting place in this process, with its step.
func (r *run) here(place string) (string, *workflow.Step, error) {
	first, rest, _ := strings.Cut(place, "/")
	var n int
	steps := workflow.NumberedSteps(r.def.Steps)
	if _, err := fmt.Sscanf(first, "#%d", &n); err != nil || n < 1 || n > len(steps) {
		return "", nil, fmt.Errorf("engine: the job has no step %q", first)
	}
	return strings.TrimSuffix(fmt.Sprintf("%p/%s", steps[n-1], rest), "/"), steps[n-1], nil
}

// resume makes the job what it was.
func (r *run) resume(top *scope, s *State) error {
	if s.Version != stateVersion {
		return fmt.Errorf("engine: the job was kept by another version (%d, this is %d)", s.Version, stateVersion)
	}
	if n := len(workflow.NumberedSteps(r.def.Steps)); s.Step < 1 || s.Step > n {
		return fmt.Errorf("engine: the job was kept before step %d, and has %d", s.Step, n)
	}
	for _, secret := range s.Masks {
		if err := r.hide(secret); err != nil {
			return fmt.Errorf("engine: a secret: %w", err)
		}
	}
	top.env = &jobEnv{vars: s.Env.clone(), paths: slices.Clone(s.Paths)}
	top.steps = &stepTable{m: s.Steps.AsMap()}
	for _, c := range s.Matchers {
		if c.Add == nil {
			r.matchers.Remove(c.Remove)
		} else if list, err := r.matchers.Load(c.Add); err == nil {
			r.matchers.Add(list) // that are too many have been told of
		}
		r.rematched(c)
	}
	r.mu.Lock()
	r.status, r.summary, r.checkouts, r.kept = s.Status, maps.Clone(s.Summary), slices.Clone(s.Checkouts), s.Kept
	if r.summary == nil {
		r.summary = map[int]string{}
	}
	r.mu.Unlock()
	for place, state := range s.PreState {
		at, _, err := r.here(place)
		if err != nil {
			return err
		}
		r.preState[at] = maps.Clone(state)
	}
	for _, p := range s.Posts {
		if err := r.resumePost(top, p); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) resumePost(top *scope, p savedPost) error {
	of, step, err := r.here(p.Of)
	if err != nil {
		return err
	}
	place, _, err := r.here(p.Place)
	if err != nil {
		return err
	}
	if p.Def == nil || p.Action == nil {
		return fmt.Errorf("engine: what is left to do of step %s is not whole", p.Of)
	}
	sc := top
	for _, in := range slices.Backward(p.Scopes) {
		if in.Action == nil {
			return fmt.Errorf("engine: an action around what is left to do of step %s is missing", p.Of)
		}
		sc = sc.child(&use{action: in.Action, dir: in.Dir}, in.Inputs, in.Outer)
		sc.steps, sc.failed = &stepTable{m: in.Steps.AsMap()}, in.Failed
	}
	x := r.newExec(sc, p.Def, 0, p.ID)
	if sc != top {
		x.parent = r.newExec(top, step, 0, step.ID)
	}
	x.place, x.name, x.env, x.given, x.state = place, p.Name, p.Env, p.Given, p.State
	if x.state == nil {
		x.state = map[string]string{}
	}
	x.use = &use{action: p.Action, dir: p.Dir}
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.postsOf(of)
	list.list = append(list.list, &post{x: x, cond: p.Cond, action: p.Action, dir: p.Dir, inputs: p.Inputs})
	return nil
}

// passed tells of a step that is not run, since the job begins after it.
func (r *run) passed(sc *scope, s *workflow.Step, number int) {
	x := r.newExec(sc, s, number, s.ID)
	x.name = stepName(s, r.evalEnvOf(sc, vars{}, x))
	r.emit(x, ci.Record{Type: ci.StepFinished, Name: x.name, Conclusion: ci.Skipped, Outcome: ci.Skipped,
		Reason: fmt.Sprintf("the job begins before step %d, where its machine was kept", r.job.From.Step), DurationMS: new(int64(0)), ExitCode: new(0)})
}

// Stand makes ready for a process to stand where the step does before which job.From
// was kept: its command files are there, and its environment is as its script would
// have it. Nothing of the step is run.
func Stand(ctx context.Context, job Job) (*Place, error) {
	if job.From == nil {
		return nil, errors.New("engine: the job begins nowhere")
	}
	r, err := newRun(job)
	if err != nil {
		return nil, err
	}
	r.hard, r.hardStop = context.WithCancelCause(ctx)
	defer r.hardStop(nil)
	defer r.closeEngine()
	top := r.top()
	if err := r.prepare(top); err != nil {
		return nil, err
	}
	if err := r.resume(top, job.From); err != nil {
		return nil, err
	}
	s := workflow.NumberedSteps(r.def.Steps)[job.From.Step-1]
	x := r.newExec(top, s, job.From.Step, s.ID)
	if _, _, err := x.decide(); err != nil {
		return nil, err
	}
	if err := x.put(ci.NewID(), "", ""); err != nil {
		return nil, fmt.Errorf("engine: make the step's files: %w", err)
	}
	env := r.evalEnvOf(top, x.env, x)
	dir, err := x.workingDirectory(env)
	if err != nil {
		return nil, err
	}
	var extra vars
	r.job.IDToken.add(&extra)
	return &Place{Dir: dir, Environ: x.environ(extra)}, nil
}

// addMatchers adds those of a file.
func (r *run) addMatchers(list []command.Matcher, data []byte) error {
	if err := r.matchers.Add(list); err != nil {
		return err
	}
	r.rematched(matcherChange{Add: data})
	return nil
}
