package workflow

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/expr"
)

// GitHub's limits on the inputs of a run by hand.
const (
	MaxDispatchInputs  = 25
	maxDispatchPayload = 65535 // characters
)

// DispatchInputs checks the inputs given for a run by hand against what the
// trigger, which may be nil, declares, and fills in defaults. inputs is the context
// of that name, in which booleans are booleans; eventInputs is
// github.event.inputs, in which everything is a string. Names are compared without
// regard to case and appear as declared.
//
// errs has an error for every input that is unknown, missing or has a value that
// its type does not take; the values are then incomplete.
func DispatchInputs(t *Trigger, given map[string]string) (inputs, eventInputs expr.Value, errs []error) {
	typed, texts := expr.NewMap(), expr.NewMap()
	var declared []Input
	if t != nil {
		declared = t.Inputs
	}
	values := expr.NewMap()
	var unexpected []string
	size := 0
	for _, name := range slices.Sorted(maps.Keys(given)) {
		size += utf8.RuneCountInString(name) + utf8.RuneCountInString(given[name])
		if !slices.ContainsFunc(declared, func(in Input) bool { return expr.EqualFold(in.Name, name) }) {
			unexpected = append(unexpected, name)
			continue
		}
		if _, twice := values.Get(name); twice {
			errs = append(errs, fmt.Errorf("input '%s' is given twice, in different spelling", name))
			continue
		}
		values.Set(name, expr.String(given[name]))
	}
	if len(unexpected) > 0 {
		errs = append(errs, unexpectedInputs(unexpected, declared))
	}
	if len(declared) > MaxDispatchInputs {
		errs = append(errs, fmt.Errorf("the workflow declares %d inputs, and at most %d are possible", len(declared), MaxDispatchInputs))
	}
	if size > maxDispatchPayload {
		errs = append(errs, fmt.Errorf("the inputs have %d characters, and at most %d are possible", size, maxDispatchPayload))
	}
	for _, in := range declared {
		v, ok := values.Get(in.Name)
		text := v.AsString()
		if !ok {
			text, ok = in.fallback()
			if in.Required && !ok {
				errs = append(errs, inputError("Required input '%s' not provided", in.Name))
				continue
			}
		} else if in.Required && text == "" && in.Type != "boolean" && in.Type != "choice" {
			errs = append(errs, inputError("Required input '%s' not provided", in.Name))
			continue
		}
		value, err := in.value(text, ok)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		typed.Set(in.Name, value)
		texts.Set(in.Name, expr.String(value.ToString()))
	}
	return expr.Object(typed), expr.Object(texts), errs
}

// inputError makes an error in GitHub's words, which begin with a capital.
func inputError(format string, args ...any) error { return fmt.Errorf(format, args...) }

func unexpectedInputs(names []string, declared []Input) error {
	msg := fmt.Sprintf("Unexpected inputs provided: [%s]", strings.Join(eachQuoted(names), ", "))
	if len(declared) == 0 {
		return fmt.Errorf("%s; the workflow takes none", msg)
	}
	var known []string
	for _, in := range declared {
		known = append(known, in.Name)
	}
	if best := Closest(names[0], known); best != "" {
		return fmt.Errorf("%s; did you mean %s?", msg, best)
	}
	return fmt.Errorf("%s; the workflow takes %s", msg, wordList(known, "and"))
}

func eachQuoted(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = strconv.Quote(s)
	}
	return out
}

// fallback is the value of an input that was not given, and whether that is one.
func (in Input) fallback() (string, bool) {
	switch {
	case in.Default.IsLiteral() && in.Default.Kind != Null:
		return in.Default.Text(), true
	case in.Type == "boolean":
		return "false", !in.Required
	case in.Type == "choice" && len(in.Options) > 0 && !in.Required:
		return in.Options[0], true
	}
	return "", false
}

// value checks a text by the input's type. Only booleans are typed: like on
// GitHub a number stays a string. given is false for an input without a value,
// which is empty.
func (in Input) value(text string, given bool) (expr.Value, error) {
	refused := func() error {
		return inputError("Provided value '%s' for input '%s' not in the list of allowed values", text, in.Name)
	}
	switch in.Type {
	case "boolean":
		switch strings.ToLower(text) {
		case "true":
			return expr.Bool(true), nil
		case "false":
			return expr.Bool(false), nil
		}
		return expr.Null(), fmt.Errorf("%w: a boolean is true or false", refused())
	case "choice":
		if given && !slices.Contains(in.Options, text) {
			return expr.Null(), fmt.Errorf("%w: it has the options %s", refused(), wordList(quoteAll(in.Options), "and"))
		}
	case "number":
		if n := expr.String(text).ToNumber(); text != "" && (math.IsNaN(n) || math.IsInf(n, 0)) {
			return expr.Null(), inputError("Provided value '%s' for input '%s' is not a number", text, in.Name)
		}
	}
	return expr.String(text), nil
}
