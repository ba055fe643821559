package engine

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"fmt"
	"path"
	"strings"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// container is a job's container or one of its services: what the workflow asks for,
// evaluated, and what became of it.
type container struct {
	service    string // its id; "" is the job's container
	image      string
	username   string
	password   string
	env        vars
	ports      []string
	volumes    []string
	options    string
	entrypoint string // of services, as is command
	command    string

	name  string // in the engine
	id    string
	path  string            // PATH inside
	open  map[string]string // as published: inside → outside
	maps  mapping
	shown bool // its log was
}

// containersOf are the container and the services that a job asks for. An image that
// is empty text is none, as a matrix uses it for "without one".
func containersOf(j *plan.Job, env *expr.Env) (job *container, services []*container, err error) {
	d := j.Definition
	if d.Container != nil {
		v, err := d.Container.Eval(env)
		if err != nil {
			return nil, nil, err
		}
		if job, err = newContainer(d.Container, v, env); err != nil {
			return nil, nil, fmt.Errorf("container: %w", err)
		}
	}
	if d.Services != nil {
		v, err := d.Services.Eval(env)
		if err != nil {
			return nil, nil, err
		}
		if m := v.AsMap(); m != nil {
			for name, s := range m.All() {
				c, err := newContainer(d.Services.Get(name), s, env)
				switch {
				case err != nil:
					return nil, nil, fmt.Errorf("service '%s': %w", name, err)
				case c == nil:
				case strings.ContainsAny(name, " \t\r\n"):
					return nil, nil, fmt.Errorf("service '%s': its name has a blank in it, which no host's name can have", oneLine(name))
				default:
					c.service = name
					services = append(services, c)
				}
			}
		}
	}
	return job, services, nil
}

// newContainer reads one container; nil is one that is not wanted. written is where it
// is in the file, for the names of variables, whose case an evaluated mapping has lost.
func newContainer(written *workflow.Value, v expr.Value, env *expr.Env) (*container, error) {
	c := &container{}
	image := v
	if v.AsMap() != nil {
		image = v.Get("image")
	} else if !v.Primitive() {
		return nil, fmt.Errorf("it is neither the name of an image nor a mapping")
	}
	c.image = strings.TrimSpace(strings.TrimPrefix(image.ToString(), "docker://"))
	if c.image == "" {
		return nil, nil
	}
	if err := checkImage(c.image); err != nil {
		return nil, err
	}
	if v.AsMap() == nil {
		return c, nil
	}
	c.username, c.password = v.At("credentials", "username").ToString(), v.At("credentials", "password").ToString()
	c.options, c.entrypoint, c.command = v.Get("options").ToString(), v.Get("entrypoint").ToString(), v.Get("command").ToString()
	for _, p := range v.Get("ports").AsArray() {
		c.ports = append(c.ports, p.ToString())
	}
	for _, p := range v.Get("volumes").AsArray() {
		c.volumes = append(c.volumes, p.ToString())
	}
	if own := written.Get("env"); own != nil {
		var err error
		if c.env, err = evalVars(own, env); err != nil {
			return nil, err
		}
	} else if m := v.Get("env").AsMap(); m != nil {
		for k, v := range m.All() {
			c.env.set(k, v.ToString())
		}
	}
	return c, nil
}

// checkImage refuses what can be no image's name, before a program takes it for an
// option, or a path of a request.
func checkImage(image string) error {
	bad := strings.ContainsFunc(image, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(`?#%\"'<>|*&;$(){}`, c) })
	if bad || len(image) > 500 || strings.HasPrefix(image, "-") || strings.HasPrefix(image, "/") || strings.Contains(image, "..") {
		return fmt.Errorf("invalid reference format: '%s' is not the name of an image", shortName(image))
	}
	return nil
}

// label is what people know a container by.
func (c *container) label() string {
	if c.service == "" {
		return "job container"
	}
	return c.service + " service"
}

// mapping says under which paths directories of the machine are inside a container.
// The first that fits counts.
type mapping []bind

type bind struct {
	from, to string
	readOnly bool
}

func (b bind) String() string {
	s := b.from + ":" + b.to
	if b.readOnly {
		s += ":ro"
	}
	return s
}

// inside is what a path of the machine is called in the container.
func (m mapping) inside(p string) string {
	for _, b := range m {
		if p == b.from || strings.HasPrefix(p, b.from+"/") {
			return b.to + p[len(b.from):]
		}
	}
	return p
}

// outside is what a path of the container is called in the machine.
func (m mapping) outside(p string) string {
	for _, b := range m {
		if p == b.to || strings.HasPrefix(p, b.to+"/") {
			return b.from + p[len(b.to):]
		}
	}
	return p
}

// engineSocket is where the engine's socket is in the machine and in containers.
const engineSocket = "/var/run/docker.sock"

// jobMounts are where a job's container has the machine's directories, as on GitHub.
func (l Layout) jobMounts() mapping {
	work := path.Dir(path.Dir(l.Workspace))
	m := mapping{
		{from: path.Join(l.Temp, "_github_home"), to: "/github/home"},
		{from: path.Join(l.Temp, "_github_workflow"), to: "/github/workflow"},
		{from: work, to: "/__w"},
		{from: l.ToolCache, to: "/__t"},
		{from: l.Tools, to: "/__e", readOnly: true},
	}
	for _, b := range []bind{{from: l.Temp, to: "/__w/_temp"}, {from: l.Actions, to: "/__w/_actions"}} {
		if !strings.HasPrefix(b.from, work+"/") {
			m = append(m, b)
		}
	}
	return m
}

// actionMounts are where the container of a Docker action has them.
func (l Layout) actionMounts() mapping {
	return mapping{
		{from: path.Join(l.Temp, "_github_home"), to: "/github/home"},
		{from: path.Join(l.Temp, "_github_workflow"), to: "/github/workflow"},
		{from: path.Join(l.Temp, "_runner_file_commands"), to: "/github/file_commands"},
		{from: l.Temp, to: "/github/runner_temp"},
		{from: l.Workspace, to: "/github/workspace"},
	}
}

// splitArgs splits what GitHub's runner appends to a command line as its platform
// does: at blanks, but for what is in double quotes; a backslash is one but before a
// quote.
func splitArgs(s string) []string {
	var out []string
	var b strings.Builder
	quoted, any := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s) && s[i+1] == '"':
			b.WriteByte('"')
			any = true
			i++
		case c == '\\' && i+1 < len(s) && s[i+1] == '\\' && quotes(s[i:]):
			b.WriteByte('\\')
			any = true
			i++
		case c == '"':
			quoted, any = !quoted, true
		case !quoted && (c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			if any {
				out = append(out, b.String())
			}
			b.Reset()
			any = false
		default:
			b.WriteByte(c)
			any = true
		}
	}
	if any {
		out = append(out, b.String())
	}
	return out
}

// quotes reports whether backslashes at the beginning of s lead up to a quote.
func quotes(s string) bool {
	return strings.HasPrefix(strings.TrimLeft(s, `\`), `"`)
}

// sanitize is a name as part of a container's.
func sanitize(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			return c
		}
		return -1
	}, s)
}

// Containers reports whether a job wants a machine in which a container engine runs:
// it has a container or services, or a step that is one or speaks of Docker; and
// whether it is sure to need one, so that it cannot run where there is none. Of a job
// that does not want one and asks for it all the same, the engine starts then.
func Containers(j *plan.Job) (want, need bool) {
	d := j.Definition
	if d == nil {
		return j.Containers, j.Containers
	}
	if need = j.Containers; d.Container != nil && d.Container.Kind != workflow.Null {
		want = !d.Container.IsLiteral() || d.Container.Text() != ""
		need = need || d.Container.Kind == workflow.String && d.Container.Text() != ""
	}
	want = want || need || d.Services != nil
	for s := range workflow.EachStep(d.Steps) {
		want = want || strings.HasPrefix(s.Uses, "docker://") || speaksOfDocker(s)
	}
	return want, need
}

// speaksOfDocker reports whether a step runs Docker's program, as far as can be read.
func speaksOfDocker(s *workflow.Step) bool {
	if s.Run != nil {
		text := s.Run.Text()
		if s.Run.Kind == workflow.Expression {
			text = s.Run.Str
		}
		return dockerWord.MatchString(text)
	}
	return strings.HasPrefix(strings.ToLower(s.Uses), "docker/")
}
