package mask

import (
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net/url"
	"os/exec"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/text"
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
	check("hex", set, hex.EncodeToString([]byte(secret)))
	check("HEX", set, fmt.Sprintf("%X", secret))
	check("hex, spaces", set, fmt.Sprintf("% x", secret))
	check("HEX, spaces", set, fmt.Sprintf("% X", secret))
	check("openssl", set, strings.ReplaceAll(fmt.Sprintf("% X", secret), " ", ":"))
	check("C", set, fmt.Sprintf("%x", secret)[:0]+strings.ReplaceAll(fmt.Sprintf(" % x", secret), " ", `\x`))
	check("upper case", set, strings.ToUpper(secret))
	check("lower case", set, strings.ToLower(secret))
	check("base32", set, strings.TrimRight(base32.StdEncoding.EncodeToString([]byte(secret)), "="))
	for i := range 6 {
		once := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", i) + secret + "\n"))
		for k := range 3 {
			twice := set.String(base64.StdEncoding.EncodeToString([]byte(strings.Repeat("y", k) + once)))
			if rest := strings.ReplaceAll(twice, Mark, ""); len(rest) > 30 {
				t.Errorf("base64 of base64 at %d, %d: %q", i, k, twice)
			}
		}
	}
	var wide []byte
	for _, c := range []byte("hunter2-utf16") {
		wide = append(wide, c, 0)
	}
	check("PowerShell", newSet(t, "hunter2-utf16"), base64.StdEncoding.EncodeToString(wide))
	check("UTF-16", newSet(t, "hunter2-utf16"), string(wide))
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

// slow is the meaning of a Writer: every byte of every match is masked, whether
// the match is in the bytes as they came or in those that are seen.
func slow(patterns []string, in string) string {
	type cell struct {
		out  string
		hide bool
	}
	type taken struct {
		b        byte
		from, to int // cells
	}
	var cells []cell
	var raw, seen []taken
	var scan text.Scanner
	unseen := 0
	line := func() {
		for _, v := range [][]taken{raw, seen} {
			for _, p := range patterns {
				for i := 0; i+len(p) <= len(v); i++ {
					k := 0
					for k < len(p) && v[i+k].b == p[k] {
						k++
					}
					if k < len(p) {
						continue
					}
					for c := v[i].from; c < v[i+k-1].to; c++ {
						cells[c].hide = true
					}
				}
			}
		}
		raw, seen, unseen = nil, nil, 0
	}
	in = strings.TrimSuffix(in, "\r") // nothing follows: no line has begun
	in = strings.ReplaceAll(strings.ReplaceAll(in, "\r\n", "\n"), "\r", "\n")
	for rest := []byte(in); len(rest) > 0; {
		n, class := scan.Next(rest, true)
		at := len(cells)
		if class == text.Unseen {
			if unseen++; unseen > maxUnseen {
				class = text.Dropped
			}
		}
		switch class {
		case text.LineEnd:
			cells = append(cells, cell{out: "\n"})
			line()
		case text.Invalid:
			cells = append(cells, cell{out: "\ufffd"})
			raw, seen = append(raw, taken{rest[0], at, at + 1}), append(seen, taken{rest[0], at, at + 1})
		case text.Dropped:
			for _, b := range rest[:n] {
				raw = append(raw, taken{b, at, at})
			}
		default:
			for i, b := range rest[:n] {
				cells = append(cells, cell{out: string([]byte{b})})
				raw = append(raw, taken{b, at + i, at + i + 1})
				if class == text.Shown {
					unseen = 0
					seen = append(seen, taken{b, at + i, at + i + 1})
				}
			}
		}
		rest = rest[n:]
	}
	line()
	var b strings.Builder
	for i, c := range cells {
		if !c.hide {
			b.WriteString(c.out)
		} else if i == 0 || !cells[i-1].hide {
			b.WriteString(Mark)
		}
	}
	return b.String()
}

func TestChunksAgainstMeaning(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	letters := []string{"a", "a", "b", "\n", "c", "\x00", "\x1b[m", "\x1b", "[", "\u200b", "\xff", "\r", "é"}
	word := func(n int) string {
		var b strings.Builder
		for range n {
			b.WriteString(letters[rnd.IntN(len(letters))])
		}
		return b.String()
	}
	for range 200 {
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

// Of long patterns of large sets every block is masked, in whatever pieces it comes.
func TestBlocks(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	word := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = "abcdefgh"[rnd.IntN(8)]
		}
		return string(b)
	}
	for _, size := range []int{block, block + 1, 2 * block, 100, 1000, 20_000} {
		secret := word(size)
		set := &Set{short: smallSet} // as if others had been added
		if err := set.Add(secret); err != nil {
			t.Fatal(err)
		}
		cut := size / 2
		for in, want := range map[string]string{
			"<" + secret + ">": "<***>",
			"<" + secret[:cut] + "\x1b[1m\x00" + secret[cut:] + ">":         "<***>",
			"\x1bXs" + secret + "\x1b\\\x1b" + secret + "!":                 "***!", // what swallows the first byte hides no secret
			"<" + base64.StdEncoding.EncodeToString([]byte(secret)) + ">":   "<***>",
			"<" + secret + secret + "> " + secret[:block-1] + "\n" + secret: "<***> " + secret[:block-1] + "\n***",
		} {
			var b strings.Builder
			w := NewWriter(&b, set)
			for rest := in; rest != ""; {
				n := min(len(rest), 1+rnd.IntN(size))
				io.WriteString(w, rest[:n])
				rest = rest[n:]
			}
			w.Flush()
			if b.String() != want {
				t.Errorf("%d bytes: %.200q, want %.200q", size, b.String(), want)
			}
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

// Whoever shows a field in one line makes a space of a line end in it.
func TestLineEndsInFields(t *testing.T) {
	set := newSet(t, "one two", "three  four")
	for in, want := range map[string]string{
		"<one\ntwo>": "<***>", "<one\r\ntwo>": "<***>", "<one\rtwo>": "<***>", "<three\n\nfour>": "<***>",
		"<one\n\x1b[1mtwo>": "<***>", "<one\n two>": "<one\n two>", "a\r\nb\rc\n": "a\nb\nc\n",
	} {
		if got := set.String(in); got != want || text.Clean(got) != strings.TrimRight(strings.ReplaceAll(want, "\n", " "), " ") {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	var b strings.Builder
	w := NewWriter(&b, set)
	io.WriteString(w, "one\ntwo\n") // two lines of a log stay two
	if b.String() != "one\ntwo\n" {
		t.Errorf("%q", b.String())
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
	s.size = MaxSecrets - 5 // as if others had been added
	if err := s.Add("a longer one"); err != ErrTooMany {
		t.Errorf("too many: %v", err)
	}
	s.size, s.short = 0, maxShort-5
	if err := s.Add("a short one"); err != ErrTooMany {
		t.Errorf("too many short ones: %v", err)
	}
	s.short = 0
	if err := s.Add("a short one"); err != nil || s.String("a short one") != Mark {
		t.Errorf("what was refused cannot be added later: %v", err)
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
	if n := len(s.now.Load().autos); n > 20 {
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
	f.Add("se\u200bc", "\x1b[31mx", "s\x1b[mec \x1b]s\x07ec \x1b[31\x00mx", uint8(1))
	f.Fuzz(func(t *testing.T, a, b, in string, cut uint8) {
		set := &Set{}
		if set.Add(a) != nil || set.Add(b) != nil {
			return
		}
		full := in + a + in + base64.StdEncoding.EncodeToString([]byte("x"+b+"y")) + url.QueryEscape(a) + b
		write := func(step int) string {
			var out strings.Builder
			w := NewWriter(&out, set)
			for rest := full; rest != ""; {
				n := min(step, len(rest))
				io.WriteString(w, rest[:n])
				rest = rest[n:]
			}
			w.Flush()
			return out.String()
		}
		step := int(cut)%7 + 1
		got := write(step)
		if whole := write(len(full) + 1); whole != got {
			t.Fatalf("in pieces of %d: %q, at once: %q", step, got, whole)
		}
		patterns := append(derive(a), derive(b)...)
		if want := slow(patterns, full); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
		for line := range strings.Lines(got) {
			if line = strings.TrimSuffix(line, "\n"); text.Clean(line) != line {
				t.Fatalf("%q is not clean", line)
			}
		}
	})
}

// FuzzSeen puts secrets, encoded somehow, through whatever hides nothing from
// people: no reader may find one, whatever it is cleaned with afterwards.
func FuzzSeen(f *testing.F) {
	f.Add("hunter2-hunter3", uint64(1), uint8(5))
	f.Add("a secret with Spaces/and+more=", uint64(2), uint8(1))
	f.Add(strings.Repeat("0123456789abcdef-", 40), uint64(3), uint8(200))
	f.Fuzz(func(t *testing.T, secret string, random uint64, cut uint8) {
		if text.Clean(secret) != secret || strings.TrimSpace(secret) != secret || len(secret) < 6 || strings.ContainsAny(secret, "*") || seen(secret) != secret {
			return
		}
		rnd := rand.New(rand.NewPCG(random, 5))
		set := &Set{}
		if rnd.IntN(2) == 0 {
			set.short = smallSet // found by blocks
		}
		if set.Add(secret) != nil {
			return
		}
		b64 := base64.StdEncoding.EncodeToString
		forms := []string{
			secret, strings.ToUpper(secret), strings.ToLower(secret), b64([]byte(secret)), b64([]byte(b64([]byte(secret)))),
			hex.EncodeToString([]byte(secret)), fmt.Sprintf("%X", secret), fmt.Sprintf("% x", secret), url.QueryEscape(secret), html.EscapeString(secret),
		}
		form := forms[rnd.IntN(len(forms))]
		hide := []string{"\x1b[31m", "\x1b[0m\x1b[K", "\x00", "\b", "\x7f", "\x1b]0;t\x07", "\x1b]8;;u\x1b\\", "\u200b", "\u202e", "\u009b1m", "\x1b(B",
			"\ufeff\u00ad", "\x1bc"}
		var in strings.Builder
		in.WriteString("before ")
		for _, r := range form {
			for rnd.IntN(3) == 0 {
				in.WriteString(hide[rnd.IntN(len(hide))])
			}
			in.WriteRune(r)
		}
		in.WriteString(" after\n")
		var out strings.Builder
		w := NewWriter(&out, set)
		for rest := in.String(); rest != ""; {
			n := min(int(cut)%50+1, len(rest))
			io.WriteString(w, rest[:n])
			rest = rest[n:]
		}
		w.Flush()
		for _, got := range []string{out.String(), set.String(in.String())} {
			// Blocks may have unseen characters between their marks.
			if left := strings.ReplaceAll(seen(got), Mark, ""); left != "before  after" || !strings.Contains(got, Mark) {
				t.Fatalf("%q as %q in %q came out as %q", secret, form, in.String(), got)
			}
		}
		if !set.Contains(in.String()) {
			t.Fatalf("%q is not found in %q", secret, in.String())
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
