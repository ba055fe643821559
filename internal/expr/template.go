package expr

import (
	"fmt"
	"strings"
	"unicode"
)

// What GitHub says about malformed templates.
const (
	msgNotClosed       = "The expression is not closed. An unescaped ${{ sequence was found, but the closing }} sequence was not found."
	msgExpected        = "An expression was expected"
	msgDirectiveInline = "The directive 'insert' is not allowed in this context. Directives are not supported for expressions that are embedded within a string. Directives are only supported when the entire value is an expression."
)

// Template is a string that may hold ${{ }}: either a literal, or one expression,
// or the directive insert. Text with expressions in it is the expression
// format('text {0}', …), as on GitHub. It is immutable.
type Template struct {
	lit    string
	expr   *Expr
	insert bool
}

// HasExpression reports whether s has a ${{ in it, so that [ParseTemplate] would
// see more than a literal.
func HasExpression(s string) bool { return strings.Contains(s, "${{") }

// ParseTemplate finds the expressions in a string and parses them. The error is
// an *[Error], whose Expr is the expression that is wrong, without ${{ }}.
func ParseTemplate(s string, allow *Allow) (*Template, error) {
	return parseTemplate(s, func(src string) (*Expr, error) { return Parse(src, allow) })
}

func parseTemplate(s string, parse func(string) (*Expr, error)) (*Template, error) {
	t := &Template{}
	var exprs []*Expr
	if !HasExpression(s) {
		t.lit = s
		return t, nil
	}
	var format, args strings.Builder
	text := false
	rest := s
	for rest != "" {
		i := strings.Index(rest, "${{")
		if i != 0 {
			if i < 0 {
				i = len(rest)
			}
			text = true
			format.WriteString(formatEscaper.Replace(rest[:i]))
			rest = rest[i:]
			continue
		}
		end := closing(rest)
		if end < 0 {
			return nil, &Error{Kind: Parsing, Msg: msgNotClosed, Expr: rest}
		}
		inner := rest[3 : end-2]
		src := strings.TrimFunc(inner, unicode.IsSpace)
		if src == "" {
			return nil, &Error{Kind: Parsing, Msg: msgExpected}
		}
		at := len(s) - len(rest) + 3 + strings.Index(inner, src)
		rest = rest[end:]
		if insert, err := directive(src); err != nil {
			return nil, err
		} else if insert {
			if at > 0 && strings.TrimFunc(s[:at], unicode.IsSpace) != "${{" || !strings.HasPrefix(s, "${{") || rest != "" {
				return nil, &Error{Kind: Parsing, Msg: msgDirectiveInline, Expr: src}
			}
			t.insert = true
			return t, nil
		}
		e, err := parse(src)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&format, "{%d}", len(exprs))
		args.WriteString(", ")
		args.WriteString(src)
		exprs = append(exprs, e)
	}
	if len(exprs) == 1 && !text {
		t.expr = exprs[0]
		if root := t.expr.root; root != nil && root.op == opLiteral && root.val.Kind() == KindString && t.expr.src[0] == '\'' {
			// ${{ 'text' }} is how text with ${{ in it is written.
			t.lit, t.expr = root.val.str, nil
		}
		return t, nil
	}
	e, err := parse("format('" + format.String() + "'" + args.String() + ")")
	if err != nil {
		return nil, err
	}
	t.expr = e
	return t, nil
}

// formatEscaper writes text so that it can stand in a format in an expression.
var formatEscaper = strings.NewReplacer("'", "''", "{", "{{", "}", "}}")

// closing is the offset behind the }} that closes the ${{ at the start of s.
func closing(s string) int {
	inString := false
	for i := 3; i < len(s); i++ {
		switch {
		case s[i] == '\'':
			inString = !inString
		case !inString && s[i] == '}' && s[i-1] == '}':
			return i + 1
		}
	}
	return -1
}

// directive recognises insert, which stands in place of an expression.
func directive(src string) (bool, error) {
	rest, ok := strings.CutPrefix(src, "insert")
	if !ok || rest != "" && spaceLen(rest) == 0 {
		return false, nil
	}
	if n := len(strings.Fields(rest)); n > 0 {
		return false, &Error{Kind: Parsing, Expr: src,
			Msg: fmt.Sprintf("Exactly 0 parameter(s) were expected following the directive 'insert'. Actual parameter count: %d", n)}
	}
	return true, nil
}

// IsLiteral reports whether nothing is to be evaluated.
func (t *Template) IsLiteral() bool { return t.expr == nil && !t.insert }

// Literal is the text of a literal: the string itself, or the text of a single
// string expression.
func (t *Template) Literal() string { return t.lit }

// IsInsert reports whether the template is ${{ insert }}.
func (t *Template) IsInsert() bool { return t.insert }

// Expr is the one expression that the template is, nil for literals and insert.
func (t *Template) Expr() *Expr { return t.expr }
