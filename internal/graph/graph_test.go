package graph

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

const day = 24 * 3600 * 1000

func TestCommandTellsApart(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"npm run lint", "npm run lint"},
		{"npm run deploy", "npm run deploy"},
		{"  npm   run\tlint \n", "npm run lint"},
		{"set -euo pipefail\n# why\nCI=1 sudo make test\n", "make test"},
		{"go test \\\n  ./...", "go test ./..."},
		{"actions/checkout@v4.1.2", "actions/checkout@v4"},
		{"actions/checkout@v4", "actions/checkout@v4"},
		{"Actions/Checkout@0123456789abcdef0123456789abcdef01234567", "actions/checkout@<sha>"},
		{"actions/checkout@main", "actions/checkout@main"},
		{"make\nmake install", "make; make install"},
		{"docker pull x@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "docker pull x@sha256:<hex>"},
	} {
		if got := Command(c.in); got != c.want {
			t.Errorf("Command(%q) = %q, want %q", c.in, got, c.want)
		}
		if again := Command(Command(c.in)); again != Command(c.in) {
			t.Errorf("Command is not idempotent on %q: %q", c.in, again)
		}
	}
	long := Command(strings.Repeat("é", 300) + "a")
	other := Command(strings.Repeat("é", 300) + "b")
	if long == other || len(long) > 220 || strings.ContainsRune(long, '\uFFFD') {
		t.Errorf("long commands: %q, %q", long, other)
	}
}

func TestStepKind(t *testing.T) {
	for in, want := range map[string]string{
		"cargo test": "test", "npm ci": "install", "npm run deploy": "deploy", "cargo fmt --check": "lint", "make": "build",
		"actions/checkout@v4": "action", "peaceiris/actions-gh-pages@v3": "deploy", "docker push x": "deploy", "echo hi": "run", "go vet ./...": "lint",
	} {
		if got := StepKind(in); got != want {
			t.Errorf("StepKind(%q) = %s, want %s", in, got, want)
		}
	}
}

func fill(g *Graph) int64 {
	now := int64(1000 * day)
	jobs := [][]string{
		{"checkout", "npm ci", "npm run lint"},
		{"checkout", "npm ci", "npm test", "npm run build"},
		{"checkout", "cargo build", "cargo test"},
		{"checkout", "cargo fmt"},
	}
	for range 10 {
		for _, j := range jobs {
			for i, c := range j {
				g.Ran(c, c, j[:i], false, now)
			}
			now += day / 24
		}
	}
	return now
}

func TestRelated(t *testing.T) {
	g := New(Limits{})
	now := fill(g)
	got := g.Related("npm test", 10, now)
	var names []string
	for _, m := range got {
		names = append(names, m.Name)
	}
	if len(names) < 2 || names[0] != "npm run build" || !slices.Contains(names, "npm ci") || slices.Contains(names, "cargo test") {
		t.Errorf("related to npm test: %q", names)
	}
	if slices.Contains(names, "checkout") {
		t.Errorf("what runs everywhere is related to nothing: %q", names)
	}
	if g.Related("never seen", 5, now) != nil {
		t.Error("related to what was never seen")
	}
	g2 := New(Limits{})
	for range 2 {
		g2.Ran("a", "", nil, false, now)
		g2.Ran("b", "", []string{"a"}, false, now)
	}
	if got := g2.Related("a", 5, now); got != nil {
		t.Errorf("two meetings are too few: %+v", got)
	}
}

func TestNext(t *testing.T) {
	g := New(Limits{})
	now := fill(g)
	if got := g.Next([]string{"npm ci", "npm test"}, 3, now); len(got) == 0 || got[0].Name != "npm run build" || got[0].Score < .8 {
		t.Errorf("%+v", got)
	}
	if got := g.Next([]string{"checkout"}, 1, now); len(got) != 1 || got[0].Name != "npm ci" || got[0].Score > .6 {
		t.Errorf("%+v", got)
	}
	// An unknown pair backs off to its last command.
	if got := g.Next([]string{"what", "cargo build"}, 1, now); len(got) != 1 || got[0].Name != "cargo test" {
		t.Errorf("%+v", got)
	}
}

func TestSimilarAndFixed(t *testing.T) {
	g := New(Limits{})
	now := int64(1000 * day)
	for i := range 3 {
		s := ID(Step, fmt.Sprint("step", i))
		g.Link(s, FailedWith, ID(Signature, "near"), true, now)
		g.Link(s, FailedWith, ID(Signature, "me"), true, now)
	}
	g.Link(ID(Step, "else"), FailedWith, ID(Signature, "far"), true, now)
	got := g.Similar(ID(Signature, "me"), 5, now)
	if len(got) != 1 || got[0].Name != "near" {
		t.Errorf("%+v", got)
	}
	g.Link(ID(Signature, "me"), FixedBy, ID(Commit, "old"), false, now)
	g.Link(ID(Signature, "me"), FixedBy, ID(Commit, "new"), false, now+1)
	if f := g.FixedBy(ID(Signature, "me"), 1); len(f) != 1 || f[0].Name != "new" {
		t.Errorf("%+v", f)
	}
}

func TestBounded(t *testing.T) {
	g := New(Limits{Nodes: 500, Out: 16})
	g.Track()
	for i := range 20_000 {
		g.Ran(fmt.Sprint("c", i%3000), "", []string{"hub", fmt.Sprint("c", i%7)}, i%5 == 0, int64(i))
	}
	nodes, edges := g.Len()
	if nodes > 500 || edges > 500*16 {
		t.Errorf("%d nodes, %d edges", nodes, edges)
	}
	if n := g.Node(ID(Cmd, "hub")); n != nil && len(n.out) > 16 {
		t.Errorf("%d edges out of one node", len(n.out))
	}
	in := 0
	for _, n := range g.nodes {
		in += len(n.in)
		for _, e := range n.out {
			if g.nodes[e.Dst] != e.dst || g.edges[edgeKey{e.Src, e.Rel, e.Dst}] != e {
				t.Fatalf("edge %s %s %s hangs in the air", e.Src, e.Rel, e.Dst)
			}
		}
	}
	if in != edges {
		t.Errorf("%d edges in, %d edges", in, edges)
	}
	// What it says changed is what another graph needs to be the same.
	c := g.Changes()
	h := New(Limits{Nodes: 500, Out: 16})
	h.Load(c.Nodes, c.Edges)
	if n2, e2 := h.Len(); n2 != nodes || e2 != edges {
		t.Errorf("loaded %d nodes, %d edges of %d, %d", n2, e2, nodes, edges)
	}
}

func TestCountersFade(t *testing.T) {
	g := New(Limits{})
	g.Touch("step:a", "", true, day)
	c := g.Node("step:a").At(31 * day)
	if c.Failed < .49 || c.Failed > .51 {
		t.Errorf("after a half-life: %v", c.Failed)
	}
}

func TestAutomaton(t *testing.T) {
	terms := []string{"he", "she", "his", "hers", "", "error:"}
	a := NewAutomaton(terms, true)
	var got []string
	a.Find([]byte("uSHErs Error: his"), func(term, end int) bool {
		got = append(got, fmt.Sprint(a.Term(term), end))
		return true
	})
	want := []string{"she4", "he4", "hers6", "error:13", "his17"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func FuzzAutomaton(f *testing.F) {
	f.Add([]byte("he,she,his,hers"), []byte("ushers"))
	f.Add([]byte("a,aa,aaa"), []byte("aaaa"))
	f.Add([]byte("\x00,\xff\x00"), []byte("\xff\x00"))
	f.Fuzz(func(t *testing.T, list, text []byte) {
		if len(list) > 200 || len(text) > 500 {
			return
		}
		terms := strings.Split(string(list), ",")
		a := NewAutomaton(terms, false)
		n := 0
		a.Find(text, func(term, end int) bool {
			if w := terms[term]; w == "" || !bytes.HasSuffix(text[:end], []byte(w)) {
				t.Fatalf("%q does not end at %d of %q", w, end, text)
			}
			n++
			return true
		})
		want := 0
		for _, w := range terms {
			for i := 0; w != "" && i+len(w) <= len(text); i++ {
				if string(text[i:i+len(w)]) == w {
					want++
				}
			}
		}
		if n != want {
			t.Fatalf("found %d of %d", n, want)
		}
	})
}

func FuzzCommand(f *testing.F) {
	f.Add("set -e\nFOO='a b' npm run lint")
	f.Add("actions/checkout@v4")
	f.Fuzz(func(t *testing.T, s string) {
		if got := Command(s); len(got) > 230 {
			t.Fatalf("%d bytes", len(got))
		}
	})
}

func BenchmarkRan(b *testing.B) {
	for _, size := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			g := New(Limits{})
			r := rand.New(rand.NewPCG(1, 2))
			cmd := make([]string, 3000)
			for i := range cmd {
				cmd[i] = fmt.Sprint("command number ", i)
			}
			run := func(i int) {
				k := r.IntN(len(cmd) - 3)
				g.Ran(cmd[k+3], "", cmd[k:k+3], i%10 == 0, int64(i))
			}
			for i := range size {
				run(i)
			}
			i := size
			for b.Loop() {
				run(i)
				i++
			}
		})
	}
}

func BenchmarkAutomaton(b *testing.B) {
	a := NewAutomaton([]string{"error", "fatal", "panic:", "exception", "failed", "timed out", "connection refused", "no such file"}, true)
	text := []byte(strings.Repeat("   Compiling serde v1.0.130 of a build that prints a lot and means little\n", 1000))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		a.Any(text)
	}
}
