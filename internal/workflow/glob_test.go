package workflow

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// The examples of GitHub's filter pattern cheat sheet, and its corners.
func TestMatchGlob(t *testing.T) {
	for _, c := range []struct {
		pattern  string
		yes, not string // names, separated by spaces
	}{
		// branches and tags
		{"feature/*", "feature/my-branch feature/your-branch feature/", "feature feature/a/b xfeature/a"},
		{"feature/**", "feature/beta-a/my-branch feature/your-branch feature/mona/the/octocat", "feature features/x"},
		{"main", "main", "Main main2 amain main/"},
		{"releases/mona-the-octocat", "releases/mona-the-octocat", "releases"},
		{"*", "main releases", "a/b /"},
		{"**", "all/the/branches every/tag x", ""},
		{"*feature", "mona-feature feature ver-10-feature", "features a/feature"},
		{"v2*", "v2 v2.0 v2.9", "v1 v2/x"},
		{"v[12].[0-9]+.[0-9]+", "v1.10.1 v2.0.0", "v3.0.0 v1.10 v1.10.1-rc v1.a.1 v1x10.1"},
		{"releases/**-alpha", "releases/10-alpha releases/beta/3-alpha releases/-alpha", "releases/10 releases/10-alpha1"},
		{"Octo*", "Octocat Octo", "octocat"},
		{"[CB]at", "Cat Bat", "Rat cat CBat"},
		{"[1-2]00", "100 200", "300 1-00"},
		// paths
		{"*.jsx?", "page.js page.jsx", "page.jsxx a/page.js page.j"},
		{"*.js", "app.js index.js .js", "src/app.js"},
		{"**.js", "index.js js/index.js src/js/app.js", "index.jsx"},
		{"docs/*", "docs/README.md docs/file.txt", "docs/a/b docs"},
		{"docs/**", "docs/README.md docs/mona/octocat.txt", "docs doc/x"},
		{"docs/**/*.md", "docs/README.md docs/mona/hello-world.md docs/a/markdown/file.md", "docs/x.txt docsx/a.md"},
		{"**/docs/**", "docs/hello.md dir/docs/my-file.txt space/docs/plan/space.doc", "adocs/x docs dir/docs"},
		{"**/README.md", "README.md js/README.md", "xREADME.md js/xREADME.md"},
		{"**/*src/**", "a/src/app.js my-src/code/js/app.js", "a/srcs/app.js src"},
		{"**/*-post.md", "my-post.md path/their-post.md", "post.md"},
		{"**/migrate-*.sql", "migrate-10909.sql db/migrate-v1.0.sql db/sept/migrate-v1.sql", "migrate.sql"},
		{"a/**/b", "a/b a/x/b a/x/y/b", "ab a/xb"},
		// repetition and escapes
		{"ab?c", "abc ac", "abbc adc"},
		{"ab+c", "abc abbbc", "ac"},
		{"?x", "?x", "x ax"},
		{"+x", "+x", "x"},
		{"[ab]+", "a b abba", "c"},
		{"[ab]?c", "ac bc c", "abc"},
		{"a**?", "a ab", "b"},
		{"**/?x", "x a/x ", "ax"},
		{`\*x`, "*x", "ax x"},
		{`a\+`, "a+", "aa a"},
		{`\!x`, "!x", "x"},
		{`a\\b`, `a\b`, "ab"},
		{"a!b", "a!b", "ab"},
		{"é*", "é étoile", "e te"},
		{"a.c", "a.c", "abc"},
		{"(a|b)", "(a|b)", "a b"},
		{"[a-zA-Z0-9]", "q Q 7", "- _ é"},
	} {
		p, err := ParsePattern(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		for name := range strings.FieldsSeq(c.yes) {
			if !p.Match(name) {
				t.Errorf("%s does not match %s", c.pattern, name)
			}
		}
		for name := range strings.FieldsSeq(c.not) {
			if p.Match(name) {
				t.Errorf("%s matches %s", c.pattern, name)
			}
		}
	}
}

func TestParsePatternErrors(t *testing.T) {
	for pattern, want := range map[string]string{
		"":      "invalid pattern '': there is nothing to match at character 1",
		"!":     "invalid pattern '!': there is nothing to match at character 2",
		"a[":    "invalid pattern 'a[': the bracket is not closed at character 2",
		"é[ab":  "invalid pattern 'é[ab': the bracket is not closed at character 2",
		"a[]":   "invalid pattern 'a[]': the brackets are empty at character 2",
		"[z-a]": "invalid pattern '[z-a]': ranges can only be within a-z, A-Z and 0-9, from low to high at character 2",
		"[A-z]": "invalid pattern '[A-z]': ranges can only be within a-z, A-Z and 0-9, from low to high at character 2",
		"[-a]":  "invalid pattern '[-a]': '-' must stand between two letters or digits at character 2",
		"[é]":   "invalid pattern '[é]': only letters a-z, A-Z and digits may stand in brackets at character 2",
		"a++":   "invalid pattern 'a++': '+' follows nothing that it can repeat at character 3",
		`a\`:    `invalid pattern 'a\': '\' must be followed by a character at character 2`,
		"!a?+":  "invalid pattern '!a?+': '+' follows nothing that it can repeat at character 4",
	} {
		_, err := ParsePattern(pattern)
		if pe, ok := errors.AsType[*PatternError](err); !ok || pe.Error() != want {
			t.Errorf("%q: got %v, want %s", pattern, err, want)
		}
	}
	if _, err := ParsePattern(strings.Repeat("a", MaxPattern+1)); err == nil {
		t.Error("a pattern of any length is taken")
	}
}

func TestPatternsOrder(t *testing.T) {
	for _, c := range []struct {
		list, in, out string
	}{
		{"*.md !README.md", "hello.md", "README.md docs/hello.md"},
		{"*.md !README.md README*", "hello.md README.md README.doc", "docs/hello.md"},
		{"releases/** !releases/**-alpha", "releases/10 releases/beta/mona", "releases/10-alpha releases/beta/3-alpha"},
		{"!a a", "a", "b"},
		{"!a", "", "a b"},
	} {
		ps, errs := ParsePatterns(strings.Fields(c.list))
		if errs != nil {
			t.Fatal(errs)
		}
		for n := range strings.FieldsSeq(c.in) {
			if in, _ := ps.Match(n); !in {
				t.Errorf("%s: %s is out", c.list, n)
			}
		}
		for n := range strings.FieldsSeq(c.out) {
			if in, _ := ps.Match(n); in {
				t.Errorf("%s: %s is in", c.list, n)
			}
		}
	}
}

// Patterns that make backtracking matchers run for ever take their time here too,
// but not more than their length times the name's.
func TestGlobIsNotExponential(t *testing.T) {
	p, err := ParsePattern(strings.Repeat("a?", 500) + strings.Repeat("a", 500) + strings.Repeat("**a", 300))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan bool, 1)
	go func() { done <- p.Match(strings.Repeat("a", 1000)) }()
	select {
	case got := <-done:
		if !got {
			t.Error("no match")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the match does not end")
	}
}

// globRegexp is what a pattern means as a regular expression.
func globRegexp(p *Pattern) string {
	var b strings.Builder
	s := strings.TrimPrefix(p.source, "!")
	for i, first := 0, true; i < len(s); first = false {
		switch c := s[i]; {
		case strings.HasPrefix(s[i:], "**/"):
			b.WriteString("(?:(?:.+/)?)")
			i += 3
		case strings.HasPrefix(s[i:], "**"):
			b.WriteString("(?:.*)")
			i += 2
		case c == '*':
			b.WriteString("(?:[^/]*)")
			i++
		case (c == '?' || c == '+') && !first:
			b.WriteByte(c)
			i++
		case c == '[':
			b.WriteByte('[')
			for i++; s[i] != ']'; i++ {
				if s[i] == '\\' && i+1 < len(s) {
					i++
				} else if s[i] == '-' {
					b.WriteByte('-')
					continue
				}
				if class(s[i]) == 0 {
					b.WriteByte('\\')
				}
				b.WriteByte(s[i])
			}
			b.WriteByte(']')
			i++
		case c == '\\':
			i++
			fallthrough
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			b.WriteString("(?:" + regexp.QuoteMeta(string(r)) + ")")
			i += n
		}
	}
	return "(?s)^(?:" + b.String() + ")$"
}

func FuzzGlob(f *testing.F) {
	for _, s := range []string{"feature/**|feature/a/b", "*.jsx?|page.js", "v[12].[0-9]+|v1.9", `a\+**/b+|a+x/bb`, "!**/x?|y/x", "[a-c]?[x]+|bxx"} {
		p, n, _ := strings.Cut(s, "|")
		f.Add(p, n)
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if !utf8.ValidString(pattern) || !utf8.ValidString(name) || len(pattern) > 300 || len(name) > 1000 {
			return
		}
		p, err := ParsePattern(pattern)
		if err != nil {
			if pe, ok := errors.AsType[*PatternError](err); !ok || pe.Error() == "" {
				t.Errorf("error %#v", err)
			}
			return
		}
		if strings.Contains(pattern, `\`) && strings.Contains(pattern, "[") {
			p.Match(name)
			return
		}
		re, err := regexp.Compile(globRegexp(p))
		if err != nil {
			t.Skip(err)
		}
		got, want := p.Match(name), re.MatchString(name)
		if got != want {
			t.Errorf("%q on %q: %v, the regular expression %s says %v", pattern, name, got, re, want)
		}
		if p.prog != nil && p.run(name) != got {
			t.Errorf("%q on %q: the short way says %v, the long way does not", pattern, name, got)
		}
	})
}

func BenchmarkGlob(b *testing.B) {
	p, err := ParsePattern("**/docs/**/*.md")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if !p.Match("some/dir/docs/with/a/longer/path/file.md") {
			b.Fatal("no match")
		}
	}
}
