// Package prompt turns words into a workflow: "run cargo test and if it passes,
// build the project" becomes YAML that lint accepts.
//
// Two can speak. A language model behind any OpenAI-compatible endpoint (model.go)
// where one is configured, and a parser of plain phrasing of our own (phrase.go)
// that needs nobody. Whoever spoke is named in the result.
//
// What a model answers is untrusted input like any other. It is bounded, taken
// only if it is one YAML workflow, read by the same reader as every workflow,
// repaired once by its own diagnostics, and then held against the request
// (unasked.go): a workflow that reaches for secrets, hosts, programs, actions or
// permissions, or runs commands (answered.go), that the request neither names nor implies is refused, since that is
// what a prompt injection looks like from here. What is implied is what the own
// parser finds in the request. Nothing is ever run from here: the result is text.
//
// The own parser is a chart parser over fragments; [Phrase] says how it works. Its
// grammar (grammar.txt) and what words mean (lexicon.txt) are data. It would rather
// refuse than guess: every clause that it does not understand is named, with a
// hint, and no part of the workflow is printed. What comes out is held against the
// request once more, without the grammar (audit.go). testdata/phrases.txt has what it
// makes of some hundred requests.
package prompt

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/hearth-ci/hearth/internal/workflow"
)

// MaxRequest is how long a request may be, in bytes.
const MaxRequest = 8 << 10

// Config says who is asked. Without an Endpoint it is the own parser.
type Config struct {
	Endpoint string        // base URL of an OpenAI-compatible API, up to and including /v1
	Key      string        // bearer token, may be ""
	Model    string        // model name as the endpoint knows it
	Timeout  time.Duration // for everything that is asked of the model; 0 is a minute
	HTTP     *http.Client  // nil is a client of our own
}

// ConfigFromEnv reads HEARTH_LLM_URL, HEARTH_LLM_KEY and HEARTH_LLM_MODEL;
// OPENROUTER_API_KEY alone is enough for OpenRouter.
func ConfigFromEnv(getenv func(string) string) Config {
	c := Config{Endpoint: strings.TrimRight(getenv("HEARTH_LLM_URL"), "/"), Key: getenv("HEARTH_LLM_KEY"), Model: getenv("HEARTH_LLM_MODEL")}
	if k := getenv("OPENROUTER_API_KEY"); k != "" && c.Endpoint == "" {
		c.Endpoint, c.Key = "https://openrouter.ai/api/v1", k
	}
	if c.Model == "" {
		c.Model = "openrouter/auto"
	}
	return c
}

// Result is a workflow, and who wrote it.
type Result struct {
	YAML  string
	By    string   // "hearth's own parser", or "MODEL at ENDPOINT"
	Model bool     // a model spoke
	Notes []string // what the reader should know: why the model was not used, …
	// Lacks are the programs of its commands that Hearth's default image has not got.
	Lacks []Lack
}

// A Refusal says what could not be understood, and how to say it.
type Refusal struct {
	Clause string // the part of the request that it is about
	Reason string
	Hint   string
	More   []Refusal // what else could not be understood
}

func (r *Refusal) Error() string {
	s := r.Reason
	if r.Clause != "" {
		s = fmt.Sprintf("%q: %s", r.Clause, r.Reason)
	}
	if r.Hint != "" {
		s += "\nhint: " + r.Hint
	}
	for _, m := range r.More {
		s += "\n" + m.Error()
	}
	return s
}

// New makes a workflow of a request in plain words. Errors are a [*Refusal]
// where the request is the reason.
func New(ctx context.Context, c Config, request string) (Result, error) {
	request = strings.TrimSpace(request)
	switch {
	case request == "":
		return Result{}, &Refusal{Reason: "nothing was asked for", Hint: `say what to run, like "run cargo test and if it passes, build the project"`}
	case len(request) > MaxRequest:
		return Result{}, &Refusal{Reason: fmt.Sprintf("the request has %d bytes, the most is %d", len(request), MaxRequest)}
	case strings.ContainsFunc(request, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' && r != '\r' }):
		return Result{}, &Refusal{Reason: "the request holds control characters"}
	}
	var notes []string
	if c.Endpoint != "" {
		yaml, err := c.ask(ctx, request)
		if err == nil {
			return Result{YAML: yaml, By: c.Model + " at " + c.name(), Model: true, Lacks: lacks(yaml)}, nil
		}
		if ctx.Err() != nil {
			return Result{}, context.Cause(ctx)
		}
		notes = append(notes, "the model's answer was not used: "+err.Error())
	}
	p, err := parse(request)
	if err != nil {
		var r *Refusal
		if errors.As(err, &r) && len(notes) > 0 {
			r.Reason += " (and " + notes[0] + ")"
		}
		return Result{}, err
	}
	return Result{YAML: p.yaml, By: "hearth's own parser", Notes: append(notes, p.notes...), Lacks: lacks(p.yaml)}, nil
}

// check reads a workflow as every other one is read and returns its errors as
// text, one a line; "" is a valid workflow.
func check(yaml string) string {
	_, diags := workflow.Parse("new.yml", []byte(yaml), workflow.Options{})
	var b strings.Builder
	for _, d := range diags {
		if d.Severity != workflow.Error {
			continue
		}
		fmt.Fprintf(&b, "line %d, column %d: %s\n", d.Pos.Line, d.Pos.Col, d.Message)
	}
	return strings.TrimSpace(b.String())
}
