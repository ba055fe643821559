package workflow

import "iter"

// EachStep yields all steps, in order: those of a parallel block after the block.
func EachStep(steps []*Step) iter.Seq[*Step] {
	return func(yield func(*Step) bool) { eachStep(steps, yield) }
}

func eachStep(steps []*Step, yield func(*Step) bool) bool {
	for _, s := range steps {
		if !yield(s) || !eachStep(s.Parallel, yield) {
			return false
		}
	}
	return true
}

// NumberedSteps are the steps that have a number, from 1, in order: those of a
// parallel block one by one, and not the block.
func NumberedSteps(steps []*Step) (out []*Step) {
	for s := range EachStep(steps) {
		if len(s.Parallel) == 0 {
			out = append(out, s)
		}
	}
	return out
}
