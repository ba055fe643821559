package hearth

import (
	"context"

	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/learn"
)

// Memory is what was learned of runs and commands. A Host has that of its record, a
// Client that of a server, which takes an admin's token. repository "" asks about all;
// where nothing is learned the answers are empty.
type Memory interface {
	// Predict says how a command will fare, and why.
	Predict(ctx context.Context, repository, command string) (Forecast, error)
	// Related lists at most n commands that run where this one does, Next those that
	// come after it.
	Related(ctx context.Context, repository, command string, n int) ([]Match, error)
	Next(ctx context.Context, repository, command string, n int) ([]Match, error)
	// Lessons are what keeps coming back, with its evidence.
	Lessons(ctx context.Context, repository string) ([]Lesson, error)
	// Counts are successes, failures, their patterns and lessons: in all, which comes
	// first, and by repository.
	Counts(ctx context.Context, repository string) ([]Counts, error)
}

// Forecast is what is expected of a command, whoever runs it next.
type Forecast = learn.CommandForecast

// Match is a command that goes with another, and how often.
type Match = graph.Match

// Lesson is a failure that keeps coming back in one place.
type Lesson = learn.Lesson

// Counts are what was counted of a repository.
type Counts = learn.Counts

var (
	_ Memory = (*Host)(nil)
	_ Memory = (*Client)(nil)
)

// Predict implements Memory.
func (h *Host) Predict(ctx context.Context, repository, command string) (Forecast, error) {
	return h.learner.PredictCommand(ctx, repository, command)
}

// Related implements Memory.
func (h *Host) Related(ctx context.Context, repository, command string, n int) ([]Match, error) {
	return h.learner.Related(ctx, repository, command, n)
}

// Next implements Memory.
func (h *Host) Next(ctx context.Context, repository, command string, n int) ([]Match, error) {
	return h.learner.Next(ctx, repository, n, command)
}

// Lessons implements Memory.
func (h *Host) Lessons(ctx context.Context, repository string) ([]Lesson, error) {
	return h.learner.Lessons(ctx, repository)
}

// Counts implements Memory.
func (h *Host) Counts(ctx context.Context, repository string) ([]Counts, error) {
	return h.learner.Count(ctx, repository)
}
