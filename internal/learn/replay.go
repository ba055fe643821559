package learn

import (
	"container/heap"
	"iter"
)

// delayed walks over rows in the order of their start. What done is called for
// brings in, by learn, the rows that had ended before the row started, in the order
// of their end: nothing is known before it has happened.
func delayed(rows []outcomeRow, learn func(row int)) iter.Seq2[int, func()] {
	return func(yield func(int, func()) bool) {
		open := endHeap{all: rows}
		for i := range rows {
			ok := yield(i, func() {
				for open.Len() > 0 && rows[open.rows[0]].end < rows[i].At {
					learn(heap.Pop(&open).(int))
				}
			})
			if !ok {
				return
			}
			heap.Push(&open, i)
		}
	}
}

// endHeap orders the rows under way by their end.
type endHeap struct {
	rows []int
	all  []outcomeRow
}

func (h *endHeap) Len() int { return len(h.rows) }
func (h *endHeap) Less(i, j int) bool {
	a, b := h.rows[i], h.rows[j]
	if h.all[a].end != h.all[b].end {
		return h.all[a].end < h.all[b].end
	}
	return a < b
}
func (h *endHeap) Swap(i, j int) { h.rows[i], h.rows[j] = h.rows[j], h.rows[i] }
func (h *endHeap) Push(x any)    { h.rows = append(h.rows, x.(int)) }
func (h *endHeap) Pop() any {
	x := h.rows[len(h.rows)-1]
	h.rows = h.rows[:len(h.rows)-1]
	return x
}
