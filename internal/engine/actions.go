package engine

import (
	"context"

	"github.com/hearth-ci/hearth/internal/ci"
)

// post is what an action left to be done at the end of the job.
type post struct {
	x    *exec
	name string
	runs func() (bool, error)
	do   func(ctx context.Context, x *exec) outcome
}

func (x *exec) executeAction() outcome {
	x.error("actions are not there yet")
	return outcome{c: ci.Failure}
}

func (r *run) runPosts(sc *scope) {}
