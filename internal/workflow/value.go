package workflow

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"

	"github.com/hearth-ci/hearth/internal/expr"
)

// EvalError is an expression of a workflow that could not be evaluated, with its
// place in the file.
type EvalError struct {
	Pos Pos
	Err error
}

func (e *EvalError) Error() string {
	if e.Pos.IsZero() {
		return e.Err.Error()
	}
	return fmt.Sprintf("(Line: %d, Col: %d): %v", e.Pos.Line, e.Pos.Col, e.Err)
}

func (e *EvalError) Unwrap() error { return e.Err }

// Eval evaluates v and everything below it: expressions, inserts and keys. A nil
// Value is null. The error is an *EvalError naming the place.
func (v *Value) Eval(env *expr.Env) (expr.Value, error) {
	if v == nil {
		return expr.Null(), nil
	}
	switch v.Kind {
	case Expression:
		if v.Expr == nil {
			return expr.Null(), &EvalError{v.Pos, fmt.Errorf("the expression %q was not read", v.Str)}
		}
		out, err := v.Expr.Eval(env)
		if err != nil {
			return expr.Null(), &EvalError{v.Pos, err}
		}
		return out, nil
	case Sequence:
		items := make([]expr.Value, 0, len(v.Items))
		for _, it := range v.Items {
			out, err := it.Eval(env)
			if err != nil {
				return expr.Null(), err
			}
			// A whole-expression item that yields an array is spliced in.
			if it.Kind == Expression && out.Kind() == expr.KindArray {
				items = append(items, out.AsArray()...)
				continue
			}
			items = append(items, out)
		}
		return expr.Array(items), nil
	case Mapping:
		m := expr.NewMap()
		for _, p := range v.Pairs {
			out, err := p.Value.Eval(env)
			if err != nil {
				return expr.Null(), err
			}
			if p.Key.Kind == Insert {
				if out.Kind() == expr.KindNull {
					continue
				}
				if out.Kind() != expr.KindObject {
					return expr.Null(), &EvalError{p.Value.Pos, fmt.Errorf("${{ insert }} needs an object, not %s", kindWord(out))}
				}
				for k, val := range out.AsMap().All() {
					m.Set(k, val)
				}
				continue
			}
			key, err := p.Key.Eval(env)
			if err != nil {
				return expr.Null(), err
			}
			m.Set(key.ToString(), out)
		}
		return expr.Object(m), nil
	}
	return v.literal(), nil
}

func kindWord(v expr.Value) string {
	switch v.Kind() {
	case expr.KindNull:
		return "null"
	case expr.KindBool:
		return "a boolean"
	case expr.KindNumber:
		return "a number"
	case expr.KindString:
		return "a string"
	case expr.KindArray:
		return "an array"
	}
	return "an object"
}

// EvalString evaluates v to text as GitHub does where text is wanted: a literal
// keeps its spelling.
func (v *Value) EvalString(env *expr.Env) (string, error) {
	if v != nil && v.IsLiteral() {
		return v.Text(), nil
	}
	out, err := v.Eval(env)
	if err != nil {
		return "", err
	}
	return out.ToString(), nil
}

// Text makes a literal string Value at no position.
func Text(s string) *Value { return &Value{Kind: String, Str: s} }

// token is the JSON form of a Value: the one GitHub's own readers exchange, so
// that it can be compared with theirs.
type token struct {
	Type      int             `json:"type"`
	Line      int             `json:"line,omitempty"`
	Col       int             `json:"col,omitempty"`
	Lit       *string         `json:"lit,omitempty"`
	Bool      bool            `json:"bool,omitempty"`
	Num       json.RawMessage `json:"num,omitempty"`
	Expr      string          `json:"expr,omitempty"`
	Directive string          `json:"directive,omitempty"`
	Seq       []*Value        `json:"seq,omitempty"`
	Map       []Pair          `json:"map,omitempty"`
}

const (
	tokString = iota
	tokSequence
	tokMapping
	tokExpression
	tokInsert
	tokBool
	tokNumber
	tokNull
)

// MarshalJSON writes v with its positions. A string, a boolean or a finite number
// without a position is written plain.
func (v *Value) MarshalJSON() ([]byte, error) {
	t := token{Line: v.Pos.Line, Col: v.Pos.Col}
	switch v.Kind {
	case Null:
		t.Type = tokNull
	case Bool:
		if v.Pos.IsZero() {
			return strconv.AppendBool(nil, v.Bool), nil
		}
		t.Type, t.Bool = tokBool, v.Bool
	case Number:
		finite := !math.IsNaN(v.Num) && !math.IsInf(v.Num, 0)
		if finite && v.Pos.IsZero() {
			return json.Marshal(v.Num)
		}
		t.Type = tokNumber
		if finite {
			t.Num = strconv.AppendFloat(nil, v.Num, 'g', -1, 64)
		} else {
			t.Num = strconv.AppendQuote(nil, strconv.FormatFloat(v.Num, 'g', -1, 64))
		}
	case String:
		if v.Pos.IsZero() {
			return json.Marshal(v.Str)
		}
		t.Type, t.Lit = tokString, &v.Str
	case Sequence:
		t.Type, t.Seq = tokSequence, v.Items
	case Mapping:
		t.Type, t.Map = tokMapping, v.Pairs
	case Expression:
		t.Type, t.Expr = tokExpression, v.Str
	case Insert:
		t.Type, t.Directive = tokInsert, "insert"
	default:
		return nil, fmt.Errorf("workflow: a value of kind %d cannot be written", v.Kind)
	}
	return json.Marshal(t)
}

// UnmarshalJSON reads what MarshalJSON wrote. Expressions are parsed again; one
// that does not parse is an error.
func (v *Value) UnmarshalJSON(data []byte) error {
	data = bytes.TrimSpace(data)
	if len(data) == 0 {
		return fmt.Errorf("workflow: an empty value cannot be read")
	}
	switch data[0] {
	case 'n':
		*v = Value{}
		return nil
	case 't', 'f':
		var b bool
		if err := json.Unmarshal(data, &b); err != nil {
			return err
		}
		*v = Value{Kind: Bool, Bool: b}
		return nil
	case '"':
		var s string
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
		*v = Value{Kind: String, Str: s}
		return nil
	case '{':
	default:
		var f float64
		if err := json.Unmarshal(data, &f); err != nil {
			return err
		}
		*v = Value{Kind: Number, Num: f}
		return nil
	}
	var t token
	if err := json.Unmarshal(data, &t); err != nil {
		return err
	}
	out := Value{Pos: Pos{t.Line, t.Col}}
	if t.Lit != nil {
		out.Str = *t.Lit
	}
	switch t.Type {
	case tokNull:
		out.Kind = Null
	case tokBool:
		out.Kind, out.Bool = Bool, t.Bool
	case tokNumber:
		out.Kind = Number
		f, err := strconv.ParseFloat(string(bytes.Trim(t.Num, `"`)), 64)
		if err != nil {
			return fmt.Errorf("workflow: the number %s cannot be read: %w", t.Num, err)
		}
		out.Num = f
	case tokString:
		out.Kind = String
	case tokSequence:
		out.Kind, out.Items = Sequence, t.Seq
		for i, it := range out.Items {
			if it == nil {
				out.Items[i] = &Value{}
			}
		}
	case tokMapping:
		out.Kind, out.Pairs = Mapping, t.Map
		for _, p := range out.Pairs {
			if p.Key == nil || p.Value == nil {
				return fmt.Errorf("workflow: a mapping has an entry without key or value")
			}
		}
	case tokExpression:
		e, err := expr.Parse(t.Expr, nil)
		if err != nil {
			return fmt.Errorf("workflow: the expression %q cannot be read: %w", t.Expr, err)
		}
		out.Kind, out.Str, out.Expr = Expression, t.Expr, e
	case tokInsert:
		out.Kind = Insert
	default:
		return fmt.Errorf("workflow: unknown value type %d", t.Type)
	}
	*v = out
	return nil
}
