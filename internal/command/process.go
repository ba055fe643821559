package command

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"fmt"
	"slices"
	"strings"
)

// Kind says what an [Effect] is.
type Kind uint8

// The kinds of effect, with the fields each uses.
const (
	Print         Kind = iota // Value is a line, or lines, of the log
	Debug                     // Value is only for those who debug steps
	Group                     // a group named Value begins
	EndGroup                  // it ends
	Annotate                  // Annotation; its log line is a Print before it
	AddMask                   // Value is a secret from now on
	SetOutput                 // output Name of the step is Value
	SaveState                 // state Name for the action's post step is Value
	SetEnv                    // environment variable Name is Value in later steps
	AddPath                   // Value is prepended to PATH in later steps
	AddMatcher                // Value is the path of a matcher file
	RemoveMatcher             // Name is the owner, or Value the path of a file
	Fail                      // the step fails; the reason was printed
)

func (k Kind) String() string {
	names := [...]string{"print", "debug", "group", "endgroup", "annotate", "add-mask", "set-output", "save-state", "set-env", "add-path", "add-matcher",
		"remove-matcher", "fail"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("Kind(%d)", k)
}

// Effect is one thing that follows from a line of output.
type Effect struct {
	Kind        Kind
	Name, Value string
	Annotation  Annotation
}

// MaxAnnotations is how many annotations of one level a step may make; those
// after it are only printed.
const MaxAnnotations = 10

// Options are what decides which commands a step may use.
type Options struct {
	// Unsecure allows set-env and add-path: ACTIONS_ALLOW_UNSECURE_COMMANDS.
	Unsecure bool
	// UnsecureStopTokens allows guessable tokens for stop-commands.
	UnsecureStopTokens bool
	// Echo prints commands as they are carried out, as ::echo::on does.
	Echo bool
}

// Processor carries the state that one step's commands have: whether they are
// stopped, whether they are echoed, how many annotations there were. It is not
// safe for concurrent use.
type Processor struct {
	opt    Options
	stop   string // resumes the commands; "" while they are in force
	counts map[string]int
	warned map[string]bool
}

// NewProcessor returns the processor of a step that begins.
func NewProcessor(opt Options) *Processor {
	return &Processor{opt: opt, counts: map[string]int{}, warned: map[string]bool{}}
}

const (
	deprecated = "The `%s` command is deprecated and will be disabled soon. Please upgrade to using Environment Files. For more information see: https://github.blog/changelog/2022-10-11-github-actions-deprecating-save-state-and-set-output-commands/"
	disabled   = "The `%s` command is disabled. Please upgrade to using Environment Files or opt into unsecure command execution by setting the `ACTIONS_ALLOW_UNSECURE_COMMANDS` environment variable to `true`. For more information see: https://github.blog/changelog/2020-10-01-github-actions-deprecating-set-env-and-add-path-commands/"
	badToken   = "You cannot use a endToken that is an empty string, the string 'pause-logging', or another workflow command. For more information see: https://docs.github.com/actions/learn-github-actions/workflow-commands-for-github-actions#example-stopping-and-starting-workflow-commands or opt into insecure command execution by setting the `ACTIONS_ALLOW_UNSECURE_STOPCOMMAND_TOKENS` environment variable to `true`."
)

var names = [...]string{"stop-commands", "set-env", "set-output", "save-state", "add-mask", "add-path", "add-matcher", "remove-matcher", "debug", "notice",
	"warning", "error", "group", "endgroup", "echo"}

// Names are the workflow commands that there are.
func Names() []string { return slices.Clone(names[:]) }

// isCommand reports whether name, in lower case, is a workflow command.
func isCommand(name string) bool { return slices.Contains(names[:], name) }

// quiet reports whether a command is never echoed.
func quiet(name string) bool {
	switch name {
	case "add-mask", "debug", "notice", "warning", "error":
		return true
	}
	return false
}

// MaybeCommand reports whether a line that begins with these bytes could be a
// command: whoever reads a stream may pass on any other line as it comes.
// Commands of the older form can stand anywhere; they are found in lines that
// are short enough to be looked at whole.
func MaybeCommand(prefix []byte) bool {
	for i, c := range prefix {
		switch c {
		case ' ', '\t', '\r', '\v', '\f':
			continue
		case ':':
			return i+1 == len(prefix) || prefix[i+1] == ':'
		}
		return false
	}
	return true
}

// Line takes one line of output, without its line end, and returns what follows
// from it, in order. A line that is no command is a Print of itself.
func (p *Processor) Line(line string) []Effect {
	c, ok := Parse(line, func(name string) bool { return isCommand(name) || p.stop != "" && name == p.stop })
	text := []Effect{{Kind: Print, Value: line}}
	switch {
	case !ok:
		return text
	case p.stop != "" && c.Name == p.stop:
		p.stop = ""
		return text
	case p.stop != "":
		return text
	case c.Name == "stop-commands":
		return p.stopCommands(line, c)
	}
	var out []Effect
	if p.opt.Echo && !quiet(c.Name) {
		out = text
	}
	more, err := p.run(c)
	out = append(out, more...)
	if err != nil {
		what := line
		if quiet(c.Name) {
			what = c.Name
		}
		out = append(out, p.Annotation(Annotation{Level: "error", Message: fmt.Sprintf("Unable to process command '%s' successfully.", what)})...)
		out = append(out, p.Annotation(Annotation{Level: "error", Message: err.Error()})...)
		out = append(out, Effect{Kind: Fail})
	}
	return out
}

func (p *Processor) stopCommands(line string, c Command) []Effect {
	token := strings.ToLower(c.Data)
	if token == "" || token == "pause-logging" || isCommand(token) {
		if !p.opt.UnsecureStopTokens || token == "" {
			return append(p.Annotation(Annotation{Level: "error", Message: badToken}), Effect{Kind: Fail})
		}
	}
	p.stop = token
	out := []Effect{{Kind: Print, Value: line}}
	if len(c.Data) > 6 {
		// Whoever reads the log must not be able to resume.
		out = append(out, Effect{Kind: AddMask, Value: c.Data})
	}
	return out
}

func (p *Processor) run(c Command) ([]Effect, error) {
	one := func(k Kind, name, value string) ([]Effect, error) {
		return []Effect{{Kind: k, Name: name, Value: value}}, nil
	}
	name := c.Properties["name"]
	needName := func() error {
		if name == "" {
			return fmt.Errorf("Required field 'name' is missing in ##[%s] command.", c.Name)
		}
		return nil
	}
	switch c.Name {
	case "group":
		return one(Group, "", c.Data)
	case "endgroup":
		return one(EndGroup, "", "")
	case "debug":
		return one(Debug, "", c.Data)
	case "notice", "warning", "error":
		return p.Annotation(c.annotation()), nil
	case "add-mask":
		if strings.TrimSpace(c.Data) == "" {
			return p.Warning("Can't add secret mask for empty string in ##[add-mask] command."), nil
		}
		if p.opt.Echo {
			return []Effect{{Kind: AddMask, Value: c.Data}, {Kind: Print, Value: "::add-mask::***"}}, nil
		}
		return one(AddMask, "", c.Data)
	case "set-output":
		if err := needName(); err != nil {
			return nil, err
		}
		return append(p.deprecated(c.Name), Effect{Kind: SetOutput, Name: name, Value: c.Data}), nil
	case "save-state":
		if err := needName(); err != nil {
			return nil, err
		}
		return append(p.deprecated(c.Name), Effect{Kind: SaveState, Name: name, Value: c.Data}), nil
	case "set-env":
		if !p.opt.Unsecure {
			return nil, fmt.Errorf(disabled, c.Name)
		}
		if err := needName(); err != nil {
			return nil, err
		}
		if Blocked(name) {
			return p.Annotation(Annotation{Level: "error", Message: fmt.Sprintf("Can't update %s environment variable using ::set-env:: command.", name)}), nil
		}
		return one(SetEnv, name, c.Data)
	case "add-path":
		if !p.opt.Unsecure {
			return nil, fmt.Errorf(disabled, c.Name)
		}
		if c.Data == "" {
			return nil, fmt.Errorf("Value cannot be null. (Parameter 'path')")
		}
		return one(AddPath, "", c.Data)
	case "add-matcher":
		if c.Data == "" {
			return p.Warning("File path must be specified."), nil
		}
		return one(AddMatcher, "", c.Data)
	case "remove-matcher":
		owner := c.Properties["owner"]
		switch {
		case owner != "" && c.Data != "":
			return p.Warning("Either specify an owner name or a file path in ##[remove-matcher] command. Both values cannot be set."), nil
		case owner == "" && c.Data == "":
			return p.Warning("Either an owner name or a file path must be specified in ##[remove-matcher] command."), nil
		}
		return one(RemoveMatcher, owner, c.Data)
	case "echo":
		switch strings.ToUpper(strings.TrimSpace(c.Data)) {
		case "ON":
			p.opt.Echo = true
			return nil, nil
		case "OFF":
			p.opt.Echo = false
			return nil, nil
		}
		return nil, fmt.Errorf("Invalid echo command value. Possible values can be: 'on', 'off'. Current value is: '%s'.", c.Data)
	}
	return nil, fmt.Errorf("Can't find command extension for ##[%s.command].", c.Name)
}

// deprecated warns once a step.
func (p *Processor) deprecated(name string) []Effect {
	if p.warned[name] {
		return nil
	}
	p.warned[name] = true
	return p.Warning(fmt.Sprintf(deprecated, name))
}

// Warning is [Processor.Annotation] with level warning.
func (p *Processor) Warning(message string) []Effect {
	return p.Annotation(Annotation{Level: "warning", Message: message})
}

// Annotation prints a, and makes it an annotation if the step has not made
// [MaxAnnotations] of its level yet.
func (p *Processor) Annotation(a Annotation) []Effect {
	out := []Effect{{Kind: Print, Value: "##[" + a.Level + "]" + a.Message}}
	return append(out, p.Count(a)...)
}

// Count is [Processor.Annotation] for a line that is printed already.
func (p *Processor) Count(a Annotation) []Effect {
	if p.counts[a.Level] >= MaxAnnotations {
		return nil
	}
	p.counts[a.Level]++
	return []Effect{{Kind: Annotate, Annotation: a}}
}
