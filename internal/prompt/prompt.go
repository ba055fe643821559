// Package prompt turns words into a workflow: "run cargo test and if it passes,
// build the project" becomes YAML that lint accepts.
//
// Two can speak. A language model behind any OpenAI-compatible endpoint (model.go)
// where one is configured, and a parser of plain phrasing of our own (phrase.go)
// that needs nobody. Whoever spoke is named in the result.
//
// What a model answers is untrusted input like any other. It is bounded, taken
// only if it is one YAML workflow, read by the same reader as every workflow,
// repaired once by its own diagnostics, and then held against the request: a
// workflow that reaches for secrets, hosts, actions or permissions that the
// request did not speak of is refused, since that is what a prompt injection
// looks like from here. Nothing is ever run from here: the result is text.
//
// The own parser would rather refuse than guess. A clause that it does not
// understand is named, with a hint, and no part of the workflow is printed.
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
}

// A Refusal says what could not be understood, and how to say it.
type Refusal struct {
	Clause string // the part of the request that it is about
	Reason string
	Hint   string
}

func (r *Refusal) Error() string {
	s := r.Reason
	if r.Clause != "" {
		s = fmt.Sprintf("%q: %s", r.Clause, r.Reason)
	}
	if r.Hint != "" {
		s += "\nhint: " + r.Hint
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
			return Result{YAML: yaml, By: c.Model + " at " + c.name(), Model: true}, nil
		}
		if ctx.Err() != nil {
			return Result{}, context.Cause(ctx)
		}
		notes = append(notes, "the model's answer was not used: "+err.Error())
	}
	yaml, err := Phrase(request)
	if err != nil {
		var r *Refusal
		if errors.As(err, &r) && len(notes) > 0 {
			r.Reason += " (and " + notes[0] + ")"
		}
		return Result{}, err
	}
	return Result{YAML: yaml, By: "hearth's own parser", Notes: notes}, nil
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
