package api

import (
	"context"
	"net/http"
	"strconv"

	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/learn"
)

// Memory is what the API tells of what was learned. *learn.Learner is one.
type Memory interface {
	PredictCommand(ctx context.Context, repository, command string) (learn.CommandForecast, error)
	Related(ctx context.Context, repository, command string, n int) ([]graph.Match, error)
	Next(ctx context.Context, repository string, n int, commands ...string) ([]graph.Match, error)
	Similar(ctx context.Context, repository, signature string, n int) ([]graph.Match, error)
	Lessons(ctx context.Context, repository string) ([]learn.Lesson, error)
	Count(ctx context.Context, repository string) ([]learn.Counts, error)
}

const (
	maxMatches  = 100     // in one answer
	maxQuestion = 4 << 10 // bytes of a command or a name
)

// ask makes the handler of a question to the memory. What was learned is everybody's
// runs, so it takes a token for all.
func (s *Server) ask(needs string, answer func(ctx context.Context, m Memory, repository, text string, n int) (any, error)) func(http.ResponseWriter,
	*http.Request, grant) error {
	return func(w http.ResponseWriter, r *http.Request, g grant) error {
		if err := g.all(); err != nil {
			return err
		}
		if s.cfg.Memory == nil {
			return problem(http.StatusNotFound, "no_memory", "set learn to advise or act", "this server learns nothing")
		}
		q := r.URL.Query()
		text, n := "", 10
		if needs != "" {
			if text = q.Get(needs); text == "" || len(text) > maxQuestion {
				return problem(http.StatusBadRequest, "bad_request", "want 1 to 4096 bytes", "the query's %s is missing or too long", needs)
			}
		}
		if v := q.Get("limit"); v != "" {
			var err error
			if n, err = strconv.Atoi(v); err != nil || n < 1 || n > maxMatches {
				return problem(http.StatusBadRequest, "bad_request", "want 1 to 100", "limit is %.20q", v)
			}
		}
		a, err := answer(r.Context(), s.cfg.Memory, q.Get("repository"), text, n)
		if err != nil {
			return err
		}
		reply(w, http.StatusOK, a)
		return nil
	}
}

// matches is a list as an answer, never null.
func matches(list []graph.Match, err error) (any, error) {
	if list == nil {
		list = []graph.Match{}
	}
	return map[string]any{"matches": list}, err
}

// questions are the routes of the memory.
func (s *Server) questions() []route {
	return []route{
		{"GET /api/v1/learn/predict", s.ask("command", func(ctx context.Context, m Memory, repository, text string, _ int) (any, error) {
			if graph.Command(text) == "" {
				return nil, problem(http.StatusBadRequest, "bad_request", "give a command as a shell takes it", "%.100q is no command", text)
			}
			return m.PredictCommand(ctx, repository, text)
		})},
		{"GET /api/v1/learn/related", s.ask("command", func(ctx context.Context, m Memory, repository, text string, n int) (any, error) {
			return matches(m.Related(ctx, repository, text, n))
		})},
		{"GET /api/v1/learn/next", s.ask("command", func(ctx context.Context, m Memory, repository, text string, n int) (any, error) {
			return matches(m.Next(ctx, repository, n, text))
		})},
		{"GET /api/v1/learn/similar", s.ask("signature", func(ctx context.Context, m Memory, repository, text string, n int) (any, error) {
			return matches(m.Similar(ctx, repository, text, n))
		})},
		{"GET /api/v1/learn/lessons", s.ask("", func(ctx context.Context, m Memory, repository, _ string, _ int) (any, error) {
			list, err := m.Lessons(ctx, repository)
			if list == nil {
				list = []learn.Lesson{}
			}
			return map[string]any{"lessons": list}, err
		})},
		{"GET /api/v1/learn/stats", s.ask("", func(ctx context.Context, m Memory, repository, _ string, _ int) (any, error) {
			list, err := m.Count(ctx, repository)
			if list == nil {
				list = []learn.Counts{}
			}
			return map[string]any{"counts": list}, err
		})},
	}
}
