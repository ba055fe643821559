package engine

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// maxDepth is how deep composite actions may nest, as on GitHub.
const maxDepth = 10

// post is what an action left to be done at the end of the job.
type post struct {
	x    *execution // the step that it belongs to
	cond *expr.Expr

	// The program is the action's, from its directory, with its inputs if it is one of
	// Docker's.
	action *action.Action
	dir    string
	inputs vars
}

// run runs the program as x, an execution of its own.
func (p *post) run(x *execution) outcome {
	if p.action.PostEntrypoint != "" {
		return x.dockerStage(p.action, p.dir, p.inputs, p.action.PostEntrypoint)
	}
	return x.node(p.action.Node(), path.Join(p.dir, p.action.Post))
}

// posts are those of one step of the job: its own, or those of the actions in a
// composite one.
type posts struct {
	place string // of the step
	list  []*post
}

// leave remembers the post program of an action, and its condition. As on GitHub a step takes its turn
// when the first of its programs, which may be a pre, begins, and keeps it.
func (x *execution) leave(a *action.Action, dir string, inputs vars) {
	r := x.r
	p := &post{x: x, cond: a.PostIf, action: a, dir: dir, inputs: inputs}
	r.mu.Lock()
	defer r.mu.Unlock()
	of := r.postsOf(x.root().place)
	for i, old := range of.list {
		if old.x.place == x.place { // of its pre, or of another attempt at the step
			of.list[i] = p
			return
		}
	}
	of.list = append(of.list, p)
}

// postsOf are the posts of the step at a place of the job.
func (r *run) postsOf(place string) *posts {
	for _, p := range r.posts {
		if p.place == place {
			return p
		}
	}
	p := &posts{place: place}
	r.posts = append(r.posts, p)
	return p
}

// unpacked are the trees that are in the guest already.
type unpacked struct {
	mu   sync.Mutex
	tree map[string]*fetched
}

type fetched struct {
	once sync.Once
	tree *action.Tree
	dir  string
	err  error
}

// needsResults are the actions that are nothing without an artifact and cache service.
func needsResults(ref action.Ref) bool {
	if ref.Kind != action.Remote || !strings.EqualFold(ref.Owner, "actions") {
		return false
	}
	switch strings.ToLower(ref.Repo) {
	case "cache", "upload-artifact", "download-artifact", "upload-pages-artifact":
		return true
	}
	return false
}

func (x *execution) executeAction() outcome {
	r, uses := x.r, x.def.Uses
	fail := func(err error) outcome {
		x.error(err.Error())
		return outcome{c: ci.Failure, reason: err.Error()}
	}
	ref, err := action.ParseRef(uses)
	if err != nil {
		return fail(err)
	}
	with, err := evalVars(x.def.With, r.evalEnvOf(x.sc, x.env, x))
	if err != nil {
		return fail(err)
	}
	switch {
	case ref.Is("actions/checkout"):
		return x.checkout(ref, with)
	case ref.Kind == action.Docker:
		a := dockerUses(ref)
		x.use = &use{action: a}
		x.actionHeader(uses, with)
		return x.dockerAction(a, "", with)
	case needsResults(ref) && r.job.Results.URL == "":
		return fail(fmt.Errorf("%s needs the artifact and cache service, which this run does not have", uses))
	}
	a, dir, out := x.load(ref)
	if out != nil {
		return *out
	}
	x.use = &use{action: a, dir: dir}
	inputs, err := x.inputs(a, with)
	if err != nil {
		return fail(err)
	}
	x.actionHeader(uses, with)
	switch {
	case a.Using == "composite":
		return x.composite(a, inputs)
	case a.Using == "docker":
		return x.dockerAction(a, dir, inputs)
	}
	return x.javascript(a, dir, inputs)
}

// load finds the action's file and brings its directory into the guest.
func (x *execution) load(ref action.Ref) (*action.Action, string, *outcome) {
	r := x.r
	fail := func(format string, args ...any) (*action.Action, string, *outcome) {
		msg := fmt.Sprintf(format, args...)
		x.error(msg)
		return nil, "", &outcome{c: ci.Failure, reason: msg}
	}
	var dir, file string
	var src []byte
	switch ref.Kind {
	case action.Local:
		dir = path.Join(r.layout.Workspace, ref.Path)
		for _, n := range action.Names() {
			b, err := r.job.Guest.ReadFile(x.ctx, path.Join(dir, n), action.MaxFile)
			if err == nil {
				file, src = path.Join(ref.Path, n), b
				break
			}
			if _, ok := errors.AsType[*guest.Error](err); !ok {
				out := x.guestFault("read the action", err)
				return nil, "", &out
			}
		}
		for _, n := range action.Dockerfiles() {
			if file != "" {
				break
			}
			if st, err := r.job.Guest.Stat(x.ctx, path.Join(dir, n)); err == nil && st.Mode.IsRegular() {
				file, src = path.Join(ref.Path, n), action.FromDockerfile(n)
			}
		}
		if file == "" {
			return fail("Can't find 'action.yml', 'action.yaml' or 'Dockerfile' under '%s'. Did you forget to run actions/checkout before running your local action?", dir)
		}
	default:
		if ref.Kind == action.Own {
			// The repository that the file with this step is from.
			if x.sc.use != nil && x.sc.use.action.Repository != "" {
				owner, repo, _ := strings.Cut(x.sc.use.action.Repository, "/")
				ref = action.Ref{Owner: owner, Repo: repo, Path: ref.Path, Ref: x.sc.use.action.Ref}
			} else {
				return x.loadOwn(ref)
			}
		}
		f := r.bring(x.ctx, ref)
		if f.err != nil {
			if ie, ok := errors.AsType[*action.InputError](f.err); ok {
				return fail("%s", ie.Msg)
			}
			if _, ok := errors.AsType[*guest.Error](f.err); ok || x.ctx.Err() != nil {
				out := x.guestFault("unpack "+ref.String(), f.err)
				return nil, "", &out
			}
			out := x.guestFault("bring "+ref.String(), f.err)
			return nil, "", &out
		}
		if f.tree.Note != "" {
			r.system(x, f.tree.Note)
		}
		dir = path.Join(f.dir, ref.Path)
		var err error
		if file, src, err = f.tree.Load(x.ctx, ref.Path); err != nil {
			return fail("%s", err)
		}
		file = ref.Repository() + "/" + file
	}
	a, diags := action.Parse(file, ref.Path, src)
	if workflow.Errors(diags) {
		var all []string
		for _, d := range diags {
			if d.Severity == workflow.Error {
				all = append(all, d.String())
			}
		}
		return fail("%s", strings.Join(all, "\n"))
	}
	a.Repository, a.Ref, a.Path = ref.Repository(), ref.Ref, ref.Path
	return a, dir, nil
}

// loadOwn is load for an action of the run's own repository at its own commit,
// whatever is in the workspace.
func (x *execution) loadOwn(ref action.Ref) (*action.Action, string, *outcome) {
	r := x.r
	if r.job.Source == nil {
		msg := "uses: " + x.def.Uses + " needs the run's repository, which this run does not have"
		x.error(msg)
		return nil, "", &outcome{c: ci.Failure, reason: msg}
	}
	dir := path.Join(r.layout.Actions, "_own")
	r.own.Do(func() {
		_, r.ownErr = r.stream(x.ctx, dir, func(w io.Writer) (string, error) {
			return r.job.Source.Checkout(x.ctx, action.CheckoutRequest{Depth: 1}, w)
		})
	})
	if r.ownErr != nil {
		out := x.guestFault("bring the run's own repository", r.ownErr)
		return nil, "", &out
	}
	for _, n := range action.Names() {
		b, err := r.job.Guest.ReadFile(x.ctx, path.Join(dir, ref.Path, n), action.MaxFile)
		if err != nil {
			continue
		}
		a, diags := action.Parse(path.Join(ref.Path, n), ref.Path, b)
		if workflow.Errors(diags) {
			x.error(diags[0].String())
			return nil, "", &outcome{c: ci.Failure, reason: diags[0].String()}
		}
		return a, path.Join(dir, ref.Path), nil
	}
	msg := fmt.Sprintf("Can't find 'action.yml' or 'action.yaml' for '%s' in the repository", x.def.Uses)
	x.error(msg)
	return nil, "", &outcome{c: ci.Failure, reason: msg}
}

// bring resolves a remote action and unpacks its repository in the guest, once.
func (r *run) bring(ctx context.Context, ref action.Ref) *fetched {
	ref, err := locked(r.job.Run, r.job.Plan.Workflow.File, ref)
	if err != nil {
		return &fetched{err: err}
	}
	key := key(ref)
	r.trees.mu.Lock()
	if r.trees.tree == nil {
		r.trees.tree = map[string]*fetched{}
	}
	f := r.trees.tree[key]
	if f == nil {
		f = &fetched{}
		r.trees.tree[key] = f
	}
	r.trees.mu.Unlock()
	f.once.Do(func() {
		f.tree, f.err = r.job.Actions.Resolve(ctx, ref)
		if f.err != nil {
			return
		}
		f.dir = path.Join(r.layout.Actions, ref.Owner, ref.Repo, strings.ReplaceAll(ref.Ref, "/", "_"))
		_, f.err = r.stream(ctx, f.dir, func(w io.Writer) (string, error) { return "", f.tree.Tar(ctx, w) })
	})
	return f
}

// stream unpacks in the guest what fn writes.
func (r *run) stream(ctx context.Context, dir string, fn func(w io.Writer) (string, error)) (string, error) {
	pr, pw := io.Pipe()
	type result struct {
		s   string
		err error
	}
	done := make(chan result, 1)
	go func() {
		s, err := fn(pw)
		pw.CloseWithError(err)
		done <- result{s, err}
	}()
	err := r.job.Guest.TarIn(ctx, dir, pr, "")
	pr.CloseWithError(errors.New("the guest takes no more"))
	res := <-done
	// What fn says is the reason, unless it only noticed the guest's.
	if res.err != nil && (err == nil || errors.Is(err, res.err) || isInput(res.err)) {
		return res.s, res.err
	}
	return res.s, err
}

func isInput(err error) bool {
	_, ok := errors.AsType[*action.InputError](err)
	return ok
}

// inputs are the action's inputs: those given, and the defaults of the others.
func (x *execution) inputs(a *action.Action, with vars) (vars, error) {
	var out vars
	env := x.r.evalEnvOf(x.sc, x.env, x)
	for _, in := range a.Inputs {
		value, given := "", false
		for _, k := range with.keys {
			if strings.EqualFold(k, in.Name) {
				value, given = with.m[k], true
			}
		}
		if given && in.Deprecation != "" {
			x.say("warning", fmt.Sprintf("Input '%s' has been deprecated with message: %s", in.Name, in.Deprecation))
		}
		if !given && in.Default != nil {
			var err error
			if value, err = in.Default.EvalString(env); err != nil {
				return out, fmt.Errorf("the default of input '%s': %w", in.Name, err)
			}
		}
		out.set(in.Name, value)
	}
	var unexpected []string
	for _, k := range with.keys {
		if a.Using == "docker" && (strings.EqualFold(k, "args") || strings.EqualFold(k, "entryPoint")) {
			out.set(k, with.m[k]) // every one of them takes these
			continue
		}
		if a.Input(k) == nil {
			unexpected = append(unexpected, "'"+k+"'")
			out.set(k, with.m[k])
		}
	}
	if len(unexpected) > 0 {
		var valid []string
		for _, in := range a.Inputs {
			valid = append(valid, "'"+in.Name+"'")
		}
		x.say("warning", fmt.Sprintf("Unexpected input(s) %s, valid inputs are [%s]", strings.Join(unexpected, ", "), strings.Join(valid, ", ")))
	}
	return out, nil
}

func (x *execution) actionHeader(uses string, with vars) {
	var body []string
	if len(with.keys) > 0 {
		body = append(body, "with:")
		for _, k := range with.keys {
			body = append(body, "  "+k+": "+with.m[k])
		}
	}
	x.header("Run "+uses, body...)
}

// composite runs the steps of a composite action.
func (x *execution) composite(a *action.Action, inputs vars) outcome {
	r := x.r
	depth := 1
	for sc := x.sc; sc.parent != nil; sc = sc.parent {
		depth++
	}
	if depth > maxDepth {
		msg := fmt.Sprintf("Composite actions are nested more than %d deep", maxDepth)
		x.error(msg)
		return outcome{c: ci.Failure, reason: msg}
	}
	in := expr.NewMap()
	for _, k := range inputs.keys {
		in.Set(k, expr.String(inputs.m[k]))
	}
	outer := x.sc.outer.clone()
	outer.add(x.env)
	sc := x.sc.child(x.use, expr.Object(in), outer)
	// Steps inside say for themselves whether they go on when the job is
	// cancelled; what is left is to ask the conditions of those after them.
	x.mu.Lock()
	x.inner = true
	x.mu.Unlock()
	cancelled := false
	out := outcome{c: ci.Success}
	for i, s := range a.Steps {
		if r.lost() != nil || r.hard.Err() != nil || context.Cause(x.ctx) != nil {
			// Steps are left out: whatever those before came to, this is no success.
			cancelled = true
			break
		}
		n := r.inside(x, sc, s, i)
		n.name = stepName(s, r.evalEnvOf(sc, vars{}, n))
		runs, _, err := n.decide()
		var res outcome
		switch {
		case err != nil:
			n.begin()
			n.error(err.Error())
			res = outcome{c: ci.Failure, reason: err.Error()}
		case !runs:
			res = outcome{c: ci.Skipped}
		default:
			res = n.run(x.ctx)
			n.commit()
		}
		if err != nil {
			// As on GitHub nothing comes after a condition that says nothing.
			sc.steps.set(s.ID, n.outputs, res.c, res.c)
			sc.fail()
			out = res
			break
		}
		conclusion := res.c
		if (res.c == ci.Failure || res.c == ci.TimedOut) && n.continues() && r.lost() == nil {
			conclusion = ci.Success
		}
		sc.steps.set(s.ID, n.outputs, res.c, conclusion)
		switch conclusion {
		case ci.Failure, ci.TimedOut:
			sc.fail()
			if out.c == ci.Success {
				out = outcome{c: ci.Failure, exit: res.exit, exited: res.exited, reason: res.reason}
			}
		case ci.Cancelled:
			cancelled = true
		}
	}
	env := r.evalEnvOf(sc, vars{}, nil)
	for _, o := range a.Outputs {
		v, err := o.Value.EvalString(env)
		if err != nil {
			x.error(err.Error())
			out.c = ci.Failure
			continue
		}
		x.setOutput(o.Name, v)
	}
	if out.c == ci.Success && (cancelled || r.why() != nil && sc.status() == ci.Cancelled && !x.survives()) {
		out = outcome{c: ci.Cancelled, reason: "The operation was canceled."}
	}
	return out
}

// inputVars are the INPUT_ variables of an action's process.
func inputVars(inputs vars) vars {
	var out vars
	for _, k := range inputs.keys {
		out.set("INPUT_"+strings.ToUpper(strings.ReplaceAll(k, " ", "_")), inputs.m[k])
	}
	return out
}

// javascript runs the main program of a JavaScript action, and remembers its post
// program.
func (x *execution) javascript(a *action.Action, dir string, inputs vars) outcome {
	switch a.Using {
	case "node12", "node16":
		x.say("warning", fmt.Sprintf("%s runs on Node.js %s, which is gone: it runs on Node.js 20 here, as on GitHub.", x.def.Uses,
			strings.TrimPrefix(a.Using, "node")))
	}
	x.given = inputVars(inputs)
	x.leaveNode(a, dir)
	return x.node(a.Node(), path.Join(dir, a.Main))
}

// leaveNode remembers the post program of a JavaScript action, if it has one.
func (x *execution) leaveNode(a *action.Action, dir string) {
	if a.Post != "" {
		x.leave(a, dir, vars{})
	}
}

// node runs a program of an action.
func (x *execution) node(version int, main string) outcome {
	r := x.r
	if err := x.put(ci.NewID(), "", ""); err != nil {
		return x.guestFault("prepare the action", err)
	}
	argv, out := x.nodeFor(version)
	if out != nil {
		return *out
	}
	return x.exec(append(argv, main), r.layout.Workspace, x.actionVars())
}

// runPres runs the pre programs of remote actions, those in composite ones as well,
// before the job's first step.
func (r *run) runPres(top *scope, steps []*workflow.Step) {
	for _, s := range steps {
		if len(s.Parallel) > 0 {
			r.runPres(top, s.Parallel)
			continue
		}
		r.runPre(r.newExec(top, s, 0, "__pre_"+s.ID), action.Ref{}, 1)
	}
}

// remote reads the remote action that a step uses, if it is one that is fetched; of is
// the repository that the step's file is from. The step itself will say what is wrong.
func (r *run) remote(uses string, of action.Ref) (ref action.Ref, a *action.Action) {
	ref, err := action.ParseRef(uses)
	if err == nil && ref.Kind == action.Own && of.Owner != "" {
		of.Path = ref.Path
		ref = of
	}
	if uses == "" || err != nil || ref.Kind != action.Remote || ref.Is("actions/checkout") || needsResults(ref) && r.job.Results.URL == "" {
		return ref, nil
	}
	if ref, err = locked(r.job.Run, r.job.Plan.Workflow.File, ref); err != nil {
		return ref, nil
	}
	tree, err := r.job.Actions.Resolve(r.hard, ref)
	if err != nil {
		return ref, nil
	}
	file, src, err := tree.Load(r.hard, ref.Path)
	if err != nil {
		return ref, nil
	}
	a, diags := action.Parse(file, ref.Path, src)
	if workflow.Errors(diags) {
		return ref, nil
	}
	a.Repository, a.Ref, a.Path = ref.Repository(), ref.Ref, ref.Path
	return ref, a
}

// hasPre reports whether an action, or one in it, has a pre program.
func (r *run) hasPre(ref action.Ref, a *action.Action, depth int) bool {
	if a == nil || depth > maxDepth {
		return false
	}
	switch {
	case a.Node() > 0:
		return a.Pre != ""
	case a.Using == "docker":
		return a.PreEntrypoint != ""
	}
	return slices.ContainsFunc(a.Steps, func(s *workflow.Step) bool {
		ref, a := r.remote(s.Uses, ref)
		return r.hasPre(ref, a, depth+1)
	})
}

// runPre runs the pre program of the action that x uses, or those of the actions in
// it. Whether x itself will run is not known: its condition is not asked.
func (r *run) runPre(x *execution, of action.Ref, depth int) {
	ref, a := r.remote(x.def.Uses, of)
	if !r.hasPre(ref, a, depth) {
		return
	}
	sc := x.sc
	x.name = "Pre " + stepName(x.def, r.evalEnvOf(sc, vars{}, x))
	if a.Using == "composite" {
		x.quiet = true
		inputs, err := r.preInputs(x, ref, a)
		if err != nil {
			return
		}
		in := expr.NewMap()
		for _, k := range inputs.keys {
			in.Set(k, expr.String(inputs.m[k]))
		}
		outer := sc.outer.clone()
		outer.add(x.env)
		inner := sc.child(x.use, expr.Object(in), outer)
		for i, s := range a.Steps {
			n := r.inside(x, inner, s, i)
			n.id = "__pre_" + s.ID
			r.runPre(n, ref, depth+1)
		}
		return
	}
	x.number, x.record = r.nextNumber(), x.id
	r.extra(x, a.PreIf, func() outcome {
		inputs, err := r.preInputs(x, ref, a)
		if err != nil {
			if x.ctx.Err() != nil || !isInput(err) && isFault(err) {
				return x.guestFault("bring "+ref.String(), err)
			}
			x.error(err.Error())
			return outcome{c: ci.Failure, reason: err.Error()}
		}
		x.given = inputVars(inputs)
		var out outcome
		if a.Using == "docker" {
			dir := x.use.dir
			if a.PostEntrypoint != "" {
				x.leave(a, dir, inputs)
			}
			out = x.dockerStage(a, dir, inputs, a.PreEntrypoint)
		} else {
			x.leaveNode(a, x.use.dir)
			out = x.node(a.Node(), path.Join(x.use.dir, a.Pre))
		}
		// Main and post see what pre has saved.
		r.mu.Lock()
		r.preState[x.place] = x.state
		r.mu.Unlock()
		return out
	})
}

// errFault marks what the guest, or we, could not do.
type errFault struct{ error }

func (e errFault) Unwrap() error { return e.error }

func isFault(err error) bool {
	_, ok := errors.AsType[errFault](err)
	return ok
}

// preInputs brings x's action into the guest and evaluates what it is given.
func (r *run) preInputs(x *execution, ref action.Ref, a *action.Action) (vars, error) {
	env, err := evalVars(x.def.Env, r.evalEnvOf(x.sc, vars{}, x))
	if err != nil {
		return vars{}, err
	}
	x.env = env
	with, err := evalVars(x.def.With, r.evalEnvOf(x.sc, x.env, x))
	if err != nil {
		return vars{}, err
	}
	f := r.bring(x.ctx, ref)
	if f.err != nil {
		return vars{}, errFault{f.err}
	}
	x.use = &use{action: a, dir: path.Join(f.dir, ref.Path)}
	return x.inputs(a, with)
}

func (r *run) nextNumber() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.numbers++
	return r.numbers
}

// runPosts runs what actions left to be done, the last one first.
func (r *run) runPosts(top *scope) {
	r.mu.Lock()
	var left []*post
	for _, of := range r.posts {
		left = append(left, of.list...)
	}
	r.mu.Unlock()
	slices.Reverse(left)
	for _, p := range left {
		if r.lost() != nil {
			return
		}
		m := p.x
		// Its scope has the environment of now, and the step's own.
		x := r.newExec(m.sc, m.def, r.nextNumber(), "__post_"+m.id)
		x.parent = m.parent
		x.name, x.env, x.use, x.state, x.given = "Post "+m.name, m.env, m.use, m.state, m.given
		r.extra(x, p.cond, func() outcome {
			x.header("Post " + m.def.Uses)
			return p.run(x)
		})
	}
}

// extra runs a step that is not written in the workflow. Its condition is
// always() if there is none, and asks for the status of the job.
func (r *run) extra(x *execution, cond *expr.Expr, do func() outcome) {
	began := time.Now()
	res := StepResult{Number: x.number, ID: x.id, Name: r.clean(x.name), Attempts: 1}
	top := x.sc
	for top.parent != nil {
		top = top.parent
	}
	holds := func() (bool, error) {
		if cond == nil {
			return true, nil
		}
		env := r.evalEnvOf(x.sc, x.env, x)
		env.Functions = r.evalEnvOf(top, vars{}, x).Functions
		v, err := cond.Eval(env)
		return v.Truthy(), err
	}
	x.survives = func() bool { ok, err := holds(); return ok && err == nil }
	x.do = do
	ok, err := holds()
	switch {
	case err != nil:
		x.begin()
		x.error(err.Error())
		res.Outcome = ci.Failure
	case !ok:
		return
	default:
		r.emit(x, ci.Record{Type: ci.StepStarted, Name: x.name, Command: x.def.Uses})
		if r.job.OnStep != nil {
			r.job.OnStep(x.number)
		}
		out := x.run(r.hard)
		x.commit()
		res.Outcome, res.ExitCode, res.Reason = out.c, out.exit, r.clean(out.reason)
		res.Infrastructure = r.lost() != nil && out.c != ci.Success
	}
	res.Conclusion, res.Duration = res.Outcome, time.Since(began)
	if (res.Outcome == ci.Failure || res.Outcome == ci.TimedOut) && x.continues() && !res.Infrastructure {
		res.Conclusion = ci.Success
	}
	if res.Conclusion == ci.Failure || res.Conclusion == ci.TimedOut {
		r.fail()
	}
	r.emit(x, ci.Record{
		Type: ci.StepFinished, Name: x.name, Conclusion: res.Conclusion, Outcome: res.Outcome, Reason: res.Reason,
		Infrastructure: res.Infrastructure, DurationMS: new(res.Duration.Milliseconds()), ExitCode: new(res.ExitCode),
	})
	r.mu.Lock()
	r.steps = append(r.steps, res)
	r.mu.Unlock()
}
