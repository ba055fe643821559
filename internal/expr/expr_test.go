package expr

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
)

func mustJSON(t testing.TB, s string) Value {
	t.Helper()
	v, err := ParseJSON([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func testEnv(t testing.TB) *Env {
	return &Env{
		Contexts: mustJSON(t, `{
			"github": {"ref": "refs/heads/main", "event_name": "push", "event": {"commits": [{"message": "a", "added": ["x", "y"]}, {"message": "b", "added": ["z"]}, {"id": 1}]}},
			"matrix": {"OS": "linux", "n": 3, "list": [10, 20, [30, 40]]},
			"env": {"A": "1"}
		}`).AsMap(),
		Functions: map[string]Func{
			"success": func([]Value) (Value, error) { return Bool(true), nil },
			"failure": func([]Value) (Value, error) { return Bool(false), nil },
			"hashfiles": func(args []Value) (Value, error) {
				return Value{}, errors.New("no disk")
			},
		},
	}
}

func TestEval(t *testing.T) {
	env := testEnv(t)
	for _, c := range []struct{ src, want string }{
		{"", "null"},
		{" \t\r\n ", "null"},
		{"github.REF", `"refs/heads/main"`},
		{"github['event_name']", `"push"`},
		{"github.event.commits.*.message", `["a","b"]`},
		{"github.event.commits[*].added[0]", `["x","z"]`},
		{"github.event.commits.*.added.*", `["x","y","z"]`},
		{"join(github.event.commits.*.added.*, '-')", `"x-y-z"`},
		{"(github.event.commits.*.message)[0]", `[]`},
		{"matrix.list[1.9]", "20"},
		{"matrix.list['2'][0]", "30"},
		{"matrix.list[-1]", "null"},
		{"matrix.list.*[1]", "[40]"},
		{"matrix.nope.deeper['x']", "null"},
		{"vars.anything", "null"},
		{"contains(github.event.commits.*.message, 'B')", "true"},
		{"contains(github, 'x')", "false"},
		{"contains(fromJSON('[]'), fromJSON('{'))", "false"},
		{"startsWith(github, '')", "false"},
		{"success() && 'yes' || 'no'", `"yes"`},
		{"failure() || hashFiles", ""},
		{"true || hashFiles('x')", "true"},
		{"false && hashFiles('x')", "false"},
		{"case(false, hashFiles('x'), 'd')", `"d"`},
		{"format('{1}{0}', 'a', 'b')", `"ba"`},
		{"format('{0}', 'a', hashFiles('x'))", `"a"`},
		{"format('{{0}}{0}', 1)", `"{0}1"`},
		{"1e15", "1e15"},
		{"format('{0} {1} {2} {3}', 1e15, 0.00001, 123456789012345678, 0.1)", `"1E+15 1E-05 1.23456789012346E+17 0.1"`},
		{"format('{0}', 1e300)", `"1E+300"`},
		{"format('{0}', 100000000000000)", `"100000000000000"`},
		{"format('{0}', 0.0001)", `"0.0001"`},
		{"'0xffffffff' == -1", "true"},
		{"'0x1ffffffff' == 8589934591", "false"},
		{"'1e999' == Infinity", "true"},
		{"'1_0' == 10", "false"},
		{"'.' == 0", "false"},
		{"'5.' == 5", "true"},
		{"'\u00a05\u3000' == 5", "true"},
		{"'straße' == 'STRASSE'", "false"},
		{"'ſ' == 's'", "false"},
		{"'\U00010428' == '\U00010400'", "true"},
		{"'\U00010400' < '\uFF21'", "true"},
		{"!'' == true", "true"},
		{"fromJSON('{\"a\":1,\"A\":2}').a", "2"},
		{"toJSON(fromJSON('{\"b\":1,\"a\":[1,{}]}'))", `"{\n  \"b\": 1,\n  \"a\": [\n    1,\n    {}\n  ]\n}"`},
		{"fromJSON('[''a'', \"b\", ] // c')[1]", `"b"`},
		{"fromJSON('{a: 0x10, /* x */ b: .5,}').a", "16"},
		{"toJSON('\u2028\u0007é')", `"\"\\u2028\\u0007é\""`},
		{"fromJSON('\"\\ud83d\\ude00\\ud83d\"')", `"😀` + "\uFFFD" + `"`},
	} {
		e, err := Parse(c.src, nil)
		if c.want == "" {
			if err == nil {
				t.Errorf("%s: parsed", c.src)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.src, err)
			continue
		}
		got, err := e.Eval(env)
		if err != nil {
			t.Errorf("%s: %v", c.src, err)
		} else if want := mustJSON(t, c.want); !identical(got, want) {
			t.Errorf("%s = %s, want %s", c.src, got.JSON(), want.JSON())
		}
	}
}

func TestErrors(t *testing.T) {
	allow := NewAllow("github", "needs", "success(0,MAX)", "hashFiles(1,2)")
	for _, c := range []struct {
		src  string
		kind ErrorKind
		want string
	}{
		{"secrets.x", Parsing, "Unrecognized named-value: 'secrets'. Located at position 1 within expression: secrets.x"},
		{"failure()", Parsing, "Unrecognized function: 'failure'. Located at position 1 within expression: failure()"},
		{"hashFiles()", Parsing, "Too few parameters supplied: '('. Located at position 10 within expression: hashFiles()"},
		{"hashFiles('a','b','c')", Parsing, "Too many parameters supplied: '('. Located at position 10 within expression: hashFiles('a','b','c')"},
		{"case(true, 1, false, 2)", Parsing, "Even number of parameters supplied, requires an odd number of parameters: 'case'. Located at position 1 within expression: case(true, 1, false, 2)"},
		{"'é😀' == github.ref)", Parsing, "Unexpected symbol: ')'. Located at position 20 within expression: 'é😀' == github.ref)"},
		{"github.", Parsing, "Unexpected end of expression: '.'. Located at position 7 within expression: github."},
		{"success(", Parsing, "Unexpected end of expression: '('. Located at position 8 within expression: success("},
		{"github[", Parsing, "Unexpected end of expression: '['. Located at position 7 within expression: github["},
		{"github[]", Parsing, "Unexpected symbol: ']'. Located at position 8 within expression: github[]"},
		{"success(,)", Parsing, "Unexpected symbol: ','. Located at position 9 within expression: success(,)"},
		{"(github,)", Parsing, "Unexpected symbol: ','. Located at position 8 within expression: (github,)"},
		{"'a'.b", Parsing, "Unexpected symbol: '.'. Located at position 4 within expression: 'a'.b"},
		{"github . (x)", Parsing, "Unexpected symbol: '('. Located at position 10 within expression: github . (x)"},
		{"{}", Lexing, "Unexpected symbol: '{}'. Located at position 1 within expression: {}"},
		{"github.ref == 'x", Lexing, "Unexpected symbol: ''x'. Located at position 15 within expression: github.ref == 'x"},
		{strings.Repeat("(", 20000), Parsing, ""},
		{strings.Repeat(" ", MaxLength+1), Lexing, "Exceeded max expression length 21000"},
		{"format('{0:d}', 1)", Evaluation, "The format specifiers 'd' are not valid for objects of type 'Number'"},
		{"format('{0}{0:d}', 1)", Evaluation, "The format specifiers 'd' are not valid for objects of type 'Number'"},
		{"format('{256}', 1)", Evaluation, "The following format string is invalid: {256}"},
		{"format('{x}', 1)", Evaluation, "The following format string is invalid: {x}"},
		{"fromJSON('')", Evaluation, "Error reading JToken from JsonReader. Path '', line 0, position 0."},
		{"fromJSON('{\"a\" 1}')", Evaluation, "Error parsing fromJson: invalid JSON: expected ':' after the key, found '1', line 1, position 6"},
		{"fromJSON('" + strings.Repeat("[", 70) + "')", Evaluation, "Error parsing fromJson: invalid JSON: nested more than 64 deep, line 1, position 65"},
		{"hashFiles('x')", Evaluation, "no disk"},
		{"success()", Evaluation, "Unrecognized function: 'success'"},
	} {
		var err error
		e, err := Parse(c.src, allow)
		if err == nil {
			env := testEnv(t)
			delete(env.Functions, "success")
			_, err = e.Eval(env)
		}
		got, ok := errors.AsType[*Error](err)
		if !ok {
			t.Errorf("%s: no error", clip(c.src))
			continue
		}
		if got.Kind != c.kind || c.want != "" && got.Error() != c.want {
			t.Errorf("%s:\n got %s %s\nwant %s %s", clip(c.src), got.Kind, got, c.kind, c.want)
		}
	}
}

// An expression cannot hang or grow without bound.
func TestLimits(t *testing.T) {
	big := NewMap()
	big.Set("s", String(strings.Repeat("ab", 2<<20)))
	big.Set("m", String(strings.Repeat("x", 2_000_000)))
	contexts := NewMap()
	contexts.Set("github", Object(big))
	for _, c := range []struct{ name, src, want string }{
		{"format", "format('{0}{0}{0}', github.s)", msgMemory},
		{"text", "github.s == 'x' || github.s == 'y' || github.s == 'z'", msgMemory},
		{"nested format", "format('{0}{0}{0}{0}{0}{0}{0}{0}', format('{0}{0}{0}{0}{0}{0}{0}{0}', format('{0}{0}{0}{0}{0}{0}{0}{0}', format('{0}{0}{0}{0}{0}{0}{0}{0}', format('{0}{0}{0}{0}{0}{0}{0}{0}', 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx')))))", msgMemory},
		{"work", "false" + strings.Repeat("||github.m=='y'", 1300), msgWork},
		{"contains", "false" + strings.Repeat("||contains(github.m,'xy')", 800), msgWork},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := Parse(c.src, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = e.Eval(&Env{Contexts: contexts, MaxMemory: map[bool]int{true: 1 << 30, false: 8 << 20}[c.want == msgWork], MaxWork: 1 << 25})
			if err == nil || err.Error() != c.want {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestTemplate(t *testing.T) {
	env := testEnv(t)
	for _, c := range []struct{ src, expr, want, err string }{
		{src: "plain", want: `"plain"`},
		{src: "", want: `""`},
		{src: "a }} b $ {{ c", want: `"a }} b $ {{ c"`},
		{src: "${{ github.ref }}", expr: "github.ref", want: `"refs/heads/main"`},
		{src: "${{matrix.n}}", expr: "matrix.n", want: "3"},
		{src: "n=${{ matrix.n }}", expr: "format('n={0}', matrix.n)", want: `"n=3"`},
		{src: "${{ matrix.n }} ", expr: "format('{0} ', matrix.n)", want: `"3 "`},
		{src: "it's {x} ${{ matrix.n }}${{ matrix.os }}", expr: "format('it''s {{x}} {0}{1}', matrix.n, matrix.os)", want: `"it's {x} 3linux"`},
		{src: "${{ '${{ x }}' }}", want: `"${{ x }}"`},
		{src: "${{ 'it''s }}' }}", want: `"it's }}"`},
		{src: "${{ '}}' }}-", expr: "format('{0}-', '}}')", want: `"}}-"`},
		{src: "x ${{ fromJSON('{\"a\":{}}').a }}", expr: "format('x {0}', fromJSON('{\"a\":{}}').a)", want: `"x Object"`},
		{src: "${{ a", err: msgNotClosed},
		{src: "${{ 'a }}", err: msgNotClosed},
		{src: "${{}}", err: msgExpected},
		{src: "a ${{  }}", err: msgExpected},
		{src: "a ${{ nope }}", err: "Unrecognized named-value: 'nope'. Located at position 1 within expression: nope"},
		{src: "a ${{ insert }}", err: msgDirectiveInline},
		{src: "${{ insert }} b", err: msgDirectiveInline},
		{src: "${{ insert 1 }}", err: "Exactly 0 parameter(s) were expected following the directive 'insert'. Actual parameter count: 1"},
		{src: strings.Repeat("x", MaxLength) + "${{ github.ref }}", err: "Exceeded max expression length 21000"},
	} {
		tm, err := ParseTemplate(c.src, nil)
		if c.err != "" {
			if err == nil || err.Error() != c.err {
				t.Errorf("%s: got error %v, want %s", clip(c.src), err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.src, err)
			continue
		}
		if tm.Expr().Source() != c.expr || tm.IsLiteral() != (c.expr == "") {
			t.Errorf("%s: expression %q, want %q", c.src, tm.Expr().Source(), c.expr)
		}
		v, err := String(tm.Literal()), error(nil)
		if e := tm.Expr(); e != nil {
			v, err = e.Eval(env)
		}
		if err != nil || !identical(v, mustJSON(t, c.want)) {
			t.Errorf("%s = %s, %v, want %s", c.src, v.JSON(), err, c.want)
		}
	}
	if tm, err := ParseTemplate("${{ insert }}", nil); err != nil || !tm.IsInsert() || tm.IsLiteral() {
		t.Errorf("insert: %v, %v", tm, err)
	}
}

func TestUsesAndCalls(t *testing.T) {
	e, err := Parse("format('{0}', GitHub.event.commits[0].message) == a.*.b[c.d] && Success() || hashFiles(toJSON(e))", &Allow{
		Contexts: []string{"github", "a", "c", "e"}, Functions: []FuncDef{{"success", 0, 0}, {"hashFiles", 1, 1}}})
	if err != nil {
		t.Fatal(err)
	}
	var uses []string
	e.Uses(func(context string, path []string) { uses = append(uses, fmt.Sprint(context, path)) })
	if want := []string{"GitHub[event commits 0 message]", "a[* b *]", "c[d]", "e[]"}; !reflect.DeepEqual(uses, want) {
		t.Errorf("uses %q, want %q", uses, want)
	}
	if calls, want := e.Calls(), []string{"format", "success", "hashfiles", "tojson"}; !reflect.DeepEqual(calls, want) {
		t.Errorf("calls %q, want %q", calls, want)
	}
	if e.Constant() {
		t.Error("called constant")
	}
	if c, _ := Parse("format('{0}', 1 == 2)", nil); !c.Constant() {
		t.Error("not called constant")
	}
}

func TestMap(t *testing.T) {
	for _, n := range []int{3, 40} { // looked through, and by index
		m := NewMap()
		for i := range n {
			m.Set(fmt.Sprintf("Key-Ä%d", i), Number(float64(i)))
		}
		m.Set("KEY-ä1", String("x"))
		if v, ok := m.Get("key-Ä1"); !ok || v.AsString() != "x" || m.Len() != n || m.Keys()[1] != "Key-Ä1" {
			t.Errorf("%d keys: %v %v %v", n, v, ok, m.Keys())
		}
		c := m.Clone()
		m.Delete("key-ä0")
		if _, ok := m.Get("Key-Ä0"); ok || m.Len() != n-1 || c.Len() != n {
			t.Errorf("%d keys: delete left %v", n, m.Keys())
		}
		if v, _ := m.Get("key-ä2"); v.AsNumber() != 2 {
			t.Errorf("%d keys: after delete, key 2 is %v", n, v)
		}
		b, err := json.Marshal(m)
		var back Map
		if err != nil || json.Unmarshal(b, &back) != nil || !reflect.DeepEqual(back.Keys(), m.Keys()) {
			t.Errorf("%d keys: JSON %s, %v", n, b, err)
		}
		exact := NewCaseSensitiveMap()
		for i := range n {
			exact.Set(fmt.Sprint("K", i), Null())
			exact.Set(fmt.Sprint("k", i), Null())
		}
		if _, ok := exact.Get("k1"); !ok || exact.Len() != 2*n {
			t.Errorf("case-sensitive: %v", exact.Keys())
		}
	}
	var none *Map
	if _, ok := none.Get("x"); ok || none.Len() != 0 || none.Keys() != nil {
		t.Error("a nil map is not empty")
	}
}

func TestParseJSONIsStrict(t *testing.T) {
	for _, s := range []string{"", " ", "{", "[1,]", "{\"a\":1,}", "'a'", "{a:1}", "01", "+1", ".5", "1.", "NaN", "nul", "1 2", "\"\n\"", "// x\n1", "\"\\x\"",
		strings.Repeat("[", 600)} {
		if v, err := ParseJSON([]byte(s)); err == nil {
			t.Errorf("%q: parsed as %s", clip(s), v.JSON())
		}
	}
	const s = `{"z":1.5,"a":[null,true,-0.25,1e+100,"\u00e9\n"],"n":12345678901234567890}`
	v := mustJSON(t, s)
	b, err := json.Marshal(v)
	if err != nil || !identical(mustJSON(t, string(b)), v) || v.AsMap().Keys()[0] != "z" {
		t.Errorf("got %s, %v", b, err)
	}
	if b, _ := Number(math.NaN()).MarshalJSON(); string(b) != "null" {
		t.Errorf("NaN is %s", b)
	}
}

func TestExprJSON(t *testing.T) {
	e, _ := Parse("custom.x && other(1)", &Allow{Contexts: []string{"custom"}, Functions: []FuncDef{{"other", 1, 1}}})
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var back Expr
	if err := json.Unmarshal(b, &back); err != nil || back.Source() != e.Source() {
		t.Errorf("%s: %v", b, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"a.b['c'].*[*] == !1 && f(x, 'y''z') || (0x1F <= -.5e3)", "((((", "a..b", "'", "1 2", "!!!!f()", "case(true,1,2)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parseAny(s)
		if err != nil {
			if e, ok := errors.AsType[*Error](err); !ok || e.Error() == "" || e.Pos < 0 || e.Pos > units(s) {
				t.Errorf("error %#v", err)
			}
			return
		}
		e.Uses(func(string, []string) {})
		e.Calls()
		if _, err := parseAny("(" + s + ")"); err != nil && e.root != nil && len(s)+2 <= MaxLength {
			t.Errorf("%q parses, in parentheses not: %v", s, err)
		}
	})
}

func FuzzEval(f *testing.F) {
	for _, s := range []string{"github.event.commits.*.message", "join(matrix.list.*, format('{0}{{', 1))", "fromJSON(toJSON(github))",
		"contains('abc', 'B') && 1 < '2'", "case(true, null, 2)[0]", "fromJSON('{a:[1,''x''],}').a[*]"} {
		f.Add(s)
	}
	env := testEnv(f)
	env.MaxMemory, env.MaxWork = 1<<20, 1<<22
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parseAny(s)
		if err != nil {
			return
		}
		v, err := e.Eval(env)
		if err != nil {
			if e, ok := errors.AsType[*Error](err); !ok || e.Kind != Evaluation {
				t.Errorf("error %#v", err)
			}
			return
		}
		if again, err := e.Eval(env); err != nil || !identical(v, again) {
			t.Errorf("%q: first %s, then %s, %v", s, v.JSON(), again.JSON(), err)
		}
		v.Truthy()
		v.ToNumber()
		b, _ := v.MarshalJSON()
		if !json.Valid(b) {
			t.Errorf("%q: invalid JSON %s", s, b)
		}
	})
}

func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"a ${{ b }} c", "${{ 'x' }}", "${{ insert }}", "{${{ 1 }}}'${{'}}'}}", "${{", "}}${{}}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tm, err := parseTemplate(s, parseAny)
		if err != nil || tm.IsInsert() {
			return
		}
		if tm.IsLiteral() {
			if !HasExpression(s) && tm.Literal() != s {
				t.Errorf("%q: literal %q", s, tm.Literal())
			}
			return
		}
		if again, err := parseAny(tm.Expr().Source()); err != nil {
			t.Errorf("%q: made %q, which does not parse: %v", s, again, err)
		}
		tm.Expr().Eval(&Env{MaxMemory: 1 << 20, MaxWork: 1 << 22})
	})
}

func BenchmarkEval(b *testing.B) {
	env := testEnv(b)
	for _, src := range []string{
		"github.ref == 'refs/heads/main'",
		"success() && github.event_name == 'push'",
		"matrix.os",
		"format('n={0}', matrix.n)",
		"contains(github.event.commits.*.message, 'b')",
	} {
		e, err := Parse(src, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(src, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.Eval(env); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse("success() && (github.event_name == 'push' || startsWith(github.ref, 'refs/tags/'))", nil); err != nil {
			b.Fatal(err)
		}
	}
}

// A condition is known as far as it hangs on what is known, and no further.
func TestTruth(t *testing.T) {
	env := testEnv(t)
	delete(env.Functions, "hashfiles")
	known := func(context string, path []string) bool {
		return EqualFold(context, "github") || EqualFold(context, "matrix")
	}
	for src, want := range map[string]string{
		"":                            "no",
		"success()":                   "yes",
		"failure()":                   "no",
		"!failure()":                  "yes",
		"github.event_name == 'push'": "yes",
		"env.A == '1'":                "?",
		"!env.A":                      "?",
		"env.A && matrix.os == 'mac'": "no",
		"matrix.os == 'mac' && env.A": "no",
		"env.A || matrix.os":          "yes",
		"env.A || matrix.os == 'mac'": "?",
		"success() && env.A":          "?",
		"hashFiles('x') != ''":        "?",
		"contains(github.ref, 'main') && (failure() || matrix.n == 3)": "yes",
		"(env.A || 'x') == 'x'": "?",
		"fromJSON('{')":         "?",
	} {
		e, err := Parse(src, nil)
		if src != "" && err != nil {
			t.Fatal(src, err)
		}
		got := "?"
		if yes, sure := e.Truth(env, known); sure {
			got = map[bool]string{true: "yes", false: "no"}[yes]
		}
		if got != want {
			t.Errorf("%s: %s, want %s", src, got, want)
		}
	}
}

// identical reports whether a and b hold the same data: like ==, but arrays and
// objects are compared by their members (the order of keys and filtering do not
// count), text with its case, and NaN is identical to itself.
func identical(a, b Value) bool {
	if a.kind != b.kind {
		return false
	}
	switch a.kind {
	case KindNull:
		return true
	case KindBool:
		return a.num == b.num
	case KindNumber:
		return a.num == b.num || math.IsNaN(a.num) && math.IsNaN(b.num)
	case KindString:
		return a.str == b.str
	case KindArray:
		x, y := a.AsArray(), b.AsArray()
		if len(x) != len(y) {
			return false
		}
		for i := range x {
			if !identical(x[i], y[i]) {
				return false
			}
		}
		return true
	}
	if a.obj.Len() != b.obj.Len() {
		return false
	}
	for k, x := range a.obj.All() {
		y, ok := b.obj.Get(k)
		if !ok || !identical(x, y) {
			return false
		}
	}
	return true
}
