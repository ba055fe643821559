package command

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		line string
		want *Command
	}{
		{"::error file=a.go,line=3,endLine=4::it broke", &Command{"error", map[string]string{"file": "a.go", "line": "3", "endline": "4"}, "it broke"}},
		{"  ::debug::x%0Ay%25%0D", &Command{"debug", nil, "x\ny%\r"}},
		{"::warning title=a%3Ab%2Cc%25::%250A", &Command{"warning", map[string]string{"title": "a:b,c%"}, "%0A"}},
		{"::WARNING Title=T::x", &Command{"warning", map[string]string{"title": "T"}, "x"}},
		{"::set-output name=x::a::b", &Command{"set-output", map[string]string{"name": "x"}, "a::b"}},
		{"::group::", &Command{"group", nil, ""}},
		{"2026-11-23 ##[group]Old one", &Command{"group", nil, "Old one"}},
		{"##[error file=x;line=2]a%5D%3B", &Command{"error", map[string]string{"file": "x", "line": "2"}, "a];"}},
		{"::unknown::x", nil},
		{"text ::error::x", nil},
		{"::error:x", nil},
		{"::::x", nil},
		{"", nil},
		{"##[error", nil},
	} {
		got, ok := Parse(c.line, isCommand)
		if ok != (c.want != nil) || ok && !reflect.DeepEqual(got, *c.want) {
			t.Errorf("%q: %+v %v", c.line, got, ok)
		}
	}
}

// lines runs lines through a processor and writes its effects down.
func lines(p *Processor, in ...string) string {
	var out []string
	for _, l := range in {
		for _, e := range p.Line(l) {
			s := e.Kind.String()
			if e.Name != "" {
				s += " " + e.Name
			}
			if e.Kind == Annotate {
				e.Value = fmt.Sprintf("%s %s:%d %s", e.Annotation.Level, e.Annotation.File, e.Annotation.Line, e.Annotation.Message)
			}
			out = append(out, s+"="+e.Value)
		}
	}
	return strings.Join(out, "\n")
}

func TestProcessor(t *testing.T) {
	for _, c := range []struct {
		name string
		opt  Options
		in   []string
		want string
	}{
		{"text", Options{}, []string{"hello"}, "print=hello"},
		{"group", Options{}, []string{"::group::Name", "x", "::endgroup::"}, "group=Name\nprint=x\nendgroup="},
		{"annotation", Options{}, []string{"::error file=a,line=2::no"}, "print=##[error]no\nannotate=error a:2 no"},
		{"mask", Options{}, []string{"::add-mask::s3"}, "add-mask=s3"},
		{"mask nothing", Options{}, []string{"::add-mask:: "},
			"print=##[warning]Can't add secret mask for empty string in ##[add-mask] command.\nannotate=warning :0 Can't add secret mask for empty string in ##[add-mask] command."},
		{"stop", Options{}, []string{"::stop-commands::tok", "::error::x", "::tok::", "::debug::y"},
			"print=::stop-commands::tok\nprint=::error::x\nprint=::tok::\ndebug=y"},
		{"stop masks its token", Options{}, []string{"::stop-commands::longtoken"}, "print=::stop-commands::longtoken\nadd-mask=longtoken"},
		{"echo", Options{}, []string{"::echo::on", "::group::g", "::echo::off", "::endgroup::"}, "print=::group::g\ngroup=g\nprint=::echo::off\nendgroup="},
		{"path allowed", Options{Unsecure: true}, []string{"::add-path::/x", "::set-env name=A::b"}, "add-path=/x\nset-env A=b"},
		{"matcher", Options{}, []string{"::add-matcher::m.json", "::remove-matcher owner=go::"}, "add-matcher=m.json\nremove-matcher go="},
	} {
		if got := lines(NewProcessor(c.opt), c.in...); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"::set-env name=A::b", "The `set-env` command is disabled."},
		{"::add-path::/x", "The `add-path` command is disabled."},
		{"::set-output::b", "Required field 'name' is missing in ##[set-output] command."},
		{"::stop-commands::", "You cannot use a endToken that is an empty string"},
		{"::stop-commands::debug", "You cannot use a endToken"},
		{"::echo::maybe", "Invalid echo command value."},
	} {
		got := lines(NewProcessor(Options{}), c.in)
		if !strings.Contains(got, c.want) || !strings.HasSuffix(got, "fail=") {
			t.Errorf("%s: %s", c.in, got)
		}
	}
	if got := lines(NewProcessor(Options{Unsecure: true}), "::set-env name=NODE_OPTIONS::--require=x"); !strings.Contains(got, "Can't update NODE_OPTIONS") ||
		strings.Contains(got, "set-env NODE") {
		t.Error(got)
	}
}

func TestAtMostTenAnnotations(t *testing.T) {
	p := NewProcessor(Options{})
	n := map[string]int{}
	for range 30 {
		for _, l := range []string{"::error::x", "::notice::y"} {
			for _, e := range p.Line(l) {
				n[e.Kind.String()]++
			}
		}
	}
	if n["annotate"] != 2*MaxAnnotations || n["print"] != 60 {
		t.Error(n)
	}
}

func TestDeprecatedWarnsOnce(t *testing.T) {
	p := NewProcessor(Options{})
	got := lines(p, "::set-output name=a::1", "::set-output name=b::2")
	if strings.Count(got, "deprecated") != 2 /* line and annotation */ || !strings.Contains(got, "set-output b=2") {
		t.Error(got)
	}
}

func TestPairs(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []Pair
		err  string
	}{
		{"A=1\nB=x=y\n", []Pair{{"A", "1"}, {"B", "x=y"}}, ""},
		{"A=1", []Pair{{"A", "1"}}, ""},
		{"\n\nA=\n", []Pair{{"A", ""}}, ""},
		{"A<<EOF\none\ntwo\nEOF\nB=2\n", []Pair{{"A", "one\ntwo"}, {"B", "2"}}, ""},
		{"A<<EOF\nEOF", []Pair{{"A", ""}}, ""},
		{"A<<EOF\n\nEOF\n", []Pair{{"A", ""}}, ""},
		{"A<<EOF\n\n\nEOF\n", []Pair{{"A", "\n"}}, ""},
		{"A=x<<EOF\n", []Pair{{"A", "x<<EOF"}}, ""},
		{"A<<E=F\nv\nE=F\n", []Pair{{"A", "v"}}, ""},
		{"A<<EOF\none\nEOF \nEOF\n", []Pair{{"A", "one\nEOF "}}, ""},
		{"A<<EOF\nB=1\n", nil, "Invalid value. Matching delimiter not found 'EOF'"},
		{"A<<EOF\nB=1", nil, "Invalid value. EOF marker missing new line."},
		{"A<<EOF\noneEOF\n", nil, "Invalid value. Matching delimiter not found 'EOF'"},
		{"X=1\n<<EOF\n", []Pair{{"X", "1"}}, "Invalid format '<<EOF'. Name must not be empty and delimiter must not be empty"},
		{"A<<\n", nil, "Invalid format 'A<<'. Name must not be empty and delimiter must not be empty"},
		{"=x\n", nil, "Invalid format '=x'. Name must not be empty"},
		{"nothing\n", nil, "Invalid format 'nothing'"},
	} {
		got, err := ParsePairs(c.in)
		if fmt.Sprint(err) != c.err && !(err == nil && c.err == "") || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %q, %v; want %q, %s", c.in, got, err, c.want, c.err)
		}
	}
}

func TestMatchers(t *testing.T) {
	goMatcher := `{"problemMatcher":[{"owner":"go","pattern":[{"regexp":"^\\s*(\\.{0,2}[\\/\\\\].+\\.go):(?:(\\d+):(\\d+):)? (.*)","file":1,"line":2,"column":3,"message":4}]}]}`
	eslint := `{"problemMatcher":[{"owner":"eslint-stylish","pattern":[{"regexp":"^([^\\s].*)$","file":1},{"regexp":"^\\s+(\\d+):(\\d+)\\s+(error|warning|info)\\s+(.*)\\s\\s+(.*)$","line":1,"column":2,"severity":3,"message":4,"code":5,"loop":true}]}]}`
	var m Matchers
	for _, src := range []string{goMatcher, eslint} {
		list, err := ParseMatchers([]byte(src))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Add(list); err != nil {
			t.Fatal(err)
		}
	}
	s := m.NewScanner()
	var got []string
	for _, l := range []string{
		"\x1b[31m./a/b.go:12:3: undefined: x\x1b[0m",
		"/src/foo.js",
		"  1:2  warning  Missing semicolon  semi",
		"  3:4  error  Not defined  no-undef",
		"  5:6  info  Quiet  nothing",
		"done",
		"  7:8  error  No file before this  x",
	} {
		if a, ok := s.Line(t.Context(), l); ok {
			got = append(got, fmt.Sprintf("%s %s:%d:%d %s [%s]", a.Level, a.File, a.Line, a.Column, a.Message, a.Title))
		}
	}
	want := []string{
		"error ./a/b.go:12:3 undefined: x []",
		"warning /src/foo.js:1:2 Missing semicolon [semi]",
		"error /src/foo.js:3:4 Not defined [no-undef]",
		"error done:7:8 No file before this [x]",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	m.Remove("GO")
	if _, ok := s.Line(t.Context(), "./a/b.go:12:3: x"); ok {
		t.Error("a removed matcher still matches")
	}
}

func TestMatcherRefusals(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`[]`, "not a problem matcher file"},
		{`{"problemMatcher":[{"pattern":[]}]}`, "Owner must not be empty"},
		{`{"problemMatcher":[{"owner":"a","pattern":[]}]}`, "does not contain any patterns"},
		{`{"problemMatcher":[{"owner":"a","severity":"loud","pattern":[{"regexp":"(x)","message":1}]}]}`, "unexpected default severity 'loud'"},
		{`{"problemMatcher":[{"owner":"a","pattern":[{"regexp":"(x)","message":2}]}]}`, "out of range"},
		{`{"problemMatcher":[{"owner":"a","pattern":[{"regexp":"(x)","file":1}]}]}`, "must set 'message'"},
		{`{"problemMatcher":[{"owner":"a","pattern":[{"regexp":"(x)","message":1,"loop":true}]}]}`, "may set 'loop'"},
		{`{"problemMatcher":[{"owner":"a","pattern":[{"regexp":"(?=x)","message":0}]}]}`, "look-around"},
		{`{"problemMatcher":[{"owner":"a","pattern":[{"regexp":"(x)","message":1},{"regexp":"(x)","message":1}]}]}`, "set twice"},
	} {
		if _, err := ParseMatchers([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.in, err)
		}
	}
}

func FuzzProcessor(f *testing.F) {
	f.Add("::error file=a,line=1::x\n::stop-commands::t\n::t::\n##[group]x")
	f.Add("::add-mask::x\n::echo::on\n::set-output name=a::b%0A")
	f.Fuzz(func(t *testing.T, in string) {
		p := NewProcessor(Options{Unsecure: true})
		for line := range strings.SplitSeq(in, "\n") {
			c, ok := Parse(line, isCommand)
			if ok && !isCommand(c.Name) {
				t.Fatalf("%q became %q", line, c.Name)
			}
			if ok && !strings.Contains(line, "##[") && !MaybeCommand([]byte(line)) {
				t.Fatalf("%q is a command and MaybeCommand denies it", line)
			}
			p.Line(line)
		}
	})
}

func FuzzPairs(f *testing.F) {
	f.Add("A=1\nB<<E\nx\nE\n", "v\nw")
	f.Fuzz(func(t *testing.T, in, value string) {
		pairs, _ := ParsePairs(in)
		for _, p := range pairs {
			if p.Key == "" {
				t.Fatal("empty key")
			}
		}
		// What is written as a heredoc is read back.
		if d := "DELIM"; !strings.Contains(value, d) {
			got, err := ParsePairs("K<<" + d + "\n" + value + "\n" + d + "\n")
			if err != nil || len(got) != 1 || got[0].Value != value {
				t.Fatalf("%q: %q %v", value, got, err)
			}
		}
	})
}

func FuzzMatchers(f *testing.F) {
	f.Add(`{"problemMatcher":[{"owner":"a","pattern":[{"regexp":"(x)","file":1},{"regexp":"(y)","message":1,"loop":true}]}]}`, "x\ny\ny")
	f.Fuzz(func(t *testing.T, src, in string) {
		list, err := ParseMatchers([]byte(src))
		if err != nil {
			return
		}
		var m Matchers
		if m.Add(list) != nil {
			return
		}
		s := m.NewScanner()
		for line := range strings.SplitSeq(in, "\n") {
			if a, ok := s.Line(t.Context(), line); ok && a.Message == "" {
				t.Fatal("empty message")
			}
		}
	})
}
