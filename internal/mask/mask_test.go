package mask

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net/url"
	"os/exec"
	"strings"
	"testing"
)

func newSet(t testing.TB, secrets ...string) *Set {
	t.Helper()
	s, err := NewSet(secrets...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPlain(t *testing.T) {
	for _, c := range []struct {
		secrets []string
		in, out string
	}{
		{nil, "nothing to hide", "nothing to hide"},
		{[]string{"hunter2"}, "pw=hunter2;", "pw=***;"},
		{[]string{"hunter2"}, "hunter hunter2hunter2 hunter", "hunter *** hunter"},
		{[]string{"abc", "bcd"}, "xabcdx", "x***x"},
		{[]string{"abcdef", "cd"}, "abcdex cd", "ab***ex ***"},
		{[]string{"a"}, "banana", "b***n***n***"}, // as GitHub: one character is enough
		{[]string{" ", "", "\n\t"}, "a b", "a b"}, // white space is no secret
		{[]string{"  key  "}, "[key] [  key  ]", "[***] [***]"},
		{[]string{"first line\nsecond\r\n{\n"}, "second, then first line {", "***, then *** ***"},
		{[]string{`"quoted-value"`}, "quoted-value", "***"},
		{[]string{"***"}, "****", "***"},
	} {
		if got := newSet(t, c.secrets...).String(c.in); got != c.out {
			t.Errorf("%q in %q: %q, want %q", c.secrets, c.in, got, c.out)
		}
	}
}

func TestEncodings(t *testing.T) {
	const secret = `p&ss"w<o>rd/ 'x'=+%$\é:,` + "`~!"
	set := newSet(t, secret)
	long := strings.Repeat("0123456789abcdefghij", 9)
	longSet := newSet(t, long)
	check := func(what string, s *Set, text string) {
		t.Helper()
		if got := s.String("<<" + text + ">>"); !strings.Contains(got, Mark) || got == "<<"+text+">>" {
			t.Errorf("%s: %q went through as %q", what, text, got)
		} else if rest := strings.ReplaceAll(got, Mark, ""); len(rest) > 4+8 {
			t.Errorf("%s: of %q remained %q", what, text, got)
		}
	}
	for i := range 6 {
		pre := strings.Repeat("x", i)
		check("base64", set, base64.StdEncoding.EncodeToString([]byte(pre+secret)))
		check("base64url", set, base64.URLEncoding.EncodeToString([]byte(pre + secret))[max(0, (8*i)/6-2):])
	}
	j, _ := json.Marshal(secret)
	check("JSON", set, string(j))
	jj, _ := json.Marshal(string(j))
	check("JSON in JSON", set, string(jj))
	check("URL query", set, url.QueryEscape(secret))
	check("URL path", set, url.PathEscape(secret))
	check("HTML", set, html.EscapeString(secret))
	// What real programs make of it.
	for what, argv := range map[string][]string{
		"printf %q":       {"bash", "-c", `printf %q "$1"`, "-", secret},
		"xtrace":          {"bash", "-c", `exec 2>&1; set -x; : "$1"`, "-", secret},
		"printf %q ctl":   {"bash", "-c", `printf %q "$1"`, "-", "tab\there's é"},
		"printf %q ctl C": {"bash", "-c", `LC_ALL=C; printf %q "$1"`, "-", "tab\there's é"},
		"base64(1)":       {"bash", "-c", `printf %s "$1" | base64`, "-", long},
		"python json":     {"python3", "-c", `import json,sys; sys.stdout.write(json.dumps(sys.argv[1]))`, secret},
		"python quote":    {"python3", "-c", `import sys,urllib.parse as u; sys.stdout.write(u.quote(sys.argv[1]))`, secret},
		"python html":     {"python3", "-c", `import sys,html; sys.stdout.write(html.escape(sys.argv[1]))`, secret},
		"python shlex":    {"python3", "-c", `import sys,shlex; sys.stdout.write(shlex.quote(sys.argv[1]))`, secret},
	} {
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			t.Logf("%s: not tried: %v", what, err)
			continue
		}
		s := set
		switch {
		case strings.Contains(what, "ctl"):
			s = newSet(t, "tab\there's é")
		case what == "base64(1)":
			s = longSet
		}
		for line := range strings.Lines(string(out)) {
			line = strings.TrimPrefix(strings.TrimSpace(line), "+ : ")
			check(what, s, strings.Trim(line, `"'$=`))
		}
	}
}

// slow is the meaning of a Writer: every byte of every match is masked.
func slow(patterns []string, text string) string {
	hide := make([]bool, len(text))
	for _, p := range patterns {
		for i := 0; i+len(p) <= len(text); i++ {
			if text[i:i+len(p)] == p {
				for k := range len(p) {
					hide[i+k] = true
				}
			}
		}
	}
	var b strings.Builder
	for i := range len(text) {
		if !hide[i] {
			b.WriteByte(text[i])
		} else if i == 0 || !hide[i-1] {
			b.WriteString(Mark)
		}
	}
	return b.String()
}

func TestChunksAgainstMeaning(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	letters := "aab\nc"
	word := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = letters[rnd.IntN(len(letters))]
		}
		return string(b)
	}
	for range 300 {
		var secrets []string
		set := &Set{}
		for range 1 + rnd.IntN(4) {
			secrets = append(secrets, word(2+rnd.IntN(8)))
			if err := set.Add(secrets[len(secrets)-1]); err != nil {
				t.Fatal(err)
			}
		}
		var patterns []string
		for _, s := range secrets {
			patterns = append(patterns, derive(s)...)
		}
		text := word(rnd.IntN(120))
		var got strings.Builder
		w := NewWriter(&got, set)
		for rest := text; rest != ""; {
			n := min(len(rest), 1+rnd.IntN(5))
			io.WriteString(w, rest[:n])
			rest = rest[n:]
		}
		w.Flush()
		if want := slow(patterns, text); got.String() != want {
			t.Fatalf("secrets %q, text %q:\ngot  %q\nwant %q", secrets, text, got.String(), want)
		}
	}
}

func TestAddWhileWriting(t *testing.T) {
	set := newSet(t, "tokens-are-long")
	var b strings.Builder
	w := NewWriter(&b, set)
	io.WriteString(w, "see tokens-are") // held back: may become a secret
	if err := set.Add("ns-are"); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, " short")
	w.Flush()
	if got := b.String(); got != "see toke*** short" {
		t.Errorf("got %q", got)
	}
}

func TestNothingHeldPastLineEnd(t *testing.T) {
	var b strings.Builder
	w := NewWriter(&b, newSet(t, "one\ntwo three\nfour", "prompt: answer"))
	io.WriteString(w, "x one\n")
	if got := b.String(); got != "x ***\n" {
		t.Errorf("a finished line is held back: %q", got)
	}
}

func TestBounds(t *testing.T) {
	s := &Set{}
	if err := s.Add(strings.Repeat("k", MaxSecret+1)); err != ErrTooLong {
		t.Errorf("too long: %v", err)
	}
	s.size = maxPatterns - 5 // as if others had been added
	err := s.Add("a longer one")
	if err != ErrTooMany {
		t.Errorf("too many: %v", err)
	}
}

// Many secrets named one at a time, each with output after it, as a job that
// reads a vault does.
func TestManyAdds(t *testing.T) {
	s := &Set{}
	w := NewWriter(io.Discard, s)
	for i := range 1500 {
		if err := s.Add(fmt.Sprintf("secret-number-%d", i)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(w, "line %d\n", i)
	}
	if n := len(s.automata()); n > 20 {
		t.Errorf("%d automata", n)
	}
	if got := s.String("a secret-number-1234 b"); got != "a *** b" {
		t.Errorf("got %q", got)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	w := NewWriter(io.Discard, newSet(t, strings.Repeat("a", 1000)+"b"))
	block := bytes.Repeat([]byte("a"), 1<<20)
	for range 8 {
		w.Write(block)
	}
	if cap(w.buf) > 1<<20 || cap(w.hits) > 1<<20 || cap(w.out) > 1<<20 {
		t.Errorf("buffers grew to %d, %d, %d", cap(w.buf), cap(w.hits), cap(w.out))
	}
}

func FuzzMask(f *testing.F) {
	f.Add("secret", "line one\nline two", "a secret here c2VjcmV0 and line two", uint8(3))
	f.Add("p@ss w\"rd", "***", "p%40ss%20w%22rd **** p@ss w\\\"rd", uint8(1))
	f.Add("aaa", "aab", "aaaaaabaaab", uint8(2))
	f.Fuzz(func(t *testing.T, a, b, text string, cut uint8) {
		set := &Set{}
		if set.Add(a) != nil || set.Add(b) != nil {
			return
		}
		full := text + a + text + base64.StdEncoding.EncodeToString([]byte("x"+b+"y")) + url.QueryEscape(a) + b
		var out strings.Builder
		w := NewWriter(&out, set)
		step := int(cut)%7 + 1
		for rest := full; rest != ""; {
			n := min(step, len(rest))
			io.WriteString(w, rest[:n])
			rest = rest[n:]
		}
		w.Flush()
		got := out.String()
		if whole := set.String(full); whole != got {
			t.Fatalf("in pieces of %d: %q, at once: %q", step, got, whole)
		}
		patterns := append(derive(a), derive(b)...)
		if want := slow(patterns, full); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
		// Nothing of a secret between two marks.
		for rest := range strings.SplitSeq(got, Mark) {
			for _, p := range patterns {
				if strings.Contains(rest, p) {
					t.Fatalf("%q survived in %q", p, got)
				}
			}
		}
	})
}

func BenchmarkWriter(b *testing.B) {
	set := newSet(b, "ghp_abcdefghijklmnopqrstuvwxyz012345", "s3cr3t/with+chars", strings.Repeat("-----BEGIN KEY-----\nabcdefghij\n", 40))
	text := []byte(strings.Repeat("2026-11-23T21:00:00Z ok  github.com/hearth-ci/hearth/internal/mask 0.012s\n", 400))
	w := NewWriter(io.Discard, set)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		w.Write(text)
	}
}
