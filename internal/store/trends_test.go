package store_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
)

func testTrends(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	base := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for i := range 20 {
		at := base.Add(time.Duration(i) * time.Hour)
		run, _, err := a.CreateRun(ctx, ci.Run{Repository: "o/trends", File: "ci.yml", Created: at}, []ci.Job{{Key: "j (1)", Job: "j", Name: "j"}}, nil)
		ok(t, err)
		r := must[*store.Recorder](t)(a.Recorder(context.Background(), run.ID))
		emit := func(seconds int, v ci.Record) {
			v.Time = at.Add(time.Duration(seconds) * time.Second)
			if v.Type != ci.RunStarted && v.Type != ci.RunFinished {
				v.Job, v.JobKey = "j", "j (1)"
			}
			r.Emit(v)
		}
		end := ci.Success
		if i%4 == 0 {
			end = ci.Failure
		}
		emit(1, ci.Record{Type: ci.RunStarted})
		emit(5, ci.Record{Type: ci.JobStarted, Name: "j"})
		emit(6, ci.Record{Type: ci.StepStarted, Step: 1, Name: "make"})
		emit(16+i, ci.Record{Type: ci.StepFinished, Step: 1, Name: "make", Conclusion: end, Outcome: end})
		emit(20+i, ci.Record{Type: ci.JobFinished, Name: "j", Conclusion: end})
		emit(21+i, ci.Record{Type: ci.RunFinished, Conclusion: end})
		ok(t, r.Close())
	}
	for _, c := range []struct {
		at    store.Place
		took  time.Duration // of the first of the last ten
		queue time.Duration
	}{
		{store.Place{Repository: "o/trends"}, 30 * time.Second, 5 * time.Second},
		{store.Place{Repository: "o/trends", Workflow: "ci.yml", Job: "j"}, 25 * time.Second, 0},
		{store.Place{Repository: "o/trends", Workflow: "ci.yml", Job: "j", Step: "make"}, 20 * time.Second, 0},
	} {
		got, err := b.Trend(ctx, c.at, 10)
		ok(t, err)
		if len(got) != 10 || got[0].Took != c.took || got[0].Queue != c.queue || got[2].Conclusion != ci.Failure || !got[0].Created.Before(got[9].Created) {
			t.Errorf("%+v: %+v", c.at, got)
		}
	}
	if none, err := b.Trend(ctx, store.Place{Repository: "o/trends", Workflow: "other.yml"}, 10); err != nil || len(none) != 0 {
		t.Error(none, err)
	}
	parts, err := b.Parts(ctx, "o/trends", "", 10)
	ok(t, err)
	want := store.Part{Workflow: "ci.yml", Job: "j", Step: "make", Runs: 10, Failed: 2, P50: 25 * time.Second, P90: 29 * time.Second, Sum: 245 * time.Second}
	if len(parts) != 1 || parts[0] != want {
		t.Errorf("%+v", parts)
	}
}

// A page about a repository reads its newest rows along an index.
func TestTrendsUseIndexes(t *testing.T) {
	_, path := open(t)
	db := store.RawForTest(t, path)
	for _, p := range []store.Place{{Repository: "r"}, {Repository: "r", Workflow: "w", Job: "j"}, {Repository: "r", Workflow: "w", Job: "j", Step: "s"}} {
		query, args := store.TrendQuery(p, 10)
		rows, err := db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
		ok(t, err)
		var plan strings.Builder
		for rows.Next() {
			var id, parent, unused int
			var detail string
			ok(t, rows.Scan(&id, &parent, &unused, &detail))
			fmt.Fprintln(&plan, detail)
		}
		ok(t, rows.Err())
		if !strings.Contains(plan.String(), "SEARCH r USING INDEX runs_repository") || strings.Contains(plan.String(), "SCAN") ||
			strings.Contains(plan.String(), "TEMP B-TREE") {
			t.Errorf("%+v:\n%s", p, plan.String())
		}
	}
}
