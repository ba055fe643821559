package worker

import (
	"testing"

	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/workflow"
)

func TestChange(t *testing.T) {
	const unknown = -1
	for _, c := range []struct {
		name, event string
		h           *workflow.Happening
		want        learn.Change
	}{
		{"nothing is told", `{}`, nil,
			learn.Change{Files: unknown, Added: unknown, Deleted: unknown, Source: unknown, Test: unknown, Doc: unknown, Config: unknown}},
		{"a push", `{"before": "abc", "head_commit": {"author": {"username": "ada", "email": "a@b"}}, "commits": [
			{"added": ["src/a.go", "src/a_test.go"], "removed": [], "modified": ["README.md"]}, {"added": [], "removed": ["go.mod"], "modified": ["src/a.go", "tests/x.sh"]}]}`, nil,
			learn.Change{Known: true, Parent: "abc", Author: "ada", Files: 5, Added: unknown, Deleted: unknown, Source: 1, Test: 2, Doc: 1, Config: 1}},
		{"a new branch, files known otherwise", `{"before": "0000000000", "head_commit": {"author": {"email": "a@b"}}, "commits": [{"added": ["x"]}]}`,
			&workflow.Happening{FilesKnown: true, ChangedFiles: []string{".github/workflows/ci.yml", "web/app.spec.ts", "Dockerfile", "lib/main.c"}},
			learn.Change{Known: true, Author: "a@b", Files: 4, Added: unknown, Deleted: unknown, Source: 1, Test: 1, Config: 2}},
		{"a pull request", `{"before": "no", "pull_request": {"base": {"sha": "b1"}, "user": {"login": "eve"}, "changed_files": 12, "additions": 300, "deletions": -5}}`, nil,
			learn.Change{Known: true, Parent: "b1", Author: "eve", Files: 12, Added: 300, Deleted: 0, Source: unknown, Test: unknown, Doc: unknown, Config: unknown}},
		{"what is no payload", `{"commits": [1, null, {"added": "x"}], "head_commit": 7, "before": {}}`, nil,
			learn.Change{Files: unknown, Added: unknown, Deleted: unknown, Source: unknown, Test: unknown, Doc: unknown, Config: unknown}},
	} {
		v, err := expr.ParseJSON([]byte(c.event))
		if err != nil {
			t.Fatal(err)
		}
		if got := Change(v, c.h); got != c.want {
			t.Errorf("%s:\n got %+v\nwant %+v", c.name, got, c.want)
		}
	}
}
