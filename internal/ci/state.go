package ci

// Conclude folds the conclusions of a run's jobs into the run's own. A run with
// no job at all has not succeeded: it is [Skipped].
func Conclude(jobs []Conclusion) Conclusion {
	out := Skipped
	rank := func(c Conclusion) int {
		switch c {
		case Skipped:
			return 0
		case Neutral, Success:
			return 1
		case NotRun:
			return 2 // before success: a matrix whose cells ran in part has not succeeded
		case Cancelled:
			return 3
		}
		return 4 // failure, timed out, and anything that is no conclusion
	}
	for _, c := range jobs {
		if rank(c) > rank(out) {
			out = c
			switch {
			case rank(c) == 1:
				out = Success
			case rank(c) == 4:
				out = Failure
			}
		}
	}
	return out
}
