package engine

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"fmt"
	"path"
	"strings"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// shell is how a script is run.
type shell struct {
	words   []string // {0} stands for the script's path
	ext     string
	display string
	pwsh    bool
}

// builtinShells are the shells that a workflow can name, with how GitHub calls
// them on Linux. The name "" is a step that names none.
func builtinShell(name string) (shell, bool) {
	var format, ext string
	switch name {
	case "":
		format, ext = "bash -e {0}", ".sh"
	case "bash":
		format, ext = "bash --noprofile --norc -e -o pipefail {0}", ".sh"
	case "sh":
		format, ext = "sh -e {0}", ".sh"
	case "python":
		format, ext = "python {0}", ".py"
	case "pwsh":
		return shell{words: []string{"pwsh", "-command", ". '{0}'"}, ext: ".ps1", display: "pwsh -command \". '{0}'\"", pwsh: true}, true
	default:
		return shell{}, false
	}
	return shell{words: strings.Fields(format), ext: ext, display: format}, true
}

// elsewhere says of a shell that there is on other systems that there is none here. What
// is no shell anywhere fails its step when it is reached, as on GitHub.
func elsewhere(value string) error {
	if value == "cmd" || value == "powershell" {
		return fmt.Errorf("The shell '%s' is only on Windows. Use bash, sh, python or pwsh.", value)
	}
	return nil
}

// parseShell reads the value of a shell key.
func parseShell(value string) (shell, error) {
	if sh, ok := builtinShell(value); ok {
		return sh, nil
	}
	if err := elsewhere(value); err != nil {
		return shell{}, err
	}
	if !strings.Contains(value, "{0}") {
		return shell{}, fmt.Errorf("Invalid shell option. Shell must be a valid built-in (bash, sh, cmd, powershell, pwsh) or a format string containing '{0}'")
	}
	words := splitWords(value)
	for i := range words[1:] {
		if err := checkTemplate(words[1+i]); err != nil {
			return shell{}, err
		}
	}
	ext := ".sh"
	switch path.Base(words[0]) {
	case "python", "python3":
		ext = ".py"
	case "pwsh":
		ext = ".ps1"
	case "bash", "sh", "dash", "zsh":
	default:
		ext = ""
	}
	return shell{words: words, ext: ext, display: value}, nil
}

// splitWords splits at blanks outside of double quotes.
func splitWords(s string) []string {
	var out []string
	var b strings.Builder
	quoted, any := false, false
	for _, r := range s {
		switch {
		case r == '"':
			quoted, any = !quoted, true
		case (r == ' ' || r == '\t') && !quoted:
			if any {
				out = append(out, b.String())
			}
			b.Reset()
			any = false
		default:
			b.WriteRune(r)
			any = true
		}
	}
	if any {
		out = append(out, b.String())
	}
	return out
}

// checkTemplate refuses braces that mean nothing: {{ and }} are those of the text.
func checkTemplate(word string) error {
	if rest := strings.NewReplacer("{{", "", "}}", "", "{0}", "").Replace(word); strings.ContainsAny(rest, "{}") {
		return fmt.Errorf("Invalid shell option '%s': {0} is the script's path; braces of its own are written {{ and }}", word)
	}
	return nil
}

func (s shell) argv(file string) []string {
	out := make([]string, len(s.words))
	unescape := strings.NewReplacer("{{", "{", "}}", "}", "{0}", file)
	for i, w := range s.words {
		if out[i] = w; i > 0 {
			out[i] = unescape.Replace(w)
		}
	}
	return out
}

// script is the content of the file that the shell runs.
func (s shell) script(body string) string {
	body = strings.ReplaceAll(body, "\r\n", "\n")
	if s.pwsh {
		return "$ErrorActionPreference = 'stop'\n" + body + "\nif ((Test-Path -LiteralPath variable:\\LASTEXITCODE)) { exit $LASTEXITCODE }\n"
	}
	if !strings.HasSuffix(body, "\n") {
		body += "\n"
	}
	return body
}

// shell is the one that a step names, or the job's or workflow's default.
func (x *execution) shell(env *expr.Env) (shell, error) {
	v, err := x.defaulted(x.def.Shell, func(d *workflow.Defaults) *workflow.Value { return d.Shell }, env)
	if err != nil {
		return shell{}, err
	}
	sh, err := parseShell(v)
	if err != nil {
		return sh, err
	}
	if x.r.container != nil {
		if v == "" {
			return builtinOnly("sh"), nil // as on GitHub, whatever the image has
		}
		return sh, nil
	}
	// An image may have only python3, or no bash.
	_, paths := x.sc.env.snapshot()
	if len(paths) == 0 && x.r.shells != nil {
		switch have := x.r.shells; {
		case v == "python" && !have["python"] && have["python3"]:
			sh.words[0] = "python3"
		case v == "" && !have["bash"]:
			return builtinOnly("sh"), nil
		case v == "pwsh" && !have["pwsh"]:
			return sh, fmt.Errorf("The shell pwsh is not in this machine's image. Use an image that has PowerShell (-P label=image), or another shell.")
		}
	}
	return sh, nil
}

func builtinOnly(name string) shell {
	sh, _ := builtinShell(name)
	return sh
}

// defaulted evaluates a key of a run step; where the step has none, the job's and
// the workflow's defaults hold, but not inside an action.
func (x *execution) defaulted(own *workflow.Value, of func(*workflow.Defaults) *workflow.Value, env *expr.Env) (string, error) {
	if own != nil {
		return own.EvalString(env)
	}
	if x.sc.parent != nil {
		return "", nil
	}
	for _, d := range []*workflow.Defaults{x.r.def.Defaults, x.r.job.Plan.Workflow.Defaults} {
		if d == nil {
			continue
		}
		if v := of(d); v != nil {
			return v.EvalString(env)
		}
	}
	return "", nil
}

func (x *execution) workingDirectory(env *expr.Env) (string, error) {
	dir, err := x.defaulted(x.def.WorkingDirectory, func(d *workflow.Defaults) *workflow.Value { return d.WorkingDirectory }, env)
	if err != nil {
		return "", err
	}
	if path.IsAbs(dir) {
		return path.Clean(dir), nil
	}
	return path.Join(x.r.layout.Workspace, dir), nil
}
