package front

import (
	"context"
	"errors"
	"io"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/web"
)

// Artifacts are those that the pages show.
type Artifacts struct{ Results *results.Store }

// Artifacts lists a run's.
func (p Artifacts) Artifacts(_ context.Context, run ci.Run) ([]web.Artifact, error) {
	all, err := p.Results.Artifacts(run.Repository, run.ID)
	out := make([]web.Artifact, len(all))
	for i, a := range all {
		out[i] = web.Artifact{ID: a.ID, Name: a.Name, Job: a.Job, File: a.File(), Size: a.Size}
	}
	return out, err
}

// OpenArtifact opens one of a run's.
func (p Artifacts) OpenArtifact(_ context.Context, run ci.Run, id int64) (web.Artifact, io.ReadSeekCloser, error) {
	all, err := p.Results.Artifacts(run.Repository, run.ID)
	if err != nil {
		return web.Artifact{}, nil, err
	}
	for _, a := range all {
		if a.ID != id {
			continue
		}
		f, err := p.Results.OpenArtifact(run.Repository, a)
		if errors.Is(err, results.ErrNotFound) {
			err = web.ErrNotFound
		}
		if err != nil {
			return web.Artifact{}, nil, err
		}
		return web.Artifact{ID: a.ID, Name: a.Name, Job: a.Job, File: a.File(), Size: a.Size}, f, nil
	}
	return web.Artifact{}, nil, web.ErrNotFound
}
