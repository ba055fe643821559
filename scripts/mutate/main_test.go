package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMutate: of a package whose test looks at some of it, the changes that die are
// those that it looks at, built together or one by one.
func TestMutate(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{
		"go.mod": "module m\n\ngo 1.26\n",
		"m.go": `package m

import "log/slog"

func Seen(a, b int) int {
	if a > 3 &&
		b > 3 {
		a += 2
	}
	return a
}

func Half(s string) string {
	if len(s) == 0 {
		slog.Info("nothing", "n", 1)
	}
	if s == "x" {
		s = s + "y"
	}
	return s
}

func Never() int { return 1 }

func Loop(n int) (sum int) {
	for i := 0; i < n; i++ {
		sum++
	}
	return sum
}

var Two int64 = 2
`,
		"m_test.go": `package m

import "testing"

func TestSeen(t *testing.T) {
	for _, c := range [][3]int{{3, 4, 3}, {4, 3, 4}, {4, 4, 6}, {5, 5, 7}} {
		if Seen(c[0], c[1]) != c[2] {
			t.Error(c)
		}
	}
}

func TestHalf(t *testing.T) { Half("x") }

func TestLoop(t *testing.T) {
	if Loop(3) != 3 || Two != 2 {
		t.Error("no")
	}
}

func TestBroken(t *testing.T) { t.Error("as it is") }
`,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := newSuite(t.TempDir(), ".", []string{"."}, time.Minute, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.tests) != 3 {
		t.Errorf("%d tests count", len(s.tests))
	}
	all, err := mutants(".")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.buildTogether(all); err != nil {
		t.Fatal(err)
	}
	if len(s.ids) != len(all)-1 { // the int64 is built by itself
		t.Errorf("%d of %d changes are built together", len(s.ids), len(all))
	}
	var died, survived []string
	for _, m := range all {
		by, err := s.try(m)
		switch {
		case errors.Is(err, errBuild):
		case err != nil:
			t.Fatal(err)
		case by == "":
			survived = append(survived, m.at+" "+m.what)
		default:
			died = append(died, m.at+" "+m.what)
		}
		if strings.Contains(m.diff, "slog") || m.diff == "" {
			t.Errorf("%s: %s", m.at, m.diff)
		}
	}
	if want := []string{"m.go:17 if … → if true", "m.go:17 if … → if false", "m.go:17 == → !=", "m.go:18 an assignment left out",
		"m.go:23 1 → 2"}; !slices.Equal(survived, want) {
		t.Errorf("survived: %q", survived)
	}
	if len(died) != 13 || !slices.Contains(died, "m.go:6 && → ||") || !slices.Contains(died, "m.go:6 > → >=") || !slices.Contains(died, "m.go:32 2 → 3") {
		t.Errorf("died: %q", died)
	}
}
