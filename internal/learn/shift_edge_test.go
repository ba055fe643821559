package learn

import (
	"math"
	"testing"
	"time"
)

// What has always failed, or never, has a rate at the edge of what logarithms take.
func TestShiftAtTheEdge(t *testing.T) {
	for _, failed := range []bool{true, false} {
		v := &level{}
		x := &Execution{Repo: "o/r", Step: "make"}
		for i := range 500 {
			if s := v.rate(x, "run", failed, time.Unix(int64(i), 0)); s != nil {
				t.Errorf("always %v, and after %d a shift: %v", failed, i, s)
			}
		}
		for kind, s := range v.Sums {
			if math.IsNaN(s.V) || math.IsInf(s.V, 0) {
				t.Errorf("always %v: the sum %v is %v", failed, kind, s.V)
			}
		}
	}
}
