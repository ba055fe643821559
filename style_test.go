package hearth_test

import (
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// tracked are the repository's files with an ending.
func tracked(t *testing.T, ending string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "git", "ls-files", "--cached", "--others", "--exclude-standard", "*"+ending).Output()
	if err != nil {
		t.Skipf("SKIPPED, NOT PASSED: this is no checkout: %v", err)
	}
	return slices.DeleteFunc(strings.Fields(string(out)), func(name string) bool {
		_, err := os.Stat(name)
		return err != nil || strings.Contains(name, "testdata/")
	})
}

// logKeys are the names that attributes of the log have: one thing has one name,
// so that whoever searches a log finds all of it.
var logKeys = strings.Fields(`
	err reason took wait attempt status exit code
	event delivery repository run workflow job check
	vm machine name subject delete_by agent execution language
	driver kvm cached image part mirror page
	path dir key secret method from bytes
	removed killed kind runs_kept run_bytes_kept
`)

// TestLogKeys: a key that is not among the known ones is either another word for
// one of them, or belongs there.
func TestLogKeys(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range tracked(t, ".go") {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			for _, arg := range attributes(call) {
				key, ok := text(arg)
				if seen[key] = true; ok && !slices.Contains(logKeys, key) {
					t.Errorf("%s: the log key %q is not in logKeys: is there a word for it already?", fset.Position(arg.Pos()), key)
				}
			}
			return true
		})
	}
	for _, key := range logKeys {
		if !seen[key] {
			t.Errorf("nothing logs a %q: it leaves logKeys", key)
		}
	}
}

// attributes are the keys of a call that logs, as far as it is one.
func attributes(call *ast.CallExpr) []ast.Expr {
	fun, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil
	}
	if x, ok := fun.X.(*ast.Ident); ok && (x.Name == "t" || x.Name == "b" || x.Name == "tb") {
		return nil // a test's
	}
	args := call.Args
	switch fun.Sel.Name {
	case "DebugContext", "InfoContext", "WarnContext", "ErrorContext":
		args = args[min(1, len(args)):]
		fallthrough
	case "Debug", "Info", "Warn", "Error":
		if len(args) == 0 {
			return nil
		}
		if _, ok := text(args[0]); !ok {
			return nil // no message: something else
		}
		args = args[1:]
	case "With":
		if len(args)%2 != 0 {
			return nil
		}
	default:
		return nil
	}
	var keys []ast.Expr
	for i := 0; i < len(args); i += 2 {
		if _, ok := text(args[i]); ok {
			keys = append(keys, args[i])
		}
	}
	return keys
}

// text is what a literal, or a sum that begins with one, says.
func text(x ast.Expr) (string, bool) {
	switch x := x.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(x.Value)
		return s, x.Kind == token.STRING && err == nil
	case *ast.BinaryExpr:
		return text(x.X)
	}
	return "", false
}

// columns is how long a line may be.
const columns = 160

// TestLineLength: a line of code fits on a screen. What stands in one piece of text
// (a workflow in a test, a statement of SQL) is not code, and layers_test.go is a table.
func TestLineLength(t *testing.T) {
	for _, name := range tracked(t, ".go") {
		if name == "layers_test.go" {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(src), "\n")
		if !slices.ContainsFunc(lines, func(l string) bool { return utf8.RuneCountInString(l) >= columns }) {
			continue
		}
		fset := token.NewFileSet()
		var s scanner.Scanner
		s.Init(fset.AddFile(name, -1, len(src)), src, nil, scanner.ScanComments)
		data := map[int]bool{} // lines that hold a long text, or are part of one
		for {
			pos, tok, lit := s.Scan()
			if tok == token.EOF {
				break
			}
			if at := fset.Position(pos); tok == token.STRING && (strings.Contains(lit, "\n") || utf8.RuneCountInString(lit) > columns/3) {
				for n := range strings.Count(lit, "\n") + 1 {
					data[at.Line+n] = true
				}
			}
		}
		for i, l := range lines {
			if n := utf8.RuneCountInString(l); n >= columns && !data[i+1] {
				t.Errorf("%s:%d has %d columns: less than %d are possible", name, i+1, n, columns)
			}
		}
	}
}
