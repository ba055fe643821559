package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
)

func testRunLists(t *testing.T, a, b *store.Store) {
	ctx := t.Context()
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for i := range 120 {
		r := ci.Run{Repository: fmt.Sprintf("list/r%d", i%3), Workflow: "W", File: "w.yml", Name: fmt.Sprintf("run 100%%_%d", i), Event: []string{"push",
			"schedule"}[i%2],
			Ref: []string{"refs/heads/main", "refs/tags/v1"}[i%2], SHA: fmt.Sprintf("%040x", i), Actor: fmt.Sprint("a", i%4),
			Created: at.Add(time.Duration(i/4) * time.Minute)}
		if i%5 == 0 {
			r.Status, r.Conclusion = ci.Completed, ci.Failure
		}
		_, _, err := a.CreateRun(ctx, r, nil, nil)
		ok(t, err)
	}
	for what, c := range map[string]struct {
		f    store.RunFilter
		want int
	}{
		"all":        {store.RunFilter{}, 120},
		"actor":      {store.RunFilter{Actor: "a1"}, 30},
		"branch":     {store.RunFilter{Branch: "main"}, 60},
		"tag":        {store.RunFilter{Branch: "v1"}, 60},
		"ref":        {store.RunFilter{Branch: "refs/tags/v1"}, 60},
		"moving":     {store.RunFilter{Moving: true}, 96},
		"failed":     {store.RunFilter{Conclusion: ci.Failure, Repository: "list/r0"}, 8},
		"name":       {store.RunFilter{Text: "RUN 100%_11"}, 11},
		"wild":       {store.RunFilter{Text: "100__"}, 0},
		"commit":     {store.RunFilter{Text: fmt.Sprintf("%040x", 7)}, 1},
		"repository": {store.RunFilter{Text: "list/R1"}, 40},
	} {
		// In pages of seven: none twice, none left out, the newest first.
		var got []ci.Run
		for f := c.f; ; {
			f.Limit = 7
			page, err := b.Runs(ctx, f)
			ok(t, err)
			if len(page) == 0 {
				break
			}
			last := page[len(page)-1]
			got = append(got, slices.DeleteFunc(page, func(r ci.Run) bool { return !strings.HasPrefix(r.Repository, "list/") })...)
			f.After = &store.RunPlace{Created: last.Created, Number: last.Number, ID: last.ID}
		}
		seen := map[string]bool{}
		for i, r := range got {
			seen[r.ID] = true
			if i > 0 && r.Created.After(got[i-1].Created) {
				t.Errorf("%s: the order", what)
			}
		}
		if len(got) != c.want || len(seen) != c.want {
			t.Errorf("%s: %d runs, %d of them others", what, len(got), len(seen))
		}
	}
	repos, err := b.Repositories(ctx, 1000)
	ok(t, err)
	if !slices.IsSorted(repos) || !slices.Contains(repos, "list/r2") {
		t.Error(repos)
	}
	if two, err := b.Repositories(ctx, 2); err != nil || len(two) != 2 {
		t.Error(two, err)
	}
}

// Whatever a list is narrowed by, it is read along an index, the newest first.
func TestRunListsUseIndexes(t *testing.T) {
	_, path := open(t)
	db := store.RawForTest(t, path)
	after := &store.RunPlace{Created: time.Now(), Number: 1, ID: "x"}
	for _, f := range []store.RunFilter{{}, {After: after}, {Repository: "o/r"}, {Repository: "o/r", After: after}, {Actor: "a", After: after},
		{Branch: "main", After: after},
		{Event: "push", After: after}, {Conclusion: ci.Failure, After: after}, {Moving: true}, {Text: "x", After: after}} {
		query, args := store.RunsQuery(f)
		rows, err := db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
		ok(t, err)
		var plan strings.Builder
		for rows.Next() {
			var id, parent, unused int
			var detail string
			ok(t, rows.Scan(&id, &parent, &unused, &detail))
			plan.WriteString(detail + "\n")
		}
		ok(t, rows.Err())
		if !strings.Contains(plan.String(), "USING INDEX runs_") {
			t.Errorf("%+v:\n%s", f, plan.String())
		}
	}
}
