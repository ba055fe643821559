package main

import (
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Building takes longer than testing. So the changes that are to be tried are put
// into one copy of the code, each asleep until the environment names it; those
// with which the copy does not compile are built by themselves.

// edit is a change as what is written around an expression or a statement, and in
// the place of its operator. § stands for the number of the change.
type edit struct {
	node        ast.Node
	op          token.Pos
	from, to    int // offsets in the file
	opFrom      int
	opLen       int
	open, close string
	instead     string
}

func around(n ast.Node, open, close string) edit { return edit{node: n, open: open, close: close} }

// turn is the edit that turns an operator.
func turn(x *ast.BinaryExpr) edit {
	e := edit{node: x, op: x.OpPos, opLen: len(x.Op.String()), instead: ", ", close: ")"}
	switch x.Op {
	case token.EQL, token.NEQ:
		return around(x, "((", ") != (mutant__ == §))")
	case token.LSS, token.LEQ:
		e.open = fmt.Sprintf("less__(§, %t, ", x.Op == token.LEQ)
	case token.GTR, token.GEQ:
		e.open = fmt.Sprintf("more__(§, %t, ", x.Op == token.GEQ)
	case token.LAND, token.LOR:
		e.open, e.instead, e.close = fmt.Sprintf("both__(§, %t, ", x.Op == token.LAND), ", func() bool { return (", ")})"
	default:
		e.open = fmt.Sprintf("sum__(§, %t, ", x.Op == token.ADD)
	}
	return e
}

// in fills in the offsets.
func (e edit) in(fset *token.FileSet) edit {
	e.from, e.to = fset.Position(e.node.Pos()).Offset, fset.Position(e.node.End()).Offset
	if e.op.IsValid() {
		e.opFrom = fset.Position(e.op).Offset
	}
	return e
}

const asleep = `package %s

import (
	"cmp"
	"os"
	"strconv"
)

var mutant__, _ = strconv.Atoi(os.Getenv("MUTANT"))

type mutable__ interface {
	~int | ~int8 | ~int16 | ~int32 | ~int64 | ~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~float32 | ~float64
}

func less__[T cmp.Ordered](k int, equal bool, a, b T) bool {
	return a < b || a == b && equal != (mutant__ == k)
}

func more__[T cmp.Ordered](k int, equal bool, a, b T) bool {
	return a > b || a == b && equal != (mutant__ == k)
}

func both__(k int, and bool, a bool, b func() bool) bool {
	if and != (mutant__ == k) {
		return a && b()
	}
	return a || b()
}

func sum__[T mutable__](k int, plus bool, a, b T) T {
	if plus != (mutant__ == k) {
		return a + b
	}
	return a - b
}

func number__(k, n int) int {
	if mutant__ == k {
		return n + 1
	}
	return n
}
`

func (m mutant) key() string { return m.at + " " + m.what + " " + m.diff }

var place_ = regexp.MustCompile(`(?m)^(?:vet: )?(\S+\.go):(\d+):\d+: `)

// buildTogether puts the changes into one copy of the code and builds the tests
// on it; with fewer of them, until it compiles.
func (s *suite) buildTogether(all []mutant) error {
	s.ids, s.together = map[string]int{}, map[string]string{}
	packages := []string{}
	for _, t := range s.tests {
		if !slices.Contains(packages, t.pkg) {
			packages = append(packages, t.pkg)
		}
	}
	for try := 0; len(all) > 0; try++ {
		files := map[string][]byte{}
		for i, m := range all {
			s.ids[m.key()] = i + 1
			if files[m.file] == nil {
				var in []int // those of its file
				for k := range all {
					if all[k].file == m.file {
						in = append(in, k)
					}
				}
				text, err := combine(m.file, all, in)
				if err != nil {
					return err
				}
				files[m.file] = text
			}
		}
		files[filepath.Join(filepath.Dir(all[0].file), "mutant__.go")] = fmt.Appendf(nil, asleep, all[0].pkg)
		var out []byte
		var err error
		for i, pkg := range packages {
			binary := filepath.Join(s.dir, fmt.Sprintf("together%d.test", i))
			if out, err = s.build(pkg, binary, files, "-gcflags="+s.pkg+"=-e"); err != nil {
				break
			}
			s.together[pkg] = binary
		}
		if err == nil {
			return nil
		}
		bad := map[string]bool{}
		for _, m := range place_.FindAllSubmatch(out, -1) {
			bad[filepath.Base(string(m[1]))+":"+string(m[2])] = true
		}
		rest := slices.DeleteFunc(slices.Clone(all), func(m mutant) bool { return bad[filepath.Base(m.at)] })
		if len(rest) == len(all) {
			if try == 0 {
				fmt.Printf("%s: its changes are built one at a time:\n%s", s.pkg, tail(out, 5))
			}
			rest = nil
		}
		all = rest
		s.ids = map[string]int{}
	}
	return nil
}

// combine writes the changes, which are in the order of the code, into a file.
func combine(name string, all []mutant, in []int) ([]byte, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	// What is further out is opened first and closed last.
	slices.SortStableFunc(in, func(a, b int) int {
		x, y := all[a].edit, all[b].edit
		if x.from != y.from {
			return x.from - y.from
		}
		return y.to - x.to
	})
	before, after, instead := map[int]string{}, map[int]string{}, map[int]edit{}
	for _, i := range in {
		e, id := all[i].edit, fmt.Sprint(i+1)
		before[e.from] += strings.ReplaceAll(e.open, "§", id)
		after[e.to] = strings.ReplaceAll(e.close, "§", id) + after[e.to]
		if e.instead != "" {
			instead[e.opFrom] = e
		}
	}
	var b strings.Builder
	for i := 0; i <= len(text); i++ {
		b.WriteString(after[i])
		b.WriteString(before[i])
		if e, ok := instead[i]; ok {
			b.WriteString(e.instead)
			i += e.opLen - 1
			continue
		}
		if i < len(text) {
			b.WriteByte(text[i])
		}
	}
	return []byte(b.String()), nil
}
