package plan

import "slices"

// Part is what of the run one job needs, by itself: the job and those that call it, as
// they are when it starts. It shares nothing that changes while the run goes on, so that
// it can be written down meanwhile.
func (r *Run) Part(j *Job) *Run {
	if j.call == nil {
		return r // of a test's making: it cannot be read back either
	}
	part := *r
	part.Concurrency, part.Only = nil, nil
	var chain []*Call // from the job's own to the run's
	for c := j.call; c != nil; {
		chain = append(chain, c)
		if c.caller == nil {
			break
		}
		c = c.caller.call
	}
	slices.Reverse(chain)
	part.Calls, part.Jobs = nil, nil
	for i, c := range chain {
		own := *c
		own.Parent = max(i-1, 0)
		if c.caller != nil {
			caller := *c.caller
			caller.Call, caller.Opens, caller.call = i-1, i, part.Calls[i-1]
			own.caller = &caller
			part.Jobs = append(part.Jobs, &caller)
		}
		part.Calls = append(part.Calls, &own)
	}
	own := *j
	own.Call = len(part.Calls) - 1
	own.call = part.Calls[own.Call]
	part.Jobs = append(part.Jobs, &own)
	return &part
}
