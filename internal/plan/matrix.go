package plan

import (
	"fmt"
	"strings"
	"unicode/utf16"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// maxMatrixWork bounds combinations times filters looked at for one matrix, so
// that a small file with long vectors and long excludes cannot hang us.
const maxMatrixWork = 4 << 20

// cell is one combination of a matrix.
type cell struct {
	matrix expr.Value
	// segments are what the name shows: the values of the cell that made it, not
	// those that an include added to it.
	segments []string
	index    int // in the whole matrix
}

// planError is a mistake in a workflow, at a place where that is known.
type planError struct {
	pos workflow.Pos
	msg string
}

func (e *planError) Error() string {
	if e.pos.IsZero() {
		return e.msg
	}
	return fmt.Sprintf("(Line: %d, Col: %d): %s", e.pos.Line, e.pos.Col, e.msg)
}

func errorAt(pos workflow.Pos, format string, args ...any) error {
	return &planError{pos, fmt.Sprintf(format, args...)}
}

// filter is an entry of include or exclude: which cells it is about, and what
// it adds.
type filter struct {
	match   expr.Value // object of the keys that are vectors
	extra   *expr.Map
	matched bool
}

// expandMatrix makes the cells of an evaluated matrix, in GitHub's order. src is
// the matrix as written and serves to name places.
//
// The product comes first: every vector in source order, the last one fastest.
// An exclude drops a combination when all that it names is equal, looking into
// objects and lists, comparing as == does. Each include whose vector keys are
// all equal to a combination's adds its other keys to it: a later include may
// replace what an earlier one added, never a vector's value. An include that
// matched nothing is a cell of its own.
func expandMatrix(v expr.Value, src *workflow.Value) ([]cell, error) {
	if v.Kind() != expr.KindObject {
		return nil, errorAt(posOf(src), "Unexpected value '%s'", v.ToString())
	}
	type vector struct {
		name   string
		values []expr.Value
	}
	var vectors []vector
	names := expr.NewMap()
	var include, exclude []expr.Value
	for name, val := range v.AsMap().All() {
		at := src.Get(name)
		if at == nil {
			at = src
		}
		if val.Kind() != expr.KindArray {
			return nil, errorAt(posOf(at), "Unexpected value '%s'", val.ToString())
		}
		items := val.AsArray()
		// The two words are GitHub's constants and so compare with case.
		switch name {
		case "include":
			include = items
		case "exclude":
			exclude = items
		default:
			if len(items) == 0 {
				return nil, errorAt(posOf(at), "Matrix vector '%s' does not contain any values", name)
			}
			vectors = append(vectors, vector{name, items})
			names.Set(name, expr.Null())
		}
	}
	if len(vectors) == 0 && len(include) == 0 {
		return nil, errorAt(posOf(src), "Matrix must define at least one vector")
	}

	includes := make([]filter, 0, len(include))
	for i, it := range include {
		at := itemAt(src.Get("include"), i, src)
		if it.Kind() != expr.KindObject {
			return nil, errorAt(posOf(at), "Unexpected value '%s'", it.ToString())
		}
		f := filter{extra: expr.NewMap()}
		match := expr.NewMap()
		for k, val := range it.AsMap().All() {
			if _, ok := names.Get(k); ok {
				match.Set(k, val)
			} else {
				f.extra.Set(k, val)
			}
		}
		if match.Len() == 0 && f.extra.Len() == 0 {
			return nil, errorAt(posOf(at), "Matrix include mapping does not contain any values")
		}
		f.match = expr.Object(match)
		includes = append(includes, f)
	}
	excludes := make([]expr.Value, 0, len(exclude))
	for i, it := range exclude {
		at := itemAt(src.Get("exclude"), i, src)
		if it.Kind() != expr.KindObject {
			return nil, errorAt(posOf(at), "Unexpected value '%s'", it.ToString())
		}
		if it.AsMap().Len() == 0 {
			return nil, errorAt(posOf(at), "Matrix exclude filter must not be empty")
		}
		for k := range it.AsMap().All() {
			if _, ok := names.Get(k); !ok {
				return nil, errorAt(keyPos(at, k), "Matrix exclude key '%s' does not match any key within the matrix", k)
			}
		}
		excludes = append(excludes, it)
	}

	size := 0
	if len(vectors) > 0 {
		size = 1
		for _, vec := range vectors {
			size *= len(vec.values)
			if size*(1+len(includes)+len(excludes)) > maxMatrixWork {
				return nil, errorAt(posOf(src), "The matrix has more combinations than can be looked at (%d at '%s')", size, vec.name)
			}
		}
	}
	tooMany := errorAt(posOf(src), "The matrix makes more than %d jobs", MaxMatrix)

	var cells []cell
product:
	for n := range size {
		m := expr.NewMap()
		block := size
		for _, vec := range vectors {
			block /= len(vec.values)
			m.Set(vec.name, vec.values[n/block%len(vec.values)])
		}
		base := expr.Object(m)
		for _, ex := range excludes {
			if matches(base, ex) {
				continue product
			}
		}
		if len(cells) == MaxMatrix {
			return nil, tooMany
		}
		segs := segments(base)
		full := expr.NewMap()
		for k, val := range m.All() {
			full.Set(k, val)
		}
		for i := range includes {
			if !matches(base, includes[i].match) {
				continue
			}
			includes[i].matched = true
			for k, val := range includes[i].extra.All() {
				full.Set(k, val)
			}
		}
		cells = append(cells, cell{expr.Object(full), segs, len(cells)})
	}
	for i := range includes {
		if includes[i].matched {
			continue
		}
		if len(cells) == MaxMatrix {
			return nil, tooMany
		}
		m := expr.NewMap()
		for k, val := range includes[i].match.AsMap().All() {
			m.Set(k, val)
		}
		for k, val := range includes[i].extra.All() {
			m.Set(k, val)
		}
		v := expr.Object(m)
		cells = append(cells, cell{v, segments(v), len(cells)})
	}
	return cells, nil
}

// matches reports whether every scalar within want equals, as == compares, what
// have holds at the same path. What is missing there is null.
func matches(have, want expr.Value) bool {
	switch want.Kind() {
	case expr.KindObject:
		for k, w := range want.AsMap().All() {
			h := expr.Null()
			if have.Kind() == expr.KindObject {
				h, _ = have.AsMap().Get(k)
			}
			if !matches(h, w) {
				return false
			}
		}
		return true
	case expr.KindArray:
		for i, w := range want.AsArray() {
			h := expr.Null()
			if have.Kind() == expr.KindArray && i < len(have.AsArray()) {
				h = have.AsArray()[i]
			}
			if !matches(h, w) {
				return false
			}
		}
		return true
	}
	return expr.Equal(have, want)
}

// segments lists the scalars within a cell as its name shows them.
func segments(v expr.Value) []string {
	var out []string
	var walk func(expr.Value)
	walk = func(v expr.Value) {
		switch v.Kind() {
		case expr.KindObject:
			for _, val := range v.AsMap().All() {
				walk(val)
			}
		case expr.KindArray:
			for _, val := range v.AsArray() {
				walk(val)
			}
		case expr.KindBool, expr.KindNumber, expr.KindString:
			if s := v.ToString(); s != "" {
				out = append(out, s)
			}
		}
	}
	walk(v)
	return out
}

// cellName appends a cell's segments to a job's name as GitHub does, at most 100
// UTF-16 units long.
func cellName(name string, segments []string) string {
	if len(segments) == 0 {
		return name
	}
	name += " (" + strings.Join(segments, ", ") + ")"
	const limit = 100
	if len(name) <= limit {
		return name
	}
	units := 0
	cut := 0 // byte offset of the first 97 units
	for i, r := range name {
		if units <= limit-3 {
			cut = i
		}
		units += max(1, utf16.RuneLen(r))
	}
	if units <= limit {
		return name
	}
	return name[:cut] + "..."
}

func posOf(v *workflow.Value) workflow.Pos {
	if v == nil {
		return workflow.Pos{}
	}
	return v.Pos
}

// itemAt finds the place of the i-th entry of a list, as near as it is known:
// expressions in the list may have moved the entries.
func itemAt(list *workflow.Value, i int, outer *workflow.Value) *workflow.Value {
	if list == nil {
		return outer
	}
	if list.Kind == workflow.Sequence && i < len(list.Items) && !list.HasExpr() {
		return list.Items[i]
	}
	return list
}

// keyPos is the place of a key of a mapping.
func keyPos(v *workflow.Value, key string) workflow.Pos {
	if v != nil && v.Kind == workflow.Mapping {
		for _, p := range v.Pairs {
			if p.Key.Kind == workflow.String && strings.EqualFold(p.Key.Str, key) {
				return p.Key.Pos
			}
		}
	}
	return posOf(v)
}
