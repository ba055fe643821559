// Package action finds out what `uses:` means: a place, the action's file, and a
// directory with its content.
//
//	uses: ./path            a directory of the workspace, known when the step runs
//	uses: $/path            a directory of the repository that the file with this step is in
//	uses: owner/repo/path@ref   a remote action: Resolver, mirror (resolve.go, mirror.go)
//	uses: docker://image    a container
//
// [Parse] reads action.yml with positions, strictly, with the reader of package
// workflow. [Resolver] brings remote actions: from a directory that stands in for
// one, from a cache of bare mirrors, or by git, without a token first. Archives
// and trees that come from elsewhere are read through git or os.Root, bounded.
// [Repository] gives the run's own repository to actions/checkout (source.go).
package action

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// Kind is a form of `uses:`.
type Kind uint8

// The forms.
const (
	Remote Kind = iota // owner/repo[/path]@ref
	Local              // ./path, in the workspace
	Own                // $/path, in the repository that the file is from
	Docker             // docker://image
)

// Ref is a `uses:` taken apart.
type Ref struct {
	Kind  Kind
	Owner string
	Repo  string
	Path  string // within the repository or workspace, clean; "" is its root
	Ref   string // branch, tag or commit
	Image string // of Docker
	// Commit is what Ref is locked to, "" for nothing.
	Commit string
}

// Repository is owner/repo, or "".
func (r Ref) Repository() string {
	if r.Owner == "" {
		return ""
	}
	return r.Owner + "/" + r.Repo
}

func (r Ref) String() string {
	switch r.Kind {
	case Local:
		return "./" + r.Path
	case Own:
		return "$/" + r.Path
	case Docker:
		return "docker://" + r.Image
	}
	return path.Join(r.Owner, r.Repo, r.Path) + "@" + r.Ref
}

// Is reports whether r is the remote action owner/repo, at whatever ref.
func (r Ref) Is(repository string) bool {
	return r.Kind == Remote && r.Path == "" && strings.EqualFold(r.Repository(), repository)
}

var (
	ownerName = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9_-]{0,99})$`)
	repoName  = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,100}$`)
)

// ParseRef takes a `uses:` apart.
func ParseRef(uses string) (Ref, error) {
	if image, ok := strings.CutPrefix(uses, "docker://"); ok {
		if image == "" {
			return Ref{}, fmt.Errorf("docker:// names no image")
		}
		return Ref{Kind: Docker, Image: image}, nil
	}
	if strings.HasPrefix(uses, "./") || strings.HasPrefix(uses, `.\`) {
		p, err := inside(strings.ReplaceAll(uses, `\`, "/"))
		return Ref{Kind: Local, Path: p}, err
	}
	if rest, ok := strings.CutPrefix(uses, "$/"); ok {
		p, err := inside(rest)
		return Ref{Kind: Own, Path: p}, err
	}
	place, ref, ok := strings.Cut(uses, "@")
	parts := strings.FieldsFunc(place, func(c rune) bool { return c == '/' || c == '\\' })
	if !ok || ref == "" || strings.Contains(ref, "@") || len(parts) < 2 {
		return Ref{}, fmt.Errorf("Expected format {org}/{repo}[/path]@ref. Actual '%s'", uses)
	}
	if !ownerName.MatchString(parts[0]) || !repoName.MatchString(parts[1]) || strings.Trim(parts[1], ".") == "" {
		return Ref{}, fmt.Errorf("'%s/%s' is not the name of a repository", parts[0], parts[1])
	}
	if !ValidRef(ref) {
		return Ref{}, fmt.Errorf("'%s' is not the name of a branch, tag or commit", ref)
	}
	p, err := inside(strings.Join(parts[2:], "/"))
	return Ref{Kind: Remote, Owner: parts[0], Repo: parts[1], Path: p, Ref: ref}, err
}

// inside cleans a relative path that must not lead out.
func inside(p string) (string, error) {
	c := path.Join(".", p)
	if c == ".." || strings.HasPrefix(c, "../") {
		return "", fmt.Errorf("the path '%s' leads out of its repository", p)
	}
	return path.Clean("/" + p)[1:], nil
}

// validRef refuses what git could take for something other than a ref's name.
func ValidRef(ref string) bool {
	if ref == "" || len(ref) > 250 || strings.HasPrefix(ref, "-") || strings.Contains(ref, "..") || strings.HasSuffix(ref, "/") ||
		strings.HasSuffix(ref, ".lock") {
		return false
	}
	for _, c := range ref {
		if c <= ' ' || c == 0x7f || strings.ContainsRune(`~^:?*[\`, c) {
			return false
		}
	}
	return true
}

// Action is an action's file as read.
type Action struct {
	Repository string // owner/repo it came from; "" for a local one
	Ref        string
	Path       string // of its directory within the repository
	File       string // as diagnostics name it

	Name        string
	Description string
	Inputs      []Input
	Outputs     []Output

	Using  string // composite, docker, node20, …
	Main   string // JavaScript: paths from the directory on, within the repository
	Pre    string
	Post   string
	PreIf  *expr.Expr // nil is always()
	PostIf *expr.Expr
	Image  string // docker: a Dockerfile's path, or docker://IMAGE
	// Of docker: what is run instead of the image's own program, before the job's first
	// step, and after its last; what it is given (nil: with.args), and variables.
	Entrypoint     string
	PreEntrypoint  string
	PostEntrypoint string
	Args           []*workflow.Value
	Env            *workflow.Value
	Steps          []*workflow.Step // composite
	Pos            workflow.Pos     // of runs.using
}

// Input is a declared input.
type Input struct {
	Name        string
	Required    bool
	Default     *workflow.Value // nil: none
	Deprecation string
	Pos         workflow.Pos
}

// Output is a declared output; Value is nil but for composite actions.
type Output struct {
	Name  string
	Value *workflow.Value
}

// Input returns the declared input with the name, compared without regard to
// case, or nil.
func (a *Action) Input(name string) *Input {
	for i := range a.Inputs {
		if strings.EqualFold(a.Inputs[i].Name, name) {
			return &a.Inputs[i]
		}
	}
	return nil
}

// Node is the major version of Node that the action runs on, or 0 for one that is
// not JavaScript. Versions that are gone run on 20, as on GitHub.
func (a *Action) Node() int {
	switch a.Using {
	case "node12", "node16", "node20":
		return 20
	case "node24":
		return 24
	}
	return 0
}

// MaxFile is the largest action.yml that is read, in bytes.
const MaxFile = 1 << 20

// Names are the files an action can be described by, in order.
func Names() []string { return []string{"action.yml", "action.yaml"} }

// Dockerfiles are the files that make an action of a directory which is described by
// none of [Names].
func Dockerfiles() []string { return []string{"Dockerfile", "dockerfile"} }

// FromDockerfile is the description of an action that has only a Dockerfile.
func FromDockerfile(name string) []byte {
	return []byte("runs: {using: docker, image: " + name + "}\n")
}

// Parse reads an action's file. dir is where the action is in its repository: what
// it runs may be anywhere in that, and nowhere else. With errors among the diagnostics
// the Action must not be run.
func Parse(file, dir string, src []byte) (*Action, []workflow.Diagnostic) {
	root, steps, diags := workflow.ReadAction(file, src, workflow.Options{})
	if root == nil || root.Kind != workflow.Mapping {
		if !workflow.Errors(diags) {
			diags = append(diags, workflow.Diagnostic{File: file, Rule: "action", Message: "The file holds no action",
				Hint: "An action is a mapping with the key runs."})
		}
		return nil, diags
	}
	a := &Action{File: file, Name: root.Get("name").Text(), Description: root.Get("description").Text(), Steps: steps}
	each(root.Get("inputs"), func(k, v *workflow.Value) {
		in := Input{Name: k.Str, Pos: k.Pos, Deprecation: v.Get("deprecationMessage").Text(), Default: v.Get("default")}
		if in.Default != nil && in.Default.Kind == workflow.Null {
			in.Default = nil
		}
		in.Required = strings.EqualFold(v.Get("required").Text(), "true")
		a.Inputs = append(a.Inputs, in)
	})
	each(root.Get("outputs"), func(k, v *workflow.Value) {
		a.Outputs = append(a.Outputs, Output{Name: k.Str, Value: v.Get("value")})
	})
	runs := root.Get("runs")
	using := runs.Get("using")
	a.Using, a.Pos = strings.ToLower(using.Text()), posOf(using, runs)
	a.Main, a.Pre, a.Post, a.Image = runs.Get("main").Text(), runs.Get("pre").Text(), runs.Get("post").Text(), runs.Get("image").Text()
	a.Entrypoint, a.PreEntrypoint, a.PostEntrypoint = runs.Get("entrypoint").Text(), runs.Get("pre-entrypoint").Text(), runs.Get("post-entrypoint").Text()
	a.Env = runs.Get("env")
	if args := runs.Get("args"); args != nil && args.Kind == workflow.Sequence {
		a.Args = append([]*workflow.Value{}, args.Items...)
	}
	if workflow.Errors(diags) {
		return a, diags
	}
	wrong := func(pos workflow.Pos, hint, format string, args ...any) {
		diags = append(diags, workflow.Diagnostic{File: file, Pos: pos, Near: pos, Rule: "action", Hint: hint, Message: fmt.Sprintf(format, args...)})
	}
	switch {
	case a.Using == "composite" && runs.Get("steps") == nil:
		wrong(a.Pos, "", "A composite action needs runs.steps")
	case a.Node() > 0 && a.Main == "":
		wrong(a.Pos, "", "A JavaScript action needs runs.main")
	case a.Using == "docker" && a.Image == "":
		wrong(a.Pos, "", "A Docker action needs runs.image")
	case a.Using != "composite" && a.Using != "docker" && a.Node() == 0:
		wrong(a.Pos, "Known are composite, node20, node24 and docker.", "'using: %s' is not supported", using.Text())
	}
	for _, p := range []string{a.Main, a.Pre, a.Post} {
		if _, err := inside(dir + "/" + p); err != nil || path.IsAbs(p) {
			wrong(a.Pos, "", "The path '%s' leads out of the action's repository", p)
		}
	}
	for _, c := range []struct {
		key string
		to  **expr.Expr
	}{{"pre-if", &a.PreIf}, {"post-if", &a.PostIf}} {
		v := runs.Get(c.key)
		if v == nil {
			continue
		}
		cond, ds := workflow.Condition(file, v, "github", "inputs", "strategy", "matrix", "steps", "job", "runner", "env", "always(0,0)", "failure(0,0)",
			"cancelled(0,0)", "success(0,0)", "hashFiles(1,255)")
		diags = append(diags, ds...)
		*c.to = cond.Expr
	}
	return a, diags
}

func each(v *workflow.Value, fn func(k, v *workflow.Value)) {
	if v == nil || v.Kind != workflow.Mapping {
		return
	}
	for _, p := range v.Pairs {
		if p.Key.Kind == workflow.String {
			fn(p.Key, p.Value)
		}
	}
}

func posOf(vs ...*workflow.Value) workflow.Pos {
	for _, v := range vs {
		if v != nil {
			return v.Pos
		}
	}
	return workflow.Pos{}
}

// InputError is a fault of what the author asked for, as opposed to one of ours:
// no such ref, no such repository.
type InputError struct{ Msg string }

func (e *InputError) Error() string { return e.Msg }

func inputError(format string, args ...any) error {
	return &InputError{Msg: fmt.Sprintf(format, args...)}
}
