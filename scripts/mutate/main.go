// Command mutate says how much of a package its tests would miss. It changes one
// place of the package's code at a time (a condition turned round, a boundary
// moved, a statement left out, a number changed), runs the package's fast tests
// on the changed code, and lists the changes that no test noticed:
//
//	go run ./scripts/mutate -n 40 ./internal/plan ./internal/queue
//
// The files are not touched: `go test -overlay` puts the changed one in the place
// of its own. Which places are tried is drawn with a seed, so that a run can be
// repeated. A change that does not compile does not count; one whose tests hang
// is killed, as a test that fails. Exit status 1 says that fewer died than -want.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	n := flag.Int("n", 40, "changes a package")
	seed := flag.Uint64("seed", 1, "of the choice of places")
	limit := flag.Duration("limit", 2*time.Minute, "for the tests of one change")
	want := flag.Float64("want", 0, "percent that have to die")
	also := flag.String("also", "", "further packages whose tests count, separated by commas")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "mutate: name packages, like ./internal/plan")
		os.Exit(2)
	}
	dir, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		fatal(err)
	}
	defer os.RemoveAll(dir)
	killed, alive := 0, 0
	for _, pkg := range flag.Args() {
		tests := append([]string{pkg}, strings.FieldsFunc(*also, func(r rune) bool { return r == ',' })...)
		// Tests that fail by themselves would kill everything.
		if out, err := run(*limit, "", tests); err != nil {
			fatal(fmt.Errorf("%s: its tests fail as they are: %w\n%s", pkg, err, out))
		}
		all, err := mutants(pkg)
		if err != nil {
			fatal(err)
		}
		r := rand.New(rand.NewPCG(*seed, *seed))
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		k, tried := 0, 0
		for _, m := range all {
			if tried == *n {
				break
			}
			died, err := m.try(dir, *limit, tests)
			if errors.Is(err, errBuild) {
				continue
			}
			if err != nil {
				fatal(err)
			}
			tried++
			if died {
				k++
			} else {
				fmt.Printf("SURVIVED %s: %s\n", m.at, m.what)
			}
		}
		killed, alive = killed+k, alive+tried-k
		fmt.Printf("%s: %d of %d changes noticed (%d places)\n", pkg, k, tried, len(all))
	}
	share := 100 * float64(killed) / float64(max(killed+alive, 1))
	fmt.Printf("all: %d of %d, %.0f %%\n", killed, killed+alive, share)
	if share < *want {
		os.RemoveAll(dir)
		os.Exit(1)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "mutate:", err)
	os.Exit(3)
}

// mutant is one change of one file.
type mutant struct {
	file string // absolute
	at   string // file:line
	what string
	text []byte // of the whole changed file
}

var errBuild = errors.New("it does not compile")

// try runs the tests on the changed file, and reports whether they noticed.
func (m mutant) try(dir string, limit time.Duration, tests []string) (died bool, err error) {
	changed := filepath.Join(dir, "changed.go")
	if err := os.WriteFile(changed, m.text, 0o600); err != nil {
		return false, err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {m.file: changed}})
	if err != nil {
		return false, err
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return false, err
	}
	out, err := run(limit, list, tests)
	if err == nil {
		return false, nil
	}
	if bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")) {
		return false, errBuild
	}
	return true, nil
}

// run runs tests; those that take longer than limit are ended with everything
// that they started.
func run(limit time.Duration, overlay string, tests []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	args := []string{"test", "-count=1", "-vet=off", "-failfast"}
	if overlay != "" {
		args = append(args, "-overlay="+overlay)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, tests...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd.CombinedOutput()
}

// mutants are all changes of the code of a package, but for its tests.
func mutants(pkg string) ([]mutant, error) {
	names, err := filepath.Glob(filepath.Join(pkg, "*.go"))
	if err != nil {
		return nil, err
	}
	var all []mutant
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		path, err := filepath.Abs(name)
		if err != nil {
			return nil, err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		add := func(pos token.Pos, what string, change func() (undo func())) {
			undo := change()
			defer undo()
			var b bytes.Buffer
			if format.Node(&b, fset, f) == nil {
				all = append(all, mutant{file: path, at: fmt.Sprintf("%s:%d", name, fset.Position(pos).Line), what: what, text: b.Bytes()})
			}
		}
		ast.Inspect(f, func(n ast.Node) bool { return changes(n, add) })
	}
	return all, nil
}

// turned are the operators that stand in for one another.
var turned = map[token.Token]token.Token{
	token.EQL: token.NEQ, token.NEQ: token.EQL, token.LSS: token.LEQ, token.LEQ: token.LSS, token.GTR: token.GEQ, token.GEQ: token.GTR,
	token.LAND: token.LOR, token.LOR: token.LAND, token.ADD: token.SUB, token.SUB: token.ADD,
}

// changes adds what can be changed at a node, and says whether to look below it.
func changes(n ast.Node, add func(pos token.Pos, what string, change func() (undo func()))) bool {
	switch n := n.(type) {
	case *ast.GenDecl:
		return n.Tok == token.VAR // constants and types are not what tests are about
	case *ast.BinaryExpr:
		if to, ok := turned[n.Op]; ok {
			from := n.Op
			add(n.OpPos, fmt.Sprintf("%s → %s", from, to), func() func() { n.Op = to; return func() { n.Op = from } })
		}
	case *ast.IfStmt:
		was := n.Cond
		for _, to := range []string{"true", "false"} {
			add(n.Pos(), "if … → if "+to, func() func() {
				// The condition stays, so that what it names is still used.
				op := token.LOR
				if to == "false" {
					op = token.LAND
				}
				n.Cond = &ast.BinaryExpr{X: &ast.Ident{Name: to}, Op: op, Y: &ast.ParenExpr{X: was}}
				return func() { n.Cond = was }
			})
		}
	case *ast.BlockStmt:
		for i, s := range n.List {
			what := ""
			switch s := s.(type) {
			case *ast.ExprStmt:
				what = "a call left out"
			case *ast.AssignStmt:
				if s.Tok == token.ASSIGN || s.Tok == token.ADD_ASSIGN || s.Tok == token.SUB_ASSIGN {
					what = "an assignment left out"
				}
			case *ast.IncDecStmt, *ast.DeferStmt, *ast.SendStmt:
				what = "a statement left out"
			}
			if what == "" {
				continue
			}
			was := n.List
			add(s.Pos(), what, func() func() {
				n.List = slices.Delete(slices.Clone(was), i, i+1)
				return func() { n.List = was }
			})
		}
	case *ast.BasicLit:
		if v, err := strconv.Atoi(n.Value); err == nil && n.Kind == token.INT {
			was := n.Value
			add(n.Pos(), fmt.Sprintf("%d → %d", v, v+1), func() func() { n.Value = strconv.Itoa(v + 1); return func() { n.Value = was } })
		}
	}
	return true
}
