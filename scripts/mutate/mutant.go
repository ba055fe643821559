package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// mutant is one change of one file.
type mutant struct {
	file     string // absolute
	pkg      string // its name
	at       string // file:line
	what     string
	diff     string // the lines before and after
	text     []byte // of the whole changed file
	edit     edit   // that makes the change one of many in a file
	place    place
	between  bool      // it is between the blocks that are counted
	function *[2]place // that it is in
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
		at := func(pos token.Pos) place {
			p := fset.Position(pos)
			return place{p.Line, p.Column}
		}
		text := func() string {
			var b bytes.Buffer
			if format.Node(&b, fset, f) != nil {
				return ""
			}
			return b.String()
		}
		was := text()
		var function *[2]place
		var cases [][2]token.Pos
		add := func(pos token.Pos, what string, e edit, change func() (undo func())) {
			undo := change()
			defer undo()
			now := text()
			if now == "" || now == was {
				return
			}
			p := at(pos)
			all = append(all, mutant{
				file: path, pkg: f.Name.Name, at: fmt.Sprintf("%s:%d", name, p.line), what: what, diff: diff(was, now), text: []byte(now), edit: e.in(fset), place: p,
				function: function,
				between:  slices.ContainsFunc(cases, func(c [2]token.Pos) bool { return c[0] <= pos && pos < c[1] }),
			})
		}
		for _, d := range f.Decls {
			function = nil
			if d, ok := d.(*ast.FuncDecl); ok {
				function = &[2]place{at(d.Pos()), at(d.End())}
			}
			ast.Inspect(d, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CaseClause:
					cases = append(cases, [2]token.Pos{n.Pos(), n.Colon})
				case *ast.CommClause:
					cases = append(cases, [2]token.Pos{n.Pos(), n.Colon})
				}
				return changes(n, add)
			})
		}
	}
	return all, nil
}

// diff is the lines that two texts do not share, between those that they do.
func diff(was, now string) string {
	a, b := strings.Split(was, "\n"), strings.Split(now, "\n")
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	var out strings.Builder
	for _, l := range a {
		fmt.Fprintf(&out, "\t- %s\n", strings.TrimSpace(l))
	}
	for _, l := range b {
		fmt.Fprintf(&out, "\t+ %s\n", strings.TrimSpace(l))
	}
	return out.String()
}

// turned are the operators that stand in for one another.
var turned = map[token.Token]token.Token{
	token.EQL: token.NEQ, token.NEQ: token.EQL, token.LSS: token.LEQ, token.LEQ: token.LSS, token.GTR: token.GEQ, token.GEQ: token.GTR,
	token.LAND: token.LOR, token.LOR: token.LAND, token.ADD: token.SUB, token.SUB: token.ADD,
}

// changes adds what can be changed at a node, and says whether to look below it.
func changes(n ast.Node, add adder) bool {
	switch n := n.(type) {
	case *ast.GenDecl:
		return n.Tok == token.VAR // constants and types are not what tests are about
	case *ast.CallExpr:
		return !unseen(n)
	case *ast.BinaryExpr:
		if n.Op == token.ADD && (isText(n.X) || isText(n.Y)) {
			return true // text has no difference
		}
		if (n.Op == token.MUL || n.Op == token.QUO) && (isUnit(n.X) || isUnit(n.Y)) {
			return false
		}
		if to, ok := turned[n.Op]; ok {
			from := n.Op
			add(n.OpPos, fmt.Sprintf("%s → %s", from, to), turn(n), func() func() { n.Op = to; return func() { n.Op = from } })
		}
	case *ast.IfStmt:
		if n.Else == nil && n.Init == nil && !slices.ContainsFunc(n.Body.List, func(s ast.Stmt) bool { return !isUnseen(s) }) {
			return false // it only decides about a log line
		}
		was := n.Cond
		for _, to := range []string{"true", "false"} {
			e := around(was, "(mutant__ == § || (", "))")
			if to == "false" {
				e = around(was, "(mutant__ != § && (", "))")
			}
			add(n.Pos(), "if … → if "+to, e, func() func() {
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
		leave(&n.List, add)
	case *ast.CaseClause:
		leave(&n.Body, add)
	case *ast.CommClause:
		leave(&n.Body, add)
	case *ast.BasicLit:
		if v, err := strconv.Atoi(n.Value); err == nil && n.Kind == token.INT {
			was := n.Value
			add(n.Pos(), fmt.Sprintf("%d → %d", v, v+1), around(n, "number__(§, ", ")"),
				func() func() { n.Value = strconv.Itoa(v + 1); return func() { n.Value = was } })
		}
	}
	return true
}

// adder adds a change, in two ways: by itself, and as one of many.
type adder = func(pos token.Pos, what string, e edit, change func() (undo func()))

// leave adds the statements of a list that can be left out.
func leave(list *[]ast.Stmt, add adder) {
	for i, s := range *list {
		what := ""
		switch s := s.(type) {
		case *ast.ExprStmt:
			if !isUnseen(s) {
				what = "a call left out"
			}
		case *ast.AssignStmt:
			if s.Tok == token.ASSIGN || s.Tok == token.ADD_ASSIGN || s.Tok == token.SUB_ASSIGN {
				what = "an assignment left out"
			}
			if id, ok := s.Lhs[0].(*ast.Ident); ok && id.Name == "_" {
				what = ""
			}
		case *ast.DeferStmt:
			if id, ok := s.Call.Fun.(*ast.Ident); !ok || id.Name != "cancel" && id.Name != "stop" {
				what = "a statement left out"
			}
		case *ast.IncDecStmt, *ast.SendStmt:
			what = "a statement left out"
		}
		if what == "" {
			continue
		}
		was := *list
		add(s.Pos(), what, around(s, "if mutant__ != § { ", " }"), func() func() {
			*list = slices.Delete(slices.Clone(was), i, i+1)
			return func() { *list = was }
		})
	}
}

// unseen says whether a call is one that only people see, whatever it says: a log
// line, an error's text; or one whose numbers are hints.
func unseen(call *ast.CallExpr) bool {
	switch fun := call.Fun.(type) {
	case *ast.Ident:
		return fun.Name == "make" && len(call.Args) == 3 || fun.Name == "panic"
	case *ast.SelectorExpr:
		switch fun.Sel.Name {
		case "Debug", "Info", "Warn", "Error", "DebugContext", "InfoContext", "WarnContext", "ErrorContext":
			return len(call.Args) > 0 // an error's Error() has none
		}
		x, ok := fun.X.(*ast.Ident)
		return ok && (x.Name == "fmt" && fun.Sel.Name == "Errorf" || x.Name == "errors" && fun.Sel.Name == "New")
	}
	return false
}

func isUnseen(s ast.Stmt) bool {
	x, ok := s.(*ast.ExprStmt)
	if !ok {
		return false
	}
	call, ok := x.X.(*ast.CallExpr)
	return ok && unseen(call)
}

func isText(x ast.Expr) bool {
	switch x := x.(type) {
	case *ast.BasicLit:
		return x.Kind == token.STRING
	case *ast.BinaryExpr:
		return x.Op == token.ADD && (isText(x.X) || isText(x.Y))
	}
	return false
}

// isUnit says whether x is a unit of time.
func isUnit(x ast.Expr) bool {
	sel, ok := x.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && pkg.Name == "time"
}
