package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/expr"
)

// Cell selects combinations of a matrix: those whose Key has the Value, compared
// as text without regard to case.
type Cell struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// ParseCell reads "key:value" as the command line takes it.
func ParseCell(s string) (Cell, error) {
	k, v, ok := strings.Cut(s, ":")
	if !ok || strings.TrimSpace(k) == "" {
		return Cell{}, fmt.Errorf("--matrix %q: write it as key:value, for instance os:ubuntu-latest", s)
	}
	return Cell{strings.TrimSpace(k), strings.TrimSpace(v)}, nil
}

// Filter selects a part of a run.
type Filter struct {
	// Jobs are job ids, keys or names; everything they need is selected with them.
	// Empty selects all.
	Jobs []string
	// Matrix selects cells. Several values of one key are alternatives; a matrix
	// without the key is left as it is.
	Matrix []Cell
}

// Keep reduces a run to what f selects. An unknown job, or a selection that
// leaves a matrix empty, is an error that says what there is.
func (r *Run) Keep(f Filter) error {
	keep := make(map[*Job]bool, len(r.Jobs))
	if len(f.Jobs) == 0 {
		for _, j := range r.Jobs {
			keep[j] = true
		}
	}
	var need func(j *Job)
	// whole selects a job with all cells, what it calls and what it needs.
	whole := func(call int, id string) {
		for _, j := range r.Jobs {
			if j.Call == call && expr.EqualFold(j.ID, id) {
				need(j)
			}
		}
	}
	need = func(j *Job) {
		if keep[j] {
			return
		}
		keep[j] = true
		for _, id := range j.Needs {
			whole(j.Call, id)
		}
		if j.Opens > 0 {
			for _, in := range r.Jobs {
				if in.Call == j.Opens {
					need(in)
				}
			}
		}
	}
	for _, want := range f.Jobs {
		found := false
		for _, j := range r.Jobs {
			if !(expr.EqualFold(j.ID, want) && j.Call == 0 || expr.EqualFold(j.Key, want) || expr.EqualFold(j.Name, want)) {
				continue
			}
			found = true
			need(j)
			// Its callers run too, with what they need, but not all they call.
			for c := r.Calls[j.Call].caller; c != nil; c = r.Calls[c.Call].caller {
				keep[c] = true
				for _, id := range c.Needs {
					whole(c.Call, id)
				}
			}
		}
		if !found {
			return fmt.Errorf("there is no job %q in %s; it has %s", want, r.File, strings.Join(r.ids(), ", "))
		}
	}
	if len(f.Matrix) > 0 {
		left := map[string]int{}
		have := map[string][]string{}
		for _, j := range r.Jobs {
			if !keep[j] || j.MatrixTotal < 1 || j.Matrix.Kind() != expr.KindObject {
				continue
			}
			id := fmt.Sprint(j.Call, " ", fold(j.ID))
			if selected(j.Matrix, f.Matrix) {
				left[id]++
				continue
			}
			left[id] += 0
			have[id] = append(have[id], j.Key)
			keep[j] = false
		}
		for _, id := range slices.Sorted(maps.Keys(left)) {
			if left[id] == 0 {
				return fmt.Errorf("the matrix filter selects nothing of: %s", strings.Join(have[id], ", "))
			}
		}
		r.Only = f.Matrix
	}
	// What is inside a dropped caller is dropped; callers come first in the list.
	dropped := map[string]bool{}
	r.Jobs = slices.DeleteFunc(r.Jobs, func(j *Job) bool {
		out := !keep[j] || slices.ContainsFunc(j.CallPath, func(k string) bool { return dropped[k] })
		if out {
			dropped[j.Key] = true
		}
		return out
	})
	r.dropCalls()
	return nil
}

// dropCalls takes instances away whose caller is gone, and renumbers.
func (r *Run) dropCalls() {
	alive := map[string]bool{}
	for _, j := range r.Jobs {
		alive[j.Key] = true
	}
	renumber := make([]int, len(r.Calls))
	var calls []*Call
	for i, c := range r.Calls {
		if i > 0 && !alive[c.Caller] {
			renumber[i] = -1
			continue
		}
		renumber[i] = len(calls)
		calls = append(calls, c)
	}
	r.Calls = calls
	for _, c := range calls {
		c.Parent = renumber[c.Parent]
	}
	for _, j := range r.Jobs {
		j.Call, j.Opens = renumber[j.Call], renumber[j.Opens]
	}
}

func (r *Run) ids() []string {
	var ids []string
	for _, j := range r.Jobs {
		if j.Call == 0 && !slices.Contains(ids, j.ID) {
			ids = append(ids, j.ID)
		}
	}
	return ids
}

// selected reports whether a cell passes: for every key that it has and that is
// named, one of the values given.
func selected(matrix expr.Value, only []Cell) bool {
	named, ok := map[string]bool{}, map[string]bool{}
	for _, c := range only {
		v, has := matrix.AsMap().Get(c.Key)
		if !has {
			continue
		}
		named[fold(c.Key)] = true
		if expr.EqualFold(v.ToString(), c.Value) {
			ok[fold(c.Key)] = true
		}
	}
	return len(named) == len(ok)
}

func keepCells(cells []cell, only []Cell) []cell {
	return slices.DeleteFunc(cells, func(c cell) bool { return !selected(c.matrix, only) })
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
