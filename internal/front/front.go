// Package front is what those at a server's doors see of what is behind them: the
// webhook puts deliveries into the store, the pages read runs, logs and artifacts.
package front

import (
	"context"
	"errors"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/web"
	"github.com/hearth-ci/hearth/internal/webhook"
)

// Deliveries stores what the webhook takes in.
type Deliveries struct{ Store *store.Store }

// Record stores an event once for its delivery.
func (s Deliveries) Record(ctx context.Context, e ci.Event, v webhook.Verdict) (string, bool, error) {
	state := store.EventPending
	switch {
	case v.Refused != "":
		state = store.EventRefused
	case v.Ignored:
		state = store.EventNoted
	}
	return s.Store.AddEvent(ctx, e, state, v.Refused)
}

// Pages is what the web pages show: a store as a [web.Source].
type Pages struct{ Store *store.Store }

// Runs lists runs, the newest first.
func (p Pages) Runs(ctx context.Context, q web.RunQuery) ([]ci.Run, error) {
	f := store.RunFilter{Repository: q.Repository, Event: q.Event, Branch: q.Branch, Actor: q.Actor, Text: q.Text, Limit: q.Limit}
	if q.Result == web.Moving {
		f.Moving = true
	} else {
		f.Conclusion = ci.Conclusion(q.Result)
	}
	if q.After != nil {
		f.After = &store.RunPlace{Created: q.After.Created, Number: q.After.Number, ID: q.After.ID}
	}
	return p.Store.Runs(ctx, f)
}

// Repositories lists those that have had runs.
func (p Pages) Repositories(ctx context.Context, limit int) ([]string, error) {
	return p.Store.Repositories(ctx, limit)
}

// Run reads one run.
func (p Pages) Run(ctx context.Context, id string) (ci.Run, error) {
	r, err := p.Store.Run(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		err = web.ErrNotFound
	}
	return r, err
}

// Records reads a run's records without log lines.
func (p Pages) Records(ctx context.Context, runID string, after int64, limit int) ([]ci.Record, error) {
	stored, err := p.Store.RunRecords(ctx, runID, after, limit)
	out := make([]ci.Record, len(stored))
	for i, r := range stored {
		out[i] = r.Record
	}
	return out, err
}

// LogTail reads the last n lines of a job's log. What it costs does not depend
// on how long the log is.
func (p Pages) LogTail(ctx context.Context, runID, jobKey string, n int) (web.Window, error) {
	return window(p.Store.LogTail(ctx, runID, jobKey, n))
}

// LogFrom reads n lines of a job's log from a line's number, from 1, on.
func (p Pages) LogFrom(ctx context.Context, runID, jobKey string, from int64, n int) (web.Window, error) {
	return window(p.Store.LogFrom(ctx, runID, jobKey, from, n))
}

// LogFind searches a job's log.
func (p Pages) LogFind(ctx context.Context, runID, jobKey, words string, from int64, n int) (web.Matches, error) {
	m, err := p.Store.LogFind(ctx, runID, jobKey, words, from, n)
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	out := web.Matches{Total: m.Total, Next: m.Next, Lines: make([]web.Line, len(m.Lines))}
	for i, l := range m.Lines {
		out.Lines[i] = web.Line{Record: l.Record, Number: l.Number}
	}
	return out, err
}

func window(w store.LogWindow, err error) (web.Window, error) {
	if errors.Is(err, store.ErrNotFound) {
		err = nil // no such job yet
	}
	out := web.Window{First: w.First, Total: w.Total, Lines: make([]web.Line, len(w.Lines))}
	for i, l := range w.Lines {
		out.Lines[i] = web.Line{Record: l.Record, Number: l.Number}
	}
	return out, err
}

// Watch receives after the run has changed.
func (p Pages) Watch(runID string) (<-chan struct{}, func()) { return p.Store.Watch(runID) }

// Replay has an event that has ended handled again.
func Replay(ctx context.Context, s *store.Store, event string) error {
	err := s.ReplayEvent(ctx, event)
	if errors.Is(err, store.ErrNotFound) {
		err = web.ErrNotFound
	}
	return err
}

// Events lists the newest deliveries.
func (p Pages) Events(ctx context.Context, limit int) ([]web.Event, error) {
	stored, err := p.Store.Events(ctx, limit)
	out := make([]web.Event, len(stored))
	for i, e := range stored {
		out[i] = web.Event{Event: e.Event, State: string(e.State), Detail: e.Detail, Tries: e.Tries}
	}
	return out, err
}
