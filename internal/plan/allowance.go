package plan

import (
	"sync/atomic"

	"github.com/hearth-ci/hearth/internal/ci"
)

// Allowance is what the jobs of one run may still hand on as outputs. The zero
// value is that of a run that begins.
type Allowance struct {
	// Ask, if set, is who counts for the run, elsewhere.
	Ask func(n int) bool

	taken atomic.Int64
}

// Take takes n bytes, and reports whether they were there.
func (a *Allowance) Take(n int) bool {
	if a.Ask != nil {
		return a.Ask(n)
	}
	if a.taken.Add(int64(n)) <= ci.MaxRunOutputs {
		return true
	}
	a.taken.Add(int64(-n))
	return false
}
