package engine

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/docker"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/workflow"
)

var dockerWord = regexp.MustCompile(`(?i)\bdocker\b`)

// Bounds on containers.
const (
	maxContainers = 64
	// maxServiceLog is how much of what a service printed is shown.
	maxServiceLog = 4 << 20
	// pullTries is how often an image is pulled, as on GitHub.
	pullTries = 3
	// tearDown is how long the removal of the containers may take; they go with the
	// machine anyway.
	tearDown = 30 * time.Second
)

// engineClient speaks to the machine's container engine.
func (r *run) engineClient() *docker.Client {
	r.engineOnce.Do(func() {
		r.engine = docker.New(func(ctx context.Context) (net.Conn, error) { return r.job.Guest.Dial(ctx, guest.Engine) })
	})
	return r.engine
}

// closeEngine ends the connections to the engine.
func (r *run) closeEngine() {
	r.engineOnce.Do(func() {})
	if r.engine != nil {
		r.engine.Close()
	}
}

// engineFault turns an error of the engine into the outcome of the step: its "no", and
// nonsense from it, are the step's failure.
func (x *execution) engineFault(doing string, err error) outcome {
	if _, ok := errors.AsType[*docker.Error](err); ok || errors.Is(err, docker.ErrAnswer) {
		msg := fmt.Sprintf("Could not %s: %s", doing, err)
		x.error(msg)
		return outcome{c: ci.Failure, reason: msg}
	}
	if e, ok := errors.AsType[*guest.Error](err); ok && e.Op == "dial" {
		msg := fmt.Sprintf("Could not %s: the machine's image has no container engine that answers (%s)", doing, guestText(err))
		x.error(msg)
		return outcome{c: ci.Failure, reason: msg}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		msg := fmt.Sprintf("Could not %s: the container engine ended the connection", doing)
		x.error(msg)
		return outcome{c: ci.Failure, reason: msg}
	}
	return x.guestFault(doing, err)
}

// onSuccess is the condition of a step that goes on only while the job does.
var onSuccess = func() *expr.Expr {
	e, err := expr.Parse("success()", nil)
	if err != nil {
		panic(err)
	}
	return e
}()

// startContainers is the step before the first one: the job's network, its container
// and its services, ready to be used.
func (r *run) startContainers(top *scope, job *container, services []*container) {
	x := r.newExec(top, &workflow.Step{}, r.nextNumber(), "__containers")
	x.name = "Initialize containers"
	r.extra(x, onSuccess, func() outcome {
		out := x.bringUp(job, services)
		if out.c != ci.Success {
			r.mu.Lock()
			r.reason = cmp.Or(r.reason, out.reason)
			r.mu.Unlock()
		}
		return out
	})
	if job != nil && r.container == nil {
		// There is nothing that steps could run in.
		r.cancelSteps("the job's container could not be started")
	}
}

func (x *execution) bringUp(job *container, services []*container) outcome {
	r, cl := x.r, x.r.engineClient()
	all := services
	if job != nil {
		all = append([]*container{job}, services...)
	}
	if len(all) > maxContainers {
		msg := fmt.Sprintf("The job has %d containers; at most %d are possible.", len(all), maxContainers)
		x.error(msg)
		return outcome{c: ci.Failure, reason: msg}
	}
	x.group("Checking docker version")
	version, err := cl.Version(x.ctx)
	if err != nil {
		x.ungroup()
		return x.engineFault("start the job's containers", err)
	}
	r.system(x, "Docker daemon API version: "+version)
	x.ungroup()

	name := "github_network_" + strings.ToLower(ci.NewID())
	x.group("Create local container network")
	r.system(x, "docker network create "+name)
	id, err := cl.CreateNetwork(x.ctx, name)
	x.ungroup()
	if err != nil {
		return x.engineFault("create the containers' network", err)
	}
	r.mu.Lock()
	r.network, r.networkID = name, id
	r.mu.Unlock()

	for _, c := range all {
		title := "Starting job container"
		if c.service != "" {
			title = "Starting " + c.service + " service container"
		}
		x.group(title)
		out := x.startContainer(c)
		x.ungroup()
		if out != nil {
			return *out
		}
	}
	x.group("Waiting for all services to be ready")
	defer x.ungroup()
	for _, c := range services {
		if out := x.awaitHealth(c); out != nil {
			return *out
		}
	}
	return outcome{c: ci.Success}
}

// group and ungroup put what the runner itself says into a group.
func (x *execution) group(title string) {
	x.r.emit(x, ci.Record{Type: ci.Group, Stream: "start", Text: title})
}

func (x *execution) ungroup() { x.r.emit(x, ci.Record{Type: ci.Group, Stream: "end"}) }

// startContainer pulls, makes and starts one container.
func (x *execution) startContainer(c *container) *outcome {
	r, cl := x.r, x.r.engineClient()
	fail := func(format string, args ...any) *outcome {
		msg := fmt.Sprintf(format, args...)
		x.error(msg)
		return &outcome{c: ci.Failure, reason: msg}
	}
	if err := r.hide(c.password); err != nil {
		return fail("The password for %s cannot be masked: %s", c.image, err)
	}
	name, out := x.pull(c.image, docker.Auth{Username: c.username, Password: c.password})
	if out != nil {
		return out
	}
	id, out := x.createContainer(c, name)
	if out != nil {
		return out
	}
	c.id = id
	r.mu.Lock()
	r.containers = append(r.containers, c)
	r.mu.Unlock()
	r.system(x, "docker start "+c.id)
	if err := cl.Start(x.ctx, c.id); err != nil {
		o := x.engineFault("start the "+c.label(), err)
		return &o
	}
	state, err := cl.Inspect(x.ctx, c.id)
	if err != nil {
		o := x.engineFault("look at the "+c.label(), err)
		return &o
	}
	if !state.Running {
		x.serviceLog(c)
		text := fmt.Sprintf("Docker container %s is not in running state: it is %s, exit code %d. %s", c.id, state.Status, state.ExitCode, state.Error)
		if c.service == "" {
			return fail("%s", strings.TrimSpace(text))
		}
		x.say("warning", strings.TrimSpace(text))
	}
	c.open = state.Ports
	if c.service == "" {
		for _, kv := range state.Env {
			if v, ok := strings.CutPrefix(kv, "PATH="); ok {
				c.path = v
			}
		}
		r.container = c
	}
	return nil
}

// pull brings an image into the machine and returns the name that it has there.
func (x *execution) pull(image string, auth docker.Auth) (string, *outcome) {
	r, cl := x.r, x.r.engineClient()
	registry := docker.RegistryOf(image)
	if auth.Username == "" || auth.Password == "" {
		auth = docker.Auth{} // as on GitHub: a secret that is not there is nobody
	}
	if auth.Username == "" && r.job.Token != "" && (registry == "ghcr.io" || registry == "containers.pkg.github.com") {
		auth.Username, auth.Password = r.job.Run.GitHub.Get("actor").ToString(), r.job.Token // as on GitHub
	}
	if auth.Server = registry; registry == docker.Hub {
		auth.Server = "https://index.docker.io/v1/"
	}
	from := image
	if reg := r.job.Images; reg != nil {
		if auth.Username != "" {
			reg.Login(registry, auth.Username, auth.Password)
			auth = docker.Auth{}
		}
		var err error
		if from, err = reg.Via(image); err != nil {
			x.error(err.Error())
			return "", &outcome{c: ci.Failure, reason: err.Error()}
		}
	}
	for try := 1; ; try++ {
		r.system(x, "docker pull "+image)
		err := cl.Pull(x.ctx, from, auth, func(line string) { r.system(x, line) })
		if err == nil {
			break
		}
		said, ok := errors.AsType[*docker.Error](err)
		if !ok || try == pullTries || !again(said) {
			o := x.engineFault("pull the image "+image, err)
			return "", &o
		}
		d := time.Second + rand.N(9*time.Second)
		x.say("warning", fmt.Sprintf("Docker pull failed: %s. Back off %.1f seconds before retry.", said, d.Seconds()))
		select {
		case <-time.After(d):
		case <-x.ctx.Done():
			return "", &outcome{c: ci.Cancelled}
		}
	}
	if from == image || strings.Contains(image, "@") { // a digest is no name to give
		return from, nil
	}
	if err := cl.Tag(x.ctx, from, image); err != nil {
		o := x.engineFault("name the image "+image, err)
		return "", &o
	}
	return image, nil
}

// again reports whether another pull may end otherwise: not where there is no such
// image, or nobody is let in.
func again(e *docker.Error) bool {
	text := strings.ToLower(e.Message)
	return e.Status >= 500 && !slices.ContainsFunc([]string{"unauthorized", "denied", "not found", "manifest unknown", "invalid reference",
		"no basic auth", "no such host"},
		func(s string) bool { return strings.Contains(text, s) })
}

// createContainer makes a container by the engine's own program, since the options are
// its: nobody else can read them. Values of variables go to it by its standard input,
// or by its environment if they have several lines, and never by its command line.
func (x *execution) createContainer(c *container, image string) (id string, out *outcome) {
	r := x.r
	fail := func(format string, args ...any) (string, *outcome) {
		msg := fmt.Sprintf(format, args...)
		x.error(msg)
		return "", &outcome{c: ci.Failure, reason: msg}
	}
	kind := cmp.Or(c.service, "job")
	c.name = strings.ToLower(fmt.Sprintf("%s_%s_%s", sanitize(kind), sanitize(c.image), ci.NewID()[20:]))
	argv := []string{"docker", "create", "--name", c.name, "--label", "hearth"}
	env := c.env.clone()
	var binds mapping
	if c.service == "" {
		c.maps = r.layout.jobMounts()
		// Not in the machines of every image.
		if _, err := r.job.Guest.Stat(x.ctx, r.layout.Glibc); err == nil {
			c.maps = append(c.maps, bind{from: r.layout.Glibc, to: guest.GlibcInside, readOnly: true})
		} else if _, ok := errors.AsType[*guest.Error](err); !ok {
			o := x.guestFault("look for what is to be in the "+c.label(), err)
			return "", &o
		}
		binds = append(mapping{{from: engineSocket, to: engineSocket}}, c.maps...)
		env.set("HOME", "/github/home")
		argv = append(argv, "--workdir", c.maps.inside(r.layout.Workspace))
	}
	argv = append(argv, "--network", r.network)
	if c.service != "" {
		argv = append(argv, "--network-alias", c.service)
	}
	for _, p := range c.ports {
		argv = append(argv, "-p", p)
	}
	argv = append(argv, splitArgs(c.options)...)

	env.set("GITHUB_ACTIONS", "true")
	if !env.has("CI") {
		env.set("CI", "true")
	}
	var file strings.Builder
	var environ []string
	for _, kv := range env.list() {
		k, v, _ := strings.Cut(kv, "=")
		switch {
		case strings.ContainsAny(k, " \t\r\n#"):
			return fail("The %s cannot have a variable called '%s'", c.label(), shortName(oneLine(k)))
		case !strings.ContainsAny(v, "\r\n") && len(kv) < 32<<10:
			fmt.Fprintf(&file, "%s\n", kv)
		case strings.HasPrefix(k, "DOCKER_") || strings.HasPrefix(k, "LD_") || slices.Contains([]string{"PATH", "HOME", "GODEBUG"}, k):
			return fail("The %s cannot have a variable '%s' of several lines", c.label(), k)
		default:
			argv, environ = append(argv, "-e", k), append(environ, kv)
		}
	}
	if msg := tooMuch(environ); msg != "" {
		return fail("%s", msg)
	}
	argv = append(argv, "--env-file", "/dev/stdin")
	for _, b := range binds {
		argv = append(argv, "-v", b.String())
	}
	for _, v := range c.volumes {
		argv = append(argv, "-v", v)
	}
	switch {
	case c.service == "":
		argv = append(argv, "--entrypoint", "tail", image, "-f", "/dev/null")
	case c.entrypoint != "":
		argv = append(argv, "--entrypoint", c.entrypoint, image)
	default:
		argv = append(argv, image)
	}
	argv = append(argv, splitArgs(c.command)...)
	r.system(x, strings.Join(argv, " "))

	var said, problem limited
	exit, err := r.job.Guest.Exec(x.ctx, guest.Cmd{Argv: argv, Env: environ, Dir: r.layout.Workspace, Stdin: strings.NewReader(file.String()),
		Stdout: &said, Stderr: &problem})
	for line := range strings.Lines(problem.String()) {
		r.system(x, strings.TrimRight(line, "\n"))
	}
	switch {
	case err != nil && guest.StartFailed(err):
		return fail("The machine's image has no container engine: %s", guestText(err))
	case err != nil:
		o := x.guestFault("create the "+c.label(), err)
		return "", &o
	case exit.Cancelled || context.Cause(x.ctx) != nil:
		return "", &outcome{c: ci.Cancelled}
	case !exit.OK():
		return fail("Docker create failed with exit code %d: %s", exit.Code, firstLine(problem.String()))
	}
	id = strings.TrimSpace(said.String())
	if !docker.ValidID(id) {
		return fail("Docker create failed: it says '%s' where the container's id should be", shortName(oneLine(id)))
	}
	return id, nil
}

// awaitHealth waits until a service whose image or options have a health check is
// healthy.
func (x *execution) awaitHealth(c *container) *outcome {
	wait := time.Second / 2
	for {
		state, err := x.r.engineClient().Inspect(x.ctx, c.id)
		if err != nil {
			o := x.engineFault("look at the "+c.label(), err)
			return &o
		}
		health := state.Health
		if health == "starting" && !state.Running {
			health = "not running any more"
		}
		switch health {
		case "":
			return nil
		case "healthy":
			x.r.system(x, c.service+" service is healthy.")
			return nil
		case "starting":
		default:
			x.serviceLog(c)
			msg := fmt.Sprintf("Failed to initialize, %s service is %s.", c.service, health)
			x.error(msg)
			return &outcome{c: ci.Failure, reason: msg}
		}
		x.r.system(x, fmt.Sprintf("%s service is starting, waiting %v before checking again.", c.service, wait))
		select {
		case <-time.After(wait):
			wait = min(2*wait, 4*time.Second)
		case <-x.ctx.Done():
			return &outcome{c: ci.Cancelled}
		}
	}
}

// serviceLog shows what a container has printed. Nothing in it is a command.
func (x *execution) serviceLog(c *container) {
	c.shown = true
	x.r.system(x, "docker logs "+c.name)
	var shown [2]*plain
	for i := range shown {
		shown[i] = &plain{s: x.streams[i]}
	}
	ctx, cancel := context.WithTimeout(x.r.hard, tearDown)
	defer cancel()
	err := x.r.engineClient().Logs(ctx, c.id, maxServiceLog, shown[0], shown[1])
	for i := range shown {
		shown[i].close()
	}
	if err != nil {
		x.say("warning", fmt.Sprintf("The log of the %s could not be read: %s", c.label(), err))
	}
}

// plain prints lines of which none is a command, whatever it looks like.
type plain struct {
	s   *stream
	buf []byte
}

func (p *plain) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		if hard := p.s.x.r.hard; hard.Err() != nil {
			return n - len(b), context.Cause(hard)
		}
		i := slices.Index(b, '\n')
		if i < 0 {
			i = min(len(b), maxWhole)
			if p.buf = append(p.buf, b[:i]...); len(p.buf) >= maxWhole {
				p.close()
			}
			b = b[i:]
			continue
		}
		p.buf = append(p.buf, b[:i]...)
		p.end()
		b = b[i+1:]
	}
	return n, nil
}

func (p *plain) end() {
	p.s.print(strings.TrimRight(string(p.buf), "\r"))
	p.buf = p.buf[:0]
}

func (p *plain) close() {
	if len(p.buf) > 0 {
		p.end()
	}
}

// stopContainers is the step after the last one.
func (r *run) stopContainers(top *scope) {
	r.mu.Lock()
	list, network := slices.Clone(r.containers), r.networkID
	r.mu.Unlock()
	if network == "" || r.lost() != nil || r.hard.Err() != nil {
		return
	}
	x := r.newExec(top, &workflow.Step{}, r.nextNumber(), "__stop_containers")
	x.name = "Stop containers"
	r.extra(x, nil, func() outcome {
		ctx, cancel := context.WithTimeout(r.hard, tearDown)
		defer cancel()
		cl := r.engineClient()
		for _, c := range list {
			if c.service != "" && !c.shown {
				x.group("Print service container logs: " + c.name)
				x.serviceLog(c)
				x.ungroup()
			}
			r.system(x, "Stop and remove container: "+c.name)
			if err := cl.Remove(ctx, c.id); err != nil {
				x.say("warning", fmt.Sprintf("The %s could not be removed: %s", c.label(), err))
			}
		}
		r.system(x, "Remove container network: "+r.network)
		if err := cl.RemoveNetwork(ctx, network); err != nil {
			x.say("warning", fmt.Sprintf("The containers' network could not be removed: %s", err))
		}
		return outcome{c: ci.Success} // the machine goes, and all of it
	})
}

// containerContexts are job.container and job.services; null before there are any.
func (r *run) containerContexts() (job, services expr.Value) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.network == "" {
		return expr.Null(), expr.Null()
	}
	jm, sm := expr.NewMap(), expr.NewMap()
	jm.Set("network", expr.String(r.network))
	for _, c := range r.containers {
		if c.service == "" {
			jm.Set("id", expr.String(c.id))
			continue
		}
		ports := expr.NewMap()
		for inside, outside := range c.open {
			ports.Set(inside, expr.String(outside))
		}
		m := expr.NewMap()
		m.Set("id", expr.String(c.id))
		m.Set("ports", expr.Object(ports))
		m.Set("network", expr.String(r.network))
		sm.Set(c.service, expr.Object(m))
	}
	return expr.Object(jm), expr.Object(sm)
}

// process runs what a step is, in the job's container if it has one; argv, dir and
// environ are of the machine.
func (x *execution) process(argv []string, dir string, environ []string) (guest.Exit, error) {
	r := x.r
	if r.container == nil {
		return r.job.Guest.Exec(x.ctx, guest.Cmd{
			Argv: argv, Env: environ, Dir: dir,
			Stdout: x.streams[0], Stderr: x.streams[1],
			StopSignal: "SIGINT", Urge: stopUrge, Grace: stopGrace, Linger: lingerTime,
		})
	}
	return r.execIn(x.ctx, r.container, argv, dir, environ, x.streams[0], x.streams[1])
}

// translated are variables as a container sees them: a value that is a path of the
// machine which is inside, too, is that path.
func (m mapping) translated(environ []string) []string {
	out := make([]string, len(environ))
	for i, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		out[i] = k + "=" + m.inside(v)
	}
	return out
}

// execIn runs a command in a container that runs. When ctx is done, it and all that it
// started are ended as steps are.
func (r *run) execIn(ctx context.Context, c *container, argv []string, dir string, environ []string, stdout, stderr io.Writer) (guest.Exit, error) {
	return r.execAs(ctx, c, "", argv, dir, environ, stdout, stderr)
}

// execAs is execIn as another user than the container's.
func (r *run) execAs(ctx context.Context, c *container, user string, argv []string, dir string, environ []string,
	stdout, stderr io.Writer) (guest.Exit, error) {
	cl := r.engineClient()
	if err := context.Cause(ctx); err != nil {
		return guest.Exit{Cancelled: true}, nil
	}
	inside := slices.Clone(argv)
	for i := range inside {
		inside[i] = c.maps.inside(inside[i])
	}
	id, err := cl.NewExec(r.hard, c.id, docker.Exec{Argv: inside, Env: c.maps.translated(environ), Dir: c.maps.inside(dir), User: user})
	if err != nil {
		return guest.Exit{}, err
	}
	out, err := cl.StartExec(r.hard, id)
	if err != nil {
		return guest.Exit{}, err
	}
	defer out.Close()
	copied := make(chan error, 1)
	go func() { copied <- out.Copy(stdout, stderr) }()

	var urge, kill, gone <-chan time.Time
	stop, cancelled, pid := ctx.Done(), false, 0
	look := time.NewTicker(2 * lingerTime)
	defer look.Stop()
wait:
	for {
		select {
		case err = <-copied:
			break wait
		case <-stop:
			stop, cancelled, pid = nil, true, r.pidOf(id)
			r.signal(pid, "INT", "group")
			urge, kill = time.After(stopUrge), time.After(stopGrace)
		case <-urge:
			r.signal(pid, "TERM", "group")
		case <-kill:
			r.signal(pid, "KILL", "tree")
			gone = time.After(lingerTime)
		case <-gone: // what has left the tree holds its output
			out.Close()
			<-copied
			err = nil
			break wait
		case <-look.C:
			// The output of what has ended may be held by what it started.
			if s, e := cl.InspectExec(r.hard, id); e == nil && !s.Running && gone == nil {
				gone = time.After(lingerTime)
			}
		case <-r.hard.Done():
			r.signal(max(pid, r.pidOf(id)), "KILL", "tree")
			out.Close()
			<-copied
			return guest.Exit{Cancelled: true}, context.Cause(r.hard)
		}
	}
	if err != nil {
		if _, ok := errors.AsType[net.Error](err); !ok && !errors.Is(err, io.ErrUnexpectedEOF) {
			return guest.Exit{}, err
		}
	}
	if cancelled { // what it started and did not end with it
		r.signal(pid, "KILL", "tree")
	}
	exit := guest.Exit{Cancelled: cancelled}
	for try := 0; ; try++ {
		s, err := cl.InspectExec(r.hard, id)
		switch {
		case docker.NotFound(err): // with its container
			exit.Code = 137
			return exit, nil
		case err != nil:
			return exit, err
		case !s.Running:
			exit.Code = s.ExitCode
			return exit, nil
		case try > 100 && cancelled:
			exit.Code = 137
			return exit, nil
		case try > 100:
			return exit, fmt.Errorf("%w: a command that has ended runs", docker.ErrAnswer)
		}
		time.Sleep(min(time.Duration(try+1)*5*time.Millisecond, 200*time.Millisecond))
	}
}

// signalScript sends a signal to a process group, or to a process and all that came of
// it: its descendants, and what is in a session with one of them.
const signalScript = `sig=$1 root=$2
[ "$root" -gt 1 ] || exit 0
if [ "$3" = group ]; then kill -s "$sig" -- "-$root" 2>/dev/null || kill -s "$sig" -- "$root"; exit 0; fi
all=" $root " more=1
while [ $more = 1 ]; do
	more=0
	for f in /proc/[0-9]*/stat; do
		read -r line <"$f" || continue
		pid=${f#/proc/} pid=${pid%/stat}
		case $all in *" $pid "*) continue;; esac
		set -- ${line##*) }
		case $all in *" $2 "*|*" $4 "*) all="$all$pid " more=1;; esac
	done
done 2>/dev/null
kill -s "$sig" -- $all 2>/dev/null
exit 0
`

// pidOf is the process of an exec, which is one of the machine's as all are; 0 if there
// is none (any more).
func (r *run) pidOf(exec string) int {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.hard), 10*time.Second)
	defer cancel()
	for range 20 {
		s, err := r.engineClient().InspectExec(ctx, exec)
		if err != nil || !s.Running || s.PID > 1 {
			return s.PID
		}
		time.Sleep(50 * time.Millisecond)
	}
	return 0
}

// signal sends a signal to a process of the machine: to its "group" or its "tree".
func (r *run) signal(pid int, name, what string) {
	if pid <= 1 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.hard), 10*time.Second)
	defer cancel()
	r.job.Guest.Exec(ctx, guest.Cmd{Argv: []string{"/bin/sh", "-c", signalScript, "sh", name, strconv.Itoa(pid), what}, Dir: "/", User: "root"})
}

// lookInside asks once what the job's container is like: its user, and whether its C
// library is musl, and something is where Node looks for glibc's loader.
const lookInside = `echo "$(id -u):$(id -g)"
for f in /lib/ld-musl-*.so.1; do [ ! -e "$f" ] || echo musl; done
[ ! -e ` + loaderPath + ` ] || echo loader`

// loaderPath is where programs that are linked against glibc have their loader.
const loaderPath = "/lib64/ld-linux-x86-64.so.2"

// inContainer says whose files in the job's container are, "" without one.
func (r *run) inContainer(ctx context.Context) (owner string) {
	if r.container == nil {
		return ""
	}
	r.insideOnce.Do(func() {
		var out limited
		r.owner = "0:0" // an image that cannot say has nobody else
		if _, err := r.execIn(ctx, r.container, []string{"sh", "-c", lookInside}, "/", nil, &out, io.Discard); err != nil {
			return
		}
		for n, line := range strings.Split(out.String(), "\n") {
			if uid, gid, ok := strings.Cut(line, ":"); n == 0 && ok {
				_, e1 := strconv.ParseUint(uid, 10, 31)
				_, e2 := strconv.ParseUint(gid, 10, 31)
				if e1 == nil && e2 == nil {
					r.owner = line
				}
			}
			r.musl, r.loader = r.musl || line == "musl", r.loader || line == "loader"
		}
	})
	return r.owner
}

// nodeFor is what runs JavaScript actions: Node's program, of the machine or for the
// job's container. The machine's is linked against glibc; where a container has musl,
// glibc comes along, and a link in the place that Node looks for its loader in. Where
// there cannot be one, the loader is run by its path. That is second best: what a
// program then knows of its own path is the loader's.
func (x *execution) nodeFor(version int) (argv []string, out *outcome) {
	r := x.r
	bin := path.Join(r.layout.Tools, fmt.Sprintf("node%d", version), "bin", "node")
	r.inContainer(x.ctx)
	if !r.musl {
		return []string{bin}, nil
	}
	loader := path.Join(r.layout.Glibc, path.Base(loaderPath))
	if r.container.maps.inside(loader) == loader {
		msg := fmt.Sprintf("JavaScript actions cannot run in this container: the C library of its image is musl (as in Alpine), and this machine's image has no other for Node.js %d. `hearth image build` makes one that has; or use an image with glibc (debian, ubuntu), or run the action in a job without a container.", version)
		x.error(msg)
		return nil, &outcome{c: ci.Failure, reason: msg}
	}
	r.linkOnce.Do(func() {
		if r.loader {
			return // something of the image's own
		}
		const script = `mkdir -p "${2%/*}" && ln -s "$1" "$2"`
		exit, err := r.execAs(x.ctx, r.container, "0", []string{"sh", "-c", script, "sh", loader, loaderPath}, "/", nil, io.Discard, io.Discard)
		r.linked = err == nil && exit.OK()
	})
	if r.linked {
		return []string{bin}, nil
	}
	return []string{loader, bin}, nil
}

// paths says under which paths what x runs sees the machine's directories.
func (x *execution) paths() mapping {
	switch {
	case x == nil:
		return nil
	case x.maps != nil:
		return x.maps
	case x.r.container != nil:
		return x.r.container.maps
	}
	return nil
}
