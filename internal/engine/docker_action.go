package engine

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/docker"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/guest"
)

// images are those of the job's Docker actions, by what they are made of.
type images struct {
	mu sync.Mutex
	m  map[string]*image
}

type image struct {
	once sync.Once
	name string
	out  *outcome // why there is none
}

// dockerUses is a step that uses an image as an action.
func dockerUses(ref action.Ref) *action.Action {
	return &action.Action{Using: "docker", Image: "docker://" + ref.Image}
}

// imageOf is the image of a Docker action, built or pulled: once for the whole job,
// but for a local action, whose files may have changed.
func (x *execution) imageOf(a *action.Action, dir string) (string, *outcome) {
	r := x.r
	key := a.Image
	if _, ok := strings.CutPrefix(a.Image, "docker://"); !ok {
		key = path.Join(dir, a.Image)
		if a.Repository == "" {
			key += "\x00" + ci.NewID()
		}
	}
	r.images.mu.Lock()
	if r.images.m == nil {
		r.images.m = map[string]*image{}
	}
	img := r.images.m[key]
	if img == nil {
		img = &image{}
		r.images.m[key] = img
	}
	r.images.mu.Unlock()
	img.once.Do(func() {
		if name, ok := strings.CutPrefix(a.Image, "docker://"); ok {
			if err := checkImage(name); err != nil {
				x.error(err.Error())
				img.out = &outcome{c: ci.Failure, reason: err.Error()}
				return
			}
			x.group("Pull down action image '" + name + "'")
			img.name, img.out = x.pull(name, docker.Auth{})
			x.ungroup()
			return
		}
		img.name, img.out = x.build(path.Join(dir, a.Image))
	})
	if img.out != nil {
		// Of another step's, or of another attempt: it may go better.
		r.images.mu.Lock()
		delete(r.images.m, key)
		r.images.mu.Unlock()
	}
	return img.name, img.out
}

// build builds an action's image.
func (x *execution) build(file string) (string, *outcome) {
	r := x.r
	fail := func(format string, args ...any) (string, *outcome) {
		msg := fmt.Sprintf(format, args...)
		x.error(msg)
		return "", &outcome{c: ci.Failure, reason: msg}
	}
	st, err := r.job.Guest.Stat(x.ctx, file)
	if err != nil || st.IsDir() {
		if _, ok := errors.AsType[*guest.Error](err); !ok && err != nil {
			o := x.guestFault("look for the action's Dockerfile", err)
			return "", &o
		}
		return fail("Can't find '%s': the action's image is neither a Dockerfile nor docker://IMAGE", file)
	}
	name := "hearth-action:" + strings.ToLower(ci.NewID())
	x.group("Building docker image")
	defer x.ungroup()
	r.system(x, fmt.Sprintf("Dockerfile for action: '%s'.", file))
	argv := []string{"docker", "build", "-t", name, "-f", file, path.Dir(file)}
	r.system(x, strings.Join(argv, " "))
	var shown [2]*plain
	for i := range shown {
		shown[i] = &plain{s: x.streams[i]}
	}
	exit, err := r.job.Guest.Exec(x.ctx, guest.Cmd{Argv: argv, Dir: r.layout.Workspace, Stdout: shown[0], Stderr: shown[1],
		StopSignal: "SIGINT", Urge: stopUrge, Grace: stopGrace, Linger: lingerTime})
	for i := range shown {
		shown[i].close()
	}
	switch {
	case err != nil && guest.StartFailed(err):
		return fail("The machine's image has no container engine: %s", guestText(err))
	case err != nil:
		o := x.guestFault("build the action's image", err)
		return "", &o
	case exit.Cancelled || context.Cause(x.ctx) != nil:
		return "", &outcome{c: ci.Cancelled}
	case !exit.OK():
		return fail("Docker build failed with exit code %d", exit.Code)
	}
	return name, nil
}

// dockerAction runs a Docker action, and remembers its post program.
func (x *execution) dockerAction(a *action.Action, dir string, inputs vars) outcome {
	x.given = inputVars(inputs)
	if a.PostEntrypoint != "" {
		x.leave(a, dir, inputs)
	}
	return x.dockerStage(a, dir, inputs, cmp.Or(a.Entrypoint, foldGet(inputs, "entryPoint")))
}

func foldGet(v vars, name string) string {
	for _, k := range v.keys {
		if strings.EqualFold(k, name) {
			return v.m[k]
		}
	}
	return ""
}

// dockerStage runs one of an action's programs, its main one, pre or post, in a
// container of its own.
func (x *execution) dockerStage(a *action.Action, dir string, inputs vars, entrypoint string) outcome {
	r := x.r
	fail := func(err error) outcome {
		x.error(err.Error())
		return outcome{c: ci.Failure, reason: err.Error()}
	}
	name, out := x.imageOf(a, dir)
	if out != nil {
		return *out
	}
	in := expr.NewMap()
	for _, k := range inputs.keys {
		in.Set(k, expr.String(inputs.m[k]))
	}
	env := r.evalEnvOf(x.sc, x.env, x)
	env.Contexts.Set("inputs", expr.Object(in))
	args := splitArgs(foldGet(inputs, "args"))
	if a.Args != nil {
		args = []string{}
		for _, v := range a.Args {
			s, err := v.EvalString(env)
			if err != nil {
				return fail(fmt.Errorf("runs.args: %w", err))
			}
			args = append(args, s)
		}
	}
	own, err := evalVars(a.Env, env)
	if err != nil {
		return fail(fmt.Errorf("runs.env: %w", err))
	}
	if err := x.put(ci.NewID(), "", ""); err != nil {
		return x.guestFault("prepare the action", err)
	}
	extra := x.actionVars()
	before := x.variables(extra)
	for _, k := range own.keys {
		if !before.has(k) {
			extra.set(k, own.m[k])
		}
	}
	extra.set("HOME", path.Join(r.layout.Temp, "_github_home"))
	v := x.variables(extra)
	environ := v.list()
	if msg := tooMuch(environ); msg != "" {
		return fail(errors.New(msg))
	}
	x.maps = r.layout.actionMounts()
	c := docker.Config{Image: name, Env: x.maps.translated(environ), WorkingDir: "/github/workspace", Network: r.network}
	for _, b := range append(mapping{{from: engineSocket, to: engineSocket}}, x.maps...) {
		c.Binds = append(c.Binds, b.String())
	}
	if entrypoint != "" {
		c.Entrypoint = []string{entrypoint}
	}
	if len(args) > 0 {
		c.Cmd = args
	}
	r.system(x, strings.TrimSpace(fmt.Sprintf("docker run --rm --workdir %s %s %s", c.WorkingDir, name, strings.Join(args, " "))))
	exit, err := r.runContainer(x.ctx, c, x.streams[0], x.streams[1])
	x.streams[0].close()
	x.streams[1].close()
	x.endGroup()
	if err != nil {
		out := x.engineFault("run the action", err)
		if _, ok := errors.AsType[*docker.Error](err); ok {
			out.exit, out.exited = 125, true // as Docker's own program has it
		}
		return out
	}
	return x.ended(exit)
}

// runContainer makes a container, runs it to its end and removes it. When ctx is done
// its program gets the signals that a step gets.
func (r *run) runContainer(ctx context.Context, c docker.Config, stdout, stderr *stream) (guest.Exit, error) {
	cl := r.engineClient()
	id, err := cl.Create(r.hard, "hearth_"+strings.ToLower(ci.NewID()), c)
	if err != nil {
		return guest.Exit{}, err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(r.hard), tearDown)
		defer cancel()
		cl.Remove(end, id)
	}()
	out, err := cl.Attach(r.hard, id)
	if err != nil {
		return guest.Exit{}, err
	}
	defer out.Close()
	copied := make(chan error, 1)
	go func() { copied <- out.Copy(stdout, stderr) }()
	done := func() { out.Close(); <-copied }
	if err := cl.Start(r.hard, id); err != nil {
		done()
		return guest.Exit{}, err
	}
	var urge, kill, gone <-chan time.Time
	stop, cancelled := ctx.Done(), false
wait:
	for {
		select {
		case err = <-copied:
			break wait
		case <-stop:
			stop, cancelled = nil, true
			cl.Kill(r.hard, id, "SIGINT")
			urge, kill = time.After(stopUrge), time.After(stopGrace)
		case <-urge:
			cl.Kill(r.hard, id, "SIGTERM")
		case <-kill:
			cl.Kill(r.hard, id, "SIGKILL")
			gone = time.After(lingerTime)
		case <-gone:
			done()
			err = nil
			break wait
		case <-r.hard.Done():
			done()
			return guest.Exit{Cancelled: true}, context.Cause(r.hard)
		}
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return guest.Exit{}, err
	}
	code, err := cl.Wait(r.hard, id)
	return guest.Exit{Code: code, Cancelled: cancelled}, err
}

// actionVars are what only an action is told: its inputs, what its programs have saved,
// and where services are.
func (x *execution) actionVars() vars {
	extra := x.given.clone()
	for _, k := range slices.Sorted(maps.Keys(x.state)) {
		extra.set("STATE_"+k, x.state[k])
	}
	x.r.job.Results.add(&extra)
	x.r.job.IDToken.add(&extra)
	return extra
}
