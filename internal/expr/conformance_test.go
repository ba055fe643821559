package expr

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// TestConformanceExpressions puts GitHub's cross-language test data to the
// package: every file of $HEARTH_CONFORMANCE/expressions.
func TestConformanceExpressions(t *testing.T) {
	dir := os.Getenv("HEARTH_CONFORMANCE")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "conformance")
	} else if !filepath.IsAbs(dir) {
		if _, err := os.Stat(dir); err != nil {
			dir = filepath.Join("..", "..", dir) // given relative to the module's root
		}
	}
	files, _ := filepath.Glob(filepath.Join(dir, "expressions", "*.json"))
	if len(files) == 0 {
		t.Skipf("NOTHING TESTED: no expressions/*.json in %s: set HEARTH_CONFORMANCE to the folder of GitHub's test data", dir)
	}
	sort.Strings(files)
	passed, total := 0, 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var groups map[string][]conformanceCase
		if err := json.Unmarshal(b, &groups); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for group, cases := range groups {
			for i, c := range cases {
				total++
				if err := c.run(); err != nil {
					t.Errorf("%s: %s[%d]: %s\n\t%v", filepath.Base(file), group, i, clip(c.Expr), err)
					continue
				}
				passed++
			}
		}
	}
	fmt.Printf("expressions: %d of %d\n", passed, total)
	if passed < total {
		t.Errorf("%d of %d cases failed", total-passed, total)
	}
}

type conformanceCase struct {
	Expr     string
	Contexts Map
	Result   *struct {
		Kind  string
		Value Value
	}
	Err *struct{ Kind, Value string }
}

func (c *conformanceCase) run() error {
	v, err := c.eval()
	if c.Err != nil {
		e, ok := errors.AsType[*Error](err)
		switch {
		case err == nil:
			return fmt.Errorf("got %s %s, want %s error %q", v.Kind(), v.JSON(), c.Err.Kind, c.Err.Value)
		case !ok || e.Kind.String() != c.Err.Kind:
			return fmt.Errorf("got %s error %q, want %s error %q", e.Kind, err, c.Err.Kind, c.Err.Value)
		case !strings.Contains(err.Error(), c.Err.Value):
			return fmt.Errorf("got error %q, want %q", err, c.Err.Value)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("got error %q, want %s %s", err, c.Result.Kind, c.Result.Value.JSON())
	}
	if c.Result == nil {
		return errors.New("the case has neither result nor err")
	}
	want := c.Result.Value
	if v.Kind().String() != c.Result.Kind {
		return fmt.Errorf("got %s %s, want %s %s", v.Kind(), v.JSON(), c.Result.Kind, want.JSON())
	}
	if want.Kind() == KindString && v.Kind() == KindNumber {
		v = String(v.ToString()) // JSON has no NaN and no infinities: they are written as text
	}
	if want.Kind() == KindNull && v.Kind() == KindNumber && v.AsNumber()-v.AsNumber() != 0 {
		return nil // as JavaScript writes NaN and the infinities
	}
	if !identical(v, want) {
		return fmt.Errorf("got %s, want %s", v.JSON(), want.JSON())
	}
	return nil
}

func (c *conformanceCase) eval() (Value, error) {
	e, err := Parse(c.Expr, &Allow{Contexts: c.Contexts.Keys()})
	if err != nil {
		return Value{}, err
	}
	// The data supposes the memory limit that GitHub's library has by default.
	return e.Eval(&Env{Contexts: &c.Contexts, MaxMemory: 1 << 20})
}
