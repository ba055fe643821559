package hearth_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every promise of SECURITY.md names the attacks that were tried against it, and
// every attack of the suite stands there beside the promise it guards: a promise
// that nobody has attacked, and an attack that nobody can find, are both worth
// nothing.
func TestAttacksAreNamed(t *testing.T) {
	text, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("`([a-z0-9/-]+): (TestAttack\\w*)`").FindAllStringSubmatch(string(text), -1) {
		named[m[1]+": "+m[2]] = true
	}
	if len(named) == 0 {
		t.Fatal("SECURITY.md names no attack")
	}
	there := map[string]bool{}
	err = filepath.WalkDir(".", func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && (e.Name() == "testdata" || strings.HasPrefix(e.Name(), ".") && p != "."):
			return fs.SkipDir
		case !strings.HasSuffix(p, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "TestAttack") && fn.Name.Name != t.Name() {
				there[strings.TrimPrefix(filepath.ToSlash(filepath.Dir(p)), "internal/")+": "+fn.Name.Name] = true
				if fn.Doc == nil {
					t.Errorf("%s: %s does not say what the attack is", p, fn.Name.Name)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for a := range there {
		if !named[a] {
			t.Errorf("SECURITY.md does not name the attack `%s` beside the promise that it guards", a)
		}
	}
	for a := range named {
		if !there[a] {
			t.Errorf("SECURITY.md names the attack `%s`, which is not there", a)
		}
	}
}
