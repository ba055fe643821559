package workflow

import (
	"fmt"
	"strings"

	"github.com/hearth-ci/hearth/internal/expr"
)

// Pos is a place in a file. Both numbers start at 1; the column counts
// Unicode code points. The zero Pos means that there is no place to name.
type Pos struct {
	Line int `json:"line,omitempty"`
	Col  int `json:"col,omitempty"`
}

// IsZero reports whether p names no place.
func (p Pos) IsZero() bool { return p == Pos{} }

func (p Pos) String() string { return fmt.Sprintf("%d:%d", p.Line, p.Col) }

// Severity says whether a diagnostic stops a workflow from running.
type Severity uint8

const (
	// Error marks what GitHub refuses the file for.
	Error Severity = iota
	// Advice marks what GitHub accepts; it never changes an exit code.
	Advice
)

func (s Severity) String() string {
	if s == Advice {
		return "advice"
	}
	return "error"
}

// Diagnostic is something to tell an author about a file of theirs. It is not a
// Go error: a workflow with errors is an answer, not a failure of ours.
type Diagnostic struct {
	File string `json:"file"`
	// Pos is the place GitHub names: the start of the value. It is zero where
	// GitHub names only the file.
	Pos Pos `json:"pos"`
	// Near is the place to look at: inside a long value, or where Pos is zero,
	// it says more than Pos; otherwise it equals Pos.
	Near     Pos      `json:"near"`
	Severity Severity `json:"severity"`
	// Message is worded as GitHub words it, where GitHub has words for it. It
	// does not repeat the file and the position.
	Message string `json:"message"`
	// Hint says what to do. It may be empty.
	Hint string `json:"hint,omitempty"`
	// Rule identifies the check, for instance "unexpected-key".
	Rule string `json:"rule"`
	// Via names the call that led to File, when File is a called workflow.
	Via []Site `json:"via,omitempty"`

	whole bool // about the run as a whole: GitHub names no file
}

// String formats d as file:line:col: message.
func (d Diagnostic) String() string {
	p := d.Pos
	if p.IsZero() {
		p = d.Near
	}
	if p.IsZero() {
		return d.File + ": " + d.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s", d.File, p.Line, p.Col, d.Message)
}

// GitHub formats d as GitHub's own reader does:
//
//	.github/workflows/ci.yml (Line: 7, Col: 9): Unexpected value 'runn'
//
// The message proper is cut after 500 characters, as there.
func (d Diagnostic) GitHub() string {
	var msg string
	switch {
	case d.File == "" || d.whole:
		msg = d.Message
	case d.Pos.IsZero():
		msg = d.File + ": " + d.Message
	default:
		msg = fmt.Sprintf("%s (Line: %d, Col: %d): %s", d.File, d.Pos.Line, d.Pos.Col, d.Message)
	}
	const most = 500
	if runes := []rune(msg); len(runes) > most {
		msg = string(runes[:most]) + "[...]"
	}
	// GitHub names the nearest call, whatever led to that.
	for _, s := range d.Via[:min(1, len(d.Via))] {
		msg = fmt.Sprintf("In %s (Line: %d, Col: %d): Error from called workflow %s", s.File, s.Pos.Line, s.Pos.Col, msg)
	}
	return msg
}

// Errors reports whether any of ds is an error rather than advice.
func Errors(ds []Diagnostic) bool {
	for _, d := range ds {
		if d.Severity == Error {
			return true
		}
	}
	return false
}

// ValueKind says what a [Value] holds.
type ValueKind uint8

// The kinds of values. Expression is ${{ … }} anywhere a value may be; Insert is
// the mapping key ${{ insert }}.
const (
	Null ValueKind = iota
	Bool
	Number
	String
	Sequence
	Mapping
	Expression
	Insert
)

func (k ValueKind) String() string {
	switch k {
	case Null:
		return "null"
	case Bool:
		return "boolean"
	case Number:
		return "number"
	case String:
		return "string"
	case Sequence:
		return "sequence"
	case Mapping:
		return "mapping"
	case Expression:
		return "expression"
	case Insert:
		return "insert"
	}
	return fmt.Sprintf("ValueKind(%d)", uint8(k))
}

// Value is a positioned piece of a workflow: what YAML became once expressions
// were recognised. A Value is immutable after parsing and safe for concurrent
// use. It survives a JSON round trip with its positions (json.go).
type Value struct {
	Kind ValueKind
	Pos  Pos
	Bool bool
	Num  float64
	// Str is the text of a String; for an Expression it is the source without
	// ${{ }}, a text with pieces having become a format call: `a-${{ b }}` is
	// `format('a-{0}', b)`. Where text is wanted, a plain 1.0 has become the
	// String "1" on reading, as on GitHub.
	Str   string
	Items []*Value
	Pairs []Pair // in source order
	Expr  *expr.Expr

	bad bool // something here was reported: no further checks
}

// Pair is one entry of a Mapping.
type Pair struct {
	Key   *Value
	Value *Value
}

// Get returns the value of the key, compared without regard to case, or nil.
// A nil Value and one that is not a mapping have no keys.
func (v *Value) Get(key string) *Value {
	if v == nil || v.Kind != Mapping {
		return nil
	}
	for _, p := range v.Pairs {
		if p.Key.Kind == String && strings.EqualFold(p.Key.Str, key) {
			return p.Value
		}
	}
	return nil
}

// Text returns the literal text of a scalar ("" for null, for anything that is
// not literal and for nil).
func (v *Value) Text() string {
	if v == nil {
		return ""
	}
	switch v.Kind {
	case String:
		return v.Str
	case Bool, Number:
		return v.literal().ToString()
	}
	return ""
}

// IsLiteral reports whether v is a scalar known without evaluation.
func (v *Value) IsLiteral() bool {
	return v != nil && (v.Kind == Null || v.Kind == Bool || v.Kind == Number || v.Kind == String)
}

// HasExpr reports whether anything in v must be evaluated.
func (v *Value) HasExpr() bool {
	if v == nil {
		return false
	}
	switch v.Kind {
	case Expression, Insert:
		return true
	case Sequence:
		for _, it := range v.Items {
			if it.HasExpr() {
				return true
			}
		}
	case Mapping:
		for _, p := range v.Pairs {
			if p.Key.HasExpr() || p.Value.HasExpr() {
				return true
			}
		}
	}
	return false
}

func (v *Value) literal() expr.Value {
	switch v.Kind {
	case Bool:
		return expr.Bool(v.Bool)
	case Number:
		return expr.Number(v.Num)
	case String:
		return expr.String(v.Str)
	}
	return expr.Null()
}

// Workflow is one workflow file as read. When Parse reported errors, it holds
// what could be understood.
type Workflow struct {
	File        string       `json:",omitzero"`
	Name        string       `json:",omitzero"` // as given; empty when the file gives none
	Description string       `json:",omitzero"`
	RunName     *Value       `json:",omitzero"`
	On          []Trigger    `json:",omitzero"` // source order; one entry per event
	Env         *Value       `json:",omitzero"`
	Defaults    *Defaults    `json:",omitzero"`
	Permissions *Permissions `json:",omitzero"`
	CacheMode   string       `json:",omitzero"` // read, write, write-only, none; "" is not said
	Concurrency *Concurrency `json:",omitzero"`
	Jobs        []*Job       `json:",omitzero"` // source order
	// Called holds, after Link, the called workflow of each job that calls one,
	// by the text of its `uses`.
	Called map[string]*Workflow `json:",omitzero"`

	onPos Pos // of the value of `on`
	bytes int // size of what was read, as GitHub counts it
}

// Job returns the job with the id, compared without regard to case, or nil.
func (w *Workflow) Job(id string) *Job {
	for _, j := range w.Jobs {
		if strings.EqualFold(j.ID, id) {
			return j
		}
	}
	return nil
}

// Trigger returns the trigger for the event, or nil.
func (w *Workflow) Trigger(event string) *Trigger {
	for i := range w.On {
		if w.On[i].Event == event {
			return &w.On[i]
		}
	}
	return nil
}

// Trigger is one event of `on:` with its filters.
type Trigger struct {
	Event string `json:",omitzero"`
	Pos   Pos    `json:",omitzero"`
	// Types are the activity types given; nil means the event's default types.
	Types          []string   `json:",omitzero"`
	Branches       []string   `json:",omitzero"`
	BranchesIgnore []string   `json:",omitzero"`
	Tags           []string   `json:",omitzero"`
	TagsIgnore     []string   `json:",omitzero"`
	Paths          []string   `json:",omitzero"`
	PathsIgnore    []string   `json:",omitzero"`
	Cron           []Schedule `json:",omitzero"` // schedule
	Inputs         []Input    `json:",omitzero"` // workflow_dispatch, workflow_call
	Outputs        []Output   `json:",omitzero"` // workflow_call
	Secrets        []Secret   `json:",omitzero"` // workflow_call
	Workflows      []string   `json:",omitzero"` // workflow_run: names of workflows
	Names          []string   `json:",omitzero"` // image_version
	Versions       []string   `json:",omitzero"` // image_version
	Value          *Value     `json:",omitzero"` // the event's configuration as read; nil when only the name is given
}

// Schedule is one entry of `on: schedule`.
type Schedule struct {
	Cron     string `json:",omitzero"` // five fields
	Timezone string `json:",omitzero"` // IANA name; empty means UTC
	Pos      Pos    `json:",omitzero"`
}

// Input is a declared input of workflow_dispatch or workflow_call.
type Input struct {
	Name        string   `json:",omitzero"`
	Description string   `json:",omitzero"`
	Type        string   `json:",omitzero"` // string, boolean, number; for dispatch also choice, environment
	Required    bool     `json:",omitzero"`
	Default     *Value   `json:",omitzero"` // nil when none is given; an Expression only for workflow_call
	Options     []string `json:",omitzero"`
	Deprecation string   `json:",omitzero"`
	Pos         Pos      `json:",omitzero"`
}

// Output is a declared output of workflow_call.
type Output struct {
	Name        string `json:",omitzero"`
	Description string `json:",omitzero"`
	Value       *Value `json:",omitzero"`
	Pos         Pos    `json:",omitzero"`
}

// Secret is a declared secret of workflow_call.
type Secret struct {
	Name        string `json:",omitzero"`
	Description string `json:",omitzero"`
	Required    bool   `json:",omitzero"`
	Pos         Pos    `json:",omitzero"`
}

// Defaults holds defaults.run of a workflow or a job.
type Defaults struct {
	Pos              Pos    `json:",omitzero"`
	Shell            *Value `json:",omitzero"`
	WorkingDirectory *Value `json:",omitzero"`
	Value            *Value `json:",omitzero"` // the whole mapping as read
}

// Concurrency is a concurrency group of a workflow or a job.
type Concurrency struct {
	Pos              Pos    `json:",omitzero"`
	Group            *Value `json:",omitzero"` // nil only when the whole is an expression
	CancelInProgress *Value `json:",omitzero"` // boolean or expression; nil means false
	Queue            string `json:",omitzero"` // "single" (also when not given) or "max"
	// Value is the whole as read: a string, an expression (Group is the same) or
	// a mapping.
	Value *Value `json:",omitzero"`
}

// Permissions is a permissions block: what the job's token may do.
type Permissions struct {
	Pos Pos `json:",omitzero"`
	// All is "read-all", "write-all" or "" when Scopes holds each scope.
	All    string            `json:",omitzero"`
	Scopes map[string]string `json:",omitzero"` // scope → read, write or none; what is not there is none
	// ScopePos says where each scope of Scopes is given.
	ScopePos map[string]Pos `json:",omitzero"`
}

// Needed is one entry of a job's `needs`.
type Needed struct {
	ID  string `json:",omitzero"`
	Pos Pos    `json:",omitzero"`
}

// Strategy is a job's strategy. A strategy that is one expression has only Value.
type Strategy struct {
	Pos         Pos    `json:",omitzero"`
	Matrix      *Value `json:",omitzero"` // mapping or expression
	FailFast    *Value `json:",omitzero"` // boolean or expression; nil means true
	MaxParallel *Value `json:",omitzero"` // number or expression; nil means no limit
	Value       *Value `json:",omitzero"` // the whole as read
}

// Job is one job as written.
type Job struct {
	ID    string   `json:",omitzero"`
	Pos   Pos      `json:",omitzero"` // of the id
	Name  *Value   `json:",omitzero"`
	Needs []Needed `json:",omitzero"`
	// If is the condition with GitHub's implicit success() applied; never nil
	// for a job read without errors. IfSource is what the author wrote, without
	// ${{ }}, and empty when they wrote none.
	If       *expr.Expr `json:",omitzero"`
	IfSource string     `json:",omitzero"`
	IfPos    Pos        `json:",omitzero"`

	RunsOn          *Value       `json:",omitzero"` // text, sequence, mapping{group,labels} or expression
	Strategy        *Strategy    `json:",omitzero"`
	Env             *Value       `json:",omitzero"`
	Outputs         *Value       `json:",omitzero"`
	Defaults        *Defaults    `json:",omitzero"`
	Permissions     *Permissions `json:",omitzero"`
	CacheMode       string       `json:",omitzero"` // over the workflow's
	Concurrency     *Concurrency `json:",omitzero"`
	Environment     *Value       `json:",omitzero"` // text, mapping{name,url,deployment} or expression
	Container       *Value       `json:",omitzero"`
	Services        *Value       `json:",omitzero"`
	ContinueOnError *Value       `json:",omitzero"`
	TimeoutMinutes  *Value       `json:",omitzero"`
	// CancelTimeoutMinutes is how long a cancelled job may clean up.
	CancelTimeoutMinutes *Value  `json:",omitzero"`
	Snapshot             *Value  `json:",omitzero"`
	Steps                []*Step `json:",omitzero"`

	// Uses calls a reusable workflow; then RunsOn and Steps are empty.
	Uses           string `json:",omitzero"`
	UsesPos        Pos    `json:",omitzero"`
	With           *Value `json:",omitzero"`
	Secrets        *Value `json:",omitzero"`
	InheritSecrets bool   `json:",omitzero"`
}

// Step is one step as written.
type Step struct {
	// ID is the id given, or one made as GitHub makes it: __run,
	// __actions_checkout_2.
	ID      string `json:",omitzero"`
	IDGiven bool   `json:",omitzero"`
	IDPos   Pos    `json:",omitzero"`
	Pos     Pos    `json:",omitzero"`
	Name    *Value `json:",omitzero"`
	// If, IfSource and IfPos are as in [Job].
	If       *expr.Expr `json:",omitzero"`
	IfSource string     `json:",omitzero"`
	IfPos    Pos        `json:",omitzero"`

	Run              *Value `json:",omitzero"`
	Shell            *Value `json:",omitzero"`
	WorkingDirectory *Value `json:",omitzero"`
	Uses             string `json:",omitzero"`
	UsesPos          Pos    `json:",omitzero"`
	With             *Value `json:",omitzero"`
	Env              *Value `json:",omitzero"`
	ContinueOnError  *Value `json:",omitzero"`
	TimeoutMinutes   *Value `json:",omitzero"`

	// Background lets the step run while those after it start.
	Background bool `json:",omitzero"`
	// Wait names background steps to wait for; WaitAll waits for all of them;
	// Cancel names one to cancel; Parallel runs steps side by side and waits for
	// all. A step has one of Run, Uses, Wait, WaitAll, Cancel and Parallel.
	Wait     []Needed `json:",omitzero"`
	WaitAll  bool     `json:",omitzero"`
	Cancel   *Needed  `json:",omitzero"`
	Parallel []*Step  `json:",omitzero"`
}

// Options changes how files are read. The zero value is what GitHub does.
type Options struct {
	// MaxBytes is the size limit of one file; 0 means 1 MiB.
	MaxBytes int
	// MaxDepth is the nesting limit; 0 means 50, GitHub's.
	MaxDepth int
	// MaxNodes limits the YAML nodes read, aliases expanded; 0 means 50,000,
	// GitHub's.
	MaxNodes int
	// MaxResultSize limits the size in bytes of what was read, as GitHub counts
	// it; 0 means 10 MiB, GitHub's.
	MaxResultSize int
	// MaxJobs limits the jobs of a run, called workflows included; 0 means 1,000.
	MaxJobs int
	// MaxCallDepth limits how deep reusable workflows may call each other; 0 means
	// 10, GitHub's.
	MaxCallDepth int
	// DefaultPermissions are the repository's: "read" (contents and packages
	// read, GitHub's LimitedRead) or "write". Empty means write. Called workflows
	// may not ask for more.
	DefaultPermissions string
	// StrictEvents makes errors of what GitHub's editor services report about
	// `on:` and GitHub itself overlooks: unknown keys of workflow_dispatch, and
	// defaults that do not have their input's type. Otherwise they are advice.
	StrictEvents bool
	// Placeholders makes advice of the words that GitHub's starter workflows hold
	// in place of values, like $cron-daily. A file with them cannot run.
	Placeholders bool

	// What GitHub's goldens switch: name the keys of background steps where one
	// of several is missing, and refuse them.
	listBackground, noBackground bool
}
